#![allow(unsafe_code, reason = "tables in raw memory")]
//! Which code is at an address: the table of every stub, readable in a signal handler.
//!
//! A *region* is a range of addresses with two tables beside it: one word per 64-byte granule, and
//! one descriptor per piece of code. An arena is a region whose memory the crate owns; a
//! [`ForeignRegion`] is one whose memory belongs to somebody else. Regions are never removed, so
//! a look-up is one comparison per region, one load, and (for names) one descriptor.
//!
//! Nothing in the look-up path may take a lock, allocate, panic or touch a thread-local.

mod primitive;
pub(crate) mod protocol;

use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use primitive::{AtomicU64, Slot};

use super::annotations::{Annotations, Checked};
use super::eh_frame;
use super::error::JitError;
use super::frame::FrameClass;
use super::safe_point::{self, SafePoint, UnsafePointRange};
use super::stack_map::StackMap;
use crate::abi::Signature;

/// Code is registered in units of this many bytes.
pub const GRANULE_BYTES: usize = 64;
/// How many regions a process can have.
const REGION_LIMIT: usize = 64;

/// What a piece of code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum StubKind {
    /// Code that a user emitted with `Jit::install`.
    User = 0,
    /// A goroutine switch: gogo, gosave, mcall.
    Switch = 1,
    /// Runs a function on the system stack.
    Systemstack = 2,
    /// First frame of a goroutine.
    GoroutineEntry = 3,
    /// JIT code calls a Rust function.
    GoroutineFn = 4,
    /// Rust calls JIT code.
    Enter = 5,
    /// JIT code starts a goroutine.
    Spawn = 6,
    /// Code in memory that somebody else owns.
    Foreign = 7,
    /// Puts one calling convention in front of another.
    Adapter = 8,
    /// Puts a goroutine aside that was interrupted, or that gives way at a poll, with all of its
    /// machine state.
    Preempt = 9,
    /// Finds out why code did not pass its check of the stack.
    StackCheck = 10,
}

const KINDS: [StubKind; 11] = [
    StubKind::User,
    StubKind::Switch,
    StubKind::Systemstack,
    StubKind::GoroutineEntry,
    StubKind::GoroutineFn,
    StubKind::Enter,
    StubKind::Spawn,
    StubKind::Foreign,
    StubKind::Adapter,
    StubKind::Preempt,
    StubKind::StackCheck,
];

impl StubKind {
    /// The kind in words, as tracebacks print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user code",
            Self::Switch => "switch",
            Self::Systemstack => "systemstack",
            Self::GoroutineEntry => "goroutine entry",
            Self::GoroutineFn => "goroutine function",
            Self::Enter => "enter",
            Self::Spawn => "spawn",
            Self::Foreign => "foreign code",
            Self::Adapter => "adapter",
            Self::Preempt => "preempt",
            Self::StackCheck => "stack check",
        }
    }
}

// Flag word, 18 bits: kind in 0..4, frame class in 4..7, then single bits; RETIRED is bit 17.
const KIND_MASK: u64 = 15;
const CLASS_SHIFT: u32 = 4;
/// The code may be interrupted for another goroutine.
const PREEMPTIBLE: u64 = 1 << 7;
/// Not everywhere: the descriptor says where.
const HAS_UNSAFE_RANGES: u64 = 1 << 8;
/// The descriptor has a stack map.
const HAS_STACK_MAP: u64 = 1 << 9;

/// The flags of a piece of code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags(u64);

impl Flags {
    pub(crate) const fn new(kind: StubKind, class: FrameClass) -> Self {
        Self(kind as u64 | (class as u64) << CLASS_SHIFT)
    }

    #[inline]
    fn kind(self) -> StubKind {
        KINDS[((self.0 & KIND_MASK) as usize).min(KINDS.len() - 1)]
    }

    #[inline]
    fn class(self) -> FrameClass {
        FrameClass::ALL[((self.0 >> CLASS_SHIFT & 7) as usize).min(5)]
    }
}

/// What the registry keeps of a piece of code besides its words. Immutable once published.
#[derive(Clone, Copy)]
struct Descriptor {
    len: u32,
    prologue_bytes: u32,
    name: &'static str,
    signature: Option<&'static Signature>,
    user_data: u64,
    /// Sorted; where preemptible code is not.
    unsafe_ranges: &'static [UnsafePointRange],
    stack_map: Option<&'static StackMap>,
}

