/* interpose_mm.c: the memory calls of the program, made right where merging would show.
 *
 *   call                        what would show                           what is done
 *   munmap, mmap(MAP_FIXED)     nothing; stale bits                       the bits go with the pages
 *   mremap, growing or moving   EFAULT over pieces, or the next slots     unmerged or relocated under a hold
 *   madvise DONTNEED, FREE      the segment's bytes, EINVAL               fresh zero pages first
 *   madvise REMOVE              EACCES                                    EINVAL, as on anonymous memory
 *   madvise DONTFORK, WIPE...   flags lost, EINVAL                        unmerged first, kept out from then on
 *   madvise MERGEABLE           -                                         our registry, not the kernel's
 *   process_madvise, to itself  as madvise                                as madvise
 *   mprotect, mlock, ...        on blocks that are freed so               not kept for reuse as they are
 *   prctl PR_SET_MEMORY_MERGE   -                                         ours
 *
 * Guarantees: POSIX results and errno as without us; async-signal-safe; nothing but a counter and a load where
 * nothing was merged. Check and call stand between ud__busy_enter and ud__busy_leave, so that no batch falls
 * between them.
 * Fails: calls made past libc's symbols (libc's own, raw system calls) do not come here; merge.c's rules (last page of a
 * mapping, checks under the hold) are what covers those.
 */
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "internal.h"
#include "trap.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif
#define ADV_COLLAPSE 25
#define IOV_MOST 1024

static long out(long r)
{
    if (UD_UNLIKELY(ud__is_err(r))) {
        errno = (int)-r;
        return -1;
    }
    return r;
}

static uint64_t up(uint64_t n) { return (n + ud__page - 1) & ~(uint64_t)(ud__page - 1); }

/* Inside busy, before a call on [start, end): no window of the trap is over it then, and its protection is forgotten. */
static void settle(uint64_t start, uint64_t len)
{
    if (UD_UNLIKELY(atomic_load_explicit(&ud__trap_on, memory_order_acquire)))
        ud__trap_settle(start, start + len);
}

/* Inside busy, before a call that takes the pages along: they are writable, and no window begins before busy is left. */
static void open_trap(uint64_t start, uint64_t len)
{
    if (UD_UNLIKELY(atomic_load_explicit(&ud__trap_on, memory_order_acquire)) && UD__GUARD_ON(UD__GUARD_OPEN))
        ud__trap_open(start, start + len);
}

static int ever(void) { return UD_UNLIKELY(atomic_load_explicit(&ud__merged_ever, memory_order_acquire)); }

/* A piece of a segment would not grow, nor be wiped on fork. */
static void note_kind(long at, size_t len, int flags)
{
    if (UD_UNLIKELY(flags & MAP_GROWSDOWN) && !ud__is_err(at) && UD__GUARD_ON(UD__GUARD_DOWN))
        ud__region_mark((uint64_t)at, up((uint64_t)at + len), UD__REG_GROWS);
    else if (UD_UNLIKELY((flags & 15) == 8 /* MAP_DROPPABLE */) && !ud__is_err(at))
        ud__region_mark((uint64_t)at, up((uint64_t)at + len), UD__REG_KEEP_OUT);
}

static long mmap_fixed(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    ud__busy_enter();
    settle((uint64_t)addr, len);
    long r = ud__sys(__NR_mmap, addr, len, prot, flags, fd, off);
    if (!ud__is_err(r)) {
        ud__region_unmap((uint64_t)r, up((uint64_t)r + len));
        if (ever())
            ud__merged_clear((uint64_t)r, up((uint64_t)r + len));
        note_kind(r, len, flags);
    }
    ud__busy_leave();
    ud__budget_note(!ud__is_err(r));
    return r;
}

/* After ENOMEM: may what udedup has kept be the reason, and is the call worth another try? */
static int room_was_made(long r)
{
    return UD_UNLIKELY(r == -ENOMEM) && (ud__malloc_spare() || ud__budget_make_room());
}

static void *do_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    int replaces = flags & MAP_FIXED && !(flags & 0x100000 /* MAP_FIXED_NOREPLACE */);
    if (UD_UNLIKELY(replaces)) {
        long r = mmap_fixed(addr, len, prot, flags, fd, off);
        while (room_was_made(r))
            r = mmap_fixed(addr, len, prot, flags, fd, off);
        return (void *)out(r);
    }
    long r = ud__sys(__NR_mmap, addr, len, prot, flags, fd, off);
    while (room_was_made(r))
        r = ud__sys(__NR_mmap, addr, len, prot, flags, fd, off);
    ud__budget_note(!ud__is_err(r));
    note_kind(r, len, flags);
    if (!ud__is_err(r) && flags & MAP_PRIVATE && flags & MAP_ANONYMOUS && prot & PROT_WRITE)
        ud__note_growth((int64_t)len);
    return (void *)out(r);
}

