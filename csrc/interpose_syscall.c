/* interpose_syscall.c: syscall(2) as libc has it, but whoever interrupts a call made by it can tell which call that was.
 *
 * On x86-64 the kernel's answer is in the register that had the number. libc's function keeps it nowhere else; ours
 * leaves it in the red zone, which signal frames spare, for restart.c.
 *
 * Guarantees: results and errno as libc's; no stack of its own, so that a clone or vfork made by it returns as ever.
 * Fails: never. Other machines keep the number in its register, and libc's function.
 */
#if defined(__x86_64__)

#include <errno.h>

#include "internal.h"

__attribute__((used)) UD_HIDDEN long ud__syscall_failed(long r)
{
    errno = (int)-r;
    return -1;
}

__asm__(".text\n"
        ".globl syscall\n"
        ".type syscall,@function\n"
        ".globl ud__syscall_instruction\n"
        ".hidden ud__syscall_instruction\n"
        ".p2align 6\n" /* restart.c looks at the bytes around the instruction: all in one page */
        "syscall:\n"
        "  .cfi_startproc\n"
        "  endbr64\n"
        "  mov %rdi, -8(%rsp)\n"
        "  mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdx, %rsi\n"
        "  mov %rcx, %rdx\n"
        "  mov %r8, %r10\n"
        "  mov %r9, %r8\n"
        "  mov 8(%rsp), %r9\n"
        "ud__syscall_instruction:\n"
        "  syscall\n"
        "  cmp $-4095, %rax\n"
        "  jae 1f\n"
        "  ret\n"
        "1: mov %rax, %rdi\n"
        "  jmp ud__syscall_failed\n"
        "  .cfi_endproc\n"
        ".size syscall,.-syscall\n");

#endif
