#![allow(unsafe_code, reason = "raw, immortal structures")]
//! A G: one goroutine with its saved context, its status, its stack and the M that it belongs to.
//!
//! This file is data. It must not decide where a goroutine goes or when it runs: that is `sched/`.
//!
//! A G in time order:
//!
//! 1. [`allocate`] takes it from a slab, and `pools` gives it a stack. It keeps that stack for
//!    good.
//! 2. `lifecycle::newproc` takes it from a pool, sets it up for one goroutine and queues it.
//! 3. It runs, parks and is preempted; [`Status`] has the machine of its states.
//! 4. When the goroutine has ended and its handle is gone, `lifecycle::gfput` returns it to a pool.
//!
//! **Invariant: a G is never freed.** A pointer to one always points to some G. A thread that reads
//! one without owning it may find another goroutine in it, and compares `id` for that reason.
//!
//! Which thread may touch a field:
//!
//! * `sched`, `anchor`: the thread that runs the goroutine. While the goroutine is suspended other
//!   threads may read them.
//! * `stack_limit`: the thread that runs the goroutine, when the goroutine becomes current; and
//!   every thread that requests a preemption.
//! * `status`: the thread that has the right to make the transition ([`G::transition`]).
//! * `suspend`: as `sync/suspend.rs` says.
//! * `link`: the owner of the queue or pool that the G is in.
//! * `lowest_sp`: the thread that makes the goroutine current.
//! * `keeps_fp_control`, `result_dropped`: the goroutine itself. Both are false when it starts.
//! * `migratable`: as for the fields that are set before publication. A goroutine that must stay on
//!   its thread for one suspension (it is unwinding) clears it and sets it again.
//! * `m`: the thread that makes the goroutine current.
//! * `no_preempt`: the goroutine itself; a signal handler on its thread reads it.
//! * `thread_wake`: the thread whose waiter this is, and the thread that readies it.
//! * `chain_or_locals`, `chain_len`: the owner of the list of chains (`pools.rs`). While the G has
//!   a goroutine, `chain_or_locals` is the goroutine's own (`task/local.rs`).
//! * `backlog`: the M whose `yielded` queue the G is in.
//! * `name`: as `name.rs` says.
//! * the rest is set while one thread owns the G, before the goroutine is published.
//!
//! Rejected: `Arc<G>`. Queues would count references on every hop, and a signal handler or a walk
//! could drop the last one. Rejected: freeing slabs that are all idle. Preempters, walks and timers
//! hold bare pointers, and would need a grace period each.

use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::runtime::arch::Gobuf;
use crate::runtime::gmp::join_state;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::name::NameCell;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::throw;
use crate::runtime::stack::Stack;
use crate::runtime::sync::inbox::Linked;
use crate::runtime::sync::status::{self, HasStatus};
use crate::runtime::sync::suspend::{SuspendState, Suspendable};

/// Where JIT code was last left for native code: the frame pointer of the stub that left it, and a
/// pc inside of that stub. fp = 0: no JIT code is on the stack. Walks begin here, and stubs write
/// it.
#[repr(C)]
pub(crate) struct Anchor {
    fp: AtomicUsize,
    pc: AtomicUsize,
}

impl Anchor {
    /// Returns fp and pc.
    pub(crate) fn get(&self) -> (usize, usize) {
        (self.fp.load(Ordering::Relaxed), self.pc.load(Ordering::Relaxed))
    }

