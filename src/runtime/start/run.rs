#![allow(unsafe_code, reason = "threads become Ms")]
//! A run from its beginning to its end: its Ms, its main goroutine, and what it leaves.
//!
//! The scheduler (`sched/`) knows no beginning and no end but one flag: when `stopping` is set,
//! every M that enters the scheduler leaves it for good. Everything else about start and stop is
//! here.
//!
//! # Start
//!
//! 1. `run` checks the settings and makes what the process needs once: the fences (`os/futex`), the
//!    stubs that switch stacks (`emit_stubs`), the handlers of faults, and the preemption stubs for
//!    these settings (`PreemptStubs::new`). Nothing of a run exists yet, so each refusal just
//!    returns.
//! 2. It allocates the Ms and makes the `Sched`, leaked, so that all threads can refer to it.
//! 3. `start_threads` starts a thread for every M but the first, and one for sysmon. Each M's
//!    thread calls `mstart`: alternate stack, bounds of the system stack, `SignalRegistration`,
//!    `ThreadPanicState`, scheduler.
//! 4. `run_main` queues the main goroutine on the first M, which the calling thread becomes: it
//!    calls `mstart` itself. The main goroutine is bound to this thread, since `f` need not be
//!    `Send`.
//!
//! # Stop
//!
//! 1. The main goroutine has left its result, and calls `stop`. If a thread was refused in step 3
//!    above, `run` calls it right away: the Ms that did start must leave.
//! 2. `stop` sets `stopping`, crosses a heavy fence, and wakes every M: one that went to sleep
//!    before it could see the flag sees its wake-up. Ms that run a goroutine are requested to
//!    preempt it, as no code that computes enters the scheduler by itself.
//! 3. Each M leaves the scheduler, and `mstart` returns. Goroutines stay where they are: queued,
//!    parked, or preempted.
//! 4. Each thread counts `ms_running` down, and waits for the others. **No thread ends before the
//!    last goroutine has stopped**: thread-locals of an ended thread are freed, and a goroutine of
//!    another thread may hold a borrow of them (`sync/latch.rs`).
//! 5. `run` joins the threads, and ends sysmon after them: until then it preempts what still runs.
//! 6. `abandon_goroutines` marks what is left, and wakes threads and goroutines of other runs that
//!    join one. An abandoned goroutine is never resumed. What it owns is leaked and its stack
//!    stays, since other code may hold addresses into it.
//! 7. Caches of dead goroutines go to the pools that all runs share, the Ms are released for the
//!    next run, and the `Sched` is freed: no M refers to it any more.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, ptr};

use crate::jit::{RED_ZONE_BYTES, is_bare_child};
use crate::runtime::arch::switch::{mcall, stack_pointer};
use crate::runtime::fault;
use crate::runtime::fault::{report_deadlock, report_stalls};
use crate::runtime::gmp::current::{getg, getm, setm};
use crate::runtime::gmp::g::{G, TaskType};
use crate::runtime::gmp::m::M;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::queues::{GQueue, GlobalQueue};
use crate::runtime::gmp::sched::{Sched, Sysmon};
use crate::runtime::gmp::status::Status;
use crate::runtime::gmp::{g, join_state, pools};
use crate::runtime::os::signals::AltStack;
use crate::runtime::os::{futex, threads};
use crate::runtime::sched::find::max_inherited;
use crate::runtime::sched::lifecycle::{NewError, end_locals, newproc};
use crate::runtime::sched::panic_state::{ThreadPanicState, with_state_of_thread};
use crate::runtime::sched::ready::goready;
use crate::runtime::sched::schedule::schedule0;
use crate::runtime::sched::{preempt, sysmon, watchdog};
use crate::runtime::stack::SizeClass;
use crate::runtime::stack::Stack;
use crate::runtime::start::config::{Config, RunError};
use crate::runtime::start::preempt_setup::{PreemptStubs, SignalRegistration};
use crate::runtime::start::switch_stubs::emit_stubs;
use crate::runtime::sync::idle::{self, Idle};
use crate::runtime::sync::latch::CountLatch;

