//! Goroutines that are suspended and inspected while others run; tracebacks of a running system.

#![allow(unsafe_code, reason = "calls emitted code")]

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::code::caller;
use support::patience::{self, Patience, block_until};
use support::runs::{AtEnd, occupy_until, on as run, wait_for};
use support::settings::stress_or;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Annotations, FrameClass, Jit, Ops};
use footbridge::runtime::{
    Builder, Chan, Config, Entry, Goroutine, ScanError, Status, Traceback, WaitReason, WalkEnd,
    checkpoint, current, go, gopark, goready, goroutines, gosched, jit_frames, scope, sleep,
    systemstack, this_goroutine, traceback, traceback_all, traceback_all_within,
};

const SYSTEM_V: Convention = Convention::SystemV;
const LONG: Duration = patience::LIMIT;

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        gosched();
        std::thread::yield_now();
    }
}

/// The argument of JIT code that increments `count` until `stop` is set, and returns the number of
/// its iterations.
#[derive(Default)]
struct Words {
    count: AtomicU64,
    stop: AtomicU32,
}

impl Words {
    fn stop(&self) {
        self.stop.store(1, Ordering::Relaxed);
    }
}

type Loop = Entry<fn(*const Words) -> u64>;

/// JIT code `outer` that calls `inner`, which loops with polls, or is preemptible.
fn nested_loop(polls: bool) -> Loop {
    let jit = Jit::new().expect("code memory");
    let mut helper = jit.polls(SYSTEM_V).expect("of this machine");
    let mut body = |ops: &mut Ops| {
        dynasm!(ops
            ; .arch x64
            ; push rbp
            ; mov rbp, rsp
            ; xor eax, eax
            ; again:
            ; inc rax
            ; inc QWORD [rdi]
        );
        if polls {
            helper.poll(ops);
        }
        dynasm!(ops; .arch x64; cmp DWORD [rdi + 8], 0; je <again; pop rbp; ret);
        helper.finish(ops);
    };
    let name = if polls { "inner polling" } else { "inner" };
    // SAFETY: System V code with a standard frame, which may be preempted at each instruction.
    let inner = unsafe {
        if polls {
            jit.install(name, FrameClass::Standard, body)
        } else {
            jit.install(name, FrameClass::Standard, |ops| {
                body(ops);
                Annotations::preemptible()
            })
        }
    };
    let inner = inner.expect("it installs");
    let outer = caller("outer", inner.address());
    // Keeps the code from being retired.
    std::mem::forget(inner);
    // SAFETY: of this type.
    unsafe { outer.enter(SYSTEM_V) }.expect("an entry")
}

fn enter(entry: &Loop, words: &Words) -> u64 {
    // SAFETY: on a goroutine; the words outlive the call.
    unsafe { entry.call(words) }
}

type Receive = Entry<fn(*const Chan<u64>) -> u64>;

/// JIT code that receives from a channel: frames with these names, innermost first, that call a
/// goroutine function.
fn receiver(
    names: &[&str],
    function: impl Fn(*const Chan<u64>) -> u64 + Send + Sync + 'static,
) -> Receive {
    let jit = Jit::new().expect("code memory");
    let function = jit.named_goroutine_fn("receive", SYSTEM_V, function).expect("a stub");
    let mut target = function.address();
    // Keeps the code from being retired.
    std::mem::forget(function);
    let mut entry = None;
    for name in names {
        let code = caller(name, target);
        target = code.address();
        // SAFETY: of this type.
        entry = Some(unsafe { code.enter(SYSTEM_V) }.expect("an entry"));
        std::mem::forget(code);
    }
    entry.expect("a name")
}

fn receive(channel: *const Chan<u64>) -> u64 {
    // SAFETY: it outlives the call.
    unsafe { &*channel }.recv().unwrap_or(0)
}

/// The goroutine that is not the calling one.
fn the_other() -> Goroutine {
    let own = this_goroutine().expect("on a goroutine");
    let mut others = goroutines().into_iter().filter(|goroutine| *goroutine != own);
    others.next().expect("there is another one")
}

