//! What goroutines do in the soak: an actor takes random steps.
//!
//! Each step is a function of its own that is never inlined: some actors are migratable, and no
//! function of theirs may use what is thread-local both before and after a park.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use footbridge::runtime::{
    self, Builder, Case, Chan, JoinHandle, Parker, ScanError, WaitReason, WalkEnd, checkpoint,
    current, go, gopark, goready, goroutines, gosched, scope, select, systemstack, try_select,
    without_preemption,
};

use super::code::{DIVE_BYTES, churned, codes};
use super::world::{
    Blast, CLASSES, Entry, Gift, Handle, Running, SCOPED, STEPS, Token, World, answer_of, check,
    fail,
};
use support::spinner::{Level, Random};
use support::watchdog::beat;

/// A walk ends after so many: `unwind.rs`. A dive goes deeper.
const MOST_FRAMES: u32 = 10_000;
/// So many goroutines of a run start no others.
const CROWD: usize = 150;

/// What all actors of a run have in common.
#[derive(Clone, Copy)]
pub struct Surroundings {
    pub run: usize,
    /// The class of stacks that is the run's.
    pub class: usize,
    /// The registers that are saved.
    pub level: Level,
    /// Whether who loops for ever is interrupted.
    pub preempts: bool,
    pub processors: usize,
}

pub struct Actor {
    pub world: Arc<World>,
    pub at: Surroundings,
    pub random: Random,
    entry: Arc<Entry>,
    /// How many goroutines are above it that may wait for it; -1 for the main one.
    depth: i32,
    /// It has a stack of 16 KiB.
    small: bool,
    migratable: bool,
    /// Below JIT frames: no other ones.
    nested: bool,
}

macro_rules! kinds {
    ($($kind:ident $name:ident $weight:literal $for:expr;)*) => {
        /// A kind of step.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$kind),*];
            pub const COUNT: usize = Self::ALL.len();

            fn weight(self) -> u64 {
                match self { $(Self::$kind => $weight),* }
            }

            fn is_for(self) -> Who {
                match self { $(Self::$kind => $for),* }
            }
        }

        impl Actor {
            fn take(&mut self, kind: Kind) {
                match kind { $(Kind::$kind => self.$name()),* }
            }
        }
    };
}

/// Who may take a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    All,
    /// Not with a stack of 16 KiB.
    Large,
    /// Large, and no migratable ones: it uses what is the thread's.
    Sticky,
    /// Large, and not below JIT frames.
    Outer,
}

kinds! {
    Gosched gosched 60 Who::All;
    Checkpoint checkpoint 30 Who::All;
    Churn churn 60 Who::All;
    Send send 80 Who::All;
    Recv recv 80 Who::All;
    TrySend try_send 20 Who::All;
    TryRecv try_recv 20 Who::All;
    Park park 50 Who::All;
    Wake wake 60 Who::All;
    Sleep sleep 30 Who::All;
    Select select 70 Who::Large;
    TrySelect try_select 20 Who::Large;
    Replace replace 4 Who::Large;
    Child child 90 Who::Large;
    Join join 40 Who::Large;
    Scope scope 15 Who::Sticky;
    Unwind unwind 20 Who::Large;
    SystemStack system_stack 20 Who::Sticky;
    Spin spin 20 Who::Large;
    Relay relay 40 Who::Outer;
    JitStart jit_start 20 Who::Outer;
    Dive dive 15 Who::Outer;
    Deep deep 10 Who::Large;
    Forbid forbid 10 Who::Large;
    Request request 15 Who::Large;
    Walk walk 10 Who::Large;
    Scan scan 10 Who::Large;
    Trace trace 1 Who::Sticky;
    Foreign foreign 15 Who::Large;
    Endless endless 3 Who::Outer;
}

impl Actor {
    /// The first goroutine of a run, which starts others.
    pub fn main(world: &Arc<World>, at: Surroundings, seed: u64) -> Self {
        let entry = world.enter(at.run, at.class, "main");
        Self {
            world: world.clone(),
            at,
            random: Random(seed),
            entry,
            depth: -1,
            small: false,
            migratable: false,
            nested: false,
        }
    }

