//! Loops that must not starve other goroutines, and code that must not yield.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{Annotations, FrameClass, Jit};
use footbridge::runtime::{
    self, checkpoint, gosched, scope, stats, systemstack, without_preemption,
};
use support::patience::wait_by;
use support::runs::{AtEnd, occupy_until, wait_for};

use super::{
    GO, Loop, SYSTEM_V, Waiter, config, end_loop, loop_until, preemptions, run, wait_for_preemption,
};

#[test]
fn a_loop_in_preemptible_code_does_not_starve_others() {
    let stats = end_loop(Loop::Preemptible);
    assert!(stats.asynchronous > 0 && stats.cooperative == 0, "{stats:?}");
}

#[test]
fn a_loop_that_polls_does_not_starve_others_in_any_convention() {
    for convention in [SYSTEM_V, GO] {
        let stats = end_loop(Loop::Polls(convention));
        assert!(stats.asynchronous == 0 && stats.cooperative > 0, "{convention}: {stats:?}");
        // After it has yielded, the loop runs until the next request.
        assert!(stats.cooperative <= stats.requested, "{convention}: {stats:?}");
    }
}

/// Near the end of a stack there is no room to save the machine state.
#[test]
fn code_with_little_stack_left_is_not_interrupted() {
    let jit = Jit::new().expect("code memory");
    for (used, expected) in [(40 << 10, true), (60 << 10, false)] {
        // SAFETY: a standard frame, whose slots are not used.
        let code = unsafe {
            jit.install("low", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; sub rsp, used
                    ; again:
                    ; cmp DWORD [rdi], 0
                    ; je <again
                    ; leave
                    ; ret
                );
                Annotations::preemptible()
            })
        };
        let code = code.expect("it installs");
        // SAFETY: System V, of this type.
        let entry = unsafe { code.enter::<fn(*const AtomicU32)>(SYSTEM_V) }.expect("an entry");
        run(2, || {
            let flag = AtomicU32::new(0);
            // SAFETY: on a goroutine; the flag outlives the loop.
            let looping = || unsafe { entry.call(&flag) };
            loop_until(looping, &flag, "a request is answered", || {
                stats().asynchronous > 0 || stats().refused.stack > 0
            });
            let stats = stats();
            assert_eq!(stats.asynchronous > 0, expected, "{used} bytes used: {stats:?}");
            assert_eq!(stats.refused.stack > 0, !expected, "{used} bytes used: {stats:?}");
        });
    }
}

#[test]
fn polls_work_without_signals() {
    let waiter = Waiter::new(Loop::Polls(SYSTEM_V));
    let config = config(1).async_preemption(false);
    let stats = config.run(|| {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            s.go(|| waiter.wait(&flag));
            wait_for_preemption();
        });
        stats()
    });
    let stats = stats.expect("the run starts");
    assert!(stats.cooperative > 0 && stats.signals == 0 && stats.asynchronous == 0, "{stats:?}");
}

/// A goroutine in Rust code runs until it calls `checkpoint`.
#[test]
fn rust_code_yields_at_checkpoints_only() {
    run(1, || {
        let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let ticks = || count.load(Ordering::Relaxed);
        scope(|s| {
            let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    count.fetch_add(1, Ordering::Relaxed);
                    gosched();
                }
            });
            wait_for("the other one runs", || ticks() > 0);
            let (before, requested) = (ticks(), stats().requested);
            occupy_until("time slices end", || stats().requested > requested);
            assert_eq!(ticks(), before);
            wait_by(checkpoint, "checkpoints yield", stats, || ticks() > before + 2);
        });
    });
    // Without a goroutine it does nothing.
    checkpoint();
}

/// JIT code without polls that calls goroutine functions yields when they return.
#[test]
fn goroutine_functions_poll_when_they_return() {
    for convention in [SYSTEM_V, GO] {
        let jit = Jit::new().expect("code memory");
        let more = jit.goroutine_fn(convention, |flag: *const AtomicU32| -> u64 {
            // SAFETY: the flag outlives the loop.
            u64::from(unsafe { (*flag).load(Ordering::Relaxed) } == 0)
        });
        let more = more.expect("a stub");
        let target = more.address();
        // SAFETY: a standard frame with a slot for the argument.
        let code = unsafe {
            jit.install("calls", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16);
                if convention == GO {
                    dynasm!(ops; .arch x64; mov rdi, rax);
                }
                dynasm!(ops
                    ; .arch x64
                    ; mov [rbp - 8], rdi
                    ; again:
                    ; mov rdi, [rbp - 8]
                    ; mov rax, rdi
                    ; call extern target
                    ; test rax, rax
                    ; jnz <again
                    ; leave
                    ; ret
                );
            })
        };
        let code = code.expect("it installs");
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter::<fn(*const AtomicU32)>(convention) }.expect("an entry");
        let stats = run(1, || {
            let flag = AtomicU32::new(0);
            scope(|s| {
                let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                // SAFETY: on a goroutine; the flag outlives the scope.
                s.go(|| unsafe { entry.call(&flag) });
                wait_for_preemption();
            });
            stats()
        });
        assert!(stats.cooperative > 0 && stats.asynchronous == 0, "{convention}: {stats:?}");
    }
}

/// A goroutine that is not migratable stays on its thread when it is preempted.
#[test]
fn a_preempted_goroutine_stays_on_its_thread() {
    let waiter = Waiter::new(Loop::Preemptible);
    run(2, || {
        let (flag, moved) = (AtomicU32::new(0), AtomicUsize::new(0));
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            for _ in 0..8 {
                s.go(|| {
                    let thread = std::thread::current().id();
                    waiter.wait(&flag);
                    let stayed = std::thread::current().id() == thread;
                    moved.fetch_add(usize::from(!stayed), Ordering::Relaxed);
                });
            }
            wait_for("preemptions", || stats().asynchronous > 30);
        });
        assert_eq!(moved.into_inner(), 0);
    });
}

