//! The stubs of the runtime: end to end (`spine`), register by register (`registers`), instruction
//! by instruction (`single_step*`), and the contracts that they check (`checked`).

mod checked;
mod decode;
mod probe;
mod registers;
mod single_step;
mod single_step_check;
mod single_step_preempt;
mod spine;
mod unwind_in_handler;
mod unwound;
