//! Why there is no stack, and what a user can do about it.
//!
//! A message names the limit that was met by its right name, its value, and how to raise it. A
//! limit is read from the system only after something was refused.

use std::fmt;

use crate::jit::Shortage;

/// Why there is no stack for a goroutine.
///
/// ```
/// use footbridge::runtime::{self, Builder};
///
/// runtime::run(|| {
///     let error = Builder::new().stack_bytes(1 << 30).go(|| ()).expect_err("8 MiB at most");
///     assert!(error.to_string().contains("the largest has 8 MiB"), "{error}");
/// });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StackError {
    /// More was requested than the largest size class has.
    TooLarge {
        /// Bytes that were requested.
        requested: usize,
    },
    /// The kernel refused more memory or address space.
    Reserve {
        /// Bytes that the kernel was requested to reserve or to commit.
        bytes: usize,
        /// The value of `errno`.
        errno: i32,
        /// Which limit was met, as far as the kernel tells.
        shortage: Shortage,
    },
    /// The guard below the stack could not be made.
    Guard {
        /// The value of `errno` after mprotect(2).
        errno: i32,
    },
    /// Each guard is a mapping here, and the process has nearly as many as it may have.
    MapCount {
        /// Mappings that the process has.
        mappings: usize,
        /// The value of vm.max_map_count.
        limit: usize,
    },
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
        match self {
            Self::TooLarge { requested } => write!(
                f,
                "a stack of {requested} bytes was asked for, and the largest has 8 MiB; \
                 runtime::systemstack runs a function on the stack of a thread"
            ),
            Self::Reserve { bytes, errno, shortage } => {
                let errno = text(errno);
                write!(f, "no memory for {bytes} bytes of goroutine stacks: {errno}; {shortage}")
            }
            Self::Guard { errno } => write!(
                f,
                "no guard page for a goroutine stack: {}; there is no MADV_GUARD_INSTALL here, so \
                 that each guard is a mapping: raise vm.max_map_count",
                text(errno)
            ),
            Self::MapCount { mappings, limit } => write!(
                f,
                "no guard page for a goroutine stack: the process has {mappings} mappings, and \
                 vm.max_map_count is {limit}; there is no MADV_GUARD_INSTALL here, so that each \
                 stack takes two: raise vm.max_map_count (sysctl -w vm.max_map_count={})",
                limit.saturating_mul(4)
            ),
        }
    }
}

impl std::error::Error for StackError {}
