/* argv.c: gives spawned Python workers command lines of one shape.
 *
 * multiprocessing writes a descriptor's number into each worker's command line:
 *     -c "from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=6, pipe_handle=8)"
 * Python copies the line into its heap and parses it first of all. A worker whose number has one digit less
 * allocates smaller blocks, everything after them lies elsewhere, and the worker shares almost nothing with
 * the others (measured: 6 % of its pages instead of 85 %). So the numbers are written as 0x0006, 0x0008.
 *
 * Guarantees: done once, before main, only in a pool with one layout (UDEDUP_STACK is set) and only to a
 * command line of exactly this kind; its meaning stays, and so does /proc/PID/cmdline.
 * Fails: a line that is longer, or has other numbers, is left alone.
 */
#include <string.h>


#define LINE_BYTES 256

static int is_digit(char c) { return c >= '0' && c <= '9'; }

/* Writes number as 0x and four digits. Returns the end. */
static char *put_hex(char *to, unsigned number)
{
    static const char digits[] = "0123456789abcdef";
    *to++ = '0';
    *to++ = 'x';
    for (int shift = 12; shift >= 0; shift -= 4)
        *to++ = digits[number >> shift & 15];
    return to;
}

/* Copies `from` to `to`, each number after '=' in four hex digits. 0, or -1 if one does not fit. */
static int reshape(const char *from, char *to, const char *end)
{
    while (*from) {
        if (to + 8 >= end)
            return -1;
        *to++ = *from++;
        if (to[-1] != '=' || !is_digit(*from))
            continue;
        unsigned number = 0;
        while (is_digit(*from) && number <= 0xffff)
            number = number * 10 + (unsigned)(*from++ - '0');
        if (number > 0xffff)
            return -1;
        to = put_hex(to, number);
    }
    *to = 0;
    return 0;
}

__attribute__((constructor)) static void reshape_command_line(int argc, char **argv, char **envp)
{
    static const char spawn[] = "from multiprocessing.spawn import spawn_main; spawn_main(";
    static char line[LINE_BYTES];
    int pooled = 0;
    for (; envp && *envp && !pooled; envp++)
        pooled = strncmp(*envp, "UDEDUP_STACK=", 13) == 0;
    for (int i = 1; pooled && argv && i + 1 < argc; i++)
        if (strcmp(argv[i], "-c") == 0) {
            if (strncmp(argv[i + 1], spawn, sizeof spawn - 1) == 0 &&
                reshape(argv[i + 1], line, line + sizeof line) == 0)
                argv[i + 1] = line;
            return;
        }
}
