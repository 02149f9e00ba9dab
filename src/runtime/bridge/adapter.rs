#![allow(unsafe_code, reason = "hands out functions of the types that its caller says")]
//! Adapters in this process's code memory.
//!
//! `jit/stubs/adapter` plans and emits them. From the runtime they need the place of the current
//! goroutine, which some conventions keep in a register.

use std::fmt;
use std::sync::Arc;

use super::entry::{Entry, EntryType};
use crate::abi::{Convention, Signature};
use crate::jit::stubs::adapter::{AdapterSpec, Bind, Binding, Shape, shape};
use crate::jit::stubs::require_target;
use crate::jit::{Jit, JitError, StubHandle, StubKind, StubSpec, as_fn};
use crate::runtime::gmp::stub_env::stub_env;

/// A stub that is entered in one convention and calls its target in another one. Made by
/// [`Jit::adapter`] and [`Jit::bound_adapter`].
///
/// Clones are handles to the same stub. The stub is retired when the last handle is dropped, and
/// the last [`Entry`] to it: calls that run may finish, but none may start. Its room is not used
/// again.
#[derive(Clone)]
#[must_use = "the stub is retired when its last handle is dropped"]
pub struct Adapter {
    stub: StubHandle,
    jit: Jit,
    shape: Arc<Shape>,
}

