//! Checks of the stack on x86-64.

use std::ops::Range;

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use crate::jit::emit::x86_64::{Emitter, Ops};
use crate::jit::frame::{FrameReport, RED_ZONE_BYTES};
use crate::jit::stubs::env::{ANCHOR_PC, StubEnv};
use crate::jit::stubs::pinned::StackLimit;
use crate::jit::stubs::poll::x86_64::compare_rsp;

/// A check whose slow path is not emitted yet.
pub(crate) struct Pending {
    slow: DynamicLabel,
    back: DynamicLabel,
    counted_bytes: i32,
}

/// The compare and the branch. `counted_bytes`: of the frame that is about to be made, or 0.
pub(super) fn emit_check(ops: &mut Ops, limit: StackLimit, counted_bytes: i32) -> Pending {
    let (slow, back) = (ops.new_dynamic_label(), ops.new_dynamic_label());
    if counted_bytes == 0 {
        compare_rsp(ops, limit);
    } else {
        // No register is free, and rsp itself must not leave the stack: a signal may use it.
        // Neither `pop` nor `lea` changes flags.
        let below = RED_ZONE_BYTES as i32;
        dynasm!(ops
            ; .arch x64
            ; lea rsp, [rsp - below]
            ; push rax
            ; lea rax, [rsp + 8 + below - counted_bytes]
        );
        match limit {
            StackLimit::InGoroutine(g, off) => dynasm!(ops; .arch x64; cmp rax, [Rq(g) + off]),
            StackLimit::InThread(off) => dynasm!(ops; .arch x64; fs cmp rax, [off]),
        }
        dynasm!(ops; .arch x64; pop rax; lea rsp, [rsp + below]);
    }
    dynasm!(ops; .arch x64; jbe =>slow; =>back);
    Pending { slow, back, counted_bytes }
}

/// The slow path, at a place that execution does not reach by itself.
pub(crate) fn emit_slow_path(ops: &mut Ops, env: &StubEnv, pending: Pending) {
    let Pending { slow, back, counted_bytes } = pending;
    dynasm!(ops
        ; .arch x64
        ; =>slow
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; push DWORD counted_bytes
        ; fs call QWORD [env.tls_stack_check_off]
        ; lea rsp, [rsp + 8 + RED_ZONE_BYTES as i32]
        ; jmp =>back
    );
}

/// `memory`: where the code will be.
pub(super) fn emit_stub(
    ops: &mut Ops,
    memory: Range<usize>,
    env: &StubEnv,
    headroom_bytes: i32,
    overflowed: usize,
) -> FrameReport {
    let (g, anchor) = (env.tls_g_off, env.g_anchor_off);
    let mut e = Emitter::new(ops, memory);
    e.prologue();
    dynasm!(e.ops
        ; .arch x64
        ; push rax
        ; push rcx
        ; fs mov rax, QWORD [g]
        // Between two goroutines there is none, though the stack limit may request a yield.
        ; test rax, rax
        ; jz >room
        // rcx = bytes from the lowest address of the stack to rsp where the check is. Code that
        // runs on another stack, above or below it, is not near the end of this one, however
        // large its frame is: below, the difference is larger than any frame.
        ; lea rcx, [rbp + 24 + RED_ZONE_BYTES as i32]
        ; cmp rcx, [rax + env.g_stack_hi_off]
        ; ja >room
        ; sub rcx, [rax + env.g_stack_lo_off]
        ; mov rax, [rbp + 16]
        ; add rax, headroom_bytes
        ; cmp rcx, rax
        ; jbe >no_room
        ; room:
        ; pop rcx
        ; pop rax
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; fs call QWORD [env.tls_poll_off]
        ; pop rbp
    );
    e.frame_is_dropped();
    dynasm!(e.ops
        ; .arch x64
        ; ret
        // As a goroutine function leaves JIT code. The function that is called restores the
        // previous anchor, its second and third argument, when the panic has passed.
        ; no_room:
        ; fs mov rax, QWORD [g]
        ; mov rsi, [rax + anchor]
        ; mov rdx, [rax + anchor + ANCHOR_PC]
        ; lea rcx, [rip]
        ; mov [rax + anchor], rbp
        ; mov [rax + anchor + ANCHOR_PC], rcx
        ; mov rdi, [rbp + 8]
        ; and rsp, -16
    );
    e.call(overflowed);
    dynasm!(e.ops; .arch x64; ud2);
    e.finish().report
}

