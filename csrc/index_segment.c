/* index_segment.c: segments of the store as the merger knows them: a name and a digest for each slot.
 *
 * Guarantees: only a memfd with all four seals is accepted, so its digests stay true and reading it
 * cannot fail; it is never mapped. A segment that was asked for is believed to hold what was asked for until somebody finds
 * other bytes in it: then it is read.
 * Fails: -EPERM without the seals, -EINVAL for a size that is no number of pages, -ENOMEM, -ENFILE.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "index_int.h"

#define ALL_SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static int check(struct ud_planner *p, int fd, struct stat *st)
{
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & ALL_SEALS) != ALL_SEALS)
        return -EPERM;
    if (fstat(fd, st) != 0)
        return -errno;
    uint64_t pages = (uint64_t)st->st_size / p->page_size;
    if (!st->st_ino || !pages || st->st_size % (off_t)p->page_size || pages > 1u << UD_SLOT_BITS)
        return -EINVAL;
    return 0;
}

/* Read into the cache, not mapped: half the cost. */
static int digest_slots(struct ud_planner *p, struct ud__segment *g, int fd)
{
    char pages[65536]; /* the largest page there is */
    uint32_t room = (uint32_t)(sizeof(pages) / p->page_size);
    for (uint32_t slot = 0, n; slot < g->npages; slot += n) {
        n = g->npages - slot < room ? g->npages - slot : room;
        ssize_t got = pread(fd, pages, n * p->page_size, (off_t)((uint64_t)slot * p->page_size));
        if (got != (ssize_t)(n * p->page_size))
            return got < 0 ? -errno : -EINVAL;
        ud_digest_pages(pages, n, p->page_size, p->conf.key, g->digests + slot);
    }
    for (uint32_t i = 0; p->conf.per_node && g->node && i < g->npages; i++)
        g->digests[i] = UD_WITH_NODE(g->digests[i], g->node - 1);
    return 0;
}

/* What the plan asked for, if it tells all of it. */
static bool take_promise(struct ud_planner *p, struct ud__segment *g, uint32_t sid, uint32_t number)
{
    const struct ud__plan *plan = ud__plan_find(p, sid, number);
    if (!plan || !plan->digests || plan->npages != g->npages)
        return false;
    for (uint32_t i = 0; i < g->npages; i++)
        if (!plan->digests[i])
            return false;
    memcpy(g->digests, plan->digests, (size_t)g->npages * 8);
    return g->promised = true;
}

static int learn(struct ud_planner *p, struct ud__segment *g, int fd, uint32_t sid, uint32_t number)
{
    g->digests = malloc((size_t)g->npages * 8);
    g->map = calloc(g->npages / 64 + 1, 8);
    if (!g->digests || !g->map)
        return -ENOMEM;
    return take_promise(p, g, sid, number) ? 0 : digest_slots(p, g, fd);
}

static void index_slots(struct ud_planner *p, const struct ud__segment *g)
{
    for (uint32_t slot = 0; slot < g->npages; slot++)
        ud__index_put(p, g->digests[slot], (struct ud__ref){true, g->id, slot});
}

static void free_segment(struct ud__segment *g)
{
    free(g->digests);
    free(g->map);
    free(g->movers);
    free(g);
}

uint32_t ud_planner_find(struct ud_planner *p, uint64_t name)
{
    uint32_t *cached = &p->names[(name ^ name >> 10) % UD__NAMES];
    struct ud__segment *g = ud__segment(p, *cached);
    if (g && g->name == name)
        return *cached;
    for (uint32_t i = 1; i < p->segment_room; i++)
        if (p->segments[i] && p->segments[i]->name == name)
            return *cached = i;
    return 0;
}

static int free_id(struct ud_planner *p)
{
    for (uint32_t i = 1; i < p->segment_room; i++)
        if (!p->segments[i])
            return (int)i;
    uint32_t id = p->segment_room ? p->segment_room : 1;
    if (id >= UD__MAX_IDS)
        return -ENFILE;
    int error = ud__grow((void **)&p->segments, &p->segment_room, id + 1, sizeof(*p->segments));
    return error ? error : (int)id;
}

int ud_planner_segment(struct ud_planner *p, int fd, uint32_t node, uint32_t sid, uint32_t plan, uint64_t *name)
{
    struct stat st;
    int error = check(p, fd, &st);
    if (error)
        return error;
    *name = st.st_ino;
    int known = (int)ud_planner_find(p, st.st_ino);
    if (known)
        return known;
    int id = free_id(p);
    if (id < 0)
        return id;
    struct ud__segment *g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    *g = (struct ud__segment){.id = (uint32_t)id, .name = st.st_ino, .npages = (uint32_t)((uint64_t)st.st_size / p->page_size), .node = node};
    error = learn(p, g, fd, sid, plan);
    if (error) {
        free_segment(g);
        return error;
    }
    p->segments[id] = g;
    p->attached++;
    index_slots(p, g);
    return id;
}

int ud_planner_verify(struct ud_planner *p, uint32_t gid, int fd)
{
    struct ud__segment *g = ud__segment(p, gid);
    if (!g)
        return -ENOENT;
    if (!g->promised)
        return 0;
    g->promised = false;
    int error = digest_slots(p, g, fd);
    if (!error)
        index_slots(p, g);
    return error ? error : 1;
}

int ud_planner_drop(struct ud_planner *p, uint32_t gid)
{
    struct ud__segment *g = ud__segment(p, gid);
    if (!g)
        return -ENOENT;
    if (g->plans)
        return -EBUSY;
    p->segments[gid] = NULL;
    ud__paid_back(p, g);
    free_segment(g);
    return 0;
}

int ud_planner_segment_info(struct ud_planner *p, uint32_t gid, uint32_t *npages, uint32_t *used, uint64_t *name)
{
    struct ud__segment *g = ud__segment(p, gid);
    if (!g)
        return -ENOENT;
    *npages = g->npages;
    *used = g->used;
    *name = g->name;
    return 0;
}
