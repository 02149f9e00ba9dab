#![allow(unsafe_code, reason = "maps memory")]
//! Memory of goroutine stacks, and the limits that the kernel sets.
//!
//! Calls only: which memory is reserved when, and what is done about a refusal, is decided in
//! `stack/`. Errors are values of `errno`.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::jit::reserve_private;

/// madvise(2), Linux 6.13; from asm-generic/mman-common.h.
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// madvise(2), Linux 5.18; from asm-generic/mman-common.h.
const MADV_DONTNEED_LOCKED: libc::c_int = 24;

/// An advice that no kernel has.
const IMPOSSIBLE_ADVICE: libc::c_int = 0x7fff_fff1;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Reserves address space for stacks, which is inaccessible until [`commit_stacks`].
pub(crate) fn reserve_stacks(bytes: usize) -> Result<usize, i32> {
    let at = reserve_private(bytes, libc::MAP_STACK)?;
    // A huge page under a stack would cost 2 MiB for a few bytes. MAP_STACK keeps them away since
    // Linux 6.7. On a kernel without huge pages the call fails, and has nothing to do.
    // SAFETY: the range is the mapping that was just made.
    unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(at)
}

/// Makes a part of a reservation usable. Its memory is committed page by page where it is touched.
///
/// # Safety
/// 1. The range lies in a mapping of [`reserve_stacks`], and holds no guard.
pub(crate) unsafe fn commit_stacks(at: usize, bytes: usize) -> Result<(), i32> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: 1. is the caller's promise.
    match unsafe { libc::mprotect(at as *mut _, bytes, access) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// The value of errno when memory could not be decommitted the last time. 0: it always could.
static DECOMMIT_ERRNO: AtomicI32 = AtomicI32::new(0);

/// Decommits a range: it reads as zeroes afterwards, and its guards stay. A failure costs memory,
/// nothing else. (`stack/slots.rs` says why this is not MADV_FREE.)
///
/// # Safety
/// 1. The range lies in mappings of [`reserve_stacks`].
/// 2. Its contents are not needed.
pub(crate) unsafe fn decommit(at: usize, bytes: usize) {
    // Memory that is locked (mlockall) needs the second one.
    for advice in [libc::MADV_DONTNEED, MADV_DONTNEED_LOCKED] {
        // SAFETY: 1. and 2. are the caller's promises.
        if unsafe { libc::madvise(at as *mut _, bytes, advice) } == 0 {
            return;
        }
    }
    DECOMMIT_ERRNO.store(errno(), Ordering::Relaxed);
}

/// Whether memory can be decommitted, as far as is known and by a probe of madvise(2). Otherwise
/// the value of errno.
pub(crate) fn probe_decommit() -> Result<(), i32> {
    match DECOMMIT_ERRNO.load(Ordering::Relaxed) {
        // SAFETY: an empty range: no memory is involved.
        0 => match unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(errno()),
        },
        errno => Err(errno),
    }
}

/// Makes accesses to a range fault, by page table markers, which cost no mapping (Linux 6.13).
/// Returns whether the kernel says that it did. An emulator may say so and do nothing: see
/// [`answers_impossible_advice`] and [`is_guarded`].
///
/// # Safety
/// 1. The range lies in a mapping of [`reserve_stacks`].
/// 2. It is not used.
pub(crate) unsafe fn install_guard_markers(at: usize, bytes: usize) -> bool {
    // SAFETY: 1. and 2. are the caller's promises.
    unsafe { libc::madvise(at as *mut _, bytes, MADV_GUARD_INSTALL) == 0 }
}

/// Whether madvise(2) succeeds with an advice that does not exist: an emulator (qemu-user) that
/// answers what it does not know with success.
pub(crate) fn answers_impossible_advice() -> bool {
    // SAFETY: an empty range: no memory is involved.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, IMPOSSIBLE_ADVICE) == 0 }
}

/// Whether an access to this page faults, found out without a fault: the kernel is told to write
/// the time there, and refuses that with EFAULT. No file descriptor is needed, and no sandbox
/// forbids the call. Any other answer is `false`.
///
/// # Safety
/// 1. Nothing uses the page. What it holds is overwritten if it is accessible.
pub(crate) unsafe fn is_guarded(page: usize) -> bool {
    // The function of libc reads the clock without a system call, and would itself fault.
    // SAFETY: 1. the kernel writes a timespec there, or nothing.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, page) };
    result != 0 && errno() == libc::EFAULT
}

/// Makes accesses to a range fault, by a mapping of its own.
///
/// # Safety
/// 1. The range lies in a mapping of [`reserve_stacks`].
/// 2. It is not used.
pub(crate) unsafe fn forbid_access(at: usize, bytes: usize) -> Result<(), i32> {
    // SAFETY: 1. and 2. are the caller's promises.
    match unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_NONE) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}
