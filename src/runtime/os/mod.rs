//! The operating system: one facade, a folder for each system. To port the runtime to a new one, add
//! a folder with the same files.
//!
//! | file | what it is |
//! | --- | --- |
//! | `futex` | sleeping on a word, and the fences whose whole cost is on one side |
//! | `memory` | stacks: address space, commitment, guards, limits |
//! | `signals` | handlers, masks, alternate stacks |
//! | `threads` | numbers, bounds of stacks, signals to a thread |
//! | `modules` | the loaded modules and their unwind tables |
//! | `symbols` | the name of a native function, callable in a signal handler |
//! | `stderr` | standard error without a lock |
//!
//! `libc::` stands in this room only. It knows no G, no M, no policy.

mod linux;
mod throw;
pub(crate) use linux::{futex, memory, modules, signals, stderr, symbols, threads};
pub(crate) use throw::throw;
