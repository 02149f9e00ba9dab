//! Calls on the model machine: how values enter and leave it.
//!
//! `put` places a value as the giving side does, with garbage in every bit that is unspecified.
//! `take` reads it as the receiving side may, and checks all that the receiver relies on.

use super::fault::Fault;
use super::machine::{self, Machine};
use super::memory::{Byte, Memory, defined, extended, low, number, store};
use crate::abi::assign::{Assignment, Passing, Value};
use crate::abi::conv::spec::{Narrow, Slots};
use crate::abi::place::Place;
use crate::abi::plan::{Extend, Operand};
use crate::abi::reg::{Arch, Gpr, RegClass, RegSet};
use crate::abi::types::{Language, Layout, Type, ValueIndex};

impl Machine<'_> {
    /// The caller passes arguments: the bytes of a value for each parameter of the entry, as the
    /// entry's language lays it out. The content of padding does not matter.
    ///
    /// # Panics
    ///
    /// If `args` does not match the parameters in number and sizes.
    pub fn enter(&mut self, args: &[Vec<u8>]) {
        let entry = self.entry;
        assert_eq!(entry.params().len(), args.len(), "one for each value");
        for (value, bytes) in entry.params().iter().zip(args) {
            if let Passing::Reference(place) = *value.passing() {
                let align = convention_copy_align(entry, value.layout());
                let memory = self.caller_memory(value.layout().size_bytes, align);
                let address = self.caller[memory].base;
                self.put_word(place, Operand::Entry, address);
                self.put_bytes(entry, value, bytes, Destination::Caller(memory));
            } else {
                self.put(entry, value, bytes, Operand::Entry, entry.narrow());
            }
        }
        if let (Some(pointer), [value, ..]) = (entry.result_pointer(), entry.results()) {
            let memory = self.caller_memory(value.layout().size_bytes, value.layout().align_bytes);
            self.result_memory = Some(memory);
            let address = self.caller[memory].base;
            self.put_word(pointer.place, Operand::Entry, address);
        }
        if let Some((register, count)) = entry.vector_count() {
            let above = self.garbage.bits() << 8;
            self.set_register(register, above | u64::from(count));
        }
    }

    /// The arguments that the target finds: the bytes of a value for each of its parameters, with
    /// zeros in padding. The target loads everything that its convention lets it load, and relies
    /// on everything that it may rely on.
    ///
    /// # Errors
    ///
    /// A parameter is missing, not extended or not aligned.
    pub fn arrived(&mut self) -> Result<Vec<Vec<u8>>, Fault> {
        let target = self.target;
        let mut values = Vec::with_capacity(target.params().len());
        for (i, value) in target.params().iter().enumerate() {
            let index = ValueIndex::Param(i);
            values.push(if let Passing::Reference(place) = *value.passing() {
                let address = self.take_word(place, Operand::Target, index)?;
                let align = convention_copy_align(target, value.layout());
                self.take_at(target, value, address, align, index)?
            } else {
                self.take(target, value, Operand::Target, index)?
            });
        }
        if let (Some(pointer), [value, ..]) = (target.result_pointer(), target.results()) {
            let index = ValueIndex::Result(0);
            let address = self.take_word(pointer.place, Operand::Target, index)?;
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

    /// The target returns results: the bytes of a value for each of them. Before that it overwrites
    /// all that it may: its area, the copies that it was passed, and the registers that its
    /// convention does not preserve. (A target with packed buffers has no convention; the machine
    /// then keeps only `rsp`.)
    ///
    /// # Panics
    ///
    /// If `results` does not match the results in number and sizes, or if [`Machine::arrived`] did
    /// not succeed before.
    pub fn leave(&mut self, results: &[Vec<u8>]) {
        let target = self.target;
        assert_eq!(target.results().len(), results.len(), "one for each value");
        for (i, value) in target.params().iter().enumerate() {
            if let Passing::Reference(place) = *value.passing() {
                let address = self.take_word(place, Operand::Target, ValueIndex::Param(i));
                let address = address.expect("found before");
                let mut garbage = vec![0; value.layout().size_bytes as usize];
                self.garbage.fill(&mut garbage);
                let found = self.at_address(address, value.layout().size_bytes);
                store(found.expect("found before").0, &garbage);
            }
        }
        let area = if self.in_place { &mut self.entry_area } else { &mut self.target_area };
        area.bytes[..target.total_bytes() as usize].fill(None);
        let low_halves = target.spec().map_or(RegSet::EMPTY, |spec| spec.preserved_low64);
        let volatile = match target.spec() {
            Some(spec) => spec.volatile(),
            None => self.arch.registers().minus(RegSet::of_gprs(&[Gpr::RSP])),
        };
        let kept = self.vector;
        self.trash(volatile);
        for register in low_halves.iter() {
            let i = machine::index(register);
            self.vector[i][..8].copy_from_slice(&kept[i][..8]);
        }
        for (value, bytes) in target.results().iter().zip(results) {
            match (*value.passing() == Passing::Nothing, target.result_pointer()) {
                (false, Some(pointer)) => {
                    let address = self.target_result_address;
                    self.put_bytes(target, value, bytes, Destination::Address(address));
                    if let Some(returned) = pointer.returned {
                        self.set_register(returned, address);
                    }
                }
                // Callees do not extend results: see `Narrow::ExtendedTo32`.
                _ => self.put(target, value, bytes, Operand::TargetResult, Narrow::Garbage),
            }
        }
    }

    /// The results that the entry's caller finds: the bytes of a value for each of them, as in
    /// [`Machine::arrived`].
    ///
    /// # Errors
    ///
    /// A result is missing or not extended.
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
                    self.take_at(entry, value, address, 1, index)?
                }
                _ => self.take(entry, value, Operand::EntryResult, index)?,
            });
        }
        match self.x87.len() {
            found if found != on_x87 => Err(Fault::X87Depth { found }),
            _ => Ok(values),
        }
    }

    /// New memory of the entry's caller, aligned to `align` and no more.
    fn caller_memory(&mut self, bytes: u32, align: u32) -> usize {
        let base = machine::CALLER_BASE
            + machine::CALLER_STRIDE * self.caller.len() as u64
            + u64::from(align);
        self.caller.push(Memory::undefined(base, bytes));
        self.caller.len() - 1
    }

    /// Puts an address into its place.
    fn put_word(&mut self, place: Place, area: fn(u32) -> Operand, word: u64) {
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
        area: fn(u32) -> Operand,
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

    /// A value as it is in memory, with garbage in its padding.
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

    fn put_bytes(&mut self, side: &Assignment, value: &Value, bytes: &[u8], to: Destination) {
        let image = self.image(side, value, bytes);
        let slice = match to {
            Destination::Caller(memory) => &mut self.caller[memory].bytes[..],
            Destination::Address(address) => {
                let found = self.at_address(address, image.len() as u32);
                found.expect("checked on arrival").0
            }
        };
        store(slice, &image);
    }

    /// Puts a value into its place on `side`, with garbage in every bit that is unspecified.
    fn put(
        &mut self,
        side: &Assignment,
        value: &Value,
        bytes: &[u8],
        area: fn(u32) -> Operand,
        narrow: Narrow,
    ) {
        let image = self.image(side, value, bytes);
        if let Passing::Area(offset) = *value.passing() {
            // Only the bytes that a plan may load are defined: those of the value. In place a plan
            // loads nothing, and the target finds the whole word.
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
                    let mut whole = [0; machine::VECTOR_BYTES];
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

    /// A piece of a value in the low bytes of a word. Above it is the giver's extension, and
    /// garbage from where that ends.
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

    /// Reads a value at an address, for a receiver that relies on this alignment.
    fn take_at(
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
        let found = self.at_address(address, value.layout().size_bytes);
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
        match self.at_address(address, layout.size_bytes) {
            Some((_, true)) if aligned => Ok(()),
            _ => Err(Fault::BadAddress { value, address }),
        }
    }

    /// Reads a value from its place on `side`, and checks all that a receiver may rely on.
    fn take(
        &mut self,
        side: &Assignment,
        value: &Value,
        area: fn(u32) -> Operand,
        index: ValueIndex,
    ) -> Result<Vec<u8>, Fault> {
        let size = value.layout().size_bytes;
        let data = data_bytes(value.ty(), side.language(), self.arch);
        // Between two sides of one convention the receiver finds what the giver left there.
        let alike = self.entry.spec() == self.target.spec();
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

/// Where the bytes of a value in memory go.
#[derive(Clone, Copy)]
enum Destination {
    /// A piece of memory of the entry's caller.
    Caller(usize),
    /// An address.
    Address(u64),
}

/// The alignment of a copy that a callee may rely on.
fn convention_copy_align(side: &Assignment, layout: Layout) -> u32 {
    let least = side.spec().map_or(1, |spec| spec.copy_align_bytes);
    layout.align_bytes.max(least)
}

/// The data of a value, with zeros in its padding; `None` if a byte of data is undefined.
fn take_data(bytes: &[Byte], data: &[bool]) -> Option<Vec<u8>> {
    let both = bytes.iter().zip(data);
    let byte = |(byte, data): (&Byte, &bool)| if *data { *byte } else { Some(0) };
    both.map(byte).collect()
}

/// For each byte of a value, whether it holds data on this machine. The others are padding.
pub(super) fn data_bytes(ty: &Type, language: Language, arch: Arch) -> Vec<bool> {
    let mut data = ty.data_bytes(language);
    if arch == Arch::Amd64 {
        // An x87 number has ten bytes of data. A union may have other data in the rest.
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