/// A thread whose loop is preempted runs the goroutines of a thread that does not yield.
#[test]
fn a_preempted_thread_steals_goroutines_that_wait_for_rust_code() {
    let waiter = Waiter::new(Loop::Preemptible);
    run(2, || {
        let (flag, ran) = (AtomicU32::new(0), AtomicUsize::new(0));
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            s.go(|| waiter.wait(&flag));
            for _ in 0..5 {
                s.go(|| ran.fetch_add(1, Ordering::Relaxed));
            }
            occupy_until("all five run", || ran.load(Ordering::Relaxed) == 5);
        });
    });
}

/// Timers are checked at the end of each time slice, not only once in many ticks.
#[test]
fn a_sleeper_is_woken_in_time_while_others_loop() {
    let waiter = Waiter::new(Loop::Preemptible);
    let slice = Duration::from_millis(2);
    let config = config(1).time_slice(slice);
    const SLEEPS: u64 = 10;
    let slices = config.run(|| {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            for _ in 0..2 {
                s.go(|| waiter.wait(&flag));
            }
            let before = preemptions();
            for _ in 0..SLEEPS {
                // Due before the time slice of either loop ends.
                runtime::sleep(Duration::from_millis(1));
            }
            preemptions() - before
        })
    });
    // The slice in which it is due, and one of each loop before it. With a check once in many
    // ticks, it would be sixteen.
    let slices = slices.expect("the run starts");
    assert!(slices < SLEEPS * 6, "{slices} time slices in {SLEEPS} sleeps");
}

#[test]
fn without_preemption_no_other_goroutine_runs_on_the_thread() {
    let waiter = Waiter::new(Loop::Preemptible);
    let polling = Waiter::new(Loop::Polls(SYSTEM_V));
    run(2, || {
        let (flag, ticks) = (AtomicU32::new(0), AtomicU64::new(0));
        let over = AtomicBool::new(false);
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            let both = s.go(|| {
                // This goroutine starts another one on the same thread.
                let started = AtomicBool::new(false);
                scope(|s| {
                    let _over = AtEnd(|| over.store(true, Ordering::Relaxed));
                    s.go(|| {
                        started.store(true, Ordering::Relaxed);
                        while !over.load(Ordering::Relaxed) {
                            ticks.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    wait_for("the other goroutine runs", || started.load(Ordering::Relaxed));
                    let before = ticks.load(Ordering::Relaxed);
                    without_preemption(|| {
                        waiter.wait(&flag);
                        polling.wait(&flag);
                        checkpoint();
                    });
                    ticks.load(Ordering::Relaxed) - before
                })
            });
            // The main goroutine occupies its thread, so that the two are on the other one.
            occupy_until("preemption is refused", || stats().refused.disabled > 2);
            flag.store(1, Ordering::Relaxed);
            let during = both.join().expect("no panic");
            assert_eq!(during, 0, "the other goroutine ran: {:?}", stats());
        });
    });
}

/// A stack check yields like a poll, and preserves the red zone like a poll.
#[test]
fn a_stack_check_preserves_the_red_zone() {
    for frame_bytes in [0, 1024] {
        let jit = Jit::new().expect("code memory");
        let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
        // fn(&AtomicU32) -> whether a word of the red zone was changed.
        // SAFETY: a standard frame; all its calls are those of the check.
        let code = unsafe {
            jit.install("checks", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; again:);
                for word in 1..=16 {
                    dynasm!(ops; .arch x64; mov [rsp - 8 * word], rdi);
                }
                polls.check_stack(ops, frame_bytes);
                for word in 1..=16 {
                    dynasm!(ops; .arch x64; cmp [rsp - 8 * word], rdi; jne >changed);
                }
                dynasm!(ops
                    ; .arch x64
                    ; cmp DWORD [rdi], 0
                    ; je <again
                    ; xor eax, eax
                    ; pop rbp
                    ; ret
                    ; changed:
                    ; mov eax, 1
                    ; pop rbp
                    ; ret
                );
                polls.finish(ops);
            })
        };
        let code = code.expect("it installs");
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter::<fn(*const AtomicU32) -> u64>(SYSTEM_V) };
        let entry = entry.expect("an entry");
        run(1, || {
            let flag = AtomicU32::new(0);
            scope(|s| {
                // SAFETY: on a goroutine; the flag outlives the scope.
                let looping = s.go(|| unsafe { entry.call(&flag) });
                s.go(|| {
                    let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                    wait_for("checks yield", || stats().cooperative > 20);
                });
                assert_eq!(looping.join().expect("no panic"), 0, "{frame_bytes}");
            });
        });
    }
}

/// JIT code on the system stack is not preempted, whether it polls or not.
#[test]
fn code_on_the_system_stack_is_not_preempted() {
    for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V), Loop::Polls(GO)] {
        let waiter = Waiter::new(kind);
        run(2, || {
            let (flag, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
            let looping = || {
                assert!(systemstack(|| waiter.wait(&flag)) > 0);
                is_over.store(true, Ordering::Relaxed);
            };
            loop_until(looping, &flag, "preemption is requested", || stats().requested > 4);
            assert!(is_over.into_inner());
            let stats = stats();
            assert_eq!((stats.asynchronous, stats.cooperative), (0, 0), "{kind:?}: {stats:?}");
        });
    }
}
