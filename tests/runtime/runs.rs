//! Goroutines, channels, scopes, and the end of a run.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use support::patience::Patience;
use support::runs::{AtEnd, on, wait_for};

use footbridge::runtime::{
    self, Abandoned, Builder, Case, Chan, Config, RecvError, SendError, TryRecvError, TrySendError,
    WaitReason, current, go, gopark, goready, gosched, run, scope, select, sleep, try_select,
};
use support::child::Child;

/// Counts its drops.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn goroutines_return_results_and_a_run_may_borrow() {
    let mut log = Vec::new();
    let total = run(|| {
        let handles: Vec<_> = (0..1000u64).map(|i| go(move || i * i)).collect();
        let total: u64 = handles.into_iter().map(|h| h.join().expect("no panic")).sum();
        log.push(total);
        total
    });
    assert_eq!(log, [total]);
    assert_eq!(total, (0..1000).map(|i| i * i).sum());
}

#[test]
fn closures_and_results_of_any_size_and_alignment() {
    #[repr(align(256))]
    #[derive(Clone, Copy)]
    struct Aligned([u8; 256]);
    #[repr(align(8192))]
    struct Page([u8; 8192]);
    let config = Config::new().stack_bytes(4 << 20);
    let done = config.run(|| {
        let large = [7u8; 3000];
        let sum = go(move || large.iter().map(|&b| u64::from(b)).sum::<u64>());
        assert_eq!(sum.join().expect("no panic"), 21_000);
        let back = go(|| [9u32; 700]).join().expect("no panic");
        assert!(back.iter().all(|&w| w == 9));
        let aligned = Aligned([3; 256]);
        let address = go(move || {
            assert!(aligned.0.iter().all(|&b| b == 3));
            std::ptr::from_ref(&aligned) as usize
        });
        assert_eq!(address.join().expect("no panic") % 256, 0);
        // Values of this alignment are boxed, since a stack slot does not align so far.
        let page = Page([1; 8192]);
        let page = go(move || page).join().expect("no panic");
        assert_eq!(page.0.iter().map(|&b| usize::from(b)).sum::<usize>(), 8192);
        assert!(go(|| -> Page { panic!("no page") }).join().is_err());
        go(|| ()).join().expect("no panic");
    });
    done.expect("the run starts");
}

#[test]
fn every_result_is_dropped_once_whether_the_handle_or_the_goroutine_ends_first() {
    let drops = Arc::new(AtomicUsize::new(0));
    let made = 5000;
    on(2, || {
        for i in 0..made {
            let (result, captured) = (Dropped(drops.clone()), Dropped(drops.clone()));
            let handle = go(move || {
                let _captured = captured;
                if i % 5 == 0 {
                    gosched();
                }
                if i % 7 == 0 {
                    std::panic::resume_unwind(Box::new(result));
                }
                result
            });
            match i % 4 {
                0 => drop(handle),
                1 => drop(handle.join()),
                2 => {
                    gosched();
                    drop(handle);
                }
                _ => drop(go(move || drop(handle.join()))),
            }
        }
        wait_for("all are dropped", || drops.load(Ordering::SeqCst) >= 2 * made);
    });
    assert_eq!(drops.load(Ordering::SeqCst), 2 * made);
}

#[test]
fn a_goroutine_stays_on_its_thread_and_may_hold_values_that_are_not_send() {
    on(4, || {
        let handles: Vec<_> = (0..64)
            .map(|_| {
                go(|| {
                    let home = std::thread::current().id();
                    let counter = Rc::new(Cell::new(0));
                    let other = counter.clone();
                    for n in 0..200 {
                        if n % 8 == 0 {
                            // Wakes threads that steal.
                            drop(go(|| ()));
                        }
                        other.set(other.get() + 1);
                        gosched();
                        assert_eq!(std::thread::current().id(), home);
                    }
                    counter.get()
                })
            })
            .collect();
        for handle in handles {
            assert_eq!(handle.join().expect("no panic"), 200);
        }
    });
}

#[test]
fn goroutines_that_have_not_started_are_stolen() {
    let threads = on(4, || {
        let threads = Arc::new(Mutex::new(HashSet::new()));
        let patience = Patience::new();
        while threads.lock().expect("whole").len() < 4 {
            patience.check("four threads run", || threads.lock().expect("whole").clone());
            let handles: Vec<_> = (0..64)
                .map(|_| {
                    let threads = threads.clone();
                    go(move || {
                        let until = Instant::now() + Duration::from_micros(300);
                        while Instant::now() < until {
                            std::hint::spin_loop();
                        }
                        threads.lock().expect("whole").insert(std::thread::current().id());
                    })
                })
                .collect();
            handles.into_iter().for_each(|h| h.join().expect("no panic"));
        }
        threads.lock().expect("whole").len()
    });
    assert_eq!(threads, 4);
}

