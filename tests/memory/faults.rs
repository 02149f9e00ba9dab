//! Fatal ends: the message, and the signal or the exit code.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::child;
use support::code::caller;
use support::runs::{alone, config};

use crate::{sink, write_and_exit};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{
    self, Case, Chan, MAX_PROCESSORS, RunError, WaitReason, current, go, gopark, goready, gosched,
};
use support::child::{NO_FRAMES, mask, overflow};

const GO: Convention = Convention::GoAbiInternal;

#[test]
fn a_rust_function_that_overflows_is_named() {
    child::run("a_rust_function_that_overflows_is_named", || {
        alone(|| {
            let second = go(|| sink(&[0; 4]));
            second.join().expect("it does not return");
        });
    })
    .assert_aborted_with(&overflow("2", "64 KiB", "256 KiB", "rust memory::sink", NO_FRAMES));
}

#[test]
fn an_overflow_on_any_thread_of_the_run_is_reported() {
    child::run("an_overflow_on_any_thread_of_the_run_is_reported", || {
        let run = config(3).stack_bytes(128 << 10).run(|| {
            let home = std::thread::current().id();
            loop {
                let there = go(move || {
                    if std::thread::current().id() != home {
                        sink(&[0; 4]);
                    }
                });
                std::thread::sleep(Duration::from_millis(1));
                there.join().expect("it does not panic");
            }
        });
        run.expect("the run starts")
    })
    .assert_aborted_with_goroutine(&overflow(
        "_",
        "256 KiB",
        "1 MiB",
        "rust memory::sink",
        NO_FRAMES,
    ));
}

#[test]
fn jit_code_that_overflows_is_named_with_its_frames() {
    let outcome = child::run("jit_code_that_overflows_is_named_with_its_frames", || {
        let jit = Jit::new().expect("code memory");
        // SAFETY: a standard frame; the code calls only itself.
        let code = unsafe {
            jit.install("endless", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; again:
                    ; push rbp
                    ; mov rbp, rsp
                    ; call <again
                    ; pop rbp
                    ; ret
                );
            })
        }
        .expect("installs");
        // SAFETY: ABIInternal code without arguments.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        // SAFETY: on a goroutine.
        alone(|| unsafe { entry.call() });
    });
    // A frame takes 16 bytes of the stack. The report counts the frames that it does not show.
    let (_, count) = outcome.stderr.split_once("(and ").expect("more frames than are shown");
    let count = count.split(' ').next().expect("a number");
    assert!((4000..4096).contains(&count.parse::<usize>().expect("a number")), "{outcome:#?}");
    let frames = "    jit endless+0x_\n".repeat(16) + &format!("    (and {count} more)\n");
    outcome.assert_aborted_with(&overflow("1", "64 KiB", "256 KiB", "jit endless+0x_", &frames));
}

/// Code with a frame of 24 bytes that calls the address in `register`.
fn calls_register(name: &str, register: Gpr) -> Code {
    // SAFETY: a standard frame; ABIInternal preserves neither register.
    unsafe {
        Jit::new().expect("code memory").install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; push rax; call Rq(register));
        })
    }
    .expect("installs")
}

