#![allow(unsafe_code, reason = "reads the name that a stub passes")]
//! What stubs of a checked `Jit` call when their caller breaks a contract.

use super::throw::throw;
use super::tls::getg;
use crate::jit::lookup_return;
use crate::jit::stubs::{BrokenCall, MISALIGNED_STACK};

const _: BrokenCall = broken_call;

/// Ends the process. `found`: what the contract is about; `return_address`: in the caller of the
/// stub.
pub(super) extern "C" fn broken_call(
    contract: u32,
    name: *const u8,
    name_bytes: usize,
    found: usize,
    return_address: usize,
) -> ! {
    // SAFETY: a stub passes its interned name, which is UTF-8 and never freed.
    let name = unsafe { str::from_utf8_unchecked(std::slice::from_raw_parts(name, name_bytes)) };
    let caller = Caller(return_address);
    if contract == MISALIGNED_STACK {
        throw(format_args!(
            "{caller} called the stub {name:?} with rsp = {found:#x}, which is not a \
             multiple of 16; lower rsp by 8 more before the call"
        ));
    }
    throw(format_args!(
        "{caller} called the stub {name:?} with r14 = {found:#x}, which is not the \
         goroutine that runs, {:#x}; code of GoAbiInternal keeps r14 as it was entered with",
        getg() as usize
    ))
}

/// The code that a return address leads back to.
struct Caller(usize);

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match lookup_return(self.0) {
            Some(stub) => write!(f, "{stub}"),
            None => write!(f, "code at {:#x}", self.0),
        }
    }
}
