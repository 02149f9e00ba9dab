//! The registers, and the emitted code that loads and stores them.

use std::arch::is_x86_feature_detected;
use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::model::Xorshift;
use footbridge::abi::{Assignment, Convention, Gpr, Layout, Pinned, Reg, Xmm};
use footbridge::jit::Ops;

use super::Change;

/// MXCSR and the x87 control word of a new thread: psABI 3.2.1, "CPU state".
pub(super) const NATIVE_MXCSR: u32 = 0x1f80;
/// Round up, flush to zero, all exceptions masked: two fields differ from the default.
pub(super) const OTHER_MXCSR: u32 = 0xdf80;
/// MXCSR without the six exception flags, which every floating-point instruction may set.
pub(super) const MXCSR_CONTROL: u32 = !0x3f;
pub(super) const NATIVE_X87_CONTROL: u16 = 0x37f;
/// Round to nearest, double precision, only the invalid-operation exception masked.
pub(super) const OTHER_X87_CONTROL: u16 = 0x0241;

const DF: u64 = 1 << 10;
/// Carry, parity, adjust, zero, sign, overflow.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// Interrupts enabled, and bit 1, which is always set.
const FIXED_FLAGS: u64 = 0x202;

/// Offsets in the memory image of FXSAVE64: Intel SDM volume 1, table 10-2.
const FX_STATUS: usize = 2;
const FX_TAGS: usize = 4;
const FX_MXCSR: usize = 24;
const FX_STACK: usize = 32;

/// The width of this CPU's vector registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Xmm,
    Ymm,
    Zmm,
}

pub(super) fn width() -> Width {
    if is_x86_feature_detected!("avx512f") {
        Width::Zmm
    } else if is_x86_feature_detected!("avx") {
        Width::Ymm
    } else {
        Width::Xmm
    }
}

/// The size of the widest vector that fits in a register of this CPU.
pub fn vector_bytes() -> u32 {
    match width() {
        Width::Xmm => 16,
        Width::Ymm => 32,
        Width::Zmm => 64,
    }
}

/// All registers.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    /// Only the x87 unit and MXCSR of this are used. The vector registers are below.
    pub(super) fx: [u8; 512],
    vectors: [[u8; 64]; 16],
    pub(super) gprs: [u64; 16],
    flags: u64,
}

impl State {
    /// Garbage in all registers. DF is clear, the control words are native, and the x87 stack is
    /// empty.
    pub(super) fn garbage(rng: &mut Xorshift) -> State {
        let mut state =
            State { fx: [0; 512], vectors: [[0; 64]; 16], gprs: [0; 16], flags: FIXED_FLAGS };
        for vector in &mut state.vectors {
            *vector = garbage_bytes(rng);
        }
        state.gprs = std::array::from_fn(|_| rng.bits());
        state.flags |= rng.bits() & ARITHMETIC_FLAGS;
        let numbers: [[u8; 10]; 8] = std::array::from_fn(|_| garbage_bytes(rng));
        state.set_x87(&numbers);
        state.fx[FX_TAGS] = 0;
        state.set_control(NATIVE_MXCSR, NATIVE_X87_CONTROL);
        state
    }

    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[usize::from(register.index())]
    }

    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[usize::from(register.index())] = value;
    }

    pub fn vector(&self, register: Xmm) -> &[u8; 64] {
        &self.vectors[usize::from(register.index())]
    }

    pub(super) fn vector_mut(&mut self, register: Xmm) -> &mut [u8; 64] {
        &mut self.vectors[usize::from(register.index())]
    }

    pub(super) fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.fx[FX_MXCSR..][..4].try_into().expect("4"))
    }

    pub(super) fn x87_control(&self) -> u16 {
        u16::from_le_bytes([self.fx[0], self.fx[1]])
    }

    pub(super) fn set_control(&mut self, mxcsr: u32, x87_control: u16) {
        self.fx[FX_MXCSR..][..4].copy_from_slice(&mxcsr.to_le_bytes());
        self.fx[..2].copy_from_slice(&x87_control.to_le_bytes());
    }

    /// Sets the whole x87 stack, top first.
    pub(super) fn set_x87(&mut self, numbers: &[[u8; 10]]) {
        let top = (8 - numbers.len()) % 8;
        self.fx[FX_STATUS..FX_TAGS].copy_from_slice(&[0, (top as u8) << 3]);
        self.fx[FX_TAGS] = 0;
        for (i, number) in numbers.iter().enumerate() {
            self.fx[FX_TAGS] |= 1 << ((top + i) % 8);
            self.fx[FX_STACK + 16 * i..][..10].copy_from_slice(number);
        }
    }

    /// The x87 stack, top first. `None` if the registers that are not empty do not form a stack.
    pub(super) fn x87(&self) -> Option<Vec<[u8; 10]>> {
        let top = usize::from(self.fx[FX_STATUS + 1] >> 3 & 7);
        let depth = self.fx[FX_TAGS].count_ones() as usize;
        let tags = (0..depth).fold(0, |tags, i| tags | 1 << ((top + i) % 8));
        let number = |i| self.fx[FX_STACK + 16 * i..][..10].try_into().expect("10");
        (self.fx[FX_TAGS] == tags).then(|| (0..depth).map(number).collect())
    }
}

