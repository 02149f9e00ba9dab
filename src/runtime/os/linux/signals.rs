#![allow(unsafe_code, reason = "signal handlers")]
//! Signals: handlers in front of the program's own, masks, and alternate stacks.
//!
//! # What a handler may do
//!
//! A handler runs between any two instructions of its thread: in the midst of malloc, with any lock
//! held, on a thread that is a goroutine, an M in the scheduler, or no part of a run at all.
//!
//! | it may | it must not |
//! | --- | --- |
//! | read and write atomics and words that it owns | take a lock |
//! | read the thread's G and M through `arch::tls` | use `thread_local!`, which may allocate at first use |
//! | look addresses up in the registry; do the exact walk | allocate or free |
//! | make system calls that are async-signal-safe (signal-safety(7)): write, mmap, open, read | call what is not: stdio, `dl_iterate_phdr`, `eprintln!` |
//! | change pc and sp of its context, to resume elsewhere | panic: no frame below it could take that |
//! | abort | change errno: `on_signal` puts it back |
//!
//! # How a signal is handled
//!
//! 1. The kernel enters `on_signal` on the alternate stack, which every M has: a goroutine that
//!    overflowed its stack has none left.
//! 2. `on_signal` calls the crate's [`Handler`] for the signal.
//! 3. A handler that finds that the signal is not the crate's calls [`Signal::chain`], which does
//!    what would have been done without the crate.
//!
//! Handlers are installed once and never removed: another library may have put its own in front
//! meanwhile, and would call into nothing. For the same reason the module that has this code is
//! never unloaded from then on (`jit::pin_module`).
//!
//! # What a chained handler finds
//!
//! A handler that the program installed before the crate's runs as its own action says: with the
//! mask of the interrupted code, its `sa_mask` and the signal (unless it has SA_NODEFER) blocked;
//! once only if it has SA_RESETHAND. System calls that faults interrupt are restarted if it has
//! SA_RESTART. Two flags are the crate's: the handler runs on the thread's alternate stack where
//! there is one, and a preemption signal restarts system calls.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::context;
use crate::jit::{RED_ZONE_BYTES, pin_module};
use crate::runtime::arch;
use crate::runtime::arch::Registers;

/// A fault of an access to memory.
pub(crate) const SEGMENT: libc::c_int = libc::SIGSEGV;

/// A fault of an access to memory that a file does not back.
pub(crate) const BUS: libc::c_int = libc::SIGBUS;

/// An instruction that the CPU does not have, or that stands for a trap.
pub(crate) const ILLEGAL: libc::c_int = libc::SIGILL;

/// A fault of arithmetic: a division by zero or one that overflows.
pub(crate) const ARITHMETIC: libc::c_int = libc::SIGFPE;

/// A breakpoint instruction, a single step, or a watchpoint.
pub(crate) const TRAP: libc::c_int = libc::SIGTRAP;

/// A signal that is ignored by default, that libc does not use and hardly any program does.
pub(crate) const URGENT: libc::c_int = libc::SIGURG;

/// The code of a SIGBUS about broken memory that the thread has not accessed: BUS_MCEERR_AO of
/// linux/siginfo.h.
pub(super) const MEMORY_ERROR_ELSEWHERE: libc::c_int = 5;

/// The number of a signal.
pub(crate) type Number = libc::c_int;

/// Bytes of an M's alternate stack: the frame that the kernel writes (with AVX-512 about 3 KiB),
/// and room to read a symbol table.
const ALT_STACK_BYTES: usize = 128 << 10;

/// Bytes of its guard: handlers of the program run there, too, and may call C functions whose
/// frames step over a page.
const ALT_GUARD_BYTES: usize = 64 << 10;

/// The size of tables that a signal's number indexes: Linux has 64 signals, from 1 on.
const TABLE: usize = 65;

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; TABLE]>);

// SAFETY: an element is written before the handler of its signal is installed, and only read
// afterwards.
unsafe impl Sync for Previous {}

/// The action that each signal had before the crate's.
///
/// Invariant: an element is initialised once the handler of its signal is installed, and does not
/// change afterwards. `replace` writes it, under the lock of `install`; handlers read it.
static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); TABLE]));

