//! The parser of the text form of types and signatures.
//!
//! Grammar, with white space allowed between tokens:
//!
//! ```text
//! signature = "fn" "(" params ")" [ "->" ( type | results ) ]
//! params    = [ ( type | "..." ) { "," ( type | "..." ) } [ "," ] ]      at most one "..."
//! results   = "(" [ type { "," type } [ "," ] ] ")"
//! type      = "bool" | "i8" | ... | "map"                        all of `Type::NAMED`
//!           | "complex" "<" ( "f32" | "f64" | "longdouble" ) ">"
//!           | "[" type ";" number "]"
//!           | ( "struct" | "union" ) { "packed" "(" number ")" | "align" "(" number ")" } fields
//! fields    = "{" [ type { "," type } [ "," ] ] "}"
//! number    = decimal digits, at most 4294967295
//! ```
//!
//! The parameters after `...` are the arguments of one call of a variadic function.
//!
//! The parser panics on no text and recurses no deeper than types may be nested. Every error says
//! at which byte.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use super::limits::{MAX_TYPE_DEPTH, TypeError};
use super::sig::Signature;
use super::ty::{Float, RecordSpec, Type};

impl FromStr for Signature {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut tokens = Tokens::new(text);
        tokens.expect("fn", "`fn`")?;
        tokens.expect("(", "`(`")?;
        let mut variadic_at = None;
        let params = tokens.list(")", &mut variadic_at, &PARAMS)?;
        let results = if tokens.take("->") {
            if tokens.take("(") {
                tokens.list(")", &mut Some(0), &RESULTS)?
            } else {
                vec![tokens.ty("a type or `(`")?]
            }
        } else {
            Vec::new()
        };
        tokens.expect("", "`->` or the end")?;
        let signature = Signature::new(params, results);
        Ok(match variadic_at {
            Some(named) => signature.variadic_after(named),
            None => signature,
        })
    }
}

impl FromStr for Type {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut tokens = Tokens::new(text);
        let ty = tokens.ty("a type")?;
        tokens.expect("", "the end")?;
        Ok(ty)
    }
}

/// What the error of a list names where something else stands in place of an item, and after one.
struct Expected {
    item: &'static str,
    next: &'static str,
}

const PARAMS: Expected = Expected { item: "a type, `...` or `)`", next: "`,` or `)`" };
const MORE_PARAMS: Expected = Expected { item: "a type or `)`", next: "`,` or `)`" };
const RESULTS: Expected = MORE_PARAMS;
const FIELDS: Expected = Expected { item: "a type or `}`", next: "`,` or `}`" };

