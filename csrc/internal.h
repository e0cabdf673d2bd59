/* internal.h: what the files of the agent share. One process has one agent at most: `ud__a`.
 *
 * Who may touch what:
 *   app threads   busy counter, merged map (read, clear), start-up state; everything else is not theirs
 *   agent         all of it, but never the merged map's table pointer
 *   holder        what its job points to, the ledger and the merged map, while everybody is held
 */
#ifndef UD_INTERNAL_H
#define UD_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "ledger.h"
#include "raw.h"
#include "udedup.h"
#include "wire.h"

#define UD_HIDDEN __attribute__((visibility("hidden")))
#define UD_LIKELY(x) __builtin_expect(!!(x), 1)
#define UD_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* ---- base.c: clock, memory, text ---------------------------------------------------------------- */

extern UD_HIDDEN size_t ud__page;       /* bytes of a page */
extern UD_HIDDEN unsigned ud__page_shift;
void ud__base_init(void) UD_HIDDEN;
uint64_t ud__now_us(void) UD_HIDDEN;    /* CLOCK_MONOTONIC */
void ud__sleep_us(uint64_t us) UD_HIDDEN;
uint64_t ud__cpus(void) UD_HIDDEN; /* that the calling thread may run on; 1 at least */
/* Where to ask for a mapping of our own: far from the program's, so that a pool's shared layout stays shared. */
uint64_t ud__hint(size_t bytes) UD_HIDDEN;
/* Memory of the agent's own: never merged, not inherited by fork. NULL when there is none. */
void *ud__alloc(size_t bytes) UD_HIDDEN;
void ud__free(void *p, size_t bytes) UD_HIDDEN;
void ud__empty(void *p, size_t bytes) UD_HIDDEN; /* its contents are of no use: the memory goes back, the place stays */
/* Remembers that [p, p+bytes) is the agent's, whoever mapped it; and the reverse. */
void ud__own_add(const void *p, size_t bytes) UD_HIDDEN;
void ud__own_del(const void *p) UD_HIDDEN;
int ud__own_overlaps(uint64_t start, uint64_t end) UD_HIDDEN;
void ud__own_reset(void) UD_HIDDEN;
/* Text without stdio; each returns the end. */
char *ud__put_str(char *at, const char *end, const char *s) UD_HIDDEN;
char *ud__put_dec(char *at, const char *end, uint64_t v) UD_HIDDEN;
uint64_t ud__get_hex(const char **s) UD_HIDDEN;
uint64_t ud__get_dec(const char **s) UD_HIDDEN;
long ud__memfd(const char *name) UD_HIDDEN; /* one that can be sealed; -errno */
/* Whole small file into buf, NUL at the end. Bytes or -errno. */
long ud__read_file(const char *path, char *buf, size_t cap) UD_HIDDEN;
long ud__read_fd(int fd, char *buf, size_t cap) UD_HIDDEN; /* the same of an open one, from its start */

/* ---- procfs.c: what the files of /proc say ------------------------------------------------------------ */

/* TID/FILE below an open /proc/PID/task, as far as buf has room. Bytes or -errno. */
long ud__read_task(int taskfd, int tid, const char *file, char *buf, size_t cap) UD_HIDDEN;
/* Behind "KEY:" or "KEY  :" at the start of a line, and blanks; NULL if no line begins so. */
const char *ud__line_value(const char *text, const char *key) UD_HIDDEN;
uint64_t ud__line_number(const char *text, const char *key) UD_HIDDEN; /* the number there; 0 if there is none */
/* The text of a stat file from its field on, counted as proc(5) does, from the state (3) on; "" if it is shorter. */
const char *ud__stat_field(const char *text, int field) UD_HIDDEN;

/* ---- guards that tests may switch off (built with -DUD_TEST only) --------------------------------- */

