//! The goroutines of the soak: an actor takes random steps.
//!
//! Each step is a function of its own that is never inlined. Some actors are migratable, and none
//! of their functions may use thread-local storage both before and after a park.

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
    CLASSES, Entry, Handle, Output, Running, SCOPED, STEPS, TestPanic, Token, World, answer_of,
    check, fail,
};
use support::spinner::{Level, Random};
use support::watchdog::beat;

/// The limit of frames of a walk. A dive goes deeper.
const MAX_FRAMES: u32 = 10_000;
/// The number of live goroutines above which a run starts no others.
const MAX_LIVE: usize = 150;

/// Settings that all actors of a run share.
#[derive(Clone, Copy)]
pub struct RunInfo {
    pub run: usize,
    /// The default class of stacks of the run.
    pub class: usize,
    /// The registers that a preemption saves.
    pub level: Level,
    /// Whether a goroutine that loops for ever is preempted.
    pub preempts: bool,
    pub processors: usize,
}

pub struct Actor {
    pub world: Arc<World>,
    pub at: RunInfo,
    pub random: Random,
    entry: Arc<Entry>,
    /// The number of ancestors that may wait for it; -1 for the main goroutine.
    depth: i32,
    /// Whether its stack has 16 KiB.
    small: bool,
    migratable: bool,
    /// Whether it is inside of JIT frames, where it does not enter others.
    nested: bool,
}

macro_rules! kinds {
    ($($kind:ident $name:ident $weight:literal $actors:expr;)*) => {
        /// A kind of step.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Kind { $($kind),* }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$kind),*];
            pub const COUNT: usize = Self::ALL.len();

            fn weight(self) -> u64 {
                match self { $(Self::$kind => $weight),* }
            }

            fn actors(self) -> Actors {
                match self { $(Self::$kind => $actors),* }
            }
        }

        impl Actor {
            fn take(&mut self, kind: Kind) {
                match kind { $(Kind::$kind => self.$name()),* }
            }
        }
    };
}

/// The actors that may take a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Actors {
    All,
    /// All but those with a stack of 16 KiB.
    Large,
    /// Large, and not migratable, since the step uses thread-local storage.
    Sticky,
    /// Large, and not inside of JIT frames.
    Outer,
}

kinds! {
    Gosched gosched 60 Actors::All;
    Checkpoint checkpoint 30 Actors::All;
    Churn churn 60 Actors::All;
    Send send 80 Actors::All;
    Recv recv 80 Actors::All;
    TrySend try_send 20 Actors::All;
    TryRecv try_recv 20 Actors::All;
    Park park 50 Actors::All;
    Wake wake 60 Actors::All;
    Sleep sleep 30 Actors::All;
    Select select 70 Actors::Large;
    TrySelect try_select 20 Actors::Large;
    Replace replace 4 Actors::Large;
    Child child 90 Actors::Large;
    Join join 40 Actors::Large;
    Scope scope 15 Actors::Sticky;
    Unwind unwind 20 Actors::Large;
    SystemStack system_stack 20 Actors::Sticky;
    Spin spin 20 Actors::Large;
    Relay relay 40 Actors::Outer;
    JitStart jit_start 20 Actors::Outer;
    Dive dive 15 Actors::Outer;
    Deep deep 10 Actors::Large;
    Forbid forbid 10 Actors::Large;
    Request request 15 Actors::Large;
    Walk walk 10 Actors::Large;
    Scan scan 10 Actors::Large;
    Trace trace 1 Actors::Sticky;
    Foreign foreign 15 Actors::Large;
    Endless endless 3 Actors::Outer;
}

