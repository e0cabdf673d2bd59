/* processes.c: fork, exec, threads, signals, descriptors and credentials while memory is being merged. */
#include "hz.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define N 96 /* enough for a segment to be mapped and moved into place; in edges.c it is read */

extern char **environ;
static double span(void) { return under_udedup() ? 2.5 : 0.3; }

/* Threads that count upwards in words of a merged area and check that no count is lost. */
struct counter {
    char *area;
    _Atomic int stop;
    uint64_t bad;
};

static void *count_up(void *arg)
{
    struct counter *c = arg;
    for (uint64_t i = 1; !c->stop; i++) {
        volatile uint64_t *w = (volatile uint64_t *)(c->area + (i % N) * PAGE);
        w[7]++;
        if (i % N == 0) {
            for (uint64_t k = 1; k < N; k++) {
                volatile uint64_t *v = (volatile uint64_t *)(c->area + k * PAGE);
                c->bad += v[7] != (30ull << 40 | (k * 512 + 7)) + i / N;
            }
            if (i % (N * 8) == 0) { /* equal again */
                fill(c->area, N, 30);
                nap(0.01);
                i = 0;
            }
        }
    }
    return NULL;
}

static pthread_t counting(struct counter *c)
{
    pthread_t t;
    c->area = merged_area(N, 30);
    c->stop = 0;
    c->bad = 0;
    CHECK(pthread_create(&t, NULL, count_up, c) == 0);
    return t;
}

static void wait_ok(int pid)
{
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status != 0)
        fprintf(stderr, "child status %#x\n", status);
    CHECK(status == 0);
}

static void stores_are_kept(void)
{
    struct counter c[3];
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        t[i] = counting(&c[i]);
    nap(span());
    for (int i = 0; i < 3; i++) {
        c[i].stop = 1;
        pthread_join(t[i], NULL);
        printf("bad %lu\n", c[i].bad);
    }
}

static void fork_while_writing(void)
{
    struct counter c[2];
    char *mine = merged_area(N, 31); /* first: beside who writes, a short run may wait for half a minute */
    pthread_t t[2] = {counting(&c[0]), counting(&c[1])};
    double end = now() + span();
    for (int n = 0; now() < end || n < 20; n++) {
        int pid = fork();
        if (pid == 0) {
            CHECK(wrong(mine, N, 31) == 0);
            CHECK(madvise(mine, 4 * PAGE, MADV_DONTNEED) == 0 && nonzero(mine, 4 * PAGE) == 0);
            fill(mine, N, 32);
            CHECK(wrong(mine, N, 32) == 0);
            void *p = malloc(300000);
            memset(p, 1, 300000);
            free(p);
            _exit(0);
        }
        CHECK(wrong(mine, N, 31) == 0);
        wait_ok(pid);
    }
    for (int i = 0; i < 2; i++) {
        c[i].stop = 1;
        pthread_join(t[i], NULL);
        printf("bad %lu\n", c[i].bad);
    }
}

static void fork_storm(void)
{
    char *p = merged_area(N, 33);
    for (int round = 0; round < (under_udedup() ? 12 : 3); round++) {
        int pids[20];
        for (int i = 0; i < 20; i++) {
            if ((pids[i] = fork()) == 0) {
                CHECK(wrong(p, N, 33) == 0);
                p[(i % N) * (int)PAGE] = 1;
                nap(0.01 * (i % 5));
                int inner = fork();
                if (inner == 0)
                    _exit(p[(i % N) * (int)PAGE] != 1);
                wait_ok(inner);
                _exit(0);
            }
        }
        for (int i = 0; i < 20; i++)
            wait_ok(pids[i]);
    }
    printf("wrong %zu\n", wrong(p, N, 33));
}

static void child_lives_on(void) /* long enough to join as a process of its own */
{
    char *p = merged_area(N, 34);
    int pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 30; i++) {
            char *q = map(64);
            fill(q, 64, 34);
            nap(0.02);
            CHECK(wrong(q, 64, 34) == 0 && wrong(p, N, 34) == 0);
            CHECK(munmap(q, 64 * PAGE) == 0);
        }
        _exit(0);
    }
    wait_ok(pid);
    printf("wrong %zu\n", wrong(p, N, 34));
}

