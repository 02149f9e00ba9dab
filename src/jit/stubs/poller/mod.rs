//! What emits polls and checks of the stack into one piece of code, and keeps which slow paths are
//! still to come. The instructions are those of `poll/` and `stack_check/`.
//!
//! It writes to the assembler of the host, so that each architecture has a type of its own. Where
//! code does not poll yet the type has no value: it cannot be made, and what would emit is never
//! reached.

#[cfg_attr(
    not(target_arch = "aarch64"),
    allow(dead_code, reason = "compiled on every host, used on its own")
)]
mod aarch64;
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "compiled on every host, used on its own")
)]
mod x86_64;

use super::host::require_amd64;
use crate::jit::error::JitError;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::Poller;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::Poller;

/// Refuses on hosts whose code does not poll.
pub(crate) fn require_polls() -> Result<(), JitError> {
    require_amd64("polls")
}
