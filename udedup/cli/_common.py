"""What the verbs share: the --domain option, connecting, printing JSON and sizes."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from udedup.client import Client
from udedup.domain import Domain, default_name

F = TypeVar("F", bound=Callable[..., Any])


def _domain(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Domain:
    return Domain(value or default_name())


def domain_option(function: F) -> F:
    """Adds `--domain NAME`; the command gets a Domain."""
    option = click.option(
        "--domain",
        metavar="NAME",
        callback=_domain,
        help="Trust domain.  [default: $UDEDUP_DOMAIN or 'default']",
    )
    return option(function)


def json_option(function: F) -> F:
    """Adds `--json` as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with stable keys.")(function)


def connect(domain: Domain) -> Client:
    """The merger of the domain; UdedupError with the remedy if none runs."""
    return Client(domain)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def size(nbytes: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"
