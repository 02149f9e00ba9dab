//! A caller and a callee that carry values of any type in any convention of this machine.
//!
//! * A [`Caller`] puts values where an assignment has them, loads every register, calls one
//!   address on a stack of its own, and stores every register again. The stack ends at a guard
//!   page, as near behind the area of the arguments as its alignment allows, or behind bytes
//!   that are compared afterwards. Memory behind addresses ends at guard pages too.
//! * A [`Callee`] is emitted code to be called: it stores every register, reads the arguments
//!   where an assignment has them, checks everything that a function of its convention may rely on,
//!   destroys everything that the convention lets it destroy, and returns chosen values.
//!
//! "Every register" are the sixteen of the integer unit, rflags, the vector registers as wide as
//! this CPU has them, MXCSR, and the x87 unit.
//!
//! Encoding and decoding follow an [`Assignment`] and nothing else: this file never asks how a
//! stub moves values, and shares no code with the model machine in `src/abi/model/`.
//!
//! Neither of the two is reentrant. While a call is under way no walk or panic may pass it.

#![allow(unsafe_code, reason = "calls code that was emitted here")]

use std::arch::is_x86_feature_detected;
use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::model::Xorshift;
use footbridge::abi::{
    Assignment, Convention, Extend, Gpr, Language, Layout, Narrow, Passing, Pinned, Place, Reg,
    RegSet, Slots, Type, Value, ValueIndex, Xmm,
};
use footbridge::jit::{Code, FrameClass, Jit, Ops};

const PAGE_BYTES: usize = 4096;
/// The stack that a call runs on.
const STACK_BYTES: usize = 16 * PAGE_BYTES;
/// So much of it is filled with [`Caller::POISON`] before each call.
const POISONED_BYTES: usize = 6 * PAGE_BYTES;
/// Pieces of memory behind addresses: one for every parameter, and one for the result.
const ISLANDS: usize = 40;

/// MXCSR and the x87 control word of a thread that starts: psABI 3.2.1, "CPU state".
const NATIVE_MXCSR: u32 = 0x1f80;
/// Round up, flush to zero, all exceptions masked: not the default in two fields.
const OTHER_MXCSR: u32 = 0xdf80;
/// MXCSR without the six exception flags, which every float instruction may set.
const MXCSR_CONTROL: u32 = !0x3f;
const NATIVE_X87_CONTROL: u16 = 0x37f;
/// Round to nearest, double precision, invalid-operation exception masked only.
const OTHER_X87_CONTROL: u16 = 0x0241;

const DF: u64 = 1 << 10;
/// Carry, parity, adjust, zero, sign, overflow.
const ARITHMETIC_FLAGS: u64 = 0x8d5;
/// Interrupts enabled, and bit 1, which is always set.
const FIXED_FLAGS: u64 = 0x202;

/// Offsets in what FXSAVE64 writes: Intel SDM volume 1, table 10-2.
const FX_STATUS: usize = 2;
const FX_TAGS: usize = 4;
const FX_MXCSR: usize = 24;
const FX_STACK: usize = 32;

/// How wide the vector registers of this CPU are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Xmm,
    Ymm,
    Zmm,
}

fn width() -> Width {
    if is_x86_feature_detected!("avx512f") {
        Width::Zmm
    } else if is_x86_feature_detected!("avx") {
        Width::Ymm
    } else {
        Width::Xmm
    }
}

/// The bytes of the widest vector that this CPU has a register for.
pub fn vector_bytes() -> u32 {
    match width() {
        Width::Xmm => 16,
        Width::Ymm => 32,
        Width::Zmm => 64,
    }
}

/// Every register.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    /// Of this only the x87 unit and MXCSR count; the vector registers are below.
    fx: [u8; 512],
    vectors: [[u8; 64]; 16],
    gprs: [u64; 16],
    flags: u64,
}

impl State {
    /// Garbage everywhere, but for the modes: DF is clear and the x87 stack is empty.
    fn garbage(rng: &mut Xorshift) -> State {
        let mut state =
            State { fx: [0; 512], vectors: [[0; 64]; 16], gprs: [0; 16], flags: FIXED_FLAGS };
        for vector in &mut state.vectors {
            *vector = garbage_bytes(rng);
        }
        state.gprs = std::array::from_fn(|_| rng.bits());
        state.flags |= rng.bits() & ARITHMETIC_FLAGS;
        let numbers: [[u8; 10]; 8] = std::array::from_fn(|_| garbage_bytes(rng));
        state.set_x87(&numbers);
        state.fx[FX_TAGS] = 0;
        state.set_modes(NATIVE_MXCSR, NATIVE_X87_CONTROL);
        state
    }

    pub fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[usize::from(register.index())]
    }

    pub fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[usize::from(register.index())] = value;
    }

    pub fn vector(&self, register: Xmm) -> &[u8; 64] {
        &self.vectors[usize::from(register.index())]
    }

    fn vector_mut(&mut self, register: Xmm) -> &mut [u8; 64] {
        &mut self.vectors[usize::from(register.index())]
    }

    fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.fx[FX_MXCSR..][..4].try_into().expect("4"))
    }

    fn x87_control(&self) -> u16 {
        u16::from_le_bytes([self.fx[0], self.fx[1]])
    }

    fn set_modes(&mut self, mxcsr: u32, x87_control: u16) {
        self.fx[FX_MXCSR..][..4].copy_from_slice(&mxcsr.to_le_bytes());
        self.fx[..2].copy_from_slice(&x87_control.to_le_bytes());
    }

    /// Makes these the whole x87 stack, the top first.
    fn set_x87(&mut self, numbers: &[[u8; 10]]) {
        let top = (8 - numbers.len()) % 8;
        self.fx[FX_STATUS..FX_TAGS].copy_from_slice(&[0, (top as u8) << 3]);
        self.fx[FX_TAGS] = 0;
        for (i, number) in numbers.iter().enumerate() {
            self.fx[FX_TAGS] |= 1 << ((top + i) % 8);
            self.fx[FX_STACK + 16 * i..][..10].copy_from_slice(number);
        }
    }

    /// The x87 stack, the top first. `None` if registers are full that are not a stack.
    fn x87(&self) -> Option<Vec<[u8; 10]>> {
        let top = usize::from(self.fx[FX_STATUS + 1] >> 3 & 7);
        let depth = self.fx[FX_TAGS].count_ones() as usize;
        let tags = (0..depth).fold(0, |tags, i| tags | 1 << ((top + i) % 8));
        let number = |i| self.fx[FX_STACK + 16 * i..][..10].try_into().expect("10");
        (self.fx[FX_TAGS] == tags).then(|| (0..depth).map(number).collect())
    }
}

