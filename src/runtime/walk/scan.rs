#![allow(unsafe_code, reason = "reads the current goroutine")]
//! Live pointers on a stack: the exact walk, with the stack map of each frame.
//!
//! Where a frame's registers are depends on how its code was left:
//!
//! | the code | its registers |
//! | --- | --- |
//! | has called | in the frames of what it called, or nowhere: a map of a call has no registers |
//! | was interrupted, or yielded at a poll | in the frame of the stub that descheduled it (`jit/stubs/preempt/`), which the walk meets right before |
//! | has called a stub that polls when its work is done | there too: such a stub changes no register after its poll |
//!
//! Like the walk, this takes no lock and allocates nothing. It reads the stack, the registry, and
//! the code of users where they yield. A slot that is not in the stack ends the walk, so that a
//! visitor writes nowhere else.

use std::fmt;
use std::ops::ControlFlow;

use crate::abi::Gpr;
use crate::jit::stubs::preempt;
use crate::jit::{
    FARTHEST_BYTES, FrameClass, FrameState, LiveSlot, RED_ZONE_BYTES, StubInfo, StubKind,
};
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::stack::LARGEST_BYTES;
use crate::runtime::walk::exact::{Bounds, JitFrame, Start, WalkEnd, exact_walk};

const _: () = assert!(LARGEST_BYTES <= FARTHEST_BYTES as usize);

/// A frame of JIT code, and what is alive in it. [`scan_own_stack`] has an example.
///
/// The addresses that it hands out are those of a stack, and valid as long as the frame is visited.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct ScanFrame {
    /// Where the code resumes: a return address, unless it was interrupted or yielded.
    pub pc: usize,
    /// What code that is.
    pub stub: StubInfo,
    /// Its frame pointer; 0 if it has no frame, or not yet, or no longer.
    pub fp: usize,
    /// Whether its registers were saved when the goroutine was descheduled: the code was
    /// interrupted, or yielded at a poll, or what it called did so when its own work was done.
    pub interrupted: bool,
    saved: Option<Saved>,
    frame: FrameSlots,
    /// `None`: it is not known.
    live: Option<&'static [LiveSlot]>,
}

/// Where the registers of an interrupted frame are saved.
#[derive(Clone, Copy)]
struct Saved {
    /// rbp of the stub that descheduled the goroutine.
    fp: usize,
    /// rax is not in its slot but in the word that the interrupted rsp points to.
    is_rax_pushed: bool,
}

impl Saved {
    /// The rsp with which the code resumes.
    fn sp(self) -> usize {
        self.fp + preempt::frame::SP
    }

    /// The word that holds a register. `None`: rsp and rbp.
    fn place_of(self, register: Gpr) -> Option<usize> {
        if register == Gpr::RAX && self.is_rax_pushed {
            return Some(self.sp());
        }
        let index = preempt::frame::REGISTERS.iter().position(|&saved| saved == register)?;
        Some(self.fp - preempt::frame::below_rbp(index))
    }
}

/// Which slots a frame has, and the address that their offsets count from.
#[derive(Clone, Copy)]
enum FrameSlots {
    /// All slots.
    From(usize),
    /// Stack arguments only: rbp is not the frame's own yet, or no longer. It would be this.
    ArgumentsFrom(usize),
    /// A leaf that was not interrupted: its rsp is not known, and a leaf calls nothing.
    Unknown,
}

impl fmt::Debug for ScanFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pc, stub, fp, interrupted, .. } = self;
        f.debug_struct("ScanFrame")
            .field("pc", pc)
            .field("stub", stub)
            .field("fp", fp)
            .field("interrupted", interrupted)
            .finish_non_exhaustive()
    }
}

