/* copies.c: memcpy, memmove and memset for this library alone.
 *
 * A compiler calls them by these names whenever it likes, and in a program under AddressSanitizer, or with any other
 * library that takes them over, the names lead into code with locks and reports: a holder that copied a block which the
 * program had freed was taken for a bug of the program's, and died with a lock of the sanitizer's in its hands.
 *
 * Guarantees: hidden, so the program's own calls go where they went; async-signal-safe; no memory but the arguments'.
 * Fails: never.
 */
#include <stddef.h>
#include <stdint.h>

#pragma GCC optimize("no-tree-loop-distribute-patterns") /* else a loop becomes a call of itself */

void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);

#if defined(__x86_64__)

static void forward(void *to, const void *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void fill(void *to, int byte, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
}

#else

typedef struct { uint64_t w[2]; } __attribute__((packed, may_alias)) pair;

static void forward(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    for (; n >= sizeof(pair); n -= sizeof(pair), t += sizeof(pair), f += sizeof(pair))
        *(pair *)t = *(const pair *)f;
    while (n--)
        *t++ = *f++;
}

static void fill(void *to, int byte, size_t n)
{
    char *t = to;
    uint64_t word = 0x0101010101010101ull * (uint8_t)byte;
    for (; n >= sizeof(pair); n -= sizeof(pair), t += sizeof(pair))
        *(pair *)t = (pair){{word, word}};
    while (n--)
        *t++ = (char)byte;
}

#endif

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
    forward(to, from, n);
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    char *t = to;
    const char *f = from;
    if ((uintptr_t)to - (uintptr_t)from >= n)
        forward(to, from, n);
    else
        while (n--)
            t[n] = f[n];
    return to;
}

void *memset(void *to, int byte, size_t n)
{
    fill(to, byte, n);
    return to;
}
