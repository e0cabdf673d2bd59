/* merge.c: compare and remap, inside the hold. The heart of it.
 *
 *   plan:      vaddr, npages  ->  segment, slot
 *   for each mapping that the run crosses:
 *       still private, anonymous, rw, no stack, not kept out?    else refused: GONE, STACK, LOCKED
 *       for each row of pages that equal their slots byte for byte:
 *           bits set -> the segment's slots in its place -> ledger says MERGED
 *
 * Guarantees: nothing is remapped that was not compared in full while nobody could write; the replacement
 * is one call, mremap of the stage (stage.c) or mmap, never an unmap first, so a kill at any instruction leaves memory
 * whole; no mapping that is not the program's own plain memory is touched; the last page of a mapping is never merged,
 * so that a growing mremap behind our back crosses mappings and fails over to copying.
 * Fails: page by page, counted by cause; the memory stays as it was.
 */
#include <sys/mman.h>

#include "internal.h"

#define TLS_BELOW (64u * 1024)
#define TLS_ABOVE (16u * 1024)
#define ROW_MAX 512u /* pages in one call: between two looks at the clock */
#define ROW_MIN 16u
#define PAGE_US 1u    /* to compare, remap and free a page, about */
#define SLOTS_BYTES 65536u /* the largest page there is; stays in the cache */

void ud__job_refuse(struct ud__job *j, uint64_t pages, int cause)
{
    j->refused += (uint32_t)pages;
    j->causes[cause] += (uint32_t)pages;
}

/* 1 if the pages from start on lie near the TLS of a held thread. Either way *end is cut to where the answer holds. */
static int near_tls(const struct ud__hold *h, uint64_t start, uint64_t *end)
{
    uint64_t mask = ~(uint64_t)(ud__page - 1);
    for (int i = 0; i < h->count; i++) {
        uint64_t low = (h->t[i].tls - TLS_BELOW) & mask, high = (h->t[i].tls + TLS_ABOVE + ud__page) & mask;
        if (!h->t[i].tls || high <= start || *end <= low)
            continue;
        if (start < low) {
            *end = low;
            continue;
        }
        if (high < *end)
            *end = high;
        return 1;
    }
    return 0;
}

/* Does plain memory go on at `addr`, so that the page below it is not the last one? */
static int goes_on(struct ud__job *j, uint64_t addr)
{
    struct ud__vma v;
    return ud__maps_find(&j->maps, addr, &v) == 0 && v.start <= addr && ud__vma_plain(&v);
}

/* Why [start, end) of mapping v may not be touched, or -1. */
static int objection(struct ud__job *j, const struct ud__vma *v, uint64_t start, uint64_t *end)
{
    if (UD__GUARD_ON(UD__GUARD_MAPCHECK) && !ud__vma_mergeable(v))
        return UD_CAUSE_GONE;
    if (ud__hold_has_stack(&j->hold, v->start, v->end) || near_tls(&j->hold, start, end)) {
        ud__stacks_note(start, *end);
        return UD_CAUSE_STACK;
    }
    if (!ud__region_allows(start, end, j->advised || ud__advised_only()) || ud__own_overlaps(start, *end) ||
        ud__region_grows(v->start, v->end))
        return UD_CAUSE_LOCKED;
    if (!ud__a.knobs.thp && ud__track_huge(start, end))
        return UD_CAUSE_HUGE;
    return -1;
}

/* Where few slots of a segment are wanted they are read: that costs half of what mapping and unmapping all of it does. One
 * job at a time, so one copy. */
static char slots[SLOTS_BYTES] __attribute__((aligned(4096)));

/* Slots from `slot` on, to compare with; *n: how many, `most` at most. */
static const char *take_slots(const struct ud__job *j, uint32_t slot, uint32_t most, uint32_t *n)
{
    uint64_t room = SLOTS_BYTES >> ud__page_shift, len = (most < room ? most : room) << ud__page_shift;
    *n = most;
    if (j->stage.at)
        return j->stage.at + ((uint64_t)slot << ud__page_shift);
    long got = ud__sys(__NR_pread64, j->segfd, slots, len, (uint64_t)slot << ud__page_shift);
    *n = got > 0 ? (uint32_t)(got >> ud__page_shift) : 0;
    return slots;
}

