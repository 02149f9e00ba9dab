#![allow(unsafe_code, reason = "switches stacks")]
//! Leaving one stack for another: the contract, the same on every machine.
//!
//! # Sites
//!
//! `goswitch` and `mcall` are inlined into the functions that suspend: such a *site* is an asm
//! block that saves a context, leaves, and has a label where it is resumed. The block declares that
//! it loses every register but the stack pointer, the frame pointer and the base register. The
//! compiler then saves what is live and nothing else. The frame pointer and the base register
//! cannot be operands of an asm block, so that the Gobuf keeps them with pc and sp.
//!
//! A site pushes nothing. So at its label the call frame information of the compiler is right, and
//! a parked goroutine can be unwound from (pc, sp, fp) of its Gobuf. The saved pc is an exact pc
//! and no return address: the instruction before the label belongs to the range in which the call
//! frame information ends every walk.
//!
//! Sites and stubs leave by *jumps*. A call that no return answers would set the return predictor
//! off by one for the rest of the thread.
//!
//! # goswitch is no stub
//!
//! Its instructions are written out at each site: the processor then predicts the target for each
//! site by itself, which is three times as fast as one jump that all sites share. From the first
//! instruction to the last the call frame information says that no frame is older: an unwinder that
//! starts there, in a signal handler, ends as it ends in a stub.
//!
//! # Order of stores
//!
//! The pc of the saved context is stored last, as a Release, and the pc of the resumed one is
//! cleared: see [`Gobuf`].
//!
//! The machine's `switch.rs` has a picture of the stacks in each state.

#[cfg(footbridge_asan)]
use crate::instrument::asan;
use crate::runtime::arch::gobuf::Gobuf;
use crate::runtime::arch::machine::switch as machine;

/// Saves the running context to `from` and resumes `to`. Returns when `from` is resumed.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of.
/// 2. `to` holds a saved context that nothing else resumes.
#[inline(always)]
pub(crate) unsafe fn goswitch(from: *const Gobuf, to: *const Gobuf) {
    #[cfg(footbridge_asan)]
    // SAFETY: 2. says that `to` is valid.
    asan::leave(stack_pointer(), unsafe { (*to).sp() });
    // SAFETY: the caller's promises (1, 2).
    unsafe { machine::goswitch(from, to) };
    #[cfg(footbridge_asan)]
    asan::arrive(stack_pointer());
}

/// Resumes `to` and forgets the running context.
///
/// # Safety
/// 1. `to` holds a saved context that nothing else resumes.
/// 2. Nothing on the running stack is needed any more.
#[inline(always)]
pub(crate) unsafe fn gogo(to: *const Gobuf) -> ! {
    #[cfg(footbridge_asan)]
    // SAFETY: 1. says that `to` is valid.
    asan::leave(stack_pointer(), unsafe { (*to).sp() });
    // SAFETY: the caller's promises (1, 2).
    unsafe { machine::gogo(to) }
}

/// Saves the running context to `from` and calls `f(argument)` with the stack pointer `system_sp`,
/// the start of this thread's system stack. Returns when `from` is resumed.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of, not on that system stack.
/// 2. `system_sp` is a multiple of 16, and what is below it on that stack is dead.
#[inline(always)]
pub(crate) unsafe fn mcall<T>(
    from: *const Gobuf,
    system_sp: usize,
    f: unsafe extern "C" fn(*const T) -> !,
    argument: *const T,
) {
    #[cfg(footbridge_asan)]
    let call = {
        asan::leave(stack_pointer(), system_sp);
        Call { f, argument }
    };
    #[cfg(footbridge_asan)]
    let (f, argument): (unsafe extern "C" fn(*const Call<T>) -> !, _) = (arrive, &raw const call);
    // SAFETY: the caller's promises (1, 2).
    unsafe { machine::mcall(from, system_sp, f, argument) };
    #[cfg(footbridge_asan)]
    asan::arrive(stack_pointer());
}

/// A call that AddressSanitizer hears of first, on the new stack.
#[cfg(footbridge_asan)]
struct Call<T> {
    f: unsafe extern "C" fn(*const T) -> !,
    argument: *const T,
}

/// # Safety
/// 1. Called by `mcall`, with the call in its frame.
#[cfg(footbridge_asan)]
unsafe extern "C" fn arrive<T>(call: *const Call<T>) -> ! {
    // SAFETY: 1.: the frame is there until the goroutine is resumed, which `f` lets happen.
    let Call { f, argument } = unsafe { call.read() };
    asan::arrive(stack_pointer());
    // SAFETY: what the caller of `mcall` promises.
    unsafe { f(argument) }
}

/// The stack pointer in the frame of the caller.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    machine::stack_pointer()
}
