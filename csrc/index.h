/* index.h: the merger's core: sessions (mapped ledgers), segments (slot digests), index, planner.
 *
 * Guarantees: works on digests alone and never sees memory but that of sealed segments. Ledgers are
 * read with every bound checked; nothing in them is followed as a pointer or trusted as a count.
 * Time is the caller's: `now` is in milliseconds of any monotonic clock. One thread.
 * Fails: -errno, and nothing has changed; a match that cannot be remembered is looked at again later.
 */
#ifndef UD_INDEX_H
#define UD_INDEX_H

#include "udedup.h"
#include "wire.h"

struct ud_planner;

struct ud_plan_conf {
    uint64_t key[2];            /* digest key of the domain */
    uint32_t run;               /* as the knob: plans are made only while it is 1 */
    uint32_t max_page_sharing;  /* copies of a uniform page in one tile, at most */
    uint32_t min_run;           /* shortest run worth a mapping, pages */
    uint32_t segment_pages;     /* a publication's slots, at most */
    uint32_t outstanding_pages; /* pages asked for that nobody has merged with yet, in the domain */
    uint32_t first_pages;       /* of those, after a rest; twice as many with each publication merged with. 0: no fewer */
    uint32_t short_delay;       /* ms without long matches before short runs are taken */
    uint32_t answer_timeout;    /* ms after which a silent agent no longer blocks the others */
    uint32_t dead_percent;      /* dead slots of the store that start a compaction; 0 = never */
    uint32_t per_node;          /* 1: digests tell the NUMA node (ledger.h), and a segment holds pages of one */
};

struct ud_plan_out {
    uint32_t sid;   /* whom to send it to */
    uint32_t gid;   /* MERGE: the segment whose descriptor goes with it; else 0 */
    uint32_t bytes; /* of the message in the caller's buffer */
    uint32_t plan;
};

/* Pages of one session, or of all, by what its ledger says now. */
struct ud_plan_counts {
    uint64_t tracked;     /* pages with a state */
    uint64_t pages_volatile;
    uint64_t unshared;    /* stable, no twin known */
    uint64_t waiting;     /* stable, in a plan or in the queue */
    uint64_t merged;      /* uses of slots: shared + sharing */
    uint64_t shared;      /* slots in use, counted where they are met first */
    uint64_t sharing;     /* merged - shared */
    uint64_t zero;
    uint64_t fork_shared; /* shared with a fork relative by the kernel */
    uint64_t refused;
    uint64_t lost;        /* MERGED entries that name no slot we hold */
    uint64_t left_vmas;   /* matched, but not worth one of the mappings that are left */
};

struct ud_plan_store {
    uint64_t segments, slots, used, dead; /* used: slots mapped by somebody; dead = slots - used */
    uint64_t tile_slots;                  /* copies of uniform pages beyond the first, in use */
    uint64_t metadata_bytes;              /* index, digests, bitmaps, waiting lists */
    uint64_t queued_pages, waiting_runs, ready_runs, plans; /* nothing left to do: all four 0 */
    uint64_t again_blocks;                /* blocks put off */
    uint64_t outstanding_pages;
};

UD_API struct ud_planner *ud_planner_new(size_t page_size);
UD_API void ud_planner_free(struct ud_planner *p);
UD_API void ud_planner_configure(struct ud_planner *p, const struct ud_plan_conf *conf);

/* Maps the ledger behind fd (kept by the caller). Id of the session, -EPERM without its seals, -EBADMSG if malformed. */
UD_API int ud_planner_session(struct ud_planner *p, int fd, int64_t now);
/* Drops it with all that was planned for it. */
UD_API int ud_planner_leave(struct ud_planner *p, uint32_t sid, int64_t now);
/* A copy of its ledger's header. */
UD_API int ud_planner_header(struct ud_planner *p, uint32_t sid, struct ud_ledger_header *out);

/* Checks the seals and size of the segment behind fd and digests its slots. node: as in struct ud_msg_segment. Its id
 * (the old one if it is known), -EPERM, -EINVAL, -ENOMEM. *name gets the memfd's inode number. If it answers a plan, the
 * slots' digests are those of the pages that were asked for, until ud_planner_verify. */
UD_API int ud_planner_segment(struct ud_planner *p, int fd, uint32_t node, uint32_t sid, uint32_t plan, uint64_t *name);
/* Digests the slots after all. 1, 0 if that was done before, or -errno. */
UD_API int ud_planner_verify(struct ud_planner *p, uint32_t gid, int fd);
/* The node that a PUBLISH asked for (+ 1); 0: any, or no such plan. */
UD_API uint32_t ud_planner_plan_node(struct ud_planner *p, uint32_t sid, uint32_t plan);
/* Forgets it: -EBUSY while a plan names it. */
UD_API int ud_planner_drop(struct ud_planner *p, uint32_t gid);
/* Id by name, 0 if unknown. */
UD_API uint32_t ud_planner_find(struct ud_planner *p, uint64_t name);
UD_API int ud_planner_segment_info(struct ud_planner *p, uint32_t gid, uint32_t *npages, uint32_t *used, uint64_t *name);

/* Looks at what changed in the ledger since the last time; the program itself has written `written` pages meanwhile, by
 * the agent's word. Pages newly matched. */
UD_API int ud_planner_scan(struct ud_planner *p, uint32_t sid, uint32_t written, int64_t now);
/* The next message to send, into buf of UD_MSG_MAX bytes: 1, or 0 if there is none. */
UD_API int ud_planner_next(struct ud_planner *p, int64_t now, struct ud_plan_out *out, void *buf);
/* An answer. gid 0: nothing was published. -ENOENT: no such plan. */
UD_API int ud_planner_published(struct ud_planner *p, uint32_t sid, uint32_t plan, uint32_t gid, int64_t now);
UD_API int ud_planner_result(struct ud_planner *p, uint32_t sid, uint32_t plan, uint32_t merged, uint32_t refused, int64_t now);
/* Milliseconds until ud_planner_scan of some session would look at blocks put off; -1 if never. */
UD_API int64_t ud_planner_timer(struct ud_planner *p, int64_t now);
/* Id of a session whose blocks put off are due (or that lost its partner), 0 if none. */
UD_API uint32_t ud_planner_due(struct ud_planner *p, int64_t now);

/* Counts all ledgers; the other two read what it found. */
UD_API void ud_planner_count(struct ud_planner *p, struct ud_plan_counts *sum, struct ud_plan_store *store);
UD_API int ud_planner_session_counts(struct ud_planner *p, uint32_t sid, struct ud_plan_counts *out);
/* Segments that nothing maps and no plan names, by the last count: at most cap ids into gids. */
UD_API int ud_planner_idle(struct ud_planner *p, int64_t now, uint32_t *gids, int cap);
/* Empties segments that are mostly dead, and those at which many runs are cut, as far as `most` pages of
 * memory may be used twice meanwhile. By the last count. Segments that are to be emptied. */
UD_API int ud_planner_compact(struct ud_planner *p, uint64_t most, int64_t now);
/* Pages that are to be published and were not asked for yet. */
UD_API uint64_t ud_planner_queued(struct ud_planner *p);
/* 1 if nothing is queued, waiting or outstanding. */
UD_API int ud_planner_quiet(struct ud_planner *p);

#endif
