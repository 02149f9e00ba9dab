//! Who gives way, when, and who does not; what a run with preemption leaves as it was.
//!
//! That the machine state survives is the business of `preempt_state.rs`.

#![allow(unsafe_code, reason = "calls emitted code and installs signal handlers")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::child;
use support::runs::wait_for;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, Code, FrameClass, Jit, JitError, Ops, WhenUnsafe, lookup};
use footbridge::runtime::{
    self, Builder, Chan, Config, Entry, RunError, Stats, VectorState, checkpoint, go, gosched,
    scope, stats, systemstack, without_preemption,
};

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const SHORT: Duration = Duration::from_micros(200);

fn config(processors: usize) -> Config {
    Config::new().processors(processors).time_slice(SHORT)
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// Waits until a goroutine of this run was put aside.
fn wait_for_preemption() {
    let put_aside = |stats: Stats| stats.asynchronous + stats.cooperative;
    wait_for("nobody was put aside", || put_aside(stats()) > 0);
}

/// How a loop gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loop {
    Preemptible,
    Polls(Convention),
    Plain,
}

/// Code that loops until a flag is set: `fn(&AtomicU32) -> rounds`.
struct Waiter {
    entry: Entry<fn(*const AtomicU32) -> u64>,
    code: Code,
}

impl Waiter {
    fn new(kind: Loop) -> Self {
        let jit = Jit::new().expect("code memory");
        let convention = if let Loop::Polls(convention) = kind { convention } else { SYSTEM_V };
        let mut polls = jit.polls(convention).expect("of this machine");
        let mut body = |ops: &mut Ops| {
            if convention == GO {
                dynasm!(ops; .arch x64; mov rdi, rax);
            }
            dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax);
            if kind != Loop::Preemptible && kind != Loop::Plain {
                polls.poll(ops);
            }
            dynasm!(ops; .arch x64; cmp DWORD [rdi], 0; je <again; ret);
            polls.finish(ops);
        };
        // SAFETY: a leaf that changes rax and rdi, and is as good anywhere.
        let code = unsafe {
            match kind {
                Loop::Preemptible => jit.install("waiter", FrameClass::Leaf, |ops| {
                    body(ops);
                    Annotations::preemptible()
                }),
                _ => jit.install("waiter", FrameClass::Leaf, body),
            }
        };
        let code = code.expect("it installs");
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter(convention) }.expect("an entry");
        Self { entry, code }
    }

    fn wait(&self, flag: &AtomicU32) -> u64 {
        // SAFETY: on a goroutine; the flag lives over the call.
        unsafe { self.entry.call(flag) }
    }
}

/// One goroutine loops for ever on the only thread; another one, that must run to end it, does.
fn ends(kind: Loop) -> Stats {
    let waiter = Waiter::new(kind);
    run(1, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let looping = s.go(|| waiter.wait(&flag));
            s.go(|| {
                wait_for_preemption();
                flag.store(1, Ordering::Relaxed);
            });
            assert!(looping.join().expect("no panic") > 0);
        });
        stats()
    })
}

#[test]
fn a_loop_in_preemptible_code_starves_nobody() {
    let stats = ends(Loop::Preemptible);
    assert!(stats.asynchronous > 0 && stats.cooperative == 0, "{stats:?}");
}

#[test]
fn a_loop_that_polls_starves_nobody_in_each_convention() {
    for convention in [SYSTEM_V, GO] {
        let stats = ends(Loop::Polls(convention));
        assert!(stats.asynchronous == 0 && stats.cooperative > 0, "{convention}: {stats:?}");
        // Who has given way goes on until he is asked again.
        assert!(stats.cooperative <= stats.requested, "{convention}: {stats:?}");
    }
}

