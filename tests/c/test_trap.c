/* The trap: windows hold writers, protected pages split at the first write, nothing is lost in a storm. */
#include "trap_support.h"

#include <sys/time.h>

static void test_split(void)
{
    enable();
    char *p = new_region(64);
    CHECK(!merge(p, 64, 1));
    struct ud__trap_counts before = counts();
    for (int i = 0; i < 64; i++)
        CHECK(p[i * PAGE] == (char)(i + 1) && p[i * PAGE + PAGE - 1] == (char)(i + 1));
    CHECK(counts().splits == before.splits, "reading splits nothing");
    p[20 * PAGE + 5] = 99;
    CHECK(counts().splits == before.splits + 1);
    p[20 * PAGE + 6] = 98;
    CHECK(counts().splits == before.splits + 1, "a page splits once");
    CHECK(p[20 * PAGE + 5] == 99 && p[20 * PAGE + 6] == 98 && p[20 * PAGE + 7] == 21);
    p[19 * PAGE] = p[40 * PAGE] = 1;
    CHECK(counts().splits == before.splits + 3, "other pages are still protected");
    munmap(p, 64 * PAGE);
}

static void test_sequential_writer_faults_seldom(void)
{
    enable();
    char *p = new_region(1024);
    CHECK(!merge(p, 1024, 1));
    struct ud__trap_counts before = counts();
    memset(p, 7, 1024 * PAGE);
    uint64_t faults = counts().splits - before.splits;
    CHECK(faults >= 16 && faults <= 48, "%llu faults", (unsigned long long)faults);
    for (size_t i = 0; i < 1024 * PAGE; i++)
        CHECK(p[i] == 7);
    munmap(p, 1024 * PAGE);
}

static char *shared;
static atomic_int wrote;

static void *write_once(void *arg)
{
    (void)arg;
    __atomic_store_n(&shared[3], 42, __ATOMIC_RELAXED);
    atomic_store(&wrote, 1);
    return NULL;
}

static void test_window_holds_writers(void)
{
    enable();
    shared = new_region(4);
    uint64_t start = (uint64_t)shared;
    for (int protect = 0; protect < 2; protect++) {
        pthread_t t;
        atomic_store(&wrote, 0);
        CHECK(!ud__trap_begin(start, start + 4 * PAGE, NULL, NULL));
        struct ud__trap_counts before = counts();
        CHECK(!pthread_create(&t, NULL, write_once, NULL));
        while (counts().waits == before.waits)
            usleep(1000);
        usleep(20000);
        CHECK(!atomic_load(&wrote) && __atomic_load_n(&shared[3], __ATOMIC_RELAXED) != 42);
        ud__trap_end(start, start + 4 * PAGE, protect ? UD__TRAP_PROTECTED : UD__TRAP_OPEN);
        pthread_join(t, NULL);
        CHECK(shared[3] == 42);
        CHECK(counts().splits - before.splits == (uint64_t)protect);
        shared[3] = 0;
    }
    munmap(shared, 4 * PAGE);
}

static int refuse(uint64_t start, uint64_t end, void *arg)
{
    (void)start, (void)end;
    *(int *)arg += 1;
    return -ESRCH;
}

static void test_begin_refuses(void)
{
    enable();
    int calls = 0;
    char *p = new_region(4);
    uint64_t start = (uint64_t)p, end = start + 4 * PAGE;
    CHECK(ud__trap_begin(start, end, refuse, &calls) == -ESRCH && calls == 1);
    p[0] = 1; /* nothing was left closed */
    atomic_store(&ud__busy_count, 1);
    CHECK(ud__trap_begin(start, end, NULL, NULL) == -EBUSY);
    atomic_store(&ud__busy_count, 0);
    munmap(p + PAGE, PAGE);
    CHECK(ud__trap_begin(start, end, NULL, NULL) == -ENOMEM);
    p[0] = p[2 * PAGE] = 2;
    CHECK(ud__trap_begin(1ull << 50, (1ull << 50) + PAGE, NULL, NULL) == -ERANGE);
    munmap(p, 4 * PAGE);
}

