//! Where code has pointers that a walk is to find and may change, as its annotations say: for the
//! roots of a precise collector.
//!
//! A map is checked once and then plain data. Lookups in it allocate nothing, take no lock and do
//! not panic: walks of stacks make them.

use std::fmt;
use std::ops::Range;

use super::error::JitError;
use super::frame::{FrameClass, RED_ZONE_BYTES};
use crate::abi::Gpr;

/// No stack is larger, so that no slot is further from its frame.
pub(crate) const FARTHEST_BYTES: i32 = 8 << 20;

/// A place that holds a live pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LiveSlot {
    /// A word of the stack, at this offset in bytes from rbp; in code of [`FrameClass::Leaf`], from
    /// rsp. A multiple of 8.
    ///
    /// In a frame, `-8` is the first word below rbp and `16` the first stack argument. (In
    /// [`FrameClass::Saved`] the first word of the code's own is `-48`.) In a leaf, `-8` to `-128`
    /// are the red zone, and `8` is the first stack argument.
    Frame(i32),
    /// A general register, but not rsp or rbp. It counts where the code was interrupted or yielded
    /// itself, and not while it calls: see [`LiveAt`].
    Register(Gpr),
}

impl fmt::Display for LiveSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(offset) => write!(f, "frame slot {offset:+}"),
            Self::Register(register) => write!(f, "register {register}"),
        }
    }
}

/// What is live at some instructions.
///
/// Which entry of a map counts for a frame:
///
/// * **It calls**: the entry that contains the *last byte of the call*, as in unwind tables. Its
///   frame slots are found. Its registers are not, since the function that was called may have
///   saved them anywhere. What must live over a call is in the frame.
/// * **It was interrupted** ([`Annotations::preemptible`](super::Annotations::preemptible)): the
///   entry that contains the instruction at which it resumes (the first one of unsafe points that
///   restart), with what is live *before* that instruction. Frame slots and registers are found,
///   the latter where they were saved: the code resumes with a new value that is written there.
/// * **It yielded at a poll** or a check of its stack (`Jit::polls`): as if it
///   had been interrupted at the instruction after the poll's branch. The slow path needs no entry.
/// * **A stub that it called yielded**, a goroutine function that has returned: as if it had been
///   interrupted at the instruction after the call, where results are in their registers. A result
///   that is a pointer is found only if the entry for that instruction has its register.
///
/// Where no entry is, no pointer is live. To say one thing for a call and another one for the
/// moment before it, let an entry begin at the last byte of the call.
///
/// In the prologue of a frame, and at the `ret` that follows it, stack arguments are found, and
/// nothing is below rbp.
///
/// What a slot holds is between the code and the visitor: a pointer to the middle of an object, or
/// null. Vector registers are no slots. What is passed to Rust or C is theirs while they run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveAt {
    /// Bytes from the start of the code: from the first instruction to the first one after them.
    /// `ops.offset().0` is the offset of the next instruction while code is emitted.
    pub bytes: Range<usize>,
    /// What is live there, in any order.
    pub slots: Vec<LiveSlot>,
}

/// The map of a piece of code: entries that do not overlap, by their place.
///
/// ```
/// use footbridge::dynasm::{DynasmApi, dynasm};
/// use footbridge::jit::{Annotations, FrameClass, Jit, LiveAt, LiveSlot, lookup};
///
/// let jit = Jit::new()?;
/// // SAFETY: a System V leaf that changes nothing; its first stack argument is a pointer.
/// let code = unsafe {
///     jit.install("ignores", FrameClass::Leaf, |ops| {
///         dynasm!(ops; .arch x64; nop; ret);
///         let slots = vec![LiveSlot::Frame(8)];
///         Annotations::new().stack_map([LiveAt { bytes: 0..1, slots }])
///     })?
/// };
/// let map = lookup(code.address()).and_then(|stub| stub.stack_map()).expect("it has one");
/// assert_eq!(map.entries().len(), 1);
/// assert_eq!((map.live_at(0), map.live_at(1)), (&[LiveSlot::Frame(8)][..], &[][..]));
/// # Ok::<(), footbridge::jit::JitError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackMap {
    entries: Box<[LiveAt]>,
}

