#![allow(unsafe_code, reason = "writes code memory")]
//! Executable memory: one reservation that is written through another mapping than it runs from.
//!
//! No page is ever writable and executable through one mapping. Two backends keep that rule:
//!
//! * **Dual map.** A memfd is mapped twice: the view that runs (`PROT_NONE` until a 64 KiB chunk
//!   is committed, then read+execute for ever) and the view that is written, at another address,
//!   kept out of forked children.
//! * **Mprotect batch**, where memfds cannot be mapped executable: private pages go none ->
//!   read+write -> read+execute once. A page that holds published code is never flipped back, so
//!   every publication takes whole pages.
//!
//! Bytes that hold no code are `int3`.
//!
//! This file is the facade: it decides, and all system calls of `jit` are in `linux.rs`.

mod linux;

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

use super::error::JitError;
use super::frame::{CALL_REACH_BYTES, GRANULE_BYTES};
use linux::{File, WritableView};

pub(crate) use linux::{discard_table, symbol_exists, zeroed_table};

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
    /// A memfd mapped twice, or an error.
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
    DualMap { writable: WritableView },
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

// SAFETY: the raw mapping inside is plain memory; `write` and `commit_chunk` are only called by the
// arena, which hands out disjoint ranges.
unsafe impl Sync for CodeMemory {}
// SAFETY: as for Sync; nothing is tied to the thread that made it.
unsafe impl Send for CodeMemory {}

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
                Ok(memory) => Ok(memory),
                Err(why) => Self::mprotect_batch(size, placement, &why.to_string()),
            },
        }
    }

    fn dual_map(size: usize, placement: Placement) -> Result<Self, JitError> {
        let mut first_error = None;
        for (flag, flag_name) in linux::CODE_FILE_FLAGS {
            match Self::dual_map_with(size, placement, flag, flag_name) {
                Ok(memory) => return Ok(memory),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.expect("every attempt returned or left its error"))
    }

    fn dual_map_with(
        size: usize,
        placement: Placement,
        flag: u32,
        flag_name: &str,
    ) -> Result<Self, JitError> {
        let file = File::new(size, flag)?;
        // A child must not be able to change its parent's code, so it does not get this view.
        let writable = WritableView::new(&file, size)?;
        let (base, near) = map_code(size, placement, Some(&file))?;
        // Only an mprotect tells whether this host lets a memfd be executable. Afterwards the chunk
        // is inaccessible again, until the arena commits it.
        // SAFETY: the first chunk of the mapping that was just made; it holds no code yet.
        if let Err(error) = unsafe { linux::probe_executable(base, CHUNK_BYTES) } {
            // SAFETY: the mapping holds nothing, and no address in it has escaped.
            unsafe { linux::unmap(base, size) };
            return Err(error);
        }
        let report = format!(
            "dual map (memfd, {flag_name}), {} MiB at {base:#x}, {}",
            size >> 20,
            if near {
                "within reach of the text"
            } else {
                "out of reach of the text: calls go through cells"
            },
        );
        Ok(Self { base, size, backend: Backend::DualMap { writable }, near, report })
    }

    fn mprotect_batch(size: usize, placement: Placement, why: &str) -> Result<Self, JitError> {
        let (base, near) = map_code(size, placement, None)?;
        let report = format!("mprotect batch, {} MiB at {base:#x} ({why})", size >> 20);
        Ok(Self { base, size, backend: Backend::MprotectBatch, near, report })
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    #[cfg(feature = "runtime")]
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

    /// Makes the chunk at offset `at` ready to take code: `int3` everywhere, then executable.
    pub(crate) fn commit_chunk(&self, at: usize) -> Result<(), JitError> {
        debug_assert!(at.is_multiple_of(CHUNK_BYTES) && at < self.size);
        let Backend::DualMap { writable } = &self.backend else {
            return Ok(());
        };
        // SAFETY: the chunk lies in the writable view and holds no code, and only the caller, which
        // holds the window that it belongs to, writes to it.
        unsafe { ptr::write_bytes(writable.start().add(at), INT3, CHUNK_BYTES) };
        // SAFETY: a chunk of this mapping; it was inaccessible until now.
        unsafe { linux::make_executable(self.base + at, CHUNK_BYTES) }
    }

    /// Copies finished code to offset `at`, which is committed, unpublished and aligned to the
    /// publish unit.
    pub(crate) fn write(&self, at: usize, code: &[u8]) -> Result<(), JitError> {
        assert!(at.checked_add(code.len()).is_some_and(|end| end <= self.size));
        match &self.backend {
            Backend::DualMap { writable } => {
                // SAFETY: in bounds by the assertion; the caller owns the range and nothing in it
                // is published, so no other thread reads or runs these bytes.
                unsafe {
                    ptr::copy_nonoverlapping(code.as_ptr(), writable.start().add(at), code.len());
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

/// Maps the view that runs, inaccessible for now. Returns its base and whether it is near.
fn map_code(
    size: usize,
    placement: Placement,
    file: Option<&File>,
) -> Result<(usize, bool), JitError> {
    if placement == Placement::Near {
        let near = near_candidates(size).find(|&at| linux::map_inaccessible_at(at, size, file));
        if let Some(base) = near {
            return Ok((base, true));
        }
    }
    let base = linux::map_inaccessible(size, file)?;
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
    map_code as *const () as usize
}

/// The error of a reservation that is larger than any address space.
pub(crate) fn too_large() -> JitError {
    linux::too_large()
}
