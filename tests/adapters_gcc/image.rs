//! The registers and the stack at one side of a call: created from values, and compared with
//! values.
//!
//! This test relies on its reading of an [`Assignment`]. `tests/abi/gcc.rs` compares assignments
//! with gcc, and here each call by gcc is compared with its image again. This file must not know
//! plans.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Assignment, Extend, Narrow, Passing, Place, Reg, Value};

use crate::observer::{Observer, State, read, read_word};
use support::c_types::data;

/// Bytes of which some are defined; the others are unspecified.
#[derive(Clone)]
struct Bits<const N: usize> {
    bytes: [u8; N],
    given: [bool; N],
}

impl<const N: usize> Bits<N> {
    const UNSPECIFIED: Bits<N> = Bits { bytes: [0; N], given: [false; N] };
}

/// The registers and the stack area that hold the values of a call.
pub struct Image {
    general: [Bits<8>; 16],
    vector: Vec<Bits<64>>,
    area: Vec<(u8, bool)>,
}

/// The direction of an image, which decides about the extension of narrow integers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Arguments,
    /// Compilers do not extend results.
    Result,
}

impl Image {
    fn empty(area_bytes: u32) -> Image {
        Image {
            general: [const { Bits::UNSPECIFIED }; 16],
            vector: vec![Bits::UNSPECIFIED; 32],
            area: vec![(0, false); area_bytes as usize],
        }
    }

    /// The state at the call: `args` are the values, `addresses` those of values passed by
    /// reference, and `result` the address for the result.
    pub fn of_arguments(
        assignment: &Assignment,
        args: &[Vec<u8>],
        addresses: &[u64],
        result: u64,
    ) -> Image {
        let mut image = Image::empty(assignment.total_bytes());
        for ((value, bytes), address) in assignment.params().iter().zip(args).zip(addresses) {
            match value.passing() {
                Passing::Reference(place) => image.put_word(*place, *address),
                _ => image.put(assignment, value, bytes, Of::Arguments),
            }
        }
        if let Some(pointer) = assignment.result_pointer() {
            image.put_word(pointer.place, result);
        }
        if let Some((register, count)) = assignment.vector_count() {
            image.put_at(Place::Reg(register), 0, count, true);
        }
        image
    }

    /// The state at the callee's return, except for the x87 stack.
    pub fn of_result(assignment: &Assignment, result: Option<&[u8]>, address: u64) -> Image {
        let mut image = Image::empty(0);
        for (value, bytes) in assignment.results().iter().zip(result) {
            image.put(assignment, value, bytes, Of::Result);
        }
        if let Some(register) = assignment.result_pointer().and_then(|pointer| pointer.returned) {
            image.put_word(Place::Reg(register), address);
        }
        image
    }

    fn put_at(&mut self, place: Place, off: usize, byte: u8, given: bool) {
        let (bytes, givens) = match place {
            Place::Reg(Reg::Gpr(gpr)) => {
                let bits = &mut self.general[usize::from(gpr.index())];
                (&mut bits.bytes[off], &mut bits.given[off])
            }
            Place::Reg(Reg::Xmm(xmm)) => {
                let bits = &mut self.vector[usize::from(xmm.index())];
                (&mut bits.bytes[off], &mut bits.given[off])
            }
            Place::Area(at) => {
                let (byte, given) = &mut self.area[at as usize + off];
                (byte, given)
            }
            other => panic!("{other}"),
        };
        (*bytes, *givens) = (byte, given);
    }

    fn put_word(&mut self, place: Place, word: u64) {
        for (i, byte) in word.to_le_bytes().into_iter().enumerate() {
            self.put_at(place, i, byte, true);
        }
    }

    fn put(&mut self, assignment: &Assignment, value: &Value, bytes: &[u8], of: Of) {
        let data = data(value.ty());
        let extended = of == Of::Arguments && assignment.narrow() == Narrow::ExtendedTo32;
        for (place, off, size) in pieces(value) {
            if matches!(place, Place::X87(_)) {
                continue;
            }
            for i in off..off + size {
                self.put_at(place, i - off, bytes[i], data[i]);
            }
            if let (true, Some(extension)) = (extended, extension(value, bytes)) {
                for (i, byte) in extension.into_iter().enumerate().skip(size) {
                    self.put_at(place, i, byte, true);
                }
            }
        }
    }

