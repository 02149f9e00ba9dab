//! The x86-64 emitter: one step of a plan, one or two instructions.
//!
//! It owns no register. Every register that a stub writes is named in its plan or in the stub's own
//! file; a call out of reach goes through a cell after the code instead of through a register.

crate::for_runtime! {
    mod in_place;

    pub(crate) use in_place::{check_processor, plan_bytes};
}

use std::ops::Range;

use dynasmrt::x64::X64Relocation;
use dynasmrt::{AssemblyOffset, DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use crate::abi::{Extend, Gpr, Operand, Reg, Step, Width, Xmm};
use crate::jit::frame::{FrameReport, PAGE_BYTES, REL32_REACH_BYTES};

/// dynasm's assembler for x86-64 that writes to a vector, set to the address at which the code will
/// run.
pub(crate) type Ops = VecAssembler<X64Relocation>;

/// A base register and a displacement.
#[derive(Clone, Copy)]
pub(crate) struct Base(pub(crate) Gpr, pub(crate) i32);

/// Where the areas of a plan are while its steps run.
#[derive(Clone, Copy)]
pub(crate) struct Areas {
    pub(crate) entry: Base,
    pub(crate) target: Base,
    pub(crate) entry_result: Base,
    pub(crate) target_result: Base,
    pub(crate) stage: Base,
}

/// Where the constant is that a stub binds.
#[derive(Clone, Copy)]
pub(crate) enum Context {
    /// In the instruction.
    Value(u64),
    /// In a cell after the code.
    Cell(DynamicLabel),
}

/// Emits one stub.
pub(crate) struct Emitter<'a> {
    pub(crate) ops: &'a mut Ops,
    /// The memory in which the code will be, where that is known: calls may be relative to it.
    memory: Option<Range<usize>>,
    /// Data after the code: constants, and addresses for calls that reach no other way.
    cells: Vec<(DynamicLabel, u64)>,
    /// Where code goes that needs a goroutine and has none.
    no_goroutine: Option<DynamicLabel>,
    /// What was done to the frame so far.
    report: FrameReport,
    /// Where the last call ends.
    after_call: Option<AssemblyOffset>,
}

/// What an emitter leaves to the stub's maker.
pub(crate) struct Finished {
    /// Offsets of the cells, in the order in which they were made.
    pub(crate) cells: Vec<usize>,
    pub(crate) report: FrameReport,
}

impl<'a> Emitter<'a> {
    /// An emitter of code that runs anywhere: what is outside of it is reached through cells.
    pub(crate) fn position_independent(ops: &'a mut Ops) -> Self {
        Self {
            ops,
            memory: None,
            cells: Vec::new(),
            no_goroutine: None,
            report: FrameReport::NONE,
            after_call: None,
        }
    }

    /// `push rbp; mov rbp, rsp`: the frame contract.
    pub(crate) fn prologue(&mut self) {
        dynasm!(self.ops; .arch x64; push rbp; mov rbp, rsp);
        self.frame_is_complete();
    }

    /// Drops the frame, whatever rsp is, and returns.
    pub(crate) fn epilogue(&mut self) {
        dynasm!(self.ops; .arch x64; leave);
        self.frame_is_dropped();
        dynasm!(self.ops; .arch x64; ret);
    }

    /// Reports that all of the frame is in its place from the next instruction on.
    pub(crate) fn frame_is_complete(&mut self) {
        self.report.complete_at(self.ops.offset().0);
    }

    /// Reports that at the next instruction rbp is the caller's, and rsp leads to the return
    /// address.
    pub(crate) fn frame_is_dropped(&mut self) {
        self.report.dropped_at(self.ops.offset().0);
    }

    /// Reports that a panic that passes the frame stops at the next instruction.
    pub(crate) fn panics_land(&mut self) {
        self.report.lands_at = self.ops.offset().0 as u32;
    }

