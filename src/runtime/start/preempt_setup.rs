//! What a run sets up to preempt goroutines: stubs for its settings, the signal, and each thread.
//!
//! The stubs call functions of the scheduler (`interrupted`, `polled`, `overflowed`), whose
//! addresses are handed to the emitter here. A thread can be preempted while its
//! [`SignalRegistration`] lives.

use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use crate::jit::Jit;
use crate::jit::stubs::preempt::{self as stub, PreemptStubs as StubAddresses, SaveArea, Targets};
use crate::runtime::arch::fp_control::FpControl;
use crate::runtime::arch::save_area::save_area;
use crate::runtime::arch::{VectorState, tls};
use crate::runtime::fault::{PANIC_STACK_BYTES, overflowed};
use crate::runtime::gmp::current::set_g_and_stack_limit;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::preempt_state::{PID, Thread};
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::os::signals::SignalMask;
use crate::runtime::os::{signals, threads};
use crate::runtime::sched::async_preempt::{interrupted, on_signal};
use crate::runtime::sched::preempt::polled;
use crate::runtime::start::config::RunError;

/// Stack that the functions need which the stubs call, until they are on the system stack.
const TARGET_STACK_BYTES: usize = 2048;

/// The stubs that preempt with the settings of a run.
#[derive(Clone, Copy)]
pub(crate) struct PreemptStubs {
    stubs: StubAddresses,
    /// What must be left of a stack where a goroutine is descheduled.
    headroom_bytes: usize,
    /// Whether goroutines are also preempted by a signal. Otherwise they yield at polls only.
    by_signal: bool,
}

impl PreemptStubs {
    /// Stubs that save this state. They are emitted once for each kind of save area.
    pub(crate) fn new(state: VectorState, by_signal: bool) -> Result<Self, RunError> {
        /// The stubs of each kind of save area, emitted so far. They are never freed.
        static EMITTED: Mutex<Vec<(SaveArea, StubAddresses)>> = Mutex::new(Vec::new());
        let area = save_area(state).ok_or(RunError::VectorState { requested: state })?;
        let headroom_bytes = (area.stack_bytes() + TARGET_STACK_BYTES).max(PANIC_STACK_BYTES);
        let mut emitted = EMITTED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = emitted.iter().find(|(known, _)| *known == area).map(|(_, stubs)| *stubs);
        let stubs = match known {
            Some(stubs) => stubs,
            None => {
                let jit = Jit::new().map_err(RunError::Code)?;
                let env = stub_env();
                let targets = Targets {
                    async_preempt: interrupted as *const () as usize,
                    poll: polled as *const () as usize,
                    overflowed: overflowed as *const () as usize,
                };
                let stubs = stub::emit(jit.arena(), env, area, headroom_bytes, targets)
                    .map_err(RunError::Code)?;
                emitted.push((area, stubs));
                stubs
            }
        };
        drop(emitted);
        if by_signal {
            signals::install(&[(signals::PREEMPT, on_signal)]);
            PID.store(std::process::id() as i32, Ordering::Relaxed);
        }
        Ok(Self { stubs, headroom_bytes, by_signal })
    }
}

/// Registers the calling thread for preemption as long as the value lives.
pub(crate) struct SignalRegistration {
    m: &'static M,
    previous_mask: Option<SignalMask>,
    /// The FP control state that the thread came with, in which goroutines run.
    modes: FpControl,
}

impl SignalRegistration {
    /// Registers the calling thread, which is `m`. `takes_signals`: it has an alternate stack for
    /// handlers.
    pub(crate) fn new(m: &'static M, stubs: &PreemptStubs, takes_signals: bool) -> Self {
        let by_signal = stubs.by_signal && takes_signals;
        m.preempt.async_stub.store(stubs.stubs.async_preempt, Ordering::Relaxed);
        m.preempt.headroom_bytes.store(stubs.headroom_bytes, Ordering::Relaxed);
        tls::set_poll_stubs(stubs.stubs.poll, stubs.stubs.stack_check);
        let modes = FpControl::current();
        tls::set_fp_control(modes);
        let previous_mask = by_signal.then(|| signals::unblock(signals::PREEMPT));
        let tid = if by_signal { threads::current_tid() } else { 0 };
        let thread = Thread { tid, stack_limit: tls::stack_limit_word() };
        *m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Self { m, previous_mask, modes }
    }
}

impl Drop for SignalRegistration {
    fn drop(&mut self) {
        // From here on no other thread writes to the stack limit word, or signals this thread.
        *self.m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        set_g_and_stack_limit(ptr::null_mut(), 0);
        tls::set_poll_stubs(0, 0);
        // A goroutine may have left another state, against its contract.
        if FpControl::current() != self.modes {
            self.modes.load();
        }
        if let Some(mask) = &self.previous_mask {
            signals::block_as_before(signals::PREEMPT, mask);
        }
    }
}