    /// Its entry in the books.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.random.bits() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn may(&self, who: Who) -> bool {
        match who {
            Who::All => true,
            Who::Large => !self.small,
            Who::Sticky => !self.small && !self.migratable,
            Who::Outer => !self.small && !self.nested,
        }
    }

    fn step(&mut self) {
        let total: u64 = Kind::ALL.iter().map(|kind| kind.weight()).sum();
        let mut at = self.below(total);
        let kind = Kind::ALL.iter().find(|kind| {
            let found = at < kind.weight();
            at = at.wrapping_sub(kind.weight());
            found
        });
        let kind = *kind.expect("below the sum of all");
        if self.may(kind.is_for()) {
            self.entry.step.store(kind as usize, Ordering::Relaxed);
            self.take(kind);
            // An endless one counts itself.
            if kind != Kind::Endless {
                STEPS[kind as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        beat();
    }

    /// The life of a goroutine.
    fn live(&mut self) {
        let steps = 5 + self.below(if self.depth == 0 { 60 } else { 12 });
        for _ in 0..steps {
            if self.world.stopped() {
                break;
            }
            self.step();
        }
    }

    /// What a new goroutine runs, that is entered in the books.
    fn body(self) -> impl FnOnce() -> Gift + Send + 'static {
        let captured = self.world.token();
        move || {
            let mut actor = self;
            let running = Running::begin(&actor.world, &actor.entry);
            actor.live();
            drop(captured);
            let (id, _token) = (actor.entry.id, actor.world.token());
            if actor.one_in(8) {
                resume_unwind(Box::new(Blast { id, _token }));
            }
            drop(actor);
            // The last thing that it does.
            running.finish();
            Gift { _token, answer: answer_of(id) }
        }
    }

    /// An actor that this one starts.
    fn heir(&mut self, class: usize, kind: &'static str, migratable: bool) -> Self {
        Self {
            world: self.world.clone(),
            at: self.at,
            random: Random(self.random.bits()),
            entry: self.world.enter(self.at.run, class, kind),
            depth: self.depth + 1,
            small: class == 0,
            migratable,
            nested: false,
        }
    }

    /// Starts a goroutine in one of all ways.
    pub fn start(&mut self) -> Handle {
        let class = match self.below(12) {
            0..=2 => Some(0),
            3 => Some(1),
            4 => Some(2),
            5 => Some(3),
            6 if self.one_in(4) => Some(4),
            _ => None,
        };
        let migratable = self.one_in(4);
        let large = class == Some(0) && self.one_in(4);
        let kind = if migratable { "migratable" } else { "sticky" };
        let heir = self.heir(class.unwrap_or(self.at.class), kind, migratable);
        let entry = heir.entry.clone();
        let body = heir.body();
        let builder = |class: usize| Builder::new().stack_bytes(CLASSES[class]);
        // SAFETY: what an actor has is `Send`, and its steps are as `go_migratable` wants them.
        let handle: JoinHandle<Gift> = unsafe {
            match (class, migratable) {
                (Some(class), false) if large => go_large(builder(class), body),
                (None, false) => go(body),
                (None, true) => Builder::new().go_migratable(body).expect("memory"),
                (Some(class), false) => builder(class).go(body).expect("memory"),
                (Some(class), true) => builder(class).go_migratable(body).expect("memory"),
            }
        };
        Handle::new(handle, entry)
    }

    fn is_crowded(&self) -> bool {
        self.world.live[self.at.run].load(Ordering::Relaxed) > CROWD
    }

    #[inline(never)]
    fn gosched(&mut self) {
        for _ in 0..=self.below(4) {
            gosched();
        }
    }

    #[inline(never)]
    fn checkpoint(&mut self) {
        for _ in 0..self.below(2000) {
            std::hint::spin_loop();
            checkpoint();
        }
    }

    #[inline(never)]
    fn churn(&mut self) {
        let (way, rounds, seed) = (self.below(3), 1 + self.below(300_000), self.random.bits());
        // SAFETY: on a goroutine.
        let result = unsafe { codes().churn[way as usize].call(rounds, seed) };
        check(result == churned(rounds, seed), || format!("churn {way} of {rounds}, {seed:#x}"));
    }

    #[inline(never)]
    fn send(&mut self) {
        let channel = self.world.channel(&mut self.random);
        self.world.send(&channel);
    }

    #[inline(never)]
    fn recv(&mut self) {
        let channel = self.world.channel(&mut self.random);
        self.world.recv(&channel);
    }

    #[inline(never)]
    fn try_send(&mut self) {
        let channel = self.world.channel(&mut self.random);
        self.world.try_send(&channel);
    }

    #[inline(never)]
    fn try_recv(&mut self) {
        let channel = self.world.channel(&mut self.random);
        self.world.try_recv(&channel);
    }

    /// Parks until somebody else, or a foreign thread, readies it.
    #[inline(never)]
    fn park(&mut self) {
        let delay = if self.one_in(4) { self.below(300) } else { 0 };
        let foreign = self.one_in(2).then(|| Duration::from_micros(delay));
        let world = &self.world;
        let me = current();
        // SAFETY: whoever takes the parker readies it, once; neither way parks or unwinds.
        unsafe {
            gopark(WaitReason::Other, || match foreign {
                None => world.wait_here(me),
                Some(delay) => foreigners().wake(me, delay),
            });
        }
    }

    #[inline(never)]
    fn wake(&mut self) {
        for _ in 0..=self.below(3) {
            if let Some(parker) = self.world.parked(&mut self.random) {
                // SAFETY: it was taken by this one alone.
                unsafe { goready(parker) };
            }
        }
    }

    #[inline(never)]
    fn sleep(&mut self) {
        runtime::sleep(Duration::from_micros(self.below(1500)));
    }

    fn with_cases(&mut self, choose: impl FnOnce(&mut [Case<'_>]) -> Option<usize>) {
        let count = 1 + self.below(3) as usize;
        let channels: Vec<Chan<Token>> =
            (0..count).map(|_| self.world.channel(&mut self.random)).collect();
        let sending: Vec<bool> = (0..count).map(|_| self.one_in(2)).collect();
        let mut slots: Vec<Option<Token>> = sending
            .iter()
            .map(|&sending| if sending { self.world.token() } else { None })
            .collect();
        slots.iter().flatten().for_each(|token| self.world.offer(token));
        let enabled: Vec<bool> =
            sending.iter().zip(&slots).map(|(&sending, slot)| !sending || slot.is_some()).collect();
        if !enabled.contains(&true) {
            return;
        }
        let mut cases: Vec<Case<'_>> = channels
            .iter()
            .zip(&sending)
            .zip(&mut slots)
            .map(
                |((channel, &sending), slot)| {
                    if sending { Case::send(channel, slot) } else { Case::recv(channel, slot) }
                },
            )
            .collect();
        let chosen = choose(&mut cases);
        drop(cases);
        for (at, slot) in slots.iter().enumerate() {
            match (slot, sending[at]) {
                (Some(token), true) => self.world.refuse(token),
                (Some(token), false) => {
                    check(chosen == Some(at), || "a case that was not chosen has a value".into());
                    self.world.receive(token);
                }
                (None, true) if enabled[at] => {
                    check(chosen == Some(at), || "a case that was not chosen has sent".into());
                }
                (None, _) => {}
            }
        }
    }

    #[inline(never)]
    fn select(&mut self) {
        self.with_cases(|cases| Some(select(cases)));
    }

    #[inline(never)]
    fn try_select(&mut self) {
        self.with_cases(try_select);
    }

    #[inline(never)]
    fn replace(&mut self) {
        if !self.world.stopped() {
            let world = self.world.clone();
            world.replace(&mut self.random);
        }
    }

    /// Starts a goroutine, and joins it, or lets others do that, or nobody.
    #[inline(never)]
    fn child(&mut self) {
        if self.is_crowded() {
            return;
        }
        let handle = self.start();
        match self.below(4) {
            0 if self.depth < 3 => handle.join(self.world.abandons),
            1 => drop(handle),
            2 => foreigners().join(&self.world, handle),
            _ => self.world.deposit(handle),
        }
    }

    /// Joins one that somebody has started. Who is older waits for who is younger, so that they
    /// never wait in a circle.
    #[inline(never)]
    fn join(&mut self) {
        if let Some(handle) = self.world.withdraw(&mut self.random) {
            if handle.entry.id > self.entry.id && self.depth < 3 {
                handle.join(self.world.abandons);
            } else if self.one_in(4) {
                drop(handle);
            } else {
                self.world.deposit(handle);
            }
        }
    }

    #[inline(never)]
    fn scope(&mut self) {
        if self.is_crowded() || self.depth >= 2 {
            return;
        }
        let mut cells = [0u64; 3];
        let mut expected = [0u64; 3];
        let mut blasts = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                for (cell, expected) in cells.iter_mut().zip(&mut expected) {
                    let heir = self.heir(self.at.class, "scoped", false);
                    let (entry, id) = (heir.entry.clone(), heir.entry.id);
                    let blast = self.one_in(6);
                    blasts += u32::from(blast);
                    *expected = if blast { 0 } else { answer_of(id) };
                    let handle = s.go(move || {
                        let mut actor = heir;
                        let running = Running::begin(&actor.world, &actor.entry);
                        actor.live();
                        if blast {
                            resume_unwind(Box::new(Blast { id, _token: actor.world.token() }));
                        }
                        *cell = answer_of(id);
                        drop(actor);
                        running.finish();
                        id
                    });
                    if self.one_in(2) {
                        let joined = handle.join().ok();
                        check(joined == (!blast).then_some(id), || "a scoped result".into());
                    } else {
                        drop(handle);
                    }
                    entry.release();
                }
            });
        }));
        match result {
            Ok(()) => check(blasts == 0, || "a scope has lost a panic".into()),
            Err(payload) => {
                let text = payload.downcast_ref::<&str>().copied();
                check(blasts != 0 && text == Some(SCOPED), || format!("scope: {text:?}"));
            }
        }
        check(cells == expected, || format!("a scope left {cells:?}, not {expected:?}"));
    }

    /// Parks while it unwinds.
    #[inline(never)]
    fn unwind(&mut self) {
        struct Parks<'a>(&'a Arc<World>, Chan<Token>, u64);
        impl Drop for Parks<'_> {
            fn drop(&mut self) {
                match self.2 {
                    0 => gosched(),
                    1 => runtime::sleep(Duration::from_micros(50)),
                    2 => self.0.try_send(&self.1),
                    _ => self.0.recv(&self.1),
                }
            }
        }
        let channel = self.world.channel(&mut self.random);
        let (way, id) = (self.below(4), self.entry.id);
        let world = &self.world;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _parks = Parks(world, channel, way);
            resume_unwind(Box::new(Blast { id, _token: world.token() }));
        }));
        let payload = result.expect_err("it panics");
        let is_own = payload.downcast_ref::<Blast>().is_some_and(|blast| blast.id == id);
        check(is_own, || "a panic of another goroutine".into());
    }

    #[inline(never)]
    fn system_stack(&mut self) {
        let channel = self.world.channel(&mut self.random);
        let (world, way) = (&self.world, self.random.bits() % 4);
        let result = catch_unwind(AssertUnwindSafe(|| {
            systemstack(|| {
                world.try_send(&channel);
                systemstack(|| world.try_recv(&channel));
                match way {
                    0 => panic!("on the system stack"),
                    1 => gosched(),
                    2 => checkpoint(),
                    _ => drop(black_box(vec![1u8; 1000])),
                }
                5
            })
        }));
        let expected = (way > 1).then_some(5);
        check(result.ok() == expected, || format!("systemstack, way {way}"));
        // The goroutine may park again.
        gosched();
    }

    /// Spins with values in all registers that are saved here.
    #[inline(never)]
    fn spin(&mut self) {
        let level = self.at.level;
        let spinners = &codes().spinners;
        let (_, spinner) = spinners.iter().find(|(of, _)| *of == level).expect("of this CPU");
        let changes = spinner.spin(1 + self.below(1 << 15), self.random.bits());
        check(changes.is_empty(), || format!("registers changed: {changes:?}"));
    }

    /// Goes through JIT frames, from which it takes other steps, or panics.
    #[inline(never)]
    fn relay(&mut self) {
        let (way, times) = (self.below(2) as usize, 1 + self.below(5));
        let id = self.entry.id;
        self.nested = true;
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: on a goroutine; nobody else uses the actor meanwhile.
            unsafe { codes().relay[way].call(std::ptr::from_mut(self) as u64, times) }
        }));
        self.nested = false;
        match result {
            Ok(done) => check(done == times, || format!("relay: {done} of {times}")),
            Err(payload) => match payload.downcast_ref::<Blast>() {
                Some(blast) => check(blast.id == id, || "relay: a panic of another one".into()),
                None => {
                    let text = payload.downcast_ref::<&str>().copied();
                    check(text == Some("in a turn"), || format!("relay: {text:?}"));
                }
            },
        }
    }

    /// A turn below JIT frames.
    fn turn(&mut self) {
        self.step();
        if self.one_in(16) {
            let (id, _token) = (self.entry.id, self.world.token());
            resume_unwind(Box::new(Blast { id, _token }));
        }
        if self.one_in(16) {
            panic!("in a turn");
        }
    }

    /// JIT code starts a goroutine that has JIT frames and this file's.
    #[inline(never)]
    fn jit_start(&mut self) {
        // Behind its last entry in the books such a goroutine polls, and can be abandoned there.
        if self.world.abandons || self.is_crowded() {
            return;
        }
        let way = self.below(2) as usize;
        let class = if way == 0 { self.at.class } else { 2 };
        let heir = self.heir(class, "jit", false);
        heir.entry.release();
        let argument = Box::into_raw(Box::new(heir)) as u64;
        // SAFETY: on a goroutine; the argument is `spawned`'s.
        unsafe { codes().start[way].call(argument) };
    }

    /// Recursion in JIT code that may be too deep for its stack.
    #[inline(never)]
    fn dive(&mut self) {
        let way = self.below(2) as usize;
        let room = CLASSES[self.entry.class] as u64 / DIVE_BYTES;
        let depth = if self.one_in(2) { room / 4 } else { room + 1 };
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: on a goroutine.
            unsafe { codes().dive[way].call(depth) }
        }));
        match result {
            Ok(came) => check(came == depth && depth < room, || format!("dive: {came} of {depth}")),
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map_or("", String::as_str);
                let is_known = text.contains(" overflowed its ") && depth > room;
                check(is_known, || format!("dive to {depth} of {room}: {text:?}"));
            }
        }
    }

    /// Uses much of its stack, and parks with it.
    #[inline(never)]
    fn deep(&mut self) {
        #[inline(never)]
        fn descend(bytes: usize, bottom: &mut dyn FnMut()) {
            let here = black_box([bytes as u64; 100]);
            match bytes.checked_sub(2048) {
                Some(rest) => descend(rest, bottom),
                None => bottom(),
            }
            check(black_box(&here).iter().all(|&word| word == bytes as u64), || {
                "somebody wrote to this stack".into()
            });
        }
        let bytes = CLASSES[self.entry.class] / 4;
        let times = 1 + self.below(3);
        descend(bytes, &mut || (0..times).for_each(|_| gosched()));
    }

    #[inline(never)]
    fn forbid(&mut self) {
        without_preemption(|| {
            self.churn();
            without_preemption(|| self.gosched());
            self.checkpoint();
        });
    }

    #[inline(never)]
    fn request(&mut self) {
        let processor = self.below(self.at.processors as u64) as usize;
        runtime::request_preemption(processor);
    }

    #[inline(never)]
    fn walk(&mut self) {
        let mut frames = 0;
        let end = runtime::jit_frames(|frame| {
            check(!frame.stub.name().is_empty(), || "a frame without a name".into());
            frames += 1;
            ControlFlow::Continue(())
        });
        check(end == WalkEnd::Complete, || format!("a walk of {frames} frames: {end:?}"));
        check(!self.nested || frames > 0, || "no JIT frame is found".into());
    }

    /// Holds another goroutine still, or itself.
    #[inline(never)]
    fn scan(&mut self) {
        look_at_one(&mut self.random);
    }

    #[inline(never)]
    fn trace(&mut self) {
        if self.one_in(8) {
            let all = runtime::traceback_all_within(Duration::from_millis(1));
            check(!all.is_empty(), || "no goroutine is found".into());
        } else {
            check(!runtime::traceback().frames.is_empty(), || "no frame is found".into());
        }
    }

    /// Lets a foreign thread trade.
    #[inline(never)]
    fn foreign(&mut self) {
        let channel = self.world.channel(&mut self.random);
        let sends = self.one_in(2);
        foreigners().trade(&self.world, channel, sends);
    }

    /// Never ends, in a run that does.
    #[inline(never)]
    fn endless(&mut self) {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        if self.world.abandons && self.at.preempts {
            let way = self.below(2) as usize;
            STEPS[Kind::Endless as usize].fetch_add(1, Ordering::Relaxed);
            // SAFETY: on a goroutine.
            unsafe { codes().endless[way].call(&raw const NEVER) };
            fail("an endless loop has ended");
        }
    }
}

