/* fork.c: what a forked child is left with.
 *
 * The child has the parent's merged mappings (valid, sealed, copy-on-write), the merged map that tells them,
 * and no agent. What the agent had mapped for itself was not inherited, so every pointer to it goes.
 *
 * Guarantees: a batch is never half-done at a fork: fork waits for it (job.c). The child joins as a
 * process of its own: its agent starts at once but sleeps first (growth.c), for most children exec at once.
 * A child made by a raw clone(2) does not come here by itself: a page that the kernel wipes on fork tells it, at the first
 * call that needs to know (ud__fork_notice). A vfork child shares the page, and nothing of this is for it.
 * It may have been made amid a batch: in mode stop its maker was held meanwhile, in mode trap its writers open what they
 * find closed (trap.c).
 * Fails: where that page could not be had, such a child merges nothing.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "internal.h"

/* The whole library: a holder must not remap the ground it stands on. */
extern char __ehdr_start[] UD_HIDDEN, _end[] UD_HIDDEN;

static int *birth; /* 1; 0 in a forked child that nobody told */

static void in_child(void)
{
    if (birth)
        *birth = 1;
    ud__a.home = (int)ud__sys(__NR_getpid);
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
    ud__budget_forked();
    ud__exec_forked();
    ud__link_forked();
    ud__turns_forked();
    ud__job_forked();
    ud__region_forked();
    ud__own_reset();
    ud__own_add(__ehdr_start, (size_t)(_end - __ehdr_start));
    ud__merged_own();
    ud__malloc_own();
    if (birth)
        ud__own_add(birth, ud__page);
    if (had_agent)
        ud__growth_forked();
}

static void told_in_parent(void) { ud__job_postfork(0); }

static void told_in_child(void)
{
    in_child();
    ud__job_postfork(1);
}

void ud__fork_notice(void)
{
    if (UD_UNLIKELY(birth && *birth == 0))
        in_child();
}

int ud__in_vfork(void) { return ud__a.home != (int)ud__sys(__NR_getpid); }

static void mark_birth(void)
{
    long p = ud__sys(__NR_mmap, ud__hint(ud__page), ud__page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ud__is_err(p) || ud__sys(__NR_madvise, p, ud__page, MADV_WIPEONFORK) != 0)
        return;
    birth = (int *)p;
    *birth = 1;
    ud__own_add(birth, ud__page);
}

void ud__fork_init(void)
{
    ud__a.home = (int)ud__sys(__NR_getpid);
    mark_birth();
    ud__own_add(__ehdr_start, (size_t)(_end - __ehdr_start));
    pthread_atfork(ud__job_prefork, told_in_parent, told_in_child);
}
