/* edges.c: what programs seldom ask of memory calls, and the answers they get from merged memory. */
#include "hz.h"

#include <dlfcn.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define N 32

static unsigned long locked_kb(void)
{
    char line[256];
    unsigned long kb = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (fgets(line, sizeof line, f))
        sscanf(line, "VmLck: %lu", &kb);
    fclose(f);
    return kb;
}

static void realloc_too_large(void)
{
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 100, SIZE_MAX / 2 + 2, 0xaaaaaaaaaaaaaaacul, (size_t)1 << 47};
    char *volatile p = memset(malloc(400000), 7, 400000);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        volatile size_t bytes = sizes[i];
        errno = 0;
        char *volatile q = realloc(p, bytes);
        printf("realloc %d %d\n", q == NULL, errno);
        CHECK(q == NULL && p[0] == 7 && p[399999] == 7);
    }
    volatile size_t most = SIZE_MAX;
    errno = 0;
    void *volatile v = pvalloc(most);
    printf("pvalloc %d %d\n", v == NULL, errno);
    free(p);
}

/* The kernel refuses these, and so must we: nothing may be moved, copied or lost. */
static void mremap_refused(void)
{
    for (int merged = 0; merged < 2; merged++) {
        char *p = merged ? merged_area(N, 41) : map_alone(N), *to = map(2 * N);
        if (!merged)
            fill(p, N, 41);
        SAY("overlap", mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p + 4 * PAGE));
        SAY("overlap", mremap(p + 4 * PAGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p));
        SAY("overlap", mremap(p, 8 * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p - 2 * PAGE));
        SAY("fixed alone", mremap(p, N * PAGE, N * PAGE, MREMAP_FIXED, to));
        SAY("fixed alone", mremap(p, N * PAGE, 2 * N * PAGE, MREMAP_FIXED, to));
        SAY("unknown", mremap(p, N * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE | 64));
        SAY("dontunmap alone", mremap(p, N * PAGE, N * PAGE, MREMAP_DONTUNMAP, to));
        SAY("dontunmap grows", mremap(p, N * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, to));
        SAY("dontunmap shrinks", mremap(p, N * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, to));
        SAY("odd", mremap(p + 1, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
        SAY("odd target", mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to + 8));
        SAY("none", mremap(p, 0, 0, MREMAP_MAYMOVE | MREMAP_FIXED, to));
        SAY("to none", mremap(p, N * PAGE, 0, MREMAP_MAYMOVE | MREMAP_FIXED, to));
        SAY("from none", mremap(p, 0, N * PAGE, MREMAP_MAYMOVE));
        SAY("too long", mremap(p, N * PAGE, SIZE_MAX - 2 * PAGE, MREMAP_MAYMOVE));
        SAY("too long", mremap(p, N * PAGE, 1ul << 50, MREMAP_MAYMOVE));
        SAY("out of range", mremap(p, N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)((1ul << 47) - 4 * PAGE)));
        printf("wrong %zu nonzero %zu\n", wrong(p, N, 41), nonzero(to, 2 * N * PAGE));
    }
}

static void dontneed_locked(void)
{
    char *p = merged_area(N, 42);
    CHECK(mlock(p, N * PAGE) == 0);
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    SAY("FREE", madvise(p, N * PAGE, MADV_FREE));
    printf("wrong %zu locked %lu\n", wrong(p, N, 42), locked_kb());
    SAY("DONTNEED_LOCKED", madvise(p, N * PAGE, 24));
    printf("nonzero %zu locked %lu\n", nonzero(p, N * PAGE), locked_kb());
    p = merged_area(N, 43);
    CHECK(mlock(p - 2 * PAGE, 2 * PAGE) == 0);
    SAY("DONTNEED", madvise(p - 2 * PAGE, (N + 2) * PAGE, MADV_DONTNEED)); /* the kernel comes no further */
    printf("wrong %zu\n", wrong(p, N, 43));
}

/* What a child sees of it: not mapped, wiped, or all of it. */
static void say_in_child(const char *p, uint64_t seed)
{
    int status;
    if (fork() == 0) {
        unsigned char in[1];
        _exit(mincore((void *)p, PAGE, in) ? 5 : nonzero(p, N * PAGE) ? 6 : 7);
    }
    wait(&status);
    printf("child %d wrong %zu\n", WEXITSTATUS(status), wrong(p, N, seed));
}

