"""udedup split-report"""

from typing import Any

import click

from udedup import splits
from udedup.cli._common import domain_option, json_option, print_json
from udedup.domain import Domain

_TITLES = {"line": "Python line", "symbol": "symbol", "thread": "thread"}


@click.command()
@domain_option
@json_option
@click.option("--pid", type=click.IntRange(min=1), help="Only this process.  [default: all of the domain]")
@click.option("--by", type=click.Choice(list(_TITLES)), help="Only this table.  [default: all three]")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="Rows of a table.")
@click.option("--clear", is_flag=True, help="Remove the reports of ended processes.")
def command(domain: Domain, as_json: bool, pid: int | None, by: str | None, limit: int, clear: bool) -> None:
    """Print who splits merged pages: which line of yours unshares memory.

    Needs programs run in mode trap with the split trap (which needs --regions advised); each first write
    to a merged page is told once. Who wrote to none has a report of no splits.
    Reports of ended processes are kept until --clear.

    \b
    JSON keys:  splits lost processes[] by_line[] by_symbol[] by_thread[]

    \b
    udedup run --regions advised --mode trap --split trap -- python train.py
    udedup split-report --by line
    """
    if clear:
        click.echo(f"{splits.clear(domain)} reports removed")
        return
    reports = splits.read_all(domain, pid)
    tables = {kind: splits.tally(reports, kind)[:limit] for kind in ([by] if by else _TITLES)}
    if as_json:
        print_json(_as_json(reports, tables))
        return
    total = sum(report.total for report in reports)
    nothing = "" if total else ": they ran, and wrote to no merged page"
    click.echo(f"{total} splits in {len(reports)} processes{nothing}")
    if not total:
        return
    for kind, rows in tables.items():
        click.echo(f"\n{'SPLITS':>10}  by {_TITLES[kind]}")
        for name, count in rows:
            click.echo(f"{count:>10}  {name}")


def _as_json(reports: list[splits.Report], tables: dict[str, list[tuple[str, int]]]) -> dict[str, Any]:
    return {
        "splits": sum(report.total for report in reports),
        "lost": sum(report.lost for report in reports),
        "processes": [{"pid": report.pid, "comm": report.comm, "splits": report.total} for report in reports],
        **{f"by_{kind}": [{"name": name, "splits": n} for name, n in rows] for kind, rows in tables.items()},
    }
