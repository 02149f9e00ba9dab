#![allow(unsafe_code, reason = "maps goroutine stacks")]
//! Goroutine stacks: fixed, lazily committed, each with a guard page below it.
//!
//! A size class has a list of segments, each twice as large as the one before; a segment is one
//! `NORESERVE` mapping from which slots are carved in order. A slot is the guard page and above it
//! the stack. Stacks are never unmapped: a dead goroutine keeps its stack and both are used again.
//!
//! The stride of slots (stack and guard) is not a power of two on purpose: tops of stacks then
//! differ in the address bits that pick a cache set.
//!
//! Guards are page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no mapping of
//! their own; older kernels get `PROT_NONE` pages, which split the segment and so run into
//! vm.max_map_count at about 32,000 stacks.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of the guard below each stack.
pub(crate) const GUARD_BYTES: usize = 4096;
const MIN_CLASS_BYTES: usize = 16 << 10;
const MAX_CLASS_BYTES: usize = 8 << 20;
const CLASSES: usize = 10;
const FIRST_SEGMENT_BYTES: usize = 16 << 20;
const MAX_SEGMENT_BYTES: usize = 1 << 34;
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Why a goroutine stack could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackError {
    /// The kernel refused more address space.
    Reserve {
        /// Bytes that were asked for.
        bytes: usize,
        /// The value of `errno` after mmap(2).
        errno: i32,
    },
    /// The guard page could not be set.
    Guard {
        /// The value of `errno` after mprotect(2).
        errno: i32,
    },
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::Reserve { bytes, errno } => write!(
                f,
                "no address space for {bytes} bytes of goroutine stacks: {}; check RLIMIT_AS and \
                 vm.overcommit_memory",
                text(errno)
            ),
            Self::Guard { errno } => write!(
                f,
                "no guard page for a goroutine stack: {}; this kernel has no MADV_GUARD_INSTALL, \
                 so that each guard is a mapping: raise vm.max_map_count",
                text(errno)
            ),
        }
    }
}

impl std::error::Error for StackError {}

/// A stack: usable bytes are `lo..hi`, the guard ends at `lo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) lo: usize,
    pub(crate) hi: usize,
}

/// A size class, by its position: class 0 is 16 KiB, each next one twice that, up to 8 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeClass(u8);

impl SizeClass {
    pub(crate) const COUNT: usize = CLASSES;

    /// The smallest class that holds `bytes`.
    pub(crate) fn for_bytes(bytes: usize) -> Option<Self> {
        let bytes = bytes.max(MIN_CLASS_BYTES).checked_next_power_of_two()?;
        (bytes <= MAX_CLASS_BYTES).then(|| Self((bytes / MIN_CLASS_BYTES).trailing_zeros() as u8))
    }

    pub(crate) fn bytes(self) -> usize {
        MIN_CLASS_BYTES << self.0
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

struct Segments {
    /// First byte that is not carved, and end, of the newest segment.
    at: usize,
    end: usize,
    /// Bytes of the next segment.
    next_bytes: usize,
}

static SEGMENTS: [Mutex<Segments>; CLASSES] =
    [const { Mutex::new(Segments { at: 0, end: 0, next_bytes: FIRST_SEGMENT_BYTES }) }; CLASSES];

/// Set when the kernel said no to MADV_GUARD_INSTALL.
static MPROTECT_GUARDS: AtomicBool = AtomicBool::new(false);

/// Carves a new stack.
pub(crate) fn carve(class: SizeClass) -> Result<Stack, StackError> {
    let stride = class.bytes() + GUARD_BYTES;
    let slot = {
        let mut segments = SEGMENTS[class.index()].lock().unwrap_or_else(PoisonError::into_inner);
        if segments.end - segments.at < stride {
            grow(&mut segments, stride)?;
        }
        let slot = segments.at;
        segments.at += stride;
        slot
    };
    install_guard(slot)?;
    Ok(Stack { lo: slot + GUARD_BYTES, hi: slot + stride })
}

fn grow(segments: &mut Segments, stride: usize) -> Result<(), StackError> {
    let mut bytes = segments.next_bytes.max(stride);
    loop {
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
        if at != libc::MAP_FAILED {
            // A huge page under a stack would cost 2 MiB for a few bytes. MAP_STACK says so since
            // Linux 6.7; on a kernel without huge pages the call fails, which is as good.
            // SAFETY: the mapping that was just made.
            unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
            segments.at = at as usize;
            segments.end = at as usize + bytes;
            segments.next_bytes = (bytes * 2).min(MAX_SEGMENT_BYTES);
            return Ok(());
        }
        // Where address space is limited, a smaller segment may still fit.
        if bytes / 2 < stride {
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            return Err(StackError::Reserve { bytes, errno });
        }
        bytes /= 2;
    }
}

fn install_guard(at: usize) -> Result<(), StackError> {
    if !MPROTECT_GUARDS.load(Ordering::Relaxed) {
        // SAFETY: the lowest page of a slot that nobody uses yet.
        if unsafe { libc::madvise(at as *mut _, GUARD_BYTES, MADV_GUARD_INSTALL) } == 0 {
            return Ok(());
        }
        MPROTECT_GUARDS.store(true, Ordering::Relaxed);
    }
    // SAFETY: as above.
    if unsafe { libc::mprotect(at as *mut _, GUARD_BYTES, libc::PROT_NONE) } == 0 {
        return Ok(());
    }
    Err(StackError::Guard { errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) })
}

/// How guards are made here, for `environment()`. Carves a stack to find out.
pub(crate) fn probe_guards() -> Result<&'static str, StackError> {
    static PROBED: Mutex<bool> = Mutex::new(false);
    let mut probed = PROBED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*probed {
        carve(SizeClass(0))?;
        *probed = true;
    }
    Ok(if MPROTECT_GUARDS.load(Ordering::Relaxed) {
        "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, about 32,000 stacks at most"
    } else {
        "MADV_GUARD_INSTALL"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_sizes() {
        for (bytes, class) in
            [(0, 16 << 10), (16 << 10, 16 << 10), (16385, 32 << 10), (8 << 20, 8 << 20)]
        {
            assert_eq!(SizeClass::for_bytes(bytes).map(SizeClass::bytes), Some(class));
        }
        assert_eq!(SizeClass::for_bytes((8 << 20) + 1), None);
        assert_eq!(SizeClass::for_bytes(usize::MAX), None);
    }

    #[test]
    fn stacks_do_not_overlap_and_can_be_written() {
        let class = SizeClass::for_bytes(64 << 10).expect("a class of 64 KiB");
        let stacks: Vec<_> = (0..300).map(|_| carve(class).expect("300 stacks")).collect();
        for pair in stacks.windows(2) {
            assert!(pair[0].hi <= pair[1].lo || pair[1].hi <= pair[0].lo);
        }
        for stack in stacks {
            assert_eq!(stack.hi - stack.lo, 64 << 10);
            // SAFETY: the stack is ours; its lowest and highest words are usable.
            unsafe {
                (stack.lo as *mut u64).write_volatile(1);
                ((stack.hi - 8) as *mut u64).write_volatile(2);
            }
        }
    }
}
