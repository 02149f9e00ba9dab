#![allow(unsafe_code, reason = "tables in raw memory")]
//! Regions: ranges of code addresses, each with its tables of words and descriptors.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::kind::{Flags, HAS_STACK_MAP, HAS_UNSAFE_POINTS, PREEMPTIBLE};
use super::primitive::AtomicU64;
use super::protocol::{self, Slots};
use crate::abi::Signature;
use crate::jit::annotations::Checked;
use crate::jit::error::JitError;
use crate::jit::frame::{FrameReport, GRANULE_BYTES};
use crate::jit::mem;
use crate::jit::unwind::Words;

/// How many regions a process can have.
const REGION_LIMIT: usize = 64;

/// What the registry keeps of a piece of code besides its words. Immutable once published.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Descriptor {
    pub(super) len: u32,
    pub(super) report: FrameReport,
    pub(super) name: &'static str,
    pub(super) signature: Option<&'static Signature>,
    pub(super) user_data: u64,
    /// `None`: nothing is said of the code.
    pub(super) annotations: Option<&'static Checked>,
}

// One cache line: a lookup of a name, or of a frame, loads no other.
const _: () = assert!(size_of::<Descriptor>() == 64);

/// A piece of code is shorter than this.
pub(super) const CODE_LIMIT_BYTES: usize = 1 << 32;

/// One range of code addresses and its tables.
pub(crate) struct Region {
    pub(super) base: usize,
    pub(super) size: usize,
    words: &'static [AtomicU64],
    pub(super) slots: Slots<Descriptor>,
    /// The lock makes publish and retire one at a time.
    writer: Mutex<Writer>,
}

/// What only publish and retire need.
struct Writer {
    /// Number of the next descriptor.
    next_slot: u32,
    /// Bytes of the table of words that become writable at once.
    unit_bytes: usize,
    /// Which units are writable. The others read as zeroes and take no memory.
    writable: Box<[bool]>,
}

/// The least that becomes writable of a table of words at once.
const MIN_UNIT_BYTES: usize = 64 << 10;
/// How many units a table has at most: each may become a mapping of its own.
const MAX_UNITS: usize = 1024;

impl Writer {
    fn new(words: &'static [AtomicU64]) -> Self {
        let bytes = size_of_val(words);
        let unit_bytes = bytes.div_ceil(MAX_UNITS).next_power_of_two().max(MIN_UNIT_BYTES);
        let writable = vec![false; bytes.div_ceil(unit_bytes)].into_boxed_slice();
        Self { next_slot: 0, unit_bytes, writable }
    }

    /// Makes the words of granules writable.
    fn prepare(
        &mut self,
        words: &'static [AtomicU64],
        (first, count): (usize, usize),
    ) -> Result<(), JitError> {
        let unit_of = |granule: usize| granule * size_of::<AtomicU64>() / self.unit_bytes;
        for unit in unit_of(first)..=unit_of(first + count - 1) {
            if !self.writable[unit] {
                // SAFETY: `Region::add` has reserved the table.
                unsafe { mem::make_writable(words, unit * self.unit_bytes, self.unit_bytes)? };
                self.writable[unit] = true;
            }
        }
        Ok(())
    }
}

// A panic while the lock is held leaves the tables whole: the words are stored last.
impl std::panic::RefUnwindSafe for Region {}

/// A region as lookups find it.
struct RegionEntry {
    base: AtomicUsize,
    size: AtomicUsize,
    region: AtomicPtr<Region>,
}

impl RegionEntry {
    /// The region itself.
    ///
    /// # Safety
    /// The caller has loaded a size with Acquire that is not zero.
    #[inline]
    unsafe fn region(&self) -> &'static Region {
        let region = self.region.load(Ordering::Relaxed);
        // SAFETY: the entry was filled before its size was published. Said on its own, since the
        // compiler compares the pointer with null again in each lookup otherwise.
        unsafe { std::hint::assert_unchecked(!region.is_null()) };
        // SAFETY: the entry was filled before its size was published, and regions are leaked.
        unsafe { &*region }
    }
}

/// What lookups walk.
///
/// Invariant: entries are filled from the front and never change afterwards. An entry counts once
/// its size, which is stored last with Release, is not zero; `base` and `region` are valid then.
static REGIONS: [RegionEntry; REGION_LIMIT] = [const {
    RegionEntry {
        base: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        region: AtomicPtr::new(ptr::null_mut()),
    }
}; REGION_LIMIT];
/// How many entries are filled. Changed under [`REGION_LOCK`] only.
static REGION_COUNT: AtomicUsize = AtomicUsize::new(0);
/// Taken to add a region.
static REGION_LOCK: Mutex<()> = Mutex::new(());
/// Whether preemptible code was ever published. Never reset: retired code may still run.
static HAS_PREEMPTIBLE_CODE: AtomicBool = AtomicBool::new(false);

