//! The API of channels: errors, iterators, and waits with a timeout.
//!
//! The races end when each outcome has been counted often enough, never after a time alone. A
//! watchdog aborts a process without progress.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    self, Builder, Case, Chan, Config, JoinHandle, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, TryRecvError, TrySendError, go, gosched, run, select, select_timeout, sleep,
    systemstack, try_select,
};

use support::child;
use support::patience::{Patience, block_until};
use support::runs::{AtEnd, on};
use support::watchdog::{self, Watch, beat};

const SHORT: Duration = Duration::from_millis(2);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

/// The minimum duration of the races.
fn seconds() -> Duration {
    let seconds = std::env::var("FOOTBRIDGE_STRESS_SECONDS");
    Duration::from_secs(seconds.map_or(1, |text| text.parse().expect("a number of seconds")))
}

fn watch() -> Watch {
    watchdog::watch(Duration::from_secs(120))
}

/// A type that implements no trait.
struct Plain(u8);

#[test]
fn errors_format_for_values_of_every_type() {
    fn texts(error: &(impl Error + 'static)) -> (String, String) {
        assert!(error.source().is_none());
        (format!("{error:?}"), error.to_string())
    }
    let pair = |debug: &str, display: &str| (debug.to_string(), display.to_string());
    assert_eq!(texts(&SendError(Plain(1))), pair("SendError(..)", "send on a closed channel"));
    let (full, closed) = (TrySendError::Full(Plain(1)), TrySendError::Closed(Plain(2)));
    assert_eq!(texts(&full), pair("Full(..)", "send on a full channel"));
    assert_eq!(texts(&closed), pair("Closed(..)", "send on a closed channel"));
    assert!(full.is_full() && !full.is_closed() && closed.is_closed() && !closed.is_full());
    assert_eq!((full.into_inner().0, closed.into_inner().0), (1, 2));
    let (late, closed) = (SendTimeoutError::Timeout(Plain(1)), SendTimeoutError::Closed(Plain(2)));
    assert_eq!(
        texts(&late),
        pair("Timeout(..)", "timed out while a send waited for room or a receiver")
    );
    assert_eq!(texts(&closed), pair("Closed(..)", "send on a closed channel"));
    assert!(late.is_timeout() && !late.is_closed() && closed.is_closed() && !closed.is_timeout());
    assert_eq!((late.into_inner().0, closed.into_inner().0), (1, 2));
    let empty = "receive on a closed and empty channel";
    assert_eq!(texts(&RecvError), pair("RecvError", empty));
    assert_eq!(texts(&TryRecvError::Empty), pair("Empty", "receive on an empty channel"));
    assert_eq!(texts(&TryRecvError::Closed), pair("Closed", empty));
    assert!(TryRecvError::Empty.is_empty() && !TryRecvError::Empty.is_closed());
    let late = RecvTimeoutError::Timeout;
    assert_eq!(texts(&late), pair("Timeout", "timed out while a receive waited for a value"));
    assert_eq!(texts(&RecvTimeoutError::Closed), pair("Closed", empty));
    assert!(late.is_timeout() && !late.is_closed() && RecvTimeoutError::Closed.is_closed());
    // Neither errors nor channels require `Debug` of the value.
    fn is_debug(_: impl Debug) {}
    is_debug(Chan::<Plain>::new(1));
    is_debug(Chan::<Plain>::new(1).iter());
    is_debug(Chan::<Plain>::new(1).try_iter());
    is_debug(Chan::<Plain>::new(1).into_iter());
    is_debug(Case::recv(&Chan::<Plain>::new(1), &mut None));
}

#[test]
fn errors_convert_so_that_the_question_mark_works() {
    fn send(channel: &Chan<u8>) -> Result<(), TrySendError<u8>> {
        channel.try_send(1)?;
        channel.send(2)?;
        Ok(())
    }
    fn send_late(channel: &Chan<u8>) -> Result<(), SendTimeoutError<u8>> {
        channel.send_timeout(1, SHORT)?;
        channel.send(2)?;
        Ok(())
    }
    fn receive(channel: &Chan<u8>) -> Result<u8, TryRecvError> {
        Ok(channel.try_recv()? + channel.recv()?)
    }
    fn receive_late(channel: &Chan<u8>) -> Result<u8, RecvTimeoutError> {
        Ok(channel.recv_timeout(SHORT)? + channel.recv()?)
    }
    fn any(channel: &Chan<u8>) -> Result<u8, Box<dyn Error + Send + Sync>> {
        channel.send(1)?;
        Ok(channel.recv()?)
    }
    let channel = Chan::new(2);
    assert_eq!((send(&channel), receive(&channel)), (Ok(()), Ok(3)));
    assert_eq!((send_late(&channel), receive_late(&channel)), (Ok(()), Ok(3)));
    assert_eq!(any(&channel).expect("open"), 1);
    channel.send(7).expect("room");
    channel.close();
    // The second operation fails, with the error type that has fewer variants.
    assert_eq!(receive(&channel), Err(TryRecvError::Closed));
    assert_eq!(receive_late(&channel), Err(RecvTimeoutError::Closed));
    assert_eq!(TrySendError::from(SendError(3)), TrySendError::Closed(3));
    assert_eq!(SendTimeoutError::from(SendError(3)), SendTimeoutError::Closed(3));
    assert_eq!(any(&channel).expect_err("closed").to_string(), "send on a closed channel");
}

#[test]
fn a_channel_reports_its_state() {
    let channel = Chan::new(2);
    assert!(channel.is_empty() && !channel.is_full());
    channel.send(1).expect("room");
    assert!(!channel.is_empty() && !channel.is_full());
    channel.send(2).expect("room");
    assert!(!channel.is_empty() && channel.is_full());
    let rendezvous = Chan::<u8>::new(0);
    assert!(rendezvous.is_empty() && rendezvous.is_full());
    let (clone, other) = (channel.clone(), Chan::new(2));
    assert!(channel.same_channel(&clone) && !channel.same_channel(&other));
    assert!(format!("{channel:?}").ends_with(", capacity 2)"), "{channel:?}");
}

#[test]
fn iterators_end_when_no_value_can_follow() {
    let channel = Chan::new(8);
    (1..=3).for_each(|n| channel.send(n).expect("room"));
    assert_eq!(channel.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(channel.try_iter().next(), None, "it does not wait");
    (4..=6).for_each(|n| channel.send(n).expect("room"));
    channel.close();
    let mut by_reference = 0;
    for n in &channel {
        by_reference += n;
        if n == 5 {
            break;
        }
    }
    assert_eq!(by_reference, 9);
    let mut owned = channel.clone().into_iter();
    assert_eq!([owned.next(), owned.next(), owned.next()], [Some(6), None, None]);
    assert_eq!(channel.iter().next(), None);
    // With a concurrent sender.
    let sum: u64 = on(2, || {
        let channel = Chan::new(0);
        let sender = channel.clone();
        go(move || {
            (1..=100).for_each(|n| sender.send(n).expect("open"));
            sender.close();
        });
        channel.into_iter().sum()
    });
    assert_eq!(sum, 5050);
}

/// Checks which waits of the calling goroutine or thread time out.
fn check_timeouts() {
    let channel = Chan::new(1);
    let start = Instant::now();
    assert_eq!(channel.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
    assert!(start.elapsed() >= SHORT, "not before the time");
    assert_eq!(channel.send_timeout(1, SHORT), Ok(()), "there is room");
    let start = Instant::now();
    assert_eq!(channel.send_timeout(2, SHORT), Err(SendTimeoutError::Timeout(2)));
    assert!(start.elapsed() >= SHORT, "not before the time");
    assert_eq!(channel.recv_timeout(SHORT), Ok(1));
    assert!(channel.is_empty(), "a value that timed out is not in the channel");
    // The waits that timed out are not in a queue of the channel.
    assert_eq!(channel.try_send(3), Ok(()));
    assert_eq!(channel.try_send(4), Err(TrySendError::Full(4)));
    assert_eq!(channel.try_recv(), Ok(3));
    assert_eq!(channel.try_recv(), Err(TryRecvError::Empty));
    // A zero timeout, and one beyond the range of the clock.
    assert_eq!(channel.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    assert_eq!(channel.send_timeout(5, Duration::ZERO), Ok(()));
    assert_eq!(channel.send_timeout(6, Duration::ZERO), Err(SendTimeoutError::Timeout(6)));
    assert_eq!(channel.recv_timeout(Duration::MAX), Ok(5));
    // Select.
    let other = Chan::<u8>::new(0);
    let (mut from, mut to) = (Some(9), Some(8));
    let start = Instant::now();
    let mut cases = [Case::recv(&channel, &mut from), Case::send(&other, &mut to)];
    assert_eq!(select_timeout(&mut cases, Duration::ZERO), None);
    assert_eq!(select_timeout(&mut cases, SHORT), None);
    assert!(start.elapsed() >= SHORT, "not before the time");
    assert_eq!((from, to), (None, Some(8)), "the value is still there");
    channel.send(7).expect("room");
    let mut cases = [Case::send(&other, &mut to), Case::recv(&channel, &mut from)];
    assert_eq!(select_timeout(&mut cases, SHORT), Some(1));
    assert_eq!((from, to), (Some(7), Some(8)));
    let start = Instant::now();
    assert_eq!(select_timeout(&mut [], SHORT), None);
    let mut nothing = None::<u8>;
    assert_eq!(select_timeout(&mut [Case::send(&other, &mut nothing)], SHORT), None);
    assert!(start.elapsed() >= 2 * SHORT, "not before the time");
    channel.close();
    assert_eq!(channel.recv_timeout(LONG), Err(RecvTimeoutError::Closed));
    assert_eq!(channel.send_timeout(1, LONG), Err(SendTimeoutError::Closed(1)));
    assert_eq!(select_timeout(&mut [Case::recv(&channel, &mut from)], LONG), Some(0));
    assert_eq!(from, None);
}

#[test]
fn waits_time_out_on_goroutines_and_threads() {
    let _watch = watch();
    check_timeouts();
    for processors in [1, 2] {
        on(processors, || {
            check_timeouts();
            go(check_timeouts).join().expect("no panic");
            // SAFETY: the goroutine uses nothing that belongs to its thread.
            let migratable = unsafe { Builder::new().go_migratable(check_timeouts) };
            migratable.expect("memory").join().expect("no panic");
        });
    }
}

#[test]
fn waits_with_a_timeout_end_by_a_peer_or_a_close() {
    let _watch = watch();
    for processors in [1, 2] {
        on(processors, || {
            for close in [false, true] {
                let (values, full, all) = (Chan::new(0), Chan::new(0), Chan::new(0));
                let receiver = {
                    let values = values.clone();
                    go(move || values.recv_timeout(LONG))
                };
                let sender = {
                    let full = full.clone();
                    go(move || full.send_timeout(2, LONG))
                };
                let selector = {
                    let all = all.clone();
                    go(move || {
                        let mut slot = None;
                        (select_timeout(&mut [Case::recv(&all, &mut slot)], LONG), slot)
                    })
                };
                let thread = {
                    let values = values.clone();
                    std::thread::spawn(move || values.recv_timeout(LONG))
                };
                (0..3).for_each(|_| gosched());
                sleep(SHORT);
                if close {
                    assert!(values.close() && full.close() && all.close());
                    let ends = (receiver.join(), sender.join(), selector.join());
                    assert_eq!(ends.0.expect("no panic"), Err(RecvTimeoutError::Closed));
                    assert_eq!(ends.1.expect("no panic"), Err(SendTimeoutError::Closed(2)));
                    assert_eq!(ends.2.expect("no panic"), (Some(0), None));
                    assert_eq!(thread.join().expect("no panic"), Err(RecvTimeoutError::Closed));
                } else {
                    assert_eq!(values.send_timeout(1, LONG), Ok(()));
                    assert_eq!(values.send_timeout(1, LONG), Ok(()));
                    assert_eq!(full.recv_timeout(LONG), Ok(2));
                    assert_eq!(all.send(3), Ok(()));
                    assert_eq!(receiver.join().expect("no panic"), Ok(1));
                    assert_eq!(sender.join().expect("no panic"), Ok(()));
                    assert_eq!(selector.join().expect("no panic"), (Some(0), Some(3)));
                    assert_eq!(thread.join().expect("no panic"), Ok(1));
                }
            }
        });
    }
}

/// A value that is counted while it lives.
struct Token {
    number: u64,
    live: Arc<AtomicUsize>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// State that the members of a race share.
struct Race {
    channels: Vec<Chan<Token>>,
    live: Arc<AtomicUsize>,
    sent: AtomicU64,
    received: AtomicU64,
    /// Sums of the numbers that were sent and received.
    sums: [AtomicU64; 2],
    /// Sends and receives that timed out.
    late: [AtomicU64; 2],
    stop: AtomicBool,
}

/// A generator of random numbers: xorshift64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// From zero to a time in which a value arrives in some cases.
    fn timeout(&mut self) -> Duration {
        Duration::from_nanos(self.below(60_000))
    }
}

impl Race {
    fn new(capacities: &[usize]) -> Arc<Self> {
        Arc::new(Self {
            channels: capacities.iter().map(|capacity| Chan::new(*capacity)).collect(),
            live: Arc::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sums: Default::default(),
            late: Default::default(),
            stop: AtomicBool::new(false),
        })
    }

    fn sent(&self, number: u64) {
        self.sums[0].fetch_add(number, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        beat();
    }

    fn received(&self, token: &Token) {
        self.sums[1].fetch_add(token.number, Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
        beat();
    }

    /// Sends until `stop` is set. A value that times out is sent again.
    fn send(self: Arc<Self>, seed: u64) {
        let mut draw = Draw(seed);
        let mut again = VecDeque::new();
        while !self.stop.load(Ordering::Relaxed) {
            let token = again.pop_front().unwrap_or_else(|| {
                self.live.fetch_add(1, Ordering::Relaxed);
                Token { number: draw.below(1 << 20), live: Arc::clone(&self.live) }
            });
            let number = token.number;
            let returned = match draw.below(4) {
                0 => {
                    let mut slots: Vec<_> = self.channels.iter().map(|_| None).collect();
                    let first = draw.below(slots.len() as u64) as usize;
                    slots[first] = Some(token);
                    let pairs = self.channels.iter().zip(&mut slots);
                    let mut cases: Vec<_> = pairs.map(|(c, slot)| Case::send(c, slot)).collect();
                    let chosen = select_timeout(&mut cases, draw.timeout());
                    let returned = slots[first].take();
                    assert_eq!(chosen, returned.is_none().then_some(first));
                    returned
                }
                _ => {
                    let at = draw.below(self.channels.len() as u64) as usize;
                    match self.channels[at].send_timeout(token, draw.timeout()) {
                        Ok(()) => None,
                        Err(SendTimeoutError::Timeout(token)) => Some(token),
                        Err(SendTimeoutError::Closed(_)) => panic!("it is open"),
                    }
                }
            };
            match returned {
                None => self.sent(number),
                Some(token) => {
                    assert_eq!(token.number, number, "it is the same value");
                    self.late[0].fetch_add(1, Ordering::Relaxed);
                    again.push_back(token);
                }
            }
        }
    }

    /// Receives until the channels are closed and empty.
    fn receive(self: Arc<Self>, seed: u64) {
        let mut draw = Draw(seed);
        let mut open: Vec<usize> = (0..self.channels.len()).collect();
        while !open.is_empty() {
            let token = match draw.below(3) {
                0 => {
                    let mut slots: Vec<_> = open.iter().map(|_| None).collect();
                    let pairs = open.iter().zip(&mut slots);
                    let mut cases: Vec<_> =
                        pairs.map(|(at, slot)| Case::recv(&self.channels[*at], slot)).collect();
                    let chosen = select_timeout(&mut cases, draw.timeout());
                    if let Some(chosen) = chosen
                        && slots[chosen].is_none()
                    {
                        open.remove(chosen);
                        continue;
                    }
                    let token = slots.into_iter().flatten().next();
                    assert_eq!(chosen.is_some(), token.is_some());
                    token
                }
                _ => {
                    let at = draw.below(open.len() as u64) as usize;
                    match self.channels[open[at]].recv_timeout(draw.timeout()) {
                        Ok(token) => Some(token),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Closed) => {
                            open.remove(at);
                            continue;
                        }
                    }
                }
            };
            match token {
                Some(token) => self.received(&token),
                None => {
                    self.late[1].fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits until each outcome was counted `enough` times, and lets the senders end.
    fn wait(&self, enough: u64) {
        let _stop = AtEnd(|| self.stop.store(true, Ordering::Relaxed));
        let patience = Patience::new();
        let counts = [&self.received, &self.late[0], &self.late[1]];
        let counts = || counts.map(|count| count.load(Ordering::Relaxed));
        while patience.elapsed() < seconds() || counts().iter().any(|count| *count < enough) {
            patience.check("receives and timeouts of both sides", counts);
            sleep(Duration::from_millis(1));
        }
    }

    /// Waits until each outcome was counted `enough` times, ends the race, and compares the sums.
    fn finish(&self, ends: impl FnOnce() -> [Vec<JoinHandle<()>>; 2], enough: u64) {
        let [senders, receivers] = ends();
        self.wait(enough);
        senders.into_iter().for_each(|sender| sender.join().expect("no panic"));
        self.channels.iter().for_each(|channel| assert!(channel.close()));
        receivers.into_iter().for_each(|receiver| receiver.join().expect("no panic"));
        let sum = |at: usize| self.sums[at].load(Ordering::Relaxed);
        assert_eq!(self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed));
        assert_eq!(sum(0), sum(1));
        assert_eq!(self.live.load(Ordering::Relaxed), 0, "each value was dropped once");
    }
}

/// Sends and receives race with their timeouts, on `processors` Ms: each value is received once or
/// returned.
fn race(processors: usize, migratable: bool, capacities: &[usize]) {
    let _watch = watch();
    on(processors, || {
        let race = Race::new(capacities);
        race.finish(
            || {
                let start = |member: fn(Arc<Race>, u64), seed: u64| {
                    let race = Arc::clone(&race);
                    let body = move || member(race, seed);
                    if migratable {
                        // SAFETY: the goroutine uses nothing that belongs to its thread.
                        unsafe { Builder::new().go_migratable(body) }.expect("memory")
                    } else {
                        go(body)
                    }
                };
                let senders = (1..=3).map(|n| start(Race::send, 0x9e37_79b9 * n)).collect();
                let receivers = (1..=3).map(|n| start(Race::receive, 0x85eb_ca6b * n)).collect();
                [senders, receivers]
            },
            2_000,
        );
    });
}

#[test]
fn no_value_is_lost_when_timeouts_race_on_one_processor() {
    race(1, false, &[0, 1]);
}

#[test]
fn no_value_is_lost_when_timeouts_race_on_several_processors() {
    race(4, false, &[0, 0, 2]);
}

#[test]
fn no_value_is_lost_when_timeouts_race_and_goroutines_migrate() {
    race(4, true, &[0, 1]);
}

/// Foreign threads send and receive beside goroutines.
#[test]
fn no_value_is_lost_when_timeouts_race_with_foreign_threads() {
    let _watch = watch();
    let race = Race::new(&[0, 1]);
    let threads: Vec<_> = (1..=2)
        .flat_map(|n| {
            let members: [fn(Arc<Race>, u64); 2] = [Race::send, Race::receive];
            members.map(|member| {
                let race = Arc::clone(&race);
                std::thread::spawn(move || member(race, 0xc2b2_ae35 * n))
            })
        })
        .collect();
    on(2, || {
        let (sender, receiver) = (Arc::clone(&race), Arc::clone(&race));
        let members = [go(move || sender.send(7)), go(move || receiver.receive(9))];
        race.wait(2_000);
        // Senders end by themselves, since each of their waits has a timeout.
        block_until("both senders end", || {
            threads.iter().filter(|thread| !thread.is_finished()).count() <= 2
        });
        let [sender, receiver] = members;
        sender.join().expect("no panic");
        race.channels.iter().for_each(|channel| assert!(channel.close()));
        receiver.join().expect("no panic");
    });
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(race.sent.load(Ordering::Relaxed), race.received.load(Ordering::Relaxed));
    assert_eq!(race.live.load(Ordering::Relaxed), 0, "each value was dropped once");
}

/// A peer and a timer race to end a wait, and exactly one of them does. The peer is a foreign
/// thread, so that it runs at the same time as the timer, independent of the scheduler.
#[test]
fn one_wait_is_ended_by_its_timer_or_by_its_peer() {
    let _watch = watch();
    let (there, back) = (Chan::new(0), Chan::new(0));
    let peer = {
        let (there, back) = (there.clone(), back.clone());
        std::thread::spawn(move || {
            // Offers each number once, about when the timeout of the other side expires.
            for n in there {
                let at = Instant::now() + Duration::from_nanos(n * 104_729 % 60_000);
                while Instant::now() < at {
                    std::hint::spin_loop();
                }
                if let Err(error) = back.send_timeout(n, Duration::from_micros(20)) {
                    assert!(error.is_timeout());
                    assert_eq!(error.into_inner(), n);
                }
            }
        })
    };
    on(1, || {
        let (patience, mut ends, mut n) = (Patience::new(), [0u64; 2], 0);
        while patience.elapsed() < seconds() || ends.iter().any(|count| *count < 200) {
            patience.check("both ends", || ends);
            n += 1;
            there.send(n).expect("open");
            match back.recv_timeout(Duration::from_nanos(n * 7919 % 60_000)) {
                Ok(number) => {
                    assert_eq!(number, n, "not a number of an earlier iteration");
                    ends[0] += 1;
                }
                Err(error) => {
                    assert!(error.is_timeout());
                    ends[1] += 1;
                }
            }
            beat();
            // A number that the peer still offers times out there, or is received here.
            if let Ok(number) = back.try_recv() {
                assert_eq!(number, n);
            }
        }
        there.close();
    });
    peer.join().expect("no panic");
}

/// A cancelled timer does not count as one that could wake a goroutine.
#[test]
fn a_deadlock_is_found_after_a_long_timeout_was_cancelled() {
    let test = "a_deadlock_is_found_after_a_long_timeout_was_cancelled";
    let outcome = child::run(test, || {
        let config = Config::new().processors(1).time_slice(None);
        let _ = config.run(|| {
            let channel = Chan::new(0);
            let sender = channel.clone();
            go(move || sender.send(1));
            assert_eq!(channel.recv_timeout(LONG), Ok(1));
            let mut slot = None;
            let sender = channel.clone();
            go(move || sender.send(1));
            let chosen = select_timeout(&mut [Case::recv(&channel, &mut slot)], LONG);
            assert_eq!((chosen, slot), (Some(0), Some(1)));
            channel.recv()
        });
    });
    assert_eq!((outcome.code, outcome.signal), (Some(2), None), "{outcome:?}");
    let text = "all goroutines are asleep - deadlock!";
    assert!(outcome.stderr.contains(text), "{}", outcome.stderr);
}

/// A timer that can still wake a goroutine rules a deadlock out.
#[test]
fn a_wait_with_a_timeout_is_no_deadlock() {
    let outcome = child::run("a_wait_with_a_timeout_is_no_deadlock", || {
        let config = Config::new().processors(1).time_slice(None);
        let end = config.run(|| Chan::<u8>::new(0).recv_timeout(Duration::from_millis(100)));
        assert_eq!(end, Ok(Err(RecvTimeoutError::Timeout)));
    });
    outcome.assert_success();
}

#[test]
fn waits_are_refused_on_the_system_stack_and_drop_their_values() {
    run(|| {
        let live = Arc::new(AtomicUsize::new(1));
        let token = Token { number: 0, live: Arc::clone(&live) };
        let channel = Chan::new(0);
        let refused = |f: &mut dyn FnMut()| {
            let payload = catch_unwind(AssertUnwindSafe(|| systemstack(f))).expect_err("refused");
            let text = payload.downcast_ref::<&str>().expect("a text");
            assert!(text.contains("cannot park inside of systemstack"), "{text}");
        };
        let mut token = Some(token);
        refused(&mut || drop(channel.send_timeout(token.take().expect("once"), LONG)));
        assert_eq!(live.load(Ordering::Relaxed), 0, "the value was dropped");
        refused(&mut || drop(channel.recv_timeout(LONG)));
        let mut slot = None;
        refused(&mut || {
            select_timeout(&mut [Case::recv(&channel, &mut slot)], LONG);
        });
        refused(&mut || {
            select_timeout(&mut [], LONG);
        });
        refused(&mut || {
            select(&mut [Case::recv(&channel, &mut slot)]);
        });
        // Calls that do not wait are not refused, and the refused calls left nothing locked.
        let none = systemstack(|| channel.recv_timeout(Duration::ZERO)).map(drop);
        assert_eq!(none, Err(RecvTimeoutError::Timeout));
        assert_eq!(try_select(&mut [Case::recv(&channel, &mut slot)]), None);
        assert!(channel.close());
    });
}

/// A run that ends abandons goroutines in waits with a timeout. Their timers are removed, and they
/// receive no value.
#[test]
fn a_run_may_end_while_goroutines_wait_with_a_timeout() {
    for i in 0..50 {
        let channel = Chan::new(0);
        let inner = channel.clone();
        on(2, move || {
            for n in 0..4 {
                let inner = inner.clone();
                go(move || inner.recv_timeout(Duration::from_micros(100 * n)));
                gosched();
            }
            runtime::sleep(Duration::from_micros(i * 10));
        });
        assert_eq!(channel.try_send(i), Err(TrySendError::Full(i)));
        // The next run does not have the timers of the previous one.
        on(2, || sleep(Duration::from_micros(500)));
    }
}
