/* track.c: which pages were written since the last pass.
 *
 * By userfaultfd in asynchronous write-protect mode: the kernel notes the first write to each page, its own
 * writes for read(2) included, and PAGEMAP_SCAN tells them and arms them again in one call. No fault is
 * ever handed to anybody, so nothing can hang. The registration is lost with the descriptor, in a
 * forked child and in a moved mapping: such memory turns up as untracked and is digested again.
 *
 * Guarantees: a page written after it was told is told again. A page is armed before it is digested, so
 * a write after the digest shows in the next pass. Pages of files (merged ones among them) are told once, when they
 * are first seen; ud__track_owners tells them apart. To ask the kernel to leave them out would have it look at the
 * struct page of each: 18 ms a GiB instead of 1.5.
 * Fails: ud__track_open says UD_TRACK_DIGEST where the kernel (< 6.7) or a seccomp filter refuses; then every
 * present page is told in every pass. Without PAGEMAP_SCAN the pagemap itself is read, and huge pages look like others.
 */
#include <fcntl.h>
#include <sys/ioctl.h>

#include "internal.h"

struct uffdio_api { uint64_t api, features, ioctls; };
struct uffdio_register { uint64_t start, len, mode, ioctls; };
#define IOCTL_API _IOWR(0xAA, 0x3F, struct uffdio_api)
#define IOCTL_REGISTER _IOWR(0xAA, 0x00, struct uffdio_register)
#define FEATURE_WP (1ull << 0)
#define FEATURE_WP_UNPOPULATED (1ull << 13)
#define FEATURE_WP_ASYNC (1ull << 15)

struct pm_scan { /* linux/fs.h of 6.7 */
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof, ret;
};
#define IOCTL_SCAN _IOWR('f', 16, struct pm_scan)
enum { WPALLOWED = 1, WRITTEN = 2, FILE_PAGE = 4, PRESENT = 8, PFNZERO = 32, HUGE = 64 };
#define WP_MATCHING 1

static int uffd = -1, pagemap = -1, have_scan;

static long scan(uint64_t *at, uint64_t end, uint64_t flags, uint64_t must, uint64_t must_not, struct ud__range *out,
                 size_t cap, uint64_t max_pages)
{
    struct pm_scan a = {.size = sizeof a, .flags = flags, .start = *at, .end = end, .vec = (uint64_t)out, .vec_len = cap,
                        .max_pages = max_pages, .inverted = must_not, .mask = must | must_not, .ret = PRESENT | HUGE};
    long r = ud__sys(__NR_ioctl, pagemap, IOCTL_SCAN, &a);
    if (r >= 0)
        *at = a.walk_end;
    return r;
}

static int open_uffd(void)
{
    long fd = ud__sys(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1 /* UFFD_USER_MODE_ONLY */);
    if (fd < 0)
        return (int)fd;
    struct uffdio_api api = {.api = 0xAA, .features = FEATURE_WP | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC};
    long r = ud__sys(__NR_ioctl, fd, IOCTL_API, &api);
    if (r < 0) {
        ud__sys(__NR_close, fd);
        return (int)r;
    }
    return (int)fd;
}

