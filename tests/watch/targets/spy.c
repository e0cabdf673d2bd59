/* spy.c: stands in for libudedup.so. ud_join tells in the file named by `socket` how it was called. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int ud_join(const char *socket, int advised)
{
    char text[128];
    sigset_t mask;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    char *volatile some = malloc(100000);
    free(some);
    sigprocmask(SIG_BLOCK, NULL, &mask);
    int fd = open(socket, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int n = snprintf(text, sizeof text, "%d advised %d aligned %d blocked %d\n", (int)getpid(), advised,
                     frame % 16 == 0, sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGSEGV));
    if (fd < 0 || write(fd, text, (size_t)n) != n)
        return -errno;
    close(fd);
    __asm__ volatile("pxor %%xmm0, %%xmm0\n pxor %%xmm15, %%xmm15" ::: "xmm0", "xmm15");
    errno = 77;
    return 0;
}
