/* heat.c: how long memory must have been left alone before it is merged, by what merging it was worth so far.
 *
 * A merged page that is written costs a copy, and the merge was for nothing if it comes soon. So each block of the ledger has
 * a heat: a page that splits within SOON seconds of its merge raises it, one that lasted longer lowers it, and so
 * does time. Pages of a block of heat h that change stay volatile for 2^h seconds instead of the usual one or two.
 *
 *   flags of a block head   0 young | 1-3 heat | 4-17 second of the last merge | 18-31 not merged before this second
 *
 * Guarantees: no page waits longer than 2^HEAT_MAX seconds; blocks that never split soon wait no longer than before.
 * Fails: never. Seconds count modulo 2^14: a block that was left alone for hours may be held back once for nothing.
 */
#include "pass.h"

#define SOON 8u /* seconds */
#define HEAT_MAX 6u
#define SECONDS 0x3fffu

static uint32_t second(void) { return (uint32_t)(ud__now_us() / 1000000) & SECONDS; }

static uint32_t heat_of(uint32_t flags) { return flags >> 1 & 7; }

static uint32_t since(uint32_t now, uint32_t then) { return (now - then) & SECONDS; }

static uint32_t pack(uint32_t flags, uint32_t heat, uint32_t merged, uint32_t until)
{
    return (flags & UD__BLOCK_YOUNG) | heat << 1 | (merged & SECONDS) << 4 | (until & SECONDS) << 18;
}

void ud__heat_merged(uint64_t vaddr, uint64_t pages)
{
    uint64_t end = vaddr + (pages << ud__page_shift);
    uint32_t now = second();
    for (uint64_t at = vaddr & ~(ud__block_bytes() - 1); at < end; at += ud__block_bytes()) {
        int64_t block = ud__ledger_block(&ud__a.ledger, at, 0);
        if (block < 0)
            continue;
        uint32_t *flags = &ud__a.ledger.heads[block].flags, heat = heat_of(*flags);
        /* what it waited for is over: each doubling of that time without a split takes one step back */
        if (heat && since(now, *flags >> 18) >= 2u << heat && since(now, *flags >> 18) < SECONDS / 2)
            heat--;
        *flags = pack(*flags, heat, now, *flags >> 18);
    }
}

void ud__heat_split(uint64_t page)
{
    int64_t block = ud__ledger_block(&ud__a.ledger, page, 0);
    if (block < 0)
        return;
    uint32_t *flags = &ud__a.ledger.heads[block].flags, heat = heat_of(*flags), now = second();
    uint32_t until = *flags >> 18;
    if (heat && since(until, now) && since(until, now) <= 1u << HEAT_MAX)
        return; /* raised already by a page beside it */
    if (since(now, *flags >> 4) < SOON)
        heat = heat < HEAT_MAX ? heat + 1 : heat;
    else
        heat = heat ? heat - 1 : 0;
    if (heat)
        *flags = pack(*flags, heat, *flags >> 4, now + (1u << heat));
    else
        *flags = pack(*flags, 0, *flags >> 4, now);
}

int ud__heat_holds(uint32_t flags)
{
    uint32_t left = since(flags >> 18, second());
    return heat_of(flags) && left && left <= 1u << HEAT_MAX;
}
