//! Adapters between calling conventions: their code, its execution, and walks through it. Adapters
//! are compared with gcc's code in `tests/adapters_gcc`, which installs signal handlers of its own.

mod carry;
mod draw;
mod enter;
mod execution;
mod listings;
mod plant;
mod rust_source;
mod walk;
mod win64_panic;
