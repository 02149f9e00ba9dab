//! Walks and unwinds from every instruction of every kind of stub.
//!
//! One scene has all kinds (`Scene::new`). `support::step` runs it with the trap flag set, and
//! performs the exact walk at every instruction, in a signal handler, as preemption and profilers
//! do. The scene is a tree: each piece of code has one caller, so the piece alone determines the
//! frames at an instruction.
//!
//! ```text
//!   main goroutine                            two goroutines that JIT code starts
//!   `- outer (enter)                          `- started go (enter, words)
//!      `- outer: Standard, GoAbiInternal         `- started go
//!         |- leaf go: Leaf                          `- yields go (goroutine function)
//!         |- started go (spawn)               `- started c ...
//!         `- middle (goroutine function)
//!            `- inner (enter)
//!               `- inner: Saved, System V
//!                  |- leaf c: Leaf
//!                  |- started c (spawn)
//!                  `- innermost (goroutine function): gosched, park, systemstack
//!                     `- below (enter), on the system stack
//!                        `- below: Standard, System V
//!                           `- bottom (goroutine function)
//! ```
//!
//! libgcc unwinds at every instruction of the stubs, too, in the handler. The full walk starts at
//! call sites only.

#![allow(unsafe_code, reason = "calls emitted code and reads its bytes")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use support::child::Child;
use support::code::{caller, pop_saved, push_saved};
use support::native_unwind;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Code, FrameClass, Jit, StubKind, lookup};
use footbridge::runtime::{
    self, Config, Entry, TraceFrame, Traceback, WaitReason, WalkEnd, current, gopark, goready,
    gosched, jit_frames, systemstack,
};
use iced_x86::Mnemonic;
use support::step::{Trap, set_place, stepped_with};

// Names of pieces are unique, except that an entry has the name of the code it enters.
use crate::decode::instructions;
use crate::unwound::{self, Piece};

use StubKind::{Enter, GoroutineEntry, GoroutineFn, Spawn, Switch, Systemstack, User};

/// The caller of each piece. `None` is native code without JIT code in its callers.
const CALLERS: [(Piece, Option<Piece>); 20] = [
    ((Enter, "outer"), None),
    ((User, "outer"), Some((Enter, "outer"))),
    ((User, "leaf go"), Some((User, "outer"))),
    ((Spawn, "started go"), Some((User, "outer"))),
    ((GoroutineFn, "middle"), Some((User, "outer"))),
    ((Enter, "inner"), Some((GoroutineFn, "middle"))),
    ((User, "inner"), Some((Enter, "inner"))),
    ((User, "leaf c"), Some((User, "inner"))),
    ((Spawn, "started c"), Some((User, "inner"))),
    ((GoroutineFn, "innermost"), Some((User, "inner"))),
    ((Systemstack, "systemstack"), Some((GoroutineFn, "innermost"))),
    // Entered on the system stack. Only a walk of native frames finds systemstack in between.
    ((Enter, "below"), Some((GoroutineFn, "innermost"))),
    ((User, "below"), Some((Enter, "below"))),
    ((GoroutineFn, "bottom"), Some((User, "below"))),
    ((Enter, "started go"), None),
    ((User, "started go"), Some((Enter, "started go"))),
    ((GoroutineFn, "yields go"), Some((User, "started go"))),
    ((Enter, "started c"), None),
    ((User, "started c"), Some((Enter, "started c"))),
    ((GoroutineFn, "yields c"), Some((User, "started c"))),
];
/// Pieces that are not called by JIT code.
const OTHERS: [Piece; 3] =
    [(Switch, "gogo"), (Switch, "mcall"), (GoroutineEntry, "goroutine entry")];

/// The frames from a piece outwards, innermost first.
fn frames_from(piece: Piece) -> Vec<Piece> {
    let caller = |p: Piece| CALLERS.iter().find(|(q, _)| *q == p).and_then(|(_, caller)| *caller);
    std::iter::successors(Some(piece), |&p| caller(p)).collect()
}

fn piece_at(pc: usize) -> Option<Piece> {
    lookup(pc).map(|stub| (stub.kind(), stub.name()))
}

/// The pieces at these program counters.
fn pieces(pcs: &[usize]) -> Vec<Piece> {
    pcs.iter().copied().filter_map(piece_at).collect()
}