impl StackMap {
    /// Sorts the entries for a piece of code, and refuses those that make no sense in it.
    pub(crate) fn check(
        name: &str,
        class: FrameClass,
        code_bytes: usize,
        mut entries: Vec<LiveAt>,
    ) -> Result<Self, JitError> {
        let refuse = |entry: &LiveAt, slot: Option<LiveSlot>, rule| {
            Err(JitError::StackMap {
                name: name.into(),
                range: entry.bytes.clone(),
                slot: slot.map(|slot| slot.to_string()),
                rule,
            })
        };
        entries.sort_by_key(|entry| entry.bytes.start);
        for entry in &mut entries {
            if entry.bytes.is_empty() {
                return refuse(entry, None, "it is empty: it ends where it starts, or before");
            }
            if entry.bytes.end > code_bytes {
                let rule = "it ends after the code; entries count bytes from its start";
                return refuse(entry, None, rule);
            }
            entry.slots.sort_unstable();
            for &slot in &entry.slots {
                if let Some(rule) = broken_rule(slot, class, entry.bytes.start) {
                    return refuse(entry, Some(slot), rule);
                }
            }
            if let Some(twice) = entry.slots.windows(2).find(|pair| pair[0] == pair[1]) {
                return refuse(entry, Some(twice[0]), "it is listed twice");
            }
        }
        match entries.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end) {
            Some(pair) => refuse(&pair[1], None, "it overlaps another one"),
            None => Ok(Self { entries: entries.into() }),
        }
    }

    /// All entries, by their place.
    pub fn entries(&self) -> &[LiveAt] {
        &self.entries
    }

    /// What is live at the instruction that has the byte at this offset from the start of the code.
    pub fn live_at(&self, offset_bytes: usize) -> &[LiveSlot] {
        let next = self.entries.partition_point(|entry| entry.bytes.start <= offset_bytes);
        let entry = next.checked_sub(1).and_then(|last| self.entries.get(last));
        match entry {
            Some(entry) if offset_bytes < entry.bytes.end => &entry.slots,
            _ => &[],
        }
    }
}

