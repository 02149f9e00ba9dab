//! Which registers a convention gives a fixed meaning.

use super::env::StubEnv;
use crate::abi::{Convention, Gpr, Pinned, Reg, Xmm};

/// The register that the convention pins to something.
pub(crate) fn pinned_to(convention: Convention, what: Pinned) -> Option<Reg> {
    let pinned = convention.spec().pinned.iter().find(|(_, value)| *value == what);
    pinned.map(|(register, _)| *register)
}

/// The register that holds the current goroutine, in code of this convention.
pub(crate) fn goroutine_of(convention: Convention) -> Option<Gpr> {
    match pinned_to(convention, Pinned::Goroutine) {
        Some(Reg::Gpr(g)) => Some(g),
        _ => None,
    }
}

/// The register that is zero whenever code of this convention is entered.
pub(crate) fn zero_of(convention: Convention) -> Option<Xmm> {
    match pinned_to(convention, Pinned::Zero) {
        Some(Reg::Xmm(zero)) => Some(zero),
        _ => None,
    }
}

/// Where code finds the stack limit that polls and checks of the stack compare with.
#[derive(Clone, Copy)]
pub(crate) enum StackLimit {
    /// In the goroutine, which is in a register: at this offset.
    InGoroutine(Gpr, i32),
    /// In thread-local storage: at this offset from the base of `fs`.
    InThread(i32),
}

impl StackLimit {
    /// Where code of this convention finds it. A convention that pins no register has the copy in
    /// thread-local storage, which every switch renews.
    pub(crate) fn of(convention: Convention, env: &StubEnv) -> Self {
        match goroutine_of(convention) {
            Some(g) => Self::InGoroutine(g, env.g_stack_limit_off),
            None => Self::InThread(env.tls_stack_limit_off),
        }
    }
}
