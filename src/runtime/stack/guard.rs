#![allow(unsafe_code, reason = "protects memory")]
//! Guards below stacks.
//!
//! A guard is a range of page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no
//! mapping of their own and stay when the memory around them is decommitted. Older kernels get
//! `PROT_NONE` pages, each of which splits the segment. The mappings are counted then, and a stack
//! is refused at 90 % of vm.max_map_count: the rest of the process needs some, too.
//!
//! The first guard of the process is probed. An emulator (qemu-user) answers advice that it does
//! not know with success, and a stack without a guard overflows into the next one.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::runtime::os::memory;
use crate::runtime::stack::error::StackError;

/// How guards are made: not known yet.
const UNPROBED: u8 = 0;
/// By markers, which were seen to work.
const MARKERS: u8 = 1;
/// By `PROT_NONE` pages: the kernel refused markers once, or they did not work.
const PAGES: u8 = 2;

/// Goes from `UNPROBED` to one of the others, and from `MARKERS` to `PAGES`. Two threads that both
/// probe find the same.
static HOW: AtomicU8 = AtomicU8::new(UNPROBED);

/// Makes a guard of whole pages: the lowest ones of a slot that is not used yet.
pub(crate) fn install_guard(at: usize, bytes: usize) -> Result<(), StackError> {
    let how = HOW.load(Ordering::Relaxed);
    if how != PAGES {
        // SAFETY: the lowest pages of a slot that is not used yet (1).
        let is_marked = unsafe { memory::install_guard_markers(at, bytes) };
        if is_marked && (how == MARKERS || memory::is_guarded(at)) {
            HOW.store(MARKERS, Ordering::Relaxed);
            return Ok(());
        }
        HOW.store(PAGES, Ordering::Relaxed);
    }
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).take_two()?;
    // SAFETY: the lowest pages of a slot that is not used yet (1).
    unsafe { memory::forbid_access(at, bytes) }.map_err(|errno| StackError::Guard { errno })
}

/// How many mappings this process has, about, where guards are mappings.
struct Mappings {
    /// The number when mappings were counted, and what guards have added since.
    estimate: usize,
    /// vm.max_map_count; 0 before it was read.
    limit: usize,
}

/// The estimate of the process.
///
/// Invariant: it counts every guard that is a mapping, from before the guard is made. It may be
/// less than what the process has, by what other code has mapped since the last count.
static MAPPINGS: Mutex<Mappings> = Mutex::new(Mappings { estimate: 0, limit: 0 });

impl Mappings {
    /// vm.max_map_count as the kernel has it by default.
    const USUAL_LIMIT: usize = 65530;

    /// Counts a guard, unless that would leave less than a tenth of all mappings to the rest of the
    /// process. To count all mappings takes long, so that is done only when the estimate comes near
    /// the limit.
    fn take_two(&mut self) -> Result<(), StackError> {
        let is_full = |mappings: &Self| mappings.estimate + 2 > mappings.limit / 10 * 9;
        if is_full(self) {
            self.limit = memory::max_mappings().unwrap_or(Self::USUAL_LIMIT);
            self.estimate = memory::mappings();
            if is_full(self) {
                return Err(StackError::MapCount { mappings: self.estimate, limit: self.limit });
            }
        }
        self.estimate += 2;
        Ok(())
    }
}

/// How guards are made here, as a sentence for `environment()`. It is known once a slot was
/// allocated.
pub(crate) fn guards_report() -> String {
    if HOW.load(Ordering::Relaxed) != PAGES {
        return "MADV_GUARD_INSTALL".into();
    }
    let limit = memory::max_mappings().unwrap_or(Mappings::USUAL_LIMIT);
    let stacks = limit / 10 * 9 / 2;
    format!(
        "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, {stacks} stacks at most \
         (vm.max_map_count is {limit})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::PAGE_BYTES;

    /// What the probe relies on: it tells a page that is marked from one that is not, whatever the
    /// call that marks has answered.
    #[test]
    fn markers_are_believed_only_where_they_work() {
        let pages = memory::reserve_stacks(4 * PAGE_BYTES).expect("address space");
        assert!(!memory::is_guarded(pages), "a page that can be read");
        install_guard(pages, PAGE_BYTES).expect("a mapping");
        assert!(!memory::is_guarded(pages + PAGE_BYTES), "the page above the guard");
        assert_eq!(memory::is_guarded(pages), guards_report() == "MADV_GUARD_INSTALL");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let is_forbidden = maps.lines().any(|line| {
            let (from, rest) = line.split_once('-').expect("a range");
            let (to, rest) = rest.split_once(' ').expect("permissions");
            let address = |text| usize::from_str_radix(text, 16).expect("an address");
            (address(from)..address(to)).contains(&pages) && rest.starts_with("---p")
        });
        assert_eq!(is_forbidden, guards_report() != "MADV_GUARD_INSTALL");
    }
}
