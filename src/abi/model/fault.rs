//! What the model machine finds wrong with a plan.

use std::error::Error;
use std::fmt;

use crate::abi::plan::Step;
use crate::abi::types::ValueIndex;

/// What is wrong with a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// The step is none that [`Step`] describes, such as a move from memory to memory.
    Malformed {
        /// The step.
        step: Step,
    },
    /// The step writes memory that may only be read, or reads memory that may only be written.
    Forbidden {
        /// The step.
        step: Step,
    },
    /// The step accesses bytes beyond the end of an area.
    OutOfBounds {
        /// The step.
        step: Step,
    },
    /// The step reads a byte of memory that is outside of every value.
    Undefined {
        /// The step.
        step: Step,
    },
    /// The step pops an empty x87 stack, or pushes on a full one.
    X87 {
        /// The step.
        step: Step,
    },
    /// No step wrote a byte in memory that the receiver of a value may load.
    Missing {
        /// The value.
        value: ValueIndex,
    },
    /// The bits above a narrow value are not what its receiver relies on.
    NotExtended {
        /// The value.
        value: ValueIndex,
        /// The low 64 bits of the place of the value.
        found: u64,
    },
    /// An address is outside of all memory that the value can be in, or not aligned.
    BadAddress {
        /// The value.
        value: ValueIndex,
        /// The address.
        address: u64,
    },
    /// Two places that must hold the same bytes hold different ones.
    Duplicate {
        /// The value.
        value: ValueIndex,
    },
    /// The register for the number of vector registers of a variadic call holds another number.
    VectorCount {
        /// The content of the register.
        found: u64,
    },
    /// The x87 stack holds more or fewer numbers than the results have.
    X87Depth {
        /// The number of numbers on it.
        found: usize,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Malformed { step } => write!(f, "`{step}` is no step of a plan"),
            Fault::Forbidden { step } => {
                write!(f, "`{step}` goes against the direction of an area")
            }
            Fault::OutOfBounds { step } => write!(f, "`{step}` goes beyond the end of an area"),
            Fault::Undefined { step } => write!(f, "`{step}` reads a byte that is in no value"),
            Fault::X87 { step } => write!(f, "`{step}` breaks the x87 stack"),
            Fault::Missing { value } => {
                write!(f, "{value} arrived with bytes in memory that no step wrote")
            }
            Fault::NotExtended { value, found } => {
                write!(f, "{value} arrived without its extension, as {found:#x}")
            }
            Fault::BadAddress { value, address } => {
                write!(f, "{value} arrived at {address:#x}, where it cannot be")
            }
            Fault::Duplicate { value } => write!(f, "{value} arrived as two different values"),
            Fault::VectorCount { found } => {
                write!(f, "the number of vector registers arrived as {found:#x}")
            }
            Fault::X87Depth { found } => {
                write!(f, "{found} numbers were on the x87 stack in the end")
            }
        }
    }
}

impl Error for Fault {}
