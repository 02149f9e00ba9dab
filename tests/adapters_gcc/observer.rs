//! Stops a call at four points, with all registers in memory where Rust code can read and change
//! them, and recovers from the faults of a wrong call.
//!
//! The points, in time order:
//!
//! ```text
//! caller        calls Enter instead of the code under test; Enter continues there
//! code under    calls Arrive instead of the callee; Arrive continues there
//! test
//! callee        returns to Leave, because Arrive replaced its return address;
//!               Leave continues at the original return address, in the code under test
//! code under    returns to After, because Enter replaced its return address;
//! test          After continues at the original one, in the caller
//! ```
//!
//! None of the four has a frame or pushes anything, so the values on the stack are where the
//! convention has them, and each point is at a valid address of a C function. "All registers" are
//! the sixteen general-purpose registers, rflags, and the state of the x87, SSE, AVX and AVX-512
//! units that XSAVE stores.
//!
//! The caller's side has a stack of its own, between two unmapped pages. A fault during a call ends
//! the call instead of the process: the signal handler continues at `land`, which restores the
//! registers and the stack of [`Observer::run`].
//!
//! The process has one state and one stack, so there is one observer at a time.

use std::cell::UnsafeCell;
use std::mem::{offset_of, zeroed};
use std::ptr::{null_mut, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of a page.
pub const PAGE_BYTES: usize = 4096;

/// The size of the stack of the caller's side.
const STACK_BYTES: usize = 1 << 20;

/// The number of values that can be next to an unmapped page at the same time.
pub const SLOTS: usize = 32;

/// MXCSR of a new thread: psABI 3.2.1, "CPU state".
const NATIVE_MXCSR: u32 = 0x1f80;

/// MXCSR without the exception flags, which every floating-point instruction may set.
pub const MXCSR_CONTROL: u32 = 0xffc0;

/// The direction flag.
pub const DF: u64 = 1 << 10;

// The layout of the XSAVE area: Intel SDM volume 1, sections 13.4.1 and 13.5.
const XSAVE_BYTES: usize = 4096;
const FCW: usize = 0;
const FTW: usize = 4;
const MXCSR: usize = 24;
const ST0: usize = 32;
const XMM0: usize = 160;
const XSTATE_BV: usize = 512;
/// x87, SSE, AVX, and the three components of AVX-512.
const COMPONENTS: u32 = 0b1110_0111;
const AVX512: u32 = 0b1110_0000;

/// All registers, and the address to continue at.
#[repr(C, align(64))]
pub struct State {
    xsave: [u8; XSAVE_BYTES],
    /// By hardware number.
    pub general: [u64; 16],
    pub flags: u64,
    /// The address of the next instruction.
    pub next: u64,
    /// The point, as an index of [`Point::ALL`].
    point: u64,
    /// The state components that are stored.
    components: u64,
    /// The offsets of the components from the start of `xsave`.
    offsets: [usize; 8],
    /// The stack pointer of `launch`.
    native_rsp: u64,
}

impl State {
    fn bytes<const N: usize>(&self, off: usize) -> [u8; N] {
        self.xsave[off..off + N].try_into().expect("a slice of N bytes")
    }

    fn has_avx512(&self) -> bool {
        self.components as u32 & AVX512 == AVX512
    }

    /// The number of vector registers.
    pub fn vectors(&self) -> usize {
        if self.has_avx512() { 32 } else { 16 }
    }

    /// The pieces of a vector register: offset in the area, offset in the register, size.
    fn pieces(&self, vector: usize) -> Vec<(usize, usize, usize)> {
        assert!(vector < self.vectors());
        if vector >= 16 {
            return vec![(self.offsets[7] + 64 * (vector - 16), 0, 64)];
        }
        let mut pieces = vec![(XMM0 + 16 * vector, 0, 16), (self.offsets[2] + 16 * vector, 16, 16)];
        if self.has_avx512() {
            pieces.push((self.offsets[6] + 32 * vector, 32, 32));
        }
        pieces
    }

    /// A vector register. The parts that the CPU does not have are zero.
    pub fn vector(&self, vector: usize) -> [u8; 64] {
        let mut whole = [0; 64];
        for (off, at, size) in self.pieces(vector) {
            whole[at..at + size].copy_from_slice(&self.xsave[off..off + size]);
        }
        whole
    }

    /// Sets the parts of a vector register that the CPU has.
    pub fn set_vector(&mut self, vector: usize, whole: &[u8; 64]) {
        for (off, at, size) in self.pieces(vector) {
            self.xsave[off..off + size].copy_from_slice(&whole[at..at + size]);
        }
    }

    /// Sets the eight mask registers, if the CPU has them.
    pub fn set_masks(&mut self, masks: [u64; 8]) {
        if self.has_avx512() {
            let off = self.offsets[5];
            self.xsave[off..off + 64].copy_from_slice(masks.map(u64::to_le_bytes).as_flattened());
        }
    }

    /// The number at this position of the x87 stack.
    pub fn x87(&self, position: usize) -> [u8; 10] {
        self.bytes(ST0 + 16 * position)
    }

    /// The number of values on the x87 stack.
    pub fn x87_depth(&self) -> u32 {
        self.xsave[FTW].count_ones()
    }

    pub fn x87_control(&self) -> u16 {
        u16::from_le_bytes(self.bytes(FCW))
    }

    pub fn set_x87_control(&mut self, word: u16) {
        self.xsave[FCW..FCW + 2].copy_from_slice(&word.to_le_bytes());
    }

    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.bytes(MXCSR))
    }

    pub fn set_mxcsr(&mut self, word: u32) {
        self.xsave[MXCSR..MXCSR + 4].copy_from_slice(&word.to_le_bytes());
    }

    /// Resets to an empty x87 stack, the control words of a new thread, and zeros.
    pub fn reset(&mut self) {
        self.xsave.fill(0);
        self.set_x87_control(0x37f);
        self.set_mxcsr(NATIVE_MXCSR);
        self.general = [0; 16];
        self.flags = 0x202;
    }

    /// Marks every component as present. XSAVE marks those that are in their initial state, and
    /// XRSTOR would not load them.
    fn mark_all(&mut self) {
        let components = self.components;
        self.xsave[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&components.to_le_bytes());
    }
}

