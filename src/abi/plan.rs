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
//! 1. registers are stored to memory; the memory written and the memory read are never the same;
//! 2. memory is copied to memory, through a scratch register that holds no value: one of those just
//!    stored, or one that only receives its value later, or another one;
//! 3. registers move to registers, all at once (see `moves.rs`);
//! 4. registers that no value is waiting in any more are loaded from memory,
//! 5. and at last from the bound constant.
//!
//! # Widths
//!
//! * A load reads the bytes of the value and no more: an argument may end where a page ends.
//! * A store writes the bytes of the value and no more, unless the receiving side may load the
//!   whole word ([`Slots::Whole`]); then the value is extended in its register and the word is
//!   stored.
//! * A narrow integer is extended where the receiving side relies on it and the giving side
//!   does not do it ([`Narrow`]). A load always extends, since that is free.

use std::fmt;

use super::assign::{Assignment, Passing, Value};
use super::conv::{Narrow, Slots};
use super::error::{PlanError, ValueIndex};
use super::loc::{Gpr, Reg, RegClass, RegSet, Vreg, Xmm, Xreg};
use super::moves::{self, Transfer};
use super::ty::Type;

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
            Spot::Context => f.write_str("context"),
        }
    }
}

/// How many bytes a move carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Width {
    /// One byte.
    B1,
    /// Two bytes.
    B2,
    /// Four bytes.
    B4,
    /// Eight bytes.
    B8,
}

impl Width {
    /// The number of bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            Width::B1 => 1,
            Width::B2 => 2,
            Width::B4 => 4,
            Width::B8 => 8,
        }
    }

    /// The width of a value of this type in memory.
    pub fn of(ty: &Type) -> Width {
        match ty.size_bytes() {
            1 => Width::B1,
            2 => Width::B2,
            4 => Width::B4,
            _ => Width::B8,
        }
    }
}

/// How a move of one or two bytes fills the register up to 32 bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extend {
    /// Not at all: the move carries four or eight bytes, or stores.
    None,
    /// With zeros.
    Zero,
    /// With copies of the sign bit.
    Sign,
}

impl Extend {
    /// How a value of this type is widened to 32 bits, if it is narrower.
    pub fn of(ty: &Type) -> Extend {
        match ty.size_bytes() {
            1 | 2 if ty.is_signed() => Extend::Sign,
            1 | 2 => Extend::Zero,
            _ => Extend::None,
        }
    }
}

/// One step of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Step {
    /// Copies a value. At least one of the two spots is a register.
    ///
    /// * To a general-purpose register, from one or from memory: all 64 bits are written. One or
    ///   two bytes are extended to 32 bits as `extend` says, which is not [`Extend::None`], and by
    ///   zeros from there. Four bytes are extended by zeros.
    /// * To a general-purpose register from [`Spot::Context`]: eight bytes.
    /// * From a vector register to one: all 128 bits, whatever the width says of the value.
    /// * To a vector register from memory: four or eight bytes, zeros above them.
    /// * To memory: exactly `width` low bytes of the register; four or eight of a vector register.
    ///
    /// Except in the first case `extend` is [`Extend::None`].
    /// Values do not move between the two classes of registers.
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
}

impl Step {
    /// The registers that the step writes.
    pub fn writes(self) -> RegSet {
        match self {
            Step::Move { to, .. } => to.reg().into_iter().collect(),
            Step::SwapGpr(a, b) => RegSet::of_gprs(&[a, b]),
        }
    }
}

/// For a person: `rdi <- rax`, `rsi <- sign1 rbx`, `[target+0] <- 8 r10`, `rdi <-> rsi`. The number
/// is the width in bytes, left out between whole registers.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SwapGpr(a, b) => write!(f, "{a} <-> {b}"),
            Step::Move {
                from,
                to,
                width,
                extend,
            } => {
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
    /// Every register that a step writes.
    pub writes: RegSet,
}

