/* sleepers.c: calls with a relative timeout that are started again must not start their time again.
 *
 * The kernel keeps the time left for poll, select, nanosleep and futex; not for epoll_wait, sigtimedwait, semtimedop,
 * io_getevents. Before a stop the agent asks since when each thread has slept there (/proc/PID/task/TID/sched); the
 * holder then hands the call what is left of its time, a timespec below the thread's red zone.
 *
 * Where a signal stops the threads (hold_signal.c) it keeps the time of none of them, but select and ppoll; the thread itself
 * then shortens the timeout, in its handler.
 *
 * Guarantees: a timeout is late by some milliseconds at most for each stop, never early.
 * Timeouts set on a socket (SO_RCVTIMEO) are in nobody's registers: such a call begins anew once, is known by its EINTR from
 * then on, and batches are put off until it has ended.
 * Fails: without /proc/.../sched, or past SLEEPERS_MAX such threads, the full time begins again.
 */
#include <fcntl.h>
#include <sys/uio.h>
#include <time.h>

#include "internal.h"

#define SLEEPERS_MAX 256
#define BELOW_STACK 1024 /* past the red zone */

static struct sleeper {
    int tid;
    unsigned long nr;
    uint64_t sp, pc, first; /* its first argument */
    uint64_t since_us;      /* CLOCK_MONOTONIC; 0 unknown */
} sleepers[SLEEPERS_MAX];
static int count;

/* CLOCK_MONOTONIC less the scheduler's clock of one CPU. That clock leaves out stolen time, so it only falls behind:
 * an offset of now puts a sleep's beginning too late, if anything, and the timeout is never early. */
static struct {
    int cpu;
    int64_t us;
    uint64_t at_us;
} offset = {.cpu = -1};

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

