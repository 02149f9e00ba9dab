//! The stubs of the runtime: end to end (`spine`), register by register (`registers`), and
//! instruction by instruction (`single_step*`).

mod checked;
mod probe;
mod registers;
mod single_step;
mod single_step_check;
mod single_step_preempt;
mod spine;
