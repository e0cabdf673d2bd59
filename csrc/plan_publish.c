/* plan_publish.c: which pages go to the store next, and in which order.
 *
 * Guarantees: longest runs first, in the owner's address order, packed into one segment of at most
 * conf.segment_pages, of one NUMA node where nodes matter; at most conf.outstanding_pages asked for and not answered in the domain.
 * Fails: pages that stopped being candidates leave the queue, and who waited for them is told.
 */
#include <errno.h>
#include <stdlib.h>
#include "index_int.h"

#define REST 10000 /* ms without a publication: the memory that merges freed is others' by now */
#define MAX_PUBLISHES 2u /* before one agent: it copies the one while we plan the other */

static const uint32_t lengths[] = {64, 16, UD__SHORT_RUN, 1};

struct draft {
    struct ud_msg_runs *msg;
    struct ud__run *runs;
    uint32_t nruns, npages, room;
    uint32_t node; /* of all its pages + 1; 0: any */
    bool dropped;
};

void ud__queue(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n)
{
    for (uint32_t i = page; i < page + n; i++) {
        if (ud__bit(s->pub, i))
            continue;
        uint64_t bit = 1ull << i % 64;
        s->claim[i / 64] |= bit;
        ud__pub(s, i, true);
        s->queue[i / 64] |= bit;
        s->queued++;
        p->queued++;
        if (ud__state(s, i) == UD_PG_STABLE) /* of several candidates the index shall name the one that goes to the store */
            ud__index_put(p, ud__entry(s, i), (struct ud__ref){false, s->id, i});
    }
}

int ud__queue_tile(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t copies)
{
    if (ud__grow((void **)&s->tiles, &s->tile_room, s->tile_count + 1, sizeof(*s->tiles)))
        return -ENOMEM;
    s->tiles[s->tile_count++] = (struct ud__tile){page, copies};
    s->claim[page / 64] |= 1ull << page % 64;
    ud__pub(s, page, true);
    s->queued++;
    p->queued++;
    return 0;
}

static void unqueue(struct ud_planner *p, struct ud__session *s, uint32_t page)
{
    s->queue[page / 64] &= ~(1ull << page % 64);
    s->queued--;
    p->queued--;
}

/* Is the page still a candidate? *node: its NUMA node + 1, or 0 where nodes do not matter. */
static bool still_good(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t *node)
{
    uint64_t digest;
    if (!ud__ledger_vaddr(s, page, p->page_size) || !ud__digest_of(p, s, page, &digest))
        return false;
    *node = p->conf.per_node ? UD_NODE_OF(digest) + 1 : 0;
    return true;
}

static void add_run(struct ud_planner *p, struct ud__session *s, struct draft *d, struct ud__run run, uint32_t node)
{
    struct ud_msg_runs *m = d->msg;
    d->node = node;
    uint64_t vaddr = ud__ledger_vaddr(s, run.page, p->page_size);
    struct ud_run *last = m->nruns ? &m->runs[m->nruns - 1] : NULL;
    if (last && !run.copies && !last->slot && last->vaddr + last->npages * p->page_size == vaddr)
        last->npages += run.n;
    else
        m->runs[m->nruns++] = (struct ud_run){vaddr, run.n, run.copies};
    run.slot = d->npages;
    d->runs[d->nruns++] = run;
    d->npages += run.copies ? run.copies : run.n;
}

static void take_tiles(struct ud_planner *p, struct ud__session *s, struct draft *d)
{
    while (s->tile_count && d->nruns < UD_MSG_MAX_RUNS) {
        struct ud__tile tile = s->tiles[s->tile_count - 1];
        uint32_t node = 0;
        bool good = still_good(p, s, tile.page, &node);
        if (d->npages && (d->npages + tile.copies > d->room || (good && node != d->node)))
            return;
        s->tile_count--;
        s->queued--;
        p->queued--;
        if (good) {
            add_run(p, s, d, (struct ud__run){tile.page, 1, 0, tile.copies}, node);
        } else {
            ud__claim(s, tile.page, 1, false);
            d->dropped = true;
        }
    }
}

