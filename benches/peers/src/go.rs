//! The Go side: finds the toolchain, and runs a process of `../go/main.go` that measures on
//! request.
//!
//! Nothing is downloaded: the program uses the standard packages only. Between requests its process
//! is idle.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use crate::meter::Subject;
use crate::spawn::Parked;

/// The variable that names the toolchain.
const TOOLCHAIN: &str = "FOOTBRIDGE_GO";

/// The Go program, built and running.
pub struct Go {
    program: PathBuf,
    server: Rc<RefCell<Server>>,
}

/// A process that measures on request.
struct Server {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Go {
    /// Builds the program, if there is a toolchain: the one that `FOOTBRIDGE_GO` names, or `go` in
    /// the PATH.
    ///
    /// # Panics
    /// If the toolchain cannot build the program, or if `FOOTBRIDGE_GO` names none.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os(TOOLCHAIN);
        let toolchain = named.clone().map_or_else(|| PathBuf::from("go"), PathBuf::from);
        match Command::new(&toolchain).arg("version").output() {
            Ok(output) if output.status.success() => Some(Self::build(&toolchain)),
            outcome if named.is_some() => {
                panic!(
                    "{TOOLCHAIN} is {}, which is not a Go toolchain: {outcome:?}",
                    toolchain.display()
                )
            }
            _ => None,
        }
    }

    fn build(toolchain: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
        let own = std::env::current_exe().expect("the path of this program");
        let target = own.parent().expect("it is in the target folder");
        let program = target.join("footbridge-peers-go");
        let output = Command::new(toolchain)
            .args(["build", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .env("GOCACHE", target.join("go-cache"))
            .env("GOENV", "off")
            .env("GOFLAGS", "-mod=mod")
            .env("GOPROXY", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOWORK", "off")
            .output();
        let output = output.expect("the toolchain ran before");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} does not build:\n{errors}", toolchain.display());
        let mut command = Self::command(&program);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a program that was just built starts");
        let requests = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().expect("it is piped"));
        Self { program, server: Rc::new(RefCell::new(Server { process, requests, answers })) }
    }

    /// The program, without the environment variables that change how it runs.
    fn command(program: &Path) -> Command {
        let mut command = Command::new(program);
        for name in ["GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK"] {
            command.env_remove(name);
        }
        command
    }

    /// The output of `go version`.
    pub fn version(&self) -> String {
        self.server.borrow_mut().answer("version")
    }

    /// A workload of the program. `number` is the number of goroutines or pairs, or of goroutines
    /// in a batch.
    pub fn subject(
        &self,
        name: &'static str,
        workload: &'static str,
        number: usize,
        processors: usize,
    ) -> Subject {
        let server = Rc::clone(&self.server);
        Subject::new(name, move |iterations| {
            let request = format!("{workload} {number} {processors} {iterations}");
            let nanoseconds = server.borrow_mut().answer(&request).parse();
            Duration::from_nanos(nanoseconds.expect("the program answers with a number"))
        })
    }

    /// Reports the threads that the goroutines of a workload run on.
    pub fn threads(&self, workload: &str, number: usize, processors: usize) -> Threads {
        const ITERATIONS: usize = 20_000;
        let request = format!("threads {workload} {number} {processors} {ITERATIONS}");
        let answer = self.server.borrow_mut().answer(&request);
        let numbers: Vec<u64> = answer.split(' ').filter_map(|n| n.parse().ok()).collect();
        let &[threads, others, moves] = &numbers[..] else {
            panic!("the Go program answers {answer:?} to {request:?}")
        };
        Threads { threads, others, moves }
    }

    /// Starts a new process that parks `count` goroutines.
    pub fn measure_parked(&self, count: u64) -> Result<Parked, String> {
        let output = Self::command(&self.program).arg("parked").arg(count.to_string()).output();
        Parked::parse(count, &output.expect("the program starts"))
    }
}

/// The result of [`Go::threads`].
pub struct Threads {
    /// The number of threads that ran one of the goroutines.
    pub threads: u64,
    /// Of 1,000 iterations, those during which another goroutine ran.
    pub others: u64,
    /// Of 1,000 iterations, those after which the goroutine was on another thread.
    pub moves: u64,
}

impl Server {
    /// # Panics
    /// If the process has exited. It exits when a result is wrong, with a message on standard
    /// error.
    fn answer(&mut self, request: &str) -> String {
        let requests = self.requests.as_mut().expect("open until this is dropped");
        let mut answer = String::new();
        let sent = writeln!(requests, "{request}").and_then(|()| requests.flush());
        let read = sent.and_then(|()| self.answers.read_line(&mut answer));
        assert!(answer.ends_with('\n'), "the Go program exited at {request:?}: {read:?}");
        answer.truncate(answer.len() - 1);
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process exits at the end of its input.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}
