"""Fork, exec, threads, signals, descriptors, credentials and limits while memory is merged."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hazards.lab import Lab

QUIET = [
    "stores_are_kept", "fork_while_writing", "fork_storm", "child_lives_on", "vfork_and_spawn",
    "exec_merged", "threads_come_and_go", "busy_threads", "main_thread_leaves",
    "many_threads", "many_masked", "close_everything", "credentials", "seccomp_strict",
    "signals_while_held", "eintr_of_sleep", "eintr_of_read", "eintr_of_read_in_process", "urgent_is_ours",
    "other_pid_namespace",
    "segv_blocked", "address_space_limit", "descriptor_limit", "mapping_limit", "stopped_and_continued",
]  # fmt: skip
CHURNED = [
    "stores_are_kept", "fork_while_writing", "child_lives_on", "vfork_and_spawn", "threads_come_and_go",
    "signals_while_held", "eintr_of_sleep", "segv_blocked",
]  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_same_as_plain(lab: Lab, name: str) -> None:
    lab.same([lab.program("processes"), name])


@pytest.mark.parametrize("name", CHURNED)
def test_same_as_plain_while_merging_and_unmerging(lab: Lab, name: str) -> None:
    with lab.churning(stays=1.5):
        lab.same([lab.program("processes"), name])


def test_frozen_by_cgroup(lab: Lab) -> None:
    """A frozen process holds nobody up, and goes on whole: while it is frozen others are merged."""
    base = Path("/sys/fs/cgroup/freezer")
    group, state = base / f"udedup-test-{os.getpid()}", "freezer.state"
    if not os.access(base, os.W_OK):
        pytest.skip("no freezer cgroup that may be written")
    group.mkdir()
    frozen = subprocess.Popen(
        [str(lab.program("processes")), "stores_are_kept"],
        env=lab.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        (group / "cgroup.procs").write_text(str(frozen.pid))
        for _ in range(8):
            (group / state).write_text("FROZEN")
            time.sleep(0.1)
            assert lab.client.request("stat", timeout=5)["processes"]
            (group / state).write_text("THAWED")
            time.sleep(0.1)
        (group / state).write_text("FROZEN")
        lab.same([lab.program("processes"), "exec_merged"])
        (group / state).write_text("THAWED")
        out, _ = frozen.communicate(timeout=60)
        assert (frozen.returncode, out) == (0, "bad 0\nbad 0\nbad 0\ndone\n")
    finally:
        (group / state).write_text("THAWED")
        frozen.kill()
        frozen.wait()
        group.rmdir()


def test_a_crash_is_a_crash(lab: Lab) -> None:
    run = lab.merged([lab.program("processes"), "crash_still_crashes"])
    assert run.status == -signal.SIGSEGV, run


@pytest.mark.parametrize("name", ["stores_are_kept", "fork_while_writing"])
def test_merger_killed_again_and_again(lab: Lab, name: str) -> None:
    import threading

    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(1.2):
            lab.kill_merger()
            lab.start_merger()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        lab.same([lab.program("processes"), name])
    finally:
        stop.set()
        killer.join()
