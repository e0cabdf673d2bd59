/* age.c: the end of a pass.
 *
 * Guarantees: a page that kept its digest for a whole pass becomes STABLE; zero pages among them are given back;
 * the ledger follows the mappings whenever they changed: what is mapped from a segment is MERGED, what is
 * gone is NONE.
 * Fails: never; what cannot be asked now is asked in a later pass.
 */
#include "pass.h"

#define GROWTH_PAGES 32        /* new pages in a pass: the program grows */
#define CALM_PAGES 256         /* written pages in a pass: it does next to nothing */
#define PATIENCE_US 15000000u
#define STILL_US 1000000u  /* it grows until it has not for so long; for a pass, if somebody waits in settle */
#define GIVE_BACK_PASSES 4 /* merged mappings in which nothing is merged any more are looked for */
#define GIVE_BACK_MAX 64u  /* of them at a time */
#define REFRESH_PASSES 16 /* presence, fork sharing and refusals are looked at again */

static void zero_add(uint64_t page)
{
    struct ud__pass *p = &ud__pass;
    if (p->zeros && p->zero[p->zeros - 1].end == page) {
        p->zero[p->zeros - 1].end += ud__page;
        return;
    }
    if (p->zeros == sizeof p->zero / sizeof *p->zero) {
        ud__plan_zero(p->zero, p->zeros);
        p->zeros = 0;
    }
    p->zero[p->zeros++] = (struct ud__range){.start = page, .end = page + ud__page};
}

/* How patient to be with pages that stayed the same for a pass. */
enum mood { NONE, CALM, WRITING, GROWING };

/* A program that grows (it imports, it fills its arrays) is let be for a while: what it leaves alone now it may write
 * in the next pass, and its pages, merged as they trickle in, would lie all over the store in short rows. One of many
 * workers that load at once waits for a CPU now and then: it has not come to an end because it stood still for a pass.
 * When it has, its hot pages are looked at, and then all that kept still is merged together. */
static enum mood of_growth(void)
{
    struct ud__pass *p = &ud__pass;
    uint64_t still = p->began_us - p->grew_us;
    int hurry = p->began_us - ud__a.kicked_us < UD__HURRY_US, late = p->began_us - p->growing_us >= PATIENCE_US;
    if (still < STILL_US && !(hurry && still))
        return late ? NONE : GROWING;
    if (late || p->grown == UD__GROWN_LOOKED) {
        enum mood m = p->grown == UD__GROWN_LOOKED ? CALM : NONE;
        p->growing_us = 0;
        p->grown = 0;
        return m;
    }
    p->grown = UD__GROWN_LOOK;
    return GROWING;
}

static enum mood mood(void)
{
    struct ud__pass *p = &ud__pass;
    if (!ud__a.knobs.smart_scan)
        return CALM;
    if (p->fresh > GROWTH_PAGES && p->number > 1) {
        p->grew_us = p->began_us;
        p->growing_us = p->growing_us ? p->growing_us : p->began_us;
        p->grown = 0;
    }
    enum mood m = p->growing_us ? of_growth() : NONE;
    return m != NONE ? m : p->written + p->hot < CALM_PAGES ? CALM : WRITING;
}

/* A page of a program that writes has to be a second old. */
static int ripe(uint8_t state, enum mood m)
{
    if ((state & UD__PARITY) == ud__parity() || m == GROWING || ud__hotness(state) == UD__HOT_LEFT)
        return 0;
    uint8_t age = (uint8_t)((ud__epoch() - state) >> UD__EPOCH_SHIFT & 3);
    return m == CALM || age >= 2 || ud__pass.began_us - ud__pass.before_us >= 1u << 20; /* where passes are rare ages wrap */
}

/* The area that covers the page, looked for only if that is not *known any more; NULL if there is none. */
static const struct ud__area *area_of(uint64_t page, const struct ud__area **known)
{
    if (!*known || page < (*known)->start || page >= (*known)->end)
        *known = ud__space_find(&ud__pass.space, page);
    return *known && (*known)->start <= page ? *known : NULL;
}

/* Elsewhere DONTNEED would show the file's or the segment's bytes. */
static int in_plain_area(const struct ud__area *a, uint64_t page)
{
    return a && !a->inode && !a->library && !ud__merged_test(page);
}

/* The last page of a mapping is never merged (merge.c), nor nominated: each plan for it would be a hold in vain. */
static int last_of_mapping(const struct ud__area *a, uint64_t page)
{
    if (!a || a->library || a->end != page + ud__page || !UD__GUARD_ON(UD__GUARD_LASTPAGE))
        return 0;
    const struct ud__area *next = a + 1, *stop = ud__pass.space.list + ud__pass.space.count;
    return next == stop || next->start != a->end || next->library;
}