    /// Sets fp and pc. Called by the goroutine itself, while no JIT code runs.
    pub(crate) fn set(&self, (fp, pc): (usize, usize)) {
        self.fp.store(fp, Ordering::Relaxed);
        self.pc.store(pc, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.set((0, 0));
    }
}

/// The functions of a goroutine's task, monomorphized for the closure and its result.
pub(crate) struct TaskType {
    /// Runs the closure at the address and leaves its result there.
    pub(crate) run: unsafe fn(*mut u8),
    /// Drops the result at the address, when no handle will take it.
    pub(crate) drop_result: unsafe fn(*mut u8),
    /// The result lies in a box of its own, which the handle frees.
    pub(crate) is_boxed: bool,
}

/// The beginning of the goroutine-locals of a goroutine.
pub(crate) struct LocalsHeader {
    /// Destroys them all. The goroutine itself calls it.
    pub(crate) end: unsafe fn(&G),
}

/// A goroutine, or (without a stack) the waiter of a foreign thread.
///
/// The first cache line has what a switch touches, the second what bridges, queues and joins touch.
#[repr(C, align(64))]
pub(crate) struct G {
    /// The saved context. It comes first: the entry stub takes the address of a G for its Gobuf.
    pub(crate) sched: Gobuf,
    status: AtomicU32,
    wait_reason: AtomicU8,
    /// Set by `Builder::go_migratable`: the goroutine may resume on another thread.
    pub(crate) migratable: Cell<bool>,
    /// The goroutine has dropped its result itself, since its handle is gone.
    pub(crate) result_dropped: Cell<bool>,
    /// The goroutine keeps an FP control state of its own over suspensions: `sched/fp_control.rs`.
    pub(crate) keeps_fp_control: Cell<bool>,
    /// The M that the goroutine ran on last. Null: it has not started, and any M may start it.
    pub(crate) m: AtomicPtr<M>,
    /// Whether another thread wants the goroutine suspended.
    pub(crate) suspend: SuspendState,
    /// What polls compare rsp with: the stack limit, or
    /// [`REQUESTED`](crate::runtime::sync::preempt_request::REQUESTED).
    pub(crate) stack_limit: AtomicUsize,

    pub(crate) anchor: Anchor,
    /// The next G of the queue or pool that this one is in.
    pub(crate) link: Cell<*mut G>,
    /// The goroutine's number. No other goroutine of the process ever has it. 0: never used.
    pub(crate) id: AtomicU64,
    pub(crate) stack: Cell<Stack>,
    /// A [`join_state`], or the address of the G that waits for the end.
    pub(crate) join: AtomicUsize,
    /// The lowest rsp that the goroutine was switched away from with. Below it no page was touched
    /// by this goroutine, as far as switches show.
    pub(crate) lowest_sp: Cell<usize>,

    pub(crate) task: Cell<Option<&'static TaskType>>,
    /// Where the closure, and then the result, lies: at the top of the stack, or what the starter
    /// has put there.
    pub(crate) data: Cell<*mut u8>,
    /// The run that the goroutine belongs to.
    pub(crate) run_id: AtomicU64,
    /// Of a thread waiter: the word that the thread sleeps on.
    pub(crate) thread_wake: AtomicU32,
    /// The number of the slab that this is in. It never changes.
    pub(crate) slab: u32,
    /// Of the first G of a chain in a pool: the first G of the next chain. Of a goroutine: its
    /// goroutine-locals, or null. The accessors say which.
    chain_or_locals: Cell<*mut ()>,
    /// Of the first G of a chain in a pool: how many Gs the chain has.
    pub(crate) chain_len: Cell<u16>,
    /// This is the waiter of a foreign thread, and no goroutine.
    pub(crate) is_thread: Cell<bool>,
    /// While this is not zero the goroutine is not preempted.
    pub(crate) no_preempt: AtomicU32,
    /// Printed by panics and tracebacks.
    pub(crate) name: NameCell,
    /// While the G is in `M::yielded`: what runs before it.
    pub(crate) backlog: Cell<Backlog>,
}

// Three cache lines. `name` and `backlog` lie in what the third one had left: a fourth line would
// cost a miss for each goroutine that starts.
const _: () = assert!(size_of::<G>() == 192);

/// What any M could have run when a goroutine yielded. All of it runs before that goroutine does.
///
/// A backlog is a position in a queue and not a count: thieves take from the queue, too, and a
/// spill moves part of it. Positions show both.
#[derive(Clone, Copy)]
pub(crate) struct Backlog {
    /// The backlog is in the global queue. Otherwise it is in the run queue of the P: goroutines
    /// move from the first to the second.
    pub(crate) is_global: bool,
    /// How often part of the backlog may have moved from the run queue back to the global queue.
    pub(crate) moved: u8,
    /// `M::spills` when the position was taken.
    pub(crate) spills: u16,
    /// The position in that queue before which the backlog lies. Positions wrap around.
    pub(crate) before: u32,
}

// SAFETY: the head of the file says which thread may touch which field; what several threads touch
// at once is atomic.
unsafe impl Sync for G {}

/// Offset of the stack limit, for stubs.
pub(crate) const G_STACK_LIMIT_OFF: i32 = offset_of!(G, stack_limit) as i32;

/// Offset of the lowest address of the stack, for stubs.
pub(crate) const G_STACK_LO_OFF: i32 = (offset_of!(G, stack) + offset_of!(Stack, lo)) as i32;

/// Offset of the end of the stack, for stubs.
pub(crate) const G_STACK_HI_OFF: i32 = (offset_of!(G, stack) + offset_of!(Stack, hi)) as i32;

/// Offset of the anchor, for stubs.
pub(crate) const G_ANCHOR_OFF: i32 = offset_of!(G, anchor) as i32;

impl G {
    /// A G of the slab with this number.
    fn new(slab: u32) -> Self {
        Self {
            sched: Gobuf::new(),
            status: AtomicU32::new(Status::Idle as u32),
            wait_reason: AtomicU8::new(0),
            migratable: Cell::new(false),
            result_dropped: Cell::new(false),
            keeps_fp_control: Cell::new(false),
            m: AtomicPtr::new(ptr::null_mut()),
            suspend: SuspendState::new(),
            stack_limit: AtomicUsize::new(0),
            anchor: Anchor { fp: AtomicUsize::new(0), pc: AtomicUsize::new(0) },
            link: Cell::new(ptr::null_mut()),
            id: AtomicU64::new(0),
            stack: Cell::new(Stack { lo: 0, hi: 0 }),
            join: AtomicUsize::new(join_state::JOINABLE),
            lowest_sp: Cell::new(usize::MAX),
            task: Cell::new(None),
            data: Cell::new(ptr::null_mut()),
            run_id: AtomicU64::new(0),
            thread_wake: AtomicU32::new(0),
            slab,
            chain_or_locals: Cell::new(ptr::null_mut()),
            chain_len: Cell::new(0),
            is_thread: Cell::new(false),
            no_preempt: AtomicU32::new(0),
            backlog: Cell::new(Backlog { is_global: false, moved: 0, spills: 0, before: 0 }),
            name: NameCell::new(),
        }
    }

