/* plan_double.c: content that came into the store twice is brought together again.
 *
 * Two pairs of processes can find each other at the same moment and publish the same, each for itself. Whoever maps the
 * later copy is sent the earlier one, by a normal MERGE, so bytes decide here too; the later segment dies or is compacted.
 *
 * Guarantees: only runs of UD__SHORT_RUN pages and more, so no run is cut for it (a page or two are published again on
 * purpose, plan_match.c), and tiles are joined as wholes. Looked for only when segments have come since the last look.
 * Fails: what is refused stays where it is, until the next segment comes.
 */
#include <stdlib.h>
#include "index_int.h"

#define DOUBLES_MIN 64u    /* slots: below that it is not worth the work */
#define DOUBLES_SHARE 100u /* nor below one in so many */

struct homes { /* the first live slot of each content */
    size_t size;
    struct home {
        uint32_t gid, slot; /* gid 0: free */
    } *at;
};

struct stretch { /* a run of one session's pages that has a home elsewhere */
    uint32_t page, n, gid, slot;
};

struct joining {
    const struct homes *homes;
    struct stretch run;
    uint32_t pages;
};

/* The place of a content; its gid is 0 if no live slot holds it. */
static struct home *home_of(const struct ud_planner *p, const struct homes *h, uint64_t digest)
{
    size_t i = (size_t)(digest * 0x9e3779b97f4a7c15ull >> 20) % h->size;
    while (h->at[i].gid && p->segments[h->at[i].gid]->digests[h->at[i].slot] != digest)
        i = i + 1 == h->size ? 0 : i + 1;
    return &h->at[i];
}

/* Fills in the homes; how many live slots have theirs in another segment. */
static uint64_t find_homes(struct ud_planner *p, struct homes *h)
{
    uint64_t doubles = 0;
    for (uint32_t id = 1; id < p->segment_room; id++) {
        struct ud__segment *g = p->segments[id];
        for (uint32_t slot = 0; g && !g->retiring && slot < g->npages; slot++) {
            if (!ud__bit(g->map, slot))
                continue;
            struct home *home = home_of(p, h, g->digests[slot]);
            if (!home->gid)
                *home = (struct home){id, slot};
            doubles += home->gid != id;
        }
    }
    return doubles;
}

static void send_home(struct ud_planner *p, struct ud__session *s, struct joining *j)
{
    struct stretch *r = &j->run;
    if (r->n >= UD__SHORT_RUN && ud__ready(p, s, r->page, r->n, r->gid, r->slot) == 0) {
        ud__claim(s, r->page, r->n, true);
        j->pages += r->n;
    }
    r->n = 0;
}

/* Does the stretch go on in its home's next slot? Of a tile each slot is as good as the first. */
static bool next_slot(const struct ud_planner *p, const struct stretch *r, uint64_t digest)
{
    const struct ud__segment *home = p->segments[r->gid];
    return r->slot + r->n < home->npages && home->digests[r->slot + r->n] == digest;
}

static void join_page(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__segment *g, uint32_t slot, void *arg)
{
    struct joining *j = arg;
    struct stretch *r = &j->run;
    struct home *home = home_of(p, j->homes, g->digests[slot]);
    bool away = !g->retiring && home->gid && home->gid != g->id;
    bool goes_on = away && r->n && r->page + r->n == page && r->gid == home->gid && next_slot(p, r, g->digests[slot]) &&
                   ud__ledger_follows(s, page - 1, p->page_size);
    if (!goes_on)
        send_home(p, s, j);
    if (goes_on)
        r->n++;
    else if (away)
        *r = (struct stretch){page, 1, home->gid, home->slot};
}

uint32_t ud__join_doubles(struct ud_planner *p)
{
    struct homes homes = {1, NULL};
    struct joining j = {.homes = &homes};
    uint64_t live = 0;
    if (p->attached == p->joined)
        return 0;
    for (uint32_t id = 1; id < p->segment_room; id++) {
        struct ud__segment *g = p->segments[id];
        if (g && !g->counted)
            return 0; /* which of its slots live is not known yet */
        live += g ? g->used : 0;
    }
    homes.size = 2 * (size_t)live + 1;
    homes.at = ud__zeroed(homes.size * sizeof(*homes.at));
    if (!homes.at)
        return 0;
    p->joined = p->attached;
    uint64_t doubles = find_homes(p, &homes);
    for (uint32_t i = 1; doubles >= DOUBLES_MIN && doubles * DOUBLES_SHARE >= live && i < p->session_room; i++)
        if (p->sessions[i]) {
            ud__each_merged(p, p->sessions[i], join_page, &j);
            send_home(p, p->sessions[i], &j);
        }
    ud__unmap(homes.at, homes.size * sizeof(*homes.at));
    return j.pages;
}
