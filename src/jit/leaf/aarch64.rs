//! Calls in AArch64 code. Encodings: Arm Architecture Reference Manual for A-profile, section C4.1.

use super::decoded::{Decoded, Flow};

pub(super) fn decode(code: &[u8], at: usize) -> Option<Decoded> {
    let word = code.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)?;
    // An offset of `bits` bits from bit `low` on, in instructions.
    let to = |low: u32, bits: u32| {
        let shifted = (word << (32 - bits - low)).cast_signed() >> (32 - bits);
        at as i64 + i64::from(shifted) * 4
    };
    let flow = match word {
        // bl; blr and its forms with pointer authentication
        w if w & 0xfc00_0000 == 0x9400_0000 || w & 0xfeff_f000 == 0xd63f_0000 => Flow::Call,
        // b
        w if w & 0xfc00_0000 == 0x1400_0000 => {
            Flow::Jump { to: to(0, 26), may_fall_through: false }
        }
        // b.cond; cbz, cbnz
        w if w & 0xff00_0000 == 0x5400_0000 || w & 0x7e00_0000 == 0x3400_0000 => {
            Flow::Jump { to: to(5, 19), may_fall_through: true }
        }
        // tbz, tbnz
        w if w & 0x7e00_0000 == 0x3600_0000 => Flow::Jump { to: to(5, 14), may_fall_through: true },
        // br, ret; udf; brk
        w if w & 0xfe00_0000 == 0xd600_0000 || w >> 16 == 0 || w & 0xffe0_001f == 0xd420_0000 => {
            Flow::End
        }
        _ => Flow::Next,
    };
    Some(Decoded { len: 4, flow })
}

#[cfg(test)]
mod tests {
    use crate::abi::Arch;
    use crate::jit::leaf::call_in;

    fn call(words: &[u32]) -> Option<usize> {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        call_in(Arch::Aarch64, &code)
    }

    #[test]
    fn calls_are_found_where_execution_comes() {
        const NOP: u32 = 0xd503_201f;
        const RET: u32 = 0xd65f_03c0;
        const BL: u32 = 0x9400_0010;
        const BLR: u32 = 0xd63f_0200;
        assert_eq!(call(&[NOP, RET, BL]), None);
        assert_eq!(call(&[NOP, BL, RET]), Some(4));
        assert_eq!(call(&[BLR]), Some(0));
        // b +12; bl; ret; blr
        assert_eq!(call(&[0x1400_0003, BL, RET, BLR]), Some(12));
        // cbz x0, +12 and b.eq +12 and tbz w0, #0, +12: both ways.
        for branch in [0xb400_0060, 0x5400_0060, 0x3600_0060] {
            assert_eq!(call(&[branch, NOP, RET, BLR]), Some(12), "{branch:#x}");
            assert_eq!(call(&[branch, BL, RET, NOP, RET]), Some(4), "{branch:#x}");
        }
        // A loop ends: nop; b -4.
        assert_eq!(call(&[NOP, 0x17ff_ffff]), None);
        // br x1 is no call.
        assert_eq!(call(&[0xd61f_0020, BL]), None);
    }
}