static void test_writable(void)
{
    enable();
    char *p = new_region(8);
    int pipes[2];
    CHECK(!pipe(pipes) && write(pipes[1], "abcdefgh", 8) == 8);
    CHECK(!merge(p, 8, 1));
    CHECK(read(pipes[0], p + PAGE + 10, 4) == -1 && errno == EFAULT, "what ud_writable_open is for");
    int token = ud_writable_open(p + PAGE + 10, 4);
    CHECK(token > 0);
    CHECK(read(pipes[0], p + PAGE + 10, 4) == 4 && !memcmp(p + PAGE + 10, "abcd", 4));
    CHECK(ud__trap_begin((uint64_t)p, (uint64_t)p + 8 * PAGE, NULL, NULL) == -EBUSY, "open ranges are left alone");
    CHECK(!merge(p + 2 * PAGE, 6, 1), "other pages are not");
    CHECK(!ud_writable_close(token));
    CHECK(!merge(p, 8, 1));
    CHECK(ud_writable_close(0) == -EINVAL && ud_writable_close(100000) == -EINVAL);
    int tokens[300]; /* more than there are slots */
    for (int i = 0; i < 300; i++)
        CHECK((tokens[i] = ud_writable_open(p, 1)) > 0);
    p[0] = 1;
    CHECK(merge(p, 8, 1) == -EBUSY);
    for (int i = 0; i < 300; i++)
        CHECK(!ud_writable_close(tokens[i]));
    CHECK(!merge(p, 8, 1));
    token = ud_writable_open(p, 0);
    CHECK(token > 0 && !ud_writable_close(token));
    close(pipes[0]);
    close(pipes[1]);
    munmap(p, 8 * PAGE);
}

static void test_settle_forgets(void)
{
    enable();
    char *p = new_region(8);
    CHECK(!merge(p, 8, 1));
    ud__trap_settle((uint64_t)p + PAGE, (uint64_t)p + 2 * PAGE); /* what an interposed mprotect does first */
    CHECK(!mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE));
    struct ud__trap_counts before = counts();
    p[PAGE] = 1;
    CHECK(counts().splits == before.splits);
    p[0] = 1;
    CHECK(counts().splits == before.splits + 1);
    munmap(p, 8 * PAGE);
}

static void test_edge(void)
{
    enable();
    char *p = new_region(300);
    uint64_t at = (uint64_t)p, end = at + 300 * PAGE;
    CHECK(ud__trap_edge(at, end) == end);
    CHECK(!merge(p + 10 * PAGE, 200, 1));
    CHECK(ud__trap_edge(at, end) == at + 10 * PAGE);
    CHECK(ud__trap_edge(at + 10 * PAGE, end) == at + 210 * PAGE);
    CHECK(ud__trap_edge(at + 100 * PAGE, at + 150 * PAGE) == at + 150 * PAGE);
    p[100 * PAGE] = 1;
    CHECK(ud__trap_edge(at + 10 * PAGE, end) == at + 100 * PAGE && ud__trap_edge(at + 100 * PAGE, end) == at + 101 * PAGE);
    CHECK(ud__trap_edge(at + 210 * PAGE, end) == end);
    munmap(p, 300 * PAGE);
}

static void test_open_all(void)
{
    enable();
    char *p = new_region(300), *q = new_region(3);
    CHECK(!merge(p, 300, 1) && !merge(q, 3, 1));
    ud__trap_open_all();
    struct ud__trap_counts before = counts();
    memset(p, 1, 300 * PAGE);
    memset(q, 2, 3 * PAGE);
    CHECK(counts().splits == before.splits);
    munmap(p, 300 * PAGE);
    munmap(q, 3 * PAGE);
}

static void *opens_all(void *arg)
{
    ud__trap_open_all();
    atomic_store((atomic_int *)arg, 1);
    return NULL;
}

