//! Compiled code calls compiled code through two adapters, from AAPCS64 to another convention and
//! back. On both sides gcc decides where every value is.

use std::fmt::Write as _;

use footbridge::abi::model::Xorshift;
use footbridge::abi::{Convention, Language, Signature, Type};
use footbridge::jit::{AdapterCode, AdapterSpec};

use super::adapters::is_expected;
use super::c::{C, c_bytes, data, random_bytes, random_signature};
use super::cross::{self, Folder};
use super::gcc::unhex;
use super::go;

const PRELUDE: &str = include_str!("chain.c");

/// The distance from the first adapter to the second, in bytes.
const SECOND_OFF_BYTES: usize = 1 << 16;

const BETWEEN: [Convention; 4] = [
    Convention::Aapcs64,
    Convention::AppleAarch64,
    Convention::GoAbi0Aarch64,
    Convention::GoAbiInternalAarch64,
];

struct Case {
    signature: Signature,
    between: Convention,
    there: AdapterCode,
    back: AdapterCode,
    args: Vec<Vec<u8>>,
    result: Option<Vec<u8>>,
}

fn random_case(rng: &mut Xorshift, between: Convention) -> Option<Case> {
    let signature = match between.spec().language {
        Language::C => random_signature(rng, false),
        Language::Go => go::random_signature(rng, false),
    };
    let values = || signature.params().iter().chain(signature.results());
    if values().any(|ty| matches!(ty, Type::Array(_))) {
        // C passes pointers to arrays instead of arrays.
        return None;
    }
    let adapter = |entry, target| {
        // The compiled code does not read g, but the adapter loads it: from the thread's first
        // word.
        let spec = AdapterSpec::new(&signature, entry, target).g_tls_off_bytes(0);
        match AdapterCode::new(&spec) {
            Ok(code) => Some(code),
            Err(error) if is_expected(&error) => None,
            Err(error) => panic!("{entry} to {target}, {signature}: {error}"),
        }
    };
    let there = adapter(Convention::Aapcs64, between)?;
    let back = adapter(between, Convention::Aapcs64)?;
    let mut bytes = |types: &[Type]| -> Vec<Vec<u8>> {
        types.iter().map(|ty| random_bytes(rng, ty, Language::C)).collect()
    };
    let (args, result) = (bytes(signature.params()), bytes(signature.results()).pop());
    Some(Case { args, result, there, back, between, signature })
}

fn c_case(c: &mut C, number: usize, case: &Case, text: &mut String) -> std::fmt::Result {
    let types: Vec<String> = case.signature.params().iter().map(|ty| c.name(ty)).collect();
    let (result, params) = (c.result(&case.signature), c.params(&case.signature));
    let named: Vec<String> = types.iter().enumerate().map(|(i, ty)| format!("{ty} a{i}")).collect();
    let named = if named.is_empty() { "void".to_owned() } else { named.join(", ") };
    writeln!(text, "static __attribute__((noipa)) {result} callee_{number}({named}) {{")?;
    writeln!(text, "  calls++;")?;
    for (i, ty) in types.iter().enumerate() {
        writeln!(text, "  hex(\"a\", &a{i}, sizeof({ty}));")?;
    }
    if let Some(bytes) = &case.result {
        writeln!(text, "  static const unsigned char b[] = {};", c_bytes(bytes))?;
        writeln!(text, "  {result} r; memcpy(&r, b, sizeof r); return r;")?;
    }
    writeln!(text, "}}\nstatic __attribute__((noipa)) void case_{number}(void) {{")?;
    let mut list = Vec::new();
    for (i, (ty, bytes)) in types.iter().zip(&case.args).enumerate() {
        writeln!(text, "  static const unsigned char b{i}[] = {};", c_bytes(bytes))?;
        writeln!(text, "  {ty} a{i}; memcpy(&a{i}, b{i}, sizeof a{i});")?;
        list.push(format!("a{i}"));
    }
    for (name, code, at, target) in [
        ("back", &case.back, SECOND_OFF_BYTES, format!("callee_{number}")),
        ("there", &case.there, 0, "back".to_owned()),
    ] {
        let off = code.target_off_bytes();
        writeln!(text, "  static const unsigned char {name}_code[] = {};", c_bytes(code.bytes()))?;
        writeln!(text, "  void *{name} = place({at}, {name}_code, sizeof {name}_code, {off},")?;
        writeln!(text, "    (void *){target});")?;
    }
    writeln!(text, "  printf(\"case {number}\\n\");")?;
    let call = format!("(({result} (*)({params}))there)({})", list.join(", "));
    match case.result {
        Some(_) => writeln!(text, "  {result} r = {call}; hex(\"r\", &r, sizeof r);")?,
        None => writeln!(text, "  {call};")?,
    }
    writeln!(text, "}}")
}

#[test]
fn compiled_code_calls_compiled_code() {
    if !cross::is_available() {
        return;
    }
    let count = cross::cases();
    let seed = cross::seed();
    let mut rng = Xorshift::new(seed);
    let mut cases = Vec::new();
    let mut attempts = 0;
    while cases.len() < count {
        attempts += 1;
        assert!(attempts < 1000 + 100 * count, "no random signature is accepted");
        cases.extend(random_case(&mut rng, BETWEEN[cases.len() % BETWEEN.len()]));
    }

    let mut c = C::default();
    let mut functions = String::new();
    for (number, case) in cases.iter().enumerate() {
        c_case(&mut c, number, case, &mut functions).expect("a string");
    }
    let calls: String = (0..count).map(|i| format!("case_{i}(); ")).collect();
    let source = format!(
        "{PRELUDE}{}{functions}\
         int main(void) {{\n  code = mmap(0, {}, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n  \
         if (code == MAP_FAILED) return 2;\n  {calls}\n  return calls != {count};\n}}\n",
        c.types,
        2 * SECOND_OFF_BYTES
    );
    let folder = Folder::new("a64-chain");
    let program = folder.path("chain");
    cross::compile(&program, &[&folder.write("chain.c", source)]);
    let output = String::from_utf8(cross::run(&program)).expect("ASCII");

    let blocks: Vec<&str> = output.split("case ").skip(1).collect();
    assert_eq!(blocks.len(), count);
    for (block, case) in blocks.into_iter().zip(&cases) {
        let Case { signature, between, args, result, .. } = case;
        let what = format!("seed {seed}, through {between}, {signature}");
        let values = signature.params().iter().zip(args).map(|value| ("a", value));
        let results = signature.results().iter().zip(result).map(|value| ("r", value));
        let mut lines = block.lines().skip(1);
        for (name, (ty, bytes)) in values.chain(results) {
            let line = lines.next().and_then(|line| line.split_once(' ')).expect("a value");
            assert_eq!(line.0, name, "{what}");
            let found = unhex(line.1);
            let data = data(ty, Language::C);
            for (i, byte) in found.iter().enumerate().filter(|(i, _)| data[*i]) {
                assert_eq!(*byte, bytes[i], "{name} {ty}, byte {i}: {what}");
            }
            assert_eq!(found.len(), bytes.len(), "{what}");
        }
        assert_eq!(lines.next(), None, "{what}");
    }
}
