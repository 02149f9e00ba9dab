//! Walks the stack at every instruction of the stubs that preempt goroutines, and from every
//! instruction at which JIT code is preempted.
//!
//! The code runs one instruction at a time (`support::step`), with a request at one chosen
//! instruction. Where the code polls, this enters the poll stub; elsewhere the signal arrives at
//! that instruction. This is repeated for each instruction of each piece, including prologues,
//! `ret`s and the slow paths of polls.

#![allow(unsafe_code, reason = "calls emitted code and reads its bytes")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::code::{caller, pop_saved, push_saved};
use support::patience;
use support::runs::{alone_and_preemptible as run, wait_for};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops, StubInfo, StubKind, WhenUnsafe, lookup};
use footbridge::runtime::{self, Entry, Stats, TraceFrame, WalkEnd, request_preemption, stats};
use support::step::{Trap, clear_trap_flag, stepped_with};

use crate::decode::instruction_offsets;
use crate::unwound::{self, Piece};

/// A piece of code on the stack. Names are unique, except that an entry has the name of the code it
/// enters.
use StubKind::{Enter, GoroutineFn, Preempt, User};

const ASYNC: Piece = (Preempt, "async preempt");
const POLL: Piece = (Preempt, "poll");

/// The JIT frames from a piece of user code or a goroutine function outwards.
fn frames_from(piece: Piece) -> Vec<Piece> {
    match piece {
        (Enter, name) => vec![(Enter, name)],
        (User, name) => vec![piece, (Enter, name)],
        // A goroutine function is called by the code of the same name.
        (GoroutineFn, name) => vec![piece, (User, name), (Enter, name)],
        other => panic!("{other:?} has no single caller"),
    }
}

fn piece_of(stub: &StubInfo) -> Piece {
    (stub.kind(), stub.name())
}

fn pieces(pcs: &[usize]) -> Vec<Piece> {
    pcs.iter().map(|&pc| piece_of(&lookup(pc).expect("the walk found it"))).collect()
}

struct Scene {
    entry: Entry<fn(u64) -> u64>,
    start: usize,
    name: &'static str,
}

impl Scene {
    fn enter(code: footbridge::jit::Code, name: &'static str, convention: Convention) -> Self {
        // SAFETY: code of that convention and type.
        let entry = unsafe { code.enter::<fn(u64) -> u64>(convention) }.expect("an entry");
        Self { entry, start: code.address(), name }
    }

    /// The offsets of the instructions of the user code.
    fn instructions(&self) -> Vec<usize> {
        instruction_offsets(self.start).into_iter().collect()
    }

    fn call(&self) -> u64 {
        // SAFETY: called on a goroutine.
        unsafe { self.entry.call(5) }
    }
}

const RESULT: u64 = 35;

/// Adds its argument seven times, in each frame class and convention. Without polls, the code is
/// preemptible.
fn adder(name: &'static str, class: FrameClass, convention: Convention, polls: bool) -> Scene {
    let jit = Jit::new().expect("code memory");
    let mut points = jit.polls(convention).expect("of this machine");
    let body = |ops: &mut Ops| {
        if class != FrameClass::Leaf {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        }
        if class == FrameClass::Saved {
            push_saved(ops);
        }
        if convention == Convention::SystemV {
            dynasm!(ops; .arch x64; mov rax, rdi);
        }
        // The sum is in the red zone.
        dynasm!(ops; .arch x64; mov ecx, 7; mov QWORD [rsp - 64], 0; again:);
        if polls {
            points.poll(ops);
        }
        dynasm!(ops; .arch x64; add [rsp - 64], rax; dec ecx; jnz <again; mov rax, [rsp - 64]);
        if class == FrameClass::Saved {
            pop_saved(ops);
        }
        if class != FrameClass::Leaf {
            dynasm!(ops; .arch x64; pop rbp);
        }
        dynasm!(ops; .arch x64; ret);
        points.finish(ops);
    };
    // SAFETY: the frame contracts are kept; the code does not depend on the thread.
    let code = unsafe {
        if polls {
            jit.install(name, class, body)
        } else {
            let mut body = body;
            jit.install(name, class, |ops| {
                body(ops);
                Annotations::preemptible()
            })
        }
    };
    Scene::enter(code.expect("it installs"), name, convention)
}

