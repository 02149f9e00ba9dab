//! The uses between files of `src`, as arrows, which the other rules check.
//!
//! A path makes an arrow from the file that contains it to the file that *defines* the named item.
//! A path that ends at a module makes none. A re-export makes none unless the file also uses the
//! name: a `mod.rs` that only re-exports is transparent. Paths are those of `use` declarations and
//! those in code (`crate::a::f()`, `<T as super::B>::C`). Methods and fields are not followed.
//! Items under `#[cfg(test)]` are ignored.
//!
//! This reads tokens and does not expand macros. A name that a macro defines counts as defined in
//! the file of the module through which it is named. A module that a macro invocation of this crate
//! declares (`name! { mod x; }`) is found.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::tree::Tree;

/// A use of an item that another file defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrow {
    pub from: String,
    pub to: String,
    pub line: usize,
    /// The path as written, without braces.
    pub path: String,
}

impl std::fmt::Display for Arrow {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}: `{}` is in {}", self.from, self.line, self.path, self.to)
    }
}

/// All arrows of `src`, one for each pair of files: the first by line.
pub fn arrows(tree: &Tree) -> Vec<Arrow> {
    let modules = Modules::of(tree);
    let mut found: BTreeMap<(String, String), Arrow> = BTreeMap::new();
    for (id, module) in modules.all.iter().enumerate() {
        let mut add = |target: Option<Target>, line: usize, path: &[String]| {
            if let Some(Target::Item(to)) = target
                && to != module.file
            {
                let (from, path) = (module.file.clone(), path.join("::"));
                let arrow = Arrow { from, to, line, path };
                let known = found.entry((arrow.from.clone(), arrow.to.clone()));
                let known = known.or_insert_with(|| arrow.clone());
                if arrow.line < known.line {
                    *known = arrow;
                }
            }
        };
        for import in &module.imports {
            match &import.name {
                Some(_) if !import.is_public => {
                    add(modules.resolve(id, &import.path), import.line, &import.path);
                }
                Some(name) => {
                    if let Some(&line) = module.words.get(name) {
                        add(modules.resolve(id, &import.path), line, &import.path);
                    }
                }
                None => {
                    if let Some(Target::Module(from)) = modules.resolve(id, &import.path) {
                        for (word, &line) in &module.words {
                            let target = modules.lookup(from, word, &mut BTreeSet::new());
                            let path = [&import.path[..], std::slice::from_ref(word)].concat();
                            add(target.flatten(), line, &path);
                        }
                    }
                }
            }
        }
        for (path, line) in &module.paths {
            add(modules.resolve(id, path), *line, path);
        }
    }
    found.into_values().collect()
}

/// The target of a path.
#[derive(Clone)]
enum Target {
    Module(usize),
    /// An item that this file defines.
    Item(String),
}

struct Import {
    /// None for a glob.
    name: Option<String>,
    path: Vec<String>,
    line: usize,
    is_public: bool,
}

#[derive(Default)]
struct Module {
    file: String,
    parent: Option<usize>,
    children: HashMap<String, usize>,
    defined: BTreeSet<String>,
    imports: Vec<Import>,
    /// Paths in code, of two segments or more.
    paths: Vec<(Vec<String>, usize)>,
    /// Identifiers in code, with the first line of each.
    words: HashMap<String, usize>,
}

struct Modules {
    all: Vec<Module>,
}

impl Modules {
    fn of(tree: &Tree) -> Self {
        let mut modules = Self { all: Vec::new() };
        modules.file(tree, "src/lib.rs", "src", None);
        modules
    }

    /// Reads a file and the files of its modules, which are in `folder`.
    fn file(&mut self, tree: &Tree, path: &str, folder: &str, parent: Option<usize>) -> usize {
        let id = self.all.len();
        self.all.push(Module { file: path.into(), parent, ..Module::default() });
        let file = tree.get(path).unwrap_or_else(|| panic!("{path} does not exist"));
        let tokens = tokens(&file.without_tests);
        let mut reader = Reader { tokens: &tokens, at: 0, outer: Vec::new() };
        reader.items(self, id);
        for (module, name) in reader.outer {
            // The files of an inline module are in a folder of its name.
            let mut inner = String::new();
            let mut above = module;
            while above != id {
                let parent = self.all[above].parent.expect("it is inside of the file's module");
                let of = |(name, &child): (&String, &usize)| (child == above).then(|| name.clone());
                let name = self.all[parent].children.iter().find_map(of).expect("a child");
                (inner, above) = (format!("{name}/{inner}"), parent);
            }
            let base = format!("{folder}/{inner}{name}");
            let candidates = [format!("{base}.rs"), format!("{base}/mod.rs")];
            let found = candidates.iter().find(|path| tree.get(path).is_some());
            let found = found.unwrap_or_else(|| panic!("{path}: no file for `mod {name}`"));
            let child = self.file(tree, found, &base, Some(module));
            self.all[module].children.insert(name, child);
        }
        id
    }

