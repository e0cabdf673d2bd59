/* sleepers.c: calls with a relative timeout that are started again must not start their time again.
 *
 * The kernel keeps the time left for poll, select, nanosleep and futex; not for epoll_wait, sigtimedwait, semtimedop,
 * io_getevents. Before a stop the agent asks since when each thread has slept there (/proc/PID/task/TID/sched); the
 * holder then hands the call what is left of its time, a timespec below the thread's red zone.
 *
 * Where a signal stops the threads (hold_signal.c) it keeps the time of none of them, but select and ppoll; the thread itself
 * then shortens the timeout, in its handler.
 *
 * What was noted of a thread is true as long as it has not slept anew since: how often it gave up its CPU tells. Else
 * a loop that sleeps again and again at one place, or a stop by somebody else in between, would be taken for one sleep.
 *
 * Guarantees: a timeout is late by some milliseconds at most for each stop, never early.
 * Timeouts set on a socket (SO_RCVTIMEO) are in nobody's registers: such a call begins anew once, is known by its EINTR from
 * then on, and batches are put off until it has ended.
 * Fails: without /proc/.../sched, past SLEEPERS_MAX such threads, or asleep since the look only, the full time begins again.
 */
#include <fcntl.h>
#include <sys/uio.h>

#include "sleepers.h"

#define SLEEPERS_MAX 256
#define BELOW_STACK 1024 /* past the red zone */

/* A thread reads its own in a handler, while the agent may be writing: `tid` is 0 meanwhile. */
static struct ud__sleep sleeps[SLEEPERS_MAX];
static atomic_int count;

/* CLOCK_MONOTONIC less the scheduler's clock of one CPU. That clock leaves out stolen time, so it only falls behind:
 * an offset taken after a sleep began puts its beginning too late, if anything, and the timeout is never early. */
static struct {
    int cpu;
    int64_t us;
    uint64_t at_us, at_sched_us; /* when it was taken, by either clock */
} offset = {.cpu = -1};

#define UNKNOWN (~0ull)
#define SLEWED 1024 /* the clocks' speeds differ by 1/2000 at most (adjtimex): what is counted of a sleep is less by more */

enum timeout { NO_TIMEOUT, IN_MS, IN_TIMESPEC };

/* The same for calls whose time the kernel keeps after a stop, but not for a handler. */
static enum timeout timeout_for_handler(unsigned long nr, uint64_t second, int *arg)
{
    switch (nr) {
#ifdef __NR_poll
    case __NR_poll:
        *arg = 2;
        return IN_MS;
#endif
    case __NR_nanosleep:
        *arg = 0;
        return IN_TIMESPEC;
    case __NR_clock_nanosleep:
        *arg = 2;
        return second & TIMER_ABSTIME ? NO_TIMEOUT : IN_TIMESPEC;
    case __NR_futex:
        *arg = 3;
        return (second & 0x7f) == 0 /* FUTEX_WAIT */ ? IN_TIMESPEC : NO_TIMEOUT;
    default:
        return NO_TIMEOUT;
    }
}

/* Which argument holds the timeout of a call that begins it anew when started again. `second`: its second argument. */
static enum timeout timeout_of(unsigned long nr, uint64_t second, int by_signal, int *arg)
{
    switch (nr) {
#ifdef __NR_epoll_wait
    case __NR_epoll_wait:
#endif
    case __NR_epoll_pwait:
        *arg = 3;
        return IN_MS;
    case __NR_semtimedop:
    case 441: /* epoll_pwait2 */
        *arg = 3;
        return IN_TIMESPEC;
    case __NR_rt_sigtimedwait:
        *arg = 2;
        return IN_TIMESPEC;
    case __NR_io_getevents:
        *arg = 4;
        return IN_TIMESPEC;
    default:
        return by_signal ? timeout_for_handler(nr, second, arg) : NO_TIMEOUT;
    }
}

/* Calls that a stop interrupted with EINTR because their socket has a timeout. */
static struct timed {
    int tid;
    unsigned long nr;
    uint64_t sp;
} timed[16];
static atomic_uint timed_next;

static int on_socket(unsigned long nr)
{
    switch (nr) {
    case __NR_recvfrom:
    case __NR_recvmsg:
    case __NR_recvmmsg:
    case __NR_accept:
    case __NR_accept4:
    case __NR_connect:
    case __NR_sendto:
    case __NR_sendmsg:
    case __NR_sendmmsg:
    case __NR_read:
    case __NR_write:
    case __NR_readv:
    case __NR_writev:
        return 1;
    default:
        return 0;
    }
}

void ud__timed_note(int tid, unsigned long nr, uint64_t sp)
{
    if (on_socket(nr))
        timed[atomic_fetch_add(&timed_next, 1) % (sizeof timed / sizeof *timed)] = (struct timed){tid, nr, sp};
}

int ud__timed_asleep(int tid, unsigned long nr, uint64_t sp)
{
    int found = 0;
    for (size_t i = 0; i < sizeof timed / sizeof *timed; i++) {
        if (timed[i].tid != tid)
            continue;
        if (timed[i].nr == nr && timed[i].sp == sp)
            found = 1;
        else
            timed[i].tid = 0; /* it has come out of that call */
    }
    return found;
}