/// Like an adder that is preemptible and also polls: signals arrive in the slow paths of polls,
/// too.
fn polling_preemptible_adder(name: &'static str) -> Scene {
    let jit = Jit::new().expect("code memory");
    let mut points = jit.polls(Convention::SystemV).expect("of this machine");
    // SAFETY: a leaf; the code does not depend on the thread.
    let code = unsafe {
        jit.install(name, FrameClass::Leaf, |ops| {
            dynasm!(ops; .arch x64; mov ecx, 7; mov QWORD [rsp - 64], 0; again:);
            points.poll(ops);
            dynasm!(ops
                ; .arch x64
                ; add [rsp - 64], rdi
                ; dec ecx
                ; jnz <again
                ; mov rax, [rsp - 64]
                ; ret
            );
            points.finish(ops);
            Annotations::preemptible()
        })
    };
    Scene::enter(code.expect("it installs"), name, Convention::SystemV)
}

/// Calls a goroutine function that requests its own preemption: its stub polls at the return.
fn requester(name: &'static str, convention: Convention) -> Scene {
    let jit = Jit::new().expect("code memory");
    let requests = jit.named_goroutine_fn(name, convention, |n: u64| {
        assert!(request_preemption(0));
        n * 7
    });
    let requests = Box::leak(Box::new(requests.expect("a stub"))).address();
    Scene::enter(caller(name, requests), name, convention)
}

/// The result of a walk in native code: pc and fp of three frames, their number, and the end.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Walk([(usize, usize); 3], usize, WalkEnd);

impl Walk {
    fn here() -> Self {
        let (mut frames, mut len) = ([(0, 0); 3], 0);
        let end = runtime::jit_frames(|frame| {
            if let Some(slot) = frames.get_mut(len) {
                *slot = (frame.pc, frame.fp);
            }
            len += 1;
            ControlFlow::Continue(())
        });
        Self(frames, len, end)
    }

    fn is_complete(&self) -> bool {
        self.1 == 3 && self.2 == WalkEnd::Complete
    }
}

/// The number of walks after a bare call that found the same as the walk before it.
static SAME_WALKS: AtomicUsize = AtomicUsize::new(0);

/// Calls a System V function the way native code may do it, with rbp holding an unrelated value: an
/// address further down the stack.
#[inline(never)]
fn call_bare(address: usize, n: u64) -> u64 {
    let result;
    // SAFETY: the code is such a function, and calls no goroutine function. rbp is restored.
    unsafe {
        std::arch::asm!(
            "push rbp",
            "push rbp",
            "lea rbp, [rsp - 2048]",
            "call {code}",
            "pop rbp",
            "pop rbp",
            code = in(reg) address,
            inout("rdi") n => _,
            out("rax") result,
            clobber_abi("sysv64"),
        );
    }
    result
}

/// Calls a goroutine function that calls other code by its address, without a stub, and walks
/// before and after that call.
fn bare_caller(name: &'static str, bare: &Scene) -> Scene {
    let jit = Jit::new().expect("code memory");
    let address = bare.start;
    let calls = jit.named_goroutine_fn(name, Convention::SystemV, move |n: u64| {
        let before = Walk::here();
        let result = call_bare(address, n);
        // Counts instead of asserting: a panic would be stepped through, with all that it prints.
        let is_same = before.is_complete() && Walk::here() == before;
        SAME_WALKS.fetch_add(usize::from(is_same), Ordering::Relaxed);
        result
    });
    let calls = Box::leak(Box::new(calls.expect("a stub"))).address();
    Scene::enter(caller(name, calls), name, Convention::SystemV)
}

/// Polls where too little stack is left for the poll stub.
fn poll_without_room(name: &'static str) -> Scene {
    let jit = Jit::new().expect("code memory");
    let mut points = jit.polls(Convention::SystemV).expect("of this machine");
    // SAFETY: a standard frame.
    let code = unsafe {
        jit.install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 57 << 10);
            points.poll(ops);
            dynasm!(ops; .arch x64; imul rax, rdi, 7; leave; ret);
            points.finish(ops);
        })
    };
    Scene::enter(code.expect("it installs"), name, Convention::SystemV)
}

static REQUEST_AT: AtomicUsize = AtomicUsize::new(0);