/* Zero pages are of no node: the kernel has one for all. */
static int zero_digest(uint64_t entry) { return ((entry ^ ud__pass.zero_digest) & ud__digest_mask()) == 0; }

/* What it did is not forgotten in the next pass. While the program grows only we wait, and nothing is hot by that. */
static uint8_t kept_still(uint8_t state, enum mood m)
{
    int forgive = m == GROWING && ud__hotness(state) < UD__HOT_LEFT;
    return (uint8_t)((state ^ UD__PARITY) & (forgive ? ~(UD__HOT_LEFT << UD__HOT_SHIFT) : ~0u));
}

static void age_block(uint32_t block, enum mood m)
{
    struct ud__ledger *l = &ud__a.ledger;
    size_t base = (size_t)block * UD_BLOCK_PAGES;
    const struct ud__area *known = NULL;
    int young = 0, moved = 0, hot = ud__a.knobs.smart_scan && ud__heat_holds(l->heads[block].flags);
    for (uint32_t i = 0; i < UD_BLOCK_PAGES; i++) {
        uint8_t s = l->states[base + i];
        if ((s & UD_PG_MASK) != UD_PG_VOLATILE)
            continue;
        uint64_t page = l->heads[block].vaddr + ((uint64_t)i << ud__page_shift);
        if (hot || !ripe(s, m)) {
            if ((s & UD__PARITY) != ud__parity())
                l->states[base + i] = kept_still(s, m);
            ud__pass.hot += ud__hotness(s) >= UD__HOT_LEFT - 1;
            young = 1;
            continue;
        }
        const struct ud__area *a = area_of(page, &known);
        ud__pass.changed++;
        if (zero_digest(l->entries[base + i]) && ud__a.knobs.use_zero_pages && in_plain_area(a, page)) {
            zero_add(page);
            l->states[base + i] = kept_still(s, m); /* until it is given back, or refused */
            young = 1;
            continue;
        }
        l->states[base + i] = last_of_mapping(a, page) || ud__stacks_have(page) ? UD_PG_REFUSED : UD_PG_STABLE;
        moved = 1;
    }
    if (!young)
        l->heads[block].flags &= ~UD__BLOCK_YOUNG;
    if (moved)
        l->heads[block].gen = l->hdr->gen + 1;
}

static void age(void)
{
    struct ud__ledger *l = &ud__a.ledger;
    enum mood m = mood();
    ud__pass.growing = m == GROWING;
    __atomic_store_n(&l->hdr->growing, ud__pass.growing, __ATOMIC_RELAXED);
    ud__pass.hot = 0;
    for (uint32_t block = 0; block < l->hdr->block_count; block++)
        if (l->heads[block].vaddr && (l->heads[block].flags & UD__BLOCK_YOUNG))
            age_block(block, m);
}

void ud__pass_give_zeros(void)
{
    if (!ud__pass.zeros)
        return;
    ud__plan_zero(ud__pass.zero, ud__pass.zeros);
    ud__pass.zeros = 0;
    ud__ledger_commit(&ud__a.ledger);
}

/* What the program has closed since it was merged is in no area, and is merged all the same: the interposers must know.
 * v: the mapping that was looked up last. */
static int closed_segment(uint64_t page, struct ud__vma *v, uint64_t *ref)
{
    if (!ud__merged_test(page))
        return 0;
    if ((page < v->start || page >= v->end) && ud__maps_find(&ud__a.maps, page, v))
        return 0;
    if (page < v->start || !ud__vma_is_segment(v))
        return 0;
    *ref = UD_SLOT_REF(v->inode, (v->offset + (page - v->start)) >> ud__page_shift);
    return 1;
}

/* What the mappings say of one page: NONE (not ours to look at), MERGED with *ref, or anything else (-1). */
static int mapped_as(const struct ud__area *a, uint64_t page, struct ud__vma *closed, uint64_t *ref)
{
    if (!a || a->start > page)
        return closed_segment(page, closed, ref) ? UD_PG_MERGED : UD_PG_NONE;
    if (!a->inode)
        return -1;
    *ref = UD_SLOT_REF(a->inode, (a->offset + (page - a->start)) >> ud__page_shift);
    return UD_PG_MERGED;
}

