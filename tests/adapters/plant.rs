//! Defects: short pieces of code, each of which changes one piece of state during a call.
//!
//! They run at the first instruction of a callee, or at the return address in a caller. At both
//! points, memory below rsp and the arithmetic flags are unused.

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::{Gpr, Passing, Place, Reg, Value};
use footbridge::jit::Ops;

/// The locations of all parts of a value that is not passed by address.
pub fn places(value: &Value) -> Vec<Place> {
    match *value.passing() {
        Passing::Area(offset) => vec![Place::Area(offset)],
        _ => value.parts().iter().map(|part| part.place).collect(),
    }
}

/// Flips one bit at a location. The area starts at rsp + `base`.
pub fn flip(ops: &mut Ops, place: Place, base: i32, bit: i32) {
    let (byte, mask) = (bit / 8, 1_i8 << (bit % 8));
    match place {
        Place::Reg(Reg::Gpr(r)) => dynasm!(ops; .arch x64; btc Rq(r), BYTE bit as i8),
        Place::Reg(Reg::Xmm(x)) => dynasm!(ops
            ; .arch x64
            ; movups [rsp - 64], Rx(x)
            ; xor BYTE [rsp - 64 + byte], mask
            ; movups Rx(x), [rsp - 64]
        ),
        Place::Area(offset) => {
            dynasm!(ops; .arch x64; xor BYTE [rsp + base + offset as i32 + byte], mask);
        }
        Place::X87(0) => dynasm!(ops
            ; .arch x64
            ; fstp TWORD [rsp - 64]
            ; xor BYTE [rsp - 64 + byte], mask
            ; fld TWORD [rsp - 64]
        ),
        Place::X87(_) => {
            dynasm!(ops; .arch x64; fxch st1);
            flip(ops, Place::X87(0), base, bit);
            dynasm!(ops; .arch x64; fxch st1);
        }
        other => panic!("this test does not support the location {other:?}"),
    }
}

/// Exchanges two values of eight bytes.
pub fn swap(ops: &mut Ops, a: Place, b: Place, base: i32) {
    match (a, b) {
        (Place::Reg(Reg::Gpr(a)), Place::Reg(Reg::Gpr(b))) => {
            dynasm!(ops; .arch x64; xchg Rq(a), Rq(b));
        }
        (Place::Reg(Reg::Xmm(a)), Place::Reg(Reg::Xmm(b))) => dynasm!(ops
            ; .arch x64
            ; movups [rsp - 64], Rx(a)
            ; movaps Rx(a), Rx(b)
            ; movups Rx(b), [rsp - 64]
        ),
        (Place::Area(a), Place::Area(b)) => {
            let (a, b) = (a as i32 + base, b as i32 + base);
            // A pop computes its address after rsp was incremented.
            dynasm!(ops
                ; .arch x64
                ; push QWORD [rsp + a]
                ; push QWORD [rsp + 8 + b]
                ; pop QWORD [rsp + 8 + a]
                ; pop QWORD [rsp + b]
            );
        }
        (a, b) => panic!("the locations are of different kinds: {a}, {b}"),
    }
}

/// Changes a register. rsp is changed like by a callee that pops too little.
pub fn clobber(ops: &mut Ops, register: Reg) {
    match register {
        Reg::Gpr(Gpr::RSP) => dynasm!(ops; .arch x64; lea rsp, [rsp - 8]),
        Reg::Gpr(r) => dynasm!(ops; .arch x64; not Rq(r)),
        Reg::Xmm(x) => flip(ops, Place::Reg(Reg::Xmm(x)), 0, 127),
        other => panic!("not a register of this machine: {other}"),
    }
}

/// Loads MXCSR from a constant in the code.
pub fn set_mxcsr(ops: &mut Ops, mxcsr: u32) {
    dynasm!(ops
        ; .arch x64
        ; mov DWORD [rsp - 64], mxcsr as i32
        ; ldmxcsr [rsp - 64]
    );
}

pub fn set_x87_control(ops: &mut Ops, control: u16) {
    dynasm!(ops
        ; .arch x64
        ; mov WORD [rsp - 64], control as i16
        ; fldcw [rsp - 64]
    );
}
