/* interpose_malloc.c: large blocks of malloc get mappings of their own, at the start of a page.
 *
 * So equal arrays are equal pages wherever they sit, and we own their life: realloc of a merged block copies, where libc's
 * own mremap would show the next slots of the segment. Small requests go on to the malloc behind us.
 *
 * Which blocks are ours is told by a two-level table by address (pages of each block at its first page), without
 * locks, so a fork never finds one taken. Freed blocks are kept for reuse in a small cache, as malloc would.
 *
 * Guarantees: alignment of a page; calloc gives zeros; errno ENOMEM and NULL when there is nothing left.
 * As thread-safe as malloc; small requests cost one comparison and a load.
 * Fails: where no table can be had the request goes on to the malloc behind us.
 */
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "trap.h"

#define LARGE (128u * 1024)
#define LEAF_BITS 30 /* a leaf covers 1 GiB */
#define ROOT_COUNT (1u << (47 - LEAF_BITS))
#define MOVE_STEP (8u << 20)
#define BLOCK_MOST (1ull << 43) /* pages are counted in 32 bits */
#define CACHE_AGE_US 5000000u
#define CACHE_SLOTS 32
#define CACHE_BYTES (32u << 20)
#define CACHE_BLOCK_MAX (8u << 20)

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
extern void *__curbrk __attribute__((weak));

static struct next {
    void *(*malloc)(size_t);
    void (*free)(void *);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*memalign)(size_t, size_t);
    size_t (*usable)(void *);
} next = {__libc_malloc, __libc_free, __libc_calloc, __libc_realloc, __libc_memalign, NULL};
static atomic_int next_known;

typedef _Atomic uint32_t leaf[1u << (LEAF_BITS - 12)];
static leaf *_Atomic root[ROOT_COUNT];

static struct cached {
    _Atomic uint64_t addr;
    uint64_t pages;
    uint64_t since_us;
} cache[CACHE_SLOTS];
static _Atomic int64_t cache_bytes;
UD_HIDDEN atomic_int ud__malloc_closed, ud__malloc_locked;

/* The malloc behind us: libc's, or another preloaded one. */
static void learn_next(void)
{
    int none = 0;
    if (!atomic_compare_exchange_strong(&next_known, &none, 1))
        return;
    struct next n = next;
    void *f;
    if ((f = dlsym(RTLD_NEXT, "malloc")))
        n.malloc = (void *(*)(size_t))f;
    if ((f = dlsym(RTLD_NEXT, "free")))
        n.free = (void (*)(void *))f;
    if ((f = dlsym(RTLD_NEXT, "calloc")))
        n.calloc = (void *(*)(size_t, size_t))f;
    if ((f = dlsym(RTLD_NEXT, "realloc")))
        n.realloc = (void *(*)(void *, size_t))f;
    if ((f = dlsym(RTLD_NEXT, "memalign")))
        n.memalign = (void *(*)(size_t, size_t))f;
    if ((f = dlsym(RTLD_NEXT, "malloc_usable_size")))
        n.usable = (size_t (*)(void *))f;
    next = n;
    atomic_store(&next_known, 2);
}

static inline struct next *behind(void)
{
    if (UD_UNLIKELY(atomic_load_explicit(&next_known, memory_order_acquire) == 0))
        learn_next();
    return &next;
}

static inline void watch_heap(void)
{
    if (UD_UNLIKELY((uintptr_t)__curbrk > atomic_load_explicit(&ud__brk_trigger, memory_order_relaxed)))
        ud__growth_check();
}

static int active(void) { return ud__a.socket[0] && !ud__a.disabled; }

/* ---- the table ------------------------------------------------------------------------------------------------------------ */

