/* Page digest and compare: one value on every backend, sensitive to every bit, exact at every length. */
#include "check.h"
#include "udedup.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

static const char *const BACKENDS[] = { "scalar", "avx2", "avx512", "neon" };
#define KNOWN_VALUE 0x9e60a5ef5451a42aull /* of the page in test_known_value, under KEY */
enum { NBACKENDS = sizeof(BACKENDS) / sizeof(*BACKENDS), PAGE = 4096 };
static const uint64_t KEY[2] = { 0x0123456789abcdefull, 0xfedcba9876543210ull };

static void fill_random(void *p, size_t n, unsigned long long seed)
{
    unsigned char *b = p;
    for (size_t i = 0; i < n; i++)
        b[i] = (unsigned char)(next_random(&seed) >> 24);
}

static uint64_t digest(const void *p, size_t page_size, const uint64_t key[2])
{
    uint64_t d;
    ud_digest_pages(p, 1, page_size, key, &d);
    return d;
}

/* Calls fn once with each backend this CPU has. */
static void each_backend(void (*fn)(const char *))
{
    const char *best = ud_digest_backend();
    for (int b = 0; b < NBACKENDS; b++)
        if (!ud_digest_use(BACKENDS[b])) {
            CHECK(!strcmp(ud_digest_backend(), BACKENDS[b]));
            fn(BACKENDS[b]);
        }
    CHECK(!ud_digest_use(best));
}

static void test_known_value(void)
{
    unsigned char page[PAGE];
    for (int i = 0; i < PAGE; i++)
        page[i] = (unsigned char)(i * 7 + (i >> 8));
    uint64_t d = digest(page, PAGE, KEY);
    CHECK(d == KNOWN_VALUE, "the hash changed: 0x%llx", (unsigned long long)d);
}

static void test_unknown_backend(void)
{
    CHECK(ud_digest_use("mmx") == -ENOTSUP);
    CHECK(ud_digest_use("") == -ENOTSUP);
}

static uint64_t want[64];
static unsigned char *sample;
static size_t sample_size;

static void same_digests(const char *name)
{
    uint64_t got[64];
    size_t n = 64 * PAGE / sample_size;
    ud_digest_pages(sample, n, sample_size, KEY, got);
    for (size_t i = 0; i < n; i++)
        CHECK(got[i] == want[i], "%s differs from scalar at page %zu of %zu bytes", name, i, sample_size);
}

