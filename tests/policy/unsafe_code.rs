//! The files that may have `unsafe`, and the `SAFETY` comment of each use.

use std::collections::BTreeSet;

use crate::tree::{File, Tree, has_word};

/// Files that opt in to `unsafe` as a whole.
const UNSAFE_FILES: &[&str] = &[
    "src/instrument/asan.rs",
    "src/instrument/valgrind/aarch64.rs",
    "src/instrument/valgrind/x86_64.rs",
    "src/jit/arena/landing.rs",
    "src/jit/arena/personality.rs",
    "src/jit/code.rs",
    "src/jit/mem/limits.rs",
    "src/jit/mem/linux.rs",
    "src/jit/mem/mod.rs",
    "src/jit/registry/foreign.rs",
    "src/jit/registry/info.rs",
    "src/jit/registry/primitive.rs",
    "src/jit/registry/protocol.rs",
    "src/jit/registry/region.rs",
    "src/jit/scalar.rs",
    "src/jit/unwind/dwarf.rs",
    "src/runtime/arch/aarch64/fp_control.rs",
    "src/runtime/arch/aarch64/registers.rs",
    "src/runtime/arch/aarch64/switch.rs",
    "src/runtime/arch/aarch64/tls.rs",
    "src/runtime/arch/switch.rs",
    "src/runtime/arch/tls.rs",
    "src/runtime/arch/x86_64/fp_control.rs",
    "src/runtime/arch/x86_64/mod.rs",
    "src/runtime/arch/x86_64/registers.rs",
    "src/runtime/arch/x86_64/save_area.rs",
    "src/runtime/arch/x86_64/switch.rs",
    "src/runtime/arch/x86_64/tls.rs",
    "src/runtime/bridge/adapter.rs",
    "src/runtime/bridge/entry.rs",
    "src/runtime/bridge/functions.rs",
    "src/runtime/chan/channel.rs",
    "src/runtime/chan/select.rs",
    "src/runtime/chan/waiters.rs",
    "src/runtime/fault/crash.rs",
    "src/runtime/fault/overflow.rs",
    "src/runtime/fault/running.rs",
    "src/runtime/fault/undeliverable.rs",
    "src/runtime/gmp/current.rs",
    "src/runtime/gmp/g.rs",
    "src/runtime/gmp/m.rs",
    "src/runtime/gmp/name.rs",
    "src/runtime/gmp/parker.rs",
    "src/runtime/gmp/pools.rs",
    "src/runtime/gmp/preempt_state.rs",
    "src/runtime/gmp/queues.rs",
    "src/runtime/gmp/stub_env.rs",
    "src/runtime/gmp/timers.rs",
    "src/runtime/locks/mutex.rs",
    "src/runtime/locks/once.rs",
    "src/runtime/locks/queue.rs",
    "src/runtime/locks/rwlock.rs",
    "src/runtime/os/linux/context.rs",
    "src/runtime/os/linux/errno.rs",
    "src/runtime/os/linux/fault.rs",
    "src/runtime/os/linux/futex.rs",
    "src/runtime/os/linux/memory.rs",
    "src/runtime/os/linux/modules.rs",
    "src/runtime/os/linux/signals.rs",
    "src/runtime/os/linux/stderr.rs",
    "src/runtime/os/linux/symbols.rs",
    "src/runtime/os/linux/threads.rs",
    "src/runtime/os/linux/tls_blocks.rs",
    "src/runtime/os/throw.rs",
    "src/runtime/sched/async_preempt.rs",
    "src/runtime/sched/find.rs",
    "src/runtime/sched/fp_control.rs",
    "src/runtime/sched/lifecycle.rs",
    "src/runtime/sched/panic_probe.rs",
    "src/runtime/sched/panic_state.rs",
    "src/runtime/sched/park.rs",
    "src/runtime/sched/preempt.rs",
    "src/runtime/sched/ready.rs",
    "src/runtime/sched/schedule.rs",
    "src/runtime/sched/systemstack.rs",
    "src/runtime/stack/guard.rs",
    "src/runtime/stack/slots.rs",
    "src/runtime/start/bench_hooks.rs",
    "src/runtime/start/run.rs",
    "src/runtime/sync/inbox.rs",
    "src/runtime/sync/park.rs",
    "src/runtime/task/builder.rs",
    "src/runtime/task/join.rs",
    "src/runtime/task/local.rs",
    "src/runtime/task/panic_hook.rs",
    "src/runtime/task/scope.rs",
    "src/runtime/task/sleep.rs",
    "src/runtime/task/spawn.rs",
    "src/runtime/walk/exact.rs",
    "src/runtime/walk/inspect.rs",
    "src/runtime/walk/scan.rs",
    "src/runtime/walk/signal_safe.rs",
    "src/runtime/walk/traceback.rs",
];

