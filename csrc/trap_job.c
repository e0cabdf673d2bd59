/* trap_job.c: the agent's batches in trap mode: windows instead of a hold (trap.h), one chunk of a run at a time.
 *
 *   chunk: close -> the job's own work on it (merge.c, unmerge.c) -> remapped pages: protected, the rest: open
 *
 * Guarantees: as merge.c; whoever writes waits for one chunk at most. Mode trap merges advised regions only.
 * Fails: chunk by chunk: BUSY where the program holds a range open or is in a memory call, NOMEM; and wholly, as
 * HOLD_REFUSED with the reason in words, while SIGSEGV is not ours: then all pages are opened at once.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "trap.h"

#define CHUNK 512u /* pages: what a writer may have to wait for, well below a millisecond */
#define TRIES 8 /* 26 ms in all: on a busy machine whoever is in a memory call waits for a CPU first */

static int wanted_mode = -1, wanted_split = -1; /* from the environment; -1: the knobs say */
static atomic_int active, split_trap;
static char refusal[96];
static int started_for; /* a pid: a forked child starts anew, and so does the next agent */

__attribute__((constructor)) static void read_environment(void)
{
    const char *mode = getenv("UDEDUP_MODE"), *split = getenv("UDEDUP_SPLIT");
    if (mode)
        wanted_mode = strcmp(mode, "trap") == 0;
    if (split)
        wanted_split = strcmp(split, "trap") == 0;
    if (wanted_mode == 1 && getenv("UDEDUP_SOCKET"))
        ud__sig_virtual_mask(); /* from the first instruction: no thread may block SIGSEGV for real */
    ud__pyframe_resolve();
}

int ud__trap_active(void)
{
    return atomic_load(&active);
}

const char *ud__trap_refusal(void)
{
    return refusal;
}

/* "DIR/NAME.sock" -> "DIR/NAME.splits/PID", the directory made. 0, or -1 if it does not fit. */
static int report_path(char *path, size_t cap)
{
    size_t n = strlen(ud__a.socket);
    if (n < 5 || strcmp(ud__a.socket + n - 5, ".sock") != 0 || n + 24 > cap)
        return -1;
    memcpy(path, ud__a.socket, n - 5);
    char *at = ud__put_str(path + n - 5, path + cap, ".splits");
    ud__sys(__NR_mkdirat, -100 /* AT_FDCWD */, path, 0700);
    at = ud__put_str(at, path + cap, "/");
    ud__put_dec(at, path + cap, (uint64_t)ud__a.pid);
    return 0;
}

static void start(struct ud_ledger_header *h)
{
    h->mode = 1;
    h->hold_kind = UD_HOLD_MPROTECT;
    h->regions_mode = 1;
    ud__a.advised = 1;
    refusal[0] = 0;
    int r = ud__trap_enable((_Atomic uint64_t *)&h->trap_splits, refusal, sizeof refusal);
    if (r && r != -EBUSY)
        ud__put_str(refusal, refusal + sizeof refusal, "trap mode needs MADV_WIPEONFORK and rt_sigaction");
    atomic_store(&active, 1);
}

static void start_report(void)
{
    char path[160];
    ud__splits_open(report_path(path, sizeof path) ? NULL : path);
}

void ud__trap_agent_ends(void)
{
    started_for = 0;
    ud__trap_uncount();
}

void ud__trap_apply(const struct ud_knobs *k)
{
    static int report_for; /* a pid: a forked child starts anew */
    struct ud_ledger_header *h = ud__a.ledger.hdr;
    int mode = wanted_mode >= 0 ? wanted_mode : k->mode == 1;
    int split = mode && (wanted_split >= 0 ? wanted_split : k->split == 1);
    if (atomic_exchange(&split_trap, split) && !split)
        ud__trap_open_all();
    if (split && report_for != ud__a.pid) {
        report_for = ud__a.pid;
        start_report();
    }
    if (mode && (!atomic_load(&active) || started_for != ud__a.pid)) {
        started_for = ud__a.pid;
        start(h);
    } else if (!mode && atomic_exchange(&active, 0)) {
        h->mode = 0;
        h->hold_kind = (uint32_t)atomic_load(&ud__hold_way);
        ud__trap_disable();
    }
}

/* ---- one chunk ---------------------------------------------------------------------------------------- */

struct expected {
    struct ud__job *j;
    int plain;
};

