#![allow(unsafe_code, reason = "switches stacks")]
//! The switch from one goroutine to another, and the Rust side of the other switch stubs: asm sites
//! that leave for another stack.
//!
//! A site states that every register is lost except rsp, and rbp and rbx, which are kept in the
//! Gobuf because an asm block cannot name them. The compiler then saves what is live and nothing
//! else. The site gives its resume address in rcx and *jumps*:
//!
//! ```text
//!        lea rcx, [rip + 2f]          the goroutine's stack, addresses grow upwards
//!        jmp stub                      |  frames of the caller    |
//!     2: (resumed here)                |  frame of this function  | <- rsp, saved as it is
//! ```
//!
//! Nothing is pushed, so that at label 2 the compiler's own call frame information is right and
//! a parked goroutine can be unwound from (pc, sp, bp) of its Gobuf.
//!
//! `goswitch` is no stub but is written out at each site: the processor then predicts for each site
//! where it leads, which is three times as fast as a jump that all sites share. In between, from
//! the first instruction to the last, the call frame information says that nothing is above:
//! whoever unwinds there from a signal ends, as in a stub.

use std::arch::asm;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::jit::stubs::switch::SwitchStubs;
use crate::runtime::arch::gobuf::Gobuf;

static GOGO: AtomicUsize = AtomicUsize::new(0);

static MCALL: AtomicUsize = AtomicUsize::new(0);

pub(crate) static SYSTEMSTACK: AtomicUsize = AtomicUsize::new(0);

static GOROUTINE_ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Directives for the description of a frame.
#[cfg(not(footbridge_no_unwind_tables))]
macro_rules! describe_frame {
    ($directives:literal) => {
        $directives
    };
}

/// Where functions have no unwind tables there must be none: `build.rs`.
#[cfg(footbridge_no_unwind_tables)]
macro_rules! describe_frame {
    ($directives:literal) => {
        ""
    };
}

/// Makes these the stubs that the functions of this file jump to.
pub(crate) fn set_stubs(stubs: SwitchStubs) {
    let SwitchStubs { gogo, mcall, systemstack, goroutine_entry } = stubs;
    GOGO.store(gogo, Ordering::Relaxed);
    MCALL.store(mcall, Ordering::Relaxed);
    SYSTEMSTACK.store(systemstack, Ordering::Relaxed);
    GOROUTINE_ENTRY.store(goroutine_entry, Ordering::Relaxed);
}

/// The pc at which a goroutine starts.
pub(crate) fn goroutine_entry() -> usize {
    GOROUTINE_ENTRY.load(Ordering::Relaxed)
}

/// The systemstack stub, which is called: see `sched/systemstack.rs`.
pub(crate) fn systemstack_stub() -> usize {
    SYSTEMSTACK.load(Ordering::Relaxed)
}

/// Saves the running context to `from` and continues `to`. Returns when somebody continues `from`.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of.
/// 2. `to` holds a saved context that nobody else continues.
#[inline(always)]
pub(crate) unsafe fn goswitch(from: *const Gobuf, to: *const Gobuf) {
    // SAFETY: saves rsp, rbp, rbx and where to resume to `from` and loads those of `to`; everything
    // else is declared lost. The saved pc is written last and cleared when it is used, and rsi is
    // the Gobuf on arrival, as with the stubs (`jit/stubs/switch.rs`).
    unsafe {
        asm!(
            describe_frame!(".cfi_remember_state\n.cfi_undefined rip"),
            "lea rcx, [rip + 2f]",
            "mov [rdi + {sp}], rsp",
            "mov [rdi + {bp}], rbp",
            "mov [rdi + {bx}], rbx",
            "mov [rdi + {pc}], rcx",
            "mov rcx, [rsi + {pc}]",
            "mov rsp, [rsi + {sp}]",
            "mov rbp, [rsi + {bp}]",
            "mov rbx, [rsi + {bx}]",
            "mov qword ptr [rsi + {pc}], 0",
            "jmp rcx",
            describe_frame!(".cfi_restore_state"),
            "2:",
            sp = const Gobuf::LAYOUT.sp,
            pc = const Gobuf::LAYOUT.pc,
            bp = const Gobuf::LAYOUT.fp,
            bx = const Gobuf::LAYOUT.base,
            inout("rdi") from => _,
            inout("rsi") to => _,
            out("rcx") _,
            lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
}

/// Continues `to` and forgets the running context.
///
/// # Safety
/// 1. `to` holds a saved context that nobody else continues.
/// 2. Nothing on the running stack is needed any more.
#[inline(always)]
pub(crate) unsafe fn gogo(to: *const Gobuf) -> ! {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "jmp {stub}",
            stub = in(reg) GOGO.load(Ordering::Relaxed),
            in("rsi") to,
            options(noreturn),
        );
    }
}

/// Saves the running context to `from` and calls `f(argument)` with rsp = `system_sp`, the start of
/// this thread's system stack.
/// Returns when somebody continues `from`.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of, not on that system stack.
/// 2. What is on the system stack below its saved rsp is dead.
#[inline(always)]
pub(crate) unsafe fn mcall<T>(
    from: *const Gobuf,
    system_sp: usize,
    f: unsafe extern "C" fn(*const T) -> !,
    argument: *const T,
) {
    // SAFETY: as in `goswitch`; the function gets a fresh stack, 16-aligned.
    unsafe {
        asm!(
            "lea rcx, [rip + 2f]",
            "jmp {stub}",
            "2:",
            stub = in(reg) MCALL.load(Ordering::Relaxed),
            inout("rdi") from => _,
            inout("rsi") system_sp => _,
            inout("rdx") f => _,
            inout("r8") argument => _,
            out("rcx") _,
            lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
            clobber_abi("sysv64"),
        );
    }
}

/// rsp in the frame of the caller.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}
