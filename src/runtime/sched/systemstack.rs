#![allow(unsafe_code, reason = "calls on another stack")]
//! Calling a function on the system stack of this thread.
//!
//! ```text
//!     goroutine's stack                   system stack
//!     | caller           |                | caller of mstart |
//!     | systemstack      |                | mstart           |
//!     | stub's frame     | <- rbp         +------------------+ <- m.system_sp
//!     +------------------+                | return address   |
//!                                         | run, f           | <- rsp
//! ```
//!
//! The goroutine stays current meanwhile. It must not leave its thread or park: the scheduler, and
//! the next goroutine's calls, would use the same part of the system stack. `M::on_system_stack`
//! says so to `gopark` (a panic), to polls and to the preemption signal (refused).

use crate::runtime::arch;
use crate::runtime::gmp::current::{getg, getm};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;

/// Calls `f` on the system stack of this thread's M, and returns its result.
///
/// On a goroutine this gives native code the deep stack of a thread. Elsewhere it is a plain call.
/// A panic in `f` comes out here.
///
/// ```
/// use footbridge::runtime;
///
/// runtime::run(|| {
///     let deep = runtime::systemstack(|| std::hint::black_box([1u8; 256 << 10])[42]);
///     assert_eq!(deep, 1);
/// });
/// ```
///
/// # Panics
/// With the panic of `f`; and if `f` parks, which it must not: the goroutines of a thread share its
/// system stack.
pub fn systemstack<R>(f: impl FnOnce() -> R) -> R {
    /// Marks the M while its system stack is in use. Dropped when a panic leaves it, too.
    struct Busy(*mut M);
    impl Drop for Busy {
        fn drop(&mut self) {
            // SAFETY: an M is never freed. It is still this thread's: a goroutine that can neither
            // park nor be preempted stays on its thread.
            unsafe { (*self.0).on_system_stack.set(false) };
        }
    }
    struct Call<F, R> {
        f: Option<F>,
        result: Option<R>,
    }
    extern "C-unwind" fn run<F: FnOnce() -> R, R>(call: *mut Call<F, R>) {
        // SAFETY: the stub passes the address of the local below, which outlives the call.
        let call = unsafe { &mut *call };
        let f = call.f.take().expect("called once");
        call.result = Some(f());
    }
    let g: *mut G = getg();
    let m = getm();
    // SAFETY: a thread that runs a goroutine has an M, which is never freed.
    if g.is_null() || unsafe { (*m).on_system_stack.get() } {
        return f();
    }
    let mut call = Call { f: Some(f), result: None };
    // SAFETY: the stub calls `run` with the address of `call` on the system stack. That stack is
    // free below its saved rsp while a goroutine runs, and is marked as used here. The stub has the
    // type of a function that takes these three arguments.
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
