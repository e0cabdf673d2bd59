/* torture.h: what every word of the torture's memory says, and what is remembered of each page.
 *
 * A word is owner | tag | sequence | index: who wrote it, for which page, when, and where in the page.
 * So a lost write, a stale read, a page of somebody else and a shifted page all look different.
 * The shadow remembers what a page must hold: one base for the page, and one range that differs.
 */
#ifndef TORTURE_H
#define TORTURE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define WORDS (PAGE / 8u)
#define SHARED_OWNER 0xffeu /* written alike by every process: pages to merge */

struct shadow {
    uint64_t base;      /* word 0 of the page; 0: the page is zero */
    uint64_t other;     /* base of words [from, to) */
    uint16_t from, to;
    uint16_t step;      /* 1: words count upwards, 0: all words are equal */
    uint16_t pending;   /* words written and not verified since */
};

struct area { /* a mapping, page by page */
    uint64_t *mem;
    size_t pages;
    struct shadow *shadow;
};

#define BLOCKS 6
struct block { /* memory of malloc: one pattern for all of it */
    uint64_t *mem;
    size_t words;
    uint64_t base;
};

/* One slot belongs to one thread at a time; its memory outlives the thread. */
struct slot {
    unsigned owner, number;
    uint64_t random;
    uint64_t sequence;
    struct area field, mover;
    size_t mover_room;
    size_t window; /* of the field: where work goes on now */
    struct block blocks[BLOCKS];
    int feed[2];  /* pipe the feeder writes into */
    int child;    /* pid of a forked child that still runs, 0 if none */
    unsigned errors;
    int in_child; /* this is the forked copy: no feeder, no fork of its own */
};

/* In a file that all processes and the runner map. */
struct counters {
    _Atomic uint64_t verified; /* words written and found as written */
    _Atomic uint64_t words;    /* words compared, again and again */
    _Atomic uint64_t operations;
    _Atomic uint64_t reads;    /* system calls that wrote into memory */
    _Atomic uint64_t forks, spawns, remaps, reallocs, discards;
    _Atomic uint64_t threads;  /* threads started */
    _Atomic uint64_t errors;
    _Atomic uint64_t holes;    /* ended because somebody else mapped into a hole of ours */
};

struct options {
    unsigned process, threads, pages, pace_us, seed, seconds;
    int advise, trap, die;
    const char *counters;
};

extern struct options opt;
extern struct counters *count;
extern int request_pipe[2];

struct request { /* to the feeder: write `words` words from `base` on into `fd`, after a while */
    uint64_t base;
    uint32_t words, delay_us;
    int fd;
};

#define BASE(owner, tag, seq) \
    ((uint64_t)(owner) << 52 | (uint64_t)((tag) & 0x3fff) << 38 | ((uint64_t)(seq) & 0xfffffff) << 10)

uint64_t roll(struct slot *s, uint64_t below);
void fail(struct slot *s, const char *what, const void *where, uint64_t got, uint64_t want);
void verify_page(struct slot *s, struct area *a, size_t page);
void verify_all(struct slot *s);
void verify_foreign(struct slot *s);
void set_zero(struct area *a, size_t page, size_t pages);
void fill_page(struct slot *s, struct area *a, size_t page, int shared);
void fill_shared(struct area *a, size_t page, uint64_t sequence); /* alike in every process */
void verify_block(struct slot *s, struct block *b);
void fill_block(struct slot *s, struct block *b);
void operate(struct slot *s);
void slot_init(struct slot *s, unsigned number);

#endif
