//! Requests and signals that come too late: after the yield, or from an earlier run.
//!
//! Time slices are longer than the tests, which make the requests themselves. A signal is late
//! because the thread blocks it.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use footbridge::jit::{Annotations, FrameClass, Jit};
use footbridge::runtime::{checkpoint, gosched, request_preemption, scope, stats};
use support::child;
use support::runs::alone_and_preemptible;

use super::{GO, Loop, SYSTEM_V, Waiter, config, end_loop};

/// A request is over when its goroutine has yielded in another way: neither the polls of the next
/// goroutine on the thread answer it, nor its own polls later.
#[test]
fn a_request_is_over_when_its_goroutine_has_yielded() {
    let polls = [SYSTEM_V, GO].map(|convention| Waiter::new(Loop::Polls(convention)));
    let poll_everywhere = || {
        checkpoint();
        // Each polls once, since the flag is set.
        let set = AtomicU32::new(1);
        polls.iter().for_each(|polls| assert_eq!(polls.wait(&set), 1));
    };
    alone_and_preemptible(|| {
        let rounds = AtomicU64::new(0);
        scope(|s| {
            s.go(|| {
                for _ in 0..50 {
                    rounds.fetch_add(1, Ordering::Relaxed);
                    poll_everywhere();
                    gosched();
                }
            });
            for round in 1..=50 {
                assert!(request_preemption(0));
                gosched();
                assert_eq!(rounds.load(Ordering::Relaxed), round, "the other one had its turn");
                poll_everywhere();
            }
        });
        assert_eq!((stats().requested, stats().cooperative), (50, 0), "{:?}", stats());
    });
}

/// A request is answered by one poll, and the next polls do not yield.
#[test]
fn a_request_is_answered_once() {
    let polls = [SYSTEM_V, GO].map(|convention| Waiter::new(Loop::Polls(convention)));
    let set = AtomicU32::new(1);
    let ways: [&dyn Fn(); 3] = [&checkpoint, &|| assert_eq!(polls[0].wait(&set), 1), &|| {
        assert_eq!(polls[1].wait(&set), 1)
    }];
    alone_and_preemptible(|| {
        for (n, poll) in (1..).zip(ways.into_iter().cycle().take(30)) {
            assert!(request_preemption(0));
            poll();
            assert_eq!(stats().cooperative, n);
            ways.iter().for_each(|poll| poll());
            assert_eq!(stats().cooperative, n, "there is no request: {:?}", stats());
        }
    });
}

/// A poll with less stack left than a preemption needs is below the stack limit without a request.
/// It does not yield.
#[test]
fn a_poll_with_little_stack_left_is_no_request() {
    #[inline(never)]
    fn checkpoint_below_58_kib() {
        let mut room = MaybeUninit::<[u8; 58 << 10]>::uninit();
        black_box(&mut room);
        checkpoint();
        black_box(&mut room);
    }
    let jit = Jit::new().expect("code memory");
    let mut polls = jit.polls(SYSTEM_V).expect("of this machine");
    // SAFETY: a standard frame, whose slots are not used.
    let code = unsafe {
        jit.install("low", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; push rbp; mov rbp, rsp; sub rsp, 60 << 10);
            polls.poll(ops);
            dynasm!(ops; .arch x64; leave; ret);
            polls.finish(ops);
        })
    };
    let code = code.expect("it installs");
    // SAFETY: System V, of this type.
    let entry = unsafe { code.enter::<fn()>(SYSTEM_V) }.expect("an entry");
    alone_and_preemptible(|| {
        scope(|s| {
            s.go(|| {
                // Another goroutine waits, and this one is the first to run.
                s.go(|| ());
                let before = stats().switches;
                // SAFETY: on a goroutine, whose stack has 64 KiB.
                (0..10).for_each(|_| unsafe { entry.call() });
                (0..10).for_each(|_| checkpoint_below_58_kib());
                assert_eq!(stats().switches, before, "a poll yielded");
            });
        });
        assert_eq!(stats().cooperative, 0, "{:?}", stats());
    });
}

/// The signal of a request that a poll has answered meanwhile preempts nothing, although it finds
/// the thread in preemptible code.
#[test]
fn a_signal_that_comes_after_the_yield_preempts_nothing() {
    let outcome = child::run("a_signal_that_comes_after_the_yield_preempts_nothing", || {
        let jit = Jit::new().expect("code memory");
        // fn(&u64): unblocks the signals of the set by a system call, and counts to a million.
        // The kernel delivers the signal when the call returns to this code.
        // SAFETY: a leaf; System V; a system call changes rax, rcx and r11.
        let code = unsafe {
            jit.install("unblocks", FrameClass::Leaf, |ops| {
                dynasm!(ops
                    ; .arch x64
                    ; mov rsi, rdi
                    ; mov edi, libc::SIG_UNBLOCK
                    ; xor edx, edx
                    ; mov r10d, 8
                    ; mov eax, libc::SYS_rt_sigprocmask as i32
                    ; syscall
                    ; mov ecx, 1_000_000
                    ; again:
                    ; dec ecx
                    ; jnz <again
                    ; ret
                );
                Annotations::preemptible()
            })
        };
        let code = code.expect("it installs");
        // SAFETY: System V, of this type.
        let unblocks = unsafe { code.enter::<fn(*const u64)>(SYSTEM_V) }.expect("an entry");
        let set = 1u64 << (libc::SIGURG - 1);
        let config = config(1).time_slice(Duration::from_secs(3600));
        let stats = config.run(|| {
            let ticks = AtomicU64::new(0);
            scope(|s| {
                s.go(|| {
                    for _ in 0..2 {
                        ticks.fetch_add(1, Ordering::Relaxed);
                        gosched();
                    }
                });
                set_sigurg(libc::SIG_BLOCK);
                assert!(request_preemption(0));
                checkpoint();
                assert_eq!(ticks.load(Ordering::Relaxed), 1, "the poll has answered the request");
                // SAFETY: on a goroutine; the set outlives the call.
                unsafe { unblocks.call(&set) };
                assert_eq!(ticks.load(Ordering::Relaxed), 1, "nothing is left to answer");
            });
            stats()
        });
        let stats = stats.expect("the run starts");
        assert_eq!((stats.cooperative, stats.asynchronous), (1, 0), "{stats:?}");
        assert!(stats.signals > 0, "{stats:?}");
    });
    outcome.assert_success();
}

fn set_sigurg(how: libc::c_int) {
    // SAFETY: valid structures; no other thread relies on the mask of this one.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGURG);
        assert_eq!(libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()), 0);
    }
}

/// A run that ends while a signal is on its way leaves nothing that would keep the next run, whose
/// threads use the same structures, from sending signals.
#[test]
fn a_signal_that_an_earlier_run_left_does_not_disable_preemption() {
    let test = "a_signal_that_an_earlier_run_left_does_not_disable_preemption";
    // A request without a signal would never be answered.
    let outcome = child::Child::of(test).limit_seconds(60).run(|| {
        // Without preemptible code no signal would be sent.
        let _code = Waiter::new(Loop::Preemptible);
        std::thread::scope(|threads| {
            let first = threads.spawn(|| {
                let config = config(1).time_slice(Duration::from_secs(3600));
                let sent = config.run(|| {
                    set_sigurg(libc::SIG_BLOCK);
                    assert!(request_preemption(0));
                    stats().signals
                });
                assert_eq!(sent, Ok(1));
            });
            first.join().expect("no panic");
            let stats = end_loop(Loop::Preemptible);
            assert!(stats.asynchronous > 0, "{stats:?}");
        });
    });
    outcome.assert_success();
}
