//! Layouts of whole types. They are here and not in `layout.rs` because they need the parser.

use std::error::Error;

use super::layout::{Language, Layout};
use super::limits::{MAX_TYPE_BYTES, MAX_TYPE_MENTIONS, TypeError};
use super::sig::Signature;
use super::ty::Type;

fn ty(text: &str) -> Type {
    text.parse().expect("a type")
}

/// Sizes, alignments and offsets as gcc 12 gives them on amd64 and AArch64 (`sizeof`,
/// `_Alignof`, `offsetof`), and the Go compiler's where it knows the type.
#[test]
fn layout_table() {
    let c_and_go = [
        ("struct {}", (0, 1), (0, 1)),
        ("[i64; 0]", (0, 8), (0, 8)),
        ("[struct {}; 1000000000]", (0, 1), (0, 1)),
        ("complex<f32>", (8, 4), (8, 4)),
        ("complex<f64>", (16, 8), (16, 8)),
        ("complex<longdouble>", (32, 16), (32, 16)),
        ("struct { i8, i64, i8 }", (24, 8), (24, 8)),
        ("struct { i8, i16, i8 }", (6, 2), (6, 2)),
        ("struct { i64, struct {} }", (8, 8), (16, 8)),
        ("struct { u8, struct {} }", (1, 1), (2, 1)),
        ("struct { i32, [i64; 0] }", (8, 8), (16, 8)),
        ("struct { struct {}, i32 }", (4, 4), (4, 4)),
        ("struct { struct { u8, struct {} }, u8 }", (2, 1), (3, 1)),
        ("[struct { i64, struct {} }; 3]", (24, 8), (48, 8)),
        ("struct { string, slice, any, iface, map }", (80, 8), (80, 8)),
    ];
    for (text, c, go) in c_and_go {
        let of = |language| {
            let layout = ty(text).layout(language);
            (layout.size_bytes, layout.align_bytes)
        };
        assert_eq!(of(Language::C), c, "{text} in C");
        assert_eq!(of(Language::Go), go, "{text} in Go");
    }
    for (text, size, align, offsets) in [
        ("struct { i8, i128 }", 32, 16, &[0, 16][..]),
        ("struct { i8, longdouble, i8 }", 48, 16, &[0, 16, 32]),
        ("struct packed(1) { i8, i64, i16 }", 11, 1, &[0, 1, 9]),
        ("struct packed(2) { i8, i64, i8 }", 12, 2, &[0, 2, 10]),
        ("struct packed(1) align(4) { i8, i64 }", 12, 4, &[0, 1]),
        ("struct align(16) { i64 }", 16, 16, &[0]),
        ("struct align(1) { i64 }", 8, 8, &[0]),
        ("struct { i8, struct align(32) { i8 } }", 64, 32, &[0, 32]),
        ("struct packed(1) { i8, struct { i8, i32 } }", 9, 1, &[0, 1]),
        ("struct packed(4) { i8, struct align(16) { i8 } }", 20, 4, &[0, 4]),
        ("struct { v64, v256 }", 64, 32, &[0, 32]),
        ("union { i8, [i16; 3], f32 }", 8, 4, &[0, 0, 0]),
        ("union packed(1) { i8, i64, [i8; 9] }", 9, 1, &[0, 0, 0]),
        ("union {}", 0, 1, &[]),
    ] {
        let ty = ty(text);
        assert_eq!(ty.layout(Language::C), Layout::new(size, align), "{text}");
        let (Type::Struct(record) | Type::Union(record)) = &ty else { unreachable!() };
        let found: Vec<u32> = record.fields(Language::C).map(|(offset, _)| offset).collect();
        assert_eq!(found, offsets, "{text}");
    }
}

#[test]
fn sizes_agree_with_rust() {
    let rust = [
        ("bool", size_of::<bool>(), align_of::<bool>()),
        ("i16", size_of::<i16>(), align_of::<i16>()),
        ("u32", size_of::<u32>(), align_of::<u32>()),
        ("f32", size_of::<f32>(), align_of::<f32>()),
        ("f64", size_of::<f64>(), 8),
        ("i64", size_of::<i64>(), 8),
        ("i128", size_of::<i128>(), 16),
    ];
    for (text, size, align) in rust {
        let layout = ty(text).layout(Language::C);
        assert_eq!(layout.size_bytes as usize, size, "{text}");
        assert_eq!(layout.align_bytes as usize, align, "{text}");
    }
}

#[test]
fn padding_is_no_data() {
    let data = |text| -> String {
        let bytes = ty(text).data_bytes(Language::C);
        bytes.iter().map(|b| if *b { 'x' } else { '.' }).collect()
    };
    assert_eq!(data("struct { i8, i16, i8 }"), "x.xxx.");
    assert_eq!(data("union { struct { i8, i32 }, i16 }"), "xx..xxxx");
    assert_eq!(data("[struct { i16, i8 }; 2]"), "xxx.xxx.");
    assert_eq!(data("struct align(4) {}"), "");
    assert_eq!(data("string"), "x".repeat(16));
}

#[test]
fn limits() {
    let error = |text: &str| text.parse::<Type>().expect_err("too much").to_string();
    let nested = |n: usize| format!("{}i8{}", "[".repeat(n), "; 1]".repeat(n));
    assert!(nested(64).parse::<Type>().is_ok());
    assert!(error(&nested(65)).ends_with("nested more than 64 deep; pass a pointer instead"));
    assert!(error(&nested(100_000)).contains("nested more than 64 deep"));
    assert!("[i8; 1073741824]".parse::<Type>().is_ok());
    for text in [
        "[i8; 1073741825]",
        "[[i64; 4294967295]; 4294967295]",
        "struct { [i8; 1073741824], i8 }",
        "struct align(4096) { [i8; 1073741823], i16 }",
    ] {
        assert!(error(text).contains("larger than 1073741824 bytes"), "{text}");
    }
    // Doubling a shared type never takes longer than the limit allows.
    let mut doubled = Type::structure([]).expect("small");
    let error = loop {
        match Type::structure([doubled.clone(), doubled]) {
            Ok(next) => doubled = next,
            Err(error) => break error,
        }
    };
    assert_eq!(error, TypeError::TooManyMentions { limit: MAX_TYPE_MENTIONS });
}

#[test]
fn the_error_of_a_text_has_the_error_of_its_type_as_source() {
    let error = "fn([[i64; 4294967295]; 4294967295])".parse::<Signature>().expect_err("too large");
    let source = error.source().and_then(|source| source.downcast_ref());
    assert_eq!(source, Some(&TypeError::TooLarge { limit_bytes: MAX_TYPE_BYTES }));
    assert!("fn(int)".parse::<Signature>().expect_err("no type").source().is_none());
}
