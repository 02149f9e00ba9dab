//! Random Go signatures, of types that C has too.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Float, Language, Signature, Type};

/// A random type of at most 128 bytes.
fn random_type(rng: &mut Xorshift, depth: u32) -> Type {
    loop {
        let ty = match rng.below(if depth == 0 { 22 } else { 36 }) {
            0..14 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
            14 => Type::Complex(Float::F32),
            15 => Type::Complex(Float::F64),
            16 | 17 => Type::GoString,
            18 => Type::GoSlice,
            19 => Type::GoAny,
            20 => Type::GoIface,
            21 => Type::GoFunc,
            22..28 => {
                let length = [0, 1, 1, 1, 2, 3, 7][rng.below(7)];
                Type::array(length, random_type(rng, depth - 1)).expect("small")
            }
            _ => {
                let count = rng.below(6);
                let fields: Vec<Type> = (0..count).map(|_| random_type(rng, depth - 1)).collect();
                Type::structure(fields).expect("small")
            }
        };
        if ty.layout(Language::Go).size_bytes <= 128 {
            return ty;
        }
    }
}

/// A random signature. It has several results only if both sides are Go conventions.
pub fn random_signature(rng: &mut Xorshift, several: bool) -> Signature {
    let depth = rng.below(4) as u32;
    let mut params: Vec<Type> = (0..rng.below(19)).map(|_| random_type(rng, depth)).collect();
    let results = rng.below(if several { 8 } else { 2 });
    let mut results: Vec<Type> = (0..results).map(|_| random_type(rng, depth)).collect();
    // Areas that exceed the immediate offset of an instruction.
    if rng.below(16) == 0 {
        let length = 1500 + rng.below(2400) as u32;
        let large = Type::array(length, Type::U8).expect("less than a page");
        let is_result = rng.below(3) == 0 && (several || results.is_empty());
        let values = if is_result { &mut results } else { &mut params };
        values.insert(rng.below(values.len() + 1), large);
    }
    Signature::new(params, results)
}
