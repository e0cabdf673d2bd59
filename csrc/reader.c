/* reader.c: digests pages of this process that may vanish while they are read.
 *
 * A short-lived process on our memory reads them directly, at the speed of memory. It has a signal table of
 * its own, so a fault is its private matter: the page is reported as gone, the program's handlers never
 * know. A few pages are copied by process_vm_readv instead: no process for them.
 *
 * Guarantees: never faults the caller.
 * Fails: -ECHILD if the reader was killed (what it had not come to is marked gone), -EAGAIN or -ENOMEM if it
 * could not be made.
 */
#include <signal.h>
#include <sys/uio.h>

#include "internal.h"

#define FEW_PAGES 32u
#define GO_PAGES 32u

static char reader_stack[UD__STACK_BYTES] __attribute__((aligned(64)));
static char few[FEW_PAGES * 65536] __attribute__((aligned(4096)));
static const char zeros[65536] __attribute__((aligned(4096)));

struct reading {
    const struct ud__range *ranges;
    size_t count;
    uint64_t *out;
    uint8_t *gone;
    void *escape[5];
};
static struct reading *volatile active;

static void on_fault(int sig)
{
    (void)sig;
    __builtin_longjmp(active->escape, 1);
}

static void never_called(void) { ud__sys(__NR_exit, 1); }

static void catch_faults(void)
{
    struct {
        void (*handler)(int);
        unsigned long flags;
        void (*restorer)(void);
        uint64_t mask;
    } act = {on_fault, 0x04000000 /* SA_RESTORER */ | SA_NODEFER, never_called, 0};
    uint64_t faults = 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1);
    ud__sys(__NR_rt_sigaction, SIGSEGV, &act, 0, 8);
    ud__sys(__NR_rt_sigaction, SIGBUS, &act, 0, 8);
    ud__sys(__NR_rt_sigprocmask, SIG_UNBLOCK, &faults, 0, 8);
}

/* 0, or 1 if something in [addr, addr + n pages) is gone. */
static __attribute__((noinline)) int digest_or_escape(struct reading *r, uint64_t addr, size_t n, uint64_t *out)
{
    if (__builtin_setjmp(r->escape))
        return 1;
    ud_digest_pages((const void *)addr, n, ud__page, ud__a.key, out);
    return 0;
}

static void reader_main(void *arg)
{
    struct reading *r = arg;
    size_t k = 0;
    catch_faults();
    for (size_t i = 0; i < r->count; i++)
        for (uint64_t at = r->ranges[i].start; at < r->ranges[i].end;) {
            uint64_t left = (r->ranges[i].end - at) >> ud__page_shift;
            size_t n = left < GO_PAGES ? (size_t)left : GO_PAGES;
            if (digest_or_escape(r, at, n, r->out + k))
                for (size_t p = 0; p < n; p++)
                    r->gone[k + p] = (uint8_t)digest_or_escape(r, at + (p << ud__page_shift), 1, r->out + k + p);
            else
                __builtin_memset(r->gone + k, 0, n);
            at += (uint64_t)n << ud__page_shift;
            k += n;
        }
}

/* 0, or -errno where process_vm_readv is not to be had. */
static long digest_few(const struct ud__range *ranges, size_t count, uint64_t *out, uint8_t *gone)
{
    size_t k = 0;
    for (size_t i = 0; i < count; i++) {
        size_t n = (ranges[i].end - ranges[i].start) >> ud__page_shift;
        struct iovec local = {few, n << ud__page_shift}, remote = {(void *)ranges[i].start, n << ud__page_shift};
        long r = ud__sys(__NR_process_vm_readv, ud__sys(__NR_getpid), &local, 1, &remote, 1, 0);
        if (r < 0 && r != -EFAULT)
            return r;
        size_t good = r > 0 ? (size_t)r >> ud__page_shift : 0;
        ud_digest_pages(few, good, ud__page, ud__a.key, out + k);
        for (size_t p = 0; p < n; p++)
            gone[k + p] = p >= good;
        k += n;
    }
    return 0;
}

int ud__reader_digest(const struct ud__range *ranges, size_t count, uint64_t *out, uint8_t *gone)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += (ranges[i].end - ranges[i].start) >> ud__page_shift;
    if (total == 0)
        return 0;
    if (total <= FEW_PAGES && digest_few(ranges, count, out, gone) == 0)
        return 0;
    __builtin_memset(gone, 1, total);
    struct reading r = {.ranges = ranges, .count = count, .out = out, .gone = gone};
    active = &r;
    return ud__helper_run(reader_main, &r, 1, reader_stack + sizeof reader_stack);
}

uint64_t ud__zero_digest(void)
{
    uint64_t d;
    ud_digest_pages(zeros, 1, ud__page, ud__a.key, &d);
    return d;
}
