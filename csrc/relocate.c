/* relocate.c: mremap(2) where merging, or tracking, has made several mappings of one. The rules are the kernel's.
 *
 *   one mapping, none of ours            the kernel moves it
 *   several to the program, too          each is moved by itself (Linux 6.17 and later)
 *   one to the program                   copied into a new mapping, which is put in place by one mremap
 *
 * Guarantees: contents, protection, locks and what is kept out of merging come along. In a hold, if one can be had.
 * Fails: -EFAULT as the kernel would say it; -ENOMEM, and nothing has changed. A holder killed between the copy and the end leaves
 * both.
 */
#include <sys/mman.h>
#include <sys/utsname.h>

#include "internal.h"
#include "replace.h"
#include "trap.h"

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
            *flags = v.flags & UD__PROTECTION;
        if (*flags != (v.flags & UD__PROTECTION))
            return 0;
    }
    return ours;
}

static long grow_in_place(uint64_t at, uint64_t len, int prot)
{
    long r = ud__map_plain(at, len, prot, 0x100000 /* MAP_FIXED_NOREPLACE */);
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
    long fresh = ud__map_plain(0, new_len, UD__RW, 0);
    if (ud__is_err(fresh))
        return fresh;
    long r = ud__copy_contents(fresh, old, old_len < new_len ? old_len : new_len, flags, 0);
    if (!r && ud__prot_of(flags) != UD__RW)
        r = ud__sys(__NR_mprotect, fresh, new_len, ud__prot_of(flags));
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
    if (j->flags & MREMAP_DONTUNMAP /* the old range stays, empty */)
        ud__map_plain(old, old_len, prot, MAP_FIXED);
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
        long r = grow_in_place(old + old_len, new_len - old_len, ud__prot_of(flags));
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
    leave_old(j, old, old_len, ud__prot_of(flags));
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
    uint64_t from, to, most = (uint64_t)UD__CHUNK_PAGES << ud__page_shift;
    uint32_t flags;
    for (; ud__next_segment(&j->maps, at, end, &from, &to, &flags); at = to) {
        to = to - from > most ? from + most : to;
        int r = ud__unmerge_chunk(from, to - from, flags, 1);
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
        ud__region_move(old, old_len, (uint64_t)r, j->scratch_len, j->flags & MREMAP_DONTUNMAP);
    j->result = (uint64_t)r;
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
