"""Who takes part, in which domain, and one look at such a process."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udedup import procmem
from udedup.client import Client, NoMerger
from udedup.domain import Domain, base_dir
from udedup.errors import UdedupError
from udedup.watch.regions import Ledger, Region, regions
from udedup.watch.target import Target, guarded


def domains() -> list[Domain]:
    """Domains of this user that have a socket, by name."""
    found = []
    for path in sorted(base_dir().glob("*.sock")):
        try:
            found.append(Domain(path.stem))
        except UdedupError:
            continue
    return found


def stats() -> dict[str, dict[str, Any]]:
    """The stat of each domain whose merger answers, by name."""
    found = {}
    for domain in domains():
        try:
            with Client(domain) as client:
                found[domain.name] = client.request("stat", timeout=5)
        except UdedupError:
            continue
    return found


def has_agent(pid: int) -> bool:
    """True if a thread udedup-agent runs in the process, connected or not."""
    try:
        names = [
            (task / "comm").read_text(errors="replace").strip()
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return False
    return "udedup-agent" in names


def domain_of(pid: int) -> Domain | None:
    """The domain the process takes part in; None if it takes part in none."""
    for name, stat in stats().items():
        if any(process["pid"] == pid for process in stat["processes"]):
            return Domain(name)
    return None


def check_unknown(pid: int) -> None:
    """For a process that no merger of ours knows: raises if it takes part all the same."""
    if not has_agent(pid):
        return
    uid = Path(f"/proc/{pid}").stat().st_uid
    if uid != os.geteuid():
        raise NoMerger(f"process {pid} takes part in a domain of uid {uid}; run udedup as that user")
    raise NoMerger(
        f"process {pid} takes part, but no merger in {base_dir()} knows it; start its merger again "
        "(`udedup merger`), or set UDEDUP_DIR as it was there"
    )


def require_domain(pid: int, wanted: Domain | None) -> Domain:
    """The domain the process takes part in. Raises if none, or another than was asked for."""
    found = seek_domain(pid, wanted)
    if found is None:
        raise UdedupError(f"process {pid} takes no part; bring it in by `udedup watch {pid} --merge`")
    return found


def seek_domain(pid: int, wanted: Domain | None) -> Domain | None:
    """The same, but None if the process takes part in none. Raises where that cannot be known."""
    found = domain_of(pid)
    if found is None:
        if wanted is not None:
            Client(wanted).close()  # raises when no merger runs
        check_unknown(pid)
        return None
    if wanted is not None and found != wanted:
        raise UdedupError(
            f"process {pid} takes part in domain {found.name!r}, not {wanted.name!r}; use --domain "
            f"{found.name}"
        )
    return found


@dataclass
class Look:
    """One moment of a process that takes part. Sizes in bytes."""

    target: Target
    domain: str
    moment: float
    counters: dict[str, Any]
    memory: procmem.Memory
    regions: list[Region]
    merger: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Stable keys of --json."""
        counters = {
            key: value for key, value in self.counters.items() if key not in ("pid", "comm", "regions")
        }
        return {
            "pid": self.target.pid,
            "comm": self.target.comm,
            "takes_part": True,
            "domain": self.domain,
            "pss_bytes": self.memory.pss,
            "uss_bytes": self.memory.uss,
            "rss_bytes": self.memory.rss,
            **counters,
            "regions_mode": self.counters.get("regions", "all"),
            "regions": [region.as_dict() for region in self.regions],
        }


class Watcher:
    """Looks again and again at the processes of one domain over one connection."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._client = Client(domain)
        self._ledgers: dict[int, Ledger] = {}

    def look(self, targets: list[Target]) -> list[Look]:
        """Those of the targets that take part now. Raises UdedupError when the merger is gone."""
        stat = self._client.request("stat")
        by_pid = {process["pid"]: process for process in stat["processes"]}
        looks = []
        for target in targets:
            if target.pid in by_pid and target.alive():
                look = self._one(target, by_pid[target.pid], stat["merger"])
                if look:
                    looks.append(look)
        return looks

    def _one(self, target: Target, counters: dict[str, Any], merger: dict[str, Any]) -> Look | None:
        memory = procmem.memory(target.pid)
        if memory is None:
            return None
        try:
            with guarded(target.pid):
                found = regions(target.pid, self._ledger(target.pid))
        except UdedupError:
            if not target.alive():
                return None
            found = []
        return Look(target, self.domain.name, time.monotonic(), counters, memory, found, merger)

    def _ledger(self, pid: int) -> Ledger | None:
        try:
            return (
                self._ledgers.setdefault(pid, Ledger(pid)) if pid not in self._ledgers else self._ledgers[pid]
            )
        except OSError:
            return None  # not ours to read: sizes only

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