// The table is page-aligned: each descriptor is one cache line.
const _: () = assert!(size_of::<Descriptor>() == 64);

/// More than one piece of code can have.
const CODE_LIMIT_BYTES: usize = 1 << 32;

/// One range of code addresses and its tables.
pub(crate) struct Region {
    base: usize,
    size: usize,
    words: &'static [AtomicU64],
    slots: &'static [Slot<Descriptor>],
    /// Number of the next descriptor; the lock makes publish and retire one at a time.
    next_slot: Mutex<u32>,
}

// A panic while the lock is held leaves the tables whole: the words are stored last.
impl std::panic::RefUnwindSafe for Region {}

/// What look-ups walk: the regions by base and size, filled from the front.
struct RegionEntry {
    base: AtomicUsize,
    size: AtomicUsize,
    region: AtomicPtr<Region>,
}

static REGIONS: [RegionEntry; REGION_LIMIT] = [const {
    RegionEntry {
        base: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        region: AtomicPtr::new(ptr::null_mut()),
    }
}; REGION_LIMIT];
static REGION_COUNT: AtomicUsize = AtomicUsize::new(0);
static REGION_LOCK: Mutex<()> = Mutex::new(());
/// Whether preemptible code was ever published.
static HAS_PREEMPTIBLE_CODE: AtomicBool = AtomicBool::new(false);

/// Whether there is code that can be interrupted for another goroutine.
pub(crate) fn has_preemptible_code() -> bool {
    HAS_PREEMPTIBLE_CODE.load(Ordering::Relaxed)
}

/// A piece of code to publish.
pub(crate) struct Publication {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) prologue_bytes: u32,
    pub(crate) flags: Flags,
    pub(crate) name: &'static str,
    pub(crate) signature: Option<&'static Signature>,
    pub(crate) user_data: u64,
}

impl Region {
    /// Makes the tables for `size` bytes at `base` and adds them to what look-ups walk.
    pub(crate) fn add(base: usize, size: usize) -> Result<&'static Self, JitError> {
        let _one_at_a_time = REGION_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let count = REGION_COUNT.load(Ordering::Relaxed);
        if count == REGION_LIMIT {
            return Err(JitError::TooManyRegions { limit: REGION_LIMIT });
        }
        for entry in &REGIONS[..count] {
            let other = entry.base.load(Ordering::Relaxed);
            if other < base + size && base < other + entry.size.load(Ordering::Relaxed) {
                let rule = "it overlaps a region that is registered already";
                return Err(JitError::ForeignRange { range: base..base + size, rule });
            }
        }
        let granules = size.div_ceil(GRANULE_BYTES);
        let words = zeroed_table::<AtomicU64>(granules)?;
        let slots = zeroed_table(granules).inspect_err(|_| {
            // SAFETY: the table that was just made, which nobody knows.
            unsafe { libc::munmap(words.as_ptr().cast_mut().cast(), size_of_val(words)) };
        })?;
        let region: &'static Self =
            Box::leak(Box::new(Self { base, size, words, slots, next_slot: Mutex::new(0) }));
        let entry = &REGIONS[count];
        entry.base.store(base, Ordering::Relaxed);
        entry.region.store(ptr::from_ref(region).cast_mut(), Ordering::Relaxed);
        entry.size.store(size, Ordering::Release);
        REGION_COUNT.store(count + 1, Ordering::Release);
        Ok(region)
    }

    fn granules(&self, start: usize, len: usize) -> (usize, usize) {
        let first = (start - self.base) / GRANULE_BYTES;
        (first, len.div_ceil(GRANULE_BYTES))
    }

    /// Publishes code whose bytes are in place. The range is this region's and unpublished.
    pub(crate) fn publish(&'static self, new: &Publication, annotations: Checked) -> StubId {
        let preemptible = annotations.preemptible.map(|ranges| &*ranges.leak());
        let stack_map = annotations.stack_map.map(|map| &*Box::leak(Box::new(map)));
        debug_assert!(new.start.is_multiple_of(GRANULE_BYTES) && new.len > 0);
        debug_assert!(new.start >= self.base && new.start + new.len <= self.base + self.size);
        let mut next = self.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = *next;
        *next += 1;
        let Publication { start, len, prologue_bytes, flags, name, signature, user_data } = *new;
        if preemptible.is_some() {
            HAS_PREEMPTIBLE_CODE.store(true, Ordering::Relaxed);
        }
        let unsafe_ranges = preemptible.unwrap_or_default();
        let flags = match preemptible {
            None => flags.0,
            Some([]) => flags.0 | PREEMPTIBLE,
            Some(_) => flags.0 | PREEMPTIBLE | HAS_UNSAFE_RANGES,
        };
        let flags = flags | if stack_map.is_some() { HAS_STACK_MAP } else { 0 };
        let descriptor = Descriptor {
            len: u32::try_from(len).expect("who publishes has refused longer code"),
            prologue_bytes,
            name,
            signature,
            user_data,
            unsafe_ranges,
            stack_map,
        };
        let range = self.granules(start, len);
        // SAFETY: 1. the lock is held. 2. The caller owns the range, which is unpublished, and
        // the slot is new; there are as many slots as granules, and code takes at least one.
        unsafe {
            let orders = protocol::ORDERS;
            protocol::publish(self.words, self.slots, slot, descriptor, range, flags, orders);
        }
        StubId { region: self, start, len }
    }

    #[inline]
    fn lookup(&'static self, at: usize, pc: usize) -> Option<StubInfo> {
        let granule = (at - self.base) / GRANULE_BYTES;
        let (word, head) = protocol::lookup(self.words, granule, protocol::ORDERS)?;
        Some(StubInfo { region: self, word, start: self.base + head * GRANULE_BYTES, pc })
    }
}

