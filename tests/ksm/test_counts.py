"""KSM's counters and the knobs that turn them, on real processes."""

from __future__ import annotations

import os
import time

import pytest
from ksm.lab import PAGE, Lab, wait_until

from udedup.core import lib

#: Of each child, MiB. The arithmetic is the same for 128.
MIB = int(os.environ.get("UDEDUP_KSM_MIB", "16"))
PAGES = MIB * (1 << 20) // PAGE


def counts(lab: Lab) -> tuple[int, int, int, int]:
    """pages_shared and pages_sharing as if each content was stored once, pages_unshared, pages_volatile."""
    stat = lab.stat()
    tiles = stat["tile_pages"]
    once = (stat["pages_shared"] - tiles, stat["pages_sharing"] + tiles)
    return (*once, stat["pages_unshared"], stat["pages_volatile"])


def test_fills_give_the_counts_of_ksm(lab: Lab) -> None:
    """c/a/a, c/b/a, d/d/d, and d with one last byte changed: exact, up to the tiles that stat shows."""
    children = lab.advised(3, PAGES, "fill 0x63")

    def fill(*letters: str) -> None:
        lab.set(run=0)  # a fill is met whole, not in parts
        for child, letter in zip(children, letters, strict=True):
            child.ask(f"fill {ord(letter)}")
        lab.set(run=1)
        lab.settle(90)

    def exact(*wanted: int) -> None:
        """Content that two have published at once is brought together a little after all is merged."""
        wait_until(lambda: counts(lab) == wanted)

    fill("c", "a", "a")
    exact(2, 3 * PAGES - 2, 0, 0)
    fill("c", "b", "a")
    exact(3, 3 * PAGES - 3, 0, 0)
    fill("d", "d", "d")
    exact(1, 3 * PAGES - 1, 0, 0)
    scans = lab.stat()["full_scans"]
    children[1].ask(f"last {ord('e')}")
    lab.settle(90)
    exact(1, 3 * PAGES - 2, 1, 0)
    stat = lab.stat()
    assert stat["full_scans"] > scans
    assert stat["pages_shared"] + stat["pages_sharing"] + stat["pages_unshared"] == 3 * PAGES
    # What tiles cost: at most max_page_sharing pages for each content that is there.
    assert 0 < stat["tile_pages"] < stat["knobs"]["max_page_sharing"]


def test_profit_counts_metadata_and_mappings(lab: Lab) -> None:
    children = lab.advised(2, 2048, "distinct 1")
    lab.settle()
    wait_until(lambda: lab.stat()["pages_sharing"] == 2048)
    stat = lab.stat()
    assert (stat["pages_shared"], stat["pages_sharing"]) == (2048, 2048)
    assert stat["saved_bytes"] == 2048 * PAGE
    assert stat["metadata_bytes"] > sum(entry["metadata_bytes"] for entry in stat["processes"]) > 0
    costs = stat["metadata_bytes"] + stat["vmas_used"] * lib.UD_VMA_BYTES
    assert stat["general_profit"] == stat["saved_bytes"] - costs
    for entry in stat["processes"]:
        own = entry["metadata_bytes"] + entry["vmas_used"] * lib.UD_VMA_BYTES
        assert entry["general_profit"] == entry["saved_bytes"] - own
        segments = [line for line in open(f"/proc/{entry['pid']}/maps") if "udedup-segment" in line]
        assert entry["vmas_used"] == len(segments)
    # One content each: no profit, and the metadata still counts.
    for number, child in enumerate(children):
        child.ask(f"distinct {10 + number}")
    lab.settle()
    wait_until(lambda: lab.stat()["store_pages"] == 0)
    stat = lab.stat()
    assert stat["pages_unshared"] == 4096 and stat["saved_bytes"] == 0 > stat["general_profit"]


@pytest.mark.parametrize("zero_pages", [0, 1])
def test_use_zero_pages(lab: Lab, zero_pages: int) -> None:
    """1: given back to the kernel's zero page. 0: merged with each other like any, as KSM does by default."""
    lab.set(use_zero_pages=zero_pages)
    (child,) = lab.advised(1, 2048, "fill 0")
    lab.settle()
    stat = lab.stat()
    if zero_pages:
        assert (stat["ksm_zero_pages"], stat["pages_shared"], stat["store_pages"]) == (2048, 0, 0)
        child.ask("touch 100")
        lab.settle()
        assert lab.stat()["ksm_zero_pages"] == 1948
    else:
        assert stat["ksm_zero_pages"] == 0 and counts(lab)[:2] == (1, 2047)


