//! Starting goroutines: the builder, names, handles, and the messages for misuse.

use std::collections::HashMap;
use std::error::Error;
use std::panic::{self, AssertUnwindSafe, Location, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use footbridge::abi::Convention;
use footbridge::jit::Jit;
use footbridge::runtime::{
    Abandoned, Builder, Case, Chan, Config, StackError, Traceback, WaitReason, go, gopark,
    goroutines, gosched, run, scope, select, select_timeout, sleep, systemstack, this_goroutine,
    traceback, traceback_all,
};

use support::child;
use support::code::caller;
use support::runs::{AtEnd, on, wait_for};

fn own_name() -> Option<String> {
    this_goroutine().expect("on a goroutine").name()
}

fn first_line(trace: &Traceback) -> String {
    trace.to_string().lines().next().expect("a line").to_string()
}

#[test]
fn every_way_to_start_a_goroutine_gives_it_a_name() {
    let config = Config::new().stack_bytes(1 << 20);
    let ended = config.run(|| {
        assert_eq!(own_name(), None, "the main goroutine");
        let plain = go(own_name);
        assert_eq!(plain.name(), None);
        assert_eq!(plain.join().expect("no panic"), None);
        let named = Builder::new().name("go").go(own_name).expect("memory");
        assert_eq!(named.name(), Some("go"));
        assert_eq!(format!("{named:?}"), format!("JoinHandle(goroutine {} \"go\")", named.id()));
        assert_eq!(named.join().expect("no panic").as_deref(), Some("go"));
        let scoped = scope(|s| {
            let builder = Builder::new().name(String::from("scoped"));
            let handle = builder.go_scoped(s, own_name).expect("memory");
            assert_eq!(handle.name(), Some("scoped"));
            let text = format!("ScopedJoinHandle(goroutine {} \"scoped\")", handle.id());
            assert_eq!(format!("{handle:?}"), text);
            wait_for("it ends", || handle.is_finished());
            assert_eq!(s.go(own_name).join().expect("no panic"), None);
            handle.join().expect("no panic")
        });
        assert_eq!(scoped.as_deref(), Some("scoped"));
        // SAFETY: the goroutine uses nothing that belongs to its thread.
        let migratable = unsafe { Builder::new().name("migratable").go_migratable(own_name) };
        let migratable = migratable.expect("memory");
        assert_eq!(migratable.name(), Some("migratable"));
        assert_eq!(migratable.join().expect("no panic").as_deref(), Some("migratable"));
        // A closure of this alignment is boxed, since a stack slot does not align so far.
        #[repr(align(8192))]
        struct Page(u8);
        let page = Page(7);
        let body = move || (std::hint::black_box(&page).0, own_name());
        let page = Builder::new().name("page").go(body).expect("memory");
        assert_eq!(page.name(), Some("page"));
        assert_eq!(page.join().expect("no panic"), (7, Some("page".into())));
    });
    ended.expect("the run starts");
}

#[test]
fn goroutines_that_jit_code_starts_have_the_name_of_the_builder() {
    const GO: Convention = Convention::GoAbiInternal;
    static SEEN: Mutex<Vec<Option<String>>> = Mutex::new(Vec::new());
    let jit = Jit::new().expect("code memory");
    let record = || SEEN.lock().expect("not poisoned").push(own_name());
    let record = jit.named_goroutine_fn("record", GO, record).expect("a stub");
    let body = caller("body", record.address());
    let signature = "fn()".parse().expect("a signature");
    let builder = Builder::new().name("of jit").stack_bytes(256 << 10);
    // SAFETY: code of this type, without arguments.
    let start = unsafe { builder.spawn_fn(&jit, GO, &signature, &body) }.expect("a stub");
    let main = caller("main", start.address());
    // SAFETY: of this type.
    let main = unsafe { main.enter::<fn()>(GO) }.expect("an entry");
    run(|| {
        for _ in 0..3 {
            // SAFETY: on a goroutine.
            unsafe { main.call() };
        }
        wait_for("three run", || SEEN.lock().expect("not poisoned").len() == 3);
    });
    let seen = SEEN.lock().expect("not poisoned");
    assert_eq!(*seen, vec![Some(String::from("of jit")); 3]);
}

#[test]
fn tracebacks_show_names() {
    run(|| {
        let gate = Chan::<u8>::new(0);
        let waiting = gate.clone();
        let pump = Builder::new().name("pump").go(move || waiting.recv()).expect("memory");
        let odd = gate.clone();
        let odd = Builder::new().name("a \"b\"\n").go(move || odd.recv()).expect("memory");
        let own = Builder::new().name("own").go(traceback).expect("memory");
        let own = (own.id(), own.join().expect("no panic"));
        assert_eq!((own.1.id, own.1.name.as_deref()), (own.0, Some("own")));
        assert_eq!(first_line(&own.1), format!("goroutine {} \"own\" [running]:", own.0));
        let main = traceback();
        assert_eq!((main.name.as_deref(), first_line(&main).contains('"')), (None, false));
        let all = traceback_all();
        let of = |id: u64| all.iter().find(|trace| trace.id == id).expect("it is there");
        let (id, trace) = (pump.id(), of(pump.id()));
        assert_eq!(
            (trace.name.as_deref(), trace.wait_reason),
            (Some("pump"), WaitReason::ChanReceive)
        );
        assert_eq!(first_line(trace), format!("goroutine {id} \"pump\" [chan receive]:"));
        let id = odd.id();
        // Line breaks in a name are escaped.
        assert_eq!(
            first_line(of(id)),
            format!("goroutine {id} \"a \\\"b\\\"\\n\" [chan receive]:")
        );
        gate.close();
    });
}

/// A name belongs to a goroutine, not to the G structure that a later goroutine reuses.
#[test]
fn a_reused_g_does_not_keep_the_name_of_the_goroutine_before() {
    const STARTS: u64 = 3000;
    on(2, || {
        let stop = AtomicBool::new(false);
        let (truth, seen) = scope(|s| {
            let stop_at_the_end = AtEnd(|| stop.store(true, Ordering::Relaxed));
            // Reads names while goroutines start and end in reused G structures.
            let reader = s.go(|| {
                let mut seen = HashMap::new();
                while !stop.load(Ordering::Relaxed) {
                    for goroutine in goroutines() {
                        gosched();
                        if let Some(name) = goroutine.name() {
                            let before = seen.insert(goroutine.id(), name.clone());
                            assert!(before.is_none_or(|before| before == name));
                        }
                    }
                    gosched();
                }
                seen
            });
            let mut truth = HashMap::new();
            for n in 0..STARTS {
                let builder = match n % 3 {
                    0 => Builder::new(),
                    _ => Builder::new().name(format!("number {n}")),
                };
                let handle = builder.go(own_name).expect("memory");
                let name = handle.name().map(str::to_string);
                assert_eq!(name, (n % 3 != 0).then(|| format!("number {n}")));
                truth.insert(handle.id(), name.clone());
                assert_eq!(handle.join().expect("no panic"), name);
            }
            drop(stop_at_the_end);
            (truth, reader.join().expect("no panic"))
        });
        assert_eq!(truth.len() as u64, STARTS);
        for (id, name) in seen {
            assert_eq!(truth.get(&id), Some(&Some(name)), "goroutine {id}");
        }
    });
}

#[test]
fn a_panic_shows_the_name_of_its_goroutine() {
    let outcome = child::run("a_panic_shows_the_name_of_its_goroutine", || {
        run(|| {
            let panics = |text: &'static str| move || -> () { panic!("{text}") };
            let named = Builder::new().name("pump").go(panics("first")).expect("memory");
            assert_eq!(named.id(), 2, "the main goroutine is the first");
            assert!(named.join().is_err());
            assert!(go(panics("second")).join().is_err());
            // A caught panic is printed too; `resume_unwind` prints nothing.
            let caught = move || drop(catch_unwind(panics("third")));
            Builder::new().name("pump").go(caught).expect("memory").join().expect("caught");
            let silent = || panic::resume_unwind(Box::new(1));
            assert!(Builder::new().name("silent").go(silent).expect("memory").join().is_err());
        });
    });
    outcome.assert_success();
    let lines: Vec<_> = outcome.stderr.lines().filter(|line| !line.is_empty()).collect();
    let place = |line: &str| line.starts_with("thread ") && line.contains("panicked at");
    let shown: Vec<_> = lines.iter().filter(|l| !place(l) && !l.starts_with("note:")).collect();
    assert_eq!(shown[0], &"in goroutine 2 \"pump\":", "{lines:?}");
    assert_eq!(shown[1..3], [&"first", &"second"], "{lines:?}");
    assert!(shown[3].ends_with(" \"pump\":") && shown[4..] == [&"third"], "{lines:?}");
}

#[test]
fn an_overflow_shows_the_name_of_its_goroutine() {
    #[inline(never)]
    fn deep(n: u64) -> u64 {
        let frame = std::hint::black_box([n; 64]);
        if frame[0] == u64::MAX { 0 } else { deep(n + 1) + frame[63] }
    }
    let outcome = child::run("an_overflow_shows_the_name_of_its_goroutine", || {
        run(|| {
            let handle = Builder::new().name("deep").go(|| deep(0)).expect("memory");
            drop(handle.join());
        });
    });
    let text = "footbridge: fatal: goroutine 2 \"deep\" overflowed its 64 KiB stack in rust ";
    assert!(outcome.stderr.starts_with(text), "{}", outcome.stderr);
}

#[test]
fn a_deadlock_shows_names() {
    let outcome = child::run("a_deadlock_shows_names", || {
        let config = Config::new().processors(1).time_slice(None);
        let _ = config.run(|| {
            let never = Chan::<u8>::new(0);
            let waiting = never.clone();
            let pump = Builder::new().name("pump").go(move || waiting.recv()).expect("memory");
            let _kept = never;
            pump.join().map(drop)
        });
    });
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let text = "goroutine 2 \"pump\" [chan receive]:\n";
    assert!(outcome.stderr.contains(text), "{}", outcome.stderr);
}

#[test]
fn a_refused_start_returns_the_closure_and_the_reason() {
    run(|| {
        let (requested, text) = ((8 << 20) + 1, String::from("kept"));
        let builder = Builder::new().name("large").stack_bytes(requested);
        let refused = builder.clone().go(move || text).map(drop).expect_err("too large");
        assert_eq!(refused.error, StackError::TooLarge { requested });
        assert!(format!("{refused:?}").starts_with("SpawnError { error: TooLarge"), "{refused:?}");
        let source = refused.source().expect("a reason").to_string();
        assert_eq!(refused.to_string(), format!("a goroutine could not be started: {source}"));
        assert_eq!(refused.into_inner()(), "kept");
        // The scope does not wait for a goroutine that was not started.
        let mut list = vec![1];
        let sum = scope(|s| {
            let refused = builder.go_scoped(s, || list.push(2)).map(drop).expect_err("too large");
            (refused.into_inner())();
            s.go(|| 3).join().expect("no panic")
        });
        assert_eq!((list, sum), (vec![1, 2], 3));
    });
    let error: &dyn Error = &Abandoned;
    assert_eq!(error.to_string(), "the run ended before the goroutine did");
}

/// The file, line and message that the panic of `f` reports.
fn report_of(f: impl FnOnce()) -> (String, u32, String) {
    static LOCK: Mutex<()> = Mutex::new(());
    static REPORT: Mutex<Option<(String, u32, String)>> = Mutex::new(None);
    let _one = LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let previous = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        let at = info.location().expect("a location");
        let (payload, fixed) = (info.payload(), info.payload().downcast_ref::<&str>());
        let text = fixed.map(|text| text.to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        *REPORT.lock().expect("not poisoned") = Some((at.file().into(), at.line(), text));
    }));
    let end = catch_unwind(AssertUnwindSafe(f));
    panic::set_hook(previous);
    assert!(end.is_err(), "it panics");
    REPORT.lock().expect("not poisoned").take().expect("the hook ran")
}

