"""The matrix: workloads by engines, repeats interleaved, results judged against `none`.

Guarantees: every cell asked for is in the report, run, failed, skipped or interrupted, with its reason.
Ctrl-C and SIGTERM end the running cell cleanly and return what there is.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from udedup.bench import machine
from udedup.bench.cell import Limits, run_cell
from udedup.bench.endings import Ended, raised
from udedup.bench.engines import engine
from udedup.bench.results import FAILED, INTERRUPTED, OK, SKIPPED, Cell, Report
from udedup.bench.spec import Spec
from udedup.bench.workloads import workload
from udedup.bench.workloads.base import Workload

REFERENCE = "none"


@dataclass
class Plan:
    """What to run. workers and size (bytes in each worker) replace the workloads' own when given."""

    workloads: list[str]
    engines: list[str]
    repeats: int = 3
    workers: int | None = None
    size: int | None = None
    quick: bool = False
    budget_s: float | None = None
    limits: Limits = field(default_factory=Limits)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    knobs: list[str] = field(default_factory=list)  # KNOB=VALUE, for udedup's engines
    left_out: list[str] = field(default_factory=list)  # workloads and engines that --quick does without

    def record(self) -> dict[str, Any]:
        """What of the plan is not in the cells, for the JSON. Seconds."""
        return {
            "repeats": self.repeats,
            "quick": self.quick,
            "budget_s": self.budget_s,
            "limits": asdict(self.limits),
            "knobs": self.knobs,
            "left_out": self.left_out,
        }

    def spec(self, each: Workload, rundir: Path) -> Spec:
        """The workload's size under this plan."""
        return Spec(
            workload=each.name,
            workers=self.workers or (each.quick_workers if self.quick else each.workers),
            size=self.size or (each.quick_size if self.quick else each.size),
            seed=self.seed,
            rundir=str(rundir),
            options=self.options,
        )


Say = Callable[[str], None]
Done = Callable[[Cell], None]


def order(plan: Plan) -> list[tuple[str, str, int]]:
    """(workload, engine, repeat) in order of running: interleaved, `none` first, directions alternating."""
    engines = list(dict.fromkeys([REFERENCE, *plan.engines]))
    out: list[tuple[str, str, int]] = []
    for name in dict.fromkeys(plan.workloads):
        for repeat in range(plan.repeats):
            # Every second repeat goes backwards, so that a drift of the machine does not favour one engine.
            rest = engines[1:] if repeat % 2 == 0 else engines[:0:-1]
            out.extend((name, each, repeat) for each in [REFERENCE, *rest])
    return out


def _ignore(_: object) -> None:
    pass


def run_bench(plan: Plan, command: str, say: Say = _ignore, done: Done = _ignore) -> Report:
    """Runs the plan. `say` gets lines of progress, `done` each finished cell. Ctrl-C: a partial report."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    report = Report(command, started_at, machine.describe(), plan=plan.record())
    cells = [Cell(*key, status=SKIPPED, reason="not reached") for key in order(plan)]
    report.cells = cells
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="udbench-") as folder, raised():
        try:
            for number, cell in enumerate(cells):
                label = f"[{number + 1}/{len(cells)}] {cell.workload} × {cell.engine}  "
                _one(plan, cell, cells[:number], Path(folder), started, _labelled(say, label))
                done(cell)
            report.complete = True
        except (KeyboardInterrupt, Ended) as error:
            _mark_rest(cells, f"interrupted by {error}" if isinstance(error, Ended) else "interrupted")
    return report


def _labelled(say: Say, label: str) -> Say:
    return lambda text: say(label + text)


def _mark_rest(cells: list[Cell], reason: str) -> None:
    for cell in cells:
        if cell.status == INTERRUPTED or (cell.status == SKIPPED and cell.reason == "not reached"):
            cell.reason = reason


def _one(plan: Plan, cell: Cell, earlier: list[Cell], folder: Path, started: float, say: Say) -> None:
    each, under = workload(cell.workload), engine(cell.engine)
    under.settings = plan.knobs
    spec = plan.spec(each, folder)
    late = plan.budget_s is not None and time.monotonic() - started > plan.budget_s
    reason = (
        each.missing(spec)
        or under.unavailable()
        or under.unsuited(each)
        or (f"time budget of {plan.budget_s:.0f} s used up" if late else None)
    )
    if reason:
        cell.reason = reason
        return
    cell.status, cell.reason = OK, ""
    try:
        say("preparing")
        each.prepare(spec)
    except (OSError, ValueError, RuntimeError) as error:
        cell.status, cell.reason = FAILED, f"could not prepare the workload: {error}"
        return
    try:
        run_cell(each, under, spec, cell, folder, plan.limits, say)
    finally:
        judge_results(cell, earlier)


def judge_results(cell: Cell, earlier: list[Cell]) -> None:
    """Fails a cell whose workers' results differ from those of `none`."""
    if cell.status != OK:
        return
    same = [old for old in earlier if old.workload == cell.workload and old.engine == REFERENCE]
    reference = next((old for old in same if old.status == OK), None)
    if reference is None:
        if cell.engine != REFERENCE:
            cell.fail("no reference: `none` failed, so nothing can be compared")
        return
    pairs = zip(cell.checks, reference.checks, strict=False)
    wrong = [number for number, (mine, right) in enumerate(pairs) if mine != right]
    if wrong or len(cell.checks) != len(reference.checks):
        cell.fail(f"results of worker {', '.join(map(str, wrong)) or 'count'} differ from those of `none`")
