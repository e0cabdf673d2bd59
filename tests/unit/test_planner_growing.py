"""What some hold waits while others of the domain grow, so that it is merged with theirs in long runs."""

import time

from fake_agent import PAGE, Bench, numbers

HERE = 0x7F0000000000


def scan_all(bench: Bench) -> int:
    """One pass of each process; plans that came of it."""
    for sid, process in bench.processes.items():
        process.end_pass()
        bench.planner.scan(sid)
    bench.planner.scan_due()
    return bench.step()


def test_nothing_is_matched_while_another_grows(bench: Bench) -> None:
    first, second, third = (bench.join()[1] for _ in range(3))
    third.header.growing = 1
    for process in (first, second):
        process.write(HERE, numbers(1, 300))
    assert scan_all(bench) == 0 and not bench.planner.quiet()
    left = bench.planner.timer()
    assert left is not None and 3 < left <= 4
    third.header.growing = 0
    third.write(HERE, numbers(1, 300))
    third.end_pass()
    bench.settle()
    sums, store = bench.count()
    assert (sums["merged"], store["slots"]) == (900, 300)


def test_nobody_waits_for_long_nor_twice(bench: Bench) -> None:
    first, second, third = (bench.join()[1] for _ in range(3))
    third.header.growing = 1
    for process in (first, second):
        process.write(HERE, numbers(1, 300))
    assert scan_all(bench) == 0
    time.sleep(4.1)
    assert scan_all(bench) > 0
    bench.settle()
    assert bench.count()[0]["merged"] == 600
    for process in (first, second):
        process.write(HERE + 1000 * PAGE, numbers(1001, 300))
    assert scan_all(bench) > 0, "it waits once, then not before there was a moment at which nobody grew"


def test_who_grows_alone_waits_for_nobody(bench: Bench) -> None:
    """Its own pages that keep still all the same (it was patient for long enough) are matched."""
    only = bench.join()[1]
    only.header.growing = 1
    only.write(HERE, numbers(1, 300))
    only.write(HERE + 1000 * PAGE, numbers(1, 300))
    assert scan_all(bench) > 0


def test_nobody_waits_once_merging_is_off(bench: Bench) -> None:
    first, second = (bench.join()[1] for _ in range(2))
    second.header.growing = 1
    first.write(HERE, numbers(1, 300))
    first.write(HERE + 1000 * PAGE, numbers(1, 300))
    assert scan_all(bench) == 0 and not bench.planner.quiet()
    bench.configure(run=0)
    assert bench.planner.quiet()
    bench.configure(run=1)
    second.header.growing = 0
    bench.settle()
    assert bench.count()[0]["merged"] == 600