#[test]
fn misuse_is_reported_at_the_location_of_the_caller() {
    // In a process of its own, since the panic hook is global.
    let test = "misuse_is_reported_at_the_location_of_the_caller";
    child::run(test, || {
        #[track_caller]
        fn check<R>(text: &str, f: impl FnOnce() -> R) {
            let here = Location::caller();
            let (file, line, message) = report_of(|| drop(f()));
            assert!(message.contains(text), "{message}");
            // The call may begin on a line after that of `check`.
            let lines = here.line()..here.line() + 4;
            assert!(file == here.file() && lines.contains(&line), "{message}: {file}:{line}");
        }
        let no_run = "call footbridge::runtime::run first";
        check(no_run, || go(|| ()));
        check(no_run, || Builder::new().go(|| ()));
        // SAFETY: the goroutine is not started.
        check(no_run, || unsafe { Builder::new().go_migratable(|| ()) });
        check(no_run, || scope(|s| drop(s.go(|| ()))));
        check(no_run, || scope(|s| drop(Builder::new().go_scoped(s, || ()))));
        run(|| {
            let park = "cannot park inside of systemstack";
            let never = Chan::<u8>::new(0);
            let long = Duration::from_secs(9);
            let mut slot = None;
            check(park, || systemstack(|| never.send(1)));
            check(park, || systemstack(|| never.recv()));
            check(park, || systemstack(|| never.send_timeout(1, long)));
            check(park, || systemstack(|| never.recv_timeout(long)));
            check(park, || systemstack(|| select(&mut [Case::recv(&never, &mut slot)])));
            check(park, || systemstack(|| select_timeout(&mut [], long)));
            check(park, || systemstack(|| sleep(long)));
            check(park, || {
                systemstack(|| {
                    gosched();
                })
            });
            check(park, || systemstack(|| scope(|_| ())));
            let waiting = never.clone();
            let handle = go(move || waiting.recv());
            check(park, || systemstack(|| handle.join()));
            // SAFETY: the call panics before it parks.
            check(park, || systemstack(|| unsafe { gopark(WaitReason::Other, || ()) }));
        });
    })
    .assert_success();
}
