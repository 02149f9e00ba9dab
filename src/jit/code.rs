#![allow(unsafe_code, reason = "turns code addresses into functions")]
//! Handles: code memory, and code that was installed in it.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::annotations::Annotations;
use super::arena::{Arena, Reserve, StubSpec};
use super::emit::Ops;
use super::error::JitError;
use super::frame::FrameClass;
use super::mem::{MemoryMode, Placement};
use super::registry::{StubId, StubKind, lookup};
#[cfg(feature = "runtime")]
use crate::abi::{Convention, Signature};

/// Default size of the reservation.
const DEFAULT_RESERVE_BYTES: usize = 1 << 30;

/// How a [`Jit`] is made.
///
/// ```
/// use footbridge::jit::{Jit, MemoryMode, Placement};
///
/// let jit = Jit::builder()
///     .reserve_bytes(16 << 20)
///     .memory(MemoryMode::Auto)
///     .placement(Placement::Near)
///     .build()?;
/// println!("{}", jit.memory_report());
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use = "a builder makes nothing by itself"]
pub struct JitBuilder {
    reserve: Reserve,
    memory: MemoryMode,
    placement: Placement,
    checked: bool,
}

impl JitBuilder {
    /// Bytes of address space for code; rounded up to 4 MiB. The default is 1 GiB, or less where
    /// the host does not let the process have that: [`Jit::memory_report`] tells. Memory is
    /// committed where code is.
    ///
    /// The space is divided by frame class: a bit less than half of it is for
    /// [`FrameClass::Standard`], a quarter for [`FrameClass::Saved`].
    ///
    /// ```
    /// let jit = footbridge::jit::Jit::builder().reserve_bytes(16 << 20).build()?;
    /// assert!(jit.memory_report().contains("16 MiB"));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn reserve_bytes(mut self, bytes: usize) -> Self {
        self.reserve = Reserve::Exactly(bytes);
        self
    }

    /// How code memory is mapped. The default is [`MemoryMode::Auto`].
    ///
    /// ```
    /// use footbridge::jit::{Jit, MemoryMode};
    ///
    /// let batches = Jit::builder().reserve_bytes(4 << 20).memory(MemoryMode::MprotectBatch);
    /// assert!(batches.build()?.memory_report().starts_with("mprotect batch"));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn memory(mut self, mode: MemoryMode) -> Self {
        self.memory = mode;
        self
    }

    /// Where the reservation goes. The default is [`Placement::Near`].
    ///
    /// ```
    /// use footbridge::jit::{Jit, Placement};
    ///
    /// let jit = Jit::builder().reserve_bytes(4 << 20).placement(Placement::Anywhere).build()?;
    /// println!("it is near: {}", jit.is_near_text());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Whether contracts are checked that code and its callers must keep, at the price of some time
    /// for each installation and each call. The default is no.
    ///
    /// * At installation (in debug builds always): code of [`FrameClass::Leaf`] that calls is
    ///   refused ([`JitError::LeafCalls`]).
    /// * In each goroutine function and spawn stub: the caller has rsp at a multiple of 16 where
    ///   its convention demands that, and in `GoAbiInternal` r14 is the goroutine that runs.
    ///   Otherwise the process ends with a message that names the stub.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, JitError};
    ///
    /// let jit = Jit::builder().reserve_bytes(4 << 20).checked(true).build()?;
    /// // SAFETY: it is refused.
    /// let leaf = unsafe {
    ///     jit.install("no leaf", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; nop; call rax; ret);
    ///     })
    /// };
    /// assert!(matches!(leaf, Err(JitError::LeafCalls { offset_bytes: 1, .. })));
    /// # Ok::<(), JitError>(())
    /// ```
    pub fn checked(mut self, checked: bool) -> Self {
        self.checked = checked;
        self
    }

    /// Makes an arena of its own. Arenas are never freed, and a process can have about 60.
    ///
    /// ```
    /// let jit = footbridge::jit::Jit::builder().reserve_bytes(4 << 20).build()?;
    /// println!("{jit:?}");
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// There is no memory ([`JitError::NoMemory`]), the host refuses executable memory
    /// ([`JitError::System`]), or there are too many arenas.
    pub fn build(self) -> Result<Jit, JitError> {
        let Self { reserve, memory, placement, checked } = self;
        Ok(Jit { arena: Arena::new(reserve, memory, placement, checked)? })
    }
}