#[test]
fn jit_code_that_overflows_at_any_of_its_pushes_shows_every_frame() {
    let test = "jit_code_that_overflows_at_any_of_its_pushes_shows_every_frame";
    let mut places = BTreeSet::new();
    // The size of the frame above decides which word of a frame hits the guard.
    for case in 0..3 {
        let outcome = child::run_case(test, case, || {
            let above = 8 * case as i32;
            let (even, odd) = (calls_register("even", Gpr::R12), calls_register("odd", Gpr::RBX));
            let (even_at, odd_at) = (even.address() as i64, odd.address() as i64);
            // SAFETY: a standard frame; ABIInternal preserves no register but rsp and rbp.
            let first = unsafe {
                Jit::new().expect("code memory").install("first", FrameClass::Standard, |ops| {
                    dynasm!(ops
                        ; .arch x64
                        ; push rbp
                        ; mov rbp, rsp
                        ; sub rsp, above
                        ; mov rbx, QWORD even_at
                        ; mov r12, QWORD odd_at
                        ; call rbx
                    );
                })
            }
            .expect("installs");
            // SAFETY: ABIInternal code without arguments.
            let entry = unsafe { first.enter::<fn()>(GO) }.expect("entry");
            // SAFETY: on a goroutine.
            alone(|| unsafe { entry.call() });
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
        let (head, frames) = outcome.stderr.split_once("innermost first:\n").expect("two parts");
        let frames: Vec<&str> =
            frames.lines().map(|line| line.trim_start_matches("    jit ")).collect();
        assert_eq!(frames.len(), 17, "{outcome:#?}");
        let frames = &frames[..16];
        assert!(head.contains(&format!(" stack in jit {}\n", frames[0])), "{outcome:#?}");
        // The frames alternate: none is missing, and none is shown twice.
        let is_even = |frame: &str| frame.starts_with("even+");
        assert!(frames.windows(2).all(|pair| is_even(pair[0]) != is_even(pair[1])), "{frames:#?}");
        places.insert(frames[0].split_once('+').expect("an offset").1.to_string());
    }
    assert_eq!(places.len(), 3, "{places:?}");
}

#[test]
fn jit_code_with_one_frame_before_it_overflows_shows_the_whole_chain() {
    child::run("jit_code_with_one_frame_before_it_overflows_shows_the_whole_chain", || {
        let jit = Jit::new().expect("code memory");
        // SAFETY: a standard frame; the loop never ends.
        let code = unsafe {
            jit.install("pushes", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; again:; push rax; jmp <again);
            })
        }
        .expect("installs");
        let outer = caller("outer", code.address());
        // SAFETY: ABIInternal code without arguments.
        let entry = unsafe { outer.enter::<fn()>(GO) }.expect("entry");
        // SAFETY: on a goroutine.
        alone(|| unsafe { entry.call() });
    })
    .assert_aborted_with(&overflow(
        "1",
        "64 KiB",
        "256 KiB",
        "jit pushes+0x_",
        "    jit pushes+0x_\n    jit outer+0x_\n    jit outer+0x_\n",
    ));
}

#[test]
fn an_overflow_below_jit_frames_lists_them() {
    child::run("an_overflow_below_jit_frames_lists_them", || {
        let jit = Jit::new().expect("code memory");
        let inner = |x: u64| sink(&[x; 4]);
        let inner = jit.named_goroutine_fn("inner fn", GO, inner).expect("stub");
        let middle = caller("middle", inner.address());
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { middle.enter::<fn(u64) -> u64>(GO) }.expect("entry");
        // SAFETY: on a goroutine; the middle code is of this type.
        let again = move |x: u64| unsafe { entry.call(x) };
        let again = jit.named_goroutine_fn("outer fn", GO, again).expect("stub");
        let outer = caller("outer", again.address());
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { outer.enter::<fn(u64) -> u64>(GO) }.expect("entry");
        // SAFETY: on a goroutine.
        alone(|| unsafe { entry.call(3) });
    })
    .assert_aborted_with(&overflow(
        "1",
        "64 KiB",
        "256 KiB",
        "rust memory::sink",
        "    jit inner fn+0x_\n    jit middle+0x_\n    jit middle+0x_\n    jit outer fn+0x_\n\
         \x20   jit outer+0x_\n    jit outer+0x_\n",
    ));
}