fn garbage_bytes<const N: usize>(rng: &mut Xorshift) -> [u8; N] {
    std::array::from_fn(|_| (rng.bits() >> 40) as u8)
}

/// One thing that is not as a convention says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A register that is preserved or pinned.
    Gpr(Gpr),
    /// The low 128 bits of one.
    Xmm(Xmm),
    Df,
    Mxcsr,
    X87Control,
    /// The x87 stack holds something else than the results.
    X87Stack,
    /// The base of the area is not aligned, at the callee.
    Alignment,
    /// A value is another one, or is not there at all.
    Value(ValueIndex),
    /// A narrow integer is not extended to 32 bits, where the receiver relies on it.
    NotExtended(ValueIndex),
    /// A value on the stack whose whole word the receiver may load, and nobody wrote it.
    NotWhole(ValueIndex),
    /// The two places of one value differ.
    Duplicate(ValueIndex),
    /// An address of a value is not aligned, or leads nowhere.
    Address(ValueIndex),
    /// At the callee, rbp is neither the caller's nor that of a frame right above it.
    FramePointer,
    /// The number of vector registers of a variadic call.
    VectorCount,
    /// The word in the closure register.
    Closure,
    /// A byte of the caller's stack, counted from the base of its area, that is behind the area.
    Above(usize),
    /// A byte beside the memory of a value, counted from its first one.
    Beside(ValueIndex, isize),
    /// The callee was called so many times.
    Hits(u64),
}

/// The data bytes of a value; the others are padding. x87 numbers have ten bytes.
pub fn data_bytes(ty: &Type, language: Language) -> Vec<bool> {
    let mut data = vec![false; ty.layout(language).size_bytes as usize];
    ty.each_leaf(language, 0, &mut |offset, leaf| {
        let size = match leaf {
            Type::LongDouble => 10,
            _ => leaf.layout(language).size_bytes as usize,
        };
        data[offset as usize..][..size].fill(true);
    });
    data
}

/// Random values of these, with zeros in padding and truth values that are 0 or 1.
pub fn random_values(values: &[Value], rng: &mut Xorshift) -> Vec<Vec<u8>> {
    let value = |value: &Value| {
        let data = data_bytes(value.ty(), value.language());
        let mut bytes: Vec<u8> =
            data.iter().map(|data| if *data { (rng.bits() >> 40) as u8 } else { 0 }).collect();
        value.ty().each_leaf(value.language(), 0, &mut |offset, leaf| {
            if *leaf == Type::Bool {
                bytes[offset as usize] &= 1;
            }
        });
        bytes
    };
    values.iter().map(value).collect()
}

/// A value as it is in memory: garbage in its padding.
fn image(value: &Value, bytes: &[u8], rng: &mut Xorshift) -> Vec<u8> {
    let data = data_bytes(value.ty(), value.language());
    assert_eq!(bytes.len(), data.len(), "the bytes of a {}", value.ty());
    let byte = |(byte, data): (&u8, bool)| if data { *byte } else { (rng.bits() >> 40) as u8 };
    bytes.iter().zip(data).map(byte).collect()
}

/// Zeros in padding.
fn masked(value: &Value, bytes: &[u8]) -> Vec<u8> {
    let data = data_bytes(value.ty(), value.language());
    bytes.iter().zip(data).map(|(byte, data)| if data { *byte } else { 0 }).collect()
}

/// The number of bytes of an integer or truth value that is narrower than 32 bits.
fn narrow_bytes(value: &Value) -> Option<usize> {
    let size = value.layout().size_bytes as usize;
    (value.ty().is_word() && size < 4).then_some(size)
}

/// The low 32 bits that a narrow integer extends to.
fn extension(ty: &Type, bytes: &[u8]) -> [u8; 4] {
    let negative = Extend::of(ty) == Extend::Sign && bytes.last().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(fill))
}

/// What the two sides have in common: registers, an area of memory, and the x87 stack.
struct Frame {
    state: State,
    /// The area from its base, [`Assignment::total_bytes`].
    area: Vec<u8>,
    x87: Vec<[u8; 10]>,
}

impl Frame {
    fn put_word(&mut self, place: Place, word: u64) {
        match place {
            Place::Reg(Reg::Gpr(register)) => self.state.set_gpr(register, word),
            Place::Area(offset) => {
                self.area[offset as usize..][..8].copy_from_slice(&word.to_le_bytes());
            }
            other => panic!("no place of an address: {other:?}"),
        }
    }

    fn word(&self, place: Place) -> u64 {
        match place {
            Place::Reg(Reg::Gpr(register)) => self.state.gpr(register),
            Place::Area(offset) => {
                let bytes = &self.area[offset as usize..][..8];
                u64::from_le_bytes(bytes.try_into().expect("8"))
            }
            other => panic!("no place of an address: {other:?}"),
        }
    }

