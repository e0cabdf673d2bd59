"""Each guard of the merge transaction: with it nothing is wrong, without it the same test fails.

Guards are switched off by UDEDUP_TEST_GUARDS in a library built with -DUD_TEST; UDEDUP_TEST_DELAY_US makes
the gaps wide that a missing guard leaves.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    "down": ("grows_down", "0"),
}


MAPPINGS = int(Path("/proc/sys/vm/max_map_count").read_text())

#: The same in mode trap, where merged pages are not protected but in windows.
TRAP_RACES = {
    "fork": "fork_meets_no_window",
    "inherit": "clone_reads",
    "open": "mremap_race",
    "free": "free_race",
}
TRAP = {
    "UDEDUP_MODE": "trap", "UDEDUP_SPLIT": "kernel", "UDEDUP_REGIONS": "advised", "HZ_ADVISE": "1",
    "UDEDUP_TEST_DELAY_US": "3000",
}  # fmt: skip


def goes_wrong(lab: Lab, argv: list[str | Path], out: str, guards: str, **extra: str) -> None:
    """Fails unless one of forty merged runs without `guards` ends otherwise than with `out`, status 0."""
    for _ in range(40):
        run = lab.merged(argv, UDEDUP_TEST_GUARDS=guards, **extra)
        if run.status != NOT_MERGED and (run.status, run.out) != (0, out):
            return
    pytest.fail(f"nothing goes wrong without {guards}: does the test test it?")


@pytest.mark.parametrize("guard", RACES)
def test_right_with_all_guards(racing: Lab, guard: str) -> None:
    name, gap = RACES[guard]
    racing.same([racing.program("races"), name], UDEDUP_TEST_DELAY_US=gap)


def test_a_mapping_put_in_its_place_grows_down(racing: Lab) -> None:
    racing.same([racing.program("races"), "grows_down_fixed"])


@pytest.mark.parametrize("guard", RACES)
def test_wrong_without_the_guard(racing: Lab, guard: str) -> None:
    name, gap = RACES[guard]
    argv: list[str | Path] = [racing.program("races"), name]
    goes_wrong(racing, argv, racing.plain(argv).out, guard, UDEDUP_TEST_DELAY_US=gap)


@pytest.mark.parametrize("name", [*TRAP_RACES.values(), "clone_protects"])
def test_right_in_mode_trap(racing: Lab, name: str) -> None:
    racing.same([racing.program("races"), name], **TRAP)


@pytest.mark.parametrize("guard", TRAP_RACES)
def test_wrong_in_mode_trap_without_the_guard(racing: Lab, guard: str) -> None:
    goes_wrong(racing, [racing.program("races"), TRAP_RACES[guard]], "bad 0\ndone\n", guard, **TRAP)


def test_given_back_without_memory(racing: Lab) -> None:
    """mremap has unmapped its target before it fails: "halfway" plays that."""
    program = racing.program("races")
    racing.same([program, "given_back"], UDEDUP_TEST_GUARDS="halfway")
    run = racing.merged([program, "given_back"], UDEDUP_TEST_GUARDS="halfway,copyback")
    assert run.status == -signal.SIGSEGV, run


def test_merged_without_memory(racing: Lab) -> None:
    """The same when slots are moved into place; then the segment is mapped there."""
    program = racing.program("races")
    racing.same([program, "put_in_place"])
    racing.same([program, "put_in_place"], UDEDUP_TEST_GUARDS="halfway")
    run = racing.merged([program, "put_in_place"], UDEDUP_TEST_GUARDS="halfway,mapped")
    assert run.status == -signal.SIGSEGV, run


@pytest.mark.parametrize("name", ["fork_purges", "fork_meets_purge", "fork_meets_move"])
def test_fork_handlers_of_others_may_need_memory_calls(racing: Lab, name: str) -> None:
    """They run after ours, and may wait for a lock that is held by a thread that wants a job."""
    early = [racing.program("early", "-shared", "-fPIC")]
    argv: list[str | Path] = [racing.program("races"), name]
    plain = racing.plain(argv)
    runs = (racing.merged(argv, preload=early) for _ in range(3))
    run = next(run for run in runs if run.status != NOT_MERGED)
    assert (run.status, run.out) == (plain.status, plain.out), run
    if name != "fork_meets_move":  # (the same deadlock, but not in each run)
        runs = (racing.merged(argv, preload=early, UDEDUP_TEST_GUARDS="gate") for _ in range(4))
        assert any(run.status == 5 for run in runs), "no deadlock"


def test_limits_that_are_set_during_a_merge(racing: Lab) -> None:
    program = racing.program("races")
    racing.same([program, "limits_come_and_go"])
    goes_wrong(racing, [program, "limits_come_and_go"], "wrong 0\ndone\n", "limits")


def test_segments_that_are_gone_are_forgotten(racing: Lab) -> None:
    racing.same([racing.program("races"), "many_segments"])


def test_what_was_put_in_its_place_is_inherited(racing: Lab) -> None:
    """What is mapped beside must be in no child, what was moved from there must be."""
    program = racing.program("races")
    racing.same([program, "put_in_place"])
    run = racing.merged([program, "put_in_place"], UDEDUP_TEST_GUARDS="staged")
    assert run.out == "wrong 0\nchild 11\ndone\n"
    argv: list[str | Path] = [program, "fork_meets_no_stage"]
    racing.same(argv, UDEDUP_TEST_DELAY_US="2000")
    goes_wrong(racing, argv, "bad 0\ndone\n", "staged", UDEDUP_TEST_DELAY_US="2000")


def made_at_the_limit(lab: Lab, name: str, **extra: str) -> str:
    """A busy machine's agent may give all back before the limit is reached: that shows nothing."""
    for _ in range(5):
        run = lab.merged([lab.program("races"), name], **extra)
        if run.status != NOT_MERGED:
            return run.out
    pytest.fail("nothing was merged any more at the limit in five runs")


