/* wire.h: the messages between agent and merger, over one SOCK_SEQPACKET unix socket per agent.
 *
 * Guarantees: every packet is one message, opens with struct ud_msg, and is at most UD_MSG_MAX
 * bytes; integers are of the host (both ends are on one machine). Descriptors travel by SCM_RIGHTS,
 * at most one in a message.
 * Fails: a receiver that finds a wrong magic, version, length or count drops the connection, and
 * nothing else. The CLI speaks JSON over the same socket: its first byte is '{', which no
 * magic begins with.
 *
 *   agent                              merger
 *     HELLO + ledger fd     ------->
 *     SEGMENT + fd  (each)  ------->           (only what it already maps: adoption)
 *                           <-------  WELCOME + turns fd  (digest key, knobs; turns.c)
 *     PASS                  ------->           (ledger has news)
 *                           <-------  PUBLISH  (copy these runs into a new segment)
 *     PUBLISHED + fd        ------->
 *                           <-------  MERGE + fd
 *     RESULT                ------->
 *                           <-------  UNMERGE / FORGET / KNOBS / KICK / LEAVE
 */
#ifndef UD_WIRE_H
#define UD_WIRE_H

#include <stdint.h>
#include "ledger.h"

#define UD_WIRE_MAGIC 0x55444544u
#define UD_WIRE_VERSION 2u
#define UD_MSG_MAX 65536u

enum ud_msg_type {
    UD_MSG_HELLO = 1,
    UD_MSG_WELCOME = 2,
    UD_MSG_SEGMENT = 3,
    UD_MSG_PASS = 4,
    UD_MSG_PUBLISH = 5,
    UD_MSG_PUBLISHED = 6,
    UD_MSG_MERGE = 7,
    UD_MSG_RESULT = 8,
    UD_MSG_UNMERGE = 9,
    UD_MSG_FORGET = 10,
    UD_MSG_KNOBS = 11,
    UD_MSG_KICK = 12, /* make a full pass now, without backoff: somebody waits in settle */
    UD_MSG_LEAVE = 13, /* merger to agent: unmerge everything, end the agent (unwatch) */
};

struct ud_msg {
    uint32_t magic;
    uint16_t type;
    uint16_t version;
    uint32_t len;  /* bytes of the whole message, this header included */
    uint32_t plan; /* echoes a plan's number in PUBLISHED and RESULT; else 0 */
};

struct ud_knobs {
    uint32_t run;              /* 0 stop and keep, 1 merge, 2 unmerge everything */
    uint32_t pages_to_scan;    /* pages digested at most between two sleeps */
    uint32_t sleep_millisecs;  /* between two scans */
    uint32_t use_zero_pages;
    uint32_t smart_scan;
    uint32_t max_page_sharing; /* tiles: copies of one uniform page in a row */
    uint32_t freeze_max_us;
    uint32_t min_run;          /* shortest run worth a mapping, pages */
    uint32_t thp;              /* 1 split huge pages, 0 keep them */
    uint32_t vma_share;        /* percent of max_map_count merging may use (33) */
    uint32_t mode;             /* 0 stop, 1 trap */
    uint32_t split;            /* 0 kernel, 1 trap */
    uint32_t idle_millisecs;   /* longest sleep when nothing changes */
    uint32_t merge_across_nodes; /* 0 merges pages of one NUMA node only */
    uint32_t agent_cpu_permille; /* of one core, an agent may use at most; 1000: no bound */
    uint32_t pace_percent;       /* of the CPU a program uses: what its agent may take */
    uint32_t reserved[16];
};

struct ud_msg_hello {
    struct ud_msg msg;
    uint32_t pid;
    uint32_t page_shift;
    uint64_t key[2];   /* digest key in use, 0 if none yet */
    uint32_t segments; /* SEGMENT messages that follow */
    uint32_t flags;    /* 1: digests under this key have a NUMA node in them (merge_across_nodes 0) */
    char comm[16];
};

struct ud_msg_welcome {
    struct ud_msg msg;
    uint64_t key[2];
    struct ud_knobs knobs;
};

struct ud_msg_segment { /* also FORGET */
    struct ud_msg msg;
    uint64_t segment; /* inode number of the memfd: the segment's name everywhere */
    uint32_t npages;
    uint32_t node; /* SEGMENT: NUMA node of its pages + 1; 0: any, or not known */
};

struct ud_msg_pass {
    struct ud_msg msg;
    uint64_t pass;    /* number of the pass that ended */
    uint32_t changed; /* pages whose state or digest changed in it */
    uint32_t whole;   /* 1: the cursor wrapped (a full pass), 0: a slice of it */
};

struct ud_run { /* PUBLISH, MERGE, UNMERGE */
    uint64_t vaddr;
    uint32_t npages;
    uint32_t slot; /* MERGE: first slot. PUBLISH: 0, or copies to make of the one page (a tile) */
};

struct ud_msg_runs {
    struct ud_msg msg;
    uint64_t segment; /* MERGE: whose slots; else 0 */
    uint32_t nruns;   /* UNMERGE: 0 = everything */
    uint32_t node;    /* PUBLISH, MERGE: NUMA node of the segment + 1; 0: any */
    struct ud_run runs[];
};
#define UD_MSG_MAX_RUNS 3000u

struct ud_msg_result { /* PUBLISHED (fd beside it unless segment is 0) and RESULT */
    struct ud_msg msg;
    uint64_t segment; /* PUBLISHED: the new segment; slots are the runs of the plan one after another */
    uint32_t npages;  /* PUBLISHED: its slots */
    uint32_t merged;  /* pages that are mapped from the segment now */
    uint32_t refused; /* pages that are not */
    uint32_t freezes;
    uint32_t causes[UD_CAUSE_COUNT]; /* pages refused, by cause */
};

#endif
