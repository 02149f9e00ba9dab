//! Adapters for this host and process: each shape is made once, and then known.

use std::sync::Arc;

use super::code::AdapterCode;
use super::plan::{AdapterPlan, AdapterSpec, Binding};
use super::x86_64::HostFunctions;
use crate::abi::{Arch, Convention, Signature};
use crate::jit::arena::{continue_panic, intern};
use crate::jit::emit::x86_64::check_processor;
use crate::jit::error::JitError;
use crate::jit::stubs::host::require_amd64;
use crate::jit::stubs::shapes::Shapes;

/// An adapter but for its target and bound word.
pub(crate) struct Shape {
    /// How the adapter is entered.
    pub(crate) entry: Convention,
    pub(crate) code: AdapterCode,
    pub(crate) signature: &'static Signature,
    pub(crate) name: &'static str,
}

/// The shape of an adapter for this host and process: made once, then known.
pub(crate) fn shape(spec: &AdapterSpec<'_>, no_goroutine: usize) -> Result<Arc<Shape>, JitError> {
    static SHAPES: Shapes<(Convention, Convention, Binding), Shape> = Shapes::new();
    let key = (spec.entry, spec.target, spec.binding);
    let (_, shape) = SHAPES.get_or_plan(key, spec.signature, || {
        require_amd64("adapters that execute")?;
        if spec.entry.spec().arch != Arch::Amd64 || spec.target.spec().arch != Arch::Amd64 {
            let rule = "this host executes amd64; `AdapterCode::new` emits for other machines";
            return Err(JitError::Signature { stub: "adapter", rule });
        }
        let plan = AdapterPlan::new(spec, true)?;
        check_processor(&plan.plan)?;
        let continue_panic = continue_panic as *const () as usize;
        let host = HostFunctions { no_goroutine, continue_panic };
        let code = AdapterCode::emit(&plan, spec.g_tls_off_bytes, Some(host))?;
        let name = intern(&format!("{} to {}", spec.entry, spec.target));
        // For descriptors, which outlive every handle.
        let signature = Box::leak(Box::new(spec.signature.clone()));
        Ok(Shape { entry: spec.entry, code, signature, name })
    })?;
    Ok(shape)
}
