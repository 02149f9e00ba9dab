#![allow(unsafe_code, reason = "reads the running goroutine")]
//! The name of the goroutine above the message of a panic.
//!
//! The standard library prints the name of the thread, which is the M and says little. It has no
//! other place for a name than its hook, so the first goroutine that gets a name puts a hook in
//! front of the one that is there. A program without names keeps its hook as it is.

use std::fmt::Write;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::runtime::gmp::current::getg;
use crate::runtime::gmp::name::Label;
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::sched::panic_state::is_hook_suspended;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Called before a goroutine with a name starts.
pub(super) fn install() {
    // In a panic hooks cannot be replaced, nor while one is suspended: a later goroutine does it.
    if INSTALLED.load(Ordering::Relaxed)
        || std::thread::panicking()
        || is_hook_suspended()
        || INSTALLED.swap(true, Ordering::Relaxed)
    {
        return;
    }
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print_name();
        previous(info);
    }));
}

fn print_name() {
    // SAFETY: null, or a G, and a G is never freed.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return;
    };
    // SAFETY: the goroutine runs on this thread, so it has not ended, and its name stays.
    if let name @ Some(_) = unsafe { g.name.get() } {
        let label = Label { id: g.id.load(Ordering::Relaxed), name };
        // Without the lock of standard error, which a goroutine may hold that waits for this one.
        // Nothing can be done about a standard error that is closed.
        let _ = writeln!(RawStderr::new(), "in {label}:");
    }
}
