/* pyframe.c: the Python frames of the calling thread, read where they lie.
 *
 * CPython has no call for this that a signal handler may make, so the frame chain is walked by offsets, one row a
 * version. Only PyGILState_GetThisThreadState (a thread-local read) and PyCode_Addr2Line (a table walk) are called,
 * as CPython's own faulthandler does in its handler.
 *
 * Guarantees: no allocation, no reference count touched, no lock; strings are borrowed and valid while the
 * thread stays where it is. Async-signal-safe.
 * Fails: 0 frames where there is no CPython, an unknown version, a free-threaded build, a thread without
 * a Python state. Names that are not ASCII read as "?".
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include <dlfcn.h>

#include "internal.h"
#include "pyframe.h"

struct layout {
    unsigned version;              /* major << 8 | minor */
    short tstate_frame;            /* to the frame, or to the C frame that leads to it */
    short cframe_frame;            /* in the C frame; -1: there is none */
    short code, previous, instr, owner; /* in the interpreter frame */
    short bytecode;                /* in the code object; the rest of it is common */
    short text;                    /* in a compact ASCII string */
};
static const struct layout LAYOUTS[] = {
    {0x030b, 56, 8, 32, 48, 56, 69, 184, 48},
    {0x030c, 56, 0, 0, 8, 56, 70, 192, 40},
    {0x030d, 72, -1, 0, 8, 56, 70, 200, 40},
};
enum { CO_FILENAME = 112, CO_QUALNAME = 128, STR_LENGTH = 16, STR_STATE = 32, OWNED_BY_C = 3, MAX_WALK = 64 };

static const struct layout *_Atomic layout;
static char *(*get_state)(void);
static int (*addr_to_line)(void *, int);

void ud__pyframe_resolve(void)
{
    const unsigned long *version = dlsym(RTLD_DEFAULT, "Py_Version");
    if (!version || atomic_load(&layout) || dlsym(RTLD_DEFAULT, "_Py_MergeZeroLocalRefcount"))
        return;
    get_state = (char *(*)(void))dlsym(RTLD_DEFAULT, "PyGILState_GetThisThreadState");
    addr_to_line = (int (*)(void *, int))dlsym(RTLD_DEFAULT, "PyCode_Addr2Line");
    if (!get_state || !addr_to_line)
        return;
    for (size_t i = 0; i < sizeof LAYOUTS / sizeof *LAYOUTS; i++)
        if (LAYOUTS[i].version == *version >> 16)
            atomic_store(&layout, &LAYOUTS[i]);
}

static char *pointer_at(const char *base, int offset)
{
    char *p;
    __builtin_memcpy(&p, base + offset, sizeof p);
    return p;
}

static const char *text_of(const struct layout *l, const char *str, size_t *len)
{
    uint32_t state;
    if (!str)
        return *len = 0, "";
    __builtin_memcpy(&state, str + STR_STATE, 4);
    __builtin_memcpy(len, str + STR_LENGTH, 8);
    if ((state >> 5 & 3) != 3) /* compact and ASCII */
        return *len = 1, "?";
    return str + l->text;
}

int ud__pyframes(struct ud__pyframe *out, int max)
{
    const struct layout *l = atomic_load(&layout);
    char *state = l ? get_state() : NULL;
    if (!state)
        return 0;
    char *frame = pointer_at(state, l->tstate_frame);
    if (frame && l->cframe_frame >= 0)
        frame = pointer_at(frame, l->cframe_frame);
    int n = 0;
    for (int walked = 0; frame && n < max && walked < MAX_WALK; walked++, frame = pointer_at(frame, l->previous)) {
        char *code = pointer_at(frame, l->code);
        if (frame[l->owner] == OWNED_BY_C || !code)
            continue;
        long at = pointer_at(frame, l->instr) - (code + l->bytecode);
        out[n].line = addr_to_line(code, (int)at);
        out[n].file = text_of(l, pointer_at(code, CO_FILENAME), &out[n].file_len);
        out[n].func = text_of(l, pointer_at(code, CO_QUALNAME), &out[n].func_len);
        n++;
    }
    return n;
}
