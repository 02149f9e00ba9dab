//! Goroutine stacks: their sizes, how they are used again, when their memory goes back, what is
//! said when there are no more, and what is said when one overflows.

use std::collections::HashSet;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use support::child;
use support::code::{caller, push_saved};
use support::gcc::{self, Library, has_gcc};
use support::runs::{alone, config};
use support::settings::{number_or, seed_or};

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::abi::{Convention, Gpr};
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{
    self, Builder, Chan, RecvError, Shortage, SpawnFnError, StackError, go, gosched, scope,
    stack_usage,
};
use support::child::{Refusal, mask, overflow, refuse};

const GO: Convention = Convention::GoAbiInternal;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const CLASSES: [usize; 5] = [16 * KIB, 64 * KIB, 256 * KIB, MIB, 8 * MIB];
const PAGE: usize = 4096;

/// Stacks of a class that goroutines are on.
fn in_use(stack_bytes: usize) -> usize {
    let all = stack_usage();
    let usage = all.iter().find(|usage| usage.stack_bytes == stack_bytes).expect("a class");
    usage.made - usage.pooled - usage.decommitted
}

fn made(stack_bytes: usize) -> usize {
    let all = stack_usage();
    all.iter().find(|usage| usage.stack_bytes == stack_bytes).expect("a class").made
}

/// Uses so many bytes of the stack in frames of about 1 KiB, calls `bottom` with the lowest
/// address, and returns its result.
#[inline(never)]
fn descend<R>(bytes: usize, bottom: &mut dyn FnMut(usize) -> R) -> R {
    let here = black_box([bytes as u64; 100]);
    let result = match bytes.checked_sub(KIB) {
        Some(rest) => descend(rest, bottom),
        None => bottom(here.as_ptr() as usize),
    };
    // Frames overwrite each other only if the stack is smaller than it should be.
    assert!(black_box(&here).iter().all(|&word| word == bytes as u64));
    result
}

/// What [`descend`] takes at most, as a multiple of what it was asked for.
const DESCEND_FACTOR: usize = if cfg!(debug_assertions) { 2 } else { 1 };

/// How many pages of a range have memory.
fn resident(from: usize, to: usize) -> usize {
    let from = from & !(PAGE - 1);
    let mut pages = vec![0u8; (to - from).div_ceil(PAGE)];
    // SAFETY: a page-aligned address, and a buffer of a byte for each page.
    let failed = unsafe { libc::mincore(from as *mut _, to - from, pages.as_mut_ptr()) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    pages.iter().filter(|&&page| page & 1 != 0).count()
}

/// Bytes that this process has in memory.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * PAGE
}

#[test]
fn a_goroutine_has_the_class_that_it_asked_for() {
    child::run("a_goroutine_has_the_class_that_it_asked_for", || {
        alone(|| {
            assert_eq!(stack_usage().map_bytes(), CLASSES);
            assert_eq!(in_use(64 * KIB), 1, "the main goroutine");
            for (asked, class) in [
                (0, 16 * KIB),
                (16 * KIB, 16 * KIB),
                (16 * KIB + 1, 64 * KIB),
                (64 * KIB, 64 * KIB),
                (100 * KIB, 256 * KIB),
                (256 * KIB + 1, MIB),
                (MIB, MIB),
                (2 * MIB, 8 * MIB),
                (8 * MIB, 8 * MIB),
            ] {
                let main = usize::from(class == 64 * KIB);
                assert_eq!(in_use(class), main, "before {asked}");
                let depth = class / (2 * DESCEND_FACTOR);
                let body = move || {
                    assert_eq!(in_use(class), main + 1, "{asked}");
                    descend(depth, &mut |_| 7)
                };
                let handle = Builder::new().stack_bytes(asked).go(body).expect("memory");
                assert_eq!(handle.join().expect("it does not overflow"), 7);
                // SAFETY: nothing of the goroutine knows its thread.
                let handle = unsafe { Builder::new().stack_bytes(asked).go_migratable(body) };
                assert_eq!(handle.expect("memory").join().expect("no panic"), 7);
                let mut borrowed = 0;
                scope(|s| {
                    let body = || borrowed = body();
                    Builder::new().stack_bytes(asked).go_scoped(s, body).expect("memory");
                });
                assert_eq!(borrowed, 7);
                assert_eq!(in_use(class), main, "after {asked}");
            }
        });
        // Without a wish it is the class of the run.
        config(1)
            .stack_bytes(100 * KIB)
            .run(|| {
                let handle = Builder::new().go(|| in_use(256 * KIB)).expect("memory");
                assert_eq!(handle.join().expect("no panic"), 2);
                assert_eq!(go(|| in_use(256 * KIB)).join().expect("no panic"), 2);
                assert_eq!(in_use(64 * KIB), 0);
            })
            .expect("the run starts");
    })
    .assert_success();
}

/// The sizes of the classes, in order.
trait MapBytes {
    fn map_bytes(&self) -> Vec<usize>;
}

impl MapBytes for Vec<runtime::StackUsage> {
    fn map_bytes(&self) -> Vec<usize> {
        self.iter().map(|usage| usage.stack_bytes).collect()
    }
}

#[test]
fn more_than_the_largest_class_is_refused() {
    let text = |requested: usize| {
        format!(
            "a stack of {requested} bytes was asked for, and the largest has 8 MiB; systemstack \
             runs a function on the stack of a thread"
        )
    };
    runtime::run(|| {
        for requested in [8 * MIB + 1, usize::MAX] {
            let builder = Builder::new().stack_bytes(requested);
            let keep = [1, 2, 3];
            let refused = builder.clone().go(move || keep.len()).expect_err("too large");
            assert_eq!(refused.error, StackError::TooLarge { requested });
            let whole = format!("a goroutine could not be started: {}", text(requested));
            assert_eq!(refused.to_string(), whole);
            assert_eq!((refused.f)(), 3, "the closure comes back");
            // SAFETY: nothing of the goroutine knows its thread.
            let refused = unsafe { builder.clone().go_migratable(|| 5) }.expect_err("too large");
            assert_eq!((refused.f)(), 5);
            let keep = String::from("kept");
            let refused = scope(|s| {
                let refused = builder.clone().go_scoped(s, || keep).map(drop);
                let refused = refused.expect_err("too large");
                assert_eq!(refused.to_string(), whole);
                (refused.f)()
            });
            assert_eq!(refused, "kept", "the closure comes back");
            let jit = Jit::new().expect("code memory");
            let code = returns(&jit);
            let signature = "fn()".parse().expect("a signature");
            // SAFETY: code of this type.
            let refused = unsafe { builder.spawn_fn(&jit, GO, &signature, &code) }.map(drop);
            let error = refused.expect_err("too large");
            assert_eq!(error, SpawnFnError::Stack(StackError::TooLarge { requested }));
            let whole = format!("no stub that starts goroutines: {}", text(requested));
            assert_eq!(error.to_string(), whole);
        }
    });
}

