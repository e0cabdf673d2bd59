"""zeros: memory that was written with zeros and is kept."""

from __future__ import annotations

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import ArrayWorker
from udedup.bench.workloads.base import Workload


class ZerosWorker(ArrayWorker):
    def load(self) -> None:
        self.arrays = [self.empty(nbytes) for nbytes in self.chunk_sizes()]
        for array in self.arrays:
            array.fill(1)
            array.fill(0)


class Zeros(Workload):
    summary = "resident pages full of zeros"
    needs = ("numpy",)
    worker = ZerosWorker
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return spec.workers * spec.size


def make(name: str) -> Workload:
    """The workload of that name."""
    return Zeros(name)