/// The crate's handler of each signal: a [`Handler`], or 0.
///
/// Invariant: an element is stored, once, before the handler of its signal is installed. So
/// `on_signal` never finds 0.
static HANDLERS: [AtomicUsize; TABLE] = [const { AtomicUsize::new(0) }; TABLE];

/// The signals whose previous handler was to run once, and has: a bit each.
static RUN_ONCE: AtomicU64 = AtomicU64::new(0);

/// A signal that arrived on this thread, as its handler sees it.
pub(crate) struct Signal {
    pub(super) number: libc::c_int,
    pub(super) info: *mut libc::siginfo_t,
    pub(super) context: *mut libc::c_void,
}

/// Handles a signal. The head of this file says what it may do.
pub(crate) type Handler = fn(&mut Signal);

impl Signal {
    /// Where the thread was interrupted.
    pub(crate) fn registers(&self) -> Registers {
        // SAFETY: the kernel passed a valid context, and the handler has not returned.
        context::registers(unsafe { &*self.context.cast() })
    }

    /// Makes the thread resume at `pc` with this stack pointer when the handler returns.
    ///
    /// # Safety
    /// 1. The code at `pc` can be entered with this stack and the interrupted registers.
    pub(crate) unsafe fn resume_at(&mut self, pc: usize, sp: usize) {
        // SAFETY: the kernel passed a valid context, which the handler may change. By 1. the thread
        // can resume with it.
        context::resume_at(unsafe { &mut *self.context.cast() }, pc, sp);
    }

    /// The address that a fault is about. `None`: the signal was sent, and is no fault.
    pub(crate) fn fault_address(&self) -> Option<usize> {
        // SAFETY: the kernel passed a valid structure, and the handler has not returned.
        unsafe { ((*self.info).si_code > 0).then(|| (*self.info).si_addr() as usize) }
    }

    /// Whether [`send_to_thread`] sent the signal.
    pub(crate) fn is_marked(&self) -> bool {
        // SAFETY: the kernel passed a valid structure, and the handler has not returned.
        unsafe {
            (*self.info).si_code == libc::SI_QUEUE
                && (*self.info).si_value().sival_ptr as usize == mark()
        }
    }

    /// Whether a thread of this process sent the signal to this thread, without a mark.
    pub(crate) fn is_sent_by_this_process(&self) -> bool {
        // SAFETY: the kernel passed a valid structure, and the handler has not returned; getpid has
        // no arguments.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == libc::getpid() }
    }

    /// Whether the kernel sent the fault because it could not enter the handler of another signal:
    /// the stack had no room for the frame of that. (Linux, kernel/signal.c `force_sigsegv`.)
    pub(crate) fn is_failed_delivery(&self) -> bool {
        // SAFETY: the kernel passed valid structures, and the handler has not returned.
        unsafe {
            self.number == SEGMENT
                && (*self.info).si_code == libc::SI_KERNEL
                && !context::is_instruction_fault(&*self.context.cast())
        }
    }

    /// Does what would have been done without the crate's handler.
    pub(crate) fn chain(&self) {
        // SAFETY: 1. these are the handler's arguments, and it has not returned.
        unsafe { chain(self.number, self.info, self.context, self.recurs()) };
    }
}

/// The value that signals of this crate carry: an address that no other code has.
fn mark() -> usize {
    &raw const HANDLERS as usize
}

/// Sends a signal to a thread of this process, with a mark that tells it from others where the
/// kernel allows that. Returns whether that was possible: a thread that has ended gets none.
pub(crate) fn send_to_thread(tid: libc::pid_t, signal: Number) -> bool {
    /// The siginfo_t of a signal that is sent with a value: sigaction(2), and
    /// include/uapi/asm-generic/siginfo.h of Linux.
    #[repr(C)]
    struct WithValue {
        signo: libc::c_int,
        errno: libc::c_int,
        code: libc::c_int,
        padding: libc::c_int,
        pid: libc::pid_t,
        uid: libc::uid_t,
        value: usize,
        rest: [u64; 12],
    }
    const { assert!(size_of::<WithValue>() == size_of::<libc::siginfo_t>()) };
    // SAFETY: a valid structure; the other arguments are numbers.
    unsafe {
        let pid = libc::getpid();
        let info = WithValue {
            signo: signal,
            errno: 0,
            code: libc::SI_QUEUE,
            padding: 0,
            pid,
            uid: libc::getuid(),
            value: mark(),
            rest: [0; 12],
        };
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, &raw const info) == 0
            // A sandbox may know one of the two calls only.
            || libc::syscall(libc::SYS_tgkill, pid, tid, signal) == 0
    }
}