/// In the trap handler: requests a preemption, once, at the chosen pc.
fn request(pc: usize) {
    unwound::record(pc);
    if pc == REQUEST_AT.load(Ordering::Relaxed) {
        REQUEST_AT.store(0, Ordering::Relaxed);
        request_preemption(0);
    }
}

/// Steps through a scene, with a request at one pc.
fn step_through(scene: &Scene, request_at: usize) -> Vec<Trap> {
    REQUEST_AT.store(request_at, Ordering::Relaxed);
    let result = Cell::new(0);
    let traps = stepped_with(request, || result.set(scene.call()));
    assert_eq!(REQUEST_AT.load(Ordering::Relaxed), 0, "{}: the pc was not reached", scene.name);
    assert_eq!(result.get(), RESULT, "{}", scene.name);
    traps
}

/// The same, and checks what libgcc finds at each instruction of a stub. To it the stubs that
/// preempt have no caller.
fn step_and_unwind(scene: &Scene, request_at: usize) -> Vec<Trap> {
    unwound::start();
    let traps = step_through(scene, request_at);
    unwound::assert_right(&traps, &unwound::finish(), |piece| match piece {
        (StubKind::Switch | StubKind::GoroutineEntry | Preempt, _) => vec![piece],
        _ => [frames_from(piece), vec![(StubKind::GoroutineEntry, "goroutine entry")]].concat(),
    });
    traps
}

/// The observations of a whole test.
#[derive(Default)]
struct Seen {
    /// Stepped instructions, by stub.
    stepped: BTreeMap<usize, BTreeSet<usize>>,
    /// The frames that walks from native code found.
    native: BTreeSet<String>,
    /// The code that was preempted, with the stub.
    preempted: BTreeSet<String>,
}

impl Seen {
    /// Checks every walk. `preemptible` is the code that may be preempted.
    fn check(&mut self, traps: &[Trap], preemptible: &[Piece]) {
        let mut after: Vec<Vec<Piece>> = vec![vec![]];
        for &piece in preemptible {
            let outer = frames_from(piece);
            after.extend([ASYNC, POLL].map(|stub| [vec![stub], outer.clone()].concat()));
            after.push(outer);
        }
        for trap in traps {
            let found = pieces(trap.frames());
            if !trap.in_stub {
                assert_eq!(trap.end, WalkEnd::Complete, "at {:#x}: {found:?}", trap.pc);
                assert!(after.contains(&found), "native code at {:#x}: {found:?}", trap.pc);
                self.native.insert(format!("{found:?}"));
                continue;
            }
            let stub = lookup(trap.pc).expect("the trap found it");
            self.stepped.entry(stub.start()).or_default().insert(stub.offset_bytes());
            let piece = piece_of(&stub);
            let (expected, end) = match piece {
                (StubKind::Switch, _) => (vec![piece], WalkEnd::Switching),
                (StubKind::GoroutineEntry, _) => (vec![piece], WalkEnd::Complete),
                ASYNC | POLL => {
                    let outer = *found.get(1).unwrap_or_else(|| panic!("{stub:?}: {found:?}"));
                    assert!(preemptible.contains(&outer), "{stub:?}: {found:?}");
                    self.preempted.insert(format!("{piece:?} of {outer:?}"));
                    ([vec![piece], frames_from(outer)].concat(), WalkEnd::Complete)
                }
                _ => (frames_from(piece), WalkEnd::Complete),
            };
            assert_eq!((found, trap.end), (expected, end), "{stub:?}");
            assert_eq!(trap.frames().first(), Some(&trap.pc));
        }
    }

    /// Asserts that every instruction of a stub was executed, except for these.
    fn assert_complete(&self, name: &str, but: &[usize]) {
        let starts = self.stepped.keys().filter(|&&start| {
            lookup(start).is_some_and(|stub| stub.kind() == Preempt && stub.name() == name)
        });
        let starts: Vec<_> = starts.collect();
        assert_eq!(starts.len(), 1, "{name}");
        let mut all = instruction_offsets(*starts[0]);
        all.retain(|at| !but.contains(at));
        assert_eq!(self.stepped[starts[0]], all, "{name}");
    }
}

const SYSTEM_V: Convention = Convention::SystemV;
const GO: Convention = Convention::GoAbiInternal;

