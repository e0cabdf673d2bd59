"""Drives the demo's pool and measures it from outside: first plain, then under udedup."""

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from udedup import procmem
from udedup.client import Client, NoMerger
from udedup.domain import Domain
from udedup.errors import UdedupError

WANTED = ("numpy", "pandas", "sklearn.ensemble")
STDLIB = (
    "asyncio", "sqlite3", "xml.etree.ElementTree", "http.server", "email.message", "unittest.mock", "ctypes",
    "decimal", "logging.config", "multiprocessing.pool", "concurrent.futures", "tomllib", "tarfile",
)  # fmt: skip
_START_SECONDS = 180.0

#: Told while something goes on: what, bytes of PSS now, workers ready.
Progress = Callable[[str, int, int], None]


def modules() -> tuple[str, ...]:
    """What the workers import: the scientific packages that are installed, else a part of the stdlib."""
    found = tuple(name for name in WANTED if importlib.util.find_spec(name.partition(".")[0]))
    return found or STDLIB


@dataclass
class Result:
    """What one phase measured. Sizes in bytes, times in seconds."""

    pss: int
    uss: int
    workers: dict[int, procmem.Memory]
    values: list[str]
    store: int = 0
    store_unmapped: int = 0
    settle_s: float = 0.0
    settled: bool = True
    agent_cpu_s: float = 0.0
    agent_cpu_by_thread_s: float = 0.0
    merger_cpu_s: float = 0.0
    stat: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For --json: stable keys."""
        listed = [{"pid": p, "pss_bytes": m.pss, "uss_bytes": m.uss} for p, m in self.workers.items()]
        return {
            "pss_bytes": self.pss,
            "uss_bytes": self.uss,
            "store_bytes": self.store,
            "store_unmapped_bytes": self.store_unmapped,
            "settle_s": round(self.settle_s, 3),
            "settled": self.settled,
            "agent_cpu_s": round(self.agent_cpu_s, 3),
            "agent_cpu_by_thread_s": round(self.agent_cpu_by_thread_s, 3),
            "merger_cpu_s": round(self.merger_cpu_s, 3),
            "freeze_us": self.stat.get("freeze_us"),
            "workers": listed,
        }


class RunningPool:
    """The pool as a child process, behind `prefix` (the words before the program)."""

    def __init__(self, workers: int, names: tuple[str, ...], prefix: list[str]) -> None:
        argv = [*prefix, sys.executable, "-P", "-m", "udedup.demo.pool", str(workers), *names]
        self.workers = workers
        self.pids: dict[int, int] = {}
        self._buffer = b""
        # Ctrl-C goes to all of a terminal's programs: these end when we do, and are to say nothing meanwhile.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def events(self, seconds: float) -> list[dict[str, Any]]:
        """What the workers have told, after waiting for it up to `seconds`."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], seconds)[0]:
            return []
        data = os.read(fd, 65536)
        if not data:
            raise UdedupError("the demo's pool ended early; see the lines above")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait_ready(self, told: Callable[[], None]) -> None:
        """Until every worker has imported everything."""
        deadline = time.monotonic() + _START_SECONDS
        while len(self.pids) < self.workers:
            for event in self.events(0.25):
                self.pids[event["worker"]] = event["pid"]
            told()
            if time.monotonic() > deadline:
                raise UdedupError(
                    f"the workers did not start within {_START_SECONDS:.0f} s; use fewer --workers"
                )

    def work(self) -> list[str]:
        """Lets every worker compute; the digests of what came out, by worker."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"work\n")
        self._process.stdin.flush()
        values: dict[int, str] = {}
        deadline = time.monotonic() + _START_SECONDS
        while len(values) < self.workers:
            for event in self.events(1.0):
                values[event["worker"]] = event["value"]
            if time.monotonic() > deadline:
                raise UdedupError("the workers do not answer; see `udedup stat`")
        return [values[number] for number in sorted(values)]

    def close(self) -> None:
        """Ends the pool: it ends by itself when its stdin does."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _ready(pool: RunningPool, name: str, progress: Progress) -> None:
    def told() -> None:
        pss = sum(one.pss for pid in pool.pids.values() if (one := procmem.memory(pid)))
        progress(name, pss, len(pool.pids))

    pool.wait_ready(told)


def plain(workers: int, names: tuple[str, ...], progress: Progress) -> Result:
    """The pool as everybody runs it. Raises UdedupError."""
    with RunningPool(workers, names, []) as pool:
        _ready(pool, "plain", progress)
        now = procmem.pool(pid for _, pid in sorted(pool.pids.items()))
        return Result(now.pss, now.uss, now.processes, pool.work())


def merged(
    workers: int,
    names: tuple[str, ...],
    domain: Domain,
    seconds: float,
    progress: Progress,
    options: list[str],
) -> Result:
    """The same pool under `udedup run`, given `seconds` to settle. Raises UdedupError."""
    prefix = [sys.executable, "-P", "-m", "udedup", "run", "--domain", domain.name, *options, "--"]
    with RunningPool(workers, names, prefix) as pool:
        _ready(pool, "udedup", progress)
        began = time.monotonic()
        with Client(domain) as client:
            settled = _settle(client, pool, began + seconds, progress)
            took = time.monotonic() - began
            result = _measure(client, pool)
        result.settle_s, result.settled = took, settled
        result.values = pool.work()
    _wait_gone(domain)
    return result


def _settle(client: Client, pool: RunningPool, deadline: float, progress: Progress) -> bool:
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        reply = client.request("settle", seconds=min(0.5, left), timeout=left + 10)
        progress(
            "merging",
            sum(one.pss for pid in pool.pids.values() if (one := procmem.memory(pid))),
            pool.workers,
        )
        if reply["settled"]:
            return True


def _measure(client: Client, pool: RunningPool) -> Result:
    stat = client.request("stat")
    pids = [pid for _, pid in sorted(pool.pids.items())]
    store = procmem.store_bytes(stat)
    others = [process["pid"] for process in stat["processes"] if process["pid"] not in pids]
    now = procmem.pool(pids, store, others)
    mine = [process for process in stat["processes"] if process["pid"] in pids]
    return Result(
        now.pss, now.uss, now.processes, [], store=store, store_unmapped=now.store_unmapped,
        agent_cpu_s=sum(process.get("agent_cpu_s", 0.0) for process in mine),
        agent_cpu_by_thread_s=sum(procmem.agent_cpu(pid) for pid in pids),
        merger_cpu_s=procmem.process_cpu(stat["merger"]["pid"]), stat=stat,
    )  # fmt: skip


def _wait_gone(domain: Domain) -> None:
    """Until the merger has ended, so that the demo leaves nothing behind."""
    try:
        with Client(domain) as client:
            client.request("shutdown")
    except (NoMerger, UdedupError):
        pass
    deadline = time.monotonic() + 5
    while domain.socket.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
