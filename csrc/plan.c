/* plan.c: the planner's life: sessions come and go, plans are made, answered and timed out.
 *
 * Guarantees: a page is in at most one plan or queue at a time (its claim bit). Whatever an agent
 * answers, or if it never does, every claim is given back and everybody who waited is looked at again.
 * Fails: -errno; a plan there is no memory for is not made.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>
#include "index_int.h"

#define BACKOFF_FIRST 1000u /* ms until refused pages are tried again; doubles */
#define BACKOFF_LAST 60000u
#define SHY_FIRST 4000u /* ms until pages that an agent refused are nominated again; doubles */
#define SHY_LAST 120000u
#define MUTE 30000 /* ms for which an agent that published nothing twice is not asked again */

struct ud_planner *ud_planner_new(size_t page_size)
{
    struct ud_planner *p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->page_size = page_size;
    /* Only collisions hang on it: without entropy the constant in mix() still spreads. */
    if (getrandom(&p->secret, sizeof(p->secret), GRND_NONBLOCK) < 0)
        p->secret = 0;
    p->conf = (struct ud_plan_conf){.run = 1, .max_page_sharing = 256, .min_run = 1, .segment_pages = 4096,
                                    .outstanding_pages = 16384, .short_delay = 300, .answer_timeout = 5000, .dead_percent = 20};
    return p;
}

void ud_planner_free(struct ud_planner *p)
{
    if (!p)
        return;
    for (uint32_t i = 1; i < p->session_room; i++)
        ud_planner_leave(p, i, 0);
    for (uint32_t i = 1; i < p->segment_room; i++)
        ud_planner_drop(p, i);
    ud__unmap(p->table.slots, p->table.size * 8);
    free(p->sessions);
    free(p->segments);
    free(p->plans);
    free(p);
}

void ud_planner_configure(struct ud_planner *p, const struct ud_plan_conf *conf)
{
    bool again = conf->run == 1 && p->conf.run != 1, other_key = memcmp(conf->key, p->conf.key, sizeof(conf->key)) != 0;
    p->conf = *conf;
    for (uint32_t i = 0; other_key && i < p->plan_count; i++) {
        free(p->plans[i].digests); /* no word of what is digested by the new one */
        p->plans[i].digests = NULL;
    }
    if (p->conf.max_page_sharing == 0)
        p->conf.max_page_sharing = 1;
    if (p->conf.segment_pages == 0 || p->conf.segment_pages > 1u << 20)
        p->conf.segment_pages = 4096;
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i]) {
            p->sessions[i]->fresh |= again;
            p->sessions[i]->held_up &= conf->run == 1; /* nobody waits for what is not to come */
        }
}

/* ---- claims and put-offs ------------------------------------------------------------------------ */

/* Marks a page as (not) to be published, and counts the runs that such pages are. */
void ud__pub(struct ud__session *s, uint32_t page, bool on)
{
    uint64_t bit = 1ull << page % 64;
    if (ud__bit(s->pub, page) == on)
        return;
    uint32_t last = s->capacity * UD_BLOCK_PAGES - 1;
    bool before = page > 0 && ud__bit(s->pub, page - 1), after = page < last && ud__bit(s->pub, page + 1);
    int more = 1 - before - after;
    s->pub_runs += (uint32_t)(on ? more : -more);
    s->pub[page / 64] ^= bit;
}

void ud__claim(struct ud__session *s, uint32_t page, uint32_t n, bool on)
{
    for (uint32_t i = page; i < page + n; i++) {
        uint64_t bit = 1ull << i % 64;
        if (on) {
            s->claim[i / 64] |= bit;
            continue;
        }
        s->claim[i / 64] &= ~bit;
        ud__pub(s, i, false);
    }
}

void ud__put_off(struct ud__session *s, uint32_t page, int64_t at, bool open)
{
    uint32_t block = page / UD_BLOCK_PAGES;
    if (!ud__bit(s->again, block)) {
        s->again[block / 64] |= 1ull << block % 64;
        s->again_at = s->again_count++ ? (at < s->again_at ? at : s->again_at) : at;
    } else if (at < s->again_at)
        s->again_at = at;
    s->again_open |= open;
}

