"""The picture: PSS over time for each engine, and bars of savings against CPU, one row for each workload."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from udedup.bench.results import OK, Cell, Report
from udedup.bench.summary import Row, summarize
from udedup.errors import UdedupError, WrongUsage

MIB = 1 << 20
COLOURS = {
    "none": "#7f7f7f",
    "layout": "#bcbd22",
    "ksm": "#d62728",
    "ksm-default": "#e7969c",
    "layout+ksm": "#ff7f0e",
    "udedup": "#1f77b4",
    "udedup-trap": "#17becf",
    "udedup-random": "#9edae5",
}
SUFFIXES = (".png", ".svg")


def check_target(path: Path) -> None:
    """Raises UdedupError when a picture cannot be written there, before any time is spent on measuring."""
    if path.suffix not in SUFFIXES:
        raise WrongUsage(
            f"--plot {path}: PNG or SVG by extension; name it {path.stem}.png or {path.stem}.svg"
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UdedupError(
            "--plot needs matplotlib; pip install 'udedup[plot]', or '.[plot]' in a clone"
        ) from None


def draw(report: Report, path: Path) -> None:
    """Writes the picture. Raises UdedupError when the report holds nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = summarize(report)
    names = [name for name in dict.fromkeys(row.workload for row in rows) if _curves(report, name)]
    if not names:
        raise UdedupError("nothing to draw: no cell of this report succeeded")
    figure, axes = pyplot.subplots(
        len(names), 2, figsize=(11, 3.1 * len(names) + 0.9), squeeze=False, layout="constrained"
    )
    for left, right, name in zip(axes[:, 0], axes[:, 1], names, strict=True):
        _draw_time(left, name, _curves(report, name))
        _draw_bars(right, name, [row for row in rows if row.workload == name and "total" in row.figures])
    figure.suptitle("\n".join(textwrap.wrap(report.command, 120)), fontsize=8, family="monospace")
    try:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise UdedupError(f"--plot {path}: {error.strerror}; choose another place") from None
    finally:
        pyplot.close(figure)


def _curves(report: Report, name: str) -> list[Cell]:
    """One succeeded cell for each engine whose figures stand: the repeat with the median final total."""
    standing = {row.engine for row in summarize(report) if row.workload == name and not row.failed}
    out = []
    for engine in dict.fromkeys(cell.engine for cell in report.cells):
        cells = [
            c for c in report.cells if (c.workload, c.engine, c.status) == (name, engine, OK) and c.final
        ]
        if cells and engine in standing:
            out.append(sorted(cells, key=lambda cell: cell.total or 0)[len(cells) // 2])
    return out


def _draw_time(axis: Any, name: str, cells: list[Cell]) -> None:
    end = max(cell.timeline["t"][-1] for cell in cells)
    # A slow engine would flatten all others against the axis: time on a square-root scale.
    axis.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    for cell in cells:
        times = [*cell.timeline["t"], end]
        totals = [
            (a + b) / MIB for a, b in zip(cell.timeline["pss"], cell.timeline["store_unmapped"], strict=True)
        ]
        colour = COLOURS.get(cell.engine, "black")
        axis.plot(times, [*totals, totals[-1]], label=cell.engine, color=colour, linewidth=1.6)
    axis.set(title=f"{name}: memory of the pool over time", ylabel="PSS + store, MiB")
    axis.set_xlabel("seconds (square-root scale)")
    axis.set_ylim(bottom=0)
    axis.set_xlim(0, end)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _draw_bars(axis: Any, name: str, rows: list[Row]) -> None:
    saved = [max(0.0, (row.median("saved") or 0) / MIB) for row in rows]
    cpu = [row.median("cpu_99_s") or 0.0 for row in rows]
    at = range(len(rows))
    colours = [COLOURS.get(row.engine, "black") for row in rows]
    axis.barh([y - 0.2 for y in at], saved, height=0.38, color=colours)
    axis.set(title=f"{name}: saved, and engine CPU to 99 % of it", xlabel="solid: MiB saved")
    axis.set_yticks(list(at), [row.engine for row in rows], fontsize=8)
    axis.invert_yaxis()
    upper = axis.twiny()
    upper.barh([y + 0.2 for y in at], cpu, height=0.38, color=colours, hatch="////", alpha=0.45)
    upper.set_xlabel("hatched: CPU seconds", fontsize=8)
    for y, (mib, spent) in enumerate(zip(saved, cpu, strict=True)):
        axis.text(mib, y - 0.2, f" {mib:.0f}", va="center", fontsize=7)
        if spent:
            upper.text(spent, y + 0.2, f" {spent:.2f} s", va="center", fontsize=7)
    axis.set_xlim(right=max([*saved, 1]) * 1.15)
    upper.set_xlim(0, max([*cpu, 0.01]) * 1.15)
