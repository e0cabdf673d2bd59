"""What the memory of a process that takes part consists of: heap, arenas, large blocks, libraries, other.

Page states come from the agent's ledger, a memfd that is opened through /proc and only read. What a mapping
is used for is told from its looks: CPython's pools have a header (as in csrc/recognise.c), and the kernel
joins neighbours, so "arenas" and "large" are best guesses.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from udedup.core import ffi, lib
from udedup.watch.memory import PAGE, Mapping, read_smaps, stack_pointers, why_refused

KINDS = ("heap", "arenas", "large", "libraries", "other", "refused")
_MIB = 1 << 20
_POOL = 16384
_POOL_HEADER = struct.Struct("<I4x3Q4I")  # struct pool_header of Objects/obmalloc.c, 3.10 and later
_ARENA_HEAP = 64 * _MIB  # glibc's arenas are aligned so


@dataclass
class Region:
    """Sums over the mappings of one kind; bytes, except candidates and so on, which are pages."""

    kind: str
    size: int = 0
    present: int = 0
    huge: int = 0
    merged: int = 0
    zero: int = 0
    candidates: int = 0
    volatile: int = 0
    fork_shared: int = 0
    refused: int = 0

    def as_dict(self) -> dict[str, int | str]:
        """Stable keys of --json: *_bytes are bytes, *_pages pages."""
        return {
            "kind": self.kind,
            "size_bytes": self.size,
            "present_bytes": self.present,
            "huge_bytes": self.huge,
            "merged_pages": self.merged,
            "zero_pages": self.zero,
            "candidate_pages": self.candidates,
            "volatile_pages": self.volatile,
            "fork_shared_pages": self.fork_shared,
            "refused_pages": self.refused,
        }


class Ledger:
    """The ledger of one agent, mapped read-only. Raises OSError when it is gone or not ours to read."""

    def __init__(self, pid: int) -> None:
        fd = os.open(_find(pid), os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self._header = ffi.cast("struct ud_ledger_header *", ffi.from_buffer(self._map))
        if self._header.magic != lib.UD_LEDGER_MAGIC or self._header.pid != pid:
            raise FileNotFoundError(2, "ledger of another process")

    def blocks(self) -> list[tuple[int, bytes]]:
        """First address and page states of each block in use, by address."""
        head = self._header
        count = min(head.block_count, head.capacity)
        heads = ffi.cast("struct ud_block_head *", ffi.from_buffer(self._map) + head.heads_off)
        pages = lib.UD_BLOCK_PAGES
        found = [
            (heads[i].vaddr, self._map[head.states_off + i * pages : head.states_off + (i + 1) * pages])
            for i in range(count)
            if heads[i].vaddr
        ]
        return sorted(found)

    @property
    def passes(self) -> int:
        return int(self._header.passes)


def _find(pid: int) -> str:
    """The agent has a descriptor table of its own: look at that of its thread."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text(errors="replace").strip() != "udedup-agent":
            continue
        for link in (task / "fd").iterdir():
            if str(link.readlink()).startswith("/memfd:udedup-ledger"):
                return str(link)
    raise FileNotFoundError(2, "no agent")


_CLEAN = bytes(state & 7 for state in range(256))  # the high bits are the agent's own


def regions(pid: int, ledger: Ledger | None) -> list[Region]:
    """Regions by kind, those of no size left out. Raises OSError."""
    maps = [m for m in read_smaps(pid) if m.perms.startswith("rw") and m.perms.endswith("p")]
    pointers, _ = stack_pointers(pid)
    heap = _heap(pid, maps)
    kinds = _classify(pid, maps, pointers, heap)
    found = {kind: Region(kind) for kind in KINDS}
    for mapping, kind in zip(maps, kinds, strict=True):
        region = found[kind]
        region.size += mapping.size
        region.present += mapping.rss
        region.huge += mapping.huge
    if ledger:
        _count(ledger, maps, kinds, found)
    return [region for region in found.values() if region.size]


def _heap(pid: int, maps: list[Mapping]) -> tuple[int, int]:
    """From start_brk (field 47 of stat) to the end of the last mapping called [heap]."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    start = int(fields[44])
    return start, max((m.end for m in maps if m.name == "[heap]"), default=start)


def _classify(pid: int, maps: list[Mapping], pointers: list[int], heap: tuple[int, int]) -> list[str]:
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        memory = -1
    try:
        kinds: list[str] = []
        for mapping in maps:
            below = maps[len(kinds) - 1] if kinds and maps[len(kinds) - 1].end == mapping.start else None
            kinds.append(_kind(memory, mapping, kinds[-1] if below else "", pointers, heap))
        return kinds
    finally:
        if memory >= 0:
            os.close(memory)


def _kind(memory: int, mapping: Mapping, below: str, pointers: list[int], heap: tuple[int, int]) -> str:
    """below: the kind of the mapping that ends where this one begins, "" if none does."""
    if heap[0] <= mapping.start < heap[1]:
        return "heap"
    if mapping.library:
        return "libraries"
    if not mapping.segment and why_refused(mapping, pointers, None):
        return "refused"
    if below == "libraries" and not mapping.name and mapping.size < 16 * _MIB:
        return "libraries"  # its .bss
    if below in ("arenas", "large") and mapping.size < _MIB:
        return below
    if _has_pools(memory, mapping) or mapping.start % _ARENA_HEAP == 0:
        return "arenas"
    return "large" if mapping.size >= 128 * 1024 else "other"


def _has_pools(memory: int, mapping: Mapping) -> bool:
    """True if a pool of CPython's allocator begins at one of a few places."""
    first = -(-mapping.start // _POOL) * _POOL
    count = (mapping.end - first) // _POOL
    return count > 0 and any(_is_pool(memory, first + count * part // 8 * _POOL) for part in range(8))


def _is_pool(memory: int, address: int) -> bool:
    try:
        data = os.pread(memory, _POOL_HEADER.size, address)
    except OSError:
        return False
    if len(data) < _POOL_HEADER.size:
        return False
    used, free, _, _, _, size_class, _, last = _POOL_HEADER.unpack(data)
    block = (size_class + 1) * 16
    fits = size_class < 64 and last == _POOL - block and used > 0
    return fits and (free == 0 or free // _POOL == address // _POOL)


def _count(ledger: Ledger, maps: list[Mapping], kinds: list[str], found: dict[str, Region]) -> None:
    at = 0
    for address, raw in ledger.blocks():
        states = raw.translate(_CLEAN)
        end = address + len(states) * PAGE
        while at < len(maps) and maps[at].end <= address:
            at += 1
        i = at
        while i < len(maps) and maps[i].start < end:
            low = max(maps[i].start - address, 0) // PAGE
            high = min(maps[i].end - address, len(states) * PAGE) // PAGE
            _add(found[kinds[i]], states[low:high])
            i += 1


def _add(region: Region, states: bytes) -> None:
    region.volatile += states.count(lib.UD_PG_VOLATILE)
    region.candidates += states.count(lib.UD_PG_STABLE)
    region.merged += states.count(lib.UD_PG_MERGED)
    region.zero += states.count(lib.UD_PG_ZERO)
    region.fork_shared += states.count(lib.UD_PG_SHARED)
    region.refused += states.count(lib.UD_PG_REFUSED)
