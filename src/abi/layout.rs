//! Layout: size, alignment and field offsets, by the rules of each language.
//!
//! Sources: System V AMD64 psABI, 3.1.2 and Figure 3.1; AAPCS64, sections 5.1 to 5.9; the Go
//! compiler's `cmd/compile/internal/types/size.go`. They agree on every type that has no
//! fields, and C's rules for fields are the same on both machines. The differences that are
//! left:
//!
//! * Go adds a byte behind a field of size 0 at the end of a struct, so that its address is
//!   never that of the next object.
//! * `packed` and `align` exist in C only (GNU C's meaning: `packed` limits the alignment of every
//!   field, that of nested structs too, and does not reach into them).
//!
//! An empty struct or union has size 0, as in GNU C and Go; C++ and MSVC say otherwise.

use super::error::TypeError;
use super::ty::{Float, MAX_TYPE_BYTES, RecordSpec, Type};

/// Whose rules place fields in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Language {
    /// C as GNU C has it.
    C,
    /// Go.
    Go,
}

/// The size and alignment of a type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Layout {
    /// The size in bytes: a multiple of the alignment.
    pub size_bytes: u32,
    /// The alignment in bytes: a power of two.
    pub align_bytes: u32,
}

impl Layout {
    const fn new(size_bytes: u32, align_bytes: u32) -> Layout {
        Layout { size_bytes, align_bytes }
    }
}

/// The layout of a type that is not composite. Alignment is size, except that complex numbers
/// are aligned like their parts and Go's structs of words like words.
pub(super) fn simple(ty: &Type) -> Layout {
    let aligned = |size| Layout::new(size, size);
    match ty {
        Type::Bool | Type::I8 | Type::U8 => aligned(1),
        Type::I16 | Type::U16 => aligned(2),
        Type::I32 | Type::U32 | Type::F32 => aligned(4),
        Type::I64 | Type::U64 | Type::Isize | Type::Usize | Type::F64 => aligned(8),
        Type::Ptr | Type::Managed | Type::GoFunc | Type::GoChan | Type::GoMap => aligned(8),
        Type::I128 | Type::U128 | Type::LongDouble => aligned(16),
        Type::Complex(Float::F32) => Layout::new(8, 4),
        Type::Complex(Float::F64) => Layout::new(16, 8),
        Type::Complex(Float::LongDouble) => Layout::new(32, 16),
        Type::Vector(width) => aligned(width.bytes()),
        Type::GoString | Type::GoAny | Type::GoIface => Layout::new(16, 8),
        Type::GoSlice => Layout::new(24, 8),
        Type::Array(_) | Type::Struct(_) | Type::Union(_) => {
            unreachable!("composite types keep their layout")
        }
    }
}

fn limited(size: Option<u64>) -> Result<u32, TypeError> {
    match size.and_then(|size| u32::try_from(size).ok()) {
        Some(size) if size <= MAX_TYPE_BYTES => Ok(size),
        _ => Err(TypeError::TooLarge { limit_bytes: MAX_TYPE_BYTES }),
    }
}

/// Elements back to back.
pub(super) fn array(length: u32, element: Layout) -> Result<Layout, TypeError> {
    // No overflow: both factors have 32 bits.
    let size = u64::from(length) * u64::from(element.size_bytes);
    Ok(Layout::new(limited(Some(size))?, element.align_bytes))
}

/// The layout of each field as it counts in a record, and the alignment of the whole.
fn fields(spec: &RecordSpec, language: Language) -> (Vec<Layout>, u32) {
    let packed = spec.packed.unwrap_or(u32::MAX);
    let fields = spec.fields.iter().map(|field| {
        let Layout { size_bytes, align_bytes } = field.layout(language);
        Layout::new(size_bytes, align_bytes.min(packed))
    });
    let fields: Vec<Layout> = fields.collect();
    let aligns = fields.iter().map(|field| field.align_bytes);
    let align = aligns.chain(spec.align).max().unwrap_or(1);
    (fields, align)
}

/// The offsets of the fields, and the layout of the whole.
pub(super) fn structure(
    spec: &RecordSpec,
    language: Language,
) -> Result<(Vec<u32>, Layout), TypeError> {
    let (fields, align) = fields(spec, language);
    let mut end: u32 = 0;
    let mut offsets = Vec::with_capacity(fields.len());
    for field in &fields {
        // No overflow: the end is at most 1 GiB, and so is the size.
        let offset = end.next_multiple_of(field.align_bytes);
        offsets.push(offset);
        end = limited(Some(u64::from(offset) + u64::from(field.size_bytes)))?;
    }
    let ends_empty = fields.last().is_some_and(|last| last.size_bytes == 0);
    if language == Language::Go && end > 0 && ends_empty {
        end += 1;
    }
    let size = limited(Some(u64::from(end).next_multiple_of(align.into())))?;
    Ok((offsets, Layout::new(size, align)))
}

/// The same for a union: all offsets are 0.
pub(super) fn union(
    spec: &RecordSpec,
    language: Language,
) -> Result<(Vec<u32>, Layout), TypeError> {
    let (fields, align) = fields(spec, language);
    let largest = fields.iter().map(|field| field.size_bytes).max();
    let size = u64::from(largest.unwrap_or(0)).next_multiple_of(align.into());
    Ok((vec![0; fields.len()], Layout::new(limited(Some(size))?, align)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let limit = super::super::ty::MAX_TYPE_MENTIONS;
        assert_eq!(error, TypeError::TooManyMentions { limit });
    }
}
