//! Golden listings of adapters between any two AArch64 conventions: one without a frame where that
//! is possible, and one with a frame. `BLESS=1` rewrites them.

use std::fmt::Write as _;

use footbridge::abi::{Convention, Signature};
use footbridge::jit::{AdapterCode, AdapterSpec, Binding};
use yaxpeax_arch::{Decoder, U8Reader};
use yaxpeax_arm::armv8::a64::InstDecoder;

use Convention::{Aapcs64, AppleAarch64, GoAbi0Aarch64, GoAbiInternalAarch64};

fn code(signature: &str, entry: Convention, target: Convention, binding: Binding) -> AdapterCode {
    let signature: Signature = signature.parse().expect("a signature");
    let spec = AdapterSpec::new(&signature, entry, target).binding(binding).g_tls_off_bytes(16);
    AdapterCode::new(&spec).unwrap_or_else(|e| panic!("{entry} to {target}, {signature}: {e}"))
}

/// The instructions up to the cells. Addresses of cells are printed as `target` and `context`.
fn listing(code: &AdapterCode) -> String {
    let mut lines = String::new();
    let end = code.target_off_bytes();
    let mut reader = U8Reader::new(&code.bytes()[..end]);
    for at in (0..end).step_by(4) {
        if code.bytes()[at..at + 4] == [0; 4] {
            assert_eq!(at + 4, end, "only the last word is not an instruction");
            continue;
        }
        let decoded = InstDecoder::default().decode(&mut reader).expect("an instruction");
        let mut line = decoded.to_string();
        let cells = [(Some(end), "target"), (code.context_off_bytes(), "context")];
        for (cell, name) in cells {
            if let Some(cell) = cell
                && let Some((load, _)) = line.split_once(&format!("$+{:#x}", cell - at))
            {
                line = format!("{load}{name}");
            }
        }
        writeln!(lines, "    {line}").expect("a String takes everything");
    }
    lines
}

#[test]
fn adapters_are_these_instructions() {
    let c = [Aapcs64, AppleAarch64];
    let all = [Aapcs64, AppleAarch64, GoAbi0Aarch64, GoAbiInternalAarch64];
    let mut text = String::new();
    let mut show = |signature: &str, entry, target, binding, without_frame: bool| {
        let code = code(signature, entry, target, binding);
        assert_eq!(code.is_tail_jump(), without_frame, "{entry} to {target}: {signature}");
        let bind = match binding {
            Binding::None => "",
            Binding::Closure => ", binds a closure",
            Binding::FirstArgument => ", binds a first argument",
            other => unreachable!("{other:?} is not drawn"),
        };
        let frame = if without_frame { "no frame" } else { "frame" };
        let listing = listing(&code);
        writeln!(text, "{entry} to {target}: {signature}{bind} ({frame})\n{listing}")
            .expect("a String takes everything");
    };
    for entry in all {
        for target in all {
            match (c.contains(&entry), c.contains(&target)) {
                (true, true) => {
                    let first = Binding::FirstArgument;
                    show("fn(i64, f64, i16) -> i64", entry, target, first, true);
                    show(
                        "fn([u8; 12], [u8; 12], [u8; 12], [u8; 12]) -> i8",
                        entry,
                        target,
                        first,
                        false,
                    );
                }
                (false, false) => {
                    let (short, long) = match target {
                        GoAbi0Aarch64 => ("fn()", "fn(i8, f32, string) -> (i8, f64)"),
                        _ => ("fn(i8, f32, string)", "fn(i8, [i32; 2]) -> [i64; 2]"),
                    };
                    show(short, entry, target, Binding::Closure, true);
                    let bind = match entry == target {
                        true => Binding::FirstArgument,
                        false => Binding::None,
                    };
                    show(long, entry, target, bind, false);
                }
                _ => show("fn(i8, f32, string) -> f64", entry, target, Binding::None, false),
            }
        }
    }

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/adapters/aarch64.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &text).expect("writable");
    }
    let golden = std::fs::read_to_string(path).expect("the golden file");
    assert!(text == golden, "set BLESS=1 and review the difference\n{text}");
}
