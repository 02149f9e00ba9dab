//! Scalars at the locations of an assignment.

use footbridge::abi::{
    Assignment, Convention, Narrow, Passing, Place, Signature, Slots, Type, Value,
};

use super::state::{State, pattern};

/// The location of a scalar.
pub fn place_of(value: &Value) -> Place {
    match value.passing() {
        Passing::Parts(parts) if parts.len() == 1 => parts[0].place,
        Passing::Area(offset) => Place::Area(*offset),
        other => panic!("not a scalar: {other:?}"),
    }
}

/// The size of a scalar.
pub(super) fn scalar_bytes(ty: &Type) -> u32 {
    let signature = Signature::new([ty.clone()], []);
    let assignment = Convention::SystemV.assign(&signature).expect("a scalar");
    assignment.params()[0].layout().size_bytes
}

/// A mask of the low `bytes` bytes.
pub(super) fn mask(bytes: u32) -> u64 {
    if bytes == 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 }
}

/// The low 32 bits of an extended narrow integer.
fn extended(ty: &Type, bits: u64) -> u64 {
    let unused = 64 - scalar_bytes(ty) * 8;
    let wide = if ty.is_signed() {
        ((bits << unused) as i64 >> unused) as u64
    } else {
        bits << unused >> unused
    };
    wide & mask(4)
}

/// The number of low bytes at a value's location that are defined, and their value.
fn defined_bits(value: &Value, bits: u64, assignment: &Assignment) -> (u32, u64) {
    let ty = value.ty();
    let narrow_int = matches!(scalar_bytes(ty), 1 | 2);
    let extends = assignment.narrow() == Narrow::ExtendedTo32
        && (matches!(place_of(value), Place::Reg(_)) || assignment.slots() == Slots::Whole);
    if narrow_int && extends {
        (4, extended(ty, bits))
    } else {
        (scalar_bytes(ty), bits & mask(scalar_bytes(ty)))
    }
}

/// Writes a value, and preserves the bits around it.
pub(super) fn put(
    value: &Value,
    bits: u64,
    assignment: &Assignment,
    state: &mut State,
    stack: &mut [u64],
) {
    let (bytes, bits) = defined_bits(value, bits, assignment);
    let merge = |old: u64| old & !mask(bytes) | bits;
    match place_of(value) {
        Place::Reg(register) => state.set_reg(register, merge(state.reg(register))),
        Place::Area(offset) => {
            let offset = offset as usize;
            let shift = offset % 8 * 8;
            let word = &mut stack[offset / 8];
            *word = *word & !(mask(bytes) << shift) | bits << shift;
        }
        other => panic!("this test does not support the location {other:?}"),
    }
}

/// Whether a value is at its location.
pub(super) fn holds(
    value: &Value,
    bits: u64,
    assignment: &Assignment,
    state: &State,
    stack: &[u64],
) -> bool {
    let (bytes, bits) = defined_bits(value, bits, assignment);
    let found = match place_of(value) {
        Place::Reg(register) => state.reg(register),
        Place::Area(offset) => stack[offset as usize / 8] >> (offset % 8 * 8),
        other => panic!("this test does not support the location {other:?}"),
    };
    found & mask(bytes) == bits
}

/// Different values for the parameters or results of a call. The sign bit of every second one is
/// set.
pub fn values(types: &[Type], seed: u64) -> Vec<u64> {
    let value = |(n, ty): (usize, &Type)| {
        let bits = pattern(seed, 0x400 + n as u64);
        let low = scalar_bytes(ty) * 8;
        let sign = 1 << (low - 1);
        let bits = if n % 2 == 0 { bits | sign } else { bits & !sign };
        if *ty == Type::Bool { (n as u64 + seed) & 1 } else { bits & mask(scalar_bytes(ty)) }
    };
    types.iter().enumerate().map(value).collect()
}

/// The size of the part of the caller's stack that belongs to the callee, from the argument base:
/// Go's `abi-internal.md`, and psABI 3.2.3 (the callee may change its arguments).
pub fn owned_bytes(assignment: &Assignment) -> u32 {
    assignment.total_bytes()
}
