/* procfs.c: what the files of /proc say, without stdio.
 *
 * Guarantees: async-signal-safe, nothing is kept open; texts end with a NUL.
 * Fails: -errno of open or read; NULL, or "" for a field, where the text does not have it.
 */
#include <fcntl.h>

#include "internal.h"

long ud__read_task(int taskfd, int tid, const char *file, char *buf, size_t cap)
{
    char path[48], *end = path + sizeof path;
    char *at = ud__put_dec(path, end, (uint64_t)tid);
    at = ud__put_str(at, end, "/");
    ud__put_str(at, end, file);
    long fd = ud__sys(__NR_openat, taskfd, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fd;
    long n = ud__sys(__NR_read, fd, buf, cap - 1);
    ud__sys(__NR_close, fd);
    buf[n > 0 ? n : 0] = 0;
    return n;
}

static const char *after(const char *s, const char *key)
{
    while (*key && *s == *key)
        s++, key++;
    return *key || (*s != ' ' && *s != '\t' && *s != ':') ? NULL : s;
}

const char *ud__line_value(const char *text, const char *key)
{
    for (const char *s = text; *s;) {
        const char *value = after(s, key);
        if (value) {
            while (*value == ' ' || *value == '\t' || *value == ':')
                value++;
            return value;
        }
        while (*s && *s++ != '\n')
            ;
    }
    return NULL;
}

uint64_t ud__line_number(const char *text, const char *key)
{
    const char *s = ud__line_value(text, key);
    return s ? ud__get_dec(&s) : 0;
}

const char *ud__stat_field(const char *text, int field)
{
    const char *s = text, *name_end = text;
    for (; *s; s++)
        if (*s == ')')
            name_end = s;
    s = name_end + 2;
    for (int at = 3; at < field && *s; s++)
        at += *s == ' ';
    return s;
}