@pytest.mark.skipif(MAPPINGS > 70_000, reason=f"vm.max_map_count is {MAPPINGS}: too many to fill")
def test_given_back_at_the_limit_of_mappings(racing: Lab) -> None:
    racing.set({"sleep_millisecs": 200, "idle_millisecs": 200})
    assert made_at_the_limit(racing, "at_the_limit") == "made 32\ndone\n"
    assert made_at_the_limit(racing, "at_the_limit", UDEDUP_TEST_GUARDS="ballast") != "made 32\ndone\n"


@pytest.mark.skipif(MAPPINGS > 70_000, reason=f"vm.max_map_count is {MAPPINGS}: too many to fill")
def test_counted_at_the_limit_of_mappings(racing: Lab) -> None:
    """The agent looks seldom: when it comes to count, not even a list of the mappings can be mapped."""
    racing.set({"sleep_millisecs": 700, "idle_millisecs": 700})
    assert made_at_the_limit(racing, "at_the_limit_at_once") == "made 32\ndone\n"


def test_threads_that_are_not_listed(racing: Lab) -> None:
    """The kernel's list of threads ends early where one of them is just ending: "short" plays that."""
    program = racing.program("races")
    slow = {"UDEDUP_TEST_DELAY_US": "1000"}
    racing.same([program, "thread_race"], UDEDUP_TEST_GUARDS="short", **slow)
    goes_wrong(racing, [program, "thread_race"], "lost 0\ndone\n", "short,listed", **slow)


@pytest.mark.skipif(os.geteuid() != 0, reason="another PID namespace takes root")
def test_proc_of_another_pid_namespace(racing: Lab) -> None:
    program = racing.program("races")
    slow = {"UDEDUP_TEST_DELAY_US": "20000"}
    racing.same([program, "proc_race"], **slow)
    goes_wrong(racing, [program, "proc_race"], "lost 0\ndone\n", "proc", **slow)


def test_given_back_while_the_program_opens_it(racing: Lab) -> None:
    """Mode trap: what the program itself has made read-only is under no window when it is given back."""
    program = racing.program("races")
    with racing.churning(0.02):
        racing.same([program, "protect_race"], **TRAP)
        goes_wrong(racing, [program, "protect_race"], "lost 0\ndone\n", "bar", **TRAP)


