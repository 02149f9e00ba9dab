//! What each kind of stub consists of.

pub(crate) mod enter;
pub(crate) mod goroutine_fn;
pub(crate) mod spawn;
pub(crate) mod switch;

use crate::abi::{Gpr, RegSet, Xmm};

/// What stubs know of the runtime: plain numbers.
#[derive(Clone, Copy)]
pub(crate) struct StubEnv {
    /// Where the address of the current goroutine is, from the base of `fs`.
    pub(crate) tls_g_off: i32,
    /// Where the anchor is in a goroutine: fp, and behind it pc.
    pub(crate) g_anchor_off: i32,
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
