"""The tables: one for memory, one for time and cost, for each workload; to the terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from udedup.bench.results import Report
from udedup.bench.stats import Spread
from udedup.bench.summary import Row, summarize
from udedup.bench.workloads import workload

MIB = 1 << 20

Format = Callable[[float], str]


def mib(value: float) -> str:
    """Bytes as MiB."""
    return f"{value / MIB:.0f}"


def percent(value: float) -> str:
    """A ratio as a percentage."""
    return f"{value * 100:.1f} %" if value < 0.1 else f"{value * 100:.0f} %"


def times(value: float) -> str:
    """A ratio as a factor."""
    return f"{value:.2f}x"


def seconds(value: float) -> str:
    """Seconds, with as many digits as mean something."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def millis(value: float) -> str:
    """Seconds as milliseconds."""
    return f"{value * 1e3:.2f}"


def micros(value: float) -> str:
    """Microseconds."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:.0f}"


MEMORY: tuple[tuple[str, str, Format], ...] = (
    ("PSS+store MiB", "total", mib),
    ("of none", "x_total", percent),
    ("of possible", "of_possible", percent),
    ("USS MiB", "uss", mib),
    ("RSS MiB", "rss", mib),
    ("MemAvail. used", "available_used", mib),
    ("cgroup used", "cgroup_used", mib),
    ("page tables MiB", "page_tables", mib),
    ("slab change", "slab_change", mib),
    ("most VMAs", "vmas_max", count),
    ("engine PSS", "engine_pss", mib),
)

COST: tuple[tuple[str, str, Format], ...] = (
    ("to 90 % s", "time_90_s", seconds),
    ("to 99 % s", "time_99_s", seconds),
    ("CPU to 99 % s", "cpu_99_s", seconds),
    ("CPU settled s", "cpu_settled_s", seconds),
    ("pause p50 us", "pause_p50_us", micros),
    ("p99", "pause_p99_us", micros),
    ("max", "pause_max_us", micros),
    ("app merging", "x_rate_merging", percent),
    ("app settled", "x_rate_settled", percent),
    ("p50 latency", "x_p50_settled_s", times),
    ("p99 latency", "x_p99_settled_s", times),
    ("idle CPU", "idle_cpu_share", percent),
    ("idle pass ms", "idle_pass_s", millis),
    ("cheapest ms", "idle_cheapest_s", millis),
    ("first write us", "split_us", micros),
    ("first write p99", "split_p99_us", micros),
    ("load time", "x_load_s", times),
)

LEGEND = """\
PSS+store: PSS summed over the pool, plus pages of the store that nobody maps; every byte counted once.
USS: what only one process has. of possible: saved, of what the workload's data allow; the interpreters'
own memory may add to it. RSS does not fall with merging: a merged page stays resident in each process.
MemAvailable and the cgroup see the whole machine and the whole cgroup, page cache and other programs too;
page tables and slab are in them, not in PSS. engine PSS: merger and `udedup run`. Times and CPU count
from the moment the loaded pool may be merged. app and latency: ratios to `none`. Values: median,
(min–max) of the repeats."""


def cell_text(found: Spread | None, form: Format) -> str:
    """Median, and min–max where there is more than one value and they differ in print."""
    if found is None:
        return "–"
    low, middle, high = form(found.min), form(found.median), form(found.max)
    return middle if found.n < 2 or low == high else f"{middle} ({low}–{high})"


def columns(rows: list[Row], wanted: Iterable[tuple[str, str, Format]]) -> list[tuple[str, str, Format]]:
    """The columns that at least one row has a figure for."""
    return [column for column in wanted if any(column[1] in row.figures for row in rows)]


def _status(row: Row) -> str:
    return "FAILED" if row.failed else "skipped" if not row.figures else ""


def lines(rows: list[Row], chosen: list[tuple[str, str, Format]]) -> list[list[str]]:
    """The table as text: engine first; a row without figures says why it has none in its first cell."""
    out = []
    for row in rows:
        status = _status(row)
        cells = [cell_text(row.figures.get(name), form) for _, name, form in chosen]
        out.append([row.engine, *([status, *cells[1:]] if status else cells)])
    return out


def print_report(report: Report, console: Console) -> None:
    """Prints every table, then what failed or was skipped, and why."""
    rows = summarize(report)
    for name in dict.fromkeys(row.workload for row in rows):
        mine = [row for row in rows if row.workload == name]
        for title, wanted in (("memory", MEMORY), ("time and cost", COST)):
            if chosen := columns(mine, wanted):
                table = Table(title=f"{name}: {title}", title_justify="left", caption=None)
                table.add_column("engine")
                for heading, _, _ in chosen:
                    table.add_column(heading, justify="right")
                for line in lines(mine, chosen):
                    table.add_row(*(escape(text) for text in line))
                console.print(table)
        for row in mine:
            style = "bold red" if row.failed else "yellow"
            for reason in row.reasons:
                console.print(f"  {name} × {row.engine}: {escape(reason)}", style=style, highlight=False)
        _notes(report, name, console)
    console.print(LEGEND, style="dim", highlight=False)
    if not report.complete:
        console.print("The run was interrupted: this is what there is.", style="bold yellow")


def _notes(report: Report, name: str, console: Console) -> None:
    noted = [(c.engine, note) for c in report.cells if c.workload == name for note in c.notes]
    for engine, note in dict.fromkeys(noted):
        console.print(f"  {name} × {engine}: {escape(note)}", style="dim", highlight=False)


def markdown(report: Report) -> str:
    """The same tables as Markdown, with the command and the machine above them."""
    host = report.machine
    out = [
        f"Made by `{report.command}` on {host['cores']} cores ({host['cpu']}), "
        f"{int(host['memory_bytes']) / 2**30:.0f} GiB, Linux {'.'.join(str(host['kernel']).split('.')[:2])}.",
    ]
    rows = summarize(report)
    for name in dict.fromkeys(row.workload for row in rows):
        mine = [row for row in rows if row.workload == name]
        for title, wanted in (("memory", MEMORY), ("time and cost", COST)):
            chosen = columns(mine, wanted)
            if not chosen:
                continue
            summary = workload(name).summary
            out += ["", f"**{name}** ({summary}): {title}", ""]
            out.append("| engine | " + " | ".join(heading for heading, _, _ in chosen) + " |")
            out.append("|---|" + "--:|" * len(chosen))
            out += ["| " + " | ".join(line) + " |" for line in lines(mine, chosen)]
        out += [f"- {row.engine}: {reason}" for row in mine for reason in row.reasons]
    return "\n".join([*out, "", LEGEND, ""])
