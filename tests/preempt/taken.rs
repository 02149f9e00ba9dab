//! What becomes of preemption, and of the program, when both use one signal: lost and late signals,
//! handlers that are replaced, and signals that the program waits for.

use std::os::fd::FromRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    Config, RunError, Stats, gosched, request_preemption, scope, sleep, stats,
};
use support::child;
use support::runs::AtEnd;

use super::{Loop, Waiter, config, run};

/// A set of one signal.
fn set_of(signal: i32) -> libc::sigset_t {
    // SAFETY: a valid structure.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        set
    }
}

/// Blocks or unblocks a signal on this thread.
fn mask(how: i32, signal: i32) {
    let set = set_of(signal);
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(how, &raw const set, ptr::null_mut()) };
}

/// Whether a signal waits for this thread to take it.
fn is_pending(signal: i32) -> bool {
    // SAFETY: a valid structure.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Takes a pending signal, as sigwait(3) does: no handler runs.
fn eat(signal: i32) {
    let set = set_of(signal);
    let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: valid structures.
    let taken = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const none) };
    assert_eq!(taken, signal);
}

/// Computes until the condition holds. Neither parks nor yields; the child's limit ends it.
fn spin_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::hint::spin_loop();
    }
}

/// Makes a goroutine loop in preemptible code on this thread until `is_over` returns true on
/// another goroutine, which then ends the loop. `first` runs before the loop, on its goroutine.
fn loop_until(waiter: &Waiter, first: impl FnOnce() + Send, is_over: fn() -> bool) {
    let flag = AtomicU32::new(0);
    scope(|s| {
        s.go(|| {
            first();
            waiter.wait(&flag);
        });
        s.go(|| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            while !is_over() {
                gosched();
            }
        });
    });
}

/// Requests the preemption of the goroutines of both processors.
fn request_everywhere() {
    for processor in 0..2 {
        request_preemption(processor);
    }
}

fn is_preempted() -> bool {
    stats().asynchronous > 0
}

#[test]
fn a_signal_that_other_code_eats_is_sent_again() {
    child::run("a_signal_that_other_code_eats_is_sent_again", || {
        let waiter = Waiter::new(Loop::Preemptible);
        for signal in [libc::SIGURG, 40] {
            let config = config(1).preempt_signal(signal);
            let stats = config.run(|| {
                let eats = || {
                    mask(libc::SIG_BLOCK, signal);
                    spin_until(|| is_pending(signal));
                    // It is on its way. However long that takes, no second one joins it.
                    let before = stats();
                    spin_until(|| stats().requested > before.requested + 20);
                    assert_eq!(stats().resent, 0, "signals pile up");
                    eat(signal);
                    assert!(!is_pending(signal), "signals have piled up");
                    mask(libc::SIG_UNBLOCK, signal);
                };
                loop_until(&waiter, eats, is_preempted);
                stats()
            });
            let stats = stats.expect("the run starts");
            assert!(stats.resent > 0 && stats.lost_handlers == 0, "{signal}: {stats:?}");
        }
    })
    .assert_success();
}

/// A signal of a run that is over must not be awaited in the next one, on the same M.
#[test]
fn a_signal_that_an_earlier_run_awaited_is_not_awaited() {
    child::run("a_signal_that_an_earlier_run_awaited_is_not_awaited", || {
        let waiter = Waiter::new(Loop::Preemptible);
        let config = Config::new().processors(1).time_slice(Duration::from_secs(3600));
        for _ in 0..3 {
            let left = config.run(|| {
                mask(libc::SIG_BLOCK, libc::SIGURG);
                assert!(request_preemption(0));
                eat(libc::SIGURG);
                mask(libc::SIG_UNBLOCK, libc::SIGURG);
                stats().signals
            });
            assert_eq!(left, Ok(1));
        }
        run(1, || loop_until(&waiter, || (), is_preempted));
    })
    .assert_success();
}

