/* restart.c: in the handler that parks threads: no call of the program ends because of it.
 *
 * The kernel ends a sleep for a handler in one of two ways, and the signal frame tells which:
 *
 *   read, recv, wait4, futex ...        the frame points at the system call instruction: it is made again (SA_RESTART)
 *   poll, nanosleep, epoll_wait ...     the frame points behind it, with -EINTR: we point it at the instruction again,
 *                                       the number back in its register, what is left of the timeout in its argument
 *
 * Either way a signal of the program's may have come while the thread was parked, and its EINTR is owed: then the call ends
 * with EINTR, and the handler runs as soon as ours returns. What comes later, before the call sleeps again, is to
 * the program a signal that came just before the call.
 *
 * The number of the call is in the instruction before it (`mov $nr, %eax; syscall`, as libc writes it), or where
 * syscall(2) leaves it (interpose_syscall.c), else as the agent saw it before the hold (sleepers.c).
 *
 * Guarantees: no call is made again whose number is not known for certain. Calls with a signal mask of their own are
 * left alone: to those a signal never comes "just before".
 * Fails: a call that shows an interruption, entered since the agent looked (precheck.c), shows it.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>

#include "kernel_signal.h"
#include "restart.h"
#include "sleepers.h"

#define NR_EPOLL_PWAIT2 441
#define FUTEX_COMMAND 0x7f
enum { F_WAIT = 0, F_LOCK_PI = 6, F_WAIT_BITSET = 9, F_LOCK_PI2 = 13 };

static enum ud__call futex_kind(const uint64_t *args)
{
    switch (args[1] & FUTEX_COMMAND) {
    case F_WAIT:
    case F_WAIT_BITSET:
        return args[3] ? UD__CALL_MENDED : UD__CALL_RESTARTS;
    case F_LOCK_PI:
    case F_LOCK_PI2:
        return UD__CALL_RESTARTS;
    default:
        return UD__CALL_SHOWS;
    }
}

enum ud__call ud__call_kind(unsigned long nr, const uint64_t args[6])
{
    switch (nr) {
    case __NR_read:
    case __NR_readv:
    case __NR_accept:
    case __NR_accept4:
    case __NR_connect:
    case __NR_wait4:
    case __NR_waitid:
    case __NR_flock:
    case __NR_fcntl:
    case __NR_openat:
    case __NR_getrandom:
#ifdef __NR_open
    case __NR_open:
#endif
        return UD__CALL_RESTARTS;
    case __NR_recvfrom:
        return args[3] & MSG_WAITALL ? UD__CALL_SHOWS : UD__CALL_RESTARTS;
    case __NR_recvmsg:
        return args[2] & MSG_WAITALL ? UD__CALL_SHOWS : UD__CALL_RESTARTS;
    case __NR_futex:
        return futex_kind(args);
#ifdef __NR_poll
    case __NR_poll:
    case __NR_select:
    case __NR_epoll_wait:
    case __NR_pause:
#endif
    case __NR_nanosleep:
    case __NR_clock_nanosleep:
    case __NR_semop:
    case __NR_semtimedop:
    case __NR_msgrcv:
    case __NR_msgsnd:
    case __NR_rt_sigtimedwait:
    case __NR_io_getevents:
        return UD__CALL_MENDED;
    case __NR_ppoll:
        return args[3] ? UD__CALL_SHOWS : UD__CALL_MENDED;
    case __NR_epoll_pwait:
    case NR_EPOLL_PWAIT2:
        return args[4] ? UD__CALL_SHOWS : UD__CALL_MENDED;
    case __NR_pselect6:
        return args[5] ? UD__CALL_SHOWS : UD__CALL_MENDED;
    default:
        return UD__CALL_SHOWS;
    }
}

/* A handler of the program's runs when ours returns: for calls that SA_RESTART starts again, one without it. */
static int eintr_is_owed(uint64_t outer_mask, enum ud__call kind)
{
    uint64_t pending = 0;
    if (!UD__GUARD_ON(UD__GUARD_OWED))
        return 0;
    ud__sys(__NR_rt_sigpending, &pending, 8);
    pending &= ~UD__SIGBIT(SIGURG); /* the next hold's: it is ours, too */
    for (pending &= ~outer_mask; pending; pending &= pending - 1) {
        struct ud__sigaction a;
        int sig = __builtin_ctzll(pending) + 1;
        if (ud__sys(__NR_rt_sigaction, sig, 0, &a, 8) || a.handler == SIG_DFL || a.handler == SIG_IGN)
            continue;
        if (kind == UD__CALL_MENDED || !(a.flags & SA_RESTART))
            return 1;
    }
    return 0;
}

