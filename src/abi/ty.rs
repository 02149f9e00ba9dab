//! Types: everything that a calling convention can tell apart, and nothing else.
//!
//! A type is a small value: composite types are shared. Their layouts are computed once, when
//! they are made, which is also when limits are checked; so nothing that walks a type later can
//! overflow, recurse without bound or take forever. This file never says where a value lives.

use std::fmt;
use std::sync::Arc;

use super::error::TypeError;
use super::layout::{self, Language, Layout};

/// Composite types are nested at most so deep.
pub const MAX_TYPE_DEPTH: u32 = 64;

/// A type mentions at most so many types, counting each as often as it is mentioned.
pub const MAX_TYPE_MENTIONS: u32 = 1 << 16;

/// No type is larger than this, in bytes.
pub const MAX_TYPE_BYTES: u32 = 1 << 30;

/// `packed` and `align` take powers of two up to this, in bytes.
pub const MAX_TYPE_ALIGN_BYTES: u32 = 4096;

/// The type of one value, as far as a calling convention can tell types apart.
///
/// Sizes and alignments are those of the 64-bit machines that this crate knows, see
/// [`Type::layout`].
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Type {
    /// A truth value: one byte that is 0 or 1.
    Bool,
    /// A signed 8-bit integer.
    I8,
    /// A signed 16-bit integer.
    I16,
    /// A signed 32-bit integer.
    I32,
    /// A signed 64-bit integer.
    I64,
    /// An unsigned 8-bit integer.
    U8,
    /// An unsigned 16-bit integer.
    U16,
    /// An unsigned 32-bit integer.
    U32,
    /// An unsigned 64-bit integer.
    U64,
    /// A signed integer of the size of a pointer.
    Isize,
    /// An unsigned integer of the size of a pointer.
    Usize,
    /// A signed 128-bit integer.
    I128,
    /// An unsigned 128-bit integer.
    U128,
    /// An IEEE 754 binary32 number.
    F32,
    /// An IEEE 754 binary64 number.
    F64,
    /// C's `long double` where it is wider than `double`: 16 bytes, of which x87 uses the low 10
    /// on amd64, and an IEEE 754 binary128 number on AArch64. Where `long double` is `double`
    /// (MSVC, Apple), the type of such a value is [`Type::F64`].
    LongDouble,
    /// C's complex number of two of these, or Go's.
    Complex(Float),
    /// A short vector in the sense of C compilers.
    Vector(VectorWidth),
    /// A pointer to anything, or the address of code.
    Ptr,
    /// A pointer into a managed heap. It travels as [`Type::Ptr`]; stack maps and pointer checks
    /// tell it apart.
    Managed,
    /// Go's `string`: data, length.
    GoString,
    /// Go's slice of anything: data, length, capacity.
    GoSlice,
    /// Go's `any`, the interface without methods: type, data.
    GoAny,
    /// A Go interface with methods: method table, data.
    GoIface,
    /// A Go function value: the address of a closure.
    GoFunc,
    /// A Go channel: a pointer.
    GoChan,
    /// A Go map: a pointer.
    GoMap,
    /// So many elements of one type. As a parameter it is the value, as in Go or inside of a
    /// struct; C itself passes the address, [`Type::Ptr`].
    Array(Array),
    /// Fields, one behind the other.
    Struct(Record),
    /// Fields in one place.
    Union(Record),
}

/// The parts of a complex number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Float {
    /// [`Type::F32`].
    F32,
    /// [`Type::F64`].
    F64,
    /// [`Type::LongDouble`].
    LongDouble,
}

impl Float {
    /// The part as a type of its own.
    pub const fn ty(self) -> Type {
        match self {
            Float::F32 => Type::F32,
            Float::F64 => Type::F64,
            Float::LongDouble => Type::LongDouble,
        }
    }
}

/// The size of a vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum VectorWidth {
    /// 64 bits: `__m64`, or half a register of AArch64.
    V64,
    /// 128 bits.
    V128,
    /// 256 bits.
    V256,
    /// 512 bits.
    V512,
}

impl VectorWidth {
    /// The size, in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            VectorWidth::V64 => 8,
            VectorWidth::V128 => 16,
            VectorWidth::V256 => 32,
            VectorWidth::V512 => 64,
        }
    }
}

/// What all composite types keep.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    c: Layout,
    go: Layout,
    depth: u32,
    mentions: u32,
}

/// An array type. [`Type::array`] makes it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Array(Arc<ArrayData>);

