#![allow(unsafe_code, reason = "links raw, immortal structures")]
//! Pools of dead goroutines with their stacks, to be used again.
//!
//! This file must not allocate on the way of a goroutine that ends: it may end because there is no
//! memory. Chains are linked through the goroutines themselves (`G::link`, and for the first one of
//! a chain `G::next_chain` and `G::chain_len`).
//!
//! **Two chains per P.** For each size class a P has two *chains*, the current one and the one
//! before. It uses the current one as a stack: the goroutine that died last starts next, while its
//! stack is in the cache. When the current chain is full, the chain before goes as a whole to the
//! shared list; when both are empty, a whole chain comes from there. So a lock is taken once for as
//! many goroutines as a chain has, in both directions.
//!
//! Rejected: one chain per P. A program that starts and ends goroutines around the border of a full
//! chain would go to the shared list each time.
//!
//! **Committed and decommitted.** The shared list of a class has two sides: *committed* chains,
//! whose stacks have memory, and *decommitted* ones, whose memory was returned to the system.
//! Memory is decommitted where no goroutine waits for it:
//!
//! 1. by an M that has had nothing to do for a while ([`decommit_idle`]),
//! 2. at the end of a run ([`close`]),
//! 3. by sysmon, where all Ms are busy: what no goroutine has needed for a whole period
//!    ([`Scavenger`]).
//!
//! Stacks that lie side by side are decommitted in one system call. The guards between them stay
//! guards. Address space is never returned.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::runtime::gmp::g::{self, G};
use crate::runtime::gmp::m::M;
use crate::runtime::stack::{self, SizeClass, StackError};

/// The most goroutines that a chain has, of any class.
const MAX_CHAIN: usize = 512;

/// Address space that the stacks of a chain take at most.
const CHAIN_BYTES: usize = 32 << 20;

/// How many goroutines of a class a full chain has.
///
/// Classes are powers of two: a shift, where a division would take a tenth of the time in which a
/// goroutine starts and ends.
#[inline(always)]
fn full(class: SizeClass) -> usize {
    (CHAIN_BYTES >> class.bytes().trailing_zeros()).min(MAX_CHAIN)
}

/// Goroutines linked through `G::link`.
#[derive(Clone, Copy)]
struct Chain {
    head: *mut G,
    len: usize,
}

impl Chain {
    const EMPTY: Self = Self { head: ptr::null_mut(), len: 0 };

    /// # Safety
    /// The goroutine is idle, and the caller owns it.
    #[inline(always)]
    unsafe fn push(&mut self, g: *mut G) {
        // SAFETY: a G is never freed, and the caller owns it by contract.
        unsafe { (*g).link.set(self.head) };
        *self = Self { head: g, len: self.len + 1 };
    }

    #[inline(always)]
    fn pop(&mut self) -> *mut G {
        let g = self.head;
        if !g.is_null() {
            // SAFETY: a G is never freed, and this one is in this chain.
            let next = unsafe { (*g).link.get() };
            *self = Self { head: next, len: self.len - 1 };
        }
        g
    }
}

/// What a P keeps for itself. Only its thread touches the chains; others read the counts.
pub(crate) struct Pools([Pool; SizeClass::COUNT]);

struct Pool {
    current: Cell<Chain>,
    before: Cell<Chain>,
    /// How many goroutines are in both chains.
    len: AtomicUsize,
}

impl Pools {
    pub(crate) const fn new() -> Self {
        Self([const { Pool::new() }; SizeClass::COUNT])
    }
}

impl Pool {
    const fn new() -> Self {
        Self {
            current: Cell::new(Chain::EMPTY),
            before: Cell::new(Chain::EMPTY),
            len: AtomicUsize::new(0),
        }
    }

    fn update_len(&self) {
        self.len.store(self.current.get().len + self.before.get().len, Ordering::Relaxed);
    }

    #[inline(always)]
    fn take(&self) -> *mut G {
        let mut current = self.current.get();
        if current.head.is_null() {
            current = self.before.replace(Chain::EMPTY);
        }
        let g = current.pop();
        self.current.set(current);
        self.update_len();
        g
    }

    /// # Safety
    /// The goroutine is idle and of this class, and the caller owns it.
    #[inline(always)]
    unsafe fn put(&self, class: SizeClass, g: *mut G) {
        let mut current = self.current.get();
        if current.len == full(class) {
            self.give_back(class);
            current = Chain::EMPTY;
        }
        // SAFETY: the contract of this function.
        unsafe { current.push(g) };
        self.current.set(current);
        self.update_len();
    }

    /// Moves the chain before to the shared list. The current one, which is full, takes its place.
    #[cold]
    fn give_back(&self, class: SizeClass) {
        let before = self.before.replace(self.current.get());
        shared(class).push_committed(before);
    }

