/* job.c: one batch: a holder stops everybody, does the job's work on memory that nobody can change, lets go.
 *
 * Guarantees: one job at a time in a process (a futex lock; app threads use jobs too, to take a merge
 * back). While the work runs nobody is inside ud__busy_enter, or it is not begun. Whatever kills the
 * holder, each page is either wholly before or wholly after its remap. fork waits for the agent's job to end, and for any of
 * mode trap: the child's copy of our state, which the kernel makes page by page, is then one of a moment at which nobody
 * changes it. What the program's own threads do in mode stop meanwhile is done while the forking one is held, or by one call.
 * Fails: j->cause_begin says why nothing was done; -errno when no holder could be made; -ECHILD when the
 * holder was killed: the ledger may then lag behind the mappings, and the agent compares them anew.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>

#include "internal.h"
#include "kernel_signal.h"
#include "sleepers.h"
#include "trap.h"

#define HOLD_SLICE_US 1000 /* freeze_max_us, about: shorter than the scheduler's own, so that a hold does not wait */
#define RINGLESS_US 250000u
#define ASK_AGAIN_US 60000000u
#define GATE_US 50000u
enum gated { NOT_AT_ALL, FOR_A_WHILE, IN_ANY_CASE };

static atomic_int job_lock;
/* Which fork takes, and who else must not be caught by one: the agent, and whoever has a window of mode trap. Others' fork
 * handlers run meanwhile, and may wait for a lock under which another thread of the program needs a job: after a while that one
 * does without the gate. Always taken before the lock. Its owner may come again, by a handler. */
static struct {
    atomic_int word, owner;
    int depth;
} gate;
static char job_stack[UD__STACK_BYTES] __attribute__((aligned(64)));
static struct ud__held *held_table;
/* When no ring was mapped, in an address space of these sizes: to look costs 0.3 us a mapping, in the hold. */
static struct {
    uint64_t size, us;
} ringless;
static uint64_t forker_mask; /* of the thread that forks, which is in the gate */

/* Who owns a word has all signals blocked: no handler may come to want it, too. Who waits for it can be parked. 0 if it was
 * not to be had in patience_us (0: it is waited for), below a second. */
static int word_lock(atomic_int *word, const uint64_t *mask, uint64_t patience_us)
{
    int none = 0;
    if (atomic_compare_exchange_strong(word, &none, 1))
        return 1;
    uint64_t all = ~0ull, waiting = *mask | ~UD__SIGBIT(SIGURG), until = ud__now_us() + patience_us;
    while (atomic_exchange(word, 2) != 0) {
        uint64_t now = ud__now_us();
        if (patience_us && now >= until)
            return 0;
        struct timespec left = {0, (long)(until - now) * 1000};
        ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &waiting, 0, 8);
        ud__sys(__NR_futex, word, 0, 2, patience_us ? &left : NULL);
        ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, 0, 8);
    }
    return 1;
}

static void word_unlock(atomic_int *word)
{
    if (atomic_exchange(word, 0) == 2)
        ud__sys(__NR_futex, word, 1, 1);
}

/* 1 if it is to be left again. */
static int gate_enter(const uint64_t *mask, enum gated how)
{
    int tid = (int)ud__sys(__NR_gettid), again = atomic_load(&gate.owner) == tid && UD__GUARD_ON(UD__GUARD_GATE);
    if (how == NOT_AT_ALL || (!again && !word_lock(&gate.word, mask, how == FOR_A_WHILE ? GATE_US : 0)))
        return 0;
    atomic_store(&gate.owner, tid);
    gate.depth++;
    return 1;
}

static void gate_leave(void)
{
    if (--gate.depth)
        return;
    atomic_store(&gate.owner, 0);
    word_unlock(&gate.word);
}

static int lock(uint64_t *mask, enum gated how)
{
    uint64_t all = ~0ull;
    ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, mask, 8);
    int gated = gate_enter(mask, how);
    word_lock(&job_lock, mask, 0);
    return gated;
}

