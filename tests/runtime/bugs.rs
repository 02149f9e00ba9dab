//! One test for each defect that was found and mended.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use support::runs::on;

use footbridge::jit::{Jit, JitError};
use footbridge::runtime::{
    Builder, Case, Chan, Config, JoinHandle, RecvError, WaitReason, checkpoint, current, go,
    gopark, goready, gosched, run, scope, select, stats,
};

/// The value of a scoped goroutine that nobody joins was dropped after the scope had ended.
#[test]
fn the_value_of_a_scoped_goroutine_is_gone_when_the_scope_ends() {
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
        for round in 1..=5 {
            let data: Box<[AtomicUsize; 8]> = Box::new([const { AtomicUsize::new(1) }; 8]);
            scope(|s| {
                let (data, dropped) = (&data, &dropped);
                s.go(move || Reads(data, dropped));
                // Another thread takes it meanwhile.
                std::thread::sleep(Duration::from_millis(3));
            });
            assert_eq!(dropped.load(Ordering::Relaxed), round);
            data.iter().for_each(|word| word.store(2, Ordering::Relaxed));
        }
    });
}

/// A thread whose run queue was full stole into it when the run ended, and others hung.
#[test]
fn a_run_ends_with_full_queues() {
    static READY: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicBool = AtomicBool::new(false);
    for combination in 0..9usize {
        READY.store(0, Ordering::SeqCst);
        STOP.store(false, Ordering::SeqCst);
        on(3, || {
            for (i, yields) in [combination % 3, combination / 3].into_iter().enumerate() {
                go(move || {
                    (0..yields).for_each(|_| gosched());
                    READY.fetch_add(1, Ordering::SeqCst);
                    while READY.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                    (0..250).for_each(|_| drop(go(|| ())));
                    READY.fetch_add(1, Ordering::SeqCst);
                    while !STOP.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(Duration::from_millis(10 * (i as u64 + 1)));
                });
            }
            while READY.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
            (0..250).for_each(|_| drop(go(|| ())));
            STOP.store(true, Ordering::SeqCst);
        });
    }
}

/// The end of one run took a goroutine for its own that another run was just starting.
#[test]
fn runs_that_end_leave_the_goroutines_of_others_alone() {
    let (send, receive) = std::sync::mpsc::sync_channel::<Vec<JoinHandle<()>>>(64);
    let other = std::thread::spawn(move || {
        on(1, || {
            let gate = Chan::<()>::new(0);
            let mut waiting = Vec::new();
            while let Ok(handles) = receive.recv() {
                for handle in handles {
                    // Frees a goroutine of the run that ends; the next one takes it.
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
            while !handles.iter().all(JoinHandle::is_finished) {
                gosched();
            }
            send.send(handles).expect("the other run goes on");
        });
    }
    drop(send);
    other.join().expect("no panic");
}

/// A migratable goroutine that gave way while it unwound took the count of panics elsewhere.
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
                    // SAFETY: nothing that is not Send, and no thread-local, lives over a park.
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

/// A value in the slot of a case was dropped under the locks of other channels.
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

/// A size that no multiple of a chunk reaches overflowed.
#[test]
fn a_reservation_of_everything_is_an_error() {
    let error = Jit::builder().reserve_bytes(usize::MAX).build().expect_err("too much");
    assert!(matches!(error, JitError::System { call: "mmap(2)", .. }), "{error}");
}

/// While a goroutine slept, the last thread to go idle woke every 10 ms to look for a deadlock that
/// a timer rules out.
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

/// A thread of a run ended, and destroyed its thread-locals, while a goroutine of another thread still
/// used a borrow of one.
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
    let watchdog = Instant::now();
    while READ_TO_THE_END.load(Ordering::SeqCst) < 3 {
        assert!(watchdog.elapsed() < Duration::from_secs(60), "the goroutines never ran apart");
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
                        // Another thread takes it meanwhile.
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
            // The owner of the value finds nothing to do meanwhile.
            std::thread::sleep(Duration::from_millis(5));
        });
    }
    assert_eq!(
        WRONG.load(Ordering::SeqCst),
        0,
        "a thread-local was destroyed while it was borrowed"
    );
}

/// A goroutine that was readied by one that polls in a loop stayed in the run-next slot for ever: the
/// other one, whose time slice was over, was in a queue, and queues went first.
#[test]
fn a_readied_goroutine_does_not_starve_beside_a_loop_that_polls() {
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
            let (start, before) = (Instant::now(), stats().cooperative);
            while !has_run.load(Ordering::Relaxed) {
                assert!(start.elapsed() < Duration::from_secs(30), "the receiver starves");
                checkpoint();
            }
            stats().cooperative - before
        })
    });
    let slices = slices.expect("the run starts");
    assert!((1..=2).contains(&slices), "it ran after {slices} time slices");
}

/// `gosched` came back before most of what was runnable: a producer that started goroutines and
/// yielded after each batch ran ahead of all of them.
#[test]
fn what_was_runnable_before_a_yield_has_its_turn_first() {
    const BATCH: usize = 1000; // more than a run queue has
    on(1, || {
        let done = Arc::new(AtomicUsize::new(0));
        for round in 1..=20 {
            for _ in 0..BATCH {
                let done = Arc::clone(&done);
                drop(go(move || done.fetch_add(1, Ordering::Relaxed)));
            }
            gosched();
            assert_eq!(done.load(Ordering::Relaxed), round * BATCH, "round {round}");
        }
    });
}

/// The same for two that yield in turn, each after what it has started itself, and for one that may
/// move; and none of them waits for what others start later.
#[test]
fn goroutines_that_yield_wait_for_their_own_backlog_only() {
    const BATCH: usize = 600;
    struct Stops<'a>(&'a AtomicBool);
    impl Drop for Stops<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    on(1, || {
        let done = [const { AtomicUsize::new(0) }; 3];
        let stop = AtomicBool::new(false);
        scope(|s| {
            let produce = |number: usize| {
                let (done, stop) = (&done, &stop);
                move || {
                    // Also when it panics.
                    let _stops = (number == 0).then(|| Stops(stop));
                    for round in 1..=20 {
                        for _ in 0..BATCH {
                            drop(s.go(move || done[number].fetch_add(1, Ordering::Relaxed)));
                        }
                        gosched();
                        let ended = done[number].load(Ordering::Relaxed);
                        assert_eq!(ended, round * BATCH, "producer {number}, round {round}");
                    }
                }
            };
            // One that never lets the run queue become empty.
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
                // SAFETY: the thread is in the `gopark` below, whose `unlock` is running, and nothing
                // else readies it.
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
    let woken = receiver.recv_timeout(Duration::from_secs(20));
    woken.expect("the thread sleeps in its destructor");
}
