//! The limits of a process: mappings and address space.

use footbridge::runtime::{self, Builder, Chan, RecvError, Shortage, StackError, go};
use support::child::{self, Refusal, refuse};
use support::runs::{alone, config};

use super::KIB;
use crate::{refuse_guard_markers, write_and_exit};

#[test]
fn guards_that_are_mappings_leave_a_tenth_of_the_limit() {
    child::run("guards_that_are_mappings_leave_a_tenth_of_the_limit", || {
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
            // The process may have added mappings since the runtime counted them.
            assert!((0..100).contains(&(mappings + 2 - limit / 10 * 9)), "{mappings}");
            assert!(handles.len() > limit / 10 * 4, "{} of {limit}", handles.len());
            assert_eq!(
                refused.to_string(),
                format!(
                    "a goroutine could not be started: no guard page for a goroutine stack: the \
                     process has {mappings} mappings, and vm.max_map_count is {limit}; there is \
                     no MADV_GUARD_INSTALL here, so that each stack takes two: raise \
                     vm.max_map_count (sysctl -w vm.max_map_count={})",
                    limit * 4
                )
            );
            // The rest of the process is not affected, nor are existing goroutines.
            std::thread::spawn(|| ()).join().expect("a thread");
            gate.close();
            assert_eq!((refused.f)(), Err(RecvError));
            for handle in handles {
                assert_eq!(handle.join().expect("no panic"), Err(RecvError));
            }
            go(|| ()).join().expect("a reused stack");
        });
        run.expect("the run starts");
    })
    .assert_success();
}

/// Mounts a file with `text` over `path`, for this process. `false` without the privilege.
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
fn the_reason_for_a_refused_reservation_is_reported() {
    let test = "the_reason_for_a_refused_reservation_is_reported";
    let reason = "no memory for 131072 bytes of goroutine stacks: Cannot allocate memory \
                  (os error 12); ";
    // Emulates the kernel in this mode, since setting the mode would affect the whole machine.
    let refuse_stacks = || {
        let flag = libc::MAP_NORESERVE as u32;
        let argument = Some((3, flag, flag));
        refuse(&[Refusal { call: libc::SYS_mmap, argument, errno: libc::ENOMEM }]);
    };
    let cases = [
        (
            "2\n",
            Shortage::StrictOvercommit,
            "vm.overcommit_memory is 2, so that untouched memory counts as used: set it to 0, or \
             raise vm.overcommit_ratio",
        ),
        (
            "0\n",
            Shortage::Unknown,
            "RLIMIT_AS, RLIMIT_DATA, vm.max_map_count and vm.overcommit_memory allow it: check the \
             limits of the container and its seccomp filter",
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
            println!("skipped: needs the privilege to create a mount namespace");
            return;
        }
        outcome.assert_success();
    }
}