/* Whoever opens pages waits for a window over them, as a writer does. */
static void test_openers_respect_windows(void)
{
    enable();
    char *p = new_region(4);
    int pipes[2];
    atomic_int opened = 0;
    pthread_t t;
    CHECK(!pipe(pipes) && write(pipes[1], "abcd", 4) == 4);
    CHECK(!merge(p, 4, 1));
    CHECK(!ud__trap_begin((uint64_t)p, (uint64_t)p + 4 * PAGE, NULL, NULL));
    CHECK(!pthread_create(&t, NULL, opens_all, &opened));
    usleep(30000);
    CHECK(!atomic_load(&opened));
    CHECK(read(pipes[0], p, 4) == -1 && errno == EFAULT, "the window was broken");
    ud__trap_end((uint64_t)p, (uint64_t)p + 4 * PAGE, UD__TRAP_PROTECTED);
    pthread_join(t, NULL);
    CHECK(read(pipes[0], p, 4) == 4);
    close(pipes[0]);
    close(pipes[1]);
    munmap(p, 4 * PAGE);
}

/* ---- fork ------------------------------------------------------------------------------------------ */

static void child_writes_everywhere(void)
{
    for (int i = 0; i < 8; i++)
        shared[i * PAGE + 1] = 77;
    for (int i = 0; i < 8; i++)
        CHECK(shared[i * PAGE + 1] == 77 && shared[i * PAGE + 2] == (char)(i + 1));
}

static void child_with_an_agent(void)
{
    enable();
    CHECK(!merge(shared, 8, 1));
    child_writes_everywhere();
}

static void child_with_an_agent_elsewhere(void)
{
    enable();
    CHECK(!merge(shared + 4 * PAGE, 4, 1)); /* the other pages were left closed by the parent's agent */
    child_writes_everywhere();
}

static ssize_t read_into(char *p)
{
    int pipes[2];
    CHECK(!pipe(pipes) && write(pipes[1], "abcd", 4) == 4);
    ssize_t got = read(pipes[0], p, 4);
    close(pipes[0]);
    close(pipes[1]);
    return got;
}

/* A system call raises no fault that could open what the parent's window left closed. */
static void child_opens_for_a_call(void)
{
    int token = ud_writable_open(shared + PAGE + 8, 4);
    CHECK(token > 0 && read_into(shared + PAGE + 8) == 4 && !memcmp(shared + PAGE + 8, "abcd", 4));
    CHECK(!ud_writable_close(token));
    child_writes_everywhere();
}

/* What the program protects itself, the agent that comes up leaves so. */
static void child_protects_before_the_agent(void)
{
    ud__trap_settle((uint64_t)shared, (uint64_t)shared + 4 * PAGE);
    CHECK(!mprotect(shared, 4 * PAGE, PROT_READ));
    enable();
    CHECK(read_into(shared) == -1 && errno == EFAULT);
    shared[5 * PAGE] = 1;
}

static void child_writes_after_the_agent(void)
{
    enable();
    child_writes_everywhere();
    CHECK(read_into(shared) == 4, "all of it is open");
}

static void test_fork(void)
{
    char text[128];
    _Atomic uint64_t *counter = (void *)new_region(1); /* as in the ledger: not there in a child */
    CHECK(!madvise(counter, PAGE, MADV_DONTFORK));
    atomic_store(counter, 0);
    (void)ud__trap_enable(counter, text, sizeof text);
    shared = new_region(8);
    CHECK(!merge(shared, 8, 1));
    EXITS(child_writes_everywhere, 0); /* protected pages split in the child */
    EXITS(child_with_an_agent, 0);
    CHECK(!ud__trap_begin((uint64_t)shared, (uint64_t)shared + 8 * PAGE, NULL, NULL));
    EXITS(child_writes_everywhere, 0); /* amid a window: there is no agent to end it */
    EXITS(child_with_an_agent, 0);
    EXITS(child_with_an_agent_elsewhere, 0);
    EXITS(child_opens_for_a_call, 0);
    EXITS(child_protects_before_the_agent, 0);
    EXITS(child_writes_after_the_agent, 0);
    ud__trap_end((uint64_t)shared, (uint64_t)shared + 8 * PAGE, UD__TRAP_OPEN);
    CHECK(shared[1] == 1);
    CHECK(!merge(shared, 8, 1) && !atomic_load(counter));
    shared[0] = 1;
    CHECK(atomic_load(counter) == 1);
    enable();
    munmap(shared, 8 * PAGE);
}

