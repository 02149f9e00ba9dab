//! Hands out code memory: one sub-arena per frame class, windows for those who emit at the same
//! time, and the way of a stub from its bytes to the registry.
//!
//! Code is emitted at its final address, so the place must be known before the length is. Whoever
//! emits leases a *window* that has room for the largest piece it may emit; no lock is held while
//! code is emitted. A window whose neighbour is still free grows into it, so that one thread that
//! emits leaves no holes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use dynasmrt::VecAssembler;
use dynasmrt::x64::X64Relocation;

use super::eh_frame;
use super::error::JitError;
use super::mem::{CHUNK_BYTES, CodeMemory, MemoryMode, Placement};
use super::registry::{Flags, FrameClass, GRANULE_BYTES, Publication, Region, StubId, StubKind};
use crate::abi::Signature;

/// What code is emitted into: dynasm's assembler that writes to a vector, set to the address at
/// which the code will run.
pub type Ops = VecAssembler<X64Relocation>;

/// Room that every stub of the crate itself fits in, apart from its moves.
pub(crate) const STUB_BYTES: usize = 1024;

const MIN_ARENA_BYTES: usize = 4 << 20;
const MAX_WINDOW_BYTES: usize = 4 << 20;
const MAX_CODE_BYTES: usize = 1 << 20;

/// A reservation with its sub-arenas and its region in the registry. Never freed.
pub(crate) struct Arena {
    memory: CodeMemory,
    region: &'static Region,
    classes: [SubArena; FrameClass::ALL.len()],
    max_code_bytes: usize,
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
    /// Windows that nobody leases now.
    open: Vec<Window>,
}

struct Window {
    /// Where the next piece of code goes.
    at: usize,
    /// End of the bytes that are committed; a multiple of the chunk size.
    committed: usize,
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

/// Set in a child after fork(2): the code memory is the parent's too.
static FORKED: AtomicBool = AtomicBool::new(false);

extern "C" fn after_fork_in_child() {
    FORKED.store(true, Ordering::Relaxed);
}

impl Arena {
    /// Reserves at least `bytes` of code memory and makes it known to the registry and to the
    /// process's unwinder.
    pub(crate) fn new(
        bytes: usize,
        mode: MemoryMode,
        placement: Placement,
    ) -> Result<&'static Self, JitError> {
        watch_forks();
        // Sixteenths: root 1/64, leaf 2/16, entry 1/16, saved 4/16, standard the rest.
        let size = bytes
            .max(MIN_ARENA_BYTES)
            .next_multiple_of(64 * CHUNK_BYTES);
        let memory = CodeMemory::reserve(size, mode, placement)?;
        let region = Region::add(memory.base(), size)?;
        let mut at = 0;
        let mut sub_arena = |bytes: usize| {
            let range = at..at + bytes;
            at += bytes;
            let window_bytes = (bytes / 4).clamp(CHUNK_BYTES, MAX_WINDOW_BYTES);
            let window_bytes = window_bytes.next_multiple_of(CHUNK_BYTES);
            let space = Mutex::new(Space {
                next: range.start,
                open: Vec::new(),
            });
            SubArena {
                range,
                window_bytes,
                space,
            }
        };
        let (root, leaf, entry, saved) = (
            sub_arena(size / 64),
            sub_arena(size / 8),
            sub_arena(size / 16),
            sub_arena(size / 4),
        );
        let standard = sub_arena(size - size / 64 - size / 8 - size / 16 - size / 4);
        // In the order of `FrameClass`.
        let classes = [standard, saved, entry, root, leaf];
        let ranges: Vec<_> = FrameClass::ALL
            .iter()
            .zip(&classes)
            .map(|(&class, sub)| {
                (
                    memory.base() + sub.range.start..memory.base() + sub.range.end,
                    class,
                )
            })
            .collect();
        eh_frame::register(&ranges);
        let max_code_bytes = MAX_CODE_BYTES.min(size / 16);
        Ok(Box::leak(Box::new(Self {
            memory,
            region,
            classes,
            max_code_bytes,
        })))
    }

    pub(crate) fn memory(&self) -> &CodeMemory {
        &self.memory
    }

    /// The longest piece of code that `emit` takes.
    pub(crate) fn max_code_bytes(&self) -> usize {
        self.max_code_bytes
    }

