/* verify.c: fills pages, and compares every word with what it must be. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "torture.h"

uint64_t roll(struct slot *s, uint64_t below)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random % below;
}

static void describe(char *text, size_t cap, uint64_t word)
{
    snprintf(text, cap, "%#018lx (owner %lu tag %lu seq %lu index %lu)", word, word >> 52, word >> 38 & 0x3fff,
             word >> 10 & 0xfffffff, word & 0x3ff);
}

void fail(struct slot *s, const char *what, const void *where, uint64_t got, uint64_t want)
{
    char g[96], w[96], line[400];
    uint64_t before = atomic_fetch_add(&count->errors, 1);
    s->errors++;
    if (before > 20)
        return;
    describe(g, sizeof g, got);
    describe(w, sizeof w, want);
    int n = snprintf(line, sizeof line, "torture: pid %d%s owner %u: %s at %p: got %s, want %s\n", getpid(),
                     s->in_child ? " (forked)" : "", s->owner, what, where, g, w);
    if (write(2, line, (size_t)n) < 0)
        _exit(71);
}

static uint64_t expected(const struct shadow *h, size_t i)
{
    if (i >= h->from && i < h->to)
        return h->other + i;
    return h->base + (h->step ? i : 0);
}

void verify_page(struct slot *s, struct area *a, size_t page)
{
    struct shadow *h = &a->shadow[page];
    volatile uint64_t *w = a->mem + page * WORDS;
    for (size_t i = 0; i < WORDS; i++) {
        uint64_t got = w[i], want = expected(h, i);
        if (got != want) {
            fail(s, a == &s->mover ? "moved page" : "page", (const void *)&w[i], got, want);
            fill_page(s, a, page, 0);
            return;
        }
    }
    atomic_fetch_add_explicit(&count->verified, h->pending, memory_order_relaxed);
    atomic_fetch_add_explicit(&count->words, WORDS, memory_order_relaxed);
    h->pending = 0;
}

void verify_block(struct slot *s, struct block *b)
{
    volatile uint64_t *w = b->mem;
    for (size_t i = 0; i < b->words; i++) {
        uint64_t want = b->base + (i & 0x3ff);
        if (w[i] != want) {
            fail(s, "malloc block", (const void *)&w[i], w[i], want);
            fill_block(s, b);
            return;
        }
    }
    atomic_fetch_add_explicit(&count->words, b->words, memory_order_relaxed);
}

void verify_all(struct slot *s)
{
    for (size_t p = 0; p < s->field.pages; p++)
        verify_page(s, &s->field, p);
    for (size_t p = 0; p < s->mover.pages; p++)
        verify_page(s, &s->mover, p);
    for (int b = 0; b < BLOCKS; b++)
        verify_block(s, &s->blocks[b]);
}

/* In a forked child other threads' pages may have been caught in the middle of a write: then each word
 * is an old or a new one, but always one that belongs to this page and to this owner. */
void verify_foreign(struct slot *s)
{
    for (size_t p = 0; p < s->field.pages; p++) {
        volatile uint64_t *w = s->field.mem + p * WORDS;
        for (size_t i = 0; i < WORDS; i++) {
            uint64_t v = w[i], owner = v >> 52;
            if (v == 0)
                continue;
            if ((owner != s->owner && owner != SHARED_OWNER) || (v >> 38 & 0x3fff) != (p & 0x3fff)) {
                fail(s, "page of another thread after fork", (const void *)&w[i], v, BASE(s->owner, p, 0) + i);
                return;
            }
        }
    }
    atomic_fetch_add_explicit(&count->words, s->field.pages * WORDS, memory_order_relaxed);
}

void set_zero(struct area *a, size_t page, size_t pages)
{
    for (size_t p = page; p < page + pages; p++) {
        memset(&a->shadow[p], 0, sizeof a->shadow[p]);
        a->shadow[p].pending = WORDS;
    }
}

void fill_page(struct slot *s, struct area *a, size_t page, int shared)
{
    struct shadow *h = &a->shadow[page];
    volatile uint64_t *w = a->mem + page * WORDS;
    uint64_t base = shared ? BASE(SHARED_OWNER, page, 1 + roll(s, 3)) : BASE(s->owner, page, ++s->sequence);
    int step = !(shared && roll(s, 8) == 0);
    for (size_t i = 0; i < WORDS; i++)
        w[i] = base + (step ? i : 0);
    *h = (struct shadow){.base = base, .step = (uint16_t)step, .pending = WORDS};
}

void fill_shared(struct area *a, size_t page, uint64_t sequence)
{
    uint64_t base = BASE(SHARED_OWNER, page, sequence);
    volatile uint64_t *w = a->mem + page * WORDS;
    for (size_t i = 0; i < WORDS; i++)
        w[i] = base + i;
    a->shadow[page] = (struct shadow){.base = base, .step = 1, .pending = WORDS};
}

void fill_block(struct slot *s, struct block *b)
{
    /* half of them alike everywhere: malloc serves large blocks page-aligned, so they can merge */
    b->base = roll(s, 2) ? BASE(SHARED_OWNER, 0x3fff, 7) : BASE(s->owner, 0x3fff, ++s->sequence);
    for (size_t i = 0; i < b->words; i++)
        b->mem[i] = b->base + (i & 0x3ff);
}
