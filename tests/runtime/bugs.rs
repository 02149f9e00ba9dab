//! Regression tests, one for each defect that was fixed.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use support::patience::{self, Patience, wait_by};
use support::runs::{AtEnd, on, wait_for};

use footbridge::jit::{Jit, JitError};
use footbridge::runtime::{
    Builder, Case, Chan, Config, JoinHandle, RecvError, WaitReason, checkpoint, current, go,
    gopark, goready, gosched, run, scope, select, stats,
};

/// The value of a scoped goroutine that is not joined was dropped after the scope had ended.
#[test]
fn the_value_of_a_scoped_goroutine_is_dropped_when_the_scope_ends() {
    struct Reads<'a>(&'a [AtomicUsize; 8], &'a AtomicUsize);
    impl Drop for Reads<'_> {
        fn drop(&mut self) {
            std::thread::sleep(Duration::from_millis(10));
            assert!(self.0.iter().all(|word| word.load(Ordering::Relaxed) == 1));
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = AtomicUsize::new(0);
    on(2, || {
        for i in 1..=5 {
            let data: Box<[AtomicUsize; 8]> = Box::new([const { AtomicUsize::new(1) }; 8]);
            scope(|s| {
                let (data, dropped) = (&data, &dropped);
                s.go(move || Reads(data, dropped));
                // Meanwhile another thread steals it.
                std::thread::sleep(Duration::from_millis(3));
            });
            assert_eq!(dropped.load(Ordering::Relaxed), i);
            data.iter().for_each(|word| word.store(2, Ordering::Relaxed));
        }
    });
}

/// At the end of a run, a thread with a full run queue stole goroutines into it, and other threads
/// hung.
#[test]
fn a_run_ends_with_full_queues() {
    static READY: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    let occupy = |condition: &dyn Fn() -> bool| {
        wait_by(std::thread::yield_now, "three threads run", stats, condition);
    };
    for combination in 0..9usize {
        READY.store(0, Ordering::SeqCst);
        STOP.store(false, Ordering::SeqCst);
        on(3, || {
            for (i, yields) in [combination % 3, combination / 3].into_iter().enumerate() {
                go(move || {
                    (0..yields).for_each(|_| gosched());
                    READY.fetch_add(1, Ordering::SeqCst);
                    occupy(&|| READY.load(Ordering::SeqCst) >= 2);
                    (0..250).for_each(|_| drop(go(|| ())));
                    READY.fetch_add(1, Ordering::SeqCst);
                    occupy(&|| STOP.load(Ordering::SeqCst));
                    std::thread::sleep(Duration::from_millis(10 * (i as u64 + 1)));
                });
            }
            occupy(&|| READY.load(Ordering::SeqCst) >= 4);
            (0..250).for_each(|_| drop(go(|| ())));
            STOP.store(true, Ordering::SeqCst);
        });
    }
}

/// The end of one run treated a goroutine that another run was starting as its own.
#[test]
fn runs_that_end_leave_the_goroutines_of_others_alone() {
    let (send, receive) = std::sync::mpsc::sync_channel::<Vec<JoinHandle<()>>>(64);
    let other = std::thread::spawn(move || {
        on(1, || {
            let gate = Chan::<()>::new(0);
            let mut waiting = Vec::new();
            while let Ok(handles) = receive.recv() {
                for handle in handles {
                    // Frees a G of the run that ends, which the next `go` reuses.
                    handle.join().expect("it had ended");
                    let gate = gate.clone();
                    waiting.push(go(move || assert_eq!(gate.recv(), Err(RecvError))));
                }
            }
            gate.close();
            waiting.into_iter().for_each(|h| h.join().expect("not abandoned"));
        });
    });
    for _ in 0..300 {
        let send = send.clone();
        on(1, move || {
            let handles: Vec<_> = (0..64).map(|_| go(|| ())).collect();
            wait_for("all end", || handles.iter().all(JoinHandle::is_finished));
            send.send(handles).expect("the other run continues");
        });
    }
    drop(send);
    other.join().expect("no panic");
}

/// A migratable goroutine that yielded while it unwound moved to a thread with another panic count.
#[test]
fn a_goroutine_that_unwinds_stays_on_its_thread() {
    struct Yields;
    impl Drop for Yields {
        fn drop(&mut self) {
            let home = std::thread::current().id();
            for _ in 0..20 {
                gosched();
                assert_eq!(std::thread::current().id(), home);
            }
        }
    }
    on(4, || {
        for _ in 0..50 {
            let unwinding: Vec<_> = (0..16)
                .map(|_| {
                    // SAFETY: over a park the goroutine keeps no thread-local, and only Send
                    // values.
                    unsafe {
                        Builder::new()
                            .go_migratable(|| {
                                let _yields = Yields;
                                std::panic::resume_unwind(Box::new(()));
                            })
                            .expect("memory")
                    }
                })
                .collect();
            for handle in unwinding {
                assert!(handle.join().expect_err("it panicked").is::<()>());
            }
        }
    });
}

/// `select` dropped the previous value of a case's slot while it held the locks of other channels.
#[test]
fn cases_may_be_used_twice() {
    struct Receives(Option<Chan<Receives>>);
    impl Drop for Receives {
        fn drop(&mut self) {
            if let Some(channel) = self.0.take() {
                drop(channel.try_recv());
            }
        }
    }
    run(|| {
        let (a, b) = (Chan::new(2), Chan::<Receives>::new(2));
        a.send(Receives(Some(b.clone()))).expect("open");
        a.send(Receives(None)).expect("open");
        let (mut x, mut y) = (None, None);
        let mut cases = [Case::recv(&a, &mut x), Case::recv(&b, &mut y)];
        assert_eq!(select(&mut cases), 0);
        assert_eq!(select(&mut cases), 0);
        a.close();
        assert_eq!(select(&mut cases), 0);
        assert!(x.is_none(), "a closed channel leaves nothing in the slot");
    });
}

/// Rounding a size up to a multiple of a chunk overflowed.
#[test]
fn a_reservation_of_everything_is_an_error() {
    let error = Jit::builder().reserve_bytes(usize::MAX).build().expect_err("too much");
    assert!(matches!(error, JitError::NoMemory { bytes: usize::MAX, .. }), "{error}");
}

/// While a goroutine slept, the last idle thread woke every 10 ms to check for a deadlock, although
/// a pending timer rules one out.
#[test]
fn a_sleeping_goroutine_lets_its_thread_sleep() {
    let sleeps = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|n| n.trim().parse::<u64>().ok()).expect("a number")
    };
    let config = Config::new().processors(1).time_slice(None);
    let slept = config.run(|| {
        let before = sleeps();
        footbridge::runtime::sleep(Duration::from_millis(300));
        sleeps() - before
    });
    let slept = slept.expect("the run starts");
    assert!((1..8).contains(&slept), "it slept {slept} times");
}

