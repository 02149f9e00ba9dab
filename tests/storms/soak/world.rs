//! The books of a round: which goroutines there are and how each ended, which values there are and
//! where each went. A book that does not balance ends the process.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use footbridge::runtime::{Chan, JoinHandle, Parker};

use super::steps::Kind;
use support::spinner::Random;

/// Usable bytes of the stacks, by class.
pub const CLASSES: [usize; 5] = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20];
/// Values that a round can have. What an abandoned round leaks comes from the heap and is no mapping of
/// its own: it is too small for that.
const TOKENS: usize = 1 << 15;
/// Channels of a round.
const MARKETS: usize = 6;
/// Runs that go on at once, at most.
pub const RUNS: usize = 2;

/// The lock is held in Rust code only, which is not interrupted.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What [`fail`] tells besides its message.
static TOLD: Mutex<String> = Mutex::new(String::new());

/// Says which round goes on, for messages.
pub fn tell(text: String) {
    *lock(&TOLD) = text;
}

/// What was told last.
pub fn told() -> String {
    lock(&TOLD).clone()
}

/// A book does not balance: says so and ends the process.
#[track_caller]
#[cold]
pub fn fail(message: &str) -> ! {
    eprintln!("soak: {message} (at {})\n{}", Location::caller(), told());
    std::process::abort()
}

#[track_caller]
pub fn check(holds: bool, message: impl FnOnce() -> String) {
    if !holds {
        fail(&message());
    }
}

/// A goroutine in the books.
pub struct Entry {
    pub id: u64,
    state: AtomicU8,
    /// Its handle is gone: joined or dropped.
    released: AtomicBool,
    /// The class of its stack.
    pub class: usize,
    /// Which of the runs it belongs to.
    pub run: usize,
    pub kind: &'static str,
    /// The step that it takes, for people.
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

    /// Its handle was joined or dropped.
    pub fn release(&self) {
        let twice = self.released.swap(true, Ordering::SeqCst);
        check(!twice, || format!("the handle of goroutine {} went twice", self.id));
    }

    /// Whether its stack is in use when its run is over.
    fn keeps_stack(&self) -> bool {
        !(self.has_ended() && self.released.load(Ordering::SeqCst))
    }
}

/// Marks a goroutine as running, and, as the last thing that it does, as ended.
pub struct Running {
    world: Arc<World>,
    entry: Arc<Entry>,
    /// Not `std::thread::panicking`: that says whether anybody unwinds on this thread.
    end: u8,
}

impl Running {
    pub fn begin(world: &Arc<World>, entry: &Arc<Entry>) -> Self {
        entry.change(STARTED, RUNNING);
        Self { world: world.clone(), entry: entry.clone(), end: PANICKED }
    }

    /// It returns now.
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

/// What a goroutine returns.
pub struct Gift {
    pub _token: Option<Token>,
    pub answer: u64,
}

/// What a goroutine panics with on purpose.
pub struct Blast {
    pub id: u64,
    pub _token: Option<Token>,
}

/// The right to join a goroutine, and its entry in the books.
pub struct Handle {
    handle: Option<JoinHandle<Gift>>,
    pub entry: Arc<Entry>,
}

impl Handle {
    pub fn new(handle: JoinHandle<Gift>, entry: Arc<Entry>) -> Self {
        Self { handle: Some(handle), entry }
    }

    /// Joins, and compares with the books. `abandons`: the run of the goroutine may be over.
    pub fn join(mut self, abandons: bool) {
        let handle = self.handle.take().expect("it is joined once");
        let entry = self.entry.clone();
        let result = handle.join();
        let state = entry.state();
        let wrong = |what: &str| {
            format!("goroutine {} of kind {}, state {state}: {what}", entry.id, entry.kind)
        };
        match result {
            Ok(gift) if state == FINISHED => {
                check(gift.answer == answer_of(entry.id), || "a result of another one".into());
            }
            Err(payload) if state == PANICKED => {
                if let Some(blast) = payload.downcast_ref::<Blast>() {
                    check(blast.id == entry.id, || "a panic of another one".into());
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

/// What `scope` panics with when a goroutine of it did.
pub const SCOPED: &str = "a scoped goroutine panicked";

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            drop(handle);
            self.entry.release();
        }
    }
}

/// What a goroutine returns that is asked.
pub fn answer_of(id: u64) -> u64 {
    id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995
}

/// A value that is counted.
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

/// Two sides of trade.
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

/// A round: one or two runs and what they share.
pub struct World {
    /// Whether the runs end while goroutines go on.
    pub abandons: bool,
    /// Whether all are to come to an end.
    pub stop: AtomicBool,
    /// Jobs that foreign threads have.
    pub foreign: AtomicUsize,
    /// Goroutines that have not ended, by run.
    pub live: [AtomicUsize; RUNS],
    entries: Mutex<Vec<Arc<Entry>>>,
    tokens: Box<[AtomicU8]>,
    next_token: AtomicUsize,
    dropped: AtomicUsize,
    markets: Mutex<Vec<Chan<Token>>>,
    closed: Mutex<Vec<Chan<Token>>>,
    offered: Count,
    refused: Count,
    received: Count,
    lot: Mutex<Vec<Parker>>,
    bank: Mutex<Vec<Handle>>,
    /// Where the reporters of each run wait: see `main.rs`.
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
            markets: Mutex::new((0..MARKETS).map(Self::market).collect()),
            closed: Mutex::default(),
            offered: Count::default(),
            refused: Count::default(),
            received: Count::default(),
            lot: Mutex::default(),
            bank: Mutex::default(),
            reports: std::array::from_fn(|_| Chan::new(64)),
        })
    }

