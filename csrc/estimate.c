/* estimate.c: what merging another process would save, told from digests of its pages.
 *
 * Guarantees: reads by pagemap and process_vm_readv only, so the target is neither stopped nor traced; eight bytes a page
 * and the caller's scratch buffer, no memory else.
 * Fails: -ESRCH or -EPERM from the kernel; a page that vanished meanwhile is counted as gone. Pages read while
 * they are written give the digest of a state that never was: an estimate, no more.
 */
#include "estimate.h"

#include <errno.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "raw.h"

#define CHUNK 256u /* pages read by one call: 1 MiB, the size at which process_vm_readv is fastest */
#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_FILE (1ull << 61)
#define PM_EXCLUSIVE (1ull << 56)

/* The runs of a chunk that are to be read, as process_vm_readv wants them. */
struct runs {
    struct iovec list[CHUNK];
    size_t count, pages;
};

static void add_page(struct runs *r, uint64_t addr, size_t page_size)
{
    struct iovec *last = r->count ? &r->list[r->count - 1] : NULL;
    if (last && (uint64_t)last->iov_base + last->iov_len == addr)
        last->iov_len += page_size;
    else
        r->list[r->count++] = (struct iovec){(void *)addr, page_size};
    r->pages++;
}

static long choose(int pagemap, uint64_t addr, size_t npages, size_t page_size, struct runs *r,
                   struct ud_estimate_seen *seen)
{
    uint64_t entry[CHUNK];
    long got = ud__sys(__NR_pread64, pagemap, entry, npages * 8, addr / page_size * 8);
    r->count = r->pages = 0;
    for (long i = 0; i < got / 8; i++) {
        if (entry[i] & PM_SWAPPED)
            seen->swapped++;
        if (!(entry[i] & PM_PRESENT) || entry[i] & PM_FILE)
            continue;
        if (entry[i] & PM_EXCLUSIVE)
            add_page(r, addr + (uint64_t)i * page_size, page_size);
        else
            seen->relatives++;
    }
    return got < 0 ? got : 0;
}

/* Leaves out the first `pages` pages of r, which have been read, and the one after, which is gone. */
static void step_over(struct runs *r, size_t pages, size_t page_size)
{
    size_t i = 0, skip = (pages + 1) * page_size;
    while (i < r->count && r->list[i].iov_len <= skip)
        skip -= r->list[i++].iov_len;
    r->count -= i;
    r->pages -= pages + 1;
    __builtin_memmove(r->list, r->list + i, r->count * sizeof *r->list);
    if (r->count) {
        r->list[0].iov_base = (char *)r->list[0].iov_base + skip;
        r->list[0].iov_len -= skip;
    }
}

/* The zero test leaves a page at its first other byte, so it costs next to nothing. */
static void name_pages(const void *pages, size_t n, size_t page_size, const uint64_t key[2], uint64_t *out)
{
    ud_digest_pages(pages, n, page_size, key, out);
    for (size_t i = 0; i < n; i++)
        if (ud_is_zero((const char *)pages + i * page_size, page_size))
            out[i] = UD_ESTIMATE_ZERO;
        else if (out[i] == UD_ESTIMATE_ZERO)
            out[i] = 2;
}

static long read_runs(int pid, struct runs *r, size_t page_size, const uint64_t key[2], void *scratch,
                      uint64_t *out, struct ud_estimate_seen *seen)
{
    long written = 0;
    while (r->pages) {
        struct iovec here = {scratch, r->pages * page_size};
        long n = ud__sys(__NR_process_vm_readv, pid, &here, 1, r->list, r->count, 0);
        if (n < 0 && n != -EFAULT)
            return n;
        size_t got = n < 0 ? 0 : (size_t)n / page_size;
        name_pages(scratch, got, page_size, key, out + written);
        written += (long)got;
        seen->present += got;
        if (got == r->pages)
            break;
        seen->gone++;
        step_over(r, got, page_size);
    }
    return written;
}

long ud_estimate_read(int pid, int pagemap, uint64_t addr, size_t npages, size_t page_size,
                      const uint64_t key[2], void *scratch, size_t scratch_pages, uint64_t *out,
                      struct ud_estimate_seen *seen)
{
    size_t step = scratch_pages < CHUNK ? scratch_pages : CHUNK;
    long written = 0;
    for (size_t at = 0; at < npages; at += step) {
        struct runs r;
        size_t want = npages - at < step ? npages - at : step;
        long n = choose(pagemap, addr + at * page_size, want, page_size, &r, seen);
        if (n == 0)
            n = read_runs(pid, &r, page_size, key, scratch, out + written, seen);
        if (n < 0)
            return n;
        written += n;
    }
    return written;
}

static void swap(uint64_t *a, uint64_t *b)
{
    uint64_t t = *a;
    *a = *b;
    *b = t;
}

static void insertion(uint64_t *a, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        uint64_t v = a[i];
        size_t j = i;
        for (; j && a[j - 1] > v; j--)
            a[j] = a[j - 1];
        a[j] = v;
    }
}

/* In-place radix sort, most significant byte first (American flag): digests are spread evenly. */
static void flag_sort(uint64_t *a, size_t n, int shift)
{
    size_t count[256] = {0}, next[256], end[256], sum = 0;
    for (size_t i = 0; i < n; i++)
        count[a[i] >> shift & 255]++;
    for (int b = 0; b < 256; b++) {
        next[b] = sum;
        sum += count[b];
        end[b] = sum;
    }
    for (int b = 0; b < 256; b++)
        while (next[b] < end[b]) {
            int to = (int)(a[next[b]] >> shift & 255);
            if (to == b)
                next[b]++;
            else
                swap(&a[next[b]], &a[next[to]++]);
        }
    for (int b = 0; shift && b < 256; b++) {
        uint64_t *part = a + end[b] - count[b];
        if (count[b] > 64)
            flag_sort(part, count[b], shift - 8);
        else
            insertion(part, count[b]);
    }
}

void ud_estimate_sort(uint64_t *digests, size_t n)
{
    if (n > 64)
        flag_sort(digests, n, 56);
    else
        insertion(digests, n);
}

void ud_estimate_count(const uint64_t *sorted, size_t n, struct ud_estimate *out)
{
    *out = (struct ud_estimate){0};
    for (size_t i = 0, j; i < n; i = j) {
        for (j = i + 1; j < n && sorted[j] == sorted[i];)
            j++;
        uint64_t same = j - i;
        if (sorted[i] == UD_ESTIMATE_ZERO)
            out->zero += same;
        else if (same == 1)
            out->unique++;
        else {
            out->shared++;
            out->sharing += same - 1;
        }
    }
    out->pages = n;
}
