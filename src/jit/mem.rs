#![allow(unsafe_code, reason = "maps and writes code memory")]
//! Executable memory: one reservation that is written through another mapping than it runs from.
//!
//! No page is ever writable and executable through one mapping. Two backends keep that law:
//!
//! * **Dual map.** A memfd is mapped twice: the view that runs (`PROT_NONE` until a 64 KiB chunk
//!   is committed, then read+execute for ever) and the view that is written, at another address,
//!   kept out of forked children.
//! * **Mprotect batch**, where memfds cannot be mapped executable: private pages go none ->
//!   read+write -> read+execute once. A page that holds published code is never flipped back,
//!   so every publication takes whole pages.
//!
//! Bytes that hold no code are `int3`.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::error::JitError;

/// Commit unit of the dual map.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// x86-64 `int3`.
const INT3: u8 = 0xcc;
/// How far `call rel32` reaches, less a margin for the code that is being reached.
const REACH_BYTES: usize = (1 << 31) - (1 << 20);

const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;
const MFD_EXEC: libc::c_uint = 0x10;

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
    /// Within reach of `call rel32` from the program's text where there is room, else anywhere.
    #[default]
    Near,
    /// Where the kernel likes: helpers are called through a cell.
    Anywhere,
}

enum Backend {
    DualMap { writable: MmapRaw },
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

// SAFETY: the raw mapping inside is plain memory; `write` and `commit` are only called by the
// arena, which hands out disjoint ranges.
unsafe impl Sync for CodeMemory {}
// SAFETY: as above; nothing is tied to the thread that made it.
unsafe impl Send for CodeMemory {}

impl Drop for CodeMemory {
    /// Runs only when an arena could not be completed: nothing was published.
    fn drop(&mut self) {
        // SAFETY: our own mapping; no address in it has escaped.
        unsafe { libc::munmap(self.base as *mut _, self.size) };
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
        // A kernel with vm.memfd_noexec=2 wants the seal (it speaks of the file's mode bits, not
        // of mappings); kernels before 6.3 know neither flag; a security module may want MFD_EXEC.
        let attempts =
            [(MFD_NOEXEC_SEAL, "MFD_NOEXEC_SEAL"), (0, "no flag"), (MFD_EXEC, "MFD_EXEC")];
        let mut first_error = None;
        for (flag, flag_name) in attempts {
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
        flag: libc::c_uint,
        flag_name: &str,
    ) -> Result<Self, JitError> {
        // SAFETY: a NUL-terminated name and flags; the result is checked.
        let fd =
            unsafe { libc::memfd_create(c"footbridge-code".as_ptr(), libc::MFD_CLOEXEC | flag) };
        if fd < 0 {
            return Err(JitError::last_os("memfd_create(2)", "it holds the code of the dual map"));
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a valid descriptor; no memory is involved.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(JitError::last_os("ftruncate(2)", "it sizes the code memfd"));
        }
        let writable =
            MmapOptions::new().len(size).map_raw(&fd).map_err(|error| JitError::System {
                call: "mmap(2)",
                errno: error.raw_os_error().unwrap_or(0),
                purpose: "the writable view of code memory; check RLIMIT_AS",
            })?;
        // A child must not be able to change its parent's code.
        // SAFETY: the range is the mapping that was just made.
        if unsafe { libc::madvise(writable.as_mut_ptr().cast(), size, libc::MADV_DONTFORK) } != 0 {
            return Err(JitError::last_os(
                "madvise(2) MADV_DONTFORK",
                "it keeps code memory out of forked children",
            ));
        }
        let (base, near) = map_code(size, placement, libc::MAP_SHARED, fd.as_raw_fd())?;
        // Only an mprotect tells whether this host lets a memfd be executable.
        // SAFETY: the first chunk of the mapping that was just made; it holds no code yet.
        let refused = unsafe {
            libc::mprotect(base as *mut _, CHUNK_BYTES, libc::PROT_READ | libc::PROT_EXEC) != 0
        };
        if refused {
            let error =
                JitError::last_os("mprotect(2) PROT_EXEC", "the host refuses executable memfds");
            // SAFETY: the mapping is ours, holds nothing, and no address in it has escaped.
            unsafe { libc::munmap(base as *mut _, size) };
            return Err(error);
        }
        // SAFETY: as above: back to none until the arena commits the chunk.
        unsafe { libc::mprotect(base as *mut _, CHUNK_BYTES, libc::PROT_NONE) };
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
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let (base, near) = map_code(size, placement, flags, -1)?;
        let report = format!("mprotect batch, {} MiB at {base:#x} ({why})", size >> 20);
        Ok(Self { base, size, backend: Backend::MprotectBatch, near, report })
    }

    pub(crate) fn base(&self) -> usize {
        self.base
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Whether every byte of the reservation reaches the program's text with a `rel32`.
    pub(crate) fn is_near(&self) -> bool {
        self.near
    }

    pub(crate) fn report(&self) -> &str {
        &self.report
    }

    /// What a publication must be a multiple of: a page where pages are flipped one by one.
    pub(crate) fn publish_unit_bytes(&self) -> usize {
        match self.backend {
            Backend::DualMap { .. } => super::registry::GRANULE_BYTES,
            Backend::MprotectBatch => region::page::size(),
        }
    }

    /// Makes the chunk at offset `at` ready to take code: `int3` everywhere, then executable.
    pub(crate) fn commit_chunk(&self, at: usize) -> Result<(), JitError> {
        debug_assert!(at.is_multiple_of(CHUNK_BYTES) && at < self.size);
        let Backend::DualMap { writable } = &self.backend else {
            return Ok(());
        };
        // SAFETY: the chunk lies in the writable view, holds no code, and only the caller (who
        // holds the window that it belongs to) writes to it.
        unsafe { ptr::write_bytes(writable.as_mut_ptr().add(at), INT3, CHUNK_BYTES) };
        // SAFETY: the chunk of our own mapping; it was inaccessible until now.
        let failed = unsafe {
            libc::mprotect(
                (self.base + at) as *mut _,
                CHUNK_BYTES,
                libc::PROT_READ | libc::PROT_EXEC,
            ) != 0
        };
        if failed {
            return Err(JitError::last_os(
                "mprotect(2)",
                "it makes a chunk of code executable; check vm.max_map_count",
            ));
        }
        Ok(())
    }

    /// Copies finished code to offset `at`, which must be committed, unpublished and aligned to
    /// the publish unit.
    pub(crate) fn write(&self, at: usize, code: &[u8]) -> Result<(), JitError> {
        assert!(at.checked_add(code.len()).is_some_and(|end| end <= self.size));
        match &self.backend {
            Backend::DualMap { writable } => {
                // SAFETY: in bounds by the assertion; the caller owns the range and nothing in it
                // is published, so nobody reads or runs these bytes.
                unsafe {
                    ptr::copy_nonoverlapping(
                        code.as_ptr(),
                        writable.as_mut_ptr().add(at),
                        code.len(),
                    );
                }
            }
            Backend::MprotectBatch => {
                let bytes = code.len().next_multiple_of(region::page::size());
                let start = (self.base + at) as *mut u8;
                let protect = |protection| {
                    // SAFETY: whole pages of our own mapping that hold no published code.
                    unsafe { region::protect(start, bytes, protection) }.map_err(|error| {
                        JitError::System {
                            call: "mprotect(2)",
                            errno: error.raw_os_error().unwrap_or(0),
                            purpose: "it flips a page of code; check vm.max_map_count",
                        }
                    })
                };
                protect(region::Protection::READ_WRITE)?;
                // SAFETY: the pages are writable now and nobody else knows them.
                unsafe {
                    ptr::copy_nonoverlapping(code.as_ptr(), start, code.len());
                    ptr::write_bytes(start.add(code.len()), INT3, bytes - code.len());
                }
                protect(region::Protection::READ_EXECUTE)?;
            }
        }
        Ok(())
    }
}

/// Set in a child after fork(2): the code memory is the parent's too.
static FORKED: AtomicBool = AtomicBool::new(false);

extern "C" fn after_fork_in_child() {
    FORKED.store(true, Ordering::Relaxed);
}

/// From now on forked children are told apart.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only stores to an atomic. Where there is no memory to register it,
        // a child is not told apart, which only matters to children that emit.
        unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
    });
}

