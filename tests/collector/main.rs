//! Live pointers on stacks: a toy collector moves every object of a goroutine that is parked, or put
//! aside at any instruction, and the code goes on with the new addresses.
//!
//! The collector is strict. A slot that holds no object is an error, and what an object leaves behind
//! is poison, so that a slot that it does not find spoils a sum. Spaces are used in turn: an address
//! that is out of date is not right again by chance.

#![allow(unsafe_code, reason = "calls emitted code and changes stacks")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::code::{load_saved, pop_saved, push_saved};
use support::runs::alone_and_preemptible;
use support::settings::stress_or;

use LiveSlot::{Frame, Register};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::{
    Annotations, Code, ForeignRegion, FrameClass, Jit, JitError, LiveAt, LiveSlot, Ops, StubKind,
    WhenUnsafe, lookup,
};
use footbridge::runtime::{
    self, Chan, Config, Entry, ScanFrame, WalkEnd, gosched, request_preemption, scan_own_stack,
    stats,
};
use iced_x86::{Decoder, DecoderOptions};
use support::step::stepped_with;

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;
const LONG: Duration = Duration::from_secs(20);

// ---- The heap ----

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
    /// How often all objects were moved.
    moves: AtomicUsize,
    /// Slots that were given a new address.
    slots: AtomicUsize,
    /// Slots that held no object.
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

    /// Where an object is now.
    fn address(&self, object: usize) -> usize {
        self.base(self.current.load(Ordering::Relaxed)) + object * OBJECT_BYTES
    }

    /// Where the object is now that was there before the last move, if there was one.
    fn moved(&self, address: usize) -> Option<usize> {
        let current = self.current.load(Ordering::Relaxed);
        let before = self.base((current + SPACES - 1) % SPACES);
        let object = |base: usize| {
            let offset = address.wrapping_sub(base);
            let inside = offset < OBJECTS * OBJECT_BYTES && offset.is_multiple_of(OBJECT_BYTES);
            inside.then(|| self.base(current) + offset)
        };
        // What is both a stack argument and an outgoing one comes twice.
        if address == 0 { Some(0) } else { object(before).or_else(|| object(self.base(current))) }
    }

    /// Moves all objects, and leaves poison behind. The roots are stale until [`Self::update`].
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

    /// Gives the slots of a frame the new addresses. Allocates nothing.
    fn update(&self, frame: &ScanFrame) {
        for slot in frame.live_slots().into_iter().flatten() {
            // SAFETY: a word of a stack that nobody runs on now, but for this code further up.
            let held = unsafe { slot.read_volatile() };
            match self.moved(held) {
                // SAFETY: as above.
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

// ---- Code with maps ----

/// A map as it is made while code is emitted: what is live from an instruction to the next mark.
#[derive(Default)]
struct Marks(Vec<(usize, Vec<LiveSlot>)>);

impl Marks {
    fn live(&mut self, ops: &Ops, slots: &[LiveSlot]) {
        self.0.push((ops.offset().0, slots.to_vec()));
    }

    /// What is live while the call that was just emitted runs.
    fn live_in_call(&mut self, ops: &Ops, slots: &[LiveSlot]) {
        self.0.push((ops.offset().0 - 1, slots.to_vec()));
    }

    /// The map of code that ends here.
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

/// Whether goroutines can be interrupted in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Where {
    Anywhere,
    AtPolls,
}

/// Installs code with the map of its marks.
fn install(
    name: &str,
    class: FrameClass,
    interrupted: Where,
    body: impl FnOnce(&mut Ops, &mut Marks),
) -> Code {
    let jit = Jit::new().expect("code memory");
    // SAFETY: whoever calls this keeps the laws of the class; nothing depends on the thread.
    let code = unsafe {
        jit.install(name, class, |ops| {
            let mut marks = Marks::default();
            body(ops, &mut marks);
            let annotations = match interrupted {
                Where::Anywhere => Annotations::preemptible(),
                _ => Annotations::new(),
            };
            annotations.stack_map(marks.map(ops))
        })
    };
    code.expect("it installs")
}

/// Code that takes the first object of a heap, and the result that is expected, which is an address
/// or a sum.
struct Scene {
    name: &'static str,
    entry: Entry<fn(usize) -> u64>,
    starts: Vec<usize>,
    expected: fn(&Heap) -> u64,
}

impl Scene {
    fn new(name: &'static str, code: Code, convention: Convention) -> Self {
        // SAFETY: of that convention and type.
        let entry = unsafe { code.enter::<fn(usize) -> u64>(convention) }.expect("an entry");
        Self { name, entry, starts: vec![code.address()], expected: |_| 12 }
    }

    /// Every instruction of its code.
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

// ---- Put aside at every instruction ----

static ASK_AT: AtomicUsize = AtomicUsize::new(0);
static HEAP: AtomicPtr<Heap> = AtomicPtr::new(ptr::null_mut());
/// Frames of walks that moved something: of user code that was interrupted, and that called.
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
static CALLED: AtomicUsize = AtomicUsize::new(0);

/// In the handler of traps: asks once at the chosen pc, and moves all objects once when the goroutine
/// was put aside. No lock, no allocation.
fn ask_and_move(pc: usize) {
    if pc == ASK_AT.load(Ordering::Relaxed) {
        ASK_AT.store(0, Ordering::Relaxed);
        request_preemption(0);
    }
    if lookup(pc).is_some() {
        return;
    }
    // SAFETY: null, or a heap, which is leaked.
    let Some(heap) = (unsafe { HEAP.load(Ordering::Relaxed).as_ref() }) else {
        return;
    };
    let mut aside = false;
    scan_own_stack(|frame| {
        aside |= frame.stub.kind() == StubKind::Preempt;
        ControlFlow::Break(())
    });
    if !aside {
        return;
    }
    HEAP.store(ptr::null_mut(), Ordering::Relaxed);
    heap.move_all();
    let end = scan_own_stack(|frame| {
        if frame.stub.kind() == StubKind::User {
            let counter = if frame.interrupted { &INTERRUPTED } else { &CALLED };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        heap.update(frame);
        ControlFlow::Continue(())
    });
    if end != WalkEnd::Complete {
        heap.strays.fetch_add(1000, Ordering::Relaxed);
    }
}

/// How often goroutines of this run were put aside.
fn asides() -> (u64, u64) {
    let stats = stats();
    (stats.asynchronous, stats.cooperative)
}

/// What was found when everything was moved once.
#[derive(Debug, PartialEq)]
struct Moved {
    /// Frames of user code that were interrupted, or gave way.
    interrupted: usize,
    /// Those that had called.
    called: usize,
    /// Slots of all of them.
    slots: usize,
}

/// Calls the scene with a request at a pc, and moves all objects where it was put aside.
fn move_at(scene: &Scene, pc: usize) -> Moved {
    let heap = Heap::new();
    let at = pc.wrapping_sub(scene.starts[0]) as isize;
    INTERRUPTED.store(0, Ordering::Relaxed);
    CALLED.store(0, Ordering::Relaxed);
    HEAP.store(ptr::from_ref(heap).cast_mut(), Ordering::Relaxed);
    ASK_AT.store(pc, Ordering::Relaxed);
    let result = Cell::new(0);
    let before = asides();
    // SAFETY: on a goroutine, with an object.
    drop(stepped_with(ask_and_move, || result.set(unsafe { scene.entry.call(heap.address(0)) })));
    let after = asides();
    let name = scene.name;
    assert_eq!(ASK_AT.load(Ordering::Relaxed), 0, "{name}{at:+#x}: nobody came by");
    assert_eq!(after.0 + after.1 - before.0 - before.1, 1, "{name}{at:+#x}");
    assert_eq!(Heap::load(&heap.moves), 1, "{name}{at:+#x}");
    assert_eq!(Heap::load(&heap.strays), 0, "{name}{at:+#x}");
    let expected = (scene.expected)(heap);
    assert_eq!(result.get(), expected, "{name}{at:+#x}: {:#x}", result.get());
    Moved {
        interrupted: Heap::load(&INTERRUPTED),
        called: Heap::load(&CALLED),
        slots: Heap::load(&heap.slots),
    }
}

/// A pointer wanders through registers and slots.
fn wanderer(name: &'static str, class: FrameClass) -> Scene {
    let slot = if class == FrameClass::Saved { -48 } else { -8 };
    let (a, b) = (Frame(slot), Frame(slot - 8));
    let code = install(name, class, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        if class == FrameClass::Saved {
            push_saved(ops);
        }
        dynasm!(ops; .arch x64; sub rsp, 40; mov [rbp + slot], rdi);
        marks.live(ops, &[RDI, a]);
        dynasm!(ops; .arch x64; mov r10, rdi);
        marks.live(ops, &[R10, a]);
        dynasm!(ops; .arch x64; mov rdi, 0x5a5a; mov rax, [r10]);
        dynasm!(ops; .arch x64; mov r11, [r10 + 8]);
        marks.live(ops, &[R11, a]);
        dynasm!(ops; .arch x64; mov [rbp + slot - 8], r11);
        marks.live(ops, &[a, b]);
        dynasm!(ops; .arch x64; xor r10, r10; not r11; mov rcx, [rbp + slot - 8]);
        marks.live(ops, &[RCX, a]);
        dynasm!(ops; .arch x64; mov [rbp + slot - 8], r11; add rax, [rcx]);
        marks.live(ops, &[a]);
        if class == FrameClass::Saved {
            dynasm!(ops; .arch x64; mov rbx, [rbp + slot]);
            marks.live(ops, &[RBX]);
            dynasm!(ops; .arch x64; mov QWORD [rbp + slot], 77; mov rdx, rbx);
        } else {
            dynasm!(ops; .arch x64; mov rdx, [rbp + slot]);
        }
        marks.live(ops, &[RDX]);
        dynasm!(ops; .arch x64; add rax, [rdx]);
        marks.live(ops, &[]);
        if class == FrameClass::Saved {
            load_saved(ops);
        }
        dynasm!(ops; .arch x64; leave; ret);
    });
    Scene::new(name, code, SYSTEM_V)
}

/// In the red zone and back, and out by its return.
fn leaf(name: &'static str, polls: bool) -> Scene {
    let mut points = Jit::new().and_then(|jit| jit.polls(SYSTEM_V)).expect("of this machine");
    let code = install(name, FrameClass::Leaf, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; mov [rsp - 64], rdi);
        marks.live(ops, &[Frame(-64)]);
        dynasm!(ops; .arch x64; mov edi, 5);
        if polls {
            points.poll(ops);
        }
        dynasm!(ops; .arch x64; nop; mov rax, [rsp - 64]);
        marks.live(ops, &[RAX]);
        dynasm!(ops; .arch x64; mov QWORD [rsp - 64], 5; ret);
        // The slow path has no mark of its own.
        marks.live(ops, &[]);
        points.finish(ops);
    });
    Scene { expected: |heap| heap.address(0) as u64, ..Scene::new(name, code, SYSTEM_V) }
}

/// Passes a stack argument, which is the callee's until it returns and the caller's afterwards.
fn passer(name: &'static str) -> Scene {
    let callee = install(name, FrameClass::Saved, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[Frame(16)]);
        dynasm!(ops
            ; .arch x64
            ; push rbp
            ; mov rbp, rsp
            ; push rbx
            ; push r12
            ; push r13
            ; push r14
            ; push r15
            ; mov rbx, [rbp + 16]
        );
        marks.live(ops, &[Frame(16), RBX]);
        dynasm!(ops; .arch x64; mov rbx, [rbx]);
        marks.live(ops, &[Frame(16)]);
        dynasm!(ops; .arch x64; mov rax, rbx);
        pop_saved(ops);
        dynasm!(ops; .arch x64; pop rbp; ret);
    });
    let target = callee.address();
    let code = install(name, FrameClass::Standard, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rsp], rdi);
        marks.live(ops, &[Frame(-16)]);
        dynasm!(ops; .arch x64; mov edi, 9; call extern target);
        marks.live_in_call(ops, &[]);
        marks.live(ops, &[Frame(-16)]);
        dynasm!(ops; .arch x64; mov rcx, [rsp]);
        marks.live(ops, &[RCX]);
        dynasm!(ops; .arch x64; add rax, [rcx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; leave; ret);
    });
    let mut scene = Scene { expected: |_| 2, ..Scene::new(name, code, SYSTEM_V) };
    scene.starts.push(target);
    scene
}

