#![allow(unsafe_code, reason = "a signal handler that redirects")]
//! Preemption: how a goroutine that runs too long gives way to others.
//!
//! The story, in time order:
//!
//! 1. sysmon (`sysmon.rs`) sees that an M has run one goroutine for a whole time slice. It makes
//!    a request (`handshake.rs`): it stores [`REQUESTED`], which is larger than any address, as the guard of the
//!    goroutine and of the thread, and sends SIGURG to the thread, unless one is on its way.
//! 2. JIT code that polls finds its rsp below the guard at the next poll, and calls the poll stub.
//!    Rust code does the same in [`checkpoint`], goroutine functions when they return.
//! 3. The signal handler looks where it has interrupted the thread. In JIT code that its author
//!    registered as preemptible, with room on the stack, it lets the thread go on in the *async
//!    preempt* stub. Anywhere else it does nothing: the request stands, and the next poll sees it.
//! 4. Either stub saves the whole machine state and calls a function of this file, which puts the
//!    goroutine at the end of its queue (a sticky one's is its M's) and schedules.
//! 5. Whoever makes a goroutine current sets the guard to the limit of its stack again.
//!
//! Rust and C code are never interrupted for another goroutine: an interrupted `malloc`, `Mutex`,
//! `RefCell` or lazy thread-local would be entered by the next goroutine of the thread.
//!
//! Why stale requests are harmless: whoever requests reads which goroutine an M runs, and may
//! come too late. Then the guard of a goroutine that runs no more is set, which is undone when it
//! runs again; or the thread's guard is set for the next one, which gives way early, once. The
//! handler looks at everything itself, and acknowledges every signal, also one that finds nothing.
//!
//! What the handler may touch: thread-local words, atomics of G and M, the registry, eight bytes
//! below the red zone of a goroutine's stack. No lock, no allocation, no lazy thread-local.

use std::arch::asm;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Mutex, PoisonError};

use super::config::{RunError, VectorState};
use super::float_modes::{FloatModes, put_aside_during};
use super::g::{G, Status};
use super::handshake::{self, REQUESTED, is_requested};
use super::m::M;
use super::overflow::{PANIC_STACK_BYTES, overflowed};
use super::save_area::save_area;
use super::sched::{self, this_sched};
use super::signal;
use super::stats::Stats;
use super::switch::{mcall, stack_pointer};
use super::tls::{self, getg, getm, set_g_and_guard};
use crate::jit::stubs::preempt::{self as stub, PreemptStubs, SaveArea, Targets};
use crate::jit::{Jit, RED_ZONE_BYTES, SafePoint, has_preemptible_code, lookup};

/// Stack for the functions that the stubs call, until they are on the system stack.
const TARGET_STACK_BYTES: usize = 2048;

/// What a run needs to preempt: stubs for its settings, and the stack they take.
#[derive(Clone, Copy)]
pub(crate) struct Means {
    stubs: PreemptStubs,
    /// What must be left of a stack where a goroutine is put aside.
    headroom_bytes: usize,
    /// Whether goroutines are interrupted, or give way at polls only.
    by_signal: bool,
}

impl Means {
    /// Stubs that save this state. Emitted once for each kind of area.
    pub(crate) fn new(state: VectorState, by_signal: bool) -> Result<Self, RunError> {
        static EMITTED: Mutex<Vec<(SaveArea, PreemptStubs)>> = Mutex::new(Vec::new());
        let area = save_area(state)?;
        let headroom_bytes = (area.stack_bytes() + TARGET_STACK_BYTES).max(PANIC_STACK_BYTES);
        let mut emitted = EMITTED.lock().unwrap_or_else(PoisonError::into_inner);
        let known = emitted.iter().find(|(known, _)| *known == area).map(|(_, stubs)| *stubs);
        let stubs = match known {
            Some(stubs) => stubs,
            None => {
                let jit = Jit::new().map_err(RunError::Code)?;
                let env = super::bridge::stub_env();
                let targets = Targets {
                    async_preempt: interrupted as *const () as usize,
                    poll: polled as *const () as usize,
                    overflowed: overflowed as *const () as usize,
                };
                let stubs = stub::emit(jit.arena(), env, area, headroom_bytes, targets)
                    .map_err(RunError::Code)?;
                emitted.push((area, stubs));
                stubs
            }
        };
        drop(emitted);
        if by_signal {
            signal::install_preemption(on_signal as *const () as usize);
            PID.store(std::process::id() as i32, Ordering::Relaxed);
        }
        Ok(Self { stubs, headroom_bytes, by_signal })
    }
}

