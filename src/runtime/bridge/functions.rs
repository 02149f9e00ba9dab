#![allow(unsafe_code, reason = "calls emitted code and is called")]
//! JIT code and Rust on one goroutine: goroutine functions, entries, and starts from JIT code.

use std::any::type_name;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::abi::{Convention, Signature};
use crate::jit::scalar::{CallResult, Scalar};
use crate::jit::stubs::enter::{self, EntrySide};
use crate::jit::stubs::{goroutine_fn, spawn};
use crate::jit::{Code, Installed, Jit, JitError, StubId, as_fn};
use crate::runtime::gmp::name::Name;
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::sched::lifecycle::current_class;
use crate::runtime::stack::SizeClass;
use crate::runtime::task::{Settings, go_with};

/// Calls `$each!` with the type parameters and argument names of every arity up to 12.
macro_rules! for_each_arity {
    ($each:ident) => {
        $each!();
        $each!(A a);
        $each!(A a, B b);
        $each!(A a, B b, C c);
        $each!(A a, B b, C c, D d);
        $each!(A a, B b, C c, D d, E e);
        $each!(A a, B b, C c, D d, E e, F f);
        $each!(A a, B b, C c, D d, E e, F f, G g);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k, L l);
    };
}

/// What keeps other crates from implementing the traits of this file. Public for this crate's own
/// tests, which stand in for closures with signatures that are known at run time only.
#[doc(hidden)]
pub mod sealed {
    pub trait GoroutineClosure<Args> {}
    pub trait EntryType {}
}

/// A Rust closure that JIT code can call as a goroutine function: `Fn(A, B, ...) -> R` of up to
/// twelve [`Scalar`]s. The crate implements it; no other crate can.
///
/// # Safety
/// `shim` is the address of an `extern "C-unwind"` function of `signature` with one more parameter
/// at the end: a pointer to `Self`.
#[diagnostic::on_unimplemented(
    message = "JIT code cannot call `{Self}` as a goroutine function",
    label = "not a closure `Fn(A, B, ...) -> R` of at most twelve scalars",
    note = "parameters and results are scalars: integers, floats, raw pointers and the like \
            (`jit::Scalar`)",
    note = "the closure is called from several threads and kept for ever: it must be `Fn`, `Send`, \
            `Sync` and `'static`"
)]
pub unsafe trait GoroutineClosure<Args>:
    sealed::GoroutineClosure<Args> + Send + Sync + 'static
{
    /// The signature that JIT code calls it with.
    fn signature() -> Signature;

    /// Address of an `extern "C-unwind"` function with one more argument: the closure.
    fn shim() -> usize;
}

macro_rules! goroutine_closure {
    ($($ty:ident $arg:ident),*) => {
        impl<Func, Ret, $($ty),*> sealed::GoroutineClosure<(Ret, $($ty,)*)> for Func
        where
            Func: Fn($($ty),*) -> Ret + Send + Sync + 'static,
            Ret: CallResult,
            $($ty: Scalar,)*
        {
        }

        #[allow(clippy::too_many_arguments, reason = "as many as the closure has")]
        // SAFETY: `shim` below is generic over the same types as `signature`, and each `Scalar` is
        // passed as its type.
        unsafe impl<Func, Ret, $($ty),*> GoroutineClosure<(Ret, $($ty,)*)> for Func
        where
            Func: Fn($($ty),*) -> Ret + Send + Sync + 'static,
            Ret: CallResult,
            $($ty: Scalar,)*
        {
            fn signature() -> Signature {
                Signature::new(vec![$($ty::TYPE),*], Ret::TYPES)
            }

            fn shim() -> usize {
                unsafe extern "C-unwind" fn shim<Func, Ret, $($ty),*>(
                    $($arg: $ty,)* closure: *const Func
                ) -> Ret
                where
                    Func: Fn($($ty),*) -> Ret,
                {
                    // SAFETY: the stub passes the closure that it was made with, which is leaked.
                    unsafe { (*closure)($($arg),*) }
                }
                shim::<Func, Ret, $($ty),*> as *const () as usize
            }
        }
    };
}

for_each_arity!(goroutine_closure);

/// A stub by which JIT code calls a Rust closure. Dropping it retires the stub; the closure and
/// the code stay, since JIT code may still call them.
pub struct GoroutineFn {
    id: StubId,
}

impl GoroutineFn {
    /// What JIT code calls.
    pub fn address(&self) -> usize {
        self.id.start()
    }
}

