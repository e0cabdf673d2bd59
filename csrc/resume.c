/* resume.c: a blocking write that our stop cut short goes on where it was.
 *
 * A write of megabytes into a pipe that is stopped half-way returns what it has moved so far. POSIX allows that, programs
 * do not expect it. So the holder points the thread at a few instructions that write the rest and return the sum:
 *
 *   thread's stack:  ... red zone (128) | orig ip | moved so far | <- sp        registers: as in the call, buffer and
 *                                                                          count moved on by what is done
 *
 * Guarantees: the caller sees one call with one count. A short count that another cause brings about (a signal's handler,
 * a full disk, O_NONBLOCK) comes out as it would have. It nests: the rest may be stopped again.
 * Fails: where the frame cannot be written (stack at its guard) the short count stays. Not for calls that take a vector
 * (writev, sendmsg): precheck.c puts the batch off while somebody sleeps there. x86_64 only.
 */
#include <sys/uio.h>

#include "internal.h"

#if defined(__x86_64__)

void ud__resume_stub(void) UD_HIDDEN;

__asm__(".text\n"
        ".globl ud__resume_stub\n"
        ".hidden ud__resume_stub\n"
        ".type ud__resume_stub,@function\n"
        "ud__resume_stub:\n"
        "  syscall\n"
        "  testq %rax, %rax\n"
        "  js 1f\n"
        "  addq (%rsp), %rax\n"
        "  jmp 2f\n"
        "1: movq (%rsp), %rax\n"      /* it ends short after all */
        "2: movq 8(%rsp), %rcx\n"     /* rcx is the system call's to clobber */
        "  leaq 144(%rsp), %rsp\n"
        "  jmpq *%rcx\n"
        ".size ud__resume_stub,.-ud__resume_stub\n");

/* The registers of a call of this kind that hold buffer offset-wise what must move on; 0 if it is not one of them. */
static int move_on(struct ud__regs *r, uint64_t done)
{
    switch (r->orig_ax) {
    case __NR_pwrite64:
        r->r10 += done;
        /* fall through */
    case __NR_write:
    case __NR_sendto:
        if (done >= r->dx)
            return 0;
        r->si += done;
        r->dx -= done;
        return 1;
    case __NR_sendfile: /* the kernel has moved the offset */
        if (done >= r->r10)
            return 0;
        r->r10 -= done;
        return 1;
    default:
        return 0;
    }
}

int ud__resume_write(int pid, struct ud__regs *r)
{
    struct ud__regs now = *r;
    uint64_t frame[2] = {r->ax, r->ip};
    if ((long)r->orig_ax < 0 || (long)r->ax <= 0 || !move_on(&now, r->ax))
        return 0;
    now.sp = r->sp - 144;
    struct iovec mine = {frame, sizeof frame}, theirs = {(void *)now.sp, sizeof frame};
    if (ud__sys(__NR_process_vm_writev, pid, &mine, 1, &theirs, 1, 0) != sizeof frame)
        return 0;
    now.ip = (unsigned long)ud__resume_stub;
    now.ax = r->orig_ax;
    now.orig_ax = (unsigned long)-1l; /* no call is being restarted by the kernel: the stub makes it */
    *r = now;
    return 1;
}

#else

int ud__resume_write(int pid, struct ud__regs *r)
{
    (void)pid, (void)r;
    return 0;
}

#endif