#[test]
fn migratable_goroutines_continue_on_other_threads() {
    /// The number of migrations of 32 goroutines that yield 2000 times each.
    fn migrations() -> usize {
        let moves = Arc::new(AtomicUsize::new(0));
        let handles: Vec<_> = (0..32u64)
            .map(|i| {
                let moves = moves.clone();
                // SAFETY: over `gosched` the goroutine keeps no thread-local, and only Send values.
                unsafe {
                    Builder::new()
                        .go_migratable(move || {
                            let mut at = std::thread::current().id();
                            let mut x = i;
                            for n in 0..2000 {
                                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n);
                                gosched();
                                let now = std::thread::current().id();
                                if now != at {
                                    moves.fetch_add(1, Ordering::Relaxed);
                                    at = now;
                                }
                            }
                            x
                        })
                        .expect("memory")
                }
            })
            .collect();
        for (i, handle) in handles.into_iter().enumerate() {
            let expected = (0..2000u64)
                .fold(i as u64, |x, n| x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n));
            assert_eq!(handle.join().expect("no panic"), expected);
        }
        moves.load(Ordering::Relaxed)
    }
    // On a busy machine one thread may run all 32 alone.
    let patience = Patience::new();
    on(4, || {
        while migrations() == 0 {
            patience.check("a goroutine migrates", runtime::stats);
        }
    });
}

#[test]
fn migratable_goroutines_use_channels_and_sleep() {
    on(4, || {
        let channel = Chan::new(3);
        let senders: Vec<_> = (0..16u64)
            .map(|i| {
                let channel = channel.clone();
                // SAFETY: over a park the goroutine keeps no thread-local, and only Send values.
                unsafe {
                    Builder::new()
                        .go_migratable(move || {
                            for n in 0..500 {
                                channel.send(i * 500 + n).expect("open");
                                if n % 100 == 0 {
                                    sleep(Duration::from_micros(50));
                                }
                            }
                        })
                        .expect("memory")
                }
            })
            .collect();
        let mut seen: Vec<u64> = (0..16 * 500).map(|_| channel.recv().expect("open")).collect();
        senders.into_iter().for_each(|s| s.join().expect("no panic"));
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..16 * 500));
    });
}

