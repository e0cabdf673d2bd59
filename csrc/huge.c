/* huge.c: the store in huge pages, where the kernel has some: madvise(MADV_COLLAPSE) of a segment that is still empty.
 *
 * Written into a huge page, a slot costs a third of what a page of its own does, and who merges maps 512 slots at once; the program
 * reads merged memory through one entry of the TLB, as it did its own huge pages. No setting of shmem_enabled but "deny" is
 * against it. A huge page may hold one slot that is written into: the program's mapping of it falls apart into pages then.
 *
 * Guarantees: contents and size of the file are as before (zeros). The huge page is of the node that the caller's memory policy
 * says. Memory used is what the segment has anyway. Agent thread, or a probe, in no hold: it waits for the kernel's workers.
 * Fails: pages stay small, which costs time and nothing else. Where huge pages are scarce, which shows by a refusal or by time,
 * nothing is tried for REST_US; never again where the kernel (< 6.1) does not know it.
 */
#include <sys/mman.h>
#include <sys/resource.h>

#include "internal.h"

#define COLLAPSE 25 /* MADV_COLLAPSE */
#define REST_US 60000000ull
#define SLOW_US 20000u /* for a huge page: 100 to 1000 where one is free, the longer the fewer CPUs are */

static uint64_t rest_until;

/* The first page of each, so that the kernel knows the node; a wholly empty one it takes for cut off. */
static uint64_t seed(int fd, uint64_t huge, uint64_t len)
{
    uint64_t off = 0;
    while (off < len && ud__sys(__NR_pwrite64, fd, "", 1, off) == 1)
        off += huge;
    return off;
}

/* 0 or -errno: the first len bytes, whole huge pages, of an empty file. */
static long make_huge(int fd, uint64_t len)
{
    long p = ud__map_beside(len, 0, PROT_NONE, fd);
    if (ud__is_err(p))
        return p;
    long r = seed(fd, ud__huge_bytes(), len) == len ? ud__sys(__NR_madvise, p, len, COLLAPSE) : -ENOSPC;
    ud__sys(__NR_munmap, p, len);
    return r;
}

void ud__huge_store(int fd, uint64_t len)
{
    uint64_t huge = ud__huge_bytes(), began = ud__now_us();
    len -= len % huge;
    if (!len || began < rest_until || ud__limited(RLIMIT_AS))
        return;
    long r = make_huge(fd, len);
    uint64_t now = ud__now_us();
    if (r == -EINVAL)
        rest_until = UINT64_MAX;
    else if (r || now - began > SLOW_US * (len / huge))
        rest_until = now + REST_US;
}

long ud_probe_huge_store(void)
{
    uint64_t huge = ud__huge_bytes();
    long fd = ud__memfd("udedup-probe");
    if (fd < 0)
        return fd;
    long r = ud__sys(__NR_ftruncate, fd, huge);
    r = r ? r : make_huge((int)fd, huge);
    ud__sys(__NR_close, fd);
    return r;
}
