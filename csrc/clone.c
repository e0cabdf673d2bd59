/* clone.c: a task of our own on a stack of our own, without pthread.
 *
 * Guarantees: the child calls fn(arg) on the given stack and never touches the parent's; nothing of
 * libc is told, so libc's thread list, its single-thread flags and its locks stay as they are.
 * Async-signal-safe.
 * Fails: -EAGAIN, -ENOMEM, -EPERM as clone(2).
 */
#include "raw.h"

#if defined(__x86_64__)
__asm__(".text\n"
        ".globl ud__clone\n"
        ".hidden ud__clone\n"
        ".type ud__clone,@function\n"
        "ud__clone:\n" /* rdi flags, rsi stack, rdx tls, rcx ctid, r8 fn, r9 arg */
        "  andq $-16, %rsi\n"
        "  subq $16, %rsi\n"
        "  movq %r8, 0(%rsi)\n"
        "  movq %r9, 8(%rsi)\n"
        "  movq %rdx, %r8\n"   /* tls is the fifth argument of clone */
        "  movq %rcx, %r10\n"  /* child_tid the fourth */
        "  xorl %edx, %edx\n"  /* parent_tid: unused */
        "  movl $56, %eax\n"
        "  syscall\n"
        "  testq %rax, %rax\n"
        "  jnz 1f\n"
        "  xorl %ebp, %ebp\n"
        "  popq %rax\n"
        "  popq %rdi\n"
        "  callq *%rax\n"
        "  ud2\n"
        "1: ret\n"
        ".size ud__clone,.-ud__clone\n");
#elif defined(__aarch64__)
__asm__(".text\n"
        ".globl ud__clone\n"
        ".hidden ud__clone\n"
        ".type ud__clone,%function\n"
        "ud__clone:\n" /* x0 flags, x1 stack, x2 tls, x3 ctid, x4 fn, x5 arg */
        "  and x1, x1, #-16\n"
        "  stp x4, x5, [x1, #-16]!\n"
        "  mov x6, x3\n"
        "  mov x3, x2\n" /* clone(flags, stack, ptid, tls, ctid) */
        "  mov x4, x6\n"
        "  mov x2, xzr\n"
        "  mov x8, #220\n"
        "  svc 0\n"
        "  cbnz x0, 1f\n"
        "  mov x29, xzr\n"
        "  ldp x1, x0, [sp], #16\n"
        "  blr x1\n"
        "  brk #1\n"
        "1: ret\n"
        ".size ud__clone,.-ud__clone\n");
#endif