/// Whether the host lets threads of this process signal each other. Sends no signal.
pub(crate) fn can_signal() -> std::io::Result<()> {
    // SAFETY: the call takes nothing.
    let own = unsafe { libc::gettid() };
    match send_to_thread(own, 0) {
        true => Ok(()),
        false => Err(std::io::Error::last_os_error()),
    }
}

/// Installs handlers in front of those that are there. A signal that has a handler of the crate's
/// keeps it.
///
/// While a handler of a signal that is no fault runs no other handler does on that thread, and
/// system calls that it interrupts are restarted where the kernel can.
pub(crate) fn install(handlers: &[(libc::c_int, Handler)]) {
    /// Held while `HANDLERS` and `PREVIOUS` are written.
    static INSTALLING: Mutex<()> = Mutex::new(());
    pin_module();
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    for &(signal, handler) in handlers {
        let installed = &HANDLERS[signal as usize];
        if installed.load(Ordering::Relaxed) == 0 {
            installed.store(handler as usize, Ordering::Release);
            replace(signal);
        }
    }
}

/// Puts [`on_signal`] in front of the handler that is there. The caller has stored the crate's
/// handler and holds the lock.
fn replace(signal: libc::c_int) {
    // SAFETY: the previous action is stored before `on_signal` can run, which keeps the rules at
    // the head of this file. The lock is held, so no other thread writes the element.
    unsafe {
        let previous = (*PREVIOUS.0.get())[signal as usize].as_mut_ptr();
        libc::sigaction(signal, ptr::null(), previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = arch::handler_entry(on_signal as *const () as usize);
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if is_fault(signal) {
            action.sa_flags |= (*previous).sa_flags & libc::SA_RESTART;
        } else {
            action.sa_flags |= libc::SA_RESTART;
            libc::sigfillset(&raw mut action.sa_mask);
        }
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// The handler of all of the crate's signals. errno stays as the interrupted code left it.
unsafe extern "C" fn on_signal(
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    arch::enter_signal_handler();
    // SAFETY: errno is a word of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let handler = HANDLERS[number as usize].load(Ordering::Acquire);
    // SAFETY: a `Handler`, by the invariant of `HANDLERS`.
    let handler: Handler = unsafe { crate::jit::as_fn(handler) };
    handler(&mut Signal { number, info, context });
    // SAFETY: the same word: a handler does not change threads.
    unsafe { *libc::__errno_location() = errno };
}

/// Whether the signal is a fault of the thread's own code, which comes again if nothing is done.
fn is_fault(signal: Number) -> bool {
    matches!(signal, SEGMENT | BUS | ILLEGAL | ARITHMETIC | TRAP)
}

/// What the process does with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// What the kernel does by default, or nothing.
    None,
    /// The crate's handler runs.
    Ours,
    /// Another handler runs. It may call the crate's.
    Other,
}

/// What the process does with a signal at this moment.
pub(crate) fn action_of(signal: Number) -> Action {
    // SAFETY: with a null action the call only reads; the address is that of a local.
    let handler = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, ptr::null(), &raw mut action);
        action.sa_sigaction
    };
    match handler {
        libc::SIG_DFL | libc::SIG_IGN => Action::None,
        handler if handler == arch::handler_entry(on_signal as *const () as usize) => Action::Ours,
        _ => Action::Other,
    }
}

/// The real-time signals, the least used first: libraries count from the lowest, and valgrind has
/// the highest.
pub(crate) fn real_time_signals() -> impl Iterator<Item = Number> {
    (libc::SIGRTMIN()..libc::SIGRTMAX()).rev()
}

/// Whether a program can do without this signal's default action: SIGURG, SIGUSR1, SIGUSR2 and the
/// real-time signals. All others mean something to the system, a terminal or a shell, which ends
/// when the crate's handler takes them.
pub(crate) fn can_preempt(signal: Number) -> bool {
    matches!(signal, URGENT | libc::SIGUSR1 | libc::SIGUSR2) || real_time_range().contains(&signal)
}

