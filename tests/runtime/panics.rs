//! Goroutines that are suspended while they unwind, or in the panic hook, and the others on their
//! threads.

#![allow(unsafe_code, reason = "starts migratable goroutines, and hides storage from the crate")]

use std::any::Any;
use std::panic::{self, AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::panicking;
use std::time::{Duration, Instant};

use footbridge::environment;
use footbridge::runtime::{
    self, Builder, Chan, JoinHandle, checkpoint, go, gosched, request_preemption, sleep, stats,
};
use support::child;
use support::random::Random;
use support::runs::{alone, alone_and_preemptible, config, on, thread_number, wait_for};

/// Calls a function when dropped.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

/// Calls `f` in a destructor while this goroutine unwinds. The panic hook is not called.
fn while_unwinding(f: impl FnOnce()) {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _on_drop = OnDrop(Some(f));
        resume_unwind(Box::new(5u8));
    }));
    assert!(caught.expect_err("it panics").is::<u8>());
}

fn start<T: Send + 'static>(
    migratable: bool,
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    if migratable {
        // SAFETY: the goroutines of these tests keep nothing of their thread over a suspension.
        unsafe { Builder::new().go_migratable(f).expect("memory") }
    } else {
        go(f)
    }
}

fn preempt() {
    request_preemption(0);
    checkpoint();
}

fn receive_nothing() {
    assert!(Chan::<u8>::new(0).recv_timeout(Duration::from_micros(50)).is_err());
}

/// What suspends a goroutine.
const SUSPENSIONS: [fn(); 4] =
    [gosched, preempt, receive_nothing, || sleep(Duration::from_micros(50))];

/// A goroutine that is suspended while it unwinds until it is told to end.
#[derive(Default)]
struct Unwinds {
    is_there: AtomicBool,
    may_end: AtomicBool,
    was_calm: AtomicBool,
    poisoned: Mutex<()>,
}

impl Unwinds {
    fn start(self: &Arc<Self>, migratable: bool, suspend: fn()) -> JoinHandle<()> {
        let this = Arc::clone(self);
        let handle = start(migratable, move || {
            let _guard = this.poisoned.lock();
            let _suspended = OnDrop(Some(|| {
                this.is_there.store(true, Ordering::Release);
                while !this.may_end.load(Ordering::Acquire) {
                    this.was_calm.fetch_or(!panicking(), Ordering::Relaxed);
                    suspend();
                }
                this.was_calm.fetch_or(!panicking(), Ordering::Relaxed);
            }));
            resume_unwind(Box::new(5u8));
        });
        wait_for("it unwinds", || self.is_there.load(Ordering::Acquire));
        handle
    }

    fn end(&self, handle: JoinHandle<()>) {
        self.may_end.store(true, Ordering::Release);
        assert!(handle.join().expect_err("it panics").is::<u8>());
        assert!(!self.was_calm.load(Ordering::Relaxed));
        assert!(self.poisoned.is_poisoned());
    }
}

/// Asserts that the running goroutine, which does not panic, is seen as such.
#[track_caller]
fn assert_calm() {
    assert!(!panicking());
    let lock = Mutex::new(());
    drop(lock.lock());
    assert!(!lock.is_poisoned());
    while_unwinding(|| drop(lock.lock()));
    assert!(!lock.is_poisoned());
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _guard = lock.lock();
        resume_unwind(Box::new(6u16));
    }));
    assert!(caught.is_err_and(|payload| payload.is::<u16>()));
    assert!(lock.is_poisoned() && !panicking());
}

#[test]
fn only_the_goroutine_that_unwinds_is_panicking() {
    for suspend in SUSPENSIONS {
        for migratable in [false, true] {
            alone_and_preemptible(|| {
                let healthy = Arc::new(Mutex::new(()));
                let (held, release) = (Chan::<()>::new(0), Chan::<()>::new(0));
                let innocent = start(migratable, {
                    let (healthy, held, release) = (healthy.clone(), held.clone(), release.clone());
                    move || {
                        let _guard = healthy.lock();
                        held.send(()).expect("open");
                        assert!(release.recv().is_ok());
                        !panicking()
                    }
                });
                held.recv().expect("open");
                let unwinds = Arc::new(Unwinds::default());
                let handle = unwinds.start(migratable, suspend);
                assert_calm();
                release.send(()).expect("open");
                assert!(innocent.join().expect("no panic"));
                assert!(!healthy.is_poisoned());
                start(migratable, assert_calm).join().expect("no panic");
                unwinds.end(handle);
                assert_calm();
            });
            assert_calm();
        }
    }
}

