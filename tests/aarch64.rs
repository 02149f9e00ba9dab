//! AArch64, without such a machine: assignments against gcc for it, and adapters that run under an
//! emulator. The tools are Debian's cross compiler and qemu.
//!
//! `FOOTBRIDGE_A64_CASES` sets the number of random cases of each test, `FOOTBRIDGE_SEED` the seed.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]

#[path = "aarch64/adapters.rs"]
mod adapters;
#[path = "aarch64/c.rs"]
mod c;
#[path = "aarch64/chain.rs"]
mod chain;
#[path = "aarch64/cross.rs"]
mod cross;
#[path = "aarch64/gcc.rs"]
mod gcc;
#[path = "aarch64/go.rs"]
mod go;
#[path = "aarch64/listings.rs"]
mod listings;
