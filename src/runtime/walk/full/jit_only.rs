//! The full walk where native frames are not decoded: JIT frames, and of native code the addresses
//! that are known without decoding. These are where the walk began, and where native code entered
//! JIT code.

use super::{Frame, MAX_TRACED_FRAMES};
use crate::jit::{lookup, lookup_return};
use crate::runtime::arch::Registers;
use crate::runtime::walk::exact::{Bounds, Out, step_out};

/// Walks stacks. It needs nothing of the process.
pub(in crate::runtime::walk) struct FullWalker;

impl FullWalker {
    /// How many frames of a walk from `registers_here` are the function's own, and are not shown.
    /// Here the first one is shown: the caller's address is not known, and a goroutine without JIT
    /// frames would have no frame at all.
    pub(in crate::runtime::walk) const OWN_FRAMES: usize = 0;

    pub(in crate::runtime::walk) fn new() -> Self {
        Self
    }

    /// It depends on no module.
    #[cfg(not(feature = "traceback"))]
    pub(in crate::runtime::walk) fn load_counters() -> (u64, u64) {
        (0, 0)
    }

    /// It depends on no module.
    #[cfg(not(feature = "traceback"))]
    pub(in crate::runtime::walk) fn is_of(&self, _counters: (u64, u64)) -> bool {
        true
    }

    /// Visits the frames that can be told from `at` on, whose pc may be a return address. `anchor`
    /// is the goroutine's. It takes no lock and allocates nothing. Returns `None`: no native frame
    /// is left by rules that may be missing.
    pub(in crate::runtime::walk) fn walk(
        &mut self,
        mut at: Registers,
        mut anchor: (usize, usize),
        mut is_return_address: bool,
        bounds: &Bounds,
        visit: &mut dyn FnMut(Frame),
    ) -> Option<Registers> {
        for _ in 0..MAX_TRACED_FRAMES {
            let stub = if is_return_address { lookup_return(at.pc) } else { lookup(at.pc) };
            visit(Frame { pc: at.pc, is_return_address, stub });
            let exact_pc = !is_return_address;
            let out = stub.map(|stub| step_out(at, &stub, exact_pc, anchor, bounds));
            is_return_address = !matches!(out, Some(Out::Interrupted { .. }));
            match out {
                Some(Out::Caller(caller)) => at = caller,
                Some(Out::Interrupted { at: interrupted, anchor: previous }) => {
                    at = interrupted;
                    anchor = previous.unwrap_or(anchor);
                }
                Some(Out::Native { anchor: previous, caller }) => {
                    at = caller;
                    anchor = previous.unwrap_or(anchor);
                }
                Some(Out::Root | Out::Switching | Out::Broken) => return None,
                // Native code, which the next older JIT code called: its frame is the anchor's.
                None => match anchor {
                    (0, _) => return None,
                    (fp, pc) => at = Registers { pc, sp: 0, fp },
                },
            }
        }
        None
    }
}