/// Waits until the goroutine waits in a receive.
fn wait_for_receiver(goroutine: Goroutine) {
    wait_until("it parks", || {
        let parked =
            |t: &Traceback| t.id == goroutine.id() && t.wait_reason == WaitReason::ChanReceive;
        traceback_all().iter().any(parked)
    });
}

/// The names of the frames that a scan visits, innermost first, and how the walk ended.
fn scan(goroutine: Goroutine) -> Result<(Vec<&'static str>, WalkEnd), ScanError> {
    let mut names = Vec::with_capacity(16);
    let end = goroutine.scan_stack(LONG, |frame| {
        names.push(frame.stub.name());
        ControlFlow::Continue(())
    })?;
    Ok((names, end))
}

#[test]
fn a_scan_of_a_parked_goroutine_visits_the_frames_of_its_own_walk() {
    static OWN: Mutex<Vec<(usize, usize, &str)>> = Mutex::new(Vec::new());
    let names = ["innermost", "middle", "outermost", "entered"];
    let entry = receiver(&names, |channel| {
        let mut own = Vec::new();
        let end = jit_frames(|frame| {
            own.push((frame.pc, frame.fp, frame.stub.name()));
            ControlFlow::Continue(())
        });
        assert_eq!(end, WalkEnd::Complete);
        *OWN.lock().expect("not poisoned") = own;
        receive(channel)
    });
    for processors in [1, 2] {
        run(processors, || {
            let channel = Chan::new(0);
            scope(|s| {
                // SAFETY: on a goroutine; the channel outlives the scope.
                let receiver = s.go(|| unsafe { entry.call(&channel) });
                let other = the_other();
                assert_eq!(goroutines().len(), 2);
                wait_for_receiver(other);
                let mut seen = Vec::new();
                let end = other.scan_stack(LONG, |frame| {
                    seen.push((frame.pc, frame.fp, frame.stub.name()));
                    ControlFlow::Continue(())
                });
                assert_eq!(end, Ok(WalkEnd::Complete));
                assert_eq!(seen, *OWN.lock().expect("not poisoned"));
                let names: Vec<_> = seen.iter().map(|(_, _, name)| *name).collect();
                assert_eq!(names[..5], ["receive", "innermost", "middle", "outermost", "entered"]);
                // The visitor ends the walk.
                let mut count = 0;
                let end = other.scan_stack(LONG, |_| {
                    count += 1;
                    if count < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                assert_eq!((end, count), (Ok(WalkEnd::Stopped), 2));
                channel.send(7).expect("open");
                assert_eq!(receiver.join().expect("no panic"), 7);
                assert_eq!(scan(other), Err(ScanError::Ended));
            });
        });
    }
}

/// The goroutine is in its loop or between two ticks when the request comes.
#[test]
fn running_goroutines_are_suspended_scanned_and_resumed() {
    for polls in [false, true] {
        let entry = nested_loop(polls);
        let inner = if polls { "inner polling" } else { "inner" };
        run(3, || {
            let words = Words::default();
            scope(|s| {
                let _stop = AtEnd(|| words.stop());
                let looping = s.go(|| enter(&entry, &words));
                wait_until("it loops", || words.count.load(Ordering::Relaxed) > 0);
                let other = the_other();
                let check = move || {
                    let mut own_stub_first = 0;
                    for _ in 0..200 {
                        let (names, end) = scan(other).expect("it yields");
                        assert_eq!(end, WalkEnd::Complete, "{names:?}");
                        let at = names.iter().position(|name| *name == inner).expect("the loop");
                        assert_eq!(names[at + 1], "outer", "{names:?}");
                        own_stub_first += usize::from(at == 1);
                    }
                    // It was preempted in the loop each time.
                    assert_eq!(own_stub_first, 200);
                };
                check();
                // The same from a thread that belongs to no run.
                let thread = std::thread::spawn(check);
                wait_until("the thread is done", || thread.is_finished());
                thread.join().expect("no panic");
                let before = words.count.load(Ordering::Relaxed);
                wait_until("it resumes", || words.count.load(Ordering::Relaxed) > before + 1000);
                words.stop();
                let iterations = looping.join().expect("no panic");
                assert_eq!(iterations, words.count.load(Ordering::Relaxed), "none was lost");
            });
        });
    }
}

/// A goroutine that is inspected does not run, however long the inspection takes, and also if it is
/// readied meanwhile.
#[test]
fn a_goroutine_does_not_run_while_it_is_inspected() {
    const INSPECTION: Duration = Duration::from_millis(30);
    let entry = nested_loop(false);
    run(2, || {
        let words = Words::default();
        scope(|s| {
            let _stop = AtEnd(|| words.stop());
            s.go(|| enter(&entry, &words));
            wait_until("it loops", || words.count.load(Ordering::Relaxed) > 0);
            let visited = the_other().scan_stack(LONG, |_| {
                let before = words.count.load(Ordering::Relaxed);
                std::thread::sleep(INSPECTION);
                assert_eq!(words.count.load(Ordering::Relaxed), before);
                ControlFlow::Break(())
            });
            assert_eq!(visited, Ok(WalkEnd::Stopped));
        });
    });
    let entry = receiver(&["caller"], receive);
    run(2, || {
        let channel = Chan::new(0);
        let (started, received) = (AtomicBool::new(false), AtomicBool::new(false));
        scope(|s| {
            let receiver = s.go(|| {
                started.store(true, Ordering::Relaxed);
                // SAFETY: on a goroutine; the channel outlives the scope.
                let value = unsafe { entry.call(&channel) };
                received.store(true, Ordering::Relaxed);
                value
            });
            let other = the_other();
            // The other thread steals it, since this one does not yield.
            occupy_until("it starts", || started.load(Ordering::Relaxed));
            wait_for_receiver(other);
            let mut visited_frames = 0;
            let visited = other.scan_stack(LONG, |_| {
                if visited_frames == 0 {
                    // A foreign thread makes it runnable, and wakes its thread.
                    std::thread::scope(|threads| {
                        threads.spawn(|| channel.send(5).expect("open"));
                    });
                    std::thread::sleep(INSPECTION);
                }
                visited_frames += 1;
                assert!(!received.load(Ordering::Relaxed));
                ControlFlow::Continue(())
            });
            assert_eq!(visited, Ok(WalkEnd::Complete));
            assert!(visited_frames > 2, "{visited_frames} frames");
            assert_eq!(receiver.join().expect("no panic"), 5);
        });
    });
}

/// A goroutine that yields while nothing else is runnable leaves its stack nevertheless.
#[test]
fn a_goroutine_alone_on_its_thread_is_suspended_between_two_ticks() {
    run(2, || {
        let (ticks, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        scope(|s| {
            let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    ticks.fetch_add(1, Ordering::Relaxed);
                    gosched();
                }
            });
            // The other thread steals it, since this one does not yield.
            occupy_until("it starts", || ticks.load(Ordering::Relaxed) > 0);
            let other = the_other();
            let expected = Ok((vec![], WalkEnd::Complete));
            (0..50).for_each(|_| assert_eq!(scan(other), expected));
            let before = ticks.load(Ordering::Relaxed);
            wait_until("it resumes", || ticks.load(Ordering::Relaxed) > before);
        });
    });
}

