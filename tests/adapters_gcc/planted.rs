//! Shows that the checks work: code with one defect is placed next to an adapter, and exactly that
//! defect must be reported. Each check of `call.rs` is seen to fail here.

use std::collections::HashSet;

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::Reg;
use footbridge::jit::{Code, FrameClass, Jit, Ops};

use crate::call::{Buffers, Caller, Ends, Failure, Kind};
use crate::observer::{Observer, Point};
use crate::text::FUNCTIONS;
use crate::{Bound, CONVENTIONS, Case, Xorshift, compile};
use support::gcc::has_gcc_and_avx2;

/// The place of a defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Between the caller and the adapter.
    Entry,
    /// Between the adapter and the callee.
    Target,
    /// After the adapter has returned. The call must not have arguments on the stack.
    Return,
}

/// A defect.
struct Plant {
    name: String,
    signature: &'static str,
    bound: Bound,
    /// Indices of [`CONVENTIONS`].
    from: usize,
    to: usize,
    at: At,
    code: Box<dyn Fn(&mut Ops)>,
    ends: Ends,
    /// The expected reports.
    expected: HashSet<Kind>,
    /// Whether the defect is only visible with [`Caller::Bare`].
    is_bare: bool,
}

const S: usize = 0;
const W: usize = 1;

fn plant(
    name: &str,
    (from, to): (usize, usize),
    signature: &'static str,
    at: At,
    expected: Kind,
    code: impl Fn(&mut Ops) + 'static,
) -> Plant {
    Plant {
        name: name.to_owned(),
        signature,
        bound: Bound::Nothing,
        from,
        to,
        at,
        code: Box::new(code),
        ends: Ends::AtEnd,
        expected: HashSet::from([expected]),
        is_bare: false,
    }
}

impl Plant {
    fn bound(self, bound: Bound) -> Plant {
        Plant { bound, ..self }
    }

    fn at_start(self) -> Plant {
        Plant { ends: Ends::AtStart, ..self }
    }

    fn bare(self) -> Plant {
        Plant { is_bare: true, ..self }
    }
}

macro_rules! code {
    ($($code:tt)*) => { |ops: &mut Ops| { dynasm!(ops; .arch x64; $($code)*); } };
}

