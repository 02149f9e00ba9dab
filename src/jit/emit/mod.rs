//! Turns plans into machine code, one file per architecture.

pub(crate) mod aarch64;
pub(crate) mod x86_64;