static long task_file(int taskfd, int tid, const char *file, char *buf, size_t cap)
{
    char path[48], *end = path + sizeof path;
    char *at = ud__put_dec(path, end, (uint64_t)tid);
    ud__put_str(at, end, file);
    long fd = ud__sys(__NR_openat, taskfd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long n = ud__sys(__NR_read, fd, buf, cap - 1);
    ud__sys(__NR_close, fd);
    buf[n > 0 ? n : 0] = 0;
    return n;
}

/* "se.exec_start : 912170.051361" (ms): when the thread was last put on or taken off a CPU. 0 if unknown. */
static uint64_t exec_start_us(int taskfd, int tid)
{
    char buf[512];
    if (task_file(taskfd, tid, "/sched", buf, sizeof buf) <= 0)
        return 0;
    const char *s = buf;
    while (*s && !(s[0] == '\n' && s[1] == 's' && s[2] == 'e' && s[3] == '.'))
        s++;
    while (*s && *s != ':')
        s++;
    while (*s == ':' || *s == ' ')
        s++;
    uint64_t us = ud__get_dec(&s) * 1000;
    if (*s++ != '.')
        return 0;
    return us + (uint64_t)(s[0] - '0') * 100 + (uint64_t)(s[1] - '0') * 10 + (uint64_t)(s[2] - '0');
}

/* Field 39 of stat, counted from behind the name. -1 if unknown. */
static int last_cpu(int taskfd, int tid)
{
    char buf[512];
    if (task_file(taskfd, tid, "/stat", buf, sizeof buf) <= 0)
        return -1;
    const char *s = buf, *name_end = buf;
    for (; *s; s++)
        if (*s == ')')
            name_end = s;
    s = name_end + 2;
    for (int field = 3; field < 39 && *s; s++)
        field += *s == ' ';
    return *s ? (int)ud__get_dec(&s) : -1;
}

/* Goes to that CPU for a moment and compares its clock with ours. 0, or -errno. */
static int learn_offset(int taskfd, int self_tid, int cpu)
{
    uint64_t before[16] = {0}, one[16] = {0}, now = ud__now_us();
    if (offset.cpu == cpu && now - offset.at_us < 100000)
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
    uint64_t mine = exec_start_us(taskfd, self_tid);
    now = ud__now_us();
    ud__sys(__NR_sched_setaffinity, 0, sizeof before, before);
    if (!mine)
        return -ENOENT;
    offset.cpu = cpu;
    offset.us = (int64_t)(now - mine);
    offset.at_us = now;
    return 0;
}

void ud__sleepers_begin(void) { count = 0; }

int ud__sleepers_note(int taskfd, int self_tid, int tid, unsigned long nr, const uint64_t *args, int by_signal)
{
    int arg = 0;
    enum timeout kind = timeout_of(nr, args[1], by_signal, &arg);
    if (kind != NO_TIMEOUT && (kind == IN_MS ? (int)args[arg] <= 0 : args[arg] == 0))
        kind = NO_TIMEOUT;
    if (kind == NO_TIMEOUT && !by_signal)
        return 0;
    if (count == SLEEPERS_MAX)
        return -ENOSPC;
    struct sleeper s = {.tid = tid, .nr = nr, .sp = args[6], .pc = args[7], .first = args[0]};
    uint64_t at = kind != NO_TIMEOUT ? exec_start_us(taskfd, tid) : 0;
    if (at && learn_offset(taskfd, self_tid, last_cpu(taskfd, tid)) == 0)
        s.since_us = at + (uint64_t)offset.us;
    sleepers[count++] = s;
    return kind == NO_TIMEOUT || s.since_us ? 0 : -ENOENT;
}

void ud__sleepers_add(int tid, unsigned long nr, const uint64_t *args)
{
    if (ud__sleepers_call(tid, args[6], args[7], NULL) != (long)nr && count < SLEEPERS_MAX)
        sleepers[count++] = (struct sleeper){.tid = tid, .nr = nr, .sp = args[6], .pc = args[7], .first = args[0]};
}

static const struct sleeper *sleeper_of(int tid)
{
    for (int i = count - 1; i >= 0; i--) /* the last look counts */
        if (sleepers[i].tid == tid)
            return &sleepers[i];
    return NULL;
}

long ud__sleepers_call(int tid, uint64_t sp, uint64_t pc, uint64_t *first)
{
    const struct sleeper *s = sleeper_of(tid);
    if (!s || s->sp != sp || s->pc != pc)
        return -1;
    if (first)
        *first = s->first;
    return (long)s->nr;
}

/* How long it has slept in this call; 0 if that is not known. */
static uint64_t slept_us(int tid, unsigned long nr, uint64_t sp)
{
    const struct sleeper *s = sleeper_of(tid);
    uint64_t now = ud__now_us();
    return s && s->since_us && s->nr == nr && s->sp == sp && now > s->since_us ? now - s->since_us : 0;
}

static void less(struct timespec *ts, uint64_t slept)
{
    uint64_t us = (uint64_t)ts->tv_sec * 1000000 + (uint64_t)ts->tv_nsec / 1000;
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

/* In a hold: args are the six registers of the call that will be started again. */
void ud__sleepers_shorten(int pid, int tid, unsigned long nr, uint64_t sp, unsigned long **args)
{
    int arg;
    enum timeout kind = timeout_of(nr, *args[1], 0, &arg);
    uint64_t slept = kind == NO_TIMEOUT ? 0 : slept_us(tid, nr, sp);
    if (slept && kind == IN_MS)
        shorten_ms(args[arg], slept);
    else if (slept && *args[arg])
        shorten_timespec(pid, sp, args[arg], slept);
}

/* The same in the thread itself, in a handler. */
void ud__sleepers_shorten_here(int tid, unsigned long nr, uint64_t sp, unsigned long **args, struct timespec *place)
{
    int arg;
    enum timeout kind = timeout_of(nr, *args[1], 1, &arg);
    uint64_t slept = kind == NO_TIMEOUT ? 0 : slept_us(tid, nr, sp);
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
