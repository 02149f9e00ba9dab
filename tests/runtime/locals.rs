//! Goroutine-locals: whose value it is, when it is made, and when it is destroyed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use footbridge::goroutine_local;
use footbridge::runtime::{
    AccessError, Builder, Chan, go, gosched, run, scope, sleep, this_goroutine,
};
use support::child;
use support::runs::{on, wait_for};
use support::watchdog::watch;

/// A wait that never ends is a failure after this time.
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn each_goroutine_has_its_own_value_over_parks() {
    let _watch = watch(LIMIT);
    goroutine_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
        static ID: u64 = this_goroutine().expect("on a goroutine").id();
        // Not Send.
        static SHARED: Rc<RefCell<Vec<u64>>> = Rc::default();
    }
    let body = || {
        let id = this_goroutine().expect("on a goroutine").id();
        assert_eq!(COUNT.get(), 0, "of another goroutine");
        for n in 1..=50 {
            COUNT.with(|count| {
                count.set(count.get() + 1);
                gosched();
                assert_eq!(count.get(), n);
            });
            assert_eq!(ID.with(|id| *id), id);
        }
    };
    // Many start in structures of goroutines that have ended.
    on(3, || {
        for _ in 0..20 {
            let sticky = (0..100).map(|_| {
                go(move || {
                    body();
                    SHARED.with(|shared| shared.borrow_mut().push(1));
                    gosched();
                    assert_eq!(SHARED.with(|shared| shared.borrow().len()), 1);
                })
            });
            let handles: Vec<_> = sticky.collect();
            // SAFETY: the body keeps no thread-local over a park, and only values that are Send.
            let migratable = (0..20).map(|_| unsafe { Builder::new().go_migratable(body) });
            let migratable: Vec<_> = migratable.collect();
            body_of_others();
            handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
            for handle in migratable {
                handle.expect("memory").join().expect("no panic");
            }
        }
    });
    /// Goroutines without locals, in between.
    fn body_of_others() {
        (0..50).for_each(|_| drop(go(|| ())));
    }
}

/// What the goroutines of a thread share, as the documentation of `runtime` says.
#[test]
fn goroutines_of_a_thread_share_its_thread_locals() {
    let _watch = watch(LIMIT);
    thread_local! {
        static SHARED: RefCell<u32> = const { RefCell::new(0) };
    }
    goroutine_local! {
        static OWN: RefCell<u32> = const { RefCell::new(0) };
    }
    on(1, || {
        let gate = Chan::<()>::new(0);
        let waits = gate.clone();
        let borrows = go(move || {
            SHARED.with_borrow_mut(|shared| {
                OWN.with_borrow_mut(|own| {
                    assert!(waits.recv().is_err());
                    (*shared, *own) = (1, 1);
                });
            });
            std::thread::current().id()
        });
        gosched();
        SHARED.with(|shared| assert!(shared.try_borrow_mut().is_err(), "it is borrowed"));
        OWN.with_borrow_mut(|own| *own = 2);
        gate.close();
        assert_eq!(borrows.join().expect("no panic"), std::thread::current().id());
        assert_eq!((SHARED.with_borrow(|n| *n), OWN.with_borrow(|n| *n)), (1, 2));
    });
}

/// Pools of goroutines that have ended use the word in which a goroutine has its locals.
#[test]
fn a_goroutine_from_a_pool_has_no_values() {
    let _watch = watch(LIMIT);
    goroutine_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }
    for uses_locals in [false, true] {
        on(1, || {
            let body = |gate: Chan<()>| {
                move || {
                    assert!(gate.recv().is_err());
                    if uses_locals {
                        COUNT.set(COUNT.get() + 1);
                        assert_eq!(COUNT.get(), 1);
                    }
                }
            };
            for _ in 0..2 {
                let gate = Chan::<()>::new(0);
                // Many chains of the pool.
                let handles: Vec<_> = (0..3000).map(|_| go(body(gate.clone()))).collect();
                gate.close();
                handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
            }
        });
    }
}

