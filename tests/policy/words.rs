//! Words that are not used, each with its replacement; and the width of comments.
//!
//! The list has only words that a search can decide. Words that are right in one sense and wrong in
//! another (`guard`, `turn`, `cold`, `behind`) are left to reviewers.

use std::collections::HashMap;

use crate::tree::{File, Tree};

/// Words that are not used, and their replacements.
///
/// A space stands for a space, a line break, a hyphen, an underscore or nothing, so that
/// `put aside` also finds `PutAside` and `put_aside`. Alternatives are separated by `|`. A match
/// begins and ends at the end of a word; an underscore ends one.
const WORDS: &[(&str, &str)] = &[
    ("give way|gives way|gave way|giving way|given way", "yield"),
    ("put aside|puts aside|putting aside", "preempt, deschedule"),
    ("held still|hold still|holds still|holding still|stands still|stand still", "suspend"),
    ("freeze|freezes|frozen|unfreeze", "suspend"),
    ("carve|carves|carved|carving", "allocate a slot"),
    ("mailbox|mailboxes", "inbox"),
    ("handshake|handshakes", "preempt request, sysmon sleep"),
    ("float mode|float modes", "FP control state"),
    ("look_up|look_ups|look-up|look-ups", "lookup"),
    ("interp", "model"),
    ("twin|twins", "mutant"),
    ("whoever", "name the subject"),
    ("so many", "n"),
    ("goid|goids", "id"),
    (
        "law of a frame|law of its frame|law of the frame|laws of frames|frame law|frame laws",
        "frame contract",
    ),
    ("stand-in|stand-ins", "thread waiter"),
    ("goes on at|go on at|went on at", "resumes at"),
    ("as above", "say it again"),
    ("unsafe range|unsafe ranges", "unsafe-point range"),
    ("preemption point|preemption points", "safe-point"),
    ("looks for work|look for work|looking for work", "searching, spinning"),
    ("free_g|life.rs", "lifecycle: goexit0, gfput"),
];

/// Identifiers that are not used, in exactly this case, and their replacements.
const NAMES: &[(&str, &str)] = &[
    ("Freeze", "SuspendState"),
    ("Still", "Suspended"),
    ("Looking", "SuspendState"),
    ("Means", "PreemptStubs"),
    ("Attached", "SignalRegistration"),
    ("NewG", "lifecycle: newproc"),
    ("Carrier", "shuffle"),
    ("Spot", "Location"),
    ("Dest", "Location"),
    ("Line<", "CachePadded<"),
];

/// Words with which no sentence of a comment or a document begins.
const SUBJECTS: &[&str] = &["Who", "Whoever", "Whose", "Nobody", "Somebody"];

/// The files that list the words, and are not checked.
const LISTS: &[&str] = &["tests/policy/words.rs"];

const COLUMNS: usize = 100;

/// A file as one text, in which comments continue over the ends of lines.
struct Text {
    chars: Vec<char>,
    /// The line of each character.
    lines: Vec<usize>,
}

impl Text {
    fn of(lines: &[String]) -> Self {
        let mut text = Self { chars: Vec::new(), lines: Vec::new() };
        for (number, line) in lines.iter().enumerate() {
            let line = line.trim();
            let line =
                line.strip_prefix("//").map_or(line, |rest| rest.trim_start_matches(['/', '!']));
            text.chars.extend(line.trim_start().chars());
            text.chars.push('\n');
            text.lines.resize(text.chars.len(), number + 1);
        }
        text
    }

    /// Blanks every occurrence of a phrase.
    fn blank(&mut self, phrase: &str) {
        for at in 0..self.chars.len() {
            if let Some(end) = self.matches(at, phrase, false) {
                self.chars[at..end].fill('\n');
            }
        }
    }

    /// If the pattern is at this place as a whole word: its end.
    fn matches(&self, at: usize, pattern: &str, exact: bool) -> Option<usize> {
        let is_part = |at: usize| self.chars.get(at).is_some_and(|c| c.is_alphanumeric());
        if at > 0 && is_part(at - 1) && is_part(at) && !self.is_hump(at) {
            return None;
        }
        let mut end = at;
        for wanted in pattern.chars() {
            let found = *self.chars.get(end)?;
            if wanted == ' ' && !exact {
                end += usize::from(matches!(found, ' ' | '\n' | '-' | '_'));
            } else if found == wanted || !exact && found.to_ascii_lowercase() == wanted {
                end += 1;
            } else {
                return None;
            }
        }
        let ends = !is_part(end - 1) || !is_part(end) || !exact && self.is_hump(end);
        ends.then_some(end)
    }

