//! Golden listings: the code of adapters, instruction by instruction. `BLESS=1` rewrites them.
//!
//! They are examples for readers: each reason for a frame, and each form without a frame, has one.

use std::fmt::Write as _;

use footbridge::abi::{Convention, Signature};
use footbridge::jit::{AdapterCode, AdapterSpec, Binding, FrameClass};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use Convention::{GoAbi0, GoAbiInternal, SystemV, Win64};

/// The offset of `g` from the thread pointer, recognisable in a listing.
const G_OFF: i32 = -0x40;

fn code(signature: &str, entry: Convention, target: Convention, binding: Binding) -> AdapterCode {
    let signature: Signature = signature.parse().expect("a signature");
    let spec = AdapterSpec::new(&signature, entry, target).binding(binding).g_tls_off_bytes(G_OFF);
    AdapterCode::new(&spec).unwrap_or_else(|e| panic!("{entry} to {target}, {signature}: {e}"))
}

/// The instructions up to the cells. Addresses of cells are printed as `target` and `context`.
fn listing(code: &AdapterCode) -> String {
    let mut lines = String::new();
    let end = code.target_off_bytes();
    let decoder = Decoder::with_ip(64, &code.bytes()[..end], 0, DecoderOptions::NONE);
    for instruction in decoder {
        let mut line = String::new();
        if instruction.code() == iced_x86::Code::Int3 {
            continue;
        }
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_rip_relative_addresses(false);
        formatter.options_mut().set_space_after_operand_separator(true);
        formatter.format(&instruction, &mut line);
        for (off, name) in
            [(Some(code.target_off_bytes()), "target"), (code.context_off_bytes(), "context")]
        {
            if let Some(off) = off
                && instruction.is_ip_rel_memory_operand()
                && instruction.ip_rel_memory_address() == off as u64
            {
                let open = line.find('[').expect("a memory operand");
                line.replace_range(open.., &format!("[{name}]"));
            }
        }
        writeln!(lines, "    {line}").expect("a String takes everything");
    }
    lines
}

#[test]
fn adapters_are_these_instructions() {
    let mut text = String::new();
    let mut show = |why: &str, signature: &str, entry, target, binding| {
        let code = code(signature, entry, target, binding);
        let shape = match code.is_tail_jump() {
            true => "no frame",
            false => code.frame_class().name(),
        };
        let bind = match binding {
            Binding::None => "",
            Binding::Closure => ", binds a closure",
            Binding::FirstArgument => ", binds a first argument",
            other => unreachable!("{other:?} is not drawn"),
        };
        writeln!(
            text,
            "# {why}\n{entry} to {target}: {signature}{bind} ({shape})\n{}",
            listing(&code)
        )
        .expect("a String takes everything");
    };
    let none = Binding::None;
    let (closure, first) = (Binding::Closure, Binding::FirstArgument);

    let six = "fn(i64, i64, i64, i64, f64, f64) -> i64";
    show("The locations are equal.", six, SystemV, SystemV, none);
    show("A closure needs no frame.", six, SystemV, SystemV, closure);
    show(
        "A closure needs no frame if there is a stack area, which is the caller's.",
        six,
        Win64,
        Win64,
        closure,
    );
    show("A first argument moves the others.", six, SystemV, SystemV, first);
    show(
        "Values in memory stay there.",
        "fn(f64, f64, f64, f64, f64, f64, f64, f64, f32, i8) -> i8",
        SystemV,
        SystemV,
        first,
    );
    show("Go's context register.", six, GoAbiInternal, GoAbiInternal, closure);
    show("A first argument, ABIInternal.", six, GoAbiInternal, GoAbiInternal, first);
    show(
        "From the stack to registers: the caller's area is large enough for the home slots.",
        "fn(i64, i8, f64)",
        GoAbi0,
        GoAbiInternal,
        none,
    );
    show("A stack area forces a frame.", "fn(i64) -> i64", SystemV, Win64, none);
    show(
        "So does an argument that does not fit in the registers.",
        six,
        GoAbiInternal,
        GoAbi0,
        none,
    );
    show(
        "A register that only the entry's convention preserves forces a frame.",
        "fn(i64) -> i64",
        SystemV,
        GoAbiInternal,
        none,
    );
    show(
        "Registers that unwinders do not restore: all that Win64 preserves is saved.",
        "fn(i64) -> i64",
        Win64,
        SystemV,
        none,
    );
    show("Results that are moved.", "fn() -> (i64, f64)", GoAbi0, GoAbiInternal, none);
    show(
        "Stack alignment, and a register that must be zero.",
        "fn(i8, i64)",
        GoAbiInternal,
        SystemV,
        none,
    );
    show(
        "The goroutine register is saved over a call that destroys it.",
        "fn()",
        GoAbiInternal,
        GoAbi0,
        none,
    );
    show(
        "Win64 preserves the registers that Go pins.",
        "fn(i16) -> i16",
        GoAbiInternal,
        Win64,
        none,
    );
    show(
        "A result in memory, and an argument by reference.",
        "fn(struct { i64, i32 }, [u8; 7]) -> struct { i64, i64 }",
        SystemV,
        Win64,
        none,
    );
    show("A variadic call.", "fn(ptr, ..., f64, i32) -> i32", Win64, SystemV, none);
    show("Wide vectors.", "fn(v256, v512) -> v128", Win64, SystemV, none);
    show("x87.", "fn(longdouble) -> longdouble", Win64, SystemV, none);

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/adapters/x86_64.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &text).expect("writable");
    }
    let golden = std::fs::read_to_string(path).expect("the golden file");
    assert!(text == golden, "set BLESS=1 and review the difference\n{text}");
}