/// The points at which a call stops. See the head of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    Enter,
    Arrive,
    Leave,
    After,
}

impl Point {
    const ALL: [Point; 4] = [Point::Enter, Point::Arrive, Point::Leave, Point::After];

    /// The address that stops the call at this point.
    pub fn address(self) -> u64 {
        let function = match self {
            Point::Enter => footbridge_test_enter,
            Point::Arrive => footbridge_test_arrive,
            Point::Leave => footbridge_test_leave,
            Point::After => footbridge_test_after,
        };
        function as *const () as u64
    }
}

/// The address that ends the call.
pub fn land() -> u64 {
    footbridge_test_land as *const () as u64
}

/// Receives control at each point.
pub trait Watcher {
    /// The call has stopped at a point. It continues at [`State::next`], which this function sets,
    /// with the registers as it leaves them.
    fn stop(&mut self, point: Point, state: &mut State);
}

/// A fault that ended a call.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub signal: i32,
    /// The address of the access, if the CPU reports it.
    pub address: u64,
    /// The address of the instruction.
    pub pc: u64,
}

#[repr(C, align(64))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: the contents are only accessed by the holder of the observer, and by the code that it
// started with `launch`, on the same thread.
unsafe impl<T> Sync for Shared<T> {}

static STATE: Shared<State> = Shared(UnsafeCell::new(State {
    xsave: [0; XSAVE_BYTES],
    general: [0; 16],
    flags: 0,
    next: 0,
    point: 0,
    components: 0,
    offsets: [0; 8],
    native_rsp: 0,
}));

/// The stack of `hook`, so that memory below the call's stack pointer is preserved.
static HOOK_STACK: Shared<[u8; HOOK_STACK_BYTES]> = Shared(UnsafeCell::new([0; HOOK_STACK_BYTES]));
const HOOK_STACK_BYTES: usize = 1 << 20;

static WATCHER: Shared<Option<*mut dyn Watcher>> = Shared(UnsafeCell::new(None));

static MXCSR_OF_RUST: u32 = NATIVE_MXCSR;

unsafe extern "C" {
    fn footbridge_test_enter();
    fn footbridge_test_arrive();
    fn footbridge_test_leave();
    fn footbridge_test_after();
    fn footbridge_test_launch();
    fn footbridge_test_land();
}

