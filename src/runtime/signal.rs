#![allow(unsafe_code, reason = "signal handlers")]
//! The handler of faults: a goroutine that overflows its stack ends the process with a message.
//!
//! What a handler here may do: read the goroutine, the registry and its own stack, and write(2).
//! No lock, no allocation, no unwinding. Every M has an alternate stack, since a goroutine that
//! overflowed has none left. Faults that are not ours go to whoever handled them before.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;

use super::overflow;
use super::stack::PAGE_BYTES;
use super::walk::Registers;

/// Bytes of an M's alternate stack: the frame that the kernel writes (with AVX-512 about 3 KiB),
/// and room to read a symbol table.
const ALT_STACK_BYTES: usize = 128 << 10;

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; 3]>);
// SAFETY: written once before the handler is installed, read only afterwards.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); 3]));
const SIGNALS: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGURG];

/// Installs the handlers of faults, once for the process.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = handler as *const () as usize;
        replace(libc::SIGSEGV, handler, 0, false);
        replace(libc::SIGBUS, handler, 0, false);
    });
}

/// Installs the handler of preemption signals, once for the process. While it runs no other
/// handler does on that thread, and system calls that it interrupts are restarted where the kernel
/// can.
pub(crate) fn install_preemption(handler: usize) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| replace(libc::SIGURG, handler, libc::SA_RESTART, true));
}

/// Puts a handler in front of the one that is there.
fn replace(signal: libc::c_int, handler: usize, flags: libc::c_int, mask_all: bool) {
    // SAFETY: the previous action is stored before ours can run; the handler keeps the rules at
    // the head of its file.
    unsafe {
        let previous = (*PREVIOUS.0.get())[index_of(signal)].as_mut_ptr();
        libc::sigaction(signal, ptr::null(), previous);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags;
        if mask_all {
            libc::sigfillset(&raw mut action.sa_mask);
        } else {
            libc::sigemptyset(&raw mut action.sa_mask);
        }
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

fn index_of(signal: libc::c_int) -> usize {
    let known = SIGNALS.iter().position(|&known| known == signal);
    known.expect("handlers are installed for these signals only")
}

/// Lets the calling thread receive the signal. Returns the mask before.
pub(crate) fn unblock(signal: libc::c_int) -> libc::sigset_t {
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
pub(crate) fn block_as_before(signal: libc::c_int, before: &libc::sigset_t) {
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

unsafe extern "C" fn handler(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes valid structures.
    unsafe {
        // What somebody has sent is no fault, and has no address.
        if (*info).si_code > 0 {
            let ucontext = &*context.cast::<libc::ucontext_t>();
            let register = |r: i32| ucontext.uc_mcontext.gregs[r as usize] as usize;
            let at = Registers {
                pc: register(libc::REG_RIP),
                sp: register(libc::REG_RSP),
                fp: register(libc::REG_RBP),
            };
            overflow::check((*info).si_addr() as usize, at);
        }
        chain(signal, info, context);
    }
}

/// Does what would have been done without us.
///
/// # Safety
/// Called in the handler with its arguments.
pub(super) unsafe fn chain(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: stored before the handler was installed.
    unsafe {
        let previous = (*PREVIOUS.0.get())[index_of(signal)].assume_init_ref();
        match previous.sa_sigaction {
            // What the system does by itself with SIGURG is nothing: signal(7).
            libc::SIG_DFL | libc::SIG_IGN if signal == libc::SIGURG => {}
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

/// Lowest address and end of the calling thread's stack; zeroes if pthreads does not tell.
pub(crate) fn thread_stack_bounds() -> (usize, usize) {
    // SAFETY: our own structures, destroyed after use.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &raw mut attributes) != 0 {
            return (0, 0);
        }
        let (mut lowest, mut size) = (ptr::null_mut(), 0);
        libc::pthread_attr_getstack(&raw const attributes, &raw mut lowest, &raw mut size);
        libc::pthread_attr_destroy(&raw mut attributes);
        (lowest as usize, lowest as usize + size)
    }
}