/// Records its name when it is dropped.
struct Recorded(&'static str, &'static Mutex<Vec<&'static str>>);

impl Drop for Recorded {
    fn drop(&mut self) {
        self.1.lock().expect("no panic").push(self.0);
    }
}

#[test]
fn values_are_destroyed_once_before_a_join_returns() {
    let _watch = watch(LIMIT);
    static DROPPED: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    goroutine_local! {
        static A: Recorded = Recorded("a", &DROPPED);
        static B: Recorded = Recorded("b", &DROPPED);
        static C: Recorded = Recorded("c", &DROPPED);
        static UNUSED: Recorded = Recorded("unused", &DROPPED);
    }
    let taken = || std::mem::take(&mut *DROPPED.lock().expect("no panic")).join(" ");
    let use_all = || [&B, &C, &A, &B].map(|key| key.with(|value| value.0)).concat();
    on(2, || {
        assert_eq!(go(use_all).join().expect("no panic"), "bcab");
        assert_eq!(taken(), "a c b", "the youngest first");
        // Also of one that panics, and of one whose handle is gone.
        let panics = go(move || {
            use_all();
            std::panic::resume_unwind(Box::new(()))
        });
        assert!(panics.join().is_err());
        assert_eq!(taken(), "a c b");
        drop(go(use_all));
        wait_for("it ends", || DROPPED.lock().expect("no panic").len() == 3);
        assert_eq!(taken(), "a c b");
        // A scope waits for them.
        scope(|s| drop(s.go(use_all)));
        wait_for("it ends", || DROPPED.lock().expect("no panic").len() == 3);
        assert_eq!(taken(), "a c b");
    });
    // Those of the main goroutine before `run` returns.
    run(use_all);
    assert_eq!(taken(), "a c b");
    assert!(
        std::panic::catch_unwind(|| run(|| std::panic::resume_unwind(Box::new(use_all()))))
            .is_err()
    );
    assert_eq!(taken(), "a c b");
    // On a thread they are thread-locals.
    std::thread::spawn(use_all).join().expect("no panic");
    let mut by_thread = taken().split(' ').map(str::to_owned).collect::<Vec<_>>();
    by_thread.sort();
    assert_eq!(by_thread, ["a", "b", "c"]);
}

#[test]
fn destructors_may_park_and_use_locals() {
    let _watch = watch(LIMIT);
    static RESULTS: Mutex<Vec<Result<u32, ()>>> = Mutex::new(Vec::new());
    struct Uses(Chan<u32>);
    impl Drop for Uses {
        fn drop(&mut self) {
            gosched();
            self.0.send(1).expect("open"); // parks
            let mut results = RESULTS.lock().expect("no panic");
            results.push(OLDER.try_with(Cell::get).map_err(drop));
            results.push(YOUNGER.try_with(Cell::get).map_err(|AccessError { .. }| ()));
            drop(results);
            // It is being destroyed itself.
            assert!(USES.try_with(|_| ()).is_err());
            LATE.with(|late| late.set(late.get() + 1));
        }
    }
    struct Late;
    static LATE_DROPS: AtomicUsize = AtomicUsize::new(0);
    impl Drop for Late {
        fn drop(&mut self) {
            LATE_DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    goroutine_local! {
        static OLDER: Cell<u32> = const { Cell::new(1) };
        static USES: RefCell<Option<Uses>> = const { RefCell::new(None) };
        static YOUNGER: Cell<u32> = const { Cell::new(2) };
        static LATE: Cell<u32> = {
            LATE_LOCAL.with(|_| ());
            Cell::new(0)
        };
        static LATE_LOCAL: Late = Late;
    }
    on(2, || {
        let gate = Chan::new(0);
        let uses = Uses(gate.clone());
        let handle = go(move || {
            OLDER.set(10);
            USES.with_borrow_mut(|slot| *slot = Some(uses));
            YOUNGER.set(20);
        });
        // It has not ended before its destructor has sent.
        (0..20).for_each(|_| gosched());
        assert!(!handle.is_finished());
        assert_eq!(gate.recv(), Ok(1));
        handle.join().expect("no panic");
    });
    assert_eq!(*RESULTS.lock().expect("no panic"), [Ok(10), Err(())]);
    assert_eq!(LATE_DROPS.load(Ordering::Relaxed), 1, "what a destructor makes is destroyed, too");
}

#[test]
fn destructors_of_the_main_goroutine_may_park() {
    let _watch = watch(LIMIT);
    static SENT: AtomicUsize = AtomicUsize::new(0);
    struct Sends(Chan<()>);
    impl Drop for Sends {
        fn drop(&mut self) {
            gosched();
            self.0.send(()).expect("open");
            SENT.fetch_add(1, Ordering::Relaxed);
        }
    }
    goroutine_local! {
        static SENDS: Cell<Option<Sends>> = const { Cell::new(None) };
    }
    on(1, || {
        let gate = Chan::new(0);
        SENDS.set(Some(Sends(gate.clone())));
        go(move || gate.recv());
    });
    assert_eq!(SENT.load(Ordering::Relaxed), 1);
}

/// The result of a goroutine whose handle is gone is dropped by the goroutine, and may use locals.
#[test]
fn destructors_of_results_find_locals() {
    let _watch = watch(LIMIT);
    static SEEN: Mutex<Vec<u32>> = Mutex::new(Vec::new());
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Counted(Cell<u32>);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    goroutine_local! {
        static VALUE: Counted = Counted(Cell::new(0));
    }
    struct Result;
    impl Drop for Result {
        fn drop(&mut self) {
            SEEN.lock().expect("no panic").push(VALUE.with(|value| value.0.get()));
        }
    }
    on(2, || {
        let gate = Chan::<()>::new(0);
        let waits = gate.clone();
        drop(go(move || {
            VALUE.with(|value| value.0.set(7));
            assert!(waits.recv().is_err());
            Result
        }));
        gate.close();
        wait_for("it is dropped", || DROPS.load(Ordering::Relaxed) == 1);
    });
    assert_eq!(*SEEN.lock().expect("no panic"), [7]);
}

#[test]
fn a_value_that_needs_itself_is_made_once() {
    let _watch = watch(LIMIT);
    goroutine_local! {
        static DEPTH: Cell<u32> = const { Cell::new(0) };
        static VALUE: u32 = {
            DEPTH.set(DEPTH.get() + 1);
            let depth = DEPTH.get();
            if depth < 3 {
                VALUE.with(|_| ());
            }
            depth
        };
        // Values without a size.
        static NOTHING: () = ();
    }
    run(|| {
        // The innermost value comes first, and stays.
        assert_eq!((VALUE.with(|v| *v), VALUE.with(|v| *v), DEPTH.get()), (3, 3, 3));
        NOTHING.with(|()| NOTHING.with(|()| ()));
        assert_eq!(go(|| VALUE.with(|v| *v)).join().expect("no panic"), 3);
    });
}

#[test]
fn values_of_abandoned_goroutines_stay() {
    let _watch = watch(LIMIT);
    static DROPPED: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    goroutine_local! {
        static VALUE: Recorded = Recorded("value", &DROPPED);
    }
    on(1, || {
        go(|| VALUE.with(|_| sleep(Duration::from_secs(60))));
        gosched();
    });
    // The thread becomes another run's.
    on(1, || (0..10).for_each(|_| go(|| ()).join().expect("no panic")));
    assert!(DROPPED.lock().expect("no panic").is_empty());
}

#[test]
fn a_destructor_that_panics_ends_the_process() {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            std::panic::resume_unwind(Box::new(()));
        }
    }
    goroutine_local! {
        static PANICS: Panics = Panics;
    }
    let outcome = child::run("a_destructor_that_panics_ends_the_process", || {
        run(|| go(|| PANICS.with(|_| ())).join().expect("not reached"));
    });
    outcome.assert_aborted_with_goroutine(
        "footbridge: fatal: a goroutine-local of goroutine _ panicked while it was dropped\n",
    );
}
