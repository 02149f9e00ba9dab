//! A soak test: all operations of goroutines, at random and concurrently. It consists of rounds,
//! each with one run or two concurrent runs. After each round the accounts must balance: no
//! goroutine, value, handle or stack is lost or exists twice, and no thread or mapping is leaked.
//!
//! FOOTBRIDGE_SOAK_SECONDS is the least duration (default 3); on a busy machine the soak continues
//! until it has exercised everything. FOOTBRIDGE_SEED is the seed. The seed
//! determines the steps of each goroutine, not the order in which they run.
//!
//! `steps.rs` has the steps of goroutines, `world.rs` the accounts. The soak runs in a process of
//! its own. If it hangs, a watchdog reports the state of all goroutines, the steps taken, and the
//! seed.

#![allow(unsafe_code, reason = "calls emitted code and readies goroutines")]

mod code;
mod steps;
mod world;

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::patience::{self, Patience, block_until};
use support::settings::{number_or, seed_or};
use support::watchdog;

use footbridge::runtime::{
    self, Builder, Chan, Config, Stats, VectorState, go, goready, goroutines, gosched, stack_usage,
};
use steps::{Actor, Kind, RunInfo, SCANS, foreign_threads};
use support::child::Child;
use support::spinner::{Level, Random};
use world::{Balance, CLASSES, Running, STEPS, World, check, lock};

/// The process is aborted after this time without progress. A busy machine is not that slow.
const HANG_LIMIT: Duration = Duration::from_secs(60);
/// Mappings that stacks and the heap may have added in the second half: each of the five classes of
/// stacks maps ever larger segments.
const SEGMENTS: usize = 16;
/// Goroutines of a run that print all tracebacks when the watchdog requests it.
const REPORTERS: usize = 2;

fn seed() -> u64 {
    seed_or(0x50a1_b71d_6e00)
}

/// The settings of one run of a round.
#[derive(Debug, Clone)]
struct Plan {
    config: Config,
    /// The registers that the run's save areas hold.
    level: Level,
    processors: usize,
    /// The position of the stack size in [`CLASSES`].
    class: usize,
    /// Whether goroutines are preempted by signals.
    preempts: bool,
    /// The number of live goroutines that the main goroutine maintains.
    target: usize,
    seed: u64,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let mut below = |limit: u64| random.next_u64() % limit;
        let slices = [None, Some(20), Some(20), Some(50), Some(200), Some(1000), Some(10_000)];
        let slice = slices[below(7) as usize].map(Duration::from_micros);
        let levels = Level::all();
        let level = levels[below(levels.len() as u64) as usize];
        let is_largest = level == Level::largest();
        let vector_state =
            if is_largest && below(2) == 0 { VectorState::Auto } else { level.vector_state() };
        let processors = [1, 2, 2, 3, 4, 8][below(6) as usize];
        let class = [1, 1, 1, 2, 3][below(5) as usize];
        let by_signal = below(8) != 0;
        let config = Config::new()
            .processors(processors)
            .stack_bytes(CLASSES[class])
            .time_slice(slice)
            .async_preemption(by_signal)
            .vector_state(vector_state);
        let preempts = slice.is_some() && by_signal;
        // With few goroutines threads go idle, with many they do not.
        let target = if below(3) == 0 { 1 + below(3) } else { 4 + below(60) };
        Self {
            config,
            processors,
            class,
            preempts,
            level,
            target: target as usize,
            seed: random.next_u64(),
        }
    }

    /// The settings that actors need, of run number `run` of a round.
    fn info(&self, run: usize) -> RunInfo {
        let Self { class, level, preempts, processors, .. } = *self;
        RunInfo { run, class, level, preempts, processors }
    }

    /// Executes the run until `end`.
    fn run(&self, world: &Arc<World>, run: usize, end: Instant) -> Stats {
        let at = self.info(run);
        let result = self.config.run(|| {
            let mut actor = Actor::main(world, at, self.seed);
            let running = Running::begin(world, actor.entry());
            actor.entry().release();
            start_reporters(world, at);
            let others = 1 + REPORTERS;
            while Instant::now() < end && !world.stopped() {
                if world.live[run].load(Ordering::Relaxed) < self.target + others {
                    let handle = actor.start();
                    world.put_handle(handle);
                }
                unblock_some(&mut actor);
                runtime::sleep(Duration::from_micros(actor.below(100)));
            }
            world.stop.store(true, Ordering::SeqCst);
            if !world.abandons {
                finish_goroutines(&mut actor, world, run);
            }
            let stats = runtime::stats();
            drop(actor);
            running.finish();
            stats
        });
        result.expect("the run starts")
    }
}

