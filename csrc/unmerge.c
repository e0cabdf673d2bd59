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
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>

#include "internal.h"
#include "trap.h"

#define CHUNK_PAGES 256u
#define GAP_PAGES 8u
#define RW (PROT_READ | PROT_WRITE)
#define PROTECTION (UD__VMA_R | UD__VMA_W | UD__VMA_X)
#define JOINED_MAX (1u << 20) /* pages */
#define PART (1ull << 43) /* a piece counts pages in 32 bits */
#define UNSEEN 20 /* times the mappings could not be read */
#define REFUSALS 100 /* half a second: a mask may be put off again, a filter stays */

static long map_plain(uint64_t at, uint64_t len, int prot, int fixed)
{
    return ud__sys(__NR_mmap, at, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
}

static int prot_of(uint32_t vma_flags)
{
    return (vma_flags & UD__VMA_R ? PROT_READ : 0) | (vma_flags & UD__VMA_W ? PROT_WRITE : 0) |
           (vma_flags & UD__VMA_X ? PROT_EXEC : 0);
}

/* Pages of zeros stay missing: a gap may never have been touched. */
static void copy_pages(uint64_t to, uint64_t from, uint64_t len)
{
    for (uint64_t off = 0; off < len; off += ud__page)
        if (!ud_is_zero((const void *)(from + off), ud__page))
            __builtin_memcpy((void *)(to + off), (const void *)(from + off), ud__page);
}

/* The kernel unmaps the target of mremap before it looks for memory of its own: when that fails, the contents are
 * copied back to where they were. 0, or -errno. */
static int copy_back(long scratch, uint64_t at, uint64_t len, int prot)
{
    long r = map_plain(at, len, RW, 0x100000 /* MAP_FIXED_NOREPLACE */);
    if (ud__is_err(r))
        return r == -EEXIST ? -ENOMEM : (int)r;
    if (prot != RW)
        ud__sys(__NR_mprotect, scratch, len, RW);
    __builtin_memcpy((void *)at, (const void *)scratch, len);
    if (prot != RW)
        ud__sys(__NR_mprotect, at, len, prot);
    ud__sys(__NR_munmap, scratch, len);
    return 0;
}

static void drop_zeros(uint64_t at, uint64_t len)
{
    for (uint64_t end = at + len, from = at; at <= end; at += ud__page)
        if (at == end || !ud_is_zero((const void *)at, ud__page)) {
            if (from < at)
                ud__sys(__NR_madvise, from, at - from, MADV_DONTNEED);
            from = at + ud__page;
        }
}

/* By the kernel, through /proc/self/mem (which asks no protection) or, fd -1, as a program reads. How much, or -errno. */
static long read_some(long fd, uint64_t to, uint64_t at, uint64_t len)
{
    struct iovec here = {(void *)to, len}, there = {(void *)at, len};
    return fd >= 0 ? ud__sys(__NR_pread64, fd, to, len, at)
                   : ud__sys(__NR_process_vm_readv, ud__sys(__NR_getpid), &here, 1, &there, 1, 0);
}

/* Plain memory may have guard pages in it, which nobody can read: the copy gets others. 0 or -errno. */
static long copy_guarded(long fd, uint64_t to, uint64_t at, uint64_t len)
{
    for (uint64_t off = 0; off < len;) {
        uint64_t n = len - off < CHUNK_PAGES << ud__page_shift ? len - off : CHUNK_PAGES << ud__page_shift;
        long got = read_some(fd, to + off, at + off, n);
        if (got < 0 && got != -EFAULT && got != -EIO)
            return got;
        n = got > 0 ? (uint64_t)got & ~(uint64_t)(ud__page - 1) : 0;
        drop_zeros(to + off, n);
        off += n;
        if (n)
            continue;
        if (ud__sys(__NR_madvise, to + off, ud__page, UD__GUARD_INSTALL))
            return -EFAULT;
        off += ud__page;
    }
    return 0;
}

static long copy_closed(long to, uint64_t at, uint64_t len)
{
    long fd = ud__sys(__NR_openat, AT_FDCWD, "/proc/self/mem", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long r = copy_guarded(fd, (uint64_t)to, at, len);
    ud__sys(__NR_close, fd);
    return r;
}

/* whole: it is all of a segment, in which there are no guard pages. */
static long copy_contents(long to, uint64_t at, uint64_t len, uint32_t vma_flags, int whole)
{
    if (!(vma_flags & UD__VMA_R))
        return copy_closed(to, at, len);
    long r = whole ? -EPERM : copy_guarded(-1, (uint64_t)to, at, len);
    if (r == -EPERM || r == -ENOSYS) /* or a filter refuses process_vm_readv */
        copy_pages((uint64_t)to, at, len);
    return r == -EPERM || r == -ENOSYS ? 0 : r;
}

static long move_over(long scratch, uint64_t at, uint64_t len)
{
    if (!UD__GUARD_ON(UD__GUARD_HALFWAY)) { /* only in tests: nobody can make the kernel run out of memory there */
        ud__sys(__NR_munmap, at, len);
        return -ENOMEM;
    }
    return ud__sys(__NR_mremap, scratch, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, at);
}

static int unmerge_chunk(uint64_t at, uint64_t len, uint32_t flags, int whole)
{
    long r, scratch = map_plain(ud__hint(len), len, RW, 0);
    int prot = prot_of(flags);
    if (ud__is_err(scratch))
        return (int)scratch;
    r = copy_contents(scratch, at, len, flags, whole);
    if (!r && prot != RW)
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

/* The next mapping of a segment of ours within [*at, end), cut to it; 0 if there is none. */
static int next_segment(struct ud__maps *m, uint64_t at, uint64_t end, uint64_t *from, uint64_t *to, uint32_t *flags)
{
    struct ud__vma v;
    while (at < end && ud__maps_find(m, at, &v) == 0 && v.start < end) {
        if (ud__vma_is_segment(&v)) {
            *from = v.start > at ? v.start : at;
            *to = v.end < end ? v.end : end;
            *flags = v.flags;
            return 1;
        }
        at = v.end;
    }
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
    if ((v->flags & PROTECTION) != (flags & PROTECTION))
        return 0;
    return ud__vma_is_segment(v) ||
           ((flags & PROTECTION) == (UD__VMA_R | UD__VMA_W) && !v->inode && ud__vma_plain(v) &&
            ud__region_allows(v->start, &end, 0) && end == v->end && !ud__own_overlaps(v->start, v->end) &&
            !ud__hold_has_stack(&j->hold, v->start, v->end));
}

/* How far from `to`, the end of a merged mapping, more of them follow over short gaps; a chunk is the most. */
static uint64_t reach(struct ud__job *j, uint64_t from, uint64_t to, uint64_t end, uint32_t flags)
{
    uint64_t most = from + ((uint64_t)CHUNK_PAGES << ud__page_shift), gap = (uint64_t)GAP_PAGES << ud__page_shift;
    struct ud__vma v;
    for (uint64_t at = to; at < end && at < most && ud__maps_find(&j->maps, at, &v) == 0 && v.start == at; at = v.end) {
        if (!may_bridge(j, &v, flags) || (!ud__vma_is_segment(&v) && v.end - v.start > gap))
            break;
        if (ud__vma_is_segment(&v))
            to = v.end;
    }
    return to < end ? to : end;
}

static void forget_pages(struct ud__job *j, uint64_t at, uint64_t len)
{
    for (uint64_t off = 0; j->ledger && off < len; off += ud__page)
        ud__page_set(j->ledger, at + off, UD_PG_NONE, 0);
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
    int r = unmerge_chunk(at, len, flags, whole);
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
        while (next_segment(&j->maps, at, end, &from, &to, &flags)) {
            uint64_t edge = to;
            if (bridge)
                to = reach(j, from, to, end, flags);
            uint64_t len = to - from, chunk = (uint64_t)CHUNK_PAGES << ud__page_shift;
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

/* A merged mapping that the program has locked since keeps its contents, unless it asks by the advice for locked memory. The
 * kernel tells by its answer what is locked. 0, or -errno. */
static long discard(uint64_t at, uint64_t len, int prot, int advice)
{
    int locked = ud__sys(__NR_madvise, at, len, MADV_DONTNEED) == -EINVAL;
    if (locked && advice != UD__DONTNEED_LOCKED)
        return -EINVAL;
    long r = map_plain(at, len, prot, MAP_FIXED);
    if (r == -EPERM && prot & PROT_WRITE) { /* mseal: the mapping stays, and its pages are the program's own from now on */
        __builtin_memset((void *)at, 0, len);
        return 0;
    }
    if (ud__is_err(r))
        return r;
    ud__merged_clear(at, at + len);
    if (locked)
        ud__sys(__NR_mlock, at, len);
    return advice == UD__GUARD_INSTALL ? ud__sys(__NR_madvise, at, len, advice) : 0;
}

/* In address order, as the kernel goes: where it stops, so do we, and what lies above stays. Holes it tells of at the end. */
void ud__job_discard(struct ud__job *j)
{
    uint64_t at = j->pieces[0].vaddr, end = at + j->scratch_len, from, to;
    uint32_t flags;
    long r = 0, holes = 0;
    for (int found = 1; found && at < end && !r; at = to) {
        found = next_segment(&j->maps, at, end, &from, &to, &flags);
        uint64_t upto = found ? from : end;
        r = at < upto ? ud__sys(__NR_madvise, at, upto - at, j->advice) : 0;
        if (r == -ENOMEM) {
            holes = r;
            r = 0;
        }
        if (found && !r)
            r = discard(from, to - from, prot_of(flags), j->advice);
    }
    j->result = (uint64_t)(r ? r : holes);
    j->done = 1;
}

/* Is it all memory that the program has as one private anonymous mapping? Its protection into *flags. What it has closed
 * is ours to move only if we have cut it up. */
static int one_to_the_program(struct ud__job *j, uint64_t start, uint64_t end, uint32_t *flags)
{
    struct ud__vma v;
    int ours = 0;
    for (uint64_t at = start; at < end; at = v.end) {
        if (ud__maps_find(&j->maps, at, &v) || v.start > at || v.flags & UD__VMA_SHARED || (v.inode && !ud__vma_is_segment(&v)))
            return 0;
        ours |= v.inode != 0 || v.start > start || ud__vma_plain(&v);
        if (at == start)
            *flags = v.flags & PROTECTION;
        if (*flags != (v.flags & PROTECTION))
            return 0;
    }
    return ours;
}

static long grow_in_place(uint64_t at, uint64_t len, int prot)
{
    long r = map_plain(at, len, prot, 0x100000 /* MAP_FIXED_NOREPLACE */);
    if (ud__is_err(r))
        return -ENOMEM;
    if ((uint64_t)r == at)
        return 0;
    ud__sys(__NR_munmap, r, len);
    return -ENOMEM;
}

/* A copy of [old, old + old_len), new_len long, anywhere. Its address, or -errno. */
static long copy_mapping(uint64_t old, uint64_t old_len, uint64_t new_len, uint32_t flags)
{
    long fresh = map_plain(0, new_len, RW, 0);
    if (ud__is_err(fresh))
        return fresh;
    long r = copy_contents(fresh, old, old_len < new_len ? old_len : new_len, flags, 0);
    if (!r && prot_of(flags) != RW)
        r = ud__sys(__NR_mprotect, fresh, new_len, prot_of(flags));
    if (!r)
        return fresh;
    ud__sys(__NR_munmap, fresh, new_len);
    return r;
}

/* One mapping, and none of ours, is the kernel's to move: it takes locks, DONTFORK, guard pages and all else along. */
static int one_mapping(struct ud__job *j, uint64_t start, uint64_t end)
{
    struct ud__vma v;
    return ud__maps_find(&j->maps, start, &v) == 0 && v.start <= start && v.end >= end && !ud__vma_is_segment(&v) &&
           !ud__trap_held(start);
}

static long move_whole(struct ud__job *j, uint64_t old, uint64_t old_len)
{
    long r = ud__sys(__NR_mremap, old, old_len, j->scratch_len, j->flags, j->scratch);
    if (!ud__is_err(r) && j->flags & MREMAP_FIXED)
        ud__merged_clear((uint64_t)r, (uint64_t)r + j->scratch_len);
    return r;
}

static void leave_old(const struct ud__job *j, uint64_t old, uint64_t old_len, int prot)
{
    if (j->flags & 4 /* MREMAP_DONTUNMAP: the old range stays, empty */)
        map_plain(old, old_len, prot, MAP_FIXED);
    else
        ud__sys(__NR_munmap, old, old_len);
    ud__merged_clear(old, old + old_len);
}

static long move_pieces(struct ud__job *j, uint64_t old, uint64_t old_len)
{
    uint64_t new_len = j->scratch_len, to = j->scratch, locked_kb = ud__locked_now();
    uint32_t flags = 0;
    if (!one_to_the_program(j, old, old + old_len, &flags))
        return -EFAULT;
    if (!(j->flags & MREMAP_MAYMOVE)) { /* grows where it is, or not at all */
        long r = grow_in_place(old + old_len, new_len - old_len, prot_of(flags));
        return r ? r : (long)old;
    }
    long fresh = copy_mapping(old, old_len, new_len, flags);
    if (!ud__is_err(fresh) && j->flags & MREMAP_FIXED) {
        long r = ud__sys(__NR_mremap, fresh, new_len, new_len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        if (ud__is_err(r))
            ud__sys(__NR_munmap, fresh, new_len);
        else
            ud__merged_clear(to, to + new_len);
        fresh = r;
    }
    j->result = (uint64_t)fresh;
    if (ud__is_err(fresh))
        return fresh;
    leave_old(j, old, old_len, prot_of(flags));
    if (locked_kb && ud__locked_now() < locked_kb)
        ud__sys(__NR_mlock, fresh, new_len);
    return fresh;
}

/* Since Linux 6.17 a move to a given place takes several mappings along, whatever they are. */
static int moves_several(void)
{
    struct utsname u;
    const char *s = u.release;
    if (ud__sys(__NR_uname, &u) != 0)
        return 0;
    uint64_t major = ud__get_dec(&s);
    s++;
    return major > 6 || (major == 6 && ud__get_dec(&s) >= 17);
}

/* 1 if [start, end) is mapped without a hole, as several mappings to the program, too. */
static int several_to_the_program(struct ud__job *j, uint64_t start, uint64_t end)
{
    struct ud__vma v;
    uint64_t allowed = end;
    uint32_t flags = 0;
    int uniform = one_to_the_program(j, start, end, &flags) && ud__region_allows(start, &allowed, 0) && allowed == end;
    for (uint64_t at = start; at < end; at = v.end)
        if (ud__maps_find(&j->maps, at, &v) || v.start > at || ud__trap_held(at))
            return 0;
    return !uniform && moves_several();
}

static long take_back(struct ud__job *j, uint64_t at, uint64_t end)
{
    uint64_t from, to, most = (uint64_t)CHUNK_PAGES << ud__page_shift;
    uint32_t flags;
    for (; next_segment(&j->maps, at, end, &from, &to, &flags); at = to) {
        to = to - from > most ? from + most : to;
        int r = unmerge_chunk(from, to - from, flags, 1);
        if (r)
            return r;
    }
    return 0;
}

/* One by one, for the kernel stops amid several at one that is tracked. */
static long move_each(struct ud__job *j, uint64_t old, uint64_t old_len)
{
    uint64_t end = old + old_len, to = j->scratch, upto;
    struct ud__vma v;
    long r = take_back(j, old, end);
    if (!r)
        r = ud__maps_refresh(&j->maps);
    for (uint64_t at = old; !ud__is_err(r) && at < end; at = upto) {
        if (ud__maps_find(&j->maps, at, &v))
            return -EFAULT;
        upto = v.end < end ? v.end : end;
        r = ud__sys(__NR_mremap, at, upto - at, upto - at, j->flags, to + (at - old));
    }
    if (ud__is_err(r))
        return r;
    ud__merged_clear(to, to + old_len);
    return (long)to;
}

/* mremap(2) where merging has made several mappings of one. The rules are the kernel's. */
void ud__job_relocate(struct ud__job *j)
{
    uint64_t old = j->pieces[0].vaddr, old_len = (uint64_t)j->pieces[0].npages << ud__page_shift;
    int pure = j->flags & MREMAP_FIXED && j->scratch_len == old_len;
    long r;
    j->result = (uint64_t)-EFAULT;
    if (one_mapping(j, old, old + old_len))
        r = move_whole(j, old, old_len);
    else if (pure && several_to_the_program(j, old, old + old_len))
        r = move_each(j, old, old_len);
    else
        r = move_pieces(j, old, old_len);
    if (!ud__is_err(r))
        ud__region_move(old, old_len, (uint64_t)r, j->scratch_len, j->flags & 4);
    j->result = (uint64_t)r;
}

/* Bits outlive an munmap behind our back, and something else may be mapped there now: an app thread, inside busy, is about to
 * answer for the kernel because of them. 1 if a segment is mapped there or the mappings cannot be read; else the bits go. */
int ud__merged_really(uint64_t start, uint64_t end)
{
    struct ud__maps m;
    uint64_t from, to;
    uint32_t flags;
    if (ud__maps_open(&m, (int)ud__sys(__NR_getpid)) < 0)
        return 1;
    int found = ud__maps_refresh(&m) != 0 || next_segment(&m, start, end, &from, &to, &flags);
    ud__maps_close(&m);
    if (!found)
        ud__merged_clear(start, end);
    return found;
}

/* Runs a one-piece job from an app thread until it is done. 0, or -errno; -EAGAIN if a hold could not be had for
 * ten seconds, or was refused again and again. A job without a hold is done in the end: the call that asked for it must not fail
 * because of us. But for -ENOENT: there is no /proc. */
static long run_from_app(struct ud__job *j)
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
    return (int)run_from_app(&j);
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

/* What the program may do there: by calls that fail where it may not. */
static int prot_by_trying(uint64_t at)
{
    static unsigned nobody;
    unsigned op = 1u << 28 | 1u << 24 | 0x800; /* OR 0: a write that changes nothing */
    if (ud__sys(__NR_futex, &nobody, 5 | 128 /* FUTEX_WAKE_OP_PRIVATE */, 0, 0, at, op) >= 0)
        return RW;
    struct timespec at_once = {0, 0};
    return ud__sys(__NR_futex, at, 128 /* FUTEX_WAIT_PRIVATE */, 0, &at_once) == -EFAULT ? PROT_NONE : PROT_READ;
}

/* Without a /proc to tell the mappings (chroot): by the bits alone. They may be stale, but never over shared memory, which
 * alone an mremap from nothing duplicates. */
static int discard_unseen(uint64_t start, uint64_t end, int advice)
{
    for (uint64_t at = start, upto; at < end; at = upto) {
        upto = at + ud__page;
        if (!ud__merged_test(at))
            continue;
        while (upto < end && ud__merged_test(upto))
            upto += ud__page;
        long r = ud__sys(__NR_mremap, at, 0, ud__page, MREMAP_MAYMOVE);
        if (!ud__is_err(r))
            ud__sys(__NR_munmap, r, ud__page);
        for (uint64_t page = at; page < upto && r == -EINVAL; page += ud__page) {
            long one = discard(page, ud__page, prot_by_trying(page), advice);
            if (ud__is_err(one))
                return (int)one;
        }
    }
    return (int)ud__sys(__NR_madvise, start, end - start, advice);
}

int ud__discard_range(uint64_t start, uint64_t end, int advice)
{
    struct ud__piece p = {.vaddr = start};
    struct ud__job j = {.kind = UD__JOB_DISCARD, .pieces = &p, .npieces = 1, .segfd = -1, .no_hold = 1, .advice = advice,
                        .scratch_len = end - start};
    long r = run_from_app(&j);
    return r == -ENOENT ? discard_unseen(start, end, advice) : r ? (int)r : (int)(int64_t)j.result;
}

long ud__relocate(uint64_t addr, uint64_t old_len, uint64_t new_len, long flags, uint64_t to)
{
    struct ud__piece p = {.vaddr = addr, .npages = (uint32_t)(old_len >> ud__page_shift)};
    struct ud__job j = {.kind = UD__JOB_RELOCATE, .pieces = &p, .npieces = 1, .segfd = -1, .flags = flags,
                        .scratch = to, .scratch_len = new_len, .budget_us = 20000, .result = (uint64_t)-EAGAIN};
    int tid = (int)ud__sys(__NR_gettid);
    for (int tries = 0; tries < 100; tries++) {
        /* Nobody can be held (a thread that blocks SIGURG, vfork): then without. Who moves memory must keep his other
         * threads off it himself, for the kernel might have moved it, too. */
        j.no_hold = tries > 50;
        j.hold.deadline_us = ud__now_us() + 20000;
        int r = ud__job_run(&j, tid, 0);
        if (r < 0 && r != -ECHILD)
            return r;
        if (j.cause_begin < 0 && (r == 0 || !ud__is_err((long)j.result))) /* else the holder was killed before it moved anything */
            return (long)j.result;
        ud__sleep_us(1000);
    }
    return -EFAULT; /* what the kernel would have said */
}
