"""Segments are named by the blake3 of their content; the scrubber reads them again and compares.

A sealed memfd cannot be written, so what a scrub finds is memory that went bad, or a bug. The names are
taken when a segment is new, a chunk at a time, and checked again slowly in the background.
"""

import mmap
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udedup.merger.server import Server

CHUNK = 1 << 20  # bytes to a name: 32 bytes of name to 1 MiB of store


def names_of(fd: int, size: int, first: int = 0, count: int | None = None) -> list[bytes]:
    """blake3 of each chunk of a segment, or of `count` chunks from chunk `first` on."""
    from blake3 import blake3

    end = size if count is None else min(size, (first + count) * CHUNK)
    with (
        mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as content,
        memoryview(content) as view,
    ):
        return [blake3(view[at : min(at + CHUNK, size)]).digest() for at in range(first * CHUNK, end, CHUNK)]


class Scrubber:
    """Names new segments some seconds after they came, and reads one old chunk in each PERIOD."""

    NAME_AFTER = 30.0  # seconds: a segment that is gone by then needs no name
    PERIOD = 2.0  # seconds between two background checks, one chunk each

    def __init__(self, server: "Server") -> None:
        self.server = server
        self._names: dict[int, list[bytes]] = {}
        self._pending: dict[int, float] = {}
        self._next = 0.0
        self._at = (0, 0)  # segment, chunk
        self._checked = 0
        self._bad = 0

    def added(self, gid: int) -> None:
        """A segment is new in the store."""
        if gid not in self._names:
            self._pending.setdefault(gid, time.monotonic() + self.NAME_AFTER)

    def forget(self, gid: int) -> None:
        self._names.pop(gid, None)
        self._pending.pop(gid, None)

    def wait(self, now: float) -> float | None:
        """Seconds until tick() has something to do, None if the store is empty."""
        if self._pending:
            return min(self._pending.values()) - now
        return self._next - now if self._names else None

    def tick(self, now: float) -> None:
        due = next((gid for gid, when in self._pending.items() if when <= now), None)
        if due is not None:
            self._name(due)
        elif self._names and not self._pending and now >= self._next:
            self._next = now + self.PERIOD
            self._check_next()

    def run_all(self) -> dict[str, Any]:
        """Checks the whole store now. Segments that had no name yet get one and count as named."""
        started, bad = time.monotonic(), []
        pages = named = 0
        for gid in self.server.store:
            pages += self.server.planner.segment_info(gid).npages
            if gid in self._names:
                bad += self._compare(gid, 0, None)
            else:
                self._name(gid)
                named += 1
        return {
            "segments": len(self.server.store),
            "pages": pages,
            "newly_named": named,
            "bad": bad,
            "seconds": round(time.monotonic() - started, 3),
        }

    def report(self) -> dict[str, Any]:
        return {
            "named_segments": len(self._names),
            "pending_segments": len(self._pending),
            "checked_bytes": self._checked,
            "bad_chunks": self._bad,
        }

    def _segment(self, gid: int) -> tuple[int, int]:
        """Descriptor and bytes."""
        return self.server.store.fd_of(gid), self.server.planner.segment_info(gid).npages * mmap.PAGESIZE

    def _name(self, gid: int) -> None:
        self._pending.pop(gid, None)
        self._names[gid] = names_of(*self._segment(gid))

    def _check_next(self) -> None:
        gid, chunk = self._at
        if gid not in self._names or chunk >= len(self._names[gid]):
            later = [other for other in self._names if other > gid]
            gid, chunk = min(later or self._names), 0
        self._compare(gid, chunk, 1)
        self._at = (gid, chunk + 1)

    def _compare(self, gid: int, first: int, count: int | None) -> list[dict[str, int]]:
        """The chunks that are not what their names say: segment, first page and pages of each."""
        fd, size = self._segment(gid)
        found = []
        for offset, name in enumerate(names_of(fd, size, first, count)):
            chunk = first + offset
            self._checked += min(CHUNK, size - chunk * CHUNK)
            if name != self._names[gid][chunk]:
                per_chunk = CHUNK // mmap.PAGESIZE
                segment = self.server.planner.segment_info(gid).name
                found.append({"segment": segment, "page": chunk * per_chunk, "pages": per_chunk})
                print(
                    f"udedup merger: segment {segment} changed at page {chunk * per_chunk}", file=sys.stderr
                )
        self._bad += len(found)
        return found
