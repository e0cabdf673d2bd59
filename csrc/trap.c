/* trap.c: windows in which nobody writes, and the fault handler's part in them (see trap.h).
 *
 *   agent            closed bits set -> openers gone -> mprotect(PROT_READ) ... remap ... bits cleared, epoch++, wake
 *   writer's fault   closed: sleep on epoch · protected: open (split) · neither: was it opened meanwhile?
 *   opener           count++ -> closed bits clear? -> mprotect(RW), protected bits cleared -> count--
 *
 * Agent and openers exclude each other as Dekker's two processes do: each first says what it is about to
 * do, then looks at the other. So no opener ever makes a page writable that is under a window.
 *
 * Guarantees: raw system calls only, no lock a signal could find taken; nobody waits longer than the batch lasts. A
 * forked child has no agent and finds the alive word wiped: its writers, and its ud_writable_open, open what was closed
 * themselves, and ud__trap_enable there opens the rest. (fork itself waits for the batch to end, job.c; a clone(2) by
 * hand does not.)
 * Fails: what cannot be opened for want of VMAs is opened in ever wider windows; if the whole run
 * of protected pages cannot be opened either, the fault goes to the program as its own.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* REG_ERR */
#endif
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "internal.h"
#include "trap.h"

#define OPENERS_WAIT_US 20000
#define SETTLE_WAIT_US 2000000 /* one killed amid it in a vforked child never leaves; one that waits for a CPU does */
#define WINDOW_MAX 64 /* pages: a cell */
#define TOP (1ull << 48) /* no memory of a program lies above */

struct life { /* MADV_WIPEONFORK: all zero in a forked child, shared with a vforked one */
    atomic_int alive, openers;
    _Atomic uint64_t *_Atomic splits; /* in the ledger, which a child does not inherit */
};
static struct life no_life, *_Atomic life = &no_life;

static atomic_uint epoch;
static _Atomic uint64_t bar_start, bar_end; /* of ud__trap_bar; an end of 0: none */
static _Atomic uint64_t n_splits, n_waits, n_retries, n_windows;
static _Atomic uint64_t last_end, last_pages; /* of the last split: tells sequential writers */
atomic_int ud__trap_on;

static void count(_Atomic uint64_t *c)
{
    atomic_fetch_add_explicit(c, 1, memory_order_relaxed);
}

static long protect(uint64_t start, uint64_t end, int prot)
{
    return ud__sys(__NR_mprotect, start, end - start, prot);
}

static int is_one(uint64_t start, uint64_t end, void *arg)
{
    (void)start, (void)end, (void)arg;
    return 1;
}

static int any_closed(uint64_t start, uint64_t end)
{
    return ud__trap_each(start, end, UD__TRAP_CLOSED, is_one, NULL);
}

static int barred(uint64_t start, uint64_t end)
{
    return atomic_load(&bar_start) < end && start < atomic_load(&bar_end);
}

static void changed(void)
{
    atomic_fetch_add(&epoch, 1);
    ud__sys(__NR_futex, &epoch, FUTEX_WAKE_PRIVATE, 0x7fffffff);
}

static int agent_alive(void)
{
    return atomic_load(&atomic_load(&life)->alive);
}

/* Sleeps until the epoch moves on from `seen`, read before the look that found a window. */
static void wait_past(unsigned seen)
{
    count(&n_waits);
    ud__sys(__NR_futex, &epoch, FUTEX_WAIT_PRIVATE, seen, 0);
}

/* ---- openers ------------------------------------------------------------------------------------------ */

/* Makes protected pages writable. 0, -EAGAIN when a window is over them, -ESTALE when they are no longer all
 * ours, or -errno of mprotect. Without an agent: also pages that the parent's left closed. Signals are blocked: a handler
 * that unmaps would wait for the very opener it interrupted. */
static long open_counted(uint64_t start, uint64_t end, int splits)
{
    struct life *l = atomic_load(&life);
    uint64_t all = ~0ull, before;
    long r;
    ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, &before, 8);
    atomic_fetch_add(&l->openers, 1);
    int alive = atomic_load(&l->alive);
    if (alive && any_closed(start, end)) {
        r = -EAGAIN;
    } else if (!ud__trap_all_ours(start, end, !alive)) {
        r = -ESTALE;
    } else if (ud__test_gap(), !(r = protect(start, end, PROT_READ | PROT_WRITE))) {
        ud__trap_put(start, end, UD__TRAP_PROTECT, 0); /* protection first: who finds no bit must find the page writable */
        if (!alive)
            ud__trap_put(start, end, UD__TRAP_CLOSED, 0);
        _Atomic uint64_t *live = splits ? atomic_load(&l->splits) : NULL;
        if (live) /* the ledger stays while there are openers */
            count(live);
    }
    atomic_fetch_sub(&l->openers, 1);
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
    return r;
}

