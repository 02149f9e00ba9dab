#![allow(unsafe_code, reason = "writes code memory")]
//! Executable memory: one reservation that is written through another mapping than it runs from.
//!
//! No page is ever writable and executable through one mapping, and where memory is mapped twice no
//! page ever gains execution. What is reserved is inaccessible and takes no memory until it is
//! committed, in steps of 64 KiB or more. In this order of preference:
//!
//! 1. **Dual map of shared anonymous memory.** A step is mapped readable and executable at its
//!    place, for ever, and duplicated for writing at another address, kept out of forked children.
//!    Profilers take it for code that was emitted, which they do not of a memfd.
//! 2. **Dual map of a memfd**, where security modules allow files to be executable only.
//! 3. **Mprotect batch**, where neither can be mapped executable: private pages go none ->
//!    read+write -> read+execute once. A page that holds published code is never flipped back, so
//!    every publication takes whole pages.
//!
//! Bytes that hold no code are `int3`.
//!
//! This file is the facade: it decides, and all system calls of `jit` are in `linux.rs`.

mod limits;
mod linux;

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

use super::error::JitError;
use super::frame::{CALL_REACH_BYTES, GRANULE_BYTES};
use linux::Shared;

pub(crate) use limits::address_space_left;
#[cfg(feature = "runtime")]
pub(crate) use limits::{mappings, max_mappings};
#[cfg(feature = "runtime")]
pub(crate) use linux::reserve_private;
pub(crate) use linux::{make_writable, reserve_table, symbol_exists, zeroed_block};

/// Commit unit of the dual map.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// x86-64 `int3`. On AArch64 four of them are no instruction either.
const INT3: u8 = 0xcc;

/// How code memory is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MemoryMode {
    /// Dual map where the host allows it, mprotect batch otherwise.
    #[default]
    Auto,
    /// Shared memory mapped twice, or an error.
    DualMap,
    /// Private pages that are protected once they are written.
    MprotectBatch,
}

/// Where the reservation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Placement {
    /// Within reach of a direct call from the program's text where there is room, else anywhere.
    #[default]
    Near,
    /// At an address of the kernel's choice: helpers are called through a cell.
    Anywhere,
}

enum Backend {
    DualMap {
        shared: Shared,
        /// Where each chunk is written; 0 before it is committed.
        views: Box<[AtomicUsize]>,
    },
    MprotectBatch,
}

/// A reservation of executable memory.
pub(crate) struct CodeMemory {
    base: usize,
    size: usize,
    backend: Backend,
    near: bool,
    /// One sentence for `environment()`.
    report: String,
}

impl Drop for CodeMemory {
    /// Runs only when an arena could not be completed: nothing was published.
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and no address in it has escaped.
        unsafe { linux::unmap(self.base, self.size) };
    }
}

impl CodeMemory {
    /// Reserves `size` bytes (a multiple of the chunk size).
    pub(crate) fn reserve(
        size: usize,
        mode: MemoryMode,
        placement: Placement,
    ) -> Result<Self, JitError> {
        debug_assert!(size.is_multiple_of(CHUNK_BYTES));
        match mode {
            MemoryMode::DualMap => Self::dual_map(size, placement),
            MemoryMode::MprotectBatch => Self::mprotect_batch(size, placement, "asked for"),
            MemoryMode::Auto => match Self::dual_map(size, placement) {
                // Without memory the other way fails, too: less may fit.
                Ok(memory) => Ok(memory),
                Err(error @ JitError::NoMemory { .. }) => Err(error),
                Err(why) => Self::mprotect_batch(size, placement, &why.to_string()),
            },
        }
    }

    fn dual_map(size: usize, placement: Placement) -> Result<Self, JitError> {
        let anonymous = Self::dual_map_of(Shared::Anonymous, "shared anonymous", size, placement);
        let Err(error) = anonymous else {
            return anonymous;
        };
        for (flag, flag_name) in linux::CODE_FILE_FLAGS {
            let name = format!("memfd, {flag_name}; {error}");
            let of_file = Shared::new_file(size, flag)
                .and_then(|file| Self::dual_map_of(file, &name, size, placement));
            if of_file.is_ok() {
                return of_file;
            }
        }
        Err(error)
    }

