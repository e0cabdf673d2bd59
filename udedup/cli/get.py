"""udedup get"""

import click

from udedup.cli._common import complete_knob, connect, domain_option, json_option, print_json
from udedup.domain import Domain
from udedup.knobs import check_name, show_value


@click.command()
@domain_option
@json_option
@click.argument("knob", required=False, shell_complete=complete_knob)
def command(domain: Domain, as_json: bool, knob: str | None) -> None:
    """Print one knob of the domain's merger, or all. JSON keys: the knobs' names.

    \b
    udedup get run
    udedup get --json       values as numbers
    """
    if knob is not None:
        check_name(knob)
    with connect(domain) as client:
        knobs = client.request("get")
    if knob is None:
        if as_json:
            print_json(knobs)
        else:
            click.echo("\n".join(f"{name} {show_value(name, value)}" for name, value in knobs.items()))
        return
    if as_json:
        print_json({knob: knobs[knob]})
    else:
        click.echo(show_value(knob, knobs[knob]))
