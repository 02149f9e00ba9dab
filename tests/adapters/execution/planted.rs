//! Defects, and the reports that they must cause.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::collections::BTreeSet;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr, Language, Narrow, Passing, Place, Reg, ValueIndex};
use footbridge::jit::{Bind, Code, FrameClass, Ops};
use support::child;

use super::bench::{Bench, Case, with_bench};
use super::{CONVENTIONS, parse, seed};
use crate::carry::{Caller, Change, closure_register, data_bytes};
use crate::plant;

/// A defect: the code that causes it, and the report that is expected.
struct Plant {
    name: String,
    wrong: Vec<Change>,
    cause: Box<dyn Fn(&mut Ops)>,
}

fn plant(
    name: impl Into<String>,
    wrong: impl Into<Vec<Change>>,
    cause: impl Fn(&mut Ops) + 'static,
) -> Plant {
    Plant { name: name.into(), wrong: wrong.into(), cause: Box::new(cause) }
}

/// An MXCSR and an x87 control word that no caller of `carry` has.
const PLANTED_MXCSR: u32 = 0x3f80;
const PLANTED_X87_CONTROL: u16 = 0x0e7f;

/// The distance from rsp to the area at the start of a callee, and after the return to a caller.
const AT_CALLEE: i32 = 8;
const AT_CALLER: i32 = 0;

/// Defects of DF, the control words and the x87 stack, on either side.
fn control_defects() -> [Plant; 4] {
    [
        plant("DF", [Change::Df], |ops| dynasm!(ops; .arch x64; std)),
        plant("MXCSR", [Change::Mxcsr], |ops| plant::set_mxcsr(ops, PLANTED_MXCSR)),
        plant("x87 control word", [Change::X87Control], |ops| {
            plant::set_x87_control(ops, PLANTED_X87_CONTROL);
        }),
        plant("x87 stack", [Change::X87Stack], |ops| dynasm!(ops; .arch x64; fld1)),
    ]
}

/// Defects of the pinned registers of a convention.
fn pin_defects(convention: Convention) -> Vec<Plant> {
    let pinned = convention.spec().pinned.iter().map(|&(register, _)| {
        let wrong = match register {
            Reg::Gpr(r) => Change::Gpr(r),
            Reg::Xmm(x) => Change::Xmm(x),
            other => panic!("not a register of this machine: {other}"),
        };
        plant(register.to_string(), [wrong], move |ops| plant::clobber(ops, register))
    });
    pinned.collect()
}

/// All defects at the start of a callee.
fn arrival_defects(case: &Case) -> Vec<Plant> {
    let [_, to] = case.conventions();
    let mut plants = Vec::from(control_defects());
    plants.extend(pin_defects(to));
    let params = case.target.params();
    for (i, value) in params.iter().enumerate() {
        for place in plant::places(value) {
            let wrong = [Change::Value(ValueIndex::Param(i))];
            plants.push(plant(format!("low bit of {place}"), wrong, move |ops| {
                plant::flip(ops, place, AT_CALLEE, 0);
            }));
        }
    }
    let first = |n: usize| plant::places(&params[n])[0];
    // The first four parameters are two pairs of one type each.
    for (a, b) in [(0, 1), (2, 3)] {
        let wrong = [a, b].map(|n| Change::Value(ValueIndex::Param(n)));
        let [a, b] = [a, b].map(first);
        plants.push(plant(format!("swapped {a}, {b}"), wrong, move |ops| {
            plant::swap(ops, a, b, AT_CALLEE);
        }));
    }
    if to.spec().language == Language::C {
        for (i, value) in params.iter().enumerate() {
            let (place, index) = (first(i), ValueIndex::Param(i));
            let bits = value.layout().size_bytes as i32 * 8;
            if bits < 32 {
                let wrong = [Change::NotExtended(index)];
                plants.push(plant(format!("extension of {place}"), wrong, move |ops| {
                    plant::flip(ops, place, AT_CALLEE, bits);
                }));
            } else if let (32, Place::Area(offset)) = (bits, place) {
                let wrong = [Change::NotWhole(index)];
                plants.push(plant(format!("half a word at {place}"), wrong, move |ops| {
                    let poison = i32::from_le_bytes([Caller::POISON; 4]);
                    let at = AT_CALLEE + offset as i32 + 4;
                    dynasm!(ops; .arch x64; mov DWORD [rsp + at], poison);
                }));
            }
        }
    }
    if let Some(Bind::Closure(_)) = case.bind {
        let register = closure_register(to);
        plants.push(plant("closure", [Change::Closure], move |ops| {
            plant::clobber(ops, Reg::Gpr(register));
        }));
    }
    plants
}

