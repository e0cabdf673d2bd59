/* hold_signal.c: the write-stop where ptrace is refused (seccomp, Yama 2 and 3): SIGURG parks every thread.
 *
 *   starter   opens the lot (our handler is SIGURG's), runs the holder, closes the lot: whatever became of the holder
 *   holder    lists the threads, signals each, waits until all are parked, works, lets go
 *   thread    in the handler: notes its stack and TLS, sleeps on the epoch word until it changes, mends the call it
 *             was in (restart.c), returns
 *
 * SIGURG, because it is ignored by default: none that is still pending can harm the program that exec starts. Our handler is
 * there for the time of one hold; setting the program's action back throws away what is pending.
 *
 * Guarantees: after ud__hold_begin no thread runs but in our handler, on its own stack, which is never merged. A thread
 * does not leave the handler by itself. The starter is a thread of the program, so nobody can kill it alone, and it lets
 * go when the holder has ended in any way. Threads that stop (SIGSTOP) or freeze while parked stay parked.
 * Fails (nobody held afterwards, h->cause says why): a thread blocks SIGURG (HOLD_MASKED), or has a seccomp filter that we
 * have not: it might kill for our calls; the program has a SIGURG handler of its own (HOLD_REFUSED); a tracer
 * (HOLD_TRACED); stopped, or in vfork (HOLD_DEADLINE). Not covered: a debugger that attaches while threads are
 * parked and makes one run; a blocking write of much, begun since the agent looked (precheck.c), may come back short, as
 * POSIX allows: hold.c mends it.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <ucontext.h>

#include "kernel_signal.h"
#include "restart.h"
#include "sleepers.h"

#define FUTEX_WAIT_PRIVATE 128
#define FUTEX_WAKE_PRIVATE 129
#define THREAD_US 300u
#define LATE_US 500000u
#define LOOK_US 1000u      /* how long to wait for threads before asking what became of them */
#define MASKED_TRIES 8     /* libc blocks everything for a moment in pthread_create, fork and abort */

struct slot { /* one thread, for as long as it lives: a call started again may point into it */
    atomic_int tid;
    _Atomic uint32_t parked; /* the epoch in which it is */
    uint32_t listed;         /* the epoch in which it was last seen */
    uint32_t gone;
    uint64_t sp, frame, tls;
    struct timespec left;
};

static struct slot *slots; /* UD__HOLD_MAX */
static atomic_int slots_used;
static atomic_uint epoch; /* odd: a hold is on. The word that parked threads sleep on */
static atomic_uint arrived, wanted;
static struct ud__sigaction before;
static atomic_int lot_is_open;
static const char *words; /* for UD_CAUSE_HOLD_REFUSED */

/* The calls of our handler, tried in a holder before they are made in a thread of the program: its filter may kill. */
enum { UNTRIED = 0, TRIED_MAX = 3, TRIED = 9 };
static atomic_int calls_tried;

static void wake(atomic_uint *word, int n) { ud__sys(__NR_futex, word, FUTEX_WAKE_PRIVATE, n); }

static struct slot *slot_of(int tid)
{
    for (int i = 0, n = atomic_load_explicit(&slots_used, memory_order_acquire); i < n; i++)
        if (atomic_load_explicit(&slots[i].tid, memory_order_relaxed) == tid)
            return &slots[i];
    return NULL;
}

/* ---- in the threads ------------------------------------------------------------------------------- */

static void park(struct slot *s, uint32_t now, const ucontext_t *uc)
{
    s->sp = ud__uc_sp(uc);
    s->frame = (uint64_t)__builtin_frame_address(0);
    s->tls = (uint64_t)__builtin_thread_pointer();
    atomic_store(&s->parked, now);
    if (atomic_fetch_add(&arrived, 1) + 1 >= atomic_load(&wanted))
        wake(&arrived, 1);
    while (atomic_load(&epoch) == now)
        ud__sys(__NR_futex, &epoch, FUTEX_WAIT_PRIVATE, now, 0);
}

/* How often this thread has given up its CPU: asleep in the call that was interrupted it did so for the last time. */
static uint64_t own_switches(void)
{
    struct rusage use = {0};
    ud__sys(__NR_getrusage, RUSAGE_THREAD, &use);
    return (uint64_t)use.ru_nvcsw;
}

/* All signals are blocked in it. A SIGURG of somebody else's would have been ignored: it is. What was noted of the thread
 * is asked for first: once the others are let go, the agent may be looking for the next time already. */
static void on_urgent(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)info;
    uint32_t now = atomic_load(&epoch);
    int tid = (int)ud__sys(__NR_gettid);
    struct slot *s = slot_of(tid);
    struct ud__sleep was;
    int noted = ud__sleepers_of(tid, own_switches(), &was);
    if (s && now & 1 && atomic_load(&s->parked) != now)
        park(s, now, context);
    if (UD__GUARD_ON(UD__GUARD_EINTR))
        ud__restart_call(tid, context, noted ? &was : NULL, s ? &s->left : NULL);
}

