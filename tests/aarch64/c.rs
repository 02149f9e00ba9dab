//! Random C values, and their declarations for the cross compiler.

use std::collections::HashMap;
use std::fmt::Write as _;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Float, Language, RecordSpec, Signature, Type, VectorWidth};

/// A random C type of at most 128 bytes. Arrays occur in structs and unions only.
pub fn random_type(rng: &mut Xorshift, depth: u32) -> Type {
    loop {
        let choice = rng.below(if depth == 0 { 24 } else { 44 });
        let ty = match choice {
            0..12 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
            12 | 13 => Type::I128,
            14 | 15 => Type::LongDouble,
            16 => Type::Complex(Float::F32),
            17 => Type::Complex(Float::F64),
            18 => Type::Complex(Float::LongDouble),
            19 => Type::Vector(VectorWidth::V64),
            20 | 21 => Type::Vector(VectorWidth::V128),
            22 => Type::Vector(VectorWidth::V256),
            23 => Type::GoString,
            _ => random_record(rng, depth),
        };
        if ty.layout(Language::C).size_bytes <= 128 {
            return ty;
        }
    }
}

fn random_record(rng: &mut Xorshift, depth: u32) -> Type {
    let one = random_type(rng, depth - 1);
    let alike = rng.below(2) == 0;
    let count = rng.below(6);
    let fields = (0..count).map(|_| {
        let field = match alike {
            true => one.clone(),
            false => random_type(rng, depth - 1),
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
    if rng.below(6) == 0 {
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

/// A random C signature. With `variadic`, it may be variadic.
pub fn random_signature(rng: &mut Xorshift, variadic: bool) -> Signature {
    let depth = rng.below(4) as u32;
    let n = rng.below(15);
    let mut params: Vec<Type> = (0..n).map(|_| random_type(rng, depth)).collect();
    let results: Vec<Type> = (0..rng.below(2)).map(|_| random_type(rng, depth)).collect();
    if !variadic || n == 0 || rng.below(4) != 0 {
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

/// Random bytes of a value. A Boolean is 0 or 1.
pub fn random_bytes(rng: &mut Xorshift, ty: &Type, language: Language) -> Vec<u8> {
    let size = ty.layout(language).size_bytes as usize;
    let mut bytes: Vec<u8> = (0..size).map(|_| (rng.bits() >> 40) as u8).collect();
    ty.each_leaf(language, 0, &mut |offset, leaf| {
        if *leaf == Type::Bool {
            bytes[offset as usize] &= 1;
        }
    });
    bytes
}

/// Whether each byte of a value is data (not padding).
pub fn data(ty: &Type, language: Language) -> Vec<bool> {
    let mut data = vec![false; ty.layout(language).size_bytes as usize];
    ty.each_leaf(language, 0, &mut |offset, leaf| {
        let size = leaf.layout(language).size_bytes as usize;
        data[offset as usize..][..size].fill(true);
    });
    data
}

/// Writes C declarations.
#[derive(Default)]
pub struct C {
    pub types: String,
    names: HashMap<Type, String>,
}

impl C {
    /// The name of a type. A composite is declared first, and the compiler checks its layout.
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
            Type::F32 => "float",
            Type::F64 => "double",
            Type::LongDouble => "long double",
            Type::Complex(Float::F32) => "_Complex float",
            Type::Complex(Float::F64) => "_Complex double",
            Type::Complex(Float::LongDouble) => "_Complex long double",
            Type::Ptr | Type::Managed | Type::GoFunc => "void *",
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
            Type::GoAny | Type::GoIface => format!("typedef struct {{ void *t, *p; }} {name};"),
            Type::Array(array) => {
                let element = self.name(array.element());
                format!("typedef {element} {name}[{}];", array.length())
            }
            Type::Struct(record) | Type::Union(record) => {
                let word = match ty {
                    Type::Struct(_) => "struct",
                    _ => "union",
                };
                let spec = record.spec();
                let mut fields = String::new();
                for (i, field) in spec.fields.iter().enumerate() {
                    let field = self.name(field);
                    write!(fields, "{field} f{i}; ").expect("a string");
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
        let align = match ty {
            // Aligned like a vector of 128 bits. The conventions accept such vectors at top level
            // only.
            Type::Vector(_) => layout.align_bytes.min(16),
            _ => layout.align_bytes,
        };
        writeln!(
            self.types,
            "_Static_assert(sizeof({name}) == {} && _Alignof({name}) == {align}, \"{ty}\");",
            layout.size_bytes
        )
        .expect("a string");
        name
    }

    /// The type of a result.
    pub fn result(&mut self, signature: &Signature) -> String {
        signature.results().first().map_or("void".to_owned(), |ty| self.name(ty))
    }

    /// The parameter list of a prototype.
    pub fn params(&mut self, signature: &Signature) -> String {
        let types: Vec<String> = signature.params().iter().map(|ty| self.name(ty)).collect();
        match signature.named_params() {
            Some(named) => format!("{}, ...", types[..named].join(", ")),
            None if types.is_empty() => "void".to_owned(),
            None => types.join(", "),
        }
    }
}

/// An initializer for an array of bytes.
pub fn c_bytes(bytes: &[u8]) -> String {
    let list: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("{{{}}}", if list.is_empty() { "0".to_owned() } else { list.join(",") })
}
