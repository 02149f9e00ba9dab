//! JIT code, Rust functions and the scheduler on one goroutine, end to end.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::code::caller;
use support::patience::Patience;
use support::runs::{AtEnd, config};

use footbridge::abi::Convention;
use footbridge::jit::Jit;
use footbridge::runtime::{
    self, Chan, GoroutineFn, TraceFrame, Traceback, go, gosched, systemstack,
};

/// The frames of a traceback, without offsets and lines.
fn shape(traceback: &Traceback) -> Vec<String> {
    traceback
        .frames
        .iter()
        .map(|frame| match frame {
            TraceFrame::Jit { name, kind, .. } => format!("jit {name} ({kind})"),
            TraceFrame::Rust { name, .. } => format!("rust {name}"),
            TraceFrame::C { name, .. } => format!("c {name}"),
            other => format!("{other}"),
        })
        .collect()
}

static PARKED: Mutex<Vec<Traceback>> = Mutex::new(Vec::new());

#[inline(never)]
fn receive_from_jit(channel: *const Chan<u64>) -> u64 {
    // SAFETY: the test passes a channel that outlives the call.
    let channel = unsafe { &*channel };
    PARKED.lock().expect("no panic while it is held").push(runtime::traceback());
    channel.recv().unwrap_or(0)
}

#[inline(never)]
fn enter_pump(entry: &runtime::Entry<fn(*const Chan<u64>) -> u64>, channel: &Chan<u64>) -> u64 {
    // SAFETY: called on a goroutine; pump takes the channel and returns the value.
    let value = unsafe { entry.call(channel) };
    // Prevents a tail call, which would remove this frame.
    std::hint::black_box(value)
}

#[test]
fn a_goroutine_function_parks_under_jit_frames_and_is_woken_from_another_thread() {
    let jit = Jit::new().expect("code memory");
    let receive: GoroutineFn = jit
        .named_goroutine_fn("receive", Convention::GoAbiInternal, receive_from_jit)
        .expect("stub");
    let code = caller("pump", receive.address());
    // SAFETY: pump is ABIInternal code of this type.
    let entry = unsafe { code.enter::<fn(*const Chan<u64>) -> u64>(Convention::GoAbiInternal) };
    let entry = entry.expect("entry");
    let outcome = config(2).run(|| {
        let channel = Chan::new(0);
        runtime::scope(|s| {
            let receiver = s.go(|| {
                let thread = std::thread::current().id();
                let value = enter_pump(&entry, &channel);
                assert_eq!(
                    thread,
                    std::thread::current().id(),
                    "the goroutine stays on its thread"
                );
                (thread, value)
            });
            let patience = Patience::new();
            let all = loop {
                let all = runtime::traceback_all();
                if all.iter().any(|t| t.wait_reason == runtime::WaitReason::ChanReceive) {
                    break all;
                }
                patience.check("the receiver parks", || all.clone());
                // This M is kept busy, so that the other one runs the receiver.
                std::thread::yield_now();
            };
            let sent_from = std::thread::current().id();
            channel.send(0x1234_5678_9abc_def0).expect("open");
            let (received_on, value) = receiver.join().expect("no panic");
            assert_ne!(sent_from, received_on, "it was woken from another M");
            (all, value)
        })
    });
    let (all, value) = outcome.expect("the run starts");
    assert_eq!(value, 0x1234_5678_9abc_def0);
    let from_inside = PARKED.lock().expect("unlocked").pop().expect("one trace");
    let parked = all.iter().find(|t| t.wait_reason == runtime::WaitReason::ChanReceive);
    for trace in [&from_inside, parked.expect("it was waited for")] {
        let shape = shape(trace);
        let at = |what: &str| {
            shape.iter().position(|frame| frame.contains(what)).unwrap_or_else(|| {
                panic!("no frame {what:?} in\n{trace}");
            })
        };
        let order = [
            at("receive_from_jit"),
            at("jit receive (goroutine function)"),
            at("jit pump (user code)"),
            at("jit pump (enter)"),
            at("enter_pump"),
            at("jit goroutine entry (goroutine entry)"),
        ];
        assert!(order.is_sorted(), "frames out of order:\n{trace}");
        assert!(shape[order[0]].starts_with("rust ") && shape[order[4]].starts_with("rust "));
        assert_eq!(order[1] + 1, order[2]);
        assert_eq!(order[2] + 1, order[3]);
        assert_eq!(order[5] + 1, shape.len(), "the entry is the root:\n{trace}");
    }
    println!("{from_inside}");
}

