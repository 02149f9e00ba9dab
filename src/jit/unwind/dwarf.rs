#![allow(unsafe_code, reason = "hands unwind tables to the process's unwinder")]
//! Unwind tables for whole ranges of code: one FDE per range and frame class, for ever.
//!
//! All frames of a class look alike, so one row of call frame information covers any number of
//! stubs. On x86-64 the row holds at every instruction (`at_each_pc.rs`), so that a profiler may
//! unwind in its signal handler, whatever it has interrupted.
//!
//! On AArch64 it holds at call sites only, which is what panics and backtraces need. At the two
//! instructions of a prologue and at `ret` it does not: there the return address is in x30, and an
//! expression cannot tell a register of the interrupted code from one that a younger frame saved.
//!
//! # Unwinding in a signal handler, and the lock of libgcc
//!
//! What follows is about libgcc and holds for every program that registers a table at run time.
//!
//! * **Up to GCC 12**, once anything is registered, each lookup takes a mutex, for native frames
//!   too. If a handler unwinds while its own thread is in a lookup, in a panic or a backtrace, it
//!   waits for ever. No rule prevents this. A profiler either unwinds with something else, or keeps
//!   away from threads that unwind.
//! * **From GCC 13 on** the registered tables are in a tree that lookups read without a lock, and
//!   the mutex is taken only the first time that a table is used. While a thread registers a table,
//!   lookups wait for it: only a handler that interrupts a thread in [`register`] can still hang.
//! * A table in a loaded module (`PT_GNU_EH_FRAME`) is found by glibc's `_dl_find_object` (glibc
//!   2.35, GCC 12), which takes no lock and may be called in a handler. It covers the addresses of
//!   its module only, so that code memory would have to be a part of the executable's own mapping,
//!   with a fixed size, and the process could register no other table. That is why tables are
//!   registered here.
//!
//! The first use of a table sorts it, and allocates: [`register`] does that itself.
//!
//! Formats: DWARF 5 section 6.4, LSB Core 5.0 section 10.6 (`.eh_frame`).

use std::ffi::{c_int, c_void};

use super::at_each_pc;
use super::covered::Covered;
use crate::abi::Arch;
use crate::jit::frame::{FrameClass, HOST, entry_frame};
use crate::jit::mem;

/// DWARF numbers of the registers that rules are about.
struct Registers {
    frame_pointer: u8,
    stack_pointer: u8,
    return_address: u8,
    /// Words above the CFA's base that a call itself pushes.
    call_pushes_bytes: u8,
}

/// System V psABI x86-64, figure 3.36.
const AMD64: Registers =
    Registers { frame_pointer: 6, stack_pointer: 7, return_address: 16, call_pushes_bytes: 8 };

/// DWARF for the Arm 64-bit Architecture (aadwarf64), section 4.1: x29, sp is 31, x30.
const AARCH64: Registers =
    Registers { frame_pointer: 29, stack_pointer: 31, return_address: 30, call_pushes_bytes: 0 };

const DW_CFA_DEF_CFA: u8 = 0x0c;
const DW_CFA_UNDEFINED: u8 = 0x07;
const DW_CFA_OFFSET: u8 = 0x80;
const DW_EH_PE_ABSPTR: u8 = 0x00;

impl Registers {
    fn of(machine: Arch) -> &'static Self {
        match machine {
            Arch::Amd64 => &AMD64,
            _ => &AARCH64,
        }
    }

    /// The one row of a class.
    fn rules(&self, covered: &Covered) -> Vec<u8> {
        // "register is saved at CFA - 8*words"
        let at = |register: u8, words: u8| [DW_CFA_OFFSET | register, words];
        let at_return = at(self.return_address, 1);
        let undefined = [DW_CFA_UNDEFINED, self.return_address];
        let unframed = [DW_CFA_DEF_CFA, self.stack_pointer, self.call_pushes_bytes];
        let framed = [DW_CFA_DEF_CFA, self.frame_pointer, 16];
        let is_amd64 = self.call_pushes_bytes != 0;
        match covered.class {
            // Nothing is read of frames without a caller, so that these are right everywhere.
            FrameClass::Root => [&unframed[..], &undefined].concat(),
            FrameClass::Barrier => [&framed[..], &undefined].concat(),
            FrameClass::Leaf if is_amd64 => [&at_each_pc::leaf()[..], &at_return].concat(),
            // A leaf of AArch64 has its return address in the register itself.
            FrameClass::Leaf => unframed.to_vec(),
            _ if is_amd64 => [at_each_pc::framed(covered), at_return.to_vec()].concat(),
            _ => [&framed[..], &at_return, &at(self.frame_pointer, 2)].concat(),
        }
    }
}

