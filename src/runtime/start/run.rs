#![allow(unsafe_code, reason = "threads become Ms")]
//! A run from its beginning to its end: its Ms, its main goroutine, and what it leaves behind.
//!
//! The scheduler itself (`sched.rs`) knows no beginning and no end, but for one flag: when
//! `stopping` is set, every M that comes to the scheduler leaves.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::runtime::arch::switch::{mcall, stack_pointer};
use crate::runtime::fault;
use crate::runtime::fault::report_deadlock;
use crate::runtime::gmp::current::{getm, setm};
use crate::runtime::gmp::g::TaskType;
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::queues::{GQueue, GlobalQueue};
use crate::runtime::gmp::sched::{Sched, Sysmon};
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::{g, join_state, pools};
use crate::runtime::os::signals::AltStack;
use crate::runtime::os::{futex, threads};
use crate::runtime::sched::lifecycle::{NewError, newproc};
use crate::runtime::sched::ready::goready;
use crate::runtime::sched::schedule::schedule0;
use crate::runtime::sched::{preempt, sysmon};
use crate::runtime::start::config::{Config, RunError};
use crate::runtime::start::preempt_setup::{PreemptStubs, SignalRegistration};
use crate::runtime::start::switch_stubs::emit_stubs;
use crate::runtime::sync::idle::{self, Idle};
use crate::runtime::sync::latch::CountLatch;

static RUN_IDS: AtomicU64 = AtomicU64::new(1);

/// Runs `f` on a goroutine of a new run, on this thread, and returns its result. Ends the run.
pub(crate) fn run<R>(config: &Config, f: impl FnOnce() -> R) -> Result<R, RunError> {
    if !getm().is_null() {
        return Err(RunError::Nested);
    }
    let class = config.class()?;
    futex::probe_fences();
    emit_stubs().map_err(RunError::Code)?;
    fault::install_handlers();
    let processors = config.processor_count()?;
    let slice = config.slice()?;
    let by_signal = config.is_preempted_by_signal();
    let stubs = PreemptStubs::new(config.wanted_vector_state(), by_signal)?;
    let run_id = RUN_IDS.fetch_add(1, Ordering::Relaxed);
    let ms: Vec<_> = (0..processors).map(|_| M::allocate()).collect();
    let sched = Box::new(Sched {
        run_id,
        ms,
        class,
        global: Mutex::new(GlobalQueue(GQueue::new())),
        global_len: AtomicUsize::new(0),
        global_pushed: AtomicU32::new(0),
        global_popped: AtomicU32::new(0),
        idle: Idle::new(),
        stopping: AtomicBool::new(false),
        ms_running: CountLatch::new(processors as u32),
        has_sysmon: AtomicBool::new(false),
        sysmon: Sysmon::new(),
        on_deadlock: report_deadlock,
    });
    let sched: &'static Sched = Box::leak(sched);
    for (id, m) in sched.ms.iter().enumerate() {
        m.id.set(id);
        m.run_id.store(run_id, Ordering::Relaxed);
        m.sched.store(ptr::from_ref(sched).cast_mut(), Ordering::Release);
    }
    let mut threads = Vec::new();
    let mut failed = None;
    for &m in &sched.ms[1..] {
        let thread = std::thread::Builder::new().name(format!("footbridge-m{}", m.id.get()));
        let body = move || {
            mstart(m, &stubs);
            // Thread-locals of this thread may be borrowed by goroutines of others: `latch.rs`.
            let sleep = |word: &_, value| futex::wait(word, value, None);
            sched.ms_running.count_down_and_wait(futex::wake_all, sleep);
        };
        match thread.spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                failed = Some(RunError::Thread { errno: error.raw_os_error().unwrap_or(0) });
                break;
            }
        }
    }
    let mut watcher = None;
    if let Some(slice) = slice
        && failed.is_none()
    {
        let thread = std::thread::Builder::new().name("footbridge-sysmon".into());
        match thread.spawn(move || sysmon::run(sched, slice)) {
            Ok(thread) => watcher = Some(thread),
            Err(error) => {
                failed = Some(RunError::Thread { errno: error.raw_os_error().unwrap_or(0) });
            }
        }
    }
    sched.has_sysmon.store(watcher.is_some(), Ordering::Relaxed);
    let result = match failed {
        Some(error) => Err(error),
        None => run_main(sched, &stubs, f),
    };
    stop(sched);
    // This M runs no goroutine any more, and those whose threads were not made never did.
    sched.ms_running.count_down((processors - threads.len()) as u32, futex::wake_all);
    for thread in threads {
        // An M's thread returns from mstart or aborts the process.
        let _ = thread.join();
    }
    if let Some(watcher) = watcher {
        sched.sysmon.end();
        watcher.join().expect("sysmon does not panic");
    }
    abandon_goroutines(run_id);
    pools::close(sched.ms().map(|m| &m.p.pools));
    for &m in &sched.ms {
        m.sched.store(ptr::null_mut(), Ordering::Relaxed);
        m.release();
    }
    // SAFETY: leaked above; all Ms have left and no structure refers to it any more.
    drop(unsafe { Box::from_raw(ptr::from_ref(sched).cast_mut()) });
    match result? {
        Ok(value) => Ok(value),
        Err(payload) => panic::resume_unwind(payload),
    }
}

