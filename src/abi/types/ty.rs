//! Types: everything that a calling convention can tell apart, and nothing else.
//!
//! A type is a small value, because composite types are shared. A composite type computes its
//! layout once, when it is made, and checks the limits then. Code that walks a type later therefore
//! cannot overflow, recurse without bound or run without end.
//!
//! This file never says where a value lives.

use std::fmt;
use std::sync::Arc;

use super::layout::{self, Language, Layout};
use super::limits::{self, MAX_TYPE_ALIGN_BYTES, TypeError};

/// The type of one value, as far as a calling convention can tell types apart.
///
/// Sizes and alignments are those of the 64-bit machines that this crate knows; see
/// [`Type::layout`]. A type has a text form, which parses and prints:
///
/// ```
/// use footbridge::abi::{Float, RecordSpec, Type};
///
/// let point = Type::structure([Type::F32, Type::F32])?;
/// assert_eq!(point.to_string(), "struct { f32, f32 }");
/// assert_eq!("struct{f32,f32}".parse::<Type>()?, point);
///
/// let packed = RecordSpec { fields: vec![Type::I8, Type::I64], packed: Some(1), align: None };
/// assert_eq!(packed.into_struct()?.to_string(), "struct packed(1) { i8, i64 }");
///
/// let number = Type::union([Type::array(3, Type::I16)?, Type::Complex(Float::F64)])?;
/// assert_eq!(number.to_string(), "union { [i16; 3], complex<f64> }");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// C's `long double` where it is wider than `double`. On amd64 it has 16 bytes, of which x87
    /// uses the low 10; on AArch64 it is an IEEE 754 binary128 number. Where `long double` is
    /// `double` (MSVC, Apple), the type of such a value is [`Type::F64`].
    LongDouble,
    /// A complex number of C or Go, of two such floats.
    Complex(Float),
    /// A short vector in the sense of C compilers.
    Vector(VectorWidth),
    /// A pointer to anything, or the address of code.
    Ptr,
    /// A pointer into a managed heap. Conventions pass it like [`Type::Ptr`]; stack maps and
    /// pointer checks tell it apart.
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
    /// `n` elements of one type. A parameter of this type is the array's value, as in Go or inside
    /// of a struct; C itself passes the address, [`Type::Ptr`].
    Array(Array),
    /// Fields, one after the other.
    Struct(Record),
    /// Fields that share one place.
    Union(Record),
}

/// The type of both parts of a complex number.
///
/// ```
/// use footbridge::abi::{Float, Type};
///
/// assert_eq!(Float::F32.ty(), Type::F32);
/// ```
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
///
/// ```
/// use footbridge::abi::VectorWidth;
///
/// assert_eq!(VectorWidth::V256.bytes(), 32);
/// ```
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

/// What every composite type computes once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    c: Layout,
    go: Layout,
    depth: u32,
    mentions: u32,
}

/// An array type, made by [`Type::array`].
///
/// ```
/// use footbridge::abi::Type;
///
/// let Type::Array(array) = Type::array(3, Type::I16)? else { unreachable!() };
/// assert_eq!((array.length(), array.element()), (3, &Type::I16));
/// # Ok::<(), footbridge::abi::TypeError>(())
/// ```
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

/// A struct or union type, made by [`Type::structure`], [`Type::union`] or [`RecordSpec`].
///
/// ```
/// use footbridge::abi::{Language, RecordSpec, Type};
///
/// let spec = RecordSpec { fields: vec![Type::I8, Type::I32], packed: None, align: Some(8) };
/// let Type::Struct(record) = spec.clone().into_struct()? else { unreachable!() };
/// assert_eq!(record.spec(), &spec);
/// let fields: Vec<_> = record.fields(Language::C).collect();
/// assert_eq!(fields, [(0, &Type::I8), (4, &Type::I32)]);
/// assert_eq!(record.natural_align_bytes(), 4);
/// # Ok::<(), footbridge::abi::TypeError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Record(Arc<RecordData>);

#[derive(PartialEq, Eq, Hash)]
struct RecordData {
    spec: RecordSpec,
    c_offsets: Vec<u32>,
    go_offsets: Vec<u32>,
    /// The largest alignment of a field, limited by `packed`.
    natural_align: u32,
    extent: Extent,
}

