#![allow(unsafe_code, reason = "maps memory")]
//! What `jit` needs of Linux: the only file of it with system calls.
//!
//! Decisions (which backend, which address, what is fatal) are in `mod.rs`.

use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicUsize;

use memmap2::{MmapMut, MmapOptions};
use region::Protection;

use super::limits::file_size_limit;
use crate::jit::error::{JitError, Shortage};

const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;
const MFD_EXEC: libc::c_uint = 0x10;

/// Flags of memfd_create(2) to try, in this order. A kernel with vm.memfd_noexec=2 wants the seal
/// (it speaks of the file's mode bits, not of mappings); kernels before 6.3 know neither flag; a
/// security module may want MFD_EXEC.
pub(super) const CODE_FILE_FLAGS: [(libc::c_uint, &str); 3] =
    [(MFD_NOEXEC_SEAL, "MFD_NOEXEC_SEAL"), (0, "no flag"), (MFD_EXEC, "MFD_EXEC")];

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn last_error(call: &'static str, purpose: &'static str) -> JitError {
    JitError::System { call, errno: errno(), purpose }
}

/// The error of a refused mapping: the limit that was met, or the call that is forbidden.
/// `is_writable`: the memory would be private and writable.
fn refused(
    call: &'static str,
    errno: i32,
    (what, bytes): (&'static str, usize),
    is_writable: bool,
) -> JitError {
    match errno {
        libc::ENOMEM | libc::EAGAIN => JitError::NoMemory {
            what,
            bytes,
            errno,
            shortage: Shortage::of(errno, bytes, is_writable),
        },
        _ => JitError::System { call, errno, purpose: what },
    }
}

/// Memory that is mapped twice: for the code that runs, and to write it.
pub(super) enum Shared {
    /// Anonymous memory. Its second view is made by mremap(2) with an old size of 0.
    Anonymous,
    /// A memfd.
    File(OwnedFd),
}

impl Shared {
    /// A memfd that can hold `size` bytes of code.
    pub(super) fn new_file(size: usize, flag: libc::c_uint) -> Result<Self, JitError> {
        let errno = libc::EFBIG;
        if file_size_limit().is_some_and(|limit| limit < size) {
            // The kernel sends SIGXFSZ besides, which ends the process.
            let purpose = "RLIMIT_FSIZE is smaller than the code memory: raise it (ulimit -f)";
            return Err(JitError::System { call: "ftruncate(2)", errno, purpose });
        }
        // SAFETY: a NUL-terminated name and flags; the result is checked.
        let fd =
            unsafe { libc::memfd_create(c"footbridge-code".as_ptr(), libc::MFD_CLOEXEC | flag) };
        if fd < 0 {
            return Err(last_error("memfd_create(2)", "it holds the code of the dual map"));
        }
        // SAFETY: `fd` was just made, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a valid descriptor; no memory is involved.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } != 0 {
            return Err(last_error("ftruncate(2)", "it sizes the code memfd"));
        }
        Ok(Self::File(fd))
    }

    /// Maps a part of the memory twice: readable and executable at `at`, which is `offset` bytes
    /// into the reservation, and readable and writable at an address of the kernel's choice, which
    /// is returned. If that fails, `at` is inaccessible as before.
    ///
    /// The view that runs is executable from its first moment on, so that no page ever gains
    /// execution: hosts that refuse that (PR_SET_MDWE) allow this.
    ///
    /// # Safety
    /// 1. `at..at + bytes` are whole pages of a reservation, and nothing is in them.
    pub(super) unsafe fn map(
        &self,
        at: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<WritableView, JitError> {
        // SAFETY: 1. replaces pages of the reservation, in which nothing is.
        unsafe { self.map_code(at, offset, bytes)? };
        // SAFETY: the mapping was just made.
        match unsafe { self.map_writable(at, offset, bytes) } {
            Ok(start) => {
                let start = start as *mut u8;
                // Forked children shall not be able to change their parent's code.
                // SAFETY: the mapping was just made.
                let is_kept = unsafe { libc::madvise(start.cast(), bytes, libc::MADV_DONTFORK) };
                Ok(WritableView { start, is_inherited: is_kept != 0 })
            }
            Err(error) => {
                // SAFETY: 1. the pages of the reservation again.
                unsafe { map_fixed(at, bytes, libc::PROT_NONE) };
                Err(error)
            }
        }
    }

    /// # Safety
    /// 1. As for [`Self::map`].
    unsafe fn map_code(&self, at: usize, offset: usize, bytes: usize) -> Result<(), JitError> {
        let access = libc::PROT_READ | libc::PROT_EXEC;
        let mapped = match self {
            // SAFETY: 1. is the caller's promise.
            Self::Anonymous => unsafe {
                let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
                libc::mmap(at as *mut _, bytes, access, kind | libc::MAP_FIXED, -1, 0)
            },
            // SAFETY: 1. is the caller's promise; the file is at least that long.
            Self::File(fd) => unsafe {
                let kind = libc::MAP_SHARED | libc::MAP_FIXED;
                libc::mmap(at as *mut _, bytes, access, kind, fd.as_raw_fd(), offset as libc::off_t)
            },
        };
        if mapped == libc::MAP_FAILED {
            let call = "mmap(2) PROT_EXEC";
            return Err(refused(call, errno(), ("executable code memory", bytes), false));
        }
        Ok(())
    }

    /// # Safety
    /// 1. [`Self::map_code`] has mapped this part.
    unsafe fn map_writable(
        &self,
        at: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<usize, JitError> {
        const WHAT: &str = "the writable view of code memory";
        match self {
            Self::Anonymous => {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                // SAFETY: 1. with an old size of 0 the mapping at `at` stays, and is duplicated.
                let copy = unsafe { libc::mremap(at as *mut _, 0, bytes, libc::MREMAP_MAYMOVE) };
                if copy == libc::MAP_FAILED {
                    return Err(refused("mremap(2)", errno(), (WHAT, bytes), false));
                }
                // SAFETY: the mapping was just made.
                if unsafe { libc::mprotect(copy, bytes, access) } != 0 {
                    let error = refused("mprotect(2) PROT_WRITE", errno(), (WHAT, bytes), false);
                    // SAFETY: the mapping was just made, and nothing refers to it.
                    unsafe { libc::munmap(copy, bytes) };
                    return Err(error);
                }
                Ok(copy as usize)
            }
            Self::File(fd) => {
                let view = MmapOptions::new().offset(offset as u64).len(bytes).map_raw(fd);
                let view = view.map_err(|error| {
                    let errno = error.raw_os_error().unwrap_or(0);
                    refused("mmap(2)", errno, (WHAT, bytes), false)
                })?;
                // Code memory is never unmapped.
                Ok(ManuallyDrop::new(view).as_mut_ptr() as usize)
            }
        }
    }
}

/// Where a part of code memory is written.
pub(super) struct WritableView {
    pub(super) start: *mut u8,
    /// Forked children have the view, too: the host refuses to keep it from them.
    pub(super) is_inherited: bool,
}

/// Replaces pages by inaccessible or readable ones, which take no memory. Returns whether that was
/// possible.
///
/// # Safety
/// The range lies in a reservation, and nothing is in it.
unsafe fn map_fixed(at: usize, bytes: usize, access: libc::c_int) -> bool {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { libc::mmap(at as *mut _, bytes, access, kind, -1, 0) != libc::MAP_FAILED }
}

/// Reserves inaccessible address space. `extra`: further flags.
fn reserve_flagged(address: usize, size: usize, extra: libc::c_int) -> Result<usize, i32> {
    // SAFETY: a fresh mapping; MAP_FIXED_NOREPLACE never replaces one that exists.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | extra;
        libc::mmap(address as *mut _, size, libc::PROT_NONE, flags, -1, 0)
    };
    if at == libc::MAP_FAILED { Err(errno()) } else { Ok(at as usize) }
}

/// Reserves inaccessible address space for private memory, part of which is made accessible by
/// mprotect(2) when it is needed. Errors are values of `errno`.
///
/// A process that locks all that it maps (mlockall with MCL_FUTURE) gets each page locked when it
/// is touched. By default the kernel would fill the memory when it becomes writable.
pub(crate) fn reserve_private(size: usize, extra: libc::c_int) -> Result<usize, i32> {
    let at = reserve_flagged(0, size, extra)?;
    if locks_new_mappings() {
        // A failure costs memory, nothing else.
        // SAFETY: the mapping was just made.
        unsafe { libc::syscall(libc::SYS_mlock2, at, size, libc::MLOCK_ONFAULT) };
    }
    Ok(at)
}

/// Whether a new mapping is locked and filled: mlockall(2) with MCL_FUTURE. The kernel does not
/// tell, so that this maps a page and finds out whether it is resident before it was touched.
fn locks_new_mappings() -> bool {
    let Ok(mut page) = MmapMut::map_anon(page_bytes()) else {
        return false;
    };
    let mut resident = 0u8;
    // SAFETY: the vector has an element for the one page.
    let is_known =
        unsafe { libc::mincore(page.as_mut_ptr().cast(), page.len(), &raw mut resident) == 0 };
    is_known && resident & 1 != 0
}

/// Reserves code memory at an address, unless something is there.
pub(super) fn reserve_code_at(address: usize, size: usize) -> bool {
    match reserve_flagged(address, size, libc::MAP_FIXED_NOREPLACE) {
        Ok(at) if at == address => {
            unlock(at, size);
            true
        }
        // A kernel before 4.17 takes the address as a mere hint.
        Ok(elsewhere) => {
            // SAFETY: the mapping was just made, and nothing is in it.
            unsafe { unmap(elsewhere, size) };
            false
        }
        Err(_) => false,
    }
}

/// Reserves code memory at an address of the kernel's choice.
pub(super) fn reserve_code(size: usize) -> Result<usize, JitError> {
    let at = reserve_flagged(0, size, 0)
        .map_err(|errno| refused("mmap(2)", errno, ("code memory", size), false))?;
    unlock(at, size);
    Ok(at)
}

/// Takes a reservation that holds nothing from the count of locked memory.
fn unlock(at: usize, size: usize) {
    // SAFETY: no contents change. A failure is a count that is too high.
    unsafe { libc::munlock(at as *const _, size) };
}

/// # Safety
/// The range is a mapping that is not used any more.
pub(super) unsafe fn unmap(base: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(base as *mut _, size) };
}

