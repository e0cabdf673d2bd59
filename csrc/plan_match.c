/* plan_match.c: the pass over what changed in a ledger: look up, extend to runs, hand on.
 *
 * Guarantees: only blocks raised since the last look, or put off and due, are read. A match is
 * extended over neighbours whose digests are equal before anything is looked up again, so sharers
 * get long runs. Short runs wait until long ones had their chance: until all that was planned is done,
 * or for conf.short_delay.
 * Fails: what cannot be planned now is put off, never lost.
 */
#include <errno.h>
#include "index_int.h"

#define BUSY_AGAIN 100   /* ms until a page whose twin is itself on the move is looked at again */
#define BUDGET_AGAIN 5000 /* ms until short runs of a session without mappings to spare are */
#define LONG_RUN 64u     /* runs that are taken even then */
#define SHORT_SHARE 2    /* in fifths of the delay: so long a process must have been calm, even if nothing is planned */
#define PATIENCE 60      /* short runs wait so many delays at most, however busy their process is */
#define BUSY_PAGES 64u   /* written between two reports: their process is busy */
#define MIRRORS 4u       /* sessions whose page at the same address is asked before the index is */
#define TILE_SHARE 16u   /* a tile costs at most one page in so many of its row */

/* Is the page at `to` one that can be matched with, and equal? */
static bool twin(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__ref to)
{
    if (!ud__free_candidate(s, page))
        return false;
    uint64_t digest = ud__entry(s, page);
    if (to.stable) {
        struct ud__segment *g = ud__segment(p, to.id);
        return g && to.page < g->npages && g->digests[to.page] == digest;
    }
    struct ud__session *o = ud__session(p, to.id);
    uint64_t theirs;
    return ud__nominated(o, to.page, &theirs) && theirs == digest &&
           (!ud__bit(o->claim, to.page) || ud__bit(o->pub, to.page));
}

/* Within one session a page cannot be owner and waiter both: runs end where they would meet. */
static uint32_t limit(const struct ud__session *s, uint32_t page, struct ud__ref to)
{
    if (to.stable || to.id != s->id)
        return UD__MAX_EXTENT;
    return page > to.page ? page - to.page : to.page - page;
}

/* Is the page's content in the store already, or on its way there by another page? */
static bool stored(struct ud_planner *p, uint64_t digest, struct ud__ref *at)
{
    return ud__index_find(p, digest, at) && (at->stable || ud__bit(ud__session(p, at->id)->pub, at->page));
}

/* Would publishing on from here copy what the store has? A page or two that happen to be there are
 * published again, for a cut run costs more. */
static bool copies_store(struct ud_planner *p, struct ud__session *s, uint32_t page, const struct ud__session *o, uint32_t owner)
{
    struct ud__ref at;
    if (ud__bit(o->pub, owner) || !stored(p, ud__entry(s, page), &at) || (at.id == o->id && !at.stable && at.page == owner))
        return false;
    for (uint32_t k = 1; k < UD__SHORT_RUN; k++)
        if (!ud__ledger_follows(s, page + k - 1, p->page_size) ||
            !twin(p, s, page + k, (struct ud__ref){at.stable, at.id, at.page + k}))
            return false;
    return true;
}

static uint32_t extend(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__ref to)
{
    struct ud__session *o = to.stable ? NULL : ud__session(p, to.id);
    uint32_t most = limit(s, page, to), n = 1;
    while (n < most && ud__ledger_follows(s, page + n - 1, p->page_size) &&
           (!o || ud__ledger_follows(o, to.page + n - 1, p->page_size)) &&
           twin(p, s, page + n, (struct ud__ref){to.stable, to.id, to.page + n}) &&
           !(o && copies_store(p, s, page + n, o, to.page + n)))
        n++;
    return n;
}

