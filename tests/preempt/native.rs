//! What native code sees of the preemption signal: errno, system calls, and the threads of the
//! program that take signals.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use footbridge::runtime::{self, stats};
use support::child;
use support::patience::block_until;
use support::runs::thread_number;

use super::{Loop, Waiter, config, end_loop, run};

/// How often the handler below was called.
static CALLS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn spoil_errno(_signal: libc::c_int) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: a word of this thread.
    unsafe { *libc::__errno_location() = libc::EOWNERDEAD };
}

/// Installs the handler below the crate's, which then calls it for every SIGURG of the program.
fn install_spoiler() {
    // SAFETY: the handler writes two words.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = spoil_errno as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGURG, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Sends SIGURG to a thread of this process. Keeps errno.
fn send_sigurg(thread: libc::pid_t) {
    // SAFETY: plain numbers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGURG) };
    assert_eq!(sent, 0);
}

/// errno is the interrupted code's, whatever the crate's handler and the handler below it do.
#[test]
fn the_signal_handler_keeps_errno() {
    let outcome = child::run("the_signal_handler_keeps_errno", || {
        install_spoiler();
        // A program that handles SIGURG keeps it, unless it says otherwise.
        let config = super::config(1).preempt_signal(libc::SIGURG);
        let run = |f: &dyn Fn()| config.run(f).expect("the run starts");
        run(&|| {
            for value in [0, libc::ENOENT, libc::EINTR] {
                let before = CALLS.load(Ordering::Relaxed);
                // SAFETY: a word of this thread.
                unsafe { *libc::__errno_location() = value };
                send_sigurg(thread_number());
                // SAFETY: the same word.
                let after = unsafe { *libc::__errno_location() };
                assert_eq!(CALLS.load(Ordering::Relaxed), before + 1, "the handler has run");
                assert_eq!(after, value);
            }
        });
    });
    outcome.assert_success();
}

/// A system call in native code is restarted when the signal interrupts it, and does not fail with
/// EINTR.
#[test]
fn a_system_call_is_restarted_after_the_signal() {
    let outcome = child::run("a_system_call_is_restarted_after_the_signal", || {
        install_spoiler();
        // From here on the crate sends signals.
        let _code = Waiter::new(Loop::Preemptible);
        let mut ends = [0; 2];
        // SAFETY: an array of two.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
        // SAFETY: the two are owned by nothing else.
        let [from, to] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        let config = config(1).time_slice(Duration::from_millis(1));
        let (count, error) = config
            .run(|| {
                static READER: AtomicI32 = AtomicI32::new(0);
                let writer = std::thread::spawn(move || {
                    let reader = || READER.load(Ordering::Acquire);
                    // The first number is that of the system call.
                    let is_reading = || {
                        let path = format!("/proc/self/task/{}/syscall", reader());
                        let text = std::fs::read_to_string(path).unwrap_or_default();
                        text.split(' ').next() == Some(&libc::SYS_read.to_string())
                    };
                    block_until("the goroutine reads", || reader() != 0);
                    for _ in 0..20 {
                        block_until("it reads again", is_reading);
                        let before = CALLS.load(Ordering::Relaxed);
                        // The kernel may merge a signal with one of the crate's.
                        block_until("the handler runs", || {
                            send_sigurg(reader());
                            CALLS.load(Ordering::Relaxed) > before
                        });
                    }
                    block_until("it reads again", is_reading);
                    // SAFETY: one byte of a constant.
                    assert_eq!(unsafe { libc::write(to.as_raw_fd(), c"x".as_ptr().cast(), 1) }, 1);
                });
                // Another goroutine waits, so that the crate requests preemption, too.
                let waits = runtime::go(|| ());
                READER.store(thread_number(), Ordering::Release);
                let mut byte = 0u8;
                // SAFETY: the address of a local.
                let count = unsafe { libc::read(from.as_raw_fd(), (&raw mut byte).cast(), 1) };
                let error = std::io::Error::last_os_error();
                writer.join().expect("no panic");
                waits.join().expect("no panic");
                println!("{:?}", stats());
                (count, error)
            })
            .expect("the run starts");
        assert_eq!(count, 1, "{error}");
    });
    outcome.assert_success();
}

/// Signals are for the threads of the program: sysmon blocks all but those of its own faults.
#[test]
fn sysmon_takes_no_signal_of_the_program() {
    /// The mask of blocked signals of a thread, from procfs.
    fn blocked(name: &str) -> Option<u64> {
        let tasks = std::fs::read_dir("/proc/self/task").expect("procfs").flatten();
        let texts = tasks.map(|task| std::fs::read_to_string(task.path().join("status")));
        let status = texts.flatten().find(|text| {
            text.lines().next().and_then(|line| line.strip_prefix("Name:\t")) == Some(name)
        })?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        Some(u64::from_str_radix(mask.trim(), 16).expect("a number"))
    }
    let outcome = child::run("sysmon_takes_no_signal_of_the_program", || {
        run(1, || {
            let bit = |signal: libc::c_int| 1u64 << (signal - 1);
            // Signals that cannot be blocked, and those of the C library.
            let never = [libc::SIGKILL, libc::SIGSTOP, 32, 33].map(bit);
            let faults =
                [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP].map(bit);
            let all = !(never.iter().chain(&faults).sum::<u64>());
            // It blocks them first of all, so that its mask is another one for a moment only.
            let mask = || blocked("footbridge-sysm").unwrap_or(0);
            block_until("sysmon blocks signals", || mask() & all == all);
            assert_eq!(mask() & faults.iter().sum::<u64>(), 0, "its own faults end the process");
        });
    });
    outcome.assert_success();
}

/// Preemption works on while the program's own handler is called for its own signals.
#[test]
fn signals_of_the_program_do_not_disable_preemption() {
    let outcome = child::run("signals_of_the_program_do_not_disable_preemption", || {
        install_spoiler();
        let thread = thread_number();
        let sender = std::thread::spawn(move || {
            for _ in 0..1000 {
                send_sigurg(thread);
                std::thread::yield_now();
            }
        });
        for _ in 0..5 {
            let stats = end_loop(Loop::Preemptible);
            assert!(stats.asynchronous > 0, "{stats:?}");
        }
        sender.join().expect("no panic");
        assert!(CALLS.load(Ordering::Relaxed) > 0);
    });
    outcome.assert_success();
}
