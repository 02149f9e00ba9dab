#![allow(unsafe_code, reason = "maps memory")]
//! What `jit` needs of Linux: the only file of it with system calls.
//!
//! Decisions (which backend, which address, what is fatal) are in `mod.rs`.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicUsize;

use memmap2::{Advice, MmapOptions, MmapRaw};
use region::Protection;

use crate::jit::error::JitError;

const MFD_NOEXEC_SEAL: libc::c_uint = 0x8;
const MFD_EXEC: libc::c_uint = 0x10;

/// Flags of memfd_create(2) to try, in this order. A kernel with vm.memfd_noexec=2 wants the seal
/// (it speaks of the file's mode bits, not of mappings); kernels before 6.3 know neither flag; a
/// security module may want MFD_EXEC.
pub(super) const CODE_FILE_FLAGS: [(libc::c_uint, &str); 3] =
    [(MFD_NOEXEC_SEAL, "MFD_NOEXEC_SEAL"), (0, "no flag"), (MFD_EXEC, "MFD_EXEC")];

fn last_error(call: &'static str, purpose: &'static str) -> JitError {
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    JitError::System { call, errno, purpose }
}

/// A memfd that holds code.
pub(super) struct File(OwnedFd);

impl File {
    pub(super) fn new(size: usize, flag: libc::c_uint) -> Result<Self, JitError> {
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
        Ok(Self(fd))
    }
}

/// The view through which code is written. Forked children do not have it.
pub(super) struct WritableView(MmapRaw);

impl WritableView {
    pub(super) fn new(file: &File, size: usize) -> Result<Self, JitError> {
        let error = |call, purpose| {
            move |error: std::io::Error| {
                let errno = error.raw_os_error().unwrap_or(0);
                JitError::System { call, errno, purpose }
            }
        };
        let view = MmapOptions::new().len(size).map_raw(&file.0);
        let view =
            view.map_err(error("mmap(2)", "the writable view of code memory; check RLIMIT_AS"))?;
        view.advise(Advice::DontFork).map_err(error(
            "madvise(2) MADV_DONTFORK",
            "it keeps code memory out of forked children",
        ))?;
        Ok(Self(view))
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

/// Maps inaccessible memory: of the file, or private. `extra`: further flags. `None` if it fails.
fn map(address: usize, size: usize, file: Option<&File>, extra: libc::c_int) -> Option<usize> {
    let (kind, fd) = match file {
        Some(file) => (libc::MAP_SHARED, file.0.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a fresh mapping; MAP_FIXED_NOREPLACE never replaces one that exists.
    let at = unsafe {
        let flags = kind | libc::MAP_NORESERVE | extra;
        libc::mmap(address as *mut _, size, libc::PROT_NONE, flags, fd, 0)
    };
    if at == libc::MAP_FAILED { None } else { Some(at as usize) }
}

/// Maps inaccessible memory at an address, unless something is there.
pub(super) fn map_inaccessible_at(address: usize, size: usize, file: Option<&File>) -> bool {
    match map(address, size, file, libc::MAP_FIXED_NOREPLACE) {
        Some(at) if at == address => true,
        // A kernel before 4.17 takes the address as a mere hint.
        Some(elsewhere) => {
            // SAFETY: the mapping was just made, and nothing is in it.
            unsafe { unmap(elsewhere, size) };
            false
        }
        None => false,
    }
}

/// Maps inaccessible memory at an address of the kernel's choice.
pub(super) fn map_inaccessible(size: usize, file: Option<&File>) -> Result<usize, JitError> {
    map(0, size, file, 0).ok_or_else(|| {
        last_error("mmap(2)", "it reserves code memory; check RLIMIT_AS or reserve less")
    })
}

/// # Safety
/// The range is a mapping that is not used any more.
pub(super) unsafe fn unmap(base: usize, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(base as *mut _, size) };
}

/// Tells whether the host lets the memory be executable, and leaves it inaccessible.
///
/// # Safety
/// 1. Whole pages of a mapping, without code in them.
pub(super) unsafe fn probe_executable(base: usize, bytes: usize) -> Result<(), JitError> {
    let start = base as *mut u8;
    let (call, purpose) = ("mprotect(2) PROT_EXEC", "the host refuses executable memfds");
    // SAFETY: 1. and 2. by the caller's promise: nothing uses the pages.
    unsafe { protect(start, bytes, Protection::READ_EXECUTE, call, purpose)? };
    // SAFETY: 1. and 2. the same pages. Code memory is inaccessible until it is committed; where
    // the kernel refuses to take an access away, nothing is lost.
    let _ = unsafe { protect(start, bytes, Protection::NONE, call, purpose) };
    Ok(())
}

/// Makes code readable and executable.
///
/// # Safety
/// 1. Whole pages of a mapping of code, which nothing writes to through it.
pub(super) unsafe fn make_executable(at: usize, bytes: usize) -> Result<(), JitError> {
    let purpose = "it makes a chunk of code executable; check vm.max_map_count";
    let start = at as *mut u8;
    // SAFETY: 1. and 2. are the caller's promise.
    unsafe { protect(start, bytes, Protection::READ_EXECUTE, "mprotect(2)", purpose) }
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
    JitError::System {
        call: "mmap(2)",
        errno: libc::ENOMEM,
        purpose: "no address space is as large as that; reserve less",
    }
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

/// A table of zeroes that costs memory only where it is touched, and is never unmapped.
///
/// # Safety
/// `T` is valid when all its bytes are zero, and needs no larger alignment than a page.
pub(crate) unsafe fn zeroed_table<T>(len: usize) -> Result<&'static [T], JitError> {
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
        return Err(last_error("mmap(2)", "it holds the registry; check RLIMIT_AS"));
    }
    // SAFETY: `bytes` of zeroes, page-aligned and never unmapped; the caller vouches for `T`.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), len) })
}

/// Unmaps a table.
///
/// # Safety
/// [`zeroed_table`] made it, and nothing refers to it any more.
pub(crate) unsafe fn discard_table<T>(table: &'static [T]) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(table.as_ptr().cast_mut().cast(), size_of_val(table)) };
}
