"""udedup scrub"""

import click

from udedup.cli._common import connect, domain_option, json_option, print_json
from udedup.domain import Domain
from udedup.errors import UdedupError


@click.command()
@domain_option
@json_option
def command(domain: Domain, as_json: bool) -> None:
    """Read the whole store and check it against the blake3 names of its content.

    Exit status 1 if anything differs: memory that went bad, for the store cannot be written.

    \b
    JSON keys:  pages segments seconds bad[] newly_named

    \b
    udedup scrub
    """
    with connect(domain) as client:
        result = client.request("scrub", timeout=600)
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{result['pages']} pages in {result['segments']} segments read in {result['seconds']} s, "
            f"{len(result['bad'])} bad; {result['newly_named']} segments were new and have names now"
        )
    if result["bad"]:
        places = ", ".join(f"{bad['segment']} at page {bad['page']}" for bad in result["bad"])
        raise UdedupError(
            f"the store is not what was published (segment {places}); "
            "stop the processes that use it and have this machine's memory tested"
        )
