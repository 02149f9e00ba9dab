//! The errors of this layer. Each says what is wrong, where, and what to do about it.
//!
//! This file decides nothing: the rules are where the errors are made.

use std::error::Error;
use std::fmt;

use super::conv::Convention;
use super::loc::RegClass;
use super::ty::Type;

/// A value of a signature by its place in the list, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ValueIndex {
    /// The parameter with this index.
    Param(usize),
    /// The result with this index.
    Result(usize),
}

impl fmt::Display for ValueIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueIndex::Param(index) => write!(f, "parameter {index}"),
            ValueIndex::Result(index) => write!(f, "result {index}"),
        }
    }
}

/// Why a type cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TypeError {
    /// Composite types are nested too deep.
    TooDeep {
        /// The limit.
        limit: u32,
    },
    /// The type mentions too many types.
    TooManyMentions {
        /// The limit.
        limit: u32,
    },
    /// The type is too large.
    TooLarge {
        /// The limit, in bytes.
        limit_bytes: u32,
    },
    /// The argument of `packed` or `align` is no alignment.
    BadAlign {
        /// The argument.
        align_bytes: u32,
    },
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TypeError::TooDeep { limit } => {
                write!(f, "types are nested more than {limit} deep; pass a pointer instead")
            }
            TypeError::TooManyMentions { limit } => write!(
                f,
                "a type has more than {limit} parts; write an array, or pass a pointer instead"
            ),
            TypeError::TooLarge { limit_bytes } => {
                write!(f, "a type is larger than {limit_bytes} bytes; pass a pointer instead")
            }
            TypeError::BadAlign { align_bytes } => write!(
                f,
                "{align_bytes} is no alignment: it must be a power of two, at most {}",
                super::ty::MAX_TYPE_ALIGN_BYTES
            ),
        }
    }
}

impl Error for TypeError {}

/// Why a text is not a signature or type.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ParseError {
    /// Something else had to stand here.
    Unexpected {
        /// Byte offset in the text.
        position: usize,
        /// What would have been accepted.
        expected: &'static str,
        /// The token that stands there; empty at the end of the text.
        found: String,
    },
    /// A word stands where a type belongs, and names none.
    UnknownType {
        /// Byte offset in the text.
        position: usize,
        /// The word.
        name: String,
    },
    /// A number does not fit in 32 bits.
    NumberTooLarge {
        /// Byte offset in the text.
        position: usize,
        /// The number.
        digits: String,
    },
    /// The text describes a type that cannot be made.
    Type {
        /// Byte offset of the type in the text.
        position: usize,
        /// Why.
        error: TypeError,
    },
}

impl ParseError {
    /// The byte offset in the text at which the error was found.
    pub const fn position(&self) -> usize {
        match self {
            ParseError::Unexpected { position, .. }
            | ParseError::UnknownType { position, .. }
            | ParseError::NumberTooLarge { position, .. }
            | ParseError::Type { position, .. } => *position,
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "signature, byte {}: ", self.position())?;
        match self {
            ParseError::Unexpected { expected, found, .. } if found.is_empty() => {
                write!(f, "expected {expected}, found the end of the text")
            }
            ParseError::Unexpected { expected, found, .. } => {
                write!(f, "expected {expected}, found `{found}`")
            }
            ParseError::UnknownType { name, .. } => {
                let known = Type::NAMED.map(|(name, _)| name).join(", ");
                write!(
                    f,
                    "there is no type `{name}`; use one of {known}, complex<..>, [..; n], \
                     struct {{ .. }}, union {{ .. }}"
                )
            }
            ParseError::NumberTooLarge { digits, .. } => {
                write!(f, "{digits} is too large, at most {} is accepted", u32::MAX)
            }
            ParseError::Type { error, .. } => error.fmt(f),
        }
    }
}

impl Error for ParseError {}

/// Why a convention cannot carry a signature.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AssignError {
    /// The convention has no place for a second result.
    OneResult {
        /// The convention that was asked.
        convention: Convention,
        /// Index of the first result that has no place, counted from 0.
        index: usize,
        /// Its type.
        ty: Type,
    },
    /// The convention has no rule for the type.
    Unsupported {
        /// The convention that was asked.
        convention: Convention,
        /// The value.
        value: ValueIndex,
        /// Its type.
        ty: Type,
        /// Why.
        rule: &'static str,
    },
    /// The language of the convention has no variadic functions like C's.
    NoVariadics {
        /// The convention that was asked.
        convention: Convention,
    },
    /// The values on the stack take more than [`MAX_AREA_BYTES`](super::MAX_AREA_BYTES).
    AreaTooLarge {
        /// The convention that was asked.
        convention: Convention,
        /// The first value that ends beyond the limit.
        value: ValueIndex,
        /// Its type.
        ty: Type,
        /// The limit, in bytes.
        limit_bytes: u32,
    },
}

