//! Settings of a run, and what a run refuses to start with.
//!
//! A setting is checked when a run starts, not when it is set: so setters compose, and each refusal
//! is a [`RunError`].

use std::fmt;
use std::time::Duration;

use crate::jit::JitError;
use crate::runtime::arch::VectorState;
use crate::runtime::arch::save_area::PREEMPTS_JIT_CODE;
use crate::runtime::os::signals::{self, Number};
use crate::runtime::stack::{SizeClass, StackError};

/// The most processors that a run can have.
///
/// ```
/// use footbridge::runtime::{Config, MAX_PROCESSORS, RunError};
///
/// let requested = MAX_PROCESSORS + 1;
/// let refused = Config::new().processors(requested).run(|| ());
/// assert!(matches!(refused, Err(RunError::Processors { .. })));
/// ```
pub const MAX_PROCESSORS: usize = 256;

/// Settings of a run, built by setters.
///
/// ```
/// use std::time::Duration;
///
/// use footbridge::runtime::Config;
///
/// let config = Config::new().processors(2).time_slice(Duration::from_millis(1));
/// assert_eq!(config.run(|| 6 * 7), Ok(42));
/// ```
///
/// It is plain data, `Send` and `Sync`, and may start any number of runs.
#[derive(Debug, Clone)]
#[must_use = "settings do nothing until `run` is called"]
pub struct Config {
    processors: usize,
    stack_bytes: usize,
    time_slice: Option<Duration>,
    async_preemption: bool,
    preempt_signal: Option<i32>,
    vector_state: VectorState,
    fault_reports: bool,
    /// The outer `None`: not set.
    watchdog: Option<Option<Duration>>,
}

/// Whether goroutines are also preempted by a signal.
#[derive(Clone, Copy)]
pub(crate) enum BySignal {
    No,
    /// By this signal, or by one that suits the program.
    Yes(Option<Number>),
}

/// The watchdog's time, unless it is set.
const DEFAULT_WATCHDOG: Duration = Duration::from_secs(5);

/// Shorter time slices are refused: sysmon could not keep them.
const MIN_TIME_SLICE: Duration = Duration::from_micros(20);

impl Default for Config {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            processors: processors.min(MAX_PROCESSORS),
            stack_bytes: 64 << 10,
            time_slice: Some(Duration::from_millis(10)),
            async_preemption: PREEMPTS_JIT_CODE,
            preempt_signal: None,
            vector_state: VectorState::Auto,
            fault_reports: true,
            watchdog: None,
        }
    }
}

impl Config {
    /// The default settings, each of which its setter names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Threads that run goroutines, 1 to [`MAX_PROCESSORS`]. The default is the value of
    /// `std::thread::available_parallelism`.
    ///
    /// ```
    /// use std::thread;
    ///
    /// use footbridge::runtime::{Config, go};
    ///
    /// // With one processor a goroutine runs on the thread that started it.
    /// let same = Config::new().processors(1).run(|| {
    ///     let main = thread::current().id();
    ///     go(move || thread::current().id() == main).join().expect("no panic")
    /// });
    /// assert_eq!(same, Ok(true));
    /// ```
    pub fn processors(mut self, processors: usize) -> Self {
        self.processors = processors;
        self
    }

