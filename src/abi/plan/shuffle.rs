//! Shuffles: register-to-register moves that happen at the same time.
//!
//! Every destination must end with the value that its source had at the start. This is the
//! parallel move problem; see Rideau, Serpette, Leroy, "Tilting at windmills with Coq", 2008.
//!
//! The moves form a graph with an edge from source to destination. A destination has one
//! incoming edge, so each connected part is a tree, or a cycle with trees hanging from it.
//! A move whose destination no other move still has to read can be done at once. Doing these until
//! none is left removes the trees, leaves first. The remaining moves have as many sources as
//! destinations, all different: they are disjoint cycles.
//!
//! A cycle of general-purpose registers of amd64 shrinks by an exchange, which needs no other
//! register. Any other cycle is opened by saving one destination in a scratch register.
//!
//! A plain move extends its value on the way. Values that arrive by exchange, or that are in their
//! register already, are extended in place at the very end, when no move needs the old content.
//!
//! This file never reads or writes memory, and never writes a register that is neither a
//! destination nor an offered scratch register.

use super::step::{Extend, Step, Width};
use crate::abi::reg::{Reg, RegClass, RegSet};
use crate::abi::types::ValueIndex;

/// One of the moves. No two moves of a shuffle have the same `to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegMove {
    /// The value, for errors.
    pub(super) value: ValueIndex,
    pub(super) from: Reg,
    pub(super) to: Reg,
    pub(super) width: Width,
    pub(super) extend: Extend,
}

impl RegMove {
    fn step(self) -> Step {
        Step::Move {
            from: self.from.into(),
            to: self.to.into(),
            width: self.width,
            extend: self.extend,
        }
    }
}

