"""scatter: one page in two has duplicates, each alone among unique pages, shuffled in every worker."""

from __future__ import annotations

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import PAGE, ArrayWorker
from udedup.bench.workloads.base import Workload, digest

WORDS = PAGE // 8


class ScatterWorker(ArrayWorker):
    def load(self) -> None:
        import numpy as np

        self.arrays = self.random(1 + self.index)
        order = np.random.default_rng([self.spec.seed, 1 + self.index])
        for common, array in zip(self.passing(0), self.arrays, strict=True):
            pages = array.reshape(-1, WORDS)
            choice = order.permutation(len(pages) // 2)
            pages[0 : 2 * len(choice) : 2] = common.reshape(-1, WORDS)[: len(choice)][choice]

    def check(self) -> str:
        return digest(self.index, *self.arrays)


class Scatter(Workload):
    summary = "one page in two duplicated, single pages in shuffled order"
    needs = ("numpy",)
    worker = ScatterWorker
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return (spec.workers - 1) * (spec.size // 2)


def make(name: str) -> Workload:
    """The workload of that name."""
    return Scatter(name)
