//! Code memory: its mappings, its exhaustion, and the fallbacks on hosts that refuse a system call.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::child;

use crate::{refuse_guard_markers, sink};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::Convention;
use footbridge::environment;
use footbridge::jit::{
    Code, FrameClass, GRANULE_BYTES, Jit, JitError, MemoryMode, Ops, Placement, lookup,
};
use footbridge::runtime::{self, Builder, Chan, Config, RunError, Shortage, StackError, go, scope};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, IntelFormatter, Register};
use support::child::{
    NO_FRAMES, Refusal, limit_address_space, mask, overflow, refuse, unlimit_address_space,
};

const MODES: [MemoryMode; 2] = [MemoryMode::DualMap, MemoryMode::MprotectBatch];
const CHUNK_BYTES: usize = 64 << 10;

/// Code that returns `value`.
fn answer(jit: &Jit, name: &str, value: i32) -> Result<Code, JitError> {
    // SAFETY: a leaf that changes eax only.
    unsafe {
        jit.install(name, FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; mov eax, value; ret))
    }
}

/// Calls code of [`answer`].
fn call(code: &Code) -> i32 {
    // SAFETY: a System V function of this type.
    let f: extern "C" fn() -> i32 = unsafe { std::mem::transmute(code.address()) };
    f()
}

/// Installs leaf code.
fn install(jit: &Jit, name: &str, body: impl FnOnce(&mut Ops)) -> Result<Code, JitError> {
    // SAFETY: never called.
    unsafe { jit.install(name, FrameClass::Leaf, body) }
}

fn arena(reserve_bytes: usize, mode: MemoryMode, placement: Placement) -> Jit {
    let builder = Jit::builder().reserve_bytes(reserve_bytes).memory(mode).placement(placement);
    builder.build().expect("an arena")
}

/// The reserved address range, from the report.
fn range(jit: &Jit) -> std::ops::Range<usize> {
    let report = jit.memory_report();
    let (front, rest) = report.split_once(" MiB at 0x").expect("size and base");
    let mib = front.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok()).expect("a size");
    let digits = rest.split(|c: char| !c.is_ascii_hexdigit()).next().expect("a base");
    let base = usize::from_str_radix(digits, 16).expect("hexadecimal");
    base..base + (mib << 20)
}

/// The start addresses of all code that the registry finds in the arena.
fn published(jit: &Jit) -> BTreeSet<usize> {
    range(jit).step_by(GRANULE_BYTES).filter_map(lookup).map(|found| found.start()).collect()
}

/// Mappings of this process that are writable and executable, by procfs and by the region crate.
fn writable_and_executable() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    let permissions = |line: &str| line.split(' ').nth(1).unwrap_or("").to_string();
    let mut bad: Vec<String> = maps
        .lines()
        .filter(|line| permissions(line).contains('w') && permissions(line).contains('x'))
        .map(ToString::to_string)
        .collect();
    let all = region::query_range(std::ptr::null::<u8>(), 0x7fff_ffff_f000).expect("mappings");
    for region in all.flatten() {
        if region.is_writable() && region.is_executable() {
            bad.push(format!("{:?}", region.as_range()));
        }
    }
    bad
}

#[test]
fn no_page_is_ever_writable_and_executable() {
    let nothing: [String; 0] = [];
    assert_eq!(writable_and_executable(), nothing, "before");
    for mode in MODES {
        for placement in [Placement::Near, Placement::Anywhere] {
            let jit = arena(256 << 20, mode, placement);
            std::thread::scope(|s| {
                let installs = s.spawn(|| {
                    for i in 0..2_000 {
                        let code = answer(&jit, "w^x", i).expect("installs");
                        assert_eq!(call(&code), i);
                        if i % 4 == 0 {
                            // So that the other thread sees many states.
                            std::thread::yield_now();
                        }
                    }
                });
                let mut checks = 0;
                while !installs.is_finished() || checks == 0 {
                    assert_eq!(writable_and_executable(), nothing, "{mode:?} {placement:?}");
                    checks += 1;
                }
                println!("{mode:?} {placement:?}: {checks} checks during the installs");
            });
            let code = answer(&jit, "w^x", 7).expect("installs");
            let page = region::query(code.address() as *const u8).expect("mapped");
            assert!(page.is_readable() && page.is_executable() && !page.is_writable());
            assert_eq!(writable_and_executable(), nothing, "after");
        }
    }
}

#[test]
fn batches_of_protected_pages_run() {
    for placement in [Placement::Near, Placement::Anywhere] {
        let jit = arena(64 << 20, MemoryMode::MprotectBatch, placement);
        let report = mask(jit.memory_report());
        assert_eq!(report, "mprotect batch, 64 MiB at 0x_ (asked for)");
        assert_eq!(jit.is_near_text(), placement == Placement::Near);
        let codes: Vec<_> =
            (0..300).map(|i| answer(&jit, &format!("batch {i}"), i).expect("room")).collect();
        for (i, code) in codes.iter().enumerate() {
            assert_eq!(code.address() % 4096, 0, "published code shares no page");
            assert_eq!(call(code), i as i32);
            assert_eq!(lookup(code.address() + 3).map(|f| f.name()), Some(&*format!("batch {i}")));
        }
    }
}