/// Where the stack is nearly used up there is no room to put a goroutine aside.
#[test]
fn code_with_little_stack_left_is_not_interrupted() {
    let jit = Jit::new().expect("code memory");
    for (used, expected) in [(40 << 10, true), (60 << 10, false)] {
        // SAFETY: a standard frame; what it reserves it does not touch.
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
            scope(|s| {
                // SAFETY: on a goroutine; the flag outlives the scope.
                s.go(|| unsafe { entry.call(&flag) });
                let end = Instant::now() + Duration::from_millis(60);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                flag.store(1, Ordering::Relaxed);
            });
            let stats = stats();
            assert_eq!(stats.asynchronous > 0, expected, "{used} bytes used: {stats:?}");
            assert_eq!(stats.refused.stack > 0, !expected, "{used} bytes used: {stats:?}");
        });
    }
}

#[test]
fn polls_do_without_signals() {
    let waiter = Waiter::new(Loop::Polls(SYSTEM_V));
    let config = config(1).async_preemption(false);
    let stats = config.run(|| {
        let flag = AtomicU32::new(0);
        scope(|s| {
            s.go(|| waiter.wait(&flag));
            wait_for_preemption();
            flag.store(1, Ordering::Relaxed);
        });
        stats()
    });
    let stats = stats.expect("the run starts");
    assert!(stats.cooperative > 0 && stats.signals == 0 && stats.asynchronous == 0, "{stats:?}");
}

/// Code is not preemptible unless its author says so.
#[test]
fn code_that_is_not_registered_as_preemptible_is_not_interrupted() {
    // Somebody is: else no signal is sent.
    let other = Waiter::new(Loop::Preemptible);
    assert!(lookup(other.code.address()).expect("installed").is_preemptible());
    let waiter = Waiter::new(Loop::Plain);
    assert!(!lookup(waiter.code.address()).expect("installed").is_preemptible());
    run(2, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            s.go(|| waiter.wait(&flag));
            let end = Instant::now() + Duration::from_millis(100);
            // This goroutine keeps the other thread.
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            flag.store(1, Ordering::Relaxed);
        });
        let stats = stats();
        assert_eq!((stats.asynchronous, stats.cooperative), (0, 0), "{stats:?}");
        assert!(stats.refused.not_preemptible > 2, "{stats:?}");
        assert!(stats.refused.native_code > 2, "the goroutine in Rust: {stats:?}");
    });
}

/// A goroutine in Rust code goes on until it says that it may be stopped.
#[test]
fn rust_code_gives_way_at_checkpoints_only() {
    run(1, || {
        let (turns, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        scope(|s| {
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    turns.fetch_add(1, Ordering::Relaxed);
                    gosched();
                }
            });
            wait_for("the other one", || turns.load(Ordering::Relaxed) > 0);
            let before = turns.load(Ordering::Relaxed);
            let spin = |how: &dyn Fn()| {
                let end = Instant::now() + Duration::from_millis(60);
                while Instant::now() < end {
                    how();
                }
            };
            spin(&std::hint::spin_loop);
            assert_eq!(turns.load(Ordering::Relaxed), before);
            spin(&checkpoint);
            assert!(turns.load(Ordering::Relaxed) > before + 2, "{:?}", stats());
            stop.store(true, Ordering::Relaxed);
        });
    });
    // Where no goroutine runs it does nothing.
    checkpoint();
}

/// JIT code that does not poll itself, and calls goroutine functions, gives way when they return.
#[test]
fn goroutine_functions_poll_when_they_return() {
    for convention in [SYSTEM_V, GO] {
        let jit = Jit::new().expect("code memory");
        let more = jit.goroutine_fn(convention, |flag: *const AtomicU32| -> u64 {
            // SAFETY: it outlives the loop.
            u64::from(unsafe { (*flag).load(Ordering::Relaxed) } == 0)
        });
        let more = more.expect("a stub");
        let target = more.address();
        // SAFETY: a standard frame that keeps its argument in a slot.
        let code = unsafe {
            jit.install("asks", FrameClass::Standard, |ops| {
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
                // SAFETY: on a goroutine; the flag outlives the scope.
                s.go(|| unsafe { entry.call(&flag) });
                wait_for_preemption();
                flag.store(1, Ordering::Relaxed);
            });
            stats()
        });
        assert!(stats.cooperative > 0 && stats.asynchronous == 0, "{convention}: {stats:?}");
    }
}

