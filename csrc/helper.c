/* helper.c: a short-lived process on our memory (CLONE_VM): the holder of a batch, the reader of a pass.
 *
 * Why a process and not a thread: it may ptrace the threads of ours, and it has signal handlers of its
 * own. Why short-lived: tools that sum processes would count the memory twice, and exec would orphan it.
 *
 * Guarantees: whom the program lets trace it may do so again afterwards; exit signal 0, so wait(2) of the program
 * never sees it; it dies with its starter; its end is
 * told by a word in our memory, so a program that reaps it with __WALL does not confuse us. One that is stopped
 * (SIGSTOP to a process group, of which only the program is continued) is killed: it may be holding everybody.
 * Async-signal-safe.
 * Fails: -EAGAIN or -ENOMEM from clone; -EPERM where it would be the init of a PID namespace (interpose_task.c); -ECHILD if
 * somebody killed it, in which case the kernel has let go of every thread it held. One that is stopped in its
 * first instructions, while its starter dies, stays: it has not yet asked to die with it.
 */
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "internal.h"

UD_HIDDEN _Atomic uint64_t ud__helper_cpu_us;
UD_HIDDEN atomic_int ud__helper_none;

/* Whom the program has named by PR_SET_PTRACER, which is one for a process: pid, 0 for nobody, or ANYONE. */
#define ANYONE (~0ul)
UD_HIDDEN _Atomic unsigned long ud__named_tracer;

struct call {
    void (*fn)(void *);
    void *arg;
    int starter;     /* pid of the process that waits */
    atomic_int go;   /* futex: the starter has named us as its tracer */
    atomic_int done;
};

void ud__slice(uint64_t us)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attr = {.size = 48, .flags = 0x8 /* KEEP_POLICY */ , .runtime = us * 1000};
    attr.nice = (int32_t)(20 - ud__sys(__NR_getpriority, 0, 0));
    ud__sys(__NR_sched_setattr, 0, &attr, 0);
}

static void futex_wait(atomic_int *word, int value)
{
    while (atomic_load(word) == value)
        ud__sys(__NR_futex, word, 0 /* FUTEX_WAIT */, value, 0);
}

static void helper_main(void *arg)
{
    struct call *c = arg;
    ud__sys(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL);
    ud__sys(__NR_prctl, PR_SET_NAME, "udedup-agent");
    if (ud__sys(__NR_getppid) == c->starter) {
        futex_wait(&c->go, 0);
        c->fn(c->arg);
        atomic_store(&c->done, 1);
    }
    for (;;)
        ud__sys(__NR_exit, 0);
}

int ud__helper_run(void (*fn)(void *), void *arg, int share_files, void *stack_top)
{
    struct call c = {.fn = fn, .arg = arg, .starter = (int)ud__sys(__NR_getpid)};
    if (atomic_load(&ud__helper_none))
        return -EPERM;
    unsigned long flags = CLONE_VM | CLONE_UNTRACED | (share_files ? CLONE_FILES : 0);
    long pid = ud__clone(flags, stack_top, NULL, NULL, helper_main, &c);
    if (pid < 0)
        return (int)pid;
    /* Yama; EINVAL where it is not */
    int named = atomic_load(&ud__named_tracer) != ANYONE && ud__sys(__NR_prctl, PR_SET_PTRACER, pid) == 0;
    atomic_store(&c.go, 1);
    ud__sys(__NR_futex, &c.go, 1 /* FUTEX_WAKE */, 1);
    int status;
    struct rusage use;
    long r;
    do {
        r = ud__sys(__NR_wait4, pid, &status, __WALL | WUNTRACED, &use);
        if (r == pid && WIFSTOPPED(status) && UD__GUARD_ON(UD__GUARD_STOPPED))
            ud__sys(__NR_kill, pid, SIGKILL);
    } while (r == -EINTR || (r == pid && WIFSTOPPED(status)));
    if (r == pid)
        atomic_fetch_add(&ud__helper_cpu_us, (uint64_t)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000 +
                                                 (uint64_t)(use.ru_utime.tv_usec + use.ru_stime.tv_usec));
    if (named)
        ud__sys(__NR_prctl, PR_SET_PTRACER, atomic_load(&ud__named_tracer));
    /* ECHILD: the program reaped it with __WALL. It no longer runs either way. */
    return atomic_load(&c.done) ? 0 : -ECHILD;
}
