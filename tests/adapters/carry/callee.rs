//! The callee.

#![allow(unsafe_code, reason = "installs code, and accesses the memory of a call")]

use std::mem::offset_of;
use std::ptr;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::model::Xorshift;
use footbridge::abi::{Assignment, Convention, Gpr, Narrow, Passing, Reg, RegSet, ValueIndex};
use footbridge::jit::{Code, FrameClass, Jit};

use super::Change;
use super::caller::{Caller, Record};
use super::memory::{Island, PAGE_BYTES, read};
use super::state::{
    MXCSR_CONTROL, NATIVE_MXCSR, State, Width, changed_control, closure_register, convention,
    copy_align, gpr_off, load_all, store_gprs, store_rax, store_rest, unpinned, width,
};
use super::values::{Frame, image, masked};

#[repr(C, align(64))]
struct Visit {
    entry: State,
    exit: State,
    stack_top: u64,
    mxcsr: u32,
    _pad: u32,
    side: *mut CalleeSide,
}

/// The call that a [`Callee`] expects, and its results.
#[derive(Clone)]
pub struct Expected<'a> {
    pub target: &'a Assignment,
    /// The values of all parameters, including a bound one.
    pub args: &'a [Vec<u8>],
    pub results: &'a [Vec<u8>],
    /// The word in the closure register.
    pub closure: Option<u64>,
    pub g: u64,
    /// See [`Call::alike`].
    pub alike: bool,
    /// The seed of the garbage.
    pub seed: u64,
}

struct CalleeSide {
    target: Assignment,
    args: Vec<Vec<u8>>,
    results: Vec<Vec<u8>>,
    closure: Option<u64>,
    g: u64,
    alike: bool,
    rng: Xorshift,
    /// The caller's record, for its control words.
    caller: *const Record,
    hits: u64,
    arrived: Vec<Vec<u8>>,
    wrong: Vec<Change>,
}

/// The outcome of a call, at the callee.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// The arguments, with zeros in their padding.
    pub values: Vec<Vec<u8>>,
    /// The violations of the convention.
    pub wrong: Vec<Change>,
}

/// Emitted code that is called. See the head of this module.
pub struct Callee {
    code: Code,
    visit: *mut Visit,
    _stack: Island,
}

impl Callee {
    /// A function that `caller` calls, directly or through a stub.
    pub fn new(jit: &Jit, caller: &Caller) -> Self {
        let mut rng = Xorshift::new(2);
        let stack = Island::map(1, 64 * PAGE_BYTES).pop().expect("one");
        let nothing = "fn()".parse().expect("a signature");
        let side = Box::leak(Box::new(CalleeSide {
            target: Convention::SystemV.assign(&nothing).expect("no values"),
            args: Vec::new(),
            results: Vec::new(),
            closure: None,
            g: 0,
            alike: false,
            rng: Xorshift::new(0),
            caller: caller.record,
            hits: 0,
            arrived: Vec::new(),
            wrong: Vec::new(),
        }));
        let visit: *mut Visit = Box::leak(Box::new(Visit {
            entry: State::garbage(&mut rng),
            exit: State::garbage(&mut rng),
            stack_top: stack.end() as u64 - 64,
            mxcsr: NATIVE_MXCSR,
            _pad: 0,
            side,
        }));
        let at = |offset: usize| offset as i32;
        let (entry, exit) = (at(offset_of!(Visit, entry)), at(offset_of!(Visit, exit)));
        // SAFETY: it calls one function, which does not walk or panic, on a stack of its own.
        let code = unsafe {
            jit.install("carry: callee", FrameClass::Leaf, |ops| {
                store_rax(ops, (&raw mut (*visit).entry.gprs).cast());
                dynasm!(ops; .arch x64; mov rax, QWORD visit as i64);
                store_gprs(ops, entry);
                // Memory below rsp is not written, so that values are preserved which a stub
                // wrongly keeps there. Everything else happens on the other stack.
                dynasm!(ops; .arch x64; mov rsp, [rax + at(offset_of!(Visit, stack_top))]);
                store_rest(ops, entry);
                if width() != Width::Xmm {
                    dynasm!(ops; .arch x64; vzeroupper);
                }
                dynasm!(ops
                    ; .arch x64
                    ; fninit
                    ; ldmxcsr [rax + at(offset_of!(Visit, mxcsr))]
                    ; mov rdi, rax
                    ; mov rax, QWORD on_entry as *const () as i64
                    // Not a `call`, which the check of a leaf would refuse. This leaf has another
                    // stack for it.
                    ; lea rcx, [>after]
                    ; push rcx
                    ; jmp rax
                    ; after:
                    ; mov rax, QWORD visit as i64
                );
                load_all(ops, exit);
                dynasm!(ops
                    ; .arch x64
                    ; mov rsp, [rax + exit + gpr_off(Gpr::RSP)]
                    ; mov rax, [rax + exit + gpr_off(Gpr::RAX)]
                    ; ret
                );
            })
        };
        Self { code: code.expect("it installs"), visit, _stack: stack }
    }

    pub fn address(&self) -> usize {
        self.code.address()
    }

    fn side(&mut self) -> &mut CalleeSide {
        // SAFETY: leaked in `new`; the code does not run while it is borrowed.
        unsafe { &mut *(*self.visit).side }
    }

    /// Prepares the next call.
    pub fn expect(&mut self, expected: &Expected<'_>) {
        let side = self.side();
        side.target = expected.target.clone();
        side.args = expected.args.to_vec();
        side.results = expected.results.to_vec();
        side.closure = expected.closure;
        side.g = expected.g;
        side.alike = expected.alike;
        side.rng = Xorshift::new(expected.seed);
        side.hits = 0;
        side.arrived = Vec::new();
        side.wrong = Vec::new();
    }

