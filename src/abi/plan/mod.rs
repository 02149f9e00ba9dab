//! Plans: the moves that carry a call from one assignment to another.
//!
//! A plan names no instruction and owns no address. The emitter turns each step into an
//! instruction or two, and the model machine executes it; neither writes a register that the plan
//! does not name.
//!
//! # Files
//!
//! [`Plan::new`] here decides what has to move from where to where. `carry.rs` turns the values of
//! one half, arguments or results, into the steps of `step.rs`; `shuffle.rs` orders moves between
//! registers, and `staging.rs` reserves the stub's own memory.
//!
//! # Order
//!
//! The arguments move first, then the target runs, then the results move. Nothing is written before
//! it was read, because each half keeps this order:
//!
//! 1. Registers are stored to memory. The memory written and the memory read never overlap, apart
//!    from the staging area.
//! 2. Memory is copied to memory through a scratch register that holds no value: an offered one,
//!    one that only receives its value later, or one that was just stored.
//! 3. Registers move to registers, all at once.
//! 4. Registers that hold no value still to be moved are loaded from memory or get an address.
//! 5. Bound constants are loaded last.
//!
//! # In place
//!
//! A stub that needs no memory of its own and has nothing to do after the call can jump to the
//! target, which then returns to the entry's caller: [`Plan::tail`]. The target's area is then the
//! entry's. Values in memory stay where they are, and no step writes memory.
//!
//! # Staging
//!
//! Where the two sides cut a value into different parts, its image is put together in the staging
//! area: a piece of the stub's frame that lives as long as the call.
//!
//! # Widths
//!
//! * A load reads the bytes of the value and no more, because an argument may end where a page
//!   ends. A part of 3, 5, 6 or 7 bytes passes through the staging area, in pieces.
//! * A store writes the bytes of the value and no more, unless the receiving side may load the
//!   whole word ([`Slots::Whole`](super::Slots::Whole)). Then the value is extended in its register
//!   and the word is stored.
//! * A narrow integer is extended where the receiving side relies on it and the giving side
//!   does not do it ([`Narrow`]). A load always extends, since that costs nothing. Fields of
//!   structs are never extended.

mod carry;
mod error;
mod shuffle;
mod staging;
mod step;
#[cfg(test)]
mod tests;

use std::fmt;

use self::carry::{Carry, Location, operand};
pub use self::error::PlanError;
pub use self::staging::MAX_FRAME_BYTES;
use self::staging::Staging;
pub use self::step::{Extend, Operand, Step, Width};
use super::assign::{Assignment, Value};
use super::conv::spec::Narrow;
use super::reg::RegSet;
use super::types::ValueIndex;

/// The two sides of a stub, and what its plan may use.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest<'a> {
    /// How the stub is entered.
    pub entry: &'a Assignment,
    /// How the stub calls its target. The signature is the entry's, apart from the bound parameter.
    pub target: &'a Assignment,
    /// The index of a target parameter that is a constant of the stub, which the caller does not
    /// pass. It is an integer or a pointer.
    pub bound_param: Option<usize>,
    /// The registers that the plan may write before the call, besides those that values come from
    /// and go to. The plan uses an offered register that holds an argument only after the argument
    /// has left it. Never offer `rsp`, or a register in which the stub itself keeps something.
    pub arg_scratch: RegSet,
    /// The registers that the plan may write after the call, by the same rules.
    pub result_scratch: RegSet,
}

