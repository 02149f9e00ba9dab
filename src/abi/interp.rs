//! A model machine that executes plans.
//!
//! This is the oracle: what a plan does here, the emitted code must do, and what it does here must
//! be what the two assignments promise. The model is stricter than a processor. Every bit that a
//! convention leaves unspecified is garbage, a byte of memory that nobody wrote cannot be read, and
//! the areas that a plan may only read cannot be written.
//!
//! A call, in time order:
//!
//! ```
//! use footbridge::abi::{Assignment, Convention, Plan, PlanRequest, RegSet, Gpr, interp::Machine};
//!
//! let signature = "fn(i8, f64) -> u16".parse()?;
//! let entry = Convention::GoAbiInternal.assign(&signature)?;
//! let target = Assignment::words(&signature);
//! let plan = Plan::new(&PlanRequest {
//!     entry: &entry,
//!     target: &target,
//!     bound_param: None,
//!     arg_scratch: RegSet::EMPTY,
//!     result_scratch: RegSet::EMPTY,
//! })?;
//!
//! let mut machine = Machine::new(&entry, &target, 1);
//! machine.enter(&[0xff, 7]); // the caller passes its arguments
//! machine.run(&plan.args)?; // the stub
//! assert_eq!(machine.arrived()?, [0xff, 7]); // the callee reads them
//! machine.leave(&[500]); // the callee returns
//! machine.run(&plan.results)?; // the stub
//! assert_eq!(machine.returned()?, [500]); // the caller reads the result
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This file never looks at how a plan was made.

use std::error::Error;
use std::fmt;

use super::assign::{Assignment, Passing, Place, Value};
use super::conv::{Narrow, Slots};
use super::error::ValueIndex;
use super::loc::{Gpr, Reg, RegClass, RegSet, Xmm};
use super::plan::{Extend, Spot, Step, Width};

/// A small deterministic source of garbage: Marsaglia, "Xorshift RNGs", 2003, with a multiplier.
#[derive(Clone, Debug)]
pub struct Xorshift(u64);

impl Xorshift {
    /// A generator; the same seed gives the same sequence.
    pub const fn new(seed: u64) -> Xorshift {
        // Zero is the one state that never changes.
        Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number from 0 up to but not including `limit`.
    ///
    /// # Panics
    ///
    /// If `limit` is 0.
    pub const fn below(&mut self, limit: usize) -> usize {
        (self.bits() >> 32) as usize % limit
    }
}

/// What a plan did wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The step is not one that [`Step`] describes: say, from memory to memory.
    Malformed {
        /// The step.
        step: Step,
    },
    /// The step writes what may only be read, or reads what may only be written.
    Forbidden {
        /// The step.
        step: Step,
    },
    /// The step touches bytes beyond the end of an area.
    OutOfBounds {
        /// The step.
        step: Step,
    },
    /// The step reads a byte of memory that nobody wrote.
    Undefined {
        /// The step.
        step: Step,
    },
    /// A byte in memory that the receiver of a value may load was not written.
    Missing {
        /// The value.
        value: ValueIndex,
    },
    /// The bits above a narrow value are not what its receiver relies on.
    NotExtended {
        /// The value.
        value: ValueIndex,
        /// The low 64 bits of the place that it arrived in.
        found: u64,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Malformed { step } => write!(f, "`{step}` is no step of a plan"),
            Fault::Forbidden { step } => {
                write!(f, "`{step}` goes against the direction of an area")
            }
            Fault::OutOfBounds { step } => write!(f, "`{step}` goes beyond the end of an area"),
            Fault::Undefined { step } => write!(f, "`{step}` reads a byte that nobody wrote"),
            Fault::Missing { value } => {
                write!(f, "{value} arrived with bytes in memory that nobody wrote")
            }
            Fault::NotExtended { value, found } => {
                write!(f, "{value} arrived without its extension, as {found:#x}")
            }
        }
    }
}

impl Error for Fault {}

/// Memory that knows which of its bytes were written.
#[derive(Clone, Debug)]
struct Memory(Vec<Option<u8>>);

impl Memory {
    fn undefined(bytes: u32) -> Memory {
        Memory(vec![None; bytes as usize])
    }

    /// The bytes at an offset, if they are within the area.
    fn slice(&mut self, offset: u32, bytes: u32) -> Option<&mut [Option<u8>]> {
        let offset = offset as usize;
        self.0.get_mut(offset..offset + bytes as usize)
    }
}