/// Adds one to a number so many times, by a load and a store: `fn(&mut u64, rounds)`. Goroutines of
/// one thread that do it together lose none if the pair is not torn apart.
fn increments(annotations: impl Fn(std::ops::Range<usize>) -> Annotations) -> (u64, Stats) {
    const ROUNDS: u64 = 2_000_000;
    const ADDERS: u64 = 4;
    let jit = Jit::new().expect("code memory");
    // SAFETY: a leaf. What is lost by interruptions is what the test is about.
    let code = unsafe {
        jit.install("adds", FrameClass::Leaf, |ops| {
            // Each part waits for the one before it, so that signals come in both.
            dynasm!(ops; .arch x64; again: ; mov rdx, rsi);
            for _ in 0..6 {
                dynasm!(ops; .arch x64; imul rdx, rdx, 3);
            }
            dynasm!(ops; .arch x64; and rdx, 0; add rdx, rdi);
            let start = ops.offset().0;
            dynasm!(ops; .arch x64; mov rax, [rdx]);
            for _ in 0..6 {
                dynasm!(ops; .arch x64; imul rax, rax, 1);
            }
            dynasm!(ops; .arch x64; inc rax; mov [rdx], rax);
            // Up to the store, which ends the pair.
            let end = ops.offset().0;
            dynasm!(ops; .arch x64; and rax, 0; sub rsi, rax; dec rsi; jnz <again; ret);
            annotations(start..end)
        })
    };
    let code = code.expect("it installs");
    // SAFETY: System V, of this type.
    let entry = unsafe { code.enter::<fn(*mut u64, u64)>(SYSTEM_V) }.expect("an entry");
    let mut sum = 0u64;
    let address = &raw mut sum as usize;
    let stats = config(1)
        .run(|| {
            scope(|s| {
                for _ in 0..ADDERS {
                    // SAFETY: all on one thread; the number outlives the scope.
                    s.go(|| unsafe { entry.call(address as *mut u64, ROUNDS) });
                }
            });
            stats()
        })
        .expect("the run starts");
    // SAFETY: nobody else uses it now; read as emitted code left it.
    let sum = unsafe { (&raw const sum).read_volatile() };
    (ADDERS * ROUNDS - sum, stats)
}

#[test]
fn unsafe_ranges_keep_pairs_of_instructions_together() {
    let (lost, stats) = increments(|_| Annotations::preemptible());
    assert!(lost > 0, "nothing is lost without ranges: the test is blind. {stats:?}");
    for when in [WhenUnsafe::Skip, WhenUnsafe::Restart] {
        let (lost, stats) =
            increments(|bytes| Annotations::preemptible().unsafe_points(bytes, when));
        assert_eq!(lost, 0, "{when:?}: {stats:?}");
        assert!(stats.asynchronous > 0, "{when:?}: {stats:?}");
        let skipped = stats.refused.unsafe_range;
        assert_eq!(skipped > 0, when == WhenUnsafe::Skip, "{when:?}: {stats:?}");
    }
}

/// A sticky goroutine that is interrupted stays on its thread.
#[test]
fn a_goroutine_that_is_interrupted_stays_on_its_thread() {
    let waiter = Waiter::new(Loop::Preemptible);
    run(2, || {
        let (flag, moved) = (AtomicU32::new(0), AtomicUsize::new(0));
        scope(|s| {
            for _ in 0..8 {
                s.go(|| {
                    let thread = std::thread::current().id();
                    waiter.wait(&flag);
                    let stayed = std::thread::current().id() == thread;
                    moved.fetch_add(usize::from(!stayed), Ordering::Relaxed);
                });
            }
            runtime::sleep(Duration::from_millis(100));
            flag.store(1, Ordering::Relaxed);
        });
        assert_eq!(moved.into_inner(), 0);
        assert!(stats().asynchronous > 5, "{:?}", stats());
    });
}