/* What a page holds by its ledger: of a candidate, or of a merged page whose segment is being emptied. */
bool ud__digest_of(struct ud_planner *p, const struct ud__session *s, uint32_t page, uint64_t *digest)
{
    if (!ud__in_use(s, page))
        return false;
    uint8_t state = ud__state(s, page);
    uint64_t entry = ud__entry(s, page);
    if (state == UD_PG_STABLE) {
        *digest = entry;
        return true;
    }
    if (state != UD_PG_MERGED)
        return false;
    struct ud__segment *g = ud__segment(p, ud_planner_find(p, UD_REF_SEGMENT(entry)));
    if (!g || !g->retiring || UD_REF_SLOT(entry) >= g->npages)
        return false;
    *digest = g->digests[UD_REF_SLOT(entry)];
    return true;
}

/* What others may match a page with: a candidate's digest. */
bool ud__nominated(const struct ud__session *s, uint32_t page, uint64_t *digest)
{
    if (!ud__in_use(s, page) || ud__state(s, page) != UD_PG_STABLE)
        return false;
    *digest = ud__entry(s, page);
    return true;
}

/* ---- sessions ----------------------------------------------------------------------------------- */

static int free_sid(struct ud_planner *p)
{
    for (uint32_t i = 1; i < p->session_room; i++)
        if (!p->sessions[i])
            return (int)i;
    uint32_t id = p->session_room ? p->session_room : 1;
    if (id >= UD__MAX_IDS)
        return -ENFILE;
    int error = ud__grow((void **)&p->sessions, &p->session_room, id + 1, sizeof(*p->sessions));
    return error ? error : (int)id;
}

int ud_planner_session(struct ud_planner *p, int fd, int64_t now)
{
    int id = free_sid(p);
    if (id < 0)
        return id;
    struct ud__session *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    int error = ud__ledger_attach(s, fd, p->page_size);
    if (error) {
        ud__ledger_detach(s);
        free(s);
        return error;
    }
    s->id = (uint32_t)id;
    s->fresh = true;
    s->busy_at = now;
    s->backoff = BACKOFF_FIRST;
    p->sessions[id] = s;
    return id;
}

int ud_planner_leave(struct ud_planner *p, uint32_t sid, int64_t now)
{
    struct ud__session *s = ud__session(p, sid);
    if (!s)
        return -ENOENT;
    for (uint32_t i = p->plan_count; i-- > 0;)
        if (p->plans[i].sid == sid)
            ud__plan_end(p, &p->plans[i]);
    memset(s->pub, 0, (size_t)s->capacity * 8);
    ud__resolve(p, s, NULL, 0, now);
    ud__forget_waiter(p, sid);
    ud__drop_moves(p, s);
    p->queued -= s->queued;
    p->sessions[sid] = NULL;
    ud__ledger_detach(s);
    free(s->waits);
    free(s->moves);
    free(s->tiles);
    free(s->backs);
    free(s);
    return 0;
}

int ud_planner_header(struct ud_planner *p, uint32_t sid, struct ud_ledger_header *out)
{
    struct ud__session *s = ud__session(p, sid);
    if (!s)
        return -ENOENT;
    *out = *s->header;
    out->cause_text[sizeof(out->cause_text) - 1] = 0;
    return 0;
}

/* ---- plans --------------------------------------------------------------------------------------- */

struct ud__plan *ud__plan_new(struct ud_planner *p, struct ud__session *s, uint16_t type, uint32_t nruns, int64_t now)
{
    struct ud__run *runs = malloc((size_t)nruns * sizeof(*runs));
    if (!runs || ud__grow((void **)&p->plans, &p->plan_room, p->plan_count + 1, sizeof(*p->plans))) {
        free(runs);
        return NULL;
    }
    if (++p->next_plan == 0)
        p->next_plan = 1;
    struct ud__plan *plan = &p->plans[p->plan_count++];
    *plan = (struct ud__plan){.number = p->next_plan, .sid = s->id, .type = type, .sent = now, .runs = runs};
    return plan;
}

struct ud__plan *ud__plan_find(struct ud_planner *p, uint32_t sid, uint32_t number)
{
    for (uint32_t i = 0; i < p->plan_count; i++)
        if (p->plans[i].number == number && p->plans[i].sid == sid)
            return &p->plans[i];
    return NULL;
}

uint32_t ud_planner_plan_node(struct ud_planner *p, uint32_t sid, uint32_t number)
{
    const struct ud__plan *plan = ud__plan_find(p, sid, number);
    return plan ? plan->node : 0;
}

