/* trap_map.c: what the trap knows of each page: closed, protected, or nothing.
 *
 * Two levels: a directory of address space, 8 GiB an entry, and leaves of 32768 cells, one for 64 pages.
 *
 * Guarantees: lookups are two loads, safe in a signal handler; nothing is ever moved or freed, so no
 * reader needs a lock. Inherited by fork with the mappings it describes. Touched memory: 16 B for 64 pages.
 * Fails: -ENOMEM, -ERANGE for addresses no plain mmap gives.
 */
#include <sys/mman.h>

#include "internal.h"
#include "trap.h"

#define LEAF_BITS 15
#define LEAF_CELLS (1u << LEAF_BITS)
#if defined(__aarch64__)
#define ADDR_BITS 48
#else
#define ADDR_BITS 47
#endif
#define DIR_SIZE (1u << (ADDR_BITS - 18 - LEAF_BITS)) /* for the smallest page, 12 + 6 bits a cell */

static struct ud__trap_cell *_Atomic directory[DIR_SIZE];
static _Atomic uint64_t highest;

static inline uint64_t cell_number(uint64_t addr)
{
    return addr >> (ud__page_shift + 6);
}

struct ud__trap_cell *ud__trap_cell(uint64_t addr)
{
    uint64_t n = cell_number(addr);
    if (n >> LEAF_BITS >= DIR_SIZE)
        return NULL;
    struct ud__trap_cell *leaf = atomic_load_explicit(&directory[n >> LEAF_BITS], memory_order_acquire);
    return leaf ? &leaf[n & (LEAF_CELLS - 1)] : NULL;
}

static int make_leaf(uint64_t i)
{
    size_t bytes = LEAF_CELLS * sizeof(struct ud__trap_cell);
    struct ud__trap_cell *none = NULL;
    if (atomic_load(&directory[i]))
        return 0;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    long p = ud__sys(__NR_mmap, ud__hint(bytes), bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (ud__is_err(p))
        return (int)p;
    if (!atomic_compare_exchange_strong(&directory[i], &none, (struct ud__trap_cell *)p))
        ud__sys(__NR_munmap, p, bytes);
    else
        ud__own_add((void *)p, bytes);
    return 0;
}

int ud__trap_reserve(uint64_t start, uint64_t end)
{
    if (end > 1ull << ADDR_BITS || start >= end)
        return -ERANGE;
    for (uint64_t i = cell_number(start) >> LEAF_BITS; i <= cell_number(end - 1) >> LEAF_BITS; i++) {
        int r = make_leaf(i);
        if (r)
            return r;
    }
    uint64_t high = atomic_load(&highest);
    while (high < end && !atomic_compare_exchange_weak(&highest, &high, end))
        ;
    return 0;
}

uint64_t ud__trap_highest(void)
{
    return atomic_load(&highest);
}

void ud__trap_map_own(void)
{
    for (uint64_t i = 0; i < DIR_SIZE; i++) {
        struct ud__trap_cell *leaf = atomic_load(&directory[i]);
        if (leaf && !ud__own_overlaps((uint64_t)leaf, (uint64_t)leaf + 1))
            ud__own_add(leaf, LEAF_CELLS * sizeof *leaf);
    }
}

/* Where to look on when there is no cell. */
static uint64_t next_leaf(uint64_t addr)
{
    uint64_t bytes = 64ull << (ud__page_shift + LEAF_BITS);
    return (addr & ~(bytes - 1)) + bytes;
}

int ud__trap_each(uint64_t start, uint64_t end, enum ud__trap_plane plane, ud__trap_fn fn, void *arg)
{
    uint64_t cell_bytes = 64ull << ud__page_shift;
    uint64_t run = 0; /* start of the run under way, 0 if none */
    int r = 0;
    for (uint64_t at = start; at < end && !r;) {
        struct ud__trap_cell *c = ud__trap_cell(at);
        uint64_t mask = c ? atomic_load(&c->bits[plane]) : 0;
        if (!mask && !run) { /* nothing here: to the next cell, or leaf */
            at = c ? (at & ~(cell_bytes - 1)) + cell_bytes : next_leaf(at);
            continue;
        }
        int is = mask >> (at >> ud__page_shift & 63) & 1;
        if (is && !run)
            run = at;
        if (!is && run) {
            r = fn(run, at, arg);
            run = 0;
        }
        at += ud__page;
    }
    return run && !r ? fn(run, end, arg) : r;
}

static uint64_t bits_of(uint64_t at, uint64_t end, uint64_t *next)
{
    uint64_t first = at >> ud__page_shift & 63, stop = (at | ((64ull << ud__page_shift) - 1)) + 1;
    *next = stop < end ? stop : end;
    uint64_t n = (*next - at) >> ud__page_shift;
    return (n == 64 ? ~0ull : (1ull << n) - 1) << first;
}

void ud__trap_put(uint64_t start, uint64_t end, enum ud__trap_plane plane, int value)
{
    for (uint64_t at = start, next; at < end; at = next) {
        uint64_t bits = bits_of(at, end, &next);
        struct ud__trap_cell *c = ud__trap_cell(at);
        if (!c)
            next = next_leaf(at);
        else if (value)
            atomic_fetch_or(&c->bits[plane], bits);
        else if (atomic_load(&c->bits[plane]) & bits)
            atomic_fetch_and(&c->bits[plane], ~bits);
    }
}

int ud__trap_all_ours(uint64_t start, uint64_t end, int or_closed)
{
    for (uint64_t at = start, next; at < end; at = next) {
        uint64_t bits = bits_of(at, end, &next);
        struct ud__trap_cell *c = ud__trap_cell(at);
        uint64_t closed = c && or_closed ? atomic_load(&c->bits[UD__TRAP_CLOSED]) : 0;
        if (!c || ((atomic_load(&c->bits[UD__TRAP_PROTECT]) | closed) & bits) != bits)
            return 0;
    }
    return 1;
}

int ud__trap_held(uint64_t addr)
{
    struct ud__trap_cell *c = ud__trap_cell(addr);
    uint64_t bit = 1ull << (addr >> ud__page_shift & 63);
    return c && (atomic_load(&c->bits[UD__TRAP_CLOSED]) | atomic_load(&c->bits[UD__TRAP_PROTECT])) & bit;
}

uint64_t ud__trap_edge(uint64_t start, uint64_t end)
{
    int held = ud__trap_held(start);
    for (uint64_t at = start, next; at < end; at = next) {
        uint64_t bits = bits_of(at, end, &next);
        struct ud__trap_cell *c = ud__trap_cell(at);
        if (!c) {
            if (held)
                return at;
            next = next_leaf(at);
            continue;
        }
        uint64_t mask = atomic_load(&c->bits[UD__TRAP_CLOSED]) | atomic_load(&c->bits[UD__TRAP_PROTECT]);
        uint64_t other = (held ? ~mask : mask) & bits;
        if (other)
            return (at & ~((64ull << ud__page_shift) - 1)) + ((uint64_t)__builtin_ctzll(other) << ud__page_shift);
    }
    return end;
}
