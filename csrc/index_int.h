/* index_int.h: what the files of index and planner share. Not installed, not for others.
 *
 * A page of a session is named by its number in the ledger: block * UD_BLOCK_PAGES + page. Bitmaps
 * hold one word a block, so a block's pages are handled at once.
 */
#ifndef UD_INDEX_INT_H
#define UD_INDEX_INT_H

#include <stdbool.h>
#include <string.h>
#include "index.h"

#define UD__MAX_IDS (1u << 17)
#define UD__MAX_PAGES (1u << 30)
#define UD__SHORT_RUN 4u  /* runs below this wait until longer ones had their chance */
#define UD__TILE_ROW 32u  /* equal pages in a row that are worth a tile */
#define UD__MAX_EXTENT 65536u
#define UD__MAX_MERGES 4u /* MERGE messages one agent may have before it */
#define UD__MAX_WAITS (1u << 20)
#define UD__NONE UINT32_MAX
#define UD__NAMES 1024u

struct ud__wait { /* `n` pages of `sid` from `page` wait for the publication of the owner's from `owner` */
    uint32_t sid, page, owner, n;
    bool row; /* all n equal the owner's one page: map its tile again and again */
};

struct ud__move { /* `n` pages from `page` are to be mapped from slots `slot`.. of `gid` */
    uint32_t page, n, gid, slot;
    uint64_t vaddr;
};

struct ud__tile {
    uint32_t page, copies;
};

struct ud__run {
    uint32_t page, n, slot, copies; /* copies: 0, or of the one page */
};

struct ud__mover { /* a slot of a segment that is emptied: whose page carries its content away */
    uint32_t sid, page, users;
};

struct ud__session {
    uint32_t id;
    const struct ud_ledger_header *header;
    const struct ud_block_head *heads;
    const uint8_t *states;
    const uint64_t *entries;
    size_t map_bytes;
    uint32_t capacity, count; /* blocks: of the file; in use at the last look */
    uint64_t *claim;          /* page is in a queue or plan of any kind */
    uint64_t *pub;            /* ... as the owner of a publication */
    uint64_t *queue;          /* ... that has not been asked for */
    uint64_t *shy;            /* page was refused: not asked again before shy_until, unless it changes */
    uint64_t *again;          /* a bit a block: to be looked at again at again_at */
    uint32_t *order;          /* blocks by address */
    uint32_t order_count;
    uint32_t seen_gen;
    bool fresh;               /* nothing seen yet: look at everything */
    uint32_t again_count, queued;
    bool again_open; /* ... and a settle has to wait for it */
    bool held_up;    /* what is new was not looked at, for others grow (plan_growing.c) */
    int64_t waits_since; /* 0: it has not waited since nobody grew */
    int64_t again_at, busy_at, short_since, mute_until;
    int64_t shy_until;        /* 0: no page is shy */
    uint32_t shy_time;
    uint32_t hint;              /* a session that had the same at the same address, last time */
    uint32_t backoff;
    int failed_publishes;
    uint32_t publishes, merges; /* plans before the agent */
    struct ud__wait *waits;     /* runs that wait for this session's pages */
    uint32_t wait_count, wait_room;
    struct ud__move *moves;     /* runs ready for a MERGE to this session */
    uint32_t move_count, move_room, move_next;
    bool moves_sorted;
    uint32_t left_vmas;         /* pages whose runs were too short for the mappings left */
    uint32_t pub_runs;          /* runs of pages that it is to publish, or is publishing */
    uint32_t waiting_runs;      /* runs of its pages that wait for others' */
    uint32_t sent_runs;         /* in MERGEs that are not answered yet */
    struct ud__run *backs;      /* runs that nobody shares: to be plain memory again */
    uint32_t back_count, back_room;
    struct ud__tile *tiles;     /* tiles it is to publish */
    uint32_t tile_count, tile_room;
    struct ud_plan_counts counts;
};

struct ud__segment {
    uint32_t id;
    uint64_t name;
    uint32_t npages, used, plans; /* plans: plans and ready runs that name it */
    uint32_t node;                /* NUMA node of its pages + 1; 0: any, or not known */
    uint32_t lent;                /* outstanding pages that it takes until it is merged with */
    uint64_t *digests;
    bool promised;  /* they are the publisher's word: not read yet */
    uint64_t *map;  /* slots in use, by the last count */
    int64_t since;  /* when it was attached or last planned with */
    bool counted;   /* a count has run since then */
    bool retiring;  /* its live slots are moved elsewhere: no new uses */
    uint32_t breaks, tries; /* by the last look: runs cut at its slots. Times it was to be emptied */
    int64_t rest_until;     /* not to be emptied before */
    struct ud__mover *movers;
};

struct ud__plan {
    uint32_t number, sid, gid, node;
    uint16_t type;
    bool late;
    uint32_t npages, nruns; /* npages: slots, for PUBLISH */
    int64_t sent;
    struct ud__run *runs; /* PUBLISH: by page */
    uint64_t *digests;    /* PUBLISH: what each slot was asked to hold */
};

struct ud__table {
    uint64_t *slots; /* tag 16 | stable 1 | id 17 | page or slot 30; 0 = free */
    size_t size, used;
};

