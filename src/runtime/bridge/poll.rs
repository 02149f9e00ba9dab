//! Polls in emitted code: Rust's part of what `jit/stubs/poll` and `jit/stubs/stack_check` emit.

use std::fmt;

use crate::abi::Convention;
use crate::jit::stubs::poller::{Poller, require_polls};
use crate::jit::{Jit, JitError, Ops};
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::stack::LARGEST_BYTES;

/// Emits polls: places at which code yields to other goroutines if its time slice is over. Made by
/// [`Jit::polls`], for one piece of code.
///
/// A poll is one compare and a branch that is not taken. It changes flags and nothing else: no
/// register, and nothing in the red zone. A loop should poll at its back-edge, and a function that
/// recurses after its prologue, even in preemptible code: a poll costs less than a signal.
///
/// ```
/// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
/// use footbridge::abi::Convention;
/// use footbridge::jit::{FrameClass, Jit};
/// use footbridge::runtime;
///
/// let jit = Jit::new()?;
/// let mut polls = jit.polls(Convention::SystemV)?;
/// // SAFETY: a System V leaf that changes rax only, apart from polls.
/// let count = unsafe {
///     jit.install("count", FrameClass::Leaf, |ops| {
///         dynasm!(ops; .arch x64; xor eax, eax; again: ; inc rax);
///         polls.poll(ops);
///         dynasm!(ops; .arch x64; cmp rax, rdi; jb <again; ret);
///         polls.finish(ops);
///     })?
/// };
/// // SAFETY: that is its convention and type.
/// let count = unsafe { count.enter::<fn(u64) -> u64>(Convention::SystemV)? };
/// // SAFETY: on a goroutine.
/// assert_eq!(runtime::run(|| unsafe { count.call(1000) }), 1000);
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[must_use = "polls whose slow paths are not emitted do not assemble"]
pub struct Polls {
    poller: Poller,
}

impl Polls {
    /// Emits a poll: see [`Polls`] for an example.
    ///
    /// Code with a frame may poll after `mov rbp, rsp` and before it drops the frame. A leaf may
    /// poll anywhere. In `GoAbiInternal` r14 must be the goroutine, as it is at every instruction
    /// of that convention.
    pub fn poll(&mut self, ops: &mut Ops) {
        self.poller.poll(ops);
    }

    /// Emits a check of the stack, and a poll with it, for code that is about to make a frame of
    /// `frame_bytes` bytes below rsp. The frames of what the code calls are not included.
    ///
    /// If the stack has less than that left, with some reserve for the panic itself, the code
    /// panics with `goroutine N overflowed its S stack in JIT code NAME`. Without a check the
    /// overflow meets the guard of the stack, and ends the process.
    ///
    /// The check belongs after the prologue of the frame class (in `Saved` after the five pushes)
    /// and before rsp is lowered further. Code of frame class `Leaf` cannot have one. Like a poll
    /// it changes flags and nothing else.
    ///
    /// ```
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::abi::Convention;
    /// use footbridge::jit::{FrameClass, Jit};
    /// use footbridge::runtime::{self, go};
    ///
    /// let jit = Jit::new()?;
    /// let mut polls = jit.polls(Convention::SystemV)?;
    /// // SAFETY: a standard frame; it calls itself only.
    /// let endless = unsafe {
    ///     jit.install("endless", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp);
    ///         polls.check_stack(ops, 0);
    ///         dynasm!(ops; .arch x64; call <again; pop rbp; ret);
    ///         polls.finish(ops);
    ///     })?
    /// };
    /// // SAFETY: that is its convention and type.
    /// let endless = unsafe { endless.enter::<fn()>(Convention::SystemV)? };
    /// // SAFETY: on a goroutine.
    /// let end = runtime::run(|| go(move || unsafe { endless.call() }).join());
    /// let payload = end.expect_err("it panics");
    /// let text = payload.downcast_ref::<String>().expect("a text");
    /// assert!(text.ends_with("overflowed its 64 KiB stack in JIT code endless"), "{text}");
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// # Panics
    /// `frame_bytes` is larger than any stack.
    #[track_caller]
    pub fn check_stack(&mut self, ops: &mut Ops, frame_bytes: usize) {
        assert!(
            frame_bytes <= LARGEST_BYTES,
            "a frame of {frame_bytes} bytes fits in no stack: the largest has 8 MiB"
        );
        self.poller.check_stack(ops, frame_bytes as i32);
    }

    /// Emits the slow paths of all polls and checks that were emitted since the last call: see
    /// [`Polls`] for an example.
    ///
    /// It belongs where execution does not arrive by itself, for example after the last `ret`. Code
    /// whose slow paths are not emitted does not assemble ([`JitError::Assemble`]).
    pub fn finish(&mut self, ops: &mut Ops) {
        self.poller.finish(ops);
    }
}

impl fmt::Debug for Polls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Polls")
            .field("convention", &self.poller.convention())
            .finish_non_exhaustive()
    }
}

