//! Why there is no plan.

use std::error::Error;
use std::fmt;

use crate::abi::conv::spec::ConvSpec;
use crate::abi::reg::RegClass;
use crate::abi::types::{Type, ValueIndex};

/// Why there is no plan from one assignment to another.
///
/// ```
/// use footbridge::abi::{Convention, Plan, PlanError, PlanRequest, RegSet};
///
/// let error = Plan::new(&PlanRequest {
///     entry: &Convention::SystemV.assign(&"fn(i64)".parse()?)?,
///     target: &Convention::SystemV.assign(&"fn(f64)".parse()?)?,
///     bound_param: None,
///     arg_scratch: RegSet::EMPTY,
///     result_scratch: RegSet::EMPTY,
/// });
/// let error = error.expect_err("two functions");
/// assert!(matches!(error, PlanError::SignatureMismatch { .. }));
/// assert!(error.to_string().starts_with("parameter 0 is i64 at the entry and f64 at the target"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        /// The requested index.
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
        /// The convention in which the stub is entered.
        entry: &'static ConvSpec,
        /// The convention that it calls.
        target: &'static ConvSpec,
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
                "{value} ({ty}): C and Go lay it out differently, because Go pads after a last \
                 field of size 0; leave that field out"
            ),
            PlanError::OtherMachine { entry, target } => write!(
                f,
                "{entry} is a convention of {}, {target} one of {}",
                entry.arch, target.arch
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
