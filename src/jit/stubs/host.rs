//! Which kinds of stub the host's architecture has.

use crate::abi::Arch;
use crate::jit::error::JitError;
use crate::jit::frame::HOST;

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
