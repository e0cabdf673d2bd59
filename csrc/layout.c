/* layout.c: gives the program about to be started the address layout of its pool.
 *
 * Guarantees: after ud_layout_apply(shift) the next exec maps everything at fixed addresses, with
 * the mmap base lowered by `shift` bytes; equal shifts give equal layouts. Both settings are
 * inherited over fork and exec.
 * Fails: -EPERM (or what seccomp says) where personality(2) is refused: nothing is changed then, and
 * the layout stays random. -EINVAL for a shift above the hard stack limit: the personality
 * is set, but the base is the unshifted one.
 */
#include "udedup.h"

#include <errno.h>
#include <sys/personality.h>
#include <sys/resource.h>

int ud_layout_apply(uint64_t shift)
{
    int now = personality(0xffffffff);
    if (now < 0 || personality((unsigned long)now | ADDR_NO_RANDOMIZE) < 0)
        return -errno;
    struct rlimit stack;
    if (getrlimit(RLIMIT_STACK, &stack) < 0)
        return -errno;
    /* The kernel leaves as much room for the stack as the soft limit says: with randomization
     * off, the mmap base is exactly that far below the top. */
    if (stack.rlim_max != RLIM_INFINITY && shift > stack.rlim_max)
        return -EINVAL;
    stack.rlim_cur = shift;
    return setrlimit(RLIMIT_STACK, &stack) < 0 ? -errno : 0;
}
