//! One half of a plan: the steps that carry values from the giving side to the receiving side.
//!
//! A [`Carry`] collects steps by phase, value by value, and puts the phases in order at the end:
//!
//! ```text
//! stores     registers to memory
//! copies     memory to memory, through scratch registers
//! moves      registers to registers, all at once: shuffle.rs
//! loads      memory and addresses to registers
//! contexts   the bound constant
//! constants  the number of vector registers
//! ```
//!
//! The head of `plan/mod.rs` says why no step of this order overwrites a value that a later one
//! reads.

use std::cell::LazyCell;

use super::error::PlanError;
use super::shuffle::{self, RegMove};
use super::staging::{MAX_FRAME_BYTES, Staging};
use super::step::{Extend, Operand, Step, Width};
use crate::abi::assign::{Assignment, Passing, Value};
use crate::abi::conv::spec::{Narrow, Slots};
use crate::abi::place::{Part, Place};
use crate::abi::reg::{Reg, RegClass, RegSet};
use crate::abi::types::{Type, ValueIndex};

/// The most bytes that the copies of one half of a plan may carry: the areas of both sides, and
/// twice the staging area.
const MAX_COPIED_BYTES: u32 = 4 * MAX_FRAME_BYTES;

/// Where a value is on one side.
#[derive(Clone, Copy)]
pub(super) enum Location<'a> {
    /// The value has no bytes.
    Nothing,
    /// In parts.
    Parts(&'a [Part]),
    /// In memory, from this operand on.
    Memory(Operand),
    /// In memory whose address is in this operand. On the receiving side the memory is new, and the
    /// half stores its address here.
    Indirect(Operand),
    /// The bound constant. Never on the receiving side.
    Context,
}

impl<'a> Location<'a> {
    /// The location of a value, where `area` makes an operand of an offset in the side's area.
    pub(super) fn of(value: &'a Value, area: fn(u32) -> Operand) -> Location<'a> {
        match value.passing() {
            Passing::Nothing => Location::Nothing,
            Passing::Parts(parts) => Location::Parts(parts),
            Passing::Area(offset) => Location::Memory(area(*offset)),
            Passing::Reference(place) => Location::Indirect(operand(*place, area)),
        }
    }
}

/// The operand of an address or integer in this place.
pub(super) fn operand(place: Place, area: fn(u32) -> Operand) -> Operand {
    match place {
        Place::Reg(register) => register.into(),
        Place::Area(offset) => area(offset),
        Place::X87(_) => unreachable!("addresses and integers are not on the x87 stack"),
    }
}

/// A copy from memory to memory.
struct MemoryCopy {
    index: ValueIndex,
    from: CopyFrom,
    to: Operand,
    size: u32,
    /// Of a value that is one integer: how it is extended, and the width that is stored.
    word: Option<(Extend, Width)>,
}

enum CopyFrom {
    /// The bytes from this operand on.
    Memory(Operand),
    /// The bytes at the address that is in this operand.
    Indirect(Operand),
    /// The bound constant.
    Context,
    /// The address of this operand.
    AddressOf(Operand),
}

/// The values of one half of a call: arguments on their way to the target, or results on their way
/// to the entry's caller.
pub(super) struct Carry<'a> {
    /// Whether narrow values come with garbage above them in registers, and must arrive extended.
    extends: bool,
    /// What the receiver loads beside an integer in memory.
    slots: Slots,
    /// What the giver stores beside an integer in memory.
    given_slots: Slots,
    /// Whether both sides have one area.
    in_place: bool,
    receiver: &'a Assignment,
    /// The alignment of the giver's copies, in bytes.
    given_align: u32,
    /// The offered registers.
    scratch: RegSet,
    /// The registers that values come from and go to.
    ends: RegSet,
    staging: &'a mut Staging,
    /// The register that holds the address for the result, until the copies are done.
    pointer: Option<Reg>,

    // The steps by phase.
    steps: Vec<Step>,
    stores: Vec<Step>,
    copies: Vec<MemoryCopy>,
    moves: Vec<RegMove>,
    loads: Vec<Step>,
    contexts: Vec<(Reg, Extend, Width)>,
    constants: Vec<(Reg, u32)>,
}

