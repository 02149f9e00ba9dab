#![allow(unsafe_code, reason = "maps memory")]
//! Memory of goroutine stacks, and the limits that the kernel sets.
//!
//! Calls only: which memory is reserved when, and what is done about a refusal, is decided in
//! `stack/`. Errors are values of `errno`.

use std::{io, ptr};

use crate::jit::PAGE_BYTES;

/// madvise(2), Linux 6.13; from asm-generic/mman-common.h.
const MADV_GUARD_INSTALL: libc::c_int = 102;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Reserves address space for stacks, which is committed page by page where it is touched.
pub(crate) fn reserve_stacks(bytes: usize) -> Result<usize, i32> {
    // SAFETY: a fresh anonymous mapping.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(errno());
    }
    // A huge page under a stack would cost 2 MiB for a few bytes. MAP_STACK keeps them away since
    // Linux 6.7. On a kernel without huge pages the call fails, and has nothing to do.
    // SAFETY: the range is the mapping that was just made.
    unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(at as usize)
}

/// Decommits a range: it reads as zeroes afterwards, and its guards stay. A failure costs memory,
/// nothing else. (`stack/slots.rs` says why this is not MADV_FREE.)
///
/// # Safety
/// 1. The range lies in mappings of [`reserve_stacks`].
/// 2. Its contents are not needed.
pub(crate) unsafe fn decommit(at: usize, bytes: usize) {
    // SAFETY: 1. and 2. are the caller's promises.
    unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_DONTNEED) };
}

/// Makes accesses to a range fault, by page table markers, which cost no mapping. Returns whether
/// the kernel has them (Linux 6.13).
///
/// # Safety
/// 1. The range lies in a mapping of [`reserve_stacks`].
/// 2. It is not used.
pub(crate) unsafe fn install_guard_markers(at: usize, bytes: usize) -> bool {
    // SAFETY: 1. and 2. are the caller's promises.
    unsafe { libc::madvise(at as *mut _, bytes, MADV_GUARD_INSTALL) == 0 }
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

/// RLIMIT_AS in bytes, if it limits the process.
pub(crate) fn address_space_limit() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the address of a local.
    let is_known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
    (is_known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)
}

/// Bytes of address space that the process uses.
pub(crate) fn address_space_used() -> usize {
    read_number("/proc/self/statm").unwrap_or(0) * PAGE_BYTES
}

/// Whether the kernel counts untouched memory as used (vm.overcommit_memory is 2).
pub(crate) fn is_overcommit_strict() -> bool {
    read_number("/proc/sys/vm/overcommit_memory") == Some(2)
}

/// How many mappings a process may have: vm.max_map_count. `None`: /proc does not tell.
pub(crate) fn max_mappings() -> Option<usize> {
    read_number("/proc/sys/vm/max_map_count")
}

/// How many mappings this process has. It reads all of /proc/self/maps, which takes long.
pub(crate) fn mappings() -> usize {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    maps.iter().filter(|&&byte| byte == b'\n').count()
}

/// The number that a file begins with.
fn read_number(path: &str) -> Option<usize> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}
