//! The process's unwinder in a signal handler, at every instruction of code of all frame classes.
//!
//! A chain of calls goes through one piece of code of each kind. Between two pieces a function sets
//! all preserved registers to values that are no addresses, as compiled code without frame pointers
//! may: a rule that takes rbp for a frame pointer too early faults, or is found out.
//!
//! ```text
//!   test -> odd registers -> piece -> odd registers -> piece -> ... -> bottom
//! ```

#![allow(unsafe_code, reason = "calls emitted code, installs signal handlers")]

use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::child::Child;
use support::code::{load_saved, map_code, pop_saved, push_saved};
use support::native_unwind;
use support::shadow::{self, Frame, Steps, call_with_odd_registers, compare_each_step};

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{
    Annotations, Bind, Code, ForeignRegion, FrameClass, GRANULE_BYTES, Jit, Ops, StubKind, lookup,
};

use crate::decode::instruction_offsets;

/// Bytes of what [`call_next`] emits.
const CALL_BYTES: usize = 30;

extern "sysv64" fn bottom(n: u64) -> u64 {
    std::hint::black_box(n) + 1
}

/// Calls `next`, with odd registers.
fn call_next(ops: &mut Ops, next: usize) {
    let (next, odd, function) =
        (next as i64, next as i32 & 0xfff0, shadow::odd_registers_address());
    let start = ops.offset().0;
    dynasm!(ops
        ; .arch x64
        ; mov rsi, rdi
        ; mov rdi, QWORD next
        ; mov edx, odd
        ; mov rax, QWORD function as i64
        ; call rax
    );
    assert_eq!(ops.offset().0 - start, CALL_BYTES);
}

fn nops(ops: &mut Ops, count: usize) {
    for _ in 0..count {
        dynasm!(ops; .arch x64; nop);
    }
}

fn prologue(ops: &mut Ops) {
    dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
}

/// A frame of class Saved that uses what it saves, from the prologue to the call's return.
fn saved_body(ops: &mut Ops, next: usize) {
    dynasm!(ops
        ; .arch x64
        ; mov ebx, 1
        ; mov r12d, 2
        ; mov r13d, 3
        ; mov r14d, 4
        ; mov r15d, 5
        ; sub rsp, 8
    );
    call_next(ops, next);
}

type Body = fn(&mut Ops, usize);

