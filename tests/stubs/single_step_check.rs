//! Walks from every instruction of a check of the stack that is not passed at once, and of the stub
//! that it leads to.
//!
//! Code is run one instruction at a time (`machine/step.rs`). Somebody wants the goroutine to give
//! way, so that the check takes its slow path, and polls.

#![allow(unsafe_code, reason = "calls emitted code and reads its bytes")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::code::{pop_saved, push_saved};

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
use footbridge::runtime::{self, Config, WalkEnd, stats};
use iced_x86::{Decoder, DecoderOptions};
use support::step::stepped;

/// A piece of code on the stack.
type Piece = (StubKind, &'static str);

const CHECK: Piece = (StubKind::StackCheck, "stack check");
const POLL: Piece = (StubKind::Preempt, "poll");

/// Where the instructions of a stub start, as bytes from its start.
fn instructions(start: usize) -> BTreeSet<usize> {
    let len = lookup(start).expect("the start of a stub").len();
    // SAFETY: published code stays readable.
    let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
    let decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
    decoder.into_iter().map(|i| i.ip() as usize - start).collect()
}

#[test]
fn the_walk_is_right_at_every_instruction_of_a_check() {
    // Sysmon is there, so that there are means to preempt, and asks nobody.
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
        // SAFETY: the laws of the classes are kept.
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
                // The signal of the request comes in native code; the request stands.
                assert!(runtime::request_preemption(0));
                // SAFETY: on a goroutine.
                let traps = stepped(|| result.set(unsafe { entry.call() }));
                assert_eq!(result.get(), 42);
                let now = stats();
                assert_eq!(now.cooperative - before.cooperative, 1, "{name}: it gave way");
                assert_eq!(now.asynchronous - before.asynchronous, 0, "{name}");
                traps
            })
            .expect("the run starts");
        let outer = [(StubKind::User, name), (StubKind::Enter, name)];
        let inside = [&[CHECK][..], &outer].concat();
        let aside = [&[POLL][..], &inside].concat();
        for trap in &traps {
            let found: Vec<Piece> = trap
                .frames()
                .iter()
                .map(|&pc| lookup(pc).expect("the walk found it"))
                .map(|stub| (stub.kind(), stub.name()))
                .collect();
            if !trap.in_stub {
                assert_eq!(trap.end, WalkEnd::Complete, "at {:#x}: {found:?}", trap.pc);
                assert!(found.is_empty() || found == aside, "at {:#x}: {found:?}", trap.pc);
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
                POLL => (aside.clone(), WalkEnd::Complete),
                other => panic!("{other:?} has no business here"),
            };
            assert_eq!((found, trap.end), (expected, end), "{stub:?}");
        }
        // The slow path, too.
        assert_eq!(seen[&code.address()], instructions(code.address()), "{name}");
    }
    // Of the stub all but what leads to the panic.
    let stub = seen.keys().copied().find(|&start| lookup(start).map(|s| s.kind()) == Some(CHECK.0));
    let stub = stub.expect("it was stepped through");
    let (all, stepped) = (instructions(stub), &seen[&stub]);
    let skipped: Vec<_> = all.difference(stepped).collect();
    let last = stepped.last().expect("some");
    assert!(skipped.iter().all(|at| *at > last), "{skipped:?}");
    assert!(stepped.len() > 15, "{stepped:?}");
}
