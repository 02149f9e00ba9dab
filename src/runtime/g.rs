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
//! * `keeps_float_modes`: the goroutine itself; false when it ends.
//! * `name`: see `name.rs`.
//! * the rest: set when the goroutine is made, before it is published.

use std::cell::Cell;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::freeze::{self, Found, Freeze};
use super::futex;
use super::m::M;
use super::mailbox::Linked;
use super::name::NameCell;
use super::stack::Stack;
use super::throw::throw;
use super::walk::Registers;
use crate::jit::stubs::GobufLayout;

/// A saved context. The stubs read and write it; everything else the compiler saves.
#[repr(C)]
pub(crate) struct Gobuf {
    sp: AtomicUsize,
    pc: AtomicUsize,
    bp: AtomicUsize,
    bx: AtomicUsize,
}

impl Gobuf {
    pub(crate) const LAYOUT: GobufLayout = GobufLayout {
        sp: offset_of!(Self, sp) as i32,
        pc: offset_of!(Self, pc) as i32,
        bp: offset_of!(Self, bp) as i32,
        bx: offset_of!(Self, bx) as i32,
    };

    pub(crate) const fn new() -> Self {
        Self {
            sp: AtomicUsize::new(0),
            pc: AtomicUsize::new(0),
            bp: AtomicUsize::new(0),
            bx: AtomicUsize::new(0),
        }
    }

    /// A context that begins at `pc` with this stack and no frame.
    pub(crate) fn start_at(&self, pc: usize, sp: usize) {
        self.sp.store(sp, Ordering::Relaxed);
        self.pc.store(pc, Ordering::Relaxed);
        self.bp.store(0, Ordering::Relaxed);
    }

    /// The saved rsp.
    #[inline(always)]
    pub(crate) fn sp(&self) -> usize {
        self.sp.load(Ordering::Relaxed)
    }

    /// What is saved, if the context is: see `freeze.rs`. Otherwise it is of no use, but harmless.
    pub(crate) fn registers(&self) -> Registers {
        Registers {
            pc: self.pc.load(Ordering::Relaxed),
            sp: self.sp.load(Ordering::Relaxed),
            fp: self.bp.load(Ordering::Relaxed),
        }
    }
}

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

/// What a goroutine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Status {
    /// Not in use.
    Idle = 0,
    /// In a run queue.
    Runnable = freeze::RUNNABLE as u8,
    /// On an M, running code.
    Running = freeze::RUNNING as u8,
    /// Parked; somebody will make it runnable.
    Waiting = freeze::WAITING as u8,
    /// Finished; its result may not have been taken yet.
    Dead = 6,
}

impl Status {
    fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::Idle,
            freeze::RUNNABLE => Self::Runnable,
            freeze::RUNNING => Self::Running,
            freeze::WAITING => Self::Waiting,
            6 => Self::Dead,
            other => throw(format_args!("a goroutine has the status {other}, which none is")),
        }
    }

    /// The word that tracebacks print.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }

    fn may_become(self, next: Self) -> bool {
        use Status::{Dead, Idle, Runnable, Running, Waiting};
        matches!(
            (self, next),
            (Idle, Runnable)
                | (Runnable, Running)
                | (Running, Runnable | Waiting | Dead)
                | (Waiting, Runnable)
                | (Dead, Idle)
        )
    }
}

/// Why a goroutine waits. The names are Go's where Go has the thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum WaitReason {
    /// Not waiting.
    None,
    /// In `Chan::send`.
    ChanSend,
    /// In `Chan::recv`.
    ChanReceive,
    /// In `select`.
    Select,
    /// In `select` without cases: for ever.
    SelectNoCases,
    /// In `sleep`.
    Sleep,
    /// In `JoinHandle::join`.
    Join,
    /// At the end of a `scope`.
    Scope,
    /// In `gopark` by code outside of this crate.
    Other,
}

impl WaitReason {
    const ALL: [Self; 9] = [
        Self::None,
        Self::ChanSend,
        Self::ChanReceive,
        Self::Select,
        Self::SelectNoCases,
        Self::Sleep,
        Self::Join,
        Self::Scope,
        Self::Other,
    ];