/// A handle to code memory. Copies are handles to the same memory.
#[derive(Clone, Copy)]
pub struct Jit {
    arena: &'static Arena,
}

impl Jit {
    /// The process's shared arena, made by the first call.
    ///
    /// ```
    /// use footbridge::jit::Jit;
    ///
    /// assert_eq!(Jit::new()?.memory_report(), Jit::new()?.memory_report());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// There is no memory ([`JitError::NoMemory`]), or the host refuses executable memory
    /// ([`JitError::System`]). A later call tries again.
    pub fn new() -> Result<Self, JitError> {
        static SHARED: OnceLock<Jit> = OnceLock::new();
        static MAKING: Mutex<()> = Mutex::new(());
        if let Some(jit) = SHARED.get() {
            return Ok(*jit);
        }
        let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jit) = SHARED.get() {
            return Ok(*jit);
        }
        let jit = Self::builder().build()?;
        Ok(*SHARED.get_or_init(|| jit))
    }

    /// Settings for an arena of its own: see [`JitBuilder`].
    ///
    /// ```
    /// let jit = footbridge::jit::Jit::builder().reserve_bytes(4 << 20).build()?;
    /// assert!(jit.memory_report().contains("4 MiB"));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn builder() -> JitBuilder {
        JitBuilder {
            reserve: Reserve::AtMost(DEFAULT_RESERVE_BYTES),
            memory: MemoryMode::Auto,
            placement: Placement::Near,
            checked: false,
        }
    }

    /// Emits code with dynasm, at its final address, and publishes it under a name.
    ///
    /// `body` emits, and returns what is to be known of the code besides: `()`, or
    /// [`Annotations`]. It may emit other stubs and install other code. Targets are reached with
    /// `call extern address`; the address of any stub of the same arena is in reach.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only.
    /// let answer = unsafe {
    ///     jit.install("answer", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; mov eax, 42; ret);
    ///     })?
    /// };
    /// let found = footbridge::jit::lookup(answer.address()).expect("it is installed");
    /// assert_eq!(found.name(), "answer");
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// Nothing is published if
    /// * the code does not assemble ([`JitError::Assemble`], [`JitError::OutOfReach`]);
    /// * it breaks a rule of its frame class ([`JitError::FrameContract`],
    ///   [`JitError::LeafCalls`]);
    /// * it is longer than 1 MiB ([`JitError::CodeTooLarge`]), or there is no room;
    /// * a range of unsafe points is empty, leaves the code, overlaps another one, or restarts in
    ///   the prologue ([`JitError::UnsafePointRange`]);
    /// * an entry of the stack map is empty, leaves the code or overlaps another one, or a slot of
    ///   it is no place for a pointer in a frame of this class ([`JitError::StackMap`]).
    ///
    /// # Safety
    /// Of all code:
    /// 1. All frames of the code keep the contract of `class` (see [`FrameClass`]) whenever it
    ///    calls.
    /// 2. `class` is not one that only the crate's own stubs have. A call is followed by an
    ///    instruction, or is the last one: not by data, which unwinders would read as code.
    /// 3. The code is called in the convention that it was written for.
    /// 4. It returns directly after it dropped its frame (`pop rbp; ret` or `leave; ret`), and
    ///    calls native code that may park, panic or walk stacks through goroutine functions only:
    ///    other calls leave no anchor, so that walks from there miss this code.
    /// 5. It returns with the floating-point control state (MXCSR, x87 control word) that it was
    ///    entered with, and has it whenever it calls: a goroutine that is suspended in what it
    ///    calls hands its state to the next one. On a goroutine that keeps a state of its own
    ///    (`runtime::keep_fp_control`) that does not happen, and it may
    ///    call in another state, if the called function works in that and keeps it; native code
    ///    that computes with floating-point numbers mostly relies on the default. A poll may be
    ///    reached in any state on any goroutine, since its stub saves it; a check of the stack,
    ///    which may panic, counts as a call.
    ///
    /// With [`Annotations::preemptible`], and its [`unsafe_points`](Annotations::unsafe_points):
    /// 6. The frame of a framed class is complete from `mov rbp, rsp` to the last `pop rbp` or
    ///    `leave`, which a `ret` follows directly; rbp is not used for anything else in between.
    /// 7. The code runs on a goroutine's stack with at least 8 KiB left, or it polls
    ///    (`Jit::polls`) where it calls. (With less left it is not preempted.)
    /// 8. At each instruction outside of the unsafe points another goroutine may run on this
    ///    thread, and a migratable goroutine may resume on another: there the code has no lock, no
    ///    address that it got from `fs`, no borrow of a thread-local and no half-made state that
    ///    others on the thread can see. Nor does a caller hold a lock that other goroutines of the
    ///    thread may want (`runtime::without_preemption` is for
    ///    callers that do): that would be a deadlock.
    /// 9. From any instruction of a range that restarts, the code may resume at its first one.
    /// 10. Native code reaches it through an entry (`Code::enter`). By its bare address it may
    ///     call code that calls no goroutine function: preemptions, polls and checks of the stack
    ///     leave the goroutine's anchor as it was, and exact walks continue there after code that
    ///     was descheduled. A goroutine function leaves an anchor of its own, so that walks end, or
    ///     go wrong, at native code without an entry; nor does a panic have anything to restore.
    ///
    /// With [`Annotations::stack_map`]:
    /// 11. What a visitor of the code's live slots does to a slot of the stack map is right for the
    ///     code at that place: see [`LiveAt`](super::LiveAt) for which entry counts when.
    ///     `runtime::scan_own_stack` visits them.
    ///
    /// The machine state survives a preemption: flags, registers, the 128 bytes below rsp, and what
    /// XSAVE keeps on this CPU, but for the tiles of AMX.
    pub unsafe fn install<A: Into<Annotations>>(
        &self,
        name: &str,
        class: FrameClass,
        body: impl FnOnce(&mut Ops) -> A,
    ) -> Result<Code, JitError> {
        let spec = user_code(name, class)?;
        let bound_bytes = self.arena.max_code_bytes();
        let id = self.arena.emit_annotated(&spec, bound_bytes, |ops| body(ops).into())?;
        Ok(Code { jit: *self, stub: StubHandle::new(id) })
    }

    /// How the code memory of this handle is mapped, in one sentence.
    ///
    /// ```
    /// println!("{}", footbridge::jit::Jit::new()?.memory_report());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn memory_report(&self) -> &str {
        self.arena.memory().report()
    }

    /// Whether code in this arena reaches the program's text with a direct call (`call rel32`).
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// extern "sysv64" fn seven() -> u64 {
    ///     7
    /// }
    ///
    /// let (jit, target) = (Jit::new()?, seven as usize);
    /// // SAFETY: a System V function with a standard frame around a call.
    /// let code = unsafe {
    ///     jit.install("calls", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
    ///         match jit.is_near_text() {
    ///             true => dynasm!(ops; .arch x64; call extern target),
    ///             false => dynasm!(ops; .arch x64; mov rax, QWORD target as i64; call rax),
    ///         }
    ///         dynasm!(ops; .arch x64; pop rbp; ret);
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// assert_eq!(unsafe { code.as_fn::<extern "sysv64" fn() -> u64>() }(), 7);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn is_near_text(&self) -> bool {
        self.arena.memory().is_near()
    }

    #[cfg(feature = "runtime")]
    pub(crate) fn arena(&self) -> &'static Arena {
        self.arena
    }
}