/// The closure is too large for a small stack: it lies on the heap.
#[inline(never)]
fn go_large(builder: Builder, body: impl FnOnce() -> Gift + Send + 'static) -> JoinHandle<Gift> {
    let load = [7u8; 1200];
    let body = move || {
        check(load.iter().all(|&byte| byte == 7), || "a closure broke".into());
        body()
    };
    builder.go(body).expect("memory")
}

/// Holds some goroutine still and walks its stack. Those of other runs, too, on foreign threads.
#[inline(never)]
fn look_at_one(random: &mut Random) {
    let all = goroutines();
    if all.is_empty() {
        return;
    }
    let goroutine = all[random.bits() as usize % all.len()];
    let wait = Duration::from_micros(random.bits() % 300);
    let mut frames = 0;
    let result = goroutine.scan_stack(wait, |frame| {
        check(!frame.stub.name().is_empty(), || "a frame without a name".into());
        frames += 1;
        ControlFlow::Continue(())
    });
    match result {
        Ok(end) => {
            LOOKS.fetch_add(1, Ordering::Relaxed);
            let whole = end == WalkEnd::Complete || frames == MOST_FRAMES;
            check(whole, || format!("{frames} frames of {goroutine:?}: {end:?}"));
        }
        Err(ScanError::Ended | ScanError::Running { .. }) => {}
        Err(other) => fail(&format!("{other}")),
    }
}

