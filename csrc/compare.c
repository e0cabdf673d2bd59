/* compare.c: are two ranges equal, is a range all zero.
 *
 * Guarantees: exact; any length, any alignment; stops at the first difference, to within 256 bytes; no system call,
 * lock, allocation, errno or thread-local storage, and no call into libc.
 * Fails: never. The answer holds only as long as nobody can write either range: the caller's write-stop.
 */
#include "udedup.h"
#include "pages.h"

#define CHUNK 256u

UD_RACY static inline uint64_t load64(const unsigned char *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
    return v;
}

UD_RACY int ud__equal_scalar(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i += 64) {
        uint64_t d = 0;
        for (size_t j = 0; j < 64; j += 8)
            d |= load64(x + i + j) ^ load64(y + i + j);
        if (d)
            return 0;
    }
    return 1;
}

UD_RACY int ud__zero_scalar(const void *p, size_t n)
{
    const unsigned char *x = p;
    for (size_t i = 0; i < n; i += 64) {
        uint64_t d = 0;
        for (size_t j = 0; j < 64; j += 8)
            d |= load64(x + i + j);
        if (d)
            return 0;
    }
    return 1;
}

UD_RACY int ud_equal(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    size_t bulk = n & ~(size_t)(CHUNK - 1);
    unsigned diff = 0;

    if (bulk && !ud__backend()->equal(x, y, bulk))
        return 0;
    for (size_t i = bulk; i < n; i++)
        diff |= x[i] ^ y[i];
    return diff == 0;
}

UD_RACY int ud_is_zero(const void *page, size_t n)
{
    const unsigned char *x = page;
    size_t bulk = n & ~(size_t)(CHUNK - 1);
    unsigned any = 0;

    if (bulk && !ud__backend()->zero(x, bulk))
        return 0;
    for (size_t i = bulk; i < n; i++)
        any |= x[i];
    return any == 0;
}