/// The description of a struct or union.
///
/// ```
/// use footbridge::abi::{RecordSpec, Type};
///
/// let fields = vec![Type::I8, Type::I64];
/// let spec = RecordSpec { fields, packed: Some(2), ..RecordSpec::default() };
/// assert_eq!(spec.clone().into_struct()?.to_string(), "struct packed(2) { i8, i64 }");
/// assert_eq!(spec.into_union()?.to_string(), "union packed(2) { i8, i64 }");
/// # Ok::<(), footbridge::abi::TypeError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RecordSpec {
    /// The types of the fields, in order.
    pub fields: Vec<Type>,
    /// The largest alignment of a field, in bytes: `#pragma pack`, or with 1
    /// `__attribute__((packed))`.
    pub packed: Option<u32>,
    /// The least alignment of the whole, in bytes: `alignas`.
    pub align: Option<u32>,
}

impl RecordSpec {
    /// The struct with these fields.
    ///
    /// # Errors
    ///
    /// The type exceeds a limit, or an alignment is not a power of two.
    pub fn into_struct(self) -> Result<Type, TypeError> {
        Ok(Type::Struct(Record::new(self, false)?))
    }

    /// The union of these fields.
    ///
    /// # Errors
    ///
    /// The type exceeds a limit, or an alignment is not a power of two.
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
        let packed = spec.packed.unwrap_or(u32::MAX);
        let lay_out = |language| {
            let fields = spec.fields.iter().map(|field| {
                let Layout { size_bytes, align_bytes } = field.layout(language);
                Layout::new(size_bytes, align_bytes.min(packed))
            });
            let fields: Vec<Layout> = fields.collect();
            let align = spec.align.unwrap_or(1);
            match is_union {
                true => layout::union(&fields, align),
                false => layout::structure(&fields, align, language),
            }
        };
        let (c_offsets, c) = lay_out(Language::C)?;
        let (go_offsets, go) = lay_out(Language::Go)?;
        let depth = spec.fields.iter().map(Type::depth).max().unwrap_or(0);
        let mentions = spec.fields.iter().map(Type::mentions);
        let extent = Extent {
            c,
            go,
            depth: limits::deeper(depth)?,
            mentions: limits::mentions(mentions.fold(1, u32::saturating_add))?,
        };
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

    /// The description that the type was made from.
    pub fn spec(&self) -> &RecordSpec {
        &self.0.spec
    }

    /// Each field with its byte offset, in order.
    pub fn fields(&self, language: Language) -> impl Iterator<Item = (u32, &Type)> {
        let offsets = match language {
            Language::C => &self.0.c_offsets,
            Language::Go => &self.0.go_offsets,
        };
        offsets.iter().copied().zip(&self.0.spec.fields)
    }

    /// The alignment of the most aligned field, in bytes. It leaves out [`RecordSpec::align`].
    pub fn natural_align_bytes(&self) -> u32 {
        self.0.natural_align
    }
}

impl Type {
    /// The numbers and pointers of at most eight bytes, in the order of the declaration. Every
    /// convention passes each of them in one register or on the stack.
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

    /// Every type whose text form is a single word, and that word.
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
    /// The type exceeds [`MAX_TYPE_BYTES`](super::MAX_TYPE_BYTES) or
    /// another limit.
    pub fn array(length: u32, element: Type) -> Result<Type, TypeError> {
        let extent = Extent {
            c: layout::array(length, element.layout(Language::C))?,
            go: layout::array(length, element.layout(Language::Go))?,
            depth: limits::deeper(element.depth())?,
            mentions: limits::mentions(element.mentions().saturating_add(1))?,
        };
        Ok(Type::Array(Array(Arc::new(ArrayData { length, element, extent }))))
    }

    /// The struct of these fields, neither packed nor over-aligned.
    ///
    /// # Errors
    ///
    /// The type exceeds [`MAX_TYPE_BYTES`](super::MAX_TYPE_BYTES) or
    /// another limit.
    pub fn structure(fields: impl Into<Vec<Type>>) -> Result<Type, TypeError> {
        RecordSpec { fields: fields.into(), ..RecordSpec::default() }.into_struct()
    }