enum ud__guard {
    UD__GUARD_BUSY = 1 << 0, UD__GUARD_MAPCHECK = 1 << 1, UD__GUARD_COMPARE = 1 << 2, UD__GUARD_HOLD = 1 << 3,
    UD__GUARD_BITFIRST = 1 << 4, UD__GUARD_EINTR = 1 << 5, UD__GUARD_LASTPAGE = 1 << 6, UD__GUARD_PINNED = 1 << 7,
    UD__GUARD_FORK = 1 << 8, UD__GUARD_OPEN = 1 << 9, UD__GUARD_INHERIT = 1 << 10, UD__GUARD_SHARERS = 1 << 11,
    UD__GUARD_OWED = 1 << 12, UD__GUARD_RELEASE = 1 << 13, UD__GUARD_STOPPED = 1 << 14, UD__GUARD_PROC = 1 << 15,
    UD__GUARD_BAR = 1 << 16, UD__GUARD_OPENERS = 1 << 17, UD__GUARD_DOWN = 1 << 18, UD__GUARD_FREE = 1 << 19,
    UD__GUARD_LISTED = 1 << 20, UD__GUARD_COPYBACK = 1 << 21, UD__GUARD_BALLAST = 1 << 22, UD__GUARD_NUMBER = 1 << 23,
    UD__GUARD_MAPPED = 1 << 26, UD__GUARD_STAGED = 1 << 27,
    UD__GUARD_LIMITS = 1 << 28, UD__GUARD_GATE = 1 << 29, UD__GUARD_OFFSET = 1 << 30,
    UD__GUARD_SWITCHES = 1ull << 32,
    /* No guards, but failures that the test library plays when they are "switched off": */
    UD__GUARD_HALFWAY = 1 << 24, /* a kernel without memory half-way through mremap */
    UD__GUARD_SHORT = 1 << 25,   /* lists of threads that end early */
    UD__GUARD_STOLEN = 1u << 31  /* a hypervisor that takes CPU time */
};
#ifdef UD_TEST
extern UD_HIDDEN uint64_t ud__guards_off;
extern UD_HIDDEN uint64_t ud__gap_us;
#define UD__GUARD_ON(g) (!(ud__guards_off & (g)))
void ud__test_gap(void) UD_HIDDEN; /* sleeps UDEDUP_TEST_DELAY_US where a missing guard leaves a gap */
#else
#define UD__GUARD_ON(g) 1
#define ud__test_gap() ((void)0)
#endif

/* ---- vma.c: the mappings of this process ----------------------------------------------------------- */

enum { UD__VMA_R = 1, UD__VMA_W = 2, UD__VMA_X = 4, UD__VMA_SHARED = 8 };
struct ud__vma {
    uint64_t start, end;
    uint64_t offset; /* bytes into the file */
    uint64_t inode;  /* 0: anonymous */
    uint32_t flags;
    uint32_t dev;    /* major << 20 | minor */
};
struct ud__maps { /* an open view on /proc/PID/maps */
    int fd;
    int query;       /* PROCMAP_QUERY works */
    struct ud__vma *list; /* without it: the whole list, read again by ud__maps_refresh */
    size_t count, cap;
};
int ud__maps_open(struct ud__maps *m, int pid) UD_HIDDEN;
void ud__maps_close(struct ud__maps *m) UD_HIDDEN;
/* Without PROCMAP_QUERY: reads the list anew (a no-op with it). 0 or -errno. */
int ud__maps_refresh(struct ud__maps *m) UD_HIDDEN;
/* The mapping that covers addr, or the next one above. 0, -ENOENT, or -errno. */
int ud__maps_find(struct ud__maps *m, uint64_t addr, struct ud__vma *out) UD_HIDDEN;
int ud__vma_is_segment(const struct ud__vma *v) UD_HIDDEN; /* one of our merged mappings */
int ud__vma_plain(const struct ud__vma *v) UD_HIDDEN;      /* private anonymous rw, or ours in such a place */
int ud__vma_mergeable(const struct ud__vma *v) UD_HIDDEN;  /* that, or data of a program or library, relocated */
/* Tells the agent's walk over the mappings, in address order: learns which files are programs. */
void ud__vma_learn(const struct ud__vma *v) UD_HIDDEN;

int ud__maps_next_shared(struct ud__maps *m, uint64_t *at, char *name, size_t cap) UD_HIDDEN;
uint64_t ud__mapped_sizes(void) UD_HIDDEN; /* differs when the address space, or what is private of it, has another size; 0: unknown */
/* pinned.c: 1 if an io_uring or AIO ring is mapped. */
int ud__ring_mapped(struct ud__maps *m) UD_HIDDEN;

/* ---- merged.c: which pages are merged, for the interposers ------------------------------------------- */

