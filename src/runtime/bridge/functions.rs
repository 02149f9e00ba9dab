#![allow(unsafe_code, reason = "emitted code calls it")]
//! What JIT code calls on its goroutine: Rust closures, and starts of goroutines.

use std::any::type_name;
use std::fmt;

use super::arity::for_each_arity;
use super::sealed;
use crate::abi::{Convention, Signature};
use crate::jit::stubs::enter::{self, EntrySide};
use crate::jit::stubs::{goroutine_fn, spawn};
use crate::jit::{CallResult, Code, Jit, JitError, Scalar, StubHandle, as_fn, name_of};
use crate::runtime::gmp::name::Name;
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::sched::lifecycle::current_class;
use crate::runtime::stack::SizeClass;
use crate::runtime::task::{Builder, Settings, SpawnFnError, go_with};

/// A Rust closure that JIT code can call as a goroutine function: `Fn(A, B, ...) -> R` of up to
/// twelve [`Scalar`]s, `Send`, `Sync` and `'static`. The crate implements it; no other crate can.
///
/// ```
/// # use footbridge::{abi::Convention, jit::Jit};
/// let length = |text: *const u8, len: usize| if text.is_null() { 0 } else { len };
/// let length = Jit::new()?.goroutine_fn(Convention::SystemV, length)?;
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
///
/// A closure with a parameter that is no scalar is none, nor one that another thread must not call.
/// Neither of these compiles:
///
/// ```compile_fail,E0277
/// # use footbridge::{abi::Convention, jit::Jit};
/// let length = |text: String| text.len();
/// let length = Jit::new()?.goroutine_fn(Convention::SystemV, length)?;
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
///
/// ```compile_fail,E0277
/// # use footbridge::{abi::Convention, jit::Jit};
/// let len = std::rc::Rc::new(1);
/// let length = move || -> usize { *len };
/// let length = Jit::new()?.goroutine_fn(Convention::SystemV, length)?;
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
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
    #[doc(hidden)]
    fn signature() -> Signature;

    /// Address of an `extern "C-unwind"` function with one more argument: the closure.
    #[doc(hidden)]
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

        #[allow(clippy::too_many_arguments, reason = "one for each of the closure")]
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

/// A stub by which JIT code calls a Rust closure. Made by [`Jit::goroutine_fn`].
///
/// Clones are handles to the same stub. The last handle to be dropped retires the stub; the closure
/// and the code stay, since JIT code may still call them.
#[derive(Clone)]
#[must_use = "the stub is retired when its last handle is dropped"]
pub struct GoroutineFn {
    stub: StubHandle,
}

impl GoroutineFn {
    /// Address of the stub: what JIT code calls, in the convention that the stub was made for.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{Jit, StubKind, lookup};
    ///
    /// let nothing = Jit::new()?.goroutine_fn(Convention::SystemV, || ())?;
    /// let stub = lookup(nothing.address()).expect("it is published");
    /// assert_eq!(stub.kind(), StubKind::GoroutineFn);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn address(&self) -> usize {
        self.stub.start()
    }
}

impl fmt::Debug for GoroutineFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stub.fmt_as("GoroutineFn", f)
    }
}

/// A stub by which JIT code starts a goroutine. Made by [`Jit::spawn_fn`], and by
/// [`Builder::spawn_fn`](crate::runtime::Builder::spawn_fn).
///
/// Clones are handles to the same stub. The last handle to be dropped retires the stub. Until then
/// the code that the goroutines run is not retired either.
#[derive(Clone)]
#[must_use = "the stub is retired when its last handle is dropped"]
pub struct SpawnFn {
    stub: StubHandle,
}

impl SpawnFn {
    /// Address of the stub: what JIT code calls.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::dynasm;
    /// use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a leaf.
    /// let body = unsafe {
    ///     jit.install("f", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// let signature = "fn()".parse().expect("a signature");
    /// // SAFETY: its convention and types.
    /// let start = unsafe { jit.spawn_fn(Convention::SystemV, &signature, &body)? };
    /// let stub = lookup(start.address()).expect("it is published");
    /// assert_eq!((stub.name(), stub.kind()), ("f", StubKind::Spawn));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn address(&self) -> usize {
        self.stub.start()
    }
}

impl fmt::Debug for SpawnFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stub.fmt_as("SpawnFn", f)
    }
}