/// Adds up the list, each object in a frame of its own: `walk(object)`.
fn walk(name: &'static str) -> Scene {
    let code = install(name, FrameClass::Standard, Where::Anywhere, |ops, marks| {
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
    Scene { expected: |_| SUM, ..Scene::new(name, code, SYSTEM_V) }
}

/// Checks its stack for a large frame, with the object in rax.
fn checker(name: &'static str, convention: Convention, interrupted: Where) -> Scene {
    let mut points = Jit::new().and_then(|jit| jit.polls(convention)).expect("of this machine");
    let code = install(name, FrameClass::Standard, interrupted, |ops, marks| {
        if convention == GO {
            marks.live(ops, &[RAX]);
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        } else {
            marks.live(ops, &[RDI]);
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; mov rax, rdi);
            marks.live(ops, &[RAX]);
            dynasm!(ops; .arch x64; mov edi, 1);
        }
        points.check_stack(ops, 1000);
        dynasm!(ops; .arch x64; sub rsp, 1008; mov [rbp - 8], rax);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; mov eax, 3; mov rcx, [rbp - 8]);
        marks.live(ops, &[RCX]);
        dynasm!(ops; .arch x64; mov rax, [rcx]; mov rcx, [rcx + 8]);
        marks.live(ops, &[RCX]);
        dynasm!(ops; .arch x64; add rax, [rcx]; add rax, 1);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; leave; ret);
        points.finish(ops);
    });
    Scene::new(name, code, convention)
}

