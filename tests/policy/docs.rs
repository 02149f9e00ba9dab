//! What the documents say of tests and files.

use std::path::Path;

/// The laws of ARCHITECTURE.md: each is followed by the tests that hold it, as `area::module`, as
/// `area`, or as `models: test`.
fn laws(text: &str) -> Vec<String> {
    let (_, after) = text.split_once("## Laws").expect("the section of the laws");
    let section = after.split("\n## ").next().unwrap_or_default();
    let mut laws: Vec<String> = Vec::new();
    for line in section.lines().skip(1) {
        let number = line.split_once(". ").map(|(number, _)| number);
        if number.is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())) {
            laws.push(line.into());
        } else if let Some(law) = laws.last_mut()
            && line.starts_with(' ')
        {
            law.push_str(line);
        }
    }
    laws
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a name is that of tests in the tree below `root`.
fn is_a_test(root: &Path, name: &str) -> bool {
    let exists = |path: String| root.join(path).is_file();
    if let Some(model) = name.strip_prefix("models: ") {
        let manifest = std::fs::read_to_string(root.join("tests/models/Cargo.toml"));
        return manifest.is_ok_and(|text| text.contains(&format!("name = \"{model}\"")));
    }
    let path = name.replace("::", "/");
    let is_name = path.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '/');
    let places = ["main.rs", "mod.rs"].map(|file| format!("tests/{path}/{file}"));
    is_name && (exists(format!("tests/{path}.rs")) || places.into_iter().any(exists))
}

#[test]
fn every_law_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let laws = laws(&text);
    assert!(laws.len() >= 12, "only {} laws are found", laws.len());
    // Law 7 is about instructions: the listings of the switches' own files show them.
    let without: Vec<_> = laws
        .iter()
        .filter(|law| !law.starts_with("7. ") && !quoted(law).any(|name| is_a_test(root, name)))
        .collect();
    assert!(without.is_empty(), "laws without a test:\n{without:#?}");
    let paths = laws.iter().flat_map(|law| quoted(law)).filter(|name| name.contains("::"));
    let wrong: Vec<_> = paths
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || "_:".contains(c)))
        .filter(|name| !is_a_test(root, name))
        .collect();
    assert!(wrong.is_empty(), "no such tests: {wrong:?}");
}

#[test]
fn a_law_without_a_test_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(is_a_test(root, "policy::docs") && is_a_test(root, "registry"));
    assert!(is_a_test(root, "models: sched_model"));
    assert!(!is_a_test(root, "policy::no_such_module") && !is_a_test(root, "checkpoint()"));
    let text =
        "# A\n## Laws, and\n\n1. **One.** Text\n   more. `a::b`\n2. **Two.**\n\nEnd `c`.\n\n## B\n";
    assert_eq!(laws(text), ["1. **One.** Text   more. `a::b`", "2. **Two.**"]);
    assert_eq!(quoted("a `b` c `d`").collect::<Vec<_>>(), ["b", "d"]);
}
