//! Random calls between all conventions: each plan keeps its promises on the model machine.

use super::call::data_bytes;
use super::machine::Machine;
use super::tests::SCRATCH;
use super::xorshift::Xorshift;
use crate::abi::{
    Arch, Assignment, Convention, Gpr, Language, Passing, Place, Plan, PlanError, PlanRequest,
    RecordSpec, RegClass, RegSet, Signature, Slots, Step, Type, Value,
};

/// Which side of a random call is which.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Side {
    Convention(Convention),
    Packed,
}

impl Side {
    fn language(self) -> Language {
        match self {
            Side::Convention(convention) => convention.spec().language,
            Side::Packed => Language::C,
        }
    }

    fn assign(self, signature: &Signature, language: Language) -> Option<Assignment> {
        match self {
            Side::Convention(convention) => convention.assign(signature).ok(),
            Side::Packed => Some(Assignment::packed_in(signature, language)),
        }
    }

    fn most_results(self) -> usize {
        match self {
            Side::Convention(c) if c.spec().language == Language::C => 1,
            _ => 14,
        }
    }
}

/// A random type of a language. Half of them are numbers and pointers, if `depth` is not 0.
fn random_type(rng: &mut Xorshift, language: Language, depth: u32) -> Type {
    loop {
        let choice = rng.below(if depth == 0 { 20 } else { 40 });
        let ty = match choice {
            0..12 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
            12..18 => Type::NAMED[rng.below(Type::NAMED.len())].1.clone(),
            18 => "complex<f32>".parse().expect("a type"),
            19 => ["complex<f64>", "complex<longdouble>"][rng.below(2)].parse().expect("a type"),
            20..26 => {
                let element = random_type(rng, language, depth - 1);
                let length = [1, 1, 2, 3, 4, 5, 7, 13][rng.below(8)];
                Type::array(length, element).expect("small")
            }
            _ => {
                // Of one type often, for homogeneous aggregates and shared eightbytes.
                let count = rng.below(6);
                let one = random_type(rng, language, depth - 1);
                let alike = rng.below(3) == 0;
                let fields = (0..count).map(|_| match alike {
                    true => one.clone(),
                    false => random_type(rng, language, depth - 1),
                });
                let mut spec = RecordSpec { fields: fields.collect(), ..RecordSpec::default() };
                if language == Language::C && rng.below(5) == 0 {
                    spec.packed = Some(1 << rng.below(3));
                }
                if language == Language::C && rng.below(8) == 0 {
                    spec.align = Some(1 << rng.below(7));
                }
                if language == Language::C && rng.below(6) == 0 {
                    spec.into_union().expect("small")
                } else {
                    spec.into_struct().expect("small")
                }
            }
        };
        if ty.exists_in(language) && ty.layout(Language::C).size_bytes <= 160 {
            return ty;
        }
    }
}

/// The bytes of an area that values of a section may be written to.
fn writable(side: &Assignment, values: &[Value]) -> Vec<bool> {
    let mut bytes = vec![false; side.total_bytes().max(side.results_bytes()) as usize];
    for value in values {
        let (offset, size) = match *value.passing() {
            Passing::Area(offset) => {
                let whole = side.slots() == Slots::Whole && value.ty().is_word();
                (offset, if whole { 8 } else { value.layout().size_bytes })
            }
            Passing::Reference(Place::Area(offset)) => (offset, 8),
            _ => continue,
        };
        bytes[offset as usize..][..size as usize].fill(true);
    }
    bytes
}

/// The registers that values are in, or their addresses.
fn registers(values: &[Value]) -> RegSet {
    let places = values.iter().flat_map(|value| {
        let pointer = match *value.passing() {
            Passing::Reference(place) => Some(place),
            _ => None,
        };
        let parts = value.parts().iter().map(|part| part.place);
        parts.chain(pointer).filter_map(Place::reg).collect::<Vec<_>>()
    });
    places.collect()
}

