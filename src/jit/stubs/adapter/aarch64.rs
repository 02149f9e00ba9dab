//! Adapters on AArch64.
//!
//! ```text
//!     |  stack arguments          |  fp+16, or fp+40 of a Go caller    addresses grow upwards
//!     |  (two words of a Go       |  the upper one is the caller's link register, the lower one
//!     |   caller, and a hole)     |  its frame pointer: only read, by others
//!     |  fp, lr                   |  <- fp
//!     |  saved general registers  |  fp-8, ..
//!     |  saved vector registers   |  the low 64 bits of each
//!     |  stage                    |
//!     |  arguments of the target  |  sp, or sp+8 of a Go target
//!     |  (a word for a Go target) |  <- sp at the call
//! ```
//!
//! Registers that this file writes besides those of the plan: sp, x29 and x30, x16 for the target's
//! address and x17 for other addresses, which AAPCS64 6.1.1 gives to code between a call and its
//! target; what the target's convention pins; the register of a bound closure; and what the frame
//! saved.

use dynasmrt::{DynamicLabel, DynasmApi, dynasm};

use super::code::AdapterCode;
use super::plan::{AdapterPlan, Binding};
use crate::abi::{Convention, Pinned, Plan, Reg, Vreg, Xreg};
use crate::jit::emit::aarch64::{Areas, Base, BaseReg, Emitter, Ops};
use crate::jit::error::JitError;
use crate::jit::frame::{FrameReport, PAGE_BYTES};

const WORD_BYTES: u32 = 8;

/// What sp is a multiple of.
const STACK_ALIGN_BYTES: u32 = 16;

/// Thread pointers, as `mrs` has them: op0 (its low bit), op1, CRn, CRm, op2.
const TPIDR_EL0: u32 = 1 << 14 | 3 << 11 | 13 << 7 | 2;
const TPIDRRO_EL0: u32 = 1 << 14 | 3 << 11 | 13 << 7 | 3;

/// `bti c`, as a number of `hint`.
const BTI_C: u32 = 34;

/// Where addresses are made.
const ADDRESS: Xreg = Xreg::X17;

