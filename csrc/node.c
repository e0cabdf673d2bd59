/* node.c: the NUMA node of pages, for merge_across_nodes 0: only pages of one node are merged with each other.
 *
 * The node goes into the top bits of a page's digest (ledger.h), so that pages of different nodes never match: one index is as
 * good as one for each node. The planner reads it there and asks for segments of one node each; their publisher fills
 * them with its memory policy set to that node.
 *
 * Guarantees: a page whose node is not known is no candidate. A machine with one node asks nothing.
 * Fails: where move_pages(2) is refused (seccomp without CAP_SYS_NICE, several nodes) nothing is merged, and the cause says so.
 */
#include <sys/mman.h>

#include "internal.h"

#define BATCH 512u
#define POLICY_WORDS 16 /* 1024 nodes */
enum { MPOL_DEFAULT_ = 0, MPOL_PREFERRED_ = 1 };

static int several = -1; /* nodes are online; -1: not looked yet */

static int ask_kernel(const uint64_t *pages, size_t n, int *nodes)
{
    return (int)ud__sys(__NR_move_pages, 0, n, pages, 0, nodes, 0);
}

/* Replaced by tests that play several nodes on a machine with one. */
static int (*lookup)(const uint64_t *pages, size_t n, int *nodes) = ask_kernel;

#ifdef UD_TEST
static unsigned played_shift;

static int ask_address(const uint64_t *pages, size_t n, int *nodes)
{
    for (size_t i = 0; i < n; i++)
        nodes[i] = (int)(pages[i] >> played_shift & 1);
    return 0;
}

/* Two nodes that take turns, each 2^shift bytes of addresses. */
void ud__test_nodes(unsigned shift)
{
    played_shift = shift;
    lookup = ask_address;
    several = 1;
}
#endif

static int look_for_several(void)
{
    char buf[256] = "0";
    if (several < 0) {
        ud__read_file("/sys/devices/system/node/online", buf, sizeof buf);
        several = buf[0] != '0' || (buf[1] != '\n' && buf[1] != 0);
    }
    return several;
}

uint64_t ud__digest_mask(void) { return ud__a.knobs.merge_across_nodes ? ~0ull : UD_NODE_DIGEST; }

int ud__node_fold(const struct ud__range *r, size_t n, uint64_t *digests, uint8_t *gone)
{
    uint64_t pages[BATCH];
    int nodes[BATCH], refused = 0;
    size_t at = 0, done = 0;
    if (ud__a.knobs.merge_across_nodes)
        return 0;
    for (size_t k = 0; k < n; k++)
        for (uint64_t page = r[k].start; page < r[k].end; page += ud__page) {
            pages[at++] = page;
            if (at < BATCH && (k + 1 < n || page + ud__page < r[k].end))
                continue;
            __builtin_memset(nodes, 0, sizeof nodes);
            int bad = look_for_several() && lookup(pages, at, nodes) < 0;
            refused |= bad;
            for (size_t i = 0; i < at; i++, done++) {
                gone[done] |= bad || nodes[i] < 0 || nodes[i] >= (int)UD_NODES;
                digests[done] = UD_WITH_NODE(digests[done], nodes[i]);
            }
            at = 0;
        }
    return refused ? -EPERM : 0;
}

/* The agent's own allocations come from `node` from now on; `node` < 0: as before. */
void ud__node_prefer(int node)
{
    static int mode_before;
    static unsigned long mask_before[POLICY_WORDS];
    unsigned long mask[POLICY_WORDS] = {0};
    if (!look_for_several())
        return;
    if (node < 0) {
        ud__sys(__NR_set_mempolicy, mode_before, mode_before ? mask_before : 0, mode_before ? POLICY_WORDS * 64 : 0);
        return;
    }
    if (ud__sys(__NR_get_mempolicy, &mode_before, mask_before, POLICY_WORDS * 64, 0, 0) < 0)
        mode_before = MPOL_DEFAULT_;
    mask[node / 64] = 1ul << node % 64;
    ud__sys(__NR_set_mempolicy, MPOL_PREFERRED_, mask, POLICY_WORDS * 64);
}
