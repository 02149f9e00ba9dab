//! Locks that park the goroutine: exclusion, order, poisoning, limits of time, and both kinds of
//! waiters.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    Barrier, Builder, Chan, Condvar, Mutex, MutexGuard, Once, OnceLock, RwLock, RwLockReadGuard,
    RwLockWriteGuard, Status, WaitGroup, WaitReason, go, goroutines, gosched, run, scope, sleep,
    systemstack,
};
use support::runs::{on, wait_for};
use support::watchdog::watch;

const LONG: Duration = Duration::from_secs(600);

/// A wait that never ends is a failure after this time.
const LIMIT: Duration = Duration::from_secs(120);

/// How many goroutines wait for this reason.
fn waiting(reason: WaitReason) -> usize {
    let all = goroutines();
    all.iter().filter(|g| g.status() == Some((Status::Waiting, reason))).count()
}

/// Runs `body` on goroutines that stay, on goroutines that migrate, and on threads.
fn on_all_kinds(n: usize, body: impl Fn() + Send + Sync + 'static) {
    let body: Arc<dyn Fn() + Send + Sync> = Arc::new(body);
    let of = |_| {
        let body = Arc::clone(&body);
        move || body()
    };
    let threads: Vec<_> = (0..n).map(of).map(std::thread::spawn).collect();
    on(3, || {
        let sticky: Vec<_> = (0..n).map(of).map(go).collect();
        // SAFETY: the bodies keep no thread-local over a park, and only guards, which do not depend
        // on the thread.
        let migratable = |f| unsafe { Builder::new().go_migratable(f) }.expect("memory");
        let migratable: Vec<_> = (0..n).map(of).map(migratable).collect();
        sticky.into_iter().chain(migratable).for_each(|handle| handle.join().expect("no panic"));
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn bounds_are_those_of_std() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    fn unwind_safe<T: std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    send::<Mutex<std::cell::Cell<u8>>>();
    sync::<Mutex<std::cell::Cell<u8>>>();
    send::<RwLock<std::cell::Cell<u8>>>();
    sync::<RwLock<u8>>();
    sync::<MutexGuard<'static, u8>>();
    sync::<RwLockReadGuard<'static, u8>>();
    sync::<RwLockWriteGuard<'static, u8>>();
    send::<OnceLock<std::cell::Cell<u8>>>();
    sync::<OnceLock<u8>>();
    unwind_safe::<Mutex<&mut u8>>();
    unwind_safe::<RwLock<&mut u8>>();
    unwind_safe::<(Condvar, Once, WaitGroup, Barrier)>();
    let unsized_mutex: &Mutex<[u8]> = &Mutex::new([1, 2]);
    assert_eq!(unsized_mutex.lock().expect("not poisoned").len(), 2);
}

#[test]
fn a_mutex_has_one_holder_among_goroutines_and_threads() {
    let _watch = watch(LIMIT);
    const EACH: usize = 2000;
    static COUNT: Mutex<usize> = Mutex::new(0);
    static HOLDERS: AtomicUsize = AtomicUsize::new(0);
    on_all_kinds(4, || {
        for i in 0..EACH {
            let mut count = COUNT.lock().expect("no panic");
            assert_eq!(HOLDERS.fetch_add(1, Ordering::Relaxed), 0);
            let before = *count;
            if i % 7 == 0 {
                gosched();
            }
            *count = before + 1;
            HOLDERS.fetch_sub(1, Ordering::Relaxed);
        }
    });
    assert_eq!(*COUNT.lock().expect("no panic"), 12 * EACH);
}

/// The mutex is always held when the other goroutine runs, so that it never gets it by competing.
#[test]
fn a_waiter_loses_a_mutex_once_at_most() {
    let _watch = watch(LIMIT);
    on(1, || {
        let (mutex, got) = (Mutex::new(()), AtomicBool::new(false));
        let holds = scope(|s| {
            let guard = mutex.lock().expect("no panic");
            s.go(|| {
                drop(mutex.lock());
                got.store(true, Ordering::Relaxed);
            });
            gosched();
            assert_eq!(waiting(WaitReason::MutexLock), 1);
            drop(guard);
            let mut holds = 0;
            while !got.load(Ordering::Relaxed) {
                let _guard = mutex.lock().expect("no panic");
                holds += 1;
                assert!(holds < 100, "the waiter starves");
                gosched();
            }
            holds
        });
        // It is woken during the first hold, and handed the mutex after that.
        assert!((1..=2).contains(&holds), "it got the mutex after {holds} holds");
    });
}

#[test]
fn waiters_get_a_mutex_in_the_order_in_which_they_came() {
    let _watch = watch(LIMIT);
    const WAITERS: usize = 20;
    on(1, || {
        let order = Mutex::new(Vec::new());
        scope(|s| {
            let guard = order.lock().expect("no panic");
            for n in 0..WAITERS {
                let order = &order;
                s.go(move || {
                    let mut order = order.lock().expect("no panic");
                    order.push(n);
                    gosched();
                });
            }
            gosched();
            assert_eq!(waiting(WaitReason::MutexLock), WAITERS);
            drop(guard);
        });
        assert_eq!(order.into_inner().expect("no panic"), (0..WAITERS).collect::<Vec<_>>());

        // Also where each of them loses once: the mutex is locked whenever a waiter runs.
        let (mutex, order, holds) = (Mutex::new(()), Mutex::new(Vec::new()), AtomicUsize::new(0));
        scope(|s| {
            let guard = mutex.lock().expect("no panic");
            for n in 0..WAITERS {
                let (mutex, order, holds) = (&mutex, &order, &holds);
                s.go(move || {
                    let _guard = mutex.lock().expect("no panic");
                    order.lock().expect("no panic").push(n);
                    // The waiters before it and this one have lost once each.
                    let holds = holds.load(Ordering::Relaxed);
                    assert!(holds <= 2 * (n + 1), "waiter {n} got it after {holds} holds");
                });
            }
            gosched();
            drop(guard);
            while order.lock().expect("no panic").len() < WAITERS {
                let _guard = mutex.lock().expect("no panic");
                assert!(holds.fetch_add(1, Ordering::Relaxed) < 1000, "the waiters starve");
                gosched();
            }
        });
        assert_eq!(order.into_inner().expect("no panic"), (0..WAITERS).collect::<Vec<_>>());
    });
}

#[test]
fn a_holder_that_panics_poisons_a_mutex() {
    let _watch = watch(LIMIT);
    run(|| {
        let mutex = Arc::new(Mutex::new(1));
        let inner = Arc::clone(&mutex);
        let panics = go(move || {
            let mut guard = inner.lock().expect("not poisoned");
            *guard = 2;
            panic!("half-done");
        });
        assert!(panics.join().is_err());
        assert!(mutex.is_poisoned());
        let error = mutex.lock().expect_err("poisoned");
        assert_eq!(**error.get_ref(), 2);
        assert!(
            matches!(mutex.try_lock(), Err(TryLockError::WouldBlock)),
            "the error has the guard"
        );
        drop(error);
        assert!(matches!(mutex.try_lock(), Err(TryLockError::Poisoned(_))));
        assert_eq!(format!("{mutex:?}"), "Mutex { data: 2, poisoned: true, .. }");
        mutex.clear_poison();
        *mutex.lock().expect("cleared") = 3;
        let mut mutex = Arc::into_inner(mutex).expect("the only one");
        assert_eq!(*mutex.get_mut().expect("cleared"), 3);
        let guard = mutex.lock().expect("cleared");
        assert_eq!(
            format!("{mutex:?} {guard:?} {guard}"),
            "Mutex { data: <locked>, poisoned: false, .. } 3 3"
        );
    });
    // A guard that is made while its goroutine unwinds does not poison.
    struct Locks<'a>(&'a Mutex<()>);
    impl Drop for Locks<'_> {
        fn drop(&mut self) {
            drop(self.0.lock());
        }
    }
    let mutex = Mutex::new(());
    let body = AssertUnwindSafe(|| {
        let _locks = Locks(&mutex);
        panic!("not with the mutex");
    });
    assert!(catch_unwind(body).is_err());
    assert!(!mutex.is_poisoned());
}