std::arch::global_asm!(
    // Nothing may be pushed before rsp is stored, and the flags and registers are those of the
    // call.
    ".macro footbridge_test_point name, index",
    ".globl \\name",
    "\\name:",
    "    mov [rip + {state} + {general} + 0], rax",
    "    mov [rip + {state} + {general} + 8], rcx",
    "    mov [rip + {state} + {general} + 16], rdx",
    "    mov [rip + {state} + {general} + 24], rbx",
    "    mov [rip + {state} + {general} + 32], rsp",
    "    mov [rip + {state} + {general} + 40], rbp",
    "    mov [rip + {state} + {general} + 48], rsi",
    "    mov [rip + {state} + {general} + 56], rdi",
    "    mov [rip + {state} + {general} + 64], r8",
    "    mov [rip + {state} + {general} + 72], r9",
    "    mov [rip + {state} + {general} + 80], r10",
    "    mov [rip + {state} + {general} + 88], r11",
    "    mov [rip + {state} + {general} + 96], r12",
    "    mov [rip + {state} + {general} + 104], r13",
    "    mov [rip + {state} + {general} + 112], r14",
    "    mov [rip + {state} + {general} + 120], r15",
    "    mov qword ptr [rip + {state} + {point}], \\index",
    "    jmp 2f",
    ".endm",
    "    footbridge_test_point footbridge_test_enter, 0",
    "    footbridge_test_point footbridge_test_arrive, 1",
    "    footbridge_test_point footbridge_test_leave, 2",
    "    footbridge_test_point footbridge_test_after, 3",
    "2:",
    // All registers are stored, so the stack of the hook can be used, also for rflags.
    "    lea rsp, [rip + {hook_stack} + {hook_stack_bytes}]",
    "    pushfq",
    "    pop [rip + {state} + {flags}]",
    "    mov eax, [rip + {state} + {components}]",
    "    xor edx, edx",
    "    xsave64 [rip + {state}]",
    // The control words that Rust code requires.
    "    cld",
    "    fninit",
    "    ldmxcsr [rip + {mxcsr}]",
    "    vzeroupper",
    "    call {hook}",
    // `launch` continues here. The flags are restored on the stack of the hook, too.
    "3:",
    "    lea rsp, [rip + {hook_stack} + {hook_stack_bytes}]",
    "    mov eax, [rip + {state} + {components}]",
    "    xor edx, edx",
    "    xrstor64 [rip + {state}]",
    "    push [rip + {state} + {flags}]",
    "    popfq",
    "    mov rax, [rip + {state} + {general} + 0]",
    "    mov rcx, [rip + {state} + {general} + 8]",
    "    mov rdx, [rip + {state} + {general} + 16]",
    "    mov rbx, [rip + {state} + {general} + 24]",
    "    mov rsp, [rip + {state} + {general} + 32]",
    "    mov rbp, [rip + {state} + {general} + 40]",
    "    mov rsi, [rip + {state} + {general} + 48]",
    "    mov rdi, [rip + {state} + {general} + 56]",
    "    mov r8, [rip + {state} + {general} + 64]",
    "    mov r9, [rip + {state} + {general} + 72]",
    "    mov r10, [rip + {state} + {general} + 80]",
    "    mov r11, [rip + {state} + {general} + 88]",
    "    mov r12, [rip + {state} + {general} + 96]",
    "    mov r13, [rip + {state} + {general} + 104]",
    "    mov r14, [rip + {state} + {general} + 112]",
    "    mov r15, [rip + {state} + {general} + 120]",
    "    jmp [rip + {state} + {next}]",
    // Called by Rust code, in System V: continues at the call that the state describes.
    ".globl footbridge_test_launch",
    "footbridge_test_launch:",
    "    push rbx",
    "    push rbp",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    push rax",
    "    stmxcsr [rsp]",
    "    fnstcw [rsp + 4]",
    "    mov [rip + {state} + {native_rsp}], rsp",
    "    jmp 3b",
    // Returns from `launch`, with arbitrary contents in the registers.
    ".globl footbridge_test_land",
    "footbridge_test_land:",
    "    mov rsp, [rip + {state} + {native_rsp}]",
    "    cld",
    "    fninit",
    "    ldmxcsr [rsp]",
    "    fldcw [rsp + 4]",
    "    vzeroupper",
    "    pop rax",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbp",
    "    pop rbx",
    "    ret",
    state = sym STATE,
    general = const offset_of!(State, general),
    flags = const offset_of!(State, flags),
    next = const offset_of!(State, next),
    point = const offset_of!(State, point),
    components = const offset_of!(State, components),
    native_rsp = const offset_of!(State, native_rsp),
    hook_stack = sym HOOK_STACK,
    hook_stack_bytes = const HOOK_STACK_BYTES,
    mxcsr = sym MXCSR_OF_RUST,
    hook = sym hook,
);

