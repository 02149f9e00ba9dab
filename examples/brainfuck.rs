//! Compiles brainfuck programs to machine code and runs them as a pipeline of goroutines.
//!
//! ```text
//! cargo run --release --example brainfuck -- squares.bf
//! cargo run --release --example brainfuck -- rot13.bf rot13.bf < README.md
//! cargo run --release --example brainfuck -- --stages 500 rot13.bf rot13.bf < README.md
//! cargo run --release --example brainfuck -- --trace --processors 1 hello.bf rot13.bf
//! ```
//!
//! The first command prints the squares of 0 to 100. The second and the third print their input.
//! The fourth prints `Uryyb, tbebhgvarf!`, and the stack of every goroutine at the time when `U`
//! was printed: each stage was in a Rust function, called by JIT code, called by Rust code.
//!
//! ```text
//! stdin thread -> [channel] -> stage 1 -> [channel] -> ... stage n -> [channel] -> main goroutine
//!                              (JIT code)                  (JIT code)              (stdout)
//! ```
//!
//! `.` and `,` are goroutine functions: compiled code calls them like any System V function. They
//! park the goroutine, with its JIT frames, while a channel is full or empty.
//!
//! The language: a cell is a byte that wraps, the tape has 30,000 cells, and the end of input
//! stores 0. A stage whose output is closed ends without an error. The cell pointer is checked
//! *where it moves*, not where a cell is used: there are more uses than moves, a run of moves needs
//! one check, and a loop tests its cell for free. A run has one direction, so that a step off the
//! tape and back is not missed. A pointer that leaves the tape ends its stage by a panic, which
//! unwinds through the JIT frames. A stage keeps its processor until it parks in `.` or `,`.
//!
//! Exit codes: 0; 1 if a program is missing or malformed, or if a stage fails; 2 for invalid
//! options.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use footbridge::abi::Convention;
use footbridge::dynasm::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{FrameClass, Jit, JitError, Ops};
use footbridge::runtime::{
    self, Chan, Config, Entry, GoroutineFn, MAX_PROCESSORS, RecvError, TryRecvError,
};

/// The length of a tape.
const CELLS: usize = 30_000;
/// [`CELLS`] as an operand.
const CELLS_I32: i32 = CELLS as i32;
/// The capacity of the channel between two stages.
const CHANNEL_BYTES: usize = 256;
/// The folder that is searched for programs which do not exist as named.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/programs");

const USAGE: &str = "\
usage: brainfuck [--stages N] [--processors N] [--trace] PROGRAM...
Runs the programs as a pipeline from stdin to stdout.
  --stages N      repeat the list of programs N times
  --processors N  threads that run goroutines
  --trace         after the first byte of output, print where every goroutine is to stderr
";