    /// Puts a value that is not behind an address, with garbage in every bit that is not its own.
    /// With `extend` narrow integers are extended, and have the whole word where one is theirs.
    fn put(&mut self, value: &Value, bytes: &[u8], extend: bool, rng: &mut Xorshift) {
        let image = image(value, bytes, rng);
        if let Passing::Area(offset) = *value.passing() {
            let offset = offset as usize;
            if extend && narrow_bytes(value).is_some() {
                self.area[offset..][..4].copy_from_slice(&extension(value.ty(), &image));
            }
            self.area[offset..][..image.len()].copy_from_slice(&image);
        }
        for part in value.parts() {
            let piece = &image[part.off as usize..][..part.size as usize];
            match part.place {
                Place::Reg(Reg::Gpr(register)) => {
                    let mut whole = rng.bits().to_le_bytes();
                    whole[..piece.len()].copy_from_slice(piece);
                    if extend && narrow_bytes(value).is_some() {
                        whole[..4].copy_from_slice(&extension(value.ty(), piece));
                    }
                    self.state.set_gpr(register, u64::from_le_bytes(whole));
                }
                Place::Reg(Reg::Xmm(register)) => {
                    let mut whole: [u8; 64] = garbage_bytes(rng);
                    whole[..piece.len()].copy_from_slice(piece);
                    *self.state.vector_mut(register) = whole;
                }
                // Parts are in the order of the stack.
                Place::X87(_) => self.x87.push(piece[..10].try_into().expect("10")),
                other => panic!("no place of a part: {other:?}"),
            }
        }
    }

    /// Reads a value that is not behind an address, with zeros in padding. Says in `wrong` what a
    /// receiver relies on and is not so: `side` gives its rules, and `poison` is what memory held
    /// before anybody wrote there.
    fn take(
        &self,
        side: &Assignment,
        value: &Value,
        index: ValueIndex,
        poison: Option<u8>,
        wrong: &mut Vec<Change>,
    ) -> Vec<u8> {
        // Whether the bits above a narrow integer are what the receiver relies on.
        let extended = |found: &[u8]| match narrow_bytes(value) {
            Some(size) if side.narrow() != Narrow::Garbage => {
                found[..4] == extension(value.ty(), &found[..size])
            }
            _ => true,
        };
        let size = value.layout().size_bytes as usize;
        if let Passing::Area(offset) = *value.passing() {
            let place = &self.area[offset as usize..];
            if side.slots() == Slots::Whole && value.ty().is_word() {
                if !extended(&place[..8]) {
                    wrong.push(Change::NotExtended(index));
                }
                let above = &place[size..8];
                if poison.is_some_and(|poison| size < 8 && above.iter().all(|b| *b == poison)) {
                    wrong.push(Change::NotWhole(index));
                }
            }
            return masked(value, &place[..size]);
        }
        let mut image: Vec<Option<u8>> = vec![None; size];
        let data = data_bytes(value.ty(), value.language());
        for part in value.parts() {
            let piece = match part.place {
                Place::Reg(Reg::Gpr(register)) => {
                    let whole = self.state.gpr(register).to_le_bytes();
                    if !extended(&whole) {
                        wrong.push(Change::NotExtended(index));
                    }
                    whole[..part.size as usize].to_vec()
                }
                Place::Reg(Reg::Xmm(register)) => {
                    self.state.vector(register)[..part.size as usize].to_vec()
                }
                Place::X87(position) => {
                    let number = self.x87.get(usize::from(position));
                    number.map(|number| number.to_vec()).unwrap_or_default()
                }
                other => panic!("no place of a part: {other:?}"),
            };
            for (i, byte) in (part.off as usize..).zip(piece) {
                if data[i] && image[i].is_some_and(|other| other != byte) {
                    wrong.push(Change::Duplicate(index));
                }
                image[i] = Some(byte);
            }
        }
        let image: Vec<u8> = image.into_iter().map(|byte| byte.unwrap_or(0)).collect();
        masked(value, &image)
    }
}

/// What both sides and every convention of this machine agree on: DF is clear, the control words are
/// as they were, and the x87 stack holds `depth` numbers.
fn modes(caller: &State, found: &State, depth: usize) -> Vec<Change> {
    let checks = [
        (found.flags & DF != 0, Change::Df),
        ((caller.mxcsr() ^ found.mxcsr()) & MXCSR_CONTROL != 0, Change::Mxcsr),
        (caller.x87_control() != found.x87_control(), Change::X87Control),
        (found.x87().is_none_or(|stack| stack.len() != depth), Change::X87Stack),
    ];
    checks.into_iter().filter_map(|(wrong, change)| wrong.then_some(change)).collect()
}

/// The registers of `state` that do not hold what they are pinned to.
fn unpinned(convention: Convention, state: &State, g: u64) -> Vec<Change> {
    let wrong = convention.spec().pinned.iter().filter_map(|&pinned| match pinned {
        (Reg::Gpr(r), Pinned::Goroutine) => (state.gpr(r) != g).then_some(Change::Gpr(r)),
        (Reg::Xmm(r), Pinned::Zero) => (state.vector(r)[..16] != [0; 16]).then_some(Change::Xmm(r)),
        other => panic!("a pinned register that this test does not know: {other:?}"),
    });
    wrong.collect()
}

/// The register that carries the closure at a call: r10 is the static chain of C (psABI figure 3.4),
/// which GNU C has on Windows too; rdx is Go's (`cmd/compile/abi-internal.md`, "amd64
/// architecture").
pub fn closure_register(convention: Convention) -> Gpr {
    match convention {
        Convention::SystemV | Convention::Win64 => Gpr::R10,
        Convention::GoAbi0 | Convention::GoAbiInternal => Gpr::RDX,
        other => panic!("not of this machine: {other}"),
    }
}

fn convention(assignment: &Assignment) -> Convention {
    assignment.convention().expect("of a convention")
}

/// What a receiver may rely on in the address of a value.
fn copy_align(side: &Assignment, layout: Layout) -> usize {
    layout.align_bytes.max(convention(side).spec().copy_align_bytes) as usize
}

/// Memory with a page behind it, and one before it, that nobody may touch.
struct Island {
    start: *mut u8,
    bytes: usize,
}

impl Island {
    /// As many as wanted, in one mapping that stays for the life of the process.
    fn map(count: usize, bytes: usize) -> Vec<Island> {
        let stride = bytes + PAGE_BYTES;
        // SAFETY: a fresh mapping.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * stride + PAGE_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(mapping, libc::MAP_FAILED, "address space");
        let island = |i| {
            // SAFETY: inside of the mapping.
            let start = unsafe { mapping.cast::<u8>().add(PAGE_BYTES + i * stride) };
            // SAFETY: whole pages of the mapping.
            let made =
                unsafe { libc::mprotect(start.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) };
            assert_eq!(made, 0, "memory");
            Island { start, bytes }
        };
        (0..count).map(island).collect()
    }

