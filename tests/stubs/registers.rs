//! The effect of each kind of stub on the registers, the control words of the CPU and the caller's
//! stack, and the state that its target finds.
//!
//! A probe (`probe`) calls the stub with a known value in every register. Afterwards, only the
//! state that the convention of the entry side lets a callee change may differ. The target is a
//! capture: it stores the state that it finds, and destroys all state that *its* convention lets it
//! destroy, so that a stub that relies on more is detected.
//!
//! Each check is seen to fail: the `planted` tests destroy one piece of state after another, and
//! expect exactly that piece to be reported. The probe destroys it after the stub has returned and
//! before the registers are stored, so that no stub can repair it.
//!
//! Not tested: a red zone, because a caller has none during a call, and stubs are only entered by
//! calls. Results after the first, which no stub supports, are refused (the last test).

#![allow(unsafe_code, reason = "calls emitted code")]

use super::probe;
use std::cell::Cell;
use std::time::Duration;
use support::native_unwind;
use support::runs::{config, wait_for};

use super::probe::place_of;
use super::probe::{
    Arrival, Capture, Change, Probe, Raw, State, current_g, may_change, must_keep, owned_bytes,
    set_fp_control, values, with_target,
};
use footbridge::abi::{AssignError, Assignment, Convention, Gpr, RegSet, Signature, Xmm};
use footbridge::jit::{Code, FrameClass, GRANULE_BYTES, Jit, JitError, StubInfo, StubKind, lookup};
use footbridge::runtime::{
    self, Builder, GoroutineFn, WaitReason, current, go, gopark, goready, gosched, systemstack,
};

const CONVENTIONS: [Convention; 2] = [Convention::SystemV, Convention::GoAbiInternal];

/// No value, one register, all registers of a class, narrow types, and enough parameters that each
/// convention passes some on the stack, among them narrow ones.
const SIGNATURES: [&str; 13] = [
    "fn()",
    "fn() -> f64",
    "fn(u64) -> u64",
    "fn(i64, ptr, isize, usize, u64, i64) -> i64",
    "fn(f64, f64, f64, f64, f64, f64, f64, f64) -> f64",
    "fn(f32, f64, f32) -> f32",
    "fn(i8, u8, i16, u16, i32, u32, bool, f32) -> i8",
    "fn(bool, i8, i64, bool) -> bool",
    "fn(u16, f32, i16) -> u16",
    "fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> u32",
    "fn(i8, u8, i8, u16, i16, i8, i8, u8, u16, i16, i8, bool, i32, u32) -> i16",
    "fn(u8, f64, i16, f32, u32, i8, u16, bool, i64, i8, f64, u8, i8, ptr, f32) -> u8",
    "fn(f64, f32, f64, f32, f64, f32, f64, f32, f32, f64, f64, f64, f64, f64, f64, f32, f64, i8) -> f32",
];

/// The state of the Rust closure, recognisable at the target.
const MAGIC: u64 = 0x00c1_05e0_0b1e_c7ed;

/// Runs `f` on one processor, without time slices: the end of one would let other goroutines run at
/// the poll of a stub.
fn run<R>(f: impl FnOnce() -> R) -> R {
    config(1).time_slice(None).run(f).expect("the run starts")
}

fn jit() -> Jit {
    let jit = Jit::new().expect("code memory");
    assert!(jit.is_near_text());
    jit
}

fn parse(text: &str) -> Signature {
    text.parse().expect("a signature")
}

/// A probe that calls a stub of this convention with these arguments.
fn probe(
    jit: &Jit,
    stub: usize,
    convention: Convention,
    entry: &Assignment,
    arguments: &[u64],
    odd: bool,
    planted: Option<Change>,
) -> Probe {
    let mut probe = Probe::new(jit, stub, odd, planted);
    if convention == Convention::GoAbiInternal {
        probe.before().set_gpr(Gpr::R14, current_g(jit));
        probe.before().set_xmm(Xmm::XMM15, [0, 0]);
    }
    probe.put_arguments(entry, arguments);
    probe
}

