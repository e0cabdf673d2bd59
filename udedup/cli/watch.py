"""udedup watch"""

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from udedup.cli._common import complete_pid, found_domain_option, json_option, print_json
from udedup.domain import Domain, default_name
from udedup.watch import columns

if TYPE_CHECKING:
    from udedup.watch.progress import Bar
    from udedup.watch.session import Session


@click.command()
@click.option("--tree", is_flag=True, help="Its descendants too; those that come later as well.")
@click.option(
    "--interval",
    metavar="S",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, print, and end.")
@json_option
@click.option(
    "--sort",
    type=click.Choice(columns.ALL),
    metavar="COL",
    default="merged",
    show_default=True,
    help=f"Column to sort by: {', '.join(columns.ALL)}.",
)
@click.option(
    "--merge",
    is_flag=True,
    help="Bring it in while it runs: into --domain, else $UDEDUP_DOMAIN or 'default'.",
)
@found_domain_option
@click.argument("pid", type=click.IntRange(min=1), shell_complete=complete_pid)
@click.argument(
    "others", metavar="[PID]...", nargs=-1, type=click.IntRange(min=1), shell_complete=complete_pid
)
def command(
    tree: bool,
    interval: float,
    once: bool,
    as_json: bool,
    sort: str,
    merge: bool,
    domain: Domain | None,
    pid: int,
    others: tuple[int, ...],
) -> None:
    """Watch a process: what is merged, or, if it takes no part, what merging would save.

    A process that takes no part is only read (no stop, no trace); more PIDs are compared with it. What one
    layout for all would add is not guessed. --merge stops one thread for some milliseconds.
    Keys: q leave, space hold, s sort, ? help. Piped output is plain text, with --json one object a look.

    \b
    JSON keys:       pid comm takes_part pss_bytes uss_bytes rss_bytes
                     saved_bytes
    taking part:     domain merging_pages zero_pages pages_shared
                     pages_sharing pages_unshared pages_volatile pages_split
                     vmas_used vmas_budget merge_failures
                     freeze_us{p50 p99 max count buckets[]}
                     hold tracking mode preloaded cause
                     agent_cpu_s regions_mode regions[]
    regions:         kind size_bytes present_bytes huge_bytes merged_pages
                     zero_pages candidate_pages volatile_pages
                     fork_shared_pages refused_pages
    taking no part:  estimate{pages_shared pages_sharing pages_unshared
                     zero_pages saved_bytes} shared_layout stopped_ms cpu_s
                     processes[]
    processes:       pid comm takes_part scanned_pages fork_shared_pages
                     swapped_pages gone_pages huge_bytes refused_bytes
                     volatile_share seconds estimate

    \b
    Several PIDs: where the first takes part, JSON is a list of all, each as
    if watched alone; else one object, with all of them in processes[].

    \b
    udedup watch 1234                  live
    udedup watch 1234 --once --json    one look
    udedup watch 1234 1240 1241        what they have in common
    udedup watch 1234 --tree --merge   bring in a pool that runs already
    """
    from udedup.watch.session import Session

    session = Session(pid, others, tree, domain)
    if merge:
        for target in session.bring_in(domain or Domain(default_name())):
            click.echo(f"udedup: {target.pid} ({target.comm}) takes part now", err=True)
    with session:
        if once or as_json or not sys.stdout.isatty() or not sys.stdin.isatty():
            _print(session, interval, once, as_json, sort)
        else:
            _live(session, interval, sort)


def _print(session: "Session", interval: float, once: bool, as_json: bool, sort: str) -> None:
    try:
        while True:
            with _progress() as progress:
                found = session.look(progress)
                shown = session.as_json(found, progress) if found and as_json else None
            if found is None:
                return
            if as_json and once:
                print_json(shown)
            elif as_json:
                click.echo(json.dumps(shown))
            else:
                click.echo(found.text(sort))
            if once:
                return
            sys.stdout.flush()
            time.sleep(interval)
    except KeyboardInterrupt:
        pass


def _progress() -> "Bar":
    """A bar on stderr for long scans, if that is a terminal."""
    from udedup.watch.progress import Bar

    return Bar(sys.stderr.isatty())


def _live(session: "Session", interval: float, sort: str) -> None:
    from rich.console import Console

    from udedup.watch import live

    console = Console(highlight=False)
    with _progress() as progress:
        session.prepare(progress)
    if sort not in session.columns:
        sort = "merged" if "merged" in session.columns else "saved"
    try:
        ended = not live.run(console, session.draw, interval, sort, session.columns)
    except KeyboardInterrupt:
        return
    if ended:
        click.echo(f"udedup: process {session.root.pid} ended", err=True)
