//! A caller and a callee that know every register.
//!
//! * A [`Probe`] is emitted code that loads all registers with chosen values, calls one address, and
//!   stores all registers again. With a planted [`Clobber`] it destroys one of them right after the
//!   call, as a callee would that breaks its convention.
//! * A [`Capture`] is emitted code to be called: it stores all registers as it finds them,
//!   destroys everything that its convention lets it destroy, and returns chosen results.
//!
//! "All registers" are the sixteen of the integer unit, rflags, and what FXSAVE stores (Intel SDM
//! volume 1, section 10.5.1): xmm0-15, MXCSR, and the state of the x87 unit. The upper halves of
//! the vector registers are nobody's in both conventions.
//!
//! Both keep their values in a record at a fixed address, which is part of their code, and never
//! below rsp: they work whatever the other side did to the registers. They are not reentrant, and
//! while a probe has rbp loaded no walk or panic may pass it.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::offset_of;
use std::ptr;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{
    Assignment, Convention, Gpr, Narrow, Passing, Pinned, Place, Reg, RegSet, Signature, Slots,
    Type, Value, Xmm,
};
use footbridge::jit::{Code, FrameClass, Jit, Ops};
use footbridge::runtime::{EntryType, GoroutineClosure, sealed};

/// Words of the caller's stack that a probe fills and compares, from its rsp at the call.
pub const STACK_WORDS: usize = 64;
/// Words that a capture copies from rsp at its entry; the first is the return address.
pub const CAPTURED_WORDS: usize = 24;
/// Words of the stack that a capture can write, from its argument base.
const OWNED_WORDS: usize = STACK_WORDS;

/// MXCSR and the x87 control word of a thread that starts: psABI 3.2.1, "CPU state".
pub const NATIVE_MODES: (u32, u16) = (0x1f80, 0x37f);
/// Round up, flush to zero, all exceptions masked: not the default in two fields.
pub const MXCSR: u32 = 0xdf80;
/// MXCSR without the six exception flags, which every float instruction may set.
const MXCSR_CONTROL: u32 = !0x3f;
/// Round to nearest, double precision, invalid-operation exception masked only.
pub const X87_CONTROL: u16 = 0x0241;
const DF: u64 = 1 << 10;
/// Carry, parity, adjust, zero, sign, overflow, interrupts enabled, and bit 1, which is always set.
const FLAGS: u64 = 0xad7;
/// The same with all arithmetic flags clear.
const OTHER_FLAGS: u64 = 0x202;

/// What FXSAVE64 writes.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct Fx([u8; 512]);

const FX_MXCSR: usize = 24;
const FX_TAGS: usize = 4;
const FX_XMM: usize = 160;

/// Every register.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub struct State {
    gprs: [u64; 16],
    flags: u64,
    _pad: u64,
    fx: Fx,
}

impl State {
    /// A different value in every register; another set for every seed.
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

    /// One bit for each x87 register that holds something.
    fn x87_tags(&self) -> u8 {
        self.fx.0[FX_TAGS]
    }

    /// Marks an x87 register as full.
    pub fn fill_x87(&mut self) {
        self.fx.0[FX_TAGS] = 1;
    }

    fn df(&self) -> bool {
        self.flags & DF != 0
    }

    pub fn set_df(&mut self) {
        self.flags |= DF;
    }

    fn reg(&self, register: Reg) -> u64 {
        match register {
            Reg::Gpr(register) => self.gpr(register),
            Reg::Xmm(register) => self.xmm(register)[0],
            other => panic!("not a register of this machine: {other:?}"),
        }
    }

    /// Sets the low 64 bits.
    fn set_reg(&mut self, register: Reg, value: u64) {
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

/// A value that depends on both numbers and has no byte that is zero.
fn pattern(seed: u64, n: u64) -> u64 {
    let mixed = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n.wrapping_mul(0xd6e8_feb8_6659_fd93))
        .wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ mixed >> 29) | 0x8101_0101_0101_0101
}

