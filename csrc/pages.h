/* pages.h: what digest.c and compare.c share with their vector kernels; internal.
 *
 * Guarantees: everything behind it makes no system call, allocates nothing, touches neither errno nor
 * thread-local storage, and takes no lock: it may run in a freestanding thread, in a signal
 * handler, and while every other thread is held.
 */
#ifndef UD_PAGES_H
#define UD_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define UD_UNIT 4096u                              /* the hash works in units of this many bytes */
#define UD_LANES 8u                                /* 64-bit lanes side by side */
#define UD_STEPS (UD_UNIT / (8u * UD_LANES))       /* steps of one unit */
#define UD_NH_WORDS (UD_LANES * (UD_STEPS + 1))    /* one step more than the unit: the second sum is shifted */
#define UD_SUMS (2 * UD_LANES)                     /* two sums a lane */

/* Sums one unit into acc: acc[j] with key step t, acc[UD_LANES + j] with key step t + 1. */
typedef void (*ud__nh_fn)(const void *unit, const uint64_t *key, uint64_t acc[UD_SUMS]);
typedef int (*ud__equal_fn)(const void *a, const void *b, size_t n);
typedef int (*ud__zero_fn)(const void *p, size_t n);

struct ud__backend {
    const char *name;
    int (*usable)(void); /* asks the CPU */
    ud__nh_fn nh;
    ud__equal_fn equal; /* n is a multiple of 256 */
    ud__zero_fn zero;   /* likewise */
};

/* The one in use, chosen at the first call. */
const struct ud__backend *ud__backend(void);

/* pages_simd.c: what this architecture has, best first, ended by a NULL name. */
extern const struct ud__backend ud__simd_backends[];

int ud__equal_scalar(const void *a, const void *b, size_t n);
int ud__zero_scalar(const void *p, size_t n);

/* Pages are read while their owner may write them; a torn read only spoils a nomination. */
#define UD_RACY __attribute__((no_sanitize("thread")))

#endif
