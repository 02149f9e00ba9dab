#![allow(unsafe_code, reason = "maps the files of modules")]
//! The name of a native function, read from symbol tables without allocating.
//!
//! A signal handler may call this: it makes plain system calls and reads private mappings. The
//! kernel tells which module is where (/proc/self/maps), and not the dynamic linker, which would
//! take a lock.
//!
//! Tables are searched from front to back, and files are mapped anew each time: a name is needed
//! once, before the process ends, or is kept by the caller.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use object::Endianness;
use object::elf::{FileHeader64, PT_LOAD, SHT_DYNSYM, SHT_SYMTAB, STB_GLOBAL, STT_FUNC, Sym64};
use object::read::elf::{FileHeader, ProgramHeader, Sym};

/// A file, mapped as a whole until the value is dropped.
struct Mapping(*mut libc::c_void, usize);

impl Mapping {
    fn of(path: &CStr) -> Option<Self> {
        let fd = open(path)?;
        // SAFETY: the descriptor is open, and the address is that of a local. The mapping is new,
        // private, read-only, and as long as the file.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(fd.as_raw_fd(), &raw mut stat) != 0 {
                return None;
            }
            let (len, how) = (stat.st_size as usize, libc::PROT_READ);
            let at = libc::mmap(ptr::null_mut(), len, how, libc::MAP_PRIVATE, fd.as_raw_fd(), 0);
            (at != libc::MAP_FAILED).then_some(Self(at, len))
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the range is mapped as long as `self` is borrowed. A file that is truncated
        // meanwhile makes reads fault, as it does for the program's own code.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), self.1) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no borrow of its bytes outlives it.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn open(path: &CStr) -> Option<OwnedFd> {
    // SAFETY: the path ends with a zero. A descriptor that is new has no other owner.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// A function at a pc.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Symbol<'a> {
    pub(crate) name: &'a str,
    /// Bytes from its start to the pc.
    pub(crate) offset_bytes: u64,
}

/// Calls `f` with the function at `pc`, if there is a symbol, and with the file name of the module
/// that it is in, if that is not the main program.
pub(crate) fn with_symbol<R>(pc: usize, f: impl FnOnce(Option<Symbol>, Option<&str>) -> R) -> R {
    // By this name the program can be read even if its file was replaced by a newer one.
    if let Some(program) = Mapping::of(c"/proc/self/exe") {
        // SAFETY: the call reads a word that the kernel has left for the process.
        let headers = unsafe { libc::getauxval(libc::AT_PHDR) };
        let address = address_in_program(program.bytes(), pc as u64, headers);
        let symbol = address.and_then(|address| symbol_at(program.bytes(), address));
        if symbol.is_some() {
            return f(symbol, None);
        }
    }
    let mut path = [0; PATH_BYTES];
    let Some((path, offset)) = mapped_file(pc, &mut path) else {
        return f(None, None);
    };
    let module = path.to_str().ok().and_then(|path| path.rsplit('/').next());
    let file = Mapping::of(path);
    let bytes = file.as_ref().map_or(&[][..], Mapping::bytes);
    let symbol = address_of_offset(bytes, offset).and_then(|address| symbol_at(bytes, address));
    f(symbol, module)
}

/// The address that the linker gave to the code at `pc`, if the program headers are at `headers`.
/// The program is mapped as a whole, so they tell where its base is.
fn address_in_program(file: &[u8], pc: u64, headers: u64) -> Option<u64> {
    let elf = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = elf.endian().ok()?;
    let mut loads = elf.program_headers(endian, file).ok()?.iter();
    let first = loads.find(|h| h.p_type(endian) == PT_LOAD)?;
    let base = headers.wrapping_sub(elf.e_phoff.get(endian));
    Some(pc.wrapping_sub(base).wrapping_add(first.p_vaddr(endian)))
}

/// The address that the linker gave to the code at an offset in the file.
fn address_of_offset(file: &[u8], offset: u64) -> Option<u64> {
    let elf = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = elf.endian().ok()?;
    let loads = elf.program_headers(endian, file).ok()?.iter();
    let covers = |start: u64, len: u64| offset.checked_sub(start).filter(|&at| at < len);
    loads
        .filter(|h| h.p_type(endian) == PT_LOAD)
        .find_map(|h| Some(covers(h.p_offset(endian), h.p_filesz(endian))? + h.p_vaddr(endian)))
}