fn main() -> ExitCode {
    let options = match Options::parse(lexopt::Parser::from_env()) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprint!("brainfuck: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(errors) if errors.is_empty() => ExitCode::SUCCESS,
        Ok(errors) => {
            errors.iter().for_each(|error| eprintln!("brainfuck: {error}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("brainfuck: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- options ----

struct Options {
    programs: Vec<PathBuf>,
    repeat: usize,
    trace: bool,
    config: Config,
}

impl Options {
    /// Returns `None` if help was requested.
    fn parse(mut args: lexopt::Parser) -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;

        let mut options =
            Self { programs: Vec::new(), repeat: 1, trace: false, config: Config::new() };
        while let Some(arg) = args.next()? {
            match arg {
                Long("stages") => options.repeat = number(&args.value()?, "--stages", usize::MAX)?,
                Long("processors") => {
                    let processors = number(&args.value()?, "--processors", MAX_PROCESSORS)?;
                    options.config = options.config.processors(processors);
                }
                Long("trace") => options.trace = true,
                Short('h') | Long("help") => return Ok(None),
                Value(program) => options.programs.push(program.into()),
                _ => return Err(arg.unexpected()),
            }
        }
        if options.programs.is_empty() {
            return Err("no program is given".into());
        }
        Ok(Some(options))
    }
}

/// A number from 1 to `max`.
fn number(value: &OsString, option: &str, max: usize) -> Result<usize, lexopt::Error> {
    let number = value.to_str().and_then(|text| text.parse().ok());
    number.filter(|n| (1..=max).contains(n)).ok_or_else(|| {
        let upwards = if max == usize::MAX { "upwards".into() } else { format!("to {max}") };
        let value = value.display();
        format!("{option} is a number from 1 {upwards}, not `{value}`").into()
    })
}

// ---- errors ----

/// An error before a stage runs.
enum Error {
    Read { path: PathBuf, error: io::Error },
    Bracket { program: PathBuf, place: Place, which: char },
    Jit { program: PathBuf, error: JitError },
    Bridge(JitError),
    Run(runtime::RunError),
    Start { stage: usize, reason: String },
    Output(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Bracket { program, place, which } => {
                let partner = if *which == '[' { ']' } else { '[' };
                write!(f, "{}:{place}: `{which}` has no matching `{partner}`", program.display())
            }
            Self::Jit { program, error } => write!(f, "{}: {error}", program.display()),
            Self::Bridge(error) => write!(f, "{error}"),
            Self::Run(error) => write!(f, "{error}"),
            Self::Start { stage, reason } => write!(f, "stage {stage}: {reason}"),
            Self::Output(error) => write!(f, "stdout: {error}"),
        }
    }
}

/// The payload of the panic that ends a stage whose pointer leaves the tape.
struct MovedOut {
    /// The offset in the source of the instruction that left the tape.
    at: usize,
    /// The cell pointer after that instruction.
    pointer: i64,
}

/// A line and a column, from 1. Columns count characters.
struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn of(source: &[u8], at: usize) -> Self {
        let before = &source[..at];
        let line_start = before.iter().rposition(|&b| b == b'\n').map_or(0, |newline| newline + 1);
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        // A byte of the form 10xxxxxx continues a UTF-8 character.
        let column = 1 + before[line_start..].iter().filter(|&&b| b & 0xc0 != 0x80).count();
        Self { line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

// ---- source to operations ----

/// An operation of a program. Loops are flat: `Open` and `Close` come in pairs.
#[derive(Clone)]
enum Op {
    /// A run of `+` and `-`.
    Add(u8),
    Move(Run),
    Put,
    Get,
    Open,
    Close,
    /// `[-]` or `[+]`.
    Clear,
    Multiply(Multiply),
}

/// A run of `>` or of `<`, never of both: each single step has to stay on the tape.
#[derive(Clone, Copy)]
struct Run {
    right: bool,
    /// At most `CELLS`, which leaves the tape from any cell.
    cells: i32,
    /// The offset in the source of the first instruction.
    at: usize,
}

/// `[->+++>+<<]`: a loop of moves and additions that returns to its cell and decrements it each
/// time.
///
/// The loop adds multiples of its cell to other cells, and the pointer visits the same cells in
/// every iteration. If all of them are on the tape, the additions are done at once; otherwise
/// `plain` is executed.
#[derive(Clone)]
struct Multiply {
    /// Cells relative to the loop's own, and the number added to each in every iteration.
    targets: Vec<(i32, u8)>,
    /// The outermost cells that the pointer visits, relative to the loop's own: at most 0, at least
    /// 0.
    leftmost: i32,
    rightmost: i32,
    /// The loop as written, with its brackets.
    plain: Vec<Op>,
}

/// Fails with the offset of an unmatched bracket.
fn parse(source: &[u8]) -> Result<Vec<Op>, usize> {
    let mut ops = Vec::new();
    // The open loops: the index of the `Open` operation, and the offset of the bracket.
    let mut open = Vec::new();
    for (at, &instruction) in source.iter().enumerate() {
        match (instruction, ops.last_mut()) {
            (b'+', Some(Op::Add(sum))) => *sum = sum.wrapping_add(1),
            (b'+', _) => ops.push(Op::Add(1)),
            (b'-', Some(Op::Add(sum))) => *sum = sum.wrapping_sub(1),
            (b'-', _) => ops.push(Op::Add(1u8.wrapping_neg())),
            (b'>' | b'<', Some(Op::Move(run))) if run.right == (instruction == b'>') => {
                run.cells = CELLS_I32.min(run.cells + 1);
            }
            (b'>' | b'<', _) => {
                ops.push(Op::Move(Run { right: instruction == b'>', cells: 1, at }));
            }
            (b'.', _) => ops.push(Op::Put),
            (b',', _) => ops.push(Op::Get),
            (b'[', _) => {
                open.push((ops.len(), at));
                ops.push(Op::Open);
            }
            (b']', _) => {
                let (start, _) = open.pop().ok_or(at)?;
                ops.push(Op::Close);
                if let Some(better) = simplify(&ops[start..]) {
                    ops.truncate(start);
                    ops.push(better);
                }
            }
            _ => {}
        }
    }
    open.pop().map_or(Ok(ops), |(_, at)| Err(at))
}

/// The single operation that is equivalent to a whole loop.
fn simplify(whole: &[Op]) -> Option<Op> {
    let body = &whole[1..whole.len() - 1];
    if let [Op::Add(1 | 255)] = body {
        return Some(Op::Clear);
    }
    let (mut here, mut leftmost, mut rightmost) = (0i32, 0, 0);
    let mut targets: Vec<(i32, u8)> = Vec::new();
    for op in body {
        match op {
            Op::Add(sum) => match targets.iter_mut().find(|(cell, _)| *cell == here) {
                Some((_, total)) => *total = total.wrapping_add(*sum),
                None => targets.push((here, *sum)),
            },
            Op::Move(run) => {
                let distance = if run.right { run.cells } else { -run.cells };
                here = here.checked_add(distance)?;
                leftmost = here.min(leftmost);
                rightmost = here.max(rightmost);
            }
            _ => return None,
        }
    }
    let own = targets.iter().position(|(cell, _)| *cell == 0)?;
    let takes_one = targets.swap_remove(own).1 == 255;
    let fits = -leftmost < CELLS_I32 && rightmost < CELLS_I32;
    (here == 0 && takes_one && fits)
        .then(|| Op::Multiply(Multiply { targets, leftmost, rightmost, plain: whole.to_vec() }))
}

// ---- operations to machine code ----

/// The Rust functions that compiled code calls.
struct Bridges {
    put: GoroutineFn,
    get: GoroutineFn,
    moved_out: GoroutineFn,
}

impl Bridges {
    fn new(jit: &Jit) -> Result<Self, JitError> {
        Ok(Self {
            put: jit.named_goroutine_fn("put", Convention::SystemV, put)?,
            get: jit.named_goroutine_fn("get", Convention::SystemV, get)?,
            moved_out: jit.named_goroutine_fn("moved_out", Convention::SystemV, moved_out)?,
        })
    }
}

/// A compiled program. Stages that run the same program share it.
struct Program {
    path: PathBuf,
    source: Vec<u8>,
    entry: Entry<fn(*const Stage, *mut u8)>,
}

impl Program {
    fn load(path: &Path, jit: &Jit, bridges: &Bridges) -> Result<Self, Error> {
        let shipped = Path::new(SHIPPED).join(path);
        let found = if !path.exists() && shipped.exists() { &shipped } else { path };
        let source =
            std::fs::read(found).map_err(|error| Error::Read { path: path.into(), error })?;
        let ops = parse(&source).map_err(|at| Error::Bracket {
            program: path.into(),
            place: Place::of(&source, at),
            which: char::from(source[at]),
        })?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let jit_error = |error| Error::Jit { program: path.into(), error };
        // SAFETY:
        // 1. `compile` opens with the prologue of a saved frame. Of the registers that the frame
        //    preserves, it changes only rbx, r12 and r13; rsp stays as the prologue left it.
        // 2. The class is neither Entry nor Root.
        // 3. The code is entered below, as System V code.
        let code = unsafe {
            jit.install(&name, FrameClass::Saved, |code| Compiler::new(code, bridges).compile(&ops))
        };
        let code = code.map_err(jit_error)?;
        // SAFETY: `compile` emits a System V function of this type with a saved frame.
        let entry = unsafe { code.enter(Convention::SystemV) }.map_err(jit_error)?;
        Ok(Self { path: path.into(), source, entry })
    }
}

/// Emits one program. The registers of the emitted code:
///
/// ```text
/// rbx  the cell pointer, 0 .. CELLS-1: an index, zero-extended
/// r12  the tape
/// r13  the stage
/// ```
struct Compiler<'a> {
    code: &'a mut Ops,
    bridges: &'a Bridges,
    /// The exit of the function.
    exit: DynamicLabel,
    /// The open loops: the first instruction of the body, and the first one after the loop.
    loops: Vec<(DynamicLabel, DynamicLabel)>,
    /// Checks of moves that may leave the tape: the target of the check, which finds the pointer
    /// unchanged.
    checks: Vec<(DynamicLabel, Run)>,
}

impl<'a> Compiler<'a> {
    fn new(code: &'a mut Ops, bridges: &'a Bridges) -> Self {
        let exit = code.new_dynamic_label();
        Self { code, bridges, exit, loops: Vec::new(), checks: Vec::new() }
    }

    /// Emits `fn(stage: *const Stage, tape: *mut u8)`.
    fn compile(mut self, ops: &[Op]) {
        // The five pushes leave rsp misaligned by 8 bytes; calls require 16-byte alignment.
        dynasm!(self.code
            ; .arch x64
            ; push rbp
            ; mov rbp, rsp
            ; push rbx
            ; push r12
            ; push r13
            ; push r14
            ; push r15
            ; sub rsp, 8
            ; mov r13, rdi
            ; mov r12, rsi
            ; xor ebx, ebx
        );
        ops.iter().for_each(|op| self.emit(op));
        dynasm!(self.code
            ; .arch x64
            ; =>self.exit
            ; mov rbx, [rbp - 8]
            ; mov r12, [rbp - 16]
            ; mov r13, [rbp - 24]
            ; mov r14, [rbp - 32]
            ; mov r15, [rbp - 40]
            ; leave
            ; ret
        );
        self.emit_checks();
    }

    fn emit(&mut self, op: &Op) {
        match op {
            Op::Add(sum) => {
                let sum = *sum as i8;
                dynasm!(self.code; .arch x64; add BYTE [r12 + rbx], sum);
            }
            Op::Move(run) => self.emit_move(*run),
            Op::Put => {
                let (put, exit) = (self.bridges.put.address(), self.exit);
                dynasm!(self.code
                    ; .arch x64
                    ; mov rdi, r13
                    ; movzx esi, BYTE [r12 + rbx]
                    ; call extern put
                    ; test al, al
                    ; jz =>exit
                );
            }
            Op::Get => {
                let get = self.bridges.get.address();
                dynasm!(self.code
                    ; .arch x64
                    ; mov rdi, r13
                    ; call extern get
                    ; mov [r12 + rbx], al
                );
            }
            Op::Open => {
                let (body, end) = (self.code.new_dynamic_label(), self.code.new_dynamic_label());
                self.loops.push((body, end));
                dynasm!(self.code; .arch x64; cmp BYTE [r12 + rbx], 0; je =>end; =>body);
            }
            Op::Close => {
                let (body, end) = self.loops.pop().expect("the parser pairs brackets");
                dynasm!(self.code; .arch x64; cmp BYTE [r12 + rbx], 0; jne =>body; =>end);
            }
            Op::Clear => dynasm!(self.code; .arch x64; mov BYTE [r12 + rbx], 0),
            Op::Multiply(multiply) => self.emit_multiply(multiply),
        }
    }

    fn emit_move(&mut self, run: Run) {
        let out = self.code.new_dynamic_label();
        self.checks.push((out, run));
        let cells = run.cells;
        if run.right {
            dynasm!(self.code; .arch x64; cmp ebx, CELLS_I32 - cells; jge =>out; add ebx, cells);
        } else {
            dynasm!(self.code; .arch x64; cmp ebx, cells; jl =>out; sub ebx, cells);
        }
    }

    fn emit_multiply(&mut self, multiply: &Multiply) {
        let Multiply { targets, leftmost, rightmost, plain } = multiply;
        let (left, right) = (-leftmost, CELLS_I32 - rightmost);
        let as_written = self.code.new_dynamic_label();
        let end = self.code.new_dynamic_label();
        dynasm!(self.code
            ; .arch x64
            ; movzx eax, BYTE [r12 + rbx]
            ; test eax, eax
            ; jz =>end
            ; cmp ebx, left
            ; jl =>as_written
            ; cmp ebx, right
            ; jge =>as_written
        );
        for &(cell, factor) in targets {
            match factor {
                0 => {}
                1 => dynasm!(self.code; .arch x64; add [r12 + rbx + cell], al),
                255 => dynasm!(self.code; .arch x64; sub [r12 + rbx + cell], al),
                _ => {
                    let factor = i32::from(factor);
                    dynasm!(self.code
                        ; .arch x64
                        ; imul ecx, eax, factor
                        ; add [r12 + rbx + cell], cl
                    );
                }
            }
        }
        // The loop as written leaves the tape in its first iteration, at the instruction to report.
        dynasm!(self.code; .arch x64; mov BYTE [r12 + rbx], 0; jmp =>end; =>as_written);
        plain.iter().for_each(|op| self.emit(op));
        dynasm!(self.code; .arch x64; =>end);
    }

    /// Emits the targets of the checks, after the function, since they are rarely executed.
    fn emit_checks(self) {
        let moved_out = self.bridges.moved_out.address();
        for (out, run) in self.checks {
            let (at, right) = (run.at as i64, i32::from(run.right));
            dynasm!(self.code
                ; .arch x64
                ; =>out
                ; mov rdi, r13
                ; mov rsi, QWORD at
                ; mov edx, ebx
                ; mov ecx, right
                ; call extern moved_out
                ; ud2
            );
        }
    }
}

// ---- stages ----

/// One running program. Dropping it, at the end of the goroutine or during a panic, closes both
/// channels: the next stage then finds the end of its input, and the previous one a closed output.
struct Stage {
    program: Arc<Program>,
    input: Chan<u8>,
    output: Chan<u8>,
    /// Whether to print a trace after the next byte. Only set for the last stage.
    trace: AtomicBool,
}

impl Stage {
    fn run(&self) {
        let mut tape = vec![0; CELLS];
        // SAFETY: this is a goroutine. The code was compiled for these arguments. It accesses cells
        // 0 to CELLS-1 of the tape, and both arguments outlive the call.
        unsafe { self.program.entry.call(self, tape.as_mut_ptr()) };
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.input.close();
        self.output.close();
    }
}

/// `.` Returns whether the stage continues.
fn put(stage: &Stage, byte: u8) -> bool {
    let sent = stage.output.send(byte).is_ok();
    if sent && stage.trace.load(Ordering::Relaxed) && stage.trace.swap(false, Ordering::Relaxed) {
        let all: String = runtime::traceback_all().iter().map(|t| format!("{t}\n")).collect();
        eprint!("{all}");
    }
    sent
}

/// `,` Returns 0 at the end of the input.
fn get(stage: &Stage) -> u8 {
    stage.input.recv().unwrap_or(0)
}

/// Ends the stage: a run of moves that starts at offset `at` of the source leaves the tape from the
/// cell `before`.
fn moved_out(stage: &Stage, at: usize, before: u32, right: bool) {
    let before = before as usize;
    let (instruction, steps_inside, pointer) =
        if right { (b'>', CELLS - 1 - before, CELLS as i64) } else { (b'<', before, -1) };
    let run = stage.program.source.iter().enumerate().skip(at);
    let at = run.filter(|(_, b)| **b == instruction).nth(steps_inside).map(|(at, _)| at);
    let at = at.expect("the run is long enough to move out");
    // Not `panic!`: the panic hook must not print a message.
    resume_unwind(Box::new(MovedOut { at, pointer }));
}

// ---- the pipeline ----

/// Runs all stages, and returns the errors of stages.
fn run(options: &Options) -> Result<Vec<String>, Error> {
    let jit = Jit::new().map_err(Error::Bridge)?;
    let bridges = Bridges::new(&jit).map_err(Error::Bridge)?;
    let mut programs: Vec<Arc<Program>> = Vec::new();
    let mut pipeline: Vec<Arc<Program>> = Vec::new();
    for path in &options.programs {
        let program = match programs.iter().find(|program| program.path == *path) {
            Some(program) => Arc::clone(program),
            None => Arc::new(Program::load(path, &jit, &bridges)?),
        };
        programs.push(Arc::clone(&program));
        pipeline.push(program);
    }
    let stages = pipeline.len().saturating_mul(options.repeat);
    let pipeline = pipeline.iter().cycle().take(stages).cloned();
    match options.config.run(|| run_stages(pipeline, stages, options.trace)) {
        Ok(result) => result,
        Err(error) => Err(Error::Run(error)),
    }
}

/// The body of the main goroutine.
fn run_stages(
    pipeline: impl Iterator<Item = Arc<Program>>,
    stages: usize,
    trace: bool,
) -> Result<Vec<String>, Error> {
    let stdin = Chan::new(CHANNEL_BYTES);
    let mut input = stdin.clone();
    let mut handles = Vec::new();
    for (stage, program) in (1..).zip(pipeline) {
        let output = Chan::new(CHANNEL_BYTES);
        let trace = AtomicBool::new(trace && stage == stages);
        let ready = Stage { program: Arc::clone(&program), input, output: output.clone(), trace };
        let handle = runtime::Builder::new()
            .go(move || ready.run())
            .map_err(|error| Error::Start { stage, reason: error.to_string() })?;
        handles.push((stage, program, handle));
        input = output;
    }
    // Reading stdin blocks, so a thread of its own does it. The thread is not joined: when a stage
    // ends early, it stays in `read`.
    let unreadable = Arc::new(OnceLock::new());
    let report = Arc::clone(&unreadable);
    std::thread::spawn(move || {
        if let Err(error) = feed(&stdin) {
            report.get_or_init(|| error);
        }
        stdin.close();
    });
    let written = drain(&input);
    input.close();
    let mut errors = Vec::new();
    for (stage, program, handle) in handles {
        let Err(payload) = handle.join() else {
            continue;
        };
        match payload.downcast::<MovedOut>() {
            Ok(moved_out) => errors.push(format!(
                "stage {stage}: {}:{}: the cell pointer moved to {}, and the tape has cells 0 to {}",
                program.path.display(),
                Place::of(&program.source, moved_out.at),
                moved_out.pointer,
                CELLS - 1,
            )),
            Err(other) => resume_unwind(other),
        }
    }
    errors.extend(unreadable.get().map(|error| format!("stdin: {error}")));
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(errors),
    }
}

/// Sends standard input to the first stage, until the input ends or the stage does.
fn feed(first: &Chan<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        let read = match stdin.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // A read of 0 bytes is the end of the input.
        if read == 0 || buffer[..read].iter().any(|&byte| first.send(byte).is_err()) {
            return Ok(());
        }
    }
}

/// Writes the output of the last stage, until the stage ends or stdout is closed. Flushes before it
/// waits.
fn drain(last: &Chan<u8>) -> io::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    loop {
        let byte = match last.try_recv() {
            Ok(byte) => byte,
            Err(TryRecvError::Closed) => return stdout.flush(),
            Err(TryRecvError::Empty) => {
                stdout.flush()?;
                match last.recv() {
                    Ok(byte) => byte,
                    Err(RecvError) => return Ok(()),
                }
            }
        };
        stdout.write_all(&[byte])?;
    }
}