type MainResult<R> = Result<R, Box<dyn Any + Send>>;

/// The main goroutine, bound to the calling thread, which is the first M.
fn run_main<R>(
    sched: &'static Sched,
    stubs: &PreemptStubs,
    f: impl FnOnce() -> R,
) -> Result<MainResult<R>, RunError> {
    struct Main<'a, F, R> {
        f: Option<F>,
        result: &'a mut Option<MainResult<R>>,
        sched: &'static Sched,
    }
    unsafe fn run<F: FnOnce() -> R, R>(data: *mut u8) {
        // SAFETY: `run_main` wrote a Main there; it outlives the goroutine, since the caller's
        // frame waits for it.
        let main = unsafe { &mut *data.cast::<*mut Main<'_, F, R>>().read() };
        let f = main.f.take().expect("run once");
        *main.result = Some(panic::catch_unwind(AssertUnwindSafe(f)));
        stop(main.sched);
    }
    unsafe fn drop_nothing(_: *mut u8) {}
    struct Type<F, R>(std::marker::PhantomData<(F, R)>);
    impl<F: FnOnce() -> R, R> Type<F, R> {
        const TASK: TaskType = TaskType { run: run::<F, R>, drop_result: drop_nothing };
    }
    let m = sched.ms[0];
    let mut result = None;
    let mut main = Main { f: Some(f), result: &mut result, sched };
    let task = task_of::<_, R>(&main.f);
    fn task_of<F: FnOnce() -> R, R>(_: &Option<F>) -> &'static TaskType {
        const { &Type::<F, R>::TASK }
    }
    let previous_m = getm();
    debug_assert!(previous_m.is_null());
    setm(ptr::from_ref(m).cast_mut());
    let started = newproc(sched.class, size_of::<usize>(), align_of::<usize>()).map(|new| {
        // SAFETY: room for one pointer was reserved there.
        unsafe { new.data().cast::<*mut u8>().write((&raw mut main).cast()) };
        new.start(task, join_state::DETACHED, false, true, None);
    });
    if started.is_ok() {
        mstart(m, stubs);
    }
    setm(ptr::null_mut());
    if let Err(NewError { error }) = started {
        return Err(RunError::Stack(error));
    }
    Ok(result.expect("the run goes on until the main goroutine has left its result"))
}

/// Ends a run: every M leaves when it comes to the scheduler.
fn stop(sched: &Sched) {
    idle::stop(sched, |_, word| futex::wake(word));
    // Who computes does not come to the scheduler by himself.
    if sched.has_sysmon.load(Ordering::Relaxed) {
        let others = sched.ms.iter().filter(|m| !ptr::eq(**m, getm()));
        others.for_each(|m| {
            preempt::request(m);
        });
    }
}

/// Makes the calling thread the M until the run is over.
fn mstart(m: &'static M, stubs: &PreemptStubs) {
    let alt_stack = AltStack::install();
    setm(ptr::from_ref(m).cast_mut());
    m.system_stack.set(threads::stack_bounds());
    // Without an alternate stack a handler would need more room than a goroutine may have.
    let _registration = SignalRegistration::new(m, stubs, alt_stack.is_some());
    // The frame of this function stays; the scheduler works below it and its red zone.
    m.system_sp.set((stack_pointer() - 128) & !15);
    // SAFETY: `g0` is the Gobuf of this stack; below system_sp nothing is alive while the
    // scheduler runs, since this frame only waits.
    unsafe { mcall(&m.g0, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    setm(ptr::null_mut());
}

/// Marks the goroutines that a run leaves behind. They are never resumed; what they own is leaked,
/// and their stacks stay, since others may hold addresses into them.
fn abandon_goroutines(run_id: u64) {
    for g in g::all() {
        // The status first: another run may take a dead G, and then sets the run before the status.
        let live = !matches!(g.status(), Status::Idle | Status::Dead);
        let left = live && g.run_id.load(Ordering::Relaxed) == run_id;
        if left {
            let waiter = g.join.swap(join_state::ABANDONED, Ordering::AcqRel);
            if waiter >= join_state::MIN_WAITER {
                let waiter = Parker::from_raw(waiter);
                // SAFETY: immortal.
                let other = unsafe { &*waiter.0 };
                // A waiter of the same run is left behind itself.
                if other.is_thread.get() || other.run_id.load(Ordering::Relaxed) != run_id {
                    // SAFETY: it parked in `join` and is readied by whoever takes its address.
                    unsafe { goready(waiter) };
                }
            }
        }
    }
}
