use super::fault::Fault;
use super::machine::Machine;
use super::memory::defined;
use crate::abi::{
    Assignment, Convention, Extend, Gpr, Operand, Plan, PlanRequest, Reg, RegSet, Signature, Step,
    ValueIndex, Vreg, Width, Xmm, Xreg,
};

pub(super) const SCRATCH: RegSet = RegSet::of(&[
    Reg::Gpr(Gpr::R12),
    Reg::Xmm(Xmm::XMM15),
    Reg::Xreg(Xreg::X16),
    Reg::Xreg(Xreg::X17),
    Reg::Vreg(Vreg::V31),
]);

fn sides(text: &str) -> (Assignment, Assignment, Plan) {
    let signature: Signature = text.parse().expect("a signature");
    let entry = Convention::GoAbiInternal.assign(&signature);
    let target = Convention::SystemV.assign(&signature);
    let (entry, target) = (entry.expect("assignable"), target.expect("assignable"));
    let plan = Plan::new(&PlanRequest {
        entry: &entry,
        target: &target,
        bound_param: None,
        arg_scratch: SCRATCH,
        result_scratch: SCRATCH,
    });
    (entry, target, plan.expect("plannable"))
}

fn mov(from: Operand, to: Operand, width: Width, extend: Extend) -> Step {
    Step::Move { from, to, width, extend }
}

#[test]
fn moves_write_what_a_processor_writes() {
    let (entry, target, plan) = sides("fn()");
    let mut machine = Machine::new(&entry, &target, &plan, 0);
    let (rax, rbx) = (Gpr::RAX.into(), Gpr::RBX.into());
    let (xmm0, xmm1) = (Xmm::XMM0.into(), Xmm::XMM1.into());
    for (width, extend, expected) in [
        (Width::B1, Extend::Sign, 0xffff_ff88),
        (Width::B1, Extend::Zero, 0x88),
        (Width::B2, Extend::Sign, 0x7788),
        (Width::B2, Extend::Zero, 0x7788),
        (Width::B4, Extend::None, 0xd566_7788),
        (Width::B8, Extend::None, 0x1122_3344_d566_7788),
    ] {
        machine.set_register(Gpr::RAX, 0x1122_3344_d566_7788);
        let step = mov(rax, rbx, width, extend);
        assert_eq!(machine.run(&[step]), Ok(()));
        assert_eq!(machine.register(Gpr::RBX), expected, "{step}");
        if extend == Extend::None {
            let there = mov(rax, xmm1, width, extend);
            let back = mov(xmm1, rbx, width, extend);
            assert_eq!(machine.run(&[there, back]), Ok(()));
            assert_eq!(machine.register(Gpr::RBX), expected, "{step}");
            assert_eq!(machine.vector(Xmm::XMM1)[8..16], [0; 8]);
        }
    }
    let bytes: [u8; 64] = std::array::from_fn(|i| i as u8);
    machine.set_vector(Xmm::XMM1, bytes);
    for (width, bytes) in [(Width::B4, 16), (Width::B16, 16), (Width::B64, 64)] {
        let step = mov(xmm1, xmm0, width, Extend::None);
        assert_eq!(machine.run(&[step]), Ok(()));
        assert_eq!(machine.vector(Xmm::XMM0)[..bytes], machine.vector(Xmm::XMM1)[..bytes]);
    }
    let steps = [
        Step::Address { of: Operand::Target(0), to: Gpr::RAX.into() },
        Step::Constant { to: Gpr::RBX.into(), value: 7 },
    ];
    assert_eq!(machine.run(&steps), Ok(()));
    assert_eq!(machine.register(Gpr::RAX), machine.target_area.base);
    assert_eq!(machine.register(Gpr::RBX), 7);
}

