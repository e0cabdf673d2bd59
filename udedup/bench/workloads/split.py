"""split: what the first write to a merged page costs."""

from __future__ import annotations

import time
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import PAGE, ArrayWorker
from udedup.bench.workloads.base import Workload, thin

WORDS = PAGE // 8


class SplitWorker(ArrayWorker):
    def load(self) -> None:
        self.arrays = self.random(0)

    def measure(self) -> dict[str, Any]:
        """Adds 1 to the first word of every page: in bulk for the mean, page by page for the spread."""
        pages = [array.reshape(-1, WORDS) for array in self.arrays]
        single = pages[0][: min(4096, len(pages[0]) // 2), 0]
        latencies = []
        for i in range(len(single)):
            start = time.perf_counter()
            single[i] += 1
            latencies.append(time.perf_counter() - start)
        start = time.perf_counter()
        count = 0
        for number, each in enumerate(pages):
            rest = each[len(single) if number == 0 else 0 :, 0]
            rest += 1
            count += len(rest)
        return {"us_per_page": (time.perf_counter() - start) / count * 1e6, "latencies": thin(latencies)}

    def check(self) -> str:
        wrong = 0
        for array, fresh in zip(self.arrays, self.passing(0), strict=True):
            fresh.reshape(-1, WORDS)[:, 0] += 1
            wrong += int((array != fresh).sum())
        return "as written" if not wrong else f"{wrong} words differ"


class Split(Workload):
    summary = "cost of the first write to a merged page"
    needs = ("numpy",)
    worker = SplitWorker
    measures = True
    has_buffers = True
    size = 128 << 20

    def possible(self, spec: Spec) -> int | None:
        return (spec.workers - 1) * spec.size


def make(name: str) -> Workload:
    """The workload of that name."""
    return Split(name)