/// The status of a parking goroutine is Waiting before its context is saved. It is not inspected in
/// between.
#[test]
fn a_goroutine_that_is_about_to_park_is_not_scanned() {
    run(2, || {
        let entry = receiver(&["caller"], |parker: *const Chan<u64>| {
            // Parks once before, so that there is an older context.
            sleep(Duration::from_millis(1));
            let own = this_goroutine().expect("on a goroutine");
            // SAFETY: the test passes a pointer to this type, and the value outlives the call.
            let result = unsafe { &*parker.cast::<Mutex<Option<ScanError>>>() };
            let this = current();
            // SAFETY: the closure readies it once.
            unsafe {
                gopark(WaitReason::Other, || {
                    let scan = std::thread::spawn(move || {
                        own.scan_stack(Duration::from_millis(5), |_| panic!("it has not parked"))
                    });
                    let scan = scan.join().expect("no panic");
                    *result.lock().expect("not poisoned") = scan.err();
                    goready(this);
                });
            }
            1
        });
        let result = Mutex::new(None::<ScanError>);
        let done = go({
            let result = (&raw const result) as usize;
            // SAFETY: on a goroutine; joined below.
            move || unsafe { entry.call(result as *const Chan<u64>) }
        });
        assert_eq!(done.join().expect("no panic"), 1);
        let result = result.into_inner().expect("not poisoned");
        assert!(matches!(result, Some(ScanError::Running { .. })), "{result:?}");
    });
}