/* Contents follow a move; so do the flags of the mapping. */
static void flags_move_along(void)
{
    char *p[3], *q[3];
    for (int i = 0; i < 3; i++) {
        p[i] = map_alone(N);
        fill(p[i], N, 44);
    }
    CHECK(madvise(p[0], N * PAGE, MADV_DONTFORK) == 0 && madvise(p[1], N * PAGE, MADV_WIPEONFORK) == 0);
    CHECK(mlock(p[2], N * PAGE) == 0);
    nap(under_udedup() ? 0.2 : 0);
    for (int i = 0; i < 3; i++) {
        q[i] = map_alone(N);
        CHECK(mremap(p[i], N * PAGE, N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, q[i]) == q[i]);
    }
    printf("locked %lu\n", locked_kb());
    fflush(NULL);
    nap(under_udedup() ? 0.5 : 0);
    for (int i = 0; i < 2; i++)
        say_in_child(q[i], 44);
    printf("locked %lu\n", locked_kb());
    for (int i = 0; i < 3; i++) {
        p[i] = mremap(q[i], N * PAGE, 2 * N * PAGE, MREMAP_MAYMOVE);
        CHECK(p[i] != MAP_FAILED);
    }
    printf("locked %lu\n", locked_kb());
    nap(under_udedup() ? 0.5 : 0);
    for (int i = 0; i < 2; i++)
        say_in_child(p[i], 44);
}

static void say_grown(char *p, uint64_t seed)
{
    p = mremap(p, N * PAGE, 3 * N * PAGE, MREMAP_MAYMOVE);
    printf("moved %d wrong %zu\n", p != MAP_FAILED, p != MAP_FAILED ? wrong(p, N, seed) : 0);
}

static void no_descriptor_left(void)
{
    char *p = merged_area(N, 46), *q = merged_area(N, 47), *w = merged_area(N, 48), *r = merged_area(N, 49);
    struct rlimit l = {8, 8};
    CHECK(setrlimit(RLIMIT_NOFILE, &l) == 0);
    while (open("/dev/null", O_RDONLY) >= 0)
        ;
    alarm(20);
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    SAY("WIPEONFORK", madvise(w, N * PAGE, MADV_WIPEONFORK));
    say_grown(q, 47);
    SAY("REMOVE", madvise(r, N * PAGE, MADV_REMOVE));
}

static void no_process_left(void)
{
    char *p = merged_area(N, 46), *q = merged_area(N, 47), *w = merged_area(N, 48);
    struct rlimit l = {0, 0};
    if (geteuid() == 0)
        CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    CHECK(setrlimit(RLIMIT_NPROC, &l) == 0);
    alarm(20);
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    SAY("WIPEONFORK", madvise(w, N * PAGE, MADV_WIPEONFORK));
    say_grown(q, 47);
}

/* The first child made after this is the init of a namespace: nobody else may be it. */
static void first_of_a_namespace(void)
{
    char *p = merged_area(N, 50), *q = merged_area(N, 51);
    if (unshare((geteuid() ? CLONE_NEWUSER : 0) | CLONE_NEWPID) != 0) {
        puts("not here");
        return;
    }
    alarm(20);
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    q = mremap(q, N * PAGE, 3 * N * PAGE, MREMAP_MAYMOVE);
    printf("moved %d\n", q != MAP_FAILED);
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(getpid() == 1 ? 8 : 9);
        int status = 0;
        if (pid > 0)
            waitpid(pid, &status, 0);
        printf("child %d %d\n", pid > 0, WEXITSTATUS(status));
    }
}

