/* sigchain.c: whose SIGSEGV it is: ours first, then the program's, as if we were not there.
 *
 * The kernel has our handler; the program's own action is kept here, and sigaction and signal are interposed to set and
 * tell it. A fault that ud__trap_serve does not take goes to that action the way the kernel would bring it:
 * its mask, SA_NODEFER, SA_RESETHAND, one or three arguments; SA_ONSTACK and SA_RESTART are copied to ours.
 * With the default action the process dies by SIGSEGV at the very instruction, with its core.
 *
 * SIGSEGV must never be blocked for real, or a write to a protected page would kill. So the program's masks are
 * translated: SIGSTKFLT, which Linux never sends, stands for a blocked SIGSEGV. A fault of the
 * program's own while it is "blocked" kills, as the kernel would; siglongjmp and sigreturn restore it by themselves.
 * SIGBUS is left alone: protection never raises it, and sealed segments cannot be cut short.
 *
 * Guarantees: no lock; sigaction stays async-signal-safe; errno and results as without us.
 * Fails: calls that pass by the interposers (direct system calls, a program that was not preloaded, threads that
 * had SIGSEGV blocked before) are found by ud__trap_owner_ok, and trap mode is refused. An action that runs
 * inside another's temporary mask (sigsuspend, ppoll, ...) is covered; sigaction called
 * 64 times while one fault is being passed on is not.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_NEXT, ppoll */
#endif
#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <ucontext.h>

#include "internal.h"
#include "kernel_signal.h"
#include "trap.h"

#define BIT(sig) UD__SIGBIT(sig)
#define STAND_IN BIT(SIGSTKFLT)

struct action { /* what the program asked for; mask untranslated */
    void *handler;
    unsigned long flags;
    uint64_t mask;
};
#define RING 64 /* actions are written once and found by number, so that no reader needs a lock */
static struct {
    _Atomic uint64_t number;
    void *_Atomic handler;
    _Atomic uint64_t flags, mask;
} ring[RING];
static _Atomic uint64_t newest, numbers; /* newest: number of the action that counts; 0 = default */
static atomic_int installed, virtual_mask;

/* ---- the program's action ------------------------------------------------------------------------- */

static uint64_t write_action(const struct action *a)
{
    uint64_t n = atomic_fetch_add(&numbers, 1) + 1;
    atomic_store(&ring[n % RING].number, 0);
    atomic_store(&ring[n % RING].handler, a->handler);
    atomic_store(&ring[n % RING].flags, a->flags);
    atomic_store(&ring[n % RING].mask, a->mask);
    atomic_store(&ring[n % RING].number, n);
    return n;
}

static struct action read_action(uint64_t n)
{
    struct action a = {SIG_DFL, 0, 0};
    if (n) {
        a.handler = atomic_load(&ring[n % RING].handler);
        a.flags = atomic_load(&ring[n % RING].flags);
        a.mask = atomic_load(&ring[n % RING].mask);
    }
    return a;
}

static struct action current_action(uint64_t *number)
{
    for (;;) {
        uint64_t n = atomic_load(&newest);
        struct action a = read_action(n);
        if (!n || atomic_load(&ring[n % RING].number) == n) {
            *number = n;
            return a;
        }
    }
}

/* ---- masks -------------------------------------------------------------------------------------------- */

static uint64_t to_kernel(uint64_t mask)
{
    uint64_t rest = mask & ~(BIT(SIGSEGV) | STAND_IN);
    return mask & BIT(SIGSEGV) ? rest | STAND_IN : rest;
}

static uint64_t to_program(uint64_t mask)
{
    return mask & STAND_IN ? (mask & ~STAND_IN) | BIT(SIGSEGV) : mask;
}

void ud__sig_virtual_mask(void)
{
    atomic_store(&virtual_mask, 1);
}

static uint64_t first_word(const void *set)
{
    uint64_t v;
    __builtin_memcpy(&v, set, 8);
    return v;
}

