/* plan_count.c: KSM's counters, counted anew from the ledgers, and what the count is good for:
 * segments nobody maps, and segments so empty that their rest is moved.
 *
 * Guarantees: a slot is counted as shared once, in whichever session it is met first, and every
 * other use of it as sharing; so the sums of the sessions are the sums of the domain.
 * Fails: never; an entry that names an unknown slot is counted as lost.
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include "index_int.h"

#define GRACE 2000 /* ms: a segment that young is not called idle: its users may still be on their way */

struct known {
    uint64_t name;
    struct ud__segment *segment;
};

struct census {
    struct known *known;
    uint32_t count;
    const struct known *last;
};

static int by_name(const void *a, const void *b)
{
    const struct known *x = a, *y = b;
    return x->name < y->name ? -1 : x->name > y->name;
}

static struct census begin(struct ud_planner *p)
{
    struct census c = {.known = malloc(((size_t)p->segment_room + 1) * sizeof(*c.known))};
    for (uint32_t i = 1; c.known && i < p->segment_room; i++)
        if (p->segments[i])
            c.known[c.count++] = (struct known){p->segments[i]->name, p->segments[i]};
    if (c.count)
        qsort(c.known, c.count, sizeof(*c.known), by_name);
    return c;
}

static struct ud__segment *look_up(struct census *c, uint64_t name)
{
    if (!c->last || c->last->name != name) {
        struct known key = {.name = name};
        c->last = c->count ? bsearch(&key, c->known, c->count, sizeof(key), by_name) : NULL;
    }
    return c->last ? c->last->segment : NULL;
}

static void count_merged(struct census *c, struct ud_plan_counts *n, uint64_t entry)
{
    struct ud__segment *g = look_up(c, UD_REF_SEGMENT(entry));
    uint32_t slot = UD_REF_SLOT(entry);
    if (!g || slot >= g->npages) {
        n->lost++;
        return;
    }
    n->merged++;
    if (ud__bit(g->map, slot)) {
        n->sharing++;
        return;
    }
    g->map[slot / 64] |= 1ull << slot % 64;
    g->used++;
    n->shared++;
}

static void count_session(struct census *c, struct ud__session *s)
{
    struct ud_plan_counts n = {0};
    uint32_t by_state[8] = {0};
    ud__ledger_refresh(s);
    for (uint32_t block = 0; block < s->count; block++) {
        if (!s->heads[block].vaddr)
            continue;
        for (uint32_t page = block * UD_BLOCK_PAGES; page < (block + 1) * UD_BLOCK_PAGES; page++) {
            uint8_t state = ud__state(s, page);
            by_state[state]++;
            if (state == UD_PG_MERGED)
                count_merged(c, &n, ud__entry(s, page));
            else if (state == UD_PG_STABLE)
                n.waiting += ud__bit(s->claim, page);
        }
    }
    n.left_vmas = s->left_vmas;
    n.pages_volatile = by_state[UD_PG_VOLATILE];
    n.unshared = by_state[UD_PG_STABLE] > n.waiting ? by_state[UD_PG_STABLE] - n.waiting : 0;
    n.zero = by_state[UD_PG_ZERO];
    n.fork_shared = by_state[UD_PG_SHARED];
    n.refused = by_state[UD_PG_REFUSED];
    for (int i = UD_PG_VOLATILE; i <= UD_PG_REFUSED; i++)
        n.tracked += by_state[i];
    s->counts = n;
}

static void add(struct ud_plan_counts *sum, const struct ud_plan_counts *n)
{
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)n;
    for (size_t i = 0; i < sizeof(*sum) / sizeof(*to); i++)
        to[i] += from[i];
}

static void count_segment(struct ud__segment *g, struct ud_plan_store *store)
{
    g->counted = true;
    store->segments++;
    store->slots += g->npages;
    store->used += g->used;
    store->metadata_bytes += sizeof(*g) + (size_t)g->npages * 8 + (g->npages / 64 + 1) * 8 + 3 * 16;
    for (uint32_t i = 1; i < g->npages; i++)
        store->tile_slots += g->digests[i] == g->digests[i - 1] && ud__bit(g->map, i);
}

static void count_session_memory(const struct ud__session *s, struct ud_plan_store *store)
{
    /* Sparse maps: what lies behind the blocks in use was never touched. */
    store->metadata_bytes += sizeof(*s) + (size_t)s->count * (4 * 8 + 4) + s->count / 8 + s->wait_room * sizeof(*s->waits) +
                             s->move_room * sizeof(*s->moves);
    store->waiting_runs += s->wait_count;
    store->ready_runs += s->move_count - s->move_next;
    store->again_blocks += s->again_count;
}

void ud_planner_count(struct ud_planner *p, struct ud_plan_counts *sum, struct ud_plan_store *store)
{
    struct census c = begin(p);
    memset(sum, 0, sizeof(*sum));
    memset(store, 0, sizeof(*store));
    for (uint32_t i = 0; i < c.count; i++) {
        struct ud__segment *g = c.known[i].segment;
        memset(g->map, 0, (size_t)(g->npages / 64 + 1) * 8);
        g->used = 0;
    }
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i]) {
            count_session(&c, p->sessions[i]);
            count_session_memory(p->sessions[i], store);
            add(sum, &p->sessions[i]->counts);
        }
    for (uint32_t i = 0; i < c.count; i++)
        count_segment(c.known[i].segment, store);
    store->dead = store->slots - store->used;
    store->metadata_bytes += p->table.size * 8 + p->plan_room * sizeof(*p->plans);
    store->queued_pages = p->queued;
    store->plans = p->plan_count;
    store->outstanding_pages = p->outstanding;
    free(c.known);
}

int ud_planner_session_counts(struct ud_planner *p, uint32_t sid, struct ud_plan_counts *out)
{
    struct ud__session *s = ud__session(p, sid);
    if (!s)
        return -ENOENT;
    *out = s->counts;
    return 0;
}

int ud_planner_idle(struct ud_planner *p, int64_t now, uint32_t *gids, int cap)
{
    int n = 0;
    for (uint32_t i = 1; n < cap && i < p->segment_room; i++) {
        struct ud__segment *g = p->segments[i];
        if (g && g->counted && !g->used && !g->plans && now - g->since >= GRACE)
            gids[n++] = i;
    }
    return n;
}
