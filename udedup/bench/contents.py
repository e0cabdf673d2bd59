"""How much of a pool's memory is unlike: what the best of mergers would leave of it."""

from __future__ import annotations

import array
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from udedup.core import ffi, lib

PAGE = mmap.PAGESIZE
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


def _mappings(pid: int) -> Iterator[tuple[int, int, bool]]:
    """Start and end of what is private and readable, and whether it is the store's."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        where, protection, _, _, _, *name = line.split(None, 5)
        start, end = (int(each, 16) for each in where.split("-"))
        if protection[0] == "r" and protection[3] == "p":
            yield start, end, name[:1] == ["/memfd:udedup-segment (deleted)"]


def _digests(pid: int) -> Iterator[list[int]]:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(f"/proc/{pid}/pagemap", "rb", 0) as pagemap:
        for start, end, of_store in _mappings(pid):
            for at in range(start, end, _CHUNK):
                pages = min(end - at, _CHUNK) // PAGE
                entries = array.array("Q", os.pread(pagemap.fileno(), pages * 8, at // PAGE * 8))
                if wanted := [i for i, entry in enumerate(entries) if of_store or _own(entry)]:
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
