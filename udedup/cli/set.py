"""udedup set"""

import click

from udedup.cli._common import complete_knob, connect, domain_option
from udedup.domain import Domain
from udedup.knobs import parse_value


@click.command()
@domain_option
@click.argument("knob", shell_complete=complete_knob)
@click.argument("value")
def command(domain: Domain, knob: str, value: str) -> None:
    """Set a knob of the domain's merger.

    \b
    run              0 stop and keep what is merged, 1 merge, 2 unmerge everything
    pages_to_scan    pages an agent digests at most between two sleeps
    sleep_millisecs  the sleep between two scans
    thp              split: huge pages are cut to merge parts of them; keep: they are left whole
    merge_across_nodes  0 merges pages of one NUMA node only; changed while nothing is merged
    advisor_mode     scan-time or cpu sets pages_to_scan by itself; none

    \b
    udedup set run 2
    udedup set thp keep

    All knobs: `udedup get`.

    \b
    udedup set run 2                 give everything back
    udedup set sleep_millisecs 500   look less often
    """
    number = parse_value(knob, value)
    with connect(domain) as client:
        client.request("set", knobs={knob: number})
