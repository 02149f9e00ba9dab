//! The preemption signal, and the signal handlers of the program.

use std::sync::atomic::{AtomicUsize, Ordering};

use support::child;

use super::{Loop, SYSTEM_V, end_loop, run};

/// Signals interrupt system calls of the program: none is sent before there is preemptible code.
#[test]
fn no_signal_is_sent_before_there_is_preemptible_code() {
    // In a child process, since other tests install preemptible code.
    let outcome = child::run("no_signal_is_sent_before_there_is_preemptible_code", || {
        let before = end_loop(Loop::Polls(SYSTEM_V));
        assert!(before.cooperative > 0 && before.requested > 0, "{before:?}");
        assert_eq!((before.signals, before.refused.native_code), (0, 0), "{before:?}");
        let after = end_loop(Loop::Preemptible);
        assert!(after.asynchronous > 0, "{after:?}");
    });
    outcome.assert_success();
}

static PREVIOUS_CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_previous(_signal: libc::c_int) {
    PREVIOUS_CALLS.fetch_add(1, Ordering::Relaxed);
}

fn install(signal: libc::c_int, handler: extern "C" fn(libc::c_int), flags: libc::c_int) {
    // SAFETY: the handler only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

#[test]
fn foreign_signals_go_to_the_previous_handler() {
    child::run("foreign_signals_go_to_the_previous_handler", || {
        install(libc::SIGURG, count_previous, libc::SA_ONSTACK);
        let stats = end_loop(Loop::Preemptible);
        assert!(stats.asynchronous > 0, "{stats:?}");
        assert_eq!(
            PREVIOUS_CALLS.load(Ordering::Relaxed),
            0,
            "signals of the runtime do not go to it"
        );
        let send = || {
            // SAFETY: plain numbers.
            assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGURG) }, 0);
        };
        // Outside of a run, and inside of a run.
        send();
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 1);
        run(1, send);
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 2);
        // Sent to the thread by other code of this process.
        // SAFETY: plain numbers.
        run(1, || unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGURG);
        });
        assert_eq!(PREVIOUS_CALLS.load(Ordering::Relaxed), 3);
    })
    .assert_success();
}

#[test]
fn a_blocked_sigurg_is_blocked_again_after_the_run() {
    child::run("a_blocked_sigurg_is_blocked_again_after_the_run", || {
        let is_blocked = || {
            // SAFETY: a valid structure.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
                libc::sigismember(&raw const set, libc::SIGURG) == 1
            }
        };
        // SAFETY: a valid structure.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, libc::SIGURG);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        }
        assert!(is_blocked());
        let stats = end_loop(Loop::Preemptible);
        assert!(stats.asynchronous > 0, "{stats:?}");
        assert!(is_blocked(), "after the run");
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
             with that flag, or raise Config::stack_bytes"
        );
    })
    .assert_success();
}