#[test]
fn what_no_plan_may_do_is_a_fault() {
    let (entry, target, plan) = sides("fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, u8, i32)");
    let mut machine = Machine::new(&entry, &target, &plan, 0);
    let sizes = entry.params().iter().map(|v| v.layout().size_bytes as usize);
    machine.enter(&sizes.map(|size| vec![0; size]).collect::<Vec<_>>());
    let (rax, xmm0) = (Gpr::RAX.into(), Xmm::XMM0.into());
    let mut fault = |step| (machine.run(&[step]), step);
    let none = Extend::None;

    for (from, to, width, extend) in [
        (Operand::Entry(0), Operand::Target(0), Width::B1, none),
        (rax, rax, Width::B2, none),
        (rax, rax, Width::B4, Extend::Sign),
        (rax, rax, Width::B16, none),
        (rax, xmm0, Width::B2, none),
        (xmm0, rax, Width::B1, Extend::Zero),
        (xmm0, xmm0, Width::B2, none),
        (Operand::Context, rax, Width::B4, none),
        (Operand::Context, Operand::Target(0), Width::B8, none),
        (rax, Operand::Target(0), Width::B1, Extend::Zero),
    ] {
        let (result, step) = fault(mov(from, to, width, extend));
        assert_eq!(result, Err(Fault::Malformed { step }));
    }
    for (from, to) in [
        (rax, Operand::Entry(0)),
        (rax, Operand::TargetResult(0)),
        (rax, Operand::Context),
        (Operand::Target(0), rax),
        (Operand::EntryResult(0), rax),
    ] {
        let (result, step) = fault(mov(from, to, Width::B8, none));
        assert_eq!(result, Err(Fault::Forbidden { step }));
    }
    let nowhere = Operand::At(Gpr::RAX.into(), 0);
    for step in [
        mov(rax, Operand::Target(40), Width::B8, none),
        mov(rax, nowhere, Width::B8, none),
        mov(nowhere, rax, Width::B8, none),
    ] {
        let (result, _) = fault(step);
        assert_eq!(result, Err(Fault::OutOfBounds { step }));
    }
    let (result, step) = fault(mov(Operand::Entry(0), rax, Width::B2, Extend::Zero));
    assert_eq!(result, Err(Fault::Undefined { step }), "the byte after a u8");
    let (result, step) = fault(Step::PopX87 { to: Operand::Target(0) });
    assert_eq!(result, Err(Fault::X87 { step }));
    let (result, _) = fault(mov(Operand::Entry(4), rax, Width::B4, none));
    assert_eq!(result, Ok(()));
}

#[test]
fn a_value_that_does_not_arrive_is_a_fault() {
    let (entry, target, plan) = sides("fn(i64, i64, i64, i64, i64, i64, i8)");
    let mut machine = Machine::new(&entry, &target, &plan, 0);
    let value = ValueIndex::Param(6);
    assert_eq!(machine.arrived(), Err(Fault::Missing { value }));
    machine.set_register(Gpr::RAX, 0x80);
    let store = |width| mov(Gpr::RAX.into(), Operand::Target(0), width, Extend::None);
    assert_eq!(machine.run(&[store(Width::B1)]), Ok(()));
    assert_eq!(machine.arrived(), Err(Fault::Missing { value }));
    assert_eq!(machine.run(&[store(Width::B8)]), Ok(()));
    let found = 0x80;
    assert_eq!(machine.arrived(), Err(Fault::NotExtended { value, found }));
}

#[test]
fn unspecified_bits_are_garbage() {
    let (go, sysv, plan) = sides("fn(i8, f32)");
    let args = [vec![0x80], vec![0; 4]];
    let mut machine = Machine::new(&go, &sysv, &plan, 0);
    machine.enter(&args);
    assert_eq!(machine.register(Gpr::RAX) as u8, 0x80);
    assert!(machine.register(Gpr::RAX) >> 8 != 0);
    assert_eq!(machine.vector(Xmm::XMM0)[..4], [0; 4]);
    assert_ne!(machine.vector(Xmm::XMM0)[4..16], [0; 12]);

    let mut machine = Machine::new(&sysv, &go, &plan, 0);
    machine.enter(&args);
    assert_eq!(machine.register(Gpr::RDI) as u32, 0xffff_ff80);
    assert_ne!(machine.register(Gpr::RDI) >> 32, 0);
}

#[test]
fn the_target_overwrites_all_that_it_may() {
    let (go, sysv, plan) = sides("fn(i64, i64, i64, i64, i64, i64, i64) -> i64");
    let mut machine = Machine::new(&go, &sysv, &plan, 0);
    let store = mov(Gpr::RAX.into(), Operand::Target(0), Width::B8, Extend::None);
    machine.run(&[store]).expect("well-formed");
    let before = machine.clone();
    machine.leave(&[vec![5, 0, 0, 0, 0, 0, 0, 0]]);
    assert_eq!(machine.register(Gpr::RAX), 5);
    assert_eq!(defined(&machine.target_area.bytes), None);
    for register in RegSet::ALL_AMD64.iter() {
        let spec = Convention::SystemV.spec();
        let kept = spec.preserved.with(Gpr::RSP).contains(register);
        let same = machine.register(register) == before.register(register);
        assert_eq!(same, kept, "{register}");
    }
}
