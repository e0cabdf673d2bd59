/* victim.c: does one thing for ever and ends with status 3 and a line when anything is not as it should be.
 *
 *   victim MODE [alone [MS]]    prints "ready"; every line on stdin is answered by the number of rounds done so
 *                               far; alone, without a second thread, it prints each. MS: each sleep must last as long.
 * Modes: regs (all registers in a tight loop), and calls that sleep 200 ms each or until something comes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static volatile long rounds;
static int lasts; /* 1: a sleep that takes 1.6 times as long is bad too */
static int MS = 200;

static void bad(const char *what, long value)
{
    char text[200];
    int n = snprintf(text, sizeof text, "victim: %s: %ld, errno %d\n", what, value, errno);
    write(2, text, (size_t)n);
    _exit(3);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Fills registers, spins with no system call, and looks at them again. */
static void regs(void)
{
    uint64_t vec[16][2], seen[16][2], general[6];
    for (int i = 0; i < 16; i++)
        vec[i][0] = 0x1111111111111111ull * (uint64_t)i + (uint64_t)rounds, vec[i][1] = ~vec[i][0];
    uint64_t value = 0x0123456789abcdefull + (uint64_t)rounds;
    uint64_t red = 0;
    errno = 4242;
    __asm__ volatile(
        "mov %[value], %%rbx\n mov %[value], %%r8\n mov %[value], %%r9\n mov %[value], %%r10\n"
        "mov %[value], %%r14\n mov %[value], %%r15\n"
        "mov %[value], -8(%%rsp)\n mov %[value], -128(%%rsp)\n"
        "movdqu 0(%[vec]), %%xmm0\n movdqu 16(%[vec]), %%xmm1\n movdqu 32(%[vec]), %%xmm2\n"
        "movdqu 240(%[vec]), %%xmm15\n"
        "mov $2000000, %%ecx\n stc\n"
        "1: inc %%rax\n dec %%ecx\n jnz 1b\n"
        "jc 2f\n mov $1, %[red]\n 2:\n"
        "mov %%rbx, 0(%[general])\n mov %%r8, 8(%[general])\n mov %%r9, 16(%[general])\n"
        "mov %%r10, 24(%[general])\n mov %%r14, 32(%[general])\n mov %%r15, 40(%[general])\n"
        "movdqu %%xmm0, 0(%[seen])\n movdqu %%xmm1, 16(%[seen])\n movdqu %%xmm2, 32(%[seen])\n"
        "movdqu %%xmm15, 240(%[seen])\n"
        "cmp %[value], -8(%%rsp)\n je 3f\n mov $2, %[red]\n 3:\n"
        "cmp %[value], -128(%%rsp)\n je 4f\n mov $3, %[red]\n 4:\n"
        : [red] "+r"(red)
        : [value] "r"(value), [vec] "r"(vec), [seen] "r"(seen), [general] "r"(general)
        : "rax", "rbx", "rcx", "r8", "r9", "r10", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm15", "cc", "memory");
    if (red)
        bad("flags or red zone", (long)red);
    for (int i = 0; i < 6; i++)
        if (general[i] != value)
            bad("register", i);
    static const int used[] = {0, 1, 2, 15};
    for (int i = 0; i < 4; i++)
        if (memcmp(vec[used[i]], seen[used[i]], 16))
            bad("vector register", used[i]);
    if (errno != 4242)
        bad("errno", errno);
}

static void must_last(const char *what, double began, long result, long wanted)
{
    double ms = (now() - began) * 1000;
    if (result != wanted)
        bad(what, result);
    if (ms < MS - 1)
        bad("too early, ms", (long)ms);
    if (lasts && ms > MS * 1.6)
        bad("too late, ms", (long)ms);
}

static void call(const char *mode)
{
    double t = now();
    struct timespec ts = {MS / 1000, MS % 1000 * 1000000L}, abs;
    if (!strcmp(mode, "poll")) {
        must_last(mode, t, poll(NULL, 0, MS), 0);
    } else if (!strcmp(mode, "nanosleep")) {
        must_last(mode, t, nanosleep(&ts, NULL), 0);
    } else if (!strcmp(mode, "select")) {
        struct timeval tv = {0, MS * 1000};
        must_last(mode, t, select(0, NULL, NULL, NULL, &tv), 0);
    } else if (!strcmp(mode, "epoll")) {
        static int fd = -1;
        struct epoll_event event;
        if (fd < 0)
            fd = epoll_create1(0);
        must_last(mode, t, epoll_wait(fd, &event, 1, MS), 0);
    } else if (!strcmp(mode, "sigtimedwait")) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        must_last(mode, t, sigtimedwait(&set, NULL, &ts), -1);
        if (errno != EAGAIN)
            bad(mode, errno);
    } else if (!strcmp(mode, "ppoll")) {
        sigset_t set;
        sigfillset(&set);
        must_last(mode, t, ppoll(NULL, 0, &ts, &set), 0);
        pthread_sigmask(SIG_SETMASK, NULL, &set);
        if (sigismember(&set, SIGUSR1))
            bad("signal mask stayed", 1);
    } else if (!strcmp(mode, "cond")) {
        static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
        static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
        clock_gettime(CLOCK_REALTIME, &abs);
        abs.tv_nsec += MS * 1000000L;
        abs.tv_sec += abs.tv_nsec / 1000000000;
        abs.tv_nsec %= 1000000000;
        pthread_mutex_lock(&mutex);
        must_last(mode, t, pthread_cond_timedwait(&cond, &mutex, &abs), ETIMEDOUT);
        pthread_mutex_unlock(&mutex);
    } else if (!strcmp(mode, "malloc")) {
        for (int i = 0; i < 20000; i++) {
            char *volatile p = malloc((size_t)(rand() % 3000 + 1));
            *p = 1;
            free(p);
        }
    } else {
        bad("unknown mode", 0);
    }
}

static volatile sig_atomic_t signals;
static void on_signal(int number) { signals += number == SIGUSR1; }

/* Answers stdin from the main thread only in the mode "read"; else from a thread that sleeps with all signals blocked. */
static void *answer(void *unused)
{
    char c;
    (void)unused;
    for (;;) {
        long n = read(0, &c, 1);
        if (n < 0)
            bad("read", n);
        if (n == 0)
            _exit(0);
        char text[64];
        int len = snprintf(text, sizeof text, "%ld %d\n", (long)rounds, (int)signals);
        if (c == '\n')
            write(1, text, (size_t)len);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "read";
    if (argc > 3) {
        MS = atoi(argv[3]);
        lasts = 1;
    }
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: EINTR would show */
    sigaction(SIGUSR1, &action, NULL);
    write(1, "ready\n", 6);
    if (!strcmp(mode, "read")) {
        answer(NULL);
    } else {
        pthread_t thread;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        if (argc < 3)
            pthread_create(&thread, NULL, answer, NULL);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    for (;; rounds++) {
        if (!strcmp(mode, "regs"))
            regs();
        else
            call(mode);
        if (argc >= 3) { /* single thread: tells of every round */
            char text[64];
            int len = snprintf(text, sizeof text, "%ld %d\n", (long)rounds, (int)signals);
            write(1, text, (size_t)len);
        }
    }
}
