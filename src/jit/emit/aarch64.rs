//! The AArch64 emitter: one step of a plan, one instruction; up to three where an offset is far.
//!
//! It owns no register. Every register that a stub writes is named in its plan or in the stub's own
//! file. That file also names the register in which addresses are made that no load or store can
//! hold, and never offers it to the plan. The code runs anywhere: constants are in cells after it.

use dynasmrt::aarch64::Aarch64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use crate::abi::{Extend, Operand, Reg, RegSet, Step, Vreg, Width, Xreg};
use crate::jit::error::JitError;

/// An assembler for AArch64, on any host.
pub(crate) type Ops = VecAssembler<Aarch64Relocation>;

/// Offsets are smaller than this: two additions of 12 bits each reach them.
const REACH_BYTES: i32 = 1 << 24;

/// What the base of an area is in.
#[derive(Clone, Copy)]
pub(crate) enum BaseReg {
    /// The stack pointer.
    Sp,
    /// A general-purpose register.
    X(Xreg),
}

/// The number that instructions have for it, where 31 is the stack pointer.
impl From<BaseReg> for u8 {
    fn from(base: BaseReg) -> u8 {
        match base {
            BaseReg::Sp => 31,
            BaseReg::X(register) => register.index(),
        }
    }
}

/// A base register and a displacement.
#[derive(Clone, Copy)]
pub(crate) struct Base(pub(crate) BaseReg, pub(crate) i32);

/// Where the areas of a plan are while its steps run.
#[derive(Clone, Copy)]
pub(crate) struct Areas {
    pub(crate) entry: Base,
    pub(crate) target: Base,
    pub(crate) entry_result: Base,
    pub(crate) target_result: Base,
    pub(crate) stage: Base,
}

/// Emits one stub.
pub(crate) struct Emitter<'a> {
    pub(crate) ops: &'a mut Ops,
    /// Where addresses are made that no load or store can hold.
    address: Xreg,
    /// Data after the code, which the stub's maker fills in.
    cells: Vec<DynamicLabel>,
}

/// A load or store, apart from the address.
#[derive(Clone, Copy)]
enum Access {
    LoadX(Xreg, Width, Extend),
    StoreX(Xreg, Width),
    LoadV(Vreg, Width),
    StoreV(Vreg, Width),
}

impl<'a> Emitter<'a> {
    /// The stub's own file never lets its plan write or read `address`.
    pub(crate) fn new(ops: &'a mut Ops, address: Xreg) -> Self {
        Self { ops, address, cells: Vec::new() }
    }

    /// A new cell after the code: eight bytes, aligned.
    pub(crate) fn cell(&mut self) -> DynamicLabel {
        let cell = self.ops.new_dynamic_label();
        self.cells.push(cell);
        cell
    }

    /// Loads a cell.
    pub(crate) fn load_cell(&mut self, to: Xreg, cell: DynamicLabel) {
        dynasm!(self.ops; .arch aarch64; ldr X(to), =>cell);
    }

    /// Loads a small number, with zeros above it.
    pub(crate) fn constant(&mut self, to: Xreg, value: u32) {
        let (low, high) = (value & 0xffff, value >> 16);
        dynasm!(self.ops; .arch aarch64; movz W(to), low);
        if high != 0 {
            dynasm!(self.ops; .arch aarch64; movk W(to), high, lsl 16);
        }
    }

    /// Emits the cells, and says at which offset each is, in the order in which they were made.
    /// Call once, at the end.
    pub(crate) fn finish(self) -> Vec<usize> {
        // Not executed: data after the last instruction.
        while !self.ops.offset().0.is_multiple_of(8) {
            dynasm!(self.ops; .arch aarch64; udf 0);
        }
        let mut offsets = Vec::with_capacity(self.cells.len());
        for cell in self.cells {
            offsets.push(self.ops.offset().0);
            dynasm!(self.ops; .arch aarch64; =>cell; .u64 0);
        }
        offsets
    }

    /// Emits the steps of one half of a plan. `context` is the cell of the stub's constant.
    ///
    /// # Errors
    ///
    /// A step is not one of this machine, or uses the address register.
    pub(crate) fn steps(
        &mut self,
        steps: &[Step],
        areas: &Areas,
        context: Option<DynamicLabel>,
    ) -> Result<(), JitError> {
        for &step in steps {
            let refuse = |rule| Err(JitError::Signature { stub: "AArch64", rule });
            if registers(step).contains(self.address) {
                return refuse("its plan names the register in which the stub makes addresses");
            }
            if self.step(step, areas, context).is_none() {
                return refuse("its plan has a step that AArch64 has no instruction for");
            }
        }
        Ok(())
    }