impl<'a> Carry<'a> {
    /// No steps yet. `given` says what is above the narrow values of the giver.
    pub(super) fn new(
        giver: &Assignment,
        given: Narrow,
        receiver: &'a Assignment,
        scratch: RegSet,
        in_place: bool,
        staging: &'a mut Staging,
    ) -> Carry<'a> {
        // Between two sides of one convention a stub changes nothing that the receiver would have
        // found without it.
        let alike = giver.spec().is_some() && giver.spec() == receiver.spec();
        Carry {
            extends: !alike
                && given != Narrow::ExtendedTo32
                && receiver.narrow() != Narrow::Garbage,
            slots: receiver.slots(),
            given_slots: giver.slots(),
            in_place,
            receiver,
            given_align: giver.spec().map_or(8, |spec| spec.copy_align_bytes),
            scratch,
            ends: RegSet::EMPTY,
            staging,
            pointer: None,
            steps: Vec::with_capacity(16),
            stores: Vec::new(),
            copies: Vec::new(),
            moves: Vec::with_capacity(8),
            loads: Vec::new(),
            contexts: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// The memory for a copy of a value, as the receiver wants it.
    pub(super) fn reserve_copy(&mut self, value: &Value) -> Operand {
        self.staging.reserve_copy(value.layout(), self.receiver)
    }

    /// Carries an address or another whole word from one operand to another.
    pub(super) fn word(&mut self, index: ValueIndex, from: Operand, to: Operand) {
        if self.in_place && one_place(from, to) {
            return;
        }
        self.end(from);
        self.end(to);
        match (from.reg(), to.reg()) {
            (Some(from), Some(to)) => self.reg_move(index, from, to, 8, Extend::None),
            (Some(_), None) => self.stores.push(plain(from, to, Width::B8)),
            (None, Some(_)) => self.loads.push(plain(from, to, Width::B8)),
            (None, None) => self.copy(index, CopyFrom::Memory(from), to, 8),
        }
    }

    /// Keeps a word in the staging area, and returns its operand there.
    pub(super) fn keep(&mut self, index: ValueIndex, from: Operand) -> Operand {
        let kept = self.staging.reserve(8, 8);
        self.word(index, from, kept);
        kept
    }

    /// Carries the address of an operand in memory to `to`.
    pub(super) fn address(&mut self, index: ValueIndex, of: Operand, to: Operand) {
        self.end(to);
        match to.reg() {
            Some(to) => self.loads.push(Step::Address { of, to }),
            None => self.copy(index, CopyFrom::AddressOf(of), to, 8),
        }
    }

    /// Sets a register to a number, as one of the last steps.
    pub(super) fn constant(&mut self, register: Reg, number: u32) {
        self.constants.push((register, number));
    }

    /// Chooses a register for the address of the result, loads it before anything moves, and
    /// returns it. `kept` holds the address, and `returned` is the register that must hold it in
    /// the end. The registers of the `given` results are busy.
    pub(super) fn point(
        &mut self,
        index: ValueIndex,
        kept: Operand,
        returned: Option<Reg>,
        given: &[Value],
    ) -> Result<Reg, PlanError> {
        self.ends = self.ends.union(returned.into_iter().collect());
        let parts = given.iter().flat_map(Value::parts);
        let busy: RegSet = parts.filter_map(|part| part.place.reg()).collect();
        let preferred = returned.filter(|register| !busy.contains(*register));
        let pointer = match preferred {
            Some(register) => register,
            None => self.general(index, busy)?,
        };
        self.steps.push(plain(kept, pointer.into(), Width::B8));
        self.pointer = Some(pointer);
        Ok(pointer)
    }

    /// Notes that a value comes from or goes to this operand.
    fn end(&mut self, operand: Operand) {
        if let Some(register) = operand.reg() {
            self.ends = self.ends.with(register);
        }
    }

    fn end_parts(&mut self, parts: &[Part]) {
        for part in parts {
            self.ends = self.ends.union(part.place.reg().into_iter().collect());
        }
    }

    fn copy(&mut self, index: ValueIndex, from: CopyFrom, to: Operand, size: u32) {
        self.copies.push(MemoryCopy { index, from, to, size, word: None });
    }

    fn reg_move(&mut self, index: ValueIndex, from: Reg, to: Reg, size: u32, extend: Extend) {
        let width = if extend == Extend::None {
            Width::covering(size)
        } else {
            Width::exact(size).expect("one or two bytes are extended")
        };
        self.moves.push(RegMove { value: index, from, to, width, extend });
    }

    /// Carries a value from one location to the other.
    pub(super) fn value(
        &mut self,
        index: ValueIndex,
        value: &Value,
        from: Location<'_>,
        to: Location<'_>,
    ) {
        if let Location::Parts(parts) = from {
            self.end_parts(parts);
        }
        match (to, from) {
            (Location::Nothing, _) => {}
            (Location::Memory(to), Location::Memory(from))
                if self.in_place && one_place(from, to) && self.arrives_as_it_is(value) => {}
            // The giver's copy belongs to the stub, which passes it on.
            (Location::Indirect(to), Location::Indirect(from)) if self.passes_copies(value) => {
                self.word(index, from, to);
            }
            (Location::Indirect(to), _) => {
                let copy = self.reserve_copy(value);
                self.fill(index, value, from, copy);
                self.address(index, copy, to);
            }
            (Location::Memory(to), _) => self.fill(index, value, from, to),
            (Location::Parts(parts), _) => {
                self.end_parts(parts);
                self.parts(index, value, from, parts);
            }
            (Location::Context, _) => unreachable!("no side receives the bound constant"),
        }
    }

    /// Whether a value in the giver's memory is as the receiver expects it.
    fn arrives_as_it_is(&self, value: &Value) -> bool {
        let is_whole = self.slots == Slots::Exact || self.given_slots == Slots::Whole;
        let is_extended = !self.extends || Extend::of(value.ty()) == Extend::None;
        !value.ty().is_word() || is_whole && is_extended
    }

    /// Whether the giver's copies are aligned well enough for the receiver.
    fn passes_copies(&self, value: &Value) -> bool {
        let needed = self.receiver.spec().map_or(8, |spec| spec.copy_align_bytes);
        needed <= self.given_align.max(value.layout().align_bytes)
    }

    /// Writes all bytes of a value, and no others, from `to` on.
    fn fill(&mut self, index: ValueIndex, value: &Value, from: Location<'_>, to: Operand) {
        let ty = value.ty();
        let size = value.layout().size_bytes;
        let in_staging = matches!(to, Operand::Staging(_));
        let whole = self.slots == Slots::Whole && ty.is_word() && !in_staging;
        let width = |size| Width::exact(size).unwrap_or(Width::B8);
        let stored = if whole { Width::B8 } else { width(size) };
        let word = ty.is_word().then(|| (Extend::of(ty), stored));
        let copy = |from| MemoryCopy { index, from, to, size, word };
        match from {
            Location::Nothing => {}
            Location::Memory(from) => self.copies.push(copy(CopyFrom::Memory(from))),
            Location::Indirect(from) => self.copies.push(copy(CopyFrom::Indirect(from))),
            Location::Context => self.copies.push(copy(CopyFrom::Context)),
            Location::Parts(parts) => {
                for part in distinct(parts) {
                    let to = to.plus(part.off);
                    let Place::Reg(register) = part.place else {
                        self.stores.push(Step::PopX87 { to });
                        continue;
                    };
                    let from = Operand::from(register);
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
                        self.stores.push(plain(from, to, Width::B8));
                    } else if let Some(exact) = Width::exact(part.size) {
                        self.stores.push(plain(from, to, exact));
                    } else if in_staging {
                        // The tail of an image, which has room for its last word.
                        self.stores.push(plain(from, to, Width::B8));
                    } else {
                        let tail = self.staging.reserve(8, 8);
                        self.stores.push(plain(from, tail, Width::B8));
                        self.copy(index, CopyFrom::Memory(tail), to, part.size);
                    }
                }
            }
        }
    }

