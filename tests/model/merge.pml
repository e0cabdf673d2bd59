/* merge.pml: the merge transaction, small enough to be searched completely.
 *
 * Property: no write is lost, no read is stale, no foreign mapping is overwritten, and nobody waits
 * for ever. `ghost` is what the program must see; every read asserts it.
 * Each guard can be taken out with -DNO_<GUARD>; test_model.py expects a counterexample for each.
 *
 * Modes: stop (default) holds every thread; -DTRAP uses mprotect and a fault handler, and with
 * -DSPLIT_TRAP merged pages stay write-protected.
 *
 * Pages of the program:
 *   0  written by W (stores), K (a system call writes for it), D (asynchronous I/O)
 *   1  given back, unmapped and mapped again by U, moved away by M, or closed and opened by C
 *   2  the last page of the mapping; G grows the mapping past it with an mremap nobody intercepts
 *   3  where it grows to
 * Page p is compared with slot p of the segment; all slots hold 1, slot 3 somebody else's 5.
 *
 * A search takes a cast of actors (-DCAST_WRITER ...); test_model.py runs casts that pair every two.
 *
 * Not modelled: weak memory order (the kernel's locks and stops order everything that matters here)
 * and pages of more than one word.
 */
#define PAGES 3
#define LAST 2
#define GROWN 3

/* what a virtual page is mapped from */
#define NONE 0
#define ANON 1
#define SEG 2   /* MAP_PRIVATE of the segment, whether split (own copy) or not */
#define OTHER 3 /* something that is not ours: a shared file, a device */

/* threads of the process */
#define W 0
#define K 1
#define U 2
#define F 3
#define G 4
#define THREADS 5
#define CHILD 5 /* the only thread of the forked child: never held here */

typedef Space {
    byte vma[4];
    byte val[4];   /* content of the private frame */
    bit own[4];    /* SEG: the kernel has made a private copy */
    bit ro[4];     /* write-protected by us */
    bit shut[4];   /* trap: write-protected by the program itself */
    bit closed[4]; /* trap: ... by a window that was open at the fork, and that nobody here will end */
    bit mbit[4];   /* merged map: "this page is mapped from a segment" */
    byte ghost[4]; /* what the program must read */
    byte busy;     /* threads inside an interposed memory call */
    byte calls;    /* trap: threads inside an interposed mprotect */
    bit batch;     /* trap: a batch is under way */
    byte openers;  /* trap: fault handlers that are opening pages */
};
Space as[2];

byte seg[4];
bit sealed;
bit held[6];
bit exists[THREADS];
bit inkernel[THREADS];
bit pinned, pin_lost; /* page 0 is the target of asynchronous I/O; its frame was replaced meanwhile */
bit opened;           /* trap: page 0 is open for system calls (udedup.writable) */
bit registered = 1;   /* trap: page 1 may be merged */
bit kills = 1;        /* how often the holder may still be killed */

#define RUN(t) (!held[t])
#define VISIBLE(a, p) ((as[a].vma[p] == SEG && !as[a].own[p]) -> seg[p] : as[a].val[p])

inline check(a, p) {
    assert(as[a].vma[p] != NONE);
    assert(VISIBLE(a, p) == as[a].ghost[p]) /* lost write or stale read */
}

/* The processor's store or the kernel's copy: copy-on-write included. Always inside atomic. */
inline write(a, p, v) {
    assert(as[a].vma[p] != NONE);
    if
    :: as[a].vma[p] == SEG -> as[a].own[p] = 1
    :: else
    fi;
    as[a].val[p] = v;
    as[a].ghost[p] = v
}

/* ---- the fault handler (trap) ---------------------------------------------------------------- */

inline open_page(a, p) {
#ifdef NO_OPENLOCK
    as[a].batch == 0;
    as[a].ro[p] = 0
#else
    do
    :: as[a].openers++;
       if
       :: as[a].batch == 0 -> as[a].ro[p] = 0; as[a].openers--; break
       :: as[a].batch == 1 -> as[a].openers--; as[a].batch == 0
       fi
    od
#endif
}

inline store(a, t, p, v) {
    do
    :: atomic { RUN(t) && !as[a].ro[p] -> assert(!as[a].shut[p]); write(a, p, v) } break
    :: RUN(t) && as[a].ro[p] -> open_page(a, p)
    od
}