/// The moves of one stub.
///
/// ```
/// use footbridge::abi::{Convention, Gpr, Plan, PlanRequest, RegSet};
///
/// // JIT code in Go's convention calls a C function whose first parameter is bound.
/// let entry = Convention::GoAbiInternal.assign(&"fn(i8, f64) -> i64".parse()?)?;
/// let target = Convention::SystemV.assign(&"fn(ptr, i8, f64) -> i64".parse()?)?;
/// let plan = Plan::new(&PlanRequest {
///     entry: &entry,
///     target: &target,
///     bound_param: Some(0),
///     arg_scratch: RegSet::EMPTY,
///     result_scratch: RegSet::EMPTY,
/// })?;
/// assert_eq!(plan.to_string(), "rsi <- sign1 rax\nrdi <- 8 context\ncall\n");
/// assert_eq!(plan.writes, RegSet::of_gprs(&[Gpr::RSI, Gpr::RDI]));
/// assert_eq!((plan.staging_off(), plan.frame_bytes(), plan.frame_align_bytes()), (0, 0, 16));
/// // System V preserves all that Go's caller relies on.
/// assert!(plan.must_save(&entry, &target).is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The steps before the call, in order.
    pub args: Vec<Step>,
    /// The steps after the call, in order.
    pub results: Vec<Step>,
    /// The size of the area that [`Operand::Target`] lies in, in bytes: the target's
    /// [`total_bytes`](Assignment::total_bytes) rounded up to 16.
    pub target_area_bytes: u32,
    /// The alignment of that area, in bytes: a multiple of 16.
    pub target_area_align_bytes: u32,
    /// The size of the staging area, in bytes: a multiple of 16.
    pub staging_bytes: u32,
    /// The alignment of the staging area, in bytes: a multiple of 16.
    pub staging_align_bytes: u32,
    /// Every register that a step writes.
    pub writes: RegSet,
    /// Whether the target's area is the entry's: see [`Plan::tail`].
    pub in_place: bool,
}

