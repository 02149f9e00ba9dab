#![allow(unsafe_code, reason = "goroutines that borrow")]
//! Scopes: goroutines that borrow from their surroundings, and end before these do.
//!
//! A scope belongs to the run that it was opened in, and starts goroutines of that run only. The
//! end of a run abandons goroutines. If they belonged to a scope that outlives the run, that scope
//! could neither wait for them, since they never end, nor return: an abandoned goroutine may have
//! lent what it borrowed to a thread that still runs, by `std::thread::scope` for example. Within
//! its run a scope ends before `run` returns if the main goroutine owns it, since that one waits;
//! any other owner is abandoned together with its goroutines.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::spawn::spawn;
use crate::runtime::gmp::current::{getg, this_sched};
use crate::runtime::gmp::g::G;
use crate::runtime::gmp::parker::Parker;
use crate::runtime::gmp::status::WaitReason;
use crate::runtime::sched::park::{current, gopark, may_park, refuse_park};
use crate::runtime::sched::ready::goready;
use crate::runtime::sync::CachePadded;
use crate::runtime::task::join::{JoinHandle, JoinResult};
use crate::runtime::task::spawn::{Settings, SpawnError};

/// What the goroutines of a scope share with it.
///
/// The owner, which runs the scope, counts its own starts apart: a count that it shared with the
/// goroutines that end would bounce between two processors. All others use one word: how many have
/// left, less those that others than the owner have started. When the owner waits it settles the
/// two by one addition: from then on the word is [`ALL_LEFT`] less those that still run. So a
/// goroutine that leaves knows by its own addition whether it is the last one, and reads nothing
/// afterwards: the scope may be gone.
struct ScopeData {
    /// The goroutine that runs the scope.
    owner: *const G,
    /// The run that the scope was opened in. 0: none.
    run_id: u64,
    /// How many the owner has started.
    started: CachePadded<AtomicUsize>,
    left: CachePadded<AtomicUsize>,
    panicked: AtomicBool,
    waiter: Mutex<Parker>,
}

// SAFETY: the owner is an address that is compared.
unsafe impl Sync for ScopeData {}

/// The run of the calling thread. 0: none.
fn this_run_id() -> u64 {
    this_sched().map_or(0, |sched| sched.run_id())
}

/// No count of goroutines comes near it, from zero up or down.
const ALL_LEFT: usize = 1 << (usize::BITS - 1);

impl ScopeData {
    fn new() -> Self {
        Self {
            owner: getg(),
            run_id: this_run_id(),
            started: CachePadded::new(AtomicUsize::new(0)),
            left: CachePadded::new(AtomicUsize::new(0)),
            panicked: AtomicBool::new(false),
            waiter: Mutex::new(Parker::NONE),
        }
    }

