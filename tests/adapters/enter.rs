//! Rust enters adapters: what they call parks, panics and walks stacks; and the handles.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use support::child;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{Bind, Code, FrameClass, Jit, JitError, StubKind, lookup};
use footbridge::runtime::{self, Adapter, Chan, Entry, WalkEnd, go};
use support::patience::Patience;
use support::runs::alone as run;

use crate::walk::{pass_on, walked};
use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};

type Unary = fn(u64) -> u64;

fn signature() -> Signature {
    "fn(u64) -> u64".parse().expect("a signature")
}

/// An adapter to code or a function, made for ever.
fn adapt(entry: Convention, target: Convention, address: usize, bind: Option<Bind>) -> Adapter {
    let jit = Jit::new().expect("code memory");
    // SAFETY: the address is of that convention and signature.
    let adapter = unsafe {
        match bind {
            None => jit.adapter(&signature(), entry, target, address),
            Some(bind) => jit.bound_adapter(&signature(), entry, target, address, bind),
        }
    };
    adapter.expect("an adapter")
}

fn enter(adapter: &Adapter) -> Entry<Unary> {
    adapter.enter().expect("an entry")
}

/// Code of a convention that returns `bottom(n) + 1`, and the frames of `bottom`, of what leads
/// there, and of the code.
fn code_above(convention: Convention, bottom: usize) -> (&'static Code, Vec<String>) {
    let jit = Jit::new().expect("code memory");
    let mut frames = vec!["bottom".to_owned()];
    let next = if convention == SystemV {
        bottom
    } else {
        let to_bottom = Box::leak(Box::new(adapt(convention, SystemV, bottom, None)));
        frames.push(format!("{convention} to SystemV"));
        to_bottom.address()
    };
    frames.push(format!("code of {convention}"));
    (pass_on(jit, &format!("code of {convention}"), convention, next), frames)
}

thread_local! {
    static SEEN: Cell<Option<(Vec<String>, WalkEnd)>> = const { Cell::new(None) };
}

/// What the test has the goroutine function at the bottom do with a number.
const PANIC: u64 = 0;
const WALK: u64 = 1;
const RECEIVE: u64 = 2;

/// The goroutine function at the bottom; it receives from the channel.
fn bottom(channel: Chan<u64>) -> usize {
    let act = move |n: u64| match n {
        PANIC => panic!("from the bottom"),
        RECEIVE => channel.recv().expect("it is open"),
        _ => {
            SEEN.set(Some(walked()));
            n
        }
    };
    let jit = Jit::new().expect("code memory");
    let bottom = jit.named_goroutine_fn("bottom", SystemV, act).expect("a stub");
    Box::leak(Box::new(bottom)).address()
}

#[test]
fn walks_parks_and_panics_pass_an_adapter_that_rust_entered() {
    let shapes = [
        // With frames of classes Saved and Standard, and as a tail jump. `GoAbi0` and `Win64` are
        // conventions that code is not entered in directly.
        (SystemV, GoAbi0, None),
        (SystemV, Win64, None),
        (SystemV, GoAbiInternal, None),
        (GoAbiInternal, SystemV, None),
        (SystemV, SystemV, Some(Bind::Closure(5))),
    ];
    for (entry, target, bind) in shapes {
        run(|| {
            let channel = Chan::new(0);
            let (code, mut frames) = code_above(target, bottom(channel.clone()));
            let adapter = adapt(entry, target, code.address(), bind);
            if bind.is_none() {
                frames.push(format!("{entry} to {target}"));
            }
            // The entry is named after what it enters.
            frames.push(lookup(adapter.address()).expect("published").name().to_owned());
            let entry = enter(&adapter);
            let stub = lookup(entry.address()).expect("published");
            assert_eq!(stub.kind(), StubKind::Enter);

            // Rust that JIT code called enters the adapter: its walks resume in that JIT code.
            let middle = move |n: u64| {
                // SAFETY: on a goroutine.
                let called = || unsafe { entry.call(n) };
                let outcome = catch_unwind(AssertUnwindSafe(called));
                let (inside, outside) = (SEEN.take(), walked());
                if n != RECEIVE {
                    let outer = ["middle", "outer", "outer"].map(String::from).to_vec();
                    assert_eq!(outside, (outer.clone(), WalkEnd::Complete), "the anchor is back");
                    if n == WALK {
                        let all = [frames.clone(), outer].concat();
                        assert_eq!(inside, Some((all, WalkEnd::Complete)));
                    }
                }
                match outcome {
                    Ok(value) => value,
                    Err(payload) => {
                        assert_eq!(payload.downcast_ref(), Some(&"from the bottom"));
                        100
                    }
                }
            };
            let jit = Jit::new().expect("code memory");
            let middle = jit.named_goroutine_fn("middle", SystemV, middle).expect("a stub");
            let outer = pass_on(jit, "outer", SystemV, middle.address());
            // SAFETY: a System V function of that type.
            let outer = unsafe { outer.enter::<Unary>(SystemV) }.expect("an entry");
            // SAFETY: on a goroutine.
            let call = |n| unsafe { outer.call(n) };
            assert_eq!(call(WALK), WALK + 2);
            assert_eq!(call(PANIC), 101);
            assert_eq!(call(WALK), WALK + 2);
            // It parks there, and others run meanwhile.
            let receiver = {
                let outer = outer.clone();
                // SAFETY: on a goroutine.
                go(move || unsafe { outer.call(RECEIVE) })
            };
            channel.send(40).expect("it is open");
            assert_eq!(receiver.join().expect("no panic"), 42);
        });
    }
}

