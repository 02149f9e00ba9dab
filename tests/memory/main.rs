//! Code memory, stacks, and faults.
//!
//! Most tests here limit or break their process, and therefore run in a child.

mod code;
mod faults;
mod stacks;