/* Tests: a hypervisor that takes the last 20 ms out of 60. */
static uint64_t less_stolen(uint64_t us)
{
    uint64_t in = us % 60000;
    return UD__GUARD_ON(UD__GUARD_STOLEN) ? us : us / 60000 * 40000 + (in < 40000 ? in : 40000);
}

struct sched {
    uint64_t exec_start_us; /* when it was last put on or taken off a CPU, by that CPU's clock */
    uint64_t switches;      /* how often it gave up its CPU by itself */
};

/* "se.exec_start : 912170.051361" (ms), "nr_voluntary_switches : 7". 0, or -1 if it does not tell. */
static int read_sched(int taskfd, int tid, struct sched *out)
{
    char buf[3072]; /* with schedstats they are thirty lines apart */
    if (ud__read_task(taskfd, tid, "sched", buf, sizeof buf) <= 0)
        return -1;
    const char *s = ud__line_value(buf, "se.exec_start"), *switches = ud__line_value(buf, "nr_voluntary_switches");
    if (!s || !switches)
        return -1;
    uint64_t us = ud__get_dec(&s) * 1000;
    if (*s++ != '.')
        return -1;
    us += (uint64_t)(s[0] - '0') * 100 + (uint64_t)(s[1] - '0') * 10 + (uint64_t)(s[2] - '0');
    *out = (struct sched){less_stolen(us), ud__get_dec(&switches)};
    return 0;
}

/* -1 if unknown. */
static int last_cpu(int taskfd, int tid)
{
    char buf[512];
    if (ud__read_task(taskfd, tid, "stat", buf, sizeof buf) <= 0)
        return -1;
    const char *s = ud__stat_field(buf, 39);
    return *s ? (int)ud__get_dec(&s) : -1;
}

/* The last offset serves for who slept already when it was taken: time may have been stolen since. Not at the same
 * reading: the clock may stand still between two. */
static int offset_serves(int cpu, uint64_t since_sched_us, uint64_t now)
{
    return offset.cpu == cpu && now - offset.at_us < 100000 &&
           (since_sched_us < offset.at_sched_us || !UD__GUARD_ON(UD__GUARD_OFFSET));
}

/* Goes to that CPU for a moment and compares its clock with ours. 0, or -errno. */
static int learn_offset(int taskfd, int self_tid, int cpu, uint64_t since_sched_us)
{
    uint64_t before[16] = {0}, one[16] = {0}, now = ud__now_us();
    if (offset_serves(cpu, since_sched_us, now))
        return 0;
    if (cpu < 0 || cpu >= (int)sizeof one * 8)
        return -EINVAL;
    one[cpu / 64] = 1ull << (cpu % 64);
    if (ud__sys(__NR_sched_getaffinity, 0, sizeof before, before) < 0)
        return -EINVAL;
    long r = ud__sys(__NR_sched_setaffinity, 0, sizeof one, one);
    if (r < 0)
        return (int)r;
    ud__sleep_us(20); /* put off and on again: our own exec_start is of now */
    struct sched mine;
    int known = read_sched(taskfd, self_tid, &mine) == 0;
    now = ud__now_us();
    ud__sys(__NR_sched_setaffinity, 0, sizeof before, before);
    if (!known)
        return -ENOENT;
    offset.cpu = cpu;
    offset.us = (int64_t)(now - mine.exec_start_us);
    offset.at_us = now;
    offset.at_sched_us = mine.exec_start_us;
    return 0;
}

void ud__sleepers_begin(void) { atomic_store(&count, 0); }

static void keep(const struct ud__sleep *what)
{
    int i = atomic_load(&count);
    struct ud__sleep *s = &sleeps[i];
    int tid = what->tid;
    atomic_store(&s->tid, 0);
    s->nr = what->nr, s->sp = what->sp, s->pc = what->pc, s->first = what->first;
    s->since_us = what->since_us, s->switches = what->switches;
    atomic_store(&s->tid, tid);
    atomic_store(&count, i + 1);
}

static struct ud__sleep seen_asleep(int tid, unsigned long nr, const uint64_t *args)
{
    return (struct ud__sleep){.tid = tid, .nr = nr, .sp = args[6], .pc = args[7], .first = args[0], .switches = UNKNOWN};
}

int ud__sleepers_note(int taskfd, int self_tid, int tid, unsigned long nr, const uint64_t *args, int by_signal)
{
    int arg = 0;
    enum timeout kind = timeout_of(nr, args[1], by_signal, &arg);
    if (kind != NO_TIMEOUT && (kind == IN_MS ? (int)args[arg] <= 0 : args[arg] == 0))
        kind = NO_TIMEOUT;
    if (kind == NO_TIMEOUT && !by_signal)
        return 0;
    if (atomic_load(&count) == SLEEPERS_MAX)
        return -ENOSPC;
    struct ud__sleep s = seen_asleep(tid, nr, args);
    struct sched its;
    if (read_sched(taskfd, tid, &its) == 0) {
        s.switches = its.switches;
        if (kind != NO_TIMEOUT && learn_offset(taskfd, self_tid, last_cpu(taskfd, tid), its.exec_start_us) == 0)
            s.since_us = its.exec_start_us + (uint64_t)offset.us;
    }
    keep(&s);
    return kind == NO_TIMEOUT || s.since_us ? 0 : -ENOENT;
}

