//! What a preemption finds at a program counter. Called in signal handlers: plain data only.

use super::{UnsafePointRange, WhenUnsafe};

/// What a preemption finds at a pc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SafePoint {
    /// The code is never preempted.
    NotPreemptible,
    /// The code is not preempted at this instruction.
    Unsafe,
    /// The code may be preempted, and resumes at this offset from its start.
    ResumeAt(usize),
}

impl SafePoint {
    /// Whether code with these (sorted) ranges may be preempted at this offset from its start.
    /// Called in signal handlers.
    pub(crate) fn find(ranges: &[UnsafePointRange], offset_bytes: usize) -> Self {
        match ranges.iter().find(|range| range.bytes.contains(&offset_bytes)) {
            None => Self::ResumeAt(offset_bytes),
            Some(UnsafePointRange { when: WhenUnsafe::Skip, .. }) => Self::Unsafe,
            Some(UnsafePointRange { when: WhenUnsafe::Restart, bytes }) => {
                Self::ResumeAt(bytes.start)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn range(bytes: Range<usize>, when: WhenUnsafe) -> UnsafePointRange {
        UnsafePointRange { bytes, when }
    }

    #[test]
    fn a_point_is_unsafe_from_the_first_byte_of_a_range_to_the_last() {
        let ranges = [range(10..20, WhenUnsafe::Skip), range(30..40, WhenUnsafe::Restart)];
        for (at, expected) in [
            (0, SafePoint::ResumeAt(0)),
            (9, SafePoint::ResumeAt(9)),
            (10, SafePoint::Unsafe),
            (19, SafePoint::Unsafe),
            (20, SafePoint::ResumeAt(20)),
            (30, SafePoint::ResumeAt(30)),
            (39, SafePoint::ResumeAt(30)),
            (40, SafePoint::ResumeAt(40)),
        ] {
            assert_eq!(SafePoint::find(&ranges, at), expected, "{at}");
        }
    }
}
