/* stage.c: a segment mapped beside the program's memory: what is compared with it there is then moved into its place.
 *
 *   stage:   | slot 0 | 1 | 2 | ... |      mapped and in the page table before anybody is held
 *                  \___\___  compare, then mremap: the page table's entries move along
 *   program: ...     | 1 | 2 | ...
 *
 * Moved, the slots need not be unmapped here nor faulted in there: a third of what merging a page of a large run costs. The
 * stage stays whole behind them (MREMAP_DONTUNMAP), so that nobody else can be given a place that is about to be unmapped.
 * Where both lie alike in huge pages, a part of the page table moves as one entry.
 *
 * Guarantees: a stage is never in a forked child, but for a part whose holder was killed, or that a clone(2) by hand
 * copied. ud__stage_move either moves
 * all of the range or says so; in between nobody sees the range half done but a thread that is not held, so it is for
 * holds only.
 * Fails: no stage (at NULL) where the kernel refuses to map, or the address space is limited: slots are read then. Not movable
 * where private memory is limited or accounted strictly: the kernel unmaps the target of mremap before it asks for more. The
 * program may set a limit meanwhile, so the holder asks again (ud__stage_ask): its own limits are those of its birth.
 * ud__stage_move: -errno; the range may be unmapped then, and the caller maps the segment there.
 */
#include <sys/mman.h>
#include <sys/resource.h>

#include "internal.h"

#define FAULT_AROUND 65536u /* bytes that one fault on the page cache maps, unless debugfs says otherwise */
#define MOVE_MIN (16u * ud__page) /* below, a second system call costs more than it saves */

static atomic_int cannot_move; /* MREMAP_DONTUNMAP of file mappings came with Linux 5.13 */

int ud__limited(int resource)
{
    struct rlimit room = {RLIM_INFINITY, RLIM_INFINITY};
    ud__sys(__NR_prlimit64, 0, resource, 0, &room);
    return room.rlim_cur != RLIM_INFINITY;
}

/* With strict accounting (vm.overcommit_memory 2) others may take what unmapping the target gives back. */
static int strictly_accounted(void)
{
    char text[8];
    return ud__read_file("/proc/sys/vm/overcommit_memory", text, sizeof text) <= 0 || text[0] == '2';
}

/* No fork between the two calls: what it lets a child have would be taken for merged pages there. What mlockall has locked
 * would be counted as locked for good, once it has moved. */
long ud__map_beside(uint64_t len, uint64_t place, int prot, int fd)
{
    uint64_t mask, huge = ud__huge_bytes();
    uint64_t hint = (ud__hint(len + 2 * huge) + huge - 1) / huge * huge + place % huge;
    int alone = UD__GUARD_ON(UD__GUARD_STAGED);
    if (alone)
        ud__job_lock(&mask);
    long p = ud__sys(__NR_mmap, hint, len, prot, MAP_PRIVATE, fd, 0);
    if (!alone)
        ud__test_gap();
    if (!ud__is_err(p))
        ud__sys(__NR_madvise, p, len, MADV_DONTFORK);
    if (alone)
        ud__job_unlock(&mask);
    if (!ud__is_err(p))
        ud__sys(__NR_munlock, p, len);
    return p;
}

void ud__stage(struct ud__stage *s, int fd, uint32_t npages, uint64_t place, int movable)
{
    uint64_t len = (uint64_t)npages << ud__page_shift;
    *s = (struct ud__stage){.len = len};
    if (ud__limited(RLIMIT_AS))
        return;
    movable = movable && !atomic_load(&cannot_move) && !ud__limited(RLIMIT_DATA) && !strictly_accounted();
    long p = ud__map_beside(len, place, PROT_READ | (movable ? PROT_WRITE : 0), fd);
    if (ud__is_err(p))
        return;
    ud__own_add((void *)p, len);
    for (uint64_t off = 0; off < len; off += FAULT_AROUND) /* half of what MADV_POPULATE_READ costs, which goes page by page */
        (void)*(const volatile char *)(p + (long)off);
    s->at = (const char *)p;
    s->movable = movable;
}

void ud__stage_ask(struct ud__stage *s)
{
    if (UD__GUARD_ON(UD__GUARD_LIMITS) && s->movable && (ud__limited(RLIMIT_AS) || ud__limited(RLIMIT_DATA)))
        s->movable = 0;
}

long ud__stage_move(const struct ud__stage *s, uint64_t off, uint64_t at, uint64_t len)
{
    uint64_t from = (uint64_t)s->at + off;
    if (!s->movable || len < MOVE_MIN || atomic_load(&cannot_move))
        return -EOPNOTSUPP;
    long r = UD__GUARD_ON(UD__GUARD_STAGED) ? ud__sys(__NR_madvise, from, len, MADV_DOFORK) : 0;
    if (r)
        return r;
    if (!UD__GUARD_ON(UD__GUARD_HALFWAY)) { /* only in tests: nobody can make the kernel run out of memory there */
        ud__sys(__NR_munmap, at, len);
        return -ENOMEM;
    }
    r = ud__sys(__NR_mremap, from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, at);
    if (r == -EINVAL)
        atomic_store(&cannot_move, 1);
    ud__sys(__NR_madvise, from, len, MADV_DONTFORK);
    return ud__is_err(r) ? r : 0;
}

void ud__unstage(const struct ud__stage *s)
{
    if (!s->at)
        return;
    ud__own_del(s->at);
    uint64_t at = (uint64_t)s->at;
    for (uint64_t end = at + s->len, n; at < end; at += n) {
        n = end - at < UD__BREATH ? end - at : UD__BREATH;
        ud__sys(__NR_munmap, at, n);
    }
}
