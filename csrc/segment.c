/* segment.c: segments of the arena: sealed memfds that nobody can change.
 *
 * Guarantees: a segment is sealed against writing, growing, shrinking and unsealing before it is handed to
 * anybody; a segment received is used only if it is. Its name everywhere is its inode number. Kept
 * descriptors live in the agent's private table and let a later merger adopt the arena.
 * Fails: -errno; past SEGMENTS_MAX kept descriptors the oldest is closed (its pages stay valid, only a later
 * merger cannot hand it out again); while INODES_MAX segments are mapped no new one is accepted.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "internal.h"

#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

#ifdef UD_TEST
#define SEGMENTS_MAX 16
#define INODES_MAX 64
#else
#define SEGMENTS_MAX 512
#define INODES_MAX 8192 /* power of two */
#endif

static struct ud__segment kept[SEGMENTS_MAX];
static size_t nkept;
static _Atomic uint64_t inodes[INODES_MAX]; /* 0 empty, 1 deleted */

/* The file system that all memfds of this kernel are in, as struct ud__vma has it; 0: no segment was seen yet. */
static _Atomic uint32_t device;

/* Numbers are of one file system: another has the same ones. */
int ud__segment_device(uint32_t dev) { return dev == atomic_load_explicit(&device, memory_order_relaxed); }

static uint32_t major_minor(uint64_t st_dev)
{
    return (uint32_t)((st_dev >> 8 & 0xfff) << 20 | (st_dev & 0xff) | (st_dev >> 12 & 0xfff00));
}

static size_t inode_slot(uint64_t inode) { return (size_t)(inode * 0x9e3779b97f4a7c15ull >> 40) & (INODES_MAX - 1); }

/* Where it is in the table, or -1. */
static int place_of(uint64_t inode)
{
    size_t i = inode_slot(inode);
    for (size_t n = 0; n < INODES_MAX; n++, i = (i + 1) & (INODES_MAX - 1)) {
        uint64_t v = atomic_load_explicit(&inodes[i], memory_order_relaxed);
        if (v == inode)
            return (int)i;
        if (v == 0)
            return -1;
    }
    return -1;
}

int ud__inode_known(uint64_t inode) { return place_of(inode) >= 0; }

static int put(uint64_t inode)
{
    size_t i = inode_slot(inode);
    for (size_t n = 0; n < INODES_MAX; n++, i = (i + 1) & (INODES_MAX - 1)) {
        uint64_t v = atomic_load(&inodes[i]);
        if (v <= 1 && atomic_compare_exchange_strong(&inodes[i], &v, inode))
            return 0;
    }
    return -ENOSPC;
}

static char in_use[INODES_MAX];

static void mark(uint64_t inode)
{
    int i = place_of(inode);
    if (i >= 0)
        in_use[i] = 1;
}

/* 0 once all mappings were seen, or -errno. */
static int mark_mapped(void)
{
    struct ud__vma v;
    int r = ud__maps_refresh(&ud__a.maps);
    for (uint64_t at = 0; !r && (r = ud__maps_find(&ud__a.maps, at, &v)) == 0; at = v.end)
        if (ud__vma_is_segment(&v))
            mark(v.inode);
    return r == -ENOENT ? 0 : r;
}

/* Forgets the segments that are mapped no more. Two looks, for one may pass over a mapping that the program moves meanwhile by
 * a system call of its own; what our interposers move waits. */
static void sweep(void)
{
    uint64_t mask;
    __builtin_memset(in_use, 0, sizeof in_use);
    ud__job_lock(&mask);
    int r = mark_mapped();
    r = r ? r : mark_mapped();
    for (size_t i = 0; i < nkept; i++)
        mark(kept[i].inode);
    for (size_t i = 0; i < INODES_MAX && !r; i++)
        if (!in_use[i] && atomic_load(&inodes[i]))
            atomic_store(&inodes[i], 1);
    ud__job_unlock(&mask);
}

/* 0, or -ENOSPC. */
static int inode_learn(uint64_t inode)
{
    if (ud__inode_known(inode) || put(inode) == 0)
        return 0;
    sweep();
    return put(inode);
}

int ud__segment_check(int fd, uint64_t *inode, uint32_t *npages)
{
    struct stat st;
    long seals = ud__sys(__NR_fcntl, fd, F_GET_SEALS);
    if (seals < 0 || (seals & ALL_SEALS) != ALL_SEALS)
        return -EPERM;
    long r = ud__sys(__NR_fstat, fd, &st);
    if (r < 0)
        return (int)r;
    uint64_t pages = (uint64_t)st.st_size >> ud__page_shift;
    if (pages == 0 || pages >= 1u << UD_SLOT_BITS)
        return -EINVAL;
    uint32_t dev = major_minor(st.st_dev), none = 0;
    if (!atomic_compare_exchange_strong(&device, &none, dev) && none != dev)
        return -EINVAL; /* of huge pages, say */
    *inode = st.st_ino;
    *npages = (uint32_t)pages;
    return 0;
}

