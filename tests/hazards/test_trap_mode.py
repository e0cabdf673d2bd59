"""The same programs in mode trap, with and without trapped splits: what is advised is merged by mprotect."""

from __future__ import annotations

import pytest
from hazards.lab import Lab

MAPPINGS = [
    "munmap_merged", "munmap_hole", "mmap_fixed_over", "mremap_grow", "mremap_shrink", "mremap_move",
    "mremap_move_part", "dontneed", "free_advice", "remove_advice", "dontfork", "wipeonfork", "mergeable",
    "mprotect_and_back", "mprotect_read_stays", "mlockall_merged", "realloc_large", "errors_stay",
]  # fmt: skip
# Not protections_kept: merged pages that the program has closed stay merged in this mode until it opens them.
PROCESSES = [
    "stores_are_kept", "fork_while_writing", "fork_storm", "child_lives_on", "vfork_and_spawn", "exec_merged",
    "threads_come_and_go", "signals_while_held", "eintr_of_sleep", "segv_blocked", "close_everything",
    "stopped_and_continued",
]  # fmt: skip
EDGES = [
    "mremap_refused", "dontneed_locked", "flags_move_along", "no_process_left", "unshare_at_once",
    "guard_pages", "leave_and_join", "written_without_agent", "vast_ranges", "several_moved",
]  # fmt: skip
SPLITS = {"trap": "kernel", "trap-split": "trap"}


@pytest.fixture(params=SPLITS)
def trap(request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        "UDEDUP_MODE": "trap",
        "UDEDUP_SPLIT": SPLITS[request.param],
        "UDEDUP_REGIONS": "advised",
        "HZ_ADVISE": "1",
    }


@pytest.mark.parametrize("name", MAPPINGS)
def test_mappings(lab: Lab, trap: dict[str, str], name: str) -> None:
    lab.same([lab.program("mappings"), name], **trap)


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(lab: Lab, trap: dict[str, str], name: str) -> None:
    lab.same([lab.program("processes"), name], **trap)


@pytest.mark.parametrize("name", EDGES)
def test_edges(lab: Lab, trap: dict[str, str], name: str) -> None:
    lab.same([lab.program("edges"), name], **trap)


def test_sleeping_calls(lab: Lab, trap: dict[str, str]) -> None:
    lab.same([lab.program("syscalls"), "sleepers_see_nothing"], **trap)


def test_a_crash_is_a_crash(lab: Lab, trap: dict[str, str]) -> None:
    run = lab.merged([lab.program("processes"), "crash_still_crashes"], **trap)
    assert run.status == -11, run