/// A register that changed is named by the plan, and one that is named may be written.
fn assert_written(
    before: &Machine<'_>,
    after: &Machine<'_>,
    plan: &Plan,
    steps: &[Step],
    allowed: RegSet,
    what: &str,
) {
    let named: RegSet = steps.iter().flat_map(|step| step.writes().iter()).collect();
    assert_eq!(named.minus(plan.writes), RegSet::EMPTY, "{what}");
    assert_eq!(named.minus(allowed), RegSet::EMPTY, "{what}");
    for register in before.arch.registers().minus(named).iter() {
        let same = match register.class() {
            RegClass::General => before.register(register) == after.register(register),
            RegClass::Vector => before.vector(register) == after.vector(register),
        };
        assert!(same, "{register} changed: {what}");
    }
}

/// Everything that a plan promises, for one random call from `from` to `to`.
fn check_random_call(rng: &mut Xorshift, from: Side, to: Side, bind: bool) -> Checked {
    let language = match (from.language(), to.language()) {
        (Language::C, Language::C) => Language::C,
        _ => Language::Go,
    };
    let depth = rng.below(4) as u32;
    let mut types = |limit| -> Vec<Type> {
        let n = rng.below(limit);
        // Mixed, all scalars, or all of one type.
        let kind = rng.below(4);
        let one = random_type(rng, language, depth);
        (0..n)
            .map(|_| match kind {
                0 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
                1 => one.clone(),
                _ => random_type(rng, language, depth),
            })
            .collect()
    };
    let params = types(22);
    let results = types(from.most_results().min(to.most_results()) + 1);
    let mut signature = Signature::new(params.clone(), results.clone());
    let (mut target_signature, bound) = if bind {
        let index = rng.below(params.len() + 1);
        let integers = [Type::Ptr, Type::I64, Type::I8, Type::Bool, Type::U16, Type::I32];
        let mut longer = params;
        longer.insert(index, integers[rng.below(integers.len())].clone());
        (Signature::new(longer, results), Some(index))
    } else {
        (signature.clone(), None)
    };
    if language == Language::C && !bind && rng.below(4) == 0 {
        let named = rng.below(signature.params().len() + 1);
        signature = signature.variadic_after(named);
        target_signature = target_signature.variadic_after(named);
    }

    let (Some(entry), Some(target)) =
        (from.assign(&signature, language), to.assign(&target_signature, language))
    else {
        return Checked::default();
    };
    // Any registers may be offered, those that hold values too; a few that never do are enough.
    let arch = entry.arch().or(target.arch()).unwrap_or(Arch::Amd64);
    let mut scratch = || -> RegSet {
        let bits = rng.bits();
        let offered = arch.registers().iter().enumerate();
        let offered: RegSet = offered
            .filter(|(i, _)| bits >> i & bits >> (63 - i) & 1 == 1)
            .map(|(_, r)| r)
            .collect();
        let offered = offered.minus(RegSet::of_gprs(&[Gpr::RSP]));
        offered.union(SCRATCH.intersection(arch.registers()))
    };
    let (arg_scratch, result_scratch) = (scratch(), scratch());
    let what = format!("{from:?} {signature} -> {to:?} {target_signature} bound {bound:?}");
    let request = PlanRequest {
        entry: &entry,
        target: &target,
        bound_param: bound,
        arg_scratch,
        result_scratch,
    };
    let plan = match Plan::new(&request) {
        Ok(plan) => plan,
        Err(PlanError::LayoutDiffers { .. } | PlanError::FrameTooLarge { .. }) => {
            return Checked::default();
        }
        Err(error) => panic!("{what}: {error}"),
    };
    check_plan(rng, &request, &plan, &what);
    let tail = Plan::tail(&request);
    if let Some(plan) = &tail {
        check_plan(rng, &request, plan, &what);
    }
    Checked { plans: 1, tails: u32::from(tail.is_some()) }
}

/// How many plans were checked.
#[derive(Default)]
struct Checked {
    plans: u32,
    tails: u32,
}

