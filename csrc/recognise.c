/* recognise.c: whose memory is a page, where our interposers are not in front of libc?
 *
 * In a process that was joined late (udedup.join, watch --merge) nobody tells us of madvise(DONTNEED), after which some
 * allocators count on zeros, nor of a growing mremap. So only memory is merged whose owner is known to do neither:
 * the brk heap (glibc), pools of CPython's object allocator, and what the program advised itself.
 *
 * Guarantees: called in a hold, reads only inside the mapping it was given. A pool is known by its header, whose fields
 * must fit each other (Objects/obmalloc.c: 16 KiB pools since 3.10, 4 KiB before).
 * Fails: towards no: an unknown layout of pools means that they are not merged.
 */
#include "internal.h"

struct pool_header { /* of CPython, 48 bytes */
    uint32_t ref_count, pad;
    uint64_t free_block, next_pool, prev_pool;
    uint32_t arena_index, size_class, next_offset, max_next_offset;
};

static int is_pool(uint64_t at, uint32_t bytes)
{
    const struct pool_header *h = (const struct pool_header *)at;
    uint32_t block = (h->size_class + 1) * 16;
    return h->size_class < 64 && h->max_next_offset == bytes - block && h->ref_count > 0 &&
           h->ref_count <= bytes / block && h->next_offset >= sizeof *h && h->next_offset <= bytes + block &&
           (h->free_block == 0 || h->free_block / bytes == at / bytes) && h->next_pool % bytes % 16 == 0;
}

static int in_pool(const struct ud__vma *v, uint64_t page)
{
    uint64_t big = page & ~(uint64_t)(16384 - 1);
    if (big >= v->start && big + 16384 <= v->end && is_pool(big, 16384))
        return 1;
    return ud__page == 4096 && is_pool(page, 4096);
}

int ud__recognised(const struct ud__vma *v, uint64_t page)
{
    if (ud__a.preloaded || ud__in_heap(page))
        return 1;
    uint64_t end = page + ud__page;
    return ud__region_allows(page, &end, 1) || in_pool(v, page);
}