    /// The words that tracebacks print.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::ChanSend => "chan send",
            Self::ChanReceive => "chan receive",
            Self::Select => "select",
            Self::SelectNoCases => "select (no cases)",
            Self::Sleep => "sleep",
            Self::Join => "join",
            Self::Scope => "scope",
            Self::Other => "parked",
        }
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
    /// Its floating-point control modes are its own over suspensions: see `float_modes.rs`.
    pub(crate) keeps_float_modes: Cell<bool>,
    pub(crate) m: AtomicPtr<M>,
    /// Whether it must not run while somebody looks at its stack.
    pub(crate) freeze: Freeze,
    /// What polls compare rsp with: the limit of the stack, or [`super::handshake::REQUESTED`].
    pub(crate) guard: AtomicUsize,

    // What bridges and queues touch.
    pub(crate) anchor: Anchor,
    pub(crate) link: Cell<*mut G>,
    pub(crate) goid: AtomicU64,
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
pub(crate) const G_GUARD_OFF: i32 = offset_of!(G, guard) as i32;

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
            keeps_float_modes: Cell::new(false),
            m: AtomicPtr::new(ptr::null_mut()),
            freeze: Freeze::new(),
            guard: AtomicUsize::new(0),
            anchor: Anchor { fp: AtomicUsize::new(0), pc: AtomicUsize::new(0) },
            link: Cell::new(ptr::null_mut()),
            goid: AtomicU64::new(0),
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
    pub(crate) fn wait_while_wanted(&self) -> bool {
        let held = self.freeze.hold(&self.status, &self.sched.pc);
        if held {
            futex::wait(self.freeze.word(), freeze::AWAITED, None);
            self.status.store(Status::Running as u32, Ordering::Release);
        }
        held
    }

    /// What somebody who asked the goroutine to be still finds.
    pub(crate) fn found(&self) -> Found {
        freeze::found(&self.status, &self.sched.pc)
    }

    #[cold]
    #[inline(never)]
    fn bad_transition(&self, now: u32, from: Status, to: Status) -> ! {
        let goid = self.goid.load(Ordering::Relaxed);
        let now = Status::from_u32(now).name();
        throw(format_args!(
            "goroutine {goid} is {now}, not {}, and cannot become {} (readied twice, or readied \
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

/// A queue of goroutines linked through themselves. Owned by one thread, or behind a lock.
pub(crate) struct GQueue {
    head: Cell<*mut G>,
    tail: Cell<*mut G>,
}

impl GQueue {
    pub(crate) const fn new() -> Self {
        Self { head: Cell::new(ptr::null_mut()), tail: Cell::new(ptr::null_mut()) }
    }

    #[inline(always)]
    pub(crate) fn push(&self, g: *mut G) {
        // SAFETY: G structures are immortal, and a queued one belongs to its queue.
        unsafe {
            (*g).link.set(ptr::null_mut());
            match self.tail.get() {
                tail if tail.is_null() => self.head.set(g),
                tail => (*tail).link.set(g),
            }
        }
        self.tail.set(g);
    }

    /// Puts all of another queue behind this one.
    pub(crate) fn append(&self, other: &Self) {
        let first = other.head.replace(ptr::null_mut());
        if first.is_null() {
            return;
        }
        let last = other.tail.replace(ptr::null_mut());
        match self.tail.replace(last) {
            tail if tail.is_null() => self.head.set(first),
            // SAFETY: as in `push`.
            tail => unsafe { (*tail).link.set(first) },
        }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// The one that is popped next, if any.
    pub(crate) fn first(&self) -> Option<&'static G> {
        // SAFETY: null, or immortal.
        unsafe { self.head.get().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn pop(&self) -> *mut G {
        let g = self.head.get();
        if !g.is_null() {
            // SAFETY: as in `push`.
            let next = unsafe { (*g).link.get() };
            self.head.set(next);
            if next.is_null() {
                self.tail.set(ptr::null_mut());
            }
        }
        g
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
pub(crate) fn thread_g() -> *mut G {
    struct StandIn(&'static G);
    impl Drop for StandIn {
        fn drop(&mut self) {
            SLABS.lock().unwrap_or_else(PoisonError::into_inner).free_threads.push(self.0);
        }
    }
    thread_local! {
        static STAND_IN: StandIn = {
            let free = SLABS.lock().unwrap_or_else(PoisonError::into_inner).free_threads.pop();
            let g = free.unwrap_or_else(allocate);
            g.is_thread.set(true);
            StandIn(g)
        };
    }
    let stand_in = STAND_IN.try_with(|stand_in| stand_in.0);
    // A thread that ends, and waits in a destructor, gets one that is not used again.
    let g = stand_in.unwrap_or_else(|_| {
        let g = allocate();
        g.is_thread.set(true);
        g
    });
    ptr::from_ref(g).cast_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_is_first_in_first_out() {
        let queue = GQueue::new();
        let gs: Vec<*mut G> = (0..5).map(|_| ptr::from_ref(allocate()).cast_mut()).collect();
        assert!(queue.pop().is_null());
        for &g in &gs {
            queue.push(g);
        }
        for &g in &gs {
            assert_eq!(queue.pop(), g);
        }
        assert!(queue.pop().is_null());
        queue.push(gs[3]);
        assert_eq!(queue.pop(), gs[3]);
    }

    #[test]
    fn transitions_are_those_of_the_machine() {
        use Status::{Dead, Idle, Runnable, Running, Waiting};
        let all = [Idle, Runnable, Running, Waiting, Dead];
        let legal: Vec<_> = all
            .iter()
            .flat_map(|&a| all.iter().map(move |&b| (a, b)))
            .filter(|&(a, b)| a.may_become(b))
            .collect();
        assert_eq!(
            legal,
            [
                (Idle, Runnable),
                (Runnable, Running),
                (Running, Runnable),
                (Running, Waiting),
                (Running, Dead),
                (Waiting, Runnable),
                (Dead, Idle),
            ]
        );
    }
}