/// A thread of a run ended and destroyed its thread-locals while a goroutine on another thread
/// still borrowed one.
#[test]
fn no_thread_of_a_run_ends_before_the_last_goroutine_has_stopped() {
    const LONG: Duration = Duration::from_millis(100);
    struct Value(AtomicUsize);
    impl Drop for Value {
        fn drop(&mut self) {
            self.0.store(0xdead, Ordering::SeqCst);
        }
    }
    thread_local! {
        static VALUE: Value = const { Value(AtomicUsize::new(42)) };
    }
    static READING: AtomicBool = AtomicBool::new(false);
    static WRONG: AtomicUsize = AtomicUsize::new(0);
    static READ_TO_THE_END: AtomicUsize = AtomicUsize::new(0);
    let patience = Patience::new();
    while READ_TO_THE_END.load(Ordering::SeqCst) < 3 {
        patience.check("the goroutines run on different threads", || ());
        READING.store(false, Ordering::SeqCst);
        on(4, || {
            let main_thread = std::thread::current().id();
            go(move || {
                let owner = std::thread::current().id();
                if owner == main_thread {
                    return;
                }
                VALUE.with(|value| {
                    scope(|s| {
                        s.go(move || {
                            if std::thread::current().id() == owner {
                                return;
                            }
                            READING.store(true, Ordering::SeqCst);
                            let start = Instant::now();
                            while start.elapsed() < LONG {
                                if value.0.load(Ordering::SeqCst) != 42 {
                                    WRONG.fetch_add(1, Ordering::SeqCst);
                                }
                            }
                            READ_TO_THE_END.fetch_add(1, Ordering::SeqCst);
                        });
                        // Meanwhile another thread steals it.
                        let start = Instant::now();
                        while !READING.load(Ordering::SeqCst) && start.elapsed() < LONG / 2 {
                            std::hint::spin_loop();
                        }
                    });
                });
            });
            let start = Instant::now();
            while !READING.load(Ordering::SeqCst) && start.elapsed() < LONG {
                std::hint::spin_loop();
            }
            // Meanwhile the thread that owns the value has nothing to run.
            std::thread::sleep(Duration::from_millis(5));
        });
    }
    assert_eq!(
        WRONG.load(Ordering::SeqCst),
        0,
        "a thread-local was destroyed while it was borrowed"
    );
}

/// A goroutine in the run-next slot starved if the goroutine that readied it polled in a loop. At
/// the end of its time slice the looping goroutine entered a queue, and that queue was served
/// before run-next.
#[test]
fn a_loop_that_polls_does_not_starve_a_readied_goroutine() {
    let config = Config::new().processors(1).time_slice(Duration::from_millis(1));
    let slices = config.run(|| {
        let has_run = AtomicBool::new(false);
        let channel = Chan::<u64>::new(1);
        scope(|s| {
            s.go(|| {
                channel.recv().expect("open");
                has_run.store(true, Ordering::Relaxed);
            });
            gosched();
            channel.send(1).expect("open");
            let before = stats().cooperative;
            let has_run = || has_run.load(Ordering::Relaxed);
            wait_by(checkpoint, "the receiver runs", stats, has_run);
            stats().cooperative - before
        })
    });
    let slices = slices.expect("the run starts");
    assert!((1..=2).contains(&slices), "it ran after {slices} time slices");
}

