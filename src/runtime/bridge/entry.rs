#![allow(unsafe_code, reason = "calls emitted code")]
//! Entries: Rust calls JIT code, with an anchor in the goroutine to which walks come back.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::arity::for_each_arity;
use super::sealed;
use crate::abi::{Convention, Signature};
use crate::jit::stubs::enter::{self, EntrySide};
use crate::jit::{CallResult, Code, Jit, JitError, Scalar, SharedStub, StubId, as_fn, name_of};
use crate::runtime::gmp::stub_env::stub_env;

/// A function pointer type that JIT code can be entered with: `fn(A, B, ...) -> R` of up to twelve
/// [`Scalar`]s.
///
/// The crate implements the trait; no other crate can. `fn(*const T)` is such a type:
///
/// ```
/// # use footbridge::{abi::Convention, jit::{Code, JitError}, runtime::Entry};
/// # /// # Safety
/// # /// The code is of the type.
/// unsafe fn reader(code: &Code) -> Result<Entry<fn(*const u64)>, JitError> {
///     // SAFETY: the caller's promise.
///     unsafe { code.enter(Convention::SystemV) }
/// }
/// ```
///
/// `fn(&T)` is none, since it stands for a type of function for each lifetime. This does not
/// compile:
///
/// ```compile_fail
/// # use footbridge::{abi::Convention, jit::{Code, JitError}, runtime::Entry};
/// # /// # Safety
/// # /// The code is of the type.
/// unsafe fn reader(code: &Code) -> Result<Entry<fn(&u64)>, JitError> {
///     // SAFETY: the caller's promise.
///     unsafe { code.enter(Convention::SystemV) }
/// }
/// ```
///
/// Function pointers with `unsafe` or `extern` are none either, nor those with a parameter that is
/// no scalar:
///
/// ```compile_fail,E0277
/// # use footbridge::{abi::Convention, jit::{Code, JitError}, runtime::Entry};
/// # /// # Safety
/// # /// The code is of the type.
/// unsafe fn reader(code: &Code) -> Result<Entry<extern "C" fn(*const u64)>, JitError> {
///     // SAFETY: the caller's promise.
///     unsafe { code.enter(Convention::SystemV) }
/// }
/// ```
///
/// ```compile_fail,E0277
/// # use footbridge::{abi::Convention, jit::{Code, JitError}, runtime::Entry};
/// # /// # Safety
/// # /// The code is of the type.
/// unsafe fn reader(code: &Code) -> Result<Entry<fn(String)>, JitError> {
///     // SAFETY: the caller's promise.
///     unsafe { code.enter(Convention::SystemV) }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "JIT code cannot be entered as `{Self}`",
    label = "not a function pointer type `fn(A, B, ...) -> R` of at most twelve scalars",
    note = "parameters and results are scalars: integers, floats, raw pointers and the like \
            (`jit::Scalar`)",
    note = "write `fn(*const T)` where `fn(&T)` is meant, and neither `unsafe` nor `extern`"
)]
pub trait EntryType: sealed::EntryType {
    /// The signature that it stands for.
    #[doc(hidden)]
    fn signature() -> Signature;
}

/// A stub by which Rust code on a goroutine calls JIT code as if it were an `F`. Made by
/// [`Code::enter`] and [`Adapter::enter`](crate::runtime::Adapter::enter).
///
/// Clones are handles to the same stub, and so are further entries of the same type to the same
/// code: making and dropping entries takes no memory. A handle keeps the code from being retired.
/// The stub is retired with the code.
///
/// ```
/// use footbridge::abi::Convention;
/// use footbridge::dynasm::{DynasmApi, dynasm};
/// use footbridge::jit::{FrameClass, Jit};
/// use footbridge::runtime::{self, go};
///
/// let jit = Jit::new()?;
/// // SAFETY: an ABIInternal leaf that changes rax only.
/// let sum = unsafe {
///     jit.install("sum", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; add rax, rbx; ret))?
/// };
/// // SAFETY: its convention and types.
/// let sum = unsafe { sum.enter::<fn(u64, u64) -> u64>(Convention::GoAbiInternal)? };
/// let there = sum.clone();
/// let total = runtime::run(move || {
///     // SAFETY: on a goroutine.
///     let handle = go(move || unsafe { there.call(1, 2) });
///     // SAFETY: on a goroutine.
///     unsafe { sum.call(39, handle.join().expect("no panic")) }
/// });
/// assert_eq!(total, 42);
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[must_use = "the code may be retired when its last handle and entry are dropped"]
pub struct Entry<F> {
    stub: StubId,
    target: Arc<SharedStub>,
    types: PhantomData<F>,
}

// SAFETY: an address of code, and a count that threads share; the `F` is no value, it says how the
// code is called.
unsafe impl<F> Send for Entry<F> {}

// SAFETY: shared references reach the address and that count only.
unsafe impl<F> Sync for Entry<F> {}

impl<F> Clone for Entry<F> {
    fn clone(&self) -> Self {
        Self { stub: self.stub, target: Arc::clone(&self.target), types: PhantomData }
    }
}