/* ---- out of mappings --------------------------------------------------------------------------------- */

static void split_without_vmas(void)
{
    enable();
    char *p = new_region(64);
    CHECK(!merge(p, 64, 1));
    char *many = mmap(NULL, 200000ul * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(many != MAP_FAILED);
    for (size_t i = 1; i < 200000 && !mprotect(many + i * PAGE, PAGE, i & 1 ? PROT_NONE : PROT_READ); i += 2)
        ;
    errno = 0;
    CHECK(mprotect(many + 199990ul * PAGE, PAGE, PROT_EXEC) && errno == ENOMEM, "the limit was not reached");
    p[30 * PAGE] = 5;
    for (int i = 0; i < 64; i++)
        p[i * PAGE + 1] = 6;
    for (int i = 0; i < 64; i++)
        CHECK(p[i * PAGE] == (i == 30 ? 5 : (char)(i + 1)) && p[i * PAGE + 1] == 6);
}

static void test_no_vmas_left(void)
{
    EXITS(split_without_vmas, 0);
}

/* ---- the storm ------------------------------------------------------------------------------------------ */

#ifndef STORM_SECONDS
#define STORM_SECONDS 4
#endif
enum { WRITERS = 4, STORM_PAGES = 96, WORDS = PAGE / 8 };
static _Atomic uint64_t *storm; /* page x word; word w of each page belongs to writer w, words 8.. to signal handlers */
static atomic_int storm_ends;
static _Atomic uint64_t storm_writes, storm_signals;
static _Atomic uint64_t handler_count[STORM_PAGES];

static void storm_handler(int sig)
{
    (void)sig;
    uint64_t n = atomic_fetch_add(&storm_signals, 1), page = n * 7 % STORM_PAGES;
    atomic_fetch_add_explicit(&storm[page * WORDS + 8], 1, memory_order_relaxed);
    atomic_fetch_add(&handler_count[page], 1);
}

static void *storm_writer(void *arg)
{
    size_t me = (size_t)arg;
    uint64_t sequence[STORM_PAGES] = { 0 };
    unsigned long long rnd = 12345 + me;
    uint64_t n = 0;
    while (!atomic_load_explicit(&storm_ends, memory_order_relaxed)) {
        size_t page = next_random(&rnd) % STORM_PAGES;
        _Atomic uint64_t *w = &storm[page * WORDS + me];
        uint64_t was = atomic_load_explicit(w, memory_order_relaxed);
        CHECK(was == sequence[page], "writer %zu page %zu: has %llu, wrote %llu", me, page, (unsigned long long)was,
              (unsigned long long)sequence[page]);
        atomic_store_explicit(w, ++sequence[page], memory_order_relaxed);
        n++;
    }
    for (size_t page = 0; page < STORM_PAGES; page++)
        CHECK(atomic_load(&storm[page * WORDS + me]) == sequence[page]);
    atomic_fetch_add(&storm_writes, n);
    return NULL;
}

static pthread_t storm_threads[WRITERS];

static void *storm_signaller(void *arg)
{
    (void)arg;
    unsigned long long rnd = 99;
    while (SIGNALS_TOO && !atomic_load(&storm_ends)) {
        pthread_kill(storm_threads[next_random(&rnd) % WRITERS], next_random(&rnd) & 1 ? SIGUSR1 : SIGUSR2);
        if (next_random(&rnd) % 8 == 0)
            usleep(50);
    }
    return NULL;
}

static void *storm_agent(void *arg)
{
    uint64_t *merged = arg;
    unsigned long long rnd = 4242;
    sigset_t all;
    sigfillset(&all);
    prctl(PR_SET_NAME, "udedup-agent");
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
    while (!atomic_load(&storm_ends)) {
        size_t first = next_random(&rnd) % STORM_PAGES, n = 1 + next_random(&rnd) % (STORM_PAGES - first);
        int r = merge((char *)storm + first * PAGE, n, next_random(&rnd) % 4 != 0);
        CHECK(r == 0 || r == -EBUSY || r == -EAGAIN, "%d", r);
        if (!r)
            *merged += n;
    }
    return NULL;
}

static void test_signal_storm(void)
{
    enable();
    struct sigaction act = { .sa_handler = storm_handler };
    struct ud__trap_counts before = counts();
    uint64_t merged = 0;
    sigfillset(&act.sa_mask); /* the usual way; it holds SIGSEGV */
    CHECK(!sigaction(SIGUSR1, &act, NULL));
    act.sa_flags = SA_NODEFER | SA_RESTART;
    sigemptyset(&act.sa_mask);
    CHECK(!sigaction(SIGUSR2, &act, NULL));
    storm = (void *)new_region(STORM_PAGES);
    memset((void *)storm, 0, STORM_PAGES * PAGE);
    pthread_t agent, signaller;
    for (size_t i = 0; i < WRITERS; i++)
        CHECK(!pthread_create(&storm_threads[i], NULL, storm_writer, (void *)i));
    CHECK(!pthread_create(&signaller, NULL, storm_signaller, NULL));
    CHECK(!pthread_create(&agent, NULL, storm_agent, &merged));
    const char *seconds_asked = getenv("STORM_SECONDS");
    sleep(seconds_asked ? (unsigned)atoi(seconds_asked) : STORM_SECONDS);
    atomic_store(&storm_ends, 1);
    pthread_join(signaller, NULL);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(storm_threads[i], NULL);
    pthread_join(agent, NULL);
    for (int page = 0; page < STORM_PAGES; page++)
        CHECK(atomic_load(&storm[page * WORDS + 8]) == atomic_load(&handler_count[page]), "a handler's write was lost");
    struct ud__trap_counts after = counts();
    printf("  %llu writes, %llu signals, %llu pages merged, %llu windows, %llu splits, %llu waits, %llu retries\n",
           (unsigned long long)storm_writes, (unsigned long long)storm_signals, (unsigned long long)merged,
           (unsigned long long)(after.windows - before.windows), (unsigned long long)(after.splits - before.splits),
           (unsigned long long)(after.waits - before.waits), (unsigned long long)(after.retries - before.retries));
    CHECK(merged && after.splits > before.splits && after.waits > before.waits);
    signal(SIGUSR1, SIG_DFL);
    signal(SIGUSR2, SIG_DFL);
    munmap((void *)storm, STORM_PAGES * PAGE);
}

static void test_speed(void)
{
    enable();
    enum { N = 4096 };
    char *p = new_region(N);
    double plain = 0, split = 0;
    for (int kind = 0; kind < 2; kind++) {
        CHECK(!merge(p, N, kind));
        double start = seconds();
        for (int i = 0; i < N; i += 2) /* every other page: no sequence to learn */
            p[(i * 1237 % N) * PAGE] = 1;
        *(kind ? &split : &plain) = (seconds() - start) / (N / 2) * 1e6;
    }
    printf("  first write to a merged page: %.2f us by the kernel, %.2f us with the split trap\n", plain, split);
    munmap(p, N * PAGE);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "split", test_split },
        { "sequential_writer_faults_seldom", test_sequential_writer_faults_seldom },
        { "window_holds_writers", test_window_holds_writers },
        { "begin_refuses", test_begin_refuses },
        { "writable", test_writable },
        { "settle_forgets", test_settle_forgets },
        { "edge", test_edge },
        { "open_all", test_open_all },
        { "openers_respect_windows", test_openers_respect_windows },
        { "fork", test_fork },
        { "no_vmas_left", test_no_vmas_left },
        { "signal_storm", test_signal_storm },
        { "speed", test_speed },
        { NULL, NULL },
    };
    ud__base_init();
    return run_tests(tests, argc, argv);
}
