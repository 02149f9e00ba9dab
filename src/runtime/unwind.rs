#![allow(unsafe_code, reason = "reads stacks")]
//! Walking stacks.
//!
//! Two walks share the rules of JIT frames:
//!
//! * The **exact walk** visits JIT frames only, and skips native code by anchors. It reads the
//!   stack, the registry and nothing else: no lock, no allocation. It may run in a signal handler.
//! * The **full walk** also decodes native frames, with framehop and the unwind tables of the
//!   loaded modules. It is for people to read, and nothing is decided by it.
//!
//! Why anchors: Rust and C frames need not keep rbp, so that a chain of frame pointers can be
//! trusted inside of one JIT segment only.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};

use super::g::G;
use super::stack::LARGEST_BYTES;
use super::tls;
use crate::jit::stubs::poll;
use crate::jit::stubs::preempt::{self, Leaving};
use crate::jit::{FrameClass, StubInfo, StubKind, entry_frame, lookup, lookup_return};

/// More frames than any stack has: only a stack that is broken has so many.
const MAX_FRAMES: usize = LARGEST_BYTES / size_of::<usize>();
/// Nobody reads more of a traceback.
const MAX_TRACED_FRAMES: usize = 10_000;

/// Registers that a walk starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// rip.
    pub pc: usize,
    /// rsp.
    pub sp: usize,
    /// rbp.
    pub fp: usize,
}

/// A frame of JIT code.
#[derive(Clone, Copy, Debug)]
pub struct JitFrame {
    /// Where the code is: a return address, except perhaps in the first frame of a walk.
    pub pc: usize,
    /// What code that is.
    pub stub: StubInfo,
    /// Its frame pointer; 0 if it has no frame, or not yet, or not any more.
    pub fp: usize,
}

/// Why an exact walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WalkEnd {
    /// No older JIT frame is on the stack.
    Complete,
    /// The pc is in a stub that is between two stacks: what is older cannot be told now.
    Switching,
    /// A frame pointer or return address is not what the frame law demands.
    Broken {
        /// Address of the frame that is wrong.
        at: usize,
    },
    /// The walk was stopped by its visitor.
    Stopped,
}

/// Stacks that a walk may read: usually a goroutine's and its thread's.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    ranges: [(usize, usize); 2],
}

impl Bounds {
    pub(crate) fn new(first: (usize, usize), second: (usize, usize)) -> Self {
        Self { ranges: [first, second] }
    }

    /// Bounds of the stacks that goroutine code of `g` can be on.
    pub(crate) fn of(g: &G) -> Self {
        let stack = g.stack.get();
        let m = g.m.load(std::sync::atomic::Ordering::Relaxed);
        // SAFETY: null, or an M, which is immortal.
        let system = unsafe { m.as_ref() }.map_or((0, 0), |m| m.system_stack.get());
        Self::new((stack.lo, stack.hi), system)
    }

    /// Reads two words of the first stack.
    #[inline(always)]
    fn read_pair(&self, at: usize) -> Option<(usize, usize)> {
        let (lo, hi) = self.ranges[0];
        if !at.is_multiple_of(8) || at.wrapping_sub(lo) >= (hi - lo).saturating_sub(15) {
            return None;
        }
        // SAFETY: as in `read`.
        unsafe {
            let at = at as *const usize;
            Some((at.read_volatile(), at.add(1).read_volatile()))
        }
    }

    /// Whether that is an aligned word of a stack.
    pub(crate) fn holds(&self, at: usize) -> bool {
        let inside = |&(lo, hi): &(usize, usize)| at >= lo && at < hi && hi - at >= 8;
        at.is_multiple_of(8) && self.ranges.iter().any(inside)
    }

    /// Reads a word of a stack.
    fn read(&self, at: usize) -> Option<usize> {
        if !self.holds(at) {
            return None;
        }
        // SAFETY: an aligned word of a stack, which is never unmapped while it may be walked.
        // Another thread may write to it: then the value is of no use but harmless.
        Some(unsafe { (at as *const usize).read_volatile() })
    }
}

