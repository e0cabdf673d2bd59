"""Interposed calls cost next to nothing while nothing is merged, with an agent at work or without."""

from __future__ import annotations

import pytest
from hazards.lab import Lab, Run

LIMIT_NS = 50.0  # for each interposed call on its own
CALLS = {"malloc+free": 2, "calloc+free": 2, "realloc": 3, "mmap+munmap": 2}  # how many calls a figure holds
THRESHOLD = {"without an agent": str(1 << 40), "with an agent": "0"}  # bytes


def figures(run: Run) -> dict[str, float]:
    assert run.status == 0, run
    return {line.split()[0]: float(line.split()[1]) for line in run.out.splitlines() if line != "done"}


@pytest.mark.parametrize("agent", THRESHOLD)
def test_cost_of_interposed_calls(lab: Lab, agent: str) -> None:
    lab.set({"run": 0})  # an agent then only waits
    command = [lab.program("costs", "-O2"), "costs"]
    extra: dict[str, float] = {}
    for _ in range(8):  # until a pair of runs was quiet enough
        plain = figures(lab.plain(command))
        merged = figures(lab.merged(command, UDEDUP_THRESHOLD=THRESHOLD[agent]))
        assert plain.keys() == merged.keys() and len(plain) >= 10
        for name in plain:
            cost = (merged[name] - plain[name]) / CALLS.get(name, 1)
            extra[name] = min(extra.get(name, cost), cost)
        if all(cost < LIMIT_NS for cost in extra.values()):
            return
    pytest.fail(f"nanoseconds a call costs more: {extra}")