/// The instructions of a stub with their texts.
fn disassemble(at: usize) -> Vec<(iced_x86::Instruction, String)> {
    let stub = lookup(at).expect("published");
    // SAFETY: published code is readable and does not change.
    let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, stub.len()) };
    let mut formatter = IntelFormatter::new();
    Decoder::with_ip(64, bytes, at as u64, DecoderOptions::NONE)
        .iter()
        .map(|instruction| {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            (instruction, text)
        })
        .collect()
}

#[test]
fn helpers_out_of_reach_are_called_through_cells() {
    let text = helpers_out_of_reach_are_called_through_cells as *const () as usize;
    for (placement, mode) in [
        (Placement::Anywhere, MemoryMode::DualMap),
        (Placement::Anywhere, MemoryMode::MprotectBatch),
        (Placement::Near, MemoryMode::DualMap),
        (Placement::Near, MemoryMode::MprotectBatch),
    ] {
        let jit = arena(16 << 20, mode, placement);
        let go = Convention::GoAbiInternal;
        let function = jit.named_goroutine_fn("add one", go, |x: u64| x + 1).expect("stub");
        let target = function.address();
        let far = placement == Placement::Anywhere;
        assert_eq!(jit.is_near_text(), !far);
        assert_eq!(target.abs_diff(text) > 1 << 31, far, "{target:#x} {text:#x}");

        let listing = disassemble(target);
        let calls: Vec<_> = listing
            .iter()
            .filter(|(i, _)| {
                // The poll stub is always called through a thread-local word.
                matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
                    && i.segment_prefix() != Register::FS
            })
            .collect();
        let [(helper, shown)] = calls[..] else { panic!("{listing:#?}") };
        if far {
            assert_eq!(helper.memory_base(), Register::RIP, "{shown}");
            let cell = helper.ip_rel_memory_address() as usize;
            assert!(shown.starts_with("call"), "{shown}");
            assert_eq!(cell % 8, 0, "{shown}");
            assert_eq!(
                lookup(cell).map(|f| f.start()),
                Some(target),
                "the cell belongs to the stub"
            );
            // SAFETY: inside of the stub, which is readable.
            let address = unsafe { *(cell as *const usize) };
            assert!(address.abs_diff(text) < 1 << 30, "{address:#x} is not the shim");
        } else {
            let address = helper.near_branch_target() as usize;
            assert!(address.abs_diff(text) < 1 << 30, "{shown}");
        }

        // SAFETY: a standard frame; the target is ABIInternal code of the same type.
        let code = unsafe {
            jit.install("far caller", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target; pop rbp; ret);
            })
        }
        .expect("installs");
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { code.enter::<fn(u64) -> u64>(go) }.expect("entry");
        // SAFETY: on a goroutine.
        let sum = runtime::run(|| (0..100).map(|i| unsafe { entry.call(i) }).sum::<u64>());
        assert_eq!(sum, (1..=100).sum());
    }
}

#[test]
fn a_full_sub_arena_is_an_error_and_the_others_remain_usable() {
    for mode in MODES {
        let jit = arena(4 << 20, mode, Placement::Near);
        let mut codes = Vec::new();
        let error = loop {
            let len = [5, 64, 3000, 70_000][codes.len() % 4];
            let installed = install(&jit, "fills", |ops| {
                for _ in 0..len {
                    dynasm!(ops; .arch x64; nop);
                }
            });
            match installed {
                Ok(code) => codes.push(code),
                Err(error) => break error,
            }
        };
        let text = error.to_string();
        let what = "out of code space: ";
        let how = " bytes do not fit in what is left of the 524288 bytes for leaf frames; build \
                   the Jit with a larger JitBuilder::reserve_bytes";
        let needed = text.strip_prefix(what).and_then(|t| t.strip_suffix(how));
        assert!(needed.is_some_and(|n| n.parse::<usize>().is_ok()), "{text}");
        assert!(codes.len() >= 8, "{}", codes.len());
        // The rest is smaller than the code that did not fit.
        let left = 524_288 - codes.iter().map(|c| c.len().next_multiple_of(64)).sum::<usize>();
        assert!(mode == MemoryMode::MprotectBatch || left < 70_000, "{left} bytes are not used");
        let returned: BTreeSet<_> = codes.iter().map(Code::address).collect();
        assert_eq!(returned.len(), codes.len());
        assert_eq!(published(&jit), returned);
        // The sub-arena of another class still has room.
        // SAFETY: a standard frame that calls nothing.
        let framed = unsafe {
            jit.install("framed", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; mov eax, 3; pop rbp; ret);
            })
        }
        .expect("room for standard frames");
        assert_eq!(call(&framed), 3);
        // Small code fills the sub-arena to the last granule. Then every install fails, and
        // existing code is unchanged.
        let full = loop {
            match answer(&jit, "more", 1) {
                Ok(code) => codes.push(code),
                Err(error) => break error.to_string(),
            }
        };
        assert!(full.starts_with("out of code space: "), "{full}");
        assert_eq!(answer(&jit, "more", 1).expect_err("full").to_string(), full);
        let unit = if mode == MemoryMode::DualMap { 64 } else { 4096 };
        let used: usize = codes.iter().map(|c| c.len().next_multiple_of(unit)).sum();
        assert_eq!(used, 524_288);
        assert_eq!(lookup(codes[0].address()).map(|f| f.name()), Some("fills"));
    }
}

