//! Puts a goroutine aside at any instruction of JIT code, and later goes on there as if nothing
//! had been.
//!
//! Two stubs, alike but for the way in and out:
//!
//! * *async preempt*: a signal handler points the interrupted thread here. It leaves 128 bytes below
//!   the interrupted rsp alone (the red zone: System V psABI, section 3.2.2), writes the interrupted
//!   pc below them, and sets rsp to that word and rip to the stub.
//! * *poll*: code that finds at a poll that its time is over does the same by itself: it moves
//!   rsp below its red zone and calls the stub (`poll.rs`).
//!
//! ```text
//!     |  interrupted stack        |  <- S, the interrupted rsp       addresses grow upwards
//!     |  red zone, 128 bytes      |
//!     |  where to go on           |  S-136                           rbp+8
//!     |  rbp                      |  <- rbp
//!     |  rflags                   |  rbp-8
//!     |  rbx, r12 .. r15          |  rbp-16 .. rbp-48
//!     |  rax, rcx, rdx, rsi, rdi  |  rbp-56 .. rbp-88
//!     |  r8 .. r11                |  rbp-96 .. rbp-120
//!     |  previous anchor: pc, fp  |  rbp-128, rbp-136
//!     |  (alignment)              |
//!     |  XSAVE or FXSAVE area     |  <- rsp, 64-aligned
//! ```
//!
//! A poll may come where the stack is nearly used up. If there is no room for the frame and for the
//! target, the stub returns at once: the goroutine gives way at a later poll.
//!
//! Everything is saved before anything is changed, flags included. Native code is entered in the
//! modes that it expects: DF and AC clear, the x87 stack empty, MXCSR and x87 control word as the
//! thread had them when it became an M, which a thread-local word says. When the target returns the
//! thread may be another one: the stub reads thread-local words anew.
//!
//! The goroutine's anchor is this frame while the target runs. Before and afterwards it is the
//! previous one, which native code further out may rely on if it has called the interrupted code by
//! its bare address. The slots of the previous anchor are written before the anchor, whose fp is
//! the first word to change and the last one to change back: while the anchor's fp is the frame's
//! rbp, the slots hold the previous one, and otherwise the anchor itself is (`unwind.rs`).
//!
//! The way back needs a register that holds nothing, and there is none. *poll* has a return
//! address, and leaves by `ret 128`. *async preempt* was never called, so that a `ret` would upset
//! the return predictor and break a shadow stack; it leaves by a jump through a thread-local word.
//! Nobody else on the thread uses that word in between: the stub is not preemptible.
//!
//! The stub belongs to frame class Root, since to the unwinder of panics nothing is above it: no
//! panic starts at an arbitrary instruction. The crate's own walks know it by its kind
//! (`unwind.rs`).

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use super::{ANCHOR_PC, StubEnv, stack_check};
use crate::abi::Gpr;
use crate::jit::emit::x86_64::Emitter;
use crate::jit::{Arena, FrameClass, JitError, Ops, STUB_BYTES, StubKind, StubSpec};

/// Bytes below rsp that belong to the interrupted code.
pub(crate) const RED_ZONE_BYTES: usize = 128;

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
    pub(crate) const SP: usize = 16 + super::RED_ZONE_BYTES;
    /// The anchor that the goroutine had when it was interrupted.
    pub(crate) const PREVIOUS_PC: isize = -128;
    pub(crate) const PREVIOUS_FP: isize = -136;
}

/// How far the frame of a stub is at a pc in it, where that does not follow from the offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leaving {
    /// The frame is there, or not yet.
    No,
    /// rbp is the interrupted one's again, and rsp leads to the interrupted pc.
    FrameDropped,
    /// rsp is the interrupted one's, too; the interrupted pc is in the thread-local word.
    AtJump,
}

/// Reads that from the bytes of the instruction at the pc, which are asked for in their order.
pub(crate) fn leaving(byte: impl Fn(usize) -> u8) -> Leaving {
    match byte(0) {
        // ret imm16
        0xc2 => Leaving::FrameDropped,
        // lea rsp, [rsp + disp32]
        0x48 if byte(1) == 0x8d && byte(2) == 0xa4 && byte(3) == 0x24 => Leaving::FrameDropped,
        // jmp QWORD PTR fs:[disp32]
        0x64 if byte(1) == 0xff && byte(2) == 0x24 && byte(3) == 0x25 => Leaving::AtJump,
        _ => Leaving::No,
    }
}

/// Bytes of the frame below the return address word, without area and alignment.
const FRAME_BYTES: usize = 8 + 136;

/// Flags that native code must not inherit: DF (bit 10, psABI section 3.2.1) and AC (bit 18).
const FOREIGN_FLAGS: i32 = 1 << 10 | 1 << 18;

