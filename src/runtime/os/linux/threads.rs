#![allow(unsafe_code, reason = "system calls about threads")]
//! Threads of this process, as the kernel and pthreads see them: by number, not by M.

use std::ptr;

use crate::runtime::os::signals::PREEMPT;

/// The number that the kernel gives a thread.
pub(crate) type Tid = libc::pid_t;

/// The number of the calling thread.
pub(crate) fn current_tid() -> Tid {
    // SAFETY: the call has no arguments.
    unsafe { libc::gettid() }
}

/// Sends the preemption signal to a thread of this process. Returns whether that was possible: a
/// thread that has ended gets none.
pub(crate) fn send_preempt_signal(tid: Tid) -> bool {
    // SAFETY: the call takes numbers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, PREEMPT) == 0 }
}

/// A thread that is blocked in a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Blocked {
    number: i64,
    arguments: [usize; 6],
    /// Where the thread is in user space.
    pub(crate) sp: usize,
    pub(crate) pc: usize,
}

impl Blocked {
    /// Whether only a thread of this process can end the wait, or a signal: it is one of futex(2)
    /// on a private word, without a limit of time. So locks, condition variables and `park` of the
    /// standard library, pthreads and others wait.
    pub(crate) fn is_in_lock(&self) -> bool {
        let op = self.arguments[1] as libc::c_int & !libc::FUTEX_CLOCK_REALTIME;
        let waits = [libc::FUTEX_WAIT, libc::FUTEX_WAIT_BITSET];
        self.number == libc::SYS_futex
            && waits.map(|wait| wait | libc::FUTEX_PRIVATE_FLAG).contains(&op)
            && self.arguments[3] == 0
    }
}

/// Where a thread of this process is blocked. `None`: it runs, has ended, or /proc does not tell.
pub(crate) fn blocked(tid: Tid) -> Option<Blocked> {
    let line = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).ok()?;
    blocked_of_line(&line)
}

/// Reads `202 0x7f01 0x80 0x2 0x0 0x0 0x0 0x7ffc10 0x7f02`: proc_pid_syscall(5).
fn blocked_of_line(line: &str) -> Option<Blocked> {
    let mut words = line.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let mut next = || usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = next()?;
    }
    Some(Blocked { number, arguments, sp: next()?, pc: next()? })
}

/// How many threads the process has. `usize::MAX`: /proc does not tell.
pub(crate) fn count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count)
}

/// Lowest address and end of the calling thread's stack. Zeroes: pthreads does not tell.
pub(crate) fn stack_bounds() -> (usize, usize) {
    // SAFETY: the addresses are those of locals, and the attributes are destroyed after use.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) != 0 {
            return (0, 0);
        }
        let (mut lowest, mut size) = (ptr::null_mut(), 0);
        libc::pthread_attr_getstack(&raw const attributes, &raw mut lowest, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attributes);
        (lowest as usize, lowest as usize + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_threads_are_read() {
        let futex = libc::SYS_futex;
        let in_lock = |op, timeout| {
            let line = format!("{futex} 0x7f01 {op} 0x2 {timeout} 0x0 0x0 0x7ffc10 0x7f02\n");
            blocked_of_line(&line).expect("a line").is_in_lock()
        };
        assert!(in_lock("0x80", "0x0") && in_lock("0x89", "0x0") && in_lock("0x189", "0x0"));
        assert!(!in_lock("0x0", "0x0"), "another process may wake it");
        assert!(!in_lock("0x89", "0x7ffc"), "it ends by itself");
        assert!(!in_lock("0x81", "0x0"), "it is no wait");
        let read = blocked_of_line("0 0x5 0x80 0x2 0x0 0x0 0x0 0x7ffc10 0x7f02").expect("a line");
        assert_eq!((read.sp, read.pc, read.is_in_lock()), (0x7ffc10, 0x7f02, false));
        for line in ["running", "-1 0x7ffc10 0x7f02", "", "202 0x7f01"] {
            assert_eq!(blocked_of_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_thread_that_waits_for_a_lock_is_blocked_in_one() {
        let lock = std::sync::Mutex::new(());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|s| {
            let held = lock.lock().expect("no panic");
            s.spawn(|| {
                sender.send(current_tid()).expect("the receiver waits");
                drop(lock.lock());
            });
            let tid = receiver.recv().expect("a number");
            while !blocked(tid).is_some_and(|blocked| blocked.is_in_lock()) {
                std::thread::yield_now();
            }
            drop(held);
        });
        // One that computes is not blocked.
        let stop = std::sync::atomic::AtomicBool::new(false);
        let is_set = || stop.load(std::sync::atomic::Ordering::Relaxed);
        std::thread::scope(|s| {
            s.spawn(|| {
                sender.send(current_tid()).expect("the receiver waits");
                while !is_set() {
                    std::hint::spin_loop();
                }
            });
            let tid = receiver.recv().expect("a number");
            while blocked(tid).is_some() {
                std::thread::yield_now();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