/// Runs a probe as JIT code on this goroutine.
fn run_entered(probe: &mut Probe) {
    // SAFETY: a probe is a System V function without arguments or results.
    let entry = unsafe { probe.code().enter::<fn()>(Convention::SystemV) }.expect("an entry");
    // SAFETY: called on a goroutine.
    unsafe { entry.call() };
}

/// Checks one goroutine-function stub, and returns its changes.
fn check_goroutine_fn(
    jit: &Jit,
    convention: Convention,
    text: &str,
    odd: bool,
    planted: Option<Change>,
) -> Vec<Change> {
    let signature = parse(text);
    let mut with_context = signature.params().to_vec();
    with_context.push(footbridge::abi::Type::Ptr);
    let callee = Signature::new(with_context, signature.results());
    let (arguments, results) = (values(signature.params(), 11), values(signature.results(), 12));
    let target = Capture::new(jit, Convention::SystemV, &callee, &results);
    let stub = with_target(&signature, target.address(), || {
        jit.named_goroutine_fn("bound", convention, Raw(MAGIC)).expect("a stub")
    });
    let entry = convention.assign(&signature).expect("assignable");
    let mut probe = probe(jit, stub.address(), convention, &entry, &arguments, odd, planted);
    run_entered(&mut probe);

    assert_eq!(target.hits(), 1);
    let caller = *probe.before();
    let arrival = Arrival { caller: &caller, g: current_g(jit), values: &arguments };
    assert_eq!(target.arrival(&arrival), [], "at the target of {convention} {text}");
    // SAFETY: the stub was bound to a leaked `Raw`.
    assert_eq!(unsafe { *(target.last_param() as *const u64) }, MAGIC);
    assert_eq!(target.at_entry().gpr(Gpr::RBP), probe.call_rsp() - 16, "the frame contract");

    let mut changes = probe.changes(may_change(convention), owned_bytes(&entry));
    changes.extend(probe.wrong_results(&entry, &results));
    changes
}

#[test]
fn goroutine_functions_change_what_the_convention_allows() {
    run(|| {
        let jit = jit();
        for convention in CONVENTIONS {
            for text in SIGNATURES {
                // Go aligns its stack only to 8 bytes, so both remainders occur.
                for odd in [false, true] {
                    if odd && convention == Convention::SystemV {
                        continue;
                    }
                    let changes = check_goroutine_fn(&jit, convention, text, odd, None);
                    assert_eq!(changes, [], "{convention} {text}, odd: {odd}");
                }
            }
        }
    });
}

#[test]
fn goroutine_functions_bound_to_closures_pass_narrow_values() {
    thread_local!(static SEEN: Cell<[u64; 13]> = const { Cell::new([0; 13]) });
    #[expect(clippy::too_many_arguments, reason = "one parameter of each type")]
    fn target(
        a: i8,
        b: u8,
        c: i16,
        d: u16,
        e: i32,
        f: u32,
        g: bool,
        h: f32,
        i: f64,
        j: i64,
        k: u8,
        l: i8,
    ) -> i16 {
        let flags: u64;
        // SAFETY: pushes and pops one word.
        unsafe { std::arch::asm!("pushfq", "pop {}", out(reg) flags) };
        SEEN.set([
            a as u8 as u64,
            b.into(),
            c as u16 as u64,
            d.into(),
            e as u32 as u64,
            f.into(),
            g.into(),
            h.to_bits().into(),
            i.to_bits(),
            j as u64,
            k.into(),
            l as u8 as u64,
            flags >> 10 & 1,
        ]);
        -12345
    }
    let signature = parse("fn(i8, u8, i16, u16, i32, u32, bool, f32, f64, i64, u8, i8) -> i16");
    run(|| {
        let jit = jit();
        for convention in CONVENTIONS {
            let stub: GoroutineFn =
                jit.named_goroutine_fn("closure", convention, target).expect("a stub");
            let arguments = values(signature.params(), 21);
            let entry = convention.assign(&signature).expect("assignable");
            let mut probe =
                probe(&jit, stub.address(), convention, &entry, &arguments, false, None);
            run_entered(&mut probe);
            let seen = SEEN.take();
            assert_eq!(seen[..12], arguments, "{convention}");
            assert_eq!(seen[12], 0, "DF");
            // LLVM does not extend the result of an `extern "C"` function, whatever its attributes.
            assert_eq!(probe.result(&entry), u64::from(-12345i16 as u16));
            assert_eq!(probe.changes(may_change(convention), owned_bytes(&entry)), []);
        }
    });
}

