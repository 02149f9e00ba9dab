//! Stack maps, tested by a toy collector. It moves every object of a goroutine that is parked, or
//! that is preempted at any instruction, and the code resumes with the new addresses.
//!
//! The collector is strict. A live slot that holds no object is an error. Moved objects leave
//! poison behind, so that a slot that the collector does not find spoils a sum. Spaces are used in
//! rotation, so that a stale address does not become valid again by chance.

#![allow(unsafe_code, reason = "calls emitted code and changes stacks")]

mod calls;
mod instructions;
mod maps;
mod storm;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use LiveSlot::{Frame, Register};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::{Annotations, Code, FrameClass, Jit, LiveAt, LiveSlot, Ops, lookup};
use footbridge::runtime::{self, Entry, ScanFrame, gosched, stats};
use iced_x86::{Decoder, DecoderOptions};
use support::patience::{self, Patience};
use support::spinner::Preemptible;

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const LONG: Duration = patience::LIMIT;

/// A value and the address of the next object, or 0.
const OBJECT_WORDS: usize = 2;
const OBJECT_BYTES: usize = 8 * OBJECT_WORDS;
const OBJECTS: usize = 8;
const SPACES: usize = 16;
const POISON: u64 = 0xdead_0000_dead_0000;

/// Objects of one goroutine: a list, with the values 1, 10, 100, ...
struct Heap {
    spaces: [[AtomicU64; OBJECTS * OBJECT_WORDS]; SPACES],
    current: AtomicUsize,
    /// The number of moves of all objects.
    moves: AtomicUsize,
    /// The number of slots that were updated.
    slots: AtomicUsize,
    /// The number of slots that held no object.
    strays: AtomicUsize,
}

/// The sum of all values.
const SUM: u64 = 11_111_111;

