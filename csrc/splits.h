/* splits.h: the shape of a split report, a file that udedup/splits.py reads.
 *
 * One header, then UD_SPLIT_SITES sites. A site is one place that splits: thread name, instruction and up to
 * four Python frames. Written by the fault handler of one process; a reader takes sites in state READY only
 * and copes with counts that grow while it reads.
 */
#ifndef UD_SPLITS_H
#define UD_SPLITS_H

#include <stdint.h>

#define UD_SPLIT_MAGIC 0x3174696c70736475ull /* "udsplit1" */
#define UD_SPLIT_SITES 1024u
#define UD_SPLIT_FRAMES 4u

enum { UD_SPLIT_EMPTY = 0, UD_SPLIT_FILLING = 1, UD_SPLIT_READY = 2 };

struct ud_split_header { /* 128 bytes */
    uint64_t magic;
    uint32_t pid, sites;
    uint32_t site_bytes, frames;
    uint64_t total; /* splits seen */
    uint64_t lost;  /* of these, without a place in the table */
    char comm[16];
    uint64_t reserved[9];
};

struct ud_split_frame { /* 144 bytes */
    int32_t line;
    char func[44], file[96]; /* zero-terminated; of a long path the end */
};

struct ud_split_site { /* 768 bytes */
    uint32_t state, nframes;
    uint64_t hash, count;
    uint64_t ip;            /* the writing instruction */
    uint64_t addr;          /* the last page split here */
    uint64_t module_offset; /* of ip in the file `module` */
    char thread[16];
    uint32_t named, reserved; /* named: module is filled in */
    char module[120];
    struct ud_split_frame frame[UD_SPLIT_FRAMES];
};

#endif
