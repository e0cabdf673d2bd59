/* The trap without agent and merger, to be preloaded into any program: tests protect memory as a merge would. */
#include "trap_support.h"

#define API __attribute__((visibility("default")))

static char owner[160];

__attribute__((constructor)) static void come_up(void)
{
    ud__base_init();
    ud__pyframe_resolve();
    if (getenv("TT_EARLY"))
        ud__sig_virtual_mask();
}

/* 0, or -errno; tt_owner tells why. */
API int tt_enable(void)
{
    return ud__trap_enable(NULL, owner, sizeof owner);
}

API int tt_owner_ok(void)
{
    return ud__trap_owner_ok(owner, sizeof owner);
}

API const char *tt_owner(void)
{
    return owner;
}

API int tt_merge(char *p, size_t pages)
{
    return merge(p, pages, 1);
}

API unsigned long tt_splits(void)
{
    return counts().splits;
}

API int tt_report(const char *path)
{
    return ud__splits_open(path);
}

API void tt_name_modules(void)
{
    ud__splits_name_modules();
}

API void tt_poke(char *p)
{
    *(volatile char *)p = 1;
}
