/* writable.c: ranges the program keeps open, so that a system call may write into them in trap mode.
 *
 * Guarantees: from the return of ud_writable_open to ud_writable_close no batch closes the range; opening and
 * closing windows exclude each other as in trap.c: the range is said first, then windows are waited for.
 * Async-signal-safe; works without an agent, and before one.
 * Fails: -errno of mprotect. Beyond 128 ranges at a time all batches wait.
 */
#include "internal.h"
#include "trap.h"

#define OPEN_MAX 128
#define NOTHING (OPEN_MAX + 2) /* token of an empty range */

static struct {
    _Atomic uint64_t start, end;
} held_open[OPEN_MAX];
static atomic_int held_open_all; /* those that found no slot */


int ud_writable_open(void *addr, size_t len)
{
    uint64_t start = (uint64_t)addr & ~(uint64_t)(ud__page - 1);
    uint64_t end = ((uint64_t)addr + len + ud__page - 1) & ~(uint64_t)(ud__page - 1);
    int token = 0;
    if (!len)
        return NOTHING;
    while (token < OPEN_MAX) {
        uint64_t none = 0;
        if (atomic_compare_exchange_strong(&held_open[token].start, &none, start)) {
            atomic_store(&held_open[token].end, end);
            break;
        }
        token++;
    }
    if (token == OPEN_MAX)
        atomic_fetch_add(&held_open_all, 1);
    int r = ud__trap_open(start, end);
    if (r)
        ud_writable_close(token + 1);
    return r ? r : token + 1;
}

int ud_writable_close(int token)
{
    if (token == NOTHING)
        return 0;
    if (token < 1 || token > OPEN_MAX + 1)
        return -EINVAL;
    if (token == OPEN_MAX + 1) {
        atomic_fetch_sub(&held_open_all, 1);
        return 0;
    }
    atomic_store(&held_open[token - 1].end, 0);
    atomic_store(&held_open[token - 1].start, 0);
    return 0;
}

int ud__writable_any(uint64_t start, uint64_t end)
{
    if (atomic_load(&held_open_all))
        return 1;
    for (int i = 0; i < OPEN_MAX; i++) {
        uint64_t from = atomic_load(&held_open[i].start), to = atomic_load(&held_open[i].end);
        if (from && from < end && (!to || start < to)) /* no end yet: it is just being opened */
            return 1;
    }
    return 0;
}
