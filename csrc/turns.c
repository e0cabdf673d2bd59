/* turns.c: one agent fewer works at a time in a domain than there are CPUs; the others wait for their turn.
 *
 * Without it the holders of a pool that merges crowd out each other, and the threads that are to be held: a tick of the
 * scheduler (4 ms) for each that comes too late, in every hold.
 *
 * What holds nobody, the copy that is published or a segment that is mapped for comparison, is done beside the turns, by one
 * agent at a time; a first scan wherever there is room.
 *
 *   turns: a memfd from the merger. Byte i is locked by whom turn i belongs to (fcntl, so the kernel ends the turn of who
 *   dies), the byte behind the last turn by who works beside; its first word counts what ended, and wakes who waits.
 *
 * Guarantees: nobody waits longer than PATIENCE_US, whatever the others do (stopped, frozen, hostile): then it works without
 * a turn. Agent thread only.
 * Fails: without the file, or one that could shrink under us, everybody works when it likes.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "internal.h"

#define PATIENCE_US 50000u
#define TURN 1 /* futex bits */
#define BESIDE 2
#define OFFER_US 50u /* for who was woken to come before us */

static int turns_fd = -1, mine = -1, turns;
static int upto; /* what was asked for last: one of the turns, or whatever is free */
static atomic_uint *ended;

static int lock(int turn, short type)
{
    struct flock range = {.l_type = type, .l_whence = 0 /* SEEK_SET */, .l_start = turn, .l_len = 1};
    return (int)ud__sys(__NR_fcntl, turns_fd, F_SETLK, &range);
}

void ud__turns_close(void)
{
    if (ended)
        ud__sys(__NR_munmap, ended, ud__page);
    if (turns_fd >= 0)
        ud__sys(__NR_close, turns_fd);
    ud__turns_forked();
}

void ud__turns_forked(void)
{
    ended = NULL;
    turns_fd = mine = -1;
}

void ud__turns_use(int fd)
{
    ud__turns_close();
    turns_fd = fd;
    if (fd < 0)
        return;
    struct stat st;
    long p = -EPERM, seals = ud__sys(__NR_fcntl, fd, F_GET_SEALS);
    if (seals > 0 && seals & F_SEAL_SHRINK && ud__sys(__NR_fstat, fd, &st) == 0 && st.st_size >= (long)ud__page)
        p = ud__sys(__NR_mmap, ud__hint(ud__page), ud__page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ud__is_err(p)) {
        ud__turns_close();
        return;
    }
    ud__sys(__NR_madvise, p, ud__page, MADV_DONTFORK);
    ended = (atomic_uint *)p;
    int cpus = (int)ud__cpus();
    turns = cpus > 1 ? cpus - 1 : 1;
}

/* Waits for one of the bytes [from, to); those who wait for a turn and those who wait beside are woken apart. */
static void take(int from, int to)
{
    uint64_t now = ud__now_us(), until = now + PATIENCE_US;
    for (; now < until; now = ud__now_us()) {
        unsigned seen = atomic_load(ended);
        for (int i = from; i < to; i++)
            if (lock(i, F_WRLCK) == 0) {
                mine = i;
                return;
            }
        struct timespec ts = {(time_t)(until / 1000000), (long)(until % 1000000) * 1000};
        ud__sys(__NR_futex, ended, 9 /* FUTEX_WAIT_BITSET */, seen, &ts, 0, (from < turns ? TURN : 0) | (to > turns ? BESIDE : 0));
    }
}

/* How many waited. */
static long end_turn(void)
{
    int kind = mine < turns ? TURN : BESIDE;
    lock(mine, F_UNLCK);
    mine = -1;
    atomic_fetch_add(ended, 1);
    return ud__sys(__NR_futex, ended, 10 /* FUTEX_WAKE_BITSET */, 1, 0, 0, kind);
}

void ud__turn_give(void)
{
    if (mine >= 0)
        end_turn();
}

void ud__turn_take(void)
{
    if (mine == turns)
        ud__turn_give();
    upto = turns;
    if (ended && mine < 0)
        take(0, upto);
}

void ud__turn_any(void)
{
    upto = turns + 1;
    if (ended && mine < 0)
        take(0, upto);
}

void ud__turn_beside(void)
{
    if (ended && mine < 0)
        take(turns, turns + 1);
}

void ud__turn_offer(void)
{
    if (mine < 0)
        return;
    if (end_turn() > 0)
        ud__sleep_us(OFFER_US);
    take(0, upto);
}

void ud__turn_rest(uint64_t us)
{
    int had = mine >= 0;
    ud__turn_give();
    ud__sleep_us(us);
    if (had)
        ud__turn_take();
}