/// The place of native code, which marks its traps.
const ELSEWHERE: usize = 0;
const INNERMOST: usize = 1;
const ON_SYSTEM_STACK: usize = 2;
const BOTTOM: usize = 3;

thread_local! {
    /// Called at the three places: in the innermost function, on its system stack, and at the
    /// bottom.
    static HOOK: Cell<fn(usize)> = const { Cell::new(|_| {}) };
    static STARTED: Cell<u32> = const { Cell::new(0) };
}

fn bottom_rust(n: u64) -> u64 {
    set_place(BOTTOM);
    HOOK.get()(BOTTOM);
    set_place(ELSEWHERE);
    std::hint::black_box(n) + 3
}

#[inline(never)]
fn innermost_rust(below: &Entry<fn(u64) -> u64>, n: u64) -> u64 {
    set_place(INNERMOST);
    HOOK.get()(INNERMOST);
    set_place(ELSEWHERE);
    let doubled = systemstack(|| {
        set_place(ON_SYSTEM_STACK);
        HOOK.get()(ON_SYSTEM_STACK);
        set_place(ELSEWHERE);
        // SAFETY: called on a goroutine, though not on its stack; a System V function of this type.
        let result = unsafe { below.call(n) };
        set_place(ELSEWHERE);
        result + n - 3
    });
    // The goroutine that `outer` started runs, and yields back to this one.
    gosched();
    let parked = current();
    // SAFETY: readied once, by code that runs after the goroutine has parked.
    unsafe { gopark(WaitReason::Other, || goready(parked)) };
    set_place(INNERMOST);
    let result = std::hint::black_box(doubled) + 1;
    set_place(ELSEWHERE);
    result
}

#[inline(never)]
fn middle_rust(inner: &Entry<fn(u64) -> u64>, n: u64) -> u64 {
    // SAFETY: called on a goroutine, by JIT code; `inner` is a System V function of this type.
    let result = unsafe { inner.call(n) };
    std::hint::black_box(result) + 100
}

#[inline(never)]
fn enter_outer(scene: &Scene, n: u64) -> u64 {
    // SAFETY: called on a goroutine; `outer` is an ABIInternal function of this type.
    std::hint::black_box(unsafe { scene.outer.call(n) })
}

fn yields(n: u64) {
    assert_eq!(n & 0xff, 5);
    gosched();
    STARTED.set(STARTED.get() + 1);
}

struct Scene {
    outer: Entry<fn(u64) -> u64>,
}

impl Scene {
    /// Creates all pieces, which are never freed.
    fn new() -> Self {
        let jit = Jit::new().expect("code memory");
        assert!(
            jit.is_near_text(),
            "out of reach of the text, stubs would end in cells, which do not decode"
        );
        let (go, c) = (Convention::GoAbiInternal, Convention::SystemV);
        let signature = "fn(u64)".parse().expect("a signature");
        let install = |name, class, body: &dyn Fn(&mut _)| -> &'static Code {
            // SAFETY: the bodies below keep the frame contracts of their classes.
            let code = unsafe { jit.install(name, class, body) };
            Box::leak(Box::new(code.expect("it installs")))
        };
        let goroutine_fn = |name, convention, f: fn(u64)| {
            let stub = jit.named_goroutine_fn(name, convention, f).expect("a stub");
            Box::leak(Box::new(stub)).address()
        };
        let pass_on =
            |name, target: usize| -> &'static Code { Box::leak(Box::new(caller(name, target))) };
        let started = |name, convention, target: usize| {
            let code = pass_on(name, target);
            // SAFETY: the code passes its argument on, in the same convention.
            let stub = unsafe { jit.spawn_fn(convention, &signature, code) }.expect("a stub");
            Box::leak(Box::new(stub)).address()
        };
        let leaf = |name| {
            let code = install(name, FrameClass::Leaf, &|ops| {
                dynasm!(ops
                    ; .arch x64
                    ; mov r11d, 3
                    ; again:
                    ; mov [rsp - 8], r11
                    ; dec r11
                    ; jnz <again
                    ; ret
                );
            });
            code.address()
        };

