//! One call through the code under test, and all checks of it.

use std::fmt;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Assignment, Convention, Narrow, Passing, Place, Reg};

use crate::image::{Found, Image, Narrowed, Wrong};
use crate::observer::{
    DF, MXCSR_CONTROL, Observer, Point, SLOTS, State, Watcher, land, read, read_word, write,
};

/// The kind of a failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// The arguments of the caller that gcc compiled are not where the assignment says, so the code
    /// under test is not to blame.
    Caller,
    /// The same for the callee that gcc compiled, and its result.
    Callee,
    /// An argument arrived with a wrong value.
    Argument,
    /// A narrow argument arrived without its extension.
    Extension,
    /// An argument, or the memory for the result, arrived at an invalid address.
    Address,
    /// An argument, or the memory for the result, arrived at a misaligned address.
    Alignment,
    /// `al` does not hold the number of vector registers.
    VectorCount,
    /// The closure register does not hold the bound word or, without one, the caller's value.
    Closure,
    /// The callee's stack pointer is misaligned.
    StackAlignment,
    /// The direction flag was set at the callee or after the return.
    DirectionFlag,
    /// MXCSR had other control bits there.
    Mxcsr,
    /// The x87 control word was different there.
    X87Control,
    /// The x87 stack held unexpected numbers there.
    X87Stack,
    /// A register that the caller's convention preserves was changed.
    Preserved,
    /// The stack pointer differs from that before the call.
    StackPointer,
    /// The result has a wrong value.
    Result,
    /// A narrow result returned without its extension.
    ResultExtension,
    /// The address of the result's memory was not returned.
    ResultPointer,
    /// Memory next to a value was written.
    Stray,
    /// The CPU raised an exception.
    Fault,
    /// The callee was not called.
    NotCalled,
    /// The callee was called twice.
    CalledAgain,
    /// No code to test could be created.
    Refused,
}

impl Kind {
    pub const ALL: [Kind; 23] = [
        Kind::Caller,
        Kind::Callee,
        Kind::Argument,
        Kind::Extension,
        Kind::Address,
        Kind::Alignment,
        Kind::VectorCount,
        Kind::Closure,
        Kind::StackAlignment,
        Kind::DirectionFlag,
        Kind::Mxcsr,
        Kind::X87Control,
        Kind::X87Stack,
        Kind::Preserved,
        Kind::StackPointer,
        Kind::Result,
        Kind::ResultExtension,
        Kind::ResultPointer,
        Kind::Stray,
        Kind::Fault,
        Kind::NotCalled,
        Kind::CalledAgain,
        Kind::Refused,
    ];
}

/// A failure with its description.
#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: Kind,
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

/// The caller of the code under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A function at this address, compiled by gcc.
    Gcc(u64),
    /// No function: the registers are loaded with the state of the call, and the argument area ends
    /// at the end of the stack.
    Bare,
}

/// The distance between values in [`Buffers`], in bytes.
pub const STRIDE: usize = 128;

/// The slot of the memory for the result. The other slots are for parameters.
pub const RESULT_SLOT: usize = SLOTS - 1;

/// A call.
pub struct Call<'a> {
    pub entry: &'a Assignment,
    pub target: &'a Assignment,
    /// The bytes of the values, one for each parameter of the entry.
    pub args: &'a [Vec<u8>],
    /// The same for the target.
    pub target_args: &'a [Vec<u8>],
    pub result: Option<&'a [u8]>,
    /// The word that the target must find in its closure register. `None` requires the caller's
    /// value.
    pub closure: Option<u64>,
    /// The code under test, which calls [`Point::Arrive`], or that address itself.
    pub code: u64,
    /// The callee that gcc compiled.
    pub callee: u64,
    pub ends: Ends,
    pub seed: u64,
}

/// The placement of the caller's values that are passed by address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ends {
    /// At the end of a page, followed by an unmapped page.
    AtEnd,
    /// At the start of a page, preceded by an unmapped page.
    AtStart,
    /// At the end in most cases.
    Random,
}