/* Pages before the match that fit too; not across blocks, nor within one session. */
static uint32_t extend_back(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__ref to)
{
    uint32_t back = 0;
    if (!to.stable && to.id == s->id)
        return 0;
    while ((page - back) % UD_BLOCK_PAGES && to.page - back > 0 &&
           (to.stable || (to.page - back) % UD_BLOCK_PAGES) &&
           twin(p, s, page - back - 1, (struct ud__ref){to.stable, to.id, to.page - back - 1}))
        back++;
    return back;
}

/* The shortest run a process takes. Each run on its way may cost two mappings. Asking for what will be refused costs a hold
 * and gains nothing. */
static uint32_t price(const struct ud__session *s)
{
    uint32_t budget = s->header->vmas_budget;
    int64_t planned = (int64_t)s->pub_runs + s->waiting_runs + s->sent_runs + (s->move_count - s->move_next);
    int64_t left = (int64_t)budget - s->header->vmas_used - 2 * planned;
    return budget ? ud_shortest_run(budget, left) : 1;
}

/* When short runs may be taken of s, if nothing else is on its way then. */
static int64_t calm_at(const struct ud_planner *p, const struct ud__session *s)
{
    return s->busy_at + p->conf.short_delay * SHORT_SHARE / 5;
}

static bool calm(const struct ud_planner *p, const struct ud__session *s, int64_t now)
{
    return p->done_at >= calm_at(p, s) || now - s->busy_at >= p->conf.short_delay;
}

/* May a run of n be taken now? If not, it is put off. A process that is still growing would get its short
 * runs piecemeal, each a mapping of its own, where a little later one long run will do. */
static bool worth(struct ud_planner *p, struct ud__session *s, struct ud__session *o, uint32_t page, uint32_t n, int64_t now)
{
    if (n < p->conf.min_run)
        return false;
    if (n >= LONG_RUN)
        return true;
    if (n < price(s) || (o && n < price(o))) {
        s->left_vmas += n;
        ud__put_off(s, page, now + BUDGET_AGAIN, false);
        return false;
    }
    if (calm(p, s, now) && (!o || calm(p, o, now)))
        return true;
    if (!s->short_since)
        s->short_since = now;
    int64_t delay = p->conf.short_delay, then = calm_at(p, s), soon = now + delay / 5;
    if (now - s->short_since >= PATIENCE * delay)
        return true;
    ud__put_off(s, page, then > soon ? then : soon, true);
    return false;
}

static uint32_t match_stable(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__ref to, int64_t now)
{
    uint32_t n = extend(p, s, page, to), back = extend_back(p, s, page, to);
    if (!worth(p, s, NULL, page, n + back, now))
        return n;
    if (ud__ready(p, s, page - back, n + back, to.id, to.page - back) == 0)
        ud__claim(s, page - back, n + back, true);
    return n;
}

static bool any_claimed(const struct ud__session *s, uint32_t page, uint32_t n)
{
    for (uint32_t i = page; i < page + n; i++)
        if (ud__bit(s->claim, i))
            return true;
    return false;
}

/* One page run of s waits for o's, or the other way round: of a run that fills segments each publishes a share, so that
 * neither keeps everybody waiting. Shorter runs stay together, in one owner's address order. */
static int pair_up(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__session *o, uint32_t theirs, uint32_t n)
{
    struct ud__wait wait = {s->id, page, theirs, n, false};
    if (n > p->conf.segment_pages / 2 && o != s && s->queued + n <= o->queued && !any_claimed(o, theirs, n)) {
        struct ud__session *other = s;
        wait = (struct ud__wait){o->id, theirs, page, n, false};
        s = o;
        o = other;
    }
    if (ud__wait_for(p, o, wait))
        return -ENOMEM;
    ud__claim(s, wait.page, n, true);
    ud__queue(p, o, wait.owner, n);
    return 0;
}