thread_local! {
    static CHANNEL: Cell<Option<Chan<u64>>> = const { Cell::new(None) };
}

extern "win64-unwind" fn native(n: u64) -> u64 {
    match n {
        PANIC => panic!("from native code"),
        RECEIVE => CHANNEL.take().expect("the test set it").recv().expect("it is open"),
        n => {
            SEEN.set(Some(walked()));
            n
        }
    }
}

#[test]
fn a_native_target_parks_and_panics_and_leaves_no_anchor() {
    run(|| {
        let entry = enter(&adapt(SystemV, Win64, native as *const () as usize, None));
        // SAFETY: on a goroutine.
        let call = |n| unsafe { entry.call(n) };
        assert_eq!(call(WALK), WALK);
        assert_eq!(SEEN.take(), Some((vec![], WalkEnd::Complete)));

        let payload = catch_unwind(AssertUnwindSafe(|| call(PANIC))).expect_err("it panics");
        assert_eq!(payload.downcast_ref(), Some(&"from native code"));

        let channel = Chan::new(0);
        CHANNEL.set(Some(channel.clone()));
        let entry = entry.clone();
        // SAFETY: on a goroutine.
        let receiver = go(move || unsafe { entry.call(RECEIVE) });
        let patience = Patience::new();
        let trace = loop {
            runtime::gosched();
            patience.check("it parks", runtime::stats);
            let all = runtime::traceback_all();
            let parked =
                |t: &&runtime::Traceback| t.wait_reason == runtime::WaitReason::ChanReceive;
            if let Some(trace) = all.iter().find(parked) {
                break trace.to_string();
            }
        };
        // The full traceback has both stubs, which the exact walk cannot know of.
        assert_eq!(trace.matches("jit SystemV to Win64+").count(), 2, "{trace}");
        channel.send(40).expect("it is open");
        assert_eq!(receiver.join().expect("no panic"), 40);
    });
}

#[test]
fn an_adapter_is_entered_as_what_its_signature_says() {
    let adapter = adapt(SystemV, Win64, native as *const () as usize, None);
    for (outcome, given) in [
        (adapter.enter::<fn(i64) -> u64>().map(drop), "fn(i64) -> u64"),
        (adapter.enter::<fn(u64)>().map(drop), "fn(u64)"),
        (adapter.enter::<fn(u64, u64) -> u64>().map(drop), "fn(u64, u64) -> u64"),
    ] {
        let error = outcome.expect_err("other types");
        let expected = String::from("fn(u64) -> u64");
        assert_eq!(error, JitError::EntryTypes { expected, given: given.into() });
        assert_eq!(
            error.to_string(),
            format!(
                "an adapter of fn(u64) -> u64 cannot be entered as {given}; enter it as a \
                 function pointer type of exactly these types"
            )
        );
    }
    // The word that is bound is no part of it.
    let bound = adapt(SystemV, SystemV, 0x10_000, Some(Bind::FirstArgument(1)));
    drop(enter(&bound));
    for convention in [Win64, GoAbi0] {
        let adapter = adapt(convention, SystemV, 0x10_000, None);
        let error = adapter.enter::<Unary>().expect_err("no entry convention");
        assert!(matches!(error, JitError::Signature { stub: "enter", .. }), "{error}");
    }
}

#[test]
fn the_last_handle_retires_a_stub_and_then_its_target() {
    let is_retired = |address: usize| lookup(address).expect("it stays known").is_retired();
    let jit = Jit::new().expect("code memory");

    let adapter = adapt(SystemV, Win64, native as *const () as usize, None);
    let (first, stub) = (enter(&adapter), adapter.address());
    let (second, entry) = (first.clone(), first.address());
    let other = adapter.clone();
    assert_eq!((other.address(), second.address()), (stub, entry));
    drop((adapter, first));
    assert!(!is_retired(stub) && !is_retired(entry));
    drop(other);
    assert!(!is_retired(stub) && !is_retired(entry), "an entry keeps its adapter");
    drop(second);
    assert!(is_retired(stub) && is_retired(entry));

    let counted = Arc::new(());
    let closure = {
        let counted = Arc::clone(&counted);
        move || drop(Arc::clone(&counted))
    };
    let function = jit.goroutine_fn(SystemV, closure).expect("a stub");
    let (same, stub) = (function.clone(), function.address());
    drop(function);
    assert!(!is_retired(stub));
    drop(same);
    assert!(is_retired(stub));
    assert_eq!(Arc::strong_count(&counted), 2, "the closure stays: code may still call it");

    // SAFETY: the code is a leaf, and never called.
    let code = unsafe {
        jit.install("leaf", footbridge::jit::FrameClass::Leaf, |ops| {
            dynasmrt::DynasmApi::push(ops, 0xc3);
        })
    };
    let code = code.expect("it installs");
    // SAFETY: a function of that signature.
    let start = unsafe { jit.spawn_fn(SystemV, &"fn()".parse().expect("a signature"), &code) };
    let start = start.expect("a stub");
    let (same, stub, body) = (start.clone(), start.address(), code.address());
    drop((start, code));
    assert!(!is_retired(stub) && !is_retired(body));
    drop(same);
    assert!(is_retired(stub) && is_retired(body));
}

