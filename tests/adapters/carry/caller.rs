//! The caller.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::model::Xorshift;
use footbridge::abi::{
    Assignment, Gpr, Layout, Narrow, Passing, Pinned, Place, Reg, Value, ValueIndex,
};
use footbridge::jit::{Code, FrameClass, Jit};
use support::code::{load_saved, push_saved};

use super::Change;
use super::memory::{Island, PAGE_BYTES};
use super::state::{
    NATIVE_MXCSR, NATIVE_X87_CONTROL, OTHER_MXCSR, OTHER_X87_CONTROL, State, Width,
    changed_control, closure_register, convention, copy_align, gpr_off, load_all, store_gprs,
    store_rax, store_rest, unpinned, width,
};
use super::values::{Frame, image, masked};

/// The size of the stack that a call runs on.
const STACK_BYTES: usize = 16 * PAGE_BYTES;
/// The part of it that is filled with [`Caller::POISON`] before each call.
const POISONED_BYTES: usize = 6 * PAGE_BYTES;
/// The number of islands: one for each parameter, and one for the result.
const ISLANDS: usize = 40;

#[repr(C, align(64))]
pub(super) struct Record {
    pub(super) before: State,
    after: State,
    native_fx: State,
    native_rbp: u64,
    native_rsp: u64,
    call_rsp: u64,
    target: u64,
    /// The return address of the target.
    pub(super) back: u64,
}

/// The memory of one value.
struct Placed {
    index: ValueIndex,
    island: usize,
    address: usize,
    size: usize,
}

/// Emitted code that calls. See the head of this module.
pub struct Caller {
    probe: Code,
    resume: Code,
    pub(super) record: *mut Record,
    stack: Island,
    memory: Vec<Island>,
}

/// A call by a [`Caller`].
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub entry: &'a Assignment,
    pub args: &'a [Vec<u8>],
    /// The address of the goroutine.
    pub g: u64,
    /// Both sides have the same convention, so a stub may pass values through unchanged. Each side
    /// therefore extends what the other relies on.
    pub alike: bool,
    /// The word in the closure register, if it must reach the callee.
    pub closure: Option<u64>,
    /// The address to call.
    pub target: usize,
    /// Code that runs after the return and before the state is stored, and jumps to
    /// [`Caller::resume`].
    pub back: Option<usize>,
    /// Whether other bytes follow the argument area and the memory of values, instead of an
    /// unmapped page. `None` chooses at random for each.
    pub room: Option<bool>,
}

/// The outcome of a call, at the caller.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Returned {
    /// The results, with zeros in their padding.
    pub values: Vec<Vec<u8>>,
    /// The violations of the convention.
    pub wrong: Vec<Change>,
}