    /// Whether this is more than a P that has nothing to do should keep.
    fn has_surplus(&self, class: SizeClass) -> bool {
        self.current.get().len > full(class) / 8 || self.before.get().len != 0
    }

    /// Moves everything to the shared list.
    fn flush(&self, class: SizeClass) {
        let mut list = shared(class);
        list.push_committed(self.before.replace(Chain::EMPTY));
        list.push_committed(self.current.replace(Chain::EMPTY));
        self.update_len();
    }
}

/// What all threads share of a class.
struct Shared {
    committed: Chains,
    decommitted: Chains,
    /// Committed goroutines that came one by one, from threads without a P. At most a full chain.
    loose: Chain,
    /// The fewest committed goroutines there were since a [`Scavenger`] checked.
    unused: usize,
    /// Goroutines in chains that are being decommitted, outside of the lock.
    decommitting: usize,
}

// SAFETY: a lock guards it; an idle goroutine in it belongs to the thread that takes it out.
unsafe impl Send for Shared {}

/// Chains linked through their first goroutines.
struct Chains {
    head: *mut G,
    /// Goroutines in all of them.
    len: usize,
}

impl Chains {
    const EMPTY: Self = Self { head: ptr::null_mut(), len: 0 };

    fn push(&mut self, chain: Chain) {
        // SAFETY: null (the chain is empty), or a G, which is never freed and belongs to this list
        // from now on.
        let Some(first) = (unsafe { chain.head.as_ref() }) else {
            return;
        };
        first.set_next_chain(self.head);
        first.chain_len.set(chain.len as u16);
        *self = Self { head: chain.head, len: self.len + chain.len };
    }

    fn pop(&mut self) -> Chain {
        // SAFETY: null (the list is empty), or a G, which is never freed and belongs to this list.
        let Some(first) = (unsafe { self.head.as_ref() }) else {
            return Chain::EMPTY;
        };
        let chain = Chain { head: self.head, len: first.chain_len.get() as usize };
        *self = Self { head: first.next_chain(), len: self.len - chain.len };
        chain
    }
}

/// One shared list for each size class. Every goroutine in a list is idle, has a stack of the
/// class, and is in no other queue or pool. No other lock is taken while one of these is held, and
/// no memory is decommitted.
static SHARED: [Mutex<Shared>; SizeClass::COUNT] = [const {
    Mutex::new(Shared {
        committed: Chains::EMPTY,
        decommitted: Chains::EMPTY,
        loose: Chain::EMPTY,
        decommitting: 0,
        unused: 0,
    })
}; SizeClass::COUNT];

/// How many committed goroutines of all classes are in the shared lists. Changed under the lock of
/// the class; [`has_surplus`] reads it without a lock, so that an M that is about to sleep takes
/// none.
static COMMITTED: AtomicUsize = AtomicUsize::new(0);

fn shared(class: SizeClass) -> MutexGuard<'static, Shared> {
    SHARED[class.index()].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn push_committed(&mut self, chain: Chain) {
        self.committed.push(chain);
        COMMITTED.fetch_add(chain.len, Ordering::Relaxed);
    }

    fn committed_len(&self) -> usize {
        self.committed.len + self.loose.len
    }

    fn take_committed(&mut self) -> Chain {
        let mut chain = self.committed.pop();
        if chain.len == 0 {
            chain = std::mem::replace(&mut self.loose, Chain::EMPTY);
        }
        COMMITTED.fetch_sub(chain.len, Ordering::Relaxed);
        self.unused = self.unused.min(self.committed_len());
        chain
    }

    /// Takes a committed chain for [`decommit_chain`].
    fn take_to_decommit(&mut self) -> Chain {
        let chain = self.take_committed();
        self.decommitting += chain.len;
        chain
    }

    /// # Safety
    /// The goroutine is idle and of this class, and the caller owns it.
    unsafe fn push_loose(&mut self, class: SizeClass, g: *mut G) {
        // SAFETY: the contract of this function.
        unsafe { self.loose.push(g) };
        COMMITTED.fetch_add(1, Ordering::Relaxed);
        if self.loose.len == full(class) {
            let chain = std::mem::replace(&mut self.loose, Chain::EMPTY);
            self.committed.push(chain);
        }
    }
}

/// Takes an idle G with a stack of the class, used before or new. `pools`: those of this thread's
/// P.
pub(crate) fn take(pools: Option<&Pools>, class: SizeClass) -> Result<*mut G, StackError> {
    if let Some(pools) = pools {
        let g = pools.0[class.index()].take();
        if !g.is_null() {
            return Ok(g);
        }
    }
    take_shared(pools, class)
}

