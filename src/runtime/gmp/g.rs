#![allow(unsafe_code, reason = "raw, immortal structures")]
//! A goroutine: its saved context, its status, its stack, and where it belongs.
//!
//! G structures come from slabs that are never freed and are used again for other goroutines, so
//! that a pointer to one always points to some G. Who may touch a field:
//!
//! * `sched`, `anchor`: the thread that runs the goroutine; anybody while it is parked, to read.
//! * `guard`: the thread that runs the goroutine when it begins to; anybody who requests a
//!   preemption.
//! * `status`: see [`Status`]; stored by whoever has the right to make the transition.
//! * `freeze`: see `freeze.rs`.
//! * `link`: whoever has the goroutine in a queue or a pool.
//! * `lowest_sp`: the thread that makes the goroutine current.
//! * `keeps_fp_control`: the goroutine itself; false when it ends.
//! * `name`: see `name.rs`.
//! * the rest: set when the goroutine is made, before it is published.

use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::runtime::arch::Gobuf;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::name::NameCell;
use crate::runtime::gmp::status::{Status, WaitReason};
use crate::runtime::os::{futex, throw};
use crate::runtime::stack::Stack;
use crate::runtime::sync::inbox::Linked;
use crate::runtime::sync::suspend;
use crate::runtime::sync::suspend::{Found, SuspendState};

/// Where JIT code was left for native code, innermost first: the frame pointer of the stub that
/// left it and a pc inside that stub. fp = 0: no JIT code is on the stack.
#[repr(C)]
pub(crate) struct Anchor {
    fp: AtomicUsize,
    pc: AtomicUsize,
}

impl Anchor {
    /// fp and pc.
    pub(crate) fn get(&self) -> (usize, usize) {
        (self.fp.load(Ordering::Relaxed), self.pc.load(Ordering::Relaxed))
    }

    /// Sets fp and pc. The goroutine's own, while no JIT code runs.
    pub(crate) fn set(&self, (fp, pc): (usize, usize)) {
        self.fp.store(fp, Ordering::Relaxed);
        self.pc.store(pc, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.set((0, 0));
    }
}

/// What a goroutine runs, by the types that only `go` knew.
pub(crate) struct TaskType {
    /// Runs the closure at the address and leaves its result there.
    pub(crate) run: unsafe fn(*mut u8),
    /// Drops a result that nobody took.
    pub(crate) drop_result: unsafe fn(*mut u8),
}

/// States of `G::join` besides the address of a goroutine that waits for the end.
pub(crate) mod join_state {
    /// Not finished, the handle exists, nobody waits.
    pub(crate) const RUNNING: usize = 0;
    /// Finished; the result is the handle's.
    pub(crate) const DONE: usize = 1;
    /// Not finished, the handle is gone.
    pub(crate) const DETACHED: usize = 2;
    /// The runtime ended before the goroutine did.
    pub(crate) const ABANDONED: usize = 3;
    /// The smallest value that is an address.
    pub(crate) const WAITER: usize = 64;
}

/// A goroutine, or (without a stack) the stand-in of a foreign thread that waits for one.
#[repr(C, align(64))]
pub(crate) struct G {
    // What a switch touches.
    pub(crate) sched: Gobuf,
    status: AtomicU32,
    wait_reason: AtomicU8,
    /// `Builder::go_migratable`: may continue on another thread.
    pub(crate) migratable: Cell<bool>,
    /// Its result was dropped by itself, since nobody can take it.
    pub(crate) result_dropped: Cell<bool>,
    /// Its floating-point control modes are its own over suspensions: see `fp_control.rs`.
    pub(crate) keeps_fp_control: Cell<bool>,
    pub(crate) m: AtomicPtr<M>,
    /// Whether it must not run while somebody looks at its stack.
    pub(crate) suspend: SuspendState,
    /// What polls compare rsp with: the limit of the stack, or [`REQUESTED`](crate::runtime::sync::preempt_request::REQUESTED).
    pub(crate) stack_limit: AtomicUsize,