impl Caller {
    pub fn new(jit: &Jit) -> Self {
        let mut rng = Xorshift::new(1);
        let record: *mut Record = Box::leak(Box::new(Record {
            before: State::garbage(&mut rng),
            after: State::garbage(&mut rng),
            native_fx: State::garbage(&mut rng),
            native_rbp: 0,
            native_rsp: 0,
            call_rsp: 0,
            target: 0,
            back: 0,
        }));
        let at = |offset: usize| offset as i32;
        let (before, after) = (at(offset_of!(Record, before)), at(offset_of!(Record, after)));
        let native_fx = at(offset_of!(Record, native_fx) + offset_of!(State, fx));
        let native_rbp = at(offset_of!(Record, native_rbp));
        let native_rsp = at(offset_of!(Record, native_rsp));
        // SAFETY: only jumped to, from below the frame of the probe, which it drops; no walk takes
        // place in between.
        let resume = unsafe {
            jit.install("carry: resume", FrameClass::Leaf, |ops| {
                let rax = (&raw mut (*record).after.gprs).cast();
                store_rax(ops, rax);
                dynasm!(ops; .arch x64; mov rax, QWORD record as i64);
                store_gprs(ops, after);
                // rsp may have any value here.
                dynasm!(ops; .arch x64; mov rsp, [rax + native_rsp]);
                store_rest(ops, after);
                if width() != Width::Xmm {
                    dynasm!(ops; .arch x64; vzeroupper);
                }
                dynasm!(ops
                    ; .arch x64
                    ; fxrstor64 [rax + native_fx]
                    ; mov rbp, [rax + native_rbp]
                );
                load_saved(ops);
                dynasm!(ops; .arch x64; leave; ret);
            })
        };
        let resume = resume.expect("it installs");
        // SAFETY: the frame contract holds except while the chosen values are loaded, when no walk
        // takes place. The code is a System V function without arguments, and preserves what such a
        // function must.
        let probe = unsafe {
            jit.install("carry: caller", FrameClass::Saved, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                );
                push_saved(ops);
                dynasm!(ops
                    ; .arch x64
                    ; mov rax, QWORD record as i64
                    ; fxsave64 [rax + native_fx]
                    ; mov [rax + native_rbp], rbp
                    ; mov [rax + native_rsp], rsp
                    // Continues on the other stack: first the return address, where a call would
                    // push it, and below it the target, which the last instruction pops.
                    ; mov rsp, [rax + at(offset_of!(Record, call_rsp))]
                    ; push QWORD [rax + at(offset_of!(Record, back))]
                    ; push QWORD [rax + at(offset_of!(Record, target))]
                );
                load_all(ops, before);
                dynasm!(ops
                    ; .arch x64
                    ; mov rax, [rax + before + gpr_off(Gpr::RAX)]
                    ; ret
                );
            })
        };
        Self {
            probe: probe.expect("it installs"),
            resume,
            record,
            stack: Island::map(1, STACK_BYTES).pop().expect("one"),
            memory: Island::map(ISLANDS, PAGE_BYTES),
        }
    }

    /// The address that [`Call::back`] must jump to.
    pub fn resume(&self) -> usize {
        self.resume.address()
    }

    fn record(&mut self) -> &mut Record {
        // SAFETY: leaked in `new`; the probe does not run while the record is borrowed.
        unsafe { &mut *self.record }
    }

    /// The content of memory that was not written.
    pub const POISON: u8 = 0xdb;

    /// Allocates the memory of a value.
    fn place(
        &mut self,
        placed: &mut Vec<Placed>,
        index: ValueIndex,
        (size, align): (u32, usize),
        room: bool,
        rng: &mut Xorshift,
    ) -> usize {
        let (island, size) = (placed.len(), size as usize);
        let memory = &mut self.memory[island];
        for byte in memory.bytes() {
            *byte = (rng.bits() >> 40) as u8;
        }
        let address = memory.place(size, align, room);
        placed.push(Placed { index, island, address, size });
        address
    }

    /// Prepares for a call by compiled code instead of this caller, with the control words of a new
    /// thread.
    pub fn prepare_for_compiled_caller(&mut self) {
        self.record().back = 0;
        self.record().before.set_control(NATIVE_MXCSR, NATIVE_X87_CONTROL);
    }

    /// Makes a call, and checks all state afterwards.
    ///
    /// # Safety
    /// 1. The target is a function of the entry's convention and signature, and may be called with
    ///    these values.
    /// 2. `back` ends with a jump to [`Caller::resume`].
    pub unsafe fn call(&mut self, call: &Call<'_>, rng: &mut Xorshift) -> Returned {
        let Call { entry, args, g, alike, closure, target, back, room } = *call;
        let room = |rng: &mut Xorshift| room.unwrap_or_else(|| rng.below(2) == 0);
        let spec = convention(entry).spec();
        let mut state = State::garbage(rng);
        if rng.below(2) == 0 {
            state.set_control(OTHER_MXCSR, OTHER_X87_CONTROL);
        }
        for &(register, what) in spec.pinned {
            match (register, what) {
                (Reg::Gpr(register), Pinned::Goroutine) => state.set_gpr(register, g),
                (Reg::Xmm(register), Pinned::Zero) => state.vector_mut(register)[..16].fill(0),
                other => panic!("this test does not support the pinned register {other:?}"),
            }
        }

        // The state that holds the values or their addresses.
        let total = entry.total_bytes() as usize;
        let area = (0..total).map(|_| (rng.bits() >> 40) as u8).collect();
        let mut frame = Frame { state, area, x87: Vec::new() };
        let mut placed = Vec::new();
        for (i, (value, bytes)) in entry.params().iter().zip(args).enumerate() {
            let index = ValueIndex::Param(i);
            if let Passing::Reference(place) = *value.passing() {
                let shape = (value.layout().size_bytes, copy_align(entry, value.layout()));
                let room = room(rng);
                let address = self.place(&mut placed, index, shape, room, rng);
                let memory = &mut self.memory[placed.len() - 1];
                let at = address - memory.start as usize;
                let image = image(value, bytes, rng);
                memory.bytes()[at..][..image.len()].copy_from_slice(&image);
                frame.put_word(place, address as u64);
            } else {
                let extend = entry.narrow() == Narrow::ExtendedTo32
                    && matches!(value.passing(), Passing::Parts(_))
                    || alike && entry.narrow() != Narrow::Garbage;
                frame.put(value, bytes, extend, rng);
            }
        }
        let mut result_address = None;
        if let (Some(pointer), [value, ..]) = (entry.result_pointer(), entry.results()) {
            let Layout { size_bytes, align_bytes, .. } = value.layout();
            let (shape, index) = ((size_bytes, align_bytes as usize), ValueIndex::Result(0));
            let room = room(rng);
            let address = self.place(&mut placed, index, shape, room, rng);
            frame.put_word(pointer.place, address as u64);
            result_address = Some(address);
        }
        if let Some(word) = closure {
            frame.state.set_gpr(closure_register(convention(entry)), word);
        }
        if let Some((Reg::Gpr(register), count)) = entry.vector_count() {
            frame.state.set_gpr(register, rng.bits() << 8 | u64::from(count));
        }

        // The stack: poison below the area, and an unmapped page or other bytes above it.
        let align = entry.area_align_bytes() as usize;
        let base = self.stack.place(total, align, room(rng));
        let base_off = base - self.stack.start as usize;
        let stack = self.stack.bytes();
        stack[base_off - POISONED_BYTES..base_off].fill(Self::POISON);
        stack[base_off..][..total].copy_from_slice(&frame.area);
        for byte in &mut stack[base_off + total..] {
            *byte = (rng.bits() >> 40) as u8;
        }
        let above = stack[base_off + total..].to_vec();
        let mut beside: Vec<Vec<u8>> =
            placed.iter().map(|p| self.memory[p.island].bytes().to_vec()).collect();
        frame.state.set_gpr(Gpr::RSP, base as u64);

        let resume = self.resume() as u64;
        let record = self.record();
        record.before = frame.state;
        record.call_rsp = base as u64;
        record.target = target as u64;
        record.back = back.map_or(resume, |back| back as u64);
        // SAFETY: an extern "C" function without arguments, by `new`. The caller guarantees 1 and
        // 2.
        let probe: extern "C-unwind" fn() =
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(self.probe.address()) };
        probe();

        let (before, after) = (self.record().before.clone(), self.record().after.clone());
        let on_x87 = entry.results().iter().flat_map(Value::parts);
        let on_x87 = on_x87.filter(|part| matches!(part.place, Place::X87(_))).count();
        let mut wrong = changed_control(&before, &after, on_x87);
        for register in spec.preserved.with(Gpr::RSP).iter() {
            match register {
                Reg::Gpr(r) if before.gpr(r) != after.gpr(r) => wrong.push(Change::Gpr(r)),
                Reg::Xmm(r) if before.vector(r)[..16] != after.vector(r)[..16] => {
                    wrong.push(Change::Xmm(r));
                }
                _ => {}
            }
        }
        wrong.extend(unpinned(convention(entry), &after, g));
        let stack = self.stack.bytes();
        let area = stack[base_off..][..total].to_vec();
        let changed = stack[base_off + total..].iter().zip(&above).position(|(a, b)| a != b);
        wrong.extend(changed.map(|at| Change::Above(total + at)));
        for (placed, beside) in placed.iter().zip(&mut beside) {
            let memory = &mut self.memory[placed.island];
            let at = placed.address - memory.start as usize;
            // The callee may change the value itself: a copy of an argument, or the result.
            beside[at..][..placed.size].copy_from_slice(&memory.bytes()[at..][..placed.size]);
            let differs = memory.bytes().iter().zip(&*beside).position(|(a, b)| a != b);
            wrong.extend(differs.map(|i| Change::Beside(placed.index, i as isize - at as isize)));
        }

        let frame = Frame { x87: after.x87().unwrap_or_default(), state: after, area };
        let mut values = Vec::new();
        for (i, value) in entry.results().iter().enumerate() {
            let index = ValueIndex::Result(i);
            values.push(match (result_address, entry.result_pointer()) {
                (Some(address), Some(pointer)) => {
                    if let Some(Reg::Gpr(returned)) = pointer.returned
                        && frame.state.gpr(returned) != address as u64
                    {
                        wrong.push(Change::Address(index));
                    }
                    let memory = &mut self.memory[placed.len() - 1];
                    let at = address - memory.start as usize;
                    masked(value, &memory.bytes()[at..][..value.layout().size_bytes as usize])
                }
                _ => frame.take(entry, value, index, None, &mut wrong),
            });
        }
        Returned { values, wrong }
    }
}