/// The real-time signals that the C library leaves to programs.
pub(crate) fn real_time_range() -> RangeInclusive<Number> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Whether the signal ends the process where it has no handler.
pub(crate) fn is_fatal_by_default(signal: Number) -> bool {
    !matches!(signal, libc::SIGURG | libc::SIGCHLD | libc::SIGCONT | libc::SIGWINCH)
}

/// Whether the signal is blocked on the calling thread.
pub(crate) fn is_blocked(signal: Number) -> bool {
    // SAFETY: with a null set the call only reads; the address is that of a local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
        libc::sigismember(&raw const set, signal) == 1
    }
}

/// Whether the program has installed a handler of the signal, before the crate's or after it.
pub(super) fn is_handled_by_program(signal: libc::c_int) -> bool {
    let is_handler =
        |action: &libc::sigaction| !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
    // SAFETY: with a null action the call only reads; the address is that of a local.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let is_known = libc::sigaction(signal, ptr::null(), &raw mut action) == 0;
        if is_known && action_of(signal) == Action::Ours {
            // By the invariant of `PREVIOUS` the element is initialised.
            return is_handler((*PREVIOUS.0.get())[signal as usize].assume_init_ref());
        }
        is_known && is_handler(&action)
    }
}

/// A set of blocked signals.
pub(crate) type SignalMask = libc::sigset_t;

/// Lets the calling thread receive the signal. Returns the mask that it had before.
pub(crate) fn unblock(signal: libc::c_int) -> SignalMask {
    // SAFETY: the addresses are those of locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut previous = set;
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, &raw mut previous);
        previous
    }
}

/// Blocks a signal on the calling thread if it is blocked in a mask from before. Other signals stay
/// as the program has set them in between.
pub(crate) fn block_as_before(signal: libc::c_int, before: &SignalMask) {
    // SAFETY: the mask is one that the kernel has filled in; the other address is that of a local.
    unsafe {
        if libc::sigismember(before, signal) == 1 {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        }
    }
}

/// Blocks all signals on the calling thread but those of its own faults, which the kernel would end
/// the process for.
pub(crate) fn block_all() {
    // SAFETY: the address is that of a local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigdelset(&raw mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Signals whose handlers run on the stack that they interrupt: those without SA_ONSTACK. On a
/// goroutine that stack may be small. A signal handler may call this.
pub(crate) fn without_alternate_stack() -> impl Iterator<Item = Number> {
    let runs_on_any_stack = |signal: &libc::c_int| {
        // SAFETY: with a null action the call only reads; the address is that of a local.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, ptr::null(), &raw mut action) == 0
                && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
                && action.sa_flags & libc::SA_ONSTACK == 0
        }
    };
    (1..=libc::SIGRTMAX()).filter(runs_on_any_stack)
}

/// [`without_alternate_stack`], for `environment()`.
pub(crate) fn handlers_without_alternate_stack() -> Vec<Number> {
    without_alternate_stack().collect()
}

/// The most bytes of a stack that the kernel takes to enter a handler, with the red zone that it
/// leaves alone. A signal handler may call this.
pub(crate) fn max_frame_bytes() -> usize {
    /// Of linux/auxvec.h, since Linux 5.14.
    const AT_MINSIGSTKSZ: libc::c_ulong = 51;
    /// With AMX, the largest state of today: linux/Documentation/arch/x86/elf_auxvec.rst.
    const UNKNOWN_BYTES: usize = 11 << 10;
    // SAFETY: the call reads memory of the process that never changes.
    let frame = match unsafe { libc::getauxval(AT_MINSIGSTKSZ) } {
        0 => UNKNOWN_BYTES,
        bytes => bytes as usize,
    };
    frame + RED_ZONE_BYTES
}

