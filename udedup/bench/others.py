"""What else ran on the machine during a measurement: figures taken beside a compiler deserve a warning.

Everything by /proc, in CPU seconds: the machine's busy time, less that of the pool, of the engine and of the
bench itself. Exact to some ticks (10 ms) for each process.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from udedup.bench import procfs
from udedup.bench.engines.base import Engine, Run

LOUD = 0.1  # cores: more than this is worth a note


@dataclass(frozen=True)
class Moment:
    """CPU seconds spent until a moment, and the moment (seconds, monotonic)."""

    at: float
    busy: float
    stolen: float
    ours: float


def moment(engine: Engine, run: Run) -> Moment:
    """Now."""
    busy, stolen = procfs.machine_cpu()
    ours = [os.getpid(), *run.pids, *run.helpers]
    spent = sum(procfs.process_cpu(pid) + procfs.reaped_cpu(pid) for pid in ours)
    return Moment(time.monotonic(), busy, stolen, spent + engine.cpu_apart(run))


def between(start: Moment, end: Moment) -> dict[str, float]:
    """Cores that other programs used on average, and cores that a hypervisor kept back."""
    lasted = max(1e-3, end.at - start.at)
    foreign = (end.busy - start.busy) - (end.ours - start.ours)
    return {"cores": max(0.0, foreign / lasted), "stolen": (end.stolen - start.stolen) / lasted}


def warning(found: dict[str, float]) -> str | None:
    """One line about it when it was enough to spoil the figures."""
    words = []
    if found["cores"] > LOUD:
        words.append(f"other programs used {found['cores']:.1f} cores")
    if found["stolen"] > LOUD:
        words.append(f"the hypervisor kept back {found['stolen']:.1f} cores")
    return f"{' and '.join(words)} meanwhile: times and rates are too bad by it" if words else None