unsafe extern "C" {
    fn __register_frame(begin: *const c_void);
    fn _Unwind_Find_FDE(pc: *const c_void, bases: *mut [usize; 3]) -> *const c_void;
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

const URC_CONTINUE_UNWIND: c_int = 8;
const UA_CLEANUP_PHASE: c_int = 2;

/// Runs when a panic passes an entry frame: restores the previous anchor, as the stub would have
/// done, had it returned. Itanium C++ ABI, exception handling, section 1.6.
unsafe extern "C" fn entry_personality(
    _version: c_int,
    actions: c_int,
    _exception_class: u64,
    _exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    if actions & UA_CLEANUP_PHASE != 0 {
        // SAFETY: the unwinder calls this for a frame of class Entry, whose rbp has the three
        // slots below it; the anchor is a field of a G, which is never freed.
        unsafe {
            let fp = _Unwind_GetGR(context, c_int::from(Registers::of(HOST).frame_pointer));
            let slot = |offset: i32| *(fp.wrapping_add_signed(offset as isize) as *const usize);
            let anchor = slot(entry_frame::ANCHOR) as *mut [usize; 2];
            *anchor = [slot(entry_frame::PREVIOUS_FP), slot(entry_frame::PREVIOUS_PC)];
        }
    }
    URC_CONTINUE_UNWIND
}

/// Which unwinder the process has; they take tables differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwinder {
    /// libgcc: a whole section at once, ended by a zero word.
    Libgcc,
    /// LLVM libunwind: one FDE a call.
    Llvm,
}

impl Unwinder {
    /// LLVM's unwinder has a function that libgcc's has not.
    pub(crate) fn of_this_process() -> Self {
        if mem::symbol_exists(c"__unw_add_dynamic_fde") { Self::Llvm } else { Self::Libgcc }
    }
}

/// Tells the process's unwinder about the ranges. They stay registered for ever.
pub(crate) fn register(ranges: &[Covered]) {
    let (section, fdes) = section(ranges, Registers::of(HOST));
    let section: &'static [u8] = section.leak();
    match Unwinder::of_this_process() {
        // SAFETY: a well-formed section that ends with a zero word and lives for ever.
        Unwinder::Libgcc => unsafe { __register_frame(section.as_ptr().cast()) },
        Unwinder::Llvm => {
            for at in fdes {
                // SAFETY: the address of one FDE whose CIE stands in the same section.
                unsafe { __register_frame(section[at..].as_ptr().cast()) };
            }
        }
    }
    // The first lookup sorts the table, for which it allocates. It must not be one of a handler.
    if let Some(Covered { range, .. }) = ranges.first() {
        let mut bases = [0; 3];
        // SAFETY: the unwinder's own function, which writes three words.
        unsafe { _Unwind_Find_FDE(range.start as *const c_void, &raw mut bases) };
    }
}

/// The bytes of an `.eh_frame` section, and where its FDEs start.
fn section(ranges: &[Covered], registers: &Registers) -> (Vec<u8>, Vec<usize>) {
    let mut out = Vec::new();
    let mut fdes = Vec::new();
    for covered in ranges {
        let Covered { range, class, personality, .. } = covered;
        let cie = out.len();
        record(&mut out, |out| {
            out.extend(0u32.to_le_bytes()); // this is a CIE
            out.push(1); // version
            let personality = match class {
                FrameClass::Entry => Some(entry_personality as *const () as usize),
                _ => *personality,
            };
            out.extend(if personality.is_some() { &b"zPR\0"[..] } else { &b"zR\0"[..] });
            out.push(1); // code alignment factor
            out.push(0x78); // data alignment factor: -8 as SLEB128
            out.push(registers.return_address);
            if let Some(personality) = personality {
                out.push(10); // bytes of augmentation data
                out.push(DW_EH_PE_ABSPTR);
                out.extend((personality as u64).to_le_bytes());
            } else {
                out.push(1);
            }
            out.push(DW_EH_PE_ABSPTR); // how the FDE writes its range
            out.extend(registers.rules(covered));
        });
        fdes.push(out.len());
        record(&mut out, |out| {
            // From this field back to the CIE.
            let back = out.len() - cie;
            out.extend((back as u32).to_le_bytes());
            out.extend((range.start as u64).to_le_bytes());
            out.extend((range.len() as u64).to_le_bytes());
            out.push(0); // no augmentation data
        });
    }
    out.extend(0u32.to_le_bytes());
    (out, fdes)
}

/// Length, contents, `DW_CFA_nop` padding to 8 bytes.
fn record(out: &mut Vec<u8>, contents: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    contents(out);
    while !(out.len() - start).is_multiple_of(8) {
        out.push(0);
    }
    let len = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::unwind::Words;

    #[test]
    fn records_are_aligned_and_point_to_their_cie() {
        let ranges: Vec<_> = FrameClass::ALL
            .iter()
            .map(|&class| {
                let start = 0x1000 * class as usize;
                let words = Words { address: 0x10_0000 + start / 8, back_bits: 18..32 };
                Covered { range: start..start + 0x1000, class, words, personality: None }
            })
            .collect();
        for registers in [&AMD64, &AARCH64] {
            records_are_well_formed(section(&ranges, registers));
        }
    }

    fn records_are_well_formed((bytes, fdes): (Vec<u8>, Vec<usize>)) {
        assert_eq!(fdes.len(), FrameClass::ALL.len());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let mut at = 0;
        let mut records = 0;
        while word(at) != 0 {
            let id = word(at + 4) as usize;
            if fdes.contains(&at) {
                let cie = at + 4 - id;
                assert_eq!(word(cie + 4), 0, "FDE at {at} does not point to a CIE");
            } else {
                assert_eq!(id, 0);
            }
            at += 4 + word(at) as usize;
            assert_eq!(at % 8, 0);
            records += 1;
        }
        assert_eq!(at + 4, bytes.len());
        assert_eq!(records, 2 * FrameClass::ALL.len());
    }
}