impl Plan {
    /// Plans the moves between two assignments.
    ///
    /// # Errors
    ///
    /// * The assignments are not of one signature, or not of one machine.
    /// * The languages lay a value out differently.
    /// * The bound parameter does not exist or is not an integer.
    /// * A value needs a scratch register and none is offered.
    /// * The frame would be too large.
    ///
    /// ```
    /// use footbridge::abi::{Assignment, Convention, Plan, PlanRequest, RegSet};
    ///
    /// let signature = "fn(i32, f64)".parse()?;
    /// let plan = Plan::new(&PlanRequest {
    ///     entry: &Convention::Win64.assign(&signature)?,
    ///     target: &Assignment::packed(&signature),
    ///     bound_param: None,
    ///     arg_scratch: RegSet::EMPTY,
    ///     result_scratch: RegSet::EMPTY,
    /// })?;
    /// assert_eq!(plan.to_string(), "[target+0] <- 4 rcx\n[target+8] <- 8 xmm1\ncall\n");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
        Plan::build(request, false)
    }

    /// The plan of a stub that keeps nothing on the stack and jumps to the target, if there is one.
    ///
    /// The target finds the area that the entry's caller made, and returns to that caller. There is
    /// such a plan if
    ///
    /// 1. the target's memory is as it expects it: each of its parameters and results on the stack
    ///    has the same place on both sides, and the caller reserved all of its area, with its
    ///    alignment;
    /// 2. the target leaves everything as the entry's caller expects it: it preserves what the
    ///    entry's convention preserves or pins, and the steps write none of that;
    /// 3. the target returns results where the entry's caller expects them;
    /// 4. no value needs the staging area.
    ///
    /// The stub itself sets registers that the *target's* convention pins, before the jump.
    ///
    /// ```
    /// use std::error::Error;
    ///
    /// use footbridge::abi::{Convention, Plan, PlanRequest, RegSet};
    ///
    /// let signature = "fn(i64, f64)".parse()?;
    /// let tail = |entry: Convention, target: Convention| -> Result<_, Box<dyn Error>> {
    ///     Ok(Plan::tail(&PlanRequest {
    ///         entry: &entry.assign(&signature)?,
    ///         target: &target.assign(&signature)?,
    ///         bound_param: None,
    ///         arg_scratch: RegSet::EMPTY,
    ///         result_scratch: RegSet::EMPTY,
    ///     }))
    /// };
    /// // A Win64 callee keeps all registers that System V callers rely on, but needs its homes.
    /// assert!(tail(Convention::SystemV, Convention::Win64)?.is_none());
    /// let plan = tail(Convention::Aapcs64, Convention::AppleAarch64)?.expect("no frame");
    /// assert!(plan.in_place && plan.args.is_empty());
    /// # Ok::<(), Box<dyn Error>>(())
    /// ```
    pub fn tail(request: &PlanRequest<'_>) -> Option<Plan> {
        let PlanRequest { entry, target, .. } = *request;
        let (from, to) = (entry.spec()?, target.spec()?);
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
        let is_tail = plan.staging_bytes == 0
            && plan.results.is_empty()
            && !plan.args.iter().any(writes_memory)
            && plan.must_save(entry, target).is_empty()
            && pins_are_kept;
        is_tail.then_some(plan)
    }

    fn build(request: &PlanRequest<'_>, in_place: bool) -> Result<Plan, PlanError> {
        let PlanRequest { entry, target, .. } = *request;
        if let (Some(entry), Some(target)) = (entry.spec(), target.spec())
            && entry.arch != target.arch
        {
            return Err(PlanError::OtherMachine { entry, target });
        }
        if let Some(index) = request.bound_param {
            check_bound(target, index)?;
        }
        let unbound = unbound_params(request).map(|(_, value)| value);
        check_values(entry.params(), unbound, ValueIndex::Param)?;
        check_values(entry.results(), target.results().iter(), ValueIndex::Result)?;

        let mut staging = Staging::default();
        let (args, result_address) = plan_args(request, in_place, &mut staging)?;
        let results = plan_results(request, in_place, &mut staging, result_address)?;

        let writes = args.iter().chain(&results).flat_map(|step| step.writes().iter());
        let plan = Plan {
            writes: writes.collect(),
            target_area_bytes: match in_place {
                true => 0,
                false => target.total_bytes().next_multiple_of(16),
            },
            target_area_align_bytes: target.area_align_bytes().max(16),
            staging_bytes: staging.bytes.next_multiple_of(16),
            staging_align_bytes: staging.align.max(16),
            args,
            results,
            in_place,
        };
        if plan.staging_bytes > 0 && plan.frame_bytes() > MAX_FRAME_BYTES {
            return Err(PlanError::FrameTooLarge {
                bytes: plan.frame_bytes(),
                limit_bytes: MAX_FRAME_BYTES,
            });
        }
        Ok(plan)
    }

    /// The distance from the base of the target's area up to that of the staging area, in a stub
    /// that has the staging area above.
    pub fn staging_off(&self) -> u32 {
        self.target_area_bytes.next_multiple_of(self.staging_align_bytes)
    }

    /// The bytes of the target's area and the staging area together: a multiple of 16.
    pub fn frame_bytes(&self) -> u32 {
        if self.staging_bytes == 0 {
            self.target_area_bytes
        } else {
            self.staging_off().saturating_add(self.staging_bytes)
        }
    }

    /// The alignment of both areas together, in bytes: a multiple of 16.
    pub fn frame_align_bytes(&self) -> u32 {
        if self.staging_bytes == 0 {
            self.target_area_align_bytes
        } else {
            self.staging_align_bytes.max(self.target_area_align_bytes)
        }
    }

    /// The registers that the stub must save for the entry's caller: those that the entry's
    /// convention preserves, and that the plan or the target changes. Where a convention preserves
    /// the low half of a vector register, the stub must save that half.
    ///
    /// Pinned registers are not among them, because the stub sets them to their value again.
    pub fn must_save(&self, entry: &Assignment, target: &Assignment) -> RegSet {
        let changed = match target.spec() {
            Some(spec) => {
                let pinned = spec.pinned.iter().map(|(register, _)| *register);
                let changed = spec.volatile().union(pinned.collect());
                changed.minus(spec.preserved_low64)
            }
            None => RegSet::EMPTY,
        };
        let changed = changed.union(self.writes);
        match entry.spec() {
            Some(spec) => {
                let expected = spec.preserved.union(spec.preserved_low64);
                expected.intersection(changed)
            }
            None => RegSet::EMPTY,
        }
    }
}

/// Where the stub has the address of the memory for a result in memory.
#[derive(Clone, Copy, Default)]
struct ResultAddress {
    /// The stub's own memory that it offers to the target.
    made: Option<Operand>,
    /// Where the stub keeps the address at which the entry's caller wants the result.
    kept: Option<Operand>,
}

