//! Plans: the moves that carry a call from one assignment to another.
//!
//! A plan names no instruction and owns no address. The emitter turns each step into an
//! instruction or two and the interpreter executes it on a model machine; neither writes a
//! register that the plan does not name.
//!
//! # Order
//!
//! The arguments move first, then the target runs, then the results move. Nothing is written before
//! it was read, because within each half
//!
//! 1. registers are stored to memory; the memory written and the memory read are never the same,
//!    apart from the stage;
//! 2. memory is copied to memory, through a scratch register that holds no value: one that was
//!    offered, or one that only receives its value later, or one just stored;
//! 3. registers move to registers, all at once (see `moves.rs`);
//! 4. registers that no value is waiting in any more are loaded from memory or get an address,
//! 5. and at last bound constants.
//!
//! # In place
//!
//! A stub that needs no memory of its own and has nothing to do after the call can jump to the
//! target, which then returns to the entry's caller: [`Plan::tail`]. The target's area is then the
//! entry's. Values in memory stay where they are, and no step writes memory.
//!
//! # Stage
//!
//! Where the two sides cut a value into different parts, its image is put together in the stage: a
//! piece of the stub's frame that lives as long as the call. There are also the copies of values
//! that the target takes by reference, the memory for its result, and the address at which the
//! entry's caller wants the result.
//!
//! # Widths
//!
//! * A load reads the bytes of the value and no more: an argument may end where a page ends. A part
//!   of 3, 5, 6 or 7 bytes goes by way of the stage, in pieces.
//! * A store writes the bytes of the value and no more, unless the receiving side may load the
//!   whole word ([`Slots::Whole`]); then the value is extended in its register and the word is
//!   stored.
//! * A narrow integer is extended where the receiving side relies on it and the giving side
//!   does not do it ([`Narrow`]). A load always extends, since that is free. What is in a struct is
//!   never extended.

use std::cell::LazyCell;
use std::fmt;

use super::assign::{Assignment, Part, Passing, Place, Value};
use super::conv::{Narrow, Slots};
use super::error::{PlanError, ValueIndex};
use super::layout::{Language, Layout};
use super::loc::{Gpr, Reg, RegClass, RegSet, Vreg, Xmm, Xreg};
use super::moves::{self, Transfer};
use super::ty::Type;

/// The most bytes that a stub's frame may take for the target's area and the stage together:
/// two pages. A stub reserves it at once.
pub const MAX_FRAME_BYTES: u32 = 8192;

/// The most bytes that the copies of one half of a plan may carry: the areas of both sides, and what
/// goes through the stage twice.
const MAX_COPIED_BYTES: u32 = 4 * MAX_FRAME_BYTES;

/// Where a step reads or writes.
///
/// Offsets are in bytes from the base of the area, as in
/// [`Place::Area`](super::Place::Area).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Spot {
    /// A general-purpose register.
    Gpr(Gpr),
    /// A vector register.
    Xmm(Xmm),
    /// A general-purpose register of AArch64.
    Xreg(Xreg),
    /// A vector register of AArch64.
    Vreg(Vreg),
    /// The area of arguments that the stub was entered with. Only read.
    Entry(u32),
    /// The area of arguments that the stub makes for the target: fresh memory that overlaps no
    /// other area. Only written.
    Target(u32),
    /// Where the entry's caller looks for results. Only written.
    ///
    /// Of a convention, this is the entry's area again, with the same base: its results lie
    /// behind the arguments. Of [`Assignment::words`] it is a separate record.
    EntryResult(u32),
    /// Where the target leaves results. Only read.
    ///
    /// Of a convention, this is the target's area again, with the same base. Of
    /// [`Assignment::words`] it is a separate record.
    TargetResult(u32),
    /// The stub's own memory, from before the first argument moves until the last result has.
    Stage(u32),
    /// Memory that a general-purpose register holds the address of, and so many bytes behind it.
    At(Reg, u32),
    /// The 64-bit constant that the stub binds to a parameter. Only read.
    ///
    /// The emitter has it at hand at any time: in the instruction, in a cell of memory, or in a
    /// register that the plan does not write.
    Context,
}

impl Spot {
    /// The register, if this is one.
    pub const fn reg(self) -> Option<Reg> {
        match self {
            Spot::Gpr(gpr) => Some(Reg::Gpr(gpr)),
            Spot::Xmm(xmm) => Some(Reg::Xmm(xmm)),
            Spot::Xreg(xreg) => Some(Reg::Xreg(xreg)),
            Spot::Vreg(vreg) => Some(Reg::Vreg(vreg)),
            _ => None,
        }
    }

    /// The spot so many bytes further on in memory.
    fn plus(self, bytes: u32) -> Spot {
        match self {
            Spot::Entry(offset) => Spot::Entry(offset + bytes),
            Spot::Target(offset) => Spot::Target(offset + bytes),
            Spot::EntryResult(offset) => Spot::EntryResult(offset + bytes),
            Spot::TargetResult(offset) => Spot::TargetResult(offset + bytes),
            Spot::Stage(offset) => Spot::Stage(offset + bytes),
            Spot::At(register, offset) => Spot::At(register, offset + bytes),
            Spot::Gpr(_) | Spot::Xmm(_) | Spot::Xreg(_) | Spot::Vreg(_) | Spot::Context => {
                unreachable!("{self} is not in memory")
            }
        }
    }
}

impl From<Reg> for Spot {
    fn from(register: Reg) -> Spot {
        match register {
            Reg::Gpr(gpr) => Spot::Gpr(gpr),
            Reg::Xmm(xmm) => Spot::Xmm(xmm),
            Reg::Xreg(xreg) => Spot::Xreg(xreg),
            Reg::Vreg(vreg) => Spot::Vreg(vreg),
        }
    }
}

impl From<Gpr> for Spot {
    fn from(gpr: Gpr) -> Spot {
        Spot::Gpr(gpr)
    }
}

impl From<Xmm> for Spot {
    fn from(xmm: Xmm) -> Spot {
        Spot::Xmm(xmm)
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spot::Gpr(gpr) => gpr.fmt(f),
            Spot::Xmm(xmm) => xmm.fmt(f),
            Spot::Xreg(xreg) => xreg.fmt(f),
            Spot::Vreg(vreg) => vreg.fmt(f),
            Spot::Entry(offset) => write!(f, "[entry+{offset}]"),
            Spot::Target(offset) => write!(f, "[target+{offset}]"),
            Spot::EntryResult(offset) => write!(f, "[entry result+{offset}]"),
            Spot::TargetResult(offset) => write!(f, "[target result+{offset}]"),
            Spot::Stage(offset) => write!(f, "[stage+{offset}]"),
            Spot::At(register, offset) => write!(f, "[{register}+{offset}]"),
            Spot::Context => f.write_str("context"),
        }
    }
}

/// How many bytes a move carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes.
    B8,
    /// Sixteen bytes: a vector register of either machine.
    B16,
    /// 32 bytes: a ymm register.
    B32,
    /// 64 bytes: a zmm register.
    B64,
}

impl Width {
    /// The number of bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Width::B1 => 1,
            Width::B2 => 2,
            Width::B4 => 4,
            Width::B8 => 8,
            Width::B16 => 16,
            Width::B32 => 32,
            Width::B64 => 64,
        }
    }

    /// The width of this many bytes, if there is one.
    pub const fn exact(bytes: u32) -> Option<Width> {
        Some(match bytes {
            1 => Width::B1,
            2 => Width::B2,
            4 => Width::B4,
            8 => Width::B8,
            16 => Width::B16,
            32 => Width::B32,
            64 => Width::B64,
            _ => return None,
        })
    }

    /// The width in which this many bytes move from register to register: at least four bytes,
    /// and at most a register.
    fn covering(bytes: u32) -> Width {
        Width::exact(bytes.next_power_of_two().clamp(4, 64)).expect("a power of two")
    }
}

