/* program.c: a program as one writes them for KSM, worked by commands on its standard input; one answer a line.
 *
 * It knows nothing of udedup, but for `merged`, which asks the kernel. The area that commands work on has one page more
 * behind it, so that its last page is not the last one of the mapping.
 */
#include "hz.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>

static char *area;
static size_t pages;
static char **self;

static void answer(const char *name, long result) /* errno is the result's */
{
    printf("%s %ld %d\n", name, result, result == -1 ? errno : 0);
}

/* The room behind it keeps it away from the TLS, near which nothing is merged. */
static void map_area(size_t n, size_t align)
{
    size_t bytes = (n + 1) * PAGE + (128 << 10);
    char *p = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    area = align ? (char *)(((uintptr_t)p + align - 1) & ~(align - 1)) : p;
    pages = n;
}

/* Wakes six times a second and writes what was there: the same as every other such thread. */
static void *writes_its_stack(void *unused)
{
    char room[9 * PAGE];
    volatile char *p = (char *)(((uintptr_t)room + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    for (;;) {
        for (size_t i = 0; i < 8 * PAGE; i++)
            p[i] = (char)(i / PAGE + 1);
        nap(0.15);
    }
    return unused;
}

/* The area moves away, and other memory comes to lie where it was: that is the area from now on. */
static void move_away(void)
{
    size_t bytes = (pages + 1) * PAGE;
    char *to = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(to != MAP_FAILED);
    CHECK(mremap(area, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    CHECK(mmap(area, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == area);
}

/* Every page another, the same in each process. */
static void fill_distinct(uint64_t seed)
{
    for (size_t i = 0; i < pages; i++)
        for (size_t k = 0; k < PAGE / 8; k++)
            ((uint64_t *)(area + i * PAGE))[k] = (seed << 32 | i) * 0x9e3779b97f4a7c15ull + k;
}

static uint64_t checksum(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < pages * PAGE / 8; i++)
        sum = sum * 31 + ((const uint64_t *)area)[i];
    return sum;
}

/* The page frames of the area, in a file of 8 bytes a page (root sees them). */
static void save_frames(const char *path)
{
    uint64_t word;
    int fd = open("/proc/self/pagemap", O_RDONLY), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (size_t i = 0; i < pages; i++) {
        CHECK(pread(fd, &word, 8, (off_t)(((uintptr_t)area / PAGE + i) * 8)) == 8);
        CHECK(write(out, &word, 8) == 8);
    }
    close(fd);
    close(out);
}

/* From here on the kernel is one without PR_SET_MEMORY_MERGE. */
static void forget_prctl(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_prctl, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 67, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 68, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* What madvise says to advice about all kinds of ranges. */
static void advise_all_kinds(int advice)
{
    char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int fd = open(self[0], O_RDONLY);
    char *file = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    SAY("whole", madvise(p, 16 * PAGE, advice));
    SAY("nothing", madvise(p, 0, advice));
    SAY("odd length", madvise(p, 100, advice));
    SAY("odd address", madvise(p + 1, PAGE, advice));
    SAY("wraps", madvise(p, (size_t)-PAGE, advice));
    SAY("beyond the top", madvise((void *)(1ul << 60), PAGE, advice));
    SAY("shared", madvise(shared, 4 * PAGE, advice));
    SAY("file", madvise(file, PAGE, advice));
    CHECK(mprotect(p + 8 * PAGE, PAGE, PROT_NONE) == 0);
    SAY("closed page", madvise(p, 16 * PAGE, advice));
    CHECK(munmap(p + 4 * PAGE, PAGE) == 0);
    SAY("hole", madvise(p, 16 * PAGE, advice));
    SAY("hole alone", madvise(p + 4 * PAGE, PAGE, advice));
    SAY("unmapped", (munmap(p, 16 * PAGE), madvise(p, 16 * PAGE, advice)));
    close(fd);
}

static void prctl_all_kinds(void)
{
    SAY("get", prctl(68, 0, 0, 0, 0));
    SAY("set 1 with more", prctl(67, 1, 1, 0, 0));
    SAY("set 1 with fifth", prctl(67, 1, 0, 0, 1));
    SAY("get with more", prctl(68, 1, 0, 0, 0));
    SAY("get", prctl(68, 0, 0, 0, 0));
    SAY("set 0", prctl(67, 0, 0, 0, 0));
    SAY("set 1", prctl(67, 1, 0, 0, 0));
    SAY("get", prctl(68, 0, 0, 0, 0));
    SAY("set 7", prctl(67, 7, 0, 0, 0));
    SAY("get", prctl(68, 0, 0, 0, 0));
    SAY("set 0", prctl(67, 0, 0, 0, 0));
    SAY("get", prctl(68, 0, 0, 0, 0));
}

/* A crash at a random moment after it has registered. */
static void crash(unsigned seed)
{
    static const int how[] = {SIGKILL, SIGSEGV, SIGABRT, SIGTERM};
    srand(seed);
    map_area(512, 0);
    fill_distinct(1 + seed % 2);
    madvise(area, pages * PAGE, 12);
    nap(rand() % 60 / 1000.0);
    memset(area + rand() % 512 * PAGE, 5, PAGE);
    signal(SIGTERM, SIG_DFL);
    if (rand() % 5 == 0)
        _exit(0);
    kill(getpid(), how[rand() % 4]);
}

/* Children that register and crash at once, for so many seconds. How many there were. */
static long crash_children(double seconds)
{
    long started = 0, there = 0;
    for (double end = now() + seconds; now() < end;) {
        pid_t pid = there < 6 ? fork() : -1;
        if (pid == 0) {
            crash((unsigned)(started * 7919));
            _exit(9);
        }
        started += pid > 0;
        there += pid > 0;
        while (there && waitpid(-1, NULL, there < 6 ? WNOHANG : 0) > 0)
            there--;
    }
    while (waitpid(-1, NULL, 0) > 0)
        ;
    return started;
}

/* Does one command; a child made by `fork` does the rest of the line. */
static void run(char *line)
{
    char *word = strsep(&line, " \n"), *rest = line ? line : "";
    long n = strtol(rest, NULL, 0);
    errno = 0;
    if (!strcmp(word, "map"))
        map_area((size_t)n, 0), answer(word, 0);
    else if (!strcmp(word, "maphuge"))
        map_area((size_t)n, 2ul << 20), answer(word, madvise(area, pages * PAGE, MADV_HUGEPAGE));
    else if (!strcmp(word, "fill"))
        memset(area, (int)n, pages * PAGE), answer(word, 0);
    else if (!strcmp(word, "distinct"))
        fill_distinct((uint64_t)n), answer(word, 0);
    else if (!strcmp(word, "last"))
        area[pages * PAGE - 1] = (char)n, answer(word, 0);
    else if (!strcmp(word, "touch")) { /* the first n pages get other contents */
        for (long i = 0; i < n; i++)
            ++*(volatile uint64_t *)(area + (size_t)i * PAGE);
        answer(word, n);
    } else if (!strcmp(word, "spin")) { /* writes its whole area again and again, for n milliseconds */
        for (double end = now() + (double)n / 1e3; now() < end; nap(0.001))
            for (size_t i = 0; i < pages; i++)
                ++*(volatile uint64_t *)(area + i * PAGE);
        answer(word, 0);
    } else if (!strcmp(word, "sleep")) { /* n milliseconds, after it has said who sleeps */
        answer(word, getpid());
        fflush(stdout);
        nap((double)n / 1e3);
    } else if (!strcmp(word, "stacks")) {
        pthread_t t;
        for (int i = 0; i < 2; i++)
            CHECK(pthread_create(&t, NULL, writes_its_stack, NULL) == 0);
        answer("stacks", 0);
    } else if (!strcmp(word, "advise"))
        answer(word, madvise(area, pages * PAGE, (int)n));
    else if (!strcmp(word, "move"))
        move_away(), answer(word, 0);
    else if (!strcmp(word, "mlock"))
        answer(word, mlock(area, pages * PAGE));
    else if (!strcmp(word, "set"))
        answer(word, prctl(67, n, 0, 0, 0));
    else if (!strcmp(word, "get"))
        answer(word, prctl(68, 0, 0, 0, 0));
    else if (!strcmp(word, "merged"))
        answer(word, (long)merged_in(area, pages));
    else if (!strcmp(word, "sum"))
        printf("sum %016lx\n", (unsigned long)checksum());
    else if (!strcmp(word, "frames"))
        rest[strcspn(rest, "\n")] = 0, save_frames(rest), answer(word, 0);
    else if (!strcmp(word, "pageout"))
        answer(word, madvise(area, pages * PAGE, 21 /* MADV_PAGEOUT */));
    else if (!strcmp(word, "noprctl"))
        forget_prctl(), answer(word, 0);
    else if (!strcmp(word, "kinds"))
        advise_all_kinds((int)n), answer(word, 0);
    else if (!strcmp(word, "prctls"))
        prctl_all_kinds(), answer(word, 0);
    else if (!strcmp(word, "crash"))
        answer(word, crash_children((double)n));
    else if (!strcmp(word, "exec"))
        execv(self[0], self), answer(word, -1);
    else if (!strcmp(word, "fork")) {
        pid_t pid = fork();
        if (pid == 0) {
            run(rest);
            fflush(stdout);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    } else
        answer("what?", -1);
}

int main(int argc, char **argv)
{
    char line[4096];
    (void)argc;
    self = argv;
    setvbuf(stdin, NULL, _IONBF, 0); /* exec finds what was not read yet */
    printf("ready %d 0\n", (int)getpid());
    for (fflush(stdout); fgets(line, sizeof line, stdin); fflush(stdout))
        run(line);
    return 0;
}
