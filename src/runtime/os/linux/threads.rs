#![allow(unsafe_code, reason = "system calls about threads")]
//! Threads of this process, as the kernel and pthreads see them: by number, not by M.

use std::ffi::CString;
use std::ptr;
use std::time::Duration;

use crate::runtime::os::signals::Number;

/// The number that the kernel gives a thread.
pub(crate) type Tid = libc::pid_t;

/// The number of the calling thread.
pub(crate) fn current_tid() -> Tid {
    // SAFETY: the call has no arguments.
    unsafe { libc::gettid() }
}

/// How long a thread of this process has had a processor. `None`: the kernel does not tell.
pub(crate) fn cpu_time(tid: Tid) -> Option<Duration> {
    // CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED: include/linux/posix-timers.h of Linux, and
    // pthread_getcpuclockid(3), which needs what pthreads calls the thread.
    let clock = (!tid << 3) | 4 | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the address of a local.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) == 0 };
    told.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// What the kernel says about a thread of this process: proc_pid_status(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadStatus {
    /// It waits in a system call, or for a page: it executes no code.
    pub(crate) waits: bool,
    /// The signals that were sent to it and that it has not taken yet: a bit each.
    pending: u64,
    /// The signals that it blocks.
    blocked: u64,
}

impl ThreadStatus {
    /// The status of a thread. `None`: /proc does not tell.
    pub(crate) fn of(tid: Tid) -> Option<Self> {
        let path = CString::new(format!("/proc/self/task/{tid}/status")).ok()?;
        // More than the longest status of Linux 6.12, whose lists of processors are last.
        let mut text = [0_u8; 4096];
        // SAFETY: a NUL-terminated path, and a buffer of that length; the file is closed again.
        let len = unsafe {
            let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if file < 0 {
                return None;
            }
            let len = libc::read(file, text.as_mut_ptr().cast(), text.len());
            libc::close(file);
            usize::try_from(len).ok()?
        };
        Self::parse(&text[..len])
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.strip_prefix(':')).map(str::trim_start)
        };
        let set = |name| field(name).and_then(|set| u64::from_str_radix(set, 16).ok());
        Some(Self {
            waits: field("State")?.starts_with(['S', 'D']),
            pending: set("SigPnd")?,
            blocked: set("SigBlk")?,
        })
    }

    /// Whether a signal was sent to the thread that it has not taken yet.
    pub(crate) fn has_pending(&self, signal: Number) -> bool {
        self.pending >> (signal - 1) & 1 != 0
    }

    /// Whether the thread blocks a signal.
    pub(crate) fn blocks(&self, signal: Number) -> bool {
        self.blocked >> (signal - 1) & 1 != 0
    }
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
    fn a_status_says_whether_a_thread_waits_and_which_signals_it_blocks() {
        let own = ThreadStatus::of(current_tid()).expect("/proc is there");
        assert!(!own.waits && !own.has_pending(libc::SIGURG), "{own:?}");
        let text = b"Name:\tx\nState:\tS (sleeping)\nTgid:\t7\nSigPnd:\t0000000000400000\n\
                     ShdPnd:\tffffffffffffffff\nSigBlk:\t8000000000000001\nSigIgn:\t0\n";
        let other = ThreadStatus::parse(text).expect("all of it is there");
        assert!(other.waits);
        let numbers = |is: &dyn Fn(Number) -> bool| (1..=64).filter(|&n| is(n)).collect::<Vec<_>>();
        assert_eq!(numbers(&|n| other.has_pending(n)), [libc::SIGURG]);
        assert_eq!(numbers(&|n| other.blocks(n)), [1, 64]);
        assert_eq!(ThreadStatus::parse(b"State:\tS (sleeping)\n"), None);
        assert_eq!(ThreadStatus::of(0), None, "no thread has this number");
    }

    #[test]
    fn a_thread_that_computes_takes_processor_time_and_one_that_waits_takes_none() {
        let (own, start) = (current_tid(), cpu_time(current_tid()).expect("of this thread"));
        while cpu_time(own).expect("of this thread") < start + Duration::from_millis(5) {}
        let wait = || std::thread::sleep(Duration::from_millis(20));
        let before = cpu_time(own).expect("of this thread");
        wait();
        let waited = cpu_time(own).expect("of this thread") - before;
        assert!(waited < Duration::from_millis(10), "{waited:?}");
        // The largest pid_max of Linux: proc_sys_kernel(5).
        assert_eq!(cpu_time(1 << 22), None, "no thread has this number");
    }

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
