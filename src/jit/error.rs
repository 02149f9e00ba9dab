//! What can go wrong when code memory is made or a stub is emitted.

use std::fmt;
use std::ops::Range;

use dynasmrt::{DynasmError, TargetKind};

use crate::abi::{AssignError, PlanError};

/// Why code memory could not be made or a stub could not be emitted.
///
/// After any of these nothing is published: no lookup finds a part of the stub that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JitError {
    /// A system call failed.
    System {
        /// The call, as its manual page is named: `memfd_create(2)`.
        call: &'static str,
        /// The value of `errno` after it.
        errno: i32,
        /// What the call was for, and what to do.
        purpose: &'static str,
    },
    /// The kernel refused memory or address space.
    NoMemory {
        /// What it was for.
        what: &'static str,
        /// Bytes that were requested.
        bytes: usize,
        /// The value of `errno`.
        errno: i32,
        /// Which limit was met, as far as the kernel tells.
        shortage: Shortage,
    },
    /// The reservation has no room left for a stub of this frame class.
    OutOfCodeSpace {
        /// Bytes that are needed.
        needed_bytes: usize,
        /// The sub-arena that is full.
        class: &'static str,
        /// Bytes of that sub-arena.
        class_bytes: usize,
    },
    /// One piece of code is longer than what one `install` may emit.
    CodeTooLarge {
        /// Bytes that were emitted.
        bytes: usize,
        /// The limit of this arena.
        limit_bytes: usize,
    },
    /// The process has as many arenas and foreign regions as the registry can hold.
    TooManyRegions {
        /// How many that is.
        limit: usize,
    },
    /// The code does not keep the contract of the frame class that it was declared with.
    FrameContract {
        /// Name of the code.
        name: String,
        /// The class and the rule.
        rule: &'static str,
    },
    /// Code of frame class `Leaf` makes a call. Found in debug builds, and where the
    /// [`Jit`](super::Jit) is a checked one.
    LeafCalls {
        /// Name of the code.
        name: String,
        /// Where the call is, in bytes from the start of the code.
        offset_bytes: usize,
    },
    /// What a stub is to call is not an address of code: it is in the first page of memory.
    NullTarget {
        /// The stub's kind.
        stub: &'static str,
        /// The address that was given.
        address: usize,
    },
    /// The code calls or jumps to an address that a displacement of 32 bits does not reach.
    OutOfReach {
        /// Name of the code.
        name: String,
        /// The address.
        target: usize,
    },
    /// dynasm could not resolve the code: an unknown label, or one that is defined twice.
    Assemble {
        /// Name of the code.
        name: String,
        /// dynasm's words.
        reason: String,
    },
    /// This process is a forked child: its code memory is shared with the parent, so that
    /// emitting here would change the parent's code. Existing stubs may run.
    ForkedChild,
    /// A range of foreign code cannot be registered.
    ForeignRange {
        /// The range that was given.
        range: Range<usize>,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A range of preemptible code that its author declared unsafe makes no sense.
    UnsafePointRange {
        /// Name of the code.
        name: String,
        /// The range that was given, in bytes from the start of the code.
        range: Range<usize>,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// An entry of the stack map of a piece of code makes no sense.
    StackMap {
        /// Name of the code.
        name: String,
        /// The range of the entry, in bytes from the start of the code.
        range: Range<usize>,
        /// The slot that is wrong, if it is not the entry itself.
        slot: Option<String>,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The signature cannot be carried by the convention.
    Assign(AssignError),
    /// No sequence of moves leads from the one side of the stub to the other.
    Plan(PlanError),
    /// The architecture of this host does not have that yet.
    Unsupported {
        /// What was wanted, in the plural.
        what: &'static str,
        /// The architecture.
        target: &'static str,
    },
    /// An adapter is to be entered as a function of other types than its signature has.
    EntryTypes {
        /// The signature of the adapter.
        expected: String,
        /// The signature that the function pointer type stands for.
        given: String,
    },
    /// A stub kind has a rule of its own about signatures.
    Signature {
        /// The stub's kind.
        stub: &'static str,
        /// The rule.
        rule: &'static str,
    },
}

impl JitError {
    /// What dynasm says of code that it could not resolve.
    pub(crate) fn assemble(name: &str, error: DynasmError) -> Self {
        match error {
            DynasmError::ImpossibleRelocation(TargetKind::Value(target)) => {
                Self::OutOfReach { name: name.into(), target }
            }
            error => Self::Assemble { name: name.into(), reason: error.to_string() },
        }
    }
}

impl fmt::Display for JitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { call, errno, purpose } => {
                let text = std::io::Error::from_raw_os_error(*errno);
                write!(f, "{call} failed: {text}; {purpose}")
            }
            Self::NoMemory { what, bytes, errno, shortage } => {
                let text = std::io::Error::from_raw_os_error(*errno);
                write!(f, "no memory for {bytes} bytes of {what}: {text}; {shortage}")
            }
            Self::OutOfCodeSpace { needed_bytes, class, class_bytes } => write!(
                f,
                "out of code space: {needed_bytes} bytes do not fit in what is left of the \
                 {class_bytes} bytes for {class} frames; build the Jit with a larger \
                 JitBuilder::reserve_bytes"
            ),
            Self::CodeTooLarge { bytes, limit_bytes } => write!(
                f,
                "one piece of code is {bytes} bytes long and the limit of this arena is \
                 {limit_bytes}; split it, or build the Jit with a larger reservation"
            ),
            Self::TooManyRegions { limit } => write!(
                f,
                "the registry holds {limit} arenas and foreign regions at most; share one Jit"
            ),
            Self::FrameContract { name, rule } => {
                write!(f, "code {name:?} breaks the frame contract: {rule}")
            }
            Self::LeafCalls { name, offset_bytes } => write!(
                f,
                "code {name:?} of frame class leaf makes a call, {offset_bytes:#x} bytes from its \
                 start: a leaf has no frame for it; start with `push rbp; mov rbp, rsp` and \
                 declare FrameClass::Standard"
            ),
            Self::NullTarget { stub, address } => write!(
                f,
                "{stub} stub: its target is the address {address:#x}, which is null or an offset \
                 from null; pass the address of a function"
            ),
            Self::OutOfReach { name, target } => write!(
                f,
                "code {name:?} calls or jumps to {target:#x}, which is further away than a \
                 displacement of 32 bits reaches; load the address into a register and call that, \
                 or build the Jit with Placement::Near and a smaller JitBuilder::reserve_bytes, so \
                 that it fits next to the program's text (Jit::is_near_text)"
            ),
            Self::Assemble { name, reason } => {
                write!(f, "code {name:?} does not assemble: {reason}")
            }
            Self::ForkedChild => f.write_str(
                "a forked child shares its code memory with its parent and cannot emit; \
                 existing stubs may run, and an exec'ed program may emit",
            ),
            Self::ForeignRange { range, rule } => {
                write!(
                    f,
                    "foreign code {:#x}..{:#x} cannot be registered: {rule}",
                    range.start, range.end
                )
            }
            Self::UnsafePointRange { name, range, rule } => write!(
                f,
                "bytes {}..{} of preemptible code {name:?} cannot be unsafe points: {rule}",
                range.start, range.end
            ),
            Self::StackMap { name, range, slot: None, rule } => write!(
                f,
                "bytes {}..{} of code {name:?} cannot be an entry of its stack map: {rule}",
                range.start, range.end
            ),
            Self::StackMap { name, range, slot: Some(slot), rule } => write!(
                f,
                "{slot} cannot be live in bytes {}..{} of code {name:?}: {rule}",
                range.start, range.end
            ),
            Self::Assign(e) => e.fmt(f),
            Self::Plan(e) => e.fmt(f),
            Self::Unsupported { what, target } => write!(
                f,
                "this crate has no {what} on {target} yet; what it has there is listed in the \
                 documentation of footbridge::jit, and x86-64 has them"
            ),
            Self::EntryTypes { expected, given } => write!(
                f,
                "an adapter of {expected} cannot be entered as {given}; enter it as a function \
                 pointer type of exactly these types"
            ),
            Self::Signature { stub, rule } => write!(f, "{stub} stub: {rule}"),
        }
    }
}

