/* nodes.c: four areas of 2 MiB with the same contents, one after another. Waits for a line on its standard input, then prints
 * the inodes that each area maps, a line each.
 */
#include "hz.h"

#define AREA (2ul << 20)

static void print_inodes(unsigned long start, unsigned long end)
{
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to, inode;
        CHECK(sscanf(line, "%lx-%lx %*s %*x %*s %lu", &from, &to, &inode) == 3);
        if (inode && from < end && to > start)
            printf("%lu ", inode);
    }
    fclose(maps);
    puts("");
}

int main(void)
{
    char *p = mmap(NULL, 6 * AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    p = (char *)(((uintptr_t)p + AREA - 1) & ~(AREA - 1));
    for (int i = 0; i < 4; i++)
        fill(p + (size_t)i * AREA, AREA / PAGE, 1);
    madvise(p, 4 * AREA, 12);
    puts("ready");
    fflush(stdout);
    getchar();
    for (int i = 0; i < 4; i++)
        print_inodes((unsigned long)p + (unsigned long)i * AREA, (unsigned long)p + (unsigned long)(i + 1) * AREA);
    return 0;
}
