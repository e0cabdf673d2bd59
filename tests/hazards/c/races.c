/* races.c: what each guard of the merge transaction is for. Run with the guard off, these must fail.
 *
 * They look for wrong results for a few seconds, so a hole is found with near certainty, not always.
 */
#include "hz.h"

#include <dlfcn.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#define N 16

static double span(void) { return under_udedup() ? 4 : 0.2; }

static double short_span(void) { return under_udedup() ? 2.5 : 0.2; }

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

/* sharers: as store_race, but the stores are those of a process made by clone(CLONE_VM), no thread of ours. */
static int count_and_look(void *arg)
{
    char *p = arg;
    double end = now() + short_span();
    int lost = 0;
    while (now() < end) {
        fill(p, N, 2);
        nap(0.004);
        for (uint64_t i = 1; i < 3000; i++) {
            volatile uint64_t *w = (volatile uint64_t *)(p + (i % N) * PAGE);
            w[9] = i << 8;
            for (volatile int k = 0; k < 300; k++)
                ;
            if (w[9] != i << 8) {
                lost = 1;
                break;
            }
        }
    }
    return lost;
}

static void sharer_race(void)
{
    static char stack[65536] __attribute__((aligned(64)));
    char *twin = map_alone(N + 2), *p = map_alone(N + 2);
    fill(twin, N, 2);
    int status = -1, pid = clone(count_and_look, stack + sizeof stack, CLONE_VM | SIGCHLD, p);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    printf("lost %d\n", WEXITSTATUS(status));
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

/* ---- mode trap: windows, and calls that meet them ------------------------------------------------------------------- */

extern int ud_writable_open(void *addr, size_t len) __attribute__((weak));
extern int ud_writable_close(int token) __attribute__((weak));

/* The kernel writes into each page, as the contract of mode trap has it. */
static int read_into_each(char *p)
{
    int fd = open("/dev/zero", O_RDONLY), bad = 0;
    for (int i = 0; i < N; i++) {
        int token = ud_writable_open ? ud_writable_open(p + i * PAGE, 8) : 0;
        bad += read(fd, p + i * PAGE, 8) != 8;
        if (token > 0)
            ud_writable_close(token);
    }
    close(fd);
    return bad;
}

/* Without the contract: only what is not closed takes it. */
static int read_into_one(char *p)
{
    int fd = open("/dev/zero", O_RDONLY);
    ssize_t got = read(fd, p + 3 * PAGE, 8);
    close(fd);
    return got != 8;
}

/* The program's own protection counts, whoever had closed the page before. */
static int protects(char *p)
{
    CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
    nap(0.5); /* the child's agent comes up meanwhile */
    return !read_into_one(p);
}

static pid_t forked(void) { return fork(); }

static pid_t cloned(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }

/* A child is forked while its parent's pages are being merged, and does something with them. */
static void in_children(pid_t (*make)(void), int (*what)(char *))
{
    double end = now() + short_span();
    int bad = 0, children = 0;
    char *twin = map_alone(N + 2), *p = map_alone(N + 2);
    fill(twin, N, 6);
    for (unsigned i = 0; now() < end; i++) {
        fill(p, N, 6);
        nap(0.001 * (i * 7 % 23));
        pid_t pid = make();
        if (pid == 0)
            _exit(what(p) != 0);
        int status = -1;
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
        bad += status != 0;
        children++;
    }
    CHECK(children > 3 || !under_udedup());
    printf("bad %d\n", bad != 0);
}

static void fork_meets_no_window(void) { in_children(forked, read_into_one); }
static void clone_reads(void) { in_children(cloned, read_into_each); }
static void clone_protects(void) { in_children(cloned, protects); }

/* A mapping moves while a window is over it: what moved is writable, and what comes after is let be. */
static void mremap_race(void)
{
    double end = now() + short_span();
    int bad = 0;
    char *twin = map_alone(N + 2);
    fill(twin, N, 6);
    for (unsigned i = 0; now() < end; i++) {
        char *p = map(2 * N);
        fill(p, N, 6);
        CHECK(munmap(p + (N + 1) * PAGE, (N - 1) * PAGE) == 0); /* the last page stays: a window may be over all that moves */
        nap(0.001 * (i * 7 % 23));
        char *to = mremap(p, N * PAGE, (N + 3) * PAGE, MREMAP_MAYMOVE);
        if (to == MAP_FAILED) {
            bad++;
            continue;
        }
        bad += wrong(to, N, 6) != 0 || nonzero(to + N * PAGE, 3 * PAGE) != 0 || read_into_one(to) != 0;
        munmap(to, (N + 3) * PAGE);
        munmap(p + N * PAGE, PAGE);
    }
    printf("bad %d\n", bad != 0);
}

/* bar: what is given back while it is closed, and opened meanwhile, stays open and keeps what is written to it. */
static void protect_race(void)
{
    char *p = merged_area(N, 8);
    double end = now() + span();
    int lost = 0;
    for (uint64_t i = 1; now() < end; i++) {
        volatile uint64_t *w = (volatile uint64_t *)(p + i % N * PAGE);
        CHECK(mprotect(p, N * PAGE, PROT_READ) == 0);
        nap(0.001 * (double)(i % 12));
        CHECK(mprotect(p, N * PAGE, PROT_READ | PROT_WRITE) == 0);
        uint64_t was = *w;
        *w = i;
        nap(0.005);
        lost += *w != i;
        *w = was; /* alike again: it will be merged */
        lost += wrong(p, N, 8) != 0;
    }
    printf("lost %d\n", lost != 0);
}

/* neighbours: a writer whose fault opens pages ahead, of which another thread has made something else meanwhile. */
static char *_Atomic writes_next;

static void *write_in_sequence(void *at)
{
    for (int page = 0; page < 32; page++) {
        writes_next = (char *)at + page * PAGE;
        *(volatile char *)writes_next = 9;
    }
    return NULL;
}

static void opens_ahead(void)
{
    pthread_t writer;
    char *area = map_alone(192), *twin = map_alone(192), *p = (char *)(((uintptr_t)area + 64 * PAGE) & -(64 * PAGE));
    fill(p, 65, 9);
    fill(twin, 65, 9);
    await_merged(p, 64);
    int pipes[2];
    CHECK(pipe(pipes) == 0 && pthread_create(&writer, NULL, write_in_sequence, p) == 0);
    while (writes_next != p + 31 * PAGE) /* opens 32 pages at once: it wrote 1 + 2 + 4 + 8 + 16 before */
        nap(0.0001);
    nap(0.01);
    CHECK(mmap(p + 40 * PAGE, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + 40 * PAGE);
    pthread_join(writer, NULL);
    say("write from it", write(pipes[1], p + 40 * PAGE, 1));
}

/* listed: the stores are those of a thread that a list cut short leaves out. */
static void *store_race_here(void *unused)
{
    store_race();
    return unused;
}

static void thread_race(void)
{
    pthread_t t;
    CHECK(pthread_create(&t, NULL, store_race_here, NULL) == 0 && pthread_join(t, NULL) == 0);
}

/* number: calls that sleep, one kind and the other by turns, from one place by syscall(2). */
static _Atomic int napping = 1;

static void *naps_by_turns(void *unused)
{
    struct timespec t = {0, 2000000};
    struct pollfd none = {-1, 0, 0};
    long bad = 0;
    (void)unused;
    for (int i = 0; napping; i++)
        bad += syscall(i % 2 ? SYS_nanosleep : SYS_ppoll, i % 2 ? (void *)&t : (void *)&none, i % 2 ? 0L : 1L, &t, NULL, 8L) != 0;
    return (void *)bad;
}

/* switches: sleeps from one place in a row, each whole. Between the agent's look and the stop one ends and the next begins. */
static void *naps_in_a_row(void *unused)
{
    long early = 0;
    (void)unused;
    while (napping) {
        double from = now();
        CHECK(nanosleep(&(struct timespec){0, 20000000}, NULL) == 0);
        early += now() - from < 0.02;
    }
    return (void *)early;
}

static void *waits_in_a_row(void *unused)
{
    struct epoll_event e;
    long early = 0;
    int fd = epoll_create1(0);
    (void)unused;
    while (napping) {
        double from = now();
        CHECK(epoll_wait(fd, &e, 1, 20) == 0);
        early += now() - from < 0.02;
    }
    return (void *)early;
}

static void sleeps_in_a_row(void)
{
    pthread_t t[2];
    void *early[2];
    char *p = merged_area(N, 6);
    double end = now() + short_span();
    CHECK(pthread_create(&t[0], NULL, naps_in_a_row, NULL) == 0 && pthread_create(&t[1], NULL, waits_in_a_row, NULL) == 0);
    for (size_t i = 0; now() < end; i++) {
        p[PAGE * (i % N)] ^= 1;
        nap(0.002);
        p[PAGE * (i % N)] ^= 1;
        nap(0.01);
    }
    napping = 0;
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], &early[i]);
    printf("early %d\n", early[0] || early[1]);
}