/// Whether there is code that can be interrupted for another goroutine.
#[cfg(feature = "runtime")]
pub(crate) fn has_preemptible_code() -> bool {
    HAS_PREEMPTIBLE_CODE.load(Ordering::Relaxed)
}

/// A piece of code to publish.
pub(crate) struct Publication {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) report: FrameReport,
    pub(crate) flags: Flags,
    pub(crate) name: &'static str,
    pub(crate) signature: Option<&'static Signature>,
    pub(crate) user_data: u64,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base, self.base + self.size)
    }
}

impl Region {
    /// Makes the tables for `size` bytes at `base` and adds them to what lookups walk.
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
        // SAFETY: an atomic word is valid when zero.
        let words = unsafe { mem::reserve_table::<AtomicU64>(granules)? };
        let writer = Mutex::new(Writer::new(words));
        let region: &'static Self =
            Box::leak(Box::new(Self { base, size, words, slots: Slots::new(), writer }));
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

    /// The words from that of the granule at `address` on, which is in this region, as unwind rules
    /// read them.
    pub(crate) fn words_at(&self, address: usize) -> Words {
        let (granule, _) = self.granules(address, 0);
        Words {
            address: self.words[granule..].as_ptr() as usize,
            back_bits: protocol::FLAG_BITS..protocol::FLAG_BITS + protocol::BACK_BITS,
        }
    }

    /// Publishes code whose bytes are in place. The range is this region's and unpublished.
    pub(crate) fn publish(
        &'static self,
        new: &Publication,
        annotations: Checked,
    ) -> Result<StubId, JitError> {
        debug_assert!(new.start.is_multiple_of(GRANULE_BYTES) && new.len > 0);
        debug_assert!(new.start >= self.base && new.start + new.len <= self.base + self.size);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let range = self.granules(new.start, new.len);
        writer.prepare(self.words, range)?;
        let slot = writer.next_slot;
        if let Some(len) = self.slots.missing_block(slot) {
            // SAFETY: a cell of possibly uninitialised data is valid when zero.
            self.slots.add_block(slot, unsafe { mem::zeroed_block(len)? });
        }
        writer.next_slot += 1;
        let Publication { start, len, report, flags, name, signature, user_data } = *new;
        if annotations.preemptible.is_some() {
            HAS_PREEMPTIBLE_CODE.store(true, Ordering::Relaxed);
        }
        let flags = flags.0
            | match annotations.preemptible.as_deref() {
                None => 0,
                Some([]) => PREEMPTIBLE,
                Some(_) => PREEMPTIBLE | HAS_UNSAFE_POINTS,
            }
            | if annotations.stack_map.is_some() { HAS_STACK_MAP } else { 0 };
        let needs_annotations = flags & (HAS_UNSAFE_POINTS | HAS_STACK_MAP) != 0;
        let annotations = needs_annotations.then(|| &*Box::leak(Box::new(annotations)));
        let len32 = u32::try_from(len).expect("every publisher refuses longer code");
        let descriptor = Descriptor { len: len32, report, name, signature, user_data, annotations };
        // SAFETY: 1. the lock is held. 2. The caller owns the range, which is unpublished, and the
        // slot is new. 3. Its block was added under this lock.
        unsafe {
            let orders = protocol::ORDERS;
            protocol::publish(self.words, &self.slots, slot, descriptor, range, flags, orders);
        }
        Ok(StubId { region: self, start, len })
    }

    /// The word of the granule at an address of this region, and the start of the code there.
    #[inline]
    pub(super) fn find(&self, at: usize) -> Option<(u64, usize)> {
        let granule = (at - self.base) / GRANULE_BYTES;
        let (word, head) = protocol::lookup(self.words, granule, protocol::ORDERS)?;
        Some((word, self.base + head * GRANULE_BYTES))
    }

    /// The first region, if the address is in it: that of the process's shared arena, which nearly
    /// every lookup is about.
    #[inline]
    pub(super) fn first(at: usize) -> Option<&'static Self> {
        let entry = &REGIONS[0];
        let size = entry.size.load(Ordering::Acquire);
        if at.wrapping_sub(entry.base.load(Ordering::Relaxed)) < size {
            // SAFETY: the size was seen.
            return Some(unsafe { entry.region() });
        }
        None
    }

    /// The region of an address that is not in the first one.
    #[inline]
    pub(super) fn further(at: usize) -> Option<&'static Self> {
        for entry in &REGIONS[1..] {
            let size = entry.size.load(Ordering::Acquire);
            if size == 0 {
                return None;
            }
            if at.wrapping_sub(entry.base.load(Ordering::Relaxed)) < size {
                // SAFETY: the size was seen.
                return Some(unsafe { entry.region() });
            }
        }
        None
    }
}

/// A piece of published code: what retires it.
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
        let _lock = self.region.writer.lock().unwrap_or_else(PoisonError::into_inner);
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