/// `gosched` returned before most runnable goroutines had run: a producer that started goroutines
/// and yielded after each batch ran before all of them.
#[test]
fn goroutines_that_were_runnable_before_a_yield_run_first() {
    const BATCH: usize = 1000; // more than a run queue holds
    on(1, || {
        let done = Arc::new(AtomicUsize::new(0));
        for i in 1..=20 {
            for _ in 0..BATCH {
                let done = Arc::clone(&done);
                drop(go(move || done.fetch_add(1, Ordering::Relaxed)));
            }
            gosched();
            assert_eq!(done.load(Ordering::Relaxed), i * BATCH, "i {i}");
        }
    });
}

/// A goroutine that yields resumes after the goroutines that it has started itself, and does not
/// wait for those that others start later.
#[test]
fn goroutines_that_yield_wait_for_their_own_backlog_only() {
    const BATCH: usize = 600;
    on(1, || {
        let done = [const { AtomicUsize::new(0) }; 3];
        let stop = AtomicBool::new(false);
        scope(|s| {
            let produce = |number: usize| {
                let (done, stop) = (&done, &stop);
                move || {
                    // Stops the other producer also if this one panics.
                    let _stop =
                        (number == 0).then(|| AtEnd(|| stop.store(true, Ordering::Relaxed)));
                    for i in 1..=20 {
                        for _ in 0..BATCH {
                            drop(s.go(move || done[number].fetch_add(1, Ordering::Relaxed)));
                        }
                        gosched();
                        let ended = done[number].load(Ordering::Relaxed);
                        assert_eq!(ended, i * BATCH, "producer {number}, i {i}");
                    }
                }
            };
            // This goroutine keeps the run queue from becoming empty.
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    (0..BATCH).for_each(|_| drop(s.go(|| done[2].fetch_add(1, Ordering::Relaxed))));
                    gosched();
                }
            });
            let producers = [s.go(produce(0)), s.go(produce(1))];
            for producer in producers {
                producer.join().expect("no panic");
            }
        });
    });
}

/// When the thread-locals of a foreign thread were destroyed, `current` and `gopark` took different
/// waiters, and a destructor that waited slept for ever.
#[test]
fn a_foreign_thread_can_wait_in_its_last_destructor() {
    struct Late(Sender<()>);
    impl Drop for Late {
        fn drop(&mut self) {
            let me = current();
            let unlock = || {
                // SAFETY: the thread is in the `gopark` below, whose `unlock` is running, and
                // nothing else readies it.
                std::thread::spawn(move || unsafe { goready(me) });
            };
            // SAFETY: one call of `goready` follows; `unlock` neither parks nor unwinds.
            unsafe { gopark(WaitReason::Other, unlock) };
            self.0.send(()).expect("the test waits");
        }
    }
    std::thread_local! {
        static LATE: Cell<Option<Late>> = const { Cell::new(None) };
    }
    let (sender, receiver) = channel();
    std::thread::spawn(|| {
        // Destructors run in the reverse order of their registration: this one comes last.
        LATE.set(Some(Late(sender)));
        current();
    });
    let woken = receiver.recv_timeout(patience::LIMIT);
    woken.expect("the thread sleeps in its destructor");
}

/// A scope that was opened around a run waited for ever for goroutines that the run had abandoned.
/// It cannot return instead: they may have lent what they borrowed.
#[test]
fn a_scope_starts_goroutines_of_its_own_run_only() {
    let _watch = support::watchdog::watch(Duration::from_secs(120));
    let refused = |start: &dyn Fn()| {
        let payload = catch_unwind(AssertUnwindSafe(start)).expect_err("refused");
        let text = payload.downcast_ref::<&str>().expect("a message");
        assert!(text.contains("open the scope inside of this run"), "{text}");
    };
    let data = Arc::new(());
    // Around a run.
    scope(|s| {
        run(|| {
            let [first, second] = [&data, &data].map(Arc::clone);
            refused(&|| drop(s.go(|| drop(Arc::clone(&data)))));
            refused(&|| drop(Builder::new().go_scoped(s, || ())));
            let (first, second) = (Cell::new(Some(first)), Cell::new(Some(second)));
            refused(&|| {
                let first = first.take();
                drop(s.go(move || drop(first)))
            });
            refused(&|| {
                let second = second.take();
                drop(Builder::new().go_scoped(s, move || drop(second)))
            });
        });
    });
    assert_eq!(Arc::strong_count(&data), 1, "closures that were refused are dropped");
    // Of another run.
    run(|| {
        scope(|s| {
            std::thread::scope(|t| {
                t.spawn(|| run(|| refused(&|| drop(s.go(|| ())))));
            });
            s.go(|| ()).join().expect("no panic");
        });
    });
}
