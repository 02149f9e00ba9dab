//! Emission of the stubs that switch stacks, once for the process.
//!
//! They are shared by all runs, and are never freed.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::jit;
use crate::jit::{Jit, JitError};
use crate::runtime::arch;
use crate::runtime::arch::Gobuf;
use crate::runtime::sched::lifecycle::goroutine_main;

/// Emits the stubs, once. It must have succeeded before a goroutine is made. After a failure the
/// next call tries again.
pub(crate) fn emit_stubs() -> Result<(), JitError> {
    /// Set after the stubs are in place, so that a thread that sees it may use them.
    static DONE: OnceLock<()> = OnceLock::new();
    /// Held while the stubs are emitted. A `OnceLock` alone cannot take a failure.
    static EMITTING: Mutex<()> = Mutex::new(());
    if DONE.get().is_some() {
        return Ok(());
    }
    let _one_at_a_time = EMITTING.lock().unwrap_or_else(PoisonError::into_inner);
    if DONE.get().is_some() {
        return Ok(());
    }
    let jit = Jit::new()?;
    let main = goroutine_main as *const () as usize;
    arch::switch::set_stubs(jit::stubs::switch::emit(jit.arena(), Gobuf::LAYOUT, main)?);
    DONE.set(()).expect("it is set under the lock only, and was not");
    Ok(())
}