@pytest.mark.parametrize("smart", [0, 1])
def test_smart_scan_skips_old_pages(lab: Lab, smart: int) -> None:
    """Where every pass has to read everything, pages that stayed the same are read in one pass of four."""
    lab.set(smart_scan=smart)
    lab.advised(1, 2048, "distinct 1", UDEDUP_TRACKING="off")
    wait_until(lambda: lab.stat()["pages_unshared"] == 2048)
    before = lab.stat()
    wait_until(lambda: lab.stat()["full_scans"] >= before["full_scans"] + 12)
    after = lab.stat()
    passes = after["full_scans"] - before["full_scans"]
    scanned, skipped = (after[name] - before[name] for name in ("pages_scanned", "pages_skipped"))
    assert after["processes"][0]["tracking"] == "digest"
    if smart:
        assert 0.6 * passes * 2048 <= skipped and scanned <= 0.4 * passes * 2048
    else:
        assert skipped == 0 and scanned >= (passes - 1) * 2048


def test_pages_to_scan_and_sleep_bound_the_pace(lab: Lab) -> None:
    """At most pages_to_scan pages in a slice, an eighth of sleep_millisecs between two."""
    lab.set(pages_to_scan=200, sleep_millisecs=400)
    began = time.monotonic()
    lab.advised(1, 8192, "distinct 1")
    time.sleep(2)
    slices = (time.monotonic() - began) / 0.05 + 2
    scanned = lab.stat()["pages_scanned"]
    assert 200 * 10 <= scanned <= 200 * slices
    lab.set(pages_to_scan=65536, sleep_millisecs=10)
    wait_until(lambda: lab.stat()["pages_scanned"] >= 8192)


def test_volatile_pages_are_no_candidates(lab: Lab) -> None:
    """Written between any two passes: never stable, never merged. Left alone for two: merged."""
    children = lab.advised(2, 512, "distinct 1")
    for child in children:
        child.send("spin 1500")
    time.sleep(0.5)
    stat = lab.stat()
    for child in children:
        child.line()
    assert stat["pages_volatile"] >= 900 and stat["pages_sharing"] == 0
    lab.settle()


def test_run_0_keeps_and_1_goes_on(lab: Lab) -> None:
    children = lab.advised(2, 1024, "distinct 1")
    lab.settle()
    lab.set(run=0)
    scanned = lab.stat()["pages_scanned"]
    late = lab.advised(1, 1024, "distinct 1")[0]
    time.sleep(0.5)
    stat = lab.stat()
    assert stat["pages_scanned"] == scanned and stat["pages_sharing"] == 1024
    assert [child.ask("merged")[0] for child in [*children, late]] == [1024, 1024, 0]
    lab.set(run=1)
    wait_until(lambda: late.ask("merged")[0] == 1024)


def test_advisor_holds_its_share_of_the_cpu(lab: Lab) -> None:
    """10 % of one core for agents and merger, by /proc, though the program writes 64 MiB all the time."""
    lab.set(advisor_mode=2, advisor_max_cpu=10)
    (child,) = lab.advised(1, 16384, "distinct 1")
    child.send("spin 11000")
    time.sleep(5)  # the advisor finds its pace
    before, began = engine_seconds(lab, child.pid), time.monotonic()
    time.sleep(5)
    share = 100 * (engine_seconds(lab, child.pid) - before) / (time.monotonic() - began)
    assert 0 < share <= 12, f"{share:.1f} %"
    assert lab.stat()["advisor"]["mode"] == "cpu"
    child.line()


def engine_seconds(lab: Lab, pid: int) -> float:
    """CPU of the merger and of a program's agent and its helpers."""
    tick = os.sysconf("SC_CLK_TCK")

    def fields(path: str) -> list[str]:
        return open(path).read().rpartition(") ")[2].split()

    total = sum(map(int, fields(f"/proc/{lab.stat()['merger']['pid']}/stat")[11:13]))
    total += sum(map(int, fields(f"/proc/{pid}/stat")[13:15]))  # helpers are its children
    for task in os.listdir(f"/proc/{pid}/task"):
        if open(f"/proc/{pid}/task/{task}/comm").read() == "udedup-agent\n":
            total += sum(map(int, fields(f"/proc/{pid}/task/{task}/stat")[11:13]))
    return total / tick