/// The steps before the call.
fn plan_args(
    request: &PlanRequest<'_>,
    in_place: bool,
    staging: &mut Staging,
) -> Result<(Vec<Step>, ResultAddress), PlanError> {
    let PlanRequest { entry, target, bound_param, arg_scratch, .. } = *request;
    let mut args = Carry::new(entry, entry.narrow(), target, arg_scratch, in_place, staging);
    let zero = ValueIndex::Result(0);
    let mut address = ResultAddress::default();
    match (entry.result_pointer(), target.result_pointer(), entry.results().first()) {
        (Some(entry), Some(target), _) => {
            let from = operand(entry.place, Operand::Entry);
            args.word(zero, from, operand(target.place, Operand::Target));
            if entry.returned.is_some() && target.returned.is_none() {
                address.kept = Some(args.keep(zero, from));
            }
        }
        (Some(entry), None, _) => {
            address.kept = Some(args.keep(zero, operand(entry.place, Operand::Entry)));
        }
        (None, Some(pointer), Some(value)) => {
            let memory = args.reserve_copy(value);
            address.made = Some(memory);
            args.address(zero, memory, operand(pointer.place, Operand::Target));
        }
        _ => {}
    }
    for (value, (index, to)) in entry.params().iter().zip(unbound_params(request)) {
        let from = Location::of(value, Operand::Entry);
        args.value(ValueIndex::Param(index), value, from, Location::of(to, Operand::Target));
    }
    // The bound parameter is carried last, so it is the last of every group of steps.
    if let Some(index) = bound_param {
        let value = &target.params()[index];
        let to = Location::of(value, Operand::Target);
        args.value(ValueIndex::Param(index), value, Location::Context, to);
    }
    if let Some((register, count)) = target.vector_count() {
        args.constant(register, u32::from(count));
    }
    Ok((args.finish()?, address))
}

/// The steps after the call.
fn plan_results(
    request: &PlanRequest<'_>,
    in_place: bool,
    staging: &mut Staging,
    address: ResultAddress,
) -> Result<Vec<Step>, PlanError> {
    let PlanRequest { entry, target, result_scratch, .. } = *request;
    // Callees do not extend their results: see `Narrow::ExtendedTo32`.
    let given = Narrow::Garbage;
    let mut results = Carry::new(target, given, entry, result_scratch, in_place, staging);
    let zero = ValueIndex::Result(0);
    match (entry.result_pointer(), target.result_pointer()) {
        (Some(entry), Some(target)) => {
            let from = target.returned.map(Operand::from).or(address.kept);
            if let (Some(from), Some(to)) = (from, entry.returned) {
                results.word(zero, from, to.into());
            }
        }
        (entry_pointer, target_pointer) => {
            let mut memory = None;
            if let (Some(pointer), Some(kept)) = (entry_pointer, address.kept) {
                let register = results.point(zero, kept, pointer.returned, target.results())?;
                memory = Some(Operand::At(register, 0));
                if let Some(returned) = pointer.returned
                    && register != returned
                {
                    results.word(zero, kept, returned.into());
                }
            }
            let values = target.results().iter().zip(entry.results());
            for (index, (value, to)) in values.enumerate() {
                let from = match (address.made, target_pointer) {
                    (Some(made), Some(_)) => Location::Memory(made),
                    _ => Location::of(value, Operand::TargetResult),
                };
                let to = match memory {
                    Some(memory) => Location::Memory(memory),
                    None => Location::of(to, Operand::EntryResult),
                };
                results.value(ValueIndex::Result(index), value, from, to);
            }
        }
    }
    results.finish()
}

/// The parameters of the target that the caller passes, with their indices.
fn unbound_params<'a>(request: &PlanRequest<'a>) -> impl Iterator<Item = (usize, &'a Value)> {
    let bound = request.bound_param;
    let params = request.target.params().iter().enumerate();
    params.filter(move |(index, _)| Some(*index) != bound)
}

/// For readers: one step a line.
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

/// Checks that the bound parameter exists and is a word.
fn check_bound(target: &Assignment, index: usize) -> Result<(), PlanError> {
    let params = target.params();
    match params.get(index).map(Value::ty) {
        None => Err(PlanError::BoundOutOfRange { index, params: params.len() }),
        Some(ty) if !ty.is_word() => Err(PlanError::BoundNotInteger { index, ty: ty.clone() }),
        Some(_) => Ok(()),
    }
}

/// Checks that the two sides have the same types, and lay them out in the same way.
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
