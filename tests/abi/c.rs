//! The assignments of the C conventions as tables: the examples of the ABI documents first, then
//! each kind of type by the rules. Where gcc 12 has the convention, the tables were checked against
//! it.

use footbridge::abi::{Convention, Signature};

/// A signature, its assignment, and `args_bytes total_bytes area_align_bytes`.
type Row = (&'static str, &'static str, [u32; 3]);

fn check(convention: Convention, rows: &[Row]) {
    for (text, expected, sizes) in rows {
        let signature: Signature = text.parse().expect(text);
        let assignment = convention.assign(&signature).expect(text);
        assert_eq!(assignment.to_string(), *expected, "{convention} {text}");
        let found =
            [assignment.args_bytes(), assignment.total_bytes(), assignment.area_align_bytes()];
        assert_eq!(found, *sizes, "{convention} {text}");
    }
}

fn refused(convention: Convention, text: &str) -> String {
    let signature: Signature = text.parse().expect(text);
    convention.assign(&signature).expect_err(text).to_string()
}

#[test]
fn system_v() {
    check(
        Convention::SystemV,
        &[
            // psABI 3.2.3, Figures 3.5 and 3.6.
            (
                "fn(i32, i32, struct { i32, i32, f64 }, i32, i32, longdouble, f64, v256, v512, \
                 f64, i32, i32, i32)",
                "p0: rdi  p1: rsi  p2.0: rdx  p2.8: xmm0  p3: rcx  p4: r8  p5: [arg+0]  p6: xmm1  \
                 p7: ymm2  p8: zmm3  p9: xmm4  p10: r9  p11: [arg+16]  p12: [arg+24]",
                [32, 32, 16],
            ),
            // Two floats share an eightbyte. Merged with an integer, the eightbyte is INTEGER.
            (
                "fn(struct { f32, f32, f32 }, struct { f32, i32 }, complex<f32>, complex<f64>)",
                "p0.0: xmm0  p0.8: xmm1  p1: rdi  p2: xmm2  p3.0: xmm3  p3.8: xmm4",
                [0, 0, 16],
            ),
            // Eightbytes that are not full.
            (
                "fn([i8; 3], struct { i64, [u8; 7] }, struct packed(1) { i32, u8 })",
                "p0: rdi  p1.0: rsi  p1.8: rdx  p2: rcx",
                [0, 0, 16],
            ),
            // All or nothing (psABI 3.2.3): the pair does not fit in r9 alone, so r9 is left for
            // p7.
            (
                "fn(i64, i64, i64, i64, i64, i128, struct { i64, i64 }, i8, i8)",
                "p0: rdi  p1: rsi  p2: rdx  p3: rcx  p4: r8  p5: [arg+0]  p6: [arg+16]  p7: r9  \
                 p8: [arg+32]",
                [40, 40, 16],
            ),
            // __int128 is aligned to 16 bytes in memory, and so is a struct that contains one.
            (
                "fn(longdouble, i64, i64, i64, i64, i64, i64, i8, struct { i8, i128 })",
                "p0: [arg+0]  p1: rdi  p2: rsi  p3: rdx  p4: rcx  p5: r8  p6: r9  p7: [arg+16]  \
                 p8: [arg+32]",
                [64, 64, 16],
            ),
            // MEMORY: too large, unaligned, x87 mixed with others.
            (
                "fn(struct { i64, i64, i8 }, struct packed(1) { i8, i16 }, \
                 union { longdouble, i64 }, struct { longdouble })",
                "p0: [arg+0]  p1: [arg+24]  p2: [arg+32]  p3: [arg+48]",
                [64, 64, 16],
            ),
            // Packed, but every field is naturally aligned.
            ("fn(struct packed(1) { i64, i8 })", "p0.0: rdi  p0.8: rsi", [0, 0, 16]),
            // Over-aligned: the second eightbyte has no class and takes no register.
            ("fn(struct align(16) { i64 }, i8)", "p0: rdi  p1: rsi", [0, 0, 16]),
            ("fn(struct align(32) { i64 })", "p0: [arg+0]", [32, 32, 32]),
            // The classes of a union's fields are merged.
            (
                "fn(union { f64, i8 }, union { f64, f32 }, union { v128, struct { f64, f64 } })",
                "p0: rdi  p1: xmm0  p2.0: xmm1  p2.8: xmm2",
                [0, 0, 16],
            ),
            // A merge to MEMORY puts the whole union in memory.
            (
                "fn(union { longdouble, v128 }, union { v256, i64 }, union { longdouble, f64 })",
                "p0: [arg+0]  p1: [arg+32]  p2: [arg+64]",
                [80, 80, 32],
            ),
            // Merging further fields does not change MEMORY.
            (
                "fn(union { longdouble, struct { f64, f64 }, struct { i64, i64 } }, i8)",
                "p0: [arg+0]  p1: rdi",
                [16, 16, 16],
            ),
            // Vectors.
            (
                "fn(v64, v128, struct { v128 }, struct { v256 }, struct { v128, i8 }, [v128; 2])",
                "p0: xmm0  p1: xmm1  p2: xmm2  p3: ymm3  p4: [arg+0]  p5: [arg+32]",
                [64, 64, 16],
            ),
            // The ninth vector is in memory. Its alignment raises that of the area.
            (
                "fn(f64, f64, f64, f64, f64, f64, f64, f64, f32, v512, v256)",
                "p0: xmm0  p1: xmm1  p2: xmm2  p3: xmm3  p4: xmm4  p5: xmm5  p6: xmm6  p7: xmm7  \
                 p8: [arg+0]  p9: [arg+64]  p10: [arg+128]",
                [160, 160, 64],
            ),
            // To C, Go's types are structs.
            (
                "fn(string, slice, any, func)",
                "p0.0: rdi  p0.8: rsi  p1: [arg+0]  p2.0: rdx  p2.8: rcx  p3: r8",
                [24, 24, 16],
            ),
            // A type of size 0 has no location.
            ("fn(struct {}, i8, [i64; 0])", "p0: nothing  p1: rdi  p2: nothing", [0, 0, 16]),
            // Results.
            ("fn() -> struct { i64, f64 }", "r0.0: rax  r0.8: xmm0", [0, 0, 16]),
            ("fn() -> struct { f32, f32, i8 }", "r0.0: xmm0  r0.8: rax", [0, 0, 16]),
            ("fn() -> i128", "r0.0: rax  r0.8: rdx", [0, 0, 16]),
            ("fn() -> complex<f64>", "r0.0: xmm0  r0.8: xmm1", [0, 0, 16]),
            ("fn() -> longdouble", "r0: st0", [0, 0, 16]),
            ("fn() -> struct { longdouble }", "r0: st0", [0, 0, 16]),
            ("fn() -> complex<longdouble>", "r0.0: st0  r0.16: st1", [0, 0, 16]),
            ("fn() -> v512", "r0: zmm0", [0, 0, 16]),
            ("fn() -> struct {}", "r0: nothing", [0, 0, 16]),
            ("fn(i8) -> struct { complex<longdouble> }", "p0: rsi  r0: [rdi] at rax", [0, 0, 16]),
            ("fn() -> [i8; 17]", "r0: [rdi] at rax", [0, 0, 16]),
            // Unnamed structs of two eightbytes are passed like named ones.
            ("fn(ptr, ..., struct { i64, f64 })", "p0: rdi  p1.0: rsi  p1.8: xmm0", [0, 0, 16]),
            // Unnamed wide vectors are in memory.
            (
                "fn(v256, ..., v256, v128, i32)",
                "p0: ymm0  p1: [arg+0]  p2: xmm1  p3: rdi",
                [32, 32, 32],
            ),
        ],
    );
    for text in [
        "fn(struct { f32, [i32; 0] })",
        "fn() -> struct packed(4) { i32, [v128; 0] }",
        "fn(..., union { v256 })",
        "fn([struct packed(2) { i32, bool }; 2])",
        "fn() -> struct { [struct packed(1) { i16, i8 }; 3] }",
    ] {
        let error = refused(Convention::SystemV, text);
        assert!(error.contains("gcc and clang disagree where"), "{error}");
    }
    for (text, vectors) in [
        ("fn(ptr, ...)", 0),
        ("fn(f32, ..., f64, i32, complex<f64>)", 4),
        ("fn(f64, f64, f64, f64, f64, f64, f64, f64, f64, ...)", 8),
    ] {
        let signature: Signature = text.parse().expect(text);
        let assignment = Convention::SystemV.assign(&signature).expect(text);
        let (register, count) = assignment.vector_count().expect("variadic");
        assert_eq!((register.to_string(), count), ("rax".to_owned(), vectors), "{text}");
    }
    let fixed = Convention::SystemV.assign(&"fn(f64)".parse().expect("a signature"));
    assert_eq!(fixed.expect("assignable").vector_count(), None);
}