static uint32_t equal_row(const struct ud__job *j, const struct ud__vma *v, uint64_t at, uint32_t slot, uint32_t max)
{
    if (!UD__GUARD_ON(UD__GUARD_COMPARE))
        return max;
    for (uint32_t n = 0, here = 0, got; n < max; here = 0) {
        const char *with = take_slots(j, slot + n, max - n, &got);
        for (; here < got; here++, n++, at += ud__page)
            if (!ud__recognised(v, at) || !ud_equal((const void *)at, with + ((size_t)here << ud__page_shift), ud__page))
                return n;
        if (!got)
            return n;
    }
    return max;
}

/* The slots in the place of [at, at + len): one call, that replaces. 0 or -errno. */
static long put_slots(const struct ud__job *j, uint64_t at, uint64_t len, uint32_t prot, uint64_t off)
{
    long r = prot == (PROT_READ | PROT_WRITE) ? ud__stage_move(&j->stage, off, at, len) : -EOPNOTSUPP;
    if (r == 0 || (r != -EOPNOTSUPP && !UD__GUARD_ON(UD__GUARD_MAPPED)))
        return r;
    r = ud__sys(__NR_mmap, at, len, prot, MAP_FIXED | MAP_PRIVATE, j->segfd, off);
    return ud__is_err(r) ? r : 0;
}

static void remap_row(struct ud__job *j, const struct ud__vma *v, uint64_t at, uint32_t n, uint32_t slot)
{
    uint64_t len = (uint64_t)n << ud__page_shift;
    int64_t cost = (at > v->start) + (at + len < v->end);
    if (cost > 0 && (n < j->min_run || cost > j->vmas_left)) {
        ud__job_refuse(j, n, UD_CAUSE_VMAS);
        return;
    }
    ud__test_gap();
    int first = UD__GUARD_ON(UD__GUARD_BITFIRST);
    uint32_t prot = PROT_READ | (v->flags & UD__VMA_W ? PROT_WRITE : 0);
    if ((first && ud__merged_set(at, at + len)) || put_slots(j, at, len, prot, (uint64_t)slot << ud__page_shift)) {
        ud__merged_clear(at, at + len);
        ud__job_refuse(j, n, UD_CAUSE_NOMEM);
        return;
    }
    if (!first) {
        ud__test_gap();
        ud__merged_set(at, at + len);
    }
    j->vmas_left -= cost;
    j->vmas += (uint32_t)cost;
    j->merged += n;
    for (uint32_t i = 0; i < n; i++)
        ud__page_set(j->ledger, at + ((uint64_t)i << ud__page_shift), UD_PG_MERGED, UD_SLOT_REF(j->segment, slot + i));
}

/* Microseconds that a whole huge page took of late, half of what its pages would at most: where it took longer others had the CPU.
 * Cut it costs four times as much. */
static uint64_t huge_us = ROW_MAX * PAGE_US / 2;

static void learn_huge(uint64_t us)
{
    uint64_t most = ROW_MAX * PAGE_US / 2, now = (huge_us * 3 + us) / 4;
    huge_us = now < most ? now : most;
}

/* How many pages to take at once: as many as the time left allows, but no more than to the end of a huge page, so that the next
 * row begins with one. 0: better in the next batch. */
static uint32_t row_length(const struct ud__job *j, uint64_t at, uint64_t end, uint64_t now)
{
    uint64_t huge = ud__huge_bytes(), edge = (at / huge + 1) * huge, time = (j->stop_us - now) / PAGE_US;
    uint64_t n = ((end < edge ? end : edge) - at) >> ud__page_shift;
    if (n > ROW_MAX)
        n = ROW_MAX;
    if (at + huge == edge && end >= edge)
        return now + huge_us <= j->stop_us || !j->rows ? (uint32_t)n : 0;
    return (uint32_t)(n <= time ? n : time > ROW_MIN ? time : n < ROW_MIN ? n : ROW_MIN);
}

/* Merges what equals in [at, end) of mapping v. Returns how far it came: less than end when time is up. */
static uint64_t merge_span(struct ud__job *j, const struct ud__vma *v, uint64_t at, uint64_t end, uint32_t slot)
{
    while (at < end) {
        uint64_t now = ud__now_us();
        uint32_t most = now < j->stop_us ? row_length(j, at, end, now) : 0;
        if (!most) {
            j->stop_us = now;
            return at;
        }
        j->rows++;
        uint32_t n = equal_row(j, v, at, slot, most);
        if (n) {
            remap_row(j, v, at, n, slot);
            if (n == ud__huge_bytes() >> ud__page_shift)
                learn_huge(ud__now_us() - now);
        } else {
            ud__job_refuse(j, 1, UD_CAUSE_CHANGED);
            n = 1;
        }
        at += (uint64_t)n << ud__page_shift;
        slot += n;
    }
    return at;
}