/// A table of zeroes that costs memory only where it is touched, and is never unmapped.
fn zeroed_table<T>(len: usize) -> Result<&'static [T], JitError> {
    let bytes = len * size_of::<T>();
    // SAFETY: a fresh anonymous mapping.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(JitError::last_os("mmap(2)", "it holds the registry; check RLIMIT_AS"));
    }
    // SAFETY: `bytes` of zeroes, page-aligned, never unmapped. Both element types (an atomic
    // word, a cell of possibly uninitialised data) are valid when zero.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), len) })
}

/// A piece of published code, for whoever will retire it.
#[derive(Clone, Copy)]
pub(crate) struct StubId {
    region: &'static Region,
    start: usize,
    len: usize,
}

impl fmt::Debug for StubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}, {} bytes", self.start, self.len)
    }
}

impl StubId {
    /// Marks the code as retired. Its range stays recognisable for ever.
    pub(crate) fn retire(self) {
        let _lock = self.region.next_slot.lock().unwrap_or_else(PoisonError::into_inner);
        let range = self.region.granules(self.start, self.len);
        protocol::retire(self.region.words, range, protocol::ORDERS);
    }

    pub(crate) fn start(self) -> usize {
        self.start
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }
}

/// What the registry knows of a program counter. Every accessor may be called in a signal handler.
#[derive(Clone, Copy)]
pub struct StubInfo {
    region: &'static Region,
    word: u64,
    start: usize,
    pc: usize,
}

impl StubInfo {
    #[inline]
    fn flags(&self) -> Flags {
        Flags(self.word & ((1 << protocol::FLAG_BITS) - 1))
    }

    fn descriptor(&self) -> Descriptor {
        protocol::descriptor(self.region.slots, self.word)
    }

    /// Address of the first byte.
    #[inline]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Bytes of code.
    pub fn len(&self) -> usize {
        self.descriptor().len as usize
    }

    /// Never: published code has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes from the start after which the frame is complete; 0 where there is none.
    pub(crate) fn prologue_bytes(&self) -> usize {
        self.descriptor().prologue_bytes as usize
    }

    /// The address that was looked up, as bytes from the start.
    #[inline]
    pub fn offset_bytes(&self) -> usize {
        self.pc - self.start
    }