/// What waits on a thread that does not give way is run by one that does.
#[test]
fn goroutines_that_wait_behind_rust_code_are_taken_by_who_is_interrupted() {
    let waiter = Waiter::new(Loop::Preemptible);
    run(2, || {
        let (flag, ran) = (AtomicU32::new(0), AtomicUsize::new(0));
        scope(|s| {
            s.go(|| waiter.wait(&flag));
            for _ in 0..5 {
                s.go(|| ran.fetch_add(1, Ordering::Relaxed));
            }
            let start = Instant::now();
            while ran.load(Ordering::Relaxed) < 5 && start.elapsed() < Duration::from_secs(5) {
                std::hint::spin_loop();
            }
            flag.store(1, Ordering::Relaxed);
            assert_eq!(ran.load(Ordering::Relaxed), 5, "{:?}", stats());
        });
    });
}

/// A timer is looked at when a slice ends, not once in many turns.
#[test]
fn a_sleeper_is_woken_in_time_beside_loops() {
    let waiter = Waiter::new(Loop::Preemptible);
    let slice = Duration::from_millis(2);
    let config = config(1).time_slice(slice);
    let sleep = || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            for _ in 0..2 {
                s.go(|| waiter.wait(&flag));
            }
            let start = Instant::now();
            for _ in 0..5 {
                runtime::sleep(Duration::from_millis(1));
            }
            flag.store(1, Ordering::Relaxed);
            start.elapsed()
        })
    };
    // A slice of each of the two, and some for a machine that others use: by turns alone it would
    // be sixteen slices each time, of which each may take twice as long.
    let slept = (0..5).map(|_| config.run(sleep).expect("the run starts")).min();
    let slept = slept.expect("five tries");
    assert!(slept < 5 * 12 * slice, "{slept:?}");
}

#[test]
fn a_run_ends_while_goroutines_loop_for_ever() {
    for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V), Loop::Polls(GO)] {
        let waiter: &'static Waiter = Box::leak(Box::new(Waiter::new(kind)));
        static NEVER: AtomicU32 = AtomicU32::new(0);
        let start = Instant::now();
        // The slice is longer than the end of the run takes: that asks by itself.
        let config = config(3).time_slice(Duration::from_secs(3600));
        let handles = config.run(|| {
            let handles: Vec<_> = (0..2).map(|_| go(|| waiter.wait(&NEVER))).collect();
            std::thread::sleep(Duration::from_millis(50));
            handles
        });
        assert!(start.elapsed() < Duration::from_secs(10), "{kind:?}: {:?}", start.elapsed());
        for handle in handles.expect("the run starts") {
            let error = handle.join().expect_err("it cannot have ended");
            assert!(error.is::<runtime::Abandoned>(), "{kind:?}");
        }
    }
}

