//! The full walk with native frames, which are decoded with framehop and the unwind tables of the
//! loaded modules.
//!
//! JIT frames are left by the rules of the exact walk (`step_out`), native ones by framehop. The
//! two meet in the registers: a native frame further out may be found from registers that a JIT
//! frame saved, so each step carries what is known of the five callee-saved ones.
//!
//! It allocates and takes locks, so it must never run in a signal handler.

use std::sync::{Mutex, PoisonError};

use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder};

use super::{Frame, MAX_TRACED_FRAMES};
use crate::jit::{FrameClass, StubInfo, lookup, lookup_return, saved_registers};
use crate::runtime::arch::Registers;
use crate::runtime::os::modules::loaded_modules;
use crate::runtime::walk::exact::{Bounds, Out, state_of, step_out};

/// Walks stacks by the modules that were loaded when it was made. Made anew for each traceback, and
/// used for all goroutines of one.
pub(in crate::runtime::walk) struct FullWalker {
    unwinder: NativeUnwinder,
    cache: Box<CacheX86_64>,
}

/// What a step out of a JIT frame leads to.
struct Caller {
    at: Registers,
    /// Whether the code there was interrupted, so that its pc is no return address.
    is_interrupted: bool,
}

impl FullWalker {
    /// How many frames of a walk from `registers_here` are the function's own.
    pub(in crate::runtime::walk) const OWN_FRAMES: usize = 1;

    pub(in crate::runtime::walk) fn new() -> Self {
        Self { unwinder: native_unwinder(), cache: Box::new(CacheX86_64::new()) }
    }

    /// Visits all frames from `at` on. The anchor is of no interest here: native frames lead from
    /// one JIT segment to the next.
    pub(in crate::runtime::walk) fn walk(
        &mut self,
        at: Registers,
        _anchor: (usize, usize),
        bounds: &Bounds,
        visit: &mut dyn FnMut(Frame),
    ) {
        let mut registers = UnwindRegsX86_64::new(at.pc as u64, at.sp as u64, at.fp as u64);
        let mut pc = at.pc;
        let mut is_return_address = false;
        for _ in 0..MAX_TRACED_FRAMES {
            let stub = if is_return_address { lookup_return(pc) } else { lookup(pc) };
            visit(Frame { pc, is_return_address, stub });
            let next = match stub {
                Some(stub) => leave_jit(&stub, pc, !is_return_address, &mut registers, bounds)
                    .map(|caller| (caller.at.pc, !caller.is_interrupted)),
                None => self
                    .leave_native(pc, is_return_address, &mut registers, bounds)
                    .map(|pc| (pc, true)),
            };
            match next {
                Some((0, _)) => return,
                Some(next) => (pc, is_return_address) = next,
                None => return,
            }
        }
    }

    /// The pc of the caller of a native frame. `None`: there is none, or its tables do not tell.
    fn leave_native(
        &mut self,
        pc: usize,
        is_return_address: bool,
        registers: &mut UnwindRegsX86_64,
        bounds: &Bounds,
    ) -> Option<usize> {
        let address = match is_return_address {
            true => FrameAddress::from_return_address(pc as u64)?,
            false => FrameAddress::from_instruction_pointer(pc as u64),
        };
        let mut read = |at: u64| bounds.read(at as usize).map(|word| word as u64).ok_or(());
        let caller =
            self.unwinder.unwind_frame(address, registers, &mut self.cache, &mut read).ok()?;
        caller.map(|caller| caller as usize)
    }
}

/// Leaves a JIT frame, and takes the callee-saved registers that it keeps out of it. `None`: there
/// is no caller, or none that can be told.
fn leave_jit(
    stub: &StubInfo,
    pc: usize,
    exact_pc: bool,
    registers: &mut UnwindRegsX86_64,
    bounds: &Bounds,
) -> Option<Caller> {
    let at = Registers { pc, sp: registers.sp() as usize, fp: registers.bp() as usize };
    let caller = match step_out(at, stub, exact_pc, (0, 0), bounds) {
        Out::Caller(at) | Out::Native { caller: at, .. } => Caller { at, is_interrupted: false },
        Out::Interrupted { at, .. } => Caller { at, is_interrupted: true },
        Out::Root | Out::Switching | Out::Broken => return None,
    };
    // How many registers the frame keeps at this instruction, and in which word below rbp the first
    // one is.
    let (count, first_slot) = match stub.frame_class() {
        FrameClass::Saved | FrameClass::Entry if exact_pc => {
            (saved_registers(stub.offset_bytes()), 1)
        }
        FrameClass::Saved | FrameClass::Entry => (5, 1),
        // The frame of a stub that deschedules begins with rflags.
        _ if caller.is_interrupted => (5, 2),
        _ => (0, 0),
    };
    if state_of(stub, exact_pc).has_frame() {
        let saved = [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15];
        for (register, slot) in saved.into_iter().take(count).zip(first_slot..) {
            if let Some(value) = bounds.read(at.fp.wrapping_sub(8 * slot)) {
                registers.set(register, value as u64);
            }
        }
    }
    registers.set_ip(caller.at.pc as u64);
    registers.set_sp(caller.at.sp as u64);
    registers.set_bp(caller.at.fp as u64);
    Some(caller)
}

type NativeUnwinder = UnwinderX86_64<&'static [u8]>;

/// An unwinder for the modules that are loaded now. To read their tables anew takes long, so the
/// last one is kept.
fn native_unwinder() -> NativeUnwinder {
    struct Known {
        loaded: (u64, u64),
        unwinder: NativeUnwinder,
    }
    /// The last unwinder that was made.
    ///
    /// Invariant: it is used only while `loaded` equals the counters of loaded and unloaded
    /// modules. A module that is unloaded changes them, so that its tables are not read again.
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
