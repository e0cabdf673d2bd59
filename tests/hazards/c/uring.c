/* uring.c: io_uring writes into merged memory: reads in flight, and buffers that are registered (pinned). */
#include "hz.h"

#include <linux/io_uring.h>

#define N 16

static struct {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *maps[3];
    size_t sizes[3];
} ring;

static int ring_open(void)
{
    struct io_uring_params p = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, 8, &p);
    if (ring.fd < 0)
        return 0;
    size_t size = p.sq_off.array + p.sq_entries * 4, size2 = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *m = mmap(NULL, size > size2 ? size : size2, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    char *c = p.features & IORING_FEAT_SINGLE_MMAP
                  ? m
                  : mmap(NULL, size2, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
    CHECK(m != MAP_FAILED && c != MAP_FAILED);
    ring.sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd,
                     IORING_OFF_SQES);
    ring.sq_tail = (unsigned *)(m + p.sq_off.tail);
    ring.sq_mask = (unsigned *)(m + p.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(m + p.sq_off.array);
    ring.cq_head = (unsigned *)(c + p.cq_off.head);
    ring.cq_tail = (unsigned *)(c + p.cq_off.tail);
    ring.cq_mask = (unsigned *)(c + p.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(c + p.cq_off.cqes);
    ring.maps[0] = m, ring.sizes[0] = size > size2 ? size : size2;
    ring.maps[1] = c == m ? NULL : c, ring.sizes[1] = size2;
    ring.maps[2] = ring.sqes, ring.sizes[2] = p.sq_entries * sizeof(struct io_uring_sqe);
    return 1;
}

static void submit(uint8_t op, int fd, void *to, unsigned bytes)
{
    unsigned tail = *ring.sq_tail, at = tail & *ring.sq_mask;
    memset(&ring.sqes[at], 0, sizeof ring.sqes[at]);
    ring.sqes[at].opcode = op;
    ring.sqes[at].fd = fd;
    ring.sqes[at].addr = (uintptr_t)to;
    ring.sqes[at].len = bytes;
    ring.sq_array[at] = at;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    CHECK(syscall(SYS_io_uring_enter, ring.fd, 1, 0, 0, NULL, 0) == 1);
}

static int complete(void)
{
    while (__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) == *ring.cq_head)
        syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    int r = ring.cqes[*ring.cq_head & *ring.cq_mask].res;
    __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
    return r;
}

static void rounds(uint8_t op, int registered)
{
    if (!ring_open()) { /* seccomp, sysctl */
        puts("bad 0");
        return;
    }
    int fds[2], bad = 0;
    CHECK(pipe(fds) == 0);
    char *twin = map_alone(N + 8), *p = map_alone(N + 8), words[PAGE];
    if (registered) {
        struct iovec v = {p + 4 * PAGE, N * PAGE};
        int r = (int)syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &v, 1);
        if (r < 0) { /* RLIMIT_MEMLOCK */
            puts("bad 0");
            return;
        }
    }
    twin += 4 * PAGE;
    p += 4 * PAGE;
    fill(twin, N, 1);
    for (int i = 0; i < (under_udedup() ? 40 : 4); i++) {
        char *at = p + (size_t)(i % (N - 1)) * PAGE;
        fill(p, N, 1);
        memset(words, i + 1, sizeof words);
        submit(op, fds[0], at, PAGE); /* in flight: the pipe is empty */
        nap(0.03);                    /* long enough to be merged */
        CHECK(write(fds[1], words, PAGE) == (ssize_t)PAGE);
        CHECK(complete() == (int)PAGE);
        bad += memcmp(at, words, PAGE) != 0;
    }
    printf("bad %d\n", bad);
}

static void read_in_flight(void) { rounds(IORING_OP_READ, 0); }
static void registered_buffer(void) { rounds(IORING_OP_READ_FIXED, 1); }

/* No mapping tells of the ring, but its buffer is pinned, and filled in the end. */
static void unmapped_ring(void)
{
    int fds[2], bad = 0;
    CHECK(pipe(fds) == 0);
    char *twin = map_alone(N + 8), *p = map_alone(N + 8), words[PAGE];
    fill(twin + 4 * PAGE, N, 1);
    for (int i = 0; i < (under_udedup() ? 6 : 1); i++) {
        struct iovec v = {p + 4 * PAGE, N * PAGE};
        fill(p + 4 * PAGE, N, 1);
        if (!ring_open() || syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &v, 1) < 0)
            break; /* seccomp, sysctl, RLIMIT_MEMLOCK */
        memset(words, i + 1, sizeof words);
        submit(IORING_OP_READ_FIXED, fds[0], p + 5 * PAGE, PAGE);
        for (int k = 0; k < 3; k++)
            CHECK(!ring.maps[k] || munmap(ring.maps[k], ring.sizes[k]) == 0);
        nap(0.2); /* long enough to be merged */
        CHECK(write(fds[1], words, PAGE) == (ssize_t)PAGE);
        CHECK(syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 0);
        bad += memcmp(p + 5 * PAGE, words, PAGE) != 0;
        close(ring.fd);
        nap(0.05); /* until the pin is gone */
    }
    printf("bad %d\n", bad != 0);
}

static size_t ring_pages(void)
{
    size_t pages = 0;
    for (int k = 0; k < 3; k++)
        pages += ring.maps[k] ? (ring.sizes[k] + PAGE - 1) / PAGE : 0;
    return pages;
}

static void ring_close(void)
{
    for (int k = 0; k < 3; k++)
        CHECK(!ring.maps[k] || munmap(ring.maps[k], ring.sizes[k]) == 0);
    close(ring.fd);
}

/* The address space is as large as it was before the ring was mapped, a moment ago: nothing is merged all the same. */
static void ring_for_memory(void)
{
    char *twin = map_alone(N + 8), *p = map_alone(N + 8);
    size_t merged = 0;
    fill(twin + 4 * PAGE, N, 1);
    fill(p + 4 * PAGE, N, 1);
    await_merged(p + 4 * PAGE, N);
    for (int i = 0; i < 6 && ring_open(); i++) {
        size_t pages = ring_pages();
        ring_close();
        char *as_large = map(pages);
        for (int k = 0; k < 40; k++) { /* holds see that there is no ring */
            fill(p + 4 * PAGE, N, 1);
            nap(under_udedup() ? 0.01 : 0);
        }
        CHECK(munmap(as_large, pages * PAGE) == 0 && ring_open());
        fill(p + 4 * PAGE, N, 1);
        nap(under_udedup() ? 0.1 : 0);
        merged += merged_in(p + 4 * PAGE, N);
        ring_close();
    }
    printf("merged %zu\n", merged);
}

MAIN(T(read_in_flight), T(registered_buffer), T(unmapped_ring), T(ring_for_memory))
