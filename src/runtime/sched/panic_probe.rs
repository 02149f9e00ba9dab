#![allow(unsafe_code, reason = "reads and writes words of std")]
//! Where std keeps the panic state of a thread.
//!
//! std has no interface for it. The state is a thread-local `Cell<(usize, bool)>`: the number of
//! panics under way, and whether one of them is in the panic hook. Its place is found once for the
//! process, by its behaviour, on a thread that does nothing else:
//!
//! 1. All words of the thread's thread-local storage are watched while one panic is under way in
//!    another one. A candidate is 0, 1, 2, 1 and 0.
//! 2. Each candidate is set to 0 in the middle of a panic. The count is the one word with which
//!    `std::thread::panicking` becomes false.
//! 3. The flag is the byte after the count, if the end of a panic clears it.
//!
//! All modules are watched, so that it does not matter whether std is in a shared object, nor which
//! of several copies of std the crate was linked to. The panics are made by
//! `std::panic::resume_unwind`, which does not call the panic hook: nothing is printed. Nothing of
//! another thread is read or changed.
//!
//! If any step finds no word, or several, goroutines share the state of their thread, and
//! `environment()` says so.
//!
//! Rejected: the offset that this version of std has, as a constant. Each compilation of std and
//! each linker place it elsewhere. Rejected: to watch the flag in a hook. Hooks are the program's,
//! and replacing one for a moment can lose one that another thread sets at that moment.

use std::cell::RefCell;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;

use crate::runtime::gmp::panic_words::{NO_WORDS, PanicWords};
use crate::runtime::os::tls_blocks::visit_blocks;

/// Where [`PanicWords`] lie, on every thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// The module, as `os/tls_blocks` numbers it.
    module: usize,
    /// From the start of the module's block.
    offset: usize,
}

/// Why the place is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unknown {
    /// Nothing unwinds in this process.
    PanicsAbort,
    /// The number of words that behave like the count is not 1.
    Count(usize),
    /// The byte after the count does not behave like the flag.
    Flag,
}

static PLACE: OnceLock<Result<Place, Unknown>> = OnceLock::new();

/// Finds the place, the first time. Called before a thread becomes an M.
fn place() -> Result<Place, Unknown> {
    /// The search needs less than 16 KiB.
    const STACK_BYTES: usize = 128 << 10;
    *PLACE.get_or_init(|| {
        if cfg!(panic = "abort") {
            return Err(Unknown::PanicsAbort);
        }
        let searcher = thread::Builder::new().stack_size(STACK_BYTES);
        match searcher.name("footbridge-probe".into()).spawn(search) {
            Ok(searcher) => searcher.join().expect("it catches its panics"),
            // Where threads are refused this one will do, unless it panics itself: then no word is
            // 0 when it should be.
            Err(_) => search(),
        }
    })
}

/// The words of the calling thread; [`NO_WORDS`] if their place is not known.
pub(super) fn words_of_this_thread() -> *const PanicWords {
    let none = &raw const NO_WORDS;
    let Ok(place) = place() else {
        return none;
    };
    let find = || {
        let mut start = None;
        visit_blocks(&mut |block| {
            if block.module != place.module {
                return ControlFlow::Continue(());
            }
            start = Some(block.start);
            ControlFlow::Break(())
        });
        start
    };
    let start = find().or_else(|| {
        // A library that dlopen(3) has loaded gets its block when the thread first uses it.
        while_panicking(|| {});
        find()
    });
    start.map_or(none, |start| (start + place.offset) as *const PanicWords)
}

/// Finds the place, and describes it for `environment()`.
pub(crate) fn describe_panic_state() -> String {
    const SHARED: &str = "goroutines of a thread share std's panic state";
    match place() {
        Ok(Place { offset, .. }) => {
            format!("each goroutine has its own (offset {offset:#x} of std's thread-local storage)")
        }
        Err(Unknown::PanicsAbort) => "panics abort: no goroutine unwinds".into(),
        Err(Unknown::Count(n)) => format!("{SHARED}: {n} words behave like its count of panics"),
        Err(Unknown::Flag) => format!("{SHARED}: no flag of the panic hook is after its count"),
    }
}

/// A word that behaves like the count so far.
struct Candidate {
    place: Place,
    word: &'static AtomicUsize,
    /// The byte after the word, if the block has one.
    next: Option<&'static AtomicU8>,
}

/// Finds the place by panics on this thread.
fn search() -> Result<Place, Unknown> {
    // From here on the module of std has a block.
    while_panicking(|| {});
    let candidates = RefCell::new(zero_words());
    let keep = |value: usize| {
        candidates.borrow_mut().retain(|one| one.word.load(Ordering::Relaxed) == value);
    };
    while_panicking(|| {
        keep(1);
        while_panicking(|| keep(2));
        keep(1);
        candidates.borrow_mut().retain(|one| is_count(one.word));
    });
    keep(0);
    match candidates.into_inner().as_slice() {
        [Candidate { place, next: Some(next), .. }] if is_flag(next) => Ok(*place),
        [_] => Err(Unknown::Flag),
        several => Err(Unknown::Count(several.len())),
    }
}

