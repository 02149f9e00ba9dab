#![allow(unsafe_code, reason = "reads the name that a stub passes")]
//! What stubs know of the runtime: offsets of fields and thread-local words, and the functions that
//! end the process where a stub finds its contract broken.
//!
//! `jit` gets plain numbers from here. It must not import `runtime`.

use std::sync::OnceLock;

use crate::jit::lookup_return;
use crate::jit::stubs::{BrokenCall, MISALIGNED_STACK, StubEnv};
use crate::runtime::arch::tls;
use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::g::{G_ANCHOR_OFF, G_STACK_HI_OFF, G_STACK_LIMIT_OFF, G_STACK_LO_OFF};
use crate::runtime::os::throw;

/// The numbers that stubs need of this runtime.
pub(crate) fn stub_env() -> &'static StubEnv {
    static ENV: OnceLock<StubEnv> = OnceLock::new();
    ENV.get_or_init(|| StubEnv {
        tls_g_off: tls::g_offset(),
        g_anchor_off: G_ANCHOR_OFF,
        g_stack_limit_off: G_STACK_LIMIT_OFF,
        g_stack_lo_off: G_STACK_LO_OFF,
        g_stack_hi_off: G_STACK_HI_OFF,
        tls_stack_limit_off: tls::g_offset() + tls::STACK_LIMIT_OFF,
        tls_poll_off: tls::g_offset() + tls::POLL_OFF,
        tls_stack_check_off: tls::g_offset() + tls::STACK_CHECK_OFF,
        tls_resume_off: tls::g_offset() + tls::RESUME_OFF,
        tls_fp_control_off: tls::g_offset() + tls::FP_CONTROL_OFF,
        no_goroutine: no_goroutine as *const () as usize,
        broken_call: broken_call as *const () as usize,
    })
}

extern "C" fn no_goroutine() -> ! {
    throw(format_args!(
        "JIT code was entered, or called a goroutine function, on a thread that runs no goroutine; \
         call it from inside of runtime::run"
    ))
}

const _: BrokenCall = broken_call;

/// Ends the process. `found`: the value that breaks the contract; `return_address`: in the caller
/// of the stub.
pub(crate) extern "C" fn broken_call(
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

/// The code that a return address leads to, as an error names it.
pub(crate) struct Caller(usize);

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match lookup_return(self.0) {
            Some(stub) => write!(f, "{stub}"),
            None => write!(f, "code at {:#x}", self.0),
        }
    }
}
