//! A model machine that executes plans.
//!
//! This is the oracle: what a plan does here, the emitted code must do, and what it does here must
//! be what the two assignments promise. The model is stricter than a processor. Every bit that a
//! convention leaves unspecified is garbage, memory that belongs to nobody cannot be touched, and
//! the areas that a plan may only read cannot be written.
//!
//! A call, in time order:
//!
//! ```
//! use footbridge::abi::{Assignment, Convention, Plan, PlanRequest, RegSet, Gpr, interp::Machine};
//!
//! let signature = "fn(i8, [u16; 3]) -> u16".parse()?;
//! let entry = Convention::SystemV.assign(&signature)?;
//! let target = Assignment::words(&signature);
//! let plan = Plan::new(&PlanRequest {
//!     entry: &entry,
//!     target: &target,
//!     bound_param: None,
//!     arg_scratch: RegSet::EMPTY,
//!     result_scratch: RegSet::EMPTY,
//! })?;
//!
//! let mut machine = Machine::new(&entry, &target, &plan, 1);
//! let args = [vec![0xff], vec![1, 0, 2, 0, 3, 0]];
//! machine.enter(&args); // the caller passes its arguments
//! machine.run(&plan.args)?; // the stub
//! assert_eq!(machine.arrived()?, args); // the callee reads them
//! machine.leave(&[vec![0xf4, 1]]); // the callee returns 500
//! machine.run(&plan.results)?; // the stub
//! assert_eq!(machine.returned()?, [[0xf4, 1]]); // the caller reads the result
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! This file never looks at how a plan was made.

use std::error::Error;
use std::fmt;

use super::assign::{Assignment, Passing, Place, Value};
use super::conv::{Narrow, Slots};
use super::error::ValueIndex;
use super::layout::{Language, Layout};
use super::loc::{Arch, Gpr, Reg, RegClass, RegSet};
use super::plan::{Extend, Plan, Spot, Step, Width};
use super::ty::Type;

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

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = (self.bits() >> 40) as u8;
        }
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
    /// The step reads a byte of memory that is in no value.
    Undefined {
        /// The step.
        step: Step,
    },
    /// The step pops an empty x87 stack, or pushes on a full one.
    X87 {
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
    /// An address is not one of memory that the value can be in.
    BadAddress {
        /// The value.
        value: ValueIndex,
        /// The address.
        address: u64,
    },
    /// Two places that must hold the same do not.
    Duplicate {
        /// The value.
        value: ValueIndex,
    },
    /// The number of vector registers of a variadic call is not in its register.
    VectorCount {
        /// What is there.
        found: u64,
    },
    /// The x87 stack holds more or less than the results.
    X87Depth {
        /// How many numbers are on it.
        found: usize,
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
            Fault::Undefined { step } => write!(f, "`{step}` reads a byte that is in no value"),
            Fault::X87 { step } => write!(f, "`{step}` breaks the x87 stack"),
            Fault::Missing { value } => {
                write!(f, "{value} arrived with bytes in memory that nobody wrote")
            }
            Fault::NotExtended { value, found } => {
                write!(f, "{value} arrived without its extension, as {found:#x}")
            }
            Fault::BadAddress { value, address } => {
                write!(f, "{value} arrived at {address:#x}, where it cannot be")
            }
            Fault::Duplicate { value } => write!(f, "{value} arrived as two different values"),
            Fault::VectorCount { found } => {
                write!(f, "the number of vector registers arrived as {found:#x}")
            }
            Fault::X87Depth { found } => {
                write!(f, "{found} numbers were on the x87 stack in the end")
            }
        }
    }
}

impl Error for Fault {}

/// A byte of memory: outside of every value, or what it holds.
type Byte = Option<u8>;

/// A piece of memory with an address.
#[derive(Clone, Debug)]
struct Memory {
    base: u64,
    bytes: Vec<Byte>,
}

impl Memory {
    fn undefined(base: u64, bytes: u32) -> Memory {
        Memory { base, bytes: vec![None; bytes as usize] }
    }

    /// The bytes at an offset, if they are within the area.
    fn slice(&mut self, offset: u64, bytes: u32) -> Option<&mut [Byte]> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get_mut(offset..offset.checked_add(bytes as usize)?)
    }

    fn contains(&self, address: u64) -> bool {
        (self.base..=self.base + self.bytes.len() as u64).contains(&address)
    }
}

/// The values of bytes, if all are defined.
fn defined(bytes: &[Byte]) -> Option<Vec<u8>> {
    bytes.iter().copied().collect()
}

/// A little-endian number from at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    let high_first = bytes.iter().take(8).rev();
    high_first.fold(0, |number, byte| number << 8 | u64::from(*byte))
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
        u64::from(((number as u32) << unused).cast_signed().wrapping_shr(unused).cast_unsigned())
    } else {
        number
    }
}