/* ---- interposed calls ------------------------------------------------------------------------ */

inline busy_enter(a, t) {
#ifdef NO_BUSY
    skip
#else
    atomic { RUN(t) -> as[a].busy++ }
#endif
}

inline busy_leave(a, t) {
#ifdef NO_BUSY
    skip
#else
    atomic { RUN(t) -> as[a].busy-- }
#endif
}

/* madvise(DONTNEED): asks the merged map, and maps fresh zero pages where the segment would show. */
inline dontneed(a, t, p, b) {
    busy_enter(a, t);
    atomic { RUN(t) -> b = as[a].mbit[p] }
    if
    :: b ->
#ifdef NO_REPAIRORDER
       atomic { RUN(t) -> as[a].mbit[p] = 0 }
#endif
       atomic { RUN(t) ->
           as[a].vma[p] = ANON; as[a].own[p] = 0; as[a].ro[p] = 0;
           as[a].val[p] = 0; as[a].ghost[p] = 0 }
       atomic { RUN(t) -> as[a].mbit[p] = 0 }
    :: !b ->
       atomic { RUN(t) ->
           if
           :: as[a].vma[p] == SEG -> as[a].own[p] = 0
           :: else -> as[a].val[p] = 0
           fi;
           as[a].ghost[p] = 0 }
    fi;
    busy_leave(a, t)
}

/* ---- threads of the program ------------------------------------------------------------------ */

proctype UserWriter() {
    exists[W]; /* created while the agent may already be holding */
    store(0, W, 0, 2);
    atomic { RUN(W) -> check(0, 0) }
    store(0, W, 0, 1);
    atomic { RUN(W) -> check(0, 0) }
    atomic { RUN(W) -> exists[W] = 0 }
}

/* read(2) into page 0. Once in the kernel it cannot be stopped before it returns. */
proctype KernelWriter() {
#ifdef TRAP
#ifndef NO_WRITABLE
    opened = 1;
    as[0].batch == 0;
    as[0].ro[0] = 0;
#endif
#endif
    atomic { RUN(K) -> inkernel[K] = 1 }
    atomic { assert(!as[0].ro[0]); /* EFAULT */ write(0, 0, 3) }
    atomic { inkernel[K] = 0 }
    atomic { RUN(K) -> opened = 0; check(0, 0) }
    atomic { RUN(K) -> exists[K] = 0 }
}

#ifndef TRAP
/* io_uring, O_DIRECT: pins the frame at submission, writes it when it likes; no thread to hold. */
proctype AsyncWriter() {
    atomic { RUN(K) -> /* submitted by a thread */
        if
        :: as[0].vma[0] == SEG -> as[0].own[0] = 1
        :: else
        fi;
        pinned = 1; pin_lost = 0;
        as[0].val[0] = VISIBLE(0, 0) }
    atomic {
        if
        :: !pin_lost -> as[0].val[0] = 4
        :: else
        fi;
        as[0].ghost[0] = 4; pinned = 0;
        check(0, 0) }
}
#endif

proctype Unmapper() {
    bit b;
#ifdef TRAP
#ifndef NO_UNREGISTER
    registered = 0;
    as[0].batch == 0;
#endif
#endif
    if
    :: dontneed(0, U, 1, b);
       atomic { RUN(U) -> check(0, 1) }
    :: busy_enter(0, U);
       atomic { RUN(U) -> as[0].vma[1] = NONE; as[0].own[1] = 0; as[0].ro[1] = 0 }
       atomic { RUN(U) -> as[0].mbit[1] = 0 }
       busy_leave(0, U);
       /* the address goes to something else, which happens to hold the same bytes */
       atomic { RUN(U) -> as[0].vma[1] = OTHER; as[0].val[1] = 1; as[0].ghost[1] = 1 }
       atomic { RUN(U) && !as[0].ro[1] -> write(0, 1, 6) }
       atomic { RUN(U) -> check(0, 1) }
    fi;
    atomic { RUN(U) -> exists[U] = 0 }
}

#ifdef TRAP
/* mremap of page 1: what arrives elsewhere must be writable, for nobody knows there that it is ours. */
proctype Mover() {
#ifdef NO_OPENFIRST
    as[0].batch == 0;
    as[0].ro[1] = 0;
    registered = 0;
#else
    registered = 0; /* busy: no window begins from here on */
    as[0].batch == 0;
    as[0].ro[1] = 0;
#endif
    atomic {
        assert(!as[0].ro[1]); /* moved read-only: a write there is a crash */
        as[0].vma[1] = NONE; as[0].own[1] = 0; as[0].mbit[1] = 0 }
    atomic { RUN(U) -> exists[U] = 0 }
}
#endif

