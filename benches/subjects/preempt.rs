//! The cost of polls in a loop, the latency of a preemption, and the cost of time slices.
//!
//! *Loops*: four instructions. The first loop is bound by the latency of its multiplication, the
//! second by the number of instructions only.
//!
//! *Request until the other goroutine runs*: two goroutines share a thread. One loops forever in
//! preemptible JIT code, the other echoes a number whenever it runs. A goroutine on another thread
//! stores a number, requests the preemption, and waits until the number is echoed.
//!
//! *Signal round trip*: the same, by tgkill(2) to the same thread in the same loop, with a handler
//! that only echoes the number. It is the lower bound for any preemption by a signal.

use std::hint::{black_box, spin_loop};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops};
use footbridge::runtime::{Config, Entry, gosched, request_preemption, scope, stats};

use crate::meter::Subject;

const LATENCY: &str = "JIT loop of 4, one of them imul";
const WIDTH: &str = "JIT loop of 4, each 1 cycle";
const SIGNAL: &str = "signal round trip to a spinning thread";

/// The group.
pub fn subjects() -> Vec<Subject> {
    let poll = |name, peer, body, convention| {
        let entry = OnceLock::new();
        let run = move |n| time_loop(entry.get_or_init(|| looping(body, Some(convention))), n);
        // At most 3 % slower.
        Subject::new(name, run).faster_than(peer, 0.97)
    };
    let plain = |name, body| {
        let entry = OnceLock::new();
        Subject::new(name, move |n| time_loop(entry.get_or_init(|| looping(body, None)), n))
    };
    vec![
        plain(LATENCY, Body::Latency),
        poll("the same with a poll, SystemV", LATENCY, Body::Latency, Convention::SystemV),
        poll(
            "the same with a poll, GoAbiInternal",
            LATENCY,
            Body::Latency,
            Convention::GoAbiInternal,
        ),
        plain(WIDTH, Body::Width),
        poll("the same with a poll, SystemV ", WIDTH, Body::Width, Convention::SystemV),
        poll("the same with a poll, GoAbiInternal ", WIDTH, Body::Width, Convention::GoAbiInternal),
        Subject::new(SIGNAL, |n| sum(&latencies(n as usize).signal)).limit(2000),
        Subject::new("request until the other goroutine runs", |n| {
            sum(&latencies(n as usize).preemption)
        })
        .limit(2000)
        .faster_than(SIGNAL, 0.67),
    ]
}

fn sum(samples: &[Duration]) -> Duration {
    samples.iter().sum()
}

fn run<R>(processors: usize, time_slice: Option<Duration>, f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(processors).time_slice(time_slice);
    config.run(f).expect("the run starts")
}

#[derive(Clone, Copy)]
enum Body {
    Latency,
    Width,
}

type Looping = Entry<fn(u64) -> u64>;

/// A loop of the given number of iterations, with or without a poll at the back-edge.
fn looping(body: Body, polls: Option<Convention>) -> Looping {
    let jit = Jit::new().expect("code memory");
    let convention = polls.unwrap_or(Convention::SystemV);
    let mut points = jit.polls(convention).expect("this machine's");
    let emit = |ops: &mut Ops| {
        if convention == Convention::GoAbiInternal {
            dynasm!(ops; .arch x64; mov rdi, rax);
        }
        dynasm!(ops; .arch x64; mov eax, 1; mov ecx, 3; xor edx, edx; .align 32; again:);
        match body {
            Body::Latency => dynasm!(ops; .arch x64; imul rax, rcx; add rax, rcx),
            Body::Width => dynasm!(ops; .arch x64; add rax, rcx; xor rdx, rcx),
        }
        if polls.is_some() {
            points.poll(ops);
        }
        dynasm!(ops; .arch x64; dec rdi; jnz <again; ret);
        points.finish(ops);
    };
    // SAFETY: a leaf of either convention.
    let code = unsafe { jit.install("loop", FrameClass::Leaf, emit) }.expect("it installs");
    // SAFETY: code of this convention and type.
    unsafe { code.enter(convention) }.expect("an entry")
}

