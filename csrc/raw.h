/* raw.h: system calls without libc, for code that runs beside libc: agent, holder, reader.
 *
 * Guarantees: no errno, no TLS, no cancellation point, no lock; every call returns a value or -errno.
 * Async-signal-safe. Works between vfork and exec, and while any thread is held.
 * Fails: only on machines we do not know (#error).
 */
#ifndef UD_RAW_H
#define UD_RAW_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__)

static inline long ud__sys6(long n, long a, long b, long c, long d, long e, long f)
{
    long r;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(r)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}

#elif defined(__aarch64__)

static inline long ud__sys6(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}

#else
#error "udedup knows x86_64 and aarch64"
#endif

#define UD__SYS_PICK(_0, _1, _2, _3, _4, _5, _6, NAME, ...) NAME
#define ud__sys(...) UD__SYS_PICK(__VA_ARGS__, UD__S6, UD__S5, UD__S4, UD__S3, UD__S2, UD__S1, UD__S0)(__VA_ARGS__)
#define UD__L(x) ((long)(x))
#define UD__S0(n) ud__sys6(n, 0, 0, 0, 0, 0, 0)
#define UD__S1(n, a) ud__sys6(n, UD__L(a), 0, 0, 0, 0, 0)
#define UD__S2(n, a, b) ud__sys6(n, UD__L(a), UD__L(b), 0, 0, 0, 0)
#define UD__S3(n, a, b, c) ud__sys6(n, UD__L(a), UD__L(b), UD__L(c), 0, 0, 0)
#define UD__S4(n, a, b, c, d) ud__sys6(n, UD__L(a), UD__L(b), UD__L(c), UD__L(d), 0, 0)
#define UD__S5(n, a, b, c, d, e) ud__sys6(n, UD__L(a), UD__L(b), UD__L(c), UD__L(d), UD__L(e), 0)
#define UD__S6(n, a, b, c, d, e, f) ud__sys6(n, UD__L(a), UD__L(b), UD__L(c), UD__L(d), UD__L(e), UD__L(f))

static inline int ud__is_err(long r) { return (unsigned long)r > -4096ul; }

/* Numbers that Debian's headers of 2023 may lack; the same on every architecture. */
#ifndef __NR_close_range
#define __NR_close_range 436
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef __NR_process_madvise
#define __NR_process_madvise 440
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open 434
#endif

/* Starts fn(arg) on its own stack by clone(2). In the new task fn never returns: it ends by exit.
 * tls is used with CLONE_SETTLS. Returns the new task's id, or -errno. (clone.c) */
long ud__clone(unsigned long flags, void *stack_top, void *tls, int *child_tid, void (*fn)(void *), void *arg)
    __attribute__((visibility("hidden")));

#endif