    // What bridges and queues touch.
    pub(crate) anchor: Anchor,
    pub(crate) link: Cell<*mut G>,
    pub(crate) id: AtomicU64,
    pub(crate) stack: Cell<Stack>,
    pub(crate) join: AtomicUsize,
    /// The lowest rsp that it was switched away from with.
    pub(crate) lowest_sp: Cell<usize>,

    pub(crate) task: Cell<Option<&'static TaskType>>,
    pub(crate) data: Cell<*mut u8>,
    /// Which run it belongs to.
    pub(crate) run_id: AtomicU64,
    /// Stand-ins of threads: what the thread sleeps on.
    pub(crate) thread_wake: AtomicU32,
    /// A stand-in of a thread.
    pub(crate) is_thread: Cell<bool>,
    /// In a pool, the first of a chain: the next chain, and how many this one has.
    pub(crate) next_chain: Cell<*mut G>,
    pub(crate) chain_len: Cell<u32>,
    /// While it is not zero the goroutine is not preempted.
    pub(crate) no_preempt: AtomicU32,
    /// Shown by panics and tracebacks.
    pub(crate) name: NameCell,
    /// In `M::yielded`: what has its turn first.
    pub(crate) backlog: Cell<Backlog>,
}

// The name and the backlog lie in what the third line has left over.
const _: () = assert!(size_of::<G>() == 192);

/// What was runnable for any thread when a goroutine yielded, and has its turn before it does.
#[derive(Clone, Copy)]
pub(crate) struct Backlog {
    /// Whether it is in the global queue. Otherwise it is in the run queue of the P: goroutines move
    /// from the first to the second.
    pub(crate) is_global: bool,
    /// How often part of it may have moved from the run queue back to the global queue.
    pub(crate) moved: u8,
    /// `M::spills` when that was so.
    pub(crate) spills: u16,
    /// The position in that queue before which it lies. Positions wrap around.
    pub(crate) before: u32,
}

// SAFETY: see the head of the file for who may touch what.
unsafe impl Sync for G {}

/// Offset of the guard, for stubs.
pub(crate) const G_STACK_LIMIT_OFF: i32 = offset_of!(G, stack_limit) as i32;

/// Offset of the lowest address of the stack, for stubs.
pub(crate) const G_STACK_LO_OFF: i32 = (offset_of!(G, stack) + offset_of!(Stack, lo)) as i32;

/// Offset of the end of the stack, for stubs.
pub(crate) const G_STACK_HI_OFF: i32 = (offset_of!(G, stack) + offset_of!(Stack, hi)) as i32;

/// Offset of the anchor, for stubs.
pub(crate) const G_ANCHOR_OFF: i32 = offset_of!(G, anchor) as i32;

impl G {
    fn new() -> Self {
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
            join: AtomicUsize::new(join_state::RUNNING),
            lowest_sp: Cell::new(usize::MAX),
            task: Cell::new(None),
            data: Cell::new(ptr::null_mut()),
            run_id: AtomicU64::new(0),
            thread_wake: AtomicU32::new(0),
            is_thread: Cell::new(false),
            next_chain: Cell::new(ptr::null_mut()),
            chain_len: Cell::new(0),
            no_preempt: AtomicU32::new(0),
            backlog: Cell::new(Backlog { is_global: false, moved: 0, spills: 0, before: 0 }),
            name: NameCell::new(),
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status::from_u32(self.status.load(Ordering::Acquire))
    }

    pub(crate) fn wait_reason(&self) -> WaitReason {
        let reason = usize::from(self.wait_reason.load(Ordering::Relaxed));
        WaitReason::ALL.get(reason).copied().unwrap_or(WaitReason::None)
    }