/// One step out of a JIT frame.
enum Out {
    Caller(Registers),
    /// Native code entered here: the anchor that was current before (`None`: it still is the
    /// goroutine's), and the native caller.
    Native {
        anchor: Option<(usize, usize)>,
        caller: Registers,
    },
    /// Code that was interrupted here, at any instruction, and the anchor that the goroutine had
    /// then (`None`: it still is the goroutine's).
    Interrupted {
        at: Registers,
        anchor: Option<(usize, usize)>,
    },
    Root,
    Switching,
    Broken,
}

/// The rules of frame classes. `exact_pc`: the code was interrupted at any instruction; otherwise
/// the pc is a return address. `current`: the anchor as far as the walk has come.
#[inline(never)]
fn step_out(
    r: Registers,
    stub: &StubInfo,
    exact_pc: bool,
    current: (usize, usize),
    bounds: &Bounds,
) -> Out {
    let class = stub.frame_class();
    if matches!(stub.kind(), StubKind::Switch) && exact_pc {
        return Out::Switching;
    }
    if stub.kind() == StubKind::Preempt {
        let leaving = if exact_pc { preempt::leaving(code_at(r.pc)) } else { Leaving::No };
        let at = match (leaving, stub.offset_bytes()) {
            (Leaving::AtJump, _) => Some((tls::resume_word(), r.sp, r.fp)),
            (Leaving::FrameDropped, _) | (Leaving::No, 0) => bounds
                .read(r.sp)
                .map(|pc| (pc, r.sp.wrapping_add(8 + preempt::RED_ZONE_BYTES), r.fp)),
            (Leaving::No, 1) if exact_pc => bounds
                .read(r.sp)
                .zip(bounds.read(r.sp.wrapping_add(8)))
                .map(|(fp, pc)| (pc, r.sp.wrapping_add(preempt::frame::SP), fp)),
            (Leaving::No, _) => bounds
                .read(r.fp)
                .zip(bounds.read(r.fp.wrapping_add(preempt::frame::PC)))
                .map(|(fp, pc)| (pc, r.fp.wrapping_add(preempt::frame::SP), fp)),
        };
        // Where rbp is the frame's, the anchor's fp says, at each instruction, whether the slots hold
        // the previous one or it is that itself. Elsewhere it is that.
        let is_own_fp = leaving == Leaving::No && (!exact_pc || stub.offset_bytes() > 1);
        let slot = |offset: isize| bounds.read(r.fp.wrapping_add_signed(offset));
        let anchor = match is_own_fp && current.0 == r.fp {
            true => slot(preempt::frame::PREVIOUS_FP).zip(slot(preempt::frame::PREVIOUS_PC)),
            false => None,
        };
        return at.map_or(Out::Broken, |(pc, sp, fp)| Out::Interrupted {
            at: Registers { pc, sp, fp },
            anchor,
        });
    }
    let caller_at = |cfa: usize, fp: Option<usize>| {
        Some(Registers { pc: bounds.read(cfa.checked_sub(8)?)?, sp: cfa, fp: fp? })
    };
    let caller = match class {
        FrameClass::Root => return Out::Root,
        // A leaf calls nothing but the poll stub, and does that from below its red zone.
        FrameClass::Leaf if exact_pc && poll::is_poll_call(code_at(r.pc)) => {
            caller_at(r.sp.wrapping_add(8 + preempt::RED_ZONE_BYTES), Some(r.fp))
        }
        FrameClass::Leaf => caller_at(r.sp.wrapping_add(8), Some(r.fp)),
        // Before `push rbp`, between it and `mov rbp, rsp`, and at `ret` the frame is not there.
        _ if exact_pc && (stub.offset_bytes() == 0 || is_ret(r.pc)) => {
            caller_at(r.sp.wrapping_add(8), Some(r.fp))
        }
        _ if exact_pc && stub.offset_bytes() == 1 => {
            caller_at(r.sp.wrapping_add(16), bounds.read(r.sp))
        }
        _ => caller_at(r.fp.wrapping_add(16), bounds.read(r.fp)),
    };
    let Some(caller) = caller else {
        return Out::Broken;
    };
    if stub.kind() == StubKind::Systemstack {
        // Native code calls it, and it leaves the anchor alone.
        return Out::Native { anchor: None, caller };
    }
    if class != FrameClass::Entry {
        return Out::Caller(caller);
    }
    // Before the slots are written the goroutine's anchor is what they will hold, and at `ret` it
    // is what they held.
    if exact_pc && (stub.offset_bytes() < stub.prologue_bytes() || is_ret(r.pc)) {
        return Out::Native { anchor: None, caller };
    }
    let slot = |offset: i32| bounds.read(r.fp.wrapping_add_signed(offset as isize));
    match slot(entry_frame::PREVIOUS_FP).zip(slot(entry_frame::PREVIOUS_PC)) {
        Some(anchor) => Out::Native { anchor: Some(anchor), caller },
        None => Out::Broken,
    }
}

