//! The full walk: all frames of a stack, JIT and native. Native frames are decoded with framehop
//! and the unwind tables of the loaded modules. It is for people to read; nothing is decided by it.

use std::sync::{Mutex, PoisonError};

use framehop::x86_64::{CacheX86_64, Reg, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder};

use crate::jit::{FrameClass, StubInfo, lookup, lookup_return, saved_registers};
use crate::runtime::arch::Registers;
use crate::runtime::os::modules::loaded_modules;
use crate::runtime::walk::exact::{Bounds, Out, state_of, step_out};

/// A traceback of more frames is not read to its end.
const MAX_TRACED_FRAMES: usize = 10_000;

/// A frame of the full walk.
pub(crate) struct Frame {
    pub(crate) pc: usize,
    /// Whether the pc is a return address: then the call is the instruction before it.
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
            // Native frames further out may be found from registers that this frame keeps. How many
            // it keeps at this instruction, and in which word below rbp the first one is.
            let (count, first_slot) = match stub.frame_class() {
                FrameClass::Saved | FrameClass::Entry if exact_pc => {
                    (saved_registers(stub.offset_bytes()), 1)
                }
                FrameClass::Saved | FrameClass::Entry => (5, 1),
                // rflags come first.
                _ if interrupted => (5, 2),
                _ => (0, 0),
            };
            if state_of(&stub, exact_pc).has_frame() {
                let saved = [Reg::RBX, Reg::R12, Reg::R13, Reg::R14, Reg::R15];
                for (register, slot) in saved.into_iter().take(count).zip(first_slot..) {
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
