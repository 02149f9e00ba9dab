//! The state of the machine: as values, as differences, and the code that loads and stores it.

#![allow(unsafe_code, reason = "loads control words")]

use std::fmt;
use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Convention, Gpr, Reg, RegSet, Xmm};
use footbridge::jit::Ops;

/// MXCSR and the x87 control word of a new thread: psABI 3.2.1, "CPU state".
pub const NATIVE_FP_CONTROL: (u32, u16) = (0x1f80, 0x37f);
/// Round up, flush to zero, all exceptions masked: two fields differ from the default.
pub const MXCSR: u32 = 0xdf80;
/// MXCSR without the six exception flags, which every floating-point instruction may set.
const MXCSR_CONTROL: u32 = !0x3f;
/// Round to nearest, double precision, only the invalid-operation exception masked.
pub const X87_CONTROL: u16 = 0x0241;
pub(super) const DF: u64 = 1 << 10;
/// Carry, parity, adjust, zero, sign, overflow, interrupts enabled, and bit 1, which is always set.
pub(super) const FLAGS: u64 = 0xad7;

/// The memory image of FXSAVE64.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub(super) struct Fx(pub(super) [u8; 512]);

pub(super) const FX_MXCSR: usize = 24;
const FX_TAGS: usize = 4;
pub(super) const FX_XMM: usize = 160;

/// All registers.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct State {
    pub(super) gprs: [u64; 16],
    pub(super) flags: u64,
    _pad: u64,
    pub(super) fx: Fx,
}

impl State {
    /// A different value in each register, depending on the seed.
    pub fn distinct(seed: u64) -> Self {
        let mut state = Self { gprs: [0; 16], flags: FLAGS, _pad: 0, fx: Fx([0; 512]) };
        for register in Gpr::ALL {
            state.set_gpr(register, pattern(seed, 0x100 + u64::from(register.index())));
        }
        for register in Xmm::ALL {
            let n = u64::from(register.index());
            state.set_xmm(register, [pattern(seed, 0x200 + n), pattern(seed, 0x300 + n)]);
        }
        state.set_mxcsr(MXCSR);
        state.set_x87_control(X87_CONTROL);
        state
    }

    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[usize::from(register.index())]
    }

    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[usize::from(register.index())] = value;
    }

    pub fn xmm(&self, register: Xmm) -> [u64; 2] {
        let at = FX_XMM + 16 * usize::from(register.index());
        [at, at + 8].map(|at| u64::from_le_bytes(self.fx.0[at..at + 8].try_into().expect("8")))
    }

    pub fn set_xmm(&mut self, register: Xmm, [low, high]: [u64; 2]) {
        let at = FX_XMM + 16 * usize::from(register.index());
        self.fx.0[at..at + 8].copy_from_slice(&low.to_le_bytes());
        self.fx.0[at + 8..at + 16].copy_from_slice(&high.to_le_bytes());
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.fx.0[FX_MXCSR..FX_MXCSR + 4].try_into().expect("4"))
    }

    pub fn set_mxcsr(&mut self, value: u32) {
        self.fx.0[FX_MXCSR..FX_MXCSR + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub fn x87_control(&self) -> u16 {
        u16::from_le_bytes([self.fx.0[0], self.fx.0[1]])
    }

    pub fn set_x87_control(&mut self, value: u16) {
        self.fx.0[..2].copy_from_slice(&value.to_le_bytes());
    }

    /// One bit for each x87 register that is not empty.
    pub(super) fn x87_tags(&self) -> u8 {
        self.fx.0[FX_TAGS]
    }

    /// Marks one x87 register as not empty.
    pub fn fill_x87(&mut self) {
        self.fx.0[FX_TAGS] = 1;
    }

    pub(super) fn df(&self) -> bool {
        self.flags & DF != 0
    }

    pub fn set_df(&mut self) {
        self.flags |= DF;
    }

    pub(super) fn reg(&self, register: Reg) -> u64 {
        match register {
            Reg::Gpr(register) => self.gpr(register),
            Reg::Xmm(register) => self.xmm(register)[0],
            other => panic!("not a register of this machine: {other:?}"),
        }
    }

    /// Sets the low 64 bits of a register.
    pub(super) fn set_reg(&mut self, register: Reg, value: u64) {
        match register {
            Reg::Gpr(register) => self.set_gpr(register, value),
            Reg::Xmm(register) => {
                let [_, high] = self.xmm(register);
                self.set_xmm(register, [value, high]);
            }
            other => panic!("not a register of this machine: {other:?}"),
        }
    }
}

/// A value that depends on both numbers and has no zero byte.
pub(super) fn pattern(seed: u64, n: u64) -> u64 {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd6e8_feb8_6659_fd93))
        .wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ mixed >> 29) | 0x8101_0101_0101_0101
}