#[test]
fn the_walk_is_right_wherever_preemptible_code_is_interrupted() {
    run(|| {
        let mut seen = Seen::default();
        for scene in [
            adder("leaf c", FrameClass::Leaf, SYSTEM_V, false),
            adder("leaf go", FrameClass::Leaf, GO, false),
            adder("framed c", FrameClass::Standard, SYSTEM_V, false),
            adder("framed go", FrameClass::Standard, GO, false),
            adder("saved c", FrameClass::Saved, SYSTEM_V, false),
        ] {
            for at in scene.instructions() {
                let before = stats();
                let traps = step_and_unwind(&scene, scene.start + at);
                assert_eq!(asynchronous(before), 1, "{}+{at:#x}", scene.name);
                seen.check(&traps, &[(User, scene.name)]);
            }
        }
        // Returning from the signal handler executes one instruction before the next trap.
        seen.assert_complete("async preempt", &[0]);
        assert_eq!(seen.preempted.len(), 5, "{:?}", seen.preempted);
    });
}

fn asynchronous(before: Stats) -> u64 {
    stats().asynchronous - before.asynchronous
}

fn cooperative(before: Stats) -> u64 {
    stats().cooperative - before.cooperative
}

#[test]
fn the_walk_is_right_at_every_instruction_of_a_poll() {
    run(|| {
        let mut seen = Seen::default();
        for scene in [
            adder("polling leaf c", FrameClass::Leaf, SYSTEM_V, true),
            adder("polling leaf go", FrameClass::Leaf, GO, true),
            adder("polling framed c", FrameClass::Standard, SYSTEM_V, true),
            adder("polling framed go", FrameClass::Standard, GO, true),
        ] {
            let before = stats();
            let traps = step_and_unwind(&scene, scene.start);
            assert_eq!((cooperative(before), asynchronous(before)), (1, 0), "{}", scene.name);
            seen.check(&traps, &[(User, scene.name)]);
            // The slow path was executed too.
            assert_eq!(
                seen.stepped[&scene.start],
                instruction_offsets(scene.start),
                "{}",
                scene.name
            );
        }
        for scene in [requester("requests c", SYSTEM_V), requester("requests go", GO)] {
            let before = stats();
            let traps = step_and_unwind(&scene, scene.start);
            // Preempted by the poll of its own stub.
            assert_eq!((cooperative(before), asynchronous(before)), (1, 0), "{}", scene.name);
            seen.check(&traps, &[(GoroutineFn, scene.name)]);
        }
        let scene = poll_without_room("polls without room");
        let before = stats();
        let traps = step_and_unwind(&scene, scene.start);
        assert_eq!((cooperative(before), asynchronous(before)), (0, 0), "too little stack is left");
        seen.check(&traps, &[(User, scene.name)]);
        // The request remains: the next poll that has room yields.
        runtime::checkpoint();
        assert_eq!(cooperative(before), 1);
        seen.assert_complete("poll", &[]);
        assert_eq!(seen.preempted.len(), 7, "{:?}", seen.preempted);
    });
}

#[test]
fn the_walk_is_right_where_a_signal_arrives_during_a_poll() {
    run(|| {
        let scene = polling_preemptible_adder("polling and preemptible");
        let mut seen = Seen::default();
        let jumps: Vec<_> = scene.instructions().into_iter().rev().take(3).collect();
        for at in scene.instructions() {
            if jumps.contains(&at) {
                continue;
            }
            let before = stats();
            let traps = step_and_unwind(&scene, scene.start + at);
            assert_eq!(asynchronous(before) + cooperative(before), 1, "+{at:#x}");
            seen.check(&traps, &[(User, scene.name)]);
        }
        // The slow path is only reached after a request, so a second request is made there.
        for &at in &jumps {
            SECOND.store(scene.start + at, Ordering::Relaxed);
            REQUEST_AT.store(0, Ordering::Relaxed);
            // The signal of this request arrives in native code, so it acts like a request without
            // a signal.
            assert!(request_preemption(0));
            let result = Cell::new(0);
            let before = stats();
            let traps = stepped_with(request_second, || result.set(scene.call()));
            assert_eq!(result.get(), RESULT);
            assert_eq!(SECOND.load(Ordering::Relaxed), 0, "+{at:#x} was not reached");
            assert!(asynchronous(before) >= 1, "+{at:#x}");
            seen.check(&traps, &[(User, scene.name)]);
        }
        assert_eq!(seen.stepped[&scene.start], instruction_offsets(scene.start));
        assert_eq!(seen.preempted.len(), 2, "{:?}", seen.preempted);
    });
}