#ifdef TRAP
/* mprotect(PROT_READ) of page 1 and back, then a write. */
inline closes(b) {
    as[0].calls++;
    as[0].batch == 0;
    atomic { as[0].shut[1] = b; as[0].ro[1] = 0 }
    as[0].calls--
}

proctype Closer() {
    closes(1);
    closes(0);
    if
    :: store(0, U, 1, 6)
    :: skip
    fi;
    atomic { assert(!as[0].shut[1]); /* a write there is a crash */ check(0, 1) }
    atomic { RUN(U) -> exists[U] = 0 }
}
#endif

/* realloc inside libc: one mapping grows in place, two mappings make mremap fail (EFAULT). */
proctype Grower() {
    atomic { RUN(G) ->
        if
        :: as[0].vma[LAST] == as[0].vma[LAST - 1] || as[0].vma[LAST] == SEG ->
           as[0].vma[GROWN] = as[0].vma[LAST]; as[0].ghost[GROWN] = 0; check(0, GROWN)
        :: else
        fi }
    atomic { RUN(G) -> exists[G] = 0 }
}

#ifdef TRAP
/* udedup.writable and read(2) in a child: no fault is raised that could open what the parent's window left closed. */
inline child_reads() {
    if
#ifdef NO_INHERIT
    :: as[1].ro[0] && !as[1].closed[0] -> as[1].ro[0] = 0
#else
    :: as[1].ro[0] -> as[1].ro[0] = 0
#endif
    :: else
    fi;
    assert(!as[1].ro[0]); /* EFAULT */
    write(1, 0, 4);
    check(1, 0)
}
#endif

/* Shares nothing that changes with its parent, so its steps need not be interleaved with the parent's. */
proctype Child() {
    bit b;
    atomic {
        check(1, 0);
        if
        :: store(1, CHILD, 0, 7)
        :: skip
        fi;
        check(1, 0);
        dontneed(1, CHILD, 1, b);
        check(1, 1);
#ifdef TRAP
        child_reads();
#endif
        assert(as[1].busy == 0) /* else nothing is ever merged in the child */ }
}

proctype Forker() {
    byte i;
#ifdef CAST_WRITER
    atomic { RUN(F) -> exists[W] = 1 } /* clone(): may be missing in the list the holder has just read */
#endif
    atomic { RUN(F) ->
#ifdef TRAP
        if
#ifndef NO_FORKLOCK
        :: as[0].batch == 0 -> assert(!as[0].batch) /* fork(3) waits for the batch: its child inherits no window */
#else
        :: assert(!as[0].batch)
#endif
        :: skip /* clone(2) by hand does not */
        fi;
#endif
        for (i : 0 .. 3) {
            as[1].closed[i] = as[0].batch && as[0].ro[i];
            as[1].vma[i] = as[0].vma[i]; as[1].val[i] = as[0].val[i]; as[1].own[i] = as[0].own[i];
            as[1].ro[i] = as[0].ro[i]; as[1].mbit[i] = as[0].mbit[i]; as[1].shut[i] = as[0].shut[i]; as[1].ghost[i] = as[0].ghost[i]
        }
        as[1].busy = as[0].busy; as[1].batch = as[0].batch; as[1].openers = as[0].openers;
#ifndef NO_FORKRESET
        as[1].busy = 0; as[1].batch = 0; as[1].openers = 0;
#endif
        i = 0;
        if
        :: as[1].vma[1] == ANON || as[1].vma[1] == SEG -> run Child()
        :: else
        fi }
    atomic { RUN(F) -> exists[F] = 0 }
}

/* Who filled the segment. It may be anybody's, so it may forget to seal and write again later. */
proctype Publisher() {
    if
    :: sealed = 1
    :: skip
    fi;
    atomic {
        if
        :: !sealed -> seg[0] = 8; seg[1] = 8
        :: else
        fi }
}

/* ---- the agent ------------------------------------------------------------------------------- */

#ifdef NO_LASTPAGE
#define MERGEABLE(p) (p < PAGES)
#else
#define MERGEABLE(p) (p < LAST)
#endif

