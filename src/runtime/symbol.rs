#![allow(unsafe_code, reason = "maps the program's file")]
//! The name of a function of the main program, read from its symbol table without allocating.
//!
//! A signal handler may call this: it makes plain system calls and reads a private mapping.

use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use object::Endianness;
use object::elf::{FileHeader64, STT_FUNC};
use object::read::elf::{FileHeader, Sym};

/// A mapping that goes when this does.
struct Mapping(*mut libc::c_void, usize);

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours; what was read of it does not outlive the borrow of it.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

/// Passes the name of the function at `pc` of the main program, read from its symbol table
/// without allocating.
pub(crate) fn with_symbol<R>(pc: usize, f: impl FnOnce(Option<&str>) -> R) -> R {
    // SAFETY: plain system calls; the mapping is private, read-only, and as long as the file.
    unsafe {
        let fd = libc::open(c"/proc/self/exe".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return f(None);
        }
        let _fd = OwnedFd::from_raw_fd(fd);
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &raw mut stat) != 0 {
            return f(None);
        }
        let len = stat.st_size as usize;
        let at = libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
        if at == libc::MAP_FAILED {
            return f(None);
        }
        let _unmap = Mapping(at, len);
        let file = std::slice::from_raw_parts(at.cast::<u8>(), len);
        // The program is mapped as a whole: its base is where its own header is.
        let base = libc::getauxval(libc::AT_PHDR) as usize;
        f(symbol_name(file, pc, base))
    }
}

/// The function symbol that covers `pc`. `phdr` is where the program headers are loaded.
fn symbol_name(file: &[u8], pc: usize, phdr: usize) -> Option<&str> {
    let elf = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = elf.endian().ok()?;
    let bias = phdr as u64 - elf.e_phoff.get(endian);
    let first = elf
        .program_headers(endian, file)
        .ok()?
        .iter()
        .find(|h| h.p_type.get(endian) == object::elf::PT_LOAD)?;
    let address = (pc as u64).wrapping_sub(bias).wrapping_add(first.p_vaddr.get(endian));
    let symbols = elf.sections(endian, file).ok()?;
    let symbols = symbols.symbols(endian, file, object::elf::SHT_SYMTAB).ok()?;
    let covers = symbols.iter().find(|symbol| {
        let start = symbol.st_value(endian);
        symbol.st_type() == STT_FUNC && (start..start + symbol.st_size(endian)).contains(&address)
    })?;
    std::str::from_utf8(covers.name(endian, symbols.strings()).ok()?).ok()
}
