//! Types, signatures and assignments. `tests/heavy/abi_tables.rs` compares assignments with tables
//! of the Go compiler.

mod c;
mod gcc;
mod text;
