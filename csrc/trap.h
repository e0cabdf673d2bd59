/* trap.h: the other write-stop: mprotect and a fault handler, for explicit regions. Interface for the agent.
 *
 * One batch of the agent, for each extent, no ptrace and no holder:
 *
 *     if (!ud__trap_owner_ok(text, sizeof text)) refuse;      somebody else owns SIGSEGV
 *     if (ud__trap_begin(start, end, check, arg)) refuse;     nobody can write the extent now
 *     compare; mmap(MAP_FIXED) over what is equal, PROT_READ (split trap) or PROT_READ|PROT_WRITE
 *     ud__trap_end(a, b, UD__TRAP_PROTECTED);                 parts that were remapped PROT_READ
 *     ud__trap_end(c, d, UD__TRAP_OPEN);                      all other parts: made writable here
 *
 * Each page is in one of three states; a writer's SIGSEGV is served by what the table says:
 *
 *     open       not ours to serve, unless it was opened between the fault and the look
 *     closed     the writer sleeps on a futex until the batch ends, then tries again
 *     protected  merged with the split trap: the handler opens it and the write goes on to the kernel's copy
 *
 * Guarantees: after ud__trap_begin no thread of the process writes the extent in user mode until ud__trap_end.
 * Fails: a write by the kernel (read(2) into the extent) gets EFAULT: the program opens the range with
 * ud_writable_open before. A page pinned for DMA is written all the same, and so is what goes through /proc/self/mem.
 */
#ifndef UD_TRAP_H
#define UD_TRAP_H

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#ifndef UD_HIDDEN
#define UD_HIDDEN __attribute__((visibility("hidden")))
#endif

/* ---- trap.c: windows, handler, splits ------------------------------------------------------------- */

extern UD_HIDDEN atomic_int ud__trap_on; /* the handler is installed */

/* Installs the handler. `trap_splits`, if not NULL, is raised by one at each split. 0, or -EBUSY with the
 * reason in text: a thread blocks SIGSEGV. The handler is there all the same: ask ud__trap_owner_ok again later.
 * In a forked child: once more. */
int ud__trap_enable(_Atomic uint64_t *trap_splits, char *text, size_t cap) UD_HIDDEN;
/* Opens everything. The handler stays and passes all faults on. */
void ud__trap_disable(void) UD_HIDDEN;

/* Closes [start, end), page aligned. Caller: the agent, or a thread with all signals blocked; one caller at a time.
 * check, if any, is called when no interposed call can change the mappings any more and before the protection
 * is touched: what it returns but 0 is returned and ends the window.
 * 0; -EBUSY when the program holds part of it open or is in a memory call; -EAGAIN when a split under way took
 * too long; -ENOMEM, -ERANGE, or what mprotect says. Nothing is closed then. */
int ud__trap_begin(uint64_t start, uint64_t end, int (*check)(uint64_t, uint64_t, void *), void *arg) UD_HIDDEN;
/* Keeps interposed calls off what the program itself lets nobody write: those that would change that wait for
 * ud__trap_unbar. Caller, check and results as of ud__trap_begin. */
int ud__trap_bar(uint64_t start, uint64_t end, int (*check)(uint64_t, uint64_t, void *), void *arg) UD_HIDDEN;
void ud__trap_unbar(void) UD_HIDDEN;
enum ud__trap_state { UD__TRAP_OPEN = 0, UD__TRAP_PROTECTED = 1 };
/* Ends the window over [start, end), a part of what was closed, and wakes who waits. */
void ud__trap_end(uint64_t start, uint64_t end, enum ud__trap_state state) UD_HIDDEN;

/* Waits for windows over [start, end) and opens every protected page in it: splits by the kernel alone from now on.
 * 0 or -errno. Not for who has closed a part of it. */
int ud__trap_open(uint64_t start, uint64_t end) UD_HIDDEN;
/* All protected pages there are, no matter where a window is: when somebody else took SIGSEGV. */
void ud__trap_open_all(void) UD_HIDDEN;
/* Interposers, between ud__busy_enter and the call that unmaps, moves or protects [start, end): waits until no
 * window is over it, and forgets its protection (the call decides about that). Async-signal-safe. */
void ud__trap_settle(uint64_t start, uint64_t end) UD_HIDDEN;

struct ud__trap_counts {
    uint64_t splits;  /* faults that opened a protected page */
    uint64_t waits;   /* writers that met a window */
    uint64_t retries; /* faults on pages opened meanwhile */
    uint64_t windows; /* extents closed */
};
void ud__trap_counts(struct ud__trap_counts *out) UD_HIDDEN;
void ud__trap_uncount(void) UD_HIDDEN; /* agent: from its return on nobody counts into the ledger */