#[test]
fn without_preemption_nobody_else_runs_meanwhile() {
    let waiter = Waiter::new(Loop::Preemptible);
    let polling = Waiter::new(Loop::Polls(SYSTEM_V));
    run(2, || {
        let (flag, turns) = (AtomicU32::new(0), AtomicU64::new(0));
        scope(|s| {
            s.go(|| {
                // This goroutine is on one thread, and starts another on the same one.
                let other = AtomicBool::new(false);
                let (started, over) = (AtomicBool::new(false), AtomicBool::new(false));
                scope(|s| {
                    s.go(|| {
                        started.store(true, Ordering::Relaxed);
                        while !over.load(Ordering::Relaxed) {
                            turns.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    wait_for("the neighbour", || started.load(Ordering::Relaxed));
                    let before = turns.load(Ordering::Relaxed);
                    without_preemption(|| {
                        waiter.wait(&flag);
                        polling.wait(&flag);
                        checkpoint();
                    });
                    let during = turns.load(Ordering::Relaxed) - before;
                    over.store(true, Ordering::Relaxed);
                    other.store(during != 0, Ordering::Relaxed);
                });
                assert!(!other.into_inner(), "the neighbour had a turn: {:?}", stats());
            });
            // The main goroutine keeps its own thread busy, so the two are on the other one.
            let end = Instant::now() + Duration::from_millis(100);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            flag.store(1, Ordering::Relaxed);
        });
        assert!(stats().refused.disabled > 0, "{:?}", stats());
    });
}

/// The count of panics is the thread's: a migratable goroutine that unwinds is put aside like others,
/// and goes on where it was.
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
    // In a process of its own, which is ended if it hangs.
    let outcome = child::run("a_migratable_goroutine_that_unwinds_stays_on_its_thread", || {
        for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V)] {
            let waiter: &Waiter = Box::leak(Box::new(Waiter::new(kind)));
            run(2, || {
                let flag: &AtomicU32 = Box::leak(Box::default());
                let stayed: &AtomicBool = Box::leak(Box::default());
                let turns: &AtomicU64 = Box::leak(Box::default());
                let body = move || {
                    // On this thread, too.
                    go(move || {
                        while flag.load(Ordering::Relaxed) == 0 {
                            turns.fetch_add(1, Ordering::Relaxed);
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
                // SAFETY: everything on its stack is `Send`.
                let unwinds = unsafe { Builder::new().go_migratable(body).expect("memory") };
                let end = Instant::now() + Duration::from_millis(100);
                let put_aside = || stats().asynchronous + stats().cooperative;
                while Instant::now() < end || put_aside() < 3 {
                    assert!(end.elapsed() < Duration::from_secs(20), "{kind:?}: {:?}", stats());
                    std::hint::spin_loop();
                }
                flag.store(1, Ordering::Relaxed);
                assert!(unwinds.join().expect("caught"));
                assert!(stayed.load(Ordering::Relaxed), "{kind:?}: {:?}", stats());
                assert!(turns.load(Ordering::Relaxed) > 2, "{kind:?}: {:?}", stats());
            });
        }
    });
    outcome.assert_success();
}

#[inline(never)]
fn thread_number() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// The count of panics on its thread is not zero then, which is nothing to the others there.
#[test]
fn who_parks_while_it_unwinds_keeps_nobody_from_giving_way() {
    struct Receives<'a>(&'a Chan<u8>);
    impl Drop for Receives<'_> {
        fn drop(&mut self) {
            assert_eq!(self.0.recv(), Ok(7));
        }
    }
    // In a process of its own, which is ended if it hangs.
    let outcome = child::run("who_parks_while_it_unwinds_keeps_nobody_from_giving_way", || {
        for (kind, migratable) in [Loop::Preemptible, Loop::Polls(SYSTEM_V)]
            .into_iter()
            .flat_map(|k| [(k, false), (k, true)])
        {
            let waiter: &Waiter = Box::leak(Box::new(Waiter::new(kind)));
            run(1, || {
                let flag: &AtomicU32 = Box::leak(Box::default());
                let channel = Chan::new(0);
                scope(|s| {
                    let unwinds = s.go(|| {
                        let unwound = catch_unwind(AssertUnwindSafe(|| {
                            let _receives = Receives(&channel);
                            std::panic::resume_unwind(Box::new(5u8));
                        }));
                        unwound.expect_err("it panics").is::<u8>()
                    });
                    let body = move || waiter.wait(flag);
                    let loops = if migratable {
                        // SAFETY: nothing of it belongs to a thread.
                        unsafe { Builder::new().go_migratable(body).expect("memory") }
                    } else {
                        go(body)
                    };
                    // The first one parks, the second one loops until it is put aside.
                    gosched();
                    channel.send(7).expect("open");
                    flag.store(1, Ordering::Relaxed);
                    assert!(unwinds.join().expect("caught"));
                    assert!(loops.join().expect("no panic") > 0);
                });
            });
        }
    });
    outcome.assert_success();
}

/// A signal may end system calls of the program: none is sent before there is code to interrupt.
#[test]
fn no_signal_is_sent_where_no_code_is_preemptible() {
    // In a process of its own: tests beside this one install such code.
    let outcome = child::run("no_signal_is_sent_where_no_code_is_preemptible", || {
        let before = ends(Loop::Polls(SYSTEM_V));
        assert!(before.cooperative > 0 && before.requested > 0, "{before:?}");
        assert_eq!((before.signals, before.refused.native_code), (0, 0), "{before:?}");
        let after = ends(Loop::Preemptible);
        assert!(after.asynchronous > 0, "{after:?}");
    });
    outcome.assert_success();
}

/// A check of the stack gives way like a poll, and like a poll it leaves the red zone as it was.
#[test]
fn a_check_of_the_stack_leaves_the_red_zone_alone() {
    for frame_bytes in [0, 1024] {
        let jit = Jit::new().expect("code memory");
        let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
        // fn(&AtomicU32) -> whether a word of the red zone was changed.
        // SAFETY: a standard frame; it calls nothing but what the check calls.
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
                // SAFETY: on a goroutine; the flag lives over the call.
                let looping = s.go(|| unsafe { entry.call(&flag) });
                s.go(|| {
                    wait_for("no check gave way", || stats().cooperative > 20);
                    flag.store(1, Ordering::Relaxed);
                });
                assert_eq!(looping.join().expect("no panic"), 0, "{frame_bytes}");
            });
        });
    }
}

