// Stores the registers in the layout of `struct state` in capture.c, and calls `note`.
    .text
    .macro store_arguments
    stp x0, x1, [x16]
    stp x2, x3, [x16, #16]
    stp x4, x5, [x16, #32]
    stp x6, x7, [x16, #48]
    str x8, [x16, #64]
    mov x17, sp
    str x17, [x16, #72]
    stp q0, q1, [x16, #80]
    stp q2, q3, [x16, #112]
    stp q4, q5, [x16, #144]
    stp q6, q7, [x16, #176]
    .endm

    .globl capture
capture:
    adrp x16, state
    add x16, x16, :lo12:state
    store_arguments
    stp x29, x30, [sp, #-16]!
    mov x29, sp
    bl note
    ldp x29, x30, [sp], #16
    ret

    // void fetch(void *function, void *memory)
    .globl fetch
fetch:
    stp x29, x30, [sp, #-16]!
    mov x29, sp
    mov x16, x0
    mov x8, x1
    blr x16
    adrp x16, state
    add x16, x16, :lo12:state
    store_arguments
    ldp x29, x30, [sp], #16
    ret
    .section .note.GNU-stack,"",@progbits
