"""udedup doctor"""

import platform

import click

from udedup.cli._common import json_option, print_json
from udedup.probe import Finding, findings

_MARKS = {True: ("ok  ", "green"), False: ("MISS", "red"), None: ("    ", None)}


@click.command()
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine offers, what is missing, and the remedy for each.

    Everything is tried, not guessed. Exit status 1 when something needed is missing.

    \b
    JSON keys:  ok kernel findings[]
    findings:   key name ok needed found remedy

    \b
    A key is a short stable name: hold memfd socket_dir layout tracking
    pagemap_scan procmap yama seccomp max_map_count cgroup ksm thp huge_store container.
    "ok" is true, false, or null where it is neither good nor bad.

    \b
    udedup doctor
    udedup doctor --json | jq '.findings[] | select(.ok == false)'
    """
    found = list(findings())
    fine = all(one.ok is not False for one in found if one.needed)
    if as_json:
        print_json({"ok": fine, "kernel": platform.release(), "findings": [one.as_dict() for one in found]})
    else:
        click.echo(f"Linux {platform.release()} on {platform.machine()}")
        for one in found:
            _print(one)
        click.echo("Merging works here." if fine else "Merging cannot work here: see MISS (needed) above.")
    ctx.exit(0 if fine else 1)


def _print(one: Finding) -> None:
    mark, colour = _MARKS[one.ok]
    needed = " (needed)" if one.needed and one.ok is False else ""
    click.echo(f"{click.style(mark, fg=colour)}  {one.name:<38} {one.found}{needed}")
    if one.remedy:
        click.echo(f"{'':44} -> {one.remedy}")