/// Memory through which gcc's functions receive and store values.
#[repr(C, align(64))]
pub struct Buffers {
    pub record: [u8; STRIDE * SLOTS],
    pub result: [u8; STRIDE],
    /// The arguments of a caller that gcc compiled.
    args: [u8; STRIDE * SLOTS],
    /// The result that it received.
    returned: [u8; STRIDE],
    /// The addresses of arguments that are passed by reference.
    addresses: [u64; SLOTS],
}

impl Buffers {
    pub fn new() -> Box<Buffers> {
        Box::new(Buffers {
            record: [0; STRIDE * SLOTS],
            result: [0; STRIDE],
            args: [0; STRIDE * SLOTS],
            returned: [0; STRIDE],
            addresses: [0; SLOTS],
        })
    }
}

/// A call in progress.
struct Running<'a> {
    call: &'a Call<'a>,
    observer: &'a Observer,
    caller: Caller,
    garbage: Xorshift,
    image: Image,
    /// The address at which the entry's caller expects the result.
    result_address: u64,
    failures: Vec<Failure>,
    arrivals: u32,
    /// The registers that the caller had prepared, and its return address.
    callers: Option<(Kept, u64)>,
    /// The registers at the start of the code under test.
    loaded: Option<Kept>,
    /// The low 32 bits of narrow integers, with the garbage in them: of the entry's parameters, and
    /// later of the target's result.
    given: Vec<Option<[u8; 4]>>,
    /// The return address of the callee.
    back: u64,
    /// The target's argument base.
    target_base: u64,
    /// The address at which the target's caller expects the result.
    target_result: u64,
}

/// The registers and control words that a call preserves.
struct Kept {
    general: [u64; 16],
    vector: Vec<[u8; 64]>,
    mxcsr: u32,
    x87_control: u16,
}

impl Kept {
    fn of(state: &State) -> Kept {
        Kept {
            general: state.general,
            vector: (0..16).map(|i| state.vector(i)).collect(),
            mxcsr: state.mxcsr() & MXCSR_CONTROL,
            x87_control: state.x87_control(),
        }
    }
}

/// The number of bytes of a register that a convention preserves.
fn preserved_bytes(convention: Convention, register: Reg) -> usize {
    let spec = convention.spec();
    match register {
        _ if !spec.preserved.contains(register) => 0,
        Reg::Xmm(_) => 16,
        _ => 8,
    }
}

const RSP: usize = 4;
const R10: usize = 10;

