//! Walks the stack at every instruction of a stack check that does not pass at once, and of the
//! stub that it calls.
//!
//! The code runs one instruction at a time (`support::step`). A preemption of the goroutine was
//! requested, so that the check takes its slow path and polls.

#![allow(unsafe_code, reason = "calls emitted code and reads its bytes")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::child::Child;
use support::code::{pop_saved, push_saved};

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
use footbridge::runtime::{self, Config, WalkEnd, stats};
use support::step::stepped_with;

use crate::decode::instruction_offsets;
use crate::unwound::{self, Piece};

const CHECK: Piece = (StubKind::StackCheck, "stack check");
const POLL: Piece = (StubKind::Preempt, "poll");

#[test]
fn walks_are_right_at_every_instruction_of_a_check() {
    // In a process of its own, where nothing else is stepped and unwound.
    Child::of("walks_are_right_at_every_instruction_of_a_check")
        .limit_seconds(120)
        .run(step_through_checks)
        .assert_success();
}

fn step_through_checks() {
    // Sysmon runs, so that goroutines can be preempted. The long time slice prevents requests of
    // its own.
    let config = Config::new().processors(1).time_slice(Duration::from_secs(3600));
    let mut seen: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (name, class, convention, frame_bytes) in [
        ("small c", FrameClass::Standard, Convention::SystemV, 16),
        ("small go", FrameClass::Standard, Convention::GoAbiInternal, 16),
        ("large c", FrameClass::Standard, Convention::SystemV, 5000),
        ("large go", FrameClass::Standard, Convention::GoAbiInternal, 5000),
        ("saved c", FrameClass::Saved, Convention::SystemV, 16),
    ] {
        let jit = Jit::new().expect("code memory");
        let mut polls = jit.polls(convention).expect("of this machine");
        // SAFETY: the frame contracts of the classes are kept.
        let code = unsafe {
            jit.install(name, class, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                if class == FrameClass::Saved {
                    push_saved(ops);
                }
                polls.check_stack(ops, frame_bytes);
                if class == FrameClass::Saved {
                    pop_saved(ops);
                } else {
                    dynasm!(ops; .arch x64; sub rsp, frame_bytes as i32; mov [rsp], rax);
                }
                dynasm!(ops; .arch x64; mov eax, 42; leave; ret);
                polls.finish(ops);
            })
        }
        .expect("installs");
        // SAFETY: code of this convention and type.
        let entry = unsafe { code.enter::<fn() -> u64>(convention) }.expect("an entry");
        let traps = config
            .run(|| {
                let before = stats();
                let result = Cell::new(0);
                // The signal of the request arrives in native code, so the request remains.
                assert!(runtime::request_preemption(0));
                unwound::start();
                // SAFETY: called on a goroutine.
                let traps = stepped_with(unwound::record, || result.set(unsafe { entry.call() }));
                assert_eq!(result.get(), 42);
                let now = stats();
                assert_eq!(now.cooperative - before.cooperative, 1, "{name}: it yielded");
                assert_eq!(now.asynchronous - before.asynchronous, 0, "{name}");
                traps
            })
            .expect("the run starts");
        let outer = [(StubKind::User, name), (StubKind::Enter, name)];
        let inside = [&[CHECK][..], &outer].concat();
        let polling = [&[POLL][..], &inside].concat();
        unwound::assert_right(&traps, &unwound::finish(), |piece| {
            let frames = match piece {
                (StubKind::Enter, _) => &outer[1..],
                (StubKind::User, _) => &outer[..],
                CHECK => &inside,
                // To libgcc these have no caller.
                _ => return vec![piece],
            };
            [frames, &[(StubKind::GoroutineEntry, "goroutine entry")]].concat()
        });
        for trap in &traps {
            let found: Vec<Piece> = trap
                .frames()
                .iter()
                .map(|&pc| lookup(pc).expect("the walk found it"))
                .map(|stub| (stub.kind(), stub.name()))
                .collect();
            if !trap.in_stub {
                assert_eq!(trap.end, WalkEnd::Complete, "at {:#x}: {found:?}", trap.pc);
                assert!(found.is_empty() || found == polling, "at {:#x}: {found:?}", trap.pc);
                continue;
            }
            let stub = lookup(trap.pc).expect("the trap found it");
            seen.entry(stub.start()).or_default().insert(stub.offset_bytes());
            let piece = (stub.kind(), stub.name());
            let (expected, end) = match piece {
                (StubKind::Switch, _) => (vec![piece], WalkEnd::Switching),
                (StubKind::GoroutineEntry, _) => (vec![piece], WalkEnd::Complete),
                (StubKind::Enter, _) => (outer[1..].to_vec(), WalkEnd::Complete),
                (StubKind::User, _) => (outer.to_vec(), WalkEnd::Complete),
                CHECK => (inside.clone(), WalkEnd::Complete),
                POLL => (polling.clone(), WalkEnd::Complete),
                other => panic!("unexpected code: {other:?}"),
            };
            assert_eq!((found, trap.end), (expected, end), "{stub:?}");
        }
        // The slow path was executed too.
        assert_eq!(seen[&code.address()], instruction_offsets(code.address()), "{name}");
    }
    // The instructions of the stub that were not executed are those that lead to the panic.
    let stub = seen.keys().copied().find(|&start| lookup(start).map(|s| s.kind()) == Some(CHECK.0));
    let stub = stub.expect("it was stepped through");
    let (all, stepped) = (instruction_offsets(stub), &seen[&stub]);
    let skipped: Vec<_> = all.difference(stepped).collect();
    let last = stepped.last().expect("some");
    assert!(skipped.iter().all(|at| *at > last), "{skipped:?}");
    assert!(stepped.len() > 15, "{stepped:?}");
}
