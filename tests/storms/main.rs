//! Random work under as many preemptions as possible. These tests load all processors: tests that
//! measure time are in other binaries.

mod machine_state;
mod rust_code;
mod soak;
