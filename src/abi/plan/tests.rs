use super::*;
use crate::abi::reg::{Gpr, RegClass};
use crate::abi::{Convention, Signature};

const R12: RegSet = RegSet::of_gprs(&[Gpr::R12]);

fn signature(text: &str) -> Signature {
    text.parse().expect("a signature")
}

fn assign(convention: Convention, text: &str) -> Assignment {
    convention.assign(&signature(text)).expect("assignable")
}

fn go(text: &str) -> Assignment {
    assign(Convention::GoAbiInternal, text)
}

fn sysv(text: &str) -> Assignment {
    assign(Convention::SystemV, text)
}

fn packed(text: &str) -> Assignment {
    Assignment::packed(&signature(text))
}

fn plan(
    entry: &Assignment,
    target: &Assignment,
    bound_param: Option<usize>,
    scratch: RegSet,
) -> Result<Plan, PlanError> {
    Plan::new(&PlanRequest {
        entry,
        target,
        bound_param,
        arg_scratch: scratch,
        result_scratch: scratch,
    })
}

/// The lines of a plan that needs no scratch.
fn lines(entry: &Assignment, target: &Assignment, bound: Option<usize>) -> Vec<String> {
    let plan = plan(entry, target, bound, RegSet::EMPTY).expect("plannable");
    plan.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn go_arguments_are_extended_for_c() {
    let text = "fn(i8, u16, i32, bool, f32) -> i8";
    assert_eq!(
        lines(&go(text), &sysv(text), None),
        ["rsi <- zero2 rbx", "rdx <- 4 rcx", "rcx <- zero1 rdi", "rdi <- sign1 rax", "call"]
    );
}

#[test]
fn c_results_and_go_results_in_place() {
    let text = "fn() -> i8";
    assert_eq!(lines(&go(text), &sysv(text), None), ["call"]);
    assert_eq!(lines(&sysv(text), &go(text), None), ["call", "rax <- sign1 rax"]);
}

#[test]
fn c_arguments_move_in_an_order_that_overwrites_none() {
    // System V rdi rsi rdx rcx r8 to Go rax rbx rcx rdi rsi.
    let text = "fn(i64, i64, i64, i64, i64)";
    assert_eq!(
        lines(&sysv(text), &go(text), None),
        ["rax <- rdi", "rbx <- rsi", "rdi <- rcx", "rcx <- rdx", "rsi <- r8", "call"]
    );
}

#[test]
fn a_cycle_is_exchanged() {
    // After the context, the second argument goes from rsi to rcx, the fourth from rcx to rsi.
    let entry = sysv("fn(i64, i64, i64, i64)");
    let target = go("fn(ptr, i64, i64, i64, i64)");
    assert_eq!(
        lines(&entry, &target, Some(0)),
        ["rbx <- rdi", "rdi <- rdx", "rsi <-> rcx", "rax <- 8 context", "call"]
    );
}

#[test]
fn whole_words_go_to_the_stack_of_c() {
    let text = "fn(i64, i64, i64, i64, i64, i64, i8, f32, i32)";
    let plan = plan(&go(text), &sysv(text), None, RegSet::EMPTY).expect("plannable");
    let steps: Vec<String> = plan.args.iter().take(3).map(Step::to_string).collect();
    assert_eq!(
        steps,
        ["r9 <- sign1 r9", "[target+0] <- 8 r9", "[target+8] <- 8 r10"].map(str::to_owned)
    );
    assert_eq!(plan.target_area_bytes, 16);
}

#[test]
fn a_bound_context_comes_last() {
    let entry = sysv("fn(i32, f64)");
    assert_eq!(lines(&entry, &sysv("fn(i32, f64, ptr)"), Some(2)), ["rsi <- 8 context", "call"]);
    assert_eq!(
        lines(&entry, &sysv("fn(ptr, i32, f64)"), Some(0)),
        ["rsi <- 4 rdi", "rdi <- 8 context", "call"]
    );
    assert_eq!(
        lines(&entry, &sysv("fn(u8, i32, f64)"), Some(0)),
        ["rsi <- 4 rdi", "rdi <- 8 context", "rdi <- zero1 rdi", "call"]
    );
    let target = packed("fn(i32, f64, ptr)");
    let plan = plan(&entry, &target, Some(2), R12).expect("plannable");
    assert_eq!(
        plan.to_string(),
        "[target+0] <- 4 rdi\n[target+8] <- 8 xmm0\nr12 <- 8 context\n\
         [target+16] <- 8 r12\ncall\n"
    );
    assert_eq!(plan.writes, R12);
    assert_eq!(plan.target_area_bytes, 32);
}

#[test]
fn memory_is_loaded_after_everything_else() {
    let text = "fn(i8, f32, u32) -> (bool, f64)";
    assert_eq!(
        lines(&packed(text), &go(text), None),
        [
            "rax <- sign1 [entry+0]",
            "xmm0 <- 4 [entry+8]",
            "rbx <- 4 [entry+16]",
            "call",
            "[entry result+0] <- 1 rax",
            "[entry result+8] <- 8 xmm0"
        ]
    );
}

#[test]
fn memory_is_copied_through_a_register_that_is_free() {
    let text = "fn(i16, f64)";
    let (entry, target) = (packed(text), packed(text));
    let copied = plan(&entry, &target, None, R12).expect("plannable");
    assert_eq!(
        copied.to_string(),
        "r12 <- sign2 [entry+0]\n[target+0] <- 2 r12\nr12 <- 8 [entry+8]\n\
         [target+8] <- 8 r12\ncall\n"
    );
    let error = plan(&entry, &target, None, RegSet::ALL_XMMS).expect_err("no scratch");
    assert_eq!(
        error.to_string(),
        "parameter 0 needs a general-purpose scratch register on its way; offer one in \
         arg_scratch that carries no value"
    );

    // rcx still waits for its move; r10 gets its value later and is free until then.
    let ten = "fn(i64, i64, i64, i64, i64, i64, i64, i64, i64, i64)";
    let offered = RegSet::of_gprs(&[Gpr::RCX, Gpr::R10]);
    let busy = plan(&sysv(ten), &go(ten), None, offered).expect("plannable");
    assert_eq!(busy.args[0].to_string(), "r10 <- 8 [entry+24]");

    // rdi was stored and is free.
    let stored =
        plan(&sysv("fn(i32)"), &packed("fn(i32, ptr)"), Some(1), RegSet::of_gprs(&[Gpr::RDI]));
    let steps: Vec<String> = stored.expect("plannable").args.iter().map(Step::to_string).collect();
    assert_eq!(steps, ["[target+0] <- 4 rdi", "rdi <- 8 context", "[target+8] <- 8 rdi"]);
}

/// The lines of a plan between C conventions, with scratch.
fn c_lines(entry: Convention, target: Convention, text: &str) -> Vec<String> {
    let (entry, target) = (assign(entry, text), assign(target, text));
    let plan = plan(&entry, &target, None, R12).expect("plannable");
    plan.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn parts_that_agree_go_from_register_to_register() {
    // f64 is an integer to Win64 when it is in a struct, and stays one.
    assert_eq!(
        c_lines(
            Convention::SystemV,
            Convention::Win64,
            "fn(struct { f64 }, struct { f32, i8 }, complex<f32>)"
        ),
        ["rcx <- xmm0", "rdx <- rdi", "r8 <- xmm1", "call"]
    );
    // The padding after i8 holds no data.
    let text = "fn(struct { i64, i8 })";
    assert_eq!(lines(&sysv(text), &go(text), None), ["rax <- rdi", "rbx <- 4 rsi", "call"]);
}

#[test]
fn parts_that_differ_pass_through_staging() {
    let text = "fn(struct { i64, i32, i32 })";
    assert_eq!(
        lines(&go(text), &sysv(text), None),
        [
            "[staging+8] <- 4 rbx",
            "[staging+12] <- 4 rcx",
            "rdi <- rax",
            "rsi <- 8 [staging+8]",
            "call"
        ]
    );
}

#[test]
fn tails_are_neither_over_read_nor_over_written() {
    let text = "fn([u8; 7])";
    let (entry, target) = (assign(Convention::GoAbi0, text), sysv(text));
    let to_registers = plan(&entry, &target, None, R12).expect("plannable");
    assert_eq!(
        to_registers.to_string(),
        "r12 <- 4 [entry+0]\n[staging+0] <- 4 r12\nr12 <- zero2 [entry+4]\n\
         [staging+4] <- 2 r12\nr12 <- zero1 [entry+6]\n[staging+6] <- 1 r12\n\
         rdi <- 8 [staging+0]\ncall\n"
    );
    let to_memory = plan(&target, &entry, None, R12).expect("plannable");
    assert_eq!(
        to_memory.to_string(),
        "[staging+0] <- 8 rdi\nr12 <- 4 [staging+0]\n[target+0] <- 4 r12\n\
         r12 <- zero2 [staging+4]\n[target+4] <- 2 r12\nr12 <- zero1 [staging+6]\n\
         [target+6] <- 1 r12\ncall\n"
    );
    assert_eq!((to_memory.staging_bytes, to_memory.frame_bytes()), (16, 32));
}

#[test]
fn an_empty_value_by_reference_has_an_aligned_address() {
    let text = "fn(struct align(64) {})";
    let plan = plan(&sysv(text), &assign(Convention::Win64, text), None, R12);
    let plan = plan.expect("plannable");
    assert_eq!(plan.to_string(), "rcx <- address [staging+0]\ncall\n");
    assert_eq!((plan.frame_bytes(), plan.frame_align_bytes()), (80, 64));
}

#[test]
fn references_and_hidden_results() {
    // The entry's memory for the result is the target's. The argument is copied for Win64.
    assert_eq!(
        c_lines(Convention::SystemV, Convention::Win64, "fn(struct { i64, i32 }) -> [i64; 3]"),
        [
            "[staging+0] <- 8 rsi",
            "[staging+8] <- 8 rdx",
            "rcx <- rdi",
            "rdx <- address [staging+0]",
            "call"
        ]
    );
    // System V returns it in registers, Win64's caller wants it in memory.
    assert_eq!(
        c_lines(Convention::Win64, Convention::SystemV, "fn() -> struct { i64, i32 }"),
        [
            "[staging+0] <- 8 rcx",
            "call",
            "r12 <- 8 [staging+0]",
            "[r12+0] <- 8 rax",
            "[r12+8] <- 8 rdx",
            "rax <- 8 [staging+0]"
        ]
    );
    // The other way round.
    assert_eq!(
        c_lines(Convention::SystemV, Convention::Win64, "fn() -> struct { i64, i32 }"),
        ["rcx <- address [staging+0]", "call", "rax <- 8 [staging+0]", "rdx <- 8 [staging+8]"]
    );
}

#[test]
fn x87_and_variadics() {
    assert_eq!(c_lines(Convention::SystemV, Convention::SystemV, "fn() -> longdouble"), ["call"]);
    assert_eq!(
        c_lines(Convention::Win64, Convention::SystemV, "fn() -> longdouble"),
        ["[staging+0] <- 8 rcx", "call", "rax <- 8 [staging+0]", "[rax+0] <- pop x87"]
    );
    let complex = "fn() -> complex<longdouble>";
    assert_eq!(
        c_lines(Convention::SystemV, Convention::Win64, complex),
        [
            "rcx <- address [staging+0]",
            "call",
            "push x87 <- [staging+16]",
            "push x87 <- [staging+0]"
        ]
    );
    let variadic = "fn(ptr, ..., f64)";
    assert_eq!(
        c_lines(Convention::Win64, Convention::SystemV, variadic),
        ["rdi <- rcx", "xmm0 <- xmm1", "rax <- 1", "call"]
    );
    assert_eq!(
        c_lines(Convention::SystemV, Convention::Win64, variadic),
        ["rcx <- rdi", "xmm1 <- xmm0", "rdx <- xmm0", "call"]
    );
}

#[test]
fn what_a_stub_must_save() {
    let saved = |entry: Convention, target: Convention, text| {
        let (entry, target) = (assign(entry, text), assign(target, text));
        let plan = plan(&entry, &target, None, R12).expect("plannable");
        plan.must_save(&entry, &target).to_string()
    };
    let text = "fn(i64)";
    let (sysv, win64) = (Convention::SystemV, Convention::Win64);
    assert_eq!(saved(sysv, sysv, text), "{}");
    assert_eq!(
        saved(win64, sysv, text),
        "{rsi, rdi, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15}"
    );
    assert_eq!(saved(sysv, Convention::GoAbiInternal, text), "{rbx, r12, r13, r14, r15}");
    assert_eq!(
        saved(Convention::Aapcs64, Convention::GoAbi0Aarch64, text),
        "{x19, x20, x21, x22, x23, x24, x25, x26, x27, x28, v8, v9, v10, v11, v12, v13, v14, \
         v15}"
    );
}

#[test]
fn values_that_no_stub_can_carry_are_named() {
    let text = "fn(i8, struct { i64, struct {} })";
    let error = plan(&go(text), &sysv(text), None, R12).expect_err("no plan");
    assert_eq!(
        error.to_string(),
        "parameter 1 (struct { i64, struct {} }): C and Go lay it out differently, because Go \
         pads after a last field of size 0; leave that field out"
    );
    let aarch64 = assign(Convention::Aapcs64, "fn()");
    let error = plan(&sysv("fn()"), &aarch64, None, R12).expect_err("no plan");
    assert_eq!(error.to_string(), "SystemV is a convention of amd64, Aapcs64 one of aarch64");
    let win64 = |text| assign(Convention::Win64, text);
    let text = "fn([i64; 1000], [i64; 1000]) -> [i64; 1000]";
    let buffers = packed(text);
    let error = plan(&buffers, &win64(text), None, R12).expect_err("no plan");
    assert_eq!(
        error.to_string(),
        "the stub needs 24032 bytes of stack for copies of values, at most 8192 are \
         possible; pass pointers instead"
    );
    // Refused before it makes millions of steps, also where no staging area is needed.
    let megabytes = Assignment::packed(&signature("fn([u8; 4000000])"));
    let error = plan(&megabytes, &megabytes, None, R12).expect_err("no plan");
    assert!(matches!(error, PlanError::FrameTooLarge { bytes: 4_000_000, .. }), "{error}");
    let most = "fn([[u8; 536870912]; 2], [[u8; 536870912]; 2], [[u8; 536870912]; 2]) -> i8";
    let most = Assignment::packed(&signature(most));
    let error = plan(&most, &most, None, R12).expect_err("no plan");
    assert!(matches!(error, PlanError::FrameTooLarge { .. }), "{error}");
    // By reference on both sides, nothing is copied.
    let passed = plan(&win64(text), &win64(text), None, R12).expect("plannable");
    assert_eq!((passed.staging_bytes, passed.args.len()), (0, 0));
}

#[test]
fn results_use_their_own_scratch() {
    let buffers = packed("fn() -> i32");
    let request = PlanRequest {
        entry: &buffers,
        target: &buffers,
        bound_param: None,
        arg_scratch: R12,
        result_scratch: RegSet::EMPTY,
    };
    let error = Plan::new(&request).expect_err("no scratch");
    let (value, class) = (ValueIndex::Result(0), RegClass::General);
    assert_eq!(error, PlanError::NoScratch { value, class });
}

#[test]
fn mismatches_are_named() {
    let error = |entry: &str, target: &str, bound| {
        plan(&go(entry), &go(target), bound, R12).expect_err("no plan").to_string()
    };
    assert_eq!(
        error("fn(i64)", "fn(u64)", None),
        "parameter 0 is i64 at the entry and u64 at the target; assign both sides from one \
         signature, apart from the bound parameter"
    );
    assert!(
        error("fn(i64)", "fn()", None).starts_with("parameter 0 is i64 at the entry and nothing")
    );
    assert!(
        error("fn()", "fn(i8, ptr)", Some(1))
            .starts_with("parameter 0 is nothing at the entry and i8")
    );
    assert!(error("fn() -> i8", "fn() -> u8", None).starts_with("result 0 is i8"));
    assert_eq!(
        error("fn()", "fn(ptr)", Some(1)),
        "parameter 1 cannot be bound: the target has 1 parameters, counted from 0"
    );
    assert_eq!(
        error("fn()", "fn(f32)", Some(0)),
        "parameter 0 (f32) cannot be bound: a bound parameter is an integer or a pointer"
    );
}
