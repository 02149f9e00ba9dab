#![allow(unsafe_code, reason = "reads code")]
//! What the registry answers about a program counter.

#[cfg(feature = "runtime")]
mod interrupted;

use std::fmt;

use super::kind::{Flags, HAS_STACK_MAP, PREEMPTIBLE, StubKind};
use super::protocol;
use super::region::{Descriptor, Region};
use crate::abi::Signature;
use crate::jit::frame::FrameClass;
use crate::jit::stack_map::StackMap;
use crate::jit::unwind::rules::{self, FrameState};
use crate::jit::unwind::user_code;

#[cfg(feature = "runtime")]
pub(crate) use interrupted::lookup_return;

/// What the registry knows of a program counter. Every accessor may be called in a signal handler.
///
/// ```
/// use footbridge::dynasm::{DynasmApi, dynasm};
/// use footbridge::jit::{FrameClass, Jit, StubKind, lookup};
///
/// let jit = Jit::new()?;
/// // SAFETY: a System V function with a standard frame that changes rax only.
/// let code = unsafe {
///     jit.install("one", FrameClass::Standard, |ops| {
///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; mov eax, 1; pop rbp; ret);
///     })?
/// };
/// let found = lookup(code.address() + 4).expect("it is installed");
/// assert_eq!((found.start(), found.len(), found.offset_bytes()), (code.address(), 11, 4));
/// assert_eq!((found.name(), found.kind()), ("one", StubKind::User));
/// assert_eq!(found.frame_class(), FrameClass::Standard);
/// assert!(!found.is_empty() && !found.is_preemptible() && !found.is_retired());
/// assert!(found.signature().is_none() && found.stack_map().is_none());
/// assert_eq!(found.user_data(), 0);
/// assert_eq!(found.to_string(), "jit one+0x4");
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[derive(Clone, Copy)]
pub struct StubInfo {
    region: &'static Region,
    word: u64,
    start: usize,
    pc: usize,
}

impl StubInfo {
    #[inline]
    fn find(region: &'static Region, at: usize, pc: usize) -> Option<Self> {
        let (word, start) = region.find(at)?;
        Some(Self { region, word, start, pc })
    }

    #[inline]
    fn flags(&self) -> Flags {
        Flags(self.word & ((1 << protocol::FLAG_BITS) - 1))
    }

    fn descriptor(&self) -> Descriptor {
        protocol::descriptor(&self.region.slots, self.word)
    }

    /// Address of the first byte.
    #[inline]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Bytes of code.
    pub fn len(&self) -> usize {
        self.descriptor().len as usize
    }

    /// Never: published code has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address that was looked up, as bytes from the start.
    #[inline]
    pub fn offset_bytes(&self) -> usize {
        self.pc - self.start
    }

    /// The name that the code was installed with.
    pub fn name(&self) -> &'static str {
        self.descriptor().name
    }

    /// The signature that the stub carries, if it was made for one.
    pub fn signature(&self) -> Option<&'static Signature> {
        self.descriptor().signature
    }

    /// A word that the crate keeps with each stub: the address of what the stub calls, or of what
    /// it is bound to. In code of users it is 0.
    pub fn user_data(&self) -> u64 {
        self.descriptor().user_data
    }

    /// What the code is for.
    #[inline]
    pub fn kind(&self) -> StubKind {
        self.flags().kind()
    }

    /// The contract that its frames keep.
    #[inline]
    pub fn frame_class(&self) -> FrameClass {
        self.flags().class()
    }

    /// Whether goroutines may be interrupted in it, outside of its unsafe-point ranges.
    #[inline]
    pub fn is_preemptible(&self) -> bool {
        self.word & PREEMPTIBLE != 0
    }

    /// Whether the frame pointer register is the code's own at the pc that was looked up, which is
    /// that of an interruption and not a return address: the caller's frame pointer and the return
    /// address are the two words that it points to. For a stack walk that begins in a signal
    /// handler. At a return address a frame is always complete, but a leaf never has one.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, lookup};
    ///
    /// // SAFETY: a System V function with a standard frame that changes nothing.
    /// let code = unsafe {
    ///     Jit::new()?.install("nothing", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; pop rbp; ret);
    ///     })?
    /// };
    /// let has_frame_at = |offset| lookup(code.address() + offset).expect("installed").has_frame();
    /// // At `push`, at `mov`, at `pop`, and at `ret`.
    /// assert_eq!([0, 1, 4, 5].map(has_frame_at), [false, false, true, false]);
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn has_frame(&self) -> bool {
        self.frame_state().has_frame()
    }

    /// How far the frame is made at the pc that was looked up, which is that of an interruption and
    /// not a return address.
    pub(crate) fn frame_state(&self) -> FrameState {
        if self.is_users() {
            user_code::state(self.frame_class(), self.code(), self.offset_bytes())
        } else {
            rules::stub_state(&self.descriptor().report, self.offset_bytes())
        }
    }

    /// All of the code.
    fn code(&self) -> &'static [u8] {
        // SAFETY: published code stays where it is, readable, and does not change.
        unsafe { std::slice::from_raw_parts(self.start as *const u8, self.len()) }
    }

    /// Whether a user emitted it.
    fn is_users(&self) -> bool {
        matches!(self.kind(), StubKind::User | StubKind::Foreign)
    }

    /// Where it has live pointers, if its annotations say that.
    #[inline]
    pub fn stack_map(&self) -> Option<&'static StackMap> {
        if self.word & HAS_STACK_MAP == 0 {
            return None;
        }
        self.descriptor().annotations?.stack_map.as_ref()
    }

    /// Whether its handle was dropped. The code itself stays.
    pub fn is_retired(&self) -> bool {
        self.word & protocol::RETIRED != 0
    }
}

impl fmt::Debug for StubInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({}, {} frame)", self.kind().name(), self.frame_class().name())
    }
}

impl fmt::Display for StubInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jit {}+{:#x}", self.name(), self.offset_bytes())
    }
}

/// What code is at `pc`, if it was registered.
///
/// Code is registered in units of [`GRANULE_BYTES`](crate::jit::GRANULE_BYTES): the bytes between
/// the end of a piece of code and the next multiple are found as that code's, with an offset that
/// is not less than its length.
///
/// Callable in a signal handler, from any thread, while other threads publish and retire. The cost
/// does not depend on the number of stubs.
///
/// ```
/// use footbridge::dynasm::{DynasmApi, dynasm};
/// use footbridge::jit::{FrameClass, Jit, lookup};
///
/// let jit = Jit::new()?;
/// // SAFETY: a System V leaf that changes rax only.
/// let zero = unsafe {
///     jit.install("zero", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; xor eax, eax; ret))?
/// };
/// let found = lookup(zero.address() + 2).expect("installed");
/// assert_eq!((found.name(), found.offset_bytes(), found.len()), ("zero", 2, 3));
/// assert!(lookup(0).is_none());
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[inline]
pub fn lookup(pc: usize) -> Option<StubInfo> {
    lookup_as(pc, pc)
}

/// What code is at `at`, as the answer to a question about `pc`.
#[inline]
fn lookup_as(at: usize, pc: usize) -> Option<StubInfo> {
    match Region::first(at) {
        Some(region) => StubInfo::find(region, at, pc),
        None => lookup_further(at, pc),
    }
}

/// Apart from [`lookup_as`], so that its usual way stays short.
#[inline(never)]
fn lookup_further(at: usize, pc: usize) -> Option<StubInfo> {
    StubInfo::find(Region::further(at)?, at, pc)
}
