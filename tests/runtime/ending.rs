//! What is called while a thread or the process ends: in destructors of thread-locals, early and
//! late, and by handlers of atexit(3). And on a thread that has never used the crate.

#![allow(unsafe_code, reason = "calls atexit(3)")]

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use footbridge::runtime::{
    Barrier, Builder, Case, Chan, Condvar, Mutex, Once, OnceLock, RwLock, WaitGroup, WaitReason,
    checkpoint, current, go, gopark, goready, goroutines, gosched, jit_frames, run, scan_own_stack,
    scope, select, select_timeout, sleep, stack_usage, systemstack, this_goroutine, traceback,
    traceback_all, try_select, without_preemption,
};
use footbridge::{environment, goroutine_local};
use support::child;

const SHORT: Duration = Duration::from_millis(1);

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Everything that a thread may call which runs no goroutine, waits included.
fn call_everything() {
    goroutine_local! {
        static LOCAL: RefCell<String> = RefCell::new(String::from("a value"));
    }
    // In a late destructor the thread-local below it may be destroyed.
    let _ = LOCAL.try_with(|value| value.borrow_mut().push('!'));
    gosched();
    checkpoint();
    sleep(SHORT);
    without_preemption(|| ());
    systemstack(|| ());
    scope(|_| ());
    assert!(this_goroutine().is_none());
    assert_eq!(current(), current());
    let _ = (goroutines(), stack_usage(), jit_frames(|_| ControlFlow::Continue(())));
    let _ = scan_own_stack(|_| ControlFlow::Continue(()));
    let _ = (traceback().to_string(), traceback_all().len(), environment().to_string());
    let me = current();
    // SAFETY: readied once, when the thread can be.
    unsafe { gopark(WaitReason::Other, || goready(me)) };

    let channel = Chan::new(1);
    channel.send(1).expect("open");
    assert!(channel.try_send(2).is_err() && channel.send_timeout(2, SHORT).is_err());
    let mut slot = None;
    assert_eq!(select(&mut [Case::recv(&channel, &mut slot)]), 0);
    assert_eq!(try_select(&mut [Case::recv(&channel, &mut slot)]), None);
    assert_eq!(select_timeout(&mut [Case::recv(&channel, &mut slot)], SHORT), None);
    assert!(channel.recv_timeout(SHORT).is_err() && channel.try_recv().is_err());
    channel.close();
    assert!(channel.recv().is_err() && channel.iter().next().is_none());

    let (mutex, condvar) = (Mutex::new(0), Condvar::new());
    let guard = mutex.lock().expect("no panic");
    drop(condvar.wait_timeout(guard, SHORT).expect("no panic"));
    condvar.notify_all();
    let lock = RwLock::new(0);
    drop(lock.read().expect("no panic"));
    *lock.write().expect("no panic") += 1;
    Once::new().call_once(|| ());
    assert_eq!(*OnceLock::new().get_or_init(|| 1), 1);
    WaitGroup::new().wait();
    Barrier::new(1).wait();

    // A run, which this thread waits for; and one that is waited for from here.
    let sum = run(|| {
        LOCAL.with_borrow_mut(|value| value.push('!'));
        let handle = go(|| 20);
        let named = Builder::new().name("named").go(|| 22).expect("memory");
        handle.join().expect("no panic") + named.join().expect("no panic")
    });
    assert_eq!(sum, 42);
    let (mutex, group) = (&Mutex::new(0), &WaitGroup::new());
    group.add(1);
    std::thread::scope(|s| {
        let guard = mutex.lock().expect("no panic");
        s.spawn(|| {
            run(|| {
                group.done();
                *mutex.lock().expect("no panic") += 1; // waits
            });
        });
        group.wait();
        sleep(SHORT);
        drop(guard);
    });
    CALLS.fetch_add(1, Ordering::Relaxed);
}

struct AtEnd;

impl Drop for AtEnd {
    fn drop(&mut self) {
        call_everything();
    }
}

thread_local! {
    static EARLY: Cell<Option<AtEnd>> = const { Cell::new(None) };
    static LATE: Cell<Option<AtEnd>> = const { Cell::new(None) };
}

/// Destructors run in the reverse order of their registration: the first one is for the end.
fn register(first: bool) {
    let key = if first { &LATE } else { &EARLY };
    key.set(Some(AtEnd));
}

#[test]
fn everything_can_be_called_while_a_thread_ends() {
    child::run("everything_can_be_called_while_a_thread_ends", || {
        // On a thread that has not used the crate before; between the destructors of what it used.
        let thread = std::thread::spawn(|| {
            register(true);
            call_everything();
            register(false);
        });
        thread.join().expect("no panic");
        assert_eq!(CALLS.load(Ordering::Relaxed), 3);
        // On threads of a run, whose goroutines register them.
        run(|| {
            for first in [true, false] {
                go(move || register(first)).join().expect("no panic");
            }
        });
        let by_run = CALLS.load(Ordering::Relaxed);
        // The main thread of the run is this one, which has not ended.
        assert!((3..=5).contains(&by_run), "{by_run}");
    })
    .assert_success();
}

#[test]
fn everything_can_be_called_while_the_process_ends() {
    extern "C" fn at_exit() {
        call_everything();
        // SAFETY: ends the process at once, with what the test expects.
        unsafe { libc::_exit(if CALLS.load(Ordering::Relaxed) == 4 { 0 } else { 1 }) }
    }
    child::run("everything_can_be_called_while_the_process_ends", || {
        register(true);
        call_everything();
        register(false);
        // SAFETY: a function of this type. exit(3) runs the destructors of this thread first.
        unsafe {
            assert_eq!(libc::atexit(at_exit), 0);
            libc::exit(2);
        }
    })
    .assert_success();
}

/// A channel of a thread-local is dropped with its thread, also with abandoned goroutines in its
/// queues.
#[test]
fn a_channel_may_end_with_abandoned_waiters() {
    thread_local! {
        static FULL: Chan<String> = Chan::new(0);
        static EMPTY: Chan<String> = Chan::new(0);
    }
    child::run("a_channel_may_end_with_abandoned_waiters", || {
        let config = footbridge::runtime::Config::new().processors(3);
        let run = config.run(|| {
            let waiting = || {
                let all = goroutines();
                let waits = |reason| {
                    all.iter().filter(|g| g.status().is_some_and(|s| s.1 == reason)).count()
                };
                [WaitReason::ChanSend, WaitReason::ChanReceive, WaitReason::Select].map(waits)
            };
            // This goroutine keeps its thread, which does not end, so that the others have them
            // all.
            for _ in 0..20 {
                go(|| FULL.with(|channel| channel.send("never".into())));
                go(|| EMPTY.with(|channel| channel.recv()));
                go(|| EMPTY.with(|channel| channel.recv_timeout(Duration::from_secs(60))));
                go(|| {
                    FULL.with(|full| {
                        EMPTY.with(|empty| {
                            let (mut value, mut slot) = (Some("never".into()), None);
                            select(&mut [
                                Case::send(full, &mut value),
                                Case::recv(empty, &mut slot),
                            ])
                        })
                    })
                });
            }
            // Senders and receivers of different kinds of a thread do not meet: a select does both.
            let start = Instant::now();
            while waiting() != [20, 40, 20] {
                assert!(start.elapsed() < Duration::from_secs(15), "{:?}", waiting());
                std::thread::sleep(SHORT);
            }
        });
        run.expect("the run starts");
        std::thread::spawn(call_everything).join().expect("no panic");
    })
    .assert_success();
}
