/* exec.c: carries out plans: publish, merge, give back zero pages, unmerge. Agent thread only.
 *
 *   plan -> pieces -> batches: precheck (precheck.c), then one holder each (job.c), as long as pieces are left
 *
 * Guarantees: a batch works for three eighths of freeze_max_us at most once everybody is held, less where pauses turn out longer
 * than that; between two batches the program runs at least as long as it was held. A plan from the merger is checked against
 * the address space before use: a wrong one is refused, nothing more.
 * Fails: page by page; what was not merged becomes REFUSED in the ledger and is looked at again some passes later.
 */
#include <fcntl.h>

#include "pass.h"
#include "trap.h"

#define PIECES_MAX UD_MSG_MAX_RUNS
#define TRIES 6
#define STAGE_MIN 64u /* pages */

static struct ud__piece *pieces; /* PIECES_MAX, worked down by the holder */

static const char *const cause_words[UD_CAUSE_COUNT] = {
    [UD_CAUSE_CHANGED] = "changed",
    [UD_CAUSE_GONE] = "gone",
    [UD_CAUSE_STACK] = "stack",
    [UD_CAUSE_LOCKED] = "locked",
    [UD_CAUSE_VMAS] = "VMA budget used up",
    [UD_CAUSE_NOMEM] = "ENOMEM",
    [UD_CAUSE_BUSY] = "a thread was inside a memory call",
    [UD_CAUSE_HOLD_DEADLINE] = "threads could not be held in time",
    [UD_CAUSE_HOLD_TRACED] = "a thread is traced by somebody else",
    [UD_CAUSE_HOLD_REFUSED] = "ptrace refused, and /proc does not tell what threads do",
    [UD_CAUSE_SYSCALL] = "a thread sleeps in a call that a stop would show in",
    [UD_CAUSE_SEALS] = "segment without seals",
    [UD_CAUSE_SEGMENT] = "segment could not be made or mapped",
    [UD_CAUSE_PINNED] = "asynchronous I/O",
    [UD_CAUSE_SHARED] = "another process runs on the same memory",
    [UD_CAUSE_HOLD_MASKED] = "ptrace refused, and a thread blocks SIGURG",
    [UD_CAUSE_HUGE] = "part of a huge page",
    [UD_CAUSE_NODE] = "the kernel does not tell the NUMA node (move_pages refused)",
};

void ud__note_cause(int cause, uint64_t pages)
{
    struct ud_ledger_header *h = ud__a.ledger.hdr;
    h->merge_failures[cause] += pages;
    char *at = h->cause_text;
    const char *words = cause_words[cause];
    if (cause == UD_CAUSE_HOLD_REFUSED && ud__trap_active())
        words = ud__trap_refusal();
    else if (cause == UD_CAUSE_HOLD_REFUSED && ud__park_words())
        words = ud__park_words();
    if (cause >= UD_CAUSE_VMAS && words)
        ud__put_str(at, at + sizeof h->cause_text, words);
}

/* Microseconds of work in a batch. The rest of a pause, for holding and letting go, is not ours to choose, and shorter
 * batches would only make more of it: after work that took too long the next is shorter, and grows again slowly. */
static struct {
    uint64_t us, most; /* most: the freeze_max_us it was made for */
} batch;

static uint64_t aim_us(void) { return batch.most * 3 / 8; }

static void learn(uint64_t us)
{
    if (us > batch.most)
        batch.us = batch.us * 3 / 4 > batch.most / 4 ? batch.us * 3 / 4 : batch.most / 4;
    else if (batch.us < aim_us())
        batch.us += batch.most / 256;
}

static uint64_t work_us(void)
{
    if (batch.most != ud__a.knobs.freeze_max_us) {
        batch.most = ud__a.knobs.freeze_max_us;
        batch.us = aim_us();
    }
    return batch.us;
}

static void note_pause(uint64_t us)
{
    struct ud_ledger_header *h = ud__a.ledger.hdr;
    unsigned bucket = 0;
    if (us) {
        unsigned octave = 63 - (unsigned)__builtin_clzll(us);
        unsigned quarter = octave >= 2 ? (unsigned)(us >> (octave - 2) & 3) : (unsigned)(us << (2 - octave) & 3);
        bucket = octave * 4 + quarter;
    }
    h->freeze_hist[bucket < UD_FREEZE_BUCKETS ? bucket : UD_FREEZE_BUCKETS - 1]++;
    h->freezes++;
    h->freeze_us_sum += us;
    if (us > h->freeze_us_max)
        h->freeze_us_max = us;
}

static int pieces_ready(void)
{
    if (!pieces)
        pieces = ud__alloc(PIECES_MAX * sizeof *pieces);
    return pieces ? 0 : -ENOMEM;
}