/// The unread text.
struct Tokens<'a> {
    text: &'a str,
    /// The byte offset of the next unread character. After `peek`, that of the next token.
    position: usize,
    /// The number of open composite types.
    depth: u32,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Tokens { text, position: 0, depth: 0 }
    }

    /// The next token: a word, `->`, `...`, any other single character, or `""` at the end.
    fn peek(&mut self) -> &'a str {
        let rest = self.text[self.position..].trim_start();
        self.position = self.text.len() - rest.len();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = match rest.chars().next() {
            None => 0,
            Some(c) if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            Some(_) if rest.starts_with("->") => 2,
            Some(_) if rest.starts_with("...") => 3,
            Some(c) => c.len_utf8(),
        };
        &rest[..length]
    }

    /// Steps over the next token if it is `token`.
    fn take(&mut self, token: &str) -> bool {
        let found = self.peek();
        if found == token {
            self.position += found.len();
        }
        found == token
    }

    /// Steps over `token`. The error describes it as `expected`.
    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), ParseError> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&mut self, expected: &'static str) -> ParseError {
        let found = self.peek().to_owned();
        ParseError::Unexpected { position: self.position, expected, found }
    }

    /// The types up to `close`. While `variadic_at` is `None`, `...` may stand among them, and sets
    /// it to the number of types before.
    fn list(
        &mut self,
        close: &str,
        variadic_at: &mut Option<usize>,
        mut expected: &'static Expected,
    ) -> Result<Vec<Type>, ParseError> {
        let mut types = Vec::new();
        while !self.take(close) {
            if variadic_at.is_none() && self.take("...") {
                *variadic_at = Some(types.len());
                expected = &MORE_PARAMS;
            } else {
                types.push(self.ty(expected.item)?);
            }
            if !self.take(",") && self.peek() != close {
                return Err(self.unexpected(expected.next));
            }
        }
        Ok(types)
    }

    /// A number of at most 32 bits.
    fn number(&mut self) -> Result<u32, ParseError> {
        let digits = self.peek();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.unexpected("a decimal number"));
        }
        let number = digits.parse().map_err(|_| ParseError::NumberTooLarge {
            position: self.position,
            digits: digits.to_owned(),
        })?;
        self.position += digits.len();
        Ok(number)
    }

    /// A number in parentheses.
    fn argument(&mut self) -> Result<u32, ParseError> {
        self.expect("(", "`(`")?;
        let number = self.number()?;
        self.expect(")", "`)`")?;
        Ok(number)
    }

    fn ty(&mut self, expected: &'static str) -> Result<Type, ParseError> {
        let name = self.peek();
        let start = self.position;
        if let Some((_, ty)) = Type::NAMED.iter().find(|(known, _)| *known == name) {
            self.position += name.len();
            return Ok(ty.clone());
        }
        if !matches!(name, "complex" | "[" | "struct" | "union") {
            return Err(if name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                ParseError::UnknownType { position: start, name: name.to_owned() }
            } else {
                self.unexpected(expected)
            });
        }
        self.position += name.len();
        let at_start = |error| ParseError::Type { position: start, error };
        if self.depth == MAX_TYPE_DEPTH {
            let limit = MAX_TYPE_DEPTH;
            return Err(at_start(TypeError::TooDeep { limit }));
        }
        self.depth += 1;
        let ty = match name {
            "complex" => {
                self.expect("<", "`<`")?;
                let float = match self.peek() {
                    "f32" => Float::F32,
                    "f64" => Float::F64,
                    "longdouble" => Float::LongDouble,
                    _ => return Err(self.unexpected("`f32`, `f64` or `longdouble`")),
                };
                self.position += self.peek().len();
                self.expect(">", "`>`")?;
                Type::Complex(float)
            }
            "[" => {
                let element = self.ty("a type")?;
                self.expect(";", "`;`")?;
                let length = self.number()?;
                self.expect("]", "`]`")?;
                Type::array(length, element).map_err(at_start)?
            }
            _ => {
                let mut spec = RecordSpec::default();
                loop {
                    if spec.packed.is_none() && self.take("packed") {
                        spec.packed = Some(self.argument()?);
                    } else if spec.align.is_none() && self.take("align") {
                        spec.align = Some(self.argument()?);
                    } else {
                        break;
                    }
                }
                self.expect("{", "`packed`, `align` or `{`")?;
                spec.fields = self.list("}", &mut Some(0), &FIELDS)?;
                let record = if name == "struct" { spec.into_struct() } else { spec.into_union() };
                record.map_err(at_start)?
            }
        };
        self.depth -= 1;
        Ok(ty)
    }
}

/// Why a text is no signature or type.
///
/// ```
/// use footbridge::abi::Signature;
///
/// let error = "fn(i64, int)".parse::<Signature>().expect_err("`int` is no type");
/// assert_eq!(error.position(), 8);
/// assert!(error.to_string().starts_with("signature, byte 8: there is no type `int`"));
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ParseError {
    /// The text has a token that cannot stand here.
    Unexpected {
        /// Byte offset in the text.
        position: usize,
        /// What can stand here.
        expected: &'static str,
        /// The token; empty at the end of the text.
        found: String,
    },
    /// A word stands where a type belongs, and names none.
    UnknownType {
        /// Byte offset in the text.
        position: usize,
        /// The word.
        name: String,
    },
    /// A number does not fit in 32 bits.
    NumberTooLarge {
        /// Byte offset in the text.
        position: usize,
        /// The number.
        digits: String,
    },
    /// The text describes a type that cannot be made.
    Type {
        /// Byte offset of the type in the text.
        position: usize,
        /// Why it cannot be made.
        error: TypeError,
    },
}

impl ParseError {
    /// The byte offset in the text at which the error was found.
    pub const fn position(&self) -> usize {
        match self {
            ParseError::Unexpected { position, .. }
            | ParseError::UnknownType { position, .. }
            | ParseError::NumberTooLarge { position, .. }
            | ParseError::Type { position, .. } => *position,
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signature, byte {}: ", self.position())?;
        match self {
            ParseError::Unexpected { expected, found, .. } if found.is_empty() => {
                write!(f, "expected {expected}, found the end of the text")
            }
            ParseError::Unexpected { expected, found, .. } => {
                write!(f, "expected {expected}, found `{found}`")
            }
            ParseError::UnknownType { name, .. } => {
                let known = Type::NAMED.map(|(name, _)| name).join(", ");
                write!(
                    f,
                    "there is no type `{name}`; use one of {known}, complex<..>, [..; n], \
                     struct {{ .. }}, union {{ .. }}"
                )
            }
            ParseError::NumberTooLarge { digits, .. } => {
                write!(f, "{digits} is too large, at most {} is accepted", u32::MAX)
            }
            ParseError::Type { error, .. } => error.fmt(f),
        }
    }
}

impl Error for ParseError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            ParseError::Type { error, .. } => Some(error),
            _ => None,
        }
    }
}
