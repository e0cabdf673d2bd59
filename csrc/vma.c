/* vma.c: the mappings of this process, by PROCMAP_QUERY or by reading maps.
 *
 * Guarantees: raw system calls only; one descriptor, opened in the caller's own table. With
 * PROCMAP_QUERY (6.11+) an answer is of this moment; without it, of the last ud__maps_refresh, which a
 * holder calls once everybody is held.
 * Fails: -ENOENT above the last mapping, -ENOMEM, or what open says where /proc is not mounted.
 */
#include <fcntl.h>
#include <sys/ioctl.h>

#include "internal.h"
#include "trap.h"

struct procmap_query { /* linux/fs.h of 6.11 */
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
    uint64_t vma_name_addr, build_id_addr;
};
#define PROCMAP_QUERY_IOCTL _IOWR('f', 17, struct procmap_query)
#define QUERY_SHARED 0x08
#define QUERY_COVERING_OR_NEXT 0x10
#define QUERY_FILE_BACKED 0x20

static int query(int fd, uint64_t addr, struct ud__vma *out)
{
    struct procmap_query q = {.size = sizeof q, .query_addr = addr};
    q.query_flags = QUERY_COVERING_OR_NEXT;
    long r = ud__sys(__NR_ioctl, fd, PROCMAP_QUERY_IOCTL, &q);
    if (r < 0)
        return (int)r;
    out->start = q.vma_start;
    out->end = q.vma_end;
    out->offset = q.vma_offset;
    out->inode = q.inode;
    out->flags = (uint32_t)q.vma_flags & 15;
    out->dev = q.dev_major << 20 | q.dev_minor;
    if (q.vma_page_size != ud__page && q.vma_page_size)
        out->flags |= UD__VMA_SHARED; /* hugetlb: as good as foreign */
    return 0;
}

/* The shared file mapping at or above *at: its name (cut to cap), and *at moves past it. 0, -ENOENT above the last, -errno. */
int ud__maps_next_shared(struct ud__maps *m, uint64_t *at, char *name, size_t cap)
{
    struct procmap_query q = {.size = sizeof q, .query_addr = *at};
    q.query_flags = QUERY_COVERING_OR_NEXT | QUERY_SHARED | QUERY_FILE_BACKED;
    q.vma_name_addr = (uint64_t)name;
    q.vma_name_size = (uint32_t)cap;
    name[0] = 0;
    long r = ud__sys(__NR_ioctl, m->fd, PROCMAP_QUERY_IOCTL, &q);
    if (r == -ENAMETOOLONG) { /* a path, so no ring: ask again without it */
        q.vma_name_addr = q.vma_name_size = 0;
        r = ud__sys(__NR_ioctl, m->fd, PROCMAP_QUERY_IOCTL, &q);
    }
    if (r < 0)
        return (int)r;
    *at = q.vma_end;
    return 0;
}

/* "start-end rwxp offset major:minor inode path": one line, or NULL if it is not whole. */
static const char *parse_line(const char *s, struct ud__vma *v)
{
    v->start = ud__get_hex(&s);
    s++;
    v->end = ud__get_hex(&s);
    s++;
    v->flags = (s[0] == 'r' ? UD__VMA_R : 0) | (s[1] == 'w' ? UD__VMA_W : 0) | (s[2] == 'x' ? UD__VMA_X : 0) |
               (s[3] == 's' ? UD__VMA_SHARED : 0);
    s += 5;
    v->offset = ud__get_hex(&s);
    s++;
    uint64_t major = ud__get_hex(&s);
    s++;
    uint64_t minor = ud__get_hex(&s);
    s++;
    v->inode = ud__get_dec(&s);
    v->dev = (uint32_t)(major << 20 | minor);
    while (*s && *s != '\n')
        s++;
    return *s ? s + 1 : NULL;
}

static int list_grow(struct ud__maps *m)
{
    size_t cap = m->cap ? m->cap * 2 : 2048;
    struct ud__vma *list = ud__alloc(cap * sizeof *list);
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < m->count; i++)
        list[i] = m->list[i];
    ud__free(m->list, m->cap * sizeof *list);
    m->list = list;
    m->cap = cap;
    return 0;
}

/* Read-only by our own doing: to the program, and to all of us, it is writable. The kernel may have made one mapping of such
 * pages and of the program's own read-only ones: what counts is the part around addr. */
static void see_through_the_trap(struct ud__vma *v, uint64_t addr)
{
    uint32_t kind = v->flags & (UD__VMA_R | UD__VMA_W | UD__VMA_X | UD__VMA_SHARED);
    if (kind != UD__VMA_R || !atomic_load(&ud__trap_on))
        return;
    uint64_t at = addr > v->start ? addr & ~(uint64_t)(ud__page - 1) : v->start;
    int held = ud__trap_held(at);
    if (at > v->start && held != ud__trap_held(at - ud__page)) {
        v->offset += at - v->start;
        v->start = at;
    }
    v->end = ud__trap_edge(at, v->end);
    v->flags |= held ? UD__VMA_W : 0;
}

