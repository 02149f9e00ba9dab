#![allow(unsafe_code, reason = "hands unwind tables to the process's unwinder")]
//! Unwind tables for whole ranges of code: one FDE per range and frame class, for ever.
//!
//! All frames of a class look alike, so one row of call frame information covers any number of
//! stubs. The price: the row is wrong in the two instructions of a prologue and at the `ret`. A
//! panic never stops there, since an unwinder that starts with a call sees call sites only. The
//! crate's own walker does not use these tables.
//!
//! Formats: DWARF 5 section 6.4, LSB Core 5.0 section 10.6 (`.eh_frame`). Register numbers:
//! System V psABI x86-64, figure 3.36.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use super::frame::FrameClass;

// DWARF register numbers.
const RBX: u8 = 3;
const RBP: u8 = 6;
const RSP: u8 = 7;
const R12: u8 = 12;
const RETURN_ADDRESS: u8 = 16;

const DW_CFA_DEF_CFA: u8 = 0x0c;
const DW_CFA_UNDEFINED: u8 = 0x07;
const DW_CFA_OFFSET: u8 = 0x80;
const DW_EH_PE_ABSPTR: u8 = 0x00;

/// Where an entry frame keeps things, as offsets from rbp.
pub(crate) mod entry_frame {
    /// fp of the anchor that was current before.
    pub(crate) const PREVIOUS_FP: i32 = -56;
    /// pc of the anchor that was current before.
    pub(crate) const PREVIOUS_PC: i32 = -48;
    /// Address of the anchor.
    pub(crate) const ANCHOR: i32 = -64;
}

unsafe extern "C" {
    fn __register_frame(begin: *const c_void);
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

const URC_CONTINUE_UNWIND: c_int = 8;
const UA_CLEANUP_PHASE: c_int = 2;

/// Runs when a panic passes an entry frame: puts the previous anchor back, as the stub would have
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
            let fp = _Unwind_GetGR(context, c_int::from(RBP));
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
    /// LLVM's has a function that libgcc's has not.
    pub(crate) fn of_this_process() -> Self {
        // SAFETY: a NUL-terminated name; the result is only compared.
        let marker = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__unw_add_dynamic_fde".as_ptr()) };
        if marker.is_null() { Self::Libgcc } else { Self::Llvm }
    }
}

/// Tells the process's unwinder about the ranges. They stay registered for ever.
pub(crate) fn register(ranges: &[(Range<usize>, FrameClass)]) {
    let (section, fdes) = section(ranges);
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
}

/// The bytes of an `.eh_frame` section, and where its FDEs start.
fn section(ranges: &[(Range<usize>, FrameClass)]) -> (Vec<u8>, Vec<usize>) {
    let mut out = Vec::new();
    let mut fdes = Vec::new();
    for (range, class) in ranges {
        let cie = out.len();
        record(&mut out, |out| {
            out.extend(0u32.to_le_bytes()); // this is a CIE
            out.push(1); // version
            let personality = *class == FrameClass::Entry;
            out.extend(if personality { &b"zPR\0"[..] } else { &b"zR\0"[..] });
            out.push(1); // code alignment factor
            out.push(0x78); // data alignment factor: -8 as SLEB128
            out.push(RETURN_ADDRESS);
            if personality {
                out.push(10); // bytes of augmentation data
                out.push(DW_EH_PE_ABSPTR);
                out.extend((entry_personality as *const () as u64).to_le_bytes());
            } else {
                out.push(1);
            }
            out.push(DW_EH_PE_ABSPTR); // how the FDE writes its range
            out.extend(rules(*class));
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

/// The one row of a class.
fn rules(class: FrameClass) -> Vec<u8> {
    // "register is saved at CFA - 8*words"
    let at = |register: u8, words: u8| [DW_CFA_OFFSET | register, words];
    let framed = [&[DW_CFA_DEF_CFA, RBP, 16][..], &at(RETURN_ADDRESS, 1), &at(RBP, 2)].concat();
    match class {
        FrameClass::Standard => framed,
        FrameClass::Saved | FrameClass::Entry => {
            let saved = [RBX, R12, R12 + 1, R12 + 2, R12 + 3];
            let saved = saved.iter().zip(3..).flat_map(|(&register, words)| at(register, words));
            framed.into_iter().chain(saved).collect()
        }
        FrameClass::Root => {
            vec![DW_CFA_DEF_CFA, RSP, 8, DW_CFA_UNDEFINED, RETURN_ADDRESS]
        }
        FrameClass::Barrier => {
            vec![DW_CFA_DEF_CFA, RBP, 16, DW_CFA_UNDEFINED, RETURN_ADDRESS]
        }
        FrameClass::Leaf => [&[DW_CFA_DEF_CFA, RSP, 8][..], &at(RETURN_ADDRESS, 1)].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_aligned_and_point_to_their_cie() {
        let ranges: Vec<_> = FrameClass::ALL
            .iter()
            .map(|&c| (0x1000 * c as usize..0x1000 * (c as usize + 1), c))
            .collect();
        let (bytes, fdes) = section(&ranges);
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
        assert_eq!(records, 12);
    }
}
