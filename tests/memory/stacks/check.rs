//! Stack checks in JIT code, which panic before the stack overflows.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{self, Builder, Chan, go, gosched, scope};
use support::child;
use support::code::{caller, load_saved, push_saved};
use support::runs::{alone, config};

use super::{CLASSES, GO, KIB, MIB, PAGE};

/// JIT code with endless recursion that checks its stack for a frame of `frame_bytes`.
fn endless_with_check(name: &str, convention: Convention, frame_bytes: usize) -> Code {
    let jit = Jit::new().expect("code memory");
    let mut polls = jit.polls(convention).expect("a convention of this machine");
    // SAFETY: a standard frame; the code calls only itself.
    let code = unsafe {
        jit.install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp);
            polls.check_stack(ops, frame_bytes);
            dynasm!(ops; .arch x64; sub rsp, frame_bytes as i32; call <again; leave; ret);
            polls.finish(ops);
        })
    };
    code.expect("installs")
}

fn text_of(payload: &(dyn std::any::Any + Send)) -> &str {
    payload.downcast_ref::<String>().map_or("no text", String::as_str)
}

/// Suppresses the messages of expected panics.
fn without_messages() {
    std::panic::set_hook(Box::new(|_| {}));
}

const SIZE_NAMES: [&str; 5] = ["16 KiB", "64 KiB", "256 KiB", "1 MiB", "8 MiB"];

#[test]
fn jit_code_that_checks_its_stack_panics_before_it_overflows() {
    child::run("jit_code_that_checks_its_stack_panics_before_it_overflows", || {
        without_messages();
        use runtime::VectorState::{Auto, Sse};
        for (convention, vector_state) in [(GO, Auto), (GO, Sse), (Convention::SystemV, Auto)] {
            let entries: Vec<_> = [0, 8, 256, 264, 4096, 6000]
                .into_iter()
                .map(|frame_bytes| {
                    let code = endless_with_check("deep", convention, frame_bytes);
                    // SAFETY: code of this convention and type.
                    unsafe { code.enter::<fn()>(convention) }.expect("entry")
                })
                .collect();
            let run = config(1).vector_state(vector_state).run(|| {
                for (class, size) in CLASSES.into_iter().zip(SIZE_NAMES) {
                    for entry in &entries {
                        for _ in 0..3 {
                            let end = scope(|s| {
                                let body = || {
                                    // SAFETY: on a goroutine.
                                    std::panic::catch_unwind(|| unsafe { entry.call() })
                                        .map_err(|payload| text_of(&*payload).to_string())
                                };
                                let builder = Builder::new().stack_bytes(class);
                                let handle = builder.go_scoped(s, body).expect("memory");
                                handle.join().expect("the panic is caught")
                            });
                            let text = end.expect_err("the recursion is endless");
                            let end = format!(" overflowed its {size} stack in JIT code deep");
                            let id = text.strip_prefix("goroutine ");
                            let id = id.and_then(|text| text.strip_suffix(&*end));
                            assert!(id.is_some_and(|n| n.parse::<u64>().is_ok()), "{text}");
                        }
                    }
                }
                // A panic that the goroutine does not catch is the result of the join.
                let code = endless_with_check("joined", convention, 0);
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn()>(convention) }.expect("entry");
                // SAFETY: on a goroutine.
                let handle = go(move || unsafe { entry.call() });
                let id = handle.id();
                let end = handle.join().expect_err("the recursion is endless");
                let text = format!("goroutine {id} overflowed its 64 KiB stack in JIT code joined");
                assert_eq!(text_of(&*end), text);
            });
            run.expect("the run starts");
        }
    })
    .assert_success();
}

