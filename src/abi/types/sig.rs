//! Signatures: the types of a call's parameters and results, and how they are printed.
//!
//! This file never says where a value lives; conventions do.

use std::fmt;

use super::ty::Type;

/// The types of the parameters and of the results of a function.
///
/// The text form is that of a Rust function pointer, with any number of results: `fn()`,
/// `fn(i64, f64) -> u8`, `fn(ptr) -> (i64, bool)`. Printing and parsing round-trip. The parser
/// also accepts other spacing, `-> ()`, parentheses around a single result and a trailing comma.
///
/// `fn(ptr, ..., i32, f64) -> i32` is one call of a variadic C function: the parameters after
/// `...` are the arguments that this call passes beyond the named ones.
///
/// ```
/// use footbridge::abi::{Signature, Type};
///
/// let signature = Signature::new([Type::Ptr, Type::F64], [Type::I32]);
/// assert_eq!(signature.to_string(), "fn(ptr, f64) -> i32");
/// assert_eq!((signature.params().len(), signature.results()), (2, &[Type::I32][..]));
///
/// // printf("%f", x)
/// let printf = signature.variadic_after(1);
/// assert_eq!(printf.to_string(), "fn(ptr, ..., f64) -> i32");
/// assert_eq!(printf.named_params(), Some(1));
/// assert!(!printf.is_unnamed(0) && printf.is_unnamed(1));
/// assert_eq!("fn(ptr, ..., f64) -> (i32)".parse::<Signature>()?, printf);
///
/// assert_eq!(printf.with_param(Type::I8).to_string(), "fn(ptr, ..., f64, i8) -> i32");
/// assert_eq!(printf.with_first_param(Type::I8).to_string(), "fn(i8, ptr, ..., f64) -> i32");
/// # Ok::<(), footbridge::abi::ParseError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Signature {
    params: Vec<Type>,
    results: Vec<Type>,
    /// The number of named parameters of a variadic function.
    named: Option<usize>,
}

impl Signature {
    /// A signature with these parameter and result types.
    pub fn new(params: impl Into<Vec<Type>>, results: impl Into<Vec<Type>>) -> Self {
        Self { params: params.into(), results: results.into(), named: None }
    }

    /// The same signature as a call of a variadic function. The first `named` parameters are named;
    /// the others stand in the place of its `...`.
    ///
    /// # Panics
    ///
    /// If there are fewer parameters.
    #[must_use]
    pub fn variadic_after(mut self, named: usize) -> Signature {
        assert!(named <= self.params.len(), "named parameters are parameters");
        self.named = Some(named);
        self
    }

    /// The number of named parameters, if this is a call of a variadic function.
    pub const fn named_params(&self) -> Option<usize> {
        self.named
    }

    /// Whether the parameter with this index stands in the place of `...`.
    pub fn is_unnamed(&self, index: usize) -> bool {
        self.named.is_some_and(|named| index >= named)
    }

    /// The types of the parameters, in order.
    pub fn params(&self) -> &[Type] {
        &self.params
    }

    /// The types of the results, in order.
    pub fn results(&self) -> &[Type] {
        &self.results
    }

    /// The signature with one more parameter at the end.
    #[must_use]
    pub fn with_param(&self, ty: Type) -> Signature {
        let mut longer = self.clone();
        longer.params.push(ty);
        longer
    }

    /// The signature with one more parameter at the front, a named one.
    #[must_use]
    pub fn with_first_param(&self, ty: Type) -> Signature {
        let mut longer = self.clone();
        longer.params.insert(0, ty);
        longer.named = longer.named.map(|named| named + 1);
        longer
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fn")?;
        write_list(f, &self.params, self.named)?;
        match self.results.as_slice() {
            [] => Ok(()),
            [only] => write!(f, " -> {only}"),
            several => {
                f.write_str(" -> ")?;
                write_list(f, several, None)
            }
        }
    }
}

/// Writes `(i64, f64)`, with `...` before the type with index `variadic_at`.
fn write_list(
    f: &mut fmt::Formatter<'_>,
    types: &[Type],
    variadic_at: Option<usize>,
) -> fmt::Result {
    f.write_str("(")?;
    let mut separator = "";
    for i in 0..=types.len() {
        if variadic_at == Some(i) {
            write!(f, "{separator}...")?;
            separator = ", ";
        }
        if let Some(ty) = types.get(i) {
            write!(f, "{separator}{ty}")?;
            separator = ", ";
        }
    }
    f.write_str(")")
}

/// A parameter or result of a signature, by its index from 0.
///
/// ```
/// use footbridge::abi::ValueIndex;
///
/// assert_eq!(ValueIndex::Param(1).to_string(), "parameter 1");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ValueIndex {
    /// The parameter with this index.
    Param(usize),
    /// The result with this index.
    Result(usize),
}

impl fmt::Display for ValueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueIndex::Param(index) => write!(f, "parameter {index}"),
            ValueIndex::Result(index) => write!(f, "result {index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_like_a_rust_function_pointer() {
        let show = |p: &[Type], r: &[Type]| Signature::new(p, r).to_string();
        assert_eq!(show(&[], &[]), "fn()");
        assert_eq!(show(&[Type::I64, Type::F64], &[Type::U8]), "fn(i64, f64) -> u8");
        assert_eq!(show(&[Type::Ptr], &[Type::I64, Type::Bool]), "fn(ptr) -> (i64, bool)");
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
    fn with_first_param_keeps_the_place_of_the_dots() {
        let variadic: Signature = "fn(i8, ..., f64)".parse().expect("a signature");
        assert_eq!(variadic.with_first_param(Type::Ptr).to_string(), "fn(ptr, i8, ..., f64)");
        assert_eq!(variadic.with_param(Type::Ptr).to_string(), "fn(i8, ..., f64, ptr)");
    }
}
