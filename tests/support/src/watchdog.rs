//! A thread that ends the process when nothing happens any more, and says what it saw.
//!
//! A test of a scheduler that hangs is a finding like any other: it is to say where everybody was.
//! The process must be the test's own: it is aborted.

#![allow(unsafe_code, reason = "calls the C library")]

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What has happened so far.
static BEATS: AtomicU64 = AtomicU64::new(0);

/// How long it may take to say what was seen.
const DESCRIPTION_SECONDS: u32 = 10;

/// Says that something has happened.
pub fn beat() {
    BEATS.fetch_add(1, Ordering::Relaxed);
}

/// Starts the thread. When nothing has happened for `limit` it calls `describe`, which may take a few
/// seconds and must not wait for what may hang, and aborts the process.
pub fn start(limit: Duration, describe: impl Fn() + Send + 'static) {
    let body = move || {
        let (mut known, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = BEATS.load(Ordering::Relaxed);
            if now != known {
                (known, since) = (now, Instant::now());
            } else if since.elapsed() >= limit {
                // Whoever hangs may have the allocator, or standard error: then this is all that is
                // said.
                let text = b"nothing happens any more\n";
                // SAFETY: a buffer of that length; SIGALRM ends the process.
                unsafe {
                    libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
                    libc::alarm(DESCRIPTION_SECONDS);
                }
                eprintln!("since {limit:?}; {now} things did happen\n{}", threads());
                describe();
                std::process::abort();
            }
        }
    };
    let thread = std::thread::Builder::new().name("watchdog".into());
    thread.spawn(body).expect("a thread");
}

/// Threads of this process.
pub fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").expect("procfs").count()
}

/// What each thread of this process does, as far as the kernel tells.
fn threads() -> String {
    let mut all = String::new();
    for task in std::fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or("State: ?");
        let (name, call) = (read("comm"), read("syscall"));
        // A number of a system call and its arguments, or "running".
        let call: Vec<_> = call.split_whitespace().take(3).collect();
        let _ = writeln!(all, "thread {}: {state}; system call {call:?}", name.trim_end());
    }
    all
}