/// JIT code that does nothing.
fn returns(jit: &Jit) -> Code {
    // SAFETY: a leaf.
    unsafe { jit.install("returns", FrameClass::Leaf, |ops| dynasm!(ops; .arch x64; ret)) }
        .expect("installs")
}

#[test]
fn jit_code_starts_goroutines_with_small_stacks() {
    const COUNT: usize = 50;
    child::run("jit_code_starts_goroutines_with_small_stacks", || {
        let jit = Jit::new().expect("code memory");
        let channel = Chan::<u64>::new(0);
        let receiver = channel.clone();
        let receive = move || receiver.recv().expect("one for each");
        let receive = jit.named_goroutine_fn("receive", GO, receive).expect("stub");
        static SUM: AtomicU64 = AtomicU64::new(0);
        let add = |n: u64| {
            SUM.fetch_add(n, Ordering::Relaxed);
        };
        let add = jit.named_goroutine_fn("add", GO, add).expect("stub");
        let (receive_at, add_at) = (receive.address(), add.address());
        // SAFETY: a standard frame around calls of ABIInternal functions.
        let body = unsafe {
            jit.install("body", FrameClass::Standard, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; call extern receive_at
                    ; call extern add_at
                    ; pop rbp
                    ; ret
                );
            })
        }
        .expect("installs");
        let signature = "fn()".parse().expect("a signature");
        let builder = Builder::new().stack_bytes(16 * KIB);
        // SAFETY: ABIInternal code of this type; nothing is passed.
        let start = unsafe { builder.spawn_fn(&jit, GO, &signature, &body) }.expect("stub");
        let target = start.address();
        // SAFETY: a standard frame around calls.
        let starter = unsafe {
            jit.install("starter", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                for _ in 0..COUNT {
                    dynasm!(ops; .arch x64; call extern target);
                }
                dynasm!(ops; .arch x64; pop rbp; ret);
            })
        }
        .expect("installs");
        // SAFETY: ABIInternal code of this type.
        let starter = unsafe { starter.enter::<fn()>(GO) }.expect("entry");
        alone(|| {
            // SAFETY: on a goroutine.
            unsafe { starter.call() };
            for _ in 0..3 {
                gosched();
            }
            assert_eq!((in_use(16 * KIB), in_use(64 * KIB)), (COUNT, 1));
            (1..=COUNT as u64).for_each(|n| channel.send(n).expect("open"));
            while in_use(16 * KIB) != 0 {
                gosched();
            }
        });
        assert_eq!(SUM.load(Ordering::Relaxed), (1..=COUNT as u64).sum());
    })
    .assert_success();
}

