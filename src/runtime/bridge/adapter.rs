#![allow(unsafe_code, reason = "hands out code that calls what it was told to")]
//! Adapters in this process's code memory.
//!
//! `jit` plans and emits them; what they need of the runtime is where the current goroutine is.

use crate::abi::{Convention, Signature};
use crate::jit::stubs::adapter::{AdapterSpec, Bind, Binding, shape};
use crate::jit::stubs::require_target;
use crate::jit::{Jit, JitError, StubId, StubKind, StubSpec, as_fn};
use crate::runtime::gmp::stub_env::stub_env;

/// A stub that is entered in one convention and calls its target in another one. Dropping it
/// retires the stub: calls that run may finish, but none may start. Its room is not used again.
#[derive(Debug)]
pub struct Adapter {
    id: StubId,
}

impl Adapter {
    /// Address of the stub, which is called in the entry's convention: for code that is emitted.
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
        self.id.start()
    }

    /// The stub as a function pointer of type `F`. [`Jit::adapter`] has an example.
    ///
    /// # Safety
    /// 1. `F` is a function pointer type of the entry's convention (`extern "sysv64"`,
    ///    `extern "win64"`), or its `-unwind` form, and of the adapter's signature.
    /// 2. If the target may unwind, `F` is the `-unwind` form.
    /// 3. No call of the pointer starts after this adapter was dropped.
    /// 4. `F` is an `unsafe fn`, unless every call of it is sound: see the conditions of
    ///    [`Jit::adapter`] about the target and the thread.
    pub unsafe fn as_fn<F: Copy>(&self) -> F {
        // SAFETY: 1. is the caller's promise, and so are 2. to 4., which are about calls.
        unsafe { as_fn(self.id.start()) }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.id.retire();
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
    /// Any of the four conventions of amd64 goes with any other. The first adapter of a shape (two
    /// conventions and a signature) is planned and emitted, each further one is a copy. An adapter
    /// has no frame whenever nothing forces one: see [`Plan::tail`](crate::abi::Plan::tail).
    ///
    /// The target runs where the adapter was called: on the same stack, with the same
    /// floating-point control modes. A panic passes an adapter of System V or of Go's conventions;
    /// at one that is entered in Win64 and saves registers that no unwinder restores, it ends the
    /// process with Rust's message ([`FrameClass::Barrier`](crate::jit::FrameClass::Barrier)).
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
    /// 4. An adapter leaves no anchor. So a native function that may park, panic over JIT frames or
    ///    walk stacks is called from JIT code through a goroutine function, and native code enters
    ///    JIT code that does so through an entry ([`Code::enter`](crate::jit::Code::enter)).
    pub unsafe fn adapter(
        &self,
        signature: &Signature,
        entry: Convention,
        target: Convention,
        address: usize,
    ) -> Result<Adapter, JitError> {
        make(self, signature, entry, target, address, None)
    }

    /// As [`Self::adapter`], and the target also gets a word of the stub's own.
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
    let spec = AdapterSpec {
        signature,
        entry,
        target,
        binding: bind.map_or(Binding::None, Bind::binding),
        g_tls_off_bytes: Some(env.tls_g_off),
    };
    let shape = shape(&spec, env.no_goroutine)?;
    let code = shape.code.with(address as u64, bind.map_or(0, Bind::word));
    let spec = StubSpec {
        name: shape.name,
        kind: StubKind::Adapter,
        class: shape.code.frame_class(),
        signature: Some(shape.signature),
        user_data: address as u64,
    };
    Ok(Adapter { id: jit.arena().emit_ready(&spec, &code, shape.code.report)? })
}