    /// Usable bytes of each goroutine's stack, rounded up to the next of 16 KiB, 64 KiB, 256 KiB,
    /// 1 MiB and 8 MiB. The default is 64 KiB. Only pages that are touched cost memory. A single
    /// goroutine can have another size:
    /// [`Builder::stack_bytes`](crate::runtime::Builder::stack_bytes).
    ///
    /// ```
    /// use std::hint::black_box;
    ///
    /// use footbridge::runtime::Config;
    ///
    /// // More than the default has room for.
    /// let sum = Config::new().stack_bytes(1 << 20).run(|| {
    ///     let numbers = [1_u8; 256 << 10];
    ///     black_box(&numbers).iter().map(|&n| usize::from(n)).sum()
    /// });
    /// assert_eq!(sum, Ok(256 << 10));
    /// ```
    pub fn stack_bytes(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// How long a goroutine runs before it must yield to others, at least 20 us. With `None` it is
    /// never preempted: then a goroutine that does not park keeps its thread. The default is 10 ms.
    ///
    /// Time slices are checked about once a slice. A slice that begins when another one ends takes
    /// about its time, any other one up to twice that.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use footbridge::runtime::{Config, checkpoint, go};
    ///
    /// let config = Config::new().processors(1).time_slice(Duration::from_millis(1));
    /// let polls = config.run(|| {
    ///     let other = go(|| ());
    ///     // A loop that never parks yields to the other goroutine when its slice has ended.
    ///     let mut polls = 0_u64;
    ///     while !other.is_finished() {
    ///         checkpoint();
    ///         polls += 1;
    ///     }
    ///     polls
    /// });
    /// assert!(polls.is_ok());
    /// ```
    pub fn time_slice(mut self, slice: impl Into<Option<Duration>>) -> Self {
        self.time_slice = slice.into();
        self
    }

    /// Whether goroutines are also preempted by a signal ([`Self::preempt_signal`]), in JIT code
    /// that is registered as preemptible
    /// ([`Annotations::preemptible`](crate::jit::Annotations::preemptible)). The default is yes on
    /// x86-64. Otherwise they yield at polls only. On AArch64, which has no stubs for it yet, the
    /// default is no, and `run` refuses `true`.
    ///
    /// A thread gets the signal when its goroutine has run for longer than its slice, another
    /// goroutine waits for the processor, and the thread does not wait in a system call. In native
    /// code, which it may find, it changes nothing. But a system call that begins at this moment
    /// may end with EINTR if SA_RESTART does not cover it (poll(2), nanosleep(2) and others of
    /// signal(7)). In a program without preemptible code no signal is sent.
    ///
    /// ```
    /// use footbridge::runtime::{Config, stats};
    ///
    /// let signals = Config::new().async_preemption(false).run(|| stats().signals);
    /// assert_eq!(signals, Ok(0));
    /// ```
    pub fn async_preemption(mut self, on: bool) -> Self {
        self.async_preemption = on;
        self
    }

    /// The signal that preempts. The default, `None`, is SIGURG. Where the program uses that (it
    /// has a handler, or is blocked on the thread that calls `run`, as for sigwait(3) and
    /// signalfd(2)), or takes it later, it is a real-time signal that is free: a program then gets
    /// every SIGURG as it would without this crate. `environment()` says which one is used.
    ///
    /// Name one where the choice meets another library. The thread that calls `run`, and those of
    /// the run, have it unblocked while the run lasts. A handler that the program has installed
    /// before gets all signals that are not the crate's; its system calls are restarted. From the
    /// first run on the signal has the crate's handler until the process ends: what it would do by
    /// default is not done any more.
    ///
    /// A real-time signal ends a process that has no handler for it, such as one that a thread of a
    /// run becomes by execve(2) while a signal is on its way. SIGURG is ignored there.
    ///
    /// ```
    /// use footbridge::runtime::{Config, RunError};
    ///
    /// # #[cfg(target_arch = "x86_64")]
    /// assert_eq!(Config::new().preempt_signal(40).run(|| 42), Ok(42));
    /// // SIGTERM shall end the process.
    /// let refused = Config::new().preempt_signal(15).run(|| ());
    /// assert_eq!(refused, Err(RunError::PreemptSignal { requested: 15 }));
    /// ```
    pub fn preempt_signal(mut self, signal: impl Into<Option<i32>>) -> Self {
        self.preempt_signal = signal.into();
        self
    }

    /// Which vector registers are saved when a goroutine is preempted in JIT code. The default is
    /// all that this CPU has.
    ///
    /// ```
    /// use footbridge::runtime::{Config, VectorState};
    ///
    /// // All JIT code of this program keeps to xmm0 to xmm15.
    /// assert_eq!(Config::new().vector_state(VectorState::Sse).run(|| 1), Ok(1));
    /// ```
    pub fn vector_state(mut self, state: VectorState) -> Self {
        self.vector_state = state;
        self
    }

    /// Whether a fault (SIGSEGV, SIGBUS, SIGILL, SIGFPE, or SIGTRAP of a breakpoint) is reported to
    /// standard error, if it happens in JIT code or on a thread of the run. The default is yes. The
    /// environment variable `FOOTBRIDGE_FAULT_REPORTS=0` turns reports off for all runs.
    ///
    /// A report has the signal, the address, the instruction, the registers and a traceback of the
    /// goroutine. On a thread of no run it has less where the stack for signals is small, as std's
    /// is: signal, address and instruction. After it the fault takes its course: the program's
    /// handler that was installed before the run is called, or the process ends with the signal. So
    /// the exit status and core dumps are as without reports. A fault of other code on any other
    /// thread is not reported.
    ///
    /// A program that handles such faults of its own code, say to turn one into an exception,
    /// installs its handler after the first run has started, or turns reports off: a report is
    /// written before an earlier handler is called. (A program that handles SIGTRAP before the
    /// first run gets no reports of breakpoints.) Faults in JIT code on a thread of no run are
    /// reported as the last run that has started says.
    ///
    /// ```
    /// use footbridge::runtime::Config;
    ///
    /// let quiet = Config::new().fault_reports(false);
    /// assert_eq!(quiet.run(|| 6 * 7), Ok(42));
    /// ```
    pub fn fault_reports(mut self, on: bool) -> Self {
        self.fault_reports = on;
        self
    }

    /// How long a goroutine may stay on its thread without coming to the scheduler, while
    /// goroutines wait for that thread or the run ends, before the watchdog says so on standard
    /// error, with a traceback: it computes without a [`checkpoint`](crate::runtime::checkpoint),
    /// it runs JIT code that neither polls nor may be preempted, or it is blocked in native code.
    /// Each incident is reported once. The default is 5 s; `None` and zero turn the watchdog off,
    /// and so does the environment variable `FOOTBRIDGE_WATCHDOG=0`, for all runs. Another number
    /// in the variable is the time in seconds, such as `0.5`. What is no number is ignored.
    ///
    /// ```text
    /// footbridge: goroutine 7 "pump" has been in native code on its thread for 5 s; 8 goroutines
    /// wait behind it
    /// goroutine 7 "pump" [blocked in native code]:
    ///     ...
    /// ```
    ///
    /// A goroutine that computes or blocks while none waits for its thread is not reported, however
    /// long it takes. A run without time slices has no thread that could watch. It has a watchdog,
    /// and one thread more, only if this is called or the variable has a time.
    ///
    /// The watchdog also ends the process as for a deadlock, with status 2 and all tracebacks,
    /// when no goroutine can run again because threads are blocked in locks (of the standard
    /// library or others): if every thread of the process is one of the run's, each is blocked or
    /// has nothing to run, no timer is set, and the program handles no signals.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use footbridge::runtime::{Config, go};
    ///
    /// // A thread that sleeps is blocked, and the goroutine that it started waits for it.
    /// let config = Config::new().processors(1).watchdog(Duration::from_millis(20));
    /// let result = config.run(|| {
    ///     let waits = go(|| 42);
    ///     std::thread::sleep(Duration::from_millis(100)); // Is reported.
    ///     waits.join().expect("no panic")
    /// });
    /// assert_eq!(result, Ok(42));
    /// ```
    pub fn watchdog(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.watchdog = Some(limit.into());
        self
    }

    /// The watchdog's time, if it is on.
    pub(crate) fn watchdog_limit(&self) -> Option<Duration> {
        let seconds = std::env::var("FOOTBRIDGE_WATCHDOG").ok().and_then(|v| v.parse::<f64>().ok());
        let by_variable = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let by_default = self.time_slice.map(|_| DEFAULT_WATCHDOG);
        let limit = match (by_variable, self.watchdog) {
            (Some(limit), _) => Some(limit),
            (None, limit) => limit.unwrap_or(by_default),
        };
        limit.filter(|limit| !limit.is_zero())
    }

    /// Whether goroutines have time slices.
    pub(crate) fn has_time_slices(&self) -> bool {
        self.time_slice.is_some()
    }

    /// Whether faults are reported.
    pub(crate) fn reports_faults(&self) -> bool {
        self.fault_reports && std::env::var_os("FOOTBRIDGE_FAULT_REPORTS").is_none_or(|v| v != "0")
    }

    /// Whether goroutines are also preempted by a signal. Without time slices none is.
    pub(crate) fn by_signal(&self) -> Result<BySignal, RunError> {
        if self.async_preemption && !PREEMPTS_JIT_CODE {
            return Err(RunError::AsyncPreemption);
        }
        if let Some(requested) = self.preempt_signal.filter(|&signal| !signals::can_preempt(signal))
        {
            return Err(RunError::PreemptSignal { requested });
        }
        match self.async_preemption && self.time_slice.is_some() {
            true => Ok(BySignal::Yes(self.preempt_signal)),
            false => Ok(BySignal::No),
        }
    }

    /// The vector registers to save.
    pub(crate) fn wanted_vector_state(&self) -> VectorState {
        self.vector_state
    }

    /// The size class of stacks.
    pub(crate) fn class(&self) -> Result<SizeClass, RunError> {
        SizeClass::for_bytes(self.stack_bytes)
            .ok_or(RunError::StackBytes { requested: self.stack_bytes })
    }

    /// The number of processors.
    pub(crate) fn processor_count(&self) -> Result<usize, RunError> {
        match self.processors {
            n @ 1..=MAX_PROCESSORS => Ok(n),
            requested => Err(RunError::Processors { requested }),
        }
    }

    /// The time slice, if there is one.
    pub(crate) fn slice(&self) -> Result<Option<Duration>, RunError> {
        match self.time_slice {
            Some(requested) if requested < MIN_TIME_SLICE => Err(RunError::TimeSlice { requested }),
            slice => Ok(slice),
        }
    }
}

/// Why a run did not start.
///
/// ```
/// use footbridge::runtime::{Config, RunError};
///
/// let error = Config::new().processors(0).run(|| ()).expect_err("one processor at least");
/// assert_eq!(error, RunError::Processors { requested: 0 });
/// assert!(error.to_string().contains("must be from 1 to"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunError {
    /// `run` was called on a thread that belongs to a run.
    Nested,
    /// `Config::processors` is 0 or too large.
    Processors {
        /// The value of the setting.
        requested: usize,
    },
    /// `Config::stack_bytes` is larger than the largest class.
    StackBytes {
        /// The value of the setting.
        requested: usize,
    },
    /// `Config::time_slice` is too short.
    TimeSlice {
        /// The value of the setting.
        requested: Duration,
    },
    /// [`Config::async_preemption`] is on, and this architecture has no stubs for it yet.
    AsyncPreemption,
    /// This process was made by clone(2) or `_Fork`, which call no handler of pthread_atfork(3), by
    /// a process that has used the crate. The C library cannot start threads in such a child.
    BareChild,
    /// [`Config::preempt_signal`] is neither SIGURG, SIGUSR1, SIGUSR2 nor a real-time signal that
    /// the C library leaves to programs.
    PreemptSignal {
        /// The value of the setting.
        requested: i32,
    },
    /// This CPU, or its operating system, has no such registers.
    VectorState {
        /// The value of the setting.
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
            Self::StackBytes { requested } => write!(
                f,
                "Config::stack_bytes is {requested} bytes, and the largest stack has 8 MiB"
            ),
            Self::TimeSlice { requested } => write!(
                f,
                "Config::time_slice is {requested:?}, and must be at least {MIN_TIME_SLICE:?}; \
                 None is no preemption"
            ),
            Self::AsyncPreemption => f.write_str(
                "Config::async_preemption is true, and goroutines are not preempted by a signal on \
                 AArch64 yet; leave it at its default, which is false there: goroutines yield where \
                 they park, in gosched and in checkpoint",
            ),
            Self::BareChild => f.write_str(
                "this process is a child made by clone(2) or _Fork, in which the C library cannot \
                 start threads; call execve(2) first, or make it by fork(2)",
            ),
            Self::PreemptSignal { requested } => write!(
                f,
                "Config::preempt_signal is {requested}, whose default action programs rely on, or \
                 which is no signal of theirs; it may be SIGURG, SIGUSR1, SIGUSR2 or {} to {}, and \
                 None chooses",
                signals::real_time_range().start(),
                signals::real_time_range().end()
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
                "a thread could not be created: {}; check RLIMIT_NPROC and the pids limit of the \
                 container, or, for its stack, RLIMIT_AS, RLIMIT_DATA and RLIMIT_MEMLOCK; lower \
                 Config::processors, or set Config::time_slice to None, which needs one thread less",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Code(error) => Some(error),
            Self::Stack(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn errors_that_wrap_one_have_a_source() {
        let stack = StackError::TooLarge { requested: 1 << 30 };
        let code = JitError::ForkedChild;
        for (error, inner) in [
            (RunError::Stack(stack.clone()), stack.to_string()),
            (RunError::Code(code.clone()), code.to_string()),
        ] {
            assert_eq!(error.source().map(ToString::to_string), Some(inner));
        }
        assert!(RunError::Nested.source().is_none());
    }
}