impl fmt::Display for AssignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssignError::OneResult { convention, index, ty } => write!(
                f,
                "{convention}, result {index} ({ty}): the convention returns one value; \
                 return the others through a pointer parameter"
            ),
            AssignError::Unsupported { convention, value, ty, rule } => {
                write!(f, "{convention}, {value} ({ty}): {rule}")
            }
            AssignError::NoVariadics { convention } => {
                write!(f, "{convention}: Go has no `...` parameters like C's; pass a slice")
            }
            AssignError::AreaTooLarge { convention, value, ty, limit_bytes } => write!(
                f,
                "{convention}, {value} ({ty}): it ends more than {limit_bytes} bytes into the \
                 stack area; pass a pointer to a record instead"
            ),
        }
    }
}

impl Error for AssignError {}

/// Why there is no plan from one assignment to another.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PlanError {
    /// The two sides do not describe the same function.
    SignatureMismatch {
        /// The first value that differs. Parameters are counted as the entry side counts them,
        /// that is without the bound one.
        value: ValueIndex,
        /// Its type at the entry, if there is such a value.
        entry: Option<Type>,
        /// Its type at the target, if there is such a value.
        target: Option<Type>,
    },
    /// The target has no parameter with the index that is to be bound.
    BoundOutOfRange {
        /// The index that was asked for.
        index: usize,
        /// The number of parameters of the target.
        params: usize,
    },
    /// The parameter that is to be bound is neither an integer of at most 64 bits nor a pointer.
    BoundNotInteger {
        /// Its index.
        index: usize,
        /// Its type.
        ty: Type,
    },
    /// The languages of the two sides lay the value out differently.
    LayoutDiffers {
        /// The value. Parameters are counted as the entry side counts them.
        value: ValueIndex,
        /// Its type.
        ty: Type,
    },
    /// The two sides are conventions of different machines.
    OtherMachine {
        /// How the stub is entered.
        entry: Convention,
        /// What it calls.
        target: Convention,
    },
    /// The stub would take too much of its stack.
    FrameTooLarge {
        /// The bytes it would need.
        bytes: u32,
        /// The limit, in bytes.
        limit_bytes: u32,
    },
    /// A value cannot reach its place without one more register.
    NoScratch {
        /// The value, as the side that it goes to counts it.
        value: ValueIndex,
        /// The class of the register that is missing.
        class: RegClass,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |ty: &Option<Type>| ty.as_ref().map_or("nothing".to_owned(), Type::to_string);
        match self {
            PlanError::SignatureMismatch { value, entry, target } => write!(
                f,
                "{value} is {} at the entry and {} at the target; assign both sides from one \
                 signature, apart from the bound parameter",
                name(entry),
                name(target)
            ),
            PlanError::BoundOutOfRange { index, params } => write!(
                f,
                "parameter {index} cannot be bound: the target has {params} parameters, counted \
                 from 0"
            ),
            PlanError::BoundNotInteger { index, ty } => write!(
                f,
                "parameter {index} ({ty}) cannot be bound: a bound parameter is an integer or a \
                 pointer"
            ),
            PlanError::LayoutDiffers { value, ty } => write!(
                f,
                "{value} ({ty}): C and Go lay it out differently, because Go pads behind a last \
                 field of size 0; leave that field out"
            ),
            PlanError::OtherMachine { entry, target } => write!(
                f,
                "{entry} is a convention of {}, {target} one of {}",
                entry.spec().arch,
                target.spec().arch
            ),
            PlanError::FrameTooLarge { bytes, limit_bytes } => write!(
                f,
                "the stub needs {bytes} bytes of stack for copies of values, at most \
                 {limit_bytes} are possible; pass pointers instead"
            ),
            PlanError::NoScratch { value, class } => {
                let field = match value {
                    ValueIndex::Param(_) => "arg_scratch",
                    ValueIndex::Result(_) => "result_scratch",
                };
                write!(
                    f,
                    "{value} needs a {class} scratch register on its way; offer one in \
                     {field} that carries no value"
                )
            }
        }
    }
}

impl Error for PlanError {}