    fn dual_map_of(
        shared: Shared,
        name: &str,
        size: usize,
        placement: Placement,
    ) -> Result<Self, JitError> {
        let (base, near) = reserve_code(size, placement)?;
        // Only a mapping tells whether this host lets the memory be executable. Afterwards the
        // chunk is inaccessible again, until the arena commits it.
        // SAFETY: the first chunk of the reservation that was just made.
        let inherited = match unsafe { shared.map(base, 0, CHUNK_BYTES) } {
            Ok(view) => {
                // SAFETY: both views were just made, and no address in them has escaped.
                unsafe {
                    linux::unmap(view.start as usize, CHUNK_BYTES);
                    linux::unmap_part(base, CHUNK_BYTES);
                }
                view.is_inherited
            }
            Err(error) => {
                // SAFETY: the mapping holds nothing, and no address in it has escaped.
                unsafe { linux::unmap(base, size) };
                return Err(error);
            }
        };
        let report = format!(
            "dual map ({name}), {} MiB at {base:#x}, {}{}",
            size >> 20,
            if near {
                "within reach of the text"
            } else {
                "out of reach of the text: calls go through cells"
            },
            if inherited {
                "; forked children inherit the writable view, since madvise(2) is refused"
            } else {
                ""
            },
        );
        let views = (0..size / CHUNK_BYTES).map(|_| AtomicUsize::new(0)).collect();
        Ok(Self { base, size, backend: Backend::DualMap { shared, views }, near, report })
    }

    fn mprotect_batch(size: usize, placement: Placement, why: &str) -> Result<Self, JitError> {
        let (base, near) = reserve_code(size, placement)?;
        let report = format!("mprotect batch, {} MiB at {base:#x} ({why})", size >> 20);
        Ok(Self { base, size, backend: Backend::MprotectBatch, near, report })
    }

