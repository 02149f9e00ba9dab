#![allow(unsafe_code, reason = "passes the promise of migratable goroutines on")]
//! Starting goroutines with settings of their own.

use std::fmt;

use super::spawn::spawn;

use crate::jit::JitError;
use crate::runtime::gmp::name::Name;
use crate::runtime::sched::lifecycle::current_class;
use crate::runtime::stack::{SizeClass, StackError};
use crate::runtime::task::join::JoinHandle;
use crate::runtime::task::scope::{Scope, ScopedJoinHandle};
use crate::runtime::task::spawn::{Settings, SpawnError, go_with};

/// Starts goroutines that are not like the others of their run, as `std::thread::Builder` does
/// threads.
///
/// ```
/// use footbridge::runtime::{self, Builder};
///
/// fn deep(n: u32) -> u32 {
///     let frame = std::hint::black_box([n; 100]);
///     if n == 0 { 0 } else { deep(n - 1) + 1 + (frame[0] - n) }
/// }
///
/// runtime::run(|| {
///     let builder = Builder::new().name("deep").stack_bytes(8 << 20);
///     let handle = builder.go(|| deep(5_000)).expect("memory");
///     assert_eq!(handle.join().expect("no panic"), 5_000);
/// });
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a builder starts nothing by itself"]
pub struct Builder {
    name: Option<Box<str>>,
    stack_bytes: Option<usize>,
}

