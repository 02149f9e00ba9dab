#![allow(unsafe_code, reason = "parks")]
//! Sleeping.

use std::time::{Duration, Instant};

use super::g::WaitReason;
use super::sched::gopark;
use super::tls::{getg, getm};

/// Parks the goroutine for at least `duration`. On a foreign thread this is `std::thread::sleep`.
pub fn sleep(duration: Duration) {
    let g = getg();
    if g.is_null() {
        return std::thread::sleep(duration);
    }
    // Longer than any process lives.
    let longest = Duration::from_secs(100 * 365 * 24 * 3600);
    let at = Instant::now() + duration.min(longest);
    // SAFETY: the timer readies the goroutine once, on this M: it fires in the scheduler only.
    unsafe { gopark(WaitReason::Sleep, || (*getm()).set_timer(at, g)) };
}
