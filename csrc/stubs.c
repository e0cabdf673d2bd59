/* stubs.c: temporary weak definitions so that the library links until the real ones land.
 * Delete each function here in the commit that brings the real one. */
#include "udedup.h"

#include <errno.h>

#define UD_STUB UD_API __attribute__((weak))

UD_STUB int ud_join(const char *socket_path, int regions_advised)
{
    (void)socket_path, (void)regions_advised;
    return -ENOSYS;
}
UD_STUB int ud_leave(void) { return -ENOENT; }
UD_STUB int ud_advise(void *addr, size_t len, int advice)
{
    (void)addr, (void)len, (void)advice;
    return -ENOSYS;
}
UD_STUB int ud_joined(void) { return 0; }
UD_STUB int ud_memory_merge_set(int on)
{
    (void)on;
    return -ENOSYS;
}
UD_STUB int ud_memory_merge_get(void) { return 0; }
UD_STUB const void *ud_ledger_address(void) { return NULL; }
UD_STUB int ud_preloaded(void) { return 0; }