/* Still what the maps said, now that no interposed call can change it? */
static int as_expected(uint64_t start, uint64_t end, void *arg)
{
    const struct expected *e = arg;
    struct ud__vma v;
    if (ud__maps_refresh(&e->j->maps))
        return -ENOMEM;
    for (uint64_t at = start; at < end; at = v.end)
        if (ud__maps_find(&e->j->maps, at, &v) || v.start > at || !ud__vma_mergeable(&v) || ud__vma_plain(&v) != e->plain)
            return -ESRCH;
    return 0;
}

/* What the program has made read-only needs no protection of ours, but must stay so: what is made writable meanwhile
 * would be written between copy and remap, and read-only again afterwards. */
static int close_chunk(struct ud__job *j, uint64_t at, uint64_t end, int plain)
{
    int r = 0;
    struct expected e = {j, plain};
    if (!plain && !UD__GUARD_ON(UD__GUARD_BAR))
        return 0;
    for (int tries = 0; tries < TRIES; tries++) {
        r = plain ? ud__trap_begin(at, end, as_expected, &e) : ud__trap_bar(at, end, as_expected, &e);
        if (r != -EBUSY && r != -EAGAIN)
            return r;
        ud__sleep_us(100u << tries);
    }
    return r;
}

static int merged_here(const struct ud__job *j, uint64_t page, uint32_t slot)
{
    uint64_t entry = 0;
    return (ud__page_state(j->ledger, page, &entry) & UD_PG_MASK) == UD_PG_MERGED &&
           entry == UD_SLOT_REF(j->segment, slot);
}

/* Ends the window over a merged chunk, run by run of pages that fared alike. */
static void end_merged(struct ud__job *j, uint64_t at, uint64_t end, uint32_t slot)
{
    for (uint64_t from = at, page = at; from < end; from = page) {
        int merged = merged_here(j, from, slot);
        while (page < end && merged_here(j, page, slot) == merged) {
            page += ud__page;
            slot++;
        }
        /* Since the remap a write may have come through to the new mapping: a split by the kernel, nothing is lost. */
        if (merged && atomic_load(&split_trap) && !ud__sys(__NR_mprotect, from, page - from, 1 /* PROT_READ */))
            ud__trap_end(from, page, UD__TRAP_PROTECTED);
        else
            ud__trap_end(from, page, UD__TRAP_OPEN);
    }
}

/* The job's own work, on one chunk that nobody can write. */
static void work_on(struct ud__job *j, struct ud__piece *chunk)
{
    struct ud__piece *pieces = j->pieces;
    uint32_t npieces = j->npieces, done = j->done;
    uint64_t stop = j->stop_us;
    j->stop_us = ~0ull; /* the chunk is the bound */
    j->pieces = chunk;
    j->npieces = 1;
    j->done = 0;
    ud__maps_refresh(&j->maps);
    if (j->kind == UD__JOB_MERGE)
        ud__job_merge(j);
    else if (j->kind == UD__JOB_ZERO)
        ud__job_zero(j);
    else
        ud__job_unmerge(j);
    j->pieces = pieces;
    j->npieces = npieces;
    j->done = done;
    j->stop_us = stop;
}

static int cause_of(int r)
{
    return r == -EBUSY || r == -EAGAIN ? UD_CAUSE_BUSY : r == -ENOMEM ? UD_CAUSE_NOMEM : UD_CAUSE_GONE;
}

/* Cuts the chunk to what one mapping, and the advice, has to say of it; 1 if it may be worked on, and *plain: the
 * program may write there. Relocated library data (R only) is never merged here, but may have been in mode stop. */
static int may_work(struct ud__job *j, struct ud__piece *chunk, int *plain)
{
    uint64_t at = chunk->vaddr, end = at + ((uint64_t)chunk->npages << ud__page_shift);
    int cause = UD_CAUSE_GONE;
    struct ud__vma v;
    if (!ud__maps_refresh(&j->maps) && !ud__maps_find(&j->maps, at, &v) && v.start <= at && ud__vma_mergeable(&v)) {
        *plain = ud__vma_plain(&v);
        if (v.end < end)
            end = v.end;
        cause = j->kind == UD__JOB_UNMERGE || (*plain && ud__region_allows(at, &end, 1)) ? -1 : UD_CAUSE_LOCKED;
    } else {
        end = at + ud__page;
    }
    chunk->npages = (uint32_t)((end - at) >> ud__page_shift);
    if (cause >= 0)
        ud__job_refuse(j, chunk->npages, cause);
    return cause < 0;
}