#[test]
fn channels_keep_order_and_capacity() {
    on(1, || {
        let channel = Chan::new(2);
        assert_eq!((channel.capacity(), channel.is_empty()), (2, true));
        assert_eq!(channel.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(channel.try_send(1), Ok(()));
        assert_eq!(channel.try_send(2), Ok(()));
        assert_eq!(channel.try_send(3), Err(TrySendError::Full(3)));
        assert_eq!(channel.len(), 2);
        let other = channel.clone();
        let sender = go(move || (3..=5).for_each(|n| other.send(n).expect("open")));
        // Every few ticks the global queue comes first, here with this goroutine again.
        gosched();
        gosched();
        assert_eq!(channel.len(), 2, "the sender waits");
        assert_eq!(channel.recv(), Ok(1));
        assert_eq!(channel.len(), 2, "the sender's value has moved up");
        let rest: Result<Vec<_>, _> = (0..4).map(|_| channel.recv()).collect();
        assert_eq!(rest, Ok(vec![2, 3, 4, 5]));
        sender.join().expect("no panic");
    });
}

#[test]
fn a_closed_channel_drains_and_returns_the_values_of_blocked_senders() {
    on(1, || {
        let channel = Chan::new(1);
        channel.send("kept").expect("open");
        let blocked = {
            let channel = channel.clone();
            go(move || channel.send("back"))
        };
        let waiting: Chan<u8> = Chan::new(0);
        let receiver = {
            let waiting = waiting.clone();
            go(move || waiting.recv())
        };
        gosched();
        assert!(channel.close() && waiting.close());
        assert!(!channel.close(), "closed already");
        assert_eq!(blocked.join().expect("no panic"), Err(SendError("back")));
        assert_eq!(receiver.join().expect("no panic"), Err(RecvError));
        assert_eq!(channel.send("no"), Err(SendError("no")));
        assert_eq!(channel.try_send("no"), Err(TrySendError::Closed("no")));
        assert_eq!(channel.iter().collect::<Vec<_>>(), ["kept"]);
        assert_eq!(channel.try_recv(), Err(TryRecvError::Closed));
    });
}

#[test]
fn values_in_a_channel_are_dropped_with_it() {
    let drops = Arc::new(AtomicUsize::new(0));
    run(|| {
        let channel = Chan::new(8);
        for _ in 0..5 {
            channel.send(Dropped(drops.clone())).expect("open");
        }
        drop(channel.recv());
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    });
    assert_eq!(drops.load(Ordering::SeqCst), 5);
}

#[test]
fn foreign_threads_use_channels_and_join() {
    let (to, from) = (Chan::new(0), Chan::new(0));
    let (results, expected) = (mpsc::channel(), (1..=1000u64).map(|n| n * 2));
    let thread = {
        let (to, from, results) = (to.clone(), from.clone(), results.0);
        std::thread::spawn(move || {
            for n in 1..=1000u64 {
                to.send(n).expect("open");
                results.send(from.recv().expect("open")).expect("received");
            }
            to.close();
        })
    };
    let handle = on(2, || {
        let (to, from) = (to.clone(), from.clone());
        let worker =
            go(move || to.iter().map(|n| from.send(n * 2).map_or(0, |()| 1)).sum::<usize>());
        // `join` blocks a foreign thread.
        let joiner = std::thread::spawn(move || worker.join().expect("no panic"));
        while !joiner.is_finished() {
            sleep(Duration::from_millis(1));
        }
        joiner
    });
    assert_eq!(handle.join().expect("no panic"), 1000);
    thread.join().expect("no panic");
    assert!(results.1.iter().eq(expected));
}

#[test]
fn select_chooses_a_case_that_is_ready() {
    on(2, || {
        let (a, b) = (Chan::new(0), Chan::new(1));
        let (mut x, mut y) = (None, Some(5u8));
        assert_eq!(try_select(&mut [Case::recv(&a, &mut x)]), None);
        let chosen = select(&mut [Case::<'_>::recv(&a, &mut x), Case::send(&b, &mut y)]);
        assert_eq!((chosen, x, y), (1, None::<u8>, None));
        // The buffer is full: select waits until the other case is ready.
        let sender = {
            let a = a.clone();
            go(move || a.send(9).is_ok())
        };
        let (mut x, mut y) = (None, Some(6u8));
        let chosen = select(&mut [Case::recv(&a, &mut x), Case::send(&b, &mut y)]);
        assert_eq!((chosen, x, y), (0, Some(9), Some(6)), "the value is still in its slot");
        assert!(sender.join().expect("no panic"));
        // A closed channel is always ready.
        a.close();
        let (mut x, mut y) = (None, Some(7));
        assert_eq!(select(&mut [Case::recv(&a, &mut x)]), 0);
        assert_eq!(x, None);
        assert_eq!(select(&mut [Case::send(&a, &mut y)]), 0);
        assert_eq!(y, Some(7), "not sent");
        // An empty slot never sends.
        let mut nothing: Option<u8> = None;
        assert_eq!(try_select(&mut [Case::send(&a, &mut nothing)]), None);
        assert_eq!(try_select(&mut []), None);
        // One channel in two cases.
        let c = Chan::new(1);
        let (mut x, mut y) = (Some(1), None);
        let first = select(&mut [Case::send(&c, &mut x), Case::recv(&c, &mut y)]);
        assert_eq!((first, x, y), (0, None, None));
    });
}

#[test]
fn selects_from_both_sides_pass_every_value_once() {
    const EACH: u64 = 3000;
    on(4, || {
        let channels: Vec<Chan<u64>> = (0..3).map(|i| Chan::new(i % 2)).collect();
        let senders: Vec<_> = (0..4u64)
            .map(|s| {
                let channels = channels.clone();
                go(move || {
                    for n in 0..EACH {
                        let mut slots = [Some(s * EACH + n); 3];
                        let mut slots = slots.iter_mut();
                        let mut cases: Vec<_> = channels
                            .iter()
                            .map(|c| Case::send(c, slots.next().expect("one slot a channel")))
                            .collect();
                        select(&mut cases);
                    }
                })
            })
            .collect();
        let receivers: Vec<_> = (0..3)
            .map(|r| {
                let channels = channels.clone();
                go(move || {
                    let mut seen = Vec::new();
                    let mut open = [true; 3];
                    while open.contains(&true) {
                        let mut slots = [None; 3];
                        let mut slot = slots.iter_mut();
                        let mut cases: Vec<_> = channels
                            .iter()
                            .zip(open)
                            .map(|(c, open)| {
                                let slot = slot.next().expect("one slot a channel");
                                if open { Case::recv(c, slot) } else { Case::send(c, slot) }
                            })
                            .collect();
                        let chosen = select(&mut cases);
                        match slots[chosen] {
                            Some(value) => seen.push(value),
                            None => open[chosen] = false,
                        }
                        if r == 0 && seen.len() % 50 == 0 {
                            gosched();
                        }
                    }
                    seen
                })
            })
            .collect();
        senders.into_iter().for_each(|s| s.join().expect("no panic"));
        for channel in &channels {
            channel.close();
        }
        let mut seen: Vec<u64> =
            receivers.into_iter().flat_map(|r| r.join().expect("no panic")).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..4 * EACH));
    });
}

#[test]
fn sleepers_wake_in_order_and_not_early() {
    on(2, || {
        let order = Arc::new(Mutex::new(Vec::new()));
        let handles: Vec<_> = [30u64, 10, 20, 0]
            .into_iter()
            .map(|ms| {
                let order = order.clone();
                go(move || {
                    let started = Instant::now();
                    sleep(Duration::from_millis(ms));
                    assert!(started.elapsed() >= Duration::from_millis(ms));
                    order.lock().expect("whole").push(ms);
                })
            })
            .collect();
        handles.into_iter().for_each(|h| h.join().expect("no panic"));
        let order = order.lock().expect("whole");
        assert_eq!(order.iter().copied().collect::<HashSet<_>>().len(), 4);
    });
}

#[test]
fn a_pair_that_wakes_each_other_does_not_starve_others() {
    on(1, || {
        let (a, b) = (Chan::new(0), Chan::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let pair = {
            let (a, b, stop) = (a.clone(), b.clone(), stop.clone());
            go(move || {
                while !stop.load(Ordering::Relaxed) {
                    a.send(()).expect("open");
                    b.recv().expect("open");
                }
                a.close();
            })
        };
        let echo = go(move || a.iter().for_each(|()| b.send(()).expect("open")));
        let stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
        // This goroutine runs only if the pair does not starve it.
        for _ in 0..100 {
            gosched();
        }
        drop(stop);
        pair.join().expect("no panic");
        echo.join().expect("no panic");
    });
}

#[test]
fn a_scope_waits_and_propagates_panics() {
    let mut cells = vec![0u64; 100];
    run(|| {
        let sum = scope(|s| {
            let handles: Vec<_> = cells
                .iter_mut()
                .enumerate()
                .map(|(i, cell)| {
                    s.go(move || {
                        gosched();
                        *cell = i as u64;
                        i as u64
                    })
                })
                .collect();
            handles.into_iter().skip(50).map(|h| h.join().expect("no panic")).sum::<u64>()
        });
        assert_eq!(sum, (50..100).sum::<u64>());
        let ended = AtomicUsize::new(0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scope(|s| {
                s.go(|| panic!("one of them"));
                for _ in 0..10 {
                    s.go(|| {
                        sleep(Duration::from_millis(2));
                        ended.fetch_add(1, Ordering::Relaxed);
                    });
                }
            });
        }));
        assert!(caught.is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 10, "the scope waited for all");
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scope(|s| {
                s.go(|| {
                    sleep(Duration::from_millis(2));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
                panic!("the body");
            });
        }));
        assert_eq!(caught.expect_err("it panicked").downcast_ref(), Some(&"the body"));
        assert_eq!(ended.load(Ordering::Relaxed), 11);
    });
    assert!(cells.into_iter().eq(0..100));
}

