//! Floating-point control modes: those of the thread, in which goroutines run, and those that a
//! goroutine keeps for itself.
//!
//! Nothing here computes with floating-point numbers outside of assembly: the compiler relies on the
//! default modes. FOOTBRIDGE_SEED says where random choices begin, FOOTBRIDGE_MODE_ROUNDS how many
//! of them each goroutine of the mixed test makes (default 300).

#![allow(unsafe_code, reason = "loads control registers and calls emitted code")]

use std::arch::asm;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::child;
use support::runs::wait_for;
use support::settings::seed_or;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops};
use footbridge::runtime::{
    Builder, Case, Chan, Config, Entry, checkpoint, go, gosched, keep_fp_control,
    request_preemption, scope, select, sleep, stats, systemstack,
};
use support::spinner::{GivesWay, Level, Random, Spinner};

/// MXCSR without the flags of past exceptions, and the x87 control word.
type Modes = (u32, u16);

/// As a process starts: System V psABI, section 3.2.3.
const DEFAULT: Modes = (0x1f80, 0x37f);
/// Flush-to-zero, denormals-are-zero, and rounding up in both units.
const UNUSUAL: Modes = (0x1f80 | 1 << 15 | 1 << 6 | 2 << 13, 0x37f | 2 << 10);

#[inline(never)]
fn modes() -> Modes {
    let (mut mxcsr, mut x87) = (0u32, 0u16);
    // SAFETY: stores two control registers.
    unsafe {
        asm!(
            "stmxcsr [{mxcsr}]",
            "fnstcw [{x87}]",
            mxcsr = in(reg) &raw mut mxcsr,
            x87 = in(reg) &raw mut x87,
        );
    }
    (mxcsr & !0x3f, x87)
}

#[inline(never)]
fn set_modes((mxcsr, x87): Modes) {
    // SAFETY: valid modes; nothing computes in them but assembly.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            "fldcw [{x87}]",
            mxcsr = in(reg) &raw const mxcsr,
            x87 = in(reg) &raw const x87,
        );
    }
}

/// Rounding to nearest, down, up, and to zero, in both units.
fn rounding(n: usize) -> Modes {
    let n = n % 4;
    (DEFAULT.0 | (n as u32) << 13, DEFAULT.1 | (n as u16) << 10)
}

/// 1/10 and -1/10, by SSE2 and by x87: the last bits tell the rounding.
#[inline(never)]
fn tenths() -> [u64; 4] {
    let (one, minus_one, ten) = (1f64.to_bits(), (-1f64).to_bits(), 10f64.to_bits());
    let mut results = [0u64; 4];
    // SAFETY: divides numbers in registers, and leaves the x87 stack empty.
    unsafe {
        asm!(
            "movsd xmm0, [{one}]",
            "divsd xmm0, [{ten}]",
            "movsd [{results}], xmm0",
            "movsd xmm0, [{minus_one}]",
            "divsd xmm0, [{ten}]",
            "movsd [{results} + 8], xmm0",
            "fld qword ptr [{one}]",
            "fdiv qword ptr [{ten}]",
            "fstp qword ptr [{results} + 16]",
            "fld qword ptr [{minus_one}]",
            "fdiv qword ptr [{ten}]",
            "fstp qword ptr [{results} + 24]",
            one = in(reg) &raw const one,
            minus_one = in(reg) &raw const minus_one,
            ten = in(reg) &raw const ten,
            results = in(reg) results.as_mut_ptr(),
            out("xmm0") _,
            out("st(0)") _,
        );
    }
    results
}

/// What [`tenths`] must be in the modes of [`rounding`].
fn tenths_in(n: usize) -> [u64; 4] {
    const LOW: u64 = 0x3fb9_9999_9999_9999;
    const SIGN: u64 = 1 << 63;
    // Of both numbers, whether the larger magnitude is the right one.
    let (plus, minus) = [(1, 1), (0, 1), (1, 0), (0, 0)][n % 4];
    let both = [LOW + plus, SIGN | (LOW + minus)];
    [both[0], both[1], both[0], both[1]]
}

#[track_caller]
fn assert_rounding(n: usize, what: &str) {
    assert_eq!((modes(), tenths()), (rounding(n), tenths_in(n)), "{what}, rounding {n}");
}

const SHORT: Duration = Duration::from_micros(100);

