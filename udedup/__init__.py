"""udedup: merges identical memory pages of cooperating processes, without root.

Programs run by `udedup run` need nothing from here. Others join by themselves::

    pool = multiprocessing.Pool(8, initializer=udedup.join)

Sizes are in bytes, times in seconds. Everything raises UdedupError: one line, cause and remedy.
"""

from udedup.errors import UdedupError
from udedup.membership import (
    MADV_MERGEABLE,
    MADV_UNMERGEABLE,
    advise,
    join,
    joined,
    leave,
    settle,
    stats,
)

__version__ = "0.1.0"

__all__ = [
    "MADV_MERGEABLE",
    "MADV_UNMERGEABLE",
    "Arena",
    "UdedupError",
    "advise",
    "join",
    "joined",
    "leave",
    "settle",
    "stats",
]


def __getattr__(name: str) -> object:
    # The command line imports this package too, and needs no arena.
    if name == "Arena":
        from udedup.arena import Arena

        return Arena
    raise AttributeError(f"module 'udedup' has no attribute {name!r}")
