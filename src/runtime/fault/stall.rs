//! The watchdog's message: a goroutine keeps its thread while others wait for it, or while the run
//! ends.
//!
//! ```text
//! footbridge: goroutine 7 "pump" has been in native code on its thread for 5 s; 8 goroutines wait
//! behind it
//! goroutine 7 "pump" [blocked in native code]:
//!     c read+0x4d (libc.so.6)
//!     rust app::main::{{closure}}+0x5e
//!     jit goroutine entry+0x10 (goroutine entry)
//! ```
//!
//! When there is something to say is the matter of `sched/watchdog.rs`, which calls this through
//! `Sched::on_stall`. A thread of its own writes the message: standard error may block, and sysmon
//! must not.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::running::{blocked, write_running};
use crate::runtime::gmp::name::Label;
use crate::runtime::gmp::sched::{Stall, StallKind};
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::walk::{Goroutine, prepare_within};

/// How long the message waits for a lock of the dynamic linker.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether a thread is writing a message. It may be blocked: then there is no second one.
static IS_WRITING: AtomicBool = AtomicBool::new(false);

/// Writes the messages, on a thread of their own. Returns whether it could be started.
#[cold]
pub(crate) fn report_stalls(stalls: Vec<Stall>) -> bool {
    struct Writing;
    impl Drop for Writing {
        fn drop(&mut self) {
            IS_WRITING.store(false, Ordering::Release);
        }
    }
    if IS_WRITING.swap(true, Ordering::Acquire) {
        return false;
    }
    let writing = Writing;
    // The thread has its starter's signal mask: signals are for the threads of the program.
    let body = move || {
        let _writing = writing;
        // A closed standard error leaves nothing to do.
        let _ = stalls.iter().try_for_each(write_stall);
    };
    thread::Builder::new().name("footbridge-report".into()).spawn(body).is_ok()
}

fn write_stall(stall: &Stall) -> fmt::Result {
    let goroutine = Goroutine::of(stall.g);
    if goroutine.id() != stall.id {
        return Ok(()); // It has ended meanwhile.
    }
    let mut out = RawStderr::new();
    let name = goroutine.name();
    let label = Label { id: stall.id, name: name.as_deref() };
    let seconds = stall.elapsed.as_secs();
    let elapsed = match seconds {
        0 => format!("{} ms", stall.elapsed.as_millis()),
        _ => format!("{seconds} s"),
    };
    match stall.kind {
        StallKind::Waiting { goroutines } => {
            let wait = match goroutines {
                1 => "1 goroutine waits".into(),
                n => format!("{n} goroutines wait"),
            };
            writeln!(
                out,
                "footbridge: {label} has been in native code on its thread for {elapsed}; \
                 {wait} behind it"
            )?;
            if blocked(goroutine).is_none() {
                // The pc of a thread that computes is not known: JIT code is native code, too.
                writeln!(
                    out,
                    "footbridge: it computes: call runtime::checkpoint in Rust code; in JIT code add \
                     Jit::polls, or install it as preemptible"
                )?;
            }
        }
        StallKind::Ending => {
            let does = if blocked(goroutine).is_some() { "blocks" } else { "computes" };
            writeln!(
                out,
                "footbridge: the run has been ending for {elapsed}: {label} still {does} in native \
                 code on its thread"
            )?;
        }
    }
    prepare_within(PATIENCE);
    write_running(&mut out, goroutine)
}
