#![allow(unsafe_code, reason = "goroutines begin and end on raw stacks")]
//! A goroutine from its first instruction to its last: where its G and its stack come from, what it
//! runs first, and how it ends.
//!
//! This file must not know the types of closures and results: `task/` puts them at the top of the
//! stack, and takes them from there.
//!
//! The story, in time order:
//!
//! 1. [`newproc`] takes a G with its stack from a pool, and reserves room for the task at the top
//!    of the stack. The starter writes the closure there.
//! 2. [`NewGoroutine::start`] fills in the G, and queues it.
//! 3. An M switches to it. The entry stub calls [`goroutine_main`], which runs the closure. The
//!    result takes its place.
//! 4. [`goroutine_main`] leaves for the system stack ([`goexit0`]): the stack may be used again as
//!    soon as the end is published.
//! 5. [`goexit0`] publishes the end by one exchange on `G::join`, and readies the goroutine that
//!    joins, if one does. If the handle is gone, the result must be dropped first, by the goroutine
//!    itself: a destructor may park. Where the handle goes between the goroutine's own check and
//!    the exchange, the goroutine is resumed once more for that.
//! 6. [`gfput`] returns the G to a pool, when the goroutine has ended and the handle is gone.
//!
//! ```text
//!     stack of a new goroutine        hi
//!     | color                     |       0 to 448 bytes: spreads hot lines over cache sets
//!     | closure, then result      |   <-  G::data
//!     | first frame               |   <-  rsp of the entry stub, 16-aligned
//!     | ...                       |
//!     +---------------------------+   lo
//!     | guard                     |
//! ```

use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::arch::stubs::goroutine_entry;
use crate::runtime::arch::switch::{gogo, mcall};
use crate::runtime::gmp::current::{getm, sched_of, set_g_and_stack_limit, this_m};
use crate::runtime::gmp::g::{G, TaskType};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::name::Name;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::{join_state, pools};
use crate::runtime::os::throw;
use crate::runtime::sched::fp_control;
use crate::runtime::sched::ready::{enqueue, ready};
use crate::runtime::sched::schedule::{make_current, schedule};
use crate::runtime::stack::{self, SizeClass, StackError};

/// The first goroutine number that no P has taken. It only grows, so that a number is never used
/// twice. P's take numbers in batches.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A goroutine that could not be started.
pub(crate) struct NewError {
    pub(crate) error: StackError,
}

/// Returns a dead goroutine, which no handle refers to any more, to a pool.
pub(crate) fn gfput(g: *mut G) {
    // SAFETY: a G is never freed.
    let gr = unsafe { &*g };
    gr.transition(Status::Dead, Status::Idle);
    // SAFETY: null, or this thread's M, which is never freed. The goroutine is dead, and the
    // exchange on `G::join` has made it this thread's.
    unsafe { pools::put(getm().as_ref().map(|m| &m.p.pools), g) };
}

/// How far below the end of a stack its first use begins. Without it the hottest lines of all
/// stacks, which are aligned alike, would share a few cache sets.
fn color(stack: stack::Stack) -> usize {
    (stack.hi >> 12) % 8 * 64
}

/// Room that the closure and the result of a goroutine may take of its stack.
pub(crate) fn task_room(class: SizeClass) -> usize {
    class.bytes() / 16
}

/// The stack class of the run that this thread belongs to.
///
/// # Panics
/// On a thread that no run owns.
#[track_caller]
pub(crate) fn current_class() -> SizeClass {
    let m = getm();
    assert!(
        !m.is_null(),
        "goroutines are started from goroutines: call footbridge::runtime::run first"
    );
    // SAFETY: not null, so this thread's M, which is never freed and has not left its run.
    unsafe { sched_of(&*m) }.class
}

/// A new goroutine before it is queued: idle, with room for a task at the top of its stack.
pub(crate) struct NewGoroutine {
    g: *mut G,
    data: *mut u8,
}

/// Takes a G of the class and reserves `size` bytes (at most [`task_room`]) at the top of its
/// stack. The thread is an M: [`current_class`] has checked that.
pub(crate) fn newproc(
    class: SizeClass,
    size: usize,
    align: usize,
) -> Result<NewGoroutine, NewError> {
    // SAFETY: the thread is an M; nothing suspends this function.
    let m = unsafe { this_m() };
    let g = pools::take(Some(&m.p.pools), class).map_err(|error| NewError { error })?;
    // SAFETY: a G is never freed, and the pool has made this one the caller's.
    let stack = unsafe { (*g).stack.get() };
    let data = (stack.hi - color(stack) - size) & !(align.max(16) - 1);
    Ok(NewGoroutine { g, data: data as *mut u8 })
}

impl NewGoroutine {
    /// Where the task goes.
    pub(crate) fn data(&self) -> *mut u8 {
        self.data
    }