/// JIT code on the system stack is left alone, whether it polls or not.
#[test]
fn the_system_stack_is_not_put_aside() {
    for kind in [Loop::Preemptible, Loop::Polls(SYSTEM_V), Loop::Polls(GO)] {
        let waiter = Waiter::new(kind);
        run(2, || {
            let flag = AtomicU32::new(0);
            scope(|s| {
                let looping = s.go(|| systemstack(|| waiter.wait(&flag)));
                let start = Instant::now();
                let looks = || stats().requested > 2 || start.elapsed() > Duration::from_secs(20);
                while start.elapsed() < Duration::from_millis(60) || !looks() {
                    std::hint::spin_loop();
                }
                flag.store(1, Ordering::Relaxed);
                assert!(looping.join().expect("no panic") > 0);
            });
            let stats = stats();
            assert_eq!((stats.asynchronous, stats.cooperative), (0, 0), "{kind:?}: {stats:?}");
            assert!(stats.requested > 2, "{kind:?}: {stats:?}");
        });
    }
}

static PREVIOUS_CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_previous(_signal: libc::c_int) {
    PREVIOUS_CALLS.fetch_add(1, Ordering::Relaxed);
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: the handler counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn signals_that_are_not_ours_go_to_the_handler_that_was_there() {
    child::run("signals_that_are_not_ours_go_to_the_handler_that_was_there", || {
        install(libc::SIGURG, count_previous, libc::SA_ONSTACK);
        let stats = ends(Loop::Preemptible);
        assert!(stats.asynchronous > 0, "{stats:?}");
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 0, "ours went to it");
        let send = || {
            // SAFETY: plain numbers.
            assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGURG) }, 0);
        };
        // Outside of a run, and inside of one.
        send();
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 1);
        run(1, send);
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 2);
        // Sent to the thread by somebody else of this process.
        // SAFETY: plain numbers.
        run(1, || unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGURG);
        });
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 3);
    })
    .assert_success();
}

#[test]
fn sigurg_may_be_blocked_before_and_is_afterwards() {
    child::run("sigurg_may_be_blocked_before_and_is_afterwards", || {
        let is_blocked = || {
            // SAFETY: our own structure.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
                libc::sigismember(&raw const set, libc::SIGURG) == 1
            }
        };
        // SAFETY: our own structure.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGURG);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        assert!(is_blocked());
        let stats = ends(Loop::Preemptible);
        assert!(stats.asynchronous > 0, "{stats:?}");
        assert!(is_blocked(), "as it was");
    })
    .assert_success();
}

#[test]
fn handlers_on_goroutine_stacks_are_reported() {
    child::run("handlers_on_goroutine_stacks_are_reported", || {
        assert_eq!(footbridge::environment().signal_handlers, "all on alternate stacks");
        install(libc::SIGUSR1, count_previous, 0);
        install(libc::SIGUSR2, count_previous, libc::SA_ONSTACK);
        install(libc::SIGHUP, count_previous, libc::SA_RESTART);
        assert_eq!(
            footbridge::environment().signal_handlers,
            "signals 1, 10 have handlers without SA_ONSTACK, which run on goroutine stacks: install \
             them with it, or raise Config::stack_bytes"
        );
    })
    .assert_success();
}

