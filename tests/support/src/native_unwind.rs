//! Walks by the unwinder of the process (libgcc), for comparison with the crate's own.

#![allow(unsafe_code, reason = "calls the unwinder")]

use std::ffi::{c_int, c_void};

const URC_NO_REASON: c_int = 0;

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

extern "C" fn push(context: *mut c_void, pcs: *mut c_void) -> c_int {
    // SAFETY: the unwinder passes its context and the vector below.
    unsafe { (*pcs.cast::<Vec<usize>>()).push(_Unwind_GetIP(context)) };
    URC_NO_REASON
}

/// The return addresses of all frames, the caller's first, up to the one where the unwinder stops.
#[inline(never)]
pub fn return_addresses() -> Vec<usize> {
    let mut pcs = Vec::with_capacity(64);
    // SAFETY: the visitor takes such a vector and does not unwind.
    unsafe { _Unwind_Backtrace(push, (&raw mut pcs).cast()) };
    // The root frame has no caller, for which libgcc may report a zero.
    pcs.retain(|&pc| pc != 0);
    pcs
}

/// The value that the unwinder restores for a general-purpose register, by its DWARF number, in the
/// first frame whose return address satisfies `is_frame`.
#[inline(never)]
pub fn general_register_of(register: c_int, is_frame: fn(usize) -> bool) -> Option<u64> {
    struct Search {
        register: c_int,
        is_frame: fn(usize) -> bool,
        found: Option<u64>,
    }
    extern "C" fn visit(context: *mut c_void, search: *mut c_void) -> c_int {
        // SAFETY: the unwinder passes its context and the search below.
        unsafe {
            let search = &mut *search.cast::<Search>();
            if search.found.is_none() && (search.is_frame)(_Unwind_GetIP(context)) {
                search.found = Some(_Unwind_GetGR(context, search.register) as u64);
            }
        }
        URC_NO_REASON
    }
    let mut search = Search { register, is_frame, found: None };
    // SAFETY: the visitor takes such a search and does not unwind.
    unsafe { _Unwind_Backtrace(visit, (&raw mut search).cast()) };
    search.found
}
