/* link.c: messages between this agent and the merger (wire.h).
 *
 * Guarantees: the peer's uid is ours (or the connection is not made); a message of a wrong shape ends
 * the connection and touches nothing. Descriptors that come are closed unless a plan keeps them.
 * Fails: -errno; a merger that died is found by the next send or receive, and the agent connects again later.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "link.h"
#include "trap.h"

static char *inbox; /* UD_MSG_MAX */

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * 4)];
};

int ud__link_send(void *msg, uint16_t type, uint32_t len, int fd)
{
    struct ud_msg *m = msg;
    union control c = {{0}};
    struct iovec iov = {msg, len};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
    m->magic = UD_WIRE_MAGIC;
    m->type = type;
    m->version = UD_WIRE_VERSION;
    m->len = len;
    if (fd >= 0) {
        h.msg_control = c.bytes;
        h.msg_controllen = CMSG_SPACE(sizeof fd);
        struct cmsghdr *cm = CMSG_FIRSTHDR(&h);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof fd);
        __builtin_memcpy(CMSG_DATA(cm), &fd, sizeof fd);
    }
    for (int tries = 0; tries < 200; tries++) {
        long r = ud__sys(__NR_sendmsg, ud__a.sock, &h, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (r != -EAGAIN && r != -EINTR)
            return r < 0 ? (int)r : 0;
        ud__sleep_us(5000); /* the merger is busy: its queue is full */
    }
    return -ETIMEDOUT;
}

/* Bytes received into inbox, 0 at the end of the stream, -errno. *fd: a descriptor that came with it, or -1. */
static long receive(int *fd, int flags)
{
    union control c = {{0}};
    struct iovec iov = {inbox, UD_MSG_MAX};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.bytes, .msg_controllen = sizeof c.bytes};
    *fd = -1;
    long n = ud__sys(__NR_recvmsg, ud__a.sock, &h, flags | MSG_CMSG_CLOEXEC);
    if (n < 0)
        return n;
    for (struct cmsghdr *cm = CMSG_FIRSTHDR(&h); cm; cm = CMSG_NXTHDR(&h, cm)) {
        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int got;
            __builtin_memcpy(&got, CMSG_DATA(cm) + i * sizeof got, sizeof got);
            if (*fd < 0)
                *fd = got;
            else
                ud__sys(__NR_close, got);
        }
    }
    return h.msg_flags & MSG_TRUNC ? -EMSGSIZE : n;
}

static int well_formed(long n)
{
    const struct ud_msg *m = (const struct ud_msg *)inbox;
    return n >= (long)sizeof *m && m->magic == UD_WIRE_MAGIC && m->version == UD_WIRE_VERSION && m->len == (uint32_t)n;
}

static int runs_fit(const struct ud_msg_runs *m, long n)
{
    return n >= (long)sizeof *m && m->nruns <= UD_MSG_MAX_RUNS &&
           n == (long)(sizeof *m + (size_t)m->nruns * sizeof(struct ud_run));
}

static int connect_to_merger(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct ucred peer = {0};
    unsigned len = sizeof peer;
    ud__put_str(a.sun_path, a.sun_path + sizeof a.sun_path, ud__a.socket);
    long s = ud__sys(__NR_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0)
        return (int)s;
    long r = ud__sys(__NR_connect, s, &a, sizeof a);
    if (r == 0)
        r = ud__sys(__NR_getsockopt, s, SOL_SOCKET, SO_PEERCRED, &peer, &len);
    if (r == 0 && peer.uid != (uid_t)ud__sys(__NR_geteuid))
        r = -EPERM;
    if (r < 0) {
        ud__sys(__NR_close, s);
        return (int)r;
    }
    ud__a.sock = (int)s;
    return 0;
}

static int greet(void)
{
    size_t n;
    const struct ud__segment *seg = ud__segment_list(&n);
    struct ud_msg_hello hello = {.pid = (uint32_t)ud__a.pid, .page_shift = ud__page_shift, .segments = (uint32_t)n};
    char path[] = "/proc/self/comm";
    if (ud__a.have_key) {
        hello.key[0] = ud__a.key[0];
        hello.key[1] = ud__a.key[1];
        hello.flags = !ud__a.knobs.merge_across_nodes;
    }
    long got = ud__read_file(path, hello.comm, sizeof hello.comm);
    for (long i = 0; i < got; i++)
        if (hello.comm[i] == '\n')
            hello.comm[i] = 0;
    int r = ud__link_send(&hello, UD_MSG_HELLO, sizeof hello, ud__a.ledger.fd);
    for (size_t i = 0; r == 0 && i < n; i++) {
        struct ud_msg_segment m = {.segment = seg[i].inode, .npages = seg[i].npages, .node = seg[i].node};
        r = ud__link_send(&m, UD_MSG_SEGMENT, sizeof m, seg[i].fd);
    }
    return r;
}

