"""The live view's picture of processes that take no part: an estimate, a line for each.

Nothing here reads /proc: it draws what it is given.
"""

from rich.console import Group, RenderableType
from rich.text import Text

from udedup.cli._common import size
from udedup.procmem import Memory
from udedup.watch import columns, report, view
from udedup.watch.estimate import Estimate
from udedup.watch.memory import PAGE
from udedup.watch.target import Target


def picture(
    root: Target, memory: Memory, history: view.History, found: Estimate, age: float, sort: str, hint: str
) -> RenderableType:
    """age: seconds since the estimate was made. hint: how to go on."""
    return Group(
        Text.assemble(("udedup watch  ", "dim"), (f"{root.pid} {root.comm}", "bold"), "  takes no part"),
        Text(),
        view.memory_lines(memory, history),
        Text(),
        _headline(found),
        Text(),
        _table(found, sort),
        Text(),
        *(Text(line, "yellow") for line in _notes(found)),
        Text(f"read {age:.0f} s ago in {found.cpu_s:.2f} s of CPU; {report.CAVEAT}", "dim"),
        Text(hint, "dim"),
    )


def _headline(found: Estimate) -> Text:
    pages = sum(scan.present for scan in found.scans)
    saved = found.together.saved_pages
    share = saved / pages * 100 if pages else 0.0
    between = ", what is equal between them included" if len(found.scans) > 1 else ""
    return Text.assemble(
        "merging would save ",
        (size(saved * PAGE), "bold green"),
        f" of {size(pages * PAGE)} ({share:.0f} %){between}",
    )


def _table(found: Estimate, sort: str) -> RenderableType:
    figures = columns.ESTIMATES[1:]
    table = view.new_table(("pid", "comm"), figures, sort)
    for scan in columns.sorted_scans(found.scans, sort):
        values = columns.of_estimate(scan)
        cells = (view.cell(name, values[name]) for name in figures)
        table.add_row(str(scan.target.pid), scan.target.comm, *cells)
    return table


def _notes(found: Estimate) -> list[str]:
    notes = []
    for scan in found.scans:
        words = "; ".join(report.notes(scan))
        if words:
            notes.append(f"{scan.target.pid}: {words}")
    return notes