static long open_now(uint64_t start, uint64_t end) { return open_counted(start, end, 0); }

/* As open_now, and waits for windows. */
static long open_soon(uint64_t start, uint64_t end)
{
    for (;;) {
        unsigned seen = atomic_load(&epoch);
        long r = open_now(start, end);
        if (r != -EAGAIN)
            return r;
        wait_past(seen);
    }
}

static int open_run(uint64_t start, uint64_t end, void *arg)
{
    long r = open_soon(start, end);
    if (r == -ENOMEM || r == -ESTALE) { /* part of it was unmapped and we were not told, or no VMA is left */
        r = 0;
        for (uint64_t at = start; at < end; at += ud__page) {
            long one = open_soon(at, at + ud__page);
            r = one && one != -ESTALE ? one : r;
        }
    }
    *(long *)arg = r ? r : *(long *)arg;
    return 0;
}

static void wait_for_windows(uint64_t start, uint64_t end)
{
    for (;;) {
        unsigned seen = atomic_load(&epoch);
        if ((!any_closed(start, end) && !barred(start, end)) || !agent_alive())
            return;
        wait_past(seen);
    }
}

/* Where no agent is there to end it, in a forked child, also what a window of the parent's left closed. */
static int open_protected(uint64_t start, uint64_t end)
{
    long r = 0;
    ud__trap_each(start, end, UD__TRAP_PROTECT, open_run, &r);
    if (!agent_alive() && UD__GUARD_ON(UD__GUARD_INHERIT))
        ud__trap_each(start, end, UD__TRAP_CLOSED, open_run, &r);
    return (int)r;
}

int ud__trap_open(uint64_t start, uint64_t end)
{
    wait_for_windows(start, end);
    return open_protected(start, end);
}

void ud__trap_open_all(void)
{
    open_protected(0, ud__trap_highest());
}

static int wait_for_openers(uint64_t us)
{
    struct life *l = atomic_load(&life);
    if (!atomic_load(&l->openers))
        return 0;
    for (uint64_t until = ud__now_us() + us; atomic_load(&l->openers);) {
        if (ud__now_us() > until)
            return -EAGAIN;
        ud__sys(__NR_sched_yield);
    }
    return 0;
}

void ud__trap_settle(uint64_t start, uint64_t end)
{
    start &= ~(uint64_t)(ud__page - 1);
    end = (end + ud__page - 1) & ~(uint64_t)(ud__page - 1);
    if (end > TOP) /* such an end would be long in coming */
        end = TOP;
    wait_for_windows(start, end);
    ud__trap_put(start, end, UD__TRAP_PROTECT, 0);
    if (!agent_alive()) /* or whoever revives would open what the call is about to make of it */
        ud__trap_put(start, end, UD__TRAP_CLOSED, 0);
    if (UD__GUARD_ON(UD__GUARD_OPENERS))
        wait_for_openers(SETTLE_WAIT_US); /* one that looked before may be about to open what is no longer ours */
}

/* ---- windows ------------------------------------------------------------------------------------------- */

/* Lets writers go without having touched the protection. */
static void undo(uint64_t start, uint64_t end)
{
    ud__trap_put(start, end, UD__TRAP_CLOSED, 0);
    changed();
}

/* Could not be opened: a writer's fault tries again. */
static int leave_protected(uint64_t start, uint64_t end, void *arg)
{
    (void)arg;
    ud__trap_put(start, end, UD__TRAP_PROTECT, 1);
    ud__trap_put(start, end, UD__TRAP_CLOSED, 0);
    return 0;
}

/* Somebody who ends windows is there: the first time, or in the child of a fork, maybe one amid a batch. What that left
 * closed is opened as any thread of the child would, so that calls under way (ud__trap_settle) are respected. */
static void revive(void)
{
    long r;
    if (agent_alive())
        return;
    ud__trap_each(0, ud__trap_highest(), UD__TRAP_CLOSED, open_run, &r);
    atomic_store(&bar_end, 0);
    atomic_store(&atomic_load(&life)->alive, 1);
    ud__trap_each(0, ud__trap_highest(), UD__TRAP_CLOSED, leave_protected, NULL);
    changed();
}

