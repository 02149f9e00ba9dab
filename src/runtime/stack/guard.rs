#![allow(unsafe_code, reason = "protects memory")]
//! Guards below stacks.
//!
//! A guard is a range of page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no
//! mapping of their own and stay when the memory around them is decommitted. Older kernels get
//! `PROT_NONE` pages, each of which splits the segment. The mappings are counted then, and a stack
//! is refused at 90 % of vm.max_map_count: the rest of the process needs some, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::runtime::os::memory;
use crate::runtime::stack::error::StackError;

/// Set when the kernel said no to MADV_GUARD_INSTALL.
static MPROTECT_GUARDS: AtomicBool = AtomicBool::new(false);

pub(crate) fn install_guard(at: usize, bytes: usize) -> Result<(), StackError> {
    if !MPROTECT_GUARDS.load(Ordering::Relaxed) {
        // SAFETY: the lowest pages of a slot that is not used yet.
        if unsafe { memory::install_guard_markers(at, bytes) } {
            return Ok(());
        }
        MPROTECT_GUARDS.store(true, Ordering::Relaxed);
    }
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).take_two()?;
    // SAFETY: the lowest pages of a slot that is not used yet.
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
    if MPROTECT_GUARDS.load(Ordering::Relaxed) {
        let limit = memory::max_mappings().unwrap_or(Mappings::USUAL_LIMIT);
        let stacks = limit / 10 * 9 / 2;
        format!(
            "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, {stacks} stacks at most \
             (vm.max_map_count is {limit})"
        )
    } else {
        "MADV_GUARD_INSTALL".into()
    }
}