    fn end(&self) -> usize {
        self.start as usize + self.bytes
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped for good; nothing else refers to it while this is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// The address of `size` bytes at the end of the island, or, with `room`, of bytes with some
    /// room behind them and no more alignment than asked for.
    fn place(&self, size: usize, align: usize, room: bool) -> usize {
        let mut address = (self.end() - size - if room { 96 } else { 0 }) & !(align - 1);
        if room && address.is_multiple_of(2 * align) {
            address -= align;
        }
        assert!(address >= self.start as usize + 64, "a larger value than there is memory for");
        address
    }
}

/// Bytes at an address, if there is memory.
fn read(address: u64, bytes: usize) -> Option<Vec<u8>> {
    thread_local!(static PIPE: [libc::c_int; 2] = {
        let mut ends = [0; 2];
        // SAFETY: writes two numbers.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        ends
    });
    let [out, into] = PIPE.with(|ends| *ends);
    let mut found = vec![0; bytes];
    for (i, piece) in found.chunks_mut(PAGE_BYTES).enumerate() {
        let from = address.checked_add((i * PAGE_BYTES) as u64)? as *const libc::c_void;
        // SAFETY: the kernel reads the memory, and says EFAULT if there is none.
        let written = unsafe { libc::write(into, from, piece.len()) };
        let written = usize::try_from(written).ok()?;
        // SAFETY: into memory of our own, what is in the pipe.
        let taken = unsafe { libc::read(out, piece.as_mut_ptr().cast(), written) };
        assert_eq!(taken as usize, written, "a page fits into a pipe");
        if written != piece.len() {
            return None;
        }
    }
    Some(found)
}

/// `movabs [address], rax`: dynasm has no name for it. Intel SDM volume 2, MOV, opcode A3.
fn store_rax(ops: &mut Ops, address: *mut u64) {
    ops.extend([0x48, 0xa3]);
    ops.extend((address as u64).to_le_bytes());
}

/// Loads or stores the vector registers at rax + `at`, whole.
fn move_vectors(ops: &mut Ops, at: i32, store: bool) {
    for x in Xmm::ALL {
        let n = x.index();
        let at = at + offset_of!(State, vectors) as i32 + i32::from(n) * 64;
        match (width(), store) {
            (Width::Xmm, true) => dynasm!(ops; .arch x64; movups [rax + at], Rx(x)),
            (Width::Xmm, false) => dynasm!(ops; .arch x64; movups Rx(x), [rax + at]),
            (Width::Ymm, true) => dynasm!(ops; .arch x64; vmovups [rax + at], Ry(x)),
            (Width::Ymm, false) => dynasm!(ops; .arch x64; vmovups Ry(x), [rax + at]),
            (Width::Zmm, _) => {
                // vmovdqu64, which dynasm does not have: EVEX.512.F3.0F.W1 6F and 7F /r, with a
                // disp32, which is not scaled. Intel SDM volume 2, section 2.7.
                let high = if n < 8 { 0xf1 } else { 0x71 };
                ops.extend([0x62, high, 0xfe, 0x48, if store { 0x7f } else { 0x6f }]);
                ops.extend([0x80 | (n & 7) << 3]);
                ops.extend(at.to_le_bytes());
            }
        }
    }
}

/// Stores every register but rax and the flags to the state at rax + `at`.
fn store_gprs(ops: &mut Ops, at: i32) {
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RAX) {
        let at = at + offset_of!(State, gprs) as i32 + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov [rax + at], Rq(register));
    }
}

/// Stores the rest. rsp leads to memory that may be written.
fn store_rest(ops: &mut Ops, at: i32) {
    dynasm!(ops
        ; .arch x64
        ; pushfq
        ; pop QWORD [rax + at + offset_of!(State, flags) as i32]
        ; cld
        ; fxsave64 [rax + at + offset_of!(State, fx) as i32]
    );
    move_vectors(ops, at, true);
}

/// Loads every register but rsp and rax from the state at rax + `at`. rsp leads to memory that
/// may be written.
fn load_all(ops: &mut Ops, at: i32) {
    dynasm!(ops
        ; .arch x64
        ; fxrstor64 [rax + at + offset_of!(State, fx) as i32]
        ; push QWORD [rax + at + offset_of!(State, flags) as i32]
        ; popfq
    );
    move_vectors(ops, at, false);
    for register in Gpr::ALL.into_iter().filter(|&r| r != Gpr::RSP && r != Gpr::RAX) {
        let at = at + offset_of!(State, gprs) as i32 + i32::from(register.index()) * 8;
        dynasm!(ops; .arch x64; mov Rq(register), [rax + at]);
    }
}

fn gpr_off(register: Gpr) -> i32 {
    (offset_of!(State, gprs) + 8 * usize::from(register.index())) as i32
}

#[repr(C, align(64))]
struct Record {
    before: State,
    after: State,
    native_fx: State,
    native_rbp: u64,
    native_rsp: u64,
    call_rsp: u64,
    target: u64,
    /// Where the target returns to.
    back: u64,
}

/// Where the memory of one value is.
struct Placed {
    index: ValueIndex,
    island: usize,
    address: usize,
    size: usize,
}

/// See the head of this file.
pub struct Caller {
    probe: Code,
    resume: Code,
    record: *mut Record,
    stack: Island,
    memory: Vec<Island>,
}

/// A call that a [`Caller`] shall make.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub entry: &'a Assignment,
    pub args: &'a [Vec<u8>],
    /// The address of the goroutine.
    pub g: u64,
    /// Both sides are of one convention, which nobody translates: each extends what the other
    /// relies on.
    pub alike: bool,
    /// A word in the closure register, if it is to reach the callee.
    pub closure: Option<u64>,
    /// The address that is called.
    pub target: usize,
    /// Code that runs before anything is looked at after the return, and jumps to
    /// [`Caller::resume`].
    pub back: Option<usize>,
    /// Whether there are other bytes, instead of a guard page, behind the area and the memory of
    /// values. If it is not said, chance decides for each of them.
    pub room: Option<bool>,
}