/// Takes steps for which other goroutines may be waiting.
fn unblock_some(actor: &mut Actor) {
    let world = actor.world.clone();
    for _ in 0..8 {
        let channel = world.channel(&mut actor.random);
        if actor.below(2) == 0 {
            world.try_send(&channel)
        } else {
            world.try_recv(&channel)
        }
        ready_one(actor);
    }
}

fn ready_one(actor: &mut Actor) -> bool {
    let parker = actor.world.take_parker(&mut actor.random);
    // SAFETY: only this goroutine has taken the parker.
    parker.is_some_and(|parker| unsafe {
        goready(parker);
        true
    })
}

/// Waits until all other goroutines have ended, and unblocks them.
fn finish_goroutines(actor: &mut Actor, world: &World, run: usize) {
    let left = || world.live[run].load(Ordering::SeqCst);
    while left() > 1 + REPORTERS {
        world.close();
        while ready_one(actor) {}
        runtime::sleep(Duration::from_micros(100));
    }
    world.reports[run].close();
    // A goroutine ends shortly after its last change of the accounts.
    while left() > 1 || goroutines().len() > 1 {
        runtime::sleep(Duration::from_micros(100));
    }
}

fn start_reporters(world: &Arc<World>, at: RunInfo) {
    for _ in 0..REPORTERS {
        let entry = world.enter(at.run, at.class, "reporter");
        let world = world.clone();
        entry.release();
        let handle = go(move || {
            let running = Running::begin(&world, &entry);
            while world.reports[at.run].recv().is_ok() {
                let mut all = String::new();
                for traceback in runtime::traceback_all() {
                    let _ = writeln!(all, "{traceback}");
                }
                eprintln!("run {}:\n{all}", at.run);
            }
            drop(world);
            running.finish();
        });
        drop(handle);
    }
}

/// The present round, for the watchdog.
static NOW: Mutex<Option<Arc<World>>> = Mutex::new(None);

/// The report of the watchdog.
fn describe() {
    eprintln!("{}\n{}", world::context(), steps_taken());
    let world = NOW.try_lock().ok().and_then(|now| now.clone());
    if let Some(world) = world {
        eprintln!("{}", world.unfinished());
        for report in &world.reports {
            // All reporters print the same, since one may be on a thread that hangs.
            for _ in 0..REPORTERS {
                let _ = report.try_send(());
            }
        }
        std::thread::sleep(Duration::from_secs(3));
    }
}

fn steps_taken() -> String {
    let mut text = String::from("steps:");
    for (kind, count) in Kind::ALL.iter().zip(&STEPS) {
        let _ = write!(text, " {kind:?} {}", count.load(Ordering::Relaxed));
    }
    text
}

/// Totals of all rounds.
#[derive(Default)]
struct Total {
    rounds: u64,
    runs: u64,
    balance: Balance,
    asynchronous: u64,
    cooperative: u64,
}

