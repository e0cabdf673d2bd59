/* plan_merge.c: runs whose content is in the store, on their way to their session.
 *
 * Guarantees: longest runs first, then by segment and address; runs that touch in memory and in the
 * segment go out as one. A segment is named by g->plans as long as a run or plan needs it.
 * Fails: -ENOMEM or -EFAULT (no address) from ud__ready, and the caller keeps the page.
 */
#include <errno.h>
#include <stdlib.h>
#include "index_int.h"

#define MAX_PAGES 16384u /* of one message */

int ud__ready(struct ud_planner *p, struct ud__session *s, uint32_t page, uint32_t n, uint32_t gid, uint32_t slot)
{
    struct ud__move *last = s->move_count > s->move_next ? &s->moves[s->move_count - 1] : NULL;
    uint64_t vaddr = ud__ledger_vaddr(s, page, p->page_size);
    if (!vaddr)
        return -EFAULT;
    if (!s->moves_sorted && last && last->gid == gid && last->page + last->n == page && last->slot + last->n == slot &&
        last->vaddr + last->n * p->page_size == vaddr) {
        last->n += n;
        return 0;
    }
    if (ud__grow((void **)&s->moves, &s->move_room, s->move_count + 1, sizeof(*s->moves)))
        return -ENOMEM;
    s->moves[s->move_count++] = (struct ud__move){page, n, gid, slot, vaddr};
    s->moves_sorted = false;
    p->move_total++;
    ud__segment(p, gid)->plans++;
    return 0;
}

static unsigned rank(uint32_t n)
{
    return n >= 64 ? 0 : n >= 16 ? 1 : n >= UD__SHORT_RUN ? 2 : 3;
}

static int by_worth(const void *a, const void *b)
{
    const struct ud__move *x = a, *y = b;
    if (rank(x->n) != rank(y->n))
        return rank(x->n) < rank(y->n) ? -1 : 1;
    if (x->gid != y->gid)
        return x->gid < y->gid ? -1 : 1;
    return x->vaddr < y->vaddr ? -1 : x->vaddr > y->vaddr;
}

static void sort_moves(struct ud__session *s)
{
    s->move_count -= s->move_next;
    memmove(s->moves, s->moves + s->move_next, (size_t)s->move_count * sizeof(*s->moves));
    s->move_next = 0;
    qsort(s->moves, s->move_count, sizeof(*s->moves), by_worth);
    s->moves_sorted = true;
}

static void add(struct ud_planner *p, struct ud_msg_runs *m, const struct ud__move *move)
{
    struct ud_run *last = m->nruns ? &m->runs[m->nruns - 1] : NULL;
    if (last && last->vaddr + last->npages * p->page_size == move->vaddr && last->slot + last->npages == move->slot)
        last->npages += move->n;
    else
        m->runs[m->nruns++] = (struct ud_run){move->vaddr, move->n, move->slot};
}

int ud__make_merge(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf)
{
    if (s->move_next >= s->move_count || s->merges >= UD__MAX_MERGES)
        return 0;
    if (!s->moves_sorted)
        sort_moves(s);
    uint32_t left = s->move_count - s->move_next;
    struct ud__plan *plan = ud__plan_new(p, s, UD_MSG_MERGE, left < UD_MSG_MAX_RUNS ? left : UD_MSG_MAX_RUNS, now);
    if (!plan)
        return -ENOMEM;
    struct ud_msg_runs *m = memset(buf, 0, sizeof(*m));
    struct ud__segment *g = ud__segment(p, s->moves[s->move_next].gid);
    while (s->move_next < s->move_count && plan->nruns < UD_MSG_MAX_RUNS) {
        struct ud__move *move = &s->moves[s->move_next];
        if (move->gid != g->id || (plan->npages && plan->npages + move->n > MAX_PAGES))
            break;
        add(p, m, move);
        plan->runs[plan->nruns++] = (struct ud__run){move->page, move->n, 0, 0};
        plan->npages += move->n;
        s->move_next++;
        p->move_total--;
        g->plans--;
    }
    plan->gid = g->id;
    g->plans++;
    s->merges++;
    s->sent_runs += plan->nruns;
    m->segment = g->name;
    m->node = g->node;
    uint32_t bytes = (uint32_t)(sizeof(*m) + m->nruns * sizeof(struct ud_run));
    m->msg = (struct ud_msg){UD_WIRE_MAGIC, UD_MSG_MERGE, UD_WIRE_VERSION, bytes, plan->number};
    *out = (struct ud_plan_out){s->id, g->id, bytes, plan->number};
    return 1;
}

/* Pages that alone use their slot cost a mapping and save nothing. */
int ud__make_unmerge(struct ud_planner *p, struct ud__session *s, int64_t now, struct ud_plan_out *out, void *buf)
{
    if (!s->back_count || s->merges >= UD__MAX_MERGES)
        return 0;
    struct ud__plan *plan = ud__plan_new(p, s, UD_MSG_UNMERGE, UD_MSG_MAX_RUNS, now);
    if (!plan)
        return -ENOMEM;
    struct ud_msg_runs *m = memset(buf, 0, sizeof(*m));
    while (s->back_count && plan->nruns < UD_MSG_MAX_RUNS) {
        struct ud__run run = s->backs[--s->back_count];
        uint64_t vaddr = ud__ledger_vaddr(s, run.page, p->page_size);
        p->move_total--;
        plan->runs[plan->nruns++] = run;
        if (vaddr)
            m->runs[m->nruns++] = (struct ud_run){vaddr, run.n, 0};
    }
    s->merges++;
    uint32_t bytes = (uint32_t)(sizeof(*m) + m->nruns * sizeof(struct ud_run));
    m->msg = (struct ud_msg){UD_WIRE_MAGIC, UD_MSG_UNMERGE, UD_WIRE_VERSION, bytes, plan->number};
    if (!m->nruns) { /* no run would mean everything */
        for (uint32_t i = 0; i < plan->nruns; i++)
            ud__claim(s, plan->runs[i].page, plan->runs[i].n, false);
        ud__plan_end(p, plan);
        return 0;
    }
    *out = (struct ud_plan_out){s->id, 0, bytes, plan->number};
    return 1;
}

void ud__drop_moves(struct ud_planner *p, struct ud__session *s)
{
    for (uint32_t i = s->move_next; i < s->move_count; i++) {
        struct ud__segment *g = ud__segment(p, s->moves[i].gid);
        if (g)
            g->plans--;
        p->move_total--;
    }
    s->move_next = s->move_count = 0;
    p->move_total -= s->back_count;
    s->back_count = 0;
}
