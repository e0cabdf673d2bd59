/* plan_compact.c: tidies the store. A segment that is mostly dead, or at whose slots many runs are cut, is
 * emptied: one user of each slot publishes it anew, in its address order, and the others follow.
 *
 *   page state MERGED, segment retiring  ->  queued with its owner, or waiting for it (plan_wait.c)
 *   a slot with one user                 ->  plain memory again (UNMERGE), unless it lies in a run
 *   what could not be moved the first time ->  plain memory again
 *
 * Guarantees: content is carried by the normal plans, so it is compared like any other; a segment is
 * freed when nothing maps it. Memory used twice meanwhile is bounded by the caller.
 * Fails: what could not be moved stays where it is; a segment is tried TRIES times, then left in peace.
 */
#include <errno.h>
#include <stdlib.h>
#include "index_int.h"

#define TRIES 3u
#define REST 60000       /* ms for which a segment that could not be emptied is left */
#define TIDY_EVERY 10000 /* ms between two mendings of cut runs */
#define LOOK_EVERY 3000  /* ms between two looks for cut runs */
#define CALM 2000        /* ms without much change before runs are mended */
#define FEW_BREAKS 128u
#define CUT_EVERY 32u    /* pages: segments less cut up than that are left as they are */
#define COST_PART 20u    /* cuts are mended when they cost so big a part of what is saved, in the kernel's memory */
#define VMAS_PART 2u     /* or when merging has used so big a part of a program's mappings */
#define DEAD_MIN 64u     /* slots: below that, dead ones are not worth the work */
#define DEAD_PART 20u    /* segments above dead_percent are emptied once so big a part of that is dead in all of the store */

/* What a merged page maps, if it is in no plan; NULL if it is not merged, or busy. */
static struct ud__segment *used_by(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t *slot)
{
    if (!ud__in_use(s, page) || ud__state(s, page) != UD_PG_MERGED || ud__bit(s->claim, page))
        return NULL;
    uint64_t entry = ud__entry(s, page);
    struct ud__segment *g = ud__segment(p, ud_planner_find(p, UD_REF_SEGMENT(entry)));
    *slot = UD_REF_SLOT(entry);
    return g && *slot < g->npages ? g : NULL;
}

void ud__each_merged(struct ud_planner *p, struct ud__session *s, ud__visit see, void *arg)
{
    uint32_t slot;
    ud__ledger_refresh(s);
    for (uint32_t o = 0; o < s->order_count; o++)
        for (uint32_t page = s->order[o] * UD_BLOCK_PAGES, i = 0; i < UD_BLOCK_PAGES; i++, page++) {
            struct ud__segment *g = used_by(p, s, page, &slot);
            if (g)
                see(p, s, page, g, slot, arg);
        }
}

/* ---- where runs are cut ------------------------------------------------------------------------------- */

struct joint {
    uint64_t vaddr; /* behind the last page seen */
    struct ud__segment *g;
    uint32_t slot;
    uint64_t pages, runs, breaks;
};

static void count_break(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__segment *g, uint32_t slot,
                        void *arg)
{
    struct joint *j = arg;
    uint64_t vaddr = ud__ledger_vaddr(s, page, p->page_size);
    bool follows = j->g && vaddr == j->vaddr;
    bool joined = follows && j->g == g && j->slot + 1 == slot;
    /* A tile's end is no cut that could be mended. */
    bool wraps = follows && !joined && j->g->digests[j->slot] == g->digests[slot];
    j->pages++;
    j->runs += !joined;
    if (follows && !joined && !wraps) {
        j->breaks++;
        j->g->breaks++;
        g->breaks++;
    }
    j->g = g;
    j->slot = slot;
    j->vaddr = vaddr + p->page_size;
}

/* To mend is to publish and to merge anew. A cut that is left costs a mapping, and little else. */
static bool cuts_are_dear(const struct ud_planner *p, const struct joint *total)
{
    if (total->breaks * UD_VMA_BYTES * COST_PART > total->pages * p->page_size)
        return true;
    for (uint32_t i = 1; i < p->session_room; i++) {
        const struct ud_ledger_header *h = p->sessions[i] ? p->sessions[i]->header : NULL;
        if (h && h->vmas_budget && (uint64_t)h->vmas_used * VMAS_PART > h->vmas_budget)
            return true;
    }
    return false;
}

