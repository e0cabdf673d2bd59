"""The live view's picture of processes that take part: rich tables and graphs.

Nothing here reads /proc or the merger: it draws what it is given.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from udedup.cli._common import size
from udedup.procmem import Memory
from udedup.watch import columns
from udedup.watch.memory import PAGE
from udedup.watch.regions import Region
from udedup.watch.report import BROUGHT_IN, refusals
from udedup.watch.taking_part import Look

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60

HELP = """q      leave (the process goes on as it is)
space  hold the picture, go on
s      sort by the next column
?      this help

saved      what the kernel has one copy of instead of several, the store counted once
PSS        memory, shared pages by parts; USS: its own pages alone
candidate  pages that did not change for a pass: compared with everybody's
volatile   pages that change too fast
splits     writes to merged pages, each of which got its own copy

heap       what brk gave malloc
arenas     CPython's arenas, glibc's of threads
large      blocks of 128 KiB and more: numpy arrays, buffers
libraries  data of libraries and programs that was written to
refused    stacks, locked and special memory"""


@dataclass
class History:
    """Figures over time of one process."""

    pss: deque[int] = field(default_factory=lambda: deque(maxlen=_WIDTH))
    uss: deque[int] = field(default_factory=lambda: deque(maxlen=_WIDTH))
    rss: deque[int] = field(default_factory=lambda: deque(maxlen=_WIDTH))
    splits_per_s: float = 0.0
    _last: tuple[float, int] | None = None

    def add_memory(self, memory: Memory) -> None:
        self.pss.append(memory.pss)
        self.uss.append(memory.uss)
        self.rss.append(memory.rss)

    def add(self, look: Look) -> None:
        self.add_memory(look.memory)
        splits = int(look.counters.get("pages_split", 0))
        if self._last and look.moment > self._last[0]:
            self.splits_per_s = max(0, splits - self._last[1]) / (look.moment - self._last[0])
        self._last = look.moment, splits


def graph(values: Sequence[int]) -> str:
    """A line of block characters, scaled from 0 to the largest value."""
    top = max(values, default=0)
    if not top:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, value * len(_BARS) // (top + 1))] for value in values)


def memory_lines(memory: Memory, history: History) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value, values in (
        ("PSS", memory.pss, history.pss),
        ("USS", memory.uss, history.uss),
        ("RSS", memory.rss, history.rss),
    ):
        table.add_row(Text(name, "bold"), Text(f"{size(value):>11}"), Text(graph(values), "cyan"))
    return table


def one(look: Look, history: History, sort: str) -> RenderableType:
    """A process that takes part, in full."""
    return Group(
        _head(look),
        Text(),
        memory_lines(look.memory, history),
        Text(),
        _figures(look, history),
        Text(),
        _region_table(look.regions, sort),
    )


def _head(look: Look) -> Text:
    text = Text.assemble(
        ("udedup watch  ", "dim"),
        (f"{look.target.pid} {look.target.comm}", "bold"),
        f"  domain {look.domain}  saved ",
        (size(look.counters.get("saved_bytes", 0)), "bold green"),
    )
    if not look.counters.get("preloaded", True):
        text.append(f"\n{BROUGHT_IN}", "yellow")
    return text


def _figures(look: Look, history: History) -> Table:
    counters, freeze = look.counters, look.counters.get("freeze_us", {})
    pages = {name: int(counters.get(name, 0)) for name in ("merging_pages", "pages_sharing", "zero_pages")}
    table = Table.grid(padding=(0, 2))
    rows = (
        (
            "pages",
            f"merged {pages['merging_pages']} ({size(pages['merging_pages'] * PAGE)}), sharing "
            f"{pages['pages_sharing']}, "
            f"zero {pages['zero_pages']}, unshared {counters.get('pages_unshared', 0)}, "
            f"volatile {counters.get('pages_volatile', 0)}",
        ),
        ("splits", f"{history.splits_per_s:.0f}/s, {counters.get('pages_split', 0)} in all"),
        (
            "pauses",
            f"{freeze.get('count', 0)}, p50 {freeze.get('p50', 0) / 1000:.1f} ms, p99 "
            f"{freeze.get('p99', 0) / 1000:.1f} ms, "
            f"max {freeze.get('max', 0) / 1000:.1f} ms",
        ),
        (
            "cost",
            f"{counters.get('vmas_used', 0)} of {counters.get('vmas_budget', 0)} VMAs, agent "
            f"{counters.get('agent_cpu_s', 0):.2f} s CPU, {size(counters.get('metadata_bytes', 0))} metadata",
        ),
        (
            "how",
            f"mode {counters.get('mode', '?')}, hold {counters.get('hold', '?')}, "
            f"tracking {counters.get('tracking', '?')}, {counters.get('full_scans', 0)} passes",
        ),
    )
    for name, text in rows:
        table.add_row(Text(name, "bold"), text)
    refused = refusals(counters)
    if refused:
        table.add_row(Text("refused", "bold yellow"), refused)
    return table


def _region_table(regions: list[Region], sort: str) -> Table:
    table = new_table(("region",), columns.REGIONS, sort)
    for region in columns.sorted_regions(regions, sort):
        cells = (cell(name, value) for name, value in columns.of_region(region).items())
        table.add_row(region.kind, *cells)
    return table


def new_table(names: Sequence[str], figures: Sequence[str], sort: str) -> Table:
    """A table with these columns, the one that is sorted by marked. What is too wide is cut from names."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in (*names, *figures):
        right = name in figures or name == "pid"
        head = Text(name.upper(), "reverse" if name == sort else "")
        table.add_column(
            head, justify="right" if right else "left", no_wrap=name != "comm", overflow="ellipsis"
        )
    return table


def cell(name: str, value: float) -> Text:
    """A figure of the column `name`, in few characters: bytes as 216K, 85.1M, 1.2G."""
    if name == "splits":
        return Text(f"{value:.0f}/s")
    power = 0
    while abs(value) >= 1000 and power < 3:
        value /= 1024
        power += 1
    return Text(f"{value:.{int(power > 1)}f}{'KMG'[power - 1] if power else ''}", "" if value else "dim")


def many(looks: list[Look], histories: dict[int, History], sort: str) -> RenderableType:
    """Several processes, a line each, and their sums."""
    figures = columns.PROCESSES[1:]
    table = new_table(("pid", "comm"), figures, sort)
    rows = []
    for look in columns.sorted_looks(looks, lambda one: histories[one.target.pid].splits_per_s, sort):
        values = columns.of_process(look, histories[look.target.pid].splits_per_s)
        rows.append(values)
        table.add_row(str(look.target.pid), look.target.comm, *(cell(name, values[name]) for name in figures))
    if len(rows) > 1:
        sums = {name: sum(values[name] for values in rows) for name in figures}
        table.add_row("", "sum", *(cell(name, sums[name]) for name in figures), style="bold")
    domain = looks[0].domain if looks else "?"
    return Group(
        Text.assemble(("udedup watch  ", "dim"), f"{len(looks)} processes  domain {domain}"), Text(), table
    )


def footer(paused: bool, sort: str) -> Text:
    state = "held  " if paused else ""
    return Text(f"{state}q leave  space hold  s sort ({sort})  ? help", "dim")


def help_panel() -> Panel:
    return Panel(HELP, title="udedup watch", expand=False)