/// How often the thread that watches has gone to sleep by itself.
fn naps_of_sysmon() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let mut naps = None;
    for task in tasks {
        let path = task.expect("a thread").path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.trim_end() == "footbridge-sysm" {
            let status = std::fs::read_to_string(path.join("status")).expect("it lives");
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            assert_eq!(naps, None, "one sysmon for a run");
            naps = line.and_then(|n| n.trim().parse().ok());
        }
    }
    naps.expect("a run with preemption has a sysmon")
}

#[test]
fn an_idle_run_is_not_woken() {
    child::run("an_idle_run_is_not_woken", || {
        run(2, || {
            // A thread that is none of the run's looks on while every goroutine sleeps.
            let looking = std::thread::spawn(|| {
                let wait = |ms| std::thread::sleep(Duration::from_millis(ms));
                // On a busy machine it takes a while until all threads sleep.
                let naps = (0..6).map(|_| {
                    wait(100);
                    let before = naps_of_sysmon();
                    wait(200);
                    naps_of_sysmon() - before
                });
                naps.min().expect("six")
            });
            runtime::sleep(Duration::from_millis(2000));
            let idle = looking.join().expect("no panic");
            assert!(idle <= 1, "{idle} naps in an idle process");
            let before = naps_of_sysmon();
            let end = Instant::now() + Duration::from_millis(300);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            let busy = naps_of_sysmon() - before;
            assert!(busy > 50, "{busy} naps");
        });
    })
    .assert_success();
}

#[test]
fn settings_that_cannot_be_kept_are_refused() {
    let requested = Duration::from_micros(19);
    let error = config(1).time_slice(requested).run(|| ()).expect_err("short");
    assert_eq!(error, RunError::TimeSlice { requested });
    assert_eq!(
        error.to_string(),
        "Config::time_slice is 19µs, and must be at least 20µs; None is no preemption"
    );
    let shortest = config(1).time_slice(Duration::from_micros(20));
    assert_eq!(shortest.run(|| 7), Ok(7));
    let error = RunError::VectorState { requested: VectorState::Avx512 };
    assert_eq!(
        error.to_string(),
        "Config::vector_state is Avx512, which this CPU or its operating system does not have; \
         VectorState::Auto is what it has"
    );
}

#[test]
fn ranges_that_make_no_sense_are_refused_when_code_is_installed() {
    let jit = Jit::new().expect("code memory");
    let install = |class: FrameClass, bytes: std::ops::Range<usize>, when| {
        // SAFETY: it is never called.
        let code = unsafe {
            jit.install("ranged", class, |ops| {
                if class == FrameClass::Standard {
                    dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; pop rbp);
                }
                dynasm!(ops; .arch x64; ret);
                Annotations::preemptible().unsafe_points(bytes, when)
            })
        };
        code.err().map(|error| error.to_string())
    };
    let (leaf, standard) = (FrameClass::Leaf, FrameClass::Standard);
    let (skip, restart) = (WhenUnsafe::Skip, WhenUnsafe::Restart);
    let text = |bytes: &str, rule: &str| {
        Some(format!(
            "bytes {bytes} of preemptible code \"ranged\" cannot be unsafe points: {rule}"
        ))
    };
    assert_eq!(install(leaf, 0..1, restart), None);
    assert_eq!(install(standard, 0..6, skip), None);
    assert_eq!(install(standard, 4..6, restart), None);
    let behind = "it ends after the code; ranges count bytes from its start";
    assert_eq!(install(leaf, 0..2, skip), text("0..2", behind));
    let empty = "it is empty: it ends where it starts, or before";
    assert_eq!(install(leaf, 1..1, skip), text("1..1", empty));
    let twice = "it restarts at or before `mov rbp, rsp`, which would make the frame twice";
    assert_eq!(install(standard, 1..6, restart), text("1..6", twice));
    // A frame class that users cannot have, and one that the code does not keep.
    // SAFETY: nothing is installed.
    let refused = unsafe {
        [FrameClass::Root, FrameClass::Standard].map(|class| {
            let body = |ops: &mut Ops| {
                dynasm!(ops; .arch x64; ret);
                Annotations::preemptible()
            };
            jit.install("no frame", class, body).err()
        })
    };
    for error in refused {
        assert!(matches!(error, Some(JitError::FrameContract { .. })), "{error:?}");
    }
    // Polls whose slow paths are missing.
    let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
    // SAFETY: it is never called.
    let unfinished = unsafe {
        jit.install("unfinished", FrameClass::Leaf, |ops| {
            polls.poll(ops);
            dynasm!(ops; .arch x64; ret);
        })
    };
    assert!(matches!(unfinished, Err(JitError::Assemble { .. })), "{unfinished:?}");
    let arm = jit.polls(Convention::Aapcs64).err().map(|error| error.to_string());
    let rule = "poll stub: polls are emitted into code of x86-64 conventions";
    assert_eq!(arm.as_deref(), Some(rule));
}

