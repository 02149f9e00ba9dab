//! Settings of a run, and what a run refuses to start with.

use std::fmt;
use std::time::Duration;

use crate::jit::JitError;
use crate::runtime::arch::VectorState;
use crate::runtime::stack::{SizeClass, StackError};

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
    /// How long a goroutine runs before it is asked to give way to others, at least 20 us.
    /// `None`: never; then a goroutine that does not park keeps its thread. The default is 10 ms.
    /// Turns are looked at about once in a slice: one that begins when another one's time is over
    /// takes about a slice, any other up to two.
    pub time_slice: Option<Duration>,
    /// Whether goroutines are also interrupted, by a signal (SIGURG), in JIT code that is
    /// registered as preemptible ([`Annotations::preemptible`](crate::jit::Annotations::preemptible)).
    /// The default is yes. Otherwise they give way at polls only.
    ///
    /// Once a program has such code, a thread whose goroutine runs for longer than its slice gets
    /// the signal in native code too, where it changes nothing but that system calls may end with
    /// EINTR which SA_RESTART does not cover (poll(2), nanosleep(2) and others of signal(7)). Without
    /// such code no signal is sent.
    pub async_preemption: bool,
    /// What is saved of the vector registers when a goroutine gives way in the midst of JIT code.
    /// The default is everything that this CPU has.
    pub vector_state: VectorState,
}

/// Shorter slices than this are not kept.
const MIN_TIME_SLICE: Duration = Duration::from_micros(20);

impl Default for Config {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            processors: processors.min(MAX_PROCESSORS),
            stack_size: 64 << 10,
            time_slice: Some(Duration::from_millis(10)),
            async_preemption: true,
            vector_state: VectorState::Auto,
        }
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

    pub(crate) fn slice(&self) -> Result<Option<Duration>, RunError> {
        match self.time_slice {
            Some(requested) if requested < MIN_TIME_SLICE => Err(RunError::TimeSlice { requested }),
            slice => Ok(slice),
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
        super::run::run(self, f)
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
    /// `Config::time_slice` is too short.
    TimeSlice {
        /// What was asked for.
        requested: Duration,
    },
    /// This CPU, or its operating system, has no such registers.
    VectorState {
        /// What was asked for.
        requested: VectorState,
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
            Self::TimeSlice { requested } => write!(
                f,
                "Config::time_slice is {requested:?}, and must be at least {MIN_TIME_SLICE:?}; \
                 None is no preemption"
            ),
            Self::VectorState { requested } => write!(
                f,
                "Config::vector_state is {requested:?}, which this CPU or its operating system \
                 does not have; VectorState::Auto is what it has"
            ),
            Self::Code(error) => write!(f, "the switch stubs could not be emitted: {error}"),
            Self::Stack(error) => write!(f, "no stack for the main goroutine: {error}"),
            Self::Thread { errno } => write!(
                f,
                "a thread could not be created: {}; check RLIMIT_NPROC, lower Config::processors, or \
                 set Config::time_slice to None, which needs one thread less",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl std::error::Error for RunError {}
