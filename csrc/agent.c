/* agent.c: the thread that works for udedup inside a program.
 *
 * Made by a bare clone(2): libc does not know of it, so nothing of libc changes (its single-thread paths, its
 * count of threads, its locks), and it may be started from any place, inside malloc too. It has a
 * descriptor table of its own, all signals blocked, no TLS but a dummy, no libc call.
 *
 * Guarantees: ud__agent_start is async-signal-safe and starts one agent at most. The agent ends by itself when the
 * program has left nothing but zombies beside it, when the credentials of the program changed
 * (another trust domain), or when told to leave; merged memory stays valid in each case.
 * Fails: without memory, descriptors or /proc it ends quietly, and the program runs as if it had never been.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include "link.h"
#include "pass.h"
#include "trap.h"

#define CLONE_FLAGS                                                                                              \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |           \
     CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID)
#define RETRY_US 1000000u
#define NAP_US 250000u
#define REST_NAP_US 500000u /* a wake-up every now and then is much of what an idle program costs */
#define CALM_PAGES 256
#define KICKED_US 20000u /* so long between the beginnings of two passes at most while somebody waits */
#define CALM_SHARE 5 /* where little changes, a sixth of a CPU at most */
#define SLICE_US 20000u
#define GROWING_US 200000u /* so long between two passes at most while the program grows: it is merged once that is over */

UD_HIDDEN struct ud__agent ud__a = {.sock = -1, .maps = {.fd = -1}, .ledger = {.fd = -1}};

static char agent_stack[UD__STACK_BYTES * 2] __attribute__((aligned(64)));
static uint64_t agent_tls[64] __attribute__((aligned(64))); /* fs:0 points to itself, fs:0x28 is a canary of 0 */
static uint64_t idle_us;
static uint64_t calm_until; /* no pass before that, whoever waits for one */

static void private_descriptors(void)
{
    /* Nothing of the program's is held open by us, not even its standard output. */
    if (ud__sys(__NR_close_range, 0, ~0u, 2 /* CLOSE_RANGE_UNSHARE */) == 0)
        return;
    ud__sys(__NR_unshare, CLONE_FILES);
    for (int fd = 0; fd < 4096; fd++)
        ud__sys(__NR_close, fd);
}

/* One field of /proc/self/stat, counted as proc(5) does; 0 if there is none. The state (3) as its letter. */
static uint64_t stat_field(int field)
{
    char buf[1024];
    if (ud__read_file("/proc/self/stat", buf, sizeof buf) <= 0)
        return 0;
    const char *s = ud__stat_field(buf, field);
    return field == 3 ? (uint64_t)*s : ud__get_dec(&s);
}

