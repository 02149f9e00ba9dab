#![allow(unsafe_code, reason = "reads what the kernel passes to a handler")]
//! A fault in words: the names of signals and their codes, the registers, and bytes that may not be
//! readable.
//!
//! Everything here may be called in a signal handler: it makes plain system calls, takes no lock
//! and allocates nothing.

use std::ptr;

use super::context;
use super::signals::{self, Signal};
use crate::runtime::arch::Registers;

/// si_code of SIGSEGV and SIGTRAP where the kernel gives no better one: linux/siginfo.h. A
/// breakpoint instruction of x86-64 has it, and so has an address that is not canonical.
const SI_KERNEL: libc::c_int = 0x80;

/// The codes of siginfo, by signal: sigaction(2).
const CODES: &[(libc::c_int, &[&str])] = &[
    (
        signals::SEGMENT,
        &["SEGV_MAPERR", "SEGV_ACCERR", "SEGV_BNDERR", "SEGV_PKUERR", "SEGV_ACCADI"],
    ),
    (signals::BUS, &["BUS_ADRALN", "BUS_ADRERR", "BUS_OBJERR", "BUS_MCEERR_AR", "BUS_MCEERR_AO"]),
    (
        signals::ILLEGAL,
        &[
            "ILL_ILLOPC",
            "ILL_ILLOPN",
            "ILL_ILLADR",
            "ILL_ILLTRP",
            "ILL_PRVOPC",
            "ILL_PRVREG",
            "ILL_COPROC",
            "ILL_BADSTK",
        ],
    ),
    (
        signals::ARITHMETIC,
        &[
            "FPE_INTDIV",
            "FPE_INTOVF",
            "FPE_FLTDIV",
            "FPE_FLTOVF",
            "FPE_FLTUND",
            "FPE_FLTRES",
            "FPE_FLTINV",
            "FPE_FLTSUB",
        ],
    ),
    (signals::TRAP, &["TRAP_BRKPT", "TRAP_TRACE", "TRAP_BRANCH", "TRAP_HWBKPT"]),
];

impl Signal {
    /// The signal's name.
    pub(crate) fn name(&self) -> &'static str {
        match self.number {
            signals::SEGMENT => "SIGSEGV",
            signals::BUS => "SIGBUS",
            signals::ILLEGAL => "SIGILL",
            signals::ARITHMETIC => "SIGFPE",
            signals::TRAP => "SIGTRAP",
            _ => "a signal",
        }
    }

    /// The name of its code.
    pub(crate) fn code_name(&self) -> &'static str {
        let code = self.code();
        if code == SI_KERNEL {
            return "SI_KERNEL";
        }
        let names = CODES.iter().find(|(number, _)| *number == self.number);
        let index = usize::try_from(code).ok().and_then(|code| code.checked_sub(1));
        names.zip(index).and_then(|((_, names), index)| names.get(index)).unwrap_or(&"unknown code")
    }

    fn code(&self) -> libc::c_int {
        // SAFETY: the kernel passed a valid structure, and the handler has not returned.
        unsafe { (*self.info).si_code }
    }

    fn context(&self) -> &libc::ucontext_t {
        // SAFETY: the kernel passed a valid context, and the handler has not returned.
        unsafe { &*self.context.cast() }
    }

    /// Whether it is a fault of an access to memory, so that the address is that of the access.
    pub(crate) fn is_access(&self) -> bool {
        matches!(self.number, signals::SEGMENT | signals::BUS)
    }

    /// The address of the access that faulted. `None`: the signal is about an instruction, or the
    /// CPU does not tell (an address that is not canonical).
    pub(crate) fn access_address(&self) -> Option<usize> {
        self.fault_address().filter(|_| self.is_access() && self.code() != SI_KERNEL)
    }

    /// `read`, `write` or `execution`, where the machine tells.
    pub(crate) fn access(&self) -> Option<&'static str> {
        context::access(self.context()).filter(|_| self.is_access())
    }

    /// Whether a breakpoint instruction was executed.
    pub(crate) fn is_breakpoint(&self) -> bool {
        const TRAP_BRKPT: libc::c_int = 1;
        self.number == signals::TRAP && matches!(self.code(), SI_KERNEL | TRAP_BRKPT)
    }

    /// Whether the signal comes again by itself when the thread resumes: it is a fault of the
    /// instruction at the pc. A breakpoint is one after [`Signal::step_back`], if that knows the
    /// instruction.
    pub(super) fn recurs(&self) -> bool {
        if self.code() <= 0 || self.is_failed_delivery() {
            return false;
        }
        match self.number {
            signals::TRAP if cfg!(target_arch = "x86_64") => {
                self.is_breakpoint() && is_breakpoint_at(self.registers().pc)
            }
            signals::TRAP => self.is_breakpoint(),
            signals::BUS => self.code() != signals::MEMORY_ERROR_ELSEWHERE,
            _ => true,
        }
    }

    /// Of a breakpoint instruction: makes the thread execute it again when the handler returns, for
    /// the action that it has then. x86-64 has gone past the instruction, other machines have not.
    /// Only the `int3` of one byte is known; the others (`int 3` of two bytes, `int1`) are not told
    /// from what else may be in front of the pc.
    pub(crate) fn step_back(&mut self) {
        let Registers { pc, sp, .. } = self.registers();
        if cfg!(target_arch = "x86_64") && is_breakpoint_at(pc.wrapping_sub(1)) {
            // SAFETY: 1. the thread has come from there with these registers.
            unsafe { self.resume_at(pc - 1, sp) };
        }
    }

    /// All registers with their names.
    pub(crate) fn all_registers(&self) -> impl Iterator<Item = (&'static str, usize)> {
        context::all_registers(self.context()).into_iter()
    }

    /// Of a call to an address that cannot be executed: the registers in the caller. `read` reads a
    /// word of the stack.
    pub(crate) fn caller_at_entry(
        &self,
        read: impl Fn(usize) -> Option<usize>,
    ) -> Option<Registers> {
        context::caller_at_entry(self.context(), read)
    }

    /// Makes the thread resume where `outer` has interrupted it. `self` has interrupted the handler
    /// of `outer`, which does not continue.
    ///
    /// # Safety
    /// 1. `outer` was passed to a handler of this thread that has not returned.
    /// 2. The handler of `outer` need not continue.
    pub(crate) unsafe fn resume_like(&mut self, outer: &Signal) {
        // SAFETY: the kernel passed a valid context, which the handler may change. That of `outer`
        // is further up on the same stack by 1., with the vector state that it points to.
        context::copy(outer.context(), unsafe { &mut *self.context.cast() });
    }
}

