//! One test for each defect that was found and mended.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::runs::on;

use footbridge::jit::{Jit, JitError};
use footbridge::runtime::{
    Case, Chan, Config, JoinHandle, go, go_migratable, gosched, run, scope, select,
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
                    waiting.push(go(move || assert_eq!(gate.recv(), None)));
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
                        go_migratable(|| {
                            let _yields = Yields;
                            std::panic::resume_unwind(Box::new(()));
                        })
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
        a.send(Receives(Some(b.clone()))).ok().expect("open");
        a.send(Receives(None)).ok().expect("open");
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
    let config = Config { processors: 1, time_slice: None, ..Config::default() };
    let slept = config.run(|| {
        let before = sleeps();
        footbridge::runtime::sleep(Duration::from_millis(300));
        sleeps() - before
    });
    let slept = slept.expect("the run starts");
    assert!((1..8).contains(&slept), "it slept {slept} times");
}
