//! Names the call in which a fault occurred.

#![allow(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::ptr;

thread_local! {
    /// The description of the case that runs on this thread.
    static CASE: Cell<(*const u8, usize)> = const { Cell::new((ptr::null(), 0)) };
}

/// Runs `f`. If it faults, the report includes `case`.
pub fn with_case<R>(case: &str, f: impl FnOnce() -> R) -> R {
    CASE.set((case.as_ptr(), case.len()));
    let result = f();
    CASE.set((ptr::null(), 0));
    result
}

/// Installs a handler that reports the case of [`with_case`] and ends the process when a thread
/// faults.
pub fn report_faults() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            // SAFETY: the handler reads a thread-local without a destructor, and makes system
            // calls. Every thread that Rust or an M started has an alternate stack.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let write = |bytes: &[u8]| {
        // SAFETY: the bytes exist. A failure is ignored.
        unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) };
    };
    let hex = |n: u64| {
        let digit = |i: usize| b"0123456789abcdef"[(n >> (60 - 4 * i) & 15) as usize];
        let digits: [u8; 16] = std::array::from_fn(digit);
        write(&digits);
    };
    // SAFETY: the kernel passes valid structures.
    let (address, registers) = unsafe {
        ((*info).si_addr() as u64, &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs)
    };
    write(b"\nfault at address ");
    hex(address);
    for (name, n) in [(&b", rip "[..], libc::REG_RIP), (b", rsp ", libc::REG_RSP)] {
        write(name);
        hex(registers[n as usize] as u64);
    }
    let (case, bytes) = CASE.get();
    if !case.is_null() {
        write(b" in this case:\n");
        // SAFETY: borrowed while `with_case` runs.
        write(unsafe { std::slice::from_raw_parts(case, bytes) });
    }
    write(b"\n");
    // SAFETY: the instruction faults again with the default action. SA_RESETHAND does the same, but
    // not in every sandbox.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
