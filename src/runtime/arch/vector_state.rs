//! Which vector registers a preemption saves.

/// Vector registers that JIT code uses.
///
/// If all JIT code of a program keeps to less than what the CPU has, less needs to be saved where
/// goroutines are preempted, and less stack is needed for it.
///
/// On AArch64, where goroutines are not preempted in JIT code yet, every choice but `Auto` is
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VectorState {
    /// All that this CPU and its operating system have.
    Auto,
    /// xmm0 to xmm15.
    Sse,
    /// ymm0 to ymm15.
    Avx,
    /// zmm0 to zmm31 and k0 to k7.
    Avx512,
}