    /// Makes room for `bytes` and aligns rsp to `align_bytes`: it is a multiple of
    /// `entry_align_bytes` when the bytes are there.
    pub(crate) fn reserve(&mut self, bytes: u32, align_bytes: u32, entry_align_bytes: u32) {
        const PAGE: i32 = PAGE_BYTES as i32;
        let mut bytes = bytes as i32;
        // No page is skipped: the next one may be the guard page. What is touched for certain after
        // this is the word below rsp, by the call.
        while bytes >= PAGE {
            dynasm!(self.ops; .arch x64; sub rsp, PAGE; test [rsp], rsp);
            bytes -= PAGE;
        }
        if bytes > 0 {
            dynasm!(self.ops; .arch x64; sub rsp, bytes);
        }
        let align = align_bytes as i32;
        let dropped = (align - entry_align_bytes as i32).max(0);
        if bytes + dropped + 8 > PAGE {
            dynasm!(self.ops; .arch x64; test [rsp], rsp);
        }
        if dropped > 0 {
            dynasm!(self.ops; .arch x64; and rsp, -align);
        }
    }

    /// Leaves the straight path if the register, which should hold a goroutine, is null.
    pub(crate) fn require_goroutine(&mut self, g: Gpr) {
        let label = self.ops.new_dynamic_label();
        self.no_goroutine = Some(label);
        dynasm!(self.ops; .arch x64; test Rq(g), Rq(g); jz =>label);
    }

    /// Where [`Self::require_goroutine`] leads, out of line: calls a function that does not return.
    /// The code has its frame.
    pub(crate) fn no_goroutine(&mut self, target: usize) {
        if let Some(label) = self.no_goroutine {
            dynasm!(self.ops; .arch x64; =>label; and rsp, -16);
            self.call(target);
            dynasm!(self.ops; .arch x64; ud2);
        }
    }

    /// Calls a fixed address.
    pub(crate) fn call(&mut self, target: usize) {
        match self.cell_for(target) {
            None => dynasm!(self.ops; .arch x64; call extern target),
            Some(cell) => dynasm!(self.ops; .arch x64; call QWORD [=>cell]),
        }
        self.after_call = Some(self.ops.offset());
    }

    /// A cell after the code that holds the address, unless `rel32` reaches it.
    fn cell_for(&mut self, target: usize) -> Option<DynamicLabel> {
        let reaches = |memory: &Range<usize>| {
            target.abs_diff(memory.start).max(target.abs_diff(memory.end)) < REL32_REACH_BYTES
        };
        if self.memory.as_ref().is_some_and(reaches) {
            return None;
        }
        Some(self.cell(target as u64))
    }

    /// A new cell after the code: eight bytes, aligned.
    pub(crate) fn cell(&mut self, value: u64) -> DynamicLabel {
        let cell = self.ops.new_dynamic_label();
        self.cells.push((cell, value));
        cell
    }

    /// A cell that the stub's maker fills in, if the stub needs one.
    pub(crate) fn cell_if(&mut self, needed: bool) -> Option<DynamicLabel> {
        needed.then(|| self.cell(0))
    }

    /// Loads the constant that the stub binds.
    pub(crate) fn context(&mut self, to: Gpr, context: Context) {
        match context {
            Context::Value(value) => self.constant(to, value),
            Context::Cell(cell) => dynasm!(self.ops; .arch x64; mov Rq(to), [=>cell]),
        }
    }

    /// Loads a constant.
    pub(crate) fn constant(&mut self, to: Gpr, value: u64) {
        match u32::try_from(value) {
            Ok(low) => dynasm!(self.ops; .arch x64; mov Rd(to), low as i32),
            Err(_) => dynasm!(self.ops; .arch x64; mov Rq(to), QWORD value as i64),
        }
    }

    /// Emits the steps of one half of a plan between two conventions of this machine.
    pub(crate) fn steps(&mut self, steps: &[Step], areas: &Areas, context: Context) {
        for &step in steps {
            let emitted = self.step(step, areas, context);
            // Better no stub than one that does something else.
            emitted.unwrap_or_else(|| unreachable!("{step} is no step of this machine"));
        }
    }