static int open_all(void)
{
    char buf[32];
    const char *s = buf;
    if (!ud__proc_is_ours())
        return -ENOENT;
    int r = ud__maps_open(&ud__a.maps, ud__a.pid);
    if (r < 0)
        return r;
    ud__a.statusfd = (int)ud__sys(__NR_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC);
    ud__a.statmfd = (int)ud__sys(__NR_openat, AT_FDCWD, "/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (ud__a.statusfd < 0 || ud__a.statmfd < 0)
        return -ENOENT;
    if ((r = ud__ledger_open(&ud__a.ledger)) < 0)
        return r;
    struct ud_ledger_header *h = ud__a.ledger.hdr;
    h->pid = (uint32_t)ud__a.pid;
    h->track_kind = (uint32_t)ud__track_open();
    ud__job_probe();
    h->hold_kind = (uint32_t)atomic_load(&ud__hold_way);
    h->regions_mode = (uint32_t)ud__a.advised;
    h->preloaded = (uint32_t)ud__a.preloaded;
    ud__a.max_maps = 65530;
    if (ud__read_file("/proc/sys/vm/max_map_count", buf, sizeof buf) > 0)
        ud__a.max_maps = ud__get_dec(&s);
    ud__a.heap_start = stat_field(47);
    if (!ud__a.preloaded) /* else madvise told us; locked memory is asked for before each batch */
        ud__locked_mark(ud__a.pid);
    return 0;
}

static void close_all(void)
{
    ud__link_close();
    ud__scan_reset();
    ud__budget_close();
    ud__track_close();
    ud__maps_close(&ud__a.maps);
    ud__trap_agent_ends();
    ud__ledger_close(&ud__a.ledger);
    ud__turns_close();
    ud__segment_reset(1);
}

/* The main thread has left by pthread_exit and no other is there: we alone keep the process alive. */
static int alone_with_a_zombie(void)
{
    return stat_field(3) == 'Z' && stat_field(20) <= 2;
}

/* setuid in the program: libc does not know this thread, so it keeps the old identity and must go. */
static int credentials_changed(void)
{
    return ud__effective_uid() != (uint64_t)ud__sys(__NR_geteuid);
}

static void note_cpu(void)
{
    struct timespec t;
    ud__sys(__NR_clock_gettime, CLOCK_THREAD_CPUTIME_ID, &t);
    ud__a.ledger.hdr->agent_cpu_us =
        (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000 + atomic_load(&ud__helper_cpu_us);
}

/* At least so long a rest that what was spent since the last one is agent_cpu_permille of the time. */
static uint64_t paced(uint64_t rest)
{
    static uint64_t before;
    uint64_t now = ud__a.ledger.hdr->agent_cpu_us, permille = ud__a.knobs.agent_cpu_permille;
    uint64_t spent = now > before ? now - before : 0; /* a new ledger begins at 0 */
    before = now;
    uint64_t least = permille && permille < 1000 ? spent * (1000 - permille) / permille : 0;
    return rest > least ? rest : least;
}

/* Was all that changed in a pass there before? What is written again has to be a second old (age.c): no hurry. */
static int rewriting(int whole)
{
    return whole && ud__a.knobs.smart_scan && ud__pass.fresh + ud__pass.left_to_us < CALM_PAGES;
}

/* Scans one slice and tells the merger. How long to rest then, in microseconds. */
static uint64_t work(void)
{
    int whole = 0;
    uint64_t rest = (uint64_t)ud__a.knobs.sleep_millisecs * 1000, most = (uint64_t)ud__a.knobs.idle_millisecs * 1000;
    if (ud__a.knobs.run != 1)
        return most > 100000 ? most : 100000;
    uint64_t began = ud__now_us();
    if (ud__a.ledger.hdr->passes) /* the first digests all there is, mostly before anybody merges */
        ud__turn_take();
    else
        ud__turn_any();
    long changed = ud__scan_slice(&whole);
    ud__turn_give();
    uint64_t calm = changed < CALM_PAGES ? CALM_SHARE * (ud__now_us() - began) : 0;
    calm_until = ud__now_us() + calm;
    note_cpu();
    if (changed > 0 || whole) {
        struct ud_msg_pass m = {.pass = ud__a.ledger.hdr->passes, .changed = changed > 0 ? (uint32_t)changed : 0,
                                .whole = (uint32_t)whole};
        if (ud__link_send(&m, UD_MSG_PASS, sizeof m, -1) < 0)
            ud__link_close();
        if (changed >= CALM_PAGES && !rewriting(whole))
            idle_us = 0;
        else if (changed >= CALM_PAGES || ud__pass.thorough) /* only such a pass knows that there is nothing new */
            idle_us = idle_us * 2 + rest;
        if (ud__pass.fresh && idle_us > most / 2) /* a few new pages do not keep us awake, but they keep us looking */
            idle_us = most / 2;
    }
    ud__pass_give_zeros();
    if (whole && changed < CALM_PAGES) {
        uint64_t mask;
        ud__job_lock(&mask); /* not while a thread of the program moves memory: parked threads do not include us */
        ud__malloc_release();
        ud__job_unlock(&mask);
    }
    if (idle_us > most)
        idle_us = most;
    if (ud__pass.growing && idle_us > GROWING_US)
        idle_us = GROWING_US;
    ud__a.resting = idle_us >= most / 4;
    if (!whole)
        return rest / 8; /* in the midst of a pass: a breath, no more */
    if (ud__a.kicked) {
        uint64_t took = ud__now_us() - ud__pass.began_us;
        ud__a.kicked--;
        rest = rest < KICKED_US ? rest : KICKED_US;
        rest = rest > took ? rest - took : 0;
        return rest > calm ? rest : calm;
    }
    return rest + idle_us > calm ? rest + idle_us : calm;
}

static void serve_until(uint64_t when)
{
    uint64_t most = ud__a.resting ? REST_NAP_US : NAP_US;
    for (;;) {
        uint64_t now = ud__now_us();
        if (atomic_load(&ud__a.leave) || ud__a.sock < 0)
            return;
        /* short naps: ud_leave has no other way to be heard */
        if (ud__budget_urgent())
            return;
        if (now < when && !ud__link_wait(when - now < most ? when - now : most))
            continue;
        int r = ud__link_serve();
        if (r < 0) {
            ud__link_close();
            return;
        }
        if (r == 0 && ud__now_us() >= when)
            return;
        if (ud__a.kicked && r == 1 && when > calm_until)
            when = calm_until;
    }
}

static void give_back_buffers(void)
{
    ud__scan_rest();
    ud__exec_rest();
    ud__link_rest();
}

static void loop(void)
{
    uint64_t retry = RETRY_US / 8;
    while (!atomic_load(&ud__a.leave)) {
        if (alone_with_a_zombie())
            ud__sys(__NR_exit_group, 0);
        if (credentials_changed())
            return;
        if (ud__budget_urgent())
            ud__budget_keep();
        if (ud__a.sock < 0) {
            if (ud__link_open() < 0) {
                ud__link_wait(retry);
                retry = retry * 2 < 4 * RETRY_US ? retry * 2 : 4 * RETRY_US;
                continue;
            }
            retry = RETRY_US / 8;
            idle_us = 0;
        }
        uint64_t rest = paced(work());
        if (ud__a.resting)
            give_back_buffers();
        serve_until(ud__now_us() + rest);
    }
}

/* Sleeps, unless poked. */
static void nap(uint64_t us)
{
    struct timespec ts = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    if (us)
        ud__sys(__NR_futex, &ud__a.poke, 0 /* FUTEX_WAIT */, atomic_load(&ud__a.poke), &ts);
}

static void agent_main(void *arg)
{
    (void)arg;
    ud__sys(__NR_prctl, PR_SET_NAME, "udedup-agent");
    private_descriptors();
    ud__slice(SLICE_US);
    nap(ud__a.calm_us);
    ud__a.calm_us = 0;
    if (!atomic_load(&ud__a.leave) && open_all() == 0) {
        atomic_store(&ud__a.state, UD__AGENT_RUNNING);
        loop();
        if (atomic_load(&ud__a.leave) == UD__LEAVE)
            ud__plan_unmerge(NULL, 0);
    }
    close_all();
    atomic_store(&ud__a.leave, 0);
    atomic_store(&ud__a.state, UD__AGENT_NONE);
    for (;;)
        ud__sys(__NR_exit, 0);
}

void ud__agent_quit(void)
{
    int tid = atomic_load(&ud__a.tid), now;
    /* One that has just been made has no tid yet; one that is on its way out has no state any more. */
    for (int i = 0; i < 3000 && ((now = atomic_load(&ud__a.tid)) || atomic_load(&ud__a.state) != UD__AGENT_NONE); i++) {
        tid = now ? now : tid;
        atomic_store(&ud__a.leave, UD__QUIT);
        atomic_fetch_add(&ud__a.poke, 1);
        ud__sys(__NR_futex, &ud__a.poke, 1 /* FUTEX_WAKE */, 1);
        ud__sleep_us(i < 10 ? 100 : 1000);
    }
    /* The kernel clears the tid of a thread that it still counts as one. */
    for (int i = 0; tid && i < 1000 && ud__sys(__NR_tgkill, ud__a.pid, tid, 0) == 0; i++)
        ud__sleep_us(100);
    atomic_store(&ud__a.leave, 0); /* or it would end the next one */
}

int ud__agent_start(void)
{
    int none = UD__AGENT_NONE;
    ud__fork_notice();
    if (ud__a.disabled || !ud__a.socket[0] || atomic_load(&ud__a.left) || ud__in_vfork())
        return -ENOENT;
    if (!atomic_compare_exchange_strong(&ud__a.state, &none, UD__AGENT_STARTING))
        return -EALREADY;
    while (atomic_load(&ud__a.tid)) /* an agent before us is still on its way out, on this very stack */
        ud__sleep_us(100);
    atomic_fetch_add(&ud__a.started, 1);
    uint64_t all = ~0ull, before;
    ud__a.pid = (int)ud__sys(__NR_getpid);
    ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, &before, 8);
    uint64_t *tls = agent_tls + 16; /* room on both sides of the thread pointer */
    tls[0] = tls[2] = (uint64_t)tls;
    long r = ud__clone(CLONE_FLAGS, agent_stack + sizeof agent_stack, tls, (int *)&ud__a.tid, agent_main, NULL);
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
    if (r < 0) {
        atomic_store(&ud__a.state, UD__AGENT_NONE);
        return (int)r;
    }
    return 0;
}
