//! Storms of preemption requests during Rust code that must not be interrupted: locks, the
//! allocator.
//!
//! Two threads run goroutines. A goroutine on a third thread requests their preemption all the
//! time, and so does sysmon at the end of each (short) time slice. Rust code must behave as without
//! the requests: no deadlock, correct counts, and a heap without corruption, also as glibc's checks
//! and valgrind see it.
//!
//! FOOTBRIDGE_STRESS_SECONDS is the least duration of each storm (default 1), FOOTBRIDGE_SEED the
//! seed of random numbers. A storm lasts longer on a busy machine, until it has seen enough.
//! `machine_state.rs` tests that registers survive.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::patience::{self, Patience};
use support::settings::{seed_or, stress_or};
use support::watchdog;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{ForeignRegion, FrameClass, Jit};
use footbridge::runtime::{
    self, Case, Chan, Config, Scope, ScopedJoinHandle, Stats, VectorState, checkpoint, go, gosched,
    scope, select,
};
use support::child::{Child, Outcome};
use support::spinner::{Level, Preemptible, Random, Spinner};
use support::watchdog::beat;

const GO: Convention = Convention::GoAbiInternal;
/// The process is aborted after this time without progress.
const HANG_LIMIT: Duration = Duration::from_secs(60);
/// A spin of this many iterations takes at least 100 microseconds: some time slices.
const ITERATIONS: u64 = 1 << 16;

fn stress() -> Duration {
    stress_or(1.0)
}

fn seed() -> u64 {
    seed_or(0x0057_011d)
}

/// A child process for a storm, so that a hang does not end other tests.
fn child(test: &str) -> Child<'_> {
    let seconds = 4 * stress() + patience::LIMIT + HANG_LIMIT;
    Child::of(test).limit_seconds(seconds.as_secs() as u32)
}

/// Prints the output of the process, and asserts that it succeeded.
#[track_caller]
fn assert_passed(outcome: &Outcome) {
    print!("{}", outcome.stdout);
    outcome.assert_success();
}

/// A storm whose goroutines continue until `stop` is set.
struct Storm {
    stop: AtomicBool,
    seed: u64,
    /// What the goroutines have done, and how much of it is enough.
    work: AtomicU64,
    least_work: u64,
}

impl Storm {
    fn continues(&self) -> bool {
        beat();
        !self.stop.load(Ordering::Relaxed)
    }

    /// The random numbers of one of the goroutines.
    fn random(&self, number: u64) -> Random {
        Random(self.seed ^ number << 32)
    }
}

/// Starts the goroutines of `begin`, and requests preemption of the two threads that run them until
/// the storm is over. Returns the sum of the goroutines' results.
fn storm<'env>(
    slice: Duration,
    time: Duration,
    storm: &'env Storm,
    begin: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Vec<ScopedJoinHandle<'scope, u64>>,
) -> (u64, Stats) {
    println!("FOOTBRIDGE_SEED={}", storm.seed);
    let config = Config::new().processors(3).time_slice(slice);
    let run = config.run(|| {
        let (patience, end) = (Patience::new(), Instant::now() + time);
        let is_enough =
            || is_storm(&runtime::stats()) && storm.work.load(Ordering::Relaxed) > storm.least_work;
        scope(|s| {
            let handles = begin(s);
            // This goroutine never yields, so that all others run on the other two threads.
            while Instant::now() < end || !(is_enough() || patience.is_over()) {
                for processor in [1, 2] {
                    runtime::request_preemption(processor);
                }
                // Sleeps the thread, which leaves the CPUs to the others.
                std::thread::sleep(Duration::from_micros(10));
            }
            let stats = runtime::stats();
            storm.stop.store(true, Ordering::Relaxed);
            let sum = handles.into_iter().map(|handle| handle.join().expect("no panic")).sum();
            (sum, stats)
        })
    });
    run.expect("the run starts")
}

