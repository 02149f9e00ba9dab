//! Contracts that are checked: when code is installed, when a stub is created, and, in a checked
//! `Jit`, when a stub is called.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{
    Annotations, Bind, Code, FrameClass, Jit, JitError, Ops, StubKind, WhenUnsafe, lookup,
};
use footbridge::runtime::{GoroutineFn, run};
use support::child;

use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};

fn checked() -> Jit {
    Jit::builder().reserve_bytes(8 << 20).checked(true).build().expect("an arena")
}

/// Installs code that is never called.
fn install(jit: &Jit, class: FrameClass, body: impl FnOnce(&mut Ops)) -> Result<Code, JitError> {
    // SAFETY: never called.
    unsafe { jit.install("code", class, body) }
}

#[test]
fn a_saved_frame_without_its_five_pushes_is_refused() {
    let jit = Jit::new().expect("code memory");
    let four = install(&jit, FrameClass::Saved, |ops| {
        dynasm!(ops
            ; .arch x64
            ; push rbp
            ; mov rbp, rsp
            ; push rbx
            ; push r12
            ; push r13
            ; push r15
            ; leave
            ; ret
        );
    });
    assert_eq!(
        four.expect_err("a push is missing").to_string(),
        "code \"code\" breaks the frame contract: a saved frame continues with `push rbx; push r12; \
         push r13; push r14; push r15`, whichever of them it changes: unwinders restore all five; \
         code that changes none may be FrameClass::Standard"
    );
    // Also with the redundant REX prefix of `push Rq(register)` in dynasm.
    for rex in [&[][..], &[0x40]] {
        let five = install(&jit, FrameClass::Saved, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; .bytes rex);
            dynasm!(ops; .arch x64; push rbx; push r12; push r13; push r14; push r15; leave; ret);
        });
        drop(five.expect("all five are there"));
    }
}

#[test]
fn a_null_target_is_refused() {
    let jit = Jit::new().expect("code memory");
    let signature: Signature = "fn(i64, f64) -> i64".parse().expect("a signature");
    for address in [0, 0x18] {
        let text = format!(
            "adapter stub: its target is the address {address:#x}, which is null or an offset from \
             null; pass the address of a function"
        );
        // SAFETY: both adapters are refused.
        let (plain, bound) = unsafe {
            (
                jit.adapter(&signature, SystemV, Win64, address),
                jit.bound_adapter(&signature, SystemV, GoAbi0, address, Bind::Closure(1)),
            )
        };
        for refused in [plain, bound] {
            let error = refused.expect_err("a null target");
            assert_eq!(error, JitError::NullTarget { stub: "adapter", address });
            assert_eq!(error.to_string(), text);
        }
    }
}

#[test]
fn a_leaf_that_calls_is_refused_in_a_checked_jit_and_in_debug_builds() {
    let calls = |ops: &mut Ops| dynasm!(ops; .arch x64; xor eax, eax; call rdi; ret);
    let error = install(&checked(), FrameClass::Leaf, calls).expect_err("it calls");
    assert_eq!(error, JitError::LeafCalls { name: "code".into(), offset_bytes: 2 });
    assert_eq!(
        error.to_string(),
        "code \"code\" of frame class leaf makes a call, 0x2 bytes from its start: a leaf has no \
         frame for it; start with `push rbp; mov rbp, rsp` and declare FrameClass::Standard"
    );
    let unchecked = install(&Jit::new().expect("code memory"), FrameClass::Leaf, calls);
    assert_eq!(unchecked.is_err(), cfg!(debug_assertions));

    // These only resemble calls: the slow path of a poll, and data after the code.
    let jit = checked();
    let mut polls = jit.polls(SystemV).expect("a convention of this machine");
    let leaf = install(&jit, FrameClass::Leaf, |ops| {
        polls.poll(ops);
        dynasm!(ops; .arch x64; mov eax, 0xe8; ret; call rdi);
        polls.finish(ops);
    });
    drop(leaf.expect("it makes no call"));
    // Other classes may call.
    let standard = install(&jit, FrameClass::Standard, |ops| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call rdi; pop rbp; ret);
    });
    drop(standard.expect("a frame"));
}

static SUM: AtomicU64 = AtomicU64::new(0);

fn add(jit: &Jit, convention: Convention) -> GoroutineFn {
    let add = |n: u64| _ = SUM.fetch_add(n, Ordering::Relaxed);
    jit.named_goroutine_fn("add", convention, add).expect("a stub")
}

/// Code that calls `add(argument)`, preceded by the instructions that `before` emits.
fn caller(jit: &Jit, convention: Convention, before: impl FnOnce(&mut Ops)) -> (Code, GoroutineFn) {
    let add = add(jit, convention);
    let target = add.address();
    // SAFETY: a standard frame. The test is about what `before` breaks.
    let code = unsafe {
        jit.install("caller", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
            before(ops);
            dynasm!(ops; .arch x64; call extern target; leave; ret);
        })
    };
    (code.expect("it is installed"), add)
}

fn call(convention: Convention, before: impl FnOnce(&mut Ops) + Send) {
    run(|| {
        let (code, _add) = caller(&checked(), convention, before);
        // SAFETY: a function of that type and convention.
        let entry = unsafe { code.enter::<fn(u64)>(convention) }.expect("an entry");
        // SAFETY: called on a goroutine.
        unsafe { entry.call(21) };
    });
}