/// What a caller finds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Returned {
    /// The results, with zeros in padding.
    pub values: Vec<Vec<u8>>,
    /// What is not as the convention says.
    pub wrong: Vec<Change>,
}

impl Caller {
    pub fn new(jit: &Jit) -> Self {
        let mut rng = Xorshift::new(1);
        let record: *mut Record = Box::leak(Box::new(Record {
            before: State::garbage(&mut rng),
            after: State::garbage(&mut rng),
            native_fx: State::garbage(&mut rng),
            native_rbp: 0,
            native_rsp: 0,
            call_rsp: 0,
            target: 0,
            back: 0,
        }));
        let at = |offset: usize| offset as i32;
        let (before, after) = (at(offset_of!(Record, before)), at(offset_of!(Record, after)));
        let native_fx = at(offset_of!(Record, native_fx) + offset_of!(State, fx));
        let native_rbp = at(offset_of!(Record, native_rbp));
        let native_rsp = at(offset_of!(Record, native_rsp));
        // SAFETY: only jumped to, from below the frame of the probe, which it drops; nobody walks
        // in between.
        let resume = unsafe {
            jit.install("carry: resume", FrameClass::Leaf, |ops| {
                let rax = (&raw mut (*record).after.gprs).cast();
                store_rax(ops, rax);
                dynasm!(ops; .arch x64; mov rax, QWORD record as i64);
                store_gprs(ops, after);
                // rsp may be anything.
                dynasm!(ops; .arch x64; mov rsp, [rax + native_rsp]);
                store_rest(ops, after);
                if width() != Width::Xmm {
                    dynasm!(ops; .arch x64; vzeroupper);
                }
                dynasm!(ops
                    ; .arch x64
                    ; fxrstor64 [rax + native_fx]
                    ; mov rbp, [rax + native_rbp]
                    ; mov rbx, [rbp - 8]
                    ; mov r12, [rbp - 16]
                    ; mov r13, [rbp - 24]
                    ; mov r14, [rbp - 32]
                    ; mov r15, [rbp - 40]
                    ; leave
                    ; ret
                );
            })
        };
        let resume = resume.expect("it installs");
        // SAFETY: the frame contract holds but while the registers are loaded, when nobody walks; it is
        // a System V function without arguments that preserves what one must.
        let probe = unsafe {
            jit.install("carry: caller", FrameClass::Saved, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; push rbx
                    ; push r12
                    ; push r13
                    ; push r14
                    ; push r15
                    ; mov rax, QWORD record as i64
                    ; fxsave64 [rax + native_fx]
                    ; mov [rax + native_rbp], rbp
                    ; mov [rax + native_rsp], rsp
                    // From here on the other stack: the return address, where a call has it, and
                    // below it what the last instruction takes.
                    ; mov rsp, [rax + at(offset_of!(Record, call_rsp))]
                    ; push QWORD [rax + at(offset_of!(Record, back))]
                    ; push QWORD [rax + at(offset_of!(Record, target))]
                );
                load_all(ops, before);
                dynasm!(ops
                    ; .arch x64
                    ; mov rax, [rax + before + gpr_off(Gpr::RAX)]
                    ; ret
                );
            })
        };
        Self {
            probe: probe.expect("it installs"),
            resume,
            record,
            stack: Island::map(1, STACK_BYTES).pop().expect("one"),
            memory: Island::map(ISLANDS, PAGE_BYTES),
        }
    }

    /// Where [`Call::back`] has to jump to in the end.
    pub fn resume(&self) -> usize {
        self.resume.address()
    }

    fn record(&mut self) -> &mut Record {
        // SAFETY: leaked in `new`, and the probe does not run while it is borrowed.
        unsafe { &mut *self.record }
    }

    /// What memory holds that nobody wrote.
    pub const POISON: u8 = 0xdb;

    /// Memory for a value.
    fn place(
        &mut self,
        placed: &mut Vec<Placed>,
        index: ValueIndex,
        (size, align): (u32, usize),
        room: bool,
        rng: &mut Xorshift,
    ) -> usize {
        let (island, size) = (placed.len(), size as usize);
        let memory = &mut self.memory[island];
        for byte in memory.bytes() {
            *byte = (rng.bits() >> 40) as u8;
        }
        let address = memory.place(size, align, room);
        placed.push(Placed { index, island, address, size });
        address
    }

    /// Somebody else calls next: a function that was compiled, with the modes of a thread that starts.
    pub fn stands_aside(&mut self) {
        self.record().back = 0;
        self.record().before.set_modes(NATIVE_MXCSR, NATIVE_X87_CONTROL);
    }

    /// Calls, and looks at everything afterwards.
    ///
    /// # Safety
    /// 1. The target is a function of the entry's convention and signature, and may be called with
    ///    these values.
    /// 2. `back` does what it says.
    pub unsafe fn call(&mut self, call: &Call<'_>, rng: &mut Xorshift) -> Returned {
        let Call { entry, args, g, alike, closure, target, back, room } = *call;
        let room = |rng: &mut Xorshift| room.unwrap_or_else(|| rng.below(2) == 0);
        let spec = convention(entry).spec();
        let mut state = State::garbage(rng);
        if rng.below(2) == 0 {
            state.set_modes(OTHER_MXCSR, OTHER_X87_CONTROL);
        }
        for &(register, what) in spec.pinned {
            match (register, what) {
                (Reg::Gpr(register), Pinned::Goroutine) => state.set_gpr(register, g),
                (Reg::Xmm(register), Pinned::Zero) => state.vector_mut(register)[..16].fill(0),
                other => panic!("a pinned register that this test does not know: {other:?}"),
            }
        }

        // Everything that a value can be in, or its address.
        let total = entry.total_bytes() as usize;
        let area = (0..total).map(|_| (rng.bits() >> 40) as u8).collect();
        let mut frame = Frame { state, area, x87: Vec::new() };
        let mut placed = Vec::new();
        for (i, (value, bytes)) in entry.params().iter().zip(args).enumerate() {
            let index = ValueIndex::Param(i);
            if let Passing::Reference(place) = *value.passing() {
                let shape = (value.layout().size_bytes, copy_align(entry, value.layout()));
                let room = room(rng);
                let address = self.place(&mut placed, index, shape, room, rng);
                let memory = &mut self.memory[placed.len() - 1];
                let at = address - memory.start as usize;
                let image = image(value, bytes, rng);
                memory.bytes()[at..][..image.len()].copy_from_slice(&image);
                frame.put_word(place, address as u64);
            } else {
                let extend = entry.narrow() == Narrow::ExtendedTo32
                    && matches!(value.passing(), Passing::Parts(_))
                    || alike && entry.narrow() != Narrow::Garbage;
                frame.put(value, bytes, extend, rng);
            }
        }
        let mut result_address = None;
        if let (Some(pointer), [value, ..]) = (entry.result_pointer(), entry.results()) {
            let Layout { size_bytes, align_bytes, .. } = value.layout();
            let (shape, index) = ((size_bytes, align_bytes as usize), ValueIndex::Result(0));
            let room = room(rng);
            let address = self.place(&mut placed, index, shape, room, rng);
            frame.put_word(pointer.place, address as u64);
            result_address = Some(address);
        }
        if let Some(word) = closure {
            frame.state.set_gpr(closure_register(convention(entry)), word);
        }
        if let Some((Reg::Gpr(register), count)) = entry.vector_count() {
            frame.state.set_gpr(register, rng.bits() << 8 | u64::from(count));
        }

        // The stack: poison below the area, and a guard page or other bytes above it.
        let align = entry.area_align_bytes() as usize;
        let base = self.stack.place(total, align, room(rng));
        let base_off = base - self.stack.start as usize;
        let stack = self.stack.bytes();
        stack[base_off - POISONED_BYTES..base_off].fill(Self::POISON);
        stack[base_off..][..total].copy_from_slice(&frame.area);
        for byte in &mut stack[base_off + total..] {
            *byte = (rng.bits() >> 40) as u8;
        }
        let above = stack[base_off + total..].to_vec();
        let mut beside: Vec<Vec<u8>> =
            placed.iter().map(|p| self.memory[p.island].bytes().to_vec()).collect();
        frame.state.set_gpr(Gpr::RSP, base as u64);

        let resume = self.resume() as u64;
        let record = self.record();
        record.before = frame.state;
        record.call_rsp = base as u64;
        record.target = target as u64;
        record.back = back.map_or(resume, |back| back as u64);
        // SAFETY: an extern "C" function without arguments, by `new`; the rest is the caller's
        // promise.
        let probe: extern "C-unwind" fn() =
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(self.probe.address()) };
        probe();

        let (before, after) = (self.record().before.clone(), self.record().after.clone());
        let on_x87 = entry.results().iter().flat_map(Value::parts);
        let on_x87 = on_x87.filter(|part| matches!(part.place, Place::X87(_))).count();
        let mut wrong = modes(&before, &after, on_x87);
        for register in spec.preserved.with(Gpr::RSP).iter() {
            match register {
                Reg::Gpr(r) if before.gpr(r) != after.gpr(r) => wrong.push(Change::Gpr(r)),
                Reg::Xmm(r) if before.vector(r)[..16] != after.vector(r)[..16] => {
                    wrong.push(Change::Xmm(r));
                }
                _ => {}
            }
        }
        wrong.extend(unpinned(convention(entry), &after, g));
        let stack = self.stack.bytes();
        let area = stack[base_off..][..total].to_vec();
        let changed = stack[base_off + total..].iter().zip(&above).position(|(a, b)| a != b);
        wrong.extend(changed.map(|at| Change::Above(total + at)));
        for (placed, beside) in placed.iter().zip(&mut beside) {
            let memory = &mut self.memory[placed.island];
            let at = placed.address - memory.start as usize;
            // The value itself is the callee's: a copy of an argument, or the result.
            beside[at..][..placed.size].copy_from_slice(&memory.bytes()[at..][..placed.size]);
            let differs = memory.bytes().iter().zip(&*beside).position(|(a, b)| a != b);
            wrong.extend(differs.map(|i| Change::Beside(placed.index, i as isize - at as isize)));
        }

        let frame = Frame { x87: after.x87().unwrap_or_default(), state: after, area };
        let mut values = Vec::new();
        for (i, value) in entry.results().iter().enumerate() {
            let index = ValueIndex::Result(i);
            values.push(match (result_address, entry.result_pointer()) {
                (Some(address), Some(pointer)) => {
                    if let Some(Reg::Gpr(returned)) = pointer.returned
                        && frame.state.gpr(returned) != address as u64
                    {
                        wrong.push(Change::Address(index));
                    }
                    let memory = &mut self.memory[placed.len() - 1];
                    let at = address - memory.start as usize;
                    masked(value, &memory.bytes()[at..][..value.layout().size_bytes as usize])
                }
                _ => frame.take(entry, value, index, None, &mut wrong),
            });
        }
        Returned { values, wrong }
    }
}