UD_API void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return do_mmap(addr, len, prot, flags, fd, off);
}

UD_API void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
    return do_mmap(addr, len, prot, flags, fd, off);
}

static long do_munmap(void *addr, size_t len)
{
    ud__busy_enter();
    settle((uint64_t)addr, len);
    long r = ud__sys(__NR_munmap, addr, len);
    if (r == 0) {
        ud__region_unmap((uint64_t)addr, up((uint64_t)addr + len));
        if (ever())
            ud__merged_clear((uint64_t)addr, up((uint64_t)addr + len));
        ud__note_growth(-(int64_t)len);
        ud__budget_note(-1);
    }
    ud__busy_leave();
    return r;
}

UD_API int munmap(void *addr, size_t len)
{
    long r = do_munmap(addr, len);
    while (UD_UNLIKELY(r == -ENOMEM) && ud__budget_make_room()) /* it would have cut a mapping in two */
        r = do_munmap(addr, len);
    return (int)out(r);
}

/* The kernel moves several mappings in one call since 6.17, and may stop half-way. What the program sees as one mapping may
 * be several by our tracking, so such a move is ours to make. */
static int pure_move(size_t old_len, size_t new_len, int flags)
{
    return flags & MREMAP_FIXED && up(old_len) == up(new_len) && atomic_load(&ud__a.state) != UD__AGENT_NONE;
}

/* Is it a request that the kernel may grant? What is not goes to the kernel, which says what is wrong with it: we would move
 * a mapping over itself. */
static int sound(uint64_t addr, size_t old_len, size_t new_len, int flags, uint64_t to)
{
    uint64_t most = 1ull << 43; /* pages are counted in 32 bits */
    if (addr % ud__page || !old_len || !new_len || old_len > most || new_len > most ||
        flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP))
        return 0;
    if (!(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)))
        return 1;
    if (!(flags & MREMAP_MAYMOVE) || to % ud__page || to > UINT64_MAX / 2)
        return 0;
    if (flags & MREMAP_DONTUNMAP && up(old_len) != up(new_len))
        return 0;
    return to + up(new_len) <= addr || addr + up(old_len) <= to;
}

static int moves_or_grows(size_t old_len, size_t new_len, int flags)
{
    return up(new_len) > up(old_len) || flags & ~MREMAP_MAYMOVE;
}

static int really_merged(uint64_t start, uint64_t end)
{
    ud__busy_enter();
    int r = ud__merged_really(start, end);
    ud__busy_leave();
    return r;
}

/* The kernel's answer, made to hold over pieces that merging made of one mapping. */
static long remap_across(uint64_t addr, size_t old_len, size_t new_len, int flags, void *to)
{
    int ours = pure_move(old_len, new_len, flags);
    for (int tries = 0; tries < 8; tries++) {
        ud__busy_enter();
        open_trap(addr, up(old_len));
        if (flags & MREMAP_FIXED)
            settle((uint64_t)to, new_len);
        int merged = ud__merged_any(addr, addr + up(old_len));
        ud__test_gap();
        long r = merged || ours ? -EFAULT : ud__sys(__NR_mremap, addr, old_len, new_len, flags, to);
        if (!ud__is_err(r) && !merged && flags & MREMAP_FIXED)
            ud__merged_clear((uint64_t)r, (uint64_t)r + up(new_len));
        if (!ud__is_err(r))
            ud__region_move(addr, up(old_len), (uint64_t)r, up(new_len), flags & MREMAP_DONTUNMAP);
        ud__busy_leave();
        if (r != -EFAULT)
            return r;
        r = ud__relocate(addr, up(old_len), up(new_len), flags, (uint64_t)to);
        if (r == -EFAULT && ours) { /* not plain memory: shared, a file. Such mappings we never cut up */
            ours = 0;
            continue;
        }
        if (r == -EFAULT && merged && !really_merged(addr, addr + up(old_len)))
            continue;
        if (r != -EAGAIN)
            return r;
    }
    return -EFAULT;
}