/// Calls a goroutine function that returns the object, and keeps it in a slot, too.
fn taker(name: &'static str, convention: Convention) -> Scene {
    let jit = Jit::new().expect("code memory");
    let gives = jit.named_goroutine_fn("gives", convention, |object: usize| object);
    let gives = Box::leak(Box::new(gives.expect("a stub"))).address();
    let code = install(name, FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16);
        if convention == GO {
            dynasm!(ops; .arch x64; mov [rbp - 8], rax);
        } else {
            dynasm!(ops; .arch x64; mov [rbp - 8], rdi);
        }
        dynasm!(ops; .arch x64; call extern gives);
        marks.live_in_call(ops, &[Frame(-8)]);
        marks.live(ops, &[Frame(-8), RAX]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 8]);
        marks.live(ops, &[RCX, RAX]);
        dynasm!(ops; .arch x64; mov rax, [rax]; add rax, [rcx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; leave; ret);
    });
    Scene { expected: |_| 2, ..Scene::new(name, code, convention) }
}

/// Starts a goroutine, with the object in a register that the stub preserves.
fn spawner(name: &'static str) -> Scene {
    let jit = Jit::new().expect("code memory");
    let started = install("started", FrameClass::Leaf, Where::AtPolls, |ops, _| {
        dynasm!(ops; .arch x64; ret);
    });
    let signature = "fn(u64)".parse().expect("a signature");
    // SAFETY: of that convention and signature.
    let starts = unsafe { jit.spawn_fn(SYSTEM_V, &signature, &started) };
    let starts = Box::leak(Box::new(starts.expect("a stub"))).address();
    let code = install(name, FrameClass::Saved, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        dynasm!(ops; .arch x64; sub rsp, 8);
        dynasm!(ops; .arch x64; mov rbx, rdi; mov edi, 7; call extern starts);
        marks.live(ops, &[RBX]);
        dynasm!(ops; .arch x64; mov rax, [rbx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rbx, [rbp - 8]; leave; ret);
    });
    Scene { expected: |_| 1, ..Scene::new(name, code, SYSTEM_V) }
}

/// A map that says more than what can be: the slot is live to the end of the code.
fn lazy(name: &'static str) -> Scene {
    let code = install(name, FrameClass::Standard, Where::Anywhere, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rdi);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; mov rax, [rbp - 8]; mov rax, [rax]; leave; ret);
    });
    Scene { expected: |_| 1, ..Scene::new(name, code, SYSTEM_V) }
}

#[test]
fn nothing_is_below_rbp_when_the_frame_was_dropped() {
    alone_and_preemptible(|| {
        let scene = lazy("lazy");
        let pcs = scene.pcs();
        let (&ret, pcs) = pcs.split_last().expect("some");
        let (&leave, _) = pcs.split_last().expect("some");
        assert_eq!(move_at(&scene, leave).slots, 1);
        assert_eq!(move_at(&scene, ret).slots, 0);
    });
}

/// Has the object in a register and in the frame over a poll, and may not be interrupted.
fn poller(name: &'static str, convention: Convention) -> Scene {
    let mut points = Jit::new().and_then(|jit| jit.polls(convention)).expect("of this machine");
    let code = install(name, FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16);
        if convention == SYSTEM_V {
            dynasm!(ops; .arch x64; mov rax, rdi);
        }
        dynasm!(ops; .arch x64; mov rsi, [rax + 8]; mov [rbp - 16], rax; xor eax, eax);
        points.poll(ops);
        marks.live(ops, &[RSI, Frame(-16)]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 16]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rax, [rsi]; add rax, [rcx]; inc rax; leave; ret);
        points.finish(ops);
    });
    Scene::new(name, code, convention)
}

#[test]
fn every_pointer_is_found_wherever_code_is_interrupted() {
    alone_and_preemptible(|| {
        let (mut interrupted, mut called) = (0, 0);
        for scene in [
            wanderer("wanders", FrameClass::Standard),
            wanderer("wanders saved", FrameClass::Saved),
            leaf("leaf", false),
            passer("passes"),
            walk("walks"),
        ] {
            for pc in scene.pcs() {
                let moved = move_at(&scene, pc);
                assert_eq!(moved.interrupted, 1, "{}", scene.name);
                interrupted += moved.interrupted;
                called += moved.called;
            }
        }
        assert!(interrupted > 90 && called > 40, "{interrupted} {called}");
    });
}

