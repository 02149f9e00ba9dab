//! The annotations of code: preemptible, unsafe points; and polls.

use std::sync::atomic::{AtomicU32, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, JitError, Ops, WhenUnsafe, lookup};
use footbridge::runtime::{self, Stats, go, scope, stats};

use support::code::map_code;
use support::patience::Patience;
use support::runs::AtEnd;

use super::{GO, Loop, SYSTEM_V, Waiter, config, loop_until, run, wait_for_preemption};

/// Code is not preemptible without the annotation.
#[test]
fn code_that_is_not_registered_as_preemptible_is_not_interrupted() {
    // Without any preemptible code no signal would be sent.
    let other = Waiter::new(Loop::Preemptible);
    assert!(lookup(other.code.address()).expect("installed").is_preemptible());
    let waiter = Waiter::new(Loop::Plain);
    assert!(!lookup(waiter.code.address()).expect("installed").is_preemptible());
    run(2, || {
        let flag = AtomicU32::new(0);
        let looping = || {
            waiter.wait(&flag);
        };
        // Another goroutine waits for this thread's processor, too, and this one is in Rust code.
        go(|| ());
        loop_until(looping, &flag, "both are refused", || {
            let refused = stats().refused;
            refused.not_preemptible > 2 && refused.native_code > 2
        });
        let stats = stats();
        assert_eq!((stats.asynchronous, stats.cooperative), (0, 0), "{stats:?}");
    });
}

/// Goroutines on one thread increment a number, each many times, by a load and a store. Returns the
/// number of lost increments, which is 0 if no preemption comes between load and store.
fn increments(annotations: impl Fn(std::ops::Range<usize>) -> Annotations) -> (u64, Stats) {
    const INCREMENTS: u64 = 2_000_000;
    const ADDERS: u64 = 4;
    let jit = Jit::new().expect("code memory");
    // SAFETY: a leaf. The test measures the effect of preemptions.
    let code = unsafe {
        jit.install("adds", FrameClass::Leaf, |ops| {
            // Each part depends on the result of the one before it, so that signals arrive in both.
            dynasm!(ops; .arch x64; again: ; mov rdx, rsi);
            for _ in 0..6 {
                dynasm!(ops; .arch x64; imul rdx, rdx, 3);
            }
            dynasm!(ops; .arch x64; and rdx, 0; add rdx, rdi);
            let start = ops.offset().0;
            dynasm!(ops; .arch x64; mov rax, [rdx]);
            for _ in 0..6 {
                dynasm!(ops; .arch x64; imul rax, rax, 1);
            }
            dynasm!(ops; .arch x64; inc rax; mov [rdx], rax);
            // The end of the store.
            let end = ops.offset().0;
            dynasm!(ops; .arch x64; and rax, 0; sub rsi, rax; dec rsi; jnz <again; ret);
            annotations(start..end)
        })
    };
    let code = code.expect("it installs");
    // SAFETY: System V, of this type.
    let entry = unsafe { code.enter::<fn(*mut u64, u64)>(SYSTEM_V) }.expect("an entry");
    let mut sum = 0u64;
    let address = &raw mut sum as usize;
    let stats = config(1)
        .run(|| {
            scope(|s| {
                for _ in 0..ADDERS {
                    // SAFETY: all on one thread, and the number outlives the scope.
                    s.go(|| unsafe { entry.call(address as *mut u64, INCREMENTS) });
                }
            });
            stats()
        })
        .expect("the run starts");
    // SAFETY: the goroutines have ended. Volatile, since the compiler does not see their writes.
    let sum = unsafe { (&raw const sum).read_volatile() };
    (ADDERS * INCREMENTS - sum, stats)
}

#[test]
fn unsafe_points_keep_pairs_of_instructions_together() {
    let patience = Patience::new();
    loop {
        let (lost, stats) = increments(|_| Annotations::preemptible());
        if lost > 0 {
            break;
        }
        patience.check("increments are lost without unsafe points", || stats);
    }
    for when in [WhenUnsafe::Skip, WhenUnsafe::Restart] {
        loop {
            let (lost, stats) =
                increments(|bytes| Annotations::preemptible().unsafe_points(bytes, when));
            assert_eq!(lost, 0, "{when:?}: {stats:?}");
            let skipped = stats.refused.unsafe_point;
            assert!(skipped == 0 || when == WhenUnsafe::Skip, "{stats:?}");
            if stats.asynchronous > 0 && (skipped > 0 || when == WhenUnsafe::Restart) {
                break;
            }
            patience.check("signals arrive in both parts", || stats);
        }
    }
}