/* ---- the starter ------------------------------------------------------------------------------------ */

static int ours(const struct ud__sigaction *a) { return a->handler == (void *)on_urgent; }

int ud__park_open(struct ud__hold *h)
{
    struct ud__sigaction mine = {(void *)on_urgent, SA_SIGINFO | SA_RESTART | UD__RESTORER_FLAG, UD__RESTORER, ~0ull};
    words = NULL;
    h->cause = UD_CAUSE_NOMEM;
    if (!slots && !(slots = ud__alloc(UD__HOLD_MAX * sizeof *slots)))
        return -1;
    h->cause = UD_CAUSE_HOLD_REFUSED;
    if (ud__sys(__NR_rt_sigaction, SIGURG, 0, &before, 8) || ours(&before))
        return -1;
    if (atomic_load(&calls_tried) >= TRIED_MAX && atomic_load(&calls_tried) != TRIED) {
        words = "ptrace refused, and a seccomp filter kills for what a signal handler must do";
        return -1;
    }
    if (before.handler != SIG_DFL && before.handler != SIG_IGN) {
        words = "ptrace refused, and SIGURG is the program's own";
        return -1;
    }
    ud__restart_ambiguous();
    atomic_store(&arrived, 0);
    atomic_store(&wanted, ~0u);
    atomic_store(&lot_is_open, 1); /* before and after it is true: a child forked in between has to set the action back */
    if (ud__sys(__NR_rt_sigaction, SIGURG, &mine, 0, 8) == 0)
        return 0;
    atomic_store(&lot_is_open, 0);
    return -1;
}

void ud__park_release(void)
{
    if (atomic_load(&epoch) & 1) {
        atomic_fetch_add(&epoch, 1);
        wake(&epoch, INT32_MAX);
    }
}

void ud__park_close(void)
{
    struct ud__sigaction now;
    if (!atomic_load(&lot_is_open))
        return;
    if (UD__GUARD_ON(UD__GUARD_RELEASE))
        ud__park_release(); /* the holder did, unless it was killed */
    if (ud__sys(__NR_rt_sigaction, SIGURG, 0, &now, 8) == 0 && ours(&now))
        ud__sys(__NR_rt_sigaction, SIGURG, &before, 0, 8);
    atomic_store(&lot_is_open, 0);
}

void ud__park_forked(void)
{
    if (atomic_load(&lot_is_open))
        ud__sys(__NR_rt_sigaction, SIGURG, &before, 0, 8);
    atomic_store(&lot_is_open, 0);
    slots = NULL; /* DONTFORK */
    atomic_store(&slots_used, 0);
    atomic_store(&epoch, 0);
}

const char *ud__park_words(void) { return words; }

/* ---- the holder --------------------------------------------------------------------------------------- */

struct status { /* of /proc/PID/task/TID/status */
    char state;
    uint64_t tracer, blocked, pending, seccomp, filters;
};

enum { UNKNOWN = -1, ALIVE, GONE };

/* ALIVE, GONE, or UNKNOWN where the file cannot be read (no descriptor is left, say): that is not gone. */
static int read_status(int dir, const char *path, struct status *st)
{
    char buf[2560];
    *st = (struct status){0};
    long fd = ud__sys(__NR_openat, dir, path, O_RDONLY | O_CLOEXEC);
    long n = fd < 0 ? fd : ud__sys(__NR_read, fd, buf, sizeof buf - 1);
    if (fd >= 0)
        ud__sys(__NR_close, fd);
    if (n == -ENOENT || n == -ESRCH)
        return GONE;
    buf[n > 0 ? n : 0] = 0;
    const char *state = ud__line_value(buf, "State"), *blocked = ud__line_value(buf, "SigBlk");
    const char *pending = ud__line_value(buf, "SigPnd");
    st->state = state ? *state : 0;
    st->blocked = blocked ? ud__get_hex(&blocked) : 0;
    st->pending = pending ? ud__get_hex(&pending) : 0;
    st->tracer = ud__line_number(buf, "TracerPid");
    st->seccomp = ud__line_number(buf, "Seccomp");
    st->filters = ud__line_number(buf, "Seccomp_filters");
    return !st->state ? UNKNOWN : st->state == 'Z' || st->state == 'X' ? GONE : ALIVE;
}

static int thread_status(const struct ud__hold *h, int tid, struct status *st)
{
    char path[48], *end = path + sizeof path;
    ud__put_str(ud__put_dec(path, end, (uint64_t)tid), end, "/status");
    return read_status(h->taskfd, path, st);
}

