#![allow(unsafe_code, reason = "the scheduler moves between stacks")]
//! How an M goes from one goroutine to the next, and how long it searches when there is none.
//!
//! Two ways lead to the next goroutine:
//!
//! * [`switch_away`], on the stack of the goroutine that leaves: it takes the next one from a
//!   queue, and switches to it directly. One switch.
//! * [`schedule`], on the system stack. It comes here by `mcall` when `switch_away` finds nothing,
//!   when a goroutine ends, and when a goroutine leaves that another M may take at once: that one
//!   must be saved before it is queued.
//!
//! ```text
//!     running                     direct switch                on the system stack
//!     +-------------+ hi          +-------------+ hi           +-------------+ thread's stack
//!     | frames of A |             | frames of A |              | caller of   |
//!     | ...         |             | ...         |              | mstart      |
//!     | switch_away |             | saved: A    | A.sched      | mstart      | <- m.g0
//!     +-------------+             +-------------+              +-------------+ <- m.system_sp
//!           |  goswitch           | frames of B |              | schedule    |   (frames below it
//!           '-------------------> | B's pc      |              | ...         |    are dropped each
//!                                 +-------------+              +-------------+    time it is left)
//! ```
//!
//! What must not be here: which queue a goroutine goes to (`ready.rs`), and which one comes next
//! (`find.rs`).

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::Ordering;

use crate::runtime::arch::switch::{gogo, goswitch, mcall};
use crate::runtime::gmp::current::{sched_of, set_g_and_stack_limit, this_m};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::sched::Sched;
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::timers;
use crate::runtime::os::futex;
use crate::runtime::sched::find::{find_without_sleep, pick_next, steal};
use crate::runtime::sched::idle;
use crate::runtime::sched::ready::{
    displace_run_next, drain_inbox, enqueue, enqueue_last, run_timers,
};
use crate::runtime::sync::idle::{Parking, Searcher, search};
use crate::runtime::sync::{preempt_request, suspend};

/// How long an M without work searches before it sleeps, in nanoseconds: less than what it costs to
/// fall asleep and to be woken.
const SPIN_NS: u64 = 10_000;

/// How long an M leaves the queues of other Ms alone, in nanoseconds, when it has just run out of
/// work, and between two attempts to steal. A goroutine that its own thread comes to soon costs a
/// tenth there of what it costs elsewhere, and a thief that tries all the time takes the queue's
/// cache lines from the M that fills it.
const PATIENCE_NS: u64 = 2_000;

/// Makes `g` the goroutine that `m` runs. A switch to it follows.
#[inline(always)]
pub(crate) fn make_current(m: &M, g: *mut G) {
    // SAFETY: a G is never freed. This M has taken it from a queue, so that it alone may run it.
    let gr = unsafe { &*g };
    if suspend::begin_running(gr) {
        yield_to_suspender(m, gr);
    }
    gr.m.store(ptr::from_ref(m).cast_mut(), Ordering::Relaxed);
    let sp = gr.sched.sp();
    if sp < gr.lowest_sp.get() {
        gr.lowest_sp.set(sp);
    }
    let limit = m.preempt.limit_of(gr);
    preempt_request::begin_tick(&m.curg, g, &gr.stack_limit, limit, || {
        set_g_and_stack_limit(g, limit)
    });
}

/// Another thread wants the goroutine suspended that is to run next.
#[cold]
#[inline(never)]
fn yield_to_suspender(m: &M, g: &G) {
    let deschedule = || {
        // SAFETY: the context of `g` is not saved, so this thread is on its stack; the system stack
        // is free below its saved rsp.
        unsafe { mcall(&g.sched, m.system_sp.get(), deschedule0, ptr::from_ref(g)) };
    };
    suspend::yield_to_suspender(g, |word, value| futex::wait(word, value, None), deschedule);
}

/// Deschedules the goroutine at the end of its time slice, on the system stack.
///
/// That time slice was long. So everything that is checked only at some ticks is checked now: the
/// inbox, timers, and other Ms, which may keep goroutines waiting for Rust code that cannot be
/// preempted. All that comes from there is queued before `g`. Then a round begins, so that no queue
/// waits for another one.
///
/// # Safety
/// 1. Called by `mcall` on the system stack of this thread's M.
/// 2. `g` is the goroutine that runs, and its context is saved.
pub(crate) unsafe extern "C" fn deschedule0(g: *const G) -> ! {
    // SAFETY: the thread is an M by contract (1), and `schedule` may run there; a G is never freed.
    unsafe {
        let m = this_m();
        let sched = sched_of(m);
        set_g_and_stack_limit(ptr::null_mut(), 0);
        if m.has_remote() {
            drain_inbox(m);
        }
        if m.p.timers.any() {
            run_timers(m, m);
        }
        let is_global_empty = sched.global_len.load(Ordering::Relaxed) == 0;
        if is_global_empty && m.p.runq.is_empty() && !sched.stopping.load(Ordering::Relaxed) {
            let waiting_for_other = steal(m, sched);
            if !waiting_for_other.is_null() {
                enqueue(m, waiting_for_other);
            }
        }
        if !m.p.run_next.get().is_null() {
            // The time slice that it would have inherited is over. It must not wait for another one
            // of the same goroutine.
            displace_run_next(m);
        }
        (*g).transition(Status::Running, Status::Runnable);
        enqueue_last(m, sched, &*g);
        m.p.round.begin();
        sched.wake_one();
        schedule(m)
    }
}