        let bottom = jit.named_goroutine_fn("bottom", c, bottom_rust).expect("a stub");
        let bottom = Box::leak(Box::new(bottom)).address();
        let below = pass_on("below", bottom);
        // SAFETY: the code passes its argument on, in the same convention.
        let below = unsafe { below.enter::<fn(u64) -> u64>(c) }.expect("an entry");
        let innermost = jit
            .named_goroutine_fn("innermost", c, move |n: u64| innermost_rust(&below, n))
            .expect("a stub");
        let innermost = Box::leak(Box::new(innermost)).address();
        let (leaf_c, leaf_go) = (leaf("leaf c"), leaf("leaf go"));
        let started_c = started("started c", c, goroutine_fn("yields c", c, yields));
        let started_go = started("started go", go, goroutine_fn("yields go", go, yields));
        // rbx, r12 and r13 are used, so the frame saves them. rsp is 16-byte aligned at calls.
        let inner = install("inner", FrameClass::Saved, &|ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
            );
            push_saved(ops);
            dynasm!(ops
                ; .arch x64
                ; sub rsp, 8
                ; mov rbx, rdi
                ; call extern leaf_c
                ; mov rdi, 5
                ; call extern started_c
                ; mov rdi, rbx
                ; call extern innermost
                ; lea r12, [rax + 10]
                ; mov rax, r12
                ; add rsp, 8
            );
            pop_saved(ops);
            dynasm!(ops; .arch x64; pop rbp; ret);
        });
        // SAFETY: a System V function of this type.
        let inner = unsafe { inner.enter::<fn(u64) -> u64>(c) }.expect("an entry");
        let middle = jit
            .named_goroutine_fn("middle", go, move |n: u64| middle_rust(&inner, n))
            .expect("a stub");
        let middle = Box::leak(Box::new(middle)).address();
        // In ABIInternal only rbp, rsp, r14 and xmm15 survive a call. rsp is not 16-byte aligned at
        // these calls.
        let outer = install("outer", FrameClass::Standard, &|ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; sub rsp, 24
                ; mov [rbp - 8], rax
                ; call extern leaf_go
                ; mov eax, 5
                ; call extern started_go
                ; mov rax, [rbp - 8]
                ; call extern middle
                ; add rax, 1000
                ; leave
                ; ret
            );
        });
        // SAFETY: an ABIInternal function of this type.
        let outer = unsafe { outer.enter::<fn(u64) -> u64>(go) }.expect("an entry");
        Self { outer }
    }

    /// Runs the scene once, until the goroutines that it starts have ended.
    fn play(&self) {
        STARTED.set(0);
        assert_eq!(enter_outer(self, 7), 7 * 2 + 1 + 10 + 100 + 1000);
        while STARTED.get() < 2 {
            gosched();
        }
        // Yields once more, since they end on the system stack.
        gosched();
    }
}

fn run<R>(f: impl FnOnce() -> R) -> R {
    // Without time slices: stepping is slow, so that each would end during the scene.
    let config = Config::new().processors(1).time_slice(None);
    config.run(f).expect("the run starts")
}

fn step_through_the_scene() -> Vec<Trap> {
    step_with(|_| {})
}

fn step_with(hook: fn(usize)) -> Vec<Trap> {
    run(|| {
        let scene = Scene::new();
        let traps = stepped_with(hook, || scene.play());
        let instructions: usize = traps.iter().map(|trap| trap.count).sum();
        println!("{instructions} instructions");
        traps
    })
}

/// The instructions of a stub that the scene never executes, by what they are for: no goroutine is
/// running, a call does not return, or a poll finds a request (tested in `single_step_preempt.rs`).
fn never_executed(stub: Piece, convention: Option<Convention>) -> Vec<Mnemonic> {
    let no_goroutine = vec![Mnemonic::And, Mnemonic::Call, Mnemonic::Ud2];
    match stub {
        (Enter, _) => no_goroutine,
        // In ABIInternal r14 is the goroutine, so the path for none does not exist.
        (GoroutineFn | Spawn, _) if convention == Some(Convention::SystemV) => {
            [vec![Mnemonic::Lea, Mnemonic::Call, Mnemonic::Jmp], no_goroutine].concat()
        }
        (GoroutineFn | Spawn, _) => vec![Mnemonic::Lea, Mnemonic::Call, Mnemonic::Jmp],
        (Switch, "mcall") | (GoroutineEntry, _) => vec![Mnemonic::Ud2],
        _ => vec![],
    }
}

fn convention_of(piece: Piece) -> Option<Convention> {
    match piece {
        (GoroutineFn | Spawn, "innermost" | "bottom" | "started c" | "yields c") => {
            Some(Convention::SystemV)
        }
        (GoroutineFn | Spawn, _) => Some(Convention::GoAbiInternal),
        _ => None,
    }
}