/// Defects of arguments.
fn arguments() -> Vec<Plant> {
    use At::{Entry, Target};
    let word = 0x1234_5678_9abc_def0;
    let six = "fn(i64, i64, i64, i64, i64, i64, i16)";
    let eight = "fn(i64, i64, i64, i64, i64, i64, i64, i64)";
    vec![
        plant("swaps", (S, W), "fn(i64, i64)", Target, Kind::Argument, code!(xchg rcx, rdx)),
        plant("swaps", (W, S), "fn(i64, i64)", Target, Kind::Argument, code!(xchg rdi, rsi)),
        plant("cuts", (W, S), "fn(v256)", Target, Kind::Argument, code!(vmovaps xmm0, xmm0)),
        plant("flips", (S, W), "fn([u8; 3])", Target, Kind::Argument, code!(xor BYTE [rcx + 2], 1)),
        plant("flips", (W, S), "fn([u8; 3])", Target, Kind::Argument, code!(btc edi, 23)),
        plant("flips", (S, W), eight, Target, Kind::Argument, code!(not QWORD [rsp + 40])),
        // For a float in the place of `...`, gcc's callee reads the integer register only.
        plant(
            "flips",
            (S, W),
            "fn(i32, ..., f64)",
            Target,
            Kind::Argument,
            code!(
                xorps xmm1, xmm1
            ),
        ),
        plant("binds another", (S, W), "fn(i8)", Target, Kind::Argument, code!(not rcx))
            .bound(Bound::FirstArgument(word)),
        plant("binds another", (W, W), "fn(i8)", Target, Kind::Argument, code!(not rcx))
            .bound(Bound::FirstArgument(word)),
        plant("binds another", (W, S), "fn(i64)", Target, Kind::Closure, code!(not r10))
            .bound(Bound::Closure(word)),
        plant(
            "loses the static chain",
            (S, W),
            "fn(i64)",
            Target,
            Kind::Closure,
            code!(
                xor r10d, r10d
            ),
        ),
        plant("does not extend", (W, S), "fn(i8)", Target, Kind::Extension, code!(btc edi, 8)),
        plant("does not extend", (S, W), "fn(u16)", Target, Kind::Extension, code!(btc ecx, 31)),
        plant("does not extend", (S, S), "fn(bool)", Target, Kind::Extension, code!(btc edi, 8)),
        plant(
            "does not extend",
            (W, S),
            six,
            Target,
            Kind::Extension,
            code!(
                xor BYTE [rsp + 8 + 3], 1
            ),
        ),
        // Between equal conventions, the caller's garbage may remain, or become an extension.
        plant(
            "changes what it need not extend",
            (W, W),
            "fn(i8)",
            Target,
            Kind::Extension,
            code!(
                btc ecx, 8;
                btc ecx, 9
            ),
        ),
        plant(
            "passes a wrong count",
            (W, S),
            "fn(i32, ..., i32)",
            Target,
            Kind::VectorCount,
            code!(
                xor al, 1
            ),
        ),
        plant("misaligns", (S, W), "fn(i64)", Target, Kind::StackAlignment, code!(push r11)),
        plant("misaligns", (W, S), "fn(i64)", Target, Kind::StackAlignment, code!(push r11)),
        plant(
            "misaligns",
            (W, S),
            "fn(struct align(32) { [i64; 12] })",
            Target,
            Kind::StackAlignment,
            code!(sub rsp, 16),
        ),
        plant("misaligns", (S, W), "fn(longdouble)", Target, Kind::Alignment, code!(add rcx, 8)),
        plant(
            "misaligns",
            (S, W),
            "fn() -> complex<longdouble>",
            Target,
            Kind::Alignment,
            code!(
                add rcx, 8
            ),
        ),
        plant(
            "has no copy",
            (S, W),
            "fn(longdouble)",
            Target,
            Kind::Address,
            code!(
                xor ecx, ecx
            ),
        ),
        plant(
            "has no result",
            (S, W),
            "fn() -> [i64; 3]",
            Target,
            Kind::Address,
            code!(
                xor ecx, ecx
            ),
        ),
        plant("does not call", (S, W), "fn()", Entry, Kind::NotCalled, code!(ret)),
        plant(
            "reads after the end",
            (W, S),
            "fn([u8; 10])",
            Entry,
            Kind::Fault,
            code!(mov al, [rcx + 10]),
        ),
        plant(
            "reads before the start",
            (W, S),
            "fn([u8; 10])",
            Entry,
            Kind::Fault,
            code!(
                mov al, [rcx - 1]
            ),
        )
        .at_start(),
        plant(
            "writes before the start",
            (W, S),
            "fn([u8; 10])",
            Entry,
            Kind::Stray,
            code!(
                not BYTE [rcx - 1]
            ),
        ),
        plant(
            "writes after the end",
            (W, S),
            "fn([u8; 10])",
            Entry,
            Kind::Stray,
            code!(
                not BYTE [rcx + 10]
            ),
        )
        .at_start(),
        plant(
            "reads after the end",
            (S, W),
            eight,
            Entry,
            Kind::Fault,
            code!(mov al, [rsp + 8 + 16]),
        )
        .bare(),
        plant(
            "reads after the end",
            (W, S),
            eight,
            Entry,
            Kind::Fault,
            code!(mov al, [rsp + 8 + 64]),
        )
        .bare(),
        plant(
            "writes after the end",
            (S, W),
            eight,
            Entry,
            Kind::Fault,
            code!(mov[rsp + 8 + 16], al),
        )
        .bare(),
        plant("stops", (S, W), "fn()", Target, Kind::Fault, code!(ud2)),
        plant("stops", (W, S), "fn()", Entry, Kind::Fault, code!(int3)),
    ]
}

