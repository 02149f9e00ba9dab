#![allow(unsafe_code, reason = "switches stacks")]
//! The instructions that leave one stack for another (contract: `arch/switch.rs`; the stubs that
//! they jump to: `jit/stubs/switch/x86_64.rs`).
//!
//! # State
//!
//! A site declares that it loses every register but rsp, rbp and rbx. rbp and rbx go into the
//! Gobuf: an asm block cannot name them. xmm0 to xmm15, the x87 stack and the mask registers hold
//! nothing over a call in System V, so that the compiler has saved what is live of them. MXCSR and
//! the x87 control word are the thread's (`sched/fp_control.rs`).
//!
//! Addresses grow up the page. `rsp ->` and `rbp ->` are registers, `sp ->` and `fp ->` fields of
//! the Gobuf.
//!
//! ```text
//!            running                 parked in goswitch         on the system stack (mcall)
//!
//!       |  frames of the   |       |  frames of the   |        |  frames of the   |
//!       |  caller          |       |  caller          |        |  caller          |
//!       +------------------+       +------------------+        +------------------+
//!       |  return address  |       |  return address  |        |  return address  |
//!       |  frame of the    |       |  frame of the    |        |  frame of the    |
//!       |  site's function |       |  site's function |        |  site's function |
//!  rsp ->------------------+  sp ->+------------------+   sp ->+------------------+
//!
//!       pc = 0                     pc = label 2 of the         pc = label 2 of the site
//!       sp, fp, base: stale        site                        fp = rbp, base = rbx of the site
//!                                  fp, base = its rbp, rbx
//!                                                              the thread's stack:
//!                                                                system_sp ->  (16-aligned)
//!                                                                |  return address: `ud2`   |
//!                                                           rsp ->--------------------------+
//!                                                                rbp = 0
//!
//!           new                    on the system stack (systemstack)
//!
//!       |  task            |       |  frames of the   |
//!   sp ->------------------+       |  caller          |       |  frames of the thread    |
//!                                  +------------------+       +--------------------------+
//!       pc = goroutine entry       |  return address  |       |  return address: stub    |
//!       fp = 0                rbp ->  saved rbp       |       |  frame of the function   |
//!                                  +------------------+  rsp ->--------------------------+
//! ```
//!
//! Between `goswitch` of one goroutine and label 2 of the next, registers are half of each. No
//! frame is older to an unwinder there: the call frame information of the range says that rip is
//! undefined.
//!
//! Stores of x86-64 are seen in program order (Intel SDM volume 3, section 9.2.2): a plain `mov`
//! that comes last is the Release that the Gobuf demands.

use std::arch::asm;

use crate::runtime::arch::cfi::describe_frame;
use crate::runtime::arch::gobuf::Gobuf;
use crate::runtime::arch::stubs;

/// See `arch/switch.rs`.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of.
/// 2. `to` holds a saved context that nothing else resumes.
#[inline(always)]
pub(crate) unsafe fn goswitch(from: *const Gobuf, to: *const Gobuf) {
    // SAFETY: saves rsp, rbp, rbx and where to resume to `from` (1) and loads those of `to` (2);
    // everything else is declared lost. rsi is the Gobuf on arrival, as the goroutine entry stub
    // expects it.
    unsafe {
        asm!(
            // The return address is undefined from here to label 2: no frame is older.
            describe_frame!(".cfi_remember_state\n.cfi_undefined rip"),
            "lea rcx, [rip + 2f]",
            "mov [rdi + {sp}], rsp",
            "mov [rdi + {bp}], rbp",
            "mov [rdi + {bx}], rbx",
            // `from` is complete: from here on another thread may inspect its stack.
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

/// See `arch/switch.rs`.
///
/// # Safety
/// 1. `to` holds a saved context that nothing else resumes.
/// 2. Nothing on the running stack is needed any more.
#[inline(always)]
pub(crate) unsafe fn gogo(to: *const Gobuf) -> ! {
    // SAFETY: the stub loads the context (1) and does not come back (2).
    unsafe {
        asm!(
            "jmp {stub}",
            stub = in(reg) stubs::gogo(),
            in("rsi") to,
            options(noreturn),
        );
    }
}

/// See `arch/switch.rs`.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of, not on that system stack.
/// 2. `system_sp` is a multiple of 16, and what is below it on that stack is dead.
#[inline(always)]
pub(crate) unsafe fn mcall<T>(
    from: *const Gobuf,
    system_sp: usize,
    f: unsafe extern "C" fn(*const T) -> !,
    argument: *const T,
) {
    // SAFETY: as in `goswitch` (1); the function gets a fresh stack (2), which is 16-aligned where
    // its return address is pushed.
    unsafe {
        asm!(
            "lea rcx, [rip + 2f]",
            "jmp {stub}",
            "2:",
            stub = in(reg) stubs::mcall(),
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