static void follow_block(uint32_t block)
{
    struct ud__ledger *l = &ud__a.ledger;
    const struct ud__area *a = ud__space_find(&ud__pass.space, l->heads[block].vaddr);
    const struct ud__area *stop = ud__pass.space.list + ud__pass.space.count;
    struct ud__vma closed = {0};
    uint32_t used = 0;
    for (uint32_t i = 0; i < UD_BLOCK_PAGES; i++) {
        uint64_t page = l->heads[block].vaddr + ((uint64_t)i << ud__page_shift), ref = 0, entry;
        while (a && a->end <= page)
            a = a + 1 < stop ? a + 1 : NULL;
        uint8_t s = ud__page_state(l, page, &entry) & UD_PG_MASK;
        int as = mapped_as(a, page, &closed, &ref);
        int stale = s == UD_PG_MERGED && (as != UD_PG_MERGED || ref != entry);
        if (s != UD_PG_NONE && (as == UD_PG_NONE || stale)) {
            if (as != UD_PG_MERGED)
                ud__merged_clear(page, page + ud__page);
            ud__page_set(l, page, UD_PG_NONE, 0);
            ud__pass.changed++;
            s = UD_PG_NONE;
        }
        used += s != UD_PG_NONE;
    }
    if (!used)
        ud__ledger_drop_block(l, block);
}

/* Merged mappings the ledger does not know of: inherited by fork, or remapped by a holder that was killed. */
static void note_merged(void)
{
    for (size_t k = 0; k < ud__pass.space.count; k++) {
        const struct ud__area *a = &ud__pass.space.list[k];
        uint64_t ref = 0;
        for (uint64_t page = a->start; a->inode && page < a->end; page += ud__page)
            if ((ud__page_state(&ud__a.ledger, page, NULL) & UD_PG_MASK) == UD_PG_NONE) {
                mapped_as(a, page, NULL, &ref);
                ud__page_set(&ud__a.ledger, page, UD_PG_MERGED, ref);
                ud__pass.changed++;
            }
    }
}

/* Reads the mappings once more: plans were carried out since the pass began, and a bit cleared on old
 * knowledge would be a merged page that the interposers take for a plain one. */
static void resync(void)
{
    struct ud__ledger *l = &ud__a.ledger;
    if (ud__space_read(&ud__pass.space))
        return;
    for (uint32_t block = 0; block < l->hdr->block_count; block++)
        if (l->heads[block].vaddr)
            follow_block(block);
    ud__ledger_rehash(l);
    note_merged();
}

/* Pages of [from, to) are not present: nothing is known of them any more. */
static void not_present(uint64_t from, uint64_t to)
{
    for (uint64_t page = from; page < to;) {
        if (ud__ledger_block(&ud__a.ledger, page, 0) < 0) {
            page += ud__block_bytes() - page % ud__block_bytes();
            continue;
        }
        uint8_t s = ud__page_state(&ud__a.ledger, page, NULL) & UD_PG_MASK;
        if (s != UD_PG_NONE && s != UD_PG_ZERO && s != UD_PG_MERGED) {
            ud__page_set(&ud__a.ledger, page, UD_PG_NONE, 0);
            ud__pass.changed++;
        }
        page += ud__page;
    }
}

/* A refused page gets another chance, each time later. */
static void another_chance(uint32_t block)
{
    struct ud__ledger *l = &ud__a.ledger;
    const struct ud__area *known = NULL;
    for (uint32_t i = 0; i < UD_BLOCK_PAGES; i++) {
        uint64_t page = l->heads[block].vaddr + ((uint64_t)i << ud__page_shift), entry;
        uint8_t whole = ud__page_state(l, page, &entry);
        uint8_t count = whole >> UD__COUNT_SHIFT & 7;
        if ((whole & UD_PG_MASK) == UD_PG_REFUSED && (ud__pass.number / REFRESH_PASSES & ((1u << count) - 1)) == 0 &&
            !last_of_mapping(area_of(page, &known), page)) {
            ud__page_set(l, page, (uint8_t)(UD_PG_STABLE | count << UD__COUNT_SHIFT), entry);
            ud__pass.changed++;
        }
    }
}

static int shared(uint8_t state) { return (state & UD_PG_MASK) == UD_PG_SHARED; }

/* Pages that fork relatives shared, and that are ours alone by now: no tracking tells that they wrote theirs or ended. */
static void take_left_to_us(uint32_t block)
{
    const uint8_t *states = ud__a.ledger.states + (size_t)block * UD_BLOCK_PAGES;
    uint64_t start = ud__a.ledger.heads[block].vaddr;
    uint8_t owners[UD_BLOCK_PAGES];
    uint32_t any = 0, from = 0;
    for (uint32_t i = 0; i < UD_BLOCK_PAGES; i++)
        any += shared(states[i]);
    if (!any || ud__track_owners(start, UD_BLOCK_PAGES, owners) < 0)
        return;
    for (uint32_t i = 0; i <= UD_BLOCK_PAGES; i++) {
        if (i < UD_BLOCK_PAGES && shared(states[i]) && owners[i] == UD__PAGE_OWN)
            continue;
        if (from < i)
            ud__pass_take(start + ((uint64_t)from << ud__page_shift), start + ((uint64_t)i << ud__page_shift), 1);
        from = i + 1;
    }
}

