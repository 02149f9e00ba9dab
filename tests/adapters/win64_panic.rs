//! Panics that pass adapters that are entered in Win64: the registers of the caller's landing pad.
//!
//! The caller is written in assembly, with a personality routine of its own, so that every register
//! that Win64 preserves holds a known value at the call and is seen at the first instruction of the
//! landing pad.

#![allow(unsafe_code, reason = "assembly, and a part in unwinding")]

use std::arch::global_asm;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use support::{child, native_unwind, shadow};

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{FrameClass, Jit, StubKind, lookup};

use crate::walk::pass_on;

use Convention::{SystemV, Win64};

/// What Win64 preserves, and rsp: as the caller sets it before the call, and finds it in its
/// landing pad.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Preserved {
    xmm: [[u64; 2]; 10],
    /// rsi, rdi, rbx, r12, r13, r14, r15.
    general: [u64; 7],
    rbp: u64,
    rsp: u64,
}

const NOTHING: Preserved = Preserved { xmm: [[0; 2]; 10], general: [0; 7], rbp: 0, rsp: 0 };

/// What the caller returns when it has caught the panic itself.
const CAUGHT: u64 = 0xcac4;

#[rustfmt::skip]
global_asm!(
    ".globl footbridge_test_win64_caller, footbridge_test_win64_return, footbridge_test_win64_pad",
    "footbridge_test_win64_caller:",
    ".cfi_startproc",
    ".cfi_personality 0x1b, footbridge_test_win64_personality",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rbx", ".cfi_offset rbx, -24",
    "push r12", ".cfi_offset r12, -32",
    "push r13", ".cfi_offset r13, -40",
    "push r14", ".cfi_offset r14, -48",
    "push r15", ".cfi_offset r15, -56",
    "sub rsp, 72",
    "mov [rbp - 48], rdi", // what is called
    "mov [rbp - 56], rcx", // where the landing pad's registers go
    "mov [rdx + 216], rbp",
    "mov [rdx + 224], rsp",
    "mov rcx, rsi",
    "movups xmm6, [rdx]", "movups xmm7, [rdx + 16]", "movups xmm8, [rdx + 32]",
    "movups xmm9, [rdx + 48]", "movups xmm10, [rdx + 64]", "movups xmm11, [rdx + 80]",
    "movups xmm12, [rdx + 96]", "movups xmm13, [rdx + 112]", "movups xmm14, [rdx + 128]",
    "movups xmm15, [rdx + 144]",
    "mov rsi, [rdx + 160]", "mov rdi, [rdx + 168]", "mov rbx, [rdx + 176]",
    "mov r12, [rdx + 184]", "mov r13, [rdx + 192]", "mov r14, [rdx + 200]",
    "mov r15, [rdx + 208]",
    "call [rbp - 48]",
    "footbridge_test_win64_return:",
    "2:",
    "mov rbx, [rbp - 8]", "mov r12, [rbp - 16]", "mov r13, [rbp - 24]",
    "mov r14, [rbp - 32]", "mov r15, [rbp - 40]",
    "leave",
    ".cfi_remember_state",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_restore_state",
    // The pad is no return address, but at the last two instructions of the adapter it looks like
    // one: unwinders take the row of the byte before it.
    "ud2",
    "footbridge_test_win64_pad:",
    "mov rcx, [rbp - 56]",
    "movups [rcx], xmm6", "movups [rcx + 16], xmm7", "movups [rcx + 32], xmm8",
    "movups [rcx + 48], xmm9", "movups [rcx + 64], xmm10", "movups [rcx + 80], xmm11",
    "movups [rcx + 96], xmm12", "movups [rcx + 112], xmm13", "movups [rcx + 128], xmm14",
    "movups [rcx + 144], xmm15",
    "mov [rcx + 160], rsi", "mov [rcx + 168], rdi", "mov [rcx + 176], rbx",
    "mov [rcx + 184], r12", "mov [rcx + 192], r13", "mov [rcx + 200], r14",
    "mov [rcx + 208], r15", "mov [rcx + 216], rbp", "mov [rcx + 224], rsp",
    "mov rdi, rax",
    "mov eax, 0xcac4",
    "test rdx, rdx",
    "jnz 2b",
    "call {resume}",
    "ud2",
    ".cfi_endproc",
    // Changes what System V lets it change, and jumps on.
    ".globl footbridge_test_clobbers",
    "footbridge_test_clobbers:",
    ".cfi_startproc",
    "pcmpeqd xmm6, xmm6", "movaps xmm7, xmm6", "movaps xmm8, xmm6", "movaps xmm9, xmm6",
    "movaps xmm10, xmm6", "movaps xmm11, xmm6", "movaps xmm12, xmm6", "movaps xmm13, xmm6",
    "movaps xmm14, xmm6", "movaps xmm15, xmm6",
    "mov rsi, -1",
    "jmp {panics}",
    ".cfi_endproc",
    resume = sym _Unwind_Resume,
    panics = sym panics,
);