impl ScanFrame {
    /// Addresses of the live pointers of the frame, as its stack map says ([`LiveAt`] has the
    /// rules).
    ///
    /// They are words of the goroutine's stack. The visitor may read and write them while the frame
    /// is visited; the code resumes with what it finds there. A stack argument comes twice if both
    /// the map of the caller and that of the callee list it.
    ///
    /// Stubs of this crate have none of their own, and an empty list. `None`: the code has no stack
    /// map, or it is an adapter, which may have copies of arguments and results. A visitor that
    /// must not miss a pointer reads all words of the frame then, and its registers.
    ///
    /// ```
    /// use footbridge::abi::Convention;
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{FrameClass, Jit, StubKind};
    /// use footbridge::runtime::{self, scan_own_stack};
    /// use std::ops::ControlFlow;
    ///
    /// let jit = Jit::new()?;
    /// let scan = jit.goroutine_fn(Convention::SystemV, || {
    ///     scan_own_stack(|frame| {
    ///         let is_known = frame.live_slots().is_some();
    ///         // The code below has no stack map; the stubs around it need none.
    ///         assert_eq!(is_known, frame.stub.kind() != StubKind::User);
    ///         ControlFlow::Continue(())
    ///     });
    /// })?;
    /// let scan = scan.address();
    /// // SAFETY: a standard frame around a call.
    /// let code = unsafe {
    ///     jit.install("no map", FrameClass::Standard, |ops| {
    ///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern scan; pop rbp; ret)
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let code = unsafe { code.enter::<fn()>(Convention::SystemV)? };
    /// // SAFETY: on a goroutine.
    /// runtime::run(|| unsafe { code.call() });
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    ///
    /// [`LiveAt`]: crate::jit::LiveAt
    pub fn live_slots(&self) -> Option<impl Iterator<Item = *mut usize> + use<'_>> {
        let place = |slot: &LiveSlot| self.place_of(*slot).map(|at| at as *mut usize);
        Some(self.live?.iter().filter_map(place))
    }

    /// Where a general register of an interrupted frame is saved: the code resumes with what is
    /// there. `None` for rsp and rbp, and for a frame that calls.
    ///
    /// ```
    /// use footbridge::abi::{Convention, Gpr};
    /// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
    /// use footbridge::jit::{Annotations, FrameClass, Jit};
    /// use footbridge::runtime::{self, go, goroutines, gosched, stats};
    /// use std::ops::ControlFlow;
    /// use std::time::Duration;
    ///
    /// // Loops until rax, which begins with 7, is something else.
    /// // SAFETY: a leaf.
    /// let code = unsafe {
    ///     Jit::new()?.install("loop", FrameClass::Leaf, |ops| {
    ///         dynasm!(ops; .arch x64; mov eax, 7; again:; cmp eax, 7; je <again; ret);
    ///         Annotations::preemptible()
    ///     })?
    /// };
    /// // SAFETY: its convention and types.
    /// let code = unsafe { code.enter::<fn() -> u32>(Convention::SystemV)? };
    /// let config = runtime::Config::new().processors(1).time_slice(Duration::from_millis(1));
    /// let result = config.run(|| {
    ///     // SAFETY: on a goroutine.
    ///     let looping = go(move || unsafe { code.call() });
    ///     while stats().asynchronous == 0 {
    ///         gosched();
    ///     }
    ///     let other = goroutines()[1];
    ///     let end = other.scan_stack(Duration::from_secs(60), |frame| {
    ///         // SAFETY: the word is valid during the visit.
    ///         if let Some(rax) = frame.saved_register(Gpr::RAX) {
    ///             unsafe { *rax = 8 };
    ///         }
    ///         ControlFlow::Continue(())
    ///     });
    ///     end.expect("it was suspended");
    ///     looping.join().expect("no panic")
    /// });
    /// assert_eq!(result, Ok(8));
    /// # Ok::<(), footbridge::jit::JitError>(())
    /// ```
    pub fn saved_register(&self, register: Gpr) -> Option<*mut usize> {
        Some(self.saved?.place_of(register)? as *mut usize)
    }

    /// The word of a slot. `None`: the frame has no such slot where it is.
    fn place_of(&self, slot: LiveSlot) -> Option<usize> {
        match slot {
            LiveSlot::Register(register) => self.saved?.place_of(register),
            LiveSlot::Frame(offset) => {
                let base = match self.frame {
                    FrameSlots::From(base) => base,
                    FrameSlots::ArgumentsFrom(base) if offset > 0 => base,
                    FrameSlots::ArgumentsFrom(_) | FrameSlots::Unknown => return None,
                };
                Some(base.wrapping_add_signed(offset as isize))
            }
        }
    }

    /// `saved_at`: rbp of the stub that saved the registers of the frame. `is_exact`: the pc is
    /// where the code resumes, and not a return address.
    fn new(JitFrame { pc, stub, fp }: JitFrame, saved_at: Option<usize>, is_exact: bool) -> Self {
        let mut frame = Self {
            pc,
            stub,
            fp,
            interrupted: saved_at.is_some(),
            saved: saved_at.map(|fp| Saved { fp, is_rax_pushed: false }),
            frame: if fp == 0 { FrameSlots::Unknown } else { FrameSlots::From(fp) },
            live: match stub.kind() {
                StubKind::User | StubKind::Foreign | StubKind::Adapter => None,
                _ => Some(&[]),
            },
        };
        let (map, at) = (stub.stack_map(), stub.offset_bytes());
        let Some(saved) = &mut frame.saved else {
            frame.live = map.map_or(frame.live, |map| Some(map.live_at(at.wrapping_sub(1))));
            return frame;
        };
        if let Some(map) = map {
            let env = stub_env();
            let stubs_from_fs = [env.tls_poll_off, env.tls_stack_check_off];
            frame.live = Some(map.live_at(stub.resumes_at(stubs_from_fs)));
        }
        if is_exact {
            saved.is_rax_pushed = stub.is_rax_pushed();
            let sp = saved.sp();
            frame.frame = match (stub.frame_state(), stub.frame_class()) {
                (FrameState::Lowered, _) => FrameSlots::From(sp + RED_ZONE_BYTES),
                (FrameState::Bare, FrameClass::Leaf) => FrameSlots::From(sp),
                // At `push rbp` and at `ret` rsp points to the return address.
                (FrameState::Bare, _) => FrameSlots::ArgumentsFrom(sp - 8),
                // At `mov rbp, rsp` rsp is what rbp will be.
                (FrameState::Pushed, _) => FrameSlots::ArgumentsFrom(sp),
                _ => frame.frame,
            };
        }
        frame
    }

    /// The first slot that is not in a stack.
    fn stray(&self, bounds: &Bounds) -> Option<usize> {
        let mut places = self.live?.iter().filter_map(|&slot| self.place_of(slot));
        places.find(|&at| !bounds.holds(at))
    }
}