/// Tests the rule at the head of `stubs/adapter/mod.rs` for all pairs of conventions.
#[test]
fn an_adapter_has_a_frame_only_if_one_is_required() {
    let all = [SystemV, Win64, GoAbi0, GoAbiInternal];
    for entry in all {
        for target in all {
            for binding in [Binding::None, Binding::Closure] {
                let code = code("fn()", entry, target, binding);
                let same_pins = entry.spec().pinned == target.spec().pinned;
                // No value is passed, but Win64 has a stack area nevertheless.
                let area = target == Win64 && entry != Win64;
                let unaligned = entry.spec().stack_align_bytes < target.spec().stack_align_bytes;
                let loses = !entry.spec().preserved.minus(target.spec().preserved).is_empty();
                let unpinned = !same_pins && !entry.spec().pinned.is_empty();
                let forced = area || unaligned || loses || unpinned;
                assert_eq!(code.is_tail_jump(), !forced, "{entry} to {target}, {binding:?}");
                assert_eq!(code.frame_class() == FrameClass::Leaf, !forced);
            }
        }
    }
}

#[test]
fn unsupported_signatures_are_refused() {
    let error = |signature: &str, entry, target, binding| {
        let signature: Signature = signature.parse().expect("a signature");
        let spec = AdapterSpec::new(&signature, entry, target).binding(binding);
        AdapterCode::new(&spec).expect_err("refused").to_string()
    };
    assert_eq!(
        error("fn(i8, v128)", SystemV, GoAbi0, Binding::None),
        "GoAbi0, parameter 1 (v128): Go has no 128-bit integers, long doubles, vectors, unions, and \
         no packed or aligned structs"
    );
    assert_eq!(
        error("fn() -> (i8, i8)", GoAbi0, SystemV, Binding::None),
        "SystemV, result 1 (i8): the convention returns one value; return the others through a \
         pointer parameter"
    );
    assert_eq!(
        error("fn()", SystemV, Convention::Aapcs64, Binding::None),
        "SystemV is a convention of amd64, Aapcs64 one of aarch64"
    );
    assert_eq!(
        error("fn()", SystemV, GoAbiInternal, Binding::None),
        "adapter stub: the target's convention has a register for the current goroutine; say where \
         its address is, by `AdapterSpec::g_tls_off_bytes`"
    );
}
