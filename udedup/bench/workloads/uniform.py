"""uniform: every page of a worker is the same page of one repeated byte."""

from __future__ import annotations

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import ArrayWorker
from udedup.bench.workloads.base import Workload

FILLS = (b"c", b"a", b"d")


class UniformWorker(ArrayWorker):
    def load(self) -> None:
        import numpy as np

        value = int.from_bytes(FILLS[self.index % len(FILLS)] * 8, "little")
        self.arrays = [np.full(nbytes // 8, value, dtype=np.uint64) for nbytes in self.chunk_sizes()]


class Uniform(Workload):
    summary = "one page repeated: max_page_sharing, tiles"
    needs = ("numpy",)
    worker = UniformWorker
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return spec.workers * spec.size


def make(name: str) -> Workload:
    """The workload of that name."""
    return Uniform(name)
