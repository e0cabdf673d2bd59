/* syscalls.c: the kernel writes into merged memory for us: right bytes, no EFAULT, no short count, no EINTR. */
#include "hz.h"

#include <linux/aio_abi.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define N 16
#define BYTES (N * PAGE)

static char source[BYTES];

static int source_file(void)
{
    int fd = memfd_create("source", 0);
    for (size_t i = 0; i < BYTES; i++)
        source[i] = (char)(i * 7 + i / PAGE);
    CHECK(write(fd, source, BYTES) == (ssize_t)BYTES && lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

static void check_source(const char *what, const char *p, ssize_t got, size_t want)
{
    printf("%s %zd same %d\n", what, got, memcmp(p, source, want) == 0);
}

static void read_merged(void)
{
    int fd = source_file();
    char *p = merged_area(N, 1);
    check_source("read", p, read(fd, p, BYTES), BYTES);
    p = merged_area(N, 2);
    check_source("pread", p, pread(fd, p, BYTES, 0), BYTES);
    p = merged_area(N, 3);
    struct iovec v[3] = {{p, 100}, {p + 100, 3 * PAGE}, {p + 100 + 3 * PAGE, BYTES - 100 - 3 * PAGE}};
    check_source("preadv", p, preadv(fd, v, 3, 0), BYTES);
    p = merged_area(N, 4);
    CHECK(pread(fd, p + 10, 5000, 0) == 5000); /* in the middle of pages: the rest stays */
    printf("rest %d\n", ((uint64_t *)p)[0] == 4ull << 40 && ((uint64_t *)p)[5010 / 8 + 1] == (4ull << 40 | (5010 / 8 + 1)));
}

static void sockets_merged(void)
{
    int s[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s) == 0);
    source_file();
    char *p = merged_area(N, 5);
    CHECK(write(s[1], source, 30000) == 30000);
    check_source("recv", p, recv(s[0], p, BYTES, 0), 30000);
    p = merged_area(N, 6);
    CHECK(write(s[1], source, 30000) == 30000);
    struct iovec v[2] = {{p, 10000}, {p + 10000, BYTES - 10000}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
    check_source("recvmsg", p, recvmsg(s[0], &m, 0), 30000);
}

static void fread_merged(void)
{
    int fd = source_file();
    FILE *f = fdopen(fd, "r");
    char *p = merged_area(N, 7);
    setvbuf(f, p, _IOFBF, 4 * PAGE); /* the stream's buffer is merged memory */
    char *q = merged_area(N, 8);
    check_source("fread", q, (ssize_t)fread(q, 1, BYTES, f), BYTES);
}

static void results_merged(void) /* small results: stat, getcwd, sigaction, getrandom */
{
    char *p = merged_area(N, 9);
    struct stat *st = (struct stat *)p;
    CHECK(stat("/", st) == 0 && S_ISDIR(st->st_mode));
    CHECK(getcwd(p + PAGE, PAGE) != NULL && p[PAGE] == '/');
    CHECK(getentropy(p + 2 * PAGE, 200) == 0);
    CHECK(clock_gettime(CLOCK_REALTIME, (struct timespec *)(p + 3 * PAGE)) == 0);
    int *fds = (int *)(p + 4 * PAGE);
    CHECK(pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    struct pollfd *pf = (struct pollfd *)(p + 5 * PAGE);
    *pf = (struct pollfd){fds[0], POLLIN, 0};
    CHECK(poll(pf, 1, 1000) == 1 && pf->revents == POLLIN);
    int pid = fork();
    if (pid == 0)
        _exit(5);
    CHECK(waitpid(pid, (int *)(p + 6 * PAGE), 0) == pid && WEXITSTATUS(*(int *)(p + 6 * PAGE)) == 5);
    printf("rest %zu\n", wrong_in(p, 7, N, 9));
}

/* ---- reads while merges come and go -------------------------------------------------------------- */

static _Atomic int feeding;
static int feed[2];

static void *feeder(void *unused)
{
    (void)unused;
    for (uint64_t i = 0; feeding; i++) {
        uint64_t words[64];
        for (int k = 0; k < 64; k++)
            words[k] = i << 8 | (uint64_t)k;
        if (write(feed[1], words, sizeof words) != sizeof words)
            break;
        if (i % 3 == 0)
            nap(0.0005);
    }
    return NULL;
}

static void read_during_merges(void)
{
    pthread_t t;
    char *p = merged_area(N, 10);
    feeding = 1;
    CHECK(pipe(feed) == 0 && pthread_create(&t, NULL, feeder, NULL) == 0);
    double end = now() + (under_udedup() ? 4 : 0.2);
    uint64_t packet = 0, bad = 0, shorts = 0;
    while (now() < end) {
        size_t page = packet % (N - 1);
        uint64_t *at = (uint64_t *)(p + page * PAGE + 3800); /* across two pages */
        ssize_t got = read(feed[0], at, 512);
        shorts += got != 512;
        for (int k = 0; k < 64; k++)
            bad += at[k] != (packet << 8 | (uint64_t)k);
        packet++;
        if (packet % 50 == 0) { /* equal to its twin again: to be merged */
            fill(p, N, 10);
            nap(0.01);
        }
    }
    feeding = 0;
    printf("bad %lu short %lu enough %d\n", bad, shorts, packet > 20);
    fflush(NULL);
    _exit(0);
}

/* ---- writers that go around the page tables ---------------------------------------------------- */

static void proc_mem_write(void)
{
    char *p = merged_area(N, 11);
    int fd = open("/proc/self/mem", O_RDWR);
    if (fd < 0) {
        printf("wrote 1 page, rest 0\n");
        return;
    }
    source_file();
    CHECK(pwrite(fd, source, PAGE, (off_t)(uintptr_t)(p + 3 * PAGE)) == (ssize_t)PAGE);
    CHECK(memcmp(p + 3 * PAGE, source, PAGE) == 0);
    printf("wrote 1 page, rest %zu\n", wrong_in(p, 0, 3, 11) + wrong_in(p, 4, N, 11));
}

static void process_vm_write(void)
{
    char *p = merged_area(N, 12);
    source_file();
    struct iovec from = {source, 2 * PAGE}, to = {p + 100, 2 * PAGE};
    printf("wrote %zd\n", process_vm_writev(getpid(), &from, 1, &to, 1, 0));
    printf("same %d rest %zu\n", memcmp(p + 100, source, 2 * PAGE) == 0, wrong_in(p, 3, N, 12));
}

static void vmsplice_merged(void)
{
    char *p = merged_area(N, 13), back[PAGE];
    int fds[2];
    CHECK(pipe(fds) == 0);
    struct iovec v = {p, PAGE};
    CHECK(vmsplice(fds[1], &v, 1, 0) == (ssize_t)PAGE);
    CHECK(read(fds[0], back, PAGE) == (ssize_t)PAGE && memcmp(back, p, PAGE) == 0);
    printf("wrong %zu\n", wrong(p, N, 13));
}

static void direct_io(void)
{
    char name[] = "./hz-direct-XXXXXX";
    int fd = mkostemp(name, O_DIRECT);
    unlink(name);
    char *p = merged_area(N, 14);
    if (fd < 0 || write(fd, p, BYTES) != (ssize_t)BYTES) { /* tmpfs and overlays without it */
        printf("wrong 0 after 1\n");
        return;
    }
    memset(p, 0, BYTES);
    fill(p, N, 15);
    CHECK(pread(fd, p, BYTES, 0) == (ssize_t)BYTES);
    printf("wrong %zu after 1\n", wrong(p, N, 14));
}

/* Linux AIO: submitted, and the thread goes on; the kernel writes later. */
static void aio_in_flight(void)
{
    aio_context_t context = 0;
    char *p = merged_area(N, 16); /* before: with a context the process is left alone */
    if (syscall(SYS_io_setup, 8, &context) != 0) {
        printf("bad 0\n");
        return;
    }
    char name[] = "./hz-aio-XXXXXX";
    int fd = mkostemp(name, O_DIRECT), bad = 0;
    unlink(name);
    source_file();
    memcpy(p, source, BYTES);
    if (fd < 0 || write(fd, p, BYTES) != (ssize_t)BYTES)
        fd = source_file();
    for (int i = 0; i < (under_udedup() ? 300 : 10); i++) {
        fill(p, N, 16);
        if (i % 8 == 0)
            nap(0.01);
        struct iocb cb = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)fd, .aio_buf = (uintptr_t)p,
                          .aio_nbytes = BYTES};
        struct iocb *list[1] = {&cb};
        CHECK(syscall(SYS_io_submit, context, 1, list) == 1);
        struct io_event event;
        CHECK(syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1 && event.res == (long long)BYTES);
        bad += memcmp(p, source, BYTES) != 0;
    }
    printf("bad %d\n", bad);
}

/* ---- calls that sleep: none may see an interruption --------------------------------------------- */

struct sleeper {
    const char *name;
    void (*run)(void);
};

static void s_nanosleep(void)
{
    struct timespec t = {1, 0};
    double from = now();
    CHECK(nanosleep(&t, NULL) == 0 && now() - from >= 1.0);
}
static void s_poll(void)
{
    int fds[2];
    CHECK(pipe(fds) == 0);
    struct pollfd p = {fds[0], POLLIN, 0};
    double from = now();
    CHECK(poll(&p, 1, 1000) == 0 && now() - from >= 0.99);
}
static void s_select(void)
{
    struct timeval t = {1, 0};
    double from = now();
    CHECK(select(0, NULL, NULL, NULL, &t) == 0 && now() - from >= 0.99);
}
static void s_epoll(void)
{
    struct epoll_event e;
    double from = now();
    CHECK(epoll_wait(epoll_create1(0), &e, 1, 1000) == 0 && now() - from >= 0.99);
}
static void s_sigtimedwait(void)
{
    sigset_t set;
    struct timespec t = {1, 0};
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    double from = now();
    CHECK(sigtimedwait(&set, NULL, &t) == -1 && errno == EAGAIN && now() - from >= 0.99);
}
static void s_semop(void)
{
    int id = semget(IPC_PRIVATE, 1, 0600);
    struct sembuf op = {0, -1, 0};
    struct timespec t = {1, 0};
    int r = semtimedop(id, &op, 1, &t), e = errno;
    semctl(id, 0, IPC_RMID);
    CHECK(r == -1 && e == EAGAIN);
}
static void s_futex(void)
{
    pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
    struct timespec t;
    pthread_mutex_lock(&m);
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_sec += 1;
    CHECK(pthread_mutex_timedlock(&m, &t) == ETIMEDOUT);
}
static void s_read_pipe(void)
{
    int fds[2];
    char c;
    CHECK(pipe(fds) == 0);
    int pid = fork();
    if (pid == 0) {
        nap(1);
        _exit(write(fds[1], "y", 1) != 1);
    }
    CHECK(read(fds[0], &c, 1) == 1 && c == 'y');
    CHECK(waitpid(pid, NULL, 0) == pid);
}
static void s_write_pipe(void) /* megabytes that block: the full count must come back */
{
    int fds[2];
    size_t bytes = 4 << 20, total = 0;
    CHECK(pipe(fds) == 0);
    int pid = fork();
    if (pid == 0) {
        static char buf[65536];
        close(fds[1]);
        for (ssize_t got; total < bytes; total += (size_t)got) {
            nap(0.005);
            if ((got = read(fds[0], buf, sizeof buf)) <= 0)
                _exit(1);
        }
        _exit(0);
    }
    char *p = calloc(bytes, 1);
    CHECK(write(fds[1], p, bytes) == (ssize_t)bytes);
    CHECK(waitpid(pid, NULL, 0) == pid);
    free(p);
}
static void s_waitpid(void)
{
    int pid = fork(), status;
    if (pid == 0) {
        nap(1);
        _exit(3);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 3);
}
static void s_io_getevents(void)
{
    aio_context_t c = 0;
    struct io_event e;
    struct timespec t = {1, 0};
    if (syscall(SYS_io_setup, 2, &c) == 0)
        CHECK(syscall(SYS_io_getevents, c, 1, 1, &e, &t) == 0);
}
static void s_flock(void)
{
    int fd = memfd_create("lock", 0);
    struct flock l = {.l_type = F_WRLCK};
    CHECK(fcntl(fd, F_SETLK, &l) == 0);
    int ready[2];
    CHECK(pipe(ready) == 0);
    int pid = fork();
    if (pid == 0) {
        alarm(10);
        _exit(fcntl(fd, F_SETLKW, &l) != 0);
    }
    nap(1);
    l.l_type = F_UNLCK;
    int status;
    CHECK(fcntl(fd, F_SETLK, &l) == 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static const struct sleeper sleepers[] = {
    {"nanosleep", s_nanosleep}, {"poll", s_poll}, {"select", s_select}, {"epoll_wait", s_epoll},
    {"sigtimedwait", s_sigtimedwait}, {"semop", s_semop}, {"futex", s_futex}, {"read", s_read_pipe},
    {"waitpid", s_waitpid}, {"io_getevents", s_io_getevents}, {"fcntl", s_flock},
    {"write", s_write_pipe},
};
#define SLEEPERS (sizeof sleepers / sizeof *sleepers)
static _Atomic unsigned asleep;

static void *one_sleeper(void *arg)
{
    const struct sleeper *s = arg;
    s->run();
    asleep--;
    return NULL;
}

/* All of them at once, while another thread makes pages equal again and again, so that holds follow holds. */
static void sleepers_see_nothing(void)
{
    char *p = merged_area(N, 17);
    pthread_t t[SLEEPERS];
    size_t count = SLEEPERS - (getenv("HZ_NO_LARGE_WRITE") != NULL); /* the last: parked threads do not mend it */
    asleep = (unsigned)count;
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_create(&t[i], NULL, one_sleeper, (void *)&sleepers[i]) == 0);
    for (size_t i = 0; asleep; i++) {
        p[PAGE * (i % N)] ^= 1;
        nap(0.002);
        p[PAGE * (i % N)] ^= 1;
        nap(0.01);
    }
    for (size_t i = 0; i < count; i++)
        pthread_join(t[i], NULL);
    printf("wrong %zu\n", wrong(p, N, 17));
}

/* The timeout of a socket is no argument of the call: started again, it would begin anew each time. */
static _Atomic int received;

static void *recv_with_timeout(void *unused)
{
    int s[2];
    char c;
    struct timeval t = {1, 0};
    (void)unused;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0 && setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) == 0);
    double from = now();
    CHECK(recv(s[0], &c, 1, 0) == -1 && errno == EAGAIN);
    CHECK(now() - from >= 0.99 && now() - from < 4);
    received = 1;
    return NULL;
}

static void recv_timeout_is_kept(void)
{
    pthread_t t;
    char *p = merged_area(N, 18);
    CHECK(pthread_create(&t, NULL, recv_with_timeout, NULL) == 0);
    double end = now() + 8;
    for (size_t i = 0; !received; i++) {
        CHECK(now() < end);
        p[PAGE * (i % N)] ^= 1;
        nap(0.002);
        p[PAGE * (i % N)] ^= 1;
        nap(0.01);
    }
    printf("wrong %zu\n", wrong(p, N, 18));
}

MAIN(T(read_merged), T(sockets_merged), T(fread_merged), T(results_merged), T(read_during_merges), T(proc_mem_write),
     T(process_vm_write), T(vmsplice_merged), T(direct_io), T(aio_in_flight), T(sleepers_see_nothing),
     T(recv_timeout_is_kept))