    /// Emits one step; `None` if it is not one that this machine can do.
    fn step(&mut self, step: Step, areas: &Areas, context: Option<DynamicLabel>) -> Option<()> {
        match step {
            Step::Address { of, to: Reg::Xreg(to) } => {
                let base = areas.locate(of)?;
                self.address_of(base, to)
            }
            Step::Constant { to: Reg::Xreg(to), value } => {
                self.constant(to, value);
                Some(())
            }
            Step::Move { from, to, width, extend } => {
                let exact = extend == Extend::None;
                match (from, to) {
                    (Operand::Xreg(from), Operand::Xreg(to)) => {
                        self.x_to_x(from, to, width, extend)
                    }
                    (memory, Operand::Xreg(to))
                        if memory != Operand::Context && memory.reg().is_none() =>
                    {
                        self.access(Access::LoadX(to, width, extend), areas.locate(memory)?)
                    }
                    _ if !exact => None,
                    (Operand::Vreg(from), Operand::Vreg(to)) => self.v_to_v(from, to, width),
                    (Operand::Xreg(from), Operand::Vreg(to)) => self.x_to_v(from, to, width),
                    (Operand::Vreg(from), Operand::Xreg(to)) => self.v_to_x(from, to, width),
                    (Operand::Context, Operand::Xreg(to)) if width == Width::B8 => {
                        self.load_cell(to, context?);
                        Some(())
                    }
                    (Operand::Xreg(from), memory) => {
                        self.access(Access::StoreX(from, width), areas.locate(memory)?)
                    }
                    (Operand::Vreg(from), memory) => {
                        self.access(Access::StoreV(from, width), areas.locate(memory)?)
                    }
                    (memory, Operand::Vreg(to)) => {
                        self.access(Access::LoadV(to, width), areas.locate(memory)?)
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn x_to_x(&mut self, from: Xreg, to: Xreg, width: Width, extend: Extend) -> Option<()> {
        let ops = &mut *self.ops;
        match (width, extend) {
            (Width::B1, Extend::Zero) => dynasm!(ops; .arch aarch64; uxtb W(to), W(from)),
            (Width::B1, Extend::Sign) => dynasm!(ops; .arch aarch64; sxtb W(to), W(from)),
            (Width::B2, Extend::Zero) => dynasm!(ops; .arch aarch64; uxth W(to), W(from)),
            (Width::B2, Extend::Sign) => dynasm!(ops; .arch aarch64; sxth W(to), W(from)),
            (Width::B4, Extend::None) => dynasm!(ops; .arch aarch64; mov W(to), W(from)),
            (Width::B8, Extend::None) => dynasm!(ops; .arch aarch64; mov X(to), X(from)),
            _ => return None,
        }
        Some(())
    }

    fn v_to_v(&mut self, from: Vreg, to: Vreg, width: Width) -> Option<()> {
        match width {
            Width::B4 | Width::B8 | Width::B16 => {
                dynasm!(self.ops; .arch aarch64; mov V(to).B16, V(from).B16);
                Some(())
            }
            _ => None,
        }
    }

    fn x_to_v(&mut self, from: Xreg, to: Vreg, width: Width) -> Option<()> {
        match width {
            Width::B4 => dynasm!(self.ops; .arch aarch64; fmov S(to), W(from)),
            Width::B8 => dynasm!(self.ops; .arch aarch64; fmov D(to), X(from)),
            _ => return None,
        }
        Some(())
    }

    fn v_to_x(&mut self, from: Vreg, to: Xreg, width: Width) -> Option<()> {
        match width {
            Width::B4 => dynasm!(self.ops; .arch aarch64; fmov W(to), S(from)),
            Width::B8 => dynasm!(self.ops; .arch aarch64; fmov X(to), D(from)),
            _ => return None,
        }
        Some(())
    }

    /// Loads a word.
    pub(crate) fn load(&mut self, to: Xreg, from: Base) -> Option<()> {
        self.access(Access::LoadX(to, Width::B8, Extend::None), from)
    }

    /// Adds a displacement to a base.
    fn address_of(&mut self, Base(base, disp): Base, to: Xreg) -> Option<()> {
        let (low, high) = match disp {
            0..REACH_BYTES => ((disp & 0xfff) as u32, disp as u32 >> 12),
            _ => return None,
        };
        match (low, high) {
            (low, 0) => dynasm!(self.ops; .arch aarch64; add XSP(to), XSP(base), low),
            (0, high) => dynasm!(self.ops; .arch aarch64; add XSP(to), XSP(base), high, lsl 12),
            (low, high) => dynasm!(self.ops
                ; .arch aarch64
                ; add XSP(to), XSP(base), high, lsl 12
                ; add XSP(to), XSP(to), low
            ),
        }
        Some(())
    }

    /// Emits a load or store: with an offset that counts units of its width, in 12 bits; with one
    /// in bytes, in 9 bits with a sign; or with the address in a register.
    fn access(&mut self, access: Access, Base(base, disp): Base) -> Option<()> {
        let (Access::LoadX(_, width, _)
        | Access::StoreX(_, width)
        | Access::LoadV(_, width)
        | Access::StoreV(_, width)) = access;
        let bytes = width.bytes() as i32;
        if disp >= 0 && disp % bytes == 0 && disp / bytes < 1 << 12 {
            self.scaled(access, base, disp as u32)
        } else if (-256..256).contains(&disp) {
            self.unscaled(access, base, disp)
        } else {
            let address = self.address;
            self.address_of(Base(base, disp), address)?;
            self.scaled(access, BaseReg::X(address), 0)
        }
    }

    fn scaled(&mut self, access: Access, base: BaseReg, disp: u32) -> Option<()> {
        use {Access::*, Width::*};
        let ops = &mut *self.ops;
        match access {
            LoadX(r, B1, Extend::Zero) => dynasm!(ops; .arch aarch64; ldrb W(r), [XSP(base), disp]),
            LoadX(r, B1, Extend::Sign) => {
                dynasm!(ops; .arch aarch64; ldrsb W(r), [XSP(base), disp])
            }
            LoadX(r, B2, Extend::Zero) => dynasm!(ops; .arch aarch64; ldrh W(r), [XSP(base), disp]),
            LoadX(r, B2, Extend::Sign) => {
                dynasm!(ops; .arch aarch64; ldrsh W(r), [XSP(base), disp])
            }
            LoadX(r, B4, Extend::None) => dynasm!(ops; .arch aarch64; ldr W(r), [XSP(base), disp]),
            LoadX(r, B8, Extend::None) => dynasm!(ops; .arch aarch64; ldr X(r), [XSP(base), disp]),
            StoreX(r, B1) => dynasm!(ops; .arch aarch64; strb W(r), [XSP(base), disp]),
            StoreX(r, B2) => dynasm!(ops; .arch aarch64; strh W(r), [XSP(base), disp]),
            StoreX(r, B4) => dynasm!(ops; .arch aarch64; str W(r), [XSP(base), disp]),
            StoreX(r, B8) => dynasm!(ops; .arch aarch64; str X(r), [XSP(base), disp]),
            LoadV(r, B4) => dynasm!(ops; .arch aarch64; ldr S(r), [XSP(base), disp]),
            LoadV(r, B8) => dynasm!(ops; .arch aarch64; ldr D(r), [XSP(base), disp]),
            LoadV(r, B16) => dynasm!(ops; .arch aarch64; ldr Q(r), [XSP(base), disp]),
            StoreV(r, B4) => dynasm!(ops; .arch aarch64; str S(r), [XSP(base), disp]),
            StoreV(r, B8) => dynasm!(ops; .arch aarch64; str D(r), [XSP(base), disp]),
            StoreV(r, B16) => dynasm!(ops; .arch aarch64; str Q(r), [XSP(base), disp]),
            _ => return None,
        }
        Some(())
    }

    fn unscaled(&mut self, access: Access, base: BaseReg, disp: i32) -> Option<()> {
        use {Access::*, Width::*};
        let ops = &mut *self.ops;
        match access {
            LoadX(r, B1, Extend::Zero) => {
                dynasm!(ops; .arch aarch64; ldurb W(r), [XSP(base), disp])
            }
            LoadX(r, B1, Extend::Sign) => {
                dynasm!(ops; .arch aarch64; ldursb W(r), [XSP(base), disp])
            }
            LoadX(r, B2, Extend::Zero) => {
                dynasm!(ops; .arch aarch64; ldurh W(r), [XSP(base), disp])
            }
            LoadX(r, B2, Extend::Sign) => {
                dynasm!(ops; .arch aarch64; ldursh W(r), [XSP(base), disp])
            }
            LoadX(r, B4, Extend::None) => dynasm!(ops; .arch aarch64; ldur W(r), [XSP(base), disp]),
            LoadX(r, B8, Extend::None) => dynasm!(ops; .arch aarch64; ldur X(r), [XSP(base), disp]),
            StoreX(r, B1) => dynasm!(ops; .arch aarch64; sturb W(r), [XSP(base), disp]),
            StoreX(r, B2) => dynasm!(ops; .arch aarch64; sturh W(r), [XSP(base), disp]),
            StoreX(r, B4) => dynasm!(ops; .arch aarch64; stur W(r), [XSP(base), disp]),
            StoreX(r, B8) => dynasm!(ops; .arch aarch64; stur X(r), [XSP(base), disp]),
            LoadV(r, B4) => dynasm!(ops; .arch aarch64; ldur S(r), [XSP(base), disp]),
            LoadV(r, B8) => dynasm!(ops; .arch aarch64; ldur D(r), [XSP(base), disp]),
            LoadV(r, B16) => dynasm!(ops; .arch aarch64; ldur Q(r), [XSP(base), disp]),
            StoreV(r, B4) => dynasm!(ops; .arch aarch64; stur S(r), [XSP(base), disp]),
            StoreV(r, B8) => dynasm!(ops; .arch aarch64; stur D(r), [XSP(base), disp]),
            StoreV(r, B16) => dynasm!(ops; .arch aarch64; stur Q(r), [XSP(base), disp]),
            _ => return None,
        }
        Some(())
    }
}

impl Areas {
    fn locate(&self, spot: Operand) -> Option<Base> {
        let (Base(base, disp), offset) = match spot {
            Operand::Entry(offset) => (self.entry, offset),
            Operand::Target(offset) => (self.target, offset),
            Operand::EntryResult(offset) => (self.entry_result, offset),
            Operand::TargetResult(offset) => (self.target_result, offset),
            Operand::Staging(offset) => (self.stage, offset),
            Operand::At(Reg::Xreg(base), offset) => (Base(BaseReg::X(base), 0), offset),
            _ => return None,
        };
        Some(Base(base, disp.checked_add_unsigned(offset)?))
    }
}

/// Every register that a step reads or writes.
fn registers(step: Step) -> RegSet {
    let of = |spot: Operand| match spot {
        Operand::At(base, _) => Some(base),
        _ => spot.reg(),
    };
    let read = match step {
        Step::Move { from, to, .. } => [of(from), of(to)],
        Step::Address { of: spot, .. } => [of(spot), None],
        _ => [None, None],
    };
    step.writes().union(read.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use yaxpeax_arch::{Decoder, U8Reader};
    use yaxpeax_arm::armv8::a64::InstDecoder;

    use super::*;
    use crate::abi::Width::{B1, B2, B4, B8, B16};
    use crate::abi::{Assignment, Convention, Gpr, Plan, PlanRequest, Signature, Xmm};

    const AREAS: Areas = Areas {
        entry: Base(BaseReg::X(Xreg::X29), 16),
        target: Base(BaseReg::Sp, 0),
        entry_result: Base(BaseReg::X(Xreg::X29), 24),
        target_result: Base(BaseReg::Sp, 8),
        stage: Base(BaseReg::Sp, 32),
    };

    /// The instructions of one step, with areas at different registers.
    fn listing(step: Step) -> Option<String> {
        listing_at(step, &AREAS)
    }

    fn listing_at(step: Step, areas: &Areas) -> Option<String> {
        let mut ops = Ops::new(0);
        let mut emitter = Emitter::new(&mut ops, Xreg::X17);
        let cell = emitter.cell();
        emitter.steps(&[step], areas, Some(cell)).ok()?;
        let end = emitter.ops.offset().0;
        assert_ne!(end, 0);
        assert_eq!(emitter.finish(), [end.next_multiple_of(8)]);
        let code = ops.finalize().expect("no label is open");
        let mut reader = U8Reader::new(&code[..end]);
        let decoder = InstDecoder::default();
        let mut lines = Vec::new();
        for _ in 0..end / 4 {
            lines.push(decoder.decode(&mut reader).expect("an instruction").to_string());
        }
        Some(lines.join("; "))
    }

    fn x(index: u8) -> Operand {
        Operand::Xreg(Xreg::new(index))
    }

    fn v(index: u8) -> Operand {
        Operand::Vreg(Vreg::new(index))
    }

    fn moves(from: Operand, to: Operand, width: Width, extend: Extend) -> Option<String> {
        listing(Step::Move { from, to, width, extend })
    }

    /// The areas, with the stage elsewhere on the stack.
    fn stage_at(disp: i32) -> Areas {
        Areas { stage: Base(BaseReg::Sp, disp), ..AREAS }
    }

    #[test]
    fn each_move_is_the_instruction_that_it_says() {
        use crate::abi::Extend::{None as N, Sign, Zero};
        let odd = Operand::At(Reg::Xreg(Xreg::X9), 3);
        for (from, to, width, extend, expected) in [
            (x(1), x(30), B1, Zero, "uxtb w30, w1"),
            (x(1), x(30), B1, Sign, "sxtb w30, w1"),
            (x(1), x(30), B2, Zero, "uxth w30, w1"),
            (x(1), x(30), B2, Sign, "sxth w30, w1"),
            (x(1), x(30), B4, N, "mov w30, w1"),
            (x(1), x(30), B8, N, "mov x30, x1"),
            (v(1), v(30), B4, N, "mov v30.16b, v1.16b"),
            (v(1), v(30), B8, N, "mov v30.16b, v1.16b"),
            (v(1), v(30), B16, N, "mov v30.16b, v1.16b"),
            (x(1), v(30), B4, N, "fmov s30, w1"),
            (x(1), v(30), B8, N, "fmov d30, x1"),
            (v(1), x(30), B4, N, "fmov w30, s1"),
            (v(1), x(30), B8, N, "fmov x30, d1"),
            (Operand::Context, x(5), B8, N, "ldr x5, $+0x8"),
            (Operand::Entry(1), x(5), B1, Zero, "ldrb w5, [x29, #0x11]"),
            (Operand::Entry(1), x(5), B1, Sign, "ldrsb w5, [x29, #0x11]"),
            (Operand::Entry(2), x(5), B2, Zero, "ldrh w5, [x29, #0x12]"),
            (Operand::Entry(2), x(5), B2, Sign, "ldrsh w5, [x29, #0x12]"),
            (Operand::Entry(4), x(5), B4, N, "ldr w5, [x29, #0x14]"),
            (Operand::Entry(8), x(5), B8, N, "ldr x5, [x29, #0x18]"),
            (x(5), Operand::Target(1), B1, N, "strb w5, [sp, #0x1]"),
            (x(5), Operand::Target(2), B2, N, "strh w5, [sp, #0x2]"),
            (x(5), Operand::Target(4), B4, N, "str w5, [sp, #0x4]"),
            (x(5), Operand::Target(8), B8, N, "str x5, [sp, #0x8]"),
            (Operand::TargetResult(4), v(5), B4, N, "ldr s5, [sp, #0xc]"),
            (Operand::TargetResult(8), v(5), B8, N, "ldr d5, [sp, #0x10]"),
            (Operand::TargetResult(8), v(5), B16, N, "ldr q5, [sp, #0x10]"),
            (v(5), Operand::EntryResult(4), B4, N, "str s5, [x29, #0x1c]"),
            (v(5), Operand::EntryResult(8), B8, N, "str d5, [x29, #0x20]"),
            (v(5), Operand::EntryResult(8), B16, N, "str q5, [x29, #0x20]"),
            (odd, x(5), B1, Zero, "ldrb w5, [x9, #0x3]"),
            (odd, x(5), B1, Sign, "ldrsb w5, [x9, #0x3]"),
            (odd, x(5), B2, Zero, "ldurh w5, [x9, #0x3]"),
            (odd, x(5), B2, Sign, "ldursh w5, [x9, #0x3]"),
            (odd, x(5), B4, N, "ldur w5, [x9, #0x3]"),
            (odd, x(5), B8, N, "ldur x5, [x9, #0x3]"),
            (x(5), odd, B1, N, "strb w5, [x9, #0x3]"),
            (x(5), odd, B2, N, "sturh w5, [x9, #0x3]"),
            (x(5), odd, B4, N, "stur w5, [x9, #0x3]"),
            (x(5), odd, B8, N, "stur x5, [x9, #0x3]"),
            (odd, v(5), B4, N, "ldur s5, [x9, #0x3]"),
            (odd, v(5), B8, N, "ldur d5, [x9, #0x3]"),
            (odd, v(5), B16, N, "ldur q5, [x9, #0x3]"),
            (v(5), odd, B4, N, "stur s5, [x9, #0x3]"),
            (v(5), odd, B8, N, "stur d5, [x9, #0x3]"),
            (v(5), odd, B16, N, "stur q5, [x9, #0x3]"),
        ] {
            assert_eq!(moves(from, to, width, extend).as_deref(), Some(expected), "{from} {to}");
        }
    }

    #[test]
    fn other_steps() {
        let to = Reg::Xreg(Xreg::X3);
        for (value, expected) in [
            (0, "mov w3, #0x0"),
            (0xffff, "mov w3, #0xffff"),
            (0x1_0000, "mov w3, #0x0; movk w3, #0x1, lsl #16"),
            (0xdead_beef, "mov w3, #0xbeef; movk w3, #0xdead, lsl #16"),
        ] {
            assert_eq!(listing(Step::Constant { to, value }).as_deref(), Some(expected));
        }
        for (disp, expected) in [
            (-1, None),
            (0, Some("mov x3, sp")),
            (0xfff, Some("add x3, sp, #0xfff")),
            (0x1000, Some("add x3, sp, #0x1, lsl #12")),
            (0x1001, Some("add x3, sp, #0x1, lsl #12; add x3, x3, #0x1")),
            (0xff_ffff, Some("add x3, sp, #0xfff, lsl #12; add x3, x3, #0xfff")),
            (0x100_0000, None),
        ] {
            let step = Step::Address { of: Operand::Staging(0), to };
            assert_eq!(listing_at(step, &stage_at(disp)).as_deref(), expected, "{disp:#x}");
        }
        // The base may be the register that gets the address.
        let step = Step::Address { of: Operand::At(to, 0x1004), to };
        let expected = "add x3, x3, #0x1, lsl #12; add x3, x3, #0x4";
        assert_eq!(listing(step).as_deref(), Some(expected));
    }

    #[test]
    fn each_offset_is_in_the_instruction_or_in_the_address_register() {
        let stage = Operand::Staging(0);
        for (disp, from, to, width, extend, expected) in [
            (-257, stage, v(2), B8, Extend::None, None),
            (-256, stage, v(2), B8, Extend::None, Some("ldur d2, [sp, #-0x100]")),
            (-1, stage, x(2), B1, Extend::Zero, Some("ldurb w2, [sp, #-0x1]")),
            (-1, stage, x(2), B1, Extend::Sign, Some("ldursb w2, [sp, #-0x1]")),
            (-1, x(2), stage, B1, Extend::None, Some("sturb w2, [sp, #-0x1]")),
            (255, stage, v(2), B8, Extend::None, Some("ldur d2, [sp, #0xff]")),
            (256, stage, v(2), B8, Extend::None, Some("ldr d2, [sp, #0x100]")),
            (257, stage, v(2), B8, Extend::None, Some("add x17, sp, #0x101; ldr d2, [x17]")),
            (0x7ff8, stage, v(2), B8, Extend::None, Some("ldr d2, [sp, #0x7ff8]")),
            (
                0x8000,
                v(2),
                stage,
                B8,
                Extend::None,
                Some("add x17, sp, #0x8, lsl #12; str d2, [x17]"),
            ),
            (0xfff, stage, x(2), B1, Extend::Zero, Some("ldrb w2, [sp, #0xfff]")),
            (
                0x1000,
                stage,
                x(2),
                B1,
                Extend::Zero,
                Some("add x17, sp, #0x1, lsl #12; ldrb w2, [x17]"),
            ),
            (0x1ffe, stage, x(2), B2, Extend::Zero, Some("ldrh w2, [sp, #0x1ffe]")),
            (
                0x2000,
                stage,
                x(2),
                B2,
                Extend::Zero,
                Some("add x17, sp, #0x2, lsl #12; ldrh w2, [x17]"),
            ),
            (0x3ffc, x(2), stage, B4, Extend::None, Some("str w2, [sp, #0x3ffc]")),
            (
                0x4000,
                x(2),
                stage,
                B4,
                Extend::None,
                Some("add x17, sp, #0x4, lsl #12; str w2, [x17]"),
            ),
            (0xfff0, v(2), stage, B16, Extend::None, Some("str q2, [sp, #0xfff0]")),
            (
                0x1_0000,
                v(2),
                stage,
                B16,
                Extend::None,
                Some("add x17, sp, #0x10, lsl #12; str q2, [x17]"),
            ),
            (
                0xff_ffff,
                stage,
                v(2),
                B8,
                Extend::None,
                Some("add x17, sp, #0xfff, lsl #12; add x17, x17, #0xfff; ldr d2, [x17]"),
            ),
            (0x100_0000, stage, v(2), B8, Extend::None, None),
        ] {
            let step = Step::Move { from, to, width, extend };
            assert_eq!(listing_at(step, &stage_at(disp)).as_deref(), expected, "{disp:#x}");
        }
    }

    #[test]
    fn other_machines_and_steps_are_refused() {
        let none = Extend::None;
        for (from, to, width, extend) in [
            (x(1), v(1), B2, none),
            (x(1), x(2), B2, none),
            (x(1), x(2), B8, Extend::Zero),
            (x(1), x(2), B16, none),
            (v(1), v(2), B2, none),
            (v(1), v(2), Width::B32, none),
            (v(1), Operand::Target(0), Width::B32, none),
            (Operand::Entry(0), v(1), Width::B64, none),
            (Operand::Entry(0), v(1), B2, none),
            (Operand::Entry(0), x(1), B2, none),
            (Operand::Entry(0), x(1), B4, Extend::Sign),
            (Operand::Context, x(1), B4, none),
            (Operand::Context, v(1), B8, none),
            (x(1), Operand::Context, B8, none),
            (Operand::Entry(0), Operand::Target(0), B8, none),
            (Operand::Gpr(Gpr::RDI), x(1), B8, none),
            (x(1), Operand::At(Reg::Gpr(Gpr::RDI), 0), B8, none),
            (Operand::Xmm(Xmm::XMM1), v(1), B8, none),
            // The address register is the stub's.
            (x(17), x(1), B8, none),
            (x(1), x(17), B8, none),
            (Operand::At(Reg::Xreg(Xreg::X17), 0), x(1), B8, none),
            (v(1), Operand::At(Reg::Xreg(Xreg::X17), 0), B8, none),
        ] {
            assert_eq!(moves(from, to, width, extend), None, "{from} {to}");
        }
        assert_eq!(listing(Step::SwapGpr(Gpr::RCX, Gpr::R8)), None);
        assert_eq!(listing(Step::PopX87 { to: Operand::Staging(0) }), None);
        assert_eq!(listing(Step::PushX87 { from: Operand::Staging(0) }), None);
        let to = Reg::Gpr(Gpr::RAX);
        assert_eq!(listing(Step::Constant { to, value: 1 }), None);
        assert_eq!(listing(Step::Address { of: Operand::Staging(0), to }), None);
    }

    #[test]
    fn plans_that_cannot_be_emitted_are_refused() {
        let refusal = |convention: Convention, text: &str, scratch: Reg| {
            let signature: Signature = text.parse().expect("a signature");
            let target = convention.assign(&signature).expect("assignable");
            let entry = Assignment::packed(&signature);
            let scratch = RegSet::EMPTY.with(scratch);
            let plan = Plan::new(&PlanRequest {
                entry: &entry,
                target: &target,
                bound_param: None,
                arg_scratch: scratch,
                result_scratch: scratch,
            });
            let plan = plan.expect("plannable");
            let mut ops = Ops::new(0);
            let mut emitter = Emitter::new(&mut ops, Xreg::X17);
            let args = emitter.steps(&plan.args, &AREAS, None);
            let refused = args.and_then(|()| emitter.steps(&plan.results, &AREAS, None));
            refused.err().map(|error| error.to_string())
        };
        let (x16, x17, r12) = (Xreg::X16.into(), Xreg::X17.into(), Gpr::R12.into());
        let everything = "fn([u8; 7], v128, i128, complex<f32>, [i64; 3]) -> longdouble";
        assert_eq!(refusal(Convention::Aapcs64, everything, x16), None);
        let address = refusal(Convention::Aapcs64, everything, x17).expect("refused");
        assert!(address.contains("register in which the stub makes addresses"), "{address}");
        let other = refusal(Convention::SystemV, "fn(i64)", r12).expect("refused");
        assert!(other.contains("no instruction"), "{other}");
    }
}