/// Whether enough JIT code was preempted by signals, enough requests met Rust code and were
/// refused, and enough goroutines yielded at polls.
fn is_storm(stats: &Stats) -> bool {
    stats.asynchronous >= 100 && stats.refused.native_code >= 100 && stats.cooperative >= 50
}

fn new_storm(least_work: u64) -> Storm {
    Storm { stop: AtomicBool::new(false), seed: seed(), work: AtomicU64::new(0), least_work }
}

/// Starts a watchdog that reports the seed.
fn watch(silence: Duration) {
    watchdog::start(silence, || eprintln!("FOOTBRIDGE_SEED={}", seed()));
}

/// Spins in preemptible code, with values in all registers, until the storm is over.
fn keep_spinning(storm: &Storm, spinner: &Spinner, number: u64) -> u64 {
    let mut random = storm.random(number);
    let mut spins = 0;
    while storm.continues() {
        let changes = spinner.spin(ITERATIONS, random.next_u64());
        assert_eq!(changes, [], "registers changed; seed {}", storm.seed);
        spins += 1;
    }
    spins
}

/// Critical sections stay exclusive and no goroutine waits for ever, although preemption of the
/// goroutine that holds the lock is requested all the time while others on its thread wait for it.
#[test]
fn a_lock_held_in_rust_code_does_not_deadlock() {
    let outcome = child("a_lock_held_in_rust_code_does_not_deadlock").run(|| {
        watch(HANG_LIMIT);
        let spinner = Spinner::new(Level::largest(), Preemptible::Anywhere);
        for slice in [20, 100].map(Duration::from_micros) {
            lock_storm(&spinner, slice, stress() / 2);
        }
    });
    assert_passed(&outcome);
}

/// The deadlock does happen if the lock is held over preemptible code, and the watchdog detects it.
#[test]
fn the_watchdog_detects_a_lock_held_over_preemptible_code() {
    let outcome = child("the_watchdog_detects_a_lock_held_over_preemptible_code").run(|| {
        watch(Duration::from_secs(1));
        let this = new_storm(u64::MAX);
        let spinner = Spinner::new(Level::Sse, Preemptible::Anywhere);
        let shared = Mutex::new(());
        let body = |number: u64| {
            let mut random = this.random(number);
            while this.continues() {
                let _held = shared.lock().unwrap_or_else(PoisonError::into_inner);
                spinner.spin(ITERATIONS, random.next_u64());
            }
            0
        };
        storm(Duration::from_micros(100), Duration::from_secs(60), &this, |s| {
            let body = &body;
            (0..8).map(|number| s.go(move || body(number))).collect()
        });
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("watchdog: no progress\nfor 1s, "), "{outcome:#?}");
}

fn lock_storm(spinner: &Spinner, slice: Duration, time: Duration) {
    const LEAST: u64 = 100;
    let this = new_storm(LEAST);
    // Two words that are equal while the lock is free.
    let shared = Mutex::new((0u64, 0u64));
    let body = |number: u64| {
        let mut random = this.random(number);
        let mut locks = 0;
        while this.continues() {
            let mut both = shared.lock().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(both.0, both.1, "the critical section was not exclusive");
            both.0 += 1;
            // Sometimes longer than a time slice, so that requests arrive here.
            for _ in
                0..random.next_u64() % if random.next_u64().is_multiple_of(8) { 8000 } else { 50 }
            {
                std::hint::spin_loop();
            }
            both.1 += 1;
            drop(both);
            locks += 1;
            this.work.fetch_add(1, Ordering::Relaxed);
            match number % 3 {
                0 => checkpoint(),
                1 => {
                    let changes =
                        spinner.spin(1 + random.next_u64() % ITERATIONS, random.next_u64());
                    assert_eq!(changes, [], "registers changed");
                }
                _ if locks % 64 == 0 => gosched(),
                _ => checkpoint(),
            }
        }
        locks
    };
    let (locks, stats) = storm(slice, time, &this, |s| {
        for number in 0..4 {
            let (this, spinner) = (&this, spinner);
            s.go(move || keep_spinning(this, spinner, number));
        }
        let body = &body;
        (0..24).map(|number| s.go(move || body(100 + number))).collect()
    });
    println!("{slice:?}: {locks} locks; {stats:?}");
    let both = shared.into_inner().expect("no panic");
    assert_eq!(both, (locks, locks));
    assert!(locks > LEAST, "{locks} locks; {stats:?}");
    assert!(is_storm(&stats), "{stats:?}");
}

/// Vectors, strings, maps and boxes, each with a checksum that is verified later.
struct Heap {
    bytes: Vec<(Vec<u8>, u64)>,
    words: HashMap<u64, (String, u64)>,
    list: Option<Box<Link>>,
    links: usize,
}

struct Link {
    value: u64,
    mirror: u64,
    next: Option<Box<Link>>,
}

fn sum_of(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(bytes.len() as u64, |sum, &byte| sum.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte))
}

