/* hold.c: the write-stop. Runs in a holder (helper.c) and stops every thread of its starter by ptrace.
 *
 * Guarantees: after ud__hold_begin returns 0 no thread of the process runs in user space or inside a
 * system call, except the one that waits for us; none can be made. A signal a thread was about to
 * take is taken after all. A system call that our stop made return -EINTR is started again. If the holder dies
 * at any instant the kernel detaches it and the threads run on.
 * Fails (nobody held afterwards, h->cause says why): the deadline (vfork, uninterruptible sleep), a thread
 * traced by somebody else, ptrace refused, a /proc that does not tell (or of another PID namespace), a group stop
 * (SIGSTOP), more than UD__HOLD_MAX threads. Where ptrace is refused, hold_signal.c takes its place behind the same two
 * functions.
 *
 * Another process on the same memory is not in our task list. Of a vfork child the parent sleeps in vfork and cannot be
 * stopped, so the deadline drops the batch; of others sharers.c tells.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "sleepers.h"

#define PT_CONT 7
#define PT_DETACH 17
#define PT_GETREGSET 0x4204
#define PT_SETREGSET 0x4205
#define PT_SEIZE 0x4206
#define PT_INTERRUPT 0x4207
#define EVENT_STOP 128
#define LATE_US 500000u
#define THREAD_US 300u

UD_HIDDEN atomic_int ud__hold_way = UD_HOLD_PTRACE;

static long pt(long request, int tid, long addr, const void *data)
{
    return ud__sys(__NR_ptrace, request, tid, addr, data);
}

static struct ud__held *find(struct ud__hold *h, int tid)
{
    for (int i = 0; i < h->count; i++)
        if (h->t[i].tid == tid)
            return &h->t[i];
    return NULL;
}

/* A thread we could not seize: is it dying (then skip it), traced, or are we refused? */
static int why_not_seized(struct ud__hold *h, int tid)
{
    char buf[1024];
    long n = ud__read_task(h->taskfd, tid, "status", buf, sizeof buf);
    if (n == -ENOENT || n == -ESRCH)
        return UD__T_SKIP;
    h->cause = UD_CAUSE_HOLD_REFUSED;
    if (n <= 0) /* no descriptor is left, say: the thread may well be there */
        return -1;
    const char *state = ud__line_value(buf, "State"), *tracer = ud__line_value(buf, "TracerPid");
    if (state && (*state == 'Z' || *state == 'X'))
        return UD__T_SKIP;
    if (tracer && *tracer != '0')
        h->cause = UD_CAUSE_HOLD_TRACED;
    return -1;
}

static int seize(struct ud__hold *h, int tid)
{
    if (h->count == UD__HOLD_MAX) {
        h->cause = UD_CAUSE_HOLD_DEADLINE;
        return -1;
    }
    struct ud__held *t = &h->t[h->count];
    *t = (struct ud__held){.tid = tid, .state = UD__T_RUNS};
    if (pt(PT_SEIZE, tid, 0, NULL) != 0) {
        int r = why_not_seized(h, tid);
        if (r < 0)
            return -1;
        t->state = (uint8_t)r;
    } else if (pt(PT_INTERRUPT, tid, 0, NULL) != 0) {
        t->state = UD__T_GONE;
    }
    h->count++;
    return t->state == UD__T_RUNS;
}

/* How many threads there are, as the kernel counts them; 0 where the links of the directory do not tell. */
long ud__hold_threads(const struct ud__hold *h)
{
    struct stat st;
    return ud__sys(__NR_fstat, h->taskfd, &st) == 0 && st.st_nlink > 2 ? (long)st.st_nlink - 2 : 0;
}

/* Tests: the list ends behind its first thread, twice in four times, as the kernel's does where the next is just ending. */
static int cut_short(long listed)
{
    static int calls;
    return !UD__GUARD_ON(UD__GUARD_SHORT) && listed == 1 && calls++ % 4 < 2;
}

/* Seizes whoever is in /proc/PID/task and not known yet. New ones, or -1. *listed: all that were there. */
static int seize_new(struct ud__hold *h, long *listed)
{
    char buf[4096];
    int fresh = 0;
    *listed = 0;
    ud__sys(__NR_lseek, h->taskfd, 0, 0);
    for (;;) {
        long n = ud__sys(__NR_getdents64, h->taskfd, buf, sizeof buf);
        if (n < 0)
            h->cause = UD_CAUSE_NOMEM;
        if (n <= 0)
            return n < 0 ? -1 : fresh;
        for (long at = 0; at < n;) {
            const char *entry = buf + at; /* u64 ino, u64 off, u16 reclen, u8 type, name */
            uint16_t reclen;
            __builtin_memcpy(&reclen, entry + 16, 2);
            at += reclen;
            const char *name = entry + 19;
            int tid = (int)ud__get_dec(&name);
            if (tid && cut_short(*listed))
                return fresh;
            *listed += tid != 0;
            if (tid == 0 || tid == h->spare_tid || find(h, tid))
                continue;
            int r = seize(h, tid);
            if (r < 0)
                return -1;
            fresh += r;
        }
    }
}