#[test]
fn a_refused_install_leaves_no_trace() {
    for mode in MODES {
        let jit = arena(4 << 20, mode, Placement::Near);
        let first = answer(&jit, "first", 1).expect("installs");
        let before = published(&jit);
        assert_eq!(before, BTreeSet::from([first.address()]));

        let too_large = install(&jit, "too large", |ops| {
            (0..300_000).for_each(|_| dynasm!(ops; .arch x64; nop));
        });
        let text = "one piece of code is 300000 bytes long and the limit of this arena is 262144; \
                    split it, or build the Jit with a larger reservation";
        assert_eq!(too_large.expect_err("too large").to_string(), text);

        let empty = install(&jit, "empty", |_| {});
        let text = "code \"empty\" breaks the frame contract: it has no instruction";
        assert_eq!(empty.expect_err("empty").to_string(), text);

        let undefined = install(&jit, "undefined", |ops| {
            let nowhere = ops.new_dynamic_label();
            dynasm!(ops; .arch x64; jmp =>nowhere);
        });
        let text = undefined.expect_err("undefined label").to_string();
        assert!(text.starts_with("code \"undefined\" does not assemble: "), "{text}");
        assert!(text.to_lowercase().contains("unknown") && text.contains("label"), "{text}");

        let far = first.address() + (1 << 32);
        let unreachable = install(&jit, "unreachable", |ops| {
            dynasm!(ops; .arch x64; jmp extern far);
        });
        let error = unreachable.expect_err("out of reach");
        assert_eq!(error, JitError::OutOfReach { name: "unreachable".into(), target: far });
        assert_eq!(
            error.to_string(),
            format!(
                "code \"unreachable\" calls or jumps to {far:#x}, which is further away than a \
                 displacement of 32 bits reaches; load the address into a register and call that, or \
                 build the Jit with Placement::Near and a smaller JitBuilder::reserve_bytes, so that \
                 it fits next to the program's text (Jit::is_near_text)"
            )
        );

        for class in [FrameClass::Standard, FrameClass::Saved] {
            // SAFETY: never called.
            let wrong = unsafe {
                jit.install(
                    "wrong",
                    class,
                    |ops| dynasm!(ops; .arch x64; mov rbp, rsp; push rbp; ret),
                )
            };
            let text = "code \"wrong\" breaks the frame contract: its frame class starts with `push \
                        rbp; mov rbp, rsp` before anything else; code that makes no call may be \
                        FrameClass::Leaf";
            assert_eq!(wrong.expect_err("wrong prologue").to_string(), text);
        }
        for class in [FrameClass::Entry, FrameClass::Root, FrameClass::Win64] {
            // SAFETY: never called.
            let own = unsafe { jit.install("own", class, |ops| dynasm!(ops; .arch x64; ret)) };
            let text = "code \"own\" breaks the frame contract: entry, root and win64 frames are made \
                        by the crate's own stubs only";
            assert_eq!(own.expect_err("not for users").to_string(), text);
        }

        let panicked = catch_unwind(AssertUnwindSafe(|| {
            install(&jit, "panics", |ops| {
                dynasm!(ops; .arch x64; ret);
                panic!("inside of install");
            })
        }));
        let payload = panicked.expect_err("the panic comes out");
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"inside of install"));

        assert_eq!(published(&jit), before);
        // The address that each of them was given is still free.
        let unit = if mode == MemoryMode::DualMap { GRANULE_BYTES } else { 4096 };
        let next = answer(&jit, "next", 2).expect("the arena is usable");
        assert_eq!(next.address(), first.address() + unit);
        assert_eq!((call(&first), call(&next)), (1, 2));
    }
}