/// Why the slot cannot be live from that byte on in code of the class.
fn broken_rule(slot: LiveSlot, class: FrameClass, from: usize) -> Option<&'static str> {
    let offset = match slot {
        LiveSlot::Register(Gpr::RSP | Gpr::RBP) => {
            return Some("rsp and rbp hold the frame, and no pointer of the code's own");
        }
        LiveSlot::Register(_) => return None,
        LiveSlot::Frame(offset) => offset,
    };
    if offset % 8 != 0 {
        return Some("a frame slot is a whole word, at a multiple of 8");
    }
    if !(-FARTHEST_BYTES..FARTHEST_BYTES).contains(&offset) {
        return Some("it is further away than any stack is large");
    }
    match class {
        FrameClass::Leaf => match offset {
            0 => Some("in a leaf, that is the return address"),
            ..0 if offset < -(RED_ZONE_BYTES as i32) => {
                Some("a leaf has the 128 bytes below rsp only")
            }
            _ => None,
        },
        _ => match offset {
            0 => Some("that is the caller's rbp"),
            8 => Some("that is the return address"),
            -40..0 if class == FrameClass::Saved => {
                Some("in a saved frame, that is a register of the caller's")
            }
            ..0 if from < class.prologue_bytes() => {
                Some("the entry begins before `mov rbp, rsp` is done, when nothing is below rbp")
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use LiveSlot::{Frame, Register};

    use super::*;

    fn entry(bytes: Range<usize>, slots: &[LiveSlot]) -> LiveAt {
        LiveAt { bytes, slots: slots.into() }
    }

    #[test]
    fn an_entry_counts_from_its_first_byte_to_its_last() {
        let (a, b) = ([Register(Gpr::RAX)], [Frame(-8), Register(Gpr::R15)]);
        // Given in another order than they are kept in.
        let entries = vec![entry(30..40, &[b[1], b[0]]), entry(10..20, &a), entry(40..41, &a)];
        let map = StackMap::check("f", FrameClass::Standard, 50, entries).expect("a map");
        let starts: Vec<_> = map.entries().iter().map(|entry| entry.bytes.start).collect();
        assert_eq!(starts, [10, 30, 40]);
        for (at, expected) in [
            (0, &[][..]),
            (9, &[]),
            (10, &a),
            (19, &a),
            (20, &[]),
            (29, &[]),
            (30, &b),
            (39, &b),
            (40, &a),
            (41, &[]),
            (usize::MAX, &[]),
        ] {
            assert_eq!(map.live_at(at), expected, "{at}");
        }
        let empty = StackMap::check("f", FrameClass::Leaf, 1, vec![]).expect("a map");
        assert_eq!(empty.live_at(0), &[]);
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        use FrameClass::{Barrier, Leaf, Saved, Standard};
        let rax = Register(Gpr::RAX);
        let refusal = |class, entries| match StackMap::check("f", class, 100, entries) {
            Err(JitError::StackMap { name, range, slot, rule }) => {
                assert_eq!(name, "f");
                Some((range, slot, rule))
            }
            Err(other) => panic!("{other}"),
            Ok(_) => None,
        };
        #[allow(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let ranges = [
            (vec![entry(5..5, &[rax])], 5..5, "empty"),
            (vec![entry(6..5, &[rax])], 6..5, "empty"),
            (vec![entry(90..101, &[rax])], 90..101, "after the code"),
            (vec![entry(20..30, &[]), entry(10..21, &[])], 20..30, "overlaps"),
            (vec![entry(10..20, &[]), entry(10..20, &[])], 10..20, "overlaps"),
        ];
        for (entries, wrong, words) in ranges {
            let (range, slot, rule) = refusal(Standard, entries).expect("refused");
            assert_eq!((range, slot), (wrong, None));
            assert!(rule.contains(words), "{rule}");
        }
        for (class, from, slot, words) in [
            (Standard, 4, Register(Gpr::RSP), "rsp and rbp"),
            (Leaf, 0, Register(Gpr::RBP), "rsp and rbp"),
            (Standard, 4, Frame(-12), "multiple of 8"),
            (Standard, 4, Frame(20), "multiple of 8"),
            (Leaf, 0, Frame(-4), "multiple of 8"),
            (Standard, 4, Frame(0), "caller's rbp"),
            (Barrier, 4, Frame(8), "return address"),
            (Saved, 4, Frame(-8), "register of the caller's"),
            (Saved, 4, Frame(-40), "register of the caller's"),
            (Standard, 0, Frame(-8), "before `mov rbp, rsp`"),
            (Standard, 3, Frame(-8), "before `mov rbp, rsp`"),
            (Saved, 1, Frame(-48), "before `mov rbp, rsp`"),
            (Leaf, 0, Frame(0), "return address"),
            (Leaf, 0, Frame(-136), "128 bytes below rsp"),
            (Standard, 4, Frame(-FARTHEST_BYTES - 8), "any stack"),
            (Leaf, 4, Frame(FARTHEST_BYTES), "any stack"),
        ] {
            let (range, which, rule) =
                refusal(class, vec![entry(from..9, &[rax, slot])]).expect("refused");
            assert_eq!((range, which), (from..9, Some(slot.to_string())));
            assert!(rule.contains(words), "{slot}: {rule}");
        }
        let twice = vec![entry(4..9, &[Frame(-8), rax, Frame(-8)])];
        let (_, which, rule) = refusal(Standard, twice).expect("refused");
        assert_eq!((which.as_deref(), rule), (Some("frame slot -8"), "it is listed twice"));
        for (class, from, slots) in [
            (Standard, 4, &[Frame(-8), Frame(16), Frame(-FARTHEST_BYTES)][..]),
            (Standard, 0, &[Frame(16), rax]),
            (Saved, 4, &[Frame(-48), Frame(16)]),
            (Barrier, 4, &[Frame(-8)]),
            (Leaf, 0, &[Frame(-128), Frame(-8), Frame(8), Register(Gpr::R12)]),
        ] {
            assert_eq!(refusal(class, vec![entry(from..100, slots)]), None, "{slots:?}");
        }
    }
}
