/* budget.c: how many mappings merging may use, and giving them back when the program needs them.
 *
 * The kernel refuses a process more than vm.max_map_count mappings, and its mmap, munmap and mprotect fail then. Merging may
 * use vma_share percent of what the program leaves. The program's own are counted at each reading of the mappings, its calls
 * in between.
 *
 * Guarantees: what is over the budget is given back, shortest areas first (ud__budget_keep), at the latest when one of the
 * program's calls was refused: it waits until that is done and is made again (ud__budget_make_room).
 * Fails: calls made inside libc, or by raw system calls, are only protected by the distance to the limit; a refusal for
 * another reason than the number of mappings is passed on.
 */
#include <sys/mman.h>
#include <time.h>

#include "pass.h"

#define ROOM_WAIT_US 10000000u
#define BALLAST 16
#define AT_ONCE 1024u /* areas given back before waiting calls are told */

static _Atomic uint32_t total, added; /* by the last reading */
static _Atomic int32_t made_since;    /* by the program */
static int32_t looked;                /* of these, when it was last seen to what is over the budget */
static atomic_int wanted;             /* a call of the program waits for room */
static _Atomic uint32_t given;        /* mappings given back so far */

/* At the limit we could map nothing either, not even what giving back takes: mappings of nothing, dropped then. */
static uint64_t ballast[BALLAST];

static void ballast_drop(void)
{
    for (int i = 0; i < BALLAST; i++) {
        if (ballast[i])
            ud__sys(__NR_munmap, ballast[i], ud__page);
        ballast[i] = 0;
    }
}

static void ballast_take(void)
{
    for (int i = 0; i < BALLAST && UD__GUARD_ON(UD__GUARD_BALLAST); i++) {
        if (ballast[i])
            continue;
        long p = ud__sys(__NR_mmap, ud__hint(ud__page), ud__page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (ud__is_err(p))
            return;
        ud__sys(__NR_madvise, p, ud__page, MADV_DONTFORK);
        ballast[i] = (uint64_t)p;
    }
}

static void wake(void)
{
    if (atomic_exchange(&wanted, 0))
        ud__sys(__NR_futex, &wanted, 1 /* FUTEX_WAKE */, 1 << 30);
}

void ud__budget_close(void)
{
    ballast_drop();
    wake();
}

void ud__budget_forked(void)
{
    __builtin_memset(ballast, 0, sizeof ballast);
    atomic_store(&wanted, 0);
    atomic_store(&made_since, 0);
    looked = 0;
}

static uint32_t now_mapped(void)
{
    int32_t made = atomic_load(&made_since);
    return atomic_load(&total) + (made > 0 ? (uint32_t)made : 0);
}

int32_t ud__budget_made(void) { return atomic_load(&made_since); }

void ud__budget_read(uint32_t all, uint32_t ours, int32_t made)
{
    atomic_store(&total, all);
    atomic_store(&added, ours);
    atomic_fetch_sub(&made_since, made);
    looked = 0;
    ud__a.ledger.hdr->vmas_used = ours;
    ud__budget_left();
    if (ours)
        ballast_take();
}

void ud__budget_spent(uint32_t vmas)
{
    atomic_fetch_add(&total, vmas);
    ud__a.ledger.hdr->vmas_used = atomic_fetch_add(&added, vmas) + vmas;
    if (vmas)
        ballast_take(); /* now, for at the next reading it may be too late */
}

int64_t ud__budget_left(void)
{
    uint32_t all = now_mapped(), ours = atomic_load(&added), others = all > ours ? all - ours : 0;
    uint64_t most = ud__a.max_maps > others ? (ud__a.max_maps - others) * ud__a.knobs.vma_share / 100 : 0;
    ud__a.ledger.hdr->vmas_budget = (uint32_t)most;
    return (int64_t)most - ours;
}

void ud__budget_note(int32_t mappings)
{
    /* Not a locked addition: it is an estimate. */
    atomic_store_explicit(&made_since, atomic_load_explicit(&made_since, memory_order_relaxed) + mappings, memory_order_relaxed);
}

/* The program has come so near to the limit, or made so many mappings at once, that they are to be counted now. */
int ud__budget_urgent(void)
{
    int32_t made = atomic_load_explicit(&made_since, memory_order_relaxed);
    return atomic_load(&wanted) || (atomic_load(&added) && made > looked && (uint64_t)(made - looked) * 16 > ud__a.max_maps);
}

static struct ud_run runs[UD_MSG_MAX_RUNS]; /* static: at the limit nothing could be mapped */

/* Merged areas of at most `most` pages as runs to be given back, until they make up for `over` mappings. Areas with a short
 * gap between them are one run: what is given back together is one mapping afterwards. How many areas. */
static uint32_t choose(const struct ud__space *s, uint64_t most, int64_t over, uint32_t *n)
{
    uint32_t areas = 0;
    *n = 0;
    for (size_t i = 0; i < s->count && over > 0 && areas < AT_ONCE; i++) {
        const struct ud__area *a = &s->list[i];
        uint64_t pages = (a->end - a->start) >> ud__page_shift;
        if (!a->inode || pages > most || !ud__merged_any(a->start, a->end))
            continue;
        if (!*n || !ud__run_joins(runs[*n - 1].vaddr, &runs[*n - 1].npages, a->start, a->end)) {
            if (*n == UD_MSG_MAX_RUNS)
                break;
            runs[(*n)++] = (struct ud_run){.vaddr = a->start, .npages = (uint32_t)pages};
        }
        over -= 2;
        areas++;
    }
    return areas;
}

static uint32_t still_merged(uint32_t n)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count += ud__merged_any(runs[i].vaddr, runs[i].vaddr + ((uint64_t)runs[i].npages << ud__page_shift)) != 0;
    return count;
}

