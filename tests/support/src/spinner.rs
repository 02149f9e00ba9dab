//! JIT code that loads the whole machine state, spins with all of it live, and then stores the
//! state that it finds.
//!
//! The spin is one instruction: `loop` decrements rcx and changes no flag. All of the code is
//! preemptible, including the loads and stores. It is assembled by the Rust compiler, since dynasm
//! does not have AVX-512. Its bytes can be copied, since they contain no address.

#![allow(unsafe_code, reason = "assembly")]

use std::arch::global_asm;
use std::fmt;

use dynasmrt::{DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, Code, FrameClass, Jit, Ops};
use footbridge::runtime::{Entry, VectorState};

/// The registers in the order of `State::gpr`.
const GPRS: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const RCX: usize = 2;
const RBP: usize = 6;
const RSP: usize = 7;

/// Bytes from rsp to rbp in the spinner.
const FRAME_BYTES: u64 = 96;

/// CF, PF, AF, ZF, SF, DF, OF, AC, ID: the flags that user code can set.
pub const FLAGS: u64 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x400 | 0x800 | 0x4_0000 | 0x20_0000;

/// A machine state, to load or as stored. The assembly below contains the offsets as numbers.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct State {
    /// FXSAVE image: x87, MXCSR, xmm0..15.
    fx: [u8; 512],
    gpr: [u64; 16],
    rflags: u64,
    _pad: [u64; 7],
    red_zone: [u64; 16],
    zmm: [[u64; 8]; 32],
    k: [u64; 8],
}

const _: () = assert!(std::mem::offset_of!(State, gpr) == 512);
const _: () = assert!(std::mem::offset_of!(State, rflags) == 640);
const _: () = assert!(std::mem::offset_of!(State, red_zone) == 704);
const _: () = assert!(std::mem::offset_of!(State, zmm) == 832);
const _: () = assert!(std::mem::offset_of!(State, k) == 2880);

macro_rules! spinner {
    ($name:literal, $level:literal) => {
        global_asm!(
            concat!(".set spinner_level, ", $level),
            concat!(".globl spinner_", $name, "_load, spinner_", $name, "_store"),
            concat!(".globl spinner_", $name, "_end"),
            concat!("spinner_", $name, "_load:"),
            // FrameClass::Saved. rdi: the state to load, rsi: where to store the state.
            "push rbp",
            "mov rbp, rsp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "sub rsp, 56",
            "mov [rsp + 16], rsi",
            "stmxcsr [rsp + 24]",
            "fnstcw [rsp + 28]",
            "fxrstor64 [rdi]",
            ".if spinner_level == 1",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "vmovups ymm\\n, [rdi + 832 + 64*\\n]",
            ".endr",
            ".endif",
            ".if spinner_level == 2",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovups zmm\\n, [rdi + 832 + 64*\\n]",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            "kmovq k\\n, [rdi + 2880 + 8*\\n]",
            ".endr",
            ".endif",
            "push qword ptr [rdi + 640]",
            "popfq",
            // From here on no instruction changes a flag.
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rdi + 704 + 8*\\n]",
            "mov [rsp - 128 + 8*\\n], rax",
            ".endr",
            "mov rax, [rdi + 512]",
            "mov rbx, [rdi + 520]",
            "mov rcx, [rdi + 528]",
            "mov rdx, [rdi + 536]",
            "mov rsi, [rdi + 544]",
            "mov r8, [rdi + 576]",
            "mov r9, [rdi + 584]",
            "mov r10, [rdi + 592]",
            "mov r11, [rdi + 600]",
            "mov r12, [rdi + 608]",
            "mov r13, [rdi + 616]",
            "mov r14, [rdi + 624]",
            "mov r15, [rdi + 632]",
            "mov rdi, [rdi + 552]",
            concat!("spinner_", $name, "_store:"),
            "mov [rsp + 32], rdi",
            "mov [rsp + 40], rax",
            "mov rdi, [rsp + 16]",
            "mov [rdi + 520], rbx",
            "mov [rdi + 528], rcx",
            "mov [rdi + 536], rdx",
            "mov [rdi + 544], rsi",
            "mov [rdi + 560], rbp",
            "mov [rdi + 568], rsp",
            "mov [rdi + 576], r8",
            "mov [rdi + 584], r9",
            "mov [rdi + 592], r10",
            "mov [rdi + 600], r11",
            "mov [rdi + 608], r12",
            "mov [rdi + 616], r13",
            "mov [rdi + 624], r14",
            "mov [rdi + 632], r15",
            "mov rax, [rsp + 40]",
            "mov [rdi + 512], rax",
            "mov rax, [rsp + 32]",
            "mov [rdi + 552], rax",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "mov rax, [rsp - 128 + 8*\\n]",
            "mov [rdi + 704 + 8*\\n], rax",
            ".endr",
            "pushfq",
            "pop qword ptr [rdi + 640]",
            "fxsave64 [rdi]",
            ".if spinner_level == 1",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
            "vmovups [rdi + 832 + 64*\\n], ymm\\n",
            ".endr",
            ".endif",
            ".if spinner_level == 2",
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovups [rdi + 832 + 64*\\n], zmm\\n",
            ".endr",
            ".irp n, 0,1,2,3,4,5,6,7",
            "kmovq [rdi + 2880 + 8*\\n], k\\n",
            ".endr",
            ".endif",
            // Restore what the convention requires at the return: flags, FP control state, and
            // upper halves.
            "push 2",
            "popfq",
            "fninit",
            "fldcw [rsp + 28]",
            "ldmxcsr [rsp + 24]",
            ".if spinner_level > 0",
            "vzeroupper",
            ".endif",
            "add rsp, 56",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "ret",
            concat!("spinner_", $name, "_end:"),
        );
    };
}