/// Defects of results.
fn results() -> Vec<Plant> {
    use At::Return;
    // In memory in both conventions.
    let large = "fn() -> struct { i64, i64, i64 }";
    vec![
        plant("flips", (S, W), "fn() -> i64", Return, Kind::Result, code!(xor rax, 1)),
        plant("flips", (W, S), "fn() -> u8", Return, Kind::Result, code!(xor al, 1)),
        plant("flips", (S, W), "fn() -> f32", Return, Kind::Result, code!(pcmpeqd xmm0, xmm0)),
        plant("flips", (S, W), "fn() -> [i64; 2]", Return, Kind::Result, code!(btc rdx, 63)),
        plant("flips", (S, W), "fn() -> longdouble", Return, Kind::Result, code!(fchs)),
        plant(
            "flips",
            (S, W),
            "fn() -> complex<longdouble>",
            Return,
            Kind::Result,
            code!(
                fxch st1
            ),
        ),
        plant(
            "cuts",
            (S, S),
            "fn() -> struct { v256 }",
            Return,
            Kind::Result,
            code!(vmovaps xmm0, xmm0),
        ),
        plant("flips", (S, W), large, Return, Kind::Result, code!(not BYTE [rax + 23])),
        plant("flips", (W, S), large, Return, Kind::Result, code!(not BYTE [rax])),
        plant(
            "does not extend",
            (S, W),
            "fn() -> i8",
            Return,
            Kind::ResultExtension,
            code!(
                btc eax, 8
            ),
        ),
        plant(
            "does not extend",
            (W, S),
            "fn() -> u16",
            Return,
            Kind::ResultExtension,
            code!(
                btc eax, 31
            ),
        ),
        plant(
            "has no address",
            (S, W),
            large,
            Return,
            Kind::ResultPointer,
            code!(
                xor eax, eax
            ),
        ),
        plant("has no address", (W, S), large, Return, Kind::ResultPointer, code!(inc rax)),
        plant("writes after the end", (S, W), large, Return, Kind::Fault, code!(mov[rax + 24], al)),
        plant(
            "writes after the end",
            (W, S),
            "fn() -> struct packed(1) { i64, i8 }",
            Return,
            Kind::Fault,
            code!(mov[rax + 9], al),
        ),
        plant(
            "writes before the start",
            (S, W),
            large,
            Return,
            Kind::Stray,
            code!(not BYTE [rax - 1]),
        ),
        plant(
            "writes before the start",
            (S, W),
            large,
            Return,
            Kind::Fault,
            code!(mov[rax - 1], al),
        )
        .at_start(),
        plant(
            "writes after the end",
            (W, S),
            large,
            Return,
            Kind::Stray,
            code!(not BYTE [rax + 24]),
        )
        .at_start(),
        plant("calls again", (S, W), "fn()", Return, Kind::CalledAgain, |ops| {
            let arrive = Point::Arrive.address().cast_signed();
            dynasm!(ops; .arch x64; mov r11, QWORD arrive; sub rsp, 40; call r11);
        }),
        plant("drops arguments", (S, W), "fn()", Return, Kind::StackPointer, code!(ret 8)),
        plant("drops arguments", (W, S), "fn()", Return, Kind::StackPointer, code!(ret 32)),
    ]
}

/// Defects of registers and control words, in both directions.
fn control(from: usize, to: usize) -> Vec<Plant> {
    use At::{Return, Target};
    let both = |name, kind, code: fn(&mut Ops)| {
        [Target, Return].map(|at| plant(name, (from, to), "fn(i64) -> i64", at, kind, code))
    };
    let mut plants = Vec::new();
    plants.extend(both("sets DF", Kind::DirectionFlag, code!(std)));
    // Memory below rsp is unused at a call and at a return. No call under test uses
    // denormals-are-zero, flush-to-zero and rounding in this combination.
    plants.extend(both(
        "rounds",
        Kind::Mxcsr,
        code!(
            stmxcsr [rsp - 8];
            xor DWORD [rsp - 8], 0x2000;
            ldmxcsr [rsp - 8]
        ),
    ));
    plants.extend(both(
        "rounds",
        Kind::X87Control,
        code!(
            fnstcw [rsp - 8];
            xor DWORD [rsp - 8], 0x400;
            fldcw [rsp - 8]
        ),
    ));
    plants.extend(both("leaves a number", Kind::X87Stack, code!(fld1)));
    plants.push(plant(
        "takes a number",
        (S, W),
        "fn() -> longdouble",
        Return,
        Kind::X87Stack,
        code!(
            ffree st0
        ),
    ));
    let spec = CONVENTIONS[from].spec();
    for register in spec.preserved.iter() {
        let name = format!("loses {register}");
        let clobber = move |ops: &mut Ops| match register {
            Reg::Gpr(gpr) => dynasm!(ops; .arch x64; not Rq(gpr)),
            Reg::Xmm(xmm) => {
                // The highest of the 128 preserved bits.
                dynasm!(ops
                    ; .arch x64
                    ; pextrw r11d, Rx(xmm), 7
                    ; xor r11d, 0x8000
                    ; pinsrw Rx(xmm), r11d, 7
                );
            }
            other => panic!("{other}"),
        };
        let signature = "fn(i64) -> i64";
        plants.push(plant(&name, (from, to), signature, Return, Kind::Preserved, clobber));
    }
    plants
}