/// One thing that a callee changed, or that an arrival has wrong.
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
    /// rsp is not aligned as the convention says.
    Alignment,
    /// A parameter is not where it belongs.
    Param(usize),
    /// A result is not where it belongs.
    Result(usize),
}

/// What a probe destroys after its call.
pub type Clobber = Change;

#[repr(C, align(64))]
struct Record {
    before: State,
    after: State,
    native: Fx,
    native_rbp: u64,
    call_rsp: u64,
    stack_before: [u64; STACK_WORDS],
    stack_after: [u64; STACK_WORDS],
}

/// See the head of this file.
pub struct Probe {
    code: Code,
    record: *mut Record,
}

/// `movabs [address], rax`: dynasm has no name for it. Intel SDM volume 2, MOV, opcode A3.
fn store_rax(ops: &mut Ops, address: *mut u64) {
    ops.extend([0x48, 0xa3]);
    ops.extend((address as u64).to_le_bytes());
}

/// Stores every register but rax to the state at rax + `at`. Leaves everything as it is.
fn store_all_but_rax(ops: &mut Ops, at: i32) {
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RAX) {
        let at = at + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov [rax + at], Rq(register));
    }
    dynasm!(ops; .arch x64; fxsave64 [rax + at + offset_of!(State, fx) as i32]);
}

