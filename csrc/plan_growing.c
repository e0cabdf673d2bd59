/* plan_growing.c: what waits while others of the domain still grow.
 *
 * Workers that start together are ready one after the other. Were what the first ones hold matched at once, each piece would be
 * merged with whoever held it by then, and what the others bring later with other places of the store: two or three times as many
 * mappings. So a scan waits while another program grows, by its agent's word (age.c).
 *
 * Guarantees: a scan waits no longer than another grows, and PATIENCE at most, counted from when its own program had grown; from
 * then on its session does not wait again before a scan has found nobody growing.
 * Fails: never. Agents whose programs begin to grow again and again cost the others PATIENCE each time.
 */
#include "index_int.h"

#define PATIENCE 4000 /* ms */

static bool grows(const struct ud__session *s) { return __atomic_load_n(&s->header->growing, __ATOMIC_RELAXED); }

static bool another_grows(const struct ud_planner *p, const struct ud__session *s)
{
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i] && p->sessions[i] != s && grows(p->sessions[i]))
            return true;
    return false;
}

bool ud__scan_waits(struct ud_planner *p, struct ud__session *s, int64_t now)
{
    bool mine = grows(s), another = another_grows(p, s);
    for (uint32_t i = 1; !mine && !another && i < p->session_room; i++)
        if (p->sessions[i])
            p->sessions[i]->waits_since = 0;
    if (another && (mine || !s->waits_since))
        s->waits_since = now;
    s->held_up = another && now - s->waits_since < PATIENCE;
    return s->held_up;
}

int64_t ud__waits_until(const struct ud_planner *p, const struct ud__session *s, int64_t now)
{
    return another_grows(p, s) ? s->waits_since + PATIENCE : now;
}
