/* precheck.c: is any thread asleep in a system call that a stop would show in?
 *
 * Most calls that a stop interrupts are started again by the kernel, or by the holder (hold.c). Not those
 * that may have moved some bytes already (a blocking writev or sendmsg of much), and not vfork, whose
 * parent cannot be stopped at all. Such a batch is put off.
 *
 * Where threads are held by a signal, every sleep that is not known to go on (restart.c) is such a call.
 *
 * Guarantees: reads /proc/PID/task/TID/syscall only, before anybody is stopped.
 * Fails: open on a kernel without that file. A thread may enter such a call between this look and the stop; then a
 * blocking write can return short, as POSIX allows.
 */
#include <fcntl.h>
#include <sys/socket.h>

#include "internal.h"
#include "restart.h"
#include "sleepers.h"

static int moves_bytes(unsigned long nr, const uint64_t *args)
{
    switch (nr) {
#ifndef __x86_64__ /* there the holder lets them go on, resume.c */
    case __NR_write:
    case __NR_pwrite64:
    case __NR_sendto:
    case __NR_sendfile:
#endif
    case __NR_writev:
    case __NR_pwritev:
    case __NR_pwritev2:
    case __NR_sendmsg:
    case __NR_sendmmsg:
    case __NR_splice:
    case __NR_vmsplice:
    case __NR_tee:
    case __NR_copy_file_range:
        return 1;
    case __NR_recvfrom:
        return (args[3] & MSG_WAITALL) != 0;
    case __NR_recvmsg:
        return (args[2] & MSG_WAITALL) != 0;
    default:
        return 0;
    }
}

static int cannot_stop(unsigned long nr, const uint64_t *args)
{
#ifdef __NR_vfork
    if (nr == __NR_vfork)
        return 1;
#endif
#ifdef __NR_clone3
    if (nr == __NR_clone3) /* sleeps only for CLONE_VFORK */
        return 1;
#endif
    return nr == __NR_clone && (args[0] & 0x4000 /* CLONE_VFORK */);
}

struct look {
    int taskfd, self_tid;
    int by_signal, ambiguous; /* threads are held by a signal: no call may show it */
    int again;                /* by the holder, right before the signal */
};

/* Would the program see that the handler ran? What of the timeout is left must be known for what is started again. */
static int shows(const struct look *l, int tid, unsigned long nr, const uint64_t *args)
{
    enum ud__call kind = ud__call_kind(nr, args);
    if (kind == UD__CALL_SHOWS || (kind == UD__CALL_MENDED && l->ambiguous))
        return 1;
    if (l->again && kind == UD__CALL_MENDED) { /* asleep since the first look, or it is known: all of its time is left */
        ud__sleepers_add(l->taskfd, tid, nr, args);
        return 0;
    }
    return kind == UD__CALL_MENDED && ud__sleepers_note(l->taskfd, l->self_tid, tid, nr, args, 1) != 0;
}

/* "running", "-1 ...", or "NR 0xARG0 ... 0xARG5 0xSP 0xPC" */
static int judge(const struct look *l, int tid, const char *s)
{
    if (*s < '0' || *s > '9') {
        ud__timed_asleep(tid, 0, 0); /* it runs: out of any such call */
        return -1;
    }
    unsigned long nr = (unsigned long)ud__get_dec(&s);
    uint64_t args[8]; /* and stack pointer, program counter */
    for (int i = 0; i < 8; i++) {
        while (*s == ' ')
            s++;
        if (s[0] == '0' && s[1] == 'x')
            s += 2;
        args[i] = ud__get_hex(&s);
    }
    if (ud__timed_asleep(tid, nr, args[6]))
        return UD_CAUSE_SYSCALL;
    if (l->by_signal)
        return shows(l, tid, nr, args) ? UD_CAUSE_SYSCALL : -1;
    ud__sleepers_note(l->taskfd, l->self_tid, tid, nr, args, 0);
    return moves_bytes(nr, args) || cannot_stop(nr, args) ? UD_CAUSE_SYSCALL : -1;
}

static int look_at(const struct look *l, int tid)
{
    char text[256];
    long n = ud__read_task(l->taskfd, tid, "syscall", text, sizeof text);
    if (n <= 0) /* it has ended; or we may not look, and so cannot tell what a signal would do */
        return l->by_signal && !l->again && (n == -EACCES || n == -EPERM) ? UD_CAUSE_HOLD_REFUSED : -1;
    text[n] = 0;
    return judge(l, tid, text);
}

int ud__hold_precheck(int pid, int self_tid)
{
    char path[48], *end = path + sizeof path, buf[4096];
    char *at = ud__put_str(path, end, "/proc/");
    at = ud__put_dec(at, end, (uint64_t)pid);
    ud__put_str(at, end, "/task");
    long fd = ud__sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int by_signal = atomic_load(&ud__hold_way) == UD_HOLD_SIGNAL;
    struct look l = {(int)fd, self_tid, by_signal, by_signal && ud__restart_ambiguous(), 0};
    int cause = -1;
    long n;
    ud__sleepers_begin();
    while (cause < 0 && (n = ud__sys(__NR_getdents64, fd, buf, sizeof buf)) > 0)
        for (long off = 0; off < n && cause < 0;) {
            uint16_t reclen;
            __builtin_memcpy(&reclen, buf + off + 16, 2);
            const char *name = buf + off + 19;
            int tid = (int)ud__get_dec(&name);
            if (tid && tid != self_tid)
                cause = look_at(&l, tid);
            off += reclen;
        }
    ud__sys(__NR_close, fd);
    return cause;
}

/* Yama lets only threads of the program look; then the agent's look, a moment ago, must do. */
int ud__hold_look_again(const struct ud__hold *h, int tid)
{
    struct look l = {h->taskfd, 0, 1, ud__restart_is_ambiguous(), 1};
    return look_at(&l, tid);
}
