//! The model machine: registers, memory, and the execution of steps.
//!
//! This file knows steps and operands, but not how values are passed: see `call.rs`.

use super::fault::Fault;
use super::memory::{Byte, Memory, defined, extended, number, store};
use super::xorshift::Xorshift;
use crate::abi::assign::Assignment;
use crate::abi::plan::{Extend, Operand, Plan, Step, Width};
use crate::abi::reg::{Arch, Reg, RegClass, RegSet};

/// The size of a vector register, in bytes.
pub(super) const VECTOR_BYTES: usize = 64;

// The addresses of the pieces of memory. They are far apart, and `Machine::new` adds to each one
// just its alignment, so that no piece is aligned better by chance.
const ENTRY_BASE: u64 = 0x1_0000_0000;
const TARGET_BASE: u64 = 0x2_0000_0000;
const STAGING_BASE: u64 = 0x3_0000_0000;
const ENTRY_BUFFER_BASE: u64 = 0x4_0000_0000;
const TARGET_BUFFER_BASE: u64 = 0x5_0000_0000;
pub(super) const CALLER_BASE: u64 = 0x6_0000_0000;
pub(super) const CALLER_STRIDE: u64 = 0x1_0000_0000;

/// The model machine, in the middle of a call from `entry` to `target`. See the example of
/// [`model`](super).
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    pub(super) entry: &'a Assignment,
    pub(super) target: &'a Assignment,
    pub(super) arch: Arch,
    /// Whether the target's area is the entry's.
    pub(super) in_place: bool,
    pub(super) general: [u64; 32],
    pub(super) vector: [[u8; VECTOR_BYTES]; 32],
    pub(super) x87: Vec<[u8; 10]>,
    pub(super) context: u64,
    pub(super) entry_area: Memory,
    pub(super) target_area: Memory,
    pub(super) staging: Memory,
    /// The separate buffers of results, where a side has them.
    pub(super) entry_buffer: Memory,
    pub(super) target_buffer: Memory,
    /// The copies that the entry's caller made, and the memory for its result. Only the latter may
    /// be written: `result_memory` is its index.
    pub(super) caller: Vec<Memory>,
    pub(super) result_memory: Option<usize>,
    /// The address for its result that the target found.
    pub(super) target_result_address: u64,
    pub(super) garbage: Xorshift,
}

