//! Rules for the text of the repository: which room of `src` may use which, where `unsafe`, assembly
//! and the C library may stand, and which words are used.
//!
//! Each rule is a function from a [`tree::Tree`] to the violations, which name file, line and what
//! stands there. Tests plant violations in trees of their own and see them named.

mod house;
mod imports;
mod rooms;
mod tree;
mod unsafe_code;
mod words;
