//! Preemption at every instruction, and at every poll: all pointers are found.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::LiveSlot::Frame;
use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
use footbridge::runtime::{WalkEnd, request_preemption, scan_own_stack};
use support::code::{load_saved, pop_saved, push_saved};
use support::runs::alone_and_preemptible;
use support::spinner::Preemptible;
use support::step::stepped_with;

use super::{
    GO, Heap, R10, R11, RAX, RBX, RCX, RDI, RDX, RSI, SYSTEM_V, Sample, install, preemptions, walk,
};

static REQUEST_AT: AtomicUsize = AtomicUsize::new(0);
static HEAP: AtomicPtr<Heap> = AtomicPtr::new(ptr::null_mut());
/// Frames of user code in scans that moved objects: preempted frames, and frames in a call.
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);
static CALLED: AtomicUsize = AtomicUsize::new(0);

/// The hook of the trap handler: requests preemption once, at the chosen pc, and moves all objects
/// once, when the goroutine is preempted. It takes no lock and does not allocate.
fn request_and_move(pc: usize) {
    if pc == REQUEST_AT.load(Ordering::Relaxed) {
        REQUEST_AT.store(0, Ordering::Relaxed);
        request_preemption(0);
    }
    if lookup(pc).is_some() {
        return;
    }
    // SAFETY: null, or a heap, which is leaked.
    let Some(heap) = (unsafe { HEAP.load(Ordering::Relaxed).as_ref() }) else {
        return;
    };
    let mut is_preempted = false;
    scan_own_stack(|frame| {
        is_preempted |= frame.stub.kind() == StubKind::Preempt;
        ControlFlow::Break(())
    });
    if !is_preempted {
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

/// The result of a scan that moved all objects.
#[derive(Debug, PartialEq)]
struct Moved {
    /// Frames of user code that were preempted.
    interrupted: usize,
    /// Frames of user code in a call.
    called: usize,
    /// Live slots of all frames.
    slots: usize,
}

/// Calls the sample with a request at `pc`, and moves all objects when it is preempted.
fn move_at(sample: &Sample, pc: usize) -> Moved {
    let heap = Heap::new();
    let at = pc.wrapping_sub(sample.starts[0]) as isize;
    INTERRUPTED.store(0, Ordering::Relaxed);
    CALLED.store(0, Ordering::Relaxed);
    HEAP.store(ptr::from_ref(heap).cast_mut(), Ordering::Relaxed);
    REQUEST_AT.store(pc, Ordering::Relaxed);
    let result = Cell::new(0);
    let before = preemptions();
    let call = || {
        // SAFETY: on a goroutine, with the address of an object.
        result.set(unsafe { sample.entry.call(heap.address(0)) });
    };
    drop(stepped_with(request_and_move, call));
    let after = preemptions();
    let name = sample.name;
    assert_eq!(REQUEST_AT.load(Ordering::Relaxed), 0, "{name}{at:+#x}: not executed");
    assert_eq!(after.0 + after.1 - before.0 - before.1, 1, "{name}{at:+#x}");
    assert_eq!(Heap::load(&heap.moves), 1, "{name}{at:+#x}");
    assert_eq!(Heap::load(&heap.strays), 0, "{name}{at:+#x}");
    let expected = (sample.expected)(heap);
    assert_eq!(result.get(), expected, "{name}{at:+#x}: {:#x}", result.get());
    Moved {
        interrupted: Heap::load(&INTERRUPTED),
        called: Heap::load(&CALLED),
        slots: Heap::load(&heap.slots),
    }
}

/// Moves pointers through registers and slots.
fn wanderer(name: &'static str, class: FrameClass) -> Sample {
    let slot = if class == FrameClass::Saved { -48 } else { -8 };
    let (a, b) = (Frame(slot), Frame(slot - 8));
    let code = install(name, class, Preemptible::Anywhere, |ops, marks| {
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
    Sample::new(name, code, SYSTEM_V)
}

/// Moves the pointer to the red zone and back, and returns it.
fn leaf(name: &'static str, polls: bool) -> Sample {
    let mut points = Jit::new().and_then(|jit| jit.polls(SYSTEM_V)).expect("of this machine");
    let code = install(name, FrameClass::Leaf, Preemptible::Anywhere, |ops, marks| {
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
        // The slow path has no live slots of its own.
        marks.live(ops, &[]);
        points.finish(ops);
    });
    Sample { expected: |heap| heap.address(0) as u64, ..Sample::new(name, code, SYSTEM_V) }
}

/// Passes a stack argument, which belongs to the callee until it returns, then to the caller.
fn passer(name: &'static str) -> Sample {
    let callee = install(name, FrameClass::Saved, Preemptible::Anywhere, |ops, marks| {
        marks.live(ops, &[Frame(16)]);
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        dynasm!(ops; .arch x64; mov rbx, [rbp + 16]);
        marks.live(ops, &[Frame(16), RBX]);
        dynasm!(ops; .arch x64; mov rbx, [rbx]);
        marks.live(ops, &[Frame(16)]);
        dynasm!(ops; .arch x64; mov rax, rbx);
        pop_saved(ops);
        dynasm!(ops; .arch x64; pop rbp; ret);
    });
    let target = callee.address();
    let code = install(name, FrameClass::Standard, Preemptible::Anywhere, |ops, marks| {
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
    let mut sample = Sample { expected: |_| 2, ..Sample::new(name, code, SYSTEM_V) };
    sample.starts.push(target);
    sample
}

/// Checks the stack for a large frame, with the object in rax.
fn checker(name: &'static str, convention: Convention, preemptible: Preemptible) -> Sample {
    let mut points = Jit::new().and_then(|jit| jit.polls(convention)).expect("of this machine");
    let code = install(name, FrameClass::Standard, preemptible, |ops, marks| {
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
    Sample::new(name, code, convention)
}

/// Calls a goroutine function that returns the object, which is also in a slot.
fn taker(name: &'static str, convention: Convention) -> Sample {
    let jit = Jit::new().expect("code memory");
    let returns = jit.named_goroutine_fn("returns", convention, |object: usize| object);
    let returns = Box::leak(Box::new(returns.expect("a stub"))).address();
    let code = install(name, FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16);
        if convention == GO {
            dynasm!(ops; .arch x64; mov [rbp - 8], rax);
        } else {
            dynasm!(ops; .arch x64; mov [rbp - 8], rdi);
        }
        dynasm!(ops; .arch x64; call extern returns);
        marks.live_in_call(ops, &[Frame(-8)]);
        marks.live(ops, &[Frame(-8), RAX]);
        dynasm!(ops; .arch x64; mov rcx, [rbp - 8]);
        marks.live(ops, &[RCX, RAX]);
        dynasm!(ops; .arch x64; mov rax, [rax]; add rax, [rcx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; leave; ret);
    });
    Sample { expected: |_| 2, ..Sample::new(name, code, convention) }
}

/// Starts a goroutine while the object is in a register that the stub preserves.
fn spawner(name: &'static str) -> Sample {
    let jit = Jit::new().expect("code memory");
    let started = install("started", FrameClass::Leaf, Preemptible::AtPolls, |ops, _| {
        dynasm!(ops; .arch x64; ret);
    });
    let signature = "fn(u64)".parse().expect("a signature");
    // SAFETY: of that convention and signature.
    let starts = unsafe { jit.spawn_fn(SYSTEM_V, &signature, &started) };
    let starts = Box::leak(Box::new(starts.expect("a stub"))).address();
    let code = install(name, FrameClass::Saved, Preemptible::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        push_saved(ops);
        dynasm!(ops; .arch x64; sub rsp, 8);
        dynasm!(ops; .arch x64; mov rbx, rdi; mov edi, 7; call extern starts);
        marks.live(ops, &[RBX]);
        dynasm!(ops; .arch x64; mov rax, [rbx]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rbx, [rbp - 8]; leave; ret);
    });
    Sample { expected: |_| 1, ..Sample::new(name, code, SYSTEM_V) }
}

/// A stack map that declares a slot live to the end of the code, after its frame is gone.
fn lazy(name: &'static str) -> Sample {
    let code = install(name, FrameClass::Standard, Preemptible::Anywhere, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rdi);
        marks.live(ops, &[Frame(-8)]);
        dynasm!(ops; .arch x64; mov rax, [rbp - 8]; mov rax, [rax]; leave; ret);
    });
    Sample { expected: |_| 1, ..Sample::new(name, code, SYSTEM_V) }
}

#[test]
fn no_slot_below_rbp_is_live_after_leave() {
    alone_and_preemptible(|| {
        let sample = lazy("lazy");
        let pcs = sample.pcs();
        let (&ret, pcs) = pcs.split_last().expect("some");
        let (&leave, _) = pcs.split_last().expect("some");
        assert_eq!(move_at(&sample, leave).slots, 1);
        assert_eq!(move_at(&sample, ret).slots, 0);
    });
}

/// Keeps objects in a register and in the frame over a poll. Not preemptible elsewhere.
fn poller(name: &'static str, convention: Convention) -> Sample {
    let mut points = Jit::new().and_then(|jit| jit.polls(convention)).expect("of this machine");
    let code = install(name, FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
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
    Sample::new(name, code, convention)
}

#[test]
fn every_pointer_is_found_at_every_instruction() {
    alone_and_preemptible(|| {
        let (mut interrupted, mut called) = (0, 0);
        for sample in [
            wanderer("wanders", FrameClass::Standard),
            wanderer("wanders saved", FrameClass::Saved),
            leaf("leaf", false),
            passer("passes"),
            walk("walks"),
        ] {
            for pc in sample.pcs() {
                let moved = move_at(&sample, pc);
                assert_eq!(moved.interrupted, 1, "{}", sample.name);
                interrupted += moved.interrupted;
                called += moved.called;
            }
        }
        assert!(interrupted > 90 && called > 40, "{interrupted} {called}");
    });
}

#[test]
fn every_pointer_is_found_at_polls_and_stack_checks() {
    alone_and_preemptible(|| {
        for (sample, slow_path) in [
            (leaf("polling leaf", true), 2),
            (checker("checks c", SYSTEM_V, Preemptible::Anywhere), 3),
            (checker("checks go", GO, Preemptible::Anywhere), 3),
        ] {
            let pcs = sample.pcs();
            let ret = pcs.iter().position(|&pc| byte(pc) == 0xc3).expect("it returns");
            for (at, &pc) in pcs.iter().enumerate() {
                let in_slow_path = at.checked_sub(ret + 1);
                if in_slow_path.is_some_and(|at| at >= slow_path) {
                    // Executed only after it has yielded.
                    continue;
                }
                if in_slow_path.is_some() {
                    // Makes the poll take its slow path. The signal of this request arrives in
                    // native code, and is refused.
                    assert!(request_preemption(0));
                }
                let moved = move_at(&sample, pc);
                assert_eq!((moved.interrupted, moved.called), (1, 0), "{}+{at}", sample.name);
            }
        }
        for sample in [
            checker("checks at polls c", SYSTEM_V, Preemptible::AtPolls),
            checker("checks at polls go", GO, Preemptible::AtPolls),
            poller("polls c", SYSTEM_V),
            poller("polls go", GO),
            taker("takes c", SYSTEM_V),
            taker("takes go", GO),
            spawner("spawns"),
        ] {
            let before = preemptions().1;
            let moved = move_at(&sample, sample.starts[0]);
            assert_eq!((moved.interrupted, moved.called), (1, 0), "{}", sample.name);
            assert_eq!(preemptions().1, before + 1, "{}: at its poll", sample.name);
        }
    });
}

fn byte(at: usize) -> u8 {
    // SAFETY: published code stays readable.
    unsafe { (at as *const u8).read() }
}

/// The saved registers that a scan found for a preempted frame; 1 for a register that is not saved.
static FOUND: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static READ: AtomicBool = AtomicBool::new(false);

/// The hook of the trap handler: requests preemption, then reads each saved register and adds to
/// it.
fn request_and_read(pc: usize) {
    if pc == REQUEST_AT.load(Ordering::Relaxed) {
        REQUEST_AT.store(0, Ordering::Relaxed);
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
                // SAFETY: a word of the preempt stub's frame, which is live.
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
fn code_resumes_with_the_saved_registers() {
    let others = Gpr::ALL.into_iter().filter(|&r| r != Gpr::RSP && r != Gpr::RBP);
    let mut at = 0;
    let code = install("all registers", FrameClass::Saved, Preemptible::Anywhere, |ops, _| {
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
    let sample = Sample::new("all registers", code, SYSTEM_V);
    alone_and_preemptible(|| {
        READ.store(false, Ordering::Relaxed);
        REQUEST_AT.store(start + at, Ordering::Relaxed);
        let result = Cell::new(0);
        // SAFETY: on a goroutine.
        drop(stepped_with(request_and_read, || result.set(unsafe { sample.entry.call(0) })));
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