    /// The target of a path in a module; None if it is outside of the crate.
    fn resolve(&self, from: usize, path: &[String]) -> Option<Target> {
        self.resolve_in(from, path, &mut BTreeSet::new())
    }

    fn resolve_in(
        &self,
        from: usize,
        path: &[String],
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Target> {
        let mut segments = path.iter();
        let first = segments.next()?;
        let mut at = match first.as_str() {
            "crate" => Target::Module(0),
            "self" => Target::Module(from),
            "super" => Target::Module(self.all[from].parent?),
            name => self.lookup(from, name, seen)??,
        };
        for segment in segments {
            let Target::Module(module) = at else { break };
            at = match segment.as_str() {
                "super" => Target::Module(self.all[module].parent?),
                "self" => at,
                name => match self.lookup(module, name, seen) {
                    Some(target) => target?,
                    // Assumed to be defined by a macro.
                    None => Target::Item(self.all[module].file.clone()),
                },
            };
        }
        Some(at)
    }

    /// Resolves a name in a module: `Some(None)` if it is imported from outside of the crate.
    fn lookup(
        &self,
        module: usize,
        name: &str,
        seen: &mut BTreeSet<(usize, String)>,
    ) -> Option<Option<Target>> {
        let this = &self.all[module];
        if let Some(&child) = this.children.get(name) {
            return Some(Some(Target::Module(child)));
        }
        if this.defined.contains(name) {
            return Some(Some(Target::Item(this.file.clone())));
        }
        if !seen.insert((module, name.into())) {
            return None;
        }
        for import in &this.imports {
            if import.name.as_deref() == Some(name) {
                return Some(self.resolve_in(module, &import.path, seen));
            }
        }
        for import in this.imports.iter().filter(|import| import.name.is_none()) {
            if let Some(Target::Module(from)) = self.resolve_in(module, &import.path, seen)
                && let Some(target) = self.lookup(from, name, seen)
            {
                return Some(target);
            }
        }
        None
    }
}

struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

fn tokens(lines: &[String]) -> Vec<Token> {
    let mut tokens = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let mut rest = line.as_str();
        while let Some(c) = rest.chars().next() {
            let part = |c: char| c.is_alphanumeric() || c == '_';
            let len = if part(c) {
                rest.find(|c| !part(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                c.len_utf8()
            };
            if !c.is_whitespace() {
                tokens.push(Token { text: rest[..len].into(), line: number + 1 });
            }
            rest = &rest[len..];
        }
    }
    tokens
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    /// Modules in files of their own, each with the module that declares it.
    outer: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    /// Reads items up to the `}` of the block, which remains.
    fn items(&mut self, modules: &mut Modules, id: usize) {
        let mut is_public = false;
        while self.at < self.tokens.len() && self.text(0) != "}" {
            match (self.text(0), self.text(1), self.text(2)) {
                ("#", "[" | "!", _) => {
                    self.at += 1 + usize::from(self.text(1) == "!");
                    self.block(modules, id);
                }
                ("pub", "(", _) => {
                    is_public = true;
                    self.at += 1;
                    self.skip();
                }
                ("pub", ..) => {
                    is_public = true;
                    self.at += 1;
                }
                ("use", ..) => {
                    self.import(modules, id, is_public);
                    is_public = false;
                }
                ("mod", name, ";") => {
                    self.outer.push((id, name.into()));
                    self.at += 3;
                    is_public = false;
                }
                ("mod", name, "{") => {
                    let name = name.to_owned();
                    let child = modules.all.len();
                    let file = modules.all[id].file.clone();
                    let module = Module { file, parent: Some(id), ..Module::default() };
                    modules.all.push(module);
                    modules.all[id].children.insert(name, child);
                    self.at += 3;
                    self.items(modules, child);
                    self.at += 1;
                    is_public = false;
                }
                ("macro_rules", "!", name) => {
                    let name = name.to_owned();
                    modules.all[id].defined.insert(name);
                    self.at += 3;
                    self.block(modules, id);
                }
                ("const", "fn" | "unsafe" | "extern", _) => self.at += 1,
                (kind @ ("const" | "static" | "type"), ..) => {
                    let at_name = 1 + usize::from(kind == "static" && self.text(1) == "mut");
                    let name = self.text(at_name).to_owned();
                    modules.all[id].defined.insert(name);
                    self.until(modules, id, false);
                    is_public = false;
                }
                ("fn" | "struct" | "enum" | "union" | "trait", ..) => {
                    let name = self.text(1).to_owned();
                    modules.all[id].defined.insert(name);
                    self.at += 2;
                    self.until(modules, id, true);
                    is_public = false;
                }
                ("impl", ..) => {
                    self.at += 1;
                    self.until(modules, id, true);
                }
                // A foreign block, or an invocation of a macro that may declare modules.
                ("\"", "{", _) => {
                    self.at += 2;
                    self.items(modules, id);
                    self.at += 1;
                }
                (_, "!", "{") => {
                    self.at += 3;
                    self.items(modules, id);
                    self.at += 1;
                }
                ("(" | "[" | "{", ..) => self.block(modules, id),
                _ => self.at += 1,
            }
        }
    }

    /// Reads to the end of an item: a semicolon outside of brackets, or, if `by_block`, the end of
    /// its block.
    fn until(&mut self, modules: &mut Modules, id: usize, by_block: bool) {
        while self.at < self.tokens.len() {
            match self.text(0) {
                ";" => {
                    self.at += 1;
                    return;
                }
                "}" => return,
                "{" => {
                    self.block(modules, id);
                    if by_block {
                        return;
                    }
                }
                "(" | "[" => self.block(modules, id),
                _ => self.code(modules, id),
            }
        }
    }

    /// Reads from a bracket to the matching one.
    fn block(&mut self, modules: &mut Modules, id: usize) {
        self.at += 1;
        let mut depth = 1;
        while depth > 0 && self.at < self.tokens.len() {
            match self.text(0) {
                "(" | "[" | "{" => {
                    depth += 1;
                    self.at += 1;
                }
                ")" | "]" | "}" => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.code(modules, id),
            }
        }
    }

    fn skip(&mut self) {
        while self.at < self.tokens.len() && self.text(0) != ")" {
            self.at += 1;
        }
        self.at += 1;
    }

    /// Reads a `use`, a path or one other token.
    fn code(&mut self, modules: &mut Modules, id: usize) {
        if self.text(0) == "use"
            && self.at > 0
            && (matches!(self.text(1), "::" | "$" | "{") || self.is_word(1))
        {
            self.import(modules, id, false);
            return;
        }
        if !self.is_word(0) {
            self.at += 1;
            return;
        }
        let line = self.tokens[self.at].line;
        let before = self.at.checked_sub(1).map_or("", |at| &self.tokens[at].text);
        let starts = before != "::" && before != ".";
        let mut path = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.text(0) == "::" && self.is_word(1) {
            path.push(self.text(1).to_owned());
            self.at += 2;
        }
        if !starts {
            return;
        }
        let module = &mut modules.all[id];
        module.words.entry(path[0].clone()).or_insert(line);
        if path.len() > 1 {
            module.paths.push((path, line));
        }
    }

    fn is_word(&self, ahead: usize) -> bool {
        self.tokens.get(self.at + ahead).is_some_and(Token::is_word)
    }

    fn import(&mut self, modules: &mut Modules, id: usize, is_public: bool) {
        self.at += 1;
        if self.text(0) == "::" {
            self.at += 1;
        }
        self.import_tree(&mut modules.all[id].imports, &[], is_public);
        if self.text(0) == ";" {
            self.at += 1;
        }
    }

    fn import_tree(&mut self, imports: &mut Vec<Import>, above: &[String], is_public: bool) {
        let mut path = above.to_vec();
        loop {
            let line = self.tokens.get(self.at).map_or(0, |token| token.line);
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while self.at < self.tokens.len() && self.text(0) != "}" {
                        self.import_tree(imports, &path, is_public);
                        self.at += usize::from(self.text(0) == ",");
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    self.at += 1;
                    imports.push(Import { name: None, path, line, is_public });
                    return;
                }
                "$" => self.at += 1,
                _ if !self.is_word(0) => {
                    // Syntax of a macro's own.
                    self.at += 1;
                    return;
                }
                word => {
                    if word != "self" || path.is_empty() {
                        path.push(word.to_owned());
                    }
                    self.at += 1;
                    if self.text(0) == "::" {
                        self.at += 1;
                        continue;
                    }
                    let mut name = path.last().cloned();
                    if self.text(0) == "as" {
                        name = Some(self.text(1).to_owned());
                        self.at += 2;
                    }
                    if name.is_some() {
                        imports.push(Import { name, path, line, is_public });
                    }
                    return;
                }
            }
        }
    }
}

/// The arrows of a small tree, as text.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let arrows = arrows(&Tree::of(files));
    arrows.iter().map(|a| format!("{} {} {} {}", a.from, a.line, a.to, a.path)).collect()
}

