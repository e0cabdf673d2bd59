"""The udedup command. A verb is a file here that holds a click command named `command`.

Verbs are found by file name and imported only when called, so that `udedup run` starts fast.
"""

import importlib
import importlib.util
import pkgutil
from typing import Any

import click

from udedup.cli._output import printing
from udedup.errors import UdedupError, WrongUsage


class _Wrong(click.ClickException):
    """Wrong usage, in one line."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose commands are the modules of this package."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with printing():
            return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = f"{__name__}.{cmd_name.replace('-', '_')}"
        if cmd_name.startswith("_") or importlib.util.find_spec(module) is None:
            return None
        found = getattr(importlib.import_module(module), "command", None)
        return found if isinstance(found, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UdedupError as error:
            kind = _Wrong if isinstance(error, WrongUsage) else click.ClickException
            raise kind(str(error)) from error


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from udedup import __version__

        click.echo(f"udedup {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def main() -> None:
    """Merge identical memory pages of cooperating processes, without root.

    \b
    udedup run -- CMD        run a program and all it starts with merging on
    udedup demo              see what it saves on this machine
    udedup stat              counters, by KSM's names
    udedup watch PID         look into a process
    udedup ps                who takes part in what

    Exit status: 0 good, 1 failed, 2 wrong usage; `run` gives back what CMD gave.

    \b
    Completion in bash:  eval "$(_UDEDUP_COMPLETE=bash_source udedup)"
    (zsh and fish: zsh_source, fish_source)
    """