static void vfork_and_spawn(void)
{
    struct counter c;
    pthread_t t = counting(&c);
    for (int i = 0; i < (under_udedup() ? 100 : 10); i++) {
        char *argv[] = {(char *)"true", NULL};
        int pid = vfork();
        if (pid == 0) {
            execvp(argv[0], argv);
            _exit(127);
        }
        wait_ok(pid);
        CHECK(posix_spawnp(&pid, "true", NULL, NULL, argv, environ) == 0);
        wait_ok(pid);
    }
    c.stop = 1;
    pthread_join(t, NULL);
    printf("bad %lu\n", c.bad);
}

static void exec_merged(void)
{
    char *p = merged_area(N, 35);
    p[1] = 1;
    execlp("echo", "echo", "came through", NULL);
}

static void *short_life(void *arg)
{
    volatile uint64_t *w = arg;
    for (int i = 0; i < 2000; i++)
        w[i % 500]++;
    return NULL;
}

static void threads_come_and_go(void)
{
    char *p = merged_area(N, 36);
    double end = now() + span();
    long made = 0;
    while (now() < end) {
        pthread_t t[8];
        for (int i = 0; i < 8; i++, made++)
            CHECK(pthread_create(&t[i], NULL, short_life, p + i * (int)PAGE) == 0);
        for (int i = 0; i < 8; i++)
            pthread_join(t[i], NULL);
        CHECK(((uint64_t *)p)[499] == (36ull << 40 | 499) + 4);
        fill(p, N, 36);
        nap(0.005);
    }
    printf("wrong %zu enough %d\n", wrong(p, N, 36), made > 50);
}

/* 200 threads, each asleep in one of the calls in which threads sleep for hours; none may see that it was held. */
#define MANY 200
static struct {
    int masked; /* all signals blocked, as libzmq and libuv do */
    int pipe[2];
    pthread_mutex_t lock;
    pthread_cond_t end;
    int ended;
    _Atomic int wrong;
} sleepers = {.lock = PTHREAD_MUTEX_INITIALIZER, .end = PTHREAD_COND_INITIALIZER};

static void *sleep_long(void *arg)
{
    struct pollfd p = {sleepers.pipe[0], POLLIN, 0};
    struct epoll_event e = {.events = EPOLLIN};
    sigset_t all;
    char c;
    sigfillset(&all);
    if (sleepers.masked)
        pthread_sigmask(SIG_BLOCK, &all, NULL);
    switch ((intptr_t)arg % 4) {
    case 0:
        sleepers.wrong += read(sleepers.pipe[0], &c, 1) != 0;
        break;
    case 1:
        sleepers.wrong += poll(&p, 1, 100000) != 1;
        break;
    case 2:
        pthread_mutex_lock(&sleepers.lock);
        while (!sleepers.ended)
            pthread_cond_wait(&sleepers.end, &sleepers.lock);
        pthread_mutex_unlock(&sleepers.lock);
        break;
    default: {
        int fd = epoll_create1(EPOLL_CLOEXEC);
        CHECK(epoll_ctl(fd, EPOLL_CTL_ADD, sleepers.pipe[0], &e) == 0);
        sleepers.wrong += epoll_wait(fd, &e, 1, 100000) != 1;
        close(fd);
    }
    }
    return NULL;
}

static void many_asleep(int masked)
{
    pthread_t t[MANY];
    pthread_attr_t a;
    sleepers.masked = masked;
    CHECK(pipe(sleepers.pipe) == 0);
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 128 * 1024);
    for (intptr_t i = 0; i < MANY; i++)
        CHECK(pthread_create(&t[i], &a, sleep_long, (void *)i) == 0);
    char *p = merged_area(N, 37);
    close(sleepers.pipe[1]);
    pthread_mutex_lock(&sleepers.lock);
    sleepers.ended = 1;
    pthread_cond_broadcast(&sleepers.end);
    pthread_mutex_unlock(&sleepers.lock);
    for (int i = 0; i < MANY; i++)
        pthread_join(t[i], NULL);
    printf("wrong %zu interrupted %d\n", wrong(p, N, 37), sleepers.wrong);
}

