//! The watchdog: what it says of goroutines that keep their thread, and when it says nothing.
//!
//! Each test has a process of its own. Its standard error is a pipe that the test reads itself, so
//! that a goroutine keeps its thread until the message has come, however long that takes.

use std::ffi::{CStr, CString, c_void};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use footbridge::abi::Convention;
use footbridge::jit::Jit;
use footbridge::runtime::{Builder, Chan, Config, JoinHandle, go, gosched};
use support::child::{self, Child, Outcome};
use support::code::caller;
use support::gcc;
use support::runs::config;

/// Longer than a thread that is ready waits for a processor.
const LIMIT: Duration = Duration::from_millis(300);

/// Standard error of this process from here on, which a thread reads.
struct Captured(Arc<(Mutex<Text>, Condvar)>);

#[derive(Default)]
struct Text {
    text: String,
    /// What a goroutine waits for.
    wanted: Option<String>,
}

impl Captured {
    fn new() -> Self {
        let mut ends = [0; 2];
        // SAFETY: the address of a local; the descriptors are new, and one becomes number 2.
        let mut file = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            assert_eq!(libc::dup2(ends[1], libc::STDERR_FILENO), libc::STDERR_FILENO);
            std::fs::File::from(OwnedFd::from_raw_fd(ends[0]))
        };
        let shared = Arc::new((Mutex::new(Text::default()), Condvar::new()));
        let of_reader = shared.clone();
        std::thread::spawn(move || {
            loop {
                let mut buffer = [0; 4096];
                let n = file.read(&mut buffer).expect("a pipe");
                let (text, found) = &*of_reader;
                let text = &mut *text.lock().expect("no panic");
                text.text.push_str(std::str::from_utf8(&buffer[..n]).expect("UTF-8"));
                // For a test that fails.
                print!("{}", std::str::from_utf8(&buffer[..n]).expect("UTF-8"));
                let _ = std::io::stdout().flush();
                if text.wanted.as_ref().is_some_and(|wanted| text.text.contains(wanted)) {
                    text.wanted = None;
                    found.notify_all();
                }
            }
        });
        Self(shared)
    }

    /// Blocks the thread until the text has `pattern`: in a lock, without a system call in between.
    /// Returns the text so far.
    #[inline(never)]
    fn blocks_until(&self, pattern: &str) -> String {
        let (text, found) = &*self.0;
        let mut text = text.lock().expect("no panic");
        if !text.text.contains(pattern) {
            text.wanted = Some(pattern.into());
        }
        while text.wanted.is_some() {
            text = found.wait(text).expect("no panic");
        }
        text.text.clone()
    }

    /// What has come within some time. For tests that expect nothing more: a slow machine cannot
    /// make those fail.
    fn after(&self, time: Duration) -> String {
        std::thread::sleep(time);
        self.0.0.lock().expect("no panic").text.clone()
    }

    fn clear(&self) {
        self.0.0.lock().expect("no panic").text.clear();
    }
}

/// Runs `body` in a process of its own with captured standard error.
fn captured(child: Child, body: impl FnOnce(&Captured)) -> Outcome {
    child.run(|| body(&Captured::new()))
}

/// Goroutines that have started, and yield until `stop` is set: they belong to this thread.
fn yielding(n: usize, stop: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let started = Arc::new(AtomicUsize::new(0));
    let body = || {
        let (started, stop) = (started.clone(), stop.clone());
        go(move || {
            started.fetch_add(1, Ordering::SeqCst);
            while !stop.load(Ordering::SeqCst) {
                gosched();
            }
        })
    };
    let handles = (0..n).map(|_| body()).collect();
    while started.load(Ordering::SeqCst) < n {
        gosched();
    }
    handles
}

