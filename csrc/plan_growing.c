/* plan_growing.c: what waits while others of the domain still grow.
 *
 * Workers that start together are ready one after the other. Were what the first ones hold matched at once, each piece would be
 * merged with whoever held it by then, and what the others bring later with other places of the store: two or three times as many
 * mappings. So a scan is put off while another program grows, by its agent's word (age.c).
 *
 * Guarantees: what is put off is looked at once nobody else grows, and after PATIENCE at the latest; from then on its session does
 * not wait again before there was a moment at which nobody grew.
 * Fails: never. An agent that hangs while its program grows costs each of the others PATIENCE, once.
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

int64_t ud__waits_until(const struct ud_planner *p, struct ud__session *s, int64_t now)
{
    if (grows(s) || !another_grows(p, s)) {
        s->waits_since = 0;
        return 0;
    }
    s->waits_since = s->waits_since ? s->waits_since : now;
    return s->waits_since + PATIENCE;
}
