//! The stubs that deschedule a goroutine, on x86-64. Their frame is drawn in `mod.rs`.

use std::ops::Range;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use crate::abi::Gpr;
use crate::jit::emit::x86_64::{Emitter, Ops};
use crate::jit::frame::{FrameReport, RED_ZONE_BYTES};
use crate::jit::stubs::env::{ANCHOR_PC, StubEnv};

/// Where a frame of these stubs keeps what a walk may want, as offsets from rbp.
pub(crate) mod frame {
    use crate::abi::Gpr;

    /// The general registers of the interrupted code, in the order in which they are pushed. Its
    /// rbp is at rbp, and its rsp follows from the frame.
    pub(crate) const REGISTERS: [Gpr; 14] = [
        Gpr::RBX,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
        Gpr::RAX,
        Gpr::RCX,
        Gpr::RDX,
        Gpr::RSI,
        Gpr::RDI,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
    ];

    /// How far below rbp the one with this index is saved: rflags come first.
    pub(crate) const fn below_rbp(index: usize) -> usize {
        16 + 8 * index
    }

    /// Where the last one is, the lowest of them.
    pub(crate) const LOWEST_REGISTER: usize = below_rbp(REGISTERS.len() - 1);

    /// The interrupted pc.
    pub(crate) const PC: usize = 8;
    /// The interrupted rsp itself.
    pub(crate) const SP: usize = 16 + crate::jit::frame::RED_ZONE_BYTES;
    /// The anchor that the goroutine had when it was interrupted.
    pub(crate) const PREVIOUS_PC: isize = -128;
    pub(crate) const PREVIOUS_FP: isize = -136;
}

/// Bytes of the frame below the return address word, without area and alignment.
const FRAME_BYTES: usize = 8 + 136;

/// Flags that native code must not inherit: DF (bit 10, psABI section 3.2.1) and AC (bit 18).
const FOREIGN_FLAGS: i32 = 1 << 10 | 1 << 18;

/// How vector and x87 registers are saved.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only the code of an x86-64 processor finds out which")
)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SaveArea {
    /// FXSAVE: x87, MMX and xmm0..15, in 512 bytes.
    Fxsave,
    /// XSAVE of the state components in the mask.
    Xsave {
        /// Bits of XCR0.
        mask: u32,
        /// Bytes of the area in the standard format, header included.
        bytes: usize,
    },
}

impl SaveArea {
    /// Bytes of the area.
    fn bytes(self) -> usize {
        match self {
            Self::Fxsave => 512,
            Self::Xsave { bytes, .. } => bytes,
        }
    }

    /// Bytes of stack that a stub takes at most below the interrupted rsp, its target not counted.
    pub(crate) fn stack_bytes(self) -> usize {
        RED_ZONE_BYTES + 8 + FRAME_BYTES + 63 + self.bytes()
    }
}

/// The stub that a signal handler leads to. The handler has found that there is room on the stack.
pub(super) fn async_preempt(
    ops: &mut Ops,
    memory: Range<usize>,
    env: &StubEnv,
    area: SaveArea,
    target: usize,
) -> FrameReport {
    let slot = env.tls_resume_off;
    let mut e = Emitter::new(ops, memory);
    push_first(&mut e);
    save(&mut e, env, area);
    e.call(target);
    restore(e.ops, env, area);
    // rax is dead still: the pops of `pop_all` restore it.
    dynasm!(e.ops; .arch x64; mov rax, [rbp + 8]; fs mov [slot], rax);
    pop_all(&mut e);
    dynasm!(e.ops; .arch x64; lea rsp, [rsp + 8 + RED_ZONE_BYTES as i32]);
    e.stack_is_left();
    dynasm!(e.ops; .arch x64; fs jmp QWORD [slot]);
    e.finish().report
}

/// The stub that polls call.
pub(super) fn poll(
    ops: &mut Ops,
    memory: Range<usize>,
    env: &StubEnv,
    area: SaveArea,
    headroom_bytes: usize,
    target: usize,
) -> FrameReport {
    let (g, lo, headroom) = (env.tls_g_off, env.g_stack_lo_off, headroom_bytes as i32);
    let mut e = Emitter::new(ops, memory);
    push_first(&mut e);
    dynasm!(e.ops
        ; .arch x64
        ; fs mov rbx, [g]
        // Between two goroutines there is none, though the stack limit may request a yield.
        ; test rbx, rbx
        ; jz >no_room
        ; mov rbx, [rbx + lo]
        ; add rbx, headroom
        ; cmp rbp, rbx
        ; jb >no_room
    );
    save(&mut e, env, area);
    e.call(target);
    restore(e.ops, env, area);
    pop_all(&mut e);
    dynasm!(e.ops; .arch x64; ret RED_ZONE_BYTES as i16);
    dynasm!(e.ops; .arch x64; no_room: ; pop rbx; popfq; pop rbp);
    e.frame_is_dropped();
    dynasm!(e.ops; .arch x64; ret RED_ZONE_BYTES as i16);
    e.finish().report
}