int ud__track_open(void)
{
    uint64_t at = 0;
    struct ud__range one;
    pagemap = (int)ud__sys(__NR_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return UD_TRACK_NONE;
    have_scan = scan(&at, ud__page, 0, PRESENT, 0, &one, 1, 0) >= 0;
    if (have_scan && !ud__a.tracking_off)
        uffd = open_uffd();
    return uffd >= 0 ? UD_TRACK_UFFD : UD_TRACK_DIGEST;
}

void ud__track_close(void)
{
    if (uffd >= 0)
        ud__sys(__NR_close, uffd);
    if (pagemap >= 0)
        ud__sys(__NR_close, pagemap);
    uffd = pagemap = -1;
}

int ud__track_register(uint64_t start, uint64_t end)
{
    if (uffd < 0)
        return -ENOSYS;
    struct uffdio_register reg = {.start = start, .len = end - start, .mode = 2 /* WP */};
    uint64_t mask;
    ud__job_lock(&mask); /* it cuts mappings up: not while a thread of the program moves some */
    int r = (int)ud__sys(__NR_ioctl, uffd, IOCTL_REGISTER, &reg);
    ud__job_unlock(&mask);
    return r;
}

/* thp keep: huge pages are not told, nor write-protected, which would cut those that a scan ends in. */
static uint64_t left_alone(void) { return FILE_PAGE | PFNZERO | (ud__a.knobs.thp ? 0 : HUGE); }

static long written(uint64_t *at, uint64_t end, uint64_t flags, uint64_t must, struct ud__range *out, size_t cap,
                    uint64_t max_pages)
{
    if (uffd < 0) {
        *at = end;
        return 0;
    }
    return scan(at, end, flags, must | WRITTEN | PRESENT, left_alone() & ~FILE_PAGE, out, cap, max_pages);
}

long ud__track_written(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    return written(at, end, WP_MATCHING, 0, out, cap, max_pages);
}

long ud__track_peek(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    return written(at, end, 0, WPALLOWED, out, cap, max_pages);
}

/* Without PAGEMAP_SCAN: 8 bytes a page; bit 63 present, bit 61 file or shared. */
static long present_by_pagemap(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    uint64_t buf[512], found = 0;
    size_t n = 0;
    while (*at < end) {
        uint64_t want = (end - *at) >> ud__page_shift;
        if (want > 512)
            want = 512;
        long r = ud__sys(__NR_pread64, pagemap, buf, want * 8, (*at >> ud__page_shift) * 8);
        if (r <= 0)
            return r < 0 ? r : (long)n;
        for (long i = 0; i < r / 8; i++, *at += ud__page) {
            if (!(buf[i] >> 63 & 1) || (buf[i] >> 61 & 1))
                continue;
            if (max_pages && found == max_pages)
                return (long)n;
            if (n && out[n - 1].end == *at)
                out[n - 1].end += ud__page;
            else if (n == cap)
                return (long)n;
            else
                out[n++] = (struct ud__range){*at, *at + ud__page, PRESENT};
            found++;
        }
    }
    return (long)n;
}

static long present(uint64_t *at, uint64_t end, uint64_t must_not, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    if (!have_scan)
        return present_by_pagemap(at, end, out, cap, max_pages);
    return scan(at, end, 0, PRESENT, must_not, out, cap, max_pages);
}

long ud__track_present(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, int of_file)
{
    return present(at, end, PFNZERO | (of_file ? FILE_PAGE : 0), out, cap, 0);
}

long ud__track_untracked(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    return present(at, end, left_alone() | WPALLOWED, out, cap, max_pages);
}

long ud__track_all(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages)
{
    return present(at, end, left_alone(), out, cap, max_pages);
}

int ud__track_huge(uint64_t start, uint64_t *end)
{
    struct ud__range one;
    uint64_t at = start;
    if (!have_scan || scan(&at, *end, 0, PRESENT | HUGE, FILE_PAGE, &one, 1, 0) <= 0)
        return 0;
    int in_it = one.start <= start;
    *end = in_it ? one.end : one.start;
    return in_it;
}

int ud__track_owners(uint64_t vaddr, uint32_t npages, uint8_t *out)
{
    uint64_t buf[512];
    for (uint32_t done = 0; done < npages;) {
        uint32_t want = npages - done < 512 ? npages - done : 512;
        long r = ud__sys(__NR_pread64, pagemap, buf, (uint64_t)want * 8, ((vaddr >> ud__page_shift) + done) * 8);
        if (r != (long)want * 8)
            return r < 0 ? (int)r : -EIO;
        for (uint32_t i = 0; i < want; i++)
            out[done + i] = buf[i] >> 61 & 1 ? UD__PAGE_OF_FILE : buf[i] >> 56 & 1 ? UD__PAGE_OWN : UD__PAGE_OF_RELATIVES;
        done += want;
    }
    return 0;
}
