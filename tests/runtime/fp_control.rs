//! FP control state (MXCSR and the x87 control word): the state of the thread, in which goroutines
//! run by default, and the state that a goroutine keeps after `keep_fp_control`.
//!
//! Floating-point arithmetic here is in assembly only, since the compiler relies on the default
//! state. FOOTBRIDGE_SEED is the seed of random choices, FOOTBRIDGE_MODE_ROUNDS the number of
//! steps of each goroutine in the mixed test (default 300).

#![allow(unsafe_code, reason = "loads control registers and calls emitted code")]

use std::arch::asm;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use support::child;
use support::patience::Patience;
use support::runs::{AtEnd, thread_number, wait_for};
use support::settings::seed_or;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops};
use footbridge::runtime::{
    Builder, Case, Chan, Config, Entry, checkpoint, go, gosched, keep_fp_control,
    request_preemption, scope, select, sleep, stats, systemstack,
};
use support::spinner::{Level, Preemptible, Random, Spinner};

/// MXCSR without its exception flags, and the x87 control word.
type FpControl = (u32, u16);

/// The state at process start: System V psABI, section 3.2.3.
const DEFAULT: FpControl = (0x1f80, 0x37f);
/// Flush-to-zero, denormals-are-zero, and rounding up in both units.
const UNUSUAL: FpControl = (0x1f80 | 1 << 15 | 1 << 6 | 2 << 13, 0x37f | 2 << 10);

#[inline(never)]
fn fp_control() -> FpControl {
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
fn set_fp_control((mxcsr, x87): FpControl) {
    // SAFETY: a valid state; only assembly computes in it.
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
fn rounding(n: usize) -> FpControl {
    let n = n % 4;
    (DEFAULT.0 | (n as u32) << 13, DEFAULT.1 | (n as u16) << 10)
}

/// 1/10 and -1/10, by SSE2 and by x87. The last bits depend on the rounding mode.
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

/// The expected result of [`tenths`] in the state [`rounding`]`(n)`.
fn tenths_in(n: usize) -> [u64; 4] {
    const LOW: u64 = 0x3fb9_9999_9999_9999;
    const SIGN: u64 = 1 << 63;
    // For the positive and the negative number, whether the larger magnitude is correct.
    let (plus, minus) = [(1, 1), (0, 1), (1, 0), (0, 0)][n % 4];
    let both = [LOW + plus, SIGN | (LOW + minus)];
    [both[0], both[1], both[0], both[1]]
}

#[track_caller]
fn assert_rounding(n: usize, what: &str) {
    assert_eq!((fp_control(), tenths()), (rounding(n), tenths_in(n)), "{what}, rounding {n}");
}

const SHORT: Duration = Duration::from_micros(100);

fn config(processors: usize) -> Config {
    Config::new().processors(processors).time_slice(SHORT)
}

fn run<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    config(processors).run(f).expect("the run starts")
}

/// The number of preemptions in this run.
fn preemptions() -> u64 {
    let stats = stats();
    stats.asynchronous + stats.cooperative
}

/// Whether a test continues: for 400 ms, and on a busy machine longer, until it has seen enough.
fn continues(patience: Patience, seen_enough: bool) -> bool {
    patience.elapsed() < Duration::from_millis(400) || !seen_enough && !patience.is_over()
}

/// How a loop can be preempted.
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
        // SAFETY: on a goroutine; the flag outlives the call.
        unsafe { self.0.call(flag) };
    }
}

/// Runs `f` on a new thread with the FP control state `before`, and checks that `f` preserves it.
fn on_thread_with(before: FpControl, f: impl FnOnce() + Send) {
    std::thread::scope(|s| {
        let thread = s.spawn(|| {
            set_fp_control(before);
            f();
            let after = fp_control();
            set_fp_control(DEFAULT);
            assert_eq!(after, before, "after the run");
        });
        thread.join().expect("no panic");
    });
}

