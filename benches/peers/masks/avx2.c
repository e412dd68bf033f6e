/* Makes a process see a CPU that has AVX2 and nothing newer.
 *
 * Preloaded, it asks Linux to trap CPUID (`arch_prctl(ARCH_SET_CPUID, 0)`; the CPU or its hypervisor must
 * offer `cpuid_fault`) and answers the trap with the CPU's own words less the bits of AVX-512, AMX,
 * AVX-VNNI and what came with them. Whatever an engine asks, itself or through a library, it then takes the path it would take on
 * a CPU without them. Time is spent only where CPUID is executed, which engines do while they start.
 * Threads inherit the trap; a program that is executed starts without it and preloads this again.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

static void trap_cpuid(int on) {
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, on ? 0L : 1L) != 0) {
        perror("avx2 mask: CPUID cannot be trapped here");
        _exit(1);
    }
}

/* The registers as the CPU gives them, less what came after AVX2. */
static void masked(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    if (leaf == 7 && subleaf == 0) {
        /* AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL */
        r[1] &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; GFNI, VAES and VPCLMULQDQ are as new */
        r[2] &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14));
        /* AVX-512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX-BF16; AVX-512 FP16; AMX-TILE, AMX-INT8 */
        r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    } else if (leaf == 7 && subleaf == 1) {
        /* AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
        r[0] &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));
        r[3] &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
    } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        /* tiles, their multiplier, AVX10 */
        memset(r, 0, 4 * sizeof *r);
    } else if (leaf == 0xd && subleaf == 0) {
        /* states the system keeps: x87, SSE, AVX */
        r[0] &= 7;
        r[3] = 0;
    }
}

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)info;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *at = (const uint8_t *)g[REG_RIP];
    if (at[0] != 0x0f || at[1] != 0xa2) {
        /* Not ours: the instruction runs again, and ends the process as it would have. */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    uint32_t r[4];
    trap_cpuid(0);
    masked((uint32_t)g[REG_RAX], (uint32_t)g[REG_RCX], r);
    trap_cpuid(1);
    g[REG_RAX] = r[0];
    g[REG_RBX] = r[1];
    g[REG_RCX] = r[2];
    g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    trap_cpuid(1);
}
