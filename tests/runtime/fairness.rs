//! Fairness: how long a runnable goroutine waits, by queue. The waits are counted in time slices
//! that others have, or in goroutines that run before it. No test reads a clock for that: the time
//! slices end where the test says so (`request_preemption`), or are counted by the scheduler.
//!
//! | promise | constant, or step | test that fails without it |
//! | --- | --- | --- |
//! | a runnable goroutine waits for two time slices of a loop that polls | `deschedule0` | `no_queue_keeps_a_goroutine_waiting_for_longer_than_two_time_slices` |
//! | what a time slice ends goes after all that is runnable | `enqueue_last` in `deschedule0` | `a_time_slice_that_ends_lets_all_run_that_waits` |
//! | goroutines that start all the time, and take whole time slices, starve no other queue | `Round`, in `deschedule0` | `a_round_serves_each_queue_when_time_slices_are_long` |
//! | the same for goroutines that are not preempted | `Round`, in sysmon | `sysmon_begins_rounds` |
//! | a pair that exchanges messages has whole time slices, like a loop | `MAX_INHERITED` | `a_pair_has_as_much_time_as_a_loop` |
//! | a pair is bounded without sysmon | `MAX_INHERITED_UNTIMED` | `scheduler::the_ticks_of_a_pair_that_wakes_each_other_are_limited` |
//! | the local queue goes first at one time slice in 8 | `LOCAL_EVERY` | `the_local_queue_has_one_turn_in_eight` |
//! | the global queue goes first at one time slice in 64 | `GLOBAL_EVERY` | `the_global_queue_has_one_turn_in_sixty_four` |
//! | timers are checked at one tick in 16 | `TIMERS_EVERY` | `timers_are_checked_at_one_tick_in_sixteen` |

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use footbridge::runtime::{
    Chan, Config, checkpoint, go, gosched, request_preemption, scope, sleep, stats,
};
use support::runs::AtEnd;
use support::watchdog;

/// No sysmon: time slices end where a test says so.
fn untimed<R>(processors: usize, f: impl FnOnce() -> R) -> R {
    let config = Config::new().processors(processors).time_slice(None);
    config.run(f).expect("the run starts")
}

/// Ends the time slice of the calling goroutine, which the first processor runs.
fn end_slice() {
    assert!(request_preemption(0), "a goroutine runs there");
    checkpoint();
}

/// Blocks the thread until `condition` holds.
fn block_until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// Where a goroutine waits.
#[derive(Clone, Copy, Debug)]
enum Queue {
    RunNext,
    /// A goroutine that another one has displaced from run-next.
    Local,
    /// A goroutine that yielded while others waited.
    Yielded,
    Run,
    Inbox,
    Global,
    Timers,
}

impl Queue {
    const ALL: [Self; 7] = [
        Self::RunNext,
        Self::Local,
        Self::Yielded,
        Self::Run,
        Self::Inbox,
        Self::Global,
        Self::Timers,
    ];
}