/// System V functions with one argument that call `next` and return what it returns.
const PIECES: [(&str, FrameClass, Body); 14] = [
    ("pop", FrameClass::Standard, |ops, next| {
        prologue(ops);
        call_next(ops, next);
        dynasm!(ops; .arch x64; pop rbp; ret);
    }),
    ("leave", FrameClass::Standard, |ops, next| {
        // The other encoding of `mov rbp, rsp`.
        dynasm!(ops; .arch x64; push rbp; .bytes [0x48, 0x8b, 0xec]; sub rsp, 32);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; ret);
    }),
    ("ret imm16", FrameClass::Standard, |ops, next| {
        prologue(ops);
        call_next(ops, next);
        dynasm!(ops; .arch x64; pop rbp; .bytes [0xc2, 0, 0]);
    }),
    ("rep ret", FrameClass::Standard, |ops, next| {
        prologue(ops);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; .bytes [0xf3, 0xc3]);
    }),
    ("bnd ret", FrameClass::Standard, |ops, next| {
        prologue(ops);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; .bytes [0xf2, 0xc3]);
    }),
    // Each offset in a granule is an instruction.
    ("long", FrameClass::Standard, |ops, next| {
        prologue(ops);
        nops(ops, 150);
        call_next(ops, next);
        nops(ops, 150);
        dynasm!(ops; .arch x64; pop rbp; ret);
    }),
    ("returns to byte 0", FrameClass::Standard, |ops, next| {
        prologue(ops);
        nops(ops, GRANULE_BYTES - 4 - CALL_BYTES);
        call_next(ops, next);
        dynasm!(ops; .arch x64; pop rbp; ret);
    }),
    ("returns to byte 1", FrameClass::Standard, |ops, next| {
        prologue(ops);
        nops(ops, GRANULE_BYTES - 3 - CALL_BYTES);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; ret);
    }),
    // `ret` is the first byte of a granule, and the second.
    ("ret at byte 0", FrameClass::Standard, |ops, next| {
        prologue(ops);
        nops(ops, GRANULE_BYTES - 5 - CALL_BYTES);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; ret);
    }),
    ("ret at byte 1", FrameClass::Standard, |ops, next| {
        prologue(ops);
        nops(ops, GRANULE_BYTES - 4 - CALL_BYTES);
        call_next(ops, next);
        dynasm!(ops; .arch x64; leave; ret);
    }),
    // Instructions that begin as `ret` does, or look like one elsewhere.
    ("like ret", FrameClass::Standard, |ops, next| {
        prologue(ops);
        call_next(ops, next);
        dynasm!(ops
            ; .arch x64
            ; movsd xmm0, xmm3
            ; movss xmm0, xmm3
            ; xor ecx, ecx
            ; .bytes [0xf3, 0xa4] // rep movsb
            ; shl rax, cl
            ; .bytes [0xd2, 0xe2] // shl dl, cl
            ; mov ecx, 1
            ; .bytes [0xe2, 0] // loop to the next instruction
            ; mov ecx, 0xc3c3c3c3_u32 as i32
            ; leave
            ; ret
        );
    }),
    ("saved pop", FrameClass::Saved, |ops, next| {
        prologue(ops);
        push_saved(ops);
        saved_body(ops, next);
        dynasm!(ops; .arch x64; add rsp, 8);
        pop_saved(ops);
        dynasm!(ops; .arch x64; pop rbp; ret);
    }),
    ("saved load", FrameClass::Saved, |ops, next| {
        prologue(ops);
        // `push rbx` with a prefix.
        dynasm!(ops; .arch x64; .bytes [0x40, 0x53]; push r12; push r13; push r14; push r15);
        nops(ops, 120);
        saved_body(ops, next);
        load_saved(ops);
        dynasm!(ops; .arch x64; leave; ret);
    }),
    ("saved on another stack", FrameClass::Saved, |ops, next| {
        prologue(ops);
        push_saved(ops);
        let other_stack = OTHER_STACK.load(Ordering::Relaxed) as i64;
        dynasm!(ops; .arch x64; mov rbx, rsp; mov rsp, QWORD other_stack);
        call_next(ops, next);
        dynasm!(ops; .arch x64; mov rsp, rbx);
        pop_saved(ops);
        dynasm!(ops; .arch x64; pop rbp; ret);
    }),
];

/// The end of a stack that is further up than the thread's own.
static OTHER_STACK: AtomicUsize = AtomicUsize::new(0);

/// Runs the body on a thread whose stack is mapped after another one, and so is below it.
fn on_a_lower_stack(body: impl FnOnce() + Send) {
    const BYTES: usize = 1 << 20;
    // SAFETY: a new mapping, which stays.
    let other = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), BYTES, protection, flags, -1, 0)
    };
    assert_ne!(other, libc::MAP_FAILED);
    let other = other as usize;
    OTHER_STACK.store(other + BYTES, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here = 0_u8;
            assert!((&raw const here as usize) < other);
            body();
        });
    });
}

fn install(jit: Jit, name: &str, class: FrameClass, body: impl FnOnce(&mut Ops)) -> usize {
    // SAFETY: the bodies keep the contracts of their classes.
    let code = unsafe { jit.install(name, class, body) }.expect("it installs");
    let code: &'static Code = Box::leak(Box::new(code));
    code.address()
}

struct Chain {
    /// The outermost piece: a System V function of a number.
    start: usize,
    /// All pieces whose instructions are all executed.
    pieces: Vec<usize>,
}