#[repr(C, align(64))]
struct Visit {
    entry: State,
    exit: State,
    stack_top: u64,
    mxcsr: u32,
    _pad: u32,
    side: *mut CalleeSide,
}

/// What a [`Callee`] shall find and return.
#[derive(Clone)]
pub struct Expected<'a> {
    pub target: &'a Assignment,
    /// The values of all parameters, the bound one too.
    pub args: &'a [Vec<u8>],
    pub results: &'a [Vec<u8>],
    /// The word in the closure register.
    pub closure: Option<u64>,
    pub g: u64,
    /// As in [`Call`].
    pub alike: bool,
    /// Decides the garbage.
    pub seed: u64,
}

struct CalleeSide {
    target: Assignment,
    args: Vec<Vec<u8>>,
    results: Vec<Vec<u8>>,
    closure: Option<u64>,
    g: u64,
    alike: bool,
    rng: Xorshift,
    /// The caller's, for its modes.
    caller: *const Record,
    hits: u64,
    arrived: Vec<Vec<u8>>,
    wrong: Vec<Change>,
}

/// What a callee found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Arrived {
    /// The arguments, with zeros in padding.
    pub values: Vec<Vec<u8>>,
    /// What is not as the convention says.
    pub wrong: Vec<Change>,
}

/// See the head of this file.
pub struct Callee {
    code: Code,
    visit: *mut Visit,
    _stack: Island,
}

