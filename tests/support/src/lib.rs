//! What several test binaries share: child processes, a watchdog, single-stepping, code that fills
//! the machine state, random C types and their declarations, the body of the fuzz target.

pub mod c_types;
pub mod child;
pub mod fuzz;
pub mod native_unwind;
pub mod spinner;
pub mod step;
pub mod watchdog;
