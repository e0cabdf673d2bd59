/* plan_wait.c: runs that wait until their twin is in the store.
 *
 * Guarantees: a waiting page is claimed, so nobody plans it twice; when its owner's publication is
 * over, for better or worse, it becomes a ready run or a candidate again. Only digests read after
 * the publication decide which.
 * Fails: the list is bounded (UD__MAX_WAITS runs in the domain); who finds it full comes again later.
 */
#include <errno.h>
#include <stdlib.h>
#include "index_int.h"

int ud__wait_for(struct ud_planner *p, struct ud__session *owner, struct ud__wait wait)
{
    if (p->wait_total >= UD__MAX_WAITS ||
        ud__grow((void **)&owner->waits, &owner->wait_room, owner->wait_count + 1, sizeof(wait)))
        return -ENOMEM;
    owner->waits[owner->wait_count++] = wait;
    ud__session(p, wait.sid)->waiting_runs++;
    p->wait_total++;
    return 0;
}

const struct ud__run *ud__run_of(const struct ud__plan *plan, uint32_t page)
{
    uint32_t low = 0, high = plan ? plan->nruns : 0;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        const struct ud__run *run = &plan->runs[mid];
        if (page < run->page)
            high = mid;
        else if (page >= run->page + run->n)
            low = mid + 1;
        else
            return run;
    }
    return NULL;
}

/* One waiting page meets its slot. */
static void land(struct ud_planner *p, struct ud__session *w, uint32_t page, uint32_t gid, uint32_t slot, int64_t now)
{
    struct ud__segment *g = ud__segment(p, gid);
    uint64_t digest;
    if (g && slot < g->npages && ud__digest_of(p, w, page, &digest) && digest == g->digests[slot] &&
        ud__ready(p, w, page, 1, gid, slot) == 0) {
        ud__claim(w, page, 1, true);
        return;
    }
    ud__claim(w, page, 1, false);
    ud__put_off(w, page, now, true);
}

/* The publisher's own pages. (A tile's are a row that waits.) */
void ud__land_owner(struct ud_planner *p, struct ud__session *s, const struct ud__plan *plan, uint32_t gid, int64_t now)
{
    for (uint32_t i = 0; i < plan->nruns; i++) {
        const struct ud__run *run = &plan->runs[i];
        ud__claim(s, run->page, run->n, false);
        for (uint32_t k = 0; !run->copies && k < run->n; k++)
            land(p, s, run->page + k, gid, run->slot + k, now);
    }
}

/* The row's pages take the tile's slots in turn, so that the pieces follow each other in the file. */
static bool land_row(struct ud_planner *p, struct ud__session *owner, struct ud__session *w, const struct ud__wait *wait,
                     const struct ud__plan *plan, uint32_t gid, int64_t now)
{
    const struct ud__run *run = ud__run_of(plan, wait->owner);
    if (!run && ud__bit(owner->pub, wait->owner))
        return false;
    for (uint32_t k = 0; k < wait->n; k++)
        if (run && run->copies && gid)
            land(p, w, wait->page + k, gid, run->slot + k % run->copies, now);
        else
            land(p, w, wait->page + k, 0, 0, now);
    return true;
}

static void keep(struct ud__session *owner, struct ud__session *w, uint32_t *kept, const struct ud__wait *wait, uint32_t from,
                 uint32_t n)
{
    struct ud__wait part = *wait;
    part.page += from;
    part.owner += from;
    part.n = n;
    owner->waits[(*kept)++] = part;
    w->waiting_runs++;
}

/* A split run needs a place of its own at the end; without memory its pages become candidates again. */
static void keep_more(struct ud_planner *p, struct ud__session *owner, const struct ud__wait *wait, uint32_t from,
                      uint32_t n, int64_t now)
{
    struct ud__wait part = *wait;
    struct ud__session *w = ud__session(p, wait->sid);
    part.page += from;
    part.owner += from;
    part.n = n;
    if (ud__wait_for(p, owner, part) == 0)
        return;
    for (uint32_t k = 0; k < n; k++)
        land(p, w, part.page + k, 0, 0, now);
}

/* Lands what is over; of what still waits, the first part keeps the place, others go to the end. */
static void land_run(struct ud_planner *p, struct ud__session *owner, struct ud__session *w, struct ud__wait wait,
                     const struct ud__plan *plan, uint32_t gid, uint32_t *kept, int64_t now)
{
    bool placed = false;
    for (uint32_t k = 0; k < wait.n;) {
        uint32_t from = k;
        while (k < wait.n && !ud__run_of(plan, wait.owner + k) && ud__bit(owner->pub, wait.owner + k))
            k++;
        if (k > from && !placed) {
            keep(owner, w, kept, &wait, from, k - from);
            placed = true;
        } else if (k > from)
            keep_more(p, owner, &wait, from, k - from, now);
        const struct ud__run *run = k < wait.n ? ud__run_of(plan, wait.owner + k) : NULL;
        if (k < wait.n) {
            bool in_store = run && gid;
            land(p, w, wait.page + k, in_store ? gid : 0, in_store ? run->slot + (wait.owner + k - run->page) : 0, now);
            k++;
        }
    }
}

void ud__resolve(struct ud_planner *p, struct ud__session *owner, const struct ud__plan *plan, uint32_t gid, int64_t now)
{
    uint32_t count = owner->wait_count, kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct ud__wait wait = owner->waits[i];
        struct ud__session *w = ud__session(p, wait.sid);
        if (!w)
            continue;
        w->waiting_runs--;
        if (!wait.row)
            land_run(p, owner, w, wait, plan, gid, &kept, now);
        else if (!land_row(p, owner, w, &wait, plan, gid, now))
            keep(owner, w, &kept, &wait, 0, wait.n);
    }
    /* Split parts stand behind the old list: close the gap. */
    uint32_t more = owner->wait_count - count;
    if (more)
        memmove(owner->waits + kept, owner->waits + count, (size_t)more * sizeof(*owner->waits));
    p->wait_total -= count - kept;
    owner->wait_count = kept + more;
}

void ud__forget_waiter(struct ud_planner *p, uint32_t sid)
{
    for (uint32_t i = 1; i < p->session_room; i++) {
        struct ud__session *s = p->sessions[i];
        uint32_t kept = 0;
        for (uint32_t k = 0; s && k < s->wait_count; k++)
            if (s->waits[k].sid != sid)
                s->waits[kept++] = s->waits[k];
        if (s) {
            p->wait_total -= s->wait_count - kept;
            s->wait_count = kept;
        }
    }
}
