/* operate.c: everything a thread does to its memory, one at random at a time. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "torture.h"

#ifndef MADV_MERGEABLE
#define MADV_MERGEABLE 12
#define MADV_UNMERGEABLE 13
#endif

extern char **environ;
/* There when libudedup.so is preloaded: trap mode asks for it around system calls that write. */
extern int ud_writable_open(void *addr, size_t len) __attribute__((weak));
extern int ud_writable_close(int token) __attribute__((weak));

static void check_call(struct slot *s, const char *what, const void *where, long got, long want)
{
    if (got != want) {
        char text[64];
        snprintf(text, sizeof text, "%s (errno %d)", what, errno);
        fail(s, text, where, (uint64_t)got, (uint64_t)want);
    }
}

static pthread_mutex_t hole_lock = PTHREAD_MUTEX_INITIALIZER;

#define WINDOWS 8

/* Work moves over the field window by window, so that the rest has time to be merged. */
static size_t window_now(const struct slot *s)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((size_t)now.tv_sec * 2 + (size_t)(now.tv_nsec >= 500000000) + s->number) % WINDOWS;
}

static size_t pick(struct slot *s)
{
    size_t size = s->field.pages / WINDOWS;
    return s->window * size + roll(s, size);
}

/* A window is left with a long run that others hold alike: busy processes merge no short ones. What is merged there
 * splits page by page when the window comes round again. */
static void move_on(struct slot *s)
{
    size_t size = s->field.pages / WINDOWS, n = size - roll(s, size / 4);
    size_t first = s->window * size + roll(s, size - n + 1);
    uint64_t sequence = 1 + (roll(s, 4) == 0);
    for (size_t p = first; p < first + n; p++) {
        verify_page(s, &s->field, p);
        fill_shared(&s->field, p, sequence);
    }
    s->window = window_now(s);
}

/* Makes the words [from, to) of a page ours, by whatever `put` does with them. */
struct span {
    size_t page, from, to;
    uint64_t base; /* of word 0 of the page */
};

static struct span pick_span(struct slot *s)
{
    struct span n = {.page = pick(s)};
    verify_page(s, &s->field, n.page);
    n.from = roll(s, WORDS);
    n.to = n.from + 1 + roll(s, WORDS - n.from);
    n.base = BASE(s->owner, n.page, ++s->sequence);
    return n;
}

static void note_span(struct slot *s, struct span n)
{
    struct shadow *h = &s->field.shadow[n.page];
    if (h->to > h->from) { /* one differing range is remembered: the page is written whole */
        volatile uint64_t *w = s->field.mem + n.page * WORDS;
        for (size_t i = 0; i < WORDS; i++)
            w[i] = n.base + i;
        *h = (struct shadow){.base = n.base, .step = 1, .pending = WORDS};
        return;
    }
    h->other = n.base;
    h->from = (uint16_t)n.from;
    h->to = (uint16_t)n.to;
    h->pending = (uint16_t)(n.to - n.from);
}

static void store_span(struct slot *s, struct span n)
{
    volatile uint64_t *w = s->field.mem + n.page * WORDS;
    for (size_t i = n.from; i < n.to; i++)
        w[i] = n.base + i;
    note_span(s, n);
}

static void op_stores(struct slot *s)
{
    store_span(s, pick_span(s));
}

static void op_memcpy(struct slot *s)
{
    struct span n = pick_span(s);
    uint64_t from[WORDS];
    for (size_t i = n.from; i < n.to; i++)
        from[i] = n.base + i;
    memcpy(s->field.mem + n.page * WORDS + n.from, from + n.from, (n.to - n.from) * 8);
    note_span(s, n);
}

static void op_fill(struct slot *s)
{
    size_t page = pick(s);
    verify_page(s, &s->field, page);
    fill_page(s, &s->field, page, roll(s, 4) != 0);
}

/* Mode trap asks for it around calls that write; a token for close_after_call. */
static int open_for_call(struct slot *s, void *at, size_t bytes)
{
    int token = opt.trap && ud_writable_open ? ud_writable_open(at, bytes) : 0;
    check_call(s, "ud_writable_open", at, token >= 0, 1);
    return token;
}

