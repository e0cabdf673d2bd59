"""udedup demo"""

import os
import platform
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from udedup.cli._common import json_option, print_json, size
from udedup.demo import phases
from udedup.domain import Domain
from udedup.knobs import parse_assignment


@click.command()
@click.option(
    "--workers", type=click.IntRange(2, 64), default=8, show_default=True, help="Processes in the pool."
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds to settle."
)
@click.option("--set", "settings", metavar="KNOB=VALUE", multiple=True, help="Set a knob (see `udedup get`).")
@json_option
def command(workers: int, timeout: float, settings: tuple[str, ...], as_json: bool) -> None:
    """Show on this machine what merging saves.

    Starts a pool of workers that import numpy, pandas and scikit-learn (what of them is installed; else a
    part of the standard library), first plain, then under `udedup run`, and compares their memory.

    \b
    JSON keys:  kernel python cpus workers modules plain{} udedup{} pss_ratio
                results_equal

    \b
    udedup demo
    udedup demo --workers 4 --json
    """
    for setting in settings:
        parse_assignment(setting)  # before any time is spent on the plain pool
    names = phases.modules()
    domain = Domain(f"demo-{os.getpid()}")
    options = [word for setting in settings for word in ("--set", setting)]
    console = Console(stderr=True)
    if not as_json:
        console.print(f"{workers} spawned workers, each importing {', '.join(names)}", highlight=False)
        if names == phases.STDLIB:
            console.print(
                "(pip install 'udedup\\[demo]', or '.\\[demo]' in a clone, for a pool as people run it)",
                highlight=False,
            )
    try:
        with _bars(console, as_json) as bars:
            plain, merged = _run(bars, workers, names, domain, timeout, options)
    except KeyboardInterrupt:
        console.print("interrupted; the pool and the merger are gone")
        sys.exit(130)
    if as_json:
        print_json(_as_json(workers, names, plain, merged))
    else:
        _print(Console(), workers, plain, merged)


def _bars(console: Console, silent: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.fields[note]:<32}"),
        TimeElapsedColumn(),
        console=console,
        disable=silent,
    )


def _run(
    bars: Progress, workers: int, names: tuple[str, ...], domain: Domain, timeout: float, options: list[str]
) -> tuple[phases.Result, phases.Result]:
    tasks: dict[str, Any] = {}

    def progress(name: str, pss: int, ready: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=None if name == "merging" else workers, note="")
        bars.update(tasks[name], completed=ready, note=f"{ready} workers, PSS {size(pss)}")

    plain = phases.plain(workers, names, progress)
    merged = phases.merged(workers, names, domain, timeout, progress, options)
    if "merging" in tasks:
        bars.update(tasks["merging"], total=workers, completed=workers)
    return plain, merged


def _print(console: Console, workers: int, plain: phases.Result, merged: phases.Result) -> None:
    table = Table(title=f"Memory of {workers} workers")
    table.add_column("worker")
    for heading in ("PSS plain", "PSS udedup", "USS plain", "USS udedup"):
        table.add_column(heading, justify="right")
    for number, (one, two) in enumerate(zip(plain.workers.values(), merged.workers.values(), strict=False)):
        table.add_row(str(number), size(one.pss), size(two.pss), size(one.uss), size(two.uss))
    table.add_section()
    table.add_row("store pages nobody has mapped in", "", size(merged.store_unmapped), "", "")
    table.add_row(
        "sum, the store counted once",
        *map(size, (plain.pss, merged.pss, plain.uss, merged.uss)),
        style="bold",
    )
    table.add_row(
        "of plain",
        "100 %",
        f"{_percent(merged.pss, plain.pss)}",
        "100 %",
        f"{_percent(merged.uss, plain.uss)}",
    )
    console.print(table)
    settled = (
        f"settled in {merged.settle_s:.1f} s"
        if merged.settled
        else f"not settled after {merged.settle_s:.1f} s"
    )
    console.print(
        f"{settled}; CPU spent: agents {merged.agent_cpu_s:.2f} s, merger {merged.merger_cpu_s:.2f} s; "
        f"store {size(merged.store)}",
        highlight=False,
    )
    freeze = merged.stat.get("freeze_us") or {}
    if freeze.get("count"):
        console.print(
            f"pauses: p50 {freeze['p50'] / 1000:.2f} ms, p99 {freeze['p99'] / 1000:.2f} ms, "
            f"longest {freeze['max'] / 1000:.2f} ms",
            highlight=False,
        )
    equal = len({*plain.values, *merged.values}) == 1
    console.print(
        "every worker computed the same as plain" if equal else "[red]the workers' results DIFFER[/red]"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _as_json(
    workers: int, names: tuple[str, ...], plain: phases.Result, merged: phases.Result
) -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "workers": workers,
        "modules": names,
        "plain": plain.as_dict(),
        "udedup": merged.as_dict(),
        "pss_ratio": round(merged.pss / plain.pss, 4),
        "results_equal": len({*plain.values, *merged.values}) == 1,
    }
