//! Assignments against tables that other tools made.
//!
//! `data/abi/go_amd64_scalars.txt` comes from the Go compiler; its head explains the columns.

use footbridge::abi::{Assignment, Convention, Signature, Value};

/// The number of signatures in the table, so that an empty or cut file does not pass.
const GO_SIGNATURES: usize = 184;

#[test]
fn go_scalars_are_where_the_go_compiler_has_them() {
    let table = include_str!("data/abi/go_amd64_scalars.txt");
    let stride = if cfg!(miri) { 10 } else { 1 };
    let rows = table.lines().filter(|line| !line.starts_with('#'));
    let mut lines = 0;
    for line in rows.step_by(stride) {
        let (signature, _) = line.split_once(" | ").expect("columns");
        let signature: Signature = signature.parse().expect("a signature");
        let assignment = Convention::GoAbiInternal.assign(&signature);
        let assignment = assignment.expect("Go has no limit that the table reaches");
        assert_eq!(go_line(&signature, &assignment), line);
        lines += 1;
    }
    assert_eq!(lines, GO_SIGNATURES.div_ceil(stride));
}

/// An assignment as a line of the table.
fn go_line(signature: &Signature, assignment: &Assignment) -> String {
    let place = |value: &Value| match value.home_off() {
        Some(home) => format!("{}@{home}", value.place()),
        None => value.place().to_string(),
    };
    let places = |values: &[Value]| values.iter().map(place).collect::<Vec<_>>().join(" ");
    format!(
        "{signature} | {} | {} | {} {} {} {} {}",
        places(assignment.params()),
        places(assignment.results()),
        assignment.args_bytes(),
        assignment.results_off(),
        assignment.results_off() + assignment.results_bytes(),
        assignment.spill_off(),
        assignment.spill_bytes(),
    )
}
