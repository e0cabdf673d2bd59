"""Processes that register and crash at once, at any point: nothing of them is left behind."""

from __future__ import annotations

import os

from ksm.lab import Lab, wait_until
from support import descriptors

SECONDS = float(os.environ.get("UDEDUP_CRASH_SECONDS", "10"))


def test_children_that_register_and_crash(lab: Lab) -> None:
    """10 s of them beside a process that stays, whose pages they share."""
    stayer = lab.advised(1, 512, "distinct 1")[0]
    expected = stayer.text("sum")
    merger = lab.stat()["merger"]["pid"]
    mother = lab.start()
    started = mother.ask(f"crash {SECONDS:.0f}")[0]
    assert started >= 10 * SECONDS, started
    wait_until(lambda: len(lab.stat()["processes"]) == 1)
    stat = lab.stat()
    assert stat["merger"]["pid"] == merger and stat["pages_merged"] > 0
    # Only what the stayer maps may still be in the store, and soon no segment is there that nobody maps.
    wait_until(lambda: lab.stat()["store_pages"] <= 512 and lab.stat()["store_dead_pages"] <= 128, 30)
    segments = [name for name in descriptors(merger) if "udedup-segment" in name]
    ledgers = [name for name in descriptors(merger) if "udedup-ledger" in name]
    assert len(segments) == lab.stat()["store_segments"]
    assert not ledgers  # they are mapped, not kept open
    assert lab.stat()["merger"]["pss_bytes"] < 20 << 20
    assert stayer.text("sum") == expected
    # And it still works.
    late = lab.advised(1, 512, "distinct 1")[0]
    wait_until(lambda: late.ask("merged")[0] == stayer.ask("merged")[0] == 512)
    assert late.text("sum") == expected
