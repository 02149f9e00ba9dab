//! Values, in memory and at the locations of an assignment.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{
    Assignment, Extend, Language, Narrow, Passing, Place, Reg, Slots, Type, Value, ValueIndex,
};

use super::Change;
use super::state::{State, garbage_bytes};

/// Whether each byte of a value is data (not padding). x87 numbers have ten data bytes.
pub fn data_bytes(ty: &Type, language: Language) -> Vec<bool> {
    let mut data = vec![false; ty.layout(language).size_bytes as usize];
    ty.each_leaf(language, 0, &mut |offset, leaf| {
        let size = match leaf {
            Type::LongDouble => 10,
            _ => leaf.layout(language).size_bytes as usize,
        };
        data[offset as usize..][..size].fill(true);
    });
    data
}

/// Random values. Padding is zero, and a Boolean is 0 or 1.
pub fn random_values(values: &[Value], rng: &mut Xorshift) -> Vec<Vec<u8>> {
    let value = |value: &Value| {
        let data = data_bytes(value.ty(), value.language());
        let mut bytes: Vec<u8> =
            data.iter().map(|data| if *data { (rng.bits() >> 40) as u8 } else { 0 }).collect();
        value.ty().each_leaf(value.language(), 0, &mut |offset, leaf| {
            if *leaf == Type::Bool {
                bytes[offset as usize] &= 1;
            }
        });
        bytes
    };
    values.iter().map(value).collect()
}

/// The memory image of a value, with garbage in its padding.
pub(super) fn image(value: &Value, bytes: &[u8], rng: &mut Xorshift) -> Vec<u8> {
    let data = data_bytes(value.ty(), value.language());
    assert_eq!(bytes.len(), data.len(), "the bytes of a {}", value.ty());
    let byte = |(byte, data): (&u8, bool)| if data { *byte } else { (rng.bits() >> 40) as u8 };
    bytes.iter().zip(data).map(byte).collect()
}

/// The value with zeros in its padding.
pub(super) fn masked(value: &Value, bytes: &[u8]) -> Vec<u8> {
    let data = data_bytes(value.ty(), value.language());
    bytes.iter().zip(data).map(|(byte, data)| if data { *byte } else { 0 }).collect()
}

/// The size of an integer or Boolean that is narrower than 32 bits.
fn narrow_bytes(value: &Value) -> Option<usize> {
    let size = value.layout().size_bytes as usize;
    (value.ty().is_word() && size < 4).then_some(size)
}

/// The low 32 bits of an extended narrow integer.
fn extension(ty: &Type, bytes: &[u8]) -> [u8; 4] {
    let negative = Extend::of(ty) == Extend::Sign && bytes.last().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(fill))
}

/// The state through which two sides exchange values: registers, an argument area, and the x87
/// stack.
pub(super) struct Frame {
    pub(super) state: State,
    /// The area from its base, of [`Assignment::total_bytes`] bytes.
    pub(super) area: Vec<u8>,
    pub(super) x87: Vec<[u8; 10]>,
}

impl Frame {
    pub(super) fn put_word(&mut self, place: Place, word: u64) {
        match place {
            Place::Reg(Reg::Gpr(register)) => self.state.set_gpr(register, word),
            Place::Area(offset) => {
                self.area[offset as usize..][..8].copy_from_slice(&word.to_le_bytes());
            }
            other => panic!("an address cannot be in {other:?}"),
        }
    }

    pub(super) fn word(&self, place: Place) -> u64 {
        match place {
            Place::Reg(Reg::Gpr(register)) => self.state.gpr(register),
            Place::Area(offset) => {
                let bytes = &self.area[offset as usize..][..8];
                u64::from_le_bytes(bytes.try_into().expect("8"))
            }
            other => panic!("an address cannot be in {other:?}"),
        }
    }

