//! The accounts of a round: all goroutines and how each ended, all values and what became of each.
//! An account that does not balance aborts the process.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use footbridge::runtime::{Chan, JoinHandle, Parker};

use super::steps::Kind;
use support::spinner::Random;

/// Usable bytes of a stack, by class.
pub const CLASSES: [usize; 5] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20];
/// The maximum number of values of a round. The values that abandoned goroutines leak must be too
/// small in total to become mappings of their own.
const TOKENS: usize = 1 << 15;
/// Channels of a round.
const CHANNELS: usize = 6;
/// The maximum number of concurrent runs.
pub const RUNS: usize = 2;

/// Locks a mutex that is held in Rust code only, which is not preempted.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text that [`fail`] prints after its message.
static CONTEXT: Mutex<String> = Mutex::new(String::new());

/// Describes the present round, for messages.
pub fn set_context(text: String) {
    *lock(&CONTEXT) = text;
}

/// The last text of [`set_context`].
pub fn context() -> String {
    lock(&CONTEXT).clone()
}

/// Prints that an account does not balance, and aborts the process.
#[track_caller]
#[cold]
pub fn fail(message: &str) -> ! {
    eprintln!("soak: {message} (at {})\n{}", Location::caller(), context());
    std::process::abort()
}

#[track_caller]
pub fn check(holds: bool, message: impl FnOnce() -> String) {
    if !holds {
        fail(&message());
    }
}

/// The account of a goroutine.
pub struct Entry {
    pub id: u64,
    state: AtomicU8,
    /// Whether its handle was joined or dropped.
    released: AtomicBool,
    /// The class of its stack.
    pub class: usize,
    /// The number of its run.
    pub run: usize,
    pub kind: &'static str,
    /// Its present step, for reports.
    pub step: AtomicUsize,
}

pub const STARTED: u8 = 0;
const RUNNING: u8 = 1;
pub const FINISHED: u8 = 2;
pub const PANICKED: u8 = 3;

impl Entry {
    pub fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    pub fn has_ended(&self) -> bool {
        self.state() >= FINISHED
    }

    fn change(&self, from: u8, to: u8) {
        let was = self.state.swap(to, Ordering::SeqCst);
        check(was == from, || {
            format!("goroutine {} of kind {} was {was} when it became {to}", self.id, self.kind)
        });
    }

    /// Records that its handle was joined or dropped.
    pub fn release(&self) {
        let twice = self.released.swap(true, Ordering::SeqCst);
        check(!twice, || format!("the handle of goroutine {} was released twice", self.id));
    }

    /// Whether its stack is still in use after its run.
    fn keeps_stack(&self) -> bool {
        !(self.has_ended() && self.released.load(Ordering::SeqCst))
    }
}

/// Marks a goroutine as running, and, when dropped as the goroutine's last action, as ended.
pub struct Running {
    world: Arc<World>,
    entry: Arc<Entry>,
    /// The state to enter at the end. `std::thread::panicking` does not tell it, since another
    /// goroutine may be unwinding on this thread.
    end: u8,
}

impl Running {
    pub fn begin(world: &Arc<World>, entry: &Arc<Entry>) -> Self {
        entry.change(STARTED, RUNNING);
        Self { world: world.clone(), entry: entry.clone(), end: PANICKED }
    }

    /// Marks the goroutine as returned.
    pub fn finish(mut self) {
        self.end = FINISHED;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.entry.change(RUNNING, self.end);
        self.world.live[self.entry.run].fetch_sub(1, Ordering::SeqCst);
    }
}

/// The result of a goroutine.
pub struct Output {
    pub _token: Option<Token>,
    pub answer: u64,
}

/// The payload of an intended panic.
pub struct TestPanic {
    pub id: u64,
    pub _token: Option<Token>,
}

/// The handle of a goroutine, with its account.
pub struct Handle {
    handle: Option<JoinHandle<Output>>,
    pub entry: Arc<Entry>,
}

impl Handle {
    pub fn new(handle: JoinHandle<Output>, entry: Arc<Entry>) -> Self {
        Self { handle: Some(handle), entry }
    }

