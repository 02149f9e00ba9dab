//! Fairness: how long a runnable goroutine waits, by queue. The waits are counted in time slices
//! that others have, or in goroutines that run before it. No test reads a clock for that: the time
//! slices end where the test says so (`request_preemption`), or are counted by the scheduler.
//! Also: where goroutines that start in a burst go, which case `select` chooses, and whose
//! goroutines a run resumes.
//!
//! Each promise, the constant or step that keeps it, and the test that fails without:
//!
//! * A runnable goroutine waits for no second time slice of a loop that polls; `deschedule0`:
//!   `no_queue_keeps_a_goroutine_waiting_for_another_time_slice_of_a_loop`.
//! * A goroutine whose time slice ends goes after all that is runnable; `enqueue_last`:
//!   `a_time_slice_that_ends_lets_all_run_that_waits`.
//! * Goroutines that start all the time, and have whole time slices, starve no other queue; `Round`
//!   in `deschedule0`: `a_round_serves_each_queue_when_time_slices_are_long`.
//! * Nor do goroutines that are not preempted; `Round` in sysmon: `sysmon_begins_rounds`.
//! * A pair that exchanges messages has whole time slices, like a loop; `MAX_INHERITED`:
//!   `a_pair_has_as_much_time_as_a_loop`.
//! * Without a sysmon a pair is bounded by ticks; `MAX_INHERITED_UNTIMED`:
//!   `scheduler::the_ticks_of_a_pair_that_wakes_each_other_are_limited`.
//! * The local queue goes first at one time slice in 8; `LOCAL_EVERY`:
//!   `the_local_queue_has_one_turn_in_eight`.
//! * The global queue goes first at one time slice in 64; `GLOBAL_EVERY`:
//!   `the_global_queue_has_one_turn_in_sixty_four`.
//! * Timers are checked at one tick in 16; `TIMERS_EVERY`:
//!   `timers_are_checked_at_one_tick_in_sixteen`.
//! * No request comes before a time slice is over; `Seen` in sysmon:
//!   `time_slices_are_not_cut_short`.
//! * Goroutines that start in a burst and stay are spread; `spread`, `SETTLED`:
//!   `goroutines_that_stay_are_spread_over_the_processors`.
//! * Goroutines that end at once are not sent away; `Burst::start_next`:
//!   `goroutines_that_end_at_once_are_not_sent_away`.
//! * `select` favours no case; `random` in `poll`: `select_favours_no_case_that_is_ready`.
//! * A goroutine of an earlier run is never resumed; the checks of `run_id` in `ready` and
//!   `drain_inbox`: `a_goroutine_of_an_earlier_run_is_not_readied_on_its_m`.
//! * A run with a goroutine that can be readied is not dead; `is_dead` in `sched/idle.rs`: the unit
//!   test there.