#[test]
fn further_entries_to_the_same_code_are_the_same_stub() {
    let jit = Jit::new().expect("code memory");
    let leaf = || {
        // SAFETY: the code is a leaf that returns at once, as good for any type without results.
        let code = unsafe {
            jit.install("leaf", footbridge::jit::FrameClass::Leaf, |ops| {
                dynasmrt::DynasmApi::push(ops, 0xc3);
            })
        };
        code.expect("it installs")
    };
    let enter = |code: &Code, convention| {
        // SAFETY: a function of that type in both conventions.
        unsafe { code.enter::<fn(u64)>(convention) }.expect("an entry")
    };
    let code = leaf();
    let first = enter(&code, SystemV).address();
    let is_retired = || lookup(first).expect("it stays known").is_retired();
    // Many more than there is code space for. The handles are dropped at once.
    for _ in 0..600_000 {
        assert_eq!(enter(&code, SystemV).address(), first);
    }
    assert!(!is_retired(), "its code is not");
    // By many threads at a time, the first one included.
    let other = leaf();
    let addresses: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| enter(&other, SystemV).address())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(addresses.iter().all(|&address| address == addresses[0]), "{addresses:x?}");
    // Another code, convention or type is another stub.
    // SAFETY: a function of that type, too.
    let of_two = unsafe { code.enter::<fn(u64, u64)>(SystemV) }.expect("an entry").address();
    let internal = enter(&code, GoAbiInternal).address();
    let mut all = vec![first, addresses[0], of_two, internal];
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "{all:x?}");
    drop(code);
    assert!(is_retired());
}

#[test]
fn handles_print_what_they_are() {
    let adapter = adapt(SystemV, Win64, native as *const () as usize, None);
    let jit = Jit::new().expect("code memory");
    let function = jit.named_goroutine_fn("f", SystemV, || ()).expect("a stub");
    for (text, start) in [
        (format!("{adapter:?}"), "Adapter(\"SystemV to Win64\" at 0x"),
        (format!("{:?}", enter(&adapter)), "Entry(\"SystemV to Win64\" at 0x"),
        (format!("{function:?}"), "GoroutineFn(\"f\" at 0x"),
        (format!("{:?}", jit.polls(Win64)), "Ok(Polls { convention: Win64, .. }"),
    ] {
        assert!(text.starts_with(start), "{text}");
    }
}

/// Whether the stack is aligned or not: ABI0 does not demand it.
#[test]
fn an_adapter_that_needs_a_goroutine_says_so_where_there_is_none() {
    let cases = [
        (SystemV, 0, FrameClass::Saved),
        (GoAbi0, 0, FrameClass::Standard),
        (GoAbi0, 8, FrameClass::Standard),
    ];
    for (case, (entry, misaligned, class)) in cases.into_iter().enumerate() {
        let test = "an_adapter_that_needs_a_goroutine_says_so_where_there_is_none";
        let outcome = child::run_case(test, case, || {
            let jit = Jit::new().expect("code memory");
            let signature = "fn()".parse().expect("a signature");
            // SAFETY: never called.
            let adapter = unsafe { jit.adapter(&signature, entry, GoAbiInternal, 0x1000) };
            let adapter = adapter.expect("an adapter");
            let stub = lookup(adapter.address()).expect("published");
            assert_eq!(stub.frame_class(), class);
            let target = adapter.address() as i64;
            // SAFETY: a standard frame around a call.
            let code = unsafe {
                jit.install("calls", FrameClass::Standard, |ops| {
                    dynasm!(ops
                        ; .arch x64
                        ; push rbp
                        ; mov rbp, rsp
                        ; sub rsp, misaligned
                        ; mov rax, QWORD target
                        ; call rax
                        ; leave
                        ; ret
                    );
                })
            }
            .expect("it installs");
            // SAFETY: a System V function of this type.
            let function = unsafe { code.as_fn::<extern "sysv64" fn()>() };
            function();
        });
        if let Some(outcome) = outcome {
            assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
            let text = "on a thread that runs no goroutine";
            assert!(outcome.stderr.contains(text), "{outcome:?}");
        }
    }
}
