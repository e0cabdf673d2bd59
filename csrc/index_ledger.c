/* index_ledger.c: a mapped ledger, read as if its owner were hostile.
 *
 * Guarantees: the layout is read once, checked, and kept; every later access is inside the mapping,
 * whose file can neither shrink nor grow (seals checked).
 * Fails: -EPERM without those seals, -EBADMSG for a header that contradicts itself, -ENOMEM.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "index_int.h"

#define NEEDED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

static bool part_fits(uint64_t off, uint64_t bytes, uint64_t size, size_t page_size)
{
    return off >= sizeof(struct ud_ledger_header) && off % page_size == 0 && off <= size && bytes <= size - off;
}

static bool header_ok(const struct ud_ledger_header *h, uint64_t size, size_t page_size)
{
    uint64_t pages = (uint64_t)h->capacity * UD_BLOCK_PAGES;
    return h->magic == UD_LEDGER_MAGIC && h->version == UD_LEDGER_VERSION && h->page_shift < 32 &&
           (size_t)1 << h->page_shift == page_size && h->capacity > 0 && pages <= UD__MAX_PAGES &&
           part_fits(h->heads_off, (uint64_t)h->capacity * sizeof(struct ud_block_head), size, page_size) &&
           part_fits(h->states_off, pages, size, page_size) && part_fits(h->entries_off, pages * 8, size, page_size);
}

static int make_bitmaps(struct ud__session *s)
{
    size_t bytes = (size_t)s->capacity * 8;
    s->claim = ud__zeroed(bytes);
    s->pub = ud__zeroed(bytes);
    s->queue = ud__zeroed(bytes);
    s->shy = ud__zeroed(bytes);
    s->again = ud__zeroed((size_t)(s->capacity / 64 + 1) * 8);
    s->order = ud__zeroed((size_t)s->capacity * 4);
    return s->claim && s->pub && s->queue && s->shy && s->again && s->order ? 0 : -ENOMEM;
}

int ud__ledger_attach(struct ud__session *s, int fd, size_t page_size)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & NEEDED_SEALS) != NEEDED_SEALS)
        return -EPERM;
    if (fstat(fd, &st) != 0 || st.st_size < (off_t)sizeof(struct ud_ledger_header))
        return -EBADMSG;
    s->map_bytes = (size_t)st.st_size;
    void *map = mmap(NULL, s->map_bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -errno;
    s->header = map;
    struct ud_ledger_header h = *s->header; /* one copy: what is checked is what is used */
    if (!header_ok(&h, s->map_bytes, page_size))
        return -EBADMSG;
    s->heads = (const void *)((const char *)map + h.heads_off);
    s->states = (const void *)((const char *)map + h.states_off);
    s->entries = (const void *)((const char *)map + h.entries_off);
    s->capacity = h.capacity;
    return make_bitmaps(s);
}

void ud__ledger_detach(struct ud__session *s)
{
    size_t bytes = (size_t)s->capacity * 8;
    ud__unmap(s->claim, bytes);
    ud__unmap(s->pub, bytes);
    ud__unmap(s->queue, bytes);
    ud__unmap(s->shy, bytes);
    ud__unmap(s->again, (size_t)(s->capacity / 64 + 1) * 8);
    ud__unmap(s->order, (size_t)s->capacity * 4);
    ud__unmap((void *)s->header, s->map_bytes);
}

static uint64_t head_vaddr(const struct ud__session *s, uint32_t block)
{
    return __atomic_load_n(&s->heads[block].vaddr, __ATOMIC_RELAXED);
}

static bool in_order(const struct ud__session *s)
{
    uint64_t before = 0;
    for (uint32_t i = 0; i < s->order_count; i++) {
        uint64_t vaddr = head_vaddr(s, s->order[i]);
        if (vaddr < before)
            return false;
        before = vaddr;
    }
    return true;
}

struct place {
    uint64_t vaddr;
    uint32_t block;
};

static int by_vaddr(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->vaddr < y->vaddr ? -1 : x->vaddr > y->vaddr;
}

/* Addresses are copied before they are sorted: they may change meanwhile. */
static void sort_blocks(struct ud__session *s)
{
    struct place *places = malloc((size_t)s->count * sizeof(*places));
    if (!places) {
        for (uint32_t i = 0; i < s->count; i++)
            s->order[i] = i;
    } else {
        for (uint32_t i = 0; i < s->count; i++)
            places[i] = (struct place){head_vaddr(s, i), i};
        qsort(places, s->count, sizeof(*places), by_vaddr);
        for (uint32_t i = 0; i < s->count; i++)
            s->order[i] = places[i].block;
    }
    s->order_count = s->count;
    free(places);
}

void ud__ledger_refresh(struct ud__session *s)
{
    uint32_t count = __atomic_load_n(&s->header->block_count, __ATOMIC_ACQUIRE);
    s->count = count < s->capacity ? count : s->capacity;
    if (s->order_count != s->count || !in_order(s))
        sort_blocks(s);
}

/* The block at an address, UD__NONE if there is none. As of the last refresh; the caller checks pages. */
uint32_t ud__ledger_at(const struct ud__session *s, uint64_t vaddr)
{
    uint32_t low = 0, high = s->order_count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        uint64_t at = head_vaddr(s, s->order[mid]);
        if (at == vaddr)
            return s->order[mid];
        if (at < vaddr)
            low = mid + 1;
        else
            high = mid;
    }
    return UD__NONE;
}

/* Address of a page, 0 if its block is free or its address is none. Told to the owner alone. */
uint64_t ud__ledger_vaddr(const struct ud__session *s, uint32_t page, size_t page_size)
{
    uint64_t base = head_vaddr(s, page / UD_BLOCK_PAGES);
    if (!base || base % (UD_BLOCK_PAGES * page_size) || base >= 1ull << 57)
        return 0;
    return base + page % UD_BLOCK_PAGES * page_size;
}

/* Does page + 1 lie right behind page in memory? */
bool ud__ledger_follows(const struct ud__session *s, uint32_t page, size_t page_size)
{
    if ((page + 1) % UD_BLOCK_PAGES)
        return true;
    if (!ud__in_use(s, page + 1))
        return false;
    uint64_t here = head_vaddr(s, page / UD_BLOCK_PAGES);
    return here && head_vaddr(s, (page + 1) / UD_BLOCK_PAGES) == here + UD_BLOCK_PAGES * page_size;
}
