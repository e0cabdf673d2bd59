"""udedup unwatch"""

import click

from udedup.cli._common import complete_pid, found_domain_option
from udedup.domain import Domain


@click.command()
@found_domain_option
@click.option("--tree", is_flag=True, help="Its descendants too.")
@click.argument("pid", type=click.IntRange(min=1), shell_complete=complete_pid)
def command(domain: Domain | None, tree: bool, pid: int) -> None:
    """Unmerge a process and take it out of its domain.

    Returns when its memory is its own again; the library stays loaded and does nothing.
    `udedup watch PID --merge` brings it back. With --tree, descendants that take no part are passed over.

    \b
    udedup unwatch 1234
    udedup unwatch 1234 --tree
    """
    from udedup.watch.bring_in import domain_to_leave, take_out
    from udedup.watch.taking_part import domain_of
    from udedup.watch.target import find
    from udedup.watch.tree import with_children

    target = find(pid)
    take_out(pid, domain_to_leave(target, domain))
    for child in with_children(target)[1:] if tree else ():
        where = domain_of(child.pid)
        if where is not None:
            take_out(child.pid, where)
