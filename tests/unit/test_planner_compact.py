"""Tidying the store: dead slots, cut runs, and churn that must leave nothing behind."""

import os
import random
import time

from fake_agent import PAGE, Bench, FakeProcess, page, runs, sealed

from udedup.core import lib
from udedup.merger import wire

HERE = 0x7F0000000000
PLENTY = 1 << 30
#: UDEDUP_TEST_CYCLES=100000 is a day of churn, and takes some minutes.
CYCLES = int(os.environ.get("UDEDUP_TEST_CYCLES", "1500"))


def free_idle(bench: Bench) -> None:
    bench.count()
    for gid in bench.planner.idle():
        assert bench.planner.drop(gid)
        name = os.fstat(bench.fds[gid]).st_ino
        for process in bench.processes.values():
            process.segments.pop(name, None)
        os.close(bench.fds.pop(gid))


def split(process: FakeProcess, vaddr: int, number: int) -> None:
    process.write(vaddr, [page(number)], lib.UD_PG_VOLATILE)


def test_dead_slots_are_compacted(bench: Bench) -> None:
    """Two of three pages of a 480-page store are split everywhere; what lives moves to a small segment."""
    for _ in range(3):
        bench.join()[1].write(HERE, [page(1 + i) for i in range(480)])
    bench.settle()
    for n, process in enumerate(bench.processes.values()):
        for i in range(480):
            if i % 3:
                split(process, HERE + i * PAGE, 10_000 + n * 1000 + i)
    bench.settle()
    store = bench.count()[1]
    assert (store["slots"], store["dead"]) == (480, 320)
    assert bench.planner.compact(PLENTY) == 1
    bench.settle()
    time.sleep(2.1)
    free_idle(bench)
    sums, store = bench.count()
    assert (store["slots"], store["dead"]) == (160, 0)
    assert (sums["shared"], sums["sharing"], sums["lost"]) == (160, 320, 0)


def test_slots_with_one_user_go_back(bench: Bench) -> None:
    for _ in range(2):
        bench.join()[1].write(HERE, [page(1 + i) for i in range(200)])
    bench.settle()
    first, second = bench.processes.values()
    for i in range(0, 200, 2):
        split(first, HERE + i * PAGE, 5000 + i)
        split(second, HERE + i * PAGE, 6000 + i)
        split(second, HERE + (i + 1) * PAGE, 7000 + i)
    bench.settle()
    bench.count()
    assert bench.planner.compact(PLENTY) == 1
    bench.settle()
    back = [run for kind, _, data in bench.sent if kind == wire.UNMERGE for run in runs(data)]
    assert sum(n for _, n, _ in back) == 100
    time.sleep(2.1)
    free_idle(bench)
    assert bench.count()[1]["slots"] == 0


def test_compaction_is_bounded_by_memory(bench: Bench) -> None:
    for _ in range(2):
        bench.join()[1].write(HERE, [page(1 + i) for i in range(480)])
    bench.settle()
    for n, process in enumerate(bench.processes.values()):
        for i in range(0, 480, 2):
            split(process, HERE + i * PAGE, 10_000 + n * 1000 + i)
    bench.settle()
    bench.count()
    assert bench.planner.compact(239 * PAGE) == 0
    assert bench.planner.compact(240 * PAGE) == 1


def test_runs_published_piecemeal_are_mended(bench: Bench) -> None:
    """Pages of one array become candidates in a random order: many cut runs, then one."""
    order = list(range(1024))
    random.Random(3).shuffle(order)
    processes = [bench.join()[1] for _ in range(3)]
    for some in range(0, 1024, 128):
        for process in processes:
            for i in order[some : some + 128]:
                process.write(HERE + i * PAGE, [page(1 + i)])
        bench.settle()
    assert bench.count()[0]["merged"] == 3 * 1024
    time.sleep(2.1)
    bench.count()
    assert bench.planner.compact(PLENTY) > 1
    bench.sent.clear()
    bench.settle()
    assert [len(runs(data)) for kind, _, data in bench.sent if kind == wire.PUBLISH] == [1]
    assert [len(runs(data)) for kind, _, data in bench.sent if kind == wire.MERGE] == [1, 1, 1]
    time.sleep(2.1)
    free_idle(bench)
    assert bench.count()[1]["slots"] == 1024