static void unlock(const uint64_t *mask, int gated)
{
    word_unlock(&job_lock);
    if (gated)
        gate_leave();
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, mask, 0, 8);
}

void ud__job_lock(uint64_t *mask) { lock(mask, IN_ANY_CASE); }

void ud__job_unlock(const uint64_t *mask) { unlock(mask, 1); }

/* Signals stay blocked: the child's handlers must find it done. */
void ud__job_prefork(void)
{
    uint64_t all = ~0ull, before;
    if (!UD__GUARD_ON(UD__GUARD_FORK))
        return;
    ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, &before, 8);
    gate_enter(&before, IN_ANY_CASE);
    forker_mask = before;
}

void ud__job_postfork(int in_child)
{
    uint64_t mask = forker_mask;
    if (!UD__GUARD_ON(UD__GUARD_FORK))
        return;
    if (!in_child) /* there it is open already, and may be the new agent's by now */
        gate_leave();
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &mask, 0, 8);
}

void ud__job_forked(void)
{
    atomic_store(&job_lock, 0);
    atomic_store(&gate.word, 0);
    atomic_store(&gate.owner, 0);
    gate.depth = 0;
    atomic_store(&ud__helper_none, 0);
    atomic_store(&ud__named_tracer, 0); /* was the parent's */
    ringless.size = 0;
    held_table = NULL; /* DONTFORK: it is not here */
    ud__park_forked();
}

/* Asynchronous I/O writes into pages that are pinned, not mapped: while there is a ring, nothing is moved. */
static int rings(struct ud__maps *maps)
{
    uint64_t size = ud__mapped_sizes(), now = ud__now_us();
    if (size && size == ringless.size && now - ringless.us < RINGLESS_US)
        return 0;
    if (ud__ring_mapped(maps))
        return 1;
    ringless.size = size;
    ringless.us = now;
    return 0;
}

/* Pages pinned for long (RDMA, registered buffers) are counted, if not told: none is moved while there are any. */
static int pinned(struct ud__maps *maps, uint64_t *locked_kb)
{
    uint64_t pinned_kb;
    *locked_kb = ud__locked_kb(&pinned_kb);
    return UD__GUARD_ON(UD__GUARD_PINNED) && (pinned_kb || rings(maps));
}

/* Why the job must not be done after all, asked once everybody is held; -1 if nothing speaks against it. */
static int objection(struct ud__job *j)
{
    uint64_t kb;
    if (UD__GUARD_ON(UD__GUARD_BUSY) && atomic_load(&ud__busy_count) != 0)
        return UD_CAUSE_BUSY;
    if (j->kind != UD__JOB_RELOCATE && UD__GUARD_ON(UD__GUARD_SHARERS) && ud__memory_shared(&j->hold))
        return UD_CAUSE_SHARED;
    if (!j->ledger) /* an app thread's own: it asks for it */
        return -1;
    if (pinned(&j->maps, &kb))
        return UD_CAUSE_PINNED;
    return j->kind != UD__JOB_UNMERGE && kb != j->vmlck ? UD_CAUSE_LOCKED : -1; /* locked since the agent looked */
}

static void work(struct ud__job *j)
{
    /* Threads that came late make the work shorter, to a point. */
    uint64_t now = ud__now_us(), least = now + j->budget_us / 4;
    j->stop_us = j->hold.began_us + j->budget_us;
    if (j->no_hold || j->stop_us < least)
        j->stop_us = least;
    switch (j->kind) {
    case UD__JOB_MERGE:
        ud__job_merge(j);
        break;
    case UD__JOB_ZERO:
        ud__job_zero(j);
        break;
    case UD__JOB_UNMERGE:
        ud__job_unmerge(j);
        break;
    case UD__JOB_RELOCATE:
        ud__job_relocate(j);
        break;
    case UD__JOB_DISCARD:
        ud__job_discard(j);
        break;
    }
}