/// Who sends our signals. A forked child that starts a run sets it anew.
static PID: AtomicI32 = AtomicI32::new(0);

/// The thread of an M, for those who request.
struct Thread {
    /// 0 where it takes no signals.
    tid: libc::pid_t,
    /// Its guard word: valid until the thread takes this back.
    guard: *const AtomicUsize,
}
// SAFETY: the address of an atomic.
unsafe impl Send for Thread {}

/// The part of an M that preemption is about.
pub(crate) struct Target {
    thread: Mutex<Option<Thread>>,
    /// A signal is on its way.
    pending: AtomicBool,
    /// Where the handler leads to.
    async_stub: AtomicUsize,
    headroom_bytes: AtomicUsize,
    counters: Counters,
}

/// What happened on one M. Written by its thread and its handler, but for `requested`.
#[derive(Default)]
struct Counters {
    requested: AtomicU64,
    signals: AtomicU64,
    cooperative: AtomicU64,
    asynchronous: AtomicU64,
    refused: [AtomicU64; Refusal::COUNT],
}

/// Why a request did not stop a goroutine where it was.
#[derive(Clone, Copy)]
enum Refusal {
    Stale,
    Disabled,
    Stack,
    NativeCode,
    NotPreemptible,
    UnsafeRange,
}

impl Refusal {
    const COUNT: usize = 6;
}

/// Counts one up. In a handler, too: a single instruction on this thread's counter.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Target {
    pub(crate) const fn new() -> Self {
        Self {
            thread: Mutex::new(None),
            pending: AtomicBool::new(false),
            async_stub: AtomicUsize::new(0),
            headroom_bytes: AtomicUsize::new(0),
            counters: Counters {
                requested: AtomicU64::new(0),
                signals: AtomicU64::new(0),
                cooperative: AtomicU64::new(0),
                asynchronous: AtomicU64::new(0),
                refused: [const { AtomicU64::new(0) }; Refusal::COUNT],
            },
        }
    }

    /// Forgets what an earlier run counted.
    pub(crate) fn reset(&self) {
        let Counters { requested, signals, cooperative, asynchronous, refused } = &self.counters;
        let single = [requested, signals, cooperative, asynchronous];
        single.into_iter().chain(refused).for_each(|counter| counter.store(0, Ordering::Relaxed));
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Adds what happened here to what happened elsewhere.
    pub(crate) fn add_to(&self, stats: &mut Stats) {
        let Counters { requested, signals, cooperative, asynchronous, refused } = &self.counters;
        let add = |sum: &mut u64, counter: &AtomicU64| *sum += counter.load(Ordering::Relaxed);
        add(&mut stats.requested, requested);
        add(&mut stats.signals, signals);
        add(&mut stats.cooperative, cooperative);
        add(&mut stats.asynchronous, asynchronous);
        let sums = &mut stats.refused;
        add(&mut sums.stale, &refused[Refusal::Stale as usize]);
        add(&mut sums.disabled, &refused[Refusal::Disabled as usize]);
        add(&mut sums.stack, &refused[Refusal::Stack as usize]);
        add(&mut sums.native_code, &refused[Refusal::NativeCode as usize]);
        add(&mut sums.not_preemptible, &refused[Refusal::NotPreemptible as usize]);
        add(&mut sums.unsafe_range, &refused[Refusal::UnsafeRange as usize]);
    }

    fn refuse(&self, why: Refusal) {
        count(&self.counters.refused[why as usize]);
    }

    /// The guard of a goroutine on this M that nobody asks to give way.
    #[inline(always)]
    pub(crate) fn limit_of(&self, g: &G) -> usize {
        g.stack.get().lo + self.headroom_bytes.load(Ordering::Relaxed)
    }
}

/// Makes the calling thread one that can be asked to give way, as long as the value lives.
pub(crate) struct Attached {
    m: &'static M,
    previous_mask: Option<libc::sigset_t>,
    /// What the thread has and goroutines run in.
    modes: FloatModes,
}

impl Attached {
    /// The thread is `m`. `takes_signals`: it has an alternate stack for handlers.
    pub(crate) fn new(m: &'static M, means: &Means, takes_signals: bool) -> Self {
        let by_signal = means.by_signal && takes_signals;
        m.preempt.async_stub.store(means.stubs.async_preempt, Ordering::Relaxed);
        m.preempt.headroom_bytes.store(means.headroom_bytes, Ordering::Relaxed);
        tls::set_poll_stubs(means.stubs.poll, means.stubs.stack_check);
        let modes = FloatModes::current();
        tls::set_float_modes(modes);
        let previous_mask = by_signal.then(|| signal::unblock(libc::SIGURG));
        // SAFETY: no arguments.
        let tid = if by_signal { unsafe { libc::gettid() } } else { 0 };
        let thread = Thread { tid, guard: tls::guard_word() };
        *m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Self { m, previous_mask, modes }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // From here on nobody writes to the guard word or signals the thread.
        *self.m.preempt.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        set_g_and_guard(ptr::null_mut(), 0);
        tls::set_poll_stubs(0, 0);
        // A goroutine may have left other ones behind, against its contract.
        if FloatModes::current() != self.modes {
            self.modes.load();
        }
        if let Some(mask) = &self.previous_mask {
            signal::block_as_before(libc::SIGURG, mask);
        }
    }
}