/// Two goroutines unwind at once, and one of them panics again in its destructor.
#[test]
fn panics_of_several_goroutines_are_counted_apart() {
    for suspend in SUSPENSIONS {
        alone_and_preemptible(|| {
            let [first, second] = [(); 2].map(|()| Arc::new(Unwinds::default()));
            let one = first.start(false, suspend);
            let other = second.start(true, suspend);
            let third = go(move || {
                while_unwinding(|| {
                    suspend();
                    while_unwinding(suspend);
                    suspend();
                    assert!(panicking());
                });
                panicking()
            });
            assert!(!third.join().expect("no panic"));
            first.end(one);
            assert_calm();
            second.end(other);
            assert_calm();
        });
    }
}

/// What the goroutines of a storm found.
#[derive(Default)]
struct Found {
    wrong: AtomicU64,
    suspended: AtomicU64,
    panics: AtomicU64,
}

impl Found {
    fn check(&self, is_right: bool) {
        self.wrong.fetch_add(u64::from(!is_right), Ordering::Relaxed);
    }

    fn suspend(&self, random: &mut Random) {
        self.suspended.fetch_add(1, Ordering::Relaxed);
        SUSPENSIONS[random.below(SUSPENSIONS.len() as u64) as usize]();
    }

    /// Takes random steps on a goroutine on which `depth` panics are under way: the model.
    fn act(&self, random: &mut Random, depth: u64, steps: &mut u32) {
        let check = |lock: &Mutex<()>, poisoned| {
            self.check(panicking() == (depth > 0) && lock.is_poisoned() == poisoned);
        };
        while *steps > 0 {
            *steps -= 1;
            let lock = Mutex::new(());
            match random.below(8) {
                0 | 1 => self.suspend(random),
                2 | 3 if depth < 4 => {
                    self.panics.fetch_add(1, Ordering::Relaxed);
                    while_unwinding(|| self.act(random, depth + 1, steps));
                }
                4 => {
                    let guard = lock.lock();
                    self.suspend(random);
                    drop(guard);
                }
                5 => {
                    let _ = catch_unwind(AssertUnwindSafe(|| {
                        let _guard = lock.lock();
                        let _suspended = OnDrop(Some(|| self.suspend(random)));
                        resume_unwind(Box::new(5u8));
                    }));
                    check(&lock, depth == 0);
                    continue;
                }
                6 | 7 if depth > 0 => return,
                _ => {}
            }
            check(&lock, false);
        }
    }
}

/// Random panics and suspensions of many goroutines, each against a count of its own.
#[test]
fn counts_of_panics_agree_with_a_model() {
    for processors in [1, 3] {
        let found = Arc::new(Found::default());
        let config = config(processors).time_slice(Duration::from_micros(100));
        let body = || {
            let handles: Vec<_> = (0..24u64)
                .map(|n| {
                    let found = Arc::clone(&found);
                    start(n % 2 == 1, move || {
                        let mut random = Random(n);
                        let mut steps = 400;
                        found.act(&mut random, 0, &mut steps);
                        panicking()
                    })
                })
                .collect();
            handles.into_iter().for_each(|handle| assert!(!handle.join().expect("no panic")));
            assert_calm();
        };
        config.run(body).expect("the run starts");
        assert_calm();
        let counts = [&found.suspended, &found.panics].map(|n| n.load(Ordering::Relaxed));
        println!("{processors} processors: {counts:?} suspensions and panics");
        assert!(counts.iter().all(|&n| n > 1000), "{counts:?}");
        assert_eq!(found.wrong.load(Ordering::Relaxed), 0);
    }
}

/// A goroutine that is suspended in its destructor for ever is abandoned at the end of its run.
#[test]
fn an_abandoned_goroutine_that_unwinds_leaves_its_thread_calm() {
    for processors in [1, 2] {
        for suspend in SUSPENSIONS {
            let handle = on(processors, || {
                let unwinds: Arc<Unwinds> = Arc::default();
                let handle = unwinds.start(false, suspend);
                std::mem::forget(unwinds);
                handle
            });
            assert_calm();
            let error = handle.join().expect_err("it cannot end");
            assert!(error.is::<runtime::Abandoned>());
            alone(|| go(assert_calm).join().expect("no panic"));
        }
    }
}

/// The main goroutine runs in a call of the thread, and panics as the thread does.
#[test]
fn a_run_in_a_destructor_has_the_panic_of_its_caller_in_its_main_goroutine() {
    let seen = Mutex::new(Vec::new());
    while_unwinding(|| {
        let of_run = alone(|| {
            let before = panicking();
            let other = go(|| (panicking(), gosched(), panicking()));
            gosched();
            (before, panicking(), other.join().expect("no panic"))
        });
        seen.lock().expect("no panic").push((of_run, panicking()));
    });
    let seen = seen.into_inner().expect("no panic while it was locked first");
    assert_eq!(seen, [((true, true, (false, (), false)), true)]);
    assert_calm();
}

