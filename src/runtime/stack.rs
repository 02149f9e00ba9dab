#![allow(unsafe_code, reason = "maps goroutine stacks")]
//! Goroutine stacks: fixed, lazily committed, each with a guard below it.
//!
//! There are five size classes. A class has a list of segments, each twice as large as the one
//! before; a segment is one `NORESERVE` mapping from which slots are carved in order. A slot is the
//! guard and above it the stack. Stacks are never unmapped: a dead goroutine keeps its stack and
//! both are used again (`pool.rs`).
//!
//! The stride of slots (stack and guard) is not a power of two on purpose: tops of stacks then
//! differ in the address bits that pick a cache set.
//!
//! Guards are page table markers (`MADV_GUARD_INSTALL`, Linux 6.13), which cost no mapping of
//! their own and stay when the memory around them is given back; older kernels get `PROT_NONE`
//! pages, each of which splits the segment. The mappings are counted then, and a stack is refused
//! at 90 % of vm.max_map_count: the rest of the process needs some, too.
//!
//! Memory is given back by `MADV_DONTNEED`, not by `MADV_FREE`: pages that are freed lazily still
//! count as resident, which is what limits of containers and people go by, and freeing them takes
//! as long.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes of the classes, smallest first.
const CLASS_BYTES: [usize; 5] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20];
/// Bytes of the largest class.
pub(crate) const LARGEST_BYTES: usize = CLASS_BYTES[CLASS_BYTES.len() - 1];
const FIRST_SEGMENT_BYTES: usize = 16 << 20;
const MAX_SEGMENT_BYTES: usize = 1 << 34;
const MADV_GUARD_INSTALL: libc::c_int = 102;

/// Bytes of a guard, at least. A C function whose frame is smaller cannot step over one.
pub(crate) const GUARD_BYTES: usize = 64 << 10;

/// Of a stack that was used deeply, so much stays for the next goroutine.
const KEPT_BYTES: usize = 4 * PAGE_BYTES;

/// Why a goroutine stack could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackError {
    /// More was asked for than the largest class has.
    TooLarge {
        /// Bytes that were asked for.
        requested: usize,
    },
    /// The kernel refused more address space.
    Reserve {
        /// Bytes that were asked for.
        bytes: usize,
        /// The value of `errno` after mmap(2).
        errno: i32,
        /// What stands in the way, as far as the kernel tells.
        shortage: Shortage,
    },
    /// The guard could not be set.
    Guard {
        /// The value of `errno` after mprotect(2).
        errno: i32,
    },
    /// Each guard is a mapping here, and the process has nearly as many as it may have.
    MapCount {
        /// Mappings that the process has.
        mappings: usize,
        /// The value of vm.max_map_count.
        limit: usize,
    },
}

/// Why the kernel refuses address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shortage {
    /// The process would exceed its limit of address space, RLIMIT_AS.
    AddressSpace {
        /// Bytes that it uses.
        used: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// vm.overcommit_memory is 2: the kernel counts address space as if all of it were touched.
    StrictOvercommit,
    /// None of these.
    Unknown,
}

impl Shortage {
    /// Asks the kernel what the limits are.
    fn of_reserving(bytes: usize) -> Self {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the address of a local.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) } == 0;
        if known && limit.rlim_cur != libc::RLIM_INFINITY {
            let limit = limit.rlim_cur as usize;
            let pages = read_number("/proc/self/statm").unwrap_or(0);
            let used = pages * PAGE_BYTES;
            if used.saturating_add(bytes) > limit {
                return Self::AddressSpace { used, limit };
            }
        }
        match read_number("/proc/sys/vm/overcommit_memory") {
            Some(2) => Self::StrictOvercommit,
            _ => Self::Unknown,
        }
    }
}