/* May this thread be signalled? 0, or -1 with the cause. */
static int may_signal(struct ud__hold *h, int tid, const struct status *own)
{
    struct status st;
    h->cause = UD_CAUSE_HOLD_MASKED;
    for (int tries = 0; tries < MASKED_TRIES; tries++) {
        int r = thread_status(h, tid, &st);
        if (r == GONE)
            return 0;
        if (r == UNKNOWN)
            h->cause = UD_CAUSE_HOLD_REFUSED, words = "ptrace refused, and /proc/PID/task cannot be read";
        else if (st.tracer)
            h->cause = UD_CAUSE_HOLD_TRACED;
        else if (st.state == 'T' || st.state == 't')
            h->cause = UD_CAUSE_HOLD_DEADLINE;
        else if (st.seccomp != own->seccomp || st.filters != own->filters)
            h->cause = UD_CAUSE_HOLD_REFUSED, words = "ptrace refused, and a thread has a seccomp filter of its own";
        else if (!(st.blocked & UD__SIGBIT(SIGURG)))
            return 0;
        if (h->cause != UD_CAUSE_HOLD_MASKED)
            return -1;
        ud__sleep_us(200);
    }
    return -1;
}

/* The thread's slot; a free one for a new thread; NULL when there are too many. */
static struct slot *slot_for(int tid)
{
    struct slot *s = slot_of(tid);
    int n = atomic_load(&slots_used);
    uint32_t now = atomic_load(&epoch);
    for (int i = 0; !s && i < n; i++)
        if (slots[i].listed + 64 < now) /* dead for long */
            s = &slots[i];
    if (!s && n < UD__HOLD_MAX / 2) { /* two entries of the table of stacks for each */
        s = &slots[n];
        atomic_store_explicit(&slots_used, n + 1, memory_order_release);
    }
    if (s && atomic_load(&s->tid) != tid) {
        atomic_store(&s->parked, 0);
        atomic_store(&s->tid, tid);
    }
    return s;
}

/* Calls fn for each thread that is to be held; stops when it returns less than 0. The sum of what it returned. */
typedef int (*thread_fn)(struct ud__hold *h, int tid, const struct status *own);
static int each_thread(struct ud__hold *h, thread_fn fn, const struct status *own)
{
    char buf[4096];
    int sum = 0, agent = atomic_load(&ud__a.tid);
    long n;
    h->listed = 0;
    ud__sys(__NR_lseek, h->taskfd, 0, 0);
    while ((n = ud__sys(__NR_getdents64, h->taskfd, buf, sizeof buf)) > 0)
        for (long at = 0; at < n;) {
            uint16_t reclen;
            const char *name = buf + at + 19;
            __builtin_memcpy(&reclen, buf + at + 16, 2);
            at += reclen;
            int tid = (int)ud__get_dec(&name);
            h->listed += tid != 0;
            if (tid == 0 || tid == h->spare_tid || tid == agent)
                continue;
            int r = fn(h, tid, own);
            if (r < 0)
                return r;
            sum += r;
        }
    if (n < 0)
        h->cause = UD_CAUSE_NOMEM;
    return n < 0 ? -1 : sum;
}

static int send_if_new(struct ud__hold *h, int tid, const struct status *unused)
{
    struct slot *s = slot_for(tid);
    uint32_t now = atomic_load(&epoch);
    (void)unused;
    if (!s) {
        h->cause = UD_CAUSE_HOLD_DEADLINE;
        return -1;
    }
    if (s->listed == now)
        return 0;
    /* A batch can be put off. A thread of the program that needs the hold cannot wait for a call that may last for hours. */
    int shows = h->spare_tid == atomic_load(&ud__a.tid) ? ud__hold_look_again(h, tid) : -1;
    if (shows >= 0) {
        h->cause = shows;
        return -1;
    }
    s->listed = now;
    long r = ud__sys(__NR_tgkill, h->pid, tid, SIGURG);
    s->gone = r == -ESRCH;
    if (r == -EPERM || r == -EAGAIN) {
        words = "ptrace refused, and so are signals";
        h->cause = UD_CAUSE_HOLD_REFUSED;
        return -1;
    }
    return 1;
}

/* Threads that were signalled and have neither parked nor ended. `look`: ask what became of them. */
static unsigned missing(struct ud__hold *h, int look)
{
    uint32_t now = atomic_load(&epoch), n = 0;
    for (int i = 0, used = atomic_load(&slots_used); i < used; i++) {
        struct slot *s = &slots[i];
        struct status st;
        int tid = atomic_load(&s->tid);
        if (s->listed != now || s->gone || atomic_load(&s->parked) == now)
            continue;
        if (look && thread_status(h, tid, &st) == GONE)
            s->gone = 1;
        else
            n++;
    }
    return n;
}

