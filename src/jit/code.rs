#![allow(unsafe_code, reason = "turns code addresses into functions")]
//! Handles: code memory, and code that was installed in it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::annotations::Annotations;
use super::arena::{Arena, StubSpec};
use super::emit::Ops;
use super::error::JitError;
use super::frame::FrameClass;
use super::mem::{MemoryMode, Placement};
use super::registry::{StubId, StubKind, lookup};
use super::safe_point::UnsafePointRange;

/// Default size of the reservation.
const DEFAULT_RESERVE_BYTES: usize = 1 << 30;

/// How a [`Jit`] is made.
#[derive(Debug, Clone, Copy)]
pub struct JitBuilder {
    reserve_bytes: usize,
    memory: MemoryMode,
    placement: Placement,
    checked: bool,
}

impl JitBuilder {
    /// Bytes of address space for code; rounded up to 4 MiB. The default is 1 GiB.
    ///
    /// The space is divided by frame class: a bit less than half of it is for
    /// [`FrameClass::Standard`], a quarter for [`FrameClass::Saved`].
    #[must_use]
    pub fn reserve_bytes(mut self, bytes: usize) -> Self {
        self.reserve_bytes = bytes;
        self
    }

    /// How code memory is mapped.
    #[must_use]
    pub fn memory(mut self, mode: MemoryMode) -> Self {
        self.memory = mode;
        self
    }

    /// Where the reservation goes.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Whether contracts are checked that code and its callers must keep, at the price of some time
    /// for each installation and each call. The default is no.
    ///
    /// * At installation (in debug builds always): code of [`FrameClass::Leaf`] that calls is refused
    ///   ([`JitError::LeafCalls`]).
    /// * In each goroutine function and spawn stub: the caller has rsp at a multiple of 16 where its
    ///   convention demands that, and in `GoAbiInternal` r14 is the goroutine that runs. Otherwise the
    ///   process ends with a message that names the stub.
    ///
    /// ```
    /// use dynasmrt::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, JitError};
    ///
    /// let jit = Jit::builder().reserve_bytes(4 << 20).checked(true).build()?;
    /// // SAFETY: it is refused.
    /// let leaf = unsafe {
    ///     jit.install("no leaf", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; nop; call rax; ret))
    /// };
    /// assert!(matches!(leaf, Err(JitError::LeafCalls { offset_bytes: 1, .. })));
    /// # Ok::<(), JitError>(())
    /// ```
    #[must_use]
    pub fn checked(mut self, checked: bool) -> Self {
        self.checked = checked;
        self
    }

