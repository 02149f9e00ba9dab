#![allow(unsafe_code, reason = "goroutines begin and end on raw stacks")]
//! A goroutine from its first instruction to its last: where its G and its stack come from, what
//! it runs first, and how it ends.
//!
//! What is put at the top of its stack, and who takes the result, is the business of `task/`.

use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runtime::arch::switch::{gogo, goroutine_entry, mcall};
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
use crate::runtime::stack;
use crate::runtime::stack::{SizeClass, StackError};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A goroutine that could not be started.
pub(crate) struct NewError {
    pub(crate) error: StackError,
}

/// Gives back a dead goroutine that nobody refers to any more.
pub(crate) fn gfput(g: *mut G) {
    // SAFETY: immortal, dead, and ours.
    let gr = unsafe { &*g };
    gr.transition(Status::Dead, Status::Idle);
    // SAFETY: this thread's M, if it is one; nobody refers to the goroutine any more.
    unsafe { pools::put(getm().as_ref().map(|m| &m.p.pools), g) };
}

/// Offset of a stack's top from its end: spreads the hottest lines over cache sets.
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
    // SAFETY: this thread's M.
    unsafe { sched_of(&*m) }.class
}

/// A new goroutine before it is queued: idle, with room for a task at the top of its stack.
pub(crate) struct NewGoroutine {
    g: *mut G,
    data: *mut u8,
}

/// Takes a G of the class and reserves `size` bytes (at most [`task_room`]) at the top of its
/// stack. The thread is an M: [`current_class`] has found that out.
pub(crate) fn newproc(
    class: SizeClass,
    size: usize,
    align: usize,
) -> Result<NewGoroutine, NewError> {
    // SAFETY: a thread of a run.
    let m = unsafe { this_m() };
    let g = pools::take(Some(&m.p.pools), class).map_err(|error| NewError { error })?;
    // SAFETY: immortal and ours.
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
        // SAFETY: `newproc` found that the thread is an M; the G is ours until it is queued.
        let (m, gr) = unsafe { (this_m(), &*g) };
        gr.task.set(Some(task));
        gr.data.set(data);
        gr.join.store(join, Ordering::Relaxed);
        gr.migratable.set(migratable);
        gr.result_dropped.set(false);
        gr.no_preempt.store(0, Ordering::Relaxed);
        let home = if pinned { ptr::from_ref(m).cast_mut() } else { ptr::null_mut() };
        gr.m.store(home, Ordering::Relaxed);
        gr.run_id.store(m.run_id.load(Ordering::Relaxed), Ordering::Relaxed);
        // The number changes between the names: see `name.rs`.
        gr.name.clear();
        gr.id.store(next_id(m), Ordering::Relaxed);
        if let Some(name) = name {
            gr.name.set(name);
        }
        gr.anchor.clear();
        // The entry stub calls: rsp is 16-aligned there.
        gr.sched.start_at(goroutine_entry(), data as usize & !15);
        gr.lowest_sp.set(usize::MAX);
        gr.transition(Status::Idle, Status::Runnable);
        enqueue(m, g);
        if !pinned {
            // SAFETY: this thread's M.
            unsafe { sched_of(m) }.wake_one();
        }
        g
    }
}

fn next_id(m: &M) -> u64 {
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

/// Where every goroutine starts, called by the entry stub with the address of its G (a Gobuf is
/// the first field of it).
pub(crate) extern "C-unwind" fn goroutine_main(g: *const G) -> ! {
    // SAFETY: the running goroutine; `start` set its task.
    unsafe {
        let task = (*g).task.get().expect("set before the goroutine was queued");
        (task.run)((*g).data.get());
        if (*g).join.load(Ordering::Acquire) == join_state::DETACHED {
            drop_result(&*g, task);
        }
        loop {
            // Destructors may ask for modes of their own, too, so this stands behind each of them.
            fp_control::end(&*g);
            let m = this_m();
            mcall(&(*g).sched, m.system_sp.get(), goexit0, g);
            // Continued: the handle went away in between.
            drop_result(&*g, task);
        }
    }
}

pub(crate) fn drop_result(g: &G, task: &TaskType) {
    // SAFETY: the task has run and its result was not taken: the handle is gone.
    let dropped =
        panic::catch_unwind(AssertUnwindSafe(|| unsafe { (task.drop_result)(g.data.get()) }));
    if dropped.is_err() {
        let id = g.id.load(Ordering::Relaxed);
        throw(format_args!("the result of goroutine {id} panicked while it was dropped"));
    }
    g.result_dropped.set(true);
}

/// The end of a goroutine, on the system stack.
unsafe extern "C" fn goexit0(g: *const G) -> ! {
    // SAFETY: on the system stack of this M; the goroutine's context is saved and it has nothing
    // more to do, except to drop a result that nobody can take.
    unsafe {
        let m = this_m();
        set_g_and_stack_limit(ptr::null_mut(), 0);
        let gr = &*g;
        let id = gr.id.load(Ordering::Relaxed);
        debug_assert!(id != 0);
        // What is above its rsp is the task with its result, and the frame to continue in.
        gr.stack.get().decommit_below(gr.lowest_sp.get(), gr.sched.sp());
        gr.transition(Status::Running, Status::Dead);
        match gr.join.swap(join_state::FINISHED, Ordering::AcqRel) {
            join_state::JOINABLE => {}
            join_state::DETACHED if gr.result_dropped.get() => gfput(g.cast_mut()),
            join_state::DETACHED => {
                // Only the goroutine itself may run the destructor: continue it once more.
                gr.join.store(join_state::DETACHED, Ordering::Relaxed);
                gr.transition(Status::Dead, Status::Idle);
                gr.transition(Status::Idle, Status::Runnable);
                make_current(m, g.cast_mut());
                gogo(&gr.sched);
            }
            join_state::ABANDONED => throw(format_args!("goroutine {id} ended after its run did")),
            // Who joins one goroutine often joins many: when its turn comes, more have ended.
            waiter => ready(Parker::from_raw(waiter), false),
        }
        schedule(m)
    }
}
