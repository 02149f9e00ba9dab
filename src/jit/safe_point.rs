//! Safe-points: where code may be interrupted for another goroutine, as its annotations say.
//!
//! Code is not preemptible unless its annotations promise that it is, at every instruction but the
//! unsafe points. The signal handler reads what is said here: it must stay plain data.

#[cfg(feature = "runtime")]
mod find;

use std::ops::Range;

use super::error::JitError;

#[cfg(feature = "runtime")]
pub(crate) use find::SafePoint;

/// What a preemption does that comes while the pc is at an unsafe point: see
/// [`Annotations::unsafe_points`](super::Annotations::unsafe_points).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenUnsafe {
    /// Nothing: the code continues, and is preempted later.
    Skip,
    /// The code is preempted, and resumes at the start of the range: what the range did so far is
    /// done again.
    Restart,
}

/// Points at which code must not simply be descheduled and resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnsafePointRange {
    /// Bytes from the start of the code: from the first instruction of the range to the first one
    /// after it.
    pub(crate) bytes: Range<usize>,
    /// What a preemption does there.
    pub(crate) when: WhenUnsafe,
}

/// Sorts the ranges of a piece of code, and refuses those that make no sense in it.
pub(crate) fn check(
    name: &str,
    code_bytes: usize,
    prologue_bytes: usize,
    mut ranges: Vec<UnsafePointRange>,
) -> Result<Vec<UnsafePointRange>, JitError> {
    let refuse = |range: &UnsafePointRange, rule| {
        Err(JitError::UnsafePointRange { name: name.into(), range: range.bytes.clone(), rule })
    };
    ranges.sort_by_key(|range| range.bytes.start);
    for range in &ranges {
        if range.bytes.is_empty() {
            return refuse(range, "it is empty: it ends where it starts, or before");
        }
        if range.bytes.end > code_bytes {
            return refuse(range, "it ends after the code; ranges count bytes from its start");
        }
        if range.when == WhenUnsafe::Restart && range.bytes.start < prologue_bytes {
            return refuse(
                range,
                "it restarts at or before `mov rbp, rsp`, which would make the frame twice",
            );
        }
    }
    match ranges.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end) {
        Some(pair) => refuse(&pair[1], "it overlaps another one"),
        None => Ok(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(bytes: Range<usize>, when: WhenUnsafe) -> UnsafePointRange {
        UnsafePointRange { bytes, when }
    }

    #[test]
    fn ranges_are_sorted_and_checked() {
        let rule_of = |ranges| match check("f", 100, 4, ranges) {
            Err(JitError::UnsafePointRange { range, rule, .. }) => Some((range, rule)),
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        };
        let (skip, restart) = (WhenUnsafe::Skip, WhenUnsafe::Restart);
        let sorted = check("f", 100, 4, vec![range(50..100, skip), range(0..50, skip)]);
        assert_eq!(sorted, Ok(vec![range(0..50, skip), range(50..100, skip)]));
        assert_eq!(rule_of(vec![range(4..8, restart)]), None);
        for (ranges, wrong, words) in [
            (vec![range(5..5, skip)], 5..5, "empty"),
            #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
            (vec![range(6..5, skip)], 6..5, "empty"),
            (vec![range(90..101, skip)], 90..101, "after the code"),
            (vec![range(3..8, restart)], 3..8, "frame twice"),
            (vec![range(20..30, skip), range(10..21, restart)], 20..30, "overlaps"),
        ] {
            let (range, rule) = rule_of(ranges).expect("refused");
            assert_eq!(range, wrong);
            assert!(rule.contains(words), "{rule}");
        }
    }
}
