//! The assembler that code is emitted with, of the version that this crate uses: a program needs no
//! dependency of its own for it.
//!
//! ```
//! use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
//! use footbridge::jit::{FrameClass, Jit};
//!
//! let jit = Jit::new()?;
//! // SAFETY: a System V leaf that changes rax only.
//! let halvings = unsafe {
//!     jit.install("halvings", FrameClass::Leaf, |ops| {
//!         dynasm!(ops
//!             ; .arch x64
//!             ; xor eax, eax
//!             ; again:
//!             ; shr rdi, 1
//!             ; jz >done
//!             ; inc rax
//!             ; jmp <again
//!             ; done:
//!             ; ret
//!         );
//!     })?
//! };
//! // SAFETY: its convention and types.
//! let halvings = unsafe { halvings.as_fn::<extern "sysv64" fn(u64) -> u64>() };
//! assert_eq!(halvings(1000), 9);
//! # Ok::<(), footbridge::jit::JitError>(())
//! ```
//!
//! What [`dynasm!`] expands to calls methods of the traits [`DynasmApi`] and [`DynasmLabelApi`],
//! which have to be in scope under any name. For `.arch aarch64` it also names the crate `dynasmrt`
//! by its absolute path where an operand is known at run time only. A program that has no
//! dependency of that name says at its root
//!
//! ```
//! extern crate self as dynasmrt;
//! # #[allow(unused_imports)]
//! use footbridge::dynasm::dynasmrt::aarch64;
//! # fn main() {}
//! ```

pub use dynasmrt;
pub use dynasmrt::{AssemblyOffset, DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