/// Appends the steps that do all moves at once.
///
/// `scratch` are registers that hold nothing of value. A scratch register that is an end of a move
/// is not used. If a cycle needs one and none is left, the error is a value of the cycle, and the
/// class of the missing register.
pub(super) fn shuffle(
    mut pending: Vec<RegMove>,
    scratch: RegSet,
    steps: &mut Vec<Step>,
) -> Result<(), (ValueIndex, RegClass)> {
    let ends = pending.iter().flat_map(|t| [t.from, t.to]);
    let scratch = scratch.minus(ends.collect());
    let mut in_place = Vec::new();
    loop {
        in_place.extend(pending.extract_if(.., |t| t.from == t.to));

        let is_unread = |to: Reg| pending.iter().all(|t| t.from != to);
        if let Some(ready) = pending.iter().position(|t| is_unread(t.to)) {
            steps.push(pending.remove(ready).step());
            continue;
        }

        // Only cycles are left: `to` has one reader, and so has `from`, which is this one.
        let Some((blocked, others)) = pending.split_first_mut() else {
            break;
        };
        let old_to = match (blocked.from, blocked.to) {
            (Reg::Gpr(from), Reg::Gpr(to)) => {
                steps.push(Step::SwapGpr(from, to));
                std::mem::replace(&mut blocked.from, to.into())
            }
            (_, to) => {
                let mut free = scratch.iter().filter(|r| r.class() == to.class());
                let saved = free.next().ok_or((blocked.value, to.class()))?;
                let reader = others.iter().find(|t| t.from == to);
                let save = RegMove {
                    value: blocked.value,
                    from: to,
                    to: saved,
                    width: reader.map_or(Width::B8, |t| t.width.max(Width::B8)),
                    extend: Extend::None,
                };
                steps.push(save.step());
                saved
            }
        };
        let to = blocked.to;
        for reader in others.iter_mut().filter(|t| t.from == to) {
            reader.from = old_to;
        }
    }
    let extending = in_place.iter().filter(|t| t.extend != Extend::None);
    steps.extend(extending.map(|t| t.step()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::plan::step::Operand;
    use crate::abi::reg::{Gpr, Vreg, Xmm, Xreg};

    const VALUE: ValueIndex = ValueIndex::Param(3);

    /// Runs register steps on one number a register; in-place extension adds 1000.
    fn run(steps: &[Step], registers: &mut [u32; 32]) {
        let index = |operand: Operand| match operand.reg().expect("a register") {
            Reg::Gpr(gpr) => usize::from(gpr.index()),
            Reg::Xmm(xmm) => 16 + usize::from(xmm.index()),
            _ => unreachable!("amd64"),
        };
        for step in steps {
            match *step {
                Step::Move { from, to, extend, .. } => {
                    let extension = if extend == Extend::None { 0 } else { 1000 };
                    registers[index(to)] = registers[index(from)] + extension;
                }
                Step::SwapGpr(a, b) => registers.swap(index(a.into()), index(b.into())),
                _ => unreachable!("a shuffle moves registers"),
            }
        }
    }

    /// Every map from n destinations to n sources: permutations, fan-out and chains. With
    /// extension for the destinations in the bit mask `extended`.
    fn check_all_maps(n: u8, extended: u32, register: fn(u8) -> Reg, scratch: RegSet) {
        let maps = u32::from(n).pow(u32::from(n));
        for map in 0..maps {
            let mut digits = map;
            let moves: Vec<RegMove> = (0..n)
                .map(|to| {
                    let from = (digits % u32::from(n)) as u8;
                    digits /= u32::from(n);
                    RegMove {
                        value: VALUE,
                        from: register(from),
                        to: register(to),
                        width: Width::B2,
                        extend: match extended >> to & 1 {
                            0 => Extend::None,
                            _ => Extend::Sign,
                        },
                    }
                })
                .collect();
            let mut steps = Vec::new();
            shuffle(moves.clone(), scratch, &mut steps).expect("scratch is offered");

            let number = |r: Reg| match r {
                Reg::Gpr(gpr) => usize::from(gpr.index()),
                Reg::Xmm(xmm) => 16 + usize::from(xmm.index()),
                _ => unreachable!("amd64"),
            };
            let mut registers: [u32; 32] = std::array::from_fn(|i| i as u32);
            run(&steps, &mut registers);
            for t in &moves {
                let extension = if t.extend == Extend::None { 0 } else { 1000 };
                let expected = number(t.from) as u32 + extension;
                assert_eq!(registers[number(t.to)], expected, "{moves:?}\n{steps:?}");
            }
            for other in (0..32).filter(|i| moves.iter().all(|t| number(t.to) != *i)) {
                let writable = scratch.iter().any(|r| number(r) == other);
                assert!(writable || registers[other] == other as u32, "{steps:?}");
            }
        }
    }

    fn gpr(index: u8) -> Reg {
        Gpr::new(index).into()
    }

    fn xmm(index: u8) -> Reg {
        Xmm::new(index).into()
    }

    #[test]
    fn every_map_of_up_to_five_general_purpose_registers() {
        let most = if cfg!(miri) { 3 } else { 5 };
        for n in 1..=most {
            let masks = 0..1_u32 << n;
            for extended in masks.step_by(if n == 5 { 7 } else { 1 }) {
                check_all_maps(n, extended, gpr, RegSet::EMPTY);
            }
        }
    }

    #[test]
    fn every_map_of_up_to_five_vector_registers() {
        let most = if cfg!(miri) { 3 } else { 5 };
        for n in 1..=most {
            check_all_maps(n, 0, xmm, RegSet::of_xmms(&[Xmm::XMM15]));
        }
    }

    #[test]
    fn two_vector_cycles_share_one_scratch() {
        let cycle = [(0, 1), (1, 0), (2, 3), (3, 4), (4, 2)];
        let moves = cycle.map(|(from, to)| RegMove {
            value: VALUE,
            from: xmm(from),
            to: xmm(to),
            width: Width::B8,
            extend: Extend::None,
        });
        // Registers that take part are not used as scratch, even if they are offered.
        let scratch = RegSet::of_xmms(&[Xmm::XMM0, Xmm::XMM4, Xmm::XMM9]);
        let mut steps = Vec::new();
        shuffle(moves.to_vec(), scratch, &mut steps).expect("xmm9 is free");
        let mut registers: [u32; 32] = std::array::from_fn(|i| i as u32);
        run(&steps, &mut registers);
        assert_eq!(registers[16..21], [17, 16, 20, 18, 19]);
        assert_eq!(steps.len(), 7);

        let blocked = shuffle(moves.to_vec(), RegSet::EMPTY, &mut Vec::new());
        assert_eq!(blocked, Err((VALUE, RegClass::Vector)));
    }

    #[test]
    fn a_saved_vector_register_keeps_its_width() {
        let cycle = [(0, 1), (1, 0)].map(|(from, to)| RegMove {
            value: VALUE,
            from: xmm(from),
            to: xmm(to),
            width: Width::B32,
            extend: Extend::None,
        });
        let mut steps = Vec::new();
        shuffle(cycle.to_vec(), RegSet::ALL_XMMS, &mut steps).expect("xmm2 is free");
        let widths = steps.iter().map(|step| match step {
            Step::Move { width, .. } => *width,
            other => panic!("{other}"),
        });
        assert_eq!(widths.collect::<Vec<_>>(), [Width::B32; 3]);
    }

    #[test]
    fn registers_of_aarch64_have_no_exchange() {
        let cycle = [(0, 1), (1, 0)].map(|(from, to)| RegMove {
            value: VALUE,
            from: Xreg::new(from).into(),
            to: Xreg::new(to).into(),
            width: Width::B8,
            extend: Extend::None,
        });
        let scratch = RegSet::EMPTY.with(Xreg::X16).with(Vreg::V31);
        let mut steps = Vec::new();
        shuffle(cycle.to_vec(), scratch, &mut steps).expect("x16 is free");
        let lines: Vec<String> = steps.iter().map(Step::to_string).collect();
        assert_eq!(lines, ["x16 <- x1", "x1 <- x0", "x0 <- x16"]);
        let blocked = shuffle(cycle.to_vec(), RegSet::EMPTY, &mut Vec::new());
        assert_eq!(blocked, Err((VALUE, RegClass::General)));
    }

    #[test]
    fn nothing_is_done_for_values_in_place() {
        let (from, to) = (gpr(0), gpr(0));
        let stay = RegMove { value: VALUE, from, to, width: Width::B8, extend: Extend::None };
        let mut steps = Vec::new();
        shuffle(vec![stay], RegSet::EMPTY, &mut steps).expect("no cycle");
        assert_eq!(steps, []);
    }
}