#ifndef BATCHES
#define BATCHES 3
#endif

inline select_page(p) {
    if
    :: p = 0
    :: p = 1
    :: MERGEABLE(LAST) -> p = LAST
    fi
}

#define SAME(p) (as[0].vma[p] != NONE && VISIBLE(0, p) == seg[p])

/* One page changes from its own frame to the slot; mmap(MAP_FIXED) does it in one step. */
inline remap(p) {
    atomic {
        assert(as[0].vma[p] == ANON); /* foreign overwrite */
        if
        :: p == 0 && pinned -> pin_lost = 1
        :: else
        fi;
        as[0].vma[p] = SEG; as[0].own[p] = 0 }
}

#ifndef TRAP

inline hold_all() {
    do
    :: atomic { /* the list of threads, read once */
           t = 0;
           do
           :: t < THREADS -> listed[t] = exists[t] && !held[t]; t++
           :: else -> break
           od;
           t = 0 }
       do
       :: atomic { t < THREADS && (!listed[t] || !exists[t]) -> t++ }
#ifdef NO_HOLDWAIT
       :: atomic { t < THREADS && listed[t] -> held[t] = 1; t++ } /* asked to stop, not waited for */
#else
       :: atomic { t < THREADS && listed[t] && !inkernel[t] -> held[t] = 1; t++ }
#endif
       :: atomic { t == THREADS -> t = 0; again = 0 } break
       od;
#ifdef NO_RELIST
       break
#else
       atomic {
           do
           :: t < THREADS -> again = again || (exists[t] && !held[t]); t++
           :: else -> break
           od;
           t = 0 }
       if
       :: !again -> break
       :: again
       fi
#endif
    od
}

/* The kernel lets every traced thread go when the holder is gone, however it went. */
inline release_all() {
    d_step {
        t = 0;
        do
        :: t < THREADS -> held[t] = 0; t++
        :: else -> break
        od;
        t = 0; same = 0; anon = 0; copy = 0 }
}

#define MAYBE_KILLED if :: kills -> kills = 0; goto gone :: true fi

/* One holder works on page p; it may be killed between any two steps, and another follows. */
proctype Agent() {
    byte n, p, t, copy;
    bit anon, same, again;
    bit listed[THREADS];
#ifndef NO_SEALS
    if
    :: sealed
    :: !sealed -> goto done /* the segment came without its seals: refused */
    fi;
#endif
    do
    :: atomic { n == BATCHES -> n = 0 } break
    :: atomic { n < BATCHES -> n++; select_page(p);
                anon = (as[0].vma[p] == ANON); same = SAME(p) /* what the scan believes */ }
#ifndef NO_HOLD
       hold_all();
#endif
       if
#ifndef NO_BUSY
       :: as[0].busy -> goto gone
#endif
#ifndef NO_PIN
       :: p == 0 && pinned -> goto gone
#endif
       :: else
       fi;
       if
       :: as[0].vma[p] == SEG && as[0].mbit[p] -> /* unmerge (run = 2) */
#ifdef NO_UNMERGEATOMIC
          atomic { copy = VISIBLE(0, p); as[0].vma[p] = ANON; as[0].own[p] = 0; as[0].val[p] = 0 }
          MAYBE_KILLED;
          atomic { as[0].val[p] = copy }
#else
          /* the copy is made elsewhere and moved over the old mapping: mremap(MREMAP_FIXED) */
          copy = VISIBLE(0, p);
          MAYBE_KILLED;
          atomic { as[0].vma[p] = ANON; as[0].own[p] = 0; as[0].val[p] = copy }
#endif
          MAYBE_KILLED;
          as[0].mbit[p] = 0
       :: else ->
#ifndef NO_MAPCHECK
          anon = (as[0].vma[p] == ANON);
#endif
#ifndef NO_COMPARE
          same = SAME(p);
#endif
          if
          :: anon && same ->
#ifndef NO_BITFIRST
             as[0].mbit[p] = 1;
             MAYBE_KILLED;
#endif
#ifdef NO_ATOMICREMAP
             atomic { assert(as[0].vma[p] == ANON); as[0].vma[p] = NONE }
             MAYBE_KILLED;
             atomic { as[0].vma[p] = SEG; as[0].own[p] = 0 }
#else
             remap(p);
#endif
#ifdef NO_BITFIRST
             MAYBE_KILLED;
             as[0].mbit[p] = 1
#endif
          :: skip /* the bytes differ, or the kernel refuses the mapping */
          fi
       fi;
gone:
       release_all()
    od;
done:
    skip
}

