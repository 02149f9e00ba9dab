//! Runs the body of a test in a process of its own, which may be denied resources.
//!
//! The test binary executes itself for one test. That process forks before it has used anything of
//! the crate, so that the body runs in a process with a single thread.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::OnceLock;

const VARIABLE: &str = "FOOTBRIDGE_TEST_CHILD";
/// A child that takes longer is killed by SIGALRM. More than a wait in it takes ([`patience`]), so
/// that the child can report what it has waited for; less than nextest's limit.
///
/// [`patience`]: crate::patience
const LIMIT_SECONDS: u32 = 180;

/// How a child ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The body returned without a panic.
    #[track_caller]
    pub fn assert_success(&self) {
        assert!(self.code == Some(0), "the child failed: {self:#?}");
    }

    /// The child ended by abort(3), and wrote exactly this to its standard error.
    #[track_caller]
    pub fn assert_aborted_with(&self, masked_stderr: &str) {
        assert_eq!(mask(&self.stderr), masked_stderr, "{self:#?}");
        assert_eq!(self.signal, Some(libc::SIGABRT), "{self:#?}");
    }

    /// Like [`Self::assert_aborted_with`], where the id of the goroutine is not known.
    #[track_caller]
    pub fn assert_aborted_with_goroutine(&self, masked: &str) {
        let text = mask(&self.stderr);
        let (front, rest) = text.split_once("goroutine ").expect("a goroutine");
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        assert_eq!(format!("{front}goroutine _{rest}"), masked);
        assert_eq!(self.signal, Some(libc::SIGABRT), "{self:#?}");
    }
}

/// Runs `body` in a child process of the test named `test`, and returns how the child ended.
///
/// In the child itself this does not return.
pub fn run(test: &str, body: impl FnOnce()) -> Outcome {
    run_case(test, 0, body).expect("a test without cases has case 0 only")
}

/// Like [`run`], for one of several numbered cases of a test. In the child of another case this
/// does nothing.
pub fn run_case(test: &str, case: usize, body: impl FnOnce()) -> Option<Outcome> {
    Child::of(test).case(case, body)
}

/// A child process with settings other than the defaults of [`run`].
pub struct Child<'a> {
    test: &'a str,
    limit_seconds: u32,
    environment: Vec<(&'a str, &'a str)>,
    /// A program that runs the test binary, and the arguments before the binary's path.
    under: &'a [&'a str],
}

impl<'a> Child<'a> {
    /// A child of the test named `test`.
    pub fn of(test: &'a str) -> Self {
        Self { test, limit_seconds: LIMIT_SECONDS, environment: vec![], under: &[] }
    }

    /// Sets the time after which SIGALRM kills the child.
    pub fn limit_seconds(self, limit_seconds: u32) -> Self {
        Self { limit_seconds, ..self }
    }

    /// Adds a variable to the child's environment.
    pub fn with(mut self, name: &'a str, value: &'a str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Runs the child under a program, such as `["valgrind", "--quiet"]`.
    pub fn under(self, program: &'a [&'a str]) -> Self {
        Self { under: program, ..self }
    }

    /// Like the function [`run`].
    pub fn run(self, body: impl FnOnce()) -> Outcome {
        self.case(0, body).expect("a test without cases has case 0 only")
    }

    /// Like [`run_case`].
    pub fn case(self, case: usize, body: impl FnOnce()) -> Option<Outcome> {
        let this = format!("{}/{case}", self.test);
        match std::env::var(VARIABLE) {
            Ok(child) if child == this => alone(self.limit_seconds, body),
            Ok(_) => None,
            Err(_) => Some(self.start(&this)),
        }
    }

    fn start(self, this: &str) -> Outcome {
        let Self { test, environment, under, .. } = self;
        let under = under.iter().map(OsString::from);
        let mut words = under.chain(this_program());
        let mut command = Command::new(words.next().expect("at least the program"));
        let output = command
            .args(words)
            .args([&path_of(test), "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, this)
            .env("RUST_BACKTRACE", "0")
            .envs(environment)
            .output()
            .expect("the test binary starts");
        outcome(test, output)
    }
}

/// The words that start this test binary again. `FOOTBRIDGE_TEST_RUNNER` is what a program of
/// another machine needs before it: an emulator (`.ci/aarch64`).
fn this_program() -> impl Iterator<Item = OsString> {
    let program = std::env::current_exe().expect("the test binary has a path");
    std::env::var_os("FOOTBRIDGE_TEST_RUNNER").into_iter().chain([program.into_os_string()])
}

/// The path (`module::test`) of a test in this binary. Its name must be unique in the binary.
fn path_of(test: &str) -> String {
    static LIST: OnceLock<String> = OnceLock::new();
    let list = LIST.get_or_init(|| {
        let mut words = this_program();
        let mut command = Command::new(words.next().expect("at least the program"));
        let listing = command.args(words).args(["--list", "--format=terse"]).output();
        String::from_utf8(listing.expect("the test binary starts").stdout).expect("names")
    });
    let paths = list.lines().filter_map(|line| line.strip_suffix(": test"));
    let found: Vec<_> = paths.filter(|path| path.rsplit("::").next() == Some(test)).collect();
    assert!(found.len() == 1, "{test} is the name of {} tests: {found:?}", found.len());
    found[0].to_owned()
}

fn outcome(test: &str, output: std::process::Output) -> Outcome {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let outcome = Outcome {
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: text(output.stdout),
        // An emulator's own words about a program that a signal ends, once for the forked process
        // and once for the one that passes its end on.
        stderr: text(output.stderr)
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("qemu: uncaught target signal"))
            .collect(),
    };
    assert!(outcome.stdout.contains(BEGIN), "{test} is not the name of the test: {outcome:#?}");
    outcome
}

/// Written to standard output before the body runs.
const BEGIN: &str = "[child]";

fn alone(limit_seconds: u32, body: impl FnOnce()) -> ! {
    println!("{BEGIN}");
    // SAFETY: the other thread of this process is libtest's, which waits for this one and holds
    // no lock; the forked process has a copy of this thread only.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: plain system calls.
            unsafe {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                libc::alarm(limit_seconds);
            }
            let returned = catch_unwind(AssertUnwindSafe(body)).is_ok();
            // A closed standard output is for the parent to report.
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process; nothing is left to run.
            unsafe { libc::_exit(if returned { 0 } else { 101 }) }
        }
        pid => {
            let status = wait(pid);
            // SAFETY: this process ends in the way in which the child ended.
            unsafe {
                if libc::WIFSIGNALED(status) {
                    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                    libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
                    libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
                    libc::raise(libc::WTERMSIG(status));
                }
                libc::_exit(libc::WEXITSTATUS(status))
            }
        }
    }
}