/// Rust code that does not poll cannot be suspended. Its inspection times out.
#[test]
fn the_inspection_of_a_goroutine_that_does_not_yield_times_out() {
    run(2, || {
        let (runs, polls, stop) =
            (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        scope(|s| {
            let _stop = AtEnd(|| stop.store(true, Ordering::Relaxed));
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    runs.fetch_add(1, Ordering::Relaxed);
                    if polls.load(Ordering::Relaxed) {
                        checkpoint();
                    }
                }
            });
            occupy_until("it starts", || runs.load(Ordering::Relaxed) > 0);
            let other = the_other();
            let wait = Duration::from_millis(20);
            match other.scan_stack(wait, |_| panic!("it is running")) {
                Err(ScanError::Running { waited }) => assert!(waited >= wait),
                other => panic!("{other:?}"),
            }
            let all = traceback_all();
            let trace = all.iter().find(|t| t.id == other.id()).expect("it runs");
            assert_eq!((trace.status, trace.frames.len()), (Status::Running, 0), "{trace}");
            let before = runs.load(Ordering::Relaxed);
            polls.store(true, Ordering::Relaxed);
            assert_eq!(scan(other), Ok((vec![], WalkEnd::Complete)));
            // Others may inspect theirs meanwhile, one at a time.
            let trace = traceback_all_within(LONG).into_iter().find(|t| t.id == other.id());
            let trace = trace.expect("it runs").to_string();
            assert!(
                trace.contains("the_inspection_of_a_goroutine_that_does_not_yield_times_out"),
                "{trace}"
            );
            occupy_until("it resumes", || runs.load(Ordering::Relaxed) > before);
        });
    });
}

/// Two goroutines inspect each other, and a foreign thread inspects both, all the time.
#[test]
fn goroutines_can_inspect_each_other() {
    let entry = nested_loop(false);
    let (patience, end) = (Patience::new(), Instant::now() + stress_or(1.0));
    let scans = AtomicUsize::new(0);
    let is_enough = || scans.load(Ordering::Relaxed) > 100 || patience.is_over();
    let inspect = |targets: &dyn Fn() -> Vec<Goroutine>| {
        while Instant::now() < end || !is_enough() {
            for goroutine in targets() {
                match scan(goroutine) {
                    Ok((_, WalkEnd::Complete)) => {
                        scans.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(ScanError::Ended) => {}
                    other => panic!("{goroutine:?}: {other:?}"),
                }
            }
        }
    };
    run(3, || {
        let words = Words::default();
        scope(|s| {
            let _stop = AtEnd(|| words.stop());
            s.go(|| enter(&entry, &words));
            std::thread::scope(|threads| {
                let inspectors = [s.go(|| inspect(&goroutines)), s.go(|| inspect(&goroutines))];
                // Fixed, since goroutines that other tests start later may not be suspendable.
                let all = goroutines();
                let thread = threads.spawn(move || inspect(&|| all.clone()));
                // This goroutine yields while it waits, since it is inspected itself.
                wait_until("the thread is done", || thread.is_finished());
                inspectors.into_iter().for_each(|inspector| inspector.join().expect("no panic"));
                thread.join().expect("no panic");
            });
        });
    });
    let scans = scans.load(Ordering::Relaxed);
    println!("{scans} scans");
    assert!(scans > 100, "{scans}");
}

#[test]
fn a_forbidden_call_in_a_visitor_panics_and_the_goroutine_is_resumed() {
    run(1, || {
        let channel = Chan::<u64>::new(0);
        let entry = receiver(&["caller"], receive);
        scope(|s| {
            // SAFETY: on a goroutine; the channel outlives the scope.
            let receiver = s.go(|| unsafe { entry.call(&channel) });
            gosched();
            let other = the_other();
            type Visit<'a> = &'a dyn Fn();
            let visits: [(&str, Visit<'_>); 3] = [
                ("cannot park inside of systemstack", &gosched),
                ("a visit of its stack cannot inspect others", &|| drop(scan(other))),
                ("by the visitor", &|| panic!("by the visitor")),
            ];
            for (expected, visit) in visits {
                let visited = catch_unwind(AssertUnwindSafe(|| {
                    other.scan_stack(LONG, |_| {
                        visit();
                        ControlFlow::Continue(())
                    })
                }));
                let payload = visited.expect_err("a panic");
                let text = payload.downcast_ref::<String>().cloned();
                let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&s| s.into()));
                let text = text.expect("a message");
                assert!(text.contains(expected), "{text}");
                // It was resumed, and the lock of inspections was released.
                assert!(scan(other).is_ok());
            }
            channel.send(3).expect("open");
            assert_eq!(receiver.join().expect("no panic"), 3);
        });
    });
}

