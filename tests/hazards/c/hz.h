/* hz.h: what the hazard programs share. Each is a table of tests; one test runs in one process.
 *
 * A test prints what it observed, the same text with and without udedup; the Python side compares both runs.
 * CHECK ends the process with status 1, an area that is not merged in time ends it with 99.
 */
#ifndef HZ_H
#define HZ_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: %s: not so (errno %d)\n", __FILE__, __LINE__, #what, errno);                       \
            fflush(NULL);                                                                                              \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

struct test {
    const char *name;
    void (*run)(void);
};

static inline int under_udedup(void) { return getenv("UDEDUP_SOCKET") && !getenv("UDEDUP_DISABLE"); }

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void nap(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

/* Pages of [p, p + pages) that are mapped from a file: bit 61 of the pagemap; 0 again once split. A page
 * counts once it is in the page table, so each is read first. */
static inline size_t merged_in(const void *p, size_t pages)
{
    uint64_t words[512];
    size_t found = 0;
    for (size_t i = 0; i < pages; i++)
        (void)*((const volatile char *)p + i * PAGE);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (size_t at = 0; at < pages;) {
        size_t n = pages - at < 512 ? pages - at : 512;
        ssize_t got = pread(fd, words, n * 8, (off_t)(((uintptr_t)p / PAGE + at) * 8));
        if (got <= 0)
            break;
        for (ssize_t i = 0; i < got / 8; i++)
            found += words[i] >> 61 & 1;
        at += (size_t)got / 8;
    }
    close(fd);
    return found;
}

/* What /proc/self/maps says of the mapping at p: "rwxp" into perms, and its inode; 0 if there is none. */
static inline int mapping_at(const void *p, char perms[5], unsigned long *inode)
{
    char line[512];
    uintptr_t from, to;
    int found = 0;
    FILE *f = fopen("/proc/self/maps", "re");
    while (!found && fgets(line, sizeof line, f))
        found = sscanf(line, "%lx-%lx %4s %*s %*s %lu", &from, &to, perms, inode) == 4 && from <= (uintptr_t)p && (uintptr_t)p < to;
    fclose(f);
    return found;
}

static inline void await_merged(const void *p, size_t pages)
{
    double end = now() + 10;
    if (!under_udedup() || getenv("HZ_NO_WAIT"))
        return; /* under a debugger nothing is merged, and that is right */
    for (size_t got = 0; (got = merged_in(p, pages)) < pages; nap(0.005))
        if (now() > end) {
            fprintf(stderr, "only %zu of %zu pages were merged\n", got, pages);
            fflush(NULL);
            _exit(99);
        }
}

static inline void fill(void *p, size_t pages, uint64_t seed)
{
    uint64_t *w = p;
    for (size_t i = 0; i < pages * PAGE / 8; i++)
        w[i] = seed << 40 | i;
}

/* Words of pages [from, to) of the area at p that are not as fill(p, ...) wrote them. */
static inline size_t wrong_in(const void *p, size_t from, size_t to, uint64_t seed)
{
    const volatile uint64_t *w = p;
    size_t bad = 0;
    for (size_t i = from * PAGE / 8; i < to * PAGE / 8; i++)
        bad += w[i] != (seed << 40 | i);
    return bad;
}

static inline size_t wrong(const void *p, size_t pages, uint64_t seed) { return wrong_in(p, 0, pages, seed); }

static inline size_t nonzero(const void *p, size_t bytes)
{
    const volatile unsigned char *c = p;
    size_t bad = 0;
    for (size_t i = 0; i < bytes; i++)
        bad += c[i] != 0;
    return bad;
}

static inline void *map(size_t pages)
{
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    if (getenv("HZ_ADVISE")) /* mode trap merges what is advised */
        madvise(p, pages * PAGE, 12);
    return p;
}

/* Between two closed pages, so that it is a mapping of its own. */
static inline void *map_alone(size_t pages)
{
    char *p = map(pages + 2);
    CHECK(mprotect(p, PAGE, PROT_NONE) == 0 && mprotect(p + (pages + 1) * PAGE, PAGE, PROT_NONE) == 0);
    return p + PAGE;
}

/* `pages` pages that are equal to others in this process and merged with them. What comes before and after
 * belongs to the same mapping, so none of them is its last page. */
static inline char *merged_area(size_t pages, uint64_t seed)
{
    char *twin = map_alone(pages + 8), *mine = map_alone(pages + 8);
    fill(twin + 4 * PAGE, pages, seed);
    fill(mine + 4 * PAGE, pages, seed);
    memset(twin, 1, 4 * PAGE);
    memset(mine, 2, 4 * PAGE);
    memset(twin + (pages + 4) * PAGE, 3, 4 * PAGE);
    memset(mine + (pages + 4) * PAGE, 4, 4 * PAGE);
    await_merged(mine + 4 * PAGE, pages);
    return mine + 4 * PAGE;
}

/* "name result errno": write SAY("call", call(...)). */
static inline void say(const char *name, long result)
{
    printf("%s %ld %d\n", name, result, result == -1 ? errno : 0);
}
#define SAY(name, call) say(name, (errno = 0, (long)(call)))

static inline int run_named(const struct test *tests, int argc, char **argv)
{
    static char buffer[1 << 16];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer); /* no malloc by printf: the heap is under test */
    for (const struct test *t = tests; argc > 1 && t->name; t++)
        if (!strcmp(t->name, argv[1])) {
            t->run();
            puts("done");
            fflush(NULL);
            return 0;
        }
    for (const struct test *t = tests; t->name; t++)
        puts(t->name);
    return argc > 1 ? 64 : 0;
}

#define MAIN(...)                                                                                                      \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        static const struct test tests[] = {__VA_ARGS__, {NULL, NULL}};                                                \
        return run_named(tests, argc, argv);                                                                           \
    }
#define T(name) {#name, name}

#endif
