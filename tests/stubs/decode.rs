//! The instructions of stubs.

#![allow(unsafe_code, reason = "reads the bytes of published code")]

use std::collections::{BTreeMap, BTreeSet};

use footbridge::jit::lookup;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};

/// The instructions of the stub at `start`, by their offsets in bytes.
pub fn instructions(start: usize) -> BTreeMap<usize, Mnemonic> {
    let len = lookup(start).expect("the start of a stub").len();
    // SAFETY: published code stays readable.
    let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, len) };
    let decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    decoder.into_iter().map(|i| (i.ip() as usize, i.mnemonic())).collect()
}

/// The offsets of the instructions of the stub at `start`.
pub fn instruction_offsets(start: usize) -> BTreeSet<usize> {
    instructions(start).into_keys().collect()
}