/// What the registry knows of code that a user installs.
fn user_code(name: &str, class: FrameClass) -> Result<StubSpec<'_>, JitError> {
    if class.is_internal() {
        let rule = "entry, root and win64 frames are made by the crate's own stubs only";
        return Err(JitError::FrameContract { name: name.into(), rule });
    }
    Ok(StubSpec { name, kind: StubKind::User, class, signature: None, user_data: 0 })
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jit({})", self.memory_report())
    }
}

/// Code that was installed. Clones are handles to the same code.
///
/// When the last handle and every entry to the code are dropped, the code is retired: it stays
/// where it is, and stays recognisable, since frames may still return to it.
#[derive(Clone)]
#[must_use = "the code is retired when its last handle is dropped"]
pub struct Code {
    jit: Jit,
    stub: StubHandle,
}

/// The owner of a published stub, which is retired when the last clone is dropped, and the last
/// [`SharedStub`]. It keeps its target from being retired.
///
/// What clones share is allocated by the first of them: most stubs are never shared, and making one
/// takes little longer than an allocation. With a target it is allocated at once.
pub(crate) struct StubHandle {
    id: StubId,
    shared: OnceLock<Arc<SharedStub>>,
}

/// Keeps a stub from being retired, and its target.
pub(crate) struct SharedStub {
    id: StubId,
    _target: Option<Arc<SharedStub>>,
    /// The entries to this stub. They are retired with it, and not when their handles are dropped:
    /// a program that enters the same code again gets the same stub, however often it does.
    #[cfg(feature = "runtime")]
    entries: Mutex<Vec<KnownEntry>>,
}

