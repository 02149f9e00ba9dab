//! The classes of stacks: sizes, the class of a goroutine, and the counts of `stack_usage`.

use std::sync::atomic::{AtomicU64, Ordering};

use dynasmrt::{DynasmLabelApi, dynasm};
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{
    self, Builder, Chan, RecvError, SpawnFnError, StackError, go, gosched, scope, stack_usage,
};
use support::child;
use support::runs::{alone, config, wait_for};

use super::{CLASSES, DESCEND_FACTOR, GO, KIB, MIB, descend, in_use};

#[test]
fn a_goroutine_has_a_stack_of_the_requested_class() {
    child::run("a_goroutine_has_a_stack_of_the_requested_class", || {
        alone(|| {
            let classes: Vec<_> = stack_usage().iter().map(|usage| usage.stack_bytes).collect();
            assert_eq!(classes, CLASSES);
            assert_eq!(in_use(64 * KIB), 1, "the main goroutine");
            for (requested, class) in [
                (0, 16 * KIB),
                (16 * KIB, 16 * KIB),
                (16 * KIB + 1, 64 * KIB),
                (64 * KIB, 64 * KIB),
                (100 * KIB, 256 * KIB),
                (256 * KIB + 1, MIB),
                (MIB, MIB),
                (2 * MIB, 8 * MIB),
                (8 * MIB, 8 * MIB),
            ] {
                let main = usize::from(class == 64 * KIB);
                assert_eq!(in_use(class), main, "before {requested}");
                let depth = class / (2 * DESCEND_FACTOR);
                let body = move || {
                    assert_eq!(in_use(class), main + 1, "{requested}");
                    descend(depth, &mut |_| 7)
                };
                let handle = Builder::new().stack_bytes(requested).go(body).expect("memory");
                assert_eq!(handle.join().expect("it does not overflow"), 7);
                // SAFETY: the goroutine uses nothing that belongs to its thread.
                let handle = unsafe { Builder::new().stack_bytes(requested).go_migratable(body) };
                assert_eq!(handle.expect("memory").join().expect("no panic"), 7);
                let mut borrowed = 0;
                scope(|s| {
                    let body = || borrowed = body();
                    Builder::new().stack_bytes(requested).go_scoped(s, body).expect("memory");
                });
                assert_eq!(borrowed, 7);
                assert_eq!(in_use(class), main, "after {requested}");
            }
        });
        // Without a request it has the class of the run.
        config(1)
            .stack_bytes(100 * KIB)
            .run(|| {
                let handle = Builder::new().go(|| in_use(256 * KIB)).expect("memory");
                assert_eq!(handle.join().expect("no panic"), 2);
                assert_eq!(go(|| in_use(256 * KIB)).join().expect("no panic"), 2);
                assert_eq!(in_use(64 * KIB), 0);
            })
            .expect("the run starts");
    })
    .assert_success();
}

#[test]
fn a_stack_above_the_largest_class_is_refused() {
    let text = |requested: usize| {
        format!(
            "a stack of {requested} bytes was asked for, and the largest has 8 MiB; \
             runtime::systemstack runs a function on the stack of a thread"
        )
    };
    runtime::run(|| {
        for requested in [8 * MIB + 1, usize::MAX] {
            let builder = Builder::new().stack_bytes(requested);
            let keep = [1, 2, 3];
            let refused = builder.clone().go(move || keep.len()).expect_err("too large");
            assert_eq!(refused.error, StackError::TooLarge { requested });
            let whole = format!("a goroutine could not be started: {}", text(requested));
            assert_eq!(refused.to_string(), whole);
            assert_eq!((refused.f)(), 3, "the closure is returned");
            // SAFETY: the goroutine uses nothing that belongs to its thread.
            let refused = unsafe { builder.clone().go_migratable(|| 5) }.expect_err("too large");
            assert_eq!((refused.f)(), 5);
            let keep = String::from("kept");
            let refused = scope(|s| {
                let refused = builder.clone().go_scoped(s, || keep).map(drop);
                let refused = refused.expect_err("too large");
                assert_eq!(refused.to_string(), whole);
                (refused.f)()
            });
            assert_eq!(refused, "kept", "the closure is returned");
            let jit = Jit::new().expect("code memory");
            let code = returns(&jit);
            let signature = "fn()".parse().expect("a signature");
            // SAFETY: code of this type.
            let refused = unsafe { builder.spawn_fn(&jit, GO, &signature, &code) }.map(drop);
            let error = refused.expect_err("too large");
            assert_eq!(error, SpawnFnError::Stack(StackError::TooLarge { requested }));
            let whole = format!("no stub that starts goroutines: {}", text(requested));
            assert_eq!(error.to_string(), whole);
        }
    });
}