#[inline(never)]
fn take_shared(pools: Option<&Pools>, class: SizeClass) -> Result<*mut G, StackError> {
    let mut list = shared(class);
    let committed = list.take_committed();
    let is_committed = committed.len != 0;
    let mut chain = if is_committed { committed } else { list.decommitted.pop() };
    let g = chain.pop();
    if g.is_null() {
        drop(list);
        return new(class);
    }
    match pools {
        Some(pools) => {
            // The P's own chains are empty: only then does it come here.
            let pool = &pools.0[class.index()];
            pool.current.set(chain);
            pool.update_len();
        }
        None if is_committed => list.push_committed(chain),
        None => list.decommitted.push(chain),
    }
    Ok(g)
}

/// Makes a G that was never used, with a stack of its own.
fn new(class: SizeClass) -> Result<*mut G, StackError> {
    let stack = stack::allocate_slot(class)?;
    let g = g::allocate();
    g.stack.set(stack);
    Ok(ptr::from_ref(g).cast_mut())
}

/// Returns an idle goroutine to a pool. `pools`: those of this thread's P.
///
/// # Safety
/// The caller owns the goroutine, and nothing else that owns it refers to it.
pub(crate) unsafe fn put(pools: Option<&Pools>, g: *mut G) {
    // SAFETY: a G is never freed, is of the class of its stack, and is the caller's by contract.
    unsafe {
        let class = (*g).stack.get().class();
        match pools {
            Some(pools) => pools.0[class.index()].put(class, g),
            None => put_loose(class, g),
        }
    }
}

/// Returns a goroutine to the shared list, on a thread without a P.
///
/// # Safety
/// As for [`Shared::push_loose`].
#[cold]
unsafe fn put_loose(class: SizeClass, g: *mut G) {
    // SAFETY: the contract of this function.
    unsafe { shared(class).push_loose(class, g) };
}

/// Decommits the stacks of a chain that [`Shared::take_to_decommit`] has taken, and adds the chain
/// to the decommitted ones.
fn decommit_chain(class: SizeClass, chain: Chain) {
    let mut stacks = [(0, 0); MAX_CHAIN];
    let (mut count, mut g) = (0, chain.head);
    // SAFETY: null (the end), or a G, which is never freed; the chain is this thread's.
    while let Some(gr) = unsafe { g.as_ref() } {
        let stack = gr.stack.get();
        stacks[count] = (stack.guard(), stack.hi);
        count += 1;
        g = gr.link.get();
    }
    debug_assert_eq!(count, chain.len);
    let stacks = &mut stacks[..count];
    stacks.sort_unstable();
    // Slots that touch are one range.
    let mut range = (0, 0);
    for &mut (from, to) in stacks {
        if from == range.1 {
            range.1 = to;
        } else {
            stack::decommit(range.0, range.1);
            range = (from, to);
        }
    }
    stack::decommit(range.0, range.1);
    let mut list = shared(class);
    list.decommitting -= chain.len;
    list.decommitted.push(chain);
}

/// Whether [`decommit_idle`] has something to do on this M, which is about to sleep.
pub(crate) fn has_surplus(pools: &Pools) -> bool {
    COMMITTED.load(Ordering::Relaxed) != 0
        || SizeClass::all().any(|class| pools.0[class.index()].has_surplus(class))
}

/// Decommits the stacks of dead goroutines. Called by the thread of an M that has had nothing to do
/// for a while; stops when `is_idle` says that it has.
pub(crate) fn decommit_idle(pools: &Pools, is_idle: impl Fn() -> bool) {
    for class in SizeClass::all() {
        let pool = &pools.0[class.index()];
        if pool.has_surplus(class) {
            pool.flush(class);
        }
        while is_idle() {
            // The lock is not held during the system call. Other threads find fewer goroutines
            // meanwhile, and do not wait.
            let chain = shared(class).take_to_decommit();
            if chain.len == 0 {
                break;
            }
            decommit_chain(class, chain);
        }
    }
}

/// Decommits, while all Ms are busy, stacks that no goroutine needs. Owned by sysmon.
///
/// What is not needed is measured, and not guessed by age: the fewest goroutines that a shared list
/// had during a period were unused for all of it.
pub(crate) struct Scavenger {
    next_check: Instant,
    /// How many goroutines of each class are to be decommitted before the next check.
    quota: [usize; SizeClass::COUNT],
}

impl Scavenger {
    /// How long a stack stays committed while it is unused.
    const PERIOD: Duration = Duration::from_secs(1);

    pub(crate) fn new(now: Instant) -> Self {
        Self { next_check: now, quota: [0; SizeClass::COUNT] }
    }

