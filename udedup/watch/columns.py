"""What can be sorted by, in pictures and text: sizes in bytes, splits a second. Imports nothing heavy."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from udedup.watch.estimate import Scan
    from udedup.watch.regions import Region
    from udedup.watch.taking_part import Look

REGIONS = ("size", "present", "merged", "zero", "candidates", "volatile", "thp")
PROCESSES = ("pid", "pss", "uss", "rss", "saved", "merged", "zero", "volatile", "splits")
ESTIMATES = ("pid", "present", "saved", "duplicates", "zero", "unique", "volatile", "thp")
#: What --sort takes.
ALL = tuple(dict.fromkeys((*PROCESSES, *REGIONS, *ESTIMATES)))
_PAGE = os.sysconf("SC_PAGE_SIZE")


def of_region(region: "Region") -> dict[str, int]:
    return {
        "size": region.size,
        "present": region.present,
        "merged": region.merged * _PAGE,
        "zero": region.zero * _PAGE,
        "candidates": region.candidates * _PAGE,
        "volatile": region.volatile * _PAGE,
        "thp": region.huge,
    }


def of_process(look: "Look", splits: float) -> dict[str, float]:
    counters = look.counters
    return {
        "pid": look.target.pid,
        "pss": look.memory.pss,
        "uss": look.memory.uss,
        "rss": look.memory.rss,
        "saved": counters.get("saved_bytes", 0),
        "merged": counters.get("merging_pages", 0) * _PAGE,
        "zero": counters.get("zero_pages", 0) * _PAGE,
        "volatile": counters.get("pages_volatile", 0) * _PAGE,
        "splits": splits,
    }


def of_estimate(scan: "Scan") -> dict[str, int]:
    within = scan.within
    return {
        "pid": scan.target.pid,
        "present": scan.present * _PAGE,
        "saved": within.saved_pages * _PAGE if within else 0,
        "duplicates": within.pages_sharing * _PAGE if within else 0,
        "zero": within.zero_pages * _PAGE if within else 0,
        "unique": within.pages_unshared * _PAGE if within else 0,
        "volatile": int(scan.present * scan.volatile_share) * _PAGE,
        "thp": scan.huge_bytes,
    }


def sorted_regions(regions: "Iterable[Region]", column: str) -> "list[Region]":
    """Largest first; by what is merged where regions have no such column."""
    key = column if column in REGIONS else "merged"
    return sorted(regions, key=lambda region: -of_region(region)[key])


def sorted_looks(looks: "Iterable[Look]", splits: "Callable[[Look], float]", column: str) -> "list[Look]":
    """Largest first, pids upwards; by what is saved where processes have no such column."""
    key = column if column in PROCESSES else "saved"
    return sorted(looks, key=lambda look: _upwards(key, of_process(look, splits(look))[key]))


def sorted_scans(scans: "Iterable[Scan]", column: str) -> "list[Scan]":
    """The same for processes that take no part."""
    key = column if column in ESTIMATES else "saved"
    return sorted(scans, key=lambda scan: _upwards(key, of_estimate(scan)[key]))


def _upwards(key: str, value: float) -> float:
    return value if key == "pid" else -value