impl Callee {
    /// A function that is called by `caller`, directly or not.
    pub fn new(jit: &Jit, caller: &Caller) -> Self {
        let mut rng = Xorshift::new(2);
        let stack = Island::map(1, 64 * PAGE_BYTES).pop().expect("one");
        let nothing = "fn()".parse().expect("a signature");
        let side = Box::leak(Box::new(CalleeSide {
            target: Convention::SystemV.assign(&nothing).expect("no values"),
            args: Vec::new(),
            results: Vec::new(),
            closure: None,
            g: 0,
            alike: false,
            rng: Xorshift::new(0),
            caller: caller.record,
            hits: 0,
            arrived: Vec::new(),
            wrong: Vec::new(),
        }));
        let visit: *mut Visit = Box::leak(Box::new(Visit {
            entry: State::garbage(&mut rng),
            exit: State::garbage(&mut rng),
            stack_top: stack.end() as u64 - 64,
            mxcsr: NATIVE_MXCSR,
            _pad: 0,
            side,
        }));
        let at = |offset: usize| offset as i32;
        let (entry, exit) = (at(offset_of!(Visit, entry)), at(offset_of!(Visit, exit)));
        // SAFETY: it calls one function that never walks or panics, from a stack of its own.
        let code = unsafe {
            jit.install("carry: callee", FrameClass::Leaf, |ops| {
                store_rax(ops, (&raw mut (*visit).entry.gprs).cast());
                dynasm!(ops; .arch x64; mov rax, QWORD visit as i64);
                store_gprs(ops, entry);
                // What is below rsp is not this function's to write, so that nothing is lost that
                // a stub keeps there by mistake; all else happens on the other stack.
                dynasm!(ops; .arch x64; mov rsp, [rax + at(offset_of!(Visit, stack_top))]);
                store_rest(ops, entry);
                if width() != Width::Xmm {
                    dynasm!(ops; .arch x64; vzeroupper);
                }
                dynasm!(ops
                    ; .arch x64
                    ; fninit
                    ; ldmxcsr [rax + at(offset_of!(Visit, mxcsr))]
                    ; mov rdi, rax
                    ; mov rax, QWORD on_entry as *const () as i64
                    // A call that a leaf's check does not see: this one has another stack for it.
                    ; lea rcx, [>after]
                    ; push rcx
                    ; jmp rax
                    ; after:
                    ; mov rax, QWORD visit as i64
                );
                load_all(ops, exit);
                dynasm!(ops
                    ; .arch x64
                    ; mov rsp, [rax + exit + gpr_off(Gpr::RSP)]
                    ; mov rax, [rax + exit + gpr_off(Gpr::RAX)]
                    ; ret
                );
            })
        };
        Self { code: code.expect("it installs"), visit, _stack: stack }
    }

    pub fn address(&self) -> usize {
        self.code.address()
    }

    fn side(&mut self) -> &mut CalleeSide {
        // SAFETY: leaked in `new`; the code does not run while it is borrowed.
        unsafe { &mut *(*self.visit).side }
    }

    /// Prepares one visit.
    pub fn expect(&mut self, expected: &Expected<'_>) {
        let side = self.side();
        side.target = expected.target.clone();
        side.args = expected.args.to_vec();
        side.results = expected.results.to_vec();
        side.closure = expected.closure;
        side.g = expected.g;
        side.alike = expected.alike;
        side.rng = Xorshift::new(expected.seed);
        side.hits = 0;
        side.arrived = Vec::new();
        side.wrong = Vec::new();
    }

    /// What it found.
    pub fn arrived(&mut self) -> Arrived {
        let side = self.side();
        let mut wrong = std::mem::take(&mut side.wrong);
        if side.hits != 1 {
            wrong.push(Change::Hits(side.hits));
        }
        Arrived { values: std::mem::take(&mut side.arrived), wrong }
    }
}

