/* replace.h: what unmerge.c, discard.c and relocate.c share: plain memory in the place of merged pages. */
#ifndef UD_REPLACE_H
#define UD_REPLACE_H

#include "internal.h"

#define UD__RW (PROT_READ | PROT_WRITE)
#define UD__PROTECTION (UD__VMA_R | UD__VMA_W | UD__VMA_X)
#define UD__CHUNK_PAGES 256u

/* contents.c */
long ud__map_plain(uint64_t at, uint64_t len, int prot, int fixed) UD_HIDDEN; /* address or -errno */
int ud__prot_of(uint32_t vma_flags) UD_HIDDEN;
/* Of a mapping with these flags, to fresh memory. whole: it is all of a segment, in which there are no guard pages. 0 or -errno. */
long ud__copy_contents(long to, uint64_t at, uint64_t len, uint32_t vma_flags, int whole) UD_HIDDEN;
/* The next mapping of a segment of ours within [at, end), cut to it; 0 if there is none. */
int ud__next_segment(struct ud__maps *m, uint64_t at, uint64_t end, uint64_t *from, uint64_t *to, uint32_t *flags) UD_HIDDEN;

/* unmerge.c */
int ud__unmerge_chunk(uint64_t at, uint64_t len, uint32_t flags, int whole) UD_HIDDEN; /* in a hold; 0 or -errno */
/* Runs a one-piece job from an app thread until it is done. 0, or -errno; -EAGAIN if a hold could not be had for
 * ten seconds, or was refused again and again. A job without a hold is done in the end: the call that asked for it must not fail
 * because of us. But for -ENOENT: there is no /proc. */
long ud__run_from_app(struct ud__job *j) UD_HIDDEN;

#endif