fn config(processors: usize) -> Config {
    Config::new().processors(processors).time_slice(SHORT)
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// How often goroutines of this run were put aside.
fn put_aside() -> u64 {
    let stats = stats();
    stats.asynchronous + stats.cooperative
}

/// Whether a test that began then goes on: for a while, and as long as it has not seen what it wants
/// to see, if the machine is busy.
fn goes_on(start: Instant, seen_enough: bool) -> bool {
    let elapsed = start.elapsed();
    elapsed < Duration::from_millis(400) || !seen_enough && elapsed < Duration::from_secs(15)
}

/// How a loop gives way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loop {
    Preemptible,
    Polls(Convention),
}

/// Code that loops until a flag is set.
struct Waiter(Entry<fn(*const AtomicU32)>);

impl Waiter {
    fn new(kind: Loop) -> Self {
        let jit = Jit::new().expect("code memory");
        let convention = match kind {
            Loop::Polls(convention) => convention,
            Loop::Preemptible => Convention::SystemV,
        };
        let mut polls = jit.polls(convention).expect("of this machine");
        let mut body = |ops: &mut Ops| {
            if convention == Convention::GoAbiInternal {
                dynasm!(ops; .arch x64; mov rdi, rax);
            }
            dynasm!(ops; .arch x64; again:);
            if kind != Loop::Preemptible {
                polls.poll(ops);
            }
            dynasm!(ops; .arch x64; cmp DWORD [rdi], 0; je <again; ret);
            polls.finish(ops);
        };
        // SAFETY: a leaf that changes rdi only.
        let code = unsafe {
            match kind {
                Loop::Preemptible => jit.install("waits", FrameClass::Leaf, |ops| {
                    body(ops);
                    Annotations::preemptible()
                }),
                Loop::Polls(_) => jit.install("waits", FrameClass::Leaf, body),
            }
        };
        // SAFETY: of that convention and type.
        Self(unsafe { code.expect("it installs").enter(convention) }.expect("an entry"))
    }

    fn wait(&self, flag: &AtomicU32) {
        // SAFETY: on a goroutine; the flag lives over the call.
        unsafe { self.0.call(flag) };
    }
}

/// Runs `f` on a new thread whose modes are these, and checks that they are so afterwards.
fn on_thread_with(before: Modes, f: impl FnOnce() + Send) {
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            set_modes(before);
            f();
            let after = modes();
            set_modes(DEFAULT);
            assert_eq!(after, before, "after the run");
        });
        thread.join().expect("no panic");
    });
}

/// Goroutines that spin in modes of their own, which follow from the seed, are put aside for others
/// all the time.
#[test]
fn goroutines_run_in_the_modes_of_the_thread_that_began_the_run() {
    for (gives_way, processors) in [(GivesWay::Anywhere, 1), (GivesWay::AtPolls, 2)] {
        let spinner = Spinner::new(Level::largest(), gives_way);
        on_thread_with(UNUSUAL, || {
            let checks = run(processors, || {
                let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
                let start = Instant::now();
                scope(|s| {
                    for n in 0..4 {
                        let (spinner, stop) = (&spinner, &stop);
                        s.go(move || {
                            let mut random = Random(seed() ^ n);
                            while !stop.load(Ordering::Relaxed) {
                                assert_eq!(spinner.spin(1 << 18, random.bits()), []);
                                assert_eq!(modes(), UNUSUAL, "where the spin was called");
                            }
                        });
                    }
                    let checkers: Vec<_> = (0..4)
                        .map(|_| {
                            s.go(|| {
                                while goes_on(start, put_aside() > 50) {
                                    assert_eq!(modes(), UNUSUAL, "{gives_way:?}");
                                    systemstack(|| assert_eq!(modes(), UNUSUAL));
                                    checks.fetch_add(1, Ordering::Relaxed);
                                    gosched();
                                }
                            })
                        })
                        .collect();
                    let ends: Vec<_> = checkers.into_iter().map(|c| c.join().is_ok()).collect();
                    stop.store(true, Ordering::Relaxed);
                    assert_eq!(ends, [true; 4]);
                });
                assert!(put_aside() > 50, "{gives_way:?}: {:?}", stats());
                checks.into_inner()
            });
            assert!(checks > 100, "{checks}");
        });
    }
}

fn seed() -> u64 {
    seed_or(0x00f0_07b5_1d6e)
}

/// Also if a goroutine leaves others behind, which it must not.
#[test]
fn a_thread_leaves_a_run_with_the_modes_that_it_had() {
    for before in [DEFAULT, UNUSUAL] {
        on_thread_with(before, || run(1, || set_modes(rounding(1))));
    }
}