/* ---- our handler ---------------------------------------------------------------------------------------- */

static void handler(int sig, siginfo_t *info, void *ucontext);

#if defined(__x86_64__)
/* The bytes are those of libc's own: unwinders know a signal frame by them. */
__asm__(".text\n"
        "  nop\n"
        ".globl ud__sigreturn\n"
        ".hidden ud__sigreturn\n"
        ".type ud__sigreturn,@function\n"
        "ud__sigreturn:\n"
        "  movq $15, %rax\n"
        "  syscall\n"
        ".size ud__sigreturn,.-ud__sigreturn\n");
#endif

static long kernel_set(const struct ud__sigaction *new, struct ud__sigaction *old)
{
    return ud__sys(__NR_rt_sigaction, SIGSEGV, new, old, 8);
}

/* Our handler, with those flags of the program's action that the kernel alone can honour. */
static long take(const struct action *a, struct ud__sigaction *old)
{
    int has_handler = a->handler != SIG_DFL && a->handler != SIG_IGN;
    unsigned long flags = SA_SIGINFO | SA_NODEFER | UD__RESTORER_FLAG;
    flags |= has_handler ? a->flags & (SA_ONSTACK | SA_RESTART) : SA_ONSTACK | SA_RESTART;
    struct ud__sigaction k = {(void *)handler, flags, UD__RESTORER, 0};
    return kernel_set(&k, old);
}

static struct action from_kernel(const struct ud__sigaction *k)
{
    return (struct action){k->handler, k->flags & ~UD__KERNEL_RESTORER, k->mask};
}

/* Handlers set before: none may run with SIGSEGV blocked for real. */
static void translate_old_handlers(void)
{
    for (int sig = 1; sig <= 64; sig++) {
        struct ud__sigaction k;
        if (sig == SIGSEGV || ud__sys(__NR_rt_sigaction, sig, 0, &k, 8) || !(k.mask & BIT(SIGSEGV)))
            continue;
        k.mask = to_kernel(k.mask);
        ud__sys(__NR_rt_sigaction, sig, &k, 0, 8);
    }
}

int ud__sig_install(void)
{
    struct ud__sigaction k, was;
    long r = kernel_set(NULL, &k);
    while (!r && k.handler != (void *)handler) {
        struct action a = from_kernel(&k);
        atomic_store(&newest, write_action(&a)); /* before our handler may need it */
        r = take(&a, &was);
        if (was.handler == k.handler)
            break;
        k = was; /* another thread set it meanwhile */
    }
    if (!r && !atomic_exchange(&installed, 1))
        translate_old_handlers();
    return (int)r;
}

int ud__sig_ours(void **owner)
{
    struct ud__sigaction k = {0};
    kernel_set(NULL, &k);
    *owner = k.handler;
    return k.handler == (void *)handler;
}

/* The process ends as it would have without us. A fault: the instruction is met again, by nobody. */
static void die(const siginfo_t *info)
{
    struct ud__sigaction dfl = {0};
    kernel_set(&dfl, NULL);
    if (info->si_code > 0)
        return;
    long pid = ud__sys(__NR_getpid), tid = ud__sys(__NR_gettid);
    if (ud__sys(__NR_rt_tgsigqueueinfo, pid, tid, SIGSEGV, info))
        ud__sys(__NR_tgkill, pid, tid, SIGSEGV);
}