#![allow(unsafe_code, reason = "parks and readies by hand")]

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    Builder, Case, Chan, Config, Parker, Stats, WaitReason, checkpoint, current, go, gopark,
    goready, gosched, request_preemption, scope, select, sleep, stats, try_select,
};
use support::runs::AtEnd;
use support::{child, watchdog};

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
fn no_queue_keeps_a_goroutine_waiting_for_another_time_slice_of_a_loop() {
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
            assert_eq!(slices, 1, "{queue:?}, {processors} processors");
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
    /// Called by each with its number, after it has started the next one.
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
            if !links.stop.load(Ordering::Relaxed) {
                Self::next(&links);
            }
            (links.each)(number);
        }));
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// From time to time a link readies a goroutine, which joins the local queue at the end of the
/// link's time slice. The links that follow have whole time slices, too.
#[test]
fn a_round_serves_each_queue_when_time_slices_are_long() {
    const EVENTS: usize = 40;
    /// A prime: the events come at all time slices of a period. Most links are short, and what the
    /// long ones leave in the queues runs meanwhile.
    const EVERY: usize = 101;
    const LONG: usize = 10;
    let waits = untimed(1, || {
        let (to_receiver, waits) = (Chan::<usize>::new(EVENTS), Chan::new(EVENTS));
        let sender = to_receiver.clone();
        let links = Links::start(move |number| {
            if number % EVERY == 0 && number / EVERY < EVENTS {
                sender.send(number).expect("open");
            }
            if number % EVERY < LONG {
                end_slice();
            }
        });
        let receiver = {
            let (links, waits) = (Arc::clone(&links), waits.clone());
            go(move || {
                for _ in 0..EVENTS {
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

/// Two loops that poll have time slices in turn, and one that does not poll is requested once a
/// time slice. However late the threads of a busy machine are, no time slice is shorter.
#[test]
fn time_slices_are_not_cut_short() {
    const SLICE: Duration = Duration::from_millis(2);
    const COUNT: u64 = 20;
    let _watch = watchdog::watch(Duration::from_secs(120));
    let config = Config::new().processors(1).time_slice(SLICE);
    let check = |count: fn(Stats) -> u64, wait: fn()| {
        // The first time slice may have begun long ago.
        let first = count(stats()) + 1;
        while count(stats()) < first {
            wait();
        }
        let start = Instant::now();
        while count(stats()) < first + COUNT {
            wait();
        }
        let (time, counted) = (start.elapsed(), count(stats()) - first);
        // sysmon's clock was read before the first request, and this one after it.
        assert!(time > SLICE * (counted - 1) as u32, "{counted} in {time:?}");
    };
    let run = config.run(|| {
        check(|stats| stats.requested, std::hint::spin_loop);
        let stop = AtomicBool::new(false);
        scope(|s| {
            let _end = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    checkpoint();
                }
            });
            check(|stats| stats.cooperative, checkpoint);
        });
    });
    run.expect("the run starts");
}

/// Starts goroutines in a burst, beside a thread that sleeps. Returns how many ran first on the
/// thread that has started them, and how many were sent to the other one.
fn burst(goroutines: usize, f: impl Fn() + Send + Sync + Clone + 'static) -> (usize, u64) {
    let run = Config::new().processors(2).run(|| {
        // The other thread has searched, and sleeps.
        block_until(|| stats().sleeps > 0);
        let here = std::thread::current().id();
        let on_this_one = Arc::new(AtomicUsize::new(0));
        let handles: Vec<_> = (0..goroutines)
            .map(|_| {
                let (on_this_one, f) = (Arc::clone(&on_this_one), f.clone());
                go(move || {
                    if std::thread::current().id() == here {
                        on_this_one.fetch_add(1, Ordering::Relaxed);
                    }
                    f();
                })
            })
            .collect();
        handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
        (on_this_one.load(Ordering::Relaxed), stats().sent)
    });
    run.expect("the run starts")
}

/// A goroutine stays on the thread where it starts. So a pool of workers is shared out before its
/// members wait for work.
#[test]
fn goroutines_that_stay_are_spread_over_the_processors() {
    const GOROUTINES: usize = 40;
    const TRIALS: usize = 20;
    let _watch = watchdog::watch(Duration::from_secs(120));
    let trials: Vec<_> = (0..TRIALS)
        .map(|_| {
            watchdog::beat();
            burst(GOROUTINES, || sleep(Duration::from_millis(1)))
        })
        .collect();
    println!("on one of two threads, and sent: {trials:?}");
    // The other thread may wake while the burst is started, and take it all: this one is busy then.
    // So the average counts. Ideally each trial has half on each thread.
    let fewer: usize = trials.iter().map(|&(here, _)| here.min(GOROUTINES - here)).sum();
    assert!(fewer >= TRIALS * GOROUTINES / 8, "{fewer} on the threads that had fewer: {trials:?}");
    assert!(trials.iter().any(|(_, sent)| *sent >= 10), "{trials:?}");
}

#[test]
fn goroutines_that_end_at_once_are_not_sent_away() {
    for _ in 0..20 {
        let (_, sent) = burst(200, || ());
        assert_eq!(sent, 0);
    }
}

#[test]
fn select_favours_no_case_that_is_ready() {
    const SELECTS: usize = 3000;
    let chosen = untimed(1, || {
        let channels: [Chan<u8>; 3] = std::array::from_fn(|_| Chan::new(1));
        channels.iter().for_each(|channel| assert!(channel.close()));
        let mut chosen = [[0; 3]; 2];
        for _ in 0..SELECTS {
            let mut slots = [None; 3];
            let mut cases: Vec<_> =
                channels.iter().zip(&mut slots).map(|(c, slot)| Case::recv(c, slot)).collect();
            chosen[0][select(&mut cases)] += 1;
            chosen[1][try_select(&mut cases).expect("all are ready")] += 1;
        }
        chosen
    });
    let fair = SELECTS / 3 * 9 / 10..=SELECTS / 3 * 11 / 10;
    assert!(chosen.iter().flatten().all(|count| fair.contains(count)), "{chosen:?}");
}

/// Ms are used again by later runs, on the same thread or another one.
#[test]
fn a_goroutine_of_an_earlier_run_is_not_readied_on_its_m() {
    // Alone in its process, so that the later run gets the same Ms.
    let outcome = child::run("a_goroutine_of_an_earlier_run_is_not_readied_on_its_m", || {
        for processors in [1, 2] {
            let parked = Arc::new(Mutex::new(Vec::<Parker>::new()));
            let resumed = Arc::new(AtomicUsize::new(0));
            untimed(processors, || {
                let (stop, busy) =
                    (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
                for _ in 1..processors {
                    let (stop, busy) = (Arc::clone(&stop), Arc::clone(&busy));
                    drop(go(move || {
                        busy.fetch_add(1, Ordering::Relaxed);
                        block_until(|| stop.load(Ordering::Relaxed));
                    }));
                }
                block_until(|| busy.load(Ordering::Relaxed) == processors - 1);
                let park = || {
                    let (parked, resumed) = (Arc::clone(&parked), Arc::clone(&resumed));
                    move || {
                        let me = current();
                        let publish = || parked.lock().expect("whole").push(me);
                        // SAFETY: the later run readies it once.
                        unsafe { gopark(WaitReason::Other, publish) };
                        resumed.fetch_add(1, Ordering::SeqCst);
                    }
                };
                (0..2).for_each(|_| drop(go(park())));
                for _ in 0..2 {
                    // SAFETY: it has no value that belongs to a thread.
                    drop(unsafe { Builder::new().go_migratable(park()) }.expect("memory"));
                }
                // All are on this thread, since the other one is busy.
                while parked.lock().expect("whole").len() < 4 {
                    gosched();
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut parked = std::mem::take(&mut *parked.lock().expect("whole"));
            untimed(processors, || {
                // One of each kind from a thread of the run, and one from a foreign thread.
                // SAFETY: each is in `gopark`, and only this readies it.
                let ready = |parker| unsafe { goready(parker) };
                let (by_thread, by_this) = (parked.split_off(2), parked);
                let [sticky, migratable] = [by_this[0], by_thread[0]];
                ready(sticky);
                ready(migratable);
                let rest = [by_this[1], by_thread[1]];
                let foreign = std::thread::spawn(move || rest.map(ready));
                foreign.join().expect("no panic");
                for _ in 0..100 {
                    gosched();
                    go(gosched).join().expect("no panic");
                }
            });
            assert_eq!(resumed.load(Ordering::SeqCst), 0, "{processors} processors");
        }
    });
    outcome.assert_success();
}
