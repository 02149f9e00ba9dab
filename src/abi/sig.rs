//! Signatures: the types of a call's parameters and results, and how they are printed.
//!
//! This file never says where a value lives: that is the business of a convention.

use std::fmt;

use super::loc::RegClass;

/// The type of one value, as far as a calling convention can tell types apart.
///
/// Sizes and alignments are those of the 64-bit machines that this crate knows: System V
/// AMD64 psABI, Figure 3.1 (scalar types), and Go's `cmd/compile/abi-internal.md`, "Memory
/// layout", agree on all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Type {
    /// A truth value: one byte that is 0 or 1.
    Bool,
    /// A signed 8-bit integer.
    I8,
    /// A signed 16-bit integer.
    I16,
    /// A signed 32-bit integer.
    I32,
    /// A signed 64-bit integer.
    I64,
    /// An unsigned 8-bit integer.
    U8,
    /// An unsigned 16-bit integer.
    U16,
    /// An unsigned 32-bit integer.
    U32,
    /// An unsigned 64-bit integer.
    U64,
    /// A signed integer of the size of a pointer.
    Isize,
    /// An unsigned integer of the size of a pointer.
    Usize,
    /// An IEEE 754 binary32 number.
    F32,
    /// An IEEE 754 binary64 number.
    F64,
    /// A pointer to anything, or the address of code.
    Ptr,
}

impl Type {
    /// Every type, in the order of the declaration.
    pub const ALL: [Type; 14] = [
        Type::Bool,
        Type::I8,
        Type::I16,
        Type::I32,
        Type::I64,
        Type::U8,
        Type::U16,
        Type::U32,
        Type::U64,
        Type::Isize,
        Type::Usize,
        Type::F32,
        Type::F64,
        Type::Ptr,
    ];

    /// The type's name in the text form of a signature, such as `u8`.
    pub const fn name(self) -> &'static str {
        match self {
            Type::Bool => "bool",
            Type::I8 => "i8",
            Type::I16 => "i16",
            Type::I32 => "i32",
            Type::I64 => "i64",
            Type::U8 => "u8",
            Type::U16 => "u16",
            Type::U32 => "u32",
            Type::U64 => "u64",
            Type::Isize => "isize",
            Type::Usize => "usize",
            Type::F32 => "f32",
            Type::F64 => "f64",
            Type::Ptr => "ptr",
        }
    }

    /// The size of a value in memory, in bytes.
    pub const fn size_bytes(self) -> u32 {
        match self {
            Type::Bool | Type::I8 | Type::U8 => 1,
            Type::I16 | Type::U16 => 2,
            Type::I32 | Type::U32 | Type::F32 => 4,
            Type::I64 | Type::U64 | Type::Isize | Type::Usize | Type::F64 | Type::Ptr => 8,
        }
    }

    /// The alignment of a value in memory, in bytes. Every scalar is aligned to its size.
    pub const fn align_bytes(self) -> u32 {
        self.size_bytes()
    }

    /// The class of register that can hold a value.
    pub const fn class(self) -> RegClass {
        match self {
            Type::F32 | Type::F64 => RegClass::Xmm,
            _ => RegClass::Gpr,
        }
    }

    /// Whether this is a signed integer, one that is widened by copies of its sign bit.
    ///
    /// Floats are not integers and answer `false`.
    pub const fn is_signed(self) -> bool {
        matches!(
            self,
            Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Isize
        )
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The types of the parameters and of the results of a function.
///
/// The text form is that of a Rust function pointer, with any number of results: `fn()`,
/// `fn(i64, f64) -> u8`, `fn(ptr) -> (i64, bool)`. Printing and parsing round-trip; the parser
/// also takes other spacing, `-> ()`, parentheses around a single result and a trailing comma.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Signature {
    params: Vec<Type>,
    results: Vec<Type>,
}

impl Signature {
    /// A signature with these parameter and result types.
    pub fn new(params: impl Into<Vec<Type>>, results: impl Into<Vec<Type>>) -> Self {
        Self {
            params: params.into(),
            results: results.into(),
        }
    }

    /// The types of the parameters, in order.
    pub fn params(&self) -> &[Type] {
        &self.params
    }

    /// The types of the results, in order.
    pub fn results(&self) -> &[Type] {
        &self.results
    }

    /// The same signature with one more parameter at the end.
    #[must_use]
    pub fn with_param(&self, ty: Type) -> Signature {
        let mut longer = self.clone();
        longer.params.push(ty);
        longer
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fn")?;
        write_list(f, &self.params)?;
        match self.results.as_slice() {
            [] => Ok(()),
            [only] => write!(f, " -> {only}"),
            several => {
                f.write_str(" -> ")?;
                write_list(f, several)
            }
        }
    }
}

/// Writes `(i64, f64)`.
fn write_list(f: &mut fmt::Formatter<'_>, types: &[Type]) -> fmt::Result {
    f.write_str("(")?;
    for (i, ty) in types.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        write!(f, "{separator}{ty}")?;
    }
    f.write_str(")")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_like_a_rust_function_pointer() {
        let show = |p: &[Type], r: &[Type]| Signature::new(p, r).to_string();
        assert_eq!(show(&[], &[]), "fn()");
        assert_eq!(
            show(&[Type::I64, Type::F64], &[Type::U8]),
            "fn(i64, f64) -> u8"
        );
        assert_eq!(
            show(&[Type::Ptr], &[Type::I64, Type::Bool]),
            "fn(ptr) -> (i64, bool)"
        );
    }

    #[test]
    fn with_param_appends_and_leaves_the_original() {
        let one = Signature::new([Type::I8], [Type::F32]);
        let two = one.with_param(Type::Ptr);
        assert_eq!(two.params(), [Type::I8, Type::Ptr]);
        assert_eq!(two.results(), one.results());
        assert_eq!(one.params(), [Type::I8]);
    }

    #[test]
    fn sizes_agree_with_rust() {
        let rust = [
            (Type::Bool, size_of::<bool>(), align_of::<bool>()),
            (Type::I16, size_of::<i16>(), align_of::<i16>()),
            (Type::U32, size_of::<u32>(), align_of::<u32>()),
            (Type::F32, size_of::<f32>(), align_of::<f32>()),
            (Type::F64, size_of::<f64>(), 8),
            (Type::I64, size_of::<i64>(), 8),
        ];
        for (ty, size, align) in rust {
            assert_eq!(ty.size_bytes() as usize, size, "{ty}");
            assert_eq!(ty.align_bytes() as usize, align, "{ty}");
        }
    }
}