/// Checks one typed entry stub. Native code calls it, and its target has the convention
/// `convention`.
fn check_enter(
    jit: &Jit,
    convention: Convention,
    text: &str,
    planted: Option<Change>,
) -> Vec<Change> {
    let signature = parse(text);
    let (arguments, results) = (values(signature.params(), 31), values(signature.results(), 32));
    let target = Capture::new(jit, convention, &signature, &results);
    let stub = with_target(&signature, 0, || {
        // SAFETY: the capture has this convention and signature.
        unsafe { target.code().enter::<Raw>(convention) }.expect("a stub")
    });
    let entry = Convention::SystemV.assign(&signature).expect("assignable");
    let mut probe =
        probe(jit, stub.address(), Convention::SystemV, &entry, &arguments, false, planted);
    // SAFETY: called on a goroutine; the registers hold arguments of the stub's signature.
    unsafe { probe.run() };

    assert_eq!(target.hits(), 1);
    let caller = *probe.before();
    let arrival = Arrival { caller: &caller, g: current_g(jit), values: &arguments };
    assert_eq!(target.arrival(&arrival), [], "at the target of {convention} {text}");
    assert_eq!(target.at_entry().gpr(Gpr::RBP), probe.call_rsp() - 16, "the frame contract");

    let mut changes = probe.changes(may_change(Convention::SystemV), owned_bytes(&entry));
    changes.extend(probe.wrong_results(&entry, &results));
    changes
}

#[test]
fn entries_change_what_system_v_allows() {
    run(|| {
        let jit = jit();
        for convention in CONVENTIONS {
            for text in SIGNATURES {
                assert_eq!(check_enter(&jit, convention, text, None), [], "{convention} {text}");
            }
        }
    });
}

/// Checks one spawn stub, then lets the goroutine run, and checks the entry it starts in.
fn check_spawn(
    jit: &Jit,
    convention: Convention,
    text: &str,
    odd: bool,
    planted: Option<Change>,
) -> Vec<Change> {
    let signature = Signature::new(parse(text).params(), []);
    let arguments = values(signature.params(), 41);
    let target = Capture::new(jit, convention, &signature, &[]);
    // SAFETY: the capture has this convention and signature, and only stores its arguments.
    let stub = unsafe { jit.spawn_fn(convention, &signature, target.code()) }.expect("a stub");
    let entry = convention.assign(&signature).expect("assignable");
    let mut probe = probe(jit, stub.address(), convention, &entry, &arguments, odd, planted);
    run_entered(&mut probe);
    let changes = probe.changes(may_change(convention), owned_bytes(&entry));

    assert_eq!(target.hits(), 0, "the goroutine was started, but does not run yet");
    wait_for("it runs", || target.hits() > 0);
    // The goroutine runs in the FP control state of the thread, which this test has restored.
    let mut native = State::distinct(0);
    native.set_mxcsr(probe::NATIVE_FP_CONTROL.0);
    native.set_x87_control(probe::NATIVE_FP_CONTROL.1);
    let g = target.at_entry().gpr(Gpr::R14);
    if convention == Convention::GoAbiInternal {
        assert!(
            g != 0 && g != current_g(jit) && g.is_multiple_of(64),
            "{g:#x} must be another goroutine"
        );
    }
    let arrival = Arrival { caller: &native, g, values: &arguments };
    assert_eq!(target.arrival(&arrival), [], "at the target of {convention} {text}");
    changes
}

