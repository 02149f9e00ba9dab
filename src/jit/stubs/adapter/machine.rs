//! Chooses the machine that an adapter is emitted for.

use super::code::AdapterCode;
use super::plan::{AdapterPlan, AdapterSpec};
use super::x86_64::HostFunctions;
use super::{aarch64, x86_64};
use crate::abi::{Arch, Pinned};
use crate::jit::error::JitError;

impl AdapterCode {
    /// Plans and emits: see [`AdapterCode`] for an example.
    ///
    /// # Errors
    /// A convention cannot carry the signature ([`JitError::Assign`]), there are no moves between
    /// the two ([`JitError::Plan`]), or the target has no register for what is to be bound or
    /// needs a `g` whose place is not given ([`JitError::Signature`]).
    pub fn new(spec: &AdapterSpec<'_>) -> Result<AdapterCode, JitError> {
        AdapterCode::emit(&AdapterPlan::new(spec, false)?, spec.g_tls_off_bytes, None)
    }

    /// `host`: functions of this process, for adapters that run in it.
    pub(super) fn emit(
        plan: &AdapterPlan,
        g_tls_off_bytes: Option<i32>,
        host: Option<HostFunctions>,
    ) -> Result<AdapterCode, JitError> {
        let needs_g = plan.set_before.iter().any(|(_, what)| *what == Pinned::Goroutine);
        let g_tls_off = match (needs_g, g_tls_off_bytes) {
            (false, _) => 0,
            (true, Some(off)) => off,
            (true, None) => {
                let rule = "the target's convention has a register for the current goroutine; say \
                            where its address is, by `AdapterSpec::g_tls_off_bytes`";
                return Err(JitError::Signature { stub: "adapter", rule });
            }
        };
        match plan.arch {
            Arch::Amd64 => x86_64::emit(plan, g_tls_off, host),
            Arch::Aarch64 => aarch64::emit(plan, g_tls_off),
        }
    }
}
