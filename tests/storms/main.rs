//! Random work under as many preemptions as possible. These tests load all CPUs, so tests that
//! measure time are in other binaries.

mod machine_state;
mod rust_code;
mod soak;