/// Native code that JIT code called must find its anchor unchanged. Walks from the preempted code,
/// and from each instruction of the stubs, must continue at that anchor.
#[test]
fn code_called_by_its_address_without_a_stub_keeps_the_anchor() {
    run(|| {
        let mut seen = Seen::default();
        let (mut preempted, mut returned) = (BTreeSet::new(), 0);
        for (caller, bare, polls) in [
            ("calls leaf", adder("bare leaf", FrameClass::Leaf, SYSTEM_V, false), false),
            ("calls framed", adder("bare framed", FrameClass::Standard, SYSTEM_V, false), false),
            ("calls saved", adder("bare saved", FrameClass::Saved, SYSTEM_V, false), false),
            ("calls polling", adder("bare polling", FrameClass::Standard, SYSTEM_V, true), true),
        ] {
            let scene = bare_caller(caller, &bare);
            let outer = frames_from((GoroutineFn, caller));
            let instructions = if polls { vec![0] } else { bare.instructions() };
            for at in instructions {
                let before = stats();
                SAME_WALKS.store(0, Ordering::Relaxed);
                let traps = step_through(&scene, bare.start + at);
                assert_eq!(SAME_WALKS.load(Ordering::Relaxed), 1, "{caller}+{at:#x}: the anchor");
                let now = (cooperative(before), asynchronous(before));
                assert_eq!(now, if polls { (1, 0) } else { (0, 1) }, "{caller}+{at:#x}");
                let mut was_preempted = false;
                for trap in &traps {
                    let found = pieces(trap.frames());
                    let Some(stub) = lookup(trap.pc) else {
                        // Native code before, during and after the call, below the preempted code,
                        // or in the scheduler.
                        let inner = found.strip_suffix(&outer[..]).unwrap_or(&found);
                        let known = inner.is_empty()
                            || [ASYNC, POLL]
                                .map(|stub| [stub, (User, bare.name)])
                                .contains(inner.try_into().unwrap_or_else(|_| panic!("{found:?}")));
                        assert!(known, "at {:#x}: {found:?}", trap.pc);
                        assert_eq!(trap.end, WalkEnd::Complete, "at {:#x}: {found:?}", trap.pc);
                        was_preempted |= inner.len() == 2;
                        returned += usize::from(was_preempted && found == outer);
                        continue;
                    };
                    seen.stepped.entry(stub.start()).or_default().insert(stub.offset_bytes());
                    match piece_of(&stub) {
                        // A signal that arrives in code which native code called cannot know that
                        // the anchor holds.
                        (User, name) if name == bare.name => {
                            assert_eq!(found, [(User, name)]);
                            assert!(matches!(trap.end, WalkEnd::Broken { .. }), "{:?}", trap.end);
                        }
                        piece @ (ASYNC | POLL) => {
                            let all = [&[piece, (User, bare.name)], &outer[..]].concat();
                            assert_eq!((found, trap.end), (all, WalkEnd::Complete), "{stub:?}");
                            preempted.insert((bare.name, piece.1));
                        }
                        (StubKind::Switch | StubKind::GoroutineEntry, _) => {}
                        piece => {
                            let all = (frames_from(piece), WalkEnd::Complete);
                            assert_eq!((found, trap.end), all, "{stub:?}");
                        }
                    }
                }
            }
        }
        // Without JIT frames further out.
        let bare = adder("bare alone", FrameClass::Standard, SYSTEM_V, false);
        REQUEST_AT.store(bare.start + bare.instructions()[4], Ordering::Relaxed);
        let result = Cell::new(0);
        for trap in stepped_with(request, || result.set(call_bare(bare.start, 5))) {
            let (found, is_user) = (pieces(trap.frames()), trap.pc.wrapping_sub(bare.start) < 100);
            if found.first() == Some(&ASYNC) {
                assert_eq!((found, trap.end), (vec![ASYNC, (User, bare.name)], WalkEnd::Complete));
                preempted.insert((bare.name, ASYNC.1));
            } else if !trap.in_stub || is_user {
                assert_eq!(found.len(), usize::from(is_user));
                assert_eq!(trap.end == WalkEnd::Complete, !is_user, "{:?}", trap.end);
            }
        }
        assert_eq!(result.get(), RESULT);
        seen.assert_complete("async preempt", &[0]);
        assert_eq!(preempted.len(), 5, "{preempted:?}");
        assert!(returned > 20, "{returned}");
    });
}

