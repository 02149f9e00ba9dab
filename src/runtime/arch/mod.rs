//! The architecture: one facade, a folder for each machine.
//!
//! Every folder has the same files with the same items:
//!
//! | file | what it is |
//! | --- | --- |
//! | `switch` | `goswitch`, `gogo`, `mcall`: leaving one stack for another |
//! | `tls` | the thread-local words that emitted code reads |
//! | `fp_control` | FP control state: reading and loading it |
//! | `save_area` | which machine state a preemption saves |
//! | `registers` | the registers of the code that runs |
//!
//! `asm!` stands in this room only. It knows words and addresses: no G, no M, no policy.

mod gobuf;
mod registers;
mod vector_state;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as machine;

pub(crate) use gobuf::Gobuf;
pub(crate) use machine::registers::registers_here;
pub(crate) use machine::{enter_signal_handler, fp_control, save_area, switch, tls};
pub use registers::Registers;
pub use vector_state::VectorState;