#[test]
fn stacks_are_used_again_and_none_is_lost() {
    child::run("stacks_are_used_again_and_none_is_lost", || {
        for processors in [1, 2] {
            for (class, count) in [(16 * KIB, 3000), (64 * KIB, 3000), (MIB, 200), (8 * MIB, 30)] {
                let before = made(class);
                let config = config(processors).stack_bytes(class);
                let run = config.run(|| {
                    for round in 0..5 {
                        let gate = Chan::<()>::new(0);
                        let handles: Vec<_> = (0..count)
                            .map(|_| {
                                let gate = gate.clone();
                                go(move || {
                                    let _ = gate.recv();
                                    black_box(0u8);
                                })
                            })
                            .collect();
                        assert_eq!(in_use(class), count + 1, "round {round}");
                        gate.close();
                        handles.into_iter().for_each(|handle| handle.join().expect("no panic"));
                    }
                });
                run.expect("the run starts");
                // Chains that another processor keeps are not to be had: one more burst at most.
                let limit = count * processors + 2;
                assert!(made(class) - before <= limit, "{class}: {} - {before}", made(class));
                assert_eq!(in_use(class), 0, "none is lost");
            }
        }
    })
    .assert_success();
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

#[test]
fn no_two_goroutines_ever_share_a_stack() {
    child::run("no_two_goroutines_ever_share_a_stack", || {
        let seed = seed_or(0x5eed) | 1;
        let count = number_or("FOOTBRIDGE_STACK_STRESS", 6_000);
        println!("FOOTBRIDGE_SEED={seed}");
        static ENDED: AtomicU64 = AtomicU64::new(0);
        let run = config(3).run(|| {
            let mut random = Random(seed);
            // Handles that a foreign thread drops, whose goroutines have no P to go back to.
            let (to_thread, dropped) = std::sync::mpsc::channel::<runtime::JoinHandle<u64>>();
            let thread = std::thread::spawn(move || dropped.iter().for_each(drop));
            let mut kept = Vec::new();
            for number in 0..count {
                let (class, parks) = (CLASSES[random.below(4) as usize], random.below(4));
                let depth = random.below(class as u64 / 4) as usize / DESCEND_FACTOR;
                let body = move || {
                    let here = black_box([number; 64]);
                    let result = descend(depth, &mut |_| {
                        (0..parks).for_each(|_| gosched());
                        number
                    });
                    assert_eq!(black_box(here), [number; 64], "somebody wrote to this stack");
                    ENDED.fetch_add(1, Ordering::Relaxed);
                    result
                };
                let handle = Builder::new().stack_bytes(class).go(body).expect("memory");
                match random.below(4) {
                    0 => drop(handle),
                    1 => to_thread.send(handle).expect("the thread receives until the end"),
                    _ => kept.push((number, handle)),
                }
                if random.below(50) == 0 {
                    for (number, handle) in kept.drain(..) {
                        assert_eq!(handle.join().expect("no panic"), number);
                    }
                }
                if random.below(1000) == 0 {
                    // Memory goes back meanwhile.
                    runtime::sleep(Duration::from_millis(15));
                }
            }
            for (number, handle) in kept {
                assert_eq!(handle.join().expect("no panic"), number);
            }
            while ENDED.load(Ordering::Relaxed) != count {
                gosched();
            }
            drop(to_thread);
            thread.join().expect("no panic");
        });
        run.expect("the run starts");
        assert!(CLASSES.iter().all(|&class| in_use(class) == 0), "{:?}", stack_usage());
    })
    .assert_success();
}

/// The lowest address of a stack of the class, from an address near its top.
fn lowest(near_top: usize, class: usize) -> usize {
    near_top.next_multiple_of(PAGE) - class
}

#[test]
fn a_goroutine_that_was_deep_gives_memory_back_when_it_ends() {
    child::run("a_goroutine_that_was_deep_gives_memory_back_when_it_ends", || {
        alone(|| {
            for class in [64 * KIB, 256 * KIB, MIB, 8 * MIB] {
                let body = move || {
                    let top = black_box(0u8);
                    let top = lowest(&raw const top as usize, class);
                    let bottom = descend(class / (2 * DESCEND_FACTOR), &mut |bottom| {
                        gosched();
                        bottom
                    });
                    (top, bottom, resident(bottom, top + class))
                };
                let handle = Builder::new().stack_bytes(class).go(body).expect("memory");
                while !handle.is_finished() {
                    gosched();
                }
                // The handle, and so the stack with the result, is held.
                let (stack, bottom, deep) = handle.join().expect("no panic");
                assert!(deep > 6, "{class}: only {deep} pages were used");
                assert!(bottom < stack + class - 4 * PAGE, "{class}");
                let left = resident(stack, stack + class);
                assert_eq!(left, 4, "{class}");
            }
        });
    })
    .assert_success();
}

#[test]
fn what_is_deep_between_two_switches_only_goes_back_when_its_thread_idles() {
    child::run("what_is_deep_between_two_switches_only_goes_back_when_its_thread_idles", || {
        const COUNT: usize = 100;
        const CLASS: usize = 256 * KIB;
        alone(|| {
            let body = || {
                let top = black_box(0u8);
                descend(CLASS / (2 * DESCEND_FACTOR), &mut |_| ());
                lowest(&raw const top as usize, CLASS)
            };
            let start = || Builder::new().stack_bytes(CLASS).go(body).expect("memory");
            let handles: Vec<_> = (0..COUNT).map(|_| start()).collect();
            let stacks: HashSet<_> =
                handles.into_iter().map(|handle| handle.join().expect("no panic")).collect();
            assert_eq!(stacks.len(), COUNT);
            let pages = || stacks.iter().map(|&at| resident(at, at + CLASS)).sum::<usize>();
            // No system call was made for any of them.
            assert!(pages() > COUNT * 8, "{}", pages());
            let usage = |index: usize| stack_usage()[index];
            assert_eq!((usage(2).pooled, usage(2).decommitted), (COUNT, 0));
            runtime::sleep(Duration::from_millis(200));
            assert_eq!((usage(2).pooled, usage(2).decommitted), (0, COUNT));
            assert_eq!(pages(), 0);
            // They are as good as before.
            let handles: Vec<_> = (0..COUNT).map(|_| start()).collect();
            let again = handles.into_iter().map(|handle| handle.join().expect("no panic"));
            assert!(again.into_iter().all(|stack| stacks.contains(&stack)));
            assert_eq!(usage(2).made, COUNT);
        });
    })
    .assert_success();
}

#[test]
fn results_outlive_what_is_given_back() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Large([u64; 4000]);
    impl Drop for Large {
        fn drop(&mut self) {
            assert!(self.0.iter().zip(1..).all(|(&word, n)| word == n), "the result was lost");
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    child::run("results_outlive_what_is_given_back", || {
        let run = config(1).stack_bytes(8 * MIB).run(|| {
            let body = || {
                descend(MIB / (2 * DESCEND_FACTOR), &mut |_| gosched());
                Large(std::array::from_fn(|n| n as u64 + 1))
            };
            let start = || Builder::new().stack_bytes(MIB).go(body).expect("memory");
            // Taken by who joins.
            drop(start().join().expect("no panic"));
            assert_eq!(DROPPED.load(Ordering::Relaxed), 1);
            // Dropped by the goroutine, since the handle went before it ended ...
            drop(start());
            while in_use(MIB) != 0 {
                gosched();
            }
            assert_eq!(DROPPED.load(Ordering::Relaxed), 2);
            // ... and by whoever drops the handle afterwards.
            let handle = start();
            while !handle.is_finished() {
                gosched();
            }
            drop(handle);
            assert_eq!((DROPPED.load(Ordering::Relaxed), in_use(MIB)), (3, 0));
        });
        run.expect("the run starts");
    })
    .assert_success();
}

#[test]
fn an_idle_process_gives_back_what_a_burst_took() {
    let test = "an_idle_process_gives_back_what_a_burst_took";
    for processors in [1, 2] {
        let outcome = child::run_case(test, processors, || {
            let count = number_or("FOOTBRIDGE_STACK_BURST", 100_000) as usize;
            let burst = || {
                let gate = Chan::<()>::new(0);
                let waiting = AtomicUsize::new(0);
                scope(|s| {
                    for _ in 0..count {
                        s.go(|| {
                            waiting.fetch_add(1, Ordering::Relaxed);
                            let _ = gate.recv();
                        });
                    }
                    while waiting.load(Ordering::Relaxed) < count {
                        gosched();
                    }
                    let peak = resident_bytes();
                    gate.close();
                    peak
                })
            };
            let run = config(processors).run(|| {
                let before = resident_bytes();
                let grown = burst() - before;
                assert!(grown > count * PAGE, "{grown} bytes for {count} stacks");
                let stacks = made(64 * KIB);
                runtime::sleep(Duration::from_millis(500));
                let left = resident_bytes().saturating_sub(before);
                println!("{} MiB, and {} MiB are left", grown >> 20, left >> 20);
                assert!(left < grown / 8, "{left} of {grown} bytes are left");
                // A second burst finds the same stacks.
                burst();
                assert_eq!(made(64 * KIB), stacks);
                (before, grown)
            });
            // So does the end of a run.
            let (before, grown) = run.expect("the run starts");
            let left = resident_bytes().saturating_sub(before);
            println!("{} MiB are left after the run", left >> 20);
            assert!(left < grown / 8, "{left} of {grown} bytes are left after the run");
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

#[test]
fn a_busy_process_gives_back_what_it_does_not_need() {
    const COUNT: usize = 6_000;
    child::run("a_busy_process_gives_back_what_it_does_not_need", || {
        let run = config(1).run(|| {
            let start = || {
                let gate = Chan::<()>::new(0);
                let receiver = gate.clone();
                let handles: Vec<_> = (0..COUNT)
                    .map(|_| {
                        let gate = receiver.clone();
                        go(move || gate.recv())
                    })
                    .collect();
                gosched();
                gate.close();
                for handle in handles {
                    let _ = handle.join().expect("no panic");
                }
            };
            start();
            let usage = || stack_usage()[1];
            assert!(usage().pooled > COUNT / 2, "{:?}", usage());
            // Two goroutines that give way to each other, and others that come and go: there is
            // no time without work.
            let stop = AtomicU64::new(0);
            scope(|s| {
                s.go(|| {
                    while stop.load(Ordering::Relaxed) == 0 {
                        gosched();
                    }
                });
                let begin = std::time::Instant::now();
                while usage().pooled > 2 * 512 && begin.elapsed() < Duration::from_secs(15) {
                    go(|| ()).join().expect("no panic");
                }
                stop.store(1, Ordering::Relaxed);
            });
            let left = usage();
            assert!(left.pooled <= 2 * 512 && left.decommitted > COUNT - 2 * 512 - 3, "{left:?}");
        });
        run.expect("the run starts");
    })
    .assert_success();
}

const MADV_GUARD_INSTALL: u32 = 102;

fn refuse_guard_markers() -> Refusal {
    let argument = Some((2, u32::MAX, MADV_GUARD_INSTALL));
    Refusal { call: libc::SYS_madvise, argument, errno: libc::EINVAL }
}

#[test]
fn where_guards_are_mappings_a_tenth_of_them_is_left() {
    child::run("where_guards_are_mappings_a_tenth_of_them_is_left", || {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("procfs");
        let limit: usize = limit.trim().parse().expect("a number");
        refuse(&[refuse_guard_markers()]);
        let config = config(1).stack_bytes(16 * KIB);
        let run = config.run(|| {
            let gate = Chan::<()>::new(0);
            let mut handles = Vec::new();
            let refused = loop {
                let gate = gate.clone();
                match runtime::Builder::new().go(move || gate.recv()) {
                    Ok(handle) => handles.push(handle),
                    Err(refused) => break refused,
                }
            };
            let StackError::MapCount { mappings, limit: found, .. } = refused.error else {
                panic!("{refused}");
            };
            assert_eq!(found, limit);
            let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
            assert!(maps.lines().count().abs_diff(mappings) < 10, "{mappings}");
            // The rest of the process has made some of its own since they were counted last.
            assert!((0..100).contains(&(mappings + 2 - limit / 10 * 9)), "{mappings}");
            assert!(handles.len() > limit / 10 * 4, "{} of {limit}", handles.len());
            assert_eq!(
                refused.to_string(),
                format!(
                    "a goroutine could not be started: no guard page for a goroutine stack: the \
                     process has {mappings} mappings, and vm.max_map_count is {limit}; this kernel \
                     has no MADV_GUARD_INSTALL, so that each stack takes two: raise \
                     vm.max_map_count (sysctl -w vm.max_map_count={})",
                    limit * 4
                )
            );
            // The rest of the process goes on, and so do the goroutines that are there.
            std::thread::spawn(|| ()).join().expect("a thread");
            gate.close();
            assert_eq!((refused.f)(), Err(RecvError));
            for handle in handles {
                assert_eq!(handle.join().expect("no panic"), Err(RecvError));
            }
            go(|| ()).join().expect("a stack that was used before");
        });
        run.expect("the run starts");
    })
    .assert_success();
}

/// Puts `text` in the place of a file, for this process. `false` if the process may not.
fn replace_file(path: &str, text: &str) -> bool {
    let from = format!("{}/replacement-{}", env!("CARGO_TARGET_TMPDIR"), text.trim());
    std::fs::write(&from, text).expect("a file");
    let from = std::ffi::CString::new(from).expect("no zero");
    let path = std::ffi::CString::new(path).expect("no zero");
    // SAFETY: plain system calls with terminated strings.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return false;
        }
        let (none, how) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
        if libc::mount(none, c"/".as_ptr(), none, how, none.cast()) != 0 {
            return false;
        }
        libc::mount(from.as_ptr(), path.as_ptr(), none, libc::MS_BIND, none.cast()) == 0
    }
}

#[test]
fn a_kernel_that_refuses_address_space_is_asked_why() {
    let test = "a_kernel_that_refuses_address_space_is_asked_why";
    let reason = "no address space for 131072 bytes of goroutine stacks: Cannot allocate memory \
                  (os error 12); ";
    // Stands in for what the kernel does in this mode; setting it would concern everybody.
    let refuse_stacks = || {
        let flag = libc::MAP_NORESERVE as u32;
        let argument = Some((3, flag, flag));
        refuse(&[Refusal { call: libc::SYS_mmap, argument, errno: libc::ENOMEM }]);
    };
    let cases = [
        (
            "2\n",
            Shortage::StrictOvercommit,
            "vm.overcommit_memory is 2, so that untouched stacks count as used: set it to 0, or \
             raise vm.overcommit_ratio",
        ),
        (
            "0\n",
            Shortage::Unknown,
            "RLIMIT_AS and vm.overcommit_memory allow it: check vm.max_map_count and the limits of \
             the container",
        ),
    ];
    for (case, (mode, shortage, advice)) in cases.into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            if !replace_file("/proc/sys/vm/overcommit_memory", mode) {
                write_and_exit("no mount namespace\n", 77);
            }
            let inside = alone(|| {
                refuse_stacks();
                // The first segment of a class.
                let builder = Builder::new().stack_bytes(16 * KIB);
                let refused = builder.go(|| 3).expect_err("no address space");
                // The smallest segment that is tried.
                let StackError::Reserve { bytes, errno, shortage: found, .. } = refused.error
                else {
                    panic!("{refused}");
                };
                assert!(bytes < 2 * (16 * KIB + 64 * KIB) && errno == libc::ENOMEM);
                assert_eq!(found, shortage);
                let reason = reason.replace("131072", &bytes.to_string());
                let text = format!("a goroutine could not be started: {reason}{advice}");
                assert_eq!(refused.to_string(), text);
                (refused.f)()
            });
            assert_eq!(inside, 3);
        });
        let Some(outcome) = outcome else { continue };
        if outcome.code == Some(77) {
            assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "{outcome:#?}");
            println!("skipped: needs the right to make a mount namespace");
            return;
        }
        outcome.assert_success();
    }
}

