//! Compares assignments with tables that the Go compiler produced.
//!
//! `tests/data/abi/go_amd64_scalars.txt` explains its columns at its head.
//! `tests/data/abi/go_vectors.jsonl.zz` (zlib) has one JSON object per line: a signature, the
//! layouts of its types, and the location of each value under ABI0 (`abi0`) and under ABIInternal
//! on both architectures (`amd64`, `arm64`).

use footbridge::abi::{
    Assignment, Convention, Language, Layout, Passing, Place, Reg, Signature, Type, Value,
};
use serde_json::{Value as Json, json};

/// The number of signatures in the table. An empty or truncated file must fail the test.
const GO_SIGNATURES: usize = 184;

#[test]
fn go_scalars_are_where_the_go_compiler_has_them() {
    let table = include_str!("../data/abi/go_amd64_scalars.txt");
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

/// An assignment, formatted like a line of the table.
fn go_line(signature: &Signature, assignment: &Assignment) -> String {
    let place = |value: &Value| match (value.passing(), value.parts(), value.home_off()) {
        (Passing::Area(offset), ..) => format!("[arg+{offset}]"),
        (_, [part], Some(home)) => format!("{part}@{home}"),
        (_, [part], None) => part.to_string(),
        other => panic!("a scalar has one location: {other:?}"),
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

/// The number of vectors.
const GO_VECTORS: usize = 1501;

#[test]
fn go_vectors_equal_in_every_key() {
    let packed = include_bytes!("../data/abi/go_vectors.jsonl.zz");
    let text = miniz_oxide::inflate::decompress_to_vec_zlib(packed).expect("a zlib stream");
    let text = String::from_utf8(text).expect("JSON is UTF-8");
    let stride = if cfg!(miri) { 100 } else { 1 };
    let mut lines = 0;
    for line in text.lines().step_by(stride) {
        let vector: Json = serde_json::from_str(line).expect("JSON");
        let types = |key: &str| -> Vec<Type> {
            let list = vector[key].as_array().expect("a list of types");
            list.iter().map(go_type).collect()
        };
        let signature = Signature::new(types("params"), types("results"));
        let layouts = |types: &[Type]| -> Json {
            let layouts = types.iter().map(|ty| ty.layout(Language::Go));
            let pair = |l: Layout| json!([l.size_bytes, l.align_bytes]);
            layouts.map(pair).collect()
        };
        let assign = |convention: Convention| convention.assign(&signature).expect("assignable");
        let mut found = json!({
            "layout": [layouts(signature.params()), layouts(signature.results())],
            "abi0": go_abi0(&assign(Convention::GoAbi0)),
            "amd64": go_abi_internal(&assign(Convention::GoAbiInternal)),
            "arm64": go_abi_internal(&assign(Convention::GoAbiInternalAarch64)),
        });
        assert_eq!(found["abi0"], go_abi0(&assign(Convention::GoAbi0Aarch64)), "{signature}");
        // Keys that are not compared: the inputs.
        for key in ["id", "src", "params", "results", "recv"] {
            if let Some(value) = vector.get(key) {
                found[key] = value.clone();
            }
        }
        assert_eq!(found, vector, "{signature}");
        lines += 1;
    }
    assert_eq!(lines, GO_VECTORS.div_ceil(stride));
}

/// A type of a vector: `"i8"`, `{"array":[2,"i8"]}`.
fn go_type(json: &Json) -> Type {
    if let Json::String(name) = json {
        let text = match name.as_str() {
            "int" => "isize",
            "uint" | "uintptr" => "usize",
            "unsafeptr" => "ptr",
            "c64" => "complex<f32>",
            "c128" => "complex<f64>",
            same => same,
        };
        return text.parse().expect("a type");
    }
    let (kind, of) = json.as_object().expect("a type").iter().next().expect("one key");
    match kind.as_str() {
        "ptr" => Type::Ptr,
        "slice" => Type::GoSlice,
        "array" => {
            let length = of[0].as_u64().expect("a length");
            Type::array(length as u32, go_type(&of[1])).expect("small")
        }
        "struct" => {
            let fields = of.as_array().expect("fields").iter().map(go_type);
            Type::structure(fields.collect::<Vec<_>>()).expect("small")
        }
        kind => panic!("unknown kind of type: {kind}"),
    }
}

fn go_abi0(assignment: &Assignment) -> Json {
    let offsets = |values: &[Value]| -> Json {
        let offset = |value: &Value| match value.passing() {
            Passing::Area(offset) => *offset,
            other => panic!("ABI0 does not use {other:?}"),
        };
        values.iter().map(offset).collect()
    };
    assert_eq!(assignment.spill_bytes(), 0);
    json!({
        "p": offsets(assignment.params()),
        "r": offsets(assignment.results()),
        "args": assignment.args_bytes(),
        "ret": assignment.results_off(),
        "end": assignment.results_off() + assignment.results_bytes(),
        "total": assignment.total_bytes(),
    })
}

fn go_abi_internal(assignment: &Assignment) -> Json {
    /// The assembler's name of a register.
    fn name(place: Place) -> String {
        match place {
            Place::Reg(Reg::Gpr(gpr)) => gpr.to_string().trim_start_matches('r').to_uppercase(),
            Place::Reg(Reg::Xmm(xmm)) => format!("X{}", u8::from(xmm)),
            Place::Reg(Reg::Xreg(xreg)) => format!("R{}", u8::from(xreg)),
            Place::Reg(Reg::Vreg(vreg)) => format!("F{}", u8::from(vreg)),
            other => panic!("not a register: {other}"),
        }
    }
    let values = |values: &[Value]| -> Json {
        let value = |value: &Value| match value.passing() {
            Passing::Area(offset) => json!({ "stack": offset }),
            Passing::Parts(parts) => {
                let part = |p: &footbridge::abi::Part| {
                    let name = name(p.place);
                    // On amd64, R8 to R11 are spelled with their R.
                    let name = match name.parse::<u8>() {
                        Ok(number) => format!("R{number}"),
                        Err(_) => name,
                    };
                    json!([name, p.off, p.size])
                };
                let mut json = json!({ "regs": parts.iter().map(part).collect::<Json>() });
                if let Some(home) = value.home_off() {
                    json["spill"] = home.into();
                }
                json
            }
            other => panic!("ABIInternal does not use {other:?}"),
        };
        values.iter().map(value).collect()
    };
    json!({
        "p": values(assignment.params()),
        "r": values(assignment.results()),
        "args": assignment.args_bytes(),
        "ret": assignment.results_off(),
        "end": assignment.results_off() + assignment.results_bytes(),
        "spill": [assignment.spill_off(), assignment.spill_bytes()],
        "total": assignment.total_bytes(),
    })
}