#[test]
fn every_pointer_is_found_around_polls_and_checks_of_the_stack() {
    alone_and_preemptible(|| {
        for (scene, slow_path) in [
            (leaf("polling leaf", true), 2),
            (checker("checks c", SYSTEM_V, Where::Anywhere), 3),
            (checker("checks go", GO, Where::Anywhere), 3),
        ] {
            let pcs = scene.pcs();
            let ret = pcs.iter().position(|&pc| byte(pc) == 0xc3).expect("it returns");
            for (at, &pc) in pcs.iter().enumerate() {
                let in_slow_path = at.checked_sub(ret + 1);
                if in_slow_path.is_some_and(|at| at >= slow_path) {
                    // Come by only when it has given way already.
                    continue;
                }
                if in_slow_path.is_some() {
                    // As a request that no signal goes with: it comes in native code.
                    assert!(request_preemption(0));
                }
                let moved = move_at(&scene, pc);
                assert_eq!((moved.interrupted, moved.called), (1, 0), "{}+{at}", scene.name);
            }
        }
        for scene in [
            checker("checks at polls c", SYSTEM_V, Where::AtPolls),
            checker("checks at polls go", GO, Where::AtPolls),
            poller("polls c", SYSTEM_V),
            poller("polls go", GO),
            taker("takes c", SYSTEM_V),
            taker("takes go", GO),
            spawner("spawns"),
        ] {
            let before = asides().1;
            let moved = move_at(&scene, scene.starts[0]);
            assert_eq!((moved.interrupted, moved.called), (1, 0), "{}", scene.name);
            assert_eq!(asides().1, before + 1, "{}: by itself", scene.name);
        }
    });
}

fn byte(at: usize) -> u8 {
    // SAFETY: published code stays readable.
    unsafe { (at as *const u8).read() }
}

/// What a scan found in the registers of a frame that was interrupted; 1 where none is.
static FOUND: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static READ: AtomicBool = AtomicBool::new(false);

/// In the handler of traps: asks, reads every register where it was saved, and adds to it.
fn ask_and_read(pc: usize) {
    if pc == ASK_AT.load(Ordering::Relaxed) {
        ASK_AT.store(0, Ordering::Relaxed);
        request_preemption(0);
    }
    if lookup(pc).is_some() || READ.load(Ordering::Relaxed) {
        return;
    }
    scan_own_stack(|frame| {
        if !frame.interrupted {
            return match frame.stub.kind() {
                StubKind::Preempt => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            };
        }
        for register in Gpr::ALL {
            let found = frame.saved_register(register).map_or(1, |place| {
                // SAFETY: a word of the stub's frame, which the thread is below.
                unsafe {
                    let found = place.read_volatile() as u64;
                    place.write_volatile((found + 1000 * u64::from(register.index())) as usize);
                    found
                }
            });
            FOUND[usize::from(register.index())].store(found, Ordering::Relaxed);
        }
        READ.store(true, Ordering::Relaxed);
        ControlFlow::Break(())
    });
}

#[test]
fn saved_registers_are_what_the_code_goes_on_with() {
    let others = Gpr::ALL.into_iter().filter(|&r| r != Gpr::RSP && r != Gpr::RBP);
    let mut at = 0;
    let code = install("all registers", FrameClass::Saved, Where::Anywhere, |ops, _| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        for register in others.clone() {
            dynasm!(ops; .arch x64; mov Rq(register), 100 + i32::from(register.index()));
        }
        at = ops.offset().0;
        dynasm!(ops; .arch x64; nop);
        for register in others.clone().filter(|&r| r != Gpr::RAX) {
            dynasm!(ops; .arch x64; add rax, Rq(register));
        }
        pop_saved(ops);
        dynasm!(ops; .arch x64; pop rbp; ret);
    });
    let start = code.address();
    let scene = Scene::new("all registers", code, SYSTEM_V);
    alone_and_preemptible(|| {
        READ.store(false, Ordering::Relaxed);
        ASK_AT.store(start + at, Ordering::Relaxed);
        let result = Cell::new(0);
        // SAFETY: on a goroutine.
        drop(stepped_with(ask_and_read, || result.set(unsafe { scene.entry.call(0) })));
        assert!(READ.load(Ordering::Relaxed));
        let indices = || others.clone().map(|register| u64::from(register.index()));
        for index in indices() {
            assert_eq!(FOUND[index as usize].load(Ordering::Relaxed), 100 + index);
        }
        for none in [Gpr::RSP, Gpr::RBP] {
            assert_eq!(FOUND[usize::from(none.index())].load(Ordering::Relaxed), 1);
        }
        assert_eq!(result.get(), indices().map(|index| 100 + 1001 * index).sum());
    });
}

// ---- At calls ----

