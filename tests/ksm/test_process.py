"""Programs written for KSM run unchanged: madvise and prctl answer as the kernel's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ksm.lab import MERGEABLE, UNMERGEABLE, Lab, Program, wait_until

PAGES = 1024


def kernel_has(lab: Lab, command: str) -> Program:
    plain = lab.plain()
    if plain.ask(command)[0] == -1:
        pytest.skip("this kernel has no KSM to compare with")
    return plain


@pytest.mark.parametrize("advice", [MERGEABLE, UNMERGEABLE])
def test_madvise_answers_as_the_kernel(lab: Lab, advice: int) -> None:
    plain = kernel_has(lab, "get")
    assert lab.start().all(f"kinds {advice}") == plain.all(f"kinds {advice}")


@pytest.mark.usefixtures("kernel_ksm")
def test_prctl_answers_as_the_kernel(lab: Lab) -> None:
    plain = kernel_has(lab, "get")
    assert lab.start().all("prctls") == plain.all("prctls")


@pytest.mark.parametrize("kernel", ["with", "without"])
def test_memory_merge_is_inherited_over_fork_and_exec(lab: Lab, kernel: str) -> None:
    program = lab.start()
    if kernel == "without":
        program.ask("noprctl")
    assert program.ask("get") == (0, 0)
    assert program.ask("set 1") == (0, 0)
    assert program.ask("fork get") == (1, 0)
    program.text("exec")
    assert program.ask("get") == (1, 0)
    assert program.ask("fork get") == (1, 0)
    program.ask("set 0")
    program.text("exec")
    assert program.ask("get") == (0, 0)


def test_memory_merge_covers_the_whole_process_and_0_gives_back(lab: Lab) -> None:
    programs = [lab.start() for _ in range(2)]
    for program in programs:
        assert program.ask("set 1") == (0, 0)
        program.text("exec")  # what follows was never advised, and the flag came from before
        program.ask(f"map {PAGES * 8}")
        program.ask("distinct 1")
    wait_until(lambda: all(program.ask("merged")[0] >= PAGES * 8 for program in programs))
    sums = {program.text("sum") for program in programs}
    assert programs[0].ask("set 0") == (0, 0)
    assert programs[0].ask("merged") == (0, 0)  # before it returns
    lab.settle()
    assert [program.ask("merged")[0] for program in programs] == [0, PAGES * 8]  # and so it stays
    assert {program.text("sum") for program in programs} == sums and len(sums) == 1
    assert programs[0].ask(f"advise {MERGEABLE}") == (0, 0)  # single areas can be advised all the same
    wait_until(lambda: programs[0].ask("merged")[0] == PAGES * 8)


def test_memory_merge_0_leaves_advised_areas_as_the_kernel_does(lab: Lab) -> None:
    """Never set to 1: setting it to 0 changes nothing."""
    programs = lab.advised(2, PAGES, "distinct 1")
    lab.settle()
    assert programs[0].ask("set 0") == (0, 0)
    assert programs[0].ask("merged")[0] == PAGES


def test_unmergeable_gives_back_at_once(lab: Lab) -> None:
    programs = lab.advised(2, PAGES, "distinct 1")
    lab.settle()
    assert programs[0].ask("merged")[0] == PAGES
    assert programs[0].ask(f"advise {UNMERGEABLE}") == (0, 0)
    assert programs[0].ask("merged") == (0, 0)
    lab.settle()
    assert programs[0].ask("merged") == (0, 0)


@pytest.mark.parametrize("merged", [True, False])
def test_mremap_leaves_no_advice_where_something_else_may_come_to_lie(lab: Lab, merged: bool) -> None:
    lab.set(run=int(merged))
    programs = lab.advised(3, PAGES, "distinct 1")
    if merged:
        lab.settle()
        assert programs[0].ask("merged")[0] == PAGES
    programs[0].ask("move")
    programs[0].ask("distinct 1")
    lab.set(run=1)
    lab.settle()
    assert programs[1].ask("merged")[0] == programs[2].ask("merged")[0] == PAGES
    assert programs[0].ask("merged") == (0, 0)


def test_locked_pages_are_left_alone(lab: Lab) -> None:
    programs = lab.advised(3, PAGES, "distinct 1")
    lab.set(run=0)
    for program in programs:
        program.ask("distinct 2")
    if programs[0].ask("mlock")[0] == -1:
        pytest.skip("mlock is refused here")
    lab.set(run=1)
    wait_until(lambda: programs[1].ask("merged")[0] == programs[2].ask("merged")[0] == PAGES)
    lab.settle()
    assert programs[0].ask("merged") == (0, 0)
    assert locked_kib(programs[0]) >= PAGES * 4


def test_what_is_locked_once_merged_stays_locked_when_it_is_given_back(lab: Lab) -> None:
    programs = lab.advised(2, PAGES, "distinct 1")
    lab.settle()
    if programs[0].ask("mlock")[0] == -1:
        pytest.skip("mlock is refused here")
    before = locked_kib(programs[0])
    lab.set(run=2)
    wait_until(lambda: programs[0].ask("merged")[0] == programs[1].ask("merged")[0] == 0)
    assert locked_kib(programs[0]) == before >= PAGES * 4


def locked_kib(program: Program) -> int:
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.partition("VmLck:")[2].split()[0])


def huge_kib(program: Program) -> int:
    rollup = Path(f"/proc/{program.pid}/smaps_rollup").read_text()
    return int(rollup.partition("AnonHugePages:")[2].split()[0])


@pytest.mark.parametrize("thp", ["keep", "split"])
def test_huge_pages_are_kept_or_split(lab: Lab, thp: str) -> None:
    lab.set(thp=int(thp == "split"))
    programs = [lab.start() for _ in range(2)]
    for program in programs:
        if program.ask("maphuge 4096")[0] == -1:
            pytest.skip("no transparent huge pages here")
        program.ask("distinct 1")
    if huge_kib(programs[0]) < 8192:
        pytest.skip("the kernel gave no huge pages")
    before = huge_kib(programs[0])
    for program in programs:
        program.ask(f"advise {MERGEABLE}")
    small = lab.advised(2, PAGES, "distinct 7")
    wait_until(lambda: all(program.ask("merged")[0] == PAGES for program in small))
    if thp == "split":
        wait_until(lambda: programs[0].ask("merged")[0] == 4096)
        assert huge_kib(programs[0]) < before
        return
    lab.settle()
    assert programs[0].ask("merged")[0] <= 4096 - before // 4
    assert huge_kib(programs[0]) == before
    entry = next(entry for entry in lab.stat()["processes"] if entry["pid"] == programs[0].pid)
    assert entry["huge_pages"] >= before // 4


def test_memory_that_splits_soon_is_merged_later_and_later(lab: Lab) -> None:
    """Each split soon after a merge doubles the time a region must be left alone. Not with smart_scan 0."""
    programs = lab.advised(2, 512, "distinct 1")

    def seconds_to_merge() -> float:
        began = time.monotonic()
        wait_until(lambda: programs[0].ask("merged")[0] == 512, 60)
        return time.monotonic() - began

    seconds_to_merge()
    lab.set(smart_scan=1)
    times = []
    for value in range(2, 5):
        for program in programs:
            program.ask(f"distinct {value}")
        times.append(seconds_to_merge())
    assert times[0] >= 1.0 and times[1] >= 3.0 and times[2] >= 6.5, times
    lab.set(smart_scan=0)
    for program in programs:
        program.ask("distinct 9")
    assert seconds_to_merge() < 1.5


def test_stacks_that_are_written_all_the_time_hold_up_no_settle(lab: Lab) -> None:
    """Two threads with equal pages on their stacks, written six times a second: refused, and then let be."""
    program = lab.start(UDEDUP_REGIONS="all")
    program.text("stacks")

    def refused() -> int:
        return sum(entry["merge_failures"].get("stack", 0) for entry in lab.stat()["processes"])

    wait_until(refused, 20)
    lab.settle(8)
    before = refused()
    time.sleep(3)
    assert refused() < before + 120  # of some 300 that are written


def test_a_program_that_grows_is_merged_when_it_has_stopped(lab: Lab) -> None:
    """New pages five times a second, in long runs, with several passes between them: it is not done yet."""
    lab.set(smart_scan=1)
    programs = [lab.start(UDEDUP_REGIONS="all") for _ in range(2)]
    pids = {program.pid for program in programs}
    wait_until(lambda: pids <= {entry["pid"] for entry in lab.stat()["processes"]})
    before = lab.stat()["pages_merged"]
    for step in range(15):
        for program in programs:
            program.ask("map 256")
            program.ask(f"distinct {1000 * step + 1}")
        time.sleep(0.2)
    assert lab.stat()["pages_merged"] == before
    wait_until(lambda: lab.stat()["pages_merged"] >= before + 2 * 15 * 256)


def test_what_is_written_once_is_seen_once(lab: Lab) -> None:
    """All of a merged area is written, so its mapping is given back: nothing looks new or written by that."""
    pages = 4096
    programs = lab.advised(2, pages, "distinct 1")
    lab.set(smart_scan=1)
    wait_until(lambda: all(program.ask("merged")[0] == pages for program in programs))
    before = lab.stat()
    for number, program in enumerate(programs):
        program.ask(f"distinct {2 + number}")

    def since(name: str) -> int:
        return int(lab.stat()[name] - before[name])

    wait_until(lambda: since("pages_unmerged") >= 2 * pages)
    time.sleep(2)  # it is seen in its new place, and comes under tracking there
    assert 2 * pages <= since("pages_written") < 2 * pages * 1.25


def test_pages_that_a_fork_relative_leaves_are_merged_soon(lab: Lab) -> None:
    """What only one of them maps any more is looked at in the next passes, not when all memory is."""
    pages = 2048
    lab.set(sleep_millisecs=100, idle_millisecs=100, run=0)  # forked before it is looked at
    parent, twin = (lab.start(UDEDUP_REGIONS="all") for _ in range(2))
    parent.ask(f"map {pages}")
    parent.ask("distinct 1")
    child = psutil.Process(parent.ask("fork sleep 60000")[0])
    lab.set(run=1)

    def entry(program: Program) -> dict[str, Any]:
        found: list[dict[str, Any]] = [each for each in lab.stat()["processes"] if each["pid"] == program.pid]
        return found[0] if found else {"fork_shared_pages": 0}

    wait_until(lambda: entry(parent)["fork_shared_pages"] >= pages)
    twin.ask(f"map {pages}")
    twin.ask("distinct 1")
    wait_until(lambda: entry(parent)["full_scans"] % 16 == 1)
    before = entry(parent)["full_scans"]
    child.kill()
    assert parent.ask("merged")[0] == 0
    wait_until(lambda: parent.ask("merged")[0] >= pages - 64)  # a few lie beside what stays shared
    assert entry(parent)["full_scans"] - before < 12