/// The lines of a report that do not depend on the compiler or its library: heads of goroutines,
/// JIT frames, and functions of this file other than closures.
fn outline(stderr: &str) -> String {
    mask(stderr)
        .lines()
        .filter(|line| {
            let frame = line.trim_start();
            let native = frame.starts_with("rust ") || frame.starts_with("c ");
            !native || frame.starts_with("rust memory::faults::") && !frame.contains("{{closure}}")
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[inline(never)]
fn waits_for_receive(channel: &Chan<u64>) {
    let _ = channel.recv();
}

#[inline(never)]
fn waits_for_send(channel: &Chan<u64>) {
    channel.send(1).expect("open");
}

#[inline(never)]
fn waits_in_select(a: &Chan<u64>, b: &Chan<u64>) {
    let (mut from_a, mut to_b) = (None, Some(1));
    runtime::select(&mut [Case::recv(a, &mut from_a), Case::send(b, &mut to_b)]);
}

#[inline(never)]
fn waits_for_nothing() {
    runtime::select(&mut []);
    // Prevents a tail call, which would remove this frame.
    std::hint::black_box(());
}

#[inline(never)]
fn waits_for_scope(channel: &Chan<u64>) {
    runtime::scope(|s| {
        s.go(|| waits_for_receive(channel));
    });
    std::hint::black_box(());
}

#[inline(never)]
fn waits_otherwise() {
    // SAFETY: it is never readied, and waits for ever, which `gopark` allows.
    unsafe { gopark(WaitReason::Other, || {}) };
    std::hint::black_box(());
}

const DEADLOCK: &str = "\
footbridge: fatal: all goroutines are asleep - deadlock!

goroutine 1 [chan receive]:
    rust memory::faults::waits_for_receive
    jit goroutine entry+0x_ (goroutine entry)

goroutine 2 [chan send]:
    rust memory::faults::waits_for_send
    jit goroutine entry+0x_ (goroutine entry)

goroutine 3 [select]:
    rust memory::faults::waits_in_select
    jit goroutine entry+0x_ (goroutine entry)

goroutine 4 [select (no cases)]:
    rust memory::faults::waits_for_nothing
    jit goroutine entry+0x_ (goroutine entry)

goroutine 5 [join]:
    jit goroutine entry+0x_ (goroutine entry)

goroutine 6 [scope]:
    rust memory::faults::waits_for_scope
    jit goroutine entry+0x_ (goroutine entry)

goroutine 7 [parked]:
    rust memory::faults::waits_otherwise
    jit goroutine entry+0x_ (goroutine entry)

goroutine 8 [chan receive]:
    rust memory::faults::waits_for_receive
    jit receive+0x_ (goroutine function)
    jit pump+0x_
    jit pump+0x_ (enter)
    jit goroutine entry+0x_ (goroutine entry)

goroutine 9 [chan receive]:
    rust memory::faults::waits_for_receive
    jit goroutine entry+0x_ (goroutine entry)

";

#[test]
fn a_deadlock_is_reported_with_every_goroutine_and_its_reason() {
    let outcome = child::run("a_deadlock_is_reported_with_every_goroutine_and_its_reason", || {
        let jit = Jit::new().expect("code memory");
        let channel = Chan::<u64>::new(0);
        let receiver = channel.clone();
        let receive = move || waits_for_receive(&receiver);
        let receive = jit.named_goroutine_fn("receive", GO, receive).expect("stub");
        let code = caller("pump", receive.address());
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        alone(move || {
            let full = Chan::<u64>::new(0);
            let (c, f) = (channel.clone(), full.clone());
            let mut handles = vec![go(move || waits_for_send(&f))];
            let (never, full_too) = (Chan::new(0), Chan::new(0));
            handles.push(go(move || waits_in_select(&never, &full_too)));
            handles.push(go(waits_for_nothing));
            let joined = handles.pop().expect("just pushed");
            handles.push(go(move || drop(joined.join())));
            handles.push(go(move || waits_for_scope(&c)));
            handles.push(go(waits_otherwise));
            // SAFETY: on a goroutine.
            handles.push(go(move || unsafe { entry.call() }));
            for _ in 0..10 {
                gosched();
            }
            waits_for_receive(&channel);
        });
    });
    assert_eq!(outline(&outcome.stderr), DEADLOCK, "{}", outcome.stderr);
    assert_eq!((outcome.code, outcome.signal), (Some(2), None));
}

#[test]
fn a_deadlock_of_a_run_with_more_threads_is_found() {
    let outcome = child::run("a_deadlock_of_a_run_with_more_threads_is_found", || {
        for _ in 0..20 {
            // Earlier runs end normally.
            config(3).run(|| go(|| 1).join().expect("no panic")).expect("the run starts");
        }
        let _ = config(3).run(|| Chan::<u64>::new(0).recv()).expect("the run starts");
    });
    let head = "footbridge: fatal: all goroutines are asleep - deadlock!\n\ngoroutine ";
    assert!(outcome.stderr.starts_with(head), "{outcome:#?}");
    assert!(outcome.stderr.contains(" [chan receive]:\n"), "{outcome:#?}");
    assert_eq!((outcome.code, outcome.signal), (Some(2), None));
}

#[test]
fn a_wait_that_a_foreign_thread_or_a_timer_can_end_is_no_deadlock() {
    let outcome =
        child::run("a_wait_that_a_foreign_thread_or_a_timer_can_end_is_no_deadlock", || {
            let channel = Chan::new(0);
            let sender = channel.clone();
            let foreign = std::thread::spawn(move || {
                for n in 0..3u64 {
                    std::thread::sleep(Duration::from_millis(50));
                    sender.send(n).expect("open");
                }
            });
            let sum =
                config(2).run(|| channel.recv().expect("open") + channel.recv().expect("open"));
            assert_eq!(sum, Ok(1));
            // A foreign thread receives, too.
            assert_eq!(channel.recv(), Ok(2));
            foreign.join().expect("no panic");
            config(2).run(|| runtime::sleep(Duration::from_millis(50))).expect("the run starts");
            println!("finished");
        });
    outcome.assert_success();
    assert_eq!(outcome.stderr, "");
    assert!(outcome.stdout.contains("finished"));
}

const NO_GOROUTINE: &str = "footbridge: fatal: JIT code was entered, or called a goroutine \
                            function, on a thread that runs no goroutine; call it from inside of \
                            runtime::run\n";

#[test]
fn jit_code_entered_without_a_goroutine_ends_the_process() {
    child::run("jit_code_entered_without_a_goroutine_ends_the_process", || {
        let jit = Jit::new().expect("code memory");
        let function = jit.goroutine_fn(GO, |x: u64| x).expect("stub");
        let code = caller("outside", function.address());
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { code.enter::<fn(u64) -> u64>(GO) }.expect("entry");
        // SAFETY: violates the first requirement, which by contract ends the process with a
        // message.
        unsafe { entry.call(1) };
    })
    .assert_aborted_with(NO_GOROUTINE);
}

#[test]
fn a_goroutine_function_called_without_a_goroutine_ends_the_process() {
    child::run("a_goroutine_function_called_without_a_goroutine_ends_the_process", || {
        let jit = Jit::new().expect("code memory");
        let function = jit.goroutine_fn(Convention::SystemV, |x: u64| x).expect("stub");
        // SAFETY: a System V function of this type.
        let call: extern "C-unwind" fn(u64) -> u64 =
            unsafe { std::mem::transmute(function.address()) };
        alone(|| assert_eq!(call(5), 5));
        std::thread::spawn(move || call(1)).join().expect("it does not return");
    })
    .assert_aborted_with(NO_GOROUTINE);
}

#[test]
fn an_overflow_of_a_foreign_thread_is_reported_by_the_standard_library() {
    let outcome =
        child::run("an_overflow_of_a_foreign_thread_is_reported_by_the_standard_library", || {
            alone(|| ());
            let plain = std::thread::Builder::new().name("plain".into());
            plain.spawn(|| sink(&[0; 4])).expect("a thread").join().expect("it does not return");
        });
    assert!(outcome.stderr.contains("thread 'plain'"), "{outcome:#?}");
    assert!(outcome.stderr.contains("has overflowed its stack"), "{outcome:#?}");
    assert!(!outcome.stderr.contains("footbridge"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGABRT));
}

#[test]
fn the_thread_of_a_run_has_the_standard_librarys_handler_again_afterwards() {
    let name = "the_thread_of_a_run_has_the_standard_librarys_handler_again_afterwards";
    let outcome = child::run(name, || {
        let plain = std::thread::Builder::new().name("plain".into());
        let body = || {
            alone(|| ());
            sink(&[0; 4])
        };
        plain.spawn(body).expect("a thread").join().expect("it does not return");
    });
    assert!(outcome.stderr.contains("thread 'plain'"), "{outcome:#?}");
    assert!(outcome.stderr.contains("has overflowed its stack"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGABRT));
}

/// Writes to an unmapped address that is in no guard.
fn fault() {
    // SAFETY: not sound: the test needs the signal.
    unsafe { std::ptr::without_provenance_mut::<u8>(0x1230).write_volatile(1) };
}

/// Installs `handler` for SIGSEGV.
fn handle_segv(handler: usize, flags: libc::c_int) {
    // SAFETY: a valid structure; the handlers below only write and exit.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// Runs `body` as the crate ran it without reports of faults.
fn quietly(body: fn()) {
    config(1).fault_reports(false).run(body).expect("the run starts");
}

#[test]
fn a_foreign_fault_goes_to_the_previous_handler() {
    extern "C" fn previous(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the structures of the kernel, which the runtime passes on.
        let (address, pc) = unsafe {
            let machine = &(*context.cast::<libc::ucontext_t>()).uc_mcontext;
            #[cfg(target_arch = "x86_64")]
            let pc = machine.gregs[libc::REG_RIP as usize];
            #[cfg(target_arch = "aarch64")]
            let pc = machine.pc;
            ((*info).si_addr() as usize, pc)
        };
        let right = signal == libc::SIGSEGV && address == 0x1230 && pc != 0;
        write_and_exit(if right { "previous handler\n" } else { "wrong arguments\n" }, 3)
    }
    let outcome = child::run("a_foreign_fault_goes_to_the_previous_handler", || {
        handle_segv(previous as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        quietly(fault);
    });
    assert_eq!(outcome.stderr, "previous handler\n");
    assert_eq!(outcome.code, Some(3));
}

#[test]
fn a_handler_without_siginfo_is_chained_too() {
    extern "C" fn previous(signal: libc::c_int) {
        write_and_exit(if signal == libc::SIGSEGV { "plain handler\n" } else { "?\n" }, 4)
    }
    let outcome = child::run("a_handler_without_siginfo_is_chained_too", || {
        handle_segv(previous as *const () as usize, libc::SA_ONSTACK);
        quietly(fault);
    });
    assert_eq!(outcome.stderr, "plain handler\n");
    assert_eq!(outcome.code, Some(4));
}

#[test]
fn without_a_previous_handler_a_fault_kills_the_process() {
    let outcome = child::run("without_a_previous_handler_a_fault_kills_the_process", || {
        handle_segv(libc::SIG_DFL, 0);
        quietly(fault);
    });
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV));
}

#[test]
fn a_goroutine_readied_twice_ends_the_process() {
    child::run("a_goroutine_readied_twice_ends_the_process", || {
        alone(|| {
            let parked = Chan::new(1);
            let send = parked.clone();
            drop(go(move || {
                let this = current();
                // SAFETY: readied below.
                unsafe { gopark(WaitReason::Other, || assert!(send.try_send(this).is_ok())) };
            }));
            let parker = parked.recv().expect("open");
            // SAFETY: the second call violates the contract, which ends the process with a message.
            unsafe {
                goready(parker);
                goready(parker);
            }
        });
    })
    .assert_aborted_with(
        "footbridge: fatal: goroutine 2 is runnable, not waiting, and cannot become runnable \
         (readied twice, or readied without being parked?)\n",
    );
}

/// The message of the panic of `f`.
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).map(drop).expect_err("it panics");
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|&s| s.into())).unwrap_or_default()
}