/* What is to be given back. A call that was refused knows better than our count, which is an estimate between two readings. */
static int64_t over_budget(void)
{
    int64_t left = ud__budget_left();
    return left < 0 ? -left : atomic_load(&wanted) ? AT_ONCE : 0;
}

/* By the areas of the last reading: to read them anew takes memory, and we may be at the limit. */
void ud__budget_keep(void)
{
    looked = atomic_load(&made_since);
    for (uint64_t most = 1; over_budget() > 0 && most < 1u << UD_SLOT_BITS;) {
        uint32_t n, areas = choose(&ud__pass.space, most, over_budget(), &n), vmas = 2 * areas;
        if (n && ud__plan_unmerge(runs, n) && still_merged(n) < n) {
            uint32_t ours = atomic_load(&added), all = atomic_load(&total);
            atomic_store(&added, ours > vmas ? ours - vmas : 0);
            atomic_store(&total, all > vmas ? all - vmas : 0);
            atomic_fetch_add(&given, vmas);
            wake();
        } else {
            most *= 4;
        }
    }
    ud__a.ledger.hdr->vmas_used = atomic_load(&added);
    wake();
}

/* In a hold, so that nobody else takes the room. */
int ud__budget_open(void)
{
    if (!ballast[0])
        return 0;
    ballast_drop();
    return 1;
}

void ud__budget_shut(void) { ballast_take(); }

/* Is there no room for a mapping cut out of another? The counts are estimates, and may be old on a busy machine. */
static int refused_now(void)
{
    long p = ud__sys(__NR_mmap, ud__hint(3 * ud__page), 3 * ud__page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ud__is_err(p))
        return 1;
    long r = ud__sys(__NR_mprotect, p + (long)ud__page, ud__page, PROT_READ);
    ud__sys(__NR_munmap, p, 3 * ud__page);
    return r != 0;
}

int ud__budget_make_room(void)
{
    struct timespec step = {0, 50000000};
    int state = atomic_load(&ud__a.state);
    if (state != UD__AGENT_RUNNING || !atomic_load(&added) || ud__sys(__NR_gettid) == atomic_load(&ud__a.tid))
        return 0;
    if (now_mapped() < ud__a.max_maps / 4 * 3 && !refused_now())
        return 0;
    uint64_t until = ud__now_us() + ROOM_WAIT_US;
    uint32_t before = atomic_load(&given);
    atomic_store(&wanted, 1);
    atomic_fetch_add(&ud__a.poke, 1); /* it may have no merger to wait for */
    ud__sys(__NR_futex, &ud__a.poke, 1 /* FUTEX_WAKE */, 1);
    while (atomic_load(&wanted) && ud__now_us() < until)
        ud__sys(__NR_futex, &wanted, 0 /* FUTEX_WAIT */, 1, &step);
    return atomic_load(&given) != before;
}
