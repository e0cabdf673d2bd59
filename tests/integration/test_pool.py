"""The main job: real pools, merged, measured, and still right."""

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from support import mergers

sys.path.insert(0, str(Path(__file__).parent))
from pools import Pool, merged_pss, own_pages, process_stat, run_prefix, settle, stat, wait_until

from udedup.client import Client
from udedup.core import lib
from udedup.domain import Domain

pytestmark = pytest.mark.usefixtures("domains")
MIB = 1 << 20


def test_eight_importing_workers_fit_in_forty_percent() -> None:
    """The README's pool: at most 40 % of the plain one within 30 s of the last import, results equal."""
    modules = ("numpy", "pandas", "sklearn.ensemble")
    for name in modules:
        pytest.importorskip(name)
    with Pool("imports", 8, *modules) as plain:
        before = plain.pss()
        expected = plain.ask("fit")
    assert len(set(expected)) == 1
    with Pool("imports", 8, *modules, prefix=run_prefix("eight")) as pool, Client(Domain("eight")) as client:
        began = time.monotonic()
        after = before
        while after > 0.40 * before and time.monotonic() - began < 30:
            time.sleep(1)
            after = merged_pss(client, pool.pids)
        share, took = 100 * after / before, time.monotonic() - began
        print(f"{before / MIB:.0f} MiB plain, {after / MIB:.0f} merged: {share:.1f} %, {took:.0f} s")
        assert after <= 0.40 * before
        assert pool.ask("fit") == expected


@pytest.mark.usefixtures("kernel_ksm")
def test_kernel_ksm_stays_as_it_is() -> None:
    knobs = [path for path in Path("/sys/kernel/mm/ksm").glob("*") if path.stat().st_mode & 0o200]
    before = {path: path.read_text() for path in knobs}
    with Pool("arrays", 2, 16, prefix=run_prefix("ksm")):
        assert settle("ksm", 60)
    assert {path: path.read_text() for path in knobs} == before


@pytest.mark.parametrize("layout", ["pool", "random"])
def test_equal_arrays_merge_to_one(layout: str) -> None:
    """Four processes, the same 64 MiB: 99 % of what can be saved; the store is a fifth dead at most."""
    size = 64
    pages = size * MIB // os.sysconf("SC_PAGE_SIZE")
    with Pool("arrays", 4, size, prefix=run_prefix("arrays", "--layout", layout)) as pool:
        assert settle("arrays", 60)
        ranges = [(pid, *where) for pid, where in zip(pool.pids, pool.ask("where"), strict=True)]

        def merged() -> bool:
            # What was freed soon after it was merged leaves dead slots: they stay if they are few.
            store = stat("arrays")
            live, dead = store["store_pages"] - store["store_dead_pages"], store["store_dead_pages"]
            used = live + sum(own_pages(*each) for each in ranges)
            return bool(4 * pages - used >= 0.99 * 3 * pages and dead <= 0.2 * (live + dead))

        # Compaction works in the background, and malloc keeps freed blocks for a few seconds.
        wait_until(merged, 60)
        data = b"".join(map(random.Random(5).randbytes, [MIB] * size))
        assert set(pool.ask("digest")) == {hashlib.sha256(data).hexdigest()}
        assert all(process["vmas_used"] <= process["vmas_budget"] for process in stat("arrays")["processes"])


def test_writes_split_and_stay_private() -> None:
    with Pool("arrays", 3, 16, prefix=run_prefix("writes")) as pool:
        assert settle("writes", 60)
        plain = bytearray(b"".join(map(random.Random(5).randbytes, [MIB] * 16)))
        for number, digest in enumerate(pool.ask(["write", 4096 * 7])):
            mine = bytearray(plain)
            mine[:: 4096 * 7] = bytes([number + 1]) * len(mine[:: 4096 * 7])
            assert digest == hashlib.sha256(mine).hexdigest()
        assert settle("writes", 60)
        assert len(set(pool.ask("digest"))) == 3


def in_huge_pages(pid: int, start: int, nbytes: int) -> int:
    """Bytes of shared memory that a process has mapped there by whole huge pages."""
    found, here = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            here = start <= int(name.partition("-")[0], 16) < start + nbytes
        elif here and name == "ShmemPmdMapped:":
            found += int(rest[0]) << 10
    return found


def test_merged_memory_lies_in_huge_pages_until_it_is_written() -> None:
    if lib.ud_probe_huge_store():
        pytest.skip("no huge pages for shared memory here: `udedup doctor`")
    with Pool("arrays", 3, 64, prefix=run_prefix("huge", "--set", "run=0")) as pool:
        # All of it at once: what is published while a loaded machine fills the rest is cut where that ends.
        with Client(Domain("huge")) as client:
            client.request("set", knobs={"run": 1})
        assert settle("huge", 60)
        arrays = [(pid, *where) for pid, where in zip(pool.pids, pool.ask("where"), strict=True)]
        assert all(in_huge_pages(*each) >= 32 * MIB for each in arrays)
        plain = bytearray(b"".join(map(random.Random(5).randbytes, [MIB] * 64)))
        assert set(pool.ask("digest")) == {hashlib.sha256(plain).hexdigest()}
        step = 2 * MIB - 4096  # each huge page is written into
        for number, digest in enumerate(pool.ask(["write", step])):
            mine = bytearray(plain)
            mine[::step] = bytes([number + 1]) * len(mine[::step])
            assert digest == hashlib.sha256(mine).hexdigest()
        assert not any(in_huge_pages(*each) for each in arrays)


