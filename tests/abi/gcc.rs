//! Assignments against gcc: random signatures are compiled and called, and every register and the
//! stack are compared. `FOOTBRIDGE_ABI_GCC_CASES` sets the number of signatures, `FOOTBRIDGE_SEED`
//! the seed.
//!
//! A caller compiled by gcc passes known bytes to an assembly function that stores the whole
//! machine state. A function compiled by gcc returns known bytes to an assembly function that does
//! the same. Both are done with gcc's System V and with its `ms_abi`.
#![cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::Command;
use support::gcc::{self, has_gcc_and_avx2};
use support::settings::{number_or, seed_or};

use footbridge::abi::model::Xorshift;
use footbridge::abi::{
    Assignment, Convention, Extend, Narrow, Passing, Place, Reg, RegClass, Signature, Type, Value,
    VectorWidth,
};
use support::c_types::{C, data, random_bytes, random_signature};

/// Stores the registers in the layout of `struct state`, and calls `note`.
const ASSEMBLY: &str = r#"
    .text
    .globl capture
capture:
    movq %rax, state(%rip)
    movq %rcx, state+8(%rip)
    movq %rdx, state+16(%rip)
    movq %rbx, state+24(%rip)
    movq %rsp, state+32(%rip)
    movq %rbp, state+40(%rip)
    movq %rsi, state+48(%rip)
    movq %rdi, state+56(%rip)
    movq %r8, state+64(%rip)
    movq %r9, state+72(%rip)
    VECTORS
    pushq %rbp
    movq %rsp, %rbp
    subq $256, %rsp
    andq $-64, %rsp
    movaps %xmm6, 0(%rsp)
    movaps %xmm7, 16(%rsp)
    movaps %xmm8, 32(%rsp)
    movaps %xmm9, 48(%rsp)
    movaps %xmm10, 64(%rsp)
    movaps %xmm11, 80(%rsp)
    movaps %xmm12, 96(%rsp)
    movaps %xmm13, 112(%rsp)
    movaps %xmm14, 128(%rsp)
    movaps %xmm15, 144(%rsp)
    movq %rsi, 160(%rsp)
    movq %rdi, 168(%rsp)
    vzeroupper
    call note
    movaps 0(%rsp), %xmm6
    movaps 16(%rsp), %xmm7
    movaps 32(%rsp), %xmm8
    movaps 48(%rsp), %xmm9
    movaps 64(%rsp), %xmm10
    movaps 80(%rsp), %xmm11
    movaps 96(%rsp), %xmm12
    movaps 112(%rsp), %xmm13
    movaps 128(%rsp), %xmm14
    movaps 144(%rsp), %xmm15
    movq 160(%rsp), %rsi
    movq 168(%rsp), %rdi
    leaq memory(%rip), %rax
    leave
    ret

    # void fetch(void *function, void *memory)
    .globl fetch
fetch:
    pushq %rbp
    movq %rsp, %rbp
    pushq %rbx
    subq $40, %rsp
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rsi, %rcx
    finit
    call *%rax
    movq %rax, state(%rip)
    movq %rdx, state+16(%rip)
    VECTORS
    fstpt x87(%rip)
    fstpt x87+16(%rip)
    finit
    vzeroupper
    movq -8(%rbp), %rbx
    leave
    ret
    .section .note.GNU-stack,"",@progbits
"#;

