/* trap_owner.c: may trap mode go on? Only while SIGSEGV reaches our handler, in every thread.
 *
 * Guarantees: names who stands in the way, by mapping and offset or by thread; raw system calls only; the
 * handler is looked at each time, the threads at most five times a second.
 * Fails: between two looks somebody may take SIGSEGV by a direct system call; a write to a protected
 * page then reaches his handler. So the agent opens everything as soon as it sees it.
 */
#include <fcntl.h>
#include <signal.h>

#include "internal.h"
#include "trap.h"

#define THREADS_EVERY_US 200000

void ud__each_line(const char *path, int (*line)(const char *, void *), void *arg)
{
    char buf[4096 + 1];
    size_t fill = 0;
    long r, fd = ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    while ((r = ud__sys(__NR_read, fd, buf + fill, sizeof buf - 1 - fill)) > 0) {
        char *at = buf, *end = buf + fill + r;
        for (char *s = buf; s < end; s++)
            if (*s == '\n') {
                *s = 0;
                if (line(at, arg)) {
                    ud__sys(__NR_close, fd);
                    return;
                }
                at = s + 1;
            }
        fill = (size_t)(end - at);
        if (fill == sizeof buf - 1)
            fill = 0; /* a line longer than any of /proc: dropped */
        __builtin_memmove(buf, at, fill);
    }
    ud__sys(__NR_close, fd);
}

struct who {
    uint64_t addr;
    char *at;
    const char *end;
    int done;
};

static char *put_hex(char *at, const char *end, uint64_t v)
{
    int shift = 60;
    at = ud__put_str(at, end, "0x");
    while (shift && !(v >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4) {
        char c[2] = {"0123456789abcdef"[v >> shift & 15], 0};
        at = ud__put_str(at, end, c);
    }
    return at;
}

static int name_mapping(const char *s, void *arg)
{
    struct who *w = arg;
    uint64_t start = ud__get_hex(&s);
    s++;
    uint64_t stop = ud__get_hex(&s);
    if (w->addr < start || w->addr >= stop)
        return 0;
    s += 6; /* " r-xp " */
    uint64_t offset = ud__get_hex(&s);
    while (*s && *s != '/' && *s != '[')
        s++;
    w->at = ud__put_str(w->at, w->end, *s ? s : "anonymous memory");
    w->at = ud__put_str(w->at, w->end, "+");
    w->at = put_hex(w->at, w->end, w->addr - start + offset);
    w->done = 1;
    return 1;
}

static void name_owner(void *owner, char *text, size_t cap)
{
    struct who w = {(uint64_t)owner, text, text + cap, 0};
    if (owner == SIG_DFL || owner == SIG_IGN) {
        ud__put_str(w.at, w.end, "SIGSEGV was set to its default action behind our back");
        return;
    }
    w.at = ud__put_str(w.at, w.end, "SIGSEGV is handled by ");
    ud__each_line("/proc/self/maps", name_mapping, &w);
    if (!w.done)
        put_hex(w.at, w.end, w.addr);
}

struct thread {
    char name[32];
    uint64_t blocked;
};

static int read_status(const char *s, void *arg)
{
    struct thread *t = arg;
    if (__builtin_memcmp(s, "Name:\t", 6) == 0)
        ud__put_str(t->name, t->name + sizeof t->name, s + 6);
    if (__builtin_memcmp(s, "SigBlk:\t", 8) != 0)
        return 0;
    s += 8;
    t->blocked = ud__get_hex(&s);
    return 1;
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static int thread_ok(uint64_t tid, char *text, size_t cap)
{
    char path[64], *end = path + sizeof path, *at = ud__put_str(path, end, "/proc/self/task/");
    struct thread t = {"", 0};
    at = ud__put_dec(at, end, tid);
    ud__put_str(at, end, "/status");
    ud__each_line(path, read_status, &t);
    if (!(t.blocked & 1ull << (SIGSEGV - 1)) || same(t.name, "udedup-agent"))
        return 1;
    at = ud__put_str(text, text + cap, "thread ");
    at = ud__put_str(at, text + cap, t.name);
    at = ud__put_str(at, text + cap, " (");
    at = ud__put_dec(at, text + cap, tid);
    ud__put_str(at, text + cap, ") blocks SIGSEGV");
    return 0;
}

static int threads_ok_now(char *text, size_t cap)
{
    char buf[2048];
    int ok = 1;
    long n, fd = ud__sys(__NR_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return 1;
    while (ok && (n = ud__sys(__NR_getdents64, fd, buf, sizeof buf)) > 0)
        for (long at = 0; at < n && ok;) {
            uint16_t reclen;
            const char *name = buf + at + 19;
            __builtin_memcpy(&reclen, buf + at + 16, 2);
            at += reclen;
            uint64_t tid = ud__get_dec(&name);
            if (tid)
                ok = thread_ok(tid, text, cap);
        }
    ud__sys(__NR_close, fd);
    return ok;
}

/* libc blocks everything for a moment in pthread_create, fork and abort: only who still does is named. */
static int threads_ok(char *text, size_t cap)
{
    for (int tries = 0; tries < 4; tries++) {
        if (threads_ok_now(text, cap))
            return 1;
        ud__sleep_us(500u << tries);
    }
    return 0;
}

int ud__trap_owner_ok(char *text, size_t cap)
{
    static _Atomic uint64_t looked;
    static atomic_int last = 1;
    void *owner;
    text[0] = 0;
    if (!ud__sig_ours(&owner)) {
        name_owner(owner, text, cap);
        return 0;
    }
    uint64_t now = ud__now_us();
    if (now - atomic_load(&looked) < THREADS_EVERY_US && atomic_load(&last))
        return 1;
    atomic_store(&looked, now);
    atomic_store(&last, threads_ok(text, cap));
    return atomic_load(&last);
}