const MUST_NOT_PARK: &str =
    "a goroutine cannot park inside of systemstack: the system stack is its thread's";

#[test]
fn parking_inside_of_systemstack_panics() {
    runtime::run(|| {
        let channel = Chan::<u64>::new(1);
        let handle = go(|| 5);
        assert_eq!(panic_of(|| runtime::systemstack(gosched)), MUST_NOT_PARK);
        let sleep = || runtime::sleep(Duration::from_millis(1));
        assert_eq!(panic_of(|| runtime::systemstack(sleep)), MUST_NOT_PARK);
        // Calls that need not park work there.
        assert_eq!(runtime::systemstack(|| channel.try_send(4)), Ok(()));
        assert_eq!(runtime::systemstack(|| channel.recv()), Ok(4));
        assert_eq!(panic_of(|| runtime::systemstack(|| panic!("own"))), "own");
        // The goroutine may park again afterwards.
        assert_eq!(handle.join().expect("no panic"), 5);
    });
}

#[test]
fn a_channel_survives_a_park_that_was_refused() {
    child::run("a_channel_survives_a_park_that_was_refused", || {
        alone(|| {
            let channel = Chan::<u64>::new(1);
            assert_eq!(panic_of(|| runtime::systemstack(|| channel.recv())), MUST_NOT_PARK);
            // The channel is not locked, and its queues are empty.
            assert_eq!(channel.try_send(1), Ok(()));
            assert_eq!(channel.len(), 1, "the value is in the buffer, not on a dead stack");
            assert_eq!(panic_of(|| runtime::systemstack(|| channel.send(2))), MUST_NOT_PARK);
            assert_eq!(channel.try_recv(), Ok(1));
            assert_eq!(channel.len(), 0);
            let mut slot = None;
            let select = || runtime::select(&mut [Case::recv(&channel, &mut slot)]);
            assert_eq!(panic_of(|| runtime::systemstack(select)), MUST_NOT_PARK);
            assert_eq!(channel.try_send(3), Ok(()));
            assert_eq!(channel.recv(), Ok(3));
        });
    })
    .assert_success();
}

