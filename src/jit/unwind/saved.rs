//! How much of what a `Saved` or `Entry` frame keeps is in its place at an instruction: for walks
//! that decode native frames further out.

use super::rules::PROLOGUE_BYTES;

/// How many of the five registers that a `Saved` or `Entry` frame keeps are in their slots, at an
/// instruction this many bytes from the start. `push rbx` has one byte, or two with a prefix; the
/// others have two.
pub(crate) fn saved_registers(offset_bytes: usize) -> usize {
    (offset_bytes.saturating_sub(PROLOGUE_BYTES).div_ceil(2)).min(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_saved_after_its_push() {
        let short = [(0, 0), (4, 0), (5, 1), (7, 2), (9, 3), (11, 4), (13, 5), (100, 5)];
        let long = [(4, 0), (6, 1), (8, 2), (10, 3), (12, 4), (14, 5)];
        for (at, expected) in short.into_iter().chain(long) {
            assert_eq!(saved_registers(at), expected, "{at}");
        }
    }
}
