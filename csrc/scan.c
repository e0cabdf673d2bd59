/* scan.c: one slice of a pass: finds pages that changed, digests them, writes the ledger.
 *
 *   BEGIN      the areas are listed, new ones put under tracking
 *   WRITTEN    pages written under tracking: each is armed again, then digested     -> VOLATILE
 *   UNTRACKED  pages no tracking covers, split pages among them: digest compared    -> VOLATILE or STABLE
 *   END        what stayed as it was for a whole pass becomes STABLE, a candidate   (age.c)
 *
 * Guarantees: at most pages_to_scan pages are digested in a slice; an unchanged page under tracking is never
 * read again; no page of the program is written.
 * Fails: -ENOMEM or a reader that died: the pages in question are looked at again in a later pass.
 */
#include "pass.h"

#define TOP ((1ull << 47) - ud__page)
#define RANGES 1024u
#define TODO_PAGES 8192u
#define TODO_RANGES 2048u
#define THOROUGH_PASSES 4
#define THOROUGH_US 4000000u
#define OFFER_PAGES 1024u

enum { BEGIN, WRITTEN, UNTRACKED, END };

UD_HIDDEN struct ud__pass ud__pass;

static struct buffers {
    struct ud__range ranges[RANGES];
    struct ud__range todo[TODO_RANGES];
    uint64_t digest[TODO_PAGES];
    uint8_t gone[TODO_PAGES];
    uint8_t owners[TODO_PAGES];
} *b;
static size_t todo_count, todo_pages;
/* How a page came to be looked at. ARMED: its area came under tracking just now, so it was told, written or not. */
enum told { UNASKED, WROTE, ARMED };
static enum told todo_told;

static void set(uint64_t page, uint8_t state, uint64_t entry)
{
    if (ud__page_set(&ud__a.ledger, page, state, entry) == 0) {
        ud__pass.changed++;
        if ((state & UD_PG_MASK) == UD_PG_VOLATILE) {
            int64_t block = ud__ledger_block(&ud__a.ledger, page, 0);
            ud__a.ledger.heads[block].flags |= UD__BLOCK_YOUNG;
        }
    }
}

/* An untracked page that is the same as before. A VOLATILE one keeps the marks of an earlier pass: age.c promotes it. */
static void stayed(uint64_t page, uint8_t state)
{
    struct ud__ledger *l = &ud__a.ledger;
    int64_t block = ud__ledger_block(l, page, 0);
    if (block >= 0 && (state & UD_PG_MASK) != UD_PG_VOLATILE && state >> UD__AGE_SHIFT < 3)
        l->states[(size_t)block * UD_BLOCK_PAGES + ((page % ud__block_bytes()) >> ud__page_shift)] += 1u << UD__AGE_SHIFT;
}

/* What a fresh digest of a page means. */
static void judge(uint64_t page, uint64_t digest, enum told told)
{
    uint64_t entry = 0;
    uint8_t state = ud__page_state(&ud__a.ledger, page, &entry), old = state & UD_PG_MASK;
    if (old == UD_PG_MERGED) {
        ud__a.ledger.hdr->pages_split++;
        ud__heat_split(page);
    }
    int same = entry == digest && (old == UD_PG_VOLATILE || old == UD_PG_STABLE || old == UD_PG_REFUSED);
    if (told != WROTE && same && !(old == UD_PG_VOLATILE && ud__hotness(state) == UD__HOT_LEFT)) {
        stayed(page, state);
        return;
    }
    unsigned most = told || same ? UD__HOT_LEFT - 1 : UD__HOT_LEFT; /* untracked pages are not left by hot.c */
    unsigned hot = old == UD_PG_VOLATILE && ud__a.knobs.smart_scan ? ud__hotness(state) + 1 : 0;
    hot = hot < most ? hot : most;
    set(page, (uint8_t)(UD_PG_VOLATILE | ud__parity() | ud__epoch() | hot << UD__HOT_SHIFT), digest);
    ud__pass.written++;
    ud__a.ledger.hdr->pages_written++;
    int again = old == UD_PG_NONE && ud__pass.given_back;
    ud__pass.given_back -= (uint64_t)again;
    ud__pass.fresh += old == UD_PG_NONE && !again;
    ud__pass.left_to_us += old == UD_PG_SHARED;
}

int ud__pass_flush(void)
{
    if (!todo_count)
        return 0;
    int r = ud__reader_digest(b->todo, todo_count, b->digest, b->gone);
    if (ud__node_fold(b->todo, todo_count, b->digest, b->gone))
        ud__note_cause(UD_CAUSE_NODE, todo_pages);
    size_t k = 0;
    for (size_t i = 0; i < todo_count; i++)
        for (uint64_t page = b->todo[i].start; page < b->todo[i].end; page += ud__page, k++)
            if (!b->gone[k])
                judge(page, b->digest[k], todo_told);
    ud__a.ledger.hdr->pages_scanned += k;
    todo_count = todo_pages = 0;
    if (k > OFFER_PAGES)
        ud__turn_offer();
    return r;
}

