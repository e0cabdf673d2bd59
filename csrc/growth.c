/* growth.c: when a process has grown enough to be worth an agent.
 *
 * Private memory is counted where it passes by: mappings in the interposed mmap, the heap by its end. Below
 * the threshold there is no thread, no connection, nothing but the counting; while there is an agent nothing is counted.
 *
 * Guarantees: async-signal-safe. A forked child of a process with an agent gets its own, which does nothing for
 * UD__FORK_CALM_US: exec ends it before it has begun.
 * Fails: a heap that grows without malloc (raw brk) is not seen before the next mmap.
 */
#include "internal.h"

extern void *__curbrk __attribute__((weak));

UD_HIDDEN _Atomic uintptr_t ud__brk_trigger = UINTPTR_MAX;
static _Atomic int64_t mapped;
static uintptr_t brk_start;

int ud__in_heap(uint64_t addr)
{
    return &__curbrk && addr >= ud__a.heap_start && addr < (uint64_t)__curbrk;
}

void ud__growth_init(uint64_t threshold)
{
    ud__a.threshold = threshold;
    brk_start = (uintptr_t)ud__sys(__NR_brk, 0);
    if (!ud__a.disabled && ud__a.socket[0] && !ud__advised_only())
        atomic_store(&ud__brk_trigger, brk_start + threshold);
}

static void start(void)
{
    atomic_store(&ud__brk_trigger, UINTPTR_MAX);
    ud__agent_start();
}

void ud__growth_check(void)
{
    if (ud__a.disabled || ud__advised_only() || !ud__a.socket[0] || atomic_load(&ud__a.state) != UD__AGENT_NONE)
        return;
    uintptr_t end = &__curbrk ? (uintptr_t)__curbrk : 0;
    int64_t heap = end > brk_start ? (int64_t)(end - brk_start) : 0;
    if (heap + atomic_load(&mapped) >= (int64_t)ud__a.threshold)
        start();
}

void ud__note_growth(int64_t bytes)
{
    if (atomic_load_explicit(&ud__a.state, memory_order_relaxed) != UD__AGENT_NONE)
        return;
    int64_t now = atomic_fetch_add_explicit(&mapped, bytes, memory_order_relaxed) + bytes;
    if (bytes > 0 && UD_UNLIKELY(now >= (int64_t)ud__a.threshold / 2))
        ud__growth_check();
}

void ud__growth_forked(void)
{
    ud__a.calm_us = UD__FORK_CALM_US;
    start();
}
