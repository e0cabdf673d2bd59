"""The udedup command; see udedup.cli.main for the group."""

import click


@click.group()
def main() -> None:
    """Merge identical memory pages of cooperating processes, without root."""
