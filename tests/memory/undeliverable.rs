//! Signals whose handlers run on the stack that they interrupt, where a goroutine has used it up.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};

use footbridge::runtime::go;
use support::child;
use support::child::{NO_FRAMES, overflow};
use support::runs::alone;

use crate::sink;

static CALLS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_call(_: libc::c_int) {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Installs a handler without SA_ONSTACK.
fn install(signal: i32) {
    // SAFETY: the handler only counts.
    unsafe { libc::signal(signal, count_call as *const () as libc::sighandler_t) };
}

/// Calls `f` when this many bytes below `top` are used.
#[inline(never)]
fn descend(top: usize, bytes: usize, f: &dyn Fn()) -> u8 {
    let frame = black_box([0_u8; 16]);
    if top - (&raw const frame).addr() >= bytes {
        f();
        return frame[0];
    }
    descend(top, bytes, f) + black_box(frame[0])
}

/// Calls `f` on a goroutine that has about this much of its 64 KiB of stack left.
fn with_little_stack(left_bytes: usize, f: impl Fn() + Send + 'static) {
    let body = move || {
        let top = 0_u8;
        descend((&raw const top).addr(), (64 << 10) - left_bytes, &f)
    };
    go(body).join().expect("no panic");
}

/// Bytes that are left where the kernel has no room for its frame, and `raise` has.
const TOO_LITTLE: usize = 2500;

fn raise(signal: i32) {
    // SAFETY: plain numbers.
    unsafe { libc::raise(signal) };
}

#[test]
fn a_signal_without_room_on_the_stack_is_reported_and_the_process_goes_on() {
    let test = "a_signal_without_room_on_the_stack_is_reported_and_the_process_goes_on";
    for (case, others) in [&[][..], &[libc::SIGHUP, libc::SIGUSR2]].into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            others.iter().for_each(|&signal| install(signal));
            install(libc::SIGUSR1);
            alone(|| {
                // With enough room it is delivered there.
                with_little_stack(32 << 10, || raise(libc::SIGUSR1));
                assert_eq!(CALLS.load(Ordering::Relaxed), 1);
                for _ in 0..10 {
                    with_little_stack(TOO_LITTLE, || raise(libc::SIGUSR1));
                }
                assert_eq!(CALLS.load(Ordering::Relaxed), 1);
                let second = go(|| sink(&[0; 4]));
                second.join().expect("it does not return");
            });
        });
        let Some(outcome) = outcome else { continue };
        let what = if others.is_empty() { "signal 10" } else { "one of the signals 1, 10, 12" };
        let front = format!("footbridge: {what} could not be delivered on the stack of goroutine ");
        let lost: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with(&front)).collect();
        assert_eq!(lost.len(), 8, "{outcome:#?}");
        for text in [", and is lost: ", " bytes are left", "SA_ONSTACK", "Config::stack_bytes"] {
            assert!(lost[0].contains(text), "{outcome:#?}");
        }
        let more = "footbridge: further lost signals are not reported\n";
        let (_, rest) = outcome.stderr.split_once(more).expect("after the eighth");
        let rest = child::Outcome { stderr: rest.into(), ..outcome };
        let expected = overflow("_", "64 KiB", "256 KiB", "rust memory::sink", NO_FRAMES);
        rest.assert_aborted_with_goroutine(&expected);
    }
}

/// The kernel reports an access to an address that is none in the same way. It is a fault.
#[test]
fn a_fault_without_an_address_is_no_lost_signal() {
    let outcome = child::run("a_fault_without_an_address_is_no_lost_signal", || {
        install(libc::SIGUSR1);
        alone(|| {
            with_little_stack(TOO_LITTLE, || {
                let no_address = black_box(1_usize << 63) as *const u8;
                // SAFETY: none: the process must end here.
                unsafe { no_address.read_volatile() };
            });
        });
    });
    assert!(!outcome.stderr.contains("could not be delivered"), "{outcome:#?}");
    assert!([Some(libc::SIGSEGV), Some(libc::SIGABRT)].contains(&outcome.signal), "{outcome:#?}");
}
