//! Overflows that hit a guard: the message, which names the function and the JIT frames.

use std::hint::black_box;

use dynasmrt::{DynasmLabelApi, dynasm};
use footbridge::jit::{Code, FrameClass, Jit};
use footbridge::runtime::{Builder, Chan, go};
use support::child::{self, mask, overflow, refuse};
use support::code::caller;
use support::gcc::{self, Library, has_gcc};
use support::runs::{alone, config};

use super::{GO, KIB, MIB, lowest};
use crate::{refuse_guard_markers, sink};

/// Compares `text` with a file of tests/data/overflow. `BLESS=1` writes the file.
#[track_caller]
fn assert_golden(name: &str, text: &str) {
    let path = format!("{}/tests/data/overflow/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).expect("a file that can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("a file; BLESS=1 writes it");
    assert_eq!(text, expected, "{path}");
}

/// JIT code with endless recursion.
fn endless() -> Code {
    // SAFETY: a standard frame; the code calls only itself.
    unsafe {
        Jit::new().expect("code memory").install("endless", FrameClass::Standard, |ops| {
            dynasm!(ops; .arch x64; again: ; push rbp; mov rbp, rsp; call <again; pop rbp; ret);
        })
    }
    .expect("installs")
}

/// Runs `body` as a goroutine function that the JIT code `middle` calls, which the JIT code `outer`
/// calls, on the second goroutine of a run.
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

/* A frame of almost the guard's size, without stack probes. */
__attribute__((noinline)) int c_large_frames(int n) {
    volatile unsigned char frame[60000];
    frame[0] = (unsigned char)n;
    int below = c_large_frames(n + 1);
    last = frame[0];
    return below + 1;
}
";

/// Compiles `C_SOURCE` in a folder of the test, and returns the function `name`.
fn c_function(test: &str, name: &std::ffi::CStr) -> extern "C" fn(i32) -> i32 {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("overflow.c"), folder.join("overflow.so"));
    std::fs::write(&source, C_SOURCE).expect("a file");
    let arguments = ["-O1", "-w", "-fno-stack-clash-protection", "-shared", "-fPIC"];
    gcc::compile("gcc", &arguments, &library, &[&source]);
    // SAFETY: a library of plain functions of this type, which is never unloaded.
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
    let classes = [
        (16 * KIB, "16 KiB", "64 KiB"),
        (64 * KIB, "64 KiB", "256 KiB"),
        (256 * KIB, "256 KiB", "1 MiB"),
        (MIB, "1 MiB", "8 MiB"),
    ];
    // With guard markers where the host has them, and with guards that are pages.
    let all = [false, true].into_iter().flat_map(|pages| classes.map(|class| (class, pages)));
    for (case, ((class, size, next), are_pages)) in all.enumerate() {
        let outcome = child::run_case(test, case, || {
            if are_pages {
                refuse(&[refuse_guard_markers()]);
            }
            alone(|| {
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
fn an_overflow_of_the_largest_class_suggests_systemstack() {
    let outcome = child::run("an_overflow_of_the_largest_class_suggests_systemstack", || {
        config(1).stack_bytes(8 * MIB).run(|| black_box(sink(&[0; 4]))).expect("the run starts");
    });
    outcome.assert_aborted_with(
        "footbridge: fatal: goroutine 1 overflowed its 8 MiB stack in rust memory::sink\n\
         pc 0x_, rsp 0x_, access to 0x_ in the guard 0x_..0x_\n\
         there is no larger class: recurse less, or run it in runtime::systemstack\n\
         JIT frames, innermost first:\n    (none)\n",
    );
}

/// The lowest address of the calling goroutine's stack, which has 64 KiB. Must be called while only
/// the first page of the stack is used.
#[inline(always)]
fn lowest_here() -> usize {
    let top = black_box(0u8);
    lowest(&raw const top as usize, 64 * KIB)
}

/// Writes to the lowest byte of a stack, and to the highest byte of the guard below it.
fn write_around(lowest: usize) {
    // SAFETY: no frame is that deep. The second write is not sound: the tests need the signal.
    unsafe {
        (lowest as *mut u8).write_volatile(1);
        ((lowest - 1) as *mut u8).write_volatile(1);
    }
}

#[test]
fn an_access_to_the_guard_of_another_goroutine_is_an_ordinary_fault() {
    let test = "an_access_to_the_guard_of_another_goroutine_is_an_ordinary_fault";
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
