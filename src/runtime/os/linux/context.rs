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
}

pub(super) use machine::{is_instruction_fault, registers, resume_at};
