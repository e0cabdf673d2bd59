/* space.c: lists the areas a pass may look at, and puts them under write tracking.
 *
 * Reading them costs 1.3 us a mapping, so it is not done while nothing speaks for a change.
 *
 * Guarantees: an area is private anonymous rw memory, data of a library, or a merged mapping of ours; the agent's own
 * memory and the main stack are not in it. Stacks of other threads are known only in a hold, and
 * are refused there.
 * Fails: -ENOMEM, maybe at the limit of mappings: they are counted all the same, and what is merged is listed as far as
 * there is memory, so that it can be given back. An area that cannot be tracked is digested anew in each pass.
 */
#include "space.h"

#define SMALL_AREA 16u /* pages: not tracked at first sight, it may be gone tomorrow */
#define TRUST_LOOKS 8u /* a change that leaves all sizes as they were is found after so many */

extern unsigned long getauxval(unsigned long);

static int grow(struct ud__space *s)
{
    size_t cap = s->cap ? s->cap * 2 : 1024;
    struct ud__area *list = ud__alloc(cap * sizeof *list);
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < s->count; i++)
        list[i] = s->list[i];
    ud__free(s->list, s->cap * sizeof *list);
    s->list = list;
    s->cap = cap;
    return 0;
}

const struct ud__area *ud__space_find(const struct ud__space *s, uint64_t addr)
{
    size_t lo = 0, hi = s->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (s->list[mid].end <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < s->count ? &s->list[lo] : NULL;
}

/* Small areas and merged ones must have been there for a while; data of libraries, and small merged areas, must
 * have pages of their own (scan.c counts them). Untracked they are looked at page by page in each thorough pass. */
static int worth_tracking(struct ud__space *s, const struct ud__area *a)
{
    int small = (a->end - a->start) >> ud__page_shift < SMALL_AREA;
    if (a->seen >= 2 || !(small || a->inode || a->library))
        return 1;
    s->unripe |= !a->library && !(a->inode && small);
    return 0;
}

static void track(struct ud__space *s, struct ud__area *a)
{
    if (a->tracked || a->hopeless || !worth_tracking(s, a))
        return;
    int r = ud__track_register(a->start, a->end);
    a->tracked = a->armed = r == 0;
    a->hopeless = r != 0;
}

/* What was known of the same area in the last pass goes over to this one. */
static void inherit(struct ud__area *a, const struct ud__space *before)
{
    const struct ud__area *b = ud__space_find(before, a->start);
    if (b && b->start == a->start && b->end == a->end && b->inode == a->inode && b->offset == a->offset) {
        int small = (a->end - a->start) >> ud__page_shift < SMALL_AREA;
        a->seen = b->seen + (!a->library && !(a->inode && small));
        a->tracked = b->tracked;
        a->armed = b->armed && before->current;
        a->hopeless = b->hopeless;
    }
}

/* Would the two be one mapping if nothing were merged? */
static int cut_by_merging(const struct ud__vma *a, const struct ud__vma *b)
{
    return a->end == b->start && (ud__vma_is_segment(a) || ud__vma_is_segment(b)) && ud__vma_mergeable(a) &&
           ud__vma_mergeable(b) && a->flags == b->flags;
}

static uint64_t mix(uint64_t h, const struct ud__vma *v)
{
    h = (h ^ v->start) * 0x9e3779b97f4a7c15ull;
    h = (h ^ v->end) * 0xc2b2ae3d27d4eb4full;
    return (h ^ v->inode ^ v->offset << 20) * 0x165667b19e3779f9ull + (h >> 29);
}

/* Changes with nearly every change of the mappings: sizes, and calls seen by the interposers and jobs. 0: it is not known. */
static uint64_t sizes(void)
{
    uint64_t sum = ud__mapped_sizes();
    return sum ? sum + atomic_load(&ud__mm_calls) * 0x9e3779b97f4a7c15ull : 0;
}

int ud__space_look(struct ud__space *s)
{
    if (s->count && !s->unripe && ++s->trusted < TRUST_LOOKS && s->sizes && s->sizes == sizes())
        return 0;
    return ud__space_read(s);
}

static void add(struct ud__space *s, const struct ud__vma *v, const struct ud__space *before)
{
    struct ud__area *a = &s->list[s->count++];
    *a = (struct ud__area){.start = v->start, .end = v->end, .offset = v->offset};
    a->library = v->inode && !ud__vma_is_segment(v);
    a->inode = a->library ? 0 : v->inode;
    inherit(a, before);
    track(s, a);
    s->signature = mix(s->signature, v);
    s->bytes += v->end - v->start;
    s->tracked += a->tracked ? v->end - v->start : 0;
}

/* Counts all mappings, even if the list cannot grow. 0, or -ENOMEM. */
static int list_areas(struct ud__space *s, const struct ud__space *before)
{
    uint64_t in_stack = getauxval(25 /* AT_RANDOM: lies in the main stack */);
    struct ud__vma v, last = {0};
    int r = 0;
    for (uint64_t at = 0; ud__maps_find(&ud__a.maps, at, &v) == 0; at = v.end) {
        ud__vma_learn(&v);
        s->mappings++;
        s->added += cut_by_merging(&last, &v);
        last = v;
        if (r || !ud__vma_mergeable(&v) || (v.start <= in_stack && in_stack < v.end) || ud__own_overlaps(v.start, v.end))
            continue;
        if (s->count < s->cap || !(r = grow(s)))
            add(s, &v, before);
    }
    return r;
}

/* Instead, in the memory there is: what is merged, for that can be given back (budget.c). */
static void list_merged(struct ud__space *s, struct ud__space *before)
{
    struct ud__space none = {0};
    struct ud__vma v;
    if (before->cap > s->cap) {
        ud__free(s->list, s->cap * sizeof *s->list);
        s->list = before->list;
        s->cap = before->cap;
        *before = none;
    }
    s->count = 0;
    for (uint64_t at = 0; s->count < s->cap && ud__maps_find(&ud__a.maps, at, &v) == 0; at = v.end)
        if (ud__vma_mergeable(&v) && ud__vma_is_segment(&v))
            add(s, &v, &none);
    s->sizes = 0;
}

int ud__space_read(struct ud__space *s)
{
    struct ud__space before = *s;
    int32_t made = ud__budget_made();
    int r = ud__maps_refresh(&ud__a.maps);
    if (r)
        return r;
    *s = (struct ud__space){.sizes = sizes(), .current = 1};
    r = list_areas(s, &before);
    ud__budget_read(s->mappings, s->added, made);
    if (r)
        list_merged(s, &before);
    ud__free(before.list, before.cap * sizeof *before.list);
    return r;
}

void ud__space_reset(struct ud__space *s)
{
    ud__free(s->list, s->cap * sizeof *s->list);
    *s = (struct ud__space){0};
}