/// How often a goroutine was held still.
pub static LOOKS: AtomicUsize = AtomicUsize::new(0);

/// Called by JIT code, with the address of an actor.
pub fn turn(actor: u64) -> u64 {
    // SAFETY: `relay` passes its own, and waits.
    unsafe { (*(actor as *mut Actor)).turn() };
    1
}

/// Called by JIT code on a goroutine that JIT code has started, with a box.
pub fn spawned(actor: u64) {
    // SAFETY: from `jit_start`, for this goroutine alone.
    let mut actor = unsafe { Box::from_raw(actor as *mut Actor) };
    let running = Running::begin(&actor.world, &actor.entry);
    actor.live();
    drop(actor);
    running.finish();
}

/// A channel to send to, or to receive from.
type Trade = (Arc<World>, Chan<Token>, bool);

/// Threads that are none of a run.
pub struct Foreigners {
    wakes: Sender<(Parker, Duration)>,
    joins: Sender<(Arc<World>, Handle)>,
    trades: [Sender<Trade>; 2],
    next: AtomicUsize,
}

/// Those of the process.
pub fn foreigners() -> &'static Foreigners {
    static FOREIGNERS: OnceLock<Foreigners> = OnceLock::new();
    FOREIGNERS.get_or_init(Foreigners::start)
}

