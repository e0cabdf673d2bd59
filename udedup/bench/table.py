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
Column = tuple[str, str, Format]  # heading, figure, how it is printed


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


def cores(value: float) -> str:
    """CPU seconds a second."""
    return f"{value:.1f}"


def count(value: float) -> str:
    """A whole number."""
    return f"{value:.0f}"


MEMORY: tuple[Column, ...] = (
    ("PSS+store MiB", "total", mib),
    ("of none", "x_total", percent),
    ("after app", "x_after", percent),
    ("saved MiB", "saved", mib),
    ("net", "net", mib),
    ("of possible", "of_possible", percent),
    ("unlike MiB", "distinct", mib),
    ("beyond it", "beyond", mib),
    ("USS MiB", "uss", mib),
    ("RSS MiB", "rss", mib),
    ("MemAvail. used", "available_used", mib),
    ("cgroup used", "cgroup_used", mib),
    ("page tables MiB", "page_tables", mib),
    ("slab change", "slab_change", mib),
    ("most VMAs", "vmas_max", count),
    ("engine PSS", "engine_pss", mib),
)

COST: tuple[Column, ...] = (
    ("to 90 % s", "time_90_s", seconds),
    ("to 99 % s", "time_99_s", seconds),
    ("CPU to 99 % s", "cpu_99_s", seconds),
    ("99 % of possible s", "time_data_s", seconds),
    ("CPU to there s", "cpu_data_s", seconds),
    ("CPU settled s", "cpu_settled_s", seconds),
    ("pause p50 us", "pause_p50_us", micros),
    ("p99", "pause_p99_us", micros),
    ("max", "pause_max_us", micros),
    ("app merging", "x_rate_merging", percent),
    ("its p50", "x_p50_merging_s", times),
    ("its p99", "x_p99_merging_s", times),
    ("app settled", "x_rate_settled", percent),
    ("its p50", "x_p50_settled_s", times),
    ("its p99", "x_p99_settled_s", times),
    ("idle CPU", "idle_cpu_share", percent),
    ("idle pass ms", "idle_pass_s", millis),
    ("cheapest ms", "idle_least_s", millis),
    ("first write us", "split_us", micros),
    ("first write p99", "split_p99_us", micros),
    ("load time", "x_load_s", times),
    ("others' cores", "others_cores", cores),
)

RIVALRY: tuple[Column, ...] = (
    ("memory", "k_total", times),
    ("beyond unlike", "k_beyond", times),
    ("to 90 %", "k_time_90_s", times),
    ("to 99 %", "k_time_99_s", times),
    ("CPU to 99 %", "k_cpu_99_s", times),
    ("99 % of possible", "k_time_data_s", times),
    ("CPU to there", "k_cpu_data_s", times),
    ("idle pass", "k_idle_least_s", times),
    ("first write", "k_split_us", times),
    ("app merging", "k_rate_merging", times),
    ("app settled", "k_rate_settled", times),
)

LEGEND = """\
PSS+store: PSS summed over the pool, plus pages of the store that nobody maps; every byte counted once.
saved: what the pool under `none` had more; net: less the memory of merger and `udedup run` (engine PSS).
after app: PSS+store of `none`, once the application has worked (what it writes to splits again).
unlike: the distinct contents of the pages that are not files'; the best of mergers would leave no more of
them. Where that differs from run to run compare what is there beyond it (of files too).
USS: what only one process has. of possible: saved, of what the workload's data allow; the interpreters'
own memory may add to it. RSS does not fall with merging: a merged page stays resident in each process.
MemAvailable and the cgroup count since before the pool's start, and see the whole machine and the whole
cgroup: page cache, other programs and kernel memory are in them. Page tables and slab are not in PSS.
Times and CPU count from the moment the loaded pool may be merged, to a share of what this engine saved
in the end, or of what was possible. app: throughput and latencies, ratios to `none`. others' cores: CPU
of other programs meanwhile. Values: median, (min–max) of the repeats; "n of m": only n repeats have one."""


