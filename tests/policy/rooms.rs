//! Rooms and arrows: which file of `src` may use which, and where assembly and the C library may be
//! used.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{Arrow, arrows};
use crate::tree::{Tree, has_word};

/// The wings of `src`, and their rooms. A file belongs to the room with the longest path that is a
/// prefix of its own. It may use its room, the rooms above it in its wing, and all wings above.
const WINGS: &[(&str, &[&str])] = &[
    // The crate root only re-exports, and defines the macro that restricts items to hosts that
    // execute.
    ("src/", &["lib.rs"]),
    (
        "src/abi/",
        &[
            "reg.rs",
            "types/",
            "place.rs",
            "conv/spec.rs",
            "assign.rs",
            "conv/",
            "plan/",
            "model/",
            "mod.rs",
        ],
    ),
    // Of what tools that watch the process are told. `jit` and `runtime` call it.
    ("src/instrument/", &["valgrind/ asan.rs", "mod.rs"]),
    (
        "src/jit/",
        &[
            "dynasm.rs error.rs frame.rs annotations.rs stack_map.rs safe_point.rs safe_point/",
            "leaf/",
            "mem/",
            "unwind/",
            "registry/",
            "emit/",
            "arena.rs arena/ code.rs reclaim.rs scalar.rs",
            "stubs/",
            "visible/",
            "relocate.rs",
            "mod.rs",
        ],
    ),
    (
        "src/runtime/",
        &[
            "arch/", "os/", "stack/", "sync/", "gmp/", "sched/", "task/", "chan/", "locks/",
            "walk/", "fault/", "bridge/", "start/", "mod.rs",
        ],
    ),
    ("src/", &["environment.rs"]),
];

/// Folders whose files may form import cycles.
const KNOTS: &[&str] = &["src/runtime/gmp/"];

/// Words of code, and the folders where they are allowed.
const PLACES: &[(&str, &[&str])] = &[
    ("asm!", &["src/instrument/", "src/runtime/arch/"]),
    ("global_asm!", &["src/runtime/arch/"]),
    ("naked_asm!", &["src/runtime/arch/"]),
    ("libc", &["src/jit/mem/", "src/runtime/os/"]),
];

/// Crates that the pure wing never names.
const PURE: (&str, &[&str]) =
    ("src/abi/", &["backtrace", "dynasm", "dynasmrt", "framehop", "memmap2", "region"]);

/// The number of the wing, the number of the room, and the path of the room.
type Room = (usize, usize, String);

fn room_of(path: &str) -> Option<Room> {
    let mut best: Option<Room> = None;
    for (wing, (folder, rooms)) in WINGS.iter().enumerate() {
        for (level, room) in rooms.iter().enumerate() {
            for part in room.split(' ') {
                let room = format!("{folder}{part}");
                let inside = path == room || room.ends_with('/') && path.starts_with(&room);
                if inside && best.as_ref().is_none_or(|(_, _, best)| best.len() < room.len()) {
                    best = Some((wing, level, room));
                }
            }
        }
    }
    best
}

/// Files in no room, and arrows to later rooms.
pub fn misplaced(tree: &Tree) -> Vec<String> {
    let homeless = tree.below("src/").filter(|file| room_of(&file.path).is_none());
    let mut violations: Vec<_> =
        homeless.map(|file| format!("{} is in no room", file.path)).collect();
    for arrow in arrows(tree) {
        if let (Some(from), Some(to)) = (room_of(&arrow.from), room_of(&arrow.to))
            && (from.0, from.1) < (to.0, to.1)
        {
            violations.push(format!("{arrow}: {} may not use {}", from.2, to.2));
        }
    }
    violations
}

/// Import cycles outside of the knots: one for each set of files that reach each other.
pub fn cycles(tree: &Tree) -> Vec<String> {
    let arrows = arrows(tree);
    let mut uses: BTreeMap<&str, Vec<&Arrow>> = BTreeMap::new();
    for arrow in &arrows {
        let inside = |knot: &&str| arrow.from.starts_with(*knot) && arrow.to.starts_with(*knot);
        if !KNOTS.iter().any(inside) {
            uses.entry(&arrow.from).or_default().push(arrow);
        }
    }
    let mut reported = BTreeSet::new();
    let mut violations = Vec::new();
    for &start in uses.keys() {
        if reported.contains(start) {
            continue;
        }
        if let Some(cycle) = shortest_cycle(&uses, start) {
            let together: Vec<_> = uses
                .keys()
                .filter(|file| reaches(&uses, start, file) && reaches(&uses, file, start))
                .collect();
            reported.extend(together.iter().map(|file| **file));
            let steps: Vec<_> = cycle.iter().map(|arrow| format!("\n    {arrow}")).collect();
            let n = together.len();
            violations.push(format!("{n} files form an import cycle:{}", steps.concat()));
        }
    }
    violations
}