/* After chroot there may be no /proc any more, but the agent has its view open. 0, or -errno (before Linux 6.9, say). */
static int borrow_maps(struct ud__maps *m)
{
    int theirs = ud__a.maps.fd, tid = atomic_load(&ud__a.tid);
    if (theirs < 0 || !tid || !ud__a.maps.query)
        return -ENOENT;
    long agent = ud__sys(__NR_pidfd_open, tid, O_EXCL /* PIDFD_THREAD */);
    if (agent < 0)
        return (int)agent;
    m->query = 1;
    m->fd = (int)ud__sys(438 /* pidfd_getfd */, agent, theirs, 0);
    ud__sys(__NR_close, agent);
    return m->fd < 0 ? m->fd : 0;
}

static void hold_and_work(struct ud__job *j)
{
    int borrowed = j->ledger && ud__a.maps.query; /* the agent's own view, in the table we share with it */
    if (borrowed) {
        j->maps = ud__a.maps;
    } else if (ud__maps_open(&j->maps, j->hold.pid) < 0 && borrow_maps(&j->maps) < 0) {
        j->cause_begin = UD_CAUSE_GONE;
        return;
    }
    if (j->no_hold) {
        ud__maps_refresh(&j->maps);
        work(j);
    } else if (ud__hold_begin(&j->hold) == 0) {
        j->work_us = ud__now_us();
        j->cause_begin = objection(j);
        if (j->cause_begin < 0 && ud__maps_refresh(&j->maps) == 0)
            work(j);
        j->work_us = ud__now_us() - j->work_us;
        ud__hold_end(&j->hold);
        j->pause_us = ud__now_us() - j->hold.began_us;
        j->repairs = j->hold.repairs;
    } else {
        j->cause_begin = j->hold.cause;
    }
    if (!borrowed)
        ud__maps_close(&j->maps);
}

static void holder_main(void *arg)
{
    struct ud__job *j = arg;
    ud__slice(HOLD_SLICE_US);
    if (!j->ledger) /* a copy of the program's descriptors: it may have used up all there may be, and we need some */
        ud__sys(__NR_close_range, 0, ~0u, 0);
    hold_and_work(j);
}

/* Is there no thread but the caller's, and the agent's, which is not in the midst of a job? */
static int alone(void)
{
    struct stat st;
    return ud__sys(__NR_newfstatat, AT_FDCWD, "/proc/self/task", &st, 0) == 0 &&
           (long)st.st_nlink - 2 == 1 + (atomic_load(&ud__a.tid) != 0);
}

/* A job of the program's own on its own thread: where no helper can be made (RLIMIT_NPROC, a filter), or none must be. */
static int run_here(struct ud__job *j)
{
    if (!j->no_hold && j->kind == UD__JOB_UNMERGE && !alone()) /* others might write between copy and remap */
        return -EAGAIN;
    int no_hold = j->no_hold;
    j->no_hold = 1;
    hold_and_work(j);
    j->no_hold = no_hold;
    return 0;
}

/* The lot, if threads are to be parked, is open while the holder lives, however it ends. */
static int run_holder(struct ud__job *j, int share_files)
{
    int signals = j->hold.way == UD_HOLD_SIGNAL && !j->no_hold;
    j->cause_begin = -1;
    if (signals && ud__park_open(&j->hold)) {
        j->cause_begin = j->hold.cause;
        return 0;
    }
    int r = ud__helper_run(holder_main, j, share_files, job_stack + sizeof job_stack);
    if (signals)
        ud__park_close();
    return r;
}

/* By ptrace, or by signals where that is refused. A refusal may end (PR_SET_DUMPABLE, a sysctl): now and then it is tried
 * again. */
static uint64_t refused_us;

static void use_signals(void)
{
    refused_us = ud__now_us();
    atomic_store(&ud__hold_way, UD_HOLD_SIGNAL);
}