static bool worth_mending(struct ud_planner *p, int64_t now)
{
    struct joint total = {0};
    if ((p->tidied_at && now - p->tidied_at < TIDY_EVERY) || (p->looked_at && now - p->looked_at < LOOK_EVERY))
        return false;
    for (uint32_t i = 1; i < p->session_room; i++) {
        struct ud__session *s = p->sessions[i];
        if (s && now - s->busy_at < CALM)
            return false;
    }
    p->looked_at = now;
    for (uint32_t i = 1; i < p->session_room; i++) {
        struct joint j = {0};
        if (!p->sessions[i])
            continue;
        ud__each_merged(p, p->sessions[i], count_break, &j);
        total.pages += j.pages;
        total.runs += j.runs;
        total.breaks += j.breaks;
    }
    if (p->tidied_at && !p->breaks_left)
        p->breaks_left = total.breaks + 1; /* the first look after a mending: what it left */
    return total.breaks > FEW_BREAKS && total.breaks * 3 > total.runs && total.breaks > 2 * p->breaks_left &&
           cuts_are_dear(p, &total);
}

/* ---- which segments are emptied ------------------------------------------------------------------------ */

static bool mostly_dead(const struct ud_planner *p, const struct ud__segment *g)
{
    return (uint64_t)(g->npages - g->used) * 100 > (uint64_t)g->npages * p->conf.dead_percent;
}

static bool too_much_dead(struct ud_planner *p)
{
    uint64_t slots = 0, used = 0;
    for (uint32_t i = 1; i < p->segment_room; i++)
        if (p->segments[i]) {
            slots += p->segments[i]->npages;
            used += p->segments[i]->used;
        }
    return p->conf.dead_percent && slots - used >= DEAD_MIN && (slots - used) * 100 * DEAD_PART > slots * p->conf.dead_percent;
}

static bool retire(struct ud__segment *g, uint64_t *most, int64_t now)
{
    if (g->plans || !g->counted || !g->used || now < g->rest_until || g->used > *most)
        return false;
    g->movers = calloc(g->npages, sizeof(*g->movers));
    if (!g->movers)
        return false;
    if (++g->tries > TRIES) {
        g->tries = 0;
        g->rest_until = now + REST;
        g->retiring = false;
        free(g->movers);
        g->movers = NULL;
        return false;
    }
    *most -= g->used;
    g->retiring = true;
    return true;
}

static int choose(struct ud_planner *p, uint64_t most, bool dead, bool mend, int64_t now)
{
    int chosen = 0;
    for (uint32_t i = 1; i < p->segment_room; i++) {
        struct ud__segment *g = p->segments[i];
        if (g && (g->retiring || (dead && mostly_dead(p, g)) || (mend && g->breaks * CUT_EVERY >= g->used)))
            chosen += retire(g, &most, now);
    }
    return chosen;
}

/* ---- who carries what ------------------------------------------------------------------------------------ */

static void count_user(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__segment *g, uint32_t slot,
                       void *arg)
{
    (void)p, (void)s, (void)page, (void)arg;
    if (g->movers)
        g->movers[slot].users++;
}

static void give_back(struct ud_planner *p, struct ud__session *s, uint32_t page)
{
    struct ud__run *last = s->back_count ? &s->backs[s->back_count - 1] : NULL;
    if (last && last->page + last->n == page && ud__ledger_follows(s, page - 1, p->page_size)) {
        last->n++;
    } else {
        if (ud__grow((void **)&s->backs, &s->back_room, s->back_count + 1, sizeof(*s->backs)))
            return;
        s->backs[s->back_count++] = (struct ud__run){page, 1, 0, 0};
        p->move_total++;
    }
    ud__claim(s, page, 1, true);
}

