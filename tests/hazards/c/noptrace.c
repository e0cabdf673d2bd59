/* noptrace.c: runs a program under a seccomp filter that refuses ptrace, as containers and hardened services do.
 *
 *   noptrace eperm|enosys|kill PROGRAM ARGS...
 */
#include "hz.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    uint32_t answer = SECCOMP_RET_ERRNO | EPERM;
    CHECK(argc > 2);
    if (!strcmp(argv[1], "enosys"))
        answer = SECCOMP_RET_ERRNO | ENOSYS;
    if (!strcmp(argv[1], "kill"))
        answer = SECCOMP_RET_KILL_PROCESS;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, answer),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
    execvp(argv[2], argv + 2);
    return 127;
}
