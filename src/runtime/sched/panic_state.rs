#![allow(unsafe_code, reason = "writes words of std")]
//! The panic state: whose panics std counts on a thread.
//!
//! std counts the panics of a thread, and not of a goroutine. `std::thread::panicking` reads the
//! count, std's locks are poisoned by it, and a panic in a panic hook aborts the process. So the
//! words must be those of the goroutine that runs.
//!
//! The story, in time order:
//!
//! 1. Before the first run `panic_probe.rs` finds where std keeps the words.
//! 2. A thread that becomes an M takes the state that it came with out of the words
//!    ([`ThreadPanicState`]): `run` may be called by a destructor while the thread unwinds, or by a
//!    panic hook. The state is the main goroutine's ([`with_state_of_thread`]). From here on the
//!    words are calm whenever the M is in the scheduler.
//! 3. A goroutine that panics is suspended in a destructor, or in the panic hook: it parks, yields,
//!    or is preempted. Each of these ways tests the count ([`is_panicking`]), which costs two loads
//!    and a branch. If it is not zero, [`with_calm_words`] takes the state into its frame, and
//!    suspends as if the count were zero.
//! 4. When the goroutine resumes, it puts its state back.
//! 5. When the run has ended, the thread gets back the state of step 2. A goroutine that was
//!    abandoned while it unwinds has its state in its own frame, which is never left.
//!
//! **Invariant.** Outside of the code of a panicking goroutine the words of an M are calm.
//!
//! A migratable goroutine stays on its thread for a suspension while it panics. The function that
//! panics may be inlined into one that catches the panic, with std's accesses to the words before
//! and after the suspension, and the compiler may use the address of the first one for the second.
//!
//! std also sums the counts of all threads up, so that `panicking` is quick while the sum is zero.
//! The sum is right: it counts panics, and it does not matter whose they are.
//!
//! Rejected: to finish goroutines that unwind before a run ends. Their destructors may wait for
//! what never comes, and no goroutine runs after the main one by the contract of `run`.

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::runtime::gmp::current::this_m;
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::panic_words::{NO_WORDS, PanicState};
use crate::runtime::sched::panic_probe::words_of_this_thread;

/// Panic hooks that are suspended.
static SUSPENDED_HOOKS: AtomicUsize = AtomicUsize::new(0);

/// Whether a goroutine is suspended in the panic hook. Meanwhile the hook cannot be replaced:
/// std's lock of it is held, and `std::panic::set_hook` blocks its thread.
pub(crate) fn is_hook_suspended() -> bool {
    SUSPENDED_HOOKS.load(Ordering::Relaxed) != 0
}

/// Whether the running goroutine `g` must go through [`with_calm_words`] to be suspended.
#[inline(always)]
pub(crate) fn is_panicking(g: &G, m: &M) -> bool {
    // SAFETY: words of this thread, whose M this is, or `NO_WORDS`.
    let count = unsafe { &(*m.panic_words.get()).count };
    // Where the words are not known a migratable goroutine must stay on its thread all the more.
    count.load(Ordering::Relaxed) != 0 || g.migratable.get() && std::thread::panicking()
}

/// Suspends the running goroutine `g` of this M, which panics, by `suspend`. Until it resumes, no
/// panic is under way on its thread, and it stays on the thread.
///
/// `suspend` does not unwind. The caller has checked that the goroutine may be suspended here, and
/// the `unlock` of `gopark` does not unwind by contract.
#[cold]
#[inline(never)]
pub(crate) fn with_calm_words(g: &G, m: &M, suspend: impl FnOnce()) {
    let own = exchange(m, PanicState::CALM);
    let migratable = g.migratable.replace(false);
    let hooks = usize::from(own.in_hook);
    SUSPENDED_HOOKS.fetch_add(hooks, Ordering::Relaxed);
    suspend();
    SUSPENDED_HOOKS.fetch_sub(hooks, Ordering::Relaxed);
    g.migratable.set(migratable);
    exchange(m, own);
}

/// Calls `f`, the body of a main goroutine, in the state that its thread came with. `f` does not
/// unwind.
pub(crate) fn with_state_of_thread<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: on a goroutine, whose thread is an M. A main goroutine stays on its thread.
    let m = unsafe { this_m() };
    exchange(m, m.thread_panic_state.get());
    let result = f();
    exchange(m, PanicState::CALM);
    result
}

/// A thread serves goroutines while this lives, and gets its own panic state back at the end.
pub(crate) struct ThreadPanicState(&'static M);

impl ThreadPanicState {
    /// The calling thread is `m`.
    pub(crate) fn take(m: &'static M) -> Self {
        m.panic_words.set(words_of_this_thread());
        m.thread_panic_state.set(exchange(m, PanicState::CALM));
        Self(m)
    }
}

impl Drop for ThreadPanicState {
    fn drop(&mut self) {
        let left = exchange(self.0, self.0.thread_panic_state.get());
        debug_assert_eq!(left, PanicState::CALM);
        self.0.panic_words.set(&raw const NO_WORDS);
    }
}

/// Puts a state into the words of this thread, whose M is `m`, and returns what was in them. Does
/// nothing where the words are not known.
///
/// Not inlined, and the address is hidden from the optimizer: with link-time optimization it sees
/// that std keeps the address of the words to itself, and would conclude that this changes others.
#[inline(never)]
fn exchange(m: &M, state: PanicState) -> PanicState {
    let words = black_box(m.panic_words.get());
    if ptr::eq(words, &raw const NO_WORDS) {
        return PanicState::CALM;
    }
    // SAFETY: words of this thread, which lie in its thread-local storage.
    let words = unsafe { &*words };
    let before = PanicState {
        count: words.count.load(Ordering::Relaxed),
        in_hook: words.in_hook.load(Ordering::Relaxed),
    };
    words.count.store(state.count, Ordering::Relaxed);
    words.in_hook.store(state.in_hook, Ordering::Relaxed);
    before
}
