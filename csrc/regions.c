/* regions.c: which address ranges the program wants merged, and which must be left alone.
 *
 * A short sorted list of disjoint ranges. A later mark wins over an earlier one where they overlap.
 *
 * Guarantees: async-signal-safe (a futex lock, signals blocked meanwhile); changed only inside
 * ud__busy_enter, so a holder never sees it half-changed.
 * Fails: -ENOMEM when the list is full. A full list with a range to keep out turns merging off for good:
 * better nothing than too much.
 */
#include <signal.h>

#include "internal.h"

#define REGIONS_MAX 4096
static struct region {
    uint64_t start, end;
    int kind;
} list[REGIONS_MAX], work[REGIONS_MAX];
static atomic_int count;
static atomic_int lock_word;
static atomic_int nothing_allowed;

UD_HIDDEN atomic_uint ud__region_gen;

static uint64_t lock(void)
{
    uint64_t all = ~0ull, before;
    ud__sys(__NR_rt_sigprocmask, SIG_BLOCK, &all, &before, 8);
    int none = 0;
    if (!atomic_compare_exchange_strong(&lock_word, &none, 1))
        while (atomic_exchange(&lock_word, 2) != 0)
            ud__sys(__NR_futex, &lock_word, 0, 2, 0);
    return before;
}

static void unlock(uint64_t before)
{
    if (atomic_exchange(&lock_word, 0) == 2)
        ud__sys(__NR_futex, &lock_word, 1, 1);
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
}

void ud__region_forked(void)
{
    atomic_store(&lock_word, 0);
    if (atomic_load(&ud__region_gen) & 1) /* another thread was changing it: its copy ended there */
        atomic_fetch_add(&ud__region_gen, 1);
}

static int append(int n, uint64_t start, uint64_t end, int kind)
{
    if (start >= end || kind == 0)
        return n;
    if (n && work[n - 1].end == start && work[n - 1].kind == kind) {
        work[n - 1].end = end;
        return n;
    }
    if (n == REGIONS_MAX)
        return -1;
    work[n] = (struct region){start, end, kind};
    return n + 1;
}

/* The list with [start, end) given `kind`, into `work`. Its length, or -1. */
static int compose(uint64_t start, uint64_t end, int kind)
{
    int n = 0, placed = 0, have = atomic_load(&count);
    for (int i = 0; i < have && n >= 0; i++) {
        struct region r = list[i];
        n = append(n, r.start, r.end < start ? r.end : start, r.kind);
        if (n >= 0 && !placed && r.end > start) {
            n = append(n, start, end, kind);
            placed = 1;
        }
        if (n >= 0)
            n = append(n, r.start > end ? r.start : end, r.end, r.kind);
    }
    return placed || n < 0 ? n : append(n, start, end, kind);
}

int ud__region_mark(uint64_t start, uint64_t end, int kind)
{
    int r = 0;
    ud__busy_enter();
    uint64_t mask = lock();
    atomic_fetch_add(&ud__region_gen, 1); /* odd: being changed */
    int n = compose(start, end, kind);
    if (n < 0) {
        r = -ENOMEM;
        if (kind != UD__REG_MERGE)
            atomic_store(&nothing_allowed, 1);
    } else {
        __builtin_memcpy(list, work, (size_t)n * sizeof *list);
        atomic_store(&count, n);
    }
    atomic_fetch_add(&ud__region_gen, 1);
    unlock(mask);
    ud__busy_leave();
    return r;
}

void ud__region_drop_merge(void)
{
    ud__busy_enter();
    uint64_t mask = lock();
    atomic_fetch_add(&ud__region_gen, 1);
    int n = 0, have = atomic_load(&count);
    for (int i = 0; i < have; i++)
        if (list[i].kind != UD__REG_MERGE)
            list[n++] = list[i];
    atomic_store(&count, n);
    atomic_fetch_add(&ud__region_gen, 1);
    unlock(mask);
    ud__busy_leave();
}

/* The first region that ends above `start`: its index, or the count. */
static int first_above(uint64_t start)
{
    int lo = 0, hi = atomic_load(&count);
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (list[mid].end <= start)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Most memory bears no mark: that is told without the lock, if nobody marked meanwhile. */
int ud__region_any(uint64_t start, uint64_t end)
{
    if (atomic_load_explicit(&count, memory_order_relaxed) == 0)
        return 0;
    unsigned gen = atomic_load(&ud__region_gen);
    int i = first_above(start);
    int touched = i < atomic_load(&count) && list[i].start < end;
    atomic_thread_fence(memory_order_acquire);
    return touched || gen & 1 || gen != atomic_load(&ud__region_gen);
}

void ud__region_unmap(uint64_t start, uint64_t end)
{
    if (start < end && ud__region_any(start, end))
        ud__region_mark(start, end, 0);
}

/* The first range kept out in [at, end), cut to it. 0 if there is none. */
static int next_kept(uint64_t at, uint64_t end, uint64_t *from, uint64_t *to)
{
    int found = 0;
    uint64_t mask = lock();
    for (int i = first_above(at); !found && i < atomic_load(&count) && list[i].start < end; i++) {
        found = list[i].kind != UD__REG_MERGE;
        *from = list[i].start > at ? list[i].start : at;
        *to = list[i].end < end ? list[i].end : end;
    }
    unlock(mask);
    return found;
}

void ud__region_move(uint64_t old, uint64_t old_len, uint64_t to, uint64_t new_len, int stays)
{
    uint64_t end = old + old_len, upto = to + new_len, from, kept;
    if (!ud__region_any(old, end) && !ud__region_any(to, upto))
        return;
    ud__busy_enter(); /* no batch finds it half done */
    if (to != old)
        ud__region_unmap(to, upto);
    for (uint64_t at = old; next_kept(at, end, &from, &kept); at = kept) {
        uint64_t a = to + (from - old), b = kept == end ? upto : to + (kept - old); /* what it grows by is like its end */
        if (a < upto)
            ud__region_mark(a, b < upto ? b : upto, UD__REG_KEEP_OUT);
    }
    if (to == old)
        ud__region_unmap(upto, end);
    else if (!stays)
        ud__region_unmap(old, end);
    ud__busy_leave();
}

/* No lock: called by a holder (nobody is inside), or by the agent, whose answer a holder checks again. */
int ud__region_allows(uint64_t start, uint64_t *end, int advised)
{
    if (atomic_load(&nothing_allowed))
        return 0;
    int lo = first_above(start), kind = 0;
    if (lo < atomic_load(&count)) {
        uint64_t edge = list[lo].start > start ? list[lo].start : list[lo].end;
        kind = list[lo].start > start ? 0 : list[lo].kind;
        if (edge < *end)
            *end = edge;
    }
    return kind == UD__REG_MERGE || (kind == 0 && !advised);
}

int ud__region_grows(uint64_t start, uint64_t end)
{
    int n = atomic_load(&count);
    for (int i = first_above(start); i < n && list[i].start < end; i++)
        if (list[i].kind == UD__REG_GROWS)
            return 1;
    return 0;
}