/// The bytes of the instruction at a pc that the registry knows. Those who ask go on to the next
/// byte only if the ones before begin an instruction that is longer.
fn code_at(pc: usize) -> impl Fn(usize) -> u8 {
    // SAFETY: the registry knows the pc, so it lies in code, which is readable; code ends with
    // an instruction, so that the bytes of one that has begun are code too.
    move |at| unsafe { (pc as *const u8).add(at).read() }
}

/// Whether the instruction at a pc in emitted code is a `ret`: `ret`, `ret imm16`, `rep ret` or
/// `bnd ret`.
fn is_ret(pc: usize) -> bool {
    let byte = code_at(pc);
    match byte(0) {
        0xc2 | 0xc3 => true,
        0xf2 | 0xf3 => byte(1) == 0xc3,
        _ => false,
    }
}

/// Whether rbp is the frame's own at this pc: behind the prologue and not at `ret`.
fn is_frame_complete(pc: usize, stub: &StubInfo) -> bool {
    const MOV_RBP_RSP_END: usize = 4;
    let dropped = stub.kind() == StubKind::Preempt && preempt::leaving(code_at(pc)) != Leaving::No;
    stub.offset_bytes() >= MOV_RBP_RSP_END && !is_ret(pc) && !dropped
}

/// Where an exact walk begins.
#[derive(Clone, Copy)]
pub(crate) enum Start {
    /// In native code that JIT code called, directly or not: at the goroutine's anchor.
    Anchor { fp: usize, pc: usize },
    /// At registers, taken anywhere; the anchor is the goroutine's.
    Registers { at: Registers, anchor: (usize, usize) },
}

/// Visits the JIT frames of a stack, innermost first, until the visitor says `false`.
#[inline]
pub(crate) fn exact_walk<V: FnMut(JitFrame) -> bool + ?Sized>(
    start: Start,
    bounds: &Bounds,
    visit: &mut V,
) -> WalkEnd {
    let (mut at, mut exact_pc, anchor) = match start {
        Start::Registers { at, anchor } if lookup(at.pc).is_some() => (at, true, anchor),
        // In native code: what is older begins at the anchor.
        Start::Anchor { fp, pc } | Start::Registers { anchor: (fp, pc), .. } => {
            if fp == 0 {
                return WalkEnd::Complete;
            }
            (Registers { pc, sp: 0, fp }, false, (fp, pc))
        }
    };
    let mut past = Past { anchor, interrupted: false };
    for _ in 0..MAX_FRAMES {
        let Some(stub) = stub_at(at.pc, exact_pc) else {
            match behind_native_caller(at, exact_pc, &mut past, bounds) {
                Ok(older) => at = older,
                Err(end) => return end,
            }
            continue;
        };
        // Most frames: a return address into code with a plain frame, below its caller's. Nothing
        // else is kept of the stub over the visit: copies of it cost more than the walk.
        let is_plain = !exact_pc
            && matches!(stub.frame_class(), FrameClass::Standard | FrameClass::Saved)
            && stub.kind() != StubKind::Systemstack;
        let fp = if is_plain || has_frame(at.pc, &stub, exact_pc) { at.fp } else { 0 };
        if !visit(JitFrame { pc: at.pc, stub, fp }) {
            return WalkEnd::Stopped;
        }
        if is_plain
            && let Some((fp, pc)) = bounds.read_pair(at.fp)
            && fp > at.fp
        {
            let sp = at.fp + 16;
            at = Registers { pc, sp, fp };
            continue;
        }
        (at, exact_pc) = match older(at, exact_pc, &mut past, bounds) {
            Ok(older) => older,
            Err(end) => return end,
        };
    }
    WalkEnd::Broken { at: at.fp }
}