static _Atomic uint32_t *entry(uint64_t addr, int make)
{
    if (addr >> 47)
        return NULL;
    leaf *_Atomic *at = &root[addr >> LEAF_BITS];
    leaf *l = atomic_load_explicit(at, memory_order_acquire);
    if (!l && make) {
        long p = ud__sys(__NR_mmap, ud__hint(sizeof *l), sizeof *l, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (ud__is_err(p))
            return NULL;
        ud__sys(__NR_madvise, p, sizeof *l, MADV_DONTDUMP); /* joins no mapping of the program */
        if (atomic_compare_exchange_strong(at, &l, (leaf *)p)) {
            l = (leaf *)p;
            ud__own_add(l, sizeof *l);
        } else {
            ud__sys(__NR_munmap, p, sizeof *l);
        }
    }
    return l ? &(*l)[(addr & ((1ull << LEAF_BITS) - 1)) >> 12] : NULL;
}

void ud__malloc_own(void)
{
    for (size_t i = 0; i < ROOT_COUNT; i++) {
        leaf *l = atomic_load(&root[i]);
        if (l)
            ud__own_add(l, sizeof *l);
    }
}

/* Pages of the block that begins at p, 0 if p is not ours. */
static inline uint64_t pages_of(const void *p)
{
    if (UD_LIKELY((uintptr_t)p & 4095) || !p)
        return 0;
    _Atomic uint32_t *e = entry((uint64_t)p, 0);
    return e ? atomic_load_explicit(e, memory_order_relaxed) : 0;
}

/* ---- the cache of freed blocks -------------------------------------------------------------------------------------------------- */

static void unmap(uint64_t addr, uint64_t pages)
{
    uint64_t len = pages << ud__page_shift;
    ud__busy_enter(); /* unmapping and forgetting the bits: no batch in between */
    if (UD_UNLIKELY(atomic_load_explicit(&ud__trap_on, memory_order_acquire)) && UD__GUARD_ON(UD__GUARD_FREE))
        ud__trap_settle(addr, addr + len);
    ud__sys(__NR_munmap, addr, len);
    ud__region_unmap(addr, addr + len);
    if (atomic_load(&ud__merged_ever))
        ud__merged_clear(addr, addr + len);
    ud__busy_leave();
    ud__note_growth(-(int64_t)len);
}

static int cache_put(uint64_t addr, uint64_t pages)
{
    int64_t len = (int64_t)(pages << ud__page_shift);
    if (len > (int64_t)CACHE_BLOCK_MAX || atomic_load(&cache_bytes) + len > (int64_t)CACHE_BYTES)
        return 0;
    for (int i = 0; i < CACHE_SLOTS; i++) {
        uint64_t none = 0;
        if (!atomic_compare_exchange_strong(&cache[i].addr, &none, 1)) /* 1: being filled */
            continue;
        cache[i].pages = pages;
        cache[i].since_us = 0;
        atomic_fetch_add(&cache_bytes, len);
        atomic_store(&cache[i].addr, addr);
        return 1;
    }
    return 0;
}

static uint64_t cache_get(uint64_t pages, uint64_t *got)
{
    if (atomic_load_explicit(&cache_bytes, memory_order_relaxed) == 0)
        return 0;
    for (int i = 0; i < CACHE_SLOTS; i++) {
        uint64_t addr = atomic_load(&cache[i].addr);
        if (addr <= 1 || cache[i].pages < pages || cache[i].pages > pages + pages / 4)
            continue;
        if (!atomic_compare_exchange_strong(&cache[i].addr, &addr, 1))
            continue;
        uint64_t have = cache[i].pages;
        int fits = have >= pages && have <= pages + pages / 4; /* it may be another block by now */
        atomic_store(&cache[i].addr, fits ? 0 : addr);
        if (!fits)
            continue;
        atomic_fetch_sub(&cache_bytes, (int64_t)(have << ud__page_shift));
        if (UD_UNLIKELY(atomic_load_explicit(&ud__malloc_closed, memory_order_relaxed)) &&
            ud__mprotect(addr, have << ud__page_shift, PROT_READ | PROT_WRITE) != 0) {
            unmap(addr, have);
            return 0;
        }
        *got = have;
        return addr;
    }
    return 0;
}

/* No memory, or no address space, is left: what lies there goes back at once. 1 if that was anything. */
int ud__malloc_spare(void)
{
    int found = 0, saved = errno;
    for (int i = 0; atomic_load(&cache_bytes) > 0 && i < CACHE_SLOTS; i++) {
        uint64_t addr = atomic_load(&cache[i].addr);
        if (addr <= 1 || !atomic_compare_exchange_strong(&cache[i].addr, &addr, 1))
            continue;
        uint64_t pages = cache[i].pages;
        atomic_fetch_sub(&cache_bytes, (int64_t)(pages << ud__page_shift));
        atomic_store(&cache[i].addr, 0);
        unmap(addr, pages);
        found = 1;
    }
    errno = saved;
    return found;
}

/* By the agent of a calm program, once a pass: what has lain there for a while goes back to the kernel. Not sooner: where
 * the next block lies would depend on the moment, and the layouts of a pool would drift apart. */
void ud__malloc_release(void)
{
    for (int i = 0; i < CACHE_SLOTS; i++) {
        uint64_t addr = atomic_load(&cache[i].addr), now = ud__now_us();
        if (addr <= 1 || !atomic_compare_exchange_strong(&cache[i].addr, &addr, 1))
            continue;
        uint64_t pages = cache[i].pages;
        if (cache[i].since_us == 0 || now - cache[i].since_us < CACHE_AGE_US) {
            if (cache[i].since_us == 0)
                cache[i].since_us = now;
            atomic_store(&cache[i].addr, addr);
            continue;
        }
        atomic_fetch_sub(&cache_bytes, (int64_t)(pages << ud__page_shift));
        atomic_store(&cache[i].addr, 0);
        unmap(addr, pages);
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------------------- */

static long map_block(uint64_t pages)
{
    return ud__sys(__NR_mmap, 0, pages << ud__page_shift, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void *block_new(size_t bytes, int zeroed)
{
    uint64_t pages = (bytes + ud__page - 1) >> ud__page_shift, got = 0;
    if (bytes > BLOCK_MOST)
        return NULL;
    uint64_t addr = cache_get(pages, &got);
    if (addr && zeroed)
        memset((void *)addr, 0, got << ud__page_shift);
    if (!addr) {
        long p = map_block(pages);
        while (ud__is_err(p) && (ud__malloc_spare() || ud__budget_make_room()))
            p = map_block(pages);
        if (ud__is_err(p))
            return NULL;
        addr = (uint64_t)p;
        got = pages;
        ud__note_growth((int64_t)(pages << ud__page_shift));
    }
    _Atomic uint32_t *e = entry(addr, 1);
    if (!e) {
        unmap(addr, got);
        return NULL;
    }
    atomic_store_explicit(e, (uint32_t)got, memory_order_release);
    return (void *)addr;
}

static void block_free(void *p, uint64_t pages)
{
    int saved = errno;
    atomic_store(entry((uint64_t)p, 0), 0);
    int marked = ud__region_any((uint64_t)p, (uint64_t)p + (pages << ud__page_shift)); /* advice ends with the block */
    if (marked || atomic_load_explicit(&ud__malloc_locked, memory_order_relaxed) || !cache_put((uint64_t)p, pages))
        unmap((uint64_t)p, pages);
    errno = saved;
}

static void *copy_to(void *fresh, void *old, uint64_t pages, size_t bytes)
{
    if (!fresh)
        return NULL;
    size_t have = pages << ud__page_shift;
    memcpy(fresh, old, have < bytes ? have : bytes);
    block_free(old, pages);
    return fresh;
}

/* Blocks of the malloc behind us: libc would resize a mapped one by an mremap that we cannot see. */
static int resize_would_show(void *p, size_t *have)
{
    if (!atomic_load(&ud__merged_ever) || !behind()->usable || (*have = behind()->usable(p)) < LARGE)
        return 0;
    return ud__merged_any((uint64_t)p & ~(uint64_t)(ud__page - 1), (uint64_t)p + *have);
}

/* Where there is no room for a second block, libc would get along with the difference. */
static void *block_stretch(void *p, uint64_t pages, size_t bytes)
{
    uint64_t from = (uint64_t)p, want = (bytes + ud__page - 1) >> ud__page_shift, len = pages << ud__page_shift;
    atomic_store(entry(from, 0), 0); /* before others can get a block there */
    long to = ud__mremap(from, len, want << ud__page_shift, MREMAP_MAYMOVE, 0);
    _Atomic uint32_t *e = ud__is_err(to) ? NULL : entry((uint64_t)to, 1);
    if (e) {
        atomic_store(e, (uint32_t)want);
        return (void *)to;
    }
    if (!ud__is_err(to)) /* no table can be had for it: back again */
        ud__mremap((uint64_t)to, want << ud__page_shift, len, MREMAP_MAYMOVE | MREMAP_FIXED, from);
    atomic_store(entry(from, 0), (uint32_t)pages);
    return NULL;
}

/* Moves the contents into a larger block. By copying, never by mremap: what was one mapping is several once a part of it
 * is tracked or merged, and since Linux 6.17 an mremap over several may fail with some of them moved. Room to grow is
 * mapped (not touched) at once, so a block that grows step by step is copied seldom; what was copied is given back
 * as it goes, so a large one is never in memory twice. */
static void *block_move(void *p, uint64_t pages, size_t bytes)
{
    uint64_t from = (uint64_t)p, len = pages << ud__page_shift;
    char *fresh = block_new(bytes + bytes / 2, 0);
    if (!fresh && !(fresh = block_new(bytes, 0)))
        return block_stretch(p, pages, bytes);
    for (uint64_t done = 0; done < len; done += MOVE_STEP) {
        uint64_t step = len - done < MOVE_STEP ? len - done : MOVE_STEP;
        memcpy(fresh + done, (char *)p + done, step);
        if (len > MOVE_STEP)
            ud__sys(__NR_madvise, from + done, step, MADV_DONTNEED);
    }
    atomic_store(entry(from, 0), 0);
    unmap(from, pages);
    return fresh;
}

static void *block_resize(void *p, uint64_t pages, size_t bytes)
{
    uint64_t want = (bytes + ud__page - 1) >> ud__page_shift;
    if (want <= pages && want >= pages - pages / 2)
        return p;
    if (bytes < LARGE)
        return copy_to(behind()->malloc(bytes), p, pages, bytes);
    if (want < pages) { /* the tail goes, merged or not */
        atomic_store(entry((uint64_t)p, 0), (uint32_t)want);
        unmap((uint64_t)p + (want << ud__page_shift), pages - want);
        return p;
    }
    return block_move(p, pages, bytes);
}

/* Has malloc behind us run into the limit of mappings, and did merging give some back? */
static inline int again(const void *p)
{
    return UD_UNLIKELY(!p) && errno == ENOMEM && (ud__malloc_spare() || ud__budget_make_room());
}

/* ---- the interposed calls ---------------------------------------------------------------------------------------------------------- */

UD_API void *malloc(size_t bytes)
{
    watch_heap();
    if (UD_UNLIKELY(bytes >= LARGE) && active()) {
        void *p = block_new(bytes, 0);
        if (p)
            return p;
    }
    void *p = behind()->malloc(bytes);
    return again(p) ? behind()->malloc(bytes) : p;
}

UD_API void *calloc(size_t n, size_t size)
{
    size_t bytes;
    watch_heap();
    if (!__builtin_mul_overflow(n, size, &bytes) && UD_UNLIKELY(bytes >= LARGE) && active()) {
        void *p = block_new(bytes, 1);
        if (p)
            return p;
    }
    void *p = behind()->calloc(n, size);
    return again(p) ? behind()->calloc(n, size) : p;
}

UD_API void free(void *p)
{
    uint64_t pages = pages_of(p);
    if (UD_UNLIKELY(pages))
        block_free(p, pages);
    else
        behind()->free(p);
}

UD_API void *realloc(void *p, size_t bytes)
{
    uint64_t pages = pages_of(p);
    if (!p)
        return malloc(bytes);
    if (UD_LIKELY(!pages)) {
        size_t have;
        watch_heap();
        if (UD_LIKELY(!bytes || !resize_would_show(p, &have))) {
            void *r = behind()->realloc(p, bytes);
            return bytes && again(r) ? behind()->realloc(p, bytes) : r;
        }
        void *fresh = malloc(bytes);
        if (fresh) {
            memcpy(fresh, p, have < bytes ? have : bytes);
            behind()->free(p);
        }
        return fresh;
    }
    if (bytes == 0) {
        block_free(p, pages);
        return NULL;
    }
    void *r = bytes > BLOCK_MOST ? NULL : block_resize(p, pages, bytes); /* more would overflow what is reckoned with it */
    if (!r)
        errno = ENOMEM;
    return r;
}

UD_API void *reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(p, bytes);
}

UD_API void *memalign(size_t align, size_t bytes)
{
    if (align <= 4096 && bytes >= LARGE && active()) {
        void *p = block_new(bytes, 0);
        if (p)
            return p;
    }
    void *p = behind()->memalign(align, bytes);
    return again(p) ? behind()->memalign(align, bytes) : p;
}

UD_API void *aligned_alloc(size_t align, size_t bytes) { return memalign(align, bytes); }

UD_API int posix_memalign(void **out, size_t align, size_t bytes)
{
    if (align % sizeof(void *) || (align & (align - 1)) || align == 0)
        return EINVAL;
    int saved = errno;
    void *p = memalign(align, bytes);
    errno = saved;
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

UD_API void *valloc(size_t bytes) { return memalign(ud__page, bytes); }

UD_API void *pvalloc(size_t bytes)
{
    if (bytes > SIZE_MAX - ud__page) {
        errno = ENOMEM;
        return NULL;
    }
    return memalign(ud__page, (bytes + ud__page - 1) & ~(ud__page - 1));
}

UD_API size_t malloc_usable_size(void *p)
{
    uint64_t pages = pages_of(p);
    if (pages)
        return pages << ud__page_shift;
    return p && behind()->usable ? behind()->usable(p) : 0;
}
