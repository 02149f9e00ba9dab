//! The process's unwinder, asked where it is.

#![allow(unsafe_code, reason = "calls the unwinder")]

use std::ffi::{c_int, c_void};

const URC_NO_REASON: c_int = 0;

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

extern "C" fn push(context: *mut c_void, pcs: *mut c_void) -> c_int {
    // SAFETY: the unwinder passes its context and the vector below.
    unsafe { (*pcs.cast::<Vec<usize>>()).push(_Unwind_GetIP(context)) };
    URC_NO_REASON
}

/// The return addresses of all frames, from the caller's on. They end where the unwinder ends.
#[inline(never)]
pub fn return_addresses() -> Vec<usize> {
    let mut pcs = Vec::with_capacity(64);
    // SAFETY: the visitor takes such a vector and does not unwind.
    unsafe { _Unwind_Backtrace(push, (&raw mut pcs).cast()) };
    // The root's caller is nobody: libgcc may report it as a zero.
    pcs.retain(|&pc| pc != 0);
    pcs
}