unsafe extern "C" {
    fn _Unwind_Resume();
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_SetIP(context: *mut c_void, value: usize);
    fn _Unwind_SetGR(context: *mut c_void, register: c_int, value: usize);
    fn footbridge_test_win64_return();
    fn footbridge_test_win64_pad();
    fn footbridge_test_clobbers();
}

unsafe extern "sysv64-unwind" {
    /// Calls a Win64 function of one argument, with these registers.
    fn footbridge_test_win64_caller(
        function: usize,
        argument: u64,
        registers: &mut Preserved,
        landed: &mut Preserved,
    ) -> u64;
}

/// Whether the caller catches the panic, or has a cleanup only.
static CATCHES: AtomicU32 = AtomicU32::new(0);
/// The actions that the personality routine was called with in the cleanup phase.
static ACTIONS: AtomicU32 = AtomicU32::new(0);

#[unsafe(no_mangle)]
unsafe extern "C" fn footbridge_test_win64_personality(
    _version: c_int,
    actions: c_int,
    _class: u64,
    exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    const HANDLER_FOUND: c_int = 6;
    const INSTALL_CONTEXT: c_int = 7;
    const CONTINUE_UNWIND: c_int = 8;
    const SEARCH_PHASE: c_int = 1;
    let catches = CATCHES.load(Ordering::Relaxed);
    // SAFETY: the unwinder's own context.
    unsafe {
        if _Unwind_GetIP(context) != footbridge_test_win64_return as *const () as usize {
            return CONTINUE_UNWIND;
        }
        if actions & SEARCH_PHASE != 0 {
            return if catches == 1 { HANDLER_FOUND } else { CONTINUE_UNWIND };
        }
        ACTIONS.store(actions as u32, Ordering::Relaxed);
        _Unwind_SetGR(context, 0, exception as usize);
        _Unwind_SetGR(context, 1, catches as usize);
        _Unwind_SetIP(context, footbridge_test_win64_pad as *const () as usize);
    }
    INSTALL_CONTEXT
}

extern "sysv64-unwind" fn panics(n: u64) -> u64 {
    std::panic::panic_any(n);
}

fn values() -> Preserved {
    let word = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut xmm = [[0; 2]; 10];
    for (n, xmm) in xmm.iter_mut().enumerate() {
        *xmm = [word(2 * n as u64 + 1), word(2 * n as u64 + 2)];
    }
    Preserved { xmm, general: std::array::from_fn(|n| word(n as u64 + 101)), rbp: 0, rsp: 0 }
}

/// A Win64 function of a number that panics, with the adapter that is under test on the way.
fn chain(shape: &str) -> usize {
    let jit = Jit::new().expect("code memory");
    let signature: Signature = "fn(u64) -> u64".parse().expect("a signature");
    let adapt = |entry, target, address| {
        // SAFETY: the address is a function of that convention and signature.
        let adapter = unsafe { jit.adapter(&signature, entry, target, address) };
        let adapter = Box::leak(Box::new(adapter.expect("an adapter")));
        let stub = lookup(adapter.address()).expect("published");
        let class = if entry == Win64 { FrameClass::Win64 } else { FrameClass::Standard };
        assert_eq!((stub.kind(), stub.frame_class()), (StubKind::Adapter, class));
        adapter.address()
    };
    let direct = adapt(Win64, SystemV, footbridge_test_clobbers as *const () as usize);
    match shape {
        "direct" => direct,
        "through emitted code" => pass_on(jit, "f", Win64, direct).address(),
        "twice" => {
            let f = pass_on(jit, "f", Win64, direct).address();
            let g = pass_on(jit, "g", SystemV, adapt(SystemV, Win64, f)).address();
            adapt(Win64, SystemV, g)
        }
        other => panic!("no such shape: {other}"),
    }
}

const SHAPES: [&str; 3] = ["direct", "through emitted code", "twice"];

#[test]
fn a_landing_pad_finds_all_that_win64_preserves() {
    child::run("a_landing_pad_finds_all_that_win64_preserves", || {
        for shape in SHAPES {
            let function = chain(shape);
            for round in 0..3 {
                let (mut registers, mut landed) = (values(), NOTHING);
                // SAFETY: a Win64 function of this type.
                let caught = catch_unwind(AssertUnwindSafe(|| unsafe {
                    footbridge_test_win64_caller(function, round, &mut registers, &mut landed)
                }));
                let payload = caught.expect_err("it panics");
                assert_eq!(payload.downcast_ref(), Some(&round), "{shape}");
                assert_eq!(landed, registers, "{shape}");
                assert_eq!(ACTIONS.load(Ordering::Relaxed), 2, "{shape}: a cleanup");
            }
        }
    })
    .assert_success();
}

#[test]
fn win64_code_catches_a_panic() {
    child::run("win64_code_catches_a_panic", || {
        CATCHES.store(1, Ordering::Relaxed);
        for shape in SHAPES {
            let (mut registers, mut landed) = (values(), NOTHING);
            // SAFETY: a Win64 function of this type. The exception is leaked.
            let returned = unsafe {
                footbridge_test_win64_caller(chain(shape), 1, &mut registers, &mut landed)
            };
            assert_eq!(returned, CAUGHT, "{shape}");
            assert_eq!(landed, registers, "{shape}");
            assert_eq!(ACTIONS.load(Ordering::Relaxed), 2 | 4, "{shape}: the handler's frame");
        }
    })
    .assert_success();
}

