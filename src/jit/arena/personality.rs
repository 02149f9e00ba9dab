#![allow(unsafe_code, reason = "takes part in unwinding")]
//! The personality routines of frame classes that need the registry.

use std::ffi::{c_int, c_void};

#[cfg(feature = "runtime")]
use super::landing::win64_personality;
use crate::jit::frame::FrameClass;
use crate::jit::registry::lookup;

const URC_CONTINUE_UNWIND: c_int = 8;
const UA_SEARCH_PHASE: c_int = 1;

unsafe extern "C" {
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// Address of the routine of a class, if it is not one of `unwind/`.
pub(super) fn personality_of(class: FrameClass) -> Option<usize> {
    match class {
        #[cfg(feature = "runtime")]
        FrameClass::Win64 => Some(win64_personality as *const () as usize),
        FrameClass::Barrier => Some(barrier_personality as *const () as usize),
        _ => None,
    }
}

/// Says why the process ends, before Rust does.
unsafe extern "C" fn barrier_personality(
    _version: c_int,
    actions: c_int,
    _exception_class: u64,
    _exception: *mut c_void,
    context: *mut c_void,
) -> c_int {
    if actions & UA_SEARCH_PHASE != 0 {
        // SAFETY: the unwinder's own context.
        let pc = unsafe { _Unwind_GetIP(context) };
        let name = lookup(pc.wrapping_sub(1)).map_or("?", |stub| stub.name());
        eprintln!(
            "footbridge: the panic ends the process: it has reached `{name}`, code of \
             FrameClass::Barrier, whose caller expects registers that no unwinder restores; \
             catch the panic in what that code calls"
        );
    }
    URC_CONTINUE_UNWIND
}
