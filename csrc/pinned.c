/* pinned.c: does this process do I/O that writes into its memory while its threads sleep or run?
 *
 * io_uring and kernel AIO pin pages and write to them later, by DMA, without a fault: a page remapped in between would
 * lose what arrives. Such a process shows a mapping of a ring; while there is one, nothing is merged.
 *
 * Guarantees: asked in every hold, so a ring made a moment ago is seen; the full look is skipped, for 250 ms at most, only while
 * the address space and what is private of it have stayed as large as they were (job.c).
 * Memory pinned for long is counted by most who pin it (RDMA, AF_XDP, registered buffers of io_uring) in VmPin, which job.c asks.
 * Fails: rings without a mapping (IORING_SETUP_NO_MMAP) and without registered buffers, memory pinned by VFIO or GPU drivers
 * cannot be seen: such buffers must be advised UNMERGEABLE.
 */
#include <fcntl.h>

#include "internal.h"

static int is_ring(const char *name, size_t len)
{
    for (size_t i = 0; i + 5 <= len && name[i]; i++)
        if (__builtin_memcmp(name + i, "[aio]", 5) == 0 ||
            (i + 10 <= len && __builtin_memcmp(name + i, "[io_uring]", 10) == 0))
            return 1;
    return 0;
}

/* Without PROCMAP_QUERY: the text of maps. */
static int ring_in_text(int fd)
{
    char buf[4096 + 16];
    size_t keep = 0;
    long n;
    ud__sys(__NR_lseek, fd, 0, 0);
    while ((n = ud__sys(__NR_read, fd, buf + keep, 4096)) > 0) {
        size_t have = keep + (size_t)n;
        if (is_ring(buf, have))
            return 1;
        keep = have < 10 ? have : 10;
        __builtin_memmove(buf, buf + have - keep, keep);
    }
    return 0;
}

int ud__ring_mapped(struct ud__maps *m)
{
    char name[64];
    uint64_t at = 0;
    if (!m->query)
        return ring_in_text(m->fd);
    while (ud__maps_next_shared(m, &at, name, sizeof name) == 0)
        if (is_ring(name, sizeof name))
            return 1;
    return 0;
}