/// A frame as a scan found it: kind, name, whether it was interrupted, and what its slots hold.
type Found = (StubKind, &'static str, bool, Option<Vec<usize>>);

fn found(frame: &ScanFrame) -> Found {
    // SAFETY: words of a stack that is read by its goroutine, or held still.
    let slots = frame.live_slots().map(|slots| slots.map(|slot| unsafe { *slot }).collect());
    (frame.stub.kind(), frame.stub.name(), frame.interrupted, slots)
}

/// What the function at the bottom of the tower does.
type AtTheBottom = dyn Fn(&Heap) + Sync;
type Tower = Entry<fn(usize, *const Heap) -> u64>;

/// `a` calls `b`, which calls code without a map, which calls a goroutine function through an adapter,
/// which enters `c`, which calls the function at the bottom. Frames a, b and c have an object each, and
/// load it when their callee has returned.
fn tower(at_the_bottom: &'static AtTheBottom) -> Tower {
    let jit = Jit::new().expect("code memory");
    let bottom = jit.named_goroutine_fn("bottom", GO, move |heap: *const Heap| -> u64 {
        // SAFETY: heaps are leaked.
        at_the_bottom(unsafe { &*heap });
        0
    });
    let bottom = Box::leak(Box::new(bottom.expect("a stub"))).address();
    let c = install("c", FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rax);
        dynasm!(ops; .arch x64; mov rax, rbx);
        marks.live(ops, &[Frame(-8), RBX]);
        dynasm!(ops; .arch x64; call extern bottom);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 8]; add rax, [rcx]; leave; ret);
    });
    // SAFETY: of that convention and type.
    let c = unsafe { c.enter::<fn(usize, *const Heap) -> u64>(GO) }.expect("an entry");
    let middle = jit.named_goroutine_fn("middle", SYSTEM_V, move |heap: *const Heap| -> u64 {
        // SAFETY: on a goroutine; heaps are leaked.
        unsafe { c.call((*heap).address(2), heap) }
    });
    let middle = Box::leak(Box::new(middle.expect("a stub"))).address();
    let signature = "fn(ptr) -> u64".parse().expect("a signature");
    // SAFETY: of that convention and type.
    let adapter = unsafe { jit.adapter(&signature, Convention::Win64, SYSTEM_V, middle) };
    let adapter = Box::leak(Box::new(adapter.expect("an adapter"))).address();
    // SAFETY: a standard frame, and 32 bytes for a Win64 callee.
    let plain = unsafe {
        jit.install("plain", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 32; mov rcx, rdi);
            dynasm!(ops; .arch x64; call extern adapter; leave; ret);
        })
    };
    let plain = plain.expect("it installs").address();
    let b = install("b", FrameClass::Saved, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        dynasm!(ops; .arch x64; sub rsp, 24);
        dynasm!(ops; .arch x64; mov [rbp - 48], rdi; mov rbx, rdi; mov rdi, rsi);
        dynasm!(ops; .arch x64; call extern plain);
        marks.live_in_call(ops, &[Frame(-48), RBX, Frame(16)]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 48]; add rax, [rcx]; mov rbx, [rbp - 8]);
        dynasm!(ops; .arch x64; leave; ret);
    });
    let b = b.address();
    let a = install("a", FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 32; mov [rbp - 8], rdi);
        dynasm!(ops; .arch x64; mov [rsp], rdi; mov rdi, [rdi + 8]);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; call extern b);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 8]; add rax, [rcx]; mov rcx, [rsp]);
        dynasm!(ops; .arch x64; add rax, [rcx]; leave; ret);
    });
    // SAFETY: of that convention and type.
    unsafe { a.enter(SYSTEM_V) }.expect("an entry")
}

/// Objects 0 (twice), 1 and 2.
const TOWER_SUM: u64 = 112;

/// What a scan of the tower finds from the bottom on.
fn frames_of_tower(heap: &Heap) -> Vec<Found> {
    use StubKind::{Adapter, Enter, GoroutineFn, User};
    let object = |n| heap.address(n);
    let adapter = "Win64 to SystemV";
    vec![
        (GoroutineFn, "bottom", false, Some(vec![])),
        (User, "c", false, Some(vec![object(2)])),
        (Enter, "c", false, Some(vec![])),
        (GoroutineFn, "middle", false, Some(vec![])),
        (Adapter, adapter, false, None),
        (User, "plain", false, None),
        (User, "b", false, Some(vec![object(1), object(0)])),
        (User, "a", false, Some(vec![object(0)])),
        (Enter, "a", false, Some(vec![])),
    ]
}

/// Checks every frame, and moves every object.
fn check_and_move(
    heap: &Heap,
    scan: impl FnOnce(&mut dyn FnMut(&ScanFrame) -> ControlFlow<()>) -> WalkEnd,
) {
    let expected = frames_of_tower(heap);
    let mut frames = Vec::new();
    heap.move_all();
    let end = scan(&mut |frame| {
        assert!(frame.saved_register(Gpr::RBX).is_none());
        frames.push(found(frame));
        heap.update(frame);
        ControlFlow::Continue(())
    });
    assert_eq!(end, WalkEnd::Complete);
    // A Vec of tuples that differ says less than the first that does.
    for (frame, expected) in frames.iter().zip(&expected) {
        assert_eq!(frame, expected);
    }
    assert_eq!(frames.len(), expected.len());
    assert_eq!(Heap::load(&heap.strays), 0);
}

#[test]
fn a_goroutine_scans_its_own_frames_and_moves_what_they_hold() {
    let tower = tower(&|heap| check_and_move(heap, |visit| scan_own_stack(visit)));
    runtime::run(|| {
        let heap = Heap::new();
        for moves in 1..=2 * SPACES {
            // SAFETY: on a goroutine.
            let sum = unsafe { tower.call(heap.address(0), heap) };
            assert_eq!((sum, Heap::load(&heap.moves)), (TOWER_SUM, moves));
        }
        assert_eq!(scan_own_stack(|_| panic!("no JIT code is on the stack")), WalkEnd::Complete);
    });
    assert_eq!(scan_own_stack(|_| panic!("no goroutine")), WalkEnd::Complete);
}

