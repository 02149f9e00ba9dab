//! What code does to ask whether its time is over: one compare.
//!
//! ```text
//!         cmp rsp, [guard]
//!         jbe slow              not taken
//!     back:
//!         ...
//!     slow:                     out of line, behind the code
//!         lea rsp, [rsp - 128]
//!         call fs:[poll stub]   saves and restores everything, and drops the 128 bytes
//!         jmp back
//! ```
//!
//! The guard is the limit of the goroutine's stack, or, when it is to give way, larger than any
//! address: the check of the stack and the poll are one (as Go's prologues have it). In
//! ABIInternal r14 is the goroutine, and the guard is a field of it. Elsewhere no register is
//! known, and the guard is a thread-local word that the scheduler keeps equal to it.
//!
//! Changes nothing but flags. Walks know the `call` in a leaf by its bytes ([`is_poll_call`]): it
//! is the one instruction of a leaf at which rsp does not lead to the return address.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use super::StubEnv;
use super::goroutine_fn::pinned_to;
use super::preempt::RED_ZONE_BYTES;
use crate::abi::{Convention, Pinned, Reg};
use crate::jit::Ops;

/// A poll whose slow path is not emitted yet.
pub(crate) struct Pending {
    slow: DynamicLabel,
    back: DynamicLabel,
}

/// The compare and the branch.
pub(crate) fn emit(ops: &mut Ops, env: &StubEnv, convention: Convention) -> Pending {
    let pending = Pending { slow: ops.new_dynamic_label(), back: ops.new_dynamic_label() };
    let (slow, back) = (pending.slow, pending.back);
    match pinned_to(convention, Pinned::Goroutine) {
        Some(Reg::Gpr(g)) => dynasm!(ops; .arch x64; cmp rsp, [Rq(g) + env.g_guard_off]),
        _ => dynasm!(ops; .arch x64; fs cmp rsp, [env.tls_guard_off]),
    }
    dynasm!(ops; .arch x64; jbe =>slow; =>back);
    pending
}

/// The slow path, where execution does not come by itself.
pub(crate) fn emit_slow_path(ops: &mut Ops, env: &StubEnv, Pending { slow, back }: Pending) {
    dynasm!(ops
        ; .arch x64
        ; =>slow
        ; lea rsp, [rsp - RED_ZONE_BYTES as i32]
        ; fs call QWORD [env.tls_poll_off]
        ; jmp =>back
    );
}

/// Where code goes on that is so many bytes from its start, if it is in the slow path of a poll or of
/// a check of the stack (`stack_check.rs`): at the instruction behind the branch. All registers hold
/// there what they hold in the slow path, rsp apart. Elsewhere, that is where the code is.
pub(crate) fn goes_on_at(code: &[u8], at: usize, env: &StubEnv) -> usize {
    // lea rsp, [rsp - 128], as this crate has it and in its short form
    const LEA_DOWN: [&[u8]; 2] =
        [&[0x48, 0x8d, 0xa4, 0x24, 0x80, 0xff, 0xff, 0xff], &[0x48, 0x8d, 0x64, 0x24, 0x80]];
    const LEA_UP: [u8; 8] = [0x48, 0x8d, 0xa4, 0x24, 136, 0, 0, 0]; // lea rsp, [rsp + 136]
    // push imm32; push imm8
    const PUSH: [(&[u8], usize); 2] = [(&[0x68], 5), (&[0x6a], 2)];
    const CALL: [u8; 4] = [0x64, 0xff, 0x14, 0x25]; // call QWORD PTR fs:[disp32]
    const CALL_BYTES: usize = 8;
    let has = |at: usize, bytes: &[u8]| code.get(at..).is_some_and(|c| c.starts_with(bytes));
    let disp32 = |at: usize| {
        let bytes = code.get(at..at.checked_add(4)?)?;
        bytes.try_into().ok().map(i32::from_le_bytes)
    };
    let is_call = |at: usize| {
        has(at, &CALL)
            && disp32(at + CALL.len())
                .is_some_and(|off| [env.tls_poll_off, env.tls_stack_check_off].contains(&off))
    };
    let is_call_before = |at: usize, bytes: usize| at.checked_sub(bytes).is_some_and(is_call);
    // The call, if it is still to come.
    let mut call = at;
    if let Some(lea) = LEA_DOWN.iter().find(|lea| has(call, lea)) {
        call += lea.len();
    }
    if let Some((_, bytes)) = PUSH.iter().find(|(push, _)| has(call, push)) {
        call += bytes;
    }
    let mut behind = if is_call(call) {
        call + CALL_BYTES
    } else if is_call_before(at, CALL_BYTES)
        || is_call_before(at, CALL_BYTES + LEA_UP.len()) && has(at - LEA_UP.len(), &LEA_UP)
    {
        at
    } else {
        return at;
    };
    if has(behind, &LEA_UP) {
        behind += LEA_UP.len();
    }
    match code.get(behind) {
        // jmp rel32, jmp rel8
        Some(0xe9) => {
            disp32(behind + 1).map_or(behind, |rel| (behind + 5).wrapping_add_signed(rel as isize))
        }
        Some(0xeb) => code
            .get(behind + 1)
            .map_or(behind, |&rel| (behind + 2).wrapping_add_signed(rel as i8 as isize)),
        _ => behind,
    }
}

/// Whether an instruction is the call of a poll's slow path, `call QWORD PTR fs:[disp32]`. Its bytes
/// are asked for in their order.
pub(crate) fn is_poll_call(byte: impl Fn(usize) -> u8) -> bool {
    [0x64, 0xff, 0x14, 0x25].into_iter().enumerate().all(|(at, expected)| byte(at) == expected)
}
