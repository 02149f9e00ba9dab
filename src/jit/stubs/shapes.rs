//! What is planned once for all stubs of a shape.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::abi::Signature;
use crate::jit::error::JitError;

/// What was planned for a shape of stub: the next one of that shape only needs to be emitted. It
/// grows with the number of shapes, of which a program has few.
pub(crate) struct Shapes<K, P>(OnceLock<Mutex<Plans<K, P>>>);

type Plans<K, P> = HashMap<K, HashMap<&'static Signature, Arc<P>>>;

impl<K: Copy + Eq + Hash, P> Shapes<K, P> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The plan of a shape, made by `plan` if it is the first of its kind, and the one copy of its
    /// signature, which descriptors may refer to for ever.
    pub(crate) fn get_or_plan(
        &self,
        key: K,
        signature: &Signature,
        plan: impl FnOnce() -> Result<P, JitError>,
    ) -> Result<(&'static Signature, Arc<P>), JitError> {
        let shapes = || {
            let shapes = self.0.get_or_init(Mutex::default);
            shapes.lock().unwrap_or_else(PoisonError::into_inner)
        };
        let known = shapes()
            .get(&key)
            .and_then(|shapes| shapes.get_key_value(signature))
            .map(|(&signature, plan)| (signature, Arc::clone(plan)));
        if let Some(known) = known {
            return Ok(known);
        }
        // Planned without the lock: two threads may do so, and either plan will do. What is refused
        // leaves no entry.
        let new = Arc::new(plan()?);
        let mut shapes = shapes();
        let shapes = shapes.entry(key).or_default();
        if !shapes.contains_key(signature) {
            shapes.insert(Box::leak(Box::new(signature.clone())), new);
        }
        let (&signature, plan) = shapes.get_key_value(signature).expect("it is there");
        Ok((signature, Arc::clone(plan)))
    }
}