impl Adapter {
    /// Address of the stub: what emitted code calls, in the convention of the entry.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// extern "win64" fn double(n: i64) -> i64 {
    ///     2 * n
    /// }
    ///
    /// let (jit, signature) = (Jit::new()?, "fn(i64) -> i64".parse()?);
    /// // SAFETY: `double` is a Win64 function of that signature.
    /// let adapter = unsafe {
    ///     jit.adapter(&signature, Convention::SystemV, Convention::Win64, double as usize)?
    /// };
    /// let target = adapter.address();
    /// // SAFETY: a System V function with a standard frame around a call.
    /// let code = unsafe {
    ///     jit.install("four times", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target);
    ///         dynasm!(ops; .arch x64; mov rdi, rax; call extern target; pop rbp; ret);
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let four_times = unsafe { code.as_fn::<extern "sysv64" fn(i64) -> i64>() };
    /// assert_eq!(four_times(5), 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn address(&self) -> usize {
        self.stub.start()
    }

    /// The stub as a function pointer of type `F`.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::Jit;
    ///
    /// extern "win64" fn first_of_five(a: i64, _: i64, _: i64, _: i64, _: i64) -> i64 {
    ///     a
    /// }
    ///
    /// let signature = "fn(i64, i64, i64, i64, i64) -> i64".parse()?;
    /// let (entry, target) = (Convention::SystemV, Convention::Win64);
    /// // SAFETY: a Win64 function of that signature.
    /// let adapter = unsafe {
    ///     Jit::new()?.adapter(&signature, entry, target, first_of_five as usize)?
    /// };
    /// type Five = extern "sysv64" fn(i64, i64, i64, i64, i64) -> i64;
    /// // SAFETY: the entry's convention and types; any call is sound, and `adapter` outlives it.
    /// let first = unsafe { adapter.as_fn::<Five>() };
    /// assert_eq!(first(1, 2, 3, 4, 5), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// 1. `F` is a function pointer type of the entry's convention (`extern "sysv64"`,
    ///    `extern "win64"`), or its `-unwind` form, and of the adapter's signature.
    /// 2. If the target may unwind, `F` is the `-unwind` form.
    /// 3. No call of the pointer starts after the last handle to this adapter was dropped.
    /// 4. `F` is an `unsafe fn`, unless every call of it is sound: see the conditions of
    ///    [`Jit::adapter`] about the target and the thread.
    pub unsafe fn as_fn<F: Copy>(&self) -> F {
        // SAFETY: 1. is the caller's promise, and so are 2. to 4., which are about calls.
        unsafe { as_fn(self.stub.start()) }
    }

    /// Makes a stub by which Rust on a goroutine calls this adapter: `F` is `fn(A, B, ...) -> R`,
    /// of the types of the adapter's signature.
    ///
    /// This is how Rust calls a target that calls goroutine functions: JIT code in a convention
    /// that [`Code::enter`](crate::jit::Code::enter) does not enter, or that expects a bound word.
    /// An adapter leaves no anchor; the entry keeps the goroutine's anchor in its frame. So
    /// whatever the target calls may park and panic, and walks from its goroutine functions find
    /// the frames of the target, of the adapter and of the entry, and then those of JIT code
    /// further up.
    ///
    /// A native target may park and panic, too. It leaves no anchor by itself, though: an exact
    /// walk from it ([`jit_frames`](crate::runtime::jit_frames)) starts at the JIT code further up.
    /// Tracebacks have the frames of the adapter and of the entry.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{Bind, FrameClass, Jit};
    /// use footbridge::runtime::{self, gosched};
    ///
    /// let (jit, go) = (Jit::new()?, Convention::GoAbiInternal);
    /// let double = jit.goroutine_fn(go, |n: u64| {
    ///     gosched();
    ///     2 * n
    /// })?;
    /// let target = double.address();
    /// // A Go closure, whose address is in rdx. It has one captured variable, and adds that.
    /// // SAFETY: a standard frame around a call, which keeps the variable over it.
    /// let closure = unsafe {
    ///     jit.install("closure", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16);
    ///         dynasm!(ops; .arch x64; mov rdx, [rdx + 8]; mov [rbp - 8], rdx);
    ///         dynasm!(ops; .arch x64; call extern target; add rax, [rbp - 8]; leave; ret);
    ///     })?
    /// };
    /// static FUNCVAL: [u64; 2] = [0, 2];
    /// let bind = Bind::Closure(&raw const FUNCVAL as u64);
    /// // SAFETY: `closure` is of that convention and signature, and expects that word.
    /// let adapter = unsafe {
    ///     let signature = "fn(u64) -> u64".parse()?;
    ///     jit.bound_adapter(&signature, Convention::SystemV, go, closure.address(), bind)?
    /// };
    /// let entry = adapter.enter::<fn(u64) -> u64>()?;
    /// // SAFETY: on a goroutine.
    /// assert_eq!(runtime::run(|| unsafe { entry.call(20) }), 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The types of `F` are not those of the signature ([`JitError::EntryTypes`]), the adapter is
    /// entered in a convention other than `SystemV` and `GoAbiInternal` ([`JitError::Signature`]),
    /// or there is no code space.
    pub fn enter<F: EntryType>(&self) -> Result<Entry<F>, JitError> {
        let (given, expected) = (F::signature(), self.shape.signature);
        if given != *expected {
            return Err(JitError::EntryTypes {
                expected: expected.to_string(),
                given: given.to_string(),
            });
        }
        Entry::to(self.jit, self.shape.entry, self.stub.share())
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stub.fmt_as("Adapter", f)
    }
}

