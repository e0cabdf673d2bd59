"""How much of a pool's memory is unlike: what the best of mergers would leave of it."""

from __future__ import annotations

import array
import os
from collections.abc import Iterator

from udedup.core import ffi, lib
from udedup.watch.memory import PAGE, read_maps

_CHUNK = 1 << 20  # bytes read at a time
_PRESENT, _FILE = 1 << 63, 1 << 61  # in /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst
_KEY = (1, 1)  # of the digest: any will do


def distinct_bytes(pids: list[int]) -> int | None:
    """Bytes of unlike pages among what the processes have of their own or merged; None if one cannot be read.

    Of files only the store's pages count.
    """
    found: set[int] = set()
    try:
        for pid in pids:
            for digests in _digests(pid):
                found.update(digests)
    except OSError:
        return None
    return len(found) * PAGE


def _digests(pid: int) -> Iterator[list[int]]:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
        for mapping in read_maps(pid):
            if mapping.perms[0] != "r" or mapping.perms[3] != "p":
                continue
            for at in range(mapping.start, mapping.end, _CHUNK):
                pages = min(mapping.end - at, _CHUNK) // PAGE
                entries = array.array("Q", os.pread(pagemap.fileno(), pages * 8, at // PAGE * 8))
                if wanted := [i for i, entry in enumerate(entries) if mapping.segment or _own(entry)]:
                    yield _digest(memory.fileno(), at, pages, wanted)


def _own(entry: int) -> bool:
    return bool(entry & _PRESENT) and not entry & _FILE


def _digest(memory: int, at: int, pages: int, wanted: list[int]) -> list[int]:
    """Digests of the wanted ones among so many pages. Pages that cannot be read ([vvar]) have none."""
    try:
        data = os.pread(memory, pages * PAGE, at)
    except OSError:
        return []
    count = len(data) // PAGE
    out = ffi.new("uint64_t[]", max(1, count))
    lib.ud_digest_pages(ffi.from_buffer(data), count, PAGE, _KEY, out)
    return [out[i] for i in wanted if i < count]