static int todo_add(uint64_t start, uint64_t end, enum told told)
{
    if (todo_count && todo_told != told && ud__pass_flush())
        return -EAGAIN;
    todo_told = told;
    while (start < end) {
        uint64_t n = (end - start) >> ud__page_shift, room = TODO_PAGES - todo_pages;
        if (todo_count == TODO_RANGES || room == 0) {
            int r = ud__pass_flush();
            if (r)
                return r;
            continue;
        }
        if (n > room)
            n = room;
        b->todo[todo_count++] = (struct ud__range){.start = start, .end = start + (n << ud__page_shift)};
        todo_pages += n;
        start += n << ud__page_shift;
    }
    return 0;
}

/* Smart scan, where every pass must read everything: a page that stays the same is read in every 2nd, 4th, 8th, 16th pass,
 * one that always changes is left for longer. */
static int skip(uint64_t page, enum told told, int unknown_only)
{
    if (unknown_only)
        return (ud__page_state(&ud__a.ledger, page, NULL) & UD_PG_MASK) != UD_PG_NONE;
    if (told || !ud__a.knobs.smart_scan || ud__a.ledger.hdr->track_kind == UD_TRACK_UFFD)
        return 0;
    uint8_t state = ud__page_state(&ud__a.ledger, page, NULL), old = state & UD_PG_MASK;
    int left = ud__hot_left(state, page);
    if (old == UD_PG_STABLE || old == UD_PG_REFUSED)
        left = ((ud__pass.number + (page >> ud__page_shift)) & ((2u << (state >> UD__AGE_SHIFT)) - 1)) != 0;
    ud__a.ledger.hdr->pages_skipped += (uint64_t)left;
    return left;
}

/* Pages that fork relatives share already are noted and left; the rest is lined up for the reader. */
static int take_own(uint64_t start, uint64_t end, enum told told, int unknown_only)
{
    while (start < end) {
        uint32_t n = (uint32_t)((end - start) >> ud__page_shift);
        if (n > TODO_PAGES)
            n = TODO_PAGES;
        if (ud__track_owners(start, n, b->owners) < 0)
            __builtin_memset(b->owners, UD__PAGE_OWN, n);
        uint64_t from = start;
        for (uint32_t i = 0; i <= n; i++) {
            uint64_t page = start + ((uint64_t)i << ud__page_shift);
            if (i < n && b->owners[i] == UD__PAGE_OWN && !skip(page, told, unknown_only))
                continue;
            int r = from < page ? todo_add(from, page, told) : 0;
            if (r)
                return r;
            from = page + ud__page;
            if (i < n && b->owners[i] == UD__PAGE_OF_RELATIVES &&
                (ud__page_state(&ud__a.ledger, page, NULL) & UD_PG_MASK) != UD_PG_SHARED)
                set(page, UD_PG_SHARED, 0);
        }
        start += (uint64_t)n << ud__page_shift;
    }
    return 0;
}

int ud__pass_take(uint64_t start, uint64_t end, int written)
{
    const struct ud__area *a = ud__space_find(&ud__pass.space, start);
    const struct ud__area *stop = ud__pass.space.list + ud__pass.space.count;
    for (; a && a < stop && a->start < end; a++) {
        uint64_t at = a->start > start ? a->start : start, to = a->end < end ? a->end : end;
        if (a->inode || a->library)
            ((struct ud__area *)a)->seen++; /* it has pages of its own: worth tracking from now on */
        enum told told = !written ? UNASKED : a->armed && ud__pass.space.current ? ARMED : WROTE;
        while (at < to) {
            uint64_t piece = to;
            if (ud__region_allows(at, &piece, ud__advised_only())) {
                int r = take_own(at, piece, told, !written && ud__pass.renew && a->tracked);
                if (r)
                    return r;
            }
            at = piece;
        }
    }
    return 0;
}

static int take_ranges(long n, int written)
{
    for (long i = 0; i < n; i++) {
        int r = ud__pass_take(b->ranges[i].start, b->ranges[i].end, written);
        if (r)
            return r;
    }
    return ud__pass_flush();
}

/* Long sleeps between passes: each may as well be thorough, unless the program only goes on writing what we know. */
static int rested(void)
{
    return ud__a.resting && (!ud__pass.written || ud__pass.began_us - ud__pass.thorough_us >= THOROUGH_US);
}

/* New mappings, split pages and library data can wait a little: to find them the kernel walks all mappings and all
 * merged memory. In between a pass asks only what was written under tracking. */
static int thorough(void)
{
    return ud__pass.number <= 3 || ud__pass.number % THOROUGH_PASSES == 0 || ud__a.kicked || rested() ||
           ud__pass.force_resync || ud__pass.renew ||
           ud__a.ledger.hdr->track_kind != UD_TRACK_UFFD;
}