/// Where polls find the words that they read, for code that is not emitted with dynasm.
/// Displacements in bytes. [`poll_layout`] returns it.
///
/// ```text
///         cmp rsp, fs:[stack_limit_from_fs]         or, where a register is the goroutine,
///         jbe slow                            cmp rsp, [g + stack_limit_in_goroutine]
///     back:
///         ...
///     slow:
///         lea rsp, [rsp - 128]
///         call QWORD PTR fs:[stub_from_fs]    returns with rsp as it was before the lea
///         jmp back
/// ```
///
/// A check of the stack ([`Polls::check_stack`]) has another slow path:
///
/// ```text
///     slow:
///         lea rsp, [rsp - 128]
///         push frame_bytes                    what the compare has counted
///         call QWORD PTR fs:[stack_check_from_fs]
///         lea rsp, [rsp + 136]
///         jmp back
/// ```
///
/// For a frame of up to 256 bytes its compare is that of a poll, and `frame_bytes` is 0: such a
/// frame has room below the stack limit. For a larger one it compares what rsp will be in the frame
/// to come, in a register that is free,
///
/// ```text
///         lea reg, [rsp - frame_bytes]
///         cmp reg, fs:[stack_limit_from_fs]         or cmp reg, [g + stack_limit_in_goroutine]
///         jbe slow
/// ```
///
/// or, as [`Polls::check_stack`] does, without one. The compare must not lower rsp itself by the
/// frame: rsp would leave the stack, and signal handlers use what is below it.
///
/// ```text
///         lea rsp, [rsp - 128]                48 8d a4 24 80 ff ff ff
///         push rax                            50
///         lea rax, [rsp + 136 - frame_bytes]  48 8d 84 24 disp32
///         cmp rax, fs:[stack_limit_from_fs]         64 48 3b 04 25 disp32, or, with r14,
///                                             49 3b 84 26 disp32
///         pop rax                             58
///         lea rsp, [rsp + 128]
///         jbe slow
/// ```
///
/// In code that has a [stack map](crate::jit::LiveAt), a scan recognises a slow path by these
/// instructions, and uses the entry of the map for `back`. It also recognises that a pointer in rax
/// is on the stack between `push rax` and `pop rax`, in exactly these bytes. With others in
/// between, or with shorter displacements, a scan takes the address in rax for the pointer if the
/// code is interrupted there. Preemptible code that emits other bytes declares that range as unsafe
/// points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollLayout {
    /// Of the stack limit, in the goroutine that r14 points to in `GoAbiInternal`.
    pub stack_limit_in_goroutine: i32,
    /// Of the stack limit of the goroutine that runs, from the base of `fs`.
    pub stack_limit_from_fs: i32,
    /// Of the address of the poll stub, from the base of `fs`.
    pub stub_from_fs: i32,
    /// Of the address of the stack check stub, from the base of `fs`.
    pub stack_check_from_fs: i32,
}

/// The layout in this process. It does not change.
///
/// A poll from bytes, in a leaf that then returns:
///
/// ```
/// use footbridge::abi::Convention;
/// use footbridge::dynasm::{DynasmApi, dynasm};
/// use footbridge::jit::{FrameClass, Jit};
/// use footbridge::runtime::{self, poll_layout};
///
/// let layout = poll_layout()?;
/// // cmp rsp, fs:[stack limit]; jbe +1; ret
/// let mut code = vec![0x64, 0x48, 0x3b, 0x24, 0x25];
/// code.extend(layout.stack_limit_from_fs.to_le_bytes());
/// code.extend([0x76, 0x01, 0xc3]);
/// // lea rsp, [rsp - 128]; call fs:[poll stub]; jmp to the ret
/// code.extend([0x48, 0x8d, 0x64, 0x24, 0x80, 0x64, 0xff, 0x14, 0x25]);
/// code.extend(layout.stub_from_fs.to_le_bytes());
/// code.extend([0xeb, 0xf0]);
/// // SAFETY: a System V leaf that changes flags only.
/// let poll = unsafe {
///     Jit::new()?.install("poll", FrameClass::Leaf, |ops| ops.extend(code.iter().copied()))?
/// };
/// // SAFETY: its convention and types.
/// let poll = unsafe { poll.enter::<fn()>(Convention::SystemV)? };
/// // SAFETY: on a goroutine.
/// runtime::run(|| (0..100_000).for_each(|_| unsafe { poll.call() }));
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
///
/// # Errors
/// Code of this machine does not poll yet ([`JitError::Unsupported`] on AArch64).
pub fn poll_layout() -> Result<PollLayout, JitError> {
    require_polls()?;
    let env = stub_env();
    Ok(PollLayout {
        stack_limit_in_goroutine: env.g_stack_limit_off,
        stack_limit_from_fs: env.tls_stack_limit_off,
        stub_from_fs: env.tls_poll_off,
        stack_check_from_fs: env.tls_stack_check_off,
    })
}

impl Jit {
    /// What emits polls into code of this convention.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, JitError};
    ///
    /// let jit = Jit::new()?;
    /// let mut polls = jit.polls(Convention::SystemV)?;
    /// // SAFETY: a leaf, whose polls are no calls of its own.
    /// let code = unsafe {
    ///     jit.install("a thousand polls", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; mov ecx, 1000; again:);
    ///         polls.poll(ops);
    ///         dynasm!(ops; .arch x64; dec ecx; jnz <again; ret);
    ///         polls.finish(ops);
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let code = unsafe { code.enter::<fn()>(Convention::SystemV)? };
    /// // SAFETY: on a goroutine.
    /// footbridge::runtime::run(|| unsafe { code.call() });
    ///
    /// let other = jit.polls(Convention::Aapcs64);
    /// assert!(matches!(other, Err(JitError::Signature { .. })), "of another machine");
    /// # Ok::<(), JitError>(())
    /// ```
    ///
    /// # Errors
    /// The convention is one of another machine ([`JitError::Signature`]), or code of this machine
    /// does not poll yet ([`JitError::Unsupported`] on AArch64).
    pub fn polls(&self, convention: Convention) -> Result<Polls, JitError> {
        Ok(Polls { poller: Poller::new(convention, stub_env())? })
    }
}