#else /* TRAP */

/* A copy takes the place of the merged page: mremap(MREMAP_FIXED), with the protection seen before. */
inline give_back(p, was_shut) {
    copy = VISIBLE(0, p);
    atomic { as[0].vma[p] = ANON; as[0].own[p] = 0; as[0].val[p] = copy; as[0].shut[p] = was_shut; copy = 0 }
    as[0].mbit[p] = 0
}

proctype Agent() {
    byte n, p, copy;
    bit same, shut;
#ifndef NO_SEALS
    if
    :: sealed
    :: !sealed -> goto done
    fi;
#endif
    do
    :: atomic { n == BATCHES -> n = 0 } break
    :: atomic { n < BATCHES -> n++; select_page(p); same = SAME(p) }
       shut = as[0].shut[p];
#ifdef NO_BAR
       if
       :: shut && as[0].vma[p] == SEG && as[0].mbit[p] -> give_back(p, 1); goto dropped
       :: else
       fi;
#endif
       as[0].batch = 1;
       if
       :: as[0].calls -> goto dropped
#ifndef NO_BARCHECK
       :: shut != as[0].shut[p] -> goto dropped
#endif
#ifndef NO_OPENLOCK
       :: as[0].openers -> goto dropped
#endif
       :: p == 0 && opened -> goto dropped
       :: p == 1 && !registered -> goto dropped
       :: else
       fi;
       if
       :: as[0].vma[p] == SEG && as[0].mbit[p] && shut -> give_back(p, 1); goto dropped
       :: as[0].vma[p] == SEG && as[0].mbit[p] && !shut -> /* unmerge (run = 2) */
          as[0].ro[p] = 1;
          give_back(p, 0);
          as[0].ro[p] = 0;
          goto dropped
       :: as[0].vma[p] != ANON || shut -> goto dropped
       :: else
       fi;
#ifndef NO_PROTECT
       as[0].ro[p] = 1;
#endif
#ifndef NO_COMPARE
       same = SAME(p);
#endif
       if
       :: same ->
#ifndef NO_BITFIRST
          as[0].mbit[p] = 1;
#endif
#ifdef NO_ATOMICREMAP
          atomic { assert(as[0].vma[p] == ANON); as[0].vma[p] = NONE }
          atomic { as[0].vma[p] = SEG; as[0].own[p] = 0 }
#else
          remap(p);
#endif
#ifdef NO_BITFIRST
          as[0].mbit[p] = 1;
#endif
#ifndef SPLIT_TRAP
          as[0].ro[p] = 0
#endif
       :: as[0].ro[p] = 0 /* the bytes differ, or the kernel refuses the mapping */
       fi;
dropped:
       atomic { as[0].batch = 0; shut = 0 }
    od;
done:
    skip
}

#endif

init {
    atomic {
        byte i;
        for (i : 0 .. 3) { seg[i] = 1; as[0].vma[i] = ANON; as[0].val[i] = 1; as[0].ghost[i] = 1 }
        i = 0;
        seg[GROWN] = 5; as[0].vma[GROWN] = NONE; as[0].val[GROWN] = 0; as[0].ghost[GROWN] = 0;
#ifdef CAST_WRITER
        run UserWriter();
#ifndef CAST_FORKER
        exists[W] = 1;
#endif
#endif
#if defined(CAST_KERNEL) || defined(CAST_ASYNC)
        exists[K] = 1;
#endif
#ifdef CAST_KERNEL
        run KernelWriter();
#endif
#ifdef CAST_ASYNC
        run AsyncWriter();
#endif
#ifdef CAST_UNMAPPER
        exists[U] = 1; run Unmapper();
#endif
#ifdef CAST_MOVER
        exists[U] = 1; run Mover();
#endif
#ifdef CAST_CLOSER
        exists[U] = 1; run Closer();
#endif
#ifdef CAST_GROWER
        exists[G] = 1; run Grower();
#endif
#ifdef CAST_FORKER
        exists[F] = 1; run Forker();
#endif
#ifdef CAST_PUBLISHER
        run Publisher();
#else
        sealed = 1;
#endif
        run Agent()
    }
}