/// How a move of one or two bytes fills the register up to 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extend {
    /// Not at all: the move carries four or more bytes, or stores.
    None,
    /// With zeros.
    Zero,
    /// With copies of the sign bit.
    Sign,
}

impl Extend {
    /// How a value of this type is widened to 32 bits, if it is narrower. Only truth values and
    /// integers are widened.
    pub fn of(ty: &Type) -> Extend {
        match ty.layout(Language::C).size_bytes {
            1 | 2 if ty.is_signed() => Extend::Sign,
            1 | 2 if ty.is_word() => Extend::Zero,
            _ => Extend::None,
        }
    }
}

/// One step of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Step {
    /// Copies a value. At least one of the two spots is a register.
    ///
    /// * To a general-purpose register, from one or from memory: all 64 bits are written. One or
    ///   two bytes are extended to 32 bits as `extend` says, which is not [`Extend::None`], and by
    ///   zeros from there. Four bytes are extended by zeros.
    /// * To a general-purpose register from [`Spot::Context`]: eight bytes.
    /// * From a vector register to one: as many bits as the width says, but at least 128. What is
    ///   above them is unspecified.
    /// * To a vector register from memory or from a general-purpose register: four or more bytes,
    ///   zeros above them up to 128 bits, unspecified from there.
    /// * From a vector register to a general-purpose register: four or eight bytes, zeros above.
    /// * To memory: exactly `width` low bytes of the register; at least four of a vector register.
    ///
    /// Except in the first case `extend` is [`Extend::None`]. Of general-purpose registers a move
    /// carries at most eight bytes.
    Move {
        /// Where the value is.
        from: Spot,
        /// Where it goes.
        to: Spot,
        /// The bytes that are carried.
        width: Width,
        /// How they are extended.
        extend: Extend,
    },
    /// Exchanges two general-purpose registers, all 64 bits of each.
    SwapGpr(Gpr, Gpr),
    /// Puts the address of a spot in memory into a general-purpose register.
    Address {
        /// The spot.
        of: Spot,
        /// The register.
        to: Reg,
    },
    /// Puts a small number into a general-purpose register, all 64 bits.
    Constant {
        /// The register.
        to: Reg,
        /// The number.
        value: u32,
    },
    /// Takes the top of the x87 stack and stores its 10 bytes.
    PopX87 {
        /// Where to.
        to: Spot,
    },
    /// Loads 10 bytes and pushes them on the x87 stack.
    PushX87 {
        /// Where from.
        from: Spot,
    },
}

impl Step {
    /// The registers that the step writes, the x87 stack aside.
    pub fn writes(self) -> RegSet {
        match self {
            Step::Move { to, .. } => to.reg().into_iter().collect(),
            Step::SwapGpr(a, b) => RegSet::of_gprs(&[a, b]),
            Step::Address { to, .. } | Step::Constant { to, .. } => RegSet::EMPTY.with(to),
            Step::PopX87 { .. } | Step::PushX87 { .. } => RegSet::EMPTY,
        }
    }
}

/// For a person: `rdi <- rax`, `rsi <- sign1 rbx`, `[target+0] <- 8 r10`, `rdi <-> rsi`,
/// `rdx <- address [stage+0]`. The number is the width in bytes, left out between whole registers.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SwapGpr(a, b) => write!(f, "{a} <-> {b}"),
            Step::Address { of, to } => write!(f, "{to} <- address {of}"),
            Step::Constant { to, value } => write!(f, "{to} <- {value}"),
            Step::PopX87 { to } => write!(f, "{to} <- pop x87"),
            Step::PushX87 { from } => write!(f, "push x87 <- {from}"),
            Step::Move { from, to, width, extend } => {
                let bytes = width.bytes();
                match extend {
                    Extend::Zero => write!(f, "{to} <- zero{bytes} {from}"),
                    Extend::Sign => write!(f, "{to} <- sign{bytes} {from}"),
                    Extend::None
                        if *width == Width::B8 && from.reg().is_some() == to.reg().is_some() =>
                    {
                        write!(f, "{to} <- {from}")
                    }
                    Extend::None => write!(f, "{to} <- {bytes} {from}"),
                }
            }
        }
    }
}

/// What a [`Plan`] is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// How the stub is entered.
    pub entry: &'a Assignment,
    /// What the stub calls. The same signature as the entry's, apart from the bound parameter.
    pub target: &'a Assignment,
    /// The index of a target parameter that the caller does not pass: a constant of the stub. It
    /// is an integer or a pointer.
    pub bound_param: Option<usize>,
    /// Registers that the plan may write on the way of the arguments, besides those that values
    /// come from and go to. An offered register that holds an argument is used only when the
    /// argument has left it. Never offer `rsp`, nor what the stub itself keeps something in.
    pub arg_scratch: RegSet,
    /// The same on the way of the results.
    pub result_scratch: RegSet,
}

/// The moves of one stub.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What happens before the call, in order.
    pub args: Vec<Step>,
    /// What happens after the call, in order.
    pub results: Vec<Step>,
    /// The size of the area that [`Spot::Target`] lies in, in bytes: the target's
    /// [`total_bytes`](Assignment::total_bytes) rounded up to 16.
    pub target_area_bytes: u32,
    /// The alignment of that area, in bytes: a multiple of 16.
    pub target_area_align_bytes: u32,
    /// The size of the stage, in bytes: a multiple of 16.
    pub stage_bytes: u32,
    /// The alignment of the stage, in bytes: a multiple of 16.
    pub stage_align_bytes: u32,
    /// Every register that a step writes.
    pub writes: RegSet,
    /// The target's area is the entry's: see [`Plan::tail`].
    pub in_place: bool,
}

impl Plan {
    /// Plans the moves between two assignments.
    ///
    /// # Errors
    ///
    /// The assignments are not of the same signature or not of one machine, the languages lay a
    /// value out differently, the bound parameter is none or is not an integer, a value needs
    /// a scratch register and none is offered, or the frame would be too large.
    pub fn new(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
        Plan::build(request, false)
    }

    /// The plan of a stub that keeps nothing on the stack and jumps to the target, if there is one.
    ///
    /// The target finds the area that the entry's caller made, and returns to that caller. So
    ///
    /// 1. what the target has in memory is there already: each of its parameters and results on the
    ///    stack has the same place on both sides, and the caller made room for all of its area,
    ///    with its alignment;
    /// 2. the target leaves everything as the entry's caller expects it: it preserves what the
    ///    entry's convention preserves or pins, and the steps write none of that;
    /// 3. results are returned where the entry's caller looks for them;
    /// 4. no value needs the stage.
    ///
    /// Registers that the *target's* convention pins are the stub's business, before the jump.
    pub fn tail(request: &PlanRequest<'_>) -> Option<Plan> {
        let PlanRequest { entry, target, .. } = *request;
        let (from, to) = (entry.convention()?.spec(), target.convention()?.spec());
        let area_is_there = target.total_bytes() <= entry.total_bytes()
            && to.stack_align_bytes <= from.stack_align_bytes
            && target.area_align_bytes() <= entry.area_align_bytes()
            && to.base_off_bytes == from.base_off_bytes
            && to.caller_below_bytes >= from.caller_below_bytes;
        if !area_is_there {
            return None;
        }
        let plan = Plan::build(request, true).ok()?;
        let writes_memory = |step: &Step| match step {
            Step::Move { to, .. } | Step::PopX87 { to } => to.reg().is_none(),
            _ => false,
        };
        let pins_are_kept = from.pinned.iter().all(|(register, _)| {
            let pinned_too = to.pinned.iter().any(|(other, _)| other == register);
            (pinned_too || to.preserved.contains(*register)) && !plan.writes.contains(*register)
        });
        let is_tail = plan.stage_bytes == 0
            && plan.results.is_empty()
            && !plan.args.iter().any(writes_memory)
            && plan.must_save(entry, target).is_empty()
            && pins_are_kept;
        is_tail.then_some(plan)
    }

