"""What an engine is to the bench: how it starts a pool, when it begins, what it costs, all from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udedup.bench.workloads.base import Workload


@dataclass
class Run:
    """One cell's run: where its files are, its processes, and a line of progress for people."""

    rundir: Path
    domain: str
    pids: list[int] = field(default_factory=list)  # the pool, as its workers said hello
    helpers: list[int] = field(default_factory=list)  # leader and the like: CPU counted, memory not
    say: Callable[[str], None] = lambda text: None


class Engine:
    """Base: does nothing, costs nothing."""

    advises = False  # workers call madvise(MADV_MERGEABLE) on their buffers
    quiet_s = 1.0  # passes over little or nothing take no time: so long nothing may move as well
    cheap_polls = False  # cpu() and passes() may be asked many times a second without costing the engine CPU
    summary = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings: list[str] = []  # KNOB=VALUE of udedup's own

    def unavailable(self) -> str | None:
        """Why it cannot run on this machine, None when it can."""
        return None

    def unsuited(self, workload: Workload) -> str | None:
        """Why it has nothing to do for a workload, None when it has."""
        return None

    def prepare(self, run: Run) -> None:
        """Before the pool starts: the engine must not merge yet."""

    def wrap(self, command: list[str], env: dict[str, str], run: Run) -> tuple[list[str], dict[str, str]]:
        """Command and environment that start the pool under this engine."""
        return command, env

    def start(self, run: Run) -> None:
        """The pool is loaded: merging begins now."""

    def cpu(self, run: Run) -> float:
        """CPU seconds the engine has spent, by /proc."""
        return 0.0

    def cpu_apart(self, run: Run) -> float:
        """CPU seconds of those of its processes that are neither in the pool nor started by the bench."""
        return 0.0

    def store(self, run: Run) -> int:
        """Bytes of the engine's store, mapped or not."""
        return 0

    def own_pss(self, run: Run) -> int:
        """Bytes (PSS) of the engine's own processes."""
        return 0

    def passes(self, run: Run) -> float | None:
        """Full passes over the pool so far, None when it makes none."""
        return None

    def passes_made(self, run: Run) -> float | None:
        """The same, as an average where each process makes passes of its own: what CPU is counted by."""
        return self.passes(run)

    def moving(self, run: Run) -> tuple[int, ...]:
        """Counts of pages that stand still once it has settled: merged, given back, not yet judged."""
        return (0,)

    def busy(self, run: Run) -> bool:
        """True while it says that merges are queued or under way."""
        return False

    def claimed(self, run: Run) -> int | None:
        """Bytes it says it has saved; checked against what the kernel says."""
        return None

    def counters(self, run: Run) -> dict[str, Any]:
        """All it says of itself, for the JSON."""
        return {}

    def spoiled(self, run: Run) -> str | None:
        """Why the figures are worth nothing, though the pool is well; None when they stand."""
        return None

    def remark(self, run: Run) -> str | None:
        """A line for the reader when part of the pool was out of its reach, None when all is well."""
        return None

    def before_check(self, run: Run) -> None:
        """A place for the broken engines."""

    def finish(self, run: Run) -> None:
        """The pool has ended (or was killed): nothing of the engine may stay."""


def launcher(options: list[str], command: list[str]) -> list[str]:
    """The command behind udedup.bench.launch."""
    return [sys.executable, "-P", "-m", "udedup.bench.launch", *options, "--", *command]