impl Jit {
    /// Makes a stub by which JIT code of `convention` calls `f`, on the goroutine and the stack
    /// that the JIT code runs on.
    ///
    /// `f` may park, yield, start goroutines, enter other JIT code, and panic. A panic unwinds the
    /// JIT frames up to the `catch_unwind` or the goroutine's end. When `f` returns and the time
    /// slice is over, the goroutine yields.
    ///
    /// Only code that runs on a goroutine may call the stub. On another thread the process ends
    /// with a message. (In `GoAbiInternal` r14 says which goroutine runs, and the stub relies on
    /// it; a stub of a [checked](crate::jit::JitBuilder::checked) `Jit` compares it.)
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    /// use footbridge::runtime;
    ///
    /// let (jit, system_v) = (Jit::new()?, Convention::SystemV);
    /// let triple = jit.goroutine_fn(system_v, |n: u64| 3 * n)?;
    /// let target = triple.address();
    /// // SAFETY: a standard frame around a call, which passes the argument register on.
    /// let code = unsafe {
    ///     jit.install("calls triple", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let code = unsafe { code.enter::<fn(u64) -> u64>(system_v)? };
    /// // SAFETY: on a goroutine.
    /// assert_eq!(runtime::run(|| unsafe { code.call(14) }), 42);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// The convention cannot carry the signature ([`JitError::Assign`]) or is neither `SystemV` nor
    /// `GoAbiInternal` ([`JitError::Signature`]), or there is no code space.
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

    /// As [`Self::goroutine_fn`], with a name for tracebacks. The name of `goroutine_fn` is the
    /// name of the closure's type.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{Jit, lookup};
    ///
    /// let jit = Jit::new()?;
    /// let triple = jit.named_goroutine_fn("triple", Convention::SystemV, |n: u64| 3 * n)?;
    /// assert_eq!(lookup(triple.address()).expect("it is published").name(), "triple");
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
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
        let closure = Box::into_raw(Box::new(f));
        let emitted = goroutine_fn::emit(
            self.arena(),
            stub_env(),
            name,
            convention,
            &F::signature(),
            F::shim(),
            closure as u64,
        );
        match emitted {
            Ok(id) => Ok(GoroutineFn { stub: StubHandle::new(id) }),
            Err(error) => {
                // SAFETY: made above; no stub knows it.
                drop(unsafe { Box::from_raw(closure) });
                Err(error)
            }
        }
    }

    /// Makes a stub by which JIT code of `convention` starts a goroutine. The goroutine runs
    /// `code`, which is of the same convention, with the arguments of the call. The call returns
    /// when the goroutine is ready to run.
    ///
    /// The signature has no results: they would have no receiver. The goroutine gets a stack of the
    /// size that its run has by default, and no name:
    /// [`Builder::spawn_fn`](crate::runtime::Builder::spawn_fn) sets both.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    /// use footbridge::runtime::{self, Chan};
    ///
    /// let (jit, system_v) = (Jit::new()?, Convention::SystemV);
    /// let channel = Chan::new(0);
    /// let sender = channel.clone();
    /// let send = jit.goroutine_fn(system_v, move |n: u64| sender.send(n).expect("it is open"))?;
    /// let call = |name, target: usize| {
    ///     // SAFETY: a standard frame around a call, which passes the argument register on.
    ///     unsafe {
    ///         jit.install(name, FrameClass::Standard, |ops| {
    ///             dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
    ///             dynasm!(ops; .arch x64; call extern target; pop rbp; ret);
    ///         })
    ///     }
    /// };
    /// let body = call("body", send.address())?;
    /// // SAFETY: `body` is a function of this type, and a number may go to another thread.
    /// let start = unsafe { jit.spawn_fn(system_v, &"fn(u64)".parse()?, &body)? };
    /// let main = call("main", start.address())?;
    /// // SAFETY: its convention and types.
    /// let main = unsafe { main.enter::<fn(u64)>(system_v)? };
    /// let received = runtime::run(|| {
    ///     // SAFETY: on a goroutine.
    ///     unsafe { main.call(7) };
    ///     channel.recv()
    /// });
    /// assert_eq!(received, Ok(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// The call of the stub panics if there is no memory for the stack of the goroutine.
    ///
    /// # Errors
    /// The convention cannot carry the signature ([`JitError::Assign`]), the signature has results
    /// or parameters that are not scalars ([`JitError::Signature`]), or there is no code space.
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