impl Total {
    /// Executes a round, and checks its accounts.
    fn round(&mut self, random: &mut Random) {
        let number = self.rounds;
        let abandons = number % 4 == 3;
        let plans: Vec<Plan> = (0..1 + random.next_u64() % 2).map(|_| Plan::new(random)).collect();
        let time = Duration::from_millis(30 + random.next_u64() % 120);
        world::set_context(format!(
            "FOOTBRIDGE_SEED={}, round {number}, abandons: {abandons}, {time:?}, {plans:#?}",
            seed()
        ));
        let world = World::new(abandons);
        *lock(&NOW) = Some(world.clone());
        let end = Instant::now() + time;
        let all_stats: Vec<Stats> = std::thread::scope(|s| {
            let others: Vec<_> = plans
                .iter()
                .enumerate()
                .skip(1)
                .map(|(run, plan)| {
                    let world = &world;
                    s.spawn(move || plan.run(world, run, end))
                })
                .collect();
            let mut all = vec![plans[0].run(&world, 0, end)];
            all.extend(others.into_iter().map(|other| other.join().expect("no panic")));
            all
        });
        // Foreign threads may wait for goroutines that were abandoned.
        while world.foreign.load(Ordering::SeqCst) != 0 {
            world.close();
            std::thread::sleep(Duration::from_micros(100));
        }
        let balance = world.balance(random);
        let left = goroutines();
        check(left.is_empty(), || format!("goroutines without a run: {left:?}"));
        *lock(&NOW) = None;
        self.rounds += 1;
        self.runs += plans.len() as u64;
        for stats in all_stats {
            self.asynchronous += stats.asynchronous;
            self.cooperative += stats.cooperative;
        }
        let sum = &mut self.balance;
        sum.started += balance.started;
        sum.finished += balance.finished;
        sum.panicked += balance.panicked;
        sum.abandoned += balance.abandoned;
        sum.passed += balance.passed;
        sum.in_use.iter_mut().zip(balance.in_use).for_each(|(sum, more)| *sum += more);
        check_stacks(&self.balance.in_use);
    }
}

impl Total {
    /// Whether the soak has exercised everything.
    fn is_enough(&self) -> bool {
        let Self { rounds, balance, asynchronous, cooperative, .. } = self;
        let counts =
            [*asynchronous, *cooperative, balance.panicked as u64, balance.abandoned as u64];
        let steps = STEPS.iter().all(|count| count.load(Ordering::Relaxed) > 0);
        let scans = SCANS.load(Ordering::Relaxed);
        *rounds >= 12 && steps && scans > 0 && counts.iter().all(|count| *count > 0)
    }
}

/// Checks the number of stacks in use, by class, after the runs: those of abandoned goroutines.
fn check_stacks(expected: &[usize; 5]) {
    let usage = stack_usage();
    let in_use = usage.iter().map(|class| class.made.checked_sub(class.pooled + class.decommitted));
    let in_use: Vec<_> = in_use.collect();
    let holds = in_use.iter().zip(expected).all(|(found, expected)| *found == Some(*expected));
    check(holds, || format!("stacks in use: {in_use:?}, not {expected:?}; {usage:?}"));
}

/// Resources of the process.
struct Resources {
    mappings: usize,
    resident_kib: usize,
    /// Stacks that were allocated, by class.
    made: Vec<usize>,
}

impl Resources {
    fn now() -> Self {
        let read = |path| std::fs::read_to_string(path).expect("procfs");
        let status = read("/proc/self/status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Self {
            mappings: read("/proc/self/maps").lines().count(),
            resident_kib: resident.expect("a number"),
            made: stack_usage().iter().map(|class| class.made).collect(),
        }
    }

    /// How many mappings may have been added since `before`.
    fn more_mappings(&self, before: &Self) -> usize {
        let guards_are_mappings = footbridge::environment().stack_guards != "MADV_GUARD_INSTALL";
        let more = self.made.iter().sum::<usize>() - before.made.iter().sum::<usize>();
        SEGMENTS + if guards_are_mappings { 2 * more } else { 0 }
    }
}

/// Messages of intended panics.
const EXPECTED_PANICS: [&str; 5] = [
    world::SCOPED,
    " overflowed its ",
    "in a relayed step",
    "on the system stack",
    "a goroutine cannot park inside of systemstack",
];

