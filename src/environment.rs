//! What this host offers to the crate, and what the crate falls back to where it does not.
//!
//! For people to read: no code decides anything by these sentences.

use std::fmt;

use crate::jit::{Jit, Unwinder};
use crate::runtime;

/// What the crate found on this host. Each field is a sentence for people to read, and may change
/// in any version. [`environment`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Environment {
    /// How code memory is mapped, or why it cannot be.
    pub code_memory: String,
    /// How goroutine stacks are guarded, or why they cannot be made.
    pub stack_guards: String,
    /// What becomes of the memory of goroutine stacks after their use.
    pub stack_memory: String,
    /// How an idle thread and a thread that has work for it see each other.
    pub fences: String,
    /// The unwinder that carries panics through emitted code.
    pub unwinder: String,
    /// The signal that preempts, and the machine state that is saved when JIT code is interrupted.
    pub preemption: String,
    /// Whether `std::thread::panicking` and the poisoning of std's locks follow goroutines. Where
    /// they do not, all goroutines of a thread are panicking while one of them is suspended that
    /// unwinds, up to the end of the thread if it is abandoned; and a panic hook must not park.
    pub panic_state: String,
    /// Handlers of signals that run on goroutine stacks, because they were installed without
    /// SA_ONSTACK.
    pub signal_handlers: String,
}

/// What this host offers, and what the crate falls back to. The first thing to print in a report of
/// trouble.
///
/// To find out, it makes the shared code memory and one stack if they were not made before.
///
/// ```
/// let environment = footbridge::environment();
/// // code memory:  dual map (shared anonymous), 1024 MiB at 0x55d0bc000000, ...
/// // stack guards: MADV_GUARD_INSTALL
/// // ...
/// println!("{environment}");
/// assert!(environment.to_string().contains(&environment.unwinder));
/// ```
pub fn environment() -> Environment {
    Environment {
        code_memory: match Jit::new() {
            Ok(jit) => jit.memory_report().into(),
            Err(error) => format!("none: {error}"),
        },
        stack_guards: match runtime::probe_guards() {
            Ok(how) => how,
            Err(error) => format!("none: {error}"),
        },
        stack_memory: runtime::memory_report(),
        fences: runtime::probe_fences().into(),
        unwinder: match Unwinder::of_this_process() {
            Unwinder::Libgcc => "libgcc".into(),
            Unwinder::Llvm => "LLVM libunwind".into(),
        },
        preemption: describe_preemption(),
        panic_state: runtime::describe_panic_state(),
        signal_handlers: describe_handlers(&runtime::handlers_without_alternate_stack()),
    }
}

fn describe_preemption() -> String {
    let state = runtime::describe_preemption();
    match runtime::can_signal() {
        Ok(()) => state,
        Err(error) => {
            format!("{state}; but tgkill(2) failed: {error}: goroutines yield at polls only")
        }
    }
}

fn describe_handlers(signals: &[i32]) -> String {
    if signals.is_empty() {
        return "all on alternate stacks".into();
    }
    let numbers: Vec<_> = signals.iter().map(ToString::to_string).collect();
    let (these, have, run) = match numbers.len() {
        1 => ("signal", "has a handler", "runs"),
        _ => ("signals", "have handlers", "run"),
    };
    format!(
        "{these} {} {have} without SA_ONSTACK, which {run} on goroutine stacks: install with that \
         flag, or raise Config::stack_bytes",
        numbers.join(", ")
    )
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "code memory:  {}", self.code_memory)?;
        writeln!(f, "stack guards: {}", self.stack_guards)?;
        writeln!(f, "stack memory: {}", self.stack_memory)?;
        writeln!(f, "fences:       {}", self.fences)?;
        writeln!(f, "unwinder:     {}", self.unwinder)?;
        writeln!(f, "preemption:   {}", self.preemption)?;
        writeln!(f, "panic state:  {}", self.panic_state)?;
        writeln!(f, "handlers:     {}", self.signal_handlers)
    }
}
