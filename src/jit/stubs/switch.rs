//! The stubs that switch stacks: gogo, mcall, systemstack, goroutine entry.
//!
//! All but systemstack are *jumped to*, never called: a `call` that no `ret` answers would set the
//! return predictor off by one for the rest of the thread. Whoever jumps says in a register
//! where it wants to be resumed, and declares every register clobbered but the four in the Gobuf.
//! They leave by an indirect jump, for the same reason. (The switch from one goroutine to the next
//! does the same without a stub: `runtime/switch.rs`.)
//!
//! Registers between the Rust call sites (`runtime/switch.rs`) and these stubs:
//!
//! | | gogo | mcall |
//! | --- | --- | --- |
//! | rdi | | Gobuf to save to |
//! | rsi | Gobuf to go to | rsp of the system stack |
//! | rcx | | where to resume |
//! | rdx | | function to call there |
//! | r8 | | its argument |
//!
//! A goroutine that starts is a Gobuf like any other, whose pc is the entry stub.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};

use crate::jit::emit::x86_64::Emitter;
use crate::jit::{Arena, FrameClass, JitError, Ops, STUB_BYTES, StubKind, StubSpec};

/// Offsets in the structure that a context is saved to.
#[derive(Clone, Copy)]
pub(crate) struct GobufLayout {
    pub(crate) sp: i32,
    pub(crate) pc: i32,
    pub(crate) bp: i32,
    pub(crate) bx: i32,
}

/// Addresses of the stubs.
#[derive(Clone, Copy)]
pub(crate) struct SwitchStubs {
    pub(crate) gogo: usize,
    pub(crate) mcall: usize,
    pub(crate) systemstack: usize,
    pub(crate) goroutine_entry: usize,
}

/// Emits all of them. `goroutine_main` is the Rust function that a goroutine starts in; it gets
/// the address of the Gobuf and does not return.
pub(crate) fn emit(
    arena: &'static Arena,
    gobuf: GobufLayout,
    goroutine_main: usize,
) -> Result<SwitchStubs, JitError> {
    let stub = |name, kind, class, body: &dyn Fn(&mut Emitter<'_>)| {
        let spec = StubSpec { name, kind, class, signature: None, user_data: 0 };
        let emitted = arena.emit(&spec, STUB_BYTES, |ops| {
            let mut emitter = Emitter::new(ops, arena.range());
            body(&mut emitter);
            emitter.finish();
            if class == FrameClass::Standard { 4 } else { 0 }
        });
        emitted.map(|id| id.start())
    };
    let root = FrameClass::Root;
    Ok(SwitchStubs {
        gogo: stub("gogo", StubKind::Switch, root, &|e| load_and_jump(e.ops, gobuf))?,
        mcall: stub("mcall", StubKind::Switch, root, &|e| {
            save(e.ops, gobuf);
            // Now on the system stack, from its top: what an earlier mcall left there is dead.
            // rbp = 0 ends chains. The function does not return, it ends in a gogo: a `call` would
            // leave the return predictor one off, so the return address is pushed by hand.
            dynasm!(e.ops
                ; .arch x64
                ; mov rsp, rsi
                ; xor ebp, ebp
                ; mov rdi, r8
                ; lea rax, [>after]
                ; push rax
                ; jmp rdx
                ; after:
                ; ud2
            );
        })?,
        systemstack: stub(
            "systemstack",
            StubKind::Systemstack,
            FrameClass::Standard,
            // systemstack(argument: rdi, function: rsi, rsp of the system stack: rdx), called.
            // rbp stays in the goroutine's stack: one rule, CFA = rbp+16, crosses over.
            &|e| {
                dynasm!(e.ops
                    ; .arch x64
                    ; push rbp
                    ; mov rbp, rsp
                    ; mov rsp, rdx
                    ; call rsi
                    ; leave
                    ; ret
                );
            },
        )?,
        goroutine_entry: stub("goroutine entry", StubKind::GoroutineEntry, root, &|e| {
            // First instruction of a goroutine: rsp at the top of its stack, 16-aligned, rbp = 0,
            // rsi = its Gobuf. Like mcall's, its function does not return.
            dynasm!(e.ops; .arch x64; mov rdi, rsi; lea rax, [>after]; push rax);
            e.jump(goroutine_main);
            dynasm!(e.ops; .arch x64; after:; ud2);
        })?,
    })
}

/// Saves what a resumption needs. The rest is the compiler's business at the call site. The pc comes
/// last: who finds one finds the rest.
fn save(ops: &mut Ops, gobuf: GobufLayout) {
    dynasm!(ops
        ; .arch x64
        ; mov [rdi + gobuf.sp], rsp
        ; mov [rdi + gobuf.bp], rbp
        ; mov [rdi + gobuf.bx], rbx
        ; mov [rdi + gobuf.pc], rcx
    );
}

/// From the first of these instructions to the last, rsp belongs to neither side as a whole: a
/// walk that finds a pc here stops. The saved pc is cleared: the context is no longer there to be
/// continued, or looked at.
fn load_and_jump(ops: &mut Ops, gobuf: GobufLayout) {
    dynasm!(ops
        ; .arch x64
        ; mov rcx, [rsi + gobuf.pc]
        ; mov rsp, [rsi + gobuf.sp]
        ; mov rbp, [rsi + gobuf.bp]
        ; mov rbx, [rsi + gobuf.bx]
        ; mov QWORD [rsi + gobuf.pc], 0
        ; jmp rcx
    );
}
