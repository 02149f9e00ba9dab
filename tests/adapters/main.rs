//! Adapters between calling conventions: their code, what it does, and walks through it. Adapters
//! against gcc are in `tests/adapters_gcc`, which installs signal handlers of its own.

mod carry;
mod draw;
mod execution;
mod listings;
mod plant;
mod rust_source;
mod walk;