#[test]
fn spawns_change_what_the_convention_allows() {
    run(|| {
        let jit = jit();
        for convention in CONVENTIONS {
            for text in SIGNATURES {
                for odd in [false, true] {
                    if odd && convention == Convention::SystemV {
                        continue;
                    }
                    let changes = check_spawn(&jit, convention, text, odd, None);
                    assert_eq!(changes, [], "{convention} {text}, odd: {odd}");
                }
            }
        }
    });
}

/// All state that can be destroyed: what the convention preserves, and the first word above the
/// area that the callee owns.
fn plantable(convention: Convention, text: &str) -> Vec<Change> {
    let signature = parse(text);
    let entry = convention.assign(&signature).expect("assignable");
    let above = owned_bytes(&entry).div_ceil(8) as usize;
    let mut all = must_keep(convention);
    all.extend([Change::StackWord(above), Change::StackWord(probe::STACK_WORDS - 1)]);
    all
}

const PLANTED_SIGNATURE: &str = "fn(i64, u8, f64, i16, i8, u64, i64, i64, u8, i8, u16) -> i32";

#[test]
fn planted_changes_are_reported_exactly() {
    run(|| {
        let jit = jit();
        let text = PLANTED_SIGNATURE;
        for convention in CONVENTIONS {
            let all = plantable(convention, text);
            let kept = if convention == Convention::SystemV { 7 } else { 4 };
            assert_eq!(all.len(), kept + 4 + 2, "{all:?}");
            for planted in all {
                let plant = Some(planted);
                let changes = check_goroutine_fn(&jit, convention, text, false, plant);
                assert_eq!(changes, [planted], "{convention} goroutine function");
                let changes = check_spawn(&jit, convention, text, false, plant);
                assert_eq!(changes, [planted], "{convention} spawn");
            }
            // The entry side of an entry stub is System V.
            for planted in plantable(Convention::SystemV, text) {
                let changes = check_enter(&jit, convention, text, Some(planted));
                assert_eq!(changes, [planted], "enter, target {convention}");
            }
            // A result that is lost.
            for text in ["fn(u8) -> i8", "fn() -> f32"] {
                let first =
                    convention.assign(&parse(text)).expect("assignable").results()[0].clone();
                let planted = match place_of(&first) {
                    footbridge::abi::Place::Reg(footbridge::abi::Reg::Gpr(r)) => Change::Gpr(r),
                    footbridge::abi::Place::Reg(footbridge::abi::Reg::Xmm(r)) => Change::Xmm(r),
                    other => panic!("{other}"),
                };
                let changes = check_goroutine_fn(&jit, convention, text, false, Some(planted));
                assert_eq!(changes, [Change::Result(0)], "{convention} {text}");
            }
        }
    });
}