/// The bytes of a value that mean something on this machine; the others are padding.
fn data_bytes(ty: &Type, language: Language, arch: Arch) -> Vec<bool> {
    let mut data = ty.data_bytes(language);
    if arch == Arch::Amd64 {
        // x87 numbers have ten bytes, unless a union has something else there.
        let mut others = vec![false; data.len()];
        let mut has_x87 = false;
        ty.each_leaf(language, 0, &mut |offset, leaf| {
            let bytes = match leaf {
                Type::LongDouble => {
                    has_x87 = true;
                    10
                }
                _ => leaf.layout(language).size_bytes as usize,
            };
            others[offset as usize..][..bytes].fill(true);
        });
        if has_x87 {
            data = others;
        }
    }
    data
}

/// The bytes of a vector register.
const VECTOR_BYTES: usize = 64;

/// Where the pieces of memory are. They are far apart, and not aligned by chance.
const ENTRY_BASE: u64 = 0x1_0000_0000;
const TARGET_BASE: u64 = 0x2_0000_0000;
const STAGE_BASE: u64 = 0x3_0000_0000;
const ENTRY_RECORD_BASE: u64 = 0x4_0000_0000;
const TARGET_RECORD_BASE: u64 = 0x5_0000_0000;
const CALLER_BASE: u64 = 0x6_0000_0000;
const CALLER_STRIDE: u64 = 0x1_0000_0000;

/// The model machine, in the middle of a call from `entry` to `target`.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    entry: &'a Assignment,
    target: &'a Assignment,
    arch: Arch,
    /// The target's area is the entry's.
    in_place: bool,
    general: [u64; 32],
    vector: [[u8; VECTOR_BYTES]; 32],
    x87: Vec<[u8; 10]>,
    context: u64,
    entry_area: Memory,
    target_area: Memory,
    stage: Memory,
    /// The separate records of results, where a side has them.
    entry_record: Memory,
    target_record: Memory,
    /// Copies that the entry's caller made, and the memory for its result, which is the one that
    /// may be written.
    caller: Vec<Memory>,
    result_memory: Option<usize>,
    /// Where the target found the address for its result.
    target_result_address: u64,
    garbage: Xorshift,
}

