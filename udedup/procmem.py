"""Memory and CPU of processes, read from /proc. All sizes are in bytes, CPU in seconds.

A pool's memory is the sum of its processes' PSS, plus the store's pages that no process has mapped
in: a merged page that nobody has touched since is in no page table, so in nobody's PSS, but is there.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
SEGMENT_NAME = "memfd:udedup-segment"
AGENT_NAME = "udedup-agent"
_HEADER = re.compile(rb"^[0-9a-f]+-[0-9a-f]+ ")


@dataclass(frozen=True)
class Memory:
    """One process, from smaps_rollup."""

    pss: int
    uss: int
    rss: int


@dataclass(frozen=True)
class Pool:
    """Several processes and the store they share."""

    processes: dict[int, Memory]
    store_unmapped: int

    @property
    def pss(self) -> int:
        """Sum of PSS plus the store's pages that nobody has mapped in."""
        return sum(one.pss for one in self.processes.values()) + self.store_unmapped

    @property
    def uss(self) -> int:
        return sum(one.uss for one in self.processes.values())


def memory(pid: int) -> Memory | None:
    """Memory of one process; None if it is gone, a zombie, or not ours to read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except OSError:
        return None
    kib = {line.split(b":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    if not kib:
        return None
    private = kib[b"Private_Clean"] + kib[b"Private_Dirty"] + kib.get(b"Private_Hugetlb", 0)
    return Memory(kib[b"Pss"] * 1024, private * 1024, kib[b"Rss"] * 1024)


def store_mapped(pid: int) -> int:
    """The process's proportional share, in bytes, of store pages it has mapped in."""
    total = 0
    inside = False
    pss = 0
    try:
        lines = Path(f"/proc/{pid}/smaps").read_bytes().splitlines()
    except OSError:
        return 0
    for line in lines:
        if _HEADER.match(line):
            inside = SEGMENT_NAME.encode() in line
        elif inside and line.startswith(b"Pss:"):
            pss = int(line.split()[1])
        elif inside and line.startswith(b"Anonymous:"):
            # Split pages of the mapping are the process's own and no part of the store.
            total += max(0, pss - int(line.split()[1]))
    return total * 1024


def pool(pids: Iterable[int], store_bytes: int = 0, others: Iterable[int] = ()) -> Pool:
    """Memory of the processes `pids`; `others` map the same store but do not belong to the pool."""
    chosen = list(pids)
    found = {pid: one for pid in chosen if (one := memory(pid)) is not None}
    mapped = sum(store_mapped(pid) for pid in {*found, *others}) if store_bytes else 0
    return Pool(found, max(0, store_bytes - mapped))


def store_bytes(stat: dict[str, object]) -> int:
    """Bytes the store holds, from the merger's stat reply."""
    pages = stat.get("store_pages", 0)
    return pages * _PAGE if isinstance(pages, int) else 0


def descendants(root: int) -> list[int]:
    """`root` and all its living descendants, by pid."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parent = _stat_fields(f"/proc/{entry}/stat")
            if parent:
                children.setdefault(int(parent[1]), []).append(int(entry))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def process_cpu(pid: int) -> float:
    """CPU seconds of a process, its ended threads included; 0 if it is gone."""
    return _cpu(f"/proc/{pid}/stat")


def agent_cpu(pid: int) -> float:
    """CPU seconds of the living threads named udedup-agent in a process; 0 if there is none."""
    total = 0.0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0.0
    for task in tasks:
        try:
            name = Path(f"/proc/{pid}/task/{task}/comm").read_text(errors="replace").strip()
        except OSError:
            continue
        if name == AGENT_NAME:
            total += _cpu(f"/proc/{pid}/task/{task}/stat")
    return total


def _cpu(path: str) -> float:
    fields = _stat_fields(path)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0


def _stat_fields(path: str) -> list[str] | None:
    """Fields of a stat file from the state on: [0] state, [1] ppid, [11] utime, [12] stime."""
    try:
        return Path(path).read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return None
