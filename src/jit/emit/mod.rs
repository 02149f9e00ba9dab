//! Turns plans into machine code, one file per architecture.

pub(crate) mod x86_64;