static int wait_for_all(struct ud__hold *h)
{
    for (int look = 0;; look = 1) {
        uint32_t seen = atomic_load(&arrived);
        unsigned n = missing(h, look);
        if (!n)
            return 0;
        uint64_t now = ud__now_us();
        if (now >= h->deadline_us) {
            h->cause = UD_CAUSE_HOLD_DEADLINE;
            return -1;
        }
        uint64_t left = h->deadline_us - now;
        struct timespec ts = {0, (long)(left < LOOK_US ? left : LOOK_US) * 1000};
        atomic_store(&wanted, seen + n);
        ud__sys(__NR_futex, &arrived, FUTEX_WAIT_PRIVATE, seen, &ts);
    }
}

/* A thread that was signalled in hold `then` and has not come. What became of it? 0 if nothing is to be waited for. */
static int still_on_its_way(struct ud__hold *h, const struct slot *s, uint32_t then, struct status *st)
{
    return s->listed == then && !s->gone && atomic_load(&s->parked) != then &&
           thread_status(h, atomic_load(&s->tid), st) == ALIVE && st->pending & UD__SIGBIT(SIGURG);
}

/* Where the stacks are: what is written there until the threads sleep, and when they return. */
static void note_stacks(struct ud__hold *h)
{
    uint32_t now = atomic_load(&epoch);
    h->count = 0;
    for (int i = 0, used = atomic_load(&slots_used); i < used; i++) {
        const struct slot *s = &slots[i];
        if (atomic_load(&s->parked) != now)
            continue;
        h->t[h->count++] = (struct ud__held){s->tid, UD__T_STOPPED, s->sp, s->tls};
        h->t[h->count++] = (struct ud__held){s->tid, UD__T_STOPPED, s->frame, s->tls};
    }
}

/* Given up. Whoever is on the way finds our handler still there, while everybody else runs; who cannot come (a mask put on
 * since the first look, vfork, a disk, SIGSTOP) has not been interrupted by us, and what is pending is thrown away. */
static void let_go_late(struct ud__hold *h)
{
    uint64_t until = ud__now_us() + LATE_US;
    uint32_t then = atomic_load(&epoch);
    int waiting;
    ud__park_release();
    do {
        waiting = 0;
        for (int i = 0, used = atomic_load(&slots_used); i < used; i++) {
            struct status st;
            if (!still_on_its_way(h, &slots[i], then, &st))
                continue;
            if (st.blocked & UD__SIGBIT(SIGURG))
                h->cause = UD_CAUSE_HOLD_MASKED;
            else
                waiting |= st.state == 'R' || st.state == 'S';
        }
        if (waiting)
            ud__sleep_us(LOOK_US);
    } while (waiting && ud__now_us() < until);
}

/* Dies here, if at all: ud__park_open then counts. */
static void try_calls(void)
{
    uint64_t set;
    struct ud__sigaction a;
    if (atomic_load(&calls_tried) == TRIED)
        return;
    atomic_fetch_add(&calls_tried, 1);
    ud__sys(__NR_gettid);
    own_switches();
    ud__sys(__NR_rt_sigpending, &set, 8);
    ud__sys(__NR_rt_sigaction, SIGURG, 0, &a, 8);
    ud__sys(__NR_clock_gettime, CLOCK_MONOTONIC, &(struct timespec){0});
    ud__sys(__NR_getsockopt, -1, 1, 20, &set, &set);
    wake(&arrived, 1);
    atomic_store(&calls_tried, TRIED);
}

/* Until a list brings nobody new and is whole, as hold_all in hold.c. */
static int signal_all(struct ud__hold *h)
{
    for (;;) {
        long before = ud__hold_threads(h);
        int fresh = each_thread(h, send_if_new, NULL);
        if (fresh < 0)
            return -1;
        h->deadline_us += (uint64_t)fresh * THREAD_US;
        if (fresh && wait_for_all(h))
            return -1;
        if (!fresh && (!before || (before == h->listed && ud__hold_threads(h) == h->listed)))
            return 0;
        if (ud__now_us() >= h->deadline_us) {
            h->cause = UD_CAUSE_HOLD_DEADLINE;
            return -1;
        }
    }
}

int ud__park_begin(struct ud__hold *h)
{
    struct status own;
    try_calls();
    h->cause = UD_CAUSE_HOLD_REFUSED;
    if (read_status(AT_FDCWD, "/proc/self/status", &own) != ALIVE || each_thread(h, may_signal, &own) < 0)
        return -1;
    ud__test_gap(); /* calls begun from here on the agent has not seen */
    h->began_us = ud__now_us();
    atomic_fetch_add(&epoch, 1);
    int r = signal_all(h);
    if (r == 0)
        note_stacks(h);
    else
        let_go_late(h);
    return r;
}
