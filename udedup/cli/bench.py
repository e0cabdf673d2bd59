"""udedup bench: the savings, measured beside kernel KSM and nothing, in one run."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from udedup.errors import UdedupError, WrongUsage

QUICK_BUDGET_S = 150.0  # when no cell is begun any more; the last one takes up to 25 s
MIB = 1 << 20


def _names(text: str | None, known: tuple[str, ...], what: str, hidden: tuple[str, ...] = ()) -> list[str]:
    names = [name for name in (text or "").split(",") if name]
    for name in names:
        if name not in known and name not in hidden:
            raise WrongUsage(f"no {what} {name!r}; there are: {', '.join(known)}")
    return names


def _modules(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise WrongUsage(f"--modules: {name!r} is no module's name; give names such as numpy,pandas")
    return names


def _plan(workloads: tuple[str, ...], options: dict[str, Any]) -> Any:
    from udedup.bench import engines, matrix
    from udedup.bench import workloads as loads
    from udedup.bench.cell import Limits
    from udedup.knobs import parse_assignment

    quick = options["quick"]
    names = _names(",".join(workloads), loads.WORKLOADS, "workload") or list(
        loads.QUICK if quick else loads.WORKLOADS
    )
    chosen = _names(options["engine"], engines.ENGINES, "engine", tuple(engines.HIDDEN))
    for text in options["knobs"]:
        parse_assignment(text)
    extra: dict[str, Any] = {}
    if options["modules"]:
        extra["modules"] = _modules(options["modules"])
    if options["rate"] is not None:
        extra["rate"] = options["rate"]
    if options["loader"]:
        extra["loader"] = options["loader"]
    return matrix.Plan(
        workloads=names,
        engines=chosen or list(engines.QUICK if quick else engines.FULL),
        repeats=options["repeat"] or (1 if quick else 3),
        workers=options["workers"],
        size=options["size"] * MIB if options["size"] else None,
        quick=quick,
        budget_s=QUICK_BUDGET_S if quick else None,
        limits=Limits(merge_s=options["limit"] or (8 if quick else 60), work_s=1.0 if quick else 6.0,
                      idle_s=3.0 if quick else 8.0),
        options=extra,
        knobs=list(options["knobs"]),
        left_out=_left_out(workloads, chosen) if quick else [],
    )  # fmt: skip


def _left_out(workloads: tuple[str, ...], chosen: list[str]) -> list[str]:
    """What --quick does without, of all that was not named: nothing is skipped silently."""
    from udedup.bench import engines
    from udedup.bench import workloads as loads

    out = [] if workloads else [name for name in loads.WORKLOADS if name not in loads.QUICK]
    return out + ([] if chosen else [name for name in engines.ENGINES if name not in engines.QUICK])


@click.command(context_settings={"show_default": False})
@click.argument("workloads", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--engine", metavar="NAME,…", help="Engines to compare; `none` always runs as the reference.")
@click.option("--workers", type=click.IntRange(1, 256), metavar="N", help="Processes in the pool.")
@click.option("--size", type=click.IntRange(1), metavar="MIB", help="Data in each worker.")
@click.option(
    "--repeat", type=click.IntRange(1), metavar="N", help="Interleaved repeats.  [3; 1 with --quick]"
)
@click.option("--modules", metavar="NAME,…", help="What `imports` imports.")
@click.option(
    "--rate", type=click.FloatRange(0, 10), metavar="SHARE", help="Pages `churn` rewrites a second.  [0.1]"
)
@click.option("--loader", type=click.Choice(["joblib", "pickle"]), help="How `models` loads.")
@click.option("--set", "knobs", multiple=True, metavar="KNOB=VALUE", help="A knob for udedup's engines.")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    metavar="S",
    help="Seconds an engine may merge.  [60; 8 with --quick]",
)
@click.option(
    "--quick", is_flag=True, help="Small sizes and few workloads: at most three minutes on two cores."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures there."
)
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw there: PNG or SVG by extension."
)
@click.option(
    "--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables there as Markdown."
)
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Print, draw or convert the figures of this JSON instead of measuring.")  # fmt: skip
@click.option("--list", "listing", is_flag=True, help="List workloads and engines, and what cannot run here.")
def command(workloads: tuple[str, ...], **options: Any) -> None:
    """Measure what merging saves and costs, beside kernel KSM and nothing at all.

    Every engine gets the same worker pools, in interleaved repeats; memory, CPU, pauses, the
    application's speed and the correctness of its results are all measured from outside. Ctrl-C
    restores the machine and prints what there is.

    \b
    udedup bench --quick --plot quick.svg
    udedup bench imports --modules django,celery --workers 8 --engine layout,ksm,layout+ksm,udedup
    udedup bench arrays --workers 8 --size 128 --repeat 5 --json arrays.json
    udedup bench --from arrays.json --markdown arrays.md
    """
    from udedup.bench import plot, results, table

    if options["listing"]:
        _list()
        return
    if options["plot"]:
        plot.check_target(options["plot"])
    if options["source"]:
        try:
            report = results.Report.load(options["source"])
        except (OSError, ValueError, TypeError) as error:
            raise UdedupError(f"{options['source']}: {error}; give a file that --json wrote") from None
    else:
        report = _measure(_plan(workloads, options))
    if workloads:
        chosen = _names(",".join(workloads), tuple(cell.workload for cell in report.cells), "workload")
        report.cells = [cell for cell in report.cells if cell.workload in chosen]
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table.print_report(report, console)
    _write(report, options)
    if any(cell.status == results.FAILED for cell in report.cells):
        sys.exit(1)
    if not report.complete:
        sys.exit(130)
    if not options["source"]:
        _check_asked_for(report, options["engine"])


def _check_asked_for(report: Any, engine: str | None) -> None:
    """Raises if nothing of what was asked for could be measured: the reference alone answers nothing."""
    from udedup.bench import results

    asked = [name for name in dict.fromkeys((engine or "").split(",")) if name]
    cells = [cell for cell in report.cells if not asked or cell.engine in asked]
    if all(cell.status == results.SKIPPED for cell in cells):
        what = f"every engine asked for was skipped ({', '.join(asked)})" if asked else "all was skipped"
        reasons = ", ".join(dict.fromkeys(cell.reason for cell in cells))
        raise UdedupError(f"{what}: {reasons}; `udedup bench --list` tells what can run here")


def _write(report: Any, options: dict[str, Any]) -> None:
    from udedup.bench import plot, table

    try:
        if options["json_file"]:
            report.save(options["json_file"])
        if options["markdown"]:
            options["markdown"].write_text(table.markdown(report), encoding="utf-8")
    except OSError as error:
        raise UdedupError(f"cannot write {error.filename}: {error.strerror}; choose another place") from None
    if options["plot"]:
        plot.draw(report, options["plot"])


def _measure(plan: Any) -> Any:
    """Runs the plan with live progress on stderr: one line that changes, one that stays for each cell."""
    from rich.console import Console

    from udedup.bench.matrix import run_bench

    console = Console(stderr=True, highlight=False)
    status = console.status("") if console.is_terminal else nullcontext()
    with status as live:

        def say(text: str) -> None:
            if live is not None:
                live.update(text.replace("[", "\\["))

        def done(cell: Any) -> None:
            console.print(_line(cell), markup=False, soft_wrap=True)

        words = " ".join(["udedup", *map(shlex.quote, sys.argv[1:])])
        return run_bench(plan, words, say, done)


def _line(cell: Any) -> str:
    head = f"{cell.workload} × {cell.engine} #{cell.repeat + 1}:"
    if cell.status != "ok":
        return f"{head} {cell.status.upper() if cell.status == 'failed' else cell.status}: {cell.reason}"
    words = f"{head} {cell.before['pss'] / MIB:.0f} → {cell.total / MIB:.0f} MiB"
    if cell.time_99_s is not None:
        words += f", 99 % in {cell.time_99_s:.2f} s with {cell.cpu_99_s:.2f} s of CPU"
    return words


def _list() -> None:
    from udedup.bench import ENGINES, WORKLOADS, engine, workload
    from udedup.bench.matrix import Plan

    click.echo("workloads")
    for name in WORKLOADS:
        each = workload(name)
        missing = each.missing(Plan([name], []).spec(each, Path("/")))
        click.echo(f"  {name:16} {each.summary}" + (f"  ({missing})" if missing else ""))
    click.echo("engines")
    for name in ENGINES:
        under = engine(name)
        missing = under.unavailable()
        click.echo(f"  {name:16} {under.summary}" + (f"  ({missing})" if missing else ""))