#[test]
fn a_panic_of_the_main_goroutine_propagates_out_of_run() {
    let caught = std::panic::catch_unwind(|| run(|| panic!("main fails")));
    assert_eq!(caught.expect_err("it panicked").downcast_ref(), Some(&"main fails"));
    assert_eq!(run(|| 3), 3, "another run works");
}

#[test]
fn goroutines_that_outlive_their_run_are_abandoned() {
    let never: Chan<u8> = Chan::new(0);
    let (parked, unstarted) = on(2, || {
        let never = never.clone();
        let parked = go(move || never.recv());
        wait_for("it parks", || {
            runtime::traceback_all().iter().any(|t| t.wait_reason == WaitReason::ChanReceive)
        });
        (
            parked,
            go(|| {
                loop {
                    gosched();
                }
            }),
        )
    });
    assert!(parked.join().expect_err("abandoned").is::<Abandoned>());
    let payload: Box<dyn std::any::Any + Send> = match unstarted.join() {
        Ok(()) => unreachable!("it does not end"),
        Err(payload) => payload,
    };
    assert!(payload.is::<Abandoned>());
    // A receiver that will never run receives no value.
    assert_eq!(never.try_send(1), Err(TrySendError::Full(1)));
    // A later run does not resume it either.
    on(2, || {
        never.close();
        (0..100).for_each(|_| gosched());
    });
}