/* What wait4 said of one thread. */
static void note_stop(struct ud__hold *h, struct ud__held *t, int status)
{
    if (!WIFSTOPPED(status)) {
        t->state = UD__T_GONE;
        return;
    }
    int sig = WSTOPSIG(status);
    if (status >> 16 != EVENT_STOP) {
        pt(PT_CONT, t->tid, 0, (void *)(long)sig); /* it takes its signal, our trap is still pending */
        return;
    }
    t->state = UD__T_STOPPED;
    h->suspended |= sig != SIGTRAP; /* a group stop */
}

static int running(const struct ud__hold *h)
{
    int n = 0;
    for (int i = 0; i < h->count; i++)
        n += h->t[i].state == UD__T_RUNS;
    return n;
}

/* The next thread of which there is news; NULL at the deadline. */
static struct ud__held *wait_one(struct ud__hold *h)
{
    uint64_t chld = 1ull << (SIGCHLD - 1), now;
    do {
        int status;
        long r = ud__sys(__NR_wait4, -1, &status, WNOHANG | __WALL, 0);
        struct ud__held *t = r > 0 ? find(h, (int)r) : NULL;
        if (t) {
            note_stop(h, t, status);
            return t;
        }
        now = ud__now_us();
        if (r > 0 || now >= h->deadline_us)
            continue;
        uint64_t left = h->deadline_us - now;
        struct timespec ts = {(time_t)(left / 1000000), (long)(left % 1000000) * 1000};
        ud__sys(__NR_rt_sigtimedwait, &chld, 0, &ts, 8);
    } while (now < h->deadline_us);
    return NULL;
}

static int wait_all(struct ud__hold *h)
{
    while (running(h) && !h->suspended)
        if (!wait_one(h)) {
            h->cause = UD_CAUSE_HOLD_DEADLINE;
            return -1;
        }
    if (h->suspended)
        h->cause = UD_CAUSE_HOLD_DEADLINE;
    return h->suspended ? -1 : 0;
}

/* Holds all there are and looks again, until a list brings nobody new and is whole: when a thread is reaped while the
 * list is read, the kernel may leave out the one after it. */
static int hold_all(struct ud__hold *h)
{
    for (;;) {
        long before = ud__hold_threads(h), listed;
        int fresh = seize_new(h, &listed);
        if (fresh < 0)
            return -1;
        h->deadline_us += (uint64_t)fresh * THREAD_US; /* many threads take turns on few CPUs */
        if (fresh && wait_all(h))
            return -1;
        int all = !before || (before == listed && ud__hold_threads(h) == listed) || !UD__GUARD_ON(UD__GUARD_LISTED);
        if (!fresh && all)
            return 0;
        if (ud__now_us() >= h->deadline_us) {
            h->cause = UD_CAUSE_HOLD_DEADLINE;
            return -1;
        }
    }
}

/* Reads the stack pointer, and starts again what our stop alone interrupted. */
static void look_at_registers(struct ud__hold *h, struct ud__held *t)
{
    struct ud__regs regs;
    struct iovec iov = {&regs, sizeof regs};
    if (pt(PT_GETREGSET, t->tid, 1 /* NT_PRSTATUS */, &iov) != 0)
        return;
    t->sp = regs.sp;
#if defined(__x86_64__)
    t->tls = regs.fs_base;
    /* As the kernel itself says it: start the call again, unless a signal of the program's is to be handled (even
     * one that comes between here and our letting go): then it is EINTR after all. close is left alone: Linux has
     * closed the descriptor even when it says EINTR. */
    if (UD__GUARD_ON(UD__GUARD_EINTR) && (long)regs.orig_ax >= 0 && (long)regs.ax == -EINTR &&
        regs.orig_ax != __NR_close) {
        unsigned long *args[6] = {&regs.di, &regs.si, &regs.dx, &regs.r10, &regs.r8, &regs.r9};
        ud__sleepers_shorten(h, t->tid, regs.orig_ax, regs.sp, args);
        ud__timed_note(t->tid, regs.orig_ax, regs.sp);
        regs.ax = (unsigned long)-514l; /* ERESTARTNOHAND */
        h->repairs += pt(PT_SETREGSET, t->tid, 1, &iov) == 0;
    } else if (UD__GUARD_ON(UD__GUARD_EINTR) && ud__resume_write(h->pid, &regs)) {
        h->repairs += pt(PT_SETREGSET, t->tid, 1, &iov) == 0;
    }
#else
    (void)h; /* nothing is repaired: calls that signal(7) lists as never restarted may say EINTR */
#endif
}