/* The work on a chunk, between the two ends of its window. 0, or why there was none (-errno). */
static int in_window(struct ud__job *j, struct ud__piece *chunk, int plain)
{
    uint64_t at = chunk->vaddr, end = at + ((uint64_t)chunk->npages << ud__page_shift);
    uint32_t slot = chunk->slot;
    int r = close_chunk(j, at, end, plain);
    if (r)
        return r;
    uint64_t began = ud__now_us();
    work_on(j, chunk);
    if (!plain)
        ud__trap_unbar();
    else if (j->kind == UD__JOB_MERGE)
        end_merged(j, at, end, slot);
    else
        ud__trap_end(at, end, UD__TRAP_OPEN);
    uint64_t took = ud__now_us() - began;
    j->work_us = j->pause_us = took > j->pause_us ? took : j->pause_us;
    return 0;
}

/* How many pages of the piece come before its first merged mapping: there is nothing to take back in them. */
static uint32_t none_merged(struct ud__job *j, const struct ud__piece *p)
{
    uint64_t at = p->vaddr, end = at + ((uint64_t)p->npages << ud__page_shift);
    struct ud__vma v;
    if (j->kind != UD__JOB_UNMERGE || ud__maps_refresh(&j->maps))
        return 0;
    while (at < end && ud__maps_find(&j->maps, at, &v) == 0 && v.start < end && !ud__vma_is_segment(&v))
        at = v.end;
    if (at < end && ud__maps_find(&j->maps, at, &v) == 0 && v.start < end)
        end = v.start > at ? v.start : at;
    return (uint32_t)((end - p->vaddr) >> ud__page_shift);
}

/* Pages of the piece dealt with; 0 when the job must be given up for now. */
static uint32_t one_chunk(struct ud__job *j, const struct ud__piece *p)
{
    struct ud__piece chunk = {p->vaddr, p->npages < CHUNK ? p->npages : CHUNK, p->slot};
    int plain;
    uint32_t none = none_merged(j, p);
    if (none)
        return none;
    if (!may_work(j, &chunk, &plain))
        return chunk.npages;
    uint32_t n = chunk.npages;
    int r = in_window(j, &chunk, plain);
    if (j->kind == UD__JOB_UNMERGE) { /* what is left of it stays merged */
        if (r)
            j->cause_begin = cause_of(r);
        return r ? 0 : n - chunk.npages;
    }
    if (r)
        ud__job_refuse(j, n, cause_of(r));
    return n;
}

static void all_chunks(struct ud__job *j)
{
    for (; j->done < j->npieces; j->done++) {
        struct ud__piece *p = &j->pieces[j->done];
        while (p->npages) {
            uint32_t n = one_chunk(j, p);
            p->vaddr += (uint64_t)n << ud__page_shift;
            p->npages -= n;
            p->slot += n;
            if (p->npages && (!n || ud__now_us() >= j->stop_us))
                return;
        }
    }
}

/* A grown table of the merged map is put in place here, and no reader of the old one is left afterwards: readers
 * are inside busy. Before the job's lock is taken, as some of them wait for that. */
void ud__trap_job_prepare(struct ud__job *j)
{
    if (j->kind != UD__JOB_MERGE)
        return;
    ud__merged_swap();
    while (atomic_load(&ud__busy_count))
        ud__sleep_us(50);
}

int ud__trap_job(struct ud__job *j)
{
    if (!ud__trap_owner_ok(refusal, sizeof refusal)) {
        ud__trap_open_all();
        if (j->kind != UD__JOB_UNMERGE) { /* taking back needs a window too, but nobody's faults: try it */
            j->cause_begin = UD_CAUSE_HOLD_REFUSED;
            return 0;
        }
    }
    int r = ud__maps_open(&j->maps, j->hold.pid);
    if (r < 0)
        return r;
    ud__splits_name_modules();
    j->advised = 1; /* never a whole process: a write to a protected stack could not even be told to a handler */
    j->hold.count = 0;
    j->hold.began_us = ud__now_us();
    j->stop_us = j->hold.began_us + (j->budget_us ? j->budget_us : 20000);
    all_chunks(j);
    ud__maps_close(&j->maps);
    return 0;
}