/// Makes pages inaccessible again, without memory.
///
/// # Safety
/// The range lies in a reservation, and nothing uses it.
pub(super) unsafe fn unmap_part(at: usize, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { map_fixed(at, bytes, libc::PROT_NONE) };
}

/// What the pages of the mprotect batch are changed for.
const FLIP: &str = "it flips a page of code; check vm.max_map_count";

/// # Safety
/// 1. Whole pages of a mapping, without published code in them.
pub(super) unsafe fn flip_to_writable(start: *mut u8, bytes: usize) -> Result<(), JitError> {
    // SAFETY: 1. and 2. are the caller's promise.
    unsafe { protect(start, bytes, Protection::READ_WRITE, "mprotect(2)", FLIP) }
}

/// # Safety
/// 1. Whole pages of a mapping, without published code in them.
/// 2. Nothing writes to the pages any more.
pub(super) unsafe fn flip_to_executable(start: *mut u8, bytes: usize) -> Result<(), JitError> {
    // SAFETY: 1. and 2. are the caller's promise.
    unsafe { protect(start, bytes, Protection::READ_EXECUTE, "mprotect(2)", FLIP) }
}

/// # Safety
/// 1. Whole pages of a mapping.
/// 2. They are used in no way that the protection forbids.
unsafe fn protect(
    start: *mut u8,
    bytes: usize,
    protection: Protection,
    call: &'static str,
    purpose: &'static str,
) -> Result<(), JitError> {
    // SAFETY: 1. and 2. are the caller's promise.
    unsafe { region::protect(start, bytes, protection) }.map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(0);
        JitError::System { call, errno, purpose }
    })
}