static void calls_by_turns(void)
{
    pthread_t t[4];
    char *twin = map_alone(N + 2), *p = map_alone(N + 2);
    fill(twin, N, 15);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], NULL, naps_by_turns, NULL) == 0);
    for (double end = now() + short_span(); now() < end; nap(0.02))
        fill(p, N, 15);
    napping = 0;
    long bad = 0;
    for (int i = 0; i < 4; i++) {
        void *one;
        CHECK(pthread_join(t[i], &one) == 0);
        bad += (long)one;
    }
    printf("bad %d\n", bad != 0);
}

/* down: a stack of the program's own making grows, if its lowest page is still its own. */
static void grow_down(int fixed)
{
    char *room = mmap(NULL, 600 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *twin = map_alone(2 * N + 8);
    CHECK(room != MAP_FAILED);
    if (!fixed)
        CHECK(munmap(room, 600 * PAGE) == 0);
    else
        CHECK(munmap(room, 580 * PAGE) == 0);
    char *p = mmap(room + 580 * PAGE, N * PAGE, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | (fixed ? MAP_FIXED : 0), -1, 0);
    CHECK(p == room + 580 * PAGE);
    for (size_t grown = 0; grown <= N; grown += N) { /* what it has grown by is of it, too */
        char *low = p - grown * PAGE;
        for (size_t i = grown; i > 0; i--)
            p[-(long)(i * PAGE)] = 1;
        fill(low, N + grown, 11);
        fill(twin, N + grown, 11);
        double end = now() + span() / 4;
        while (now() < end && merged_in(low, N + grown) < N - 1)
            nap(0.01);
        low[-1] = 1;
        printf("below %d wrong %zu\n", low[-1], wrong(low, N + grown, 11));
    }
}

static void grows_down(void) { grow_down(0); }
static void grows_down_fixed(void) { grow_down(1); }

/* free: a block goes while a window is over it. */
static void free_race(void)
{
    const size_t pages = 2304; /* 9 MiB: no block that is kept for the next malloc */
    double end = now() + short_span();
    size_t bad = 0;
    char *twin = map_alone(N + 2);
    fill(twin, N, 12);
    for (unsigned i = 0; now() < end; i++) {
        char *p = malloc(pages * PAGE);
        char *at = p + 8 * PAGE;
        volatile uintptr_t was = (uintptr_t)p;
        CHECK(p);
        madvise(at, N * PAGE, 12);
        fill(at, N, 12);
        nap(0.001 * (i * 7 % 23));
        free(p);
        char *next = mmap((void *)was, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(next + 8 * PAGE, 1, N * PAGE);
        nap(0.004); /* what the window still had to do */
        for (size_t page = 8; page < 8 + N; page++)
            bad += next[page * PAGE] != 1;
        munmap(next, pages * PAGE);
    }
    printf("bad %d\n", bad != 0);
}

static void make_mappings(char *in, size_t *cut, size_t upto, int tell)
{
    for (; *cut < upto; *cut += 2)
        if ((tell ? mprotect(in + *cut * PAGE, PAGE, PROT_READ) : syscall(SYS_mprotect, in + *cut * PAGE, PAGE, PROT_READ)) != 0)
            return;
}

/* ballast: at the limit of mappings merged ones are given back, which takes mappings first. */
static void fill_up(int at_once)
{
    enum { SINGLE = 400 };
    char *p = map_alone(SINGLE + 2), *twin = map_alone(SINGLE + 2);
    for (int i = 0; i < SINGLE; i++) {
        fill(p + i * PAGE, 1, i % 2 ? 1000 + i : 14 + i);
        fill(twin + i * PAGE, 1, i % 2 ? 2000 + i : 14 + i);
    }
    for (double end = now() + 10; under_udedup() && merged_in(p, SINGLE) < SINGLE / 3; nap(0.01))
        if (now() > end)
            _exit(99);
    char *q = mmap(NULL, 140000 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(q != MAP_FAILED);
    size_t cut = 0;
    if (!at_once)
        make_mappings(q, &cut, 62000, 1); /* libc's tell of what they make, and so how near the limit is */
    nap(under_udedup() && !at_once ? 1.5 : 0); /* our agent counts them now and then */
    make_mappings(q, &cut, 139990, 0); /* these do not ask for room */
    nap(under_udedup() && at_once ? 3 : 0);
    if (under_udedup() && merged_in(p, SINGLE) < 70)
        _exit(99); /* given back before it was asked for */
    int made = 0;
    for (int i = 0; i < 32; i++) {
        char *one = mmap(q + 2 * i * PAGE, PAGE, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        char *alone = mmap(NULL, PAGE, i % 2 ? PROT_READ : PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        made += one != MAP_FAILED && alone != MAP_FAILED;
    }
    printf("made %d\n", made);
}

static void at_the_limit(void) { fill_up(0); }
static void at_the_limit_at_once(void) { fill_up(1); }

/* proc: what a /proc of another PID namespace tells of our number is another process, whose threads would be held instead. */
static _Atomic int in_count;

static void *count_in(void *at)
{
    long lost = 0;
    uint64_t last[N] = {0};
    for (uint64_t i = 1; in_count; i++) {
        volatile uint64_t *w = (volatile uint64_t *)((char *)at + i % N * PAGE);
        lost += last[i % N] && w[9] != last[i % N];
        last[i % N] = w[9] = i;
    }
    return (void *)lost;
}

static int lost_when_unmerged(char *p)
{
    pthread_t t;
    void *lost;
    in_count = 1;
    CHECK(pthread_create(&t, NULL, count_in, p) == 0);
    nap(0.02);
    CHECK(madvise(p, N * PAGE, MADV_DONTFORK) == 0);
    in_count = 0;
    CHECK(pthread_join(t, &lost) == 0);
    return lost != NULL;
}

/* A child in a namespace of its own, where it has the number that this process has here. */
static int in_namesake(int (*what)(char *), char *p)
{
    int namesake = getpid(), status = 0;
    struct clone_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&namesake, .set_tid_size = 1};
    int init = unshare(CLONE_NEWPID) ? -1 : fork();
    if (init != 0) {
        CHECK(init > 0 && waitpid(init, &status, 0) == init && WIFEXITED(status));
        return WEXITSTATUS(status);
    }
    int pid = (int)syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(what(p));
    CHECK(pid == namesake && waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    _exit(WEXITSTATUS(status));
}

static void proc_race(void)
{
    char *p = merged_area(N, 16);
    printf("lost %d\n", in_namesake(lost_when_unmerged, p));
}

/* copyback: the kernel fails half-way through the mremap that gives pages back. */
static void given_back(void)
{
    char *p = merged_area(N, 13);
    SAY("unmergeable", madvise(p, N * PAGE, 13));
    printf("wrong %zu\n", wrong(p, N, 13));
}

/* mapped: ... or through the one that puts the slots of a large run in place. */
static void put_in_place(void)
{
    char *p = merged_area(256, 17);
    printf("wrong %zu\n", wrong(p, 256, 17));
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(wrong(p, 256, 17) != 0);
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    printf("child %d\n", status);
}

/* ---- what a library does in its fork handlers, which were registered before ours (early.c) ------------------------ */

static char *purged;

static void fork_once(void)
{
    int status = 1;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void purge(void)
{
    for (int i = 0; i < 256; i += 4)
        CHECK(madvise(purged + i * PAGE, 4 * PAGE, MADV_DONTNEED) == 0);
}

static atomic_int steps;

static void *give_up(void *arg)
{
    (void)arg;
    for (int before = -1; before != atomic_load(&steps); nap(8)) /* longer than a busy machine needs for a step */
        before = atomic_load(&steps);
    _exit(5);
}

static void watch_for_deadlock(void)
{
    pthread_t t;
    CHECK(pthread_create(&t, NULL, give_up, NULL) == 0);
}

static void fork_purges(void)
{
    void (**hook)(void) = dlsym(RTLD_DEFAULT, "early_hook");
    watch_for_deadlock();
    purged = merged_area(256, 18);
    if (hook)
        *hook = purge;
    fork_once();
    printf("nonzero %zu\n", hook ? nonzero(purged, 256 * PAGE) : 0);
}

/* An allocator that gives memory back under its lock, while another thread forks, which takes that lock. */
static void *fork_on(void *stop)
{
    for (; !atomic_load((atomic_int *)stop); nap(0.001))
        fork_once();
    return NULL;
}

static void fork_meets(void (*give)(void))
{
    pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER, *lock = dlsym(RTLD_DEFAULT, "early_mutex");
    atomic_int stop = 0;
    pthread_t t;
    lock = lock ? lock : &mine;
    watch_for_deadlock();
    CHECK(pthread_create(&t, NULL, fork_on, &stop) == 0);
    for (int round = 0; round < (under_udedup() ? 6 : 1); round++) {
        purged = merged_area(256, 19 + (uint64_t)round);
        atomic_fetch_add(&steps, 1);
        pthread_mutex_lock(lock);
        give();
        pthread_mutex_unlock(lock);
        CHECK(nonzero(purged, 256 * PAGE) == 0);
    }
    atomic_store(&stop, 1);
    pthread_join(t, NULL);
}

static void fork_meets_purge(void) { fork_meets(purge); }

static void move_and_purge(void)
{
    purged = mremap(purged, 256 * PAGE, 300 * PAGE, MREMAP_MAYMOVE);
    CHECK(purged != MAP_FAILED);
    purge();
}

static void fork_meets_move(void) { fork_meets(move_and_purge); }

/* Segments that are mapped elsewhere than in [a, end). */
static int mapped_beside(const char *a, const char *end)
{
    char line[512];
    uintptr_t from;
    int found = 0;
    FILE *f = fopen("/proc/self/maps", "re");
    while (fgets(line, sizeof line, f))
        found += strstr(line, "udedup-segment") && sscanf(line, "%lx-", &from) == 1 &&
                 (from < (uintptr_t)a || from >= (uintptr_t)end);
    fclose(f);
    return found;
}

static void fork_meets_no_stage(void)
{
    enum { PAGES = 256 };
    char *all = map_alone(2 * PAGES), *b = all + PAGES * PAGE;
    double end = now() + span();
    int bad = 0;
    for (uint64_t round = 0; now() < end; round++) {
        fill(all, PAGES, 200 + round);
        fill(b, PAGES, 200 + round);
        for (int i = 0, status = 0; i < 40; i++, nap(0.001)) {
            pid_t child = fork();
            if (child == 0)
                _exit(mapped_beside(all, all + 2 * PAGES * PAGE) != 0);
            CHECK(child > 0 && waitpid(child, &status, 0) == child);
            bad += status != 0;
        }
    }
    printf("bad %d\n", bad);
}

/* ---- limits that the program sets while it is merged ----------------------------------------------------------- */

static void *set_limits(void *stop)
{
    struct rlimit before, low = {1 << 20, RLIM_INFINITY};
    CHECK(getrlimit(RLIMIT_DATA, &before) == 0);
    while (!atomic_load((atomic_int *)stop)) {
        setrlimit(RLIMIT_DATA, &low);
        nap(0.002);
        setrlimit(RLIMIT_DATA, &before);
        nap(0.002);
    }
    return NULL;
}

static void limits_come_and_go(void)
{
    enum { PAGES = 4096 };
    atomic_int stop = 0;
    pthread_t t;
    char *a = map(PAGES + 16), *b = map(PAGES + 16);
    fill(a, PAGES, 7);
    fill(b, PAGES, 7);
    CHECK(pthread_create(&t, NULL, set_limits, &stop) == 0);
    double end = now() + (under_udedup() ? 4 : 0.1);
    size_t bad = 0;
    while (now() < end) {
        nap(0.2);
        bad += wrong(a, PAGES, 7) + wrong(b, PAGES, 7);
        for (size_t i = 0; i < PAGES; i++) /* split them all, so that they are merged anew */
            ((volatile char *)b)[i * PAGE] = b[i * PAGE];
    }
    atomic_store(&stop, 1);
    pthread_join(t, NULL);
    printf("wrong %zu\n", bad);
}

/* More segments, one after the other, than a process can know at a time. */
static void many_segments(void)
{
    enum { PAGES = 96, MIDDLE = 40 }; /* what lies at the ends may be near the stack or TLS */
    char *a = map_alone(PAGES), *b = map_alone(PAGES);
    for (uint64_t round = 0; round < 90; round++) {
        fill(a, PAGES, 100 + round);
        fill(b, PAGES, 100 + round);
        await_merged(a + MIDDLE * PAGE, 4);
        CHECK(wrong(a, PAGES, 100 + round) == 0 && wrong(b, PAGES, 100 + round) == 0);
    }
}

MAIN(T(fork_meets_no_stage), T(fork_purges), T(fork_meets_purge), T(fork_meets_move), T(limits_come_and_go), T(many_segments), T(dontneed_race), T(store_race), T(sharer_race), T(file_race), T(raw_mremap), T(killed_holder), T(realloc_race),
     T(fork_meets_no_window), T(clone_reads), T(clone_protects), T(mremap_race),
     T(protect_race), T(opens_ahead), T(thread_race), T(grows_down), T(grows_down_fixed), T(free_race),
     T(given_back), T(put_in_place), T(at_the_limit), T(at_the_limit_at_once), T(calls_by_turns), T(sleeps_in_a_row), T(proc_race))