static void close_after_call(struct slot *s, void *at, int token)
{
    if (token > 0)
        check_call(s, "ud_writable_close", at, ud_writable_close(token), 0);
}

static size_t pick_range(struct slot *s, size_t most, size_t *pages)
{
    size_t page = pick(s);
    *pages = 1 + roll(s, most);
    if (page + *pages > s->field.pages)
        *pages = s->field.pages - page;
    return page;
}

/* A few words in each page of a run. */
static void op_scatter(struct slot *s)
{
    size_t pages, page = pick_range(s, 24, &pages);
    for (size_t p = page; p < page + pages; p++) {
        struct span n = {.page = p, .from = roll(s, WORDS - 8), .base = BASE(s->owner, p, ++s->sequence)};
        n.to = n.from + 1 + roll(s, 8);
        verify_page(s, &s->field, p);
        store_span(s, n);
    }
}

/* read(2) or readv(2) by which the kernel writes, after having slept in the call for a while. */
static void op_read(struct slot *s)
{
    struct span n = pick_span(s);
    char *at = (char *)(s->field.mem + n.page * WORDS + n.from);
    size_t bytes = (n.to - n.from) * 8, cut = roll(s, 2) ? bytes / 2 : 0;
    struct request r = {n.base + n.from, (uint32_t)(n.to - n.from), (uint32_t)roll(s, 3000), s->feed[1]};
    int token = open_for_call(s, at, bytes);
    if (s->in_child) {
        uint64_t words[WORDS];
        for (size_t i = 0; i < r.words; i++)
            words[i] = r.base + i;
        check_call(s, "write", words, write(r.fd, words, bytes), (long)bytes);
    } else {
        check_call(s, "write", &r, write(request_pipe[1], &r, sizeof r), sizeof r);
    }
    struct iovec parts[2] = {{at, cut}, {at + cut, bytes - cut}};
    long got = cut ? readv(s->feed[0], parts, 2) : read(s->feed[0], at, bytes);
    check_call(s, cut ? "readv" : "read", at, got, (long)bytes);
    close_after_call(s, at, token);
    atomic_fetch_add_explicit(&count->reads, 1, memory_order_relaxed);
    note_span(s, n);
}

/* Writes that pass the page tables by: /proc/self/mem and process_vm_writev. To mode trap they are system calls like
 * others, but /proc/self/mem would not even fail: it writes what is closed. */
static void op_remote_write(struct slot *s)
{
    struct span n = pick_span(s);
    uint64_t words[WORDS];
    char *at = (char *)(s->field.mem + n.page * WORDS + n.from);
    size_t bytes = (n.to - n.from) * 8;
    for (size_t i = n.from; i < n.to; i++)
        words[i - n.from] = n.base + i;
    int token = open_for_call(s, at, bytes);
    if (roll(s, 2)) {
        int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        check_call(s, "pwrite to /proc/self/mem", at, pwrite(fd, words, bytes, (off_t)(uintptr_t)at), (long)bytes);
        close(fd);
    } else {
        struct iovec local = {words, bytes}, remote = {at, bytes};
        check_call(s, "process_vm_writev", at, process_vm_writev(getpid(), &local, 1, &remote, 1, 0), (long)bytes);
    }
    close_after_call(s, at, token);
    atomic_fetch_add_explicit(&count->reads, 1, memory_order_relaxed);
    note_span(s, n);
}

