/* sleepers.h: since when threads sleep in calls that are started again, and what is left of their time. */
#ifndef UD_SLEEPERS_H
#define UD_SLEEPERS_H

#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "internal.h"

struct ud__sleep { /* a call that a thread was seen asleep in */
    atomic_int tid;
    unsigned long nr;
    uint64_t sp, pc, first; /* its first argument */
    uint64_t since_us;      /* CLOCK_MONOTONIC; 0 unknown */
    uint64_t switches;      /* how often the thread has given up its CPU by itself */
};

/* The agent, before a stop. args: six arguments, stack pointer, program counter. note: 0, or -errno if what is left of a
 * timeout will not be known. add: by the holder, of whom it finds asleep right before it signals. */
void ud__sleepers_begin(void) UD_HIDDEN;
int ud__sleepers_note(int taskfd, int self_tid, int tid, unsigned long nr, const uint64_t *args, int by_signal) UD_HIDDEN;
void ud__sleepers_add(int taskfd, int tid, unsigned long nr, const uint64_t *args) UD_HIDDEN;

/* What was noted of the thread, if it has not slept anew since: `switches` as they are now. 1 if there is something. */
int ud__sleepers_of(int tid, uint64_t switches, struct ud__sleep *out) UD_HIDDEN;

/* args: the registers of the call that will be made again; its timeout becomes what is left. In a hold, by ptrace; or in
 * the thread itself, in a handler, where `place` keeps it until the call is made. */
void ud__sleepers_shorten(const struct ud__hold *h, int tid, unsigned long nr, uint64_t sp, unsigned long **args) UD_HIDDEN;
void ud__sleepers_shorten_here(const struct ud__sleep *was, uint64_t sp, unsigned long **args, struct timespec *place) UD_HIDDEN;

/* Calls on a socket with a timeout of its own, known once a stop has interrupted them. */
void ud__timed_note(int tid, unsigned long nr, uint64_t sp) UD_HIDDEN;
int ud__timed_asleep(int tid, unsigned long nr, uint64_t sp) UD_HIDDEN;

#endif