/// Asks the goroutine that an M runs to give way. Returns whether there was one to ask.
pub(crate) fn request(m: &M) -> bool {
    request_if(m, |_| true)
}

/// As [`request`], if the M runs this goroutine.
pub(crate) fn request_of(m: &M, g: &G) -> bool {
    request_if(m, |current| ptr::eq(current, g))
}

fn request_if(m: &M, is_meant: impl Fn(&G) -> bool) -> bool {
    let target = &m.preempt;
    let thread = target.thread.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Thread { tid, guard }) = *thread else {
        return false;
    };
    // SAFETY: immortal.
    let current = unsafe { handshake::current(&m.curg).as_ref() };
    let Some(g) = current.filter(|g| is_meant(g)) else {
        return false;
    };
    count(&target.counters.requested);
    m.p.rounds.end_slice();
    // SAFETY: the thread has not ended: it takes the address back first, under the lock.
    let guards = [&g.guard, unsafe { &*guard }];
    if tid == 0 || !has_preemptible_code() {
        // A signal could only disturb system calls of the program.
        handshake::ask(guards);
    } else if handshake::request(guards, &target.pending) {
        count(&target.counters.signals);
        // SAFETY: plain numbers; the thread exists.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG) };
        if sent != 0 {
            handshake::acknowledge(&target.pending);
        }
    }
    true
}

/// Asks the goroutine on one of this run's processors, by number, to give way, as sysmon would.
/// Returns whether there was one. For tests and benchmarks.
#[doc(hidden)]
pub fn request_preemption(processor: usize) -> bool {
    let m = this_sched().and_then(|sched| sched.ms().nth(processor));
    m.is_some_and(request)
}