    /// Emits one step; `None`, and nothing, if it is not one that this machine can do.
    fn step(&mut self, step: Step, areas: &Areas, context: Context) -> Option<()> {
        match step {
            Step::SwapGpr(a, b) => dynasm!(self.ops; .arch x64; xchg Rq(a), Rq(b)),
            Step::Address { of, to: Reg::Gpr(to) } => {
                let Base(base, disp) = areas.locate(of)?;
                dynasm!(self.ops; .arch x64; lea Rq(to), [Rq(base) + disp]);
            }
            Step::Constant { to: Reg::Gpr(to), value } => self.constant(to, value.into()),
            Step::PopX87 { to } => {
                let Base(base, disp) = areas.locate(to)?;
                dynasm!(self.ops; .arch x64; fstp TWORD [Rq(base) + disp]);
            }
            Step::PushX87 { from } => {
                let Base(base, disp) = areas.locate(from)?;
                dynasm!(self.ops; .arch x64; fld TWORD [Rq(base) + disp]);
            }
            Step::Move { from, to, width, extend } => {
                return self.one_move(from, to, width, extend, areas, context);
            }
            _ => return None,
        }
        Some(())
    }

    fn one_move(
        &mut self,
        from: Operand,
        to: Operand,
        width: Width,
        extend: Extend,
        areas: &Areas,
        context: Context,
    ) -> Option<()> {
        match (from, to) {
            (Operand::Gpr(from), Operand::Gpr(to)) => self.gpr_to_gpr(from, to, width, extend),
            (Operand::Xmm(from), Operand::Xmm(to)) => self.xmm_to_xmm(from, to, width),
            (Operand::Gpr(from), Operand::Xmm(to)) => {
                match width {
                    Width::B4 => dynasm!(self.ops; .arch x64; movd Rx(to), Rd(from)),
                    Width::B8 => dynasm!(self.ops; .arch x64; movq Rx(to), Rq(from)),
                    _ => return None,
                }
                Some(())
            }
            (Operand::Xmm(from), Operand::Gpr(to)) => {
                match width {
                    Width::B4 => dynasm!(self.ops; .arch x64; movd Rd(to), Rx(from)),
                    Width::B8 => dynasm!(self.ops; .arch x64; movq Rq(to), Rx(from)),
                    _ => return None,
                }
                Some(())
            }
            (Operand::Context, Operand::Gpr(to)) => {
                self.context(to, context);
                Some(())
            }
            (Operand::Gpr(from), memory) => self.store(from, areas.locate(memory)?, width),
            (memory, Operand::Gpr(to)) => self.load(areas.locate(memory)?, to, width, extend),
            (Operand::Xmm(from), memory) => self.store_xmm(from, areas.locate(memory)?, width),
            (memory, Operand::Xmm(to)) => self.load_xmm(areas.locate(memory)?, to, width),
            _ => None,
        }
    }

    fn xmm_to_xmm(&mut self, from: Xmm, to: Xmm, width: Width) -> Option<()> {
        match width {
            Width::B64 => self.evex_move(LOAD_ZMM, to, XmmMem::Register(from)),
            Width::B32 => dynasm!(self.ops; .arch x64; vmovaps Ry(to), Ry(from)),
            Width::B4 | Width::B8 | Width::B16 => {
                dynasm!(self.ops; .arch x64; movaps Rx(to), Rx(from));
            }
            _ => return None,
        }
        Some(())
    }

    fn gpr_to_gpr(&mut self, from: Gpr, to: Gpr, width: Width, extend: Extend) -> Option<()> {
        let ops = &mut *self.ops;
        match (width, extend) {
            (Width::B1, Extend::Sign) => dynasm!(ops; .arch x64; movsx Rd(to), Rb(from)),
            (Width::B1, _) => dynasm!(ops; .arch x64; movzx Rd(to), Rb(from)),
            (Width::B2, Extend::Sign) => dynasm!(ops; .arch x64; movsx Rd(to), Rw(from)),
            (Width::B2, _) => dynasm!(ops; .arch x64; movzx Rd(to), Rw(from)),
            (Width::B4, _) => dynasm!(ops; .arch x64; mov Rd(to), Rd(from)),
            (Width::B8, _) => dynasm!(ops; .arch x64; mov Rq(to), Rq(from)),
            _ => return None,
        }
        Some(())
    }

