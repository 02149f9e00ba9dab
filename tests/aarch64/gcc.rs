//! Compares AAPCS64 assignments with gcc for AArch64, as `tests/abi/gcc.rs` does for x86-64.
//!
//! A caller compiled by gcc passes known bytes to an assembly function that stores the whole
//! machine state. A function compiled by gcc returns known bytes to an assembly function that does
//! the same.

use std::collections::HashMap;
use std::fmt::Write as _;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Assignment, Convention, Language, Passing, Place, Reg, Signature, Value};

use super::c::{C, c_bytes, data, random_bytes, random_signature};
use super::cross::{self, Folder};

const ASSEMBLY: &str = include_str!("capture.s");
const PRELUDE: &str = include_str!("capture.c");

struct Case {
    signature: Signature,
    assignment: Assignment,
    args: Vec<Vec<u8>>,
    result: Option<Vec<u8>>,
}

/// The C function of a case. It calls `capture` with the arguments, and `fetch` with a function
/// that returns the result.
fn c_case(c: &mut C, number: usize, case: &Case, text: &mut String) -> std::fmt::Result {
    let types: Vec<String> = case.signature.params().iter().map(|ty| c.name(ty)).collect();
    let (result, params) = (c.result(&case.signature), c.params(&case.signature));
    if let Some(bytes) = &case.result {
        writeln!(text, "static {result} result_{number}(void) {{")?;
        writeln!(text, "  static const unsigned char b[] = {};", c_bytes(bytes))?;
        writeln!(text, "  {result} r; memcpy(&r, b, sizeof r); return r; }}")?;
    }
    writeln!(text, "static void case_{number}(void) {{")?;
    let mut list = Vec::new();
    for (i, (ty, bytes)) in types.iter().zip(&case.args).enumerate() {
        writeln!(text, "  static const unsigned char b{i}[] = {};", c_bytes(bytes))?;
        writeln!(text, "  {ty} a{i}; memcpy(&a{i}, b{i}, sizeof a{i});")?;
        list.push(format!("a{i}"));
    }
    let mut refs = 0;
    for value in case.assignment.params() {
        if let Passing::Reference(place) = value.passing() {
            let (general, stack) = match place {
                Place::Reg(Reg::Xreg(register)) => (i32::from(register.index()), 0),
                Place::Area(offset) => (-1, *offset),
                other => panic!("an address cannot be in {other}"),
            };
            let size = value.layout().size_bytes;
            writeln!(text, "  refs[{refs}] = (struct ref){{{general}, {stack}, {size}}};")?;
            refs += 1;
        }
    }
    let stack = case.assignment.total_bytes();
    writeln!(text, "  n_refs = {refs}; n_stack = {stack}; id = {number};")?;
    let args = list.join(", ");
    writeln!(text, "  (({result} (*)({params}))captured)({args});")?;
    if case.result.is_some() {
        let size = case.assignment.results()[0].layout().size_bytes;
        writeln!(text, "  memset(memory, 0xee, sizeof memory);")?;
        writeln!(text, "  fetch(result_{number}, memory); returned({number}, {size});")?;
    }
    writeln!(text, "}}")
}

/// The values that were captured for one case, by name.
type Seen = HashMap<String, Vec<Vec<u8>>>;

pub fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(|pair| byte(pair).expect("hexadecimal")).collect()
}

fn check_value(value: &Value, bytes: &[u8], seen: &Seen, refs: &mut usize, what: &str) {
    let data = data(value.ty(), Language::C);
    let size = bytes.len();
    let same = |off: usize, found: &[u8], place: &dyn std::fmt::Display| {
        for i in (off..off + found.len()).filter(|i| data[*i]) {
            assert_eq!(found[i - off], bytes[i], "byte {i} at {place}: {what}");
        }
    };
    match value.passing() {
        Passing::Nothing => assert_eq!(size, 0),
        Passing::Area(offset) => {
            same(0, &seen["stack"][0][*offset as usize..][..size], &"the stack");
        }
        Passing::Reference(place) => {
            let found = match seen.get("ref") {
                Some(found) => &found[*refs],
                None => &seen["memory"][0],
            };
            same(0, found, place);
            if let Some(address) = seen.get("address") {
                let address = u64::from_le_bytes(address[*refs][..].try_into().expect("a word"));
                let align = Convention::Aapcs64.spec().copy_align_bytes;
                // AAPCS64 6.8.2, B.6: a copy needs no alignment above 16 bytes.
                let align = u64::from(align.max(value.layout().align_bytes).min(16));
                assert!(address.is_multiple_of(align), "{place} is {address:#x}: {what}");
            }
            *refs += 1;
        }
        Passing::Parts(parts) => {
            for part in parts {
                let found = &seen[&part.place.to_string()][0][..part.size as usize];
                same(part.off as usize, found, part);
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_where_gcc_has_them() {
    if !cross::is_available() {
        return;
    }
    let count = cross::cases();
    let seed = cross::seed();
    let mut rng = Xorshift::new(seed);
    let mut cases = Vec::new();
    while cases.len() < count {
        let signature = random_signature(&mut rng, true);
        let Ok(assignment) = Convention::Aapcs64.assign(&signature) else {
            continue;
        };
        let mut bytes = |types: &[_]| -> Vec<Vec<u8>> {
            types.iter().map(|ty| random_bytes(&mut rng, ty, Language::C)).collect()
        };
        cases.push(Case {
            args: bytes(signature.params()),
            result: bytes(signature.results()).pop(),
            signature,
            assignment,
        });
    }

    let mut c = C::default();
    let mut functions = String::new();
    for (number, case) in cases.iter().enumerate() {
        c_case(&mut c, number, case, &mut functions).expect("a string");
    }
    let calls: String = (0..cases.len()).map(|i| format!("case_{i}(); ")).collect();
    let source = format!("{PRELUDE}{}{functions}int main(void) {{ {calls}return 0; }}\n", c.types);
    let folder = Folder::new("a64-gcc");
    let program = folder.path("cases");
    cross::compile(
        &program,
        &[&folder.write("cases.c", source), &folder.write("capture.s", ASSEMBLY)],
    );
    let output = String::from_utf8(cross::run(&program)).expect("ASCII");

    let mut checked = 0;
    for block in output.split("case ").skip(1) {
        let mut lines = block.lines();
        let number: usize = lines.next().and_then(|n| n.parse().ok()).expect("a number");
        let mut seen = Seen::new();
        for line in lines {
            let (name, bytes) = line.split_once(' ').expect("a name");
            seen.entry(name.to_owned()).or_default().push(unhex(bytes));
        }
        let Case { signature, assignment, args, result } = &cases[number];
        let what = format!("seed {seed}, {signature}\n{assignment}");
        if seen.contains_key("stack") {
            let mut refs = 0;
            for (value, bytes) in assignment.params().iter().zip(args) {
                check_value(value, bytes, &seen, &mut refs, &what);
            }
        } else {
            let bytes = result.as_ref().expect("a result");
            check_value(&assignment.results()[0], bytes, &seen, &mut 0, &what);
        }
        checked += 1;
    }
    let results = cases.iter().filter(|case| case.result.is_some()).count();
    assert_eq!(checked, cases.len() + results);
}