impl<F> fmt::Debug for Entry<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stub.fmt_as("Entry", f)
    }
}

impl<F> Entry<F> {
    /// Address of the stub: an `extern "C-unwind"` function of F's types, to be called on a
    /// goroutine.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes nothing.
    /// let code = unsafe {
    ///     jit.install("nothing", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// // SAFETY: its convention and types.
    /// let entry = unsafe { code.enter::<fn()>(Convention::SystemV)? };
    /// let stub = lookup(entry.address()).expect("it is published");
    /// assert_eq!((stub.name(), stub.kind()), ("nothing", StubKind::Enter));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn address(&self) -> usize {
        self.stub.start()
    }
}

impl<F: EntryType> Entry<F> {
    /// The entry of F's types to the stub that `target` keeps, which is of `convention`.
    pub(super) fn to(
        jit: Jit,
        convention: Convention,
        target: Arc<SharedStub>,
    ) -> Result<Self, JitError> {
        let signature = F::signature();
        let stub = target.entry(convention, &signature, || {
            let (arena, env, side) = (jit.arena(), stub_env(), EntrySide::Typed);
            let address = target.start();
            enter::emit(arena, env, name_of(address), side, convention, &signature, address)
        })?;
        Ok(Self { stub, target, types: PhantomData })
    }
}

macro_rules! entry_type {
    ($($ty:ident $arg:ident),*) => {
        impl<Ret: CallResult, $($ty: Scalar),*> sealed::EntryType for fn($($ty),*) -> Ret {}

        impl<Ret: CallResult, $($ty: Scalar),*> EntryType for fn($($ty),*) -> Ret {
            fn signature() -> Signature {
                Signature::new(vec![$($ty::TYPE),*], Ret::TYPES)
            }
        }

        impl<Ret: CallResult, $($ty: Scalar),*> Entry<fn($($ty),*) -> Ret> {
            /// Calls the code: see [`Entry`] for an example.
            ///
            /// The code may park and panic; both work as in Rust code. It may also yield when its
            /// time slice is over: a lock that the caller holds stays locked while other goroutines
            /// run on this thread
            /// ([`without_preemption`](crate::runtime::without_preemption) prevents that).
            ///
            /// # Safety
            /// 1. The caller runs on a goroutine. (Elsewhere the process ends with a message.)
            /// 2. The code keeps the promises that were made when the entry was
            ///    ([`Code::enter`], or `Jit::adapter`), and the arguments are what it expects.
            #[inline]
            #[allow(clippy::too_many_arguments, reason = "one for each of the code")]
            pub unsafe fn call(&self, $($arg: $ty),*) -> Ret {
                type Stub<Ret, $($ty),*> = unsafe extern "C-unwind" fn($($ty),*) -> Ret;
                // SAFETY: the stub's entry side was made for exactly these types.
                let stub = unsafe { as_fn::<Stub<Ret, $($ty),*>>(self.stub.start()) };
                // SAFETY: the caller's promise.
                unsafe { stub($($arg),*) }
            }
        }
    };
}

for_each_arity!(entry_type);

impl Code {
    /// Makes a stub by which Rust calls this code: `F` is `fn(A, B, ...) -> R`. [`Entry`] has an
    /// example.
    ///
    /// Unlike a call by [`Self::as_fn`], an entry keeps the goroutine's anchor in its frame. That
    /// is what lets the code call goroutine functions: walks from there continue after the Rust
    /// frames that the entry was called from, and a panic restores the anchor.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    ///
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    /// use footbridge::runtime::{self, jit_frames};
    ///
    /// let (jit, system_v) = (Jit::new()?, Convention::SystemV);
    /// let count = || {
    ///     let mut frames = 0;
    ///     jit_frames(|_| {
    ///         frames += 1;
    ///         ControlFlow::Continue(())
    ///     });
    ///     frames
    /// };
    /// let count = jit.goroutine_fn(system_v, move || -> u64 { count() })?;
    /// let target = count.address();
    /// // SAFETY: a standard frame around a call.
    /// let code = unsafe {
    ///     jit.install("counts", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let entry = unsafe { code.enter::<fn() -> u64>(system_v)? };
    /// // SAFETY: on a goroutine. The frames are those of the goroutine function, `counts` and the
    /// // entry.
    /// assert_eq!(runtime::run(|| unsafe { entry.call() }), 3);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// The convention cannot carry the signature ([`JitError::Assign`]) or is neither `SystemV` nor
    /// `GoAbiInternal` ([`JitError::Signature`]; code of other conventions is entered through an
    /// adapter, by [`Adapter::enter`](crate::runtime::Adapter::enter)), or there is no code space.
    ///
    /// # Safety
    /// This code is a function of that convention and of F's types, and keeps the contract of the
    /// frame class that it was installed with.
    pub unsafe fn enter<F: EntryType>(&self, convention: Convention) -> Result<Entry<F>, JitError> {
        Entry::to(self.jit(), convention, self.share())
    }
}