/// The same of one plan.
fn check_plan(rng: &mut Xorshift, request: &PlanRequest<'_>, plan: &Plan, what: &str) {
    let PlanRequest { entry, target, bound_param: bound, arg_scratch, result_scratch } = *request;
    let arch = entry.arch().or(target.arch()).unwrap_or(Arch::Amd64);
    let what = format!("{what}\n{entry}\n{target}\nin place: {}\n{plan}", plan.in_place);

    let seed = rng.bits();
    let mut machine = Machine::new(entry, target, plan, seed);
    let mut random = |values: &[Value]| -> Vec<Vec<u8>> {
        let value = |value: &Value| {
            let mut bytes = vec![0; value.layout().size_bytes as usize];
            rng.fill(&mut bytes);
            let data = data_bytes(value.ty(), value.language(), arch);
            for (byte, data) in bytes.iter_mut().zip(data) {
                *byte = if data { *byte } else { 0 };
            }
            bytes
        };
        values.iter().map(value).collect()
    };
    let args = random(entry.params());
    let results = random(entry.results());

    machine.enter(&args);
    let before = machine.clone();
    machine.run(&plan.args).unwrap_or_else(|e| panic!("{e}: {what}"));
    let mut expected = args;
    if let Some(index) = bound {
        let size = target.params()[index].layout().size_bytes as usize;
        expected.insert(index, machine.context().to_le_bytes()[..size].to_vec());
    }
    let arrived = machine.arrived().unwrap_or_else(|e| panic!("{e}: {what}"));
    assert_eq!(arrived, expected, "{what}");
    let pointers = |side: &Assignment| -> RegSet {
        let place = side.result_pointer().and_then(|pointer| pointer.place.reg());
        let count = side.vector_count().map(|(register, _)| register);
        place.into_iter().chain(count).collect()
    };
    let ends = registers(entry.params()).union(registers(target.params()));
    let ends = ends.union(pointers(entry)).union(pointers(target));
    let allowed = ends.union(arg_scratch);
    assert_written(&before, &machine, plan, &plan.args, allowed, &what);
    assert_eq!(before.entry_area.bytes, machine.entry_area.bytes, "{what}");
    for (before, after) in before.caller.iter().zip(&machine.caller) {
        assert_eq!(before.bytes, after.bytes, "{what}");
    }
    let may = writable(target, target.params());
    for (byte, may) in machine.target_area.bytes.iter().zip(may) {
        assert!(byte.is_none() || may, "{what}");
    }

    machine.leave(&results);
    let before = machine.clone();
    machine.run(&plan.results).unwrap_or_else(|e| panic!("{e}: {what}"));
    let returned = machine.returned().unwrap_or_else(|e| panic!("{e}: {what}"));
    assert_eq!(returned, results, "{what}");
    let returned = |side: &Assignment| -> RegSet {
        let register = side.result_pointer().and_then(|pointer| pointer.returned);
        register.into_iter().collect()
    };
    let ends = registers(target.results()).union(registers(entry.results()));
    let ends = ends.union(returned(entry)).union(returned(target));
    let allowed = ends.union(result_scratch);
    assert_written(&before, &machine, plan, &plan.results, allowed, &what);
    let may = writable(entry, entry.results());
    let (old, new) = if entry.is_packed() {
        (&before.entry_buffer, &machine.entry_buffer)
    } else {
        (&before.entry_area, &machine.entry_area)
    };
    for ((old, new), may) in old.bytes.iter().zip(&new.bytes).zip(may) {
        assert!(old == new || may, "{what}");
    }
}

#[test]
fn every_plan_keeps_its_promises() {
    let calls = if cfg!(miri) { 1 } else { 200 };
    let mut rng = Xorshift::new(3);
    let mut tails = 0;
    for arch in [Arch::Amd64, Arch::Aarch64] {
        let conventions = Convention::ALL.into_iter();
        let conventions = conventions.filter(|c| c.spec().arch == arch);
        let sides = conventions.map(Side::Convention).chain([Side::Packed]);
        let sides: Vec<Side> = sides.collect();
        for from in &sides {
            for to in &sides {
                // miri takes seconds for each plan.
                if cfg!(miri) && rng.below(8) != 0 {
                    continue;
                }
                let mut plans = 0;
                for _ in 0..calls {
                    for bind in [false, true] {
                        let checked = check_random_call(&mut rng, *from, *to, bind);
                        plans += checked.plans;
                        tails += checked.tails;
                        let is_identity = matches!(from, Side::Convention(_)) && from == to;
                        // What enters and leaves as it is needs no frame.
                        assert!(!is_identity || bind || checked.plans == checked.tails);
                    }
                }
                assert!(cfg!(miri) || plans * 3 > calls, "{from:?} {to:?}: only {plans}");
            }
        }
    }
    assert!(cfg!(miri) || tails > 2000, "only {tails} plans in place");
}
