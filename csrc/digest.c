/* digest.c: the keyed 64-bit page hash that nominates pages for merging.
 *
 * Guarantees: the same value on every backend and every little-endian CPU; no lock, no system call,
 * no allocation, no errno, no thread-local storage (see pages.h). Any page size that is a multiple of 4096.
 * Fails: never. Two different pages may share a digest: bytes decide, always, in the compare under
 * the write-stop. A page written while it is read gets the digest of no state it ever had.
 *
 * The hash, for each unit of 4096 bytes, read as 64 steps t of 8 lanes j of one 64-bit word w = (hi, lo):
 *
 *   A[j] = sum over t of (lo + klo[t][j]) * (hi + khi[t][j])            halves added mod 2^32,
 *   B[j] = sum over t of (lo + klo[t+1][j]) * (hi + khi[t+1][j])        products and sums mod 2^64
 *   S    = sum over j of A[j] * m[j] + B[j] * m[8+j]                    mod 2^128, m odd
 *   unit = mix(mix(low(S) + f[0]) ^ (high(S) + f[1]))
 *   page = chain of its units: h = mix(h ^ unit), from f[2]
 *
 * A and B are NH (UMAC, RFC 4418) with a Toeplitz key: for two different units and a random key one lane
 * pair collides with probability at most 2^-64 (2^-32 for each of the two sums), S adds
 * 2^-63, and mix is a bijection. So over random keys about one false nomination in 2^62 pairs of
 * different pages; 2^24 pages (64 GiB) hold 2^47 pairs. The key (random for each domain) is
 * expanded by a counter through mix, which is no cipher: who can read digests may be able to make
 * collisions. He gains nothing, as bytes decide.
 */
#include "udedup.h"
#include "pages.h"

#include <errno.h>

struct schedule {
    uint64_t nh[UD_NH_WORDS];
    uint64_t mult[UD_SUMS];
    uint64_t fin[3];
} __attribute__((aligned(64)));

/* Expanded keys, written once and never again, so that a reader needs no lock and a thread stopped
 * in the middle of filling one harms nobody: others expand on their own stack meanwhile. */
enum { SLOT_EMPTY, SLOT_FILLING, SLOT_READY };
#define SLOTS 4
static struct {
    int state;
    uint64_t key[2];
    struct schedule sched;
} slots[SLOTS];

static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ull;
    x ^= x >> 29;
    x *= 0xa0761d6478bd642full;
    x ^= x >> 32;
    return x;
}

/* Word n of the expansion of a key. */
static inline uint64_t key_word(const uint64_t key[2], uint64_t n)
{
    uint64_t x = mix(key[0] ^ 0x9e3779b97f4a7c15ull) + n * 0x9e3779b97f4a7c15ull;
    return mix(mix(x) ^ (key[1] + n * 0x5851f42d4c957f2dull));
}

static void expand(const uint64_t key[2], struct schedule *s)
{
    uint64_t n = 0;
    for (size_t i = 0; i < UD_NH_WORDS; i++)
        s->nh[i] = key_word(key, ++n);
    for (size_t i = 0; i < UD_SUMS; i++)
        s->mult[i] = key_word(key, ++n) | 1;
    for (size_t i = 0; i < 3; i++)
        s->fin[i] = key_word(key, ++n);
}

static const struct schedule *schedule_for(const uint64_t key[2], struct schedule *own)
{
    for (int i = 0; i < SLOTS; i++) {
        int state = __atomic_load_n(&slots[i].state, __ATOMIC_ACQUIRE);
        if (state == SLOT_READY && slots[i].key[0] == key[0] && slots[i].key[1] == key[1])
            return &slots[i].sched;
        if (state != SLOT_EMPTY || !__atomic_compare_exchange_n(&slots[i].state, &state, SLOT_FILLING, 0,
                                                                __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        slots[i].key[0] = key[0];
        slots[i].key[1] = key[1];
        expand(key, &slots[i].sched);
        __atomic_store_n(&slots[i].state, SLOT_READY, __ATOMIC_RELEASE);
        return &slots[i].sched;
    }
    expand(key, own);
    return own;
}

/* ---- backends ---------------------------------------------------------------------------------- */

UD_RACY static void nh_scalar(const void *unit, const uint64_t *key, uint64_t acc[UD_SUMS])
{
    const unsigned char *p = unit;
    uint64_t sum[UD_SUMS] = { 0 };
    for (size_t t = 0; t < UD_STEPS; t++)
        for (size_t j = 0; j < UD_LANES; j++) {
            uint64_t w, k = key[t * UD_LANES + j], k2 = key[(t + 1) * UD_LANES + j];
            __builtin_memcpy(&w, p + (t * UD_LANES + j) * 8, 8);
            sum[j] += (uint64_t)(uint32_t)(w + k) * (uint32_t)((w >> 32) + (k >> 32));
            sum[UD_LANES + j] += (uint64_t)(uint32_t)(w + k2) * (uint32_t)((w >> 32) + (k2 >> 32));
        }
    for (size_t j = 0; j < UD_SUMS; j++)
        acc[j] = sum[j];
}

static int always(void)
{
    return 1;
}

static const struct ud__backend scalar = { "scalar", always, nh_scalar, ud__equal_scalar, ud__zero_scalar };
static const struct ud__backend *chosen;

const struct ud__backend *ud__backend(void)
{
    const struct ud__backend *b = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (b)
        return b;
    for (b = ud__simd_backends; b->name && !b->usable(); b++)
        ;
    if (!b->name)
        b = &scalar;
    __atomic_store_n(&chosen, b, __ATOMIC_RELAXED); /* every chooser comes to the same */
    return b;
}

static int same_name(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

const char *ud_digest_backend(void)
{
    return ud__backend()->name;
}

int ud_digest_use(const char *name)
{
    const struct ud__backend *b = ud__simd_backends;
    while (b->name && !(same_name(b->name, name) && b->usable()))
        b++;
    if (!b->name && !same_name(name, scalar.name))
        return -ENOTSUP;
    __atomic_store_n(&chosen, b->name ? b : &scalar, __ATOMIC_RELAXED);
    return 0;
}

/* ---- the hash ---------------------------------------------------------------------------------- */

static inline uint64_t finish_unit(const uint64_t acc[UD_SUMS], const struct schedule *s)
{
    unsigned __int128 sum = 0;
    for (size_t j = 0; j < UD_SUMS; j++)
        sum += (unsigned __int128)acc[j] * s->mult[j];
    return mix(mix((uint64_t)sum + s->fin[0]) ^ ((uint64_t)(sum >> 64) + s->fin[1]));
}

void ud_digest_pages(const void *pages, size_t n, size_t page_size, const uint64_t key[2], uint64_t *out)
{
    struct schedule own;
    const struct schedule *s = schedule_for(key, &own);
    ud__nh_fn nh = ud__backend()->nh;
    const unsigned char *p = pages;

    for (size_t i = 0; i < n; i++) {
        uint64_t h = s->fin[2];
        for (const unsigned char *end = p + page_size; p < end; p += UD_UNIT) {
            uint64_t acc[UD_SUMS];
            nh(p, s->nh, acc);
            h = mix(h ^ finish_unit(acc, s));
        }
        out[i] = h;
    }
}
