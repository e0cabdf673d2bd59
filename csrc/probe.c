/* probe.c: does the write-stop work here? Tried on the threads of the calling process, for `udedup doctor`.
 *
 * Guarantees: they are stopped for well under a millisecond and run on, whatever the answer; nothing stays behind. May be
 * called from any thread.
 * Fails: -EPERM and the like as clone(2), ptrace(2) say: seccomp, Yama, a tracer; -ENOMEM.
 */
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "internal.h"

#define PT_DETACH 17
#define PT_SEIZE 0x4206
#define PT_INTERRUPT 0x4207
#define STACK_BYTES 65536
#define PARK_US 100000u

struct probe {
    int tid;          /* who is to be stopped */
    volatile int go;  /* set once the helper may trace us */
    volatile long result;
};

/* The helper: a process on our memory, as a holder is. */
static void stop_once(void *arg)
{
    struct probe *p = arg;
    while (!p->go)
        ud__sys(__NR_sched_yield);
    int status = 0;
    p->result = ud__sys(__NR_ptrace, PT_SEIZE, p->tid, 0, 0);
    if (p->result == 0) {
        p->result = ud__sys(__NR_ptrace, PT_INTERRUPT, p->tid, 0, 0);
        long got = ud__sys(__NR_wait4, p->tid, &status, __WALL, 0);
        if (got < 0 && p->result == 0)
            p->result = got;
        ud__sys(__NR_ptrace, PT_DETACH, p->tid, 0, 0);
    }
    ud__sys(__NR_exit, 0);
    __builtin_unreachable();
}

long ud_probe_hold(void)
{
    long stack = ud__sys(__NR_mmap, 0, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ud__is_err(stack))
        return stack;
    struct probe p = {.tid = (int)ud__sys(__NR_gettid), .result = -ESRCH};
    long pid = ud__clone(CLONE_VM | CLONE_UNTRACED, (char *)stack + STACK_BYTES, NULL, NULL, stop_once, &p);
    if (pid > 0) {
        uint64_t began = ud__now_us();
        ud__sys(__NR_prctl, PR_SET_PTRACER, pid, 0, 0, 0); /* EINVAL where there is no Yama */
        p.go = 1;
        while (ud__sys(__NR_wait4, pid, 0, __WALL, 0) == -EINTR)
            ;
        ud__sys(__NR_prctl, PR_SET_PTRACER, 0, 0, 0, 0);
        pid = p.result < 0 ? p.result : (long)(ud__now_us() - began);
    }
    ud__sys(__NR_munmap, stack, STACK_BYTES);
    return pid;
}

static void park_once(void *arg)
{
    struct ud__hold *h = arg;
    if (ud__hold_begin(h) == 0) {
        ud__hold_end(h);
        h->cause = -1;
    }
}

long ud_probe_park(void)
{
    struct ud__hold h = {.pid = (int)ud__sys(__NR_getpid), .spare_tid = (int)ud__sys(__NR_gettid), .way = UD_HOLD_SIGNAL};
    size_t table = UD__HOLD_MAX * sizeof *h.t;
    char *stack = ud__alloc(STACK_BYTES);
    h.t = ud__alloc(table);
    long r = stack && h.t ? 0 : -ENOMEM;
    uint64_t mask, began = ud__now_us();
    ud__job_lock(&mask);
    h.deadline_us = began + PARK_US;
    if (r == 0 && ud__park_open(&h) == 0) {
        r = ud__helper_run(park_once, &h, 0, stack + STACK_BYTES);
        ud__park_close();
    }
    ud__job_unlock(&mask);
    ud__free(stack, STACK_BYTES);
    ud__free(h.t, table);
    if (r < 0)
        return r;
    if (h.cause < 0)
        return (long)(ud__now_us() - began);
    return h.cause == UD_CAUSE_HOLD_DEADLINE ? -ETIMEDOUT : h.cause == UD_CAUSE_HOLD_MASKED ? -EBUSY : -EPERM;
}
