/* interpose_task.c: calls in which our agent, or its helpers, would show.
 *
 *   unshare, setns   granted in part only to a process with one thread: the agent ends first and starts again after
 *                    and no helper of ours is made in a new PID namespace, where it would be the init
 *   ptrace           a debugger waits for whatever child there is (__WALL) and would take a helper of ours for one of
 *                    its own: a process that traces others takes no part any more
 *
 * Guarantees: the program gets the answer it would have got; merged memory stays as it is.
 * Fails: an agent in the midst of a plan ends after it; past three seconds the call is made all the same.
 */
#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>

#include "internal.h"

static int other_link(const char *a, const char *b)
{
    char one[64] = "", other[64] = "";
    if (ud__sys(__NR_readlinkat, -100 /* AT_FDCWD */, a, one, sizeof one - 1) <= 0 ||
        ud__sys(__NR_readlinkat, -100, b, other, sizeof other - 1) <= 0)
        return 1; /* of a namespace that has no init yet nothing is told */
    return strcmp(one, other) != 0;
}

/* The first child made in a new PID namespace is its init, and the last when it ends: no helper of ours may be it. */
static void mind_children(long nr, long a, long b)
{
    long type = nr == __NR_unshare ? a : b ? b : CLONE_NEWPID; /* setns(fd, 0) says nothing */
    if (type & CLONE_NEWPID && !ud__in_vfork())
        atomic_store(&ud__helper_none, other_link("/proc/thread-self/ns/pid", "/proc/thread-self/ns/pid_for_children"));
}

static int alone(long nr, long a, long b)
{
    int had = atomic_load(&ud__a.state) != UD__AGENT_NONE;
    ud__agent_quit();
    long r = ud__sys(nr, a, b);
    if (r == 0)
        mind_children(nr, a, b);
    if (had)
        ud__agent_start();
    if (r < 0)
        errno = (int)-r;
    return r < 0 ? -1 : (int)r;
}

UD_API int unshare(int flags) { return alone(__NR_unshare, flags, 0); }

UD_API int setns(int fd, int type) { return alone(__NR_setns, fd, type); }

/* libc's own does the rest: what PEEK returns is not what the system call returns. */
UD_API long ptrace(enum __ptrace_request request, ...)
{
    static long (*_Atomic next)(enum __ptrace_request, ...);
    va_list ap;
    va_start(ap, request);
    long pid = va_arg(ap, long);
    void *addr = va_arg(ap, void *), *data = va_arg(ap, void *);
    va_end(ap);
    if (!atomic_load(&next))
        atomic_store(&next, (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace"));
    if (request != PTRACE_TRACEME && !ud__a.disabled) {
        ud__a.disabled = 1;
        ud__agent_quit();
    }
    return atomic_load(&next)(request, (pid_t)pid, addr, data);
}
