//! Code memory, stacks, and faults.
//!
//! Most tests here limit or crash their process, and therefore run in a child.

mod code;
// JIT code that faults is x86-64's.
#[cfg(target_arch = "x86_64")]
mod crash;
mod faults;
mod hosts;
mod plugins;
mod stacks;
mod undeliverable;

use support::child::Refusal;

/// Endless recursion, in a function that calls nothing else.
#[inline(never)]
#[allow(unconditional_recursion, reason = "it must overflow the stack")]
fn sink(above: &[u64; 4]) -> u64 {
    let here = [above[0] ^ 1, 2, 3, 4];
    sink(&here) ^ here[(above[0] & 3) as usize]
}

/// Exits without running destructors or locking standard error.
fn write_and_exit(text: &str, code: libc::c_int) -> ! {
    // SAFETY: a valid buffer; ends the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(code)
    }
}

const MADV_GUARD_INSTALL: u32 = 102;

/// Refuses madvise(2) with `MADV_GUARD_INSTALL`, as kernels before Linux 6.13 do.
fn refuse_guard_markers() -> Refusal {
    let argument = Some((2, u32::MAX, MADV_GUARD_INSTALL));
    Refusal { call: libc::SYS_madvise, argument, errno: libc::EINVAL }
}