static void test_backends_agree(void)
{
    unsigned char *buf = malloc(64 * PAGE + 64);
    for (int round = 0; round < 20; round++)
        for (sample_size = PAGE; sample_size <= 64 * PAGE; sample_size *= 4) {
            sample = buf + (round * 5) % 64; /* any alignment */
            fill_random(sample, 64 * PAGE, 77 + round);
            if (round == 1)
                memset(sample, 0xff, 64 * PAGE); /* carries everywhere */
            if (round == 2)
                memset(sample, 0, 64 * PAGE);
            CHECK(!ud_digest_use("scalar"));
            ud_digest_pages(sample, 64 * PAGE / sample_size, sample_size, KEY, want);
            each_backend(same_digests);
        }
    free(buf);
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static size_t duplicates(uint64_t *d, size_t n)
{
    size_t same = 0;
    qsort(d, n, sizeof(*d), by_value);
    for (size_t i = 1; i < n; i++)
        same += d[i] == d[i - 1];
    return same;
}

static void test_every_bit_counts(void)
{
    static unsigned char page[PAGE];
    static uint64_t d[PAGE * 8 + 1];
    for (int fill = 0; fill < 2; fill++) {
        uint64_t ones[64] = { 0 };
        if (fill)
            fill_random(page, PAGE, 5);
        uint64_t base = d[PAGE * 8] = digest(page, PAGE, KEY);
        for (int bit = 0; bit < PAGE * 8; bit++) {
            page[bit / 8] ^= 1u << bit % 8;
            d[bit] = digest(page, PAGE, KEY);
            for (int b = 0; b < 64; b++)
                ones[b] += (d[bit] ^ base) >> b & 1;
            page[bit / 8] ^= 1u << bit % 8;
        }
        /* Each bit of the digest flips half the time: 32768 trials, sigma 90. */
        for (int b = 0; b < 64; b++)
            CHECK(ones[b] > PAGE * 4 - 700 && ones[b] < PAGE * 4 + 700, "digest bit %d flips %llu times", b,
                  (unsigned long long)ones[b]);
        CHECK(duplicates(d, PAGE * 8 + 1) == 0);
    }
}

static void test_key_counts(void)
{
    static unsigned char page[PAGE];
    static uint64_t d[129];
    fill_random(page, PAGE, 9);
    d[128] = digest(page, PAGE, KEY);
    CHECK(d[128] == digest(page, PAGE, KEY));
    for (int bit = 0; bit < 128; bit++) { /* more keys than the cache of schedules holds */
        uint64_t key[2] = { KEY[0], KEY[1] };
        key[bit / 64] ^= 1ull << bit % 64;
        d[bit] = digest(page, PAGE, key);
        CHECK(d[bit] == digest(page, PAGE, key));
    }
    CHECK(duplicates(d, 129) == 0);
    uint64_t zero[2] = { 0, 0 }, swapped[2] = { KEY[1], KEY[0] };
    CHECK(digest(page, PAGE, zero) != digest(page, PAGE, swapped));
    memset(page, 0, PAGE);
    CHECK(digest(page, PAGE, zero) != digest(page, PAGE, KEY));
}

static void test_order_counts(void)
{
    unsigned char *p = malloc(4 * PAGE), *q = malloc(4 * PAGE);
    fill_random(p, 4 * PAGE, 3);
    uint64_t whole = digest(p, 4 * PAGE, KEY);
    memcpy(q, p + PAGE, PAGE); /* units swapped */
    memcpy(q + PAGE, p, PAGE);
    memcpy(q + 2 * PAGE, p + 2 * PAGE, 2 * PAGE);
    CHECK(digest(q, 4 * PAGE, KEY) != whole);
    for (size_t step = 8; step < PAGE; step *= 2) { /* words swapped at every distance */
        memcpy(q, p, 4 * PAGE);
        memcpy(q, p + step, 8);
        memcpy(q + step, p, 8);
        CHECK(digest(q, 4 * PAGE, KEY) != whole, "step %zu", step);
    }
    free(p);
    free(q);
}

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
#define STRUCTURED_PAGES 300000u
#else
#define STRUCTURED_PAGES 3000000u
#endif

/* Pages that differ as heap pages do: a counter, a pointer, two words that cancel in a plain sum, a repeated word. */
static void structure(uint64_t *w, unsigned i)
{
    static unsigned last;
    w[last] = 0;
    switch (i & 3) {
    case 0: w[last = 11] = i; break;
    case 1: w[last = i % 500] = 0x7f0000000000ull + (uint64_t)i * 16; break;
    case 2: w[last = 100] = (uint64_t)i << 32; break;
    case 3: w[last = 300 + i % 7] = ~(uint64_t)i; break;
    }
    w[511] = i & 3 ? 0 : -(uint64_t)i;
}

static void test_structured_pages(void)
{
    static uint64_t page[PAGE / 8];
    uint64_t *d = malloc(STRUCTURED_PAGES * sizeof(*d));
    for (unsigned i = 0; i < STRUCTURED_PAGES; i++) {
        structure(page, i + 4);
        d[i] = digest(page, PAGE, KEY);
    }
    size_t same = duplicates(d, STRUCTURED_PAGES);
    CHECK(same == 0, "%zu collisions in %u pages (expected %.1e)", same, STRUCTURED_PAGES,
          (double)STRUCTURED_PAGES * STRUCTURED_PAGES / 2 / 1.8e19);
    for (unsigned i = 0; i < STRUCTURED_PAGES; i++)
        d[i] >>= 32; /* the index uses part of the digest: the high half must be as good as random */
    same = duplicates(d, STRUCTURED_PAGES);
    double expected = (double)STRUCTURED_PAGES * STRUCTURED_PAGES / 2 / 4294967296.0;
    CHECK(same < expected * 1.3 + 20 && same + 20 > expected * 0.7, "%zu in 32 bits, expected %.0f", same, expected);
    free(d);
}

static void exact_at_every_length(const char *name)
{
    enum { MAX = 1100 };
    static unsigned char a[MAX + 64], b[MAX + 64];
    for (size_t n = 0; n <= MAX; n += n < 600 ? 1 : 37) {
        unsigned char *x = a + n % 61, *y = b + n % 17;
        fill_random(x, n, n + 1);
        memcpy(y, x, n);
        y[n] = x[n] + 1; /* beyond the end: must not count */
        CHECK(ud_equal(x, y, n), "%s %zu", name, n);
        for (size_t i = 0; i < n; i += 1 + n / 97) {
            y[i] ^= 0x10;
            CHECK(!ud_equal(x, y, n), "%s %zu differs at %zu", name, n, i);
            y[i] ^= 0x10;
        }
        memset(y, 0, n);
        y[n] = 1;
        CHECK(ud_is_zero(y, n), "%s %zu", name, n);
        for (size_t i = 0; i < n; i += 1 + n / 97) {
            y[i] = 0x80;
            CHECK(!ud_is_zero(y, n), "%s %zu not zero at %zu", name, n, i);
            y[i] = 0;
        }
    }
}

static void every_byte_of_a_page(const char *name)
{
    static unsigned char a[PAGE], b[PAGE];
    fill_random(a, PAGE, 1);
    for (size_t i = 0; i < PAGE; i++) {
        memcpy(b, a, PAGE);
        b[i] ^= 1;
        CHECK(!ud_equal(a, b, PAGE), "%s byte %zu", name, i);
        memset(b, 0, PAGE);
        b[i] = 1;
        CHECK(!ud_is_zero(b, PAGE), "%s byte %zu", name, i);
    }
}

static void test_compare(void)
{
    each_backend(exact_at_every_length);
    each_backend(every_byte_of_a_page);
}

/* Reads nothing beyond the page: the next one may be unmapped. */
static void at_the_edge(const char *name)
{
    (void)name;
    char *p = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    CHECK(!mprotect(p, PAGE, PROT_NONE) && !mprotect(p + 2 * PAGE, PAGE, PROT_NONE));
    (void)digest(p + PAGE, PAGE, KEY);
    CHECK(ud_equal(p + PAGE, p + PAGE, PAGE) && ud_is_zero(p + PAGE, PAGE) && ud_is_zero(p + 2 * PAGE - 9, 9));
    munmap(p, 3 * PAGE);
}

static void test_edges(void)
{
    each_backend(at_the_edge);
}

static char *speed_a, *speed_b;
volatile uint64_t sink; /* keeps the reading loop alive */
#ifndef SPEED_BYTES
#define SPEED_BYTES ((size_t)256 << 20)
#endif

static double best_of_three(void (*fn)(void))
{
    double best = 1e9;
    for (int i = 0; i < 3; i++) {
        double start = seconds();
        fn();
        double took = seconds() - start;
        best = took < best ? took : best;
    }
    return (double)SPEED_BYTES / best / 1e9;
}

static void speed_digest(void)
{
    static uint64_t out[64];
    for (size_t i = 0; i < SPEED_BYTES; i += sizeof(out) / 8 * PAGE)
        ud_digest_pages(speed_a + i, 64, PAGE, KEY, out);
}

static void speed_equal(void)
{
    CHECK(ud_equal(speed_a, speed_b, SPEED_BYTES));
}

static void speed_zero(void)
{
    CHECK(ud_is_zero(speed_b, SPEED_BYTES));
}

typedef uint64_t vec __attribute__((vector_size(32)));
static void speed_read(void)
{
    vec sum[4] = { 0 };
    for (size_t i = 0; i < SPEED_BYTES; i += sizeof(sum))
        for (int j = 0; j < 4; j++)
            sum[j] |= ((const vec *)(speed_a + i))[j];
    sink = sum[0][0] | sum[1][1] | sum[2][2] | sum[3][3];
}

static void speed_of(const char *name)
{
    printf("  %-7s digest %5.1f GB/s\n", name, best_of_three(speed_digest));
}

/* Figures only: a busy machine must not fail the test. */
static void test_speed(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    speed_a = mmap(NULL, SPEED_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    speed_b = mmap(NULL, SPEED_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(speed_a != MAP_FAILED && speed_b != MAP_FAILED);
    printf("  zero test      %5.1f GB/s\n", best_of_three(speed_zero));
    fill_random(speed_a, SPEED_BYTES, 1);
    memcpy(speed_b, speed_a, SPEED_BYTES);
    printf("  plain reading  %5.1f GB/s\n", best_of_three(speed_read));
    each_backend(speed_of);
    printf("  equal          %5.1f GB/s of each side\n", best_of_three(speed_equal));
    munmap(speed_a, SPEED_BYTES);
    munmap(speed_b, SPEED_BYTES);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "known_value", test_known_value },
        { "unknown_backend", test_unknown_backend },
        { "backends_agree", test_backends_agree },
        { "every_bit_counts", test_every_bit_counts },
        { "key_counts", test_key_counts },
        { "order_counts", test_order_counts },
        { "structured_pages", test_structured_pages },
        { "compare", test_compare },
        { "edges", test_edges },
        { "speed", test_speed },
        { NULL, NULL },
    };
    return run_tests(tests, argc, argv);
}
