/* api.c: what Python, and a program that knows of us, may ask: join, leave, advise, merge everything.
 *
 * Guarantees: an advice given before an agent runs is kept and counts later. ud_leave returns when the agent has
 * given everything back and is gone.
 * Fails: -errno as told in udedup.h.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "internal.h"

#define MERGEABLE 12
#define UNMERGEABLE 13

static int wait_for(int (*done)(void), uint64_t us)
{
    uint64_t end = ud__now_us() + us;
    while (!done()) {
        if (ud__now_us() > end)
            return -ETIMEDOUT;
        ud__sleep_us(1000);
    }
    return 0;
}

int ud_joined(void)
{
    return atomic_load(&ud__a.state) == UD__AGENT_RUNNING && ud__a.sock >= 0;
}

static int settled_start(void) { return ud_joined() || atomic_load(&ud__a.state) == UD__AGENT_NONE; }

static atomic_uint told; /* the last agent that was told to leave; another may have been started since */

static int gone(void)
{
    return (atomic_load(&ud__a.state) == UD__AGENT_NONE && atomic_load(&ud__a.tid) == 0) || atomic_load(&ud__a.started) != atomic_load(&told);
}

int ud_join(const char *socket_path, int regions_advised)
{
    if (!socket_path || strlen(socket_path) >= sizeof ud__a.socket)
        return -EINVAL;
    if (ud__a.disabled)
        return -EPERM;
    if (atomic_load(&ud__a.state) != UD__AGENT_NONE)
        return strcmp(ud__a.socket, socket_path) == 0 ? 0 : -EALREADY;
    memmove(ud__a.socket, socket_path, strlen(socket_path) + 1);
    ud__a.advised = regions_advised != 0;
    atomic_store(&ud__a.left, 0);
    int r = ud__agent_start();
    if (r == -EALREADY) /* memory that grows was faster */
        r = 0;
    if (r == 0 && (r = wait_for(settled_start, 5000000)) == 0 && !ud_joined())
        r = -ECONNREFUSED;
    return r;
}

int ud_leave(void)
{
    atomic_store(&told, atomic_load(&ud__a.started));
    if (atomic_load(&ud__a.state) == UD__AGENT_NONE)
        return -ENOENT;
    atomic_store(&ud__a.left, 1); /* before: memory may grow in the moment after */
    atomic_store(&ud__a.leave, UD__LEAVE);
    atomic_fetch_add(&ud__a.poke, 1);
    ud__sys(__NR_futex, &ud__a.poke, 1 /* FUTEX_WAKE */, 1);
    int r = wait_for(gone, 60000000);
    if (atomic_load(&ud__a.left))
        ud__a.socket[0] = 0;
    return r;
}

/* The kernel's way with holes: what is mapped gets the advice, and then ENOMEM is told. */
static int mark_mapped(uint64_t start, uint64_t end, int kind)
{
    struct ud__maps maps;
    struct ud__vma v;
    int r = ud__maps_open(&maps, (int)ud__sys(__NR_getpid));
    if (r < 0)
        return -ENOMEM;
    r = ud__maps_refresh(&maps);
    for (uint64_t at = start; r == 0 && at < end && ud__maps_find(&maps, at, &v) == 0 && v.start < end; at = v.end)
        r = ud__region_mark(v.start > start ? v.start : start, v.end < end ? v.end : end, kind);
    ud__maps_close(&maps);
    return r;
}

int ud_advise(void *addr, size_t len, int advice)
{
    uint64_t start = ((uint64_t)addr + ud__page - 1) & ~(uint64_t)(ud__page - 1);
    uint64_t end = ((uint64_t)addr + len) & ~(uint64_t)(ud__page - 1);
    if (advice != MERGEABLE && advice != UNMERGEABLE)
        return -EINVAL;
    if (start >= end)
        return 0; /* no whole page in it */
    int kind = advice == MERGEABLE ? UD__REG_MERGE : UD__REG_KEEP_OUT;
    int hole = ud__sys(__NR_msync, start, end - start, MS_ASYNC) == -ENOMEM;
    int r = hole ? mark_mapped(start, end, kind) : ud__region_mark(start, end, kind);
    if (r == 0 && advice == UNMERGEABLE && ud__merged_any(start, end))
        r = ud__unmerge_range(start, end);
    if (r)
        return r;
    if (advice == MERGEABLE && ud__a.socket[0])
        ud__agent_start();
    return hole ? -ENOMEM : 0;
}

/* ---- the whole process, as PR_SET_MEMORY_MERGE --------------------------------------------------------------
 *
 * The kernel's own flag is set along with ours: it alone outlives exec, and whatever else the program asks about it (smaps,
 * ksm_merging_pages) is answered. A kernel before 6.4 has none: then a variable in the environment carries it over. */

#define CARRIER "UDEDUP_MEMORY_MERGE"
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

void ud__memory_merge_init(void)
{
    const char *carried = getenv(CARRIER);
    if (ud__sys(__NR_prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1 || (carried && carried[0] == '1'))
        atomic_store(&ud__a.merge_any, UD__MERGE_ALL);
}

static void tell_kernel(int on)
{
    if (ud__sys(__NR_prctl, PR_SET_MEMORY_MERGE, on, 0, 0, 0) != -EINVAL)
        return;
    if (on)
        setenv(CARRIER, "1", 1);
    else
        unsetenv(CARRIER);
}

int ud_memory_merge_set(int on)
{
    int before = atomic_load(&ud__a.merge_any);
    if (on) {
        atomic_store(&ud__a.merge_any, UD__MERGE_ALL);
        atomic_fetch_add(&ud__region_gen, 2); /* the agent looks at what it passed by */
        tell_kernel(1);
        if (ud__a.socket[0])
            ud__agent_start();
        return 0;
    }
    if (before != UD__MERGE_ALL && ud__advised_only()) /* as the kernel: advised memory stays merged then */
        return 0;
    atomic_store(&ud__a.merge_any, UD__MERGE_ADVISED); /* before the rest: a batch asks in its hold */
    ud__region_drop_merge();
    int r = ud__unmerge_range(0, 1ull << 47);
    if (r == 0)
        tell_kernel(0);
    else
        atomic_store(&ud__a.merge_any, before);
    return r;
}

int ud_memory_merge_get(void) { return atomic_load(&ud__a.merge_any) == UD__MERGE_ALL; }

int ud_preloaded(void) { return ud__a.preloaded; }
