/* locked.c: memory that carries a promise to the program, which a remap would break.
 *
 * Guarantees: ranges that are mlocked, DONTFORK, WIPEONFORK, DONTDUMP, device or hugetlb memory are marked
 * UD__REG_KEEP_OUT (regions.c), from smaps, which tells the flags of each mapping.
 * Fails: silently, where /proc says nothing: then the interposed madvise is what keeps such memory out.
 */
#include <fcntl.h>

#include "internal.h"

uint64_t ud__locked_kb(uint64_t *pinned_kb)
{
    char text[2048];
    *pinned_kb = 0;
    if (ud__read_fd(ud__a.statusfd, text, sizeof text) <= 0)
        return 0;
    *pinned_kb = ud__line_number(text, "VmPin");
    return ud__line_number(text, "VmLck");
}

uint64_t ud__locked_now(void)
{
    char text[2048];
    return ud__read_file("/proc/self/status", text, sizeof text) > 0 ? ud__line_number(text, "VmLck") : 0;
}

uint64_t ud__effective_uid(void)
{
    char text[2048];
    const char *s = ud__read_fd(ud__a.statusfd, text, sizeof text) > 0 ? ud__line_value(text, "Uid") : NULL;
    if (!s)
        return 0;
    ud__get_dec(&s); /* the real one */
    s++;
    return ud__get_dec(&s);
}

static int flag_keeps_out(const char *f)
{
    static const char flags[] = "lo dc wf dd io pf ht dw ss gd dp um ui";
    for (size_t i = 0; i < sizeof flags - 1; i += 3)
        if (f[0] == flags[i] && f[1] == flags[i + 1])
            return 1;
    return 0;
}

struct reading {
    uint64_t start, end;
    int plain; /* private and anonymous: the only mappings that need a mark */
};

/* One line of smaps: "start-end perms ..." opens a mapping, "VmFlags: ..." closes it. */
static void take_line(struct reading *r, const char *s)
{
    if ((*s >= '0' && *s <= '9') || (*s >= 'a' && *s <= 'f')) {
        r->start = ud__get_hex(&s);
        s++;
        r->end = ud__get_hex(&s);
        r->plain = s[1] == 'r' && s[2] == 'w' && s[4] == 'p' && !ud__own_overlaps(r->start, r->end);
    } else if (r->plain && __builtin_memcmp(s, "VmFlags:", 8) == 0) {
        for (s += 8; s[0] == ' ' && s[1] && s[1] != '\n'; s += 3)
            if (flag_keeps_out(s + 1)) {
                ud__region_mark(r->start, r->end, UD__REG_KEEP_OUT);
                return;
            }
    }
}

void ud__locked_mark(int pid)
{
    char path[48], *end = path + sizeof path;
    char *at = ud__put_str(path, end, "/proc/");
    at = ud__put_dec(at, end, (uint64_t)pid);
    ud__put_str(at, end, "/smaps");
    long fd = ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    char buf[8192], line[256];
    size_t fill = 0;
    struct reading r = {0};
    long n;
    while ((n = ud__sys(__NR_read, fd, buf, sizeof buf)) > 0)
        for (long i = 0; i < n; i++) {
            if (buf[i] != '\n') {
                if (fill < sizeof line - 1)
                    line[fill++] = buf[i];
                continue;
            }
            line[fill] = 0;
            take_line(&r, line);
            fill = 0;
        }
    ud__sys(__NR_close, fd);
}