/// The timeout of an inspection includes the wait for another inspection.
#[test]
fn the_wait_for_another_inspection_times_out() {
    let entry = nested_loop(false);
    run(2, || {
        let words = Words::default();
        let (inspecting, done) = (AtomicBool::new(false), AtomicBool::new(false));
        scope(|s| {
            let _stop = AtEnd(|| words.stop());
            s.go(|| enter(&entry, &words));
            // It must run on the other thread, since its visitor waits for this one.
            occupy_until("it starts", || words.count.load(Ordering::Relaxed) > 0);
            let other = the_other();
            std::thread::scope(|threads| {
                let _done = AtEnd(|| done.store(true, Ordering::Relaxed));
                threads.spawn(|| {
                    let visited = other.scan_stack(LONG, |_| {
                        inspecting.store(true, Ordering::Relaxed);
                        while !done.load(Ordering::Relaxed) {
                            std::thread::yield_now();
                        }
                        ControlFlow::Break(())
                    });
                    assert_eq!(visited, Ok(WalkEnd::Stopped));
                });
                wait_until("the thread inspects", || inspecting.load(Ordering::Relaxed));
                let wait = Duration::from_millis(10);
                let inspections: [&dyn Fn() -> Result<WalkEnd, ScanError>; 2] =
                    [&|| other.scan_stack(wait, |_| ControlFlow::Continue(())), &|| {
                        systemstack(|| other.scan_stack(wait, |_| ControlFlow::Continue(())))
                    }];
                for inspection in inspections {
                    match inspection() {
                        Err(ScanError::Running { waited }) => assert!(waited >= wait),
                        other => panic!("{other:?}"),
                    }
                }
                let all = traceback_all_within(wait);
                assert!(all.iter().any(|t| t.id == other.id() && t.frames.is_empty()), "{all:?}");
            });
        });
    });
}

