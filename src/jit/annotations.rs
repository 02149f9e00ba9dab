//! What an author says of his code when he installs it, besides its name and frame class.

use super::error::JitError;
use super::frame::FrameClass;
use super::safe_point::{self, UnsafePointRange};
use super::stack_map::{LiveAt, StackMap};

/// What is known of a piece of code besides its name and frame class. The default is nothing: it is
/// not interrupted, and nobody knows where its pointers are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    /// The code may be interrupted for another goroutine, outside of these ranges: the promises of
    /// [`Jit::install_preemptible`](super::Jit::install_preemptible).
    pub preemptible: Option<Vec<UnsafePointRange>>,
    /// Where the code has live pointers. An empty map says that it never has one.
    pub stack_map: Option<Vec<LiveAt>>,
}

/// Annotations that make sense for their code.
#[derive(Default)]
pub(crate) struct Checked {
    /// Sorted.
    pub(crate) preemptible: Option<Vec<UnsafePointRange>>,
    pub(crate) stack_map: Option<StackMap>,
}

impl Annotations {
    /// Refuses what makes no sense for code of so many bytes.
    pub(crate) fn check(
        self,
        name: &str,
        class: FrameClass,
        code_bytes: usize,
    ) -> Result<Checked, JitError> {
        let preemptible = self
            .preemptible
            .map(|ranges| safe_point::check(name, code_bytes, class.prologue_bytes(), ranges));
        let stack_map =
            self.stack_map.map(|entries| StackMap::check(name, class, code_bytes, entries));
        Ok(Checked { preemptible: preemptible.transpose()?, stack_map: stack_map.transpose()? })
    }
}
