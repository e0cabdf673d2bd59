/* ledger.c: the agent's side of ledger.h.
 *
 * Guarantees: the file is sparse and only what is used takes memory; a page's entry is written before
 * its state, so that a reader who sees MERGED sees the slot.
 * Fails: -ENOMEM or -EMFILE at opening; a full ledger makes ud__ledger_block give -1, and pages beyond
 * it are simply not tracked.
 */
#include <fcntl.h>
#include <sys/mman.h>

#include "internal.h"

static uint64_t page_up(uint64_t n) { return (n + ud__page - 1) & ~(uint64_t)(ud__page - 1); }

/* Room for twice the machine's memory: a process cannot hold more than that in core. */
static uint32_t choose_capacity(void)
{
    char buf[256];
    uint64_t kib = 16u << 20;
    if (ud__read_file("/proc/meminfo", buf, sizeof buf) > 0) {
        const char *s = buf;
        while (*s && (*s < '0' || *s > '9'))
            s++;
        kib = ud__get_dec(&s);
    }
    uint64_t blocks = kib * 1024 * 2 / ud__block_bytes();
    if (blocks > (1u << 20))
        blocks = 1u << 20;
    return blocks < 1024 ? 1024 : (uint32_t)blocks;
}

static int map_file(struct ud__ledger *l, uint32_t capacity)
{
    uint64_t heads = page_up(sizeof(struct ud_ledger_header));
    uint64_t states = heads + page_up((uint64_t)capacity * sizeof(struct ud_block_head));
    uint64_t entries = states + page_up((uint64_t)capacity * UD_BLOCK_PAGES);
    uint64_t size = entries + page_up((uint64_t)capacity * UD_BLOCK_PAGES * 8);
    long r = ud__sys(__NR_ftruncate, l->fd, size);
    if (r < 0)
        return (int)r;
    long p = ud__sys(__NR_mmap, ud__hint(size), size, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
    if (ud__is_err(p))
        return (int)p;
    ud__sys(__NR_madvise, p, size, MADV_DONTFORK);
    ud__sys(__NR_fcntl, l->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    char *base = (char *)p;
    l->hdr = (struct ud_ledger_header *)base;
    l->heads = (struct ud_block_head *)(base + heads);
    l->states = (uint8_t *)(base + states);
    l->entries = (uint64_t *)(base + entries);
    *l->hdr = (struct ud_ledger_header){
        .magic = UD_LEDGER_MAGIC, .version = UD_LEDGER_VERSION, .page_shift = ud__page_shift, .capacity = capacity,
        .heads_off = heads, .states_off = states, .entries_off = entries, .size = size, .gen = 1,
    };
    return 0;
}

int ud__ledger_open(struct ud__ledger *l)
{
    *l = (struct ud__ledger){.fd = -1};
    long fd = ud__memfd("udedup-ledger");
    if (fd < 0)
        return (int)fd;
    l->fd = (int)fd;
    l->hash_cap = 1024;
    l->hash = ud__alloc(l->hash_cap * sizeof *l->hash);
    int r = -ENOMEM;
    if (l->hash)
        for (uint32_t cap = choose_capacity(); cap >= 1024 && (r = map_file(l, cap)) == -ENOMEM; cap /= 4) {
        }
    if (r)
        ud__ledger_close(l);
    return r;
}

void ud__ledger_close(struct ud__ledger *l)
{
    if (l->hdr)
        ud__sys(__NR_munmap, l->hdr, l->hdr->size);
    if (l->fd >= 0)
        ud__sys(__NR_close, l->fd);
    ud__free(l->hash, l->hash_cap * sizeof *l->hash);
    *l = (struct ud__ledger){.fd = -1};
}

static uint32_t hash_slot(const struct ud__ledger *l, uint64_t base)
{
    return (uint32_t)((base / UD_BLOCK_PAGES >> ud__page_shift) * 0x9e3779b97f4a7c15ull >> 24) & (l->hash_cap - 1);
}

static void hash_put(struct ud__ledger *l, uint32_t block)
{
    uint32_t i = hash_slot(l, l->heads[block].vaddr);
    while (l->hash[i])
        i = (i + 1) & (l->hash_cap - 1);
    l->hash[i] = block + 1;
    l->hash_used++;
}

static int hash_grow(struct ud__ledger *l)
{
    uint32_t *bigger = ud__alloc((size_t)l->hash_cap * 2 * sizeof *bigger);
    if (!bigger)
        return -ENOMEM;
    ud__free(l->hash, l->hash_cap * sizeof *l->hash);
    l->hash = bigger;
    l->hash_cap *= 2;
    ud__ledger_rehash(l);
    return 0;
}

void ud__ledger_rehash(struct ud__ledger *l)
{
    __builtin_memset(l->hash, 0, l->hash_cap * sizeof *l->hash);
    l->hash_used = 0;
    for (uint32_t b = 0; b < l->hdr->block_count; b++)
        if (l->heads[b].vaddr)
            hash_put(l, b);
}

/* A block that was dropped, ever the next one: memory that follows on in the program does so here, or its runs would be cut.
 * The number of blocks if there is none. */
static uint32_t block_again(struct ud__ledger *l)
{
    uint32_t count = l->hdr->block_count;
    for (uint32_t n = 0; n < count && l->dropped; n++) {
        l->again = l->again + 1 < count ? l->again + 1 : 0;
        if (!l->heads[l->again].vaddr) {
            l->dropped--;
            return l->again;
        }
    }
    return count;
}

static int64_t block_new(struct ud__ledger *l, uint64_t base)
{
    if ((l->hash_used + 1) * 2 > l->hash_cap && hash_grow(l))
        return -1;
    uint32_t b = block_again(l);
    if (b == l->hdr->capacity)
        return -1;
    l->heads[b] = (struct ud_block_head){.vaddr = base, .gen = l->hdr->gen + 1};
    if (b == l->hdr->block_count)
        __atomic_store_n(&l->hdr->block_count, b + 1, __ATOMIC_RELEASE);
    hash_put(l, b);
    return b;
}

int64_t ud__ledger_block(struct ud__ledger *l, uint64_t vaddr, int make)
{
    uint64_t base = vaddr & ~(ud__block_bytes() - 1);
    if (base && l->heads[l->last].vaddr == base) /* mostly it is the one that was asked for before */
        return l->last;
    for (uint32_t i = hash_slot(l, base); l->hash[i]; i = (i + 1) & (l->hash_cap - 1))
        if (l->heads[l->hash[i] - 1].vaddr == base)
            return l->last = l->hash[i] - 1;
    return make ? block_new(l, base) : -1;
}

/* The hash still names the block: call ud__ledger_rehash before the next look-up. */
void ud__ledger_drop_block(struct ud__ledger *l, uint32_t b)
{
    __builtin_memset(l->states + (size_t)b * UD_BLOCK_PAGES, 0, UD_BLOCK_PAGES);
    l->heads[b].vaddr = 0;
    l->heads[b].gen = l->hdr->gen + 1;
    l->dropped++;
}

uint8_t ud__page_state(struct ud__ledger *l, uint64_t vaddr, uint64_t *entry)
{
    int64_t b = ud__ledger_block(l, vaddr, 0);
    if (b < 0)
        return UD_PG_NONE;
    size_t i = (size_t)b * UD_BLOCK_PAGES + ((vaddr & (ud__block_bytes() - 1)) >> ud__page_shift);
    if (entry)
        *entry = l->entries[i];
    return l->states[i];
}

int ud__page_set(struct ud__ledger *l, uint64_t vaddr, uint8_t state, uint64_t entry)
{
    int64_t b = ud__ledger_block(l, vaddr, state != UD_PG_NONE);
    if (b < 0)
        return state == UD_PG_NONE ? 0 : -ENOSPC;
    size_t i = (size_t)b * UD_BLOCK_PAGES + ((vaddr & (ud__block_bytes() - 1)) >> ud__page_shift);
    l->entries[i] = entry;
    __atomic_store_n(&l->states[i], state, __ATOMIC_RELEASE);
    l->heads[b].gen = l->hdr->gen + 1;
    return 0;
}

void ud__ledger_commit(struct ud__ledger *l)
{
    __atomic_fetch_add(&l->hdr->gen, 1, __ATOMIC_RELEASE);
}
