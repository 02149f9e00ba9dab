//! JIT code asks at its entry whether there is stack enough for it: with the compare of a poll.
//!
//! ```text
//!         push rbp
//!         mov rbp, rsp
//!         (callee-saved pushes of frame class Saved)
//!         cmp rsp, [guard]      or, where the frame is large, rsp less its size
//!         jbe slow              not taken
//!     back:
//!         sub rsp, frame
//!         ...
//!     slow:                     out of line, behind the code
//!         lea rsp, [rsp - 128]  the red zone may be in use
//!         push frame
//!         call fs:[stack check stub]
//!         lea rsp, [rsp + 136]
//!         jmp back
//! ```
//!
//! The guard is what polls compare with (`poll.rs`), so that one branch serves both: the stub finds
//! out whether the stack is nearly used up or somebody wants the goroutine to give way. In the
//! second case it polls, and returns. In the first it calls a Rust function that panics. It has a
//! frame of class Standard, and so has the code that calls it, so that the panic passes to whoever
//! catches it.
//!
//! ```text
//!     |  frame of JIT code        |      addresses grow upwards
//!     |  red zone, 128 bytes      |  rbp+24
//!     |  bytes of the new frame   |  rbp+16
//!     |  return address           |  rbp+8
//!     |  rbp of JIT code          |  <- rbp = anchor.fp
//!     |  rax, rcx                 |  rbp-8, rbp-16
//! ```
//!
//! The stub is entered above the limit less what code takes that does not ask: what the panic needs
//! is below (`runtime/overflow.rs`). Nothing but flags is changed for the code that goes on.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::goroutine_fn::pinned_to;
use super::preempt::RED_ZONE_BYTES;
use super::{ANCHOR_PC, StubEnv};
use crate::abi::{Convention, Pinned, Reg};
use crate::jit::emit::x86_64::Emitter;
use crate::jit::{Arena, FrameClass, JitError, Ops, STUB_BYTES, StubKind, StubSpec};

/// Frames of so many bytes are not counted: the room for a panic has them to spare.
pub(crate) const SMALL_FRAME_BYTES: usize = 256;

/// A check whose slow path is not emitted yet.
pub(crate) struct Pending {
    slow: DynamicLabel,
    back: DynamicLabel,
    frame_bytes: i32,
}

/// The compare and the branch, before a frame of so many bytes is made.
pub(crate) fn emit_check(
    ops: &mut Ops,
    env: &StubEnv,
    convention: Convention,
    frame_bytes: i32,
) -> Pending {
    let (slow, back) = (ops.new_dynamic_label(), ops.new_dynamic_label());
    let g = match pinned_to(convention, Pinned::Goroutine) {
        Some(Reg::Gpr(g)) => Some(g),
        _ => None,
    };
    let is_large = frame_bytes > SMALL_FRAME_BYTES as i32;
    if is_large {
        // No register is free, and rsp itself must not leave the stack: a signal may use it. Neither
        // `pop` nor `lea` changes flags.
        let below = RED_ZONE_BYTES as i32;
        dynasm!(ops
            ; .arch x64
            ; lea rsp, [rsp - below]
            ; push rax
            ; lea rax, [rsp + 8 + below - frame_bytes]
        );
        match g {
            Some(g) => dynasm!(ops; .arch x64; cmp rax, [Rq(g) + env.g_guard_off]),
            None => dynasm!(ops; .arch x64; fs cmp rax, [env.tls_guard_off]),
        }
        dynasm!(ops; .arch x64; pop rax; lea rsp, [rsp + below]);
    } else {
        match g {
            Some(g) => dynasm!(ops; .arch x64; cmp rsp, [Rq(g) + env.g_guard_off]),
            None => dynasm!(ops; .arch x64; fs cmp rsp, [env.tls_guard_off]),
        }
    }
    dynasm!(ops; .arch x64; jbe =>slow; =>back);
    // What the compare did not count the stub does not count either.
    Pending { slow, back, frame_bytes: if is_large { frame_bytes } else { 0 } }
}