/// Whether this process shares its code memory with its parent.
pub(crate) fn is_forked_child() -> bool {
    FORKED.load(Ordering::Relaxed)
}

/// Maps the view that runs, inaccessible for now. Returns its base and whether it is near.
fn map_code(
    size: usize,
    placement: Placement,
    flags: libc::c_int,
    fd: libc::c_int,
) -> Result<(usize, bool), JitError> {
    let map = |address: usize, extra: libc::c_int| {
        // SAFETY: a fresh mapping; MAP_FIXED_NOREPLACE never replaces one that exists.
        let at = unsafe {
            libc::mmap(
                address as *mut _,
                size,
                libc::PROT_NONE,
                flags | libc::MAP_NORESERVE | extra,
                fd,
                0,
            )
        };
        if at == libc::MAP_FAILED { None } else { Some(at as usize) }
    };
    if placement == Placement::Near {
        for address in near_candidates(size) {
            match map(address, libc::MAP_FIXED_NOREPLACE) {
                Some(at) if at == address => return Ok((at, true)),
                // A kernel before 4.17 takes the address as a mere hint.
                Some(elsewhere) => {
                    // SAFETY: the mapping was just made and nothing is in it.
                    unsafe { libc::munmap(elsewhere as *mut _, size) };
                }
                None => {}
            }
        }
    }
    let at = map(0, 0).ok_or_else(|| {
        JitError::last_os("mmap(2)", "it reserves code memory; check RLIMIT_AS or reserve less")
    })?;
    let text = text_address();
    let near = at.abs_diff(text).max((at + size).abs_diff(text)) < REACH_BYTES;
    Ok((at, near))
}

/// Addresses to try: below the text first (above it the heap grows), then far above it.
fn near_candidates(size: usize) -> impl Iterator<Item = usize> {
    const STEP: usize = 32 << 20;
    let text = text_address() & !(CHUNK_BYTES - 1);
    let lowest = text.saturating_sub(REACH_BYTES).max(1 << 20);
    let below = (1..).map(move |i| text.checked_sub(size + i * STEP)).map_while(|a| a);
    let above = (16..).map(move |i| text + i * STEP);
    below
        .take_while(move |&a| a >= lowest)
        .chain(above.take_while(move |&a| a + size <= text + REACH_BYTES))
}

/// An address in the program's text, near the helpers that stubs call.
fn text_address() -> usize {
    map_code as *const () as usize
}