/* Length of the queued run at page, up to max, all on one *node; pages that are candidates no more leave the queue. */
static uint32_t queued_run(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t max, struct draft *d,
                           uint32_t *node)
{
    uint32_t n = 0, mine;
    while (n < max && ud__in_use(s, page + n) && ud__bit(s->queue, page + n)) {
        if (!still_good(p, s, page + n, &mine)) {
            unqueue(p, s, page + n);
            ud__claim(s, page + n, 1, false);
            ud__put_off(s, page + n, 0, false);
            d->dropped = true;
            break;
        }
        if (n && mine != *node)
            break;
        *node = mine;
        n++;
        if (!ud__ledger_follows(s, page + n - 1, p->page_size))
            break;
    }
    return n;
}

static uint32_t huge_pages(const struct ud_planner *p) { return (uint32_t)(p->page_size / 8); }

uint32_t ud__whole_huge(const struct ud_planner *p, uint64_t vaddr, uint32_t most)
{
    uint32_t huge = huge_pages(p), past = (uint32_t)((vaddr / p->page_size + most) % huge);
    return most >= 2 * huge ? most - past : most;
}

static void take(struct ud_planner *p, struct ud__session *s, struct draft *d, uint32_t page, uint32_t n, uint32_t node)
{
    for (uint32_t k = 0; k < n; k++)
        unqueue(p, s, page + k);
    add_run(p, s, d, (struct ud__run){page, n, 0, 0}, node);
}

/* Takes what fills huge pages of its owner's, and first of all, so that each comes to fill one of the store's (huge.c). */
static void take_huge(struct ud_planner *p, struct ud__session *s, struct draft *d)
{
    uint32_t huge = huge_pages(p), node = 0;
    for (uint32_t o = 0; o < s->order_count && d->room - d->npages >= huge && d->nruns < UD_MSG_MAX_RUNS; o++) {
        uint32_t page = s->order[o] * UD_BLOCK_PAGES;
        if (!(s->queue[s->order[o]] & 1) || ud__ledger_vaddr(s, page, p->page_size) % (huge * p->page_size))
            continue;
        uint32_t n = queued_run(p, s, page, d->room - d->npages, d, &node);
        n -= n % huge;
        if (n && (!d->nruns || node == d->node))
            take(p, s, d, page, n, node);
    }
}

/* Is the page after this one queued as well, and next to it in memory? */
static bool goes_on(struct ud_planner *p, const struct ud__session *s, uint32_t page)
{
    return ud__ledger_follows(s, page, p->page_size) && ud__in_use(s, page + 1) && ud__bit(s->queue, page + 1);
}

/* Does it go on a run that is queued, and was passed over? */
static bool inside(struct ud_planner *p, const struct ud__session *s, uint32_t page)
{
    return page && ud__bit(s->queue, page - 1) && ud__ledger_follows(s, page - 1, p->page_size);
}

/* How much of n queued pages to take. Of a run that does not fit no part of a huge page, which would cut it, but what lies before
 * the first one. A segment that is smaller than a huge page has to. */
static uint32_t uncut(struct ud_planner *p, const struct ud__session *s, const struct draft *d, uint32_t page, uint32_t n)
{
    uint32_t huge = huge_pages(p), past = (uint32_t)(ud__ledger_vaddr(s, page, p->page_size) / p->page_size % huge);
    uint32_t before = past ? huge - past : 0;
    if (d->room < huge)
        return n;
    if (inside(p, s, page))
        return 0;
    return n == d->room - d->npages && goes_on(p, s, page + n - 1) && before < n ? before : n;
}

/* Takes the runs of at least `least` pages, by address. */
static void take_runs(struct ud_planner *p, struct ud__session *s, struct draft *d, uint32_t least)
{
    for (uint32_t o = 0; o < s->order_count && s->queued; o++) {
        uint32_t block = s->order[o], page = block * UD_BLOCK_PAGES;
        for (uint32_t i = 0; i < UD_BLOCK_PAGES && s->queue[block] >> i;) {
            uint32_t room = d->room - d->npages;
            if (!room || d->nruns >= UD_MSG_MAX_RUNS)
                return;
            uint32_t node = 0, n = queued_run(p, s, page + i, room, d, &node), some = n ? uncut(p, s, d, page + i, n) : 0;
            if (some && (n >= least || n == room) && (!d->nruns || node == d->node))
                take(p, s, d, page + i, some, node);
            i += n ? n : 1;
        }
    }
}