def cell_text(found: Spread | None, form: Format, repeats: int = 0) -> str:
    """Median, and min–max where there is more than one value and they differ in print."""
    if found is None:
        return "–"
    low, middle, high = form(found.min), form(found.median), form(found.max)
    more = [] if found.n < 2 or low == high else [f"{low}–{high}"]
    if found.n < repeats:
        more.append(f"{found.n} of {repeats}")
    return f"{middle} ({', '.join(more)})" if more else middle


def columns(rows: list[Row], wanted: Iterable[Column]) -> list[Column]:
    """The columns that at least one row has a figure for."""
    return [column for column in wanted if any(column[1] in row.figures for row in rows)]


def _status(row: Row) -> str:
    return "FAILED" if row.failed else "skipped" if not row.figures else ""


def lines(rows: list[Row], chosen: list[Column]) -> list[list[str]]:
    """The table as text: engine first; a row without figures says why it has none in its first cell."""
    out = []
    for row in rows:
        status = _status(row)
        cells = [cell_text(row.figures.get(name), form, row.repeats) for _, name, form in chosen]
        out.append([row.engine, *([status, *cells[1:]] if status else cells)])
    return out


def sections(rows: list[Row]) -> list[tuple[str, list[Row], list[Column]]]:
    """Title, rows and columns of a workload's tables; tables without a figure are left out."""
    rivals = [row for row in rows if row.rival and any(name in row.figures for _, name, _ in RIVALRY)]
    found = [("memory", rows, MEMORY), ("time and cost", rows, COST)]
    if rivals:
        found.append((f"ratios to {rivals[0].rival}", rivals, RIVALRY))
    chosen = [(title, mine, columns(mine, wanted)) for title, mine, wanted in found]
    return [section for section in chosen if section[2]]


def print_report(report: Report, console: Console) -> None:
    """Prints every table, then what failed or was skipped, and why."""
    rows = summarize(report)
    for name in dict.fromkeys(row.workload for row in rows):
        mine = [row for row in rows if row.workload == name]
        for title, shown, chosen in sections(mine):
            _print_table(f"{name}: {title}", shown, chosen, console)
        for row in mine:
            style = "bold red" if row.failed else "yellow"
            for reason in row.reasons:
                console.print(f"  {name} × {row.engine}: {escape(reason)}", style=style, highlight=False)
        _notes(report, name, console)
    console.print(LEGEND, style="dim", highlight=False)
    if left := report.plan.get("left_out"):
        console.print(f"Left out by --quick: {', '.join(left)}.", style="dim", highlight=False)
    if not report.complete:
        console.print("The run was interrupted: this is what there is.", style="bold yellow")


def _print_table(title: str, rows: list[Row], chosen: list[Column], console: Console) -> None:
    """One table, or as many as the terminal is too narrow for."""
    body = lines(rows, chosen)
    headings = ["engine", *(heading for heading, _, _ in chosen)]
    texts = [list(column) for column in zip(headings, *body, strict=True)]
    widths = [max(map(len, text)) + 3 for text in texts]
    at = 1
    while at < len(texts):
        room, first = console.width - 1 - widths[0], at
        while at < len(texts) and (at == first or widths[at] <= room):
            room -= widths[at]
            at += 1
        table = Table(title=title, title_justify="left")
        for i in (0, *range(first, at)):
            table.add_column(texts[i][0], justify="right" if i else "left", no_wrap=True)
        for number in range(len(body)):
            table.add_row(*(escape(texts[i][number + 1]) for i in (0, *range(first, at))))
        console.print(table)
        title = f"{title.removesuffix(', more')}, more"


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
        for title, shown, chosen in sections(mine):
            out += ["", f"**{name}** ({workload(name).summary}): {title}", ""]
            out.append("| engine | " + " | ".join(heading for heading, _, _ in chosen) + " |")
            out.append("|---|" + "--:|" * len(chosen))
            out += ["| " + " | ".join(line) + " |" for line in lines(shown, chosen)]
        out += [f"- {row.engine}: {reason}" for row in mine for reason in row.reasons]
    return "\n".join([*out, "", LEGEND, ""])
