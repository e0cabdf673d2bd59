/* What cffi knows of libudedup.so. Each section names the header it repeats; keep them in step:
 * the compiler refuses a build in which they differ. Add your own section at the end. */

/* ---- udedup.h --------------------------------------------------------------------------------- */
/* include: udedup.h */

void ud_digest_pages(const void *pages, size_t n, size_t page_size, const uint64_t key[2], uint64_t *out);
const char *ud_digest_backend(void);
int ud_digest_use(const char *name);
int ud_equal(const void *a, const void *b, size_t n);
int ud_is_zero(const void *page, size_t n);

int ud_join(const char *socket_path, int regions_advised);
int ud_leave(void);
int ud_advise(void *addr, size_t len, int advice);
int ud_joined(void);
int ud_memory_merge_set(int on);
int ud_memory_merge_get(void);
int ud_preloaded(void);

int ud_layout_apply(uint64_t shift);
long ud_probe_hold(void);
long ud_probe_park(void);
long ud_probe_huge_store(void);

/* ---- ledger.h ---------------------------------------------------------------------------------- */
/* include: ledger.h */

#define UD_LEDGER_MAGIC ...
#define UD_LEDGER_VERSION ...
#define UD_BLOCK_PAGES ...
#define UD_SLOT_BITS ...
#define UD_FREEZE_BUCKETS ...
#define UD_VMA_BYTES ...
#define UD_NODE_SHIFT ...

enum ud_page_state {
    UD_PG_NONE, UD_PG_VOLATILE, UD_PG_STABLE, UD_PG_MERGED, UD_PG_ZERO, UD_PG_SHARED, UD_PG_REFUSED, ...
};
enum ud_cause {
    UD_CAUSE_CHANGED, UD_CAUSE_GONE, UD_CAUSE_STACK, UD_CAUSE_LOCKED, UD_CAUSE_VMAS, UD_CAUSE_NOMEM,
    UD_CAUSE_BUSY, UD_CAUSE_HOLD_DEADLINE, UD_CAUSE_HOLD_TRACED, UD_CAUSE_HOLD_REFUSED, UD_CAUSE_SYSCALL,
    UD_CAUSE_SEALS, UD_CAUSE_SEGMENT, UD_CAUSE_PINNED, UD_CAUSE_SHARED, UD_CAUSE_HOLD_MASKED, UD_CAUSE_HUGE, UD_CAUSE_NODE,
    UD_CAUSE_COUNT, ...
};

struct ud_block_head {
    uint64_t vaddr;
    uint32_t gen;
    uint32_t flags;
};

struct ud_ledger_header {
    uint64_t magic;
    uint32_t version, page_shift, pid, capacity, block_count, gen;
    uint64_t heads_off, states_off, entries_off, size;
    uint64_t passes, pages_scanned, pages_skipped, pages_merged, pages_zeroed, pages_split;
    uint64_t pages_unmerged, pages_published, pages_written, trap_splits, growing;
    uint64_t merge_failures[...];
    uint64_t freezes, freeze_us_max, freeze_us_sum;
    uint64_t freeze_hist[...];
    uint64_t agent_cpu_us;
    uint32_t vmas_used, vmas_budget, hold_kind, track_kind, tracked_pages, mode, regions_mode, preloaded;
    uint64_t private_bytes, eligible_pages, huge_pages, eintr_repairs, metadata_bytes;
    char cause_text[96];
    ...;
};

/* ---- wire.h ------------------------------------------------------------------------------------ */
/* include: wire.h */

#define UD_WIRE_MAGIC ...
#define UD_WIRE_VERSION ...
#define UD_MSG_MAX ...
#define UD_MSG_MAX_RUNS ...

enum ud_msg_type {
    UD_MSG_HELLO, UD_MSG_WELCOME, UD_MSG_SEGMENT, UD_MSG_PASS, UD_MSG_PUBLISH, UD_MSG_PUBLISHED,
    UD_MSG_MERGE, UD_MSG_RESULT, UD_MSG_UNMERGE, UD_MSG_FORGET, UD_MSG_KNOBS, UD_MSG_KICK, UD_MSG_LEAVE, ...
};

struct ud_msg {
    uint32_t magic;
    uint16_t type, version;
    uint32_t len, plan;
};

struct ud_knobs {
    uint32_t run, pages_to_scan, sleep_millisecs, use_zero_pages, smart_scan, max_page_sharing;
    uint32_t freeze_max_us, min_run, thp, vma_share, mode, split, idle_millisecs, merge_across_nodes;
    uint32_t agent_cpu_permille, pace_percent;
    ...;
};

struct ud_msg_hello {
    struct ud_msg msg;
    uint32_t pid, page_shift;
    uint64_t key[2];
    uint32_t segments, flags;
    char comm[16];
};

struct ud_msg_welcome {
    struct ud_msg msg;
    uint64_t key[2];
    struct ud_knobs knobs;
};

struct ud_msg_segment {
    struct ud_msg msg;
    uint64_t segment;
    uint32_t npages, node;
};