/// The number of the next run. A G that was never used has 0.
static RUN_IDS: AtomicU64 = AtomicU64::new(1);

impl Config {
    /// Runs `f` as the main goroutine of a run with these settings.
    ///
    /// The calling thread becomes one of the threads of the run, and the main goroutine stays on
    /// it. The run ends when `f` returns or panics: then no other goroutine of the run continues.
    /// One that has not finished is abandoned: it is never resumed, what it owns is leaked, and
    /// a join of it returns [`Abandoned`](crate::runtime::Abandoned).
    ///
    /// ```
    /// use footbridge::runtime::{Chan, Config, go};
    ///
    /// let sum = Config::new().processors(2).run(|| {
    ///     let numbers = Chan::new(4);
    ///     let producer = numbers.clone();
    ///     let handle = go(move || {
    ///         (1..=10_u64).for_each(|n| producer.send(n).expect("open"));
    ///         producer.close();
    ///     });
    ///     let sum = numbers.iter().sum();
    ///     handle.join().expect("no panic");
    ///     sum
    /// });
    /// assert_eq!(sum, Ok(55));
    /// ```
    ///
    /// # Errors
    /// A setting is out of range, `run` was called on a goroutine, or the host refused memory or a
    /// thread.
    ///
    /// # Panics
    /// With the panic of `f`.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> Result<R, RunError> {
        run(self, f)
    }
}

/// Runs `f` on a goroutine of a new run, on this thread, and returns its result. Ends the run.
fn run<R>(config: &Config, f: impl FnOnce() -> R) -> Result<R, RunError> {
    if !getm().is_null() {
        return Err(RunError::Nested);
    }
    if is_bare_child() {
        return Err(RunError::BareChild);
    }
    let class = config.class()?;
    futex::probe_fences();
    emit_stubs().map_err(RunError::Code)?;
    let fault_reports = config.reports_faults();
    fault::install_handlers(fault_reports);
    let processors = config.processor_count()?;
    let slice = config.slice()?;
    let by_signal = config.by_signal()?;
    let stubs = PreemptStubs::new(config.wanted_vector_state(), by_signal)?;
    let sched = new_sched(config, processors, class, fault_reports);
    let max_inherited = max_inherited(slice.is_some());
    sched.ms().for_each(|m| m.p.ticks.max_inherited.set(max_inherited));
    let (threads, failed) = start_threads(sched, &stubs, slice);
    sched.has_sysmon.store(threads.sysmon.is_some(), Ordering::Relaxed);
    let result = match failed {
        Some(error) => Err(error),
        None => run_main(sched, &stubs, f),
    };
    stop(sched);
    // For this M, which runs no goroutine any more, and for those whose threads were not started.
    sched.ms_running.count_down((processors - threads.ms.len()) as u32, futex::wake_all);
    for thread in threads.ms {
        // An M's thread returns from mstart or aborts the process.
        let _ = thread.join();
    }
    if let Some(sysmon) = threads.sysmon {
        sched.sysmon.end();
        sysmon.join().expect("sysmon does not panic");
    }
    abandon_goroutines(sched);
    pools::close(sched.ms().map(|m| &m.p.pools));
    for &m in &sched.ms {
        m.sched.store(ptr::null_mut(), Ordering::Relaxed);
        m.release();
    }
    // SAFETY: `new_sched` leaked it. All Ms have left, and no structure refers to it any more.
    drop(unsafe { Box::from_raw(ptr::from_ref(sched).cast_mut()) });
    match result? {
        Ok(value) => Ok(value),
        Err(payload) => panic::resume_unwind(payload),
    }
}

