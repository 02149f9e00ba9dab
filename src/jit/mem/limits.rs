#![allow(unsafe_code, reason = "reads limits of the process")]
//! The limits of memory that the host sets, and which of them was met.
//!
//! A limit is read only after the kernel has refused something, or where it decides how much is
//! reserved. Numbers come from /proc and may be missing in a sandbox: then the limit is not named.

use crate::jit::error::Shortage;

impl Shortage {
    /// Reads the limits after the kernel has refused `bytes` with this `errno`. `is_writable`: the
    /// memory counts against RLIMIT_DATA.
    pub(crate) fn of(errno: i32, bytes: usize, is_writable: bool) -> Self {
        let exceeds = |used: usize, limit: usize| used.saturating_add(bytes) > limit;
        if errno == libc::EAGAIN
            && let Some(limit) = limit_of(libc::RLIMIT_MEMLOCK)
        {
            return Self::LockedMemory { used: status_bytes("VmLck:"), limit };
        }
        if let Some(limit) = limit_of(libc::RLIMIT_AS) {
            let used = address_space_used();
            if exceeds(used, limit) {
                return Self::AddressSpace { used, limit };
            }
        }
        if is_writable && let Some(limit) = limit_of(libc::RLIMIT_DATA) {
            let used = status_bytes("VmData:");
            if exceeds(used, limit) {
                return Self::Data { used, limit };
            }
        }
        if errno == libc::ENOMEM
            && let Some(limit) = max_mappings()
        {
            // A change of protection may need two more, and /proc lists one that does not count.
            let used = mappings();
            if used + 3 > limit {
                return Self::Mappings { used, limit };
            }
        }
        let strict = read_number("/proc/sys/vm/overcommit_memory") == Some(2);
        if strict { Self::StrictOvercommit } else { Self::Unknown }
    }
}

/// A limit of the process in bytes, if it limits it.
fn limit_of(resource: libc::__rlimit_resource_t) -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the address of a local.
    let is_known = unsafe { libc::getrlimit(resource, &raw mut limit) } == 0;
    (is_known && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur as usize)
}

/// Bytes that a file of the process may have, RLIMIT_FSIZE. A larger file costs a signal that ends
/// the process.
pub(super) fn file_size_limit() -> Option<usize> {
    limit_of(libc::RLIMIT_FSIZE)
}

/// Bytes of address space that the process may still map. `None`: there is no limit.
pub(crate) fn address_space_left() -> Option<usize> {
    Some(limit_of(libc::RLIMIT_AS)?.saturating_sub(address_space_used()))
}

/// Bytes of address space that the process uses.
fn address_space_used() -> usize {
    read_number("/proc/self/statm").unwrap_or(0) * region::page::size()
}

/// A size of /proc/self/status, in bytes.
fn status_bytes(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
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
