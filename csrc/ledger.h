/* ledger.h: the shape of an agent's ledger, the memfd it shares with the merger.
 *
 * Guarantees: the agent alone writes it; the merger maps it PROT_READ. The memfd is sealed
 * F_SEAL_SHRINK|F_SEAL_GROW before it is handed out, so a reader never takes SIGBUS.
 * Fails: a reader may see an entry change under it (digests nominate, bytes decide), so every
 * reader checks bounds itself and never follows a pointer out of it.
 *
 * Layout of the file, each part page-aligned, sparse until used:
 *
 *   0            struct ud_ledger_header
 *   heads_off    struct ud_block_head [capacity]       16 B a block
 *   states_off   uint8_t  [capacity][UD_BLOCK_PAGES]   1 B a page
 *   entries_off  uint64_t [capacity][UD_BLOCK_PAGES]   8 B a page
 *
 * A block is UD_BLOCK_PAGES consecutive, block-aligned pages of the owner's address space.
 */
#ifndef UD_LEDGER_H
#define UD_LEDGER_H

#include <stdint.h>

#define UD_LEDGER_MAGIC 0x31656c4475647564ull
#define UD_LEDGER_VERSION 2u
#define UD_BLOCK_PAGES 64u

/* What is known of one page. The entry beside it holds a digest for VOLATILE, STABLE and SHARED, and
 * UD_SLOT_REF(segment, slot) for MERGED. */
enum ud_page_state {
    UD_PG_NONE = 0,     /* not present, not ours, or not looked at */
    UD_PG_VOLATILE = 1, /* its digest is new: written since the last pass, or seen for the first time */
    UD_PG_STABLE = 2,   /* unchanged for a whole pass: a candidate */
    UD_PG_MERGED = 3,   /* mapped from a segment and not split since */
    UD_PG_ZERO = 4,     /* given back as a zero page */
    UD_PG_SHARED = 5,   /* already shared with a fork relative by the kernel: no gain in merging */
    UD_PG_REFUSED = 6,  /* a merge failed; left alone for some passes */
};

#define UD_SLOT_BITS 24u
#define UD_SLOT_REF(segment, slot) (((uint64_t)(segment) << UD_SLOT_BITS) | (uint64_t)(slot))
#define UD_REF_SEGMENT(ref) ((uint64_t)(ref) >> UD_SLOT_BITS)
#define UD_REF_SLOT(ref) ((uint32_t)((ref) & ((1u << UD_SLOT_BITS) - 1)))

/* With merge_across_nodes 0 a digest has the page's NUMA node in its top bits. */
#define UD_NODE_SHIFT 54u
#define UD_NODES (1u << (64 - UD_NODE_SHIFT))
#define UD_NODE_DIGEST ((1ull << UD_NODE_SHIFT) - 1)
#define UD_WITH_NODE(digest, node) (((uint64_t)(digest) & UD_NODE_DIGEST) | (uint64_t)(unsigned)(node) << UD_NODE_SHIFT)
#define UD_NODE_OF(digest) ((unsigned)((uint64_t)(digest) >> UD_NODE_SHIFT))

struct ud_block_head {
    uint64_t vaddr; /* first byte of the block; 0 = the block is free */
    uint32_t gen;   /* header.gen when an entry of the block last changed */
    uint32_t flags; /* the agent's own */
};

/* Why a planned merge did not happen: one counter each, and the names `stat` prints. */
enum ud_cause {
    UD_CAUSE_CHANGED = 0, /* bytes differed at the comparison: the digest was old */
    UD_CAUSE_GONE,        /* unmapped, remapped, or no longer plain private anonymous memory */
    UD_CAUSE_STACK,       /* a stack pointer lies in the mapping, or TLS */
    UD_CAUSE_LOCKED,      /* mlocked, DONTFORK, WIPEONFORK, hugetlb, device and the like */
    UD_CAUSE_VMAS,        /* VMA budget used up */
    UD_CAUSE_NOMEM,       /* ENOMEM from the kernel */
    UD_CAUSE_BUSY,        /* a thread was inside a memory call of ours */
    UD_CAUSE_HOLD_DEADLINE, /* threads could not all be held in time */
    UD_CAUSE_HOLD_TRACED, /* somebody else traces a thread */
    UD_CAUSE_HOLD_REFUSED, /* ptrace refused by the kernel, and signals will not do either */
    UD_CAUSE_SYSCALL,     /* a thread sleeps in a call that an interruption would show in */
    UD_CAUSE_SEALS,       /* a segment came without its seals */
    UD_CAUSE_SEGMENT,     /* a segment could not be made or mapped (EMFILE, ENOSPC, ...) */
    UD_CAUSE_PINNED,      /* pages may be the target of DMA or asynchronous I/O */
    UD_CAUSE_SHARED,      /* another process runs on the same memory */
    UD_CAUSE_HOLD_MASKED, /* ptrace refused, and a thread blocks SIGURG */
    UD_CAUSE_HUGE,        /* part of a huge page, and thp is keep */
    UD_CAUSE_NODE,        /* the page's NUMA node is not known, and merge_across_nodes is 0 */
    UD_CAUSE_COUNT = 20
};