impl Plan {
    /// Plans the moves between two assignments.
    ///
    /// # Errors
    ///
    /// The assignments are not of the same signature, the bound parameter is none or is not an
    /// integer, or a value needs a scratch register and none is offered.
    pub fn new(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
        let PlanRequest { entry, target, .. } = *request;
        if let Some(index) = request.bound_param {
            check_bound(target, index)?;
        }

        let mut unbound: Vec<(usize, &Value)> = target.params().iter().enumerate().collect();
        let bound = request.bound_param.map(|index| unbound.remove(index));
        let passed = unbound.iter().map(|(_, value)| value.ty());
        check_types(entry.params(), passed, ValueIndex::Param)?;
        let returned = target.results().iter().map(Value::ty);
        check_types(entry.results(), returned, ValueIndex::Result)?;

        // The bound parameter comes last, so it is the last of every group of steps.
        let args = entry.params().iter().map(|value| spot(value, Spot::Entry));
        let args = args
            .chain([Some(Spot::Context)])
            .zip(unbound.into_iter().chain(bound));
        let args = args
            .map(|(from, (index, value))| {
                let index = ValueIndex::Param(index);
                Journey::new(from, spot(value, Spot::Target), value, index)
            })
            .collect::<Result<Vec<Journey<'_>>, PlanError>>()?;
        let results = target.results().iter().zip(entry.results()).enumerate();
        let results = results
            .map(|(index, (from, to))| {
                let from = spot(from, Spot::TargetResult);
                let index = ValueIndex::Result(index);
                Journey::new(from, spot(to, Spot::EntryResult), to, index)
            })
            .collect::<Result<Vec<Journey<'_>>, PlanError>>()?;

        let args = Carrier::between(entry, target, request.arg_scratch).carry(&args)?;
        let results = Carrier::between(target, entry, request.result_scratch).carry(&results)?;
        let writes = args
            .iter()
            .chain(&results)
            .flat_map(|step| step.writes().iter());
        Ok(Plan {
            writes: writes.collect(),
            args,
            results,
            target_area_bytes: target.total_bytes().next_multiple_of(16),
        })
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

/// The one place of a number or pointer.
fn spot(value: &Value, area: fn(u32) -> Spot) -> Option<Spot> {
    match (value.passing(), value.parts()) {
        _ if !Type::SCALARS.contains(value.ty()) => None,
        (Passing::Area(offset), _) => Some(area(*offset)),
        (_, [part]) => part.place.reg().map(Spot::from),
        _ => None,
    }
}

fn check_bound(target: &Assignment, index: usize) -> Result<(), PlanError> {
    let params = target.params();
    let ty = match params.get(index) {
        Some(value) => value.ty(),
        None => {
            return Err(PlanError::BoundOutOfRange {
                index,
                params: params.len(),
            });
        }
    };
    match ty.class() {
        RegClass::General => Ok(()),
        RegClass::Vector => Err(PlanError::BoundNotInteger {
            index,
            ty: ty.clone(),
        }),
    }
}

fn check_types<'a>(
    entry: &[Value],
    mut target: impl Iterator<Item = &'a Type>,
    index: fn(usize) -> ValueIndex,
) -> Result<(), PlanError> {
    let mut entry = entry.iter().map(Value::ty);
    for i in 0.. {
        match (entry.next(), target.next()) {
            (None, None) => break,
            (entry, target) if entry == target => {}
            (entry, target) => {
                return Err(PlanError::SignatureMismatch {
                    value: index(i),
                    entry: entry.cloned(),
                    target: target.cloned(),
                });
            }
        }
    }
    Ok(())
}

/// One value on its way.
#[derive(Clone, Copy)]
struct Journey<'a> {
    from: Spot,
    to: Spot,
    ty: &'a Type,
    /// As the side counts it that it goes to.
    index: ValueIndex,
}

