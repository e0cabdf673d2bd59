"""idle, idle-unique: what a pass costs when nothing changes, over merged and over unmerged memory."""

from __future__ import annotations

from udedup.bench.spec import Spec
from udedup.bench.workloads.arrays import ArraysWorker
from udedup.bench.workloads.base import Workload
from udedup.bench.workloads.unique import UniqueWorker


class Idle(Workload):
    needs = ("numpy",)
    has_buffers = True
    idle_window = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unique = name == "idle-unique"
        self.worker = UniqueWorker if self.unique else ArraysWorker
        kind = "unmerged" if self.unique else "merged"
        self.summary = f"CPU of a pass over {kind} memory that nobody touches"

    def possible(self, spec: Spec) -> int | None:
        return 0 if self.unique else (spec.workers - 1) * spec.size


def make(name: str) -> Workload:
    """The workload of that name."""
    return Idle(name)
