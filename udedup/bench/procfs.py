"""What the kernel says of processes from outside: memory, mappings, and CPU of named threads.

Every reader returns zeros for a process that has just gone; the caller notices deaths by other means.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

KIB = 1024
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
AGENT_COMM = "udedup-agent"
SEGMENT_LINK = "/memfd:udedup-segment"


@dataclass
class Memory:
    """Bytes, summed over processes."""

    pss: int = 0
    uss: int = 0
    rss: int = 0
    pss_anon: int = 0
    pss_shmem: int = 0

    def add(self, other: Memory) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def rollup(pid: int) -> Memory:
    """Memory of one process by smaps_rollup."""
    field: dict[str, int] = {}
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
        name, _, rest = line.partition(":")
        field[name] = int(rest.split()[0]) * KIB
    return Memory(
        pss=field.get("Pss", 0),
        uss=field.get("Private_Clean", 0) + field.get("Private_Dirty", 0),
        rss=field.get("Rss", 0),
        pss_anon=field.get("Pss_Anon", 0),
        pss_shmem=field.get("Pss_Shmem", 0),
    )


def pool_memory(pids: list[int]) -> Memory:
    """Sum of `rollup` over the pids."""
    total = Memory()
    for pid in pids:
        total.add(rollup(pid))
    return total


def page_tables(pids: list[int]) -> int:
    """Bytes of page tables of the processes (VmPTE)."""
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("VmPTE:"):
                total += int(line.split()[1]) * KIB
    return total


def vmas(pids: list[int]) -> list[int]:
    """Number of mappings of each process."""
    return [_read(f"/proc/{pid}/maps").count("\n") for pid in pids]


def meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    out = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        out[name] = int(words[0]) * (KIB if len(words) > 1 else 1)
    return out


def _cgroup_files() -> list[Path]:
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.current")
        elif "memory" in controllers.split(","):
            found.append(Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.usage_in_bytes")
            found.append(Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
    return found


def cgroup_current() -> int | None:
    """Bytes charged to our own memory cgroup (v2 memory.current, v1 usage_in_bytes), None without one."""
    for file in _cgroup_files():
        try:
            return int(file.read_text())
        except (OSError, ValueError):
            continue
    return None


def parents() -> dict[int, int]:
    """pid -> parent pid of every process."""
    out = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = _read(f"/proc/{name}/stat")
            if stat:
                out[int(name)] = int(stat.rpartition(")")[2].split()[1])
    return out


def descendants(pid: int) -> list[int]:
    """The process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    out = [pid]
    for each in out:
        out.extend(children.get(each, []))
    return out


def cmdline(pid: int) -> bytes:
    """The process's arguments, each ended by a NUL."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """True while the process runs (a zombie does not)."""
    stat = _read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"


def machine_cpu() -> tuple[float, float]:
    """CPU seconds of the whole machine since its start: busy, and stolen by a hypervisor."""
    words = [int(word) for word in _read("/proc/stat").partition("\n")[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = words[:8]
    return (user + nice + system + irq + softirq) / TICK, stolen / TICK


def thread_cpu(pid: int, tid: int) -> float:
    """CPU seconds of one thread, by the nanoseconds of schedstat, else by ticks."""
    text = _read(f"/proc/{pid}/task/{tid}/schedstat")
    if text:
        return int(text.split()[0]) / 1e9
    stat = _read(f"/proc/{pid}/task/{tid}/stat")
    if not stat:
        return 0.0
    words = stat.rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def process_cpu(pid: int) -> float:
    """CPU seconds of all threads of a process, gone ones included (user + system, ticks)."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return 0.0
    words = stat.rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICK


def process_cpu_fine(pid: int) -> float:
    """CPU seconds of a process: live threads by schedstat, or ticks if that is more (ended threads)."""
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return 0.0
    return max(sum(thread_cpu(pid, int(tid)) for tid in tids), process_cpu(pid))


def reaped_cpu(pid: int) -> float:
    """CPU seconds of the children a process has waited for (cutime + cstime)."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return 0.0
    words = stat.rpartition(")")[2].split()
    return (int(words[13]) + int(words[14])) / TICK


def threads_named(pid: int, comm: str) -> list[int]:
    """Thread ids of the process whose name is `comm`."""
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(tid) for tid in tids if _read(f"/proc/{pid}/task/{tid}/comm").strip() == comm]


def agent_cpu(pid: int) -> float:
    """CPU seconds of a process's agent: its threads by name, and the short-lived helpers it has reaped."""
    return sum(thread_cpu(pid, tid) for tid in threads_named(pid, AGENT_COMM)) + reaped_cpu(pid)


def pid_named(comm: str) -> int | None:
    """The first process named `comm` (ksmd), None when there is none."""
    for name in os.listdir("/proc"):
        if name.isdigit() and _read(f"/proc/{name}/comm").strip() == comm:
            return int(name)
    return None


def segment_bytes(pids: list[int]) -> int:
    """Bytes held by udedup segments that any of the processes has open, each segment counted once."""
    held: dict[int, int] = {}
    for pid in pids:
        tids = [pid, *(tid for tid in threads_named(pid, AGENT_COMM) if tid != pid)]
        for tid in tids:
            _add_segments(f"/proc/{pid}/task/{tid}/fd", held)
    return sum(held.values())


def _add_segments(folder: str, held: dict[int, int]) -> None:
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        path = f"{folder}/{name}"
        try:
            if os.readlink(path).startswith(SEGMENT_LINK):
                info = os.stat(path)
                held[info.st_ino] = info.st_blocks * 512
        except OSError:
            continue