struct ud_msg_pass {
    struct ud_msg msg;
    uint64_t pass;
    uint32_t changed, whole;
};

struct ud_run {
    uint64_t vaddr;
    uint32_t npages, slot;
};

struct ud_msg_runs {
    struct ud_msg msg;
    uint64_t segment;
    uint32_t nruns, node;
    struct ud_run runs[];
};

struct ud_msg_result {
    struct ud_msg msg;
    uint64_t segment;
    uint32_t npages, merged, refused, freezes;
    uint32_t causes[...];
};

/* ---- estimate.h -------------------------------------------------------------------------------- */
/* include: estimate.h */

struct ud_estimate {
    uint64_t pages, zero, unique, shared, sharing;
};
struct ud_estimate_seen {
    uint64_t present, relatives, swapped, gone;
};
long ud_estimate_read(int pid, int pagemap, uint64_t addr, size_t npages, size_t page_size,
                      const uint64_t key[2], void *scratch, size_t scratch_pages, uint64_t *out,
                      struct ud_estimate_seen *seen);
void ud_estimate_sort(uint64_t *digests, size_t n);
void ud_estimate_count(const uint64_t *sorted, size_t n, struct ud_estimate *out);

/* ---- index.h ----------------------------------------------------------------------------------- */
/* include: index.h */

struct ud_planner;

struct ud_plan_conf {
    uint64_t key[2];
    uint32_t run;
    uint32_t max_page_sharing;
    uint32_t min_run;
    uint32_t segment_pages;
    uint32_t outstanding_pages;
    uint32_t first_pages;
    uint32_t short_delay;
    uint32_t answer_timeout;
    uint32_t dead_percent;
    uint32_t per_node;
};

struct ud_plan_out {
    uint32_t sid;
    uint32_t gid;
    uint32_t bytes;
    uint32_t plan;
};

struct ud_plan_counts {
    uint64_t tracked;
    uint64_t pages_volatile;
    uint64_t unshared;
    uint64_t waiting;
    uint64_t merged;
    uint64_t shared;
    uint64_t sharing;
    uint64_t zero;
    uint64_t fork_shared;
    uint64_t refused;
    uint64_t lost;
    uint64_t left_vmas;
};

struct ud_plan_store {
    uint64_t segments, slots, used, dead;
    uint64_t tile_slots;
    uint64_t metadata_bytes;
    uint64_t queued_pages, waiting_runs, ready_runs, plans;
    uint64_t again_blocks;
    uint64_t outstanding_pages;
};

struct ud_planner *ud_planner_new(size_t page_size);
void ud_planner_free(struct ud_planner *p);
void ud_planner_configure(struct ud_planner *p, const struct ud_plan_conf *conf);

int ud_planner_session(struct ud_planner *p, int fd, int64_t now);

int ud_planner_leave(struct ud_planner *p, uint32_t sid, int64_t now);

int ud_planner_header(struct ud_planner *p, uint32_t sid, struct ud_ledger_header *out);

int ud_planner_segment(struct ud_planner *p, int fd, uint32_t node, uint32_t sid, uint32_t plan, uint64_t *name);
int ud_planner_verify(struct ud_planner *p, uint32_t gid, int fd);
uint32_t ud_planner_plan_node(struct ud_planner *p, uint32_t sid, uint32_t plan);

int ud_planner_drop(struct ud_planner *p, uint32_t gid);

uint32_t ud_planner_find(struct ud_planner *p, uint64_t name);
int ud_planner_segment_info(struct ud_planner *p, uint32_t gid, uint32_t *npages, uint32_t *used, uint64_t *name);

int ud_planner_scan(struct ud_planner *p, uint32_t sid, uint32_t written, int64_t now);

int ud_planner_next(struct ud_planner *p, int64_t now, struct ud_plan_out *out, void *buf);

int ud_planner_published(struct ud_planner *p, uint32_t sid, uint32_t plan, uint32_t gid, int64_t now);
int ud_planner_result(struct ud_planner *p, uint32_t sid, uint32_t plan, uint32_t merged, uint32_t refused, int64_t now);

int64_t ud_planner_timer(struct ud_planner *p, int64_t now);

uint32_t ud_planner_due(struct ud_planner *p, int64_t now);

void ud_planner_count(struct ud_planner *p, struct ud_plan_counts *sum, struct ud_plan_store *store);
int ud_planner_session_counts(struct ud_planner *p, uint32_t sid, struct ud_plan_counts *out);

int ud_planner_idle(struct ud_planner *p, int64_t now, uint32_t *gids, int cap);

int ud_planner_compact(struct ud_planner *p, uint64_t most, int64_t now);

uint64_t ud_planner_queued(struct ud_planner *p);

int ud_planner_quiet(struct ud_planner *p);

/* ---- trap mode: udedup.h ------------------------------------------------------------------------ */

int ud_writable_open(void *addr, size_t len);
int ud_writable_close(int token);
