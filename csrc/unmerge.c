/* unmerge.c: plain anonymous memory back in the place of merged pages; what the interposers do with it.
 *
 * Guarantees: in a hold, contents are copied aside and moved into place by one mremap(MREMAP_FIXED): whoever
 * is killed when, a page is either still merged or already plain; its protection is kept. Only mappings of our segments
 * are replaced (asked of the kernel in the same hold), so stale bits of the merged map harm nobody. And short gaps of
 * plain memory between them, if the agent asks: what comes from elsewhere never joins its neighbours, and scattered
 * pages given back one by one would leave as many mappings as they were.
 * Fails: -ENOMEM leaves the rest merged, which is valid memory; a hold that cannot be had is tried again for ten
 * seconds, then -EAGAIN.
 */
#include <sys/mman.h>

#include "pass.h"
#include "replace.h"
#include "trap.h"

#define GAP_PAGES 8u
#define JOINED_MAX (1u << 20) /* pages */
#define PART (1ull << 43) /* a piece counts pages in 32 bits */
#define UNSEEN 20 /* times the mappings could not be read */
#define REFUSALS 100 /* half a second: a mask may be put off again, a filter stays */

/* The kernel unmaps the target of mremap before it looks for memory of its own: when that fails, the contents are
 * copied back to where they were. 0, or -errno. */
static int copy_back(long scratch, uint64_t at, uint64_t len, int prot)
{
    long r = ud__map_plain(at, len, UD__RW, 0x100000 /* MAP_FIXED_NOREPLACE */);
    if (ud__is_err(r))
        return r == -EEXIST ? -ENOMEM : (int)r;
    if (prot != UD__RW)
        ud__sys(__NR_mprotect, scratch, len, UD__RW);
    __builtin_memcpy((void *)at, (const void *)scratch, len);
    if (prot != UD__RW)
        ud__sys(__NR_mprotect, at, len, prot);
    ud__sys(__NR_munmap, scratch, len);
    return 0;
}

static long move_over(long scratch, uint64_t at, uint64_t len)
{
    if (!UD__GUARD_ON(UD__GUARD_HALFWAY)) { /* only in tests: nobody can make the kernel run out of memory there */
        ud__sys(__NR_munmap, at, len);
        return -ENOMEM;
    }
    return ud__sys(__NR_mremap, scratch, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at);
}

int ud__unmerge_chunk(uint64_t at, uint64_t len, uint32_t flags, int whole)
{
    long r, scratch = ud__map_plain(ud__hint(len), len, UD__RW, 0);
    int prot = ud__prot_of(flags);
    if (ud__is_err(scratch))
        return (int)scratch;
    r = ud__copy_contents(scratch, at, len, flags, whole);
    if (!r && prot != UD__RW)
        r = ud__sys(__NR_mprotect, scratch, len, prot);
    ud__test_gap();
    if (!r) {
        r = move_over(scratch, at, len);
        if (ud__is_err(r) && UD__GUARD_ON(UD__GUARD_COPYBACK) && copy_back(scratch, at, len, prot) == 0)
            r = 0;
    }
    if (ud__is_err(r)) {
        ud__sys(__NR_munmap, scratch, len);
        return (int)r;
    }
    ud__merged_clear(at, at + len);
    return 0;
}

int ud__run_joins(uint64_t vaddr, uint32_t *npages, uint64_t start, uint64_t end)
{
    uint64_t behind = vaddr + ((uint64_t)*npages << ud__page_shift), pages = (end - vaddr) >> ud__page_shift;
    if (start < behind || start - behind > (uint64_t)GAP_PAGES << ud__page_shift || pages > JOINED_MAX)
        return 0;
    *npages = (uint32_t)pages;
    return 1;
}

/* Is this mapping part of what the program had as one, and may it be replaced by a copy? Everybody but the agent is held. */
static int may_bridge(const struct ud__job *j, const struct ud__vma *v, uint32_t flags)
{
    uint64_t end = v->end;
    if ((v->flags & UD__PROTECTION) != (flags & UD__PROTECTION))
        return 0;
    return ud__vma_is_segment(v) ||
           ((flags & UD__PROTECTION) == (UD__VMA_R | UD__VMA_W) && !v->inode && ud__vma_plain(v) &&
            ud__region_allows(v->start, &end, 0) && end == v->end && !ud__own_overlaps(v->start, v->end) &&
            !ud__hold_has_stack(&j->hold, v->start, v->end));
}

/* How far from `to`, the end of a merged mapping, more of them follow over short gaps; a chunk is the most. */
static uint64_t reach(struct ud__job *j, uint64_t from, uint64_t to, uint64_t end, uint32_t flags)
{
    uint64_t most = from + ((uint64_t)UD__CHUNK_PAGES << ud__page_shift), gap = (uint64_t)GAP_PAGES << ud__page_shift;
    struct ud__vma v;
    for (uint64_t at = to; at < end && at < most && ud__maps_find(&j->maps, at, &v) == 0 && v.start == at; at = v.end) {
        if (!may_bridge(j, &v, flags) || (!ud__vma_is_segment(&v) && v.end - v.start > gap))
            break;
        if (ud__vma_is_segment(&v))
            to = v.end;
    }
    return to < end ? to : end;
}