static int by_page(const void *a, const void *b)
{
    const struct ud__run *x = a, *y = b;
    return x->page < y->page ? -1 : x->page > y->page;
}

/* What each slot will hold, by the ledger: where it says nothing, the segment is read (index_segment.c). */
static void note_promises(struct ud_planner *p, struct ud__session *s, struct ud__plan *plan)
{
    plan->digests = calloc(plan->npages, sizeof(*plan->digests));
    for (uint32_t i = 0; plan->digests && i < plan->nruns; i++) {
        const struct ud__run *run = &plan->runs[i];
        uint32_t slots = run->copies ? run->copies : run->n;
        for (uint32_t k = 0; k < slots; k++)
            if (!ud__digest_of(p, s, run->page + (run->copies ? 0 : k), &plan->digests[run->slot + k]))
                plan->digests[run->slot + k] = 0;
    }
}

static int finish(struct ud_planner *p, struct ud__session *s, struct draft *d, int64_t now, struct ud_plan_out *out)
{
    struct ud__plan *plan = ud__plan_new(p, s, UD_MSG_PUBLISH, d->nruns, now);
    if (!plan) {
        for (uint32_t i = 0; i < d->nruns; i++)
            ud__claim(s, d->runs[i].page, d->runs[i].n, false);
        ud__resolve(p, s, NULL, 0, now);
        return -ENOMEM;
    }
    memcpy(plan->runs, d->runs, d->nruns * sizeof(*d->runs));
    qsort(plan->runs, d->nruns, sizeof(*plan->runs), by_page);
    plan->nruns = d->nruns;
    plan->npages = d->npages;
    plan->node = d->msg->node = d->node;
    note_promises(p, s, plan);
    p->outstanding += d->npages;
    p->published_at = now;
    s->publishes++;
    uint32_t bytes = (uint32_t)(sizeof(*d->msg) + d->msg->nruns * sizeof(struct ud_run));
    d->msg->msg = (struct ud_msg){UD_WIRE_MAGIC, UD_MSG_PUBLISH, UD_WIRE_VERSION, bytes, plan->number};
    *out = (struct ud_plan_out){s->id, 0, bytes, plan->number};
    return 1;
}

/* How many pages may be outstanding now. The memory of the first publications is new to us, and nobody knows yet whether it
 * will be given back by merges; that of the next ones is what was merged, and warm. */
static uint64_t window(struct ud_planner *p, int64_t now)
{
    uint64_t most = p->conf.outstanding_pages, first = p->conf.first_pages ? p->conf.first_pages : most;
    if (p->window < first || (!p->outstanding && now - p->published_at > REST))
        p->window = first;
    return p->window = p->window < most ? p->window : most;
}

int ud__make_publish(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf)
{
    if (!s->queued || s->publishes >= MAX_PUBLISHES)
        return 0;
    uint64_t most = window(p, now), left = most > p->outstanding ? most - p->outstanding : 0;
    uint64_t whole = most < p->conf.segment_pages ? most : p->conf.segment_pages;
    if (!left || (p->outstanding && left < s->queued && left < whole / 2))
        return 0; /* soon there is room for a segment that is cut where it should be */
    struct draft d = {.msg = buf, .room = left < p->conf.segment_pages ? (uint32_t)left : p->conf.segment_pages};
    d.runs = malloc(UD_MSG_MAX_RUNS * sizeof(*d.runs));
    if (!d.runs)
        return -ENOMEM;
    memset(d.msg, 0, sizeof(*d.msg));
    ud__ledger_refresh(s);
    take_huge(p, s, &d);
    take_tiles(p, s, &d);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++)
        take_runs(p, s, &d, lengths[i]);
    int made = d.nruns ? finish(p, s, &d, now, out) : 0;
    if (d.dropped)
        ud__resolve(p, s, NULL, 0, now);
    free(d.runs);
    return made;
}