impl Chain {
    /// Nothing of it is ever freed.
    fn new() -> Self {
        let jit = Jit::new().expect("code memory");
        let mut next = bottom as *const () as usize;
        let mut pieces = Vec::new();
        for (name, class, body) in PIECES {
            next = install(jit, name, class, |ops| body(ops, next));
            pieces.push(next);
        }
        next = install(jit, "leaf", FrameClass::Leaf, |ops| {
            dynasm!(ops; .arch x64; mov rax, QWORD next as i64; jmp rax);
        });
        pieces.push(next);
        next = foreign(next);
        pieces.push(next);
        let signature: Signature = "fn(u64) -> u64".parse().expect("a signature");
        use Convention::{GoAbi0, SystemV, Win64};
        for (entry, target, class) in [
            (GoAbi0, SystemV, FrameClass::Standard),
            (SystemV, GoAbi0, FrameClass::Saved),
            (Win64, SystemV, FrameClass::Win64),
            (SystemV, Win64, FrameClass::Standard),
        ] {
            // SAFETY: the address is such a function of that convention.
            let adapter = unsafe { jit.adapter(&signature, entry, target, next) };
            next = Box::leak(Box::new(adapter.expect("an adapter"))).address();
            assert_eq!(lookup(next).expect("published").frame_class(), class);
            pieces.push(next);
        }
        let bind = Bind::Closure(5);
        // SAFETY: a System V function, which does not use the closure's register.
        let adapter = unsafe { jit.bound_adapter(&signature, SystemV, SystemV, next, bind) };
        next = Box::leak(Box::new(adapter.expect("an adapter"))).address();
        pieces.push(next);
        Self { start: next, pieces }
    }

    fn call(&self) {
        // SAFETY: a System V function of this type.
        assert_eq!(unsafe { call_with_odd_registers(self.start, 41, 0) }, 42);
    }
}

/// Code in memory of the test's own, at the second granule of it.
fn foreign(next: usize) -> usize {
    let mut ops = Ops::new(0);
    prologue(&mut ops);
    nops(&mut ops, 40);
    call_next(&mut ops, next);
    dynasm!(ops; .arch x64; pop rbp; ret);
    let code = ops.finalize().expect("it assembles");
    let page = map_code(&[vec![0xcc; GRANULE_BYTES], code.clone()].concat());
    let start = page + GRANULE_BYTES;
    // SAFETY: the mapping stays, and its code keeps the contract of the class.
    let region = unsafe { ForeignRegion::new(page..page + 4096, FrameClass::Standard) };
    let region: &'static ForeignRegion = Box::leak(Box::new(region.expect("a region")));
    // SAFETY: the bytes are in place.
    let code = unsafe { region.publish("foreign", start..start + code.len(), Annotations::new()) };
    std::mem::forget(code.expect("published"));
    start
}

/// A call is the last instruction, and the next granule begins another function.
#[test]
fn code_may_end_in_a_call() {
    extern "sysv64-unwind" fn panics(_: u64) -> u64 {
        panic!("from the end of a granule");
    }
    let child = Child::of("code_may_end_in_a_call");
    child
        .run(|| {
            let jit = Jit::new().expect("code memory");
            let target = panics as *const () as usize;
            let start = install(jit, "ends in a call", FrameClass::Standard, |ops| {
                prologue(ops);
                nops(ops, GRANULE_BYTES - 4 - 12);
                dynasm!(ops; .arch x64; mov rax, QWORD target as i64; call rax);
                assert_eq!(ops.offset().0, GRANULE_BYTES);
            });
            let (name, class, body) = PIECES[0];
            let after = install(jit, name, class, |ops| body(ops, start));
            assert!(lookup(start + GRANULE_BYTES).expect("its last byte").start() == start);
            assert_eq!(after, start + 2 * GRANULE_BYTES);
            // SAFETY: a System V function of this type that unwinds.
            let function = unsafe {
                std::mem::transmute::<usize, extern "sysv64-unwind" fn(u64) -> u64>(start)
            };
            let caught = std::panic::catch_unwind(|| function(1));
            assert!(caught.is_err());
        })
        .assert_success();
}

fn report(steps: &Steps) -> String {
    let name = |pc| lookup(pc).map_or("native".into(), |stub| format!("{stub:?}"));
    let wrong = steps.wrong.iter().map(|wrong| format!("at {}: {wrong:x?}\n", name(wrong.pc)));
    wrong.collect()
}

#[test]
fn libgcc_is_right_at_every_instruction() {
    let child = Child::of("libgcc_is_right_at_every_instruction").limit_seconds(120);
    child
        .run(|| {
            on_a_lower_stack(|| {
                let chain = Chain::new();
                let steps = compare_each_step(|| chain.call());
                assert!(steps.wrong.is_empty(), "{}", report(&steps));
                let seen: BTreeSet<usize> = steps.pcs.iter().copied().collect();
                for &piece in &chain.pieces {
                    let stub = lookup(piece).expect("published");
                    let mut all = instruction_offsets(piece).into_iter();
                    let is_complete = all.all(|at| seen.contains(&(piece + at)));
                    // After the code of adapters are constants, and where they stop a panic.
                    assert!(is_complete || stub.kind() == StubKind::Adapter, "{stub:?}");
                }
                assert!(steps.deepest > 2 * PIECES.len(), "{} frames", steps.deepest);
                println!("{} steps, {} frames", steps.pcs.len(), steps.deepest);
            })
        })
        .assert_success();
}

