//! What a switch of stacks must keep, and that a parked goroutine can be walked, without JIT code:
//! these tests are the same on all architectures that run goroutines.

#![allow(unsafe_code, reason = "fills registers and loads control registers")]

use std::arch::asm;
use std::hint::black_box;
use std::panic::catch_unwind;
use std::time::Duration;

use footbridge::runtime::{
    Builder, Chan, go, gosched, keep_fp_control, scope, sleep, systemstack, this_goroutine,
    traceback, traceback_all,
};
use support::runs::on;

/// Puts numbers that follow from `seed` into every register that a call preserves, calls `f`, and
/// returns what is in these registers then. The frame pointer is not among them.
#[cfg(target_arch = "aarch64")]
fn preserved_over(f: extern "C" fn(), seed: u64) -> Vec<u64> {
    let mut found = [0u64; 18];
    // SAFETY: x19, which the compiler keeps for itself, is put back; the stack is as it was. The
    // other registers are declared.
    unsafe {
        asm!(
            "stp x19, {found}, [sp, #-16]!",
            "mov x19, {seed}",
            "add x20, x19, #1", "add x21, x19, #2", "add x22, x19, #3", "add x23, x19, #4",
            "add x24, x19, #5", "add x25, x19, #6", "add x26, x19, #7", "add x27, x19, #8",
            "add x28, x19, #9",
            "fmov d8, x19", "fmov d9, x20", "fmov d10, x21", "fmov d11, x22",
            "fmov d12, x23", "fmov d13, x24", "fmov d14, x25", "fmov d15, x26",
            "blr {f}",
            "ldr x9, [sp, #8]",
            "stp x19, x20, [x9]", "stp x21, x22, [x9, #16]", "stp x23, x24, [x9, #32]",
            "stp x25, x26, [x9, #48]", "stp x27, x28, [x9, #64]",
            "stp d8, d9, [x9, #80]", "stp d10, d11, [x9, #96]", "stp d12, d13, [x9, #112]",
            "stp d14, d15, [x9, #128]",
            "ldr x19, [sp], #16",
            f = in(reg) f,
            found = in(reg) found.as_mut_ptr(),
            seed = in(reg) seed,
            out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _,
            out("x25") _, out("x26") _, out("x27") _, out("x28") _,
            clobber_abi("C"),
        );
    }
    found.to_vec()
}

