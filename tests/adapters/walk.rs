//! Walks, unwinds and panics through adapters with frames of all classes, and without frames.
//!
//! One chain of calls has an adapter of each frame class. `pass on` is emitted code that passes a
//! number on in its own convention, and adds one to the result.
//!
//! ```text
//!   goroutine -> enter -> a (ABIInternal)
//!     -> adapter to System V: Standard           -> b, which keeps a value in rbx
//!     -> adapter to System V: Leaf (a closure)   -> c
//!     -> adapter to ABI0: Saved                  -> d
//!     -> adapter to ABIInternal: Standard        -> e
//!     -> adapter to Win64: Standard              -> f
//!     -> adapter to System V: Win64              -> g (or directly `bottom`)
//!     -> bottom, a goroutine function
//! ```

#![allow(unsafe_code, reason = "calls emitted code")]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::code::push_saved;
use support::native_unwind;
use support::runs::alone as run;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Signature};
use footbridge::jit::{Bind, Code, FrameClass, Jit, StubKind, lookup};
use footbridge::runtime::{self, Entry, WalkEnd, jit_frames};
use support::step::stepped;

use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};

/// The value that `b` keeps in rbx during its call.
const KEPT: u64 = 0x0bb0_0bb0_0bb0_0bb0;

thread_local! {
    static BOTTOM: Cell<fn()> = const { Cell::new(|| {}) };
}

fn bottom_rust(n: u64) -> u64 {
    BOTTOM.get()();
    std::hint::black_box(n) * 2
}

struct Chain {
    entry: Entry<fn(u64) -> u64>,
    /// The names of the frames, innermost first.
    frames: Vec<String>,
}

/// Emits `f(n) = next(n) + 1` in a convention.
pub fn pass_on(jit: Jit, name: &str, convention: Convention, next: usize) -> &'static Code {
    let class = if name == "b" { FrameClass::Saved } else { FrameClass::Standard };
    let body = |ops: &mut footbridge::jit::Ops| {
        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
        match (convention, class) {
            (SystemV, FrameClass::Saved) => {
                push_saved(ops);
                dynasm!(ops
                    ; .arch x64
                    ; sub rsp, 8
                    ; mov rbx, QWORD KEPT as i64
                    ; call QWORD [>next]
                    ; add rax, 1
                    ; mov rbx, [rbp - 8]
                );
            }
            (SystemV, _) => dynasm!(ops; .arch x64; call QWORD [>next]; add rax, 1),
            (Win64, _) => dynasm!(ops; .arch x64; sub rsp, 32; call QWORD [>next]; add rax, 1),
            (GoAbiInternal, _) => {
                dynasm!(ops; .arch x64; sub rsp, 16; call QWORD [>next]; add rax, 1);
            }
            // ABI0 preserves only rbp.
            _ => dynasm!(ops
                ; .arch x64
                ; sub rsp, 16
                ; xor ebx, ebx
                ; xor r12d, r12d
                ; mov rax, [rbp + 16]
                ; mov [rsp], rax
                ; call QWORD [>next]
                ; mov rax, [rsp + 8]
                ; add rax, 1
                ; mov [rbp + 24], rax
            ),
        }
        dynasm!(ops; .arch x64; leave; ret; .align 8; next:; .u64 next as u64);
    };
    // SAFETY: the frames keep the contracts of their classes; each body calls in its own
    // convention.
    let code = unsafe { jit.install(name, class, body) };
    Box::leak(Box::new(code.expect("installed")))
}