/// Visits the JIT frames of a stack, innermost first, until the visitor breaks. A map that leads
/// out of the bounds is [`WalkEnd::Broken`]. Registers to start from are those of a switch: what an
/// interrupted frame had in its registers is found in the stack only.
pub(crate) fn scan<V: FnMut(&ScanFrame) -> ControlFlow<()> + ?Sized>(
    start: Start,
    bounds: &Bounds,
    visit: &mut V,
) -> WalkEnd {
    // Where the registers of the next frame are, and whether it was interrupted itself.
    let mut saved: Option<(usize, bool)> = None;
    let mut broken = None;
    let end = exact_walk(start, bounds, &mut |frame: JitFrame| {
        let kind = frame.stub.kind();
        let (saved_at, is_exact) = saved.take().unzip();
        let is_exact = is_exact.unwrap_or(false);
        if kind == StubKind::Preempt {
            let lowest = frame.fp.wrapping_sub(preempt::frame::LOWEST_REGISTER);
            let highest = frame.fp.wrapping_add(preempt::frame::PC);
            if !bounds.holds(lowest) || !bounds.holds(highest) {
                broken = Some(frame.fp);
                return ControlFlow::Break(());
            }
            saved = Some((frame.fp, true));
        } else if matches!(kind, StubKind::GoroutineFn | StubKind::Spawn | StubKind::StackCheck) {
            // If it yielded, its work is done, so the saved registers are its caller's. The caller
            // is visited next: native code that called a goroutine function by its bare address has
            // lost its anchor to that, and no walk continues after it.
            saved = saved_at.map(|at| (at, false));
        }
        let frame = ScanFrame::new(frame, saved_at, is_exact);
        broken = frame.stray(bounds);
        match broken {
            None => visit(&frame),
            Some(_) => ControlFlow::Break(()),
        }
    });
    broken.map_or(end, |at| WalkEnd::Broken { at })
}