    fn start(&self) {
        if ptr::eq(getg(), self.owner) {
            let started = self.started.load(Ordering::Relaxed);
            self.started.store(started + 1, Ordering::Relaxed);
        } else {
            self.left.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes [`Self::start`] back: no goroutine was started. The caller runs in the scope, so it is
    /// not the last one to leave.
    fn cancel_start(&self) {
        if ptr::eq(getg(), self.owner) {
            let started = self.started.load(Ordering::Relaxed);
            self.started.store(started - 1, Ordering::Relaxed);
        } else {
            self.left.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Owner only. Whether all have left. Acquire: what they did is seen.
    fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == self.started.load(Ordering::Relaxed)
    }

    /// One leaves; the last one wakes the scope if that waits.
    fn leave(&self) {
        self.add_left(1);
    }

    /// Owner only, once: the scope has set the waiter, and parks until it is readied.
    fn wait(&self) {
        self.add_left(ALL_LEFT - self.started.load(Ordering::Relaxed));
    }

    fn add_left(&self, count: usize) {
        if self.left.fetch_add(count, Ordering::AcqRel).wrapping_add(count) == ALL_LEFT {
            let waiter = *self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the scope waits, and the word becomes this once: all have left, so that none
            // starts or leaves any more.
            unsafe { goready(waiter) };
        }
    }
}

/// Where goroutines can be started that borrow from the surroundings. See [`scope`].
pub struct Scope<'scope, 'env: 'scope> {
    data: ScopeData,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("panicked", &self.data.panicked.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// Leaves the scope when it is dropped: by a panic, or after the value of the goroutine.
struct Leave<'scope> {
    data: &'scope ScopeData,
    returned: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.returned {
            self.data.panicked.store(true, Ordering::Relaxed);
        }
        self.data.leave();
    }
}

/// A [`JoinHandle`] of a scope. A scope whose handle is forgotten (`mem::forget`) waits for ever.
pub struct ScopedJoinHandle<'scope, T>(JoinHandle<(T, Leave<'scope>)>);

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the goroutine to end.
    ///
    /// ```
    /// use footbridge::runtime;
    /// let words = ["two", "words"];
    /// let letters = runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         let handles = words.each_ref().map(|word| s.go(|| word.len()));
    ///         handles.map(|handle| handle.join().expect("no panic"))
    ///     })
    /// });
    /// assert_eq!(letters, [3, 5]);
    /// ```
    ///
    /// # Errors
    /// The payload of its panic.
    ///
    /// # Panics
    /// Where it would have to park in [`systemstack`](crate::runtime::systemstack).
    #[track_caller]
    pub fn join(self) -> JoinResult<T> {
        self.0.join().map(|(value, _leave)| value)
    }

    /// Whether `join` would return at once.
    ///
    /// ```
    /// use footbridge::runtime::{self, gosched};
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         let handle = s.go(|| ());
    ///         while !handle.is_finished() {
    ///             gosched();
    ///         }
    ///     });
    /// });
    /// ```
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The number of the goroutine, as tracebacks print it.
    ///
    /// ```
    /// use footbridge::runtime::{self, this_goroutine};
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         let handle = s.go(|| this_goroutine().expect("on a goroutine").id());
    ///         let id = handle.id();
    ///         assert_eq!(handle.join().expect("no panic"), id);
    ///     });
    /// });
    /// ```
    pub fn id(&self) -> u64 {
        self.0.id()
    }

    /// The name of the goroutine, if [`Builder::name`](super::Builder::name) gave it one.
    ///
    /// ```
    /// use footbridge::runtime::{self, Builder};
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         let pump = Builder::new().name("pump").go_scoped(s, || ()).expect("memory");
    ///         assert_eq!(pump.name(), Some("pump"));
    ///     });
    /// });
    /// ```
    pub fn name(&self) -> Option<&str> {
        self.0.name()
    }
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scoped{:?}", self.0)
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a goroutine that ends before the scope does.
    ///
    /// ```
    /// use footbridge::runtime;
    /// let mut numbers = [1, 2, 3];
    /// runtime::run(|| {
    ///     runtime::scope(|s| {
    ///         for number in &mut numbers {
    ///             s.go(|| *number *= 10);
    ///         }
    ///     });
    /// });
    /// assert_eq!(numbers, [10, 20, 30]);
    /// ```
    ///
    /// # Panics
    /// On a thread that no [`run`](crate::runtime::run) owns; in another run than the one that the
    /// scope was opened in; when there is no memory for a stack
    /// ([`Builder::go_scoped`](super::Builder::go_scoped) returns an error then).
    #[track_caller]
    pub fn go<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        match self.go_with(Settings::of_run(), f) {
            Ok(handle) => handle,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`Self::go`], with these settings, but that the goroutine does not migrate.
    #[track_caller]
    pub(super) fn go_with<F, T>(
        &'scope self,
        settings: Settings,
        f: F,
    ) -> Result<ScopedJoinHandle<'scope, T>, SpawnError<F>>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        let settings = Settings { migratable: false, ..settings };
        assert!(
            self.data.run_id == this_run_id(),
            "a scope starts goroutines of the run that it was opened in, and this is another run: \
             open the scope inside of this run, since the end of the run would abandon goroutines \
             that the scope waits for"
        );
        self.data.start();
        let data = &self.data;
        // `body` owns the closure from here on. If it cannot be started it is forgotten, and this
        // is the closure again.
        let kept = ManuallyDrop::new(f);
        // SAFETY: `kept` is not used unless `body` was forgotten.
        let f = unsafe { ptr::read(&raw const *kept) };
        let body = move || {
            let mut leave = Leave { data, returned: false };
            let value = f();
            leave.returned = true;
            // The value may borrow from the scope: the scope waits until it is gone, too.
            (value, leave)
        };
        // SAFETY: the scope does not return before every goroutine has left it, and `scope` does
        // not unwind past that either. A goroutine leaves when its closure and its value are gone,
        // wherever the value is dropped; a join takes it within 'scope. Both types may go to
        // another thread, and the goroutine does not migrate.
        match unsafe { spawn(settings, body) } {
            Ok(handle) => Ok(ScopedJoinHandle(JoinHandle(handle))),
            Err(SpawnError { error, f: body }) => {
                std::mem::forget(body);
                self.data.cancel_start();
                Err(SpawnError { error, f: ManuallyDrop::into_inner(kept) })
            }
        }
    }
}

/// Runs `f` with a [`Scope`], then waits for every goroutine that was started in it.
///
/// All goroutines of a scope belong to the run that it was opened in. So a scope is opened inside
/// of a run: around one it cannot start any.
///
/// ```
/// use footbridge::runtime;
/// let mut words = vec!["left", "right"];
/// runtime::run(|| {
///     runtime::scope(|s| {
///         for word in &mut words {
///             s.go(move || *word = &word[1..]);
///         }
///     });
/// });
/// assert_eq!(words, ["eft", "ight"]);
/// ```
///
/// # Panics
/// With the panic of `f`; when a goroutine of the scope panicked, whether it was joined or not; in
/// [`systemstack`](crate::runtime::systemstack), where the scope could not wait.
#[track_caller]
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    // The wait at the end must not be the place that finds out: it cannot unwind past goroutines
    // that still run.
    if !may_park() {
        refuse_park();
    }
    let scope = Scope { data: ScopeData::new(), scope: PhantomData, env: PhantomData };
    let result = panic::catch_unwind(AssertUnwindSafe(|| f(&scope)));
    let data = &scope.data;
    if !data.is_done() {
        let me = current();
        *data.waiter.lock().unwrap_or_else(PoisonError::into_inner) = me;
        // SAFETY: one readies this goroutine: the last one that leaves, or this one if all have
        // left.
        unsafe { gopark(WaitReason::Scope, || data.wait()) };
    }
    match result {
        Err(payload) => panic::resume_unwind(payload),
        Ok(_) if data.panicked.load(Ordering::Relaxed) => panic!("a scoped goroutine panicked"),
        Ok(value) => value,
    }
}