/// Runs the body in a process of its own: a preemption request of another test's run may come too
/// late, and find the G in use again here. That is harmless, but it adds steps.
fn alone(test: &str, body: impl FnOnce()) {
    Child::of(test).limit_seconds(120).run(body).assert_success();
}

#[test]
fn the_exact_walk_is_right_at_every_instruction_of_every_stub() {
    alone("the_exact_walk_is_right_at_every_instruction_of_every_stub", || {
        let traps = step_through_the_scene();
        let mut wrong = Vec::new();
        for trap in traps.iter().filter(|trap| trap.in_stub) {
            let stub = lookup(trap.pc).expect("the trap found it");
            let piece = (stub.kind(), stub.name());
            // In the middle of a switch, a walk cannot find older frames, and reports that.
            let (frames, end) = match piece {
                (Switch, _) => (vec![piece], WalkEnd::Switching),
                _ => (frames_from(piece), WalkEnd::Complete),
            };
            let found = (pieces(trap.frames()), trap.end);
            if found != (frames, end) || trap.frames().first() != Some(&trap.pc) {
                wrong.push(format!("{stub:?}: {found:?}"));
            }
        }
        wrong.dedup();
        assert!(wrong.is_empty(), "{} wrong walks:\n{}", wrong.len(), wrong.join("\n"));
    });
}

#[test]
fn libgcc_is_right_at_every_instruction_of_every_stub() {
    alone("libgcc_is_right_at_every_instruction_of_every_stub", || {
        unwound::start();
        let traps = step_with(unwound::record);
        unwound::assert_right(&traps, &unwound::finish(), |piece| {
            let mut expected = frames_from(piece);
            // As for every unwinder that decodes native frames.
            if expected.contains(&(Enter, "below")) {
                let innermost = expected.iter().position(|&p| p == (GoroutineFn, "innermost"));
                expected.insert(innermost.expect("on the path"), (Systemstack, "systemstack"));
            }
            if !matches!(piece.0, Switch | GoroutineEntry) {
                expected.push((GoroutineEntry, "goroutine entry"));
            }
            expected
        });
    });
}

#[test]
fn every_instruction_of_every_stub_is_stepped_over() {
    alone("every_instruction_of_every_stub_is_stepped_over", || {
        let traps = step_through_the_scene();
        let mut seen: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for trap in traps.iter().filter(|trap| trap.in_stub) {
            let stub = lookup(trap.pc).expect("the trap found it");
            seen.entry(stub.start()).or_default().insert(stub.offset_bytes());
        }
        let mut found = BTreeSet::new();
        let mut steps = 0;
        for (start, stepped) in seen {
            let piece = piece_at(start).expect("a stub");
            found.insert(format!("{piece:?}"));
            steps += stepped.len();
            let mut instructions = instructions(start);
            for offset in stepped {
                let boundary = instructions.remove(&offset).is_some();
                assert!(boundary, "{piece:?}+{offset:#x} is not an instruction");
            }
            let missed: Vec<_> = instructions.into_values().collect();
            assert_eq!(missed, never_executed(piece, convention_of(piece)), "{piece:?}");
        }
        let all = CALLERS.iter().map(|(piece, _)| *piece).chain(OTHERS);
        let all: BTreeSet<_> = all.map(|piece| format!("{piece:?}")).collect();
        assert_eq!(found, all);
        println!("{steps} instructions in {} stubs", all.len());
    });
}

