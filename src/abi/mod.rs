//! Where the values of a call live, and in which order they move.
//!
//! This layer describes calls. It knows no address, accesses no memory of a call and emits no
//! instruction, so all of it runs on any host and under miri, for any target.
//!
//! A stub stands between two sides: *entry*, the way the stub is entered, and *target*, what
//! it calls. The path from a description to a stub has three steps:
//!
//! 1. A [`Signature`] lists the types of the parameters and results, and has a text form. A
//!    [`Type`] is anything that C or Go pass by value, and knows its [`Layout`] in both.
//! 2. [`Convention::assign`] turns it into an [`Assignment`]: registers for the parts of each
//!    value, or a stack offset, or the place of its address. [`Assignment::packed`] has the values
//!    in packed buffers in memory instead.
//! 3. A [`Plan`] is the ordered list of moves from the entry's assignment to the target's, and
//!    of the results the other way. It names every register that it writes.
//!
//! A plan has two readers: the emitter, and the model machine in `model`, which is the oracle of
//! tests and fuzzing.
//!
//! Files use each other in this order, each only those before it: `reg`, `types`, `place`,
//! `conv/spec`, `assign`, `conv`, `plan`, `model`.
//!
//! ```
//! use footbridge::abi::{Convention, Gpr, Plan, PlanRequest, RegSet, Signature};
//!
//! let signature: Signature = "fn(i64, i8, f64) -> u8".parse()?;
//! let entry = Convention::GoAbiInternal.assign(&signature)?;
//! let target = Convention::SystemV.assign(&signature)?;
//! assert_eq!(entry.to_string(), "p0: rax  p1: rbx  p2: xmm0  r0: rax");
//! assert_eq!(target.to_string(), "p0: rdi  p1: rsi  p2: xmm0  r0: rax");
//!
//! let plan = Plan::new(&PlanRequest {
//!     entry: &entry,
//!     target: &target,
//!     bound_param: None,
//!     arg_scratch: RegSet::EMPTY,
//!     result_scratch: RegSet::EMPTY,
//! })?;
//! assert!(plan.writes.contains(Gpr::RSI));
//! assert_eq!(plan.args.len(), 2); // f64 is in place already
//!
//! let signature: Signature = "fn(struct { f32, f32, i32 }, [u8; 24]) -> complex<f64>".parse()?;
//! assert_eq!(
//!     Convention::SystemV.assign(&signature)?.to_string(),
//!     "p0.0: xmm0  p0.8: rdi  p1: [arg+0]  r0.0: xmm0  r0.8: xmm1"
//! );
//! assert_eq!(
//!     Convention::Win64.assign(&signature)?.to_string(),
//!     "p0: [rdx]  p1: [r8]  r0: [rcx] at rax"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod assign;
mod conv;
#[doc(hidden)]
pub mod model;
mod place;
mod plan;
mod reg;
mod types;

pub use assign::{AssignError, Assignment, MAX_AREA_BYTES, Passing, ResultPointer, Value};
pub use conv::Convention;
pub use conv::spec::{ConvSpec, Narrow, Pinned, Slots};
pub use place::{Part, Parts, Place};
pub use plan::{Extend, MAX_FRAME_BYTES, Operand, Plan, PlanError, PlanRequest, Step, Width};
pub use reg::{Arch, Gpr, Reg, RegClass, RegSet, Vreg, Xmm, Xreg};
pub use types::{
    Array, Float, Language, Layout, MAX_TYPE_ALIGN_BYTES, MAX_TYPE_BYTES, MAX_TYPE_DEPTH,
    MAX_TYPE_MENTIONS, ParseError, Record, RecordSpec, Signature, Type, TypeError, ValueIndex,
    VectorWidth,
};
