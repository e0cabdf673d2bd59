"""What a workload is: a bench side (`Workload`) and a side that runs in each worker (`Worker`)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from udedup.bench.spec import Spec

MIB = 1 << 20
MAX_LATENCIES = 20_000


class Worker:
    """Runs inside a worker process. Subclasses override what they have."""

    def __init__(self, spec: Spec, index: int) -> None:
        self.spec, self.index = spec, index

    def load(self) -> None:
        """Makes the memory that is to be merged."""

    def buffers(self) -> list[tuple[int, int]]:
        """Address and length of the buffers to advise MADV_MERGEABLE on."""
        return []

    def work(self, seconds: float) -> dict[str, Any]:
        """Does the application's work for so long; {"units", "seconds", "latencies" in seconds}."""
        raise NotImplementedError

    def measure(self) -> dict[str, Any]:
        """A workload's own figures, taken once after merging."""
        return {}

    def check(self) -> str:
        """A digest of the data or of results computed from it: equal under every engine."""
        raise NotImplementedError


class Workload:
    """The bench's side of a workload."""

    summary = ""
    needs: tuple[str, ...] = ()  # modules the workers import
    worker: type[Worker] = Worker
    works = False  # has an application to measure, once merged
    works_merging = False  # the application runs while the engine merges too
    measures = False  # has figures of its own
    forks = False  # workers are forked from a parent that has the data
    has_buffers = False  # explicit regions: what trap mode can merge
    alike_by_chance = False  # how much can be merged differs from run to run: count what is unlike
    idle_window = False  # measure the engine's CPU while nothing changes
    workers = 4
    size = 256 * MIB
    quick_workers = 2
    quick_size = 64 * MIB

    def __init__(self, name: str) -> None:
        self.name = name

    def missing(self, spec: Spec) -> str | None:
        """Why the workload cannot run here, None when it can."""
        tops = dict.fromkeys(name.partition(".")[0] for name in self.imports(spec))
        absent = [name for name in tops if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def prepare(self, spec: Spec) -> None:
        """Before every cell: makes what workers find on disk, once for all engines, compiled modules too."""
        warm_up(self.imports(spec))

    def imports(self, spec: Spec) -> tuple[str, ...]:
        """Modules that the workers import."""
        return self.needs

    def command(self, spec: Spec, socket_path: str) -> list[str]:
        """The pool's command, before an engine wraps it."""
        return [sys.executable, "-P", "-m", "udedup.bench.leader", socket_path, spec.encode()]

    def hellos(self, spec: Spec) -> int:
        """How many processes say hello."""
        return spec.workers

    def possible(self, spec: Spec) -> int | None:
        """Bytes that a perfect engine saves, None when not known beforehand."""
        return None

    def drive(self, spec: Spec, seconds: float) -> dict[str, Any] | None:
        """Load from outside for so long (gunicorn); None when the workers work by themselves."""
        return None

    stop_by_signal = False  # the pool ends by SIGTERM to its leader


@functools.cache
def warm_up(modules: tuple[str, ...]) -> None:
    """Imports the modules once in a process of its own: else the first cell, `none`, pays alone for cold
    files and for compiling them."""
    if modules:
        run_python(
            "-c", "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]", *modules
        )


def run_python(*arguments: str) -> None:
    """Runs a Python process to its end. Raises RuntimeError with its last words when it fails."""
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])


def timed_units(unit: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Calls `unit` for so long; its rate and latencies."""
    latencies = []
    start = last = time.perf_counter()
    end = start + seconds
    while last < end:
        unit()
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    return {"units": len(latencies), "seconds": last - start, "latencies": thin(latencies)}


def thin(latencies: list[float]) -> list[float]:
    """At most MAX_LATENCIES of them: sampled evenly."""
    if len(latencies) <= MAX_LATENCIES:
        return latencies
    step = -(-len(latencies) // MAX_LATENCIES)
    return latencies[::step]


def digest(*parts: Any) -> str:
    """Digest of buffers and of the text of everything else."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        try:
            state.update(memoryview(part).cast("B"))
        except TypeError:
            state.update(repr(part).encode())
    return state.hexdigest()