fn time_loop(looping: &Looping, iterations: u64) -> Duration {
    run(1, None, || {
        let start = Instant::now();
        // SAFETY: called on a goroutine.
        black_box(unsafe { looping.call(iterations) });
        start.elapsed()
    })
}

/// Interruptible code that loops until the flag is set.
fn waiter() -> &'static Entry<fn(*const AtomicU32)> {
    static WAITER: OnceLock<Entry<fn(*const AtomicU32)>> = OnceLock::new();
    WAITER.get_or_init(|| {
        let jit = Jit::new().expect("code memory");
        // SAFETY: a leaf that only reads.
        let code = unsafe {
            jit.install("waiter", FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; again: ; cmp DWORD [rdi], 0; je <again; ret);
                Annotations::preemptible()
            })
        };
        // SAFETY: System V code of this type.
        unsafe { code.expect("it installs").enter(Convention::SystemV) }.expect("an entry")
    })
}

/// The times of one run, in the order of measurement.
struct Latencies {
    signal: Vec<Duration>,
    preemption: Vec<Duration>,
}

static PING: AtomicU64 = AtomicU64::new(0);
static PONG: AtomicU64 = AtomicU64::new(0);

extern "C" fn answer(_signal: libc::c_int) {
    PONG.store(PING.load(Ordering::Relaxed), Ordering::Release);
}

fn install_answer() {
    // SAFETY: the handler only accesses atomics.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = answer as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigfillset(&raw mut action.sa_mask);
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Measures `count` times of each kind, alternately.
fn latencies(count: usize) -> Latencies {
    install_answer();
    // Time slices are long, so that only this bench requests preemptions.
    run(2, Some(Duration::from_secs(3600)), || {
        let (flag, thread) = (AtomicU32::new(0), AtomicI32::new(0));
        scope(|s| {
            // This goroutine occupies the first thread, so both of these run on the second.
            s.go(|| {
                // SAFETY: no arguments.
                thread.store(unsafe { libc::gettid() }, Ordering::Release);
                // SAFETY: called on a goroutine; the flag outlives the scope.
                unsafe { waiter().call(&flag) };
            });
            s.go(|| {
                let mut last = u64::MAX;
                while flag.load(Ordering::Relaxed) == 0 {
                    let ping = PING.load(Ordering::Acquire);
                    if ping != last {
                        PONG.store(ping, Ordering::Release);
                        last = ping;
                    }
                    gosched();
                }
            });
            // SAFETY: no arguments.
            let own = unsafe { libc::gettid() };
            wait(|| ![0, own].contains(&thread.load(Ordering::Acquire)));
            let measure = |request: &dyn Fn()| {
                // Leaves time for the spinning goroutine to be resumed.
                let start = Instant::now();
                wait(|| start.elapsed() > Duration::from_micros(20));
                let ping = PING.load(Ordering::Relaxed) + 1;
                let start = Instant::now();
                PING.store(ping, Ordering::Release);
                request();
                let mut requested = start;
                wait(|| {
                    // A signal that arrived in native code had no effect. Requests again, as sysmon
                    // would.
                    if requested.elapsed() > Duration::from_millis(1) {
                        requested = Instant::now();
                        request();
                    }
                    PONG.load(Ordering::Acquire) == ping
                });
                start.elapsed()
            };
            let signal = || {
                let thread = thread.load(Ordering::Relaxed);
                // SAFETY: the arguments are plain numbers.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
            };
            let preempt = || {
                // Finds no goroutine right after one has yielded. `measure` then requests again.
                request_preemption(1);
            };
            // The first request lets the second goroutine start.
            measure(&preempt);
            let mut found = Latencies { signal: Vec::new(), preemption: Vec::new() };
            let before = stats().asynchronous;
            for _ in 0..count {
                found.signal.push(measure(&signal));
                found.preemption.push(measure(&preempt));
            }
            let preemptions = stats().asynchronous - before;
            assert!(preemptions >= count as u64 / 2, "{preemptions} of {count} came by signal");
            flag.store(1, Ordering::Relaxed);
            found
        })
    })
}

/// Spins without yielding the thread to another goroutine.
fn wait(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > Duration::from_secs(20) {
            // Aborts, since a panic would wait for the goroutines of the scope.
            eprintln!("no answer: {:?}", stats());
            std::process::abort();
        }
        spin_loop();
    }
}

