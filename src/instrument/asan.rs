#![allow(unsafe_code, reason = "calls the sanitizer")]
//! What AddressSanitizer is told of stacks: `sanitizer/common_interface_defs.h`,
//! `__sanitizer_start_switch_fiber`. Compiled only in a build with `-Zsanitizer=address`.
//!
//! AddressSanitizer knows one stack a thread, and a *fake stack* that has the locals whose
//! addresses are taken. Each switch has two halves: [`leave`] on the old stack, with the stack
//! pointer of the new one, and [`arrive`] on the new one. Both find the stack by the stack pointer.
//! A stack keeps its fake stack when its goroutine ends, for the next one.
//!
//! Frames that are abandoned leave poison: a goroutine's last frames, and those of the scheduler on
//! the system stack. [`leave`] removes it before the next frames are made there.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn __sanitizer_start_switch_fiber(
        fake_stack_save: *mut *mut c_void,
        bottom: *const c_void,
        size: usize,
    );
    fn __sanitizer_finish_switch_fiber(
        fake_stack_save: *mut c_void,
        bottom_old: *mut *const c_void,
        size_old: *mut usize,
    );
    fn __asan_unpoison_memory_region(start: *const c_void, size: usize);
}

/// A stack, and its fake stack while another one is in use.
#[derive(Clone, Copy)]
struct Stack {
    lo: usize,
    hi: usize,
    fake: usize,
}

/// The stacks of goroutines, by their lowest address.
static STACKS: Mutex<BTreeMap<usize, Stack>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The stack that the thread itself has, and where the scheduler's part of it starts.
    static OWN: Cell<(Stack, usize)> =
        const { Cell::new((Stack { lo: 0, hi: 0, fake: 0 }, 0)) };
    /// The thread has left a stack, and has not arrived yet.
    static IS_SWITCHING: Cell<bool> = const { Cell::new(false) };
}

fn stacks() -> MutexGuard<'static, BTreeMap<usize, Stack>> {
    STACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn register_stack(lo: usize, hi: usize) {
    stacks().insert(lo, Stack { lo, hi, fake: 0 });
}

pub(crate) fn register_thread(lo: usize, hi: usize, start: usize) {
    OWN.set((Stack { lo, hi, fake: 0 }, start));
}

/// The goroutine stack with this address. `None`: the address is in the thread's own stack.
fn goroutine_stack(at: usize) -> Option<Stack> {
    let found = stacks().range(..=at).next_back().map(|(_, stack)| *stack);
    found.filter(|stack| at <= stack.hi)
}

/// The thread leaves the stack with `sp` for the one with `to`. Not inlined: thread-locals of the
/// thread that arrives are others.
#[inline(never)]
pub(crate) fn leave(sp: usize, to: usize) {
    let (from, target) = (goroutine_stack(sp), goroutine_stack(to));
    let (own, start) = OWN.get();
    // The scheduler's frames are abandoned.
    if from.is_none() {
        unpoison(sp, start);
    }
    if from.map(|stack| stack.lo) == target.map(|stack| stack.lo) {
        return; // From one part of a stack to another.
    }
    // Before the first frame is made there.
    if let Some(target) = target {
        unpoison(target.lo, to);
    }
    IS_SWITCHING.set(true);
    let target = target.unwrap_or(own);
    let mut fake = ptr::null_mut();
    let lo = target.lo as *const c_void;
    // SAFETY: the bounds are those of the stack that is switched to.
    unsafe { __sanitizer_start_switch_fiber(&raw mut fake, lo, target.hi - target.lo) };
    match from {
        Some(from) => {
            stacks().insert(from.lo, Stack { fake: fake as usize, ..from });
        }
        None => OWN.set((Stack { fake: fake as usize, ..own }, start)),
    }
}

/// The thread has come to the stack with `sp`.
#[inline(never)]
pub(crate) fn arrive(sp: usize) {
    if !IS_SWITCHING.replace(false) {
        return; // From another part of the same stack.
    }
    let stack = goroutine_stack(sp).unwrap_or_else(|| OWN.get().0);
    // SAFETY: the fake stack that was saved when this stack was left.
    unsafe {
        let fake = stack.fake as *mut c_void;
        __sanitizer_finish_switch_fiber(fake, ptr::null_mut(), ptr::null_mut());
    }
}

fn unpoison(from: usize, to: usize) {
    if from < to {
        // SAFETY: no frame is there that is still in use.
        unsafe { __asan_unpoison_memory_region(from as *const c_void, to - from) };
    }
}