/* Brings the signal to the program's own action. */
static void chain(int sig, siginfo_t *info, ucontext_t *uc)
{
    int fault = info->si_code > 0;
    uint64_t number, mask = first_word(&uc->uc_sigmask), inner;
    struct action a;
    do {
        a = current_action(&number);
        if (a.handler == SIG_IGN && !fault)
            return;
        if (a.handler == SIG_DFL || a.handler == SIG_IGN || (fault && mask & STAND_IN)) {
            die(info);
            return;
        }
        struct action reset = {SIG_DFL, a.flags, a.mask};
        if (!(a.flags & SA_RESETHAND) || atomic_compare_exchange_strong(&newest, &number, write_action(&reset)))
            break;
    } while (1);

    inner = mask | to_kernel(a.mask) | (a.flags & SA_NODEFER ? 0 : STAND_IN);
    ud__sys(__NR_rt_sigprocmask, SIG_SETMASK, &inner, 0, 8);
    if (a.flags & SA_SIGINFO)
        ((void (*)(int, siginfo_t *, void *))a.handler)(sig, info, uc);
    else
        ((void (*)(int))a.handler)(sig);
    mask = first_word(&uc->uc_sigmask); /* the handler may have changed what it returns to */
    if (mask & BIT(SIGSEGV)) {
        mask = (mask & ~BIT(SIGSEGV)) | STAND_IN;
        __builtin_memcpy(&uc->uc_sigmask, &mask, 8);
    }
}

static void handler(int sig, siginfo_t *info, void *ucontext)
{
    if (!ud__trap_serve(info, ucontext))
        chain(sig, info, ucontext);
}

/* ---- interposed: actions ----------------------------------------------------------------------------------- */

#define REAL(name) ((__typeof__(&name))real(#name, &name##_next))
static void *_Atomic sigaction_next, *_Atomic signal_next, *_Atomic sigprocmask_next, *_Atomic pthread_sigmask_next,
    *_Atomic sigsuspend_next, *_Atomic ppoll_next, *_Atomic pselect_next, *_Atomic epoll_pwait_next;

static void *real(const char *name, void *_Atomic *at)
{
    void *p = atomic_load_explicit(at, memory_order_relaxed);
    if (UD_UNLIKELY(!p)) {
        p = dlsym(RTLD_NEXT, name);
        atomic_store(at, p);
    }
    return p;
}

/* dlsym is no business of a signal handler: all of it is found before the program starts. */
__attribute__((constructor(101))) static void find_next(void)
{
    REAL(sigaction), REAL(signal), REAL(sigprocmask), REAL(pthread_sigmask);
    REAL(sigsuspend), REAL(ppoll), REAL(pselect), REAL(epoll_pwait);
}

static void set_own(const struct sigaction *act, struct sigaction *old)
{
    uint64_t number;
    if (act) {
        struct action a = {(void *)act->sa_handler, (unsigned)act->sa_flags, first_word(&act->sa_mask)};
        struct ud__sigaction k;
        number = atomic_exchange(&newest, write_action(&a));
        take(&a, &k);
    } else {
        (void)current_action(&number);
    }
    if (old) {
        struct action was = read_action(number);
        __builtin_memset(old, 0, sizeof *old);
        old->sa_handler = (__sighandler_t)was.handler;
        old->sa_flags = (int)was.flags;
        __builtin_memcpy(&old->sa_mask, &was.mask, 8);
    }
}

static int any_action(int sig, const struct sigaction *act, struct sigaction *old)
{
    if (!atomic_load(&virtual_mask))
        return REAL(sigaction)(sig, act, old);
    if (sig == SIGSEGV && atomic_load(&installed)) {
        struct sigaction copy; /* act and old may be one */
        if (act)
            copy = *act;
        set_own(act ? &copy : NULL, old);
        return 0;
    }
    struct sigaction mine;
    if (act) {
        uint64_t mask = to_kernel(first_word(&act->sa_mask));
        mine = *act;
        __builtin_memcpy(&mine.sa_mask, &mask, 8);
    }
    int r = REAL(sigaction)(sig, act ? &mine : NULL, old);
    if (old && !r) {
        uint64_t mask = to_program(first_word(&old->sa_mask));
        __builtin_memcpy(&old->sa_mask, &mask, 8);
    }
    if (sig == SIGSEGV && act && !r && atomic_load(&installed))
        ud__sig_install(); /* it was installed meanwhile: back in front */
    return r;
}

/* SIGURG is ours for the time of a hold by signal (hold_signal.c): the program's own action waits for its end. */
static int held_by_signal(int sig) { return UD_UNLIKELY(sig == SIGURG && atomic_load(&ud__hold_way) == UD_HOLD_SIGNAL); }

