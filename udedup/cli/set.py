"""udedup set"""

import click

from udedup.cli._common import connect, domain_option
from udedup.domain import Domain
from udedup.knobs import parse_value


@click.command()
@domain_option
@click.argument("knob")
@click.argument("value")
def command(domain: Domain, knob: str, value: str) -> None:
    """Set a knob of the domain's merger.

    \b
    run              0 stop and keep what is merged, 1 merge, 2 unmerge everything
    pages_to_scan    pages an agent digests at most between two sleeps
    sleep_millisecs  the sleep between two scans

    All knobs: `udedup get`.
    """
    number = parse_value(knob, value)
    with connect(domain) as client:
        client.request("set", knobs={knob: number})
