/* pyframe.h: Python frames in a signal handler; see pyframe.c. */
#ifndef UD_PYFRAME_H
#define UD_PYFRAME_H

#include <stddef.h>

#include "trap.h"

struct ud__pyframe {
    const char *file, *func; /* not zero-terminated */
    size_t file_len, func_len;
    int line;
};
/* Frames of the calling thread, innermost first, at most max. Count. */
int ud__pyframes(struct ud__pyframe *out, int max) UD_HIDDEN;

#endif