/// A goroutine that has not started, the calling one, one on the system stack, one that has ended.
#[test]
fn goroutines_in_all_states_can_be_inspected() {
    assert_eq!(this_goroutine(), None);
    // No preemption while a goroutine waits for the inspections of other tests.
    let config = Config::new().processors(1).time_slice(None);
    let named = config.run(|| {
        let own = this_goroutine().expect("on a goroutine");
        assert_eq!(scan(own), Ok((vec![], WalkEnd::Complete)));
        assert_eq!(systemstack(|| scan(own)), Ok((vec![], WalkEnd::Complete)));
        let handle = go(|| this_goroutine().map(Goroutine::id));
        let all = goroutines();
        let other = *all.iter().find(|g| **g != own).expect("two of them");
        assert!(all.is_sorted_by_key(|g| g.id()));
        assert_eq!(scan(other), Ok((vec![], WalkEnd::Complete)));
        assert_eq!(handle.join().expect("no panic"), Some(other.id()));
        assert_eq!(scan(other), Err(ScanError::Ended));
        // Another goroutine, with another id, reuses its G structure.
        let handle = go(|| sleep(Duration::from_millis(1)));
        gosched();
        assert_eq!(scan(other), Err(ScanError::Ended));
        assert_eq!(other.status(), None);
        let newer = the_other();
        assert_eq!(newer.status(), Some((Status::Waiting, WaitReason::Sleep)));
        assert!(newer.id() > other.id(), "{newer:?} {other:?}");
        handle.join().expect("no panic");
    });
    named.expect("the run starts");
    // Inspection from outside of the run.
    let (ready, done) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            run(1, || {
                ready.store(1, Ordering::Release);
                wait_for("the test ends", || done.load(Ordering::Acquire) != 0);
            })
        });
        let _done = AtEnd(|| done.store(1, Ordering::Release));
        block_until("the run starts", || ready.load(Ordering::Acquire) != 0);
        assert!(traceback_all_within(LONG).iter().any(|trace| !trace.frames.is_empty()));
        // Goroutines of other tests may not yield.
        let wait = Duration::from_millis(50);
        block_until("one of them is inspected", || {
            goroutines()
                .iter()
                .any(|goroutine| goroutine.scan_stack(wait, |_| ControlFlow::Continue(())).is_ok())
        });
        // An abandoned goroutine of an earlier run is not listed.
        let left = run(1, || {
            let left = go(|| Chan::<()>::new(0).recv());
            gosched();
            let other = the_other();
            drop(left);
            other
        });
        assert!(!goroutines().contains(&left), "{left:?}");
        assert_eq!((scan(left), left.status()), (Err(ScanError::Ended), None));
    });
}

/// Debug information is read on the system stack, since the goroutine's stack may be too small.
#[test]
fn a_goroutine_with_the_smallest_stack_can_print_tracebacks() {
    run(1, || {
        let never = Chan::<()>::new(0);
        scope(|s| {
            let _close = AtEnd(|| assert!(never.close()));
            s.go(|| never.recv());
            gosched();
            let small = Builder::new().stack_bytes(16 << 10);
            let traced = small.go_scoped(s, || {
                let own = traceback().to_string();
                (own, traceback_all().len())
            });
            let (own, all) = traced.expect("memory").join().expect("no panic");
            assert!(own.contains("a_goroutine_with_the_smallest_stack"), "{own}");
            assert_eq!(all, 3);
        });
    });
}

/// A running system: goroutines in JIT loops on all threads, parked goroutines, sleepers, and
/// goroutines that start and end all the time.
#[test]
fn traceback_all_shows_all_goroutines_of_a_running_system() {
    let (preemptible, polling) = (nested_loop(false), nested_loop(true));
    run(3, || {
        let words: Vec<Words> = (0..6).map(|_| Words::default()).collect();
        let stop = AtomicBool::new(false);
        let never = Chan::<u64>::new(0);
        scope(|s| {
            let _stop = AtEnd(|| {
                stop.store(true, Ordering::Relaxed);
                never.close();
                words.iter().for_each(Words::stop);
            });
            for (i, words) in words.iter().enumerate() {
                let entry = if i % 2 == 0 { &preemptible } else { &polling };
                s.go(move || enter(entry, words));
            }
            s.go(|| {
                let _ = never.recv();
            });
            s.go(|| {
                while !stop.load(Ordering::Relaxed) {
                    scope(|s| {
                        s.go(|| sleep(Duration::from_micros(50)));
                    });
                }
            });
            wait_until("all loop", || {
                words.iter().all(|words| words.count.load(Ordering::Relaxed) > 0)
            });
            let end = Instant::now() + stress_or(1.0);
            let mut tracebacks = 0;
            while Instant::now() < end {
                let all = traceback_all_within(LONG);
                let of = |name: &str| {
                    let has = |t: &&Traceback| t.to_string().contains(name);
                    all.iter().filter(has).count()
                };
                let missing =
                    all.iter().filter(|t| t.frames.is_empty() && t.status == Status::Running);
                assert_eq!(missing.count(), 0, "{all:?}");
                assert_eq!((of("jit inner+"), of("jit inner polling+")), (3, 3), "{all:?}");
                assert!(of("[chan receive]") >= 1, "{all:?}");
                tracebacks += 1;
            }
            assert!(tracebacks >= 1, "{tracebacks}");
        });
    });
}
