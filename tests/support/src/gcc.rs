//! The C compiler driver, and the shared libraries that it builds.

use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::process::Command;

/// Whether gcc is installed. Without it the test is skipped with a message, or fails if
/// `FOOTBRIDGE_NO_SKIP` is set.
pub fn has_gcc() -> bool {
    available(Command::new("gcc").arg("--version").output().is_ok(), "gcc")
}

/// Like [`has_gcc`], and the CPU executes AVX2.
pub fn has_gcc_and_avx2() -> bool {
    let avx2 = std::arch::is_x86_feature_detected!("avx2");
    available(avx2 && Command::new("gcc").arg("--version").output().is_ok(), "gcc and AVX2")
}

/// Whether the test can run. If not, prints that it is skipped, or panics under
/// `FOOTBRIDGE_NO_SKIP`.
pub fn available(found: bool, what: &str) -> bool {
    if !found {
        assert!(std::env::var_os("FOOTBRIDGE_NO_SKIP").is_none(), "this test needs {what}");
        eprintln!("skipped: needs {what}");
    }
    found
}

/// Compiles `sources` with `compiler` to a program or a library.
pub fn compile(compiler: &str, arguments: &[&str], output: &Path, sources: &[&Path]) {
    let gcc = Command::new(compiler)
        .args(arguments)
        .arg("-o")
        .arg(output)
        .args(sources)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} runs: {error}"));
    assert!(gcc.status.success(), "{output:?}: {}", String::from_utf8_lossy(&gcc.stderr));
}

/// A library that is never unloaded.
pub struct Library(*mut c_void);

impl Library {
    /// # Safety
    /// 1. The constructors of the library are sound to run.
    pub unsafe fn open(path: &Path) -> Self {
        let name = CString::new(path.to_str().expect("UTF-8")).expect("no zero");
        // SAFETY: a string that ends with zero; (1) the caller answers for the constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path:?} is a library");
        Self(handle)
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: a handle that dlopen(3) returned, and a string that ends with zero.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!address.is_null(), "the library has {name:?}");
        address
    }
}