/* Merged memory is moved although a thread cannot be held any more. */
static void *mask_all(void *arg)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (!*(_Atomic int *)arg)
        nap(0.02);
    return NULL;
}

static void mremap_beside_masked(void)
{
    static _Atomic int stop;
    pthread_t t;
    char *p = merged_area(N, 49);
    CHECK(pthread_create(&t, NULL, mask_all, &stop) == 0);
    nap(0.05);
    char *q = mremap(p, N * PAGE, 4 * N * PAGE, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED);
    stop = 1;
    pthread_join(t, NULL);
    printf("wrong %zu %zu\n", wrong(q, N, 49), nonzero(q + N * PAGE, 3 * N * PAGE));
}

static void many_threads(void) { many_asleep(0); }
static void many_masked(void) { many_asleep(1); }

static void *burn(void *arg)
{
    volatile uint64_t n = 0;
    while (!*(_Atomic int *)arg)
        n++;
    return NULL;
}

static void busy_threads(void) /* more of them than cores */
{
    static _Atomic int stop;
    pthread_t t[6];
    for (int i = 0; i < 6; i++)
        CHECK(pthread_create(&t[i], NULL, burn, &stop) == 0);
    char *p = merged_area(N, 38);
    stop = 1;
    for (int i = 0; i < 6; i++)
        pthread_join(t[i], NULL);
    printf("wrong %zu\n", wrong(p, N, 38));
}

static void *last_thread(void *arg)
{
    nap(0.3);
    printf("wrong %zu\n", wrong(arg, N, 39));
    puts("done");
    fflush(NULL);
    return NULL; /* nobody is left: the process ends with status 0 */
}

static void main_thread_leaves(void)
{
    pthread_t t;
    char *p = merged_area(N, 39);
    CHECK(pthread_create(&t, NULL, last_thread, p) == 0);
    pthread_exit(NULL);
}

static void close_everything(void) /* as a daemon does, and then uses the numbers itself */
{
    struct rlimit limit;
    char *p = merged_area(N, 40);
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int round = 0; round < 5; round++) {
        for (int fd = 3; fd < 4096; fd++)
            close(fd);
        syscall(SYS_close_range, 3, ~0u, 0);
        int first = open("/dev/null", O_RDWR);
        printf("first %d\n", first);
        int fds[64];
        for (int i = 0; i < 64; i++)
            fds[i] = memfd_create("mine", 0);
        for (int i = 0; i < 64; i++)
            CHECK(write(fds[i], &i, sizeof i) == sizeof i);
        p[round * (int)PAGE] = 7;
        char *q = map(32);
        fill(q, 32, 40);
        nap(under_udedup() ? 0.1 : 0);
        CHECK(wrong(q, 32, 40) == 0);
        for (int i = 0; i < 64; i++) {
            int back = -1;
            CHECK(pread(fds[i], &back, sizeof back, 0) == sizeof back && back == i);
            CHECK(lseek(fds[i], 0, SEEK_END) == sizeof i);
        }
    }
    printf("wrong %zu\n", wrong_in(p, 5, N, 40));
}

static void credentials(void)
{
    char *p = merged_area(N, 41);
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    char *q = map(32);
    fill(q, 32, 41);
    nap(under_udedup() ? 0.2 : 0);
    if (geteuid() == 0) {
        CHECK(setgid(65534) == 0 && setuid(65534) == 0);
        nap(under_udedup() ? 0.2 : 0);
    }
    fill(p, 2, 42);
    printf("wrong %zu %zu %zu dumpable %d\n", wrong(p, 2, 42), wrong_in(p, 2, N, 41), wrong(q, 32, 41), prctl(PR_GET_DUMPABLE));
}

