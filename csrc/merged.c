/* merged.c: which pages of this process are merged, told without a system call.
 *
 * A hash table of {block, bit mask}, 16 bytes for 64 pages, in memory that a forked child inherits.
 *
 * Guarantees: a page mapped from a segment always has its bit (it is set before the remap); a bit may
 * be stale after the program unmapped the page behind our back, so whoever acts on a bit checks the
 * mapping first. Only a holder (mode trap: the agent) swaps the table, and the old one goes when nobody is inside
 * ud__busy_enter any more, where all readers are. They take no lock; clearing is one atomic AND.
 * Fails: ud__merged_reserve gives -ENOMEM, and the batch is not begun.
 */
#include <sys/mman.h>

#include "internal.h"

struct cell {
    _Atomic uint64_t key; /* block number + 1; 0 empty */
    _Atomic uint64_t mask;
};
struct table {
    size_t cap, used;
    struct cell cells[];
};

UD_HIDDEN atomic_int ud__busy_count;
UD_HIDDEN atomic_uint ud__mm_calls;
UD_HIDDEN atomic_int ud__merged_ever;

static struct table *_Atomic current;
static struct table *spare, *old;

static size_t table_bytes(size_t cap) { return sizeof(struct table) + cap * sizeof(struct cell); }

static uint64_t block_of(uint64_t addr) { return addr / ud__block_bytes() + 1; }

static size_t slot_of(uint64_t key, size_t cap) { return (size_t)(key * 0x9e3779b97f4a7c15ull >> 20) & (cap - 1); }

static struct cell *find(const struct table *t, uint64_t key)
{
    if (!t)
        return NULL;
    size_t i = slot_of(key, t->cap);
    for (size_t n = 0; n < t->cap; n++, i = (i + 1) & (t->cap - 1)) {
        uint64_t k = atomic_load_explicit(&t->cells[i].key, memory_order_acquire);
        if (k == key)
            return (struct cell *)&t->cells[i];
        if (k == 0)
            return NULL;
    }
    return NULL;
}

/* Bits of the block that starts at `base` which [start, end) covers. */
static uint64_t mask_of(uint64_t base, uint64_t start, uint64_t end)
{
    uint64_t first = start > base ? (start - base) >> ud__page_shift : 0;
    uint64_t last = end - base >= ud__block_bytes() ? UD_BLOCK_PAGES : (end - base + ud__page - 1) >> ud__page_shift;
    if (first >= last)
        return 0;
    uint64_t upto = last == 64 ? ~0ull : (1ull << last) - 1;
    return upto & ~((1ull << first) - 1);
}

static int any(const struct table *t, uint64_t start, uint64_t end)
{
    uint64_t bb = ud__block_bytes();
    if ((end - start) / bb > t->cap) { /* a vast range: the table is the shorter walk */
        for (size_t i = 0; i < t->cap; i++) {
            uint64_t k = atomic_load_explicit(&t->cells[i].key, memory_order_acquire);
            if (!k)
                continue;
            uint64_t base = (k - 1) * bb;
            if (base < end && base + bb > start && (atomic_load(&t->cells[i].mask) & mask_of(base, start, end)))
                return 1;
        }
        return 0;
    }
    for (uint64_t base = start - start % bb; base < end; base += bb) {
        const struct cell *c = find(t, block_of(base));
        if (c && (atomic_load(&c->mask) & mask_of(base, start, end)))
            return 1;
    }
    return 0;
}

int ud__merged_any(uint64_t start, uint64_t end)
{
    ud__busy_enter(); /* for those that are not inside: no table goes away under them */
    struct table *t = atomic_load_explicit(&current, memory_order_acquire);
    int r = t && start < end && any(t, start, end);
    ud__busy_leave();
    return r;
}

int ud__merged_test(uint64_t page)
{
    struct cell *c = find(atomic_load(&current), block_of(page));
    return c && (atomic_load(&c->mask) >> ((page % ud__block_bytes()) >> ud__page_shift) & 1);
}