/// Goroutines that spin in random FP control states are preempted all the time for goroutines that
/// check their own state.
#[test]
fn goroutines_run_in_the_fp_control_state_of_the_thread_that_started_the_run() {
    for (preemptible, processors) in [(Preemptible::Anywhere, 1), (Preemptible::AtPolls, 2)] {
        let spinner = Spinner::new(Level::largest(), preemptible);
        on_thread_with(UNUSUAL, || {
            let checks = run(processors, || {
                let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
                let patience = Patience::new();
                let seen_enough = || preemptions() > 50 && checks.load(Ordering::Relaxed) > 100;
                scope(|s| {
                    let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
                    for n in 0..4 {
                        let (spinner, stop) = (&spinner, &stop);
                        s.go(move || {
                            let mut random = Random(seed() ^ n);
                            while !stop.load(Ordering::Relaxed) {
                                assert_eq!(spinner.spin(1 << 18, random.next_u64()), []);
                                assert_eq!(fp_control(), UNUSUAL, "after the spin");
                            }
                        });
                    }
                    let checkers: Vec<_> = (0..4)
                        .map(|_| {
                            s.go(|| {
                                while continues(patience, seen_enough()) {
                                    assert_eq!(fp_control(), UNUSUAL, "{preemptible:?}");
                                    systemstack(|| assert_eq!(fp_control(), UNUSUAL));
                                    checks.fetch_add(1, Ordering::Relaxed);
                                    gosched();
                                }
                            })
                        })
                        .collect();
                    let ends: Vec<_> = checkers.into_iter().map(|c| c.join().is_ok()).collect();
                    assert_eq!(ends, [true; 4]);
                });
                assert!(preemptions() > 50, "{preemptible:?}: {:?}", stats());
                checks.into_inner()
            });
            assert!(checks > 100, "{checks}");
        });
    }
}

fn seed() -> u64 {
    seed_or(0x00f0_07b5_1d6e)
}

/// The state is restored even if a goroutine leaves the thread in another one, which it must not.
#[test]
fn a_run_restores_the_fp_control_state_of_its_thread() {
    for before in [DEFAULT, UNUSUAL] {
        on_thread_with(before, || run(1, || set_fp_control(rounding(1))));
    }
}

