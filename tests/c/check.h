/* check.h: all a C unit test needs: CHECK, a test table, a main. A failed check names itself and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((format(printf, 4, 5), noreturn)) static inline void check_failed(const char *file, int line,
                                                                                const char *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: failed: %s:", file, line, what);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

#define CHECK(cond, ...)                                                    \
    do {                                                                    \
        if (!(cond))                                                        \
            check_failed(__FILE__, __LINE__, #cond, " " __VA_ARGS__);       \
    } while (0)

struct test {
    const char *name;
    void (*run)(void);
};

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Runs all tests, or those named on the command line. */
static inline int run_tests(const struct test *tests, int argc, char **argv)
{
    int ran = 0;
    for (; tests->name; tests++) {
        int wanted = argc < 2;
        for (int i = 1; i < argc; i++)
            wanted |= !strcmp(argv[i], tests->name);
        if (!wanted)
            continue;
        double start = seconds();
        tests->run();
        printf("ok %s %.2f s\n", tests->name, seconds() - start);
        fflush(stdout);
        ran++;
    }
    return ran ? 0 : 2;
}

static inline unsigned long long next_random(unsigned long long *state)
{
    unsigned long long x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    return *state = x ^ x << 17;
}

#endif