static const struct ud__sleep *sleep_of(int tid)
{
    for (int i = atomic_load(&count) - 1; i >= 0; i--) /* the last look counts */
        if (atomic_load(&sleeps[i].tid) == tid)
            return &sleeps[i];
    return NULL;
}

void ud__sleepers_add(int taskfd, int tid, unsigned long nr, const uint64_t *args)
{
    const struct ud__sleep *known = sleep_of(tid);
    struct ud__sleep s = seen_asleep(tid, nr, args);
    struct sched its;
    if (read_sched(taskfd, tid, &its) == 0)
        s.switches = its.switches;
    if (!(known && known->nr == nr && known->switches == s.switches) && atomic_load(&count) < SLEEPERS_MAX)
        keep(&s);
}

int ud__sleepers_of(int tid, uint64_t switches, struct ud__sleep *out)
{
    const struct ud__sleep *s = sleep_of(tid);
    if (!s)
        return 0;
    *out = (struct ud__sleep){.tid = tid, .nr = s->nr, .sp = s->sp, .pc = s->pc, .first = s->first};
    out->since_us = s->since_us, out->switches = s->switches;
    if (atomic_load(&s->tid) != tid)
        return 0;
    return out->switches == switches || out->switches == UNKNOWN || !UD__GUARD_ON(UD__GUARD_SWITCHES);
}

/* How long it has slept in this call; 0 if that is not known. */
static uint64_t slept_us(const struct ud__sleep *s, unsigned long nr, uint64_t sp)
{
    uint64_t now = ud__now_us();
    if (!s->since_us || s->nr != nr || s->sp != sp || now <= s->since_us)
        return 0;
    return (now - s->since_us) - (now - s->since_us) / SLEWED;
}

static void less(struct timespec *ts, uint64_t slept)
{
    uint64_t us = (uint64_t)ts->tv_sec * 1000000 + ((uint64_t)ts->tv_nsec + 999) / 1000;
    us = us > slept ? us - slept : 0;
    *ts = (struct timespec){(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
}

static void shorten_ms(unsigned long *arg, uint64_t slept)
{
    int64_t left = (int)*arg;
    if (left > 0) {
        left -= (int64_t)(slept / 1000);
        *arg = (unsigned long)(left > 0 ? left : 0);
    }
}

static int shorten_timespec(int pid, uint64_t sp, unsigned long *arg, uint64_t slept)
{
    struct timespec ts;
    uint64_t scratch = (sp - BELOW_STACK) & ~15ull;
    struct iovec mine = {&ts, sizeof ts}, theirs = {(void *)*arg, sizeof ts};
    if (ud__sys(__NR_process_vm_readv, pid, &mine, 1, &theirs, 1, 0) != sizeof ts)
        return -EFAULT;
    less(&ts, slept);
    theirs.iov_base = (void *)scratch;
    if (ud__sys(__NR_process_vm_writev, pid, &mine, 1, &theirs, 1, 0) != sizeof ts)
        return -EFAULT;
    *arg = scratch;
    return 0;
}

/* In a hold: args are the six registers of the call that will be started again. The stop is one switch more. */
void ud__sleepers_shorten(const struct ud__hold *h, int tid, unsigned long nr, uint64_t sp, unsigned long **args)
{
    int arg;
    struct sched its;
    struct ud__sleep s;
    enum timeout kind = timeout_of(nr, *args[1], 0, &arg);
    if (kind == NO_TIMEOUT || !sleep_of(tid)) /* a timeout without end is not noted: an event loop costs no look */
        return;
    if (read_sched(h->taskfd, tid, &its) || !ud__sleepers_of(tid, its.switches - 1, &s))
        return;
    uint64_t slept = slept_us(&s, nr, sp);
    if (slept && kind == IN_MS)
        shorten_ms(args[arg], slept);
    else if (slept && *args[arg])
        shorten_timespec(h->pid, sp, args[arg], slept);
}

/* The same in the thread itself, in a handler. */
void ud__sleepers_shorten_here(const struct ud__sleep *was, uint64_t sp, unsigned long **args, struct timespec *place)
{
    int arg;
    enum timeout kind = timeout_of(was->nr, *args[1], 1, &arg);
    uint64_t slept = kind == NO_TIMEOUT ? 0 : slept_us(was, was->nr, sp);
    if (!slept)
        return;
    if (kind == IN_MS) {
        shorten_ms(args[arg], slept);
    } else if (*args[arg]) {
        struct timespec ts = *(const struct timespec *)*args[arg];
        less(&ts, slept);
        *place = ts;
        *args[arg] = (unsigned long)place;
    }
}
