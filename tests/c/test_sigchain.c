/* A program's own SIGSEGV handlers, masks and actions are as without us, installed before or after. */
#include "trap_support.h"

#include <setjmp.h>
#include <ucontext.h>

static char *page;      /* merged and protected: ours to serve */
static char *read_only; /* the program's own */

__attribute__((noinline)) static void crash(void)
{
    *(volatile char *)read_only = 1;
}

static void write_managed(void)
{
    uint64_t before = counts().splits;
    CHECK(!merge(page, 1, 1));
    *(volatile char *)page += 1;
    CHECK(counts().splits == before + 1);
}

static void say(const char *s)
{
    if (write(2, s, strlen(s)) < 0)
        _exit(99);
}

/* ---- handlers ----------------------------------------------------------------------------------------- */

static void exits_7(int sig)
{
    _exit(sig == SIGSEGV ? 7 : 98);
}

static void exits_8_with_info(int sig, siginfo_t *info, void *uc)
{
    char *pc = (char *)crash, *ip = NULL;
#if defined(__x86_64__)
    ip = (char *)((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP];
#else
    ip = (char *)((ucontext_t *)uc)->uc_mcontext.pc;
#endif
    int ok = sig == SIGSEGV && info->si_addr == read_only && info->si_code == SEGV_ACCERR && ip >= pc && ip < pc + 64;
    _exit(ok ? 8 : 97);
}

static void install(void (*one)(int), void (*three)(int, siginfo_t *, void *), int flags)
{
    struct sigaction act = { .sa_flags = flags };
    if (three) {
        act.sa_sigaction = three;
        act.sa_flags |= SA_SIGINFO;
    } else {
        act.sa_handler = one;
    }
    CHECK(!sigaction(SIGSEGV, &act, NULL));
}

static void start(void)
{
    enable();
    write_managed();
}

static void default_action(void)
{
    start();
    crash();
}

/* Not a write, and the page is writable: nothing to retry. */
static void runs_data(void)
{
    start();
    ud__trap_open((uint64_t)page, (uint64_t)page + PAGE);
    void (*data)(void);
    memcpy(&data, &page, sizeof data);
    data();
}

static void default_by_kill(void)
{
    start();
    kill(getpid(), SIGSEGV);
    pause();
}

static void one_before(void)
{
    signal(SIGSEGV, exits_7);
    start();
    crash();
}

static void one_after(void)
{
    start();
    signal(SIGSEGV, exits_7);
    write_managed();
    crash();
}

static void three_before(void)
{
    install(NULL, exits_8_with_info, 0);
    start();
    crash();
}

static void three_after(void)
{
    start();
    install(NULL, exits_8_with_info, 0);
    write_managed();
    crash();
}

static int times;
static void counts_and_returns(int sig)
{
    (void)sig;
    if (++times > 5)
        _exit(96);
    say("handler called\n");
}

static void reset_hand_kills(void)
{
    start();
    install(counts_and_returns, NULL, SA_RESETHAND);
    crash(); /* the handler returns, the instruction faults again, and that is the default action's */
}

static void reset_hand_reads_default(void)
{
    struct sigaction old;
    start();
    install(counts_and_returns, NULL, SA_RESETHAND);
    raise(SIGSEGV);
    CHECK(times == 1 && !sigaction(SIGSEGV, NULL, &old) && old.sa_handler == SIG_DFL);
    raise(SIGSEGV);
}

static void fault_again(int sig)
{
    (void)sig;
    if (++times > 1)
        _exit(95);
    write_managed(); /* served, though SIGSEGV is blocked as far as the program knows */
    crash();         /* a fault while blocked kills */
}

static void nested_without_nodefer(void)
{
    start();
    install(fault_again, NULL, 0);
    crash();
}

static void fault_twice(int sig)
{
    (void)sig;
    if (++times == 3)
        _exit(9);
    crash();
}

static void nested_with_nodefer(void)
{
    start();
    install(fault_twice, NULL, SA_NODEFER);
    crash();
}

static sigjmp_buf back;
static void jumps(int sig)
{
    (void)sig;
    siglongjmp(back, 1);
}

static void recovers_many_times(void)
{
    start();
    install(jumps, NULL, 0);
    for (volatile int i = 0; i < 50; i++)
        if (!sigsetjmp(back, 1)) {
            crash();
            CHECK(0);
        } else {
            times++;
            write_managed();
        }
    _exit(times == 50 ? 10 : 94);
}

static void jump_without_mask(void)
{
    start();
    install(jumps, NULL, 0);
    if (!sigsetjmp(back, 0))
        crash();
    crash(); /* still blocked, as the mask was not restored */
}

static void changes_context(int sig, siginfo_t *info, void *uc)
{
    (void)sig, (void)info;
    sigaddset(&((ucontext_t *)uc)->uc_sigmask, SIGSEGV);
    CHECK(!mprotect(read_only, PAGE, PROT_READ | PROT_WRITE));
}

static void handler_repairs_and_blocks(void)
{
    sigset_t now;
    start();
    install(NULL, changes_context, 0);
    crash(); /* repaired */
    CHECK(!sigprocmask(SIG_BLOCK, NULL, &now) && sigismember(&now, SIGSEGV) == 1);
    write_managed();
    _exit(11);
}

static void ignored_kill(void)
{
    start();
    signal(SIGSEGV, SIG_IGN);
    CHECK(!kill(getpid(), SIGSEGV));
    write_managed();
    _exit(12);
}

static void ignored_fault(void)
{
    start();
    signal(SIGSEGV, SIG_IGN);
    crash();
}

static void overflow_handler(int sig, siginfo_t *info, void *uc)
{
    (void)info, (void)uc;
    _exit(sig == SIGSEGV ? 13 : 93);
}

static int depth_limit = 1 << 30;
static int recurse(int n)
{
    if (n > depth_limit)
        return 0;
    volatile char room[4096];
    room[0] = (char)n;
    return recurse(n + 1) + room[0];
}

static void on_alternate_stack(void)
{
    static char space[65536];
    stack_t ss = { .ss_sp = space, .ss_size = sizeof space };
    start();
    CHECK(!sigaltstack(&ss, NULL));
    install(NULL, overflow_handler, SA_ONSTACK);
    _exit(recurse(0));
}

static void overflow_without(void)
{
    start();
    install(exits_7, NULL, 0);
    _exit(recurse(0));
}

static void blocked_fault(void)
{
    sigset_t set;
    start();
    signal(SIGSEGV, exits_7);
    sigfillset(&set);
    CHECK(!sigprocmask(SIG_SETMASK, &set, NULL));
    write_managed();
    crash();
}

static void all_but_segv_blocked(void)
{
    sigset_t set;
    start();
    signal(SIGSEGV, exits_7);
    sigfillset(&set);
    sigdelset(&set, SIGSEGV);
    CHECK(!pthread_sigmask(SIG_SETMASK, &set, NULL));
    crash();
}

static void from_user(int sig, siginfo_t *info, void *uc)
{
    (void)uc;
    _exit(sig == SIGSEGV && info->si_code == SI_TKILL && info->si_pid == getpid() ? 14 : 92);
}

static void raised(void)
{
    start();
    install(NULL, from_user, 0);
    raise(SIGSEGV);
}

static void restores_and_raises(int sig)
{
    say("report\n");
    signal(sig, SIG_DFL); /* as crash reporters do */
    raise(sig);
}

static void reporter(void)
{
    start();
    install(restores_and_raises, NULL, SA_NODEFER | SA_ONSTACK);
    crash();
}

static void test_program_handlers(void)
{
    page = new_region(1);
    read_only = new_region(1);
    CHECK(!mprotect(read_only, PAGE, PROT_READ));
    DIES(default_action, SIGSEGV);
    DIES(default_by_kill, SIGSEGV);
    DIES(runs_data, SIGSEGV);
    EXITS(one_before, 7);
    EXITS(one_after, 7);
    EXITS(three_before, 8);
    EXITS(three_after, 8);
    DIES(reset_hand_kills, SIGSEGV);
    DIES(reset_hand_reads_default, SIGSEGV);
    DIES(nested_without_nodefer, SIGSEGV);
    EXITS(nested_with_nodefer, 9);
    EXITS(recovers_many_times, 10);
    DIES(jump_without_mask, SIGSEGV);
    EXITS(handler_repairs_and_blocks, 11);
    EXITS(ignored_kill, 12);
    DIES(ignored_fault, SIGSEGV);
    EXITS(on_alternate_stack, 13);
    DIES(overflow_without, SIGSEGV);
    DIES(blocked_fault, SIGSEGV);
    EXITS(all_but_segv_blocked, 7);
    EXITS(raised, 14);
    DIES(reporter, SIGSEGV);
}

/* ---- what sigaction and sigprocmask tell -------------------------------------------------------------------- */

static void tells_the_program_its_own(void)
{
    struct sigaction act, old;
    start();
    CHECK(!sigaction(SIGSEGV, NULL, &old) && old.sa_handler == SIG_DFL);
    CHECK(signal(SIGSEGV, exits_7) == SIG_DFL && signal(SIGSEGV, SIG_IGN) == exits_7);
    memset(&act, 0, sizeof act);
    act.sa_sigaction = exits_8_with_info;
    act.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
    sigaddset(&act.sa_mask, SIGUSR1);
    sigaddset(&act.sa_mask, SIGSEGV);
    CHECK(!sigaction(SIGSEGV, &act, &old) && old.sa_handler == SIG_IGN);
    struct sigaction *same = &act; /* allowed, if odd */
    CHECK(!sigaction(SIGSEGV, same, &act) && act.sa_sigaction == exits_8_with_info);
    CHECK((unsigned)act.sa_flags == (SA_SIGINFO | SA_ONSTACK | SA_RESETHAND));
    CHECK(sigismember(&act.sa_mask, SIGUSR1) == 1 && sigismember(&act.sa_mask, SIGSEGV) == 1);
    CHECK(sigismember(&act.sa_mask, SIGUSR2) == 0);
    act.sa_handler = exits_7;
    act.sa_flags = 0;
    CHECK(!sigaction(SIGUSR2, &act, NULL) && !sigaction(SIGUSR2, NULL, &old));
    CHECK(sigismember(&old.sa_mask, SIGSEGV) == 1 && sigismember(&old.sa_mask, SIGSTKFLT) == 0);
    CHECK((void *)sysv_signal(SIGSEGV, SIG_DFL) == (void *)exits_8_with_info);
    CHECK(sigaction(65, &act, NULL) == -1 && errno == EINVAL);
    CHECK(sigaction(SIGKILL, &act, NULL) == -1 && errno == EINVAL);
    CHECK(signal(1000, SIG_IGN) == SIG_ERR && errno == EINVAL);
}

static void masks_round_trip(void)
{
    sigset_t set, old, now;
    start();
    sigfillset(&set);
    CHECK(!sigprocmask(SIG_BLOCK, &set, &old) && sigismember(&old, SIGSEGV) == 0);
    CHECK(!sigprocmask(SIG_SETMASK, &old, &now) && sigismember(&now, SIGSEGV) == 1);
    CHECK(!sigprocmask(SIG_BLOCK, NULL, &now) && sigismember(&now, SIGSEGV) == 0 && sigismember(&now, SIGSTKFLT) == 0);
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    CHECK(!pthread_sigmask(SIG_BLOCK, &set, NULL));
    write_managed();
    CHECK(!pthread_sigmask(SIG_UNBLOCK, &set, &old) && sigismember(&old, SIGSEGV) == 1);
    CHECK(!pthread_sigmask(SIG_BLOCK, NULL, &now) && sigismember(&now, SIGSEGV) == 0);
    CHECK(sigprocmask(77, &set, NULL) == -1 && errno == EINVAL);
    CHECK(pthread_sigmask(77, &set, NULL) == EINVAL);
}

static void writes_managed(int sig)
{
    (void)sig;
    *(volatile char *)page += 1;
    times++;
}

static void other_handlers_write(void)
{
    struct sigaction act = { .sa_handler = writes_managed };
    sigset_t set;
    sigfillset(&act.sa_mask);
    CHECK(!sigaction(SIGUSR1, &act, NULL)); /* before */
    start();
    CHECK(!sigaction(SIGUSR2, &act, NULL)); /* after */
    CHECK(!merge(page, 1, 1));
    raise(SIGUSR1);
    CHECK(!merge(page, 1, 1));
    raise(SIGUSR2);
    sigfillset(&set);
    CHECK(!sigprocmask(SIG_SETMASK, &set, NULL));
    CHECK(!merge(page, 1, 1));
    kill(getpid(), SIGUSR2);
    sigdelset(&set, SIGUSR2); /* all but it, SIGSEGV too, while the handler runs */
    CHECK(sigsuspend(&set) == -1 && errno == EINTR);
    CHECK(times == 3);
}

static void test_what_is_told(void)
{
    EXITS(tells_the_program_its_own, 0);
    EXITS(masks_round_trip, 0);
    if (SIGNALS_TOO)
        EXITS(other_handlers_write, 0);
}

/* ---- who owns it ---------------------------------------------------------------------------------------------- */

struct direct { /* what the kernel takes */
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static void foreign_handler(void)
{
    char text[160];
    struct direct foreign = { (void *)exits_7, 0, NULL, 0 };
    start();
    CHECK(ud__trap_owner_ok(text, sizeof text) == 1 && !text[0]);
    CHECK(!merge(page, 1, 1));
    syscall(SYS_rt_sigaction, SIGSEGV, &foreign, NULL, 8);
    CHECK(ud__trap_owner_ok(text, sizeof text) == 0);
    CHECK(strstr(text, "SIGSEGV is handled by ") && strstr(text, "test_sigchain+0x"), "%s", text);
    ud__trap_open_all();
    *(volatile char *)page += 1; /* nobody needs the handler any more */
    foreign.handler = SIG_DFL;
    syscall(SYS_rt_sigaction, SIGSEGV, &foreign, NULL, 8);
    CHECK(ud__trap_owner_ok(text, sizeof text) == 0 && strstr(text, "default action"), "%s", text);
}

static atomic_int stop_thread;
static void *blocks_everything(void *arg)
{
    sigset_t all;
    sigfillset(&all);
    prctl(PR_SET_NAME, "deaf");
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
    atomic_store((atomic_int *)arg, 1);
    while (!atomic_load(&stop_thread))
        usleep(1000);
    return NULL;
}

static void deaf_thread(void)
{
    char text[160];
    pthread_t t;
    atomic_int ready = 0;
    CHECK(!pthread_create(&t, NULL, blocks_everything, &ready));
    while (!atomic_load(&ready))
        usleep(1000);
    CHECK(ud__trap_enable(NULL, text, sizeof text) == -EBUSY);
    CHECK(strstr(text, "thread deaf (") && strstr(text, ") blocks SIGSEGV"), "%s", text);
    atomic_store(&stop_thread, 1);
    pthread_join(t, NULL);
    CHECK(ud__trap_owner_ok(text, sizeof text) == 1, "%s", text);
}

__attribute__((unused)) static void test_owner(void)
{
    EXITS(foreign_handler, 0);
    EXITS(deaf_thread, 0);
}

static void *changes_actions(void *arg)
{
    while (!atomic_load((atomic_int *)arg)) {
        install(jumps, NULL, 0);
        install(NULL, exits_8_with_info, SA_RESETHAND);
    }
    return NULL;
}

/* Another thread sets actions without a pause while this one splits and reads them. */
static void test_actions_under_fire(void)
{
    struct sigaction old;
    atomic_int stop = 0;
    pthread_t t;
    start();
    install(jumps, NULL, 0);
    CHECK(!pthread_create(&t, NULL, changes_actions, &stop));
    for (int i = 0; i < 2000; i++) {
        write_managed();
        CHECK(!sigaction(SIGSEGV, NULL, &old));
        CHECK(old.sa_handler == jumps || (old.sa_sigaction == exits_8_with_info && old.sa_flags & SA_RESETHAND));
    }
    atomic_store(&stop, 1);
    pthread_join(t, NULL);
    signal(SIGSEGV, SIG_DFL);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        { "program_handlers", test_program_handlers },
        { "what_is_told", test_what_is_told },
#ifndef __SANITIZE_THREAD__ /* its own thread blocks SIGSEGV */
        { "owner", test_owner },
#endif
        { "actions_under_fire", test_actions_under_fire },
        { NULL, NULL },
    };
    ud__base_init();
    page = new_region(1);
    return run_tests(tests, argc, argv);
}