/// A little-endian number from at most eight bytes, if all of them are defined.
fn number(bytes: &[Option<u8>]) -> Option<u64> {
    let mut high_first = bytes.iter().rev();
    high_first.try_fold(0, |number, byte| Some(number << 8 | u64::from((*byte)?)))
}

/// The low `bytes` bytes of a number.
fn low(number: u64, bytes: u32) -> u64 {
    number & u64::MAX >> (64 - 8 * bytes)
}

/// Extends `bytes` bytes to 32 bits, and that by zeros to 64.
fn extended(number: u64, bytes: u32, extend: Extend) -> u64 {
    let number = low(number, bytes);
    if extend == Extend::Sign {
        let unused = 32 - 8 * bytes;
        u64::from(
            ((number as u32) << unused)
                .cast_signed()
                .wrapping_shr(unused)
                .cast_unsigned(),
        )
    } else {
        number
    }
}

/// The model machine, in the middle of a call from `entry` to `target`.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    entry: &'a Assignment,
    target: &'a Assignment,
    gprs: [u64; 16],
    xmms: [u128; 16],
    context: u64,
    entry_area: Memory,
    target_area: Memory,
    /// The separate records of results, where a side has them.
    entry_record: Memory,
    target_record: Memory,
    garbage: Xorshift,
}