/// A change that a callee made, or a mismatch at its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Gpr(Gpr),
    Xmm(Xmm),
    Df,
    Mxcsr,
    X87Control,
    /// The x87 stack is not empty.
    X87Stack,
    /// A word of the caller's stack, counted from its rsp at the call.
    StackWord(usize),
    /// rsp is not aligned as the convention requires.
    Alignment,
    /// A parameter is not at its location.
    Param(usize),
    /// A result is not at its location.
    Result(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Sets MXCSR and the x87 control word of this thread.
///
/// # Safety
/// 1. No floating-point number is computed until they are restored.
pub unsafe fn set_fp_control((mxcsr, x87_control): (u32, u16)) {
    // SAFETY: reads two local variables. The caller guarantees 1.
    unsafe {
        std::arch::asm!(
            "ldmxcsr [{}]",
            "fldcw [{}]",
            in(reg) &raw const mxcsr,
            in(reg) &raw const x87_control,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Compares the state besides registers that both conventions fix: DF is 0, the control words are
/// unchanged, and the x87 stack is empty.
pub(super) fn changed_control(before: &State, after: &State) -> Vec<Change> {
    let checks = [
        (after.df(), Change::Df),
        ((before.mxcsr() ^ after.mxcsr()) & MXCSR_CONTROL != 0, Change::Mxcsr),
        (before.x87_control() != after.x87_control(), Change::X87Control),
        (after.x87_tags() != 0, Change::X87Stack),
    ];
    checks.into_iter().filter_map(|(wrong, change)| wrong.then_some(change)).collect()
}

/// The registers that a call may change: all but preserved and pinned registers and rsp.
pub fn may_change(convention: Convention) -> RegSet {
    convention.spec().volatile()
}

/// The state that a call must preserve.
pub fn must_keep(convention: Convention) -> Vec<Change> {
    let registers = RegSet::ALL_AMD64.minus(may_change(convention));
    let registers = registers.iter().map(|register| match register {
        Reg::Gpr(register) => Change::Gpr(register),
        Reg::Xmm(register) => Change::Xmm(register),
        other => panic!("not a register of this machine: {other:?}"),
    });
    registers.chain([Change::Df, Change::Mxcsr, Change::X87Control, Change::X87Stack]).collect()
}

/// `movabs [address], rax`, which dynasm does not have: Intel SDM volume 2, MOV, opcode A3.
pub(super) fn store_rax(ops: &mut Ops, address: *mut u64) {
    ops.extend([0x48, 0xa3]);
    ops.extend((address as u64).to_le_bytes());
}

/// Stores all registers except rax to the state at rax + `at`. Changes no register.
pub(super) fn store_all_but_rax(ops: &mut Ops, at: i32) {
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RAX) {
        let at = at + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov [rax + at], Rq(register));
    }
    dynasm!(ops; .arch x64; fxsave64 [rax + at + offset_of!(State, fx) as i32]);
}

/// Loads all registers except rsp from the state at rax + `at`.
pub(super) fn load_all_but_rsp(ops: &mut Ops, at: i32) {
    dynasm!(ops
        ; .arch x64
        ; fxrstor64 [rax + at + offset_of!(State, fx) as i32]
        ; push QWORD [rax + at + offset_of!(State, flags) as i32]
        ; popfq
    );
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RSP && r != Gpr::RAX) {
        let at = at + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov Rq(register), [rax + at]);
    }
    dynasm!(ops; .arch x64; mov rax, [rax + at]);
}