    /// The name that the code was installed with.
    pub fn name(&self) -> &'static str {
        self.descriptor().name
    }

    /// The signature that the stub carries, if it was made for one.
    pub fn signature(&self) -> Option<&'static Signature> {
        self.descriptor().signature
    }

    /// The word that the owner of the code left with it.
    pub fn user_data(&self) -> u64 {
        self.descriptor().user_data
    }

    /// What the code is for.
    #[inline]
    pub fn kind(&self) -> StubKind {
        self.flags().kind()
    }

    /// The law that its frames keep.
    #[inline]
    pub fn frame_class(&self) -> FrameClass {
        self.flags().class()
    }

    /// Whether goroutines may be interrupted in it, outside of its unsafe ranges.
    #[inline]
    pub fn is_preemptible(&self) -> bool {
        self.word & PREEMPTIBLE != 0
    }

    /// Whether a goroutine may be interrupted at the pc that was looked up.
    #[inline]
    pub(crate) fn safe_point(&self) -> SafePoint {
        if !self.is_preemptible() {
            SafePoint::NotPreemptible
        } else if self.word & HAS_UNSAFE_RANGES == 0 {
            SafePoint::ResumeAt(self.offset_bytes())
        } else {
            safe_point::point(self.descriptor().unsafe_ranges, self.offset_bytes())
        }
    }

    /// Where it has live pointers, if its author has said that.
    #[inline]
    pub fn stack_map(&self) -> Option<&'static StackMap> {
        if self.word & HAS_STACK_MAP == 0 { None } else { self.descriptor().stack_map }
    }

    /// Whether its handle was dropped. The code itself stays.
    pub fn is_retired(&self) -> bool {
        self.word & protocol::RETIRED != 0
    }
}

impl fmt::Debug for StubInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({}, {} frame)", self.kind().name(), self.frame_class().name())
    }
}

impl fmt::Display for StubInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jit {}+{:#x}", self.name(), self.offset_bytes())
    }
}

/// What code a return address returns to: that of the call in front of it. A call may be the last
/// instruction of its code.
#[inline]
pub(crate) fn lookup_return(pc: usize) -> Option<StubInfo> {
    lookup_as(pc.wrapping_sub(1), pc)
}

/// What code is at `pc`, if it was registered.
///
/// Code is registered in units of [`GRANULE_BYTES`]: the bytes between the end of a piece of code
/// and the next multiple are found as that code's, with an offset that is not less than its length.
///
/// Callable in a signal handler, from any thread, while others publish and retire. The cost does
/// not depend on the number of stubs.
#[inline]
pub fn lookup(pc: usize) -> Option<StubInfo> {
    lookup_as(pc, pc)
}

/// What code is at `at`, as the answer to a question about `pc`.
#[inline]
fn lookup_as(at: usize, pc: usize) -> Option<StubInfo> {
    // The first region is the process's shared arena: nearly every question is about it.
    let entry = &REGIONS[0];
    // The size is published last.
    let size = entry.size.load(Ordering::Acquire);
    if at.wrapping_sub(entry.base.load(Ordering::Relaxed)) < size {
        // SAFETY: the entry was filled before its size was published, and regions are leaked.
        return unsafe { &*entry.region.load(Ordering::Relaxed) }.lookup(at, pc);
    }
    lookup_further(at, pc)
}

#[inline(never)]
fn lookup_further(at: usize, pc: usize) -> Option<StubInfo> {
    for entry in &REGIONS[1..] {
        let size = entry.size.load(Ordering::Acquire);
        if size == 0 {
            return None;
        }
        if at.wrapping_sub(entry.base.load(Ordering::Relaxed)) < size {
            // SAFETY: as above.
            return unsafe { &*entry.region.load(Ordering::Relaxed) }.lookup(at, pc);
        }
    }
    None
}

/// Code memory that somebody else owns, known to walks and handlers.
///
/// The region lives for ever: its addresses must not come to mean other code.
pub struct ForeignRegion {
    region: &'static Region,
    class: FrameClass,
    published: Mutex<Vec<Range<usize>>>,
}

impl ForeignRegion {
    /// Registers the range, and one unwind rule for all of it.
    ///
    /// # Errors
    /// The range is empty, not aligned to 64 bytes, overlaps a region that is known, the class is
    /// one that only this crate's stubs have, or there is no memory for the tables.
    ///
    /// # Safety
    /// 1. The range stays reserved for code of the caller for the rest of the process.
    /// 2. All code in it keeps the law of `class`.
    pub unsafe fn new(range: Range<usize>, class: FrameClass) -> Result<Self, JitError> {
        let refuse = |rule| JitError::ForeignRange { range: range.clone(), rule };
        if range.is_empty() || range.end > isize::MAX as usize {
            return Err(refuse("the range must not be empty, and lie in user space"));
        }
        if !range.start.is_multiple_of(GRANULE_BYTES) || !range.end.is_multiple_of(GRANULE_BYTES) {
            return Err(refuse("both ends must be multiples of 64 bytes"));
        }
        if matches!(class, FrameClass::Entry | FrameClass::Root) {
            return Err(refuse("entry and root frames are made by the crate's own stubs only"));
        }
        let region = Region::add(range.start, range.len())?;
        eh_frame::register(&[(range.clone(), class)]);
        Ok(Self { region, class, published: Mutex::new(Vec::new()) })
    }