    /// Queues the goroutine, or, with `pinned`, binds it to this thread first.
    pub(crate) fn start(
        self,
        task: &'static TaskType,
        join: usize,
        migratable: bool,
        pinned: bool,
        name: Option<Name>,
    ) -> *mut G {
        let Self { g, data } = self;
        // SAFETY: `newproc` was called on an M; a G is never freed, and this one is the caller's
        // until it is queued.
        let (m, gr) = unsafe { (this_m(), &*g) };
        gr.task.set(Some(task));
        gr.data.set(data);
        gr.join.store(join, Ordering::Relaxed);
        gr.migratable.set(migratable);
        gr.result_dropped.set(false);
        gr.no_preempt.store(0, Ordering::Relaxed);
        gr.set_locals(ptr::null_mut());
        let home = if pinned { ptr::from_ref(m).cast_mut() } else { ptr::null_mut() };
        gr.m.store(home, Ordering::Relaxed);
        gr.run_id.store(m.run_id.load(Ordering::Relaxed), Ordering::Relaxed);
        // The end of the run finds the goroutine by this.
        m.p.slabs.insert(gr.slab);
        // The number changes between the names: `gmp/name.rs` says why.
        gr.name.clear();
        gr.id.store(next_id(m), Ordering::Relaxed);
        if let Some(name) = name {
            gr.name.set(name);
        }
        gr.anchor.clear();
        // The entry stub calls: rsp is 16-aligned before (System V psABI, section 3.2.2).
        gr.sched.start_at(goroutine_entry(), data as usize & !15);
        gr.lowest_sp.set(usize::MAX);
        // The status comes last: `goroutines()` reads it first, and trusts the other fields then.
        gr.transition(Status::Idle, Status::Runnable);
        enqueue(m, g);
        if !pinned {
            // SAFETY: this thread's M, which has not left its run.
            unsafe { sched_of(m) }.wake_one();
        }
        g
    }
}

/// The number of a new goroutine.
fn next_id(m: &M) -> u64 {
    /// One exchange on a shared line for this many goroutines.
    const BATCH: u64 = 16;
    let (next, end) = m.p.ids.get();
    if next < end {
        m.p.ids.set((next + 1, end));
        return next;
    }
    let first = NEXT_ID.fetch_add(BATCH, Ordering::Relaxed);
    m.p.ids.set((first + 1, first + BATCH));
    first
}

/// Where every goroutine starts. The entry stub calls it with the address of the G (a Gobuf is its
/// first field).
pub(crate) extern "C-unwind" fn goroutine_main(g: *const G) -> ! {
    #[cfg(footbridge_asan)]
    crate::instrument::asan::arrive(crate::runtime::arch::switch::stack_pointer());
    // SAFETY: `g` runs here, so that this thread is an M; `start` has set its task and data. The
    // system stack is free below its saved rsp.
    unsafe {
        let task = (*g).task.get().expect("set before the goroutine was queued");
        (task.run)((*g).data.get());
        if (*g).join.load(Ordering::Acquire) == join_state::DETACHED {
            drop_result(&*g, task);
        }
        loop {
            end_locals(&*g);
            // After each destructor, and not only after the task: a destructor may keep an FP
            // control state of its own, too, which the next goroutine would run in.
            fp_control::end(&*g);
            let m = this_m();
            mcall(&(*g).sched, m.system_sp.get(), goexit0, g);
            // Resumed by `goexit0`: the handle was dropped after the check above.
            drop_result(&*g, task);
        }
    }
}

/// Destroys the goroutine-locals of the running goroutine, if it has any: after its closure, and
/// after the destructor of its result, which may have made new ones. Before the end is published:
/// the destructors may park.
///
/// # Safety
/// The goroutine of `g` calls it.
pub(crate) unsafe fn end_locals(g: &G) {
    // SAFETY: null, or made by this goroutine, as it calls this: the contract.
    if let Some(locals) = unsafe { g.locals().as_ref() } {
        // SAFETY: this goroutine has locals, by the contract.
        unsafe { (locals.end)(g) };
    }
}

/// Drops the result of a goroutine whose handle is gone.
pub(crate) fn drop_result(g: &G, task: &TaskType) {
    // SAFETY: the task has run and has left its result there. The handle is gone, so that nothing
    // else takes or drops it.
    let dropped =
        panic::catch_unwind(AssertUnwindSafe(|| unsafe { (task.drop_result)(g.data.get()) }));
    if dropped.is_err() {
        let id = g.id.load(Ordering::Relaxed);
        throw(format_args!("the result of goroutine {id} panicked while it was dropped"));
    }
    g.result_dropped.set(true);
}

/// Ends a goroutine, on the system stack.
///
/// # Safety
/// 1. Called by `mcall` on the system stack of this thread's M.
/// 2. `g` is the goroutine that runs; its context is saved, and its task has run.
unsafe extern "C" fn goexit0(g: *const G) -> ! {
    // SAFETY: the thread is an M by contract (1), and `schedule` may run there; a G is never freed,
    // and this one is this thread's until the exchange on `join`.
    unsafe {
        let m = this_m();
        set_g_and_stack_limit(ptr::null_mut(), 0);
        let gr = &*g;
        let id = gr.id.load(Ordering::Relaxed);
        debug_assert!(id != 0);
        // Above its rsp are the task with its result, and the frame to resume in.
        gr.stack.get().decommit_below(gr.lowest_sp.get(), gr.sched.sp());
        gr.transition(Status::Running, Status::Dead);
        match gr.join.swap(join_state::FINISHED, Ordering::AcqRel) {
            join_state::JOINABLE => {}
            join_state::DETACHED if gr.result_dropped.get() => gfput(g.cast_mut()),
            join_state::DETACHED => {
                // Only the goroutine itself may run the destructor, which may park: resume it once
                // more.
                gr.join.store(join_state::DETACHED, Ordering::Relaxed);
                gr.transition(Status::Dead, Status::Idle);
                gr.transition(Status::Idle, Status::Runnable);
                make_current(m, g.cast_mut());
                gogo(&gr.sched);
            }
            join_state::ABANDONED => throw(format_args!("goroutine {id} ended after its run did")),
            // At the end of a queue, and not in the run-next slot: a goroutine that joins one often
            // joins many, and when it runs, more of them have ended.
            waiter => ready(Parker::from_raw(waiter), false),
        }
        schedule(m)
    }
}