#[test]
fn win64() {
    check(
        Convention::Win64,
        &[
            // "Parameter passing", examples 1 to 4.
            (
                "fn(i32, i32, i32, i32, i32, i32)",
                "p0: rcx  p1: rdx  p2: r8  p3: r9  p4: [arg+32]  p5: [arg+40]",
                [48, 48, 16],
            ),
            (
                "fn(f32, f64, f32, f64, f32, f32)",
                "p0: xmm0  p1: xmm1  p2: xmm2  p3: xmm3  p4: [arg+32]  p5: [arg+40]",
                [48, 48, 16],
            ),
            (
                "fn(i32, f64, i32, f32, i32, f32)",
                "p0: rcx  p1: xmm1  p2: r8  p3: xmm3  p4: [arg+32]  p5: [arg+40]",
                [48, 48, 16],
            ),
            (
                "fn(v64, v128, [i32; 3], f32, v128, v128)",
                "p0: rcx  p1: [rdx]  p2: [r8]  p3: xmm3  p4: [[arg+32]]  p5: [[arg+40]]",
                [48, 48, 16],
            ),
            // "Return values", examples 1 to 4.
            (
                "fn(i32, f32, i32, i32, i32) -> i64",
                "p0: rcx  p1: xmm1  p2: r8  p3: r9  p4: [arg+32]  r0: rax",
                [40, 40, 16],
            ),
            (
                "fn(f32, f64, i32, v64) -> v128",
                "p0: xmm0  p1: xmm1  p2: r8  p3: r9  r0: xmm0",
                [32, 32, 16],
            ),
            (
                "fn(i32, f64, i32, f32) -> struct { i32, i32, i32 }",
                "p0: rdx  p1: xmm2  p2: r9  p3: [arg+32]  r0: [rcx] at rax",
                [40, 40, 16],
            ),
            ("fn() -> struct { i32, i32 }", "r0: rax", [0, 32, 16]),
            // A small struct is passed as an integer, whatever its fields are.
            (
                "fn(struct { f64 }, struct { f32 }, complex<f32>, struct { i8, i8, i8 }, [i8; 8])",
                "p0: rcx  p1: rdx  p2: r8  p3: [r9]  p4: [arg+32]",
                [40, 40, 16],
            ),
            // Types that only GNU C has.
            (
                "fn(longdouble, i128, struct {}, complex<f64>) -> longdouble",
                "p0: [rdx]  p1: [r8]  p2: [r9]  p3: [[arg+32]]  r0: [rcx] at rax",
                [40, 40, 16],
            ),
            ("fn() -> i128", "r0: xmm0", [0, 32, 16]),
            ("fn() -> complex<f32>", "r0: rax", [0, 32, 16]),
            ("fn() -> [i8; 3]", "r0: [rcx] at rax", [8, 32, 16]),
            ("fn() -> struct { v128 }", "r0: [rcx] at rax", [8, 32, 16]),
            ("fn() -> struct {}", "r0: nothing", [0, 32, 16]),
            // "Varargs": unnamed floats are in both the vector and the integer register.
            (
                "fn(f64, ..., f64, i32, struct { f64 }, f64)",
                "p0: xmm0  p1.0: xmm1  p1.0: rdx  p2: r8  p3: r9  p4: [arg+32]",
                [40, 40, 16],
            ),
        ],
    );
    assert_eq!(
        refused(Convention::Win64, "fn() -> v256"),
        "Win64, result 0 (v256): Microsoft's compiler returns it in a register, GNU C in memory; \
         return it through a pointer parameter"
    );
    let homes = Convention::Win64.assign(&"fn(i8, f32, v128, i8, i8)".parse().expect("one"));
    let homes = homes.expect("assignable");
    let homes: Vec<_> = homes.params().iter().map(|p| p.home_off()).collect();
    assert_eq!(homes, [Some(0), Some(8), None, Some(24), None]);
    let spec = Convention::Win64.spec();
    assert_eq!(
        spec.preserved.to_string(),
        "{rbx, rbp, rsi, rdi, r12, r13, r14, r15, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, \
         xmm13, xmm14, xmm15}"
    );
}