/* A socket with a timeout of its own: such a call ends with EINTR, SA_RESTART or not. */
static int has_timeout(unsigned long nr, int fd)
{
    struct timeval t = {0, 0};
    unsigned len = sizeof t;
    int which = nr == __NR_connect ? SO_SNDTIMEO : SO_RCVTIMEO;
    return ud__sys(__NR_getsockopt, fd, SOL_SOCKET, which, &t, &len) == 0 && (t.tv_sec || t.tv_usec);
}

static atomic_int ambiguous;

int ud__restart_ambiguous(void)
{
    int found = 0;
    for (int sig = 1; sig <= 64 && !found; sig++) {
        struct ud__sigaction a;
        found = sig != SIGURG && !ud__sys(__NR_rt_sigaction, sig, 0, &a, 8) && a.handler != SIG_DFL &&
                a.handler != SIG_IGN && a.mask & UD__SIGBIT(SIGURG);
    }
    atomic_store(&ambiguous, found);
    return found;
}

/* The bytes before `code` may be read: a page that ends there may be anybody's. */
static int same_page(const uint8_t *code, unsigned bytes) { return ((uint64_t)code & (ud__page - 1)) >= bytes; }

int ud__restart_is_ambiguous(void) { return atomic_load(&ambiguous); }

/* The number of the call that the thread was seen asleep in at this place; -1 if none. */
static long number_noted(const struct ud__sleep *was, uint64_t sp, uint64_t pc)
{
    return was && was->sp == sp && was->pc == pc ? (long)was->nr : -1;
}

#if defined(__x86_64__)

#define PC(uc) (uc)->uc_mcontext.gregs[REG_RIP]
#define RESULT(uc) (uc)->uc_mcontext.gregs[REG_RAX]
#define SYSCALL_BYTES 2

static int is_syscall(const uint8_t *code) { return code[0] == 0x0f && code[1] == 0x05; }

/* "b8 nr nr nr nr" right before the instruction, and no prefix that makes it another register's. -1 if it is not so. */
static long number_before(const uint8_t *code)
{
    uint32_t nr;
    if (!same_page(code, 6) || code[-5] != 0xb8 || (code[-6] & 0xf0) == 0x40)
        return -1;
    __builtin_memcpy(&nr, code - 4, 4);
    return nr < 1024 ? (long)nr : -1;
}

/* Made by syscall(2): see interpose_syscall.c. */
static long number_kept(const ucontext_t *uc, const uint8_t *code)
{
    extern const uint8_t ud__syscall_instruction[] UD_HIDDEN;
    return code == ud__syscall_instruction && UD__GUARD_ON(UD__GUARD_NUMBER) ? *(const long *)(ud__uc_sp(uc) - 8) : -1;
}

static void arguments(ucontext_t *uc, unsigned long *at[6])
{
    static const int regs[6] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
    for (int i = 0; i < 6; i++)
        at[i] = (unsigned long *)&uc->uc_mcontext.gregs[regs[i]];
}