/// Loads every register but rsp from the state at rax + `at`.
fn load_all_but_rsp(ops: &mut Ops, at: i32) {
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

/// Destroys one thing and nothing else, as far as a caller can see: memory below rsp is not
/// his.
fn emit_clobber(ops: &mut Ops, clobber: Clobber) {
    match clobber {
        Change::Gpr(Gpr::RSP) => dynasm!(ops; .arch x64; lea rsp, [rsp - 8]),
        Change::Gpr(register) => dynasm!(ops; .arch x64; not Rq(register)),
        Change::Xmm(register) => {
            dynasm!(ops; .arch x64; pcmpeqd Rx(register), Rx(register));
        }
        Change::Df => dynasm!(ops; .arch x64; std),
        Change::Mxcsr => {
            dynasm!(ops; .arch x64; push DWORD 0x1f80; ldmxcsr [rsp]; lea rsp, [rsp + 8]);
        }
        Change::X87Control => {
            dynasm!(ops; .arch x64; push DWORD 0x37f; fldcw [rsp]; lea rsp, [rsp + 8]);
        }
        Change::X87Stack => dynasm!(ops; .arch x64; fld1),
        Change::StackWord(n) => {
            dynasm!(ops; .arch x64; mov QWORD [rsp + n as i32 * 8], 0x5555);
        }
        other => panic!("nothing to destroy for {other:?}"),
    }
}

impl Probe {
    /// A probe of `target`. With `odd`, rsp is 8 modulo 16 at the call.
    pub fn new(jit: &Jit, target: usize, odd: bool, clobber: Option<Clobber>) -> Self {
        let record: *mut Record = Box::leak(Box::new(Record {
            before: State::distinct(1),
            after: State::distinct(2),
            native: Fx([0; 512]),
            native_rbp: 0,
            call_rsp: 0,
            stack_before: std::array::from_fn(|n| pattern(3, n as u64)),
            stack_after: [0; STACK_WORDS],
        }));
        let off = |offset: usize| offset as i32;
        let (before, after) = (off(offset_of!(Record, before)), off(offset_of!(Record, after)));
        let (native, frame_pointer) =
            (off(offset_of!(Record, native)), off(offset_of!(Record, native_rbp)));
        let call_rsp = off(offset_of!(Record, call_rsp));
        let stack_before = off(offset_of!(Record, stack_before));
        let stack_after = off(offset_of!(Record, stack_after));
        let flags = offset_of!(State, flags) as i32;
        // rsp is 8 modulo 16 behind the saved registers.
        let frame = STACK_WORDS as i32 * 8 + if odd { 16 } else { 8 };
        // SAFETY: the frame contract holds but while the registers are loaded, when nobody walks; it is
        // a System V function without arguments that preserves what one must.
        let code = unsafe {
            jit.install("probe", FrameClass::Saved, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; push rbx
                    ; push r12
                    ; push r13
                    ; push r14
                    ; push r15
                    ; mov rax, QWORD record as i64
                    ; fxsave64 [rax + native]
                    ; mov [rax + frame_pointer], rbp
                    ; sub rsp, frame
                    ; mov [rax + call_rsp], rsp
                    ; mov rdi, rsp
                    ; lea rsi, [rax + stack_before]
                    ; mov ecx, STACK_WORDS as i32
                    ; rep movsq
                );
                load_all_but_rsp(ops, before);
                dynasm!(ops; .arch x64; call extern target);
                if let Some(clobber) = clobber {
                    emit_clobber(ops, clobber);
                }
                store_rax(ops, (&raw mut (*record).after.gprs).cast());
                dynasm!(ops; .arch x64; mov rax, QWORD record as i64);
                store_all_but_rax(ops, after);
                dynasm!(ops
                    ; .arch x64
                    ; mov rsp, [rax + call_rsp]
                    ; pushfq
                    ; pop QWORD [rax + after + flags]
                    ; cld
                    ; mov rsi, rsp
                    ; lea rdi, [rax + stack_after]
                    ; mov ecx, STACK_WORDS as i32
                    ; rep movsq
                    ; fxrstor64 [rax + native]
                    ; mov rbp, [rax + frame_pointer]
                    ; mov rbx, [rbp - 8]
                    ; mov r12, [rbp - 16]
                    ; mov r13, [rbp - 24]
                    ; mov r14, [rbp - 32]
                    ; mov r15, [rbp - 40]
                    ; leave
                    ; ret
                );
            })
        };
        Self { code: code.expect("the probe installs"), record }
    }

    pub fn code(&self) -> &Code {
        &self.code
    }

    fn record(&mut self) -> &mut Record {
        // SAFETY: leaked in `new`, and the probe does not run while it is borrowed.
        unsafe { &mut *self.record }
    }

    /// What the registers will hold at the call.
    pub fn before(&mut self) -> &mut State {
        &mut self.record().before
    }

    /// rsp at the call, once it ran.
    pub fn call_rsp(&mut self) -> u64 {
        self.record().call_rsp
    }

    /// Puts arguments where `entry` has them, with garbage around each that is narrower.
    pub fn put_arguments(&mut self, entry: &Assignment, values: &[u64]) {
        let record = self.record();
        for (value, &bits) in entry.params().iter().zip(values) {
            put(value, bits, entry, &mut record.before, &mut record.stack_before);
        }
    }

    /// Runs it as a plain function of the calling thread.
    ///
    /// # Safety
    /// The target may be called with what was put into the registers.
    pub unsafe fn run(&mut self) {
        // SAFETY: an extern "C" function without arguments, by `new`.
        let code: extern "C-unwind" fn() =
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(self.code.address()) };
        code();
    }

    /// Everything that differs after the call from before it, but for volatile registers, the
    /// arithmetic flags, and the first `owned_bytes` of the stack, which are the callee's.
    pub fn changes(&mut self, may_change: RegSet, owned_bytes: u32) -> Vec<Change> {
        let record = self.record();
        record.before.set_gpr(Gpr::RSP, record.call_rsp);
        let (before, after) = (&record.before, &record.after);
        let mut changes = Vec::new();
        for register in Gpr::ALL.into_iter().filter(|&r| !may_change.contains(r)) {
            if before.gpr(register) != after.gpr(register) {
                changes.push(Change::Gpr(register));
            }
        }
        for register in Xmm::ALL.into_iter().filter(|&r| !may_change.contains(r)) {
            if before.xmm(register) != after.xmm(register) {
                changes.push(Change::Xmm(register));
            }
        }
        changes.extend(modes(before, after));
        let owned = owned_bytes.div_ceil(8) as usize;
        let words = record.stack_before.iter().zip(&record.stack_after).enumerate();
        changes.extend(
            words.skip(owned).filter(|(_, (b, a))| b != a).map(|(n, _)| Change::StackWord(n)),
        );
        changes
    }

    /// The first result, without what is around it.
    pub fn result(&mut self, entry: &Assignment) -> u64 {
        let record = self.record();
        let value = &entry.results()[0];
        let found = match place_of(value) {
            Place::Reg(register) => record.after.reg(register),
            Place::Area(offset) => record.stack_after[offset as usize / 8] >> (offset % 8 * 8),
            other => panic!("a place that this test does not know: {other:?}"),
        };
        found & mask(value.layout().size_bytes)
    }

    /// The results that are not where `entry` has them.
    pub fn wrong_results(&mut self, entry: &Assignment, values: &[u64]) -> Vec<Change> {
        let record = self.record();
        let (after, stack) = (&record.after, &record.stack_after);
        let wrong = |(n, (value, &bits))| {
            (!holds(value, bits, entry, after, stack)).then_some(Change::Result(n))
        };
        entry.results().iter().zip(values).enumerate().filter_map(wrong).collect()
    }
}