    /// Makes a transition that the caller has the right to make. No read-modify-write: two who
    /// both believe to have the right are a bug, which the check finds as far as it can.
    #[inline(always)]
    pub(crate) fn transition(&self, from: Status, to: Status) {
        debug_assert!(from.may_become(to), "no transition {from:?} -> {to:?}");
        let now = self.status.load(Ordering::Relaxed);
        if now != from as u32 {
            self.bad_transition(now, from, to);
        }
        self.status.store(to as u32, Ordering::Release);
    }

    /// For a goroutine that begins to run, and is wanted still: waits until it is not, or might not
    /// be. Returns false at once where its context is not saved: it runs here, on its stack.
    pub(crate) fn wait_while_suspended(&self) -> bool {
        let held = self.suspend.await_resume(&self.status, &self.sched.pc);
        if held {
            futex::wait(self.suspend.word(), suspend::AWAITED, None);
            self.status.store(Status::Running as u32, Ordering::Release);
        }
        held
    }

    /// What somebody who asked the goroutine to be still finds.
    pub(crate) fn found(&self) -> Found {
        suspend::found(&self.status, &self.sched.pc)
    }

    #[cold]
    #[inline(never)]
    fn bad_transition(&self, now: u32, from: Status, to: Status) -> ! {
        let id = self.id.load(Ordering::Relaxed);
        let now = Status::from_u32(now).name();
        throw(format_args!(
            "goroutine {id} is {now}, not {}, and cannot become {} (readied twice, or readied \
             without being parked?)",
            from.name(),
            to.name(),
        ))
    }

    #[inline(always)]
    pub(crate) fn set_wait_reason(&self, reason: WaitReason) {
        self.wait_reason.store(reason as u8, Ordering::Relaxed);
    }
}

impl Linked for G {
    unsafe fn set_link(this: *mut Self, next: *mut Self) {
        // SAFETY: immortal, and the caller's.
        unsafe { (*this).link.set(next) };
    }

    unsafe fn link(this: *mut Self) -> *mut Self {
        // SAFETY: as above.
        unsafe { (*this).link.get() }
    }
}

/// Structures a slab holds.
const SLAB: usize = 256;

struct Slabs {
    slabs: Vec<&'static [G]>,
    used_in_last: usize,
    /// Stand-ins whose threads ended.
    free_threads: Vec<&'static G>,
}

static SLABS: Mutex<Slabs> =
    Mutex::new(Slabs { slabs: Vec::new(), used_in_last: SLAB, free_threads: Vec::new() });

/// A structure that was never used.
pub(crate) fn allocate() -> &'static G {
    let mut slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    if slabs.used_in_last == SLAB {
        let slab: Box<[G]> = (0..SLAB).map(|_| G::new()).collect();
        slabs.slabs.push(Box::leak(slab));
        slabs.used_in_last = 0;
    }
    let at = slabs.used_in_last;
    slabs.used_in_last += 1;
    let slab = slabs.slabs.last().expect("a slab was pushed above or stood there before");
    &slab[at]
}

/// Every structure there is, used or not.
pub(crate) fn all() -> Vec<&'static G> {
    let slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    slabs.slabs.iter().flat_map(|slab| slab.iter()).collect()
}

/// The stand-in of the calling thread, by which it waits for goroutines.
pub(crate) fn thread_waiter() -> *mut G {
    struct Waiter(&'static G);
    impl Drop for Waiter {
        fn drop(&mut self) {
            SLABS.lock().unwrap_or_else(PoisonError::into_inner).free_threads.push(self.0);
        }
    }
    thread_local! {
        static WAITER: Waiter = {
            let free = SLABS.lock().unwrap_or_else(PoisonError::into_inner).free_threads.pop();
            let g = free.unwrap_or_else(allocate);
            g.is_thread.set(true);
            Waiter(g)
        };
    }
    let waiter = WAITER.try_with(|waiter| waiter.0);
    // A thread that ends, and waits in a destructor, gets one that is not used again.
    let g = waiter.unwrap_or_else(|_| {
        let g = allocate();
        g.is_thread.set(true);
        g
    });
    ptr::from_ref(g).cast_mut()
}
