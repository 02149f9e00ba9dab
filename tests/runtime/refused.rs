//! What a machine does not have yet is refused with an error where it is requested, and the default
//! settings run without it.

#![allow(unsafe_code, reason = "makes stubs that are never called")]

use footbridge::abi::Convention;
use footbridge::jit::{Bind, FrameClass, Jit, JitError};
use footbridge::runtime::{Builder, Config, RunError, SpawnFnError, VectorState, go, poll_layout};

const EMITS: bool = cfg!(target_arch = "x86_64");

/// [`EMITS`], as a value that only the test knows.
fn emits() -> bool {
    std::hint::black_box(EMITS)
}

/// The convention of C functions here.
const NATIVE: Convention = if EMITS { Convention::SystemV } else { Convention::Aapcs64 };

/// `ret`.
const RET: &[u8] = if EMITS { &[0xc3] } else { &0xd65f_03c0_u32.to_le_bytes() };

#[track_caller]
fn assert_refused<T>(what: &'static str, result: Result<T, JitError>) {
    match result {
        Ok(_) => assert!(emits(), "{what} are made, and nothing executes them"),
        Err(error) => {
            assert!(!emits(), "{what}: {error}");
            assert_eq!(error, JitError::Unsupported { what, target: "AArch64" });
            let text = format!("this crate has no {what} on AArch64 yet");
            assert!(error.to_string().starts_with(&text), "{error}");
        }
    }
}

#[test]
fn stubs_that_this_machine_does_not_have_are_refused() {
    let jit = Jit::new().expect("code memory");
    let signature = "fn()".parse().expect("a signature");
    // SAFETY: `ret` is a leaf.
    let code = unsafe { jit.install("returns", FrameClass::Leaf, |ops| ops.extend(RET)) };
    let code = code.expect("code is installed on every machine");
    assert_refused("polls", jit.polls(NATIVE));
    assert_refused("polls", poll_layout());
    assert_refused("goroutine functions", jit.goroutine_fn(NATIVE, || ()));
    // SAFETY: the code has no arguments, and is never called.
    unsafe {
        assert_refused("entries to JIT code", code.enter::<fn()>(NATIVE));
        let spawn = Builder::new().spawn_fn(&jit, NATIVE, &signature, &code);
        let spawn = spawn.map_err(|error| match error {
            SpawnFnError::Jit(error) => error,
            other => panic!("{other}"),
        });
        // Such a stub needs an entry to the code.
        assert_refused("entries to JIT code", spawn);
        let adapter = jit.adapter(&signature, NATIVE, NATIVE, code.address());
        assert_refused("adapters that execute", adapter);
        let bound = jit.bound_adapter(&signature, NATIVE, NATIVE, code.address(), Bind::Closure(1));
        assert_refused("adapters that execute", bound);
    }
}

#[test]
fn preemption_that_this_machine_does_not_have_is_refused_and_the_default_does_without() {
    let run = |config: Config| config.run(|| go(|| 6 * 7).join().expect("no panic"));
    assert_eq!(run(Config::new()), Ok(42));
    assert_eq!(run(Config::new().vector_state(VectorState::Auto)), Ok(42));
    let asynchronous = run(Config::new().async_preemption(true));
    let saved = footbridge::environment().preemption;
    if emits() {
        assert_eq!(asynchronous, Ok(42));
        assert!(saved.starts_with("SIGURG"), "{saved}");
        return;
    }
    assert_eq!(asynchronous, Err(RunError::AsyncPreemption));
    let text = RunError::AsyncPreemption.to_string();
    assert!(text.starts_with("Config::async_preemption is true"), "{text}");
    // Without time slices, too: what is requested is not there.
    let endless = Config::new().async_preemption(true).time_slice(None);
    assert_eq!(run(endless), Err(RunError::AsyncPreemption));
    for requested in [VectorState::Sse, VectorState::Avx, VectorState::Avx512] {
        let refused = run(Config::new().vector_state(requested));
        assert_eq!(refused, Err(RunError::VectorState { requested }));
    }
    assert!(saved.starts_with("none: on AArch64"), "{saved}");
}