/* The kernel copies straight from our memory, so a page that has vanished costs an EFAULT and no crash. */
static uint64_t write_run(int fd, uint64_t vaddr, uint64_t len, uint64_t off)
{
    uint64_t done = 0;
    while (done < len) {
        long r = ud__sys(__NR_pwrite64, fd, vaddr + done, len - done < UD__BREATH ? len - done : UD__BREATH, off + done);
        if (r == -EINTR)
            continue;
        if (r == -ENOSPC || r == -ENOMEM || r == -EIO)
            return done;
        done += r > 0 ? (uint64_t)r : ud__page - (done & (ud__page - 1)); /* a hole where nothing could be read */
    }
    return done;
}

static uint64_t write_tile(int fd, uint64_t vaddr, uint32_t copies, uint64_t off)
{
    uint64_t first = write_run(fd, vaddr, ud__page, off);
    for (uint32_t i = 1; i < copies && first == ud__page; i++)
        if (write_run(fd, vaddr, ud__page, off + i * ud__page) != ud__page)
            return (uint64_t)i * ud__page;
    return first == ud__page ? (uint64_t)copies * ud__page : 0;
}

static int fill(int fd, const struct ud_run *runs, uint32_t nruns)
{
    uint64_t off = 0;
    for (uint32_t i = 0; i < nruns; i++) {
        uint64_t len = (uint64_t)(runs[i].slot ? runs[i].slot : runs[i].npages) << ud__page_shift;
        uint64_t done = runs[i].slot ? write_tile(fd, runs[i].vaddr, runs[i].slot, off)
                                     : write_run(fd, runs[i].vaddr, len, off);
        if (done != len)
            return -ENOSPC;
        off += len;
    }
    return 0;
}

int ud__segment_make(const struct ud_run *runs, uint32_t nruns, uint64_t *inode, uint32_t *npages)
{
    uint64_t pages = 0;
    for (uint32_t i = 0; i < nruns; i++)
        pages += runs[i].slot ? runs[i].slot : runs[i].npages;
    if (pages == 0 || pages >= 1u << UD_SLOT_BITS)
        return -EINVAL;
    long fd = ud__memfd("udedup-segment");
    if (fd < 0)
        return (int)fd;
    long r = ud__sys(__NR_ftruncate, fd, pages << ud__page_shift);
    if (r == 0) {
        ud__huge_store((int)fd, pages << ud__page_shift);
        r = fill((int)fd, runs, nruns);
    }
    if (r == 0)
        r = ud__sys(__NR_fcntl, fd, F_ADD_SEALS, ALL_SEALS);
    if (r == 0)
        r = ud__segment_check((int)fd, inode, npages);
    if (r == 0)
        r = inode_learn(*inode);
    if (r < 0) {
        ud__sys(__NR_close, fd);
        return (int)r;
    }
    return (int)fd;
}

int ud__segment_keep(int fd, uint64_t inode, uint32_t npages, uint32_t node)
{
    for (size_t i = 0; i < nkept; i++)
        if (kept[i].inode == inode) {
            ud__sys(__NR_close, fd);
            return kept[i].fd;
        }
    int r = inode_learn(inode);
    if (r < 0) {
        ud__sys(__NR_close, fd);
        return r;
    }
    if (nkept == SEGMENTS_MAX) {
        ud__sys(__NR_close, kept[0].fd);
        __builtin_memmove(kept, kept + 1, (SEGMENTS_MAX - 1) * sizeof *kept);
        nkept--;
    }
    kept[nkept++] = (struct ud__segment){inode, fd, npages, node};
    return fd;
}

void ud__segment_forget(uint64_t inode)
{
    for (size_t i = 0; i < nkept; i++)
        if (kept[i].inode == inode) {
            ud__sys(__NR_close, kept[i].fd);
            kept[i] = kept[--nkept];
            return;
        }
}

const struct ud__segment *ud__segment_list(size_t *n)
{
    *n = nkept;
    return kept;
}

void ud__segment_reset(int close_all)
{
    for (size_t i = 0; close_all && i < nkept; i++)
        ud__sys(__NR_close, kept[i].fd);
    nkept = 0;
}
