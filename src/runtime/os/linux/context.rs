#![allow(unsafe_code, reason = "the kernel's signal mask is shorter than the C library's")]
//! The registers in the context that the kernel passes to a signal handler. `libc` names them per
//! architecture.

use crate::runtime::arch::Registers;

#[cfg(target_arch = "x86_64")]
mod machine {
    use super::Registers;

    pub(crate) fn registers(context: &libc::ucontext_t) -> Registers {
        let register = |r: i32| context.uc_mcontext.gregs[r as usize] as usize;
        Registers {
            pc: register(libc::REG_RIP),
            sp: register(libc::REG_RSP),
            fp: register(libc::REG_RBP),
        }
    }

    /// Whether an exception other than a page fault was the thread's last one: an access to an
    /// address that is none (#GP), or an instruction that traps (#OF, #BR). Intel SDM volume 3,
    /// section 6.3.1 has the vectors. The kernel keeps the number of an earlier exception where the
    /// signal is about none.
    pub(crate) fn is_instruction_fault(context: &libc::ucontext_t) -> bool {
        const OVERFLOW: i64 = 4;
        const BOUND: i64 = 5;
        const GENERAL_PROTECTION: i64 = 13;
        let vector = context.uc_mcontext.gregs[libc::REG_TRAPNO as usize];
        matches!(vector, OVERFLOW | BOUND | GENERAL_PROTECTION)
    }

    pub(crate) fn resume_at(context: &mut libc::ucontext_t, pc: usize, sp: usize) {
        let gregs = &mut context.uc_mcontext.gregs;
        gregs[libc::REG_RIP as usize] = pc as i64;
        gregs[libc::REG_RSP as usize] = sp as i64;
    }

    /// What the machine had in its registers, in the order in which reports show them.
    pub(crate) fn all_registers(context: &libc::ucontext_t) -> [(&'static str, usize); 18] {
        [
            ("rax", libc::REG_RAX),
            ("rbx", libc::REG_RBX),
            ("rcx", libc::REG_RCX),
            ("rdx", libc::REG_RDX),
            ("rsi", libc::REG_RSI),
            ("rdi", libc::REG_RDI),
            ("rbp", libc::REG_RBP),
            ("rsp", libc::REG_RSP),
            ("r8", libc::REG_R8),
            ("r9", libc::REG_R9),
            ("r10", libc::REG_R10),
            ("r11", libc::REG_R11),
            ("r12", libc::REG_R12),
            ("r13", libc::REG_R13),
            ("r14", libc::REG_R14),
            ("r15", libc::REG_R15),
            ("rip", libc::REG_RIP),
            ("rflags", libc::REG_EFL),
        ]
        .map(|(name, r)| (name, context.uc_mcontext.gregs[r as usize] as usize))
    }

    /// The pc of the caller of code that has just been entered, as its caller left it.
    pub(crate) fn caller_at_entry(
        context: &libc::ucontext_t,
        read: impl Fn(usize) -> Option<usize>,
    ) -> Option<Registers> {
        let Registers { sp, fp, .. } = registers(context);
        Some(Registers { pc: read(sp)?, sp: sp + 8, fp })
    }

    /// What an access was for that faulted, where the page fault's error code says so: Intel SDM
    /// volume 3, section 4.7.
    pub(crate) fn access(context: &libc::ucontext_t) -> Option<&'static str> {
        const PAGE_FAULT: i64 = 14;
        let register = |r: i32| context.uc_mcontext.gregs[r as usize];
        (register(libc::REG_TRAPNO) == PAGE_FAULT).then(|| match register(libc::REG_ERR) {
            error if error & 1 << 4 != 0 => "execution",
            error if error & 1 << 1 != 0 => "write",
            _ => "read",
        })
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use super::Registers;

    pub(crate) fn registers(context: &libc::ucontext_t) -> Registers {
        let machine = &context.uc_mcontext;
        Registers {
            pc: machine.pc as usize,
            sp: machine.sp as usize,
            fp: machine.regs[29] as usize,
        }
    }

    /// Every exception has an address or a code of its own here.
    pub(crate) fn is_instruction_fault(_: &libc::ucontext_t) -> bool {
        false
    }

    pub(crate) fn resume_at(context: &mut libc::ucontext_t, pc: usize, sp: usize) {
        context.uc_mcontext.pc = pc as u64;
        context.uc_mcontext.sp = sp as u64;
    }

    /// What the machine had in its registers, in the order in which reports show them.
    pub(crate) fn all_registers(context: &libc::ucontext_t) -> [(&'static str, usize); 34] {
        const NAMES: [&str; 34] = [
            "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13",
            "x14", "x15", "x16", "x17", "x18", "x19", "x20", "x21", "x22", "x23", "x24", "x25",
            "x26", "x27", "x28", "x29", "x30", "sp", "pc", "pstate",
        ];
        let machine = &context.uc_mcontext;
        let rest = [machine.sp, machine.pc, machine.pstate];
        let mut values = machine.regs.iter().chain(&rest);
        NAMES.map(|name| (name, values.next().map_or(0, |&value| value as usize)))
    }

    /// The pc of the caller of code that has just been entered, as its caller left it.
    pub(crate) fn caller_at_entry(
        context: &libc::ucontext_t,
        _read: impl Fn(usize) -> Option<usize>,
    ) -> Option<Registers> {
        let pc = context.uc_mcontext.regs[30] as usize;
        Some(Registers { pc, ..registers(context) })
    }

    /// What an access was for that faulted: the context does not say.
    pub(crate) fn access(_context: &libc::ucontext_t) -> Option<&'static str> {
        None
    }
}

/// Makes the thread resume as `from` says when the handler that has `to` returns: with all
/// registers and the signal mask of that context.
pub(super) fn copy(from: &libc::ucontext_t, to: &mut libc::ucontext_t) {
    to.uc_mcontext = from.uc_mcontext;
    // The kernel's signal set is a word. That of the C library is longer, and what follows the
    // word in a handler's context is not the mask.
    // SAFETY: both are the addresses of at least a word.
    unsafe {
        let mask: *const u64 = (&raw const from.uc_sigmask).cast();
        (&raw mut to.uc_sigmask).cast::<u64>().write_unaligned(mask.read_unaligned());
    }
}

pub(super) use machine::{
    access, all_registers, caller_at_entry, is_instruction_fault, registers, resume_at,
};