    fn store(&mut self, from: Gpr, Base(base, disp): Base, width: Width) -> Option<()> {
        let ops = &mut *self.ops;
        match width {
            Width::B1 => dynasm!(ops; .arch x64; mov BYTE [Rq(base) + disp], Rb(from)),
            Width::B2 => dynasm!(ops; .arch x64; mov WORD [Rq(base) + disp], Rw(from)),
            Width::B4 => dynasm!(ops; .arch x64; mov DWORD [Rq(base) + disp], Rd(from)),
            Width::B8 => dynasm!(ops; .arch x64; mov QWORD [Rq(base) + disp], Rq(from)),
            _ => return None,
        }
        Some(())
    }

    fn load(
        &mut self,
        Base(base, disp): Base,
        to: Gpr,
        width: Width,
        extend: Extend,
    ) -> Option<()> {
        let ops = &mut *self.ops;
        match (width, extend) {
            (Width::B1, Extend::Sign) => {
                dynasm!(ops; .arch x64; movsx Rd(to), BYTE [Rq(base) + disp]);
            }
            (Width::B1, _) => dynasm!(ops; .arch x64; movzx Rd(to), BYTE [Rq(base) + disp]),
            (Width::B2, Extend::Sign) => {
                dynasm!(ops; .arch x64; movsx Rd(to), WORD [Rq(base) + disp]);
            }
            (Width::B2, _) => dynasm!(ops; .arch x64; movzx Rd(to), WORD [Rq(base) + disp]),
            (Width::B4, _) => dynasm!(ops; .arch x64; mov Rd(to), DWORD [Rq(base) + disp]),
            (Width::B8, _) => dynasm!(ops; .arch x64; mov Rq(to), QWORD [Rq(base) + disp]),
            _ => return None,
        }
        Some(())
    }

    fn store_xmm(&mut self, from: Xmm, Base(base, disp): Base, width: Width) -> Option<()> {
        let ops = &mut *self.ops;
        match width {
            Width::B4 => dynasm!(ops; .arch x64; movss DWORD [Rq(base) + disp], Rx(from)),
            Width::B8 => dynasm!(ops; .arch x64; movsd QWORD [Rq(base) + disp], Rx(from)),
            Width::B16 => dynasm!(ops; .arch x64; movups OWORD [Rq(base) + disp], Rx(from)),
            Width::B32 => dynasm!(ops; .arch x64; vmovups YWORD [Rq(base) + disp], Ry(from)),
            Width::B64 => self.evex_move(STORE_ZMM, from, XmmMem::Memory(Base(base, disp))),
            _ => return None,
        }
        Some(())
    }

    fn load_xmm(&mut self, Base(base, disp): Base, to: Xmm, width: Width) -> Option<()> {
        let ops = &mut *self.ops;
        match width {
            Width::B4 => dynasm!(ops; .arch x64; movss Rx(to), DWORD [Rq(base) + disp]),
            Width::B8 => dynasm!(ops; .arch x64; movsd Rx(to), QWORD [Rq(base) + disp]),
            Width::B16 => dynasm!(ops; .arch x64; movups Rx(to), OWORD [Rq(base) + disp]),
            Width::B32 => dynasm!(ops; .arch x64; vmovups Ry(to), YWORD [Rq(base) + disp]),
            Width::B64 => self.evex_move(LOAD_ZMM, to, XmmMem::Memory(Base(base, disp))),
            _ => return None,
        }
        Some(())
    }

