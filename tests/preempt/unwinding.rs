//! Preemption of goroutines that unwind, and of goroutines beside them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use footbridge::runtime::{Builder, Chan, go, gosched, scope, stats};
use support::child;
use support::runs::{AtEnd, occupy_until, thread_number};

use super::{Loop, SYSTEM_V, Waiter, preemptions, run};

/// A migratable goroutine that is preempted while it unwinds resumes on the same thread. Meanwhile
/// another goroutine of the thread is not panicking.
#[test]
fn a_migratable_goroutine_that_unwinds_stays_on_its_thread() {
    struct Waits(&'static Waiter, &'static AtomicU32, &'static AtomicBool);
    impl Drop for Waits {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            let thread = thread_number();
            self.0.wait(self.1);
            self.2.store(thread_number() == thread, Ordering::Relaxed);
        }
    }
    // In a child process, which is killed if it hangs.
    let outcome = child::run("a_migratable_goroutine_that_unwinds_stays_on_its_thread", || {
        for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V)] {
            let waiter: &Waiter = Box::leak(Box::new(Waiter::new(kind)));
            run(2, || {
                let flag: &AtomicU32 = Box::leak(Box::default());
                let stayed: &AtomicBool = Box::leak(Box::default());
                let ticks: &AtomicU64 = Box::leak(Box::default());
                let panicking: &AtomicU64 = Box::leak(Box::default());
                let body = move || {
                    // Starts another goroutine on this thread.
                    go(move || {
                        while flag.load(Ordering::Relaxed) == 0 {
                            ticks.fetch_add(1, Ordering::Relaxed);
                            let is_panicking = std::thread::panicking();
                            panicking.fetch_add(u64::from(is_panicking), Ordering::Relaxed);
                            gosched();
                        }
                    });
                    gosched();
                    let unwound = catch_unwind(AssertUnwindSafe(|| {
                        let _waits = Waits(waiter, flag, stayed);
                        std::panic::resume_unwind(Box::new(5u8));
                    }));
                    let is_own = unwound.expect_err("it panics").is::<u8>();
                    is_own && !std::thread::panicking()
                };
                // SAFETY: all values on its stack are `Send`.
                let unwinds = unsafe { Builder::new().go_migratable(body).expect("memory") };
                let end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                occupy_until("preemptions, and ticks of the other goroutine", || {
                    preemptions() > 20 && ticks.load(Ordering::Relaxed) > 20
                });
                drop(end);
                assert!(unwinds.join().expect("caught"));
                assert!(stayed.load(Ordering::Relaxed), "{kind:?}: {:?}", stats());
                assert_eq!(panicking.load(Ordering::Relaxed), 0, "{kind:?}: {:?}", stats());
            });
        }
    });
    outcome.assert_success();
}

/// Its panic must not affect other goroutines of its thread.
#[test]
fn a_goroutine_that_parks_while_it_unwinds_does_not_disable_preemption_of_others() {
    struct Receives<'a>(&'a Chan<u8>);
    impl Drop for Receives<'_> {
        fn drop(&mut self) {
            assert_eq!(self.0.recv(), Ok(7));
        }
    }
    // In a child process, which is killed if it hangs.
    let outcome = child::run(
        "a_goroutine_that_parks_while_it_unwinds_does_not_disable_preemption_of_others",
        || {
            for (kind, migratable) in [Loop::Preemptible, Loop::Polls(SYSTEM_V)]
                .into_iter()
                .flat_map(|k| [(k, false), (k, true)])
            {
                let waiter: &Waiter = Box::leak(Box::new(Waiter::new(kind)));
                run(1, || {
                    let flag: &AtomicU32 = Box::leak(Box::default());
                    let channel = Chan::new(0);
                    scope(|s| {
                        let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                        let unwinds = s.go(|| {
                            let unwound = catch_unwind(AssertUnwindSafe(|| {
                                let _receives = Receives(&channel);
                                std::panic::resume_unwind(Box::new(5u8));
                            }));
                            unwound.expect_err("it panics").is::<u8>()
                        });
                        let body = move || waiter.wait(flag);
                        let loops = if migratable {
                            // SAFETY: the goroutine uses nothing that belongs to its thread.
                            unsafe { Builder::new().go_migratable(body).expect("memory") }
                        } else {
                            go(body)
                        };
                        // The first one parks, the second one loops until it is preempted.
                        gosched();
                        channel.send(7).expect("open");
                        flag.store(1, Ordering::Relaxed);
                        assert!(unwinds.join().expect("caught"));
                        assert!(loops.join().expect("no panic") > 0);
                    });
                });
            }
        },
    );
    outcome.assert_success();
}