    /// The first G of the next chain. The caller owns the list of chains that this G is in.
    pub(crate) fn next_chain(&self) -> *mut Self {
        self.chain_or_locals.get().cast()
    }

    pub(crate) fn set_next_chain(&self, next: *mut Self) {
        self.chain_or_locals.set(next.cast());
    }

    /// The goroutine-locals, or null. The caller is the goroutine, or starts it.
    #[inline(always)]
    pub(crate) fn locals(&self) -> *mut LocalsHeader {
        self.chain_or_locals.get().cast()
    }

    pub(crate) fn set_locals(&self, locals: *mut LocalsHeader) {
        self.chain_or_locals.set(locals.cast());
    }

    pub(crate) fn status(&self) -> Status {
        Status::from_u32(self.status.load(Ordering::Acquire))
    }

    /// Whether the goroutine has started, and has left its M.
    #[inline(always)]
    pub(crate) fn is_suspended(&self) -> bool {
        let status = self.status.load(Ordering::Relaxed);
        let has_left = status == status::RUNNABLE || status == status::WAITING;
        has_left && !self.m.load(Ordering::Relaxed).is_null()
    }

    pub(crate) fn wait_reason(&self) -> WaitReason {
        let reason = usize::from(self.wait_reason.load(Ordering::Relaxed));
        WaitReason::ALL.get(reason).copied().unwrap_or(WaitReason::None)
    }

    /// Makes a transition that the caller has the right to make: `sync/status.rs`.
    #[inline(always)]
    pub(crate) fn transition(&self, from: Status, to: Status) {
        debug_assert!(from.may_become(to), "no transition {from:?} -> {to:?}");
        status::transition(self, from as u32, to as u32);
    }

    #[inline(always)]
    pub(crate) fn set_wait_reason(&self, reason: WaitReason) {
        self.wait_reason.store(reason as u8, Ordering::Relaxed);
    }
}

impl HasStatus for G {
    #[inline(always)]
    fn status_word(&self) -> &AtomicU32 {
        &self.status
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, now: u32, from: u32, to: u32) -> ! {
        let id = self.id.load(Ordering::Relaxed);
        let [now, from, to] = [now, from, to].map(|status| Status::from_u32(status).name());
        throw(format_args!(
            "goroutine {id} is {now}, not {from}, and cannot become {to} (readied twice, or readied \
             without being parked?)",
        ))
    }
}

impl Suspendable for G {
    #[inline(always)]
    fn suspend_state(&self) -> &SuspendState {
        &self.suspend
    }

    #[inline(always)]
    fn saved_pc(&self) -> &AtomicUsize {
        &self.sched.pc
    }
}

impl Linked for G {
    unsafe fn set_link(this: *mut Self, next: *mut Self) {
        // SAFETY: a G is never freed, and this one is the caller's by contract.
        unsafe { (*this).link.set(next) };
    }