/// All defects after the return to a caller that do not depend on the results.
fn return_defects(case: &Case) -> Vec<Plant> {
    let [from, _] = case.conventions();
    let mut plants = Vec::from(control_defects());
    plants.extend(pin_defects(from));
    for register in from.spec().preserved.with(Gpr::RSP).iter() {
        let wrong = match register {
            Reg::Gpr(r) => Change::Gpr(r),
            Reg::Xmm(x) => Change::Xmm(x),
            other => panic!("not a register of this machine: {other}"),
        };
        let spoil = move |ops: &mut Ops| plant::clobber(ops, register);
        plants.push(plant(register.to_string(), [wrong], spoil));
    }
    let above = case.entry.total_bytes();
    for beyond in [above, above + 7, above + 64] {
        let wrong = [Change::Above(beyond as usize)];
        plants.push(plant(format!("byte {beyond} of the stack"), wrong, move |ops| {
            plant::flip(ops, Place::Area(beyond), AT_CALLER, 3);
        }));
    }
    plants
}

/// Defects of a bit of each result, or of a byte next to it.
fn result_defects(case: &Case) -> Vec<Plant> {
    let mut plants = Vec::new();
    let extends = case.entry.narrow() != Narrow::Garbage;
    for (i, value) in case.entry.results().iter().enumerate() {
        let index = ValueIndex::Result(i);
        for place in plant::places(value) {
            plants.push(plant(format!("low bit of {place}"), [Change::Value(index)], move |ops| {
                plant::flip(ops, place, AT_CALLER, 0);
            }));
            let bits = value.layout().size_bytes as i32 * 8;
            if bits < 32 && value.ty().is_word() && extends {
                let wrong = [Change::NotExtended(index)];
                plants.push(plant(format!("extension of {place}"), wrong, move |ops| {
                    plant::flip(ops, place, AT_CALLER, bits);
                }));
            }
        }
        if let Passing::Reference(_) = value.passing() {
            let pointer = case.entry.result_pointer().and_then(|pointer| pointer.returned);
            let Some(Reg::Gpr(pointer)) = pointer else {
                panic!("the address of the result is returned");
            };
            let size = value.layout().size_bytes as i32;
            let data = data_bytes(value.ty(), value.language());
            let last = data.iter().rposition(|data| *data).expect("it has data") as i32;
            plants.push(plant("address of the result", [Change::Address(index)], move |ops| {
                plant::clobber(ops, Reg::Gpr(pointer));
            }));
            for (at, wrong) in [
                (0, Change::Value(index)),
                (last, Change::Value(index)),
                (size, Change::Beside(index, size as isize)),
                (-1, Change::Beside(index, -1)),
            ] {
                plants.push(plant(format!("byte {at} of the result"), [wrong], move |ops| {
                    dynasm!(ops; .arch x64; xor BYTE [Rq(pointer) + at], 1);
                }));
            }
        }
    }
    plants
}

impl Bench {
    /// Code that causes a defect, and continues at `next`.
    fn thunk(&self, plant: &Plant, next: usize) -> Code {
        // SAFETY: it makes no call. The state that it changes is only compared.
        let code = unsafe {
            self.jit.install("planted", FrameClass::Leaf, |ops| {
                (plant.cause)(ops);
                dynasm!(ops; .arch x64; jmp extern next);
            })
        };
        code.expect("installed")
    }

    /// Causes the defect between the adapter and the callee. The callee must report it, and the
    /// caller nothing else.
    fn check_arrival(&mut self, case: &Case, plant: &Plant) {
        let thunk = self.thunk(plant, self.callee.address());
        let adapter = self.adapter(case, thunk.address()).expect("an adapter");
        let (arrived, returned) = self.call(case, adapter.address(), None);
        let what = format_args!("planted at the callee: {}\n{}", plant.name, case.what);
        assert_eq!(arrived.wrong, plant.wrong, "{what}");
        // A callee returns preserved and pinned registers as it found them.
        assert!(returned.wrong.iter().all(|w| plant.wrong.contains(w)), "{returned:?} {what}");
    }

    /// Causes the defect after the adapter. The caller must report it.
    fn check_return(&mut self, case: &Case, plant: &Plant) {
        let thunk = self.thunk(plant, self.caller.resume());
        let adapter = self.adapter(case, self.callee.address()).expect("an adapter");
        let (arrived, returned) = self.call(case, adapter.address(), Some(&thunk));
        let what = format_args!("planted at the caller: {}\n{}", plant.name, case.what);
        assert_eq!(arrived.wrong, [], "{what}");
        assert_eq!(returned.wrong, plant.wrong, "{what}");
    }
}