#[test]
fn a_goroutine_that_blocks_its_thread_is_named_once_with_those_that_wait() {
    let test = "a_goroutine_that_blocks_its_thread_is_named_once_with_those_that_wait";
    captured(Child::of(test), |stderr| {
        let run = config(1).watchdog(LIMIT).run(|| {
            let stop = Arc::new(AtomicBool::new(false));
            // Three that belong to the thread, two that have not started, and one that another
            // thread readies while this one is blocked.
            let mut all = yielding(3, &stop);
            let (channel, parked) = (Chan::<()>::new(0), Chan::<()>::new(0));
            let (wait, tell) = (channel.clone(), parked.clone());
            all.push(go(move || {
                tell.send(()).expect("open");
                assert!(wait.recv().is_err());
            }));
            parked.recv().expect("open");
            gosched();
            all.extend([go(|| ()), go(|| ())]);
            let foreign = std::thread::spawn(move || channel.close());
            foreign.join().expect("no panic");
            let text = stderr.blocks_until("(goroutine entry)\n");
            assert_eq!(
                text.lines().next().expect("a line").replace(char::is_numeric, "0"),
                "footbridge: goroutine 0 has been in native code on its thread for 000 ms; \
                 0 goroutines wait behind it"
            );
            assert!(text.contains("; 6 goroutines wait behind it\n"));
            assert!(text.contains("\ngoroutine 1 [blocked in native code]:\n    c syscall+0x"));
            assert!(text.contains("    rust runtime::watchdog::Captured::blocks_until+0x"));
            let text = stderr.after(LIMIT * 10);
            assert_eq!(text.matches("behind it").count(), 1, "once per incident");
            // The next incident is one of its own.
            gosched();
            stderr.clear();
            stderr.blocks_until("behind it\n");
            stop.store(true, Ordering::SeqCst);
            all.into_iter().for_each(|one| one.join().expect("no panic"));
        });
        run.expect("the run starts");
    })
    .assert_success();
}

/// The address of a symbol of a library.
fn symbol(library: *mut c_void, name: &CStr) -> usize {
    // SAFETY: an open library, and a string that ends with zero.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!address.is_null(), "the library has {name:?}");
    address as usize
}

#[test]
fn a_module_in_the_place_of_one_that_is_gone_is_walked_by_its_own_tables() {
    extern "C" fn blocks(stderr: &Captured) {
        stderr.blocks_until("(goroutine entry)\n");
    }
    let test = "a_module_in_the_place_of_one_that_is_gone_is_walked_by_its_own_tables";
    if !gcc::has_gcc() {
        return;
    }
    captured(Child::of(test), |stderr| {
        let name = format!("footbridge-watchdog-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let open = |name: &str, text: &str| {
            let (source, library) = (directory.join("text.c"), directory.join(name));
            std::fs::write(&source, text).expect("written");
            let arguments = ["-shared", "-fPIC", "-O2", "-fno-optimize-sibling-calls"];
            gcc::compile("gcc", &arguments, &library, &[&source]);
            let path = CString::new(library.to_str().expect("UTF-8")).expect("no zero");
            // SAFETY: the libraries have no constructors of their own.
            let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
            assert!(!library.is_null());
            library
        };
        // Its tables are larger than the module that comes into its place.
        let mut text = String::from("int called(int); int first[4096] = {1}, last[4096];\n");
        for n in 0..2000 {
            writeln!(text, "int f{n}(int x) {{ return called(x + {n}) + 1; }}").expect("memory");
        }
        let large = open("large.so", &text);
        let run = config(1).watchdog(LIMIT).run(|| {
            let place = symbol(large, c"f0")..symbol(large, c"last");
            // SAFETY: nothing of it is used.
            assert_eq!(unsafe { libc::dlclose(large) }, 0);
            let text = "int calls(void (*f)(void *), void *x) { f(x); return 1; }";
            let mut small = (0..16).map(|n| symbol(open(&format!("{n}.so"), text), c"calls"));
            let calls = small.find(|at| place.contains(at)).expect("one is in that place");
            // SAFETY: the type of the C function, but for a reference.
            let calls: extern "C" fn(extern "C" fn(&Captured), &Captured) -> i32 =
                unsafe { std::mem::transmute(calls) };
            let waits = go(|| ());
            assert_eq!(calls(blocks, stderr), 1);
            waits.join().expect("no panic");
        });
        run.expect("the run starts");
        let _ = std::fs::remove_dir_all(&directory);
        let text = stderr.after(Duration::ZERO);
        assert!(text.contains("    c calls+0x"));
        assert!(!text.contains("cannot be told"));
    })
    .assert_success();
}