/// The request of the end of a run is the only one here, and its signal cannot be sent: an earlier
/// one, which was eaten, is still awaited.
#[test]
fn a_run_ends_although_a_signal_was_eaten() {
    child::run("a_run_ends_although_a_signal_was_eaten", || {
        let waiter: &'static Waiter = Box::leak(Box::new(Waiter::new(Loop::Preemptible)));
        static NEVER: AtomicU32 = AtomicU32::new(0);
        static STEP: AtomicUsize = AtomicUsize::new(0);
        let config = Config::new().processors(2).time_slice(Duration::from_secs(3600));
        let resent = config.run(|| {
            footbridge::runtime::go(move || {
                mask(libc::SIG_BLOCK, libc::SIGURG);
                STEP.store(1, Ordering::Release);
                spin_until(|| is_pending(libc::SIGURG));
                eat(libc::SIGURG);
                mask(libc::SIG_UNBLOCK, libc::SIGURG);
                STEP.store(2, Ordering::Release);
                waiter.wait(&NEVER)
            });
            // On the other processor: this one does not yield.
            spin_until(|| STEP.load(Ordering::Acquire) == 1);
            spin_until(|| (0..2).any(request_preemption) && stats().signals > 0);
            spin_until(|| {
                request_everywhere();
                STEP.load(Ordering::Acquire) == 2
            });
            stats().resent
        });
        assert_eq!(resent, Ok(0), "before the end");
    })
    .assert_success();
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_call(_: libc::c_int) {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// The handler that was there before [`call_previous`].
static PREVIOUS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn call_previous(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the handler that was installed before, which has this type.
    let previous: Handler = unsafe { std::mem::transmute(PREVIOUS.load(Ordering::Relaxed)) };
    previous(signal, info, context);
}

/// Installs a handler, `SIG_DFL` or `SIG_IGN`, and returns what was there.
fn replace(signal: i32, handler: usize, flags: i32) -> usize {
    // SAFETY: valid structures; the handlers of this file only count, or call the one before.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut previous: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(signal, &raw const action, &raw mut previous), 0);
        previous.sa_sigaction
    }
}

/// The handler that is installed.
fn handler_of(signal: i32) -> usize {
    // SAFETY: a valid structure, which the call fills in.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        assert_eq!(libc::sigaction(signal, ptr::null(), &raw mut action), 0);
        action.sa_sigaction
    }
}

/// Loops in preemptible code until `is_over`, after the action of a signal was replaced during the
/// run. Returns the counters.
fn replace_in_run(config: &Config, signal: i32, handler: usize) -> Stats {
    let waiter = Waiter::new(Loop::Preemptible);
    let run = config.run(|| {
        let replaces = || {
            PREVIOUS.store(replace(signal, handler, libc::SA_SIGINFO), Ordering::Relaxed);
        };
        loop_until(&waiter, replaces, is_preempted);
        stats()
    });
    run.expect("the run starts")
}

#[test]
fn a_handler_that_does_not_call_ours_keeps_the_signal_and_another_one_preempts() {
    let test = "a_handler_that_does_not_call_ours_keeps_the_signal_and_another_one_preempts";
    let handler = count_call as *const () as usize;
    // Of a real-time signal that has lost its handler one would end the process.
    let cases = [
        (libc::SIGURG, handler),
        (libc::SIGURG, libc::SIG_DFL),
        (libc::SIGURG, libc::SIG_IGN),
        (40, handler),
        (40, libc::SIG_DFL),
    ];
    for (case, (signal, handler)) in cases.into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            let config = config(1).preempt_signal(Some(signal).filter(|&n| n != libc::SIGURG));
            let first = replace_in_run(&config, signal, handler);
            assert_eq!(first.lost_handlers, 1, "{first:?}");
            assert_eq!(handler_of(signal), handler, "it is the program's");
            let preemption = footbridge::environment().preemption;
            let lost = format!("replaced the crate's handler of signals {signal}:");
            assert!(preemption.contains(&lost), "{preemption}");
            assert!(!preemption.starts_with("SIGURG"), "{preemption}");
            // A program that installs a handler for nothing loses nothing.
            let before = CALLS.load(Ordering::Relaxed);
            if handler == count_call as *const () as usize {
                // SAFETY: plain numbers.
                unsafe { libc::raise(signal) };
                assert_eq!(CALLS.load(Ordering::Relaxed), before + 1);
            }
            let used: i32 = (preemption.strip_prefix("signal "))
                .and_then(|text| text.split_once(' ')?.0.parse().ok())
                .expect("the number of the signal that preempts");
            assert!((libc::SIGRTMIN()..libc::SIGRTMAX()).contains(&used), "{preemption}");
            // The next run knows it from the start.
            let waiter = Waiter::new(Loop::Preemptible);
            let next = super::config(1).run(|| {
                loop_until(&waiter, || (), is_preempted);
                stats()
            });
            let next = next.expect("the run starts");
            assert_eq!(next.lost_handlers, 0, "{next:?}");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn a_handler_that_calls_ours_is_not_taken_for_one_that_does_not() {
    child::run("a_handler_that_calls_ours_is_not_taken_for_one_that_does_not", || {
        let handler = call_previous as *const () as usize;
        let stats = replace_in_run(&config(1), libc::SIGURG, handler);
        assert!(stats.lost_handlers == 0 && stats.asynchronous > 0, "{stats:?}");
        assert!(CALLS.load(Ordering::Relaxed) > 0, "the signal is still SIGURG");
        assert_eq!(handler_of(libc::SIGURG), handler);
    })
    .assert_success();
}

/// How a program takes a signal that all of its threads block.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Takes {
    BySigwait,
    BySignalfd,
}