/// JIT code that does nothing.
fn returns(jit: &Jit) -> Code {
    // SAFETY: a leaf.
    unsafe { jit.install("returns", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret)) }
        .expect("installs")
}

#[test]
fn jit_code_starts_goroutines_with_small_stacks() {
    const COUNT: usize = 50;
    child::run("jit_code_starts_goroutines_with_small_stacks", || {
        let jit = Jit::new().expect("code memory");
        let channel = Chan::<u64>::new(0);
        let receiver = channel.clone();
        let receive = move || receiver.recv().expect("one for each");
        let receive = jit.named_goroutine_fn("receive", GO, receive).expect("stub");
        static SUM: AtomicU64 = AtomicU64::new(0);
        let add = |n: u64| {
            SUM.fetch_add(n, Ordering::Relaxed);
        };
        let add = jit.named_goroutine_fn("add", GO, add).expect("stub");
        let (receive_at, add_at) = (receive.address(), add.address());
        // SAFETY: a standard frame around calls of ABIInternal functions.
        let body = unsafe {
            jit.install("body", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; call extern receive_at
                    ; call extern add_at
                    ; pop rbp
                    ; ret
                );
            })
        }
        .expect("installs");
        let signature = "fn()".parse().expect("a signature");
        let builder = Builder::new().stack_bytes(16 * KIB);
        // SAFETY: ABIInternal code of this type; nothing is passed.
        let start = unsafe { builder.spawn_fn(&jit, GO, &signature, &body) }.expect("stub");
        let target = start.address();
        // SAFETY: a standard frame around calls.
        let starter = unsafe {
            jit.install("starter", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                for _ in 0..COUNT {
                    dynasm!(ops; .arch x64; call extern target);
                }
                dynasm!(ops; .arch x64; pop rbp; ret);
            })
        }
        .expect("installs");
        // SAFETY: ABIInternal code of this type.
        let starter = unsafe { starter.enter::<fn()>(GO) }.expect("entry");
        alone(|| {
            // SAFETY: on a goroutine.
            unsafe { starter.call() };
            for _ in 0..3 {
                gosched();
            }
            assert_eq!((in_use(16 * KIB), in_use(64 * KIB)), (COUNT, 1));
            (1..=COUNT as u64).for_each(|n| channel.send(n).expect("open"));
            wait_for("all end", || in_use(16 * KIB) == 0);
        });
        assert_eq!(SUM.load(Ordering::Relaxed), (1..=COUNT as u64).sum());
    })
    .assert_success();
}

#[test]
fn stack_usage_includes_other_runs() {
    const COUNT: usize = 40;
    child::run("stack_usage_includes_other_runs", || {
        let class = MIB;
        let barrier = std::sync::Barrier::new(3);
        let usage = || {
            let all = stack_usage();
            all.into_iter().find(|usage| usage.stack_bytes == class).expect("a class")
        };
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    config(1)
                        .stack_bytes(class)
                        .run(|| {
                            let gate = Chan::<()>::new(0);
                            let waiting: Vec<_> = (0..COUNT)
                                .map(|_| {
                                    let gate = gate.clone();
                                    go(move || gate.recv())
                                })
                                .collect();
                            gosched();
                            barrier.wait();
                            // All are in use.
                            assert_eq!(in_use(class), 2 * (COUNT + 1));
                            barrier.wait();
                            gate.close();
                            for one in waiting {
                                assert_eq!(one.join().expect("no panic"), Err(RecvError));
                            }
                            barrier.wait();
                            // Each P caches its own, and the count of each run includes the
                            // other's.
                            assert_eq!((in_use(class), usage().pooled), (2, 2 * COUNT));
                            barrier.wait();
                        })
                        .expect("the run starts");
                });
            }
            // The count of a foreign thread includes both runs, too.
            barrier.wait();
            assert_eq!(in_use(class), 2 * (COUNT + 1));
            barrier.wait();
            barrier.wait();
            assert_eq!((in_use(class), usage().pooled), (2, 2 * COUNT));
            barrier.wait();
        });
        // The stacks that the runs cached still exist, each counted once.
        assert_eq!((in_use(class), usage().pooled + usage().decommitted), (0, 2 * (COUNT + 1)));
    })
    .assert_success();
}