/* How threads are held, how changes are found: what `stat` and `doctor` name. */
enum ud_hold_kind { UD_HOLD_NONE = 0, UD_HOLD_PTRACE = 1, UD_HOLD_SIGNAL = 2, UD_HOLD_MPROTECT = 3 };
enum ud_track_kind { UD_TRACK_NONE = 0, UD_TRACK_DIGEST = 1, UD_TRACK_UFFD = 2 };

/* What a merged mapping costs the kernel: two vm_area_structs (it cuts one in three), their places in the
 * maple tree, anon_vma chains. Measured on 6.18 by a cgroup's kernel memory, with 20,000 single pages. */
#define UD_VMA_BYTES 472

/* The shortest run worth its mappings, when `left` of a budget are left: the scarcer, the longer. */
static inline uint32_t ud_shortest_run(uint32_t budget, int64_t left)
{
    int64_t b = budget;
    return left > b / 8 ? 1 : left > b / 16 ? 4 : left > b / 32 ? 16 : 64;
}

#define UD_FREEZE_BUCKETS 96 /* bucket b counts pauses of [2^(b/4), 2^((b+1)/4)) microseconds */

struct ud_ledger_header {
    uint64_t magic;
    uint32_t version;
    uint32_t page_shift;
    uint32_t pid;
    uint32_t capacity;    /* blocks the file has room for */
    uint32_t block_count; /* blocks ever used: heads beyond are untouched */
    uint32_t gen;         /* raised once a pass that changed anything, after the entries it covers */
    uint64_t heads_off, states_off, entries_off, size; /* bytes from the start of the file */

    /* counters, written by the agent alone, monotonic unless noted */
    uint64_t passes;         /* full passes ended (full_scans) */
    uint64_t pages_scanned;  /* pages digested */
    uint64_t pages_skipped;  /* smart scan: pages left for a later pass */
    uint64_t pages_merged;   /* merges done, zero pages not counted */
    uint64_t pages_zeroed;   /* pages given back as zero pages */
    uint64_t pages_split;    /* splits seen */
    uint64_t pages_unmerged; /* pages given back as plain memory */
    uint64_t pages_published;
    uint64_t merge_failures[UD_CAUSE_COUNT];
    uint64_t freezes;        /* write-stops that held everybody */
    uint64_t freeze_us_max;
    uint64_t freeze_us_sum;
    uint64_t freeze_hist[UD_FREEZE_BUCKETS];
    uint64_t agent_cpu_us;   /* gauge: CPU of agent thread, readers and holders */
    uint32_t vmas_used;      /* gauge: mappings that merging added */
    uint32_t vmas_budget;    /* gauge */
    uint32_t hold_kind;      /* enum ud_hold_kind */
    uint32_t track_kind;     /* enum ud_track_kind */
    uint32_t tracked_pages;  /* gauge: pages under write tracking */
    uint32_t mode;           /* 0 stop, 1 trap */
    uint32_t regions_mode;   /* 0 all, 1 advised */
    uint32_t preloaded;      /* 1 if the interposers are in front of libc */
    uint64_t private_bytes;  /* gauge: private anonymous memory seen by the last pass */
    uint64_t eligible_pages; /* gauge: pages of mergeable mappings, present */
    uint64_t huge_pages;     /* gauge: of those, pages inside huge pages */
    uint64_t eintr_repairs;  /* system calls started again by the holder */
    uint64_t metadata_bytes; /* gauge: agent's own memory, the ledger included */
    char cause_text[96];     /* last refusal in words, for doctor and stat */
    uint64_t pages_written;  /* pages found written, or for the first time */
    uint64_t trap_splits;    /* splits that the fault handler made, counted at once; pages_split has them after the next pass */
    uint64_t growing;        /* gauge: 1 while the program grows: no more of its pages are nominated meanwhile */
    uint64_t reserved[15];
};

#endif