fn write_and_exit(text: &str, code: libc::c_int) -> ! {
    // SAFETY: a valid buffer; ends the process.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(code)
    }
}

/// Compares with a file of tests/data/overflow; `BLESS=1` writes it.
#[track_caller]
fn assert_golden(name: &str, text: &str) {
    let path = format!("{}/tests/data/overflow/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).expect("a file that can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("a file; BLESS=1 makes it");
    assert_eq!(text, expected, "{path}");
}

/// Recursion without an end, in a function that calls nothing else.
#[inline(never)]
#[allow(unconditional_recursion, reason = "it is to overflow the stack")]
fn sink(above: &[u64; 4]) -> u64 {
    let here = [above[0] ^ 1, 2, 3, 4];
    sink(&here) ^ here[(above[0] & 3) as usize]
}

/// JIT code that calls itself without an end.
fn endless() -> Code {
    // SAFETY: a standard frame; it calls itself only.
    unsafe {
        Jit::new().expect("code memory").install("endless", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp; call <again; pop rbp; ret);
        })
    }
    .expect("installs")
}

/// Runs `body` below the JIT frames `middle` (a goroutine function) and `outer`, on the second
/// goroutine of a run.
fn below_jit_frames(name: &str, stack_bytes: usize, body: fn()) {
    let jit = Jit::new().expect("code memory");
    let inner = jit.named_goroutine_fn(name, GO, body).expect("stub");
    let middle = caller("middle", inner.address());
    let outer = caller("outer", middle.address());
    // SAFETY: ABIInternal code of this type.
    let entry = unsafe { outer.enter::<fn()>(GO) }.expect("entry");
    alone(|| {
        let builder = Builder::new().stack_bytes(stack_bytes);
        // SAFETY: on a goroutine.
        let handle = builder.go(move || unsafe { entry.call() }).expect("memory");
        handle.join().expect("it does not return");
    });
}

