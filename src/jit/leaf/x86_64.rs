//! Calls in x86-64 code: lengths of instructions, and where they lead. Intel SDM volume 2, chapter
//! 2 (formats) and appendix A (opcode maps).

use super::decoded::{Decoded, Flow};

/// What comes after the opcode.
#[derive(Clone, Copy)]
struct Operands {
    has_modrm: bool,
    immediate_bytes: usize,
}

/// No instruction is longer: Intel SDM volume 2, section 2.3.11.
const LONGEST: usize = 15;

/// `None`: no instruction, or one that this file does not know.
pub(super) fn decode(code: &[u8], start: usize) -> Option<Decoded> {
    let mut at = start;
    let byte = |at: usize| code.get(at).copied();
    let (mut wide, mut operand16, mut address32, mut is_fs) = (false, false, false, false);
    // Legacy prefixes in any order, then REX.
    loop {
        match byte(at)? {
            0x66 => operand16 = true,
            0x67 => address32 = true,
            0x64 => is_fs = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            _ => break,
        }
        at += 1;
    }
    if let rex @ 0x40..=0x4f = byte(at)? {
        wide = rex & 8 != 0;
        at += 1;
    }
    let opcode = byte(at)?;
    at += 1;
    let finish = |end: usize, flow: Flow| {
        let len = end - start;
        (end <= code.len() && len <= LONGEST).then_some(Decoded { len, flow })
    };
    let relative = |at: usize, bytes: usize| {
        let offset = match bytes {
            1 => i64::from(byte(at)?.cast_signed()),
            _ => i64::from(i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?)),
        };
        Some((at + bytes) as i64 + offset)
    };
    let jump = |at: usize, bytes: usize, may_fall_through: bool| {
        finish(at + bytes, Flow::Jump { to: relative(at, bytes)?, may_fall_through })
    };
    // ModRM, SIB and displacement.
    let memory_end = |at: usize| {
        let modrm = byte(at)?;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let mut end = at + 1;
        if mode != 3 && rm == 4 {
            let base = byte(end)? & 7;
            end += 1;
            end += if mode == 0 && base == 5 { 4 } else { 0 };
        } else if mode == 0 && rm == 5 {
            end += 4;
        }
        Some(end + [0, 1, 4, 0][usize::from(mode)])
    };
    let immediate = if operand16 && !wide { 2 } else { 4 };
    let operands = match opcode {
        // Jumps and calls.
        0x70..=0x7f | 0xe0..=0xe3 => return jump(at, 1, true),
        0xeb => return jump(at, 1, false),
        0xe9 => return jump(at, 4, false),
        0xe8 => return finish(at + 4, Flow::Call),
        0xc2 => return finish(at + 2, Flow::End),
        0xc3 | 0xcb | 0xcc | 0xcf | 0xf4 => return finish(at, Flow::End),
        0xca => return finish(at + 2, Flow::End),
        0xff => {
            let modrm = byte(at)?;
            let end = memory_end(at)?;
            // `call fs:[disp32]` is how the slow path of a poll leaves, from below the red zone.
            let is_poll = is_fs && modrm == 0x14 && byte(at + 1)? == 0x25;
            let flow = match modrm >> 3 & 7 {
                2 if is_poll => Flow::Next,
                2 | 3 => Flow::Call,
                4 | 5 => Flow::End,
                _ => Flow::Next,
            };
            return finish(end, flow);
        }
        0xc4 | 0xc5 | 0x62 => {
            // VEX and EVEX: the map is in the second byte, or is 0F.
            let (map, opcode_at) = match opcode {
                0xc5 => (1, at + 1),
                0xc4 => (byte(at)? & 31, at + 2),
                _ => (byte(at)? & 7, at + 3),
            };
            let mapped = byte(opcode_at)?;
            let immediate_bytes = match map {
                3 => 1,
                1 => usize::from(matches!(mapped, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6)),
                _ => 0,
            };
            // vzeroupper and vzeroall have no operands.
            let has_modrm = (map, mapped) != (1, 0x77) || opcode == 0x62;
            let end = if has_modrm { memory_end(opcode_at + 1)? } else { opcode_at + 1 };
            return finish(end + immediate_bytes, Flow::Next);
        }
        0x0f => {
            let opcode = byte(at)?;
            at += 1;
            match opcode {
                0x80..=0x8f => return jump(at, 4, true),
                0x0b => return finish(at, Flow::End),
                // Undefined ones, and those of the kernel.
                0x07 | 0x0e | 0x20..=0x23 | 0x35 | 0x78 | 0xaa | 0xb9 | 0xff => return None,
                0x05 | 0x34 => return finish(at, Flow::Next),
                0x38 => {
                    at += 1;
                    Operands { has_modrm: true, immediate_bytes: 0 }
                }
                0x3a => {
                    at += 1;
                    Operands { has_modrm: true, immediate_bytes: 1 }
                }
                0x06
                | 0x08
                | 0x09
                | 0x30..=0x34
                | 0x36
                | 0x37
                | 0x77
                | 0xa0..=0xa2
                | 0xa8
                | 0xa9
                | 0xc8..=0xcf => Operands { has_modrm: false, immediate_bytes: 0 },
                0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => {
                    Operands { has_modrm: true, immediate_bytes: 1 }
                }
                _ => Operands { has_modrm: true, immediate_bytes: 0 },
            }
        }
        // The eight operations: r/m forms, then an immediate for al and for rax.
        0x00..=0x3f => match opcode & 7 {
            0..=3 => Operands { has_modrm: true, immediate_bytes: 0 },
            4 => Operands { has_modrm: false, immediate_bytes: 1 },
            5 => Operands { has_modrm: false, immediate_bytes: immediate },
            _ => return None,
        },
        0x50..=0x5f
        | 0x90..=0x99
        | 0x9b..=0x9f
        | 0x6c..=0x6f
        | 0xa4..=0xa7
        | 0xaa..=0xaf
        | 0xc9
        | 0xd7
        | 0xec..=0xef
        | 0xf1
        | 0xf5
        | 0xf8..=0xfd => Operands { has_modrm: false, immediate_bytes: 0 },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe => {
            Operands { has_modrm: true, immediate_bytes: 0 }
        }
        0x68 => Operands { has_modrm: false, immediate_bytes: immediate },
        0x6a | 0xa8 | 0xcd | 0xe4..=0xe7 | 0xb0..=0xb7 => {
            Operands { has_modrm: false, immediate_bytes: 1 }
        }
        0xa9 => Operands { has_modrm: false, immediate_bytes: immediate },
        0x69 | 0x81 | 0xc7 => Operands { has_modrm: true, immediate_bytes: immediate },
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => Operands { has_modrm: true, immediate_bytes: 1 },
        0xb8..=0xbf => {
            let immediate_bytes = if wide { 8 } else { immediate };
            Operands { has_modrm: false, immediate_bytes }
        }
        // mov between al or rax and an absolute address
        0xa0..=0xa3 => {
            Operands { has_modrm: false, immediate_bytes: if address32 { 4 } else { 8 } }
        }
        0xc8 => Operands { has_modrm: false, immediate_bytes: 3 },
        // test has an immediate, the other six of the group have none
        0xf6 | 0xf7 => {
            let is_test = byte(at)? >> 3 & 7 < 2;
            let bytes = if opcode == 0xf6 { 1 } else { immediate };
            Operands { has_modrm: true, immediate_bytes: if is_test { bytes } else { 0 } }
        }
        _ => return None,
    };
    let end = if operands.has_modrm { memory_end(at)? } else { at };
    finish(end + operands.immediate_bytes, Flow::Next)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, FlowControl};

    use super::*;
    use crate::abi::Arch;
    use crate::jit::leaf::call_in;

    /// Against another decoder, on random bytes after each opcode of the maps with each of the
    /// common prefixes: all that both know has the same length and leads to the same place.
    #[test]
    fn lengths_and_flows_are_those_of_another_decoder() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random.to_le_bytes()
        };
        let (mut known, mut unknown) = (0, 0);
        let prefixes: [&[u8]; 16] = [
            &[],
            &[0x48],
            &[0x66],
            &[0xf3],
            &[0x41],
            &[0x0f],
            &[0x66, 0x0f],
            &[0xc5],
            &[0x64],
            &[0x67],
            &[0xc4, 0xe1, 0x79],
            &[0xc4, 0xe2, 0x79],
            &[0xc4, 0xe3, 0x79],
            &[0x62, 0xf1, 0x7c, 0x48],
            &[0x62, 0xf2, 0x7d, 0x48],
            &[0x62, 0xf3, 0x7d, 0x48],
        ];
        for round in 0..400_000_u32 {
            let mut code = [next(), next(), next()].concat();
            let opcode = (round / 16) as u8;
            let prefix = prefixes[(round % 16) as usize];
            code.splice(..prefix.len() + 1, prefix.iter().copied().chain([opcode]));
            let instruction = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
            if instruction.is_invalid() || instruction.code() == Code::Skinit {
                continue;
            }
            let Some(decoded) = decode(&code, 0) else {
                unknown += 1;
                continue;
            };
            known += 1;
            let what = format!("{instruction} {code:02x?}");
            assert_eq!(decoded.len, instruction.len(), "{what}");
            let target = instruction.near_branch64().cast_signed();
            let expected = match instruction.flow_control() {
                FlowControl::Call | FlowControl::IndirectCall => Flow::Call,
                FlowControl::UnconditionalBranch => {
                    Flow::Jump { to: target, may_fall_through: false }
                }
                FlowControl::ConditionalBranch => Flow::Jump { to: target, may_fall_through: true },
                FlowControl::Return | FlowControl::IndirectBranch => Flow::End,
                _ => continue,
            };
            let is_poll = expected == Flow::Call && decoded.flow == Flow::Next;
            assert!(is_poll || decoded.flow == expected, "{what}: {:?}", decoded.flow);
        }
        assert!(known > 200_000 && unknown < known / 25, "{known} known, {unknown} not");
    }

    #[test]
    fn calls_are_found_where_execution_comes() {
        for (code, expected) in [
            // xor eax, eax; ret; call
            (&[0x31, 0xc0, 0xc3, 0xe8, 0, 0, 0, 0][..], None),
            (&[0x31, 0xc0, 0xe8, 0, 0, 0, 0, 0xc3], Some(2)),
            // call rax; call [rax]; call [rip]
            (&[0xff, 0xd0, 0xc3], Some(0)),
            (&[0x90, 0xff, 0x10], Some(1)),
            (&[0xff, 0x15, 0, 0, 0, 0], Some(0)),
            // The call of a poll, and the same from another segment.
            (&[0x64, 0xff, 0x14, 0x25, 0, 0, 0, 0, 0xc3], None),
            (&[0x65, 0xff, 0x14, 0x25, 0, 0, 0, 0, 0xc3], Some(0)),
            // je +1; ret; call rax
            (&[0x74, 1, 0xc3, 0xff, 0xd0], Some(3)),
            // jmp +2; (data that looks like a call); ret
            (&[0xeb, 2, 0xff, 0xd0, 0xc3], None),
            // An immediate that looks like a call.
            (&[0xb8, 0xe8, 0, 0, 0, 0xc3], None),
            // A loop ends, and so does code that runs into its end.
            (&[0x90, 0xeb, 0xfd], None),
            (&[0x90], None),
            (&[0xe8, 0], None),
            // A jump out of the code.
            (&[0xe9, 0, 0, 1, 0], None),
            (&[0xeb, 0x80], None),
        ] {
            assert_eq!(call_in(Arch::Amd64, code), expected, "{code:02x?}");
        }
    }
}
