//! What a call carries: types with their layouts, signatures, and the text form of both.
//!
//! `limits.rs` bounds types, `layout.rs` computes offsets, `ty.rs` describes types with both,
//! `leaves.rs` visits their parts, `sig.rs` lists them, and `parse.rs` reads the text form. Each
//! file uses only those before it.

mod layout;
mod leaves;
mod limits;
mod parse;
mod sig;
#[cfg(test)]
mod tests;
mod ty;

pub use layout::{Language, Layout};
pub use limits::{
    MAX_TYPE_ALIGN_BYTES, MAX_TYPE_BYTES, MAX_TYPE_DEPTH, MAX_TYPE_MENTIONS, TypeError,
};
pub use parse::ParseError;
pub use sig::{Signature, ValueIndex};
pub use ty::{Array, Float, Record, RecordSpec, Type, VectorWidth};