static int begin(void)
{
    if (!b && !(b = ud__alloc(sizeof *b)))
        return -ENOMEM;
    unsigned regions = atomic_load(&ud__region_gen);
    ud__pass.number++;
    ud__pass.renew = regions != ud__pass.regions;
    ud__pass.regions = regions;
    ud__pass.before_us = ud__pass.began_us;
    ud__pass.began_us = ud__now_us();
    ud__pass.thorough = thorough();
    int r = !ud__pass.thorough ? 0 : ud__pass.force_resync ? ud__space_read(&ud__pass.space) : ud__space_look(&ud__pass.space);
    if (r) {
        ud__budget_keep(); /* the limit of mappings may be why */
        return r;
    }
    ud__pass.thorough_us = ud__pass.thorough ? ud__pass.began_us : ud__pass.thorough_us;
    ud__pass.written = ud__pass.fresh = ud__pass.left_to_us = 0;
    ud__hot_begin();
    ud__pass.zero_digest = ud__zero_digest();
    ud__pass.at = 0;
    ud__pass.phase = WRITTEN;
    return 0;
}

/* Untracked pages, asked for where there are areas: all else (text of libraries, shared memory) is walked in vain. Tracked
 * areas are asked too, for one that was unmapped and mapped again has lost its tracking; the kernel skips the others. */
static long tell_untracked(uint64_t *at, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    const struct ud__space *s = &ud__pass.space;
    const struct ud__area *a = ud__space_find(s, *at), *stop = s->list + s->count;
    size_t n = 0;
    while (a && a < stop && n < cap) {
        uint64_t from = a->start > *at ? a->start : *at, end = a->end;
        for (a++; a < stop && a->start == end; a++)
            end = a->end;
        *at = from;
        long r = (ud__pass.renew ? ud__track_all : ud__track_untracked)(at, end, out + n, cap - n, max_pages);
        if (r < 0)
            return r;
        for (; r > 0; r--, n++)
            max_pages -= (out[n].end - out[n].start) >> ud__page_shift;
        if (*at < end || !max_pages)
            return (long)n;
    }
    *at = a && a < stop ? a->start : TOP;
    return (long)n;
}

static long one_phase(int written)
{
    uint64_t most = ud__a.knobs.pages_to_scan;
    long n = written ? ud__hot_written(&ud__pass.at, TOP, b->ranges, RANGES, most)
                     : tell_untracked(&ud__pass.at, b->ranges, RANGES, most);
    if (n < 0)
        return n;
    int r = take_ranges(n, written);
    if (r)
        return r;
    if (ud__pass.at >= TOP) {
        ud__pass.at = 0;
        ud__pass.space.current = 0;
        ud__pass.phase = written && ud__pass.thorough ? UNTRACKED : END;
    }
    return n;
}

long ud__scan_slice(int *wrapped)
{
    *wrapped = 0;
    ud__pass.changed = 0;
    long r = 0;
    if (ud__pass.phase == BEGIN)
        r = begin();
    uint64_t upto = ud__a.ledger.hdr->pages_scanned + ud__a.knobs.pages_to_scan;
    while (r >= 0 && ud__a.ledger.hdr->pages_scanned < upto && ud__pass.phase < END)
        r = one_phase(ud__pass.phase == WRITTEN);
    if (r < 0) {
        ud__pass.phase = BEGIN;
        return r;
    }
    if (ud__pass.phase == END) {
        ud__pass_end();
        ud__pass.phase = BEGIN;
        *wrapped = 1;
    }
    if (ud__pass.changed)
        ud__ledger_commit(&ud__a.ledger);
    return (long)ud__pass.changed;
}

void ud__scan_resync(void) { ud__pass.force_resync = 1; }

void ud__scan_reset(void)
{
    ud__space_reset(&ud__pass.space);
    ud__free(b, b ? sizeof *b : 0);
    b = NULL;
    todo_count = todo_pages = 0;
    ud__pass = (struct ud__pass){0};
}

void ud__scan_rest(void)
{
    if (!todo_count)
        ud__empty(b, sizeof *b);
}

/* The tracking is dropped too: else an unchanged page would never be told, and so never digested anew. */
void ud__scan_forget(void)
{
    struct ud__ledger *l = &ud__a.ledger;
    ud__track_close();
    l->hdr->track_kind = (uint32_t)ud__track_open();
    ud__space_reset(&ud__pass.space);
    for (uint32_t block = 0; block < l->hdr->block_count; block++)
        for (uint32_t i = 0; l->heads[block].vaddr && i < UD_BLOCK_PAGES; i++) {
            uint8_t *s = &l->states[(size_t)block * UD_BLOCK_PAGES + i];
            if ((*s & UD_PG_MASK) != UD_PG_MERGED && (*s & UD_PG_MASK) != UD_PG_ZERO)
                *s = UD_PG_NONE;
        }
    ud__pass.phase = BEGIN;
}

void ud__scan_forked(void)
{
    ud__stacks_forked();
    b = NULL;
    todo_count = todo_pages = 0;
    ud__pass = (struct ud__pass){0};
}
