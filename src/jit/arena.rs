//! Code memory and the way of a stub from its bytes to the registry: one sub-arena per frame class,
//! and windows for threads that emit at the same time.
//!
//! Code is emitted at its final address, so the place must be known before the length is. A thread
//! that emits leases a *window* that has room for the largest piece it may emit (towards the end of
//! a sub-arena, as much room as there is); no lock is held while code is emitted. A window before
//! free space grows into it, so that a single thread that emits leaves no holes.

#[cfg(feature = "runtime")]
mod landing;
mod personality;
#[cfg(feature = "runtime")]
mod stubs;

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use dynasmrt::VecAssembler;
use dynasmrt::relocations::Relocation;

use super::annotations::{Annotations, Checked};
use super::error::JitError;
use super::frame::{FrameClass, FrameReport, GRANULE_BYTES, HOST};
use super::leaf;
use super::mem::{self, CHUNK_BYTES, CodeMemory, MemoryMode, Placement};
use super::registry::{Flags, Publication, Region, StubId, StubKind};
use super::unwind::{self, Covered};
use crate::abi::{Arch, Signature};

crate::for_runtime! {
    pub(crate) use landing::continue_panic;
    pub(crate) use stubs::STUB_BYTES;
}

const MIN_ARENA_BYTES: usize = 4 << 20;
const MAX_WINDOW_BYTES: usize = 4 << 20;
const MAX_CODE_BYTES: usize = 1 << 20;
/// The largest step in which memory is committed.
const MAX_COMMIT_BYTES: usize = 1 << 20;

/// What follows code that ends with its granule: `int3`, or what is no instruction of AArch64.
const PADDING: &[u8] = match HOST {
    Arch::Amd64 => &[0xcc],
    _ => &[0; 4],
};

/// A reservation with its sub-arenas and its region in the registry. Never freed.
pub(crate) struct Arena {
    memory: CodeMemory,
    region: &'static Region,
    classes: [SubArena; FrameClass::ALL.len()],
    max_code_bytes: usize,
    checked: bool,
}

/// The part of the arena that one unwind rule covers. Offsets are from the arena's base.
struct SubArena {
    range: Range<usize>,
    window_bytes: usize,
    space: Mutex<Space>,
}

struct Space {
    /// Where the next window is cut.
    next: usize,
    /// Windows that are not leased now.
    open: Vec<Window>,
}

struct Window {
    /// Where the next piece of code goes.
    at: usize,
    /// End of the bytes that are committed; a multiple of the chunk size.
    committed: usize,
    /// How many bytes were committed in this window.
    grown: usize,
    end: usize,
}

/// A stub to emit: all that the registry will know of it.
pub(crate) struct StubSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: StubKind,
    pub(crate) class: FrameClass,
    pub(crate) signature: Option<&'static Signature>,
    pub(crate) user_data: u64,
}

/// How much code memory is reserved.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reserve {
    /// At least this many bytes, or an error.
    Exactly(usize),
    /// As many bytes, or the half, a quarter and so on where the host has less address space.
    AtMost(usize),
}

