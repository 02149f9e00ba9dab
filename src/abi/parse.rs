//! The parser of the text form of signatures.
//!
//! Grammar, with white space allowed between tokens:
//!
//! ```text
//! signature = "fn" list [ "->" ( type | list ) ]
//! list      = "(" [ type { "," type } [ "," ] ] ")"
//! type      = "bool" | "i8" | ... | "ptr"
//! ```
//!
//! This file never panics on any text, and every error says at which byte.

use std::str::FromStr;

use super::error::ParseError;
use super::sig::{Signature, Type};

impl FromStr for Signature {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut tokens = Tokens { text, position: 0 };
        tokens.expect("fn", "`fn`")?;
        let params = tokens.list()?;
        let results = if tokens.take("->") {
            if tokens.peek() == "(" {
                tokens.list()?
            } else {
                vec![tokens.ty("a type or `(`")?]
            }
        } else {
            Vec::new()
        };
        tokens.expect("", "`->` or the end")?;
        Ok(Signature::new(params, results))
    }
}

/// The text that is still to be read.
struct Tokens<'a> {
    text: &'a str,
    /// Byte offset of the next unread character. After `peek`, that of the next token.
    position: usize,
}

impl<'a> Tokens<'a> {
    /// The next token: a word, `->`, any other single character, or `""` at the end.
    fn peek(&mut self) -> &'a str {
        let rest = self.text[self.position..].trim_start();
        self.position = self.text.len() - rest.len();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = match rest.chars().next() {
            None => 0,
            Some(c) if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            Some(_) if rest.starts_with("->") => 2,
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
        if self.take(token) {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn unexpected(&mut self, expected: &'static str) -> ParseError {
        let found = self.peek().to_owned();
        ParseError::Unexpected {
            position: self.position,
            expected,
            found,
        }
    }

    /// A parenthesised list of types.
    fn list(&mut self) -> Result<Vec<Type>, ParseError> {
        self.expect("(", "`(`")?;
        let mut types = Vec::new();
        while !self.take(")") {
            types.push(self.ty("a type or `)`")?);
            if !self.take(",") && self.peek() != ")" {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        Ok(types)
    }

    fn ty(&mut self, expected: &'static str) -> Result<Type, ParseError> {
        let name = self.peek();
        if let Some(ty) = Type::ALL.into_iter().find(|ty| ty.name() == name) {
            self.position += name.len();
            Ok(ty)
        } else if name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            Err(ParseError::UnknownType {
                position: self.position,
                name: name.to_owned(),
            })
        } else {
            Err(self.unexpected(expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::interp::Xorshift;

    fn parse(text: &str) -> Result<Signature, ParseError> {
        text.parse()
    }

    #[test]
    fn spacing_and_optional_punctuation_do_not_matter() {
        let expected = Signature::new([Type::I64, Type::F64], [Type::U8]);
        for text in [
            "fn(i64, f64) -> u8",
            "fn(i64,f64)->u8",
            " fn\t( i64 ,\n f64 , ) -> ( u8 ) ",
            "fn(i64,f64,)->(u8,)",
        ] {
            assert_eq!(parse(text), Ok(expected.clone()), "{text:?}");
        }
        let nothing = Signature::new([], []);
        for text in ["fn()", "fn ( ) -> ( )", "fn()->()"] {
            assert_eq!(parse(text), Ok(nothing.clone()), "{text:?}");
        }
    }

    #[test]
    fn errors_say_where_and_what() {
        let unexpected = |position, expected, found: &str| {
            Err(ParseError::Unexpected {
                position,
                expected,
                found: found.to_owned(),
            })
        };
        let unknown = |position, name: &str| {
            Err(ParseError::UnknownType {
                position,
                name: name.to_owned(),
            })
        };
        assert_eq!(parse(""), unexpected(0, "`fn`", ""));
        assert_eq!(parse("  "), unexpected(2, "`fn`", ""));
        assert_eq!(parse("fnx()"), unexpected(0, "`fn`", "fnx"));
        assert_eq!(parse("fn"), unexpected(2, "`(`", ""));
        assert_eq!(parse("fn i64"), unexpected(3, "`(`", "i64"));
        assert_eq!(parse("fn("), unexpected(3, "a type or `)`", ""));
        assert_eq!(parse("fn(,)"), unexpected(3, "a type or `)`", ","));
        assert_eq!(parse("fn(i64 i64)"), unexpected(7, "`,` or `)`", "i64"));
        assert_eq!(parse("fn(i64"), unexpected(6, "`,` or `)`", ""));
        assert_eq!(parse("fn(int)"), unknown(3, "int"));
        assert_eq!(parse("fn(é)"), unexpected(3, "a type or `)`", "é"));
        assert_eq!(parse("fn() -> "), unexpected(8, "a type or `(`", ""));
        assert_eq!(parse("fn() -> i6"), unknown(8, "i6"));
        assert_eq!(parse("fn() - > i64"), unexpected(5, "`->` or the end", "-"));
        assert_eq!(parse("fn() i64"), unexpected(5, "`->` or the end", "i64"));
        assert_eq!(parse("fn()->i8 i8"), unexpected(9, "`->` or the end", "i8"));
    }

    #[test]
    fn error_text() {
        let message = |text| parse(text).expect_err("malformed").to_string();
        assert_eq!(
            message("fn(i64"),
            "signature, byte 6: expected `,` or `)`, found the end of the text"
        );
        assert_eq!(
            message("fn(int)"),
            "signature, byte 3: there is no type `int`; use one of bool, i8, i16, i32, i64, u8, \
             u16, u32, u64, isize, usize, f32, f64, ptr"
        );
    }

    #[test]
    fn random_signatures_round_trip() {
        let mut rng = Xorshift::new(1);
        for _ in 0..if cfg!(miri) { 10 } else { 200 } {
            let mut types = |max: usize| -> Vec<Type> {
                let n = rng.below(max + 1);
                (0..n)
                    .map(|_| Type::ALL[rng.below(Type::ALL.len())])
                    .collect()
            };
            let signature = Signature::new(types(9), types(4));
            assert_eq!(parse(&signature.to_string()), Ok(signature));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let pieces = [
            "fn", "(", ")", ",", "->", "-", ">", "i64", "é", " ", "\u{2003}", "_",
        ];
        let mut rng = Xorshift::new(2);
        for _ in 0..if cfg!(miri) { 50 } else { 1000 } {
            let text: String = (0..rng.below(9))
                .map(|_| pieces[rng.below(pieces.len())])
                .collect();
            if let Err(error) = parse(&text) {
                assert!(text.is_char_boundary(error.position()), "{text:?}");
            }
        }
    }
}
