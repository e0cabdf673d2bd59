/* pass.h: what scan.c (finding changes) and age.c (the end of a pass) share. Agent thread only. */
#ifndef UD_PASS_H
#define UD_PASS_H

#include "space.h"

#define UD__PARITY 8u     /* in a VOLATILE page's state: odd or even pass set it */
#define UD__EPOCH_SHIFT 4 /* and two bits of the second it was set in */
#define UD__HOT_SHIFT 6   /* and how often it was written before, see hot.c */
#define UD__HOT_LEFT 3u
#define UD__AGE_SHIFT 6   /* in a STABLE or REFUSED page's: how often it was digested and found the same */
enum { UD__GROWN_LOOK = 1, UD__GROWN_LOOKED = 2 };
#define UD__BLOCK_YOUNG 1u /* in a block head's flags: it has VOLATILE pages to age. The rest is heat.c's */

struct ud__pass {
    struct ud__space space;
    uint64_t number;      /* of this pass */
    uint64_t began_us;
    uint64_t before_us;   /* when the pass before began */
    uint64_t thorough_us; /* when the last thorough pass began */
    uint64_t at;          /* cursor */
    uint64_t signature;   /* of the space at the last resync */
    uint64_t zero_digest;
    uint64_t changed;     /* pages in this slice */
    uint64_t written;     /* pages in this pass */
    uint64_t fresh;       /* of those, pages never seen before */
    uint64_t given_back;  /* pages that a holder gave back and forgot, and that were not seen again since: they are not fresh */
    uint64_t given_in;    /* the pass in which it last did */
    uint64_t left_to_us;  /* and pages that fork relatives shared with us until now */
    uint64_t growing_us;  /* since when the program grows without a pause; 0: it does not */
    uint64_t grew_us;     /* when it last did */
    int growing;          /* nothing was nominated for it in this pass */
    int grown;            /* it has come to an end: what was left alone meanwhile is (being) looked at */
    uint64_t hot;         /* pages of heat 2 and more at the end of the last pass */
    uint64_t hot_second;  /* of the last pass */
    uint16_t due;         /* slots of blocks whose hot pages are looked at in this pass */
    int phase;
    int thorough;         /* this pass reads the mappings and looks at untracked pages too */
    int force_resync;
    unsigned regions;     /* ud__region_gen when the pass began */
    int renew;            /* it had changed: what was told and not allowed may be allowed now */
    struct ud__range zero[256]; /* zero pages that have earned giving back */
    size_t zeros;
};
extern UD_HIDDEN struct ud__pass ud__pass;

static inline uint8_t ud__parity(void) { return ud__pass.number & 1 ? UD__PARITY : 0; }
static inline uint8_t ud__epoch(void) { return (uint8_t)((ud__pass.began_us >> 20 & 3) << UD__EPOCH_SHIFT); }

static inline unsigned ud__hotness(uint8_t state) { return state >> UD__HOT_SHIFT; }

/* hot.c. As ud__track_written, but pages that are left are neither told nor armed. */
long ud__hot_written(uint64_t *at, uint64_t end, struct ud__range *out, size_t cap, uint64_t max_pages) UD_HIDDEN;
void ud__hot_begin(void) UD_HIDDEN;                       /* of a pass, once began_us is set */
int ud__hot_left(uint8_t state, uint64_t page) UD_HIDDEN; /* 1: not to be read in this pass */

/* Digests what may be merged in [start, end) and notes it. 0 or -errno. (scan.c) */
int ud__pass_take(uint64_t start, uint64_t end, int written) UD_HIDDEN;
int ud__pass_flush(void) UD_HIDDEN;
/* age.c. Zero pages are given back once the merger knows of the pass: they take holds, and it can plan meanwhile. */
void ud__pass_end(void) UD_HIDDEN;
void ud__pass_give_zeros(void) UD_HIDDEN;

/* heat.c: what splits soon after its merge must be left alone for longer before the next one. */
void ud__heat_merged(uint64_t vaddr, uint64_t pages) UD_HIDDEN; /* a plan was carried out there */
void ud__heat_split(uint64_t page) UD_HIDDEN;                   /* a merged page was written */
int ud__heat_holds(uint32_t flags) UD_HIDDEN;                   /* 1: volatile pages of this block are not candidates yet */

#endif