/// The number that a file begins with.
fn read_number(path: &str) -> Option<usize> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::TooLarge { requested } => write!(
                f,
                "a stack of {requested} bytes was asked for, and the largest has 8 MiB; systemstack \
                 runs a function on the stack of a thread"
            ),
            Self::Reserve { bytes, errno, shortage } => {
                let errno = text(errno);
                write!(f, "no address space for {bytes} bytes of goroutine stacks: {errno}; ")?;
                match shortage {
                    Shortage::AddressSpace { used, limit } => write!(
                        f,
                        "RLIMIT_AS is {limit} bytes and {used} are used: raise it (ulimit -v)"
                    ),
                    Shortage::StrictOvercommit => f.write_str(
                        "vm.overcommit_memory is 2, so that untouched stacks count as used: set it \
                         to 0, or raise vm.overcommit_ratio",
                    ),
                    Shortage::Unknown => f.write_str(
                        "RLIMIT_AS and vm.overcommit_memory allow it: check vm.max_map_count and \
                         the limits of the container",
                    ),
                }
            }
            Self::Guard { errno } => write!(
                f,
                "no guard page for a goroutine stack: {}; this kernel has no MADV_GUARD_INSTALL, \
                 so that each guard is a mapping: raise vm.max_map_count",
                text(errno)
            ),
            Self::MapCount { mappings, limit } => write!(
                f,
                "no guard page for a goroutine stack: the process has {mappings} mappings, and \
                 vm.max_map_count is {limit}; this kernel has no MADV_GUARD_INSTALL, so that each \
                 stack takes two: raise vm.max_map_count (sysctl -w vm.max_map_count={})",
                limit.saturating_mul(4)
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

impl Stack {
    /// The class that it was carved for.
    #[inline]
    pub(crate) fn class(self) -> SizeClass {
        // 16 KiB is 2^14, and each class is at least four times the one before.
        let class = SizeClass(((self.hi - self.lo).trailing_zeros() - 14) as u8 / 2);
        debug_assert_eq!(class.bytes(), self.hi - self.lo);
        class
    }

    /// Where the guard begins.
    pub(crate) fn guard(self) -> usize {
        self.lo - self.class().guard_bytes()
    }

    /// Gives back what a goroutine leaves behind below `live`, if it was seen deep: the kernel
    /// takes all pages but the uppermost ones. Called when the goroutine has ended; nothing below
    /// `live` is needed.
    ///
    /// How deep it was is known from the lowest rsp that it was ever switched away from with. That
    /// costs one compare a switch and no system call for the shallow many. A goroutine that was
    /// deep between two switches only is missed, and keeps its pages until its thread has nothing
    /// to do (`pool.rs`); to see those, too, would take a system call (mincore) at each end.
    #[inline]
    pub(crate) fn give_back_depths(self, lowest_sp: usize, live: usize) {
        if lowest_sp < self.hi - KEPT_BYTES {
            let end = (self.hi - KEPT_BYTES).min(live) & !(PAGE_BYTES - 1);
            give_back(self.lo, end);
        }
    }
}

/// Gives the memory of stacks back to the kernel: it reads as zeroes afterwards. Guards stay.
///
/// The range lies in segments of this file, and nothing in it is needed.
pub(crate) fn give_back(from: usize, to: usize) {
    if from < to {
        // SAFETY: pages of dead stacks, by the contract. That it fails costs memory, nothing else.
        unsafe { libc::madvise(from as *mut _, to - from, libc::MADV_DONTNEED) };
    }
}

/// A size class, by its position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeClass(u8);

impl SizeClass {
    pub(crate) const COUNT: usize = CLASS_BYTES.len();

    /// All of them, smallest first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// The smallest class that holds `bytes`.
    #[inline]
    pub(crate) fn for_bytes(bytes: usize) -> Option<Self> {
        let index = CLASS_BYTES.iter().position(|&class| class >= bytes)?;
        Some(Self(index as u8))
    }

    /// As [`Self::for_bytes`].
    pub(crate) fn for_request(bytes: usize) -> Result<Self, StackError> {
        Self::for_bytes(bytes).ok_or(StackError::TooLarge { requested: bytes })
    }

    /// The next larger class.
    pub(crate) fn next(self) -> Option<Self> {
        Self::for_bytes(self.bytes() + 1)
    }

    #[inline]
    pub(crate) fn bytes(self) -> usize {
        CLASS_BYTES[self.index()]
    }

    /// Bytes of the guard below a stack: the same for every class, since std itself calls C
    /// functions with large frames (8 to 33 KiB in resolver, glob and printf), which C compilers do
    /// not probe page by page. A frame of up to [`GUARD_BYTES`] cannot step over the guard.
    ///
    /// Where stack and guard together would be a power of two, the guard has one page more (see the
    /// head of the file).
    #[inline]
    pub(crate) fn guard_bytes(self) -> usize {
        let stride = self.bytes() + GUARD_BYTES;
        GUARD_BYTES + if stride.is_power_of_two() { PAGE_BYTES } else { 0 }
    }

    #[inline]
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

static SEGMENTS: [Mutex<Segments>; SizeClass::COUNT] =
    [const { Mutex::new(Segments { at: 0, end: 0, next_bytes: FIRST_SEGMENT_BYTES }) };
        SizeClass::COUNT];

/// How many stacks were ever carved of a class.
static CARVED: [AtomicUsize; SizeClass::COUNT] = [const { AtomicUsize::new(0) }; SizeClass::COUNT];

/// Set when the kernel said no to MADV_GUARD_INSTALL.
static MPROTECT_GUARDS: AtomicBool = AtomicBool::new(false);

/// Carves a new stack.
pub(crate) fn carve(class: SizeClass) -> Result<Stack, StackError> {
    let stride = class.bytes() + class.guard_bytes();
    let slot = {
        let mut segments = SEGMENTS[class.index()].lock().unwrap_or_else(PoisonError::into_inner);
        if segments.end - segments.at < stride {
            grow(&mut segments, stride)?;
        }
        // The guard comes first: a slot that is refused one is there for the next attempt.
        install_guard(segments.at, class.guard_bytes())?;
        let slot = segments.at;
        segments.at += stride;
        slot
    };
    CARVED[class.index()].fetch_add(1, Ordering::Relaxed);
    Ok(Stack { lo: slot + class.guard_bytes(), hi: slot + stride })
}

/// How many stacks of a class there are.
pub(crate) fn carved(class: SizeClass) -> usize {
    CARVED[class.index()].load(Ordering::Relaxed)
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
            let shortage = Shortage::of_reserving(bytes);
            return Err(StackError::Reserve { bytes, errno, shortage });
        }
        bytes /= 2;
    }
}