/// SIGURG. See the head of the file.
unsafe extern "C" fn on_signal(
    number: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: clears AC, which the kernel leaves as it was interrupted: compiled code relies on
    // unaligned accesses.
    unsafe { asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
    // SAFETY: the kernel passes valid structures; an M is immortal, and this thread's.
    unsafe {
        let errno = *libc::__errno_location();
        let from_us =
            (*info).si_code == libc::SI_TKILL && (*info).si_pid() == PID.load(Ordering::Relaxed);
        // Acknowledged in all cases, and before anything is looked at: a request from now on sends
        // a signal of its own.
        let m = getm().as_ref();
        let expected = m.is_some_and(|m| handshake::acknowledge(&m.preempt.pending));
        if expected && let Some(m) = m {
            match interruption(m, &*context.cast()) {
                Ok(resume_pc) => redirect(m, &mut *context.cast(), resume_pc),
                Err(why) => m.preempt.refuse(why),
            }
        }
        // Two signals may have become one. Who else waits for SIGURG can bear one too many.
        if !(expected && from_us) {
            signal::chain(number, info, context);
        }
        *libc::__errno_location() = errno;
    }
}

fn register(context: &libc::ucontext_t, register: i32) -> usize {
    context.uc_mcontext.gregs[register as usize] as usize
}

/// Where the interrupted goroutine goes on if it is put aside here.
fn interruption(m: &M, context: &libc::ucontext_t) -> Result<usize, Refusal> {
    // SAFETY: immortal.
    let Some(g) = (unsafe { getg().as_ref() }) else {
        return Err(Refusal::Stale); // in the scheduler
    };
    if !ptr::eq(g, m.curg.load(Ordering::Relaxed)) || !is_requested(&g.guard) {
        return Err(Refusal::Stale);
    }
    if !may_give_way(g, m) {
        return Err(Refusal::Disabled);
    }
    let (pc, sp) = (register(context, libc::REG_RIP), register(context, libc::REG_RSP));
    // A goroutine that was made current, but not switched to yet, is refused here: rsp is in the
    // stack of the one before. So are system stacks, and handlers of other signals.
    if sp < m.preempt.limit_of(g) || sp > g.stack.get().hi || !sp.is_multiple_of(8) {
        return Err(Refusal::Stack);
    }
    let Some(code) = lookup(pc) else {
        return Err(Refusal::NativeCode);
    };
    match code.safe_point() {
        SafePoint::NotPreemptible => Err(Refusal::NotPreemptible),
        SafePoint::Unsafe => Err(Refusal::UnsafeRange),
        SafePoint::ResumeAt(offset_bytes) => Ok(code.start() + offset_bytes),
    }
}

/// Lets the thread go on in the stub.
///
/// # Safety
/// [`interruption`] has returned the pc for this context.
unsafe fn redirect(m: &M, context: &mut libc::ucontext_t, resume_pc: usize) {
    let sp = register(context, libc::REG_RSP) - RED_ZONE_BYTES - 8;
    // SAFETY: inside of the goroutine's stack, by the check of the headroom; below the red zone
    // nothing is alive.
    unsafe { (sp as *mut usize).write(resume_pc) };
    let gregs = &mut context.uc_mcontext.gregs;
    gregs[libc::REG_RSP as usize] = sp as i64;
    gregs[libc::REG_RIP as usize] = m.preempt.async_stub.load(Ordering::Relaxed) as i64;
}

/// Whether the goroutine, which this thread runs, can be put aside as far as its state says.
fn may_give_way(g: &G, m: &M) -> bool {
    g.status() == Status::Running
        && g.no_preempt.load(Ordering::Relaxed) == 0
        && !m.on_system_stack.get()
}

/// Called by the async stub.
extern "C" fn interrupted(_sp: usize) {
    // SAFETY: on a goroutine: the handler has looked.
    let (g, m) = unsafe { (&*getg(), &*getm()) };
    give_way(g, m, &m.preempt.counters.asynchronous);
}

/// Called by the poll stub; by code that finds no room above its guard.
extern "C" fn polled(_sp: usize) {
    poll_now();
}

/// Gives way if somebody asked for it.
#[inline(never)]
fn poll_now() {
    // SAFETY: immortal.
    let (Some(g), Some(m)) = (unsafe { (getg().as_ref(), getm().as_ref()) }) else {
        return;
    };
    if !is_requested(&g.guard) && tls::guard() != REQUESTED {
        return; // just little stack left
    }
    if may_give_way(g, m) {
        give_way(g, m, &m.preempt.counters.cooperative);
    } else {
        m.preempt.refuse(Refusal::Disabled);
    }
}

/// Puts the running goroutine aside, to the end of its queue. Inlined nowhere: the thread may be
/// another one afterwards.
#[inline(never)]
fn give_way(g: &G, m: &M, counter: &AtomicU64) {
    // The count of panics is the thread's. It may be this goroutine's, which then must come back
    // here, or that of one that parked while it unwinds, and waits for this one to give way.
    let stays = g.migratable.get() && std::thread::panicking();
    if stays {
        g.migratable.set(false);
    }
    count(counter);
    let suspend = || {
        // SAFETY: on the goroutine's stack; the system stack is free below its saved rsp.
        unsafe { mcall(&g.sched, m.system_sp.get(), sched::preempt0, ptr::from_ref(g)) };
    };
    // At a `checkpoint` the modes are the goroutine's; the stubs have loaded the thread's.
    if g.keeps_float_modes.get() {
        put_aside_during(g, suspend);
    } else {
        suspend();
    }
    if stays {
        g.migratable.set(true);
    }
}

/// Gives way to other goroutines if this one has run for its time slice. Without a request this
/// costs one compare.
///
/// Rust code is never interrupted for another goroutine, so that a long loop without channels,
/// goroutine functions and the like should call this from time to time. On a thread that runs no
/// goroutine it does nothing.
#[inline(always)]
pub fn checkpoint() {
    if stack_pointer() <= tls::guard() {
        poll_now();
    }
}

/// Runs `f` on this goroutine without giving way to others at polls or in JIT code, whatever the
/// time slice. `f` may still park by itself.
///
/// For JIT code that is entered while a lock is held which others on this thread may want.
pub fn without_preemption<R>(f: impl FnOnce() -> R) -> R {
    struct Forbidden<'a>(Option<&'a G>);
    impl Drop for Forbidden<'_> {
        fn drop(&mut self) {
            if let Some(g) = self.0 {
                g.no_preempt.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
    // SAFETY: immortal.
    let g = unsafe { getg().as_ref() };
    if let Some(g) = g {
        g.no_preempt.fetch_add(1, Ordering::Relaxed);
    }
    // The handler on this thread sees the count from the first instruction of `f` on.
    compiler_fence(Ordering::SeqCst);
    let _forbidden = Forbidden(g);
    f()
}
