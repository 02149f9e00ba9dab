//! A caller and a callee that pass values of any type in any convention of this machine.
//!
//! * A [`Caller`] stores values where an assignment has them, loads all registers, calls an address
//!   on a stack of its own, and stores all registers again. The stack ends at an unmapped page, as
//!   close after the argument area as the alignment allows, or in bytes that are compared
//!   afterwards. So does the memory of values that are passed by address.
//! * A [`Callee`] is emitted code to be called: it stores all registers, reads the arguments where
//!   an assignment has them, checks everything that a function of its convention may rely on,
//!   destroys all state that the convention does not preserve, and returns chosen values.
//!
//! "All registers" are the sixteen general-purpose registers, rflags, the vector registers in the
//! full width of this CPU, MXCSR, and the x87 unit.
//!
//! Values are encoded and decoded by their [`Assignment`](footbridge::abi::Assignment) alone: this
//! module must not know how a stub moves values, and shares no code with the model machine in
//! `src/abi/model/`.
//!
//! Neither of the two is reentrant. During a call, no walk or panic may pass it.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

mod callee;
mod caller;
mod fault;
mod memory;
mod state;
mod values;

pub use callee::{Arrived, Callee, Expected};
pub use caller::{Call, Caller, Returned};
pub use fault::{report_faults, with_case};
pub use state::{closure_register, vector_bytes};
pub use values::{data_bytes, random_values};

use dynasmrt::dynasm;
use footbridge::abi::{Convention, Gpr, ValueIndex, Xmm};
use footbridge::jit::{FrameClass, Jit};

/// A violation of a convention.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A preserved or pinned register.
    Gpr(Gpr),
    /// The low 128 bits of a preserved or pinned register.
    Xmm(Xmm),
    Df,
    Mxcsr,
    X87Control,
    /// The x87 stack holds more or less than the results.
    X87Stack,
    /// The base of the argument area is misaligned at the callee.
    Alignment,
    /// A value is wrong or missing.
    Value(ValueIndex),
    /// A narrow integer is not extended to 32 bits, although the receiver relies on it.
    NotExtended(ValueIndex),
    /// The upper part of a value's stack word was not written, although the receiver may load the
    /// whole word.
    NotWhole(ValueIndex),
    /// The two copies of one value differ.
    Duplicate(ValueIndex),
    /// The address of a value is misaligned or invalid.
    Address(ValueIndex),
    /// At the callee, rbp is neither the caller's nor that of a frame directly above the return
    /// address.
    FramePointer,
    /// The number of vector registers of a variadic call.
    VectorCount,
    /// The word in the closure register.
    Closure,
    /// A byte of the caller's stack above its argument area, counted from the base of the area.
    Above(usize),
    /// A byte next to the memory of a value, counted from the first byte of the value.
    Beside(ValueIndex, isize),
    /// The callee was called this many times instead of once.
    Hits(u64),
}

/// The g of the running goroutine, which ABIInternal code finds in r14.
pub fn current_g(jit: &Jit) -> u64 {
    // SAFETY: an ABIInternal leaf that only changes rax.
    let code = unsafe {
        jit.install("r14", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; mov rax, r14; ret))
    };
    let code = code.expect("it installs");
    // SAFETY: code of that convention and type.
    let entry = unsafe { code.enter::<fn() -> *const u8>(Convention::GoAbiInternal) };
    // SAFETY: the caller runs on a goroutine.
    let g = unsafe { entry.expect("entry").call() };
    assert!(!g.is_null());
    g as u64
}