static void follow(struct ud_planner *p, struct ud__session *s, uint32_t page, const struct ud__mover *m)
{
    struct ud__session *owner = ud__session(p, m->sid);
    struct ud__wait *last = owner->wait_count ? &owner->waits[owner->wait_count - 1] : NULL;
    bool one_more = last && !last->row && last->sid == s->id && last->page + last->n == page &&
                    last->owner + last->n == m->page && ud__ledger_follows(s, page - 1, p->page_size);
    if (one_more)
        last->n++;
    else if (ud__wait_for(p, owner, (struct ud__wait){s->id, page, m->page, 1, false}))
        return;
    ud__claim(s, page, 1, true);
}

/* Slots of one content in several segments: the first that is met carries it for all. */
struct heirs {
    size_t size;
    struct heir {
        uint64_t digest;
        struct ud__mover *m;
    } *at;
};

struct assigning {
    struct joint before;
    struct heirs *heirs;
};

/* The place of a digest in the table; its m is NULL if it is new. */
static struct heir *heir_of(struct heirs *h, uint64_t digest)
{
    size_t i = (size_t)(digest * 0x9e3779b97f4a7c15ull >> 20) % h->size;
    while (h->at[i].m && h->at[i].digest != digest)
        i = i + 1 == h->size ? 0 : i + 1;
    return &h->at[i];
}

static void assign(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__segment *g, uint32_t slot, void *arg)
{
    struct assigning *a = arg;
    struct joint *before = &a->before;
    uint64_t vaddr = ud__ledger_vaddr(s, page, p->page_size);
    struct ud__mover *m = g->movers ? &g->movers[slot] : NULL;
    if (!m || !vaddr)
        return;
    struct heir *heir = a->heirs->at ? heir_of(a->heirs, g->digests[slot]) : NULL;
    if (!m->sid && heir && heir->m && heir->m->sid != s->id)
        *m = *heir->m;
    if (m->sid) {
        follow(p, s, page, m);
        return;
    }
    bool in_run = before->vaddr == vaddr;
    if ((m->users == 1 && !in_run) || g->tries > 1) {
        give_back(p, s, page);
        return;
    }
    m->sid = s->id;
    m->page = page;
    if (heir && !heir->m)
        *heir = (struct heir){g->digests[slot], m};
    ud__queue(p, s, page, 1);
    before->vaddr = vaddr + p->page_size;
}

static void assign_all(struct ud_planner *p)
{
    struct ud__session *first = NULL;
    struct heirs heirs = {1, NULL};
    for (uint32_t i = 1; i < p->segment_room; i++)
        heirs.size += p->segments[i] && p->segments[i]->movers ? 2 * (size_t)p->segments[i]->npages : 0;
    heirs.at = ud__zeroed(heirs.size * sizeof(*heirs.at));
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i]) {
            ud__each_merged(p, p->sessions[i], count_user, NULL);
            if (!first || p->sessions[i]->counts.merged > first->counts.merged)
                first = p->sessions[i];
        }
    /* Who has most leads: its address order is the store's order. */
    for (uint32_t i = 0; first && i < p->session_room; i++) {
        struct ud__session *s = i ? p->sessions[i] : first;
        struct assigning a = {.heirs = &heirs};
        if (s && (i == 0 || s != first))
            ud__each_merged(p, s, assign, &a);
    }
    ud__unmap(heirs.at, heirs.size * sizeof(*heirs.at));
}

int ud_planner_compact(struct ud_planner *p, uint64_t most, int64_t now)
{
    if (p->conf.run != 1 || p->queued || p->wait_total || p->move_total || p->plan_count)
        return 0;
    if (ud__join_doubles(p))
        return 0;
    for (uint32_t i = 1; i < p->segment_room; i++)
        if (p->segments[i])
            p->segments[i]->breaks = 0;
    bool mend = worth_mending(p, now), dead = too_much_dead(p);
    int chosen = choose(p, most, dead, mend, now);
    if (mend) {
        p->tidied_at = now;
        p->breaks_left = 0;
    }
    if (chosen)
        assign_all(p);
    for (uint32_t i = 1; i < p->segment_room; i++)
        if (p->segments[i]) {
            free(p->segments[i]->movers);
            p->segments[i]->movers = NULL;
        }
    return chosen;
}
