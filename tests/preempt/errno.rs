//! errno over a preemption. Another goroutine of the thread changes it meanwhile.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{Annotations, FrameClass, Jit};
use footbridge::runtime::{
    Builder, Entry, checkpoint, go, gosched, scope, sleep, stats, without_preemption,
};
use support::child;
use support::patience::spin_until;
use support::runs::{AtEnd, thread_number};

use super::{SYSTEM_V, config, preemptions, run};

const OWN: i32 = 5;
const FOREIGN: i32 = 99;

#[inline(never)]
extern "C" fn set_errno(value: i32) {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() = value };
}

#[inline(never)]
extern "C" fn errno() -> i32 {
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() }
}

/// Where the code under test yields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Yields {
    BySignal,
    AtPolls,
    AtReturns,
}

impl Yields {
    const ALL: [Self; 3] = [Self::BySignal, Self::AtPolls, Self::AtReturns];
}

type Errno = Entry<fn(*const AtomicU32) -> i32>;

/// Code that sets errno to `OWN`, loops until a flag is set, and returns errno.
fn errno_over_loop(yields: Yields) -> Errno {
    let jit = Jit::new().expect("code memory");
    let (set, get) = (set_errno as *const () as i64, errno as *const () as i64);
    let returns = jit.goroutine_fn(SYSTEM_V, |_: u64| -> u64 { 0 }).expect("a stub").address();
    let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
    // SAFETY: a standard frame with a slot for the argument. It may be preempted anywhere.
    let code = unsafe {
        jit.install("errno", FrameClass::Standard, |ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; sub rsp, 16
                ; mov [rbp - 8], rdi
                ; mov edi, OWN
                ; mov rax, QWORD set
                ; call rax
                ; again:
            );
            match yields {
                Yields::BySignal => {}
                Yields::AtPolls => polls.poll(ops),
                Yields::AtReturns => dynasm!(ops; .arch x64; call extern returns),
            }
            dynasm!(ops
                ; .arch x64
                ; mov rdi, [rbp - 8]
                ; cmp DWORD [rdi], 0
                ; je <again
                ; mov rax, QWORD get
                ; call rax
                ; leave
                ; ret
            );
            polls.finish(ops);
            match yields {
                Yields::BySignal => Annotations::preemptible(),
                _ => Annotations::default(),
            }
        })
    };
    // SAFETY: of that convention and type.
    unsafe { code.expect("it installs").enter(SYSTEM_V) }.expect("an entry")
}

/// Runs `body` on a goroutine beside one of the same thread that changes errno, and sets the flag
/// when there were `wanted` preemptions.
fn beside_a_change(wanted: u64, body: impl FnOnce(&AtomicU32) + Send) {
    let flag = AtomicU32::new(0);
    run(1, || {
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            let judged = s.go(|| body(&flag));
            let start = Instant::now();
            while preemptions() < wanted && !judged.is_finished() {
                assert!(start.elapsed() < Duration::from_secs(20), "{:?}", stats());
                set_errno(FOREIGN);
                gosched();
            }
            flag.store(1, Ordering::Relaxed);
            set_errno(FOREIGN);
            judged.join().expect("no panic");
        });
    });
}

#[test]
fn code_that_is_preempted_keeps_errno() {
    for yields in Yields::ALL {
        let entry = errno_over_loop(yields);
        beside_a_change(5, |flag| {
            // SAFETY: on a goroutine; the flag outlives the call.
            let errno = unsafe { entry.call(flag) };
            assert_eq!(errno, OWN, "{yields:?}: {:?}", stats());
        });
    }
}

#[test]
fn a_checkpoint_keeps_errno() {
    beside_a_change(5, |flag| {
        set_errno(OWN);
        while flag.load(Ordering::Relaxed) == 0 {
            checkpoint();
        }
        assert_eq!(errno(), OWN, "{:?}", stats());
    });
}

/// A migratable goroutine has its errno on the thread where it resumes.
#[test]
fn errno_follows_a_goroutine_to_another_thread() {
    static STOP: AtomicBool = AtomicBool::new(false);
    static FLAG: AtomicU32 = AtomicU32::new(0);
    /// The thread before, the thread afterwards, and errno afterwards.
    static SEEN: Mutex<Vec<(i32, i32, i32)>> = Mutex::new(Vec::new());
    // In a child process, which is killed if it hangs.
    let outcome = child::run("errno_follows_a_goroutine_to_another_thread", || {
        for yields in Yields::ALL {
            let entry: &'static Errno = Box::leak(Box::new(errno_over_loop(yields)));
            SEEN.lock().expect("no panic").clear();
            config(2)
                .run(|| {
                    let body = || {
                        while !STOP.load(Ordering::Relaxed) {
                            // SAFETY: on a goroutine; the flag is a static.
                            let call = || unsafe { entry.call(&raw const FLAG) };
                            let before = thread_number();
                            let errno = call();
                            let after = thread_number();
                            let add = || {
                                SEEN.lock().expect("no panic").push((before, after, errno));
                            };
                            without_preemption(add);
                            FLAG.store(0, Ordering::Relaxed);
                        }
                    };
                    // SAFETY: its values are `Send`, and no lock is held where it yields.
                    let moves = unsafe { Builder::new().go_migratable(body).expect("memory") };
                    // A goroutine of the other thread, which wants it from time to time: nothing is
                    // preempted where none waits.
                    let main = thread_number();
                    let began: &AtomicBool = Box::leak(Box::default());
                    let waits = go(move || {
                        let is_elsewhere = thread_number() != main;
                        began.store(true, Ordering::Relaxed);
                        while !STOP.load(Ordering::Relaxed) {
                            sleep(Duration::from_micros(200));
                            let end = Instant::now() + Duration::from_micros(300);
                            while Instant::now() < end {
                                set_errno(FOREIGN);
                                gosched();
                            }
                        }
                        is_elsewhere
                    });
                    spin_until("the other thread begins a goroutine", || {
                        began.load(Ordering::Relaxed)
                    });
                    let start = Instant::now();
                    let moved = || {
                        let seen = SEEN.lock().expect("no panic");
                        seen.iter().filter(|(before, after, _)| before != after).count()
                    };
                    // Both threads have another errno and room for the goroutine, again and again.
                    while moved() < 3 {
                        assert!(start.elapsed() < Duration::from_secs(120), "{:?}", stats());
                        set_errno(FOREIGN);
                        sleep(Duration::from_micros(300));
                        let preempted = preemptions();
                        let end = Instant::now() + Duration::from_millis(2);
                        while preemptions() < preempted + 2 && Instant::now() < end {
                            set_errno(FOREIGN);
                            gosched();
                        }
                        FLAG.store(1, Ordering::Relaxed);
                    }
                    STOP.store(true, Ordering::Relaxed);
                    FLAG.store(1, Ordering::Relaxed);
                    while !moves.is_finished() {
                        FLAG.store(1, Ordering::Relaxed);
                        gosched();
                    }
                    assert!(waits.join().expect("no panic"), "main kept its own thread");
                    moves.join().expect("no panic");
                })
                .expect("the run starts");
            STOP.store(false, Ordering::Relaxed);
            let seen = SEEN.lock().expect("no panic");
            assert!(seen.iter().all(|&(_, _, errno)| errno == OWN), "{yields:?}: {seen:?}");
        }
    });
    outcome.assert_success();
}