impl Heap {
    fn new() -> Self {
        Self { bytes: Vec::new(), words: HashMap::new(), list: None, links: 0 }
    }

    /// Makes some allocations, and returns their number.
    fn churn(&mut self, random: &mut Random) -> u64 {
        let at = random.next_u64();
        match at % 6 {
            0 | 1 => {
                let len = (random.next_u64() % 3000) as usize;
                let bytes: Vec<u8> = (0..len).map(|i| (at >> 8) as u8 ^ i as u8).collect();
                let sum = sum_of(&bytes);
                if self.bytes.len() < 40 {
                    self.bytes.push((bytes, sum));
                } else {
                    let place = random.next_u64() as usize % self.bytes.len();
                    let (old, sum) = std::mem::replace(&mut self.bytes[place], (bytes, sum));
                    assert_eq!(sum_of(&old), sum, "a vector is corrupt");
                }
                1
            }
            2 => {
                // Grows by many reallocations.
                let place = random.next_u64() as usize % self.bytes.len().max(1);
                if let Some((bytes, sum)) = self.bytes.get_mut(place) {
                    assert_eq!(sum_of(bytes), *sum, "a vector is corrupt");
                    for _ in 0..random.next_u64() % 500 {
                        bytes.push(at as u8);
                    }
                    bytes.shrink_to_fit();
                    bytes.truncate(2000);
                    *sum = sum_of(bytes);
                }
                2
            }
            3 => {
                let key = random.next_u64() % 64;
                let mut text = format!("{at:x}-");
                text.extend((0..at % 40).map(|n| char::from(b'a' + (n % 26) as u8)));
                let sum = sum_of(text.as_bytes());
                if let Some((old, sum)) = self.words.insert(key, (text, sum)) {
                    assert_eq!(sum_of(old.as_bytes()), sum, "a string is corrupt");
                }
                4
            }
            4 => {
                if self.words.len() > 32 {
                    let odd: Vec<u64> = self.words.keys().copied().filter(|k| k % 2 != 0).collect();
                    for key in odd {
                        let (old, sum) = self.words.remove(&key).expect("it was there");
                        assert_eq!(sum_of(old.as_bytes()), sum, "a string is corrupt");
                    }
                }
                1
            }
            _ => {
                let next = self.list.take();
                self.list = Some(Box::new(Link { value: at, mirror: !at, next }));
                self.links += 1;
                if self.links > 100 {
                    let mut rest = self.list.take();
                    let mut found = 0;
                    while let Some(link) = rest {
                        assert_eq!(link.value, !link.mirror, "a list is corrupt");
                        rest = link.next;
                        found += 1;
                    }
                    assert_eq!(found, self.links, "a list is corrupt");
                    self.links = 0;
                }
                1
            }
        }
    }
}