def test_cuts_are_left_while_mappings_are_plenty(bench: Bench) -> None:
    """Runs of 16 pages in a random order: their mappings cost less than to publish and merge it all anew."""
    order = list(range(64))
    random.Random(4).shuffle(order)
    processes = [bench.join()[1] for _ in range(3)]
    for piece in order:
        for process in processes:
            process.write(HERE + 16 * piece * PAGE, [page(1 + 16 * piece + i) for i in range(16)])
        bench.settle()
    assert bench.count()[0]["merged"] == 3 * 1024
    time.sleep(2.1)
    assert bench.planner.compact(PLENTY) == 0
    time.sleep(3.1)  # it looks again every three seconds
    processes[0].header.vmas_budget, processes[0].header.vmas_used = 200, 101
    bench.count()
    assert bench.planner.compact(PLENTY) > 1


def adopt(bench: Bench, processes: list[FakeProcess], numbers: list[int]) -> int:
    """A segment of these pages that all the processes map already, as a new merger finds it; its id."""
    fd = sealed(b"".join(page(number) for number in numbers))
    name = os.fstat(fd).st_ino
    gid, _ = bench.planner.segment(fd)
    bench.fds[gid] = fd
    for process in processes:
        process.segments[name] = os.dup(fd)
        for i, number in enumerate(numbers):
            process.memory[HERE + i * PAGE] = page(number)
            process.set(HERE + i * PAGE, lib.UD_PG_MERGED, name << 24 | i)
        process.end_pass()
    return gid


def test_content_stored_twice_is_brought_together(bench: Bench) -> None:
    """Two pairs published the same 300 pages, each for itself: the second copy's users get the first."""
    processes = [bench.join()[1] for _ in range(4)]
    adopt(bench, processes[:2], [1 + i for i in range(300)])
    adopt(bench, processes[2:], [1 + i for i in range(300)])
    bench.settle()
    assert bench.count()[1]["slots"] == 600
    bench.planner.compact(PLENTY)
    bench.settle()
    sent = [(kind, len(runs(data))) for kind, _, data in bench.sent]
    assert sent == [(wire.MERGE, 1), (wire.MERGE, 1)]
    time.sleep(2.1)
    free_idle(bench)
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"], store["dead"]) == (300, 900, 300, 0)


def test_no_run_is_cut_for_a_page_that_is_stored_twice(bench: Bench) -> None:
    """Every third page of the second segment is in the first too: from there it would take 200 mappings."""
    processes = [bench.join()[1] for _ in range(4)]
    adopt(bench, processes[:2], [1 + i for i in range(300)])
    adopt(bench, processes[2:], [1 + i if i % 3 else 1000 + i for i in range(300)])
    bench.settle()
    bench.count()
    bench.planner.compact(PLENTY)
    bench.settle()
    assert bench.sent == []


def test_a_day_of_churn_leaves_nothing(bench: Bench) -> None:
    """Sessions register, merge, split and leave: store, descriptors and memory stay flat."""
    rng = random.Random(5)
    base = bench.join()[1]
    base.write(HERE, [page(1 + i) for i in range(64)])
    peaks: list[int] = []
    memory: list[int] = []
    for cycle in range(CYCLES):
        sid, process = bench.join(FakeProcess(capacity=512))
        process.write(HERE, [page(1 + i) for i in range(64)])
        process.write(HERE + (1 << 30), [page(rng.randrange(1 << 30)) for _ in range(16)])
        for one in (base, process):
            one.end_pass()
        for any_sid in bench.processes:
            bench.planner.scan(any_sid)
        while bench.step():
            pass
        for _ in range(4):
            split(process, HERE + rng.randrange(64) * PAGE, rng.randrange(1 << 30))
        process.end_pass()
        bench.planner.scan(sid)
        bench.planner.leave(sid)
        bench.processes.pop(sid).close()
        if cycle % 100 == 99:
            free_idle(bench)
            store = bench.count()[1]
            peaks.append(store["slots"])
            memory.append(store["metadata_bytes"])
    assert max(peaks) <= 256, peaks
    assert memory[-1] <= memory[2] * 1.2 + 4096, memory
    assert len(os.listdir("/proc/self/fd")) < 64