/* At least as many blocks as the pieces touch; exact where they are in order. */
static size_t blocks_of(const struct ud__piece *p, uint32_t n)
{
    size_t blocks = 0;
    uint64_t before = ~0ull;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t first = p[i].vaddr / ud__block_bytes();
        uint64_t last = (p[i].vaddr + ((uint64_t)p[i].npages << ud__page_shift) - 1) / ud__block_bytes();
        blocks += last - first + (first != before);
        before = last;
    }
    return blocks;
}

/* Asks before each batch; a program is often out of such a call a moment later. */
static int wait_for_calm(void)
{
    int cause = -1;
    for (int i = 0; i < TRIES; i++) {
        cause = ud__hold_precheck(ud__a.pid, atomic_load(&ud__a.tid));
        if (cause < 0)
            return -1;
        ud__turn_rest(1000u << i);
    }
    return cause;
}

static void note_hold(int cause)
{
    int none = cause == UD_CAUSE_HOLD_REFUSED || cause == UD_CAUSE_HOLD_MASKED;
    if (!ud__trap_active())
        ud__a.ledger.hdr->hold_kind = none ? UD_HOLD_NONE : (uint32_t)atomic_load(&ud__hold_way);
}

/* What is locked is marked as kept out; should it have changed by the time everybody is held, the holder says LOCKED. */
static void know_locked(struct ud__job *j)
{
    uint64_t pinned_kb, kb = ud__locked_kb(&pinned_kb);
    if (kb != j->vmlck)
        ud__locked_mark(ud__a.pid);
    j->vmlck = kb;
}

/* Runs the job's batches to the end. Whatever is left when it gives up is refused. */
static void run_batches(struct ud__job *j)
{
    int tries = 0, cause = -1;
    know_locked(j);
    if (j->kind == UD__JOB_MERGE && ud__merged_reserve(blocks_of(j->pieces, j->npieces))) {
        cause = UD_CAUSE_NOMEM;
        tries = TRIES;
    }
    while (j->done < j->npieces && tries < TRIES) {
        if (!ud__trap_active() && (cause = wait_for_calm()) >= 0)
            break;
        uint32_t before = j->vmas, least;
        j->vmas_left = ud__budget_left();
        least = ud_shortest_run(ud__a.ledger.hdr->vmas_budget, j->vmas_left);
        j->min_run = least > ud__a.knobs.min_run ? least : ud__a.knobs.min_run;
        j->budget_us = work_us();
        j->hold.deadline_us = ud__now_us() + 20000 + 10ull * ud__a.knobs.freeze_max_us;
        int r = ud__job_run(j, atomic_load(&ud__a.tid), 1);
        ud__merged_reap();
        ud__budget_spent(j->vmas - before);
        if (r == -ECHILD)
            ud__scan_resync();
        else if (r == 0 && j->cause_begin < 0) {
            note_hold(-1);
            note_pause(j->pause_us);
            learn(j->work_us);
            ud__a.ledger.hdr->eintr_repairs += j->repairs;
            if ((int64_t)j->result < 0) { /* UNMERGE ran out of memory: the rest stays merged */
                cause = UD_CAUSE_NOMEM;
                break;
            }
            tries = 0;
            if (j->kind == UD__JOB_UNMERGE)
                ud__turn_rest(j->pause_us);
            else
                ud__pace(j->pause_us);
            continue;
        }
        cause = r < 0 ? UD_CAUSE_NOMEM : j->cause_begin;
        if (cause == UD_CAUSE_PINNED)
            break;
        if (cause == UD_CAUSE_LOCKED)
            know_locked(j);
        ud__turn_rest(1000u << tries++);
    }
    if (cause >= 0)
        note_hold(cause);
    for (uint32_t i = j->done; i < j->npieces && cause >= 0; i++)
        ud__job_refuse(j, j->pieces[i].npages, cause);
    for (int c = 0; c < UD_CAUSE_COUNT; c++)
        if (j->causes[c])
            ud__note_cause(c, j->causes[c]);
}

static int run_is_sane(const struct ud_run *r)
{
    uint64_t top = (1ull << 47) - ud__page;
    return r->npages && r->npages < 1u << UD_SLOT_BITS && r->vaddr % ud__page == 0 && r->vaddr < top &&
           ((uint64_t)r->npages << ud__page_shift) <= top - r->vaddr;
}

/* A page that is not merged now: not nominated again before it changed, or some passes are over; the more often it was
 * refused, the more passes (age.c). */