/* The other half of Dekker's: what is about to be done has been said, who could be in its way? */
static int nobody_inside(uint64_t start, uint64_t end, int (*check)(uint64_t, uint64_t, void *), void *arg)
{
    if (atomic_load(&ud__busy_count))
        return -EBUSY;
    int r = wait_for_openers(OPENERS_WAIT_US);
    return r || !check ? r : check(start, end, arg);
}

int ud__trap_begin(uint64_t start, uint64_t end, int (*check)(uint64_t, uint64_t, void *), void *arg)
{
    if (!atomic_load(&ud__trap_on))
        return -EINVAL;
    int r = ud__trap_reserve(start, end);
    if (r)
        return r;
    revive();
    ud__trap_put(start, end, UD__TRAP_CLOSED, 1);
    if (ud__writable_any(start, end))
        r = -EBUSY;
    else
        r = nobody_inside(start, end, check, arg);
    if (r) {
        undo(start, end);
        return r;
    }
    r = (int)protect(start, end, PROT_READ);
    if (r) { /* a part of it may be protected by now */
        ud__trap_end(start, end, UD__TRAP_OPEN);
        return r;
    }
    count(&n_windows);
    return 0;
}

int ud__trap_bar(uint64_t start, uint64_t end, int (*check)(uint64_t, uint64_t, void *), void *arg)
{
    if (!atomic_load(&ud__trap_on))
        return -EINVAL;
    revive();
    atomic_store(&bar_start, start);
    atomic_store(&bar_end, end);
    int r = nobody_inside(start, end, check, arg);
    if (r)
        ud__trap_unbar();
    return r;
}

void ud__trap_unbar(void)
{
    atomic_store(&bar_end, 0);
    changed();
}

static void make_writable(uint64_t start, uint64_t end)
{
    if (!protect(start, end, PROT_READ | PROT_WRITE))
        return;
    for (uint64_t at = start; at < end; at += ud__page) /* a hole in it, or no VMA left */
        if (protect(at, at + ud__page, PROT_READ | PROT_WRITE))
            ud__trap_put(at, at + ud__page, UD__TRAP_PROTECT, 1); /* a writer's fault tries again */
}

void ud__trap_end(uint64_t start, uint64_t end, enum ud__trap_state state)
{
    if (start >= end)
        return;
    ud__trap_put(start, end, UD__TRAP_PROTECT, state == UD__TRAP_PROTECTED);
    if (state == UD__TRAP_OPEN)
        make_writable(start, end);
    atomic_fetch_add(&epoch, 1); /* before the bits: see the end of ud__trap_serve */
    ud__trap_put(start, end, UD__TRAP_CLOSED, 0);
    changed();
}

/* ---- faults ---------------------------------------------------------------------------------------------- */

static int is_write(const ucontext_t *uc)
{
#if defined(__x86_64__)
    return (uc->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#elif defined(__aarch64__)
    const unsigned char *p = (const unsigned char *)uc->uc_mcontext.__reserved;
    for (size_t at = 0; at + 16 <= sizeof uc->uc_mcontext.__reserved;) {
        uint32_t magic, size;
        uint64_t esr;
        __builtin_memcpy(&magic, p + at, 4);
        __builtin_memcpy(&size, p + at + 4, 4);
        if (magic == 0x45535201) { /* esr_context */
            __builtin_memcpy(&esr, p + at + 8, 8);
            return (esr & 1 << 6) != 0;
        }
        if (!magic || !size)
            break;
        at += size;
    }
    return 0;
#endif
}

/* 1 if the program may write at addr: an atomic OR with 0, made by the kernel, which reports instead of faulting. */
static int writable_now(uint64_t addr)
{
    static unsigned nobody;
    unsigned op = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_LT, 0x800);
    return ud__sys(__NR_futex, &nobody, FUTEX_WAKE_OP_PRIVATE, 0, 0, addr & ~3ull, op) >= 0;
}

/* How much to open: one page, so that each split is told of; twice as much as before to whoever writes on
 * in sequence, never beyond the cell or an unprotected page. */
static uint64_t window(const struct ud__trap_cell *c, uint64_t page)
{
    uint64_t n = 1, at = page >> ud__page_shift & 63;
    uint64_t rest = atomic_load(&c->bits[UD__TRAP_PROTECT]) >> at;
    if (atomic_load_explicit(&last_end, memory_order_relaxed) == page)
        n = atomic_load_explicit(&last_pages, memory_order_relaxed) * 2;
    uint64_t run = rest == ~0ull ? 64 : (uint64_t)__builtin_ctzll(~rest);
    n = n > run ? run : n;
    n = n > WINDOW_MAX ? WINDOW_MAX : n < 1 ? 1 : n;
    return n;
}