/// A new runtime instance, whose Ms refer to it.
fn new_sched(
    config: &Config,
    processors: usize,
    class: SizeClass,
    fault_reports: bool,
) -> &'static Sched {
    let run_id = RUN_IDS.fetch_add(1, Ordering::Relaxed);
    let sched: &'static Sched = Box::leak(Box::new(Sched {
        run_id,
        ms: (0..processors).map(|_| M::allocate()).collect(),
        class,
        global: Mutex::new(GlobalQueue(GQueue::new())),
        global_len: AtomicUsize::new(0),
        global_pushed: AtomicU32::new(0),
        global_popped: AtomicU32::new(0),
        idle: Idle::new(),
        stopping: AtomicBool::new(false),
        ms_running: CountLatch::new(processors as u32),
        has_time_slices: config.has_time_slices(),
        has_sysmon: AtomicBool::new(false),
        sysmon: Sysmon::new(),
        fault_reports,
        on_deadlock: report_deadlock,
        watchdog: config.watchdog_limit(),
        on_stall: report_stalls,
    }));
    for (id, m) in sched.ms.iter().enumerate() {
        m.id.set(id);
        m.run_id.store(run_id, Ordering::Relaxed);
        m.sched.store(ptr::from_ref(sched).cast_mut(), Ordering::Release);
    }
    sched
}

/// The threads that a run has started.
struct Threads {
    ms: Vec<JoinHandle<()>>,
    sysmon: Option<JoinHandle<()>>,
}

/// Starts the threads of all Ms but the first, and that of sysmon where there are time slices (else
/// that of the watchdog). Ends at the first thread that the system refuses, with the error.
fn start_threads(
    sched: &'static Sched,
    stubs: &PreemptStubs,
    slice: Option<Duration>,
) -> (Threads, Option<RunError>) {
    let mut threads = Threads { ms: Vec::new(), sysmon: None };
    let refused = |error: io::Error| RunError::Thread { errno: error.raw_os_error().unwrap_or(0) };
    for &m in &sched.ms[1..] {
        let stubs = *stubs;
        let body = move || {
            mstart(m, &stubs);
            // No thread ends before the last goroutine has stopped: see the head of the file.
            let sleep = |word: &_, value| futex::wait(word, value, None);
            sched.ms_running.count_down_and_wait(futex::wake_all, sleep);
        };
        match thread::Builder::new().name(format!("footbridge-m{}", m.id.get())).spawn(body) {
            Ok(thread) => threads.ms.push(thread),
            Err(error) => return (threads, Some(refused(error))),
        }
    }
    if let Some(slice) = slice {
        let body = move || sysmon::run(sched, slice);
        match thread::Builder::new().name("footbridge-sysmon".into()).spawn(body) {
            Ok(thread) => threads.sysmon = Some(thread),
            Err(error) => return (threads, Some(refused(error))),
        }
    } else if sched.watchdog.is_some() {
        // A run can do without it.
        let body = move || watchdog::run(sched);
        threads.sysmon = thread::Builder::new().name("footbridge-watchdog".into()).spawn(body).ok();
    }
    (threads, None)
}

/// What the main goroutine leaves: a value, or the payload of its panic.
type MainResult<R> = Result<R, Box<dyn Any + Send>>;

/// Runs `f` as the main goroutine, bound to the calling thread, which becomes the first M until the
/// run stops.
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
        // SAFETY: `run_main` wrote the address of a Main there. It outlives the goroutine, since
        // the frame of `run_main` stays until the run has stopped.
        let main = unsafe { &mut *data.cast::<*mut Main<'_, F, R>>().read() };
        let f = main.f.take().expect("a goroutine runs its task once");
        *main.result = Some(with_state_of_thread(|| {
            let result = panic::catch_unwind(AssertUnwindSafe(f));
            // While it may still park.
            // SAFETY: on the main goroutine; a G is never freed.
            unsafe { end_locals(&*getg()) };
            result
        }));
        stop(main.sched);
    }
    unsafe fn drop_nothing(_: *mut u8) {}
    struct Type<F, R>(std::marker::PhantomData<(F, R)>);
    impl<F: FnOnce() -> R, R> Type<F, R> {
        const TASK: TaskType =
            TaskType { run: run::<F, R>, drop_result: drop_nothing, is_boxed: false };
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
        // SAFETY: `newproc` reserved room for one pointer, with its alignment.
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
    Ok(result.expect("the run stops only after the main goroutine has left its result"))
}