#[test]
fn goroutines_of_other_threads_do_not_count() {
    let test = "goroutines_of_other_threads_do_not_count";
    captured(Child::of(test), |stderr| {
        let run = config(2).watchdog(3 * LIMIT).run(|| {
            let main = std::thread::current().id();
            let (told, channel) = (Chan::<bool>::new(0), Chan::<()>::new(0));
            // One that parks on this thread, and that another thread readies.
            let waits = loop {
                let (tell, wait) = (told.clone(), channel.clone());
                let waits = go(move || {
                    let is_here = std::thread::current().id() == main;
                    tell.send(is_here).expect("open");
                    assert!(!is_here || wait.recv().is_err());
                });
                if told.recv().expect("open") {
                    break waits;
                }
            };
            gosched();
            std::thread::spawn(move || channel.close()).join().expect("no panic");
            // The other thread starts these.
            let others: Vec<_> = (0..10).map(|_| go(|| ())).collect();
            let text = stderr.blocks_until("behind it\n");
            assert!(text.contains("; 1 goroutine waits behind it\n"));
            others.into_iter().chain([waits]).for_each(|one| one.join().expect("no panic"));
        });
        run.expect("the run starts");
    })
    .assert_success();
}

#[test]
fn a_goroutine_that_computes_is_named_with_its_jit_frames() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let test = "a_goroutine_that_computes_is_named_with_its_jit_frames";
    captured(Child::of(test), |stderr| {
        let jit = Jit::new().expect("code memory");
        let spins = jit.named_goroutine_fn("spins", Convention::SystemV, || {
            while !DONE.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
        });
        let spins = spins.expect("a stub");
        let outer = caller("outer", spins.address());
        // SAFETY: a System V function of this type.
        let entry = unsafe { outer.enter::<fn()>(Convention::SystemV) }.expect("an entry");
        std::thread::scope(|s| {
            s.spawn(|| {
                stderr.blocks_until("(enter)\n");
                DONE.store(true, Ordering::SeqCst);
            });
            let run = config(1).watchdog(LIMIT).run(|| {
                // SAFETY: on a goroutine.
                let body = move || unsafe { entry.call() };
                let named = Builder::new().name("pump").go(body).expect("memory");
                let waits = go(|| ());
                named.join().expect("no panic");
                waits.join().expect("no panic");
            });
            run.expect("the run starts");
        });
        let expected =
            "[running]:\n    (computes; its native frames cannot be read)\n    jit spins+0x";
        let text = stderr.after(Duration::ZERO);
        assert!(text.contains(expected));
        assert!(text.starts_with("footbridge: goroutine 2 \"pump\" has been in native code"));
    })
    .assert_success();
}