    /// Writes garbage into each unspecified byte of each register, unless `kept` returns true for
    /// the register and the byte. Defined bytes are written too with `put_given`.
    pub fn load(
        &self,
        state: &mut State,
        garbage: &mut Xorshift,
        put_given: bool,
        kept: impl Fn(Reg, usize) -> bool,
    ) {
        for gpr in footbridge::abi::Gpr::ALL {
            let index = usize::from(gpr.index());
            let mut bytes = state.general[index].to_le_bytes();
            self.general[index].load(&mut bytes, garbage, put_given, |i| kept(gpr.into(), i));
            state.general[index] = u64::from_le_bytes(bytes);
        }
        for number in 0..state.vectors() {
            let mut bytes = state.vector(number);
            // No convention of amd64 uses the upper sixteen vector registers.
            let xmm = u8::try_from(number).ok().filter(|n| *n < 16);
            let kept = |i| xmm.is_some_and(|n| kept(footbridge::abi::Xmm::new(n).into(), i));
            self.vector[number].load(&mut bytes, garbage, put_given, kept);
            state.set_vector(number, &bytes);
        }
        state.set_masks([(); 8].map(|()| garbage.bits()));
    }

    /// The same for the stack area. `there` are its current bytes.
    pub fn area(&self, there: &[u8], garbage: &mut Xorshift, put_given: bool) -> Vec<u8> {
        let bytes = self.area.iter().zip(there);
        let bytes = bytes.map(|((byte, given), there)| match (given, put_given) {
            (true, true) => *byte,
            (true, false) => *there,
            (false, _) => (garbage.bits() >> 40) as u8,
        });
        bytes.collect()
    }
}

impl<const N: usize> Bits<N> {
    fn load(
        &self,
        bytes: &mut [u8; N],
        garbage: &mut Xorshift,
        put_given: bool,
        kept: impl Fn(usize) -> bool,
    ) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            match self.given[i] {
                true if put_given => *byte = self.bytes[i],
                true => {}
                false if kept(i) => {}
                false => *byte = (garbage.bits() >> 40) as u8,
            }
        }
    }
}

/// The pieces of a value that is not passed by reference: location, offset in the value, size.
fn pieces(value: &Value) -> Vec<(Place, usize, usize)> {
    match value.passing() {
        Passing::Area(off) => {
            vec![(Place::Area(*off), 0, value.layout().size_bytes as usize)]
        }
        Passing::Parts(parts) => {
            let piece =
                |part: &footbridge::abi::Part| (part.place, part.off as usize, part.size as usize);
            parts.iter().map(piece).collect()
        }
        Passing::Nothing | Passing::Reference(_) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

/// The low 32 bits of an extended narrow integer.
fn extension(value: &Value, bytes: &[u8]) -> Option<[u8; 4]> {
    if !value.ty().is_word() || bytes.len() >= 4 {
        return None;
    }
    let negative = Extend::of(value.ty()) == Extend::Sign && bytes[bytes.len() - 1] >= 0x80;
    let mut whole = [if negative { 0xff } else { 0 }; 4];
    whole[..bytes.len()].copy_from_slice(bytes);
    Some(whole)
}

/// The mismatch of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wrong {
    Bytes,
    Extension,
    /// It is in memory that does not belong to the call.
    Address,
    Alignment,
}

/// The expected low 32 bits of a narrow integer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Narrowed {
    Any,
    Extended,
    /// Extended, or equal to these bytes.
    As(Option<[u8; 4]>),
}

/// Registers and memory that are compared with values.
pub struct Found<'a> {
    pub state: &'a State,
    /// The base of the stack area.
    pub base: u64,
    pub observer: &'a Observer,
    pub assignment: &'a Assignment,
}

