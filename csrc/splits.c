/* splits.c: who splits: a table of places that write to protected pages, with counts.
 *
 * Guarantees: recording is lock-free and async-signal-safe: two system calls at most, no allocation. Every split is
 * counted; a new place beyond the table's UD_SPLIT_SITES is counted as lost. The file is wholly allocated when it
 * is made, so writing to it cannot raise SIGBUS; 0600, in the domain's directory.
 * Fails: without a file (no path, disk full) the table is kept in memory, and no report can be read.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* REG_RIP */
#endif
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>

#include "internal.h"
#include "pyframe.h"
#include "splits.h"
#include "trap.h"

#define TABLE_BYTES (sizeof(struct ud_split_header) + UD_SPLIT_SITES * sizeof(struct ud_split_site))
#define DEAD_MAX 64
static struct ud_split_header *_Atomic table;

static struct ud_split_site *sites_of(struct ud_split_header *h)
{
    return (struct ud_split_site *)(h + 1);
}

static long map_table(int flags, long fd)
{
    return ud__sys(__NR_mmap, ud__hint(TABLE_BYTES), TABLE_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* Reports outlive their processes; beyond DEAD_MAX of them in a directory the rest goes. */
static void make_room(const char *path)
{
    char dir[160], buf[2048];
    size_t n = 0, slash = 0, dead = 0;
    for (; path[n] && n < sizeof dir - 1; n++)
        if ((dir[n] = path[n]) == '/')
            slash = n;
    dir[slash] = 0;
    long got, fd = ud__sys(__NR_openat, AT_FDCWD, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd >= 0 && (got = ud__sys(__NR_getdents64, fd, buf, sizeof buf)) > 0)
        for (long at = 0; at < got;) {
            const char *name = buf + at + 19, *s = name;
            uint16_t reclen;
            __builtin_memcpy(&reclen, buf + at + 16, 2);
            at += reclen;
            uint64_t pid = ud__get_dec(&s);
            if (pid && !*s && ud__sys(__NR_kill, pid, 0) == -ESRCH && ++dead > DEAD_MAX)
                ud__sys(__NR_unlinkat, fd, name, 0);
        }
    if (fd >= 0)
        ud__sys(__NR_close, fd);
}

static long map_file(const char *path)
{
    make_room(path);
    long fd = ud__sys(__NR_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return fd;
    long r = ud__sys(__NR_fallocate, fd, 0, 0, TABLE_BYTES);
    if (!r)
        r = map_table(MAP_SHARED, fd);
    ud__sys(__NR_close, fd);
    return r;
}

int ud__splits_open(const char *path)
{
    long p = path ? map_file(path) : -ENOENT;
    int result = path && ud__is_err(p) ? (int)p : 0;
    if (ud__is_err(p))
        p = map_table(MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    if (ud__is_err(p))
        return (int)p;
    struct ud_split_header *h = (struct ud_split_header *)p;
    ud__own_add(h, TABLE_BYTES);
    h->pid = (uint32_t)ud__sys(__NR_getpid);
    h->sites = UD_SPLIT_SITES;
    h->site_bytes = sizeof(struct ud_split_site);
    h->frames = UD_SPLIT_FRAMES;
    ud__read_file("/proc/self/comm", h->comm, sizeof h->comm);
    for (size_t i = 0; i < sizeof h->comm; i++)
        if (h->comm[i] == '\n')
            h->comm[i] = 0;
    __atomic_store_n(&h->magic, UD_SPLIT_MAGIC, __ATOMIC_RELEASE);
    /* The one before stays mapped: a handler may be in it. Forked children share it until they have their own. */
    atomic_store(&table, h);
    return result;
}

/* The last cap-1 characters; zero-terminated. */
static void copy_tail(char *to, size_t cap, const char *from, size_t len)
{
    size_t skip = len < cap ? 0 : len - (cap - 1);
    for (size_t i = skip; i < len; i++)
        to[i - skip] = from[i];
    to[len - skip] = 0;
}

static uint64_t mixed(uint64_t h, const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)s[i]) * 0x100000001b3ull;
    return (h ^ h >> 29) * 0xbf58476d1ce4e5b9ull;
}

static uint64_t instruction(const void *ucontext)
{
    const ucontext_t *uc = ucontext;
#if defined(__x86_64__)
    return (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
#else
    return uc->uc_mcontext.pc;
#endif
}

struct place {
    uint64_t ip, hash;
    char thread[16];
    struct ud__pyframe frames[UD_SPLIT_FRAMES];
    int nframes;
};

static void look(struct place *p, const void *ucontext)
{
    p->ip = instruction(ucontext);
    p->thread[0] = 0;
    ud__sys(__NR_prctl, PR_GET_NAME, p->thread);
    p->nframes = ud__pyframes(p->frames, UD_SPLIT_FRAMES);
    uint64_t h = mixed(p->ip * 0x9e3779b97f4a7c15ull, p->thread, sizeof p->thread);
    for (int i = 0; i < p->nframes; i++) {
        h = mixed(h + (uint64_t)p->frames[i].line, p->frames[i].file, p->frames[i].file_len);
        h = mixed(h, p->frames[i].func, p->frames[i].func_len);
    }
    p->hash = h ? h : 1;
}

static void fill(struct ud_split_site *s, const struct place *p)
{
    s->ip = p->ip;
    __builtin_memcpy(s->thread, p->thread, sizeof s->thread);
    for (int i = 0; i < p->nframes; i++) {
        s->frame[i].line = p->frames[i].line;
        copy_tail(s->frame[i].func, sizeof s->frame[i].func, p->frames[i].func, p->frames[i].func_len);
        copy_tail(s->frame[i].file, sizeof s->frame[i].file, p->frames[i].file, p->frames[i].file_len);
    }
    s->nframes = (uint32_t)p->nframes;
}

/* The site of a place, made if new; NULL when the table is full. */
static struct ud_split_site *site_of(struct ud_split_header *h, const struct place *p)
{
    struct ud_split_site *sites = sites_of(h);
    for (uint32_t i = 0; i < UD_SPLIT_SITES; i++) {
        struct ud_split_site *s = &sites[(p->hash + i) % UD_SPLIT_SITES];
        uint64_t none = 0;
        if (__atomic_compare_exchange_n(&s->hash, &none, p->hash, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            fill(s, p);
            __atomic_store_n(&s->state, UD_SPLIT_READY, __ATOMIC_RELEASE);
            return s;
        }
        if (none == p->hash)
            return s;
    }
    return NULL;
}

void ud__splits_record(uint64_t addr, const void *ucontext)
{
    struct ud_split_header *h = atomic_load(&table);
    struct place p;
    if (!h)
        return;
    look(&p, ucontext);
    struct ud_split_site *s = site_of(h, &p);
    __atomic_fetch_add(&h->total, 1, __ATOMIC_RELAXED);
    if (s) {
        __atomic_fetch_add(&s->count, 1, __ATOMIC_RELAXED);
        __atomic_store_n(&s->addr, addr & ~(uint64_t)(ud__page - 1), __ATOMIC_RELAXED);
    } else {
        __atomic_fetch_add(&h->lost, 1, __ATOMIC_RELAXED);
    }
}

/* ---- modules, later, in the agent -------------------------------------------------------------------- */

/* One line of maps: names the sites whose instruction lies in it. */
static int name_sites(const char *line, void *arg)
{
    struct ud_split_site *sites = sites_of(arg);
    const char *s = line;
    uint64_t start = ud__get_hex(&s);
    s++;
    uint64_t end = ud__get_hex(&s);
    if (s[3] != 'x')
        return 0;
    s += 6;
    uint64_t offset = ud__get_hex(&s);
    while (*s && *s != '/' && *s != '[')
        s++;
    for (uint32_t i = 0; i < UD_SPLIT_SITES; i++) {
        struct ud_split_site *site = &sites[i];
        if (__atomic_load_n(&site->state, __ATOMIC_ACQUIRE) != UD_SPLIT_READY || site->named || site->ip < start ||
            site->ip >= end)
            continue;
        size_t len = 0;
        while (s[len])
            len++;
        copy_tail(site->module, sizeof site->module, s, len);
        site->module_offset = site->ip - start + offset;
        __atomic_store_n(&site->named, 1, __ATOMIC_RELEASE);
    }
    return 0;
}

void ud__splits_name_modules(void)
{
    static uint64_t named_at;
    struct ud_split_header *h = atomic_load(&table);
    uint64_t total = h ? __atomic_load_n(&h->total, __ATOMIC_RELAXED) : 0;
    if (!total || total == named_at)
        return;
    named_at = total;
    ud__each_line("/proc/self/maps", name_sites, h);
}
