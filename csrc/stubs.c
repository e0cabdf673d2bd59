/* stubs.c: temporary weak definitions so that the library links until the real ones land.
 * Delete each function here in the commit that brings the real one. */
#include "udedup.h"

#include <errno.h>
#include <string.h>

#define UD_STUB UD_API __attribute__((weak))

UD_STUB void ud_digest_pages(const void *pages, size_t n, size_t page_size, const uint64_t key[2], uint64_t *out)
{
    const uint64_t *words = pages;
    for (size_t i = 0; i < n; i++) {
        uint64_t h = key[0];
        for (size_t w = 0; w < page_size / 8; w++)
            h = (h ^ *words++) * 0x9e3779b97f4a7c15ull + (h >> 29) + key[1];
        out[i] = h;
    }
}
UD_STUB const char *ud_digest_backend(void) { return "scalar"; }
UD_STUB int ud_digest_use(const char *name) { return strcmp(name, "scalar") ? -ENOTSUP : 0; }
UD_STUB int ud_equal(const void *a, const void *b, size_t n) { return memcmp(a, b, n) == 0; }
UD_STUB int ud_is_zero(const void *page, size_t n)
{
    const unsigned char *p = page;
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}
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