static void no_proc(void)
{
    char *p = merged_area(N, 52), *q = merged_area(N, 53), *r = merged_area(N, 58);
    if (chroot("/dev") != 0) { /* there is no proc in it */
        puts("not here");
        return;
    }
    alarm(20);
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
    say_grown(q, 53);
    CHECK(mprotect(r, 4 * PAGE, PROT_READ) == 0 && mprotect(r + 4 * PAGE, 4 * PAGE, PROT_NONE) == 0);
    CHECK(setresuid(65534, 65534, 65534) == 0); /* another trust domain: the agent ends, what is merged stays so */
    nap(under_udedup() ? 1 : 0);
    SAY("DONTNEED", madvise(r, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu %zu\n", nonzero(r, 4 * PAGE), nonzero(r + 8 * PAGE, (N - 8) * PAGE));
    r[9 * PAGE] = 1;
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    SAY("read into READ", read(fds[0], r, 1));
    SAY("write from NONE", write(fds[1], r + 5 * PAGE, 1));
}

/* What an address space has room for by mremap it must have room for with us. */
static void realloc_in_little_room(void)
{
    size_t bytes = 160ul << 20;
    struct rlimit l = {400ul << 20, 400ul << 20};
    char *volatile p = malloc(bytes);
    memset(p, 5, 1 << 20);
    p[bytes - 1] = 6;
    CHECK(setrlimit(RLIMIT_AS, &l) == 0);
    p = realloc(p, bytes + (80 << 20));
    printf("grown %d %d\n", p != NULL, p ? p[0] + p[bytes - 1] : 0);
    free(p);
    char *volatile q[5];
    for (int i = 0; i < 5; i++)
        q[i] = memset(malloc(6 << 20), 1, 6 << 20);
    for (int i = 0; i < 5; i++)
        free(q[i]);
    p = malloc(265 << 20);
    printf("malloc %d\n", p != NULL);
    free(p);
}

static void process_madvise_self(void)
{
    char *p = merged_area(N, 55);
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec v[2] = {{p, 4 * PAGE}, {p + 8 * PAGE, 4 * PAGE}};
    SAY("process_madvise", process_madvise(fd, v, 2, MADV_DONTNEED, 0));
    printf("nonzero %zu %zu\n", nonzero(p, 4 * PAGE), nonzero(p + 8 * PAGE, 4 * PAGE));
    printf("wrong %zu\n", wrong(p, N, 55));
    v[1].iov_base = (char *)v[1].iov_base + 1;
    SAY("odd", process_madvise(fd, v, 2, MADV_DONTNEED, 0));
    SAY("odd", process_madvise(fd, v + 1, 1, MADV_DONTNEED, 0));
    SAY("flags", process_madvise(fd, v, 1, MADV_DONTNEED, 1));
    SAY("advice", process_madvise(fd, v, 1, 999, 0));
    SAY("descriptor", process_madvise(-1, v, 1, MADV_DONTNEED, 0));
    SAY("nothing", process_madvise(fd, v, 0, MADV_DONTNEED, 0));
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        pause();
    int other = (int)syscall(SYS_pidfd_open, child, 0);
    SAY("other", process_madvise(other, v, 1, MADV_DONTNEED, 0));
    SAY("other", process_madvise(other, v, 1, MADV_COLD, 0));
    CHECK(kill(child, SIGKILL) == 0 && wait(NULL) == child);
}

static void guard_pages(void)
{
    char *p = merged_area(N, 56);
    if (madvise(p - 2 * PAGE, PAGE, 102) != 0) {
        puts("not here");
        return;
    }
    p = mremap(p - 4 * PAGE, (N + 8) * PAGE, (2 * N + 8) * PAGE, MREMAP_MAYMOVE);
    printf("moved %d errno %d\n", p != MAP_FAILED, p != MAP_FAILED ? 0 : errno);
    if (p == MAP_FAILED)
        return;
    printf("wrong %zu\n", wrong(p + 4 * PAGE, N, 56));
    int fds[2];
    CHECK(pipe(fds) == 0);
    SAY("guarded", write(fds[1], p + 2 * PAGE, 1));
}

/* In a short gap between merged pages, which are given back together with it. */
static void guard_in_a_gap(void)
{
    char *p = merged_area(N, 59);
    memset(p + 8 * PAGE, 1, 3 * PAGE);
    if (madvise(p + 9 * PAGE, PAGE, 102) != 0) {
        puts("not here");
        return;
    }
    double end = now() + 5;
    while (under_udedup() && merged_in(p, 8) + merged_in(p + 10 * PAGE, N - 10) && now() < end)
        nap(0.01);
    int fds[2];
    CHECK(pipe(fds) == 0);
    SAY("guarded", write(fds[1], p + 9 * PAGE, 1));
    printf("given back %d wrong %zu %zu\n", now() < end, wrong(p, 8, 59), wrong_in(p, 11, N, 59));
}

/* Holes are told after the work is done. */
static void remove_after_a_file(void)
{
    char *p = merged_area(N, 57);
    int fd = memfd_create("shared", 0);
    CHECK(ftruncate(fd, PAGE) == 0 && pwrite(fd, "file", 4, 0) == 4);
    CHECK(mmap(p - PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == p - PAGE);
    SAY("remove", madvise(p - PAGE, 4 * PAGE, MADV_REMOVE));
    printf("file %d wrong %zu\n", p[-(long)PAGE], wrong(p, N, 57));
}

/* What only a process with one thread may do, in a process whose agent has hardly begun. */
static void unshare_at_once(void)
{
    int refused = 0;
    CHECK(unshare(CLONE_FS) == 0);
    merged_area(N, 61); /* there is an agent again */
    fflush(NULL);
    for (int i = 0; i < 40; i++) {
        if (fork() == 0)
            _exit(unshare(CLONE_NEWUSER) && errno == EINVAL);
        int status;
        wait(&status);
        refused += status != 0;
    }
    printf("refused %d\n", refused);
}

static unsigned long inode_at(const void *p)
{
    char perms[5];
    unsigned long inode;
    return mapping_at(p, perms, &inode) ? inode : 0;
}

/* A file of the program's whose inode has the number of a segment's, on another file system. */
static void same_inode_elsewhere(void)
{
    char dir[] = "/dev/shm/hz-XXXXXX", path[64];
    CHECK(mkdtemp(dir));
    if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        mount("hz", dir, "tmpfs", 0, NULL); /* where numbers begin at 1 */
    snprintf(path, sizeof path, "%s/file", dir);
    char *p = merged_area(N, 60);
    unsigned long wanted = inode_at(p);
    struct stat st = {0};
    int fd = -1;
    do {
        close(fd);
        CHECK((fd = open(path, O_CREAT | O_RDWR | O_EXCL, 0600)) >= 0 && fstat(fd, &st) == 0 && unlink(path) == 0);
    } while (st.st_ino < wanted);
    umount2(dir, MNT_DETACH);
    rmdir(dir);
    if (under_udedup() && st.st_ino != wanted)
        fprintf(stderr, "inode %lu, not %lu\n", (unsigned long)st.st_ino, wanted);
    CHECK(ftruncate(fd, 4 * PAGE) == 0 && pwrite(fd, "file", 4, 0) == 4);
    CHECK(mmap(p + 8 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) == p + 8 * PAGE);
    p[8 * PAGE] = 'm';
    SAY("DONTNEED", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("%.4s nonzero %zu\n", p + 8 * PAGE, nonzero(p, 8 * PAGE));
}

/* Wiped on fork by its kind, without any advice. */
static void droppable(void)
{
    char *p[2];
    for (int i = 0; i < 2; i++) {
        p[i] = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, 8 /* MAP_DROPPABLE */ | MAP_ANONYMOUS, -1, 0);
        if (p[i] == MAP_FAILED) {
            puts("not here");
            return;
        }
        mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        fill(p[i], N, 62);
    }
    for (double end = now() + 4; under_udedup() && now() < end && !merged_in(p[0], N);)
        nap(0.05);
    fflush(NULL);
    if (fork() == 0)
        _exit(nonzero(p[0], N * PAGE) || nonzero(p[1], N * PAGE));
    int status;
    wait(&status);
    printf("child %d\n", WEXITSTATUS(status));
}

static void sealed(void)
{
    char *p = merged_area(N, 63);
    if (syscall(462 /* mseal */, p, N * PAGE, 0) != 0) {
        puts("not here");
        return;
    }
    SAY("munmap", munmap(p, PAGE));
    SAY("dontneed", madvise(p, N * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p, N * PAGE));
}

static int (*leave)(void), (*join)(const char *, int);
static atomic_int over;

static void *come_and_go(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    const char *socket = getenv("UDEDUP_SOCKET");
    while (!atomic_load(&over)) {
        int r = rand_r(&seed) % 2 ? leave() : join(socket, 0);
        (void)r;
        nap(0.001 * (rand_r(&seed) % 30));
    }
    return NULL;
}

/* By many threads at once, and in children: none hangs, and nothing is lost. */
static void leave_and_join(void)
{
    leave = (int (*)(void))dlsym(RTLD_DEFAULT, "ud_leave");
    join = (int (*)(const char *, int))dlsym(RTLD_DEFAULT, "ud_join");
    char *p = merged_area(N, 65);
    pthread_t t[4];
    if (under_udedup()) {
        char socket[108];
        strcpy(socket, getenv("UDEDUP_SOCKET"));
        CHECK(leave() == 0 && merged_in(p, N) == 0);
        CHECK(join(socket, 0) == 0);
        await_merged(p, N);
        for (uintptr_t i = 0; i < 4; i++)
            CHECK(pthread_create(&t[i], NULL, come_and_go, (void *)i) == 0);
    }
    for (int i = 0; i < (under_udedup() ? 20 : 1); i++) {
        fill(p + i * PAGE, 1, 66);
        pid_t pid = fork();
        if (pid == 0) {
            alarm(20);
            int r = under_udedup() ? leave() : 0;
            _exit((r != 0 && r != -ENOENT) || wrong(p + i * PAGE, 1, 66) || wrong_in(p, (size_t)i + 1, N, 65));
        }
        int status;
        waitpid(pid, &status, 0);
        CHECK(status == 0);
        nap(under_udedup() ? 0.05 : 0);
    }
    atomic_store(&over, 1);
    for (int i = 0; under_udedup() && i < 4; i++)
        CHECK(pthread_join(t[i], NULL) == 0);
    char *q = map_alone(N);
    fill(q, N, 65);
    if (under_udedup()) {
        int r = join(getenv("UDEDUP_SOCKET"), 0);
        if (r) fprintf(stderr, "join %d\n", r);
        await_merged(p + 20 * PAGE, 8);
    }
}

/* Blocks that were locked, or closed, when they were freed: the next to get such memory knows nothing of that. */
static void freed_as_they_were(void)
{
    enum { COUNT = 6, BYTES = 800000 };
    char *volatile b[COUNT];
    for (int i = 0; i < COUNT; i++) {
        b[i] = memset(memalign(PAGE, BYTES), 1, BYTES);
        CHECK(mprotect(b[i] + PAGE, 8 * PAGE, i % 2 ? PROT_READ : PROT_NONE) == 0);
    }
    for (int i = 0; i < COUNT; i++)
        free(b[i]);
    for (int i = 0; i < COUNT; i++)
        b[i] = memset(memalign(PAGE, BYTES), 2, BYTES);
    for (int i = 0; i < COUNT; i++)
        free(b[i]);
    for (int i = 0; i < COUNT; i++) {
        b[i] = malloc(BYTES + BYTES / 8);
        CHECK(mlock(b[i], BYTES / 2) == 0);
    }
    for (int i = 0; i < COUNT; i++)
        free(b[i]);
    malloc_trim(0);
    printf("locked %lu\n", locked_kb());
}

/* The agent has ended, for this process traces others, and pages that it merged are there. */
static void written_without_agent(void)
{
    char *p = merged_area(N, 67);
    SAY("ptrace", ptrace(PTRACE_CONT, 0x3ffffff, NULL, NULL));
    fill(p, N, 68);
    printf("wrong %zu\n", wrong(p, N, 68));
}

/* More pages in one call than 32 bits count, some of them merged. */
static void vast_ranges(void)
{
    size_t bytes = 20ul << 40, at = 19ul << 40;
    for (int i = 0; i < 3; i++) {
        char *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(base != MAP_FAILED);
        char *p = base + at, *twin = map_alone(N + 1); /* a last page is never merged */
        CHECK(mprotect(p - PAGE, (N + 2) * PAGE, PROT_READ | PROT_WRITE) == 0);
        fill(p, N, 80 + (uint64_t)i);
        fill(twin, N, 80 + (uint64_t)i);
        if (getenv("HZ_ADVISE"))
            madvise(p, N * PAGE, 12);
        await_merged(p, N);
        double began = now();
        if (i == 0) {
            SAY("dontneed", madvise(base, bytes, MADV_DONTNEED));
            printf("nonzero %zu\n", nonzero(p, N * PAGE));
        } else if (i == 1) {
            SAY("wipeonfork", madvise(base, bytes, MADV_WIPEONFORK));
            fflush(NULL);
            if (fork() == 0)
                _exit(nonzero(p, N * PAGE) != 0);
            int status;
            wait(&status);
            printf("child %d\n", status);
        }
        SAY("munmap", munmap(base, bytes));
        printf("quick %d\n", now() - began < 0.5);
    }
    double began = now();
    SAY("munmap", munmap(map(1), 1ul << 62));
    printf("quick %d\n", now() - began < 0.5);
}

static void *grow_and_shrink(void *arg)
{
    while (!atomic_load(&over)) {
        char *p = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(p != MAP_FAILED && munmap(p, 64 * PAGE) == 0);
    }
    return arg;
}

/* Memory that grows brings an agent, but not back to a process that has left. */
static void left_while_growing(void)
{
    leave = (int (*)(void))dlsym(RTLD_DEFAULT, "ud_leave");
    join = (int (*)(const char *, int))dlsym(RTLD_DEFAULT, "ud_join");
    pthread_t t[2];
    char *p = merged_area(N, 69);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&t[i], NULL, grow_and_shrink, NULL) == 0);
    char socket[108];
    for (int i = 0; under_udedup() && i < 10; i++) {
        strcpy(socket, getenv("UDEDUP_SOCKET"));
        CHECK(leave() == 0);
        CHECK(leave() == -ENOENT);
        CHECK(join(socket, 0) == 0);
    }
    atomic_store(&over, 1);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(t[i], NULL) == 0);
    printf("wrong %zu\n", wrong(p, N, 69));
}