void ud__merged_clear(uint64_t start, uint64_t end)
{
    struct table *t = atomic_load(&current);
    uint64_t bb = ud__block_bytes();
    if (!t || start >= end)
        return;
    if ((end - start) / bb > t->cap) { /* as in any() */
        for (size_t i = 0; i < t->cap; i++) {
            uint64_t k = atomic_load_explicit(&t->cells[i].key, memory_order_acquire), base = (k - 1) * bb;
            if (k && base < end && base + bb > start)
                atomic_fetch_and(&t->cells[i].mask, ~mask_of(base, start, end));
        }
        return;
    }
    for (uint64_t base = start - start % bb; base < end; base += bb) {
        struct cell *c = find(t, block_of(base));
        if (c)
            atomic_fetch_and(&c->mask, ~mask_of(base, start, end));
    }
}

static struct table *table_new(size_t cap)
{
    long p = ud__sys(__NR_mmap, ud__hint(table_bytes(cap)), table_bytes(cap), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ud__is_err(p))
        return NULL;
    struct table *t = (struct table *)p;
    ud__sys(__NR_madvise, p, table_bytes(cap), MADV_DONTDUMP); /* so that it joins no mapping of the program */
    ud__own_add(t, table_bytes(cap)); /* not merged, but inherited */
    t->cap = cap;
    return t;
}

/* *t: where it is kept; cleared first, for a child forked in between must not unmap what is not there. */
static void table_drop(struct table **t)
{
    struct table *gone = *t;
    if (!gone)
        return;
    *t = NULL;
    ud__own_del(gone);
    ud__sys(__NR_munmap, gone, table_bytes(gone->cap));
}

int ud__merged_reserve(size_t blocks)
{
    struct table *t = atomic_load(&current);
    if (spare == t) /* a holder was killed in the midst of the swap */
        spare = NULL;
    struct table *next = spare ? spare : t; /* a spare one is of a batch that was not begun, and may be small */
    size_t used = t ? t->used : 0;
    if (next && (used + blocks) * 2 <= next->cap)
        return 0;
    table_drop(&spare);
    size_t want = 256;
    while (want < (used + blocks) * 4)
        want *= 2;
    spare = table_new(want);
    return spare ? 0 : -ENOMEM;
}

/* 0, or -ENOMEM: not half of the table is used, once room was reserved. */
static int insert(struct table *t, uint64_t key, uint64_t mask)
{
    size_t i = slot_of(key, t->cap);
    for (size_t n = 0; n < t->cap; n++, i = (i + 1) & (t->cap - 1)) {
        uint64_t k = atomic_load_explicit(&t->cells[i].key, memory_order_relaxed);
        if (k == key || k == 0) {
            atomic_fetch_or(&t->cells[i].mask, mask);
            if (k == 0) {
                t->used++;
                atomic_store_explicit(&t->cells[i].key, key, memory_order_release);
            }
            return 0;
        }
    }
    return -ENOMEM;
}

void ud__merged_swap(void)
{
    if (!spare)
        return;
    struct table *t = atomic_load(&current);
    for (size_t i = 0; t && i < t->cap; i++) {
        uint64_t mask = atomic_load(&t->cells[i].mask); /* emptied blocks are left behind */
        if (mask)
            insert(spare, atomic_load(&t->cells[i].key), mask);
    }
    atomic_store(&current, spare);
    spare = NULL;
    old = t;
}

void ud__merged_reap(void) { table_drop(&old); }

int ud__merged_set(uint64_t start, uint64_t end)
{
    struct table *t = atomic_load(&current);
    uint64_t bb = ud__block_bytes();
    int r = 0;
    for (uint64_t base = start - start % bb; base < end && !r; base += bb)
        r = insert(t, block_of(base), mask_of(base, start, end));
    atomic_store(&ud__merged_ever, 1);
    return r;
}

void ud__merged_own(void)
{
    struct table *t = atomic_load(&current);
    if (spare == t) /* a clone(2) by hand in the midst of the swap */
        spare = NULL;
    if (t)
        ud__own_add(t, table_bytes(t->cap));
    if (spare)
        ud__own_add(spare, table_bytes(spare->cap));
}
