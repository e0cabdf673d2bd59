/* discard.c: madvise that throws contents away, where pages are merged: the kernel would show the segment's again.
 *
 * Guarantees: zeros afterwards, the protection as it was; goes as far as the kernel would and gives its answer. Takes no hold:
 * who discards memory that others use has his own reasons. Where a helper cannot read the mappings (no /proc), the bits and the
 * answers of the kernel must do.
 * Fails: -errno of the kernel for what is not ours; what is merged and cannot be replaced stays as it was.
 */
#include <sys/mman.h>
#include <time.h>

#include "internal.h"
#include "replace.h"

/* A merged mapping that the program has locked since keeps its contents, unless it asks by the advice for locked memory. The
 * kernel tells by its answer what is locked. 0, or -errno. */
static long discard(uint64_t at, uint64_t len, int prot, int advice)
{
    int locked = ud__sys(__NR_madvise, at, len, MADV_DONTNEED) == -EINVAL;
    if (locked && advice != UD__DONTNEED_LOCKED)
        return -EINVAL;
    long r = ud__map_plain(at, len, prot, MAP_FIXED);
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
        found = ud__next_segment(&j->maps, at, end, &from, &to, &flags);
        uint64_t upto = found ? from : end;
        r = at < upto ? ud__sys(__NR_madvise, at, upto - at, j->advice) : 0;
        if (r == -ENOMEM) {
            holes = r;
            r = 0;
        }
        if (found && !r)
            r = discard(from, to - from, ud__prot_of(flags), j->advice);
    }
    j->result = (uint64_t)(r ? r : holes);
    j->done = 1;
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
    int found = ud__maps_refresh(&m) != 0 || ud__next_segment(&m, start, end, &from, &to, &flags);
    ud__maps_close(&m);
    if (!found)
        ud__merged_clear(start, end);
    return found;
}

/* What the program may do there: by calls that fail where it may not. */
static int prot_by_trying(uint64_t at)
{
    static unsigned nobody;
    unsigned op = 1u << 28 | 1u << 24 | 0x800; /* OR 0: a write that changes nothing */
    if (ud__sys(__NR_futex, &nobody, 5 | 128 /* FUTEX_WAKE_OP_PRIVATE */, 0, 0, at, op) >= 0)
        return UD__RW;
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
    long r = ud__run_from_app(&j);
    return r == -ENOENT ? discard_unseen(start, end, advice) : r ? (int)r : (int)(int64_t)j.result;
}
