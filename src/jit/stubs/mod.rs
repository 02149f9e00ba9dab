//! What each kind of stub consists of.

pub(crate) mod adapter;
pub(crate) mod enter;
pub(crate) mod goroutine_fn;
pub(crate) mod poll;
pub(crate) mod preempt;
pub(crate) mod spawn;
pub(crate) mod stack_check;
pub(crate) mod switch;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::abi::{Gpr, RegSet, Signature, Xmm};
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
    /// Where the address of the stack check stub is, from the base of `fs`.
    pub(crate) tls_stack_check_off: i32,
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
struct Shapes<K, P>(OnceLock<Mutex<Plans<K, P>>>);

type Plans<K, P> = HashMap<K, HashMap<&'static Signature, Arc<P>>>;

impl<K: Copy + Eq + Hash, P> Shapes<K, P> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The plan of a shape, made by `plan` if it is the first of its kind. `plan` gets a signature
    /// that lives as long.
    fn get_or_plan(
        &self,
        key: K,
        signature: &Signature,
        plan: impl FnOnce(&'static Signature) -> Result<P, JitError>,
    ) -> Result<Arc<P>, JitError> {
        let shapes = || {
            let shapes = self.0.get_or_init(Mutex::default);
            shapes.lock().unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = shapes().get(&key).and_then(|shapes| shapes.get(signature)) {
            return Ok(Arc::clone(known));
        }
        // Planned without the lock: two threads may do so, and either plan will do.
        let signature = Box::leak(Box::new(signature.clone()));
        let new = Arc::new(plan(signature)?);
        shapes().entry(key).or_default().insert(signature, Arc::clone(&new));
        Ok(new)
    }
}
