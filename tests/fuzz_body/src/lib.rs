//! The body of the fuzz target (`fuzz/`) and of `tests/heavy/fuzz.rs`: parser, planner and emitter
//! on arbitrary bytes.
//!
//! The bytes are used twice: as the text of a signature, and as choices from which a signature, two
//! conventions and a binding are made. Each result must be correct, or an error with a text. A plan
//! is executed on the model machine. The code of an adapter is decoded, and the registers that it
//! writes are checked.

use footbridge::abi::model::{Machine, Xorshift};
use footbridge::abi::{
    Arch, Assignment, Convention, Float, Gpr, Language, Plan, PlanError, PlanRequest, RecordSpec,
    Reg, RegSet, Signature, Type, Value, Vreg, Xmm, Xreg,
};
use footbridge::jit::{AdapterCode, AdapterSpec, Binding, JitError};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// Runs all checks on one input.
pub fn run(data: &[u8]) {
    text(data);
    recipe(&mut Bytes(data));
}

/// Parses the input as text. A signature must print and parse to itself; an error must name its
/// position.
fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Signature>() {
        Ok(signature) => {
            let printed = signature.to_string();
            assert_eq!(printed.parse::<Signature>().as_ref(), Ok(&signature), "{printed}");
            for convention in Convention::ALL {
                match convention.assign(&signature) {
                    Ok(assignment) => assert!(!assignment.to_string().is_empty()),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        Err(error) => {
            assert!(error.position() <= text.len(), "{error}");
            assert!(error.to_string().starts_with("signature, byte "), "{error}");
        }
    }
}

/// A source of bytes, which continues with zeros.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.next()) % limit
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.next()))
    }

    fn ty(&mut self, depth: u32) -> Type {
        let kinds = if depth == 0 { 4 } else { 8 };
        let ty = match self.below(kinds) {
            0 | 1 => Ok(Type::SCALARS[self.below(Type::SCALARS.len())].clone()),
            2 => Ok(Type::NAMED[self.below(Type::NAMED.len())].1.clone()),
            3 => {
                let floats = [Float::F32, Float::F64, Float::LongDouble];
                Ok(Type::Complex(floats[self.below(3)]))
            }
            4 => {
                let length = self.next() % 12;
                Type::array(length.into(), self.ty(depth - 1))
            }
            kind => {
                let fields = (0..self.below(7)).map(|_| self.ty(depth - 1)).collect();
                let mut align = || match self.next() {
                    n @ 0..16 => Some(1 << (n % 8)),
                    _ => None,
                };
                let spec = RecordSpec { fields, packed: align(), align: align() };
                if kind == 7 { spec.into_union() } else { spec.into_struct() }
            }
        };
        ty.expect("below every limit")
    }
}

/// Registers that never hold a value of the convention.
fn scratch(convention: Convention) -> RegSet {
    match convention.spec().arch {
        Arch::Amd64 => RegSet::of_gprs(&[Gpr::R12, Gpr::R13]).with(Xmm::XMM15),
        _ => RegSet::EMPTY.with(Xreg::X19).with(Xreg::X20).with(Vreg::V31),
    }
}