static void take_key(const struct ud_msg_welcome *w)
{
    if (ud__a.have_key && (ud__a.key[0] != w->key[0] || ud__a.key[1] != w->key[1]))
        ud__scan_forget(); /* old digests mean nothing to this merger */
    ud__a.key[0] = w->key[0];
    ud__a.key[1] = w->key[1];
    ud__a.have_key = 1;
}

static int take_welcome(void)
{
    int fd;
    struct pollfd p = {.fd = ud__a.sock, .events = POLLIN};
    struct timespec ts = {5, 0};
    if (ud__sys(__NR_ppoll, &p, 1, &ts, 0, 8) <= 0)
        return -ETIMEDOUT;
    long n = receive(&fd, MSG_DONTWAIT);
    ud__turns_use(fd);
    const struct ud_msg_welcome *w = (const struct ud_msg_welcome *)inbox;
    if (n != sizeof *w || !well_formed(n) || w->msg.type != UD_MSG_WELCOME)
        return -EPROTO;
    take_key(w);
    ud__a.knobs = w->knobs;
    ud__trap_apply(&ud__a.knobs);
    return 0;
}

int ud__link_open(void)
{
    if (!inbox && !(inbox = ud__alloc(UD_MSG_MAX)))
        return -ENOMEM;
    int r = connect_to_merger();
    if (r == 0 && (r = greet()) == 0)
        r = take_welcome();
    if (r < 0)
        ud__link_close();
    return r;
}

void ud__link_close(void)
{
    if (ud__a.sock >= 0)
        ud__sys(__NR_close, ud__a.sock);
    ud__a.sock = -1;
}

static int answer(const struct ud_msg_runs *m, struct ud_msg_result *res, uint16_t type, int fd)
{
    res->msg.plan = m->msg.plan;
    return ud__link_send(res, type, sizeof *res, fd);
}

static void new_knobs(const struct ud_msg_welcome *w)
{
    const struct ud_knobs *k = &w->knobs;
    uint32_t before = ud__a.knobs.run;
    take_key(w); /* a new one comes with merge_across_nodes */
    ud__a.knobs = *k;
    ud__trap_apply(k);
    if (k->run == 2 && before != 2)
        ud__plan_unmerge(NULL, 0);
}

static int dispatch(long n, int *fd)
{
    const struct ud_msg *m = (const struct ud_msg *)inbox;
    const struct ud_msg_runs *runs = (const struct ud_msg_runs *)inbox;
    struct ud_msg_result res = {0};
    int out, r;
    switch (m->type) {
    case UD_MSG_PUBLISH:
        if (!runs_fit(runs, n))
            return -EPROTO;
        ud__plan_publish(runs, &res, &out);
        return answer(runs, &res, UD_MSG_PUBLISHED, out);
    case UD_MSG_MERGE:
        if (!runs_fit(runs, n))
            return -EPROTO;
        ud__plan_merge(runs, *fd, &res);
        *fd = -1; /* kept or closed */
        return answer(runs, &res, UD_MSG_RESULT, -1);
    case UD_MSG_UNMERGE:
        if (!runs_fit(runs, n))
            return -EPROTO;
        res.merged = ud__plan_unmerge(runs->runs, runs->nruns);
        return answer(runs, &res, UD_MSG_RESULT, -1);
    case UD_MSG_FORGET:
        r = n == sizeof(struct ud_msg_segment) ? 0 : -EPROTO;
        if (r == 0)
            ud__segment_forget(((const struct ud_msg_segment *)inbox)->segment);
        return r;
    case UD_MSG_WELCOME:
    case UD_MSG_KNOBS:
        if (n != sizeof(struct ud_msg_welcome))
            return -EPROTO;
        new_knobs((const struct ud_msg_welcome *)inbox);
        return 0;
    case UD_MSG_KICK:
        ud__a.kicked = 3;
        ud__a.kicked_us = ud__now_us();
        return 0;
    case UD_MSG_LEAVE:
        atomic_store(&ud__a.leave, UD__LEAVE);
        return 0;
    default:
        return -EPROTO;
    }
}

int ud__link_serve(void)
{
    int fd;
    long n = receive(&fd, MSG_DONTWAIT);
    if (n == -EAGAIN || n == -EINTR)
        return 0;
    int r = n > 0 && well_formed(n) ? dispatch(n, &fd) : -EPIPE;
    if (fd >= 0)
        ud__sys(__NR_close, fd);
    return r < 0 ? r : 1;
}

int ud__link_wait(uint64_t us)
{
    struct timespec ts = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
    if (ud__a.sock < 0) { /* nobody to hear from: only a poke can wake us */
        ud__sys(__NR_futex, &ud__a.poke, 0, atomic_load(&ud__a.poke), &ts);
        return 0;
    }
    struct pollfd p = {.fd = ud__a.sock, .events = POLLIN};
    ud__sys(__NR_ppoll, &p, 1, &ts, 0, 8);
    return p.revents != 0;
}

void ud__link_rest(void) { ud__empty(inbox, UD_MSG_MAX); }

void ud__link_forked(void)
{
    inbox = NULL;
    ud__a.sock = -1;
}
