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
use crate::runtime::gmp::preempt_state::Thread;
use crate::runtime::gmp::stub_env::stub_env;
use crate::runtime::os::signals::{Number, SignalMask};
use crate::runtime::os::{signals, threads};
use crate::runtime::sched::async_preempt::interrupted;
use crate::runtime::sched::preempt::polled;
use crate::runtime::sched::preempt_signal;
use crate::runtime::start::config::{BySignal, RunError};

/// Stack that the functions need which the stubs call, until they are on the system stack.
const TARGET_STACK_BYTES: usize = 2048;

/// The stubs that preempt with the settings of a run.
#[derive(Clone, Copy)]
pub(crate) struct PreemptStubs {
    /// `None` on a machine that has none: nothing there calls them.
    stubs: Option<StubAddresses>,
    /// What must be left of a stack where a goroutine is descheduled.
    headroom_bytes: usize,
    /// The signal by which goroutines are also preempted. Otherwise they yield at polls only.
    signal: Option<Number>,
}

impl PreemptStubs {
    /// Stubs that save this state. They are emitted once for each kind of save area.
    pub(crate) fn new(state: VectorState, by_signal: BySignal) -> Result<Self, RunError> {
        /// The stubs of each kind of save area, emitted so far. They are never freed.
        static EMITTED: Mutex<Vec<(SaveArea, StubAddresses)>> = Mutex::new(Vec::new());
        let area = match save_area(state) {
            Some(area) => area,
            None if state == VectorState::Auto => return Ok(Self::none()),
            None => return Err(RunError::VectorState { requested: state }),
        };
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
        let signal = match by_signal {
            BySignal::No => None,
            BySignal::Yes(wanted) => Some(preempt_signal::install(wanted)),
        };
        Ok(Self { stubs: Some(stubs), headroom_bytes, signal })
    }

    /// What a machine without these stubs needs: goroutines yield in Rust code only.
    fn none() -> Self {
        Self { stubs: None, headroom_bytes: PANIC_STACK_BYTES, signal: None }
    }
}

/// Registers the calling thread for preemption as long as the value lives.
pub(crate) struct SignalRegistration {
    m: &'static M,
    /// The signal that was unblocked, and the mask before.
    unblocked: Option<(Number, SignalMask)>,
    /// The FP control state that the thread came with, in which goroutines run.
    modes: FpControl,
}

impl SignalRegistration {
    /// Registers the calling thread, which is `m`. `takes_signals`: it has an alternate stack for
    /// handlers.
    pub(crate) fn new(m: &'static M, stubs: &PreemptStubs, takes_signals: bool) -> Self {
        let signal = stubs.signal.filter(|_| takes_signals);
        let addresses =
            stubs.stubs.map(|stubs| [stubs.async_preempt, stubs.poll, stubs.stack_check]);
        let [async_preempt, poll, stack_check] = addresses.unwrap_or_default();
        m.preempt.async_stub.store(async_preempt, Ordering::Relaxed);
        m.preempt.headroom_bytes.store(stubs.headroom_bytes, Ordering::Relaxed);
        tls::set_poll_stubs(poll, stack_check);
        let modes = FpControl::current();
        tls::set_fp_control(modes);
        let unblocked = signal.map(|signal| (signal, signals::unblock(signal)));
        let tid = threads::current_tid();
        let thread = Thread { tid, signal, stack_limit: tls::stack_limit_word() };
        *m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Self { m, unblocked, modes }
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
        if let Some((signal, mask)) = &self.unblocked {
            signals::block_as_before(*signal, mask);
        }
    }
}
