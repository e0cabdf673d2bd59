"""udedup run"""

import os
import sys
from collections.abc import Sequence

import click

from udedup import layout, program, runner
from udedup.cli._common import domain_option
from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.knobs import parse_assignment

_MIB = 1 << 20


@click.command(context_settings={"allow_interspersed_args": False})
@domain_option
@click.option(
    "--layout", "layout_kind", type=click.Choice(["pool", "random"]), default="pool", show_default=True,
    help="One address layout and hash seed for the pool, or the system's random ones.",
)  # fmt: skip
@click.option(
    "--regions", type=click.Choice(["all", "advised"]), default="all", show_default=True,
    help="Merge all private anonymous memory, or only what the program advises.",
)  # fmt: skip
@click.option(
    "--threshold", metavar="MIB", type=click.FloatRange(min=0), default=8.0, show_default=True,
    help="Leave a process alone below so much private memory.",
)  # fmt: skip
@click.option("--mode", type=click.Choice(["stop", "trap"]),
              help="How writers are stopped; trap needs --regions advised.  [default: stop]")  # fmt: skip
@click.option("--split", type=click.Choice(["kernel", "trap"]),
              help="Who splits; trap needs --mode trap.  [default: kernel]")  # fmt: skip
@click.option("--set", "settings", metavar="KNOB=VALUE", multiple=True, help="Set a knob (see `udedup get`).")
@click.option("--report", is_flag=True, help="Print on stderr at the end what was saved.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD [ARG]...")
@click.pass_context
def command(
    ctx: click.Context, domain: Domain, layout_kind: str, regions: str, threshold: float,
    mode: str | None, split: str | None, settings: Sequence[str], report: bool, cmd: Sequence[str],
) -> None:  # fmt: skip
    """Run CMD, and all it starts, with merging on.

    Starts the domain's merger if none runs. Signals go through to CMD, and its exit status comes back;
    127 if there is no such program, 126 if it cannot be executed.

    Domains lie in the directory $UDEDUP_DIR, else in $XDG_RUNTIME_DIR/udedup, else in /tmp/udedup-UID: those
    who shall meet need the same one.

    \b
    udedup run -- gunicorn -w 8 app:app
    udedup run --report -- python train.py
    """
    knobs = _knobs(settings)
    if mode == "trap" and regions == "all":
        raise click.UsageError("--mode trap needs --regions advised: whole processes are merged in mode stop")
    missing = program.find(cmd[0])
    reason = program.why_not_preloadable(missing) if missing else None
    if reason:
        _warn(f"{cmd[0]} cannot be preloaded: {reason}; it runs without merging")

    disabled = os.environ.get("UDEDUP_DISABLE") == "1"
    keeper = None
    if missing and not disabled:
        from udedup.keeper import Keeper

        keeper = Keeper(domain, knobs)
    pool = layout.choose(os.environ) if layout_kind == "pool" else None
    env = _environment(domain, regions, threshold, mode, split)
    if pool:
        env |= layout.environment(pool)
        from udedup import core  # noqa: F401  (loaded before the fork: the child only calls it)

    child = runner.start(cmd, env, lambda: _apply(pool))
    if isinstance(child, OSError):
        status, line = runner.failure(cmd[0], child)
        click.echo(f"udedup: {line}", err=True)
        ctx.exit(status)
    _supervise(child, keeper, report)


def _supervise(child: runner.Child, keeper: "object | None", report: bool) -> None:
    from udedup.keeper import Keeper

    recorder = None
    if report and isinstance(keeper, Keeper):
        from udedup.report import Recorder

        recorder = Recorder(child.pid, keeper)

    def tick() -> None:
        if isinstance(keeper, Keeper):
            warning = keeper.check()
            if warning:
                _warn(warning)
        if recorder:
            recorder.tick()

    status = child.supervise(tick, 0.25 if report else 1.0)
    if recorder:
        click.echo("\n".join(recorder.lines()), err=True)
    runner.leave_as(status)


def _apply(pool: layout.Layout | None) -> None:
    if pool is None:
        return
    why = layout.apply(pool)
    if why:
        os.write(2, f"udedup: warning: {why}; going on with random layouts, which merge little\n".encode())


def _knobs(settings: Sequence[str]) -> dict[str, int]:
    try:
        return dict(parse_assignment(text) for text in settings)
    except UdedupError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None


def _environment(
    domain: Domain, regions: str, threshold: float, mode: str | None, split: str | None
) -> dict[str, str]:
    env = dict(os.environ)
    env["LD_PRELOAD"] = " ".join(filter(None, [_library(), os.environ.get("LD_PRELOAD", "")]))
    env["UDEDUP_DOMAIN"] = domain.name
    env["UDEDUP_SOCKET"] = str(domain.socket)
    env["UDEDUP_THRESHOLD"] = str(int(threshold * _MIB))
    env["UDEDUP_REGIONS"] = regions
    if mode:
        env["UDEDUP_MODE"] = mode
    if split:
        env["UDEDUP_SPLIT"] = split
    return env


def _library() -> str:
    from udedup.core import LIBRARY_PATH

    path = str(LIBRARY_PATH)
    if any(mark in path for mark in ": \t\n"):
        raise UdedupError(f"{path} cannot be preloaded: blank or ':' in the path; install udedup elsewhere")
    return path


def _warn(text: str) -> None:
    print(f"udedup: warning: {text}", file=sys.stderr, flush=True)
