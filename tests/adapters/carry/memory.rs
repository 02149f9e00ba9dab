//! Memory between unmapped pages.

#![allow(unsafe_code, reason = "maps memory and reads it through the kernel")]

use std::ptr;

pub(super) const PAGE_BYTES: usize = 4096;

/// Memory between two unmapped pages.
pub(super) struct Island {
    pub(super) start: *mut u8,
    bytes: usize,
}

impl Island {
    /// Maps `count` islands in one mapping, which is never unmapped.
    pub(super) fn map(count: usize, bytes: usize) -> Vec<Island> {
        let stride = bytes + PAGE_BYTES;
        // SAFETY: a new mapping.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * stride + PAGE_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "address space");
        let island = |i| {
            // SAFETY: inside of the mapping.
            let start = unsafe { mapping.cast::<u8>().add(PAGE_BYTES + i * stride) };
            // SAFETY: whole pages of the mapping.
            let result =
                unsafe { libc::mprotect(start.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) };
            assert_eq!(result, 0, "memory");
            Island { start, bytes }
        };
        (0..count).map(island).collect()
    }

    pub(super) fn end(&self) -> usize {
        self.start as usize + self.bytes
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: never unmapped; no other reference exists while this is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// The address of `size` bytes at the end of the island. With `room`, other bytes follow them,
    /// and the address is aligned to exactly `align`.
    pub(super) fn place(&self, size: usize, align: usize, room: bool) -> usize {
        let mut address = (self.end() - size - if room { 96 } else { 0 }) & !(align - 1);
        if room && address.is_multiple_of(2 * align) {
            address -= align;
        }
        assert!(address >= self.start as usize + 64, "the value is larger than an island");
        address
    }
}

/// The bytes at an address, or `None` if the memory is not readable.
pub(super) fn read(address: u64, bytes: usize) -> Option<Vec<u8>> {
    thread_local!(static PIPE: [libc::c_int; 2] = {
        let mut ends = [0; 2];
        // SAFETY: writes two numbers.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        ends
    });
    let [out, into] = PIPE.with(|ends| *ends);
    let mut found = vec![0; bytes];
    for (i, piece) in found.chunks_mut(PAGE_BYTES).enumerate() {
        let from = address.checked_add((i * PAGE_BYTES) as u64)? as *const libc::c_void;
        // SAFETY: the kernel reads the memory, and returns EFAULT if it is not readable.
        let written = unsafe { libc::write(into, from, piece.len()) };
        let written = usize::try_from(written).ok()?;
        // SAFETY: reads the contents of the pipe into local memory.
        let taken = unsafe { libc::read(out, piece.as_mut_ptr().cast(), written) };
        assert_eq!(taken as usize, written, "a page fits into a pipe");
        if written != piece.len() {
            return None;
        }
    }
    Some(found)
}
