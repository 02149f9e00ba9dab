//! Runs code one instruction at a time and walks the stack at each instruction.
//!
//! The trap flag (rflags.TF, Intel SDM volume 3, section 18.3.1.4) makes the CPU raise a debug
//! exception after each instruction, which the kernel delivers as SIGTRAP. The flag belongs to the
//! thread, and no switch stub changes it. Once set, it stays set over goroutine switches, on the
//! system stack and in the scheduler, until it is cleared. The kernel clears it for the handler and
//! in system calls. A run with one thread is therefore stepped as a whole, with its scheduler, and
//! nothing in it waits for another thread.
//!
//! The handler keeps the rules for signal handlers: no lock, no allocation, no panic. It runs on
//! the alternate stack that every thread of a run has.

#![allow(unsafe_code, reason = "a signal handler and the trap flag")]

use std::arch::asm;
use std::cell::UnsafeCell;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use footbridge::jit::lookup;
use footbridge::runtime::{Registers, WalkEnd, jit_frames_from};

/// More frames than any test here has.
pub const MAX_FRAMES: usize = 16;
const MAX_TRAPS: usize = 1 << 15;

/// The walk at one instruction, or at consecutive instructions of native code where the walks are
/// equal.
#[derive(Clone, Copy)]
pub struct Trap {
    /// The (first) instruction, which has not been executed yet.
    pub pc: usize,
    /// The mark set by the last [`set_place`].
    pub place: usize,
    /// The number of instructions.
    pub count: usize,
    /// Whether the registry has a stub at the pc.
    pub in_stub: bool,
    pub end: WalkEnd,
    frames: [usize; MAX_FRAMES],
    fps: [usize; MAX_FRAMES],
    len: usize,
}

impl Trap {
    /// Program counters of the frames that the walk visited, innermost first.
    pub fn frames(&self) -> &[usize] {
        &self.frames[..self.len.min(MAX_FRAMES)]
    }

    /// Their frame pointers; 0 where the frame has none of its own.
    pub fn fps(&self) -> &[usize] {
        &self.fps[..self.len.min(MAX_FRAMES)]
    }
}

struct Buffer(UnsafeCell<Vec<Trap>>);
// SAFETY: only the thread that holds `ONE_AT_A_TIME`, and its signal handler, use the buffer.
unsafe impl Sync for Buffer {}

static BUFFER: Buffer = Buffer(UnsafeCell::new(Vec::new()));
static LOST: AtomicUsize = AtomicUsize::new(0);
static PLACE: AtomicUsize = AtomicUsize::new(0);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The function that the handler calls with each pc, or 0. Set while `ONE_AT_A_TIME` is locked.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Sets the mark of the traps that follow. Returns the previous mark.
pub fn set_place(place: usize) -> usize {
    PLACE.swap(place, Ordering::Relaxed)
}

unsafe extern "C" fn on_trap(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid context.
    let at = unsafe {
        let gregs = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        Registers {
            pc: gregs[libc::REG_RIP as usize] as usize,
            sp: gregs[libc::REG_RSP as usize] as usize,
            fp: gregs[libc::REG_RBP as usize] as usize,
        }
    };
    let mut trap = Trap {
        pc: at.pc,
        place: PLACE.load(Ordering::Relaxed),
        count: 1,
        in_stub: lookup(at.pc).is_some(),
        end: WalkEnd::Stopped,
        frames: [0; MAX_FRAMES],
        fps: [0; MAX_FRAMES],
        len: 0,
    };
    let (frames, fps, len) = (&mut trap.frames, &mut trap.fps, &mut trap.len);
    let visit = |frame: footbridge::runtime::JitFrame| {
        if let Some(slot) = frames.get_mut(*len) {
            *slot = frame.pc;
            fps[*len] = frame.fp;
        }
        *len += 1;
        if *len <= MAX_FRAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    // SAFETY: the registers of this thread at the trap.
    trap.end = unsafe { jit_frames_from(at, visit) };
    let hook = HOOK.load(Ordering::Relaxed);
    if hook != 0 {
        // SAFETY: set to a function of this type.
        unsafe { std::mem::transmute::<usize, fn(usize)>(hook)(at.pc) };
    }
    // SAFETY: this is the stepped thread, which holds the lock.
    let traps = unsafe { &mut *BUFFER.0.get() };
    if let Some(last) = traps.last_mut()
        && !trap.in_stub
        && !last.in_stub
        && last.place == trap.place
        && last.end == trap.end
        && last.frames() == trap.frames()
    {
        last.count += 1;
    } else if traps.len() < traps.capacity() {
        traps.push(trap);
    } else {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler takes no lock, does not allocate and does not panic.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_trap as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaddset(&raw mut action.sa_mask, libc::SIGURG);
            assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, ptr::null_mut()), 0);
        }
    });
}

/// Clears the trap flag when dropped, also when a panic unwinds.
struct Stepping;

impl Stepping {
    fn start() -> Self {
        // SAFETY: the handler is installed, and a trap changes nothing that the code can see.
        unsafe { asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
        Self
    }
}

impl Drop for Stepping {
    fn drop(&mut self) {
        clear_trap_flag();
    }
}

/// Clears the trap flag of this thread. A goroutine that runs after a stepped one was preempted
/// finds the flag set. The stepped goroutine has it again when it resumes.
pub fn clear_trap_flag() {
    // SAFETY: changes no other flag.
    unsafe { asm!("pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq") };
}

/// Runs `f` on this thread with a trap at every instruction, and returns the traps in order.
pub fn stepped(f: impl FnOnce()) -> Vec<Trap> {
    step(0, f)
}

/// Like [`stepped`]; the handler also calls `hook` with the pc of each trap. A preemption signal
/// that the hook sends to its own thread is delivered at that pc, when the handler has returned.
pub fn stepped_with(hook: fn(usize), f: impl FnOnce()) -> Vec<Trap> {
    step(hook as *const () as usize, f)
}

fn step(hook: usize, f: impl FnOnce()) -> Vec<Trap> {
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    install();
    HOOK.store(hook, Ordering::Relaxed);
    LOST.store(0, Ordering::Relaxed);
    // SAFETY: the lock is held, and no trap happens before the flag is set.
    unsafe { *BUFFER.0.get() = Vec::with_capacity(MAX_TRAPS) };
    let stepping = Stepping::start();
    f();
    drop(stepping);
    assert_eq!(LOST.load(Ordering::Relaxed), 0, "the buffer is too small");
    // SAFETY: the lock is held, and no trap happens after the flag is cleared.
    std::mem::take(unsafe { &mut *BUFFER.0.get() })
}