#[test]
fn a_check_includes_the_size_of_the_frame() {
    child::run("a_check_includes_the_size_of_the_frame", || {
        without_messages();
        alone(|| {
            // A frame that does not fit may reach beyond the guard: the check must not touch it.
            for (frame_bytes, class, fits) in [
                (48 * KIB, 64 * KIB, true),
                (60 * KIB, 64 * KIB, false),
                (64 * KIB, 64 * KIB, false),
                (7 * MIB, 64 * KIB, false),
                (8 * MIB, 64 * KIB, false),
                (200 * KIB, 256 * KIB, true),
                (7 * MIB, 8 * MIB, true),
            ] {
                let jit = Jit::new().expect("code memory");
                let mut polls = jit.polls(GO).expect("a convention of this machine");
                // SAFETY: a standard frame; the write is inside of it.
                let code = unsafe {
                    jit.install("large", FrameClass::Standard, |ops| {
                        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                        polls.check_stack(ops, frame_bytes);
                        let frame = frame_bytes as i32;
                        dynasm!(ops
                            ; .arch x64
                            ; sub rsp, frame
                            ; mov [rsp], rax
                            ; leave
                            ; ret
                        );
                        polls.finish(ops);
                    })
                };
                let code = code.expect("installs");
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
                let builder = Builder::new().stack_bytes(class);
                // SAFETY: on a goroutine.
                let handle = builder.go(move || unsafe { entry.call() }).expect("memory");
                let end = handle.join();
                assert_eq!(end.is_ok(), fits, "{frame_bytes} bytes on {class}");
            }
            let mut polls = Jit::new().expect("code memory").polls(GO).expect("this machine");
            // SAFETY: never called, since nothing is installed.
            let too_large = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
                Jit::new().expect("code memory").install("none", FrameClass::Leaf, |ops| {
                    polls.check_stack(ops, 8 * MIB + 1);
                })
            }));
            let text = "a frame of 8388609 bytes fits in no stack: the largest has 8 MiB";
            assert_eq!(text_of(&*too_large.map(drop).expect_err("too large")), text);
        });
    })
    .assert_success();
}

#[test]
fn a_panic_of_a_check_runs_destructors_and_the_goroutine_continues() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    static MAX_ALIVE: AtomicUsize = AtomicUsize::new(0);
    struct Alive;
    impl Alive {
        fn new() -> Self {
            let alive = ALIVE.fetch_add(1, Ordering::Relaxed) + 1;
            MAX_ALIVE.fetch_max(alive, Ordering::Relaxed);
            Self
        }
    }
    impl Drop for Alive {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    child::run("a_panic_of_a_check_runs_destructors_and_the_goroutine_continues", || {
        without_messages();
        let jit = Jit::new().expect("code memory");
        // Rust code and JIT code call each other in endless recursion.
        static AGAIN: AtomicUsize = AtomicUsize::new(0);
        let rust = || {
            let _alive = Alive::new();
            let again = AGAIN.load(Ordering::Relaxed);
            // SAFETY: the entry below, on a goroutine.
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(again)() };
        };
        let rust = jit.named_goroutine_fn("rust", GO, rust).expect("stub");
        let target = rust.address();
        let mut polls = jit.polls(GO).expect("a convention of this machine");
        // SAFETY: a standard frame around a call.
        let code = unsafe {
            jit.install("jit", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                polls.check_stack(ops, 0);
                dynasm!(ops; .arch x64; call extern target; pop rbp; ret);
                polls.finish(ops);
            })
        }
        .expect("installs");
        // SAFETY: code of this convention and type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        AGAIN.store(entry.address(), Ordering::Relaxed);
        alone(|| {
            let handle = go(move || {
                for i in 0..20 {
                    // SAFETY: on a goroutine.
                    let call = || unsafe { entry.call() };
                    let end = std::panic::catch_unwind(call).expect_err("the recursion is endless");
                    assert!(text_of(&*end).ends_with("stack in JIT code jit"), "{i}");
                    assert_eq!(ALIVE.load(Ordering::Relaxed), 0, "every destructor has run");
                    assert!(MAX_ALIVE.load(Ordering::Relaxed) > 20);
                    // No JIT frame is left, and the goroutine can yield.
                    let mut frames = 0;
                    runtime::jit_frames(|_| {
                        frames += 1;
                        ControlFlow::Continue(())
                    });
                    assert_eq!(frames, 0);
                    gosched();
                }
            });
            handle.join().expect("no panic");
        });
    })
    .assert_success();
}

#[test]
fn walks_from_the_panic_of_a_check_visit_every_frame() {
    child::run("walks_from_the_panic_of_a_check_visit_every_frame", || {
        let code = endless_with_check("deep", GO, 1000);
        // SAFETY: code of this convention and type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        static FRAMES: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        std::panic::set_hook(Box::new(|_| {
            // This runs on the system stack, which has room for the walks.
            let mut exact = Vec::new();
            let end = runtime::jit_frames(|frame| {
                exact.push(frame.stub.to_string());
                ControlFlow::Continue(())
            });
            assert_eq!(end, runtime::WalkEnd::Complete);
            let full = runtime::traceback().to_string();
            // All frames but that of the check stub are of the code; the last one is its entry.
            assert_eq!(full.matches("    jit deep+0x").count(), exact.len() - 1, "{full}");
            *FRAMES.lock().expect("no panic") = exact;
        }));
        alone(|| {
            // SAFETY: on a goroutine.
            let handle = go(move || unsafe { entry.call() });
            handle.join().expect_err("the recursion is endless");
        });
        let frames = FRAMES.lock().expect("no panic");
        // 64 KiB minus the reserve, in frames of 1016 bytes.
        assert!((50..64).contains(&frames.len()), "{frames:#?}");
        assert!(frames[0].starts_with("jit stack check+0x"), "{frames:#?}");
        let deep = frames.iter().filter(|frame| frame.starts_with("jit deep+0x")).count();
        assert_eq!(deep, frames.len() - 1, "{frames:#?}");
    })
    .assert_success();
}