static int none_merged(const struct ud__job *j, uint64_t at, uint64_t len)
{
    for (uint64_t off = 0; off < len; off += ud__page)
        if ((ud__page_state(j->ledger, at + off, NULL) & UD_PG_MASK) == UD_PG_MERGED)
            return 0;
    return 1;
}

/* What was split before keeps its digest. But not beside what was merged until now: it would be nominated before its
 * neighbours, and merge in pieces. */
static void forget_pages(struct ud__job *j, uint64_t at, uint64_t len)
{
    if (!j->ledger || none_merged(j, at, len))
        return;
    for (uint64_t off = 0; off < len; off += ud__page) {
        ud__pass.given_back += (ud__page_state(j->ledger, at + off, NULL) & UD_PG_MASK) != UD_PG_NONE;
        ud__page_set(j->ledger, at + off, UD_PG_NONE, 0);
    }
    ud__pass.given_in = ud__pass.number;
}

static uint32_t count_merged(uint64_t at, uint64_t len)
{
    uint32_t n = 0;
    for (uint64_t off = 0; off < len; off += ud__page)
        n += ud__merged_test(at + off) != 0;
    return n;
}

/* A mapping that was mlocked after it was merged stays so: the kernel counts how much is. */
static int unmerge_locked(uint64_t at, uint64_t len, uint32_t flags, int whole, uint64_t locked_kb)
{
    int r = ud__unmerge_chunk(at, len, flags, whole);
    if (r == 0 && locked_kb && ud__locked_now() < locked_kb)
        ud__sys(__NR_mlock, at, len);
    return r;
}

static void unmerge_pieces(struct ud__job *j, int *open)
{
    /* Only where everybody is held: gaps are plain memory, which may be written. */
    uint64_t locked_kb = ud__locked_now();
    int bridge = j->ledger && !j->no_hold && !ud__trap_active() && !locked_kb; /* pinned memory is no job's: job.c */
    for (; j->done < j->npieces; j->done++) {
        struct ud__piece *p = &j->pieces[j->done];
        uint64_t at = p->vaddr, end = at + ((uint64_t)p->npages << ud__page_shift), from, to;
        uint32_t flags;
        while (ud__next_segment(&j->maps, at, end, &from, &to, &flags)) {
            uint64_t edge = to;
            if (bridge)
                to = reach(j, from, to, end, flags);
            uint64_t len = to - from, chunk = (uint64_t)UD__CHUNK_PAGES << ud__page_shift;
            if (len > chunk)
                len = chunk;
            uint32_t merged = count_merged(from, len);
            int r = unmerge_locked(from, len, flags, from + len <= edge, locked_kb);
            if (r == -ENOMEM && bridge && !*open && (*open = ud__budget_open()))
                r = unmerge_locked(from, len, flags, from + len <= edge, locked_kb);
            if (r < 0) {
                j->result = (uint64_t)(int64_t)r;
                return;
            }
            forget_pages(j, from, len);
            j->merged += merged;
            at = from + len;
            p->npages -= (uint32_t)((at - p->vaddr) >> ud__page_shift);
            p->vaddr = at;
            if (ud__now_us() >= j->stop_us)
                return;
        }
        p->npages = 0;
    }
}

void ud__job_unmerge(struct ud__job *j)
{
    int open = 0;
    unmerge_pieces(j, &open);
    if (open)
        ud__budget_shut();
}

long ud__run_from_app(struct ud__job *j)
{
    int tid = (int)ud__sys(__NR_gettid), refused = 0, unseen = 0;
    uint64_t give_up = j->no_hold ? UINT64_MAX : ud__now_us() + 10000000;
    do {
        uint64_t now = ud__now_us();
        j->hold.deadline_us = now + 20000;
        j->budget_us = 20000;
        int r = ud__job_run(j, tid, 0);
        if (r < 0 && r != -ECHILD)
            return r;
        if (j->done == j->npieces)
            return 0;
        if ((int64_t)j->result < 0)
            return (long)j->result;
        if (j->no_hold && j->cause_begin == UD_CAUSE_GONE && ++unseen == UNSEEN)
            return -ENOENT;
        refused += j->cause_begin == UD_CAUSE_HOLD_REFUSED || j->cause_begin == UD_CAUSE_HOLD_MASKED;
        if (j->cause_begin >= 0)
            ud__sleep_us(500);
    } while (ud__now_us() < give_up && refused < REFUSALS);
    return -EAGAIN;
}

static int unmerge_part(uint64_t start, uint64_t end)
{
    struct ud__piece p = {.vaddr = start, .npages = (uint32_t)((end - start) >> ud__page_shift)};
    struct ud__job j = {.kind = UD__JOB_UNMERGE, .pieces = &p, .npieces = 1, .segfd = -1};
    return (int)ud__run_from_app(&j);
}

int ud__unmerge_range(uint64_t start, uint64_t end)
{
    int r = 0;
    for (uint64_t at = start, upto; r == 0 && at < end; at = upto) {
        upto = end - at < PART ? end : at + PART;
        if (ud__merged_any(at, upto))
            r = unmerge_part(at, upto);
    }
    return r;
}
