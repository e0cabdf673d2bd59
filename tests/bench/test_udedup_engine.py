"""udedup under its own bench: it saves what is equal, results stay, its CPU is the same from all sides."""

import pytest

from udedup.bench.cell import Limits
from udedup.bench.matrix import Plan, run_bench
from udedup.bench.results import OK

pytest.importorskip("numpy")
MIB = 1 << 20


@pytest.fixture(scope="module")
def cells():
    plan = Plan(["arrays"], ["udedup"], 1, 3, 48 * MIB, limits=Limits(30, 0.5, 1.0))
    return run_bench(plan, "test").cells


def test_equal_arrays_are_merged(cells):
    _, found = cells
    assert (found.status, found.reason) == (OK, "")
    assert found.settled
    assert found.before["pss"] - found.total >= 0.99 * 2 * 48 * MIB
    assert found.checks == cells[0].checks


def test_cpu_from_outside_agrees_with_what_stat_says(cells):
    """Each side to a tenth, and two ticks for each process: /proc counts reaped helpers in ticks."""
    _, found = cells
    stat = found.counters_end
    inside = stat["merger"]["cpu_s"] + sum(each["agent_cpu_s"] for each in stat["processes"])
    assert inside == pytest.approx(stat["cpu_by_proc_s"], rel=0.10, abs=0.02 * (len(stat["processes"]) + 1))


def test_nothing_of_the_domain_is_left(cells):
    from udedup.bench import procfs

    merger = cells[1].counters["merger"]["pid"]
    assert not procfs.alive(merger)