fn install_guard(at: usize, bytes: usize) -> Result<(), StackError> {
    if !MPROTECT_GUARDS.load(Ordering::Relaxed) {
        // SAFETY: the lowest pages of a slot that nobody uses yet.
        if unsafe { libc::madvise(at as *mut _, bytes, MADV_GUARD_INSTALL) } == 0 {
            return Ok(());
        }
        MPROTECT_GUARDS.store(true, Ordering::Relaxed);
    }
    MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).take_two()?;
    // SAFETY: as above.
    if unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_NONE) } == 0 {
        return Ok(());
    }
    Err(StackError::Guard { errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) })
}

/// An estimate of how many mappings this process has, where guards are mappings.
struct Mappings {
    /// As counted, and what guards have added since.
    estimate: usize,
    /// vm.max_map_count; 0 before it was read.
    limit: usize,
}

static MAPPINGS: Mutex<Mappings> = Mutex::new(Mappings { estimate: 0, limit: 0 });

impl Mappings {
    /// What vm.max_map_count is if nobody has changed it.
    const USUAL_LIMIT: usize = 65530;

    /// Makes sure that a guard leaves a tenth of all mappings to the rest of the process. Counting
    /// them takes long, so that they are counted when the estimate comes near the limit only.
    fn take_two(&mut self) -> Result<(), StackError> {
        let is_full = |mappings: &Self| mappings.estimate + 2 > mappings.limit / 10 * 9;
        if is_full(self) {
            self.limit = read_number("/proc/sys/vm/max_map_count").unwrap_or(Self::USUAL_LIMIT);
            let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
            self.estimate = maps.iter().filter(|&&byte| byte == b'\n').count();
            if is_full(self) {
                return Err(StackError::MapCount { mappings: self.estimate, limit: self.limit });
            }
        }
        self.estimate += 2;
        Ok(())
    }
}

/// How guards are made here, for `environment()`, if a stack was carved before.
pub(crate) fn guards_report() -> String {
    if MPROTECT_GUARDS.load(Ordering::Relaxed) {
        let limit = read_number("/proc/sys/vm/max_map_count").unwrap_or(Mappings::USUAL_LIMIT);
        let stacks = limit / 10 * 9 / 2;
        format!(
            "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, {stacks} stacks at most \
             (vm.max_map_count is {limit})"
        )
    } else {
        "MADV_GUARD_INSTALL".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_sizes() {
        for (bytes, class) in
            [(0, 16 << 10), (16 << 10, 16 << 10), (16385, 64 << 10), (8 << 20, 8 << 20)]
        {
            assert_eq!(SizeClass::for_bytes(bytes).map(SizeClass::bytes), Some(class));
        }
        assert_eq!(SizeClass::for_bytes((8 << 20) + 1), None);
        assert_eq!(SizeClass::for_bytes(usize::MAX), None);
        let all: Vec<_> = SizeClass::all().collect();
        assert_eq!(all.len(), SizeClass::COUNT);
        for pair in all.windows(2) {
            assert_eq!(pair[0].next(), Some(pair[1]));
        }
        assert_eq!(all[4].next(), None);
        for class in all {
            let stride = class.bytes() + class.guard_bytes();
            assert!(!stride.is_power_of_two() && stride.is_multiple_of(PAGE_BYTES));
            assert!(class.guard_bytes() >= GUARD_BYTES);
            let stack = Stack { lo: PAGE_BYTES, hi: PAGE_BYTES + class.bytes() };
            assert_eq!(stack.class(), class);
        }
    }

    #[test]
    fn stacks_do_not_overlap_and_can_be_written() {
        let carve_some =
            |class| (0..30).map(move |_| (class, carve(class).expect("address space")));
        let mut stacks: Vec<_> = SizeClass::all().flat_map(carve_some).collect();
        stacks.sort_by_key(|(_, stack)| stack.lo);
        for pair in stacks.windows(2) {
            assert!(pair[0].1.hi <= pair[1].1.guard());
        }
        for (class, stack) in stacks {
            assert_eq!(stack.hi - stack.lo, class.bytes());
            assert_eq!(stack.class(), class);
            // SAFETY: the stack is ours; its lowest and highest words are usable.
            unsafe {
                (stack.lo as *mut u64).write_volatile(1);
                ((stack.hi - 8) as *mut u64).write_volatile(2);
            }
        }
    }
}