#[derive(PartialEq, Eq, Hash)]
struct ArrayData {
    length: u32,
    element: Type,
    extent: Extent,
}

impl Array {
    /// The number of elements.
    pub fn length(&self) -> u32 {
        self.0.length
    }

    /// The type of each element.
    pub fn element(&self) -> &Type {
        &self.0.element
    }
}

/// A struct or union type. [`Type::structure`], [`Type::union`] and [`RecordSpec`] make it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Record(Arc<RecordData>);

#[derive(PartialEq, Eq, Hash)]
struct RecordData {
    spec: RecordSpec,
    c_offsets: Vec<u32>,
    go_offsets: Vec<u32>,
    /// The largest alignment of a field, as packing leaves it.
    natural_align: u32,
    extent: Extent,
}

/// The description of a struct or union.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RecordSpec {
    /// The types of the fields, in order.
    pub fields: Vec<Type>,
    /// No field is aligned to more bytes than this: `#pragma pack`, or with 1
    /// `__attribute__((packed))`.
    pub packed: Option<u32>,
    /// The whole is aligned to this many bytes at least: `alignas`.
    pub align: Option<u32>,
}

impl RecordSpec {
    /// The struct with these fields.
    ///
    /// # Errors
    ///
    /// A limit of this layer is exceeded, or an alignment is not a power of two.
    pub fn into_struct(self) -> Result<Type, TypeError> {
        Ok(Type::Struct(Record::new(self, false)?))
    }

    /// The union of these fields.
    ///
    /// # Errors
    ///
    /// As for a struct.
    pub fn into_union(self) -> Result<Type, TypeError> {
        Ok(Type::Union(Record::new(self, true)?))
    }
}

impl Record {
    fn new(spec: RecordSpec, is_union: bool) -> Result<Record, TypeError> {
        for align_bytes in [spec.packed, spec.align].into_iter().flatten() {
            if !align_bytes.is_power_of_two() || align_bytes > MAX_TYPE_ALIGN_BYTES {
                return Err(TypeError::BadAlign { align_bytes });
            }
        }
        let lay_out = if is_union { layout::union } else { layout::structure };
        let (c_offsets, c) = lay_out(&spec, Language::C)?;
        let (go_offsets, go) = lay_out(&spec, Language::Go)?;
        let depth = spec.fields.iter().map(Type::depth).max().unwrap_or(0);
        let mentions = spec.fields.iter().map(Type::mentions);
        let extent = Extent {
            c,
            go,
            depth: deeper(depth)?,
            mentions: limited_mentions(mentions.fold(1, u32::saturating_add))?,
        };
        let packed = spec.packed.unwrap_or(u32::MAX);
        let aligns = spec.fields.iter().map(|field| {
            let Layout { align_bytes, .. } = field.layout(Language::C);
            align_bytes.min(packed)
        });
        Ok(Record(Arc::new(RecordData {
            natural_align: aligns.max().unwrap_or(1),
            spec,
            c_offsets,
            go_offsets,
            extent,
        })))
    }

    /// What the type was made from.
    pub fn spec(&self) -> &RecordSpec {
        &self.0.spec
    }

    /// Each field with its byte offset.
    pub fn fields(&self, language: Language) -> impl Iterator<Item = (u32, &Type)> {
        let offsets = match language {
            Language::C => &self.0.c_offsets,
            Language::Go => &self.0.go_offsets,
        };
        offsets.iter().copied().zip(&self.0.spec.fields)
    }

    /// The alignment without what the type as a whole asks for: that of its most aligned field.
    pub fn natural_align_bytes(&self) -> u32 {
        self.0.natural_align
    }
}

fn deeper(depth: u32) -> Result<u32, TypeError> {
    if depth >= MAX_TYPE_DEPTH {
        return Err(TypeError::TooDeep { limit: MAX_TYPE_DEPTH });
    }
    Ok(depth + 1)
}

fn limited_mentions(mentions: u32) -> Result<u32, TypeError> {
    if mentions > MAX_TYPE_MENTIONS {
        return Err(TypeError::TooManyMentions { limit: MAX_TYPE_MENTIONS });
    }
    Ok(mentions)
}