const PRELUDE: &str = r#"
#include <stdio.h>
#include <string.h>
struct state { unsigned long general[10]; unsigned char vector[16][32]; } state __attribute__((aligned(64)));
unsigned char x87[32];
unsigned char memory[4096] __attribute__((aligned(64)));
void capture(void);
/* Through a variable: a call of a known function follows its declaration, not the cast. */
static void *volatile captured = capture;
void fetch(void *, void *);
#define MS __attribute__((ms_abi))
struct ref { int general; int stack; int size; };
static struct ref refs[32];
static int n_refs, n_stack, id;
static void hex(const char *what, const void *from, long n) {
    const unsigned char *p = from;
    printf("%s ", what);
    for (long i = 0; i < n; i++) printf("%02x", p[i]);
    printf("\n");
}
static void vectors(void) {
    for (int i = 0; i < 8; i++) { char name[8]; sprintf(name, "v%d", i); hex(name, state.vector[i], 32); }
}
void note(void) {
    static const char *names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9"};
    printf("case %d\n", id);
    for (int i = 0; i < 10; i++) hex(names[i], &state.general[i], 8);
    vectors();
    unsigned char *base = (unsigned char *)state.general[4] + 8;
    hex("stack", base, n_stack);
    for (int i = 0; i < n_refs; i++) {
        unsigned char *p;
        if (refs[i].general >= 0) p = (unsigned char *)state.general[refs[i].general];
        else memcpy(&p, base + refs[i].stack, 8);
        hex("ref", p, refs[i].size);
    }
}
static void returned(int number, int size) {
    printf("case %d\n", number);
    hex("rax", &state.general[0], 8);
    hex("rdx", &state.general[2], 8);
    vectors();
    hex("x87", x87, 32);
    void *where = memory;
    hex("where", &where, 8);
    hex("memory", memory, size);
}
"#;

struct Case {
    signature: Signature,
    convention: Convention,
    assignment: Assignment,
    args: Vec<Vec<u8>>,
    result: Option<Vec<u8>>,
}

fn c_bytes(bytes: &[u8]) -> String {
    let list: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("{{{}}}", if list.is_empty() { "0".to_owned() } else { list.join(",") })
}

/// The C function of a case. It calls `capture` with the arguments, and `fetch` with a function
/// that returns the result.
fn c_case(c: &mut C, number: usize, case: &Case, text: &mut String) -> std::fmt::Result {
    let attribute = match case.convention {
        Convention::Win64 => "MS ",
        _ => "",
    };
    let types: Vec<String> = case.signature.params().iter().map(|ty| c.name(ty)).collect();
    let result = case.signature.results().first().map(|ty| c.name(ty));
    let result = result.unwrap_or("void".to_owned());
    if let Some(bytes) = &case.result {
        writeln!(text, "static {attribute}{result} result_{number}(void) {{")?;
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
                Place::Reg(register) => (i32::from(general(*register)), 0),
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
    let params = match case.signature.named_params() {
        Some(named) => {
            let named = types[..named].join(", ");
            format!("{named}, ...")
        }
        None if types.is_empty() => "void".to_owned(),
        None => types.join(", "),
    };
    let args = list.join(", ");
    writeln!(text, "  (({attribute}{result} (*)({params}))captured)({args});")?;
    if case.result.is_some() {
        let size = case.assignment.results()[0].layout().size_bytes;
        writeln!(text, "  memset(memory, 0xee, sizeof memory);")?;
        writeln!(text, "  fetch(result_{number}, memory); returned({number}, {size});")?;
    }
    writeln!(text, "}}")
}

/// The hardware number of a general-purpose register.
fn general(register: Reg) -> u8 {
    match register {
        Reg::Gpr(gpr) => gpr.into(),
        other => panic!("{other} is not a general-purpose register"),
    }
}

/// The values that were captured for one case, by name.
type Seen = HashMap<String, Vec<Vec<u8>>>;

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(|pair| byte(pair).expect("hexadecimal")).collect()
}