impl Found<'_> {
    fn bytes(&self, place: Place, size: usize) -> Vec<u8> {
        match place {
            Place::Reg(Reg::Gpr(gpr)) => {
                self.state.general[usize::from(gpr.index())].to_le_bytes()[..size].to_vec()
            }
            Place::Reg(Reg::Xmm(xmm)) => {
                self.state.vector(usize::from(xmm.index()))[..size].to_vec()
            }
            Place::Area(off) => read(self.base + u64::from(off), size),
            Place::X87(position) => self.state.x87(usize::from(position))[..].to_vec(),
            other => panic!("{other}"),
        }
    }

    /// The address at a location.
    pub fn word(&self, place: Place) -> u64 {
        match place {
            Place::Reg(Reg::Gpr(gpr)) => self.state.general[usize::from(gpr.index())],
            Place::Area(off) => read_word(self.base + u64::from(off)),
            other => panic!("an address cannot be in {other}"),
        }
    }

    /// The low 32 bits at the location of a narrow integer.
    pub fn narrow(&self, value: &Value) -> Option<[u8; 4]> {
        let size = value.layout().size_bytes;
        let [(place, ..)] = *pieces(value) else { return None };
        let is_narrow = value.ty().is_word() && size < 4;
        is_narrow.then(|| self.bytes(place, 4).try_into().expect("four bytes"))
    }

    fn compare(
        &self,
        value: &Value,
        bytes: &[u8],
        narrow: Narrowed,
    ) -> Result<(), (Wrong, String)> {
        let data = data(value.ty());
        for (place, off, size) in pieces(value) {
            let found = self.bytes(place, size);
            // An x87 number has ten bytes; the other bytes of its type are padding.
            for i in 0..found.len().min(size) {
                if data[off + i] && found[i] != bytes[off + i] {
                    let text = format!(
                        "byte {} is {:02x}, not {:02x}, in {place}, which has {found:02x?}",
                        off + i,
                        found[i],
                        bytes[off + i]
                    );
                    return Err((Wrong::Bytes, text));
                }
            }
            let as_given = match narrow {
                Narrowed::Any => continue,
                Narrowed::Extended => None,
                Narrowed::As(given) => given,
            };
            if let Some(extension) = extension(value, bytes) {
                let found = self.bytes(place, 4);
                if found != extension && as_given.is_none_or(|given| found != given) {
                    let text = format!("{place} has {found:02x?}, not {extension:02x?}");
                    return Err((Wrong::Extension, text));
                }
            }
        }
        Ok(())
    }

    /// Compares a parameter at the callee's first instruction. If it is passed by reference, its
    /// address must be aligned to `align`.
    pub fn parameter(
        &self,
        value: &Value,
        bytes: &[u8],
        narrow: Narrowed,
        align: u32,
    ) -> Result<(), (Wrong, String)> {
        let Passing::Reference(place) = value.passing() else {
            return self.compare(value, bytes, narrow);
        };
        let address = self.word(*place);
        if !self.observer.is_known(address, bytes.len()) {
            return Err((Wrong::Address, format!("{place} has {address:#x}")));
        }
        if address & (u64::from(align) - 1) != 0 {
            let text = format!("{place} has {address:#x}, which is not a multiple of {align}");
            return Err((Wrong::Alignment, text));
        }
        self.in_memory(value, bytes, address)
    }

    /// Compares a result at the caller, or after the callee. `address` is where it was to be
    /// written.
    pub fn result(
        &self,
        value: &Value,
        bytes: &[u8],
        narrow: Narrowed,
        address: u64,
    ) -> Result<(), (Wrong, String)> {
        let Passing::Reference(_) = value.passing() else {
            return self.compare(value, bytes, narrow);
        };
        if let Some(returned) = self.assignment.result_pointer().and_then(|p| p.returned) {
            let found = self.word(Place::Reg(returned));
            if found != address {
                let text = format!("{returned} has {found:#x}, not {address:#x}");
                return Err((Wrong::Address, text));
            }
        }
        self.in_memory(value, bytes, address)
    }

    fn in_memory(&self, value: &Value, bytes: &[u8], address: u64) -> Result<(), (Wrong, String)> {
        let found = read(address, bytes.len());
        let data = data(value.ty());
        match (0..bytes.len()).find(|i| data[*i] && found[*i] != bytes[*i]) {
            None => Ok(()),
            Some(i) => {
                let text = format!(
                    "byte {i} is {:02x}, not {:02x}, at {address:#x}, in {found:02x?}",
                    found[i], bytes[i]
                );
                Err((Wrong::Bytes, text))
            }
        }
    }
}