impl Type {
    /// The numbers and pointers of at most eight bytes, in the order of the declaration. Each
    /// travels in one register, in every convention.
    pub const SCALARS: [Type; 15] = [
        Type::Bool,
        Type::I8,
        Type::I16,
        Type::I32,
        Type::I64,
        Type::U8,
        Type::U16,
        Type::U32,
        Type::U64,
        Type::Isize,
        Type::Usize,
        Type::F32,
        Type::F64,
        Type::Ptr,
        Type::Managed,
    ];

    /// Every type that a single word of the text form names, and the word.
    pub const NAMED: [(&'static str, Type); 29] = [
        ("bool", Type::Bool),
        ("i8", Type::I8),
        ("i16", Type::I16),
        ("i32", Type::I32),
        ("i64", Type::I64),
        ("u8", Type::U8),
        ("u16", Type::U16),
        ("u32", Type::U32),
        ("u64", Type::U64),
        ("isize", Type::Isize),
        ("usize", Type::Usize),
        ("i128", Type::I128),
        ("u128", Type::U128),
        ("f32", Type::F32),
        ("f64", Type::F64),
        ("longdouble", Type::LongDouble),
        ("v64", Type::Vector(VectorWidth::V64)),
        ("v128", Type::Vector(VectorWidth::V128)),
        ("v256", Type::Vector(VectorWidth::V256)),
        ("v512", Type::Vector(VectorWidth::V512)),
        ("ptr", Type::Ptr),
        ("managed", Type::Managed),
        ("string", Type::GoString),
        ("slice", Type::GoSlice),
        ("any", Type::GoAny),
        ("iface", Type::GoIface),
        ("func", Type::GoFunc),
        ("chan", Type::GoChan),
        ("map", Type::GoMap),
    ];

    /// The array of `length` elements.
    ///
    /// # Errors
    ///
    /// A limit of this layer is exceeded.
    pub fn array(length: u32, element: Type) -> Result<Type, TypeError> {
        let extent = Extent {
            c: layout::array(length, element.layout(Language::C))?,
            go: layout::array(length, element.layout(Language::Go))?,
            depth: deeper(element.depth())?,
            mentions: limited_mentions(element.mentions().saturating_add(1))?,
        };
        Ok(Type::Array(Array(Arc::new(ArrayData { length, element, extent }))))
    }

    /// The struct of these fields, neither packed nor over-aligned.
    ///
    /// # Errors
    ///
    /// A limit of this layer is exceeded.
    pub fn structure(fields: impl Into<Vec<Type>>) -> Result<Type, TypeError> {
        RecordSpec { fields: fields.into(), ..RecordSpec::default() }.into_struct()
    }

    /// The union of these fields, neither packed nor over-aligned.
    ///
    /// # Errors
    ///
    /// A limit of this layer is exceeded.
    pub fn union(fields: impl Into<Vec<Type>>) -> Result<Type, TypeError> {
        RecordSpec { fields: fields.into(), ..RecordSpec::default() }.into_union()
    }

    fn extent(&self) -> Option<&Extent> {
        match self {
            Type::Array(array) => Some(&array.0.extent),
            Type::Struct(record) | Type::Union(record) => Some(&record.0.extent),
            _ => None,
        }
    }

    fn depth(&self) -> u32 {
        self.extent().map_or(0, |extent| extent.depth)
    }

    fn mentions(&self) -> u32 {
        self.extent().map_or(1, |extent| extent.mentions)
    }

    /// The size and alignment of a value in memory, as this language lays it out.
    pub fn layout(&self, language: Language) -> Layout {
        match (self.extent(), language) {
            (Some(extent), Language::C) => extent.c,
            (Some(extent), Language::Go) => extent.go,
            (None, _) => layout::simple(self),
        }
    }

    /// Whether the language can say this type. Go has no 128-bit integers, vectors, long
    /// doubles, unions, and no `packed` or `align`; every Go type is a struct or number of C.
    pub fn exists_in(&self, language: Language) -> bool {
        language == Language::C
            || match self {
                Type::I128
                | Type::U128
                | Type::LongDouble
                | Type::Complex(Float::LongDouble)
                | Type::Vector(_)
                | Type::Union(_) => false,
                Type::Array(array) => array.element().exists_in(language),
                Type::Struct(record) => {
                    let RecordSpec { fields, packed, align } = record.spec();
                    packed.is_none()
                        && align.is_none()
                        && fields.iter().all(|field| field.exists_in(language))
                }
                _ => true,
            }
    }

    /// Whether C and Go put every part of the type at the same offset, and agree on its size.
    pub fn is_laid_out_alike(&self) -> bool {
        let same = self.layout(Language::C) == self.layout(Language::Go);
        same && match self {
            Type::Array(array) => array.element().is_laid_out_alike(),
            Type::Struct(record) | Type::Union(record) => {
                let both = record.fields(Language::C).zip(record.fields(Language::Go));
                let mut both =
                    both.map(|((c, field), (go, _))| c == go && field.is_laid_out_alike());
                both.all(|alike| alike)
            }
            _ => true,
        }
    }

    /// Whether this is a signed integer, one that is widened by copies of its sign bit.
    ///
    /// Floats are not integers and answer `false`.
    pub const fn is_signed(&self) -> bool {
        matches!(self, Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Isize | Type::I128)
    }

    /// Whether this is a truth value, an integer of at most 64 bits, or one pointer.
    pub const fn is_word(&self) -> bool {
        matches!(
            self,
            Type::Bool
                | Type::I8
                | Type::I16
                | Type::I32
                | Type::I64
                | Type::U8
                | Type::U16
                | Type::U32
                | Type::U64
                | Type::Isize
                | Type::Usize
                | Type::Ptr
                | Type::Managed
                | Type::GoFunc
                | Type::GoChan
                | Type::GoMap
        )
    }

    /// Whether this is a struct, union, array, or one of the Go types that are structs of words.
    pub const fn is_aggregate(&self) -> bool {
        matches!(
            self,
            Type::Array(_)
                | Type::Struct(_)
                | Type::Union(_)
                | Type::GoString
                | Type::GoSlice
                | Type::GoAny
                | Type::GoIface
        )
    }

    /// Calls `each` with every part that has no parts itself, and its byte offset from `base`,
    /// in the order of memory; with all fields of a union.
    ///
    /// Parts of complex numbers, strings, slices and interfaces are parts. Elements of size 0
    /// are none, so the number of calls is limited by the size of the type.
    pub fn each_leaf(&self, language: Language, base: u32, each: &mut dyn FnMut(u32, &Type)) {
        let mut words = |types: &[Type]| {
            for (ty, offset) in types.iter().zip((base..).step_by(8)) {
                each(offset, ty);
            }
        };
        match self {
            Type::GoString => words(&[Type::Ptr, Type::Isize]),
            Type::GoSlice => words(&[Type::Ptr, Type::Isize, Type::Isize]),
            Type::GoAny | Type::GoIface => words(&[Type::Ptr, Type::Ptr]),
            Type::Complex(float) => {
                let part = float.ty();
                each(base, &part);
                each(base + part.layout(language).size_bytes, &part);
            }
            Type::Array(array) => {
                let size = array.element().layout(language).size_bytes;
                let elements = if size == 0 { 0 } else { array.length() };
                for i in 0..elements {
                    array.element().each_leaf(language, base + i * size, each);
                }
            }
            Type::Struct(record) | Type::Union(record) => {
                for (offset, field) in record.fields(language) {
                    field.each_leaf(language, base + offset, each);
                }
            }
            leaf => each(base, leaf),
        }
    }

    /// Which bytes of a value mean something: the others are padding, unspecified in every
    /// convention. Those of a union are all that any field uses.
    pub fn data_bytes(&self, language: Language) -> Vec<bool> {
        let mut bytes = vec![false; self.layout(language).size_bytes as usize];
        self.each_leaf(language, 0, &mut |offset, leaf| {
            let size = layout::simple(leaf).size_bytes;
            bytes[offset as usize..][..size as usize].fill(true);
        });
        bytes
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Complex(float) => write!(f, "complex<{}>", float.ty()),
            Type::Array(array) => write!(f, "[{}; {}]", array.element(), array.length()),
            Type::Struct(record) => record.write("struct", f),
            Type::Union(record) => record.write("union", f),
            simple => {
                let named = Type::NAMED.iter().find(|(_, ty)| ty == simple);
                f.pad(named.expect("every other type has a name").0)
            }
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.element(), self.length())
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write("record", f)
    }
}

impl Record {
    fn write(&self, word: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecordSpec { fields, packed, align } = self.spec();
        f.write_str(word)?;
        if let Some(packed) = packed {
            write!(f, " packed({packed})")?;
        }
        if let Some(align) = align {
            write!(f, " align({align})")?;
        }
        if fields.is_empty() {
            return f.write_str(" {}");
        }
        f.write_str(" { ")?;
        for (i, field) in fields.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{field}")?;
        }
        f.write_str(" }")
    }
}