/// The same on the other architecture.
#[cfg(target_arch = "x86_64")]
fn preserved_over(f: extern "C" fn(), seed: u64) -> Vec<u64> {
    let mut found = [0u64; 5];
    // SAFETY: rbx, which the compiler keeps for itself, is put back; the stack is as it was, and
    // 16-aligned at the call. The other registers are declared.
    unsafe {
        asm!(
            "push rbx",
            "push {found}",
            "mov rbx, {seed}",
            "lea r12, [rbx + 1]", "lea r13, [rbx + 2]", "lea r14, [rbx + 3]", "lea r15, [rbx + 4]",
            "call {f}",
            "pop rax",
            "mov [rax], rbx", "mov [rax + 8], r12", "mov [rax + 16], r13", "mov [rax + 24], r14",
            "mov [rax + 32], r15",
            "pop rbx",
            f = in(reg) f,
            found = in(reg) found.as_mut_ptr(),
            seed = in(reg) seed,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
    found.to_vec()
}

#[test]
fn a_function_that_suspends_preserves_what_a_call_preserves() {
    extern "C" fn suspends() {
        gosched();
    }
    extern "C" fn sleeps() {
        sleep(Duration::from_micros(10));
    }
    on(2, || {
        scope(|s| {
            for goroutine in 1..=4u64 {
                s.go(move || {
                    for round in 0..300 {
                        let seed = goroutine << 32 | round << 8;
                        let f = if round % 50 == 0 { sleeps } else { suspends };
                        let found = preserved_over(f, seed);
                        // The second half holds the first numbers once more.
                        let general = found.len().min(10) as u64;
                        let expected = (0..found.len() as u64).map(|i| seed + i % general);
                        assert_eq!(found, expected.collect::<Vec<_>>(), "round {round}");
                    }
                });
            }
        });
    });
}

/// Numbers of the three kinds that registers hold, and what a round makes of them.
fn round((n, d, s): (u64, f64, f32)) -> (u64, f64, f32) {
    (n.wrapping_mul(6364136223846793005).wrapping_add(1), d * 1.5 % 7.0, s * 0.5 + 1.0)
}

#[test]
fn values_of_all_register_classes_live_over_suspensions() {
    on(2, || {
        scope(|s| {
            for seed in 1..=8u32 {
                s.go(move || {
                    let mut at = (u64::from(seed), f64::from(seed), seed as f32);
                    // Enough live values that callee-saved registers of both files are in use.
                    let kept: [f64; 12] =
                        std::array::from_fn(|i| black_box(f64::from(seed) + i as f64));
                    for _ in 0..2000 {
                        at = round(at);
                        gosched();
                    }
                    let alone = (0..2000)
                        .fold((u64::from(seed), f64::from(seed), seed as f32), |at, _| round(at));
                    assert_eq!(at, alone);
                    assert!((0..12).all(|i| kept[i] == f64::from(seed) + i as f64));
                });
            }
        });
    });
}

/// A frame whose alignment is larger than the stack's has a base pointer of its own, which no asm
/// block can declare as lost.
#[test]
fn frames_with_dynamic_alignment_find_their_locals_again() {
    #[repr(align(512))]
    struct Aligned([u8; 512]);
    #[inline(never)]
    fn work(seed: u8) -> u32 {
        let mut local = Aligned([seed; 512]);
        let mut sum = 0;
        for i in 0..200 {
            gosched();
            let address = std::ptr::from_ref(black_box(&local)) as usize;
            assert!(address.is_multiple_of(512));
            local.0[i] = local.0[i].wrapping_add(1);
            sum += local.0.iter().map(|&b| u32::from(b)).sum::<u32>();
        }
        sum
    }
    on(1, || {
        let handles: Vec<_> = (1..=4u8).map(|seed| (seed, go(move || work(seed)))).collect();
        for (seed, handle) in handles {
            let expected: u32 = (1..=200).map(|i| 512 * u32::from(seed) + i).sum();
            assert_eq!(handle.join().expect("no panic"), expected);
        }
    });
}

/// The control register with rounding towards plus infinity.
fn round_up() {
    #[cfg(target_arch = "x86_64")]
    {
        let mut mxcsr = 0u32;
        // SAFETY: the goroutine declares that it keeps control state of its own, and computes
        // through `third` only.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack));
            mxcsr = mxcsr & !0x6000 | 0x4000;
            asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack));
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as on the other architecture.
    unsafe {
        asm!(
            "mrs {0}, fpcr", "and {0}, {0}, #~0xc00000", "orr {0}, {0}, #0x400000", "msr fpcr, {0}",
            out(reg) _, options(nostack)
        );
    }
}

/// 1/3 in the control state of the thread, as bits; computed by an instruction that the compiler
/// does not see.
fn third() -> u64 {
    let (mut one, three) = (1.0f64, 3.0f64);
    // SAFETY: divides.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("divsd {}, {}", inout(xmm_reg) one, in(xmm_reg) three, options(nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("fdiv {0:d}, {0:d}, {1:d}", inout(vreg) one, in(vreg) three, options(nostack));
    }
    one.to_bits()
}

const THIRD: u64 = 0x3fd5_5555_5555_5555;

#[test]
fn a_goroutine_that_asks_for_it_keeps_its_rounding_and_others_theirs() {
    on(1, || {
        assert_eq!(third(), THIRD);
        let rounds_up = go(|| {
            keep_fp_control(true);
            round_up();
            for _ in 0..100 {
                assert_eq!(third(), THIRD + 1);
                gosched();
            }
            sleep(Duration::from_millis(1));
            assert_eq!(third(), THIRD + 1);
            keep_fp_control(false);
            assert_eq!(third(), THIRD);
        });
        let others: Vec<_> = (0..3)
            .map(|_| {
                go(|| {
                    for _ in 0..100 {
                        assert_eq!(third(), THIRD);
                        gosched();
                    }
                })
            })
            .collect();
        for handle in others.into_iter().chain([rounds_up]) {
            handle.join().expect("no panic");
        }
        assert_eq!(third(), THIRD);
    });
}