/// Whether rax is not in its register but where rsp points to, so many bytes from the start of the
/// code: between the two ends of the compare of a large frame. There rax holds an address of the
/// stack, and gets its value back afterwards.
pub(crate) fn is_rax_pushed(code: &[u8], at: usize) -> bool {
    // lea rsp, [rsp - 128]; push rax; lea rax, [rsp + disp32]
    const BEGINNING: [u8; 13] =
        [0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff, 0x50, 0x48, 0x8d, 0x84, 0x24];
    const LEA: usize = 9;
    const COMPARE: usize = BEGINNING.len() + 4;
    const POP_RAX: u8 = 0x58;
    // cmp rax, fs:[disp32]; cmp rax, [register + disp32], where the register may be any
    let compare_bytes = |compare: &[u8]| match compare {
        [0x64, 0x48, 0x3b, 0x04, 0x25, ..] => Some(9),
        [0x48 | 0x49, 0x3b, 0x84, ..] => Some(8),
        _ => None,
    };
    [LEA, COMPARE, COMPARE + 8, COMPARE + 9].into_iter().any(|into| {
        let Some(code) = at.checked_sub(into).and_then(|start| code.get(start..)) else {
            return false;
        };
        let compare = code.get(COMPARE..).unwrap_or_default();
        let Some(pop) = compare_bytes(compare).map(|bytes| COMPARE + bytes) else {
            return false;
        };
        code.starts_with(&BEGINNING)
            && code.get(pop) == Some(&POP_RAX)
            && [LEA, COMPARE, pop].contains(&into)
    })
}

/// The slow path, where execution does not come by itself.
pub(crate) fn emit_slow_path(ops: &mut Ops, env: &StubEnv, pending: Pending) {
    let Pending { slow, back, frame_bytes } = pending;
    dynasm!(ops
        ; .arch x64
        ; =>slow
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; push DWORD frame_bytes
        ; fs call QWORD [env.tls_stack_check_off]
        ; lea rsp, [rsp + 8 + RED_ZONE_BYTES as i32]
        ; jmp =>back
    );
}

/// Emits the stub. `overflowed` is a Rust function that gets the return address into the code that
/// checks, and fp and pc of the previous anchor, and panics. `headroom_bytes` are between the
/// lowest address of a stack and its guard.
pub(crate) fn emit_stub(
    arena: &'static Arena,
    env: &StubEnv,
    headroom_bytes: usize,
    overflowed: usize,
) -> Result<usize, JitError> {
    let spec = StubSpec {
        name: "stack check",
        kind: StubKind::StackCheck,
        class: FrameClass::Standard,
        signature: None,
        user_data: 0,
    };
    let (g, anchor, headroom) = (env.tls_g_off, env.g_anchor_off, headroom_bytes as i32);
    let emitted = arena.emit(&spec, STUB_BYTES, |ops| {
        let mut e = Emitter::new(ops, arena.range());
        let prologue_bytes = e.prologue();
        dynasm!(e.ops
            ; .arch x64
            ; push rax
            ; push rcx
            ; fs mov rax, QWORD [g]
            // Between two goroutines there is none, though the guard may ask for one.
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
            ; add rax, headroom
            ; cmp rcx, rax
            ; jbe >no_room
            ; room:
            ; pop rcx
            ; pop rax
            ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
            ; fs call QWORD [env.tls_poll_off]
            ; pop rbp
            ; ret
            // As a goroutine function leaves JIT code. Who is called puts the previous anchor, its
            // second and third argument, back when the panic has passed.
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
        e.finish();
        prologue_bytes
    });
    emitted.map(|id| id.start())
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, DecoderOptions, Register};

    use super::*;
    use crate::abi::Gpr;
    use crate::jit::stubs::poll;

    const ENV: StubEnv = StubEnv {
        tls_g_off: -8,
        g_anchor_off: 16,
        g_guard_off: 32,
        g_stack_lo_off: 40,
        g_stack_hi_off: 48,
        tls_guard_off: -16,
        tls_poll_off: -24,
        tls_stack_check_off: -32,
        tls_resume_off: -40,
        tls_float_modes_off: -56,
        no_goroutine: 0,
    };

    /// What walks know of the code that polls and checks emit, at each instruction of it.
    #[test]
    fn slow_paths_lead_back_and_rax_is_pushed_between_push_and_pop() {
        for convention in [Convention::SystemV, Convention::GoAbiInternal] {
            // A guard that is near in the goroutine, and one that is far.
            for g_guard_off in [32, 512] {
                let env = StubEnv { g_guard_off, ..ENV };
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
                // As somebody else may emit it, with short forms.
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
                    let found = poll::goes_on_at(&code, at, &env);
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
                    poll::goes_on_at(&code, at, &env);
                    is_rax_pushed(&code, at);
                    is_rax_pushed(&code[..code.len().min(at)], at);
                }
            }
        }
    }
}
