"""udedup settle"""

import click

from udedup.cli._common import connect, domain_option
from udedup.domain import Domain
from udedup.errors import UdedupError


@click.command()
@domain_option
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait."
)
def command(domain: Domain, timeout: float) -> None:
    """Wait until two full passes have found nothing more to merge.

    Exit status 0 when settled, 1 at the time-out.

    \b
    udedup settle --timeout 30 && udedup stat
    """
    with connect(domain) as client:
        reply = client.request("settle", timeout=timeout + 10, **{"seconds": timeout})
    if not reply.get("settled"):
        raise UdedupError(f"not settled after {timeout:g} s; give it more --timeout, or see `udedup stat`")