    fn build(request: &PlanRequest<'_>, in_place: bool) -> Result<Plan, PlanError> {
        let PlanRequest { entry, target, .. } = *request;
        if let (Some(entry), Some(target)) = (entry.convention(), target.convention())
            && entry.spec().arch != target.spec().arch
        {
            return Err(PlanError::OtherMachine { entry, target });
        }
        if let Some(index) = request.bound_param {
            check_bound(target, index)?;
        }
        let unbound = || {
            let params = target.params().iter().enumerate();
            params.filter(|(index, _)| Some(*index) != request.bound_param)
        };
        check_values(entry.params(), unbound().map(|(_, value)| value), ValueIndex::Param)?;
        check_values(entry.results(), target.results().iter(), ValueIndex::Result)?;

        let mut stage = Stage::default();
        let (entry_pointer, target_pointer) = (entry.result_pointer(), target.result_pointer());
        let result = entry.results().first();

        let mut args = Carrier::new(entry, entry.narrow(), target, request.arg_scratch, &mut stage);
        args.in_place = in_place;
        // The address for the result. `made` is the memory that the stub offers to the target,
        // `wanted` is where the entry's address is kept during the call.
        let (mut made, mut wanted) = (None, None);
        let zero = ValueIndex::Result(0);
        match (entry_pointer, target_pointer, result) {
            (Some(entry), Some(target), _) => {
                let from = place_spot(entry.place, Spot::Entry);
                args.word(zero, from, place_spot(target.place, Spot::Target));
                if entry.returned.is_some() && target.returned.is_none() {
                    wanted = Some(args.keep(zero, from));
                }
            }
            (Some(entry), None, _) => {
                wanted = Some(args.keep(zero, place_spot(entry.place, Spot::Entry)));
            }
            (None, Some(pointer), Some(value)) => {
                let memory = args.stage.image(value.layout(), target);
                made = Some(memory);
                args.address(zero, memory, place_spot(pointer.place, Spot::Target));
            }
            _ => {}
        }
        for (value, (index, to)) in entry.params().iter().zip(unbound()) {
            let source = Source::of(value, Spot::Entry);
            let to = Dest::of(to, Spot::Target);
            args.carry(ValueIndex::Param(index), value, source, to);
        }
        // The bound parameter comes last, so it is the last of every group of steps.
        if let Some(index) = request.bound_param {
            let value = &target.params()[index];
            let to = Dest::of(value, Spot::Target);
            args.carry(ValueIndex::Param(index), value, Source::Context, to);
        }
        if let Some((register, count)) = target.vector_count() {
            args.constants.push((register, u32::from(count)));
        }
        let args = args.finish()?;

        // Callees do not extend their results: see `Narrow`.
        let given = Narrow::Garbage;
        let mut results = Carrier::new(target, given, entry, request.result_scratch, &mut stage);
        results.in_place = in_place;
        match (entry_pointer, target_pointer) {
            (Some(entry), Some(target)) => {
                let from = match (target.returned, wanted) {
                    (Some(register), _) => Some(Spot::from(register)),
                    (None, wanted) => wanted,
                };
                if let (Some(from), Some(to)) = (from, entry.returned) {
                    results.word(zero, from, to.into());
                }
            }
            (entry_pointer, target_pointer) => {
                if let (Some(pointer), Some(wanted)) = (entry_pointer, wanted) {
                    results.ends = results.ends.union(pointer.returned.into_iter().collect());
                    results.point(zero, wanted, pointer.returned, target.results())?;
                    if let Some(returned) = pointer.returned
                        && results.pointer != Some(returned)
                    {
                        results.word(zero, wanted, returned.into());
                    }
                }
                let values = target.results().iter().zip(entry.results());
                for (index, (from, to)) in values.enumerate() {
                    let source = match (made, target_pointer) {
                        (Some(made), Some(_)) => Source::Memory(Bytes::At(made)),
                        _ => Source::of(from, Spot::TargetResult),
                    };
                    let dest = match results.pointer {
                        Some(pointer) => Dest::Memory(Spot::At(pointer, 0)),
                        None => Dest::of(to, Spot::EntryResult),
                    };
                    results.carry(ValueIndex::Result(index), from, source, dest);
                }
            }
        }
        let results = results.finish()?;

        let writes = args.iter().chain(&results).flat_map(|step| step.writes().iter());
        let plan = Plan {
            writes: writes.collect(),
            target_area_bytes: match in_place {
                true => 0,
                false => target.total_bytes().next_multiple_of(16),
            },
            target_area_align_bytes: target.area_align_bytes().max(16),
            stage_bytes: stage.bytes.next_multiple_of(16),
            stage_align_bytes: stage.align.max(16),
            args,
            results,
            in_place,
        };
        if plan.stage_bytes > 0 && plan.frame_bytes() > MAX_FRAME_BYTES {
            return Err(PlanError::FrameTooLarge {
                bytes: plan.frame_bytes(),
                limit_bytes: MAX_FRAME_BYTES,
            });
        }
        Ok(plan)
    }

    /// The distance from the base of the target's area up to that of the stage, where a stub has
    /// the stage above the area.
    pub fn stage_off(&self) -> u32 {
        self.target_area_bytes.next_multiple_of(self.stage_align_bytes)
    }

    /// The bytes of both: a multiple of 16.
    pub fn frame_bytes(&self) -> u32 {
        if self.stage_bytes == 0 {
            self.target_area_bytes
        } else {
            self.stage_off().saturating_add(self.stage_bytes)
        }
    }

    /// The alignment of both, in bytes: a multiple of 16.
    pub fn frame_align_bytes(&self) -> u32 {
        if self.stage_bytes == 0 {
            self.target_area_align_bytes
        } else {
            self.stage_align_bytes.max(self.target_area_align_bytes)
        }
    }

    /// The registers that the entry's caller expects as they were and that the stub must save:
    /// those that its convention preserves, and that the plan or the target changes. Of vector
    /// registers of which a convention preserves the low half, that half.
    ///
    /// Pinned registers are not among them: the stub gives them their value again.
    pub fn must_save(&self, entry: &Assignment, target: &Assignment) -> RegSet {
        let changed = match target.convention() {
            Some(convention) => {
                let spec = convention.spec();
                let pinned = spec.pinned.iter().map(|(register, _)| *register);
                let changed = spec.volatile().union(pinned.collect());
                changed.minus(spec.preserved_low64)
            }
            None => RegSet::EMPTY,
        };
        let changed = changed.union(self.writes);
        match entry.convention() {
            Some(convention) => {
                let spec = convention.spec();
                let expected = spec.preserved.union(spec.preserved_low64);
                expected.intersection(changed)
            }
            None => RegSet::EMPTY,
        }
    }
}