pub(super) fn emit(adapter: &AdapterPlan, g_tls_off: i32) -> Result<AdapterCode, JitError> {
    let mut ops = Ops::new(0);
    let mut e = Emitter::new(&mut ops, ADDRESS);
    let target = e.cell();
    let bound = match adapter.binding {
        Binding::None => None,
        Binding::Closure | Binding::FirstArgument => Some(e.cell()),
    };
    let plan = &adapter.plan;
    let entry = adapter.entry.spec();
    let mut report = FrameReport::NONE;
    if plan.frame_align_bytes() > STACK_ALIGN_BYTES {
        // Copies are made of what only the target passes by reference. Nothing of Go's has such an
        // alignment, and what C's conventions pass by reference they all do.
        let rule = "it copies a value that needs more than 16 bytes of alignment; pass a pointer";
        return Err(JitError::Signature { stub: "adapter", rule });
    }

    // A landing pad for indirect calls and jumps; elsewhere a hint without effect.
    dynasm!(e.ops; .arch aarch64; hint BTI_C);
    if plan.in_place {
        let area = Base(BaseReg::Sp, entry.base_off_bytes as i32);
        let areas = Areas {
            entry: area,
            target: area,
            entry_result: area,
            target_result: area,
            stage: area,
        };
        e.steps(&plan.args, &areas, bound)?;
        set_before(&mut e, adapter, g_tls_off, bound);
        e.load_cell(Xreg::X16, target);
        dynasm!(e.ops; .arch aarch64; br x16);
    } else {
        let skipped = entry.caller_below_bytes.next_multiple_of(STACK_ALIGN_BYTES);
        if skipped > 0 {
            dynasm!(e.ops; .arch aarch64; sub sp, sp, skipped);
        }
        dynasm!(e.ops; .arch aarch64; stp x29, x30, [sp, #-16]!; mov x29, sp);
        report.complete_at(e.ops.offset().0);

        let slots = Slots::new(&adapter.saved);
        let own = Frame::new(adapter.target.spec().base_off_bytes, plan);
        let bytes = slots.bytes.next_multiple_of(STACK_ALIGN_BYTES) + own.bytes;
        reserve(&mut e, bytes);
        slots.save(&mut e);
        let caller = Base(BaseReg::X(Xreg::X29), (16 + skipped + entry.base_off_bytes) as i32);
        let areas = Areas {
            entry: caller,
            target: own.target,
            entry_result: caller,
            target_result: own.target,
            stage: own.stage,
        };
        e.steps(&plan.args, &areas, bound)?;
        set_before(&mut e, adapter, g_tls_off, bound);
        e.load_cell(Xreg::X16, target);
        dynasm!(e.ops; .arch aarch64; blr x16);
        e.steps(&plan.results, &areas, bound)?;
        // Results are in their registers, which are none of those that were saved.
        slots.restore(&mut e);
        dynasm!(e.ops; .arch aarch64; mov sp, x29; ldp x29, x30, [sp], #16);
        if skipped > 0 {
            report.dropped_at(e.ops.offset().0);
            dynasm!(e.ops; .arch aarch64; add sp, sp, skipped);
        }
        report.dropped_at(e.ops.offset().0);
        dynasm!(e.ops; .arch aarch64; ret);
    }
    let cells = e.finish();
    let bytes = ops.finalize().map_err(|error| JitError::assemble("adapter", error))?;
    Ok(AdapterCode {
        bytes,
        target_off: cells[0],
        context_off: bound.map(|_| cells[1]),
        report,
        class: adapter.class,
        is_tail_jump: plan.in_place,
    })
}

/// What is below the saved registers, from sp up: the word that a Go target expects to be its
/// caller's, the target's area, and the stage.
struct Frame {
    target: Base,
    stage: Base,
    bytes: u32,
}

impl Frame {
    fn new(base_off: u32, plan: &Plan) -> Frame {
        let area_end = base_off + plan.target_area_bytes;
        let stage_off = area_end.next_multiple_of(plan.staging_align_bytes);
        let end = if plan.staging_bytes == 0 { area_end } else { stage_off + plan.staging_bytes };
        Frame {
            target: Base(BaseReg::Sp, base_off as i32),
            stage: Base(BaseReg::Sp, stage_off as i32),
            bytes: end.next_multiple_of(STACK_ALIGN_BYTES),
        }
    }
}

/// Makes room for `bytes`, a multiple of what sp is aligned to.
fn reserve(e: &mut Emitter<'_>, mut bytes: u32) {
    while bytes >= PAGE_BYTES as u32 {
        dynasm!(e.ops; .arch aarch64; sub sp, sp, 1, lsl 12; str xzr, [sp]);
        bytes -= PAGE_BYTES as u32;
    }
    if bytes > 0 {
        dynasm!(e.ops; .arch aarch64; sub sp, sp, bytes);
    }
}

/// Where a frame keeps its saved registers: one word for each, downwards from the frame pointer.
struct Slots {
    general: Vec<(Xreg, i32)>,
    vector: Vec<(Vreg, i32)>,
    bytes: u32,
}

impl Slots {
    fn new(saved: &[Reg]) -> Slots {
        let mut slots = Slots { general: Vec::new(), vector: Vec::new(), bytes: 0 };
        for register in saved {
            slots.bytes += WORD_BYTES;
            let off = -(slots.bytes as i32);
            match *register {
                Reg::Xreg(x) => slots.general.push((x, off)),
                Reg::Vreg(v) => slots.vector.push((v, off)),
                other => unreachable!("{other} is a register of another machine"),
            }
        }
        slots
    }

    /// Two registers at a time: the second of two is one word further down.
    fn save(&self, e: &mut Emitter<'_>) {
        for pair in self.general.chunks(2) {
            match *pair {
                [(a, _), (b, off)] => {
                    dynasm!(e.ops; .arch aarch64; stp X(b), X(a), [x29, off]);
                }
                [(a, off)] => dynasm!(e.ops; .arch aarch64; stur X(a), [x29, off]),
                _ => unreachable!("chunks of two have one or two"),
            }
        }
        for pair in self.vector.chunks(2) {
            match *pair {
                [(a, _), (b, off)] => {
                    dynasm!(e.ops; .arch aarch64; stp D(b), D(a), [x29, off]);
                }
                [(a, off)] => dynasm!(e.ops; .arch aarch64; stur D(a), [x29, off]),
                _ => unreachable!("chunks of two have one or two"),
            }
        }
    }

    fn restore(&self, e: &mut Emitter<'_>) {
        for pair in self.general.chunks(2) {
            match *pair {
                [(a, _), (b, off)] => {
                    dynasm!(e.ops; .arch aarch64; ldp X(b), X(a), [x29, off]);
                }
                [(a, off)] => dynasm!(e.ops; .arch aarch64; ldur X(a), [x29, off]),
                _ => unreachable!("chunks of two have one or two"),
            }
        }
        for pair in self.vector.chunks(2) {
            match *pair {
                [(a, _), (b, off)] => {
                    dynasm!(e.ops; .arch aarch64; ldp D(b), D(a), [x29, off]);
                }
                [(a, off)] => dynasm!(e.ops; .arch aarch64; ldur D(a), [x29, off]),
                _ => unreachable!("chunks of two have one or two"),
            }
        }
    }
}

/// What must hold when the target starts, apart from its arguments. The moves are done.
fn set_before(
    e: &mut Emitter<'_>,
    adapter: &AdapterPlan,
    g_tls_off: i32,
    bound: Option<DynamicLabel>,
) {
    for (register, what) in &adapter.set_before {
        match (register, what) {
            (Reg::Xreg(g), Pinned::Goroutine) => {
                if adapter.entry == Convention::AppleAarch64 {
                    // Go, `runtime/tls_arm64.s`: the low bits are the system's.
                    dynasm!(e.ops; .arch aarch64; mrs X(*g), TPIDRRO_EL0; and XSP(*g), X(*g), !7);
                } else {
                    dynasm!(e.ops; .arch aarch64; mrs X(*g), TPIDR_EL0);
                }
                if e.load(*g, Base(BaseReg::X(*g), g_tls_off)).is_none() {
                    // Out of reach: all 32 bits of the offset, extended by its sign.
                    e.constant(ADDRESS, g_tls_off.cast_unsigned());
                    dynasm!(e.ops; .arch aarch64; ldr X(*g), [X(*g), W(ADDRESS), sxtw]);
                }
            }
            other => unreachable!("{other:?} is not pinned on this machine"),
        }
    }
    if let (Some(Reg::Xreg(closure)), Some(bound)) = (adapter.closure, bound) {
        e.load_cell(closure, bound);
    }
}

#[cfg(test)]
mod tests {
    use yaxpeax_arch::{Decoder, U8Reader};
    use yaxpeax_arm::armv8::a64::InstDecoder;

    use super::*;

    fn listing(body: impl FnOnce(&mut Emitter<'_>)) -> Vec<String> {
        let mut ops = Ops::new(0);
        body(&mut Emitter::new(&mut ops, ADDRESS));
        let code = ops.finalize().expect("no label is open");
        let mut reader = U8Reader::new(&code);
        let decoder = InstDecoder::default();
        let decode = |_| decoder.decode(&mut reader).expect("an instruction").to_string();
        (0..code.len() / 4).map(decode).collect()
    }

    #[test]
    fn an_odd_register_has_a_place_of_its_own() {
        let saved = [Reg::Xreg(Xreg::X19), Reg::Xreg(Xreg::X20), Reg::Xreg(Xreg::X28)];
        let vectors = [Vreg::V8, Vreg::V9, Vreg::V15].map(Reg::Vreg);
        let slots = Slots::new(&[saved, vectors].concat());
        assert_eq!(slots.bytes, 48);
        assert_eq!(
            listing(|e| slots.save(e)),
            [
                "stp x20, x19, [x29, #-0x10]",
                "stur x28, [x29, #-0x18]",
                "stp d9, d8, [x29, #-0x28]",
                "stur d15, [x29, #-0x30]"
            ]
        );
        assert_eq!(
            listing(|e| slots.restore(e)),
            [
                "ldp x20, x19, [x29, #-0x10]",
                "ldur x28, [x29, #-0x18]",
                "ldp d9, d8, [x29, #-0x28]",
                "ldur d15, [x29, #-0x30]"
            ]
        );
    }

    #[test]
    fn no_page_of_the_stack_is_skipped() {
        let page = ["sub sp, sp, #0x1, lsl #12", "str xzr, [sp]"];
        assert_eq!(listing(|e| reserve(e, 0)), [""; 0]);
        assert_eq!(listing(|e| reserve(e, 4080)), ["sub sp, sp, #0xff0"]);
        assert_eq!(listing(|e| reserve(e, 4096)), page);
        let expected = [page[0], page[1], page[0], page[1], "sub sp, sp, #0x10"];
        assert_eq!(listing(|e| reserve(e, 8208)), expected);
    }
}