    /// Joins, and compares the result with the account. `abandons`: whether the goroutine may have
    /// been abandoned.
    pub fn join(mut self, abandons: bool) {
        let handle = self.handle.take().expect("it is joined once");
        let entry = self.entry.clone();
        let result = handle.join();
        let state = entry.state();
        let wrong = |what: &str| {
            format!("goroutine {} of kind {}, state {state}: {what}", entry.id, entry.kind)
        };
        match result {
            Ok(output) if state == FINISHED => {
                check(output.answer == answer_of(entry.id), || {
                    "the result of another goroutine".into()
                });
            }
            Err(payload) if state == PANICKED => {
                if let Some(panic) = payload.downcast_ref::<TestPanic>() {
                    check(panic.id == entry.id, || "the panic of another goroutine".into());
                } else {
                    let text = payload.downcast_ref::<String>().map_or("", String::as_str);
                    let text = payload.downcast_ref::<&str>().copied().unwrap_or(text);
                    let is_known = text.contains(" overflowed its ") || text == SCOPED;
                    check(is_known, || format!("it panicked with {text:?}"));
                }
            }
            Err(payload) if payload.is::<footbridge::runtime::Abandoned>() && abandons => {
                check(!entry.has_ended(), || wrong("it is abandoned"));
                return;
            }
            Ok(_) => fail(&wrong("it returned")),
            Err(_) => fail(&wrong("it panicked")),
        }
        entry.release();
    }
}

/// The message of the panic of `scope` after a panic of one of its goroutines.
pub const SCOPED: &str = "a scoped goroutine panicked";

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            drop(handle);
            self.entry.release();
        }
    }
}

/// The expected answer of a goroutine.
pub fn answer_of(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995
}

/// A value, whose drop and receive are counted.
pub struct Token {
    id: usize,
    world: Arc<World>,
    mirror: usize,
}

const DROPPED: u8 = 1;
const RECEIVED: u8 = 2;

