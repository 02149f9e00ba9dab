//! The caller.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

use std::mem::offset_of;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Assignment, Gpr, Place, RegSet, Xmm};
use footbridge::jit::{Code, FrameClass, Jit, Ops};
use support::code::{load_saved, push_saved};

use super::state::{
    Change, Fx, State, changed_control, load_all_but_rsp, pattern, store_all_but_rax, store_rax,
};
use super::values::{holds, mask, place_of, put};

/// Words of the caller's stack that a probe fills and compares, from its rsp at the call.
pub const STACK_WORDS: usize = 64;

/// The state that a probe destroys after its call.
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

/// Emitted code that calls, with chosen values in all registers. See the head of this module.
pub struct Probe {
    code: Code,
    record: *mut Record,
}

/// Destroys one piece of state. Memory below rsp may change too, which the caller does not rely on.
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
        other => panic!("a probe cannot destroy {other:?}"),
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
        // rsp is 8 modulo 16 after the five pushes.
        let frame = STACK_WORDS as i32 * 8 + if odd { 16 } else { 8 };
        // SAFETY: the frame contract holds except while the chosen values are loaded, when no walk
        // takes place. The code is a System V function without arguments, and preserves what such a
        // function must.
        let code = unsafe {
            jit.install("probe", FrameClass::Saved, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                );
                push_saved(ops);
                dynasm!(ops
                    ; .arch x64
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
                );
                load_saved(ops);
                dynasm!(ops; .arch x64; leave; ret);
            })
        };
        Self { code: code.expect("the probe installs"), record }
    }

    pub fn code(&self) -> &Code {
        &self.code
    }

    fn record(&mut self) -> &mut Record {
        // SAFETY: leaked in `new`; the probe does not run while the record is borrowed.
        unsafe { &mut *self.record }
    }

    /// The registers at the call.
    pub fn before(&mut self) -> &mut State {
        &mut self.record().before
    }

    /// rsp at the last call.
    pub fn call_rsp(&mut self) -> u64 {
        self.record().call_rsp
    }

    /// Stores arguments at their locations in `entry`. Garbage surrounds narrow values.
    pub fn put_arguments(&mut self, entry: &Assignment, values: &[u64]) {
        let record = self.record();
        for (value, &bits) in entry.params().iter().zip(values) {
            put(value, bits, entry, &mut record.before, &mut record.stack_before);
        }
    }

    /// Runs the probe as a plain function on the calling thread.
    ///
    /// # Safety
    /// 1. The target may be called with the chosen registers.
    pub unsafe fn run(&mut self) {
        // SAFETY: an extern "C" function without arguments, by `new`.
        let code: extern "C-unwind" fn() =
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(self.code.address()) };
        code();
    }

    /// All state that the call changed, except for the registers in `may_change`, the arithmetic
    /// flags, and the first `owned_bytes` of the stack, which the callee owns.
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
        changes.extend(changed_control(before, after));
        let owned = owned_bytes.div_ceil(8) as usize;
        let words = record.stack_before.iter().zip(&record.stack_after).enumerate();
        changes.extend(
            words.skip(owned).filter(|(_, (b, a))| b != a).map(|(n, _)| Change::StackWord(n)),
        );
        changes
    }

    /// The first result, without the bytes around it.
    pub fn result(&mut self, entry: &Assignment) -> u64 {
        let record = self.record();
        let value = &entry.results()[0];
        let found = match place_of(value) {
            Place::Reg(register) => record.after.reg(register),
            Place::Area(offset) => record.stack_after[offset as usize / 8] >> (offset % 8 * 8),
            other => panic!("this test does not support the location {other:?}"),
        };
        found & mask(value.layout().size_bytes)
    }

    /// The results that are not at their locations in `entry`.
    pub fn wrong_results(&mut self, entry: &Assignment, values: &[u64]) -> Vec<Change> {
        let record = self.record();
        let (after, stack) = (&record.after, &record.stack_after);
        let wrong = |(n, (value, &bits))| {
            (!holds(value, bits, entry, after, stack)).then_some(Change::Result(n))
        };
        entry.results().iter().zip(values).enumerate().filter_map(wrong).collect()
    }
}