def test_forked_children_see_and_keep_the_right_memory() -> None:
    with Pool("arrays", 2, 16, prefix=run_prefix("forks")) as pool:
        assert settle("forks", 60)
        data = bytearray(b"".join(map(random.Random(5).randbytes, [MIB] * 16)))
        before = hashlib.sha256(data).hexdigest()
        data[:MIB] = bytes(MIB)
        after = hashlib.sha256(data).hexdigest()
        assert pool.ask(["fork"]) == [[before, after, before]] * 2


def test_unmerge_gives_everything_back() -> None:
    with Pool("arrays", 3, 32, prefix=run_prefix("back")) as pool:
        assert settle("back", 60)
        assert stat("back")["saved_bytes"] > 60 * MIB
        with Client(Domain("back")) as client:
            client.request("set", knobs={"run": 2})
        wait_until(lambda: stat("back")["pages_sharing"] == 0, 30)
        wait_until(lambda: not any(maps_segments(pid) for pid in pool.pids), 30)
        assert len(set(pool.ask("digest"))) == 1
        with Client(Domain("back")) as client:
            client.request("set", knobs={"run": 1})
        wait_until(lambda: stat("back")["saved_bytes"] > 60 * MIB, 30)


def maps_segments(pid: int) -> bool:
    return "udedup-segment" in Path(f"/proc/{pid}/maps").read_text()


def test_killed_merger_harms_nobody_and_the_next_one_adopts(domains: Path) -> None:
    with Pool("arrays", 3, 32, prefix=run_prefix("killed")) as pool:
        assert settle("killed", 60)
        digests = pool.ask("digest")
        (merger,) = mergers(domains)
        os.kill(merger, signal.SIGKILL)
        assert pool.ask("digest") == digests
        # `run` starts another, and the agents connect again with what they have mapped.
        wait_until(lambda: [pid for pid in mergers(domains) if pid != merger], 20)
        wait_until(lambda: _adopted("killed", pool.pids, 60 * MIB), 40)
        assert pool.ask("digest") == digests
        assert len(set(pool.ask(["write", 65536]))) == 3


def _adopted(domain: str, pids: list[int], saved: int) -> bool:
    try:
        counters = stat(domain)
    except Exception:
        return False
    return {process["pid"] for process in counters["processes"]} >= set(pids) and counters[
        "saved_bytes"
    ] >= saved


def test_merger_killed_while_it_merges(domains: Path) -> None:
    with Pool("arrays", 3, 64, prefix=run_prefix("storm", "--set", "sleep_millisecs=10")) as pool:
        for _ in range(4):
            wait_until(lambda: mergers(domains), 80)
            time.sleep(0.3)
            for pid in mergers(domains):
                os.kill(pid, signal.SIGKILL)
        data = b"".join(map(random.Random(5).randbytes, [MIB] * 64))
        assert set(pool.ask("digest")) == {hashlib.sha256(data).hexdigest()}
        wait_until(lambda: _adopted("storm", pool.pids, int(0.95 * 2 * 64 * MIB)), 60)
        assert set(pool.ask("digest")) == {hashlib.sha256(data).hexdigest()}


def test_worker_that_dies_leaks_nothing() -> None:
    with Pool("arrays", 3, 16, prefix=run_prefix("dying")) as pool:
        assert settle("dying", 60)
        os.kill(pool.pids[0], signal.SIGKILL)
        os.kill(pool.pids[1], signal.SIGKILL)
        wait_until(lambda: not any(process_stat("dying", pid) for pid in pool.pids[:2]), 20)
        left = stat("dying")
        assert [process["pid"] for process in left["processes"]] == [pool.pids[2]]
        # What the store still holds is what the survivor maps, but for a fifth at most.
        assert left["pages_shared"] >= 0.8 * left["store_pages"]
        pool.process.kill()


def test_duplicates_within_one_process_merge() -> None:
    with Pool("twice", 32, prefix=run_prefix("twice")) as pool:
        assert settle("twice", 60)
        counters = stat("twice")
        assert counters["saved_bytes"] >= 0.99 * 32 * MIB
        assert counters["zero_pages"] >= 0.99 * 32 * MIB / 4096
        assert pool.ask("check") is True


def test_random_layout_merges_hardly_any_pointers() -> None:
    """Not a promise, but the reason for the pool's layout: should this fail, the README is wrong."""
    modules = ("decimal", "asyncio", "sqlite3", "unittest.mock")
    results = {}
    for layout in ("pool", "random"):
        with Pool("imports", 4, *modules, prefix=run_prefix(layout, "--layout", layout, "--threshold", "1")):
            assert settle(layout, 60)
            results[layout] = stat(layout)["saved_bytes"]
    assert results["pool"] > 2 * results["random"]
