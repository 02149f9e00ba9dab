//! The x86-64 emitter: one step of a plan, one or two instructions.
//!
//! It owns no register. Whatever a stub writes is named in its plan or in the stub's own file; a
//! call out of reach goes through a cell behind the code instead of through a register.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

use crate::abi::{Extend, Gpr, Plan, Spot, Step, Width, Xmm};
use crate::jit::{Arena, Ops};

/// `call rel32` reaches so far, less the size of the largest stub.
const REACH_BYTES: usize = (1 << 31) - (2 << 20);

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
}

/// Emits one stub.
pub(crate) struct Emitter<'a> {
    pub(crate) ops: &'a mut Ops,
    arena: &'static Arena,
    /// Addresses behind the code, for calls that reach no other way.
    cells: Vec<(DynamicLabel, usize)>,
    /// Where code goes that needs a goroutine and has none.
    no_goroutine: Option<DynamicLabel>,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(ops: &'a mut Ops, arena: &'static Arena) -> Self {
        Self {
            ops,
            arena,
            cells: Vec::new(),
            no_goroutine: None,
        }
    }

    /// `push rbp; mov rbp, rsp`: the frame law. Returns its length.
    pub(crate) fn prologue(&mut self) -> usize {
        dynasm!(self.ops; .arch x64; push rbp; mov rbp, rsp);
        self.ops.offset().0
    }

    /// Drops the frame, whatever rsp is, and returns.
    pub(crate) fn epilogue(&mut self) {
        dynasm!(self.ops; .arch x64; leave; ret);
    }

    /// Makes room for an outgoing area of a multiple of 16 bytes, and aligns rsp to 16 if it may
    /// not be so.
    pub(crate) fn outgoing_area(&mut self, bytes: u32, entry_align_bytes: u32) {
        let bytes = bytes as i32;
        if bytes > 0 {
            dynasm!(self.ops; .arch x64; sub rsp, bytes);
        }
        if entry_align_bytes < 16 {
            dynasm!(self.ops; .arch x64; and rsp, -16);
        }
    }

    /// Leaves the straight path if the register, which should hold a goroutine, is null.
    pub(crate) fn require_goroutine(&mut self, g: Gpr) {
        let label = self.ops.new_dynamic_label();
        self.no_goroutine = Some(label);
        dynasm!(self.ops; .arch x64; test Rq(g), Rq(g); jz =>label);
    }

    /// Where [`Self::require_goroutine`] leads, out of line: calls a function that does not return.
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
    }

    /// Jumps to a fixed address.
    pub(crate) fn jump(&mut self, target: usize) {
        match self.cell_for(target) {
            None => dynasm!(self.ops; .arch x64; jmp extern target),
            Some(cell) => dynasm!(self.ops; .arch x64; jmp QWORD [=>cell]),
        }
    }

    /// A cell behind the code that holds the address, unless `rel32` reaches it.
    fn cell_for(&mut self, target: usize) -> Option<DynamicLabel> {
        let memory = self.arena.memory();
        let (low, high) = (memory.base(), memory.base() + memory.size());
        if target.abs_diff(low).max(target.abs_diff(high)) < REACH_BYTES {
            return None;
        }
        let cell = self.ops.new_dynamic_label();
        self.cells.push((cell, target));
        Some(cell)
    }

    /// Loads a constant.
    pub(crate) fn constant(&mut self, to: Gpr, value: u64) {
        match u32::try_from(value) {
            Ok(low) => dynasm!(self.ops; .arch x64; mov Rd(to), low as i32),
            Err(_) => dynasm!(self.ops; .arch x64; mov Rq(to), QWORD value as i64),
        }
    }

    /// Emits the steps of one half of a plan.
    pub(crate) fn steps(&mut self, steps: &[Step], areas: &Areas, context: u64) {
        for &step in steps {
            match step {
                Step::SwapGpr(a, b) => {
                    dynasm!(self.ops; .arch x64; xchg Rq(a), Rq(b));
                }
                Step::Move {
                    from,
                    to,
                    width,
                    extend,
                } => {
                    self.one_move(from, to, width, extend, areas, context);
                }
            }
        }
    }

    fn one_move(
        &mut self,
        from: Spot,
        to: Spot,
        width: Width,
        extend: Extend,
        areas: &Areas,
        context: u64,
    ) {
        match (from, to) {
            (Spot::Gpr(from), Spot::Gpr(to)) => self.gpr_to_gpr(from, to, width, extend),
            (Spot::Xmm(from), Spot::Xmm(to)) => {
                dynasm!(self.ops; .arch x64; movaps Rx(to), Rx(from));
            }
            (Spot::Context, Spot::Gpr(to)) => self.constant(to, context),
            (Spot::Gpr(from), memory) => self.store(from, areas.locate(memory), width),
            (memory, Spot::Gpr(to)) => self.load(areas.locate(memory), to, width, extend),
            (Spot::Xmm(from), memory) => self.store_xmm(from, areas.locate(memory), width),
            (memory, Spot::Xmm(to)) => self.load_xmm(areas.locate(memory), to, width),
            (from, to) => unreachable!("no plan moves from {from} to {to} in one step"),
        }
    }

    fn gpr_to_gpr(&mut self, from: Gpr, to: Gpr, width: Width, extend: Extend) {
        let ops = &mut *self.ops;
        match (width, extend) {
            (Width::B1, Extend::Sign) => dynasm!(ops; .arch x64; movsx Rd(to), Rb(from)),
            (Width::B1, _) => dynasm!(ops; .arch x64; movzx Rd(to), Rb(from)),
            (Width::B2, Extend::Sign) => dynasm!(ops; .arch x64; movsx Rd(to), Rw(from)),
            (Width::B2, _) => dynasm!(ops; .arch x64; movzx Rd(to), Rw(from)),
            (Width::B4, _) => dynasm!(ops; .arch x64; mov Rd(to), Rd(from)),
            (Width::B8, _) => dynasm!(ops; .arch x64; mov Rq(to), Rq(from)),
        }
    }

    fn store(&mut self, from: Gpr, Base(base, disp): Base, width: Width) {
        let ops = &mut *self.ops;
        match width {
            Width::B1 => dynasm!(ops; .arch x64; mov BYTE [Rq(base) + disp], Rb(from)),
            Width::B2 => dynasm!(ops; .arch x64; mov WORD [Rq(base) + disp], Rw(from)),
            Width::B4 => dynasm!(ops; .arch x64; mov DWORD [Rq(base) + disp], Rd(from)),
            Width::B8 => dynasm!(ops; .arch x64; mov QWORD [Rq(base) + disp], Rq(from)),
        }
    }

    fn load(&mut self, Base(base, disp): Base, to: Gpr, width: Width, extend: Extend) {
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
        }
    }

    fn store_xmm(&mut self, from: Xmm, Base(base, disp): Base, width: Width) {
        if width == Width::B4 {
            dynasm!(self.ops; .arch x64; movss DWORD [Rq(base) + disp], Rx(from));
        } else {
            dynasm!(self.ops; .arch x64; movsd QWORD [Rq(base) + disp], Rx(from));
        }
    }

    fn load_xmm(&mut self, Base(base, disp): Base, to: Xmm, width: Width) {
        if width == Width::B4 {
            dynasm!(self.ops; .arch x64; movss Rx(to), DWORD [Rq(base) + disp]);
        } else {
            dynasm!(self.ops; .arch x64; movsd Rx(to), QWORD [Rq(base) + disp]);
        }
    }

    /// Emits the cells. Call once, at the end.
    pub(crate) fn finish(self) {
        if self.cells.is_empty() {
            return;
        }
        // Not executed: data behind the last instruction.
        while !self.ops.offset().0.is_multiple_of(8) {
            dynasm!(self.ops; .arch x64; int3);
        }
        for (label, address) in self.cells {
            dynasm!(self.ops; .arch x64; =>label; .u64 address as u64);
        }
    }
}

impl Areas {
    fn locate(&self, spot: Spot) -> Base {
        let (Base(base, disp), offset) = match spot {
            Spot::Entry(offset) => (self.entry, offset),
            Spot::Target(offset) => (self.target, offset),
            Spot::EntryResult(offset) => (self.entry_result, offset),
            Spot::TargetResult(offset) => (self.target_result, offset),
            other => unreachable!("{other} is not in memory"),
        };
        Base(base, disp + offset as i32)
    }
}

/// Room that the moves of a plan take at most, in bytes: no instruction is longer than 15.
pub(crate) fn plan_bytes(plan: &Plan) -> usize {
    (plan.args.len() + plan.results.len()) * 16
}
