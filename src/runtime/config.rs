//! Settings of a run, and what a run refuses to start with.

use std::fmt;

use super::stack::{SizeClass, StackError};
use crate::jit::JitError;

/// The most processors that a run can have.
pub const MAX_PROCESSORS: usize = 256;

/// Settings of a run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Threads that run goroutines, 1 to [`MAX_PROCESSORS`]. The default is what
    /// `std::thread::available_parallelism` says.
    pub processors: usize,
    /// Usable bytes of each goroutine's stack, rounded up to the next of 16 KiB, 64 KiB, 256 KiB,
    /// 1 MiB and 8 MiB. The default is 64 KiB. Only pages that are touched cost memory. A single
    /// goroutine can have another one: [`Builder`](super::Builder).
    pub stack_size: usize,
}

impl Default for Config {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { processors: processors.min(MAX_PROCESSORS), stack_size: 64 << 10 }
    }
}

impl Config {
    pub(crate) fn class(&self) -> Result<SizeClass, RunError> {
        SizeClass::for_bytes(self.stack_size)
            .ok_or(RunError::StackSize { requested: self.stack_size })
    }

    pub(crate) fn processor_count(&self) -> Result<usize, RunError> {
        match self.processors {
            n @ 1..=MAX_PROCESSORS => Ok(n),
            requested => Err(RunError::Processors { requested }),
        }
    }

    /// Runs `f` as the main goroutine of a run with these settings.
    ///
    /// The calling thread becomes one of the threads of the run, and the main goroutine stays on
    /// it. The run ends when `f` returns or panics: then no other goroutine of the run continues.
    /// One that has not finished is abandoned: it is never resumed, what it owns is leaked, and
    /// whoever joins it gets [`Abandoned`](super::Abandoned).
    ///
    /// # Errors
    /// A setting is out of range, `run` was called on a goroutine, or the host refused memory or a
    /// thread.
    ///
    /// # Panics
    /// With the panic of `f`.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> Result<R, RunError> {
        super::sched::run(self, f)
    }
}

/// Why a run did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// `run` was called on a thread that belongs to a run.
    Nested,
    /// `Config::processors` is 0 or too large.
    Processors {
        /// What was asked for.
        requested: usize,
    },
    /// `Config::stack_size` is larger than the largest class.
    StackSize {
        /// What was asked for.
        requested: usize,
    },
    /// The switch stubs could not be emitted.
    Code(JitError),
    /// No stack for the main goroutine.
    Stack(StackError),
    /// A thread could not be created.
    Thread {
        /// The value of `errno`.
        errno: i32,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested => f.write_str(
                "run was called on a thread that belongs to a run already; start goroutines with go",
            ),
            Self::Processors { requested } => write!(
                f,
                "Config::processors is {requested}, and must be from 1 to {MAX_PROCESSORS}"
            ),
            Self::StackSize { requested } => write!(
                f,
                "Config::stack_size is {requested} bytes, and the largest stack has 8 MiB"
            ),
            Self::Code(error) => write!(f, "the switch stubs could not be emitted: {error}"),
            Self::Stack(error) => write!(f, "no stack for the main goroutine: {error}"),
            Self::Thread { errno } => write!(
                f,
                "a thread could not be created: {}; check RLIMIT_NPROC or lower \
                 Config::processors",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl std::error::Error for RunError {}