/// Those who emit by other means find everything that a poll needs.
#[test]
fn the_layout_of_polls_is_what_polls_are_emitted_with() {
    let layout = runtime::poll_layout();
    for (convention, displacement) in
        [(SYSTEM_V, layout.stack_limit_from_fs), (GO, layout.stack_limit_in_goroutine)]
    {
        let jit = Jit::new().expect("code memory");
        let mut polls = jit.polls(convention).expect("of this machine");
        // SAFETY: it is never called.
        let code = unsafe {
            jit.install("one poll", FrameClass::Leaf, |ops| {
                polls.poll(ops);
                dynasm!(ops; .arch x64; ret);
                polls.finish(ops);
            })
        };
        let code = code.expect("it installs");
        // SAFETY: published code is readable.
        let bytes = unsafe { std::slice::from_raw_parts(code.address() as *const u8, code.len()) };
        let decoder = iced_x86::Decoder::with_ip(64, bytes, 0, iced_x86::DecoderOptions::NONE);
        let listing: Vec<_> = decoder.into_iter().collect();
        use iced_x86::{Mnemonic, Register};
        let mnemonics: Vec<_> = listing.iter().map(|i| i.mnemonic()).collect();
        let expected = [Mnemonic::Cmp, Mnemonic::Jbe, Mnemonic::Ret, Mnemonic::Lea, Mnemonic::Call];
        assert_eq!(mnemonics[..5], expected);
        assert_eq!(
            (listing[0].memory_displacement64() as i32, listing[0].memory_base()),
            (displacement, if convention == GO { Register::R14 } else { Register::None },)
        );
        assert_eq!(listing[4].memory_displacement64() as i32, layout.stub_from_fs);
        assert_eq!(listing[4].segment_prefix(), Register::FS);
    }
}

/// Code in memory of somebody else is interrupted if he says that it can be.
#[test]
fn foreign_code_can_be_preemptible() {
    // again: cmp dword [rdi], 0; je again; ret
    const CODE: [u8; 6] = [0x83, 0x3f, 0x00, 0x74, 0xfb, 0xc3];
    // SAFETY: a fresh mapping that stays.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<[u8; 6]>().write(CODE);
        assert_eq!(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        at as usize
    };
    // SAFETY: the mapping stays, and holds leaves.
    let region = unsafe { footbridge::jit::ForeignRegion::new(at..at + 4096, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    let too_long = Annotations::preemptible().unsafe_points(0..7, WhenUnsafe::Skip);
    // SAFETY: the bytes are in place, and can be interrupted anywhere.
    let _code = unsafe {
        let refused = region.publish("foreign", at..at + 6, too_long).err();
        assert!(matches!(refused, Some(JitError::UnsafePointRange { .. })), "{refused:?}");
        let anywhere = Annotations::preemptible();
        region.publish("foreign", at..at + 6, anywhere).expect("it is published")
    };
    assert!(lookup(at).expect("published").is_preemptible());
    run(1, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            s.go(|| {
                // SAFETY: System V code of this type. It needs no entry: it calls nothing.
                let code =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(*const AtomicU32)>(at) };
                code(&flag);
            });
            wait_for_preemption();
            flag.store(1, Ordering::Relaxed);
        });
        assert!(stats().asynchronous > 0, "{:?}", stats());
    });
}
