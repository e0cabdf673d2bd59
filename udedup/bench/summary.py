"""From cells to figures: spreads over the repeats, ratios to `none` and to kernel KSM.

Failures give no figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from udedup.bench.results import FAILED, OK, Cell, Report
from udedup.bench.stats import Spread, quantile, ratio, spread

REFERENCE = "none"
RIVALS = ("layout+ksm", "ksm")  # kernel KSM at full speed: the first of them that was measured
UNRIVALLED = (REFERENCE, "layout", "ksm-default", *RIVALS)


@dataclass
class Row:
    """One workload under one engine: figures by name (bytes, seconds, ratios)."""

    workload: str
    engine: str
    figures: dict[str, Spread] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)  # of cells that failed or were skipped
    failed: bool = False
    repeats: int = 0  # cells that stand: a figure with fewer values was not reached, or not measured, in some
    rival: str = ""  # what the figures named k_… are ratios to

    def median(self, name: str) -> float | None:
        """The figure's median, None when it was not measured."""
        found = self.figures.get(name)
        return found.median if found else None


Figure = Callable[[Cell], float | None]

PLAIN: dict[str, Figure] = {
    "total": lambda c: c.total,
    "after": lambda c: c.total_after,
    "distinct": lambda c: c.final.get("distinct"),
    "beyond": lambda c: c.total - c.final["distinct"] if c.total and "distinct" in c.final else None,
    "uss": lambda c: c.final.get("uss"),
    "rss": lambda c: c.final.get("rss"),
    "available_used": lambda c: c.final.get("available_used"),
    "cgroup_used": lambda c: c.final.get("cgroup_used"),
    "page_tables": lambda c: c.final.get("page_tables"),
    "slab_change": lambda c: c.final["slab"] - c.before["slab"] if c.final and c.before else None,
    "vmas_max": lambda c: c.final.get("vmas_max"),
    "engine_pss": lambda c: c.final.get("engine_pss"),
    "time_90_s": lambda c: c.time_90_s,
    "time_99_s": lambda c: c.time_99_s,
    "cpu_99_s": lambda c: c.cpu_99_s,
    "time_data_s": lambda c: c.time_data_s,
    "cpu_data_s": lambda c: c.cpu_data_s,
    "cpu_settled_s": lambda c: c.cpu_settled_s,
    "settle_s": lambda c: c.settle_s,
    "load_s": lambda c: c.load_s,
    "pause_p50_us": lambda c: c.freeze_us.get("p50"),
    "pause_p99_us": lambda c: c.freeze_us.get("p99"),
    "pause_max_us": lambda c: c.freeze_us.get("max"),
    "idle_cpu_share": lambda c: c.idle.get("cpu_share"),
    "idle_pass_s": lambda c: c.idle.get("cpu_per_pass_s"),
    "idle_least_s": lambda c: c.idle.get("cpu_cheapest_pass_s", c.idle.get("cpu_per_pass_s")),
    "split_us": lambda c: c.own.get("us_per_page"),
    "split_p99_us": lambda c: c.own.get("p99_us"),
    "rate_merging": lambda c: c.app_merging.get("rate"),
    "rate_settled": lambda c: c.app_settled.get("rate"),
    "p50_merging_s": lambda c: c.app_merging.get("p50_s"),
    "p99_merging_s": lambda c: c.app_merging.get("p99_s"),
    "p50_settled_s": lambda c: c.app_settled.get("p50_s"),
    "p99_settled_s": lambda c: c.app_settled.get("p99_s"),
    "others_cores": lambda c: c.others.get("cores"),
}
"""Every figure, straight from a cell."""

RATIOS = (
    "total",
    "after",
    "uss",
    "load_s",
    "rate_merging",
    "rate_settled",
    "p50_merging_s",
    "p99_merging_s",
    "p50_settled_s",
    "p99_settled_s",
    "split_us",
)
"""Figures that are given as a ratio to `none` as well, as `x_<figure>`."""

RIVALRY = ("total", "beyond", "time_90_s", "time_99_s", "cpu_99_s", "time_data_s", "cpu_data_s",
           "idle_least_s", "split_us", "rate_merging", "rate_settled")  # fmt: skip
"""Figures that are given as a ratio to the rival as well, as `k_<figure>`."""


def summarize(report: Report) -> list[Row]:
    """One row for each workload and engine, in the order of the report."""
    keys = list(dict.fromkeys((cell.workload, cell.engine) for cell in report.cells))
    groups = {key: [c for c in report.cells if (c.workload, c.engine) == key] for key in keys}
    standing = {key: _standing(cells) for key, cells in groups.items()}
    rows = []
    for (workload, engine), cells in groups.items():
        row, good = _row(cells), standing[workload, engine]
        _against_none(row, good, standing.get((workload, REFERENCE), []))
        if engine not in UNRIVALLED:
            row.rival = next((name for name in RIVALS if standing.get((workload, name))), "")
            _against_rival(row, good, standing.get((workload, row.rival), []))
        rows.append(row)
    return rows


def _standing(cells: list[Cell]) -> list[Cell]:
    """Cells whose figures count: one wrong result condemns the engine's figures for the workload."""
    if any(cell.status == FAILED for cell in cells):
        return []
    return [cell for cell in cells if cell.status == OK]


def _row(cells: list[Cell]) -> Row:
    row = Row(cells[0].workload, cells[0].engine)
    row.failed = any(cell.status == FAILED for cell in cells)
    row.reasons = list(dict.fromkeys(f"{c.status}: {c.reason}" for c in cells if c.status != OK))
    good = _standing(cells)
    row.repeats = len(good)
    for name, figure in PLAIN.items():
        _put(row, name, [figure(cell) for cell in good])
    return row


def _middle(name: str, cells: list[Cell]) -> float | None:
    values = [value for cell in cells if (value := PLAIN[name](cell)) is not None]
    return quantile(values, 0.5) if values else None


def _against_none(row: Row, cells: list[Cell], base: list[Cell]) -> None:
    """Ratios to the median of `none`, and what was saved of it: the engine's own memory in the workers is
    paid for, for they are larger from the start; its own processes are paid for in `net`."""
    for name in RATIOS:
        middle = _middle(name, base)
        _put(row, f"x_{name}", [ratio(PLAIN[name](cell), middle) for cell in cells])
    whole = _middle("total", base)
    if whole is None:
        return
    pairs = [(cell, whole - cell.total) for cell in cells if cell.total is not None]
    _put(row, "saved", [saved for _, saved in pairs])
    _put(row, "net", [saved - cell.final.get("engine_pss", 0) for cell, saved in pairs])
    _put(row, "of_possible", [ratio(saved, cell.possible) for cell, saved in pairs])


def _against_rival(row: Row, cells: list[Cell], rival: list[Cell]) -> None:
    for name in RIVALRY:
        middle = _middle(name, rival)
        _put(row, f"k_{name}", [ratio(PLAIN[name](cell), middle) for cell in cells])


def _put(row: Row, name: str, values: list[float | None]) -> None:
    found = spread([float(value) for value in values if value is not None])
    if found is not None:
        row.figures[name] = found
