//! A collector that suspends running goroutines all the time.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::LiveSlot::Frame;
use footbridge::jit::{FrameClass, Jit, StubKind};
use footbridge::runtime::{self, Config, Entry, WalkEnd, stats};
use support::code::push_saved;
use support::patience::Patience;
use support::runs::{AtEnd, wait_for};
use support::settings::stress_or;
use support::spinner::Preemptible;

use super::{GO, Heap, LONG, RCX, RDI, SUM, SYSTEM_V, install, walk};

type Adder = Entry<fn(usize, u64) -> u64>;

/// `fn(object, n)`: adds up the list `n` times in a preemptible leaf.
fn storm_leaf() -> Adder {
    let code = install("storm leaf", FrameClass::Leaf, Preemptible::Anywhere, |ops, marks| {
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

/// Like [`storm_leaf`], in a frame and with polls.
fn storm_polls() -> Adder {
    let mut points = Jit::new().and_then(|jit| jit.polls(GO)).expect("of this machine");
    let code = install("storm polls", FrameClass::Standard, Preemptible::AtPolls, |ops, marks| {
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

/// Like [`storm_leaf`], with a frame for each object, all preemptible.
fn storm_frames() -> Adder {
    let walk = walk("storm walk").starts[0];
    let code = install("storm frames", FrameClass::Saved, Preemptible::Anywhere, |ops, marks| {
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

/// Goroutines add up lists all the time. Another one suspends each of them in turn, wherever it is,
/// and moves its objects.
#[test]
fn a_moving_collector_runs_concurrently_with_code() {
    const TIMES: u64 = 5000;
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
                        // SAFETY: on a goroutine. The object is not moved before the code has its
                        // address, since this goroutine does not yield in between.
                        let sum = unsafe { adder.call(heap.address(0), TIMES) };
                        if sum != TIMES * SUM {
                            stop.store(true, Ordering::Relaxed);
                        }
                        assert_eq!(sum, TIMES * SUM);
                        runtime::checkpoint();
                    }
                });
            }
            let stop_at_the_end = AtEnd(|| stop.store(true, Ordering::Relaxed));
            wait_for("all start", || ready.load(Ordering::Relaxed) == heaps.len());
            let (mut pcs, mut depths) = (BTreeSet::new(), BTreeSet::new());
            let patience = Patience::new();
            let is_enough = |pcs: usize, depths: usize| {
                let (moves, stats) =
                    (heaps.iter().map(|(heap, _)| Heap::load(&heap.moves)), stats());
                let preempted = stats.asynchronous > 20 && stats.cooperative > 20;
                preempted && pcs > 12 && depths > 4 && moves.min() > Some(20)
            };
            while !stop.load(Ordering::Relaxed)
                && (patience.elapsed() < time
                    || !(is_enough(pcs.len(), depths.len()) || patience.is_over()))
            {
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
