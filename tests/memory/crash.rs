//! Reports of faults: what they say, and that the process ends as it does without them.

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use dynasmrt::{DynasmApi, dynasm};
use footbridge::abi::Convention;
use footbridge::jit::{Code, FrameClass, Jit, Ops};
use footbridge::runtime::{self, Builder, go};
use support::child::{self, Child, Outcome, mask};
use support::code::caller;
use support::runs::{alone, config};

use crate::write_and_exit;

const SYSTEM_V: Convention = Convention::SystemV;

/// JIT code with a standard frame around what `body` emits.
fn code(name: &str, body: impl FnOnce(&mut Ops)) -> Code {
    // SAFETY: a standard frame; the bodies below change scratch registers only.
    let code = unsafe {
        Jit::new().expect("code memory").install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
            body(ops);
            dynasm!(ops; .arch x64; pop rbp; ret);
        })
    };
    code.expect("it installs")
}

/// Calls JIT code on the second goroutine of a run, which has the name `pump`.
fn on_pump(code: &Code) {
    // SAFETY: a System V function of this type.
    let entry = unsafe { code.enter::<fn()>(SYSTEM_V) }.expect("entry");
    // SAFETY: on a goroutine.
    pump(move || unsafe { entry.call() });
}

/// Runs `body` as the second goroutine of a run, which has the name `pump`.
fn pump(body: impl FnOnce() + Send + 'static) {
    alone(|| {
        let handle = Builder::new().name("pump").go(body).expect("memory");
        let _ = handle.join();
    });
}

/// The report without what differs from build to build: the values of registers and bytes, and
/// offsets. Of native frames those of this file are left.
fn outline(stderr: &str) -> String {
    let is_ours = |line: &str| {
        let frame = line.trim_start();
        let native = ["rust ", "c ", "native "].iter().any(|start| frame.starts_with(start));
        !native || frame.starts_with("rust memory::crash::") && !frame.contains("{{closure}}")
    };
    let is_register = |line: &str| {
        ["rax ", "rsi ", "r8 ", "r12 ", "rip "]
            .iter()
            .any(|name| line.trim_start().starts_with(name))
    };
    let masked = mask(stderr);
    let lines = masked.lines().filter(|line| is_ours(line) && !is_register(line));
    lines.map(|line| format!("{line}\n")).collect()
}

#[track_caller]
fn assert_report(outcome: &Outcome, signal: i32, outlined: &str) {
    assert_eq!(outline(&outcome.stderr), outlined, "{outcome:#?}");
    assert_eq!(outcome.signal, Some(signal), "{outcome:#?}");
}

#[test]
fn a_null_load_in_jit_code_is_reported() {
    let outcome = child::run("a_null_load_in_jit_code_is_reported", || {
        let load = code("load", |ops| dynasm!(ops; .arch x64; mov edi, 0x10; mov rax, [rdi]));
        on_pump(&caller("outer", load.address()));
    });
    assert_report(
        &outcome,
        libc::SIGSEGV,
        "footbridge: fault: SIGSEGV (SEGV_MAPERR), read of address 0x_, in jit load+0x_\n\
         pc 0x_, bytes there: 48 8b 07 5d c3 cc cc cc cc cc cc cc cc cc cc cc\n\
         goroutine 2 \"pump\" [running]:\n    \
             jit load+0x_\n    jit outer+0x_\n    jit outer+0x_ (enter)\n    \
             jit goroutine entry+0x_ (goroutine entry)\n",
    );
    let text = &outcome.stderr;
    assert!(text.contains(" read of address 0x10, in jit load+0x9\n"), "{outcome:#?}");
    // A native caller is in the traceback, with its offset. (Its own function may be inlined.)
    let is_native = |line: &str| line.starts_with("    rust ") && line.contains("+0x");
    assert!(text.lines().any(is_native), "{outcome:#?}");
    assert!(text.contains("rdi 0x0000000000000010"), "{outcome:#?}");
    assert_eq!(text.matches("rflags 0x").count(), 1, "{outcome:#?}");
}

