//! The rules, applied to this repository.

use std::sync::OnceLock;

use crate::tree::Tree;
use crate::{rooms, words};

/// Exceptions, where a word has another meaning: the file, and the phrase with the word.
const ALLOWED: &[(&str, &str)] = &[];

fn tree() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(Tree::of_repository)
}

#[track_caller]
fn assert_none(violations: &[String]) {
    let n = violations.len();
    assert!(violations.is_empty(), "{n} violations:\n{}", violations.join("\n"));
}

#[test]
fn every_file_is_in_a_room_and_uses_no_later_one() {
    assert_none(&rooms::misplaced(tree()));
}

#[test]
fn there_is_no_import_cycle() {
    assert_none(&rooms::cycles(tree()));
}

#[test]
fn assembly_and_the_c_library_are_in_their_folders() {
    assert_none(&rooms::out_of_place(tree()));
}

#[test]
fn words_are_those_of_the_field() {
    assert_none(&words::forbidden(tree(), ALLOWED));
    assert_none(&words::unused_exceptions(tree(), ALLOWED));
}

#[test]
fn comments_have_at_most_100_columns() {
    assert_none(&words::wide(tree()));
}
