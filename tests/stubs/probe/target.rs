//! Emitted code as the target of a goroutine function.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

use std::cell::{Cell, RefCell};
use std::ptr;

use dynasmrt::dynasm;
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{FrameClass, Jit};
use footbridge::runtime::{EntryType, GoroutineClosure, sealed};

/// Takes the place of a Rust closure when a goroutine function is created. [`with_target`] sets its
/// signature and its address, so that emitted code can be the target.
pub struct Raw(#[expect(dead_code, reason = "read by address, at the target")] pub u64);

thread_local! {
    static TARGET: RefCell<Option<Signature>> = const { RefCell::new(None) };
    static ADDRESS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `make` with this signature and this address of [`Raw`].
pub fn with_target<R>(signature: &Signature, address: usize, make: impl FnOnce() -> R) -> R {
    TARGET.set(Some(signature.clone()));
    ADDRESS.set(address);
    make()
}

fn target_signature() -> Signature {
    TARGET.with_borrow(|signature| signature.clone().expect("set by with_target"))
}

impl sealed::GoroutineClosure<Raw> for Raw {}
impl sealed::EntryType for Raw {}

// SAFETY: `with_target` sets the address of code that is entered with such a closure.
unsafe impl GoroutineClosure<Raw> for Raw {
    fn signature() -> Signature {
        target_signature()
    }

    fn shim() -> usize {
        ADDRESS.get()
    }
}

impl EntryType for Raw {
    fn signature() -> Signature {
        target_signature()
    }
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
    assert_ne!(g, ptr::null());
    g as u64
}