    /// Puts a value into parts.
    fn parts(&mut self, index: ValueIndex, value: &Value, from: Location<'_>, parts: &[Part]) {
        let ty = value.ty();
        match from {
            Location::Nothing => {}
            Location::Context => {
                let [part] = parts else { unreachable!("a word is in one part") };
                let register = part.place.reg().expect("a word is in a register");
                let width = Width::exact(part.size).expect("a word has a width");
                self.contexts.push((register, Extend::of(ty), width));
            }
            Location::Indirect(_) => {
                let image = self.staging.reserve(value.layout().size_bytes, 8);
                self.fill(index, value, from, image);
                self.load(index, ty, image, parts);
            }
            Location::Memory(from) => self.load(index, ty, from, parts),
            Location::Parts(given) => {
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
                            self.reg_move(index, from, to, part.size, extend);
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
                let image = self.staging.reserve(value.layout().size_bytes, 8);
                self.fill(index, value, Location::Parts(&given), image);
                self.load(index, ty, image, &others);
            }
        }
    }

    /// Loads parts of a value from memory. The staging area has room for the word that a part ends
    /// in; any other memory may end where the part ends.
    fn load(&mut self, index: ValueIndex, ty: &Type, from: Operand, parts: &[Part]) {
        // The x87 stack is filled from its bottom.
        for part in parts.iter().rev() {
            if let Place::X87(_) = part.place {
                let from = from.plus(part.off);
                self.loads.push(Step::PushX87 { from });
            }
        }
        for part in parts {
            let Place::Reg(to) = part.place else { continue };
            let from = from.plus(part.off);
            let (from, width) = match (Width::exact(part.size), from) {
                (Some(width), _) => (from, width),
                (None, Operand::Staging(_)) => (from, Width::B8),
                (None, _) => {
                    let tail = self.staging.reserve(8, 8);
                    self.copy(index, CopyFrom::Memory(from), tail, part.size);
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

    /// The steps, in the order of the phases.
    pub(super) fn finish(mut self) -> Result<Vec<Step>, PlanError> {
        // A step carries eight bytes. What fits in no frame is refused before it makes millions of
        // steps.
        let copied = self.copies.iter().map(|copy| u64::from(copy.size)).sum::<u64>();
        let bytes = copied.max(self.staging.bytes.into());
        if bytes > u64::from(MAX_COPIED_BYTES) {
            return Err(PlanError::FrameTooLarge {
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                limit_bytes: MAX_FRAME_BYTES,
            });
        }
        self.steps.append(&mut self.stores);

        // The registers that later steps read: the sources of moves, and addresses.
        let mut busy: RegSet = self.moves.iter().map(|t| t.from).collect();
        busy = busy.union(self.pointer.into_iter().collect());
        for copy in &self.copies {
            if let CopyFrom::Indirect(pointer) = copy.from {
                busy = busy.union(pointer.reg().into_iter().collect());
            }
        }
        for copy in std::mem::take(&mut self.copies) {
            self.copy_steps(&copy, busy)?;
        }

        // `shuffle` itself excludes the ends of its moves from the scratch registers.
        let moves = std::mem::take(&mut self.moves);
        shuffle::shuffle(moves, self.scratch, &mut self.steps)
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

    /// Loads the bound constant, and extends it as the type of the parameter says.
    fn bind(&mut self, register: Reg, extend: Extend, width: Width) {
        let to = Operand::from(register);
        self.steps.push(plain(Operand::Context, to, Width::B8));
        if extend != Extend::None {
            self.steps.push(Step::Move { from: to, to, width, extend });
        }
    }

    fn copy_steps(&mut self, copy: &MemoryCopy, busy: RegSet) -> Result<(), PlanError> {
        if copy.size == 0 {
            return Ok(());
        }
        let scratch = self.general(copy.index, busy)?;
        let to_scratch = Operand::from(scratch);
        let (extend, stored) = copy.word.unwrap_or((Extend::None, Width::B8));
        let loaded = Width::exact(copy.size).unwrap_or(Width::B8);
        let (from, reload) = match copy.from {
            CopyFrom::Context => {
                self.bind(scratch, extend, loaded);
                self.steps.push(plain(to_scratch, copy.to, stored));
                return Ok(());
            }
            CopyFrom::AddressOf(of) => {
                self.steps.push(Step::Address { of, to: scratch });
                self.steps.push(plain(to_scratch, copy.to, Width::B8));
                return Ok(());
            }
            CopyFrom::Memory(from) => (from, None),
            // An address in memory is loaded once, or, if there is only one scratch register, again
            // for each piece.
            CopyFrom::Indirect(address) => match address.reg() {
                Some(register) => (Operand::At(register, 0), None),
                None => match self.general(copy.index, busy.with(scratch)) {
                    Ok(pointer) => {
                        self.steps.push(plain(address, pointer.into(), Width::B8));
                        (Operand::At(pointer, 0), None)
                    }
                    Err(_) => (Operand::At(scratch, 0), Some(address)),
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
            if let Some(address) = reload {
                self.steps.push(plain(address, to_scratch, Width::B8));
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
        Ok(())
    }
}

/// Whether two operands are the same memory where both sides have one area.
fn one_place(from: Operand, to: Operand) -> bool {
    match (from, to) {
        (Operand::Entry(a), Operand::Target(b))
        | (Operand::TargetResult(a), Operand::EntryResult(b)) => a == b,
        _ => false,
    }
}

/// A move that extends nothing.
fn plain(from: Operand, to: Operand, width: Width) -> Step {
    Step::Move { from, to, width, extend: Extend::None }
}

/// The parts, without those that repeat the bytes of the one before.
fn distinct(parts: &[Part]) -> impl Iterator<Item = &Part> {
    let repeats = |i: usize| i > 0 && parts[i - 1].off == parts[i].off;
    (0..parts.len()).filter(move |i| !repeats(*i)).map(|i| &parts[i])
}

/// Whether the register of one part holds all data of another part. `data` says which bytes of the
/// value are data.
fn covers<'a>(from: &Part, to: &Part, data: impl Fn() -> &'a Vec<bool>) -> bool {
    let bytes = |part: &Part| part.off as usize..(part.off + part.size) as usize;
    let rest = bytes(from).end..bytes(to).end;
    from.off == to.off
        && from.place.reg().is_some()
        && (from.size >= to.size || !data()[rest].contains(&true))
}