def test_a_fault_opens_nothing_that_became_something_else(racing: Lab) -> None:
    program = racing.program("races")
    slow = TRAP | {"UDEDUP_SPLIT": "trap", "UDEDUP_TEST_DELAY_US": "60000"}
    right = racing.same([program, "opens_ahead"], **slow)
    goes_wrong(racing, [program, "opens_ahead"], right.out, "neighbours", **slow)


def test_another_process_on_the_same_memory(racing: Lab) -> None:
    """One thread of the process is held; the other process is not, so nothing may be merged."""
    program = racing.program("races")
    slow = {"UDEDUP_TEST_DELAY_US": "1000"}
    racing.same([program, "sharer_race"], **slow)
    goes_wrong(racing, [program, "sharer_race"], "lost 0\ndone\n", "sharers", **slow)


def test_pinned_memory_is_moved_without_the_guard(racing: Lab) -> None:
    program = racing.program("uring")
    racing.same([program, "unmapped_ring"])
    goes_wrong(racing, [program, "unmapped_ring"], "bad 0\ndone\n", "pinned")


def refused(lab: Lab, program: str, name: str) -> list[str | Path]:
    """ptrace refused: threads are parked by SIGURG."""
    return [lab.program("noptrace"), "eperm", lab.program(program), name]


def held_by(how: str, lab: Lab, program: str, name: str) -> list[str | Path]:
    return refused(lab, program, name) if how == "signal" else [lab.program(program), name]


def test_wrong_without_parking(racing: Lab) -> None:
    argv = refused(racing, "races", "store_race")
    right = racing.same(argv, UDEDUP_TEST_DELAY_US="1000")
    goes_wrong(racing, argv, right.out, "hold", UDEDUP_TEST_DELAY_US="1000")


def test_eintr_is_lost_without_the_look_for_pending_signals(racing: Lab) -> None:
    for _ in range(5):
        run = racing.merged(refused(racing, "processes", "eintr_of_read"), UDEDUP_TEST_GUARDS="owed")
        if "interrupted 0" in run.out:
            return
    pytest.fail("no EINTR is lost: does the test test it?")


def hangs_at_last(lab: Lab, argv: list[str | Path], guard: str) -> bool:
    """Without the guard, in one of twenty runs: a reader that is hit first only stops the merging."""
    for _ in range(20):
        try:
            lab.merged(argv, timeout=8, UDEDUP_TEST_GUARDS=guard, UDEDUP_TEST_DELAY_US="1000")
        except AssertionError as error:
            assert "hangs" in str(error)
            return True
        finally:
            kill_all(Path(argv[-2]))
    return False


def kill_all(program: Path) -> None:
    """A helper that was stopped in its first instructions outlives a program that does not look after it."""
    for process in processes_of(program):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process.name), signal.SIGKILL)


def test_parked_for_ever_if_the_starter_does_not_let_go(racing: Lab) -> None:
    argv = refused(racing, "races", "killed_holder")
    program = racing.program("races")
    with killing_holders(program) as killed:
        until_some(killed, lambda: racing.same(argv, UDEDUP_TEST_DELAY_US="1000"))
    with killing_holders(program):
        assert hangs_at_last(racing, argv, "release")


@pytest.mark.parametrize("how", ["ptrace", "signal"])
def test_holder_stopped_at_any_instant(racing: Lab, how: str) -> None:
    """SIGSTOP to a process group stops its holders, too; SIGCONT to the program alone must be enough."""
    argv = held_by(how, racing, "races", "killed_holder")
    with killing_holders(racing.program("races"), signal.SIGSTOP) as stopped:
        until_some(stopped, lambda: racing.same(argv, UDEDUP_TEST_DELAY_US="1000"))
        assert hangs_at_last(racing, argv, "stopped")


def test_large_blocks_grow_right(racing: Lab) -> None:
    racing.same([racing.program("races"), "realloc_race"], UDEDUP_TEST_DELAY_US="200")


def children(process: Path) -> list[str]:
    """Those of any of its threads: the agent's are the holders and readers. None once it has ended."""
    found: list[str] = []
    with contextlib.suppress(OSError):  # glob itself raises where its folder goes away
        for task in process.glob("task/*/children"):
            with contextlib.suppress(OSError):
                found += task.read_text().split()
    return found


def processes_of(program: Path) -> list[Path]:
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "exe").readlink() == program:
                found.append(process)
    return found


