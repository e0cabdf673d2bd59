"""A day of churn, made short: regions come, merge, split and go, and nothing is left of them.

UDEDUP_TEST_CYCLES=100000 makes it long (a cycle takes 10 ms); tests/unit/test_planner_compact.py has the
same for the merger alone.
"""

import contextlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pools import Pool, run_prefix, settle, stat, wait_until

from udedup import procmem

pytestmark = pytest.mark.usefixtures("domains")
DOMAIN = "flat"
CYCLES = int(os.environ.get("UDEDUP_TEST_CYCLES", "1200"))
EAGER = [
    part
    for knob in ("sleep_millisecs=10", "idle_millisecs=50", "smart_scan=0", "pace_percent=100")
    for part in ("--set", knob)
]


def segments_of(pid: int) -> list[tuple[str, int]]:
    """Inode and bytes of each merged mapping."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "udedup-segment" in line:
            span, _, _, _, inode = line.split()[:5]
            start, end = (int(each, 16) for each in span.split("-"))
            found.append((inode, end - start))
    return found


def sizes(pids: list[int]) -> dict[str, int]:
    """What must not grow."""
    counters = stat(DOMAIN)
    merger = counters["merger"]["pid"]
    return {
        "store pages": counters["store_pages"],
        "segments": counters["store_segments"],
        "merger's descriptors": len(os.listdir(f"/proc/{merger}/fd")),
        "merger's memory": procmem.pool([merger]).uss,
        "metadata": counters["metadata_bytes"],
        "segments mapped": len({inode for pid in pids for inode, _ in segments_of(pid)}),
        "mappings": sum(Path(f"/proc/{pid}/maps").read_text().count("\n") for pid in pids),
    }


def grown(first: dict[str, int], last: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (first[name], last[name]) for name in first if last[name] > 1.5 * first[name] + 64}


def test_nothing_grows_while_regions_come_and_go() -> None:
    """What a busy machine has not tidied up yet may still be there for a while, but what leaks stays."""
    with Pool("cycles", 3, prefix=run_prefix(DOMAIN, "--threshold", "1", *EAGER)) as pool:
        assert pool.ask(["turn", CYCLES // 4]) == [0, 0, 0]
        assert settle(DOMAIN, 60), "a busy machine lags behind: compared with that, all would grow"
        first, before = sizes(pool.pids), stat(DOMAIN)
        assert pool.ask(["turn", CYCLES * 3 // 4]) == [0, 0, 0]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not grown(first, sizes(pool.pids)), 90)
        last, after = sizes(pool.pids), stat(DOMAIN)
        assert not grown(first, last), after
    print("\n".join(f"{name:22}{first[name]:>12}{last[name]:>12}" for name in first))
    merged = after["pages_merged"] - before["pages_merged"]
    print(
        f"{merged} pages merged, {after['pages_split'] - before['pages_split']} split, over {CYCLES} cycles"
    )
    assert merged > 10 * CYCLES, "hardly anything was merged"


def test_mappings_whose_pages_are_all_written_are_plain_again() -> None:
    """They share nothing, and would keep the segment's memory for good."""
    size = 8 << 20

    def mapped(pids: list[int]) -> int:
        return min(sum(nbytes for _, nbytes in segments_of(pid)) for pid in pids)

    with Pool("arrays", 3, size >> 20, prefix=run_prefix(DOMAIN, *EAGER)) as pool:
        assert settle(DOMAIN, 60)
        before = mapped(pool.pids)
        assert before >= size - (1 << 20)
        written = pool.ask(["write", 4096])
        wait_until(lambda: mapped(pool.pids) < before - size + (1 << 20), 30)
        assert pool.ask("digest") == written