impl Drop for GoroutineFn {
    fn drop(&mut self) {
        self.id.retire();
    }
}

/// A stub by which JIT code starts a goroutine. Dropping it retires the stub.
pub struct SpawnFn {
    id: StubId,
    _code: Arc<Installed>,
}

impl SpawnFn {
    /// What JIT code calls.
    pub fn address(&self) -> usize {
        self.id.start()
    }
}

impl Drop for SpawnFn {
    fn drop(&mut self) {
        self.id.retire();
    }
}

/// A function pointer type that code can be entered with: `fn(A, B, ...) -> R` of up to twelve
/// [`Scalar`]s.
///
/// `fn(&T)` is not one, since it stands for a type of function for each lifetime; write
/// `fn(*const T)`. The crate implements the trait; no other crate can.
#[diagnostic::on_unimplemented(
    message = "JIT code cannot be entered as `{Self}`",
    label = "not a function pointer type `fn(A, B, ...) -> R` of at most twelve scalars",
    note = "parameters and results are scalars: integers, floats, raw pointers and the like \
            (`jit::Scalar`)",
    note = "write `fn(*const T)` where `fn(&T)` is meant, and neither `unsafe` nor `extern`"
)]
pub trait EntryType: sealed::EntryType {
    /// The signature it stands for.
    fn signature() -> Signature;
}

/// A stub by which Rust code on a goroutine calls JIT code as if it were an `F`. Dropping it
/// retires the stub.
pub struct Entry<F> {
    id: StubId,
    types: PhantomData<F>,
    _code: Arc<Installed>,
}

// SAFETY: an address of code; F says how it is called.
unsafe impl<F> Send for Entry<F> {}

// SAFETY: as above.
unsafe impl<F> Sync for Entry<F> {}

impl<F> Entry<F> {
    /// Address of the stub: an `extern "C-unwind"` function of F's types.
    pub fn address(&self) -> usize {
        self.id.start()
    }
}

impl<F> Drop for Entry<F> {
    fn drop(&mut self) {
        self.id.retire();
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
            /// Calls the code. It may park and panic; both work as in Rust code. It may also give
            /// way when its time slice is over: a lock that is held meanwhile stays locked while
            /// others run on this thread (see
            /// [`without_preemption`](super::without_preemption)).
            ///
            /// # Safety
            /// 1. The caller runs on a goroutine. (Elsewhere the process ends with a message.)
            /// 2. The code keeps the promises it was entered under (`Code::enter`), and the
            ///    arguments are what it expects.
            #[inline]
            #[allow(clippy::too_many_arguments, reason = "as many as the code has")]
            pub unsafe fn call(&self, $($arg: $ty),*) -> Ret {
                type Stub<Ret, $($ty),*> = unsafe extern "C-unwind" fn($($ty),*) -> Ret;
                // SAFETY: the stub's entry side was made for exactly these types.
                let stub = unsafe { as_fn::<Stub<Ret, $($ty),*>>(self.id.start()) };
                // SAFETY: the caller's promise.
                unsafe { stub($($arg),*) }
            }
        }
    };
}

for_each_arity!(entry_type);

impl Jit {
    /// Makes a stub by which JIT code of `convention` calls `f`, on the goroutine that runs it.
    ///
    /// When `f` returns, the goroutine gives way if its time slice is over.
    ///
    /// `f` may park, yield, spawn, enter other JIT code, and panic: a panic passes through the
    /// JIT frames to whoever catches it. Only code that runs on a goroutine may call the stub; on
    /// another thread the process ends with a message (in `GoAbiInternal`, where r14 says which
    /// goroutine runs, it is the caller that must see to that).
    ///
    /// # Errors
    /// The convention cannot carry the signature, or there is no code space.
    pub fn goroutine_fn<Args, F>(
        &self,
        convention: Convention,
        f: F,
    ) -> Result<GoroutineFn, JitError>
    where
        F: GoroutineClosure<Args>,
    {
        self.named_goroutine_fn(type_name::<F>(), convention, f)
    }

    /// As [`Self::goroutine_fn`], under a name of the caller's for tracebacks.
    ///
    /// # Errors
    /// As [`Self::goroutine_fn`].
    pub fn named_goroutine_fn<Args, F>(
        &self,
        name: &str,
        convention: Convention,
        f: F,
    ) -> Result<GoroutineFn, JitError>
    where
        F: GoroutineClosure<Args>,
    {
        let signature = leak(F::signature());
        let closure = Box::into_raw(Box::new(f));
        let emitted = goroutine_fn::emit(
            self.arena(),
            stub_env(),
            name,
            convention,
            signature,
            F::shim(),
            closure as u64,
        );
        match emitted {
            Ok(id) => Ok(GoroutineFn { id }),
            Err(error) => {
                // SAFETY: made above; no stub knows it.
                drop(unsafe { Box::from_raw(closure) });
                Err(error)
            }
        }
    }

