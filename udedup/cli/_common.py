"""What the verbs share: the --domain option, connecting, printing JSON and sizes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from udedup.client import Client
from udedup.domain import Domain, base_dir, default_name
from udedup.knobs import RANGES

F = TypeVar("F", bound=Callable[..., Any])


def complete_domain(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Domains that have a merger."""
    return [CompletionItem(path.stem) for path in base_dir().glob("*.sock") if path.stem.startswith(begun)]


def complete_pid(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """Processes of this user, with their names."""
    found = []
    for entry in Path("/proc").glob(f"{begun}*" if begun.isdigit() else "[0-9]*"):
        try:
            if entry.stat().st_uid == os.geteuid() and (entry / "exe").exists():
                found.append(
                    CompletionItem(entry.name, help=(entry / "comm").read_text(errors="replace").strip())
                )
        except OSError:
            continue  # it ended
    return sorted(found, key=lambda item: int(item.value))


def complete_knob(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in RANGES if name.startswith(begun)]


def _given(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Domain | None:
    return None if value is None else Domain(value)  # "" is a wrong name, not the default domain


def _given_or_default(ctx: click.Context, param: click.Parameter, value: str | None) -> Domain:
    return _given(ctx, param, value) or Domain(default_name())


def _domain_option(callback: Callable[..., Domain | None], default: str) -> Callable[[F], F]:
    return click.option(
        "--domain",
        metavar="NAME",
        callback=callback,
        shell_complete=complete_domain,
        help=f"Trust domain.  [default: {default}]",
    )


def domain_option(function: F) -> F:
    """Adds `--domain NAME`; the command gets a Domain."""
    return _domain_option(_given_or_default, "$UDEDUP_DOMAIN or 'default'")(function)


def found_domain_option(function: F) -> F:
    """Adds `--domain NAME` to a verb with a PID; the command gets a Domain, or None where none is given."""
    return _domain_option(_given, "where PID takes part")(function)


def json_option(function: F) -> F:
    """Adds `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")(function)


def connect(domain: Domain) -> Client:
    """The merger of the domain; UdedupError with the remedy if none runs."""
    return Client(domain)


#: What the causes of "merge_failures" mean.
_CAUSES = {
    "changed": "written meanwhile",
    "gone": "unmapped meanwhile",
    "stack": "a stack or TLS",
    "locked": "locked or special memory",
    "vmas": "no mappings left",
    "nomem": "no memory",
    "busy": "the program was mapping memory",
    "hold_deadline": "threads not stopped in time",
    "hold_traced": "a debugger is there",
    "hold_refused": "ptrace refused, see `udedup doctor`",
    "syscall": "in a call that must not be interrupted",
    "seals": "a segment without seals",
    "segment": "a segment could not be mapped",
    "pinned": "asynchronous I/O in flight, or memory pinned",
    "shared": "another process runs on the same memory",
    "hold_masked": "ptrace refused, and a thread blocks SIGURG",
    "huge": "part of a huge page, and thp is keep",
    "node": "NUMA node not told by the kernel",
}


def failures_text(failures: dict[str, int]) -> str:
    """Pages not merged by cause, in words; "" if there are none."""
    return ", ".join(
        f"{count} {cause}" + (f" ({_CAUSES[cause]})" if cause in _CAUSES else "")
        for cause, count in failures.items()
        if count
    )


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def size(nbytes: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
