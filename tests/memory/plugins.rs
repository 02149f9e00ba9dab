//! A library that contains the crate, and that its host unloads.

use std::ffi::{CStr, CString};
use std::path::PathBuf;

use support::child;

/// The library. Cargo has built it with this test, as a dependency.
fn path() -> PathBuf {
    let this = std::env::current_exe().expect("the test binary has a path");
    this.with_file_name("libfootbridge_test_plugin.so")
}

#[test]
fn a_plugin_that_has_left_handlers_stays_loaded() {
    let test = "a_plugin_that_has_left_handlers_stays_loaded";
    let functions = [c"footbridge_plugin_runs", c"footbridge_plugin_emits"];
    for (case, function) in functions.into_iter().enumerate() {
        let outcome = child::run_case(test, case, || {
            let name = CString::new(path().to_str().expect("UTF-8")).expect("no zero");
            let open = |flags| {
                // SAFETY: the constructors of the library are those of Rust's standard library.
                unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | flags) }
            };
            let unload = |handle| {
                // SAFETY: a handle that dlopen(3) has returned, and none of its functions runs.
                assert_eq!(unsafe { libc::dlclose(handle) }, 0);
                // SAFETY: a name; nothing is loaded.
                let again =
                    unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
                if !again.is_null() {
                    // SAFETY: a handle that dlopen(3) has returned.
                    unsafe { libc::dlclose(again) };
                }
                again.is_null()
            };
            // A plugin that was not used leaves nothing.
            let unused = open(0);
            assert!(!unused.is_null(), "{name:?} is a library");
            assert!(unload(unused));
            let used = open(0);
            call_on_a_thread(used, function);
            assert!(!unload(used), "its code is unmapped");
            for signal in [libc::SIGURG, libc::SIGWINCH] {
                // SAFETY: plain numbers. Both are ignored by default.
                unsafe { libc::raise(signal) };
            }
            call_on_a_thread(open(0), function);
        });
        if let Some(outcome) = outcome {
            outcome.assert_success();
        }
    }
}

/// Calls a function of the library on a thread that ends.
fn call_on_a_thread(library: *mut libc::c_void, function: &CStr) {
    // SAFETY: a handle that dlopen(3) has returned.
    let address = unsafe { libc::dlsym(library, function.as_ptr()) };
    assert!(!address.is_null());
    // SAFETY: the functions of the library are of this type.
    let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(address) };
    let thread = std::thread::spawn(move || function());
    assert_eq!(thread.join().expect("no panic"), 42);
}
