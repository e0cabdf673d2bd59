"""udedup set"""

import click

from udedup.cli._common import complete_knob, connect, domain_option
from udedup.domain import Domain
from udedup.knobs import RANGES, explain, parse_value

_HELP = """Set a knob of the domain's merger. What stands now: `udedup get`.

\b
{knobs}

\b
udedup set run 2                 give everything back
udedup set thp keep
udedup set sleep_millisecs 500   look less often
"""


@click.command(help=_HELP.format(knobs="\n".join(map(explain, RANGES))))
@domain_option
@click.argument("knob", shell_complete=complete_knob)
@click.argument("value")
def command(domain: Domain, knob: str, value: str) -> None:
    number = parse_value(knob, value)
    with connect(domain) as client:
        client.request("set", knobs={knob: number})