spinner!("sse", 0);
spinner!("avx", 1);
spinner!("avx512", 2);

unsafe extern "C" {
    static spinner_sse_load: u8;
    static spinner_sse_store: u8;
    static spinner_sse_end: u8;
    static spinner_avx_load: u8;
    static spinner_avx_store: u8;
    static spinner_avx_end: u8;
    static spinner_avx512_load: u8;
    static spinner_avx512_store: u8;
    static spinner_avx512_end: u8;
}

/// The vector registers that a spinner uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Sse,
    Avx,
    Avx512,
}

impl Level {
    /// The levels that this CPU has.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Sse];
        if std::arch::is_x86_feature_detected!("avx") {
            all.push(Self::Avx);
        }
        if std::arch::is_x86_feature_detected!("avx512bw") {
            all.push(Self::Avx512);
        }
        all
    }

    pub fn largest() -> Self {
        *Self::all().last().expect("SSE is everywhere")
    }

    /// The setting that saves exactly these registers.
    pub fn vector_state(self) -> VectorState {
        match self {
            Self::Sse => VectorState::Sse,
            Self::Avx => VectorState::Avx,
            Self::Avx512 => VectorState::Avx512,
        }
    }

    /// The code before the spin and the code after it.
    fn halves(self) -> [&'static [u8]; 2] {
        // SAFETY: labels of one section, in this order.
        unsafe {
            let [load, store, end] = match self {
                Self::Sse => [
                    &raw const spinner_sse_load,
                    &raw const spinner_sse_store,
                    &raw const spinner_sse_end,
                ],
                Self::Avx => [
                    &raw const spinner_avx_load,
                    &raw const spinner_avx_store,
                    &raw const spinner_avx_end,
                ],
                Self::Avx512 => [
                    &raw const spinner_avx512_load,
                    &raw const spinner_avx512_store,
                    &raw const spinner_avx512_end,
                ],
            };
            let bytes = |from: *const u8, to: *const u8| {
                std::slice::from_raw_parts(from, to.offset_from(from) as usize)
            };
            [bytes(load, store), bytes(store, end)]
        }
    }
}

/// Where a spinner can be preempted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preemptible {
    /// At every instruction, by a signal.
    Anywhere,
    /// At the poll in its loop only.
    AtPolls,
    Never,
}

/// Spinning code with its entry.
pub struct Spinner {
    entry: Entry<fn(*const State, *mut State)>,
    _code: Code,
    level: Level,
    preemptible: Preemptible,
}

impl Spinner {
    pub fn new(level: Level, preemptible: Preemptible) -> Self {
        let jit = Jit::new().expect("code memory");
        let [load, store] = level.halves();
        let name = format!("spin {level:?}");
        let mut polls = jit.polls(Convention::SystemV).expect("this machine's");
        let mut body = |ops: &mut Ops| {
            ops.extend(load);
            dynasm!(ops; .arch x64; again:);
            if preemptible == Preemptible::AtPolls {
                polls.poll(ops);
            }
            dynasm!(ops; .arch x64; loop <again);
            ops.extend(store);
            polls.finish(ops);
        };
        // SAFETY: a saved frame; System V; the code uses nothing that belongs to the thread.
        let code = unsafe {
            match preemptible {
                Preemptible::Anywhere => jit.install(&name, FrameClass::Saved, |ops| {
                    body(ops);
                    Annotations::preemptible()
                }),
                Preemptible::AtPolls | Preemptible::Never => {
                    jit.install(&name, FrameClass::Saved, body)
                }
            }
        };
        let code = code.expect("it installs");
        // SAFETY: System V, of this type.
        let entry = unsafe { code.enter(Convention::SystemV) }.expect("an entry");
        Self { entry, _code: code, level, preemptible }
    }

