"""A process and its descendants."""

from udedup.errors import UdedupError
from udedup.watch.target import Target, children, find


def with_children(target: Target) -> list[Target]:
    """The target first, then its living descendants that can be looked at."""
    found = [target]
    for pid in children(target.pid):
        try:
            found.append(find(pid))
        except UdedupError:
            continue  # it ended, or is a zombie
    return found