    /// Adds to the report that a larger reservation was wanted.
    pub(crate) fn report_shrunk(&mut self, wanted: usize, why: &str) {
        self.report += &format!("; {} MiB do not fit: {why}", wanted >> 20);
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Whether every byte of the reservation reaches the program's text with a direct call.
    pub(crate) fn is_near(&self) -> bool {
        self.near
    }

    pub(crate) fn report(&self) -> &str {
        &self.report
    }

    /// What the size of a publication is a multiple of: a page where pages are flipped one by one.
    pub(crate) fn publish_unit_bytes(&self) -> usize {
        match self.backend {
            Backend::DualMap { .. } => GRANULE_BYTES,
            Backend::MprotectBatch => linux::page_bytes(),
        }
    }

    /// Makes whole chunks from offset `at` on ready for code: executable, and `int3` everywhere.
    pub(crate) fn commit(&self, at: usize, bytes: usize) -> Result<(), JitError> {
        debug_assert!(at.is_multiple_of(CHUNK_BYTES) && bytes.is_multiple_of(CHUNK_BYTES));
        debug_assert!(bytes > 0 && at + bytes <= self.size);
        let Backend::DualMap { shared, views } = &self.backend else {
            return Ok(());
        };
        // SAFETY: pages of the reservation that only the caller uses, which holds the window that
        // they belong to. They are not committed.
        let view = unsafe { shared.map(self.base + at, at, bytes)? };
        // SAFETY: the view was just made, has that size and is writable.
        unsafe { ptr::write_bytes(view.start, INT3, bytes) };
        for (chunk, cell) in views[at / CHUNK_BYTES..][..bytes / CHUNK_BYTES].iter().enumerate() {
            cell.store(view.start as usize + chunk * CHUNK_BYTES, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies finished code to offset `at`, which is committed, unpublished and aligned to the
    /// publish unit.
    pub(crate) fn write(&self, at: usize, code: &[u8]) -> Result<(), JitError> {
        assert!(at.checked_add(code.len()).is_some_and(|end| end <= self.size));
        match &self.backend {
            Backend::DualMap { views, .. } => {
                // Views of chunks that were committed apart are apart.
                let mut rest = code;
                while !rest.is_empty() {
                    let at = at + code.len() - rest.len();
                    let within = at % CHUNK_BYTES;
                    let (part, others) = rest.split_at(rest.len().min(CHUNK_BYTES - within));
                    let view = views[at / CHUNK_BYTES].load(Ordering::Relaxed);
                    assert_ne!(view, 0, "code is written to committed memory");
                    // SAFETY: in bounds of the view of a chunk; the caller owns the range and
                    // nothing in it is published, so no other thread reads or runs these bytes.
                    unsafe {
                        let to = (view as *mut u8).add(within);
                        ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                    }
                    rest = others;
                }
            }
            Backend::MprotectBatch => {
                let bytes = code.len().next_multiple_of(linux::page_bytes());
                let start = (self.base + at) as *mut u8;
                // SAFETY: whole pages of this mapping that hold no published code.
                unsafe { linux::flip_to_writable(start, bytes)? };
                // SAFETY: the pages are writable now, and no other thread knows them.
                unsafe {
                    ptr::copy_nonoverlapping(code.as_ptr(), start, code.len());
                    ptr::write_bytes(start.add(code.len()), INT3, bytes - code.len());
                }
                // SAFETY: the same pages.
                unsafe { linux::flip_to_executable(start, bytes)? };
            }
        }
        // SAFETY: the range is in the committed part of the view that runs.
        unsafe { linux::synchronize_instructions(self.base + at, code.len()) };
        Ok(())
    }
}

/// Set in a child after fork(2): the code memory is the parent's too.
static FORKED: AtomicBool = AtomicBool::new(false);

/// A word that is 1 in this process, and 0 in every child that has a copy of its memory and has
/// called no handler of pthread_atfork(3): of `_Fork` and clone(2). `None`: the kernel has no such
/// memory.
static WIPED_IN_CHILDREN: OnceLock<Option<&'static AtomicUsize>> = OnceLock::new();

extern "C" fn after_fork_in_child() {
    FORKED.store(true, Ordering::Relaxed);
    if let Some(Some(word)) = WIPED_IN_CHILDREN.get() {
        word.store(1, Ordering::Relaxed);
    }
}

/// From now on forked children are told apart.
pub(crate) fn watch_forks() {
    WIPED_IN_CHILDREN.get_or_init(|| {
        linux::call_in_forked_children(after_fork_in_child);
        let word = linux::word_wiped_in_children();
        word.inspect(|word| word.store(1, Ordering::Relaxed))
    });
}

/// Whether this process shares its code memory with its parent.
pub(crate) fn is_forked_child() -> bool {
    FORKED.load(Ordering::Relaxed) || is_bare_child()
}

/// Whether this process is a child in which the C library did not run its handlers of forks.
pub(crate) fn is_bare_child() -> bool {
    let word = WIPED_IN_CHILDREN.get().copied().flatten();
    word.is_some_and(|word| word.load(Ordering::Relaxed) == 0)
}

/// Keeps the module that this code is in loaded for good: a library that dlclose(3) unmaps must
/// leave no signal handler, unwind section or thread-local behind.
pub(crate) fn pin_module() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| linux::pin_module_of(pin_module as *const () as usize));
}

/// Reserves the view that runs. Returns its base and whether it is near.
fn reserve_code(size: usize, placement: Placement) -> Result<(usize, bool), JitError> {
    if placement == Placement::Near {
        let near = near_candidates(size).find(|&at| linux::reserve_code_at(at, size));
        if let Some(base) = near {
            return Ok((base, true));
        }
    }
    let base = linux::reserve_code(size)?;
    let text = text_address();
    let near = base.abs_diff(text).max((base + size).abs_diff(text)) < CALL_REACH_BYTES;
    Ok((base, near))
}

/// Addresses to try: below the text first (above it the heap grows), then far above it.
fn near_candidates(size: usize) -> impl Iterator<Item = usize> {
    const STEP: usize = 32 << 20;
    let text = text_address() & !(CHUNK_BYTES - 1);
    let lowest = text.saturating_sub(CALL_REACH_BYTES).max(1 << 20);
    let below = (1..).map(move |i| text.checked_sub(size + i * STEP)).map_while(|a| a);
    let above = (16..).map(move |i| text + i * STEP);
    below
        .take_while(move |&a| a >= lowest)
        .chain(above.take_while(move |&a| a + size <= text + CALL_REACH_BYTES))
}

/// An address in the program's text, near the helpers that stubs call.
fn text_address() -> usize {
    reserve_code as *const () as usize
}

/// The error of a reservation that is larger than any address space.
pub(crate) fn too_large() -> JitError {
    linux::too_large()
}
