#![allow(unsafe_code, reason = "promises how types are passed")]
//! Rust types that calls carry, and what each is in a signature.

use std::ptr::NonNull;

use crate::abi::Type;

/// A Rust type that an `extern "C"` function passes as a value of one [`Type`].
///
/// # Safety
/// `extern "C"` passes and returns `Self` exactly as `TYPE` in the host's C convention.
pub unsafe trait Scalar: Copy {
    /// The type in a signature.
    const TYPE: Type;
}

macro_rules! scalars {
    ($($rust:ty => $abi:ident),* $(,)?) => {$(
        // SAFETY: the Rust reference, "type layout", and the C types of the same names.
        unsafe impl Scalar for $rust {
            const TYPE: Type = Type::$abi;
        }
    )*};
}

scalars! {
    bool => Bool,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, isize => Isize,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64, usize => Usize,
    f32 => F32, f64 => F64,
}

// SAFETY: a thin pointer is an address.
unsafe impl<T> Scalar for *const T {
    const TYPE: Type = Type::Ptr;
}
// SAFETY: a thin pointer is an address.
unsafe impl<T> Scalar for *mut T {
    const TYPE: Type = Type::Ptr;
}
// SAFETY: a reference is passed as an address; that it is valid is the promise of the caller.
unsafe impl<T> Scalar for &T {
    const TYPE: Type = Type::Ptr;
}
// SAFETY: passed as an address, where null is `None`.
unsafe impl<T> Scalar for Option<&T> {
    const TYPE: Type = Type::Ptr;
}
// SAFETY: an address, as the documentation of `NonNull` says.
unsafe impl<T> Scalar for NonNull<T> {
    const TYPE: Type = Type::Ptr;
}

/// What a call returns: a [`Scalar`] or nothing.
///
/// # Safety
/// `extern "C"` returns `Self` as the value of the one type listed, or as nothing.
pub unsafe trait CallResult {
    /// The results in a signature.
    const TYPES: &'static [Type];
}

// SAFETY: `()` is C's void.
unsafe impl CallResult for () {
    const TYPES: &'static [Type] = &[];
}

// SAFETY: by Scalar.
unsafe impl<T: Scalar> CallResult for T {
    const TYPES: &'static [Type] = &[T::TYPE];
}
