#![allow(unsafe_code, reason = "signal handlers")]
//! Signals: handlers in front of the program's own, masks, and alternate stacks.
//!
//! What a handler may do: read and write words that it owns, the registry, and its own stack, and
//! write(2). No lock, no allocation, no unwinding, no lazy thread-local. Every M has an alternate
//! stack, since a goroutine that overflowed has none left. A signal that is not the crate's goes to
//! the handler that was there before.

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

/// The signal that preempts, as Go's: it is ignored by default, and libc does not use it.
pub(crate) const PREEMPT: libc::c_int = libc::SIGURG;

/// Bytes of an M's alternate stack: the frame that the kernel writes (with AVX-512 about 3 KiB),
/// and room to read a symbol table.
const ALT_STACK_BYTES: usize = 128 << 10;

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; 3]>);

// SAFETY: written once before the handler is installed, read only afterwards.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); 3]));

const SIGNALS: [libc::c_int; 3] = [SEGMENT, BUS, PREEMPT];

/// What the crate does with each of them: a [`Handler`], or 0. Stored before the handler is installed.
static HANDLERS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// A signal that arrived on this thread, in its handler.
pub(crate) struct Signal {
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
}

/// What handles a signal: see the head of the file for what it may do.
pub(crate) type Handler = fn(&mut Signal);

impl Signal {
    /// Where the thread was interrupted.
    pub(crate) fn registers(&self) -> Registers {
        // SAFETY: the kernel passed a valid context.
        context::registers(unsafe { &*self.context.cast() })
    }

    /// Lets the thread resume at `pc` with this stack pointer when the handler returns.
    ///
    /// # Safety
    /// The code at `pc` can be entered with this stack and the interrupted registers.
    pub(crate) unsafe fn resume_at(&mut self, pc: usize, sp: usize) {
        // SAFETY: the kernel passed a valid context, which is this handler's to change.
        context::resume_at(unsafe { &mut *self.context.cast() }, pc, sp);
    }

    /// The address that a fault is about; `None` if the signal was sent and is no fault.
    pub(crate) fn fault_address(&self) -> Option<usize> {
        // SAFETY: the kernel passed a valid structure.
        unsafe { ((*self.info).si_code > 0).then(|| (*self.info).si_addr() as usize) }
    }

    /// Whether a thread of the process `pid` sent the signal to this thread.
    pub(crate) fn is_sent_by(&self, pid: i32) -> bool {
        // SAFETY: the kernel passed a valid structure.
        unsafe { (*self.info).si_code == libc::SI_TKILL && (*self.info).si_pid() == pid }
    }

    /// Does what would have been done without this crate's handler.
    pub(crate) fn chain(&self) {
        // SAFETY: the arguments of the handler, in the handler.
        unsafe { chain(self.number, self.info, self.context) };
    }
}

/// Installs handlers in front of those that are there, unless they are installed already.
///
/// While a handler of [`PREEMPT`] runs no other handler does on that thread, and system calls that
/// it interrupts are restarted where the kernel can.
pub(crate) fn install(handlers: &[(libc::c_int, Handler)]) {
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

/// Puts [`on_signal`] in front of the handler that is there.
fn replace(signal: libc::c_int) {
    // SAFETY: the previous action is stored before ours can run; the handler keeps the rules at
    // the head of this file.
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

/// The handler of all signals of this crate. errno stays as the interrupted code left it.
unsafe extern "C" fn on_signal(
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    arch::enter_signal_handler();
    // SAFETY: the word of this thread.
    let errno = unsafe { *libc::__errno_location() };
    let handler = HANDLERS[index_of(number)].load(Ordering::Acquire);
    // SAFETY: a `Handler`, stored before this one was installed.
    let handler: Handler = unsafe { crate::jit::as_fn(handler) };
    handler(&mut Signal { number, info, context });
    // SAFETY: the word of this thread.
    unsafe { *libc::__errno_location() = errno };
}

fn index_of(signal: libc::c_int) -> usize {
    let known = SIGNALS.iter().position(|&known| known == signal);
    known.expect("handlers are installed for these signals only")
}

/// A set of blocked signals.
pub(crate) type SignalMask = libc::sigset_t;

/// Lets the calling thread receive the signal. Returns the mask before.
pub(crate) fn unblock(signal: libc::c_int) -> SignalMask {
    // SAFETY: our own structures.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut previous = set;
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, &raw mut previous);
        previous
    }
}

/// Blocks a signal on the calling thread if it is blocked in a mask from before. Others stay as they
/// are now: what the program did to them in between is its business.
pub(crate) fn block_as_before(signal: libc::c_int, before: &SignalMask) {
    // SAFETY: a mask that the kernel has filled in, and our own structure.
    unsafe {
        if libc::sigismember(before, signal) == 1 {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, signal);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        }
    }
}

/// Lets the calling thread receive no signal but those of its own faults.
pub(crate) fn block_all() {
    // SAFETY: our own structure.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigdelset(&raw mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Signals whose handlers run on whatever stack they interrupt: those without SA_ONSTACK. On a
/// goroutine that may be little.
pub(crate) fn handlers_without_alternate_stack() -> Vec<libc::c_int> {
    let runs_on_any_stack = |signal: &libc::c_int| {
        // SAFETY: asks only; our own structure.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, ptr::null(), &raw mut action) == 0
                && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
                && action.sa_flags & libc::SA_ONSTACK == 0
        }
    };
    (1..=libc::SIGRTMAX()).filter(runs_on_any_stack).collect()
}

/// Does what would have been done without us.
///
/// # Safety
/// Called in the handler with its arguments.
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: stored before the handler was installed.
    unsafe {
        let previous = (*PREVIOUS.0.get())[index_of(signal)].assume_init_ref();
        match previous.sa_sigaction {
            // What the system does by itself with SIGURG is nothing: signal(7).
            libc::SIG_DFL | libc::SIG_IGN if signal == PREEMPT => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                libc::sigaction(signal, previous, ptr::null_mut());
                // The instruction faults again, with nobody in the way. A signal that somebody
                // sent does not come again by itself.
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
    /// Gives the calling thread an alternate stack of its own until the value is dropped.
    /// `None` if there is no memory: an overflow then ends the process without a message.
    pub(crate) fn install() -> Option<Self> {
        // SAFETY: a fresh mapping with a guard page below, and then our own structures.
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
        // SAFETY: ours, and not in use: this is no signal handler.
        unsafe {
            libc::sigaltstack(&raw const self.previous, ptr::null_mut());
            libc::munmap(self.memory, ALT_STACK_BYTES + PAGE_BYTES);
        }
    }
}