/// How many time slices the main goroutine has while a goroutine in the queue waits, and all that
/// was put there before it.
fn slices_until_served(queue: Queue) -> usize {
    /// More than a run queue holds.
    const FLOOD: usize = 600;
    let channel = Chan::<()>::new(2);
    let served = Arc::new(AtomicUsize::new(0));
    let receiver = || {
        let (channel, served) = (channel.clone(), Arc::clone(&served));
        drop(go(move || {
            channel.recv().expect("open");
            served.fetch_add(1, Ordering::Relaxed);
        }));
    };
    let counting = || {
        let served = Arc::clone(&served);
        move || {
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    let expected = match queue {
        Queue::RunNext => {
            receiver();
            gosched();
            channel.send(()).expect("open");
            1
        }
        Queue::Local => {
            (0..2).for_each(|_| receiver());
            gosched();
            (0..2).for_each(|_| channel.send(()).expect("open"));
            2
        }
        Queue::Yielded => {
            let count = counting();
            drop(go(move || {
                // It waits for what it has started.
                (0..FLOOD).for_each(|_| drop(go(|| ())));
                gosched();
                count();
            }));
            gosched();
            1
        }
        Queue::Run => {
            drop(go(counting()));
            1
        }
        Queue::Inbox => {
            receiver();
            gosched();
            std::thread::scope(|s| drop(s.spawn(|| channel.send(()).expect("open"))));
            1
        }
        Queue::Global => {
            (0..FLOOD).for_each(|_| drop(go(counting())));
            FLOOD
        }
        Queue::Timers => {
            let (count, asleep) = (counting(), Arc::new(AtomicBool::new(false)));
            let sleeps = Arc::clone(&asleep);
            drop(go(move || {
                sleeps.store(true, Ordering::Relaxed);
                sleep(Duration::from_millis(1));
                count();
            }));
            gosched();
            assert!(asleep.load(Ordering::Relaxed));
            // The timer is due when this returns. This thread fires it later.
            std::thread::sleep(Duration::from_millis(2));
            1
        }
    };
    let mut slices = 0;
    while served.load(Ordering::Relaxed) < expected {
        slices += 1;
        assert!(slices < 1000, "{queue:?} starves");
        end_slice();
    }
    slices
}

#[test]
fn no_queue_keeps_a_goroutine_waiting_for_longer_than_two_time_slices() {
    let _watch = watchdog::watch(Duration::from_secs(60));
    for processors in [1, 2] {
        for queue in Queue::ALL {
            let slices = untimed(processors, || {
                // The other thread is busy, and takes nothing.
                let (stop, busy) = (AtomicBool::new(false), AtomicUsize::new(0));
                scope(|s| {
                    let _end = AtEnd(|| stop.store(true, Ordering::Relaxed));
                    for _ in 1..processors {
                        s.go(|| {
                            busy.fetch_add(1, Ordering::Relaxed);
                            block_until(|| stop.load(Ordering::Relaxed));
                        });
                    }
                    block_until(|| busy.load(Ordering::Relaxed) == processors - 1);
                    slices_until_served(queue)
                })
            });
            assert!(slices <= 2, "{queue:?}, {processors} processors: {slices} time slices");
        }
    }
}

/// The goroutine whose time slice ends may have started far more goroutines than a run queue holds.
#[test]
fn a_time_slice_that_ends_lets_all_run_that_waits() {
    const BATCH: usize = 1000;
    untimed(1, || {
        let done = Arc::new(AtomicUsize::new(0));
        for i in 1..=10 {
            for _ in 0..BATCH {
                let done = Arc::clone(&done);
                drop(go(move || done.fetch_add(1, Ordering::Relaxed)));
            }
            end_slice();
            assert_eq!(done.load(Ordering::Relaxed), i * BATCH, "i {i}");
        }
    });
}

/// Goroutines each of which starts the next one, so that the run queue is never empty when a
/// goroutine is chosen.
struct Links {
    /// How many have run.
    count: AtomicUsize,
    stop: AtomicBool,
    /// Called by each with its number, before it starts the next one.
    each: Box<dyn Fn(usize) + Send + Sync>,
}

impl Links {
    fn start(each: impl Fn(usize) + Send + Sync + 'static) -> Arc<Self> {
        let links = Arc::new(Self {
            count: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            each: Box::new(each),
        });
        Self::next(&links);
        links
    }

    fn next(links: &Arc<Self>) {
        let links = Arc::clone(links);
        drop(go(move || {
            let number = links.count.fetch_add(1, Ordering::Relaxed);
            (links.each)(number);
            if !links.stop.load(Ordering::Relaxed) {
                Self::next(&links);
            }
        }));
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Each link has a whole time slice, and readies a goroutine at its beginning, which so joins the
/// local queue at the end.
#[test]
fn a_round_serves_each_queue_when_time_slices_are_long() {
    const LINKS: usize = 100;
    let waits = untimed(1, || {
        let (to_receiver, waits) = (Chan::<usize>::new(LINKS), Chan::new(LINKS));
        let sender = to_receiver.clone();
        let links = Links::start(move |number| {
            if number < LINKS {
                sender.send(number).expect("open");
            }
            // The next link is in the run queue before this one is descheduled.
            drop(go(|| ()));
            end_slice();
        });
        let receiver = {
            let (links, waits) = (Arc::clone(&links), waits.clone());
            go(move || {
                for _ in 0..LINKS {
                    let sent = to_receiver.recv().expect("open");
                    waits.send(links.count() - 1 - sent).expect("room");
                }
            })
        };
        receiver.join().expect("no panic");
        links.stop();
        waits.close();
        waits.iter().collect::<Vec<_>>()
    });
    assert!(waits.iter().all(|wait| *wait <= 2), "links that began meanwhile: {waits:?}");
}

/// Starts far more goroutines than a run queue holds, on one thread. The older ones are in the
/// global queue when the first one runs. Returns the numbers of all in the order in which they ran.
/// Each calls `each` with what has run before it.
fn order_of_a_flood(each: impl Fn(&[usize]) + Send + Sync + 'static) -> Vec<usize> {
    const FLOOD: usize = 2000;
    let (order, each) = (Arc::new(Mutex::new(Vec::new())), Arc::new(each));
    let done = Chan::new(1);
    for number in 0..FLOOD {
        let (order, each, done) = (Arc::clone(&order), Arc::clone(&each), done.clone());
        drop(go(move || {
            let mut order = order.lock().expect("no panic");
            each(&order);
            order.push(number);
            if order.len() == FLOOD {
                done.send(()).expect("room");
            }
        }));
    }
    done.recv().expect("open");
    let mut order = order.lock().expect("no panic");
    std::mem::take(&mut order)
}

/// The first one of a flood is the first one of the global queue.
fn position_of_the_oldest(order: &[usize]) -> usize {
    let oldest = order.iter().position(|number| *number == 0);
    oldest.expect("all have run")
}

#[test]
fn sysmon_begins_rounds() {
    /// The average without rounds: half of the period of the global queue.
    const UNTIMED: usize = 32;
    const TRIALS: usize = 10;
    let _watch = watchdog::watch(Duration::from_secs(120));
    let config = Config::new().processors(1).time_slice(Duration::from_millis(1));
    let before: usize = (0..TRIALS)
        .map(|trial| {
            let order = config.run(|| {
                // The trials begin at different time slices of the period.
                (0..trial * 7).for_each(|_| go(|| ()).join().expect("no panic"));
                order_of_a_flood(|order| {
                    if !order.contains(&0) {
                        // Blocks its thread for longer than a time slice, and does not poll.
                        std::thread::sleep(Duration::from_millis(2));
                    }
                })
            });
            watchdog::beat();
            position_of_the_oldest(&order.expect("the run starts"))
        })
        .sum();
    println!("{before} goroutines ran before the global queue's first, in {TRIALS} trials");
    assert!(before < TRIALS * UNTIMED / 2, "{before} in {TRIALS} trials");
}

/// The pair exchanges its messages while the loop has few time slices. Limited to some ticks in a
/// row it would need hundreds.
#[test]
fn a_pair_has_as_much_time_as_a_loop() {
    const MESSAGES: usize = 20_000;
    let _watch = watchdog::watch(Duration::from_secs(120));
    for processors in [1, 2] {
        let config = Config::new().processors(processors).time_slice(Duration::from_millis(5));
        let slices = config.run(|| {
            let (stop, slices, busy) =
                (AtomicBool::new(false), AtomicU64::new(0), AtomicUsize::new(0));
            scope(|s| {
                let _end = AtEnd(|| stop.store(true, Ordering::Relaxed));
                // The other thread is busy, so that the pair is on this one.
                for _ in 1..processors {
                    s.go(|| {
                        busy.fetch_add(1, Ordering::Relaxed);
                        block_until(|| stop.load(Ordering::Relaxed));
                    });
                }
                block_until(|| busy.load(Ordering::Relaxed) == processors - 1);
                let channel = Chan::<usize>::new(0);
                let receiver = {
                    let channel = channel.clone();
                    s.go(move || channel.iter().count())
                };
                s.go(move || {
                    (0..MESSAGES).for_each(|n| channel.send(n).expect("open"));
                    channel.close();
                });
                // This is the loop.
                let before = stats().cooperative;
                while !receiver.is_finished() {
                    checkpoint();
                }
                slices.store(stats().cooperative - before, Ordering::Relaxed);
            });
            slices.into_inner()
        });
        let slices = slices.expect("the run starts");
        println!("{processors} processors: {slices} time slices of the loop");
        // With 128 ticks in a row the loop would have 2 * MESSAGES / 128.
        assert!(slices < 2 * MESSAGES as u64 / 128 / 3, "{slices} time slices of the loop");
    }
}

#[test]
fn the_local_queue_has_one_turn_in_eight() {
    const TURNS: usize = 50;
    let gaps = untimed(1, || {
        let links = Links::start(|_| ());
        let mut last = 0;
        let gaps: Vec<usize> = (0..TURNS)
            .map(|_| {
                // The end of a goroutine that is joined readies this one in the local queue.
                go(|| ()).join().expect("no panic");
                links.count() - std::mem::replace(&mut last, links.count())
            })
            .collect();
        links.stop();
        gaps
    });
    // Of eight time slices one is the local queue's, and one that of the goroutine that is joined.
    assert!(gaps[1..].iter().all(|gap| *gap == 6), "links in between: {gaps:?}");
}

#[test]
fn the_global_queue_has_one_turn_in_sixty_four() {
    let order = untimed(1, || order_of_a_flood(|_| ()));
    let first = position_of_the_oldest(&order);
    assert!(first < 64, "{first} ran before the global queue's first");
    // In between is the run queue, in order. The next turn is the global queue's again.
    let in_between = &order[first + 1..first + 64];
    assert!(in_between.is_sorted_by(|a, b| a + 1 == *b), "{in_between:?}");
    assert_ne!(order[first + 64], order[first + 63] + 1, "{:?}", &order[..first + 70]);
}

#[test]
fn timers_are_checked_at_one_tick_in_sixteen() {
    for ticks in 0..20 {
        let links = untimed(1, || {
            (0..ticks).for_each(|_| gosched());
            let links = Links::start(|_| ());
            let sleeper = {
                let links = Arc::clone(&links);
                go(move || {
                    sleep(Duration::from_nanos(1));
                    links.count()
                })
            };
            // Parks this goroutine, and the timer is due.
            let woken_after = sleeper.join().expect("no panic");
            links.stop();
            woken_after
        });
        // A tick in 16 fires the timer, and one in 8 serves the local queue, which then has the
        // sleeper.
        assert!(links <= 16 + 8, "{links} links, begun after {ticks} ticks");
    }
}