impl Builder {
    /// Makes a stub by which JIT code starts goroutines, like [`Jit::spawn_fn`]; each of them has
    /// the settings of this builder.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    /// use footbridge::runtime::{self, Builder, Chan};
    ///
    /// let (jit, go) = (Jit::new()?, Convention::GoAbiInternal);
    /// let channel = Chan::new(0);
    /// let sender = channel.clone();
    /// let send = move |n: u64| sender.send(n).expect("open");
    /// let send = jit.named_goroutine_fn("send", go, send)?;
    /// let call = |name, target: usize| {
    ///     // SAFETY: a standard frame around a call, which passes the argument register on.
    ///     unsafe {
    ///         jit.install(name, FrameClass::Standard, |ops| {
    ///             dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
    ///             dynasm!(ops; .arch x64; call extern target; pop rbp; ret)
    ///         })
    ///     }
    /// };
    /// let body = call("body", send.address())?;
    /// let signature = "fn(u64)".parse()?;
    /// let builder = Builder::new().name("of jit").stack_bytes(256 << 10);
    /// // SAFETY: `body` is a function of this type; a number may go to another thread.
    /// let start = unsafe { builder.spawn_fn(&jit, go, &signature, &body)? };
    /// let main = call("main", start.address())?;
    /// // SAFETY: `main` is a function of this type.
    /// let main = unsafe { main.enter::<fn(u64)>(go)? };
    /// let received = runtime::run(|| {
    ///     // SAFETY: on a goroutine.
    ///     unsafe { main.call(7) };
    ///     channel.recv()
    /// });
    /// assert_eq!(received, Ok(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Jit::spawn_fn`]; more than 8 MiB of stack were requested.
    ///
    /// # Safety
    /// As for [`Jit::spawn_fn`].
    pub unsafe fn spawn_fn(
        self,
        jit: &Jit,
        convention: Convention,
        signature: &Signature,
        code: &Code,
    ) -> Result<SpawnFn, SpawnFnError> {
        let (class, name) = self.for_many()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { spawn_fn(jit, convention, signature, code, class, name) }?)
    }
}

/// [`Jit::spawn_fn`] with settings of the goroutines: the class of their stacks (`None`: that of
/// the run in which the stub is called) and their name.
///
/// # Safety
/// As for [`Jit::spawn_fn`].
unsafe fn spawn_fn(
    jit: &Jit,
    convention: Convention,
    signature: &Signature,
    code: &Code,
    class: Option<SizeClass>,
    goroutine_name: Option<Box<str>>,
) -> Result<SpawnFn, JitError> {
    let name = name_of(code.address());
    let env = stub_env();
    let arena = jit.arena();
    let enter =
        enter::emit(arena, env, name, EntrySide::Packed, convention, signature, code.address())?;
    let argument_count = signature.params().len();
    let start = leak(Start { enter: enter.start(), argument_count, class, name: goroutine_name });
    let target = start_goroutine as *const () as usize;
    let context = std::ptr::from_ref(start) as u64;
    let id = spawn::emit(arena, env, name, convention, signature, target, context)?;
    Ok(SpawnFn { stub: StubHandle::with_target(id, code.share()) })
}

/// What a spawn stub is bound to.
struct Start {
    /// Address of an entry to the code, whose entry side is [`EntrySide::Packed`]. It is never
    /// retired: goroutines may be waiting to run it when the spawn stub is.
    enter: usize,
    /// Words in the packed buffer of arguments: one for each.
    argument_count: usize,
    /// Class of the stacks; `None`: that of the run.
    class: Option<SizeClass>,
    /// Name of the goroutines.
    name: Option<Box<str>>,
}

/// The target of spawn stubs. `arguments` is the packed buffer, in the stub's frame.
unsafe extern "C-unwind" fn start_goroutine(start: *const Start, arguments: *const u64) {
    type Enter = unsafe extern "C-unwind" fn(*const u64, *mut u64);
    // SAFETY: the stub passes the `Start` that it was made with, which is leaked, and a buffer of
    // as many words as the signature has parameters.
    let (start, enter, arguments): (&Start, Enter, Box<[u64]>) = unsafe {
        let arguments = std::slice::from_raw_parts(arguments, (*start).argument_count);
        (&*start, as_fn((*start).enter), arguments.into())
    };
    let class = start.class.unwrap_or_else(current_class);
    let settings = Settings { class, name: start.name.clone().map(Name::new), migratable: false };
    // SAFETY: the entry has a packed entry side, and the caller of `spawn_fn` promised that the
    // code is of the signature and that the arguments may go to another thread; there are no
    // results.
    let run = move || unsafe { enter(arguments.as_ptr(), std::ptr::null_mut()) };
    let started = go_with(settings, run);
    if let Err(error) = started {
        panic!("{error}");
    }
}

/// Moves what a stub refers to into memory that is never freed: frames may return to the stub's
/// code, and lookups find it, for the rest of the process.
pub(super) fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