static long do_mremap(void *addr, size_t old_len, size_t new_len, int flags, void *to)
{
    int may = sound((uint64_t)addr, old_len, new_len, flags, (uint64_t)to);
    if (may && (pure_move(old_len, new_len, flags) || (ever() && moves_or_grows(old_len, new_len, flags))))
        return remap_across((uint64_t)addr, old_len, new_len, flags, to);
    ud__busy_enter();
    open_trap((uint64_t)addr, up(old_len));
    if (flags & MREMAP_FIXED)
        settle((uint64_t)to, new_len);
    long r = ud__sys(__NR_mremap, addr, old_len, new_len, flags, to);
    if (!ud__is_err(r)) {
        ud__region_move((uint64_t)addr, up(old_len), (uint64_t)r, up(new_len), flags & MREMAP_DONTUNMAP);
        if (ever() && new_len < old_len)
            ud__merged_clear((uint64_t)addr + up(new_len), (uint64_t)addr + up(old_len));
        if (ever() && flags & MREMAP_FIXED)
            ud__merged_clear((uint64_t)r, (uint64_t)r + up(new_len));
        ud__note_growth((int64_t)new_len - (int64_t)old_len);
    }
    ud__busy_leave();
    if (r == -EFAULT && may && atomic_load(&ud__a.state) != UD__AGENT_NONE) /* tracking has made several mappings of one */
        r = remap_across((uint64_t)addr, old_len, new_len, flags, to);
    return r;
}

long ud__mremap(uint64_t addr, size_t old_len, size_t new_len, int flags, uint64_t to)
{
    long r = do_mremap((void *)addr, old_len, new_len, flags, (void *)to);
    while (room_was_made(r))
        r = do_mremap((void *)addr, old_len, new_len, flags, (void *)to);
    return r;
}

UD_API void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
    void *to = NULL;
    if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
        va_list ap;
        va_start(ap, flags);
        to = va_arg(ap, void *);
        va_end(ap);
    }
    return (void *)out(ud__mremap((uint64_t)addr, old_len, new_len, flags, (uint64_t)to));
}

/* Advice that throws contents away: where pages are merged the kernel would show the segment again. */
static long advise_discard(uint64_t start, uint64_t end, int advice)
{
    ud__busy_enter();
    open_trap(start, end - start);
    int merged = ever() && ud__merged_any(start, end);
    ud__test_gap();
    long r = merged ? ud__discard_range(start, end, advice) : ud__sys(__NR_madvise, start, end - start, advice);
    ud__busy_leave();
    return r;
}

/* The kernel frees what comes before the first private memory, and says EINVAL there. */
static long advise_remove(uint64_t start, uint64_t end)
{
    ud__busy_enter();
    int merged = ever() && ud__merged_any(start, end) && ud__merged_really(start, end);
    uint64_t upto = merged ? start : end;
    while (upto < end && !ud__merged_test(upto))
        upto += ud__page;
    long r = start < upto || !merged ? ud__sys(__NR_madvise, start, upto - start, MADV_REMOVE) : 0;
    ud__busy_leave();
    return merged && (!r || r == -ENOMEM) ? -EINVAL : r;
}

/* Advice about the mapping itself: it must be a plain one again, and stay so. */
static long advise_plain(uint64_t start, uint64_t end, int advice, int keep_out)
{
    if (keep_out)
        ud__region_mark(start, end, UD__REG_KEEP_OUT);
    if (ever() && ud__merged_any(start, end))
        ud__unmerge_range(start, end);
    return ud__sys(__NR_madvise, start, end - start, advice);
}

static long do_madvise(uint64_t start, uint64_t end, int advice)
{
    switch (advice) {
    case UD__GUARD_INSTALL:
        atomic_store_explicit(&ud__malloc_locked, 1, memory_order_relaxed); /* guards, too, stay until the memory is unmapped */
        return advise_discard(start, end, advice);
    case MADV_DONTNEED:
    case MADV_FREE:
    case UD__DONTNEED_LOCKED:
        return advise_discard(start, end, advice);
    case MADV_REMOVE:
        return advise_remove(start, end);
    case MADV_DONTFORK:
    case MADV_WIPEONFORK:
    case MADV_DONTDUMP:
        return advise_plain(start, end, advice, 1);
    case MADV_DOFORK:
    case MADV_KEEPONFORK:
    case MADV_DODUMP:
        return advise_plain(start, end, advice, 0);
    default:
        return ud__sys(__NR_madvise, start, end - start, advice);
    }
}