/// Ways in which a goroutine is suspended, each with another goroutine that runs meanwhile.
const SUSPENSIONS: [(&str, fn()); 13] = [
    ("gosched", || (0..3).for_each(|_| gosched())),
    ("sleep", || sleep(Duration::from_millis(1))),
    ("recv", || {
        let channel = Chan::new(0);
        let sender = channel.clone();
        go(move || sender.send(modes()).expect("open"));
        assert_eq!(channel.recv(), Ok(UNUSUAL), "another goroutine's");
    }),
    ("send", || {
        let channel = Chan::new(0);
        let receiver = channel.clone();
        let received = go(move || (receiver.recv(), modes()));
        channel.send(5).expect("open");
        assert_eq!(received.join().expect("no panic"), (Ok(5), UNUSUAL));
    }),
    ("select", || {
        let (first, second) = (Chan::<u8>::new(0), Chan::<u8>::new(0));
        let sender = second.clone();
        go(move || sender.send(9).expect("open"));
        let (mut one, mut other) = (None, None);
        let fired = select(&mut [Case::recv(&first, &mut one), Case::recv(&second, &mut other)]);
        assert_eq!((fired, one, other), (1, None, Some(9)));
    }),
    ("join", || assert_eq!(go(modes).join().expect("no panic"), UNUSUAL)),
    ("join of one that panics", || {
        let end = go(|| {
            assert!(!keep_fp_control(true));
            set_modes(rounding(3));
            resume_unwind(Box::new(7u8))
        });
        assert!(end.join().is_err_and(|payload| payload.is::<u8>()));
    }),
    ("scope", || {
        scope(|s| {
            for _ in 0..3 {
                s.go(|| assert_eq!(modes(), UNUSUAL));
            }
        });
    }),
    ("checkpoint", || {
        let before = stats().cooperative;
        assert!(request_preemption(0));
        checkpoint();
        assert!(stats().cooperative > before);
    }),
    ("a poll in System V", || give_way_in(Loop::Polls(Convention::SystemV))),
    ("a poll in ABIInternal", || give_way_in(Loop::Polls(Convention::GoAbiInternal))),
    ("an interruption", || give_way_in(Loop::Preemptible)),
    ("systemstack, which is none", || {
        let inside = modes();
        systemstack(|| assert_eq!(modes(), inside));
    }),
];

/// Calls JIT code that is put aside at least once.
fn give_way_in(kind: Loop) {
    let waiter = Waiter::new(kind);
    let flag = AtomicU32::new(0);
    scope(|s| {
        s.go(|| {
            assert_eq!(modes(), UNUSUAL);
            let before = put_aside();
            wait_for("nobody was put aside", || put_aside() > before);
            flag.store(1, Ordering::Relaxed);
        });
        waiter.wait(&flag);
    });
}