/// The allocator is never reentered on a thread that is inside of it, and its blocks do not
/// overlap.
#[test]
fn the_allocator_is_not_interrupted() {
    let outcome = child("the_allocator_is_not_interrupted").run(|| {
        watch(HANG_LIMIT);
        let spinner = Spinner::new(Level::largest(), Preemptible::Anywhere);
        for slice in [20, 100].map(Duration::from_micros) {
            heap_storm(&spinner, slice, stress() / 2);
        }
    });
    assert_passed(&outcome);
}

fn heap_storm(spinner: &Spinner, slice: Duration, time: Duration) {
    const LEAST: u64 = 1000;
    let this = new_storm(LEAST);
    // Values that are allocated on one thread and freed on another.
    let exchange: Chan<Vec<u8>> = Chan::new(16);
    let body = |number: u64| {
        let mut random = this.random(number);
        let (mut heap, mut allocations) = (Heap::new(), 0);
        while this.continues() {
            for _ in 0..20 {
                let made = heap.churn(&mut random);
                allocations += made;
                this.work.fetch_add(made, Ordering::Relaxed);
            }
            let fill = random.next_u64() as u8;
            if exchange.try_send(vec![fill; 500 + usize::from(fill)]).is_err()
                && let Ok(bytes) = exchange.try_recv()
            {
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a value is corrupt");
                assert_eq!(bytes.len(), 500 + usize::from(bytes[0]), "a value is corrupt");
            }
            checkpoint();
        }
        allocations
    };
    let (allocations, stats) = storm(slice, time, &this, |s| {
        for number in 0..6 {
            let (this, spinner) = (&this, spinner);
            s.go(move || keep_spinning(this, spinner, number));
        }
        let body = &body;
        (0..8).map(|number| s.go(move || body(100 + number))).collect()
    });
    println!("{slice:?}: {allocations} allocations; {stats:?}");
    assert!(allocations > LEAST, "{allocations} allocations; {stats:?}");
    assert!(is_storm(&stats), "{stats:?}");
}

/// The path of glibc's heap checker, if this system has it: next to libc since glibc 2.34.
fn malloc_debug() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let libc = maps.lines().find_map(|line| Some(&line[line.find('/')?..line.find("/libc.so.6")?]));
    let path = format!("{}/libc_malloc_debug.so.0", libc?);
    std::path::Path::new(&path).exists().then_some(path)
}

/// Reports that a tool is missing. Panics under `FOOTBRIDGE_NO_SKIP`.
#[track_caller]
fn skip(package: &str) {
    println!("skipped: needs {package}");
    assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "needs {package}");
}

/// Runs the body where glibc checks each block that is freed, and aborts if the block is corrupt.
fn with_malloc_checks(test: &str, body: impl FnOnce()) -> Option<Outcome> {
    let Some(library) = malloc_debug() else {
        skip("libc6 of glibc 2.34 or newer, with libc_malloc_debug.so.0");
        return None;
    };
    let child = child(test).with("LD_PRELOAD", &library).with("MALLOC_CHECK_", "3");
    Some(child.run(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        assert!(maps.contains("libc_malloc_debug.so.0"), "it is not loaded");
        body();
    }))
}

#[test]
fn glibc_finds_no_heap_corruption() {
    let outcome = with_malloc_checks("glibc_finds_no_heap_corruption", || {
        watch(HANG_LIMIT);
        let spinner = Spinner::new(Level::largest(), Preemptible::Anywhere);
        heap_storm(&spinner, Duration::from_micros(50), stress());
    });
    outcome.iter().for_each(assert_passed);
}

/// One byte written after the end of a block is detected.
#[test]
fn glibc_detects_heap_corruption() {
    let outcome = with_malloc_checks("glibc_detects_heap_corruption", || {
        let mut block = std::hint::black_box(vec![1u8; 24]);
        // SAFETY: not sound: glibc must detect this write. Its check byte depends on the address,
        // so that a constant would be correct in one of 256 runs.
        unsafe {
            let check = block.as_mut_ptr().add(24);
            check.write_volatile(!check.read_volatile());
        }
        drop(block);
        println!("nothing was found");
    });
    if let Some(outcome) = outcome {
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
        assert!(!outcome.stdout.contains("nothing was found"), "{outcome:#?}");
    }
}

