#![allow(unsafe_code, reason = "switches stacks")]
//! The instructions that leave one stack for another (contract: `arch/switch.rs`; the stubs that
//! they jump to: `jit/stubs/switch/aarch64.rs`).
//!
//! # State
//!
//! A site declares that it loses every register but sp, x29, x19 and x18. x29 (the frame pointer)
//! and x19 (LLVM's base pointer of frames with dynamic alignment) go into the Gobuf: an asm block
//! cannot name them. x18 is the platform register (AAPCS64, section 6.1.1): no code here reads or
//! writes it. d8 to d15, which a procedure call preserves, are among the lost ones. FPCR is the
//! thread's (`sched/fp_control.rs`).
//!
//! Addresses grow up the page. `x29 ->` and `sp ->` at the first and the last picture are
//! registers, `fp ->` and `sp ->` elsewhere fields of the Gobuf.
//!
//! ```text
//!            running                 parked in goswitch        on the system stack (mcall)
//!
//!       |  frames of the   |       |  frames of the   |       |  frames of the   |
//!       |  caller          |       |  caller          |       |  caller          |
//!       +------------------+       +------------------+       +------------------+
//!  x29 ->  saved x29, x30  |  fp ->  saved x29, x30  |  fp ->  saved x29, x30  |
//!       |  frame of the    |       |  frame of the    |       |  frame of the    |
//!       |  site's function |       |  site's function |       |  site's function |
//!   sp ->------------------+  sp ->------------------+  sp ->------------------+
//!
//!       pc = 0                     pc = label 2 of the        pc = label 2 of the site
//!       sp, fp, base: stale        site
//!                                  base = its x19             the thread's stack:
//!                                                               x29 = 0, sp = system_sp,
//!                                                               x30 leads to `udf`
//!
//!          new                     on the system stack (systemstack)
//!
//!       |  task            |       |  frames of the   |
//!   sp ->------------------+       |  caller          |       |  frames of the thread    |
//!                                  +------------------+       +--------------------------+
//!       pc = goroutine entry  x29 ->  saved x29, x30  |       |  frame of the function   |
//!       fp = 0                     |  (the stub's)    |   sp ->--------------------------+
//!                                  +------------------+
//! ```
//!
//! # Order of stores
//!
//! The pc is stored by `stlr`, a store-release: stores of this machine are not seen in program
//! order. `stlr` takes no offset, which is why the pc is the first field of the Gobuf. The store
//! that clears the pc of the resumed context is a plain one: see `arch/gobuf.rs`.
//!
//! # Branch targets
//!
//! Sites jump to stubs, and stubs to sites and functions, with `br` and never with `blr`. In a
//! program that enforces branch target identification (`-Z branch-protection=bti`; Arm ARM, section
//! D8.4) a `br` may reach the first instruction of a function if it goes through x16 or x17, as
//! those of the stubs do, and elsewhere a `bti j`: that is what label 2 begins with. On processors
//! without the feature it is a `nop`. Signed return addresses stay valid: their modifier is sp, and
//! a stack never moves.

use std::arch::asm;

use crate::runtime::arch::cfi::describe_frame;
use crate::runtime::arch::gobuf::Gobuf;
use crate::runtime::arch::stubs;

// The pairs that `stp` and `ldp` move, and the address that `stlr` takes.
const _: () = {
    assert!(Gobuf::LAYOUT.pc == 0);
    assert!(Gobuf::LAYOUT.sp == 8);
    assert!(Gobuf::LAYOUT.base == Gobuf::LAYOUT.fp + 8);
};

/// See `arch/switch.rs`.
///
/// # Safety
/// 1. The caller runs on the stack that `from` is the Gobuf of.
/// 2. `to` holds a saved context that nothing else resumes.
#[inline(always)]
pub(crate) unsafe fn goswitch(from: *const Gobuf, to: *const Gobuf) {
    // SAFETY: saves sp, x29, x19 and where to resume to `from` (1) and loads those of `to` (2);
    // everything else but x18 is declared lost. x1 is the Gobuf on arrival, as with the stubs
    // (`jit/stubs/switch`).
    unsafe {
        asm!(
            // The return address is undefined from here to label 2: no frame is older.
            describe_frame!(".cfi_remember_state\n.cfi_undefined x30"),
            "adr x2, 2f",
            "mov x3, sp",
            "str x3, [x0, #{sp}]",
            "stp x29, x19, [x0, #{fp}]",
            // `from` is complete: from here on another thread may inspect its stack.
            "stlr x2, [x0]",
            "ldp x16, x3, [x1]",
            "ldp x29, x19, [x1, #{fp}]",
            "mov sp, x3",
            "str xzr, [x1]",
            "br x16",
            describe_frame!(".cfi_restore_state"),
            "2:",
            "hint #36", // bti j
            sp = const Gobuf::LAYOUT.sp,
            fp = const Gobuf::LAYOUT.fp,
            inout("x0") from => _,
            inout("x1") to => _,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _,
            lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _,
            // x0 to x17, x30, the flags, and all of v0 to v31.
            clobber_abi("C"),
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
            "br {stub}",
            stub = in(reg) stubs::gogo(),
            in("x1") to,
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
    // SAFETY: as in `goswitch` (1); the function gets a fresh stack (2), 16-aligned.
    unsafe {
        asm!(
            "adr x2, 2f",
            "br {stub}",
            "2:",
            "hint #36", // bti j
            stub = in(reg) stubs::mcall(),
            inout("x0") from => _,
            inout("x1") system_sp => _,
            inout("x3") f => _,
            inout("x4") argument => _,
            out("x2") _,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _,
            lateout("x24") _, lateout("x25") _, lateout("x26") _, lateout("x27") _,
            lateout("x28") _,
            clobber_abi("C"),
        );
    }
}

/// sp in the frame of the caller.
#[inline(always)]
pub(crate) fn stack_pointer() -> usize {
    let sp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, sp", out(reg) sp, options(nomem, nostack, preserves_flags)) };
    sp
}
