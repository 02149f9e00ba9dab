//! The input of the rules: files by path, with comments and code separated.

use std::collections::BTreeMap;
use std::path::Path;

/// Files by their paths from the root of the repository.
pub struct Tree {
    files: BTreeMap<String, File>,
}

/// A file, in four forms of the same lines.
pub struct File {
    pub path: String,
    pub lines: Vec<String>,
    /// Without comments and without the contents of strings.
    pub code: Vec<String>,
    /// The code without items under `#[cfg(test)]`.
    pub without_tests: Vec<String>,
    /// The text of comments, without their markers.
    pub comments: Vec<String>,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let (code, comments) =
            if path.ends_with(".rs") { split(text) } else { (String::new(), text.to_owned()) };
        let without_tests = without_tests(&code);
        let lines = |text: &str| text.lines().map(Into::into).collect::<Vec<String>>();
        Self {
            path: path.into(),
            lines: lines(text),
            code: lines(&code),
            without_tests: lines(&without_tests),
            comments: lines(&comments),
        }
    }

    pub fn contains(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }
}

impl Tree {
    /// A tree of the given files, for tests.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| (path.to_owned(), File::new(path, text));
        Self { files: files.iter().map(file).collect() }
    }

    /// The Rust files of this repository, and the documents at its root.
    pub fn of_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = BTreeMap::new();
        for folder in ["benches", "examples", "fuzz", "src", "tests"] {
            collect(root, &root.join(folder), &mut files);
        }
        for name in ["ARCHITECTURE.md", "CHANGELOG.md", "README.md"] {
            add(root, &root.join(name), &mut files);
        }
        assert!(files.len() > 80, "only {} files", files.len());
        Self { files }
    }

    /// The files whose paths begin with `prefix`.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a File> {
        self.files.values().filter(move |file| file.path.starts_with(prefix))
    }

    pub fn get(&self, path: &str) -> Option<&File> {
        self.files.get(path)
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, File>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(root, &path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            add(root, &path, files);
        }
    }
}

fn add(root: &Path, path: &Path, files: &mut BTreeMap<String, File>) {
    let text = std::fs::read_to_string(path).expect("a readable file");
    let path = path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8");
    files.insert(path.into(), File::new(path, &text));
}

/// The code and the comments of a Rust file, each with as many lines as the file.
fn split(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut comments) = (String::new(), String::new());
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let newline = |c: char, code: &mut String, comments: &mut String| {
        if c == '\n' {
            code.push('\n');
            comments.push('\n');
        }
    };
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            i += 2;
            while at(i) == '/' || at(i) == '!' {
                i += 1;
            }
            while i < chars.len() && chars[i] != '\n' {
                comments.push(chars[i]);
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            while i < chars.len() {
                match (chars[i], at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    ('\n', _) => {
                        newline('\n', &mut code, &mut comments);
                        i += 1;
                    }
                    (c, _) => {
                        comments.push(c);
                        i += 1;
                    }
                }
                if depth == 0 {
                    break;
                }
            }
        } else if let Some((hashes, start)) = raw_string(&chars, i) {
            code.push_str("\"\"");
            i = start;
            while i < chars.len() {
                if chars[i] == '"' && (0..hashes).all(|n| at(i + 1 + n) == '#') {
                    i += 1 + hashes;
                    break;
                }
                newline(chars[i], &mut code, &mut comments);
                i += 1;
            }
        } else if c == '"' {
            code.push_str("\"\"");
            i += 1;
            while i < chars.len() && chars[i] != '"' {
                newline(chars[i], &mut code, &mut comments);
                if chars[i] == '\\' {
                    i += 1;
                    newline(at(i), &mut code, &mut comments);
                }
                i += 1;
            }
            i += 1;
        } else if c == '\'' && at(i + 1) == '\\' {
            i += 3;
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            i += 1;
            code.push_str("' '");
        } else if c == '\'' && at(i + 2) == '\'' {
            i += 3;
            code.push_str("' '");
        } else {
            newline(c, &mut code, &mut comments);
            if c != '\n' {
                code.push(c);
            }
            i += 1;
        }
    }
    (code, comments)
}

/// If a raw string begins here: the number of its hashes, and the start of its contents.
fn raw_string(chars: &[char], at: usize) -> Option<(usize, usize)> {
    let part = |c: &char| c.is_alphanumeric() || *c == '_';
    if chars[at] != 'r' || at > 0 && part(&chars[at - 1]) && !matches!(chars[at - 1], 'b' | 'c') {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some((hashes, at + 2 + hashes))
}

/// The code with the items after `#[cfg(test)]` and `#[cfg(all(test, ..))]` blanked.
fn without_tests(code: &str) -> String {
    let mut chars: Vec<char> = code.chars().collect();
    let mut from = 0;
    while let Some(start) = find(&chars, from, "#[cfg(test)]")
        .into_iter()
        .chain(find(&chars, from, "#[cfg(all(test"))
        .min()
    {
        // To the end of the item: a semicolon outside of brackets, or the end of a block.
        let mut depth = 0i32;
        let mut end = start;
        while end < chars.len() {
            match chars[end] {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' => depth -= 1,
                '}' if depth == 1 => break,
                '}' => depth -= 1,
                ';' if depth == 0 => break,
                _ => {}
            }
            end += 1;
        }
        let end = (end + 1).min(chars.len());
        chars[start..end].iter_mut().filter(|c| **c != '\n').for_each(|c| *c = ' ');
        from = end;
    }
    chars.into_iter().collect()
}

fn find(chars: &[char], from: usize, what: &str) -> Option<usize> {
    let what: Vec<char> = what.chars().collect();
    let found = chars.get(from..)?.windows(what.len()).position(|window| window == what);
    found.map(|at| from + at)
}

/// Whether the line has the word, other than as a part of a longer one.
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

#[test]
fn code_comments_and_strings_are_separated() {
    let text = "a // unsafe\n\"unsafe \\\" {\" b\n'\"' unsafe\n/// unsafe\n\"x\ny\" z\n\
                r#\"unsafe \" \"# /* a /* b\n */ unsafe */ &'a ()";
    let (code, comments) = split(text);
    let code: Vec<_> = code.lines().collect();
    assert_eq!(code.len(), text.lines().count());
    let with: Vec<_> = code.iter().map(|line| has_word(line, "unsafe")).collect();
    assert_eq!(with, [false, false, true, false, false, false, false, false]);
    assert_eq!(code[6..], ["\"\" ", " &'a ()"]);
    let comments: Vec<_> = comments.lines().map(str::trim).collect();
    assert_eq!(comments, ["unsafe", "", "", "unsafe", "", "", "a  b", "unsafe"]);
    assert!(!has_word("unsafe_code", "unsafe") && has_word("(unsafe{", "unsafe"));
}

#[test]
fn test_items_are_removed() {
    let text = "fn a() {}\n#[cfg(test)]\nuse b::c;\n#[cfg(test)]\n#[path(\"\")]\nmod tests {\n\
                fn d() {}\n}\nfn e() {}\n#[cfg(not(test))]\nfn f() {}";
    let without_tests = without_tests(text);
    let left: String = without_tests.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(left, "fn a() {} fn e() {} #[cfg(not(test))] fn f() {}");
    assert_eq!(without_tests.lines().count(), text.lines().count());
}