    /// `vmovups` of a zmm register, which dynasm does not know. Intel SDM volume 2, sections 2.7.1
    /// (EVEX) and 2.1.5 (ModRM, SIB); the displacement is always 32 bits, which EVEX does not
    /// scale.
    fn evex_move(&mut self, opcode: u8, register: Xmm, operand: XmmMem) {
        let inverted_bit3 = |number: u8| (number >> 3 & 1) ^ 1;
        let (reg, rm) = (u8::from(register), operand.number());
        // R, X, B, R', all inverted; then the opcode map, 0F.
        let p0 = inverted_bit3(reg) << 7 | 1 << 6 | inverted_bit3(rm) << 5 | 1 << 4 | 1;
        // W = 0, no second source (inverted), one bit that is always set, no prefix.
        let p1 = 0b0111_1100;
        // No zeroing, 512 bits, no broadcast, V' inverted, no mask.
        let p2 = 0b0100_1000;
        self.ops.extend([0x62, p0, p1, p2, opcode]);
        let fields = (reg & 7) << 3 | rm & 7;
        match operand {
            XmmMem::Register(_) => self.ops.push(0b11 << 6 | fields),
            XmmMem::Memory(Base(_, disp)) => {
                self.ops.push(0b10 << 6 | fields);
                if rm & 7 == 4 {
                    // rsp and r12 as a base need a SIB byte: no index, this base.
                    self.ops.push(0x24);
                }
                self.ops.push_i32(disp);
            }
        }
    }

    /// Emits the cells, and says at which offset each is, in the order in which they were made.
    /// Call once, at the end.
    pub(crate) fn finish(self) -> Finished {
        // A call needs an instruction after it (`unwind/at_each_pc.rs`): else its return address is
        // data, or another stub.
        debug_assert_ne!(self.after_call, Some(self.ops.offset()), "the code ends in a call");
        let report = self.report;
        if self.cells.is_empty() {
            return Finished { cells: Vec::new(), report };
        }
        // Not executed: data after the last instruction.
        while !self.ops.offset().0.is_multiple_of(8) {
            dynasm!(self.ops; .arch x64; int3);
        }
        let mut offsets = Vec::with_capacity(self.cells.len());
        for (label, value) in self.cells {
            offsets.push(self.ops.offset().0);
            dynasm!(self.ops; .arch x64; =>label; .u64 value);
        }
        Finished { cells: offsets, report }
    }
}

/// Opcodes of `vmovups`.
const LOAD_ZMM: u8 = 0x10;
const STORE_ZMM: u8 = 0x11;

/// The other operand of an instruction.
#[derive(Clone, Copy)]
enum XmmMem {
    Register(Xmm),
    Memory(Base),
}