#[test]
fn an_overflow_in_rust_code_is_reported() {
    let outcome = child::run("an_overflow_in_rust_code_is_reported", || {
        below_jit_frames("rust function", 64 * KIB, || {
            black_box(sink(&[0; 4]));
        });
    });
    assert_golden("rust", &mask(&outcome.stderr));
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
}

#[test]
fn an_overflow_in_jit_code_is_reported() {
    let outcome = child::run("an_overflow_in_jit_code_is_reported", || {
        // What is above the endless code is masked by the limit of frames: enter it at the end.
        let code = endless();
        // SAFETY: ABIInternal code of this type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        alone(|| {
            let builder = Builder::new().stack_bytes(16 * KIB);
            // SAFETY: on a goroutine.
            let handle = builder.go(move || unsafe { entry.call() }).expect("memory");
            handle.join().expect("it does not return");
        });
    });
    let text = mask(&outcome.stderr);
    let (front, count) = text.split_once("(and ").expect("more frames than are shown");
    let (count, rest) = count.split_once(' ').expect("a number");
    assert!((900..1024).contains(&count.parse::<usize>().expect("a number")), "{text}");
    assert_golden("jit", &format!("{front}(and _ {rest}"));
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
}

const C_SOURCE: &str = "
static volatile unsigned char last;

__attribute__((noinline)) int c_sink(int n) {
    volatile unsigned char frame[64];
    frame[n & 63] = (unsigned char)n;
    int below = c_sink(n + 1);
    last = frame[n & 63];
    return below + 1;
}

/* A frame that is larger than a page, without stack probes. */
__attribute__((noinline)) int c_large_frames(int n) {
    volatile unsigned char frame[60000];
    frame[0] = (unsigned char)n;
    int below = c_large_frames(n + 1);
    last = frame[0];
    return below + 1;
}
";

/// Compiles the functions above for a test and finds one.
fn c_function(test: &str, name: &std::ffi::CStr) -> extern "C" fn(i32) -> i32 {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("overflow.c"), folder.join("overflow.so"));
    std::fs::write(&source, C_SOURCE).expect("a file");
    let arguments = ["-O1", "-w", "-fno-stack-clash-protection", "-shared", "-fPIC"];
    gcc::compile("gcc", &arguments, &library, &[&source]);
    // SAFETY: a library of plain functions of this type, which stays open.
    unsafe {
        let function = Library::open(&library).symbol(name);
        std::mem::transmute::<*mut libc::c_void, extern "C" fn(i32) -> i32>(function)
    }
}

#[test]
fn an_overflow_in_c_code_is_reported() {
    if !has_gcc() {
        return;
    }
    let outcome = child::run("an_overflow_in_c_code_is_reported", || {
        below_jit_frames("c caller", 256 * KIB, || {
            let function = c_function("c_sink", c"c_sink");
            black_box(function(1));
        });
    });
    assert_golden("c", &mask(&outcome.stderr));
    assert_eq!(outcome.signal, Some(libc::SIGABRT), "{outcome:#?}");
}

#[test]
fn a_large_frame_of_c_code_does_not_step_over_the_guard() {
    if !has_gcc() {
        return;
    }
    let test = "a_large_frame_of_c_code_does_not_step_over_the_guard";
    for (case, (class, size, next)) in [
        (16 * KIB, "16 KiB", "64 KiB"),
        (64 * KIB, "64 KiB", "256 KiB"),
        (256 * KIB, "256 KiB", "1 MiB"),
        (MIB, "1 MiB", "8 MiB"),
    ]
    .into_iter()
    .enumerate()
    {
        let outcome = child::run_case(test, case, || {
            alone(|| {
                // A stack below that is not to be written to.
                let body = || c_function("c_large_frames", c"c_large_frames")(1);
                let builder = Builder::new().stack_bytes(class);
                builder.go(body).expect("memory").join().expect("it does not return");
            });
        });
        if let Some(outcome) = outcome {
            let what = "c c_large_frames (overflow.so)";
            outcome.assert_aborted_with(&overflow("2", size, next, what, child::NO_FRAMES));
        }
    }
}

#[test]
fn there_is_nothing_larger_than_the_largest_class() {
    let outcome = child::run("there_is_nothing_larger_than_the_largest_class", || {
        config(1).stack_bytes(8 * MIB).run(|| black_box(sink(&[0; 4]))).expect("the run starts");
    });
    outcome.assert_aborted_with(
        "footbridge: fatal: goroutine 1 overflowed its 8 MiB stack in rust memory::stacks::sink\n\
         pc 0x_, rsp 0x_, access to 0x_ in the guard 0x_..0x_\n\
         there is no larger class: recurse less, or run it in runtime::systemstack\n\
         JIT frames, innermost first:\n    (none)\n",
    );
}

/// The lowest address of the stack of the goroutine that calls, which is of 64 KiB. Called in the
/// first page of it.
#[inline(always)]
fn lowest_here() -> usize {
    let top = black_box(0u8);
    lowest(&raw const top as usize, 64 * KIB)
}

/// Writes to the lowest byte of a stack, and to the highest of the guard below.
fn write_around(lowest: usize) {
    // SAFETY: nobody is that deep. The second write is not sound: the tests want the signal.
    unsafe {
        (lowest as *mut u8).write_volatile(1);
        ((lowest - 1) as *mut u8).write_volatile(1);
    }
}

#[test]
fn the_guard_of_another_goroutine_is_a_fault_like_any_other() {
    let test = "the_guard_of_another_goroutine_is_a_fault_like_any_other";
    for case in 0..2 {
        let outcome = child::run_case(test, case, || {
            alone(|| {
                let main = lowest_here();
                let addresses = Chan::<usize>::new(1);
                let send = addresses.clone();
                let other = go(move || {
                    let other = lowest_here();
                    assert_ne!(main, other);
                    if case == 0 {
                        write_around(main);
                    }
                    send.send(other).expect("open");
                    send.send(0).expect("open");
                });
                write_around(addresses.recv().expect("open"));
                drop(other);
            });
        });
        let Some(outcome) = outcome else { continue };
        assert_eq!(outcome.signal, Some(libc::SIGSEGV), "{outcome:#?}");
        assert!(!outcome.stderr.contains("overflowed"), "{outcome:#?}");
    }
}