fn check_value(value: &Value, bytes: &[u8], seen: &Seen, refs: &mut usize, what: &str) {
    let data = data(value.ty());
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
            *refs += 1;
            same(0, found, place);
        }
        Passing::Parts(parts) => {
            for part in parts {
                let found = match part.place {
                    Place::Reg(register) if register.class() == RegClass::General => {
                        &seen[&register.to_string()][0]
                    }
                    Place::Reg(register) => &seen[&register.to_string().replace("xmm", "v")][0],
                    Place::X87(position) => &seen["x87"][0][usize::from(position) * 16..].to_vec(),
                    other => panic!("{other}"),
                };
                let found = &found[..part.size.min(found.len() as u32) as usize];
                same(part.off as usize, found, part);
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_where_gcc_has_them() {
    if !has_gcc_and_avx2() {
        return;
    }
    let count = number_or("FOOTBRIDGE_ABI_GCC_CASES", 300) as usize;
    let seed = seed_or(1);
    let mut rng = Xorshift::new(seed);

    let mut cases = Vec::new();
    while cases.len() < count {
        let signature = random_signature(&mut rng, 12, VectorWidth::V256);
        let convention = [Convention::SystemV, Convention::Win64][cases.len() % 2];
        let Ok(assignment) = convention.assign(&signature) else {
            continue;
        };
        let mut bytes = |types: &[Type]| -> Vec<Vec<u8>> {
            types.iter().map(|ty| random_bytes(&mut rng, ty)).collect()
        };
        cases.push(Case {
            args: bytes(signature.params()),
            result: bytes(signature.results()).pop(),
            signature,
            convention,
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
    let vectors: String =
        (0..8).map(|i| format!("vmovups %ymm{i}, state+{}(%rip)\n    ", 80 + 32 * i)).collect();
    let folder = std::env::temp_dir().join(format!("footbridge-abi-gcc-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for temporary files");
    let path = |name: &str| folder.join(name);
    std::fs::write(path("cases.c"), source).expect("written");
    std::fs::write(path("capture.s"), ASSEMBLY.replace("VECTORS", &vectors)).expect("written");
    let arguments = ["-O1", "-mavx2", "-w", "-Wno-psabi", "-no-pie"];
    gcc::compile("gcc", &arguments, &path("cases"), &[&path("cases.c"), &path("capture.s")]);
    let run = Command::new(path("cases")).output().expect("runs");
    assert!(run.status.success(), "{folder:?}: {}", run.status);
    let output = String::from_utf8(run.stdout).expect("ASCII");

    let mut checked = 0;
    for block in output.split("case ").skip(1) {
        let mut lines = block.lines();
        let number: usize = lines.next().and_then(|n| n.parse().ok()).expect("a number");
        let mut seen = Seen::new();
        for line in lines {
            let (name, bytes) = line.split_once(' ').expect("a name");
            seen.entry(name.to_owned()).or_default().push(unhex(bytes));
        }
        let case = &cases[number];
        let (convention, signature, assignment) =
            (case.convention, &case.signature, &case.assignment);
        let what = format!("seed {seed}, {convention} {signature}\n{assignment}");
        if seen.contains_key("stack") {
            let mut refs = 0;
            for (value, bytes) in assignment.params().iter().zip(&case.args) {
                check_value(value, bytes, &seen, &mut refs, &what);
                let size = value.layout().size_bytes;
                if let ([part], true, true, Narrow::ExtendedTo32) =
                    (value.parts(), value.ty().is_word(), size < 4, convention.spec().narrow)
                {
                    let found = &seen[&part.to_string()][0];
                    let fill = match Extend::of(value.ty()) {
                        Extend::Sign if bytes[size as usize - 1] >= 0x80 => 0xff,
                        _ => 0,
                    };
                    assert!(found[size as usize..4].iter().all(|b| *b == fill), "{what}");
                }
            }
            if let Some((register, vectors)) = assignment.vector_count() {
                assert_eq!(seen[&register.to_string()][0][0], vectors, "al: {what}");
            }
        } else {
            let bytes = case.result.as_ref().expect("a result");
            check_value(&assignment.results()[0], bytes, &seen, &mut 0, &what);
            if let Some(pointer) = assignment.result_pointer() {
                let register = pointer.returned.expect("on amd64");
                assert_eq!(seen[&register.to_string()], seen["where"], "{what}");
            }
        }
        checked += 1;
    }
    let results = cases.iter().filter(|case| case.result.is_some()).count();
    assert_eq!(checked, cases.len() + results);
    std::fs::remove_dir_all(&folder).expect("removed");
}