#[test]
fn a_scope_inside_of_systemstack_does_not_end_before_its_goroutines() {
    /// A value that goroutines borrow: it must not be dropped before a started goroutine has ended.
    struct Borrowed<'a> {
        started: &'a AtomicBool,
        ended: &'a AtomicBool,
    }
    impl Drop for Borrowed<'_> {
        fn drop(&mut self) {
            let (started, ended) =
                (self.started.load(Ordering::SeqCst), self.ended.load(Ordering::SeqCst));
            if started && !ended {
                write_and_exit("the scope was left before its goroutine ended\n", 9);
            }
        }
    }
    child::run("a_scope_inside_of_systemstack_does_not_end_before_its_goroutines", || {
        alone(|| {
            let (started, ended) = (AtomicBool::new(false), AtomicBool::new(false));
            let text = panic_of(|| {
                runtime::systemstack(|| {
                    let borrowed = Borrowed { started: &started, ended: &ended };
                    runtime::scope(|s| {
                        s.go(|| borrowed.ended.store(true, Ordering::SeqCst));
                        started.store(true, Ordering::SeqCst);
                    });
                });
            });
            assert_eq!(text, MUST_NOT_PARK);
        });
    })
    .assert_success();
}

#[test]
fn a_run_inside_of_a_run_is_refused() {
    let text = "run was called on a thread that belongs to a run already; start goroutines with go";
    alone(|| {
        let nested = config(1).run(|| 1);
        assert_eq!(nested, Err(RunError::Nested));
        assert_eq!(RunError::Nested.to_string(), text);
        assert_eq!(runtime::systemstack(|| config(1).run(|| 1)), Err(RunError::Nested));
        assert_eq!(panic_of(|| runtime::run(|| 1)), text);
        // Another thread may have another run.
        let other = std::thread::spawn(|| config(1).run(|| 2));
        assert_eq!(other.join().expect("no panic"), Ok(2));
    });
}