impl Builder {
    /// A builder with the settings of the run.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// let sum = runtime::run(|| Builder::new().go(|| 1 + 1).expect("memory").join());
    /// assert_eq!(sum.expect("no panic"), 2);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// The name of the goroutine, any text, for people: tracebacks and the reports of overflows and
    /// deadlocks show it (`goroutine 7 "pump" [chan receive]:`), and
    /// [`JoinHandle::name`] and [`Goroutine::name`](crate::runtime::Goroutine::name) return it.
    ///
    /// When a goroutine with a name panics, a line `in goroutine 7 "pump":` precedes the message.
    /// For that the first start of a goroutine with a name puts a panic hook in front of the one
    /// that is installed then. A hook that replaces it later can use
    /// [`this_goroutine`](crate::runtime::this_goroutine).
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder, Chan, gosched, traceback_all};
    ///
    /// runtime::run(|| {
    ///     let channel = Chan::<u64>::new(0);
    ///     let receiver = channel.clone();
    ///     let pump = Builder::new().name("pump").go(move || receiver.recv()).expect("memory");
    ///     let head = format!("goroutine {} \"pump\" [chan receive]:", pump.id());
    ///     while !traceback_all().iter().any(|trace| trace.to_string().starts_with(&head)) {
    ///         gosched();
    ///     }
    /// });
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into().into_boxed_str());
        self
    }

    /// Usable bytes of the stack, rounded up to the next of 16 KiB, 64 KiB, 256 KiB, 1 MiB and
    /// 8 MiB. The default is that of the run.
    ///
    /// Stacks never grow; only pages that are touched cost memory. 16 KiB are for goroutines that
    /// run JIT code and little else: the panic handler of the standard library needs more to print
    /// a backtrace. Each stack has a guard of at least 64 KiB, which a C function with a smaller
    /// frame cannot step over.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// let small = runtime::run(|| Builder::new().stack_bytes(16 << 10).go(|| ()).map(drop));
    /// assert!(small.is_ok());
    /// ```
    pub fn stack_bytes(mut self, bytes: usize) -> Self {
        self.stack_bytes = Some(bytes);
        self
    }

    /// # Panics
    /// On a thread that no run owns.
    #[track_caller]
    fn settings(self, migratable: bool) -> Result<Settings, StackError> {
        let of_run = current_class();
        let class = self.stack_bytes.map_or(Ok(of_run), SizeClass::for_request)?;
        let name = self.name.map(|name| {
            super::panic_hook::install();
            Name::new(name)
        });
        Ok(Settings { class, name, migratable })
    }

    /// Starts a goroutine, like [`go`](super::go).
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// runtime::run(|| {
    ///     let handle = Builder::new().name("answer").go(|| 42).expect("memory");
    ///     assert_eq!(handle.join().expect("no panic"), 42);
    /// });
    /// ```
    ///
    /// # Errors
    /// More than 8 MiB were requested, or there is no memory for a stack. The error contains the
    /// closure.
    ///
    /// # Panics
    /// On a thread that no run owns.
    #[track_caller]
    pub fn go<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.settings(false) {
            Ok(settings) => go_with(settings, f),
            Err(error) => Err(SpawnError { error, f }),
        }
    }

    /// Starts a goroutine in a scope, like [`Scope::go`].
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// let mut text = String::new();
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         let write = || text.push_str("written");
    ///         Builder::new().name("writer").go_scoped(s, write).expect("memory");
    ///     });
    /// });
    /// assert_eq!(text, "written");
    /// ```
    ///
    /// # Errors
    /// More than 8 MiB were requested, or there is no memory for a stack. The error contains the
    /// closure.
    ///
    /// # Panics
    /// On a thread that no run owns; in another run than the one that the scope was opened in.
    #[track_caller]
    pub fn go_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        match self.settings(false) {
            Ok(settings) => scope.go_with(settings, f),
            Err(error) => Err(SpawnError { error, f }),
        }
    }

    /// The class of the stack, if it was set, and the name, for a stub that starts many goroutines.
    pub(crate) fn for_many(self) -> Result<(Option<SizeClass>, Option<Box<str>>), StackError> {
        let class = self.stack_bytes.map(SizeClass::for_request).transpose()?;
        if self.name.is_some() {
            super::panic_hook::install();
        }
        Ok((class, self.name))
    }

    /// Starts a goroutine that may continue on another thread after each park.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder, gosched};
    /// runtime::run(|| {
    ///     let body = || {
    ///         gosched();
    ///         42
    ///     };
    ///     // SAFETY: the number is the only value over the park, and no thread-local is used.
    ///     let handle = unsafe { Builder::new().go_migratable(body) }.expect("memory");
    ///     assert_eq!(handle.join().expect("no panic"), 42);
    /// });
    /// ```
    ///
    /// # Errors
    /// As [`Self::go`].
    ///
    /// # Safety
    /// From a park on, the code of the goroutine may run on another thread. JIT code parks in this
    /// sense where it polls, where it is interrupted, and when a goroutine function returns to it;
    /// so does [`checkpoint`](crate::runtime::checkpoint). Therefore, in all that the goroutine
    /// calls:
    ///
    /// 1. No value that is not `Send`, and no reference to a `thread_local!`, is alive over a park;
    ///    nor is a value that is not `Send` in a [`goroutine_local!`](crate::goroutine_local).
    /// 2. No function uses a `thread_local!` both before and after a park, unless by way of a
    ///    function that is never inlined: compilers keep the *address* of a thread-local in a
    ///    register over a call.
    ///
    /// # Panics
    /// On a thread that no run owns.
    #[track_caller]
    pub unsafe fn go_migratable<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.settings(true) {
            // SAFETY: nothing is borrowed, both types may go to another thread, and the caller
            // promises the rest.
            Ok(settings) => unsafe { spawn(settings, f) }.map(JoinHandle),
            Err(error) => Err(SpawnError { error, f }),
        }
    }
}

/// Why [`Builder::spawn_fn`] made no stub.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnFnError {
    /// There are no stacks as requested.
    Stack(StackError),
    /// The stub could not be made.
    Jit(JitError),
}

impl fmt::Display for SpawnFnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stack(error) => write!(f, "no stub that starts goroutines: {error}"),
            Self::Jit(error) => write!(f, "no stub that starts goroutines: {error}"),
        }
    }
}

impl std::error::Error for SpawnFnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Stack(error) => Some(error),
            Self::Jit(error) => Some(error),
        }
    }
}

impl From<StackError> for SpawnFnError {
    fn from(error: StackError) -> Self {
        Self::Stack(error)
    }
}

impl From<JitError> for SpawnFnError {
    fn from(error: JitError) -> Self {
        Self::Jit(error)
    }
}