/// Counts its drops.
struct Dropped(&'static AtomicUsize);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_panic_crosses_three_jit_frames_and_a_system_stack() {
    static DROPS: AtomicUsize = AtomicUsize::new(0);
    #[inline(never)]
    fn fails(depth: u64) -> u64 {
        let _guard = Dropped(&DROPS);
        systemstack(|| {
            let _guard = Dropped(&DROPS);
            if depth > 0 {
                panic!("thrown at depth {depth}");
            }
            depth
        })
    }
    let jit = Jit::new().expect("code memory");
    let fails = jit.named_goroutine_fn("fails", Convention::GoAbiInternal, fails).expect("stub");
    let first = caller("first", fails.address());
    let second = caller("second", first.address());
    let third = caller("third", second.address());
    // SAFETY: ABIInternal code that takes and returns a word.
    let entry = unsafe { third.enter::<fn(u64) -> u64>(Convention::GoAbiInternal) };
    let entry: &'static _ = Box::leak(Box::new(entry.expect("entry")));
    let run = config(2).run(|| {
        for round in 1..=20 {
            DROPS.store(0, Ordering::Relaxed);
            let bystander = go(|| (0..100).inspect(|_| gosched()).sum::<u64>());
            let failing = go(move || {
                let _outer = Dropped(&DROPS);
                // SAFETY: called on a goroutine; the code takes a number.
                unsafe { entry.call(7) }
            });
            let payload = failing.join().expect_err("it panics");
            let text = payload.downcast_ref::<String>().expect("a formatted message");
            assert_eq!(text, "thrown at depth 7");
            assert_eq!(DROPS.load(Ordering::Relaxed), 3, "round {round}");
            assert_eq!(bystander.join().expect("it is unaffected"), 4950);
            // The panic was caught in the caller of the entry, so the anchor must be restored: the
            // next walk must find exactly the JIT frames that are on the stack, which are none.
            let caught = go(move || {
                let caught = std::panic::catch_unwind(|| {
                    // SAFETY: called on a goroutine; the code takes a number.
                    unsafe { entry.call(1) }
                });
                assert!(caught.is_err());
                let mut frames = 0;
                let end = runtime::jit_frames(|_| {
                    frames += 1;
                    ControlFlow::Continue(())
                });
                assert_eq!((frames, end), (0, runtime::WalkEnd::Complete));
                // SAFETY: called on a goroutine; the code takes a number, and 0 does not panic.
                unsafe { entry.call(0) }
            });
            assert_eq!(caught.join().expect("caught inside"), 0);
        }
    });
    run.expect("the run starts");
}

#[test]
fn a_panic_caught_between_jit_segments_leaves_the_outer_anchor() {
    type Inner = runtime::Entry<fn(u64) -> u64>;
    static INNER: std::sync::OnceLock<Inner> = std::sync::OnceLock::new();
    fn fails(_: u64) -> u64 {
        panic!("inner");
    }
    fn catches(x: u64) -> u64 {
        let frames = |expected: &[&str]| {
            let mut names = Vec::new();
            let end = runtime::jit_frames(|frame| {
                names.push(frame.stub.name());
                ControlFlow::Continue(())
            });
            assert_eq!((names.as_slice(), end), (expected, runtime::WalkEnd::Complete));
        };
        let outer = ["catches", "outer", "outer"];
        frames(&outer);
        let inner = INNER.get().expect("set by the test");
        // SAFETY: called on a goroutine.
        let caught = std::panic::catch_unwind(|| unsafe { inner.call(x) });
        assert!(caught.is_err());
        frames(&outer);
        x + 1
    }
    for convention in [Convention::GoAbiInternal, Convention::SystemV] {
        let jit = Jit::new().expect("code memory");
        let fails = jit.named_goroutine_fn("fails", convention, fails).expect("stub");
        let inner = caller("inner", fails.address());
        // SAFETY: code of this convention that takes and returns a word.
        let _ = INNER.set(unsafe { inner.enter(convention) }.expect("entry"));
        let catches = jit.named_goroutine_fn("catches", convention, catches).expect("stub");
        let outer = caller("outer", catches.address());
        // SAFETY: code of this convention that takes and returns a word.
        let outer = unsafe { outer.enter::<fn(u64) -> u64>(convention) }.expect("entry");
        let result = runtime::run(|| {
            // SAFETY: called on a goroutine.
            unsafe { outer.call(41) }
        });
        assert_eq!(result, 42);
    }
}