    /// Publishes one function (or any other piece) of the region.
    ///
    /// # Errors
    /// The range leaves the region, is empty, does not start at a multiple of 64 bytes, or shares
    /// a granule of 64 bytes with one that was published before.
    ///
    /// # Safety
    /// The bytes of the code are in place and do not change any more.
    pub unsafe fn publish(&self, name: &str, range: Range<usize>) -> Result<ForeignCode, JitError> {
        // SAFETY: the caller's promise; nothing more is said of the code.
        unsafe { self.publish_with(name, range, Annotations::default()) }
    }

    /// As [`Self::publish`], for code in which goroutines may be interrupted, but for some ranges.
    ///
    /// # Errors
    /// As [`Self::publish`]; an unsafe range is refused, or the code does not start with the
    /// prologue of its frame class.
    ///
    /// # Safety
    /// 1. As for [`Self::publish`].
    /// 2. The code keeps the promises of [`Jit::install_preemptible`](super::Jit::install_preemptible).
    pub unsafe fn publish_preemptible(
        &self,
        name: &str,
        range: Range<usize>,
        unsafe_ranges: Vec<UnsafePointRange>,
    ) -> Result<ForeignCode, JitError> {
        let annotations =
            Annotations { preemptible: Some(unsafe_ranges), ..Annotations::default() };
        // SAFETY: the caller's promises.
        unsafe { self.publish_with(name, range, annotations) }
    }

    /// As [`Self::publish`], for code of which more is known: where goroutines may be interrupted
    /// in it, and where it has pointers.
    ///
    /// # Errors
    /// As [`Self::publish`]; what the annotations say is refused, or they say anything and the code
    /// does not start with the prologue of its frame class.
    ///
    /// # Safety
    /// 1. As for [`Self::publish`].
    /// 2. The code keeps the promises of [`Jit::install_with`](super::Jit::install_with).
    pub unsafe fn publish_with(
        &self,
        name: &str,
        range: Range<usize>,
        annotations: Annotations,
    ) -> Result<ForeignCode, JitError> {
        let refuse = |rule| JitError::ForeignRange { range: range.clone(), rule };
        if range.is_empty() || !range.start.is_multiple_of(GRANULE_BYTES) {
            return Err(refuse("it must start at a multiple of 64 bytes and not be empty"));
        }
        if range.len() >= CODE_LIMIT_BYTES {
            return Err(refuse("one piece of code is shorter than 4 GiB"));
        }
        let end = self.region.base + self.region.size;
        if range.start < self.region.base || range.end > end {
            return Err(refuse("it leaves the region it is published in"));
        }
        let taken = range.start..range.end.next_multiple_of(GRANULE_BYTES);
        if annotations != Annotations::default() {
            // SAFETY: the bytes are in place, by the caller's promise.
            let code = unsafe { std::slice::from_raw_parts(range.start as *const u8, range.len()) };
            super::arena::check_frame_contract(name, self.class, code)?;
        }
        let annotations = annotations.check(name, self.class, range.len())?;
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        if published.iter().any(|p| p.start < taken.end && taken.start < p.end) {
            return Err(refuse("it shares a granule of 64 bytes with code published before"));
        }
        published.push(taken);
        let publication = Publication {
            start: range.start,
            len: range.len(),
            prologue_bytes: 0,
            flags: Flags::new(StubKind::Foreign, self.class),
            name: String::from(name).leak(),
            signature: None,
            user_data: 0,
        };
        Ok(ForeignCode { id: self.region.publish(&publication, annotations) })
    }
}

/// One published piece of foreign code. Dropping it retires the code.
pub struct ForeignCode {
    id: StubId,
}

impl Drop for ForeignCode {
    fn drop(&mut self) {
        self.id.retire();
    }
}
