//! Hosts that limit the process or refuse it system calls, before the crate is used or while a run
//! is under way. Each must be able to do the same things, and `environment()` tells what replaces
//! what.

use std::sync::atomic::{AtomicU64, Ordering};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::environment;
use footbridge::jit::{Annotations, FrameClass, Jit, MemoryMode};
use footbridge::runtime::{self, Chan, Config, RunError, go, scope};
use support::child::{
    Child, NO_FRAMES, Outcome, Refusal, mask, overflow, refuse, refuse_on_all_threads,
};
use support::runs::{alone, config, on};

use crate::{refuse_guard_markers, sink};

const GO: Convention = Convention::GoAbiInternal;
const MIB: usize = 1 << 20;

/// How JIT code that computes is interrupted for another goroutine.
#[derive(Clone, Copy, PartialEq)]
enum Interrupted {
    BySignal,
    AtPolls,
}

/// Everything that the crate does with the host: code memory, entries, two threads that sleep and
/// wake each other, JIT code that yields to another goroutine, a traceback and an inspection.
fn use_everything(how: Interrupted) {
    let jit = Jit::new().expect("code memory");
    assert_eq!(on(2, || traffic(500)), (1..=500).sum());
    alone(|| yields_in_jit_code(&jit, how));
    let text = alone(|| traceback_through(&jit));
    assert!(text.contains("jit outer+0x") && text.contains("goroutine function"), "{text}");
}

/// Sends `n` values to a goroutine that may be on another thread, and back. Returns the sum.
fn traffic(n: u64) -> u64 {
    let (there, back) = (Chan::<u64>::new(0), Chan::<u64>::new(0));
    scope(|s| {
        let (receive, send) = (&there, &back);
        s.go(move || receive.iter().for_each(|n| send.send(n + 1).expect("open")));
        let echo = |n| {
            there.send(n).expect("open");
            back.recv().expect("open")
        };
        let sum = (0..n).map(echo).sum();
        there.close();
        sum
    })
}

/// JIT code spins until another goroutine of the same thread has run.
fn yields_in_jit_code(jit: &Jit, how: Interrupted) {
    static FLAG: AtomicU64 = AtomicU64::new(0);
    FLAG.store(0, Ordering::Relaxed);
    let flag = FLAG.as_ptr() as i64;
    // A goroutine function polls when it returns.
    let polls = jit.named_goroutine_fn("polls", GO, || ()).expect("stub");
    let polls = polls.address();
    // SAFETY: a standard frame; the flag is a static. At each instruction of the loop another
    // goroutine may run.
    let code = unsafe {
        jit.install("spin", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; again:);
            if how == Interrupted::AtPolls {
                dynasm!(ops; .arch x64; call extern polls);
            }
            dynasm!(ops
                ; .arch x64
                ; mov rax, QWORD flag
                ; cmp DWORD [rax], 0
                ; je <again
                ; pop rbp
                ; ret
            );
            match how {
                Interrupted::BySignal => Annotations::preemptible(),
                Interrupted::AtPolls => Annotations::default(),
            }
        })
    };
    // SAFETY: ABIInternal code without arguments.
    let spin = unsafe { code.expect("installs").enter::<fn()>(GO) }.expect("entry");
    let other = go(|| FLAG.store(1, Ordering::Relaxed));
    // SAFETY: on a goroutine.
    unsafe { spin.call() };
    other.join().expect("no panic");
}

/// The traceback of a goroutine function that JIT code has called.
fn traceback_through(jit: &Jit) -> String {
    let text = Chan::<String>::new(1);
    let result = text.clone();
    let inner = move || {
        assert!(!runtime::traceback_all().is_empty(), "an inspection");
        result.send(runtime::traceback().to_string()).expect("open");
    };
    let inner = jit.named_goroutine_fn("inner", GO, inner).expect("stub");
    let outer = support::code::caller("outer", inner.address());
    // SAFETY: ABIInternal code without arguments.
    let outer = unsafe { outer.enter::<fn()>(GO) }.expect("entry");
    // SAFETY: on a goroutine.
    unsafe { outer.call() };
    text.recv().expect("sent")
}

/// A child with time for a loaded machine and an emulator.
fn child(test: &str) -> Child<'_> {
    Child::of(test).limit_seconds(300)
}

