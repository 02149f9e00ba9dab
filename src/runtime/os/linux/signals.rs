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
//! meanwhile, and would call into nothing.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::context;
use crate::jit::PAGE_BYTES;
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

/// The signal that preempts. Go's choice: it is ignored by default, libc does not use it, and
/// programs that do must expect spurious ones.
pub(crate) const PREEMPT: libc::c_int = libc::SIGURG;

/// Bytes of an M's alternate stack: the frame that the kernel writes (with AVX-512 about 3 KiB),
/// and room to read a symbol table.
const ALT_STACK_BYTES: usize = 128 << 10;

/// The signals that the crate handles. The tables below are in this order.
const SIGNALS: [libc::c_int; 6] = [SEGMENT, BUS, PREEMPT, ILLEGAL, ARITHMETIC, TRAP];

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; SIGNALS.len()]>);

// SAFETY: an element is written before the handler of its signal is installed, and only read
// afterwards.
unsafe impl Sync for Previous {}

/// The action that each signal had before the crate's.
///
/// Invariant: an element is initialised once the handler of its signal is installed, and does not
/// change afterwards. `replace` writes it, under the lock of `install`; handlers read it.
static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); SIGNALS.len()]));

/// The crate's handler of each signal: a [`Handler`], or 0.
///
/// Invariant: an element is stored, once, before the handler of its signal is installed. So
/// `on_signal` never finds 0.
static HANDLERS: [AtomicUsize; SIGNALS.len()] = [const { AtomicUsize::new(0) }; SIGNALS.len()];

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

    /// Whether a thread of the process `pid` sent the signal to this thread.
    pub(crate) fn is_sent_by(&self, pid: i32) -> bool {
        // SAFETY: the kernel passed a valid structure, and the handler has not returned.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == pid }
    }

    /// Does what would have been done without the crate's handler.
    pub(crate) fn chain(&self) {
        // SAFETY: 1. these are the handler's arguments, and it has not returned.
        unsafe { chain(self.number, self.info, self.context) };
    }
}

/// Installs handlers in front of those that are there. A signal that has a handler of the crate's
/// keeps it.
///
/// While a handler of [`PREEMPT`] runs no other handler does on that thread, and system calls that
/// it interrupts are restarted where the kernel can.
pub(crate) fn install(handlers: &[(libc::c_int, Handler)]) {
    /// Held while `HANDLERS` and `PREVIOUS` are written.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    for &(signal, handler) in handlers {
        let installed = &HANDLERS[index_of(signal)];
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
        let previous = (*PREVIOUS.0.get())[index_of(signal)].as_mut_ptr();
        libc::sigaction(signal, ptr::null(), previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if signal == PREEMPT {
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
    let handler = HANDLERS[index_of(number)].load(Ordering::Acquire);
    // SAFETY: a `Handler`, by the invariant of `HANDLERS`.
    let handler: Handler = unsafe { crate::jit::as_fn(handler) };
    handler(&mut Signal { number, info, context });
    // SAFETY: the same word: a handler does not change threads.
    unsafe { *libc::__errno_location() = errno };
}

/// Whether the program has installed a handler of the signal, before the crate's or after it.
pub(super) fn is_handled_by_program(signal: libc::c_int) -> bool {
    let is_handler =
        |action: &libc::sigaction| !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
    // SAFETY: with a null action the call only reads; the address is that of a local.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let is_known = libc::sigaction(signal, ptr::null(), &raw mut action) == 0;
        if is_known && action.sa_sigaction == on_signal as *const () as usize {
            // By the invariant of `PREVIOUS` the element is initialised.
            return is_handler((*PREVIOUS.0.get())[index_of(signal)].assume_init_ref());
        }
        is_known && is_handler(&action)
    }
}

/// The place of a signal in the tables.
fn index_of(signal: libc::c_int) -> usize {
    let known = SIGNALS.iter().position(|&known| known == signal);
    known.expect("the crate handles these signals only")
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
/// goroutine that stack may be small.
pub(crate) fn handlers_without_alternate_stack() -> Vec<libc::c_int> {
    let runs_on_any_stack = |signal: &libc::c_int| {
        // SAFETY: with a null action the call only reads; the address is that of a local.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, ptr::null(), &raw mut action) == 0
                && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
                && action.sa_flags & libc::SA_ONSTACK == 0
        }
    };
    (1..=libc::SIGRTMAX()).filter(runs_on_any_stack).collect()
}

/// Does what would have been done without the crate's handler.
///
/// # Safety
/// 1. It is called in the handler, with the handler's arguments.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: by the invariant of `PREVIOUS` the element is initialised. By 1. the structures are
    // valid, and a previous handler gets what the kernel would have passed to it.
    unsafe {
        let previous = (*PREVIOUS.0.get())[index_of(signal)].assume_init_ref();
        match previous.sa_sigaction {
            // The default action of SIGURG is to ignore it: signal(7).
            libc::SIG_DFL | libc::SIG_IGN if signal == PREEMPT => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, previous, ptr::null_mut());
                // The instruction faults again, and the default action is taken then. A signal that
                // was sent does not come again by itself.
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
            action if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                type Action =
                    unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
                let action: Action = crate::jit::as_fn(action);
                action(signal, info, context);
            }
            action => {
                let action: unsafe extern "C" fn(libc::c_int) = crate::jit::as_fn(action);
                action(signal);
            }
        }
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
                ALT_STACK_BYTES + PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return None;
            }
            libc::mprotect(memory, PAGE_BYTES, libc::PROT_NONE);
            let stack = libc::stack_t {
                ss_sp: memory.byte_add(PAGE_BYTES),
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
            libc::munmap(self.memory, ALT_STACK_BYTES + PAGE_BYTES);
        }
    }
}
