//! Walks by the process's unwinder in a signal handler, compared with a shadow stack.
//!
//! [`compare_each_step`] runs a function with the trap flag set. The handler keeps a shadow stack:
//! at each `call` that was executed it pushes the return address and the registers that a callee
//! preserves, and at each `ret` it pops. Then it unwinds, and all older frames must be as the
//! shadow stack has them: addresses and registers, out to the root of the thread.
//!
//! The code must not switch stacks, jump out of frames, or unwind by itself.

#![allow(unsafe_code, reason = "a signal handler, the trap flag, the unwinder")]

use std::arch::global_asm;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::ptr;

const MAX_FRAMES: usize = 128;
const MAX_STEPS: usize = 1 << 17;
const MAX_WRONG: usize = 8;

/// DWARF numbers of rbx, rbp, r12 to r15.
const PRESERVED: [c_int; 6] = [3, 6, 12, 13, 14, 15];

/// A frame: where its code is, and the registers of [`PRESERVED`] in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    pub pc: usize,
    pub registers: [usize; 6],
}

const NO_FRAME: Frame = Frame { pc: 0, registers: [0; 6] };

/// Frames, innermost first or outermost first.
#[derive(Clone, Copy)]
struct Frames {
    all: [Frame; MAX_FRAMES],
    len: usize,
}

impl Frame {
    /// rbp in the frame.
    pub fn rbp(&self) -> usize {
        self.registers[1]
    }
}

impl Frames {
    const NONE: Self = Self { all: [NO_FRAME; MAX_FRAMES], len: 0 };

    fn push(&mut self, frame: Frame) {
        if let Some(slot) = self.all.get_mut(self.len) {
            *slot = frame;
            self.len += 1;
        }
    }

    fn frames(&self) -> &[Frame] {
        &self.all[..self.len]
    }
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_GetGR(context: *mut c_void, register: c_int) -> usize;
}

extern "C" fn push_frame(context: *mut c_void, frames: *mut c_void) -> c_int {
    // SAFETY: the unwinder passes its context and the frames below.
    unsafe {
        let registers = PRESERVED.map(|register| _Unwind_GetGR(context, register));
        (*frames.cast::<Frames>()).push(Frame { pc: _Unwind_GetIP(context), registers });
    }
    0
}

/// Unwinds, and keeps what is at and below `pc`: the interrupted code, and its callers.
#[inline(never)]
fn unwind_from(pc: usize, out: &mut Frames) {
    out.len = 0;
    // SAFETY: the visitor takes such frames, and does not unwind.
    unsafe { _Unwind_Backtrace(push_frame, ptr::from_mut(out).cast()) };
    let handler = out.frames().iter().position(|frame| frame.pc == pc).unwrap_or(out.len);
    out.all.copy_within(handler..out.len, 0);
    out.len -= handler;
}

/// The interrupted code and its callers, for a handler of the test's own.
pub fn walk_in_handler(context: *const c_void, visit: impl FnOnce(&[Frame])) {
    walk_from(registers(context).0.pc, visit);
}

/// The same where the interrupted pc is known.
pub fn walk_from(pc: usize, visit: impl FnOnce(&[Frame])) {
    let mut frames = Frames::NONE;
    unwind_from(pc, &mut frames);
    visit(frames.frames());
}

/// The interrupted code, and its rsp.
fn registers(context: *const c_void) -> (Frame, usize) {
    use libc::{REG_R12, REG_R13, REG_R14, REG_R15, REG_RBP, REG_RBX, REG_RIP, REG_RSP};
    // SAFETY: the kernel passes a valid context.
    let all = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let of = |register: c_int| all[register as usize] as usize;
    let registers = [REG_RBX, REG_RBP, REG_R12, REG_R13, REG_R14, REG_R15].map(of);
    (Frame { pc: of(REG_RIP), registers }, of(REG_RSP))
}

/// A step at which the unwinder was wrong.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    pub pc: usize,
    /// Counted from the interrupted code.
    pub frame: usize,
    pub found: Frame,
    pub expected: Frame,
}

