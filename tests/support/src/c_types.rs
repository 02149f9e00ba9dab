//! Random signatures of C, and C text that declares their types.
//!
//! Test binaries that compare with gcc share this module. It never computes where a value lives.

use std::collections::HashMap;
use std::fmt::Write as _;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Float, Language, RecordSpec, Signature, Type, VectorWidth};

/// A random signature of C: at most `most` parameters, and a result or none. Every fourth is a
/// call of a variadic function.
pub fn random_signature(rng: &mut Xorshift, most: usize, widest: VectorWidth) -> Signature {
    let depth = rng.below(4) as u32;
    let n = rng.below(most + 1);
    let mut params: Vec<Type> = (0..n).map(|_| random_type(rng, depth, widest)).collect();
    let results: Vec<Type> = (0..rng.below(2)).map(|_| random_type(rng, depth, widest)).collect();
    if n == 0 || rng.below(4) != 0 {
        return Signature::new(params, results);
    }
    let named = 1 + rng.below(n);
    for ty in &mut params[named..] {
        let size = ty.layout(Language::C).size_bytes;
        if *ty == Type::F32 || ty.is_word() && size < 4 {
            *ty = Type::I32;
        }
    }
    Signature::new(params, results).variadic_after(named)
}

/// A random C type of at most 128 bytes, without vectors above `widest`.
fn random_type(rng: &mut Xorshift, depth: u32, widest: VectorWidth) -> Type {
    loop {
        let choice = rng.below(if depth == 0 { 26 } else { 46 });
        let ty = match choice {
            0..12 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
            12 => Type::I128,
            13 => Type::U128,
            14 | 15 => Type::LongDouble,
            16 => Type::Complex(Float::F32),
            17 => Type::Complex(Float::F64),
            18 => Type::Complex(Float::LongDouble),
            19 => Type::Vector(VectorWidth::V64),
            20 | 21 => Type::Vector(VectorWidth::V128),
            22 => Type::Vector(VectorWidth::V256),
            23 => Type::Vector(widest),
            24 => [Type::GoString, Type::GoSlice, Type::GoAny][rng.below(3)].clone(),
            25 => {
                let element = random_type(rng, 0, widest);
                Type::array(rng.below(9) as u32, element).expect("small")
            }
            _ => {
                let one = random_type(rng, depth - 1, widest);
                let alike = rng.below(3) == 0;
                let count = rng.below(6);
                let fields = (0..count).map(|_| {
                    let field = match alike {
                        true => one.clone(),
                        false => random_type(rng, depth - 1, widest),
                    };
                    match rng.below(4) {
                        0 => {
                            let length = [0, 1, 1, 2, 3, 5, 7][rng.below(7)];
                            Type::array(length, field).expect("small")
                        }
                        _ => field,
                    }
                });
                let mut spec = RecordSpec { fields: fields.collect(), ..RecordSpec::default() };
                if rng.below(5) == 0 {
                    spec.packed = Some(1 << rng.below(4));
                }
                if rng.below(8) == 0 {
                    spec.align = Some(1 << rng.below(6));
                }
                if rng.below(5) == 0 {
                    spec.into_union().expect("small")
                } else {
                    spec.into_struct().expect("small")
                }
            }
        };
        if ty.layout(Language::C).size_bytes <= 128 {
            return ty;
        }
    }
}

/// Writes C declarations.
#[derive(Default)]
pub struct C {
    /// The declarations.
    pub types: String,
    names: HashMap<Type, String>,
}