/// Starts a thread that counts the signals that it takes in [`CALLS`].
fn take_signals(how: Takes, signal: i32) {
    mask(libc::SIG_BLOCK, signal);
    std::thread::spawn(move || {
        let set = set_of(signal);
        // SAFETY: a valid set; the descriptor is new.
        let file = (how == Takes::BySignalfd).then(|| unsafe {
            std::fs::File::from_raw_fd(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC))
        });
        loop {
            match file.as_ref() {
                None => {
                    let mut taken = 0;
                    // SAFETY: valid structures.
                    unsafe { libc::sigwait(&raw const set, &raw mut taken) };
                    assert_eq!(taken, signal);
                }
                Some(mut file) => {
                    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
                    std::io::Read::read_exact(&mut file, &mut info).expect("a signal");
                }
            }
            CALLS.fetch_add(1, Ordering::SeqCst);
        }
    });
}

#[test]
fn a_program_that_waits_for_sigurg_gets_every_one() {
    let test = "a_program_that_waits_for_sigurg_gets_every_one";
    for (case, how) in [Takes::BySigwait, Takes::BySignalfd].into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            let waiter = Waiter::new(Loop::Preemptible);
            take_signals(how, libc::SIGURG);
            // One that comes while another one is pending is merged with it, without the crate too.
            let send_all = || {
                for _ in 0..50 {
                    let before = CALLS.load(Ordering::SeqCst);
                    // SAFETY: plain numbers.
                    unsafe { libc::kill(libc::getpid(), libc::SIGURG) };
                    spin_until(|| CALLS.load(Ordering::SeqCst) == before + 1);
                }
            };
            send_all();
            for _ in 0..3 {
                run(3, || {
                    let flag = AtomicU32::new(0);
                    scope(|s| {
                        for _ in 0..4 {
                            s.go(|| waiter.wait(&flag));
                        }
                        let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
                        send_all();
                        while stats().asynchronous < 20 {
                            gosched();
                        }
                        send_all();
                    });
                    assert_eq!(stats().lost_handlers, 0);
                });
                send_all();
            }
            let preemption = footbridge::environment().preemption;
            let text = ", since the program uses SIGURG; ";
            assert!(preemption.starts_with("signal ") && preemption.contains(text), "{preemption}");
            // SAFETY: a null set is not read.
            let blocked = unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
                (1..=64).filter(|&n| libc::sigismember(&raw const set, n) == 1).collect::<Vec<_>>()
            };
            assert_eq!(blocked, [libc::SIGURG], "the mask of the thread that called `run`");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

/// What a handler finds: its signal mask, and whether it is called at all.
static FOUND: AtomicUsize = AtomicUsize::new(0);

extern "C" fn note_mask(_: libc::c_int) {
    // SAFETY: a null set is not read; the other is valid.
    let mask: usize = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
        (1..64).filter(|&n| libc::sigismember(&raw const set, n) == 1).map(|n| 1 << n).sum()
    };
    FOUND.store(mask, Ordering::Relaxed);
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: errno is a word of this thread.
    unsafe { *libc::__errno_location() = 77 };
}