#[test]
fn the_visitor_may_stop() {
    let tower = tower(&|_| {
        let mut visits = 0;
        let end = scan_own_stack(|_| {
            visits += 1;
            if visits < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!((end, visits), (WalkEnd::Stopped, 3));
    });
    let heap = Heap::new();
    // SAFETY: on a goroutine.
    let sum = runtime::run(|| unsafe { tower.call(heap.address(0), heap) });
    assert_eq!(sum, TOWER_SUM);
}

/// Two goroutines are parked in towers; a third one moves the objects of each.
#[test]
fn parked_goroutines_are_scanned_from_another_thread() {
    static GATES: [std::sync::OnceLock<Chan<u64>>; 2] = [const { std::sync::OnceLock::new() }; 2];
    static HEAPS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    let tower = tower(&|heap| {
        let own = ptr::from_ref(heap) as usize;
        let which = HEAPS.iter().position(|it| it.load(Ordering::Relaxed) == own);
        let gate = GATES[which.expect("one of the two")].get().expect("made before");
        assert!(gate.recv().is_ok());
    });
    let config = Config::new().processors(2);
    let run = config.run(|| {
        let ids = [const { AtomicU64::new(0) }; 2];
        for (gate, heap) in GATES.iter().zip(&HEAPS) {
            gate.set(Chan::new(0)).unwrap_or_else(|_| panic!("this test runs once"));
            heap.store(ptr::from_ref(Heap::new()) as usize, Ordering::Relaxed);
        }
        // SAFETY: leaked.
        let heaps = [0, 1].map(|n| unsafe { &*(HEAPS[n].load(Ordering::Relaxed) as *const Heap) });
        runtime::scope(|s| {
            let both: Vec<_> = ids
                .iter()
                .zip(heaps)
                .map(|(id, heap)| {
                    let tower = &tower;
                    s.go(move || {
                        let own = runtime::this_goroutine().expect("on a goroutine").id();
                        id.store(own, Ordering::Relaxed);
                        // SAFETY: on a goroutine.
                        unsafe { tower.call(heap.address(0), heap) }
                    })
                })
                .collect();
            for round in 1..=3 {
                for (id, heap) in ids.iter().zip(heaps) {
                    let it = wait_for_parked(id, "bottom");
                    check_and_move(heap, |visit| it.scan_stack(LONG, visit).expect("parked"));
                    assert_eq!(Heap::load(&heap.moves), round);
                }
            }
            for (gate, handle) in GATES.iter().zip(both) {
                gate.get().expect("made").send(1).expect("open");
                assert_eq!(handle.join().expect("no panic"), TOWER_SUM);
            }
        });
    });
    run.expect("the run starts");
}

/// The goroutine, when its innermost JIT frame is of that name.
fn wait_for_parked(id: &AtomicU64, name: &str) -> runtime::Goroutine {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < LONG, "it does not get there");
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

// ---- Storm ----

type Adder = Entry<fn(usize, u64) -> u64>;

/// Adds up the list so often: a leaf that may be interrupted.
fn storm_leaf() -> Adder {
    let code = install("storm leaf", FrameClass::Leaf, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; xor eax, eax; outer: ; mov rcx, rdi; inner:);
        marks.live(ops, &[RDI, RCX]);
        dynasm!(ops; .arch x64; add rax, [rcx]; mov rcx, [rcx + 8]; test rcx, rcx; jnz <inner);
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; dec rsi; jnz <outer);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; ret);
    });
    // SAFETY: of that convention and type.
    unsafe { code.enter(SYSTEM_V) }.expect("an entry")
}

/// The same in a frame, with polls.
fn storm_polls() -> Adder {
    let mut points = Jit::new().and_then(|jit| jit.polls(GO)).expect("of this machine");
    let code = install("storm polls", FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rax);
        dynasm!(ops; .arch x64; xor edx, edx; outer: ; mov rcx, [rbp - 8]; inner:);
        marks.live(ops, &[Frame(-8), RCX]);
        points.poll(ops);
        dynasm!(ops; .arch x64; add rdx, [rcx]; mov rcx, [rcx + 8]; test rcx, rcx; jnz <inner);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; dec rbx; jnz <outer; mov rax, rdx; leave; ret);
        points.finish(ops);
    });
    // SAFETY: of that convention and type.
    unsafe { code.enter(GO) }.expect("an entry")
}

/// The same, each object in a frame of its own, and all may be interrupted.
fn storm_frames() -> Adder {
    let walk = walk("storm walk").starts[0];
    let code = install("storm frames", FrameClass::Saved, Where::Anywhere, |ops, marks| {
        marks.live(ops, &[RDI]);
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        dynasm!(ops; .arch x64; sub rsp, 24);
        dynasm!(ops; .arch x64; mov [rbp - 48], rdi; mov r12, rsi; xor r13, r13);
        marks.live(ops, &[Frame(-48)]);
        dynasm!(ops; .arch x64; again: ; mov rdi, [rbp - 48]);
        marks.live(ops, &[Frame(-48), RDI]);
        dynasm!(ops; .arch x64; call extern walk);
        marks.live(ops, &[Frame(-48)]);
        dynasm!(ops; .arch x64; add r13, rax; dec r12; jnz <again; mov rax, r13);
        dynasm!(ops; .arch x64; mov r12, [rbp - 16]; mov r13, [rbp - 24]; leave; ret);
    });
    // SAFETY: of that convention and type.
    unsafe { code.enter(SYSTEM_V) }.expect("an entry")
}

/// Goroutines add up lists all the time; another one holds each still in turn, wherever it is, and
/// moves its objects.
#[test]
fn a_moving_collector_and_code_that_does_not_stop_for_it() {
    const ROUNDS: u64 = 5000;
    let time = stress_or(2.0);
    let adders = [storm_leaf(), storm_polls(), storm_frames()];
    let (stop, ready) = (AtomicBool::new(false), AtomicUsize::new(0));
    let heaps: Vec<(&Heap, AtomicU64)> =
        adders.iter().chain(&adders).map(|_| (Heap::new(), AtomicU64::new(0))).collect();
    let slice = Some(Duration::from_micros(200));
    let config = Config::new().processors(2).time_slice(slice);
    let run = config.run(|| {
        runtime::scope(|s| {
            for ((heap, id), adder) in heaps.iter().zip(adders.iter().chain(&adders)) {
                let (stop, ready) = (&stop, &ready);
                s.go(move || {
                    let own = runtime::this_goroutine().expect("on a goroutine").id();
                    id.store(own, Ordering::Relaxed);
                    ready.fetch_add(1, Ordering::Relaxed);
                    while !stop.load(Ordering::Relaxed) {
                        // SAFETY: on a goroutine. Nobody moves the object before the code has it:
                        // this goroutine does not give way in between.
                        let sum = unsafe { adder.call(heap.address(0), ROUNDS) };
                        if sum != ROUNDS * SUM {
                            stop.store(true, Ordering::Relaxed);
                        }
                        assert_eq!(sum, ROUNDS * SUM);
                        runtime::checkpoint();
                    }
                });
            }
            let stop_at_the_end = AtEnd(|| stop.store(true, Ordering::Relaxed));
            let start = Instant::now();
            while ready.load(Ordering::Relaxed) < heaps.len() {
                assert!(start.elapsed() < LONG, "they do not begin");
                gosched();
            }
            let (mut pcs, mut depths) = (BTreeSet::new(), BTreeSet::new());
            let start = Instant::now();
            while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
                for it in runtime::goroutines() {
                    let of = heaps.iter().find(|(_, id)| id.load(Ordering::Relaxed) == it.id());
                    let Some((heap, _)) = of else { continue };
                    let (mut moves, mut depth) = (false, 0);
                    let scan = it.scan_stack(LONG, |frame| {
                        if frame.stub.kind() == StubKind::User {
                            if !moves {
                                moves = true;
                                heap.move_all();
                            }
                            depth += 1;
                            if frame.interrupted {
                                pcs.insert(frame.pc);
                            }
                            assert!(frame.live_slots().is_some());
                        }
                        heap.update(frame);
                        ControlFlow::Continue(())
                    });
                    assert_eq!(scan, Ok(WalkEnd::Complete));
                    assert_eq!(Heap::load(&heap.strays), 0);
                    depths.insert(depth);
                }
                runtime::checkpoint();
            }
            drop(stop_at_the_end);
            let moves: Vec<_> = heaps.iter().map(|(heap, _)| Heap::load(&heap.moves)).collect();
            let slots: Vec<_> = heaps.iter().map(|(heap, _)| Heap::load(&heap.slots)).collect();
            println!("moves {moves:?}, slots {slots:?}, {} pcs, depths {depths:?}", pcs.len());
            println!("{:?}", stats());
            assert!(moves.iter().all(|&moves| moves > 20), "{moves:?}");
            assert!(pcs.len() > 12 && depths.len() > 4, "{} {depths:?}", pcs.len());
            assert!(stats().asynchronous > 20 && stats().cooperative > 20, "{:?}", stats());
        });
    });
    run.expect("the run starts");
}