impl<'a> Journey<'a> {
    fn new(
        from: Option<Spot>,
        to: Option<Spot>,
        value: &'a Value,
        index: ValueIndex,
    ) -> Result<Journey<'a>, PlanError> {
        match (from, to) {
            (Some(from), Some(to)) => Ok(Journey {
                from,
                to,
                ty: value.ty(),
                index,
            }),
            _ => Err(PlanError::Unsupported {
                value: index,
                ty: value.ty().clone(),
            }),
        }
    }

    fn is_narrow(self) -> bool {
        Extend::of(self.ty) != Extend::None
    }
}

/// Carries values from one side to the other: arguments to the target, results to the entry.
struct Carrier {
    /// Narrow values in registers come with garbage above them, and must not arrive so.
    extends: bool,
    /// Integers in memory arrive as whole words.
    slots: Slots,
    scratch: RegSet,
    steps: Vec<Step>,
}

impl Carrier {
    fn between(giver: &Assignment, receiver: &Assignment, scratch: RegSet) -> Carrier {
        Carrier {
            extends: giver.narrow() != Narrow::ExtendedTo32 && receiver.narrow() != Narrow::Garbage,
            slots: receiver.slots(),
            scratch,
            steps: Vec::new(),
        }
    }

    /// The steps, in the order that the head of this file explains.
    fn carry(mut self, journeys: &[Journey<'_>]) -> Result<Vec<Step>, PlanError> {
        for journey in journeys {
            if let (Some(register), None) = (journey.from.reg(), journey.to.reg()) {
                if self.stores_word(*journey) && self.extends {
                    self.extend_in_place(register, journey.ty);
                }
                self.store(*journey, register);
            }
        }

        let transfers: Vec<Transfer> = journeys.iter().filter_map(|j| self.transfer(*j)).collect();
        let waiting: RegSet = transfers.iter().map(|t| t.from).collect();
        for journey in journeys {
            if let (None, None) = (journey.from.reg(), journey.to.reg()) {
                let mut free = self.scratch.minus(waiting).gprs();
                let scratch = Reg::Gpr(free.next().ok_or(PlanError::NoScratch {
                    value: journey.index,
                    class: RegClass::General,
                })?);
                self.load(*journey, scratch);
                self.store(*journey, scratch);
            }
        }

        // A register that was offered and has a value in it or to come is no scratch here: the
        // scheduler sees the ends of its transfers itself.
        moves::schedule(transfers, self.scratch, &mut self.steps).map_err(|to| {
            let blocked = journeys.iter().find(|j| j.to.reg() == Some(to));
            PlanError::NoScratch {
                value: blocked
                    .expect("the scheduler only moves to destinations")
                    .index,
                class: to.class(),
            }
        })?;

        for journey in journeys {
            if let (None, Some(register)) = (journey.from.reg(), journey.to.reg()) {
                self.load(*journey, register);
            }
        }
        Ok(self.steps)
    }

    /// The journey as a move between registers, if it is one.
    fn transfer(&self, journey: Journey<'_>) -> Option<Transfer> {
        let extends = self.extends && journey.is_narrow();
        Some(Transfer {
            from: journey.from.reg()?,
            to: journey.to.reg()?,
            width: match Width::of(journey.ty) {
                narrow if extends => narrow,
                Width::B8 => Width::B8,
                _ => Width::B4,
            },
            extend: if extends {
                Extend::of(journey.ty)
            } else {
                Extend::None
            },
        })
    }

    /// Whether the value is written to memory as a whole word.
    fn stores_word(&self, journey: Journey<'_>) -> bool {
        self.slots == Slots::Whole && journey.ty.class() == RegClass::General
    }

    /// From memory or the bound constant to a register, extended.
    fn load(&mut self, journey: Journey<'_>, register: Reg) {
        if journey.from == Spot::Context {
            self.push(Spot::Context, register.into(), Width::B8, Extend::None);
            self.extend_in_place(register, journey.ty);
        } else {
            let (width, extend) = (Width::of(journey.ty), Extend::of(journey.ty));
            self.push(journey.from, register.into(), width, extend);
        }
    }

    /// From a register, extended if it has to be, to memory.
    fn store(&mut self, journey: Journey<'_>, register: Reg) {
        let width = if self.stores_word(journey) {
            Width::B8
        } else {
            Width::of(journey.ty)
        };
        self.push(register.into(), journey.to, width, Extend::None);
    }

    /// Extends a value in its register, unless its type is as wide as 32 bits.
    fn extend_in_place(&mut self, register: Reg, ty: &Type) {
        let extend = Extend::of(ty);
        if extend != Extend::None {
            self.push(register.into(), register.into(), Width::of(ty), extend);
        }
    }

    fn push(&mut self, from: Spot, to: Spot, width: Width, extend: Extend) {
        self.steps.push(Step::Move {
            from,
            to,
            width,
            extend,
        });
    }
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
            [
                "rsi <- zero2 rbx",
                "rdx <- 4 rcx",
                "rcx <- zero1 rdi",
                "rdi <- sign1 rax",
                "call"
            ]
        );
    }

    #[test]
    fn c_results_and_go_results_in_place() {
        let text = "fn() -> i8";
        assert_eq!(lines(&go(text), &sysv(text), None), ["call"]);
        assert_eq!(
            lines(&sysv(text), &go(text), None),
            ["call", "rax <- sign1 rax"]
        );
    }

    #[test]
    fn c_arguments_move_in_an_order_that_overwrites_none() {
        // System V rdi rsi rdx rcx r8 to Go rax rbx rcx rdi rsi.
        let text = "fn(i64, i64, i64, i64, i64)";
        assert_eq!(
            lines(&sysv(text), &go(text), None),
            [
                "rax <- rdi",
                "rbx <- rsi",
                "rdi <- rcx",
                "rcx <- rdx",
                "rsi <- r8",
                "call"
            ]
        );
    }

    #[test]
    fn a_cycle_is_exchanged() {
        // Behind the context, the second argument goes from rsi to rcx, the fourth from rcx to rsi.
        let entry = sysv("fn(i64, i64, i64, i64)");
        let target = go("fn(ptr, i64, i64, i64, i64)");
        assert_eq!(
            lines(&entry, &target, Some(0)),
            [
                "rbx <- rdi",
                "rdi <- rdx",
                "rsi <-> rcx",
                "rax <- 8 context",
                "call"
            ]
        );
    }

    #[test]
    fn whole_words_go_to_the_stack_of_c() {
        let text = "fn(i64, i64, i64, i64, i64, i64, i8, f32, i32)";
        let plan = plan(&go(text), &sysv(text), None, RegSet::EMPTY).expect("plannable");
        let steps: Vec<String> = plan.args.iter().take(3).map(Step::to_string).collect();
        assert_eq!(
            steps,
            [
                "r9 <- sign1 r9",
                "[target+0] <- 8 r9",
                "[target+8] <- 8 r10"
            ]
            .map(str::to_owned)
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
            [
                "rsi <- 4 rdi",
                "rdi <- 8 context",
                "rdi <- zero1 rdi",
                "call"
            ]
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
        let stored = plan(
            &sysv("fn(i32)"),
            &words("fn(i32, ptr)"),
            Some(1),
            RegSet::of_gprs(&[Gpr::RDI]),
        );
        let steps: Vec<String> = stored
            .expect("plannable")
            .args
            .iter()
            .map(Step::to_string)
            .collect();
        assert_eq!(
            steps,
            [
                "[target+0] <- 4 rdi",
                "rdi <- 8 context",
                "[target+8] <- 8 rdi"
            ]
        );
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
            plan(&go(entry), &go(target), bound, R12)
                .expect_err("no plan")
                .to_string()
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