#[test]
fn aapcs64() {
    check(
        Convention::Aapcs64,
        &[
            ("fn(i64, f32, ptr, f64) -> u8", "p0: x0  p1: v0  p2: x1  p3: v1  r0: x0", [0, 0, 16]),
            // C.2: homogeneous aggregates of up to four, nested, in arrays, unions and complex.
            (
                "fn(struct { f32, f32, f32 }, [f64; 4]) -> struct { f32, struct { f32 } }",
                "p0.0: v0  p0.4: v1  p0.8: v2  p1.0: v3  p1.8: v4  p1.16: v5  p1.24: v6  r0.0: v0  \
                 r0.4: v1",
                [0, 0, 16],
            ),
            (
                "fn(complex<f64>, union { f32, [f32; 2] }, struct { v128, v128 }, struct { v64 })",
                "p0.0: v0  p0.8: v1  p1.0: v2  p1.4: v3  p2.0: v4  p2.16: v5  p3: v6",
                [0, 0, 16],
            ),
            // Not homogeneous: five, two types, padding, an array of length 0.
            (
                "fn([f32; 5], struct { f32, f64 }, struct align(16) { f64 }, \
                 struct { f32, [f32; 0] })",
                "p0: [x0]  p1.0: x1  p1.8: x2  p2.0: x3  p2.8: x4  p3: x5",
                [0, 0, 16],
            ),
            // An element's alignment counts as natural alignment for its array, and for nothing
            // else.
            (
                "fn(i32, [struct align(16) { i64 }; 1], struct align(16) { i64 })",
                "p0: x0  p1.0: x2  p1.8: x3  p2.0: x4  p2.8: x5",
                [0, 0, 16],
            ),
            ("fn() -> struct {}", "r0: nothing", [0, 0, 16]),
            // The largest types. Their elements are not walked, which would take a minute.
            ("fn([u8; 1073741824], [[f32; 1024]; 262144])", "p0: [x0]  p1: [x1]", [0, 0, 16]),
            // An empty field does not end a homogeneous aggregate.
            ("fn(struct { f64, struct {} })", "p0: v0", [0, 0, 16]),
            // But it does where one complex number or one short vector fills the rest of the
            // struct.
            (
                "fn(struct { [v128; 0], v128 }, struct { struct { [i8; 0] }, [complex<f32>; 1] }, \
                 union { [v128; 0], v128 }, struct { struct { [v64; 0], v64 }, v64 })",
                "p0: v0  p1.0: v1  p1.4: v2  p2.0: x0  p2.8: x1  p3.0: x2  p3.8: x3",
                [0, 0, 16],
            ),
            // C.3: an aggregate that does not fit ends the allocation of vector registers.
            (
                "fn(f64, f64, f64, f64, f64, f64, [f64; 3], f32, i8)",
                "p0: v0  p1: v1  p2: v2  p3: v3  p4: v4  p5: v5  p6: [arg+0]  p7: [arg+24]  p8: x0",
                [32, 32, 16],
            ),
            // C.10: 16-byte alignment starts at an even register.
            (
                "fn(i8, i128, struct { i128 }, i8)",
                "p0: x0  p1.0: x2  p1.8: x3  p2.0: x4  p2.8: x5  p3: x6",
                [0, 0, 16],
            ),
            // That is natural alignment: `align` on the whole type does not count, on a nested type
            // it does.
            (
                "fn(i8, struct align(16) { i64, i64 }, i8, struct { struct align(16) { i64 } })",
                "p0: x0  p1.0: x1  p1.8: x2  p2: x3  p3.0: x4  p3.8: x5",
                [0, 0, 16],
            ),
            // C.13: a composite that does not fit ends the allocation of x registers; C.14.
            (
                "fn(i64, i64, i64, i64, i64, i64, i64, struct { i64, i64 }, i8, i128, i16)",
                "p0: x0  p1: x1  p2: x2  p3: x3  p4: x4  p5: x5  p6: x6  p7: [arg+0]  p8: [arg+16]  \
                 p9: [arg+32]  p10: [arg+48]",
                [56, 56, 16],
            ),
            // B.4: by reference, in registers and on the stack.
            (
                "fn([i64; 3], i64, i64, i64, i64, i64, i64, i64, [i8; 17], i8) -> [i8; 17]",
                "p0: [x0]  p1: x1  p2: x2  p3: x3  p4: x4  p5: x5  p6: x6  p7: x7  p8: [[arg+0]]  \
                 p9: [arg+8]  r0: [x8]",
                [16, 16, 16],
            ),
            // binary128, and composites whose last word is not full.
            (
                "fn(longdouble, complex<longdouble>, [i8; 3], [i8; 13]) -> longdouble",
                "p0: v0  p1.0: v1  p1.16: v2  p2: x0  p3.0: x1  p3.8: x2  r0: v0",
                [0, 0, 16],
            ),
            // Vectors that are not short vectors are passed like any large type.
            ("fn(v64, v128, v256) -> v256", "p0: v0  p1: v1  p2: [x0]  r0: [x8]", [0, 0, 16]),
            ("fn() -> i128", "r0.0: x0  r0.8: x1", [0, 0, 16]),
            ("fn() -> struct { i64, i8 }", "r0.0: x0  r0.8: x1", [0, 0, 16]),
            // Unnamed arguments are passed like named ones.
            ("fn(i8, ..., f64, i32)", "p0: x0  p1: v0  p2: x1", [0, 0, 16]),
            ("fn(struct {}, i8)", "p0: nothing  p1: x0", [0, 0, 16]),
            (
                "fn(f32, f32, f32, f32, f32, f32, f32, f32, f32, [f32; 3], v128, [f32; 1])",
                "p0: v0  p1: v1  p2: v2  p3: v3  p4: v4  p5: v5  p6: v6  p7: v7  p8: [arg+0]  \
                 p9: [arg+8]  p10: [arg+32]  p11: [arg+48]",
                [56, 56, 16],
            ),
        ],
    );
}