void ud__plan_end(struct ud_planner *p, struct ud__plan *plan)
{
    struct ud__session *s = ud__session(p, plan->sid);
    struct ud__segment *g = ud__segment(p, plan->gid);
    if (plan->type == UD_MSG_PUBLISH) {
        p->outstanding -= plan->late ? 0 : plan->npages;
        s->publishes--;
    } else {
        s->merges--;
        if (plan->type == UD_MSG_MERGE)
            s->sent_runs -= plan->nruns;
        if (g)
            g->plans--;
    }
    free(plan->runs);
    free(plan->digests);
    *plan = p->plans[--p->plan_count];
}

/* Pages of a finished plan are free again; what was refused is tried later. */
static void release(struct ud__session *s, const struct ud__plan *plan, int64_t at, int64_t now)
{
    bool shy = false;
    for (uint32_t i = 0; i < plan->nruns; i++)
        for (uint32_t page = plan->runs[i].page; page < plan->runs[i].page + plan->runs[i].n; page++) {
            ud__claim(s, page, 1, false);
            if (!ud__in_use(s, page) || ud__state(s, page) == UD_PG_MERGED || plan->runs[i].copies)
                continue; /* (a tile's own row follows by MERGE) */
            s->shy[page / 64] |= 1ull << page % 64;
            shy = true;
            ud__put_off(s, page, at, false);
        }
    if (shy && !s->shy_until) {
        s->shy_time = s->shy_time ? (s->shy_time * 2 < SHY_LAST ? s->shy_time * 2 : SHY_LAST) : SHY_FIRST;
        s->shy_until = now + s->shy_time;
    }
}

void ud__grow_bold(struct ud__session *s, int64_t now)
{
    if (!s->shy_until || now < s->shy_until)
        return;
    for (uint32_t block = 0; block < s->count; block++)
        if (s->shy[block])
            ud__put_off(s, block * UD_BLOCK_PAGES, now, false); /* nothing else may ever have it looked at again */
    memset(s->shy, 0, (size_t)s->count * 8);
    s->shy_until = 0;
}

static int64_t next_try(struct ud__session *s, bool good, int64_t now)
{
    if (good) {
        s->backoff = BACKOFF_FIRST;
        return now + BACKOFF_FIRST;
    }
    int64_t at = now + s->backoff;
    s->backoff = s->backoff * 2 > BACKOFF_LAST ? BACKOFF_LAST : s->backoff * 2;
    return at;
}

/* What was published is there twice until somebody has merged with it, or cannot, or does not answer. */
static void lend(struct ud_planner *p, struct ud__segment *g, uint32_t pages)
{
    ud__paid_back(p, g);
    g->lent = pages;
    p->outstanding += pages;
    p->lenders += pages != 0;
}

void ud__paid_back(struct ud_planner *p, struct ud__segment *g)
{
    p->outstanding -= g->lent;
    p->lenders -= g->lent != 0;
    g->lent = 0;
}

int ud_planner_published(struct ud_planner *p, uint32_t sid, uint32_t number, uint32_t gid, int64_t now)
{
    struct ud__plan *plan = ud__plan_find(p, sid, number);
    if (!plan || plan->type != UD_MSG_PUBLISH)
        return -ENOENT;
    struct ud__session *s = ud__session(p, sid);
    struct ud__segment *g = ud__segment(p, gid);
    s->failed_publishes = g ? 0 : s->failed_publishes + 1;
    if (s->failed_publishes >= 2)
        s->mute_until = now + MUTE;
    if (g) {
        g->since = now;
        g->counted = false;
        next_try(s, true, now);
        if (!plan->late)
            lend(p, g, plan->npages);
    }
    if (!plan->late && !g)
        release(s, plan, next_try(s, false, now), now);
    else if (!plan->late)
        ud__land_owner(p, s, plan, gid, now);
    if (!plan->late)
        ud__resolve(p, s, plan, g ? gid : 0, now);
    ud__plan_end(p, ud__plan_find(p, sid, number));
    if (g && !g->plans)
        ud__paid_back(p, g);
    return 0;
}

int ud_planner_result(struct ud_planner *p, uint32_t sid, uint32_t number, uint32_t merged, uint32_t refused, int64_t now)
{
    struct ud__plan *plan = ud__plan_find(p, sid, number);
    if (!plan || plan->type == UD_MSG_PUBLISH)
        return -ENOENT;
    struct ud__session *s = ud__session(p, sid);
    struct ud__segment *g = ud__segment(p, plan->gid);
    if (g) {
        g->since = now;
        g->counted = false;
        if (g->lent && merged)
            p->window *= 2;
        ud__paid_back(p, g);
    }
    if (!plan->late)
        release(s, plan, next_try(s, merged > 0 || !refused, now), now);
    ud__plan_end(p, plan);
    return 0;
}