/// How vector and x87 registers are saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SaveArea {
    /// FXSAVE: x87, MMX and xmm0..15, in 512 bytes.
    Fxsave,
    /// XSAVE of the state components in the mask, in an area of so many bytes.
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

/// Addresses of the two stubs, and of the one that checks of the stack lead to.
#[derive(Clone, Copy)]
pub(crate) struct PreemptStubs {
    pub(crate) async_preempt: usize,
    pub(crate) poll: usize,
    pub(crate) stack_check: usize,
}

/// Rust functions that are called with the interrupted rsp, on the goroutine's stack. They do not
/// unwind, but for `overflowed`: see `stack_check.rs`.
#[derive(Clone, Copy)]
pub(crate) struct Targets {
    pub(crate) async_preempt: usize,
    pub(crate) poll: usize,
    pub(crate) overflowed: usize,
}

/// The name of the stub that polls lead to, as tracebacks know it.
pub(crate) const POLL: &str = "poll";

/// Emits all. Of a goroutine's stack at least `headroom_bytes` are left below the interrupted rsp
/// when a target is called, the frame of the stub included.
pub(crate) fn emit(
    arena: &'static Arena,
    env: &StubEnv,
    area: SaveArea,
    headroom_bytes: usize,
    targets: Targets,
) -> Result<PreemptStubs, JitError> {
    let stub = |name, target, checks_room: bool, leave: &dyn Fn(&mut Ops)| {
        let spec = StubSpec {
            name,
            kind: StubKind::Preempt,
            class: FrameClass::Root,
            signature: None,
            user_data: 0,
        };
        let emitted = arena.emit(&spec, STUB_BYTES, |ops| {
            let mut e = Emitter::new(ops, arena.range());
            let prologue_bytes = e.prologue();
            // No instruction so far changed a flag.
            const { assert!(matches!(frame::REGISTERS[0], Gpr::RBX)) };
            dynasm!(e.ops; .arch x64; pushfq; push rbx);
            if checks_room {
                let (g, lo, headroom) = (env.tls_g_off, env.g_stack_lo_off, headroom_bytes as i32);
                dynasm!(e.ops
                    ; .arch x64
                    ; fs mov rbx, [g]
                    // Between two goroutines there is none, though the guard may ask for one.
                    ; test rbx, rbx
                    ; jz >no_room
                    ; mov rbx, [rbx + lo]
                    ; add rbx, headroom
                    ; cmp rbp, rbx
                    ; jb >no_room
                );
            }
            save(&mut e, env, area);
            e.call(target);
            restore(e.ops, env, area);
            leave(e.ops);
            if checks_room {
                dynasm!(e.ops; .arch x64; no_room: ; pop rbx; popfq; pop rbp);
                dynasm!(e.ops; .arch x64; ret RED_ZONE_BYTES as i16);
            }
            e.finish();
            prologue_bytes
        });
        emitted.map(|id| id.start())
    };
    let slot = env.tls_resume_off;
    Ok(PreemptStubs {
        // The handler has looked whether there is room.
        async_preempt: stub("async preempt", targets.async_preempt, false, &|ops| {
            // rax is dead still: the pops of `pop_all` restore it.
            dynasm!(ops; .arch x64; mov rax, [rbp + 8]; fs mov [slot], rax);
            pop_all(ops);
            dynasm!(ops
                ; .arch x64
                ; lea rsp, [rsp + 8 + RED_ZONE_BYTES as i32]
                ; fs jmp QWORD [slot]
            );
        })?,
        poll: stub(POLL, targets.poll, true, &|ops| {
            pop_all(ops);
            dynasm!(ops; .arch x64; ret RED_ZONE_BYTES as i16);
        })?,
        stack_check: stack_check::emit_stub(arena, env, headroom_bytes, targets.overflowed)?,
    })
}

/// From rflags and rbx, which are pushed, to the call.
fn save(e: &mut Emitter<'_>, env: &StubEnv, area: SaveArea) {
    for &register in &frame::REGISTERS[1..] {
        dynasm!(e.ops; .arch x64; push Rq(register));
    }
    dynasm!(e.ops
        ; .arch x64
        // The other flags stay, TF among them: who steps goes on stepping.
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
    let modes = env.tls_float_modes_off;
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
fn pop_all(ops: &mut Ops) {
    dynasm!(ops; .arch x64; lea rsp, [rbp - frame::LOWEST_REGISTER as i32]);
    for &register in frame::REGISTERS.iter().rev() {
        dynasm!(ops; .arch x64; pop Rq(register));
    }
    dynasm!(ops; .arch x64; popfq; pop rbp);
}