/// JIT code that checks its stack, makes a frame of so many bytes, and calls itself without an end.
fn endless_with_check(name: &str, convention: Convention, frame_bytes: usize) -> Code {
    let jit = Jit::new().expect("code memory");
    let mut polls = jit.polls(convention).expect("a convention of this machine");
    // SAFETY: a standard frame; it calls itself only.
    let code = unsafe {
        jit.install(name, FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp);
            polls.check_stack(ops, frame_bytes);
            dynasm!(ops; .arch x64; sub rsp, frame_bytes as i32; call <again; leave; ret);
            polls.finish(ops);
        })
    };
    code.expect("installs")
}

fn text_of(payload: &(dyn std::any::Any + Send)) -> &str {
    payload.downcast_ref::<String>().map_or("no text", String::as_str)
}

/// Panics that are expected are not printed.
fn without_messages() {
    std::panic::set_hook(Box::new(|_| {}));
}

const SIZE_NAMES: [&str; 5] = ["16 KiB", "64 KiB", "256 KiB", "1 MiB", "8 MiB"];

#[test]
fn jit_code_that_checks_its_stack_panics_in_time() {
    child::run("jit_code_that_checks_its_stack_panics_in_time", || {
        without_messages();
        use runtime::VectorState::{Auto, Sse};
        for (convention, vector_state) in [(GO, Auto), (GO, Sse), (Convention::SystemV, Auto)] {
            let entries: Vec<_> = [0, 8, 256, 264, 4096, 6000]
                .into_iter()
                .map(|frame_bytes| {
                    let code = endless_with_check("deep", convention, frame_bytes);
                    // SAFETY: code of this convention and type.
                    unsafe { code.enter::<fn()>(convention) }.expect("entry")
                })
                .collect();
            let run = config(1).vector_state(vector_state).run(|| {
                for (class, size) in CLASSES.into_iter().zip(SIZE_NAMES) {
                    for entry in &entries {
                        for _ in 0..3 {
                            let end = scope(|s| {
                                let body = || {
                                    // SAFETY: on a goroutine.
                                    std::panic::catch_unwind(|| unsafe { entry.call() })
                                        .map_err(|payload| text_of(&*payload).to_string())
                                };
                                let builder = Builder::new().stack_bytes(class);
                                let handle = builder.go_scoped(s, body).expect("memory");
                                handle.join().expect("the panic is caught")
                            });
                            let text = end.expect_err("it has no end");
                            let end = format!(" overflowed its {size} stack in JIT code deep");
                            let goid = text.strip_prefix("goroutine ");
                            let goid = goid.and_then(|text| text.strip_suffix(&*end));
                            assert!(goid.is_some_and(|n| n.parse::<u64>().is_ok()), "{text}");
                        }
                    }
                }
                // Who does not catch it leaves it to who joins.
                let code = endless_with_check("joined", convention, 0);
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn()>(convention) }.expect("entry");
                // SAFETY: on a goroutine.
                let handle = go(move || unsafe { entry.call() });
                let goid = handle.id();
                let end = handle.join().expect_err("it has no end");
                let text =
                    format!("goroutine {goid} overflowed its 64 KiB stack in JIT code joined");
                assert_eq!(text_of(&*end), text);
            });
            run.expect("the run starts");
        }
    })
    .assert_success();
}

#[test]
fn a_check_counts_the_frame_to_come() {
    child::run("a_check_counts_the_frame_to_come", || {
        without_messages();
        alone(|| {
            // A frame that is larger than the stack, with the rest of it, the guard, and what is
            // below that: nothing of it is touched.
            for (frame_bytes, class, fits) in [
                (48 * KIB, 64 * KIB, true),
                (60 * KIB, 64 * KIB, false),
                (64 * KIB, 64 * KIB, false),
                (7 * MIB, 64 * KIB, false),
                (8 * MIB, 64 * KIB, false),
                (200 * KIB, 256 * KIB, true),
                (7 * MIB, 8 * MIB, true),
            ] {
                let jit = Jit::new().expect("code memory");
                let mut polls = jit.polls(GO).expect("a convention of this machine");
                // SAFETY: a standard frame; what is written is inside of it.
                let code = unsafe {
                    jit.install("large", FrameClass::Standard, |ops| {
                        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                        polls.check_stack(ops, frame_bytes);
                        let frame = frame_bytes as i32;
                        dynasm!(ops
                            ; .arch x64
                            ; sub rsp, frame
                            ; mov [rsp], rax
                            ; leave
                            ; ret
                        );
                        polls.finish(ops);
                    })
                };
                let code = code.expect("installs");
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
                let builder = Builder::new().stack_bytes(class);
                // SAFETY: on a goroutine.
                let handle = builder.go(move || unsafe { entry.call() }).expect("memory");
                let end = handle.join();
                assert_eq!(end.is_ok(), fits, "{frame_bytes} bytes on {class}");
            }
            let mut polls = Jit::new().expect("code memory").polls(GO).expect("this machine");
            // SAFETY: never called: nothing is installed.
            let too_large = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe {
                Jit::new().expect("code memory").install("none", FrameClass::Leaf, |ops| {
                    polls.check_stack(ops, 8 * MIB + 1);
                })
            }));
            let text = "a frame of 8388609 bytes fits in no stack: the largest has 8 MiB";
            assert_eq!(text_of(&*too_large.map(drop).expect_err("too large")), text);
        });
    })
    .assert_success();
}

#[test]
fn a_panic_of_a_check_runs_destructors_and_the_goroutine_goes_on() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    struct Alive;
    impl Alive {
        fn new() -> Self {
            let alive = ALIVE.fetch_add(1, Ordering::Relaxed) + 1;
            MOST.fetch_max(alive, Ordering::Relaxed);
            Self
        }
    }
    impl Drop for Alive {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::Relaxed);
        }
    }
    child::run("a_panic_of_a_check_runs_destructors_and_the_goroutine_goes_on", || {
        without_messages();
        let jit = Jit::new().expect("code memory");
        // Rust code and JIT code call each other without an end.
        static AGAIN: AtomicUsize = AtomicUsize::new(0);
        let rust = || {
            let _alive = Alive::new();
            let again = AGAIN.load(Ordering::Relaxed);
            // SAFETY: the entry below, on a goroutine.
            unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(again)() };
        };
        let rust = jit.named_goroutine_fn("rust", GO, rust).expect("stub");
        let target = rust.address();
        let mut polls = jit.polls(GO).expect("a convention of this machine");
        // SAFETY: a standard frame around a call.
        let code = unsafe {
            jit.install("jit", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                polls.check_stack(ops, 0);
                dynasm!(ops; .arch x64; call extern target; pop rbp; ret);
                polls.finish(ops);
            })
        }
        .expect("installs");
        // SAFETY: code of this convention and type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        AGAIN.store(entry.address(), Ordering::Relaxed);
        alone(|| {
            let handle = go(move || {
                for round in 0..20 {
                    // SAFETY: on a goroutine.
                    let call = || unsafe { entry.call() };
                    let end = std::panic::catch_unwind(call).expect_err("it has no end");
                    assert!(text_of(&*end).ends_with("stack in JIT code jit"), "{round}");
                    assert_eq!(ALIVE.load(Ordering::Relaxed), 0, "every destructor has run");
                    assert!(MOST.load(Ordering::Relaxed) > 20);
                    // No JIT frame is left, and the goroutine can park.
                    let mut frames = 0;
                    runtime::jit_frames(|_| {
                        frames += 1;
                        ControlFlow::Continue(())
                    });
                    assert_eq!(frames, 0);
                    gosched();
                }
            });
            handle.join().expect("it goes on");
        });
    })
    .assert_success();
}