/// The chain's pieces, outermost first, and what the storm has found. Atomics, for the handler.
static STARTS: [AtomicUsize; 32] = [const { AtomicUsize::new(0) }; 32];
static ROOT: AtomicUsize = AtomicUsize::new(0);
/// Samples: in all, in the chain, at the first two instructions or `ret` of a piece, wrong ones.
static SAMPLES: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
const ALL: usize = 0;
const IN_CHAIN: usize = 1;
const AT_EDGES: usize = 2;
const WRONG: usize = 3;

/// The number of the piece in the chain, outermost first.
fn number(start: usize) -> Option<usize> {
    STARTS.iter().position(|piece| piece.load(Ordering::Relaxed) == start)
}

fn is_leaf(start: usize) -> bool {
    lookup(start).is_some_and(|stub| stub.frame_class() == FrameClass::Leaf)
}

/// Whether the frames with a pc in the chain are all of its pieces from the outermost one on, up to
/// the one that was interrupted, if it was. Leaves do not count.
fn is_right(frames: &[Frame]) -> bool {
    let interrupted = frames.first().and_then(|frame| lookup(frame.pc)).map(|stub| stub.start());
    let callers = frames.iter().skip(1).rev();
    let callers = callers.filter_map(|frame| lookup(frame.pc.wrapping_sub(1)));
    let found = callers.map(|stub| stub.start()).chain(interrupted);
    let mut next = 0;
    for start in found {
        // Leaves are on the stack only while they run themselves.
        while STARTS.get(next).is_some_and(|piece| {
            let piece = piece.load(Ordering::Relaxed);
            is_leaf(piece) && piece != start
        }) {
            next += 1;
        }
        if number(start) != Some(next) {
            return false;
        }
        next += 1;
    }
    let root = ROOT.load(Ordering::Relaxed);
    // libgcc may report a zero for the caller of the root.
    frames.iter().rev().find(|frame| frame.pc != 0).is_some_and(|frame| frame.pc == root)
}

unsafe extern "C" fn on_sample(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let count = |what: usize| SAMPLES[what].fetch_add(1, Ordering::Relaxed);
    shadow::walk_in_handler(context, |frames| {
        count(ALL);
        if !is_right(frames) {
            count(WRONG);
        }
        if let Some(here) = frames.first().and_then(|frame| lookup(frame.pc)) {
            count(IN_CHAIN);
            // SAFETY: code of the registry is readable.
            let byte = unsafe { *((here.start() + here.offset_bytes()) as *const u8) };
            if here.offset_bytes() < 2 || matches!(byte, 0xc2 | 0xc3) {
                count(AT_EDGES);
            }
        }
    });
}

#[test]
fn libgcc_is_right_in_a_storm_of_samples() {
    let child = Child::of("libgcc_is_right_in_a_storm_of_samples").limit_seconds(300);
    child
        .run(|| {
            on_a_lower_stack(|| {
                let chain = Chain::new();
                for (slot, &start) in STARTS.iter().zip(chain.pieces.iter().rev()) {
                    slot.store(start, Ordering::Relaxed);
                }
                let root = native_unwind::return_addresses().last().copied().expect("a frame");
                ROOT.store(root, Ordering::Relaxed);
                shadow::on_signal(libc::SIGPROF, on_sample);
                // SAFETY: has no precondition.
                let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            // SAFETY: a thread that lives, and has a handler.
                            unsafe {
                                libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGPROF)
                            };
                            std::thread::sleep(Duration::from_micros(50));
                        }
                    });
                    let count = |what: usize| SAMPLES[what].load(Ordering::Relaxed);
                    while count(IN_CHAIN) < 10_000 || count(AT_EDGES) < 200 {
                        for _ in 0..100 {
                            chain.call();
                        }
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                println!("{SAMPLES:?}");
                assert_eq!(SAMPLES[WRONG].load(Ordering::Relaxed), 0, "{SAMPLES:?}");
            })
        })
        .assert_success();
}