    /// Makes a stub by which JIT code of `convention` starts a goroutine that runs `code`, which is
    /// of the same convention, with the arguments of the call.
    ///
    /// The signature has no results: nobody would receive them.
    ///
    /// # Errors
    /// The convention cannot carry the signature, the signature has results, or there is no code
    /// space.
    ///
    /// # Safety
    /// 1. `code` is a function of that convention and signature.
    /// 2. What the arguments mean may go to another thread, and lives as long as the goroutine
    ///    needs it.
    pub unsafe fn spawn_fn(
        &self,
        convention: Convention,
        signature: &Signature,
        code: &Code,
    ) -> Result<SpawnFn, JitError> {
        // SAFETY: the caller's promise.
        unsafe { spawn_fn(self, convention, signature, code, None, None) }
    }
}

/// [`Jit::spawn_fn`], with stacks of a class, or of that of the run which the caller is of, and with a
/// name for each goroutine.
///
/// # Safety
/// As for [`Jit::spawn_fn`].
pub(crate) unsafe fn spawn_fn(
    jit: &Jit,
    convention: Convention,
    signature: &Signature,
    code: &Code,
    class: Option<SizeClass>,
    goroutine_name: Option<Box<str>>,
) -> Result<SpawnFn, JitError> {
    let signature = leak(signature.clone());
    let name = crate::jit::lookup(code.address()).map_or("?", |stub| stub.name());
    let env = stub_env();
    let arena = jit.arena();
    let enter =
        enter::emit(arena, env, name, EntrySide::Words, convention, signature, code.address())?;
    let words = signature.params().len();
    let start = leak(Start { enter: enter.start(), words, class, name: goroutine_name });
    let target = start_goroutine as *const () as usize;
    let context = std::ptr::from_ref(start) as u64;
    let id = spawn::emit(arena, env, name, convention, signature, target, context)?;
    Ok(SpawnFn { id, _code: code.share() })
}

impl Code {
    /// Makes a stub by which Rust calls this code: `F` is `fn(A, B, ...) -> R`.
    ///
    /// # Errors
    /// The convention cannot carry the signature, or there is no code space.
    ///
    /// # Safety
    /// This code is a function of that convention and of F's types, and keeps the law of the frame
    /// class that it was installed with.
    pub unsafe fn enter<F: EntryType>(&self, convention: Convention) -> Result<Entry<F>, JitError> {
        let signature = leak(F::signature());
        let name = crate::jit::lookup(self.address()).map_or("?", |stub| stub.name());
        let id = enter::emit(
            self.jit().arena(),
            stub_env(),
            name,
            EntrySide::Typed,
            convention,
            signature,
            self.address(),
        )?;
        Ok(Entry { id, types: PhantomData, _code: self.share() })
    }
}

/// What a spawn stub is bound to.
pub(crate) struct Start {
    /// A stub of the word form that enters the code.
    enter: usize,
    words: usize,
    /// Of the stacks; `None`: that of the run.
    class: Option<SizeClass>,
    /// Of the goroutines.
    name: Option<Box<str>>,
}

/// Called by spawn stubs.
unsafe extern "C-unwind" fn start_goroutine(start: *const Start, arguments: *const u64) {
    type Enter = unsafe extern "C-unwind" fn(*const u64, *mut u64);
    // SAFETY: the stub passes what it was made with, and a record of as many words.
    let (start, enter, arguments): (&Start, Enter, Box<[u64]>) = unsafe {
        let arguments = std::slice::from_raw_parts(arguments, (*start).words);
        (&*start, as_fn((*start).enter), arguments.into())
    };
    let class = start.class.unwrap_or_else(current_class);
    let settings = Settings { class, name: start.name.clone().map(Name::new), migratable: false };
    // SAFETY: by the contract of `spawn_fn`; there are no results.
    let run = move || unsafe { enter(arguments.as_ptr(), std::ptr::null_mut()) };
    let started = go_with(settings, run);
    if let Err(error) = started {
        panic!("{error}");
    }
}

/// What stubs are bound to lives as long as the code: for ever.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
