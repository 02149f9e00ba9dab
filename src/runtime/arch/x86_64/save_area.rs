#![allow(unsafe_code, reason = "reads what the CPU has")]
//! Which machine state this CPU and its operating system keep for each thread, and so what must be
//! saved of a goroutine that is interrupted.
//!
//! Never saved: the tiles of AMX (8 KiB, with a permission of their own) and PKRU (which is the
//! thread's).

use std::arch::asm;

use crate::jit::stubs::preempt::SaveArea;
use crate::runtime::arch::vector_state::VectorState;

/// Whether goroutines can be preempted in JIT code, by polls or by a signal.
pub(crate) const PREEMPTS_JIT_CODE: bool = true;

// Bits of XCR0: Intel SDM volume 1, section 13.1.
const X87_SSE: u32 = 0b11;
const AVX: u32 = 1 << 2;
const AVX512: u32 = 0b111 << 5;
/// The extended general-purpose registers, r16 to r31.
const APX: u32 = 1 << 19;

/// Legacy area and header (Intel SDM volume 1, section 13.4).
const HEADER_END: usize = 576;

/// How the state that `wanted` names is saved. `None`: this CPU, or its operating system, lacks it.
pub(crate) fn save_area(wanted: VectorState) -> Option<SaveArea> {
    let offered = enabled_state();
    let mask = match wanted {
        VectorState::Auto if offered & AVX != 0 => X87_SSE | offered & (AVX | AVX512 | APX),
        VectorState::Auto | VectorState::Sse => return Some(SaveArea::Fxsave),
        VectorState::Avx => X87_SSE | AVX,
        VectorState::Avx512 => X87_SSE | AVX | AVX512,
    };
    if mask & !offered != 0 {
        return None;
    }
    Some(SaveArea::Xsave { mask, bytes: standard_bytes(mask) })
}

/// What is saved here by default, in one sentence.
pub(crate) fn saved_state() -> String {
    match save_area(VectorState::Auto) {
        Some(SaveArea::Xsave { mask, bytes }) => {
            let vectors = if mask & AVX512 == AVX512 { "zmm, k" } else { "ymm" };
            let apx = if mask & APX != 0 { ", r16-r31" } else { "" };
            format!("XSAVE of x87, {vectors}{apx} in {bytes} bytes")
        }
        _ => "FXSAVE of x87, xmm in 512 bytes".into(),
    }
}

/// XCR0, or 0 where XSAVE cannot be used.
fn enabled_state() -> u32 {
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 0;
    }
    let low: u32;
    // SAFETY: the CPU has XSAVE and the operating system has enabled it, so XGETBV exists.
    unsafe {
        asm!(
            "xgetbv", in("ecx") 0, out("eax") low, out("edx") _,
            options(nomem, nostack, preserves_flags)
        );
    }
    low
}

/// Bytes of an XSAVE area in the standard format that holds the components of the mask. Size and
/// offset of component i are in sub-leaf i of CPUID leaf 0DH (Intel SDM volume 1, section 13.4.3).
fn standard_bytes(mask: u32) -> usize {
    let ends = (2..32).filter(|i| mask >> i & 1 != 0).map(|i| {
        let (size, offset) = cpuid_eax_ebx(0xd, i);
        (size + offset) as usize
    });
    ends.fold(HEADER_END, usize::max)
}

fn cpuid_eax_ebx(leaf: u32, sub_leaf: u32) -> (u32, u32) {
    let (eax, ebx): (u32, u64);
    // SAFETY: every x86-64 CPU has CPUID; rbx, which the compiler reserves, is restored.
    unsafe {
        asm!(
            "mov {rbx}, rbx",
            "cpuid",
            "xchg {rbx}, rbx",
            rbx = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") sub_leaf => _,
            out("edx") _,
            options(nomem, nostack, preserves_flags),
        );
    }
    (eax, ebx as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_hold_what_they_name() {
        assert_eq!(save_area(VectorState::Sse), Some(SaveArea::Fxsave));
        let offered = enabled_state();
        for (wanted, needed, least) in [
            (VectorState::Avx, AVX, 832),
            (VectorState::Avx512, AVX | AVX512, 832 + 64 + 512 + 1024),
        ] {
            match save_area(wanted) {
                Some(SaveArea::Xsave { mask, bytes }) => {
                    assert_eq!((mask & needed, needed & !offered), (needed, 0));
                    assert!((least..4096).contains(&bytes), "{bytes}");
                }
                Some(SaveArea::Fxsave) => panic!("FXSAVE does not save AVX state"),
                None => assert_ne!(needed & !offered, 0, "refused without a reason"),
            }
        }
    }
}