impl<'a> Machine<'a> {
    /// A machine at the entry of a stub that carries out `plan`, with garbage from `seed` in all
    /// registers and nothing defined in memory, apart from garbage in the stage.
    pub fn new(
        entry: &'a Assignment,
        target: &'a Assignment,
        plan: &Plan,
        seed: u64,
    ) -> Machine<'a> {
        let record = |side: &Assignment, base| {
            let bytes = if side.is_words() { side.results_bytes() } else { 0 };
            Memory::undefined(base, bytes)
        };
        let arch = entry.arch().or(target.arch()).unwrap_or(Arch::Amd64);
        // Each base is as aligned as the stub makes it, and not more.
        let odd = |base: u64, align: u32| base + u64::from(align);
        let mut machine = Machine {
            entry,
            target,
            arch,
            in_place: plan.in_place,
            general: [0; 32],
            vector: [[0; VECTOR_BYTES]; 32],
            x87: Vec::new(),
            context: 0,
            entry_area: Memory::undefined(
                odd(ENTRY_BASE, entry.area_align_bytes()),
                entry.total_bytes(),
            ),
            target_area: Memory::undefined(
                odd(TARGET_BASE, plan.target_area_align_bytes),
                target.total_bytes(),
            ),
            stage: Memory::undefined(odd(STAGE_BASE, plan.stage_align_bytes), plan.stage_bytes),
            entry_record: record(entry, ENTRY_RECORD_BASE),
            target_record: record(target, TARGET_RECORD_BASE),
            caller: Vec::new(),
            result_memory: None,
            target_result_address: 0,
            garbage: Xorshift::new(seed),
        };
        machine.context = machine.garbage.bits();
        machine.trash(arch.registers());
        for byte in &mut machine.stage.bytes {
            *byte = Some((machine.garbage.bits() >> 40) as u8);
        }
        machine
    }

    /// The content of a general-purpose register; of a vector register, the low 64 bits.
    pub fn register(&self, register: impl Into<Reg>) -> u64 {
        let register = register.into();
        match register.class() {
            RegClass::General => self.general[index(register)],
            RegClass::Vector => number(&self.vector[index(register)]),
        }
    }

    /// Sets a general-purpose register.
    ///
    /// # Panics
    ///
    /// If it is a vector register.
    pub fn set_register(&mut self, register: impl Into<Reg>, bits: u64) {
        let register = register.into();
        assert_eq!(register.class(), RegClass::General, "{register}");
        self.general[index(register)] = bits;
    }

    /// The content of a vector register.
    pub fn vector(&self, register: impl Into<Reg>) -> &[u8; 64] {
        &self.vector[index(register.into())]
    }

    /// Sets a vector register.
    pub fn set_vector(&mut self, register: impl Into<Reg>, bytes: [u8; 64]) {
        self.vector[index(register.into())] = bytes;
    }

    /// The constant that [`Spot::Context`] reads: garbage until it is set.
    pub const fn context(&self) -> u64 {
        self.context
    }

    /// Sets the constant that [`Spot::Context`] reads.
    pub const fn set_context(&mut self, bits: u64) {
        self.context = bits;
    }

    /// The caller passes arguments, the bytes of one value for each parameter of the entry, as its
    /// language lays it out. What is in padding does not matter.
    ///
    /// # Panics
    ///
    /// If these are not the values of the parameters.
    pub fn enter(&mut self, args: &[Vec<u8>]) {
        let entry = self.entry;
        assert_eq!(entry.params().len(), args.len(), "one for each value");
        for (value, bytes) in entry.params().iter().zip(args) {
            if let Passing::Reference(place) = *value.passing() {
                let align = convention_copy_align(entry, value.layout());
                let memory = self.caller_memory(value.layout().size_bytes, align);
                let address = self.caller[memory].base;
                self.put_word(place, Spot::Entry, address);
                self.put_bytes(entry, value, bytes, Target::Caller(memory));
            } else {
                self.put(entry, value, bytes, Spot::Entry, entry.narrow());
            }
        }
        if let (Some(pointer), [value, ..]) = (entry.result_pointer(), entry.results()) {
            let memory = self.caller_memory(value.layout().size_bytes, value.layout().align_bytes);
            self.result_memory = Some(memory);
            let address = self.caller[memory].base;
            self.put_word(pointer.place, Spot::Entry, address);
        }
        if let Some((register, count)) = entry.vector_count() {
            let above = self.garbage.bits() << 8;
            self.set_register(register, above | u64::from(count));
        }
    }

    /// Executes steps.
    ///
    /// # Errors
    ///
    /// The first step that no plan may contain, or that reads or writes what it must not.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(*step))
    }

    /// What the target finds: the bytes of one value for each of its parameters, with zeros in
    /// padding. The target loads everything that its convention lets it load, and relies on
    /// everything that it may rely on.
    ///
    /// # Errors
    ///
    /// A parameter is not there, or not extended, or not aligned.
    pub fn arrived(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        let target = self.target;
        let mut values = Vec::with_capacity(target.params().len());
        for (i, value) in target.params().iter().enumerate() {
            let index = ValueIndex::Param(i);
            values.push(if let Passing::Reference(place) = *value.passing() {
                let address = self.take_word(place, Spot::Target, index)?;
                let align = convention_copy_align(target, value.layout());
                self.take_behind(target, value, address, align, index)?
            } else {
                self.take(target, value, Spot::Target, index)?
            });
        }
        if let (Some(pointer), [value, ..]) = (target.result_pointer(), target.results()) {
            let index = ValueIndex::Result(0);
            let address = self.take_word(pointer.place, Spot::Target, index)?;
            self.check_result_address(address, value.layout(), index)?;
            self.target_result_address = address;
        }
        if let Some((register, count)) = target.vector_count() {
            let found = self.register(register);
            if low(found, 1) != u64::from(count) {
                return Err(Fault::VectorCount { found });
            }
        }
        Ok(values)
    }

    /// The target returns results, the bytes of one value for each of them. Before that it
    /// overwrites all that it may: its area, the copies it was given, and the registers that its
    /// convention does not preserve. (A target of words has no convention; the machine then keeps
    /// only `rsp`.)
    ///
    /// # Panics
    ///
    /// If these are not the values of the results, or if the arguments were not found before.
    pub fn leave(&mut self, results: &[Vec<u8>]) {
        let target = self.target;
        assert_eq!(target.results().len(), results.len(), "one for each value");
        for (i, value) in target.params().iter().enumerate() {
            if let Passing::Reference(place) = *value.passing() {
                let address = self.take_word(place, Spot::Target, ValueIndex::Param(i));
                let address = address.expect("found before");
                let mut garbage = vec![0; value.layout().size_bytes as usize];
                self.garbage.fill(&mut garbage);
                let found = self.behind(address, value.layout().size_bytes);
                store(found.expect("found before").0, &garbage);
            }
        }
        let area = if self.in_place { &mut self.entry_area } else { &mut self.target_area };
        area.bytes[..target.total_bytes() as usize].fill(None);
        let low_halves = target.convention().map_or(RegSet::EMPTY, |c| c.spec().preserved_low64);
        let volatile = match target.convention() {
            Some(convention) => convention.spec().volatile(),
            None => self.arch.registers().minus(RegSet::of_gprs(&[Gpr::RSP])),
        };
        let kept = self.vector;
        self.trash(volatile);
        for register in low_halves.iter() {
            let i = index(register);
            self.vector[i][..8].copy_from_slice(&kept[i][..8]);
        }
        for (value, bytes) in target.results().iter().zip(results) {
            match (*value.passing() == Passing::Nothing, target.result_pointer()) {
                (false, Some(pointer)) => {
                    let address = self.target_result_address;
                    self.put_bytes(target, value, bytes, Target::Address(address));
                    if let Some(returned) = pointer.returned {
                        self.set_register(returned, address);
                    }
                }
                // Nobody extends results beyond their own size: see `Narrow`.
                _ => self.put(target, value, bytes, Spot::TargetResult, Narrow::Garbage),
            }
        }
    }

    /// What the entry's caller finds: the bytes of one value for each result, as in
    /// [`Machine::arrived`].
    ///
    /// # Errors
    ///
    /// A result is not there, or not extended.
    pub fn returned(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        let entry = self.entry;
        let mut values = Vec::with_capacity(entry.results().len());
        let mut on_x87 = 0;
        for (i, value) in entry.results().iter().enumerate() {
            let index = ValueIndex::Result(i);
            on_x87 +=
                value.parts().iter().filter(|part| matches!(part.place, Place::X87(_))).count();
            values.push(match (self.result_memory, entry.result_pointer()) {
                (Some(memory), Some(pointer)) => {
                    let address = self.caller[memory].base;
                    if let Some(returned) = pointer.returned
                        && self.register(returned) != address
                    {
                        let address = self.register(returned);
                        return Err(Fault::BadAddress { value: index, address });
                    }
                    self.take_behind(entry, value, address, 1, index)?
                }
                _ => self.take(entry, value, Spot::EntryResult, index)?,
            });
        }
        match self.x87.len() {
            found if found != on_x87 => Err(Fault::X87Depth { found }),
            _ => Ok(values),
        }
    }

    fn trash(&mut self, registers: RegSet) {
        for register in registers.iter() {
            let i = index(register);
            match register.class() {
                RegClass::General => self.general[i] = self.garbage.bits(),
                RegClass::Vector => self.garbage.fill(&mut self.vector[i]),
            }
        }
    }

    /// New memory of the entry's caller, aligned to `align` and not more.
    fn caller_memory(&mut self, bytes: u32, align: u32) -> usize {
        let base = CALLER_BASE + CALLER_STRIDE * self.caller.len() as u64 + u64::from(align);
        self.caller.push(Memory::undefined(base, bytes));
        self.caller.len() - 1
    }

    /// The memory that a spot lies in, and its offset there.
    fn memory(&mut self, spot: Spot) -> Option<(&mut Memory, u64)> {
        let (memory, offset) = match spot {
            Spot::Entry(offset) => (&mut self.entry_area, offset),
            Spot::Target(offset) | Spot::TargetResult(offset) if self.in_place => {
                (&mut self.entry_area, offset)
            }
            Spot::Target(offset) => (&mut self.target_area, offset),
            Spot::EntryResult(offset) if self.entry.is_words() => (&mut self.entry_record, offset),
            Spot::EntryResult(offset) => (&mut self.entry_area, offset),
            Spot::TargetResult(offset) if self.target.is_words() => {
                (&mut self.target_record, offset)
            }
            Spot::TargetResult(offset) => (&mut self.target_area, offset),
            Spot::Stage(offset) => (&mut self.stage, offset),
            _ => return None,
        };
        Some((memory, offset.into()))
    }

    /// The bytes at an address that a plan or a callee can have, and whether a plan may write them.
    fn behind(&mut self, address: u64, bytes: u32) -> Option<(&mut [Byte], bool)> {
        let result_memory = self.result_memory;
        if self.stage.contains(address) {
            let offset = address - self.stage.base;
            return Some((self.stage.slice(offset, bytes)?, true));
        }
        let found = self.caller.iter_mut().enumerate();
        let mut found = found.filter(|(_, memory)| memory.contains(address));
        let (i, memory) = found.next()?;
        let offset = address - memory.base;
        Some((memory.slice(offset, bytes)?, Some(i) == result_memory))
    }

    fn step(&mut self, step: Step) -> Result<(), Fault> {
        let malformed = Err(Fault::Malformed { step });
        let general = |register: Reg| register.class() == RegClass::General;
        let (from, to, width, extend) = match step {
            Step::SwapGpr(a, b) => {
                self.general.swap(index(a.into()), index(b.into()));
                return Ok(());
            }
            Step::Address { of, to } if general(to) => {
                let (memory, offset) = self.memory(of).ok_or(Fault::Malformed { step })?;
                self.general[index(to)] = memory.base + offset;
                return Ok(());
            }
            Step::Constant { to, value } if general(to) => {
                self.general[index(to)] = value.into();
                return Ok(());
            }
            Step::PopX87 { to } => {
                if self.x87.is_empty() {
                    return Err(Fault::X87 { step });
                }
                let top = self.x87.remove(0);
                return self.store(to, step, &top);
            }
            Step::PushX87 { from } => {
                if self.x87.len() == 8 {
                    return Err(Fault::X87 { step });
                }
                let bytes = self.load(from, step, 10)?;
                let bytes = bytes.try_into().expect("as many as were asked for");
                self.x87.insert(0, bytes);
                return Ok(());
            }
            Step::Move { from, to, width, extend } => (from, to, width, extend),
            _ => return malformed,
        };
        let bytes = width.bytes();
        let is_general = |spot: Spot| spot.reg().map(general);
        // What goes into a register of this class, or comes from one.
        let fits = |is_general: Option<bool>| match is_general {
            Some(true) => bytes <= 8,
            Some(false) => bytes >= 4,
            None => true,
        };
        let narrow_load = bytes < 4 && is_general(to) == Some(true);
        if !fits(is_general(from))
            || !fits(is_general(to))
            || narrow_load != (extend != Extend::None)
            || narrow_load && is_general(from) == Some(false)
        {
            return malformed;
        }
        match (from.reg(), to.reg()) {
            (None, None) => malformed,
            (Some(from), None) => {
                let value = self.low_bytes(from, bytes);
                self.store(to, step, &value)
            }
            (from_reg, Some(to)) => {
                let value = match (from_reg, from) {
                    (Some(from), _) if !general(from) && !general(to) => {
                        self.low_bytes(from, bytes.max(16))
                    }
                    (Some(from), _) => self.low_bytes(from, bytes),
                    (None, Spot::Context) if width == Width::B8 && general(to) => {
                        self.context.to_le_bytes().to_vec()
                    }
                    (None, Spot::Context) => return malformed,
                    (None, _) => self.load(from, step, bytes)?,
                };
                if general(to) {
                    self.general[index(to)] = extended(number(&value), bytes, extend);
                } else {
                    let mut whole = [0; VECTOR_BYTES];
                    self.garbage.fill(&mut whole[16..]);
                    whole[..value.len()].copy_from_slice(&value);
                    self.vector[index(to)] = whole;
                }
                Ok(())
            }
        }
    }

    fn low_bytes(&self, register: Reg, bytes: u32) -> Vec<u8> {
        let bytes = bytes as usize;
        match register.class() {
            RegClass::General => self.register(register).to_le_bytes()[..bytes].to_vec(),
            RegClass::Vector => self.vector(register)[..bytes].to_vec(),
        }
    }

    fn load(&mut self, from: Spot, step: Step, bytes: u32) -> Result<Vec<u8>, Fault> {
        let found = match from {
            Spot::Target(_) | Spot::EntryResult(_) => return Err(Fault::Forbidden { step }),
            Spot::At(register, offset) => {
                let address = self.register(register).wrapping_add(offset.into());
                self.behind(address, bytes).map(|(bytes, _)| bytes)
            }
            _ => {
                let (memory, offset) = self.memory(from).ok_or(Fault::Malformed { step })?;
                memory.slice(offset, bytes)
            }
        };
        defined(found.ok_or(Fault::OutOfBounds { step })?).ok_or(Fault::Undefined { step })
    }

    fn store(&mut self, to: Spot, step: Step, value: &[u8]) -> Result<(), Fault> {
        let bytes = value.len() as u32;
        let found = match to {
            Spot::Entry(_) | Spot::TargetResult(_) | Spot::Context => {
                return Err(Fault::Forbidden { step });
            }
            Spot::At(register, offset) => {
                let address = self.register(register).wrapping_add(offset.into());
                match self.behind(address, bytes) {
                    Some((_, false)) => return Err(Fault::Forbidden { step }),
                    found => found.map(|(bytes, _)| bytes),
                }
            }
            _ => {
                let (memory, offset) = self.memory(to).ok_or(Fault::Malformed { step })?;
                memory.slice(offset, bytes)
            }
        };
        store(found.ok_or(Fault::OutOfBounds { step })?, value);
        Ok(())
    }

    /// Puts an address where a side has it.
    fn put_word(&mut self, place: Place, area: fn(u32) -> Spot, word: u64) {
        match place {
            Place::Reg(register) => self.set_register(register, word),
            Place::Area(offset) => {
                let (memory, offset) = self.memory(area(offset)).expect("an area");
                let slice = memory.slice(offset, 8).expect("values are in their area");
                store(slice, &word.to_le_bytes());
            }
            Place::X87(_) => unreachable!("no address is on the x87 stack"),
        }
    }

    fn take_word(
        &mut self,
        place: Place,
        area: fn(u32) -> Spot,
        value: ValueIndex,
    ) -> Result<u64, Fault> {
        match place {
            Place::Reg(register) => Ok(self.register(register)),
            Place::Area(offset) => {
                let (memory, offset) = self.memory(area(offset)).expect("an area");
                let slice = memory.slice(offset, 8).expect("values are in their area");
                let bytes = defined(slice).ok_or(Fault::Missing { value })?;
                Ok(number(&bytes))
            }
            Place::X87(_) => unreachable!("no address is on the x87 stack"),
        }
    }

    /// A value as it is in memory: garbage in its padding.
    fn image(&mut self, side: &Assignment, value: &Value, bytes: &[u8]) -> Vec<u8> {
        let size = value.layout().size_bytes as usize;
        assert_eq!(bytes.len(), size, "the bytes of a {}", value.ty());
        let data = data_bytes(value.ty(), side.language(), self.arch);
        let mut image = vec![0; size];
        self.garbage.fill(&mut image);
        for (i, _) in data.iter().enumerate().filter(|(_, data)| **data) {
            image[i] = bytes[i];
        }
        image
    }

    fn put_bytes(&mut self, side: &Assignment, value: &Value, bytes: &[u8], to: Target) {
        let image = self.image(side, value, bytes);
        let slice = match to {
            Target::Caller(memory) => &mut self.caller[memory].bytes[..],
            Target::Address(address) => {
                let found = self.behind(address, image.len() as u32);
                found.expect("checked on arrival").0
            }
        };
        store(slice, &image);
    }

    /// Puts a value where `side` has it, with garbage in every bit that is unspecified.
    fn put(
        &mut self,
        side: &Assignment,
        value: &Value,
        bytes: &[u8],
        area: fn(u32) -> Spot,
        narrow: Narrow,
    ) {
        let image = self.image(side, value, bytes);
        if let Passing::Area(offset) = *value.passing() {
            // Only the value itself is defined: what a plan may load. Where nothing is loaded, the
            // target finds the whole word.
            let mut image = image.clone();
            if self.in_place && side.slots() == Slots::Whole && value.ty().is_word() {
                image = self.whole_word(value, &image, narrow).to_vec();
            }
            let (memory, offset) = self.memory(area(offset)).expect("an area");
            let slice = memory.slice(offset, image.len() as u32);
            store(slice.expect("values are in their area"), &image);
        }
        for part in value.parts() {
            let piece = &image[part.off as usize..][..part.size as usize];
            match part.place {
                Place::Reg(register) if register.class() == RegClass::General => {
                    let whole = self.whole_word(value, piece, narrow);
                    self.set_register(register, u64::from_le_bytes(whole));
                }
                Place::Reg(register) => {
                    let mut whole = [0; VECTOR_BYTES];
                    self.garbage.fill(&mut whole);
                    whole[..piece.len()].copy_from_slice(piece);
                    self.set_vector(register, whole);
                }
                Place::X87(_) => {
                    // Parts are in the order of the stack.
                    let number = piece[..10].try_into().expect("ten bytes");
                    self.x87.push(number);
                }
                Place::Area(_) => unreachable!("parts are in registers"),
            }
        }
    }

    /// A piece of a value in the low bytes of a word, with garbage above it, as far as the giver
    /// does not extend it.
    fn whole_word(&mut self, value: &Value, piece: &[u8], narrow: Narrow) -> [u8; 8] {
        let mut whole = self.garbage.bits().to_le_bytes();
        whole[..piece.len()].copy_from_slice(piece);
        let size = value.layout().size_bytes;
        if narrow == Narrow::ExtendedTo32 && value.ty().is_word() && size < 4 {
            let full = extended(number(piece), size, Extend::of(value.ty()));
            whole[..4].copy_from_slice(&full.to_le_bytes()[..4]);
        }
        whole
    }

    /// Reads a value behind an address, where the receiver can rely on alignment.
    fn take_behind(
        &mut self,
        side: &Assignment,
        value: &Value,
        address: u64,
        align: u32,
        index: ValueIndex,
    ) -> Result<Vec<u8>, Fault> {
        let bad = Fault::BadAddress { value: index, address };
        let data = data_bytes(value.ty(), side.language(), self.arch);
        if !address.is_multiple_of(align.into()) {
            return Err(bad);
        }
        let found = self.behind(address, value.layout().size_bytes);
        let (bytes, _) = found.ok_or(bad)?;
        take_data(bytes, &data).ok_or(Fault::Missing { value: index })
    }

    fn check_result_address(
        &mut self,
        address: u64,
        layout: Layout,
        value: ValueIndex,
    ) -> Result<(), Fault> {
        let aligned = address.is_multiple_of(layout.align_bytes.into());
        match self.behind(address, layout.size_bytes) {
            Some((_, true)) if aligned => Ok(()),
            _ => Err(Fault::BadAddress { value, address }),
        }
    }

    /// Reads a value where `side` has it, and checks all that a receiver may rely on.
    fn take(
        &mut self,
        side: &Assignment,
        value: &Value,
        area: fn(u32) -> Spot,
        index: ValueIndex,
    ) -> Result<Vec<u8>, Fault> {
        let size = value.layout().size_bytes;
        let data = data_bytes(value.ty(), side.language(), self.arch);
        // Between two sides of one convention the receiver finds what the giver left.
        let alike = self.entry.convention() == self.target.convention();
        let relies = match side.narrow() {
            Narrow::ExtendedTo32 => !alike || matches!(index, ValueIndex::Param(_)),
            Narrow::Distrusted => !alike,
            Narrow::Garbage => false,
        };
        let check = |found: u64| {
            let extends = relies && value.ty().is_word() && size < 4;
            let full = extended(found, size.min(4), Extend::of(value.ty()));
            if extends && low(found, 4) != low(full, 4) {
                return Err(Fault::NotExtended { value: index, found });
            }
            Ok(())
        };
        if let Passing::Area(offset) = *value.passing() {
            let whole = side.slots() == Slots::Whole && value.ty().is_word();
            let loadable = if whole { 8 } else { size };
            let (memory, offset) = self.memory(area(offset)).expect("an area");
            // On amd64 a value on the stack is aligned as its type, as far as the area is.
            let address = memory.base + offset;
            let align = match side.arch() {
                Some(Arch::Amd64) => value.layout().align_bytes.min(side.area_align_bytes()),
                _ => 1,
            };
            if !address.is_multiple_of(align.into()) {
                return Err(Fault::BadAddress { value: index, address });
            }
            let slice = memory.slice(offset, loadable);
            let slice = slice.expect("values are in their area");
            if whole {
                let bytes = defined(slice).ok_or(Fault::Missing { value: index })?;
                check(number(&bytes))?;
                return Ok(bytes[..size as usize].to_vec());
            }
            return take_data(slice, &data).ok_or(Fault::Missing { value: index });
        }
        let mut image: Vec<Byte> = vec![None; size as usize];
        for part in value.parts() {
            let piece = match part.place {
                Place::Reg(register) => {
                    if register.class() == RegClass::General {
                        check(self.register(register))?;
                    }
                    self.low_bytes(register, part.size)
                }
                Place::X87(position) => match self.x87.get(usize::from(position)) {
                    Some(number) => number.to_vec(),
                    None => {
                        return Err(Fault::X87Depth { found: self.x87.len() });
                    }
                },
                Place::Area(_) => unreachable!("parts are in registers"),
            };
            for (i, byte) in piece.into_iter().enumerate() {
                let i = part.off as usize + i;
                if data[i] && image[i].is_some_and(|other| other != byte) {
                    return Err(Fault::Duplicate { value: index });
                }
                image[i] = Some(byte);
            }
        }
        take_data(&image, &data).ok_or(Fault::Missing { value: index })
    }
}