    fn market(at: usize) -> Chan<Token> {
        Chan::new([0, 0, 1, 2, 7, 50][at])
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Enters a goroutine that is about to be started.
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

    /// A new value, while there are some.
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
        let markets = lock(&self.markets);
        markets[random.bits() as usize % markets.len()].clone()
    }

    /// Closes a channel, and puts another one in its place.
    pub fn replace(&self, random: &mut Random) {
        let at = random.bits() as usize % MARKETS;
        let old = std::mem::replace(&mut lock(&self.markets)[at], Self::market(at));
        check(old.close() || self.stopped(), || "a channel was closed before".into());
        lock(&self.closed).push(old);
    }

    /// Closes all channels. Those that take their places meanwhile stay open.
    pub fn close(&self) {
        let all = lock(&self.markets).clone();
        all.iter().for_each(|channel| {
            channel.close();
        });
    }

    pub fn offer(&self, token: &Token) {
        self.offered.add(token);
    }

    /// A value that was offered came back.
    pub fn refuse(&self, token: &Token) {
        self.refused.add(token);
    }

    pub fn receive(&self, token: &Token) {
        self.received.add(token);
        let before = self.tokens[token.id].fetch_or(RECEIVED, Ordering::SeqCst);
        check(before == 0, || format!("value {} is received in state {before}", token.id));
    }

    /// Sends a value. It comes back when the channel closes.
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

    /// One who parks is to be readied by whoever takes him.
    #[inline(never)]
    pub fn wait_here(&self, parker: Parker) {
        lock(&self.lot).push(parker);
    }

    /// One who is parked, for whoever readies him.
    #[inline(never)]
    pub fn parked(&self, random: &mut Random) -> Option<Parker> {
        let mut lot = lock(&self.lot);
        let len = lot.len();
        (len != 0).then(|| lot.swap_remove(random.bits() as usize % len))
    }

    #[inline(never)]
    pub fn deposit(&self, handle: Handle) {
        lock(&self.bank).push(handle);
    }

    #[inline(never)]
    pub fn withdraw(&self, random: &mut Random) -> Option<Handle> {
        let mut bank = lock(&self.bank);
        let len = bank.len();
        (len != 0).then(|| bank.swap_remove(random.bits() as usize % len))
    }

    /// Takes what is left in the channels. All of them are closed then.
    fn drain(&self) -> Count {
        self.close();
        let left = Count::default();
        let (markets, closed) = (lock(&self.markets), lock(&self.closed));
        for channel in markets.iter().chain(&*closed) {
            while let Ok(token) = channel.try_recv() {
                left.add(&token);
            }
        }
        left
    }

    /// Balances the books after the runs. Returns how many goroutines there were and ended in each
    /// way, and how many stacks of each class are in use.
    pub fn balance(&self, random: &mut Random) -> Balance {
        check(self.foreign.load(Ordering::SeqCst) == 0, || "foreign threads are at work".into());
        while let Some(handle) = self.withdraw(random) {
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
            // Who is abandoned in the midst of a send may have sent or not.
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
            check(lock(&self.lot).is_empty(), || "somebody is parked".into());
        }
        balance
    }

    /// Goroutines that have not ended, by kind and state, for people.
    pub fn unfinished(&self) -> String {
        let mut kinds = BTreeMap::new();
        // The lock may be held by who hangs.
        let Ok(entries) = self.entries.try_lock() else { return "the books are locked".into() };
        for entry in entries.iter().filter(|entry| !entry.has_ended()) {
            let step = match entry.state() {
                STARTED => "queued".into(),
                _ => format!("{:?}", Kind::ALL.get(entry.step.load(Ordering::Relaxed))),
            };
            *kinds.entry(format!("{} {} {step}", entry.run, entry.kind)).or_insert(0) += 1;
        }
        let lot = self.lot.try_lock().map_or(usize::MAX, |lot| lot.len());
        let foreign = self.foreign.load(Ordering::SeqCst);
        format!(
            "not ended: {kinds:?}; {lot} are parked for anyone; foreign threads have {foreign} jobs"
        )
    }
}

/// How the books of a round end.
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

/// How often each kind of step was taken.
pub static STEPS: [AtomicU64; Kind::COUNT] = [const { AtomicU64::new(0) }; Kind::COUNT];