/// What [`compare_each_step`] found.
#[derive(Default)]
pub struct Steps {
    /// The pc of each step.
    pub pcs: Vec<usize>,
    pub wrong: Vec<Wrong>,
    pub deepest: usize,
}

struct State {
    /// The callers of the interrupted code, outermost first.
    shadow: Frames,
    previous_pc: usize,
    walk: Frames,
    steps: Steps,
    lost: usize,
}

struct Cell(UnsafeCell<Option<State>>);
// SAFETY: used by one test of a process, on one thread and in its handler.
unsafe impl Sync for Cell {}

static STATE: Cell = Cell(UnsafeCell::new(None));

/// What an instruction does to the stack of frames.
enum Effect {
    Call,
    Return,
    Other,
}

fn effect(pc: usize) -> Effect {
    // SAFETY: the instruction was executed; it has two bytes if the first one is a prefix or 0xff.
    let byte = |at: usize| unsafe { *((pc + at) as *const u8) };
    // Segment, `bnd`/`rep` and REX prefixes.
    let prefixes = (0..3).take_while(|&at| matches!(byte(at), 0x40..=0x4f | 0x64 | 0xf2 | 0xf3));
    let at = prefixes.count();
    match byte(at) {
        0xe8 => Effect::Call,
        0xff if byte(at + 1) >> 3 & 7 == 2 => Effect::Call,
        0xc2 | 0xc3 => Effect::Return,
        _ => Effect::Other,
    }
}

unsafe extern "C" fn on_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the stepped thread alone uses the state, and is interrupted.
    let Some(state) = (unsafe { &mut *STATE.0.get() }) else {
        return;
    };
    let (at, sp) = registers(context);
    unwind_from(at.pc, &mut state.walk);
    if state.previous_pc == 0 {
        for &frame in state.walk.frames().iter().skip(1).rev() {
            state.shadow.push(frame);
        }
    } else {
        match effect(state.previous_pc) {
            Effect::Call => {
                // SAFETY: the call has pushed its return address.
                let pc = unsafe { *(sp as *const usize) };
                state.shadow.push(Frame { pc, registers: at.registers });
            }
            Effect::Return => state.shadow.len = state.shadow.len.saturating_sub(1),
            Effect::Other => {}
        }
    }
    state.previous_pc = at.pc;
    let found = state.walk.frames();
    let callers = state.shadow.frames().iter().rev();
    state.steps.deepest = state.steps.deepest.max(found.len());
    let expected = std::iter::once(&at).chain(callers);
    let expected = expected.chain(std::iter::repeat(&NO_FRAME));
    let pairs = found.iter().chain(std::iter::repeat(&NO_FRAME)).zip(expected).enumerate();
    let different = pairs.take(MAX_FRAMES).find(|(_, (found, expected))| found != expected);
    if let Some((frame, (&found, &expected))) = different {
        let wrong = &mut state.steps.wrong;
        if wrong.len() < wrong.capacity() {
            wrong.push(Wrong { pc: at.pc, frame, found, expected });
        }
    }
    let pcs = &mut state.steps.pcs;
    if pcs.len() < pcs.capacity() {
        pcs.push(at.pc);
    } else {
        state.lost += 1;
    }
}

/// Installs a handler that runs on the thread's alternate stack, which this makes large enough for
/// the unwinder.
pub fn on_signal(
    signal: c_int,
    handler: unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void),
) {
    const STACK_BYTES: usize = 256 << 10;
    // SAFETY: a new stack that is never freed, and a handler of this type.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: Vec::leak(vec![0_u8; STACK_BYTES]).as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: STACK_BYTES,
        };
        assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

/// Runs `f` one instruction at a time, and unwinds at each. In a process with no other user of
/// SIGTRAP.
#[inline(never)]
pub fn compare_each_step(f: impl FnOnce()) -> Steps {
    on_signal(libc::SIGTRAP, on_trap);
    let steps = Steps {
        pcs: Vec::with_capacity(MAX_STEPS),
        wrong: Vec::with_capacity(MAX_WRONG),
        deepest: 0,
    };
    let state = State { shadow: Frames::NONE, previous_pc: 0, walk: Frames::NONE, steps, lost: 0 };
    // SAFETY: no trap happens before the flag is set.
    unsafe { *STATE.0.get() = Some(state) };
    traced(f);
    // SAFETY: no trap happens after the flag is cleared.
    let state = unsafe { (*STATE.0.get()).take() }.expect("set above");
    assert_eq!(state.lost, 0, "the buffer is too small");
    state.steps
}

