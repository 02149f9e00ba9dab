//! What is refused before a stub is planned: kinds that the host's architecture does not have, and
//! targets that are no code.

use crate::abi::Arch;
use crate::jit::error::JitError;
use crate::jit::frame::{HOST, PAGE_BYTES};

/// Refuses on hosts that are not x86-64. `what`: the plural of what is wanted.
pub(crate) fn require_amd64(what: &'static str) -> Result<(), JitError> {
    match HOST {
        Arch::Amd64 => Ok(()),
        _ => Err(unsupported(what)),
    }
}

/// The host's architecture does not have these yet.
pub(crate) fn unsupported(what: &'static str) -> JitError {
    JitError::Unsupported { what, target: "AArch64" }
}

/// Refuses targets in the first page, which is never mapped: null, and offsets from null.
pub(crate) fn require_target(stub: &'static str, address: usize) -> Result<(), JitError> {
    if address < PAGE_BYTES {
        return Err(JitError::NullTarget { stub, address });
    }
    Ok(())
}