fn recipe(bytes: &mut Bytes<'_>) {
    let mut convention = || Convention::ALL[bytes.below(Convention::ALL.len())];
    let (entry, target) = (convention(), convention());
    let binding =
        [Binding::None, Binding::Closure, Binding::FirstArgument, Binding::None][bytes.below(4)];
    let depth = bytes.below(4) as u32;
    let params: Vec<Type> = (0..bytes.below(25)).map(|_| bytes.ty(depth)).collect();
    let results: Vec<Type> = (0..bytes.below(4)).map(|_| bytes.ty(depth)).collect();
    let named = bytes.below(8 * (params.len() + 1));
    let mut signature = Signature::new(params, results);
    if named <= signature.params().len() {
        signature = signature.variadic_after(named);
    }
    let printed = signature.to_string();
    assert_eq!(printed.parse::<Signature>().as_ref(), Ok(&signature), "{printed}");

    let what = format!("{entry} to {target}, {binding:?}: {signature}");
    let spec = AdapterSpec::new(&signature, entry, target).binding(binding).g_tls_off_bytes(-8);
    let code = AdapterCode::new(&spec);
    let (target_signature, bound_param) = match binding {
        Binding::FirstArgument => (signature.with_first_param(Type::Ptr), Some(0)),
        _ => (signature.clone(), None),
    };
    let sides = (entry.assign(&signature), target.assign(&target_signature));
    let (Ok(entry_side), Ok(target_side)) = sides else {
        let error = code.expect_err(&what).to_string();
        assert!(!error.is_empty());
        return;
    };
    let request = PlanRequest {
        entry: &entry_side,
        target: &target_side,
        bound_param,
        arg_scratch: scratch(entry),
        result_scratch: scratch(entry),
    };
    match Plan::new(&request) {
        Ok(plan) => play(&request, &plan, bytes.word(), &what),
        Err(PlanError::NoScratch { .. }) => panic!("no scratch register found: {what}"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(plan) = Plan::tail(&request) {
        play(&request, &plan, bytes.word(), &what);
    }
    match code {
        Ok(code) if entry.spec().arch == Arch::Amd64 => decode(&code, entry, &what),
        Ok(code) => assert!(code.bytes().len().is_multiple_of(4), "{what}"),
        Err(JitError::Plan(PlanError::NoScratch { .. })) => {
            panic!("no scratch register found: {what}")
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Executes a call on the model machine: arguments must reach the target, and results the caller.
fn play(request: &PlanRequest<'_>, plan: &Plan, seed: u64, what: &str) {
    let PlanRequest { entry, target, bound_param, .. } = *request;
    let what = format!("{what}, in place: {}\n{entry}\n{target}\n{plan}", plan.in_place);
    let mut rng = Xorshift::new(seed);
    let mut values = |values: &[Value]| -> Vec<Vec<u8>> {
        values.iter().map(|value| random_value(&mut rng, entry, value)).collect()
    };
    let (args, results) = (values(entry.params()), values(entry.results()));
    let mut machine = Machine::new(entry, target, plan, seed);
    machine.enter(&args);
    machine.run(&plan.args).unwrap_or_else(|e| panic!("{e}: {what}"));
    let mut arrived = machine.arrived().unwrap_or_else(|e| panic!("{e}: {what}"));
    if let Some(index) = bound_param {
        assert_eq!(arrived.remove(index), machine.context().to_le_bytes(), "{what}");
    }
    assert_eq!(arrived, args, "{what}");
    machine.leave(&results);
    machine.run(&plan.results).unwrap_or_else(|e| panic!("{e}: {what}"));
    let returned = machine.returned().unwrap_or_else(|e| panic!("{e}: {what}"));
    assert_eq!(returned, results, "{what}");
}

/// Random data bytes; padding is zero. An x87 number has ten bytes, unless another member of a
/// union covers the bytes after them.
fn random_value(rng: &mut Xorshift, side: &Assignment, value: &Value) -> Vec<u8> {
    let mut data = vec![false; value.layout().size_bytes as usize];
    let is_amd64 = side.arch() == Some(Arch::Amd64);
    value.ty().each_leaf(side.language(), 0, &mut |offset, leaf| {
        let bytes = match leaf {
            Type::LongDouble if is_amd64 => 10,
            _ => leaf.layout(Language::C).size_bytes,
        };
        data[offset as usize..][..bytes as usize].fill(true);
    });
    data.into_iter().map(|data| if data { rng.bits() as u8 } else { 0 }).collect()
}

/// Decodes the code up to its cells. It must have one end, and it must preserve the registers of
/// the entry's convention: each is not written, or its last write is a load from the frame.
fn decode(code: &AdapterCode, entry: Convention, what: &str) {
    let end = code.target_off_bytes();
    let decoder = Decoder::with_ip(64, &code.bytes()[..end], 0, DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    let mut ends = 0;
    let mut lost = RegSet::EMPTY;
    for instruction in decoder {
        assert!(!instruction.is_invalid(), "{what}: {:x?}", code.bytes());
        match instruction.flow_control() {
            FlowControl::Return | FlowControl::IndirectBranch => ends += 1,
            FlowControl::Next | FlowControl::IndirectCall | FlowControl::Interrupt => {}
            other => panic!("{other:?} at {:#x}: {what}", instruction.ip()),
        }
        let base = instruction.memory_base();
        let from_frame = base == Register::RBP && instruction.op1_kind() == OpKind::Memory;
        for used in factory.info(&instruction).used_registers() {
            let is_read = matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            let Some(register) = register(used.register()).filter(|_| !is_read) else { continue };
            if from_frame || instruction.mnemonic() == Mnemonic::Leave {
                lost = lost.minus(RegSet::EMPTY.with(register));
            } else {
                lost = lost.with(register);
            }
        }
        let by_frame = matches!(base, Register::RSP | Register::RBP);
        let displacement = instruction.memory_displacement64() as i64;
        assert!(!by_frame || displacement.abs() < 16384, "{displacement}: {what}");
    }
    assert_eq!(ends, 1, "{what}");
    let spec = entry.spec();
    let lost = lost.intersection(spec.preserved);
    assert!(lost.is_empty(), "{lost} not preserved: {what}");
}

/// The register as one that a convention can preserve, which rsp is not.
fn register(register: Register) -> Option<Reg> {
    let number = register.number() as u8;
    match register.full_register() {
        Register::RSP => None,
        full if full.is_gpr64() => Some(Gpr::new(number).into()),
        _ if register.is_vector_register() && number < 16 => Some(Xmm::new(number).into()),
        _ => None,
    }
}