/// rbp, rflags and rbx. No instruction so far changes a flag.
fn push_first(e: &mut Emitter<'_>) {
    const { assert!(matches!(frame::REGISTERS[0], Gpr::RBX)) };
    e.prologue();
    dynasm!(e.ops; .arch x64; pushfq; push rbx);
}

/// From rflags and rbx, which are pushed, to the call.
fn save(e: &mut Emitter<'_>, env: &StubEnv, area: SaveArea) {
    for &register in &frame::REGISTERS[1..] {
        dynasm!(e.ops; .arch x64; push Rq(register));
    }
    dynasm!(e.ops
        ; .arch x64
        // The other flags stay, TF among them: a debugger that steps continues to step.
        ; pushfq
        ; and DWORD [rsp], !FOREIGN_FLAGS
        ; popfq
        ; sub rsp, 16 + area.bytes() as i32
        ; and rsp, -64
    );
    match area {
        SaveArea::Fxsave => dynasm!(e.ops; .arch x64; fxsave64 [rsp]),
        SaveArea::Xsave { mask, .. } => {
            // XSAVE writes no more of the header than the first word, and of that the bits of the
            // mask; XRSTOR faults unless the others are zero (Intel SDM volume 1, section 13.8).
            dynasm!(e.ops; .arch x64; xor edx, edx);
            for at in (512..576).step_by(8) {
                dynasm!(e.ops; .arch x64; mov [rsp + at], rdx);
            }
            dynasm!(e.ops; .arch x64; mov eax, mask as i32; xsave64 [rsp]);
        }
    }
    let modes = env.tls_fp_control_off;
    dynasm!(e.ops
        ; .arch x64
        // No exception is pending after this, whatever the control word lets through.
        ; fninit
        ; fs fldcw WORD [modes + 4]
        ; fs ldmxcsr DWORD [modes]
    );
    if matches!(area, SaveArea::Xsave { mask, .. } if mask & AVX != 0) {
        // Upper halves in use would slow down every SSE instruction of native code.
        dynasm!(e.ops; .arch x64; vzeroupper);
    }
    let (anchor, g) = (env.g_anchor_off, env.tls_g_off);
    dynasm!(e.ops
        ; .arch x64
        // JIT code is left for native code: walks from there begin here.
        ; fs mov rax, [g]
        ; mov rcx, [rax + anchor]
        ; mov [rbp + frame::PREVIOUS_FP as i32], rcx
        ; mov rcx, [rax + anchor + ANCHOR_PC]
        ; mov [rbp + frame::PREVIOUS_PC as i32], rcx
        ; lea rcx, [rip]
        ; mov [rax + anchor], rbp
        ; mov [rax + anchor + ANCHOR_PC], rcx
        ; lea rdi, [rbp + 16 + RED_ZONE_BYTES as i32]
    );
}

/// Bit of XCR0 for the upper halves of ymm registers.
const AVX: u32 = 1 << 2;

/// The anchor, and vector and x87 registers, whatever thread this is.
fn restore(ops: &mut Ops, env: &StubEnv, area: SaveArea) {
    let (anchor, g) = (env.g_anchor_off, env.tls_g_off);
    dynasm!(ops
        ; .arch x64
        ; fs mov rax, [g]
        ; mov rcx, [rbp + frame::PREVIOUS_PC as i32]
        ; mov [rax + anchor + ANCHOR_PC], rcx
        ; mov rcx, [rbp + frame::PREVIOUS_FP as i32]
        ; mov [rax + anchor], rcx
    );
    match area {
        SaveArea::Fxsave => dynasm!(ops; .arch x64; fxrstor64 [rsp]),
        SaveArea::Xsave { mask, .. } => {
            dynasm!(ops; .arch x64; mov eax, mask as i32; xor edx, edx; xrstor64 [rsp]);
        }
    }
}

/// Everything that was pushed, flags and rbp last.
fn pop_all(e: &mut Emitter<'_>) {
    dynasm!(e.ops; .arch x64; lea rsp, [rbp - frame::LOWEST_REGISTER as i32]);
    for &register in frame::REGISTERS.iter().rev() {
        dynasm!(e.ops; .arch x64; pop Rq(register));
    }
    dynasm!(e.ops; .arch x64; popfq; pop rbp);
    e.frame_is_dropped();
}