/// Runs `f` with the trap flag set: the handler of SIGTRAP gets each instruction.
pub fn traced(f: impl FnOnce()) {
    // SAFETY: a handler is installed, and a trap changes nothing that the code can see.
    unsafe { footbridge_test_set_trap_flag() };
    f();
    // SAFETY: changes no other flag.
    unsafe { footbridge_test_clear_trap_flag() };
}

// The tables are exact at each instruction.
global_asm!(
    ".globl footbridge_test_set_trap_flag, footbridge_test_clear_trap_flag",
    "footbridge_test_set_trap_flag:",
    ".cfi_startproc",
    "pushfq",
    ".cfi_def_cfa_offset 16",
    "or dword ptr [rsp], 0x100",
    "popfq",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    "footbridge_test_clear_trap_flag:",
    ".cfi_startproc",
    "pushfq",
    ".cfi_def_cfa_offset 16",
    "and dword ptr [rsp], 0xfffffeff",
    "popfq",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".globl footbridge_test_call_with_odd_registers",
    ".type footbridge_test_call_with_odd_registers,@function",
    "footbridge_test_call_with_odd_registers:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "push rbx",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbx, -24",
    "push r12",
    ".cfi_def_cfa_offset 32",
    ".cfi_offset r12, -32",
    "push r13",
    ".cfi_def_cfa_offset 40",
    ".cfi_offset r13, -40",
    "push r14",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset r14, -48",
    "push r15",
    ".cfi_def_cfa_offset 56",
    ".cfi_offset r15, -56",
    "sub rsp, 8",
    ".cfi_def_cfa_offset 64",
    "mov rax, rdi",
    "mov rdi, rsi",
    // Not canonical, so that a read there faults.
    "movabs rbp, 0x9e3779b97f4a7c15",
    "add rbp, rdx",
    "lea rbx, [rbp + 1]",
    "lea r12, [rbp + 2]",
    "lea r13, [rbp + 3]",
    "lea r14, [rbp + 4]",
    "lea r15, [rbp + 5]",
    "call rax",
    "add rsp, 8",
    ".cfi_def_cfa_offset 56",
    "pop r15",
    ".cfi_def_cfa_offset 48",
    ".cfi_restore r15",
    "pop r14",
    ".cfi_def_cfa_offset 40",
    ".cfi_restore r14",
    "pop r13",
    ".cfi_def_cfa_offset 32",
    ".cfi_restore r13",
    "pop r12",
    ".cfi_def_cfa_offset 24",
    ".cfi_restore r12",
    "pop rbx",
    ".cfi_def_cfa_offset 16",
    ".cfi_restore rbx",
    "pop rbp",
    ".cfi_def_cfa_offset 8",
    ".cfi_restore rbp",
    "ret",
    ".cfi_endproc",
    ".size footbridge_test_call_with_odd_registers, . - footbridge_test_call_with_odd_registers",
);

unsafe extern "sysv64" {
    fn footbridge_test_set_trap_flag();
    fn footbridge_test_clear_trap_flag();
    fn footbridge_test_call_with_odd_registers(target: usize, argument: u64, odd: u64) -> u64;
}

/// Calls a System V function of one argument, while all preserved registers hold what is no
/// address, and differs by `odd`.
///
/// # Safety
/// The target is such a function, and sound to call.
pub unsafe fn call_with_odd_registers(target: usize, argument: u64, odd: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { footbridge_test_call_with_odd_registers(target, argument, odd) }
}

/// The address of the function that [`call_with_odd_registers`] calls, for code that calls it.
pub fn odd_registers_address() -> usize {
    footbridge_test_call_with_odd_registers as *const () as usize
}