/// A defect as code that continues at `to`, or calls it.
fn install(jit: Jit, plant: &Plant, is_planted: bool, to: u64) -> Code {
    let to = to.cast_signed();
    let wrong = |ops: &mut Ops| {
        if is_planted {
            (plant.code)(ops);
        }
    };
    // SAFETY: the code is defective on purpose, and the observer handles the consequences. Only the
    // call under test runs it, and nothing unwinds while it is on a stack.
    let code = unsafe {
        match plant.at {
            At::Entry | At::Target => jit.install("plant", FrameClass::Leaf, |ops| {
                wrong(ops);
                dynasm!(ops; .arch x64; mov r11, QWORD to; jmp r11);
            }),
            At::Return => jit.install("plant", FrameClass::Standard, |ops| {
                // With home slots for the register parameters of Win64.
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; sub rsp, 32
                    ; mov r11, QWORD to
                    ; call r11
                    ; leave
                );
                wrong(ops);
                dynasm!(ops; .arch x64; ret);
            }),
        }
    };
    code.expect("installed")
}

fn kinds(failures: &[Failure]) -> HashSet<Kind> {
    failures.iter().map(|failure| failure.kind).collect()
}

#[test]
fn every_check_reports_its_planted_defect() {
    if !has_gcc_and_avx2() {
        return;
    }
    let plants: Vec<Plant> =
        [arguments(), results(), control(S, W), control(W, S)].into_iter().flatten().collect();
    let mut rng = Xorshift::new(1);
    let mut cases: Vec<Case> = Vec::new();
    for plant in &plants {
        let signature = plant.signature.parse().expect("a signature");
        cases.push(Case::new(signature, plant.bound, &mut rng).expect("assignable"));
    }
    // For the two tests below.
    for signature in ["fn(i64, i64)", "fn(i64)", "fn() -> i64", "fn() -> i32"] {
        let signature = signature.parse().expect("a signature");
        cases.push(Case::new(signature, Bound::Nothing, &mut rng).expect("assignable"));
    }
    let mut buffers = Buffers::new();
    let functions = compile(&cases, &buffers);
    let of = |number: usize| &functions[FUNCTIONS * number..][..FUNCTIONS];
    let jit = Jit::new().expect("code memory");
    let observer = Observer::new();

    let mut noticed = HashSet::new();
    for (number, (plant, case)) in plants.iter().zip(&cases).enumerate() {
        let Plant { name, from, to, at, .. } = plant;
        let callers = match plant.is_bare {
            true => vec![Caller::Bare],
            false => vec![Caller::Gcc(of(number)[*from]), Caller::Bare],
        };
        // Without the defect, there must be no report.
        for (is_planted, caller) in
            callers.into_iter().flat_map(|caller| [(false, caller), (true, caller)])
        {
            let arrive = Point::Arrive.address();
            let target = match at {
                At::Target => Some(install(jit, plant, is_planted, arrive)),
                At::Entry | At::Return => None,
            };
            let target = target.as_ref().map_or(arrive, |code| code.address() as u64);
            let adapter = case.adapter(jit, *from, *to, target).expect("an adapter");
            let adapter_address = adapter.address() as u64;
            let entry = match at {
                At::Entry | At::Return => Some(install(jit, plant, is_planted, adapter_address)),
                At::Target => None,
            };
            let mut call = case.call(*from, *to, of(number));
            call.code = entry.as_ref().map_or(adapter_address, |code| code.address() as u64);
            call.ends = plant.ends;
            let what = format!(
                "{name}, {at:?}, {} -> {}, {caller:?}, planted: {is_planted}: {}",
                CONVENTIONS[*from], CONVENTIONS[*to], plant.signature
            );
            let failures = call.run(&observer, &mut buffers, caller, &what);
            let expected = if is_planted { plant.expected.clone() } else { HashSet::new() };
            assert_eq!(kinds(&failures), expected, "{what}\n{failures:#?}");
            noticed.extend(expected);
        }
    }

    // A caller and a callee that do not match the assignment.
    for (number, other, expected) in [
        (plants.len(), plants.len() + 1, Kind::Caller),
        (plants.len() + 2, plants.len() + 3, Kind::Callee),
    ] {
        let mut call = cases[number].call(S, S, of(number));
        let mut caller = Caller::Gcc(of(number)[S]);
        match expected {
            Kind::Caller => caller = Caller::Gcc(of(other)[S]),
            _ => call.callee = of(other)[2 + S],
        }
        let failures = call.run(&observer, &mut buffers, caller, "the functions of another case");
        assert!(kinds(&failures).contains(&expected), "{failures:#?}");
        noticed.insert(expected);
    }
    // `Kind::Refused` needs no planted defect: without an adapter there is no code to test.
    let all = HashSet::from(Kind::ALL);
    let never: Vec<&Kind> = all.difference(&noticed).collect();
    assert_eq!(never, [&Kind::Refused]);
}