/// Does something at the end, also of a test that fails: else its scope waits for ever.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        self.0();
    }
}

// ---- Refusals, and what belongs to others ----

#[test]
fn a_slot_outside_of_the_stack_ends_the_walk() {
    static BROKEN: AtomicUsize = AtomicUsize::new(0);
    let jit = Jit::new().expect("code memory");
    let scans = jit.named_goroutine_fn("scans", SYSTEM_V, || {
        let mut names = Vec::new();
        let end = scan_own_stack(|frame| {
            names.push(frame.stub.name());
            ControlFlow::Continue(())
        });
        let WalkEnd::Broken { at } = end else { panic!("{end:?}") };
        BROKEN.store(at, Ordering::Relaxed);
        assert_eq!(names, ["scans"]);
    });
    let scans = scans.expect("a stub");
    let target = scans.address();
    let code = install("far", FrameClass::Standard, Where::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov rax, rbp);
        dynasm!(ops; .arch x64; mov [rbp - 8], rax; call extern target);
        marks.live_in_call(ops, &[Frame(-8), Frame(-(4 << 20))]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rax, [rbp - 8]; leave; ret);
    });
    let scene = Scene::new("far", code, SYSTEM_V);
    // SAFETY: on a goroutine.
    let rbp = runtime::run(|| unsafe { scene.entry.call(0) }) as usize;
    assert_eq!(BROKEN.load(Ordering::Relaxed), rbp - (4 << 20));
}

#[test]
fn maps_that_make_no_sense_are_refused_when_code_is_installed() {
    let jit = Jit::new().expect("code memory");
    let install = |class, entries: Vec<LiveAt>| {
        // SAFETY: never called.
        let code = unsafe {
            jit.install("wrong map", class, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                match class {
                    FrameClass::Saved => dynasm!(ops
                        ; .arch x64; push rbx; push r12; push r13; push r14; push r15; leave; ret),
                    _ => dynasm!(ops; .arch x64; nop; pop rbp; ret),
                }
                Annotations::new().stack_map(entries)
            })
        };
        code.map(|code| lookup(code.address()).and_then(|stub| stub.stack_map()))
    };
    let entry = |bytes, slots: &[LiveSlot]| LiveAt { bytes, slots: slots.to_vec() };
    let map = install(FrameClass::Standard, vec![entry(4..7, &[Frame(-8), RAX]), entry(0..4, &[])]);
    let map = map.expect("that one makes sense").expect("it is kept");
    assert_eq!(map.entries(), [entry(0..4, &[]), entry(4..7, &[Frame(-8), RAX])]);
    for (class, entries, text) in [
        (
            FrameClass::Standard,
            vec![entry(4..8, &[])],
            "bytes 4..8 of code \"wrong map\" cannot be an entry of its stack map: it ends after the \
             code; entries count bytes from its start",
        ),
        (
            FrameClass::Saved,
            vec![entry(4..5, &[Frame(-40)])],
            "frame slot -40 cannot be live in bytes 4..5 of code \"wrong map\": in a saved frame, that \
             is a register of the caller's",
        ),
        (
            FrameClass::Barrier,
            vec![entry(0..2, &[Register(Gpr::RBP)])],
            "register rbp cannot be live in bytes 0..2 of code \"wrong map\": rsp and rbp hold the \
             frame, and no pointer of the code's own",
        ),
    ] {
        let error = install(class, entries).expect_err(text);
        assert!(matches!(error, JitError::StackMap { .. }));
        assert_eq!(error.to_string(), text);
    }
    // Both kinds of annotations are looked at.
    // SAFETY: never called.
    let refused = unsafe {
        jit.install("wrong", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; pop rbp; ret);
            Annotations::preemptible().unsafe_points(0..1, WhenUnsafe::Restart).stack_map([])
        })
    };
    assert!(matches!(refused, Err(JitError::UnsafePointRange { .. })), "{refused:?}");
}

