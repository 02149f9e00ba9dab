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
//! The parameters behind `...` are the arguments of one call of a variadic function.
//!
//! This file never panics on any text, recurses no deeper than types may be nested, and every
//! error says at which byte.

use std::str::FromStr;

use super::error::{ParseError, TypeError};
use super::sig::Signature;
use super::ty::{Float, MAX_TYPE_DEPTH, RecordSpec, Type};

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

/// What a list says when something else stands there: in place of an item, and behind one.
struct Expected {
    item: &'static str,
    next: &'static str,
}

const PARAMS: Expected = Expected { item: "a type, `...` or `)`", next: "`,` or `)`" };
const MORE_PARAMS: Expected = Expected { item: "a type or `)`", next: "`,` or `)`" };
const RESULTS: Expected = MORE_PARAMS;
const FIELDS: Expected = Expected { item: "a type or `}`", next: "`,` or `}`" };

/// The text that is still to be read.
struct Tokens<'a> {
    text: &'a str,
    /// Byte offset of the next unread character. After `peek`, that of the next token.
    position: usize,
    /// Composite types that are open.
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

    /// Steps over `token`, which errors describe as `expected`.
    fn expect(&mut self, token: &str, expected: &'static str) -> Result<(), ParseError> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn unexpected(&mut self, expected: &'static str) -> ParseError {
        let found = self.peek().to_owned();
        ParseError::Unexpected { position: self.position, expected, found }
    }

    /// The types up to `close`. While `variadic_at` is `None`, `...` may stand among them; then it
    /// becomes the number of types before it.
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

    /// A number, up to 32 bits.
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