/// Makes bytes that were written the ones that all processors fetch, where that does not happen by
/// itself. Arm Architecture Reference Manual for A-profile, section B2.4.4: data caches are cleaned
/// by any address of the memory, and instruction caches by the one that it runs from.
/// Instructions that a processor has fetched ahead are another matter: each processor that runs a
/// thread of the process executes a context synchronization event, by membarrier(2), where the
/// kernel has that (Linux 4.16).
///
/// # Safety
/// The range is readable code.
pub(super) unsafe fn synchronize_instructions(start: usize, bytes: usize) {
    #[cfg(target_arch = "aarch64")]
    {
        unsafe extern "C" {
            /// Of libgcc and compiler-rt.
            fn __clear_cache(start: *const u8, end: *const u8);
        }
        let start = start as *const u8;
        // SAFETY: the caller's promise.
        unsafe { __clear_cache(start, start.wrapping_add(bytes)) };
        const PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 5;
        const REGISTER_PRIVATE_EXPEDITED_SYNC_CORE: libc::c_int = 1 << 6;
        let membarrier = |command: libc::c_int| {
            // SAFETY: no memory is passed.
            unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
        };
        // Refused until the process has registered.
        if membarrier(PRIVATE_EXPEDITED_SYNC_CORE) != 0
            && membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) == 0
        {
            membarrier(PRIVATE_EXPEDITED_SYNC_CORE);
        }
    }
    // x86-64 does it: Intel SDM volume 3, section 13.6.
    let _ = (start, bytes);
}

/// Bytes of a page on this host.
pub(super) fn page_bytes() -> usize {
    region::page::size()
}