/// Files that opt in and are not listed, are listed and do not opt in, or allow `unsafe` in another
/// way.
pub fn unlisted(tree: &Tree, listed: &[&str]) -> Vec<String> {
    let listed: BTreeSet<_> = listed.iter().copied().collect();
    let paths = |keep: &dyn Fn(&File) -> bool| -> BTreeSet<&str> {
        tree.below("src/").filter(|file| keep(file)).map(|file| file.path.as_str()).collect()
    };
    let opts_in = paths(&|file| file.contains("#![allow(unsafe_code, reason = \""));
    let allows = paths(&|file| file.contains("allow(unsafe_code"));
    let uses = paths(&|file| file.code.iter().any(|line| has_word(line, "unsafe")));
    let mut violations = Vec::new();
    let mut differ = |found: &BTreeSet<&str>, what: &str| {
        for path in found.difference(&listed) {
            violations.push(format!("{path} {what}, and is not listed"));
        }
        for path in listed.difference(found) {
            violations.push(format!("{path} is listed, and is not one that {what}"));
        }
    };
    differ(&opts_in, "opts in to unsafe code");
    differ(&allows, "allows unsafe code");
    differ(&uses, "uses unsafe code");
    for (path, line) in [
        ("src/lib.rs", "#![deny(unsafe_code, missing_docs, missing_debug_implementations)]"),
        ("src/abi/mod.rs", "#![forbid(unsafe_code)]"),
    ] {
        if !tree.get(path).is_some_and(|file| file.contains(line)) {
            violations.push(format!("{path} does not contain {line}"));
        }
    }
    violations
}

/// Blocks and impls without a `SAFETY` comment above, and the number of all blocks and impls.
pub fn undocumented(tree: &Tree) -> (Vec<String>, usize) {
    let mut blocks = 0;
    let mut violations = Vec::new();
    for file in tree.below("src/") {
        for (at, line) in file.code.iter().enumerate() {
            let opens = line.contains("unsafe {") || has_word(line, "unsafe impl");
            if !opens {
                continue;
            }
            blocks += 1;
            // The comment is above the statement, which may begin some lines earlier.
            let mut above = file.lines[..at].iter().rev().take(12).map(|line| line.trim());
            let mut statement_lines = 0;
            let is_documented = above.any(|line| {
                statement_lines += usize::from(!line.starts_with("//"));
                statement_lines <= 6 && line.starts_with("// SAFETY:")
            });
            if !is_documented && !file.lines[at].contains("// SAFETY:") {
                violations.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    (violations, blocks)
}

#[test]
fn unsafe_code_is_in_listed_files_only() {
    let violations = unlisted(&Tree::of_repository(), UNSAFE_FILES);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_unsafe_block_has_a_safety_comment() {
    let (violations, blocks) = undocumented(&Tree::of_repository());
    assert!(blocks > 150, "only {blocks} blocks: the search is broken");
    assert!(violations.is_empty(), "no SAFETY comment above:\n{}", violations.join("\n"));
}

#[test]
fn an_unlisted_file_is_reported() {
    const ROOTS: [(&str, &str); 2] = [
        ("src/lib.rs", "#![deny(unsafe_code, missing_docs, missing_debug_implementations)]"),
        ("src/abi/mod.rs", "#![forbid(unsafe_code)]"),
    ];
    const OPTS_IN: &str = "#![allow(unsafe_code, reason = \"it must\")]\n";
    let text = format!("{OPTS_IN}fn f() {{ unsafe {{ g() }} }}");
    let tree = |files: &[(&str, &str)]| Tree::of(&[&ROOTS[..], files].concat());
    assert_eq!(unlisted(&tree(&[("src/a.rs", &text)]), &["src/a.rs"]), [""; 0]);
    for (file, listed, count, first) in [
        (&text[..], &[][..], 3, "src/a.rs opts in to unsafe code, and is not listed"),
        ("unsafe fn f() {}", &[], 1, "src/a.rs uses unsafe code, and is not listed"),
        (
            "#[allow(unsafe_code, reason = \"\")] fn f() {}",
            &[],
            1,
            "src/a.rs allows unsafe code, and is not listed",
        ),
        (
            "// unsafe",
            &["src/a.rs"],
            3,
            "src/a.rs is listed, and is not one that opts in to unsafe code",
        ),
    ] {
        let found = unlisted(&tree(&[("src/a.rs", file)]), listed);
        assert_eq!((found.len(), &found[0][..]), (count, first), "{found:?}");
    }
    assert_eq!(unlisted(&Tree::of(&[]), &[]).len(), 2);
}

#[test]
fn a_block_without_a_safety_comment_is_reported() {
    let text = "// SAFETY: here.\nlet a =\n    unsafe { b() };\nunsafe { c() }\n\
                // SAFETY: for all.\nunsafe impl Send for D {}\n\n\n\n\n\n\n\
                unsafe { e() } // SAFETY: e.\n\
                // SAFETY: far away.\nf()\ng()\nh()\ni()\nj()\nk()\nl()\nunsafe impl L for M {}";
    let (found, blocks) = undocumented(&Tree::of(&[("src/a.rs", text)]));
    assert_eq!(blocks, 5);
    assert_eq!(found, ["src/a.rs:22: unsafe impl L for M {}"]);
}
