#![allow(unsafe_code, reason = "parks")]
//! Sleeping.

use std::time::Duration;

use super::g::WaitReason;
use super::sched::{Parker, gopark};
use super::timers;
use super::tls::{getg, getm};

/// Parks the goroutine for at least `duration`. On a foreign thread this is `std::thread::sleep`.
pub fn sleep(duration: Duration) {
    let g = getg();
    if g.is_null() {
        return std::thread::sleep(duration);
    }
    let at = timers::after(duration);
    // SAFETY: the timer readies the goroutine once; the thread is an M.
    unsafe { gopark(WaitReason::Sleep, || (*getm()).p.timers.set(at, Parker(g))) };
}