#[test]
fn apple() {
    check(
        Convention::AppleAarch64,
        &[
            // Register pairs need not start at an even register.
            ("fn(i8, i128)", "p0: x0  p1.0: x1  p1.8: x2", [0, 0, 16]),
            // Scalars on the stack are packed; structs occupy whole words.
            (
                "fn(i64, i64, i64, i64, i64, i64, i64, i64, i8, i16, i32, i8, [i8; 3], i8, f64)",
                "p0: x0  p1: x1  p2: x2  p3: x3  p4: x4  p5: x5  p6: x6  p7: x7  p8: [arg+0]  \
                 p9: [arg+2]  p10: [arg+4]  p11: [arg+8]  p12: [arg+16]  p13: [arg+24]  p14: v0",
                [25, 32, 16],
            ),
            // clang: an array of length 0 makes an aggregate non-homogeneous.
            ("fn(struct { [v128; 0], v128 })", "p0.0: x0  p0.8: x1", [0, 0, 16]),
            // Unnamed arguments are on the stack, each in whole words.
            (
                "fn(ptr, ..., i32, f64, i128, [f32; 2])",
                "p0: x0  p1: [arg+0]  p2: [arg+8]  p3: [arg+16]  p4: [arg+32]",
                [40, 40, 16],
            ),
        ],
    );
    assert_eq!(
        refused(Convention::AppleAarch64, "fn(struct { longdouble })"),
        "AppleAarch64, parameter 0 (struct { longdouble }): Apple's long double is f64"
    );
    for convention in [Convention::Aapcs64, Convention::AppleAarch64] {
        let error = refused(convention, "fn(v256, struct { i8, [v256; 0] })");
        assert!(error.contains("parameter 1"), "{error}");
        assert!(error.contains("vectors of more than 128 bits are aligned to 16 bytes"), "{error}");
    }
}