/// Ways in which a goroutine is descheduled, each while another goroutine runs.
const DESCHEDULES: [(&str, fn()); 13] = [
    ("gosched", || (0..3).for_each(|_| gosched())),
    ("sleep", || sleep(Duration::from_millis(1))),
    ("recv", || {
        let channel = Chan::new(0);
        let sender = channel.clone();
        go(move || sender.send(fp_control()).expect("open"));
        assert_eq!(channel.recv(), Ok(UNUSUAL), "of the other goroutine");
    }),
    ("send", || {
        let channel = Chan::new(0);
        let receiver = channel.clone();
        let received = go(move || (receiver.recv(), fp_control()));
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
    ("join", || assert_eq!(go(fp_control).join().expect("no panic"), UNUSUAL)),
    ("join of one that panics", || {
        let end = go(|| {
            assert!(!keep_fp_control(true));
            set_fp_control(rounding(3));
            resume_unwind(Box::new(7u8))
        });
        assert!(end.join().is_err_and(|payload| payload.is::<u8>()));
    }),
    ("scope", || {
        scope(|s| {
            for _ in 0..3 {
                s.go(|| assert_eq!(fp_control(), UNUSUAL));
            }
        });
    }),
    ("checkpoint", || {
        let before = stats().cooperative;
        assert!(request_preemption(0));
        checkpoint();
        assert!(stats().cooperative > before);
    }),
    ("a poll in System V", || yield_in(Loop::Polls(Convention::SystemV))),
    ("a poll in ABIInternal", || yield_in(Loop::Polls(Convention::GoAbiInternal))),
    ("an asynchronous preemption", || yield_in(Loop::Preemptible)),
    ("systemstack, which does not deschedule", || {
        let inside = fp_control();
        systemstack(|| assert_eq!(fp_control(), inside));
    }),
];

/// Calls JIT code that is preempted at least once.
fn yield_in(kind: Loop) {
    let waiter = Waiter::new(kind);
    let flag = AtomicU32::new(0);
    scope(|s| {
        s.go(|| {
            assert_eq!(fp_control(), UNUSUAL);
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            let before = preemptions();
            wait_for("the waiter is preempted", || preemptions() > before);
        });
        waiter.wait(&flag);
    });
}

#[test]
fn each_deschedule_keeps_the_fp_control_state_only_of_goroutines_that_opted_in() {
    for (what, deschedule) in DESCHEDULES {
        on_thread_with(UNUSUAL, || {
            run(1, || {
                let (stop, checks) = (AtomicBool::new(false), AtomicU64::new(0));
                scope(|s| {
                    let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
                    s.go(|| {
                        while !stop.load(Ordering::Relaxed) {
                            assert_eq!(fp_control(), UNUSUAL, "beside {what}");
                            checks.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    let opted_in = s.go(|| {
                        assert!(!keep_fp_control(true), "a goroutine starts without it");
                        assert_eq!(fp_control(), UNUSUAL, "opting in changes no state");
                        for n in 0..4 {
                            set_fp_control(rounding(n));
                            deschedule();
                            assert_rounding(n, what);
                        }
                        assert!(keep_fp_control(true), "{what} keeps the setting");
                    });
                    let end = opted_in.join();
                    assert_eq!(
                        fp_control(),
                        UNUSUAL,
                        "after {what}, and the end of that goroutine"
                    );
                    end.expect("no panic");
                });
                assert!(checks.into_inner() > 0, "{what}");
            });
        });
    }
}

#[test]
fn a_goroutine_that_opts_out_runs_in_the_fp_control_state_of_the_thread() {
    assert!(!keep_fp_control(true), "outside of a run");
    assert!(!keep_fp_control(true), "outside of a run it has no effect");
    on_thread_with(UNUSUAL, || {
        run(1, || {
            assert!(!keep_fp_control(false));
            assert!(!keep_fp_control(true));
            set_fp_control(rounding(1));
            assert!(keep_fp_control(true));
            assert_eq!(fp_control(), rounding(1));
            gosched();
            assert_eq!(fp_control(), rounding(1));
            assert!(keep_fp_control(false));
            assert_eq!(fp_control(), UNUSUAL);
            assert!(!keep_fp_control(false));
            assert_eq!(fp_control(), UNUSUAL);
            assert!(!keep_fp_control(true));
            // The main goroutine ends in another state.
            set_fp_control(rounding(3));
        });
    });
}

/// However a goroutine ends, the next goroutine on its thread has the thread's FP control state,
/// and the next goroutine in its G structure has not opted in.
#[test]
fn a_goroutine_that_ends_leaves_no_fp_control_state_to_the_next() {
    struct Counted;
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    let opt_in = |n| {
        assert!(!keep_fp_control(true), "the previous goroutine opted in, not this one");
        set_fp_control(rounding(n));
    };
    on_thread_with(UNUSUAL, || {
        run(1, || {
            for n in 0..4 {
                let returns = go(move || {
                    opt_in(n);
                    Counted
                });
                drop(returns.join().expect("no panic"));
                assert_eq!(fp_control(), UNUSUAL, "it has returned");
                let panics = go(move || {
                    opt_in(n);
                    resume_unwind(Box::new(Counted));
                });
                drop(panics.join().expect_err("it panics"));
                assert_eq!(fp_control(), UNUSUAL, "it has panicked");
                // The goroutine drops its result itself, before it ends.
                drop(go(move || {
                    opt_in(n);
                    gosched();
                    Counted
                }));
                // The result of a finished goroutine is dropped with the handle.
                let finished = go(move || {
                    opt_in(n);
                    Counted
                });
                wait_for("its end", || finished.is_finished());
                drop(finished);
                wait_for("the drops", || DROPPED.load(Ordering::Relaxed) == 4 * (n + 1));
                assert_eq!(fp_control(), UNUSUAL, "results were dropped");
            }
        });
    });
}

/// The handle may be dropped while its goroutine ends: after the goroutine has checked for the
/// handle and before the scheduler does. Then the goroutine is resumed to run the destructor of its
/// result, which may change the FP control state, and must leave none to the next goroutine.
#[test]
fn a_destructor_after_the_end_of_a_goroutine_leaves_no_fp_control_state_to_the_next() {
    static RESUMED: AtomicU64 = AtomicU64::new(0);
    static STARTED_IN_ANOTHER_STATE: AtomicU64 = AtomicU64::new(0);
    static STARTED_KEEPING: AtomicU64 = AtomicU64::new(0);
    struct OptsIn;
    impl Drop for OptsIn {
        fn drop(&mut self) {
            // A goroutine keeps its state until it checks for the handle, and the goroutine that
            // drops the handles keeps its state too. Without the setting, this is a resumed one.
            if !keep_fp_control(true) {
                RESUMED.fetch_add(1, Ordering::Relaxed);
                set_fp_control(rounding(3));
            }
        }
    }
    /// Commits enough stack that decommitting it, between the two checks, takes a while.
    #[inline(never)]
    fn use_stack() {
        hint::black_box(&mut [0u8; 16 << 10]);
        gosched();
    }
    /// Yields only after 10 ms, in which another thread steals the goroutine if it has a processor.
    fn wait_while(condition: impl Fn() -> bool) {
        let patience = Patience::new();
        while condition() {
            if patience.elapsed() > Duration::from_millis(10) {
                gosched();
            }
            patience.check("the other goroutine", stats);
        }
    }
    fn spin(iterations: i32) {
        (0..iterations).for_each(|_| hint::spin_loop());
    }
    /// Counts goroutines that start in another state, or with the setting.
    fn check_start() {
        STARTED_IN_ANOTHER_STATE.fetch_add(u64::from(fp_control() != UNUSUAL), Ordering::Relaxed);
        STARTED_KEEPING.fetch_add(u64::from(keep_fp_control(false)), Ordering::Relaxed);
        set_fp_control(UNUSUAL);
    }
    on_thread_with(UNUSUAL, || {
        run(2, || {
            assert!(!keep_fp_control(true));
            let patience = Patience::new();
            let seen_enough = || match RESUMED.load(Ordering::Relaxed) {
                // On a busy machine the two threads rarely run at the same time.
                resumed if patience.elapsed() > Duration::from_secs(10) => resumed > 0,
                resumed => resumed > 20,
            };
            let (mut tries, mut lead) = (0, 0);
            while continues(patience, seen_enough()) {
                tries += 1;
                // 0: not started; -1: may end; otherwise the number of the thread where it waits.
                let state = Arc::new(AtomicI32::new(0));
                let there = Arc::clone(&state);
                let ending = go(move || {
                    check_start();
                    // `go` reuses the G that ended last on this thread.
                    go(check_start).join().expect("no panic");
                    use_stack();
                    assert!(!keep_fp_control(true));
                    set_fp_control(rounding(1));
                    there.store(thread_number(), Ordering::Release);
                    wait_while(|| there.load(Ordering::Acquire) != -1);
                    spin(-lead);
                    OptsIn
                });
                // The other thread steals it, unless that thread is busy.
                wait_while(|| state.load(Ordering::Acquire) == 0);
                let is_elsewhere = state.swap(-1, Ordering::AcqRel) != thread_number();
                if is_elsewhere {
                    spin(lead);
                    // Makes the next goroutine end about when its handle is dropped.
                    lead += if ending.is_finished() { -1 } else { 1 };
                }
                drop(ending);
            }
            let resumed = RESUMED.load(Ordering::Relaxed);
            println!("{resumed} of {tries} were resumed");
            assert!(resumed > 0, "of {tries}");
            let started = [&STARTED_IN_ANOTHER_STATE, &STARTED_KEEPING];
            let started = started.map(|count| count.load(Ordering::Relaxed));
            assert_eq!(
                started,
                [0, 0],
                "in another state, and with the setting: {resumed} of {tries}"
            );
        });
    });
}

/// The state is preserved over unwinding with destructors that yield and sleep.
#[test]
fn a_panic_preserves_the_fp_control_state() {
    struct Yields(usize);
    impl Drop for Yields {
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
            set_fp_control(rounding(n));
            let unwound = catch_unwind(|| {
                let _yields = Yields(n);
                resume_unwind(Box::new(1u8));
            });
            assert!(unwound.is_err_and(|payload| payload.is::<u8>()));
            assert_rounding(n, "after a panic");
            gosched();
            assert_rounding(n, "after gosched after a panic");
        }
        assert!(keep_fp_control(true));
    };
    let check_own_state = |stop: &AtomicBool| {
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(fp_control(), UNUSUAL);
            gosched();
        }
    };
    on_thread_with(UNUSUAL, || {
        run(1, || {
            let stop = AtomicBool::new(false);
            scope(|s| {
                let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
                s.go(|| check_own_state(&stop));
                let ends = [
                    s.go(body).join().is_ok(),
                    // SAFETY: the goroutine uses nothing that belongs to its thread.
                    unsafe { Builder::new().go_migratable(body).expect("memory") }.join().is_ok(),
                ];
                assert_eq!(ends, [true, true]);
            });
        });
    });
}

/// The check whether a goroutine may park comes before its FP control state is saved.
#[test]
fn a_refused_park_preserves_the_fp_control_state() {
    let outcome = child::run("a_refused_park_preserves_the_fp_control_state", || {
        std::panic::set_hook(Box::new(|_| {}));
        run(1, || {
            assert!(!keep_fp_control(true));
            set_fp_control(rounding(2));
            let parks: [fn(); 2] = [gosched, || sleep(Duration::from_millis(1))];
            for park in parks {
                let refused = catch_unwind(AssertUnwindSafe(|| systemstack(park)));
                assert!(refused.is_err());
                assert_rounding(2, "after a refusal");
                assert!(keep_fp_control(true));
            }
        });
    });
    outcome.assert_success();
}

/// Exception flags that one goroutine leaves in the x87 status word do not trap in another
/// goroutine that has unmasked those exceptions.
#[test]
fn x87_exceptions_of_other_goroutines_do_not_trap() {
    let outcome = child::run("x87_exceptions_of_other_goroutines_do_not_trap", || {
        run(1, || {
            let traps = go(|| {
                assert!(!keep_fp_control(true));
                // Division by zero traps.
                set_fp_control((DEFAULT.0 & !(1 << 9), DEFAULT.1 & !(1 << 2)));
                for _ in 0..3 {
                    gosched();
                    // SAFETY: x87 instructions that raise a pending unmasked exception.
                    unsafe { asm!("fwait", "fld1", "fstp st(0)", out("st(0)") _) };
                }
                fp_control()
            });
            let divides = go(|| {
                for _ in 0..3 {
                    // SAFETY: divides by zero, which is masked here and sets the flag.
                    unsafe { asm!("fld1", "fldz", "fdivp", "fstp st(0)", out("st(0)") _) };
                    gosched();
                }
            });
            divides.join().expect("no panic");
            let kept = traps.join().expect("no panic");
            assert_eq!(kept, (DEFAULT.0 & !(1 << 9), DEFAULT.1 & !(1 << 2)));
        });
    });
    outcome.assert_success();
}

/// The state of a goroutine that opted in moves with it; the states of the threads do not.
#[test]
fn a_migratable_goroutine_carries_its_fp_control_state() {
    on_thread_with(UNUSUAL, || {
        let moved = run(2, || {
            static MOVED: AtomicU64 = AtomicU64::new(0);
            let patience = Patience::new();
            let bodies = (0..8).map(|n| {
                let body = move || {
                    let keeps = n < 5;
                    if keeps {
                        assert!(!keep_fp_control(true));
                        set_fp_control(rounding(n));
                    }
                    let mut random = Random(seed() ^ n as u64);
                    while continues(patience, MOVED.load(Ordering::Relaxed) > 20) {
                        let before = thread_number();
                        match random.next_u64() % 3 {
                            0 => gosched(),
                            1 => sleep(Duration::from_micros(random.next_u64() % 500)),
                            _ => {
                                for _ in 0..2_000 {
                                    checkpoint();
                                }
                            }
                        }
                        let moved = keeps && thread_number() != before;
                        MOVED.fetch_add(u64::from(moved), Ordering::Relaxed);
                        if keeps {
                            assert_rounding(n, "on any thread");
                        } else {
                            assert_eq!(fp_control(), UNUSUAL, "it has not opted in");
                        }
                    }
                };
                // SAFETY: the goroutine uses nothing that belongs to its thread.
                unsafe { Builder::new().go_migratable(body).expect("memory") }
            });
            let handles: Vec<_> = bodies.collect();
            handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
            MOVED.load(Ordering::Relaxed)
        });
        assert!(moved > 20, "{moved} times");
    });
}

/// Many goroutines with all rounding modes, and every way to be descheduled, in random order.
#[test]
fn goroutines_with_all_rounding_modes_run_concurrently() {
    const GOROUTINES: usize = 16;
    let steps = std::env::var("FOOTBRIDGE_MODE_ROUNDS").ok().map(|s| s.parse().expect("a number"));
    let steps: u64 = steps.unwrap_or(300);
    for processors in [1, 2] {
        on_thread_with(UNUSUAL, || {
            let spinner = Spinner::new(Level::Sse, Preemptible::Anywhere);
            let polls = Spinner::new(Level::Sse, Preemptible::AtPolls);
            let patience = Patience::new();
            run(processors, || {
                let numbers = Chan::new(2);
                scope(|s| {
                    let adders: Vec<_> = (0..GOROUTINES)
                        .map(|n| {
                            let (numbers, spinner, polls) = (&numbers, &spinner, &polls);
                            s.go(move || {
                                let keeps = n % 2 == 0;
                                if keeps {
                                    assert!(!keep_fp_control(true));
                                }
                                let mut random = Random(seed() ^ (n as u64) << 32);
                                let mut own = 0;
                                let is_enough = || preemptions() > 5 || patience.is_over();
                                let steps = (0..).take_while(|n| *n < steps || !is_enough());
                                for step in steps {
                                    if keeps && random.next_u64().is_multiple_of(3) {
                                        own = random.next_u64() as usize % 4;
                                    }
                                    if keeps {
                                        set_fp_control(rounding(own));
                                    }
                                    match random.next_u64() % 8 {
                                        0 => gosched(),
                                        1 => sleep(Duration::from_micros(random.next_u64() % 300)),
                                        2 => numbers.send(1u64).expect("open"),
                                        3 => drop(numbers.try_recv()),
                                        4 => {
                                            let child = go(fp_control).join().expect("no panic");
                                            assert_eq!(
                                                child, UNUSUAL,
                                                "a new goroutine has the thread's state"
                                            );
                                        }
                                        5 => {
                                            assert_eq!(spinner.spin(1 << 18, random.next_u64()), [])
                                        }
                                        6 => assert_eq!(polls.spin(1 << 18, random.next_u64()), []),
                                        _ => (0..1_000).for_each(|_| checkpoint()),
                                    }
                                    let what = format!("seed {}, {n}, {step}", seed());
                                    if keeps {
                                        assert_rounding(own, &what);
                                    } else {
                                        assert_eq!(fp_control(), UNUSUAL, "{what}");
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
                assert!(preemptions() > 5, "on {processors}: {:?}", stats());
            });
        });
    }
}