/// What is older than a caller that the registry does not know. If it has called, by its bare address,
/// code that was interrupted, then that begins where the anchor was when that happened.
#[cold]
#[inline(never)]
fn behind_native_caller(
    at: Registers,
    exact_pc: bool,
    past: &mut Past,
    bounds: &Bounds,
) -> Result<Registers, WalkEnd> {
    let (fp, pc) = past.anchor;
    match std::mem::take(&mut past.interrupted) && !exact_pc {
        true if fp == 0 => Err(WalkEnd::Complete),
        true if fp >= at.sp && same_stack(fp, at.sp, bounds) => Ok(Registers { pc, sp: 0, fp }),
        _ => Err(WalkEnd::Broken { at: at.fp }),
    }
}

/// What a walk knows of where it has come through. Apart from what each step changes: most steps do
/// not look at it.
struct Past {
    /// What the goroutine's anchor is, or was when code was interrupted.
    anchor: (usize, usize),
    /// Code that was interrupted is in the segment, and nothing that enters it so far.
    interrupted: bool,
}

/// The code of a frame.
#[inline(always)]
fn stub_at(pc: usize, exact_pc: bool) -> Option<StubInfo> {
    if exact_pc { lookup(pc) } else { lookup_return(pc) }
}

/// Whether a frame is there, and rbp is its own.
#[inline(never)]
fn has_frame(pc: usize, stub: &StubInfo, exact_pc: bool) -> bool {
    (!exact_pc || is_frame_complete(pc, stub)) && stub.frame_class() != FrameClass::Leaf
}

/// The frame that is older than this one, and whether its pc is exact; apart from the walk, so that
/// the way of most frames is short.
#[inline(never)]
fn older(
    at: Registers,
    exact_pc: bool,
    past: &mut Past,
    bounds: &Bounds,
) -> Result<(Registers, bool), WalkEnd> {
    let Some(stub) = &stub_at(at.pc, exact_pc) else {
        return Err(WalkEnd::Broken { at: at.fp });
    };
    let complete = !exact_pc || is_frame_complete(at.pc, stub);
    let has_frame = has_frame(at.pc, stub, exact_pc);
    // Where the frame is not complete rbp is the caller's, which may be the anchor's already.
    let lowest = if complete { at.fp } else { at.sp };
    // Whether the frame pointer that was found is one of JIT code. In native code rbp may be anything,
    // and so it may be in what that calls, until it has its own frame.
    let is_own_fp: fn(Registers) -> bool;
    let (older, interrupted) = match step_out(at, stub, exact_pc, past.anchor, bounds) {
        Out::Caller(caller) => {
            is_own_fp = |r| lookup_return(r.pc).is_some();
            (caller, false)
        }
        Out::Interrupted { at, anchor } => {
            is_own_fp = |r| lookup(r.pc).is_some_and(|stub| self::has_frame(r.pc, &stub, true));
            *past = Past { anchor: anchor.unwrap_or(past.anchor), interrupted: true };
            (at, true)
        }
        Out::Native { anchor, .. } => {
            let (fp, pc) = anchor.unwrap_or(past.anchor);
            if fp == 0 {
                return Err(WalkEnd::Complete);
            }
            is_own_fp = |_| true;
            past.interrupted = false;
            (Registers { pc, sp: 0, fp }, false)
        }
        Out::Root => return Err(WalkEnd::Complete),
        Out::Switching => return Err(WalkEnd::Switching),
        Out::Broken => return Err(WalkEnd::Broken { at: at.fp }),
    };
    // Older frames of one stack lie higher.
    let is_lower = has_frame && older.fp <= lowest && same_stack(older.fp, lowest, bounds);
    if is_lower && is_own_fp(older) {
        return Err(WalkEnd::Broken { at: older.fp });
    }
    Ok((older, interrupted))
}