/// An entry that was made before.
#[cfg(feature = "runtime")]
struct KnownEntry {
    convention: Convention,
    signature: &'static Signature,
    id: StubId,
}

impl SharedStub {
    fn new(id: StubId, target: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            id,
            _target: target,
            #[cfg(feature = "runtime")]
            entries: Mutex::default(),
        })
    }

    /// Address of the first instruction of the stub.
    #[cfg(feature = "runtime")]
    pub(crate) fn start(&self) -> usize {
        self.id.start()
    }

    /// The entry to this stub of a convention and a signature: one that was made before, or the one
    /// that `emit` makes.
    #[cfg(feature = "runtime")]
    pub(crate) fn entry(
        &self,
        convention: Convention,
        signature: &Signature,
        emit: impl FnOnce() -> Result<StubId, JitError>,
    ) -> Result<StubId, JitError> {
        // Held while the stub is emitted, so that two threads make one.
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |e: &&KnownEntry| e.convention == convention && e.signature == signature;
        if let Some(known) = entries.iter().find(is_same) {
            return Ok(known.id);
        }
        let id = emit()?;
        let published = lookup(id.start()).and_then(|stub| stub.signature());
        let signature = published.expect("an entry is published with its signature");
        entries.push(KnownEntry { convention, signature, id });
        Ok(id)
    }
}

impl StubId {
    /// For `Debug` of the types that refer to a stub: `Code("answer" at 0x7f.., 6 bytes)`.
    pub(crate) fn fmt_as(self, owner: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, len) = (self.start(), self.len());
        write!(f, "{owner}({:?} at {start:#x}, {len} bytes)", name_of(start))
    }
}

impl StubHandle {
    pub(crate) fn new(id: StubId) -> Self {
        Self { id, shared: OnceLock::new() }
    }

    #[cfg(feature = "runtime")]
    pub(crate) fn with_target(id: StubId, target: Arc<SharedStub>) -> Self {
        Self { id, shared: OnceLock::from(SharedStub::new(id, Some(target))) }
    }

    /// Address of the first instruction.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        self.id.start()
    }

    /// Keeps the stub from being retired when all handles are dropped.
    pub(crate) fn share(&self) -> Arc<SharedStub> {
        let share = || SharedStub::new(self.id, None);
        Arc::clone(self.shared.get_or_init(share))
    }

    /// For `Debug` of the types that own a stub.
    pub(crate) fn fmt_as(&self, owner: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt_as(owner, f)
    }
}

impl Clone for StubHandle {
    fn clone(&self) -> Self {
        Self { id: self.id, shared: OnceLock::from(self.share()) }
    }
}

impl Drop for StubHandle {
    fn drop(&mut self) {
        if self.shared.get().is_none() {
            self.id.retire();
        }
    }
}

impl Drop for SharedStub {
    fn drop(&mut self) {
        #[cfg(feature = "runtime")]
        for entry in self.entries.get_mut().unwrap_or_else(PoisonError::into_inner) {
            entry.id.retire();
        }
        self.id.retire();
    }
}