#[test]
fn walks_from_the_panic_of_a_check_see_every_frame() {
    child::run("walks_from_the_panic_of_a_check_see_every_frame", || {
        let code = endless_with_check("deep", GO, 1000);
        // SAFETY: code of this convention and type.
        let entry = unsafe { code.enter::<fn()>(GO) }.expect("entry");
        static FRAMES: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        std::panic::set_hook(Box::new(|_| {
            // On the system stack: there is room to look at everything.
            let mut exact = Vec::new();
            let end = runtime::jit_frames(|frame| {
                exact.push(frame.stub.to_string());
                ControlFlow::Continue(())
            });
            assert_eq!(end, runtime::WalkEnd::Complete);
            let full = runtime::traceback().to_string();
            // All but that of the stub; the last one is the entry.
            assert_eq!(full.matches("    jit deep+0x").count(), exact.len() - 1, "{full}");
            *FRAMES.lock().expect("no panic") = exact;
        }));
        alone(|| {
            // SAFETY: on a goroutine.
            let handle = go(move || unsafe { entry.call() });
            handle.join().expect_err("it has no end");
        });
        let frames = FRAMES.lock().expect("no panic");
        // 64 KiB less the reserve, in frames of 1016 bytes.
        assert!((50..64).contains(&frames.len()), "{frames:#?}");
        assert!(frames[0].starts_with("jit stack check+0x"), "{frames:#?}");
        let deep = frames.iter().filter(|frame| frame.starts_with("jit deep+0x")).count();
        assert_eq!(deep, frames.len() - 1, "{frames:#?}");
    })
    .assert_success();
}

#[test]
fn a_check_gives_way_where_that_is_wanted_and_changes_no_register() {
    child::run("a_check_gives_way_where_that_is_wanted_and_changes_no_register", || {
        const OTHERS: [Gpr; 13] = [
            Gpr::RAX,
            Gpr::RCX,
            Gpr::RDX,
            Gpr::RBX,
            Gpr::RSI,
            Gpr::RDI,
            Gpr::R8,
            Gpr::R9,
            Gpr::R10,
            Gpr::R11,
            Gpr::R12,
            Gpr::R13,
            Gpr::R15,
        ];
        let value = |register: Gpr| 0x1000 + i32::from(u8::from(register));
        let jit = Jit::new().expect("code memory");
        for frame_bytes in [0, 5000] {
            let mut polls = jit.polls(GO).expect("a convention of this machine");
            // Every register but rsp, rbp and the goroutine's has a value before and after; the
            // number of those that were changed is returned.
            // SAFETY: a saved frame: the five registers are kept.
            let code = unsafe {
                jit.install("registers", FrameClass::Saved, |ops| {
                    dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                    push_saved(ops);
                    for register in OTHERS {
                        dynasm!(ops; .arch x64; mov Rq(register), value(register));
                    }
                    polls.check_stack(ops, frame_bytes);
                    dynasm!(ops; .arch x64; push 0);
                    for register in OTHERS {
                        dynasm!(ops
                            ; .arch x64
                            ; cmp Rq(register), value(register)
                            ; je >same
                            ; inc DWORD [rsp]
                            ; same:
                        );
                    }
                    dynasm!(ops
                        ; .arch x64
                        ; pop rax
                        ; mov rbx, [rbp - 8]
                        ; mov r12, [rbp - 16]
                        ; mov r13, [rbp - 24]
                        ; mov r14, [rbp - 32]
                        ; mov r15, [rbp - 40]
                        ; leave
                        ; ret
                    );
                    polls.finish(ops);
                })
            }
            .expect("installs");
            // SAFETY: code of this convention and type.
            let entry = unsafe { code.enter::<fn() -> u64>(GO) }.expect("entry");
            alone(|| {
                let others = AtomicU64::new(0);
                scope(|s| {
                    s.go(|| {
                        while others.load(Ordering::Relaxed) < 100 {
                            others.fetch_add(1, Ordering::Relaxed);
                            gosched();
                        }
                    });
                    for round in 0..100 {
                        // SAFETY: on a goroutine.
                        assert_eq!(unsafe { entry.call() }, 0);
                        assert_eq!(others.load(Ordering::Relaxed), round, "nobody asked");
                        runtime::without_preemption(|| assert!(runtime::request_preemption(0)));
                        // SAFETY: on a goroutine.
                        assert_eq!(unsafe { entry.call() }, 0);
                        assert_eq!(others.load(Ordering::Relaxed), round + 1, "it gave way");
                    }
                });
            });
        }
    })
    .assert_success();
}

#[test]
fn on_a_system_stack_a_check_is_passed() {
    child::run("on_a_system_stack_a_check_is_passed", || {
        let jit = Jit::new().expect("code memory");
        // Stacks of goroutines are mapped before, and so above, that of the thread that follows.
        alone(|| ());
        let thread = std::thread::Builder::new().stack_size(64 * MIB);
        let body = move || {
            for convention in [GO, Convention::SystemV] {
                let mut polls = jit.polls(convention).expect("a convention of this machine");
                // SAFETY: a standard frame.
                let code = unsafe {
                    jit.install("shallow", FrameClass::Standard, |ops| {
                        dynasm!(ops; .arch x64; push rbp; mov rbp, rsp);
                        polls.check_stack(ops, 100 * KIB);
                        dynasm!(ops; .arch x64; mov rax, rsp; pop rbp; ret);
                        polls.finish(ops);
                    })
                }
                .expect("installs");
                // SAFETY: code of this convention and type.
                let entry = unsafe { code.enter::<fn() -> usize>(convention) }.expect("entry");
                alone(|| {
                    let here = black_box(0u8);
                    // SAFETY: on a goroutine, whose stack has not that much.
                    let there = runtime::systemstack(|| unsafe { entry.call() });
                    // So that its rsp is not above the guard, and the check is not passed at once.
                    assert!(there < &raw const here as usize, "{there:#x}");
                });
            }
        };
        thread.spawn(body).expect("a thread").join().expect("no panic");
    })
    .assert_success();
}