extern UD_HIDDEN atomic_int ud__busy_count;
static inline void ud__busy_enter(void) { atomic_fetch_add_explicit(&ud__busy_count, 1, memory_order_seq_cst); }
extern UD_HIDDEN atomic_uint ud__mm_calls; /* raised by calls that may have changed the mappings */
static inline void ud__busy_leave(void)
{
    /* Not a locked addition: two at once may count as one, and still something has changed. */
    atomic_store_explicit(&ud__mm_calls, atomic_load_explicit(&ud__mm_calls, memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&ud__busy_count, 1, memory_order_seq_cst);
}
int ud__merged_any(uint64_t start, uint64_t end) UD_HIDDEN;  /* maybe: bits may be stale, never missing */
extern UD_HIDDEN atomic_int ud__merged_ever;                  /* 0: nothing was ever merged here */
void ud__merged_clear(uint64_t start, uint64_t end) UD_HIDDEN;
int ud__merged_test(uint64_t page) UD_HIDDEN;
/* Agent: makes room for `blocks` more before a batch. Holder: ud__merged_swap, then ud__merged_set. */
int ud__merged_reserve(size_t blocks) UD_HIDDEN;
void ud__merged_swap(void) UD_HIDDEN;
void ud__merged_reap(void) UD_HIDDEN; /* agent, after the batch: frees the old table */
int ud__merged_set(uint64_t start, uint64_t end) UD_HIDDEN; /* 0; -ENOMEM where more is set than was reserved for */
void ud__merged_own(void) UD_HIDDEN; /* lists the table as ours again, in a forked child */

/* ---- ledger.c ------------------------------------------------------------------------------------------ */

struct ud__ledger {
    struct ud_ledger_header *hdr;
    struct ud_block_head *heads;
    uint8_t *states;
    uint64_t *entries;
    int fd;
    uint32_t *hash; /* block index + 1 by address */
    uint32_t hash_cap, hash_used;
    uint32_t dropped, again; /* blocks: how many may be used again; the one that was last */
    uint32_t last; /* block that was looked up last */
};
#define UD_PG_MASK 7u
#define UD__COUNT_SHIFT 3 /* above a REFUSED or STABLE state: how often it was refused, 0 to 6; 3 bits */
int ud__ledger_open(struct ud__ledger *l) UD_HIDDEN;
void ud__ledger_close(struct ud__ledger *l) UD_HIDDEN;
/* The block that holds the page at vaddr, made if missing and `make`. Index, or -1. */
int64_t ud__ledger_block(struct ud__ledger *l, uint64_t vaddr, int make) UD_HIDDEN;
void ud__ledger_drop_block(struct ud__ledger *l, uint32_t block) UD_HIDDEN;
void ud__ledger_rehash(struct ud__ledger *l) UD_HIDDEN;
/* Of a huge page, and of what one page of the page table maps. */
static inline uint64_t ud__huge_bytes(void) { return (uint64_t)ud__page * (ud__page / 8); }
static inline uint64_t ud__block_bytes(void) { return (uint64_t)UD_BLOCK_PAGES << ud__page_shift; }
/* State and entry of one page; blocks that do not exist read as NONE and are made by set. */
uint8_t ud__page_state(struct ud__ledger *l, uint64_t vaddr, uint64_t *entry) UD_HIDDEN;
int ud__page_set(struct ud__ledger *l, uint64_t vaddr, uint8_t state, uint64_t entry) UD_HIDDEN;
void ud__ledger_commit(struct ud__ledger *l) UD_HIDDEN; /* raises gen: what was set becomes news */

/* ---- helper.c: short-lived tasks on our memory ------------------------------------------------------------ */

/* Runs fn(arg) in a CLONE_VM process named udedup-agent, on the given stack, and waits for its end. All
 * signals must be blocked. share_files: it shares the caller's descriptor table. 0 when fn came to its
 * end, -ECHILD when the helper was killed before, -errno when it could not be made. */
#define UD__STACK_BYTES (64u * 1024)
extern UD_HIDDEN _Atomic uint64_t ud__helper_cpu_us; /* CPU of all helpers so far */
extern UD_HIDDEN _Atomic unsigned long ud__named_tracer; /* what the program said by PR_SET_PTRACER */
extern UD_HIDDEN atomic_int ud__helper_none; /* 1: the next child is the program's to make */
/* Asks the scheduler for slices of that length: who has shorter ones than another runs before it when it wakes. Kernels
 * before 6.12 ignore it. */
void ud__slice(uint64_t us) UD_HIDDEN;
int ud__helper_run(void (*fn)(void *), void *arg, int share_files, void *stack_top) UD_HIDDEN;

/* ---- hold.c: the write-stop ----------------------------------------------------------------------------------- */

#define UD__HOLD_MAX 4096
enum { UD__T_RUNS = 0, UD__T_STOPPED, UD__T_GONE, UD__T_SKIP };
struct ud__held {
    int tid;
    uint8_t state;
    uint64_t sp, tls;
};
struct ud__hold {
    int pid, spare_tid;   /* the process; the thread that is not held (it waits for us) */
    uint64_t deadline_us; /* absolute */
    uint64_t began_us;
    int count;
    long listed;          /* threads in the last list of hold_signal.c */
    int taskfd;
    int suspended;        /* the program is being stopped by a signal */
    int cause;            /* enum ud_cause when begin failed */
    uint32_t repairs;
    struct ud__held *t;   /* UD__HOLD_MAX */
    int way;              /* UD_HOLD_PTRACE or UD_HOLD_SIGNAL */
};
/* How the next hold is tried: enum ud_hold_kind. Changed under the job's lock. */
extern UD_HIDDEN atomic_int ud__hold_way;
/* From a holder: 0 if `tid` can be traced, else why not (UD_CAUSE_HOLD_REFUSED, _TRACED). Stops nobody. */
int ud__hold_probe(struct ud__hold *h, int tid) UD_HIDDEN;
int ud__proc_is_ours(void) UD_HIDDEN; /* 0 if /proc is of another PID namespace */
int ud__hold_begin(struct ud__hold *h) UD_HIDDEN; /* 0, or -1 with cause set: nobody is held then */
void ud__hold_end(struct ud__hold *h) UD_HIDDEN;
/* 1 if a stack pointer or the TLS of a held thread lies in [start, end). */
int ud__hold_has_stack(const struct ud__hold *h, uint64_t start, uint64_t end) UD_HIDDEN;
long ud__hold_threads(const struct ud__hold *h) UD_HIDDEN; /* as the kernel counts them; 0: it does not tell */
int ud__memory_shared(const struct ud__hold *h) UD_HIDDEN; /* sharers.c, in a hold */
/* Before a batch, from the agent: UD_CAUSE_* if a thread sleeps where an interruption shows, else -1. */
int ud__hold_precheck(int pid, int self_tid) UD_HIDDEN;
int ud__hold_look_again(const struct ud__hold *h, int tid) UD_HIDDEN; /* the same of one thread, from a holder by signal */

#if defined(__x86_64__)
struct ud__regs { /* the kernel's user_regs_struct */
    unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss,
        fs_base, gs_base, ds, es, fs, gs;
};
#else
struct ud__regs { /* user_pt_regs */
    unsigned long x[31], sp, pc, pstate;
};
#endif
/* resume.c, in a hold: 1 if the thread was in a write that our stop cut short, and now goes on with the rest. */
int ud__resume_write(int pid, struct ud__regs *regs) UD_HIDDEN;

/* ---- stacks.c: where merges were refused for a thread's stack or TLS ---------------------------------- */

void ud__stacks_note(uint64_t start, uint64_t end) UD_HIDDEN; /* in a hold */
int ud__stacks_have(uint64_t page) UD_HIDDEN;                 /* 1: not to be nominated though it was written */
void ud__stacks_forked(void) UD_HIDDEN;

/* ---- hold_signal.c: threads parked by SIGURG, where ptrace is refused -------------------------------------------- */

/* The starter, around the holder: 0, or -1 with cause. Close also lets everybody go, if the holder did not. */
int ud__park_open(struct ud__hold *h) UD_HIDDEN;
void ud__park_close(void) UD_HIDDEN;
/* The holder: as ud__hold_begin and ud__hold_end. */
int ud__park_begin(struct ud__hold *h) UD_HIDDEN;
void ud__park_release(void) UD_HIDDEN;
void ud__park_forked(void) UD_HIDDEN;
/* Which of the causes of a refused hold it was, in words; NULL if the cause says it all. */
const char *ud__park_words(void) UD_HIDDEN;

#define UD__DONTNEED_LOCKED 24 /* madvise */
#define UD__GUARD_INSTALL 102

/* ---- job.c, merge.c, unmerge.c, discard.c, relocate.c: what a holder does ------------------------------------------- */

enum ud__job_kind { UD__JOB_MERGE, UD__JOB_ZERO, UD__JOB_UNMERGE, UD__JOB_RELOCATE, UD__JOB_DISCARD };
struct ud__piece { /* one run of a job, and what became of it */
    uint64_t vaddr;
    uint32_t npages;
    uint32_t slot;
};
struct ud__stage { /* stage.c */
    const char *at; /* NULL: slots are read */
    uint64_t len;   /* bytes */
    int movable;
};
struct ud__job {
    enum ud__job_kind kind;
    struct ud__piece *pieces;
    uint32_t npieces, done; /* done: pieces wholly dealt with */
    int segfd;
    struct ud__stage stage; /* MERGE: the segment, mapped */
    uint64_t segment;       /* inode */
    struct ud__ledger *ledger; /* NULL without an agent */
    struct ud__maps maps;
    struct ud__hold hold;
    uint64_t budget_us;     /* how long to work under the hold */
    uint64_t stop_us;       /* leave off after this moment: set when the work begins */
    uint64_t vmlck;         /* MERGE, ZERO: locked kilobytes the agent knows of */
    uint32_t rows;          /* MERGE: begun in this batch */
    uint32_t min_run;
    int64_t vmas_left;      /* may be used up */
    uint64_t scratch;       /* RELOCATE, UNMERGE */
    uint64_t scratch_len;   /* RELOCATE: the new length; DISCARD: the length */
    uint64_t result;
    int no_hold;            /* DISCARD: the caller alone is concerned */
    int advice;             /* DISCARD: the program's */
    int advised;            /* MERGE in mode trap: advised memory only, whatever the program said */
    long flags;             /* RELOCATE: mremap's */
    /* out */
    int cause_begin;        /* -1, or why nothing was done */
    uint32_t merged, refused, vmas;
    uint32_t causes[UD_CAUSE_COUNT];
    uint64_t pause_us, work_us; /* everybody was held, from the first thread to the last; of that, for the work */
    uint32_t repairs;
};
/* Runs a job in a holder. One at a time in a process. 0, or -errno when the holder could not be made. */
int ud__job_run(struct ud__job *j, int spare_tid, int share_files) UD_HIDDEN;
void ud__job_prefork(void) UD_HIDDEN; /* before fork, and after it in both processes: no job of the agent's meanwhile */
void ud__job_postfork(int in_child) UD_HIDDEN;
void ud__job_forked(void) UD_HIDDEN;
/* While somebody owns the lock no job runs. Signals are blocked in between; what they were is kept in *mask. */
void ud__job_lock(uint64_t *mask) UD_HIDDEN;
void ud__job_unlock(const uint64_t *mask) UD_HIDDEN;
void ud__job_probe(void) UD_HIDDEN; /* finds ud__hold_way */
void ud__job_refuse(struct ud__job *j, uint64_t pages, int cause) UD_HIDDEN;
void ud__job_merge(struct ud__job *j) UD_HIDDEN;
void ud__job_zero(struct ud__job *j) UD_HIDDEN;
void ud__job_unmerge(struct ud__job *j) UD_HIDDEN;
void ud__job_relocate(struct ud__job *j) UD_HIDDEN;
void ud__job_discard(struct ud__job *j) UD_HIDDEN;
/* From an app thread, inside busy: 1 if the merged map is right that something is merged in [start, end). */
int ud__merged_really(uint64_t start, uint64_t end) UD_HIDDEN;
/* From an app thread, outside busy: puts plain memory back under [start, end). 0 or -errno. */
int ud__unmerge_range(uint64_t start, uint64_t end) UD_HIDDEN;
/* From an app thread, outside busy: mremap(2) over pieces that merging made of one mapping. */
long ud__relocate(uint64_t addr, uint64_t old_len, uint64_t new_len, long flags, uint64_t to) UD_HIDDEN;
/* From an app thread, inside busy: madvise that throws contents away, with fresh zero pages in place of the merged ones in
 * [start, end), as far as the kernel would come. Its answer: 0, or -errno. */
int ud__discard_range(uint64_t start, uint64_t end, int advice) UD_HIDDEN;

/* recognise.c: in a hold; 1 if this page's owner is known to call nothing that merging would show to it. */
int ud__recognised(const struct ud__vma *v, uint64_t page) UD_HIDDEN;
int ud__in_heap(uint64_t addr) UD_HIDDEN; /* growth.c: between the first and the current end of brk */

/* ---- budget.c: mappings ------------------------------------------------------------------------------------------------ */

int32_t ud__budget_made(void) UD_HIDDEN;
/* agent: mappings there are; of these, merging added; ud__budget_made before they were read. */
void ud__budget_read(uint32_t all, uint32_t ours, int32_t made) UD_HIDDEN;
void ud__budget_spent(uint32_t vmas) UD_HIDDEN;              /* agent: a job added so many */
int64_t ud__budget_left(void) UD_HIDDEN;                     /* mappings merging may still add; below 0: has too many */
void ud__budget_forked(void) UD_HIDDEN;
void ud__budget_close(void) UD_HIDDEN;
void ud__budget_keep(void) UD_HIDDEN;                        /* agent, after a reading: gives back what is over */
int ud__budget_urgent(void) UD_HIDDEN;                       /* agent: 1 if it should look at once */
int ud__budget_open(void) UD_HIDDEN;                         /* holder, after ENOMEM: 1 if there is room now, until it is shut */
void ud__budget_shut(void) UD_HIDDEN;
void ud__budget_note(int32_t mappings) UD_HIDDEN;            /* interposers: the program made or removed some */
/* Interposers, outside busy, after ENOMEM: 1 if mappings were given back, and the call is worth another try. */
int ud__budget_make_room(void) UD_HIDDEN;

/* ---- regions.c: what the program asked for ----------------------------------------------------------------------- */

/* GROWS: a mapping that grows downwards, kept out with what it has grown by. */
enum { UD__REG_MERGE = 1, UD__REG_KEEP_OUT, UD__REG_GROWS };
int ud__region_mark(uint64_t start, uint64_t end, int kind) UD_HIDDEN; /* async-signal-safe */
/* 1 if [start, end) may be merged: not kept out, and in advised mode marked. *end is cut to where the answer holds. */
int ud__region_allows(uint64_t start, uint64_t *end, int advised) UD_HIDDEN;
int ud__region_grows(uint64_t start, uint64_t end) UD_HIDDEN; /* 1 if the mapping [start, end) is such a one; no lock, as above */
int ud__region_any(uint64_t start, uint64_t end) UD_HIDDEN; /* 1 if a part of it may bear a mark */
void ud__region_drop_merge(void) UD_HIDDEN; /* forgets all advice to merge; what is kept out stays out */
void ud__region_unmap(uint64_t start, uint64_t end) UD_HIDDEN; /* forgets marks, as the kernel forgets a mapping's */
/* What is kept out stays so where mremap brings it, for flags of the mapping come along. Advice to merge does not: in mode
 * trap it would close what comes to lie there. stays: the old range is still mapped. */
void ud__region_move(uint64_t old, uint64_t old_len, uint64_t to, uint64_t new_len, int stays) UD_HIDDEN;
void ud__region_forked(void) UD_HIDDEN;
extern UD_HIDDEN atomic_uint ud__region_gen; /* raised by every mark */
/* locked.c: VmLck and VmPin of the process, kB; and marks what is locked, DONTFORK and the like as to be kept out. */
uint64_t ud__locked_kb(uint64_t *pinned_kb) UD_HIDDEN;
uint64_t ud__locked_now(void) UD_HIDDEN; /* KiB, too; asked without the agent's descriptors */
uint64_t ud__effective_uid(void) UD_HIDDEN; /* of the main thread, as /proc tells it */
void ud__locked_mark(int pid) UD_HIDDEN;

/* ---- interpose_malloc.c ------------------------------------------------------------------------------------------------ */

void ud__malloc_own(void) UD_HIDDEN;     /* lists its tables as ours again, in a forked child */
/* Interposers: the program has closed memory, or locked some, maybe a block, which is freed as it is. */
extern UD_HIDDEN atomic_int ud__malloc_closed, ud__malloc_locked;
long ud__mprotect(uint64_t addr, size_t len, int prot) UD_HIDDEN; /* interpose_mm.c; 0 or -errno */
int ud__malloc_spare(void) UD_HIDDEN;    /* gives all of them back, for want of memory; 1 if there were any */
long ud__mremap(uint64_t addr, size_t old_len, size_t new_len, int flags, uint64_t to) UD_HIDDEN; /* interpose_mm.c; -errno */
void ud__malloc_release(void) UD_HIDDEN; /* agent: gives idle cached blocks back to the kernel */

/* ---- agent.c ---------------------------------------------------------------------------------------------------------- */

struct ud__agent {
    atomic_int state;      /* enum below */
    atomic_int tid;        /* cleared by the kernel when the thread ends (CLONE_CHILD_CLEARTID) */
    int pid;
    int home;              /* the process whose state this is */
    int preloaded, disabled, advised, tracking_off;
    uint64_t threshold;    /* bytes */
    char socket[108];
    struct ud__ledger ledger;
    struct ud__maps maps;
    int statusfd, statmfd; /* /proc/PID/status and statm; the agent's and its helpers' */
    struct ud_knobs knobs;
    uint64_t key[2];
    int sock;
    int have_key;
    atomic_int leave;      /* 1: asked to unmerge and end */
    atomic_int left;       /* the program has left: nothing but ud_join brings an agent back */
    atomic_uint started;   /* agents, so far: one that is told to leave may be followed by another at once */
    atomic_int poke;       /* futex: wakes the agent while it has no merger */
    int resting;           /* long sleeps between passes: each may as well be thorough */
    int kicked;            /* somebody waits in settle: no idle backoff */
    uint64_t kicked_us;    /* when it was last told */
#define UD__HURRY_US 1000000u /* so long after that pace is not kept, and growth not waited for longer than it takes to look */
    atomic_int merge_any;  /* enum below */
    uint64_t max_maps;     /* vm.max_map_count */
    uint64_t heap_start;   /* of brk */
    uint64_t calm_us;      /* the agent sleeps so long before it begins */
};
enum { UD__MERGE_UNSAID = 0, UD__MERGE_ALL, UD__MERGE_ADVISED }; /* what PR_SET_MEMORY_MERGE said: nothing, 1, 0 */
enum { UD__AGENT_NONE = 0, UD__AGENT_STARTING, UD__AGENT_RUNNING };
extern UD_HIDDEN struct ud__agent ud__a;
/* Is nothing merged but what was advised? The program may change its mind in the midst of a plan: ask in the hold. */
static inline int ud__advised_only(void)
{
    int said = atomic_load(&ud__a.merge_any);
    return said == UD__MERGE_ADVISED || (said == UD__MERGE_UNSAID && ud__a.advised);
}
void ud__memory_merge_init(void) UD_HIDDEN; /* api.c: what the program before exec said */
int ud__agent_start(void) UD_HIDDEN; /* async-signal-safe; 0, or -EALREADY */
/* Ends the agent without unmerging anything, for a call that only a process with one thread may make. */
void ud__agent_quit(void) UD_HIDDEN;
#define UD__FORK_CALM_US 300000u
enum { UD__LEAVE = 1, UD__QUIT = 2 }; /* in ud__a.leave */
void ud__fork_init(void) UD_HIDDEN;
void ud__fork_notice(void) UD_HIDDEN; /* before the state of this process is relied on: is it still ours? */
int ud__in_vfork(void) UD_HIDDEN;     /* 1 in a vfork child, whose memory is its parent's */

/* ---- growth.c: when is a process worth an agent? ------------------------------------------------------------------------- */

void ud__growth_init(uint64_t threshold) UD_HIDDEN;
void ud__note_growth(int64_t bytes) UD_HIDDEN;    /* interposers: private memory grew or shrank */
void ud__growth_check(void) UD_HIDDEN;
void ud__growth_forked(void) UD_HIDDEN;
extern UD_HIDDEN _Atomic uintptr_t ud__brk_trigger;  /* malloc asks again when the heap's end is past it */

/* ---- scan.c, track.c, reader.c ----------------------------------------------------------------------------------------- */

struct ud__range {
    uint64_t start, end;
    uint64_t categories;
};
#define UD__RANGE_HUGE 64u /* in categories: PAGE_IS_HUGE */
int ud__track_open(void) UD_HIDDEN; /* enum ud_track_kind that works here */
void ud__track_close(void) UD_HIDDEN;
int ud__track_register(uint64_t start, uint64_t end) UD_HIDDEN;
/* Ranges of present anonymous pages in [*at, end) that no tracking covers. */
long ud__track_untracked(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages) UD_HIDDEN;
/* The same, whatever covers them. */
long ud__track_all(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages) UD_HIDDEN;
/* Ranges of written pages under tracking in [*at, end), pages of files among them, write-protected again as they are told,
 * at most max_pages. Count, and *at moves on; -errno. */
long ud__track_written(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages) UD_HIDDEN;
/* The same ranges, and nothing is armed. */
long ud__track_peek(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages) UD_HIDDEN;
/* Ranges of present anonymous pages in [*at, end) whatever their tracking; of_file: the mapping is one of a file. */
long ud__track_present(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, int of_file) UD_HIDDEN;
/* 1 if the page at start is part of a huge page. Either way *end is cut to where the answer holds. */
int ud__track_huge(uint64_t start, uint64_t *end) UD_HIDDEN;
/* Whose page i from vaddr on is, into out[i]: of fork relatives too, this process's alone, or a file's (a segment's). */
enum { UD__PAGE_OF_RELATIVES, UD__PAGE_OWN, UD__PAGE_OF_FILE };
int ud__track_owners(uint64_t vaddr, uint32_t npages, uint8_t *out) UD_HIDDEN;

/* Digests npages pages from each range into out (one after another); faulted[i] = 1 where memory was gone. */
int ud__reader_digest(const struct ud__range *r, size_t n, uint64_t *out, uint8_t *faulted) UD_HIDDEN;
uint64_t ud__zero_digest(void) UD_HIDDEN;

/* One slice of a pass. Returns pages changed, and *wrapped = 1 at a pass's end. */
long ud__scan_slice(int *wrapped) UD_HIDDEN;
void ud__scan_reset(void) UD_HIDDEN;
void ud__scan_forked(void) UD_HIDDEN;  /* what lay in the parent's own memory is not here */
void ud__exec_forked(void) UD_HIDDEN;
/* The agent is about to sleep for long: buffers are given back. */
void ud__scan_rest(void) UD_HIDDEN;
void ud__exec_rest(void) UD_HIDDEN;
void ud__link_rest(void) UD_HIDDEN;
void ud__link_forked(void) UD_HIDDEN;
void ud__scan_resync(void) UD_HIDDEN; /* next slice compares the ledger with the mappings */
void ud__scan_forget(void) UD_HIDDEN;  /* all digests are void: every page is looked at anew */

/* ---- node.c: NUMA nodes ------------------------------------------------------------------------------------------------- */

uint64_t ud__digest_mask(void) UD_HIDDEN; /* the bits of an entry that tell contents */
/* merge_across_nodes 0: puts each page's node into its digest; gone[i] = 1 where it is not known. -EPERM: refused. */
int ud__node_fold(const struct ud__range *r, size_t n, uint64_t *digests, uint8_t *gone) UD_HIDDEN;
void ud__node_prefer(int node) UD_HIDDEN;
#ifdef UD_TEST
void ud__test_nodes(unsigned shift) UD_HIDDEN;
#endif

/* ---- segment.c, exec.c (plans) ------------------------------------------------------------------------------------------ */

#define UD__BREATH (256u << 10) /* bytes in one system call: where the kernel is not preempted, a thread to be held waits for its end */
struct ud__segment {
    uint64_t inode;
    int fd;
    uint32_t npages;
    uint32_t node; /* as in struct ud_msg_segment */
};
int ud__limited(int resource) UD_HIDDEN; /* RLIMIT_*: what room there is is the program's */
/* Maps a file where no memory of the program is to come, and for no forked child. place: where its start is to lie, modulo the
 * size of a huge page. The address, or -errno. */
long ud__map_beside(uint64_t len, uint64_t place, int prot, int fd) UD_HIDDEN;
void ud__huge_store(int fd, uint64_t len) UD_HIDDEN; /* huge.c: an empty segment gets huge pages, where there are some */
/* The segment mapped for a comparison, and in the page table already, so that a hold need not wait for it. place: where
 * slot 0 is to come, modulo the size of a huge page. */
void ud__stage(struct ud__stage *s, int fd, uint32_t npages, uint64_t place, int movable) UD_HIDDEN;
void ud__unstage(const struct ud__stage *s) UD_HIDDEN;
/* Holder, before a batch: may what is in the stage be moved still? */
void ud__stage_ask(struct ud__stage *s) UD_HIDDEN;
/* Moves [off, off + len) of it to `at`, whose memory is replaced. In a hold. 0, or -errno: then nothing may be left there. */
long ud__stage_move(const struct ud__stage *s, uint64_t off, uint64_t at, uint64_t len) UD_HIDDEN;
int ud__segment_check(int fd, uint64_t *inode, uint32_t *npages) UD_HIDDEN; /* seals, size: 0 or -errno */
int ud__segment_make(const struct ud_run *runs, uint32_t nruns, uint64_t *inode, uint32_t *npages) UD_HIDDEN; /* fd */
int ud__segment_keep(int fd, uint64_t inode, uint32_t npages, uint32_t node) UD_HIDDEN; /* takes fd; the kept fd, or -errno */
void ud__segment_forget(uint64_t inode) UD_HIDDEN;
const struct ud__segment *ud__segment_list(size_t *n) UD_HIDDEN;
void ud__segment_reset(int close_all) UD_HIDDEN;
/* The inodes this process, or a forebear it was forked from, ever mapped. Inherited by fork. */
int ud__inode_known(uint64_t inode) UD_HIDDEN;
int ud__segment_device(uint32_t dev) UD_HIDDEN; /* 1: such inodes are on that device (struct ud__vma) */

void ud__plan_publish(const struct ud_msg_runs *m, struct ud_msg_result *res, int *fd) UD_HIDDEN;
void ud__plan_merge(const struct ud_msg_runs *m, int fd, struct ud_msg_result *res) UD_HIDDEN;
uint32_t ud__plan_unmerge(const struct ud_run *runs, uint32_t nruns) UD_HIDDEN; /* 0 runs: everything */
/* 1 if [start, end) lies so close behind the run that it now reaches over it: given back together, one mapping is left. */
int ud__run_joins(uint64_t vaddr, uint32_t *npages, uint64_t start, uint64_t end) UD_HIDDEN;
void ud__plan_zero(const struct ud__range *r, size_t n) UD_HIDDEN;
void ud__note_cause(int cause, uint64_t pages) UD_HIDDEN;
void ud__pace(uint64_t pause_us) UD_HIDDEN; /* pace.c: rests after a piece of work */

/* ---- turns.c: who of a domain works now; agent thread only ------------------------------------------------- */

void ud__turns_use(int fd) UD_HIDDEN; /* the merger's file, which is ours from now on; -1: there is none */
void ud__turns_close(void) UD_HIDDEN;
void ud__turns_forked(void) UD_HIDDEN;
void ud__turn_take(void) UD_HIDDEN;   /* waits for a turn, for a while; nothing if this agent has one */
void ud__turn_give(void) UD_HIDDEN;
void ud__turn_offer(void) UD_HIDDEN;  /* in the midst of a scan: lets those who wait go first */
void ud__turn_beside(void) UD_HIDDEN; /* for work that holds nobody: the place beside, */
void ud__turn_any(void) UD_HIDDEN;    /* or whatever is free */
void ud__turn_rest(uint64_t us) UD_HIDDEN;  /* sleeps, without a turn meanwhile */

#endif