impl Reserve {
    fn reserve(
        self,
        mode: MemoryMode,
        placement: Placement,
    ) -> Result<(CodeMemory, &'static Region), JitError> {
        let (Self::Exactly(bytes) | Self::AtMost(bytes)) = self;
        let wanted = bytes.max(MIN_ARENA_BYTES).checked_next_multiple_of(64 * CHUNK_BYTES);
        let wanted = wanted.ok_or_else(mem::too_large)?;
        let may_shrink = matches!(self, Self::AtMost(_));
        let halved = |size: usize| (size / 2).next_multiple_of(64 * CHUNK_BYTES);
        let mut size = wanted;
        let mut why = None;
        // Where address space is limited, the rest of the process needs most of it.
        if may_shrink && let Some(left) = mem::address_space_left() {
            while size > left / 4 && size > MIN_ARENA_BYTES {
                size = halved(size);
                why = Some(format!(
                    "RLIMIT_AS leaves {} MiB, of which a quarter may be code",
                    left >> 20
                ));
            }
        }
        loop {
            let reserved = CodeMemory::reserve(size, mode, placement).and_then(|memory| {
                let region = Region::add(memory.base(), size)?;
                Ok((memory, region))
            });
            match reserved {
                Ok((mut memory, region)) => {
                    if let Some(why) = why {
                        memory.report_shrunk(wanted, &why);
                    }
                    return Ok((memory, region));
                }
                Err(error @ JitError::NoMemory { .. }) if may_shrink && size > MIN_ARENA_BYTES => {
                    size = halved(size);
                    why = Some(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Arena {
    /// Reserves code memory and makes it known to the registry and to the process's unwinder.
    pub(crate) fn new(
        reserve: Reserve,
        mode: MemoryMode,
        placement: Placement,
        checked: bool,
    ) -> Result<&'static Self, JitError> {
        mem::watch_forks();
        mem::pin_module();
        let (memory, region) = reserve.reserve(mode, placement)?;
        // Root 1/64, leaf 2/16, entry 1/16, barrier and win64 1/32 each, saved 4/16, standard the
        // rest.
        let size = memory.size();
        let mut at = 0;
        let mut sub_arena = |bytes: usize| {
            let range = at..at + bytes;
            at += bytes;
            let window_bytes = (bytes / 4).clamp(CHUNK_BYTES, MAX_WINDOW_BYTES);
            let window_bytes = window_bytes.next_multiple_of(CHUNK_BYTES);
            let space = Mutex::new(Space { next: range.start, open: Vec::new() });
            SubArena { range, window_bytes, space }
        };
        let (root, leaf) = (sub_arena(size / 64), sub_arena(size / 8));
        let entry = sub_arena(size / 16);
        let (barrier, win64) = (sub_arena(size / 32), sub_arena(size / 32));
        let saved = sub_arena(size / 4);
        let standard = sub_arena(size - size / 64 - size / 8 - size / 16 * 2 - size / 4);
        // In the order of `FrameClass`.
        let classes = [standard, saved, entry, root, leaf, barrier, win64];
        let ranges: Vec<_> = FrameClass::ALL
            .iter()
            .zip(&classes)
            .map(|(&class, sub)| {
                let range = memory.base() + sub.range.start..memory.base() + sub.range.end;
                let words = region.words_at(range.start);
                Covered { range, class, words, personality: personality::personality_of(class) }
            })
            .collect();
        unwind::register(&ranges);
        let max_code_bytes = MAX_CODE_BYTES.min(size / 16);
        Ok(Box::leak(Box::new(Self { memory, region, classes, max_code_bytes, checked })))
    }

    pub(crate) fn memory(&self) -> &CodeMemory {
        &self.memory
    }

    /// The longest piece of code that `emit` takes.
    pub(crate) fn max_code_bytes(&self) -> usize {
        self.max_code_bytes
    }

    /// Emits at most `bound_bytes` of code of a user, and publishes them. `body` emits, and returns
    /// annotations; no lock is held while it runs, so it may emit other code.
    pub(crate) fn emit_annotated<R: Relocation>(
        &'static self,
        spec: &StubSpec<'_>,
        bound_bytes: usize,
        body: impl FnOnce(&mut VecAssembler<R>) -> Annotations,
    ) -> Result<StubId, JitError> {
        self.emit_code(spec, bound_bytes, |ops| (FrameReport::NONE, body(ops)))
    }

    fn emit_code<R: Relocation>(
        &'static self,
        spec: &StubSpec<'_>,
        bound_bytes: usize,
        body: impl FnOnce(&mut VecAssembler<R>) -> (FrameReport, Annotations),
    ) -> Result<StubId, JitError> {
        if mem::is_forked_child() {
            return Err(JitError::ForkedChild);
        }
        let mut lease = self.lease(spec.class, bound_bytes)?;
        let start = self.memory.base() + lease.window().at;
        let mut ops = VecAssembler::new_with_capacity(start, 256, 0, 0, 8, 0, 8);
        let (report, annotations) = body(&mut ops);
        let mut code = ops.finalize().map_err(|error| JitError::assemble(spec.name, error))?;
        if code.is_empty() {
            let rule = "it has no instruction";
            return Err(JitError::FrameContract { name: spec.name.into(), rule });
        }
        if spec.class.has_prologue() && code.len().is_multiple_of(GRANULE_BYTES) {
            // A call may be the last instruction: its return address must not be the next stub's
            // first byte, where unwinders see no frame yet.
            code.extend(PADDING);
        }
        if code.len() > bound_bytes {
            return Err(JitError::CodeTooLarge { bytes: code.len(), limit_bytes: bound_bytes });
        }
        if code.len() > lease.window().room() {
            return Err(self.classes[spec.class as usize].full(spec.class, code.len()));
        }
        spec.class.check(spec.name, &code)?;
        if spec.kind == StubKind::User
            && spec.class == FrameClass::Leaf
            && (self.checked || cfg!(debug_assertions))
            && let Some(offset_bytes) = leaf::call_in(HOST, &code)
        {
            return Err(JitError::LeafCalls { name: spec.name.into(), offset_bytes });
        }
        let annotations = annotations.check(spec.name, spec.class, code.len())?;
        let name = intern(spec.name);
        self.publish(lease.window(), spec, &code, report, name, annotations)
    }

    /// Copies code to the front of a window and makes it known.
    fn publish(
        &'static self,
        window: &mut Window,
        spec: &StubSpec<'_>,
        code: &[u8],
        report: FrameReport,
        name: &'static str,
        annotations: Checked,
    ) -> Result<StubId, JitError> {
        let start = self.memory.base() + window.at;
        self.place(window, code)?;
        let publication = Publication {
            start,
            len: code.len(),
            report,
            flags: Flags::new(spec.kind, spec.class),
            name,
            signature: spec.signature,
            user_data: spec.user_data,
        };
        let id = self.region.publish(&publication, annotations)?;
        window.at += code.len().next_multiple_of(self.memory.publish_unit_bytes());
        Ok(id)
    }

    /// Copies code to the front of a window.
    fn place(&self, window: &mut Window, code: &[u8]) -> Result<(), JitError> {
        while window.committed < window.at + code.len() {
            // Each step is as large as all before, so that mappings are few and memory that is
            // committed too early is less than what is used.
            let step = window.grown.clamp(CHUNK_BYTES, MAX_COMMIT_BYTES);
            let step = step.min(window.end - window.committed);
            self.memory.commit(window.committed, step)?;
            window.committed += step;
            window.grown += step;
        }
        self.memory.write(window.at, code)
    }

    /// A window of the class with `bytes` of room, or with as much as there still is.
    fn lease(&'static self, class: FrameClass, bytes: usize) -> Result<Lease, JitError> {
        let sub = &self.classes[class as usize];
        let bytes = bytes.next_multiple_of(self.memory.publish_unit_bytes().max(GRANULE_BYTES));
        let mut space = sub.space.lock().unwrap_or_else(PoisonError::into_inner);
        let Space { next, open } = &mut *space;
        let cut = bytes.next_multiple_of(CHUNK_BYTES).max(sub.window_bytes);
        let end = (*next + cut).min(sub.range.end);
        let window = if let Some(fits) = open.iter().position(|w| w.room() >= bytes) {
            open.swap_remove(fits)
        } else if let Some(last) = open.iter().position(|w| w.end == *next)
            && end > *next
        {
            // The last window that was cut grows in place.
            *next = end;
            Window { end, ..open.swap_remove(last) }
        } else if end > *next {
            let at = std::mem::replace(next, end);
            Window { at, committed: at, grown: 0, end }
        } else {
            // Nothing is left to cut: what is emitted may be shorter than its bound.
            let largest = (0..open.len()).max_by_key(|&i| open[i].room());
            match largest.filter(|&i| open[i].room() > 0) {
                Some(largest) => open.swap_remove(largest),
                None => return Err(sub.full(class, bytes)),
            }
        };
        Ok(Lease { sub, window: Some(window) })
    }
}

impl Window {
    fn room(&self) -> usize {
        self.end - self.at
    }
}

impl SubArena {
    fn full(&self, class: FrameClass, needed_bytes: usize) -> JitError {
        JitError::OutOfCodeSpace {
            needed_bytes,
            class: class.name(),
            class_bytes: self.range.len(),
        }
    }
}

/// A window while a thread emits into it. It becomes free when this is dropped, also by a panic.
struct Lease {
    sub: &'static SubArena,
    window: Option<Window>,
}

impl Lease {
    fn window(&mut self) -> &mut Window {
        self.window.as_mut().expect("a lease has its window until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut space = self.sub.space.lock().unwrap_or_else(PoisonError::into_inner);
        space.open.extend(self.window.take());
    }
}

/// One copy of each name, for ever: descriptors outlive every handle.
pub(crate) fn intern(name: &str) -> &'static str {
    use std::collections::HashSet;
    static NAMES: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let names = NAMES.get_or_init(Mutex::default);
    let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&known) = names.get(name) {
        return known;
    }
    let new: &'static str = String::from(name).leak();
    names.insert(new);
    new
}