impl Drop for Token {
    fn drop(&mut self) {
        check(self.mirror == !self.id, || format!("value {:#x} is garbage", self.id));
        let before = self.world.tokens[self.id].fetch_or(DROPPED, Ordering::SeqCst);
        check(before & DROPPED == 0, || format!("value {} is dropped twice", self.id));
        self.world.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

/// The number of values and the sum of their ids.
#[derive(Default)]
pub struct Count {
    values: AtomicU64,
    sum: AtomicU64,
}

impl Count {
    fn add(&self, token: &Token) {
        self.values.fetch_add(1, Ordering::SeqCst);
        self.sum.fetch_add(token.id as u64 + 1, Ordering::SeqCst);
    }

    fn get(&self) -> [u64; 2] {
        [self.values.load(Ordering::SeqCst), self.sum.load(Ordering::SeqCst)]
    }
}

/// The state that the one or two runs of a round share.
pub struct World {
    /// Whether the runs end before their goroutines.
    pub abandons: bool,
    /// Whether goroutines are to end.
    pub stop: AtomicBool,
    /// The number of jobs of foreign threads.
    pub foreign: AtomicUsize,
    /// Goroutines that have not ended, by run.
    pub live: [AtomicUsize; RUNS],
    entries: Mutex<Vec<Arc<Entry>>>,
    tokens: Box<[AtomicU8]>,
    next_token: AtomicUsize,
    dropped: AtomicUsize,
    channels: Mutex<Vec<Chan<Token>>>,
    closed: Mutex<Vec<Chan<Token>>>,
    offered: Count,
    refused: Count,
    received: Count,
    parkers: Mutex<Vec<Parker>>,
    handles: Mutex<Vec<Handle>>,
    /// The channels on which the reporters of each run wait.
    pub reports: [Chan<()>; RUNS],
}

impl World {
    pub fn new(abandons: bool) -> Arc<Self> {
        Arc::new(Self {
            abandons,
            stop: AtomicBool::new(false),
            foreign: AtomicUsize::new(0),
            live: Default::default(),
            entries: Mutex::default(),
            tokens: (0..TOKENS).map(|_| AtomicU8::new(0)).collect(),
            next_token: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
            channels: Mutex::new((0..CHANNELS).map(Self::new_channel).collect()),
            closed: Mutex::default(),
            offered: Count::default(),
            refused: Count::default(),
            received: Count::default(),
            parkers: Mutex::default(),
            handles: Mutex::default(),
            reports: std::array::from_fn(|_| Chan::new(64)),
        })
    }

    fn new_channel(at: usize) -> Chan<Token> {
        Chan::new([0, 0, 1, 2, 7, 50][at])
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Creates the account of a goroutine that is about to be started.
    pub fn enter(&self, run: usize, class: usize, kind: &'static str) -> Arc<Entry> {
        let mut entries = lock(&self.entries);
        let entry = Arc::new(Entry {
            id: entries.len() as u64,
            state: AtomicU8::new(STARTED),
            released: AtomicBool::new(false),
            class,
            run,
            kind,
            step: AtomicUsize::new(usize::MAX),
        });
        entries.push(entry.clone());
        self.live[run].fetch_add(1, Ordering::SeqCst);
        entry
    }

    /// A new value, or None after the maximum number.
    pub fn token(self: &Arc<Self>) -> Option<Token> {
        let id = self.next_token.fetch_add(1, Ordering::SeqCst);
        if id >= TOKENS {
            self.next_token.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        Some(Token { id, world: self.clone(), mirror: !id })
    }

    /// One of the channels.
    pub fn channel(&self, random: &mut Random) -> Chan<Token> {
        let channels = lock(&self.channels);
        channels[random.next_u64() as usize % channels.len()].clone()
    }

    /// Closes a channel and replaces it.
    pub fn replace(&self, random: &mut Random) {
        let at = random.next_u64() as usize % CHANNELS;
        let old = std::mem::replace(&mut lock(&self.channels)[at], Self::new_channel(at));
        check(old.close() || self.stopped(), || "a channel was closed before".into());
        lock(&self.closed).push(old);
    }

    /// Closes all channels. Their concurrent replacements stay open.
    pub fn close(&self) {
        let all = lock(&self.channels).clone();
        all.iter().for_each(|channel| {
            channel.close();
        });
    }

    pub fn offer(&self, token: &Token) {
        self.offered.add(token);
    }

    /// Records that a value that was offered was returned.
    pub fn refuse(&self, token: &Token) {
        self.refused.add(token);
    }

    pub fn receive(&self, token: &Token) {
        self.received.add(token);
        let before = self.tokens[token.id].fetch_or(RECEIVED, Ordering::SeqCst);
        check(before == 0, || format!("value {} is received in state {before}", token.id));
    }

    /// Sends a value. A closed channel returns it.
    #[inline(never)]
    pub fn send(self: &Arc<Self>, channel: &Chan<Token>) {
        let Some(token) = self.token() else { return };
        self.offer(&token);
        if let Err(error) = channel.send(token) {
            self.refuse(&error.0);
        }
    }

    #[inline(never)]
    pub fn recv(&self, channel: &Chan<Token>) {
        if let Ok(token) = channel.recv() {
            self.receive(&token);
        }
    }

    #[inline(never)]
    pub fn try_send(self: &Arc<Self>, channel: &Chan<Token>) {
        use footbridge::runtime::TrySendError::{Closed, Full};
        let Some(token) = self.token() else { return };
        self.offer(&token);
        if let Err(Full(token) | Closed(token)) = channel.try_send(token) {
            self.refuse(&token);
        }
    }

    #[inline(never)]
    pub fn try_recv(&self, channel: &Chan<Token>) {
        if let Ok(token) = channel.try_recv() {
            self.receive(&token);
        }
    }

    /// Adds a parked goroutine, which the caller of `take_parker` readies.
    #[inline(never)]
    pub fn put_parker(&self, parker: Parker) {
        lock(&self.parkers).push(parker);
    }

    /// Takes a parked goroutine. The caller must ready it.
    #[inline(never)]
    pub fn take_parker(&self, random: &mut Random) -> Option<Parker> {
        let mut parkers = lock(&self.parkers);
        let len = parkers.len();
        (len != 0).then(|| parkers.swap_remove(random.next_u64() as usize % len))
    }

    #[inline(never)]
    pub fn put_handle(&self, handle: Handle) {
        lock(&self.handles).push(handle);
    }

    #[inline(never)]
    pub fn take_handle(&self, random: &mut Random) -> Option<Handle> {
        let mut handles = lock(&self.handles);
        let len = handles.len();
        (len != 0).then(|| handles.swap_remove(random.next_u64() as usize % len))
    }

    /// Closes all channels and receives the values that are left in them.
    fn drain(&self) -> Count {
        self.close();
        let left = Count::default();
        let (channels, closed) = (lock(&self.channels), lock(&self.closed));
        for channel in channels.iter().chain(&*closed) {
            while let Ok(token) = channel.try_recv() {
                left.add(&token);
            }
        }
        left
    }

    /// Checks the accounts after the runs. Returns the number of goroutines by the way in which
    /// they ended, and the number of stacks in use by class.
    pub fn balance(&self, random: &mut Random) -> Balance {
        check(self.foreign.load(Ordering::SeqCst) == 0, || "foreign threads have jobs".into());
        while let Some(handle) = self.take_handle(random) {
            handle.join(self.abandons);
        }
        let left = self.drain();
        let entries = lock(&self.entries);
        let mut balance = Balance { started: entries.len(), ..Balance::default() };
        for entry in entries.iter() {
            match entry.state() {
                FINISHED => balance.finished += 1,
                PANICKED => balance.panicked += 1,
                _ => balance.abandoned += 1,
            }
            balance.in_use[entry.class] += usize::from(entry.keeps_stack());
        }
        let live = self.live.iter().map(|live| live.load(Ordering::SeqCst)).sum::<usize>();
        check(live == balance.abandoned, || format!("{live} are live: {balance:?}"));
        let [offered, refused, received, left] =
            [&self.offered, &self.refused, &self.received, &left].map(Count::get);
        balance.passed = received[0];
        let (made, dropped) =
            (self.next_token.load(Ordering::SeqCst), self.dropped.load(Ordering::SeqCst));
        for i in 0..2 {
            let (sent, gone) = (offered[i] - refused[i], received[i] + left[i]);
            // A goroutine that was abandoned in a send may or may not have sent.
            check(sent == gone || self.abandons && gone < sent, || {
                format!(
                    "values: offered {offered:?}, refused {refused:?}, received {received:?}, left {left:?}"
                )
            });
        }
        check(dropped == made || self.abandons && dropped < made, || {
            format!("{made} values were made and {dropped} dropped: {balance:?}")
        });
        if !self.abandons {
            check(balance.abandoned == 0, || format!("goroutines are lost: {balance:?}"));
            check(balance.in_use == [0; 5], || format!("handles are lost: {balance:?}"));
            check(lock(&self.parkers).is_empty(), || "a goroutine is parked".into());
        }
        balance
    }

    /// A report of the goroutines that have not ended, by kind and state.
    pub fn unfinished(&self) -> String {
        let mut kinds = BTreeMap::new();
        // The thread that hangs may hold the lock.
        let Ok(entries) = self.entries.try_lock() else { return "the accounts are locked".into() };
        for entry in entries.iter().filter(|entry| !entry.has_ended()) {
            let step = match entry.state() {
                STARTED => "queued".into(),
                _ => format!("{:?}", Kind::ALL.get(entry.step.load(Ordering::Relaxed))),
            };
            *kinds.entry(format!("{} {} {step}", entry.run, entry.kind)).or_insert(0) += 1;
        }
        let parkers = self.parkers.try_lock().map_or(usize::MAX, |parkers| parkers.len());
        let foreign = self.foreign.load(Ordering::SeqCst);
        format!("not ended: {kinds:?}; {parkers} are parked; foreign threads have {foreign} jobs")
    }
}

/// The balance of the accounts of a round.
#[derive(Debug, Default, Clone, Copy)]
pub struct Balance {
    pub started: usize,
    pub finished: usize,
    pub panicked: usize,
    pub abandoned: usize,
    pub passed: u64,
    /// Stacks in use, by class.
    pub in_use: [usize; 5],
}

/// The number of steps of each kind.
pub static STEPS: [AtomicU64; Kind::COUNT] = [const { AtomicU64::new(0) }; Kind::COUNT];
