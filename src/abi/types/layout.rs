//! Layout: size, alignment and field offsets, by the rules of each language.
//!
//! Sources: System V AMD64 psABI, 3.1.2 and Figure 3.1; AAPCS64, sections 5.1 to 5.9; the Go
//! compiler's `cmd/compile/internal/types/size.go`. They agree on every type that has no
//! fields, and C's rules for fields are the same on both machines. Two differences remain:
//!
//! * Go adds a byte after a field of size 0 at the end of a struct, so that its address is
//!   never that of the next object.
//! * `packed` and `align` exist in C only (GNU C's meaning: `packed` limits the alignment of every
//!   field, that of nested structs too, and does not reach into them).
//!
//! An empty struct or union has size 0, as in GNU C and Go; C++ and MSVC say otherwise.
//!
//! This file computes with sizes and alignments. It does not know types, so that `ty.rs` can use
//! it.

use super::limits::{self, TypeError};

/// The language whose rules place fields in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Language {
    /// C as GNU C has it.
    C,
    /// Go.
    Go,
}

/// The size and alignment of a type.
///
/// ```
/// use footbridge::abi::{Language, Type};
///
/// let layout = "struct { i8, i32 }".parse::<Type>()?.layout(Language::C);
/// assert_eq!((layout.size_bytes, layout.align_bytes), (8, 4));
/// # Ok::<(), footbridge::abi::ParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Layout {
    /// The size in bytes: a multiple of the alignment.
    pub size_bytes: u32,
    /// The alignment in bytes: a power of two.
    pub align_bytes: u32,
}

impl Layout {
    pub(super) const fn new(size_bytes: u32, align_bytes: u32) -> Layout {
        Layout { size_bytes, align_bytes }
    }
}

/// Elements back to back.
pub(super) fn array(length: u32, element: Layout) -> Result<Layout, TypeError> {
    // No overflow: both factors have 32 bits.
    let size = u64::from(length) * u64::from(element.size_bytes);
    Ok(Layout::new(limits::size(size)?, element.align_bytes))
}

/// Fields of a struct, one after the other: their offsets, and the layout of the whole. `align` is
/// the least alignment of the whole.
pub(super) fn structure(
    fields: &[Layout],
    align: u32,
    language: Language,
) -> Result<(Vec<u32>, Layout), TypeError> {
    let align = largest_align(fields, align);
    let mut end: u32 = 0;
    let mut offsets = Vec::with_capacity(fields.len());
    for field in fields {
        // No overflow: the end is at most 1 GiB, and so is the size.
        let offset = end.next_multiple_of(field.align_bytes);
        offsets.push(offset);
        end = limits::size(u64::from(offset) + u64::from(field.size_bytes))?;
    }
    let ends_empty = fields.last().is_some_and(|last| last.size_bytes == 0);
    if language == Language::Go && end > 0 && ends_empty {
        end += 1;
    }
    let size = limits::size(u64::from(end).next_multiple_of(align.into()))?;
    Ok((offsets, Layout::new(size, align)))
}

/// Fields of a union, all at offset 0: the same results.
pub(super) fn union(fields: &[Layout], align: u32) -> Result<(Vec<u32>, Layout), TypeError> {
    let align = largest_align(fields, align);
    let largest = fields.iter().map(|field| field.size_bytes).max();
    let size = u64::from(largest.unwrap_or(0)).next_multiple_of(align.into());
    Ok((vec![0; fields.len()], Layout::new(limits::size(size)?, align)))
}

fn largest_align(fields: &[Layout], least: u32) -> u32 {
    fields.iter().map(|field| field.align_bytes).fold(least, u32::max)
}