#[test]
fn a_check_yields_on_request_and_preserves_all_registers() {
    child::run("a_check_yields_on_request_and_preserves_all_registers", || {
        const OTHERS: [Gpr; 13] = [
            Gpr::RAX,
            Gpr::RCX,
            Gpr::RDX,
            Gpr::RBX,
            Gpr::RSI,
            Gpr::RDI,
            Gpr::R8,
            Gpr::R9,
            Gpr::R10,
            Gpr::R11,
            Gpr::R12,
            Gpr::R13,
            Gpr::R15,
        ];
        let value = |register: Gpr| 0x1000 + i32::from(u8::from(register));
        let jit = Jit::new().expect("code memory");
        for frame_bytes in [0, 5000] {
            let mut polls = jit.polls(GO).expect("a convention of this machine");
            // All registers but rsp, rbp and r14 (the goroutine) have a value before the check. The
            // code returns the number of registers that the check changed.
            // SAFETY: a saved frame, which preserves the five registers.
            let code = unsafe {
                jit.install("registers", FrameClass::Saved, |ops| {
                    dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                    push_saved(ops);
                    for register in OTHERS {
                        dynasm!(ops; .arch x64; mov Rq(register), value(register));
                    }
                    polls.check_stack(ops, frame_bytes);
                    dynasm!(ops; .arch x64; push 0);
                    for register in OTHERS {
                        dynasm!(ops
                            ; .arch x64
                            ; cmp Rq(register), value(register)
                            ; je >same
                            ; inc DWORD [rsp]
                            ; same:
                        );
                    }
                    dynasm!(ops; .arch x64; pop rax);
                    load_saved(ops);
                    dynasm!(ops; .arch x64; leave; ret);
                    polls.finish(ops);
                })
            }
            .expect("installs");
            // SAFETY: code of this convention and type.
            let entry = unsafe { code.enter::<fn() -> u64>(GO) }.expect("entry");
            alone(|| {
                let others = AtomicU64::new(0);
                scope(|s| {
                    s.go(|| {
                        while others.load(Ordering::Relaxed) < 100 {
                            others.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    for n in 0..100 {
                        // SAFETY: on a goroutine.
                        assert_eq!(unsafe { entry.call() }, 0);
                        assert_eq!(others.load(Ordering::Relaxed), n, "without a request");
                        runtime::without_preemption(|| assert!(runtime::request_preemption(0)));
                        // SAFETY: on a goroutine.
                        assert_eq!(unsafe { entry.call() }, 0);
                        assert_eq!(others.load(Ordering::Relaxed), n + 1, "it yielded once");
                    }
                });
            });
        }
    })
    .assert_success();
}

#[test]
fn a_check_passes_on_a_system_stack() {
    child::run("a_check_passes_on_a_system_stack", || {
        let jit = Jit::new().expect("code memory");
        // Goroutine stacks are mapped first, and therefore above the stack of the later thread.
        alone(|| ());
        let thread = std::thread::Builder::new().stack_size(64 * MIB);
        let body = move || {
            for convention in [GO, Convention::SystemV] {
                let mut polls = jit.polls(convention).expect("a convention of this machine");
                // SAFETY: a standard frame.
                let code = unsafe {
                    jit.install("shallow", FrameClass::Standard, |ops| {
                        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                        polls.check_stack(ops, 100 * KIB);
                        dynasm!(ops; .arch x64; mov rax, rsp; pop rbp; ret);
                        polls.finish(ops);
                    })
                }
                .expect("installs");
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn() -> usize>(convention) }.expect("entry");
                alone(|| {
                    let here = black_box(0u8);
                    // SAFETY: on a goroutine.
                    let there = runtime::systemstack(|| unsafe { entry.call() });
                    // rsp is below the stack limit, so that the check does not pass by the compare.
                    assert!(there < &raw const here as usize, "{there:#x}");
                });
            }
        };
        thread.spawn(body).expect("a thread").join().expect("no panic");
    })
    .assert_success();
}

/// The check runs on another stack just above the goroutine's: a large frame there does not use the
/// goroutine's stack, even where the compare with the stack limit fails.
#[test]
fn a_check_passes_on_a_stack_just_above_the_goroutines_own() {
    const CLASS: usize = 64 * KIB;
    // The lowest word of the frame is far below the limit of the goroutine's stack, and the
    // distance from rsp to the lowest address of that stack is smaller than the frame.
    const FRAME: usize = 256 * KIB;
    let jit = Jit::new().expect("code memory");
    let mut polls = jit.polls(Convention::SystemV).expect("of this machine");
    // fn(rsp) -> u64: checks on another stack, without allocating the frame.
    // SAFETY: standard frames; the caller passes the stack.
    let code = unsafe {
        jit.install("elsewhere", FrameClass::Standard, |ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; mov rsp, rdi
                ; call >checks
                ; leave
                ; ret
                ; checks:
                ; push rbp
                ; mov rbp, rsp
            );
            polls.check_stack(ops, FRAME);
            dynasm!(ops; .arch x64; mov eax, 42; pop rbp; ret);
            polls.finish(ops);
        })
    };
    // SAFETY: System V code of this type.
    let elsewhere =
        unsafe { code.expect("installs").enter::<fn(usize) -> u64>(Convention::SystemV) };
    let elsewhere = elsewhere.expect("entry");
    alone(|| {
        // Stacks of a class are adjacent, so that waiting goroutines provide the other stack.
        let (requests, done) = (Chan::<usize>::new(0), Chan::<String>::new(0));
        let tops = Chan::<usize>::new(16);
        scope(|s| {
            for number in 0..16u64 {
                let (requests, done, tops, elsewhere) = (&requests, &done, &tops, &elsewhere);
                let body = move || {
                    let here = black_box([number; 4]);
                    tops.send(here.as_ptr() as usize).expect("room");
                    // The goroutine below the stack serves the request, the others pass it on.
                    while let Ok(rsp) = requests.recv() {
                        let own = here.as_ptr() as usize;
                        if rsp > own && rsp - own < 2 * CLASS {
                            // SAFETY: on a goroutine; the other stack is unused at that address.
                            let end = std::panic::catch_unwind(|| unsafe { elsewhere.call(rsp) });
                            let text = end.map_or_else(|e| text_of(&*e).into(), |n| n.to_string());
                            return done.send(text).expect("open");
                        }
                        requests.send(rsp).expect("another one waits");
                    }
                };
                Builder::new().stack_bytes(CLASS).go_scoped(s, body).expect("memory");
            }
            let mut all: Vec<_> = (0..16).map(|_| tops.recv().expect("open")).collect();
            all.sort_unstable();
            // The guard between two stacks has at most 17 pages.
            let near = |pair: &&[usize]| pair[1] - pair[0] < 2 * CLASS + 2 * PAGE;
            let pair = all.windows(2).find(near);
            let above = pair.expect("two adjacent stacks")[1];
            // The middle of the upper stack.
            requests.send((above - CLASS / 2) & !15).expect("goroutines wait");
            let end = done.recv().expect("open");
            requests.close();
            assert_eq!(end, "42");
        });
    });
}

