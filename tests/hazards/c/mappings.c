/* mappings.c: memory calls on merged memory must do what they do on plain anonymous memory. */
#include "hz.h"

#include <malloc.h>
#include <sys/resource.h>

#define N 96 /* enough for a segment to be mapped and moved into place; in edges.c it is read */

static void munmap_merged(void)
{
    char *p = merged_area(N, 1);
    CHECK(munmap(p, N * PAGE) == 0);
    unsigned char in[N];
    SAY("mincore", mincore(p, N * PAGE, in));
    char *q = mmap(p, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(q == p);
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    fill(p, N, 9);
    CHECK(madvise(p, PAGE, MADV_DONTNEED) == 0 && nonzero(p, PAGE) == 0);
}

static void munmap_hole(void)
{
    char *p = merged_area(N, 2);
    CHECK(munmap(p + 8 * PAGE, 8 * PAGE) == 0);
    printf("wrong %zu %zu\n", wrong(p, 8, 2), wrong_in(p, 16, N, 2));
    CHECK(mmap(p + 8 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + 8 * PAGE);
    printf("nonzero %zu\n", nonzero(p + 8 * PAGE, 8 * PAGE));
}

static void mmap_fixed_over(void)
{
    char *p = merged_area(N, 3);
    int fd = memfd_create("file", 0);
    CHECK(ftruncate(fd, N * PAGE) == 0 && pwrite(fd, "file", 4, 0) == 4);
    CHECK(mmap(p, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == p);
    printf("%.4s\n", p);
    memcpy(p + PAGE, "shared", 6);
    char back[6];
    CHECK(pread(fd, back, 6, PAGE) == 6);
    printf("%.6s\n", back);
    nap(under_udedup() ? 0.3 : 0);
    memcpy(p + PAGE, "SHARED", 6);
    CHECK(pread(fd, back, 6, PAGE) == 6);
    printf("%.6s\n", back);
}

/* The file's pages equal merged anonymous ones: a merge must not reach into the file mapping. */
static void file_mapping_is_not_ours(void)
{
    char *p = merged_area(N, 4);
    int fd = memfd_create("file", 0);
    CHECK(ftruncate(fd, N * PAGE) == 0 && pwrite(fd, p, N * PAGE, 0) == (ssize_t)(N * PAGE));
    for (int i = 0; i < (under_udedup() ? 400 : 3); i++) {
        char *a = map(N);
        fill(a, N, 4);
        nap(0.002 * (i % 4));
        CHECK(munmap(a, N * PAGE) == 0);
        char *f = mmap(a, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
        if (f == a) {
            uint64_t mark = (uint64_t)i << 32 | 77, back;
            memcpy(f + 5 * PAGE, &mark, 8);
            nap(0.001);
            CHECK(pread(fd, &back, 8, 5 * PAGE) == 8 && back == mark);
            fill(f, N, 4);
            CHECK(munmap(f, N * PAGE) == 0);
        } else if (f != MAP_FAILED) {
            munmap(f, N * PAGE);
        }
    }
}

static void mremap_grow(void)
{
    char *twin = map_alone(N), *p = map_alone(N);
    fill(twin, N, 5);
    fill(p, N, 5);
    await_merged(p, N - 1);
    for (size_t pages = N; pages < 4 * N; pages += 17) {
        char *q = mremap(p, pages * PAGE, (pages + 17) * PAGE, MREMAP_MAYMOVE);
        CHECK(q != MAP_FAILED);
        printf("wrong %zu nonzero %zu\n", wrong(q, N, 5), nonzero(q + pages * PAGE, 17 * PAGE));
        p = q;
    }
    p[0] = 1;
    CHECK(munmap(p, (N + 102) * PAGE) == 0);
}

/* In place, with room behind: the slots that follow in the segment must not come up. */
static void mremap_grow_in_place(void)
{
    char *twin = map_alone(2 * N), *p = map_alone(2 * N);
    fill(twin, 2 * N, 6);
    fill(p, 2 * N, 6);
    await_merged(p, 2 * N - 1);
    CHECK(munmap(p + N * PAGE, N * PAGE) == 0); /* cuts the merged run: its new last page is merged */
    char *q = mremap(p, N * PAGE, 2 * N * PAGE, 0);
    printf("grown %d errno %d\n", q == p, q == p ? 0 : errno);
    if (q == p)
        printf("wrong %zu nonzero %zu\n", wrong(p, N, 6), nonzero(p + N * PAGE, N * PAGE));
}

static void mremap_shrink(void)
{
    char *p = merged_area(N, 7);
    char *q = mremap(p, N * PAGE, 5 * PAGE, 0);
    CHECK(q == p);
    printf("wrong %zu\n", wrong(p, 5, 7));
    unsigned char in[1];
    printf("mincore %d\n", mincore(p + 5 * PAGE, PAGE, in));
}

static void mremap_move(void)
{
    char *p = merged_area(N, 8), *to = map(N);
    char *q = mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    CHECK(q == to);
    printf("wrong %zu\n", wrong(q, N, 8));
    unsigned char in[1];
    printf("old %d\n", mincore(p, PAGE, in));
    CHECK(madvise(q, N * PAGE, MADV_DONTNEED) == 0);
    printf("nonzero %zu\n", nonzero(q, N * PAGE));
}

static void mremap_move_part(void)
{
    char *p = merged_area(N, 8), *to = map(2 * N);
    char *q = mremap(p - 2 * PAGE, 8 * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to); /* merged and not */
    CHECK(q == to);
    printf("lead %d %d wrong %zu nonzero %zu\n", q[0], q[2 * PAGE - 1], wrong(q + 2 * PAGE, 6, 8),
           nonzero(q + 8 * PAGE, (2 * N - 8) * PAGE));
}

static void realloc_large(void)
{
    size_t bytes = 1 << 20;
    char *twin = malloc(bytes), *p = malloc(bytes);
    memset(twin, 0, bytes);
    uint64_t *a = (uint64_t *)twin, *b = (uint64_t *)p;
    for (size_t i = 0; i < bytes / 8; i++)
        a[i] = b[i] = 0xabcull << 32 | i;
    nap(under_udedup() ? 0.4 : 0);
    for (size_t size = bytes; size < 24 * bytes; size += size / 2) {
        b = realloc(b, size + size / 2);
        CHECK(b && b[0] == 0xabcull << 32 && b[bytes / 8 - 1] == (0xabcull << 32 | (bytes / 8 - 1)));
        size_t bad = 0;
        for (size_t i = 0; i < bytes / 8; i++)
            bad += b[i] != (0xabcull << 32 | i);
        printf("%zu bad %zu\n", size, bad);
        nap(under_udedup() ? 0.05 : 0);
    }
    b = realloc(b, bytes / 2);
    CHECK(b && b[77] == (0xabcull << 32 | 77));
    b = realloc(b, 100);
    CHECK(b && b[7] == (0xabcull << 32 | 7));
    free(b);
    free(twin);
}

static void calloc_after_free(void)
{
    for (int i = 0; i < 20; i++) {
        char *p[4];
        for (int k = 0; k < 4; k++)
            p[k] = memset(malloc(600000), 0x5a, 600000);
        nap(under_udedup() ? 0.05 : 0);
        for (int k = 0; k < 4; k++)
            free(p[k]);
        char *z = calloc(600000, 1);
        CHECK(nonzero(z, 600000) == 0);
        free(z);
    }
}

static void dontneed(void)
{
    char *p = merged_area(N, 10);
    CHECK(madvise(p + 3 * PAGE, 9 * PAGE, MADV_DONTNEED) == 0);
    printf("nonzero %zu wrong %zu\n", nonzero(p + 3 * PAGE, 9 * PAGE), wrong(p, 3, 10));
    p[20 * PAGE] = 1; /* a split page shows the segment again unless it is taken care of */
    CHECK(madvise(p, N * PAGE, MADV_DONTNEED) == 0);
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    fill(p, N, 11);
    printf("wrong %zu\n", wrong(p, N, 11));
}

static void dontneed_raw(void) /* past libc's symbol: as an allocator's own system call would */
{
    char *p = merged_area(N, 10);
    CHECK(syscall(SYS_madvise, p, N * PAGE, MADV_DONTNEED) == 0);
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
}

static void free_advice(void)
{
    char *p = merged_area(N, 12);
    printf("madvise %d\n", madvise(p, N * PAGE, MADV_FREE));
    for (size_t i = 0; i < N; i++) { /* old or zero, nothing else */
        uint64_t *w = (uint64_t *)(p + i * PAGE);
        CHECK(w[1] == 0 || w[1] == (12ull << 40 | (i * 512 + 1)));
    }
    fill(p, N, 13);
    printf("wrong %zu\n", wrong(p, N, 13));
}

static void remove_advice(void)
{
    char *p = merged_area(N, 14);
    SAY("madvise", madvise(p, N * PAGE, MADV_REMOVE));
    printf("wrong %zu\n", wrong(p, N, 14));
}

static void dontfork(void)
{
    char *p = merged_area(N, 15);
    CHECK(madvise(p, 8 * PAGE, MADV_DONTFORK) == 0);
    fflush(NULL);
    if (fork() == 0) {
        unsigned char in[1];
        _exit(mincore(p, PAGE, in) == 0 ? 1 : wrong_in(p, 8, N, 15) ? 2 : 5);
    }
    int status;
    wait(&status);
    printf("child %d wrong %zu\n", WEXITSTATUS(status), wrong(p, N, 15));
    CHECK(madvise(p, 8 * PAGE, MADV_DOFORK) == 0);
}

static void wipeonfork(void)
{
    char *p = merged_area(N, 16);
    printf("madvise %d\n", madvise(p, 8 * PAGE, MADV_WIPEONFORK));
    fflush(NULL);
    if (fork() == 0)
        _exit(nonzero(p, 8 * PAGE) ? 1 : wrong_in(p, 8, N, 16) ? 2 : 7);
    int status;
    wait(&status);
    printf("child %d wrong %zu\n", WEXITSTATUS(status), wrong(p, N, 16));
}

static void hugepage(void)
{
    char *p = merged_area(N, 17);
    printf("huge %d no %d\n", madvise(p, N * PAGE, MADV_HUGEPAGE), madvise(p, N * PAGE, MADV_NOHUGEPAGE));
    printf("wrong %zu\n", wrong(p, N, 17));
}

static void huge_pages(void)
{
    size_t bytes = 8ul << 20;
    char *p = mmap(NULL, bytes + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    p = (char *)(((uintptr_t)p + (2 << 20) - 1) & ~((uintptr_t)(2 << 20) - 1));
    madvise(p, bytes, MADV_HUGEPAGE);
    for (size_t half = 0; half < 2; half++)
        fill(p + half * bytes / 2, bytes / 2 / PAGE, 18);
    for (int i = 0; i < 20; i++) {
        nap(under_udedup() ? 0.05 : 0);
        uint64_t *w = (uint64_t *)(p + (size_t)i * 100 * PAGE);
        w[5] ^= 0xff;
        CHECK((w[5] ^ 0xff) == (18ull << 40 | (((size_t)i * 100 % 1024) * 512 + 5)));
        w[5] ^= 0xff;
    }
    printf("wrong %zu %zu\n", wrong(p, bytes / 2 / PAGE, 18), wrong(p + bytes / 2, bytes / 2 / PAGE, 18));
}

static void mergeable(void)
{
    char *p = merged_area(N, 19);
    int a = madvise(p, N * PAGE, 12), b = madvise(p, N * PAGE, 13);
    if (under_udedup()) {
        CHECK(a == 0 && b == 0); /* ours to answer, whatever the kernel was built with */
        CHECK(merged_in(p, N) == 0); /* UNMERGEABLE unmerges before it returns */
        nap(0.3);
        CHECK(merged_in(p, N) == 0); /* and it stays so */
    }
    printf("wrong %zu\n", wrong(p, N, 19));
    printf("bad alignment %d\n", madvise(p + 1, PAGE, 13) == -1 && errno == EINVAL);
}

static void mprotect_and_back(void)
{
    char *p = merged_area(N, 20);
    CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
    printf("wrong %zu\n", wrong(p, N, 20));
    CHECK(mprotect(p, N * PAGE, PROT_NONE) == 0);
    int fd = memfd_create("f", 0);
    SAY("write from NONE", write(fd, p, 10));
    nap(under_udedup() ? 0.1 : 0);
    CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
    fill(p + PAGE, 1, 99);
    printf("wrong %zu %zu\n", wrong(p, 1, 20), wrong(p + PAGE, 1, 99));
}

static void mprotect_read_stays(void) /* a merge must not open what the program closed */
{
    char *p = merged_area(N, 21);
    CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
    nap(under_udedup() ? 0.3 : 0);
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    ssize_t got = read(fds[0], p, 1);
    printf("read into READ %zd errno %d\n", got, errno);
}

/* Closed to itself, or made executable, and then taken back by us (DONTDUMP): contents and protection are as they were. */
static void protections_kept(void)
{
    char *p = merged_area(N, 24), perms[5];
    unsigned long inode;
    CHECK(mprotect(p, 2 * PAGE, PROT_NONE) == 0);
    CHECK(mprotect(p + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(mprotect(p + 4 * PAGE, 2 * PAGE, PROT_READ) == 0);
    SAY("DONTDUMP", madvise(p, N * PAGE, MADV_DONTDUMP));
    printf("merged %zu\n", merged_in(p + 2 * PAGE, N - 2));
    for (size_t i = 0; i < N; i++)
        if (mapping_at(p + i * PAGE, perms, &inode))
            printf("page %zu %s\n", i, perms);
    CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
    printf("wrong %zu\n", wrong(p, N, 24));
}

static void say_perms(const char *p)
{
    char perms[5];
    unsigned long inode;
    puts(mapping_at(p, perms, &inode) ? perms : "none");
}

static const int closed[] = {PROT_READ, PROT_READ | PROT_EXEC, PROT_NONE};

/* Merged, and closed by the program long enough ago for the agent to have seen that. */
static char *closed_area(uint64_t seed, int prot)
{
    char *p = merged_area(N, seed);
    CHECK(mprotect(p - 4 * PAGE, (N + 8) * PAGE, prot) == 0);
    nap(under_udedup() ? 0.3 : 0);
    return p;
}

static void dontneed_closed(void)
{
    for (int i = 0; i < 3; i++) {
        char *p = closed_area(31 + (uint64_t)i, closed[i]);
        CHECK(madvise(p, N * PAGE, MADV_DONTNEED) == 0);
        say_perms(p);
        CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
        printf("nonzero %zu\n", nonzero(p, N * PAGE));
    }
}

static void mremap_closed(void)
{
    for (int i = 0; i < 3; i++) {
        char *p = closed_area(34 + (uint64_t)i, closed[i]), *to = map(2 * N);
        p = mremap(p - 4 * PAGE, (N + 8) * PAGE, (2 * N + 8) * PAGE, MREMAP_MAYMOVE);
        CHECK(p != MAP_FAILED);
        say_perms(p);
        say_perms(p + 2 * N * PAGE);
        CHECK(mremap(p + 4 * PAGE, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        say_perms(to);
        CHECK(mprotect(to, N * PAGE, PROT_READ | PROT_WRITE) == 0);
        printf("wrong %zu\n", wrong(to, N, 34 + (uint64_t)i));
    }
}

/* Behind our back something else came to lie where merged pages were: calls on it are the kernel's to answer. */
static void file_after_raw_munmap(void)
{
    for (int seen = 0; seen < 2; seen++) {
        char *p = merged_area(N, 37 + (uint64_t)seen);
        int fd = memfd_create("shared", MFD_CLOEXEC);
        CHECK(fd >= 0 && ftruncate(fd, N * PAGE) == 0 && pwrite(fd, "file", 4, 0) == 4);
        CHECK(syscall(SYS_munmap, p, N * PAGE) == 0);
        CHECK(mmap(p, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == p);
        nap(under_udedup() && seen ? 0.3 : 0);
        SAY("remove", madvise(p + PAGE, PAGE, MADV_REMOVE));
        p = mremap(p, N * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE);
        printf("moved %d %.4s\n", p != MAP_FAILED, p != MAP_FAILED ? p : "");
    }
}

static void mlock_merged(void)
{
    char *p = merged_area(4, 22);
    if (mlock(p, 4 * PAGE) != 0) {
        CHECK(errno == EPERM || errno == ENOMEM);
        printf("locked 0\n");
        return;
    }
    nap(under_udedup() ? 0.2 : 0);
    p[0] = 3;
    printf("locked 0\n"); /* the same text: the limit may differ */
    CHECK(munlock(p, 4 * PAGE) == 0);
}

static void mlockall_merged(void)
{
    char *p = merged_area(N, 23);
    int r = mlockall(MCL_CURRENT);
    CHECK(r == 0 || errno == EPERM || errno == ENOMEM);
    nap(under_udedup() ? 0.2 : 0);
    printf("wrong %zu\n", wrong(p, N, 23));
    munlockall();
}

static void brk_moves(void)
{
    char *base = sbrk(0);
    size_t bytes = 200 * PAGE;
    CHECK(sbrk((intptr_t)bytes) != (void *)-1);
    char *p = (char *)(((uintptr_t)base + PAGE - 1) & ~(PAGE - 1));
    fill(p, 64, 24);
    fill(p + 100 * PAGE, 64, 24);
    await_merged(p, 60);
    CHECK(brk(p + 80 * PAGE) == 0);
    printf("wrong %zu\n", wrong(p, 64, 24));
    CHECK(brk(p + 190 * PAGE) == 0);
    printf("nonzero %zu\n", nonzero(p + 80 * PAGE, 110 * PAGE));
    CHECK(brk(p + 10 * PAGE) == 0 && brk(p + 60 * PAGE) == 0);
    printf("nonzero %zu wrong %zu\n", nonzero(p + 10 * PAGE, 50 * PAGE), wrong(p, 10, 24));
}

/* Blocks too small to be ours: another allocator's, when one is preloaded. What it gives back to the kernel it takes for
 * zeros afterwards. */
static size_t merged_blocks(char **b, int count, size_t bytes)
{
    size_t found = 0;
    for (int i = 0; i < count; i++) {
        char *from = (char *)(((uintptr_t)b[i] + PAGE - 1) & ~(PAGE - 1));
        found += merged_in(from, (size_t)(b[i] + bytes - from) / PAGE);
    }
    return found;
}

static void small_blocks(void)
{
    enum { COUNT = 100, BYTES = 100000 };
    static char *b[COUNT];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            b[i] = calloc(1, BYTES);
            CHECK(nonzero(b[i], BYTES) == 0);
            memset(b[i], 0x5a + round, BYTES);
        }
        double end = now() + 10;
        while (under_udedup() && merged_blocks(b, COUNT, BYTES) < COUNT * (BYTES / PAGE) / 2) {
            if (now() > end)
                _exit(99);
            nap(0.02);
        }
        for (int i = 0; i < COUNT; i++) {
            CHECK(b[i][0] == 0x5a + round && memcmp(b[i], b[i] + 1, BYTES - 1) == 0);
            b[i] = realloc(b[i], BYTES / 2);
            CHECK(b[i][0] == 0x5a + round && memcmp(b[i], b[i] + 1, BYTES / 2 - 1) == 0);
        }
        for (int i = 0; i < COUNT; i++)
            free(b[i]);
        malloc_trim(0);
        nap(0.05);
    }
}

static void trim(void)
{
    enum { COUNT = 4000 };
    static char *p[COUNT];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++)
            p[i] = memset(malloc(2000), 7, 2000);
        nap(under_udedup() ? 0.3 : 0);
        for (int i = 0; i < COUNT; i++) {
            CHECK(p[i][0] == 7 && p[i][1999] == 7);
            if (i % 7)
                free(p[i]);
        }
        malloc_trim(0);
        for (int i = 0; i < COUNT; i += 7) {
            CHECK(p[i][0] == 7 && p[i][1999] == 7);
            free(p[i]);
        }
        for (int i = 0; i < COUNT; i++) {
            char *z = calloc(1, 2000);
            CHECK(nonzero(z, 2000) == 0);
            free(z);
        }
    }
}

static void errors_stay(void)
{
    SAY("munmap", munmap((void *)1, PAGE));
    SAY("munmap 0", munmap(map(1), 0));
    SAY("mmap 0", mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    SAY("mmap fd", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0));
    SAY("mprotect", mprotect((void *)PAGE, PAGE, PROT_READ));
    SAY("mprotect odd", mprotect((void *)(PAGE + 1), PAGE, PROT_READ));
    SAY("madvise", madvise(map(1), PAGE, 999));
    SAY("madvise hole", madvise((void *)PAGE, PAGE, MADV_DONTNEED));
    SAY("mremap", mremap((void *)PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    SAY("mremap 0", mremap(map(1), PAGE, 0, MREMAP_MAYMOVE));
    void *volatile p = malloc(300000);
    errno = 0;
    void *volatile q = realloc(p, (size_t)1 << 60);
    printf("realloc %d %d\n", q == NULL, errno);
    free(p);
    errno = 5;
    free(malloc(400000));
    printf("free keeps errno %d\n", errno);
    void *a = NULL;
    printf("posix_memalign %d %d\n", posix_memalign(&a, 3, 10), posix_memalign(&a, 8192, 1 << 20));
    printf("aligned %d\n", (uintptr_t)a % 8192 == 0);
}

/* Zeros are given back first; then more blocks have merged pages than the map of them was made for. */
static void many_blocks(void)
{
    enum { PAIRS = 300, APART = 64 };
    char *zeros = map(APART), *a = map(PAIRS * APART), *b = map(PAIRS * APART);
    CHECK(madvise(a, PAIRS * APART * PAGE, MADV_NOHUGEPAGE) == 0 && madvise(b, PAIRS * APART * PAGE, MADV_NOHUGEPAGE) == 0);
    for (size_t i = 0; i < 8; i++)
        ((volatile char *)zeros)[i * PAGE] = 0;
    nap(under_udedup() ? 0.2 : 0);
    for (size_t i = 0; i < PAIRS; i++) {
        fill(a + (i * APART + 7) * PAGE, 1, 1000 + i);
        fill(b + (i * APART + 7) * PAGE, 1, 1000 + i);
    }
    for (size_t i = 0; i < PAIRS; i++)
        await_merged(a + (i * APART + 7) * PAGE, 1);
    size_t bad = 0;
    for (size_t i = 0; i < PAIRS; i++)
        bad += wrong(a + (i * APART + 7) * PAGE, 1, 1000 + i) + wrong(b + (i * APART + 7) * PAGE, 1, 1000 + i);
    printf("wrong %zu\n", bad);
}

MAIN(T(munmap_merged), T(munmap_hole), T(mmap_fixed_over), T(file_mapping_is_not_ours), T(mremap_grow),
     T(mremap_grow_in_place), T(mremap_shrink), T(mremap_move), T(mremap_move_part), T(realloc_large),
     T(calloc_after_free), T(dontneed), T(dontneed_raw), T(free_advice), T(remove_advice), T(dontfork), T(wipeonfork),
     T(hugepage), T(huge_pages), T(mergeable), T(mprotect_and_back), T(mprotect_read_stays), T(protections_kept),
     T(dontneed_closed), T(mremap_closed), T(file_after_raw_munmap), T(mlock_merged),
     T(mlockall_merged), T(brk_moves), T(trim), T(small_blocks), T(errors_stay), T(many_blocks))
