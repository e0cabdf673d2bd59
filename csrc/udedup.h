/* udedup.h: the public face of libudedup.so; udedup/_cdef.h tells cffi the same.
 *
 * Guarantees: ud_ functions return 0 or a count, or -errno; none touches errno. Sizes are in bytes
 * unless the name says pages. Nothing here is async-signal-safe unless it says so.
 */
#ifndef UDEDUP_H
#define UDEDUP_H

#include <stddef.h>
#include <stdint.h>

#define UD_API __attribute__((visibility("default")))

/* ---- pages: digest.c, compare.c --------------------------------------------------------------- */

/* Keyed 64-bit hash of n pages of page_size bytes from `pages`, one into each out[i]. Nominates only. */
UD_API void ud_digest_pages(const void *pages, size_t n, size_t page_size, const uint64_t key[2], uint64_t *out);
/* The implementation the dispatch chose: "avx512", "avx2", "neon" or "scalar". */
UD_API const char *ud_digest_backend(void);
/* Forces one by name (tests); -ENOTSUP if this CPU cannot. */
UD_API int ud_digest_use(const char *name);
/* 1 if the n bytes are equal. */
UD_API int ud_equal(const void *a, const void *b, size_t n);
/* 1 if the n bytes are all zero. */
UD_API int ud_is_zero(const void *page, size_t n);

/* ---- agent: api.c ---------------------------------------------------------------------------- */

/* Starts the agent of this process (socket: path of the domain's socket). 0, or -EALREADY. */
UD_API int ud_join(const char *socket_path, int regions_advised);
/* Unmerges everything and ends the agent; waits for it. 0, or -ENOENT if none runs. */
UD_API int ud_leave(void);
/* MADV_MERGEABLE (12) or MADV_UNMERGEABLE (13) on whole pages inside [addr, addr+len). */
UD_API int ud_advise(void *addr, size_t len, int advice);
/* 1 if an agent runs here and is connected, 0 if not. */
UD_API int ud_joined(void);
/* Process-wide merging as PR_SET_MEMORY_MERGE: 1 on, 0 off (unmerges); get returns it. */
UD_API int ud_memory_merge_set(int on);
UD_API int ud_memory_merge_get(void);
/* 1 if the interposers of this instance are in front of libc (LD_PRELOAD), 0 if not. */
UD_API int ud_preloaded(void);

/* ---- trap mode: writable.c ---------------------------------------------------------------------------- */

/* Makes [addr, addr+len) writable for the kernel too, and keeps it so until closed: for a system call that writes
 * into it. A token > 0, or -errno of mprotect. Async-signal-safe, cheap where nothing is protected. */
UD_API int ud_writable_open(void *addr, size_t len);
/* Ends it. 0, or -EINVAL for a token that is none. */
UD_API int ud_writable_close(int token);

/* ---- layout of a pool: layout.c ---------------------------------------------------------------- */

/* Called in a child before exec: no randomization, mmap base shifted by `shift` bytes (through
 * RLIMIT_STACK). 0, or -EPERM where seccomp refuses personality(2). */
UD_API int ud_layout_apply(uint64_t shift);

/* ---- probe.c ------------------------------------------------------------------------------------ */

/* Stops and releases the calling thread once, as a holder does. Microseconds it took, or -errno. */
UD_API long ud_probe_hold(void);
/* Parks all other threads of the process once by SIGURG, as a holder does where ptrace is refused. Microseconds it took, or
 * -EBUSY if one blocks SIGURG, -ETIMEDOUT, -EPERM if signals are refused as well, -errno. */
UD_API long ud_probe_park(void);

/* Can shared memory be had in huge pages (huge.c)? 0, or -EINVAL (Linux before 6.1, shmem_enabled is "deny", PR_SET_THP_DISABLE),
 * -ENOMEM, -EAGAIN. */
UD_API long ud_probe_huge_store(void);

#endif