/// The goroutine's stack ends below: what a large frame takes is not taken from it.
#[test]
fn a_check_on_a_stack_just_above_the_goroutine_s_finds_room() {
    const CLASS: usize = 64 * KIB;
    // The lowest word of the frame is far below the limit of the goroutine's stack, and rsp is
    // nearer to its lowest address than the frame is large.
    const FRAME: usize = 256 * KIB;
    let jit = Jit::new().expect("code memory");
    let mut polls = jit.polls(Convention::SystemV).expect("of this machine");
    // fn(rsp) -> u64: checks on another stack, and makes no frame.
    // SAFETY: standard frames; who calls says which stack.
    let code = unsafe {
        jit.install("elsewhere", FrameClass::Standard, |ops| {
            dynasm!(ops
                ; .arch x64
                ; push rbp
                ; mov rbp, rsp
                ; mov rsp, rdi
                ; call >checks
                ; leave
                ; ret
                ; checks:
                ; push rbp
                ; mov rbp, rsp
            );
            polls.check_stack(ops, FRAME);
            dynasm!(ops; .arch x64; mov eax, 42; pop rbp; ret);
            polls.finish(ops);
        })
    };
    // SAFETY: System V code of this type.
    let elsewhere =
        unsafe { code.expect("installs").enter::<fn(usize) -> u64>(Convention::SystemV) };
    let elsewhere = elsewhere.expect("entry");
    alone(|| {
        // Stacks of a class lie side by side: goroutines that wait lend theirs.
        let (ask, done) = (Chan::<usize>::new(0), Chan::<String>::new(0));
        let tops = Chan::<usize>::new(16);
        scope(|s| {
            for number in 0..16u64 {
                let (ask, done, tops, elsewhere) = (&ask, &done, &tops, &elsewhere);
                let body = move || {
                    let here = black_box([number; 4]);
                    tops.send(here.as_ptr() as usize).expect("room");
                    // Who is asked goes on, the others wait.
                    while let Ok(rsp) = ask.recv() {
                        let own = here.as_ptr() as usize;
                        if rsp > own && rsp - own < 2 * CLASS {
                            // SAFETY: on a goroutine; that stack is another one's, unused there.
                            let end = std::panic::catch_unwind(|| unsafe { elsewhere.call(rsp) });
                            let text = end.map_or_else(|e| text_of(&*e).into(), |n| n.to_string());
                            return done.send(text).expect("open");
                        }
                        ask.send(rsp).expect("another one waits");
                    }
                };
                Builder::new().stack_bytes(CLASS).go_scoped(s, body).expect("memory");
            }
            let mut all: Vec<_> = (0..16).map(|_| tops.recv().expect("open")).collect();
            all.sort_unstable();
            // With a guard of 17 pages between them.
            let near = |pair: &&[usize]| pair[1] - pair[0] < 2 * CLASS + 2 * PAGE;
            let pair = all.windows(2).find(near);
            let above = pair.expect("two stacks side by side")[1];
            // In the middle of the upper one.
            ask.send((above - CLASS / 2) & !15).expect("somebody waits");
            let end = done.recv().expect("open");
            ask.close();
            assert_eq!(end, "42");
        });
    });
}

#[test]
fn stacks_of_other_runs_are_counted() {
    const COUNT: usize = 40;
    child::run("stacks_of_other_runs_are_counted", || {
        let class = MIB;
        let barrier = std::sync::Barrier::new(3);
        let usage = || {
            let all = stack_usage();
            all.into_iter().find(|usage| usage.stack_bytes == class).expect("a class")
        };
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    config(1)
                        .stack_bytes(class)
                        .run(|| {
                            let gate = Chan::<()>::new(0);
                            let waiting: Vec<_> = (0..COUNT)
                                .map(|_| {
                                    let gate = gate.clone();
                                    go(move || gate.recv())
                                })
                                .collect();
                            gosched();
                            barrier.wait();
                            // All are in use.
                            assert_eq!(in_use(class), 2 * (COUNT + 1));
                            barrier.wait();
                            gate.close();
                            for one in waiting {
                                assert_eq!(one.join().expect("no panic"), Err(RecvError));
                            }
                            barrier.wait();
                            // Each P has its own, and each run counts those of the other one.
                            assert_eq!((in_use(class), usage().pooled), (2, 2 * COUNT));
                            barrier.wait();
                        })
                        .expect("the run starts");
                });
            }
            // And so does a thread of no run.
            barrier.wait();
            assert_eq!(in_use(class), 2 * (COUNT + 1));
            barrier.wait();
            barrier.wait();
            assert_eq!((in_use(class), usage().pooled), (2, 2 * COUNT));
            barrier.wait();
        });
        // What the runs kept is still there, once.
        assert_eq!((in_use(class), usage().pooled + usage().decommitted), (0, 2 * (COUNT + 1)));
    })
    .assert_success();
}

/// Native code that catches the panic of a check in code that it has called by its bare address
/// has its anchor as it was.
#[test]
fn a_check_that_panics_leaves_the_anchor_as_it_was() {
    child::run("a_check_that_panics_leaves_the_anchor_as_it_was", || {
        without_messages();
        let deep = endless_with_check("deep", Convention::SystemV, 512);
        let address = deep.address();
        let jit = Jit::new().expect("code memory");
        let catches = jit.named_goroutine_fn("catches", GO, move || {
            let walk = || {
                let mut found = Vec::new();
                let end = runtime::jit_frames(|frame| {
                    found.push((frame.stub.to_string(), frame.pc, frame.fp));
                    ControlFlow::Continue(())
                });
                assert_eq!(end, runtime::WalkEnd::Complete);
                found
            };
            let before = walk();
            assert_eq!(before.len(), 3, "{before:?}");
            // SAFETY: System V code of this type, which calls no goroutine function.
            let code = unsafe { std::mem::transmute::<usize, extern "C-unwind" fn()>(address) };
            let end = std::panic::catch_unwind(|| code()).expect_err("it has no end");
            assert!(text_of(&*end).ends_with("in JIT code deep"), "{}", text_of(&*end));
            assert_eq!(walk(), before);
        });
        let target = catches.expect("stub");
        let target_at = target.address();
        // SAFETY: a standard frame around a call.
        let code = unsafe {
            jit.install("outer", FrameClass::Standard, |ops| {
                dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; call extern target_at; pop rbp; ret);
            })
        };
        // SAFETY: ABIInternal code of this type.
        let outer = unsafe { code.expect("installs").enter::<fn()>(GO) }.expect("entry");
        alone(|| {
            for _ in 0..3 {
                // SAFETY: on a goroutine.
                unsafe { outer.call() };
            }
        });
    })
    .assert_success();
}