/* When what holds up publications is waited for no longer; INT64_MAX: nothing does. */
static int64_t next_expiry(const struct ud_planner *p)
{
    int64_t first = INT64_MAX;
    for (uint32_t i = 0; i < p->plan_count; i++)
        if (p->plans[i].type == UD_MSG_PUBLISH && !p->plans[i].late && p->plans[i].sent < first)
            first = p->plans[i].sent;
    for (uint32_t i = 1, left = p->lenders; left && i < p->segment_room; i++)
        if (p->segments[i] && p->segments[i]->lent) {
            left--;
            first = p->segments[i]->since < first ? p->segments[i]->since : first;
        }
    return first == INT64_MAX ? first : first + p->conf.answer_timeout;
}

/* An agent that is stopped, or hangs, must not hold up the others' publications; nor must a segment that nobody comes to merge
 * with, as all who would are. */
static void expire(struct ud_planner *p, int64_t now)
{
    if (now < next_expiry(p))
        return;
    for (uint32_t i = 1; p->lenders && i < p->segment_room; i++)
        if (p->segments[i] && now - p->segments[i]->since >= p->conf.answer_timeout)
            ud__paid_back(p, p->segments[i]);
    for (uint32_t i = 0; i < p->plan_count; i++) {
        struct ud__plan *plan = &p->plans[i];
        if (plan->type != UD_MSG_PUBLISH || plan->late || now - plan->sent < p->conf.answer_timeout)
            continue;
        struct ud__session *s = ud__session(p, plan->sid);
        plan->late = true;
        p->outstanding -= plan->npages;
        s->mute_until = now + MUTE;
        release(s, plan, now + MUTE, now);
        ud__resolve(p, s, NULL, 0, now);
    }
}

int ud_planner_next(struct ud_planner *p, int64_t now, struct ud_plan_out *out, void *buf)
{
    expire(p, now);
    if (p->conf.run != 1 || (!p->move_total && !p->queued))
        return 0;
    /* Merges first: they free memory. Publications take turns. */
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i] && (ud__make_merge(p, p->sessions[i], now, out, buf) == 1 ||
                               ud__make_unmerge(p, p->sessions[i], now, out, buf) == 1))
            return 1;
    for (uint32_t k = 0; k < p->session_room; k++) {
        uint32_t i = (p->next_sid + k) % p->session_room;
        if (p->sessions[i] && ud__make_publish(p, p->sessions[i], now, out, buf) == 1) {
            p->next_sid = i + 1;
            return 1;
        }
    }
    return 0;
}

/* ---- time ---------------------------------------------------------------------------------------- */

/* When something of a session is to be looked at again, news or not; INT64_MAX: never. */
static int64_t next_look(const struct ud_planner *p, const struct ud__session *s, int64_t now)
{
    if (s->held_up)
        return ud__waits_until(p, s, now);
    if (s->fresh)
        return now;
    int64_t again = s->again_count ? s->again_at : INT64_MAX;
    return s->shy_until && s->shy_until < again ? s->shy_until : again;
}

int64_t ud_planner_timer(struct ud_planner *p, int64_t now)
{
    int64_t first = INT64_MAX;
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i]) {
            int64_t look = next_look(p, p->sessions[i], now);
            first = look < first ? look : first;
        }
    int64_t expiry = next_expiry(p);
    if (expiry < first)
        first = expiry;
    if (first == INT64_MAX || p->conf.run != 1)
        return -1;
    return first > now ? first - now : 0;
}

uint32_t ud_planner_due(struct ud_planner *p, int64_t now)
{
    for (uint32_t i = 1; p->conf.run == 1 && i < p->session_room; i++) {
        struct ud__session *s = p->sessions[i];
        if (s && next_look(p, s, now) <= now)
            return i;
    }
    return 0;
}

uint64_t ud_planner_queued(struct ud_planner *p) { return p->queued; }

int ud_planner_quiet(struct ud_planner *p)
{
    if (p->queued || p->wait_total || p->move_total || p->plan_count)
        return 0;
    for (uint32_t i = 1; i < p->session_room; i++)
        if (p->sessions[i] && (p->sessions[i]->again_open || p->sessions[i]->held_up))
            return 0;
    return 1;
}