static long do_mprotect(void *addr, size_t len, int prot)
{
    if (UD_LIKELY(!atomic_load_explicit(&ud__trap_on, memory_order_acquire)))
        return ud__sys(__NR_mprotect, addr, len, prot);
    ud__busy_enter();
    settle((uint64_t)addr, len);
    long r = ud__sys(__NR_mprotect, addr, len, prot);
    ud__busy_leave();
    return r;
}

long ud__mprotect(uint64_t addr, size_t len, int prot) { return do_mprotect((void *)addr, len, prot); }

UD_API int mprotect(void *addr, size_t len, int prot)
{
    if ((prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) != (PROT_READ | PROT_WRITE))
        atomic_store_explicit(&ud__malloc_closed, 1, memory_order_relaxed);
    long r = do_mprotect(addr, len, prot);
    while (UD_UNLIKELY(r == -ENOMEM) && ud__budget_make_room())
        r = do_mprotect(addr, len, prot);
    ud__budget_note(r == 0);
    return (int)out(r);
}

/* What is locked stays so until it is unmapped. */
UD_API int mlock(const void *addr, size_t len)
{
    atomic_store_explicit(&ud__malloc_locked, 1, memory_order_relaxed);
    return (int)out(ud__sys(__NR_mlock, addr, len));
}

UD_API int mlock2(const void *addr, size_t len, unsigned flags)
{
    atomic_store_explicit(&ud__malloc_locked, 1, memory_order_relaxed);
    return (int)out(ud__sys(__NR_mlock2, addr, len, flags));
}

UD_API int mlockall(int flags)
{
    atomic_store_explicit(&ud__malloc_locked, 1, memory_order_relaxed);
    return (int)out(ud__sys(__NR_mlockall, flags));
}

static long advise(void *addr, size_t len, int advice)
{
    uint64_t start = (uint64_t)addr, end = up(start + len);
    int ours = ud__a.socket[0] && !ud__a.disabled;
    if (UD_UNLIKELY(start % ud__page || end < start))
        return ud__sys(__NR_madvise, addr, len, advice);
    if (ours && (advice == MADV_MERGEABLE || advice == MADV_UNMERGEABLE))
        return ud_advise(addr, end - start, advice);
    long r = do_madvise(start, end, advice);
    while (UD_UNLIKELY(r == -ENOMEM) && ud__budget_make_room())
        r = do_madvise(start, end, advice);
    return r;
}

UD_API int madvise(void *addr, size_t len, int advice) { return (int)out(advise(addr, len, advice)); }

/* Advice that a process may give to itself only (since Linux 6.13). What else there is does not show. */
static int for_oneself(int advice)
{
    return advice != MADV_COLD && advice != MADV_PAGEOUT && advice != MADV_WILLNEED && advice != ADV_COLLAPSE;
}

UD_API ssize_t process_madvise(int fd, const struct iovec *v, size_t n, int advice, unsigned flags)
{
    size_t done = 0;
    long r = 0;
    /* Of nothing: is it this process, and does the kernel take such advice? */
    if (!ever() || n > IOV_MOST || !for_oneself(advice) || ud__sys(__NR_process_madvise, fd, v, 0, advice, flags))
        return out(ud__sys(__NR_process_madvise, fd, v, n, advice, flags));
    for (size_t i = 0; i < n && !r; i++)
        if (!(r = advise(v[i].iov_base, v[i].iov_len, advice)))
            done += v[i].iov_len;
    return done ? (ssize_t)done : out(r);
}

UD_API int prctl(int option, ...)
{
    unsigned long a[4];
    va_list ap;
    va_start(ap, option);
    for (int i = 0; i < 4; i++)
        a[i] = va_arg(ap, unsigned long);
    va_end(ap);
    int ours = ud__a.socket[0] && !ud__a.disabled;
    if (ours && option == PR_SET_MEMORY_MERGE)
        return (int)out(a[1] || a[2] || a[3] ? -EINVAL : ud_memory_merge_set(a[0] != 0));
    if (ours && option == PR_GET_MEMORY_MERGE)
        return (int)out(a[0] || a[1] || a[2] || a[3] ? -EINVAL : ud_memory_merge_get());
    if (option != PR_SET_PTRACER)
        return (int)out(ud__sys(__NR_prctl, option, a[0], a[1], a[2], a[3]));
    unsigned long before = atomic_exchange(&ud__named_tracer, a[0]); /* first: a helper may be about to say it again */
    long r = ud__sys(__NR_prctl, option, a[0], a[1], a[2], a[3]);
    if (r)
        atomic_store(&ud__named_tracer, before);
    return (int)out(r);
}