/// All words of this thread's thread-local storage that are 0.
fn zero_words() -> Vec<Candidate> {
    const WORD: usize = size_of::<usize>();
    let mut words = Vec::new();
    visit_blocks(&mut |block| {
        let first = block.start.next_multiple_of(WORD) - block.start;
        for offset in (first..block.bytes).step_by(WORD) {
            if offset + WORD > block.bytes {
                break;
            }
            let address = block.start + offset;
            // SAFETY: an aligned word in a block of this thread, which is mapped until the thread
            // ends. No other thread writes to it but by atomic operations.
            let word = unsafe { AtomicUsize::from_ptr(address as *mut usize) };
            let has_next = offset + size_of::<PanicWords>() <= block.bytes;
            // SAFETY: the same of the byte after the word.
            let next = has_next.then(|| unsafe { AtomicU8::from_ptr((address + WORD) as *mut u8) });
            if word.load(Ordering::Relaxed) == 0 {
                let place = Place { module: block.module, offset };
                words.push(Candidate { place, word, next });
            }
        }
        ControlFlow::Continue(())
    });
    words
}

/// Whether the word, which is 1, is the count. Called while one panic is under way.
fn is_count(word: &AtomicUsize) -> bool {
    word.store(0, Ordering::Relaxed);
    // Called by its address: the optimizer must not reuse what it knows from before the store.
    let panicking: fn() -> bool = black_box(thread::panicking);
    let is_calm = !panicking();
    word.store(1, Ordering::Relaxed);
    is_calm
}

/// Whether the byte is the flag: it is 0, and the end of a panic clears it.
fn is_flag(byte: &AtomicU8) -> bool {
    if byte.load(Ordering::Relaxed) != 0 {
        return false;
    }
    // Not before the panic begins: that would be a panic in a hook.
    while_panicking(|| byte.store(1, Ordering::Relaxed));
    byte.swap(0, Ordering::Relaxed) == 0
}

/// Calls `f`, which does not panic, while a panic is under way that the panic hook is not told of.
fn while_panicking(f: impl FnOnce()) {
    struct OnDrop<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for OnDrop<F> {
        fn drop(&mut self) {
            if let Some(f) = self.0.take() {
                f();
            }
        }
    }
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _on_drop = OnDrop(Some(f));
        resume_unwind(Box::new(()));
    }));
    debug_assert!(caught.is_err());
}

#[cfg(test)]
mod tests {
    use std::panic;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::runtime::gmp::panic_words::PanicState;

    /// The words of this thread.
    fn contents() -> PanicState {
        let words = words_of_this_thread();
        assert!(!std::ptr::eq(words, &raw const NO_WORDS));
        // SAFETY: words of this thread.
        let words = unsafe { &*words };
        PanicState {
            count: words.count.load(Ordering::Relaxed),
            in_hook: words.in_hook.load(Ordering::Relaxed),
        }
    }

    /// The search does not see a hook. This test does.
    #[test]
    fn the_words_are_those_of_std_in_a_hook_and_in_destructors() {
        struct Watched;
        static IN_HOOK: Mutex<Vec<PanicState>> = Mutex::new(Vec::new());
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if info.payload().is::<Watched>() {
                IN_HOOK.lock().expect("no panic").push(contents());
            } else {
                previous(info);
            }
        }));
        let state = |count, in_hook| PanicState { count, in_hook };
        let watch = move || {
            assert_eq!(contents(), PanicState::CALM);
            while_panicking(|| {
                assert_eq!(contents(), state(1, 0));
                let caught = catch_unwind(|| panic::panic_any(Watched));
                assert!(caught.is_err());
                assert_eq!(contents(), state(1, 0));
                while_panicking(|| assert_eq!(contents(), state(2, 0)));
            });
            assert!(catch_unwind(|| panic::panic_any(Watched)).is_err());
            assert_eq!(contents(), PanicState::CALM);
        };
        for _ in 0..3 {
            // Each thread has words of its own.
            thread::spawn(watch).join().expect("assertions hold");
        }
        let in_hook = IN_HOOK.lock().expect("no panic");
        assert_eq!(*in_hook, [state(2, 1), state(1, 1)].repeat(3));
    }

    #[test]
    fn each_search_finds_the_same_place_while_other_threads_panic() {
        let stop = AtomicBool::new(false);
        let known = place();
        assert!(known.is_ok(), "{known:?}");
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        while_panicking(|| while_panicking(|| {}));
                    }
                });
            }
            let searches: Vec<_> = (0..2)
                .map(|_| s.spawn(|| (0..200).map(|_| search()).collect::<Vec<_>>()))
                .collect();
            let searches: Vec<_> =
                searches.into_iter().map(thread::ScopedJoinHandle::join).collect();
            stop.store(true, Ordering::Relaxed);
            for found in searches {
                let found = found.expect("no panic");
                assert!(found.iter().all(|found| *found == known), "{known:?}: {found:?}");
            }
        });
    }

    /// Other words may change with the number of panics: an allocator's number of live blocks.
    #[test]
    fn words_that_are_not_read_by_std_are_not_taken_for_its_words() {
        let (word, byte) = (AtomicUsize::new(1), AtomicU8::new(0));
        while_panicking(|| assert!(!is_count(&word)));
        assert!(!is_flag(&byte));
        assert_eq!((word.into_inner(), byte.into_inner()), (1, 0));
    }

    /// A thread that panics itself has no word that is 0 when it should be: nothing is found, and
    /// nothing is changed.
    #[test]
    fn a_search_on_a_thread_that_panics_finds_nothing() {
        while_panicking(|| {
            assert_eq!(search(), Err(Unknown::Count(0)));
            assert_eq!(contents(), PanicState { count: 1, in_hook: 0 });
        });
        assert_eq!(contents(), PanicState::CALM);
    }
}