/// Whether two addresses lie in the same stack of the bounds.
fn same_stack(a: usize, b: usize, bounds: &Bounds) -> bool {
    bounds.ranges.iter().any(|&(lo, hi)| (lo..hi).contains(&a) && (lo..hi).contains(&b))
}

/// A frame of the full walk.
pub(crate) struct Frame {
    pub(crate) pc: usize,
    /// Whether the pc is a return address: then what called is in front of it.
    pub(crate) is_return_address: bool,
    pub(crate) stub: Option<StubInfo>,
}

/// What the full walk needs of the loaded modules. Made anew for each traceback, used for all
/// goroutines of one.
pub(crate) struct FullWalker {
    unwinder: NativeUnwinder,
    cache: Box<CacheX86_64>,
}

impl FullWalker {
    pub(crate) fn new() -> Self {
        Self { unwinder: native_unwinder(), cache: Box::new(CacheX86_64::new()) }
    }

    /// Visits all frames, native and JIT, innermost first.
    pub(crate) fn walk(
        &mut self,
        start: Registers,
        exact_pc: bool,
        bounds: &Bounds,
        visit: &mut dyn FnMut(Frame),
    ) {
        let Self { unwinder, cache } = self;
        full_walk(unwinder, cache, start, exact_pc, bounds, visit);
    }
}

fn full_walk(
    unwinder: &NativeUnwinder,
    cache: &mut CacheX86_64,
    start: Registers,
    exact_pc: bool,
    bounds: &Bounds,
    visit: &mut dyn FnMut(Frame),
) {
    let mut regs = UnwindRegsX86_64::new(start.pc as u64, start.sp as u64, start.fp as u64);
    let mut pc = start.pc;
    let mut is_return_address = !exact_pc;
    for _ in 0..MAX_TRACED_FRAMES {
        let stub = if is_return_address { lookup_return(pc) } else { lookup(pc) };
        visit(Frame { pc, is_return_address, stub });
        let mut interrupted = false;
        let next = if let Some(stub) = stub {
            let exact_pc = !is_return_address;
            let at = Registers { pc, sp: regs.sp() as usize, fp: regs.bp() as usize };
            // Anchors are of no interest here.
            let caller = match step_out(at, &stub, exact_pc, (0, 0), bounds) {
                Out::Caller(caller) | Out::Native { caller, .. } => caller,
                Out::Interrupted { at, .. } => {
                    interrupted = true;
                    at
                }
                Out::Root | Out::Switching | Out::Broken => return,
            };
            let first_slot = match stub.frame_class() {
                FrameClass::Saved | FrameClass::Entry => Some(1),
                // rflags come first.
                _ if interrupted => Some(2),
                _ => None,
            };
            if let Some(first_slot) = first_slot
                && (!exact_pc || is_frame_complete(pc, &stub))
            {
                // Native frames further out may be found from registers that this frame keeps.
                let saved = [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15];
                for (register, slot) in saved.into_iter().zip(first_slot..) {
                    if let Some(value) = bounds.read(at.fp.wrapping_sub(8 * slot)) {
                        regs.set(register, value as u64);
                    }
                }
            }
            regs.set_ip(caller.pc as u64);
            regs.set_sp(caller.sp as u64);
            regs.set_bp(caller.fp as u64);
            caller.pc
        } else {
            let address = if is_return_address {
                match FrameAddress::from_return_address(pc as u64) {
                    Some(address) => address,
                    None => return,
                }
            } else {
                FrameAddress::from_instruction_pointer(pc as u64)
            };
            let mut read = |at: u64| bounds.read(at as usize).map(|word| word as u64).ok_or(());
            match unwinder.unwind_frame(address, &mut regs, cache, &mut read) {
                Ok(Some(caller)) => caller as usize,
                Ok(None) | Err(_) => return,
            }
        };
        if next == 0 {
            return;
        }
        pc = next;
        is_return_address = !interrupted;
    }
}

