//! The parts of a type that have no parts themselves.

use std::convert::Infallible;
use std::ops::ControlFlow;

use super::layout::Language;
use super::ty::Type;

impl Type {
    /// Visits every part that has no parts itself, with its byte offset plus `base`, in the order
    /// of memory. All fields of a union are visited.
    ///
    /// The parts of complex numbers, strings, slices and interfaces are visited. Elements of size 0
    /// are not, so that the size of the type limits the number of calls.
    ///
    /// ```
    /// use footbridge::abi::{Language, Type};
    ///
    /// let ty: Type = "struct { i8, string }".parse()?;
    /// let mut leaves = Vec::new();
    /// ty.each_leaf(Language::Go, 0, &mut |offset, leaf| leaves.push((offset, leaf.clone())));
    /// assert_eq!(leaves, [(0, Type::I8), (8, Type::Ptr), (16, Type::Isize)]);
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn each_leaf(&self, language: Language, base: u32, each: &mut dyn FnMut(u32, &Type)) {
        let ControlFlow::Continue(()) =
            self.try_each_leaf::<Infallible>(language, base, &mut |offset, leaf| {
                each(offset, leaf);
                ControlFlow::Continue(())
            });
    }

    /// [`Type::each_leaf`] with a visitor that can end the visit.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use footbridge::abi::{Language, Type};
    ///
    /// let ty: Type = "[struct { i64, f64 }; 1000]".parse()?;
    /// let float = ty.try_each_leaf(Language::C, 0, &mut |offset, leaf| match leaf {
    ///     Type::F64 => ControlFlow::Break(offset),
    ///     _ => ControlFlow::Continue(()),
    /// });
    /// assert_eq!(float, ControlFlow::Break(8));
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn try_each_leaf<B>(
        &self,
        language: Language,
        base: u32,
        each: &mut dyn FnMut(u32, &Type) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut words = |types: &[Type]| {
            let mut types = types.iter().zip((base..).step_by(8));
            types.try_for_each(|(ty, offset)| each(offset, ty))
        };
        match self {
            Type::GoString => words(&[Type::Ptr, Type::Isize]),
            Type::GoSlice => words(&[Type::Ptr, Type::Isize, Type::Isize]),
            Type::GoAny | Type::GoIface => words(&[Type::Ptr, Type::Ptr]),
            Type::Complex(float) => {
                let part = float.ty();
                each(base, &part)?;
                each(base + part.layout(language).size_bytes, &part)
            }
            Type::Array(array) => {
                let size = array.element().layout(language).size_bytes;
                let elements = if size == 0 { 0 } else { array.length() };
                (0..elements).try_for_each(|i| {
                    array.element().try_each_leaf(language, base + i * size, each)
                })
            }
            Type::Struct(record) | Type::Union(record) => {
                let mut fields = record.fields(language);
                fields.try_for_each(|(offset, field)| {
                    field.try_each_leaf(language, base + offset, each)
                })
            }
            leaf => each(base, leaf),
        }
    }

    /// For each byte of a value, whether it holds data. The other bytes are padding, which every
    /// convention leaves unspecified. A byte of a union holds data if any field uses it.
    ///
    /// ```
    /// use footbridge::abi::{Language, Type};
    ///
    /// let ty: Type = "struct { i8, i16 }".parse()?;
    /// assert_eq!(ty.data_bytes(Language::C), [true, false, true, true]);
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn data_bytes(&self, language: Language) -> Vec<bool> {
        let mut bytes = vec![false; self.layout(language).size_bytes as usize];
        self.each_leaf(language, 0, &mut |offset, leaf| {
            let size = leaf.layout(language).size_bytes;
            bytes[offset as usize..][..size as usize].fill(true);
        });
        bytes
    }
}