impl<'a> Machine<'a> {
    /// A machine at the entry of a stub, with garbage from `seed` in all registers and nothing
    /// defined in memory.
    pub fn new(entry: &'a Assignment, target: &'a Assignment, seed: u64) -> Machine<'a> {
        let record = |side: &Assignment| {
            let bytes = if side.is_words() {
                side.results_bytes()
            } else {
                0
            };
            Memory::undefined(bytes)
        };
        let mut machine = Machine {
            entry,
            target,
            gprs: [0; 16],
            xmms: [0; 16],
            context: 0,
            entry_area: Memory::undefined(entry.total_bytes()),
            target_area: Memory::undefined(target.total_bytes()),
            entry_record: record(entry),
            target_record: record(target),
            garbage: Xorshift::new(seed),
        };
        machine.context = machine.garbage.bits();
        machine.trash(RegSet::ALL_AMD64);
        machine
    }

    /// The content of a general-purpose register.
    pub const fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[register.index() as usize]
    }

    /// Sets a general-purpose register.
    pub const fn set_gpr(&mut self, register: Gpr, bits: u64) {
        self.gprs[register.index() as usize] = bits;
    }

    /// The content of a vector register.
    pub const fn xmm(&self, register: Xmm) -> u128 {
        self.xmms[register.index() as usize]
    }

    /// Sets a vector register.
    pub const fn set_xmm(&mut self, register: Xmm, bits: u128) {
        self.xmms[register.index() as usize] = bits;
    }

    /// The constant that [`Spot::Context`] reads: garbage until it is set.
    pub const fn context(&self) -> u64 {
        self.context
    }

    /// Sets the constant that [`Spot::Context`] reads.
    pub const fn set_context(&mut self, bits: u64) {
        self.context = bits;
    }

    /// The caller passes arguments, one number for each parameter of the entry. The low bytes of
    /// a number are the value; the rest does not matter.
    ///
    /// # Panics
    ///
    /// If the number of arguments is not that of the parameters.
    pub fn enter(&mut self, args: &[u64]) {
        let entry = self.entry;
        self.put_all(entry, entry.params(), Spot::Entry, args);
    }

    /// Executes steps.
    ///
    /// # Errors
    ///
    /// The first step that no plan may contain, or that reads or writes what it must not.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(*step))
    }

    /// What the target finds, one number for each of its parameters: the bytes of the value, with
    /// zeros above. The target loads everything that its convention lets it load, and relies on
    /// everything that it may rely on.
    ///
    /// # Errors
    ///
    /// A parameter is not there, or not extended.
    pub fn arrived(&mut self) -> Result<Vec<u64>, Fault> {
        let target = self.target;
        self.take_all(target, target.params(), Spot::Target, ValueIndex::Param)
    }

    /// The target returns results, one number for each of them. Before that it overwrites all
    /// that it may: its area, and the registers that its convention does not preserve. (A
    /// target of words has no convention; the machine then keeps only `rsp`.)
    ///
    /// # Panics
    ///
    /// If the number of values is not that of the results.
    pub fn leave(&mut self, results: &[u64]) {
        let target = self.target;
        self.target_area = Memory::undefined(target.total_bytes());
        self.trash(match target.convention() {
            Some(convention) => convention.spec().volatile(),
            None => RegSet::ALL_AMD64.minus(RegSet::of_gprs(&[Gpr::RSP])),
        });
        self.put_all(target, target.results(), Spot::TargetResult, results);
    }

    /// What the entry's caller finds, one number for each result, as in [`Machine::arrived`].
    ///
    /// # Errors
    ///
    /// A result is not there, or not extended.
    pub fn returned(&mut self) -> Result<Vec<u64>, Fault> {
        let entry = self.entry;
        self.take_all(
            entry,
            entry.results(),
            Spot::EntryResult,
            ValueIndex::Result,
        )
    }

    fn trash(&mut self, registers: RegSet) {
        for register in registers.gprs() {
            let bits = self.garbage.bits();
            self.set_gpr(register, bits);
        }
        for register in registers.xmms() {
            let bits = [self.garbage.bits(), self.garbage.bits()].map(u128::from);
            self.set_xmm(register, bits[0] << 64 | bits[1]);
        }
    }

    /// The memory that a spot lies in, and its offset there.
    fn memory(&mut self, spot: Spot) -> Option<(&mut Memory, u32)> {
        match spot {
            Spot::Entry(offset) => Some((&mut self.entry_area, offset)),
            Spot::Target(offset) => Some((&mut self.target_area, offset)),
            Spot::EntryResult(offset) if self.entry.is_words() => {
                Some((&mut self.entry_record, offset))
            }
            Spot::EntryResult(offset) => Some((&mut self.entry_area, offset)),
            Spot::TargetResult(offset) if self.target.is_words() => {
                Some((&mut self.target_record, offset))
            }
            Spot::TargetResult(offset) => Some((&mut self.target_area, offset)),
            _ => None,
        }
    }

    fn step(&mut self, step: Step) -> Result<(), Fault> {
        let (from, to, width, extend) = match step {
            Step::SwapGpr(a, b) => {
                self.gprs
                    .swap(usize::from(a.index()), usize::from(b.index()));
                return Ok(());
            }
            Step::Move {
                from,
                to,
                width,
                extend,
            } => (from, to, width, extend),
        };
        if matches!(from, Spot::Target(_) | Spot::EntryResult(_))
            || matches!(to, Spot::Entry(_) | Spot::TargetResult(_) | Spot::Context)
        {
            return Err(Fault::Forbidden { step });
        }
        let bytes = width.bytes();
        match (from.reg(), to.reg()) {
            (Some(Reg::Xmm(from)), Some(Reg::Xmm(to))) if bytes >= 4 && extend == Extend::None => {
                self.set_xmm(to, self.xmm(from));
            }
            (None, Some(Reg::Xmm(to))) if bytes >= 4 && extend == Extend::None => {
                let bits = self.load(from, step, bytes)?;
                self.set_xmm(to, bits.into());
            }
            (from_reg, Some(Reg::Gpr(to))) if (bytes < 4) == (extend != Extend::None) => {
                let bits = match (from_reg, from) {
                    (Some(Reg::Gpr(from)), _) => self.gpr(from),
                    (None, Spot::Context) if width == Width::B8 => self.context,
                    (None, _) => self.load(from, step, bytes)?,
                    _ => return Err(Fault::Malformed { step }),
                };
                self.set_gpr(to, extended(bits, bytes, extend));
            }
            (Some(Reg::Gpr(from)), None) if extend == Extend::None => {
                self.store(to, step, bytes, self.gpr(from))?;
            }
            (Some(Reg::Xmm(from)), None) if bytes >= 4 && extend == Extend::None => {
                self.store(to, step, bytes, self.xmm(from) as u64)?;
            }
            _ => return Err(Fault::Malformed { step }),
        }
        Ok(())
    }

    fn load(&mut self, from: Spot, step: Step, bytes: u32) -> Result<u64, Fault> {
        let (memory, offset) = self.memory(from).ok_or(Fault::Malformed { step })?;
        let bytes = memory.slice(offset, bytes);
        number(bytes.ok_or(Fault::OutOfBounds { step })?).ok_or(Fault::Undefined { step })
    }

    fn store(&mut self, to: Spot, step: Step, bytes: u32, bits: u64) -> Result<(), Fault> {
        let (memory, offset) = self.memory(to).ok_or(Fault::Malformed { step })?;
        let slice = memory.slice(offset, bytes);
        let slice = slice.ok_or(Fault::OutOfBounds { step })?;
        for (byte, value) in slice.iter_mut().zip(bits.to_le_bytes()) {
            *byte = Some(value);
        }
        Ok(())
    }

    /// Puts values where `side` has them, with garbage in every bit that is unspecified.
    fn put_all(
        &mut self,
        side: &Assignment,
        values: &[Value],
        area: fn(u32) -> Spot,
        numbers: &[u64],
    ) {
        assert_eq!(values.len(), numbers.len(), "one number for each value");
        for (value, &bits) in values.iter().zip(numbers) {
            let ty = value.ty();
            let specified = match (side.narrow(), ty.class()) {
                (Narrow::ExtendedTo32, RegClass::General) => ty.size_bytes().max(4),
                _ => ty.size_bytes(),
            };
            let bits = extended_to(bits, value, specified);
            let keep = |old: u64| low(bits, specified) | old & !low(u64::MAX, specified);
            match place(value) {
                Place::Reg(Reg::Gpr(gpr)) => self.set_gpr(gpr, keep(self.gpr(gpr))),
                Place::Reg(Reg::Xmm(xmm)) => {
                    let old = self.xmm(xmm);
                    let high = old >> 64 << 64;
                    self.set_xmm(xmm, high | u128::from(keep(old as u64)));
                }
                Place::Reg(_) | Place::X87(_) => unreachable!("amd64 numbers"),
                Place::Area(offset) => {
                    // Only the value itself is defined: what a plan may load.
                    let bytes = ty.size_bytes();
                    let (memory, offset) = self.memory(area(offset)).expect("an area");
                    let slice = memory
                        .slice(offset, bytes)
                        .expect("values are in their area");
                    for (byte, value) in slice.iter_mut().zip(bits.to_le_bytes()) {
                        *byte = Some(value);
                    }
                }
            }
        }
    }

    /// Reads values where `side` has them, and checks all that a receiver may rely on.
    fn take_all(
        &mut self,
        side: &Assignment,
        values: &[Value],
        area: fn(u32) -> Spot,
        index: fn(usize) -> ValueIndex,
    ) -> Result<Vec<u64>, Fault> {
        let mut numbers = Vec::with_capacity(values.len());
        for (i, value) in values.iter().enumerate() {
            let ty = value.ty();
            let integer = ty.class() == RegClass::General;
            let found = match place(value) {
                Place::Reg(Reg::Gpr(gpr)) => self.gpr(gpr),
                Place::Reg(Reg::Xmm(xmm)) => self.xmm(xmm) as u64,
                Place::Reg(_) | Place::X87(_) => unreachable!("amd64 numbers"),
                Place::Area(offset) => {
                    let loadable = match side.slots() {
                        Slots::Whole if integer => 8,
                        _ => ty.size_bytes(),
                    };
                    let (memory, offset) = self.memory(area(offset)).expect("an area");
                    let bytes = memory.slice(offset, loadable);
                    number(bytes.expect("values are in their area"))
                        .ok_or(Fault::Missing { value: index(i) })?
                }
            };
            if integer && side.narrow() != Narrow::Garbage {
                let specified = ty.size_bytes().max(4);
                if low(found, specified) != low(extended_to(found, value, specified), specified) {
                    return Err(Fault::NotExtended {
                        value: index(i),
                        found,
                    });
                }
            }
            numbers.push(low(found, ty.size_bytes()));
        }
        Ok(numbers)
    }
}

