"""From cells to figures: spreads over the repeats, ratios to `none`. Failures give no figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from udedup.bench.results import OK, Cell, Report
from udedup.bench.stats import Spread, quantile, ratio, spread

REFERENCE = "none"


@dataclass
class Row:
    """One workload under one engine: figures by name (bytes, seconds, ratios)."""

    workload: str
    engine: str
    figures: dict[str, Spread] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)  # of cells that failed or were skipped
    failed: bool = False

    def median(self, name: str) -> float | None:
        """The figure's median, None when it was not measured."""
        found = self.figures.get(name)
        return found.median if found else None


Figure = Callable[[Cell], float | None]

PLAIN: dict[str, Figure] = {
    "total": lambda c: c.total,
    "uss": lambda c: c.final.get("uss"),
    "rss": lambda c: c.final.get("rss"),
    "available_used": lambda c: c.final.get("available_used"),
    "cgroup_used": lambda c: c.final.get("cgroup_used"),
    "page_tables": lambda c: c.final.get("page_tables"),
    "slab_change": lambda c: c.final["slab"] - c.before["slab"] if c.final and c.before else None,
    "vmas_max": lambda c: c.final.get("vmas_max"),
    "engine_pss": lambda c: c.final.get("engine_pss"),
    "saved": lambda c: c.before["pss"] - c.total if c.before and c.total is not None else None,
    "of_possible": lambda c: ratio(c.before["pss"] - c.total, c.possible) if c.possible and c.total else None,
    "time_90_s": lambda c: c.time_90_s,
    "time_99_s": lambda c: c.time_99_s,
    "cpu_99_s": lambda c: c.cpu_99_s,
    "cpu_settled_s": lambda c: c.cpu_settled_s,
    "settle_s": lambda c: c.settle_s,
    "load_s": lambda c: c.load_s,
    "pause_p50_us": lambda c: c.freeze_us.get("p50"),
    "pause_p99_us": lambda c: c.freeze_us.get("p99"),
    "pause_max_us": lambda c: c.freeze_us.get("max"),
    "idle_cpu_share": lambda c: c.idle.get("cpu_share"),
    "idle_pass_s": lambda c: c.idle.get("cpu_per_pass_s"),
    "idle_cheapest_s": lambda c: c.idle.get("cpu_cheapest_pass_s"),
    "split_us": lambda c: c.own.get("us_per_page"),
    "split_p99_us": lambda c: c.own.get("p99_us"),
    "rate_merging": lambda c: c.app_merging.get("rate"),
    "rate_settled": lambda c: c.app_settled.get("rate"),
    "p50_settled_s": lambda c: c.app_settled.get("p50_s"),
    "p99_settled_s": lambda c: c.app_settled.get("p99_s"),
    "p99_merging_s": lambda c: c.app_merging.get("p99_s"),
}
"""Every figure, straight from a cell."""

RATIOS = (
    "total",
    "uss",
    "load_s",
    "rate_merging",
    "rate_settled",
    "p50_settled_s",
    "p99_settled_s",
    "p99_merging_s",
    "split_us",
)
"""Figures that are given as a ratio to `none` as well, as `x_<figure>`."""


def summarize(report: Report) -> list[Row]:
    """One row for each workload and engine, in the order of the report."""
    keys = list(dict.fromkeys((cell.workload, cell.engine) for cell in report.cells))
    groups = {key: [c for c in report.cells if (c.workload, c.engine) == key] for key in keys}
    return [_row(cells, groups.get((workload, REFERENCE), [])) for (workload, _), cells in groups.items()]


def _row(cells: list[Cell], reference: list[Cell]) -> Row:
    row = Row(cells[0].workload, cells[0].engine)
    row.failed = any(cell.status == "failed" for cell in cells)
    row.reasons = list(dict.fromkeys(f"{c.status}: {c.reason}" for c in cells if c.status != OK))
    if row.failed:
        # One wrong result condemns the engine's figures for this workload: no ratio from a run that failed.
        return row
    good = [cell for cell in cells if cell.status == OK]
    base = [cell for cell in reference if cell.status == OK]
    for name, figure in PLAIN.items():
        _put(row, name, [figure(cell) for cell in good])
    for name in RATIOS:
        values = [value for cell in base if (value := PLAIN[name](cell)) is not None]
        if values and base:
            middle = quantile(values, 0.5)
            _put(row, f"x_{name}", [ratio(PLAIN[name](cell), middle) for cell in good])
    return row


def _put(row: Row, name: str, values: list[float | None]) -> None:
    found = spread([float(value) for value in values if value is not None])
    if found is not None:
        row.figures[name] = found