fn set_limit(resource: libc::__rlimit_resource_t, bytes: usize) {
    let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the address of a local.
    let failed = unsafe {
        let mut old = limit;
        libc::getrlimit(resource, &raw mut old);
        let limit = libc::rlimit { rlim_max: old.rlim_max, ..limit };
        libc::setrlimit(resource, &raw const limit)
    };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
}

/// A size of /proc/self/status in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.split_whitespace().next().and_then(|n| n.parse::<usize>().ok()).expect("KiB") << 10
}

/// The child has written why the host does not allow its case.
fn is_skipped(outcome: &Outcome) -> bool {
    let skipped = outcome.code == Some(77);
    if skipped {
        assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "{outcome:#?}");
        println!("skipped: {}", outcome.stderr);
    }
    skipped
}

#[test]
fn a_run_needs_little_address_space_and_private_memory() {
    child("a_run_needs_little_address_space_and_private_memory")
        .run(|| {
            let before = (status("VmSize:"), status("VmData:"), status("VmRSS:"));
            alone(|| go(|| ()).join().expect("no panic"));
            let grown = (
                status("VmSize:") - before.0,
                status("VmData:") - before.1,
                status("VmRSS:") - before.2,
            );
            println!("bytes of address space, private, resident: {grown:?}");
            // Code is reserved once, the words of the registry are an eighth of it, and sysmon has
            // its stack and its heap.
            assert!(grown.0 < 1400 * MIB, "{grown:?}");
            assert!(grown.1 < 24 * MIB, "{grown:?}");
            assert!(grown.2 < 12 * MIB, "{grown:?}");
        })
        .assert_success();
}