static uint32_t match_pair(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__ref to, int64_t now)
{
    struct ud__session *o = ud__session(p, to.id);
    struct ud__ref self = {false, s->id, page};
    if (to.id == s->id && to.page == page)
        return 1;
    if (o->mute_until > now && o != s) {
        ud__put_off(o, to.page, o->mute_until, false);
        ud__index_put(p, ud__entry(s, page), self); /* it does not publish: the other way round */
        return 1;
    }
    if (!twin(p, s, page, to)) { /* its twin waits for somebody else's page, which we shall meet in the store */
        ud__put_off(s, page, now + BUSY_AGAIN, true);
        return 1;
    }
    uint32_t n = extend(p, s, page, to), back = extend_back(p, s, page, to);
    struct ud__session *asked = ud__bit(o->pub, to.page) ? NULL : o; /* what is on its way to the store costs its owner no more */
    if (s->mute_until > now || !worth(p, s, asked, page, n + back, now))
        return n;
    for (uint32_t from = 0, part; from < n + back; from += part) {
        part = n + back - from;
        if (part > p->conf.segment_pages)
            part = ud__whole_huge(p, ud__ledger_vaddr(s, page - back + from, p->page_size), p->conf.segment_pages);
        if (pair_up(p, s, page - back + from, o, to.page - back + from, part)) {
            ud__put_off(s, page, now + BUSY_AGAIN, true);
            return n;
        }
    }
    return n;
}

/* ---- rows of one page repeated -------------------------------------------------------------------- */

static uint32_t row_length(struct ud_planner *p, struct ud__session *s, uint32_t page)
{
    uint64_t digest = ud__entry(s, page);
    uint32_t n = 1;
    while (n < UD__MAX_EXTENT && ud__ledger_follows(s, page + n - 1, p->page_size) && ud__free_candidate(s, page + n) &&
           ud__entry(s, page + n) == digest)
        n++;
    return n;
}

/* How long the row will be once pages that hold the same, but are too young to be candidates, have aged:
 * a tile made for its beginning would be too narrow for the rest. */
static uint32_t row_to_come(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n)
{
    uint64_t digest = ud__entry(s, page);
    while (n < UD__MAX_EXTENT && ud__ledger_follows(s, page + n - 1, p->page_size) && ud__in_use(s, page + n) &&
           ud__entry(s, page + n) == digest && ud__state(s, page + n) != UD_PG_MERGED)
        n++;
    return n;
}

static uint32_t tile_width(struct ud_planner *p, struct ud__ref to, uint32_t most)
{
    struct ud__segment *g = ud__segment(p, to.id);
    uint32_t n = 1;
    while (n < most && to.page + n < g->npages && g->digests[to.page + n] == g->digests[to.page])
        n++;
    return n;
}

static void lay_tile(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n, struct ud__ref to, uint32_t width)
{
    for (uint32_t k = 0; k < n; k += width) {
        uint32_t part = n - k < width ? n - k : width;
        if (ud__ready(p, s, page + k, part, to.id, to.page) == 0)
            ud__claim(s, page + k, part, true);
    }
}

static void publish_row(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n, uint32_t copies, int64_t now)
{
    struct ud__wait wait = {s->id, page, page, n, true};
    if (s->mute_until > now || ud__wait_for(p, s, wait)) {
        ud__put_off(s, page, now + BUSY_AGAIN, false);
        return;
    }
    if (ud__queue_tile(p, s, page, copies)) {
        s->wait_count--;
        s->waiting_runs--;
        p->wait_total--;
        return;
    }
    ud__claim(s, page, n, true);
    ud__index_put(p, ud__entry(s, page), (struct ud__ref){false, s->id, page});
}