/// Ten thousand goroutines on four Ms, each parked in a function that JIT code called. Runs for
/// `FOOTBRIDGE_STRESS_SECONDS`, by default 2 seconds.
#[test]
fn ten_thousand_goroutines_park_and_wake_under_jit_frames() {
    const GOROUTINES: usize = 10_000;
    fn exchange(mine: *const Chan<u64>, next: *const Chan<u64>, hop: u64) -> u64 {
        // SAFETY: the test's channels outlive its goroutines.
        let (mine, next) = unsafe { (&*mine, &*next) };
        let Ok(token) = mine.recv() else { return 0 };
        next.send(token + hop).map_or(0, |()| 1)
    }
    let seconds = std::env::var("FOOTBRIDGE_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    let seconds = Duration::from_secs(seconds.unwrap_or(2));
    let jit = Jit::new().expect("code memory");
    let exchange =
        jit.named_goroutine_fn("exchange", Convention::GoAbiInternal, exchange).expect("stub");
    let code = caller("hop", exchange.address());
    type Hop = fn(*const Chan<u64>, *const Chan<u64>, u64) -> u64;
    // SAFETY: ABIInternal code of this type.
    let hop = unsafe { code.enter::<Hop>(Convention::GoAbiInternal) }.expect("entry");
    let (hops, walks) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = config(4).run(|| {
        // A ring of channels. Tokens travel around it and count hops.
        let ring: Vec<Chan<u64>> = (0..GOROUTINES).map(|_| Chan::new(1)).collect();
        let started = Instant::now();
        runtime::scope(|s| {
            for i in 0..GOROUTINES {
                let (mine, next) = (&ring[i], &ring[(i + 1) % GOROUTINES]);
                let (hop, hops, walks) = (&hop, &hops, &walks);
                s.go(move || {
                    let home = std::thread::current().id();
                    // SAFETY: called on a goroutine; the channels outlive the scope.
                    while unsafe { hop.call(mine, next, 1) } == 1 {
                        assert_eq!(home, std::thread::current().id());
                        let count = hops.fetch_add(1, Ordering::Relaxed);
                        if count.is_multiple_of(1 << 12) {
                            let end = runtime::jit_frames(|_| ControlFlow::Continue(()));
                            assert_eq!(end, runtime::WalkEnd::Complete);
                            walks.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            for i in 0..64 {
                ring[i * (GOROUTINES / 64)].send(0).expect("open");
            }
            let _close = AtEnd(|| ring.iter().for_each(|channel| assert!(channel.close())));
            // On a busy machine it takes a while until most of them have started.
            let patience = Patience::new();
            loop {
                runtime::sleep(Duration::from_millis(50));
                let all = runtime::traceback_all();
                let parked =
                    all.iter().filter(|t| t.wait_reason == runtime::WaitReason::ChanReceive);
                let whole = parked.filter(|t| {
                    let shape = shape(t);
                    shape.iter().any(|f| f == "jit hop (user code)")
                        && shape.last().is_some_and(|f| f.starts_with("jit goroutine entry"))
                });
                let count = whole.count();
                if count > GOROUTINES / 2 {
                    break;
                }
                patience.check("most goroutines are parked under JIT frames", || count);
            }
            while started.elapsed() < seconds || hops.load(Ordering::Relaxed) <= GOROUTINES {
                patience.check("tokens travel around the ring", || hops.load(Ordering::Relaxed));
                runtime::sleep(Duration::from_millis(50));
            }
        });
    });
    run.expect("the run starts");
    println!("{} hops, {} walks", hops.into_inner(), walks.into_inner());
}

#[test]
fn jit_code_starts_goroutines() {
    for convention in [Convention::GoAbiInternal, Convention::SystemV] {
        fn report(channel: *const Chan<(i8, f64, u64)>, small: i8, float: f64, big: u64) {
            // SAFETY: the test receives all values before it drops the channel.
            unsafe { &*channel }.send((small, float, big)).expect("open");
        }
        let jit = Jit::new().expect("code memory");
        let report = jit.named_goroutine_fn("report", convention, report).expect("stub");
        // With a frame of its own, unlike code that tail-calls the Rust function.
        let body = caller("body", report.address());
        let signature = "fn(ptr, i8, f64, u64)".parse().expect("well-formed");
        // SAFETY: `body` has that convention and signature; the channel outlives the run.
        let start = unsafe { jit.spawn_fn(convention, &signature, &body) }.expect("stub");
        let parent = caller("parent", start.address());
        type Parent = fn(*const Chan<(i8, f64, u64)>, i8, f64, u64);
        // SAFETY: `parent` passes its arguments on.
        let parent = unsafe { parent.enter::<Parent>(convention) }.expect("entry");
        let channel = Chan::new(0);
        let mut received: Vec<_> = runtime::run(|| {
            for i in 0..100 {
                // SAFETY: called on a goroutine.
                unsafe {
                    parent.call(
                        &channel,
                        -(i as i8),
                        f64::from(i) / 2.0,
                        u64::MAX - u64::from(i as u8),
                    )
                };
            }
            (0..100).map(|_| channel.recv().expect("a hundred are sent")).collect()
        });
        received.sort_by_key(|&(small, _, _)| -i32::from(small));
        let expected: Vec<_> =
            (0..100u8).map(|i| (-(i as i8), f64::from(i) / 2.0, u64::MAX - u64::from(i))).collect();
        assert_eq!(received, expected);
    }
}

#[test]
fn unsupported_conventions_are_refused() {
    let jit = Jit::new().expect("code memory");
    let target = jit.goroutine_fn(Convention::SystemV, |x: u64| x).expect("stub");
    let code = caller("never called", target.address());
    let signature = "fn(u64)".parse().expect("well-formed");
    for convention in Convention::ALL {
        let speaks = matches!(convention, Convention::SystemV | Convention::GoAbiInternal);
        let made = [
            jit.goroutine_fn(convention, |x: u64| x).map(drop),
            // SAFETY: the stub is not called.
            unsafe { code.enter::<fn(u64) -> u64>(convention) }.map(drop),
            // SAFETY: the stub is not called.
            unsafe { jit.spawn_fn(convention, &signature, &code) }.map(drop),
        ];
        for result in made {
            assert_eq!(result.is_ok(), speaks, "{convention}: {result:?}");
            if let Err(error) = result {
                let text = error.to_string();
                assert!(text.ends_with("in SystemV or in GoAbiInternal"), "{text}");
            }
        }
    }
}

#[test]
fn signatures_that_cannot_start_a_goroutine_are_refused() {
    let jit = Jit::new().expect("code memory");
    let target = jit.goroutine_fn(Convention::SystemV, |x: u64| x).expect("stub");
    let code = caller("never called", target.address());
    let refused = |text: &str| {
        let signature = text.parse().expect("well-formed");
        // SAFETY: the stub is not called.
        let made = unsafe { jit.spawn_fn(Convention::SystemV, &signature, &code) };
        made.map(drop).expect_err(text).to_string()
    };
    assert_eq!(
        refused("fn(u64, struct { i32, f32 })"),
        "spawn stub: a goroutine is started with integers, pointers and floats; pass a pointer to \
         anything else"
    );
    assert_eq!(
        refused("fn(u64) -> u64"),
        "spawn stub: the results of a goroutine that JIT code starts have no receiver: the \
         signature must have none"
    );
}
