/* base.c: clock, memory and text for code that runs without libc.
 *
 * Guarantees: async-signal-safe; the agent's memory is MADV_DONTFORK and listed, so that it is neither
 * inherited nor merged.
 * Fails: ud__alloc gives NULL; the list of own ranges is bounded, and a full list makes ud__alloc fail.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>

#include "internal.h"

#ifdef UD_TEST
UD_HIDDEN uint64_t ud__guards_off;
UD_HIDDEN uint64_t ud__gap_us;

void ud__test_gap(void)
{
    if (ud__gap_us)
        ud__sleep_us(ud__gap_us);
}
#endif

UD_HIDDEN size_t ud__page = 4096;
UD_HIDDEN unsigned ud__page_shift = 12;

#define HINT_START 0x200000000000ull
#define HINT_END 0x400000000000ull
#define OWN_MAX 512
static struct own {
    _Atomic uint64_t start, end;
} own[OWN_MAX];
static atomic_int own_high; /* slots beyond were never used */

void ud__base_init(void)
{
    extern unsigned long getauxval(unsigned long);
    size_t p = getauxval(6 /* AT_PAGESZ */);
    if (p >= 4096 && (p & (p - 1)) == 0)
        ud__page = p;
    ud__page_shift = (unsigned)__builtin_ctzl(ud__page);
}

uint64_t ud__now_us(void)
{
    struct timespec t;
    ud__sys(__NR_clock_gettime, CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void ud__sleep_us(uint64_t us)
{
    struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    ud__sys(__NR_nanosleep, &t, 0);
}

void ud__own_add(const void *p, size_t bytes)
{
    for (int i = 0; i < OWN_MAX; i++) {
        uint64_t none = 0;
        if (atomic_compare_exchange_strong(&own[i].start, &none, (uint64_t)p)) {
            atomic_store(&own[i].end, (uint64_t)p + bytes);
            int high = atomic_load(&own_high);
            while (high <= i && !atomic_compare_exchange_weak(&own_high, &high, i + 1)) {
            }
            return;
        }
    }
}

void ud__own_del(const void *p)
{
    for (int i = 0; i < OWN_MAX; i++)
        if (atomic_load(&own[i].start) == (uint64_t)p) {
            atomic_store(&own[i].end, 0);
            atomic_store(&own[i].start, 0);
            return;
        }
}

int ud__own_overlaps(uint64_t start, uint64_t end)
{
    for (int i = 0, n = atomic_load_explicit(&own_high, memory_order_acquire); i < n; i++) {
        uint64_t e = atomic_load(&own[i].end);
        if (e && atomic_load(&own[i].start) < end && start < e)
            return 1;
    }
    return 0;
}

void ud__own_reset(void)
{
    for (int i = 0; i < OWN_MAX; i++) {
        atomic_store(&own[i].end, 0);
        atomic_store(&own[i].start, 0);
    }
}

uint64_t ud__hint(size_t bytes)
{
    static _Atomic uint64_t next = HINT_START;
    uint64_t step = (bytes + 2 * ud__page - 1) & ~(uint64_t)(ud__page - 1); /* a gap: mappings do not join */
    uint64_t at = atomic_fetch_add(&next, step);
    if (at > HINT_END)
        atomic_store(&next, HINT_START);
    return at;
}

long ud__memfd(const char *name)
{
    unsigned flags = 1 /* MFD_CLOEXEC */ | 2 /* MFD_ALLOW_SEALING */;
    long fd = ud__sys(__NR_memfd_create, name, flags | 8 /* MFD_NOEXEC_SEAL */);
    return fd == -EINVAL ? ud__sys(__NR_memfd_create, name, flags) : fd; /* before Linux 6.3 */
}

void *ud__alloc(size_t bytes)
{
    bytes = (bytes + ud__page - 1) & ~(ud__page - 1);
    long p = ud__sys(__NR_mmap, ud__hint(bytes), bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ud__is_err(p))
        return NULL;
    ud__sys(__NR_madvise, p, bytes, MADV_DONTFORK);
    ud__own_add((void *)p, bytes);
    return (void *)p;
}

void ud__free(void *p, size_t bytes)
{
    if (!p)
        return;
    bytes = (bytes + ud__page - 1) & ~(ud__page - 1);
    ud__own_del(p);
    ud__sys(__NR_munmap, p, bytes);
}

void ud__empty(void *p, size_t bytes)
{
    if (p)
        ud__sys(__NR_madvise, p, (bytes + ud__page - 1) & ~(ud__page - 1), MADV_DONTNEED);
}

char *ud__put_str(char *at, const char *end, const char *s)
{
    while (*s && at < end - 1)
        *at++ = *s++;
    *at = 0;
    return at;
}

char *ud__put_dec(char *at, const char *end, uint64_t v)
{
    char digits[24];
    int n = 0;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    while (n && at < end - 1)
        *at++ = digits[--n];
    *at = 0;
    return at;
}

uint64_t ud__get_hex(const char **s)
{
    uint64_t v = 0;
    for (;; (*s)++) {
        char c = **s;
        if (c >= '0' && c <= '9')
            v = v << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            v = v << 4 | (uint64_t)(c - 'a' + 10);
        else
            return v;
    }
}

uint64_t ud__get_dec(const char **s)
{
    uint64_t v = 0;
    for (; **s >= '0' && **s <= '9'; (*s)++)
        v = v * 10 + (uint64_t)(**s - '0');
    return v;
}

long ud__read_fd(int fd, char *buf, size_t cap)
{
    size_t n = 0;
    while (n + 1 < cap) {
        long r = ud__sys(__NR_pread64, fd, buf + n, cap - 1 - n, n);
        if (r < 0 && n == 0)
            return r;
        if (r <= 0)
            break;
        n += (size_t)r;
    }
    buf[n] = 0;
    return (long)n;
}

long ud__read_file(const char *path, char *buf, size_t cap)
{
    long fd = ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long n = ud__read_fd((int)fd, buf, cap);
    ud__sys(__NR_close, fd);
    return n;
}

uint64_t ud__cpus(void)
{
    uint64_t mask[128] = {0}, cpus = 0;
    long n = ud__sys(__NR_sched_getaffinity, 0, sizeof mask, mask);
    for (long i = 0; i < n / 8; i++)
        cpus += (uint64_t)__builtin_popcountll(mask[i]);
    return cpus ? cpus : 1;
}