/// In native code the walk starts at the anchor. It finds the JIT frames that the native code was
/// called from: those of the running goroutine, or, for a few instructions between the choice of
/// the scheduler and the switch, those of the next one.
#[test]
fn the_exact_walk_is_right_at_every_instruction_of_native_code() {
    alone("the_exact_walk_is_right_at_every_instruction_of_native_code", || {
        let traps = step_through_the_scene();
        let innermost = frames_from((GoroutineFn, "innermost"));
        let bottom = frames_from((GoroutineFn, "bottom"));
        // The pieces from which JIT code calls native code.
        let left_by = CALLERS.iter().map(|(piece, _)| *piece);
        let left_by = left_by.filter(|(kind, _)| matches!(kind, GoroutineFn | Spawn));
        let mut possible: BTreeMap<String, bool> =
            left_by.map(|piece| (format!("{:?}", frames_from(piece)), false)).collect();
        possible.insert(format!("{:?}", Vec::<Piece>::new()), false);
        let mut instructions = [0; 4];
        for trap in traps.iter().filter(|trap| !trap.in_stub) {
            assert_eq!(trap.end, WalkEnd::Complete, "at {:#x}", trap.pc);
            let frames = pieces(trap.frames());
            match trap.place {
                ELSEWHERE => {}
                BOTTOM => assert_eq!(frames, bottom, "at {:#x}", trap.pc),
                place => assert_eq!(frames, innermost, "place {place} at {:#x}", trap.pc),
            }
            let found = possible.get_mut(&format!("{frames:?}"));
            *found.unwrap_or_else(|| panic!("{frames:?} at {:#x}", trap.pc)) = true;
            instructions[trap.place] += trap.count;
        }
        assert!(instructions.iter().all(|&n| n > 4), "{instructions:?}");
        let unseen: Vec<_> = possible.iter().filter(|(_, seen)| !**seen).collect();
        assert!(unseen.is_empty(), "{unseen:?}");
    });
}

struct Seen {
    place: usize,
    exact: (Vec<Piece>, WalkEnd),
    unwinder: Vec<usize>,
    traceback: Traceback,
    std_backtrace: String,
}

thread_local!(static SEEN: RefCell<Vec<Seen>> = const { RefCell::new(Vec::new()) });

/// All ways to inspect the stack, at one call site.
fn inspect(place: usize) {
    let mut frames = Vec::new();
    let end = jit_frames(|frame| {
        frames.push((frame.stub.kind(), frame.stub.name()));
        ControlFlow::Continue(())
    });
    let seen = Seen {
        place,
        exact: (frames, end),
        unwinder: native_unwind::return_addresses(),
        traceback: runtime::traceback(),
        std_backtrace: std::backtrace::Backtrace::force_capture().to_string(),
    };
    SEEN.with_borrow_mut(|all| all.push(seen));
}

/// Whether the text contains these words in this order.
fn in_order(text: &str, words: &[&str]) -> bool {
    let mut rest = text;
    words.iter().all(|word| {
        let at = rest.find(word);
        at.inspect(|at| rest = &rest[at + word.len()..]).is_some()
    })
}

#[test]
fn every_unwinder_passes_all_stubs_at_call_sites() {
    let seen = run(|| {
        let scene = Scene::new();
        HOOK.set(inspect);
        scene.play();
        SEEN.take()
    });
    let places: Vec<_> = seen.iter().map(|s| s.place).collect();
    assert_eq!(places, [INNERMOST, ON_SYSTEM_STACK, BOTTOM]);
    for Seen { place, exact, unwinder, traceback, std_backtrace } in seen {
        let last = if place == BOTTOM { "bottom" } else { "innermost" };
        let mut all = frames_from((GoroutineFn, last));
        assert_eq!(exact, (all.clone(), WalkEnd::Complete));
        // The native unwinders also find the stub that changes to the system stack, and the root.
        if place != INNERMOST {
            let innermost = all.iter().position(|&p| p == (GoroutineFn, "innermost"));
            all.insert(innermost.expect("it is on the path"), (Systemstack, "systemstack"));
        }
        all.push((GoroutineEntry, "goroutine entry"));
        assert_eq!(pieces(&unwinder), all, "libgcc, place {place}");
        let root = unwinder.last().copied().and_then(piece_at);
        assert_eq!(root, Some((GoroutineEntry, "goroutine entry")), "libgcc ends at the root");

        let jit = traceback.frames.iter().filter_map(|frame| match frame {
            TraceFrame::Jit { name, kind, .. } => Some((*kind, name.as_str())),
            _ => None,
        });
        let all_named: Vec<_> = all.iter().map(|(kind, name)| (kind.name(), *name)).collect();
        assert_eq!(jit.collect::<Vec<_>>(), all_named, "place {place}:\n{traceback}");
        let root = traceback.frames.last();
        assert!(
            matches!(root, Some(TraceFrame::Jit { kind: "goroutine entry", .. })),
            "{traceback}"
        );
        let rust = ["innermost_rust", "middle_rust", "enter_outer", "goroutine_main"];
        assert!(in_order(&traceback.to_string(), &rust), "{traceback}");
        assert!(in_order(&std_backtrace, &rust), "{std_backtrace}");
    }
}
