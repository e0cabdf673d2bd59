"""One address layout and one hash seed for a pool: chosen here, applied in the child before exec."""

import os
import resource
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass

MIB = 1 << 20
SHIFT_MIN = 256 * MIB
SHIFT_RANGE = 1024 * MIB


@dataclass(frozen=True)
class Layout:
    """shift: bytes the mmap base lies below its lowest place; None where the stack limit is fixed too low."""

    shift: int | None
    hash_seed: str | None


def choose(environ: MutableMapping[str, str]) -> Layout:
    """Draws a layout at random. A PYTHONHASHSEED of the user's stays as it is (hash_seed None)."""
    seed = None if environ.get("PYTHONHASHSEED") else str(1 + secrets.randbelow(2**32 - 1))
    return Layout(shift=choose_shift(), hash_seed=seed)


def choose_shift() -> int | None:
    """A random whole number of pages: SHIFT_MIN to 1 GiB more, in bytes, within the hard stack limit.

    It becomes the soft limit, so it is never below the one that is set: no stack gets smaller.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    page = resource.getpagesize()
    low = (
        SHIFT_MIN + SHIFT_RANGE if soft == resource.RLIM_INFINITY else max(SHIFT_MIN, -(-soft // page) * page)
    )
    top = low + SHIFT_RANGE if hard == resource.RLIM_INFINITY else min(low + SHIFT_RANGE, hard)
    pages = (top - low) // page
    return None if pages <= 0 else low + secrets.randbelow(pages + 1) * page


def environment(layout: Layout) -> dict[str, str]:
    """What the pool's environment gets with the layout."""
    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    env = {"UDEDUP_STACK": "unlimited" if soft == resource.RLIM_INFINITY else str(soft)}
    if layout.hash_seed:
        env["PYTHONHASHSEED"] = layout.hash_seed
    return env


def apply(layout: Layout) -> str | None:
    """To be called in the child before exec. Returns why the layout stays random, None if all is well."""
    from udedup.core import lib

    soft = resource.getrlimit(resource.RLIMIT_STACK)[0]
    unshifted = soft if soft != resource.RLIM_INFINITY else 8 * MIB
    refused = lib.ud_layout_apply(layout.shift if layout.shift is not None else unshifted)
    if refused:
        return f"personality(ADDR_NO_RANDOMIZE) is refused ({os.strerror(-refused)})"
    return None