impl Chain {
    /// Creates the chain. Without `g`, the adapter from Win64 is the caller of `bottom`. Nothing is
    /// ever freed.
    fn new(through_g: bool) -> Self {
        let jit = Jit::new().expect("code memory");
        let signature: Signature = "fn(u64) -> u64".parse().expect("a signature");
        let last = if through_g { SystemV } else { Win64 };
        let bottom = jit.named_goroutine_fn("bottom", SystemV, bottom_rust).expect("a stub");
        let mut next = Box::leak(Box::new(bottom)).address();
        let mut frames = vec!["bottom".to_owned()];
        let adapt = |entry, target, address, bind: Option<Bind>| {
            // SAFETY: the address has that convention and signature.
            let adapter = unsafe {
                match bind {
                    None => jit.adapter(&signature, entry, target, address),
                    Some(bind) => jit.bound_adapter(&signature, entry, target, address, bind),
                }
            };
            let adapter = Box::leak(Box::new(adapter.expect("an adapter")));
            adapter.address()
        };
        // From the innermost piece outwards: the code, its convention, and how the adapter that
        // calls it is entered.
        let steps: &[(&str, Convention, Convention, FrameClass)] = match through_g {
            true => &[("g", SystemV, Win64, FrameClass::Win64)],
            false => &[],
        };
        let common = [
            ("f", Win64, GoAbiInternal, FrameClass::Standard),
            ("e", GoAbiInternal, GoAbi0, FrameClass::Standard),
            ("d", GoAbi0, SystemV, FrameClass::Saved),
            ("c", SystemV, SystemV, FrameClass::Leaf),
            ("b", SystemV, GoAbiInternal, FrameClass::Standard),
        ];
        if last == Win64 {
            // `bottom` is System V code, and `f` calls it in Win64.
            next = adapt(Win64, SystemV, next, None);
            frames.push("Win64 to SystemV".into());
        }
        for &(name, convention, entry, class) in steps.iter().chain(&common) {
            let code = pass_on(jit, name, convention, next);
            frames.push(name.into());
            let bind = (class == FrameClass::Leaf).then_some(Bind::Closure(5));
            next = adapt(entry, convention, code.address(), bind);
            let stub = lookup(next).expect("published");
            assert_eq!((stub.kind(), stub.frame_class()), (StubKind::Adapter, class), "{name}");
            if class != FrameClass::Leaf {
                frames.push(stub.name().into());
            }
        }
        let a = pass_on(jit, "a", GoAbiInternal, next);
        frames.extend(["a", "a"].map(String::from));
        // SAFETY: an ABIInternal function of that type.
        let entry = unsafe { a.enter::<fn(u64) -> u64>(GoAbiInternal) }.expect("an entry");
        Self { entry, frames }
    }

    fn call(&self) -> u64 {
        // SAFETY: called on a goroutine; a function of that type.
        unsafe { self.entry.call(20) }
    }
}

/// The names of the exact walk's frames.
pub fn walked() -> (Vec<String>, WalkEnd) {
    let mut names = Vec::new();
    let end = jit_frames(|frame| {
        names.push(frame.stub.name().to_owned());
        ControlFlow::Continue(())
    });
    (names, end)
}

thread_local! {
    static SEEN: Cell<Option<Seen>> = const { Cell::new(None) };
}

struct Seen {
    walked: (Vec<String>, WalkEnd),
    traceback: String,
    unwound: Vec<String>,
    rbx_of_b: Option<u64>,
}

#[test]
fn walks_and_tracebacks_see_every_adapter_with_a_frame() {
    for through_g in [true, false] {
        run(|| {
            let chain = Chain::new(through_g);
            BOTTOM.set(|| {
                let names = native_unwind::return_addresses();
                let names = names.into_iter().filter_map(lookup);
                SEEN.set(Some(Seen {
                    walked: walked(),
                    traceback: runtime::traceback().to_string(),
                    unwound: names.map(|stub| stub.name().to_owned()).collect(),
                    rbx_of_b: native_unwind::general_register_of(3, |pc| {
                        lookup(pc).is_some_and(|stub| stub.name() == "b")
                    }),
                }));
            });
            let added = if through_g { 7 } else { 6 };
            assert_eq!(chain.call(), 20 * 2 + added);
            let seen = SEEN.take().expect("the bottom was reached");
            assert_eq!(seen.walked, (chain.frames.clone(), WalkEnd::Complete));
            let mut rest = &*seen.traceback;
            for name in &chain.frames {
                let line = format!("jit {name}+");
                let at = rest.find(&line);
                let at =
                    at.unwrap_or_else(|| panic!("{name} is not in order in\n{}", seen.traceback));
                rest = &rest[at + line.len()..];
            }
            // The process's unwinder finds the same frames, and the root of the goroutine.
            let (root, unwound) = seen.unwound.split_last().expect("frames");
            assert_eq!((unwound, &**root), (&*chain.frames, "goroutine entry"));
            assert_eq!(seen.rbx_of_b, Some(KEPT));
        });
    }
}