static void match_row(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n, int64_t now)
{
    struct ud__ref to;
    uint32_t copies = row_to_come(p, s, page, n) / TILE_SHARE;
    if (copies > p->conf.max_page_sharing)
        copies = p->conf.max_page_sharing;
    if (copies > p->conf.segment_pages)
        copies = p->conf.segment_pages;
    bool found = ud__index_find(p, ud__entry(s, page), &to);
    if (found && to.stable) {
        uint32_t width = tile_width(p, to, p->conf.max_page_sharing);
        if (width * 4 >= copies) {
            lay_tile(p, s, page, n, to, width);
            return;
        }
    } else if (found) {
        struct ud__session *o = ud__session(p, to.id);
        bool coming = ud__bit(o->pub, to.page) && !ud__bit(o->queue, to.page);
        if (coming && ud__wait_for(p, o, (struct ud__wait){s->id, page, to.page, n, true}) == 0) {
            ud__claim(s, page, n, true);
            return;
        }
        if (ud__bit(o->claim, to.page)) {
            ud__put_off(s, page, now + BUSY_AGAIN, true);
            return;
        }
    }
    publish_row(p, s, page, n, copies, now);
}

/* ---- the pass ---------------------------------------------------------------------------------------- */

/* Blocks of other sessions at the address of the block at hand. In a pool of one layout what lies there is
 * mostly the same, and matching with it gives the longest runs; the index knows only one place of many. */
struct mirrors {
    uint32_t n;
    struct {
        struct ud__session *session;
        uint32_t page;
    } at[MIRRORS];
};

static void add_mirror(struct mirrors *m, struct ud__session *o, uint64_t vaddr)
{
    uint32_t block = ud__ledger_at(o, vaddr);
    if (block == UD__NONE || !ud__in_use(o, block * UD_BLOCK_PAGES))
        return;
    m->at[m->n].session = o;
    m->at[m->n++].page = block * UD_BLOCK_PAGES;
}

static struct mirrors find_mirrors(struct ud_planner *p, struct ud__session *s, uint32_t block)
{
    struct mirrors m = {0};
    uint64_t vaddr = ud__ledger_vaddr(s, block * UD_BLOCK_PAGES, p->page_size);
    struct ud__session *hint = ud__session(p, s->hint);
    if (vaddr && hint && hint != s)
        add_mirror(&m, hint, vaddr);
    for (uint32_t i = 1; vaddr && i < p->session_room && m.n < MIRRORS; i++)
        if (p->sessions[i] && p->sessions[i] != s && p->sessions[i] != hint)
            add_mirror(&m, p->sessions[i], vaddr);
    return m;
}

/* What a mirror maps from the store at our page's place, or where its equal page is; false if neither. */
static bool by_address(struct ud_planner *p, struct ud__session *s, uint32_t page, const struct mirrors *m, bool stable,
                       struct ud__ref *to)
{
    uint64_t digest = ud__entry(s, page);
    for (uint32_t i = 0; i < m->n; i++) {
        struct ud__session *o = m->at[i].session;
        uint32_t q = m->at[i].page + page % UD_BLOCK_PAGES;
        uint64_t entry = ud__entry(o, q);
        if (ud__state(o, q) != (stable ? UD_PG_MERGED : UD_PG_STABLE))
            continue;
        *to = stable ? (struct ud__ref){true, ud_planner_find(p, UD_REF_SEGMENT(entry)), UD_REF_SLOT(entry)}
                     : (struct ud__ref){false, o->id, q};
        struct ud__segment *g = stable ? ud__segment(p, to->id) : NULL;
        bool equal = stable ? g && !g->retiring && to->page < g->npages && g->digests[to->page] == digest
                            : entry == digest && o->mute_until <= p->now && twin(p, s, page, *to);
        if (equal) {
            s->hint = o->id;
            return true;
        }
    }
    return false;
}

/* The store first, then what is on its way there, then a page at the same address, then any. */
static bool find_twin(struct ud_planner *p, struct ud__session *s, uint32_t page, const struct mirrors *m, struct ud__ref *to)
{
    struct ud__ref mirror;
    if (by_address(p, s, page, m, true, to))
        return true;
    bool known = ud__index_find(p, ud__entry(s, page), to);
    if (known && (to->stable || ud__bit(ud__session(p, to->id)->pub, to->page)))
        return true;
    if (!by_address(p, s, page, m, false, &mirror))
        return known;
    *to = mirror;
    return true;
}