static void refuse_page(uint64_t page)
{
    uint64_t entry;
    uint8_t state = ud__page_state(&ud__a.ledger, page, &entry);
    uint8_t count = (uint8_t)((state >> UD__COUNT_SHIFT & 7) + 1);
    if ((state & UD_PG_MASK) == UD_PG_STABLE)
        ud__page_set(&ud__a.ledger, page, (uint8_t)(UD_PG_REFUSED | (count < 6 ? count : 6) << UD__COUNT_SHIFT), entry);
}

static void mark_refused(const struct ud_run *runs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; run_is_sane(&runs[i]) && k < runs[i].npages; k++)
            refuse_page(runs[i].vaddr + ((uint64_t)k << ud__page_shift));
    ud__ledger_commit(&ud__a.ledger);
}

static void report(const struct ud__job *j, struct ud_msg_result *res)
{
    res->merged = j->merged;
    res->refused = j->refused;
    for (int c = 0; c < UD_CAUSE_COUNT; c++)
        res->causes[c] = j->causes[c];
    ud__a.ledger.hdr->pages_merged += j->merged;
}

/* A core dump leaves file mappings out, and merged pages are such: private ones (bit 2) go in from now on. */
static void dump_merged_pages(void)
{
    static int pid_done;
    char buf[32], *end = buf + sizeof buf;
    const char *s = buf;
    if (pid_done == ud__a.pid || ud__read_file("/proc/self/coredump_filter", buf, sizeof buf) <= 0)
        return;
    pid_done = ud__a.pid;
    uint64_t filter = ud__get_hex(&s) | 4;
    long fd = ud__sys(__NR_openat, AT_FDCWD, "/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);
    char *at = ud__put_dec(buf, end, filter); /* the kernel takes any base */
    if (fd >= 0) {
        ud__sys(__NR_write, fd, buf, at - buf);
        ud__sys(__NR_close, fd);
    }
}

/* The longest piece, so that it can be moved by parts of the page table; NULL if less than most of the segment is wanted. */
static const struct ud__piece *worth_staging(const struct ud__job *j, const struct ud__segment *s)
{
    uint64_t wanted = 0;
    const struct ud__piece *p = j->pieces, *longest = p;
    for (; p < j->pieces + j->npieces; p++) {
        wanted += p->npages;
        if (p->npages > longest->npages)
            longest = p;
    }
    return wanted < STAGE_MIN || wanted * 2 < s->npages ? NULL : longest;
}

static void merge_pieces(const struct ud__segment *s, uint32_t n, const struct ud_run *runs, uint32_t nruns,
                         struct ud_msg_result *res)
{
    struct ud__job j = {.kind = UD__JOB_MERGE, .pieces = pieces, .npieces = n, .segfd = s->fd, .segment = s->inode,
                        .ledger = &ud__a.ledger};
    const struct ud__piece *longest = worth_staging(&j, s);
    dump_merged_pages();
    if (longest) {
        uint64_t first_slot = longest->vaddr - ((uint64_t)longest->slot << ud__page_shift);
        ud__turn_beside();
        ud__stage(&j.stage, s->fd, s->npages, first_slot, !ud__trap_active());
        ud__turn_give();
    }
    ud__turn_take();
    run_batches(&j);
    ud__turn_give();
    ud__unstage(&j.stage);
    report(&j, res);
    for (uint32_t i = 0; i < nruns; i++)
        if (run_is_sane(&runs[i]))
            ud__heat_merged(runs[i].vaddr, runs[i].npages);
    mark_refused(runs, nruns);
}

void ud__plan_merge(const struct ud_msg_runs *m, int fd, struct ud_msg_result *res)
{
    uint64_t inode = 0;
    uint32_t npages = 0, n = 0;
    int cause = -1;
    if (pieces_ready())
        cause = UD_CAUSE_NOMEM;
    else if (fd < 0 || ud__segment_check(fd, &inode, &npages) || inode != m->segment)
        cause = UD_CAUSE_SEALS;
    int kept = cause < 0 ? ud__segment_keep(fd, inode, npages, m->node) : -1;
    if (cause < 0 && kept < 0)
        cause = UD_CAUSE_SEGMENT;
    else if (cause >= 0 && fd >= 0)
        ud__sys(__NR_close, fd);
    for (uint32_t i = 0; i < m->nruns; i++) {
        const struct ud_run *r = &m->runs[i];
        int sane = cause < 0 && run_is_sane(r) && r->slot <= npages && r->npages <= npages - r->slot;
        if (sane) {
            pieces[n++] = (struct ud__piece){r->vaddr, r->npages, r->slot};
        } else {
            res->refused += r->npages;
            ud__note_cause(cause < 0 ? UD_CAUSE_GONE : cause, r->npages);
        }
    }
    uint32_t refused = res->refused;
    if (n)
        merge_pieces(&(struct ud__segment){inode, kept, npages, 0}, n, m->runs, m->nruns, res);
    res->refused += refused;
    res->segment = inode;
}

/* Its pages are merged by a plan of their own, like the others': meanwhile the next segment can be made. */
void ud__plan_publish(const struct ud_msg_runs *m, struct ud_msg_result *res, int *out_fd)
{
    uint64_t inode = 0;
    uint32_t npages = 0;
    *out_fd = -1;
    for (uint32_t i = 0; i < m->nruns; i++)
        if (!run_is_sane(&m->runs[i]) || m->runs[i].slot > 65536 || m->node > UD_NODES)
            return;
    if (m->node)
        ud__node_prefer((int)m->node - 1);
    ud__turn_beside();
    int fd = ud__segment_make(m->runs, m->nruns, &inode, &npages);
    ud__turn_give();
    if (m->node)
        ud__node_prefer(-1);
    if (fd >= 0)
        fd = ud__segment_keep(fd, inode, npages, m->node);
    if (fd < 0) {
        for (uint32_t i = 0; i < m->nruns; i++)
            res->refused += m->runs[i].npages;
        ud__note_cause(UD_CAUSE_SEGMENT, res->refused);
        mark_refused(m->runs, m->nruns);
        return;
    }
    ud__a.ledger.hdr->pages_published += npages;
    res->segment = inode;
    res->npages = npages;
    *out_fd = fd;
}

/* A page of zeros that was not given back; it waited as VOLATILE. */
static void refuse_zero(uint64_t page)
{
    uint64_t entry;
    if ((ud__page_state(&ud__a.ledger, page, &entry) & UD_PG_MASK) == UD_PG_VOLATILE)
        ud__page_set(&ud__a.ledger, page, UD_PG_REFUSED | 1u << UD__COUNT_SHIFT, entry);
}

void ud__plan_zero(const struct ud__range *r, size_t n)
{
    if (pieces_ready() || ud__a.knobs.run != 1)
        return;
    struct ud__job j = {.kind = UD__JOB_ZERO, .pieces = pieces, .segfd = -1, .ledger = &ud__a.ledger};
    for (size_t i = 0; i < n && i < PIECES_MAX; i++)
        pieces[j.npieces++] = (struct ud__piece){r[i].start, (uint32_t)((r[i].end - r[i].start) >> ud__page_shift), 0};
    ud__turn_take();
    run_batches(&j);
    ud__turn_give();
    ud__a.ledger.hdr->pages_zeroed += j.merged;
    for (size_t i = 0; i < n; i++)
        for (uint64_t page = r[i].start; page < r[i].end; page += ud__page)
            refuse_zero(page);
}

#define GIVE_BACK_US 10000000u

/* Every merged mapping there is, as far as one list of pieces goes. */
static uint32_t all_merged(void)
{
    uint32_t n = 0;
    struct ud__vma v;
    if (ud__maps_refresh(&ud__a.maps))
        return 0;
    for (uint64_t at = 0; n < PIECES_MAX && ud__maps_find(&ud__a.maps, at, &v) == 0; at = v.end)
        if (ud__vma_is_segment(&v) && !(n && ud__run_joins(pieces[n - 1].vaddr, &pieces[n - 1].npages, v.start, v.end)))
            pieces[n++] = (struct ud__piece){v.start, (uint32_t)((v.end - v.start) >> ud__page_shift), 0};
    return n;
}

static uint32_t unmerge_pieces(uint32_t n)
{
    struct ud__job j = {.kind = UD__JOB_UNMERGE, .pieces = pieces, .npieces = n, .segfd = -1, .ledger = &ud__a.ledger};
    run_batches(&j);
    ud__a.ledger.hdr->pages_unmerged += j.merged;
    ud__scan_resync();
    return j.merged;
}

uint32_t ud__plan_unmerge(const struct ud_run *runs, uint32_t nruns)
{
    uint32_t total = 0, n = 0, got;
    if (pieces_ready())
        return 0;
    if (nruns) {
        for (uint32_t i = 0; i < nruns; i++)
            if (run_is_sane(&runs[i]))
                pieces[n++] = (struct ud__piece){runs[i].vaddr, runs[i].npages, 0};
        total = unmerge_pieces(n);
    } else {
        /* A hold that misses its deadline gives nothing back: try again for a while, or a process that left keeps
         * merged memory with no agent beside it. */
        uint64_t give_up = ud__now_us() + GIVE_BACK_US;
        while ((n = all_merged()) && ud__now_us() < give_up) {
            total += got = unmerge_pieces(n);
            if (!got)
                ud__sleep_us(20000);
        }
    }
    ud__ledger_commit(&ud__a.ledger);
    return total;
}

void ud__exec_rest(void) { ud__empty(pieces, PIECES_MAX * sizeof *pieces); }

void ud__exec_forked(void) { pieces = NULL; }