static void op_discard(struct slot *s)
{
    size_t pages, page = pick_range(s, 12, &pages);
    char *at = (char *)(s->field.mem + page * WORDS);
    switch (roll(s, 4)) {
    case 0:
        check_call(s, "madvise DONTNEED", at, madvise(at, pages * PAGE, MADV_DONTNEED), 0);
        break;
    case 1: /* either content is allowed after FREE until it is written */
        check_call(s, "madvise FREE", at, madvise(at, pages * PAGE, MADV_FREE), 0);
        for (size_t p = page; p < page + pages; p++)
            fill_page(s, &s->field, p, 1);
        return;
    case 2: /* mapped over */
        check_call(s, "mmap FIXED", at,
                   (long)mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                   (long)at);
        if (opt.advise)
            madvise(at, pages * PAGE, MADV_MERGEABLE);
        break;
    case 3: /* given back, and mapped again at once */
        pthread_mutex_lock(&hole_lock); /* a fork between would take the hole along */
        check_call(s, "munmap", at, munmap(at, pages * PAGE), 0);
        void *again = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
                           -1, 0);
        pthread_mutex_unlock(&hole_lock);
        if (again != (void *)at) { /* somebody else's mapping took the hole: allowed, and the end of this field */
            atomic_fetch_add(&count->holes, 1);
            _exit(0);
        }
        if (opt.advise)
            madvise(at, pages * PAGE, MADV_MERGEABLE);
    }
    set_zero(&s->field, page, pages);
    atomic_fetch_add_explicit(&count->discards, 1, memory_order_relaxed);
    for (size_t p = page; p < page + pages; p++) {
        verify_page(s, &s->field, p);
        if (roll(s, 8)) /* some stay zero, for the zero-page merge */
            fill_page(s, &s->field, p, 1);
    }
}

static void op_protect(struct slot *s)
{
    size_t pages, page = pick_range(s, 12, &pages);
    char *at = (char *)(s->field.mem + page * WORDS);
    check_call(s, "mprotect READ", at, mprotect(at, pages * PAGE, PROT_READ), 0);
    for (size_t p = page; p < page + pages; p++)
        verify_page(s, &s->field, p);
    check_call(s, "mprotect READ|WRITE", at, mprotect(at, pages * PAGE, PROT_READ | PROT_WRITE), 0);
    fill_page(s, &s->field, page, 0);
}

static void op_advise(struct slot *s)
{
    static const int advices[] = {MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE};
    size_t pages, page = pick_range(s, 12, &pages);
    char *at = (char *)(s->field.mem + page * WORDS);
    madvise(at, pages * PAGE, advices[roll(s, 5)]); /* kernels without KSM or THP say EINVAL */
    if (opt.advise)
        madvise(at, pages * PAGE, MADV_MERGEABLE);
    for (size_t p = page; p < page + pages; p++)
        verify_page(s, &s->field, p);
}

/* Grows, shrinks and moves a mapping of its own. */
static void op_mremap(struct slot *s)
{
    struct area *a = &s->mover;
    size_t was = a->pages, now = 8 + roll(s, s->mover_room - 8);
    for (size_t p = 0; p < was; p++)
        verify_page(s, a, p);
    void *to = mremap(a->mem, was * PAGE, now * PAGE, MREMAP_MAYMOVE);
    if (to == MAP_FAILED) {
        fail(s, "mremap", a->mem, (uint64_t)errno, 0);
        return;
    }
    a->mem = to;
    a->pages = now;
    if (now > was)
        set_zero(a, was, now - was);
    atomic_fetch_add_explicit(&count->remaps, 1, memory_order_relaxed);
    for (size_t p = 0; p < now; p++) {
        verify_page(s, a, p);
        if (roll(s, 4) == 0)
            fill_page(s, a, p, 1);
    }
}

static void op_realloc(struct slot *s)
{
    struct block *b = &s->blocks[roll(s, BLOCKS)];
    size_t words = roll(s, 4) ? 16384 + roll(s, 65536) : 1 + roll(s, 4096);
    verify_block(s, b);
    uint64_t *to = realloc(b->mem, words * 8);
    if (!to) {
        fail(s, "realloc", b->mem, 0, words);
        return;
    }
    b->mem = to;
    if (words < b->words)
        b->words = words;
    verify_block(s, b); /* what was there came along */
    b->words = words;
    fill_block(s, b);
    if (roll(s, 4) == 0) { /* calloc must give zeros, also from memory that was merged */
        free(b->mem);
        b->mem = calloc(words, 8);
        for (size_t i = 0; i < words; i++)
            if (b->mem[i])
                fail(s, "calloc", &b->mem[i], b->mem[i], 0);
        fill_block(s, b);
    }
    atomic_fetch_add_explicit(&count->reallocs, 1, memory_order_relaxed);
}