impl Running<'_> {
    fn fail(&mut self, kind: Kind, text: impl Into<String>) {
        self.failures.push(Failure { kind, text: text.into() });
    }

    fn convention(assignment: &Assignment) -> Convention {
        assignment.convention().expect("both sides have a convention")
    }

    /// Loads the state at the start of the code under test. `rsp` points to the return address.
    fn load(&mut self, state: &mut State, put_given: bool) {
        let base = state.general[RSP] + 8;
        let there = read(base, self.call.entry.total_bytes() as usize);
        let area = self.image.area(&there, &mut self.garbage, put_given);
        write(base, &area);
        let rsp = state.general[RSP];
        self.image.load(state, &mut self.garbage, put_given, |_, _| false);
        state.general[RSP] = rsp;
        // Any rounding and precision, with all exceptions masked, and any arithmetic flags.
        let bits = self.garbage.bits();
        state.set_mxcsr(0x1f80 | bits as u32 & 0xe07f);
        state.set_x87_control(0x37f & !0xf00 | (bits >> 16) as u16 & 0xc00 | 0x200);
        state.flags = 0x202 | bits >> 32 & 0x8d5;
        self.loaded = Some(Kept::of(state));
        let assignment = self.call.entry;
        let found = Found { state, base, observer: self.observer, assignment };
        self.given = assignment.params().iter().map(|value| found.narrow(value)).collect();
    }

    fn enter(&mut self, state: &mut State) {
        let base = state.general[RSP] + 8;
        let call = self.call;
        let found = Found { state, base, observer: self.observer, assignment: call.entry };
        let mut wrong = Vec::new();
        for (i, (value, bytes)) in call.entry.params().iter().zip(call.args).enumerate() {
            if let Err((kind, text)) = found.parameter(value, bytes, Narrowed::Any, 1) {
                wrong.push(format!("argument {i}, {kind:?}: {text}"));
            }
        }
        for text in wrong {
            self.fail(Kind::Caller, text);
        }
        self.callers = Some((Kept::of(state), read_word(state.general[RSP])));
        self.load(state, false);
        write(state.general[RSP], &Point::After.address().to_le_bytes());
        state.next = self.call.code;
    }

    fn arrive(&mut self, state: &mut State) {
        let call = self.call;
        let (assignment, rsp) = (call.target, state.general[RSP]);
        self.arrivals += 1;
        state.next = land();
        if self.arrivals > 1 {
            return self.fail(Kind::CalledAgain, "the callee had been called already");
        }
        let spec = Self::convention(assignment).spec();
        let base = rsp + u64::from(spec.base_off_bytes);
        if !self.observer.on_stack(rsp, 8 + assignment.total_bytes() as usize) {
            return self.fail(Kind::Address, format!("rsp is {rsp:#x} at the callee"));
        }
        if base & (u64::from(assignment.area_align_bytes()) - 1) != 0 {
            let align = assignment.area_align_bytes();
            let text = format!("arguments are at {base:#x}, which is not a multiple of {align}");
            return self.fail(Kind::StackAlignment, text);
        }
        self.check_control(state, 0, "the callee");
        if let Some((register, count)) = assignment.vector_count() {
            let Reg::Gpr(gpr) = register else { panic!("{register}") };
            let found = state.general[usize::from(gpr.index())] as u8;
            if found != count {
                self.fail(Kind::VectorCount, format!("al is {found}, not {count}"));
            }
        }
        let passed = self.loaded.as_ref().expect("set at Enter").general[R10];
        let word = call.closure.unwrap_or(passed);
        if state.general[R10] != word {
            let text = format!("r10 is {:#x}, not {word:#x}", state.general[R10]);
            self.fail(Kind::Closure, text);
        }

        let found = Found { state, base, observer: self.observer, assignment };
        let relies = assignment.narrow() == Narrow::ExtendedTo32 || !call.is_alike();
        // The entry's values come after the bound one.
        let bound = call.target_args.len() - call.args.len();
        let given = std::iter::repeat_n(&None, bound).chain(&self.given);
        let mut is_lost = false;
        let mut wrong = Vec::new();
        let values = assignment.params().iter().zip(call.target_args).zip(given);
        for (i, ((value, bytes), given)) in values.enumerate() {
            // A stub between equal conventions may pass on the caller's copy, which is aligned by
            // its type here: see `Call::run`.
            let least = if call.is_alike() { 1 } else { spec.copy_align_bytes };
            let align = value.layout().align_bytes.max(least);
            let narrow = if relies { Narrowed::Extended } else { Narrowed::As(*given) };
            if let Err((kind, text)) = found.parameter(value, bytes, narrow, align) {
                let kind = match kind {
                    Wrong::Bytes => Kind::Argument,
                    Wrong::Extension => Kind::Extension,
                    Wrong::Address => Kind::Address,
                    Wrong::Alignment => Kind::Alignment,
                };
                is_lost |= matches!(kind, Kind::Address | Kind::Alignment);
                wrong.push((kind, format!("argument {i}: {text}")));
            }
        }
        if let (Some(pointer), [value]) = (assignment.result_pointer(), assignment.results()) {
            self.target_result = found.word(pointer.place);
            let address = self.target_result;
            let layout = value.layout();
            if !self.observer.is_known(address, layout.size_bytes as usize) {
                is_lost = true;
                wrong.push((Kind::Address, format!("{} has {address:#x}", pointer.place)));
            }
            if address & (u64::from(layout.align_bytes) - 1) != 0 {
                let align = layout.align_bytes;
                is_lost = true;
                let text =
                    format!("the result is at {address:#x}, which is not a multiple of {align}");
                wrong.push((Kind::Alignment, text));
            }
        }
        for (kind, text) in wrong {
            self.fail(kind, text);
        }
        if is_lost {
            return;
        }
        self.back = read_word(rsp);
        self.target_base = base;
        write(rsp, &Point::Leave.address().to_le_bytes());
        state.next = call.callee;
    }

    fn leave(&mut self, state: &mut State) {
        let (call, assignment) = (self.call, self.call.target);
        let found = Found { state, base: self.target_base, observer: self.observer, assignment };
        let result = assignment.results().first().zip(call.result);
        let wrong = result
            .map(|(value, bytes)| found.result(value, bytes, Narrowed::Any, self.target_result));
        if let Some(Err((kind, text))) = wrong {
            self.fail(Kind::Callee, format!("{kind:?}: {text}"));
        }
        // The callee owns its arguments and the memory below the stack pointer, and may change each
        // register that its convention does not preserve.
        let rsp = state.general[RSP];
        let mut garbage = vec![0; 512 + assignment.total_bytes() as usize];
        garbage.fill_with(|| (self.garbage.bits() >> 40) as u8);
        write(self.target_base - 512, &garbage);
        let image = Image::of_result(assignment, call.result, self.target_result);
        let convention = Self::convention(assignment);
        let kept = |register, byte| byte < preserved_bytes(convention, register);
        image.load(state, &mut self.garbage, false, kept);
        state.general[RSP] = rsp;
        let found = Found { state, base: self.target_base, observer: self.observer, assignment };
        self.given = assignment.results().iter().map(|value| found.narrow(value)).collect();
        state.next = self.back;
    }

    fn after(&mut self, state: &mut State) {
        let (call, assignment) = (self.call, self.call.entry);
        let loaded = self.loaded.take().expect("set at Enter");
        let rsp = loaded.general[RSP] + 8;
        if state.general[RSP] != rsp {
            let text = format!("rsp is {:#x}, not {rsp:#x}", state.general[RSP]);
            self.fail(Kind::StackPointer, text);
            state.general[RSP] = rsp;
        }
        let values = assignment.results();
        let x87 = values.iter().flat_map(|value| value.parts());
        let x87 = x87.filter(|part| matches!(part.place, Place::X87(_))).count();
        self.loaded = Some(loaded);
        self.check_control(state, x87 as u32, "the caller");
        let loaded = self.loaded.take().expect("set above");

        let convention = Self::convention(assignment);
        let registers = convention.spec().arch.registers();
        for register in registers.iter() {
            let preserved = preserved_bytes(convention, register);
            let (before, after) = match register {
                Reg::Gpr(gpr) => {
                    let i = usize::from(gpr.index());
                    (
                        loaded.general[i].to_le_bytes().to_vec(),
                        state.general[i].to_le_bytes().to_vec(),
                    )
                }
                Reg::Xmm(xmm) => {
                    let i = usize::from(xmm.index());
                    (loaded.vector[i].to_vec(), state.vector(i).to_vec())
                }
                _ => continue,
            };
            if before[..preserved] != after[..preserved] {
                let text = format!("{register} was {before:02x?}, is {after:02x?}");
                self.fail(Kind::Preserved, text);
            }
        }

        if self.arrivals > 0 {
            let found = Found { state, base: 0, observer: self.observer, assignment };
            let narrow = match (call.is_alike(), &*self.given) {
                (true, [given]) => Narrowed::As(*given),
                _ => Narrowed::Extended,
            };
            let result = values.first().zip(call.result);
            let wrong = result
                .map(|(value, bytes)| found.result(value, bytes, narrow, self.result_address));
            if let Some(Err((kind, text))) = wrong {
                let kind = match kind {
                    Wrong::Bytes => Kind::Result,
                    Wrong::Extension => Kind::ResultExtension,
                    Wrong::Address | Wrong::Alignment => Kind::ResultPointer,
                };
                self.fail(kind, text);
            }
        }

        state.next = land();
        if let Some((callers, next)) = self.callers.take() {
            state.next = next;
            state.set_mxcsr(callers.mxcsr);
            state.set_x87_control(callers.x87_control);
            for register in registers.iter() {
                let preserved = preserved_bytes(convention, register);
                match register {
                    Reg::Gpr(gpr) if preserved > 0 => {
                        let i = usize::from(gpr.index());
                        state.general[i] = callers.general[i];
                    }
                    Reg::Xmm(xmm) if preserved > 0 => {
                        let i = usize::from(xmm.index());
                        let mut whole = state.vector(i);
                        whole[..preserved].copy_from_slice(&callers.vector[i][..preserved]);
                        state.set_vector(i, &whole);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Checks the state that is the same at every call and return.
    fn check_control(&mut self, state: &mut State, x87_depth: u32, side: &str) {
        let loaded = self.loaded.as_ref().expect("set at Enter");
        let (mxcsr, x87_control) = (loaded.mxcsr, loaded.x87_control);
        let found = state.mxcsr() & MXCSR_CONTROL;
        if found != mxcsr {
            self.fail(Kind::Mxcsr, format!("{side} found {found:#x}, not {mxcsr:#x}"));
        }
        let found = state.x87_control();
        if found != x87_control {
            self.fail(Kind::X87Control, format!("{side} found {found:#x}, not {x87_control:#x}"));
        }
        let found = state.x87_depth();
        if found != x87_depth {
            let text = format!("{side} found {found} numbers, not {x87_depth}");
            self.fail(Kind::X87Stack, text);
        }
        if state.flags & DF != 0 {
            self.fail(Kind::DirectionFlag, format!("{side} found it set"));
            state.flags &= !DF;
        }
    }
}

impl Watcher for Running<'_> {
    fn stop(&mut self, point: Point, state: &mut State) {
        match point {
            Point::Enter => self.enter(state),
            Point::Arrive => self.arrive(state),
            Point::Leave => self.leave(state),
            Point::After => self.after(state),
        }
    }
}

/// The content of memory next to values.
const FILL: u8 = 0x5a;

impl Call<'_> {
    /// Whether both sides have the same convention. A stub between them need not extend values, but
    /// must preserve extensions.
    fn is_alike(&self) -> bool {
        self.entry.convention() == self.target.convention()
    }

    /// Makes the call, and returns the failures.
    pub fn run(
        &self,
        observer: &Observer,
        buffers: &mut Buffers,
        caller: Caller,
        description: &str,
    ) -> Vec<Failure> {
        let mut garbage = Xorshift::new(self.seed);
        // Values in memory end at the end of a page, or sometimes start at the start of one, so
        // that accesses outside of them fault.
        let mut places = Vec::new();
        let mut addresses = Vec::new();
        let mut place = |slot, bytes: usize, align: u32| {
            let at_end = match self.ends {
                Ends::AtEnd => true,
                Ends::AtStart => false,
                Ends::Random => garbage.below(4) != 0,
            };
            observer.fill(slot, FILL);
            let address = observer.place(slot, bytes, align as usize, at_end);
            places.push((slot, address, bytes));
            address
        };
        for (i, (value, bytes)) in self.entry.params().iter().zip(self.args).enumerate() {
            addresses.push(0);
            if matches!(value.passing(), Passing::Reference(_)) {
                // Like gcc, which aligns a copy by its type only.
                let address = place(i, bytes.len(), value.layout().align_bytes);
                write(address, bytes);
                addresses[i] = address;
            }
        }
        let result_address = match self.entry.results() {
            [value] if self.entry.result_pointer().is_some() => {
                let layout = value.layout();
                place(RESULT_SLOT, layout.size_bytes as usize, layout.align_bytes)
            }
            _ => 0,
        };
        let result_bytes = self.result.unwrap_or_default();
        buffers.result[..result_bytes.len()].copy_from_slice(result_bytes);
        for (i, bytes) in self.target_args.iter().enumerate() {
            for (there, byte) in buffers.record[STRIDE * i..].iter_mut().zip(bytes) {
                *there = !*byte;
            }
        }
        for (i, bytes) in self.args.iter().enumerate() {
            buffers.args[STRIDE * i..][..bytes.len()].copy_from_slice(bytes);
        }
        for (there, byte) in buffers.returned.iter_mut().zip(result_bytes) {
            *there = !*byte;
        }
        buffers.addresses[..addresses.len()].copy_from_slice(&addresses);
        buffers.addresses[RESULT_SLOT] = result_address;

        let image = Image::of_arguments(self.entry, self.args, &addresses, result_address);
        let mut running = Running {
            call: self,
            observer,
            caller,
            garbage,
            image,
            result_address,
            failures: Vec::new(),
            arrivals: 0,
            callers: None,
            loaded: None,
            given: Vec::new(),
            back: 0,
            target_base: 0,
            target_result: 0,
        };
        let stack_end = observer.stack_end();
        let arguments = [
            Point::Enter.address(),
            buffers.args.as_mut_ptr().expose_provenance() as u64,
            buffers.addresses.as_mut_ptr().expose_provenance() as u64,
            buffers.returned.as_mut_ptr().expose_provenance() as u64,
        ];
        buffers.record.as_mut_ptr().expose_provenance();
        buffers.result.as_mut_ptr().expose_provenance();
        let prepare = |state: &mut State, running: &mut Running<'_>| match running.caller {
            Caller::Gcc(address) => {
                // `caller(code, args, addresses, result)`, in System V.
                let [rdi, rsi, rdx, rcx] = [7, 6, 2, 1];
                for (register, argument) in [rdi, rsi, rdx, rcx].into_iter().zip(arguments) {
                    state.general[register] = argument;
                }
                state.general[RSP] = stack_end - 64 - 8;
                write(state.general[RSP], &land().to_le_bytes());
                state.next = address;
            }
            Caller::Bare => {
                let align = running.call.entry.area_align_bytes();
                let area = running.call.entry.total_bytes().next_multiple_of(align);
                state.general[RSP] = stack_end - u64::from(area) - 8;
                running.load(state, true);
                write(state.general[RSP], &Point::After.address().to_le_bytes());
                state.next = running.call.code;
            }
        };
        // SAFETY: 1. The code under test is an adapter, and gcc's functions only write to the
        // buffers. Wrong accesses fault, or are detected below. 2. The frames between here and the
        // watcher are `extern "C"`, so a panic there aborts the process.
        let ended = unsafe { observer.run(description, &mut running, prepare) };
        let Running { mut failures, arrivals, .. } = running;
        let mut fail = |kind, text: String| failures.push(Failure { kind, text });
        let is_complete = match ended {
            Err(fault) => {
                let crate::observer::Fault { signal, address, pc } = fault;
                let text = format!("signal {signal}, access to {address:#x}, at {pc:#x}");
                fail(Kind::Fault, text);
                false
            }
            Ok(()) if arrivals == 0 => {
                fail(Kind::NotCalled, "the code returned without a call of the callee".into());
                false
            }
            Ok(()) => failures.is_empty(),
        };
        for (slot, address, bytes) in places {
            if !observer.is_filled(slot, FILL, address, bytes) {
                let text = format!("memory beside {address:#x}, {bytes} bytes, was written");
                failures.push(Failure { kind: Kind::Stray, text });
            }
        }
        if !is_complete {
            return failures;
        }
        // The values as gcc's code found them.
        for (i, (value, bytes)) in self.target.params().iter().zip(self.target_args).enumerate() {
            let found = &buffers.record[STRIDE * i..][..bytes.len()];
            let data = support::c_types::data(value.ty());
            if (0..bytes.len()).any(|i| data[i] && found[i] != bytes[i]) {
                let text = format!("argument {i} was {found:02x?} to the callee, not {bytes:02x?}");
                failures.push(Failure { kind: Kind::Argument, text });
            }
        }
        if let (Caller::Gcc(_), [value]) = (caller, self.entry.results()) {
            let found: &[u8] = match self.entry.result_pointer() {
                Some(_) => &read(result_address, result_bytes.len()),
                None => &buffers.returned[..result_bytes.len()],
            };
            let data = support::c_types::data(value.ty());
            if (0..found.len()).any(|i| data[i] && found[i] != result_bytes[i]) {
                let text = format!("the caller received {found:02x?}, not {result_bytes:02x?}");
                failures.push(Failure { kind: Kind::Result, text });
            }
        }
        failures
    }
}