/// The CPU time of all threads of this process, in seconds.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the address of a local.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The effort that goes into the numbers outside the table.
#[derive(Clone, Copy)]
pub struct Effort {
    /// The number of preemptions whose latency is measured.
    pub samples: usize,
    /// The number of iterations of the loop in each of two goroutines.
    pub work: u64,
    /// The number of repetitions of the loops.
    pub rounds: usize,
}

impl Effort {
    /// For numbers that are quoted.
    pub const FULL: Self = Self { samples: 5000, work: 100_000_000, rounds: 10 };

    /// Prints percentiles of the latencies, and the cost of time slices.
    pub fn report(self) {
        let Latencies { mut signal, mut preemption } = latencies(self.samples);
        for (name, per_cent) in [("p50", 50), ("p99", 99)] {
            let [bare, whole] = [&mut signal, &mut preemption].map(|samples| {
                samples.sort();
                samples[(samples.len() - 1) * per_cent / 100].as_nanos() as f64
            });
            let ratio = whole / bare;
            let verdict = match (per_cent, ratio <= 1.5) {
                (50, true) => "; aim <= 1.5: reached",
                (50, false) => "; aim <= 1.5: MISSED",
                _ => "",
            };
            println!(
                "  {name} of {} preemptions: {whole:.0} ns, a signal round trip {bare:.0} ns, \
                 ratio {ratio:.2}{verdict}",
                self.samples
            );
        }
        let slice = Duration::from_millis(10).as_secs_f64();
        let cost = self.cost_of_a_time_slice();
        let lost = cost / slice * 100.0;
        let verdict = if lost < 0.5 { "reached" } else { "MISSED" };
        println!(
            "  the end of a time slice takes {:.1} us of CPU time, all threads: {lost:.2} % of 10 ms; \
             aim < 0.5 %: {verdict}",
            cost * 1e6
        );
    }

    /// Two goroutines compute on one thread, with and without time slices. Returns the CPU seconds
    /// per request, including the thread of sysmon. The time slices are short, so that there are
    /// many requests. CPU time is measured because elapsed time would include other processes.
    fn cost_of_a_time_slice(self) -> f64 {
        let jit = Jit::new().expect("code memory");
        // SAFETY: a leaf.
        let code = unsafe {
            jit.install("work", FrameClass::Leaf, |ops| {
                dynasm!(ops; .arch x64; mov eax, 1; again: ; imul rax, rax, 3; dec rdi; jnz <again; ret);
                Annotations::preemptible()
            })
        };
        // SAFETY: System V code of this type.
        let work: Looping =
            unsafe { code.expect("it installs").enter(Convention::SystemV) }.expect("an entry");
        let time = |slice| {
            run(1, slice, || {
                let start = cpu_seconds();
                scope(|s| {
                    for _ in 0..2 {
                        // SAFETY: called on a goroutine.
                        s.go(|| black_box(unsafe { work.call(self.work) }));
                    }
                });
                (cpu_seconds() - start, stats().requested)
            })
        };
        let (mut without, mut costs) = (f64::INFINITY, Vec::new());
        for _ in 0..self.rounds {
            without = without.min(time(None).0);
            costs.push(time(Some(Duration::from_micros(500))));
        }
        let cost = |&(with, requests): &(f64, u64)| (with - without) / requests.max(1) as f64;
        costs.iter().map(cost).fold(f64::INFINITY, f64::min).max(0.0)
    }
}
