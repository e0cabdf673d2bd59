/* pace.c: what merging may take of a program that computes.
 *
 * Where the program sleeps, an agent works as fast as it can. Where it computes, the agent rests after each piece of work, so
 * that its CPU and the pauses it makes come to pace_percent of the time; to less, where there are more tasks than CPUs,
 * for each agent of a pool takes from all of its workers then.
 *
 * Guarantees: a rest is short (REST_MAX_US), and none is taken while somebody waits in settle, or to give memory back.
 * Fails: the share is kept on average over some batches, not within one.
 */
#include <time.h>

#include "internal.h"

#define REST_MAX_US 200000u
#define DEBT_MAX_US 1000000u
#define IDLE 10u        /* percent: who needs less does not miss what we take */
#define CROWD_MAX 200u  /* percent */

static uint64_t looked_us, program_us, agent_us;
static uint64_t debt_us; /* of rest */

static uint64_t cpu_us(int clock)
{
    struct timespec t = {0, 0};
    ud__sys(__NR_clock_gettime, clock, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Tasks that want a CPU now, in percent of the CPUs we may use. */
static uint64_t crowd(void)
{
    uint64_t running = 0, cpus = ud__cpus();
    char buf[64];
    const char *s = buf;
    if (ud__read_file("/proc/loadavg", buf, sizeof buf) <= 0)
        return 0;
    for (int blanks = 0; *s && blanks < 3; s++)
        blanks += *s == ' ';
    running = ud__get_dec(&s);
    return running * 100 / cpus;
}

/* How much the program and its like need the CPU, in percent; above 100 where it is not enough for all. */
static uint64_t need(uint64_t used, uint64_t wall)
{
    uint64_t busy = used < wall ? used * 100 / wall : 100, crowded = busy >= IDLE ? crowd() : 0;
    return crowded > CROWD_MAX ? CROWD_MAX : crowded > 100 ? crowded : busy;
}

/* Rests after a piece of work that held the program for pause_us. */
void ud__pace(uint64_t pause_us)
{
    uint64_t thread = cpu_us(CLOCK_THREAD_CPUTIME_ID), process = cpu_us(CLOCK_PROCESS_CPUTIME_ID), now = ud__now_us();
    uint64_t agent = thread + atomic_load(&ud__helper_cpu_us), program = process > thread ? process - thread : 0;
    uint64_t wall = looked_us ? now - looked_us : 0, cost = agent - agent_us, share = ud__a.knobs.pace_percent;
    int known = wall && program >= program_us && agent >= agent_us;
    if (cost < pause_us)
        cost = pause_us;
    uint64_t wanted = known ? need(program - program_us, wall) : 0;
    if (wanted >= IDLE && share && share < 100 && now - ud__a.kicked_us > UD__HURRY_US) {
        debt_us += cost * wanted / share;
        debt_us = debt_us > wall ? debt_us - wall : 0;
        debt_us = debt_us < DEBT_MAX_US ? debt_us : DEBT_MAX_US;
    } else {
        debt_us = 0;
    }
    looked_us = now;
    program_us = program;
    agent_us = agent;
    uint64_t rest = debt_us < REST_MAX_US ? debt_us : REST_MAX_US;
    ud__turn_rest(rest > pause_us ? rest : pause_us);
}
