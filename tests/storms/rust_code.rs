//! Storms of preemption beside Rust code that must not be interrupted: locks, the allocator.
//!
//! Two threads run goroutines. A third one runs a goroutine that does nothing but ask the two to give
//! way, all the time; sysmon does the same at the end of each (short) slice. What Rust code does
//! meanwhile is what it would do without: nobody waits for ever, every count is right, and no byte in
//! the heap is lost, also as glibc's checks and valgrind see it.
//!
//! FOOTBRIDGE_STRESS_SECONDS says how long each storm takes (default 1), FOOTBRIDGE_SEED where the
//! random numbers begin. That registers survive is the business of `preempt_state.rs`.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::settings::{seed_or, stress_or};
use support::watchdog;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{FrameClass, Jit};
use footbridge::runtime::{
    self, Case, Chan, Config, Scope, ScopedJoinHandle, Stats, VectorState, checkpoint, go, gosched,
    scope, select,
};
use support::child::{Child, Outcome};
use support::spinner::{GivesWay, Level, Random, Spinner};
use support::watchdog::beat;

const GO: Convention = Convention::GoAbiInternal;
/// So long nothing may happen.
const SILENCE: Duration = Duration::from_secs(10);
/// A spin of so many rounds takes 100 microseconds or more: some time slices.
const ROUNDS: u64 = 1 << 16;

fn stress() -> Duration {
    stress_or(1.0)
}

fn seed() -> u64 {
    seed_or(0x0057_011d)
}

/// A process of its own for a storm: a hang ends it, and is no business of other tests.
fn child(test: &str) -> Child<'_> {
    Child::of(test).limit_seconds(4 * stress().as_secs() as u32 + 60)
}

/// Says what the process did, and that it has ended well.
#[track_caller]
fn passed(outcome: &Outcome) {
    print!("{}", outcome.stdout);
    outcome.assert_success();
}

/// A storm in which goroutines go on until a flag is set.
struct Storm {
    stop: AtomicBool,
    seed: u64,
}

impl Storm {
    fn goes_on(&self) -> bool {
        beat();
        !self.stop.load(Ordering::Relaxed)
    }

    /// Random numbers of one of the goroutines.
    fn random(&self, number: u64) -> Random {
        Random(self.seed ^ number << 32)
    }
}

