/* fork.c: what a forked child is left with.
 *
 * The child has the parent's merged mappings (valid, sealed, copy-on-write), the merged map that tells them,
 * and no agent. What the agent had mapped for itself was not inherited, so every pointer to it goes.
 *
 * Guarantees: a batch is never half-done at a fork: the forking thread was held while it ran. The child joins as a
 * process of its own: its agent starts at once but sleeps first (growth.c), for most children exec at once.
 * Fails: a child made by a raw clone(2) does not come here; it keeps the state of a process with an agent that
 * it does not have, merges nothing, and the repairs of the interposers still work.
 */
#include <pthread.h>

#include "internal.h"

/* The whole library: a holder must not remap the ground it stands on. */
extern char __ehdr_start[] UD_HIDDEN, _end[] UD_HIDDEN;

static void in_child(void)
{
    int had_agent = atomic_load(&ud__a.state) != UD__AGENT_NONE;
    atomic_store(&ud__a.state, UD__AGENT_NONE);
    atomic_store(&ud__a.tid, 0);
    atomic_store(&ud__a.leave, 0);
    atomic_store(&ud__busy_count, 0);
    ud__a.pid = 0;
    ud__a.have_key = 0;
    ud__a.ledger = (struct ud__ledger){.fd = -1};
    ud__a.maps = (struct ud__maps){.fd = -1};
    ud__segment_reset(0);
    ud__scan_forked();
    ud__exec_forked();
    ud__link_forked();
    ud__job_forked();
    ud__region_forked();
    ud__own_reset();
    ud__own_add(__ehdr_start, (size_t)(_end - __ehdr_start));
    ud__merged_own();
    ud__malloc_own();
    if (had_agent)
        ud__growth_forked();
}

void ud__fork_init(void)
{
    ud__own_add(__ehdr_start, (size_t)(_end - __ehdr_start));
    pthread_atfork(NULL, NULL, in_child);
}
