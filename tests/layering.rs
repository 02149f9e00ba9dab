//! Which file may do what: the direction of dependencies, and where `unsafe` is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that opt in to `unsafe` as a whole.
const UNSAFE_FILES: &[&str] = &[
    "src/jit/code.rs",
    "src/jit/mem/linux.rs",
    "src/jit/mem/mod.rs",
    "src/jit/registry/foreign.rs",
    "src/jit/registry/info.rs",
    "src/jit/registry/primitive.rs",
    "src/jit/registry/protocol.rs",
    "src/jit/registry/region.rs",
    "src/jit/scalar.rs",
    "src/jit/unwind/dwarf.rs",
    "src/runtime/adapter.rs",
    "src/runtime/bridge.rs",
    "src/runtime/chan/channel.rs",
    "src/runtime/chan/select.rs",
    "src/runtime/chan/waiters.rs",
    "src/runtime/checked.rs",
    "src/runtime/fp_control.rs",
    "src/runtime/futex.rs",
    "src/runtime/g.rs",
    "src/runtime/goroutines.rs",
    "src/runtime/life.rs",
    "src/runtime/m.rs",
    "src/runtime/mailbox.rs",
    "src/runtime/name.rs",
    "src/runtime/overflow.rs",
    "src/runtime/pool.rs",
    "src/runtime/preempt.rs",
    "src/runtime/run.rs",
    "src/runtime/save_area.rs",
    "src/runtime/sched.rs",
    "src/runtime/signal.rs",
    "src/runtime/stack.rs",
    "src/runtime/switch.rs",
    "src/runtime/symbol.rs",
    "src/runtime/task/builder.rs",
    "src/runtime/task/join.rs",
    "src/runtime/task/panic_hook.rs",
    "src/runtime/task/scope.rs",
    "src/runtime/task/sleep.rs",
    "src/runtime/task/spawn.rs",
    "src/runtime/throw.rs",
    "src/runtime/timers.rs",
    "src/runtime/tls.rs",
    "src/runtime/traceback.rs",
    "src/runtime/walk/exact.rs",
    "src/runtime/walk/modules.rs",
    "src/runtime/walk/scan.rs",
];

struct Source {
    /// From the root of the package.
    path: String,
    lines: Vec<String>,
    /// The lines without comments and the contents of strings.
    code: Vec<String>,
}

impl Source {
    fn says(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    fn layer(&self) -> &str {
        self.path.split('/').nth(1).unwrap_or("")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 30, "only {} files", paths.len());
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a readable file");
            let path = path.strip_prefix(root).expect("below the root");
            Source {
                path: path.to_str().expect("a UTF-8 path").into(),
                lines: text.lines().map(Into::into).collect(),
                code: code_of(&text).lines().map(Into::into).collect(),
            }
        })
        .collect()
}

fn collect(directory: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// The text with comments and the contents of string literals replaced by nothing; lines stay.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('/', Some('/')) => while chars.next_if(|&c| c != '\n').is_some() {},
            ('"', _) => {
                code.push('"');
                while let Some(c) = chars.next() {
                    match c {
                        '\\' => code.extend(chars.next().filter(|&c| c == '\n')),
                        '"' => break,
                        '\n' => code.push('\n'),
                        _ => {}
                    }
                }
                code.push('"');
            }
            // A quote as a character is no string.
            ('\'', Some('"')) => {
                chars.next();
            }
            _ => code.push(c),
        }
    }
    code
}

/// Whether the line has the word, not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

fn paths(sources: &[Source], keep: impl Fn(&Source) -> bool) -> BTreeSet<&str> {
    sources.iter().filter(|source| keep(source)).map(|source| source.path.as_str()).collect()
}

#[test]
fn unsafe_is_where_the_list_says() {
    let sources = sources();
    let files: BTreeSet<_> = UNSAFE_FILES.iter().copied().collect();
    assert_eq!(paths(&sources, |s| s.says("#![allow(unsafe_code, reason = \"")), files);
    let used = paths(&sources, |s| s.code.iter().any(|line| has_word(line, "unsafe")));
    assert_eq!(used, files);
    // No other way to allow it.
    let allowed = paths(&sources, |s| s.says("allow(unsafe_code"));
    assert_eq!(allowed, files);
    let root = sources.iter().find(|s| s.path == "src/lib.rs").expect("the crate's root");
    assert!(root.says("#![deny(unsafe_code, missing_docs)]"));
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut blocks = 0;
    let mut silent = Vec::new();
    for source in sources() {
        for (at, line) in source.code.iter().enumerate() {
            let opens = line.find("unsafe {").is_some() || has_word(line, "unsafe impl");
            if !opens {
                continue;
            }
            blocks += 1;
            // The comment stands above the statement, which may begin some lines earlier.
            let mut above = source.lines[..at].iter().rev().take(12).map(|line| line.trim());
            let mut statement_lines = 0;
            let said = above.any(|line| {
                statement_lines += usize::from(!line.starts_with("//"));
                statement_lines <= 6 && line.starts_with("// SAFETY:")
            });
            if !said && !source.lines[at].contains("// SAFETY:") {
                silent.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    assert!(blocks > 150, "only {blocks} blocks: the search is broken");
    assert!(silent.is_empty(), "no SAFETY comment above:\n{}", silent.join("\n"));
}

#[test]
fn layers_depend_downwards_only() {
    let sources = sources();
    let forbidden = |layer: &str| match layer {
        "abi" => &["crate::jit", "crate::runtime", "libc", "dynasm", "dynasmrt", "region"][..],
        "jit" => &["crate::runtime"][..],
        _ => &[][..],
    };
    let mut layers = BTreeSet::new();
    for source in &sources {
        let layer = source.layer();
        layers.insert(layer);
        for (at, line) in source.code.iter().enumerate() {
            for what in forbidden(layer) {
                assert!(!has_word(line, what), "{}:{}: {layer} uses {what}", source.path, at + 1);
            }
            // `use crate::{jit::.., runtime::..}` would hide the names from the search above.
            assert!(!line.contains("crate::{"), "{}:{}: one path a use", source.path, at + 1);
        }
    }
    assert!(["abi", "jit", "runtime"].iter().all(|layer| layers.contains(layer)));
    for source in sources.iter().filter(|source| source.layer() == "abi") {
        assert!(!source.code.iter().any(|line| has_word(line, "unsafe")), "{}", source.path);
    }
    let abi = sources.iter().find(|s| s.path == "src/abi/mod.rs").expect("the layer's root");
    assert!(abi.says("#![forbid(unsafe_code)]"));
}

#[test]
fn the_search_sees_through_comments_and_strings() {
    let text = "a // unsafe\n\"unsafe \\\" {\" b\n'\"' unsafe\n/// unsafe\n\"x\ny\" z";
    let code = code_of(text);
    let lines: Vec<_> = code.lines().collect();
    assert_eq!(lines.len(), text.lines().count());
    let with: Vec<_> = lines.iter().map(|line| has_word(line, "unsafe")).collect();
    assert_eq!(with, [false, false, true, false, false, false]);
    assert!(!has_word("unsafe_code", "unsafe") && has_word("(unsafe{", "unsafe"));
}