#[test]
fn a_run_that_does_not_end_says_which_goroutine_keeps_it() {
    let test = "a_run_that_does_not_end_says_which_goroutine_keeps_it";
    for case in 0..2 {
        let outcome = Child::of(test).case(case, || {
            let stderr: &'static Captured = Box::leak(Box::new(Captured::new()));
            let config = config(2).watchdog(LIMIT);
            // Without time slices there is no sysmon: the watchdog has a thread of its own.
            let config = if case == 0 { config } else { config.time_slice(None) };
            let run = config.run(|| {
                static BLOCKS: AtomicBool = AtomicBool::new(false);
                let main = std::thread::current().id();
                while !BLOCKS.load(Ordering::SeqCst) {
                    let named = Builder::new().name("keeper");
                    let body = move || {
                        // The first one that another thread steals, without a park from here on.
                        let is_elsewhere = std::thread::current().id() != main;
                        if is_elsewhere && !BLOCKS.swap(true, Ordering::SeqCst) {
                            stderr.blocks_until("(goroutine entry)\n");
                        }
                    };
                    drop(named.go(body).expect("memory"));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            run.expect("the run starts");
            let text = stderr.after(Duration::ZERO);
            assert!(text.starts_with("footbridge: the run has been ending for "));
            let (_, text) = text.split_once(" ms: goroutine ").expect("a time");
            let text = text.trim_start_matches(char::is_numeric);
            let head = " \"keeper\" still blocks in native code on its thread\ngoroutine ";
            assert!(text.starts_with(head));
            assert_eq!(text.matches("\"keeper\" [blocked in native code]:\n").count(), 1);
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn the_watchdog_says_nothing_where_nothing_waits_and_where_it_is_off() {
    let test = "the_watchdog_says_nothing_where_nothing_waits_and_where_it_is_off";
    for case in 0..3 {
        let child = match case {
            2 => Child::of(test).with("FOOTBRIDGE_WATCHDOG", "0"),
            _ => Child::of(test),
        };
        let outcome = child.case(case, || {
            let stderr = Captured::new();
            let config: Config = config(1).watchdog(if case == 1 { None } else { Some(LIMIT) });
            let run = config.run(|| {
                let parked = Chan::<()>::new(0);
                let wait = parked.clone();
                let waits = go(move || wait.recv().is_err());
                gosched();
                // Of these only the last two are incidents, and the watchdog is off there.
                let runnable = (case > 0).then(|| go(|| ()));
                assert_eq!(stderr.after(LIMIT * 10), "");
                parked.close();
                assert!(waits.join().expect("no panic"));
                if let Some(one) = runnable {
                    one.join().expect("no panic");
                }
            });
            run.expect("the run starts");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn the_environment_sets_the_time() {
    let test = "the_environment_sets_the_time";
    captured(Child::of(test).with("FOOTBRIDGE_WATCHDOG", "1.25"), |stderr| {
        let run = config(1).watchdog(Duration::from_secs(3600)).run(|| {
            let waits = go(|| ());
            let text = stderr.blocks_until("behind it\n");
            assert!(text.contains(" on its thread for 1 s; 1 goroutine waits behind it"));
            waits.join().expect("no panic");
        });
        run.expect("the run starts");
    })
    .assert_success();
}

#[test]
fn locks_of_the_standard_library_that_block_all_threads_are_a_deadlock() {
    extern "C" fn nothing(_: i32) {}
    let test = "locks_of_the_standard_library_that_block_all_threads_are_a_deadlock";
    for case in 0..3 {
        let outcome =
            Child::of(test).limit_seconds(if case == 0 { 20 } else { 3 }).case(case, || {
                if case == 1 {
                    // SAFETY: the handler does nothing.
                    unsafe { libc::signal(libc::SIGUSR1, nothing as *const () as usize) };
                }
                let foreign = (case == 2).then(|| std::thread::spawn(std::thread::park));
                let run = config(2).watchdog(LIMIT).run(|| {
                    let lock = Arc::new(Mutex::new(()));
                    let (held, locked) = (lock.clone(), Chan::<()>::new(0));
                    let told = locked.clone();
                    drop(go(move || {
                        let _held = held.lock().expect("no panic");
                        told.send(()).expect("open");
                        let _ = Chan::<()>::new(0).recv();
                    }));
                    locked.recv().expect("open");
                    // A goroutine that waits for this thread will never run either.
                    drop(go(|| ()));
                    drop(lock.lock());
                });
                run.expect("the run starts");
                drop(foreign);
            });
        let Some(outcome) = outcome else { continue };
        let is_fatal = outcome.stderr.contains("all goroutines are asleep - deadlock!\n\n");
        if case > 0 {
            // A signal handler or another thread may release a lock.
            assert!(!is_fatal, "{outcome:#?}");
            assert_eq!(outcome.signal, Some(libc::SIGALRM), "{outcome:#?}");
            continue;
        }
        assert!(is_fatal, "{outcome:#?}");
        assert_eq!((outcome.code, outcome.signal), (Some(2), None), "{outcome:#?}");
        assert!(outcome.stderr.contains("goroutine 1 [blocked in native code]:\n"), "{outcome:#?}");
        assert!(outcome.stderr.contains("goroutine 2 [chan receive]:\n"), "{outcome:#?}");
    }
}

/// Holds the lock of standard error for ever, on another thread than the main goroutine's or on
/// its own.
fn hold_stderr(elsewhere: bool) {
    let held = Chan::<bool>::new(0);
    let main = std::thread::current().id();
    let is_held = |told: &Chan<bool>| {
        let told = told.clone();
        drop(go(move || {
            let is_right = (std::thread::current().id() != main) == elsewhere;
            let lock = is_right.then(|| std::io::stderr().lock());
            told.send(is_right).expect("open");
            if let Some(mut lock) = lock {
                let _ = Chan::<()>::new(0).recv();
                let _ = lock.write_all(b"never");
            }
        }));
        if elsewhere {
            std::thread::sleep(Duration::from_millis(1));
        }
        held.recv().expect("open")
    };
    while !is_held(&held) {}
}

#[test]
fn a_deadlock_is_reported_while_standard_error_is_locked() {
    let test = "a_deadlock_is_reported_while_standard_error_is_locked";
    for case in 0..2 {
        let outcome = child::run_case(test, case, || {
            let run = config(1 + case).run(|| {
                hold_stderr(case == 1);
                let _ = Chan::<()>::new(0).recv();
            });
            run.expect("the run starts");
        });
        let Some(outcome) = outcome else { continue };
        let head = "footbridge: fatal: all goroutines are asleep - deadlock!\n\ngoroutine 1 ";
        assert!(outcome.stderr.starts_with(head), "{outcome:#?}");
        let reports = outcome.stderr.matches(" [chan receive]:\n").count();
        assert_eq!(reports, 2, "{outcome:#?}");
        assert_eq!((outcome.code, outcome.signal), (Some(2), None), "{outcome:#?}");
    }
}

#[test]
fn a_deadlock_is_reported_while_the_dynamic_linker_is_locked() {
    unsafe extern "C" fn parks(
        _: *mut libc::dl_phdr_info,
        _: libc::size_t,
        _: *mut libc::c_void,
    ) -> libc::c_int {
        let _ = Chan::<()>::new(0).recv();
        0
    }
    let test = "a_deadlock_is_reported_while_the_dynamic_linker_is_locked";
    let outcome = child::run(test, || {
        // On another thread than the one that reports: its lock is recursive.
        let run = config(2).run(|| {
            let (held, main) = (Chan::<bool>::new(0), std::thread::current().id());
            loop {
                let told = held.clone();
                drop(go(move || {
                    let is_elsewhere = std::thread::current().id() != main;
                    told.send(is_elsewhere).expect("open");
                    if is_elsewhere {
                        // SAFETY: the callback only parks. (No library is loaded any more.)
                        unsafe { libc::dl_iterate_phdr(Some(parks), std::ptr::null_mut()) };
                    }
                }));
                std::thread::sleep(Duration::from_millis(1));
                if held.recv().expect("open") {
                    break;
                }
            }
            let _ = Chan::<()>::new(0).recv();
        });
        run.expect("the run starts");
    });
    let head = "footbridge: fatal: all goroutines are asleep - deadlock!\n\ngoroutine 1 ";
    assert!(outcome.stderr.starts_with(head), "{outcome:#?}");
    assert_eq!(outcome.stderr.matches(" [chan receive]:\n").count(), 2, "{outcome:#?}");
    // By symbol tables, which tell offsets.
    let frame = "    c dl_iterate_phdr+0x";
    assert!(outcome.stderr.contains(frame), "{outcome:#?}");
    assert_eq!((outcome.code, outcome.signal), (Some(2), None), "{outcome:#?}");
}