/// For a person: one step a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.args {
            writeln!(f, "{step}")?;
        }
        writeln!(f, "call")?;
        for step in &self.results {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

fn check_bound(target: &Assignment, index: usize) -> Result<(), PlanError> {
    let params = target.params();
    match params.get(index).map(Value::ty) {
        None => Err(PlanError::BoundOutOfRange { index, params: params.len() }),
        Some(ty) if !ty.is_word() => Err(PlanError::BoundNotInteger { index, ty: ty.clone() }),
        Some(_) => Ok(()),
    }
}

/// The two sides have the same types, and lay them out in the same way.
fn check_values<'a>(
    entry: &[Value],
    mut target: impl Iterator<Item = &'a Value>,
    index: fn(usize) -> ValueIndex,
) -> Result<(), PlanError> {
    let mut entry = entry.iter();
    for i in 0.. {
        match (entry.next(), target.next()) {
            (None, None) => break,
            (Some(entry), Some(target)) if entry.ty() == target.ty() => {
                if entry.language() != target.language() && !entry.ty().is_laid_out_alike() {
                    return Err(PlanError::LayoutDiffers {
                        value: index(i),
                        ty: entry.ty().clone(),
                    });
                }
            }
            (entry, target) => {
                return Err(PlanError::SignatureMismatch {
                    value: index(i),
                    entry: entry.map(|value| value.ty().clone()),
                    target: target.map(|value| value.ty().clone()),
                });
            }
        }
    }
    Ok(())
}

/// The place as a spot, where `area` makes the spot of an offset.
fn place_spot(place: Place, area: fn(u32) -> Spot) -> Spot {
    match place {
        Place::Reg(register) => register.into(),
        Place::Area(offset) => area(offset),
        Place::X87(_) => unreachable!("addresses and integers are not on the x87 stack"),
    }
}

/// The stub's memory while it fills up.
#[derive(Default)]
struct Stage {
    bytes: u32,
    align: u32,
}

impl Stage {
    /// Room for `size` bytes and what is left of their last word. Something without bytes has a
    /// word too: it has an address, of the alignment that was asked for.
    fn room(&mut self, size: u32, align: u32) -> Spot {
        let align = align.max(8);
        let offset = self.bytes.saturating_add(align - 1) & !(align - 1);
        // Saturated, this is over the limit on frames.
        self.bytes = offset.saturating_add(size.max(1).next_multiple_of(8));
        self.align = self.align.max(align);
        Spot::Stage(offset)
    }

    /// Room for a value that the convention has behind a pointer.
    fn image(&mut self, layout: Layout, side: &Assignment) -> Spot {
        let least = match side.convention() {
            Some(convention) => convention.spec().copy_align_bytes,
            None => 8,
        };
        self.room(layout.size_bytes, layout.align_bytes.max(least))
    }
}

/// Bytes in memory.
#[derive(Clone, Copy)]
enum Bytes {
    /// From this spot on.
    At(Spot),
    /// At the address that is in this spot.
    Behind(Spot),
}

/// Where a value comes from.
#[derive(Clone, Copy)]
enum Source<'a> {
    Nothing,
    Parts(&'a [Part]),
    Memory(Bytes),
    Context,
}

impl<'a> Source<'a> {
    fn of(value: &'a Value, area: fn(u32) -> Spot) -> Source<'a> {
        match value.passing() {
            Passing::Nothing => Source::Nothing,
            Passing::Parts(parts) => Source::Parts(parts),
            Passing::Area(offset) => Source::Memory(Bytes::At(area(*offset))),
            Passing::Reference(place) => Source::Memory(Bytes::Behind(place_spot(*place, area))),
        }
    }
}

/// Where a value goes.
#[derive(Clone, Copy)]
enum Dest<'a> {
    Nothing,
    Parts(&'a [Part]),
    Memory(Spot),
    /// Its address goes here.
    Address(Spot),
}

impl<'a> Dest<'a> {
    fn of(value: &'a Value, area: fn(u32) -> Spot) -> Dest<'a> {
        match value.passing() {
            Passing::Nothing => Dest::Nothing,
            Passing::Parts(parts) => Dest::Parts(parts),
            Passing::Area(offset) => Dest::Memory(area(*offset)),
            Passing::Reference(place) => Dest::Address(place_spot(*place, area)),
        }
    }
}

/// A copy from memory to memory.
struct MemoryCopy {
    index: ValueIndex,
    from: CopyFrom,
    to: Spot,
    size: u32,
    /// The value is one integer: how it is extended, and the width that is stored.
    word: Option<(Extend, Width)>,
}

enum CopyFrom {
    Bytes(Bytes),
    Context,
    AddressOf(Spot),
}

/// Carries values from one side to the other: arguments to the target, results to the entry.
struct Carrier<'a> {
    /// Narrow values in registers come with garbage above them, and must not arrive so.
    extends: bool,
    /// Integers in memory arrive as whole words.
    slots: Slots,
    /// Integers in memory come as whole words.
    given_slots: Slots,
    /// Both sides have one area.
    in_place: bool,
    receiver: &'a Assignment,
    /// What the copies of the giving side are aligned to.
    given_align: u32,
    /// Offered registers.
    scratch: RegSet,
    /// Registers that values come from and go to.
    ends: RegSet,
    stage: &'a mut Stage,
    /// Holds the address that the result goes to, until the copies are done.
    pointer: Option<Reg>,