/// Starts what `begin` starts, and asks everybody to give way for as long as the storm takes.
/// Returns the sum of what the goroutines return.
fn storm<'env>(
    slice: Duration,
    time: Duration,
    storm: &'env Storm,
    begin: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> Vec<ScopedJoinHandle<'scope, u64>>,
) -> (u64, Stats) {
    println!("FOOTBRIDGE_SEED={}", storm.seed);
    let config = Config::new().processors(3).time_slice(slice);
    let run = config.run(|| {
        let end = Instant::now() + time;
        scope(|s| {
            let handles = begin(s);
            // This one never gives way, so that the other two threads have all others.
            while Instant::now() < end || !(is_storm(&runtime::stats()) || is_late(end)) {
                for processor in [1, 2] {
                    runtime::request_preemption(processor);
                }
                // The thread sleeps: it is to leave the processors to the others.
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

/// JIT code was interrupted, Rust code was asked in vain, and it gave way where it can.
fn is_storm(stats: &Stats) -> bool {
    stats.asynchronous >= 100 && stats.refused.native_code >= 100 && stats.cooperative >= 50
}

/// A machine that others use takes longer, but not that long.
fn is_late(end: Instant) -> bool {
    end.elapsed() > Duration::from_secs(20)
}

fn new_storm() -> Storm {
    Storm { stop: AtomicBool::new(false), seed: seed() }
}

/// A hang is a finding: this process ends.
fn watch(silence: Duration) {
    watchdog::start(silence, || eprintln!("FOOTBRIDGE_SEED={}", seed()));
}

/// Code that is interrupted, with values in all registers: it spins until the storm is over.
fn keep_spinning(storm: &Storm, spinner: &Spinner, number: u64) -> u64 {
    let mut random = storm.random(number);
    let mut spins = 0;
    while storm.goes_on() {
        let changes = spinner.spin(ROUNDS, random.bits());
        assert_eq!(changes, [], "registers changed; seed {}", storm.seed);
        spins += 1;
    }
    spins
}

/// What goroutines do under a lock is whole, and nobody waits for ever, though whoever holds the
/// lock is asked to give way all the time, and others of its thread wait for it.
#[test]
fn a_lock_held_in_rust_code_hangs_nobody() {
    let outcome = child("a_lock_held_in_rust_code_hangs_nobody").run(|| {
        watch(SILENCE);
        let spinner = Spinner::new(Level::largest(), GivesWay::Anywhere);
        for slice in [20, 100].map(Duration::from_micros) {
            lock_storm(&spinner, slice, stress() / 2);
        }
    });
    passed(&outcome);
}

/// What the test above is about does happen where the lock is held over code that is interrupted, and
/// is seen.
#[test]
fn a_lock_held_over_code_that_is_interrupted_is_seen_to_hang() {
    let outcome = child("a_lock_held_over_code_that_is_interrupted_is_seen_to_hang").run(|| {
        watch(Duration::from_secs(1));
        let this = new_storm();
        let spinner = Spinner::new(Level::Sse, GivesWay::Anywhere);
        let shared = Mutex::new(());
        let body = |number: u64| {
            let mut random = this.random(number);
            while this.goes_on() {
                let _held = shared.lock().unwrap_or_else(PoisonError::into_inner);
                spinner.spin(ROUNDS, random.bits());
            }
            0
        };
        storm(Duration::from_micros(100), Duration::from_secs(60), &this, |s| {
            let body = &body;
            (0..8).map(|number| s.go(move || body(number))).collect()
        });
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
    assert!(outcome.stderr.starts_with("nothing happens any more\nsince 1s; "), "{outcome:#?}");
}

fn lock_storm(spinner: &Spinner, slice: Duration, time: Duration) {
    let this = new_storm();
    // Two words that are equal whenever nobody holds the lock.
    let shared = Mutex::new((0u64, 0u64));
    let body = |number: u64| {
        let mut random = this.random(number);
        let mut locks = 0;
        while this.goes_on() {
            let mut both = shared.lock().unwrap_or_else(PoisonError::into_inner);
            assert_eq!(both.0, both.1, "somebody was here while the lock was held");
            both.0 += 1;
            // Now and then for longer than a slice: requests come in here.
            for _ in 0..random.bits() % if random.bits().is_multiple_of(8) { 8000 } else { 50 } {
                std::hint::spin_loop();
            }
            both.1 += 1;
            drop(both);
            locks += 1;
            match number % 3 {
                0 => checkpoint(),
                1 => {
                    let changes = spinner.spin(1 + random.bits() % ROUNDS, random.bits());
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
    let both = shared.into_inner().expect("nobody panicked");
    assert_eq!(both, (locks, locks));
    assert!(locks > 100, "{locks} locks; {stats:?}");
    assert!(is_storm(&stats), "{stats:?}");
}

/// Vectors, strings, maps and boxes, each with a sum that is looked at again later.
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

    /// Some allocations. Returns how many.
    fn churn(&mut self, random: &mut Random) -> u64 {
        let at = random.bits();
        match at % 6 {
            0 | 1 => {
                let len = (random.bits() % 3000) as usize;
                let bytes: Vec<u8> = (0..len).map(|i| (at >> 8) as u8 ^ i as u8).collect();
                let sum = sum_of(&bytes);
                if self.bytes.len() < 40 {
                    self.bytes.push((bytes, sum));
                } else {
                    let place = random.bits() as usize % self.bytes.len();
                    let (old, sum) = std::mem::replace(&mut self.bytes[place], (bytes, sum));
                    assert_eq!(sum_of(&old), sum, "a vector broke");
                }
                1
            }
            2 => {
                // Grows step by step.
                let place = random.bits() as usize % self.bytes.len().max(1);
                if let Some((bytes, sum)) = self.bytes.get_mut(place) {
                    assert_eq!(sum_of(bytes), *sum, "a vector broke");
                    for _ in 0..random.bits() % 500 {
                        bytes.push(at as u8);
                    }
                    bytes.shrink_to_fit();
                    bytes.truncate(2000);
                    *sum = sum_of(bytes);
                }
                2
            }
            3 => {
                let key = random.bits() % 64;
                let mut text = format!("{at:x}-");
                text.extend((0..at % 40).map(|n| char::from(b'a' + (n % 26) as u8)));
                let sum = sum_of(text.as_bytes());
                if let Some((old, sum)) = self.words.insert(key, (text, sum)) {
                    assert_eq!(sum_of(old.as_bytes()), sum, "a string broke");
                }
                4
            }
            4 => {
                if self.words.len() > 32 {
                    let odd: Vec<u64> = self.words.keys().copied().filter(|k| k % 2 != 0).collect();
                    for key in odd {
                        let (old, sum) = self.words.remove(&key).expect("it was there");
                        assert_eq!(sum_of(old.as_bytes()), sum, "a string broke");
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
                        assert_eq!(link.value, !link.mirror, "a list broke");
                        rest = link.next;
                        found += 1;
                    }
                    assert_eq!(found, self.links, "a list broke");
                    self.links = 0;
                }
                1
            }
        }
    }
}

/// The allocator is never entered on a thread on which it is in use, and what it gives is nobody
/// else's.
#[test]
fn an_allocator_in_use_is_left_alone() {
    let outcome = child("an_allocator_in_use_is_left_alone").run(|| {
        watch(SILENCE);
        let spinner = Spinner::new(Level::largest(), GivesWay::Anywhere);
        for slice in [20, 100].map(Duration::from_micros) {
            heap_storm(&spinner, slice, stress() / 2);
        }
    });
    passed(&outcome);
}

fn heap_storm(spinner: &Spinner, slice: Duration, time: Duration) {
    let this = new_storm();
    // Values that are made on one thread and freed on another.
    let passed_on: Chan<Vec<u8>> = Chan::new(16);
    let body = |number: u64| {
        let mut random = this.random(number);
        let (mut heap, mut allocations) = (Heap::new(), 0);
        while this.goes_on() {
            for _ in 0..20 {
                allocations += heap.churn(&mut random);
            }
            let fill = random.bits() as u8;
            if passed_on.try_send(vec![fill; 500 + usize::from(fill)]).is_err()
                && let Ok(bytes) = passed_on.try_recv()
            {
                assert!(bytes.iter().all(|&byte| byte == bytes[0]), "a value broke");
                assert_eq!(bytes.len(), 500 + usize::from(bytes[0]), "a value broke");
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
    assert!(allocations > 1000, "{allocations} allocations; {stats:?}");
    assert!(is_storm(&stats), "{stats:?}");
}

/// What glibc checks its heap with, if this system has it: next to libc since 2.34.
fn malloc_debug() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let libc = maps.lines().find_map(|line| Some(&line[line.find('/')?..line.find("/libc.so.6")?]));
    let path = format!("{}/libc_malloc_debug.so.0", libc?);
    std::path::Path::new(&path).exists().then_some(path)
}

/// A tool that a test needs is missing.
#[track_caller]
fn skip(package: &str) {
    println!("skipped: needs {package}");
    assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "needs {package}");
}

/// Runs the body where glibc looks at each block that is freed, and ends the process if it is broken.
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
fn glibc_finds_no_fault_in_its_heap() {
    let outcome = with_malloc_checks("glibc_finds_no_fault_in_its_heap", || {
        watch(SILENCE);
        let spinner = Spinner::new(Level::largest(), GivesWay::Anywhere);
        heap_storm(&spinner, Duration::from_micros(50), stress());
    });
    outcome.iter().for_each(passed);
}

/// One byte behind a block is enough.
#[test]
fn glibc_would_find_a_fault_in_its_heap() {
    let outcome = with_malloc_checks("glibc_would_find_a_fault_in_its_heap", || {
        let mut block = std::hint::black_box(vec![1u8; 24]);
        // SAFETY: it is not sound: the test wants the fault to be found. glibc's check byte depends
        // on the address, so a constant is right once in 256 runs.
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

/// A small program of everything but interruptions, which valgrind cannot be told of: what the handler
/// writes below the red zone of the code that it interrupts counts as a fault. (Nor does it have
/// AVX-512, the precision of x87, or the exception flags of MXCSR.)
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
    // fn(n) -> trade(double(n)), after some rounds with polls.
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
                        for round in 0..40 {
                            heap.churn(&mut random);
                            // Valgrind may give sysmon no turn meanwhile.
                            if round % 4 == 0 {
                                for processor in 0..2 {
                                    runtime::request_preemption(processor);
                                }
                            }
                            // SAFETY: on a goroutine.
                            let _ = unsafe { pipe.call(round) };
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
    assert!(stats.cooperative >= 80, "one in four calls asks to give way: {stats:?}");
}

/// How valgrind runs a test. `max-stackframe`: what moves rsp by more goes to another stack; those of
/// goroutines are 68 KiB apart. `smc-check`: code memory is a file to valgrind, and need not be looked
/// at for changes, since published code never changes.
const VALGRIND: &[&str] = &[
    "valgrind",
    "-q",
    "--error-exitcode=99",
    "--leak-check=no",
    "--max-stackframe=30000",
    "--smc-check=all-non-file",
    "--read-inline-info=no",
    concat!("--suppressions=", env!("CARGO_MANIFEST_DIR"), "/tests/data/valgrind.supp"),
];

fn with_valgrind(test: &str, body: impl FnOnce()) -> Option<Outcome> {
    // In the child itself it is there.
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

/// What is not there, or was not written, is not read, as far as valgrind sees it.
#[test]
fn valgrind_finds_no_fault() {
    if let Some(outcome) = with_valgrind("valgrind_finds_no_fault", small_program) {
        print!("{}", outcome.stderr);
        passed(&outcome);
    }
}

/// It looks at goroutines, too.
#[test]
fn valgrind_would_find_a_fault() {
    let outcome = with_valgrind("valgrind_would_find_a_fault", || {
        runtime::run(|| {
            let fault = || {
                let block = std::hint::black_box(Box::new(5u64));
                let address = &raw const *block;
                drop(block);
                gosched();
                // SAFETY: it is not sound: the test wants the fault to be found.
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