static int has_newline(const char *s, const char *end)
{
    while (s < end)
        if (*s++ == '\n')
            return 1;
    return 0;
}

int ud__maps_refresh(struct ud__maps *m)
{
    if (m->query)
        return 0;
    char buf[8192];
    size_t fill = 0;
    m->count = 0;
    ud__sys(__NR_lseek, m->fd, 0, 0);
    for (;;) {
        long r = ud__sys(__NR_read, m->fd, buf + fill, sizeof buf - 1 - fill);
        if (r < 0)
            return (int)r;
        if (r == 0)
            return 0;
        fill += (size_t)r;
        buf[fill] = 0;
        const char *s = buf;
        while (has_newline(s, buf + fill)) {
            struct ud__vma v;
            s = parse_line(s, &v);
            if (m->count == m->cap && list_grow(m))
                return -ENOMEM;
            m->list[m->count++] = v;
        }
        size_t rest = (size_t)(buf + fill - s);
        __builtin_memmove(buf, s, rest);
        fill = rest;
    }
}

int ud__maps_open(struct ud__maps *m, int pid)
{
    char path[64], *end = path + sizeof path;
    char *at = ud__put_str(path, end, "/proc/");
    at = ud__put_dec(at, end, (uint64_t)pid);
    ud__put_str(at, end, "/maps");
    m->list = NULL;
    m->count = m->cap = 0;
    m->fd = (int)ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (m->fd < 0)
        return m->fd;
    struct ud__vma v;
    m->query = query(m->fd, 0, &v) == 0;
    return 0;
}

void ud__maps_close(struct ud__maps *m)
{
    if (m->fd >= 0)
        ud__sys(__NR_close, m->fd);
    m->fd = -1;
    ud__free(m->list, m->cap * sizeof *m->list);
    m->list = NULL;
    m->cap = m->count = 0;
}

int ud__maps_find(struct ud__maps *m, uint64_t addr, struct ud__vma *out)
{
    if (m->query) {
        int r = query(m->fd, addr, out);
        if (r == 0)
            see_through_the_trap(out, addr);
        return r;
    }
    size_t lo = 0, hi = m->count;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (m->list[mid].end <= addr)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == m->count)
        return -ENOENT;
    *out = m->list[lo];
    see_through_the_trap(out, addr);
    return 0;
}

uint64_t ud__mapped_sizes(void)
{
    char buf[128];
    uint64_t sum = 0;
    const char *at = buf;
    if (ud__read_fd(ud__a.statmfd, buf, sizeof buf) <= 0)
        return 0;
    for (int field = 1; field <= 6; field++) { /* statm: 1 is the whole, 6 writable private memory */
        uint64_t pages = ud__get_dec(&at);
        if (field == 1 || field == 6)
            sum = (sum + pages) * 0x9e3779b97f4a7c15ull;
        at += *at == ' ';
    }
    return sum;
}

int ud__vma_is_segment(const struct ud__vma *v)
{
    return v->inode && !(v->flags & UD__VMA_SHARED) && ud__segment_device(v->dev) && ud__inode_known(v->inode);
}

int ud__vma_plain(const struct ud__vma *v)
{
    uint32_t rw = UD__VMA_R | UD__VMA_W;
    return (v->flags & (rw | UD__VMA_X | UD__VMA_SHARED)) == rw && (v->inode == 0 || ud__vma_is_segment(v));
}

/* Files that this process runs code from. Only their private data pages are merged: other private file mappings
 * promise SIGBUS after a truncation, which a segment would not keep. */
#define PROGRAMS_MAX 2048 /* power of two */
static _Atomic uint64_t programs[PROGRAMS_MAX];

static uint64_t file_name(const struct ud__vma *v) { return (v->inode ^ (uint64_t)v->dev << 36) | 1ull << 63; }

static int program_at(uint64_t name, int learn)
{
    size_t i = (size_t)(name * 0x9e3779b97f4a7c15ull >> 45) & (PROGRAMS_MAX - 1);
    for (size_t n = 0; n < PROGRAMS_MAX; n++, i = (i + 1) & (PROGRAMS_MAX - 1)) {
        uint64_t known = atomic_load_explicit(&programs[i], memory_order_relaxed);
        if (known == name)
            return 1;
        if (known == 0) {
            if (learn)
                atomic_store(&programs[i], name);
            return learn;
        }
    }
    return 0;
}

void ud__vma_learn(const struct ud__vma *v)
{
    if (v->flags & UD__VMA_X && v->inode && !(v->flags & (UD__VMA_SHARED | UD__VMA_W)))
        program_at(file_name(v), 1);
}

/* Relocated data of a program or library. */
static int library_data(const struct ud__vma *v)
{
    uint32_t kind = v->flags & (UD__VMA_R | UD__VMA_X | UD__VMA_SHARED);
    return kind == UD__VMA_R && v->inode && (ud__vma_is_segment(v) || program_at(file_name(v), 0));
}

int ud__vma_mergeable(const struct ud__vma *v) { return ud__vma_plain(v) || library_data(v); }