/// The chain from `c` inwards, with a bottom that is called from ABIInternal code.
fn short_chain() -> Chain {
    let jit = Jit::new().expect("code memory");
    let signature: Signature = "fn(u64) -> u64".parse().expect("a signature");
    let bottom = jit.named_goroutine_fn("bottom", GoAbiInternal, bottom_rust).expect("a stub");
    let mut next = Box::leak(Box::new(bottom)).address();
    let mut frames = vec!["bottom".to_owned()];
    for (name, convention, entry) in
        [("e", GoAbiInternal, GoAbi0), ("d", GoAbi0, SystemV), ("b", SystemV, GoAbiInternal)]
    {
        let code = pass_on(jit, name, convention, next);
        // SAFETY: the address has that convention and signature.
        let adapter = unsafe { jit.adapter(&signature, entry, convention, code.address()) };
        next = Box::leak(Box::new(adapter.expect("an adapter"))).address();
        frames.extend([name.into(), lookup(next).expect("published").name().to_owned()]);
    }
    let a = pass_on(jit, "a", GoAbiInternal, next);
    frames.extend(["a", "a"].map(String::from));
    // SAFETY: an ABIInternal function of that type.
    let entry = unsafe { a.enter::<fn(u64) -> u64>(GoAbiInternal) }.expect("an entry");
    Chain { entry, frames }
}

#[test]
fn a_panic_passes_adapters_and_restores_saved_registers() {
    a_panic_passes(short_chain, 4);
}

#[test]
fn a_panic_passes_adapters_that_are_entered_in_win64() {
    a_panic_passes(|| Chain::new(true), 7);
    a_panic_passes(|| Chain::new(false), 6);
}

/// `added`: what the chain adds to the result of its bottom.
fn a_panic_passes(chain: impl FnOnce() -> Chain, added: u64) {
    run(|| {
        let chain = chain();
        BOTTOM.set(|| {
            let rbx = native_unwind::general_register_of(3, |pc| {
                lookup(pc).is_some_and(|stub| stub.name() == "b")
            });
            // The adapter that `b` calls is of class Saved, and `d` in it destroys rbx.
            assert_eq!(rbx, Some(KEPT));
            panic!("from the bottom");
        });
        struct Dropped<'a>(&'a Cell<bool>);
        impl Drop for Dropped<'_> {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let dropped = Cell::new(false);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _dropped = Dropped(&dropped);
            chain.call()
        }));
        let payload = caught.expect_err("it panics");
        assert_eq!(payload.downcast_ref(), Some(&"from the bottom"));
        assert!(dropped.get());
        // A second call, without a panic: the anchors must be restored.
        BOTTOM.set(|| {
            SEEN.set(Some(Seen {
                walked: walked(),
                traceback: String::new(),
                unwound: Vec::new(),
                rbx_of_b: None,
            }))
        });
        assert_eq!(chain.call(), 20 * 2 + added);
        let seen = SEEN.take().expect("the bottom was reached");
        assert_eq!(seen.walked, (chain.frames.clone(), WalkEnd::Complete));
    });
}

#[test]
fn the_exact_walk_is_right_at_every_instruction_of_adapters() {
    run(|| {
        let chain = Chain::new(true);
        BOTTOM.set(|| {});
        let traps = stepped(|| {
            chain.call();
        });
        let mut steps = BTreeSet::new();
        for trap in traps.iter().filter(|trap| trap.in_stub) {
            let stub = lookup(trap.pc).expect("the trap found it");
            if stub.kind() != StubKind::Adapter {
                continue;
            }
            steps.insert(trap.pc);
            let names: Vec<_> = trap.frames().iter().filter_map(|&pc| lookup(pc)).collect();
            let names: Vec<String> = names.iter().map(|stub| stub.name().to_owned()).collect();
            let from = match stub.frame_class() {
                // Between `b`, which calls it, and `c`.
                FrameClass::Leaf => {
                    let b = chain.frames.iter().position(|name| name == "b").expect("a frame");
                    [&[stub.name().to_owned()][..], &chain.frames[b..]].concat()
                }
                _ => {
                    let this = chain.frames.iter().position(|name| name == stub.name());
                    chain.frames[this.expect("a frame")..].to_vec()
                }
            };
            assert_eq!((names, trap.end), (from, WalkEnd::Complete), "{stub:?}");
        }
        let classes: BTreeSet<&str> =
            steps.iter().map(|&pc| lookup(pc).expect("an adapter").frame_class().name()).collect();
        assert_eq!(classes, BTreeSet::from(["leaf", "saved", "standard", "win64"]));
        assert!(steps.len() > 70, "{} instructions", steps.len());
    });
}