#[test]
fn the_mask_and_the_flags_of_a_previous_handler_are_kept() {
    let test = "the_mask_and_the_flags_of_a_previous_handler_are_kept";
    let flags = [0, libc::SA_NODEFER, libc::SA_RESETHAND, libc::SA_NODEFER | libc::SA_RESETHAND];
    let signals = [libc::SIGUSR2, libc::SIGSEGV];
    let cases = signals.iter().flat_map(|&signal| flags.iter().map(move |&flags| (signal, flags)));
    for (case, (signal, flags)) in cases.enumerate() {
        let outcome = child::run_case(test, case, || {
            // Blocked by the thread, and by the action.
            mask(libc::SIG_BLOCK, libc::SIGWINCH);
            let install = || {
                // SAFETY: a valid structure; the handler only counts.
                unsafe {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = note_mask as *const () as usize;
                    action.sa_flags = flags;
                    libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR1);
                    libc::sigaction(signal, &raw const action, ptr::null_mut());
                }
            };
            let send = || {
                // SAFETY: plain numbers.
                unsafe { libc::raise(signal) };
                FOUND.swap(0, Ordering::Relaxed)
            };
            install();
            let without = send();
            assert_eq!(CALLS.load(Ordering::Relaxed), 1);
            assert_eq!(without >> libc::SIGUSR1 & 1, 1);
            assert_eq!(without >> signal & 1, usize::from(flags & libc::SA_NODEFER == 0));
            install();
            let waiter = Waiter::new(Loop::Preemptible);
            let config = config(1).preempt_signal(libc::SIGUSR2);
            let with = config.run(|| {
                loop_until(&waiter, || (), is_preempted);
                // SAFETY: errno is a word of this thread.
                unsafe {
                    *libc::__errno_location() = 5;
                    let with = send();
                    assert_eq!(*libc::__errno_location(), 5, "errno of the interrupted code");
                    with
                }
            });
            assert_eq!(with, Ok(without), "{without:#x}");
            assert_eq!(CALLS.load(Ordering::Relaxed), 2, "signals of the crate do not go there");
            if flags & libc::SA_RESETHAND == 0 {
                assert_eq!(send(), without);
            } else if signal == libc::SIGUSR2 {
                assert_eq!(send(), 0, "it was to run once");
            }
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

/// A previous action of SIGSEGV that ignores it: one that is sent is ignored, and overflows are
/// reported afterwards.
#[test]
fn a_fault_signal_that_is_sent_and_was_ignored_leaves_the_handler_installed() {
    child::run("a_fault_signal_that_is_sent_and_was_ignored_leaves_the_handler_installed", || {
        replace(libc::SIGSEGV, libc::SIG_IGN, 0);
        run(1, || {
            let ours = handler_of(libc::SIGSEGV);
            assert!(![libc::SIG_DFL, libc::SIG_IGN].contains(&ours));
            // SAFETY: plain numbers.
            unsafe { libc::raise(libc::SIGSEGV) };
            assert_eq!(handler_of(libc::SIGSEGV), ours);
        });
    })
    .assert_success();
}

#[test]
fn signals_that_cannot_preempt_are_refused() {
    // None; of the C library; without a handler; faults of the thread itself; what ends or stops a
    // process, or tells it something.
    let none = [i32::MIN, -1, 0, 32, 33, 65, libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV];
    let meant = [libc::SIGTERM, libc::SIGINT, libc::SIGPIPE, libc::SIGTSTP, libc::SIGCHLD];
    for requested in none.into_iter().chain(meant) {
        let error = config(1).preempt_signal(requested).run(|| ()).expect_err("refused");
        assert_eq!(error, RunError::PreemptSignal { requested });
        let text = format!(
            "Config::preempt_signal is {requested}, whose default action programs rely on, or which \
             is no signal of theirs; it may be SIGURG, SIGUSR1, SIGUSR2 or {} to {}, and None chooses",
            libc::SIGRTMIN(),
            libc::SIGRTMAX()
        );
        assert_eq!(error.to_string(), text);
    }
    for signal in [libc::SIGRTMIN(), libc::SIGRTMAX(), libc::SIGUSR1, libc::SIGURG] {
        assert_eq!(config(1).preempt_signal(signal).run(|| 42), Ok(42));
    }
}

#[test]
fn the_environment_says_which_signal_preempts() {
    child::run("the_environment_says_which_signal_preempts", || {
        let preemption = || footbridge::environment().preemption;
        assert!(preemption().starts_with("SIGURG; "), "{}", preemption());
        assert_eq!(config(1).preempt_signal(40).run(|| 42), Ok(42));
        assert!(preemption().starts_with("signal 40; "), "{}", preemption());
    })
    .assert_success();
}

/// A goroutine reads from a pipe while another one, on another processor, sends its thread signals.
#[test]
fn a_system_call_that_a_signal_interrupts_is_restarted() {
    let waiter = Waiter::new(Loop::Preemptible);
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let reads = AtomicBool::new(false);
    // Sysmon sends none to a thread that waits.
    let config = Config::new().processors(2).time_slice(Duration::from_secs(3600));
    let run = config.run(|| {
        scope(|s| {
            let read = s.go(|| {
                reads.store(true, Ordering::Release);
                let mut byte = 0_u8;
                // SAFETY: room for one byte.
                let read = unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) };
                (read, byte)
            });
            // Another processor takes that one, since this one does not yield.
            let write = AtEnd(|| {
                // SAFETY: one byte.
                unsafe { libc::write(ends[1], [9_u8].as_ptr().cast(), 1) };
            });
            spin_until(|| reads.load(Ordering::Acquire));
            spin_until(|| {
                request_everywhere();
                stats().refused.native_code >= 200
            });
            drop(write);
            assert_eq!(read.join().expect("no panic"), (1, 9));
        });
    });
    run.expect("the run starts");
    drop(waiter);
}

/// A goroutine computes in native code. Signals could only end its system calls.
#[test]
fn native_code_gets_no_signal_while_no_goroutine_waits() {
    let _waiter = Waiter::new(Loop::Preemptible);
    let stats = run(1, || {
        spin_until(|| stats().requested > 50);
        stats()
    });
    assert_eq!(stats.signals, 0, "{stats:?}");
}

#[test]
fn native_code_gets_fewer_and_fewer_signals_while_a_goroutine_waits() {
    let _waiter = Waiter::new(Loop::Preemptible);
    let run = run(1, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let waits = s.go(|| flag.load(Ordering::Relaxed));
            spin_until(|| stats().requested > 200);
            flag.store(1, Ordering::Relaxed);
            assert_eq!(waits.join().expect("no panic"), 1, "it waited all the time");
        });
        stats()
    });
    // In the end one in eight time slices.
    assert!((1..=run.requested / 4).contains(&run.signals), "{run:?}");
    let found = run.refused.native_code + run.refused.stale;
    assert!(found >= run.signals - 1, "{run:?}");
}

