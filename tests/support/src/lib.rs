//! Fixtures that several test binaries share.

pub mod c_types;
pub mod child;
pub mod code;
pub mod gcc;
#[cfg(target_arch = "x86_64")]
pub mod native_unwind;
pub mod patience;
pub mod random;
pub mod runs;
pub mod settings;
#[cfg(target_arch = "x86_64")]
pub mod shadow;
#[cfg(target_arch = "x86_64")]
pub mod spinner;
#[cfg(target_arch = "x86_64")]
pub mod step;
pub mod watchdog;
