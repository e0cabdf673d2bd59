/* sharers.c: is there another process on our memory (CLONE_VM without CLONE_THREAD), whose writes no hold can stop?
 *
 * Asked while everybody is held, so that no thread of ours makes one meanwhile. It is a child of the thread that made it,
 * and kcmp(2) tells whether a child has our memory. Our own helpers have, and only read what is the program's.
 *
 * Guarantees: one that our threads made, and that they are still the parents of, is found; vfork is hold.c's.
 * Fails: one whose maker has ended (it was handed on to another parent), one that a sharer made in its turn, and all of
 * them on a kernel without CONFIG_PROC_CHILDREN or under a seccomp filter that refuses kcmp, are not seen.
 */
#include <fcntl.h>

#include "internal.h"

#define KCMP_VM 1

/* Named as our helpers are? */
static int is_helper(int pid)
{
    char path[48], name[16], *end = path + sizeof path;
    char *at = ud__put_str(path, end, "/proc/");
    at = ud__put_dec(at, end, (uint64_t)pid);
    ud__put_str(at, end, "/comm");
    return ud__read_file(path, name, sizeof name) > 0 && __builtin_memcmp(name, "udedup-agent", 12) == 0;
}

/* The pids in `text`, "12 34 ": is one of them on our memory? A pid cut off at the end is left in *rest. */
static int judge(const struct ud__hold *h, const char *text, const char **rest)
{
    for (const char *s = text;; s++) {
        *rest = s;
        int pid = (int)ud__get_dec(&s);
        if (*s != ' ')
            return 0;
        if (pid && ud__sys(__NR_kcmp, h->pid, pid, KCMP_VM, 0, 0) == 0 && !is_helper(pid))
            return 1;
    }
}

static int among_children(const struct ud__hold *h, int tid)
{
    char path[48], buf[1024], *end = path + sizeof path;
    char *at = ud__put_dec(path, end, (uint64_t)tid);
    ud__put_str(at, end, "/children");
    long n, fd = ud__sys(__NR_openat, h->taskfd, path, O_RDONLY | O_CLOEXEC);
    size_t kept = 0;
    int found = 0;
    if (fd < 0)
        return 0;
    while (!found && (n = ud__sys(__NR_read, fd, buf + kept, sizeof buf - 1 - kept)) > 0) {
        const char *rest;
        buf[kept + (size_t)n] = 0;
        found = judge(h, buf, &rest);
        kept = kept + (size_t)n - (size_t)(rest - buf);
        __builtin_memmove(buf, rest, kept);
    }
    ud__sys(__NR_close, fd);
    return found;
}

int ud__memory_shared(const struct ud__hold *h)
{
    for (int i = 0; i < h->count; i++)
        if (among_children(h, h->t[i].tid))
            return 1;
    return h->spare_tid && among_children(h, h->spare_tid);
}
