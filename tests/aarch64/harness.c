/* Runs adapters on AArch64: harness CASES > SEEN.
 *
 * The harness knows no convention. Each case gives the contents of every register and of memory at
 * the call of the adapter, what the target writes and returns, and which memory to report. The
 * harness writes the captured state to its standard output. `adapters.rs` writes the cases and
 * compares. All numbers are 64-bit words; byte strings are padded to whole words.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

typedef unsigned long word;
typedef unsigned char byte;

struct machine { word x[31], sp, fpcr, tpidr; byte v[32][16]; } __attribute__((aligned(16)));
struct machine caller, arrived, answer, returned;
word host_sp, host_tp;
void enter(void);
void callee(void);
void crash(int, siginfo_t *, void *);

static word number;
static word *cursor, *code;
static byte *seen;
static word seen_length, calls;

static word next(void) { return *cursor++; }

/* The next bytes of the case. */
static byte *bytes(word length) {
    byte *here = (byte *)cursor;
    cursor += (length + 7) / 8;
    return here;
}

static void put(const void *from, word length) {
    memcpy(seen + seen_length, from, length);
    seen_length += (length + 7) / 8 * 8;
}

static void put_word(word value) { put(&value, 8); }

static void put_machine(const struct machine *machine) {
    put(machine->x, sizeof machine->x);
    put_word(machine->sp);
    put_word(machine->fpcr);
    put(machine->v, sizeof machine->v);
}

/* Reports the current contents of the watched memory. */
static word *watched;
static void put_watched(void) {
    word *list = watched;
    for (word n = *list++; n > 0; n--, list += 2) put((byte *)list[0], list[1]);
}

void report(int signal, siginfo_t *info, void *context) {
    ucontext_t *u = context;
    char line[200];
    word pc = u->uc_mcontext.pc;
    int n = snprintf(line, sizeof line,
        "case %lu: signal %d, address %p, pc %#lx (adapter+%#lx), sp %#llx, target entered %lu times\n",
        number, signal, info->si_addr, pc, pc - (word)code, (unsigned long long)u->uc_mcontext.sp, calls);
    write(2, line, n);
    _exit(3);
}

/* Called by the target, with its state in `arrived`. Sets `answer`. */
void note(void) {
    calls++;
    word base_off = next(), area_bytes = next(), skip_below = next();
    put_machine(&arrived);
    byte *base = (byte *)arrived.sp + base_off;
    put(base, area_bytes);
    put_watched();

    /* Values that are passed by address: a register or an offset in the area, and a size. All
       addresses are read before anything is overwritten. */
    word n = next();
    struct { byte *at; word size; } indirect[64];
    for (word i = 0; i < n; i++) {
        word is_register = next(), where = next();
        indirect[i].size = next();
        if (is_register) indirect[i].at = (byte *)arrived.x[where];
        else memcpy(&indirect[i].at, base + where, 8);
        put_word((word)indirect[i].at);
        put(indirect[i].at, indirect[i].size);
    }
    for (word i = 0; i < n; i++) {
        word writes = next();
        byte *what = bytes(indirect[i].size);
        if (writes) memcpy(indirect[i].at, what, indirect[i].size);
    }
    memcpy(base, bytes(area_bytes), area_bytes);
    memset((byte *)arrived.sp - skip_below - 2048, 0xb5, 2048);

    word keep_x = next(), keep_v_low = next();
    memcpy(answer.x, bytes(sizeof answer.x), sizeof answer.x);
    memcpy(answer.v, bytes(sizeof answer.v), sizeof answer.v);
    for (int i = 0; i < 31; i++) if (keep_x >> i & 1) answer.x[i] = arrived.x[i];
    for (int i = 0; i < 32; i++) if (keep_v_low >> i & 1) memcpy(answer.v[i], arrived.v[i], 8);
    answer.x[30] = arrived.x[30];
    answer.sp = arrived.sp;
    answer.fpcr = arrived.fpcr;
    answer.tpidr = caller.tpidr;
}

static void map(word address, word length, int protection) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    void *got = mmap((void *)address, length, protection, flags, -1, 0);
    if (got != (void *)address) { perror("mmap"); exit(2); }
}

int main(int argc, char **argv) {
    FILE *file = fopen(argv[1], "rb");
    if (argc != 2 || !file) { perror("the file of cases"); return 2; }
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    cursor = malloc(length);
    if (fread(cursor, 1, length, file) != length) { perror("read"); return 2; }
    seen = malloc(1 << 20);

    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = crash, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    for (int i = 0; i < 4; i++) sigaction(signals[i], &action, NULL);

    word apple_thread_pointer;
    __asm__("mrs %0, tpidrro_el0" : "=r"(apple_thread_pointer));
    if (apple_thread_pointer != 0) {
        fprintf(stderr, "tpidrro_el0 is %#lx, the cases take it for 0\n", apple_thread_pointer);
        return 2;
    }

    word count = next();
    /* The memory of all cases. The pages between its pieces are unmapped. */
    for (word n = next(); n > 0; n--) {
        word address = next(), size = next();
        map(address, size, PROT_READ | PROT_WRITE);
    }
    word code_bytes = 65536;
    code = mmap(NULL, code_bytes, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (number = 0; number < count; number++) {
        memset(seen, 0, 1 << 16);
        seen_length = calls = 0;
        word adapter_bytes = next(), target_off = next();
        memset(code, 0, code_bytes);
        memcpy(code, bytes(adapter_bytes), adapter_bytes);
        word target = (word)callee;
        memcpy((byte *)code + target_off, &target, 8);
        __builtin___clear_cache((char *)code, (char *)code + adapter_bytes);

        memcpy(caller.x, bytes(sizeof caller.x), sizeof caller.x);
        memcpy(caller.v, bytes(sizeof caller.v), sizeof caller.v);
        caller.sp = next();
        caller.fpcr = next();
        caller.tpidr = next();
        caller.x[16] = (word)code;
        for (word n = next(); n > 0; n--) {
            word address = next(), size = next();
            memcpy((void *)address, bytes(size), size);
        }
        /* Garbage below the stack pointer: an adapter must not rely on old contents of its frame. */
        memset((byte *)caller.sp - 16384, 0xa5, 16384 - 16);
        watched = cursor;
        cursor += 1 + 2 * *cursor;

        enter();
        if (calls != 1) {
            fprintf(stderr, "case %lu: the target was called %lu times\n", number, calls);
            return 3;
        }
        put_machine(&returned);
        put_watched();
        if (fwrite(seen, 1, seen_length, stdout) != seen_length) { perror("write"); return 2; }
    }
    return 0;
}