    /// Emits at most `bound_bytes` of code and publishes them.
    ///
    /// `body` emits, and says after how many bytes the frame is complete; it runs without any lock
    /// held, so it may emit other stubs.
    pub(crate) fn emit(
        &'static self,
        spec: &StubSpec<'_>,
        bound_bytes: usize,
        body: impl FnOnce(&mut Ops) -> usize,
    ) -> Result<StubId, JitError> {
        if FORKED.load(Ordering::Relaxed) {
            return Err(JitError::ForkedChild);
        }
        let mut lease = self.lease(spec.class, bound_bytes)?;
        let start = self.memory.base() + lease.window().at;
        let mut ops = Ops::new_with_capacity(start, 256, 0, 0, 8, 0, 8);
        let prologue_bytes = body(&mut ops) as u32;
        let code = ops.finalize().map_err(|error| JitError::Assemble {
            name: spec.name.into(),
            reason: error.to_string(),
        })?;
        if code.is_empty() {
            let rule = "it has no instruction";
            return Err(JitError::FrameLaw {
                name: spec.name.into(),
                rule,
            });
        }
        if code.len() > bound_bytes {
            return Err(JitError::CodeTooLarge {
                bytes: code.len(),
                limit_bytes: bound_bytes,
            });
        }
        check_frame_law(spec, &code)?;
        self.place(lease.window(), &code)?;
        Ok(self.region.publish(&Publication {
            start,
            len: code.len(),
            prologue_bytes,
            flags: Flags::new(spec.kind, spec.class),
            name: intern(spec.name),
            signature: spec.signature,
            user_data: spec.user_data,
        }))
    }

    /// Copies code to the front of a window and takes the space.
    fn place(&self, window: &mut Window, code: &[u8]) -> Result<(), JitError> {
        while window.committed < window.at + code.len() {
            self.memory.commit_chunk(window.committed)?;
            window.committed += CHUNK_BYTES;
        }
        self.memory.write(window.at, code)?;
        window.at += code
            .len()
            .next_multiple_of(self.memory.publish_unit_bytes());
        Ok(())
    }

    /// A window of the class with at least `bytes` of room.
    fn lease(&'static self, class: FrameClass, bytes: usize) -> Result<Lease, JitError> {
        let sub = &self.classes[class as usize];
        let bytes = bytes.next_multiple_of(self.memory.publish_unit_bytes().max(GRANULE_BYTES));
        let mut space = sub.space.lock().unwrap_or_else(PoisonError::into_inner);
        let Space { next, open } = &mut *space;
        let cut = bytes.next_multiple_of(CHUNK_BYTES).max(sub.window_bytes);
        let window = if let Some(fits) = open.iter().position(|w| w.end - w.at >= bytes) {
            open.swap_remove(fits)
        } else if let Some(last) = open
            .iter()
            .position(|w| w.end == *next && w.at + bytes <= sub.range.end)
        {
            // The last window that was cut grows in place.
            let mut window = open.swap_remove(last);
            window.end = (window.end + cut).min(sub.range.end);
            *next = window.end;
            window
        } else if *next + bytes <= sub.range.end {
            let at = *next;
            *next = (at + cut).min(sub.range.end);
            Window {
                at,
                committed: at,
                end: *next,
            }
        } else {
            return Err(JitError::OutOfCodeSpace {
                needed_bytes: bytes,
                class: class.name(),
                class_bytes: sub.range.len(),
            });
        };
        Ok(Lease {
            sub,
            window: Some(window),
        })
    }
}

/// A window while somebody emits into it. It goes back when this is dropped, also by a panic.
struct Lease {
    sub: &'static SubArena,
    window: Option<Window>,
}

impl Lease {
    fn window(&mut self) -> &mut Window {
        self.window
            .as_mut()
            .expect("a lease has its window until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut space = self
            .sub
            .space
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        space.open.extend(self.window.take());
    }
}

/// A framed class starts with `push rbp; mov rbp, rsp`: walks and unwinds rely on it.
fn check_frame_law(spec: &StubSpec<'_>, code: &[u8]) -> Result<(), JitError> {
    const PROLOGUES: [[u8; 4]; 2] = [[0x55, 0x48, 0x89, 0xe5], [0x55, 0x48, 0x8b, 0xec]];
    let framed = matches!(
        spec.class,
        FrameClass::Standard | FrameClass::Saved | FrameClass::Entry
    );
    if framed && !PROLOGUES.iter().any(|p| code.starts_with(p)) {
        return Err(JitError::FrameLaw {
            name: spec.name.into(),
            rule: "its frame class starts with `push rbp; mov rbp, rsp` before anything else; \
                   code that makes no call may be FrameClass::Leaf",
        });
    }
    Ok(())
}

/// Registers the handler that marks forked children, once.
fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register_fork_handler(after_fork_in_child));
}

#[allow(unsafe_code, reason = "pthread_atfork")]
fn register_fork_handler(child: extern "C" fn()) {
    // SAFETY: the handler only stores to an atomic. Where there is no memory to register it, a
    // forked child is not told apart, which only matters to children that emit.
    unsafe { libc::pthread_atfork(None, None, Some(child)) };
}

/// One copy of each name, for ever: descriptors outlive every handle.
fn intern(name: &str) -> &'static str {
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