static SECOND: AtomicUsize = AtomicUsize::new(0);

fn request_second(pc: usize) {
    if pc == SECOND.load(Ordering::Relaxed) {
        SECOND.store(0, Ordering::Relaxed);
        request_preemption(0);
    }
}

/// Requests at each instruction of unsafe-point ranges: the preemption is skipped, or the range
/// restarted.
#[test]
fn unsafe_point_ranges_are_skipped_or_restarted() {
    let jit = Jit::new().expect("code memory");
    for when in [WhenUnsafe::Skip, WhenUnsafe::Restart] {
        let mut range = 0..0;
        // SAFETY: a leaf that may be restarted at the start of the range.
        let code = unsafe {
            jit.install("ranged", FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; mov rcx, rdi; nop);
                range.start = ops.offset().0;
                dynasm!(ops; .arch x64; lea rax, [rcx + rcx]; lea rax, [rax + rax + 5]);
                range.end = ops.offset().0;
                dynasm!(ops; .arch x64; lea rax, [rax + 2 * rcx]; ret);
                Annotations::preemptible().unsafe_points(range.clone(), when)
            })
        };
        let scene = Scene::enter(code.expect("it installs"), "ranged", SYSTEM_V);
        run(|| {
            for at in scene.instructions() {
                let before = stats();
                let traps = step_through(&scene, scene.start + at);
                let inside = range.contains(&at);
                let skipped = inside && when == WhenUnsafe::Skip;
                assert_eq!(asynchronous(before), u64::from(!skipped), "{when:?} +{at:#x}");
                let refused = stats().refused.unsafe_point - before.refused.unsafe_point;
                assert_eq!(refused, u64::from(skipped));
                // The code was interrupted, and resumed at the start of the range, which therefore
                // traps again.
                let restarted = inside && !skipped;
                let starts = traps.iter().filter(|t| t.pc == scene.start + range.start).count();
                assert_eq!(starts, 1 + usize::from(restarted), "{when:?} +{at:#x}");
                Seen::default().check(&traps, &[(User, "ranged")]);
                if skipped {
                    runtime::checkpoint();
                }
            }
        });
    }
}

/// The traceback of a preempted goroutine shows the preemption, and the frames around it.
#[test]
fn tracebacks_show_where_a_goroutine_was_preempted() {
    run(|| {
        let preempted = adder("interrupted code", FrameClass::Saved, SYSTEM_V, false);
        let polling = adder("polling code", FrameClass::Standard, SYSTEM_V, true);
        for (scene, places, words, kind) in [
            (&preempted, preempted.instructions(), "preempted at", "async preempt"),
            (&polling, vec![0], "yielded at", "poll"),
        ] {
            for at in places {
                REQUEST_AT.store(scene.start + at, Ordering::Relaxed);
                runtime::scope(|s| {
                    let one = s.go(|| {
                        let result = Cell::new(0);
                        drop(stepped_with(request, || result.set(scene.call())));
                        result.get()
                    });
                    // The goroutine runs, and this one is resumed when it is preempted.
                    let before = stats();
                    wait_for("it is preempted", || asynchronous(before) + cooperative(before) > 0);
                    clear_trap_flag();
                    let all = runtime::traceback_all_within(patience::LIMIT);
                    let it = all.iter().find(|t| t.id != all[0].id).expect("two goroutines");
                    let text = it.to_string();
                    let jit: Vec<_> = it
                        .frames
                        .iter()
                        .filter_map(|frame| match frame {
                            TraceFrame::Jit { name, .. } => Some(name.as_str()),
                            _ => None,
                        })
                        .collect();
                    assert_eq!(jit, [kind, scene.name, scene.name, "goroutine entry"], "{text}");
                    assert!(
                        text.contains(&format!("    {words}\n    jit {}+0x", scene.name)),
                        "{text}"
                    );
                    let rust = text.rfind("rust ").expect("native frames");
                    assert!(rust > text.find(" (enter)").expect("the entry"), "{text}");
                    assert_eq!(one.join().expect("no panic"), RESULT);
                });
            }
        }
    });
}
