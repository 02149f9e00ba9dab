//! A caller and a callee that control and observe every register.
//!
//! - A [`Probe`] is emitted code that loads all registers with chosen values, calls an address, and
//!   stores all registers again. With a planted [`Clobber`](call::Clobber) it destroys one piece of
//!   state after the call, like a callee that breaks its convention.
//! - A [`Capture`] is emitted code to be called: it stores all registers that it finds, destroys
//!   all state that its convention does not preserve, and returns chosen results.
//!
//! "All registers" are the sixteen general-purpose registers, rflags, and the state that FXSAVE
//! stores (Intel SDM volume 1, section 10.5.1): xmm0-15, MXCSR, and the state of the x87 unit.
//! Neither convention preserves the upper halves of the vector registers.
//!
//! Both keep their values in a record at a fixed address, which is part of their code, and never
//! below rsp, so they work whatever the other side did to the registers. They are not reentrant.
//! While a probe has its value in rbp, no walk or panic may pass it.

mod call;
mod capture;
mod state;
mod target;
mod values;

pub use call::{Probe, STACK_WORDS};
pub use capture::{Arrival, Capture};
pub use state::{
    Change, MXCSR, NATIVE_FP_CONTROL, State, X87_CONTROL, may_change, must_keep, set_fp_control,
};
pub use target::{Raw, current_g, with_target};
pub use values::{owned_bytes, place_of, values};
