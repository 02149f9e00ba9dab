//! The Go side: where its toolchain is, and a process of `../go/main.go` that measures on request.
//!
//! Nothing is fetched: the program needs Go's own packages only. While it does not measure, its
//! process waits for a request and does nothing.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use crate::meter::Subject;
use crate::spawn::Parked;

/// What names the toolchain.
const TOOLCHAIN: &str = "FOOTBRIDGE_GO";

/// The program, built.
pub struct Go {
    program: PathBuf,
    server: Rc<RefCell<Server>>,
}

/// A process that measures.
struct Server {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Go {
    /// Builds the program, if there is a toolchain: what `FOOTBRIDGE_GO` says, or `go` in the PATH.
    ///
    /// # Panics
    /// There is one, and it cannot build the program; or `FOOTBRIDGE_GO` names none.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os(TOOLCHAIN);
        let toolchain = named.clone().map_or_else(|| PathBuf::from("go"), PathBuf::from);
        match Command::new(&toolchain).arg("version").output() {
            Ok(output) if output.status.success() => Some(Self::build(&toolchain)),
            outcome if named.is_some() => {
                panic!("{TOOLCHAIN} is {}, which is no Go: {outcome:?}", toolchain.display())
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
        let output = output.expect("the toolchain has run before");
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

    /// The program with nothing set that would change how it runs.
    fn command(program: &Path) -> Command {
        let mut command = Command::new(program);
        for name in ["GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK"] {
            command.env_remove(name);
        }
        command
    }

    /// As `go version` says it.
    pub fn version(&self) -> String {
        self.server.borrow_mut().ask("version")
    }

    /// A workload of the program; `number` is how many goroutines or pairs it has, or goroutines in a
    /// batch.
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
            let nanoseconds = server.borrow_mut().ask(&request).parse();
            Duration::from_nanos(nanoseconds.expect("the program answers with a number"))
        })
    }

    /// Where the goroutines of a workload run.
    pub fn threads(&self, workload: &str, number: usize, processors: usize) -> Threads {
        const ITERATIONS: usize = 20_000;
        let request = format!("threads {workload} {number} {processors} {ITERATIONS}");
        let answer = self.server.borrow_mut().ask(&request);
        let numbers: Vec<u64> = answer.split(' ').filter_map(|n| n.parse().ok()).collect();
        let &[threads, others, moves] = &numbers[..] else {
            panic!("the Go program answers {answer:?} to {request:?}")
        };
        Threads { threads, others, moves }
    }

    /// A fresh process that parks so many goroutines.
    pub fn measure_parked(&self, count: u64) -> Result<Parked, String> {
        let output = Self::command(&self.program).arg("parked").arg(count.to_string()).output();
        Parked::parse(count, &output.expect("the program starts"))
    }
}

/// What [`Go::threads`] found.
pub struct Threads {
    /// Threads that ran one of the goroutines.
    pub threads: u64,
    /// After how many of 1,000 iterations another goroutine had run meanwhile.
    pub others: u64,
    /// After how many of 1,000 iterations the goroutine was on another thread.
    pub moves: u64,
}

impl Server {
    /// # Panics
    /// The process has ended: it found something wrong, and has said so on standard error.
    fn ask(&mut self, request: &str) -> String {
        let requests = self.requests.as_mut().expect("open until this is dropped");
        let mut answer = String::new();
        let asked = writeln!(requests, "{request}").and_then(|()| requests.flush());
        let read = asked.and_then(|()| self.answers.read_line(&mut answer));
        assert!(answer.ends_with('\n'), "the Go program ends at {request:?}: {read:?}");
        answer.truncate(answer.len() - 1);
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its requests ends it.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}