/// The error of a reservation that is larger than any address space.
pub(super) fn too_large() -> JitError {
    let (errno, bytes) = (libc::ENOMEM, usize::MAX);
    JitError::NoMemory { what: "code memory", bytes, errno, shortage: Shortage::Unknown }
}

/// A zeroed word of its own page, which is zero again in every child that gets a copy of it:
/// madvise(2), MADV_WIPEONFORK, since Linux 4.14. `None`: there is none.
pub(super) fn word_wiped_in_children() -> Option<&'static AtomicUsize> {
    let bytes = page_bytes();
    // SAFETY: a fresh anonymous mapping, which is unmapped again or never.
    unsafe {
        let at = libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at == libc::MAP_FAILED {
            return None;
        }
        if libc::madvise(at, bytes, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(at, bytes);
            return None;
        }
        Some(&*at.cast::<AtomicUsize>())
    }
}

/// Keeps the module at an address loaded: dlclose(3) does not unmap it any more. The executable
/// itself is never unmapped, and has no name that dlopen(3) knows: for it this does nothing.
pub(super) fn pin_module_of(address: usize) {
    // SAFETY: a structure for dladdr(3) to fill in. Its name is one of a loaded module, which stays
    // while its code runs here. RTLD_NOLOAD loads nothing.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address as *const _, &raw mut info) != 0 && !info.dli_fname.is_null() {
            let flags = libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE;
            libc::dlopen(info.dli_fname, flags);
        }
    }
}

/// Has forked children call the function, which only stores to an atomic.
///
/// Where there is no memory to register it, a child is not told apart, which only matters to
/// children that emit.
pub(super) fn call_in_forked_children(child: extern "C" fn()) {
    // SAFETY: by this function's contract the handler may run after a fork.
    unsafe { libc::pthread_atfork(None, None, Some(child)) };
}

/// Whether the process has a symbol of this name, in any of its modules.
pub(crate) fn symbol_exists(name: &CStr) -> bool {
    // SAFETY: a NUL-terminated name; the result is only compared.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.is_null()
}

/// A table of zeroes that can be read, and written to where [`make_writable`] was called. It costs
/// memory only where it was written to.
///
/// # Safety
/// `T` is valid when all its bytes are zero, and needs no larger alignment than a page.
pub(crate) unsafe fn reserve_table<T>(len: usize) -> Result<&'static [T], JitError> {
    let bytes = (len * size_of::<T>()).next_multiple_of(page_bytes());
    let failed = |errno| refused("mmap(2)", errno, (REGISTRY, bytes), false);
    let at = reserve_private(bytes, 0).map_err(failed)?;
    // SAFETY: the mapping was just made.
    if unsafe { libc::mprotect(at as *mut _, bytes, libc::PROT_READ) } != 0 {
        let error = refused("mprotect(2)", errno(), (REGISTRY, bytes), false);
        // SAFETY: the mapping was just made, and nothing refers to it.
        unsafe { unmap(at, bytes) };
        return Err(error);
    }
    // SAFETY: `bytes` of zeroes, page-aligned; the caller vouches for `T`.
    Ok(unsafe { std::slice::from_raw_parts(at as *const T, len) })
}

/// Makes a part of a table writable: whole pages, or those up to its end.
///
/// # Safety
/// 1. [`reserve_table`] made the table.
pub(crate) unsafe fn make_writable<T>(
    table: &'static [T],
    offset: usize,
    bytes: usize,
) -> Result<(), JitError> {
    debug_assert!(offset.is_multiple_of(page_bytes()) && offset < size_of_val(table));
    let end = (offset + bytes).min(size_of_val(table).next_multiple_of(page_bytes()));
    let at = table.as_ptr().cast_mut().cast::<libc::c_void>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: 1. pages of the table, which keep their contents.
    match unsafe { libc::mprotect(at.byte_add(offset), end - offset, access) } {
        0 => Ok(()),
        _ => Err(refused("mprotect(2)", errno(), (REGISTRY, end - offset), true)),
    }
}

/// Zeroed memory that can be written to, and is never unmapped.
///
/// # Safety
/// `T` is valid when all its bytes are zero, and needs no larger alignment than a page.
pub(crate) unsafe fn zeroed_block<T>(len: usize) -> Result<&'static [T], JitError> {
    let bytes = len * size_of::<T>();
    // SAFETY: a fresh anonymous mapping.
    let at = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(refused("mmap(2)", errno(), (REGISTRY, bytes), true));
    }
    // SAFETY: `bytes` of zeroes, page-aligned and never unmapped; the caller vouches for `T`.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), len) })
}

/// What the tables of the registry are called in errors.
const REGISTRY: &str = "the registry of code";
