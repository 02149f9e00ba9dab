#![allow(unsafe_code, reason = "futex(2) and membarrier(2)")]
//! Sleeping on a word, and a fence whose whole cost is on one side.
//!
//! The fences are a pair. Thread A stores x, crosses the light fence and loads y; thread B stores
//! y, crosses the heavy fence and loads x. At least one of them sees the other's store. With
//! membarrier(2) the light fence is no instruction at all, so it stands where code is hot: in each
//! switch, and where work is added. The heavy fence costs a system call that interrupts the other
//! threads of the process: it stands where a thread is about to sleep or to suspend a goroutine.
//!
//! # When membarrier(2) is lost
//!
//! A sandbox may refuse membarrier(2) while a run is under way: a seccomp filter that a program
//! installs once it is set up. Light fences that were crossed just before had no instruction, and
//! no system call pairs with them any more. In time order:
//!
//! 1. The thread whose membarrier(2) fails stores `CHANGING`. From when a thread sees that on, it
//!    crosses full fences on either side.
//! 2. What is left are threads that have crossed a light fence and have not seen the store. The
//!    thread moves itself to each processor in turn (sched_setaffinity(2)). When it runs on a
//!    processor, the thread that ran there before has been switched out: the kernel has put a full
//!    barrier into that thread's program order, which is what membarrier(2) does. A thread that
//!    does not run has crossed one when it was switched out.
//! 3. It stores `PLAIN`. Heavy fences that meet `CHANGING` meanwhile do step 2 themselves.
//!
//! Where threads of the process may run on processors that this one may not (threaded cpusets), or
//! where sched_setaffinity(2) is refused, too, the thread sleeps for a time instead in which every
//! store has long become visible. No architecture promises such a time; `probe_fences` tells of it.
//!
//! Rejected: to change the protection of a page, so that the kernel interrupts all processors that
//! may have it cached. Processors with broadcast invalidation (AArch64; AMD since Zen 3) are not
//! interrupted. Rejected: signals to all threads. Threads that block them would never answer.
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
/// membarrier(2) was lost, and threads may not have noticed yet.
const CHANGING: u8 = 2;
const PLAIN: u8 = 3;

/// How the fences are made.
///
/// Invariant: it leaves `UNKNOWN` before any thread crosses a fence. From `MEMBARRIER` it may go to
/// `CHANGING` and `PLAIN`, as the head of this file tells. It never goes back.
static MODE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// How membarrier(2) was lost, if it was. It is stored after `CHANGING`.
static LOSS: AtomicU8 = AtomicU8::new(NONE);

// Values of `LOSS`.
const NONE: u8 = 0;
/// Every processor was visited.
const VISITED: u8 = 1;
/// Not every one could be.
const SLEPT: u8 = 2;

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
    match (MODE.load(Ordering::Relaxed), LOSS.load(Ordering::Relaxed)) {
        (MEMBARRIER, _) => "membarrier(2) private expedited",
        (_, NONE) => "no membarrier(2): full fences on both sides",
        (_, VISITED) => "membarrier(2) was refused after the start: full fences on both sides",
        _ => {
            "membarrier(2) was refused after the start, and not every processor could be visited: \
             full fences on both sides, after 10 ms in which all stores are assumed to be visible"
        }
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
    // Acquire: with `PLAIN` this thread sees what the others did before they crossed full fences.
    match MODE.load(Ordering::Acquire) {
        MEMBARRIER if membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED).is_ok() => {}
        MEMBARRIER | CHANGING => lose_membarrier(),
        _ => {}
    }
}

/// Makes all threads cross full fences from now on, and orders what they did before like a heavy
/// fence. The head of this file tells how.
#[cold]
#[inline(never)]
fn lose_membarrier() {
    // Another thread may be through with all of this already.
    let _ = MODE.compare_exchange(MEMBARRIER, CHANGING, Ordering::SeqCst, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let was_complete = visit_processors();
    if !was_complete {
        std::thread::sleep(Duration::from_millis(10));
    }
    LOSS.fetch_max(if was_complete { VISITED } else { SLEPT }, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    MODE.store(PLAIN, Ordering::SeqCst);
}

/// Runs this thread on each processor in turn. Returns whether these were all on which threads of
/// this process may run.
fn visit_processors() -> bool {
    // SAFETY: a set of processors is valid when all its bits are zero.
    let empty: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    let may_run_on = |tid: libc::pid_t| {
        let mut set = empty;
        // SAFETY: the address of a local of that size.
        let is_known = unsafe { libc::sched_getaffinity(tid, size, &raw mut set) } == 0;
        is_known.then_some(set)
    };
    let Some(own) = may_run_on(0) else {
        return false;
    };
    let visited = (0..libc::CPU_SETSIZE as usize).map(|processor| {
        let mut only = empty;
        // SAFETY: the number is within the set. The second call moves this thread, and returns
        // when it runs there.
        unsafe {
            libc::CPU_SET(processor, &mut only);
            libc::sched_setaffinity(0, size, &raw const only) == 0
        }
    });
    let visited: Vec<bool> = visited.collect();
    // SAFETY: the address of a local of that size.
    unsafe { libc::sched_setaffinity(0, size, &raw const own) };
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return false;
    };
    threads.flatten().all(|thread| {
        let tid = thread.file_name().to_str().and_then(|name| name.parse().ok());
        // A thread that has ended meanwhile crosses no fence.
        let Some(set) = tid.and_then(may_run_on) else {
            return !thread.path().exists();
        };
        // SAFETY: the number is within the set.
        let is_in = |processor: usize| unsafe { libc::CPU_ISSET(processor, &set) };
        (0..visited.len()).all(|processor| visited[processor] || !is_in(processor))
    })
}