static int hold_somehow(struct ud__job *j, int share_files)
{
    int signals = atomic_load(&ud__hold_way) == UD_HOLD_SIGNAL;
    int again = signals && ud__now_us() - refused_us > ASK_AGAIN_US;
    j->hold.way = signals && !again ? UD_HOLD_SIGNAL : UD_HOLD_PTRACE;
    int r = run_holder(j, share_files);
    if (j->no_hold || j->hold.way == UD_HOLD_SIGNAL)
        return r;
    int refused = j->cause_begin == UD_CAUSE_HOLD_REFUSED || (again && r == -ECHILD); /* a filter may kill for it */
    if (refused)
        use_signals();
    else if (r == 0)
        atomic_store(&ud__hold_way, UD_HOLD_PTRACE);
    if (!refused || (!signals && j->ledger)) /* the agent asked whom ptrace would disturb, not whom a signal would */
        return r;
    j->hold.way = UD_HOLD_SIGNAL;
    return run_holder(j, share_files);
}

struct probe {
    struct ud__hold hold;
    int tid, cause;
};

static void probe_main(void *arg)
{
    struct probe *p = arg;
    p->cause = ud__hold_probe(&p->hold, p->tid);
}

void ud__job_probe(void)
{
    uint64_t before;
    struct probe p = {.hold = {.pid = (int)ud__sys(__NR_getpid)}, .tid = (int)ud__sys(__NR_gettid), .cause = -1};
    ud__job_lock(&before);
    int r = -ECHILD;
    for (int i = 0; i < 3 && r == -ECHILD; i++)
        r = ud__helper_run(probe_main, &p, 0, job_stack + sizeof job_stack);
    if (r == -ECHILD || p.cause == UD_CAUSE_HOLD_REFUSED)
        use_signals();
    ud__job_unlock(&before);
}

/* A discard is done by single calls; who moves memory holds the forking thread, unless threads are held by signals, which are
 * blocked there. */
static enum gated gate_for(const struct ud__job *j, int trap)
{
    if (trap || j->ledger || !UD__GUARD_ON(UD__GUARD_GATE))
        return IN_ANY_CASE;
    if (j->kind == UD__JOB_DISCARD)
        return NOT_AT_ALL;
    return atomic_load(&ud__hold_way) == UD_HOLD_SIGNAL ? IN_ANY_CASE : FOR_A_WHILE;
}

int ud__job_run(struct ud__job *j, int spare_tid, int share_files)
{
    uint64_t before, kb;
    ud__fork_notice();
    int trap = ud__trap_active() && (j->kind == UD__JOB_MERGE || j->kind == UD__JOB_ZERO || j->kind == UD__JOB_UNMERGE);
    if (trap)
        ud__trap_job_prepare(j);
    int gated = lock(&before, gate_for(j, trap));
    int r = -ENOMEM;
    if (!j->ledger)
        ud__sleepers_begin(); /* what the agent saw of sleeping threads is of another moment */
    j->cause_begin = -1;
    j->maps.fd = -1;
    j->hold.pid = (int)ud__sys(__NR_getpid);
    int here = j->kind == UD__JOB_DISCARD;
    if (!held_table && !trap && !here)
        held_table = ud__alloc(UD__HOLD_MAX * sizeof *held_table);
    if (trap && j->ledger && pinned(&ud__a.maps, &kb)) { /* by the agent's descriptors, which only it has */
        j->cause_begin = UD_CAUSE_PINNED;
        r = 0;
    } else if (trap) {
        r = ud__trap_job(j);
    } else if (held_table || here) {
        j->hold.spare_tid = spare_tid;
        j->hold.t = held_table;
        r = here ? run_here(j) : hold_somehow(j, share_files);
        if (here && j->cause_begin >= 0) /* no descriptor left, say: a helper has a table of its own */
            r = hold_somehow(j, share_files);
        else if (r < 0 && r != -ECHILD && !j->ledger)
            r = run_here(j);
    }
    atomic_fetch_add(&ud__mm_calls, 1);
    unlock(&before, gated);
    return r;
}