/* Since Linux 6.17 one mremap moves several mappings, each as it is. */
static void several_moved(void)
{
    char *p = map_alone(3 * N), *to = map_alone(3 * N), *m = merged_area(N, 94);
    fill(p, 3 * N, 92);
    CHECK(madvise(p + N * PAGE, N * PAGE, MADV_DONTFORK) == 0);
    nap(under_udedup() ? 0.2 : 0);
    SAY("move", mremap(p, 3 * N * PAGE, 3 * N * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to ? 0 : -1);
    printf("wrong %zu\n", wrong(to, 3 * N, 92));
    fflush(NULL);
    if (fork() == 0) {
        unsigned char in[1];
        _exit(mincore(to + N * PAGE, PAGE, in) ? 5 : 6);
    }
    int status;
    wait(&status);
    printf("child %d\n", WEXITSTATUS(status));
    CHECK(mprotect(m + 8 * PAGE, 4 * PAGE, PROT_READ) == 0);
    p = map_alone(N + 8);
    SAY("move", mremap(m - 4 * PAGE, (N + 8) * PAGE, (N + 8) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p ? 0 : -1);
    printf("wrong %zu\n", wrong(p + 4 * PAGE, N, 94));
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], "xy", 2) == 2);
    SAY("read into READ", read(fds[0], p + 13 * PAGE, 1));
    SAY("read", read(fds[0], p + 5 * PAGE, 1));
    SAY("DONTNEED", madvise(p + 4 * PAGE, 4 * PAGE, MADV_DONTNEED));
    printf("nonzero %zu\n", nonzero(p + 4 * PAGE, 4 * PAGE));
}

