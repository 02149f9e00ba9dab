//! AArch64 on an x86-64 host: assignments are compared with gcc's, and adapters run under an
//! emulator. The tools are Debian's cross compiler and qemu.
//!
//! `FOOTBRIDGE_A64_CASES` sets the number of random cases of each test, `FOOTBRIDGE_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]

mod adapters;
mod c;
mod chain;
mod cross;
mod gcc;
mod go;
mod listings;
