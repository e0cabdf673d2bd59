/* hot.c: pages that are written all the time are let be.
 *
 *   0 1 2   how often a page was found written since it last kept still for a pass
 *   3       left: never armed, so its writer takes no fault, and never read. Looked at again every 16 s,
 *           when somebody waits in settle, and when the program has stopped growing
 *
 * Guarantees: a page that is left is VOLATILE, so it is never nominated; one that was written is either left or armed
 * before it is digested, as in track.c. The state is kept in spare bits of ledger entries: no memory of its own.
 * Fails: a page that calms down is found so up to 17 s later.
 */
#include "pass.h"

#define PEEK 512u
#define SLOTS 16u /* blocks take turns in being looked at again, one slot a second */

static struct ud__range peeked[PEEK];

void ud__hot_begin(void)
{
    struct ud__pass *p = &ud__pass;
    uint64_t now = p->began_us >> 20, gone = now - p->hot_second;
    p->due = gone >= SLOTS || (gone && ud__a.kicked) || p->grown == UD__GROWN_LOOK ? 0xffff : 0;
    p->grown = p->grown ? UD__GROWN_LOOKED : 0;
    for (uint64_t s = p->hot_second + 1; !p->due && s <= now; s++)
        p->due |= (uint16_t)(1u << s % SLOTS);
    p->hot_second = now;
}

static int due(uint64_t page) { return ud__pass.due >> (page / ud__block_bytes() % SLOTS) & 1; }

int ud__hot_left(uint8_t state, uint64_t page)
{
    return (state & UD_PG_MASK) == UD_PG_VOLATILE && ud__hotness(state) == UD__HOT_LEFT && !due(page);
}

/* How far pages from `from` on have the same answer to: is it left? The end of that stretch. */
static uint64_t same_answer(uint64_t from, uint64_t end, int *left)
{
    struct ud__ledger *l = &ud__a.ledger;
    int64_t block = ud__ledger_block(l, from, 0);
    uint64_t base = from - from % ud__block_bytes(), stop = base + ud__block_bytes() < end ? base + ud__block_bytes() : end;
    *left = 0;
    if (block < 0 || due(from))
        return stop;
    uint8_t *state = l->states + (size_t)block * UD_BLOCK_PAGES;
    for (uint64_t page = from; page < stop; page += ud__page) {
        uint8_t *s = &state[(page - base) >> ud__page_shift];
        int hot = (*s & UD_PG_MASK) == UD_PG_VOLATILE && ud__hotness(*s) >= UD__HOT_LEFT - 1;
        if (page != from && hot != *left)
            return page;
        *left = hot;
        if (hot) {
            *s |= UD__HOT_LEFT << UD__HOT_SHIFT;
            l->hdr->pages_skipped++;
        }
    }
    return stop;
}

struct gather {
    struct ud__range *out;
    size_t cap, found;
    uint64_t lo, hi; /* to be armed next */
};

/* Arms what was gathered. 0 when all of it is told, 1 when there is no room for more, -errno. */
static long arm(struct gather *g)
{
    while (g->lo < g->hi) {
        if (g->found == g->cap)
            return 1;
        long n = ud__track_written(&g->lo, g->hi, g->out + g->found, g->cap - g->found, 0);
        if (n < 0)
            return n;
        g->found += (size_t)n;
    }
    g->lo = g->hi = 0;
    return 0;
}

static long gather_range(struct gather *g, const struct ud__range *r)
{
    long full = 0;
    for (uint64_t at = r->start, next; at < r->end && !full; at = next) {
        int left;
        next = same_answer(at, r->end, &left);
        if (left) {
            full = arm(g);
        } else {
            g->lo = g->lo ? g->lo : at;
            g->hi = next;
        }
    }
    return full;
}

/* First only asks what was written, then arms it, but for the stretches that are left. */
long ud__hot_written(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    if (!ud__pass.hot)
        return ud__track_written(at, end, out, cap, max_pages);
    struct gather g = {.out = out, .cap = cap};
    uint64_t upto = *at;
    long n = ud__track_peek(&upto, end, peeked, PEEK, max_pages), full = n < 0 ? n : 0;
    for (long i = 0; i < n && !full; i++)
        full = gather_range(&g, &peeked[i]);
    if (!full)
        full = arm(&g);
    if (full < 0)
        return full;
    *at = full ? g.lo : upto;
    return (long)g.found;
}
