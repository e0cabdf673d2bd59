/* index.c: one hash table from digest to a slot of the store (stable) or a candidate page (unstable).
 *
 * Guarantees: 8 bytes a slot; an entry is believed only after its digest was read again where it
 * lives, so entries may go stale and are simply written over. Growth frees the old table while it
 * goes, so the two never lie in memory together.
 * Fails: without memory, or in a cluster no honest digest makes, a page is not remembered.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "index_int.h"

#define MAX_PROBES 2048u
#define FIRST_SIZE 512u
#define FREE_STEP (1u << 16) /* bytes of the old table given back at a time */

void *ud__zeroed(size_t bytes)
{
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address == MAP_FAILED ? NULL : address;
}

void ud__unmap(void *address, size_t bytes)
{
    if (address)
        munmap(address, bytes);
}

int ud__grow(void **array, uint32_t *room, uint32_t need, size_t item)
{
    if (need <= *room)
        return 0;
    uint32_t more = *room ? *room + *room / 2 + 1 : 64;
    if (more < need)
        more = need;
    void *bigger = realloc(*array, (size_t)more * item);
    if (!bigger)
        return -ENOMEM;
    memset((char *)bigger + (size_t)*room * item, 0, (size_t)(more - *room) * item);
    *array = bigger;
    *room = more;
    return 0;
}

static uint64_t mix(const struct ud_planner *p, uint64_t digest)
{
    uint64_t h = (digest ^ p->secret) * 0x9e3779b97f4a7c15ull;
    return (h ^ h >> 32) * 0xd6e8feb86659fd93ull;
}

/* Monotonic in h: a rebuild that walks the old table fills the new one from its start as well. */
static size_t home_of(uint64_t h, size_t size)
{
    return (size_t)((unsigned __int128)h * size >> 64);
}

static uint64_t pack(uint64_t h, struct ud__ref ref)
{
    return (h & 0xffff) << 48 | (uint64_t)ref.stable << 47 | (uint64_t)ref.id << 30 | ref.page;
}

static struct ud__ref unpack(uint64_t slot)
{
    return (struct ud__ref){slot >> 47 & 1, (uint32_t)(slot >> 30) & (UD__MAX_IDS - 1), (uint32_t)slot & (UD__MAX_PAGES - 1)};
}

/* The digest an entry stands for now; false if it stands for nothing any more. */
static bool read_digest(struct ud_planner *p, struct ud__ref ref, uint64_t *digest)
{
    if (ref.stable) {
        struct ud__segment *g = ud__segment(p, ref.id);
        if (!g || g->retiring || ref.page >= g->npages)
            return false;
        *digest = g->digests[ref.page];
        return true;
    }
    struct ud__session *s = ud__session(p, ref.id);
    return s && ud__nominated(s, ref.page, digest);
}

/* Position of the digest's entry or, if there is none, of the place to write one; SIZE_MAX if neither. */
static size_t probe(struct ud_planner *p, uint64_t digest, uint64_t h, bool *present)
{
    struct ud__table *t = &p->table;
    size_t at = home_of(h, t->size), stale = SIZE_MAX;
    *present = false;
    for (unsigned i = 0; i < MAX_PROBES && i < t->size; i++, at = at + 1 == t->size ? 0 : at + 1) {
        uint64_t slot = t->slots[at], now;
        if (!slot)
            return stale != SIZE_MAX ? stale : at;
        if (slot >> 48 != (h & 0xffff))
            continue;
        bool live = read_digest(p, unpack(slot), &now);
        if (live && now == digest) {
            *present = true;
            return at;
        }
        if (stale == SIZE_MAX && (!live || (mix(p, now) & 0xffff) != slot >> 48))
            stale = at;
    }
    return stale;
}

bool ud__index_find(struct ud_planner *p, uint64_t digest, struct ud__ref *found)
{
    bool present;
    if (!p->table.size)
        return false;
    size_t at = probe(p, digest, mix(p, digest), &present);
    if (present)
        *found = unpack(p->table.slots[at]);
    return present;
}

static void insert_moved(struct ud__table *t, uint64_t h, uint64_t slot)
{
    size_t at = home_of(h, t->size);
    for (unsigned i = 0; i < MAX_PROBES && i < t->size; i++, at = at + 1 == t->size ? 0 : at + 1)
        if (!t->slots[at]) {
            t->slots[at] = slot;
            t->used++;
            return;
        }
}

static size_t count_live(struct ud_planner *p)
{
    size_t live = 0;
    for (size_t i = 0; i < p->table.size; i++) {
        uint64_t slot = p->table.slots[i], now;
        live += slot && read_digest(p, unpack(slot), &now) && (mix(p, now) & 0xffff) == slot >> 48;
    }
    return live;
}

/* A new table of what still stands, with room for a third more. */
static int rebuild(struct ud_planner *p)
{
    struct ud__table old = p->table, fresh = {0};
    size_t live = count_live(p), freed = 0;
    fresh.size = (live < FIRST_SIZE / 2 ? FIRST_SIZE / 2 : live) * 5 / 3;
    fresh.slots = ud__zeroed(fresh.size * 8);
    if (!fresh.slots)
        return -ENOMEM;
    for (size_t i = 0; i < old.size; i++) {
        uint64_t slot = old.slots[i], now;
        if (slot && read_digest(p, unpack(slot), &now)) {
            uint64_t h = mix(p, now);
            if ((h & 0xffff) == slot >> 48)
                insert_moved(&fresh, h, slot);
        }
        if ((i + 1) * 8 - freed >= FREE_STEP) {
            madvise((char *)old.slots + freed, FREE_STEP, MADV_DONTNEED);
            freed += FREE_STEP;
        }
    }
    ud__unmap(old.slots, old.size * 8);
    p->table = fresh;
    return 0;
}

/* A slot of the store takes the place of a candidate, a wider tile that of a narrower one. */
static bool better(struct ud_planner *p, struct ud__ref new, struct ud__ref old)
{
    if (new.stable != old.stable || !new.stable)
        return true;
    struct ud__segment *g = ud__segment(p, new.id);
    return new.id != old.id && new.page + 1 < g->npages && g->digests[new.page] == g->digests[new.page + 1];
}

/* A candidate nobody had matched has a twin in the store now, or on its way there, and its block may never change again. */
static void look_again(struct ud_planner *p, struct ud__ref old, struct ud__ref new)
{
    struct ud__session *s = old.stable ? NULL : ud__session(p, old.id);
    bool same = !new.stable && new.id == old.id && new.page == old.page;
    if (s && !same && ud__free_candidate(s, old.page))
        ud__put_off(s, old.page, 0, true);
}

void ud__index_put(struct ud_planner *p, uint64_t digest, struct ud__ref ref)
{
    struct ud__table *t = &p->table;
    bool present;
    if ((t->used + 1) * 5 > t->size * 4 && rebuild(p) != 0 && t->used >= t->size)
        return;
    uint64_t h = mix(p, digest);
    size_t at = probe(p, digest, h, &present);
    if (at == SIZE_MAX || (present && !better(p, ref, unpack(t->slots[at]))))
        return;
    if (present)
        look_again(p, unpack(t->slots[at]), ref);
    t->used += t->slots[at] == 0;
    t->slots[at] = pack(h, ref);
}