static void reap(struct slot *s, int block)
{
    int status;
    if (!s->child || waitpid(s->child, &status, block ? 0 : WNOHANG) != s->child)
        return;
    if (status != 0 && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
        fail(s, "wait status of the forked child", NULL, (uint64_t)status, 0);
    s->child = 0;
}

extern struct slot *slots;

static void child_life(struct slot *s)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    s->in_child = 1;
    s->errors = 0;
    if (pipe2(s->feed, O_CLOEXEC))
        _exit(73);
    verify_all(s);
    for (unsigned i = 0; i < opt.threads; i++)
        if (&slots[i] != s)
            verify_foreign(&slots[i]);
    size_t work = roll(s, 200);
    for (size_t i = 0; i < work; i++)
        operate(s);
    verify_all(s);
    if (roll(s, 4) == 0)
        kill(getpid(), SIGKILL);
    _exit(s->errors ? 74 : 0);
}

static void op_fork(struct slot *s)
{
    reap(s, 1);
    if (roll(s, 4) == 0) {
        char *argv[] = {(char *)"true", NULL};
        int pid, status = -1;
        check_call(s, "posix_spawn", NULL, posix_spawnp(&pid, "true", NULL, NULL, argv, environ), 0);
        waitpid(pid, &status, 0);
        check_call(s, "status of `true`", NULL, status, 0);
        atomic_fetch_add_explicit(&count->spawns, 1, memory_order_relaxed);
        return;
    }
    pthread_mutex_lock(&hole_lock);
    int pid = fork();
    pthread_mutex_unlock(&hole_lock);
    if (pid == 0)
        child_life(s);
    check_call(s, "fork", NULL, pid > 0, 1);
    s->child = pid > 0 ? pid : 0;
    atomic_fetch_add_explicit(&count->forks, 1, memory_order_relaxed);
}

static void op_look(struct slot *s)
{
    for (int i = 0; i < 8; i++)
        verify_page(s, &s->field, roll(s, s->field.pages));
}

void operate(struct slot *s)
{
    unsigned dice = (unsigned)roll(s, 1000);
    if (dice < 150) op_stores(s);
    else if (dice < 250) op_memcpy(s);
    else if (dice < 350) op_fill(s);
    else if (dice < 450) op_read(s);
    else if (dice < 490) op_remote_write(s);
    else if (dice < 590) op_scatter(s);
    else if (dice < 900) op_look(s);
    else if (dice < 930) op_discard(s);
    else if (dice < 950) op_realloc(s);
    else if (dice < 965) op_mremap(s);
    else if (dice < 975) op_protect(s);
    else if (dice < 990) op_advise(s);
    else if (dice < 993 && !s->in_child) op_fork(s);
    if (!s->in_child)
        reap(s, 0);
    if (s->window != window_now(s))
        move_on(s);
    atomic_fetch_add_explicit(&count->operations, 1, memory_order_relaxed);
    struct timespec pause = {0, (long)roll(s, 2 * opt.pace_us + 1) * 1000};
    nanosleep(&pause, NULL);
}

static void area_init(struct slot *s, struct area *a, size_t room, size_t pages)
{
    a->pages = pages;
    a->mem = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    a->shadow = calloc(room, sizeof *a->shadow);
    if (a->mem == MAP_FAILED || !a->shadow)
        _exit(75);
    if (opt.advise)
        madvise(a->mem, pages * PAGE, MADV_MERGEABLE);
    for (size_t p = 0; p < pages; p++)
        fill_page(s, a, p, 1);
}

void slot_init(struct slot *s, unsigned number)
{
    s->number = number;
    s->owner = 1 + opt.process * opt.threads + number;
    s->random = 0x9e3779b97f4a7c15ull * (opt.seed + 1) + s->owner;
    s->mover_room = 128;
    area_init(s, &s->field, opt.pages, opt.pages);
    area_init(s, &s->mover, s->mover_room, 32);
    for (int b = 0; b < BLOCKS; b++) {
        s->blocks[b].words = 40000;
        s->blocks[b].mem = malloc(40000 * 8);
        fill_block(s, &s->blocks[b]);
    }
    if (pipe2(s->feed, O_CLOEXEC))
        _exit(76);
}