/* 1 when the fault was ours and the instruction can be tried again. For the handler in sigchain.c. */
int ud__trap_serve(const siginfo_t *info, void *ucontext) UD_HIDDEN;

/* 1 if the program holds part of [start, end) open. (writable.c) */
int ud__writable_any(uint64_t start, uint64_t end) UD_HIDDEN;

/* ---- trap_map.c: state of pages, readable in a signal handler --------------------------------------- */

enum ud__trap_plane { UD__TRAP_CLOSED, UD__TRAP_PROTECT };
struct ud__trap_cell { /* 64 pages: one word for each plane, in one cache line, so that a fork copies both at once */
    _Atomic uint64_t bits[2];
};
/* The cell of a page, or NULL where nothing was ever closed. */
struct ud__trap_cell *ud__trap_cell(uint64_t addr) UD_HIDDEN;
/* Makes room for [start, end). 0, -ENOMEM, or -ERANGE above the 47 (aarch64: 48) bits of an address. */
int ud__trap_reserve(uint64_t start, uint64_t end) UD_HIDDEN;
/* Calls fn for each run of pages in [start, end) that have their bit in the plane, in address order; stops
 * when it returns nonzero, and returns that. */
typedef int (*ud__trap_fn)(uint64_t start, uint64_t end, void *arg);
int ud__trap_each(uint64_t start, uint64_t end, enum ud__trap_plane plane, ud__trap_fn fn, void *arg) UD_HIDDEN;
void ud__trap_put(uint64_t start, uint64_t end, enum ud__trap_plane plane, int value) UD_HIDDEN; /* their bits, where there are cells */
/* 1 if every page is read-only by us: protected, or, if that is asked, closed. */
int ud__trap_all_ours(uint64_t start, uint64_t end, int or_closed) UD_HIDDEN;
/* 1 if the page is read-only by us alone: to the program it is writable. */
int ud__trap_held(uint64_t addr) UD_HIDDEN;
/* Where in [start, end) that changes: the first page of another answer than start's, or end. */
uint64_t ud__trap_edge(uint64_t start, uint64_t end) UD_HIDDEN;
uint64_t ud__trap_highest(void) UD_HIDDEN; /* above the last page that has a cell */
/* After a fork: the table is the child's own memory again, not to be merged. */
void ud__trap_map_own(void) UD_HIDDEN;

/* ---- sigchain.c: whose SIGSEGV it is ----------------------------------------------------------------- */

/* Puts our handler in front of the program's, for good. 0 or -errno. */
int ud__sig_install(void) UD_HIDDEN;
int ud__sig_ours(void **owner) UD_HIDDEN; /* 1 if the kernel has our handler; *owner: what it has */

/* From the constructor, where the mode may become trap: SIGSEGV cannot be blocked for real from now on. */
void ud__sig_virtual_mask(void) UD_HIDDEN;

/* ---- trap_owner.c ---------------------------------------------------------------------------------------- */

/* 1 if SIGSEGV comes to us in every thread; else 0 and the reason, naming the owner by mapping. */
int ud__trap_owner_ok(char *text, size_t cap) UD_HIDDEN;
/* Calls line(text, arg) for each line of a file of /proc; stops when it returns nonzero. */
void ud__each_line(const char *path, int (*line)(const char *, void *), void *arg) UD_HIDDEN;

/* ---- splits.c, pyframe.c: who splits ------------------------------------------------------------------- */

/* Starts a report in the file `path` (made anew); NULL: in memory only. 0, or -errno and it is in memory. */
int ud__splits_open(const char *path) UD_HIDDEN;
void ud__splits_record(uint64_t addr, const void *ucontext) UD_HIDDEN; /* async-signal-safe */
void ud__splits_name_modules(void) UD_HIDDEN; /* agent, now and then: resolves instruction pointers to files */
void ud__pyframe_resolve(void) UD_HIDDEN;     /* from an app thread (dlsym): finds CPython in this process */

/* ---- trap_job.c: the agent's side ----------------------------------------------------------------------- */

struct ud__job;
struct ud_knobs;
/* Agent, with a ledger, whenever the knobs came: mode and split are those of UDEDUP_MODE and UDEDUP_SPLIT, else the knobs'. */
void ud__trap_apply(const struct ud_knobs *k) UD_HIDDEN;
void ud__trap_agent_ends(void) UD_HIDDEN; /* before its ledger goes */
int ud__trap_active(void) UD_HIDDEN;
const char *ud__trap_refusal(void) UD_HIDDEN; /* why, in words; "" if it works */
/* MERGE, ZERO and UNMERGE without a hold, for ud__job_run: prepare before its lock is taken, the job under it with
 * all signals blocked. 0, or -errno. */
void ud__trap_job_prepare(struct ud__job *j) UD_HIDDEN;
int ud__trap_job(struct ud__job *j) UD_HIDDEN;

#endif