/* A guard stays until its memory is unmapped: the next owner of a freed block must not find it. */
static void guarded_block(void)
{
    for (int i = 0; i < 3; i++) {
        char *volatile p = malloc(1 << 20);
        memset(p, 1, 1 << 20);
        if (i == 0)
            printf("guard %d\n", madvise((char *)(((uintptr_t)p + PAGE) & ~(PAGE - 1)) + 8 * PAGE, PAGE, 102));
        free(p);
    }
}

/* What is mapped is locked from now on, also what we map: none of it is counted once it is gone. */
static void locked_in_future(void)
{
    enum { PAGES = 256 };
    char *a = map(PAGES), *b = map(PAGES);
    CHECK(mlockall(MCL_FUTURE) == 0);
    fill(a, PAGES, 95);
    fill(b, PAGES, 95);
    await_merged(a + 40 * PAGE, 100);
    CHECK(munlockall() == 0);
    nap(under_udedup() ? 0.2 : 0);
    printf("wrong %zu, locked %lu kB\n", wrong(a, PAGES, 95) + wrong(b, PAGES, 95), locked_kb());
}

MAIN(T(guarded_block), T(locked_in_future), T(realloc_too_large), T(mremap_refused), T(dontneed_locked), T(flags_move_along),
     T(no_descriptor_left), T(no_process_left), T(first_of_a_namespace), T(no_proc), T(realloc_in_little_room),
     T(process_madvise_self), T(guard_pages), T(guard_in_a_gap), T(remove_after_a_file), T(unshare_at_once),
     T(same_inode_elsewhere), T(droppable), T(sealed), T(leave_and_join),
     T(freed_as_they_were), T(written_without_agent),
     T(vast_ranges), T(left_while_growing), T(several_moved))
