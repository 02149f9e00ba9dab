#![allow(unsafe_code, reason = "maps memory")]
//! Memory of goroutine stacks, and the limits that the kernel sets.

use std::{io, ptr};

use crate::jit::PAGE_BYTES;

pub(crate) const MADV_GUARD_INSTALL: libc::c_int = 102;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Reserves address space for stacks, which is committed page by page where it is touched. The error
/// is the value of `errno`.
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
    // A huge page under a stack would cost 2 MiB for a few bytes. MAP_STACK says so since Linux 6.7;
    // on a kernel without huge pages the call fails, which is as good.
    // SAFETY: the mapping that was just made.
    unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
    Ok(at as usize)
}

/// Returns the memory of a range to the kernel: it reads as zeroes afterwards. Guards stay. A failure
/// costs memory, nothing else.
///
/// # Safety
/// The range lies in mappings of [`reserve_stacks`], and its contents are not needed.
pub(crate) unsafe fn decommit(at: usize, bytes: usize) {
    // SAFETY: by the contract.
    unsafe { libc::madvise(at as *mut _, bytes, libc::MADV_DONTNEED) };
}

/// Makes a range fault by page table markers, which cost no mapping. Returns whether the kernel has
/// them (Linux 6.13).
///
/// # Safety
/// The range lies in a mapping of [`reserve_stacks`], and is not used.
pub(crate) unsafe fn install_guard_markers(at: usize, bytes: usize) -> bool {
    // SAFETY: by the contract.
    unsafe { libc::madvise(at as *mut _, bytes, MADV_GUARD_INSTALL) == 0 }
}

/// Makes a range fault by a mapping of its own. The error is the value of `errno`.
///
/// # Safety
/// The range lies in a mapping of [`reserve_stacks`], and is not used.
pub(crate) unsafe fn forbid_access(at: usize, bytes: usize) -> Result<(), i32> {
    // SAFETY: by the contract.
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

/// Whether the kernel counts untouched memory as used.
pub(crate) fn is_overcommit_strict() -> bool {
    read_number("/proc/sys/vm/overcommit_memory") == Some(2)
}

/// How many mappings a process may have.
pub(crate) fn max_mappings() -> Option<usize> {
    read_number("/proc/sys/vm/max_map_count")
}

/// How many mappings this process has.
pub(crate) fn mappings() -> usize {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    maps.iter().filter(|&&byte| byte == b'\n').count()
}

/// The number that a file begins with.
fn read_number(path: &str) -> Option<usize> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}