#[test]
fn installs_nest() {
    let jit = Jit::new().expect("code memory");
    let mut inner = Vec::new();
    let outer = install(&jit, "outer", |ops| {
        inner.push(answer(&jit, "inner", 5).expect("installs"));
        let target = inner[0].address();
        dynasm!(ops; .arch x64; jmp extern target);
    });
    let outer = outer.expect("installs");
    assert_eq!((call(&outer), call(&inner[0])), (5, 5));
}

#[test]
fn bytes_without_code_are_int3() {
    for mode in MODES {
        let jit = arena(4 << 20, mode, Placement::Near);
        let first = answer(&jit, "first", 1).expect("installs");
        let second = answer(&jit, "second", 2).expect("installs");
        let end = match mode {
            MemoryMode::DualMap => first.address() + CHUNK_BYTES,
            _ => second.address().next_multiple_of(4096) + 4096,
        };
        for (from, to) in [
            (first.address() + first.len(), second.address()),
            (second.address() + second.len(), end),
        ] {
            assert!(from < to);
            // SAFETY: committed code memory is readable, and no other thread installs code.
            let unused = unsafe { std::slice::from_raw_parts(from as *const u8, to - from) };
            assert!(unused.iter().all(|&byte| byte == 0xcc), "{mode:?}");
        }
    }
}

#[test]
fn a_forked_child_runs_existing_code_and_cannot_install() {
    child::run("a_forked_child_runs_existing_code_and_cannot_install", || {
        for mode in MODES {
            let jit = arena(4 << 20, mode, Placement::Near);
            let code = answer(&jit, "shared", 42).expect("installs");
            let bytes = || {
                // SAFETY: committed code memory is readable, and no thread installs code now.
                let all = unsafe { std::slice::from_raw_parts(code.address() as *const u8, 4096) };
                all.to_vec()
            };
            let before = bytes();
            // SAFETY: this process has one thread.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                let text = "a forked child shares its code memory with its parent and cannot \
                            emit; existing stubs may run, and an exec'ed program may emit";
                let install = answer(&jit, "from the child", 1).map(drop);
                let stub = jit.goroutine_fn(Convention::SystemV, |x: u64| x).map(drop);
                let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
                let fine = call(&code) == 42
                    && install == Err(JitError::ForkedChild)
                    && stub == Err(JitError::ForkedChild)
                    && JitError::ForkedChild.to_string() == text
                    && !maps.lines().any(|l| l.contains("footbridge-code") && l.contains(" rw"))
                    && lookup(code.address()).is_some_and(|f| f.name() == "shared");
                // SAFETY: ends the process.
                unsafe { libc::_exit(if fine { 7 } else { 8 }) }
            }
            let status = child::wait(pid);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
            assert_eq!(bytes(), before);
            assert_eq!(call(&code), 42);
            assert_eq!(call(&answer(&jit, "after", 43).expect("the parent may")), 43);
        }
    })
    .assert_success();
}

/// clone(2) and `_Fork` call no handlers of pthread_atfork(3).
#[test]
fn a_child_that_no_handler_of_forks_has_seen_gets_errors() {
    child::run("a_child_that_no_handler_of_forks_has_seen_gets_errors", || {
        let jit = Jit::new().expect("code memory");
        let code = answer(&jit, "shared", 42).expect("installs");
        let run = || Config::new().processors(2).run(|| go(|| 42).join().expect("no panic"));
        assert_eq!(run(), Ok(42));
        let is_refused = || {
            call(&code) == 42
                && answer(&jit, "from the child", 1).map(drop) == Err(JitError::ForkedChild)
                && run() == Err(RunError::BareChild)
                && RunError::BareChild.to_string().contains("clone(2) or _Fork")
        };
        // SAFETY: without a stack the child has a copy of this one, as fork(2) gives it.
        let clone = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 };
        // SAFETY: this process has one thread again.
        let fork = || unsafe { libc::fork() };
        let ways: [&[&dyn Fn() -> i32]; 3] = [&[&clone], &[&fork, &clone], &[&clone, &clone]];
        for way in ways {
            let pid = way[0]();
            if pid == 0 {
                let pid = way.get(1).map_or(0, |fork| fork());
                if pid != 0 {
                    let status = child::wait(pid);
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(libc::WEXITSTATUS(status)) }
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(if is_refused() { 7 } else { 8 }) }
            }
            let status = child::wait(pid);
            assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
        }
        assert_eq!(run(), Ok(42));
        assert_eq!(call(&answer(&jit, "after", 43).expect("the parent may")), 43);
    })
    .assert_success();
}

/// Asserts the text of an error, its system call and its errno.
#[track_caller]
fn assert_system(error: &JitError, call: &str, errno: i32, text: &str) {
    assert_eq!(error.to_string(), text);
    let JitError::System { call: failed, errno: number, .. } = error else { panic!("{error:?}") };
    assert_eq!((*failed, *number), (call, errno));
}