UD_API int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    uint64_t mask;
    if (!held_by_signal(sig) || ud__in_vfork())
        return any_action(sig, act, old);
    ud__job_lock(&mask);
    int r = any_action(sig, act, old), e = errno;
    ud__job_unlock(&mask);
    errno = e;
    return r;
}

static __sighandler_t set_simply(int sig, __sighandler_t fn, int flags)
{
    struct sigaction act, old;
    __builtin_memset(&act, 0, sizeof act);
    act.sa_handler = fn;
    act.sa_flags = flags;
    if (!(flags & SA_NODEFER)) {
        uint64_t mask = BIT(sig);
        __builtin_memcpy(&act.sa_mask, &mask, 8);
    }
    return sigaction(sig, &act, &old) ? SIG_ERR : old.sa_handler;
}

UD_API __sighandler_t signal(int sig, __sighandler_t fn)
{
    if (!held_by_signal(sig) && (sig != SIGSEGV || !atomic_load(&installed)))
        return REAL(signal)(sig, fn);
    return set_simply(sig, fn, SA_RESTART);
}

UD_API __sighandler_t bsd_signal(int sig, __sighandler_t fn)
{
    return signal(sig, fn);
}

UD_API __sighandler_t ssignal(int sig, __sighandler_t fn)
{
    return signal(sig, fn);
}

UD_API __sighandler_t __sysv_signal(int sig, __sighandler_t fn)
{
    if (sig < 1 || sig > 64) {
        errno = EINVAL;
        return SIG_ERR;
    }
    return set_simply(sig, fn, SA_RESETHAND | SA_NODEFER);
}

UD_API __sighandler_t sysv_signal(int sig, __sighandler_t fn)
{
    return __sysv_signal(sig, fn);
}

/* ---- interposed: masks ---------------------------------------------------------------------------------------- */

/* The set as the kernel may have it; tmp is where it is made. */
static const sigset_t *translated(const sigset_t *set, sigset_t *tmp)
{
    if (!set || !atomic_load(&virtual_mask))
        return set;
    uint64_t mask = to_kernel(first_word(set));
    *tmp = *set;
    __builtin_memcpy(tmp, &mask, 8);
    return tmp;
}

static void translate_back(sigset_t *set)
{
    if (!set || !atomic_load(&virtual_mask))
        return;
    uint64_t mask = to_program(first_word(set));
    __builtin_memcpy(set, &mask, 8);
}

static const sigset_t *for_change(int how, const sigset_t *set, sigset_t *tmp)
{
    const sigset_t *use = translated(set, tmp);
    if (use != set && how == SIG_UNBLOCK && first_word(set) & BIT(SIGSEGV))
        sigaddset(tmp, SIGSEGV); /* from before we were there */
    return use;
}

UD_API int sigprocmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t tmp;
    int r = REAL(sigprocmask)(how, for_change(how, set, &tmp), old);
    if (!r)
        translate_back(old);
    return r;
}

UD_API int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
    sigset_t tmp;
    int r = REAL(pthread_sigmask)(how, for_change(how, set, &tmp), old);
    if (!r)
        translate_back(old);
    return r;
}

UD_API int sigsuspend(const sigset_t *set)
{
    sigset_t tmp;
    return REAL(sigsuspend)(translated(set, &tmp));
}

UD_API int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *set)
{
    sigset_t tmp;
    return REAL(ppoll)(fds, n, timeout, translated(set, &tmp));
}

UD_API int pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout, const sigset_t *set)
{
    sigset_t tmp;
    return REAL(pselect)(n, r, w, e, timeout, translated(set, &tmp));
}

UD_API int epoll_pwait(int fd, struct epoll_event *events, int n, int timeout, const sigset_t *set)
{
    sigset_t tmp;
    return REAL(epoll_pwait)(fd, events, n, timeout, translated(set, &tmp));
}