    /// Called from time to time. Decommits at most one chain: sysmon must not be late for time
    /// slices.
    pub(crate) fn tick(&mut self, now: Instant) {
        if now >= self.next_check {
            self.next_check = now + Self::PERIOD;
            for class in SizeClass::all() {
                let mut list = shared(class);
                let committed = list.committed_len();
                self.quota[class.index()] = std::mem::replace(&mut list.unused, committed);
            }
        }
        for class in SizeClass::all() {
            let quota = &mut self.quota[class.index()];
            if *quota == 0 {
                continue;
            }
            let chain = shared(class).take_to_decommit();
            *quota = quota.saturating_sub(chain.len.max(1));
            if chain.len != 0 {
                return decommit_chain(class, chain);
            }
        }
    }
}

/// The end of a run: takes what its Ps had, and decommits all but one chain of each class.
pub(crate) fn close<'a>(all: impl Iterator<Item = &'a Pools>) {
    for pools in all {
        for class in SizeClass::all() {
            pools.0[class.index()].flush(class);
        }
    }
    for class in SizeClass::all() {
        loop {
            let mut list = shared(class);
            if list.committed_len() <= full(class) {
                break;
            }
            let chain = list.take_to_decommit();
            drop(list);
            decommit_chain(class, chain);
        }
    }
}

/// How guards are made here, for `environment()`. The first call makes a stack to find out.
pub(crate) fn probe_guards() -> Result<String, StackError> {
    /// A stack was made. Two threads that come first together make two, which does no harm.
    static PROBED: AtomicBool = AtomicBool::new(false);
    if !PROBED.load(Ordering::Relaxed) {
        let g = new(SizeClass::for_request(0)?)?;
        // SAFETY: `new` has made it for this thread.
        unsafe { put(None, g) };
        PROBED.store(true, Ordering::Relaxed);
    }
    Ok(stack::guards_report())
}

/// Goroutine stacks of one size class, in the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StackUsage {
    /// Usable bytes of a stack of this class.
    pub stack_bytes: usize,
    /// Stacks that were ever made. Their address space is never returned to the system.
    pub made: usize,
    /// Stacks that wait for the next goroutine, with the memory that the last one used.
    pub pooled: usize,
    /// Stacks that wait for the next goroutine, and whose memory was decommitted.
    pub decommitted: usize,
}

/// How many goroutine stacks there are, by size class, smallest first.
///
/// A stack that is neither `pooled` nor `decommitted` is in use. Where other threads start and end
/// goroutines meanwhile, the numbers are of no single moment.
///
/// ```
/// use footbridge::runtime::{self, stack_usage};
///
/// runtime::run(|| {
///     let in_use = stack_usage().iter().map(|u| u.made - u.pooled - u.decommitted).sum::<usize>();
///     assert!(in_use >= 1, "this goroutine has one");
/// });
/// ```
pub fn stack_usage() -> Vec<StackUsage> {
    // An M that serves no run has none.
    let ms = M::all();
    SizeClass::all()
        .map(|class| {
            let own = |m: &&M| m.p.pools.0[class.index()].len.load(Ordering::Relaxed);
            let list = shared(class);
            StackUsage {
                stack_bytes: class.bytes(),
                made: stack::allocated_slots(class),
                pooled: list.committed_len()
                    + list.decommitting
                    + ms.iter().map(own).sum::<usize>(),
                decommitted: list.decommitted.len,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_needed_within_a_period_stays_committed() {
        // No other unit test uses this class.
        let class = SizeClass::for_bytes(8 << 20).expect("a class");
        let put_all = |gs: Vec<*mut G>| {
            // SAFETY: `new` and `take` return idle goroutines that this test owns.
            gs.into_iter().for_each(|g| unsafe { put(None, g) });
        };
        put_all((0..12).map(|_| new(class).expect("address space")).collect());
        let count = || {
            let list = shared(class);
            (list.committed_len(), list.decommitted.len)
        };
        let start = Instant::now();
        let mut scavenger = Scavenger::new(start);
        let mut pass = |periods: u32| {
            for _ in 0..5 {
                scavenger.tick(start + Scavenger::PERIOD * periods);
            }
        };
        pass(0);
        assert_eq!(count(), (12, 0), "nothing is known yet");
        // Five of twelve are needed for a while.
        put_all((0..5).map(|_| take(None, class).expect("a committed one")).collect());
        assert_eq!(count(), (12, 0));
        pass(1);
        let (committed, decommitted) = count();
        assert!((4..=8).contains(&decommitted), "{decommitted}");
        assert_eq!(committed, 12 - decommitted);
        // None is needed.
        pass(2);
        assert_eq!(count(), (0, 12));
        // Decommitted ones are used when there are no others.
        let all: Vec<_> = (0..12).map(|_| take(None, class).expect("a pooled one")).collect();
        assert_eq!(count(), (0, 0));
        put_all(all);
    }
}