/// The arrows of a shortest path from a file to itself.
fn shortest_cycle<'a>(
    uses: &BTreeMap<&str, Vec<&'a Arrow>>,
    start: &str,
) -> Option<Vec<&'a Arrow>> {
    let mut from: BTreeMap<&str, &Arrow> = BTreeMap::new();
    let mut border = vec![start];
    while !border.is_empty() {
        let mut next = Vec::new();
        for file in border {
            for &arrow in uses.get(file).into_iter().flatten() {
                if from.contains_key(arrow.to.as_str()) {
                    continue;
                }
                from.insert(&arrow.to, arrow);
                if arrow.to == start {
                    let mut cycle = vec![arrow];
                    while cycle[0].from != start {
                        cycle.insert(0, from[cycle[0].from.as_str()]);
                    }
                    return Some(cycle);
                }
                next.push(arrow.to.as_str());
            }
        }
        border = next;
    }
    None
}

fn reaches(uses: &BTreeMap<&str, Vec<&Arrow>>, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        for arrow in uses.get(file).into_iter().flatten() {
            if seen.insert(arrow.to.as_str()) {
                open.push(&arrow.to);
            }
        }
    }
    from == to || seen.contains(to)
}

/// Assembly and calls of the C library outside of their folders, and crates that `abi` must not
/// name.
pub fn out_of_place(tree: &Tree) -> Vec<String> {
    let mut violations = Vec::new();
    for file in tree.below("src/") {
        for (number, line) in file.without_tests.iter().enumerate() {
            let at = format!("{}:{}", file.path, number + 1);
            for (word, folders) in PLACES {
                let allowed = folders.iter().any(|folder| file.path.starts_with(folder));
                if !allowed && has_word(line, word) {
                    violations.push(format!("{at}: `{word}` belongs to {}", folders.join(" or ")));
                }
            }
            for word in PURE.1 {
                if file.path.starts_with(PURE.0) && has_word(line, word) {
                    violations.push(format!("{at}: `{word}` in {}", PURE.0));
                }
            }
        }
    }
    violations
}

#[test]
fn wings_depend_downwards_only() {
    let wing_of = |path: &str| {
        let folders =
            ["src/lib.rs", "src/abi/", "src/instrument/", "src/jit/", "src/runtime/", "src/"];
        folders.iter().position(|folder| path.starts_with(folder))
    };
    let tree = Tree::of_repository();
    let arrows = arrows(&tree);
    assert!(arrows.len() > 150, "only {} arrows: the search is broken", arrows.len());
    for arrow in arrows {
        assert!(wing_of(&arrow.from) >= wing_of(&arrow.to), "{arrow}");
    }
    let abi: Vec<_> =
        out_of_place(&tree).into_iter().filter(|line| line.starts_with("src/abi/")).collect();
    assert_eq!(abi, [""; 0]);
}

#[test]
fn a_file_belongs_to_the_room_with_the_longest_path() {
    let room = |path: &str| room_of(path).map(|room| room.2).unwrap_or_default();
    assert_eq!(room("src/abi/conv/spec.rs"), "src/abi/conv/spec.rs");
    assert_eq!(room("src/abi/conv/win64.rs"), "src/abi/conv/");
    assert_eq!(room("src/jit/code.rs"), "src/jit/code.rs");
    assert_eq!(room("src/runtime/mod.rs"), "src/runtime/mod.rs");
    assert_eq!(room("src/runtime/util.rs"), "");
    assert_eq!(room("src/util.rs"), "");
}

/// A tree of the files, with declarations of their modules up to the crate root.
fn planted(files: &[(&str, &str)]) -> Tree {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (path, text) in files {
        // Each folder of the path is a module that declares the next one.
        let parts: Vec<_> = path.split('/').collect();
        let mut parent = "src/lib.rs".to_owned();
        for (depth, part) in parts.iter().enumerate().skip(1) {
            let name = part.strip_suffix(".rs").unwrap_or(part);
            if name != "mod" {
                let line = format!("pub mod {name};\n");
                let text = all.entry(parent).or_default();
                if !text.contains(&line) {
                    text.push_str(&line);
                }
            }
            parent = format!("{}/mod.rs", parts[..=depth].join("/"));
        }
        all.entry((*path).into()).or_default().push_str(text);
    }
    let all: Vec<_> = all.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    Tree::of(&all)
}

