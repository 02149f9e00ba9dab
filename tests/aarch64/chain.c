/* The fixed part of the program of chain.rs. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
static void hex(const char *what, const void *from, long n) {
    const unsigned char *p = from;
    printf("%s ", what);
    for (long i = 0; i < n; i++) printf("%02x", p[i]);
    printf("\n");
}
static unsigned char *code;
static int calls;
/* Copies an adapter to executable memory, with the address of its target in the cell. */
static void *place(long at, const unsigned char *bytes, long n, long target_off, void *target) {
    memcpy(code + at, bytes, n);
    memcpy(code + at + target_off, &target, 8);
    __builtin___clear_cache((char *)code + at, (char *)code + at + n);
    return code + at;
}