#[test]
fn without_address_space_code_memory_names_the_limit() {
    child::run("without_address_space_code_memory_names_the_limit", || {
        limit_address_space(2 << 20);
        let text = |error: JitError, bytes: usize, what: &str| {
            let text = error.to_string();
            let JitError::NoMemory { bytes: refused, errno, shortage, .. } = error else {
                panic!("{error:?}");
            };
            assert_eq!((refused, errno), (bytes, libc::ENOMEM), "{text}");
            let Shortage::AddressSpace { used, limit, .. } = shortage else { panic!("{text}") };
            assert!(used <= limit && used + bytes > limit, "{text}");
            let expected = format!(
                "no memory for {bytes} bytes of {what}: Cannot allocate memory (os error 12); \
                 RLIMIT_AS is {limit} bytes and {used} are used: raise it (ulimit -v)"
            );
            assert_eq!(text, expected);
            text
        };
        // The least that is tried.
        let least = Jit::new().expect_err("4 MiB and tables");
        let least = text(least, 4 << 20, "code memory");
        assert!(environment().code_memory.starts_with("none: no memory for 4194304 bytes"));
        for mode in MODES {
            let builder = Jit::builder().reserve_bytes(1 << 30).memory(mode);
            text(builder.build().expect_err("1 GiB"), 1 << 30, "code memory");
        }
        let run = Config::new().processors(1).run(|| ()).expect_err("no code memory").to_string();
        assert!(run.starts_with("the switch stubs could not be emitted: no memory for "), "{run}");
        assert_eq!(run.split_once("RLIMIT_AS").is_some(), least.contains("RLIMIT_AS"));
        unlimit_address_space();
        limit_address_space(64 << 20);
        let small = Jit::builder().reserve_bytes(32 << 20).build().expect("a small one fits");
        assert_eq!(call(&answer(&small, "small", 6).expect("installs")), 6);
        unlimit_address_space();
        let jit = Jit::new().expect("a later call tries again");
        assert_eq!(call(&answer(&jit, "large", 7).expect("installs")), 7);
        assert_eq!(range(&jit).len(), 1 << 30, "without a limit it has its full size");
    })
    .assert_success();
}

const MEMFD_FLAGS: u32 = 0x18;

/// Refuses the duplicate of a mapping, which is how shared anonymous memory gets a second view.
fn refuse_duplicates() -> Refusal {
    Refusal { call: libc::SYS_mremap, argument: Some((1, u32::MAX, 0)), errno: libc::EPERM }
}

/// What the report says of [`refuse_duplicates`].
const NO_DUPLICATES: &str = "mremap(2) failed: Operation not permitted (os error 1); the writable \
                             view of code memory";

/// Refuses memfd_create(2) if `flag` is the one that is set of `MFD_NOEXEC_SEAL` and `MFD_EXEC`.
fn refuse_memfd(flag: u32, errno: libc::c_int) -> Refusal {
    Refusal { call: libc::SYS_memfd_create, argument: Some((1, MEMFD_FLAGS, flag)), errno }
}

#[test]
fn without_shared_memory_code_pages_are_flipped_by_mprotect() {
    child::run("without_shared_memory_code_pages_are_flipped_by_mprotect", || {
        let call_number = libc::SYS_memfd_create;
        let no_memfd = Refusal { call: call_number, argument: None, errno: libc::ENOSYS };
        refuse(&[refuse_duplicates(), no_memfd]);
        let expected = format!("mprotect batch, 1024 MiB at 0x_ ({NO_DUPLICATES})");
        assert_eq!(mask(&environment().code_memory), expected);
        let jit = Jit::new().expect("falls back");
        assert_eq!(format!("{jit:?}"), format!("Jit({})", jit.memory_report()));
        assert!(jit.is_near_text());
        for i in 0..20 {
            assert_eq!(call(&answer(&jit, "fallback", i).expect("installs")), i);
        }
        assert_eq!(runtime::run(|| runtime::go(|| 5).join().expect("no panic")), 5);
        let dual = Jit::builder().memory(MemoryMode::DualMap).build();
        assert_system(&dual.expect_err("no fallback"), "mremap(2)", libc::EPERM, NO_DUPLICATES);
    })
    .assert_success();
}