/// Leaves the running goroutine `g`, which is in a queue or waits, for the next one. Returns when
/// `g` is resumed.
///
/// The next goroutine may be `g` itself, which was readied meanwhile. Then there is no switch.
///
/// # Safety
/// 1. The caller runs on `g`, on this thread's M `m`.
/// 2. Only this thread can resume `g`.
#[inline(always)]
pub(crate) unsafe fn switch_away(m: &M, g: &G) {
    let next = pick_next(m);
    if next.is_null() {
        // SAFETY: contract (1); the system stack is free below its saved rsp. Contract (2): no
        // other thread resumes `g` before its context is saved.
        return unsafe { mcall(&g.sched, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    }
    make_current(m, next);
    if !ptr::eq(next, g) {
        // SAFETY: contracts (1) and (2); `next` was taken from a queue, so that this M alone may
        // run it, and only `g` can be queued on this M without a saved context.
        unsafe { goswitch(&g.sched, &(*next).sched) };
    }
}

/// The entry to [`schedule`] by `mcall`.
///
/// # Safety
/// 1. Called by `mcall` on the system stack of `m`, this thread's M.
/// 2. The goroutine that has called `mcall`, if one has, is queued or waits.
pub(crate) unsafe extern "C" fn schedule0(m: *const M) -> ! {
    // SAFETY: contract (1): the frame of `mcall`'s caller is not below this one, and an M is never
    // freed.
    unsafe {
        set_g_and_stack_limit(ptr::null_mut(), 0);
        schedule(&*m)
    }
}

/// Finds a goroutine and goes to it. When the run is over, resumes the caller of `mstart`.
///
/// # Safety
/// 1. Called on the system stack of `m`, this thread's M.
/// 2. Nothing on that stack below `m.system_sp` is needed.
#[inline(always)]
pub(crate) unsafe fn schedule(m: &'static M) -> ! {
    m.curg.store(ptr::null_mut(), Ordering::Relaxed);
    match find_runnable(m) {
        Some(g) => {
            make_current(m, g);
            // SAFETY: it was taken from a queue, so that this M alone may run it. On the system
            // stack the context of every queued goroutine is saved. Contract (2): this frame is
            // dropped.
            unsafe { gogo(&(*g).sched) }
        }
        // SAFETY: `mstart` has saved it, and waits. It is resumed once: `stopping` stays set.
        None => unsafe { gogo(&m.g0) },
    }
}

/// A goroutine to run. Sleeps until there is one. `None`: the run is over.
#[inline(always)]
fn find_runnable(m: &'static M) -> Option<*mut G> {
    let next = pick_next(m);
    if !next.is_null() {
        return Some(next);
    }
    find_runnable_slow(m)
}

#[inline(never)]
fn find_runnable_slow(m: &'static M) -> Option<*mut G> {
    // SAFETY: this thread's M, which has not left its run.
    let sched = unsafe { sched_of(m) };
    search(&Search { m, sched, may_steal: Cell::new(false) }, false)
}

/// An M that has nothing to run. `sync/idle.rs` leads it.
struct Search {
    m: &'static M,
    sched: &'static Sched,
    /// Whether the M takes goroutines from the queues of other Ms: not at once (see
    /// [`PATIENCE_NS`]), but at once when it was woken, since it was woken for work that waits.
    may_steal: Cell<bool>,
}

impl Searcher for Search {
    type Instance = Sched;
    type Found = *mut G;

    fn instance(&self) -> &Sched {
        self.sched
    }

    fn parking(&self) -> &Parking {
        &self.m.remote.parking
    }

    fn find(&self) -> Option<*mut G> {
        find_without_sleep(self.m, self.sched, self.may_steal.get())
    }

    fn spin(&self, is_spinning: bool) -> Option<*mut G> {
        let start = timers::now();
        let (mut now, mut next_steal) = (start, start + PATIENCE_NS);
        while now < start + SPIN_NS {
            let may_steal = !is_spinning || now >= next_steal;
            if may_steal {
                next_steal = now + PATIENCE_NS;
            }
            let found = find_without_sleep(self.m, self.sched, may_steal);
            if found.is_some() || !is_spinning {
                return found;
            }
            std::hint::spin_loop();
            now = timers::now();
        }
        None
    }

    fn has_own_work(&self) -> bool {
        self.m.has_remote() || !self.m.yielded.is_empty()
    }

    fn sleep(&self, sleeping: usize) -> bool {
        idle::sleep(self.m, self.sched, sleeping)
    }

    fn has_woken(&self) {
        self.may_steal.set(true);
        self.sched.sysmon.wake();
    }
}