#[test]
fn every_way_to_write_a_path_is_an_arrow() {
    let low = "pub struct A; pub fn f() {} pub mod inner { pub struct B; }\nmacro_rules! m { () => {} }\
               pub(crate) use m;";
    for (text, path) in [
        ("use crate::low::A;", "crate::low::A"),
        ("use super::low::A as C;", "super::low::A"),
        ("use crate::{low::{self, inner::{B as C, *}}};", "crate::low::inner::B"),
        ("fn g() { crate::low::f() }", "crate::low::f"),
        ("fn g() { use crate::low::f; f() }", "crate::low::f"),
        ("use crate::low; fn g() { low::f() }", "low::f"),
        ("use super::low::inner as x; type T = Vec<x::B>;", "x::B"),
        ("impl crate::low::Made for u8 {}", "crate::low::Made"),
        ("const C: Option<super::low::A> = None;", "super::low::A"),
        ("mod inner { use super::super::low::A; }", "super::super::low::A"),
        ("use super::low::*; fn g(_: A) {}", "super::low::A"),
        ("macro_rules! n { () => { $crate::low::f() } }", "crate::low::f"),
        ("macro_rules! n { () => { use $crate::{low::A}; } }", "crate::low::A"),
        ("pub use crate::low::*; fn g(_: A) {}", "crate::low::A"),
        ("#[derive(crate::low::m)] struct S;", "crate::low::m"),
        ("static S: &str = \"\"; fn g() { let c = '\"'; crate::low::m!(c) }", "crate::low::m"),
        ("pub(crate) use crate::low::A; fn g(_: A) {}", "crate::low::A"),
        ("unsafe extern \"C\" { fn g(_: crate::low::A); }", "crate::low::A"),
    ] {
        let root = "mod low; m! { mod high; }";
        let files = [("src/lib.rs", root), ("src/low.rs", low), ("src/high.rs", text)];
        assert_eq!(found(&files), [format!("src/high.rs 1 src/low.rs {path}")], "{text}");
    }
}