    // The steps by their phases, see the head of this file.
    steps: Vec<Step>,
    stores: Vec<Step>,
    copies: Vec<MemoryCopy>,
    transfers: Vec<Transfer>,
    loads: Vec<Step>,
    contexts: Vec<(Reg, Extend, Width)>,
    constants: Vec<(Reg, u32)>,
}

impl<'a> Carrier<'a> {
    fn new(
        giver: &Assignment,
        given: Narrow,
        receiver: &'a Assignment,
        scratch: RegSet,
        stage: &'a mut Stage,
    ) -> Carrier<'a> {
        // Between two sides of one convention a stub changes nothing that the receiver would have
        // found without it.
        let alike = giver.convention().is_some() && giver.convention() == receiver.convention();
        Carrier {
            extends: !alike
                && given != Narrow::ExtendedTo32
                && receiver.narrow() != Narrow::Garbage,
            slots: receiver.slots(),
            given_slots: giver.slots(),
            in_place: false,
            receiver,
            given_align: match giver.convention() {
                Some(convention) => convention.spec().copy_align_bytes,
                None => 8,
            },
            scratch,
            ends: RegSet::EMPTY,
            stage,
            pointer: None,
            steps: Vec::with_capacity(16),
            stores: Vec::new(),
            copies: Vec::new(),
            transfers: Vec::with_capacity(8),
            loads: Vec::new(),
            contexts: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// An address or another whole word, from one place to another.
    fn word(&mut self, index: ValueIndex, from: Spot, to: Spot) {
        if self.in_place && one_place(from, to) {
            return;
        }
        self.end(from);
        self.end(to);
        match (from.reg(), to.reg()) {
            (Some(from), Some(to)) => self.transfer(index, from, to, 8, Extend::None),
            (Some(_), None) => self.stores.push(plain(from, to, Width::B8)),
            (None, Some(_)) => self.loads.push(plain(from, to, Width::B8)),
            (None, None) => self.copy(index, CopyFrom::Bytes(Bytes::At(from)), to, 8),
        }
    }

    /// Keeps a word in the stage, and says where.
    fn keep(&mut self, index: ValueIndex, from: Spot) -> Spot {
        let kept = self.stage.room(8, 8);
        self.word(index, from, kept);
        kept
    }

    /// The address of a spot, to a place.
    fn address(&mut self, index: ValueIndex, of: Spot, to: Spot) {
        self.end(to);
        match to.reg() {
            Some(to) => self.loads.push(Step::Address { of, to }),
            None => self.copy(index, CopyFrom::AddressOf(of), to, 8),
        }
    }

    /// Finds a register for the address of the result, and loads it before anything moves.
    fn point(
        &mut self,
        index: ValueIndex,
        kept: Spot,
        returned: Option<Reg>,
        given: &[Value],
    ) -> Result<(), PlanError> {
        let parts = given.iter().flat_map(Value::parts);
        let busy: RegSet = parts.filter_map(|part| part.place.reg()).collect();
        let preferred = returned.filter(|register| !busy.contains(*register));
        let pointer = match preferred {
            Some(register) => register,
            None => self.general(index, busy)?,
        };
        self.steps.push(plain(kept, pointer.into(), Width::B8));
        self.pointer = Some(pointer);
        Ok(())
    }

    fn end(&mut self, spot: Spot) {
        if let Some(register) = spot.reg() {
            self.ends = self.ends.with(register);
        }
    }

    fn copy(&mut self, index: ValueIndex, from: CopyFrom, to: Spot, size: u32) {
        self.copies.push(MemoryCopy { index, from, to, size, word: None });
    }

    fn transfer(&mut self, index: ValueIndex, from: Reg, to: Reg, size: u32, extend: Extend) {
        let width = if extend == Extend::None {
            Width::covering(size)
        } else {
            Width::exact(size).expect("one or two bytes are extended")
        };
        self.transfers.push(Transfer { value: index, from, to, width, extend });
    }

    fn carry(&mut self, index: ValueIndex, value: &Value, source: Source<'_>, dest: Dest<'_>) {
        if let Source::Parts(parts) = source {
            for part in parts {
                self.ends = self.ends.union(part.place.reg().into_iter().collect());
            }
        }
        match (dest, source) {
            (Dest::Nothing, _) => {}
            (Dest::Memory(to), Source::Memory(Bytes::At(from)))
                if self.in_place && one_place(from, to) && self.arrives_as_it_is(value) => {}
            // The giver's copy is the stub's to pass on.
            (Dest::Address(to), Source::Memory(Bytes::Behind(from)))
                if self.passes_copies(value) =>
            {
                self.word(index, from, to);
            }
            (Dest::Address(to), _) => {
                let image = self.stage.image(value.layout(), self.receiver);
                self.fill(index, value, source, image);
                self.address(index, image, to);
            }
            (Dest::Memory(to), _) => self.fill(index, value, source, to),
            (Dest::Parts(parts), _) => {
                for part in parts {
                    self.ends = self.ends.union(part.place.reg().into_iter().collect());
                }
                self.parts(index, value, source, parts);
            }
        }
    }

    /// Whether a value in memory is as the receiver expects it.
    fn arrives_as_it_is(&self, value: &Value) -> bool {
        let is_whole = self.slots == Slots::Exact || self.given_slots == Slots::Whole;
        let is_extended = !self.extends || Extend::of(value.ty()) == Extend::None;
        !value.ty().is_word() || is_whole && is_extended
    }

    /// Whether the giver's copies are aligned well enough for the receiver.
    fn passes_copies(&self, value: &Value) -> bool {
        let needed = match self.receiver.convention() {
            Some(convention) => convention.spec().copy_align_bytes,
            None => 8,
        };
        needed <= self.given_align.max(value.layout().align_bytes)
    }

    /// Writes all bytes of a value, and no others, from `to` on.
    fn fill(&mut self, index: ValueIndex, value: &Value, source: Source<'_>, to: Spot) {
        let ty = value.ty();
        let size = value.layout().size_bytes;
        let in_stage = matches!(to, Spot::Stage(_));
        let whole = self.slots == Slots::Whole && ty.is_word() && !in_stage;
        let width = |size| Width::exact(size).unwrap_or(Width::B8);
        match source {
            Source::Nothing => {}
            Source::Memory(from) => {
                let word = if whole { Width::B8 } else { width(size) };
                self.copies.push(MemoryCopy {
                    index,
                    from: CopyFrom::Bytes(from),
                    to,
                    size,
                    word: ty.is_word().then(|| (Extend::of(ty), word)),
                });
            }
            Source::Context => self.copies.push(MemoryCopy {
                index,
                from: CopyFrom::Context,
                to,
                size,
                word: Some((Extend::of(ty), if whole { Width::B8 } else { width(size) })),
            }),
            Source::Parts(parts) => {
                for part in distinct(parts) {
                    let spot = to.plus(part.off);
                    let Place::Reg(register) = part.place else {
                        self.stores.push(Step::PopX87 { to: spot });
                        continue;
                    };
                    let from = Spot::from(register);
                    let extend = Extend::of(ty);
                    if whole {
                        if self.extends && extend != Extend::None {
                            self.stores.push(Step::Move {
                                from,
                                to: from,
                                width: width(size),
                                extend,
                            });
                        }
                        self.stores.push(plain(from, spot, Width::B8));
                    } else if let Some(exact) = Width::exact(part.size) {
                        self.stores.push(plain(from, spot, exact));
                    } else if in_stage {
                        // The tail of an image, which has room for its last word.
                        self.stores.push(plain(from, spot, Width::B8));
                    } else {
                        let tail = self.stage.room(8, 8);
                        self.stores.push(plain(from, tail, Width::B8));
                        let tail = CopyFrom::Bytes(Bytes::At(tail));
                        self.copy(index, tail, spot, part.size);
                    }
                }
            }
        }
    }

    /// Puts a value into parts.
    fn parts(&mut self, index: ValueIndex, value: &Value, source: Source<'_>, parts: &[Part]) {
        let ty = value.ty();
        match source {
            Source::Nothing => {}
            Source::Context => {
                let [part] = parts else { unreachable!("a word is in one part") };
                let register = part.place.reg().expect("a word is in a register");
                let width = Width::exact(part.size).expect("a word has a width");
                self.contexts.push((register, Extend::of(ty), width));
            }
            Source::Memory(Bytes::Behind(_)) => {
                let image = self.stage.room(value.layout().size_bytes, 8);
                self.fill(index, value, source, image);
                self.load(index, ty, image, parts);
            }
            Source::Memory(Bytes::At(from)) => self.load(index, ty, from, parts),
            Source::Parts(given) => {
                let x87 = |part: &Part| matches!(part.place, Place::X87(_));
                if given == parts && parts.iter().all(x87) {
                    return;
                }
                let data = LazyCell::new(|| ty.data_bytes(value.language()));
                let mut others = Vec::new();
                for part in parts {
                    match (part.place, given.iter().find(|from| covers(from, part, || &data))) {
                        (Place::Reg(to), Some(from)) => {
                            let from = from.place.reg().expect("one that covers is a register");
                            let extend = match Extend::of(ty) {
                                extend if self.extends => extend,
                                _ => Extend::None,
                            };
                            self.transfer(index, from, to, part.size, extend);
                        }
                        _ => others.push(*part),
                    }
                }
                if others.is_empty() {
                    return;
                }
                let needed = |from: &&Part| {
                    let overlaps =
                        |to: &Part| from.off < to.off + to.size && to.off < from.off + from.size;
                    others.iter().any(overlaps)
                };
                let given: Vec<Part> = given.iter().filter(needed).copied().collect();
                let image = self.stage.room(value.layout().size_bytes, 8);
                self.fill(index, value, Source::Parts(&given), image);
                self.load(index, ty, image, &others);
            }
        }
    }

    /// Loads parts of a value from memory. The stage has room for the word that a part ends in;
    /// any other memory may end where the part ends.
    fn load(&mut self, index: ValueIndex, ty: &Type, from: Spot, parts: &[Part]) {
        // The x87 stack is filled from its bottom.
        for part in parts.iter().rev() {
            if let Place::X87(_) = part.place {
                let from = from.plus(part.off);
                self.loads.push(Step::PushX87 { from });
            }
        }
        for part in parts {
            let Place::Reg(to) = part.place else { continue };
            let spot = from.plus(part.off);
            let (from, width) = match (Width::exact(part.size), from) {
                (Some(width), _) => (spot, width),
                (None, Spot::Stage(_)) => (spot, Width::B8),
                (None, _) => {
                    let tail = self.stage.room(8, 8);
                    let bytes = CopyFrom::Bytes(Bytes::At(spot));
                    self.copy(index, bytes, tail, part.size);
                    (tail, Width::B8)
                }
            };
            let extend = match (width, Extend::of(ty)) {
                (Width::B1 | Width::B2, Extend::None) => Extend::Zero,
                (_, extend) => extend,
            };
            self.loads.push(Step::Move { from, to: to.into(), width, extend });
        }
    }

    /// A general-purpose register that holds nothing of value, and is not in `busy`.
    fn general(&self, index: ValueIndex, busy: RegSet) -> Result<Reg, PlanError> {
        let class = RegClass::General;
        let mut free = self.scratch.minus(busy).of_class(class);
        let mut ends = self.ends.minus(busy).of_class(class);
        free.next().or_else(|| ends.next()).ok_or(PlanError::NoScratch { value: index, class })
    }

    /// The steps, in the order that the head of this file explains.
    fn finish(mut self) -> Result<Vec<Step>, PlanError> {
        // A step carries eight bytes: what fits in no frame is refused before there are millions.
        let copied = self.copies.iter().map(|copy| u64::from(copy.size)).sum::<u64>();
        let bytes = copied.max(self.stage.bytes.into());
        if bytes > u64::from(MAX_COPIED_BYTES) {
            return Err(PlanError::FrameTooLarge {
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                limit_bytes: MAX_FRAME_BYTES,
            });
        }
        self.steps.append(&mut self.stores);

        // What still has to be read: sources of transfers, and addresses.
        let mut busy: RegSet = self.transfers.iter().map(|t| t.from).collect();
        busy = busy.union(self.pointer.into_iter().collect());
        for copy in &self.copies {
            if let CopyFrom::Bytes(Bytes::Behind(pointer)) = copy.from {
                busy = busy.union(pointer.reg().into_iter().collect());
            }
        }
        for copy in std::mem::take(&mut self.copies) {
            self.copy_steps(&copy, busy)?;
        }

        // A register that was offered and has a value in it or to come is no scratch here: the
        // scheduler sees the ends of its transfers itself.
        let transfers = std::mem::take(&mut self.transfers);
        moves::schedule(transfers, self.scratch, &mut self.steps)
            .map_err(|(value, class)| PlanError::NoScratch { value, class })?;

        self.steps.append(&mut self.loads);
        for (register, extend, width) in std::mem::take(&mut self.contexts) {
            self.bind(register, extend, width);
        }
        for (to, value) in std::mem::take(&mut self.constants) {
            self.steps.push(Step::Constant { to, value });
        }
        Ok(self.steps)
    }

    fn bind(&mut self, register: Reg, extend: Extend, width: Width) {
        let to = Spot::from(register);
        self.steps.push(plain(Spot::Context, to, Width::B8));
        if extend != Extend::None {
            self.steps.push(Step::Move { from: to, to, width, extend });
        }
    }

    fn copy_steps(&mut self, copy: &MemoryCopy, busy: RegSet) -> Result<(), PlanError> {
        if copy.size == 0 {
            return Ok(());
        }
        let scratch = self.general(copy.index, busy)?;
        let to_scratch = Spot::from(scratch);
        let (extend, stored) = copy.word.unwrap_or((Extend::None, Width::B8));
        let loaded = Width::exact(copy.size).unwrap_or(Width::B8);
        match copy.from {
            CopyFrom::Context => {
                self.bind(scratch, extend, loaded);
                self.steps.push(plain(to_scratch, copy.to, stored));
            }
            CopyFrom::AddressOf(of) => {
                self.steps.push(Step::Address { of, to: scratch });
                self.steps.push(plain(to_scratch, copy.to, Width::B8));
            }
            CopyFrom::Bytes(from) => {
                // Bytes behind an address in memory: it is loaded once, or, if there is one
                // scratch register only, again for each piece.
                let (from, reload) = match from {
                    Bytes::At(spot) => (spot, None),
                    Bytes::Behind(spot) => match spot.reg() {
                        Some(register) => (Spot::At(register, 0), None),
                        None => match self.general(copy.index, busy.with(scratch)) {
                            Ok(pointer) => {
                                self.steps.push(plain(spot, pointer.into(), Width::B8));
                                (Spot::At(pointer, 0), None)
                            }
                            Err(_) => (Spot::At(scratch, 0), Some(spot)),
                        },
                    },
                };
                let mut done = 0;
                while done < copy.size {
                    let left = copy.size - done;
                    let width = [Width::B8, Width::B4, Width::B2, Width::B1]
                        .into_iter()
                        .find(|width| width.bytes() <= left)
                        .expect("at least one byte is left");
                    if let Some(pointer) = reload {
                        self.steps.push(plain(pointer, to_scratch, Width::B8));
                    }
                    let piece = match (width, extend) {
                        (Width::B1 | Width::B2, Extend::None) => Extend::Zero,
                        _ => extend,
                    };
                    self.steps.push(Step::Move {
                        from: from.plus(done),
                        to: to_scratch,
                        width,
                        extend: piece,
                    });
                    let stored = if copy.word.is_some() { stored } else { width };
                    self.steps.push(plain(to_scratch, copy.to.plus(done), stored));
                    done += width.bytes();
                }
            }
        }
        Ok(())
    }
}

/// Whether two spots are the same place where both sides have one area.
fn one_place(from: Spot, to: Spot) -> bool {
    match (from, to) {
        (Spot::Entry(a), Spot::Target(b)) | (Spot::TargetResult(a), Spot::EntryResult(b)) => a == b,
        _ => false,
    }
}

/// A move that extends nothing.
fn plain(from: Spot, to: Spot, width: Width) -> Step {
    Step::Move { from, to, width, extend: Extend::None }
}

/// The parts without those that repeat another one.
fn distinct(parts: &[Part]) -> impl Iterator<Item = &Part> {
    let repeats = |i: usize| i > 0 && parts[i - 1].off == parts[i].off;
    (0..parts.len()).filter(move |i| !repeats(*i)).map(|i| &parts[i])
}

/// Whether a register that holds one part has all that another part needs.
fn covers<'a>(from: &Part, to: &Part, data: impl Fn() -> &'a Vec<bool>) -> bool {
    let bytes = |part: &Part| part.off as usize..(part.off + part.size) as usize;
    let rest = bytes(from).end..bytes(to).end;
    from.off == to.off
        && from.place.reg().is_some()
        && (from.size >= to.size || !data()[rest].contains(&true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::conv::Convention;
    use crate::abi::sig::Signature;

    const R12: RegSet = RegSet::of_gprs(&[Gpr::R12]);

    fn signature(text: &str) -> Signature {
        text.parse().expect("a signature")
    }

    fn assign(convention: Convention, text: &str) -> Assignment {
        convention.assign(&signature(text)).expect("assignable")
    }

    fn go(text: &str) -> Assignment {
        assign(Convention::GoAbiInternal, text)
    }

    fn sysv(text: &str) -> Assignment {
        assign(Convention::SystemV, text)
    }

    fn words(text: &str) -> Assignment {
        Assignment::words(&signature(text))
    }

    fn plan(
        entry: &Assignment,
        target: &Assignment,
        bound_param: Option<usize>,
        scratch: RegSet,
    ) -> Result<Plan, PlanError> {
        Plan::new(&PlanRequest {
            entry,
            target,
            bound_param,
            arg_scratch: scratch,
            result_scratch: scratch,
        })
    }

    /// The lines of a plan that needs no scratch.
    fn lines(entry: &Assignment, target: &Assignment, bound: Option<usize>) -> Vec<String> {
        let plan = plan(entry, target, bound, RegSet::EMPTY).expect("plannable");
        plan.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn go_arguments_are_extended_for_c() {
        let text = "fn(i8, u16, i32, bool, f32) -> i8";
        assert_eq!(
            lines(&go(text), &sysv(text), None),
            ["rsi <- zero2 rbx", "rdx <- 4 rcx", "rcx <- zero1 rdi", "rdi <- sign1 rax", "call"]
        );
    }

    #[test]
    fn c_results_and_go_results_in_place() {
        let text = "fn() -> i8";
        assert_eq!(lines(&go(text), &sysv(text), None), ["call"]);
        assert_eq!(lines(&sysv(text), &go(text), None), ["call", "rax <- sign1 rax"]);
    }

    #[test]
    fn c_arguments_move_in_an_order_that_overwrites_none() {
        // System V rdi rsi rdx rcx r8 to Go rax rbx rcx rdi rsi.
        let text = "fn(i64, i64, i64, i64, i64)";
        assert_eq!(
            lines(&sysv(text), &go(text), None),
            ["rax <- rdi", "rbx <- rsi", "rdi <- rcx", "rcx <- rdx", "rsi <- r8", "call"]
        );
    }

    #[test]
    fn a_cycle_is_exchanged() {
        // Behind the context, the second argument goes from rsi to rcx, the fourth from rcx to rsi.
        let entry = sysv("fn(i64, i64, i64, i64)");
        let target = go("fn(ptr, i64, i64, i64, i64)");
        assert_eq!(
            lines(&entry, &target, Some(0)),
            ["rbx <- rdi", "rdi <- rdx", "rsi <-> rcx", "rax <- 8 context", "call"]
        );
    }

    #[test]
    fn whole_words_go_to_the_stack_of_c() {
        let text = "fn(i64, i64, i64, i64, i64, i64, i8, f32, i32)";
        let plan = plan(&go(text), &sysv(text), None, RegSet::EMPTY).expect("plannable");
        let steps: Vec<String> = plan.args.iter().take(3).map(Step::to_string).collect();
        assert_eq!(
            steps,
            ["r9 <- sign1 r9", "[target+0] <- 8 r9", "[target+8] <- 8 r10"].map(str::to_owned)
        );
        assert_eq!(plan.target_area_bytes, 16);
    }

    #[test]
    fn a_bound_context_comes_last() {
        let entry = sysv("fn(i32, f64)");
        assert_eq!(
            lines(&entry, &sysv("fn(i32, f64, ptr)"), Some(2)),
            ["rsi <- 8 context", "call"]
        );
        assert_eq!(
            lines(&entry, &sysv("fn(ptr, i32, f64)"), Some(0)),
            ["rsi <- 4 rdi", "rdi <- 8 context", "call"]
        );
        assert_eq!(
            lines(&entry, &sysv("fn(u8, i32, f64)"), Some(0)),
            ["rsi <- 4 rdi", "rdi <- 8 context", "rdi <- zero1 rdi", "call"]
        );
        let target = words("fn(i32, f64, ptr)");
        let plan = plan(&entry, &target, Some(2), R12).expect("plannable");
        assert_eq!(
            plan.to_string(),
            "[target+0] <- 4 rdi\n[target+8] <- 8 xmm0\nr12 <- 8 context\n\
             [target+16] <- 8 r12\ncall\n"
        );
        assert_eq!(plan.writes, R12);
        assert_eq!(plan.target_area_bytes, 32);
    }

    #[test]
    fn words_are_loaded_after_everything_else() {
        let text = "fn(i8, f32, u32) -> (bool, f64)";
        assert_eq!(
            lines(&words(text), &go(text), None),
            [
                "rax <- sign1 [entry+0]",
                "xmm0 <- 4 [entry+8]",
                "rbx <- 4 [entry+16]",
                "call",
                "[entry result+0] <- 1 rax",
                "[entry result+8] <- 8 xmm0"
            ]
        );
    }

    #[test]
    fn memory_is_copied_through_a_register_that_is_free() {
        let text = "fn(i16, f64)";
        let (entry, target) = (words(text), words(text));
        let copied = plan(&entry, &target, None, R12).expect("plannable");
        assert_eq!(
            copied.to_string(),
            "r12 <- sign2 [entry+0]\n[target+0] <- 2 r12\nr12 <- 8 [entry+8]\n\
             [target+8] <- 8 r12\ncall\n"
        );
        let error = plan(&entry, &target, None, RegSet::ALL_XMMS).expect_err("no scratch");
        assert_eq!(
            error.to_string(),
            "parameter 0 needs a general-purpose scratch register on its way; offer one in \
             arg_scratch that carries no value"
        );

        // rcx still waits for its move; r10 gets its value later and is free until then.
        let ten = "fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)";
        let offered = RegSet::of_gprs(&[Gpr::RCX, Gpr::R10]);
        let busy = plan(&sysv(ten), &go(ten), None, offered).expect("plannable");
        assert_eq!(busy.args[0].to_string(), "r10 <- 8 [entry+24]");

        // rdi was stored and is free.
        let stored =
            plan(&sysv("fn(i32)"), &words("fn(i32, ptr)"), Some(1), RegSet::of_gprs(&[Gpr::RDI]));
        let steps: Vec<String> =
            stored.expect("plannable").args.iter().map(Step::to_string).collect();
        assert_eq!(steps, ["[target+0] <- 4 rdi", "rdi <- 8 context", "[target+8] <- 8 rdi"]);
    }

    /// The lines of a plan between C conventions, with scratch.
    fn c_lines(entry: Convention, target: Convention, text: &str) -> Vec<String> {
        let (entry, target) = (assign(entry, text), assign(target, text));
        let plan = plan(&entry, &target, None, R12).expect("plannable");
        plan.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn parts_that_agree_go_from_register_to_register() {
        // f64 is an integer to Win64 when it is in a struct, and goes on as one.
        assert_eq!(
            c_lines(
                Convention::SystemV,
                Convention::Win64,
                "fn(struct { f64 }, struct { f32, i8 }, complex<f32>)"
            ),
            ["rcx <- xmm0", "rdx <- rdi", "r8 <- xmm1", "call"]
        );
        // The padding behind i8 is nobody's.
        let text = "fn(struct { i64, i8 })";
        assert_eq!(lines(&sysv(text), &go(text), None), ["rax <- rdi", "rbx <- 4 rsi", "call"]);
    }

    #[test]
    fn parts_that_differ_go_by_way_of_the_stage() {
        let text = "fn(struct { i64, i32, i32 })";
        assert_eq!(
            lines(&go(text), &sysv(text), None),
            [
                "[stage+8] <- 4 rbx",
                "[stage+12] <- 4 rcx",
                "rdi <- rax",
                "rsi <- 8 [stage+8]",
                "call"
            ]
        );
    }

    #[test]
    fn tails_are_neither_over_read_nor_over_written() {
        let text = "fn([u8; 7])";
        let (entry, target) = (assign(Convention::GoAbi0, text), sysv(text));
        let to_registers = plan(&entry, &target, None, R12).expect("plannable");
        assert_eq!(
            to_registers.to_string(),
            "r12 <- 4 [entry+0]\n[stage+0] <- 4 r12\nr12 <- zero2 [entry+4]\n\
             [stage+4] <- 2 r12\nr12 <- zero1 [entry+6]\n[stage+6] <- 1 r12\n\
             rdi <- 8 [stage+0]\ncall\n"
        );
        let to_memory = plan(&target, &entry, None, R12).expect("plannable");
        assert_eq!(
            to_memory.to_string(),
            "[stage+0] <- 8 rdi\nr12 <- 4 [stage+0]\n[target+0] <- 4 r12\n\
             r12 <- zero2 [stage+4]\n[target+4] <- 2 r12\nr12 <- zero1 [stage+6]\n\
             [target+6] <- 1 r12\ncall\n"
        );
        assert_eq!((to_memory.stage_bytes, to_memory.frame_bytes()), (16, 32));
    }

    #[test]
    fn an_empty_value_by_reference_has_an_aligned_address() {
        let text = "fn(struct align(64) {})";
        let plan = plan(&sysv(text), &assign(Convention::Win64, text), None, R12);
        let plan = plan.expect("plannable");
        assert_eq!(plan.to_string(), "rcx <- address [stage+0]\ncall\n");
        assert_eq!((plan.frame_bytes(), plan.frame_align_bytes()), (80, 64));
    }

    #[test]
    fn references_and_hidden_results() {
        // The entry's memory for the result is the target's. The argument is copied for Win64.
        assert_eq!(
            c_lines(Convention::SystemV, Convention::Win64, "fn(struct { i64, i32 }) -> [i64; 3]"),
            [
                "[stage+0] <- 8 rsi",
                "[stage+8] <- 8 rdx",
                "rcx <- rdi",
                "rdx <- address [stage+0]",
                "call"
            ]
        );
        // System V returns it in registers, Win64's caller wants it in memory.
        assert_eq!(
            c_lines(Convention::Win64, Convention::SystemV, "fn() -> struct { i64, i32 }"),
            [
                "[stage+0] <- 8 rcx",
                "call",
                "r12 <- 8 [stage+0]",
                "[r12+0] <- 8 rax",
                "[r12+8] <- 8 rdx",
                "rax <- 8 [stage+0]"
            ]
        );
        // The other way round.
        assert_eq!(
            c_lines(Convention::SystemV, Convention::Win64, "fn() -> struct { i64, i32 }"),
            ["rcx <- address [stage+0]", "call", "rax <- 8 [stage+0]", "rdx <- 8 [stage+8]"]
        );
    }

    #[test]
    fn x87_and_variadics() {
        assert_eq!(
            c_lines(Convention::SystemV, Convention::SystemV, "fn() -> longdouble"),
            ["call"]
        );
        assert_eq!(
            c_lines(Convention::Win64, Convention::SystemV, "fn() -> longdouble"),
            ["[stage+0] <- 8 rcx", "call", "rax <- 8 [stage+0]", "[rax+0] <- pop x87"]
        );
        let complex = "fn() -> complex<longdouble>";
        assert_eq!(
            c_lines(Convention::SystemV, Convention::Win64, complex),
            ["rcx <- address [stage+0]", "call", "push x87 <- [stage+16]", "push x87 <- [stage+0]"]
        );
        let variadic = "fn(ptr, ..., f64)";
        assert_eq!(
            c_lines(Convention::Win64, Convention::SystemV, variadic),
            ["rdi <- rcx", "xmm0 <- xmm1", "rax <- 1", "call"]
        );
        assert_eq!(
            c_lines(Convention::SystemV, Convention::Win64, variadic),
            ["rcx <- rdi", "xmm1 <- xmm0", "rdx <- xmm0", "call"]
        );
    }

    #[test]
    fn what_a_stub_must_save() {
        let saved = |entry: Convention, target: Convention, text| {
            let (entry, target) = (assign(entry, text), assign(target, text));
            let plan = plan(&entry, &target, None, R12).expect("plannable");
            plan.must_save(&entry, &target).to_string()
        };
        let text = "fn(i64)";
        let (sysv, win64) = (Convention::SystemV, Convention::Win64);
        assert_eq!(saved(sysv, sysv, text), "{}");
        assert_eq!(
            saved(win64, sysv, text),
            "{rsi, rdi, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15}"
        );
        assert_eq!(saved(sysv, Convention::GoAbiInternal, text), "{rbx, r12, r13, r14, r15}");
        assert_eq!(
            saved(Convention::Aapcs64, Convention::GoAbi0Aarch64, text),
            "{x19, x20, x21, x22, x23, x24, x25, x26, x27, x28, v8, v9, v10, v11, v12, v13, v14, \
             v15}"
        );
    }

    #[test]
    fn values_that_no_stub_can_carry_are_named() {
        let text = "fn(i8, struct { i64, struct {} })";
        let error = plan(&go(text), &sysv(text), None, R12).expect_err("no plan");
        assert_eq!(
            error.to_string(),
            "parameter 1 (struct { i64, struct {} }): C and Go lay it out differently, because Go \
             pads behind a last field of size 0; leave that field out"
        );
        let aarch64 = assign(Convention::Aapcs64, "fn()");
        let error = plan(&sysv("fn()"), &aarch64, None, R12).expect_err("no plan");
        assert_eq!(error.to_string(), "SystemV is a convention of amd64, Aapcs64 one of aarch64");
        let win64 = |text| assign(Convention::Win64, text);
        let text = "fn([i64; 1000], [i64; 1000]) -> [i64; 1000]";
        let words = words(text);
        let error = plan(&words, &win64(text), None, R12).expect_err("no plan");
        assert_eq!(
            error.to_string(),
            "the stub needs 24032 bytes of stack for copies of values, at most 8192 are \
             possible; pass pointers instead"
        );
        // Refused before there are millions of steps, also where no stage is needed.
        let megabytes = Assignment::words(&signature("fn([u8; 4000000])"));
        let error = plan(&megabytes, &megabytes, None, R12).expect_err("no plan");
        assert!(matches!(error, PlanError::FrameTooLarge { bytes: 4_000_000, .. }), "{error}");
        let most = "fn([[u8; 536870912]; 2], [[u8; 536870912]; 2], [[u8; 536870912]; 2]) -> i8";
        let most = Assignment::words(&signature(most));
        let error = plan(&most, &most, None, R12).expect_err("no plan");
        assert!(matches!(error, PlanError::FrameTooLarge { .. }), "{error}");
        // By reference on both sides, nothing is copied.
        let passed = plan(&win64(text), &win64(text), None, R12).expect("plannable");
        assert_eq!((passed.stage_bytes, passed.args.len()), (0, 0));
    }

    #[test]
    fn results_use_their_own_scratch() {
        let words = words("fn() -> i32");
        let request = PlanRequest {
            entry: &words,
            target: &words,
            bound_param: None,
            arg_scratch: R12,
            result_scratch: RegSet::EMPTY,
        };
        let error = Plan::new(&request).expect_err("no scratch");
        let (value, class) = (ValueIndex::Result(0), RegClass::General);
        assert_eq!(error, PlanError::NoScratch { value, class });
    }

    #[test]
    fn mismatches_are_named() {
        let error = |entry: &str, target: &str, bound| {
            plan(&go(entry), &go(target), bound, R12).expect_err("no plan").to_string()
        };
        assert_eq!(
            error("fn(i64)", "fn(u64)", None),
            "parameter 0 is i64 at the entry and u64 at the target; assign both sides from one \
             signature, apart from the bound parameter"
        );
        assert!(
            error("fn(i64)", "fn()", None)
                .starts_with("parameter 0 is i64 at the entry and nothing")
        );
        assert!(
            error("fn()", "fn(i8, ptr)", Some(1))
                .starts_with("parameter 0 is nothing at the entry and i8")
        );
        assert!(error("fn() -> i8", "fn() -> u8", None).starts_with("result 0 is i8"));
        assert_eq!(
            error("fn()", "fn(ptr)", Some(1)),
            "parameter 1 cannot be bound: the target has 1 parameters, counted from 0"
        );
        assert_eq!(
            error("fn()", "fn(f32)", Some(0)),
            "parameter 0 (f32) cannot be bound: a bound parameter is an integer or a pointer"
        );
    }
}
