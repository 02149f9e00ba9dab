//! Finds out whether functions come with call frame information: an inline assembly block may
//! describe a frame only then (`src/runtime/arch/x86_64/switch.rs`). And whether the build is one
//! with AddressSanitizer, which is told of switches then (`src/instrument/asan.rs`).

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(footbridge_no_unwind_tables)");
    println!("cargo::rustc-check-cfg=cfg(footbridge_asan)");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_SANITIZE");
    // Set by nightly compilers with `-Zsanitizer=address`.
    let sanitizers = env::var("CARGO_CFG_SANITIZE").unwrap_or_default();
    if sanitizers.split(',').any(|sanitizer| sanitizer == "address") {
        println!("cargo::rustc-cfg=footbridge_asan");
    }
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let value = flags.rsplit('\x1f').find_map(|flag| {
        let flag = flag.strip_prefix("-C").unwrap_or(flag);
        flag.strip_prefix("force-unwind-tables=")
    });
    if value.is_some_and(|value| ["n", "no", "off", "false"].contains(&value)) {
        println!("cargo::rustc-cfg=footbridge_no_unwind_tables");
    }
}