// The walks read slow paths in code of the host only.
#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, Register};

    use super::super::emit_check;
    use super::*;
    use crate::abi::{Convention, Gpr};
    use crate::jit::stubs::poll;
    use crate::jit::unwind::user_code::{is_rax_pushed, resumes_at};

    const ENV: StubEnv = StubEnv {
        tls_g_off: -8,
        g_anchor_off: 16,
        g_stack_limit_off: 32,
        g_stack_lo_off: 40,
        g_stack_hi_off: 48,
        tls_stack_limit_off: -16,
        tls_poll_off: -24,
        tls_stack_check_off: -32,
        tls_resume_off: -40,
        tls_fp_control_off: -56,
        no_goroutine: 0,
        broken_call: 0,
    };

    /// What walks know of the code that polls and checks emit, at each instruction of it.
    #[test]
    fn slow_paths_lead_back_and_rax_is_pushed_between_push_and_pop() {
        for convention in [Convention::SystemV, Convention::GoAbiInternal] {
            // A stack limit that is near in the goroutine, and one that is far.
            for g_stack_limit_off in [32, 512] {
                let env = StubEnv { g_stack_limit_off, ..ENV };
                let stubs_from_fs = [env.tls_poll_off, env.tls_stack_check_off];
                let mut ops = Ops::new_with_capacity(0x1000, 256, 0, 0, 8, 0, 8);
                let mut backs = Vec::new();
                let pending = poll::emit(&mut ops, &env, convention);
                backs.push(ops.offset().0);
                let (g, below, far) = (Gpr::R14, -(RED_ZONE_BYTES as i32), -1000);
                let checks = [0, 1000].map(|frame_bytes| {
                    let check = emit_check(&mut ops, &env, convention, frame_bytes);
                    backs.push(ops.offset().0);
                    check
                });
                // A call of something else in what looks like a slow path, and half of a compare.
                dynasm!(ops
                    ; .arch x64
                    ; lea rsp, [rsp + below]
                    ; fs call QWORD [-48]
                    ; jmp >over
                    ; push rax
                    ; lea rax, [rsp + far]
                    ; cmp rax, [Rq(g) + far]
                    ; pop rax
                    ; over:
                    ; ret
                );
                let slow_paths = ops.offset().0;
                poll::emit_slow_path(&mut ops, &env, pending);
                for check in checks {
                    emit_slow_path(&mut ops, &env, check);
                }
                // As a user's emitter may write it, with short forms.
                let check_off = env.tls_stack_check_off;
                backs.push(slow_paths);
                dynasm!(ops
                    ; .arch x64
                    ; lea rsp, [rsp - 128]
                    ; push BYTE 8
                    ; fs call QWORD [check_off]
                    ; lea rsp, [rsp + 136]
                );
                let back = i8::try_from(slow_paths as i64 - (ops.offset().0 as i64 + 2));
                dynasm!(ops; .arch x64; .bytes [0xeb, back.expect("in reach") as u8]);
                let code = ops.finalize().expect("it assembles");
                let decoder = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
                let (mut slow_path, mut is_pushed, mut pushed) = (0, false, 0);
                for instruction in decoder {
                    let at = instruction.ip() as usize;
                    let expected = if at < slow_paths { at } else { backs[slow_path] };
                    let found = resumes_at(&code, at, stubs_from_fs);
                    assert_eq!(found, expected, "{convention:?} at {at:#x}");
                    let is_jump =
                        matches!(instruction.code(), Code::Jmp_rel32_64 | Code::Jmp_rel8_64);
                    slow_path += usize::from(at >= slow_paths && is_jump);
                    assert_eq!(is_rax_pushed(&code, at), is_pushed, "{convention:?} at {at:#x}");
                    pushed += u32::from(is_pushed);
                    let is_own = at < backs[2];
                    match (instruction.code(), instruction.op0_register()) {
                        (Code::Push_r64, Register::RAX) if is_own => is_pushed = true,
                        (Code::Pop_r64, Register::RAX) => is_pushed = false,
                        _ => {}
                    }
                }
                assert_eq!((slow_path, pushed), (4, 3));
                // No byte of any code makes them look elsewhere.
                for at in 0..=code.len() + 16 {
                    resumes_at(&code, at, stubs_from_fs);
                    is_rax_pushed(&code, at);
                    is_rax_pushed(&code[..code.len().min(at)], at);
                }
            }
        }
    }
}