    /// The union of these fields, neither packed nor over-aligned.
    ///
    /// # Errors
    ///
    /// The type exceeds [`MAX_TYPE_BYTES`](super::MAX_TYPE_BYTES) or
    /// another limit.
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
    ///
    /// ```
    /// use footbridge::abi::{Language, Type};
    ///
    /// let ty: Type = "struct { i64, struct {} }".parse()?;
    /// assert_eq!(ty.layout(Language::C).size_bytes, 8);
    /// assert_eq!(ty.layout(Language::Go).size_bytes, 16);
    /// assert!(!ty.is_laid_out_alike());
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
    pub fn layout(&self, language: Language) -> Layout {
        match (self.extent(), language) {
            (Some(extent), Language::C) => extent.c,
            (Some(extent), Language::Go) => extent.go,
            (None, _) => simple_layout(self),
        }
    }

    /// Whether the language has this type. Go has no 128-bit integers, vectors, long doubles,
    /// unions, and no `packed` or `align`. C has every type: Go's are structs, numbers and pointers
    /// there.
    ///
    /// ```
    /// use footbridge::abi::{Language, Type};
    ///
    /// assert!(Type::GoSlice.exists_in(Language::C));
    /// assert!(!Type::I128.exists_in(Language::Go));
    /// ```
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

    /// Whether C and Go place every part of the type at the same offset, and agree on its size. See
    /// [`Type::layout`] for a type of which they do not.
    ///
    /// ```
    /// use footbridge::abi::Type;
    ///
    /// let alike: Type = "struct { i8, f64 }".parse()?;
    /// assert!(alike.is_laid_out_alike());
    /// // Go pads after a last field of no size.
    /// let different: Type = "struct { i64, struct {} }".parse()?;
    /// assert!(!different.is_laid_out_alike());
    /// # Ok::<(), footbridge::abi::ParseError>(())
    /// ```
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

    /// Whether this is a signed integer, which copies of its sign bit widen. Floats are no
    /// integers.
    ///
    /// ```
    /// use footbridge::abi::Type;
    ///
    /// assert!(Type::I16.is_signed());
    /// assert!(!Type::F64.is_signed());
    /// ```
    pub const fn is_signed(&self) -> bool {
        matches!(self, Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Isize | Type::I128)
    }

    /// Whether this is a truth value, an integer of at most 64 bits, or one pointer.
    ///
    /// ```
    /// use footbridge::abi::Type;
    ///
    /// assert!(Type::Bool.is_word() && Type::GoMap.is_word());
    /// assert!(!Type::F32.is_word() && !Type::I128.is_word() && !Type::GoString.is_word());
    /// ```
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
    ///
    /// ```
    /// use footbridge::abi::{Float, Type};
    ///
    /// assert!(Type::GoString.is_aggregate());
    /// assert!(!Type::Complex(Float::F64).is_aggregate());
    /// ```
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

/// The layout of a type that is not composite. The alignment is the size, except that complex
/// numbers are aligned like their parts and Go's structs of words like words.
fn simple_layout(ty: &Type) -> Layout {
    let aligned = |size| Layout::new(size, size);
    match ty {
        Type::Bool | Type::I8 | Type::U8 => aligned(1),
        Type::I16 | Type::U16 => aligned(2),
        Type::I32 | Type::U32 | Type::F32 => aligned(4),
        Type::I64 | Type::U64 | Type::Isize | Type::Usize | Type::F64 => aligned(8),
        Type::Ptr | Type::Managed | Type::GoFunc | Type::GoChan | Type::GoMap => aligned(8),
        Type::I128 | Type::U128 | Type::LongDouble => aligned(16),
        Type::Complex(Float::F32) => Layout::new(8, 4),
        Type::Complex(Float::F64) => Layout::new(16, 8),
        Type::Complex(Float::LongDouble) => Layout::new(32, 16),
        Type::Vector(width) => aligned(width.bytes()),
        Type::GoString | Type::GoAny | Type::GoIface => Layout::new(16, 8),
        Type::GoSlice => Layout::new(24, 8),
        Type::Array(_) | Type::Struct(_) | Type::Union(_) => {
            unreachable!("composite types keep their layout")
        }
    }
}