#[test]
fn a_write_by_jit_code_to_what_may_be_read_only_is_reported() {
    let outcome = child::run("a_write_by_jit_code_to_what_may_be_read_only_is_reported", || {
        static READ_ONLY: [u8; 1] = [1];
        let at = READ_ONLY.as_ptr() as i64;
        let store = code("store", |ops| {
            dynasm!(ops; .arch x64; mov rax, QWORD at; mov BYTE [rax], 1);
        });
        on_pump(&store);
    });
    let head = "footbridge: fault: SIGSEGV (SEGV_ACCERR), write of address 0x";
    assert!(outcome.stderr.starts_with(head), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn instructions_that_trap_in_jit_code_are_reported() {
    let test = "instructions_that_trap_in_jit_code_are_reported";
    type Emit = fn(&mut Ops);
    let cases: [(Emit, i32, &str, &str); 6] = [
        (
            |ops| dynasm!(ops; .arch x64; ud2),
            libc::SIGILL,
            "SIGILL (ILL_ILLOPN), in jit trap+0x4\n",
            "bytes there: 0f 0b 5d c3 ",
        ),
        (
            |ops| dynasm!(ops; .arch x64; mov eax, 1; cdq; xor ecx, ecx; idiv ecx),
            libc::SIGFPE,
            "SIGFPE (FPE_INTDIV), in jit trap+0xc\n",
            "bytes there: f7 f9 5d c3 ",
        ),
        (
            |ops| dynasm!(ops; .arch x64; int3; int3),
            libc::SIGTRAP,
            "SIGTRAP (SI_KERNEL), in jit trap+0x5\n",
            "bytes there: cc 5d c3 ",
        ),
        // A breakpoint that the pc is not put back to: it does not trap again by itself.
        (
            |ops| dynasm!(ops; .arch x64; .bytes [0xcd_u8, 3]),
            libc::SIGTRAP,
            "SIGTRAP (SI_KERNEL), in jit trap+0x6\n",
            "bytes there: 5d c3 ",
        ),
        // An address that is not canonical: the CPU does not tell it.
        (
            |ops| dynasm!(ops; .arch x64; mov rax, QWORD 1 << 62; mov al, [rax]),
            libc::SIGSEGV,
            "SIGSEGV (SI_KERNEL), in jit trap+0xe\n",
            "bytes there: 8a 00 5d c3 ",
        ),
        (
            |ops| dynasm!(ops; .arch x64; hlt),
            libc::SIGSEGV,
            "SIGSEGV (SI_KERNEL), in jit trap+0x4\n",
            "bytes there: f4 5d c3 ",
        ),
    ];
    for (case, (emit, signal, head, bytes)) in cases.into_iter().enumerate() {
        let outcome = child::run_case(test, case, || on_pump(&code("trap", emit)));
        let Some(outcome) = outcome else { continue };
        let text = &outcome.stderr;
        assert!(text.starts_with(&format!("footbridge: fault: {head}")), "{outcome:#?}");
        assert!(text.contains(bytes), "{outcome:#?}");
        let traceback = "goroutine 2 \"pump\" [running]:\n    jit trap+0x";
        assert!(text.contains(traceback), "{outcome:#?}");
        assert_eq!(outcome.signal, Some(signal), "{outcome:#?}");
    }
}

/// Broken memory that the thread has not touched: no instruction faults again.
#[test]
fn a_memory_error_elsewhere_ends_the_process_where_it_does_by_default() {
    /// Of linux/siginfo.h.
    const BUS_MCEERR_AO: i32 = 5;
    let test = "a_memory_error_elsewhere_ends_the_process_where_it_does_by_default";
    for (case, action) in [libc::SIG_DFL, libc::SIG_IGN].into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            handle(libc::SIGBUS, action, 0);
            alone(|| {
                // SAFETY: a valid structure. A process may send itself what the kernel sends.
                unsafe {
                    let mut info: libc::siginfo_t = std::mem::zeroed();
                    (info.si_signo, info.si_code) = (libc::SIGBUS, BUS_MCEERR_AO);
                    let (pid, tid) = (libc::getpid(), libc::gettid());
                    let (call, info) = (libc::SYS_rt_tgsigqueueinfo, &raw const info);
                    assert_eq!(libc::syscall(call, pid, tid, libc::SIGBUS, info), 0);
                }
            });
        });
        let Some(outcome) = outcome else { continue };
        let head = "footbridge: fault: SIGBUS (BUS_MCEERR_AO), ";
        assert!(outcome.stderr.starts_with(head), "{outcome:#?}");
        let signal = [Some(libc::SIGBUS), None][case];
        assert_eq!(outcome.signal, signal, "{outcome:#?}");
    }
}

