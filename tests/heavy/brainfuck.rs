//! Runs `examples/brainfuck.rs` as a command, and compares it with an interpreter.
//!
//! Also checks the output of `examples/quickstart.rs`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use proptest::prelude::*;

const CELLS: usize = 30_000;
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/programs");
const USAGE: &str = "\
usage: brainfuck [--stages N] [--processors N] [--trace] PROGRAM...
Runs the programs as a pipeline from stdin to stdout.
  --stages N      repeat the list of programs N times
  --processors N  threads that run goroutines
  --trace         after the first byte of output, print where every goroutine is to stderr
";
const TEXT: &str = "\
# Readme: a bridge for those on foot

Four worlds call each other: JIT code, Rust, C, a scheduler. Grüße, 道, ½ @[`{ AMNZ amnz 0189.

    let jit = Jit::new()?;\r\n\tend, without a line feed";

// ---- running examples ----

/// An example, in the folder next to this test's. `cargo test` builds examples before it runs
/// tests; `cargo test --test brainfuck` does not, so an outdated example must not pass.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = profile.join("examples").join(name);
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(format!("{name}.rs"));
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    assert!(
        modified(&path) >= modified(&source),
        "{} is missing or older than its source: cargo build --examples",
        path.display()
    );
    path
}

fn brainfuck(args: &[&str], input: impl AsRef<[u8]>) -> Output {
    run(Command::new(example("brainfuck")).args(args), input.as_ref())
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the example starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    thread::scope(|s| {
        // Ignores a closed pipe: the program may exit before it has read all its input.
        s.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().expect("its output is readable")
    })
}

#[track_caller]
fn assert_output(output: &Output, code: i32, stdout: impl AsRef<[u8]>, stderr: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
    assert_eq!(output.status.code(), Some(code), "{}", output.status);
    let stdout = stdout.as_ref();
    assert!(
        output.stdout == stdout,
        "stdout is\n{}\ninstead of\n{}",
        output.stdout.escape_ascii(),
        stdout.escape_ascii()
    );
}

/// Writes a program to a file of its own and returns the path.
fn program(source: &str) -> String {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let directory = DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("brainfuck-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("the target directory is writable");
        directory
    });
    let path = directory.join(format!("{}.bf", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::write(&path, source).expect("the target directory is writable");
    path.into_os_string().into_string().expect("the target directory has a name in UTF-8")
}

// ---- the reference ----

#[derive(Debug, PartialEq, Eq)]
enum End {
    Ran,
    /// The pointer left the tape, by the instruction at this offset.
    Out {
        at: usize,
        pointer: i64,
    },
    OutOfSteps,
}

/// Executes the program one instruction at a time, as the language is defined.
fn interpret(source: &[u8], input: &[u8], most_steps: u64) -> (Vec<u8>, End) {
    let code: Vec<(usize, u8)> =
        source.iter().copied().enumerate().filter(|(_, b)| b"+-<>[].,".contains(b)).collect();
    let mut partner = vec![0; code.len()];
    let mut open = Vec::new();
    for (i, (_, instruction)) in code.iter().enumerate() {
        match instruction {
            b'[' => open.push(i),
            b']' => {
                let start: usize = open.pop().expect("brackets are balanced");
                (partner[start], partner[i]) = (i, start);
            }
            _ => {}
        }
    }
    let (mut tape, mut pointer) = (vec![0u8; CELLS], 0usize);
    let (mut input, mut output) = (input.iter(), Vec::new());
    let (mut pc, mut steps) = (0, 0);
    while let Some(&(at, instruction)) = code.get(pc) {
        steps += 1;
        if steps > most_steps {
            return (output, End::OutOfSteps);
        }
        match instruction {
            b'+' => tape[pointer] = tape[pointer].wrapping_add(1),
            b'-' => tape[pointer] = tape[pointer].wrapping_sub(1),
            b'>' if pointer + 1 == CELLS => {
                return (output, End::Out { at, pointer: CELLS as i64 });
            }
            b'<' if pointer == 0 => return (output, End::Out { at, pointer: -1 }),
            b'>' => pointer += 1,
            b'<' => pointer -= 1,
            b'.' => output.push(tape[pointer]),
            b',' => tape[pointer] = input.next().copied().unwrap_or(0),
            b'[' if tape[pointer] == 0 => pc = partner[pc],
            b']' if tape[pointer] != 0 => pc = partner[pc],
            _ => {}
        }
        pc += 1;
    }
    (output, End::Ran)
}

/// The line that the example prints for a program of one line.
fn out_message(path: &str, at: usize, pointer: i64) -> String {
    let column = at + 1;
    format!(
        "brainfuck: stage 1: {path}:1:{column}: the cell pointer moved to {pointer}, and the tape \
         has cells 0 to 29999\n"
    )
}

// ---- shipped programs ----

#[test]
fn rot13_twice_is_the_identity() {
    assert_output(&brainfuck(&["rot13.bf", "rot13.bf"], TEXT), 0, TEXT, "");
    let bytes: Vec<u8> = (1..=255).cycle().take(20_000).collect();
    assert_output(&brainfuck(&["rot13.bf", "rot13.bf"], &bytes), 0, &bytes, "");
}

#[test]
fn rot13_moves_letters_only() {
    let rotate = |byte: u8| match byte {
        b'A'..=b'M' | b'a'..=b'm' => byte + 13,
        b'N'..=b'Z' | b'n'..=b'z' => byte - 13,
        other => other,
    };
    let bytes: Vec<u8> = (1..=255).collect();
    let expected: Vec<u8> = bytes.iter().copied().map(rotate).collect();
    assert_output(&brainfuck(&["rot13.bf"], &bytes), 0, expected, "");
}

#[test]
fn shipped_programs_print_the_documented_output() {
    assert_output(&brainfuck(&["hello.bf"], ""), 0, "Hello, goroutines!\n", "");
    let squares: String = (0..=100).map(|n| format!("{}\n", n * n)).collect();
    assert_output(&brainfuck(&["squares.bf"], ""), 0, squares, "");
    let is_prime = |n: &u32| (2..*n).all(|d| !n.is_multiple_of(d));
    let primes: String = (2..256).filter(is_prime).map(|n| format!("{n}\n")).collect();
    assert_output(&brainfuck(&["primes.bf"], ""), 0, primes, "");
    let mut triangle = String::new();
    for row in 0..32u32 {
        triangle.push_str(&" ".repeat(31 - row as usize));
        // A binomial coefficient is odd if every bit of `column` is set in `row` (Lucas's theorem).
        let odd = |column: u32| row & column == column;
        triangle.extend((0..32).map(|column| if odd(column) { "* " } else { "  " }));
        triangle.push('\n');
    }
    assert_output(&brainfuck(&["sierpinski.bf"], ""), 0, triangle, "");
}

#[test]
fn shipped_programs_agree_with_the_interpreter() {
    let mut seen = Vec::new();
    for entry in fs::read_dir(SHIPPED).expect("the programs are shipped") {
        let path = entry.expect("the directory is readable").path();
        let source = fs::read(&path).expect("the program is readable");
        let (output, end) = interpret(&source, TEXT.as_bytes(), u64::MAX);
        assert_eq!(end, End::Ran, "{}", path.display());
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8");
        assert_output(&brainfuck(&[name], TEXT), 0, output, "");
        seen.push(name.to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["hello.bf", "primes.bf", "rot13.bf", "sierpinski.bf", "squares.bf"]);
}

// ---- pipelines ----

#[test]
fn two_hundred_stages() {
    let args = ["--stages", "200", "rot13.bf"];
    assert_output(&brainfuck(&args, TEXT), 0, TEXT, "");
    for processors in ["1", "2", "7"] {
        let args = ["--processors", processors, "--stages", "100", "rot13.bf", "rot13.bf"];
        assert_output(&brainfuck(&args, TEXT), 0, TEXT, "");
    }
}

#[test]
fn a_stage_ends_quietly_when_the_next_one_has_finished() {
    let (endless, first) = (program("+[.+]+[.]"), program(",."));
    assert_output(&brainfuck(&[&endless, &endless, &first], ""), 0, [1], "");
}

#[test]
fn a_stage_ends_quietly_when_stdout_is_closed() {
    let endless = program("+[.]");
    let mut child = Command::new(example("brainfuck"))
        .arg(&endless)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example starts");
    drop(child.stdout.take());
    assert_output(&child.wait_with_output().expect("stderr is readable"), 0, "", "");
}

#[test]
fn the_end_of_input_stores_zero() {
    assert_output(&brainfuck(&[&program("+,.+,.,.")], ""), 0, [0, 0, 0], "");
    assert_output(&brainfuck(&[&program("+,.+,.,.")], "a"), 0, [b'a', 0, 0], "");
    assert_output(&brainfuck(&["rot13.bf"], ""), 0, "", "");
}

#[test]
fn trace_shows_rust_under_jit_under_rust_for_every_stage() {
    // More than all channels hold together, so that no stage has finished when the first byte is
    // printed.
    let input = TEXT.repeat(20);
    let args = ["--trace", "--processors", "1", "rot13.bf", "rot13.bf", "hello.bf", "rot13.bf"];
    let rot13_only = ["--trace", "--processors", "1", "--stages", "3", "rot13.bf"];
    assert_eq!(brainfuck(&args, &input).stdout, b"Uryyb, tbebhgvarf!\n");
    let output = brainfuck(&rot13_only, &input);
    assert_eq!(output.stdout, brainfuck(&["rot13.bf"], &input).stdout);
    let stderr = String::from_utf8(output.stderr).expect("names are UTF-8");
    let traces: Vec<&str> = stderr.split_terminator("\n\n").collect();
    assert_eq!(traces.len(), 4, "main and three stages:\n{stderr}");
    // In an optimised program, the name of an inlined function may lack its path.
    assert!(traces[0].contains("drain at "), "{stderr}");
    for (i, trace) in traces[1..].iter().enumerate() {
        let mut lines = trace.lines();
        let mut next = |kind: &str, name: &str| {
            let found = lines.any(|line| {
                let line = line.trim_start();
                line.strip_prefix(kind).is_some_and(|rest| rest.contains(name))
            });
            assert!(found, "stage {}: no `{kind} {name}` at its place in\n{trace}", i + 1);
        };
        assert!(trace.starts_with("goroutine "), "{trace}");
        let function = if trace.contains("jit get+") { "get" } else { "put" };
        next("rust ", &format!("{function} at "));
        next("jit ", &format!("{function}+0x"));
        next("jit ", "rot13.bf+0x");
        next("jit ", "rot13.bf+0x");
        next("rust ", "run at ");
        next("jit ", "goroutine entry+0x");
    }
}

// ---- errors ----

#[test]
fn a_pointer_that_leaves_the_tape_is_an_error_that_names_the_instruction() {
    let cases = [
        ("<", 0, -1),
        (">>> <<< <", 8, -1),
        ("+[<+]", 2, -1),
        ("[<]>+[[<<<]]", 8, -1),
        // Loops that are compiled to sums.
        ("+[-<+>]", 3, -1),
        (">+[->+<<<+>>]", 8, -1),
        ("+[>+]", 2, 30_000),
    ];
    for (source, at, pointer) in cases {
        let path = program(source);
        let message = out_message(&path, at, pointer);
        assert_output(&brainfuck(&[&path], ""), 1, "", &message);
    }
    let right = ">".repeat(29_999);
    let inside = program(&format!("{right}+.>>"));
    assert_output(&brainfuck(&[&inside], ""), 1, [1], &out_message(&inside, 30_001, 30_000));
    let sums = program(&format!("{right}<++[->+>+<<]"));
    assert_output(&brainfuck(&[&sums], ""), 1, "", &out_message(&sums, 30_006, 30_000));
    let far = program(&">".repeat(70_000));
    assert_output(&brainfuck(&[&far], ""), 1, "", &out_message(&far, 29_999, 30_000));
}

#[test]
fn the_ends_of_the_tape_are_usable() {
    let (right, left) = (">".repeat(29_999), "<".repeat(29_999));
    let path = program(&format!("+++{right}++.<+[->+<]>.{left}.[-{right}+{left}]{right}."));
    assert_output(&brainfuck(&[&path], ""), 0, [2, 3, 3, 6], "");
}

#[test]
fn a_place_counts_lines_and_characters() {
    let path = program("first line, +\n\n  é道 > one\n  two <\n ½< ");
    let message = format!(
        "brainfuck: stage 1: {path}:5:3: the cell pointer moved to -1, and the tape has cells 0 to \
         29999\n"
    );
    assert_output(&brainfuck(&[&path], ""), 1, "", &message);
}

#[test]
fn a_stage_that_fails_lets_the_others_end() {
    let (greet, fail) = (program("++++[.-]+[.]"), program(",.,.<"));
    let message = format!(
        "brainfuck: stage 2: {fail}:1:5: the cell pointer moved to -1, and the tape has cells 0 to \
         29999\n"
    );
    let copy = program(",[.,]");
    assert_output(&brainfuck(&[&greet, &fail, &copy], ""), 1, [4, 3], &message);
}

#[test]
fn brackets_without_a_partner_are_refused() {
    for (source, place, bracket, partner) in [
        ("+[>", "1:2", '[', ']'),
        ("[[]", "1:1", '[', ']'),
        ("\n []]", "2:4", ']', '['),
        ("]", "1:1", ']', '['),
        ("+++\nä [[+\n]\n[", "4:1", '[', ']'),
    ] {
        let path = program(source);
        let message =
            format!("brainfuck: {path}:{place}: `{bracket}` has no matching `{partner}`\n");
        assert_output(&brainfuck(&["hello.bf", &path], ""), 1, "", &message);
    }
}

#[test]
fn wrong_options_are_refused_with_the_usage() {
    for (args, error) in [
        (&["--fast", "hello.bf"][..], "invalid option '--fast'"),
        (&["-x"], "invalid option '-x'"),
        (&["--stages"], "missing argument for option '--stages'"),
        (&["--stages", "0", "hello.bf"], "--stages is a number from 1 upwards, not `0`"),
        (&["--stages=-1", "hello.bf"], "--stages is a number from 1 upwards, not `-1`"),
        (&["--processors", "257", "hello.bf"], "--processors is a number from 1 to 256, not `257`"),
        (&["--trace=yes", "hello.bf"], "unexpected argument for option '--trace': \"yes\""),
        (&[], "no program is given"),
    ] {
        assert_output(&brainfuck(args, ""), 2, "", &format!("brainfuck: {error}\n{USAGE}"));
    }
    assert_output(&brainfuck(&["--help"], ""), 0, USAGE, "");
}

#[test]
fn what_cannot_be_read_is_refused() {
    let message = "brainfuck: nowhere.bf: No such file or directory (os error 2)\n";
    assert_output(&brainfuck(&["hello.bf", "nowhere.bf"], ""), 1, "", message);
    let directory = fs::File::open(SHIPPED).expect("it exists");
    let command = &mut Command::new(example("brainfuck"));
    let output = command.arg("rot13.bf").stdin(directory).output().expect("the example starts");
    assert_output(&output, 1, "", "brainfuck: stdin: Is a directory (os error 21)\n");
}

#[test]
fn programs_that_are_too_long_are_refused() {
    let path = program(&"+>".repeat(100_000));
    let output = brainfuck(&[&path], "");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with(&format!("brainfuck: {path}: one piece of code is ")), "{stderr}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn nothing_and_deep_nesting_compile() {
    assert_output(&brainfuck(&[&program("")], "input"), 0, "", "");
    let (open, close) = ("[".repeat(15_000), "]".repeat(15_000));
    assert_output(&brainfuck(&[&program(&format!("+{open}-{close}."))], ""), 0, [0], "");
}

// ---- any program ----

/// Balanced pieces of programs. Many loops end; runs that exceed the step limit are not compared.
fn pieces() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        4 => "[-+]{1,4}",
        4 => "[<>]{1,3}",
        2 => "[.,]",
        1 => Just("[-]".to_owned()),
        1 => Just("[>]".to_owned()),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            3 => proptest::collection::vec(inner.clone(), 1..6).prop_map(|parts| parts.concat()),
            1 => proptest::collection::vec(inner, 0..4).prop_map(|parts| format!("[{}]", parts.concat())),
            2 => sums(),
        ]
    })
}

/// Loops of additions and moves; some return to their cell, others do not.
fn sums() -> impl Strategy<Value = String> {
    let step = (0..4usize, any::<bool>(), "[-+]{0,3}");
    (proptest::collection::vec(step, 0..4), 0..4usize).prop_map(|(steps, amiss)| {
        let mut body = String::from("-");
        let mut here = 0i32;
        for (cells, right, sum) in steps {
            body += &if right { ">" } else { "<" }.repeat(cells);
            here += if right { cells as i32 } else { -(cells as i32) };
            body += &sum;
        }
        body += &if here < 0 { ">" } else { "<" }.repeat(here.unsigned_abs() as usize);
        if amiss == 0 {
            body.push('>');
        }
        format!("+++[{body}]")
    })
}

/// Programs that start at an end of the tape, or a few cells from it.
fn programs() -> impl Strategy<Value = String> {
    let start = prop_oneof![0..6usize, CELLS - 7..CELLS];
    (start, proptest::collection::vec(pieces(), 1..8))
        .prop_map(|(start, parts)| format!("{}{}.", ">".repeat(start), parts.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_programs_agree_with_the_interpreter(
        source in programs(),
        input in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let (expected, end) = interpret(source.as_bytes(), &input, 300_000);
        prop_assume!(end != End::OutOfSteps);
        let path = program(&source);
        let (code, stderr) = match end {
            End::Out { at, pointer } => (1, out_message(&path, at, pointer)),
            _ => (0, String::new()),
        };
        let output = brainfuck(&[&path], &input);
        prop_assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
        prop_assert_eq!(output.status.code(), Some(code));
        prop_assert_eq!(output.stdout, expected);
    }
}

// ---- quickstart ----

#[test]
fn quickstart_prints_the_output_in_its_documentation() {
    let output = run(&mut Command::new(example("quickstart")), b"");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 + 2 + ... + 10 = 55\n");
    assert!(output.status.success(), "{}", output.status);
    let stderr = String::from_utf8(output.stderr).expect("names are UTF-8");
    let mut lines = stderr.lines();
    let host = [
        "code memory:  ",
        "stack guards: ",
        "stack memory: ",
        "fences:       ",
        "unwinder:     ",
        "preemption:   ",
        "panic state:  ",
        "handlers:     ",
        "",
    ];
    for label in host {
        let line = lines.next().unwrap_or("nothing");
        assert!(line.starts_with(label) && line.len() >= label.len(), "{line:?} in\n{stderr}");
    }
    assert_eq!(lines.next(), Some("goroutine 2 \"adder\" [running]:"), "{stderr}");
    let mut next = |prefix: &str, suffix: &str| {
        let matches = |line: &str| line.trim_start().starts_with(prefix) && line.ends_with(suffix);
        assert!(lines.any(matches), "no `{prefix}...{suffix}` at its place in\n{stderr}");
    };
    next("rust quickstart::receive", "");
    next("jit quickstart::receive+0x", " (goroutine function)");
    next("jit sum+0x", "");
    next("jit sum+0x", " (enter)");
    next("jit goroutine entry+0x", " (goroutine entry)");
}