#[test]
fn an_arrow_to_a_later_room_is_reported() {
    let files = |from: &'static str, to: &'static str, text: &'static str| {
        misplaced(&planted(&[(from, text), (to, "pub struct X;")]))
    };
    for (from, to, text, may_not) in [
        // To a later room, and to a later wing.
        (
            "src/abi/reg.rs",
            "src/abi/plan/step.rs",
            "use crate::abi::plan::step::X;",
            "src/abi/reg.rs may not use src/abi/plan/",
        ),
        (
            "src/abi/conv/spec.rs",
            "src/abi/conv/sysv.rs",
            "use super::sysv::X;",
            "src/abi/conv/spec.rs may not use src/abi/conv/",
        ),
        (
            "src/jit/code.rs",
            "src/runtime/gmp/g.rs",
            "type G = crate::runtime::gmp::g::X;",
            "src/jit/code.rs may not use src/runtime/gmp/",
        ),
        (
            "src/runtime/sync/runq.rs",
            "src/runtime/gmp/g.rs",
            "use super::super::gmp::g::{X as G};",
            "src/runtime/sync/ may not use src/runtime/gmp/",
        ),
        (
            "src/runtime/arch/x86_64/switch.rs",
            "src/runtime/os/linux/futex.rs",
            "fn f() { crate::runtime::os::linux::futex::X; }",
            "src/runtime/arch/ may not use src/runtime/os/",
        ),
    ] {
        let found = files(from, to, text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{from}:1: `")), "{found:?}");
        assert!(found[0].ends_with(&format!("X` is in {to}: {may_not}")), "{found:?}");
    }
    // To an earlier room, within a room, and to an earlier wing.
    for (from, to, text) in [
        ("src/abi/plan/step.rs", "src/abi/reg.rs", "use crate::abi::reg::X;"),
        ("src/jit/code.rs", "src/jit/arena.rs", "use super::arena::X;"),
        ("src/runtime/arch/tls.rs", "src/abi/reg.rs", "use crate::abi::reg::X;"),
        ("src/environment.rs", "src/runtime/start/run.rs", "use crate::runtime::start::run::X;"),
    ] {
        assert_eq!(files(from, to, text), [""; 0]);
    }
    let homeless = misplaced(&planted(&[("src/runtime/helpers.rs", "")]));
    assert_eq!(homeless, ["src/runtime/helpers.rs is in no room"]);
}

#[test]
fn a_cycle_is_reported_arrow_by_arrow() {
    let tree = planted(&[
        ("src/abi/plan/mod.rs", "mod step; mod a; pub use step::Step;"),
        ("src/abi/plan/step.rs", "\nuse super::a::A; pub struct Step;"),
        ("src/abi/plan/a.rs", "use super::Step; pub struct A;"),
        ("src/abi/plan/b.rs", "use super::Step;"),
    ]);
    assert_eq!(
        cycles(&tree),
        ["2 files form an import cycle:\n    \
            src/abi/plan/a.rs:1: `super::Step` is in src/abi/plan/step.rs\n    \
            src/abi/plan/step.rs:2: `super::a::A` is in src/abi/plan/a.rs"]
    );
    // A cycle is allowed within a knot, but not through files outside of it.
    let knot = |other: &'static str, path: &'static str| {
        let g: &'static str = if other.contains("gmp") {
            "use crate::runtime::gmp::m::X; pub struct X;"
        } else {
            "use crate::runtime::sched::park::X; pub struct X;"
        };
        cycles(&planted(&[("src/runtime/gmp/g.rs", g), (other, path)])).len()
    };
    assert_eq!(knot("src/runtime/gmp/m.rs", "use super::g::X as G; pub struct X;"), 0);
    let back = "use crate::runtime::gmp::g::X as G; pub struct X;";
    assert_eq!(knot("src/runtime/sched/park.rs", back), 1);
}

#[test]
fn assembly_and_the_c_library_have_their_folders() {
    let text = "fn a() { asm!(\"nop\") }\nuse std::arch::global_asm;\nglobal_asm!(\"\");\n\
                use libc::c_int; // libc\nfn f() { dynasm!(ops; nop); my_asm!(); libc::abort() }\n\
                #[cfg(test)] mod tests { fn f() { libc::abort() } }";
    let of = |path: &str| out_of_place(&planted(&[(path, text)]));
    assert_eq!(of("src/runtime/arch/x86_64/switch.rs").len(), 2);
    let os = of("src/runtime/os/linux/memory.rs");
    assert_eq!(
        os,
        [
            "src/runtime/os/linux/memory.rs:1: `asm!` belongs to src/instrument/ or \
             src/runtime/arch/",
            "src/runtime/os/linux/memory.rs:3: `global_asm!` belongs to src/runtime/arch/",
        ]
    );
    assert_eq!(of("src/jit/mem/linux.rs").len(), 2);
    assert_eq!(of("src/jit/code.rs").len(), 4);
    let pure = of("src/abi/reg.rs");
    assert_eq!(pure.len(), 5, "{pure:?}");
    let names = out_of_place(&planted(&[("src/abi/reg.rs", "use dynasmrt::x64;")]));
    assert_eq!(names, ["src/abi/reg.rs:1: `dynasmrt` in src/abi/"]);
}
