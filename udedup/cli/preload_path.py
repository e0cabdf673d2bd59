"""udedup preload-path"""

import click


@click.command()
def command() -> None:
    """Print the path of libudedup.so, for LD_PRELOAD.

    \b
    udedup preload-path
    """
    from udedup.core import LIBRARY_PATH

    click.echo(LIBRARY_PATH)
