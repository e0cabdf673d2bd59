"""udedup under its own bench: it saves what is equal, results stay, its CPU is the same from all sides."""

import psutil
import pytest

from udedup.bench.cell import Limits
from udedup.bench.engines import udedup as udedup_engine
from udedup.bench.engines.udedup import Udedup
from udedup.bench.matrix import Plan, run_bench
from udedup.bench.results import OK

pytest.importorskip("numpy")
MIB = 1 << 20


class Watched(Udedup):
    """Looks at the same processes with psutil, at the same moment."""

    seen: float  # all of them
    runner: float  # `udedup run`, which stat knows nothing of

    def before_check(self, run):
        Watched.seen = sum(agent_seconds(psutil.Process(pid)) for pid in run.pids)
        merger, Watched.runner = (
            own_seconds(psutil.Process(p)) for p in (self._merger_pid(run), run.helpers[0])
        )
        Watched.seen += merger + Watched.runner


def own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def agent_seconds(process: psutil.Process) -> float:
    threads = [
        each.user_time + each.system_time
        for each in process.threads()
        if open(f"/proc/{process.pid}/task/{each.id}/comm").read() == "udedup-agent\n"
    ]
    times = process.cpu_times()
    return sum(threads) + times.children_user + times.children_system


@pytest.fixture(scope="module")
def cells():
    plan = Plan(["arrays"], ["udedup"], 1, 3, 48 * MIB, limits=Limits(30, 0.5, 1.0))
    plan.knobs = ["idle_millisecs=200"]  # passes come sooner, so that it is seen sooner that nothing moves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(udedup_engine, "Udedup", Watched)
        patch.setattr(Watched, "quiet_s", 1.5)
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
    outside = stat["cpu_by_proc_s"] - Watched.runner
    assert inside == pytest.approx(outside, rel=0.10, abs=0.02 * (len(stat["processes"]) + 1))


def test_cpu_from_outside_agrees_with_psutil(cells):
    """Ticks where psutil has no better: one for each thread or process it reads."""
    _, found = cells
    assert found.counters_end["cpu_by_proc_s"] == pytest.approx(Watched.seen, rel=0.10, abs=0.01 * 8)


def test_nothing_of_the_domain_is_left(cells):
    from udedup.bench import procfs

    merger = cells[1].counters["merger"]["pid"]
    assert not procfs.alive(merger)
