/* torture.c: a plain program whose threads write, read, map, fork and end at random, and verify every word.
 *
 * Knows nothing of udedup but ud_writable_open (trap mode), so it runs the same with and without it.
 * Exit status: 0, 70 if a word was wrong, a signal if it crashed. Counters go to a mapped file.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "torture.h"

struct options opt = {.threads = 4, .pages = 2048, .pace_us = 1000, .seconds = 10};
struct counters *count;
struct slot *slots;
int request_pipe[2];
static time_t end_time;

static time_t now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

/* Answers the requests of op_read: so readers sleep in read(2) while merges come and go. */
static void *feeder(void *unused)
{
    struct request r;
    uint64_t words[WORDS];
    (void)unused;
    while (read(request_pipe[0], &r, sizeof r) == sizeof r) {
        struct timespec pause = {0, (long)r.delay_us * 1000};
        nanosleep(&pause, NULL);
        for (size_t i = 0; i < r.words; i++)
            words[i] = r.base + i;
        if (write(r.fd, words, r.words * 8) != (ssize_t)r.words * 8)
            _exit(77);
    }
    return NULL;
}

static void *worker(void *arg)
{
    struct slot *s = arg;
    uint64_t life = 200 + roll(s, 3000);
    while (life-- && now_seconds() < end_time)
        operate(s);
    verify_all(s);
    return NULL; /* main starts another thread on the same memory */
}

/* Says where a crash was, then lets it crash. */
static void on_crash(int sig, siginfo_t *info, void *context)
{
    static char maps[1 << 16];
    ucontext_t *u = context;
    char line[200];
    int n = snprintf(line, sizeof line, "torture: pid %d: signal %d code %d at %p, ip %#llx\n", getpid(), sig,
                     info->si_code, info->si_addr, u->uc_mcontext.gregs[REG_RIP]);
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    ssize_t got;
    if (write(2, line, (size_t)n) > 0)
        while (getenv("TORTURE_MAPS") && (got = read(fd, maps, sizeof maps)) > 0)
            if (write(2, maps, (size_t)got) < 0)
                break;
    signal(sig, SIG_DFL);
    raise(sig);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *k = argv[i], *v = argv[i + 1];
        unsigned n = (unsigned)strtoul(v, NULL, 10);
        if (!strcmp(k, "--process")) opt.process = n;
        else if (!strcmp(k, "--threads")) opt.threads = n;
        else if (!strcmp(k, "--pages")) opt.pages = n;
        else if (!strcmp(k, "--pace-us")) opt.pace_us = n;
        else if (!strcmp(k, "--seed")) opt.seed = n;
        else if (!strcmp(k, "--seconds")) opt.seconds = n;
        else if (!strcmp(k, "--advise")) opt.advise = (int)n;
        else if (!strcmp(k, "--trap")) opt.trap = (int)n;
        else if (!strcmp(k, "--die")) opt.die = (int)n;
        else if (!strcmp(k, "--counters")) opt.counters = v;
        else { fprintf(stderr, "torture: no option %s\n", k); exit(64); }
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    struct sigaction crash = {.sa_sigaction = on_crash, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &crash, NULL);
    sigaction(SIGBUS, &crash, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = opt.counters ? open(opt.counters, O_RDWR | O_CLOEXEC) : -1;
    count = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
    slots = calloc(opt.threads, sizeof *slots);
    pthread_t feeders[4], *threads = calloc(opt.threads, sizeof *threads);
    if (count == MAP_FAILED || !slots || !threads || pipe2(request_pipe, O_CLOEXEC))
        return 78;
    end_time = now_seconds() + opt.seconds;
    for (unsigned i = 0; i < opt.threads; i++)
        slot_init(&slots[i], i);
    for (int i = 0; i < 4; i++)
        pthread_create(&feeders[i], NULL, feeder, NULL);
    for (unsigned i = 0; i < opt.threads; i++)
        pthread_create(&threads[i], NULL, worker, &slots[i]);
    for (unsigned i = 0; now_seconds() < end_time; i = (i + 1) % opt.threads) {
        pthread_join(threads[i], NULL);
        atomic_fetch_add(&count->threads, 1);
        if (opt.die && roll(&slots[i], 4) == 0)
            _exit(0); /* in the middle of the others' work */
        pthread_create(&threads[i], NULL, worker, &slots[i]);
    }
    for (unsigned i = 0; i < opt.threads; i++)
        pthread_join(threads[i], NULL);
    printf("verified %lu words %lu operations %lu reads %lu forks %lu errors %lu\n", count->verified, count->words,
           count->operations, count->reads, count->forks, count->errors);
    return count->errors ? 70 : 0;
}