/// Sets MXCSR and the x87 control word of this thread.
///
/// # Safety
/// Until they are set back no float is computed.
pub unsafe fn set_modes((mxcsr, x87_control): (u32, u16)) {
    // SAFETY: reads two locals; the modes are the caller's concern.
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

/// What both conventions fix besides registers: DF = 0, control words as they were, and an empty
/// x87 stack.
fn modes(before: &State, after: &State) -> Vec<Change> {
    let checks = [
        (after.df(), Change::Df),
        ((before.mxcsr() ^ after.mxcsr()) & MXCSR_CONTROL != 0, Change::Mxcsr),
        (before.x87_control() != after.x87_control(), Change::X87Control),
        (after.x87_tags() != 0, Change::X87Stack),
    ];
    checks.into_iter().filter_map(|(wrong, change)| wrong.then_some(change)).collect()
}

/// What may be different after a call: all but preserved and pinned registers and rsp.
pub fn may_change(convention: Convention) -> RegSet {
    convention.spec().volatile()
}

/// What must be the same after a call.
pub fn must_keep(convention: Convention) -> Vec<Change> {
    let registers = RegSet::ALL_AMD64.minus(may_change(convention));
    let registers = registers.iter().map(|register| match register {
        Reg::Gpr(register) => Change::Gpr(register),
        Reg::Xmm(register) => Change::Xmm(register),
        other => panic!("not a register of this machine: {other:?}"),
    });
    registers.chain([Change::Df, Change::Mxcsr, Change::X87Control, Change::X87Stack]).collect()
}

/// Where a scalar is.
pub fn place_of(value: &Value) -> Place {
    match value.passing() {
        Passing::Parts(parts) if parts.len() == 1 => parts[0].place,
        Passing::Area(offset) => Place::Area(*offset),
        other => panic!("not a scalar: {other:?}"),
    }
}

/// Bytes of a scalar.
pub fn scalar_bytes(ty: &Type) -> u32 {
    let signature = Signature::new([ty.clone()], []);
    let assignment = Convention::SystemV.assign(&signature).expect("a scalar");
    assignment.params()[0].layout().size_bytes
}

/// Bits that are the value's own, and how wide what is checked is.
fn mask(bytes: u32) -> u64 {
    if bytes == 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

/// The low 32 bits that a narrow integer extends to.
fn extended(ty: &Type, bits: u64) -> u64 {
    let unused = 64 - scalar_bytes(ty) * 8;
    let wide = if ty.is_signed() {
        ((bits << unused) as i64 >> unused) as u64
    } else {
        bits << unused >> unused
    };
    wide & mask(4)
}

/// How many low bytes of a value's place mean something, and what they are.
fn meaning(value: &Value, bits: u64, assignment: &Assignment) -> (u32, u64) {
    let ty = value.ty();
    let narrow_int = matches!(scalar_bytes(ty), 1 | 2);
    let extends = assignment.narrow() == Narrow::ExtendedTo32
        && (matches!(place_of(value), Place::Reg(_)) || assignment.slots() == Slots::Whole);
    if narrow_int && extends {
        (4, extended(ty, bits))
    } else {
        (scalar_bytes(ty), bits & mask(scalar_bytes(ty)))
    }
}

/// Writes a value and leaves what is around it.
fn put(value: &Value, bits: u64, assignment: &Assignment, state: &mut State, stack: &mut [u64]) {
    let (bytes, bits) = meaning(value, bits, assignment);
    let merge = |old: u64| old & !mask(bytes) | bits;
    match place_of(value) {
        Place::Reg(register) => state.set_reg(register, merge(state.reg(register))),
        Place::Area(offset) => {
            let offset = offset as usize;
            let shift = offset % 8 * 8;
            let word = &mut stack[offset / 8];
            *word = *word & !(mask(bytes) << shift) | bits << shift;
        }
        other => panic!("a place that this test does not know: {other:?}"),
    }
}

/// Whether a value is in its place.
fn holds(value: &Value, bits: u64, assignment: &Assignment, state: &State, stack: &[u64]) -> bool {
    let (bytes, bits) = meaning(value, bits, assignment);
    let found = match place_of(value) {
        Place::Reg(register) => state.reg(register),
        Place::Area(offset) => stack[offset as usize / 8] >> (offset % 8 * 8),
        other => panic!("a place that this test does not know: {other:?}"),
    };
    found & mask(bytes) == bits
}

/// Values for the parameters or results of a call: different ones, with the sign bit set in
/// every second.
pub fn values(types: &[Type], seed: u64) -> Vec<u64> {
    let value = |(n, ty): (usize, &Type)| {
        let bits = pattern(seed, 0x400 + n as u64);
        let low = scalar_bytes(ty) * 8;
        let sign = 1 << (low - 1);
        let bits = if n % 2 == 0 { bits | sign } else { bits & !sign };
        if *ty == Type::Bool { (n as u64 + seed) & 1 } else { bits & mask(scalar_bytes(ty)) }
    };
    types.iter().enumerate().map(value).collect()
}

#[repr(C, align(64))]
struct Visit {
    at_entry: State,
    entry_stack: [u64; CAPTURED_WORDS],
    at_exit: State,
    exit_stack: [u64; OWNED_WORDS],
    hits: u64,
}

/// See the head of this file.
pub struct Capture {
    code: Code,
    visit: *mut Visit,
    assignment: Assignment,
    convention: Convention,
}

impl Capture {
    /// A function of the convention and signature that returns `results`.
    pub fn new(jit: &Jit, convention: Convention, signature: &Signature, results: &[u64]) -> Self {
        let assignment = convention.assign(signature).expect("the convention has this signature");
        let owned = owned_bytes(&assignment).div_ceil(8) as usize;
        assert!(owned < OWNED_WORDS, "{signature} takes more stack than a capture knows");
        let visit: *mut Visit = Box::leak(Box::new(Visit {
            at_entry: State::distinct(0),
            entry_stack: [0; CAPTURED_WORDS],
            at_exit: State::distinct(5),
            exit_stack: std::array::from_fn(|n| pattern(6, n as u64)),
            hits: 0,
        }));
        // SAFETY: leaked above, and the code does not exist yet.
        let exit = unsafe { &mut *visit };
        exit.at_exit.flags = OTHER_FLAGS;
        for (value, &bits) in assignment.results().iter().zip(results) {
            put(value, bits, &assignment, &mut exit.at_exit, &mut exit.exit_stack);
        }
        let kept = RegSet::ALL_AMD64.minus(may_change(convention));
        let at = |offset: usize| offset as i32;
        let (entry, at_exit) = (at(offset_of!(Visit, at_entry)), at(offset_of!(Visit, at_exit)));
        let (flags, fx) = (at(offset_of!(State, flags)), at(offset_of!(State, fx)));
        let (entry_stack, exit_stack) =
            (at(offset_of!(Visit, entry_stack)), at(offset_of!(Visit, exit_stack)));
        let hits = at(offset_of!(Visit, hits));
        // SAFETY: it makes no call, and rsp leads to the return address but for a few
        // instructions, in which nobody walks.
        let code = unsafe {
            jit.install("capture", FrameClass::Leaf, |ops| {
                store_rax(ops, (&raw mut (*visit).at_entry.gprs).cast());
                dynasm!(ops; .arch x64; mov rax, QWORD visit as i64);
                store_all_but_rax(ops, entry);
                dynasm!(ops
                    ; .arch x64
                    ; pushfq
                    ; pop QWORD [rax + entry + flags]
                    ; cld
                    ; inc QWORD [rax + hits]
                    ; mov rsi, rsp
                    ; lea rdi, [rax + entry_stack]
                    ; mov ecx, CAPTURED_WORDS as i32
                    ; rep movsq
                );
                // What is kept goes from one state to the other, and so do the modes, with
                // every exception flag of MXCSR set: those are anybody's.
                for register in kept.gprs() {
                    let n = i32::from(register.index()) * 8;
                    dynasm!(ops
                        ; .arch x64
                        ; mov rcx, [rax + entry + n]
                        ; mov [rax + at_exit + n], rcx
                    );
                }
                for register in kept.xmms() {
                    let n = fx + at(FX_XMM) + i32::from(register.index()) * 16;
                    dynasm!(ops
                        ; .arch x64
                        ; movups xmm0, [rax + entry + n]
                        ; movups [rax + at_exit + n], xmm0
                    );
                }
                dynasm!(ops
                    ; .arch x64
                    ; mov ecx, [rax + entry + fx + at(FX_MXCSR)]
                    ; or ecx, 0x3f
                    ; mov [rax + at_exit + fx + at(FX_MXCSR)], ecx
                    ; movzx ecx, WORD [rax + entry + fx]
                    ; mov [rax + at_exit + fx], cx
                    // Parameters, results and spill area are the callee's.
                    ; lea rdi, [rsp + 8]
                    ; lea rsi, [rax + exit_stack]
                    ; mov ecx, owned as i32
                    ; rep movsq
                );
                load_all_but_rsp(ops, at_exit);
                dynasm!(ops; .arch x64; ret);
            })
        };
        let code = code.expect("the capture installs");
        Self { code, visit, assignment, convention }
    }

    pub fn code(&self) -> &Code {
        &self.code
    }

    pub fn address(&self) -> usize {
        self.code.address()
    }

    fn visit(&self) -> &Visit {
        // SAFETY: leaked in `new`; the code runs on this thread, not now.
        unsafe { &*self.visit }
    }

    /// How often it was called.
    pub fn hits(&self) -> u64 {
        // SAFETY: as in `visit`, but a compiler must not keep the value.
        unsafe { (&raw const (*self.visit).hits).read_volatile() }
    }

    /// The registers at its last entry.
    pub fn at_entry(&self) -> State {
        self.visit().at_entry
    }

    /// What the stack held at its last entry, from the argument base.
    pub fn argument_area(&self) -> &[u64] {
        &self.visit().entry_stack[1..]
    }

    /// What was wrong when it was called.
    pub fn arrival(&self, arrival: &Arrival<'_>) -> Vec<Change> {
        self.judge(&self.at_entry(), arrival)
    }

    /// As [`Self::arrival`], with the registers given.
    pub fn judge(&self, found: &State, arrival: &Arrival<'_>) -> Vec<Change> {
        let Arrival { caller, g, values } = *arrival;
        let mut wrong = modes(caller, found);
        let spec = self.convention.spec();
        for &(register, what) in spec.pinned {
            let (held, expected) = match register {
                Reg::Gpr(register) => ([found.gpr(register), 0], Change::Gpr(register)),
                Reg::Xmm(register) => (found.xmm(register), Change::Xmm(register)),
                other => panic!("not a register of this machine: {other:?}"),
            };
            let right = match what {
                Pinned::Goroutine => held[0] == g,
                Pinned::Zero => held == [0, 0],
                other => panic!("a pinned value that this test does not know: {other:?}"),
            };
            if !right {
                wrong.push(expected);
            }
        }
        let at_call = found.gpr(Gpr::RSP) + 8;
        if !at_call.is_multiple_of(u64::from(spec.stack_align_bytes)) {
            wrong.push(Change::Alignment);
        }
        let params = self.assignment.params().iter().zip(values).enumerate();
        for (n, (value, &bits)) in params {
            if !holds(value, bits, &self.assignment, found, self.argument_area()) {
                wrong.push(Change::Param(n));
            }
        }
        wrong
    }

    /// The place of the last parameter, at the last entry. It is eight bytes wide.
    pub fn last_param(&self) -> u64 {
        let value = self.assignment.params().last().expect("it has a parameter");
        match place_of(value) {
            Place::Reg(register) => self.at_entry().reg(register),
            Place::Area(offset) => self.argument_area()[offset as usize / 8],
            other => panic!("a place that this test does not know: {other:?}"),
        }
    }
}

/// What a callee should find.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// The caller's registers, for the modes.
    pub caller: &'a State,
    /// Address of the goroutine.
    pub g: u64,
    /// The arguments.
    pub values: &'a [u64],
}

/// The part of the caller's stack that belongs to the callee, from the argument base: Go's
/// NOTES, section 3, and psABI 3.2.3 (arguments are the callee's to change).
pub fn owned_bytes(assignment: &Assignment) -> u32 {
    assignment.total_bytes()
}

/// Stands for a Rust closure where a goroutine function is made: its signature and its address are
/// what [`with_target`] says, so that emitted code can be the target.
pub struct Raw(#[expect(dead_code, reason = "read by address, at the target")] pub u64);

thread_local! {
    static TARGET: RefCell<Option<Signature>> = const { RefCell::new(None) };
    static ADDRESS: Cell<usize> = const { Cell::new(0) };
}

/// Runs `make` while [`Raw`] has this signature and stands for this address.
pub fn with_target<R>(signature: &Signature, address: usize, make: impl FnOnce() -> R) -> R {
    TARGET.set(Some(signature.clone()));
    ADDRESS.set(address);
    make()
}

fn target_signature() -> Signature {
    TARGET.with_borrow(|signature| signature.clone().expect("set by with_target"))
}

impl sealed::GoroutineClosure<Raw> for Raw {}
impl sealed::EntryType for Raw {}

// SAFETY: whoever makes a `Raw` sets the address of code that is entered so.
unsafe impl GoroutineClosure<Raw> for Raw {
    fn signature() -> Signature {
        target_signature()
    }

    fn shim() -> usize {
        ADDRESS.get()
    }
}

impl EntryType for Raw {
    fn signature() -> Signature {
        target_signature()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The g of the goroutine that runs: what ABIInternal code finds in r14.
pub fn current_g(jit: &Jit) -> u64 {
    // SAFETY: an ABIInternal leaf that changes rax only.
    let code = unsafe {
        jit.install("r14", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; mov rax, r14; ret))
    };
    let code = code.expect("it installs");
    // SAFETY: of that convention and type.
    let entry = unsafe { code.enter::<fn() -> *const u8>(Convention::GoAbiInternal) };
    // SAFETY: on a goroutine, by whoever calls this.
    let g = unsafe { entry.expect("entry").call() };
    assert_ne!(g, ptr::null());
    g as u64
}