#[test]
fn a_lock_has_readers_or_one_writer() {
    let _watch = watch(LIMIT);
    const EACH: usize = 1500;
    static LOCK: RwLock<[usize; 2]> = RwLock::new([0; 2]);
    static READERS: AtomicUsize = AtomicUsize::new(0);
    static WRITERS: AtomicUsize = AtomicUsize::new(0);
    on_all_kinds(4, || {
        for i in 0..EACH {
            if i % 3 == 0 {
                let mut pair = LOCK.write().expect("no panic");
                assert_eq!(WRITERS.fetch_add(1, Ordering::SeqCst), 0);
                assert_eq!(READERS.load(Ordering::SeqCst), 0);
                pair[0] += 1;
                if i % 4 == 0 {
                    gosched();
                }
                pair[1] += 1;
                WRITERS.fetch_sub(1, Ordering::SeqCst);
            } else {
                let pair = LOCK.read().expect("no panic");
                READERS.fetch_add(1, Ordering::SeqCst);
                assert_eq!(WRITERS.load(Ordering::SeqCst), 0);
                assert_eq!(pair[0], pair[1]);
                if i % 5 == 0 {
                    gosched();
                }
                READERS.fetch_sub(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!(*LOCK.read().expect("no panic"), [12 * EACH / 3; 2]);
}

#[test]
fn readers_and_writers_hold_a_lock_in_the_order_in_which_they_came() {
    let _watch = watch(LIMIT);
    on(1, || {
        let lock = RwLock::new(());
        let held = std::sync::Mutex::new(Vec::new());
        let record = |what: &str| held.lock().expect("no panic").push(what.to_owned());
        scope(|s| {
            let guard = lock.read().expect("no panic");
            assert!(lock.try_read().is_ok());
            for name in ["w1", "r1", "r2", "w2", "r3"] {
                let (lock, record) = (&lock, &record);
                s.go(move || {
                    if name.starts_with('w') {
                        let _guard = lock.write().expect("no panic");
                        record(name);
                        gosched();
                        record(name);
                    } else {
                        let _guard = lock.read().expect("no panic");
                        record(name);
                        gosched();
                        record(name);
                    }
                });
            }
            gosched();
            assert_eq!(waiting(WaitReason::RwLockWrite), 2);
            assert_eq!(waiting(WaitReason::RwLockRead), 3);
            // A writer waits: no reader goes ahead of it.
            assert!(matches!(lock.try_read(), Err(TryLockError::WouldBlock)));
            drop(guard);
        });
        let held = held.into_inner().expect("no panic").join(" ");
        assert_eq!(held, "w1 w1 r1 r2 r1 r2 w2 w2 r3 r3");
    });
}

#[test]
fn a_writer_that_panics_poisons_a_lock_and_a_reader_does_not() {
    let _watch = watch(LIMIT);
    run(|| {
        let lock = Arc::new(RwLock::new(1));
        let inner = Arc::clone(&lock);
        let reader = go(move || {
            let _guard = inner.read().expect("not poisoned");
            panic!("a reader");
        });
        assert!(reader.join().is_err());
        assert!(!lock.is_poisoned());
        let inner = Arc::clone(&lock);
        let writer = go(move || {
            *inner.write().expect("not poisoned") = 2;
            let _guard = inner.write().expect("not poisoned");
            panic!("a writer");
        });
        assert!(writer.join().is_err());
        assert!(lock.is_poisoned());
        assert_eq!(**lock.read().expect_err("poisoned").get_ref(), 2);
        assert!(matches!(lock.try_write(), Err(TryLockError::Poisoned(_))));
        assert_eq!(format!("{lock:?}"), "RwLock { data: 2, poisoned: true, .. }");
        lock.clear_poison();
        let mut lock = Arc::into_inner(lock).expect("the only one");
        assert_eq!(*lock.get_mut().expect("cleared"), 2);
        assert_eq!(lock.into_inner().expect("cleared"), 2);
    });
}

/// A queue with room for one value, by a mutex and two condition variables.
#[test]
fn no_notification_is_lost_between_goroutines_and_threads() {
    let _watch = watch(LIMIT);
    const EACH: usize = 1500;
    struct Slot {
        value: Mutex<Option<usize>>,
        is_full: Condvar,
        is_empty: Condvar,
    }
    static SLOT: Slot =
        Slot { value: Mutex::new(None), is_full: Condvar::new(), is_empty: Condvar::new() };
    static NUMBERS: AtomicUsize = AtomicUsize::new(0);
    static SUM: AtomicUsize = AtomicUsize::new(0);
    on_all_kinds(2, || {
        // Producers and consumers alternate, as many of each.
        let consumes = NUMBERS.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        for i in 1..=EACH {
            let mut value = SLOT.value.lock().expect("no panic");
            if consumes {
                while value.is_none() {
                    value = SLOT.is_full.wait(value).expect("no panic");
                }
                SUM.fetch_add(value.take().expect("full"), Ordering::Relaxed);
                SLOT.is_empty.notify_one();
            } else {
                value = SLOT.is_empty.wait_while(value, |value| value.is_some()).expect("no panic");
                *value = Some(i);
                SLOT.is_full.notify_one();
            }
        }
    });
    assert_eq!(SUM.load(Ordering::Relaxed), 3 * EACH * (EACH + 1) / 2);
}

#[test]
fn a_notification_ends_one_wait_or_all() {
    let _watch = watch(LIMIT);
    on(1, || {
        let (mutex, condvar, woken) = (Mutex::new(()), Condvar::new(), AtomicUsize::new(0));
        let order = std::sync::Mutex::new(Vec::new());
        scope(|s| {
            condvar.notify_all(); // for none: it is not kept
            for n in 0..5 {
                let (mutex, condvar, woken, order) = (&mutex, &condvar, &woken, &order);
                s.go(move || {
                    drop(condvar.wait(mutex.lock().expect("no panic")));
                    order.lock().expect("no panic").push(n);
                    woken.fetch_add(1, Ordering::Relaxed);
                });
            }
            gosched();
            assert_eq!(waiting(WaitReason::CondvarWait), 5);
            for n in 1..=2 {
                condvar.notify_one();
                (0..10).for_each(|_| gosched());
                assert_eq!(woken.load(Ordering::Relaxed), n);
            }
            condvar.notify_all();
        });
        assert_eq!(*order.lock().expect("no panic"), [0, 1, 2, 3, 4]);
    });
}

#[test]
fn a_wait_for_a_notification_has_a_limit_of_time() {
    let _watch = watch(LIMIT);
    let body = || {
        let (mutex, condvar) = (Mutex::new(0), Condvar::new());
        let guard = mutex.lock().expect("no panic");
        let start = Instant::now();
        let short = Duration::from_millis(20);
        let (guard, result) = condvar.wait_timeout(guard, short).expect("no panic");
        assert!(result.timed_out() && start.elapsed() >= short);
        let waited = condvar.wait_timeout_while(guard, short, |_| true);
        let (guard, result) = waited.expect("no panic");
        assert!(result.timed_out() && start.elapsed() >= 2 * short);
        let (guard, result) = condvar.wait_timeout(guard, Duration::ZERO).expect("no panic");
        assert!(result.timed_out() && *guard == 0);
        // It is locked again.
        assert!(mutex.try_lock().is_err());
        drop(guard);
        condvar.notify_one(); // for none: nothing is left in the queue
    };
    body();
    on(1, body);
    // A notification comes first.
    static STATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
    static IN_TIME: AtomicUsize = AtomicUsize::new(0);
    on_all_kinds(2, || {
        let (mutex, condvar) = &STATE;
        let is_first = IN_TIME.load(Ordering::Relaxed) == 0 && {
            let mut is_first = mutex.lock().expect("no panic");
            !std::mem::replace(&mut *is_first, true)
        };
        if is_first {
            while IN_TIME.load(Ordering::Relaxed) < 5 {
                condvar.notify_one();
                sleep(Duration::from_millis(1));
            }
        } else {
            let guard = mutex.lock().expect("no panic");
            let (_guard, result) = condvar.wait_timeout(guard, LONG).expect("no panic");
            assert!(!result.timed_out());
            IN_TIME.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[test]
fn a_wait_group_is_used_again() {
    let _watch = watch(LIMIT);
    on(2, || {
        let (group, done) = (WaitGroup::new(), AtomicUsize::new(0));
        scope(|s| {
            for round in 1..=200 {
                group.add(3);
                for _ in 0..3 {
                    s.go(|| {
                        gosched();
                        done.fetch_add(1, Ordering::Relaxed);
                        group.done();
                    });
                }
                // Several wait, a thread among them.
                let other = s.go(|| group.wait());
                if round % 50 == 0 {
                    std::thread::scope(|t| drop(t.spawn(|| group.wait())));
                }
                group.wait();
                assert_eq!(done.load(Ordering::Relaxed), 3 * round);
                other.join().expect("no panic");
            }
        });
        let panic = catch_unwind(AssertUnwindSafe(|| group.done())).expect_err("one too many");
        assert!(panic.downcast_ref::<&str>().is_some_and(|text| text.contains("WaitGroup::add")));
        group.add(usize::MAX);
        assert!(catch_unwind(AssertUnwindSafe(|| group.add(1))).is_err());
        assert_eq!(format!("{group:?}"), format!("WaitGroup {{ count: {}, .. }}", usize::MAX));
    });
}

#[test]
fn a_closure_runs_once() {
    let _watch = watch(LIMIT);
    static ONCE: Once = Once::new();
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static CELL: OnceLock<String> = OnceLock::new();
    on_all_kinds(4, || {
        ONCE.call_once(|| {
            for _ in 0..50 {
                gosched();
            }
            RUNS.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(RUNS.load(Ordering::Relaxed), 1);
        assert_eq!(CELL.get_or_init(|| format!("{}", RUNS.load(Ordering::Relaxed))), "1");
    });
}

#[test]
fn a_closure_that_panics_poisons_a_once_and_leaves_a_cell_empty() {
    let _watch = watch(LIMIT);
    on(1, || {
        let (once, gate) = (Once::new(), Chan::new(0));
        scope(|s| {
            let panics = s.go(|| {
                let body = || {
                    once.call_once(|| {
                        gate.recv().expect("open");
                        panic!("in the closure");
                    });
                };
                assert!(catch_unwind(AssertUnwindSafe(body)).is_err());
            });
            gosched();
            // They wait for the closure, and find that it has panicked.
            let others = [false, true].map(|calls| {
                let once = &once;
                s.go(move || {
                    let body = || if calls { once.call_once(|| ()) } else { once.wait() };
                    catch_unwind(AssertUnwindSafe(body)).is_err()
                })
            });
            gosched();
            assert_eq!(waiting(WaitReason::Once), 2);
            gate.send(()).expect("open");
            assert_eq!(others.map(|handle| handle.join().expect("caught")), [true; 2]);
            panics.join().expect("caught");
        });
        assert!(!once.is_completed());
        let mut was_poisoned = None;
        once.call_once_force(|state| was_poisoned = Some(state.is_poisoned()));
        assert_eq!(was_poisoned, Some(true));
        assert!(once.is_completed());
        once.wait();

        let cell = OnceLock::new();
        let body = AssertUnwindSafe(|| cell.get_or_init(|| -> Arc<()> { panic!("empty") }).clone());
        assert!(catch_unwind(body).is_err());
        assert_eq!((cell.get(), format!("{cell:?}")), (None, "OnceLock(<uninit>)".into()));
        let value = Arc::new(());
        assert_eq!(cell.set(Arc::clone(&value)), Ok(()));
        assert!(cell.set(Arc::new(())).is_err());
        assert_eq!(Arc::strong_count(cell.wait()), 2);
        drop(cell);
        assert_eq!(Arc::strong_count(&value), 1, "dropped once");
    });
}

#[test]
fn a_barrier_has_rounds() {
    let _watch = watch(LIMIT);
    static BARRIER: Barrier = Barrier::new(12);
    static COME: AtomicUsize = AtomicUsize::new(0);
    static LEADERS: AtomicUsize = AtomicUsize::new(0);
    on_all_kinds(4, || {
        for round in 1..=100 {
            COME.fetch_add(1, Ordering::Relaxed);
            let is_leader = BARRIER.wait().is_leader();
            assert!(COME.load(Ordering::Relaxed) >= 12 * round);
            LEADERS.fetch_add(usize::from(is_leader), Ordering::Relaxed);
            BARRIER.wait();
            assert_eq!(LEADERS.load(Ordering::Relaxed), round);
            BARRIER.wait();
        }
    });
}

#[test]
fn a_lock_that_would_park_on_the_system_stack_is_refused_and_unharmed() {
    let _watch = watch(LIMIT);
    fn refuses(f: impl FnOnce()) {
        let payload = catch_unwind(AssertUnwindSafe(|| systemstack(f))).expect_err("refused");
        let text = payload.downcast_ref::<&str>().expect("a message");
        assert!(text.contains("cannot park inside of systemstack"), "{text}");
    }
    on(1, || {
        let (mutex, lock, condvar) = (Mutex::new(()), RwLock::new(()), Condvar::new());
        let (group, once, barrier) = (WaitGroup::new(), Once::new(), Barrier::new(2));
        let held = (mutex.lock().expect("no panic"), lock.write().expect("no panic"));
        group.add(1);
        refuses(|| drop(mutex.lock()));
        refuses(|| drop(lock.read()));
        refuses(|| drop(lock.write()));
        refuses(|| group.wait());
        refuses(|| once.wait());
        refuses(|| assert!(!barrier.wait().is_leader()));
        drop(held);
        refuses(|| drop(condvar.wait(mutex.lock().expect("no panic"))));
        mutex.clear_poison();
        refuses(|| drop(condvar.wait_timeout(mutex.lock().expect("no panic"), LONG)));
        mutex.clear_poison();
        // What is free is locked there, too, and the refused waits have left nothing.
        systemstack(|| drop((mutex.lock().expect("free"), lock.write().expect("free"))));
        scope(|s| {
            s.go(|| barrier.wait());
            barrier.wait();
        });
    });
}

/// A run ends while goroutines stand in the queue of a mutex, and while one holds a lock.
#[test]
fn waiters_that_a_run_abandons_are_skipped() {
    let _watch = watch(LIMIT);
    static MUTEX: Mutex<u32> = Mutex::new(0);
    static LOCK: RwLock<u32> = RwLock::new(0);
    static CONDVAR: Condvar = Condvar::new();
    static HELD: Mutex<()> = Mutex::new(());
    let guards = (MUTEX.lock().expect("no panic"), LOCK.write().expect("no panic"));
    on(2, || {
        for _ in 0..4 {
            go(|| *MUTEX.lock().expect("no panic") += 100);
            go(|| *LOCK.write().expect("no panic") += 100);
            go(|| drop(LOCK.read()));
            go(|| drop(CONDVAR.wait(HELD.lock().expect("no panic"))));
        }
        let all_wait = || {
            let reasons = [WaitReason::MutexLock, WaitReason::RwLockWrite, WaitReason::CondvarWait];
            reasons.into_iter().all(|reason| waiting(reason) == 4)
        };
        wait_for("all wait", all_wait);
    });
    std::thread::scope(|s| {
        let mutex = s.spawn(|| *MUTEX.lock().expect("no panic") += 1);
        let lock = s.spawn(|| *LOCK.write().expect("no panic") += 1);
        let notified = s.spawn(|| {
            let guard = HELD.lock().expect("no panic");
            CONDVAR.wait_timeout(guard, LONG).expect("no panic").1
        });
        while !notified.is_finished() {
            CONDVAR.notify_one();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!notified.join().expect("no panic").timed_out());
        drop(guards);
        mutex.join().expect("no panic");
        lock.join().expect("no panic");
    });
    assert_eq!((*MUTEX.lock().expect("free"), *LOCK.read().expect("free")), (1, 1));
    // A holder that is abandoned holds it for ever.
    static ABANDONED: Mutex<()> = Mutex::new(());
    on(1, || {
        go(|| {
            let _guard = ABANDONED.lock();
            sleep(LONG);
        });
        gosched();
    });
    assert!(matches!(ABANDONED.try_lock(), Err(TryLockError::WouldBlock)));
}

/// The waiter that a mutex was released for is abandoned before it competes: a later holder takes
/// the next waiter all the same.
#[test]
fn a_waiter_that_is_abandoned_on_its_way_to_a_mutex_is_replaced() {
    let _watch = watch(LIMIT);
    static MUTEX: Mutex<u32> = Mutex::new(0);
    let abandon_a_woken_waiter = || {
        on(1, || {
            let guard = MUTEX.lock().expect("no panic");
            go(|| *MUTEX.lock().expect("no panic") += 100);
            gosched();
            assert_eq!(waiting(WaitReason::MutexLock), 1);
            drop(guard); // The waiter is runnable, and the run ends.
        });
    };
    abandon_a_woken_waiter();
    on(1, || {
        let add = || {
            let mut sum = MUTEX.lock().expect("no panic");
            gosched(); // the others queue
            *sum += 1;
        };
        let handles = [(); 3].map(|()| go(add));
        handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
    });
    assert_eq!(*MUTEX.lock().expect("free"), 3);

    // The same for threads that wait: the mutex is held when the run ends.
    abandon_a_woken_waiter();
    let guard = MUTEX.lock().expect("free");
    std::thread::scope(|s| {
        let threads = [(); 2].map(|()| s.spawn(|| *MUTEX.lock().expect("no panic") += 1));
        std::thread::sleep(Duration::from_millis(10)); // They queue, as a rule.
        drop(guard);
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    });
    assert_eq!(*MUTEX.lock().expect("free"), 5);
}

/// A `done` that is late to ready the waiters of its round does not ready one of the next round.
#[test]
fn a_wait_ends_when_its_own_round_is_done() {
    let _watch = watch(LIMIT);
    const ROUNDS: usize = 1_000;
    let group = WaitGroup::new();
    // The last round that has begun, and the last one that `done` was called for.
    let (added, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|s| {
        // Two threads take turns, so that a round begins while `done` of the last one runs.
        for first in [1, 2] {
            let (group, added, done) = (&group, &added, &done);
            s.spawn(move || {
                for round in (first..=ROUNDS).step_by(2) {
                    while added.load(Ordering::Acquire) != round - 1 || group.count() != 0 {
                        std::thread::yield_now();
                    }
                    group.add(1);
                    added.store(round, Ordering::Release);
                    std::thread::yield_now(); // The others wait, as a rule.
                    done.store(round, Ordering::Release);
                    group.done();
                }
            });
        }
        for _ in 0..3 {
            s.spawn(|| {
                // It does not yield: the more these threads contend, the later a `done` is.
                loop {
                    let round = added.load(Ordering::Acquire);
                    group.wait();
                    let done = done.load(Ordering::Acquire);
                    assert!(done >= round, "a wait of round {round} ended when {done} were done");
                    if round == ROUNDS {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!((group.count(), done.load(Ordering::Relaxed)), (0, ROUNDS));
}

#[test]
fn a_barrier_does_not_count_waiters_that_a_run_abandons() {
    let _watch = watch(LIMIT);
    static BARRIER: Barrier = Barrier::new(3);
    on(1, || {
        for _ in 0..2 {
            go(|| BARRIER.wait());
        }
        gosched();
        assert_eq!(waiting(WaitReason::Barrier), 2);
    });
    let passed = AtomicUsize::new(0);
    on(1, || {
        scope(|s| {
            let wait = || {
                let is_leader = BARRIER.wait().is_leader();
                passed.fetch_add(1, Ordering::Relaxed);
                is_leader
            };
            let mut handles = vec![s.go(wait), s.go(wait)];
            gosched();
            assert_eq!((waiting(WaitReason::Barrier), passed.load(Ordering::Relaxed)), (2, 0));
            handles.push(s.go(wait));
            let leaders = handles.into_iter().filter_map(|h| h.join().ok()).filter(|&is| is);
            assert_eq!(leaders.count(), 1);
        });
    });
    assert_eq!(passed.load(Ordering::Relaxed), 3);
}

#[test]
fn an_initialiser_that_a_run_abandons_poisons_a_once_and_leaves_a_cell_empty() {
    let _watch = watch(LIMIT);
    static ONCE: Once = Once::new();
    static CELL: OnceLock<u32> = OnceLock::new();
    on(1, || {
        go(|| ONCE.call_once(|| sleep(LONG)));
        go(|| {
            CELL.get_or_init(|| {
                sleep(LONG);
                5
            })
        });
        gosched();
        assert_eq!(waiting(WaitReason::Sleep), 2);
    });
    assert!(catch_unwind(|| ONCE.call_once(|| ())).is_err());
    assert!(catch_unwind(|| ONCE.wait()).is_err());
    assert!(!ONCE.is_completed());
    ONCE.call_once_force(|state| assert!(state.is_poisoned()));
    assert!(ONCE.is_completed());
    assert_eq!((CELL.get(), *CELL.get_or_init(|| 6)), (None, 6));
}
