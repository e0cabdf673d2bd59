"""Does a stopped thread hold a lock that dlopen() would need? Read from glibc's own data in its memory.

The loader's locks are recursive pthread mutexes inside `_rtld_global`, whose owner is written in them (that
layout is ABI). Malloc's arena locks tell no owner, but what a stopped thread holds stays held: one that is
seen free while the thread is stopped is not held by it. Arenas form a ring that begins in libc's data; its
shape is told by the empty bins, which point to themselves.
"""

import struct
import time

from udedup.watch.elf import Image, Memory

_MUTEX = struct.Struct("<iIiIi")  # lock, count, owner, nusers, kind
_RECURSIVE = 1
_BINS = 254  # words of malloc_state.bins
_MAX_ARENAS = 4096


def owns_loader_lock(memory: Memory, loader: Image, tid: int) -> bool:
    """True if the thread is inside dlopen, dlclose or the like. Raises OSError."""
    for mapping in loader.writable():
        data = memory.read(mapping.start, mapping.size)
        wanted = struct.pack("<i", tid)
        at = data.find(wanted)
        while at >= 0:
            if at >= 8 and at % 8 == 0 and at + 12 <= len(data):
                lock, count, owner, users, kind = _MUTEX.unpack_from(data, at - 8)
                if lock in (1, 2) and count and users == 1 and kind == _RECURSIVE and owner == tid:
                    return True
            at = data.find(wanted, at + 1)
    return False


def arenas(memory: Memory, libc: Image) -> list[int] | None:
    """Addresses of malloc's arenas (struct malloc_state, whose lock is the first word); None if not
    recognized.
    """
    for mapping in libc.writable():
        data = memory.words(mapping.start, mapping.size // 8)
        for bins_at in (0x70, 0x68, 0x18):  # since glibc 2.26, before, without fastbins since 2.43
            main = _main_arena(data, mapping.start, bins_at)
            ring = _ring(memory, main, bins_at + 8 * _BINS + 16) if main is not None else None
            if ring is not None:
                return ring
    return None


def _main_arena(data: tuple[int, ...], start: int, bins_at: int) -> int | None:
    """An empty bin is a pair of words that point to two words before themselves; most of 127 are empty."""
    empty = [at for at in range(2, len(data) - 1) if data[at] == data[at + 1] == start + 8 * at - 16]
    if len(empty) >= 8:
        return _back_to_start(data, start, empty[-1], bins_at)
    return _unused_arena(data, start, bins_at)


def _unused_arena(data: tuple[int, ...], start: int, bins_at: int) -> int | None:
    """Before the first malloc: all zero but the ring's pointer, which leads back to the arena."""
    next_at = bins_at // 8 + _BINS + 2
    for at in range(next_at, len(data)):
        if data[at] == start + 8 * (at - next_at) and not any(data[at - next_at : at]):
            return data[at]
    return None


def _back_to_start(data: tuple[int, ...], start: int, at: int, bins_at: int) -> int | None:
    """From a bin somewhere in the table to the arena: the ring's pointer behind the table tells which bin it
    is.
    """
    for index in range(_BINS // 2):
        main = start + 8 * (at - 2 * index) - bins_at
        next_at = (main - start + bins_at) // 8 + _BINS + 2
        if main < start or next_at >= len(data):
            continue
        lock, following = data[(main - start) // 8] & 0xFFFFFFFF, data[next_at]
        if lock in (0, 1, 2) and (following == main or (following & 0xFFF) in (0x20, 0x30)):
            return main
    return None


def _ring(memory: Memory, main: int, next_at: int) -> list[int] | None:
    found = [main]
    try:
        while len(found) < _MAX_ARENAS:
            (following,) = memory.words(found[-1] + next_at, 1)
            if following == main:
                return found
            found.append(following)
    except OSError:
        pass
    return None


def seen_free(memory: Memory, locks: list[int], seconds: float) -> bool:
    """True once each lock was 0 at some moment. The thread in question must be stopped all the while."""
    deadline = time.monotonic() + seconds
    left = list(locks)
    while left:
        left = [lock for lock in left if memory.int32(lock) != 0]
        if left and time.monotonic() > deadline:
            return False
    return True
