//! Draws random types and signatures that one or two conventions support.
//!
//! This file must not know where values are. A convention may therefore refuse a signature that was
//! drawn; the test then draws another one.

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Convention, Float, Language, RecordSpec, Signature, Type, VectorWidth};

/// The types that are drawn.
#[derive(Clone, Copy)]
pub struct Kinds {
    /// The languages that have the types, with the same layouts.
    languages: &'static [Language],
    /// The size of the widest vector.
    vector_bytes: u32,
    /// Only types that Rust can declare: no `long double`, no record of size 0, no union with a
    /// member that Rust would have to drop, and no `align` inside of `packed`.
    rust: bool,
    /// The largest number of results.
    results: usize,
}

impl Kinds {
    /// The types that both conventions support.
    pub fn of(conventions: [Convention; 2], vector_bytes: u32) -> Kinds {
        let go = conventions.map(|c| c.spec().language == Language::Go);
        let languages: &[Language] = match go {
            [true, true] => &[Language::Go],
            [false, false] => &[Language::C],
            _ => &[Language::C, Language::Go],
        };
        let results = if go == [true, true] { 12 } else { 1 };
        Kinds { languages, vector_bytes, rust: false, results }
    }

    /// Restricts the types to those that Rust can declare.
    pub fn for_rust(self) -> Kinds {
        Kinds { rust: true, ..self }
    }

    fn has(&self, language: Language) -> bool {
        self.languages.contains(&language)
    }

    fn takes(&self, ty: &Type) -> bool {
        self.languages.iter().all(|language| ty.exists_in(*language))
            && (self.languages.len() == 1 || ty.is_laid_out_alike())
            && self.fits(ty)
            && (!self.rust || rust_declares(ty))
    }

    /// Whether every vector fits in a register of this CPU.
    fn fits(&self, ty: &Type) -> bool {
        match ty {
            Type::Vector(width) => width.bytes() <= self.vector_bytes,
            Type::Array(array) => self.fits(array.element()),
            Type::Struct(record) | Type::Union(record) => {
                record.spec().fields.iter().all(|field| self.fits(field))
            }
            _ => true,
        }
    }

    /// A random type of at most `most` bytes. If `depth` is not 0, half of the types are numbers
    /// and pointers.
    fn draw(&self, rng: &mut Xorshift, depth: u32, most: u32) -> Type {
        loop {
            let choice = rng.below(if depth == 0 { 20 } else { 44 });
            let ty = match choice {
                0..12 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
                12..18 => Type::NAMED[rng.below(Type::NAMED.len())].1.clone(),
                18 => Type::Complex(Float::F32),
                19 => Type::Complex([Float::F64, Float::LongDouble][rng.below(2)]),
                20..26 => {
                    let element = self.draw(rng, depth - 1, most);
                    let length = [0, 1, 1, 2, 3, 4, 5, 7, 13][rng.below(9)];
                    Type::array(length, element).expect("small")
                }
                // Every size up to a little more than two words. Most of them do not fit in one
                // register.
                40.. => {
                    let narrow = [Type::U8, Type::I16, Type::Bool];
                    let element = narrow[rng.below(narrow.len())].clone();
                    let length = 1 + rng.below(17) as u32;
                    let bytes = Type::array(length, element).expect("small");
                    match rng.below(2) {
                        0 => bytes,
                        _ => Type::structure([bytes]).expect("small"),
                    }
                }
                _ => self.record(rng, depth, most),
            };
            let bytes = ty.layout(Language::C).size_bytes;
            if bytes <= most && self.takes(&ty) {
                return ty;
            }
        }
    }

    /// A random record. Many have one field type, for shared eightbytes; many are small, for sizes
    /// from one to sixteen bytes.
    fn record(&self, rng: &mut Xorshift, depth: u32, most: u32) -> Type {
        let count = rng.below(6);
        let (alike, small) = (rng.below(3) == 0, rng.below(3) == 0);
        let draw = |rng: &mut Xorshift| {
            if small {
                let narrow = [Type::I8, Type::U8, Type::I16, Type::U16, Type::F32, Type::I32];
                narrow[rng.below(narrow.len())].clone()
            } else {
                self.draw(rng, depth - 1, most)
            }
        };
        let one = draw(rng);
        let fields = (0..count).map(|_| if alike { one.clone() } else { draw(rng) });
        let mut spec = RecordSpec { fields: fields.collect(), ..RecordSpec::default() };
        if self.languages == [Language::C] {
            if rng.below(5) == 0 {
                spec.packed = Some(1 << rng.below(3));
            }
            if rng.below(8) == 0 && !(self.rust && spec.packed.is_some()) {
                spec.align = Some(1 << rng.below(7));
            }
            if rng.below(6) == 0 {
                return spec.into_union().expect("small");
            }
        }
        spec.into_struct().expect("small")
    }

    /// A random signature. Between C conventions, one in four is variadic.
    pub fn signature(&self, rng: &mut Xorshift) -> Signature {
        let depth = rng.below(4) as u32;
        let most = [160, 160, 160, 700][rng.below(4)];
        let mut types = |limit: usize| -> Vec<Type> {
            let n = rng.below(limit + 1);
            // Mixed types, all scalars, or all of one type.
            let kind = rng.below(4);
            let one = self.draw(rng, depth, most);
            (0..n)
                .map(|_| match kind {
                    0 => Type::SCALARS[rng.below(Type::SCALARS.len())].clone(),
                    1 => one.clone(),
                    _ => self.draw(rng, depth, most),
                })
                .collect()
        };
        let most_params = 20;
        let params = types(most_params);
        let results = types(self.results);
        let signature = Signature::new(params, results);
        if !self.has(Language::Go) && !self.rust && rng.below(4) == 0 {
            let named = rng.below(signature.params().len() + 1);
            return signature.variadic_after(named);
        }
        signature
    }
}

/// Whether Rust can declare the type with `repr(C)`, and passes it like C.
fn rust_declares(ty: &Type) -> bool {
    match ty {
        Type::LongDouble | Type::Complex(Float::LongDouble) => false,
        // Rust has no `__m64`, and `__m512` is newer than the oldest supported compiler.
        Type::Vector(width) => matches!(width, VectorWidth::V128 | VectorWidth::V256),
        Type::Array(array) => array.length() > 0 && rust_declares(array.element()),
        Type::Struct(record) | Type::Union(record) => {
            let spec = record.spec();
            let fields = &spec.fields;
            !fields.is_empty()
                && fields.iter().all(rust_declares)
                && (spec.packed.is_none() || fields.iter().all(|field| !has_align(field)))
                && (spec.packed.is_none() || spec.align.is_none())
        }
        _ => true,
    }
}

/// Whether the type contains a record with an alignment of its own.
fn has_align(ty: &Type) -> bool {
    match ty {
        Type::Array(array) => has_align(array.element()),
        Type::Struct(record) | Type::Union(record) => {
            record.spec().align.is_some() || record.spec().fields.iter().any(has_align)
        }
        // `repr(simd)` types count as aligned records.
        Type::Vector(_) => true,
        _ => false,
    }
}
