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

/// Whether the host lets threads of this process signal each other: tgkill(2) without a signal.
pub(crate) fn can_signal() -> std::io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), current_tid(), 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
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
