#![allow(unsafe_code, reason = "protects memory")]
//! Guards below stacks.
//!
//! A guard is a range of page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no
//! mapping of their own and stay when the memory around them is decommitted. Older kernels get
//! `PROT_NONE` pages, each of which splits the segment, and so does memory that the process locks
//! (mlockall), where markers are refused. The mappings are counted then, and a stack is refused at
//! 90 % of vm.max_map_count: the rest of the process needs some, too.
//!
//! Markers are believed only after two probes. An emulator (qemu-user) answers advice that it does
//! not know with success, and a stack without a guard overflows into the next one.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::jit::{mappings, max_mappings};
use crate::runtime::os::memory;
use crate::runtime::stack::error::StackError;

/// How guards are made: not known yet.
const UNPROBED: u8 = 0;
/// By markers, which were seen to work.
const MARKERS: u8 = 1;
/// By `PROT_NONE` pages: the host refused markers once.
const PAGES: u8 = 2;
/// By `PROT_NONE` pages: the host said that it made a marker, and made none.
const PAGES_FOR_AN_EMULATOR: u8 = 3;

/// Goes from `UNPROBED` to one of the others, and from `MARKERS` to `PAGES`. Two threads that both
/// probe find the same.
static HOW: AtomicU8 = AtomicU8::new(UNPROBED);

/// Makes a guard of whole pages: the lowest ones of a slot that is not used yet.
pub(crate) fn install_guard(at: usize, bytes: usize) -> Result<(), StackError> {
    let how = HOW.load(Ordering::Relaxed);
    if how < PAGES {
        // SAFETY: the lowest pages of a slot that is not used yet (1).
        let is_marked = unsafe { memory::install_guard_markers(at, bytes) };
        // SAFETY: one of these pages (1).
        let works = || !memory::answers_impossible_advice() && unsafe { memory::is_guarded(at) };
        if is_marked && (how == MARKERS || works()) {
            HOW.store(MARKERS, Ordering::Relaxed);
            return Ok(());
        }
        HOW.store(if is_marked { PAGES_FOR_AN_EMULATOR } else { PAGES }, Ordering::Relaxed);
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
            self.limit = max_mappings().unwrap_or(Self::USUAL_LIMIT);
            self.estimate = mappings();
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
    let why = match HOW.load(Ordering::Relaxed) {
        PAGES => "no MADV_GUARD_INSTALL",
        PAGES_FOR_AN_EMULATOR => "MADV_GUARD_INSTALL is answered and does nothing (an emulator)",
        _ => return "MADV_GUARD_INSTALL".into(),
    };
    let limit = max_mappings().unwrap_or(Mappings::USUAL_LIMIT);
    let stacks = limit / 10 * 9 / 2;
    format!(
        "{why}: guards are PROT_NONE pages, {stacks} stacks at most (vm.max_map_count is {limit})"
    )
}

/// What becomes of the memory of dead goroutines' stacks here, as a sentence for `environment()`.
pub(crate) fn memory_report() -> String {
    match memory::probe_decommit() {
        Ok(()) => "decommitted after use".into(),
        Err(errno) => format!(
            "stays committed after use: madvise(2) MADV_DONTNEED failed: {}",
            std::io::Error::from_raw_os_error(errno)
        ),
    }
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
        // SAFETY: the reservation was just made.
        unsafe { memory::commit_stacks(pages, 4 * PAGE_BYTES) }.expect("memory");
        // SAFETY: nothing uses the pages of this test.
        let is_guarded = |page: usize| unsafe { memory::is_guarded(page) };
        assert!(!is_guarded(pages), "a page that can be written to");
        install_guard(pages, PAGE_BYTES).expect("a mapping");
        assert!(!is_guarded(pages + PAGE_BYTES), "the page above the guard");
        assert!(is_guarded(pages), "an access to the guard faults");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let is_forbidden = maps.lines().any(|line| {
            let (from, rest) = line.split_once('-').expect("a range");
            let (to, rest) = rest.split_once(' ').expect("permissions");
            let address = |text| usize::from_str_radix(text, 16).expect("an address");
            (address(from)..address(to)).contains(&pages) && rest.starts_with("---p")
        });
        assert_eq!(is_forbidden, guards_report() != "MADV_GUARD_INSTALL");
        // An emulator answers both of these with success, and this kernel none.
        if !is_forbidden {
            assert!(!memory::answers_impossible_advice());
        }
    }
}