/// The name that code was published under.
pub(crate) fn name_of(address: usize) -> &'static str {
    lookup(address).map_or("?", |stub| stub.name())
}

impl Code {
    /// Address of the first instruction.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, GRANULE_BYTES, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes nothing.
    /// let nothing = unsafe {
    ///     jit.install("nothing", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// assert!(nothing.address().is_multiple_of(GRANULE_BYTES));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn address(&self) -> usize {
        self.stub.start()
    }

    /// The code as a function pointer of type `F`.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only.
    /// let double = unsafe {
    ///     jit.install("double", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; lea rax, [rdi + rdi]; ret);
    ///     })?
    /// };
    /// // SAFETY: its convention and types; it is sound to call, and `double` outlives all calls.
    /// let function = unsafe { double.as_fn::<extern "sysv64" fn(u64) -> u64>() };
    /// assert_eq!(function(21), 42);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Safety
    /// 1. `F` is a function pointer type of the convention and of the types that the code was
    ///    written for (`extern "sysv64"`, `extern "win64"`), or its `-unwind` form.
    /// 2. If the code may unwind, `F` is the `-unwind` form.
    /// 3. No call of the pointer starts after the last handle to this code was dropped.
    /// 4. `F` is an `unsafe fn`, unless every call of it is sound. A call by this pointer leaves no
    ///    entry frame: code that calls goroutine functions is entered by `Code::enter` instead.
    pub unsafe fn as_fn<F: Copy>(&self) -> F {
        // SAFETY: 1. is the caller's promise, and so are 2. to 4., which are about calls.
        unsafe { as_fn(self.address()) }
    }

    /// The bytes of the code. They do not change.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only.
    /// let zero = unsafe {
    ///     jit.install("zero", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; xor eax, eax; ret))?
    /// };
    /// assert_eq!(zero.bytes(), [0x31, 0xc0, 0xc3]);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: published code is readable and does not change, and stays while a handle does.
        unsafe { std::slice::from_raw_parts(self.address() as *const u8, self.len()) }
    }

    /// Bytes of code: at least one.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes nothing.
    /// let code = unsafe {
    ///     jit.install("nothing", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; nop; ret))?
    /// };
    /// assert_eq!((code.len(), code.is_empty()), (2, false));
    /// assert_eq!(code.jit().memory_report(), jit.memory_report());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn len(&self) -> usize {
        self.stub.id.len()
    }

    /// Never: code has an instruction at least.
    ///
    /// ```
    /// use footbridge::dynasm::dynasm;
    /// use footbridge::jit::{FrameClass, Jit, JitError};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a leaf.
    /// let code = unsafe {
    ///     jit.install("f", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// assert!(!code.is_empty());
    /// // SAFETY: nothing is installed.
    /// let none = unsafe { jit.install("none", FrameClass::Leaf, |_| ()) };
    /// assert!(matches!(none, Err(JitError::FrameContract { .. })));
    /// # Ok::<(), JitError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code memory that this code is in.
    ///
    /// ```
    /// use footbridge::dynasm::dynasm;
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// // SAFETY: a leaf.
    /// let code = unsafe {
    ///     Jit::new()?.install("f", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// // SAFETY: a leaf. It is in the same memory.
    /// let other = unsafe {
    ///     code.jit().install("g", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret))?
    /// };
    /// assert_eq!(other.jit().memory_report(), code.jit().memory_report());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn jit(&self) -> Jit {
        self.jit
    }

    /// Keeps the code from being retired.
    #[cfg(feature = "runtime")]
    pub(crate) fn share(&self) -> Arc<SharedStub> {
        self.stub.share()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stub.fmt_as("Code", f)
    }
}

/// Turns the address of a stub into a function pointer. Nothing else in the crate does.
///
/// # Safety
/// 1. `F` is a function pointer type.
/// 2. The address is that of a stub whose entry side has exactly F's convention and types.
pub(crate) unsafe fn as_fn<F: Copy>(address: usize) -> F {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    // SAFETY: same size by the assertion; the rest is the caller's promise.
    unsafe { std::mem::transmute_copy(&address) }
}