/* One run of the plan; 1 when it is dealt with, 0 when time ran out (the piece then holds the rest). */
static int merge_piece(struct ud__job *j, struct ud__piece *p)
{
    while (p->npages) {
        uint64_t at = p->vaddr, end = at + ((uint64_t)p->npages << ud__page_shift), upto = end;
        struct ud__vma v;
        int gone = ud__maps_find(&j->maps, at, &v) != 0 || v.start > at;
        if (gone) {
            ud__job_refuse(j, 1, UD_CAUSE_GONE);
            upto = at + ud__page;
        } else {
            if (v.end < upto)
                upto = v.end;
            int cause = objection(j, &v, at, &upto);
            uint64_t last = upto;
            if (cause < 0 && upto == v.end && ud__vma_plain(&v) && UD__GUARD_ON(UD__GUARD_LASTPAGE) && !goes_on(j, v.end))
                last = upto - ud__page;
            if (cause >= 0) {
                ud__job_refuse(j, (upto - at) >> ud__page_shift, cause);
            } else {
                uint64_t came = merge_span(j, &v, at, last, p->slot);
                if (came < last)
                    upto = came;
                else if (last < upto)
                    ud__job_refuse(j, 1, UD_CAUSE_STACK);
            }
        }
        uint32_t n = (uint32_t)((upto - at) >> ud__page_shift);
        p->vaddr += (uint64_t)n << ud__page_shift;
        p->npages -= n;
        p->slot += n;
        if (p->npages && ud__now_us() >= j->stop_us)
            return 0;
    }
    return 1;
}

void ud__job_merge(struct ud__job *j)
{
    ud__merged_swap();
    ud__stage_ask(&j->stage);
    j->rows = 0;
    while (j->done < j->npieces && merge_piece(j, &j->pieces[j->done])) {
        j->done++;
        if (ud__now_us() >= j->stop_us)
            break;
    }
}

static uint64_t zero_row(const struct ud__vma *v, uint64_t at, uint64_t end)
{
    uint64_t n = 0;
    while (at < end && n < ROW_MAX && ud__recognised(v, at) && ud_is_zero((const void *)at, ud__page)) {
        at += ud__page;
        n++;
    }
    return n;
}

/* Zero pages of plain memory need no arena: the kernel has one. Pages of a merged mapping would show their slot. */
static uint64_t zero_span(struct ud__job *j, const struct ud__vma *v, uint64_t at, uint64_t end)
{
    while (at < end && ud__now_us() < j->stop_us) {
        uint64_t n = zero_row(v, at, end);
        if (!n) {
            ud__job_refuse(j, 1, UD_CAUSE_CHANGED);
            at += ud__page;
            continue;
        }
        if (ud__sys(__NR_madvise, at, n << ud__page_shift, MADV_DONTNEED) == 0) {
            j->merged += (uint32_t)n;
            for (uint64_t i = 0; i < n; i++)
                ud__page_set(j->ledger, at + (i << ud__page_shift), UD_PG_ZERO, 0);
        } else {
            ud__job_refuse(j, n, UD_CAUSE_LOCKED);
        }
        at += n << ud__page_shift;
    }
    return at;
}

void ud__job_zero(struct ud__job *j)
{
    for (; j->done < j->npieces; j->done++) {
        struct ud__piece *p = &j->pieces[j->done];
        while (p->npages) {
            uint64_t at = p->vaddr, end = at + ((uint64_t)p->npages << ud__page_shift);
            struct ud__vma v;
            if (ud__now_us() >= j->stop_us)
                return;
            int bad = ud__maps_find(&j->maps, at, &v) != 0 || v.start > at || v.inode != 0;
            if (!bad && v.end < end)
                end = v.end;
            bad = bad || objection(j, &v, at, &end) >= 0;
            uint64_t upto = bad ? at + ud__page : zero_span(j, &v, at, end);
            if (bad)
                ud__job_refuse(j, 1, UD_CAUSE_GONE);
            uint32_t n = (uint32_t)((upto - at) >> ud__page_shift);
            p->vaddr = upto;
            p->npages -= n;
        }
    }
}