/// Where the bytes of a value in memory are put.
#[derive(Clone, Copy)]
enum Target {
    /// A piece of memory of the entry's caller.
    Caller(usize),
    /// An address.
    Address(u64),
}

/// The number of a register in its file.
fn index(register: Reg) -> usize {
    usize::from(match register {
        Reg::Gpr(gpr) => u8::from(gpr),
        Reg::Xmm(xmm) => u8::from(xmm),
        Reg::Xreg(xreg) => u8::from(xreg),
        Reg::Vreg(vreg) => u8::from(vreg),
    })
}

/// What a callee may rely on in the address of a copy.
fn convention_copy_align(side: &Assignment, layout: Layout) -> u32 {
    let least = side.convention().map_or(1, |c| c.spec().copy_align_bytes);
    layout.align_bytes.max(least)
}

fn store(slice: &mut [Byte], bytes: &[u8]) {
    for (byte, value) in slice.iter_mut().zip(bytes) {
        *byte = Some(*value);
    }
}

/// The data of a value, with zeros in its padding; `None` if a byte of data is undefined.
fn take_data(bytes: &[Byte], data: &[bool]) -> Option<Vec<u8>> {
    let both = bytes.iter().zip(data);
    let byte = |(byte, data): (&Byte, &bool)| if *data { *byte } else { Some(0) };
    both.map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::conv::Convention;
    use crate::abi::loc::{Vreg, Xmm, Xreg};
    use crate::abi::plan::PlanRequest;
    use crate::abi::sig::Signature;
    use crate::abi::ty::RecordSpec;

    const SCRATCH: RegSet = RegSet::of(&[
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

    fn mov(from: Spot, to: Spot, width: Width, extend: Extend) -> Step {
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
        let stage = [
            Step::Address { of: Spot::Target(0), to: Gpr::RAX.into() },
            Step::Constant { to: Gpr::RBX.into(), value: 7 },
        ];
        assert_eq!(machine.run(&stage), Ok(()));
        assert_eq!(machine.register(Gpr::RAX), machine.target_area.base);
        assert_eq!(machine.register(Gpr::RBX), 7);
    }

    #[test]
    fn what_no_plan_may_do_is_a_fault() {
        let (entry, target, plan) =
            sides("fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, u8, i32)");
        let mut machine = Machine::new(&entry, &target, &plan, 0);
        let sizes = entry.params().iter().map(|v| v.layout().size_bytes as usize);
        machine.enter(&sizes.map(|size| vec![0; size]).collect::<Vec<_>>());
        let (rax, xmm0) = (Gpr::RAX.into(), Xmm::XMM0.into());
        let mut fault = |step| (machine.run(&[step]), step);
        let none = Extend::None;

        for (from, to, width, extend) in [
            (Spot::Entry(0), Spot::Target(0), Width::B1, none),
            (rax, rax, Width::B2, none),
            (rax, rax, Width::B4, Extend::Sign),
            (rax, rax, Width::B16, none),
            (rax, xmm0, Width::B2, none),
            (xmm0, rax, Width::B1, Extend::Zero),
            (xmm0, xmm0, Width::B2, none),
            (Spot::Context, rax, Width::B4, none),
            (Spot::Context, Spot::Target(0), Width::B8, none),
            (rax, Spot::Target(0), Width::B1, Extend::Zero),
        ] {
            let (result, step) = fault(mov(from, to, width, extend));
            assert_eq!(result, Err(Fault::Malformed { step }));
        }
        for (from, to) in [
            (rax, Spot::Entry(0)),
            (rax, Spot::TargetResult(0)),
            (rax, Spot::Context),
            (Spot::Target(0), rax),
            (Spot::EntryResult(0), rax),
        ] {
            let (result, step) = fault(mov(from, to, Width::B8, none));
            assert_eq!(result, Err(Fault::Forbidden { step }));
        }
        let nowhere = Spot::At(Gpr::RAX.into(), 0);
        for step in [
            mov(rax, Spot::Target(40), Width::B8, none),
            mov(rax, nowhere, Width::B8, none),
            mov(nowhere, rax, Width::B8, none),
        ] {
            let (result, _) = fault(step);
            assert_eq!(result, Err(Fault::OutOfBounds { step }));
        }
        let (result, step) = fault(mov(Spot::Entry(0), rax, Width::B2, Extend::Zero));
        assert_eq!(result, Err(Fault::Undefined { step }), "the byte after a u8");
        let (result, step) = fault(Step::PopX87 { to: Spot::Target(0) });
        assert_eq!(result, Err(Fault::X87 { step }));
        let (result, _) = fault(mov(Spot::Entry(4), rax, Width::B4, none));
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn a_value_that_does_not_arrive_is_a_fault() {
        let (entry, target, plan) = sides("fn(i64, i64, i64, i64, i64, i64, i8)");
        let mut machine = Machine::new(&entry, &target, &plan, 0);
        let value = ValueIndex::Param(6);
        assert_eq!(machine.arrived(), Err(Fault::Missing { value }));
        machine.set_register(Gpr::RAX, 0x80);
        let store = |width| mov(Gpr::RAX.into(), Spot::Target(0), width, Extend::None);
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
        let store = mov(Gpr::RAX.into(), Spot::Target(0), Width::B8, Extend::None);
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

    /// Which side of a random call is which.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Side {
        Convention(Convention),
        Words,
    }

    impl Side {
        fn language(self) -> Language {
            match self {
                Side::Convention(convention) => convention.spec().language,
                Side::Words => Language::C,
            }
        }

        fn assign(self, signature: &Signature, language: Language) -> Option<Assignment> {
            match self {
                Side::Convention(convention) => convention.assign(signature).ok(),
                Side::Words => Some(Assignment::words_of(signature, language)),
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
                19 => {
                    ["complex<f64>", "complex<longdouble>"][rng.below(2)].parse().expect("a type")
                }
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
            Err(
                super::super::PlanError::LayoutDiffers { .. }
                | super::super::PlanError::FrameTooLarge { .. },
            ) => return Checked::default(),
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
        let PlanRequest { entry, target, bound_param: bound, arg_scratch, result_scratch } =
            *request;
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
        let (old, new) = if entry.is_words() {
            (&before.entry_record, &machine.entry_record)
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
            let sides = conventions.map(Side::Convention).chain([Side::Words]);
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
}