/// Reads from an address that is not mapped.
#[inline(never)]
fn dereferences_null() {
    // SAFETY: not sound: the tests need the signal.
    black_box(unsafe { ptr::without_provenance::<u8>(black_box(8)).read_volatile() });
}

#[test]
fn a_fault_in_rust_code_on_a_goroutine_is_reported() {
    let outcome = child::run("a_fault_in_rust_code_on_a_goroutine_is_reported", || {
        pump(|| {
            dereferences_null();
        });
    });
    let text = &outcome.stderr;
    let head = "footbridge: fault: SIGSEGV (SEGV_MAPERR), read of address 0x8, in rust ";
    assert!(text.starts_with(head), "{outcome:#?}");
    let (_, traceback) = text.split_once("goroutine 2 \"pump\" [running]:\n").expect("a traceback");
    assert!(traceback.contains("    rust memory::crash::dereferences_null+0x"), "{outcome:#?}");
    // The walk comes to the end of the goroutine's stack.
    let last = traceback.lines().last().expect("frames");
    assert!(last.starts_with("    jit goroutine entry+0x"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn a_fault_in_c_code_below_jit_code_is_reported() {
    let outcome = child::run("a_fault_in_c_code_below_jit_code_is_reported", || {
        let (from, to) = (Box::leak(Box::new([1_u8; 4096])).as_ptr() as i64, 0x2340_i32);
        let memcpy = libc::memcpy as *const () as i64;
        let copy = code("copy", |ops| {
            dynasm!(ops
                ; .arch x64
                ; mov edi, to
                ; mov rsi, QWORD from
                ; mov edx, 4096
                ; mov rax, QWORD memcpy
                ; call rax
            );
        });
        on_pump(&copy);
    });
    let text = &outcome.stderr;
    let head = "footbridge: fault: SIGSEGV (SEGV_MAPERR), write of address 0x";
    assert!(text.starts_with(head), "{outcome:#?}");
    let first = text.lines().next().expect("a line");
    // memcpy is chosen for the CPU: the symbol of the one that runs may be in a stripped table.
    assert!(first.contains("in c ") || first.contains("in native code at 0x"), "{outcome:#?}");
    let (_, traceback) = text.split_once("[running]:\n").expect("a traceback");
    let jit = "    jit copy+0x24\n    jit copy+0x";
    assert!(traceback.contains(jit), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn a_call_to_an_address_without_code_is_shown_in_its_caller() {
    let outcome = child::run("a_call_to_an_address_without_code_is_shown_in_its_caller", || {
        on_pump(&code("jump", |ops| dynasm!(ops; .arch x64; xor eax, eax; call rax)));
    });
    assert_report(
        &outcome,
        libc::SIGSEGV,
        "footbridge: fault: SIGSEGV (SEGV_MAPERR), execution of address 0x_, in native code at 0x_\n\
         pc 0x_, whose bytes cannot be read\n\
         goroutine 2 \"pump\" [running]:\n    \
             jit jump+0x_\n    jit jump+0x_ (enter)\n    \
             jit goroutine entry+0x_ (goroutine entry)\n",
    );
}

#[test]
fn a_fault_on_the_system_stack_is_reported() {
    let outcome = child::run("a_fault_on_the_system_stack_is_reported", || {
        pump(|| {
            runtime::systemstack(dereferences_null);
        });
    });
    let (_, traceback) = outcome.stderr.split_once("goroutine 2 \"pump\" ").expect("a traceback");
    assert!(traceback.starts_with("[running on the system stack]:\n"), "{outcome:#?}");
    assert!(traceback.contains("rust memory::crash::dereferences_null+0x"), "{outcome:#?}");
    assert!(traceback.contains("(goroutine entry)\n"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn a_fault_in_a_signal_handler_on_a_goroutine_is_reported() {
    extern "C" fn faults(_: i32) {
        dereferences_null();
    }
    let test = "a_fault_in_a_signal_handler_on_a_goroutine_is_reported";
    for (case, flags) in [libc::SA_ONSTACK, 0].into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            handle(libc::SIGUSR1, faults as *const () as usize, flags);
            pump(|| {
                // SAFETY: a plain system call.
                unsafe { libc::raise(libc::SIGUSR1) };
            });
        });
        let Some(outcome) = outcome else { continue };
        let place = ["[running on another stack]:\n", "[running]:\n"][case];
        let traceback = format!("goroutine 2 \"pump\" {place}    rust ");
        assert!(outcome.stderr.contains(&traceback), "{outcome:#?}");
        assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
    }
}

#[test]
fn registered_code_on_a_thread_of_no_run_is_reported() {
    let outcome = child::run("registered_code_on_a_thread_of_no_run_is_reported", || {
        alone(|| ());
        let load = code("load", |ops| dynasm!(ops; .arch x64; xor edi, edi; mov rax, [rdi]));
        // SAFETY: a System V function of this type.
        let load = unsafe { std::mem::transmute::<usize, extern "C" fn()>(load.address()) };
        load();
    });
    let text = &outcome.stderr;
    assert!(text.contains(" read of address 0x0, in jit load+0x6\n"), "{outcome:#?}");
    // The thread has a small stack for its handlers.
    assert!(text.ends_with("stack here for registers and a traceback\n"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn a_fault_elsewhere_is_not_reported() {
    let test = "a_fault_elsewhere_is_not_reported";
    for case in 0..4 {
        let outcome = child::run_case(test, case, || {
            alone(|| ());
            let fault = move || match case {
                0 => dereferences_null(),
                // SAFETY: not sound: the tests need the signals.
                1 => unsafe { std::arch::asm!("ud2") },
                // SAFETY: as for `ud2`.
                2 => unsafe { std::arch::asm!("int3") },
                // SAFETY: a plain system call. A signal that was sent is no fault.
                _ => alone(|| assert_eq!(unsafe { libc::raise(libc::SIGSEGV) }, 0)),
            };
            std::thread::spawn(fault).join().expect("it does not return");
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!(outcome.stderr, "", "{outcome:#?}");
        // The standard library's handler lets a program survive a SIGSEGV that was sent, once.
        let signal = [Some(libc::SIGSEGV), Some(libc::SIGILL), Some(libc::SIGTRAP), None][case];
        assert_eq!(outcome.signal, signal, "{outcome:#?}");
    }
}

#[test]
fn reports_are_off_on_request() {
    let test = "reports_are_off_on_request";
    for case in 0..2 {
        let child = match case {
            0 => Child::of(test),
            _ => Child::of(test).with("FOOTBRIDGE_FAULT_REPORTS", "0"),
        };
        let outcome = child.case(case, || {
            let config = config(1).fault_reports(case == 1);
            config.run(|| go(dereferences_null).join()).expect("it starts").expect("no panic");
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!((&outcome.stderr[..], outcome.signal), ("", Some(libc::SIGSEGV)), "{case}");
    }
}

/// Installs a handler.
fn handle(signal: i32, handler: usize, flags: i32) {
    // SAFETY: a valid structure; the handlers do what their tests need.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

static CALLS: AtomicU32 = AtomicU32::new(0);

#[test]
fn a_previous_handler_runs_after_the_report_and_may_resume() {
    /// Skips the instruction `f7 f9` or `0f 0b`, both of two bytes.
    extern "C" fn skip(_: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the structures of the kernel, which the crate passes on.
        unsafe {
            let pc = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            assert_eq!((*info).si_addr() as i64, pc[libc::REG_RIP as usize]);
            pc[libc::REG_RIP as usize] += 2;
        }
    }
    let outcome = child::run("a_previous_handler_runs_after_the_report_and_may_resume", || {
        for signal in [libc::SIGFPE, libc::SIGILL] {
            handle(signal, skip as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        }
        let code = code("trap", |ops| {
            dynasm!(ops; .arch x64; mov eax, 1; cdq; xor ecx, ecx; idiv ecx; ud2);
        });
        on_pump(&code);
        assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    });
    outcome.assert_success();
    for head in ["SIGFPE (FPE_INTDIV), in jit trap+0xc\n", "SIGILL (ILL_ILLOPN), in jit trap+0xe\n"]
    {
        let head = format!("footbridge: fault: {head}");
        assert_eq!(outcome.stderr.matches(&head).count(), 1, "{outcome:#?}");
    }
}

#[test]
fn a_previous_handler_of_breakpoints_gets_them_without_a_report() {
    extern "C" fn handler(_: i32) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
    let outcome =
        child::run("a_previous_handler_of_breakpoints_gets_them_without_a_report", || {
            handle(libc::SIGTRAP, handler as *const () as usize, libc::SA_ONSTACK);
            on_pump(&code("trap", |ops| dynasm!(ops; .arch x64; int3)));
            assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        });
    outcome.assert_success();
    assert_eq!(outcome.stderr, "");
}

#[test]
fn a_fault_of_the_report_ends_it_with_what_there_is() {
    /// Makes the pages of the goroutine's own stack unreadable that older frames begin in, and
    /// faults.
    fn unreadable_frames(end_of_array: usize, signal: i32) -> ! {
        let page = end_of_array & !4095;
        // SAFETY: not sound: the test needs the signal. This function does not return.
        unsafe {
            assert_eq!(libc::mprotect(page as *mut c_void, 8192, libc::PROT_NONE), 0);
            match signal {
                libc::SIGFPE => std::arch::asm!("xor ecx, ecx", "idiv ecx", out("ecx") _,
                    inout("eax") 1 => _, inout("edx") 0 => _),
                _ => dereferences_null(),
            }
        }
        unreachable!("the instruction faults")
    }
    #[inline(never)]
    fn with_old_frames(bytes: &mut [u8; 16384], signal: i32) {
        unreadable_frames(black_box(bytes).as_ptr_range().end as usize, signal)
    }
    let test = "a_fault_of_the_report_ends_it_with_what_there_is";
    for (case, signal) in [libc::SIGSEGV, libc::SIGFPE].into_iter().enumerate() {
        let outcome = child::run_case(test, case, move || {
            pump(move || with_old_frames(black_box(&mut [1; 16384]), signal));
        });
        let Some(outcome) = outcome else { continue };
        let text = &outcome.stderr;
        assert!(text.starts_with("footbridge: fault: SIG"), "{outcome:#?}");
        assert!(text.contains("goroutine 2 \"pump\" [running]:\n    rust "), "{outcome:#?}");
        let (_, end) = text.split_once("    (SIGSEGV at pc 0x").expect("an end");
        assert!(end.ends_with(" in the report itself, which ends here)\n"), "{outcome:#?}");
        assert_eq!(text.matches("footbridge: fault: ").count(), 1, "{outcome:#?}");
        assert_eq!(outcome.signal, Some(signal), "{outcome:#?}");
    }
}

#[test]
fn faults_of_several_threads_are_reported_one_after_the_other() {
    const THREADS: usize = 4;
    static READY: AtomicUsize = AtomicUsize::new(0);
    let outcome = child::run("faults_of_several_threads_are_reported_one_after_the_other", || {
        let fault = || {
            alone(|| {
                READY.fetch_add(1, Ordering::SeqCst);
                while READY.load(Ordering::SeqCst) < THREADS {
                    std::hint::spin_loop();
                }
                dereferences_null();
            });
        };
        let threads: Vec<_> = (0..THREADS).map(|_| std::thread::spawn(fault)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it does not return"));
    });
    let text = &outcome.stderr;
    let reports: Vec<&str> = text.split("footbridge: fault: ").collect();
    let (before, reports) = reports.split_first().expect("one part at least");
    // A thread that faults after another one has ended the process has not begun a report.
    assert!(before.is_empty() && (1..=THREADS).contains(&reports.len()), "{outcome:#?}");
    for report in reports {
        assert!(report.starts_with("SIGSEGV (SEGV_MAPERR), read of address 0x8"), "{outcome:#?}");
        assert_eq!(report.matches("rflags").count(), 1, "{outcome:#?}");
        let last = report.lines().last().expect("a line");
        assert!(last.starts_with("    jit goroutine entry+0x"), "{outcome:#?}");
    }
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

#[test]
fn a_report_writes_to_a_locked_standard_error() {
    let outcome = child::run("a_report_writes_to_a_locked_standard_error", || {
        let lock = std::io::stderr().lock();
        alone(dereferences_null);
        drop(lock);
    });
    assert!(outcome.stderr.starts_with("footbridge: fault: SIGSEGV"), "{outcome:#?}");
    assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
}

/// A handler of the program that ends the process itself: its exit code is that of the process.
#[test]
fn the_exit_code_of_a_previous_handler_is_kept() {
    extern "C" fn exits(_: i32) {
        write_and_exit("previous handler\n", 3)
    }
    let outcome = child::run("the_exit_code_of_a_previous_handler_is_kept", || {
        handle(libc::SIGSEGV, exits as *const () as usize, libc::SA_ONSTACK);
        pump(dereferences_null);
    });
    assert!(outcome.stderr.starts_with("footbridge: fault: SIGSEGV"), "{outcome:#?}");
    assert!(outcome.stderr.ends_with("\nprevious handler\n"), "{outcome:#?}");
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
}