/// Runs on the callee's own stack, in the middle of a call.
extern "C" fn on_entry(visit: *mut Visit) {
    // SAFETY: `Callee::new` made both; the call that is under way is the only one.
    let (visit, side) = unsafe { (&mut *visit, &mut *(*visit).side) };
    // SAFETY: the caller's record lives as long.
    let (caller, back) = unsafe { (&(*side.caller).before, (*side.caller).back) };
    side.hits += 1;
    let target = side.target.clone();
    let conv = convention(&target);
    let spec = conv.spec();
    let total = target.total_bytes() as usize;
    let found = &visit.entry;
    let base = found.gpr(Gpr::RSP) + u64::from(spec.base_off_bytes);

    let mut wrong = modes(caller, found, 0);
    wrong.extend(unpinned(conv, found, side.g));
    let aligned = base.is_multiple_of(target.area_align_bytes().into());
    if !aligned {
        wrong.push(Change::Alignment);
    }
    // The frame contract: a stub that calls has pushed rbp right below its return address. Where its
    // caller is not ours nobody knows what those are.
    let rbp = found.gpr(Gpr::RBP);
    let frame = [caller.gpr(Gpr::RBP), back].map(u64::to_le_bytes).concat();
    if back != 0 && rbp != caller.gpr(Gpr::RBP) && read(rbp, 16) != Some(frame) {
        wrong.push(Change::FramePointer);
    }
    if side.closure.is_some_and(|word| found.gpr(closure_register(conv)) != word) {
        wrong.push(Change::Closure);
    }
    if let Some((Reg::Gpr(register), count)) = target.vector_count()
        && found.gpr(register) as u8 != count
    {
        wrong.push(Change::VectorCount);
    }

    // The arguments. The stack exists: it was returned to, or nothing works.
    let area = read(base, total).unwrap_or_else(|| vec![0; total]);
    let frame = Frame { state: found.clone(), area, x87: Vec::new() };
    let mut copies = Vec::new();
    for (i, value) in target.params().iter().enumerate() {
        let index = ValueIndex::Param(i);
        let size = value.layout().size_bytes as usize;
        let bytes = if let Passing::Reference(place) = *value.passing() {
            let address = frame.word(place);
            let memory = read(address, size);
            if !address.is_multiple_of(copy_align(&target, value.layout()) as u64)
                || memory.is_none()
            {
                wrong.push(Change::Address(index));
            } else {
                copies.push((address, size));
            }
            masked(value, &memory.unwrap_or_else(|| vec![0; size]))
        } else {
            frame.take(&target, value, index, Some(Caller::POISON), &mut wrong)
        };
        if side.args.get(i) != Some(&bytes) {
            wrong.push(Change::Value(index));
        }
        side.arrived.push(bytes);
    }
    let mut result = None;
    if let (Some(pointer), [value, ..]) = (target.result_pointer(), target.results()) {
        let size = value.layout().size_bytes as usize;
        let address = frame.word(pointer.place);
        let there = read(address, size).is_some();
        if !address.is_multiple_of(value.layout().align_bytes.into()) || !there {
            wrong.push(Change::Address(ValueIndex::Result(0)));
        } else {
            result = Some((address, pointer.returned));
        }
    }

    // Everything is destroyed that is the callee's.
    let rng = &mut side.rng;
    let mut state = State::garbage(rng);
    let pinned: RegSet = spec.pinned.iter().map(|(register, _)| *register).collect();
    for register in spec.preserved.union(pinned).with(Gpr::RSP).iter() {
        match register {
            Reg::Gpr(r) => state.set_gpr(r, found.gpr(r)),
            Reg::Xmm(r) => state.vector_mut(r)[..16].copy_from_slice(&found.vector(r)[..16]),
            other => panic!("not a register of this machine: {other:?}"),
        }
    }
    state.set_modes(found.mxcsr() | !MXCSR_CONTROL, found.x87_control());
    let area = (0..total).map(|_| (rng.bits() >> 40) as u8).collect();
    let mut frame = Frame { state, area, x87: Vec::new() };
    for (address, size) in copies {
        for i in 0..size {
            // SAFETY: the memory was there, and the copy is the callee's.
            unsafe { ((address as usize + i) as *mut u8).write((rng.bits() >> 40) as u8) };
        }
    }

    for (value, bytes) in target.results().iter().zip(&side.results) {
        match (result, value.passing()) {
            (_, Passing::Nothing) => {}
            (Some((address, returned)), _) => {
                let image = image(value, bytes, rng);
                // SAFETY: the memory was there.
                unsafe {
                    ptr::copy_nonoverlapping(image.as_ptr(), address as *mut u8, image.len());
                }
                if let Some(Reg::Gpr(returned)) = returned {
                    frame.state.set_gpr(returned, address);
                }
            }
            (None, Passing::Reference(_)) => {}
            _ => {
                let extend = side.alike && target.narrow() != Narrow::Garbage;
                frame.put(value, bytes, extend, rng);
            }
        }
    }
    if !frame.x87.is_empty() {
        let numbers = std::mem::take(&mut frame.x87);
        frame.state.set_x87(&numbers);
    }
    // SAFETY: the area of the call is the callee's.
    unsafe { ptr::copy_nonoverlapping(frame.area.as_ptr(), base as *mut u8, total) };
    visit.exit = frame.state;
    side.wrong = wrong;
}

/// The g of the goroutine that runs: what ABIInternal code finds in r14.
pub fn current_g(jit: &Jit) -> u64 {
    // SAFETY: an ABIInternal leaf that changes rax only.
    let code = unsafe {
        jit.install("r14", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; mov rax, r14; ret))
    };
    let code = code.expect("it installs");
    // SAFETY: of that convention and type.
    let entry = unsafe { code.enter::<fn() -> *const u8>(Convention::GoAbiInternal) };
    // SAFETY: on a goroutine, by whoever calls this.
    let g = unsafe { entry.expect("entry").call() };
    assert!(!g.is_null());
    g as u64
}

thread_local! {
    /// What is written when the thread faults.
    static CASE: Cell<(*const u8, usize)> = const { Cell::new((ptr::null(), 0)) };
}

/// Runs `f`; if it faults, what is written says which case it was.
pub fn with_case<R>(case: &str, f: impl FnOnce() -> R) -> R {
    CASE.set((case.as_ptr(), case.len()));
    let result = f();
    CASE.set((ptr::null(), 0));
    result
}

/// A fault in a call writes what [`with_case`] was told, and ends the process. Faults elsewhere
/// go where they went before.
pub fn report_faults() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            // SAFETY: the handler reads a thread-local without a destructor and makes system calls;
            // every thread that Rust or an M started has an alternate stack.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
        }
    });
}

extern "C" fn on_fault(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let write = |bytes: &[u8]| {
        // SAFETY: bytes that are there. Nothing can be done if it fails.
        unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) };
    };
    let hex = |n: u64| {
        let digit = |i: usize| b"0123456789abcdef"[(n >> (60 - 4 * i) & 15) as usize];
        let digits: [u8; 16] = std::array::from_fn(digit);
        write(&digits);
    };
    // SAFETY: the kernel passes valid structures.
    let (address, registers) = unsafe {
        ((*info).si_addr() as u64, &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs)
    };
    write(b"\nfault at address ");
    hex(address);
    for (name, n) in [(&b", rip "[..], libc::REG_RIP), (b", rsp ", libc::REG_RSP)] {
        write(name);
        hex(registers[n as usize] as u64);
    }
    let (case, bytes) = CASE.get();
    if !case.is_null() {
        write(b" in this case:\n");
        // SAFETY: alive while `with_case` runs.
        write(unsafe { std::slice::from_raw_parts(case, bytes) });
    }
    write(b"\n");
    // SAFETY: the instruction faults again, with nobody in the way. SA_RESETHAND does the same, but
    // not in every sandbox.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
