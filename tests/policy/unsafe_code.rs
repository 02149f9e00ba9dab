//! Where `unsafe` is, and that each use of it says why it is sound.

use std::collections::BTreeSet;

use crate::tree::{File, Tree, has_word};

/// Files that opt in to `unsafe` as a whole.
const UNSAFE_FILES: &[&str] = &[
    "src/jit/code.rs",
    "src/jit/eh_frame.rs",
    "src/jit/mem.rs",
    "src/jit/registry/mod.rs",
    "src/jit/registry/primitive.rs",
    "src/jit/registry/protocol.rs",
    "src/jit/scalar.rs",
    "src/runtime/adapter.rs",
    "src/runtime/bridge.rs",
    "src/runtime/builder.rs",
    "src/runtime/chan.rs",
    "src/runtime/fp_control.rs",
    "src/runtime/futex.rs",
    "src/runtime/g.rs",
    "src/runtime/goroutines.rs",
    "src/runtime/join.rs",
    "src/runtime/life.rs",
    "src/runtime/m.rs",
    "src/runtime/mailbox.rs",
    "src/runtime/overflow.rs",
    "src/runtime/pool.rs",
    "src/runtime/preempt.rs",
    "src/runtime/run.rs",
    "src/runtime/save_area.rs",
    "src/runtime/scan.rs",
    "src/runtime/sched.rs",
    "src/runtime/signal.rs",
    "src/runtime/stack.rs",
    "src/runtime/switch.rs",
    "src/runtime/symbol.rs",
    "src/runtime/throw.rs",
    "src/runtime/time.rs",
    "src/runtime/tls.rs",
    "src/runtime/traceback.rs",
    "src/runtime/unwind.rs",
];

/// Files that opt in without being listed, are listed in vain, or allow `unsafe` in another way.
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
        ("src/lib.rs", "#![deny(unsafe_code, missing_docs)]"),
        ("src/abi/mod.rs", "#![forbid(unsafe_code)]"),
    ] {
        if !tree.get(path).is_some_and(|file| file.contains(line)) {
            violations.push(format!("{path} does not say {line}"));
        }
    }
    violations
}

/// Blocks and impls without a `SAFETY` comment above, and how many there are in all.
pub fn silent(tree: &Tree) -> (Vec<String>, usize) {
    let mut blocks = 0;
    let mut violations = Vec::new();
    for file in tree.below("src/") {
        for (at, line) in file.code.iter().enumerate() {
            let opens = line.contains("unsafe {") || has_word(line, "unsafe impl");
            if !opens {
                continue;
            }
            blocks += 1;
            // The comment stands above the statement, which may begin some lines earlier.
            let mut above = file.lines[..at].iter().rev().take(12).map(|line| line.trim());
            let mut statement_lines = 0;
            let said = above.any(|line| {
                statement_lines += usize::from(!line.starts_with("//"));
                statement_lines <= 6 && line.starts_with("// SAFETY:")
            });
            if !said && !file.lines[at].contains("// SAFETY:") {
                violations.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    (violations, blocks)
}

#[test]
fn unsafe_is_where_the_list_says() {
    let violations = unlisted(&Tree::of_repository(), UNSAFE_FILES);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let (violations, blocks) = silent(&Tree::of_repository());
    assert!(blocks > 150, "only {blocks} blocks: the search is broken");
    assert!(violations.is_empty(), "no SAFETY comment above:\n{}", violations.join("\n"));
}

#[test]
fn a_file_that_is_not_listed_is_named() {
    const ROOTS: [(&str, &str); 2] = [
        ("src/lib.rs", "#![deny(unsafe_code, missing_docs)]"),
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
fn a_block_that_says_nothing_is_named() {
    let text = "// SAFETY: here.\nlet a =\n    unsafe { b() };\nunsafe { c() }\n\
                // SAFETY: for all.\nunsafe impl Send for D {}\n\n\n\n\n\n\nunsafe { e() } // SAFETY: e.\n\
                // SAFETY: far away.\nf()\ng()\nh()\ni()\nj()\nk()\nl()\nunsafe impl L for M {}";
    let (found, blocks) = silent(&Tree::of(&[("src/a.rs", text)]));
    assert_eq!(blocks, 5);
    assert_eq!(found, ["src/a.rs:22: unsafe impl L for M {}"]);
}