#[test]
fn each_suspension_keeps_the_modes_of_who_asks_and_of_nobody_else() {
    for (what, suspend) in SUSPENSIONS {
        on_thread_with(UNUSUAL, || {
            run(1, || {
                let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
                scope(|s| {
                    s.go(|| {
                        while !stop.load(Ordering::Relaxed) {
                            assert_eq!(modes(), UNUSUAL, "beside {what}");
                            checks.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    let asks = s.go(|| {
                        assert!(!keep_fp_control(true), "a goroutine starts without");
                        assert_eq!(modes(), UNUSUAL, "asking changes none");
                        for n in 0..4 {
                            set_modes(rounding(n));
                            suspend();
                            assert_rounding(n, what);
                        }
                        assert!(keep_fp_control(true), "{what} forgets nothing");
                    });
                    let end = asks.join();
                    assert_eq!(modes(), UNUSUAL, "after {what}, of one that has ended");
                    stop.store(true, Ordering::Relaxed);
                    end.expect("no panic");
                });
                assert!(checks.into_inner() > 0, "{what}");
            });
        });
    }
}

#[test]
fn who_asks_no_more_runs_in_the_modes_of_the_thread() {
    assert!(!keep_fp_control(true), "no goroutine");
    assert!(!keep_fp_control(true), "on a foreign thread it has no effect");
    on_thread_with(UNUSUAL, || {
        run(1, || {
            assert!(!keep_fp_control(false));
            assert!(!keep_fp_control(true));
            set_modes(rounding(1));
            assert!(keep_fp_control(true));
            assert_eq!(modes(), rounding(1));
            gosched();
            assert_eq!(modes(), rounding(1));
            assert!(keep_fp_control(false));
            assert_eq!(modes(), UNUSUAL);
            assert!(!keep_fp_control(false));
            assert_eq!(modes(), UNUSUAL);
            assert!(!keep_fp_control(true));
            // The main goroutine ends in other modes, and is followed by none.
            set_modes(rounding(3));
        });
    });
}

/// However a goroutine ends, the next one of its thread has the thread's modes, and the next one of
/// its structure asks anew.
#[test]
fn a_goroutine_that_ends_leaves_no_modes_behind() {
    struct Counted;
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let ask = |n| {
        assert!(!keep_fp_control(true), "the goroutine before asked, not this one");
        set_modes(rounding(n));
    };
    on_thread_with(UNUSUAL, || {
        run(1, || {
            for n in 0..4 {
                let returns = go(move || {
                    ask(n);
                    Counted
                });
                drop(returns.join().expect("no panic"));
                assert_eq!(modes(), UNUSUAL, "it has returned");
                let panics = go(move || {
                    ask(n);
                    resume_unwind(Box::new(Counted));
                });
                drop(panics.join().expect_err("it panics"));
                assert_eq!(modes(), UNUSUAL, "it has panicked");
                // Its result is dropped by itself, before it ends ...
                drop(go(move || {
                    ask(n);
                    gosched();
                    Counted
                }));
                // ... or, if the handle goes later, by who has the handle.
                let finished = go(move || {
                    ask(n);
                    Counted
                });
                wait_for("its end", || finished.is_finished());
                drop(finished);
                wait_for("the drops", || DROPPED.load(Ordering::Relaxed) == 4 * (n + 1));
                assert_eq!(modes(), UNUSUAL, "results were dropped");
            }
        });
    });
}

/// The handle may go away while its goroutine ends: between its last look at the handle, and the
/// scheduler's. Then it is continued for the destructor of its result, which may be a user's, and
/// leaves no modes behind either.
#[test]
fn a_destructor_that_a_goroutine_is_continued_for_leaves_no_modes_behind() {
    static CONTINUED: AtomicU64 = AtomicU64::new(0);
    static STARTED_IN_OTHER_MODES: AtomicU64 = AtomicU64::new(0);
    static STARTED_KEEPING: AtomicU64 = AtomicU64::new(0);
    struct Asks;
    impl Drop for Asks {
        fn drop(&mut self) {
            // Goroutines keep modes until their last look, and who drops the handles does: whoever
            // keeps none was continued.
            if !keep_fp_control(true) {
                CONTINUED.fetch_add(1, Ordering::Relaxed);
                set_modes(rounding(3));
            }
        }
    }
    /// So much stack is given back to the kernel in between that it takes its time.
    #[inline(never)]
    fn use_stack() {
        hint::black_box(&mut [0u8; 16 << 10]);
        gosched();
    }
    /// Gives way only after a time in which another thread comes for work, if one has a processor.
    fn wait_while(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while condition() {
            if start.elapsed() > Duration::from_millis(10) {
                gosched();
            }
        }
    }
    fn spin(turns: i32) {
        (0..turns).for_each(|_| hint::spin_loop());
    }
    /// Counts what a goroutine starts with that it should not.
    fn look() {
        STARTED_IN_OTHER_MODES.fetch_add(u64::from(modes() != UNUSUAL), Ordering::Relaxed);
        STARTED_KEEPING.fetch_add(u64::from(keep_fp_control(false)), Ordering::Relaxed);
        set_modes(UNUSUAL);
    }
    on_thread_with(UNUSUAL, || {
        run(2, || {
            assert!(!keep_fp_control(true));
            let start = Instant::now();
            let (mut round, mut lead) = (0, 0);
            while goes_on(start, CONTINUED.load(Ordering::Relaxed) > 20) {
                round += 1;
                // 0: it has not begun; -1: it may end; else the thread that it waits on.
                let state = Arc::new(AtomicI32::new(0));
                let there = Arc::clone(&state);
                let ending = go(move || {
                    look();
                    // On this thread the structure of the last one that ended comes first.
                    go(look).join().expect("no panic");
                    use_stack();
                    assert!(!keep_fp_control(true));
                    set_modes(rounding(1));
                    there.store(thread_number(), Ordering::Release);
                    wait_while(|| there.load(Ordering::Acquire) != -1);
                    spin(-lead);
                    Asks
                });
                // The other thread takes it, unless it is busy.
                wait_while(|| state.load(Ordering::Acquire) == 0);
                let is_elsewhere = state.swap(-1, Ordering::AcqRel) != thread_number();
                if is_elsewhere {
                    spin(lead);
                    // So that the next one ends about when its handle goes away.
                    lead += if ending.is_finished() { -1 } else { 1 };
                }
                drop(ending);
            }
            let continued = CONTINUED.load(Ordering::Relaxed);
            println!("{continued} of {round} were continued");
            assert!(continued > 0, "of {round}");
            let started = [&STARTED_IN_OTHER_MODES, &STARTED_KEEPING];
            let started = started.map(|count| count.load(Ordering::Relaxed));
            assert_eq!(started, [0, 0], "in other modes, and keeping: {continued} of {round}");
        });
    });
}

/// Unwinding, with suspensions in destructors, loses nothing.
#[test]
fn a_panic_loses_no_modes() {
    struct Suspends(usize);
    impl Drop for Suspends {
        fn drop(&mut self) {
            assert!(std::thread::panicking());
            assert_rounding(self.0, "while it unwinds");
            for _ in 0..3 {
                gosched();
                assert_rounding(self.0, "after gosched while it unwinds");
                sleep(Duration::from_micros(100));
                assert_rounding(self.0, "after a sleep while it unwinds");
            }
        }
    }
    let body = || {
        assert!(!keep_fp_control(true));
        for n in 0..4 {
            set_modes(rounding(n));
            let unwound = catch_unwind(|| {
                let _suspends = Suspends(n);
                resume_unwind(Box::new(1u8));
            });
            assert!(unwound.is_err_and(|payload| payload.is::<u8>()));
            assert_rounding(n, "after a panic");
            gosched();
            assert_rounding(n, "after gosched after a panic");
        }
        assert!(keep_fp_control(true));
    };
    let beside = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(modes(), UNUSUAL);
            gosched();
        }
    };
    on_thread_with(UNUSUAL, || {
        run(1, || {
            let stop = AtomicBool::new(false);
            scope(|s| {
                s.go(|| beside(&stop));
                let ends = [
                    s.go(body).join().is_ok(),
                    // SAFETY: nothing in it belongs to a thread.
                    unsafe { Builder::new().go_migratable(body).expect("memory") }.join().is_ok(),
                ];
                stop.store(true, Ordering::Relaxed);
                assert_eq!(ends, [true, true]);
            });
        });
    });
}

/// Whether a goroutine may be suspended is asked before its modes are put aside.
#[test]
fn a_suspension_that_is_refused_loses_no_modes() {
    let outcome = child::run("a_suspension_that_is_refused_loses_no_modes", || {
        std::panic::set_hook(Box::new(|_| {}));
        run(1, || {
            assert!(!keep_fp_control(true));
            set_modes(rounding(2));
            let suspensions: [fn(); 2] = [gosched, || sleep(Duration::from_millis(1))];
            for suspend in suspensions {
                let refused = catch_unwind(AssertUnwindSafe(|| systemstack(suspend)));
                assert!(refused.is_err());
                assert_rounding(2, "after a refusal");
                assert!(keep_fp_control(true));
            }
        });
    });
    outcome.assert_success();
}

/// Exceptions that one goroutine leaves in the status word of the x87 do not trap in another one,
/// which wants them to.
#[test]
fn exceptions_of_others_do_not_trap() {
    let outcome = child::run("exceptions_of_others_do_not_trap", || {
        run(1, || {
            let asks = go(|| {
                assert!(!keep_fp_control(true));
                // Division by zero traps.
                set_modes((DEFAULT.0 & !(1 << 9), DEFAULT.1 & !(1 << 2)));
                for _ in 0..3 {
                    gosched();
                    // SAFETY: an x87 instruction that waits, and one that computes.
                    unsafe { asm!("fwait", "fld1", "fstp st(0)", out("st(0)") _) };
                }
                modes()
            });
            let divides = go(|| {
                for _ in 0..3 {
                    // SAFETY: divides by zero where that is masked, and leaves the flag.
                    unsafe { asm!("fld1", "fldz", "fdivp", "fstp st(0)", out("st(0)") _) };
                    gosched();
                }
            });
            divides.join().expect("no panic");
            let kept = asks.join().expect("no panic");
            assert_eq!(kept, (DEFAULT.0 & !(1 << 9), DEFAULT.1 & !(1 << 2)));
        });
    });
    outcome.assert_success();
}

#[inline(never)]
fn thread_number() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Own modes go along to another thread; those of the threads stay where they are.
#[test]
fn a_migratable_goroutine_takes_its_modes_along() {
    on_thread_with(UNUSUAL, || {
        let moved = run(2, || {
            static MOVED: AtomicU64 = AtomicU64::new(0);
            let start = Instant::now();
            let bodies = (0..8).map(|n| {
                let body = move || {
                    let asks = n < 5;
                    if asks {
                        assert!(!keep_fp_control(true));
                        set_modes(rounding(n));
                    }
                    let mut random = Random(seed() ^ n as u64);
                    while goes_on(start, MOVED.load(Ordering::Relaxed) > 20) {
                        let before = thread_number();
                        match random.bits() % 3 {
                            0 => gosched(),
                            1 => sleep(Duration::from_micros(random.bits() % 500)),
                            _ => {
                                for _ in 0..2_000 {
                                    checkpoint();
                                }
                            }
                        }
                        let moved = asks && thread_number() != before;
                        MOVED.fetch_add(u64::from(moved), Ordering::Relaxed);
                        if asks {
                            assert_rounding(n, "wherever it is");
                        } else {
                            assert_eq!(modes(), UNUSUAL, "it does not ask");
                        }
                    }
                };
                // SAFETY: nothing in it belongs to a thread.
                unsafe { Builder::new().go_migratable(body).expect("memory") }
            });
            let handles: Vec<_> = bodies.collect();
            handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
            MOVED.load(Ordering::Relaxed)
        });
        assert!(moved > 20, "{moved} times");
    });
}

/// Many goroutines, all roundings, and everything that suspends, in a random order.
#[test]
fn all_roundings_live_beside_each_other() {
    const GOROUTINES: usize = 16;
    let rounds = std::env::var("FOOTBRIDGE_MODE_ROUNDS").ok().map(|s| s.parse().expect("a number"));
    let rounds: u64 = rounds.unwrap_or(300);
    for processors in [1, 2] {
        on_thread_with(UNUSUAL, || {
            let spinner = Spinner::new(Level::Sse, GivesWay::Anywhere);
            let polls = Spinner::new(Level::Sse, GivesWay::AtPolls);
            run(processors, || {
                let numbers = Chan::new(2);
                scope(|s| {
                    let adders: Vec<_> = (0..GOROUTINES)
                        .map(|n| {
                            let (numbers, spinner, polls) = (&numbers, &spinner, &polls);
                            s.go(move || {
                                let asks = n % 2 == 0;
                                if asks {
                                    assert!(!keep_fp_control(true));
                                }
                                let mut random = Random(seed() ^ (n as u64) << 32);
                                let mut own = 0;
                                for round in 0..rounds {
                                    if asks && random.bits().is_multiple_of(3) {
                                        own = random.bits() as usize % 4;
                                    }
                                    if asks {
                                        set_modes(rounding(own));
                                    }
                                    match random.bits() % 8 {
                                        0 => gosched(),
                                        1 => sleep(Duration::from_micros(random.bits() % 300)),
                                        2 => numbers.send(1u64).expect("open"),
                                        3 => drop(numbers.try_recv()),
                                        4 => {
                                            let child = go(modes).join().expect("no panic");
                                            assert_eq!(child, UNUSUAL, "a goroutine starts anew");
                                        }
                                        5 => assert_eq!(spinner.spin(1 << 18, random.bits()), []),
                                        6 => assert_eq!(polls.spin(1 << 18, random.bits()), []),
                                        _ => (0..1_000).for_each(|_| checkpoint()),
                                    }
                                    let what = format!("seed {}, {n}, {round}", seed());
                                    if asks {
                                        assert_rounding(own, &what);
                                    } else {
                                        assert_eq!(modes(), UNUSUAL, "{what}");
                                    }
                                }
                            })
                        })
                        .collect();
                    let drain = s.go(|| numbers.iter().sum::<u64>());
                    let ends: Vec<_> = adders.into_iter().map(|a| a.join()).collect();
                    numbers.close();
                    drain.join().expect("no panic");
                    ends.into_iter().for_each(|end| end.expect("no panic"));
                });
                // Fewer slices end where others have the processor, too.
                assert!(put_aside() > 5, "on {processors}: {:?}", stats());
            });
        });
    }
}