impl Heap {
    fn new() -> &'static Self {
        let heap: &'static Self = Box::leak(Box::new(Self {
            spaces: [const { [const { AtomicU64::new(POISON) }; OBJECTS * OBJECT_WORDS] }; SPACES],
            current: AtomicUsize::new(0),
            moves: AtomicUsize::new(0),
            slots: AtomicUsize::new(0),
            strays: AtomicUsize::new(0),
        }));
        for n in 0..OBJECTS {
            let next = if n + 1 < OBJECTS { heap.address(n + 1) } else { 0 };
            heap.spaces[0][n * OBJECT_WORDS].store(10_u64.pow(n as u32), Ordering::Relaxed);
            heap.spaces[0][n * OBJECT_WORDS + 1].store(next as u64, Ordering::Relaxed);
        }
        heap
    }

    fn base(&self, space: usize) -> usize {
        self.spaces[space].as_ptr() as usize
    }

    /// The present address of an object.
    fn address(&self, object: usize) -> usize {
        self.base(self.current.load(Ordering::Relaxed)) + object * OBJECT_BYTES
    }

    /// The present address of the object that was at `address` before the last move.
    fn moved(&self, address: usize) -> Option<usize> {
        let current = self.current.load(Ordering::Relaxed);
        let before = self.base((current + SPACES - 1) % SPACES);
        let object = |base: usize| {
            let offset = address.wrapping_sub(base);
            let inside = offset < OBJECTS * OBJECT_BYTES && offset.is_multiple_of(OBJECT_BYTES);
            inside.then(|| self.base(current) + offset)
        };
        // A slot that is an outgoing argument of a frame and an argument of its callee is visited
        // twice: then it has the present address already.
        if address == 0 { Some(0) } else { object(before).or_else(|| object(self.base(current))) }
    }

    /// Moves all objects to the next space and poisons the present one. Slots are stale until
    /// [`Self::update`].
    fn move_all(&self) {
        let from = self.current.load(Ordering::Relaxed);
        let to = (from + 1) % SPACES;
        self.current.store(to, Ordering::Relaxed);
        for (word, (old, new)) in self.spaces[from].iter().zip(&self.spaces[to]).enumerate() {
            let value = old.swap(POISON, Ordering::Relaxed);
            let is_pointer = word % OBJECT_WORDS == 1;
            let value = if is_pointer {
                self.moved(value as usize).expect("objects point to objects") as u64
            } else {
                value
            };
            new.store(value, Ordering::Relaxed);
        }
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes the new addresses to the live slots of a frame. Does not allocate.
    fn update(&self, frame: &ScanFrame) {
        for slot in frame.live_slots().into_iter().flatten() {
            // SAFETY: a slot of a frame that does not execute now: its goroutine is suspended, or
            // runs this code in a deeper frame.
            let held = unsafe { slot.read_volatile() };
            match self.moved(held) {
                // SAFETY: the same word, which is writable.
                Some(now) => unsafe { slot.write_volatile(now) },
                None => {
                    self.strays.fetch_add(1, Ordering::Relaxed);
                }
            }
            self.slots.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn load(counter: &AtomicUsize) -> usize {
        counter.load(Ordering::Relaxed)
    }
}

/// A stack map under construction: the slots that are live from each mark to the next.
#[derive(Default)]
struct Marks(Vec<(usize, Vec<LiveSlot>)>);

impl Marks {
    /// Sets the live slots from here on.
    fn live(&mut self, ops: &Ops, slots: &[LiveSlot]) {
        self.0.push((ops.offset().0, slots.to_vec()));
    }

    /// Sets the live slots during the call that was just emitted.
    fn live_in_call(&mut self, ops: &Ops, slots: &[LiveSlot]) {
        self.0.push((ops.offset().0 - 1, slots.to_vec()));
    }

    /// The stack map of code that ends here.
    fn map(&self, ops: &Ops) -> Vec<LiveAt> {
        let ends = self.0.iter().skip(1).map(|&(at, _)| at).chain([ops.offset().0]);
        let entries = self.0.iter().zip(ends);
        let entries = entries.filter(|((start, _), end)| start != end);
        entries
            .map(|((start, slots), end)| LiveAt { bytes: *start..end, slots: slots.clone() })
            .collect()
    }
}

const RAX: LiveSlot = Register(Gpr::RAX);
const RBX: LiveSlot = Register(Gpr::RBX);
const RCX: LiveSlot = Register(Gpr::RCX);
const RDX: LiveSlot = Register(Gpr::RDX);
const RDI: LiveSlot = Register(Gpr::RDI);
const RSI: LiveSlot = Register(Gpr::RSI);
const R10: LiveSlot = Register(Gpr::R10);
const R11: LiveSlot = Register(Gpr::R11);

/// Installs code with the stack map of its marks.
fn install(
    name: &str,
    class: FrameClass,
    preemptible: Preemptible,
    body: impl FnOnce(&mut Ops, &mut Marks),
) -> Code {
    let jit = Jit::new().expect("code memory");
    // SAFETY: the callers keep the frame contract of the class; the code uses nothing that belongs
    // to the thread.
    let code = unsafe {
        jit.install(name, class, |ops| {
            let mut marks = Marks::default();
            body(ops, &mut marks);
            let annotations = match preemptible {
                Preemptible::Anywhere => Annotations::preemptible(),
                _ => Annotations::new(),
            };
            annotations.stack_map(marks.map(ops))
        })
    };
    code.expect("it installs")
}

/// Code whose argument is the first object of a heap, with the expected result: an address or a
/// sum.
struct Sample {
    name: &'static str,
    entry: Entry<fn(usize) -> u64>,
    /// The start addresses of its pieces of code.
    starts: Vec<usize>,
    expected: fn(&Heap) -> u64,
}

impl Sample {
    fn new(name: &'static str, code: Code, convention: Convention) -> Self {
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter::<fn(usize) -> u64>(convention) }.expect("an entry");
        Self { name, entry, starts: vec![code.address()], expected: |_| 12 }
    }

    /// The addresses of all instructions of its code.
    fn pcs(&self) -> Vec<usize> {
        self.starts.iter().flat_map(|&start| instructions(start)).collect()
    }
}

fn instructions(start: usize) -> Vec<usize> {
    let len = lookup(start).expect("published code").len();
    // SAFETY: published code stays readable.
    let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
    let decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
    decoder.into_iter().map(|instruction| instruction.ip() as usize).collect()
}

/// The numbers of preemptions in this run: asynchronous, cooperative.
fn preemptions() -> (u64, u64) {
    let stats = stats();
    (stats.asynchronous, stats.cooperative)
}

/// Adds up the list by recursion: one frame for each object.
fn walk(name: &'static str) -> Sample {
    let code = install(name, FrameClass::Standard, Preemptible::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rdi);
        marks.live(ops, &[RDI, Frame(-8)]);
        dynasm!(ops; .arch x64; mov rdi, [rdi + 8]);
        dynasm!(ops; .arch x64; xor eax, eax; test rdi, rdi; jz >last; call <again);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; last: ; mov rcx, [rbp - 8]);
        marks.live(ops, &[RCX]);
        dynasm!(ops; .arch x64; add rax, [rcx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; leave; ret);
    });
    Sample { expected: |_| SUM, ..Sample::new(name, code, SYSTEM_V) }
}

/// Waits until the innermost JIT frame of the goroutine has this name.
fn wait_for_parked(id: &AtomicU64, name: &str) -> runtime::Goroutine {
    let patience = Patience::new();
    loop {
        patience.check("it parks", || name);
        let id = id.load(Ordering::Relaxed);
        let it = runtime::goroutines().into_iter().find(|it| id != 0 && it.id() == id);
        let mut is_there = false;
        let scan = it.map(|it| {
            it.scan_stack(LONG, |frame| {
                is_there = frame.stub.name() == name;
                ControlFlow::Break(())
            })
        });
        if let (Some(it), Some(Ok(_)), true) = (it, scan, is_there) {
            return it;
        }
        gosched();
    }
}
