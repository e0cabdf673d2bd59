"""udedup merger"""

import os

import click

from udedup.cli._common import domain_option
from udedup.client import merger_argv
from udedup.domain import Domain


@click.command()
@domain_option
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=3.0,
    show_default=True,
    help="Seconds to stay after the last client.",
)
def command(domain: Domain, linger: float) -> None:
    """Run the domain's merger in the foreground.

    `udedup run` and `udedup.join()` start one in the background by themselves. Ends by itself some
    seconds after its last client.

    \b
    udedup merger --domain x --linger 600
    """
    domain.ensure_dir()
    argv = merger_argv(domain, linger)
    os.execv(argv[0], argv)  # a fresh interpreter, without the CLI's modules: it must stay small