/* One page of each block, another in each pass, tells whether to look at the whole block. */
static void sample_shared(void)
{
    const struct ud__ledger *l = &ud__a.ledger;
    uint32_t i = ud__pass.number % UD_BLOCK_PAGES;
    uint8_t owner;
    for (uint32_t block = 0; block < l->hdr->block_count; block++) {
        uint64_t start = l->heads[block].vaddr;
        if (start && shared(l->states[(size_t)block * UD_BLOCK_PAGES + i]) &&
            ud__track_owners(start + ((uint64_t)i << ud__page_shift), 1, &owner) == 0 && owner == UD__PAGE_OWN)
            take_left_to_us(block);
    }
    ud__pass_flush();
}

static void refresh(void)
{
    struct ud__range present[64];
    uint64_t pages = 0, huge = 0;
    for (size_t k = 0; k < ud__pass.space.count; k++) {
        const struct ud__area *a = &ud__pass.space.list[k];
        uint64_t at = a->start, known = a->start;
        while (!a->inode && at < a->end) {
            long n = ud__track_present(&at, a->end, present, 64, a->library);
            for (long i = 0; i < n; i++) {
                not_present(known, present[i].start);
                uint64_t found = (present[i].end - present[i].start) >> ud__page_shift;
                pages += found;
                huge += present[i].categories & UD__RANGE_HUGE ? found : 0;
                known = present[i].end;
            }
            if (n < 0)
                break;
        }
        if (!a->inode && at >= a->end)
            not_present(known, a->end);
    }
    ud__a.ledger.hdr->eligible_pages = pages;
    ud__a.ledger.hdr->huge_pages = huge;
    for (uint32_t block = 0; block < ud__a.ledger.hdr->block_count; block++)
        if (ud__a.ledger.heads[block].vaddr) {
            another_chance(block);
            take_left_to_us(block);
        }
    ud__pass_flush();
}

/* Is each page of a merged mapping written, so that it is the program's own? */
static int all_split(const struct ud__area *a)
{
    for (uint64_t page = a->start; page < a->end; page += ud__page) {
        uint8_t s = ud__page_state(&ud__a.ledger, page, NULL) & UD_PG_MASK;
        if (s != UD_PG_VOLATILE && s != UD_PG_STABLE && s != UD_PG_REFUSED)
            return 0;
    }
    return 1;
}

/* Such a mapping shares nothing, and keeps the memory of its segment from being freed. */
static void give_back_split(void)
{
    static uint64_t before;
    uint64_t now = ud__a.ledger.hdr->pages_split + ud__a.ledger.hdr->pages_merged; /* compaction leaves such pieces too */
    struct ud_run runs[GIVE_BACK_MAX];
    uint32_t n = 0;
    if (now == before)
        return;
    for (size_t k = 0; k < ud__pass.space.count && n < GIVE_BACK_MAX; k++) {
        const struct ud__area *a = &ud__pass.space.list[k];
        uint64_t pages = (a->end - a->start) >> ud__page_shift;
        if (a->inode && pages < 1u << UD_SLOT_BITS && all_split(a))
            runs[n++] = (struct ud_run){.vaddr = a->start, .npages = (uint32_t)pages};
    }
    if (n < GIVE_BACK_MAX)
        before = now;
    if (n)
        ud__plan_unmerge(runs, n);
}

void ud__pass_end(void)
{
    struct ud__pass *p = &ud__pass;
    age();
    if (p->force_resync || p->signature != p->space.signature) {
        p->force_resync = 0;
        resync();
        p->signature = p->space.signature;
    }
    if (p->number % REFRESH_PASSES == 0 || p->number == 2)
        refresh();
    else if (p->thorough)
        sample_shared();
    if (p->thorough && p->number > p->given_in)
        p->given_back = 0; /* whatever of it is still there has been seen */
    if (p->thorough && p->number % GIVE_BACK_PASSES == 0)
        give_back_split();
    ud__budget_keep();
    ud__a.ledger.hdr->private_bytes = p->space.bytes;
    ud__a.ledger.hdr->tracked_pages = (uint32_t)(p->space.tracked >> ud__page_shift);
    const struct ud__ledger *l = &ud__a.ledger;
    l->hdr->metadata_bytes = (uint64_t)l->hdr->block_count * (sizeof *l->heads + 9 * UD_BLOCK_PAGES) +
                             l->hash_cap * sizeof *l->hash + p->space.cap * sizeof *p->space.list;
    ud__a.ledger.hdr->passes++;
}