#[test]
fn text_that_is_no_use_is_no_arrow() {
    for text in [
        "// use crate::low::A;",
        "/* crate::low::f() */ fn g() { \"crate::low::f()\"; }",
        "pub use crate::low::A;",
        "pub use crate::low::*;",
        "use crate::low; use std::low::A; fn g() { std::low::f(); }",
        "#[cfg(test)] mod tests { use crate::low::A; }",
        "#[cfg(test)] use crate::low::A;",
        "struct A; use self::A as B; fn f() { x.f::<B>() }",
    ] {
        let files = [
            ("src/lib.rs", "mod low; mod high;"),
            ("src/low.rs", "pub struct A;"),
            ("src/high.rs", text),
        ];
        assert_eq!(found(&files), [""; 0], "{text}");
    }
}

#[test]
fn a_re_export_is_seen_through() {
    let files = [
        ("src/lib.rs", "pub mod room; mod user; pub use room::{A, every::*};"),
        ("src/room/mod.rs", "mod one; pub mod every;\npub use one::A; pub(crate) use every::B;"),
        ("src/room/one.rs", "pub struct A;"),
        ("src/room/every.rs", "pub struct B; pub struct C; use super::A;"),
        (
            "src/user.rs",
            "use crate::room::{A};\nuse crate::{C};\nuse crate::room;\nfn f(_: room::B) {}",
        ),
    ];
    assert_eq!(
        found(&files),
        [
            "src/room/every.rs 1 src/room/one.rs super::A",
            "src/user.rs 2 src/room/every.rs crate::C",
            "src/user.rs 1 src/room/one.rs crate::room::A",
        ]
    );
}
