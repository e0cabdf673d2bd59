"""forkpool, forkpool-freeze: a parent builds a large graph of Python objects and forks; children count
references. The parent says hello too (index 0): its pages are the ones that are shared until then.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from udedup.bench import control
from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Worker, Workload, digest, timed_units

BYTES_PER_ROW = 620


def build(spec: Spec) -> list[dict[str, Any]]:
    """A graph of about spec.size bytes of small objects."""
    rows = max(1, spec.size // BYTES_PER_ROW)
    return [
        {"id": i, "name": f"row {i}", "tags": (f"a{i % 97}", f"b{i}"), "values": [i * 0.5, i * 0.25]}
        for i in range(rows)
    ]


class ForkWorker(Worker):
    graph: list[dict[str, Any]]

    def load(self) -> None:
        """Children count references on everything, as any use of the graph does."""
        if self.index:
            sum(len(row["tags"]) for row in self.graph)
            gc.collect()

    def work(self, seconds: float) -> dict[str, Any]:
        turn = iter(range(1 << 62))
        count = max(1, len(self.graph) - 1000)

        def unit() -> None:
            start = next(turn) * 1000 % count
            sum(row["values"][0] for row in self.graph[start : start + 1000])

        return timed_units(unit, seconds)

    def check(self) -> str:
        total = 0
        for row in self.graph:
            total = (total * 31 + row["id"] + len(row["name"]) + int(row["values"][0])) & 0xFFFFFFFFFFFF
        return digest(total, len(self.graph), self.graph[-1])


class Forkpool(Workload):
    worker = ForkWorker
    works = True
    forks = True
    size = 256 << 20
    quick_size = 96 << 20

    def __init__(self, name: str) -> None:
        super().__init__(name)
        how = "with" if name == "forkpool-freeze" else "without"
        self.summary = f"pre-fork parent with Python objects, {how} gc.freeze()"

    def command(self, spec: Spec, socket_path: str) -> list[str]:
        return [sys.executable, "-P", "-m", "udedup.bench.workloads.forkpool", socket_path, spec.encode()]

    def hellos(self, spec: Spec) -> int:
        return spec.workers + 1


def main(argv: list[str]) -> int:
    """The parent: builds, forks, serves like a worker."""
    from udedup.bench.worker import serve

    path, text = argv
    spec = Spec.decode(text)
    ForkWorker.graph = build(spec)
    if spec.workload == "forkpool-freeze":
        gc.collect()
        gc.freeze()
    children = []
    for index in range(1, spec.workers + 1):
        pid = os.fork()
        if pid == 0:
            os._exit(serve(control.connect(path, index, os.getpid()), ForkWorker(spec, index)))
        children.append(pid)
    status = serve(control.connect(path, 0, os.getpid()), ForkWorker(spec, 0))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    return status or next((code for code in codes if code), 0)


def make(name: str) -> Workload:
    """The workload of that name."""
    return Forkpool(name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