/// The result types of a pair, for defects in results.
fn results(pair: [Convention; 2]) -> &'static [&'static str] {
    match pair.map(|convention| convention.spec().language) {
        [Language::Go, Language::Go] => &[
            "i64",
            "(i8, f32, string, [i32; 2], bool, struct { u8, f64 })",
            "(i64, i64, i64, i64, i64, i64, i64, i64, i64, u8, i32, complex<f64>)",
        ],
        [Language::C, Language::C] => &[
            "i64",
            "i8",
            "u16",
            "f32",
            "longdouble",
            "complex<longdouble>",
            "struct { i64, f64 }",
            "struct { i64, f64, i64 }",
            "v128",
            "struct { i8, i16 }",
            "[u8; 33]",
        ],
        _ => &["i64", "i8", "u16", "f64", "struct { i64, f64 }", "struct { i64, f64, i64 }"],
    }
}

/// Two pairs of one type, narrow integers in registers and on the stack, and a value there that
/// does not fill its word.
const PLANTED_PARAMS: &str = "i64, ptr, f64, f64, i8, u16, u64, i64, u64, i8, i32, bool, u32";

#[test]
fn planted_defects_are_reported_exactly() {
    let mut kinds = BTreeSet::new();
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            let pair = [from, to];
            with_bench(&pair, |bench| {
                let signature = parse(&format!("fn({PLANTED_PARAMS}) -> i64"));
                for bind in [None, Some(Bind::Closure(0x1234_5678_9abc_def1))] {
                    let case = Case::new(&signature, pair, bind, seed()).expect("assignable");
                    let case = Case { room: Some(true), ..case };
                    let arrivals = arrival_defects(&case);
                    assert!(arrivals.len() >= 4 + 13 + 2, "{pair:?}: {}", arrivals.len());
                    for plant in arrivals {
                        bench.check_arrival(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                    let returns = return_defects(&case);
                    let kept = from.spec().preserved.len() + from.spec().pinned.len() + 1;
                    assert_eq!(returns.len(), 4 + kept + 3, "{pair:?}");
                    for plant in returns {
                        bench.check_return(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                }
                for results in results(pair) {
                    let signature = parse(&format!("fn(i64) -> {results}"));
                    let case = Case::new(&signature, pair, None, seed()).expect("assignable");
                    let case = Case { room: Some(true), ..case };
                    let plants = result_defects(&case);
                    assert!(!plants.is_empty(), "{signature}");
                    for plant in plants {
                        bench.check_return(&case, &plant);
                        kinds.extend(plant.wrong.iter().map(kind));
                    }
                }
            });
        }
    }
    let seen: Vec<&str> = kinds.iter().map(String::as_str).collect();
    assert_eq!(
        seen,
        [
            "Above",
            "Address",
            "Beside",
            "Closure",
            "Df",
            "Gpr",
            "Mxcsr",
            "NotExtended",
            "NotWhole",
            "Value",
            "X87Control",
            "X87Stack",
            "Xmm",
        ]
    );
}

/// The name of a change without its fields.
fn kind(change: &Change) -> String {
    format!("{change:?}").split('(').next().expect("a name").to_owned()
}

/// The reports that require calls of their own.
#[test]
fn defects_planted_in_special_calls_are_reported() {
    let (system_v, win64) = (Convention::SystemV, Convention::Win64);
    let param = ValueIndex::Param;
    let check = |text: &str, from, to, plant: Plant| {
        with_bench(&[from, to], |bench| {
            let case = Case::new(&parse(text), [from, to], None, seed()).expect("assignable");
            let thunk = bench.thunk(&plant, bench.callee.address());
            let adapter = bench.adapter(&case, thunk.address()).expect("an adapter");
            let (arrived, _) = bench.call(&case, adapter.address(), None);
            assert_eq!(arrived.wrong, plant.wrong, "{}\n{}", plant.name, case.what);
        });
    };
    for from in CONVENTIONS {
        if from.spec().language == Language::C {
            check(
                "fn(ptr, ..., f64, i64)",
                from,
                system_v,
                plant("al", [Change::VectorCount], |ops| dynasm!(ops; .arch x64; inc al)),
            );
            check(
                "fn(ptr, ..., f64)",
                from,
                win64,
                plant(
                    "rdx beside xmm1",
                    [Change::Duplicate(param(1)), Change::Value(param(1))],
                    |ops| dynasm!(ops; .arch x64; xor rdx, 8),
                ),
            );
        }
        check(
            "fn(struct { i64, i64, i64 })",
            from,
            win64,
            plant(
                "a copy aligned to 8",
                [Change::Address(param(0)), Change::Value(param(0))],
                |ops| dynasm!(ops; .arch x64; add rcx, 8),
            ),
        );
        check(
            "fn(struct { i64, i64, i64 })",
            from,
            win64,
            plant(
                "a copy at an unmapped address",
                [Change::Address(param(0)), Change::Value(param(0))],
                |ops| dynasm!(ops; .arch x64; xor ecx, ecx),
            ),
        );
        check(
            "fn() -> struct { i64, i64, i64 }",
            from,
            system_v,
            plant(
                "a misaligned result",
                [Change::Address(ValueIndex::Result(0))],
                |ops| dynasm!(ops; .arch x64; add rdi, 4),
            ),
        );
    }
    // A stub that does not call.
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            check(
                "fn(i64) -> i64",
                from,
                to,
                plant("no call", [Change::Hits(0)], |ops| dynasm!(ops; .arch x64; ret)),
            );
        }
    }
}

