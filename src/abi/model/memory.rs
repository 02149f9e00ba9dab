//! The memory of the model machine, and the numbers in it.

use crate::abi::plan::Extend;

/// A byte of memory. `None` is a byte outside of every value.
pub(super) type Byte = Option<u8>;

/// A piece of memory.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) base: u64,
    pub(super) bytes: Vec<Byte>,
}

impl Memory {
    pub(super) fn undefined(base: u64, bytes: u32) -> Memory {
        Memory { base, bytes: vec![None; bytes as usize] }
    }

    /// The bytes at an offset, if they are within the area.
    pub(super) fn slice(&mut self, offset: u64, bytes: u32) -> Option<&mut [Byte]> {
        let offset = usize::try_from(offset).ok()?;
        self.bytes.get_mut(offset..offset.checked_add(bytes as usize)?)
    }

    pub(super) fn contains(&self, address: u64) -> bool {
        (self.base..=self.base + self.bytes.len() as u64).contains(&address)
    }
}

/// The content of bytes, if all are defined.
pub(super) fn defined(bytes: &[Byte]) -> Option<Vec<u8>> {
    bytes.iter().copied().collect()
}

/// A little-endian number from at most eight bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let high_first = bytes.iter().take(8).rev();
    high_first.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The low `bytes` bytes of a number.
pub(super) fn low(number: u64, bytes: u32) -> u64 {
    number & u64::MAX >> (64 - 8 * bytes)
}

/// Extends `bytes` bytes to 32 bits, and the result by zeros to 64.
pub(super) fn extended(number: u64, bytes: u32, extend: Extend) -> u64 {
    let number = low(number, bytes);
    if extend == Extend::Sign {
        let unused = 32 - 8 * bytes;
        u64::from(((number as u32) << unused).cast_signed().wrapping_shr(unused).cast_unsigned())
    } else {
        number
    }
}

/// Defines bytes.
pub(super) fn store(slice: &mut [Byte], bytes: &[u8]) {
    for (byte, value) in slice.iter_mut().zip(bytes) {
        *byte = Some(*value);
    }
}