/// Of the steps in adapters: how many there were, and at how many of them libgcc did not find the
/// caller with its registers, and the root of the thread.
static STEPS: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
static ROOT: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn on_step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid context.
    let gregs = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // The thread may be in the unwinder elsewhere, which takes a lock.
    if lookup(gregs[libc::REG_RIP as usize] as usize).is_none() {
        return;
    }
    shadow::walk_in_handler(context, |frames| {
        let callers = [footbridge_test_win64_return, footbridge_test_win64_pad];
        let callers = callers.map(|place| place as *const () as usize);
        let general = values().general.map(|word| word as usize);
        let [_, _, rbx, r12, r13, r14, r15] = general;
        let is_right = frames.get(1).is_some_and(|caller| {
            let [found_rbx, _, found @ ..] = caller.registers;
            callers.contains(&caller.pc) && (found_rbx, found) == (rbx, [r12, r13, r14, r15])
        });
        let root = frames.iter().rev().find(|frame| frame.pc != 0).map(|frame| frame.pc);
        STEPS[0].fetch_add(1, Ordering::Relaxed);
        if !is_right || root != Some(ROOT.load(Ordering::Relaxed)) {
            STEPS[1].fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[test]
fn libgcc_is_right_at_every_instruction_that_restores_the_registers() {
    child::run("libgcc_is_right_at_every_instruction_that_restores_the_registers", || {
        let root = native_unwind::return_addresses().last().copied().expect("a frame");
        ROOT.store(root, Ordering::Relaxed);
        CATCHES.store(1, Ordering::Relaxed);
        let function = chain("direct");
        shadow::on_signal(libc::SIGTRAP, on_step);
        let (mut registers, mut landed) = (values(), NOTHING);
        let mut returned = 0;
        shadow::traced(|| {
            // SAFETY: a Win64 function of this type. The exception is leaked.
            returned =
                unsafe { footbridge_test_win64_caller(function, 1, &mut registers, &mut landed) };
        });
        assert_eq!(returned, CAUGHT);
        let [steps, wrong] = [0, 1].map(|n: usize| STEPS[n].load(Ordering::Relaxed));
        // The adapter up to its call, and its landing pad.
        assert!(steps > 50, "{steps} steps");
        assert_eq!(wrong, 0, "of {steps} steps");
    })
    .assert_success();
}

/// As a compiler writes it: what lives over the call, and the destructor that uses it.
#[test]
fn compiled_win64_code_cleans_up_and_catches() {
    struct Sum<'a>(f64, &'a Cell<f64>);
    impl Drop for Sum<'_> {
        fn drop(&mut self) {
            self.1.set(self.1.get() + self.0);
        }
    }
    extern "win64-unwind" fn cleans_up(function: usize, a: f64, b: f64, sum: &Cell<f64>) {
        let (product, quotient) = (a * b, a / b);
        let _sum = Sum(product, sum);
        // SAFETY: a Win64 function of this type.
        let function =
            unsafe { std::mem::transmute::<usize, extern "win64-unwind" fn(u64) -> u64>(function) };
        function(9);
        sum.set(quotient);
    }
    extern "win64" fn catches(function: usize, a: f64, b: f64, sum: &Cell<f64>) -> f64 {
        let difference = a - b;
        let caught = catch_unwind(AssertUnwindSafe(|| cleans_up(function, a, b, sum)));
        assert!(caught.is_err());
        difference + a
    }
    for shape in SHAPES {
        let sum = Cell::new(0.5);
        assert_eq!(catches(chain(shape), 3.0, 2.0, &sum), 4.0, "{shape}");
        assert_eq!(sum.get(), 6.5, "{shape}");
    }
}

#[test]
fn a_panic_at_a_barrier_ends_the_process_and_says_why() {
    let outcome = child::run("a_panic_at_a_barrier_ends_the_process_and_says_why", || {
        let target = panics as *const () as usize;
        // SAFETY: the frame contract is kept.
        let code = unsafe {
            Jit::new().expect("code memory").install("keeps xmm6", FrameClass::Barrier, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; mov rax, QWORD target as i64
                    ; call rax
                    ; leave
                    ; ret
                );
            })
        }
        .expect("it installs");
        // SAFETY: a System V function of this type.
        let function = unsafe { code.as_fn::<extern "sysv64-unwind" fn(u64) -> u64>() };
        let _ = catch_unwind(AssertUnwindSafe(|| function(1)));
        println!("passed");
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
    let reason = "it has reached `keeps xmm6`, code of FrameClass::Barrier";
    assert!(outcome.stderr.contains(reason), "{outcome:?}");
    assert!(!outcome.stdout.contains("passed"), "{outcome:?}");
}
