//! A line of a traceback.

use std::fmt;

use crate::jit::stubs::preempt::POLL;

/// One line of a traceback.
///
/// ```
/// use footbridge::runtime::{TraceFrame, traceback};
///
/// // The innermost frame is the caller of `traceback`. Its name needs the feature `traceback`, and
/// // its line the feature `backtrace`.
/// match &traceback().frames[0] {
///     TraceFrame::Rust { name, location, .. } => println!("{name} at {location:?}"),
///     other => println!("{other}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceFrame {
    /// Code that this crate's registry knows.
    #[non_exhaustive]
    Jit {
        /// The name it was installed with.
        name: String,
        /// Bytes from its start to the pc.
        offset_bytes: usize,
        /// What the code is for: `user code`, `goroutine function`, ...
        kind: &'static str,
    },
    /// A Rust function.
    #[non_exhaustive]
    Rust {
        /// Its path, without the hash.
        name: String,
        /// File and line, where debug information tells and the feature `backtrace` is on.
        location: Option<String>,
    },
    /// Any other function that has a symbol.
    #[non_exhaustive]
    C {
        /// The symbol.
        name: String,
    },
    /// An address that no symbol covers; without the feature `traceback` every native address.
    #[non_exhaustive]
    Unknown {
        /// The address.
        pc: usize,
    },
}

impl fmt::Display for TraceFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jit { name, offset_bytes, kind: "user code" } => {
                write!(f, "jit {name}+{offset_bytes:#x}")
            }
            Self::Jit { name, kind: "preempt", .. } if name == POLL => f.write_str("yielded at"),
            Self::Jit { kind: "preempt", .. } => f.write_str("preempted at"),
            Self::Jit { name, offset_bytes, kind } => {
                write!(f, "jit {name}+{offset_bytes:#x} ({kind})")
            }
            Self::Rust { name, location: Some(at) } => write!(f, "rust {name} at {at}"),
            Self::Rust { name, location: None } => write!(f, "rust {name}"),
            Self::C { name } => write!(f, "c {name}"),
            Self::Unknown { pc } => write!(f, "? {pc:#x}"),
        }
    }
}
