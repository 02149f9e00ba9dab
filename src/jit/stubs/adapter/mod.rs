//! One calling convention in front of another.
//!
//! An adapter is entered in one convention and calls its target in another one. It changes how a
//! call looks and nothing else: it leaves no anchor, switches no stack and knows no scheduler.
//!
//! There are two shapes. A *tail jump* has no frame: it moves registers, and the target returns to
//! the adapter's caller. It is used whenever nothing forces a frame, that is, when
//! [`Plan::tail`] has a plan: no stack area to make, no preserved register to save, no result to
//! move. Any other adapter is a *call*, on amd64:
//!
//! ```text
//!     |  stack arguments          |  rbp+16         addresses grow upwards
//!     |  return address           |  rbp+8
//!     |  rbp                      |  <- rbp
//!     |  saved general registers  |  rbp-8, ..
//!     |  saved vector registers   |
//!     |  stage                    |
//!     |  arguments of the target  |  <- rsp at the call
//! ```
//!
//! `plan.rs` decides; `x86_64.rs` and `aarch64.rs` emit. The code is position-independent. What
//! differs between two adapters of a shape, the address of the target and the word that is bound,
//! is in cells after it, so that only the first of a shape is planned and emitted: each further
//! one is a copy with other cells.

mod aarch64;
mod code;
mod machine;
mod plan;
mod x86_64;

crate::for_runtime! {
    mod known;

    pub(crate) use known::{Shape, shape};
}

pub use code::AdapterCode;
pub use plan::{AdapterSpec, Bind, Binding};
