"""unique: nothing to merge. What does the engine cost?"""

from __future__ import annotations

from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import ArrayWorker
from udedup.bench.workloads.base import Workload, timed_units


class UniqueWorker(ArrayWorker):
    def load(self) -> None:
        self.arrays = self.random(1 + self.index)

    def work(self, seconds: float) -> dict[str, Any]:
        """Turns every bit of its own data over and back, a piece at a time."""
        import numpy as np

        view = self.pieces()
        turn = iter(range(1 << 62))

        def unit() -> None:
            piece = view[next(turn) % len(view)]
            np.invert(piece, out=piece)
            np.invert(piece, out=piece)

        return timed_units(unit, seconds)


class Unique(Workload):
    summary = "different random arrays: nothing to merge, what does it cost?"
    needs = ("numpy",)
    worker = UniqueWorker
    works = True
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return 0


def make(name: str) -> Workload:
    """The workload of that name."""
    return Unique(name)