impl std::error::Error for JitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Assign(e) => Some(e),
            Self::Plan(e) => Some(e),
            _ => None,
        }
    }
}

impl From<AssignError> for JitError {
    fn from(e: AssignError) -> Self {
        Self::Assign(e)
    }
}

impl From<PlanError> for JitError {
    fn from(e: PlanError) -> Self {
        Self::Plan(e)
    }
}

/// Why the kernel refuses memory or address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shortage {
    /// The process would exceed its limit of address space, RLIMIT_AS.
    AddressSpace {
        /// Bytes that it uses.
        used: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The process would exceed its limit of private writable memory, RLIMIT_DATA.
    Data {
        /// Bytes that it uses.
        used: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The process locks what it maps (mlockall), and would exceed RLIMIT_MEMLOCK.
    LockedMemory {
        /// Bytes that are locked.
        used: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The process has as many mappings as it may have, vm.max_map_count.
    Mappings {
        /// Mappings that it has.
        used: usize,
        /// The limit.
        limit: usize,
    },
    /// vm.overcommit_memory is 2: the kernel counts address space as if all of it were touched.
    StrictOvercommit,
    /// None of these.
    Unknown,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSpace { used, limit } => {
                write!(f, "RLIMIT_AS is {limit} bytes and {used} are used: raise it (ulimit -v)")
            }
            Self::Data { used, limit } => {
                write!(f, "RLIMIT_DATA is {limit} bytes and {used} are used: raise it (ulimit -d)")
            }
            Self::LockedMemory { used, limit } => write!(
                f,
                "the process locks its memory (mlockall), RLIMIT_MEMLOCK is {limit} bytes and \
                 {used} are locked: raise it (ulimit -l), or grant CAP_IPC_LOCK"
            ),
            Self::Mappings { used, limit } => write!(
                f,
                "the process has {used} mappings, and vm.max_map_count is {limit}: raise it \
                 (sysctl -w vm.max_map_count={})",
                limit.saturating_mul(4)
            ),
            Self::StrictOvercommit => f.write_str(
                "vm.overcommit_memory is 2, so that untouched memory counts as used: set it to 0, \
                 or raise vm.overcommit_ratio",
            ),
            Self::Unknown => f.write_str(
                "RLIMIT_AS, RLIMIT_DATA, vm.max_map_count and vm.overcommit_memory allow it: check \
                 the limits of the container and its seccomp filter",
            ),
        }
    }
}
