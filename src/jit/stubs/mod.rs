//! What each kind of stub consists of.

pub(crate) mod enter;
pub(crate) mod goroutine_fn;
pub(crate) mod poll;
pub(crate) mod preempt;
pub(crate) mod spawn;
pub(crate) mod switch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::abi::{Convention, Gpr, RegSet, Signature, Xmm};
use crate::jit::JitError;

/// What stubs know of the runtime: plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct StubEnv {
    /// Where the address of the current goroutine is, from the base of `fs`.
    pub(crate) tls_g_off: i32,
    /// Where the anchor is in a goroutine: fp, and behind it pc.
    pub(crate) g_anchor_off: i32,
    /// Where the guard is in a goroutine: code whose rsp is not above it leaves for the poll stub.
    pub(crate) g_guard_off: i32,
    /// Where the lowest address of its stack is in a goroutine.
    pub(crate) g_stack_lo_off: i32,
    /// Where the guard of the current goroutine is, from the base of `fs`.
    pub(crate) tls_guard_off: i32,
    /// Where the address of the poll stub is, from the base of `fs`.
    pub(crate) tls_poll_off: i32,
    /// A word that is free for whoever resumes an interrupted goroutine, from the base of `fs`.
    pub(crate) tls_resume_off: i32,
    /// Called where code runs that needs a goroutine and there is none. Does not return.
    pub(crate) no_goroutine: usize,
}

/// Bytes from an anchor's fp to its pc.
pub(crate) const ANCHOR_PC: i32 = 8;

/// Registers that a stub entered in System V may lose and that carry no argument of it.
const SYSTEM_V_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R10, Gpr::R11]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// The same for ABIInternal. xmm15 is made zero again afterwards.
const GO_INTERNAL_SCRATCH: RegSet =
    RegSet::of_gprs(&[Gpr::R12, Gpr::R13]).union(RegSet::of_xmms(&[Xmm::XMM15]));

/// What was planned for a shape of stub: the next one of that shape only needs to be emitted. It
/// grows with the number of shapes, of which a program has few.
struct Shapes<P>(OnceLock<Mutex<Plans<P>>>);

type Plans<P> = HashMap<(Convention, Signature), Arc<P>>;

impl<P> Shapes<P> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The plan of a shape, made by `plan` if it is the first of its kind.
    fn get_or_plan(
        &self,
        convention: Convention,
        signature: &Signature,
        plan: impl FnOnce() -> Result<P, JitError>,
    ) -> Result<Arc<P>, JitError> {
        let shapes = self.0.get_or_init(Mutex::default);
        let key = (convention, signature.clone());
        if let Some(known) = shapes.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(plan()?);
        shapes.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&new));
        Ok(new)
    }
}