    /// Whether a word of a camel-case name such as `PutAside` begins here.
    fn is_hump(&self, at: usize) -> bool {
        let is = |at: usize, test: fn(&char) -> bool| self.chars.get(at).is_some_and(test);
        at > 0 && is(at - 1, |c| c.is_lowercase()) && is(at, |c| c.is_uppercase())
    }

    fn find(&self, path: &str, patterns: &[(&str, &str)], exact: bool, found: &mut Vec<String>) {
        let fold = |c: char| if exact { c } else { c.to_ascii_lowercase() };
        let mut by_letter: HashMap<char, Vec<(&str, &str)>> = HashMap::new();
        for &(pattern, instead) in patterns {
            for one in pattern.split('|') {
                let letter = one.chars().next().expect("a pattern has a letter");
                by_letter.entry(letter).or_default().push((one, instead));
            }
        }
        for at in 0..self.chars.len() {
            let Some(patterns) = by_letter.get(&fold(self.chars[at])) else { continue };
            let ends = patterns.iter().filter_map(|&(one, instead)| {
                self.matches(at, one, exact).map(|end| (end, instead))
            });
            if let Some((end, instead)) = ends.max() {
                let word: String = self.chars[at..end].iter().collect();
                let (line, word) = (self.lines[at], word.replace('\n', " "));
                found.push(format!("{path}:{line}: \"{word}\" ({instead})"));
            }
        }
    }

    /// Sentences that begin with one of the subjects.
    fn sentences(&self, path: &str, found: &mut Vec<String>) {
        for at in (0..self.chars.len()).filter(|&at| matches!(self.chars[at], 'W' | 'N' | 'S')) {
            let subject = SUBJECTS.iter().find(|word| self.matches(at, word, true).is_some());
            // The last character before it other than spaces and openings of a list.
            let before = self.chars[..at].iter().rev();
            let mut before =
                before.skip_while(|c| c.is_whitespace() || matches!(c, '*' | '"' | '('));
            let last = before.next();
            let paragraph = self.chars[..at].ends_with(&['\n', '\n']);
            if let Some(subject) = subject
                && (paragraph || last.is_none_or(|c| matches!(c, '.' | '!' | '?' | ':' | '|')))
            {
                found.push(format!("{path}:{}: a sentence begins with {subject}", self.lines[at]));
            }
        }
    }
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    let folders = ["src/", "tests/", "benches/", "examples/", "fuzz/", "README", "ARCHITECTURE"];
    let files = folders.into_iter().flat_map(|folder| tree.below(folder));
    files.filter(|file| !LISTS.contains(&&file.path[..]))
}

