/* kernel_signal.h: signals as rt_sigaction(2) and the kernel's signal frame know them.
 *
 * libc's sigaction is interposed, keeps two signals to itself and takes locks in some; our handlers are set without it.
 */
#ifndef UD_KERNEL_SIGNAL_H
#define UD_KERNEL_SIGNAL_H

#include <signal.h>
#include <stdint.h>

struct ud__sigaction { /* what rt_sigaction takes */
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};
#define UD__KERNEL_RESTORER 0x04000000ul
#define UD__SIGBIT(sig) (1ull << ((sig) - 1))

#if defined(__x86_64__)
void ud__sigreturn(void) __attribute__((visibility("hidden"))); /* sigchain.c */
#define UD__RESTORER ((void *)ud__sigreturn)
#define UD__RESTORER_FLAG UD__KERNEL_RESTORER
#else
#define UD__RESTORER NULL /* the vdso's */
#define UD__RESTORER_FLAG 0
#endif

#endif
