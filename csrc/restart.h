/* restart.h: system calls that a signal's handler interrupts: which of them go on, and how. Interface for the
 * write-stop by signal. */
#ifndef UD_RESTART_H
#define UD_RESTART_H

#include <stdint.h>
#include <time.h>
#include <ucontext.h>

enum ud__call {
    UD__CALL_SHOWS,    /* the program would see the interruption */
    UD__CALL_RESTARTS, /* the kernel starts it again (SA_RESTART) */
    UD__CALL_MENDED,   /* EINTR to the kernel, whatever the flags: ud__restart_call starts it again */
};
/* What becomes of a thread that sleeps in this call when a handler with SA_RESTART runs. */
enum ud__call ud__call_kind(unsigned long nr, const uint64_t args[6]) __attribute__((visibility("hidden")));

/* 1 if a handler of the program's blocks SIGURG: ours may then run right after it, when the EINTR it brought about is in the
 * frame, and looks like ours. No call is mended then. Asked before each hold. */
int ud__restart_ambiguous(void) __attribute__((visibility("hidden")));
int ud__restart_is_ambiguous(void) __attribute__((visibility("hidden"))); /* what it said last */

/* In the handler, all signals blocked, as the last thing: lets what the thread was in go on, unless a signal of the
 * program's is about to be taken. was: what was noted of it (sleepers.h), as the handler began; or NULL. place: where a
 * shortened timeout is kept until the call is made. */
struct ud__sleep;
void ud__restart_call(int tid, ucontext_t *uc, const struct ud__sleep *was, struct timespec *place)
    __attribute__((visibility("hidden")));

static inline uint64_t ud__uc_sp(const ucontext_t *uc)
{
#if defined(__x86_64__)
    return (uint64_t)uc->uc_mcontext.gregs[REG_RSP];
#else
    return uc->uc_mcontext.sp;
#endif
}

#endif