/// Native code calls JIT code by its bare address, and catches the panic of its stack check. After
/// that the goroutine's anchor is the one before the call.
#[test]
fn a_check_that_panics_restores_the_anchor() {
    child::run("a_check_that_panics_restores_the_anchor", || {
        without_messages();
        let deep = endless_with_check("deep", Convention::SystemV, 512);
        let address = deep.address();
        let jit = Jit::new().expect("code memory");
        let catches = jit.named_goroutine_fn("catches", GO, move || {
            let walk = || {
                let mut found = Vec::new();
                let end = runtime::jit_frames(|frame| {
                    found.push((frame.stub.to_string(), frame.pc, frame.fp));
                    ControlFlow::Continue(())
                });
                assert_eq!(end, runtime::WalkEnd::Complete);
                found
            };
            let before = walk();
            assert_eq!(before.len(), 3, "{before:?}");
            // SAFETY: System V code of this type, which calls no goroutine function.
            let code = unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(address) };
            let end = std::panic::catch_unwind(|| code()).expect_err("the recursion is endless");
            assert!(text_of(&*end).ends_with("in JIT code deep"), "{}", text_of(&*end));
            assert_eq!(walk(), before);
        });
        let catches = catches.expect("stub");
        let code = caller("outer", catches.address());
        // SAFETY: ABIInternal code of this type.
        let outer = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        alone(|| {
            for _ in 0..3 {
                // SAFETY: on a goroutine.
                unsafe { outer.call() };
            }
        });
    })
    .assert_success();
}
