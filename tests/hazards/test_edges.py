"""What programs seldom ask of memory calls: the same answers on merged memory."""

from __future__ import annotations

import os
import resource

import pytest
from hazards.lab import Lab

NAMES = [
    "realloc_too_large", "mremap_refused", "dontneed_locked", "no_descriptor_left",
    "no_process_left", "no_proc", "first_of_a_namespace", "flags_move_along", "guard_pages",
    "guarded_block", "locked_in_future",
    "remove_after_a_file", "process_madvise_self", "unshare_at_once", "same_inode_elsewhere",
    "realloc_in_little_room", "droppable", "sealed", "freed_as_they_were", "leave_and_join",
    "written_without_agent", "vast_ranges", "left_while_growing", "several_moved",
]  # fmt: skip


#: Under mlockall(MCL_FUTURE) all that the agent maps is locked, its ledger of 109 MB above all.
LOCKABLE = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]


@pytest.mark.parametrize("name", NAMES)
def test_same_as_plain(lab: Lab, name: str) -> None:
    if name == "locked_in_future" and os.geteuid() and 0 <= LOCKABLE < 256 << 20:
        pytest.skip(f"RLIMIT_MEMLOCK is {LOCKABLE} bytes: no agent finds room, and nothing is merged")
    lab.same([lab.program("edges"), name])


def test_guard_in_a_gap(lab: Lab) -> None:
    with lab.churning(0.5):
        lab.same([lab.program("edges"), "guard_in_a_gap"])
