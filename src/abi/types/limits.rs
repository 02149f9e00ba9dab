//! The limits on types, and the error that names the one that a type exceeds.

use std::error::Error;
use std::fmt;

/// The deepest nesting of composite types.
pub const MAX_TYPE_DEPTH: u32 = 64;

/// The most types that one type mentions. A type that is mentioned twice counts twice.
pub const MAX_TYPE_MENTIONS: u32 = 1 << 16;

/// The largest argument of `packed` and `align`, in bytes. They take powers of two.
pub const MAX_TYPE_ALIGN_BYTES: u32 = 4096;

/// No type is larger than this, in bytes.
pub const MAX_TYPE_BYTES: u32 = 1 << 30;

/// The depth of a composite type whose deepest part has this depth.
pub(super) fn deeper(depth: u32) -> Result<u32, TypeError> {
    if depth >= MAX_TYPE_DEPTH {
        return Err(TypeError::TooDeep { limit: MAX_TYPE_DEPTH });
    }
    Ok(depth + 1)
}

/// The number of types that a type mentions, if it is within the limit.
pub(super) fn mentions(mentions: u32) -> Result<u32, TypeError> {
    if mentions > MAX_TYPE_MENTIONS {
        return Err(TypeError::TooManyMentions { limit: MAX_TYPE_MENTIONS });
    }
    Ok(mentions)
}

/// A size in bytes, if it is within the limit.
pub(super) fn size(bytes: u64) -> Result<u32, TypeError> {
    match u32::try_from(bytes) {
        Ok(bytes) if bytes <= MAX_TYPE_BYTES => Ok(bytes),
        _ => Err(TypeError::TooLarge { limit_bytes: MAX_TYPE_BYTES }),
    }
}

/// Why a type cannot be made.
///
/// ```
/// use footbridge::abi::{Type, TypeError};
///
/// let error = Type::array(1 << 31, Type::I64).expect_err("16 GiB");
/// assert!(matches!(error, TypeError::TooLarge { .. }));
/// assert!(error.to_string().ends_with("pass a pointer instead"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TypeError {
    /// The type nests composite types too deep.
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
                MAX_TYPE_ALIGN_BYTES
            ),
        }
    }
}

impl Error for TypeError {}
