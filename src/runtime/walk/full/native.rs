//! The full walk with native frames, which are decoded with framehop and the unwind tables of the
//! loaded modules.
//!
//! JIT frames are left by the rules of the exact walk (`step_out`), native ones by framehop
//! (`arch/*/native_frames.rs`). The two meet in the registers: a native frame further out may be
//! found from registers that a JIT frame saved, so each step carries what is known of the
//! callee-saved ones.
//!
//! To make a walker allocates and takes locks. To walk with one does neither.

use std::sync::{Mutex, PoisonError};

use framehop::FrameAddress;

use super::{Frame, MAX_TRACED_FRAMES};
use crate::jit::{StubInfo, lookup, lookup_return};
use crate::runtime::arch::Registers;
use crate::runtime::arch::native_frames::{NativeCache, NativeRegisters, NativeUnwinder};
use crate::runtime::os::modules::{load_counters, loaded_modules};
use crate::runtime::walk::exact::{Bounds, Out, state_of, step_out};

/// Walks stacks by the modules that were loaded when it was made. Made anew for each traceback, and
/// used for all goroutines of one.
pub(in crate::runtime::walk) struct FullWalker {
    unwinder: NativeUnwinder,
    cache: NativeCache,
    /// The counters of loaded and unloaded modules when it was made.
    loaded: (u64, u64),
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
        let (unwinder, loaded) = native_unwinder();
        Self { unwinder, cache: NativeCache::new(), loaded }
    }

    /// The counters of loaded and unloaded modules. Takes a lock of the dynamic linker.
    pub(in crate::runtime::walk) fn load_counters() -> (u64, u64) {
        load_counters()
    }

    /// Whether it was made when the counters of modules were these.
    pub(in crate::runtime::walk) fn is_of(&self, counters: (u64, u64)) -> bool {
        self.loaded == counters
    }

    /// Visits all frames from `at` on, whose pc may be a return address. The anchor is of no
    /// interest here: native frames lead from one JIT segment to the next.
    ///
    /// Returns the registers in a native frame whose caller could not be told, if the walk ended at
    /// one. Their pc is in the instruction that was interrupted or that calls.
    ///
    /// It takes no lock and allocates nothing, so that a signal handler may call it where `visit`
    /// may be called there. If another module is in the place of one of the walker's, the frames
    /// that are found may be wrong, but the walk reads no memory that is gone.
    pub(in crate::runtime::walk) fn walk(
        &mut self,
        at: Registers,
        _anchor: (usize, usize),
        mut is_return_address: bool,
        bounds: &Bounds,
        visit: &mut dyn FnMut(Frame),
    ) -> Option<Registers> {
        let mut registers = NativeRegisters::new(at);
        let mut pc = at.pc;
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
                Some((0, _)) => return None,
                Some(next) => (pc, is_return_address) = next,
                None => {
                    let pc = pc - usize::from(is_return_address);
                    return stub.is_none().then(|| registers.at(pc));
                }
            }
        }
        None
    }

    /// The pc of the caller of a native frame. `None`: there is none, or its tables do not tell.
    fn leave_native(
        &mut self,
        pc: usize,
        is_return_address: bool,
        registers: &mut NativeRegisters,
        bounds: &Bounds,
    ) -> Option<usize> {
        let address = match is_return_address {
            true => FrameAddress::from_return_address(pc as u64)?,
            false => FrameAddress::from_instruction_pointer(pc as u64),
        };
        registers.leave_native(address, &self.unwinder, &mut self.cache, |at| bounds.read(at))
    }
}

/// Leaves a JIT frame, and takes the callee-saved registers that it keeps out of it. `None`: there
/// is no caller, or none that can be told.
fn leave_jit(
    stub: &StubInfo,
    pc: usize,
    exact_pc: bool,
    registers: &mut NativeRegisters,
    bounds: &Bounds,
) -> Option<Caller> {
    let at = registers.at(pc);
    let caller = match step_out(at, stub, exact_pc, (0, 0), bounds) {
        Out::Caller(at) | Out::Native { caller: at, .. } => Caller { at, is_interrupted: false },
        Out::Interrupted { at, .. } => Caller { at, is_interrupted: true },
        Out::Root | Out::Switching | Out::Broken => return None,
    };
    if state_of(stub, exact_pc).has_frame() {
        let exact_offset_bytes = exact_pc.then(|| stub.offset_bytes());
        let (class, is_preemption) = (stub.frame_class(), caller.is_interrupted);
        let read = |word| bounds.read(word);
        registers.restore_kept(class, exact_offset_bytes, is_preemption, at.fp, read);
    }
    registers.leave_to(caller.at);
    Some(caller)
}

/// An unwinder for the modules that are loaded now. To read their tables anew takes long, so the
/// last one is kept.
fn native_unwinder() -> (NativeUnwinder, (u64, u64)) {
    struct Known {
        loaded: (u64, u64),
        unwinder: NativeUnwinder,
    }
    /// The last unwinder that was made.
    ///
    /// It is used while `loaded` equals the counters of loaded and unloaded modules: after that the
    /// tables are not those of what is loaded.
    static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
    let modules = loaded_modules();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = &*known
        && known.loaded == modules.counters
    {
        return (known.unwinder.clone(), known.loaded);
    }
    let mut unwinder = NativeUnwinder::new();
    for module in modules.modules {
        unwinder.add_module(module);
    }
    *known = Some(Known { loaded: modules.counters, unwinder: unwinder.clone() });
    (unwinder, modules.counters)
}
