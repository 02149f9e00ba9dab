//! The registers in the context that the kernel hands to a signal handler.

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

pub(super) use machine::{registers, resume_at};