pub(super) fn garbage_bytes<const N: usize>(rng: &mut Xorshift) -> [u8; N] {
    std::array::from_fn(|_| (rng.bits() >> 40) as u8)
}

/// `movabs [address], rax`, which dynasm does not have: Intel SDM volume 2, MOV, opcode A3.
pub(super) fn store_rax(ops: &mut Ops, address: *mut u64) {
    ops.extend([0x48, 0xa3]);
    ops.extend((address as u64).to_le_bytes());
}

/// Loads or stores the full vector registers at rax + `at`.
fn move_vectors(ops: &mut Ops, at: i32, store: bool) {
    for x in Xmm::ALL {
        let n = x.index();
        let at = at + offset_of!(State, vectors) as i32 + i32::from(n) * 64;
        match (width(), store) {
            (Width::Xmm, true) => dynasm!(ops; .arch x64; movups [rax + at], Rx(x)),
            (Width::Xmm, false) => dynasm!(ops; .arch x64; movups Rx(x), [rax + at]),
            (Width::Ymm, true) => dynasm!(ops; .arch x64; vmovups [rax + at], Ry(x)),
            (Width::Ymm, false) => dynasm!(ops; .arch x64; vmovups Ry(x), [rax + at]),
            (Width::Zmm, _) => {
                // vmovdqu64, which dynasm does not have: EVEX.512.F3.0F.W1 6F and 7F /r, with a
                // disp32, which is not scaled. Intel SDM volume 2, section 2.7.
                let high = if n < 8 { 0xf1 } else { 0x71 };
                ops.extend([0x62, high, 0xfe, 0x48, if store { 0x7f } else { 0x6f }]);
                ops.extend([0x80 | (n & 7) << 3]);
                ops.extend(at.to_le_bytes());
            }
        }
    }
}

/// Stores the general-purpose registers except rax to the state at rax + `at`.
pub(super) fn store_gprs(ops: &mut Ops, at: i32) {
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RAX) {
        let at = at + offset_of!(State, gprs) as i32 + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov [rax + at], Rq(register));
    }
}

/// Stores the other registers. rsp must point to writable memory.
pub(super) fn store_rest(ops: &mut Ops, at: i32) {
    dynasm!(ops
        ; .arch x64
        ; pushfq
        ; pop QWORD [rax + at + offset_of!(State, flags) as i32]
        ; cld
        ; fxsave64 [rax + at + offset_of!(State, fx) as i32]
    );
    move_vectors(ops, at, true);
}

/// Loads all registers except rsp and rax from the state at rax + `at`. rsp must point to writable
/// memory.
pub(super) fn load_all(ops: &mut Ops, at: i32) {
    dynasm!(ops
        ; .arch x64
        ; fxrstor64 [rax + at + offset_of!(State, fx) as i32]
        ; push QWORD [rax + at + offset_of!(State, flags) as i32]
        ; popfq
    );
    move_vectors(ops, at, false);
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RSP && r != Gpr::RAX) {
        let at = at + offset_of!(State, gprs) as i32 + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov Rq(register), [rax + at]);
    }
}

pub(super) fn gpr_off(register: Gpr) -> i32 {
    (offset_of!(State, gprs) + 8 * usize::from(register.index())) as i32
}

/// Checks the state that all conventions of this machine fix besides registers: DF is clear, the
/// control words are unchanged, and the x87 stack holds `depth` numbers.
pub(super) fn changed_control(caller: &State, found: &State, depth: usize) -> Vec<Change> {
    let checks = [
        (found.flags & DF != 0, Change::Df),
        ((caller.mxcsr() ^ found.mxcsr()) & MXCSR_CONTROL != 0, Change::Mxcsr),
        (caller.x87_control() != found.x87_control(), Change::X87Control),
        (found.x87().is_none_or(|stack| stack.len() != depth), Change::X87Stack),
    ];
    checks.into_iter().filter_map(|(wrong, change)| wrong.then_some(change)).collect()
}

/// The registers of `state` that do not hold their pinned value.
pub(super) fn unpinned(convention: Convention, state: &State, g: u64) -> Vec<Change> {
    let wrong = convention.spec().pinned.iter().filter_map(|&pinned| match pinned {
        (Reg::Gpr(r), Pinned::Goroutine) => (state.gpr(r) != g).then_some(Change::Gpr(r)),
        (Reg::Xmm(r), Pinned::Zero) => (state.vector(r)[..16] != [0; 16]).then_some(Change::Xmm(r)),
        other => panic!("this test does not support the pinned register {other:?}"),
    });
    wrong.collect()
}

/// The register that holds the closure at a call: r10 is C's static chain (psABI figure 3.4), also
/// on Windows in GNU C; rdx is Go's (`cmd/compile/abi-internal.md`, "amd64 architecture").
pub fn closure_register(convention: Convention) -> Gpr {
    match convention {
        Convention::SystemV | Convention::Win64 => Gpr::R10,
        Convention::GoAbi0 | Convention::GoAbiInternal => Gpr::RDX,
        other => panic!("{other} is not a convention of this machine"),
    }
}

pub(super) fn convention(assignment: &Assignment) -> Convention {
    assignment.convention().expect("an assignment of a convention")
}

/// The alignment that a receiver may assume for the address of a value.
pub(super) fn copy_align(side: &Assignment, layout: Layout) -> usize {
    layout.align_bytes.max(convention(side).spec().copy_align_bytes) as usize
}