/// The same for the checks at a target: a captured state is changed at one place after another.
#[test]
fn wrong_state_at_a_target_is_reported() {
    run(|| {
        let jit = jit();
        for convention in CONVENTIONS {
            let signature = parse(PLANTED_SIGNATURE);
            let arguments = values(signature.params(), 31);
            let target = Capture::new(&jit, convention, &signature, &[7]);
            let stub = with_target(&signature, 0, || {
                // SAFETY: the capture has this convention and signature.
                unsafe { target.code().enter::<Raw>(convention) }.expect("a stub")
            });
            let system_v = Convention::SystemV;
            let entry = system_v.assign(&signature).expect("assignable");
            let mut probe = probe(&jit, stub.address(), system_v, &entry, &arguments, false, None);
            // SAFETY: called on a goroutine; the registers hold arguments of the stub's signature.
            unsafe { probe.run() };
            let caller = *probe.before();
            let g = current_g(&jit);
            let mismatches = |change: &dyn Fn(&mut State)| {
                let mut found = target.at_entry();
                change(&mut found);
                target.mismatches(&found, &Arrival { caller: &caller, g, values: &arguments })
            };
            assert_eq!(mismatches(&|_| {}), []);
            assert_eq!(mismatches(&State::set_df), [Change::Df]);
            assert_eq!(mismatches(&|s| s.set_mxcsr(0x1f80)), [Change::Mxcsr]);
            assert_eq!(mismatches(&|s| s.set_x87_control(0x37f)), [Change::X87Control]);
            assert_eq!(mismatches(&State::fill_x87), [Change::X87Stack]);
            let off = |s: &mut State, n| s.set_gpr(Gpr::RSP, s.gpr(Gpr::RSP) + n);
            assert_eq!(mismatches(&|s| off(s, 4)), [Change::Alignment]);
            let r14 = mismatches(&|s| s.set_gpr(Gpr::R14, g + 64));
            let xmm15 = mismatches(&|s| s.set_xmm(Xmm::XMM15, [0, 1]));
            if convention == Convention::GoAbiInternal {
                assert_eq!(r14, [Change::Gpr(Gpr::R14)]);
                assert_eq!(xmm15, [Change::Xmm(Xmm::XMM15)]);
                // u8 in rbx: the bits above it are undefined.
                assert_eq!(mismatches(&|s| s.set_gpr(Gpr::RBX, s.gpr(Gpr::RBX) ^ 0x100)), []);
                let changed = mismatches(&|s| s.set_gpr(Gpr::RBX, s.gpr(Gpr::RBX) ^ 0x80));
                assert_eq!(changed, [Change::Param(1)]);
            } else {
                assert_eq!((r14, xmm15), (vec![], vec![]));
                assert_eq!(mismatches(&|s| off(s, 8)), [Change::Alignment]);
                // u8 in rsi: the caller extends it to 32 bits only.
                assert_eq!(mismatches(&|s| s.set_gpr(Gpr::RSI, s.gpr(Gpr::RSI) ^ 1 << 32)), []);
                let changed = mismatches(&|s| s.set_gpr(Gpr::RSI, s.gpr(Gpr::RSI) ^ 0x100));
                assert_eq!(changed, [Change::Param(1)]);
            }
            let changed = mismatches(&|s| s.set_xmm(Xmm::XMM0, [0, 0]));
            assert_eq!(changed, [Change::Param(2)]);
        }
    });
}

/// The stub of this kind on the current stack.
fn stub_on_stack(kind: StubKind) -> StubInfo {
    let pcs = native_unwind::return_addresses();
    let mut stubs = pcs.into_iter().filter_map(lookup);
    stubs.find(|stub| stub.kind() == kind).expect("the unwinder sees it")
}

/// systemstack(argument, function, rsp) is only called by Rust code; here, a probe calls it.
#[test]
fn systemstack_changes_what_system_v_allows() {
    run(|| {
        let jit = jit();
        let stub = systemstack(|| stub_on_stack(StubKind::Systemstack)).start();
        let convention = Convention::SystemV;
        let target = Capture::new(&jit, convention, &parse("fn(ptr)"), &[]);
        let mut stack = vec![0u128; 64].into_boxed_slice();
        let top = stack.as_mut_ptr_range().end as u64;
        let entry = convention.assign(&parse("fn(ptr, ptr, ptr)")).expect("assignable");
        let check = |planted| {
            let arguments = [0x1234_5678_9abc, target.address() as u64, top - 256];
            let mut probe = probe(&jit, stub, convention, &entry, &arguments, false, planted);
            run_entered(&mut probe);
            let caller = *probe.before();
            let arrival = Arrival { caller: &caller, g: 0, values: &arguments[..1] };
            assert_eq!(target.arrival(&arrival), []);
            let at_entry = target.at_entry();
            // 16 bytes stay free at the end of the system stack.
            assert_eq!(at_entry.gpr(Gpr::RSP), top - 256 - 16 - 8, "on the other stack");
            assert_eq!(at_entry.gpr(Gpr::RBP), probe.call_rsp() - 16, "rbp stays in the first");
            probe.changes(may_change(convention), owned_bytes(&entry))
        };
        assert_eq!(check(None), []);
        for planted in must_keep(convention) {
            assert_eq!(check(Some(planted)), [planted]);
        }
        // Only the word below the given top was written.
        drop(stack);
    });
}