    /// Makes an arena of its own. Arenas are never freed, and a process can have about 60.
    ///
    /// # Errors
    /// A mapping was refused ([`JitError::System`]), or there are too many arenas.
    pub fn build(self) -> Result<Jit, JitError> {
        let Self { reserve_bytes, memory, placement, checked } = self;
        Ok(Jit { arena: Arena::new(reserve_bytes, memory, placement, checked)? })
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
    /// # Errors
    /// A mapping was refused ([`JitError::System`]). A later call tries again.
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

    /// Settings for an arena of its own.
    pub fn builder() -> JitBuilder {
        JitBuilder {
            reserve_bytes: DEFAULT_RESERVE_BYTES,
            memory: MemoryMode::Auto,
            placement: Placement::Near,
            checked: false,
        }
    }

    /// Emits code with dynasm, at its final address, and publishes it under a name.
    ///
    /// `body` may emit other stubs and install other code. Targets are reached with
    /// `call extern address`; the address of any stub of the same arena is in reach.
    ///
    /// ```
    /// use dynasmrt::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only.
    /// let answer = unsafe {
    ///     jit.install("answer", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; mov eax, 42; ret))?
    /// };
    /// assert_eq!(footbridge::jit::lookup(answer.address()).map(|stub| stub.name()), Some("answer"));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// The code does not assemble, breaks the prologue rule of its frame class, is longer than
    /// 1 MiB, or there is no room; nothing is published then.
    ///
    /// # Safety
    /// 1. All frames of the code keep the law of `class` (see [`FrameClass`]) whenever it calls.
    /// 2. `class` is not `Entry` or `Root`.
    /// 3. Whoever calls the code does so in the convention that it was written for.
    /// 4. It returns directly after it dropped its frame (`pop rbp; ret` or `leave; ret`), and calls
    ///    native code that may park, panic or walk stacks through goroutine functions only: other
    ///    calls leave no anchor, so that walks from there miss this code.
    /// 5. It returns with the floating-point control modes (MXCSR, x87 control word) that it was
    ///    entered with, and has them whenever it calls: a goroutine that is suspended in what it
    ///    calls hands its modes to the next one. On a goroutine that keeps modes of its own
    ///    ([`keep_fp_control`](crate::runtime::keep_fp_control)) that does not happen, and it may
    ///    call in other modes, if the called function works in them and keeps them; native code
    ///    that computes with floating-point numbers mostly relies on the default. A poll may be
    ///    reached in any modes on any goroutine, since its stub saves them; a check of the stack,
    ///    which may panic, counts as a call.
    pub unsafe fn install(
        &self,
        name: &str,
        class: FrameClass,
        body: impl FnOnce(&mut Ops),
    ) -> Result<Code, JitError> {
        let body = |ops: &mut Ops| {
            body(ops);
            Annotations::default()
        };
        // SAFETY: the caller's promises; nothing more is said of the code.
        unsafe { self.install_with(name, class, body) }
    }

    /// As [`Self::install`], for code that may be interrupted for another goroutine when its time
    /// slice ends, at any instruction but those in the ranges that `body` returns.
    ///
    /// All of the machine state survives: flags, registers, the 128 bytes below rsp, and what
    /// XSAVE keeps on this CPU, but for the tiles of AMX.
    ///
    /// ```
    /// use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only, and is as good anywhere.
    /// let count = unsafe {
    ///     jit.install_preemptible("count", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax; cmp rax, rdi; jb <again; ret);
    ///         vec![]
    ///     })?
    /// };
    /// let found = footbridge::jit::lookup(count.address()).expect("installed");
    /// assert!(found.is_preemptible());
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Self::install`]; an unsafe range is empty, leaves the code, overlaps another one, or
    /// restarts in the prologue.
    ///
    /// # Safety
    /// 1. As for [`Self::install`].
    /// 2. The frame of a framed class is complete from `mov rbp, rsp` to the last `pop rbp` or
    ///    `leave`, which a `ret` follows directly; rbp is not used for anything else in between.
    /// 3. The code runs on a goroutine's stack with at least 8 KiB left, or it polls
    ///    ([`Jit::polls`]) where it calls. (With less left it is not interrupted.)
    /// 4. At each instruction outside of the unsafe ranges another goroutine may run on this thread,
    ///    and a migratable goroutine may go on on another: there the code has no lock, no address
    ///    that it got from `fs`, no borrow of a thread-local and no half-made state that others on
    ///    the thread can see.
    ///    Nor does anybody who calls it hold a lock that others on the thread may want
    ///    ([`without_preemption`](crate::runtime::without_preemption) is for those who do): that
    ///    would be a deadlock.
    /// 5. From any instruction of a range that restarts, the code may go on at its first one.
    /// 6. Native code reaches it through an entry ([`Code::enter`]). By its bare address it may call
    ///    what calls no goroutine function: interruptions, polls and checks of the stack leave the
    ///    goroutine's anchor as it was, and exact walks go on there behind code that was put aside.
    ///    A goroutine function leaves an anchor of its own, so that walks end, or go wrong, at native
    ///    code without an entry; nor does a panic have anything to put back.
    pub unsafe fn install_preemptible(
        &self,
        name: &str,
        class: FrameClass,
        body: impl FnOnce(&mut Ops) -> Vec<UnsafePointRange>,
    ) -> Result<Code, JitError> {
        let body =
            |ops: &mut Ops| Annotations { preemptible: Some(body(ops)), ..Annotations::default() };
        // SAFETY: the caller's promises.
        unsafe { self.install_with(name, class, body) }
    }

    /// As [`Self::install`], for code of which `body` says more: where it may be interrupted, and
    /// where it has pointers.
    ///
    /// ```
    /// use dynasmrt::{DynasmApi, dynasm};
    /// use footbridge::abi::Gpr;
    /// use footbridge::jit::{Annotations, FrameClass, Jit, LiveAt, LiveSlot};
    ///
    /// let jit = Jit::new()?;
    /// // SAFETY: a System V leaf that changes rax only.
    /// let second = unsafe {
    ///     jit.install_with("second", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; mov rax, [rdi + 8]);
    ///         let loaded = ops.offset().0;
    ///         dynasm!(ops; .arch x64; ret);
    ///         let (argument, result) = (LiveSlot::Register(Gpr::RDI), LiveSlot::Register(Gpr::RAX));
    ///         Annotations {
    ///             preemptible: Some(vec![]),
    ///             stack_map: Some(vec![
    ///                 LiveAt { bytes: 0..loaded, slots: vec![argument] },
    ///                 LiveAt { bytes: loaded..ops.offset().0, slots: vec![result] },
    ///             ]),
    ///         }
    ///     })?
    /// };
    /// let found = footbridge::jit::lookup(second.address()).expect("installed");
    /// let map = found.stack_map().expect("it has one");
    /// assert_eq!(map.live_at(0), [LiveSlot::Register(Gpr::RDI)]);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// Who walks the stack finds the slots with
    /// [`scan_own_stack`](crate::runtime::scan_own_stack).
    ///
    /// # Errors
    /// As [`Self::install`] and [`Self::install_preemptible`]. An entry of the stack map
    /// ([`JitError::StackMap`]) is empty, leaves the code or overlaps another one; a slot of it is
    /// no place for a pointer of the code's own in a frame of its class.
    ///
    /// # Safety
    /// 1. As for [`Self::install`].
    /// 2. If the annotations say that the code is preemptible, as for
    ///    [`Self::install_preemptible`].
    /// 3. Whatever a visitor of the code's live slots does to a slot of the stack map is right for
    ///    the code at that place: see [`LiveAt`](super::LiveAt) for which entry counts when.
    pub unsafe fn install_with(
        &self,
        name: &str,
        class: FrameClass,
        body: impl FnOnce(&mut Ops) -> Annotations,
    ) -> Result<Code, JitError> {
        let spec = user_code(name, class)?;
        let id = self.arena.emit_annotated(&spec, self.arena.max_code_bytes(), body)?;
        Ok(Code { jit: *self, code: Arc::new(Installed(id)) })
    }

    /// How the code memory of this handle is mapped, in one sentence.
    pub fn memory_report(&self) -> &str {
        self.arena.memory().report()
    }

    /// Whether code in this arena reaches the program's text with `call rel32`.
    pub fn is_near_text(&self) -> bool {
        self.arena.memory().is_near()
    }

    pub(crate) fn arena(&self) -> &'static Arena {
        self.arena
    }
}