impl XmmMem {
    fn number(self) -> u8 {
        match self {
            XmmMem::Register(xmm) => xmm.into(),
            XmmMem::Memory(Base(gpr, _)) => gpr.into(),
        }
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
            Operand::At(Reg::Gpr(base), offset) => (Base(base, 0), offset),
            _ => return None,
        };
        Some(Base(base, disp + offset as i32))
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, Mnemonic};

    use super::*;
    use crate::abi::Vreg;

    /// The instructions of one step, with areas at different registers.
    fn listing(step: Step) -> Option<String> {
        let mut ops = Ops::new(0);
        let areas = Areas {
            entry: Base(Gpr::RBP, 16),
            target: Base(Gpr::RSP, 0),
            entry_result: Base(Gpr::R13, 0),
            target_result: Base(Gpr::RSP, 0),
            stage: Base(Gpr::RSP, 32),
        };
        let mut emitter = Emitter::position_independent(&mut ops);
        emitter.step(step, &areas, Context::Value(7))?;
        assert_ne!(ops.offset(), AssemblyOffset(0));
        let code = ops.finalize().expect("no label is open");
        let mut lines = Vec::new();
        for instruction in Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).iter() {
            let mut line = String::new();
            IntelFormatter::new().format(&instruction, &mut line);
            lines.push(line);
        }
        Some(lines.join("; "))
    }

    /// Between two touched words below rsp there is never a whole page: neither when the areas are
    /// reserved, nor when the call writes its return address below them.
    #[test]
    fn reserving_skips_no_page() {
        for bytes in (0..=3 * 4096 + 64).step_by(8) {
            for align in [16, 32, 64, 128, 4096] {
                for entry_align in [8, 16] {
                    let mut ops = Ops::new(0);
                    Emitter::position_independent(&mut ops).reserve(bytes, align, entry_align);
                    let code = ops.finalize().expect("no label is open");
                    // Bytes below the last touched word, at most.
                    let (mut untouched, mut total) = (0, 0);
                    let what = format!("{bytes} bytes, aligned to {align} from {entry_align}");
                    for instruction in Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).iter() {
                        match instruction.mnemonic() {
                            Mnemonic::Sub => {
                                untouched += instruction.immediate(1);
                                total += instruction.immediate(1);
                            }
                            Mnemonic::Test => {
                                assert!(untouched <= 4096, "{what}");
                                untouched = 0;
                            }
                            Mnemonic::And => untouched += u64::from(align - entry_align),
                            other => panic!("{other:?}"),
                        }
                    }
                    assert!(untouched + 8 <= 4096, "{what}");
                    assert_eq!(total, u64::from(bytes), "{what}");
                }
            }
        }
    }

    #[test]
    fn each_step_is_the_instruction_that_it_says() {
        let moves = |from: Operand, to: Operand, width| {
            listing(Step::Move { from, to, width, extend: Extend::None })
        };
        let (rdi, r9) = (Operand::Gpr(Gpr::RDI), Operand::Gpr(Gpr::R9));
        let (xmm1, xmm9) = (Operand::Xmm(Xmm::XMM1), Operand::Xmm(Xmm::XMM9));
        let odd = Operand::At(Reg::Gpr(Gpr::R12), 3);
        for (from, to, width, expected) in [
            (rdi, xmm9, Width::B8, "movq xmm9,rdi"),
            (r9, xmm1, Width::B4, "movd xmm1,r9d"),
            (xmm9, rdi, Width::B8, "movq rdi,xmm9"),
            (xmm1, r9, Width::B4, "movd r9d,xmm1"),
            (xmm9, xmm1, Width::B8, "movaps xmm1,xmm9"),
            (xmm9, xmm1, Width::B16, "movaps xmm1,xmm9"),
            (xmm9, xmm1, Width::B32, "vmovaps ymm1,ymm9"),
            (xmm9, Operand::Staging(8), Width::B16, "movups [rsp+28h],xmm9"),
            (Operand::Entry(0), xmm9, Width::B16, "movups xmm9,[rbp+10h]"),
            (Operand::Entry(0), xmm9, Width::B32, "vmovups ymm9,[rbp+10h]"),
            (xmm1, odd, Width::B32, "vmovups [r12+3],ymm1"),
            (odd, rdi, Width::B8, "mov rdi,[r12+3]"),
            (rdi, odd, Width::B1, "mov [r12+3],dil"),
            (Operand::TargetResult(8), r9, Width::B4, "mov r9d,[rsp+8]"),
            (xmm9, xmm1, Width::B64, "vmovups zmm1,zmm9"),
            (xmm1, xmm9, Width::B64, "vmovups zmm9,zmm1"),
            (xmm9, Operand::Staging(8), Width::B64, "vmovups [rsp+28h],zmm9"),
            (odd, xmm1, Width::B64, "vmovups zmm1,[r12+3]"),
            (Operand::Entry(0), xmm9, Width::B64, "vmovups zmm9,[rbp+10h]"),
            (xmm1, Operand::EntryResult(5), Width::B64, "vmovups [r13+5],zmm1"),
        ] {
            assert_eq!(moves(from, to, width).as_deref(), Some(expected));
        }
        for (step, expected) in [
            (
                Step::Address { of: Operand::Staging(16), to: Reg::Gpr(Gpr::RDX) },
                "lea rdx,[rsp+30h]",
            ),
            (Step::Constant { to: Reg::Gpr(Gpr::RAX), value: 3 }, "mov eax,3"),
            (Step::PopX87 { to: odd }, "fstp tbyte ptr [r12+3],st"),
            (Step::PushX87 { from: Operand::Staging(0) }, "fld st,tbyte ptr [rsp+20h]"),
            (Step::SwapGpr(Gpr::RCX, Gpr::R8), "xchg r8,rcx"),
        ] {
            assert_eq!(listing(step).as_deref(), Some(expected));
        }
        let vreg = Operand::Vreg(Vreg::V0);
        for (from, to, width) in [
            (rdi, xmm1, Width::B2),
            (rdi, vreg, Width::B8),
            (vreg, Operand::Target(0), Width::B8),
            (Operand::Entry(0), Operand::Target(0), Width::B8),
        ] {
            assert_eq!(moves(from, to, width), None, "{from} {to}");
        }
    }
}
