#![allow(unsafe_code, reason = "system calls about threads")]
//! Threads of this process, as the kernel and pthreads see them.

use std::ptr;

use crate::runtime::os::signals::PREEMPT;

/// The number of a thread.
pub(crate) type Tid = libc::pid_t;

/// The number of the calling thread.
pub(crate) fn current_tid() -> Tid {
    // SAFETY: no arguments.
    unsafe { libc::gettid() }
}

/// Sends a thread of this process the preemption signal. Returns whether that was possible.
pub(crate) fn send_preempt_signal(tid: Tid) -> bool {
    // SAFETY: plain numbers.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, PREEMPT) == 0 }
}

/// How many threads the process has; `usize::MAX` where /proc does not tell.
pub(crate) fn count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count)
}

/// Lowest address and end of the calling thread's stack; zeroes if pthreads does not tell.
pub(crate) fn stack_bounds() -> (usize, usize) {
    // SAFETY: our own structures, destroyed after use.
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