type NativeUnwinder = UnwinderX86_64<&'static [u8]>;

/// An unwinder for the modules that are loaded now.
fn native_unwinder() -> NativeUnwinder {
    struct Known {
        loaded: (u64, u64),
        unwinder: NativeUnwinder,
    }
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let modules = loaded_modules();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = &*known
        && known.loaded == modules.counters
    {
        return known.unwinder.clone();
    }
    let mut unwinder = NativeUnwinder::new();
    for module in modules.modules {
        unwinder.add_module(module);
    }
    *known = Some(Known { loaded: modules.counters, unwinder: unwinder.clone() });
    unwinder
}

#[derive(Default)]
struct Modules {
    modules: Vec<Module<&'static [u8]>>,
    /// How many modules were ever loaded and unloaded.
    counters: (u64, u64),
}

fn loaded_modules() -> Modules {
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        modules: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid description and our own pointer.
        let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Modules>()) };
        modules.counters = (info.dlpi_adds, info.dlpi_subs);
        // SAFETY: as above.
        modules.modules.extend(unsafe { module(info) });
        0
    }
    let mut modules = Modules::default();
    // SAFETY: the callback gets the address of the local.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut modules).cast()) };
    modules
}

/// What framehop must know of a module: its addresses and its unwind tables, read where they are
/// loaded.
///
/// # Safety
/// The description is one that dl_iterate_phdr passes.
unsafe fn module(info: &libc::dl_phdr_info) -> Option<Module<&'static [u8]>> {
    let base = info.dlpi_addr;
    // SAFETY: the program headers of a loaded module.
    let headers =
        unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let loads = || headers.iter().filter(|h| h.p_type == libc::PT_LOAD);
    let segment = |address: u64| {
        loads().map(|h| h.p_vaddr..h.p_vaddr + h.p_memsz).find(|s| s.contains(&address))
    };
    let hdr = headers.iter().find(|h| h.p_type == libc::PT_GNU_EH_FRAME)?;
    let start = loads().map(|h| h.p_vaddr).min()?;
    let end = loads().map(|h| h.p_vaddr + h.p_memsz).max()?;
    let text = loads().find(|h| h.p_flags & libc::PF_X != 0)?;
    // SAFETY: ranges of segments that are loaded and readable. A module that is unloaded later
    // changes the counters; its tables are not read again.
    let bytes = |range: &Range<u64>| unsafe {
        let len = (range.end - range.start) as usize;
        std::slice::from_raw_parts((base + range.start) as *const u8, len)
    };
    let hdr_range = hdr.p_vaddr..hdr.p_vaddr + hdr.p_memsz;
    let hdr_bytes = bytes(&hdr_range);
    // LSB Core 5.0, section 10.6.2: the fifth byte on is eh_frame_ptr, usually pcrel sdata4.
    if hdr_bytes.len() < 8 || hdr_bytes[1] != 0x1b {
        return None;
    }
    let offset = i32::from_le_bytes(hdr_bytes[4..8].try_into().ok()?);
    let eh_frame = (hdr.p_vaddr + 4).checked_add_signed(i64::from(offset))?;
    // The section ends somewhere before its segment does; a zero word ends the table.
    let eh_frame_range = eh_frame..segment(eh_frame)?.end;
    let sections = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: Some(text.p_vaddr..text.p_vaddr + text.p_memsz),
        eh_frame_svma: Some(eh_frame_range.clone()),
        eh_frame: Some(bytes(&eh_frame_range)),
        eh_frame_hdr_svma: Some(hdr_range),
        eh_frame_hdr: Some(hdr_bytes),
        ..Default::default()
    };
    Some(Module::new(String::new(), base + start..base + end, base, sections))
}
