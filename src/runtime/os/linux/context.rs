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

    pub(crate) fn resume_at(context: &mut libc::ucontext_t, pc: usize, sp: usize) {
        context.uc_mcontext.pc = pc as u64;
        context.uc_mcontext.sp = sp as u64;
    }
}

pub(super) use machine::{registers, resume_at};
