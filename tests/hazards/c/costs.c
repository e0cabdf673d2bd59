/* costs.c: nanoseconds of the calls that are interposed; nothing is merged. The best of many short rounds: one that
 * nobody disturbed is among them, on a busy machine too. */
#include "hz.h"

#include <signal.h>
#include <sys/prctl.h>

#define ROUNDS 60
#define COUNT 500

#define TIME(name, call)                                                                                               \
    do {                                                                                                               \
        double best = 1e9;                                                                                             \
        for (int r = 0; r < ROUNDS; r++) {                                                                             \
            double from = now();                                                                                       \
            for (int i = 0; i < COUNT; i++) {                                                                          \
                call;                                                                                                  \
            }                                                                                                          \
            double took = (now() - from) / COUNT * 1e9;                                                                \
            best = took < best ? took : best;                                                                          \
        }                                                                                                              \
        printf("%s %.1f\n", name, best);                                                                               \
    } while (0)

static void costs(void)
{
    char *p = map(4);
    void *volatile keep;
    struct sigaction action;
    sigset_t set;
    sigemptyset(&set);
    TIME("malloc+free", keep = malloc(40); free(keep));
    TIME("calloc+free", keep = calloc(1, 40); free(keep));
    TIME("realloc", keep = realloc(malloc(40), 48); free(keep));
    TIME("munmap", munmap((void *)1, PAGE));
    TIME("madvise", madvise(p, PAGE, MADV_DONTNEED));
    TIME("mprotect", mprotect(p, PAGE, PROT_READ | PROT_WRITE));
    TIME("mmap+munmap", keep = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); munmap(keep, PAGE));
    TIME("mremap", keep = mremap(p, 4 * PAGE, 4 * PAGE, 0));
    TIME("prctl", prctl(PR_GET_DUMPABLE));
    TIME("sigprocmask", pthread_sigmask(SIG_BLOCK, &set, NULL));
    TIME("sigaction", sigaction(SIGUSR1, NULL, &action));
    TIME("signal", signal(SIGUSR1, SIG_DFL));
}

MAIN(T(costs))
