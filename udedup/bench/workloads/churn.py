"""churn: a tenth of the pages is rewritten each second while the application computes.

`churn` rewrites the same tenth; `churn-rolling` goes through all the memory. What is written is the same in
every worker, so that it may be merged again. Options: rate (share of the pages per second, 0.1).
"""

from __future__ import annotations

import time
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads._numpy import PAGE, ArrayWorker
from udedup.bench.workloads.base import Workload, timed_units

WORDS = PAGE // 8
TICK_S = 0.01


class ChurnWorker(ArrayWorker):
    def load(self) -> None:
        import numpy as np

        self.arrays = self.random(0)
        self.pages = [array.reshape(-1, WORDS) for array in self.arrays]
        self.per_array = min(len(pages) for pages in self.pages)
        self.total = self.per_array * len(self.pages)
        self.rate = float(self.spec.options.get("rate", 0.1))
        rolling = self.spec.workload == "churn-rolling"
        self.span = self.total if rolling else max(1, int(self.total * self.rate))
        self.cursor = 0
        self.epoch: Any = np.zeros((len(self.pages), self.per_array), dtype=np.uint64)
        self.probe = np.random.default_rng(7).random(65536)

    def rewrite(self, count: int) -> None:
        """Rewrites the next `count` pages of the span, whole pages, in runs."""
        while count > 0:
            number, page = divmod(self.cursor, self.per_array)
            run = min(count, self.per_array - page, self.span - self.cursor)
            self.pages[number][page : page + run] += 1
            self.epoch[number, page : page + run] += 1
            self.cursor = (self.cursor + run) % self.span
            count -= run

    def work(self, seconds: float) -> dict[str, Any]:
        import numpy as np

        start = time.perf_counter()
        done = 0

        def unit() -> None:
            nonlocal done
            np.sort(self.probe)
            due = int((time.perf_counter() - start) * self.rate * self.total)
            if due - done >= self.total * self.rate * TICK_S:
                self.rewrite(due - done)
                done = due

        return timed_units(unit, seconds)

    def check(self) -> str:
        wrong = 0
        for number, fresh in enumerate(self.passing(0)):
            pages = fresh.reshape(-1, WORDS)
            pages[: self.per_array] += self.epoch[number][:, None]
            wrong += int((pages != self.pages[number]).sum())
        return "as written" if not wrong else f"{wrong} words differ"


class Churn(Workload):
    needs = ("numpy",)
    worker = ChurnWorker
    works = True
    works_merging = True
    has_buffers = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        where = "all of them in turn" if name == "churn-rolling" else "always the same tenth"
        self.summary = f"10 % of the pages rewritten each second, {where}"

    def possible(self, spec: Spec) -> int | None:
        return None


def make(name: str) -> Workload:
    """The workload of that name."""
    return Churn(name)