/// A limit of the size of files: a memfd that exceeds it would end the process by SIGXFSZ.
#[test]
fn a_limit_of_file_size_refuses_a_memfd_and_does_not_end_the_process() {
    child::run("a_limit_of_file_size_refuses_a_memfd_and_does_not_end_the_process", || {
        refuse(&[refuse_duplicates()]);
        let limit = libc::rlimit { rlim_cur: 64 << 20, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the address of a local.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        let expected = format!("mprotect batch, 1024 MiB at 0x_ ({NO_DUPLICATES})");
        assert_eq!(mask(&environment().code_memory), expected);
        // A file within the limit is possible.
        let small = Jit::builder().reserve_bytes(32 << 20).build().expect("a memfd");
        assert!(small.memory_report().starts_with("dual map (memfd, "), "{small:?}");
        assert_eq!(call(&answer(&small, "small", 8).expect("installs")), 8);
    })
    .assert_success();
}

#[test]
fn an_old_kernel_gets_a_memfd_without_flags() {
    child::run("an_old_kernel_gets_a_memfd_without_flags", || {
        let memfds = [refuse_memfd(0x8, libc::EINVAL), refuse_memfd(0x10, libc::EINVAL)];
        refuse(&memfds);
        refuse(&[refuse_duplicates()]);
        let expected = format!(
            "dual map (memfd, no flag; {NO_DUPLICATES}), 1024 MiB at 0x_, within reach of the text"
        );
        assert_eq!(mask(&environment().code_memory), expected);
        let jit = Jit::new().expect("dual map");
        assert_eq!(call(&answer(&jit, "old", 9).expect("installs")), 9);
    })
    .assert_success();
}

#[test]
fn a_security_module_may_require_mfd_exec() {
    child::run("a_security_module_may_require_mfd_exec", || {
        refuse(&[refuse_memfd(0x8, libc::EACCES), refuse_memfd(0, libc::EACCES)]);
        refuse(&[refuse_duplicates()]);
        let expected = format!(
            "dual map (memfd, MFD_EXEC; {NO_DUPLICATES}), 1024 MiB at 0x_, within reach of the text"
        );
        assert_eq!(mask(&environment().code_memory), expected);
        let jit = Jit::new().expect("dual map");
        assert_eq!(call(&answer(&jit, "marked", 9).expect("installs")), 9);
    })
    .assert_success();
}

/// Refuses mprotect(2) with exactly this protection.
fn refuse_mprotect(protection: libc::c_int, errno: libc::c_int) -> Refusal {
    let argument = Some((2, u32::MAX, protection as u32));
    Refusal { call: libc::SYS_mprotect, argument, errno }
}

/// Refuses mmap(2) with exactly this protection.
fn refuse_mmap(protection: libc::c_int, errno: libc::c_int) -> Refusal {
    let argument = Some((2, u32::MAX, protection as u32));
    Refusal { call: libc::SYS_mmap, argument, errno }
}

#[test]
fn on_a_host_that_refuses_executable_pages_the_install_fails() {
    child::run("on_a_host_that_refuses_executable_pages_the_install_fails", || {
        // The first chunk of the dual map is committed before executable memory is refused.
        let dual = arena(4 << 20, MemoryMode::DualMap, Placement::Near);
        let first = answer(&dual, "first", 1).expect("installs");
        let executable = libc::PROT_READ | libc::PROT_EXEC;
        refuse(&[refuse_mmap(executable, libc::EACCES), refuse_mprotect(executable, libc::EACCES)]);
        let large = install(&dual, "next chunk", |ops| {
            (0..2 * CHUNK_BYTES).for_each(|_| dynasm!(ops; .arch x64; nop));
        });
        let why = "mmap(2) PROT_EXEC failed: Permission denied (os error 13); executable code \
                   memory";
        assert_system(&large.expect_err("no new chunk"), "mmap(2) PROT_EXEC", libc::EACCES, why);
        assert_eq!(published(&dual), BTreeSet::from([first.address()]));
        // The committed chunk still has room.
        assert_eq!(call(&answer(&dual, "second", 2).expect("fits")), 2);

        let expected = format!("mprotect batch, 1024 MiB at 0x_ ({why})");
        assert_eq!(mask(&environment().code_memory), expected);
        let jit = Jit::new().expect("a reservation needs no protection");
        let text = "mprotect(2) failed: Permission denied (os error 13); it flips a page of code; \
                    check vm.max_map_count";
        for _ in 0..3 {
            let error = answer(&jit, "refused", 1).expect_err("not executable");
            assert_system(&error, "mprotect(2)", libc::EACCES, text);
        }
        let small = Jit::builder().reserve_bytes(4 << 20).build().expect("a reservation");
        answer(&small, "refused", 1).expect_err("not executable");
        assert_eq!(published(&small), BTreeSet::new());
        let run = Config::new().processors(1).run(|| ());
        let expected = format!("the switch stubs could not be emitted: {text}");
        assert_eq!(run.expect_err("no stubs").to_string(), expected);
    })
    .assert_success();
}

/// Sends `n` values between goroutines on two threads that go idle in between. Returns the sum.
fn cross_thread_traffic(n: u64) -> u64 {
    let config = Config::new().processors(2);
    let run = config.run(|| {
        let (there, back) = (Chan::<u64>::new(0), Chan::<u64>::new(0));
        runtime::scope(|s| {
            let (receive, send) = (&there, &back);
            s.go(move || receive.iter().for_each(|n| send.send(n + 1).expect("open")));
            let sum = (0..n).map(|n| {
                there.send(n).expect("open");
                back.recv().expect("open")
            });
            let sum = sum.sum();
            there.close();
            sum
        })
    });
    run.expect("the run starts")
}

#[test]
fn without_membarrier_both_sides_fence() {
    child::run("without_membarrier_both_sides_fence", || {
        refuse(&[Refusal { call: libc::SYS_membarrier, argument: None, errno: libc::ENOSYS }]);
        assert_eq!(environment().fences, "no membarrier(2): full fences on both sides");
        assert_eq!(cross_thread_traffic(5_000), (1..=5_000).sum());
    })
    .assert_success();
}

#[test]
fn the_environment_report_has_known_values() {
    child::run("the_environment_report_has_known_values", || {
        let found = environment();
        let near = "1024 MiB at 0x_, within reach of the text";
        let memory = mask(&found.code_memory);
        let dual = format!("dual map (shared anonymous), {near}");
        let others = ["dual map (memfd, ", "mprotect batch, "];
        assert!(memory == dual || others.iter().any(|way| memory.starts_with(way)), "{memory}");
        let guards = [
            "MADV_GUARD_INSTALL",
            "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, about 32,000 stacks at most",
        ];
        assert!(guards.contains(&&*found.stack_guards), "{}", found.stack_guards);
        let fences =
            ["membarrier(2) private expedited", "no membarrier(2): full fences on both sides"];
        assert!(fences.contains(&&*found.fences), "{}", found.fences);
        assert!(["libgcc", "LLVM libunwind"].contains(&&*found.unwinder), "{}", found.unwinder);
        let saved = &found.preemption;
        assert!(saved.starts_with("SIGURG; ") && saved.ends_with(" bytes"), "{saved}");
        assert_eq!(found.signal_handlers, "all on alternate stacks");
        let all = format!(
            "code memory:  {}\nstack guards: {}\nstack memory: decommitted after use\n\
             fences:       {}\nunwinder:     {}\n\
             preemption:   {saved}\npanic state:  {}\nhandlers:     all on alternate stacks\n",
            found.code_memory, found.stack_guards, found.fences, found.unwinder, found.panic_state
        );
        assert_eq!(found.to_string(), all);
        assert_eq!(found, environment(), "a second call returns the same");
        assert_eq!(cross_thread_traffic(5_000), (1..=5_000).sum());
        // Shows this host's environment in the log.
        println!("{found}");
    })
    .assert_success();
}

#[test]
fn guards_on_an_old_kernel_are_prot_none_pages() {
    child::run("guards_on_an_old_kernel_are_prot_none_pages", || {
        refuse(&[refuse_guard_markers()]);
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("procfs");
        let limit: usize = limit.trim().parse().expect("a number");
        let text = format!(
            "no MADV_GUARD_INSTALL: guards are PROT_NONE pages, {} stacks at most \
             (vm.max_map_count is {limit})",
            limit / 10 * 9 / 2
        );
        assert_eq!(environment().stack_guards, text);
        let config = Config::new().processors(1).stack_bytes(16 << 10);
        config.run(|| sink(&[0; 4])).expect("the run starts");
    })
    .assert_aborted_with(&overflow("1", "16 KiB", "64 KiB", "rust memory::sink", NO_FRAMES));
}

#[test]
fn a_stack_without_a_guard_is_not_used() {
    child::run("a_stack_without_a_guard_is_not_used", || {
        let no_guards = || {
            refuse(&[refuse_guard_markers(), refuse_mprotect(libc::PROT_NONE, libc::ENOMEM)]);
        };
        let text = "no guard page for a goroutine stack: Cannot allocate memory (os error 12); \
                    there is no MADV_GUARD_INSTALL here, so that each guard is a mapping: raise \
                    vm.max_map_count";
        // Without sysmon, whose thread would have no guard either.
        let config = Config::new().processors(1).time_slice(None);
        let inside = config.run(|| {
            no_guards();
            let value = 11;
            let refused = runtime::Builder::new().go(move || value).expect_err("no guard");
            assert_eq!(refused.error, StackError::Guard { errno: libc::ENOMEM });
            assert_eq!(refused.to_string(), format!("a goroutine could not be started: {text}"));
            (refused.f)()
        });
        assert_eq!(inside, Ok(11));
        let error = config.stack_bytes(16 << 10).run(|| ()).expect_err("no guard");
        assert_eq!(error.to_string(), format!("no stack for the main goroutine: {text}"));
        assert_eq!(environment().stack_guards, format!("none: {text}"));
    })
    .assert_success();
}

#[test]
fn a_thread_that_cannot_be_created_is_an_error_of_the_run() {
    child::run("a_thread_that_cannot_be_created_is_an_error_of_the_run", || {
        // The C library falls back from clone3(2) to clone(2).
        refuse(&[
            Refusal { call: libc::SYS_clone3, argument: None, errno: libc::ENOSYS },
            Refusal { call: libc::SYS_clone, argument: None, errno: libc::EAGAIN },
        ]);
        let config = |processors| Config::new().processors(processors);
        for _ in 0..3 {
            let error = config(4).run(|| ()).expect_err("no thread");
            assert_eq!(error, RunError::Thread { errno: libc::EAGAIN });
            assert_eq!(
                error.to_string(),
                "a thread could not be created: Resource temporarily unavailable (os error 11); \
                 check RLIMIT_NPROC and the pids limit of the container, or, for its stack, \
                 RLIMIT_AS, RLIMIT_DATA and RLIMIT_MEMLOCK; lower Config::processors, or set \
                 Config::time_slice to None, which needs one thread less"
            );
        }
        // The one processor uses the calling thread, but sysmon needs another thread.
        let error = config(1).run(|| ()).expect_err("no thread");
        assert_eq!(error, RunError::Thread { errno: libc::EAGAIN });
        let alone = config(1).time_slice(None);
        assert_eq!(alone.run(|| runtime::go(|| 3).join().expect("no panic")), Ok(3));
    })
    .assert_success();
}

#[test]
fn without_address_space_for_stacks_the_closure_is_returned() {
    child::run("without_address_space_for_stacks_the_closure_is_returned", || {
        let config = Config::new().processors(1);
        let run = config.run(|| {
            // Frees heap memory, which later G structures use.
            let heap: Vec<Vec<u8>> = (0..200).map(|_| vec![1; 64 << 10]).collect();
            let keep = [1u8; 64];
            drop(heap);
            limit_address_space(0);
            let gate = Chan::<()>::new(0);
            let mut handles = Vec::with_capacity(100_000);
            let refused = loop {
                let (gate, number) = (gate.clone(), handles.len());
                let boxed = [number; 3];
                match runtime::Builder::new().go(move || {
                    let _ = gate.recv();
                    boxed[0]
                }) {
                    Ok(handle) => handles.push(handle),
                    Err(refused) => break refused,
                }
            };
            // A scope does not wait for a goroutine that was not started.
            let in_scope = scope(|s| Builder::new().go_scoped(s, || ()).map(drop));
            unlimit_address_space();
            assert_eq!(in_scope.expect_err("no memory").to_string(), refused.to_string());
            let StackError::Reserve { bytes, errno, shortage, .. } = refused.error else {
                panic!("{refused}");
            };
            // The size of one stack with its guard, which is no power of two.
            assert_eq!((bytes, errno), ((64 << 10) + (64 << 10) + 4096, libc::ENOMEM));
            let Shortage::AddressSpace { used, limit, .. } = shortage else {
                panic!("{refused}");
            };
            assert!(used <= limit && used + bytes > limit, "{refused}");
            assert_eq!(
                refused.to_string(),
                format!(
                    "a goroutine could not be started: no memory for 135168 bytes of \
                     goroutine stacks: Cannot allocate memory (os error 12); RLIMIT_AS is {limit} \
                     bytes and {used} are used: raise it (ulimit -v)"
                )
            );
            println!("{} goroutines were started", handles.len());
            assert!(handles.len() > 100);
            gate.close();
            // The returned closure is intact, and so are those that were started.
            assert_eq!((refused.f)(), handles.len());
            for (number, handle) in handles.into_iter().enumerate() {
                assert_eq!(handle.join().expect("no panic"), number);
            }
            keep[0]
        });
        assert_eq!(run, Ok(1));
    })
    .assert_success();
}

#[test]
fn a_failed_reservation_of_code_memory_leaks_no_mapping() {
    child::run("a_failed_reservation_of_code_memory_leaks_no_mapping", || {
        let mapped = || {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
            let size = |line: &str| -> Option<usize> {
                let (from, to) = line.split(' ').next()?.split_once('-')?;
                Some(usize::from_str_radix(to, 16).ok()? - usize::from_str_radix(from, 16).ok()?)
            };
            maps.lines().filter_map(size).sum::<usize>()
        };
        const GIB: usize = 1 << 30;
        for mode in MODES {
            let builder = Jit::builder().reserve_bytes(GIB).memory(mode);
            // Enough for the code, but not for the tables of the registry.
            limit_address_space(GIB + GIB / 16);
            let before = mapped();
            for _ in 0..3 {
                let text = builder.build().expect_err("no room for the tables").to_string();
                let front = "no memory for 134217728 bytes of the registry of code: ";
                assert!(text.starts_with(front) && text.contains("RLIMIT_AS is "), "{text}");
            }
            let leaked = mapped().saturating_sub(before);
            assert!(leaked < 1 << 20, "{mode:?}: {} MiB are still mapped", leaked >> 20);
            unlimit_address_space();
        }
    })
    .assert_success();
}