extern "C" fn hook() {
    IN_HOOK.store(true, Ordering::Relaxed);
    // SAFETY: `run`, further out on the stack, holds the observer and has set the watcher. The code
    // that uses the state is the caller of this function.
    unsafe {
        let state = &mut *STATE.0.get();
        let watcher = (*WATCHER.0.get()).expect("set by run");
        (*watcher).stop(Point::ALL[state.point as usize], state);
        state.mark_all();
    }
    IN_HOOK.store(false, Ordering::Relaxed);
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static IN_HOOK: AtomicBool = AtomicBool::new(false);
static FAULT_SIGNAL: AtomicUsize = AtomicUsize::new(0);
static FAULT_ADDRESS: AtomicU64 = AtomicU64::new(0);
static FAULT_PC: AtomicU64 = AtomicU64::new(0);
/// The description of the running call, for a report of the death of the process.
static DESCRIPTION: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static DESCRIPTION_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The signals that defective code raises.
const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// Ends the call. Lets the process die if no call is in progress, or if the watcher faulted.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO. write(2) and signal(2) are
    // async-signal-safe. The description lives until it is replaced with null.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        if RUNNING.load(Ordering::Relaxed) && !IN_HOOK.load(Ordering::Relaxed) {
            FAULT_SIGNAL.store(signal as usize, Ordering::Relaxed);
            FAULT_ADDRESS.store((*info).si_addr() as u64, Ordering::Relaxed);
            FAULT_PC.store(registers[libc::REG_RIP as usize] as u64, Ordering::Relaxed);
            registers[libc::REG_RIP as usize] = land() as i64;
            registers[libc::REG_EFL as usize] = 0x202;
            return;
        }
        let text = DESCRIPTION.load(Ordering::Relaxed);
        libc::write(2, text.cast(), DESCRIPTION_BYTES.load(Ordering::Relaxed));
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Memory between two unmapped pages.
struct Mapping {
    start: u64,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Mapping {
        let whole = bytes + 2 * PAGE_BYTES;
        // SAFETY: a new mapping, and a part of it.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(null_mut(), whole, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            let start = base.byte_add(PAGE_BYTES);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(start, bytes, access), 0);
            Mapping { start: start.expose_provenance() as u64, bytes }
        }
    }

    fn end(&self) -> u64 {
        self.start + self.bytes as u64
    }

    fn contains(&self, address: u64, bytes: usize) -> bool {
        (self.start..=self.end()).contains(&address) && self.end() - address >= bytes as u64
    }
}

/// The exclusive right to run calls. See the head of this file.
pub struct Observer {
    stack: Mapping,
    slots: Vec<Mapping>,
    /// The previous signal handlers.
    before: Vec<libc::sigaction>,
    signal_stack: Mapping,
    signal_stack_before: libc::stack_t,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Observer {
    /// Waits for the previous observer, and handles faults from now on.
    pub fn new() -> Observer {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let stack = Mapping::new(STACK_BYTES);
        let slots = (0..SLOTS).map(|_| Mapping::new(PAGE_BYTES)).collect();
        let signal_stack = Mapping::new(1 << 17);
        // SAFETY: the structures are plain data. The handler is async-signal-safe. Its stack is new
        // memory.
        let (before, signal_stack_before) = unsafe {
            let mut signal_stack_before: libc::stack_t = zeroed();
            let new = libc::stack_t {
                ss_sp: with_exposed_provenance_mut(signal_stack.start as usize),
                ss_flags: 0,
                ss_size: signal_stack.bytes,
            };
            assert_eq!(libc::sigaltstack(&raw const new, &raw mut signal_stack_before), 0);
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let before = SIGNALS.map(|signal| {
                let mut before: libc::sigaction = zeroed();
                assert_eq!(libc::sigaction(signal, &raw const action, &raw mut before), 0);
                before
            });
            (before.to_vec(), signal_stack_before)
        };
        // SAFETY: the observer is held. CPUID leaf 0xD and XCR0 exist, since gcc's code requires
        // AVX.
        unsafe {
            let state = &mut *STATE.0.get();
            let (low, _high): (u32, u32);
            std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high);
            state.components = u64::from(low & COMPONENTS);
            assert_eq!(state.components & 7, 7, "AVX is on");
            if state.components as u32 & AVX512 != AVX512 {
                state.components &= !u64::from(AVX512);
            }
            for number in (2..8).filter(|number| state.components >> number & 1 == 1) {
                let leaf = std::arch::x86_64::__cpuid_count(0xd, number);
                assert!((leaf.ebx + leaf.eax) as usize <= XSAVE_BYTES);
                state.offsets[number as usize] = leaf.ebx as usize;
            }
        }
        Observer { stack, slots, before, signal_stack, signal_stack_before, _alone: alone }
    }

