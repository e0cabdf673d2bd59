/* init.c: the library comes up: by LD_PRELOAD in every program of a pool, or when Python loads it.
 *
 * Guarantees: reads its environment once and starts nothing. Without UDEDUP_SOCKET it stays inert for good (until
 * ud_join). Never prints, never fails a program.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define DEFAULT_THRESHOLD (8u << 20)
#define DEFAULT_STACK (8u << 20)

#ifdef UD_TEST
static void read_guards(const char *list)
{
    static const struct {
        const char *name;
        uint64_t bit;
    } names[] = {{"busy", UD__GUARD_BUSY}, {"mapcheck", UD__GUARD_MAPCHECK}, {"compare", UD__GUARD_COMPARE},
                 {"hold", UD__GUARD_HOLD}, {"bitfirst", UD__GUARD_BITFIRST}, {"eintr", UD__GUARD_EINTR},
                 {"lastpage", UD__GUARD_LASTPAGE}, {"pinned", UD__GUARD_PINNED}, {"fork", UD__GUARD_FORK}, {"open", UD__GUARD_OPEN},
                 {"inherit", UD__GUARD_INHERIT}, {"sharers", UD__GUARD_SHARERS}, {"owed", UD__GUARD_OWED},
                 {"release", UD__GUARD_RELEASE}, {"stopped", UD__GUARD_STOPPED}, {"proc", UD__GUARD_PROC},
                 {"bar", UD__GUARD_BAR}, {"neighbours", UD__GUARD_OPENERS},
                 {"down", UD__GUARD_DOWN}, {"free", UD__GUARD_FREE}, {"listed", UD__GUARD_LISTED},
                 {"halfway", UD__GUARD_HALFWAY}, {"copyback", UD__GUARD_COPYBACK},
                 {"short", UD__GUARD_SHORT}, {"ballast", UD__GUARD_BALLAST}, {"number", UD__GUARD_NUMBER},
                 {"mapped", UD__GUARD_MAPPED}, {"staged", UD__GUARD_STAGED},
                 {"limits", UD__GUARD_LIMITS}, {"gate", UD__GUARD_GATE},
                 {"offset", UD__GUARD_OFFSET}, {"stolen", UD__GUARD_STOLEN},
                 {"switches", UD__GUARD_SWITCHES}};
    for (size_t i = 0; list && i < sizeof names / sizeof *names; i++)
        if (strstr(list, names[i].name))
            ud__guards_off |= names[i].bit;
}
#endif

/* The pool's layout raised RLIMIT_STACK to shift the mmap base (layout.c); threads get the size they would have had. */
static void give_back_stack_size(const char *limit)
{
    pthread_attr_t attr;
    if (!limit || pthread_getattr_default_np(&attr) != 0)
        return;
    size_t size = strtoull(limit, NULL, 10);
    if (size < 65536)
        size = DEFAULT_STACK;
    if (pthread_attr_setstacksize(&attr, size) == 0)
        pthread_setattr_default_np(&attr);
    pthread_attr_destroy(&attr);
}

__attribute__((constructor)) static void come_up(void);

/* Loaded late, the program's calls are bound to libc's madvise already. */
static int in_front_of_libc(void)
{
    Dl_info theirs, ours;
    return dladdr(dlsym(RTLD_DEFAULT, "madvise"), &theirs) && dladdr((void *)come_up, &ours) &&
           theirs.dli_fbase == ours.dli_fbase;
}

/* Valgrind knows no clone(2) but fork's and threads', and ends the program for ours. It answers this sequence, which
 * changes nothing elsewhere (its manual: client requests, RUNNING_ON_VALGRIND). */
static int under_valgrind(void)
{
    volatile uint64_t request[6] = {0x1001};
#if defined(__x86_64__)
    uint64_t answer = 0;
    __asm__ volatile("rolq $3, %%rdi\n\trolq $13, %%rdi\n\trolq $61, %%rdi\n\trolq $51, %%rdi\n\txchgq %%rbx, %%rbx"
                     : "+d"(answer)
                     : "a"(request)
                     : "cc", "memory");
#elif defined(__aarch64__)
    register uint64_t answer __asm__("x3") = 0;
    register volatile uint64_t *at __asm__("x4") = request;
    __asm__ volatile("ror x12, x12, #3\n\tror x12, x12, #13\n\tror x12, x12, #51\n\tror x12, x12, #61\n\torr x10, x10, x10"
                     : "+r"(answer)
                     : "r"(at)
                     : "cc", "memory");
#else
    uint64_t answer = 0 * request[0];
#endif
    return answer != 0;
}

__attribute__((constructor)) static void come_up(void)
{
    const char *socket = getenv("UDEDUP_SOCKET"), *threshold = getenv("UDEDUP_THRESHOLD");
    const char *regions = getenv("UDEDUP_REGIONS"), *tracking = getenv("UDEDUP_TRACKING");
    const char *disable = getenv("UDEDUP_DISABLE");
    ud__base_init();
    ud__fork_init();
#ifdef UD_TEST
    read_guards(getenv("UDEDUP_TEST_GUARDS"));
    if (getenv("UDEDUP_TEST_NODES"))
        ud__test_nodes((unsigned)atoi(getenv("UDEDUP_TEST_NODES")));
    ud__gap_us = getenv("UDEDUP_TEST_DELAY_US") ? strtoull(getenv("UDEDUP_TEST_DELAY_US"), NULL, 10) : 0;
#endif
    ud__a.preloaded = in_front_of_libc();
    ud__a.advised = regions && strcmp(regions, "advised") == 0;
    ud__a.tracking_off = tracking && strcmp(tracking, "off") == 0;
    ud__a.disabled = (disable && *disable && strcmp(disable, "0") != 0) || under_valgrind();
    give_back_stack_size(getenv("UDEDUP_STACK"));
    if (socket && strlen(socket) < sizeof ud__a.socket && ud__a.preloaded)
        strcpy(ud__a.socket, socket);
    if (ud__a.preloaded)
        ud__memory_merge_init();
    ud__growth_init(threshold ? strtoull(threshold, NULL, 10) : DEFAULT_THRESHOLD);
}