static long call_number(const struct ud__sleep *was, ucontext_t *uc, const uint8_t *code)
{
    long nr = number_before(code);
    if (nr < 0)
        nr = number_kept(uc, code);
    return nr >= 0 ? nr : number_noted(was, ud__uc_sp(uc), (uint64_t)PC(uc));
}

static void make_again(ucontext_t *uc, long nr)
{
    PC(uc) -= SYSCALL_BYTES;
    RESULT(uc) = nr;
}

/* The number of the call that the kernel makes again: it is back in its register. */
static long restarting(const ucontext_t *uc) { return RESULT(uc); }

#else /* aarch64 */

#define PC(uc) (uc)->uc_mcontext.pc
#define RESULT(uc) (*(long *)&(uc)->uc_mcontext.regs[0])
#define SYSCALL_BYTES 4

static int is_syscall(const uint8_t *code) { return *(const uint32_t *)code == 0xd4000001u; }

static void arguments(ucontext_t *uc, unsigned long *at[6])
{
    for (int i = 0; i < 6; i++)
        at[i] = (unsigned long *)&uc->uc_mcontext.regs[i];
}

/* The number is still in x8; the first argument gave way to the result, only the agent has seen it. */
static long call_number(const struct ud__sleep *was, ucontext_t *uc, const uint8_t *code)
{
    long nr = number_noted(was, ud__uc_sp(uc), PC(uc));
    (void)code;
    if (nr < 0 || nr != (long)uc->uc_mcontext.regs[8])
        return -1;
    RESULT(uc) = (long)was->first;
    return nr;
}

static void make_again(ucontext_t *uc, long nr)
{
    (void)nr;
    PC(uc) -= SYSCALL_BYTES;
}

static long restarting(const ucontext_t *uc) { return (long)uc->uc_mcontext.regs[8]; }

#endif

static enum ud__call kind_of(long nr, unsigned long *const at[6])
{
    uint64_t args[6];
    for (int i = 0; i < 6; i++)
        args[i] = *at[i];
    return nr < 0 ? UD__CALL_SHOWS : ud__call_kind((unsigned long)nr, args);
}

/* Ended with EINTR, by our signal as far as can be told. */
static void mend(int tid, ucontext_t *uc, const uint8_t *code, uint64_t mask, const struct ud__sleep *was, struct timespec *place)
{
    unsigned long *at[6];
    long result = RESULT(uc), nr = call_number(was, uc, code);
    arguments(uc, at);
    enum ud__call kind = kind_of(nr, at);
    int timed = kind == UD__CALL_RESTARTS && has_timeout((unsigned long)nr, (int)*at[0]);
    if ((kind != UD__CALL_MENDED && !timed) || atomic_load(&ambiguous) || eintr_is_owed(mask, UD__CALL_MENDED)) {
        RESULT(uc) = result;
        return;
    }
    if (timed) /* its time begins anew: once */
        ud__timed_note(tid, (unsigned long)nr, ud__uc_sp(uc));
    if (was && place && (long)was->nr == nr)
        ud__sleepers_shorten_here(was, ud__uc_sp(uc), at, place);
    make_again(uc, nr);
}

void ud__restart_call(int tid, ucontext_t *uc, const struct ud__sleep *was, struct timespec *place)
{
    const uint8_t *code = (const uint8_t *)PC(uc);
    uint64_t mask;
    unsigned long *at[6];
    __builtin_memcpy(&mask, &uc->uc_sigmask, 8);
    arguments(uc, at);
    if (RESULT(uc) == -EINTR && same_page(code, SYSCALL_BYTES) && is_syscall(code - SYSCALL_BYTES)) {
        mend(tid, uc, code - SYSCALL_BYTES, mask, was, place);
    } else if (is_syscall(code) && kind_of(restarting(uc), at) == UD__CALL_RESTARTS &&
               eintr_is_owed(mask, UD__CALL_RESTARTS)) {
        PC(uc) += SYSCALL_BYTES;
        RESULT(uc) = -EINTR;
    }
}