#[test]
fn invalid_unsafe_points_are_refused_at_installation() {
    let jit = Jit::new().expect("code memory");
    let install = |class: FrameClass, bytes: std::ops::Range<usize>, when| {
        // SAFETY: the code is never called.
        let code = unsafe {
            jit.install("ranged", class, |ops| {
                if class == FrameClass::Standard {
                    dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; pop rbp);
                }
                dynasm!(ops; .arch x64; ret);
                Annotations::preemptible().unsafe_points(bytes, when)
            })
        };
        code.err().map(|error| error.to_string())
    };
    let (leaf, standard) = (FrameClass::Leaf, FrameClass::Standard);
    let (skip, restart) = (WhenUnsafe::Skip, WhenUnsafe::Restart);
    let text = |bytes: &str, rule: &str| {
        Some(format!(
            "bytes {bytes} of preemptible code \"ranged\" cannot be unsafe points: {rule}"
        ))
    };
    assert_eq!(install(leaf, 0..1, restart), None);
    assert_eq!(install(standard, 0..6, skip), None);
    assert_eq!(install(standard, 4..6, restart), None);
    let beyond = "it ends after the code; ranges count bytes from its start";
    assert_eq!(install(leaf, 0..2, skip), text("0..2", beyond));
    let empty = "it is empty: it ends where it starts, or before";
    assert_eq!(install(leaf, 1..1, skip), text("1..1", empty));
    let twice = "it restarts at or before `mov rbp, rsp`, which would make the frame twice";
    assert_eq!(install(standard, 1..6, restart), text("1..6", twice));
    // A frame class that is not for users, and one whose contract the code violates.
    // SAFETY: nothing is installed.
    let refused = unsafe {
        [FrameClass::Root, FrameClass::Standard].map(|class| {
            let body = |ops: &mut Ops| {
                dynasm!(ops; .arch x64; ret);
                Annotations::preemptible()
            };
            jit.install("no frame", class, body).err()
        })
    };
    for error in refused {
        assert!(matches!(error, Some(JitError::FrameContract { .. })), "{error:?}");
    }
    // The slow path of the poll is missing.
    let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
    // SAFETY: the code is never called.
    let unfinished = unsafe {
        jit.install("unfinished", FrameClass::Leaf, |ops| {
            polls.poll(ops);
            dynasm!(ops; .arch x64; ret);
        })
    };
    assert!(matches!(unfinished, Err(JitError::Assemble { .. })), "{unfinished:?}");
    let arm = jit.polls(Convention::Aapcs64).err().map(|error| error.to_string());
    let rule = "poll stub: polls are emitted into code of x86-64 conventions";
    assert_eq!(arm.as_deref(), Some(rule));
}

/// `poll_layout` has all that an emitter of its own needs for a poll.
#[test]
fn poll_layout_describes_the_emitted_polls() {
    let layout = runtime::poll_layout().expect("code polls here");
    for (convention, displacement) in
        [(SYSTEM_V, layout.stack_limit_from_fs), (GO, layout.stack_limit_in_goroutine)]
    {
        let jit = Jit::new().expect("code memory");
        let mut polls = jit.polls(convention).expect("of this machine");
        // SAFETY: the code is never called.
        let code = unsafe {
            jit.install("one poll", FrameClass::Leaf, |ops| {
                polls.poll(ops);
                dynasm!(ops; .arch x64; ret);
                polls.finish(ops);
            })
        };
        let code = code.expect("it installs");
        // SAFETY: published code is readable.
        let bytes = unsafe { std::slice::from_raw_parts(code.address() as *const u8, code.len()) };
        let decoder = iced_x86::Decoder::with_ip(64, bytes, 0, iced_x86::DecoderOptions::NONE);
        let listing: Vec<_> = decoder.into_iter().collect();
        use iced_x86::{Mnemonic, Register};
        let mnemonics: Vec<_> = listing.iter().map(|i| i.mnemonic()).collect();
        let expected = [Mnemonic::Cmp, Mnemonic::Jbe, Mnemonic::Ret, Mnemonic::Lea, Mnemonic::Call];
        assert_eq!(mnemonics[..5], expected);
        assert_eq!(
            (listing[0].memory_displacement64() as i32, listing[0].memory_base()),
            (displacement, if convention == GO { Register::R14 } else { Register::None },)
        );
        assert_eq!(listing[4].memory_displacement64() as i32, layout.stub_from_fs);
        assert_eq!(listing[4].segment_prefix(), Register::FS);
    }
}

/// Code in foreign memory is preempted if it is published as preemptible.
#[test]
fn foreign_code_can_be_preemptible() {
    // again: cmp dword [rdi], 0; je again; ret
    const CODE: [u8; 6] = [0x83, 0x3f, 0x00, 0x74, 0xfb, 0xc3];
    let at = map_code(&CODE);
    // SAFETY: the mapping is never unmapped, and holds leaf code.
    let region = unsafe { footbridge::jit::ForeignRegion::new(at..at + 4096, FrameClass::Leaf) };
    let region = region.expect("it is registered");
    let too_long = Annotations::preemptible().unsafe_points(0..7, WhenUnsafe::Skip);
    // SAFETY: the bytes are in place, and may be preempted anywhere.
    let _code = unsafe {
        let refused = region.publish("foreign", at..at + 6, too_long).err();
        assert!(matches!(refused, Some(JitError::UnsafePointRange { .. })), "{refused:?}");
        let anywhere = Annotations::preemptible();
        region.publish("foreign", at..at + 6, anywhere).expect("it is published")
    };
    assert!(lookup(at).expect("published").is_preemptible());
    run(1, || {
        let flag = AtomicU32::new(0);
        scope(|s| {
            let _end = AtEnd(|| flag.store(1, Ordering::Relaxed));
            s.go(|| {
                // SAFETY: System V code of this type, which needs no entry, since it calls nothing.
                let code =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(*const AtomicU32)>(at) };
                code(&flag);
            });
            wait_for_preemption();
        });
        assert!(stats().asynchronous > 0, "{:?}", stats());
    });
}
