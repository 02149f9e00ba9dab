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
use super::unwind::Registers;

/// Bytes of an M's alternate stack: the frame that the kernel writes (with AVX-512 about 3 KiB),
/// and room to read a symbol table.
const ALT_STACK_BYTES: usize = 128 << 10;

struct Previous(UnsafeCell<[MaybeUninit<libc::sigaction>; 2]>);
// SAFETY: written once before the handler is installed, read only afterwards.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new([MaybeUninit::uninit(); 2]));
const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Installs the handlers, once for the process.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for (i, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: the previous action is stored before ours can run; the handler keeps the
            // rules at the head of this file.
            unsafe {
                let previous = (*PREVIOUS.0.get())[i].as_mut_ptr();
                libc::sigaction(signal, ptr::null(), previous);
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
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
unsafe fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let i = usize::from(signal == libc::SIGBUS);
    // SAFETY: stored before the handler was installed.
    unsafe {
        let previous = (*PREVIOUS.0.get())[i].assume_init_ref();
        match previous.sa_sigaction {
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
