/* stacks.c: pages that a merge was refused for, as a stack or TLS was met in their mapping.
 *
 * One that is written again and again (by a thread that wakes every now and then) would be nominated again and again,
 * for a hold in vain each time, and a settle would wait for it without end.
 *
 * Guarantees: what is written there within KEPT_US is REFUSED once it keeps still, and so gets its next chance with the other
 * refused pages (age.c). Written in a hold, read by the agent, which started that hold.
 * Fails: only the last PLACES ranges are known; what was refused before them is nominated once more.
 */
#include "pass.h" /* the time of the pass: pages are asked about by the thousand */

#define PLACES 16u
#define KEPT_US 4000000u

static struct {
    uint64_t start, end, since_us;
} place[PLACES];
static uint32_t noted; /* so far */

void ud__stacks_note(uint64_t start, uint64_t end)
{
    uint32_t i = 0, n = noted < PLACES ? noted : PLACES;
    while (i < n && (place[i].start != start || place[i].end != end))
        i++;
    if (i == n)
        i = noted++ % PLACES;
    place[i].start = start;
    place[i].end = end;
    place[i].since_us = ud__now_us();
}

int ud__stacks_have(uint64_t page)
{
    for (uint32_t i = 0; i < PLACES && i < noted; i++)
        if (place[i].start <= page && page < place[i].end)
            return ud__pass.began_us < place[i].since_us + KEPT_US;
    return 0;
}

void ud__stacks_forked(void) { noted = 0; } /* the threads have stayed behind */