/// A poll(2) of 50 ms takes many time slices.
#[test]
fn system_calls_that_are_not_restarted_come_to_their_end() {
    let _waiter = Waiter::new(Loop::Preemptible);
    let (timeouts, run) = run(1, || {
        let flag = AtomicU32::new(0);
        let timeouts = scope(|s| {
            let waits = s.go(|| flag.load(Ordering::Relaxed));
            // SAFETY: no descriptors.
            let poll = || unsafe { libc::poll(ptr::null_mut(), 0, 50) };
            let timeouts = (0..10).filter(|_| poll() == 0).count();
            flag.store(1, Ordering::Relaxed);
            assert_eq!(waits.join().expect("no panic"), 1, "it waited all the time");
            timeouts
        });
        (timeouts, stats())
    });
    assert!(run.requested >= 10, "{run:?}");
    assert!(timeouts >= 8, "{timeouts} of 10 polls, {run:?}");
}

/// A goroutine begins to wait after the end of a time slice, for which no signal was sent. It must
/// not wait for the end of the next one.
#[test]
fn a_goroutine_that_begins_to_wait_later_gets_its_turn() {
    let waiter = Waiter::new(Loop::Preemptible);
    let slice = Duration::from_millis(1500);
    let late = Config::new().processors(1).time_slice(slice).run(|| {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            s.go(|| waiter.wait(&flag));
            let start = Instant::now();
            sleep(slice + slice / 15);
            assert!(stats().asynchronous > 0, "{:?}", stats());
            start.elapsed()
        })
    });
    let late = late.expect("the run starts");
    assert!(late < slice * 9 / 5, "{late:?}");
}