/// The function symbol that covers an address, from the full table or, if that was stripped, from
/// the table for the dynamic linker.
fn symbol_at(file: &[u8], address: u64) -> Option<Symbol<'_>> {
    let elf = FileHeader64::<Endianness>::parse(file).ok()?;
    let endian = elf.endian().ok()?;
    let sections = elf.sections(endian, file).ok()?;
    [SHT_SYMTAB, SHT_DYNSYM].into_iter().find_map(|kind| {
        let symbols = sections.symbols(endian, file, kind).ok()?;
        let covers = |symbol: &&Sym64<Endianness>| {
            let start = symbol.st_value(endian);
            let end = start.wrapping_add(symbol.st_size(endian));
            symbol.st_type() == STT_FUNC && (start..end).contains(&address)
        };
        // Compilers make local aliases of functions that others can replace.
        let is_global = |symbol: &&Sym64<Endianness>| symbol.st_bind() == STB_GLOBAL;
        let symbol = symbols.iter().filter(covers).find(is_global);
        let symbol = symbol.or_else(|| symbols.iter().find(covers))?;
        let name = std::str::from_utf8(symbol.name(endian, symbols.strings()).ok()?).ok()?;
        Some(Symbol { name, offset_bytes: address - symbol.st_value(endian) })
    })
}

/// Room for the longest path that is read, with its terminating zero.
const PATH_BYTES: usize = 1024;

/// The path of the file that is mapped at `pc`, and the offset in it, by /proc/self/maps.
fn mapped_file(pc: usize, path: &mut [u8; PATH_BYTES]) -> Option<(&CStr, u64)> {
    let maps = open(c"/proc/self/maps")?;
    let mut buffer = [0; 4096];
    // A line that is longer than this is cut off, and its path is not found.
    let mut line = [0; 256 + PATH_BYTES];
    let mut len = 0;
    loop {
        // SAFETY: the buffer is a local of that length.
        let read =
            unsafe { libc::read(maps.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let chunk = &buffer[..usize::try_from(read).ok().filter(|&read| read > 0)?];
        for &byte in chunk {
            if byte != b'\n' {
                if len < line.len() {
                    line[len] = byte;
                    len += 1;
                }
                continue;
            }
            if let Some((file, offset)) = file_of_line(&line[..len], pc as u64) {
                path.get_mut(..file.len())?.copy_from_slice(file);
                return Some((CStr::from_bytes_until_nul(path).ok()?, offset));
            }
            len = 0;
        }
    }
}

/// The path in a line of /proc/self/maps, and the offset of `pc` in that file, if the line covers
/// `pc`: `55d0c0000000-55d0c0021000 r-xp 00005000 fe:00 1234     /usr/bin/program`.
fn file_of_line(line: &[u8], pc: u64) -> Option<(&[u8], u64)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hexadecimal = |digits| u64::from_str_radix(digits, 16).ok();
    let start = hexadecimal(start)?;
    if !(start..hexadecimal(end)?).contains(&pc) {
        return None;
    }
    let offset = hexadecimal(words.nth(1)?)?;
    let path = &line[text.find('/')?..];
    Some((path, offset + (pc - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read() {
        let line = b"7f10000-7f12000 r-xp 00005000 fe:00 1234   /usr/lib/with space.so";
        let path = &b"/usr/lib/with space.so"[..];
        assert_eq!(file_of_line(line, 0x7f10000), Some((path, 0x5000)));
        assert_eq!(file_of_line(line, 0x7f11fff), Some((path, 0x6fff)));
        assert_eq!(file_of_line(line, 0x7f12000), None);
        assert_eq!(file_of_line(line, 0x7f0ffff), None);
        assert_eq!(file_of_line(b"7f10000-7f12000 rw-p 00000000 00:00 0", 0x7f10000), None);
        assert_eq!(file_of_line(b"7f10000-7f12000 r-xp 0 00:00 0   [vdso]", 0x7f10000), None);
        assert_eq!(file_of_line(b"", 0), None);
    }

    #[test]
    fn functions_of_the_program_and_of_libraries_have_names() {
        let own = functions_of_the_program_and_of_libraries_have_names as *const () as usize;
        with_symbol(own + 3, |symbol, module| {
            let Symbol { name, offset_bytes } = symbol.expect("the test binary has symbols");
            assert!(name.contains("functions_of_the_program_and_of_libraries"), "{name}");
            assert_eq!((offset_bytes, module), (3, None));
        });
        with_symbol(libc::qsort as *const () as usize, |symbol, module| {
            // Inlined into the program if it is linked statically.
            if let Some(module) = module {
                let is_named = symbol.is_some_and(|symbol| symbol.name.contains("qsort"));
                assert!(is_named, "{symbol:?}");
                assert!(module.starts_with("libc"), "{module}");
            }
        });
        let data = [0u8; 8];
        with_symbol(data.as_ptr() as usize, |symbol, module| {
            assert_eq!((symbol, module), (None, None))
        });
    }
}