impl Actor {
    /// The first goroutine of a run, which starts others.
    pub fn main(world: &Arc<World>, at: RunInfo, seed: u64) -> Self {
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

    /// Its account.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn is_one_of(&self, actors: Actors) -> bool {
        match actors {
            Actors::All => true,
            Actors::Large => !self.small,
            Actors::Sticky => !self.small && !self.migratable,
            Actors::Outer => !self.small && !self.nested,
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
        if self.is_one_of(kind.actors()) {
            self.entry.step.store(kind as usize, Ordering::Relaxed);
            self.take(kind);
            // The endless step counts itself, since it does not return.
            if kind != Kind::Endless {
                STEPS[kind as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
        beat();
    }

    /// Takes random steps.
    fn live(&mut self) {
        let steps = 5 + self.below(if self.depth == 0 { 60 } else { 12 });
        for _ in 0..steps {
            if self.world.stopped() {
                break;
            }
            self.step();
        }
    }

    /// The closure of a new goroutine, which has an account.
    fn body(self) -> impl FnOnce() -> Output + Send + 'static {
        let captured = self.world.token();
        move || {
            let mut actor = self;
            let running = Running::begin(&actor.world, &actor.entry);
            actor.live();
            drop(captured);
            let (id, _token) = (actor.entry.id, actor.world.token());
            if actor.one_in(8) {
                resume_unwind(Box::new(TestPanic { id, _token }));
            }
            drop(actor);
            // Must be the goroutine's last action.
            running.finish();
            Output { _token, answer: answer_of(id) }
        }
    }

    /// An actor that this one starts.
    fn new_actor(&mut self, class: usize, kind: &'static str, migratable: bool) -> Self {
        Self {
            world: self.world.clone(),
            at: self.at,
            random: Random(self.random.next_u64()),
            entry: self.world.enter(self.at.run, class, kind),
            depth: self.depth + 1,
            small: class == 0,
            migratable,
            nested: false,
        }
    }

    /// Starts a goroutine in a random way.
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
        let new = self.new_actor(class.unwrap_or(self.at.class), kind, migratable);
        let entry = new.entry.clone();
        let body = new.body();
        let builder = |class: usize| Builder::new().stack_bytes(CLASSES[class]);
        // SAFETY: an actor is `Send`, and no function of its steps uses thread-local storage both
        // before and after a park.
        let handle: JoinHandle<Output> = unsafe {
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
        self.world.live[self.at.run].load(Ordering::Relaxed) > MAX_LIVE
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
        let (way, n, seed) = (self.below(3), 1 + self.below(300_000), self.random.next_u64());
        // SAFETY: on a goroutine.
        let result = unsafe { codes().churn[way as usize].call(n, seed) };
        check(result == churned(n, seed), || format!("churn {way} of {n}, {seed:#x}"));
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

    /// Parks until another goroutine, or a foreign thread, readies it.
    #[inline(never)]
    fn park(&mut self) {
        let delay = if self.one_in(4) { self.below(300) } else { 0 };
        let foreign = self.one_in(2).then(|| Duration::from_micros(delay));
        let world = &self.world;
        let this = current();
        // SAFETY: the taker of the parker readies it once; neither call parks or unwinds.
        unsafe {
            gopark(WaitReason::Other, || match foreign {
                None => world.put_parker(this),
                Some(delay) => foreign_threads().wake(this, delay),
            });
        }
    }

    #[inline(never)]
    fn wake(&mut self) {
        for _ in 0..=self.below(3) {
            if let Some(parker) = self.world.take_parker(&mut self.random) {
                // SAFETY: only this goroutine has taken the parker.
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

    /// Starts a goroutine, and joins it, drops its handle, or leaves the join to another goroutine
    /// or a foreign thread.
    #[inline(never)]
    fn child(&mut self) {
        if self.is_crowded() {
            return;
        }
        let handle = self.start();
        match self.below(4) {
            0 if self.depth < 3 => handle.join(self.world.abandons),
            1 => drop(handle),
            2 => foreign_threads().join(&self.world, handle),
            _ => self.world.put_handle(handle),
        }
    }

    /// Joins a goroutine that another one has started. Only older goroutines wait for younger ones,
    /// so that there is no cycle of waits.
    #[inline(never)]
    fn join(&mut self) {
        if let Some(handle) = self.world.take_handle(&mut self.random) {
            if handle.entry.id > self.entry.id && self.depth < 3 {
                handle.join(self.world.abandons);
            } else if self.one_in(4) {
                drop(handle);
            } else {
                self.world.put_handle(handle);
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
        let mut panics = 0;
        let result = catch_unwind(AssertUnwindSafe(|| {
            scope(|s| {
                for (cell, expected) in cells.iter_mut().zip(&mut expected) {
                    let new = self.new_actor(self.at.class, "scoped", false);
                    let (entry, id) = (new.entry.clone(), new.entry.id);
                    let panic = self.one_in(6);
                    panics += u32::from(panic);
                    *expected = if panic { 0 } else { answer_of(id) };
                    let handle = s.go(move || {
                        let mut actor = new;
                        let running = Running::begin(&actor.world, &actor.entry);
                        actor.live();
                        if panic {
                            resume_unwind(Box::new(TestPanic { id, _token: actor.world.token() }));
                        }
                        *cell = answer_of(id);
                        drop(actor);
                        running.finish();
                        id
                    });
                    if self.one_in(2) {
                        let joined = handle.join().ok();
                        check(joined == (!panic).then_some(id), || "a scoped result".into());
                    } else {
                        drop(handle);
                    }
                    entry.release();
                }
            });
        }));
        match result {
            Ok(()) => check(panics == 0, || "a scope has lost a panic".into()),
            Err(payload) => {
                let text = payload.downcast_ref::<&str>().copied();
                check(panics != 0 && text == Some(SCOPED), || format!("scope: {text:?}"));
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
            resume_unwind(Box::new(TestPanic { id, _token: world.token() }));
        }));
        let payload = result.expect_err("it panics");
        let is_own = payload.downcast_ref::<TestPanic>().is_some_and(|panic| panic.id == id);
        check(is_own, || "a panic of another goroutine".into());
    }

    #[inline(never)]
    fn system_stack(&mut self) {
        let channel = self.world.channel(&mut self.random);
        let (world, way) = (&self.world, self.random.next_u64() % 4);
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
        // After systemstack the goroutine may park again.
        gosched();
    }

    /// Spins with values in all registers that a preemption saves.
    #[inline(never)]
    fn spin(&mut self) {
        let level = self.at.level;
        let spinners = &codes().spinners;
        let (_, spinner) = spinners.iter().find(|(of, _)| *of == level).expect("of this CPU");
        let changes = spinner.spin(1 + self.below(1 << 15), self.random.next_u64());
        check(changes.is_empty(), || format!("registers changed: {changes:?}"));
    }

    /// Calls JIT code that calls back for other steps, which may panic.
    #[inline(never)]
    fn relay(&mut self) {
        let (way, times) = (self.below(2) as usize, 1 + self.below(5));
        let id = self.entry.id;
        self.nested = true;
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: on a goroutine; nothing else uses the actor during the call.
            unsafe { codes().relay[way].call(std::ptr::from_mut(self) as u64, times) }
        }));
        self.nested = false;
        match result {
            Ok(done) => check(done == times, || format!("relay: {done} of {times}")),
            Err(payload) => match payload.downcast_ref::<TestPanic>() {
                Some(panic) => {
                    check(panic.id == id, || "relay: the panic of another goroutine".into())
                }
                None => {
                    let text = payload.downcast_ref::<&str>().copied();
                    check(text == Some("in a relayed step"), || format!("relay: {text:?}"));
                }
            },
        }
    }

    /// A step that is called from JIT frames.
    fn relayed_step(&mut self) {
        self.step();
        if self.one_in(16) {
            let (id, _token) = (self.entry.id, self.world.token());
            resume_unwind(Box::new(TestPanic { id, _token }));
        }
        if self.one_in(16) {
            panic!("in a relayed step");
        }
    }

    /// JIT code starts a goroutine whose JIT code calls [`spawned`].
    #[inline(never)]
    fn jit_start(&mut self) {
        // Such a goroutine polls after the last change of its account, and could be abandoned
        // there.
        if self.world.abandons || self.is_crowded() {
            return;
        }
        let way = self.below(2) as usize;
        let class = if way == 0 { self.at.class } else { 2 };
        let new = self.new_actor(class, "jit", false);
        new.entry.release();
        let argument = Box::into_raw(Box::new(new)) as u64;
        // SAFETY: on a goroutine; the argument is for `spawned`.
        unsafe { codes().start[way].call(argument) };
    }

    /// Recursion in JIT code, which may overflow the stack.
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

    /// Uses a quarter of its stack, and yields there.
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
                "the stack is corrupt".into()
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

    /// Scans another goroutine, or itself.
    #[inline(never)]
    fn scan(&mut self) {
        scan_one(&mut self.random);
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

    /// Lets a foreign thread send or receive.
    #[inline(never)]
    fn foreign(&mut self) {
        let channel = self.world.channel(&mut self.random);
        let sends = self.one_in(2);
        foreign_threads().trade(&self.world, channel, sends);
    }

    /// Loops for ever, in a run that abandons its goroutines.
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

/// Starts a goroutine whose closure is too large for a small stack, and is boxed.
#[inline(never)]
fn go_large(
    builder: Builder,
    body: impl FnOnce() -> Output + Send + 'static,
) -> JoinHandle<Output> {
    let load = [7u8; 1200];
    let body = move || {
        check(load.iter().all(|&byte| byte == 7), || "a closure is corrupt".into());
        body()
    };
    builder.go(body).expect("memory")
}

/// Suspends a random goroutine of any run, and walks its stack.
#[inline(never)]
fn scan_one(random: &mut Random) {
    let all = goroutines();
    if all.is_empty() {
        return;
    }
    let goroutine = all[random.next_u64() as usize % all.len()];
    let wait = Duration::from_micros(random.next_u64() % 300);
    let mut frames = 0;
    let result = goroutine.scan_stack(wait, |frame| {
        check(!frame.stub.name().is_empty(), || "a frame without a name".into());
        frames += 1;
        ControlFlow::Continue(())
    });
    match result {
        Ok(end) => {
            SCANS.fetch_add(1, Ordering::Relaxed);
            let whole = end == WalkEnd::Complete || frames == MAX_FRAMES;
            check(whole, || format!("{frames} frames of {goroutine:?}: {end:?}"));
        }
        Err(ScanError::Ended | ScanError::Running { .. }) => {}
        Err(other) => fail(&format!("{other}")),
    }
}

/// The number of scans of suspended goroutines.
pub static SCANS: AtomicUsize = AtomicUsize::new(0);

/// Called by JIT code with the address of an actor.
pub fn relayed_step(actor: u64) -> u64 {
    // SAFETY: `relay` passes the address of its actor, which it does not use during the call.
    unsafe { (*(actor as *mut Actor)).relayed_step() };
    1
}

/// Called by JIT code with a boxed actor, on a goroutine that JIT code has started.
pub fn spawned(actor: u64) {
    // SAFETY: `jit_start` passes the box to this goroutine alone.
    let mut actor = unsafe { Box::from_raw(actor as *mut Actor) };
    let running = Running::begin(&actor.world, &actor.entry);
    actor.live();
    drop(actor);
    running.finish();
}

/// A channel, and whether to send or to receive.
type Trade = (Arc<World>, Chan<Token>, bool);

/// Threads that belong to no run.
pub struct ForeignThreads {
    wakes: Sender<(Parker, Duration)>,
    joins: Sender<(Arc<World>, Handle)>,
    trades: [Sender<Trade>; 2],
    next: AtomicUsize,
}

/// The foreign threads of the process.
pub fn foreign_threads() -> &'static ForeignThreads {
    static FOREIGN_THREADS: OnceLock<ForeignThreads> = OnceLock::new();
    FOREIGN_THREADS.get_or_init(ForeignThreads::start)
}

/// Starts a thread that executes jobs in order.
fn worker<T: Send + 'static>(name: &str, work: impl Fn(T) + Send + 'static) -> Sender<T> {
    let (sender, jobs) = channel();
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(move || jobs.iter().for_each(work)).expect("a thread");
    sender
}

impl ForeignThreads {
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
        let inspect = || {
            let mut random = Random(1);
            loop {
                scan_one(&mut random);
                std::thread::sleep(Duration::from_micros(random.next_u64() % 1000));
            }
        };
        std::thread::Builder::new().name("inspector".into()).spawn(inspect).expect("a thread");
        Self {
            wakes: worker("waker", |(parker, delay): (Parker, Duration)| {
                std::thread::sleep(delay);
                // SAFETY: the parked goroutine gave its parker to this thread alone.
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
