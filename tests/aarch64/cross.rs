//! Debian's cross compiler and emulator: programs for AArch64 are compiled and run on this machine.
//!
//! This file must not know about conventions or adapters.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::gcc;
use support::settings::{number_or, seed_or};

/// A folder for temporary files, which is removed unless the test panics.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let name = format!("footbridge-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder for temporary files");
        Folder(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the files are in {}", self.0.display());
        } else {
            std::fs::remove_dir_all(&self.0).expect("removed");
        }
    }
}

/// Whether the tools are installed. If not, the test is skipped, or fails where skipping is not
/// accepted.
pub fn is_available() -> bool {
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let found = runs("aarch64-linux-gnu-gcc")
        && runs("qemu-aarch64")
        && Path::new("/usr/aarch64-linux-gnu/lib/libc.a").exists();
    gcc::available(found, "gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user")
}

/// Compiles and links sources to a program without shared libraries.
pub fn compile(program: &Path, sources: &[&Path]) {
    let arguments = ["-O1", "-w", "-Wno-psabi", "-static", "-no-pie"];
    gcc::compile("aarch64-linux-gnu-gcc", &arguments, program, sources);
}

/// Runs a program.
pub fn output(program: &Path, args: &[&Path]) -> Output {
    Command::new("qemu-aarch64").arg(program).args(args).output().expect("qemu runs")
}

/// Runs a program, which must exit with status 0, and returns its standard output.
pub fn run(program: &Path) -> Vec<u8> {
    let run = output(program, &[]);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{}: {}\n{said}", program.display(), run.status);
    run.stdout
}

/// The number of random cases of each test.
pub fn cases() -> usize {
    number_or("FOOTBRIDGE_A64_CASES", 300) as usize
}

/// The seed of the random cases.
pub fn seed() -> u64 {
    seed_or(1)
}
