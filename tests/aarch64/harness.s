// Loads and stores the machine state of harness.c.
//
// struct machine: x0-x30 at 0, sp 248, fpcr 256, tpidr 264, q0-q31 at 272.

    .text

    // Every register except the base, sp and the system registers.
    .macro transfer_vectors op, base
    \op q0, q1, [\base, #272]
    \op q2, q3, [\base, #304]
    \op q4, q5, [\base, #336]
    \op q6, q7, [\base, #368]
    \op q8, q9, [\base, #400]
    \op q10, q11, [\base, #432]
    \op q12, q13, [\base, #464]
    \op q14, q15, [\base, #496]
    \op q16, q17, [\base, #528]
    \op q18, q19, [\base, #560]
    \op q20, q21, [\base, #592]
    \op q22, q23, [\base, #624]
    \op q24, q25, [\base, #656]
    \op q26, q27, [\base, #688]
    \op q28, q29, [\base, #720]
    \op q30, q31, [\base, #752]
    .endm

    .macro transfer_x0_to_x15 op, base
    \op x0, x1, [\base, #0]
    \op x2, x3, [\base, #16]
    \op x4, x5, [\base, #32]
    \op x6, x7, [\base, #48]
    \op x8, x9, [\base, #64]
    \op x10, x11, [\base, #80]
    \op x12, x13, [\base, #96]
    \op x14, x15, [\base, #112]
    .endm

    .macro transfer_x18_to_x29 op, base
    \op x18, x19, [\base, #144]
    \op x20, x21, [\base, #160]
    \op x22, x23, [\base, #176]
    \op x24, x25, [\base, #192]
    \op x26, x27, [\base, #208]
    \op x28, x29, [\base, #224]
    .endm

    // Restores the system registers and sp of the harness.
    .macro host_state
    adrp x0, host_sp
    ldr x1, [x0, #:lo12:host_sp]
    mov sp, x1
    adrp x0, host_tp
    ldr x1, [x0, #:lo12:host_tp]
    msr tpidr_el0, x1
    msr fpcr, xzr
    .endm

    // sp and the system registers of a struct machine.
    .macro case_state base
    ldr x0, [\base, #248]
    mov sp, x0
    ldr x0, [\base, #256]
    msr fpcr, x0
    ldr x0, [\base, #264]
    msr tpidr_el0, x0
    .endm

    // void enter(void): loads `caller`, calls caller.x[16], and stores `returned`.
    .globl enter
enter:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    adrp x0, host_sp
    mov x1, sp
    str x1, [x0, #:lo12:host_sp]
    adrp x0, host_tp
    mrs x1, tpidr_el0
    str x1, [x0, #:lo12:host_tp]
    adrp x30, caller
    add x30, x30, :lo12:caller
    case_state x30
    transfer_vectors ldp, x30
    transfer_x18_to_x29 ldp, x30
    ldp x16, x17, [x30, #128]
    transfer_x0_to_x15 ldp, x30
    blr x16
    // The return address is no longer needed, so x30 is free.
    adrp x30, returned
    add x30, x30, :lo12:returned
    transfer_x0_to_x15 stp, x30
    stp x16, x17, [x30, #128]
    transfer_x18_to_x29 stp, x30
    transfer_vectors stp, x30
    mov x0, sp
    str x0, [x30, #248]
    mrs x0, fpcr
    str x0, [x30, #256]
    host_state
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret

    // The target of every adapter: stores `arrived`, calls `note` on the harness's own stack, and
    // returns with `answer`. x16 and x17 carry no value at a call.
    .globl callee
callee:
    adrp x16, arrived
    add x16, x16, :lo12:arrived
    transfer_x0_to_x15 stp, x16
    transfer_x18_to_x29 stp, x16
    str x30, [x16, #240]
    transfer_vectors stp, x16
    mov x17, sp
    str x17, [x16, #248]
    mrs x17, fpcr
    str x17, [x16, #256]
    host_state
    bl note
    adrp x30, answer
    add x30, x30, :lo12:answer
    case_state x30
    transfer_vectors ldp, x30
    transfer_x18_to_x29 ldp, x30
    ldp x16, x17, [x30, #128]
    transfer_x0_to_x15 ldp, x30
    ldr x30, [x30, #240]
    ret

    // void crash(int, siginfo_t *, void *): a signal handler. The thread pointer may be that of a
    // case.
    .globl crash
crash:
    adrp x3, host_tp
    ldr x3, [x3, #:lo12:host_tp]
    msr tpidr_el0, x3
    b report
    .section .note.GNU-stack,"",@progbits