static void signals_for_holder(void)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } dfl = {0};
    /* SIGCHLD must not be ignored, or no stop would wake us; it stays blocked. The table is ours alone. */
    ud__sys(__NR_rt_sigaction, SIGCHLD, &dfl, 0, 8);
}

/* The hold was given up, but our interruption has reached threads that had not stopped yet: their calls are mended as
 * they come, while everybody else runs. Who does not come (vfork, a disk) was not interrupted. */
static void let_go_late(struct ud__hold *h)
{
    h->deadline_us = ud__now_us() + LATE_US;
    while (running(h)) {
        struct ud__held *t = wait_one(h);
        if (!t)
            return;
        if (t->state == UD__T_STOPPED) {
            look_at_registers(h, t);
            pt(PT_DETACH, t->tid, 0, NULL);
            t->state = UD__T_GONE;
        }
    }
}

/* Is /proc that of our PID namespace? Else the numbers in it are other threads', or nobody's. */
int ud__proc_is_ours(void)
{
    char pid[24] = "";
    const char *s = pid;
    return ud__sys(__NR_readlinkat, AT_FDCWD, "/proc/self", pid, sizeof pid - 1) > 0 &&
           ud__get_dec(&s) == (uint64_t)ud__sys(__NR_getpid);
}

static int open_tasks(struct ud__hold *h)
{
    char path[48], *end = path + sizeof path;
    char *at = ud__put_str(path, end, "/proc/");
    at = ud__put_dec(at, end, (uint64_t)h->pid);
    ud__put_str(at, end, "/task");
    h->count = h->suspended = 0;
    h->cause = UD_CAUSE_HOLD_REFUSED;
    if (UD__GUARD_ON(UD__GUARD_PROC) && !ud__proc_is_ours())
        return -1;
    h->taskfd = (int)ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (h->taskfd < 0)
        h->cause = UD_CAUSE_NOMEM;
    return h->taskfd < 0 ? -1 : 0;
}

/* What PTRACE_SEIZE begins ends with the holder: the thread never stops. */
int ud__hold_probe(struct ud__hold *h, int tid)
{
    if (open_tasks(h))
        return 0;
    int works = pt(PT_SEIZE, tid, 0, NULL) == 0 || why_not_seized(h, tid) == UD__T_SKIP;
    ud__sys(__NR_close, h->taskfd);
    return works ? 0 : h->cause;
}

static void detach_all(struct ud__hold *h)
{
    for (int i = 0; i < h->count; i++)
        if (h->t[i].state == UD__T_STOPPED)
            pt(PT_DETACH, h->t[i].tid, 0, NULL);
}

static int trace_all(struct ud__hold *h)
{
    signals_for_holder();
    ud__test_gap(); /* sleeps begun from here on the agent has not seen */
    int r = hold_all(h);
    for (int i = 0; i < h->count; i++)
        if (h->t[i].state == UD__T_STOPPED)
            look_at_registers(h, &h->t[i]);
    if (r == 0)
        return 0;
    detach_all(h);
    let_go_late(h);
    return -1;
}

int ud__hold_begin(struct ud__hold *h)
{
    if (open_tasks(h))
        return -1;
    h->began_us = ud__now_us();
    if (!UD__GUARD_ON(UD__GUARD_HOLD))
        return 0;
    int r = h->way == UD_HOLD_SIGNAL ? ud__park_begin(h) : trace_all(h);
    if (r)
        ud__sys(__NR_close, h->taskfd);
    return r;
}

void ud__hold_end(struct ud__hold *h)
{
    if (h->way == UD_HOLD_SIGNAL)
        ud__park_release();
    else
        detach_all(h);
    ud__sys(__NR_close, h->taskfd);
}

int ud__hold_has_stack(const struct ud__hold *h, uint64_t start, uint64_t end)
{
    for (int i = 0; i < h->count; i++) {
        const struct ud__held *t = &h->t[i];
        if (t->state == UD__T_STOPPED && t->sp >= start && t->sp < end)
            return 1;
    }
    return 0;
}