/// Waits for a child and returns its status as waitpid(2) gives it.
pub fn wait(pid: libc::pid_t) -> libc::c_int {
    assert!(pid > 0, "fork failed: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the address of a local.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {}
    status
}

/// The masked message of the overflow of goroutine `id`, whose stack has `size`. `in_what` is the
/// function that overflowed it, `next` the next larger class.
pub fn overflow(id: &str, size: &str, next: &str, in_what: &str, frames: &str) -> String {
    format!(
        "footbridge: fatal: goroutine {id} overflowed its {size} stack in {in_what}\n\
         pc 0x_, rsp 0x_, access to 0x_ in the guard 0x_..0x_\n\
         the next class is {next}: runtime::Builder::stack_bytes for one goroutine, \
         Config::stack_bytes for all\n\
         JIT frames, innermost first:\n{frames}"
    )
}

/// The list of frames in [`overflow`] where no JIT frame is on the stack.
pub const NO_FRAMES: &str = "    (none)\n";

/// Replaces hexadecimal numbers by `0x_` and removes the source locations of frames.
pub fn mask(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let frame = line.trim_start().starts_with("rust ");
        let line = match line.rfind(" at /").filter(|_| frame) {
            Some(at) => &format!("{}\n", &line[..at]),
            None => line,
        };
        let mut rest = line;
        while let Some(at) = rest.find("0x") {
            out.push_str(&rest[..at]);
            out.push_str("0x_");
            rest = rest[at + 2..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
        }
        out.push_str(rest);
    }
    out
}

/// Limits the address space to its present size plus `more_bytes`.
pub fn limit_address_space(more_bytes: usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: usize = statm.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    let limit = (pages * 4096 + more_bytes) as libc::rlim_t;
    // SAFETY: the address of a local.
    let failed = unsafe {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: libc::RLIM_INFINITY };
        libc::setrlimit(libc::RLIMIT_AS, &raw const limit)
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// Removes the limit that [`limit_address_space`] set.
pub fn unlimit_address_space() {
    // SAFETY: the address of a local.
    unsafe {
        let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limit), 0);
    }
}

/// A system call that fails after [`refuse`].
pub struct Refusal {
    pub call: libc::c_long,
    /// `(index, mask, value)`: refused only if the argument of that index, masked, is the value.
    /// None refuses every call.
    pub argument: Option<(u32, u32, u32)>,
    pub errno: libc::c_int,
}

/// Installs a seccomp(2) filter on this thread and the threads that it starts later: the calls fail
/// with their errno.
pub fn refuse(refusals: &[Refusal]) {
    install_filter(refusals, 0);
}

/// Like [`refuse`], on all threads of the process.
pub fn refuse_on_all_threads(refusals: &[Refusal]) {
    install_filter(refusals, libc::SECCOMP_FILTER_FLAG_TSYNC);
}

fn install_filter(refusals: &[Refusal], flags: libc::c_ulong) {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const ERRNO: u32 = 0x0005_0000;
    const ALLOW: u32 = 0x7fff_0000;
    /// struct seccomp_data: the number of the call, and the first of six 64-bit arguments.
    const NUMBER: u32 = 0;
    const ARGUMENTS: u32 = 16;
    let op = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut program = Vec::new();
    for refusal in refusals {
        let body = match refusal.argument {
            None => vec![],
            Some((index, mask, value)) => {
                vec![op(LOAD, ARGUMENTS + 8 * index, 0), op(AND, mask, 0), op(IF_EQUAL, value, 1)]
            }
        };
        program.push(op(LOAD, NUMBER, 0));
        program.push(op(IF_EQUAL, refusal.call as u32, body.len() as u8 + 1));
        program.extend(body);
        program.push(op(RETURN, ERRNO | refusal.errno as u32, 0));
    }
    program.push(op(RETURN, ALLOW, 0));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: a valid program of that length, copied by the kernel.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let set = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const filter);
        assert_eq!(set, 0, "seccomp: {}", std::io::Error::last_os_error());
    }
}