/// A stack pointer that a stub misaligned, and a frame pointer to a wrong frame. Here the defect
/// calls the callee, and restores the state when that returns.
#[test]
fn a_frame_that_breaks_its_contract_is_reported() {
    for from in CONVENTIONS {
        for to in CONVENTIONS {
            with_bench(&[from, to], |bench| {
                let case = Case::new(&parse("fn()"), [from, to], None, seed()).expect("assignable");
                // There is room for the area above the return address of the call. 56 preserves the
                // alignment: at the first instruction, rsp is 8 modulo 16, or arbitrary. Otherwise
                // the base is misaligned by a word or half a word.
                let off = if to.spec().stack_align_bytes == 16 { 8 } else { 4 };
                for (down, aside, wrong) in [
                    (56, 0, vec![]),
                    (56 + off, 0, vec![Change::Alignment]),
                    (56, 8, vec![Change::FramePointer]),
                ] {
                    let callee = bench.callee.address();
                    // SAFETY: no walk takes place during the call.
                    let thunk = unsafe {
                        bench.jit.install("broken frame", FrameClass::Standard, |ops| {
                            dynasm!(ops
                                ; .arch x64
                                ; push rbp
                                ; mov rbp, rsp
                                ; mov rbp, [rbp]
                                ; lea rsp, [rsp - (down - 8)]
                                ; lea rbp, [rbp + aside]
                                ; call extern callee
                                ; lea rsp, [rsp + (down - 8)]
                                ; pop rbp
                                ; ret
                            );
                        })
                    };
                    let thunk = thunk.expect("installed");
                    let adapter = bench.adapter(&case, thunk.address()).expect("an adapter");
                    let (arrived, returned) = bench.call(&case, adapter.address(), None);
                    assert_eq!(arrived.wrong, wrong, "{from} -> {to}");
                    assert_eq!(returned.wrong, [], "{from} -> {to}");
                }
            });
        }
    }
}

/// A stub that reads after the last argument on the stack faults, and the report names the call.
#[test]
fn an_over_read_faults_and_names_its_case() {
    let test = "an_over_read_faults_and_names_its_case";
    for (number, convention) in CONVENTIONS.into_iter().enumerate() {
        let outcome = child::run_case(test, number, || {
            with_bench(&[convention], |bench| {
                // The area has 16 bytes, or a multiple of that, in each convention.
                let signature = parse("fn([[i64; 2]; 5])");
                let case = Case::new(&signature, [convention; 2], None, 7).expect("assignable");
                let case = Case { room: Some(false), ..case };
                let past = AT_CALLEE + case.entry.total_bytes() as i32;
                let read = |at| {
                    plant("over-read", [], move |ops| dynasm!(ops; .arch x64; cmp [rsp + at], rsp))
                };
                let last = bench.thunk(&read(past - 8), bench.callee.address());
                let (arrived, returned) = bench.call(&case, last.address(), None);
                assert_eq!((arrived.wrong, returned.wrong), (vec![], vec![]));
                let next = bench.thunk(&read(past), bench.callee.address());
                bench.call(&case, next.address(), None);
                panic!("no fault occurred");
            });
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
        for text in
            ["fault at address ", "seed 0x7, ", "\nfn([[i64; 2]; 5])\n", convention.spec().name]
        {
            assert!(outcome.stderr.contains(text), "no {text:?}: {outcome:#?}");
        }
    }
}
