//! Frames in calls: of the goroutine that scans, and of parked ones.

use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::LiveSlot::Frame;
use footbridge::jit::{Annotations, FrameClass, Jit, LiveAt, LiveSlot, StubKind};
use footbridge::runtime::{self, Chan, Config, Entry, ScanFrame, WalkEnd, scan_own_stack};
use support::code::push_saved;
use support::spinner::Preemptible;

use super::{GO, Heap, LONG, RBX, SPACES, SYSTEM_V, Sample, install, wait_for_parked};

/// A scanned frame: kind, name, whether it was interrupted, and the contents of its live slots.
type Found = (StubKind, &'static str, bool, Option<Vec<usize>>);

fn found(frame: &ScanFrame) -> Found {
    // SAFETY: words of the stack of this goroutine, or of a suspended one.
    let slots = frame.live_slots().map(|slots| slots.map(|slot| unsafe { *slot }).collect());
    (frame.stub.kind(), frame.stub.name(), frame.interrupted, slots)
}

/// The function that the innermost JIT code of a tower calls.
type AtTheBottom = dyn Fn(&Heap) + Sync;
type Tower = Entry<fn(usize, *const Heap) -> u64>;

/// `a` calls `b`, which calls code without a stack map, which calls a goroutine function through an
/// adapter, which enters `c`, which calls `at_the_bottom`. The frames of a, b and c have an object
/// each, and load it after their callee has returned.
fn tower(at_the_bottom: &'static AtTheBottom) -> Tower {
    let jit = Jit::new().expect("code memory");
    let bottom = jit.named_goroutine_fn("bottom", GO, move |heap: *const Heap| -> u64 {
        // SAFETY: heaps are leaked.
        at_the_bottom(unsafe { &*heap });
        0
    });
    let bottom = Box::leak(Box::new(bottom.expect("a stub"))).address();
    let c = install("c", FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
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
    let b = install("b", FrameClass::Saved, Preemptible::AtPolls, |ops, marks| {
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
    let a = install("a", FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
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

/// The expected frames of a scan of the tower, innermost first.
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
    // Compares frame by frame, so that the message shows the first difference.
    for (frame, expected) in frames.iter().zip(&expected) {
        assert_eq!(frame, expected);
    }
    assert_eq!(frames.len(), expected.len());
    assert_eq!(Heap::load(&heap.strays), 0);
}

#[test]
fn a_goroutine_scans_its_own_frames_and_moves_their_objects() {
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
fn the_visitor_may_stop_the_scan() {
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

/// Two goroutines are parked in towers, and a third one moves the objects of each.
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
            for moves in 1..=3 {
                for (id, heap) in ids.iter().zip(heaps) {
                    let it = wait_for_parked(id, "bottom");
                    check_and_move(heap, |visit| it.scan_stack(LONG, visit).expect("parked"));
                    assert_eq!(Heap::load(&heap.moves), moves);
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
    let code = install("far", FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov rax, rbp);
        dynasm!(ops; .arch x64; mov [rbp - 8], rax; call extern target);
        marks.live_in_call(ops, &[Frame(-8), Frame(-(4 << 20))]);
        marks.live(ops, &[]);
        dynasm!(ops; .arch x64; mov rax, [rbp - 8]; leave; ret);
    });
    let sample = Sample::new("far", code, SYSTEM_V);
    // SAFETY: on a goroutine.
    let rbp = runtime::run(|| unsafe { sample.entry.call(0) }) as usize;
    assert_eq!(BROKEN.load(Ordering::Relaxed), rbp - (4 << 20));
}

/// A scan of tens of thousands of frames: one that ends before the last frame would lose pointers.
#[test]
fn a_scan_of_a_deep_stack_visits_every_frame() {
    const DEPTH: u64 = 50_000;
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let jit = Jit::new().expect("code memory");
    let scan = jit.goroutine_fn(Convention::SystemV, || {
        let mut seen = 0;
        let end = scan_own_stack(|frame| {
            seen += frame.live_slots().expect("a map").count();
            ControlFlow::Continue(())
        });
        assert_eq!(end, WalkEnd::Complete);
        SEEN.store(seen, Ordering::Relaxed);
    });
    let scan = scan.expect("a stub");
    let target = scan.address();
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
