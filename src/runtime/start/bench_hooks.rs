#![allow(unsafe_code, reason = "switches stacks without the scheduler")]
//! Entries for benchmarks and tests. They are public, hidden from the documentation, and no part of
//! the interface.

use std::time::{Duration, Instant};

use crate::runtime::arch::Gobuf;
use crate::runtime::arch::stubs::goroutine_entry;
use crate::runtime::arch::switch::goswitch;
use crate::runtime::gmp::current::this_sched;
use crate::runtime::gmp::g::{G, TaskType};
use crate::runtime::gmp::pools;
use crate::runtime::sched::preempt;
use crate::runtime::start::config::{Config, RunError};
use crate::runtime::start::switch_stubs::emit_stubs;

/// Switches `2 * rounds` times between this stack and a goroutine that does nothing else, without
/// the scheduler: the floor of what a switch costs.
///
/// # Errors
/// There is no memory for stubs or a stack.
#[doc(hidden)]
pub fn measure_raw_switch(rounds: u64) -> Result<Duration, RunError> {
    struct Pair {
        home: Gobuf,
        partner: *mut G,
    }
    unsafe fn partner(data: *mut u8) {
        // SAFETY: `data` is the word that holds the address of the pair, and the pair outlives the
        // partner's last switch.
        unsafe {
            let pair = data.cast::<*const Pair>().read();
            loop {
                goswitch(&(*(*pair).partner).sched, &(*pair).home);
            }
        }
    }
    unsafe fn drop_nothing(_: *mut u8) {}
    static TASK: TaskType = TaskType { run: partner, drop_result: drop_nothing, is_boxed: false };
    emit_stubs().map_err(RunError::Code)?;
    let class = Config::default().class()?;
    let g = pools::take(None, class).map_err(RunError::Stack)?;
    let pair = Pair { home: Gobuf::new(), partner: g };
    // SAFETY: no other code has the G, nor its stack. The partner never returns, and both sides
    // only ever switch to each other.
    unsafe {
        let data = ((*g).stack.get().hi - 64) as *mut *const Pair;
        data.write(&raw const pair);
        (*g).task.set(Some(&TASK));
        (*g).data.set(data.cast());
        (*g).sched.start_at(goroutine_entry(), data as usize - 64);
        goswitch(&pair.home, &(*g).sched);
        let started = Instant::now();
        for _ in 0..rounds {
            goswitch(&pair.home, &(*g).sched);
        }
        let elapsed = started.elapsed();
        // The G is idle again: what is on its stack is never resumed.
        pools::put(None, g);
        Ok(elapsed)
    }
}

/// Requests that the goroutine on one of this run's processors, by number, is preempted, as sysmon
/// would. Returns whether there was one.
#[doc(hidden)]
pub fn request_preemption(processor: usize) -> bool {
    let m = this_sched().and_then(|sched| sched.ms().nth(processor));
    m.is_some_and(preempt::request)
}