struct ud_planner {
    size_t page_size;
    struct ud_plan_conf conf;
    struct ud__table table;
    uint64_t secret;
    struct ud__session **sessions; /* by id; 0 is not used */
    struct ud__segment **segments;
    uint32_t session_room, segment_room;
    uint32_t names[UD__NAMES]; /* ids of segments, by name: a cache */
    struct ud__plan *plans;
    uint32_t plan_count, plan_room, next_plan, next_sid;
    uint64_t wait_total, move_total, outstanding, queued;
    uint64_t window;  /* of outstanding pages: how many there may be by now */
    int64_t published_at; /* when the last publication was asked for */
    int64_t done_at;      /* when nothing was on its way, at the last look */
    uint32_t lenders; /* segments with pages lent */
    uint64_t breaks_left; /* cuts that the last tidying could not mend */
    int64_t tidied_at, looked_at, now; /* now: of the scan that runs */
    uint64_t attached, joined; /* segments that ever came; and by the last look for doubles (plan_double.c) */
};

struct ud__ref {
    bool stable;
    uint32_t id, page;
};

/* index.c */
bool ud__index_find(struct ud_planner *p, uint64_t digest, struct ud__ref *found);
void ud__index_put(struct ud_planner *p, uint64_t digest, struct ud__ref ref);
void *ud__zeroed(size_t bytes);
void ud__unmap(void *address, size_t bytes);
int ud__grow(void **array, uint32_t *room, uint32_t need, size_t item);

/* index_ledger.c */
int ud__ledger_attach(struct ud__session *s, int fd, size_t page_size);
void ud__ledger_detach(struct ud__session *s);
void ud__ledger_refresh(struct ud__session *s);
uint32_t ud__ledger_at(const struct ud__session *s, uint64_t vaddr);
uint64_t ud__ledger_vaddr(const struct ud__session *s, uint32_t page, size_t page_size);
bool ud__ledger_follows(const struct ud__session *s, uint32_t page, size_t page_size);

/* plan.c */
void ud__claim(struct ud__session *s, uint32_t page, uint32_t n, bool on);
void ud__pub(struct ud__session *s, uint32_t page, bool on);
void ud__put_off(struct ud__session *s, uint32_t page, int64_t at, bool open);
void ud__grow_bold(struct ud__session *s, int64_t now);
bool ud__digest_of(struct ud_planner *p, const struct ud__session *s, uint32_t page, uint64_t *digest);
bool ud__nominated(const struct ud__session *s, uint32_t page, uint64_t *digest);
void ud__paid_back(struct ud_planner *p, struct ud__segment *g);
struct ud__plan *ud__plan_new(struct ud_planner *p, struct ud__session *s, uint16_t type, uint32_t nruns, int64_t now);
struct ud__plan *ud__plan_find(struct ud_planner *p, uint32_t sid, uint32_t number);
void ud__plan_end(struct ud_planner *p, struct ud__plan *plan);

/* plan_growing.c: does a scan have to wait for other programs? Until when one that does will, if nothing changes. */
bool ud__scan_waits(struct ud_planner *p, struct ud__session *s, int64_t now);
int64_t ud__waits_until(const struct ud_planner *p, const struct ud__session *s, int64_t now);

/* plan_wait.c */
int ud__wait_for(struct ud_planner *p, struct ud__session *owner, struct ud__wait wait);
const struct ud__run *ud__run_of(const struct ud__plan *plan, uint32_t page);
void ud__resolve(struct ud_planner *p, struct ud__session *owner, const struct ud__plan *plan, uint32_t gid, int64_t now);
void ud__land_owner(struct ud_planner *p, struct ud__session *s, const struct ud__plan *plan, uint32_t gid, int64_t now);
void ud__forget_waiter(struct ud_planner *p, uint32_t sid);

/* plan_compact.c: each merged page that is in no plan, by address */
typedef void (*ud__visit)(struct ud_planner *p, struct ud__session *s, uint32_t page, struct ud__segment *g, uint32_t slot,
                          void *arg);
void ud__each_merged(struct ud_planner *p, struct ud__session *s, ud__visit see, void *arg);

/* plan_double.c: sends whoever maps a second copy to the first. Pages on their way. */
uint32_t ud__join_doubles(struct ud_planner *p);

/* plan_publish.c */
void ud__queue(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n);
/* How many of a longer run's pages at vaddr to take: `most`, or less, so that a huge page ends there. Cut it would be split. */
uint32_t ud__whole_huge(const struct ud_planner *p, uint64_t vaddr, uint32_t most);
int ud__queue_tile(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t copies);
int ud__make_publish(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf);

/* plan_merge.c */
int ud__ready(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n, uint32_t gid, uint32_t slot);
int ud__make_merge(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf);
int ud__make_unmerge(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf);
void ud__drop_moves(struct ud_planner *p, struct ud__session *s);

static inline struct ud__session *ud__session(struct ud_planner *p, uint32_t id)
{
    return id < p->session_room ? p->sessions[id] : NULL;
}

static inline struct ud__segment *ud__segment(struct ud_planner *p, uint32_t id)
{
    return id < p->segment_room ? p->segments[id] : NULL;
}

static inline bool ud__bit(const uint64_t *map, uint32_t page)
{
    return map[page / 64] >> (page % 64) & 1;
}

/* The high bits of a state are the agent's own. */
static inline uint8_t ud__state(const struct ud__session *s, uint32_t page)
{
    return __atomic_load_n(&s->states[page], __ATOMIC_ACQUIRE) & 7;
}

static inline uint64_t ud__entry(const struct ud__session *s, uint32_t page)
{
    return __atomic_load_n(&s->entries[page], __ATOMIC_RELAXED);
}

static inline bool ud__in_use(const struct ud__session *s, uint32_t page)
{
    return page / UD_BLOCK_PAGES < s->count;
}

/* A candidate that is in no plan and was not refused of late. */
static inline bool ud__free_candidate(const struct ud__session *s, uint32_t page)
{
    return ud__in_use(s, page) && ud__state(s, page) == UD_PG_STABLE && !ud__bit(s->claim, page) &&
           !ud__bit(s->shy, page);
}

#endif