#[test]
fn with_little_address_space_less_is_reserved() {
    for (case, mib) in [200, 1024, 2048, 3072].into_iter().enumerate() {
        let test = "with_little_address_space_less_is_reserved";
        let outcome = child(test).case(case, || {
            set_limit(libc::RLIMIT_AS, status("VmSize:") + mib * MIB);
            use_everything(Interrupted::BySignal);
            let memory = environment().code_memory;
            let why = memory.split_once("; 1024 MiB do not fit: RLIMIT_AS leaves ").expect("why").1;
            let (left, end) = why.split_once(' ').expect("a number");
            assert_eq!(end, "MiB, of which a quarter may be code", "{memory}");
            let left: usize = left.parse().expect("MiB");
            assert!((mib - 8..=mib).contains(&left), "{memory}");
            let size = memory.split_once(" MiB at").expect("a size").0;
            let size: usize = size.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("MiB");
            assert!((left / 8..=left / 4).contains(&size), "{memory}");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn what_is_reserved_does_not_count_as_private_data() {
    child("what_is_reserved_does_not_count_as_private_data")
        .run(|| {
            set_limit(libc::RLIMIT_DATA, status("VmData:") + 32 * MIB);
            use_everything(Interrupted::BySignal);
            let memory = environment().code_memory;
            assert!(memory.starts_with("dual map (shared anonymous), 1024 MiB at"), "{memory}");
            // A stack that does not fit is refused with the limit that it meets.
            let error = alone(|| {
                let builder = runtime::Builder::new().stack_bytes(8 * MIB);
                let gate = Chan::<()>::new(0);
                let mut handles = Vec::new();
                let error = loop {
                    let gate = gate.clone();
                    match builder.clone().go(move || gate.recv()) {
                        Ok(handle) => handles.push(handle),
                        Err(refused) => break refused.to_string(),
                    }
                };
                gate.close();
                handles.into_iter().for_each(|handle| drop(handle.join()));
                error
            });
            assert!(error.contains("RLIMIT_DATA is ") && error.contains("(ulimit -d)"), "{error}");
        })
        .assert_success();
}

#[test]
fn a_limit_of_file_size_is_not_met() {
    child("a_limit_of_file_size_is_not_met")
        .run(|| {
            set_limit(libc::RLIMIT_FSIZE, 4096);
            use_everything(Interrupted::BySignal);
            let memory = environment().code_memory;
            assert!(memory.starts_with("dual map (shared anonymous), 1024 MiB at"), "{memory}");
        })
        .assert_success();
}

const MCL_ONFAULT: libc::c_int = 4;

#[test]
fn locked_memory_costs_what_is_used() {
    for (case, flags) in [0, MCL_ONFAULT].into_iter().enumerate() {
        let test = "locked_memory_costs_what_is_used";
        let outcome = child(test).case(case, || {
            // SAFETY: numbers only.
            if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | flags) } != 0 {
                crate::write_and_exit("mlockall is not permitted\n", 77);
            }
            let before = status("VmRSS:");
            on(2, || traffic(500));
            let grown = status("VmRSS:").saturating_sub(before);
            println!("{} KiB resident for a run of two threads", grown >> 10);
            // The kernel fills the stacks of three threads, 2 MiB each, and some of their heaps.
            assert!(grown < 16 * MIB, "{} MiB", grown / MIB);
            // Goroutines that park have touched a page or two of their 64 KiB.
            let before = status("VmRSS:");
            let grown = alone(|| {
                let gate = Chan::<()>::new(0);
                let body = || {
                    let gate = gate.clone();
                    go(move || gate.recv())
                };
                let handles: Vec<_> = (0..1_200).map(|_| body()).collect();
                runtime::gosched();
                let grown = status("VmRSS:").saturating_sub(before);
                gate.close();
                handles.into_iter().for_each(|handle| drop(handle.join()));
                grown
            });
            assert!(grown < 40 * MIB, "{} MiB for 1200 goroutines", grown / MIB);
            let decommitted: usize = runtime::stack_usage().iter().map(|u| u.decommitted).sum();
            assert!(decommitted > 500, "{decommitted}");
            // A traceback maps the files of the program, which the kernel fills, too.
            use_everything(Interrupted::BySignal);
            let found = environment();
            // Markers are refused in locked memory.
            assert!(found.stack_guards.contains("guards are PROT_NONE pages"), "{found}");
            assert_eq!(found.stack_memory, "decommitted after use");
            assert!(found.code_memory.contains("1024 MiB at"), "{found}");
        });
        let Some(outcome) = outcome else { continue };
        if is_skipped(&outcome) {
            return;
        }
        outcome.assert_success();
    }
}

#[test]
fn memory_that_is_locked_after_the_start_is_used_on() {
    let outcome = child("memory_that_is_locked_after_the_start_is_used_on").run(|| {
        use_everything(Interrupted::BySignal);
        let before = (status("VmRSS:"), status("VmData:"));
        // SAFETY: numbers only.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
            crate::write_and_exit("mlockall is not permitted\n", 77);
        }
        // What is reserved stays without memory: private memory is what the process has used of it,
        // and the rest are files of the program.
        assert!(before.1 < 128 * MIB, "{} MiB", before.1 / MIB);
        let grown = status("VmRSS:").saturating_sub(before.0);
        assert!(grown < 512 * MIB, "{} MiB", grown / MIB);
        alone(|| {
            let deep = runtime::Builder::new().stack_bytes(MIB).go(|| 5).expect("a stack");
            assert_eq!(deep.join().expect("no panic"), 5);
        });
        use_everything(Interrupted::BySignal);
        let found = environment();
        assert!(found.stack_guards.contains("guards are PROT_NONE pages"), "{found}");
    });
    if !is_skipped(&outcome) {
        outcome.assert_success();
    }
}

#[test]
fn a_small_limit_of_locked_memory_is_named() {
    let outcome = child("a_small_limit_of_locked_memory_is_named").run(|| {
        set_limit(libc::RLIMIT_MEMLOCK, 8 * MIB);
        // SAFETY: numbers only. A user without privileges has no CAP_IPC_LOCK.
        let failed = unsafe {
            (libc::geteuid() == 0 && libc::setresuid(65534, 65534, 65534) != 0)
                || libc::mlockall(libc::MCL_FUTURE) != 0
        };
        if failed {
            crate::write_and_exit("mlockall is not permitted\n", 77);
        }
        let jit = Jit::new().expect("a small one fits");
        let report = jit.memory_report();
        assert!(report.contains("RLIMIT_MEMLOCK is 8388608 bytes"), "{report}");
        let large = Jit::builder().reserve_bytes(64 * MIB).memory(MemoryMode::DualMap).build();
        let error = large.expect_err("64 MiB").to_string();
        assert!(error.contains("RLIMIT_MEMLOCK is 8388608 bytes"), "{error}");
        assert!(error.contains("grant CAP_IPC_LOCK"), "{error}");
        // Without sysmon, whose thread would be locked as a whole.
        let run = Config::new().processors(1).time_slice(None).run(|| go(|| 4).join().ok());
        match run {
            Ok(four) => assert_eq!(four, Some(4)),
            Err(RunError::Stack(error)) => {
                assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    });
    if !is_skipped(&outcome) {
        outcome.assert_success();
    }
}

/// prctl(2), Linux 6.3: no page may gain execution.
const PR_SET_MDWE: libc::c_int = 65;

#[test]
fn no_page_gains_execution() {
    let outcome = child("no_page_gains_execution").run(|| {
        // SAFETY: numbers only. The flag: mprotect(2) may not add PROT_EXEC.
        if unsafe { libc::prctl(PR_SET_MDWE, 1, 0, 0, 0) } != 0 {
            crate::write_and_exit("this kernel has no PR_SET_MDWE\n", 77);
        }
        use_everything(Interrupted::BySignal);
        let memory = mask(&environment().code_memory);
        let dual = "dual map (shared anonymous), 1024 MiB at 0x_, within reach of the text";
        assert_eq!(memory, dual);
    });
    if !is_skipped(&outcome) {
        outcome.assert_success();
    }
}

/// Refuses every call of this number.
fn all_of(call: libc::c_long, errno: libc::c_int) -> Refusal {
    Refusal { call, argument: None, errno }
}

/// Refuses to add execution to memory.
fn no_executable_mprotect() -> Refusal {
    let protection = (libc::PROT_READ | libc::PROT_EXEC) as u32;
    let argument = Some((2, u32::MAX, protection));
    Refusal { call: libc::SYS_mprotect, argument, errno: libc::EACCES }
}

/// What a sandbox refuses, how code is interrupted there, and what `environment()` says.
type Sandbox = (fn() -> Vec<Refusal>, Interrupted, fn(&footbridge::Environment));

const SANDBOXES: [Sandbox; 6] = [
    (
        || vec![all_of(libc::SYS_membarrier, libc::EPERM)],
        Interrupted::BySignal,
        |found| {
            let lost = [
                "no membarrier(2): full fences on both sides",
                "membarrier(2) was refused after the start: full fences on both sides",
            ];
            assert!(lost.contains(&&*found.fences), "{found}");
        },
    ),
    (
        || [libc::SYS_tgkill, libc::SYS_rt_tgsigqueueinfo].map(|n| all_of(n, libc::EPERM)).into(),
        Interrupted::AtPolls,
        |found| {
            let end = "; but tgkill(2) failed: Operation not permitted (os error 1): goroutines yield \
                   at polls only";
            assert!(found.preemption.ends_with(end), "{found}");
        },
    ),
    (
        || vec![all_of(libc::SYS_madvise, libc::EPERM)],
        Interrupted::BySignal,
        |found| {
            let stays = "stays committed after use: madvise(2) MADV_DONTNEED failed: Operation not \
                     permitted (os error 1)";
            assert_eq!(found.stack_memory, stays);
            assert!(found.code_memory.starts_with("dual map (shared anonymous)"), "{found}");
        },
    ),
    (
        || vec![all_of(libc::SYS_memfd_create, libc::ENOSYS)],
        Interrupted::BySignal,
        |found| {
            assert!(found.code_memory.starts_with("dual map (shared anonymous)"), "{found}");
        },
    ),
    (
        || vec![no_executable_mprotect()],
        Interrupted::BySignal,
        |found| {
            assert!(found.code_memory.starts_with("dual map (shared anonymous)"), "{found}");
        },
    ),
    (
        || vec![refuse_guard_markers()],
        Interrupted::BySignal,
        |found| {
            let pages = "no MADV_GUARD_INSTALL: guards are PROT_NONE pages";
            assert!(found.stack_guards.starts_with(pages), "{found}");
        },
    ),
];

#[test]
fn a_sandbox_from_before_the_start_is_replaced() {
    for (case, (refusals, how, check)) in SANDBOXES.into_iter().enumerate() {
        let test = "a_sandbox_from_before_the_start_is_replaced";
        let outcome = child(test).case(case, || {
            refuse(&refusals());
            use_everything(how);
            check(&environment());
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn a_sandbox_that_is_entered_in_a_run_is_replaced() {
    for (case, (refusals, how, check)) in SANDBOXES.into_iter().enumerate() {
        let test = "a_sandbox_that_is_entered_in_a_run_is_replaced";
        let outcome = child(test).case(case, || {
            use_everything(Interrupted::BySignal);
            let more = config(2).run(|| {
                assert_eq!(traffic(200), (1..=200).sum());
                refuse_on_all_threads(&refusals());
                let sum = traffic(500);
                // Stacks of another class, which are new.
                let deep = runtime::Builder::new().stack_bytes(MIB).go(|| 5).expect("a stack");
                assert_eq!(deep.join().expect("no panic"), 5);
                sum
            });
            assert_eq!(more, Ok((1..=500).sum()));
            use_everything(how);
            check(&environment());
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn without_membarrier_and_affinity_the_report_says_what_is_assumed() {
    let test = "without_membarrier_and_affinity_the_report_says_what_is_assumed";
    child(test).run(|| {
        on(2, || traffic(100));
        refuse_on_all_threads(&[
            all_of(libc::SYS_membarrier, libc::ENOSYS),
            all_of(libc::SYS_sched_setaffinity, libc::EPERM),
        ]);
        assert_eq!(on(2, || traffic(1_000)), (1..=1_000).sum());
        let text = "membarrier(2) was refused after the start, and not every processor could be \
                    visited: full fences on both sides, after 10 ms in which all stores are \
                    assumed to be visible";
        assert_eq!(environment().fences, text);
    })
    .assert_success();
}

/// The loss must not leave the thread bound to a processor.
#[test]
fn the_loss_of_membarrier_keeps_the_affinity_of_the_thread() {
    let affinity = || {
        // SAFETY: the address of a local of that size.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
            libc::CPU_COUNT(&set)
        }
    };
    child("the_loss_of_membarrier_keeps_the_affinity_of_the_thread")
        .run(|| {
            let before = affinity();
            on(2, || {
                refuse_on_all_threads(&[all_of(libc::SYS_membarrier, libc::ENOSYS)]);
                traffic(500);
                assert_eq!(affinity(), before);
            });
            assert_eq!(affinity(), before);
            let text = "membarrier(2) was refused after the start: full fences on both sides";
            assert_eq!(environment().fences, text);
        })
        .assert_success();
}

/// qemu-user answers each advice that it does not know with success.
#[test]
fn an_emulator_that_only_says_that_it_made_guards_is_not_believed() {
    let qemu = [&*format!("qemu-{}", std::env::consts::ARCH)];
    if std::process::Command::new(qemu[0]).arg("--version").output().is_err() {
        assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "{qemu:?} is not installed");
        println!("skipped: {qemu:?} is not installed");
        return;
    }
    let test = "an_emulator_that_only_says_that_it_made_guards_is_not_believed";
    let outcome = child(test).under(&qemu).run(|| {
        let guards = environment().stack_guards;
        let front = "MADV_GUARD_INSTALL is answered and does nothing (an emulator): guards are \
                     PROT_NONE pages, ";
        assert!(guards.starts_with(front), "{guards}");
        let config = Config::new().processors(1).stack_bytes(16 << 10).time_slice(None);
        config.run(|| sink(&[0; 4])).expect("the run starts");
    });
    outcome.assert_aborted_with(&overflow("1", "16 KiB", "64 KiB", "rust memory::sink", NO_FRAMES));
}

/// Handlers of the program run on the alternate stack of a thread, and may call C functions with
/// large frames.
#[test]
fn the_guard_of_an_alternate_stack_has_64_kib() {
    alone(|| {
        // SAFETY: with a null stack the call only reads; the address is that of a local.
        let stack = unsafe {
            let mut stack: libc::stack_t = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(std::ptr::null(), &raw mut stack), 0);
            stack
        };
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let guard = maps.lines().find_map(|line| {
            let (from, rest) = line.split_once('-').expect("a range");
            let (to, access) = rest.split_once(' ').expect("permissions");
            let address = |text| usize::from_str_radix(text, 16).expect("an address");
            let ends_at_stack = address(to) == stack.ss_sp as usize;
            (ends_at_stack && access.starts_with("---p")).then(|| address(to) - address(from))
        });
        assert!(guard.is_some_and(|bytes| bytes >= 64 << 10), "{guard:?}");
    });
}
