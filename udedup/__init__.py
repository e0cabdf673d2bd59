"""udedup: merges identical memory pages of cooperating processes, without root.

Programs run by `udedup run` need nothing from here. Others join by themselves::

    pool = multiprocessing.Pool(8, initializer=udedup.join)

Sizes are in bytes, times in seconds. Everything raises UdedupError: one line, cause and remedy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from udedup.arena import Arena
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
    from udedup.trap import writable

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
    "writable",
]

_HOME = {"Arena": "udedup.arena", "UdedupError": "udedup.errors", "writable": "udedup.trap"}


def __getattr__(name: str) -> object:
    # Names come in with their first use: workers import this package, and it must cost them nothing.
    if name not in __all__:
        raise AttributeError(f"module 'udedup' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME.get(name, "udedup.membership")), name)
    globals()[name] = value
    return value
