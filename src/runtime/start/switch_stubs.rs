//! Emitting the stubs that switch stacks, once for the process.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::jit;
use crate::jit::{Jit, JitError};
use crate::runtime::arch;
use crate::runtime::arch::Gobuf;
use crate::runtime::sched::lifecycle::goroutine_main;

/// Emits the stubs, once. Must have succeeded before any goroutine is made.
pub(crate) fn emit_stubs() -> Result<(), JitError> {
    static DONE: OnceLock<()> = OnceLock::new();
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
    DONE.set(()).expect("one thread at a time comes here, and only while it is not set");
    Ok(())
}
