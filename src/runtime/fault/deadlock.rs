//! The report of a deadlock.
//!
//! It runs on the system stack of the last M that sleeps, or on sysmon's thread, outside of any
//! signal handler, so it must not park. The scheduler calls it through `Sched::on_deadlock`: that
//! keeps tracebacks out of the rooms below them.
//!
//! A goroutine that waits for ever may hold any lock of the process: that of standard error, of the
//! dynamic linker, of code that reads debug information. So no lock is taken here:
//!
//! 1. A helper thread makes the tracebacks with lines and inlined functions, which takes locks, and
//!    writes them one by one, past the lock of standard error.
//! 2. When the helper has got no further for [`PATIENCE`], this thread takes the writing from it,
//!    and writes the rest of the tracebacks by symbol tables.
//! 3. The process ends with exit(3), which takes locks of the C library. If it has not ended after
//!    [`PATIENCE`], a second helper ends it without that.

use std::fmt::{self, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::running::write_running;
use crate::runtime::gmp::name::Label;
use crate::runtime::gmp::status::Status;
use crate::runtime::os::stderr::RawStderr;
use crate::runtime::os::{exit_now, futex};
use crate::runtime::walk::{
    Goroutine, TraceStart, each_of, goroutines, prepare_signal_safe, write_frames,
};

/// How long a step may take that may wait for a lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// Prints every goroutine, as Go does, and exits with status 2: all goroutines are parked, or
/// blocked in a lock, and nothing can ready one.
#[cold]
pub(crate) fn report_deadlock() -> ! {
    /// Whether a thread reports: two Ms, or an M and sysmon, may find the same deadlock.
    static IS_REPORTED: AtomicBool = AtomicBool::new(false);
    while IS_REPORTED.swap(true, Ordering::Relaxed) {
        thread::sleep(Duration::from_secs(3600));
    }
    // A closed standard error leaves nothing to do.
    let _ =
        RawStderr::new().write_str("footbridge: fatal: all goroutines are asleep - deadlock!\n\n");
    let all = goroutines();
    let written = write_with_lines(&all);
    let _ = write_without_locks(&all[written..]);
    let _ = thread::Builder::new().spawn(|| {
        thread::sleep(PATIENCE);
        exit_now(2)
    });
    std::process::exit(2)
}

/// How far the helper is: twice the number of tracebacks that it has written, plus one while it
/// writes.
///
/// Invariant: the helper alone adds, and it writes only between two additions. The thread that
/// waits stores [`TAKEN`] by compare-and-exchange of an even number; the helper stops at it.
static PROGRESS: AtomicU32 = AtomicU32::new(0);

const TAKEN: u32 = u32::MAX;

/// Writes tracebacks by a helper. Returns how many were written when it had ended or was stuck.
fn write_with_lines(all: &[Goroutine]) -> usize {
    let of_helper = all.to_vec();
    let helper = thread::Builder::new().name("footbridge-report".into()).spawn(move || {
        let mut n = 0;
        prepare_signal_safe();
        each_of(&of_helper, |goroutine, traceback| {
            if !step(&mut n) {
                return ControlFlow::Break(());
            }
            let _ = match traceback.status {
                Status::Running => write_running(&mut RawStderr::new(), goroutine),
                _ => write!(RawStderr::new(), "{traceback}"),
            };
            let _ = RawStderr::new().write_str("\n");
            if step(&mut n) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    });
    if helper.is_err() {
        return 0;
    }
    let done = 2 * all.len() as u32;
    loop {
        let before = PROGRESS.load(Ordering::Acquire);
        if before == done {
            return all.len();
        }
        futex::wait(&PROGRESS, before, Some(PATIENCE));
        let is_stuck = before.is_multiple_of(2)
            && PROGRESS
                .compare_exchange(before, TAKEN, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if is_stuck {
            return before as usize / 2;
        }
    }
}

/// The helper's next step. Returns false if the writing was taken from it.
fn step(n: &mut u32) -> bool {
    let has_stepped =
        PROGRESS.compare_exchange(*n, *n + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    *n += 1;
    futex::wake_all(&PROGRESS);
    has_stepped
}

/// Writes tracebacks by symbol tables. Takes no lock that is held over a park.
fn write_without_locks(goroutines: &[Goroutine]) -> fmt::Result {
    let mut out = RawStderr::new();
    for &goroutine in goroutines {
        let Some((status, reason)) = goroutine.status() else { continue };
        if status == Status::Running {
            write_running(&mut out, goroutine)?;
        } else {
            let name = goroutine.name();
            let label = Label { id: goroutine.id(), name: name.as_deref() };
            writeln!(out, "{label} [{}]:", reason.name())?;
            match goroutine.parked_at() {
                Some((at, anchor, bounds)) => {
                    let start = TraceStart { at, is_return_address: false, anchor };
                    write_frames(&mut out, start, &bounds)?;
                }
                None => out.write_str("    (its stack is not read)\n")?,
            }
        }
        out.write_str("\n")?;
    }
    Ok(())
}