/// Waits in the panic hook for `RESUME` where the panic is `panic_any(Parks)`.
struct Parks(fn());

static RESUME: AtomicBool = AtomicBool::new(false);
static PARKED: AtomicUsize = AtomicUsize::new(0);
static HOOKS: AtomicUsize = AtomicUsize::new(0);
static CALM_IN_HOOK: AtomicBool = AtomicBool::new(false);

fn hook(payload: &(dyn Any + Send)) {
    HOOKS.fetch_add(1, Ordering::Relaxed);
    if let Some(Parks(suspend)) = payload.downcast_ref() {
        PARKED.fetch_add(1, Ordering::Relaxed);
        while !RESUME.load(Ordering::Acquire) {
            suspend();
            CALM_IN_HOOK.fetch_or(!panicking(), Ordering::Relaxed);
        }
    }
}

#[test]
fn other_goroutines_may_panic_while_one_is_suspended_in_the_panic_hook() {
    // In a child process: the hook is the process's, and is not replaced while one is suspended.
    let outcome =
        child::run("other_goroutines_may_panic_while_one_is_suspended_in_the_panic_hook", || {
            panic::set_hook(Box::new(|info| hook(info.payload())));
            for migratable in [false, true] {
                for suspend in SUSPENSIONS {
                    RESUME.store(false, Ordering::Relaxed);
                    PARKED.store(0, Ordering::Relaxed);
                    HOOKS.store(0, Ordering::Relaxed);
                    alone_and_preemptible(|| {
                        let parks = || {
                            start(migratable, move || -> () { panic::panic_any(Parks(suspend)) })
                        };
                        let suspended = [parks(), parks()];
                        wait_for("both", || PARKED.load(Ordering::Relaxed) == 2);
                        for _ in 0..10 {
                            let caught = go(|| -> () { panic::panic_any(7u8) }).join();
                            assert!(caught.expect_err("it panics").is::<u8>());
                            assert_calm();
                        }
                        RESUME.store(true, Ordering::Release);
                        for handle in suspended {
                            assert!(handle.join().expect_err("it panics").is::<Parks>());
                        }
                        assert_calm();
                    });
                    assert_eq!(HOOKS.load(Ordering::Relaxed), 12);
                    assert!(!CALM_IN_HOOK.load(Ordering::Relaxed));
                }
            }
        });
    outcome.assert_success();
}

/// The first goroutine with a name puts a hook in front of the program's, for which std's lock of
/// the hook must be free.
#[test]
fn a_goroutine_with_a_name_starts_while_another_one_is_suspended_in_the_panic_hook() {
    let outcome = child::run(
        "a_goroutine_with_a_name_starts_while_another_one_is_suspended_in_the_panic_hook",
        || {
            panic::set_hook(Box::new(|info| hook(info.payload())));
            alone(|| {
                let suspended = go(|| -> () { panic::panic_any(Parks(gosched)) });
                wait_for("it is suspended", || PARKED.load(Ordering::Relaxed) == 1);
                let named = || Builder::new().name("named").go(|| 3).expect("memory").join();
                assert_eq!(named().expect("no panic"), 3);
                RESUME.store(true, Ordering::Release);
                assert!(suspended.join().is_err());
                assert_eq!(named().expect("no panic"), 3);
                let panics = Builder::new().name("panics").go(|| panic!("named"));
                assert!(panics.expect("memory").join().is_err());
            });
        },
    );
    outcome.assert_success();
    // The second one with a name did put the hook in front.
    let label = outcome.stderr.strip_prefix("in goroutine ").expect("a label");
    assert!(label.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(" \"panics\":"));
}

/// The flag of the hook is the goroutine's when it resumes there: std's rule for a panic in a panic
/// hook holds.
#[test]
fn a_panic_in_a_hook_that_was_suspended_aborts() {
    let outcome = child::run("a_panic_in_a_hook_that_was_suspended_aborts", || {
        panic::set_hook(Box::new(|_| {
            (0..3).for_each(|_| gosched());
            panic!("in the hook");
        }));
        alone(|| go(|| -> () { panic!("the first") }).join().is_err());
    });
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:?}");
    assert!(outcome.stderr.contains("thread panicked while processing panic"), "{outcome:?}");
}

/// A goroutine that is abandoned in the panic hook leaves a thread that may panic.
#[test]
fn a_thread_may_panic_after_a_goroutine_was_abandoned_in_the_panic_hook() {
    let outcome =
        child::run("a_thread_may_panic_after_a_goroutine_was_abandoned_in_the_panic_hook", || {
            panic::set_hook(Box::new(|info| hook(info.payload())));
            alone(|| {
                go(|| -> () { panic::panic_any(Parks(gosched)) });
                wait_for("it is suspended", || PARKED.load(Ordering::Relaxed) == 1);
            });
            assert_calm();
            assert!(catch_unwind(|| panic!("on the thread")).is_err());
            alone(|| assert!(go(|| -> () { panic!("on a goroutine") }).join().is_err()));
            assert_calm();
        });
    outcome.assert_success();
}

