//! The architecture: one facade, and a folder for each machine.
//!
//! The files of this folder hold what is the same everywhere, with the documentation: the layout of
//! a saved context and of the thread-local words, the contract of each switch, the addresses of the
//! stubs. A machine's folder carries the differences only. To port the runtime to a machine, add a
//! folder with these files:
//!
//! | file | what it has |
//! | --- | --- |
//! | `switch` | the instructions of `goswitch`, `gogo`, `mcall`, and a picture of the stack per state |
//! | `tls` | access to the thread-local words, from their base register |
//! | `registers` | the registers of the code that runs |
//! | `fp_control` | FP control state: its layout in a word, reading and loading it |
//! | `save_area` | which machine state a preemption saves, and whether there is preemption |
//! | `frame_rules` | the step from a frame of emitted code to its caller |
//! | `native_frames` | the step from a native frame to its caller, by unwind tables |
//! | `mod` | `handler_entry`, `enter_signal_handler` |
//!
//! The stubs themselves are emitted by `jit/stubs/switch`, which has a file for each machine too.
//! What a machine lacks is refused with an error where it is requested (`save_area`,
//! `jit/stubs/host.rs`).
//!
//! `asm!` stands in this room only. The room knows words and addresses: no G, no M, no policy.

mod cfi;
mod gobuf;
mod registers;
pub(crate) mod stubs;
pub(crate) mod switch;
pub(crate) mod tls;
mod vector_state;

// `frame_rules` is arithmetic, and is tested on every host.
#[cfg(any(target_arch = "aarch64", test))]
mod aarch64;
#[cfg(any(target_arch = "x86_64", test))]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64 as machine;
#[cfg(target_arch = "x86_64")]
use x86_64 as machine;

pub(crate) use gobuf::Gobuf;
#[cfg(feature = "traceback")]
pub(crate) use machine::native_frames;
pub(crate) use machine::registers::registers_here;
pub(crate) use machine::{enter_signal_handler, fp_control, frame_rules, handler_entry, save_area};
pub(crate) use registers::Interrupted;
pub use registers::Registers;
pub use vector_state::VectorState;
