/* space.h: the mergeable part of the address space, as the current pass sees it. */
#ifndef UD_SPACE_H
#define UD_SPACE_H

#include "internal.h"

struct ud__area {
    uint64_t start, end, offset, inode;
    uint32_t seen;    /* readings this area has been there, unchanged; and slices that found pages of its own */
    uint8_t tracked;  /* under write tracking */
    uint8_t armed;    /* tracking was asked for as it was read: pages not armed before are told as written, if they were or not */
    uint8_t hopeless; /* tracking was refused */
    uint8_t library;  /* data of a program or library: the file's own pages are not looked at */
};
struct ud__space {
    struct ud__area *list;
    size_t count, cap;
    uint64_t signature; /* changes when any mapping changes */
    uint32_t mappings; /* all there are */
    uint32_t added;    /* of these, what merging added */
    uint64_t bytes;
    uint64_t tracked; /* bytes under write tracking */
    uint64_t sizes;   /* of the address space, and memory calls seen, when it was read */
    uint32_t trusted; /* looks since then that found these unchanged */
    uint8_t unripe;   /* an area waits to be tracked */
    uint8_t current;  /* what is written has not been asked for since it was read */
};

/* Reads the mappings anew and registers for tracking what has earned it. 0 or -errno. */
int ud__space_read(struct ud__space *s) UD_HIDDEN;
/* The same, if they may have changed. */
int ud__space_look(struct ud__space *s) UD_HIDDEN;
/* The area that covers addr, or the first above; NULL above the last. */
const struct ud__area *ud__space_find(const struct ud__space *s, uint64_t addr) UD_HIDDEN;
void ud__space_reset(struct ud__space *s) UD_HIDDEN;

#endif
