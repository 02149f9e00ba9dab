//! The installation of stack maps: refusals, and maps of foreign code.

use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use dynasmrt::dynasm;
use footbridge::abi::Gpr;
use footbridge::jit::LiveSlot::{Frame, Register};
use footbridge::jit::{
    Annotations, ForeignRegion, FrameClass, Jit, JitError, LiveAt, LiveSlot, Ops, StubKind,
    WhenUnsafe, lookup,
};
use footbridge::runtime::{self, Config, WalkEnd};
use support::code::map_code;

use super::{Heap, LONG, OBJECT_WORDS, OBJECTS, RAX, RDI, wait_for_parked};

#[test]
fn invalid_stack_maps_are_refused_at_installation() {
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
    let map = map.expect("a valid map").expect("it is recorded");
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
    // Unsafe points are checked beside a valid stack map, too.
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
fn code_without_a_stack_map_differs_from_code_with_an_empty_one() {
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
    let found = codes.map(|code| {
        let stub = lookup(code.expect("it installs").address()).expect("published");
        (stub.is_preemptible(), stub.stack_map().map(|map| map.entries().len()))
    });
    assert_eq!(found, [(false, None), (true, None), (false, Some(0))]);
}

#[test]
fn foreign_code_can_have_a_stack_map() {
    // again: mov rax, [rdi + 8]; test rax, rax; jz again; ret
    const CODE: [u8; 10] = [0x48, 0x8b, 0x47, 0x08, 0x48, 0x85, 0xc0, 0x74, 0xf7, 0xc3];
    let at = map_code(&CODE);
    // SAFETY: the mapping is never unmapped, and holds leaf code.
    let region = unsafe { ForeignRegion::new(at..at + 4096, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    let publish = |name, bytes, slot| {
        let entry = LiveAt { bytes, slots: vec![slot] };
        let annotations = Annotations::preemptible().stack_map([entry]);
        // SAFETY: the bytes are in place, and may be preempted anywhere.
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
        // The last object points to none: the code loops until it does. It would find poison at a
        // stale address of the object.
        let (last, id) = (OBJECTS - 1, &AtomicU64::new(0));
        runtime::scope(|s| {
            let it = s.go(move || {
                id.store(runtime::this_goroutine().expect("on one").id(), Ordering::Relaxed);
                // SAFETY: System V code of this type, which needs no entry, since it calls nothing.
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

/// The registry stores the length of code in 32 bits.
#[test]
fn foreign_code_of_four_gigabytes_is_refused() {
    const LEN: usize = 1 << 32;
    // SAFETY: a new mapping that is never unmapped.
    let at = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(ptr::null_mut(), 2 * LEN, libc::PROT_NONE, flags, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    let at = (at as usize).next_multiple_of(4096);
    // SAFETY: the range is not used.
    let region = unsafe { ForeignRegion::new(at..at + LEN + 64, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    // SAFETY: the range is not used, and no byte of it is read without annotations.
    let refused = unsafe { region.publish("too long", at..at + LEN, ()) }.err();
    let Some(JitError::ForeignRange { rule, .. }) = refused else { panic!("{refused:?}") };
    assert!(rule.contains("4 GiB"), "{rule}");
}