#[test]
fn code_without_a_map_has_none_and_an_empty_map_is_one() {
    let jit = Jit::new().expect("code memory");
    let body = |ops: &mut Ops| dynasm!(ops; .arch x64; ret);
    // SAFETY: leaves that do nothing.
    let codes = unsafe {
        let preemptible = |ops: &mut Ops| {
            body(ops);
            Annotations::preemptible()
        };
        let mapped = |ops: &mut Ops| {
            body(ops);
            Annotations::new().stack_map([])
        };
        [
            jit.install("no map", FrameClass::Leaf, body),
            jit.install("no map", FrameClass::Leaf, preemptible),
            jit.install("a map", FrameClass::Leaf, mapped),
        ]
    };
    let said = codes.map(|code| {
        let stub = lookup(code.expect("it installs").address()).expect("published");
        (stub.is_preemptible(), stub.stack_map().map(|map| map.entries().len()))
    });
    assert_eq!(said, [(false, None), (true, None), (false, Some(0))]);
}

#[test]
fn foreign_code_can_have_a_map() {
    // again: mov rax, [rdi + 8]; test rax, rax; jz again; ret
    const CODE: [u8; 10] = [0x48, 0x8b, 0x47, 0x08, 0x48, 0x85, 0xc0, 0x74, 0xf7, 0xc3];
    // SAFETY: a fresh mapping that stays.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0);
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<[u8; 10]>().write(CODE);
        assert_eq!(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC), 0);
        at as usize
    };
    // SAFETY: the mapping stays, and holds leaves.
    let region = unsafe { ForeignRegion::new(at..at + 4096, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    let publish = |name, bytes, slot| {
        let entry = LiveAt { bytes, slots: vec![slot] };
        let annotations = Annotations::preemptible().stack_map([entry]);
        // SAFETY: the bytes are in place, and can be interrupted anywhere.
        unsafe { region.publish(name, at..at + 10, annotations) }
    };
    let refused = publish("foreign", 0..10, Frame(-136)).err();
    let Some(JitError::StackMap { rule, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(rule, "a leaf has the 128 bytes below rsp only");
    let _code = publish("foreign", 0..9, RDI).expect("it is published");
    let map = lookup(at).and_then(|stub| stub.stack_map()).expect("it has one");
    assert_eq!((map.live_at(8), map.live_at(9)), (&[RDI][..], &[][..]));
    let config = Config::new().processors(2);
    let run = config.run(|| {
        let heap = Heap::new();
        // The last object points to none: the code goes on until it does, and finds poison if it
        // looks where the object was.
        let (last, id) = (OBJECTS - 1, &AtomicU64::new(0));
        runtime::scope(|s| {
            let it = s.go(move || {
                id.store(runtime::this_goroutine().expect("on one").id(), Ordering::Relaxed);
                // SAFETY: System V code of this type. It needs no entry: it calls nothing.
                let code = unsafe { std::mem::transmute::<usize, extern "C" fn(usize) -> u64>(at) };
                code(heap.address(last))
            });
            let it_id = wait_for_parked(id, "async preempt");
            for _ in 0..10 {
                let mut found = 0;
                let end = it_id.scan_stack(LONG, |frame| {
                    if frame.stub.kind() == StubKind::Foreign {
                        heap.move_all();
                        found += 1;
                    }
                    heap.update(frame);
                    if frame.stub.kind() != StubKind::Foreign {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                assert_eq!((end, found), (Ok(WalkEnd::Stopped), 1));
            }
            assert_eq!(Heap::load(&heap.strays), 0);
            let current = Heap::load(&heap.current);
            heap.spaces[current][last * OBJECT_WORDS + 1].store(7, Ordering::Relaxed);
            assert_eq!(it.join().expect("no panic"), 7);
        });
    });
    run.expect("the run starts");
}

/// A piece of code has a length of 32 bits in the registry.
#[test]
fn foreign_code_of_four_gigabytes_is_refused() {
    const LEN: usize = 1 << 32;
    // SAFETY: a fresh mapping, never unmapped.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(ptr::null_mut(), 2 * LEN, libc::PROT_NONE, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    let at = (at as usize).next_multiple_of(4096);
    // SAFETY: nobody uses the range.
    let region = unsafe { ForeignRegion::new(at..at + LEN + 64, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    // SAFETY: as above; no byte is read without annotations.
    let refused = unsafe { region.publish("too long", at..at + LEN, ()) }.err();
    let Some(JitError::ForeignRange { rule, .. }) = refused else { panic!("{refused:?}") };
    assert!(rule.contains("4 GiB"), "{rule}");
}

/// As many frames as a stack holds: a walk that ends before the last one loses pointers.
#[test]
fn no_frame_of_a_deep_stack_is_left_out() {
    const DEPTH: u64 = 50_000;
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let jit = Jit::new().expect("code memory");
    let look = jit.goroutine_fn(Convention::SystemV, || {
        let mut seen = 0;
        let end = scan_own_stack(|frame| {
            seen += frame.live_slots().expect("a map").count();
            ControlFlow::Continue(())
        });
        assert_eq!(end, WalkEnd::Complete);
        SEEN.store(seen, Ordering::Relaxed);
    });
    let look = look.expect("a stub");
    let target = look.address();
    // SAFETY: System V code with a standard frame, fn(pointer, depth).
    let code = unsafe {
        jit.install("deep", FrameClass::Standard, |ops| {
            dynasm!(ops
                ; .arch x64
                ; entry:
                ; push rbp
                ; mov rbp, rsp
                ; sub rsp, 16
                ; mov [rbp - 8], rdi
                ; test rsi, rsi
                ; jz >bottom
                ; dec rsi
            );
            let from = ops.offset().0;
            dynasm!(ops
                ; .arch x64
                ; call <entry
                ; jmp >out
                ; bottom:
                ; call extern target
                ; out:
            );
            let bytes = from..ops.offset().0;
            dynasm!(ops; .arch x64; leave; ret);
            Annotations::new().stack_map([LiveAt { bytes, slots: vec![LiveSlot::Frame(-8)] }])
        })
    };
    // SAFETY: of that convention and type.
    let entry: Entry<fn(u64, u64)> =
        unsafe { code.expect("it installs").enter(Convention::SystemV) }.expect("an entry");
    let config = Config::new().stack_bytes(8 << 20).processors(1);
    // SAFETY: on a goroutine.
    config.run(|| unsafe { entry.call(1, DEPTH) }).expect("the run starts");
    assert_eq!(SEEN.load(Ordering::Relaxed) as u64, DEPTH + 1);
}