#[test]
fn what_a_convention_cannot_carry_is_named() {
    for convention in [Convention::GoAbi0, Convention::GoAbiInternalAarch64] {
        for ty in ["i128", "v64", "longdouble", "[union { i8 }; 2]", "struct packed(1) { i8 }"] {
            let error = refused(convention, &format!("fn(i8, {ty})"));
            assert_eq!(
                error,
                format!(
                    "{convention}, parameter 1 ({ty}): Go has no 128-bit integers, long doubles, \
                     vectors, unions, and no packed or aligned structs"
                )
            );
        }
        assert_eq!(
            refused(convention, "fn(ptr, ...)"),
            format!("{convention}: Go has no `...` parameters like C's; pass a slice")
        );
    }
    for convention in [Convention::SystemV, Convention::Win64, Convention::Aapcs64] {
        for ty in ["f32", "bool", "i16"] {
            let error = refused(convention, &format!("fn({ty}, ..., {ty})"));
            let expected = format!("{convention}, parameter 1 ({ty}): C promotes it");
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = refused(convention, "fn() -> (i8, i8)");
        assert!(error.contains("returns one value"), "{error}");
        let error = refused(convention, &format!("fn({})", "[i64; 2], ".repeat(600)));
        assert!(error.contains("ends more than 4096 bytes into the stack area"), "{error}");
    }
}

#[test]
fn facts() {
    for convention in Convention::ALL {
        let spec = convention.spec();
        let all = spec.arch.registers();
        let kept = all.minus(spec.volatile());
        assert_eq!(spec.name, convention.to_string());
        assert!(spec.preserved.minus(kept).is_empty(), "{convention}");
        assert!(spec.reserved.minus(kept).is_empty(), "{convention}");
        let lists = [spec.int_args, spec.float_args, spec.int_results, spec.float_results];
        for register in lists.into_iter().flatten() {
            assert!(spec.volatile().contains(*register), "{convention} {register}");
            assert_eq!(register.arch(), spec.arch);
        }
    }
    let aapcs64 = Convention::Aapcs64.spec();
    assert_eq!(aapcs64.preserved_low64.to_string(), "{v8, v9, v10, v11, v12, v13, v14, v15}");
    assert_eq!(aapcs64.volatile().len(), 31 + 32 - 12);
}
