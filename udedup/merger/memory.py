"""How much memory is to be had: of the machine, and of the cgroups (v2 and v1) that processes live in.

What is full of pages that the kernel can drop at once (clean files) counts as free; swap does not.
"""

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

_UNLIMITED = 1 << 60  # bytes; v1 writes "no limit" as a number beyond


def machine_available() -> int:
    """Bytes that new pages can take without swapping."""
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


@cache
def _mounts() -> dict[str, tuple[str, Path]]:
    """ "" (v2) and "memory" (v1) -> what of the hierarchy is mounted, and where."""
    found = {}
    try:
        with open("/proc/self/mountinfo") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                root, where = left.split()[3:5]
                kind, _, options = right.split(None, 2)
                if kind == "cgroup2":
                    found[""] = (root, Path(where))
                elif kind == "cgroup" and "memory" in options.strip().split(","):
                    found["memory"] = (root, Path(where))
    except (OSError, ValueError):
        pass
    return found


def groups_of(pid: int) -> list[Path]:
    """The directories of a process's memory cgroup and of those above it, as far as they are visible."""
    groups: list[Path] = []
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            root, where = _mounts().get(name, ("", Path()))
            if not root or ".." in path:
                continue
            group = where / path.removeprefix(root).lstrip("/")
            while group != where.parent and group.is_relative_to(where):
                groups.append(group)
                group = group.parent
    return groups


def _number(group: Path, name: str) -> int | None:
    try:
        text = (group / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def group_available(group: Path) -> int | None:
    """Bytes that are left below a cgroup's limit; None if it has none."""
    limits = [_number(group, name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    known = [limit for limit in limits if limit is not None]
    used = _number(group, "memory.current")
    if used is None:
        used = _number(group, "memory.usage_in_bytes")
    if not known or used is None:
        return None
    return max(0, min(known) - used + _droppable(group))


def _droppable(group: Path) -> int:
    stat: dict[str, int] = {}
    try:
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            stat[name] = int(value)
    except (OSError, ValueError):
        return 0
    prefix = "total_" if "total_inactive_file" in stat else ""
    return stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)


def available(pids: Iterable[int]) -> int:
    """Bytes that each of these processes could still take: the least of the machine and of their cgroups."""
    groups = {group for pid in pids for group in groups_of(pid)}
    left = [room for group in groups if (room := group_available(group)) is not None]
    return min([machine_available(), *left])


def shortage(needs: Mapping[int, int]) -> str | None:
    """What is in the way when each pid takes so many bytes more; None if there is room for all."""
    total = sum(needs.values())
    if total > machine_available():
        return f"needs {total >> 20} MiB and {machine_available() >> 20} MiB are available"
    by_group: dict[Path, int] = {}
    for pid, need in needs.items():
        for group in groups_of(pid):
            by_group[group] = by_group.get(group, 0) + need
    for group, need in by_group.items():
        room = group_available(group)
        if room is not None and need > room:
            return f"needs {need >> 20} MiB and {room >> 20} MiB are left in cgroup {os.fspath(group)}"
    return None