/* Pages dealt with from `page` on. */
static uint32_t match(struct ud_planner *p, struct ud__session *s, uint32_t page, const struct mirrors *m, int64_t now)
{
    struct ud__ref to;
    uint32_t n = row_length(p, s, page);
    if (n >= UD__TILE_ROW) {
        match_row(p, s, page, n, now);
        return n;
    }
    uint64_t digest = ud__entry(s, page);
    if (!find_twin(p, s, page, m, &to)) {
        ud__index_put(p, digest, (struct ud__ref){false, s->id, page});
        return 1;
    }
    return to.stable ? match_stable(p, s, page, to, now) : match_pair(p, s, page, to, now);
}

/* Pages in front of a block that a match in an earlier one has dealt with already. */
struct skip {
    uint32_t from, to;
};

static void scan_block(struct ud_planner *p, struct ud__session *s, uint32_t block, struct skip *skip, int64_t now)
{
    uint32_t page = block * UD_BLOCK_PAGES, end = page + UD_BLOCK_PAGES;
    if (page >= skip->from && page < skip->to)
        page = skip->to < end ? skip->to : end;
    for (uint32_t i = page; i < end && s->shy[block]; i++)
        if (ud__state(s, i) == UD_PG_VOLATILE)
            s->shy[block] &= ~(1ull << i % 64); /* it holds something else now */
    while (page < end && !ud__free_candidate(s, page))
        page++;
    struct mirrors mirrors = {0};
    if (page < end)
        mirrors = find_mirrors(p, s, block);
    while (page < end)
        page += ud__free_candidate(s, page) ? match(p, s, page, &mirrors, now) : 1;
    if (page > end)
        *skip = (struct skip){end, page};
}

static bool is_due(struct ud__session *s, uint32_t block)
{
    uint64_t bit = 1ull << block % 64;
    if (!(s->again[block / 64] & bit))
        return false;
    s->again[block / 64] &= ~bit;
    s->again_count--;
    return true;
}

static uint64_t pending(const struct ud_planner *p)
{
    return p->move_total + p->wait_total + p->queued;
}

int ud_planner_scan(struct ud_planner *p, uint32_t sid, uint32_t written, int64_t now)
{
    struct ud__session *s = ud__session(p, sid);
    if (!s)
        return -ENOENT;
    if (p->conf.run != 1)
        return 0;
    uint64_t before = pending(p);
    p->now = now;
    if (!before && !p->plan_count)
        p->done_at = now;
    if (written >= BUSY_PAGES)
        s->busy_at = now;
    if (ud__scan_waits(p, s, now))
        return 0;
    uint32_t gen = __atomic_load_n(&s->header->gen, __ATOMIC_ACQUIRE);
    struct skip skip = {0, 0};
    ud__ledger_refresh(s);
    ud__grow_bold(s, now);
    bool due = s->again_count && s->again_at <= now, all = s->fresh;
    if (due) {
        s->again_at = INT64_MAX;
        s->again_open = false;
        s->left_vmas = 0;
    }
    for (uint32_t o = 0; o < s->order_count; o++) {
        uint32_t block = s->order[o];
        uint32_t raised = __atomic_load_n(&s->heads[block].gen, __ATOMIC_ACQUIRE);
        if ((due && is_due(s, block)) || all || (int32_t)(raised - s->seen_gen) >= 0)
            scan_block(p, s, block, &skip, now);
    }
    s->seen_gen = gen;
    s->fresh = false;
    if (!s->again_count) /* put off in this very scan, by another page's match, before its block was come to */
        s->again_open = false;
    if (!s->again_open)
        s->short_since = 0;
    uint64_t after = pending(p);
    return after > before ? (int)(after - before > INT32_MAX ? INT32_MAX : after - before) : 0;
}
