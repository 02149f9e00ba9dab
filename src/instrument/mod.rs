//! What tools that watch the process are told: which memory is a stack, and which code has changed.
//!
//! valgrind and AddressSanitizer follow the stack pointer of each thread. They take a switch to
//! memory that they do not know for a very large frame, and code at an address that they have seen
//! before for the code of then. This wing knows words and addresses, and no goroutine.
//!
//! | file | tool | cost without the tool |
//! | --- | --- | --- |
//! | `valgrind/` | valgrind, by client requests | a few instructions for a new stack, or for new foreign code; none for a switch |
//! | `asan` | AddressSanitizer, by its functions, in a build with it | none: the calls are not compiled |

#[cfg(all(feature = "runtime", footbridge_asan))]
pub(crate) mod asan;
mod valgrind;

/// The memory from `lo` to `hi` is a stack from now on, for ever.
#[cfg(feature = "runtime")]
pub(crate) fn new_stack(lo: usize, hi: usize) {
    valgrind::register_stack(lo, hi);
    #[cfg(footbridge_asan)]
    asan::register_stack(lo, hi);
}

/// There is new code at an address where the program may have executed other code before.
///
/// The crate's own code needs no call: its addresses are never used twice.
pub(crate) fn new_code(start: usize, len: usize) {
    valgrind::discard_translations(start, len);
}