/// A small program that uses all parts of the runtime but asynchronous preemption. Valgrind would
/// report the handler's writes below the red zone of the interrupted code. (It does not have
/// AVX-512, the precision of x87, or the exception flags of MXCSR either.)
fn small_program() {
    let jit = Jit::new().expect("code memory");
    let double = jit.named_goroutine_fn("double", GO, |n: u64| 2 * n).expect("a stub");
    let (to, from) = (Chan::<u64>::new(2), Chan::<u64>::new(0));
    let (inner_to, inner_from) = (to.clone(), from.clone());
    let trade = move |n: u64| {
        inner_to.send(n).expect("open");
        inner_from.recv().expect("open")
    };
    let trade = jit.named_goroutine_fn("trade", GO, trade).expect("a stub");
    let (double, trade) = (double.address(), trade.address());
    // fn(n) -> trade(double(n)), after a loop with polls.
    let mut polls = jit.polls(GO).expect("of this machine");
    // SAFETY: a standard frame around calls of goroutine functions.
    let code = unsafe {
        jit.install("pipe", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; mov ecx, 2000; again:);
            polls.poll(ops);
            dynasm!(ops
                ; .arch x64
                ; dec rcx
                ; jnz <again
                ; call extern double
                ; call extern trade
                ; pop rbp
                ; ret
            );
            polls.finish(ops);
        })
    };
    // SAFETY: of that convention and type.
    let pipe = unsafe { code.expect("it installs").enter::<fn(u64) -> u64>(GO) };
    let pipe = pipe.expect("an entry");
    let config = Config::new()
        .processors(2)
        .time_slice(Duration::from_micros(100))
        .vector_state(VectorState::Sse)
        .async_preemption(false);
    let run = config.run(|| {
        let server = {
            let (to, from) = (to.clone(), from.clone());
            go(move || to.iter().map(|n| from.send(n + 1).map_or(0, |()| 1)).sum::<u64>())
        };
        let workers: Vec<_> = scope(|s| {
            let handles: Vec<_> = (0..8)
                .map(|n| {
                    let pipe = &pipe;
                    s.go(move || {
                        let mut random = Random(n);
                        let mut heap = Heap::new();
                        for call in 0..40 {
                            heap.churn(&mut random);
                            // Valgrind, which runs one thread at a time, may not run sysmon.
                            if call % 4 == 0 {
                                for processor in 0..2 {
                                    runtime::request_preemption(processor);
                                }
                            }
                            // SAFETY: on a goroutine.
                            let _ = unsafe { pipe.call(call) };
                            checkpoint();
                        }
                        runtime::sleep(Duration::from_micros(200));
                        let caught = std::panic::catch_unwind(|| {
                            std::panic::resume_unwind(Box::new(n));
                        });
                        let stack = runtime::systemstack(|| vec![n; 100]);
                        *caught.expect_err("it panics").downcast::<u64>().expect("a number")
                            + stack[99]
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        });
        assert!(workers.into_iter().eq((0..8).map(|n| 2 * n)));
        to.close();
        assert_eq!(server.join().expect("no panic"), 8 * 40);
        let wakes = go(|| {
            let mut slot = None;
            let never = Chan::<u8>::new(0);
            let one = Chan::new(1);
            one.send(5u8).expect("open");
            select(&mut [Case::recv(&never, &mut slot), Case::recv(&one, &mut None)])
        });
        assert_eq!(wakes.join().expect("no panic"), 1);
        runtime::stats()
    });
    let stats = run.expect("the run starts");
    println!("{stats:?}\n{}", footbridge::environment());
    assert!(stats.cooperative >= 80, "one in four calls requests preemption: {stats:?}");
}

/// The command line of valgrind. `smc-check`: valgrind sees code memory as a file, which it need
/// not check for changes, since published code never changes.
const VALGRIND: &[&str] = &[
    "valgrind",
    "--error-exitcode=99",
    "--leak-check=no",
    "--smc-check=all-non-file",
    "--read-inline-info=no",
];

fn with_valgrind(test: &str, body: impl FnOnce()) -> Option<Outcome> {
    // In the child itself this succeeds again.
    let available = std::process::Command::new("valgrind").arg("--version").output();
    if !available.is_ok_and(|output| output.status.success()) {
        skip("valgrind");
        return None;
    }
    Some(child(test).under(VALGRIND).run(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        assert!(maps.contains("memcheck"), "valgrind does not run this");
        body();
    }))
}

/// Valgrind finds no read of unallocated or uninitialized memory.
#[test]
fn valgrind_finds_no_error() {
    if let Some(outcome) = with_valgrind("valgrind_finds_no_error", small_program) {
        print!("{}", outcome.stderr);
        assert_passed(&outcome);
        // It knows the stacks of goroutines.
        let warning = outcome.stderr.lines().find(|line| line.contains("switching stacks"));
        assert_eq!(warning, None);
    }
}

/// Valgrind translates code once, unless it is told that the code has changed. Foreign code may be
/// published where the program has executed other code before.
#[test]
fn valgrind_executes_foreign_code_that_was_published_last() {
    const BYTES: usize = 4096;
    fn map(file: libc::c_int, protection: libc::c_int) -> *mut u8 {
        let any = std::ptr::null_mut();
        // SAFETY: a new mapping of the whole file.
        let at = unsafe { libc::mmap(any, BYTES, protection, libc::MAP_SHARED, file, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        at.cast()
    }
    let test = "valgrind_executes_foreign_code_that_was_published_last";
    let outcome = with_valgrind(test, || {
        // SAFETY: a constant name, and a new file of that size.
        let file = unsafe {
            let file = libc::memfd_create(c"foreign".as_ptr(), 0);
            assert_eq!(libc::ftruncate(file, BYTES as libc::off_t), 0);
            file
        };
        let writable = map(file, libc::PROT_READ | libc::PROT_WRITE);
        let code = map(file, libc::PROT_READ | libc::PROT_EXEC);
        // mov eax, n; ret
        // SAFETY: the page is mapped, and nothing executes it now.
        let write = |n: u8| unsafe {
            writable.copy_from_nonoverlapping([0xb8, n, 0, 0, 0, 0xc3].as_ptr(), 6)
        };
        // SAFETY: a function of this type.
        let call = || unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> u32>(code)() };
        write(1);
        assert_eq!(call(), 1);
        write(2);
        assert_eq!(call(), 1, "valgrind has not been told");
        let start = code as usize;
        // SAFETY: the mapping stays, and holds a leaf, which is in place.
        unsafe {
            let region = ForeignRegion::new(start..start + BYTES, FrameClass::Leaf);
            let _code = region.expect("a region").publish("two", start..start + 6, ());
        }
        assert_eq!(call(), 2);
    });
    outcome.iter().for_each(assert_passed);
}

/// Valgrind also checks code on the stacks of goroutines.
#[test]
fn valgrind_detects_an_error() {
    let outcome = with_valgrind("valgrind_detects_an_error", || {
        runtime::run(|| {
            let fault = || {
                let block = std::hint::black_box(Box::new(5u64));
                let address = &raw const *block;
                drop(block);
                gosched();
                // SAFETY: not sound: valgrind must detect this read.
                unsafe { address.read_volatile() }
            };
            go(fault).join().expect("no panic");
        });
    });
    if let Some(outcome) = outcome {
        assert_eq!(outcome.code, Some(99), "{outcome:#?}");
        assert!(outcome.stderr.contains("Invalid read of size 8"), "{outcome:#?}");
    }
}
