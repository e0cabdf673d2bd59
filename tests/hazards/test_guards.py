"""Each guard of the merge transaction: with it nothing is wrong, without it the same test fails.

Guards are switched off by UDEDUP_TEST_GUARDS in a library built with -DUD_TEST; UDEDUP_TEST_DELAY_US makes
the gaps wide that a missing guard leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hazards.lab import NOT_MERGED, Lab

#: guard -> (test in c/races.c, gap in microseconds)
RACES = {
    "busy": ("dontneed_race", "8000"),
    "hold": ("store_race", "1000"),
    "compare": ("store_race", "0"),
    "mapcheck": ("file_race", "0"),
    "lastpage": ("raw_mremap", "0"),
}


#: The same in mode trap, where merged pages are not protected but in windows.
TRAP_RACES = {
    "fork": "fork_meets_no_window",
    "inherit": "clone_reads",
    "open": "mremap_race",
}
TRAP = {
    "UDEDUP_MODE": "trap", "UDEDUP_SPLIT": "kernel", "UDEDUP_REGIONS": "advised", "HZ_ADVISE": "1",
    "UDEDUP_TEST_DELAY_US": "3000",
}  # fmt: skip


@pytest.mark.parametrize("guard", RACES)
def test_right_with_all_guards(racing: Lab, guard: str) -> None:
    name, gap = RACES[guard]
    racing.same([racing.program("races"), name], UDEDUP_TEST_DELAY_US=gap)


@pytest.mark.parametrize("guard", RACES)
def test_wrong_without_the_guard(racing: Lab, guard: str) -> None:
    name, gap = RACES[guard]
    program = racing.program("races")
    plain = racing.plain([program, name])
    for _ in range(5):
        run = racing.merged([program, name], UDEDUP_TEST_GUARDS=guard, UDEDUP_TEST_DELAY_US=gap)
        assert run.status != NOT_MERGED
        if (run.status, run.out) != (plain.status, plain.out):
            return
    pytest.fail(f"nothing goes wrong without {guard}: does the test test it?")


@pytest.mark.parametrize("name", [*TRAP_RACES.values(), "clone_protects"])
def test_right_in_mode_trap(racing: Lab, name: str) -> None:
    racing.same([racing.program("races"), name], **TRAP)


@pytest.mark.parametrize("guard", TRAP_RACES)
def test_wrong_in_mode_trap_without_the_guard(racing: Lab, guard: str) -> None:
    program, name = racing.program("races"), TRAP_RACES[guard]
    for _ in range(5):
        run = racing.merged([program, name], UDEDUP_TEST_GUARDS=guard, **TRAP)
        if run.out != "bad 0\ndone\n":
            return
    pytest.fail(f"nothing goes wrong without {guard}: does the test test it?")


def test_another_process_on_the_same_memory(racing: Lab) -> None:
    """One thread of the process is held; the other process is not, so nothing may be merged."""
    program = racing.program("races")
    racing.same([program, "sharer_race"], UDEDUP_TEST_DELAY_US="1000")
    without = {"UDEDUP_TEST_GUARDS": "sharers", "UDEDUP_TEST_DELAY_US": "1000"}
    for _ in range(5):
        run = racing.merged([program, "sharer_race"], **without)
        if run.out != "lost 0\ndone\n":
            return
    pytest.fail("nothing goes wrong without sharers: does the test test it?")


def test_pinned_memory_is_moved_without_the_guard(racing: Lab) -> None:
    program = racing.program("uring")
    if racing.merged([program, "unmapped_ring"]).out != "bad 0\ndone\n":
        pytest.fail("wrong with all guards")
    for _ in range(5):
        run = racing.merged([program, "unmapped_ring"], UDEDUP_TEST_GUARDS="pinned")
        if run.out != "bad 0\ndone\n":
            return
    pytest.fail("nothing goes wrong without pinned: does the test test it?")


def test_large_blocks_grow_right(racing: Lab) -> None:
    racing.same([racing.program("races"), "realloc_race"], UDEDUP_TEST_DELAY_US="200")


@contextlib.contextmanager
def killing_holders(program: Path) -> Iterator[list[int]]:
    """kill -9 of the holders and readers of `program`: processes of their own, named udedup-agent."""
    stop = threading.Event()
    killed: list[int] = []

    def hunt() -> None:
        while not stop.is_set():
            for entry in os.listdir("/proc"):
                with contextlib.suppress(OSError):
                    if not entry.isdigit() or Path(f"/proc/{entry}/comm").read_text() != "udedup-agent\n":
                        continue
                    if Path(f"/proc/{entry}/exe").readlink() == program:
                        os.kill(int(entry), signal.SIGKILL)
                        killed.append(int(entry))

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def test_holder_killed_at_any_instant(racing: Lab) -> None:
    program = racing.program("races")
    with killing_holders(program) as killed:
        racing.same([program, "killed_holder"], UDEDUP_TEST_DELAY_US="1000")
    assert killed


def test_holder_killed_without_bitfirst(racing: Lab) -> None:
    program = racing.program("races")
    for _ in range(5):
        with killing_holders(program):
            run = racing.merged(
                [program, "killed_holder"], UDEDUP_TEST_GUARDS="bitfirst", UDEDUP_TEST_DELAY_US="1000"
            )
        if run.out != "bad 0\ndone\n":
            return
    pytest.fail("nothing goes wrong without bitfirst: does the test test it?")


def test_sleeping_calls_see_interruptions_without_the_repair(racing: Lab) -> None:
    run = racing.merged([racing.program("syscalls"), "sleepers_see_nothing"], UDEDUP_TEST_GUARDS="eintr")
    assert run.status == 1, run