/// What the registry knows of code that a user installs.
fn user_code(name: &str, class: FrameClass) -> Result<StubSpec<'_>, JitError> {
    if matches!(class, FrameClass::Entry | FrameClass::Root) {
        let rule = "entry and root frames are made by the crate's own stubs only";
        return Err(JitError::FrameContract { name: name.into(), rule });
    }
    Ok(StubSpec { name, kind: StubKind::User, class, signature: None, user_data: 0 })
}

impl std::fmt::Debug for Jit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Jit({})", self.memory_report())
    }
}

/// Code that was installed. When the handle and every entry to the code are dropped, the code is
/// retired: it stays where it is, and stays recognisable, since frames may still return to it.
pub struct Code {
    jit: Jit,
    code: Arc<Installed>,
}

/// Retires the code when the last one goes who enters it.
pub(crate) struct Installed(StubId);

impl Drop for Installed {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl Code {
    /// Address of the first instruction.
    pub fn address(&self) -> usize {
        self.code.0.start()
    }

    /// Bytes of code.
    pub fn len(&self) -> usize {
        self.code.0.len()
    }

    /// Never: code that is installed has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.code.0.len() == 0
    }

    /// The code memory that this code is in.
    pub fn jit(&self) -> Jit {
        self.jit
    }

    /// Keeps the code from being retired.
    pub(crate) fn share(&self) -> Arc<Installed> {
        Arc::clone(&self.code)
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = lookup(self.address()).map_or("?", |stub| stub.name());
        write!(f, "Code({name:?} at {:#x}, {} bytes)", self.address(), self.len())
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
