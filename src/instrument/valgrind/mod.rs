//! valgrind's client requests (valgrind manual, section 3.1; `valgrind.h`).
//!
//! A request is a sequence of instructions that does nothing on a processor, and that valgrind
//! recognises when it translates the program. The words of the request lie in memory.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as machine;
#[cfg(target_arch = "x86_64")]
use x86_64 as machine;

/// VG_USERREQ__DISCARD_TRANSLATIONS: the start and the length of the code.
const DISCARD_TRANSLATIONS: usize = 0x1002;

/// VG_USERREQ__STACK_REGISTER: the lowest and the highest address of the stack.
#[cfg(feature = "runtime")]
const STACK_REGISTER: usize = 0x1501;

/// A stack of the program. valgrind then takes a change of the stack pointer from or to it for a
/// switch, however large the change is.
#[cfg(feature = "runtime")]
pub(super) fn register_stack(lo: usize, hi: usize) {
    machine::request(&[STACK_REGISTER, lo, hi - 1, 0, 0, 0]);
}

/// What valgrind has translated of this code is not executed any more. It finds out by itself for
/// memory that maps no file (`--smc-check=all-non-file`); code memory with two mappings maps one.
pub(super) fn discard_translations(start: usize, len: usize) {
    machine::request(&[DISCARD_TRANSLATIONS, start, len, 0, 0, 0]);
}