#[test]
fn settings_out_of_range_are_refused() {
    for requested in [0, MAX_PROCESSORS + 1, usize::MAX] {
        let error = config(requested).run(|| ()).expect_err("out of range");
        assert_eq!(error, RunError::Processors { requested });
        let text = format!("Config::processors is {requested}, and must be from 1 to 256");
        assert_eq!(error.to_string(), text);
    }
    for requested in [(8 << 20) + 1, usize::MAX] {
        let config = config(1).stack_bytes(requested);
        let error = config.run(|| ()).expect_err("out of range");
        assert_eq!(error, RunError::StackBytes { requested });
        let text =
            format!("Config::stack_bytes is {requested} bytes, and the largest stack has 8 MiB");
        assert_eq!(error.to_string(), text);
    }
    // The ends of the ranges work.
    for stack_size in [0, 1, 16 << 10, 8 << 20] {
        let config = config(1).stack_bytes(stack_size);
        assert_eq!(config.run(|| go(|| 1).join().expect("no panic")), Ok(1));
    }
}

#[test]
fn goroutines_are_started_on_threads_of_a_run_only() {
    let text = "goroutines are started from goroutines: call footbridge::runtime::run first";
    assert_eq!(panic_of(|| go(|| ())), text);
    let of_no_run = "stats must be called on a thread of a run, and this is none";
    assert_eq!(panic_of(runtime::stats), of_no_run);
}