/// The one place of a number or pointer.
fn place(value: &Value) -> Place {
    match (value.passing(), value.parts()) {
        (Passing::Area(offset), _) => Place::Area(*offset),
        (_, [part]) => part.place,
        _ => unreachable!("plans carry numbers and pointers"),
    }
}

/// The bits of a value, extended by its type if its receiver relies on 4 bytes of a narrower one.
fn extended_to(bits: u64, value: &Value, specified: u32) -> u64 {
    let ty = value.ty();
    if specified > ty.size_bytes() {
        let extend = if ty.is_signed() {
            Extend::Sign
        } else {
            Extend::Zero
        };
        extended(bits, ty.size_bytes(), extend)
    } else {
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::conv::Convention;
    use crate::abi::plan::{Plan, PlanRequest};
    use crate::abi::sig::Signature;
    use crate::abi::ty::Type;

    fn sides(text: &str) -> (Assignment, Assignment) {
        let signature: Signature = text.parse().expect("a signature");
        let entry = Convention::GoAbiInternal.assign(&signature);
        let target = Convention::SystemV.assign(&signature);
        (entry.expect("assignable"), target.expect("assignable"))
    }

    fn mov(from: Spot, to: Spot, width: Width, extend: Extend) -> Step {
        Step::Move {
            from,
            to,
            width,
            extend,
        }
    }

    #[test]
    fn moves_write_what_a_processor_writes() {
        let (entry, target) = sides("fn()");
        let mut machine = Machine::new(&entry, &target, 0);
        let (rax, rbx) = (Gpr::RAX.into(), Gpr::RBX.into());
        for (width, extend, expected) in [
            (Width::B1, Extend::Sign, 0xffff_ff88),
            (Width::B1, Extend::Zero, 0x88),
            (Width::B2, Extend::Sign, 0x7788),
            (Width::B2, Extend::Zero, 0x7788),
            (Width::B4, Extend::None, 0xd566_7788),
            (Width::B8, Extend::None, 0x1122_3344_d566_7788),
        ] {
            machine.set_gpr(Gpr::RAX, 0x1122_3344_d566_7788);
            let step = mov(rax, rbx, width, extend);
            assert_eq!(machine.run(&[step]), Ok(()));
            assert_eq!(machine.gpr(Gpr::RBX), expected, "{step}");
        }
        machine.set_xmm(Xmm::XMM1, 5 << 100 | 7);
        let (xmm0, xmm1) = (Xmm::XMM0.into(), Xmm::XMM1.into());
        machine
            .run(&[mov(xmm1, xmm0, Width::B4, Extend::None)])
            .expect("well-formed");
        assert_eq!(machine.xmm(Xmm::XMM0), 5 << 100 | 7);
    }

    #[test]
    fn what_no_plan_may_do_is_a_fault() {
        let (entry, target) = sides("fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, u8, i32)");
        let mut machine = Machine::new(&entry, &target, 0);
        machine.enter(&[0; 11]);
        let (rax, xmm0) = (Gpr::RAX.into(), Xmm::XMM0.into());
        let mut fault = |from, to, width, extend| {
            let step = mov(from, to, width, extend);
            (machine.run(&[step]), step)
        };
        let none = Extend::None;

        for (from, to, width, extend) in [
            (Spot::Entry(0), Spot::Target(0), Width::B1, none),
            (rax, rax, Width::B2, none),
            (rax, rax, Width::B4, Extend::Sign),
            (rax, xmm0, Width::B8, none),
            (xmm0, rax, Width::B8, none),
            (xmm0, xmm0, Width::B2, none),
            (Spot::Context, rax, Width::B4, none),
            (Spot::Context, Spot::Target(0), Width::B8, none),
            (rax, Spot::Target(0), Width::B1, Extend::Zero),
        ] {
            let (result, step) = fault(from, to, width, extend);
            assert_eq!(result, Err(Fault::Malformed { step }));
        }
        for (from, to) in [
            (rax, Spot::Entry(0)),
            (rax, Spot::TargetResult(0)),
            (rax, Spot::Context),
            (Spot::Target(0), rax),
            (Spot::EntryResult(0), rax),
        ] {
            let (result, step) = fault(from, to, Width::B8, none);
            assert_eq!(result, Err(Fault::Forbidden { step }));
        }
        let (result, step) = fault(rax, Spot::Target(40), Width::B8, none);
        assert_eq!(result, Err(Fault::OutOfBounds { step }));
        let (result, step) = fault(Spot::Entry(0), rax, Width::B2, Extend::Zero);
        assert_eq!(
            result,
            Err(Fault::Undefined { step }),
            "the byte after a u8"
        );
        let (result, _) = fault(Spot::Entry(4), rax, Width::B4, none);
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn a_value_that_does_not_arrive_is_a_fault() {
        let (entry, target) = sides("fn(i64, i64, i64, i64, i64, i64, i8)");
        let mut machine = Machine::new(&entry, &target, 0);
        let value = ValueIndex::Param(6);
        assert_eq!(machine.arrived(), Err(Fault::Missing { value }));
        machine.set_gpr(Gpr::RAX, 0x80);
        let store = |width| mov(Gpr::RAX.into(), Spot::Target(0), width, Extend::None);
        assert_eq!(machine.run(&[store(Width::B1)]), Ok(()));
        assert_eq!(machine.arrived(), Err(Fault::Missing { value }));
        assert_eq!(machine.run(&[store(Width::B8)]), Ok(()));
        let found = 0x80;
        assert_eq!(machine.arrived(), Err(Fault::NotExtended { value, found }));
    }

    #[test]
    fn unspecified_bits_are_garbage() {
        let (go, sysv) = sides("fn(i8, f32)");
        let mut machine = Machine::new(&go, &sysv, 0);
        machine.enter(&[0x80, 0]);
        assert_eq!(machine.gpr(Gpr::RAX) as u8, 0x80);
        assert!(machine.gpr(Gpr::RAX) >> 8 != 0 && machine.xmm(Xmm::XMM0) >> 64 != 0);
        assert_eq!(machine.xmm(Xmm::XMM0) as u32, 0);

        let mut machine = Machine::new(&sysv, &go, 0);
        machine.enter(&[0x80, 0]);
        assert_eq!(machine.gpr(Gpr::RDI) as u32, 0xffff_ff80);
        assert_ne!(machine.gpr(Gpr::RDI) >> 32, 0);
    }

    #[test]
    fn the_target_overwrites_all_that_it_may() {
        let (go, sysv) = sides("fn(i64, i64, i64, i64, i64, i64, i64) -> i64");
        let mut machine = Machine::new(&go, &sysv, 0);
        let store = mov(Gpr::RAX.into(), Spot::Target(0), Width::B8, Extend::None);
        machine.run(&[store]).expect("well-formed");
        let before = machine.clone();
        machine.leave(&[5]);
        assert_eq!(machine.gpr(Gpr::RAX), 5);
        assert_eq!(number(&machine.target_area.0), None);
        for gpr in Gpr::ALL {
            let kept = Convention::SystemV
                .spec()
                .preserved
                .with(Gpr::RSP)
                .contains(gpr);
            assert_eq!(machine.gpr(gpr) == before.gpr(gpr), kept, "{gpr}");
        }
        for xmm in Xmm::ALL {
            assert_ne!(machine.xmm(xmm), before.xmm(xmm), "{xmm}");
        }
    }

    /// Which side of a random call is which.
    #[derive(Clone, Copy, Debug)]
    enum Side {
        Convention(Convention),
        Words,
    }

    impl Side {
        const ALL: [Side; 3] = [
            Side::Convention(Convention::SystemV),
            Side::Convention(Convention::GoAbiInternal),
            Side::Words,
        ];

        fn assign(self, signature: &Signature) -> Assignment {
            match self {
                Side::Convention(convention) => {
                    convention.assign(signature).expect("small signature")
                }
                Side::Words => Assignment::words(signature),
            }
        }

        fn most_results(self) -> usize {
            match self {
                Side::Convention(Convention::SystemV) => 1,
                _ => 14,
            }
        }
    }

    /// The bytes of an area that values of a section may be written to.
    fn writable(side: &Assignment, values: &[Value]) -> Vec<bool> {
        let mut bytes = vec![false; side.total_bytes().max(side.results_bytes()) as usize];
        for value in values {
            if let Place::Area(offset) = place(value) {
                let whole = side.slots() == Slots::Whole && value.ty().class() == RegClass::General;
                let size = if whole { 8 } else { value.ty().size_bytes() };
                bytes[offset as usize..][..size as usize].fill(true);
            }
        }
        bytes
    }

    /// Everything that a plan promises, for one random call from `from` to `to`.
    fn check_random_call(rng: &mut Xorshift, from: Side, to: Side, bind: bool) {
        let mut types = |limit| -> Vec<Type> {
            let n = rng.below(limit);
            // Mixed, all integers, or all floats.
            let kinds = [0..14, 0..11, 11..13][rng.below(3)].clone();
            (0..n)
                .map(|_| Type::SCALARS[kinds.start + rng.below(kinds.len())].clone())
                .collect()
        };
        let params = types(22);
        let results = types(from.most_results().min(to.most_results()) + 1);
        let signature = Signature::new(params.clone(), results.clone());
        let (target_signature, bound) = if bind {
            let index = rng.below(params.len() + 1);
            let integers = [
                Type::Ptr,
                Type::I64,
                Type::I8,
                Type::Bool,
                Type::U16,
                Type::I32,
            ];
            let mut longer = params;
            longer.insert(index, integers[rng.below(integers.len())].clone());
            (Signature::new(longer, results), Some(index))
        } else {
            (signature.clone(), None)
        };

        let entry = from.assign(&signature);
        let target = to.assign(&target_signature);
        // Any registers may be offered, those that hold values too; one that never does is enough.
        let mut scratch = |one: Gpr| -> RegSet {
            let bits = rng.bits();
            let offered = RegSet::ALL_AMD64.iter().enumerate();
            let offered: RegSet = offered
                .filter(|(i, _)| bits >> i & 1 == 1)
                .map(|(_, r)| r)
                .collect();
            offered.minus(RegSet::of_gprs(&[Gpr::RSP])).with(one)
        };
        let (arg_scratch, result_scratch) = (scratch(Gpr::R12), scratch(Gpr::R13));
        let plan = Plan::new(&PlanRequest {
            entry: &entry,
            target: &target,
            bound_param: bound,
            arg_scratch,
            result_scratch,
        })
        .expect("plannable");
        let what = format!("{from:?} {signature} -> {to:?} bound {bound:?}\n{plan}");

        let mut machine = Machine::new(&entry, &target, rng.bits());
        let mut random = |types: &[Type]| -> Vec<u64> {
            let number = |ty: &Type| low(rng.bits(), ty.size_bytes());
            types.iter().map(number).collect()
        };
        let args = random(signature.params());
        let results = random(signature.results());

        machine.enter(&args);
        let before = machine.clone();
        machine
            .run(&plan.args)
            .unwrap_or_else(|e| panic!("{e}: {what}"));
        let mut expected = args;
        if let Some(index) = bound {
            let ty = &target_signature.params()[index];
            expected.insert(index, low(machine.context(), ty.size_bytes()));
        }
        let arrived = machine.arrived().unwrap_or_else(|e| panic!("{e}: {what}"));
        assert_eq!(arrived, expected, "{what}");
        let ends = registers(entry.params()).union(registers(target.params()));
        let allowed = ends.union(arg_scratch);
        assert_written(&before, &machine, &plan, &plan.args, allowed, &what);
        assert_eq!(before.entry_area.0, machine.entry_area.0, "{what}");
        let may = writable(&target, target.params());
        for (byte, may) in machine.target_area.0.iter().zip(may) {
            assert!(byte.is_none() || may, "{what}");
        }

        machine.leave(&results);
        let before = machine.clone();
        machine
            .run(&plan.results)
            .unwrap_or_else(|e| panic!("{e}: {what}"));
        let returned = machine.returned().unwrap_or_else(|e| panic!("{e}: {what}"));
        assert_eq!(returned, results, "{what}");
        let ends = registers(target.results()).union(registers(entry.results()));
        let allowed = ends.union(result_scratch);
        assert_written(&before, &machine, &plan, &plan.results, allowed, &what);
        let may = writable(&entry, entry.results());
        let (old, new) = if entry.is_words() {
            (&before.entry_record, &machine.entry_record)
        } else {
            (&before.entry_area, &machine.entry_area)
        };
        for ((old, new), may) in old.0.iter().zip(&new.0).zip(may) {
            assert!(old == new || may, "{what}");
        }
    }

    /// The registers that values are in.
    fn registers(values: &[Value]) -> RegSet {
        let places = values.iter().filter_map(|value| match place(value) {
            Place::Reg(register) => Some(register),
            _ => None,
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
        for register in RegSet::ALL_AMD64.minus(named).iter() {
            let same = match register {
                Reg::Gpr(gpr) => before.gpr(gpr) == after.gpr(gpr),
                Reg::Xmm(xmm) => before.xmm(xmm) == after.xmm(xmm),
                _ => unreachable!("amd64"),
            };
            assert!(same, "{register} changed: {what}");
        }
    }

    #[test]
    fn every_plan_keeps_its_promises() {
        let calls = if cfg!(miri) { 2 } else { 500 };
        let mut rng = Xorshift::new(3);
        for from in Side::ALL {
            for to in Side::ALL {
                for _ in 0..calls {
                    check_random_call(&mut rng, from, to, false);
                    check_random_call(&mut rng, from, to, true);
                }
            }
        }
    }
}