    /// Stores a value that is not passed by address, with garbage in all bits around it. With
    /// `extend`, a narrow integer is extended, in a register or in its word.
    pub(super) fn put(&mut self, value: &Value, bytes: &[u8], extend: bool, rng: &mut Xorshift) {
        let image = image(value, bytes, rng);
        if let Passing::Area(offset) = *value.passing() {
            let offset = offset as usize;
            if extend && narrow_bytes(value).is_some() {
                self.area[offset..][..4].copy_from_slice(&extension(value.ty(), &image));
            }
            self.area[offset..][..image.len()].copy_from_slice(&image);
        }
        for part in value.parts() {
            let piece = &image[part.off as usize..][..part.size as usize];
            match part.place {
                Place::Reg(Reg::Gpr(register)) => {
                    let mut whole = rng.bits().to_le_bytes();
                    whole[..piece.len()].copy_from_slice(piece);
                    if extend && narrow_bytes(value).is_some() {
                        whole[..4].copy_from_slice(&extension(value.ty(), piece));
                    }
                    self.state.set_gpr(register, u64::from_le_bytes(whole));
                }
                Place::Reg(Reg::Xmm(register)) => {
                    let mut whole: [u8; 64] = garbage_bytes(rng);
                    whole[..piece.len()].copy_from_slice(piece);
                    *self.state.vector_mut(register) = whole;
                }
                // The parts are in the order of the x87 stack.
                Place::X87(_) => self.x87.push(piece[..10].try_into().expect("10")),
                other => panic!("a part cannot be in {other:?}"),
            }
        }
    }

    /// Reads a value that is not passed by address, with zeros in its padding. Adds to `wrong` what
    /// the receiver relies on but does not find. `side` has the receiver's rules, and `poison` is
    /// the content of memory that was not written.
    pub(super) fn take(
        &self,
        side: &Assignment,
        value: &Value,
        index: ValueIndex,
        poison: Option<u8>,
        wrong: &mut Vec<Change>,
    ) -> Vec<u8> {
        // Whether the bits above a narrow integer are as the receiver expects.
        let extended = |found: &[u8]| match narrow_bytes(value) {
            Some(size) if side.narrow() != Narrow::Garbage => {
                found[..4] == extension(value.ty(), &found[..size])
            }
            _ => true,
        };
        let size = value.layout().size_bytes as usize;
        if let Passing::Area(offset) = *value.passing() {
            let place = &self.area[offset as usize..];
            if side.slots() == Slots::Whole && value.ty().is_word() {
                if !extended(&place[..8]) {
                    wrong.push(Change::NotExtended(index));
                }
                let above = &place[size..8];
                if poison.is_some_and(|poison| size < 8 && above.iter().all(|b| *b == poison)) {
                    wrong.push(Change::NotWhole(index));
                }
            }
            return masked(value, &place[..size]);
        }
        let mut image: Vec<Option<u8>> = vec![None; size];
        let data = data_bytes(value.ty(), value.language());
        for part in value.parts() {
            let piece = match part.place {
                Place::Reg(Reg::Gpr(register)) => {
                    let whole = self.state.gpr(register).to_le_bytes();
                    if !extended(&whole) {
                        wrong.push(Change::NotExtended(index));
                    }
                    whole[..part.size as usize].to_vec()
                }
                Place::Reg(Reg::Xmm(register)) => {
                    self.state.vector(register)[..part.size as usize].to_vec()
                }
                Place::X87(position) => {
                    let number = self.x87.get(usize::from(position));
                    number.map(|number| number.to_vec()).unwrap_or_default()
                }
                other => panic!("a part cannot be in {other:?}"),
            };
            for (i, byte) in (part.off as usize..).zip(piece) {
                if data[i] && image[i].is_some_and(|other| other != byte) {
                    wrong.push(Change::Duplicate(index));
                }
                image[i] = Some(byte);
            }
        }
        let image: Vec<u8> = image.into_iter().map(|byte| byte.unwrap_or(0)).collect();
        masked(value, &image)
    }
}