def until_some(hit: list[int], once: Callable[[], object]) -> None:
    """A holder lives for a millisecond: on a busy machine the hunter may come too late for all of one run."""
    for _ in range(5):
        once()
        if hit:
            return
    pytest.fail("no holder was met in five runs")


@contextlib.contextmanager
def killing_holders(program: Path, how: int = signal.SIGKILL) -> Iterator[list[int]]:
    """Signals the holders and readers of `program`: processes of their own, named udedup-agent."""
    stop = threading.Event()
    killed: list[int] = []

    def hunt() -> None:
        programs: list[Path] = []
        for turn in itertools.count():
            if stop.is_set():
                return
            if turn % 50 == 0:
                programs = processes_of(program)
            for child in itertools.chain.from_iterable(map(children, programs)):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text() == "udedup-agent\n":
                        # At any instant of its life: some live for 4 ms, most for less than one.
                        time.sleep(random.random() * random.choice((0.0, 0.0005, 0.001, 0.004)))
                        os.kill(int(child), how)
                        killed.append(int(child))

    with ThreadPoolExecutor(1) as pool:
        hunting = pool.submit(hunt)
        try:
            yield killed
        finally:
            stop.set()
            hunting.result()  # a hunter that fell would let the test pass, or fail, for nothing


def test_holder_killed_at_any_instant(racing: Lab) -> None:
    program = racing.program("races")
    with killing_holders(program) as killed:
        until_some(killed, lambda: racing.same([program, "killed_holder"], UDEDUP_TEST_DELAY_US="1000"))


def test_holder_killed_without_bitfirst(racing: Lab) -> None:
    program = racing.program("races")
    argv: list[str | Path] = [program, "killed_holder"]
    with killing_holders(program):
        goes_wrong(racing, argv, "bad 0\ndone\n", "bitfirst", UDEDUP_TEST_DELAY_US="1000")


@pytest.mark.parametrize("how", ["ptrace", "signal"])
def test_sleeping_calls_see_interruptions_without_the_repair(racing: Lab, how: str) -> None:
    argv = held_by(how, racing, "syscalls", "sleepers_see_nothing")
    goes_wrong(racing, argv, racing.plain(argv).out, "eintr")


@pytest.mark.parametrize("how", ["ptrace", "signal"])
def test_the_next_sleep_is_not_taken_for_the_one_before(racing: Lab, how: str) -> None:
    """Between the agent's look and the stop one has ended, and the next has begun in the same place."""
    argv = held_by(how, racing, "races", "sleeps_in_a_row")
    right = racing.same(argv, UDEDUP_TEST_DELAY_US="15000")
    if how == "ptrace":  # where a signal stops them the holder looks once more, right before it
        goes_wrong(racing, argv, right.out, "switches", UDEDUP_TEST_DELAY_US="15000")


def test_sleeps_are_never_short_where_time_is_stolen(racing: Lab) -> None:
    """Told by a clock that a hypervisor stops: "stolen" plays it. On one CPU, so that one offset serves.

    Beside busy processes one of 36 was short while an offset served for a sleep at the same reading.
    """
    argv = ["taskset", "-c", "0", *refused(racing, "syscalls", "sleepers_see_nothing")]
    racing.same(argv, UDEDUP_TEST_GUARDS="stolen", HZ_NO_LARGE_WRITE="1")
    goes_wrong(racing, argv, racing.plain(argv).out, "stolen,offset")


KEPT = pytest.mark.skipif(os.uname().machine != "x86_64", reason="elsewhere the number stays in its register")


@KEPT
def test_calls_begun_by_syscall_after_the_look(racing: Lab) -> None:
    """Parked by SIGURG between the agent's look and the signal: syscall(2) must have left its number."""
    racing.same(refused(racing, "races", "calls_by_turns"), UDEDUP_TEST_DELAY_US="2000")


@KEPT
@pytest.mark.long
def test_calls_by_syscall_go_wrong_without_their_number(racing: Lab) -> None:
    """Alone at once, beside other tests hardly ever: so not among those."""
    argv = refused(racing, "races", "calls_by_turns")
    goes_wrong(racing, argv, "bad 0\ndone\n", "number", UDEDUP_TEST_DELAY_US="2000")