static void seccomp_strict(void) /* no ptrace any more: threads cannot be held, nothing is lost */
{
    char *p = merged_area(N, 43);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(22 /* SECCOMP */, 1) == 0 || 1);
    size_t bad = wrong(p, N, 43);
    p[0] = 1;
    const char *text = bad ? "wrong\n" : "right\ndone\n";
    CHECK(write(1, text, strlen(text)) > 0);
    syscall(SYS_exit, 0);
}

static volatile sig_atomic_t caught;
static void on_signal(int s)
{
    (void)s;
    caught++;
}

static void signals_while_held(void)
{
    struct counter c;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &set, NULL);
    pthread_t t = counting(&c);
    signal(SIGUSR1, on_signal);
    int wanted = under_udedup() ? 4000 : 400;
    for (int i = 0; i < wanted; i++) {
        int before = caught;
        pthread_kill(pthread_self(), SIGUSR1);
        CHECK(caught == before + 1); /* at once, and once */
        union sigval v = {.sival_int = i};
        CHECK(sigqueue(getpid(), SIGRTMIN, v) == 0);
        siginfo_t info;
        CHECK(sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == i);
        if (i % 50 == 0)
            nap(0.005);
    }
    c.stop = 1;
    pthread_join(t, NULL);
    printf("caught %d bad %lu\n", caught == wanted, c.bad);
}

/* A handler without SA_RESTART must end a sleep with EINTR, also when its signal comes while the thread is held: 3 in 100
 * do. Lost are only those that come between the kernel's last look for signals and its sleeping again, as with
 * SIGSTOP and SIGCONT: one in a thousand at most. */
struct sleeper {
    int pipe[2], to_process, wanted, lost;
    long call;
    pid_t tid;
    _Atomic int woken;
};

/* In the call, and not on its way there. */
static int asleep_in(pid_t tid, long call)
{
    char path[64], text[16] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0 && close(fd) == 0);
    return *text >= '0' && *text <= '9' && (atol(text) == call || atol(text) == SYS_restart_syscall); /* else "running" */
}