    /// The outcome of the last call.
    pub fn arrived(&mut self) -> Arrived {
        let side = self.side();
        let mut wrong = std::mem::take(&mut side.wrong);
        if side.hits != 1 {
            wrong.push(Change::Hits(side.hits));
        }
        Arrived { values: std::mem::take(&mut side.arrived), wrong }
    }
}

/// Runs on the callee's own stack, during the call.
extern "C" fn on_entry(visit: *mut Visit) {
    // SAFETY: `Callee::new` created both; no other call is in progress.
    let (visit, side) = unsafe { (&mut *visit, &mut *(*visit).side) };
    // SAFETY: the caller's record is never freed.
    let (caller, back) = unsafe { (&(*side.caller).before, (*side.caller).back) };
    side.hits += 1;
    let target = side.target.clone();
    let conv = convention(&target);
    let spec = conv.spec();
    let total = target.total_bytes() as usize;
    let found = &visit.entry;
    let base = found.gpr(Gpr::RSP) + u64::from(spec.base_off_bytes);

    let mut wrong = changed_control(caller, found, 0);
    wrong.extend(unpinned(conv, found, side.g));
    let aligned = base.is_multiple_of(target.area_align_bytes().into());
    if !aligned {
        wrong.push(Change::Alignment);
    }
    // The frame contract: a stub that calls has pushed rbp directly below its return address. If
    // compiled code called the stub, these values are unknown.
    let rbp = found.gpr(Gpr::RBP);
    let frame = [caller.gpr(Gpr::RBP), back].map(u64::to_le_bytes).concat();
    if back != 0 && rbp != caller.gpr(Gpr::RBP) && read(rbp, 16) != Some(frame) {
        wrong.push(Change::FramePointer);
    }
    if side.closure.is_some_and(|word| found.gpr(closure_register(conv)) != word) {
        wrong.push(Change::Closure);
    }
    if let Some((Reg::Gpr(register), count)) = target.vector_count()
        && found.gpr(register) as u8 != count
    {
        wrong.push(Change::VectorCount);
    }

    // The arguments. The stack is readable, since the call returns on it.
    let area = read(base, total).unwrap_or_else(|| vec![0; total]);
    let frame = Frame { state: found.clone(), area, x87: Vec::new() };
    let mut copies = Vec::new();
    for (i, value) in target.params().iter().enumerate() {
        let index = ValueIndex::Param(i);
        let size = value.layout().size_bytes as usize;
        let bytes = if let Passing::Reference(place) = *value.passing() {
            let address = frame.word(place);
            let memory = read(address, size);
            if !address.is_multiple_of(copy_align(&target, value.layout()) as u64)
                || memory.is_none()
            {
                wrong.push(Change::Address(index));
            } else {
                copies.push((address, size));
            }
            masked(value, &memory.unwrap_or_else(|| vec![0; size]))
        } else {
            frame.take(&target, value, index, Some(Caller::POISON), &mut wrong)
        };
        if side.args.get(i) != Some(&bytes) {
            wrong.push(Change::Value(index));
        }
        side.arrived.push(bytes);
    }
    let mut result = None;
    if let (Some(pointer), [value, ..]) = (target.result_pointer(), target.results()) {
        let size = value.layout().size_bytes as usize;
        let address = frame.word(pointer.place);
        let there = read(address, size).is_some();
        if !address.is_multiple_of(value.layout().align_bytes.into()) || !there {
            wrong.push(Change::Address(ValueIndex::Result(0)));
        } else {
            result = Some((address, pointer.returned));
        }
    }

    // Destroys all state that the callee may change.
    let rng = &mut side.rng;
    let mut state = State::garbage(rng);
    let pinned: RegSet = spec.pinned.iter().map(|(register, _)| *register).collect();
    for register in spec.preserved.union(pinned).with(Gpr::RSP).iter() {
        match register {
            Reg::Gpr(r) => state.set_gpr(r, found.gpr(r)),
            Reg::Xmm(r) => state.vector_mut(r)[..16].copy_from_slice(&found.vector(r)[..16]),
            other => panic!("not a register of this machine: {other:?}"),
        }
    }
    state.set_control(found.mxcsr() | !MXCSR_CONTROL, found.x87_control());
    let area = (0..total).map(|_| (rng.bits() >> 40) as u8).collect();
    let mut frame = Frame { state, area, x87: Vec::new() };
    for (address, size) in copies {
        for i in 0..size {
            // SAFETY: the memory was readable, and the copy belongs to the callee.
            unsafe { ((address as usize + i) as *mut u8).write((rng.bits() >> 40) as u8) };
        }
    }

    for (value, bytes) in target.results().iter().zip(&side.results) {
        match (result, value.passing()) {
            (_, Passing::Nothing) => {}
            (Some((address, returned)), _) => {
                let image = image(value, bytes, rng);
                // SAFETY: the memory was readable, and belongs to the callee until it returns.
                unsafe {
                    ptr::copy_nonoverlapping(image.as_ptr(), address as *mut u8, image.len());
                }
                if let Some(Reg::Gpr(returned)) = returned {
                    frame.state.set_gpr(returned, address);
                }
            }
            (None, Passing::Reference(_)) => {}
            _ => {
                let extend = side.alike && target.narrow() != Narrow::Garbage;
                frame.put(value, bytes, extend, rng);
            }
        }
    }
    if !frame.x87.is_empty() {
        let numbers = std::mem::take(&mut frame.x87);
        frame.state.set_x87(&numbers);
    }
    // SAFETY: the area of the call belongs to the callee.
    unsafe { ptr::copy_nonoverlapping(frame.area.as_ptr(), base as *mut u8, total) };
    visit.exit = frame.state;
    side.wrong = wrong;
}
