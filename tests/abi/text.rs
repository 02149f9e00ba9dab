//! The text form of signatures: it round-trips, and errors name the position and the problem.
//!
//! `BLESS=1` rewrites the golden file of error messages.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{ParseError, RecordSpec, Signature, Type};

fn parse(text: &str) -> Result<Signature, ParseError> {
    text.parse()
}

/// A random type, with composites nested at most `depth` deep.
fn random_type(rng: &mut Xorshift, depth: u32) -> Type {
    let simple = Type::NAMED.len();
    let choice = rng.below(if depth == 0 { simple + 3 } else { simple + 24 });
    if let Some((_, ty)) = Type::NAMED.get(choice) {
        return ty.clone();
    }
    let made = match choice - simple {
        0 => return "complex<f32>".parse().expect("a type"),
        1 => return "complex<f64>".parse().expect("a type"),
        2 => return "complex<longdouble>".parse().expect("a type"),
        3..8 => Type::array(rng.below(5) as u32, random_type(rng, depth - 1)),
        kind => {
            let fields = (0..rng.below(5)).map(|_| random_type(rng, depth - 1));
            let mut spec = RecordSpec { fields: fields.collect(), ..RecordSpec::default() };
            if rng.below(5) == 0 {
                spec.packed = Some(1 << rng.below(5));
            }
            if rng.below(5) == 0 {
                spec.align = Some(1 << rng.below(7));
            }
            if kind < 19 { spec.into_struct() } else { spec.into_union() }
        }
    };
    made.expect("small")
}

#[test]
fn random_signatures_round_trip() {
    let mut rng = Xorshift::new(1);
    for _ in 0..if cfg!(miri) { 10 } else { 3000 } {
        let mut types = |max: usize| -> Vec<Type> {
            let n = rng.below(max + 1);
            (0..n).map(|_| random_type(&mut rng, 3)).collect()
        };
        let mut signature = Signature::new(types(9), types(4));
        if rng.below(3) == 0 {
            let named = rng.below(signature.params().len() + 1);
            signature = signature.variadic_after(named);
        }
        let text = signature.to_string();
        assert_eq!(parse(&text), Ok(signature), "{text}");
        for ty in parse(&text).expect("just parsed").params() {
            assert_eq!(ty.to_string().parse::<Type>().as_ref(), Ok(ty));
        }
    }
}

#[test]
fn spacing_and_optional_punctuation_do_not_matter() {
    for (canonical, others) in [
        (
            "fn(i64, f64) -> u8",
            &["fn(i64,f64)->u8", " fn\t( i64 ,\n f64 , ) -> ( u8 ) ", "fn(i64,f64,)->(u8,)"][..],
        ),
        ("fn()", &["fn ( ) -> ( )", "fn()->()"]),
        ("fn(ptr, ..., i32)", &["fn(ptr,...,i32,)", "fn ( ptr , ... , i32 )"]),
        ("fn(...)", &["fn(...,)"]),
        (
            "fn(struct packed(1) align(8) { i8, [u16; 3] }, complex<f32>, union {})",
            &["fn(struct align(8)packed(1){i8,[u16;3],},complex < f32 >,union{})"],
        ),
    ] {
        assert_eq!(parse(canonical).expect("well-formed").to_string(), canonical);
        for text in others {
            assert_eq!(parse(text), parse(canonical), "{text:?}");
        }
    }
}

/// Each text is malformed in a different way.
const MALFORMED: [&str; 44] = [
    "",
    "  ",
    "fnx()",
    "fn",
    "fn i64",
    "fn(",
    "fn(,)",
    "fn(i64 i64)",
    "fn(i64",
    "fn(i64,",
    "fn(int)",
    "fn(é)",
    "fn() -> ",
    "fn() -> i6",
    "fn() - > i64",
    "fn() i64",
    "fn()->i8 i8",
    "fn() -> (i8",
    "fn() -> (i8; i8)",
    "fn(..., ...)",
    "fn(..)",
    "fn() -> ...",
    "fn() -> (...)",
    "fn(struct)",
    "fn(struct i8)",
    "fn(struct { i8 )",
    "fn(struct { i8; i8 })",
    "fn(struct { ..., i8 })",
    "fn(struct packed { i8 })",
    "fn(struct packed(0) { i8 })",
    "fn(struct packed(x) { i8 })",
    "fn(struct packed(1) packed(1) { i8 })",
    "fn(struct align(12) { i8 })",
    "fn(struct align(8192) {})",
    "fn(union { i8, , i8 })",
    "fn([i8])",
    "fn([i8; ])",
    "fn([i8; -1])",
    "fn([i8; 99999999999])",
    "fn([i64; 4000000000])",
    "fn([i8; 4)",
    "fn(complex)",
    "fn(complex<i8>)",
    "fn(complex<f32, f32>)",
];

#[test]
fn malformed_texts_say_where_and_what() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/abi/malformed.txt");
    let found: String = MALFORMED
        .iter()
        .map(|text| {
            let error = parse(text).expect_err(text);
            assert!(text.is_char_boundary(error.position()), "{text:?}");
            format!("{text:?}\n    {error}\n")
        })
        .collect();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &found).expect("the golden file is writable");
        return;
    }
    assert_eq!(found, include_str!("../data/abi/malformed.txt"));
}

#[test]
fn nesting_is_limited_before_the_stack_overflows() {
    for open in ["[", "struct {", "union packed(1) {"] {
        let text = format!("fn({}", open.repeat(200_000));
        let error = parse(&text).expect_err("too deep").to_string();
        assert!(error.ends_with("nested more than 64 deep; pass a pointer instead"), "{error}");
    }
}

#[test]
fn no_text_makes_the_parser_panic() {
    let pieces = [
        "fn",
        "(",
        ")",
        ",",
        "->",
        "-",
        ">",
        "i64",
        "é",
        " ",
        "\u{2003}",
        "_",
        "struct",
        "{",
        "}",
        "packed",
        "align",
        "[",
        "]",
        ";",
        "4",
        "0",
        "...",
        ".",
        "complex",
        "<",
        "f32",
        "union",
        "99999999999999999999",
    ];
    let mut rng = Xorshift::new(2);
    for _ in 0..if cfg!(miri) { 50 } else { 20_000 } {
        let mut text = String::from(["", "fn(", "fn(struct {", "fn() ->"][rng.below(4)]);
        for _ in 0..rng.below(12) {
            text += pieces[rng.below(pieces.len())];
        }
        match parse(&text) {
            Ok(signature) => assert_eq!(parse(&signature.to_string()), Ok(signature)),
            Err(error) => assert!(text.is_char_boundary(error.position()), "{text:?}"),
        }
    }
}