fn soak(time: Duration) {
    // Otherwise each thread of each run has a malloc arena of its own, with some mappings.
    // SAFETY: plain numbers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    std::panic::set_hook(Box::new(|info| {
        // Intended panics are not printed.
        let text = info.to_string();
        if !EXPECTED_PANICS.iter().any(|expected| text.contains(expected)) {
            eprintln!("{text}\n{}", world::context());
        }
    }));
    watchdog::start(HANG_LIMIT, describe);
    foreign_threads();
    code::codes();
    let mut random = Random(seed());
    let mut total = Total::default();
    let (begin, mut middle) = (Instant::now(), None);
    let threads = watchdog::thread_count();
    let patience = Patience::new();
    while begin.elapsed() < time || !(total.is_enough() || patience.is_over()) {
        total.round(&mut random);
        if middle.is_none() && begin.elapsed() >= time / 2 {
            middle = Some(Resources::now());
        }
    }
    let before = middle.expect("half of the time is over");
    let after = Resources::now();
    let Total { rounds, runs, balance, asynchronous, cooperative } = total;
    println!(
        "{rounds} rounds, {runs} runs, {asynchronous} preempted by signals, {cooperative} at polls"
    );
    let scans = SCANS.load(Ordering::Relaxed);
    println!("{scans} goroutines were suspended and scanned");
    println!("{balance:?}\n{}", steps_taken());
    let Resources { mappings, resident_kib, made } = &before;
    println!("mappings {mappings} -> {}, stacks {made:?} -> {:?}", after.mappings, after.made);
    println!("resident {resident_kib} -> {} KiB, with abandoned goroutines", after.resident_kib);
    let Balance { started, finished, panicked, abandoned, .. } = balance;
    assert_eq!(started, finished + panicked + abandoned);
    // A joined thread may exist for a moment longer.
    block_until("no thread is leaked", || watchdog::thread_count() == threads);
    assert!(
        after.mappings <= before.mappings + after.more_mappings(&before),
        "mappings are leaked: {} -> {}",
        before.mappings,
        after.mappings
    );
    // The soak must have exercised everything.
    assert!(scans > 0 && asynchronous > 0 && cooperative > 0 && panicked > 0 && abandoned > 0);
    for (kind, count) in Kind::ALL.iter().zip(&STEPS) {
        assert_ne!(count.load(Ordering::Relaxed), 0, "no step of kind {kind:?} was taken");
    }
}

#[test]
fn a_soak_loses_no_goroutine_value_handle_or_stack() {
    let seconds = number_or("FOOTBRIDGE_SOAK_SECONDS", 3);
    let test = "a_soak_loses_no_goroutine_value_handle_or_stack";
    let limit = seconds as u32 + patience::LIMIT.as_secs() as u32 + 60;
    let outcome = Child::of(test).limit_seconds(limit).run(|| {
        soak(Duration::from_secs(seconds));
    });
    print!("{}{}", outcome.stdout, outcome.stderr);
    outcome.assert_success();
}

/// However goroutines move between threads, a steady load allocates no more stacks than are in use
/// at once plus those that processors cache.
#[test]
fn a_steady_load_allocates_no_more_stacks_than_it_needs() {
    let child = Child::of("a_steady_load_allocates_no_more_stacks_than_it_needs");
    let outcome = child.run(steady_load);
    print!("{}{}", outcome.stdout, outcome.stderr);
    outcome.assert_success();
}

fn steady_load() {
    const WAVE: usize = 60;
    const PROCESSORS: usize = 3;
    watchdog::start(HANG_LIMIT, || ());
    let wave = |class: usize| {
        let gate = Chan::<()>::new(0);
        let handles: Vec<_> = (0..WAVE)
            .map(|_| {
                let gate = gate.clone();
                let body = move || gate.recv().is_err();
                Builder::new().stack_bytes(class).go(body).expect("memory")
            })
            .collect();
        gosched();
        gate.close();
        let mut handles = handles.into_iter();
        // Joins half of the goroutines, and drops the handles of the others before they have ended.
        for handle in handles.by_ref().take(WAVE / 2) {
            assert!(handle.join().expect("no panic"));
        }
        watchdog::beat();
    };
    let config = Config::new().processors(PROCESSORS);
    for _ in 0..3 {
        let waves = || {
            (0..120).for_each(|_| CLASSES[..4].iter().for_each(|&class| wave(class)));
            while goroutines().len() > 1 {
                gosched();
            }
        };
        config.run(waves).expect("the run starts");
    }
    check_stacks(&[0; 5]);
    for class in &stack_usage()[..4] {
        // Each processor caches two chains.
        let cached = 2 * PROCESSORS * ((32 << 20) / class.stack_bytes).min(512);
        println!("{class:?}; processors cache up to {cached}");
        assert!(class.made <= WAVE + 1 + cached, "{class:?}");
    }
}