/// Makes every M leave the scheduler when it enters it. Called twice in most runs: by the main
/// goroutine, and once more by `run`, which cannot know whether it was.
fn stop(sched: &Sched) {
    idle::stop(sched, |_, word| futex::wake(word));
    // A goroutine that computes does not enter the scheduler by itself.
    if sched.has_time_slices {
        let others = sched.ms.iter().filter(|m| !ptr::eq(**m, getm()));
        others.for_each(|m| {
            preempt::request(m);
        });
    }
}

/// Makes the calling thread the M, and runs the scheduler on it until the run stops.
fn mstart(m: &'static M, stubs: &PreemptStubs) {
    let alt_stack = AltStack::install();
    setm(ptr::from_ref(m).cast_mut());
    let (lo, hi) = threads::stack_bounds();
    m.system_stack.set(Stack { lo, hi });
    m.tid.store(threads::current_tid(), Ordering::Relaxed);
    // Without an alternate stack the handler of a signal would need more room than a goroutine may
    // have, so the thread gets no signal then.
    let _registration = SignalRegistration::new(m, stubs, alt_stack.is_some());
    let _panic_state = ThreadPanicState::take(m);
    // The frame of this function stays. The scheduler uses the stack below it and its red zone.
    m.system_sp.set((stack_pointer() - RED_ZONE_BYTES) & !15);
    #[cfg(footbridge_asan)]
    {
        crate::instrument::asan::register_thread(lo, hi, m.system_sp.get());
    }
    // SAFETY: `g0` is the Gobuf of this stack. Below system_sp nothing is alive while the scheduler
    // runs, since this frame only waits.
    unsafe { mcall(&m.g0, m.system_sp.get(), schedule0, ptr::from_ref(m)) };
    setm(ptr::null_mut());
}

/// The Gs that a run may have used.
fn used_gs(sched: &Sched) -> impl Iterator<Item = &'static G> {
    let slabs: BTreeSet<u32> = sched.ms().flat_map(|m| m.p.slabs.iter()).collect();
    slabs.into_iter().flat_map(g::slab)
}

/// Marks the goroutines that a run leaves, and readies those of other runs, and threads, that wait
/// for one of them.
fn abandon_goroutines(sched: &Sched) {
    let run_id = sched.run_id;
    for g in used_gs(sched) {
        // The status first: another run may take a dead G, and sets the run before the status.
        let live = !matches!(g.status(), Status::Idle | Status::Dead);
        let left = live && g.run_id.load(Ordering::Relaxed) == run_id;
        if left {
            let waiter = g.join.swap(join_state::ABANDONED, Ordering::AcqRel);
            if waiter >= join_state::MIN_WAITER {
                let waiter = Parker::from_raw(waiter);
                // SAFETY: a G, which is never freed.
                let other = unsafe { &*waiter.0 };
                // A waiter of the same run is abandoned itself.
                if other.is_thread.get() || other.run_id.load(Ordering::Relaxed) != run_id {
                    // SAFETY: it parked in `join`, and the swap gave its address to this thread
                    // only: one that takes the address readies it.
                    unsafe { goready(waiter) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::gmp::current::this_sched;
    use crate::runtime::{Chan, go, gosched};

    /// The end of a run inspects what the run has used, and not what the process ever had.
    #[test]
    fn a_run_uses_few_gs_after_one_that_used_many() {
        const MANY: usize = 5000;
        let config = Config::new().processors(1).stack_bytes(16 << 10);
        let used = || used_gs(this_sched().expect("on a goroutine")).count();
        let (many, left) = config
            .run(|| {
                let never = Chan::<()>::new(0);
                let handles: Vec<_> = (0..MANY)
                    .map(|_| {
                        let never = never.clone();
                        go(move || never.recv())
                    })
                    .collect();
                gosched();
                (used(), handles)
            })
            .expect("the run starts");
        assert!(many >= MANY, "{many}");
        let one = config.run(used).expect("the run starts");
        let slab = g::slab(0).len();
        assert_eq!(one, slab, "the main goroutine alone");
        for handle in left {
            let payload = handle.join().expect_err("abandoned");
            assert!(payload.is::<crate::runtime::Abandoned>());
        }
    }
}
