/* races.c: what each guard of the merge transaction is for. Run with the guard off, these must fail.
 *
 * They look for wrong results for a few seconds, so a hole is found with near certainty, not always.
 */
#include "hz.h"

#define N 16

static double span(void) { return under_udedup() ? 4 : 0.2; }

/* busy: a batch between the interposer's look at the merged map and the kernel's DONTNEED. */
static void dontneed_race(void)
{
    char *twin = map_alone(N + 2), *p = map_alone(N + 2);
    fill(twin, N, 1);
    double end = now() + span();
    size_t bad = 0;
    for (int i = 0; now() < end; i++) {
        fill(p, N, 1);
        nap(0.001 * (i % 12));
        CHECK(madvise(p, N * PAGE, MADV_DONTNEED) == 0);
        bad += nonzero(p, N * PAGE) != 0;
    }
    printf("bad %zu\n", bad);
}

/* hold, compare: a store between the comparison and the remap, or since the digest was taken. */
static void store_race(void)
{
    char *twin = map_alone(N + 2), *p = map_alone(N + 2);
    fill(twin, N, 2);
    double end = now() + span();
    size_t lost = 0;
    while (now() < end) {
        fill(p, N, 2);
        nap(0.004);
        for (uint64_t i = 1; i < 3000; i++) { /* counts for about as long as a batch is planned */
            volatile uint64_t *w = (volatile uint64_t *)(p + (i % N) * PAGE);
            uint64_t want = i << 8;
            w[9] = want;
            for (volatile int k = 0; k < 300; k++)
                ;
            if (w[9] != want) {
                lost++;
                break;
            }
        }
    }
    printf("lost %d\n", lost != 0);
}

/* mapcheck: the anonymous mapping became a shared file with the same bytes. */
static void file_race(void)
{
    char *twin = map_alone(N + 2);
    int fd = memfd_create("file", 0);
    fill(twin, N, 3);
    CHECK(ftruncate(fd, N * PAGE) == 0 && pwrite(fd, twin, N * PAGE, 0) == (ssize_t)(N * PAGE));
    double end = now() + span();
    size_t bad = 0;
    char *p = map_alone(N + 2);
    for (uint64_t i = 1; now() < end; i++) {
        CHECK(mmap(p, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
        fill(p, N, 3);
        nap(0.001 * (double)(i % 8));
        CHECK(syscall(SYS_mmap, p, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == (long)p);
        nap(0.004);
        uint64_t back;
        memcpy(p + 5 * PAGE, &i, 8);
        CHECK(pread(fd, &back, 8, 5 * PAGE) == 8);
        bad += back != i;
        fill(twin + PAGE * 0, N, 3);
        CHECK(pwrite(fd, twin, N * PAGE, 0) == (ssize_t)(N * PAGE));
    }
    printf("bad %d\n", bad != 0);
}

/* lastpage: the kernel grows the last mapping, and nobody of ours is asked (libc's own realloc does so). */
static void raw_mremap(void)
{
    size_t bad = 0;
    for (int i = 0; i < (under_udedup() ? 12 : 1); i++) {
        char *twin = map(2 * N), *p = map(2 * N + 1);
        CHECK(mprotect(twin, PAGE, PROT_NONE) == 0 && mprotect(p, PAGE, PROT_NONE) == 0);
        fill(twin + PAGE, 2 * N - 1, 4);
        CHECK(munmap(p + N * PAGE, (N + 1) * PAGE) == 0);
        fill(p + PAGE, N - 1, 4);
        nap(under_udedup() ? 0.3 : 0);
        char *last = p + (N - 1) * PAGE;
        long r = syscall(SYS_mremap, last, PAGE, 4 * PAGE, MREMAP_MAYMOVE, 0);
        if (r > 0)
            bad += nonzero((char *)r + PAGE, 3 * PAGE) != 0;
        munmap(twin, 2 * N * PAGE);
    }
    printf("bad %zu\n", bad);
}

/* bitfirst: the holder is killed from outside at any instant; the merged map must know what it did. */
static void killed_holder(void)
{
    double end = now() + span();
    size_t bad = 0;
    char *twin = map_alone(N + 2);
    fill(twin, N, 5);
    while (now() < end) {
        char *p = map_alone(N + 2);
        fill(p, N, 5);
        nap(0.03);
        bad += wrong(p, N, 5) != 0;
        CHECK(madvise(p, N * PAGE, MADV_DONTNEED) == 0);
        bad += nonzero(p, N * PAGE) != 0;
        CHECK(munmap(p - PAGE, (N + 4) * PAGE) == 0);
    }
    printf("bad %zu\n", bad);
}

/* Large blocks grow by realloc while other threads fill theirs: what was there comes along. */
static void *grow_blocks(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg;
    double end = now() + span();
    while (now() < end) {
        size_t words = 20000;
        uint64_t *b = malloc(words * 8);
        for (size_t i = 0; i < words; i++)
            b[i] = seed << 40 | i;
        for (int step = 0; step < 8; step++) {
            size_t more = words + words / 3;
            b = realloc(b, more * 8);
            for (size_t i = 0; i < words; i++)
                CHECK(b[i] == (seed << 40 | i));
            for (size_t i = words; i < more; i++)
                b[i] = seed << 40 | i;
            words = more;
            nap(0.003);
        }
        free(b);
    }
    return NULL;
}

static void realloc_race(void)
{
    pthread_t t[4];
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], NULL, grow_blocks, (void *)(1 + i / 2)) == 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
}

MAIN(T(dontneed_race), T(store_race), T(file_race), T(raw_mremap), T(killed_holder), T(realloc_race))