    /// Spins for `iterations` with a machine state that follows from `seed`. Returns the parts of
    /// the state that have changed.
    pub fn spin(&self, iterations: u64, seed: u64) -> Vec<Change> {
        let before = Box::new(State::random(iterations, seed));
        let mut after = Box::new(State::random(iterations, !seed));
        // SAFETY: on a goroutine; both outlive the call.
        unsafe { self.entry.call(&raw const *before, &raw mut *after) };
        before.changes(&after, self.level, self.preemptible != Preemptible::AtPolls)
    }
}

/// A part of the machine state that was not preserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Change {
    Gpr(&'static str),
    Rflags(u64),
    RedZone(usize),
    X87,
    Mxcsr,
    Vector(usize),
    Mask(usize),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A generator of random numbers: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}

impl State {
    fn random(iterations: u64, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut state = Self {
            fx: [0; 512],
            gpr: std::array::from_fn(|_| random.next_u64()),
            rflags: random.next_u64() & FLAGS | 2,
            _pad: [0; 7],
            red_zone: std::array::from_fn(|_| random.next_u64()),
            zmm: std::array::from_fn(|_| std::array::from_fn(|_| random.next_u64())),
            k: std::array::from_fn(|_| random.next_u64()),
        };
        state.gpr[RCX] = iterations;
        // FXSAVE image: Intel SDM volume 1, table 10-2. All exceptions are masked; bit 6 of the
        // control word is always set.
        let mut put =
            |at: usize, bytes: &[u8]| state.fx[at..at + bytes.len()].copy_from_slice(bytes);
        let rounding = (random.next_u64() & 3) as u16;
        let precision = [0u16, 2, 3][(random.next_u64() % 3) as usize];
        put(0, &(0x7f | precision << 8 | rounding << 10).to_le_bytes());
        // Condition codes and top of stack.
        put(2, &(random.next_u64() as u16 & 0x7f00).to_le_bytes());
        put(4, &[random.next_u64() as u8]);
        // Rounding mode, flush to zero, denormals are zero, and the flags of past exceptions.
        let mxcsr = 0x1f80 | random.next_u64() as u32 & 0xe07f;
        put(24, &mxcsr.to_le_bytes());
        for register in 0..8 {
            put(32 + 16 * register, &random.next_u64().to_le_bytes());
            put(40 + 16 * register, &(random.next_u64() as u16).to_le_bytes());
        }
        for (register, value) in state.zmm.iter().take(16).enumerate() {
            for (half, word) in value.iter().take(2).enumerate() {
                let at = 160 + 16 * register + 8 * half;
                state.fx[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        state
    }

    fn changes(&self, after: &Self, level: Level, with_flags: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for (at, name) in GPRS.into_iter().enumerate() {
            let expected = match at {
                // Counted down.
                RCX => 0,
                // The spinner's own frame.
                RBP => after.gpr[RSP].wrapping_add(FRAME_BYTES),
                RSP => after.gpr[RSP],
                _ => self.gpr[at],
            };
            if after.gpr[at] != expected {
                changes.push(Change::Gpr(name));
            }
        }
        let flags = (self.rflags ^ after.rflags) & FLAGS;
        if with_flags && flags != 0 {
            changes.push(Change::Rflags(flags));
        }
        let same = |range: std::ops::Range<usize>| self.fx[range.clone()] == after.fx[range];
        // Control, status and tag words; the ten bytes of each register.
        if !same(0..5) || (0..8).any(|n| !same(32 + 16 * n..42 + 16 * n)) {
            changes.push(Change::X87);
        }
        if !same(24..28) {
            changes.push(Change::Mxcsr);
        }
        let (registers, words) = match level {
            Level::Sse => (16, 0),
            Level::Avx => (16, 4),
            Level::Avx512 => (32, 8),
        };
        for n in 0..registers {
            let low = n >= 16 || same(160 + 16 * n..176 + 16 * n);
            if !low || self.zmm[n][..words] != after.zmm[n][..words] {
                changes.push(Change::Vector(n));
            }
        }
        if level == Level::Avx512 {
            changes.extend((0..8).filter(|&n| self.k[n] != after.k[n]).map(Change::Mask));
        }
        let red = (0..16).filter(|&n| self.red_zone[n] != after.red_zone[n]);
        changes.extend(red.map(Change::RedZone));
        changes
    }
}