impl Jit {
    /// Makes a stub that is entered in the convention `entry` and calls the function at `address`,
    /// which is of the convention `target`, with the same arguments. Results return the same way.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::Jit;
    ///
    /// extern "win64" fn sub(a: i64, b: f32) -> i64 {
    ///     a - b as i64
    /// }
    ///
    /// let signature = "fn(i64, f32) -> i64".parse()?;
    /// // SAFETY: `sub` is a Win64 function of that signature.
    /// let adapter = unsafe {
    ///     Jit::new()?.adapter(&signature, Convention::SystemV, Convention::Win64, sub as usize)?
    /// };
    /// // SAFETY: the entry's convention and types.
    /// let sub = unsafe { adapter.as_fn::<extern "sysv64" fn(i64, f32) -> i64>() };
    /// assert_eq!(sub(50, 8.0), 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Any of the four conventions of amd64 goes with any other, and with itself. The first adapter
    /// of a shape (two conventions and a signature) is planned and emitted, each further one is a
    /// copy. An adapter has no frame whenever nothing forces one: see
    /// [`Plan::tail`](crate::abi::Plan::tail).
    ///
    /// The target runs where the adapter was called: on the same stack, with the same
    /// floating-point control modes. A panic passes, and its caller's landing pad finds all
    /// registers that the entry's convention preserves, also where that is Win64: the unwinders of
    /// Linux restore no vector registers, the adapter does. (A function of another compiler that
    /// saves those of Win64 itself, and has no landing pad, gives its caller none of them back.)
    ///
    /// # Errors
    /// A convention cannot carry the signature ([`JitError::Assign`]), there are no moves between
    /// the two ([`JitError::Plan`]), this processor lacks the registers or a convention is one of
    /// another machine ([`JitError::Signature`]), `address` is null ([`JitError::NullTarget`]), or
    /// there is no code space.
    ///
    /// # Safety
    /// 1. `address` is a function of the convention `target` and of the signature, for as long as
    ///    the stub is called.
    /// 2. The stub is called in the convention `entry`, with this signature.
    /// 3. If `target` is [`Convention::GoAbiInternal`] and `entry` is another convention, the stub
    ///    is called on a goroutine; elsewhere the process ends with a message.
    /// 4. An adapter leaves no anchor. So JIT code calls a native function that may park, panic
    ///    over JIT frames or walk stacks through a goroutine function; and native code calls JIT
    ///    code that calls such functions through an entry
    ///    ([`Code::enter`](crate::jit::Code::enter), [`Adapter::enter`]).
    pub unsafe fn adapter(
        &self,
        signature: &Signature,
        entry: Convention,
        target: Convention,
        address: usize,
    ) -> Result<Adapter, JitError> {
        make(self, signature, entry, target, address, None)
    }

    /// As [`Self::adapter`], but the target also gets a word that belongs to the stub.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{Bind, Jit};
    ///
    /// extern "sysv64" fn add(own: u64, n: u64) -> u64 {
    ///     own + n
    /// }
    ///
    /// let (signature, system_v) = ("fn(u64) -> u64".parse()?, Convention::SystemV);
    /// let bind = Bind::FirstArgument(40);
    /// // SAFETY: `add` is a System V function of that signature with one more word before it.
    /// let adapter = unsafe {
    ///     Jit::new()?.bound_adapter(&signature, system_v, system_v, add as usize, bind)?
    /// };
    /// // SAFETY: the entry's convention and types.
    /// let add_40 = unsafe { adapter.as_fn::<extern "sysv64" fn(u64) -> u64>() };
    /// assert_eq!(add_40(2), 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`Self::adapter`]; and the target's convention may have no register for a closure.
    ///
    /// # Safety
    /// 1. As for [`Self::adapter`].
    /// 2. With [`Bind::FirstArgument`] the target's signature has one more parameter, a `ptr`,
    ///    before the others. The word is what the target expects there, or in its closure register.
    pub unsafe fn bound_adapter(
        &self,
        signature: &Signature,
        entry: Convention,
        target: Convention,
        address: usize,
        bind: Bind,
    ) -> Result<Adapter, JitError> {
        make(self, signature, entry, target, address, Some(bind))
    }
}

fn make(
    jit: &Jit,
    signature: &Signature,
    entry: Convention,
    target: Convention,
    address: usize,
    bind: Option<Bind>,
) -> Result<Adapter, JitError> {
    require_target("adapter", address)?;
    let env = stub_env();
    let binding = bind.map_or(Binding::None, Bind::binding);
    let spec = AdapterSpec::new(signature, entry, target).binding(binding);
    let spec = spec.g_tls_off_bytes(env.tls_g_off);
    let shape = shape(&spec, env.no_goroutine)?;
    let spec = StubSpec {
        name: shape.name,
        kind: StubKind::Adapter,
        class: shape.code.frame_class(),
        signature: Some(shape.signature),
        user_data: address as u64,
    };
    let word = bind.map_or(0, Bind::word);
    let id = shape.code.with_copy(address as u64, word, |code| {
        jit.arena().emit_ready(&spec, code, shape.code.report)
    })?;
    Ok(Adapter { stub: StubHandle::new(id), jit: *jit, shape })
}