#[test]
fn a_panic_passes_the_system_stack_and_runs_destructors_on_both() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    struct Dropped;
    impl Drop for Dropped {
        fn drop(&mut self) {
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    on(1, || {
        for n in 0..50u32 {
            let caught = catch_unwind(|| {
                let _on_goroutine = Dropped;
                systemstack(|| {
                    let _on_system_stack = Dropped;
                    std::panic::panic_any(n);
                })
            });
            let payload = caught.expect_err("it panics");
            assert_eq!(payload.downcast_ref(), Some(&n));
        }
        assert_eq!(DROPS.load(Ordering::Relaxed), 100);
        let joined = go(|| systemstack(|| std::panic::panic_any("out of both"))).join();
        assert_eq!(joined.expect_err("it panics").downcast_ref(), Some(&"out of both"));
    });
}

#[inline(never)]
fn parks_below(depth: u32, channel: &Chan<u32>) -> u32 {
    // Not a tail call.
    black_box(match depth {
        0 => channel.recv().expect("open"),
        _ => parks_below(depth - 1, channel) + 1,
    })
}

/// From the pc, sp and frame pointer that a switch has saved, through every native frame, to the
/// stub that each goroutine starts in.
#[test]
fn a_parked_goroutine_is_walked_from_its_switch_to_its_entry() {
    on(1, || {
        let channel = Chan::new(0);
        let receiver = channel.clone();
        let parked = go(move || parks_below(9, &receiver));
        gosched();
        let all = traceback_all();
        let text: Vec<String> = all.iter().map(ToString::to_string).collect();
        let text = text.iter().find(|text| text.contains("chan receive")).expect("it is parked");
        assert_eq!(text.matches("parks_below").count(), 10, "{text}");
        let last = text.lines().last().expect("frames");
        assert!(last.contains("jit goroutine entry"), "{text}");
        channel.send(1).expect("open");
        assert_eq!(parked.join().expect("no panic"), 10);
    });
}

#[inline(never)]
fn traced_on_the_system_stack() -> String {
    black_box(systemstack(|| traceback().to_string()))
}

#[test]
fn a_walk_from_the_system_stack_crosses_to_the_goroutine() {
    let text = on(1, || go(traced_on_the_system_stack).join().expect("no panic"));
    let frames: Vec<_> = text.lines().collect();
    let at = |name: &str| frames.iter().position(|frame| frame.contains(name));
    let (stub, caller) = (at("jit systemstack"), at("traced_on_the_system_stack"));
    let (stub, caller) = (stub.expect("the stub"), caller.expect("its caller"));
    assert!(stub < frames.len() - 1 && caller != stub, "{text}");
    assert!(frames.last().is_some_and(|last| last.contains("jit goroutine entry")), "{text}");
}

#[test]
fn migratable_goroutines_read_the_words_of_the_thread_they_are_on() {
    on(3, || {
        let handles: Vec<_> = (0..12)
            .map(|_| {
                let body = || {
                    for _ in 0..300 {
                        let own = this_goroutine().expect("on a goroutine").id();
                        gosched();
                        let after = this_goroutine().expect("on a goroutine").id();
                        assert_eq!(own, after);
                    }
                };
                // SAFETY: nothing of a thread is held over a suspension.
                unsafe { Builder::new().go_migratable(body) }.expect("memory")
            })
            .collect();
        for handle in handles {
            handle.join().expect("no panic");
        }
    });
}

/// As many as fit where each guard is two mappings (`vm.max_map_count`).
#[test]
fn ten_thousand_parked_goroutines_are_woken() {
    on(1, || {
        let channel = Chan::new(0);
        let handles: Vec<_> = (0..10_000u64)
            .map(|_| {
                let channel = channel.clone();
                go(move || channel.recv().expect("open"))
            })
            .collect();
        for n in 0..10_000 {
            channel.send(n).expect("open");
        }
        let sum: u64 = handles.into_iter().map(|handle| handle.join().expect("no panic")).sum();
        assert_eq!(sum, 9_999 * 10_000 / 2);
    });
}
