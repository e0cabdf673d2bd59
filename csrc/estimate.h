/* estimate.h: digests of another process's pages, and how many are equal. For `udedup watch`. */
#ifndef UD_ESTIMATE_H
#define UD_ESTIMATE_H

#include "udedup.h"

/* The digest of a page of zeros. */
#define UD_ESTIMATE_ZERO 1u

struct ud_estimate {
    uint64_t pages;    /* digests that name a page, zero pages included */
    uint64_t zero;     /* pages of zeros */
    uint64_t unique;   /* pages nobody else equals */
    uint64_t shared;   /* contents that two pages or more have: what would be kept */
    uint64_t sharing;  /* pages those contents replace: what would be saved, zero pages not counted */
};

/* What pagemap said of the pages looked at. */
struct ud_estimate_seen {
    uint64_t present;  /* private anonymous pages in memory that this process alone maps */
    uint64_t relatives; /* mapped by a fork relative too (or the zero page): shared already, not read */
    uint64_t swapped;  /* not read: nothing is brought in for an estimate */
    uint64_t gone;     /* could not be read */
};

/* Digests those of the npages pages at `addr` of process `pid` that are present and its own, one after
 * another, into out[]; pagemap is its open /proc/PID/pagemap; `scratch` holds scratch_pages pages, 256 at
 * most are used. Returns the digests written, or -errno (-ESRCH: it ended, -EPERM: not allowed). Adds to seen. */
UD_API long ud_estimate_read(int pid, int pagemap, uint64_t addr, size_t npages, size_t page_size,
                             const uint64_t key[2], void *scratch, size_t scratch_pages, uint64_t *out,
                             struct ud_estimate_seen *seen);
/* Sorts in place, with no memory beside. */
UD_API void ud_estimate_sort(uint64_t *digests, size_t n);
/* Counts equal digests in a sorted array. */
UD_API void ud_estimate_count(const uint64_t *sorted, size_t n, struct ud_estimate *out);

#endif
