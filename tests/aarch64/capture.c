/* The fixed part of the program of gcc.rs. It prints the values that a call passed. */
#include <stdio.h>
#include <string.h>
struct state { unsigned long general[9], sp; unsigned char vector[8][16]; } state __attribute__((aligned(16)));
unsigned char memory[4096] __attribute__((aligned(64)));
void capture(void);
/* Called through a variable: gcc calls a known function by its declaration, not by the cast. */
static void *volatile captured = capture;
void fetch(void *, void *);
struct ref { int general; int stack; int size; };
static struct ref refs[32];
static int n_refs, n_stack, id;
static void hex(const char *what, const void *from, long n) {
    const unsigned char *p = from;
    printf("%s ", what);
    for (long i = 0; i < n; i++) printf("%02x", p[i]);
    printf("\n");
}
static void registers(int number) {
    char name[8];
    printf("case %d\n", number);
    for (int i = 0; i < 9; i++) { sprintf(name, "x%d", i); hex(name, &state.general[i], 8); }
    for (int i = 0; i < 8; i++) { sprintf(name, "v%d", i); hex(name, state.vector[i], 16); }
}
void note(void) {
    registers(id);
    unsigned char *base = (unsigned char *)state.sp;
    hex("stack", base, n_stack);
    for (int i = 0; i < n_refs; i++) {
        unsigned char *p;
        if (refs[i].general >= 0) p = (unsigned char *)state.general[refs[i].general];
        else memcpy(&p, base + refs[i].stack, 8);
        hex("ref", p, refs[i].size);
        hex("address", &p, 8);
    }
}
static void returned(int number, int size) {
    registers(number);
    hex("memory", memory, size);
}
