"""arrays: every worker holds the same random numpy arrays."""

from __future__ import annotations

from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import ArrayWorker
from udedup.bench.workloads.base import Workload, timed_units


class ArraysWorker(ArrayWorker):
    def load(self) -> None:
        self.arrays = self.random(0, aligned=False)  # as numpy gives them

    def work(self, seconds: float) -> dict[str, Any]:
        """Reads all the data again and again."""
        view = self.pieces()
        turn = iter(range(1 << 62))
        return timed_units(lambda: view[next(turn) % len(view)].max(), seconds)


class Arrays(Workload):
    summary = "equal random numpy arrays in every worker"
    needs = ("numpy",)
    worker = ArraysWorker
    works = True
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return (spec.workers - 1) * spec.size


def make(name: str) -> Workload:
    """The workload of that name."""
    return Arrays(name)
