//! A model machine that executes plans: the oracle of tests and fuzzing.
//!
//! The emitted code must do what a plan does here, and a plan must do here what the two assignments
//! promise. The model is stricter than a processor. Every bit that a convention leaves unspecified
//! is garbage. A plan cannot access memory outside of the areas of its call, and it cannot write
//! the areas that it may only read.
//!
//! A call, in time order:
//!
//! ```
//! use footbridge::abi::model::Machine;
//! use footbridge::abi::{Assignment, Convention, Plan, PlanRequest, RegSet};
//!
//! let signature = "fn(i8, [u16; 3]) -> u16".parse()?;
//! let entry = Convention::SystemV.assign(&signature)?;
//! let target = Assignment::packed(&signature);
//! let plan = Plan::new(&PlanRequest {
//!     entry: &entry,
//!     target: &target,
//!     bound_param: None,
//!     arg_scratch: RegSet::EMPTY,
//!     result_scratch: RegSet::EMPTY,
//! })?;
//!
//! let mut machine = Machine::new(&entry, &target, &plan, 1);
//! let args = [vec![0xff], vec![1, 0, 2, 0, 3, 0]];
//! machine.enter(&args); // the caller passes its arguments
//! machine.run(&plan.args)?; // the stub
//! assert_eq!(machine.arrived()?, args); // the callee reads them
//! machine.leave(&[vec![0xf4, 1]]); // the callee returns 500
//! machine.run(&plan.results)?; // the stub
//! assert_eq!(machine.returned()?, [[0xf4, 1]]); // the caller reads the result
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The model reads a plan as its steps, and never depends on how it was made.

mod call;
mod fault;
mod machine;
mod memory;
#[cfg(test)]
mod random_calls;
#[cfg(test)]
mod tests;
mod xorshift;

pub use fault::Fault;
pub use machine::Machine;
pub use xorshift::Xorshift;