/// Whether the byte at the address is an `int3` of x86-64.
fn is_breakpoint_at(pc: usize) -> bool {
    const BREAKPOINT: u8 = 0xcc;
    let mut byte = [0];
    read_memory(pc, &mut byte) == 1 && byte == [BREAKPOINT]
}

/// Whether no handler is installed for the signal, and it is not ignored.
pub(crate) fn has_default_action(signal: libc::c_int) -> bool {
    // SAFETY: with a null action the call only reads; the address is that of a local.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_DFL
    }
}

/// Whether the program has a handler of a signal that is no fault, other than this crate's.
pub(crate) fn handles_signals() -> bool {
    let faults = [
        signals::SEGMENT,
        signals::BUS,
        signals::ILLEGAL,
        signals::ARITHMETIC,
        signals::TRAP,
        libc::SIGABRT,
    ];
    let may_be_sent = |signal: &libc::c_int| !faults.contains(signal);
    (1..=libc::SIGRTMAX()).filter(may_be_sent).any(signals::is_handled_by_program)
}

/// How many bytes are left of the alternate stack that a handler runs on. `None`: it runs on no
/// alternate stack.
#[inline(never)]
pub(crate) fn alternate_stack_room() -> Option<usize> {
    let here = 0_u8;
    // SAFETY: with a null stack the call only reads; the address is that of a local.
    unsafe {
        let mut stack: libc::stack_t = std::mem::zeroed();
        let is_known = libc::sigaltstack(ptr::null(), &raw mut stack) == 0;
        let is_used = is_known && stack.ss_flags & libc::SS_ONSTACK != 0;
        is_used.then(|| (&raw const here).addr().saturating_sub(stack.ss_sp as usize))
    }
}

/// Reads memory that may not be readable, from front to back. Returns how many bytes could be read.
///
/// process_vm_readv(2) on this process reads up to the first page that cannot be read. Where a
/// sandbox refuses it, a pipe does the same: write(2) fails with EFAULT.
pub(crate) fn read_memory(at: usize, buffer: &mut [u8]) -> usize {
    // SAFETY: the kernel checks the addresses of the other side, and the buffer is a valid one.
    let read = unsafe {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: buffer.len() };
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    match usize::try_from(read) {
        Ok(read) => read,
        Err(_) => read_through_pipe(at, buffer),
    }
}

fn read_through_pipe(at: usize, buffer: &mut [u8]) -> usize {
    let mut ends = [0; 2];
    // SAFETY: the address of a local; the descriptors are this function's, and are closed below.
    // The kernel checks the address that is written from.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return 0;
        }
        let mut read = 0;
        // One byte at a time: a write that cannot read all of its bytes may write none.
        for byte in buffer {
            let address = (at + read) as *const libc::c_void;
            let is_readable = libc::write(ends[1], address, 1) == 1
                && libc::read(ends[0], ptr::from_mut(byte).cast(), 1) == 1;
            if !is_readable {
                break;
            }
            read += 1;
        }
        for end in ends {
            libc::close(end);
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_up_to_the_first_page_that_is_not_readable() {
        // SAFETY: a new mapping, of which the second page is made unreadable.
        let end = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let pages = libc::mmap(ptr::null_mut(), 8192, libc::PROT_READ, flags, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(pages.byte_add(4096), 4096, libc::PROT_NONE), 0);
            pages as usize + 4096
        };
        for read in [read_memory, read_through_pipe] {
            let mut buffer = [1; 16];
            assert_eq!(read(end - 16, &mut buffer), 16);
            assert_eq!(buffer, [0; 16]);
            assert_eq!(read(end - 5, &mut buffer), 5);
            assert_eq!(read(end, &mut buffer), 0);
            assert_eq!(read(0, &mut buffer), 0);
            let source = *b"0123456789abcdef";
            assert_eq!(read(source.as_ptr() as usize, &mut buffer), 16);
            assert_eq!(buffer, source);
        }
    }
}
