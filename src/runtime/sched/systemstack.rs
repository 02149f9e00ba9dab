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
        #[cfg(footbridge_asan)]
        sp: usize,
    }
    extern "C-unwind" fn run<F: FnOnce() -> R, R>(call: *mut Call<F, R>) {
        // SAFETY: the stub passes the address of the local below, which outlives the call.
        let call = unsafe { &mut *call };
        #[cfg(footbridge_asan)]
        let _leaves = asan_guards::There::arrive(call.sp);
        let f = call.f.take().expect("called once");
        call.result = Some(f());
    }
    let g: *mut G = getg();
    let m = getm();
    // SAFETY: a thread that runs a goroutine has an M, which is never freed.
    if g.is_null() || unsafe { (*m).on_system_stack.get() } {
        return f();
    }
    let mut call = Call {
        f: Some(f),
        result: None,
        #[cfg(footbridge_asan)]
        sp: arch::switch::stack_pointer(),
    };
    // SAFETY: the stub calls `run` with the address of `call` on the system stack. That stack is
    // free below its saved rsp while a goroutine runs, and is marked as used here. The stub has the
    // type of a function that takes these three arguments.
    unsafe {
        (*m).on_system_stack.set(true);
        let _busy = Busy(m);
        #[cfg(footbridge_asan)]
        let _back = asan_guards::Back::leave((*m).system_sp.get());
        type Stub<F, R> =
            extern "C-unwind" fn(*mut Call<F, R>, extern "C-unwind" fn(*mut Call<F, R>), usize);
        let stub: Stub<_, R> = crate::jit::as_fn(arch::stubs::systemstack());
        stub(&raw mut call, run, (*m).system_sp.get());
    }
    call.result.expect("the call returned, so it left its result")
}

/// The two halves of a switch for AddressSanitizer, also where a panic passes.
#[cfg(footbridge_asan)]
mod asan_guards {
    use crate::instrument::asan;
    use crate::runtime::arch::switch::stack_pointer;

    /// On the goroutine's stack, to which the call comes back.
    pub(super) struct Back;

    impl Back {
        pub(super) fn leave(to: usize) -> Self {
            asan::leave(stack_pointer(), to);
            Self
        }
    }

    impl Drop for Back {
        fn drop(&mut self) {
            asan::arrive(stack_pointer());
        }
    }

    /// On the system stack. Holds an address in the stack to return to.
    pub(super) struct There(usize);

    impl There {
        pub(super) fn arrive(from: usize) -> Self {
            asan::arrive(stack_pointer());
            Self(from)
        }
    }

    impl Drop for There {
        fn drop(&mut self) {
            asan::leave(stack_pointer(), self.0);
        }
    }
}