/// A probe of a Rust function that switches. It checks the function as a whole: the stub, and the
/// registers that the compiler saves because the call site declares them as clobbered.
struct SwitchProbe {
    probe: Probe,
}

impl SwitchProbe {
    fn new(
        jit: &Jit,
        function: extern "C-unwind" fn(),
        seed: u64,
        planted: Option<Change>,
    ) -> Self {
        let mut probe = Probe::new(jit, function as *const () as usize, false, planted);
        *probe.before() = State::distinct(seed);
        Self { probe }
    }

    /// Switches once, and returns the changes.
    fn switch(&mut self) -> Vec<Change> {
        // SAFETY: the function takes no arguments.
        unsafe { self.probe.run() };
        self.probe.changes(may_change(Convention::SystemV), 0)
    }
}

thread_local!(static SWITCHES: Cell<u32> = const { Cell::new(0) });

fn count_switch() {
    SWITCHES.set(SWITCHES.get() + 1);
}

extern "C-unwind" fn yields() {
    gosched();
    count_switch();
}

/// Parks. A goroutine that is started for it makes this one ready.
extern "C-unwind" fn park() {
    let parked = current();
    // SAFETY: `goready` is called once, by the goroutine that `unlock` starts.
    unsafe {
        gopark(WaitReason::Other, || {
            drop(go(move || {
                // Other goroutines run in between, with other values in their registers.
                gosched();
                goready(parked);
            }));
        });
    }
    count_switch();
}

/// Sleeps. No other goroutine is runnable, so the thread enters its scheduler and waits there.
extern "C-unwind" fn sleep() {
    runtime::sleep(Duration::from_millis(1));
    count_switch();
}

/// Two goroutines with different values in all registers, between which `function` switches.
fn check_switches(
    function: extern "C-unwind" fn(),
    migratable: bool,
    planted: Option<Change>,
) -> Vec<Vec<Change>> {
    const ROUNDS: usize = 3;
    run(|| {
        let jit = jit();
        SWITCHES.set(0);
        // A switch leaves MXCSR and the x87 control word to the thread, so a goroutine that wants
        // others has to set them after each park. Here all goroutines of the run have the same, and
        // the test checks that the stubs do not change them.
        // SAFETY: only integers are computed until the control words are restored.
        unsafe { set_fp_control((probe::MXCSR, probe::X87_CONTROL)) };
        let side = |seed, planted| {
            move || {
                (0..ROUNDS)
                    .map(|_| SwitchProbe::new(&jit, function, seed, planted).switch())
                    .collect::<Vec<_>>()
            }
        };
        let (mine, other) = if migratable {
            // SAFETY: this run has one thread.
            unsafe {
                (
                    Builder::new().go_migratable(side(71, planted)).expect("memory"),
                    Builder::new().go_migratable(side(72, None)).expect("memory"),
                )
            }
        } else {
            (go(side(71, planted)), go(side(72, None)))
        };
        let mine = mine.join().expect("no panic");
        let other = other.join().expect("no panic");
        // SAFETY: the control words of the thread at its start.
        unsafe { set_fp_control(probe::NATIVE_FP_CONTROL) };
        assert_eq!(SWITCHES.get() as usize, 2 * ROUNDS);
        assert_eq!(other, vec![vec![]; ROUNDS], "the other side");
        mine
    })
}