/// Visits the JIT frames of the calling goroutine, innermost first, with the live pointers that
/// their stack maps list, until `visit` breaks. Native code is skipped, as in
/// [`jit_frames`](crate::runtime::jit_frames): a collector must learn in another way what Rust and
/// C code hold. No lock is taken and nothing is allocated.
///
/// On a thread that runs no goroutine there is none.
///
/// A precise collector that moves objects begins with the roots that this finds. This one moves
/// every live object whenever JIT code calls it:
///
/// ```
/// use footbridge::dynasm::{DynasmApi, DynasmLabelApi, dynasm};
/// use footbridge::abi::Convention;
/// use footbridge::jit::{Annotations, FrameClass, Jit, LiveAt, LiveSlot};
/// use footbridge::runtime::{self, WalkEnd};
/// use std::ops::ControlFlow;
///
/// struct Object {
///     value: u64,
/// }
///
/// let jit = Jit::new()?;
/// let collect = jit.named_goroutine_fn("collect", Convention::SystemV, || {
///     let end = runtime::scan_own_stack(|frame| {
///         let slots = frame.live_slots().expect("all code of this program has a stack map");
///         for slot in slots.map(|slot| slot.cast::<*mut Object>()) {
///             // SAFETY: all slots of all maps hold objects that are alive, each of them one.
///             unsafe {
///                 let old = Box::from_raw(*slot);
///                 *slot = Box::into_raw(Box::new(Object { value: old.value }));
///             }
///         }
///         ControlFlow::Continue(())
///     });
///     assert_eq!(end, WalkEnd::Complete);
/// })?;
/// let target = collect.address();
/// // SAFETY: a standard frame around a call; the object is in the frame meanwhile, nowhere else.
/// let code = unsafe {
///     jit.install("value after a collection", FrameClass::Standard, |ops| {
///         dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 16; mov [rbp - 8], rdi);
///         let call = ops.offset().0;
///         dynasm!(ops; .arch x64; call extern target);
///         let after = ops.offset().0;
///         dynasm!(ops; .arch x64; mov rax, [rbp - 8]; leave; ret);
///         let object = LiveAt { bytes: call..after, slots: vec![LiveSlot::Frame(-8)] };
///         Annotations::new().stack_map([object])
///     })?
/// };
/// // SAFETY: a System V function of that type.
/// let code = unsafe { code.enter::<fn(*mut Object) -> *mut Object>(Convention::SystemV)? };
/// let before = Box::into_raw(Box::new(Object { value: 7 }));
/// // SAFETY: on a goroutine. The code owns the object, and returns it.
/// let after = runtime::run(|| unsafe { Box::from_raw(code.call(before)) });
/// assert_eq!(after.value, 7);
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
pub fn scan_own_stack(mut visit: impl FnMut(&ScanFrame) -> ControlFlow<()>) -> WalkEnd {
    // SAFETY: null, or a G, which is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return WalkEnd::Complete;
    };
    let (fp, pc) = g.anchor.get();
    scan(Start::Anchor { fp, pc }, &Bounds::of(g), &mut visit)
}
