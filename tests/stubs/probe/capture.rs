//! The callee.

#![allow(unsafe_code, reason = "installs code")]

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Assignment, Convention, Gpr, Pinned, Place, Reg, RegSet, Signature};
use footbridge::jit::{Code, FrameClass, Jit};

use super::call::STACK_WORDS;
use super::state::{
    Change, FX_MXCSR, FX_XMM, State, changed_control, load_all_but_rsp, may_change, pattern,
    store_all_but_rax, store_rax,
};
use super::values::{holds, owned_bytes, place_of, put};

/// Words that a capture copies from rsp at its entry. The first is the return address.
pub const CAPTURED_WORDS: usize = 24;
/// Words of the stack that a capture can write, from its argument base.
const OWNED_WORDS: usize = STACK_WORDS;
/// The same with all arithmetic flags clear.
const OTHER_FLAGS: u64 = 0x202;

#[repr(C, align(64))]
struct Visit {
    at_entry: State,
    entry_stack: [u64; CAPTURED_WORDS],
    at_exit: State,
    exit_stack: [u64; OWNED_WORDS],
    hits: u64,
}

/// Emitted code that is called and stores all registers. See the head of this module.
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
        assert!(owned < OWNED_WORDS, "{signature} takes more stack than a capture supports");
        let visit: *mut Visit = Box::leak(Box::new(Visit {
            at_entry: State::distinct(0),
            entry_stack: [0; CAPTURED_WORDS],
            at_exit: State::distinct(5),
            exit_stack: std::array::from_fn(|n| pattern(6, n as u64)),
            hits: 0,
        }));
        // SAFETY: leaked above; no code uses it yet.
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
        // SAFETY: the code makes no call, and rsp points to the return address except for a few
        // instructions, during which no walk takes place.
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
                // Preserved registers and control words are copied from the entry state to the exit
                // state. All exception flags of MXCSR are set, since no convention preserves them.
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
                    // The callee owns parameters, results and the spill area.
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
        // SAFETY: leaked in `new`; the code runs on this thread only, and not during this call.
        unsafe { &*self.visit }
    }

    /// The number of calls.
    pub fn hits(&self) -> u64 {
        // SAFETY: leaked in `new`. Volatile, since emitted code writes the value.
        unsafe { (&raw const (*self.visit).hits).read_volatile() }
    }

    /// The registers at the last entry.
    pub fn at_entry(&self) -> State {
        self.visit().at_entry
    }

    /// The stack at the last entry, from the argument base.
    pub fn argument_area(&self) -> &[u64] {
        &self.visit().entry_stack[1..]
    }

    /// The mismatches at the last entry.
    pub fn arrival(&self, arrival: &Arrival<'_>) -> Vec<Change> {
        self.mismatches(&self.at_entry(), arrival)
    }

    /// Like [`Self::arrival`], with the given registers.
    pub fn mismatches(&self, found: &State, arrival: &Arrival<'_>) -> Vec<Change> {
        let Arrival { caller, g, values } = *arrival;
        let mut wrong = changed_control(caller, found);
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
                other => panic!("this test does not support the pinned value {other:?}"),
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

    /// The word at the location of the last parameter, at the last entry.
    pub fn last_param(&self) -> u64 {
        let value = self.assignment.params().last().expect("it has a parameter");
        match place_of(value) {
            Place::Reg(register) => self.at_entry().reg(register),
            Place::Area(offset) => self.argument_area()[offset as usize / 8],
            other => panic!("this test does not support the location {other:?}"),
        }
    }
}

/// The state that a callee should find.
#[derive(Clone, Copy)]
pub struct Arrival<'a> {
    /// The caller's registers, for the control words.
    pub caller: &'a State,
    /// The address of the goroutine.
    pub g: u64,
    /// The arguments.
    pub values: &'a [u64],
}