type SwitchKind = (&'static str, extern "C-unwind" fn(), bool);

const SWITCH_KINDS: [SwitchKind; 6] = [
    ("goswitch by gosched", yields, false),
    ("mcall and gogo by gosched of a migratable goroutine", yields, true),
    ("goswitch by gopark", park, false),
    ("mcall and gogo by gopark of a migratable goroutine", park, true),
    ("mcall, the idle thread, and gogo", sleep, false),
    ("the same of a migratable goroutine", sleep, true),
];

#[test]
fn switches_keep_what_system_v_preserves() {
    for (name, function, migratable) in SWITCH_KINDS {
        let changes = check_switches(function, migratable, None);
        assert!(changes.iter().all(Vec::is_empty), "{name}: {changes:?}");
    }
}

#[test]
fn changes_planted_at_a_switch_are_reported_exactly() {
    for (name, function, migratable) in &SWITCH_KINDS[..4] {
        for planted in must_keep(Convention::SystemV) {
            let changes = check_switches(*function, *migratable, Some(planted));
            assert!(changes.iter().all(|c| *c == [planted]), "{name}, {planted}: {changes:?}");
        }
    }
}

/// gogo alone: from a probe to a capture and back.
///
/// The registers that it uses are in `src/jit/stubs/switch/x86_64.rs`. The Gobuf is pc, sp, fp,
/// base.
#[test]
fn gogo_changes_the_four_registers_of_a_gobuf_and_rcx() {
    run(|| {
        let jit = jit();
        let entry = stub_on_stack(StubKind::GoroutineEntry);
        // The switch stubs are in the code of their frame class, which is a sixty-fourth of the
        // arena. Two runs that start at once create two sets of stubs. Either may be used.
        let switch = |name: &str| {
            let around = (0..(16 << 20) / GRANULE_BYTES).flat_map(|n| {
                let away = n * GRANULE_BYTES;
                [entry.start() - away, entry.start() + away]
            });
            let mut stubs = around.filter_map(lookup);
            let found = stubs.find(|s| s.kind() == StubKind::Switch && s.name() == name);
            found.expect("a switch stub of that name").start()
        };
        let capture = Capture::new(&jit, Convention::SystemV, &parse("fn()"), &[]);
        let mut other = vec![0u128; 64].into_boxed_slice();
        let sp = other.as_mut_ptr_range().end as u64 - 512;
        let values = [capture.address() as u64, sp, 0x0bad_0b90, 0x0bad_0b3c];
        let to = values.map(Cell::new);
        let from: &[Cell<u64>; 4] = &[const { Cell::new(0) }; 4];
        // The capture returns on the other stack, to the code that switches back.
        let back = jump_back(&jit, from);
        // SAFETY: inside of the allocation.
        unsafe { (sp as *mut u64).write(back.address() as u64) };
        let trampoline = jump_to(&jit, switch("gogo"), from);
        let mut probe = Probe::new(&jit, trampoline.address(), false, None);
        probe.before().set_gpr(Gpr::RDI, from.as_ptr() as u64);
        probe.before().set_gpr(Gpr::RSI, to.as_ptr() as u64);
        // SAFETY: the trampoline completes the Gobuf that it leaves and later resumes.
        unsafe { probe.run() };
        assert_eq!(capture.hits(), 1);
        let (before, found) = (*probe.before(), capture.at_entry());
        let differ = |r: &Gpr| found.gpr(*r) != before.gpr(*r);
        // The trampoline uses rcx.
        let changed: Vec<_> = Gpr::ALL.into_iter().filter(differ).collect();
        assert_eq!(changed, [Gpr::RCX, Gpr::RBX, Gpr::RSP, Gpr::RBP]);
        assert!(Xmm::ALL.into_iter().all(|x| found.xmm(x) == before.xmm(x)));
        let loaded = [Gpr::RSP, Gpr::RBP, Gpr::RBX].map(|r| found.gpr(r));
        assert_eq!(loaded, [values[1], values[2], values[3]]);
        assert_eq!(
            to.map(Cell::into_inner),
            [0, values[1], values[2], values[3]],
            "gogo clears the pc"
        );
        let arrival = Arrival { caller: &before, g: 0, values: &[] };
        let control = capture.arrival(&arrival);
        assert!(control.iter().all(|c| *c == Change::Alignment), "{control:?}");
        let saved: Vec<_> = from.iter().map(Cell::get).collect();
        assert_eq!(saved[1], probe.call_rsp() - 8);
        assert_eq!(saved[2], before.gpr(Gpr::RBP));
        assert_eq!(saved[3], before.gpr(Gpr::RBX));
        // After the switch back, all that System V preserves is unchanged.
        assert_eq!(probe.changes(may_change(Convention::SystemV), 0), []);
    });
}

/// A System V function that leaves through a switch stub, and returns when its Gobuf is resumed. It
/// saves the registers itself, since gogo does not.
fn jump_to(jit: &Jit, stub: usize, from: &[Cell<u64>; 4]) -> Code {
    use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
    let at = from.as_ptr() as i64;
    // SAFETY: rsp points to the return address throughout, and the code makes no call.
    let code = unsafe {
        jit.install("jump", FrameClass::Leaf, |ops| {
            dynasm!(ops
                ; .arch x64
                ; mov rcx, QWORD at
                ; mov [rcx + 8], rsp
                ; mov [rcx + 16], rbp
                ; mov [rcx + 24], rbx
                ; lea rax, [>resumed]
                ; mov [rcx], rax
                ; mov rcx, rax
                ; mov rax, QWORD pattern_of_rax()
                ; jmp extern stub
                ; resumed:
                ; ret
            );
        })
    };
    code.expect("it installs")
}

/// The value that a probe loads into rax. The trampoline restores it.
fn pattern_of_rax() -> i64 {
    State::distinct(1).gpr(Gpr::RAX) as i64
}

/// Resumes a Gobuf. A capture returns to this code on the other stack.
fn jump_back(jit: &Jit, from: &[Cell<u64>; 4]) -> Code {
    use dynasmrt::{DynasmApi, dynasm};
    let at = from.as_ptr() as i64;
    // SAFETY: entered by a `ret`, and left by a jump.
    let code = unsafe {
        jit.install("back", FrameClass::Leaf, |ops| {
            dynasm!(ops
                ; .arch x64
                ; mov rax, QWORD at
                ; mov rsp, [rax + 8]
                ; mov rbp, [rax + 16]
                ; mov rbx, [rax + 24]
                ; jmp QWORD [rax]
            );
        })
    };
    code.expect("it installs")
}

/// ABIInternal returns several results in registers. A stub has System V on one of its sides, which
/// returns one, so such a stub is refused.
#[test]
fn several_results_are_refused() {
    run(|| {
        let jit = jit();
        let signature = parse("fn(i64) -> (i64, f64)");
        let target = Capture::new(&jit, Convention::GoAbiInternal, &parse("fn(i64) -> i64"), &[0]);
        with_target(&signature, target.address(), || {
            let go = Convention::GoAbiInternal;
            let refused = jit.named_goroutine_fn("two results", go, Raw(0)).err();
            assert!(
                matches!(refused, Some(JitError::Assign(AssignError::OneResult { .. }))),
                "{refused:?}"
            );
            // SAFETY: refused before a stub is created.
            let refused = unsafe { target.code().enter::<Raw>(go) }.err();
            assert!(
                matches!(refused, Some(JitError::Assign(AssignError::OneResult { .. }))),
                "{refused:?}"
            );
            // SAFETY: refused before a stub is created.
            let refused = unsafe { jit.spawn_fn(go, &signature, target.code()) }.err();
            assert!(matches!(refused, Some(JitError::Signature { .. })), "{refused:?}");
        });
    });
}

#[test]
fn register_sets_match_the_abi_documents() {
    // psABI figure 3.4; Go's `abi-internal.md`.
    let system_v = [Gpr::RBX, Gpr::RSP, Gpr::RBP, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15];
    let kept = |convention| RegSet::ALL_AMD64.minus(may_change(convention));
    assert_eq!(kept(Convention::SystemV), RegSet::of_gprs(&system_v));
    let go = RegSet::of_gprs(&[Gpr::RSP, Gpr::RBP, Gpr::R14]);
    let go = go.union(RegSet::of_xmms(&[Xmm::XMM15]));
    assert_eq!(kept(Convention::GoAbiInternal), go);
}