#[test]
fn an_abandoned_goroutine_is_not_resumed_by_a_later_run() {
    let parked = Arc::new(Mutex::new(None));
    let resumed = Arc::new(AtomicBool::new(false));
    on(2, || {
        let (parked, resumed) = (parked.clone(), resumed.clone());
        let handle = go(move || {
            // SAFETY: readied once below, after the lock is released.
            unsafe {
                gopark(WaitReason::Other, || *parked.lock().expect("whole") = Some(current()))
            };
            resumed.store(true, Ordering::SeqCst);
        });
        wait_for("it parks", || {
            runtime::traceback_all().iter().any(|t| t.wait_reason == WaitReason::Other)
        });
        drop(handle);
    });
    let parker = parked.lock().expect("whole").take().expect("it parked");
    // The later run uses the same thread structures.
    on(2, || {
        // SAFETY: it is in `gopark`, and only this readies it.
        let foreign = std::thread::spawn(move || unsafe { goready(parker) });
        foreign.join().expect("no panic");
        // Its turn would come in the first round on either thread.
        for _ in 0..2000 {
            go(gosched).join().expect("no panic");
        }
    });
    assert!(!resumed.load(Ordering::SeqCst));
}

#[test]
fn park_and_ready_are_enough_to_build_a_lock() {
    /// A lock for goroutines: a flag and the parkers of waiting goroutines, in a std Mutex.
    struct Lock {
        state: Mutex<(bool, Vec<runtime::Parker>)>,
    }
    impl Lock {
        fn lock(&self) {
            let mut state = self.state.lock().expect("whole");
            if !state.0 {
                state.0 = true;
                return;
            }
            state.1.push(current());
            // SAFETY: `unlock` readies each parker that it takes once, after the guard is dropped.
            unsafe { gopark(WaitReason::Other, || drop(state)) };
        }
        fn unlock(&self) {
            let mut state = self.state.lock().expect("whole");
            match state.1.pop() {
                // SAFETY: it parked in `lock`, and its closure has run, since the mutex is held
                // here.
                Some(parker) => unsafe { goready(parker) },
                None => state.0 = false,
            }
        }
    }
    let lock = Lock { state: Mutex::new((false, Vec::new())) };
    let counter = AtomicUsize::new(0);
    on(4, || {
        scope(|s| {
            for _ in 0..32 {
                s.go(|| {
                    for _ in 0..500 {
                        lock.lock();
                        let seen = counter.load(Ordering::Relaxed);
                        if seen.is_multiple_of(16) {
                            gosched();
                        }
                        counter.store(seen + 1, Ordering::Relaxed);
                        lock.unlock();
                    }
                });
            }
        });
    });
    assert_eq!(counter.into_inner(), 32 * 500);
}

#[test]
fn a_hundred_thousand_parked_goroutines_fit_in_a_gibibyte() {
    const GOROUTINES: usize = 100_000;
    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("proc is mounted");
        let pages: usize = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).expect("a number");
        pages * 4096
    }
    // In a child process, since the memory of the whole process is measured.
    let child =
        Child::of("a_hundred_thousand_parked_goroutines_fit_in_a_gibibyte").limit_seconds(240);
    let outcome = child.run(|| {
        let (used, sum) = on(2, || {
            let before = resident_bytes();
            let gate: Chan<u64> = Chan::new(0);
            let arrived = Arc::new(AtomicUsize::new(0));
            let handles: Vec<_> = (0..GOROUTINES)
                .map(|_| {
                    let (gate, arrived) = (gate.clone(), arrived.clone());
                    go(move || {
                        arrived.fetch_add(1, Ordering::Relaxed);
                        gate.recv().map_or(1, |n| n)
                    })
                })
                .collect();
            wait_for("all arrive", || arrived.load(Ordering::Relaxed) == GOROUTINES);
            gosched();
            let used = resident_bytes() - before;
            gate.close();
            (used, handles.into_iter().map(|h| h.join().expect("no panic")).sum::<u64>())
        });
        assert_eq!(sum, GOROUTINES as u64);
        println!("{} bytes each", used / GOROUTINES);
        assert!(used < 1 << 30, "{used} bytes for {GOROUTINES} goroutines");
    });
    outcome.assert_success();
}
