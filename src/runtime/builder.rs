#![allow(unsafe_code, reason = "passes the promise of migratable goroutines on")]
//! Settings of one goroutine.

use super::bridge::{SpawnFn, spawn_fn};
use super::join::{JoinHandle, Scope, ScopedJoinHandle, SpawnError, go_in, go_migratable_in};
use super::life::current_class;
use super::stack::{LARGEST_BYTES, SizeClass, StackError};
use crate::abi::{Convention, Signature};
use crate::jit::{Code, Jit, JitError};

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
///     let handle = Builder::new().stack_bytes(8 << 20).go(|| deep(5_000)).expect("memory");
///     assert_eq!(handle.join().expect("no panic"), 5_000);
/// });
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a builder starts nothing by itself"]
pub struct Builder {
    stack_bytes: Option<usize>,
}

impl Builder {
    /// The settings of the run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Usable bytes of the stack, rounded up to the next of 16 KiB, 64 KiB, 256 KiB, 1 MiB and
    /// 8 MiB. The default is that of the run.
    ///
    /// Stacks never grow; only pages that are touched cost memory. 16 KiB are for goroutines that
    /// run JIT code and little else: the panic handler of the standard library needs more to print
    /// a backtrace. From 256 KiB on a stack has a guard of 64 KiB, for C code that was compiled
    /// without stack probes.
    pub fn stack_bytes(mut self, bytes: usize) -> Self {
        self.stack_bytes = Some(bytes);
        self
    }

    /// The class that was asked for, or that of the run.
    fn class(&self) -> Result<SizeClass, StackError> {
        let of_run = current_class();
        self.stack_bytes.map_or(Ok(of_run), SizeClass::for_request)
    }

    /// Starts a goroutine, like [`go`](super::go).
    ///
    /// # Errors
    /// More than 8 MiB were asked for, or there is no memory for a stack. The closure comes back.
    ///
    /// # Panics
    /// On a thread that no run owns.
    pub fn go<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.class() {
            Ok(class) => go_in(class, f),
            Err(error) => Err(SpawnError { error, f }),
        }
    }

    /// Starts a goroutine in a scope, like [`Scope::go`].
    ///
    /// # Errors
    /// More than 8 MiB were asked for, or there is no memory for a stack. The closure is dropped.
    ///
    /// # Panics
    /// On a thread that no run owns.
    pub fn go_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, StackError>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        scope.go_in(self.class()?, f)
    }

    /// Starts a goroutine that may continue on another thread after each park, like
    /// [`go_migratable`](super::go_migratable).
    ///
    /// # Errors
    /// As [`Self::go`].
    ///
    /// # Safety
    /// As for [`go_migratable`](super::go_migratable).
    ///
    /// # Panics
    /// On a thread that no run owns.
    pub unsafe fn go_migratable<F, T>(self, f: F) -> Result<JoinHandle<T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.class() {
            // SAFETY: the caller's promise.
            Ok(class) => unsafe { go_migratable_in(class, f) },
            Err(error) => Err(SpawnError { error, f }),
        }
    }

    /// Makes a stub by which JIT code starts goroutines, like [`Jit::spawn_fn`].
    ///
    /// # Errors
    /// As [`Jit::spawn_fn`]; more than 8 MiB of stack were asked for.
    ///
    /// # Safety
    /// As for [`Jit::spawn_fn`].
    pub unsafe fn spawn_fn(
        self,
        jit: &Jit,
        convention: Convention,
        signature: &Signature,
        code: &Code,
    ) -> Result<SpawnFn, JitError> {
        let class = |requested_bytes| {
            let too_large =
                JitError::StackTooLarge { requested_bytes, largest_bytes: LARGEST_BYTES };
            SizeClass::for_request(requested_bytes).map_err(|_| too_large)
        };
        let class = self.stack_bytes.map(class).transpose()?;
        // SAFETY: the caller's promise.
        unsafe { spawn_fn(jit, convention, signature, code, class) }
    }
}
