//! Rules for the text of the repository: which room of `src` may use which, which files may have
//! `unsafe`, assembly and calls of the C library, and which words are used.
//!
//! Each rule is a function from a [`tree::Tree`] to its violations, with file, line and text. Tests
//! plant violations in small trees and assert that they are reported.

mod docs;
mod house;
mod imports;
mod rooms;
mod tree;
mod unsafe_code;
mod words;