/// Does what would have been done without the crate's handler.
///
/// `recurs`: the signal comes again when the thread resumes.
///
/// # Safety
/// 1. It is called in the handler, with the handler's arguments.
unsafe fn chain(
    signal: Number,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    recurs: bool,
) {
    // SAFETY: by the invariant of `PREVIOUS` the element is initialised.
    let previous = unsafe { (*PREVIOUS.0.get())[signal as usize].assume_init_ref() };
    // The kernel ends a process for an ignored fault, but not for broken memory elsewhere.
    // SAFETY: by 1. the structure is valid.
    let code = unsafe { (*info).si_code };
    let can_be_ignored = code <= 0 || signal == BUS && code == MEMORY_ERROR_ELSEWHERE;
    let bit = 1 << (signal - 1);
    let has_run = previous.sa_flags & libc::SA_RESETHAND != 0
        && RUN_ONCE.fetch_or(bit, Ordering::Relaxed) & bit != 0;
    let handler = if has_run { libc::SIG_DFL } else { previous.sa_sigaction };
    match handler {
        // A preemption signal that comes late must not end the process, and a signal that was sent
        // can be ignored.
        libc::SIG_DFL if !is_fault(signal) => {}
        libc::SIG_IGN if !is_fault(signal) || can_be_ignored => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action of a fault, which runs no code.
            unsafe {
                let mut default: libc::sigaction = std::mem::zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                // If the instruction faults again the default action is taken then, and a debugger
                // sees the fault itself. Otherwise the signal waits until this handler returns.
                if !recurs {
                    libc::raise(signal);
                }
            }
        }
        // SAFETY: the action of the program, which gets what the kernel would have passed to it.
        handler => unsafe {
            with_mask_of(signal, previous, context, || {
                if previous.sa_flags & libc::SA_SIGINFO != 0 {
                    type Action =
                        unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                    let action: Action = crate::jit::as_fn(handler);
                    action(signal, info, context);
                } else {
                    let action: unsafe extern "C" fn(libc::c_int) = crate::jit::as_fn(handler);
                    action(signal);
                }
            });
        },
    }
}

/// Calls `f` with the signals blocked that the kernel would have blocked for a handler of this
/// action: those of the interrupted code, `sa_mask` and the signal itself.
///
/// # Safety
/// 1. `context` is the one that the kernel passed to the handler, which has not returned.
unsafe fn with_mask_of(
    signal: Number,
    action: &libc::sigaction,
    context: *mut libc::c_void,
    f: impl FnOnce(),
) {
    // SAFETY: by 1. the context is valid. Of its mask the kernel has written the first eight bytes,
    // which are all of its signals; the other addresses are those of locals.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        let interrupted = &raw const (*context.cast::<libc::ucontext_t>()).uc_sigmask;
        (&raw mut mask).cast::<u64>().write(interrupted.cast::<u64>().read());
        let is_in_action = |&signal: &Number| libc::sigismember(&action.sa_mask, signal) == 1;
        for blocked in (1..TABLE as Number).filter(is_in_action) {
            libc::sigaddset(&raw mut mask, blocked);
        }
        if action.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&raw mut mask, signal);
        }
        let mut ours: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, &raw mut ours);
        f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const ours, ptr::null_mut());
    }
}

/// The alternate signal stack of a thread while it is an M.
pub(crate) struct AltStack {
    memory: *mut libc::c_void,
    previous: libc::stack_t,
}

impl AltStack {
    /// Gives the calling thread an alternate stack of its own until the value is dropped. `None`:
    /// there is no memory. An overflow then ends the process without a message.
    pub(crate) fn install() -> Option<Self> {
        // SAFETY: the mapping is fresh, and its lowest page becomes the guard of the rest. The
        // other addresses are those of locals.
        unsafe {
            let memory = libc::mmap(
                ptr::null_mut(),
                ALT_STACK_BYTES + ALT_GUARD_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return None;
            }
            libc::mprotect(memory, ALT_GUARD_BYTES, libc::PROT_NONE);
            let stack = libc::stack_t {
                ss_sp: memory.byte_add(ALT_GUARD_BYTES),
                ss_flags: 0,
                ss_size: ALT_STACK_BYTES,
            };
            let mut previous: libc::stack_t = std::mem::zeroed();
            libc::sigaltstack(&raw const stack, &raw mut previous);
            Some(Self { memory, previous })
        }
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's. Its stack is not in use, since this is no signal
        // handler, and the thread has another one from the first call on.
        unsafe {
            libc::sigaltstack(&raw const self.previous, ptr::null_mut());
            libc::munmap(self.memory, ALT_STACK_BYTES + ALT_GUARD_BYTES);
        }
    }
}