/// A run that a panic hook calls: goroutines of it may panic, but for the main one.
#[test]
fn goroutines_of_a_run_in_a_panic_hook_may_panic() {
    let outcome = child::run("goroutines_of_a_run_in_a_panic_hook_may_panic", || {
        panic::set_hook(Box::new(|info| {
            if info.payload().is::<u8>() {
                let (main, other) = alone(|| (panicking(), go(|| -> () { panic!() }).join()));
                assert!(main && other.is_err() && panicking());
            }
        }));
        assert!(catch_unwind(|| panic::panic_any(1u8)).is_err());
        assert_calm();
    });
    outcome.assert_success();
}

#[test]
fn the_environment_reports_that_panics_are_counted_by_goroutine() {
    let state = environment().panic_state;
    assert!(state.starts_with("each goroutine has its own (offset 0x"), "{state}");
}

type Visitor = unsafe extern "C" fn(*mut libc::dl_phdr_info, usize, *mut libc::c_void) -> i32;

/// Whether [`dl_iterate_phdr`] hides thread-local storage.
static HIDES_STORAGE: AtomicBool = AtomicBool::new(false);

/// In front of the C library's function, for the whole test binary.
#[unsafe(no_mangle)]
unsafe extern "C" fn dl_iterate_phdr(visitor: Visitor, data: *mut libc::c_void) -> i32 {
    type Function = unsafe extern "C" fn(Visitor, *mut libc::c_void) -> i32;
    struct Hiding(Visitor, *mut libc::c_void);
    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        size: usize,
        data: *mut libc::c_void,
    ) -> i32 {
        // SAFETY: a valid description, and the address of the local below.
        unsafe {
            let Hiding(visitor, data) = &*data.cast::<Hiding>();
            let mut info = *info;
            info.dlpi_tls_data = std::ptr::null_mut();
            visitor(&raw mut info, size.min(size_of::<libc::dl_phdr_info>()), *data)
        }
    }
    static NEXT: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());
    // SAFETY: the name is a C string; the function that is found has this type.
    unsafe {
        let mut next = NEXT.load(Ordering::Relaxed);
        if next.is_null() {
            next = libc::dlsym(libc::RTLD_NEXT, c"dl_iterate_phdr".as_ptr());
            NEXT.store(next, Ordering::Relaxed);
        }
        let next = std::mem::transmute::<*mut libc::c_void, Function>(next);
        if !HIDES_STORAGE.load(Ordering::Relaxed) {
            return next(visitor, data);
        }
        let hiding = Hiding(visitor, data);
        next(visit, (&raw const hiding).cast_mut().cast())
    }
}

/// Where std's words are not found, `environment()` says so, and a migratable goroutine stays on
/// the thread that counts its panic.
#[test]
fn without_the_words_of_std_a_goroutine_that_unwinds_stays_on_its_thread() {
    static MOVED: AtomicU64 = AtomicU64::new(0);
    static SUSPENDED: AtomicU64 = AtomicU64::new(0);
    let outcome =
        child::run("without_the_words_of_std_a_goroutine_that_unwinds_stays_on_its_thread", || {
            HIDES_STORAGE.store(true, Ordering::Relaxed);
            assert_eq!(
                environment().panic_state,
                "goroutines of a thread share std's panic state: 0 words behave like its count of \
                 panics"
            );
            let config = config(2).time_slice(Duration::from_micros(100));
            let body = || {
                while_unwinding(|| {
                    let thread = thread_number();
                    for n in 0..400 {
                        SUSPENSIONS[n % SUSPENSIONS.len()]();
                        let is_elsewhere = thread_number() != thread;
                        MOVED.fetch_add(u64::from(is_elsewhere), Ordering::Relaxed);
                        SUSPENDED.fetch_add(1, Ordering::Relaxed);
                    }
                });
            };
            config
                .run(|| {
                    let handles: Vec<_> = (0..4).map(|_| start(true, body)).collect();
                    let begin = Instant::now();
                    while !handles.iter().all(JoinHandle::is_finished) {
                        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", stats());
                        sleep(Duration::from_micros(50));
                    }
                    handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
                    assert!(!panicking());
                })
                .expect("the run starts");
            assert_eq!(SUSPENDED.load(Ordering::Relaxed), 1600);
            assert_eq!(MOVED.load(Ordering::Relaxed), 0);
            assert!(!panicking());
        });
    outcome.assert_success();
}
