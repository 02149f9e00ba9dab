#![allow(unsafe_code, reason = "calls on another stack")]
//! Calling a function on the system stack of this thread.

use crate::runtime::arch;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;

/// Calls `f` on the system stack of this thread's M and returns its result.
///
/// On a goroutine this gives native code the deep stack of a thread; elsewhere it is a plain
/// call. A panic in `f` comes out here.
///
/// # Panics
/// With the panic of `f`; and if `f` parks, which it must not: the system stack is shared.
pub fn systemstack<R>(f: impl FnOnce() -> R) -> R {
    /// Marks the M while its system stack is in use, also when a panic leaves it.
    struct Busy(*mut M);
    impl Drop for Busy {
        fn drop(&mut self) {
            // SAFETY: the M of this thread; a goroutine stays on it while it cannot park.
            unsafe { (*self.0).on_system_stack.set(false) };
        }
    }
    struct Call<F, R> {
        f: Option<F>,
        result: Option<R>,
    }
    extern "C-unwind" fn run<F: FnOnce() -> R, R>(call: *mut Call<F, R>) {
        // SAFETY: the address of the local below, for the time of the call.
        let call = unsafe { &mut *call };
        let f = call.f.take().expect("called once");
        call.result = Some(f());
    }
    let g: *mut G = getg();
    let m = getm();
    // SAFETY: an M of this thread lives for ever.
    if g.is_null() || unsafe { (*m).on_system_stack.get() } {
        return f();
    }
    let mut call = Call { f: Some(f), result: None };
    // SAFETY: the stub calls `run` with the address of `call` on the system stack, which is free
    // below its saved rsp while a goroutine runs, and marked busy here.
    unsafe {
        (*m).on_system_stack.set(true);
        let _busy = Busy(m);
        type Stub<F, R> =
            extern "C-unwind" fn(*mut Call<F, R>, extern "C-unwind" fn(*mut Call<F, R>), usize);
        let stub: Stub<_, R> = crate::jit::as_fn(arch::switch::systemstack_stub());
        stub(&raw mut call, run, (*m).system_sp.get());
    }
    call.result.expect("the call returned, so it left its result")
}