#[test]
fn calls_that_keep_the_contract_succeed() {
    for convention in [SystemV, GoAbiInternal] {
        let before = SUM.load(Ordering::Relaxed);
        call(convention, |_| {});
        assert_eq!(SUM.load(Ordering::Relaxed) - before, 21, "{convention:?}");
    }
    // Go's convention only requires 8-byte alignment of the stack.
    call(GoAbiInternal, |ops| dynasm!(ops; .arch x64; push rax));
}

#[test]
fn a_misaligned_stack_at_a_call_ends_the_process() {
    let outcome = child::run("a_misaligned_stack_at_a_call_ends_the_process", || {
        call(SystemV, |ops| dynasm!(ops; .arch x64; push rax));
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
    let start = "footbridge: fatal: jit caller+0xa called the stub \"add\" with rsp = 0x";
    let end = "8, which is not a multiple of 16; lower rsp by 8 more before the call\n";
    assert!(outcome.stderr.starts_with(start), "{outcome:?}");
    assert!(outcome.stderr.ends_with(end), "{outcome:?}");
}

#[test]
fn a_register_that_is_not_the_goroutine_ends_the_process() {
    let outcome = child::run("a_register_that_is_not_the_goroutine_ends_the_process", || {
        call(GoAbiInternal, |ops| dynasm!(ops; .arch x64; mov r14d, 0x1234));
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
    let start = "footbridge: fatal: jit caller+0xf called the stub \"add\" with r14 = 0x1234, which is \
                 not the goroutine that runs, 0x";
    let end = "; code of GoAbiInternal keeps r14 as it was entered with\n";
    assert!(outcome.stderr.starts_with(start), "{outcome:?}");
    assert!(outcome.stderr.ends_with(end), "{outcome:?}");
}

#[test]
fn a_null_goroutine_register_ends_the_process() {
    let outcome = child::run("a_null_goroutine_register_ends_the_process", || {
        call(GoAbiInternal, |ops| dynasm!(ops; .arch x64; xor r14d, r14d));
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
    let text = "called a goroutine function, on a thread that runs no goroutine";
    assert!(outcome.stderr.contains(text), "{outcome:?}");
}

#[test]
fn an_unchecked_jit_emits_no_checks() {
    // test bpl, 15
    const CHECK: [u8; 4] = [0x40, 0xf6, 0xc5, 0x0f];
    let has_check = |jit: &Jit| {
        let add = add(jit, SystemV);
        let stub = lookup(add.address()).expect("it is registered");
        assert_eq!((stub.name(), stub.kind()), ("add", StubKind::GoroutineFn));
        // SAFETY: the bytes of a published stub.
        let code = unsafe { std::slice::from_raw_parts(stub.start() as *const u8, stub.len()) };
        code.windows(CHECK.len()).any(|window| window == CHECK)
    };
    assert!(has_check(&checked()));
    assert!(!has_check(&Jit::new().expect("code memory")));
    let unchecked = Jit::builder().reserve_bytes(8 << 20).build().expect("an arena");
    assert!(!has_check(&unchecked));
}

#[test]
fn unsafe_points_of_code_that_is_not_preemptible_are_refused() {
    let jit = Jit::new().expect("code memory");
    // SAFETY: the code is refused.
    let refused = unsafe {
        jit.install("code", FrameClass::Leaf, |ops| {
            dynasm!(ops; .arch x64; ret);
            Annotations::new().unsafe_points(0..1, WhenUnsafe::Skip)
        })
    };
    assert_eq!(
        refused.expect_err("no point is safe").to_string(),
        "bytes 0..1 of preemptible code \"code\" cannot be unsafe points: the code is not \
         preemptible, so that all of its points are unsafe; begin with Annotations::preemptible()"
    );
}

#[test]
fn code_is_retired_with_its_last_handle() {
    let jit = Jit::new().expect("code memory");
    let code = install(&jit, FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret)).expect("a leaf");
    let (clone, address) = (code.clone(), code.address());
    let is_retired = || lookup(address).expect("retired code stays registered").is_retired();
    drop(code);
    assert!(!is_retired());
    assert_eq!((clone.address(), clone.bytes()), (address, &[0xc3][..]));
    drop(clone);
    assert!(is_retired());
}

#[test]
fn errors_have_sources_where_they_wrap_one() {
    let jit = Jit::new().expect("code memory");
    let signature: Signature = "fn(i64) -> i64".parse().expect("a signature");
    // SAFETY: the adapter is refused.
    let refused = unsafe { jit.adapter(&signature, SystemV, Win64, 0) }.expect_err("null");
    assert!(refused.source().is_none());
    let wide: Signature = "fn(v512)".parse().expect("a signature");
    // SAFETY: the adapter is refused.
    let refused = unsafe { jit.adapter(&wide, GoAbi0, SystemV, 0x1000) }.expect_err("no vectors");
    assert!(matches!(refused, JitError::Assign(_) | JitError::Plan(_)), "{refused:?}");
    let source = refused.source().expect("the error of the assignment");
    assert_eq!(source.to_string(), refused.to_string());
}