/// Uses of listed words in text and code.
pub fn forbidden(tree: &Tree, allowed: &[(&str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for file in documents(tree) {
        let phrases: Vec<_> = allowed.iter().filter(|(path, _)| *path == file.path).collect();
        let mut text = Text::of(&file.lines);
        phrases.iter().for_each(|(_, phrase)| text.blank(phrase));
        text.find(&file.path, WORDS, false, &mut found);
        Text::of(&file.code).find(&file.path, NAMES, true, &mut found);
        let mut comments = Text::of(&file.comments);
        phrases.iter().for_each(|(_, phrase)| comments.blank(phrase));
        comments.sentences(&file.path, &mut found);
    }
    found
}

/// Exceptions whose files do not have the phrase.
pub fn unused_exceptions(tree: &Tree, allowed: &[(&str, &str)]) -> Vec<String> {
    let has = |&(path, phrase): &(&str, &str)| {
        tree.get(path).is_some_and(|file| {
            let text = Text::of(&file.lines);
            (0..text.chars.len()).any(|at| text.matches(at, phrase, false).is_some())
        })
    };
    let unused = allowed.iter().filter(|exception| !has(exception));
    unused.map(|(path, phrase)| format!("{path} does not say \"{phrase}\"")).collect()
}

/// Comments that are too wide, other than tables.
pub fn wide(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for file in documents(tree).filter(|file| file.path.ends_with(".rs")) {
        for (number, line) in file.lines.iter().enumerate() {
            let text = line.trim_start();
            let columns = line.chars().count();
            let is_table = text.trim_start_matches(['/', '!', ' ']).starts_with('|');
            if text.starts_with("//") && columns > COLUMNS && !is_table {
                found.push(format!("{}:{}: {columns} columns", file.path, number + 1));
            }
        }
    }
    found
}

#[test]
fn every_word_of_the_list_is_found() {
    for (patterns, instead) in WORDS {
        for word in patterns.split('|') {
            let upper: String =
                word.split(' ').map(|part| part[..1].to_uppercase() + &part[1..]).collect();
            for text in [
                format!("// It {word}."),
                format!("//! It\n//! {}.", word.replace(' ', "\n//! ")),
                format!("fn {}_it() {{}}", word.replace(' ', "_")),
                format!("let a = \"{word}\";"),
                format!("struct Is{upper}Now;"),
            ] {
                let line = text.lines().position(|line| line.contains(&word[..2])).unwrap_or(0) + 1;
                let found = forbidden(&Tree::of(&[("src/a.rs", &text)]), &[]);
                assert_eq!(found.len(), 1, "{word}: {text}: {found:?}");
                assert!(found[0].starts_with(&format!("src/a.rs:{line}: \"")), "{found:?}");
                assert!(found[0].ends_with(&format!("({instead})")), "{found:?}");
            }
        }
    }
    for (name, instead) in NAMES {
        let text = format!("// {name}\nlet a: {name}T> = \"{name}\";");
        let text = text.replace("T>", if name.ends_with('<') { "T>" } else { "" });
        let found = forbidden(&Tree::of(&[("tests/a.rs", &text)]), &[]);
        let code: Vec<_> = found.iter().filter(|line| line.contains(instead)).collect();
        assert!(code.iter().any(|line| line.starts_with("tests/a.rs:2: ")), "{name}: {found:?}");
    }
}

#[test]
fn other_words_are_not_found() {
    for text in [
        "// interpreter, interpret, between, twine, handshaking, forgo, avoid, give away",
        "// Mean, meaning; a distillery; a timeline; what is looked up",
        "let a: Timeline<u8> = timeline(distill, Meaning); // Dest, Spot, Still",
        "// This one waits. It knows who waits, and nobody else.",
        "// so\n\n// far, many",
    ] {
        assert_eq!(forbidden(&Tree::of(&[("src/a.rs", text)]), &[]), [""; 0], "{text}");
    }
}

#[test]
fn a_sentence_without_a_subject_is_found() {
    for (text, line) in [
        ("/// Who waits is woken.", 1),
        ("//! It is one.\n//! Nobody waits.", 2),
        ("//! It is one (here). Somebody\n//! waits.", 1),
        ("fn a() {} // Whose is it?", 1),
        ("//! * one\n//! * two:\n//!\n//! * Nobody", 4),
        ("/// # Panics\n///\n/// Nobody does.", 3),
    ] {
        let found = forbidden(&Tree::of(&[("src/a.rs", text)]), &[]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].starts_with(&format!("src/a.rs:{line}: a sentence begins with ")));
    }
    let found = forbidden(&Tree::of(&[("README.md", "# It\n\nIt is. Whose?\n| Who |")]), &[]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn exceptions_are_by_phrase_and_file() {
    let tree = Tree::of(&[("src/a.rs", "// The miri\n// stand-in; a stand-in.")]);
    let allowed = [("src/a.rs", "miri stand-in")];
    assert_eq!(forbidden(&tree, &[]).len(), 2);
    assert_eq!(forbidden(&tree, &allowed), ["src/a.rs:2: \"stand-in\" (thread waiter)"]);
    assert_eq!(forbidden(&tree, &[("src/b.rs", "miri stand-in")]).len(), 2);
    assert_eq!(unused_exceptions(&tree, &allowed), [""; 0]);
    let unused = unused_exceptions(&tree, &[("src/a.rs", "a stand-in for"), ("src/b.rs", "miri")]);
    assert_eq!(unused.len(), 2, "{unused:?}");
}

#[test]
fn a_wide_comment_is_found() {
    let wide_line = "x".repeat(COLUMNS);
    let text =
        format!("// {}\n    // {wide_line}\n{wide_line} code\n/// | {wide_line} |", "é".repeat(97));
    assert_eq!(wide(&Tree::of(&[("src/a.rs", &text)])), ["src/a.rs:2: 107 columns"]);
}
