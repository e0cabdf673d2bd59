/* space.c: lists the areas a pass may look at, and puts them under write tracking.
 *
 * Guarantees: an area is private anonymous rw memory, data of a library, or a merged mapping of ours; the agent's own
 * memory and the main stack are not in it. Stacks of other threads are known only in a hold, and
 * are refused there.
 * Fails: -ENOMEM; an area that cannot be tracked is digested anew in each pass.
 */
#include "space.h"

#define SMALL_AREA 16u /* pages: not tracked at first sight, it may be gone tomorrow */

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

static void track(struct ud__area *a)
{
    uint64_t pages = (a->end - a->start) >> ud__page_shift;
    if (a->tracked || a->hopeless || (pages < SMALL_AREA && a->seen < 2))
        return;
    if ((a->inode || a->library) && a->seen < 2) /* only once it has pages of its own, see scan.c */
        return;
    int r = ud__track_register(a->start, a->end);
    a->tracked = r == 0;
    a->hopeless = r != 0;
}

/* What was known of the same area in the last pass goes over to this one. */
static void inherit(struct ud__area *a, const struct ud__space *before)
{
    const struct ud__area *b = ud__space_find(before, a->start);
    if (b && b->start == a->start && b->end == a->end && b->inode == a->inode && b->offset == a->offset) {
        a->seen = b->seen + (a->inode == 0 && !a->library);
        a->tracked = b->tracked;
        a->hopeless = b->hopeless;
    }
}

static uint64_t mix(uint64_t h, const struct ud__vma *v)
{
    h = (h ^ v->start) * 0x9e3779b97f4a7c15ull;
    h = (h ^ v->end) * 0xc2b2ae3d27d4eb4full;
    return (h ^ v->inode ^ v->offset << 20) * 0x165667b19e3779f9ull + (h >> 29);
}

int ud__space_read(struct ud__space *s)
{
    struct ud__space before = *s;
    uint64_t in_stack = getauxval(25 /* AT_RANDOM: lies in the main stack */);
    struct ud__vma v;
    int r = ud__maps_refresh(&ud__a.maps);
    *s = (struct ud__space){0};
    for (uint64_t at = 0; r == 0 && ud__maps_find(&ud__a.maps, at, &v) == 0; at = v.end) {
        ud__vma_learn(&v);
        if (!ud__vma_mergeable(&v) || (v.start <= in_stack && in_stack < v.end) || ud__own_overlaps(v.start, v.end))
            continue;
        if (s->count == s->cap && (r = grow(s)))
            break;
        struct ud__area *a = &s->list[s->count++];
        *a = (struct ud__area){.start = v.start, .end = v.end, .offset = v.offset};
        a->library = v.inode && !ud__vma_is_segment(&v);
        a->inode = a->library ? 0 : v.inode;
        inherit(a, &before);
        track(a);
        s->signature = mix(s->signature, &v);
        s->bytes += v.end - v.start;
        s->tracked += a->tracked ? v.end - v.start : 0;
        s->merged_areas += a->inode != 0;
    }
    ud__free(before.list, before.cap * sizeof *before.list);
    return r;
}

void ud__space_reset(struct ud__space *s)
{
    ud__free(s->list, s->cap * sizeof *s->list);
    *s = (struct ud__space){0};
}