static int first_run(uint64_t start, uint64_t end, void *arg)
{
    uint64_t *out = arg;
    out[0] = start;
    out[1] = end;
    return 1;
}

/* No VMA left to cut one page out: the whole run of protected pages around it. */
static long open_wide(uint64_t page)
{
    uint64_t start = page, run[2] = {page, page + ud__page};
    for (struct ud__trap_cell *c; (c = ud__trap_cell(start - ud__page)); start -= ud__page)
        if (!(atomic_load(&c->bits[UD__TRAP_PROTECT]) >> ((start - ud__page) >> ud__page_shift & 63) & 1))
            break;
    ud__trap_each(start, ud__trap_highest(), UD__TRAP_PROTECT, first_run, run);
    return open_counted(run[0], run[1] > page ? run[1] : page + ud__page, 1);
}

static long split(const struct ud__trap_cell *c, uint64_t page)
{
    uint64_t n = window(c, page), end = page + (n << ud__page_shift);
    long r = open_counted(page, end, 1);
    if (r == -ENOMEM)
        r = open_wide(page);
    if (r)
        return r;
    atomic_store_explicit(&last_end, end, memory_order_relaxed);
    atomic_store_explicit(&last_pages, n, memory_order_relaxed);
    count(&n_splits);
    return 0;
}

int ud__trap_serve(const siginfo_t *info, void *ucontext)
{
    uint64_t addr = (uint64_t)info->si_addr, page = addr & ~(uint64_t)(ud__page - 1);
    struct ud__trap_cell *c;
    if (info->si_code != SEGV_ACCERR || !(c = ud__trap_cell(addr)) || !is_write(ucontext))
        return 0;
    uint64_t bit = 1ull << (addr >> ud__page_shift & 63);
    for (long r;;) {
        unsigned seen = atomic_load(&epoch);
        if (atomic_load(&c->bits[UD__TRAP_CLOSED]) & bit) {
            if (agent_alive())
                wait_past(seen);
            else if ((r = open_now(page, page + ud__page)) != -EAGAIN && r != -ESTALE)
                return !r;
        } else if (atomic_load(&c->bits[UD__TRAP_PROTECT]) & bit) {
            r = split(c, page);
            if (!r)
                ud__splits_record(addr, ucontext);
            if (r != -EAGAIN && r != -ESTALE)
                return !r;
        } else if (writable_now(addr)) {
            count(&n_retries);
            return 1;
        } else if (!(atomic_load(&c->bits[UD__TRAP_CLOSED]) & bit) && seen == atomic_load(&epoch)) {
            return 0; /* no window has been over the page since the look above: the fault is the program's */
        }
    }
}

/* ---- on and off --------------------------------------------------------------------------------------------- */

static int make_life(void)
{
    if (atomic_load(&life) != &no_life)
        return 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    long p = ud__sys(__NR_mmap, ud__hint(ud__page), ud__page, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (ud__is_err(p))
        return (int)p;
    long r = ud__sys(__NR_madvise, p, ud__page, MADV_WIPEONFORK);
    if (r) {
        ud__sys(__NR_munmap, p, ud__page);
        return (int)r;
    }
    ud__own_add((void *)p, ud__page);
    atomic_store(&life, (struct life *)p);
    return 0;
}

int ud__trap_enable(_Atomic uint64_t *trap_splits, char *text, size_t cap)
{
    int r = make_life();
    if (r)
        return r;
    ud__trap_map_own();
    atomic_store(&atomic_load(&life)->splits, trap_splits);
    ud__sig_virtual_mask();
    r = ud__sig_install();
    if (r)
        return r;
    revive();
    atomic_store(&ud__trap_on, 1);
    return ud__trap_owner_ok(text, cap) ? 0 : -EBUSY;
}

void ud__trap_disable(void)
{
    ud__trap_open_all();
    /* The handler stays: a thread may have faulted and not have come to it yet. It passes everything on. */
    atomic_store(&ud__trap_on, 0);
    atomic_store(&atomic_load(&life)->splits, NULL);
}

void ud__trap_uncount(void)
{
    atomic_store(&atomic_load(&life)->splits, NULL);
    wait_for_openers(SETTLE_WAIT_US);
}

void ud__trap_counts(struct ud__trap_counts *out)
{
    out->splits = atomic_load(&n_splits);
    out->waits = atomic_load(&n_waits);
    out->retries = atomic_load(&n_retries);
    out->windows = atomic_load(&n_windows);
}