/* Has a signal come some time after the sleeper is asleep, and another if that shows no EINTR within a second. */
static void *interrupts(void *arg)
{
    struct sleeper *s = arg;
    struct sigevent e = {.sigev_notify = s->to_process ? SIGEV_SIGNAL : SIGEV_THREAD_ID, .sigev_signo = SIGALRM};
    timer_t timer;
    e._sigev_un._tid = s->tid;
    CHECK(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
    for (int round = 0; round < s->wanted && s->lost * 100 <= s->wanted; round = s->woken) {
        struct itimerspec in = {.it_value = {0, 1000000 + round * 37 % 300 * 10000}};
        while (!asleep_in(s->tid, s->call))
            nap(0.0002);
        CHECK(timer_settime(timer, 0, &in, NULL) == 0);
        for (double sent = now(); s->woken == round && now() < sent + 1;)
            nap(0.0002);
        s->lost += s->woken == round;
    }
    fprintf(stderr, "EINTR lost: %d of %d\n", s->lost, (int)s->woken);
    if (s->lost * 100 > s->wanted) { /* enough seen: a second each */
        printf("interrupted 0\n");
        fflush(NULL);
        _exit(0);
    }
    return NULL;
}

static int sleeps(const struct sleeper *s)
{
    char x;
    struct timespec hour = {3600, 0};
    return (s->call == SYS_read ? (int)read(s->pipe[0], &x, 1) : nanosleep(&hour, NULL)) == -1 && errno == EINTR;
}

static void eintr_of(long call, int to_process)
{
    struct sigaction a = {.sa_handler = on_signal};
    struct sleeper s = {.to_process = to_process, .call = call, .wanted = under_udedup() ? 1000 : 20};
    sigset_t set;
    struct counter c;
    pthread_t t[2];
    sigaction(SIGALRM, &a, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* of all threads only main takes it */
    t[0] = counting(&c);
    s.tid = (pid_t)syscall(SYS_gettid);
    CHECK(pipe(s.pipe) == 0 && pthread_create(&t[1], NULL, interrupts, &s) == 0);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    while (s.woken < s.wanted) {
        CHECK(sleeps(&s));
        if (s.woken++ % 20 == 0)
            fill(c.area, 1, 30); /* page 0 is nobody's: equal again, to be merged */
    }
    c.stop = 1;
    pthread_join(t[0], NULL);
    pthread_join(t[1], NULL);
    printf("interrupted 1 bad %lu\n", c.bad);
}

static void eintr_of_sleep(void) { eintr_of(SYS_clock_nanosleep, 0); }
static void eintr_of_read(void) { eintr_of(SYS_read, 0); }
static void eintr_of_read_in_process(void) { eintr_of(SYS_read, 1); }

/* SIGURG is the program's own: its handler is called, and told of by sigaction, as if nobody else used it. */
static void urgent_is_ours(void)
{
    struct sigaction a = {.sa_handler = on_signal}, was;
    char *p = merged_area(N, 48);
    CHECK(sigaction(SIGURG, &a, &was) == 0 && was.sa_handler == SIG_DFL);
    int before = caught;
    for (int i = 0; i < (under_udedup() ? 200 : 20); i++) {
        CHECK(raise(SIGURG) == 0 && caught == before + i + 1);
        p[PAGE * (i % N)] ^= 1;
        nap(0.002);
        p[PAGE * (i % N)] ^= 1;
    }
    CHECK(signal(SIGURG, SIG_DFL) == on_signal && signal(SIGURG, SIG_IGN) == SIG_DFL);
    nap(0.05);
    CHECK(sigaction(SIGURG, NULL, &was) == 0 && was.sa_handler == SIG_IGN);
    printf("wrong %zu\n", wrong(p, N, 48));
}

/* The same of threads that ask all the time, while threads are parked and let go. */
static void *ask_urgent(void *arg)
{
    struct sigaction was;
    for (; !*(_Atomic int *)arg; nap(0.0001))
        CHECK(sigaction(SIGURG, NULL, &was) == 0 && was.sa_handler == SIG_DFL);
    return NULL;
}

static void urgent_is_asked(void)
{
    static _Atomic int stop;
    struct counter c;
    pthread_t asking, t = counting(&c);
    CHECK(pthread_create(&asking, NULL, ask_urgent, &stop) == 0);
    for (int i = 0; i < (under_udedup() ? 60 : 5); i++) {
        int pid = fork();
        if (pid == 0) {
            struct sigaction was;
            _exit(sigaction(SIGURG, NULL, &was) || was.sa_handler != SIG_DFL);
        }
        wait_ok(pid);
        nap(0.02);
    }
    stop = 1;
    c.stop = 1;
    pthread_join(asking, NULL);
    pthread_join(t, NULL);
    printf("bad %lu\n", c.bad);
}

/* One thread has a filter that kills for what a handler of ours would do. */
static void *filtered(void *arg)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettid, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigpending, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
    while (!*(_Atomic int *)arg)
        nap(0.05);
    return NULL;
}

static void one_is_filtered(void)
{
    static _Atomic int stop;
    pthread_t t;
    char *p = merged_area(N, 49);
    CHECK(pthread_create(&t, NULL, filtered, &stop) == 0);
    for (int i = 0; i < (under_udedup() ? 200 : 5); i++) {
        p[PAGE * (i % N)] ^= 1;
        nap(0.005);
        p[PAGE * (i % N)] ^= 1;
    }
    stop = 1;
    pthread_join(t, NULL);
    printf("wrong %zu\n", wrong(p, N, 49));
}

/* Its /proc tells of other processes: nobody can be found in there, so nothing may be moved. */
static void other_pid_namespace(void)
{
    char *p = merged_area(N, 29);
    int pid = unshare(CLONE_NEWPID) ? -1 : fork();
    if (pid < 0 && geteuid() != 0) { /* not without privilege */
        puts("wrong 0");
        return;
    }
    CHECK(pid >= 0);
    if (pid == 0) {
        static struct counter c;
        pthread_t t;
        CHECK(getpid() == 1);
        c.area = p;
        fill(p, N, 30);
        CHECK(pthread_create(&t, NULL, count_up, &c) == 0);
        double end = now() + (under_udedup() ? 1.5 : 0.1);
        while (now() < end) {
            char *q = map(32);
            fill(q, 32, 30);
            nap(0.05);
            CHECK(wrong(q, 32, 30) == 0 && madvise(q, 8 * PAGE, MADV_DONTFORK) == 0 && munmap(q, 32 * PAGE) == 0);
        }
        c.stop = 1;
        pthread_join(t, NULL);
        _exit(c.bad != 0);
    }
    wait_ok(pid);
    printf("wrong %zu\n", wrong(p, N, 29));
}

static void segv_blocked(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    struct counter c;
    pthread_t t = counting(&c); /* inherits the mask */
    nap(span());
    c.stop = 1;
    pthread_join(t, NULL);
    printf("bad %lu\n", c.bad);
}

static void crash_still_crashes(void)
{
    char *p = merged_area(N, 44);
    (void)p;
    *(volatile int *)8 = 1;
}

static void address_space_limit(void)
{
    char *p = merged_area(N, 45);
    struct rlimit l = {400 << 20, 400 << 20};
    CHECK(setrlimit(RLIMIT_AS, &l) == 0);
    char *q = map(64);
    fill(q, 64, 45);
    nap(under_udedup() ? 0.2 : 0);
    CHECK(mmap(NULL, 1 << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(malloc((size_t)1 << 30) == NULL);
    printf("wrong %zu %zu\n", wrong(p, N, 45), wrong(q, 64, 45));
}

static void descriptor_limit(void)
{
    char *p = merged_area(N, 46);
    struct rlimit l = {8, 8};
    CHECK(setrlimit(RLIMIT_NOFILE, &l) == 0);
    int got = 0;
    while (open("/dev/null", O_RDONLY) >= 0)
        got++;
    char *q = map(64);
    fill(q, 64, 46);
    nap(under_udedup() ? 0.2 : 0);
    printf("got %d wrong %zu %zu\n", got, wrong(p, N, 46), wrong(q, 64, 46));
}

static void mapping_limit(void) /* takes all the mappings there are */
{
    char *p = merged_area(N, 47);
    size_t pages = 140000, cut = 0;
    char *q = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(q != MAP_FAILED);
    while (cut < pages && mprotect(q + cut * PAGE, PAGE, PROT_READ) == 0)
        cut += 2;
    CHECK(cut > 20000 && errno == ENOMEM);
    fill(p, 3, 48);
    nap(under_udedup() ? 0.2 : 0);
    CHECK(munmap(q, pages * PAGE) == 0);
    printf("wrong %zu %zu\n", wrong(p, 3, 48), wrong_in(p, 3, N, 47));
}

static void stopped_and_continued(void)
{
    char *p = merged_area(N, 49);
    int pid = fork();
    if (pid == 0) {
        struct timespec t = {0, 50000000};
        for (int i = 0; i < 8; i++) {
            nanosleep(&t, NULL);
            kill(getppid(), SIGSTOP);
            nanosleep(&t, NULL);
            kill(getppid(), SIGCONT);
        }
        _exit(0);
    }
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        p[PAGE] ^= 1;
        nap(0.003);
        p[PAGE] ^= 1;
    }
    printf("wrong %zu\n", wrong(p, N, 49));
}

MAIN(T(stores_are_kept), T(fork_while_writing), T(fork_storm), T(child_lives_on), T(vfork_and_spawn), T(exec_merged),
     T(threads_come_and_go), T(many_threads), T(many_masked), T(mremap_beside_masked), T(busy_threads),
     T(main_thread_leaves), T(close_everything), T(credentials), T(seccomp_strict), T(signals_while_held),
     T(eintr_of_sleep), T(eintr_of_read), T(eintr_of_read_in_process), T(urgent_is_ours), T(urgent_is_asked),
     T(one_is_filtered), T(other_pid_namespace), T(segv_blocked), T(crash_still_crashes), T(address_space_limit),
     T(descriptor_limit), T(mapping_limit), T(stopped_and_continued))