/// A thread that does one job after the other.
fn worker<T: Send + 'static>(name: &str, work: impl Fn(T) + Send + 'static) -> Sender<T> {
    let (sender, jobs) = channel();
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(move || jobs.iter().for_each(work)).expect("a thread");
    sender
}

impl Foreigners {
    fn start() -> Self {
        let trader = |name| {
            worker(name, |(world, channel, sends): Trade| {
                if sends {
                    world.send(&channel)
                } else {
                    world.recv(&channel)
                }
                drop(channel);
                world.foreign.fetch_sub(1, Ordering::SeqCst);
            })
        };
        let look = || {
            let mut random = Random(1);
            loop {
                look_at_one(&mut random);
                std::thread::sleep(Duration::from_micros(random.bits() % 1000));
            }
        };
        std::thread::Builder::new().name("looker".into()).spawn(look).expect("a thread");
        Self {
            wakes: worker("waker", |(parker, delay): (Parker, Duration)| {
                std::thread::sleep(delay);
                // SAFETY: it was given to this thread alone, by one who is parked.
                unsafe { goready(parker) };
            }),
            joins: worker("joiner", |(world, handle): (Arc<World>, Handle)| {
                handle.join(world.abandons);
                world.foreign.fetch_sub(1, Ordering::SeqCst);
            }),
            trades: [trader("trader 1"), trader("trader 2")],
            next: AtomicUsize::new(0),
        }
    }

    fn wake(&self, parker: Parker, delay: Duration) {
        self.wakes.send((parker, delay)).unwrap_or_else(|_| fail("the waker has ended"));
    }

    fn join(&self, world: &Arc<World>, handle: Handle) {
        world.foreign.fetch_add(1, Ordering::SeqCst);
        let sent = self.joins.send((world.clone(), handle));
        sent.unwrap_or_else(|_| fail("the joiner has ended"));
    }

    fn trade(&self, world: &Arc<World>, channel: Chan<Token>, sends: bool) {
        world.foreign.fetch_add(1, Ordering::SeqCst);
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.trades.len();
        let sent = self.trades[at].send((world.clone(), channel, sends));
        sent.unwrap_or_else(|_| fail("the trader has ended"));
    }
}
