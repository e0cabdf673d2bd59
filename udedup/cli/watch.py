"""udedup watch"""

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from udedup.cli._common import json_option, print_json
from udedup.domain import Domain, default_name

if TYPE_CHECKING:
    from udedup.watch.estimate import Progress
    from udedup.watch.session import Session

# Those of view.SORT_COLUMNS, told again here so that --help imports no rich.
_PROCESS_COLUMNS = ("saved", "merged", "pss", "uss", "rss", "zero", "volatile", "splits", "pid")
_COLUMNS = (*_PROCESS_COLUMNS, "size", "present", "candidates", "thp")


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
    "--sort", type=click.Choice(_COLUMNS), default="merged", show_default=True, help="Column to sort by."
)
@click.option("--merge", is_flag=True, help="Bring the running process in: it takes part from then on.")
@click.option(
    "--domain",
    "name",
    metavar="NAME",
    help="Domain.  [default: where it takes part, $UDEDUP_DOMAIN, 'default']",
)
@click.argument("pid", type=click.IntRange(min=1))
@click.argument("others", metavar="[PID]...", nargs=-1, type=click.IntRange(min=1))
def command(
    tree: bool,
    interval: float,
    once: bool,
    as_json: bool,
    sort: str,
    merge: bool,
    name: str | None,
    pid: int,
    others: tuple[int, ...],
) -> None:
    """Watch a process: what is merged, or, if it takes no part, what merging would save.

    A process that takes no part is only read (no stop, no trace); more PIDs are compared with it.
    Keys: q leave, space hold, s sort, ? help. Piped output is plain text, with --json one object a look.

    \b
    JSON keys, both:   pid comm takes_part pss_bytes uss_bytes rss_bytes saved_bytes
    taking part:       domain merging_pages zero_pages pages_* vmas_used freeze_us merge_failures regions[]
    taking no part:    estimate{pages_shared pages_sharing pages_unshared zero_pages saved_bytes}
                       shared_layout stopped_ms cpu_s processes[]
    With --tree and several processes that take part: a list.

    \b
    udedup watch 1234                  live
    udedup watch 1234 --once --json    one look
    udedup watch 1234 --tree --merge   bring in a pool that runs already
    """
    from udedup.watch.session import Session

    wanted = Domain(name) if name else None
    session = Session(pid, others, tree, wanted)
    if merge:
        for target in session.bring_in(Domain(name or default_name())):
            click.echo(f"udedup: {target.pid} ({target.comm}) takes part now", err=True)
    with session:
        if once or as_json or not sys.stdout.isatty() or not sys.stdin.isatty():
            _print(session, interval, once, as_json)
        else:
            _live(session, interval, sort)


def _print(session: "Session", interval: float, once: bool, as_json: bool) -> None:
    try:
        while True:
            found = session.look(progress=_progress())
            if found is None:
                return
            if as_json and once:
                print_json(found.as_json())
            elif as_json:
                click.echo(json.dumps(found.as_json()))
            else:
                click.echo(found.text())
            if once:
                return
            sys.stdout.flush()
            time.sleep(interval)
    except KeyboardInterrupt:
        pass


def _progress() -> "Progress":
    """A bar on stderr for long scans, if that is a terminal."""
    from udedup.watch.progress import bar

    return bar(sys.stderr.isatty())


def _live(session: "Session", interval: float, sort: str) -> None:
    from rich.console import Console

    from udedup.watch import live

    console = Console(highlight=False)
    session.prepare(_progress())
    try:
        ended = not live.run(console, session.draw, interval, sort, session.columns)
    except KeyboardInterrupt:
        return
    if ended:
        click.echo(f"udedup: process {session.root.pid} ended", err=True)
