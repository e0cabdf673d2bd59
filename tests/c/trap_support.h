/* What tests of the trap share: a region, merging a part of it as the agent would, children that may die. */
#ifndef TRAP_SUPPORT_H
#define TRAP_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"
#include "internal.h"
#include "trap.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* What is merged.c's, hold.c's, job.c's and fork.c's in the library. Nobody is held by signals here. */
atomic_int ud__busy_count, ud__hold_way;
void ud__job_lock(uint64_t *mask) { *mask = 0; }
void ud__job_unlock(const uint64_t *mask) { (void)mask; }
int ud__in_vfork(void) { return 0; }

/* TSan runs every handler with all signals blocked, set by a direct system call, and where two of them nest (its
 * oldset is one word a thread) leaves them blocked for good: no signals beside writers there. */
#ifdef __SANITIZE_THREAD__
enum { SIGNALS_TOO = 0 };
#else
enum { SIGNALS_TOO = 1 };
#endif

static inline char *new_region(size_t pages)
{
    char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    for (size_t i = 0; i < pages; i++)
        memset(p + i * PAGE, (int)(i + 1), PAGE);
    return p;
}

static inline void enable(void)
{
    char text[128];
    int r = ud__trap_enable(NULL, text, sizeof text);
#ifdef __SANITIZE_THREAD__
    if (r == -EBUSY) /* TSan's own thread, which writes to none of our pages, blocks everything */
        r = 0;
#endif
    CHECK(!r, "%s", text);
}

/* TSan cannot know that protection orders these reads after the writers' stores. */
__attribute__((no_sanitize("thread"))) static inline int same_bytes(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i += sizeof(uint64_t))
        if (*(const volatile uint64_t *)(a + i) != *(const volatile uint64_t *)(b + i))
            return 0;
    return 1;
}

/* One whole merge: close, copy to a sealed memfd, compare, remap, end. 0, or why the window was refused. */
static inline int merge(char *p, size_t pages, int protect)
{
    uint64_t start = (uint64_t)p, end = start + pages * PAGE;
    int r = ud__trap_begin(start, end, NULL, NULL);
    if (r)
        return r;
    int fd = memfd_create("test-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && syscall(SYS_pwrite64, fd, p, pages * PAGE, 0) == (long)(pages * PAGE));
    CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL));
    char *copy = mmap(NULL, pages * PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(copy != MAP_FAILED);
    int equal = same_bytes(copy, p, pages * PAGE); /* nobody can have written since the copy was made */
    CHECK(equal, "a page changed inside the window");
    munmap(copy, pages * PAGE);
    int prot = protect ? PROT_READ : PROT_READ | PROT_WRITE;
    CHECK(syscall(SYS_mmap, p, pages * PAGE, prot, MAP_PRIVATE | MAP_FIXED, fd, 0) == (long)p);
    close(fd);
    ud__trap_end(start, end, protect ? UD__TRAP_PROTECTED : UD__TRAP_OPEN);
    return 0;
}

static inline struct ud__trap_counts counts(void)
{
    struct ud__trap_counts c;
    ud__trap_counts(&c);
    return c;
}

/* Runs fn in a child and returns its wait status. */
static inline int in_child(void (*fn)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        alarm(20);
        fn();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

#define EXITS(fn, code)                                                                     \
    do {                                                                                    \
        int st = in_child(fn);                                                              \
        CHECK(WIFEXITED(st) && WEXITSTATUS(st) == (code), #fn ": status 0x%x", st);         \
    } while (0)
#define DIES(fn, sig)                                                                       \
    do {                                                                                    \
        int st = in_child(fn);                                                              \
        CHECK(WIFSIGNALED(st) && WTERMSIG(st) == (sig), #fn ": status 0x%x", st);           \
    } while (0)

#endif
