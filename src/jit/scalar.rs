#![allow(unsafe_code, reason = "promises how types are passed")]
//! Rust types that calls carry, and what each is in a signature.

use std::ptr::NonNull;

use crate::abi::Type;

/// A Rust type that an `extern "C"` function passes as a value of one [`Type`]: what goroutine
/// functions and entries take and return.
///
/// A type that is one of these in a `#[repr(transparent)]` struct is passed like it, so that
/// programs may implement the trait for types of their own.
///
/// ```
/// use footbridge::abi::{Convention, Type};
/// use footbridge::jit::{Jit, Scalar};
///
/// #[derive(Clone, Copy)]
/// #[repr(transparent)]
/// struct Handle(u32);
///
/// // SAFETY: a transparent struct is passed as its field.
/// unsafe impl Scalar for Handle {
///     const TYPE: Type = Type::U32;
/// }
///
/// let next = |handle: Handle| Handle(handle.0 + 1);
/// let next = Jit::new()?.goroutine_fn(Convention::SystemV, next)?;
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
///
/// # Safety
/// `extern "C"` passes and returns `Self` exactly as `TYPE` in the host's C convention.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not passed in one register",
    label = "not a scalar",
    note = "scalars are `bool`, integers of up to 64 bits, floats, thin pointers and references; \
            pass a pointer to a value of any other type"
)]
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

mod sealed {
    pub trait CallResult {}

    impl CallResult for () {}

    impl<T: super::Scalar> CallResult for T {}
}

/// What a call returns: a [`Scalar`] or `()`. The crate implements it; no other crate can.
///
/// # Safety
/// `extern "C"` returns `Self` as the value of the one type listed, or as nothing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not returned in one register",
    label = "neither a scalar nor `()`",
    note = "scalars are `bool`, integers of up to 64 bits, floats, thin pointers and references"
)]
pub unsafe trait CallResult: sealed::CallResult {
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