impl C {
    /// The name of a type, which is declared when it is first named.
    pub fn name(&mut self, ty: &Type) -> String {
        let simple = match ty {
            Type::Bool => "_Bool",
            Type::I8 => "signed char",
            Type::I16 => "short",
            Type::I32 => "int",
            Type::I64 | Type::Isize => "long",
            Type::U8 => "unsigned char",
            Type::U16 => "unsigned short",
            Type::U32 => "unsigned",
            Type::U64 | Type::Usize => "unsigned long",
            Type::I128 => "__int128",
            Type::U128 => "unsigned __int128",
            Type::F32 => "float",
            Type::F64 => "double",
            Type::LongDouble => "long double",
            Type::Complex(Float::F32) => "_Complex float",
            Type::Complex(Float::F64) => "_Complex double",
            Type::Complex(Float::LongDouble) => "_Complex long double",
            Type::Ptr | Type::Managed | Type::GoFunc | Type::GoChan | Type::GoMap => "void *",
            _ => "",
        };
        if !simple.is_empty() {
            return simple.to_owned();
        }
        if let Some(name) = self.names.get(ty) {
            return name.clone();
        }
        let name = format!("T{}", self.names.len());
        self.names.insert(ty.clone(), name.clone());
        let declaration = match ty {
            Type::Vector(width) => {
                format!("typedef float {name} __attribute__((vector_size({})));", width.bytes())
            }
            Type::GoString => format!("typedef struct {{ void *p; long n; }} {name};"),
            Type::GoSlice => format!("typedef struct {{ void *p; long n, c; }} {name};"),
            Type::GoAny | Type::GoIface => format!("typedef struct {{ void *t, *d; }} {name};"),
            // An array by value: C passes it in a struct, which is passed as the array would be.
            Type::Array(array) => {
                let element = self.name(array.element());
                format!("typedef struct {{ {element} f[{}]; }} {name};", array.length())
            }
            Type::Struct(record) | Type::Union(record) => {
                let word = match ty {
                    Type::Struct(_) => "struct",
                    _ => "union",
                };
                let spec = record.spec();
                let mut fields = String::new();
                for (i, field) in spec.fields.iter().enumerate() {
                    let (element, length) = match field {
                        Type::Array(array) => (array.element(), format!("[{}]", array.length())),
                        field => (field, String::new()),
                    };
                    let element = self.name(element);
                    write!(fields, "{element} f{i}{length}; ").expect("a string");
                }
                let align = match spec.align {
                    Some(align) => format!("__attribute__((aligned({align})))"),
                    None => String::new(),
                };
                let (push, pop) = match spec.packed {
                    Some(packed) => {
                        (format!("#pragma pack(push, {packed})\n"), "\n#pragma pack(pop)")
                    }
                    None => (String::new(), ""),
                };
                format!("{push}typedef {word} {align} {{ {fields}}} {name};{pop}")
            }
            other => unreachable!("{other}"),
        };
        writeln!(self.types, "{declaration}").expect("a string");
        let layout = ty.layout(Language::C);
        writeln!(
            self.types,
            "_Static_assert(sizeof({name}) == {} && _Alignof({name}) == {}, \"{ty}\");",
            layout.size_bytes, layout.align_bytes
        )
        .expect("a string");
        name
    }
}

/// Random bytes of a value, such that C can load and store it without change.
pub fn random_bytes(rng: &mut Xorshift, ty: &Type) -> Vec<u8> {
    let size = ty.layout(Language::C).size_bytes as usize;
    let mut bytes: Vec<u8> = (0..size).map(|_| (rng.bits() >> 40) as u8).collect();
    ty.each_leaf(Language::C, 0, &mut |offset, leaf| {
        let offset = offset as usize;
        match leaf {
            Type::Bool => bytes[offset] &= 1,
            // A normal number near 1.
            Type::LongDouble => {
                bytes[offset + 7] |= 0x80;
                bytes[offset + 8..offset + 10].copy_from_slice(&[0xff, 0x3f]);
            }
            // No NaN, which a conversion might quiet.
            Type::F32 => bytes[offset + 3] = 0x3f,
            Type::F64 => bytes[offset + 7] = 0x3f,
            _ => {}
        }
    });
    bytes
}

/// For each byte of a value, whether it holds data: x87 numbers have ten such bytes, not padding.
pub fn data(ty: &Type) -> Vec<bool> {
    let mut data = vec![false; ty.layout(Language::C).size_bytes as usize];
    ty.each_leaf(Language::C, 0, &mut |offset, leaf| {
        let size = match leaf {
            Type::LongDouble => 10,
            _ => leaf.layout(Language::C).size_bytes as usize,
        };
        data[offset as usize..][..size].fill(true);
    });
    data
}
