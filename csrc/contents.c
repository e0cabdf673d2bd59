/* contents.c: what a mapping holds, copied to plain memory that shall replace it; and finding our mappings.
 *
 * Guarantees: raw system calls only. Zeros stay missing in the copy, and guard pages (MADV_GUARD_INSTALL) become guard pages.
 * What the program has closed is read by a door that asks no protection.
 * Fails: -errno of /proc/self/mem, where that is needed and cannot be opened; -EFAULT before Linux 6.13, which has no guards, for
 * memory that cannot be read.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "internal.h"
#include "replace.h"

long ud__map_plain(uint64_t at, uint64_t len, int prot, int fixed)
{
    return ud__sys(__NR_mmap, at, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
}

int ud__prot_of(uint32_t vma_flags)
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
        uint64_t n = len - off < UD__CHUNK_PAGES << ud__page_shift ? len - off : UD__CHUNK_PAGES << ud__page_shift;
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

long ud__copy_contents(long to, uint64_t at, uint64_t len, uint32_t vma_flags, int whole)
{
    if (!(vma_flags & UD__VMA_R))
        return copy_closed(to, at, len);
    if (!whole) {
        long r = copy_guarded(-1, (uint64_t)to, at, len);
        if (r != -EPERM && r != -ENOSYS) /* else a filter refuses process_vm_readv */
            return r;
    }
    copy_pages((uint64_t)to, at, len);
    return 0;
}

int ud__next_segment(struct ud__maps *m, uint64_t at, uint64_t end, uint64_t *from, uint64_t *to, uint32_t *flags)
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
