#![allow(unsafe_code, reason = "futex(2) and membarrier(2)")]
//! Sleeping on a word, and a fence whose whole cost is on one side.
//!
//! The fences are a pair. Thread A stores x, crosses the light fence and loads y; thread B stores
//! y, crosses the heavy fence and loads x. At least one of them sees the other's store. With
//! membarrier(2) the light fence is no instruction at all, so it stands where code is hot: in each
//! switch, and where work is added. The heavy fence costs a system call that interrupts the other
//! threads of the process: it stands where a thread is about to sleep or to suspend a goroutine.
//!
//! This file knows nothing of what the words mean. A wait may end for no reason, so every caller
//! checks its condition again.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering, compiler_fence, fence};
use std::time::Duration;
use std::{io, ptr};

/// Sleeps while `word` is `expected`, at most for `timeout`. It may return early for no reason.
pub(crate) fn wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timespec = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(t.subsec_nanos() as i32),
    });
    let timespec = timespec.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word and the timespec live over the call. Every outcome is a reason to return,
    // since the caller checks its condition again.
    unsafe {
        let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        libc::syscall(libc::SYS_futex, word.as_ptr(), op, expected, timespec);
    }
}

/// Wakes one sleeper on `word`.
pub(crate) fn wake(word: &AtomicU32) {
    wake_up_to(word, 1);
}

/// Wakes every sleeper on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake_up_to(word, libc::c_int::MAX);
}

fn wake_up_to(word: &AtomicU32, n: libc::c_int) {
    // SAFETY: the kernel uses the address of the word as a key and does not access it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            n,
        );
    }
}

// Values of `MODE`.
const UNKNOWN: u8 = 0;
const MEMBARRIER: u8 = 1;
const PLAIN: u8 = 2;

/// How the fences are made.
///
/// Invariant: it changes once, from `UNKNOWN`, before any thread crosses a fence. A thread that saw
/// another value than its peer would cross a fence that does not pair with the peer's.
static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);

// Commands of membarrier(2), from linux/membarrier.h.
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds out, once, whether membarrier(2) can be used. Returns the answer as a sentence for
/// `environment()`. Called before any thread crosses a fence.
pub(crate) fn probe_fences() -> &'static str {
    if MODE.load(Ordering::Relaxed) == UNKNOWN {
        let usable = membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
            .and_then(|()| membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED));
        MODE.store(if usable.is_ok() { MEMBARRIER } else { PLAIN }, Ordering::Relaxed);
    }
    match MODE.load(Ordering::Relaxed) {
        MEMBARRIER => "membarrier(2) private expedited",
        _ => "no membarrier(2): full fences on both sides",
    }
}

/// The cheap side of the pair: orders earlier stores before later loads, against [`heavy_fence`].
#[inline(always)]
pub(crate) fn light_fence() {
    if MODE.load(Ordering::Relaxed) == MEMBARRIER {
        // The other side's membarrier puts a full fence somewhere into this thread's program
        // order. Only the compiler must be kept from moving accesses across this point.
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The expensive side of the pair.
pub(crate) fn heavy_fence() {
    fence(Ordering::SeqCst);
    if MODE.load(Ordering::Relaxed) == MEMBARRIER {
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)
            .expect("membarrier(2) worked when it was probed and takes no resource");
    }
}