    unsafe fn link(this: *mut Self) -> *mut Self {
        // SAFETY: a G is never freed, and this one is the caller's by contract.
        unsafe { (*this).link.get() }
    }
}

/// How many Gs a slab holds.
const SLAB: usize = 256;

struct Slabs {
    slabs: Vec<&'static [G]>,
    used_in_last: usize,
    /// Waiters of threads that have ended.
    free_waiters: Vec<&'static G>,
}

/// All Gs of the process. It only grows: a slab is never freed, and a G is handed out by
/// [`allocate`] once. Later it is used again through a pool, or (a thread waiter) through
/// `free_waiters`. [`all`] reads every G without owning any.
///
/// The lock is taken neither by a switch nor by a signal handler, and no other lock is taken while
/// it is held.
static SLABS: Mutex<Slabs> =
    Mutex::new(Slabs { slabs: Vec::new(), used_in_last: SLAB, free_waiters: Vec::new() });

/// A G that was never used.
pub(crate) fn allocate() -> &'static G {
    let mut slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    if slabs.used_in_last == SLAB {
        let number = slabs.slabs.len() as u32;
        let slab: Box<[G]> = (0..SLAB).map(|_| G::new(number)).collect();
        slabs.slabs.push(Box::leak(slab));
        slabs.used_in_last = 0;
    }
    let at = slabs.used_in_last;
    slabs.used_in_last += 1;
    let slab = slabs.slabs.last().expect("a slab was pushed above or stood there before");
    &slab[at]
}

/// The Gs of a slab, by its number.
pub(crate) fn slab(number: u32) -> &'static [G] {
    let slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    slabs.slabs[number as usize]
}

/// Every G of the process, used or not. Each may become another goroutine at any moment.
pub(crate) fn all() -> Vec<&'static G> {
    let slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    slabs.slabs.iter().flat_map(|slab| slab.iter()).collect()
}

std::thread_local! {
    /// The waiter of this thread, or null. It has no destructor, so that it is valid up to the
    /// thread's last instruction: see [`thread_waiter`].
    static WAITER: Cell<*mut G> = const { Cell::new(ptr::null_mut()) };
}

/// The waiter of the calling thread: the G by which a foreign thread waits for goroutines. All
/// calls of one wait return the same.
///
/// In time order: the first call takes a G, and registers a destructor. When the thread ends, the
/// destructor clears the word and returns the G for other threads. Destructors of thread-locals
/// that run later may wait, too: their first call takes another G, which stays this thread's. It is
/// not used again, since nothing runs after the last destructor. (Were it not remembered, `current`
/// and `gopark` would find different ones, and the thread would sleep for ever.)
pub(crate) fn thread_waiter() -> *mut G {
    match WAITER.get() {
        g if g.is_null() => take_waiter(),
        g => g,
    }
}

#[cold]
fn take_waiter() -> *mut G {
    struct Return;
    impl Drop for Return {
        fn drop(&mut self) {
            // SAFETY: null, or a G, which is never freed.
            if let Some(g) = unsafe { WAITER.replace(ptr::null_mut()).as_ref() } {
                let mut slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
                slabs.free_waiters.push(g);
            }
        }
    }
    std::thread_local! {
        static RETURN: Return = const { Return };
    }
    // Fails when this destructor has run.
    let _ = RETURN.try_with(|_| ());
    let free = SLABS.lock().unwrap_or_else(PoisonError::into_inner).free_waiters.pop();
    let g = free.unwrap_or_else(allocate);
    g.is_thread.set(true);
    let g = ptr::from_ref(g).cast_mut();
    WAITER.set(g);
    g
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    #[test]
    fn a_thread_has_one_waiter_also_in_its_last_destructors() {
        struct Late(Sender<[usize; 2]>);
        impl Drop for Late {
            fn drop(&mut self) {
                let waiters = [thread_waiter() as usize, thread_waiter() as usize];
                self.0.send(waiters).expect("the test waits");
            }
        }
        std::thread_local! {
            static LATE: Cell<Option<Late>> = const { Cell::new(None) };
        }
        let (sender, receiver) = channel();
        let thread = std::thread::spawn(move || {
            // Destructors run in the reverse order of their registration: this one comes last.
            LATE.set(Some(Late(sender)));
            assert_eq!(thread_waiter(), thread_waiter());
        });
        let [first, second] = receiver.recv().expect("the destructor runs");
        assert_eq!(first, second);
        thread.join().expect("no panic");
    }
}
