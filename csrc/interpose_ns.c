/* interpose_ns.c: unshare and setns, which the kernel grants in part only to a process with one thread.
 *
 * Guarantees: the agent ends before the call (merged memory stays as it is) and starts again after it, so the program
 * gets the answer it would have got. Small enough to stay out of everybody else's way.
 * Fails: an agent in the midst of a plan ends after it; past three seconds the call is made all the same.
 */
#include <errno.h>
#include <sched.h>

#include "internal.h"

static int alone(long nr, long a, long b)
{
    int had = atomic_load(&ud__a.state) != UD__AGENT_NONE;
    if (had)
        ud__agent_quit();
    long r = ud__sys(nr, a, b);
    int err = (int)-r;
    if (had)
        ud__agent_start();
    if (r < 0)
        errno = err;
    return r < 0 ? -1 : (int)r;
}

UD_API int unshare(int flags) { return alone(__NR_unshare, flags, 0); }

UD_API int setns(int fd, int type) { return alone(__NR_setns, fd, type); }