    /// The end of the caller's stack, where an unmapped page starts.
    pub fn stack_end(&self) -> u64 {
        self.stack.end()
    }

    /// Whether these bytes are on the caller's stack.
    pub fn on_stack(&self, address: u64, bytes: usize) -> bool {
        self.stack.contains(address, bytes)
    }

    /// Whether these bytes are in memory that a call may have pointers to.
    pub fn is_known(&self, address: u64, bytes: usize) -> bool {
        self.on_stack(address, bytes) || self.slots.iter().any(|slot| slot.contains(address, bytes))
    }

    /// An address next to an unmapped page, which is at the end or at the start. If the alignment
    /// exceeds that of the size, some bytes are left at the end.
    pub fn place(&self, slot: usize, bytes: usize, align: usize, at_end: bool) -> u64 {
        let slot = &self.slots[slot];
        if at_end { (slot.end() - bytes as u64) & !(align as u64 - 1) } else { slot.start }
    }

    /// Fills a slot.
    pub fn fill(&self, slot: usize, byte: u8) {
        let slot = &self.slots[slot];
        write(slot.start, &vec![byte; slot.bytes]);
    }

    /// Whether a slot still has its filling, except for the value in it.
    pub fn is_filled(&self, slot: usize, byte: u8, address: u64, bytes: usize) -> bool {
        let slot = &self.slots[slot];
        let mut whole = read(slot.start, slot.bytes);
        let off = (address - slot.start) as usize;
        whole[off..off + bytes].fill(byte);
        whole == vec![byte; slot.bytes]
    }

    /// Continues at [`State::next`] with the registers that `prepare` sets, until the call reaches
    /// [`land`].
    ///
    /// # Safety
    ///
    /// 1. The code that runs only changes what its arguments allow, its stack and its registers,
    ///    unless it faults.
    /// 2. The watcher does not unwind.
    pub unsafe fn run<W: Watcher>(
        &self,
        description: &str,
        watcher: &mut W,
        prepare: impl FnOnce(&mut State, &mut W),
    ) -> Result<(), Fault> {
        DESCRIPTION_BYTES.store(description.len(), Ordering::Relaxed);
        DESCRIPTION.store(description.as_ptr().cast_mut(), Ordering::Relaxed);
        FAULT_SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: the observer is held, so there are no other accesses. The static erases the
        // lifetime of the watcher, and is cleared before that ends.
        unsafe {
            let state = &mut *STATE.0.get();
            state.reset();
            prepare(state, watcher);
            state.mark_all();
            let watcher: *mut (dyn Watcher + '_) = watcher;
            *WATCHER.0.get() = Some(std::mem::transmute::<
                *mut (dyn Watcher + '_),
                *mut (dyn Watcher + 'static),
            >(watcher));
            RUNNING.store(true, Ordering::Relaxed);
            footbridge_test_launch();
            RUNNING.store(false, Ordering::Relaxed);
            *WATCHER.0.get() = None;
        }
        DESCRIPTION_BYTES.store(0, Ordering::Relaxed);
        match FAULT_SIGNAL.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Fault {
                signal: signal as i32,
                address: FAULT_ADDRESS.load(Ordering::Relaxed),
                pc: FAULT_PC.load(Ordering::Relaxed),
            }),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // SAFETY: restores the previous handlers. After that, the memory is unused.
        unsafe {
            for (signal, before) in SIGNALS.into_iter().zip(&self.before) {
                libc::sigaction(signal, before, null_mut());
            }
            libc::sigaltstack(&raw const self.signal_stack_before, null_mut());
            for mapping in self.slots.iter().chain([&self.stack, &self.signal_stack]) {
                let base = with_exposed_provenance_mut(mapping.start as usize - PAGE_BYTES);
                libc::munmap(base, mapping.bytes + 2 * PAGE_BYTES);
            }
        }
    }
}

/// Reads memory.
pub fn read(address: u64, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    let from: *const u8 = with_exposed_provenance(address as usize);
    // SAFETY: the callers created or checked the address. It is plain memory of this process, to
    // which no Rust reference exists.
    unsafe { from.copy_to_nonoverlapping(found.as_mut_ptr(), bytes) };
    found
}

/// Reads a 64-bit number.
pub fn read_word(address: u64) -> u64 {
    u64::from_le_bytes(read(address, 8).try_into().expect("eight bytes"))
}

/// Writes memory.
pub fn write(address: u64, bytes: &[u8]) {
    let to: *mut u8 = with_exposed_provenance_mut(address as usize);
    // SAFETY: the callers created or checked the address. It is plain memory of this process, to
    // which no Rust reference exists.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}