impl<'a> Machine<'a> {
    /// A machine at the entry of a stub that executes `plan`. All registers and the staging area
    /// hold garbage from `seed`. No other memory is defined.
    pub fn new(
        entry: &'a Assignment,
        target: &'a Assignment,
        plan: &Plan,
        seed: u64,
    ) -> Machine<'a> {
        let buffer = |side: &Assignment, base| {
            let bytes = if side.is_packed() { side.results_bytes() } else { 0 };
            Memory::undefined(base, bytes)
        };
        let arch = entry.arch().or(target.arch()).unwrap_or(Arch::Amd64);
        // Each base has the alignment that the stub gives it, and no more.
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
            staging: Memory::undefined(
                odd(STAGING_BASE, plan.staging_align_bytes),
                plan.staging_bytes,
            ),
            entry_buffer: buffer(entry, ENTRY_BUFFER_BASE),
            target_buffer: buffer(target, TARGET_BUFFER_BASE),
            caller: Vec::new(),
            result_memory: None,
            target_result_address: 0,
            garbage: Xorshift::new(seed),
        };
        machine.context = machine.garbage.bits();
        machine.trash(arch.registers());
        for byte in &mut machine.staging.bytes {
            *byte = Some((machine.garbage.bits() >> 40) as u8);
        }
        machine
    }

    /// The content of a general-purpose register, or the low 64 bits of a vector register.
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

    /// The constant that [`Operand::Context`] reads. It is garbage until it is set.
    pub const fn context(&self) -> u64 {
        self.context
    }

    /// Sets the constant that [`Operand::Context`] reads.
    pub const fn set_context(&mut self, bits: u64) {
        self.context = bits;
    }

    /// Executes steps.
    ///
    /// # Errors
    ///
    /// The fault of the first step that no plan may contain, or that reads or writes memory which
    /// it must not.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), Fault> {
        steps.iter().try_for_each(|step| self.step(*step))
    }

    /// Fills registers with garbage.
    pub(super) fn trash(&mut self, registers: RegSet) {
        for register in registers.iter() {
            let i = index(register);
            match register.class() {
                RegClass::General => self.general[i] = self.garbage.bits(),
                RegClass::Vector => self.garbage.fill(&mut self.vector[i]),
            }
        }
    }

    /// The memory that an operand lies in, and its offset there.
    pub(super) fn memory(&mut self, operand: Operand) -> Option<(&mut Memory, u64)> {
        let (memory, offset) = match operand {
            Operand::Entry(offset) => (&mut self.entry_area, offset),
            Operand::Target(offset) | Operand::TargetResult(offset) if self.in_place => {
                (&mut self.entry_area, offset)
            }
            Operand::Target(offset) => (&mut self.target_area, offset),
            Operand::EntryResult(offset) if self.entry.is_packed() => {
                (&mut self.entry_buffer, offset)
            }
            Operand::EntryResult(offset) => (&mut self.entry_area, offset),
            Operand::TargetResult(offset) if self.target.is_packed() => {
                (&mut self.target_buffer, offset)
            }
            Operand::TargetResult(offset) => (&mut self.target_area, offset),
            Operand::Staging(offset) => (&mut self.staging, offset),
            _ => return None,
        };
        Some((memory, offset.into()))
    }

    /// The bytes at an address that a plan or a callee can have, and whether a plan may write them.
    pub(super) fn at_address(&mut self, address: u64, bytes: u32) -> Option<(&mut [Byte], bool)> {
        let result_memory = self.result_memory;
        if self.staging.contains(address) {
            let offset = address - self.staging.base;
            return Some((self.staging.slice(offset, bytes)?, true));
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
                let bytes = bytes.try_into().expect("ten bytes were loaded");
                self.x87.insert(0, bytes);
                return Ok(());
            }
            Step::Move { from, to, width, extend } => (from, to, width, extend),
            _ => return malformed,
        };
        let bytes = width.bytes();
        let is_general = |operand: Operand| operand.reg().map(general);
        // Whether a register of this class can hold the bytes.
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
                    (None, Operand::Context) if width == Width::B8 && general(to) => {
                        self.context.to_le_bytes().to_vec()
                    }
                    (None, Operand::Context) => return malformed,
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

    pub(super) fn low_bytes(&self, register: Reg, bytes: u32) -> Vec<u8> {
        let bytes = bytes as usize;
        match register.class() {
            RegClass::General => self.register(register).to_le_bytes()[..bytes].to_vec(),
            RegClass::Vector => self.vector(register)[..bytes].to_vec(),
        }
    }

    fn load(&mut self, from: Operand, step: Step, bytes: u32) -> Result<Vec<u8>, Fault> {
        let found = match from {
            Operand::Target(_) | Operand::EntryResult(_) => return Err(Fault::Forbidden { step }),
            Operand::At(register, offset) => {
                let address = self.register(register).wrapping_add(offset.into());
                self.at_address(address, bytes).map(|(bytes, _)| bytes)
            }
            _ => {
                let (memory, offset) = self.memory(from).ok_or(Fault::Malformed { step })?;
                memory.slice(offset, bytes)
            }
        };
        defined(found.ok_or(Fault::OutOfBounds { step })?).ok_or(Fault::Undefined { step })
    }

    fn store(&mut self, to: Operand, step: Step, value: &[u8]) -> Result<(), Fault> {
        let bytes = value.len() as u32;
        let found = match to {
            Operand::Entry(_) | Operand::TargetResult(_) | Operand::Context => {
                return Err(Fault::Forbidden { step });
            }
            Operand::At(register, offset) => {
                let address = self.register(register).wrapping_add(offset.into());
                match self.at_address(address, bytes) {
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
}

/// The index of a register in its register file.
pub(super) fn index(register: Reg) -> usize {
    usize::from(match register {
        Reg::Gpr(gpr) => u8::from(gpr),
        Reg::Xmm(xmm) => u8::from(xmm),
        Reg::Xreg(xreg) => u8::from(xreg),
        Reg::Vreg(vreg) => u8::from(vreg),
    })
}
