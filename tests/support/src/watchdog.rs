//! A thread that aborts the process when the test makes no progress, and reports its state first.
//!
//! A scheduler test that hangs is a finding like any other, and must report where each thread was.
//! The process must belong to the test alone, since it is aborted.

#![allow(unsafe_code, reason = "calls the C library")]

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The number of calls of [`beat`].
static BEATS: AtomicU64 = AtomicU64::new(0);

/// The time limit of the report.
const DESCRIPTION_SECONDS: u32 = 10;

/// Reports progress.
pub fn beat() {
    BEATS.fetch_add(1, Ordering::Relaxed);
}

/// Starts the thread. After `limit` without a [`beat`] it calls `describe` and aborts the process.
/// `describe` may take a few seconds, and must not wait for anything that may hang.
pub fn start(limit: Duration, describe: impl Fn() + Send + 'static) {
    let body = move || {
        let (mut known, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = BEATS.load(Ordering::Relaxed);
            if now != known {
                (known, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                // The hanging thread may hold the lock of the allocator or of standard error: then
                // this line is the whole report.
                let text = b"watchdog: no progress\n";
                // SAFETY: a buffer of that length; SIGALRM ends the process.
                unsafe {
                    libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                    libc::alarm(DESCRIPTION_SECONDS);
                }
                eprintln!("for {limit:?}, after {now} beats\n{}", threads());
                describe();
                std::process::abort();
            }
        }
    };
    let thread = std::thread::Builder::new().name("watchdog".into());
    thread.spawn(body).expect("a thread");
}

/// The number of threads of this process.
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").expect("procfs").count()
}

/// The state and the system call of each thread of this process, from procfs.
fn threads() -> String {
    let mut all = String::new();
    for task in std::fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: ?");
        let (name, call) = (read("comm"), read("syscall"));
        // The number of the system call and its arguments, or "running".
        let call: Vec<_> = call.split_whitespace().take(3).collect();
        let _ = writeln!(all, "thread {}: {state}; system call {call:?}", name.trim_end());
    }
    all
}
